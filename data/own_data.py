"""Your own prompts and answers (--task jsonl): which files and shapes are read, and how they become splits.

    DIR/train.jsonl, perhaps val and test beside it -> rows (prompt, answers) -> overlaps left out -> carve -> examples

Three rules:
- A text is learned as it was written, with every blank, tab and new line. Nothing is stripped, nothing is joined
  except for instruction and input.
- Two prompts are the same if `identity` says so: Unicode's form and the white space around a prompt do not count, all
  else does. A prompt lives in one split, and all of its rows with it. Sizes are numbers of rows.
- What is read is certain; anything else is refused in one line (ValueError) that names file, line and what to type.
  Every row that is left out is counted in a line for `say`, with its reason.
"""

import hashlib
import shlex
import unicodedata
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

from data.formats import Example, checked_text, csv_rows, json_items, json_lines
from data.progress import progress

HELD_OUT = 0.1  # share of train's prompts that stands in for a val or test file
FEW = 20  # so few held-out prompts tell no method from another
PLAIN_ENDINGS = (".jsonl", ".json", ".csv", ".tsv")
ENDINGS = (*PLAIN_ENDINGS, *(f"{ending}.gz" for ending in PLAIN_ENDINGS))
OTHER_ENDINGS = (".parquet", ".arrow", ".xlsx", ".txt", ".zip", ".zst")  # named where a file is looked for in vain
OTHER_NAMES = ("train", "val", "test", "dev", "eval")  # how split files of other tools begin


# ---------------------------------------------------------------------------------------------------------------------
# Files


def own_file(folder: Path, split: str) -> Path | None:
    """The file of a split, of any ending that is read; None without one, ValueError if there are two."""
    found = [path for path in (folder / f"{split}{ending}" for ending in ENDINGS) if path.is_file()]
    if len(found) > 1:
        raise ValueError(f"{found[0].name} and {found[1].name} are two files for {split}: leave one of them there")
    return found[0] if found else None


def listed(names) -> str:
    """At most eight names, each in quotes: they come from a file."""
    names = [repr(name)[:42] for name in names]
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "") or "none"


def data_files(folder: Path) -> list[str]:
    """Names in the folder that may be meant as data: sorted."""
    return sorted(path.name for path in folder.iterdir() if path.name.lower().endswith((*ENDINGS, *OTHER_ENDINGS)))


def missing_file(name: str, folder: Path | None) -> str:
    """The one line for a folder without a file that is needed, or for no folder."""
    if folder is None:
        return f"{name}: not found; pass the folder that holds it as --data-dir DIR"
    there = data_files(folder)
    told = f"it holds {listed(there)}: name the one to learn from {name} (or .csv, ..)" if there else "it holds no data"
    if (folder / name).exists():
        told = "this name is no file there"
    return f"{name}: not found in {folder}; {told}, or pass another folder as --data-dir DIR"


def unread_files(folder: Path, read: list[str]) -> list[str]:
    """A line, in a list, on files that look like a split of another tool and are not read; else an empty list."""
    names = [name for name in data_files(folder) if name.lower().startswith(OTHER_NAMES) and name not in read]
    if not names:
        return []
    return [f"{listed(names)} not read: the splits' files are called train, val and test (.jsonl, .csv, ..)"]


# ---------------------------------------------------------------------------------------------------------------------
# Rows


class Row(NamedTuple):
    """One line of a file. `prompt`, `answers` and `hint` as written; `identity` of the prompt."""

    prompt: str
    answers: tuple[str, ...]
    identity: str
    hint: str = ""


class Shape(NamedTuple):
    """Which keys a record of this shape has, and how it is read."""

    keys: tuple[str, ...]
    read: Callable  # (place, record) -> prompt, answers
    optional: tuple[str, ...] = ()
    told: str = ""  # what a reader should know of how its prompts are made


def identity(prompt: str) -> str:
    """What makes two prompts the same: the text in Unicode's form NFC, without the white space around it."""
    return unicodedata.normalize("NFC", prompt).strip()


