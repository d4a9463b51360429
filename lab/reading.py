"""What a table is made of: the finished runs of a folder, read from their records and checked.

A run writes one JSONL record: a header line, step lines, eval lines, and a final line when it is done. Here it becomes
a `Run`; which runs stand in one row of a table, and in which order the rows come, is decided here too. A run leaves one
file per record; a study that is committed keeps all of them in one compressed file.
"""

import json
import math
import os
from pathlib import Path
from typing import NamedTuple

from lab.archive import PACKED, unpacked
from lab.records import has_checksum, refuse_format


class Run(NamedTuple):
    """One finished run of one method, from one pretrained pair and with one seed, as its record tells it."""

    variant: str
    pair: int  # the seed that its teacher and its untouched student were pretrained with
    seed: int
    budget: str  # "steps": equal number of updates; "compute": stopped at equal FLOP
    header: dict
    steps: list  # of dicts, one per logged training step
    evals: list  # of dicts, one per evaluation: of the untouched student (step 0), then on the way
    rollouts: list  # of dicts, what both models say of a few held-out responses; most runs keep none
    final: dict  # the figures of the final checkpoint


def read_records(folder):
    """The finished runs recorded in a folder, in the order of file names. Raises ValueError as read_runs does."""
    return read_runs(folder)[0]


