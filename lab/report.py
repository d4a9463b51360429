"""What comes out: tables with intervals and SVG curves, made from the records of runs and from nothing else.

A run writes one JSONL record: a header line, step lines, eval lines, and a final line when it is done. From here on
no model is needed, so a table can be rendered again years later from the committed records, to the same bytes:

    records (*.jsonl) -> read_records -> list of Run -> render_table -> table.md
                                                     -> curves_page  -> curves.svg
                                                     -> summary      -> summary.json

Uncertainty is over seeds: Student-t intervals, since a percentile bootstrap over five seeds covers too little, and
differences between two methods are paired by seed, since methods of one seed share the pair of models they start
from. A score is of the final checkpoint, and rows keep the order of the methods: nothing is sorted by result.

    python -m lab.report FOLDER [--readme README.md --section NAME]      # render again, and into the README
"""

import argparse
import json
import math
import os
import re
import sys
from pathlib import Path
from typing import NamedTuple
from xml.sax.saxutils import escape

import numpy as np

from lab.records import is_sealed, write_whole

# .975 quantiles of Student's t with 1, 2, .. 29 degrees of freedom: half width of a 95 % interval = t * s / sqrt(n).
T_975 = (
    12.706205, 4.302653, 3.182446, 2.776445, 2.570582, 2.446912, 2.364624, 2.306004, 2.262157, 2.228139,
    2.200985, 2.178813, 2.160369, 2.144787, 2.131450, 2.119905, 2.109816, 2.100922, 2.093024, 2.085963,
    2.079614, 2.073873, 2.068658, 2.063899, 2.059539, 2.055529, 2.051831, 2.048407, 2.045230,
)

# What a comparison of each script is about: (control, focus). The control is the method that differences are taken
# to in the first table, the focus is the method that the second table holds against all others.
COMPARISONS = {"train_skd": ("supervised", "skd"), "train_okd": ("fixed_forward_kl", "okd")}


def _cost(value):
    """Seconds, tokens, calls: three digits below 100, whole numbers with separators above."""
    return f"{value:,.0f}" if abs(value) >= 99.95 else f"{value:.3g}"


# heading, name in the records, how one number is written. The last two groups, and the figures named in OPTIONAL_FIGURES,
# are shown only where some run has them: older records lack them, and a fixed teacher does not adapt.
SCORES = (
    ("score (greedy)", "score", "{:.3f}".format),
    ("score (sampled)", "score_sampled", "{:.3f}".format),
)
DISTANCES_AND_COSTS = (
    ("val NLL", "val_nll", "{:.3f}".format),
    ("KL to teacher (references)", "kl_teacher", "{:.4f}".format),
    ("KL on own samples", "kl_on_policy", "{:.4f}".format),
    ("KL to adapted teacher", "kl_adapted_teacher", "{:.4f}".format),
    ("accept rate", "accept_rate", "{:.3f}".format),
    ("draft accept rate", "draft_accept_rate", "{:.3f}".format),
    ("seconds", "seconds", _cost),
    ("seconds / control", "seconds_relative", "{:.2f}".format),
    ("memory (MB)", "memory_mb", _cost),
    ("tokens generated", "tokens_generated", _cost),
    ("teacher forwards", "teacher_forwards", _cost),
    ("compute (model TFLOP)", "compute", _cost),
)
ADAPTED_TEACHER = (
    ("its drift from the original", "drift", "{:.4f}".format),
    ("drift on the student's samples", "drift_on_policy", "{:.4f}".format),
    ("its score (greedy)", "adapted_score", "{:.3f}".format),
    ("(sampled)", "adapted_score_sampled", "{:.3f}".format),
    ("its val NLL", "adapted_nll", "{:.3f}".format),
    ("student's KL to it", "kl_adapted_teacher", "{:.4f}".format),
    ("on own samples", "kl_on_policy_adapted", "{:.4f}".format),
    ("agreement with it", "agreement_adapted", "{:.3f}".format),
    ("ExAccErr to it (%)", "exposure_error_adapted", "{:+.1f}".format),
)
EASY_AND_HARD = (
    ("KL, easy tokens", "kl_teacher_easy", "{:.4f}".format),
    ("hard", "kl_teacher_hard", "{:.4f}".format),
    ("agreement, easy", "agreement_easy", "{:.3f}".format),
    ("hard tokens", "agreement_hard", "{:.3f}".format),
    ("std of logits, easy", "logit_std_easy", "{:.2f}".format),
    ("hard ones", "logit_std_hard", "{:.2f}".format),
    ("ExAccErr (%)", "exposure_error", "{:+.1f}".format),
)
FIGURES = SCORES + DISTANCES_AND_COSTS
OPTIONAL_FIGURES = ("kl_adapted_teacher", "seconds_relative", "memory_mb")
GROUPS = ((None, SCORES), (None, DISTANCES_AND_COSTS), ("The adapted teacher", ADAPTED_TEACHER),
          ("Easy and hard tokens, exposure bias", EASY_AND_HARD))

# Okabe & Ito's colours for every kind of colour vision, with a grey in place of yellow, which vanishes on white. The
# ninth series starts over with the next dash pattern, so 32 series look different.
PALETTE = ("#0072B2", "#8C8C8C", "#009E73", "#E69F00", "#CC79A7", "#56B4E9", "#000000", "#D55E00")
DASHES = ("", "7 3", "2 3", "9 3 2 3")
INK, FAINT, GREY = "#222222", "#DDDDDD", "#C8C8C8"
FONT = "font-family=\"system-ui, 'Segoe UI', Helvetica, Arial, sans-serif\""
CHAR_WIDTH = 6.6  # pixels of an average character at font size 11, on the wide side: SVG cannot measure text
LABEL_GAP = 13.0  # pixels between the baselines of two labels at font size 11
MOST_WARNINGS = 10  # in the notes above a table
MOST_NAMED = 4  # files, flags, or values of a flag, in one note
MAX_POINTS = 200  # a line of more points than pixels only costs bytes
MOST_LINES = 20  # that an eye can follow in one panel; of more, those that end among the OUTERMOST have colour and name
OUTERMOST = 6

# title, which lines of a record, key, label of the y axis, whether a wide range may go to a log axis
PANELS = (
    ("Score on held-out examples", "evals", "score", "score, 0..1", False),
    ("Validation NLL of the references", "evals", "val_nll", "nats per token", True),
    ("KL(teacher ‖ student) on the references", "evals", "kl_teacher", "nats per token", True),
    ("Tokens replaced by the teacher", "steps", "replacement_rate", "share of tokens", False),
    ("KL(original ‖ adapted teacher): drift", "evals", "drift", "nats per token", True),
    ("NLL of the adapted teacher", "evals", "adapted_nll", "nats per token", True),
)


# ---------------------------------------------------------------------------------------------------------- records


class Run(NamedTuple):
    """One finished run of one method at one seed, as its record tells it."""

    variant: str
    seed: int
    budget: str  # "steps": equal number of updates; "compute": stopped at equal FLOP
    header: dict
    steps: list  # of dicts, one per logged training step
    evals: list  # of dicts, one per evaluation on the way
    final: dict  # the figures of the final checkpoint