def read_fields(prompt_key: str, response_key: str, place: str, record: dict) -> tuple[str, tuple[str, ...]]:
    """A prompt and its answer, or a list of answers that are all right."""
    prompt, answers = checked_text(place, prompt_key, record[prompt_key]), record[response_key]
    several = isinstance(answers, list) and answers
    answers = tuple(checked_text(place, response_key, answer) for answer in (answers if several else [answers]))
    if several and not all(map(str.strip, answers)):
        raise ValueError(f"{place}: an empty text among the answers in {response_key!r}")
    return prompt, answers


def read_instruction(place: str, record: dict) -> tuple[str, tuple[str, ...]]:
    """Instruction, on the next line its input if there is one, and a cue, as the set `instructions` has it."""
    refuse_context(place, record)
    instruction, answers = read_fields("instruction", "output", place, record)
    given = "" if record.get("input") is None else checked_text(place, "input", record["input"])
    if not instruction.strip() and not given.strip():
        return "", answers
    return instruction + (f"\n{given}" if given.strip() else "") + "\nResponse:\n", answers


def read_turns(key: str, place: str, record: dict) -> tuple[str, tuple[str, ...]]:
    """A chat of one question and one answer, of either common spelling."""
    refuse_context(place, record)
    turns = record[key]
    if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
        raise ValueError(f"{place}: expected a list of messages in {key!r}, found {repr(turns)[:60]}")
    names = {"human": "user", "gpt": "assistant"}
    roles = [str(turn.get("role", turn.get("from")))[:20] for turn in turns]
    if [names.get(role, role) for role in roles] != ["user", "assistant"]:
        shown = ", ".join(map(repr, roles[:6])) + (", .." if len(roles) > 6 else "") or "none"
        raise ValueError(
            f"{place}: a chat of two turns is read (user, assistant), found {shown}: write what the model is to read "
            "as 'prompt' and the answer that it is to learn as 'response'"
        )
    prompt, answer = (checked_text(place, key, turn.get("content", turn.get("value"))) for turn in turns)
    return prompt, (answer,)


def refuse_context(place: str, record: dict) -> None:
    """ValueError if a record says more to the model than its question."""
    for key in ("system", "history"):
        if record.get(key):
            raise ValueError(f"{place}: {key!r} is not read: write all that the model is to read as 'prompt'")


def fields(prompt_key: str, response_key: str) -> Shape:
    """Prompts and answers under two keys."""
    return Shape((prompt_key, response_key), partial(read_fields, prompt_key, response_key))


INSTRUCTION_TOLD = "a prompt is the instruction, its input on the next line if it has one, and a last line 'Response:'"
SHAPES = (
    fields("prompt", "response"),
    fields("prompt", "completion"),
    Shape(("instruction", "output"), read_instruction, ("input",), INSTRUCTION_TOLD),
    Shape(("messages",), partial(read_turns, "messages")),
    Shape(("conversations",), partial(read_turns, "conversations")),
)
NOT_READ = {  # a key that tells what a record is -> why it is not read
    "rejected": "preference pairs are not read: to learn the better answers type --response-key chosen",
    "input_ids": "token ids are not read: give the texts that they stand for",
}


def is_table(path: str) -> bool:
    """Whether a file has a heading line."""
    return path.removesuffix(".gz").endswith((".csv", ".tsv"))


def shape_of(path: str, place: str, record: dict, prompt_key: str | None, response_key: str | None) -> Shape:
    """How a file is to be read whose first record this is; ValueError with what to type if that is not certain."""
    if prompt_key or response_key:
        return fields(prompt_key or "prompt", response_key or "response")
    for shape in SHAPES:
        if set(shape.keys) <= record.keys():
            return shape
    found = f"found {'the heading' if is_table(path) else 'the keys'} {listed(record)}"
    for key, why in NOT_READ.items():
        if key in record:
            raise ValueError(f"{place}: {why}; {found}")
    texts = [key for key, value in record.items() if isinstance(value, str) and key.isprintable() and len(key) < 40]
    flags = "--prompt-key KEY --response-key KEY"
    if texts == ["text"]:
        raise ValueError(f"{place}: one text does not say where its prompt ends: part it into two; {found}")
    if len(texts) == 2:
        flags = f"--prompt-key {shlex.quote(texts[0])} --response-key {shlex.quote(texts[1])}"
    raise ValueError(f"{place}: expected text in 'prompt' and in 'response', {found}; name yours with {flags}")