def read_runs(folder):
    """(finished runs, one line of text per unfinished one) of folder/*.jsonl, or of the archive that was made of them.

    Unfinished means no final line; then the last line may be cut short, which is what an interruption leaves. Anything
    else that cannot be read is an error that names file and line: a table must not leave runs out silently.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder: name the --out folder of a run")
    runs, unfinished, file_of = [], [], {}
    for path, text in _record_texts(folder):
        finished, stopped = _read_text(path, text)
        unfinished += stopped
        for run in finished:
            key = (run.variant, run.pair, run.seed, run.budget)
            if key in file_of:  # a paired difference would have to pick one of the two
                raise ValueError(f"{path} and {file_of[key]} both hold {run.variant} pair {run.pair} seed {run.seed} "
                                 f"(budget {run.budget}): move one of them away")
            file_of[key] = path
            runs.append(run)
    tasks = in_headers(runs, "task")
    if len(tasks) > 1:
        raise ValueError(f"{folder} mixes the tasks {', '.join(tasks)}: give each task its own --out folder")
    return runs, unfinished


def record_files(folder):
    """(path, bytes) of each folder/*.jsonl, in the order of their names."""
    for path in sorted(Path(folder).glob("*.jsonl")):
        # A folder, or a pipe that would keep its reader waiting; passing over it would be silent.
        if not path.is_file():
            raise ValueError(f"{path} is no file, and a record is one: move it away")
        yield path, path.read_bytes()


def _record_texts(folder):
    """(path, bytes) of what holds records in a folder: files, or the one archive. Raises ValueError where both are."""
    archive = folder / PACKED
    if not os.path.lexists(archive):
        yield from record_files(folder)
        return
    for path in folder.glob("*.jsonl"):
        raise ValueError(f"{folder} holds {PACKED} and {path.name} beside it: type --pack again if that was "
                         "interrupted, or move one of the two away")
    yield archive, unpacked(archive)


def _read_text(path, text):
    """(finished runs, texts about unfinished ones) of one file; a header line starts a run, a final line ends it."""
    lines = text.split(b"\n")
    finished, unfinished, run, start = [], [], None, 0
    for number, line in enumerate(lines, start=1):
        where = f"{path}, line {number}"
        if not line.strip():
            continue
        try:
            entry = json.loads(line.decode("utf-8"))
        except (ValueError, RecursionError) as error:  # a decoding error is one, too
            # No newline at the end of the file: the run died while it wrote this line.
            if number == len(lines) and (run is not None or not finished):
                break
            raise ValueError(f"{where} is not JSON ({error}): mend or remove the file") from None
        kind = entry.get("kind") if isinstance(entry, dict) else None
        _check_kinds(entry if kind else {}, where)
        if kind == "header":
            if run is not None:
                unfinished.append(_stopped(path, run))
            run, start = _start_run(entry, where), number - 1
        elif kind is None or run is None:
            found = "has no kind" if kind is None else f"is a {kind} line outside of a run"
            raise ValueError(f"{where} {found}: a run goes from a header line to a final line")
        elif kind in ("step", "eval") and not _is_whole(entry.get("step")):
            raise ValueError(f"{where} has the step {entry.get('step')!r}, and a {kind} line needs a whole number")
        elif kind == "step":
            run.steps.append(entry)
        elif kind == "eval":
            run.evals.append(entry)
        elif kind == "rollout":
            run.rollouts.append(entry)
        elif kind == "final":
            if not has_checksum(b"\n".join(lines[start:number]).decode("utf-8")):
                raise ValueError(f"{where} holds no checksum of what stands before it, which was changed since: "
                                 "remove the file and run again with --resume")
            del entry["sha256"]
            finished.append(run._replace(final=entry))
            run = None
    if run is not None:
        unfinished.append(_stopped(path, run))
    elif not finished:
        unfinished.append(f"{path.name}, without a header")
    return finished, unfinished


KINDS = {"kind": str, "variant": str, "script": str, "task": str, "metric": str, "device": str, "device_name": str,
         "teacher": dict, "student_start": dict, "flags": dict, "sources": dict, "jobs": int, "step": int,
         "warnings": list}  # fmt: skip


def _check_kinds(entry, where):
    """ValueError for a value that the report would stumble over: a checksum says that nothing was changed, not that it
    is right."""
    for key, kind in KINDS.items():
        value = entry.get(key)
        texts = value if isinstance(value, list) else [value] if kind is str else []
        fits = isinstance(value, kind) and all(isinstance(text, str) and text.isprintable() for text in texts)
        if value is not None and not (fits and (kind is not int or abs(value) < 2**53)):
            raise ValueError(f"{where} has a {key} that is none: {repr(value)[:60]}")


def _start_run(header, where):
    """A Run without a final line. Raises ValueError if the header is of an older format, or does not say which method,
    pair and seed it is."""
    refuse_format(where, header.get("format", 1))
    variant, budget = header.get("variant"), header.get("budget", "steps")
    pair, seed = header.get("pair"), header.get("seed")
    named = isinstance(variant, str) and variant.strip()
    if not isinstance(order := header.get("order"), (list, int, type(None))):
        raise ValueError(f"{where} is a header with order {repr(order)[:60]}: it must be a list or a number")
    if not named or not _is_whole(pair) or not _is_whole(seed) or budget not in ("steps", "compute"):
        raise ValueError(f"{where} is a header with variant {variant!r}, pair {pair!r}, seed {seed!r} and budget "
                         f"{budget!r}: a name, two whole numbers and 'steps' or 'compute' are needed")
    return Run(variant, pair, seed, budget, header, [], [], [], None)


def _is_whole(value):
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**53


def _stopped(path, run):
    last = max((entry.get("step", 0) for entry in run.steps + run.evals), default=0)
    return f"{path.name}, stopped at step {last}"


def as_number(value):
    """A float below 1e100, or None for null, NaN, infinity and what is no number: None is 'has no meaning here'."""
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not is_number or not abs(value) < 1e100:
        return None
    return float(value) if abs(value) > 1e-100 else 0.0  # smaller ones leave no room for ticks


def column_of(runs, key):
    """The figure `key` of every run's final line; None where a run has none."""
    return [as_number(run.final.get(key)) for run in runs]


def ordered_variants(runs, order=None):
    """Names of the methods: as listed in `order`, else in the header's "order" (names, or the own index), else by first
    appearance."""
    place = {}
    for run in runs:
        listed = run.header.get("order") if order is None else order
        method, *swept = run.variant.split()
        if isinstance(listed, (list, tuple)):
            name = method if method in listed else run.variant
            listed = listed.index(name) if name in listed else None
        # Swept values come behind their method, in the order of the flags' names and of their numbers.
        values = [(flag, _numbers_first(value)) for flag, _, value in sorted(text.partition("=") for text in swept)]
        place.setdefault(run.variant, (math.inf if listed is None else listed, [flag for flag, _ in values], values))
    return sorted(place, key=place.get)  # sorted is stable: ties stay in the order of appearance


def _numbers_first(text):
    """Sort key: numbers by their size, then words."""
    try:
        return 0, float(text)
    except ValueError:
        return 1, text


def select_runs(runs, variant, budget):
    """The runs of a method at a budget. Of the method that sets the compute budget, the equal-steps runs are both."""
    chosen = [run for run in runs if run.variant == variant and run.budget == budget]
    if budget == "compute" and not chosen and any(run.budget == "compute" for run in runs):
        chosen = [run for run in runs if run.variant == variant and run.header.get("sets_budget")]
    return sorted(chosen, key=lambda run: (run.pair, run.seed))


def sorted_runs(runs, variants):
    """The runs by method, in the order of `variants`, then by pair, seed and budget: what is rendered from them does
    not depend on the order in which they were read."""
    return sorted(runs, key=lambda run: (variants.index(run.variant), run.pair, run.seed, run.budget != "steps"))


def pairs_of(runs):
    """The pretrained pairs that the runs started from, ascending."""
    return sorted({run.pair for run in runs})


def starting_points(runs, which):
    """{pair: figures} of the "teacher" or the "student_start" in the headers, without the pairs that lack them."""
    points = {}
    for run in sorted(runs, key=lambda run: (run.pair, run.seed)):
        if run.header.get(which):
            points.setdefault(run.pair, run.header[which])
    return points


def in_headers(runs, key):
    """The different values of a header entry, in order of appearance; runs without it do not count."""
    return list(dict.fromkeys(run.header[key] for run in runs if run.header.get(key) is not None))


def shared_the_machine(runs):
    """Whether several runs were at work side by side (--jobs): then their seconds do not compare."""
    return max(in_headers(runs, "jobs"), default=1) > 1


# Of a rollout, an entry per token.
LIKELIEST = ("teacher_tokens", "teacher_probs", "student_tokens", "student_probs")
ROLLOUT_COLUMNS = ("written_by", "rejected", "rank", *LIKELIEST)


def rollout_lines(run):
    """The `rollout` lines of a run that can be drawn, in the order of steps; of a step that stands twice, as after a
    resumed run, the later line."""
    found = {line["step"]: line for line in run.rollouts if _is_rollout_line(line)}
    return [found[step] for step in sorted(found)]


def _is_rollout_line(line):
    """Whether a line holds what docs/metrics.md says: a checksum tells that nothing was changed, not that it fits."""
    texts, rollouts = line.get("texts"), line.get("rollouts")
    if not (isinstance(texts, dict) and isinstance(rollouts, list) and isinstance(line.get("step"), int)):
        return False
    known = all(isinstance(text, str) for text in texts.values()) and isinstance(line.get("accept_top_k"), int)
    return known and all(_fits(rollout, texts) for rollout in rollouts)


def _fits(rollout, texts):
    columns = [rollout.get(name) for name in ("tokens", *ROLLOUT_COLUMNS)] if isinstance(rollout, dict) else [None]
    if not all(isinstance(column, list | str) for column in columns):
        return False
    tokens, written_by, rejected, _, *likeliest = columns
    if len({len(column) for column in columns}) != 1 or not isinstance(rollout.get("prompt"), str):
        return False
    if not all(isinstance(item, list) for column in likeliest for item in column):
        return False
    replaced = [token is not None for token in rejected]
    named = [*tokens, *(token for token in rejected if token is not None)]
    return replaced == [letter == "t" for letter in written_by] and all(str(token) in texts for token in named)
