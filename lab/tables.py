"""Tables in Markdown and the summary in JSON, from finished runs and from nothing else.

A score is of the final checkpoint, and rows keep the order of the methods: nothing is sorted by result.
"""

import json
import math
import re
from collections.abc import Callable
from typing import NamedTuple
from xml.sax.saxutils import escape

import numpy as np

from lab.reading import (
    as_number,
    column_of,
    in_headers,
    ordered_variants,
    pairs_of,
    select_runs,
    shared_the_machine,
    sorted_runs,
    starting_points,
)
from lab.statistics import holm, paired_difference, repeated, student_t_interval, unit_of


def _cost(value):
    """Seconds, tokens, calls: three digits below 100, whole numbers with separators above."""
    return f"{value:,.0f}" if abs(value) >= 99.95 else f"{value:.3g}"


# heading, name in the records, how one number is written. The groups with a title, and the figures named in
# OPTIONAL_FIGURES, are shown only where a run or a model that runs start from has them.
SCORES = (
    ("score (greedy)", "score", "{:.3f}".format),
    ("score (sampled)", "score_sampled", "{:.3f}".format),
    ("steps right", "task_steps_right", "{:.3f}".format),  # of a chain: a score with a slope beside whole chains right
    ("steps right (sampled)", "task_steps_right_sampled", "{:.3f}".format),
)
DISTANCES_AND_COSTS = (
    ("val NLL", "val_nll", "{:.3f}".format),
    ("KL to teacher (references)", "kl_teacher", "{:.4f}".format),
    ("KL on own samples", "kl_on_policy", "{:.4f}".format),
    ("KL to adapted teacher", "kl_adapted_teacher", "{:.4f}".format),
    ("accept rate (topk rule)", "accept_rate", "{:.3f}".format),
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
BEHIND_A_HINT = tuple((kind, f"hint_{kind}", "{:.3f}".format)
                      for kind in ("none", "solution", "demonstration", "unrelated"))
FIGURES = SCORES + DISTANCES_AND_COSTS
OPTIONAL_FIGURES = ("task_steps_right", "task_steps_right_sampled", "kl_adapted_teacher", "seconds_relative",
                    "memory_mb")
GROUPS = ((None, SCORES), (None, DISTANCES_AND_COSTS), ("The adapted teacher", ADAPTED_TEACHER),
          ("Easy and hard tokens, exposure bias", EASY_AND_HARD),
          ("Score (greedy) before distillation on the first 400 of the student's own prompts (not held out), by the "
           "hint that stands before them", BEHIND_A_HINT))
NO_SPREAD = 0.0005  # half width of an interval that rounds to 0.000
DECIDED = 0.05  # p-value, corrected for the number of comparisons, below which a difference is called decided
MOST_WARNINGS = 10  # in the notes above a table
MOST_NAMED = 4  # files, flags, or values of a flag, in one note


def inert(text):
    """Text that Markdown shows as it is: no HTML, no link."""
    return escape(str(text)).replace("[", "\\[")


def markdown_table(rows, header, left=1):
    """A Markdown table of strings, padded to be read in a terminal too: `left` columns left, the others right."""
    cells = [[inert(cell).replace("|", "\\|") for cell in row] for row in [header, *rows]]
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
    values = [as_number(value) for value in values]
    if len(values) > width:
        values = [values[i] for i in np.linspace(0, len(values) - 1, width).round().astype(int)]
    present = [value for value in values if value is not None]
    if not present:
        return " " * len(values)
    low, span = min(present), max(present) - min(present)
    # A constant has no shape: it is drawn at half height.
    levels = [None if value is None else round(7 * (value - low) / span) if span > 0 else 3 for value in values]
    return "".join(" " if level is None else "▁▂▃▄▅▆▇█"[level] for level in levels)


def with_interval(values, n):
    """'mean ± half width' of a score over pairs, or over the seeds of the only one; their number where it is not n."""
    if not values:
        return "-"
    mean, half_width = student_t_interval(values)
    interval = "" if half_width is None else f" ± {half_width:.3f}"
    return f"{mean:.3f}{interval}" + (f" (n = {len(values)})" if len(values) != n else "")


def difference_text(difference, n=None):
    """'+mean ± half width', then the number of differences where it is not n; without n, then 'k of n positive'."""
    if difference.mean is None:
        return "-"
    interval = "" if difference.half_width is None else f" ± {difference.half_width:.3f}"
    text = f"{difference.mean:+.3f}{interval}"
    if n is None:
        return f"{text}, {difference.positive} of {difference.n} positive"
    return text + (f" (n = {difference.n})" if difference.n != n else "")


def _mean_text(values, write):
    present = [value for value in values if value is not None]
    return write(sum(present) / len(present)) if present else "-"


def _replaced_text(runs):
    """'first -> last' share of tokens that the teacher replaced, mean over runs; '-' where the teacher writes none."""
    ends = []
    for run in runs:
        rates = [as_number(step.get("replacement_rate")) for step in run.steps]
        rates = [rate for rate in rates if rate is not None]
        if rates:
            ends.append((rates[0], rates[-1]))
    return "{:.3f} → {:.3f}".format(*np.mean(ends, axis=0)) if ends else "-"


class Table(NamedTuple):
    """Rows of texts under a header, to be written as Markdown or as HTML."""

    header: list
    rows: list
    title: str | None = None
    aside: str = ""  # what follows the title
    note: str = ""  # what stands below


class Comparison(NamedTuple):
    """What a report says, before it is written as Markdown or as HTML."""

    notes: list  # of sentences: what a reader must know before reading the tables
    warnings: list  # of sentences: what looked wrong in the runs
    tables: list  # of Table, the main one first
    every_run: Table | None  # None for a smoke run


class _Row(NamedTuple):
    """One row of the main tables."""

    name: str
    runs: list | None  # of a method; None for the models that all methods start from
    pairs: str
    seeds: str  # per pair
    n: int  # pairs, or seeds of the only pair
    values: Callable  # key -> the figures that intervals are over


def _rows(runs, variants, unit):
    """Teacher and starting student, then every method in its order."""
    rows = []
    for name, which in (("teacher", "teacher"), ("student at the start", "student_start")):
        if points := list(starting_points(runs, which).values()):
            def values(key, points=points):
                return [value for point in points if (value := as_number(point.get(key))) is not None]
            rows.append(_Row(name, None, str(len(points)), "-", len(points), values))
    for variant in variants:
        own = select_runs(runs, variant, "steps")
        def values(key, own=own):
            return list(repeated(own, key, unit).values())
        pairs = pairs_of(own)
        per_pair = sorted(sum(run.pair == pair for run in own) for pair in pairs) or [0]
        seeds = " to ".join(str(number) for number in dict.fromkeys([per_pair[0], per_pair[-1]]))
        rows.append(_Row(variant, own, str(len(pairs)), seeds, _size(own, unit), values))
    return rows


def _size(runs, unit):
    """How many pairs, or seeds of the only pair, a method's runs are of."""
    return len(pairs_of(runs)) if unit == "pair" else len(runs)


def _result_tables(runs, variants, control):
    """The main tables, group by group."""
    unit = unit_of(runs)
    rows = _rows(runs, variants, unit)
    counted = ["pairs", "seeds"] if any(row.seeds not in ("0", "1", "-") for row in rows) else ["pairs"]
    tables = []
    for title, figures in GROUPS:
        present = [figure for figure in figures if any(row.values(figure[1]) for row in rows)]
        figures = present if title else [one for one in figures if one in present or one[1] not in OPTIONAL_FIGURES]
        if not figures:
            continue
        scored = figures[0] in SCORES
        extra = _extra_columns(runs, variants, control, figures, unit)
        header = ["method"] + counted * scored
        for heading, key, _ in figures:
            header += [heading] + [heading for heading, after, _ in extra if after == key]
        lines = []
        for row in rows:
            cells = [row.name] + [getattr(row, name) for name in counted] * scored
            for _, key, write in figures:
                values = row.values(key)
                cells.append(with_interval(values, row.n) if scored else _mean_text(values, write))
                following = [text for _, after, text in extra if after == key]
                cells += ["-" if row.runs is None else text(row.name, row.runs) for text in following]
            # Rows without a single figure (a fixed teacher among the adapted ones) tell nothing.
            if not title or any(cell != "-" for cell in cells[1:]):
                lines.append(cells)
        tables.append(Table(header, lines, title))
    return tables


def _extra_columns(runs, variants, control, figures, unit):
    """Columns worked out from several runs: (heading, key of the figure they follow, text of a method's cell)."""
    extra = []
    if control in variants:
        def delta(variant, own):
            difference = paired_difference(own, select_runs(runs, control, "steps"), "score", unit)
            return "-" if variant == control else difference_text(difference, _size(own, unit))
        extra.append((f"Δ score to {control}", "score_sampled", delta))
    if any(run.budget == "compute" for run in runs):
        extra.append(("score at equal compute", "score_sampled", lambda variant, own: with_interval(
            list(repeated(select_runs(runs, variant, "compute"), "score", unit).values()), _size(own, unit))))
    if _replaced_text(runs) != "-":
        extra.append(("replaced (first → last)", "draft_accept_rate", lambda variant, own: _replaced_text(own)))
    return extra


class Differences(NamedTuple):
    """The main method minus every other one, and which of these differences are decided."""

    unit: str  # what a difference is one of: "pair" or "seed"
    headings: list  # of the scores that were compared
    found: dict  # (method, heading) -> PairedDifference
    tested: int  # comparisons that Holm's correction counts
    decided: set  # of (method, heading): p < DECIDED after the correction


def main_differences(runs, variants, main_method):
    """The main_method minus every other method, paired, at every budget that was run.

    Seeds of one pair decide nothing. Nor do differences without a spread: few test examples make coarse scores, whose
    differences soon agree to the digit.
    """
    unit = unit_of(runs)
    columns = [("score (greedy)", "score", "steps"), ("score (sampled)", "score_sampled", "steps"),
               ("greedy at equal compute", "score", "compute"),
               ("sampled at equal compute", "score_sampled", "compute")]
    columns = [column for column in columns if any(run.budget == column[2] for run in runs)]
    found = {}
    for variant in [variant for variant in variants if variant != main_method]:
        for heading, key, budget in columns:
            both = select_runs(runs, main_method, budget), select_runs(runs, variant, budget)
            found[variant, heading] = paired_difference(*both, key, unit)
    tested = {of: one.p_value for of, one in found.items() if unit == "pair" and one.p_value is not None}
    corrected = dict(zip(tested, holm([*tested.values()])))
    decided = {of for of, p_value in corrected.items() if p_value < DECIDED and found[of].half_width > NO_SPREAD}
    return Differences(unit, [heading for heading, _, _ in columns], found, len(tested), decided)


def _difference_table(runs, variants, main_method):
    """main_differences as a table: an asterisk marks what is decided, and a note below says after how many
    comparisons."""
    unit, headings, found, tested, decided = main_differences(runs, variants, main_method)
    rows = [[variant, *(difference_text(found[variant, heading]) + " *" * ((variant, heading) in decided)
                        for heading in headings)] for variant in variants if variant != main_method]
    note = ""
    if tested:
        note = (f"An asterisk marks a decided difference: p < {DECIDED:.2f} in a paired t-test over pairs, after "
                f"Holm's correction for the {tested} comparisons of this table. Decided: {len(decided)}.")
    title, aside = f"{main_method} minus every other method", f", one difference per {unit}"
    return Table([f"{main_method} minus", *headings], rows, title, aside, note)


def _raw_table(runs, variants):
    """Every run on its own: what the intervals were made of."""
    keys = {key for run in runs for key in run.final}
    figures = [row for row in FIGURES if row[1] in keys]
    rows = []
    for budget in ("steps", "compute"):
        for variant in variants:
            for run in select_runs(runs, variant, budget):
                cells = [_mean_text(column_of([run], key), write) for _, key, write in figures]
                curve = sparkline([entry.get("score") for entry in run.evals], width=16)
                named = [variant, budget, str(run.pair), str(run.seed)]
                rows.append([*named, *cells, curve.strip() and curve or "-"])
    header = ["method", "equal", "pair", "seed"] + [heading for heading, _, _ in figures] + ["score over steps"]
    return Table(header, rows, "Every run")


def _differences(runs, entry):
    """{name: its different values} of what a dict in the headers does not say alike in all runs.

    What a record does not hold is no difference: older ones lack the newer flags and files. Nor is a flag that was
    swept: the header holds what it was for the others, and the label its own value.
    """
    found = {}
    for run in runs:
        swept = {text.partition("=")[0].replace("-", "_") for text in run.variant.split()[1:]}
        for name, value in (run.header.get(entry) or {}).items():
            if name not in swept:
                values = found.setdefault(name, {})  # a dict keeps the order
                values.setdefault(json.dumps(value, sort_keys=True), value)
    return {name: list(values.values()) for name, values in found.items() if len(values) > 1}


def _plain(value, longest=40):
    """A name or a value of a header as words: cut short, and with no line end that somebody else wrote."""
    text = json.dumps(value, sort_keys=True).strip('"')
    return text if len(text) <= longest else text[: longest - 1] + "…"


def _some(texts, joint):
    """The first of some texts, and how many more there are."""
    more = f"{joint}{len(texts) - MOST_NAMED} more" if len(texts) > MOST_NAMED else ""
    return joint.join(texts[:MOST_NAMED]) + more


def _notes(runs, variants, control):
    """What a reader must know before reading the tables, one line each."""
    notes = _about_intervals(runs, variants, control)
    metric = ", ".join(in_headers(runs, "metric")) or "the task's own metric"
    notes.append(f"Score: {metric}, 0..1, of the final checkpoint on held-out examples, the same for all runs; no "
                 "interval covers other examples. NLL and KL in nats per token, KL to the original teacher. One TFLOP "
                 "= 1e12 operations of the two models.")
    return notes + _about_gaps(runs, variants) + _about_differences(runs)


def _about_intervals(runs, variants, control):
    """Over what the intervals are, and what they do not cover."""
    n_pairs, unit = len(pairs_of(runs)), unit_of(runs)
    most = max(len(select_runs(runs, variant, budget)) for variant in variants for budget in ("steps", "compute"))
    if n_pairs == most == 1:
        return ["One pair, one seed: a demonstration, no interval."]
    paired = f" Δ: paired differences, one per {unit}." if control in variants else ""
    if n_pairs > 1:
        averaged = "; the seeds of a pair are averaged first" if most > n_pairs else ""
        return [f"Scores and differences: mean ± half width of the 95 % interval over {n_pairs} pretrained pairs "
                f"(Student-t{averaged}); other columns: means.{paired}"]
    return ["Scores and differences: mean ± half width of the 95 % Student-t interval over seeds; other columns: means."
            + paired,
            "One pretrained pair: the intervals are over repeated runs of it and say nothing about other pairs "
            "(--pairs N)."]


def _about_gaps(runs, variants):
    """Which methods lack a run that others have, and why seconds may not compare."""
    notes, several = [], len(pairs_of(runs)) > 1
    had = {variant: {(run.pair, run.seed) for run in select_runs(runs, variant, "steps")} for variant in variants}
    everything = set().union(*had.values())
    for variant, own in had.items():
        if own != everything:
            what = "runs" if several else "seeds"
            notes.append(f"{variant} has {len(own)} of {len(everything)} {what}: differences pair the {what} that both "
                         "have.")
    machines = in_headers(runs, "device_name") or in_headers(runs, "device")
    if len(machines) > 1:
        notes.append(f"The runs come from several machines ({'; '.join(machines)}): seconds do not compare.")
    if shared_the_machine(runs):
        notes.append("Several runs shared the machine (--jobs): seconds do not compare.")
    return notes


def _about_differences(runs):
    """In what the runs differ beside the method: models, code and flags."""
    notes = []
    for pair in pairs_of(runs):
        headers = [run.header for run in runs if run.pair == pair]
        models = {json.dumps(header.get("fingerprint") or [header.get("teacher"), header.get("student_start")],
                             sort_keys=True) for header in headers}
        if len(models) > 1:
            notes.append(f"Pair {pair}: the methods did not start from the same two models: its differences are not "
                         "only the method's.")
    changed = _differences(runs, "sources")
    if changed:
        sources = [run.header["sources"] for run in runs if run.header.get("sources")]
        versions = {json.dumps([hashes.get(name) for name in changed]) for hashes in sources}
        notes.append(f"The runs were made by {len(versions)} versions of the code, which differ in "
                     f"{_some([*map(_plain, changed)], ', ')}; not every change there moves a result.")
    # "settings" is what --size and other flags come to. The --steps of runs of equal compute are what was asked for.
    asked = [f"--{_plain('device' if name == 'device_type' else name.replace('_', '-'))} "
             + _some(["not given" if value is None else _plain(value) for value in values], " or ")
             for name, values in _differences(runs, "flags").items() if name != "settings"]
    if asked:
        notes.append(f"The runs were made with different flags ({_some(asked, '; ')}): a difference between methods "
                     "may be theirs.")
    return notes


def _about_warnings(runs):
    """What the runs were warned of: pairs, or seeds, that differ in the numbers of a warning share a line."""
    several = len(pairs_of(runs)) > 1
    more_seeds = several and len({(run.pair, run.seed) for run in runs}) > len(pairs_of(runs))
    told = {}  # (who, text without its numbers) -> {where it was: the text}, the first one being shown
    for run in runs:
        where = str(run.pair if several else run.seed) + (f" seed {run.seed}" if more_seeds else "")
        for text in run.header.get("start_warnings") or []:
            told.setdefault(("", _without_numbers(text)), {}).setdefault(str(run.pair), text)
        for text in run.final.get("warnings") or []:
            who = run.variant + (", equal compute," if run.budget == "compute" else "")
            told.setdefault((who, _without_numbers(text)), {}).setdefault(where, text)
    notes, warned = [], []
    for (who, _), texts in told.items():
        (where, text), *others = texts.items()
        likewise = f" (likewise {', '.join(other for other, _ in others)})" if others else ""
        if not who:
            notes.append(f"Warning{f', pair {where}{likewise}' if several else ''}: {text}.")
        else:
            warned.append(f"{who} {'pair' if several else 'seed'} {where}{likewise}: warning: {text}.")
    notes += warned[:MOST_WARNINGS]
    if len(warned) > MOST_WARNINGS:
        notes.append(f"and {len(warned) - MOST_WARNINGS} more warnings in the records.")
    return notes


def _without_numbers(text):
    return re.sub(r"\d+(\.\d+)?", "", text)


def compare_runs(runs, control="supervised", main_method="skd", order=None):
    """The report as a Comparison: notes, one row per method, paired differences of `main_method`, every run on its own.

    Rows come in the order of `order` (a list of names), else of "order" in the headers (a list of names, or the
    method's own index), else of first appearance; never by score. Columns and tables about a control or a main_method
    that was not run are left out. Of a --quick run no figure is compared. Raises ValueError if there is no run.
    """
    if not runs:
        raise ValueError("no finished run to report: let train_skd.py or train_okd.py finish first")
    variants = ordered_variants(runs, order)
    runs = with_relative_seconds(sorted_runs(runs, variants), control)
    if any(run.header.get("quick") for run in runs):
        return _quick_report(runs, variants)
    tables = _result_tables(runs, variants, control)
    if main_method in variants and len(variants) > 1:
        tables.append(_difference_table(runs, variants, main_method))
    notes = _notes(runs, variants, control)
    return Comparison(notes, _about_warnings(runs), tables, _raw_table(runs, variants))


def render_table(runs, control="supervised", main_method="skd", order=None):
    """compare_runs as Markdown."""
    notes, warnings, tables, every_run = compare_runs(runs, control, main_method, order)
    tasks = in_headers(runs, "task")
    parts = [f"**Task {inert(tasks[0])}**" if tasks else "**Results**"]
    parts.append("\n".join(f"- {inert(note)}" for note in [*notes, *warnings]))
    for table in tables:
        parts += [f"**{inert(table.title)}**{table.aside}"] if table.title else []
        parts += [markdown_table(table.rows, table.header)] + ([table.note] if table.note else [])
    if every_run:
        raw = markdown_table(every_run.rows, every_run.header)
        parts += [f"<details><summary>{every_run.title}</summary>", raw, "</details>"]
    return "\n\n".join(parts) + "\n"


def _quick_report(runs, variants):
    """Which methods have run, and how long: all that a smoke run shows."""
    metric = "".join(f" ({name})" for name in in_headers(runs, "metric"))
    notes = [f"Made with --quick, a smoke run: it shows that every stage works. Its scores{metric} are in summary.json "
             "and mean nothing, so none is compared here."]
    rows = []
    for variant in variants:
        own = [run for run in runs if run.variant == variant]
        seconds = _mean_text(column_of(select_runs(own, variant, "steps"), "seconds"), _cost)
        rows.append([variant, seconds, "yes" if len(own) == 1 else f"{len(own)} runs"])
    return Comparison(notes, _about_warnings(runs), [Table(["method", "seconds", "finished"], rows)], None)


def short_columns(runs, control="supervised", order=None):
    """{name: texts, one per row} of teacher, start and every method: both scores, what they are above the control's,
    and the seconds of training."""
    variants, unit = ordered_variants(runs, order), unit_of(runs)
    columns = {name: [] for name in ("method", "score", "score_sampled", "above", "above_sampled", "seconds")}
    for row in _rows(runs, variants, unit):
        columns["method"].append(row.name)
        columns["seconds"].append("-" if row.runs is None else _mean_text(column_of(row.runs, "seconds"), _cost))
        for key, above in (("score", "above"), ("score_sampled", "above_sampled")):
            columns[key].append(with_interval(row.values(key), row.n))
            if row.runs is None or row.name == control or control not in variants:
                columns[above].append("-")
            else:
                difference = paired_difference(row.runs, select_runs(runs, control, "steps"), key, unit)
                columns[above].append(difference_text(difference, row.n))
    return columns


def short_table(runs, control="supervised", order=None):
    """A table of at most 100 columns: both scores of every method, and what they are above the control's."""
    columns = short_columns(runs, control, order)
    del columns["seconds"]
    header = ["method", "greedy", "sampled", f"greedy minus {control}", "sampled minus it"]
    return markdown_table([*zip(*columns.values())], header)


def with_relative_seconds(runs, control):
    """The runs with seconds_relative: their seconds divided by those of the control with the same pair, seed and
    budget."""
    seconds = {(run.pair, run.seed, run.budget): as_number(run.final.get("seconds"))
               for run in runs if run.variant == control}
    result = []
    for run in runs:
        own, base = as_number(run.final.get("seconds")), seconds.get((run.pair, run.seed, run.budget))
        relative = {"seconds_relative": own / base} if own is not None and base else {}
        result.append(run._replace(final=run.final | relative))
    return result


def summary(runs, order=None):
    """The dict of summary.json: task, device, where every pair starts, and the final figures of every run per method.

    teacher and student_start are means over pairs, which "pairs" holds one by one. With several pairs a method has
    mean, low and high of its scores over pairs: the ends of the 95 % interval. Figures that a run does not have are
    None.
    """
    variants = ordered_variants(runs, order)
    runs = sorted_runs(runs, variants)
    result = {name: ", ".join(in_headers(runs, name)) or None for name in ("task", "device")}
    starts = {which: starting_points(runs, which) for which in ("teacher", "student_start")}
    for which, points in starts.items():
        result[which] = _mean_point(list(points.values()))
    result["pairs"] = [{"pair": pair, **{which: dict(points.get(pair, {})) for which, points in starts.items()}}
                       for pair in pairs_of(runs)]
    for name, budget in (("variants", "steps"), ("variants_equal_compute", "compute")):
        groups = {}
        for variant in variants:
            chosen = select_runs(runs, variant, budget)
            if chosen:
                over_pairs = _over_pairs(chosen) if unit_of(runs) == "pair" else {}
                groups[variant] = over_pairs | {"runs": [_summary_row(run) for run in chosen]}
        if groups or budget == "steps":
            result[name] = groups
    return _without_nan(result)


def _mean_point(points):
    """The figures of one model; of several the mean of each figure over those that have it."""
    if len(points) < 2:
        return dict(points[0]) if points else {}
    keys = dict.fromkeys(key for point in points for key in point)
    columns = {key: [value for point in points if (value := as_number(point.get(key))) is not None] for key in keys}
    return {key: sum(column) / len(column) if column else None for key, column in columns.items()}


def _over_pairs(runs):
    """{"mean", "low", "high": {"score", "score_sampled"}} of a method; low and high None where it has only one pair."""
    ends = {"mean": {}, "low": {}, "high": {}}
    for key in ("score", "score_sampled"):
        values = list(repeated(runs, key, "pair").values())
        mean, half_width = student_t_interval(values) if values else (None, None)
        ends["mean"][key] = mean
        for end, sign in (("low", -1), ("high", 1)):
            ends[end][key] = None if half_width is None else mean + sign * half_width
    return ends


def _summary_row(run):
    figures = {key: None for _, key, _ in FIGURES if key not in OPTIONAL_FIGURES}
    own = {key: value for key, value in run.final.items() if key != "kind"}
    return {"pair": run.pair, "seed": run.seed, **figures, **own}


def _without_nan(value):
    """The same value with None for NaN and infinity, which JSON does not have."""
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