def records_of(path: str, text: str) -> Iterator[tuple[str, dict]]:
    """(place, record) of a file of any ending that is read."""
    if is_table(path):
        heading, delimiter = text.partition("\n")[0], "\t" if ".tsv" in path else ","
        other = next((sign for sign in ",;\t|" if sign in heading), delimiter)
        if delimiter not in heading and other != delimiter:
            raise ValueError(f"{path}: its cells are parted by {other!r}: a .csv file wants commas, a .tsv file tabs")
        return csv_rows(path, text, delimiter)
    return (json_items if text.lstrip().startswith("[") else json_lines)(path, text)


def read_rows(path: str, text: str, say: Callable, prompt_key: str | None, response_key: str | None) -> list[Row]:
    """The rows of one file, in their order; `say` hears the file's name and a line on what of it is not used."""
    rows, empty, unread, shape = [], [], {}, None
    for place, record in progress(records_of(path, text), path):
        shape = shape or shape_of(path, place, record, prompt_key, response_key)
        for key in shape.keys:
            if key not in record:
                raise ValueError(f"{place}: expected text in {key!r}, found the keys {listed(record)}")
        prompt, answers = shape.read(place, record)
        given = None if "hint" in shape.keys else record.get("hint")
        hint = "" if given is None else checked_text(place, "hint", given)
        unread.update(dict.fromkeys(record.keys() - {*shape.keys, *shape.optional, "hint"}))
        if prompt.strip() and any(map(str.strip, answers)):
            rows.append(Row(prompt, answers, identity(prompt), hint if hint.strip() else ""))
        else:
            empty.append(place)
    if not empty and not rows:
        raise ValueError(f"{path}: there is no row in it")
    if not rows:
        raise ValueError(f"{path}: no row has text in all of {listed(shape.keys)} (first: {empty[0].split(', ')[-1]})")
    if shape.told:
        say(path, shape.told)
    if empty:
        first = empty[0].split(", ")[-1]
        say(path, f"{len(empty):,} rows left out, whose prompt or response is empty (first: {first})")
    if unread:
        say(path, f"not read: {listed(sorted(unread))}")
    return rows


# ---------------------------------------------------------------------------------------------------------------------
# Splits


def position(key: str) -> float:
    """A place in [0, 1) by the hash of a key alone."""
    return int.from_bytes(hashlib.sha256(key.encode("utf-8")).digest()[:8], "big") / 2**64


def parse_own(
    texts: dict[str, str], say: Callable, prompt_key: str | None = None, response_key: str | None = None
) -> dict[str, list[Example]]:
    """{file name: text} of train and, perhaps, val and test -> splits. A split without a file is carved from train."""
    if prompt_key is not None and prompt_key == response_key:
        raise ValueError(f"--prompt-key and --response-key both name {prompt_key!r}: a prompt is not its own answer")
    keys, files = (prompt_key, response_key), {name.partition(".")[0]: name for name in texts}
    heard = {}  # line -> the files that it is true of
    rows = {
        split: read_rows(name, texts[name], lambda path, line: heard.setdefault(line, []).append(path), *keys)
        for split, name in files.items()
    }
    for line, names in heard.items():
        say(f"{', '.join(names)}: {line}")
    check_distinct(files, rows)
    rows = without_overlaps(files, rows, say)
    rows |= carve(files["train"], rows["train"], [split for split in ("val", "test") if split not in files], say)
    prompts = {split: len({row.identity for row in rows[split]}) for split in ("train", "val", "test")}
    if any(prompts[split] < len(rows[split]) for split in prompts):
        told = ", ".join(f"{split} {prompts[split]:,} ({len(rows[split]):,})" for split in prompts)
        say(f"all rows of a prompt lie in one split; distinct prompts (and rows): {told}")
    if several := sum(len(row.answers) > 1 for row in rows["train"]):
        say(f"train: each answer of a row with several is learned as a row of its own ({several:,} such rows)")
    return {
        "train": [Example(row.prompt, answer, hint=row.hint) for row in rows["train"] for answer in row.answers],
        "val": with_references("val", rows["val"], say),
        "test": with_references("test", rows["test"], say),
    }


