"""report.html: a finished comparison as one page that opens from disk in any browser, made from the records alone.

    runs -> tables.compare_runs -> tables, notes, warnings      -> HTML
         -> curves.curves_page  -> the pictures of curves.svg   -> inside of it
         -> final figures       -> top-K overlap, entropy gap   -> ..
         -> seconds_by_stage    -> bars                         -> ..
         -> rollout lines       -> who_wrote.rollouts_html      -> ..

The page needs no network and no script: the one script that it holds lets a click on a heading sort a table. Texts of
records are shown as they are, and the browser is told to load nothing and to run no other script. The same records give
the same bytes.
"""

import base64
import hashlib
import shlex

from lab import page_style, tables, who_wrote
from lab.curves import curves_page
from lab.reading import (
    as_number,
    in_headers,
    ordered_variants,
    pairs_of,
    rollout_lines,
    select_runs,
    sorted_runs,
    starting_points,
)
from lab.statistics import repeated, unit_of
from lab.who_wrote import shown

MOST_BYTES = 4_800_000  # of the page: rollouts that have no room are named instead
MOST_BYTES_OF_RUNS = 1_000_000  # of the table of every run
STAGES = {  # key of seconds_by_stage -> what the page calls it
    "preparation": "preparation",
    "sampling": "sampling",
    "teacher": "teacher",
    "student": "student",
    "update": "update",
    "evaluation": "evaluation on the way",
    "final_evaluation": "final evaluation",
}
OVERLAP = {  # name in the records -> heading
    "topk_overlap": "top-K overlap (references)",
    "topk_overlap_on_policy": "(own samples)",
    "entropy_gap": "entropy gap (references)",
    "entropy_gap_on_policy": "(own samples)",
}
NO_FLAGS = ("settings", "default_lr", "task_options", "help_all")  # in a header's "flags", and nobody types them


