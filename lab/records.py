"""Records: one JSON-lines file per run, written line by line, with a checksum at its end, and read again.

A file is a header (what was asked, of which code, on which machine), one line per logged step, one per evaluation, and
a final line. The final line ends with a sha256 of everything from the header to there, so that a record that was
changed afterwards, by a failing disk or by hand, is told from the one that was written. A file without its final line
belongs to a run that was interrupted. Records name no folder, so they can be committed.
"""

import dataclasses
import hashlib
import json
import os
import re
from pathlib import Path

FORMAT = 3  # of records and states; in 2 a folder held one pair, in 1 no format was written and names were others
CHECKSUM = ', "sha256": "{}"}}'  # how a final line ends


def with_checksum(text):
    """The lines of a whole run, as text without a newline at the end -> the same with its checksum."""
    return text[:-1] + CHECKSUM.format(hashlib.sha256(text.encode()).hexdigest())


def has_checksum(text):
    """Whether a text is what `with_checksum` made of some other: not a bit of it was changed."""
    return text == with_checksum(text[: -len(CHECKSUM.format("0" * 64))] + "}")


def run_name(variant, pair, seed, budget):
    """The stem of a run's files; pair and seed are numbers."""
    return f"{variant}{'_compute' if budget == 'compute' else ''}_pair{pair}_seed{seed}".replace(" ", "_")


class NoLog:
    """What all processes but the first write their records to."""

    text = ""

    def write(self, kind, **figures):
        pass

    def close(self):
        pass

    def state_dict(self):
        return {}

    def load_state_dict(self, state):
        pass


class RunLog:
    """One run's record file, one JSON object per line, flushed line by line."""

    def __init__(self, folder, name, header):
        self.path, self.text = Path(folder) / f"{name}.jsonl", ""
        self.begin_file()
        self.write("header", format=FORMAT, **header)

    def begin_file(self):
        """A new file at the path; were there a link, another one would be written over."""
        self.path.unlink(missing_ok=True)
        self.file = self.path.open("x", encoding="utf-8", newline="\n")

    def write(self, kind, **figures):
        """Append {"kind": kind, **figures}; floats are rounded to 7 digits. A final line holds the record's
        checksum."""
        # Somebody moved or emptied the folder: what is known is written anew.
        if kind == "final" and not self.in_place():
            self.file.close()
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.begin_file()
            self.file.write(self.text)
        before, text = len(self.text), self.text + json.dumps({"kind": kind} | rounded(figures), allow_nan=False)
        self.text = (with_checksum(text) if kind == "final" else text) + "\n"
        self.file.write(self.text[before:])
        self.file.flush()

    def in_place(self):
        """Whether the file is still where it was begun."""
        try:
            return os.path.samestat(os.fstat(self.file.fileno()), os.stat(self.path))
        except FileNotFoundError:
            return False

    def close(self):
        self.file.close()

    def state_dict(self):
        """What was written so far."""
        return {"text": self.text}

    def load_state_dict(self, state):
        """Go on behind what another RunLog had written."""
        self.file.seek(0)
        self.file.truncate()
        self.text = state["text"]
        self.file.write(self.text)
        self.file.flush()


def rounded(value):
    """Floats to 7 significant digits, and what JSON has no number for to None, all the way down."""
    if isinstance(value, float):
        return float(f"{value:.7g}") if value == value and abs(value) != float("inf") else None
    if isinstance(value, dict):
        return {key: rounded(item) for key, item in value.items()}
    return [rounded(item) for item in value] if isinstance(value, (list, tuple)) else value


def write_whole(path, text):
    """Write text or bytes beside and rename: a reader sees the old file or the new one, never half. ValueError for a
    folder."""
    path = Path(path)
    if path.is_dir() and not path.is_symlink():  # a link would be replaced
        raise ValueError(f"{path} is a folder, and a file is to be written there: move it away")
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    beside.unlink(missing_ok=True)
    try:
        # "x": folders come from elsewhere, and through a link that waits there another file would be written over.
        with open(beside, "xb") as file:
            file.write(text.encode("utf-8") if isinstance(text, str) else text)  # no line ends of the system's own
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


def set_aside(path):
    """Rename a damaged file, so that it can still be looked at -> its new path."""
    aside, number = Path(f"{path}.damaged"), 1
    while aside.exists():
        aside, number = Path(f"{path}.damaged{number}"), number + 1
    return Path(path).rename(aside)


PROSE = ("paper", "note", "deviation", "read_from")  # columns of a row that change no bit of its runs


def without_prose(row):
    """The columns of a row of the table of methods, a dict, that decide its runs: the others may be reworded."""
    return {column: value for column, value in row.items() if column not in PROSE}