def read_records(folder):
    """The finished runs recorded in folder/*.jsonl, in the order of file names. Raises ValueError as read_runs does."""
    return read_runs(folder)[0]


def read_runs(folder):
    """(finished runs, one line of text per unfinished one) of folder/*.jsonl.

    Unfinished means no final line; then the last line may be cut short, which is what an interruption leaves. Anything
    else that cannot be read is an error that names file and line: a table must not leave runs out silently.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder: name the --out folder of a run")
    runs, unfinished, file_of = [], [], {}
    for path in sorted(folder.glob("*.jsonl")):
        if not path.is_file():  # a folder, or a pipe that would keep its reader waiting; passing over it would be silent
            raise ValueError(f"{path} is no file, and a record is one: move it away")
        finished, stopped = _read_file(path)
        unfinished += stopped
        for run in finished:
            key = (run.variant, run.seed, run.budget)
            if key in file_of:  # pairing by seed would have to pick one of the two
                raise ValueError(f"{path} and {file_of[key]} both hold {run.variant} seed {run.seed} "
                                 f"(budget {run.budget}): move one of them away")
            file_of[key] = path
            runs.append(run)
    tasks = _in_headers(runs, "task")
    if len(tasks) > 1:
        raise ValueError(f"{folder} mixes the tasks {', '.join(tasks)}: give each task its own --out folder")
    return runs, unfinished


def _read_file(path):
    """(finished runs, texts about unfinished ones) of one file; a header line starts a run, a final line ends it."""
    lines = path.read_bytes().split(b"\n")
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
        elif kind == "step":
            run.steps.append(entry)
        elif kind == "eval":
            run.evals.append(entry)
        elif kind == "final":
            if not is_sealed(b"\n".join(lines[start:number]).decode("utf-8")):
                raise ValueError(f"{where} does not seal what stands before it, which was changed since: remove the file and "
                                 "run again with --resume")
            del entry["sha256"]
            finished.append(run._replace(final=entry))
            run = None
    if run is not None:
        unfinished.append(_stopped(path, run))
    elif not finished:
        unfinished.append(f"{path.name}, without a header")
    return finished, unfinished


KINDS = {"kind": str, "variant": str, "script": str, "task": str, "metric": str, "device": str, "device_name": str, "teacher": dict,
         "student_start": dict, "flags": dict, "sources": dict, "jobs": int, "step": int, "warnings": list}  # fmt: skip


def _check_kinds(entry, where):
    """ValueError for a value that the report would stumble over: a seal says who changed a record, not that it is right."""
    for key, kind in KINDS.items():
        value = entry.get(key)
        texts = value if isinstance(value, list) else [value] if kind is str else []
        fits = isinstance(value, kind) and all(isinstance(text, str) and text.isprintable() for text in texts)
        if value is not None and not (fits and (kind is not int or abs(value) < 2**53)):
            raise ValueError(f"{where} has a {key} that is none: {repr(value)[:60]}")


def _start_run(header, where):
    """A Run without a final line. Raises ValueError if the header does not say which method and seed it is."""
    variant, seed, budget = header.get("variant"), header.get("seed"), header.get("budget", "steps")
    if not isinstance(variant, str) or not variant.strip() or not isinstance(seed, int) or budget not in ("steps", "compute"):
        raise ValueError(f"{where} is a header with variant {variant!r}, seed {seed!r} and budget {budget!r}: "
                         "a name, a whole number and 'steps' or 'compute' are needed")
    return Run(variant, seed, budget, header, [], [], None)


def _stopped(path, run):
    last = max((entry.get("step", 0) for entry in run.steps + run.evals), default=0)
    return f"{path.name}, stopped at step {last}"


def _number(value):
    """A float below 1e100, or None for null, NaN, infinity and what is no number: None is 'has no meaning here'."""
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not is_number or not abs(value) < 1e100:
        return None
    return float(value) if abs(value) > 1e-100 else 0.0  # smaller ones leave no room for ticks


def _column(runs, key):
    """The figure `key` of every run's final line; None where a run has none."""
    return [_number(run.final.get(key)) for run in runs]


def _ordered_variants(runs, order=None):
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


def _select(runs, variant, budget):
    """The runs of a method at a budget. Of the method that sets the compute budget, the equal-steps runs stand for both."""
    chosen = [run for run in runs if run.variant == variant and run.budget == budget]
    if budget == "compute" and not chosen and any(run.budget == "compute" for run in runs):
        chosen = [run for run in runs if run.variant == variant and run.header.get("sets_budget")]
    return sorted(chosen, key=lambda run: run.seed)


def _starting_points(runs, which):
    """{seed: figures} of the "teacher" or the "student_start" in the headers; one entry if all seeds share it."""
    points = {}
    for run in sorted(runs, key=lambda run: run.seed):
        if run.header.get(which):
            points.setdefault(run.seed, run.header[which])
    seeds = list(points)
    if all(points[seed] == points[seeds[0]] for seed in seeds):
        seeds = seeds[:1]
    return {seed: points[seed] for seed in seeds}


# -------------------------------------------------------------------------------------------------------- intervals


def student_t_interval(values, level=0.95):
    """(mean, half width) of the Student-t interval for the mean of values; (value, None) for a single one.

    Half width = t * s / sqrt(n), with s the standard deviation with n - 1 below the fraction line. It assumes
    roughly normal values, and then covers the true mean in 95 of 100 experiments even for n = 2, where t is 12.7.
    Raises ValueError for another level than .95, the one that is tabulated.
    """
    if level != 0.95:
        raise ValueError(f"level {level} is not tabulated: only .95 is")
    values = np.asarray(values, dtype=np.float64)
    n = len(values)
    assert values.ndim == 1 and n >= 1 and np.isfinite(values).all(), values
    if n == 1:
        return float(values[0]), None
    return float(values.mean()), float(_t_quantile(n - 1) * values.std(ddof=1) / math.sqrt(n))


def _t_quantile(freedom):
    """The .975 quantile of Student's t; beyond the table by Abramowitz & Stegun 26.7.5, then right to 2e-6."""
    if freedom <= len(T_975):
        return T_975[freedom - 1]
    z = 1.959963984540054  # the same quantile of the normal distribution, the limit of many degrees of freedom
    return (z + (z**3 + z) / (4 * freedom) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)
            + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * freedom**3))


class PairedDifference(NamedTuple):
    """a - b over the seeds that both have; mean None without a common seed, half_width None with only one."""

    mean: float | None
    half_width: float | None
    n: int
    positive: int  # in how many of the n seeds a is strictly above b


def paired_difference(runs_a, runs_b, key):
    """PairedDifference of the final figure `key` between two methods, seed by seed.

    What a seed does to both methods (a lucky pair of models, easy batches) cancels in the difference, so its
    interval is much narrower than the two intervals of the methods side by side would make believe.
    """
    figures_a, figures_b = ({run.seed: _number(run.final.get(key)) for run in runs} for runs in (runs_a, runs_b))
    assert len(figures_a) == len(runs_a) and len(figures_b) == len(runs_b), "a seed stands twice in one method"
    differences = [figures_a[seed] - figures_b[seed] for seed in sorted(figures_a.keys() & figures_b.keys())
                   if figures_a[seed] is not None and figures_b[seed] is not None]
    if not differences:
        return PairedDifference(None, None, 0, 0)
    mean, half_width = student_t_interval(differences)
    return PairedDifference(mean, half_width, len(differences), sum(d > 0 for d in differences))