def report_page(runs, unfinished=(), order=None, control="supervised", main_method="skd", picture=None):
    """The text of report.html; `unfinished`: a line about each run that is not counted; `picture`: curves.svg, if it
    is there already.

    The other arguments are those of tables.compare_runs. Raises ValueError if there is no run.
    """
    variants = ordered_variants(runs, order)
    runs = sorted_runs(runs, variants)
    found = tables.compare_runs(runs, control, main_method, order)
    warnings = [*found.warnings, *(f"Not counted, unfinished: {text}." for text in unfinished)]
    sections = {
        "results": ("Results", _results(found)),
        "curves": ("Curves", _picture(picture or curves_page(runs, order, control, main_method))),
        "overlap": ("Top-K overlap and entropy gap", _overlap(runs, variants)),
        "rollouts": ("Who wrote what", ""),  # what has room beside the others
        "time": ("Where the time went", _time(runs, variants)),
        "warnings": (f"Warnings ({len(warnings)})", _list(warnings)),
        "runs": ("Every run", _every_run(found.every_run)),
    }
    room = MOST_BYTES - sum(len(body.encode()) for _, body in sections.values())
    sections["rollouts"] = (sections["rollouts"][0], _rollouts(runs, main_method, room))
    sections = {name: section for name, section in sections.items() if section[1]}
    task = ", ".join(in_headers(runs, "task"))
    title = f"Methods compared on the task {shown(task)}" if task else "Methods compared"
    links = " ".join(f'<a href="#{name}">{heading}</a>' for name, (heading, _) in sections.items())
    digest = base64.b64encode(hashlib.sha256(page_style.SCRIPT.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    return "\n".join(
        [
            '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{policy}">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            '<meta name="color-scheme" content="light dark">',
            f"<title>{title}</title>\n<style>{page_style.STYLE}</style>\n</head>\n<body>",
            f"<h1>{title}</h1>\n{_about(runs, variants)}\n<nav>{links}</nav>",
            *(f'<section id="{name}">\n<h2>{head}</h2>\n{body}\n</section>' for name, (head, body) in sections.items()),
            f"<script>{page_style.SCRIPT}</script>\n</body>\n</html>\n",
        ]
    )


# ---------------------------------------------------------------------------------------------------------------------
# What was run.


def _about(runs, variants):
    """What was compared, from where it started, and the commands that make it again."""
    seeds = {}
    for run in runs:
        seeds.setdefault(run.pair, set()).add(run.seed)
    counts = [len(own) for own in seeds.values()]
    per_pair = f"{min(counts)} to {max(counts)}" if min(counts) < max(counts) else f"{counts[0]}"
    facts = {
        "methods": f"{len(variants)}: {', '.join(variants)}",
        "pairs": f"{len(seeds)} ({_numbers(seeds)})",
        "seeds per pair": f"{per_pair} ({_numbers(set().union(*seeds.values()))})",
        "score": f"{', '.join(in_headers(runs, 'metric')) or 'the metric of the task'}, 0 to 1",
        "device": ", ".join(in_headers(runs, "device_name") or in_headers(runs, "device")),
    }
    for name, which in (("teacher", "teacher"), ("student at the start", "student_start")):
        points = list(starting_points(runs, which).values())
        scores = [as_number(point.get("score")) for point in points]
        sizes = {int(size) for point in points if (size := as_number(point.get("parameters"))) is not None}
        told = [f"{' or '.join(f'{size:,}' for size in sorted(sizes))} parameters"] if sizes else []
        if scores and None not in scores and not any(run.header.get("quick") for run in runs):
            told.append(f"score {sum(scores) / len(scores):.3f}" + (", mean over pairs" if len(scores) > 1 else ""))
        facts[name] = ", ".join(told)
    rows = "".join(f"<dt>{name}</dt><dd>{shown(fact)}</dd>" for name, fact in facts.items() if fact)
    again = "python -m lab.report FOLDER"
    return (
        f"<dl>{rows}</dl>\n<details><summary>Commands</summary>\n<p>What was run, with every flag that the records "
        f"name:</p>\n<pre>{shown(command(runs))}</pre>\n<p>This page, the table, the curves and the summary once more, "
        f"from the records in FOLDER:</p>\n<pre>{again}</pre>\n</details>"
    )


def _numbers(values):
    """1 to 5, or 1, 3, 7."""
    values = sorted(values)
    whole = len(values) > 2 and values == list(range(values[0], values[-1] + 1))
    return f"{values[0]} to {values[-1]}" if whole else ", ".join(map(str, values))


def command(runs):
    """The command line of these runs, with every flag that their headers hold: pairs, seeds and sweeps are read off the
    runs, the other flags are those of the first run's header."""
    header, swept, methods = runs[0].header, {}, {}
    for run in runs:
        method, *values = run.variant.split()
        methods[method] = None
        for text in values:
            flag, _, value = text.partition("=")
            swept.setdefault(flag, {})[value] = None
    pairs, first = pairs_of(runs), min(run.seed - run.pair for run in runs)
    most = max(run.seed - run.pair for run in runs) - first + 1
    words = ["python", f"{header.get('script', 'train_skd')}.py", "--variants", ",".join(methods)]
    words += ["--pairs", str(pairs[-1] - pairs[0] + 1), "--pair-seed", str(pairs[0])]
    words += ["--seeds", str(most), "--seed", str(pairs[0] + first)]
    words += [word for flag, values in swept.items() for word in ("--sweep", f"{flag}={','.join(values)}")]
    words += ["--equal-compute"] if any(run.budget == "compute" for run in runs) else []
    flags = header.get("flags") or {}
    settings = flags.get("settings") or {}
    for name, value in flags.items():
        value = settings.get(name) if value is None else value  # a default may be another one today
        flag = "device" if name == "device_type" else name.replace("_", "-")
        if name in NO_FLAGS or flag in swept or value is None or value is False or value in ("", {}, []):
            continue
        if isinstance(value, dict):
            value = ",".join(f"{key}={item}" for key, item in value.items())
        words += [f"--{flag}"] if value is True else [f"--{flag}", f"{value}"]
    return shlex.join(words)


# ---------------------------------------------------------------------------------------------------------------------
# Tables.


def _results(found):
    """The main table, what a reader must know of it, and the tables beside it."""
    main, *others = found.tables
    parts = [_table(main), _list(found.notes)]
    for table in others:
        title = f"{table.title}{table.aside}" if table.title else "Distances and costs"
        parts += [f"<h3>{shown(title)}</h3>", _table(table)]
    return "\n".join(parts)


def _table(table):
    """A table of texts in HTML: its first column stays in sight, and a wide table scrolls beside it."""
    head = "".join(f'<th scope="col">{shown(cell)}</th>' for cell in table.header)
    rows = "\n".join(
        f'<tr><th scope="row">{shown(row[0])}</th>' + "".join(f"<td>{shown(cell)}</td>" for cell in row[1:]) + "</tr>"
        for row in table.rows
    )
    note = f"<p>{shown(table.note)}</p>" if table.note else ""
    return (
        f'<div class="wide"><table class="sortable">\n<thead><tr>{head}</tr></thead>\n<tbody>\n{rows}\n</tbody>\n'
        f"</table></div>{note}"
    )


def _overlap(runs, variants):
    """How alike the final students and the teacher are by their likeliest tokens and their entropies; "" where the
    records hold none of it, and for a smoke run."""
    starts = starting_points(runs, "student_start").values()
    figures = {"student at the start": {key: [as_number(point.get(key)) for point in starts] for key in OVERLAP}}
    for variant in variants:
        own = select_runs(runs, variant, "steps")
        figures[variant] = {key: repeated(own, key, unit_of(runs)).values() for key in OVERLAP}
    rows = []
    for name, found in figures.items():
        known = [[value for value in values if value is not None] for values in found.values()]
        if any(known):
            rows.append([name, *(f"{sum(values) / len(values):.3f}" if values else "-" for values in known)])
    if not rows or any(run.header.get("quick") for run in runs):
        return ""
    words = (
        "Overlap: the share of the original teacher's K likeliest tokens that are among the student's K likeliest, K "
        "being that of SKD. Entropy gap: the teacher's mean entropy minus the student's, in nats; above 0 the student "
        "is the surer one. Final checkpoints on held-out prompts, means; the curves above show both on the batches "
        "that each method trains on."
    )
    return f"<p>{words}</p>\n{_table(tables.Table(['method', *OVERLAP.values()], rows))}"


def _every_run(table):
    """The table of every run, closed; "" where there is none."""
    if table is None:
        return ""
    body = _table(table)
    if len(body.encode()) > MOST_BYTES_OF_RUNS:
        return f"<p>{len(table.rows)} runs are too many for this page: table.md shows them.</p>"
    several = "s" if len(table.rows) > 1 else ""
    return f"<details><summary>{len(table.rows)} run{several}, each on its own</summary>\n{body}\n</details>"


def _list(texts):
    return "<ul>" + "".join(f"<li>{shown(text)}</li>" for text in texts) + "</ul>" if texts else ""


# ---------------------------------------------------------------------------------------------------------------------
# Pictures.


def _picture(svg):
    """curves.svg as a part of the page: it is made for a white ground, and a narrow screen scrolls it."""
    return f'<div class="wide picture">\n{svg}</div>'


def _time(runs, variants):
    """Seconds of each stage: a bar and a row of numbers per method, means over its runs of equal steps; "" where the
    records hold none."""
    found = {}
    for variant in variants:
        own = [run.final.get("seconds_by_stage") for run in runs if run.variant == variant and run.budget == "steps"]
        own = [stages for stages in own if isinstance(stages, dict)]
        columns = {key: [as_number(stages.get(key)) for stages in own] for key in STAGES}
        columns = {key: [x for x in column if x is not None and x >= 0] for key, column in columns.items()}
        means = {key: sum(column) / len(column) if column else None for key, column in columns.items()}
        if any(columns.values()):
            found[variant] = means
    if not found:
        return ""
    totals = {variant: sum(value or 0.0 for value in means.values()) for variant, means in found.items()}
    longest = max(totals.values()) or 1.0
    bars = []
    for variant, means in found.items():
        pieces = ""
        for i, (key, name) in enumerate(STAGES.items()):
            if seconds := means[key]:
                # As much as has room on a phone: the stage's number, and its seconds.
                label = f"{i + 1}: {seconds:.3g} s" if seconds > longest / 5 else f"{i + 1}" * (seconds > longest / 40)
                style = f'class="g{i}" style="flex:{seconds:.4g} 1 0" title="{name}: {seconds:.3g} s"'
                pieces += f"<span {style}>{label}</span>"
        bars.append(
            f'<div class="bar"><b>{shown(variant)}</b> {totals[variant]:.3g} s'
            f'<div class="stack" style="width:{100 * totals[variant] / longest:.1f}%">{pieces}</div></div>'
        )
    rows = [
        [variant, f"{totals[variant]:.3g}", *("-" if value is None else f"{value:.3g}" for value in means.values())]
        for variant, means in found.items()
    ]
    keys = "".join(f'<span class="g{i}">{i + 1}: {name}</span> ' for i, name in enumerate(STAGES.values()))
    words = "Seconds of a run, mean over the runs of equal steps. The stages of a bar follow each other in this order:"
    numbers = _table(tables.Table(["method", "all", *STAGES.values()], rows))
    return "\n".join([f'<p>{words}</p>\n<p class="keys">{keys}</p>', *bars, f"<h3>The same in numbers</h3>\n{numbers}"])


# ---------------------------------------------------------------------------------------------------------------------
# Rollouts.


def _rollouts(runs, main_method, room):
    """Rollouts of each method's first run that kept them, in at most `room` bytes of HTML; "" where none kept any."""
    found = {}
    for run in runs:  # sorted: the first pair and its first seed come first
        lines = rollout_lines(run)
        if lines and run.variant not in found:
            found[run.variant] = (run, lines)
    if not found:
        return ""
    opened = main_method if main_method in found else next(iter(found))
    blocks, left_out = [], []
    for variant in sorted(found, key=lambda name: name != opened):  # the one that is open, then the others
        run, lines = found[variant]
        block = (
            f'<details{" open" if variant == opened else ""}><summary>{shown(variant)}, pair {run.pair}, seed '
            f"{run.seed}: {_fading(lines)}</summary>\n{who_wrote.rollouts_html(lines)}\n</details>"
        )
        room -= len(block.encode())
        if room > 0:
            blocks.append(block)
        else:
            left_out.append(variant)
    words = (
        "<p>Rollouts of each method's student on held-out prompts, all by SKD's rule and with the same noise: the "
        "student drafts a token; where it is not among the teacher's K likeliest, the teacher writes one instead. "
        "These prompts are examples, not a measurement: the rates are in the table and in the heat maps.</p>"
    )
    note = f"<p>Left out, for want of room: {shown(', '.join(left_out))}.</p>" if left_out else ""
    return "\n".join([words, who_wrote.LEGEND, *blocks, note])


def _fading(lines):
    """The teacher's tokens of each line: 5 of 60 → 2 of 60."""
    shares = [who_wrote.teachers_share(line) for line in lines]
    return "the teacher wrote " + " → ".join(f"{ours} of {whole}" for ours, whole in shares)
