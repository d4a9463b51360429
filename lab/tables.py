"""Tables in Markdown and the summary in JSON, from finished runs and from nothing else.

A score is of the final checkpoint, and rows keep the order of the methods: nothing is sorted by result.
"""

import json
import math
import re
from xml.sax.saxutils import escape

import numpy as np

from lab.reading import (
    as_number,
    column_of,
    in_headers,
    ordered_variants,
    select_runs,
    starting_points,
)
from lab.statistics import paired_difference, student_t_interval


def _cost(value):
    """Seconds, tokens, calls: three digits below 100, whole numbers with separators above."""
    return f"{value:,.0f}" if abs(value) >= 99.95 else f"{value:.3g}"


# heading, name in the records, how one number is written. The last two groups, and the figures named in
# OPTIONAL_FIGURES, are shown only where some run has them: older records lack them, and a fixed teacher does not adapt.
SCORES = (
    ("score (greedy)", "score", "{:.3f}".format),
    ("score (sampled)", "score_sampled", "{:.3f}".format),
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
FIGURES = SCORES + DISTANCES_AND_COSTS
OPTIONAL_FIGURES = ("kl_adapted_teacher", "seconds_relative", "memory_mb")
GROUPS = ((None, SCORES), (None, DISTANCES_AND_COSTS), ("The adapted teacher", ADAPTED_TEACHER),
          ("Easy and hard tokens, exposure bias", EASY_AND_HARD))
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
        rates = [as_number(step.get("replacement_rate")) for step in run.steps]
        rates = [rate for rate in rates if rate is not None]
        if rates:
            ends.append((rates[0], rates[-1]))
    return "{:.3f} → {:.3f}".format(*np.mean(ends, axis=0)) if ends else "-"


def _result_table(runs, variants, control):
    """The main tables, group by group: teacher and starting student, then every method in its order."""
    starts = [(name, list(starting_points(runs, which).values()))
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
            own = select_runs(runs, name, "steps") if points is None else []
            n_seeds = len(own) if points is None else len(points)
            if points == []:
                continue
            cells = [name] + [str(n_seeds)] * (figures[0] in SCORES)
            for _, key, write in figures:
                values = column_of(own, key) if points is None else [as_number(point.get(key)) for point in points]
                cells.append(_with_interval(values, n_seeds) if key.startswith("score") else _mean_text(values, write))
                cells += ["-" if points is not None else text(name, own) for _, after, text in extra if after == key]
            # Rows without a single figure (a fixed teacher among the adapted ones) tell nothing.
            if not title or any(cell != "-" for cell in cells[1:]):
                rows.append(cells)
        tables.append((f"**{title}**\n\n" if title else "") + markdown_table(rows, header))
    return "\n\n".join(tables)


def _extra_columns(runs, variants, control, figures):
    """Columns worked out from several runs: (heading, key of the figure they follow, text of a method's cell)."""
    extra = []
    if control in variants:
        def delta(variant, own):
            difference = paired_difference(own, select_runs(runs, control, "steps"), "score")
            return "-" if variant == control else _difference_text(difference, len(own))
        extra.append((f"Δ score to {control}", "score_sampled", delta))
    if any(run.budget == "compute" for run in runs):
        extra.append(("score at equal compute", "score_sampled", lambda variant, own: _with_interval(
            column_of(select_runs(runs, variant, "compute"), "score"), len(own))))
    if _replaced_text(runs) != "-":
        extra.append(("replaced (first → last)", "draft_accept_rate", lambda variant, own: _replaced_text(own)))
    return extra


def _difference_table(runs, variants, main_method):
    """The main_method minus every other method, paired by seed, at every budget that was run."""
    columns = [("score (greedy)", "score", "steps"), ("score (sampled)", "score_sampled", "steps"),
               ("greedy at equal compute", "score", "compute"),
               ("sampled at equal compute", "score_sampled", "compute")]
    columns = [column for column in columns if any(run.budget == column[2] for run in runs)]
    rows = []
    for variant in variants:
        if variant != main_method:
            rows.append([variant])
            for _, key, budget in columns:
                pair = select_runs(runs, main_method, budget), select_runs(runs, variant, budget)
                rows[-1].append(_difference_text(paired_difference(*pair, key)))
    return markdown_table(rows, [f"{main_method} minus"] + [heading for heading, _, _ in columns])


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
                rows.append([variant, budget, str(run.seed), *cells, curve.strip() and curve or "-"])
    header = ["method", "equal", "seed"] + [heading for heading, _, _ in figures] + ["score over steps"]
    return markdown_table(rows, header)


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
    notes = []
    if any(run.header.get("quick") for run in runs):
        notes.append("Made with --quick, a smoke run: its numbers mean nothing.")
    if max(len(select_runs(runs, variant, budget)) for variant in variants for budget in ("steps", "compute")) == 1:
        notes.append("One seed: a demonstration, no interval.")
    else:
        notes.append("Scores and differences: mean ± half width of the 95 % Student-t interval over seeds; other "
                     "columns: means." + (f" Δ is paired by seed with {control}." if control in variants else ""))
    metric = ", ".join(in_headers(runs, "metric")) or "the task's own metric"
    notes.append(f"Score: {metric}, 0..1, of the final checkpoint on held-out examples. NLL and KL in nats per token, "
                 "KL to the original teacher. One TFLOP = 1e12 operations of the two models.")
    seeds = {variant: {run.seed for run in select_runs(runs, variant, "steps")} for variant in variants}
    all_seeds = set().union(*seeds.values())
    for variant, own in seeds.items():
        if own != all_seeds:
            notes.append(f"{variant} has {len(own)} of {len(all_seeds)} seeds: differences pair the seeds that both "
                         "have.")
    machines = in_headers(runs, "device_name") or in_headers(runs, "device")
    if len(machines) > 1:
        notes.append(f"The runs come from several machines ({'; '.join(machines)}): seconds do not compare.")
    if max(in_headers(runs, "jobs"), default=1) > 1:
        notes.append("Several runs shared the machine (--jobs): seconds do not compare.")
    for seed in sorted(all_seeds):
        headers = [run.header for run in runs if run.seed == seed]
        fingerprints = {header.get("pair") for header in headers}
        pairs = [[header.get("teacher"), header.get("student_start")] for header in headers]
        figures = {json.dumps(pair, sort_keys=True) for pair in pairs}
        # Older records took the fingerprint otherwise: a pair whose figures agree to the last digit is one pair.
        measured = all(teacher and student for teacher, student in pairs)
        if (len(figures) > 1 or not measured) and len(fingerprints) > 1 or len(figures) > 1 and None in fingerprints:
            notes.append(f"Seed {seed}: the methods did not start from one pair of models: its differences are not "
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
    starts = [text for run in runs for text in run.header.get("start_warnings") or []]
    notes += [f"Warning: {text}." for text in dict.fromkeys(starts)]
    told = {}  # seeds of one method differ in the numbers of a warning: said once, with those of the first
    for run in runs:
        for text in run.final.get("warnings") or []:
            who, without_numbers = run.variant, re.sub(r"\d+(\.\d+)?", "", text)
            if run.budget == "compute":
                who += ", equal compute,"
            told.setdefault((who, without_numbers), []).append((run.seed, text))
    warned = []
    for (who, _), entries in told.items():
        (seed, text), *others = entries
        likewise = f" (likewise {', '.join(str(other) for other, _ in others)})" if others else ""
        warned.append(f"{who} seed {seed}{likewise}: warning: {text}.")
    notes += warned[:MOST_WARNINGS]
    if len(warned) > MOST_WARNINGS:
        notes.append(f"and {len(warned) - MOST_WARNINGS} more warnings in the records.")
    return "\n".join(f"- {inert(note)}" for note in notes)


def render_table(runs, control="supervised", main_method="skd", order=None):
    """The report as Markdown: notes, one row per method, paired differences of `main_method`, and every run on its own.

    Rows come in the order of `order` (a list of names), else of "order" in the headers (a list of names, or the
    method's own index), else of first appearance; never by score. Columns and tables about a control or a main_method
    that was not run are left out. Raises ValueError if there is no run.
    """
    if not runs:
        raise ValueError("no finished run to report: let train_skd.py or train_okd.py finish first")
    variants = ordered_variants(runs, order)
    runs = with_relative_seconds(runs, control)
    tasks = in_headers(runs, "task")
    parts = [f"**Task {inert(tasks[0])}**" if tasks else "**Results**", _notes(runs, variants, control),
             _result_table(runs, variants, control)]
    if main_method in variants and len(variants) > 1:
        parts.append(f"**{inert(main_method)} minus every other method**, paired by seed")
        parts.append(_difference_table(runs, variants, main_method))
    parts += ["<details><summary>Every run</summary>", _raw_table(runs, variants), "</details>"]
    return "\n\n".join(parts) + "\n"


def with_relative_seconds(runs, control):
    """The runs with seconds_relative: their seconds divided by those of the control with the same seed and budget."""
    seconds = {(run.seed, run.budget): as_number(run.final.get("seconds")) for run in runs if run.variant == control}
    result = []
    for run in runs:
        own, base = as_number(run.final.get("seconds")), seconds.get((run.seed, run.budget))
        relative = {"seconds_relative": own / base} if own is not None and base else {}
        result.append(run._replace(final=run.final | relative))
    return result


def summary(runs, order=None):
    """The dict of summary.json: task, device, the starting pair, and the final figures of every run per method.

    Where seeds have pairs of their own, teacher and student_start hold means over seeds, and the single ones under
    "runs". Figures that a run does not have are None.
    """
    result = {name: ", ".join(in_headers(runs, name)) or None for name in ("task", "device")}
    for which in ("teacher", "student_start"):
        points = starting_points(runs, which)
        result[which] = dict(next(iter(points.values()), {}))
        if len(points) > 1:
            columns = {key: [as_number(point.get(key)) for point in points.values()] for key in result[which]}
            present = {key: [value for value in column if value is not None] for key, column in columns.items()}
            result[which] = {key: sum(column) / len(column) if column else None for key, column in present.items()}
            result[which]["runs"] = [{"seed": seed, **point} for seed, point in points.items()]
    for name, budget in (("variants", "steps"), ("variants_equal_compute", "compute")):
        groups = {}
        for variant in ordered_variants(runs, order):
            chosen = select_runs(runs, variant, budget)
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