# ----------------------------------------------------------------------------------------------------------- tables


def _inert(text):
    """Text that Markdown shows as it is: no HTML, no link."""
    return escape(str(text)).replace("[", "\\[")


def markdown_table(rows, header, left=1):
    """A Markdown table of strings, padded so that it reads as well in a terminal: `left` columns left, the others right."""
    cells = [[_inert(cell).replace("|", "\\|") for cell in row] for row in [header, *rows]]
    assert all(len(row) == len(header) for row in cells), [len(row) for row in cells]
    widths = [max(3, *(len(row[i]) for row in cells)) for i in range(len(header))]
    lines = []
    for row in cells:
        padded = [f"{cell:{'<' if i < left else '>'}{widths[i]}}" for i, cell in enumerate(row)]
        lines.append("| " + " | ".join(padded) + " |")
    rule = ["-" * width if i < left else "-" * (width - 1) + ":" for i, width in enumerate(widths)]
    lines.insert(1, "| " + " | ".join(rule) + " |")
    return "\n".join(lines)


def sparkline(values, width=24):
    """The shape of a curve in at most `width` block characters, lowest to highest; a blank where a value is None."""
    values = [_number(value) for value in values]
    if len(values) > width:
        values = [values[i] for i in np.linspace(0, len(values) - 1, width).round().astype(int)]
    present = [value for value in values if value is not None]
    if not present:
        return " " * len(values)
    low, span = min(present), max(present) - min(present)
    # A constant has no shape: it is drawn at half height.
    levels = [None if value is None else round(7 * (value - low) / span) if span > 0 else 3 for value in values]
    return "".join(" " if level is None else "▁▂▃▄▅▆▇█"[level] for level in levels)


def _with_interval(values, n_seeds):
    """'mean ± half width' of a score; says n where it is not the number of seeds in the row."""
    present = [value for value in values if value is not None]
    if not present:
        return "-"
    mean, half_width = student_t_interval(present)
    interval = "" if half_width is None else f" ± {half_width:.3f}"
    return f"{mean:.3f}{interval}" + (f" (n = {len(present)})" if len(present) != n_seeds else "")


def _difference_text(difference, n_seeds=None):
    """'+mean ± half width', then n where it differs from n_seeds; without n_seeds, then 'k of n positive'."""
    if difference.mean is None:
        return "-"
    interval = "" if difference.half_width is None else f" ± {difference.half_width:.3f}"
    text = f"{difference.mean:+.3f}{interval}"
    if n_seeds is None:
        return f"{text}, {difference.positive} of {difference.n} positive"
    return text + (f" (n = {difference.n})" if difference.n != n_seeds else "")


def _mean_text(values, write):
    present = [value for value in values if value is not None]
    return write(sum(present) / len(present)) if present else "-"


def _replaced_text(runs):
    """'first -> last' share of tokens that the teacher replaced, mean over runs; '-' where the teacher writes none."""
    ends = []
    for run in runs:
        rates = [_number(step.get("replacement_rate")) for step in run.steps]
        rates = [rate for rate in rates if rate is not None]
        if rates:
            ends.append((rates[0], rates[-1]))
    return "{:.3f} → {:.3f}".format(*np.mean(ends, axis=0)) if ends else "-"


def _result_table(runs, variants, control):
    """The main tables, group by group: teacher and starting student, then every method in its order."""
    starts = [(name, list(_starting_points(runs, which).values()))
              for name, which in (("teacher", "teacher"), ("student at the start", "student_start"))]
    tables = []
    for title, figures in GROUPS:
        present = [row for row in figures if any(run.final.get(row[1]) is not None for run in runs)]
        figures = present if title else [row for row in figures if row in present or row[1] not in OPTIONAL_FIGURES]
        if not figures:
            continue
        extra = _extra_columns(runs, variants, control, figures)
        header = ["method"] + ["seeds"] * (figures[0] in SCORES)
        for heading, key, _ in figures:
            header += [heading] + [heading for heading, after, _ in extra if after == key]
        rows = []
        for name, points in starts + [(variant, None) for variant in variants]:
            own = _select(runs, name, "steps") if points is None else []
            n_seeds = len(own) if points is None else len(points)
            if points == []:
                continue
            cells = [name] + [str(n_seeds)] * (figures[0] in SCORES)
            for _, key, write in figures:
                values = _column(own, key) if points is None else [_number(point.get(key)) for point in points]
                cells.append(_with_interval(values, n_seeds) if key.startswith("score") else _mean_text(values, write))
                cells += ["-" if points is not None else text(name, own) for _, after, text in extra if after == key]
            # Rows without a single figure (a fixed teacher among the adapted ones) tell nothing.
            if not title or any(cell != "-" for cell in cells[1:]):
                rows.append(cells)
        tables.append((f"**{title}**\n\n" if title else "") + markdown_table(rows, header))
    return "\n\n".join(tables)


def _extra_columns(runs, variants, control, figures):
    """Columns that are worked out from several runs: (heading, key of the figure they follow, text of a method's cell)."""
    extra = []
    if control in variants:
        def delta(variant, own):
            difference = paired_difference(own, _select(runs, control, "steps"), "score")
            return "-" if variant == control else _difference_text(difference, len(own))
        extra.append((f"Δ score to {control}", "score_sampled", delta))
    if any(run.budget == "compute" for run in runs):
        extra.append(("score at equal compute", "score_sampled", lambda variant, own: _with_interval(
            _column(_select(runs, variant, "compute"), "score"), len(own))))
    if _replaced_text(runs) != "-":
        extra.append(("replaced (first → last)", "draft_accept_rate", lambda variant, own: _replaced_text(own)))
    return extra


def _difference_table(runs, variants, focus):
    """The focus minus every other method, paired by seed, at every budget that was run."""
    columns = [("score (greedy)", "score", "steps"), ("score (sampled)", "score_sampled", "steps"),
               ("greedy at equal compute", "score", "compute"),
               ("sampled at equal compute", "score_sampled", "compute")]
    columns = [column for column in columns if any(run.budget == column[2] for run in runs)]
    rows = []
    for variant in variants:
        if variant != focus:
            rows.append([variant] + [_difference_text(paired_difference(
                _select(runs, focus, budget), _select(runs, variant, budget), key)) for _, key, budget in columns])
    return markdown_table(rows, [f"{focus} minus"] + [heading for heading, _, _ in columns])


def _raw_table(runs, variants):
    """Every run on its own: what the intervals were made of."""
    keys = {key for run in runs for key in run.final}
    figures = [row for row in FIGURES if row[1] in keys]
    rows = []
    for budget in ("steps", "compute"):
        for variant in variants:
            for run in _select(runs, variant, budget):
                cells = [_mean_text(_column([run], key), write) for _, key, write in figures]
                curve = sparkline([entry.get("score") for entry in run.evals], width=16)
                rows.append([variant, budget, str(run.seed), *cells, curve.strip() and curve or "-"])
    header = ["method", "equal", "seed"] + [heading for heading, _, _ in figures] + ["score over steps"]
    return markdown_table(rows, header)