def check_distinct(files: dict[str, str], rows: dict[str, list[Row]]) -> None:
    """ValueError if two files hold the same rows."""
    for split in rows:
        same = [files[other] for other in rows if rows[other] == rows[split]]
        if len(same) > 1:
            raise ValueError(
                f"{' and '.join(same)} hold the same rows: what is learned cannot measure what was learned; leave "
                f"{files['train']} alone there, and a tenth of its prompts stands in for each file that is not"
            )


def without_overlaps(files: dict[str, str], rows: dict[str, list[Row]], say: Callable) -> dict[str, list[Row]]:
    """Given files without rows whose prompt another one has: test keeps all, val yields to test, train to both."""
    kept, owner = {}, {}  # identity -> the file that has it
    for split in (split for split in ("test", "val", "train") if split in rows):
        kept[split] = [row for row in rows[split] if row.identity not in owner]
        for other in dict.fromkeys(owner.values()):
            lost = sum(owner.get(row.identity) == other for row in rows[split])
            if lost and not kept[split]:
                raise ValueError(
                    f"{files[split]}: nothing is left, all {lost:,} rows have a prompt that is in {other}: give files "
                    "without common prompts, or no val and test, and a tenth of train's prompts stands in for each"
                )
            if lost:
                say(f"{files[split]}: {lost:,} of {len(rows[split]):,} rows left out, whose prompts are in {other}")
        owner |= {row.identity: files[split] for row in kept[split]}
    return kept


def carve(name: str, rows: list[Row], missing: list[str], say: Callable) -> dict[str, list[Row]]:
    """Part the rows of train: by a hash of the prompt, about a tenth of the prompts for each split in `missing`.

    A prompt's split depends on nothing but itself, so adding data moves no prompt. Only where few prompts leave a split
    empty, the nearest one is moved there.
    """
    places = {row.identity: position(row.identity) for row in rows}
    if len(places) <= len(missing):
        raise ValueError(
            f"{name}: too few distinct prompts ({len(places)}): {', '.join(['train', *missing])} need one each; add "
            f"prompts, or put {' and '.join(f'{split}.jsonl' for split in missing)} beside it"
        )
    home = {key: next((missing[i] for i in range(len(missing)) if place < (i + 1) * HELD_OUT), "train")
            for key, place in places.items()}  # fmt: skip
    prompts = {split: [key for key in home if home[key] == split] for split in ("train", *missing)}
    for split in prompts:
        if not prompts[split]:
            donor = max(prompts.values(), key=len)
            nearest = min(donor, key=places.get)
            donor.remove(nearest)
            prompts[split], home[nearest] = [nearest], split
    few = [split for split in missing if len(prompts[split]) < FEW]
    if few:
        counts = ", ".join(f"{len(prompts[split])} for {split}" for split in few)
        beside = " and ".join(f"{split}.jsonl" for split in few)
        told = f"{name} has {len(places):,} prompts: {counts} tell little of a difference"
        say(f"{told}; put {beside} beside it for more")
    return {split: [row for row in rows if home[row.identity] == split] for split in prompts}


def with_references(split: str, rows: list[Row], say: Callable) -> list[Example]:
    """Examples of a held-out split: every answer that a prompt has in its rows is right."""
    answers = {}
    for row in rows:
        answers.setdefault(row.identity, {}).update(dict.fromkeys(row.answers))
    several = sum(len(texts) > 1 for texts in answers.values())
    if several:
        say(f"{split}: each answer of a prompt with several counts as right ({several:,} such prompts)")
    accepted = {key: tuple(texts) if len(texts) > 1 else () for key, texts in answers.items()}
    return [Example(row.prompt, row.answers[0], accepted[row.identity], row.hint) for row in rows]
