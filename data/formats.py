"""Text of a file -> records, each with the place (file and line) that an error message names, and what an example is.

    JSON Lines, a JSON list of objects, CSV and TSV with a heading -> (place, {key: value})
"""

import csv
import io
import json
import sys
from collections.abc import Iterator
from typing import NamedTuple

from data.tokenizer import distinct_keys


class Example(NamedTuple):
    """One prompt with its response; `references` holds every accepted response where there are several, `hint` what
    own data says of the answer beforehand."""

    prompt: str
    response: str
    references: tuple[str, ...] = ()
    hint: str = ""


def text_lines(text: str) -> list[str]:
    """Lines, unstripped. Only newlines count: str.splitlines also cuts at U+2028 and shifts parallel files."""
    return text.removesuffix("\n").split("\n")


def json_lines(path: str, text: str) -> Iterator[tuple[str, dict]]:
    """(place, object) of every line that is not blank."""
    lines = text_lines(text)
    for number, line in enumerate(lines, start=1):
        if line.strip():
            ends_open = number == len(lines) > 1 and not text.endswith("\n")
            hint = "; the file ends within it: was it cut off?" if ends_open else "; a line must hold one whole object"
            yield f"{path}, line {number}", json_object(f"{path}, line {number}", parse_json(path, line, number, hint))


def json_items(path: str, text: str) -> Iterator[tuple[str, dict]]:
    """(place, object) of every item of a file that is one JSON list."""
    items = parse_json(path, text)
    if not isinstance(items, list):
        raise ValueError(f"{path}: expected a JSON list, found {type(items).__name__}")
    for number, item in enumerate(items, start=1):
        yield f"{path}, item {number}", json_object(f"{path}, item {number}", item)


def parse_json(path: str, text: str, first_line: int = 1, hint: str = "") -> object:
    """json.loads of text that begins on `first_line` of the file, with a one-line error that names file and line."""
    try:
        return json.loads(text, object_pairs_hook=distinct_keys)
    except json.JSONDecodeError as error:
        line = first_line + error.lineno - 1
        raise ValueError(f"{path}, line {line}: broken JSON ({error.msg}); begins {text[:40]!r}{hint}") from error
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, thousands of brackets
        reason = str(error)[:80] if isinstance(error, ValueError) else "nested too deep"
        raise ValueError(f"{path}, line {first_line}: unreadable JSON ({reason})") from error


def json_object(place: str, value: object) -> dict:
    """The value, if it is an object."""
    if not isinstance(value, dict):
        raise ValueError(f"{place}: expected a JSON object, found {type(value).__name__}")
    return value


def csv_rows(path: str, text: str, delimiter: str = ",") -> Iterator[tuple[str, dict]]:
    """(place, row) of a CSV file with a heading line; a row may span several lines, the place names its last one."""
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))  # the default of 131,072 characters is no limit of ours
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True, delimiter=delimiter)
    while True:
        try:
            heading, row = reader.fieldnames, next(reader, None)
        except csv.Error as error:
            line = reader.reader.line_num  # the outer count lags behind on an error
            raise ValueError(f"{path}, line {line}: broken CSV ({error})") from error
        if len(set(heading or ())) < len(heading or ()):
            raise ValueError(f"{path}: a name stands twice in the heading line: one of the two columns would be lost")
        if row is None:
            return
        if None in row or None in row.values():  # DictReader's marks for cells too many and too few
            raise ValueError(f"{path}, line {reader.line_num}: not the {len(heading)} cells of the heading")
        yield f"{path}, line {reader.line_num}", row


def checked_text(place: str, field: str, value: object) -> str:
    """The value as it stands, if it is text; ValueError if it is something else, or no valid Unicode."""
    if not isinstance(value, str):
        kinds = {dict: "an object", list: "a list", type(None): "null"}
        found = kinds.get(type(value)) or f"{repr(value)[:60]}, which wants quotes to be text"
        raise ValueError(f"{place}: expected text in {field!r}, found {found}")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:  # "\ud800" in JSON: half a character, which no tokenizer can encode
        raise ValueError(f"{place}: {field!r} holds a lone surrogate, not a character") from error
    return value


def text_field(place: str, record: dict, field: str, empty_allowed: bool = False) -> str:
    """The text of a field, stripped; ValueError if it is absent, not text, empty, or no valid Unicode."""
    value = record.get(field)
    text = "" if value is None else checked_text(place, field, value).strip()
    if not text and not (empty_allowed and value is not None):
        raise ValueError(f"{place}: expected text in {field!r}, found nothing")
    return text