def _in_headers(runs, key):
    """The different values of a header entry, in order of appearance; runs without it do not count."""
    return list(dict.fromkeys(run.header[key] for run in runs if run.header.get(key) is not None))


def _differences(runs, entry):
    """{name: its different values} of what a dict in the headers does not say alike in all runs.

    What a record does not hold is no difference: older ones lack the newer flags and files. Nor is a flag that was swept: the
    header holds what it was for the others, and the label its own value.
    """
    found = {}
    for run in runs:
        swept = {text.partition("=")[0].replace("-", "_") for text in run.variant.split()[1:]}
        for name, value in (run.header.get(entry) or {}).items():
            if name not in swept:
                found.setdefault(name, {}).setdefault(json.dumps(value, sort_keys=True), value)  # a dict keeps the order
    return {name: list(values.values()) for name, values in found.items() if len(values) > 1}


def _plain(value, longest=40):
    """A name or a value of a header as words: cut short, and with no line end that somebody else wrote."""
    text = json.dumps(value, sort_keys=True).strip('"')
    return text if len(text) <= longest else text[: longest - 1] + "…"


def _some(texts, joint):
    """The first of some texts, and how many more there are."""
    return joint.join(texts[:MOST_NAMED]) + (f"{joint}{len(texts) - MOST_NAMED} more" if len(texts) > MOST_NAMED else "")


def _notes(runs, variants, control):
    """What a reader must know before reading the tables, one line each."""
    notes = []
    if any(run.header.get("quick") for run in runs):
        notes.append("Made with --quick, a smoke run: its numbers mean nothing.")
    if max(len(_select(runs, variant, budget)) for variant in variants for budget in ("steps", "compute")) == 1:
        notes.append("One seed: a demonstration, no interval.")
    else:
        notes.append("Scores and differences: mean ± half width of the 95 % Student-t interval over seeds; other "
                     "columns: means." + (f" Δ is paired by seed with {control}." if control in variants else ""))
    metric = ", ".join(_in_headers(runs, "metric")) or "the task's own metric"
    notes.append(f"Score: {metric}, 0..1, of the final checkpoint on held-out examples. NLL and KL in nats per token, "
                 "KL to the original teacher. One TFLOP = 1e12 operations of the two models.")
    seeds = {variant: {run.seed for run in _select(runs, variant, "steps")} for variant in variants}
    all_seeds = set().union(*seeds.values())
    for variant, own in seeds.items():
        if own != all_seeds:
            notes.append(f"{variant} has {len(own)} of {len(all_seeds)} seeds: differences pair the seeds that both "
                         "have.")
    machines = _in_headers(runs, "device_name") or _in_headers(runs, "device")
    if len(machines) > 1:
        notes.append(f"The runs come from several machines ({'; '.join(machines)}): seconds do not compare.")
    if max(_in_headers(runs, "jobs"), default=1) > 1:
        notes.append("Several runs shared the machine (--jobs): seconds do not compare.")
    for seed in sorted(all_seeds):
        headers = [run.header for run in runs if run.seed == seed]
        fingerprints = {header.get("pair") for header in headers}
        figures = {json.dumps([header.get("teacher"), header.get("student_start")], sort_keys=True) for header in headers}
        # Older records took the fingerprint otherwise: a pair whose figures all agree to the last digit is one all the same.
        measured = all(header.get("teacher") and header.get("student_start") for header in headers)
        if (len(figures) > 1 or not measured) and len(fingerprints) > 1 or len(figures) > 1 and None in fingerprints:
            notes.append(f"Seed {seed}: the methods did not start from one pair of models: its differences are not "
                         "only the method's.")
    changed = _differences(runs, "sources")
    if changed:
        versions = {json.dumps([run.header["sources"].get(name) for name in changed]) for run in runs if run.header.get("sources")}
        notes.append(f"The runs were made by {len(versions)} versions of the code, which differ in {_some([*map(_plain, changed)], ', ')}; "
                     "not every change there moves a result.")
    # "settings" is what --size and other flags come to. The --steps of runs of equal compute are those that were asked for, too.
    asked = [f"--{_plain('device' if name == 'device_type' else name.replace('_', '-'))} "
             + _some(["not given" if value is None else _plain(value) for value in values], " or ")
             for name, values in _differences(runs, "flags").items() if name != "settings"]
    if asked:
        notes.append(f"The runs were made with different flags ({_some(asked, '; ')}): a difference between methods may be theirs.")
    starts = [text for run in runs for text in run.header.get("start_warnings") or []]
    notes += [f"Warning: {text}." for text in dict.fromkeys(starts)]
    told = {}  # seeds of one method differ in the numbers of a warning: said once, with those of the first
    for run in runs:
        for text in run.final.get("warnings") or []:
            told.setdefault((run.variant + ", equal compute," * (run.budget == "compute"), re.sub(r"\d+(\.\d+)?", "", text)), []).append((run.seed, text))
    warned = [f"{variant} seed {seeds[0]}" + f" (likewise {', '.join(map(str, seeds[1:]))})" * (len(seeds) > 1) + f": warning: {texts[0]}."
              for (variant, _), entries in told.items() for seeds, texts in [[*zip(*entries)]]]
    notes += warned[:MOST_WARNINGS]
    if len(warned) > MOST_WARNINGS:
        notes.append(f"and {len(warned) - MOST_WARNINGS} more warnings in the records.")
    return "\n".join(f"- {_inert(note)}" for note in notes)


def render_table(runs, control="supervised", focus="skd", order=None):
    """The report as Markdown: notes, one row per method, paired differences of `focus`, and every run on its own.

    Rows come in the order of `order` (a list of names), else of "order" in the headers (a list of names, or the
    method's own index), else of first appearance; never by score. Columns and tables about a control or a focus that
    was not run are left out. Raises ValueError if there is no run.
    """
    if not runs:
        raise ValueError("no finished run to report: let train_skd.py or train_okd.py finish first")
    variants = _ordered_variants(runs, order)
    runs = _with_relative_seconds(runs, control)
    tasks = _in_headers(runs, "task")
    parts = [f"**Task {_inert(tasks[0])}**" if tasks else "**Results**", _notes(runs, variants, control),
             _result_table(runs, variants, control)]
    if focus in variants and len(variants) > 1:
        parts += [f"**{_inert(focus)} minus every other method**, paired by seed", _difference_table(runs, variants, focus)]
    parts += ["<details><summary>Every run</summary>", _raw_table(runs, variants), "</details>"]
    return "\n\n".join(parts) + "\n"


def _with_relative_seconds(runs, control):
    """The runs with seconds_relative: their seconds divided by those of the control with the same seed and budget."""
    seconds = {(run.seed, run.budget): _number(run.final.get("seconds")) for run in runs if run.variant == control}
    result = []
    for run in runs:
        own, base = _number(run.final.get("seconds")), seconds.get((run.seed, run.budget))
        relative = {"seconds_relative": own / base} if own is not None and base else {}
        result.append(run._replace(final=run.final | relative))
    return result


