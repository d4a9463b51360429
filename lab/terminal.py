"""Words for a terminal: at most 100 columns, colour only where somebody sees it, no letter that a terminal would obey.

And the notation of a rollout: who wrote which of its tokens, and what was rejected.
"""

import itertools
import os
import re
import sys
import textwrap
import unicodedata

from data.progress import WIDTH

STYLES = {"teacher": "\033[1;32m", "rejected": "\033[31m", "discarded": "\033[2m"}  # any other style is plain
PLAIN = "\033[0m"
LEGEND = "plain: student   {teacher's token<-rejected proposal #its rank with the teacher}"


def in_color():
    """Whether what is printed may be coloured: on a terminal whose user has not set NO_COLOR."""
    return sys.stdout is not None and sys.stdout.isatty() and not os.environ.get("NO_COLOR")


def width(text):
    """Columns that a text takes: two for a wide letter, none for an accent that joins the letter before it."""
    return sum(
        0 if unicodedata.combining(letter) else 2 if unicodedata.east_asian_width(letter) in "WF" else 1
        for letter in text
    )


def wrapped(text):
    """The same text with no line above WIDTH columns, as far as its blanks allow: a path is not broken."""

    def lines(line):
        if width(line) <= WIDTH:
            return [line]
        indent = line[: len(line) - len(line.lstrip())] + "  "
        room = WIDTH - max(0, width(line) - len(line))  # textwrap counts letters, and wide ones take two columns
        return textwrap.wrap(
            line, max(room, 20), subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
        )

    return "\n".join(part for line in text.split("\n") for part in lines(line))


def end_of(text, most):
    """A text of at most so many columns: of a longer one its end, behind an ellipsis."""
    if width(text) <= most:
        return text
    while text and width(text) > most - 1:
        text = text[1:]
    return "…" + text


def visible(text):
    r"""Text on one line; what a terminal would obey is written out, a new line as \n: anything may stand in a token.

    A backslash is written twice, so that no two texts look the same.
    """
    return "".join(letter if letter.isprintable() and letter != "\\" else repr(letter)[1:-1] for letter in text)


def readable(data):
    r"""Bytes as visible text; those of a character that was split are shown as \xe2."""
    letters = data.decode("utf-8", "surrogateescape")  # which makes of such a byte a letter of its own
    return "".join(
        f"\\x{ord(letter) - 0xDC00:02x}" if "\udc80" <= letter <= "\udcff" else visible(letter) for letter in letters
    )


def flow(label, groups, color=False):
    """A label and groups of (style, text) behind it, as lines of at most WIDTH columns that are indented by the label.

    A group is broken only where it is longer than a line.
    """
    indent = width(label)
    lines, used = [label], indent
    for group in groups:
        size = sum(width(text) for _, text in group)
        if used + size > WIDTH and size <= WIDTH - indent:
            lines, used = [*lines, " " * indent], indent
        for style, text in group:
            piece = ""
            for letter in text:
                if used + width(letter) > WIDTH:
                    lines[-1] += painted(style, piece, color)
                    lines, used, piece = [*lines, " " * indent], indent, ""
                piece, used = piece + letter, used + width(letter)
            lines[-1] += painted(style, piece, color)
    return "\n".join(lines)


def painted(style, text, color):
    """The text in the colour of its style, if it is to have one."""
    return f"{STYLES[style]}{text}{PLAIN}" if color and text and style in STYLES else text


def said(tokens, decode, eos_token):
    """Tokens as text, an end token as [end]; `decode` turns a list of ids into text."""
    runs = itertools.groupby(tokens, lambda token: token == eos_token)
    return "".join("[end]" * len([*own]) if is_end else decode([*own]) for is_end, own in runs)


def by_student(text):
    """What the student wrote, as groups for `flow`: a line may end between words."""
    return [[("student", word)] for word in re.findall(r"\S+\s*|\s+", text)]


def by_teacher(written, rejected, place):
    """A replaced token, as a group for `flow`: {the teacher's token<-the student's proposal #its rank with the
    teacher}."""
    return [("", "{"), ("teacher", written), ("", "<-"), ("rejected", rejected), ("", f" #{place}}}")]