def read_finished(folder, name, flags, inputs=None, script=None, variants=None, say=print):
    """The final figures of a finished run, or None where it has to be run.

    A record that is not what was written is set aside, and `say` is told. Raises ValueError for a record, finished or
    not, that was made with other flags, from other input files (`inputs`), by another `script` or another row than that
    of `variants`, and for a file that is no record.
    """
    path = Path(folder) / f"{name}.jsonl"
    if not path.exists():
        return None
    if not path.is_file():  # reading from a pipe would wait for ever
        raise ValueError(f"{path.name} is no file: move it away, or give another --out")
    text = path.read_bytes().decode("utf-8", "replace")  # a checksum does not fit what was replaced
    lines = text.removesuffix("\n").split("\n")
    header = parsed(lines[0])
    if not isinstance(header, dict) or not isinstance(header.get("flags"), dict):
        cut_off = "\n" not in text  # within its first line
        if not re.fullmatch(r".+_pair\d+_seed\d+", name) or not cut_off and has_checksum(text.removesuffix("\n")):
            raise ValueError(f"{path.name} is no record of this project: move it away, or give another --out")
        if cut_off:
            return None
        finished = True
    else:  # either of the two ends a record, and a flipped bit leaves the other
        finished = any('"kind": "final"' in line or '"sha256": "' in line for line in lines[1:])
        if parsed(lines[-1]) is None and not text.endswith("\n"):
            finished = False  # cut off within its final line
    if finished and not has_checksum(text.removesuffix("\n")):
        say(f"{path.name} has a wrong checksum: renamed to {set_aside(path).name}, to be run again")
        return None
    refuse_format(path.name, header.get("format", 1))
    of_whom = [header.get(key) for key in ("variant", "pair", "seed", "budget")]
    if finished and None not in of_whom and run_name(*of_whom) != name:
        raise ValueError(f"{path.name} is the record of {run_name(*of_whom)}: give it that name, or move it away")
    if None not in (script, header.get("script")) and header["script"] != script:
        raise ValueError(f"{path.name} was made by {header['script']}.py, this is {script}.py: give another --out")
    asked = json.loads(json.dumps(rounded(flags)))
    if inputs is not None and asked.get("task") == header["flags"].get("task"):  # first: K follows from the data
        refuse_other_data(path.name, header.get("inputs", {}), inputs)
    refuse_difference(path.name, header["flags"], asked)
    if variants:
        refuse_other_row(path.name, header, variants)
    return parsed(lines[-1]) if finished else None


def refuse_format(name, found):
    """ValueError for a record or a state of another format than this code's."""
    if found != FORMAT:
        raise ValueError(
            f"{name} is of format {found}, this code writes format {FORMAT}: "
            "give another --out, or continue with the older code"
        )


def parsed(line):
    """What a line of JSON says, or None."""
    try:
        return json.loads(line)
    except (ValueError, RecursionError):  # thousands of brackets
        return None


def shown(value):
    """A flag's value as words: what nobody typed has no value that could be typed."""
    return "not given" if value is None else value


# Of what decides a run, these are no flags.
NO_FLAGS = ("fingerprint", "default_lr", "inputs", "row", "variant", "seed", "budget", "torch", "processes", "inner")


def changed_files(before, now):
    """What became of the data files of a run, both {file: sha256}: "test.jsonl is gone", or "" where all are the
    same."""
    what = {(False, True): "is new", (True, False): "is gone", (True, True): "has changed"}
    names = sorted(before.keys() | now.keys())
    return ", ".join(f"{x} {what[x in before, x in now]}" for x in names if before.get(x) != now.get(x))


def refuse_other_data(name, before, now):
    """ValueError where the maker of a file and this run do not read the same data files."""
    if changed := changed_files(before, now):
        raise ValueError(
            f"{changed} since {name} was begun: put the data back as it was, or start anew with another --out"
        )


def refuse_other_row(name, header, variants):
    """ValueError where a column of a method's row decides its runs and is not what the record's header says."""
    method, *swept = str(header.get("variant")).split(" ")
    if method not in variants or not isinstance(header.get("row"), dict):
        return
    now = json.loads(json.dumps(rounded(dataclasses.asdict(variants[method]))))
    typed = header["flags"].get("lr") is not None or any(knob.startswith("lr=") for knob in swept)
    for column, value in without_prose(header["row"]).items():
        if column == "rate" and typed:  # a typed rate holds for all rows
            continue
        # What the table leaves to a flag is compared as a flag; what it does not hold, it does not hold any more.
        if now.get(column) not in (None, "flag", value):
            raise ValueError(
                f"{name} was made with {column} {shown(value)} in the row of {method}, now it is {shown(now[column])}: "
                "give another --out, or put the row back"
            )


def refuse_difference(name, before, now):
    """ValueError that names the first thing in which the maker of a file and this run differ; both are {flag:
    value}."""
    if before.get("task") == now.get("task"):
        refuse_other_data(name, before.get("inputs") or {}, now.get("inputs") or {})

    def given(value):  # what nobody gave may be new: the file's maker did not know of it
        return {key: item for key, item in value.items() if item is not None} if isinstance(value, dict) else value

    # Name the flag that was typed: --size before what it decides, the resolved settings last.
    first = ("task", "size", "variant")
    last = ("settings", "row")
    for flag in sorted(before.keys() | now.keys(), key=lambda flag: (flag in last, flag not in first, flag)):
        if given(before.get(flag)) != given(now.get(flag)):
            typed = flag if flag in NO_FLAGS else f"--{'device' if flag == 'device_type' else flag.replace('_', '-')}"
            back = "go back to that" if flag in NO_FLAGS else "the same flags"
            raise ValueError(
                f"{name} was made with {typed} {shown(before.get(flag))}, now it is {shown(now.get(flag))}: "
                f"give another --out, or {back}"
            )