def summary(runs, order=None):
    """The dict of summary.json: task, device, the starting pair, and the final figures of every run per method.

    Where seeds have pairs of their own, teacher and student_start hold means over seeds, and the single ones under
    "runs". Figures that a run does not have are None.
    """
    result = {name: ", ".join(_in_headers(runs, name)) or None for name in ("task", "device")}
    for which in ("teacher", "student_start"):
        points = _starting_points(runs, which)
        result[which] = dict(next(iter(points.values()), {}))
        if len(points) > 1:
            columns = {key: [_number(point.get(key)) for point in points.values()] for key in result[which]}
            result[which] = {key: sum(column) / len(column) for key, column in columns.items() if None not in column}
            result[which]["runs"] = [{"seed": seed, **point} for seed, point in points.items()]
    for name, budget in (("variants", "steps"), ("variants_equal_compute", "compute")):
        groups = {}
        for variant in _ordered_variants(runs, order):
            chosen = _select(runs, variant, budget)
            if chosen:
                groups[variant] = {"runs": [_summary_row(run) for run in chosen]}
        if groups or budget == "steps":
            result[name] = groups
    return _without_nan(result)


def _summary_row(run):
    figures = {key: None for _, key, _ in FIGURES if key not in OPTIONAL_FIGURES}
    return {"seed": run.seed, **figures, **{key: value for key, value in run.final.items() if key != "kind"}}


def _without_nan(value):
    """The same value with None for NaN and infinity, which JSON does not have."""
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


# ----------------------------------------------------------------------------------------------------------- curves


def _nice_ticks(low, high, count=6):
    """About `count` numbers between low and high, 1, 2, 2.5 or 5 times a power of ten apart."""
    raw = (high - low) / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= raw * (1 - 1e-9))
    return [step * i for i in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def _log_ticks(low, high):
    """Powers of ten between low and high; in a narrow range 2 and 5 times them too, in a very narrow one even steps."""
    exponents = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for factors in ((1,), (1, 2, 5)):
        ticks = [factor * 10.0**e for e in exponents for factor in factors if low <= factor * 10.0**e <= high]
        if len(ticks) >= 3:
            return ticks
    return _nice_ticks(low, high)


def _tick_texts(ticks):
    """The ticks with as many decimals as the one that needs most, or each in its own digits on a log axis."""
    own = [f"{tick:.6g}" for tick in ticks]  # 6 digits hide that 3 * 0.1 is 0.30000000000000004
    if len(ticks) < 3 or any("e" in text for text in own) or not math.isclose(ticks[1] - ticks[0], ticks[2] - ticks[1]):
        return own
    decimals = max(len(text.partition(".")[2]) for text in own)
    return [f"{tick:,.{decimals}f}" for tick in ticks]


def _mean_and_band(seeds, log_y):
    """(xs, means, lows, highs) over seeds = [(xs, ys), ..], each array (P,), NaN where no seed has a value.

    Seeds that were measured at different x are joined by lines between their own points, never beyond them; a NaN
    stays a gap. At most MAX_POINTS points are kept, evenly, with the first and the last.
    """
    curves = []
    for xs, ys in seeds:
        # A dict: of a step that stands twice, as after a resumed run, the later value counts. None becomes NaN.
        curve = np.array(sorted(dict(zip(xs, ys)).items()), dtype=np.float64).reshape(-1, 2)
        curve[~np.isfinite(curve[:, 1]) | (log_y & (curve[:, 1] <= 0)), 1] = np.nan  # no logarithm: a gap, too
        if len(curve):
            curves.append(curve)
    if not curves:
        return (np.zeros(0),) * 4
    grid = np.unique(np.concatenate([curve[:, 0] for curve in curves]))
    if len(grid) > MAX_POINTS:
        grid = grid[np.linspace(0, len(grid) - 1, MAX_POINTS).round().astype(int)]
    values = np.stack([np.interp(grid, *curve.T, left=np.nan, right=np.nan) for curve in curves])  # (seeds, P)
    present = np.isfinite(values)
    count = present.sum(0)
    total = np.where(present, values, 0.0).sum(0)
    empty = count == 0
    means = np.where(empty, np.nan, total / np.maximum(count, 1))
    lows = np.where(empty, np.nan, np.where(present, values, np.inf).min(0))
    highs = np.where(empty, np.nan, np.where(present, values, -np.inf).max(0))
    return grid, means, lows, highs


def _stretches(values):
    """The index ranges (start, stop) of values without a NaN in between."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], np.isfinite(values), [0]])))
    return list(zip(edges[::2], edges[1::2]))


def _spread(wanted, gap, low, high):
    """Places at least `gap` apart within low..high, in the order of `wanted` and as near to it as can be.

    Take i * gap from the i-th smallest: then "gap apart" reads "not decreasing", and the nearest such sequence comes
    from pooling neighbours that are out of order into their mean (isotonic regression by pool-adjacent-violators).
    """
    assert high - low >= gap * (len(wanted) - 1) - 1e-9, "no room for all labels"
    ranked = sorted(range(len(wanted)), key=lambda i: wanted[i])
    pools = []  # [sum, count]
    for rank, i in enumerate(ranked):
        pools.append([wanted[i] - rank * gap, 1])
        while len(pools) > 1 and pools[-2][0] * pools[-1][1] > pools[-1][0] * pools[-2][1]:
            total, count = pools.pop()
            pools[-1][0] += total
            pools[-1][1] += count
    level = [total / count for total, count in pools for _ in range(count)]
    places = [0.0] * len(wanted)
    for rank, i in enumerate(ranked):
        places[i] = min(max(level[rank], low), high - gap * (len(wanted) - 1)) + rank * gap
    return places


def _text(x, y, text, size=11, anchor="start", extra=""):
    """A <text> element; characters that XML or a line of text cannot hold are dropped."""
    text = escape("".join(c for c in str(text) if c.isprintable()))
    return f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" text-anchor="{anchor}" fill="{INK}" {extra}>{text}</text>'


def _stroke(index):
    """Colour and dash pattern of the series with this index."""
    dash = DASHES[index // len(PALETTE) % len(DASHES)]
    return f'stroke="{PALETTE[index % len(PALETTE)]}"' + (f' stroke-dasharray="{dash}"' if dash else "")


def _y_range(curves, log_y):
    """(low, high, ticks) of an axis that holds all bands; widened around a constant, 0..1 if there is no value."""
    values = np.concatenate([np.concatenate(curve[2:]) for curve in curves] or [np.zeros(0)])
    values = values[np.isfinite(values)]
    if not len(values):
        return 0.0, 1.0, _nice_ticks(0.0, 1.0)
    low, high = float(values.min()), float(values.max())
    if log_y:
        low, high = low / 1.15, high * 1.15
        return low, high, _log_ticks(low, high)
    constant = high - low <= 1e-9 * max(abs(low), abs(high))
    air = (abs(low) / 10 or 0.5) if constant else 0.04 * (high - low)
    # With the smallest value near zero, an axis without zero would only exaggerate; and no rate is below zero.
    low = 0.0 if 0 <= low < 0.4 * high or low == high == 0 else low - air
    return low, high + air, _nice_ticks(low, high + air)


def _x_range(curves):
    """(low, high, ticks) of the x axis: ends where the data end, ticks only inside."""
    values = np.concatenate([curve[0] for curve in curves] or [np.zeros(0)])
    low, high = (float(values.min()), float(values.max())) if len(values) else (0.0, 1.0)
    if high - low <= 1e-9 * max(abs(low), abs(high)):
        low, high = low - 1.0, high + 1.0
    return low, high, _nice_ticks(low, high)


def _end(xs, means):
    """(x, y) of a line's end, its last finite mean; None where it has none."""
    finite = np.flatnonzero(np.isfinite(means))
    return (float(xs[finite[-1]]), float(means[finite[-1]])) if len(finite) else None


def _named(series, always=()):
    """The methods that get a colour and a name in one panel: all, or of too many the outermost at the end and `always`."""
    if len(series) <= MOST_LINES:
        return list(series)
    ends = {name: end[1] for name, seeds in series.items() if (end := _end(*_mean_and_band(seeds, log_y=False)[:2]))}
    ranked = sorted(ends, key=ends.get)
    chosen = {*ranked[:OUTERMOST], *ranked[-OUTERMOST:], *always}
    return [name for name in series if name in chosen]


def _panel(series, indices, title, x_label, y_label, log_y, width, height, named=None):
    """The SVG elements of one plot in a box of width x height whose upper left corner is 0, 0.

    indices[name] gives the colour, so that a method looks the same in all panels of a page; a method that is not `named`
    (without it all are) is a thin grey line.
    """
    named = list(series) if named is None else named
    curves = {name: _mean_and_band(seeds, log_y) for name, seeds in series.items()}
    x_low, x_high, x_ticks = _x_range(curves.values())
    y_low, y_high, y_ticks = _y_range(curves.values(), log_y)
    y_texts = _tick_texts(y_ticks)
    left = max(58.0, 26.0 + CHAR_WIDTH * max((len(text) for text in y_texts), default=0))
    right = width - 30.0 - CHAR_WIDTH * max((len(_short(name)) for name in indices), default=0)
    top, bottom = 30.0, height - 40.0
    scale = np.log10 if log_y and y_low > 0 else np.asarray

    def to_x(x):
        return left + (right - left) * (np.asarray(x) - x_low) / (x_high - x_low)

    def to_y(y):
        return bottom - (bottom - top) * (scale(y) - scale(y_low)) / (scale(y_high) - scale(y_low))

    parts = [_text(left, 16, title, size=13, extra='font-weight="600"')]
    for tick, text in zip(y_ticks, y_texts):
        parts.append(f'<path d="M{left:.1f} {to_y(tick):.1f}H{right:.1f}" stroke="{FAINT}"/>')
        parts.append(_text(left - 6, to_y(tick) + 4, text, anchor="end"))
    for tick, text in zip(x_ticks, _tick_texts(x_ticks)):
        parts.append(f'<path d="M{to_x(tick):.1f} {top:.1f}V{bottom:.1f}" stroke="{FAINT}"/>')
        parts.append(_text(to_x(tick), bottom + 15, text, anchor="middle"))
    parts.append(f'<path d="M{left:.1f} {bottom:.1f}H{right:.1f}" stroke="{INK}"/>')
    parts.append(_text((left + right) / 2, bottom + 32, x_label, anchor="middle"))
    middle = (top + bottom) / 2
    parts.append(_text(12, middle, y_label, anchor="middle", extra=f'transform="rotate(-90 12 {middle:.1f})"'))

    # Bands below all lines: a band must not dim another method's line.
    drawn = {name: (to_x(xs), *map(to_y, ys)) for name, (xs, *ys) in curves.items()}
    opacity = 0.16 if len(named) <= 4 else 0.10 if len(named) <= 8 else 0.05
    parts += [_band(drawn[name], indices[name], opacity) for name in named if len(series[name]) > 1]
    parts += [_line(drawn[name]) for name in series if name not in named]
    parts += [_line(drawn[name], indices[name]) for name in named]
    return parts + _end_labels({name: drawn[name] for name in named}, indices, right, top, bottom)


def _band(curve, index, opacity):
    """The area between lows and highs; curve = (xs, means, lows, highs) in pixels."""
    xs, _, lows, highs = curve
    path = ""
    for start, stop in _stretches(lows):
        there = [f"{x:.1f} {y:.1f}" for x, y in zip(xs[start:stop], highs[start:stop])]
        back = [f"{x:.1f} {y:.1f}" for x, y in zip(xs[start:stop][::-1], lows[start:stop][::-1])]
        if stop - start == 1:  # a single point has no area: draw its spread as a thin bar
            x, high, low = xs[start], highs[start], lows[start]
            there = [f"{x - 2:.1f} {high:.1f}", f"{x + 2:.1f} {high:.1f}"]
            back = [f"{x + 2:.1f} {low:.1f}", f"{x - 2:.1f} {low:.1f}"]
        path += "M" + "L".join(there + back) + "Z"
    color = PALETTE[index % len(PALETTE)]
    return f'<path class="band" d="{path}" fill="{color}" fill-opacity="{opacity}"/>' if path else ""


def _line(curve, index=None):
    """The mean over seeds; a dot where a point stands alone. Without an index: one of the many, in grey."""
    xs, means, _, _ = curve
    path, dots = "", ""
    color = GREY if index is None else PALETTE[index % len(PALETTE)]
    stroke = f'stroke="{GREY}" stroke-width="1"' if index is None else f'{_stroke(index)} stroke-width="1.8"'
    for start, stop in _stretches(means):
        points = [f"{x:.1f} {y:.1f}" for x, y in zip(xs[start:stop], means[start:stop])]
        if stop - start == 1:
            dots += f'<circle cx="{xs[start]:.1f}" cy="{means[start]:.1f}" r="3" fill="{color}"/>'
        else:
            path += "M" + "L".join(points)
    return (f'<path class="line" d="{path}" fill="none" {stroke} stroke-linejoin="round"/>'
            if path else "") + dots


def _short(name, longest=20):
    """A name for the end of a line. Of swept flags the first letters are kept and every value, which tells them apart."""
    if len(name) > longest:
        name = re.sub(r"(?<= )([^ =]+)=", lambda flag: "".join(word[0] for word in flag[1].split("-") if word) + "=", name)
    tail = max(longest - longest // 2, len(name.removeprefix(name.split(" ")[0])))
    head = max(longest - tail - 1, 3)
    return name if len(name) <= max(longest, head + 1 + tail) else f"{name[:head]}…{name[-tail:]}"


def _end_labels(drawn, indices, right, top, bottom):
    """Names right of the plot, each at the height of its line's end or as near as the other names allow."""
    ends = {name: end for name, (xs, means, _, _) in drawn.items() if (end := _end(xs, means))}
    places = _spread([y for _, y in ends.values()], LABEL_GAP, top, bottom)
    parts = []
    for (name, (x, y)), place in zip(ends.items(), places):
        color = PALETTE[indices[name] % len(PALETTE)]
        early = f"M{x:.1f} {y:.1f}H{right:.1f}" if right - x > 1 else ""  # this line ended before the others
        if early:
            parts.append(f'<path d="{early}" stroke="{color}" stroke-dasharray="1 4" fill="none"/>')
        parts.append(f'<path d="M{right:.1f} {y:.1f}L{right + 18:.1f} {place:.1f}h4" stroke="{color}" fill="none"/>')
        parts.append(_text(right + 25, place + 4, _short(name), extra='class="label"'))
    return parts


def _legend(names, indices, width):
    """(SVG elements, height) of all names with their strokes, in as many columns as the width takes."""
    cell = 48.0 + CHAR_WIDTH * max((len(name) for name in names), default=0)
    rows = math.ceil(len(names) / max(1, int(width // cell)))
    columns = math.ceil(len(names) / max(1, rows))  # as even as can be: no row of one
    parts = []
    for i, name in enumerate(names):
        x, y = i % columns * cell, 10.0 + i // columns * 17.0
        parts.append(f'<path d="M{x:.1f} {y:.1f}h28" {_stroke(indices[name])} stroke-width="2.4" fill="none"/>')
        parts.append(_text(x + 34, y + 4, name, extra='class="legend"'))
    return parts, 17.0 * rows + 6.0


def _document(width, height, title, parts):
    """A whole SVG file. The white ground is drawn, not left to the page: dark mode would swallow black lines."""
    return "\n".join([
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:.0f}" height="{height:.0f}" '
        f'viewBox="0 0 {width:.0f} {height:.0f}" role="img" {FONT}>',
        f"<title>{escape(''.join(c for c in title if c.isprintable()))}</title>",
        f'<rect width="{width:.0f}" height="{height:.0f}" fill="#FFFFFF"/>',
        *(part for part in parts if part), "</svg>",
    ]) + "\n"


def _moved(x, y, parts):
    return [f'<g transform="translate({x:.1f} {y:.1f})">', *parts, "</g>"]


def _panel_height(n_series):
    """Tall enough that one label per series finds a place."""
    return max(290.0, 70.0 + LABEL_GAP * n_series)


def svg_curves(series, title, x_label, y_label, log_y=False):
    """One plot as the text of an SVG file; series = {name: [(xs, ys), ..]} with one entry per seed.

    The line is the mean over seeds, the band goes from the lowest to the highest. Missing values (None, NaN, and on a
    log axis what is not positive) are gaps. Names stand at the line ends and in a legend below.
    """
    width, height = 660.0, _panel_height(len(series))
    indices = {name: i for i, name in enumerate(series)}
    legend, legend_height = _legend(list(series), indices, width - 80)
    plot = _panel(series, indices, title, x_label, y_label, log_y, width - 10, height)
    return _document(width, height + legend_height + 16, title,
                     _moved(4, 6, plot) + _moved(64, height + 8, legend))


def _curves_of(runs, variants, lines, key):
    """{variant: [(steps, values) per seed]} of the methods that have the figure at all."""
    series = {}
    for variant in variants:
        seeds = []
        for run in sorted((run for run in runs if run.variant == variant), key=lambda run: run.seed):
            points = [(entry["step"], _number(entry.get(key))) for entry in getattr(run, lines) if "step" in entry]
            if any(value is not None for _, value in points):
                seeds.append(tuple(zip(*points)))
        if seeds:
            series[variant] = seeds
    return series


def curves_page(runs, order=None, always=()):
    """Score, validation NLL, KL to the teacher and share of replaced tokens over steps, as one SVG with one legend.

    A panel without data is left out. Runs of equal steps are drawn; those of equal compute only if there are no others. Of
    more than MOST_LINES methods only those that end outermost are named in a panel, and `always` these.
    """
    variants = _ordered_variants(runs, order)
    runs = [run for run in runs if run.budget == "steps"] or list(runs)
    panels, n_seeds = [], len({run.seed for run in runs})
    for panel in PANELS:
        series = _curves_of(runs, variants, *panel[1:3])
        if series:
            panels.append((panel, series, _named(series, always)))
    shown = [name for name in variants if any(name in named for _, _, named in panels)]
    indices, plots = {name: i for i, name in enumerate(shown)}, []
    height = _panel_height(max((len(named) for _, _, named in panels), default=0))
    for (title, _, _, y_label, may_be_log), series, named in panels:
        values = [y for seeds in series.values() for _, ys in seeds for y in ys if y is not None]
        log_y = may_be_log and min(values) > 0 and max(values) > 10 * min(values)
        plots.append(_panel(series, indices, title, "step", y_label, log_y, 470.0, height, named))

    columns = min(2, max(1, len(plots)))
    width, parts = 480.0 * columns + 20, []
    task = "".join(f"{name}: " for name in _in_headers(runs, "task"))
    seeds_text = "one seed" if n_seeds == 1 else f"mean over {n_seeds} seeds, band from the lowest to the highest"
    title = task + (seeds_text if plots else "the records hold no curves")
    if any(len(named) < len(series) for _, series, named in panels):
        title += f"; of {len(variants)} methods the outermost are named"
    parts.append(_text(24, 26, title, size=14, extra='font-weight="600"'))
    for i, plot in enumerate(plots):
        parts += _moved(10 + i % columns * 480, 44 + i // columns * (height + 12), plot)
    below = 44 + math.ceil(len(plots) / columns) * (height + 12)
    legend, legend_height = _legend(shown, indices, width - 80)
    return _document(width, below + legend_height + 10, title, parts + _moved(70, below, legend))


# ------------------------------------------------------------------------------------------------------------ files


def render_report(folder, order=None, control=None, focus=None):
    """{"table.md": text, "curves.svg": text, "summary.json": text} of the records in folder; writes nothing.

    The same records give the same texts. control and focus default to those of the script that wrote the records.
    Raises ValueError if a record is broken, none is finished, or a name that was given is no method's.
    """
    runs, unfinished = read_runs(folder)
    if not runs:
        found = "; ".join(unfinished) or "no .jsonl file"
        raise ValueError(f"{folder} holds no finished run ({found}): let train_skd.py or train_okd.py finish first")
    variants = _ordered_variants(runs)
    methods = dict.fromkeys([*variants, *(variant.split()[0] for variant in variants)])  # with swept values, and without
    for flag, names, known in (("--control", [control], variants), ("--focus", [focus], variants), ("--order", order or [], methods)):
        for name in names:
            if name is not None and name not in known:
                raise ValueError(f"{flag} {name!r} is no method of {folder}: there are {', '.join(known)}")
    usual = COMPARISONS.get(runs[0].header.get("script"), COMPARISONS["train_skd"])
    control, focus = usual[0] if control is None else control, usual[1] if focus is None else focus
    table = render_table(runs, control, focus, order)
    if unfinished:
        table += f"\nNot counted, unfinished: {_inert('; '.join(unfinished))}.\n"
    text = json.dumps(summary(_with_relative_seconds(runs, control), order), indent=1, ensure_ascii=False, allow_nan=False)
    return {"table.md": table, "curves.svg": curves_page(runs, order, (control, focus)), "summary.json": text + "\n"}


def write_report(folder, order=None, control=None, focus=None):
    """Write table.md, curves.svg and summary.json of render_report into folder; returns the text of table.md."""
    texts = render_report(folder, order, control, focus)
    for name, text in texts.items():
        write_whole(Path(folder) / name, text)
    return texts["table.md"]


def brief(table, folder_name):
    """A table.md without its last part, every run on its own: what the README shows of results/FOLDER_NAME."""
    link = f"results/{folder_name}"
    return (table.split("<details>")[0].rstrip()
            + f"\n\nEvery run on its own: [table]({link}/table.md), [curves]({link}/curves.svg).\n")


def replace_section(readme_text, name, new_body):
    """readme_text with new_body between the lines `<!-- name:begin -->` and `<!-- name:end -->`.

    Raises ValueError unless each marker stands there exactly once, begin before end.
    """
    begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
    for marker in (begin, end):
        if readme_text.count(marker) != 1:
            raise ValueError(f"the text holds {marker} {readme_text.count(marker)} times: it must stand there once")
    before, rest = readme_text.split(begin)
    if end not in rest:
        raise ValueError(f"{end} stands before {begin}: swap them")
    # Blank lines around the body: Markdown takes a table that touches a comment for part of the comment.
    body = f"\n\n{new_body.strip()}\n\n".replace("\n", "\r\n" if "\r\n" in readme_text else "\n")
    return f"{before}{begin}{body}{end}{rest.split(end)[1]}"


def _put_into(readme, name, new_body):
    """replace_section in a file; everything else in it, its line ends included, stays as it is."""
    path = Path(os.path.realpath(readme))  # where a link leads: the link itself is not replaced
    try:
        text = path.read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{readme} is not UTF-8 (byte {error.start}): save it as UTF-8") from error
    write_whole(path, replace_section(text, name, new_body))


def _show(text):
    """Print to whatever stands there: a pipe may be closed, and its encoding may lack some of the characters."""
    if hasattr(sys.stdout, "reconfigure"):  # None where it was closed
        sys.stdout.reconfigure(errors="replace")
    try:
        print(text, flush=True)
    except BrokenPipeError:  # the reader has seen enough, as `head` has, and the files are written
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python itself complains on its way out
        sys.exit(1)


WRITERS = {  # a row's writer, as the table of methods says it
    "dataset": "references",
    "teacher": "teacher, before training",
    "student": "student",
    "mixed": "references or student",
    "interleaved": "student, corrected by the teacher",
    "switching": "student, then teacher",
    "teacher_mixed": "a mixture of both",
}


def _learning(row):
    """What a row's teacher minimises, at which rate and in which order, as the table of methods says it."""
    if row["module"] is None:
        return "-"

    def said(name):
        flag, value = f"`--{name.replace('_', '-')}`", row[name]
        return flag if value is None else f"`{value}`" if isinstance(value, str) else f"{value:g}"

    parts = ["an exam"] if row["exam"] else [f"alpha {said('alpha')}"]
    if not row["exam"] and row["alpha"] != 0:
        parts.append(said("teacher_divergence"))
    parts.append(f"rate {said('module_lr')}")
    if row["anchor"] is not None:
        parts.append(f"anchor {row['anchor']:g}" + (" to 0" if row["anchor_decay"] else ""))
    return ", ".join([*parts, *([row["update"]] if row["update"] else [])])


def methods_table(script, variants):
    """The README's table of a script's methods, from what its --list-variants prints: {name: row}."""
    with_module = any("module" in row for row in variants.values())
    titles = ["method", "what it changes", "who writes", "loss", *(["teacher's module", "how it learns"] if with_module else []), "paper", "not the paper's"]
    lines = [f"| {' | '.join(titles)} | command |", "| --- " * (len(titles) + 1) + "|"]
    for name, row in variants.items():
        writer = WRITERS[row["writer"]]
        if row.get("answers") is not None and row["writer"] == "mixed":
            writer = "teacher, before training, or student"
        loss = row.get("loss") or row.get("student_divergence") or "--student-divergence"
        hyper, knobs = (", ".join(f"{key} {value}" for key, value in row.get(name, {}).items() if value is not None) for name in ("hyper", "knobs"))
        loss = f"`{loss}`" + (f" ({hyper})" if hyper else "")
        weight = row.get("kd_weight", row.get("student_kd"))
        loss = f"{weight:g} {loss} + {1 - weight:.2g} cross-entropy" if weight and weight < 1 else loss
        loss = "`cross_entropy`" if weight == 0 else loss
        loss += f", T = {row['temperature']:g}" if row.get("temperature", 1) != 1 else ""
        loss += f", keeps `{row['method']}`" + (f" ({knobs})" if knobs else "") if row.get("method") else ""
        module = {None: "fixed", "flag": "lora (`--module`)"}.get(row.get("module"), row.get("module"))
        cells = [f"`{name}`", row["note"], writer, loss, *([module, _learning(row)] if with_module else []), row["paper"] or "-", row["ours"] or "-"]
        lines.append(f"| {' | '.join(cells)} | `python {script}.py --variants {name}` |")
    return "\n".join(lines) + "\n"


def main(argv=None):
    """Render again from the command line; see --help."""
    parser = argparse.ArgumentParser(description="Render table.md, curves.svg and summary.json from records of runs.")
    parser.add_argument("folder", nargs="?", help="where the .jsonl records are")
    parser.add_argument("--methods", metavar="SCRIPT", help="render the table of a script's methods in place of records: reads what"
                        " python SCRIPT.py --list-variants prints, from a pipe")
    parser.add_argument("--readme", help="also put the table into this file, between the markers of --section")
    parser.add_argument("--section", help="name in the markers <!-- NAME:begin --> and <!-- NAME:end -->")
    parser.add_argument("--order", help="names of methods in the order of the rows, joined by commas")
    parser.add_argument("--control", help="method that differences in the first table are taken to")
    parser.add_argument("--focus", help="method that the second table compares with all others")
    parser.error = lambda message: parser.exit(2, f"lab.report: {' '.join(message.split())} (see --help)\n")
    args = parser.parse_args(argv)
    try:
        for name, value in vars(args).items():
            if value == "":  # a shell's unset variable; as a path it would be the folder one stands in
                raise ValueError(f"{name if name == 'folder' else f'--{name}'} is empty: give a name, or leave it out")
        if (args.readme is None) != (args.section is None):
            raise ValueError("--readme and --section go together: give both or none")
        if (args.folder is None) == (args.methods is None):
            raise ValueError("give the folder of records, or --methods SCRIPT with the list of its methods on a pipe")
        if args.methods:
            try:
                section = table = methods_table(args.methods, json.load(sys.stdin))
            except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
                hint = f"python {args.methods}.py --list-variants | python -m lab.report --methods {args.methods}"
                raise ValueError(f"what comes on the pipe is no list of methods: type {hint}") from error
        else:
            table = write_report(args.folder, args.order.split(",") if args.order else None, args.control, args.focus)
            section = brief(table, Path(args.folder).resolve().name)
        if args.readme:
            _put_into(args.readme, args.section, section)
        _show(table)
    except (ValueError, OSError) as error:
        raise SystemExit(f"lab.report: {' '.join(str(error).split())}") from None


if __name__ == "__main__":
    main()
