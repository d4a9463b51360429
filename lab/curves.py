"""Learning curves as SVG text: the page of a comparison with its panels, then the heat maps of replaced tokens.

With several pretrained pairs the page begins with a panel that shows the score of each pair as a point.
"""

import math
from typing import NamedTuple

import numpy as np

from lab import svg
from lab.heatmap import heat_maps, map_panels, map_scale
from lab.reading import as_number, in_headers, ordered_variants, pairs_of, sorted_runs, starting_points
from lab.statistics import repeated, student_t_interval
from lab.svg import CHAR_WIDTH, FAINT, INK

# Okabe & Ito's colours for every kind of colour vision, with a dark brown in place of yellow, which vanishes on white.
# The main method has the first and the control the second for itself. From the ninth line on the others come again in
# the next dash pattern, so 26 lines look different.
PALETTE = ("#D55E00", "#0072B2", "#009E73", "#E69F00", "#CC79A7", "#56B4E9", "#000000", "#661100")
DASHES = ("", "7 3", "2 3", "9 3 2 3")
GREY, UNNAMED, STRIPE = "#C8C8C8", "#8C8C8C", "#F4F4F4"
MOST_JOINED = 14  # rows of the panel of pairs; through more of them a line per pair only makes a tangle
LABEL_GAP = 13.0  # pixels between the baselines of two labels at font size 11
PANEL = 440.0  # width of a panel; two of them fill a page that a README shows at its own size
MAX_POINTS = 200  # a line of more points than pixels only costs bytes
MOST_NAMED = 8  # lines with a colour and a name in one panel, as many as there are colours
BEST = 3  # of more lines the main method, the control, and of the others so many best and so many worst are named
MOST_BANDS = 4  # bands over each other that an eye can take apart; of more lines only main method and control have one

# The lowest value of a log axis, in nats per token. A KL of 1e-4 is a change of the probabilities by about one percent
# (KL ~ d^2 / 2), and the tables round there. Below lies what float32 makes of two equal models, around 1e-7: decades of
# noise, which would press what a reader came for into the uppermost part. What is lower is drawn at the floor.
FLOOR = 1e-4

# title, which lines of a record, key, label of the y axis, which y axis: that of scores, which begins at 0 and does not
# zoom into noise; a linear one; or one of nats, which becomes logarithmic where the range is wide
PANELS = (
    ("Score on held-out examples (greedy)", "evals", "score", "score, 0..1", "score"),
    ("Score on held-out examples (sampled)", "evals", "score_sampled", "score, 0..1", "score"),
    ("Validation NLL of the references", "evals", "val_nll", "nats per token", "nats"),
    ("KL(teacher ‖ student) on the references", "evals", "kl_teacher", "nats per token", "nats"),
    ("Tokens replaced by the teacher", "steps", "replacement_rate", "share of tokens", "linear"),
    ("Top-K overlap, on the training batch", "steps", "topk_overlap", "share of the teacher's K", "linear"),
    ("Entropy gap, on the training batch", "steps", "entropy_gap", "teacher − student, nats", "linear"),
    ("KL(original ‖ adapted teacher): drift", "evals", "drift", "nats per token", "nats"),
    ("NLL of the adapted teacher", "evals", "adapted_nll", "nats per token", "nats"),
)
TEACHER = "teacher"
SCORES = (("score", "score (greedy), 0..1"), ("score_sampled", "score (sampled), 0..1"))


class Look(NamedTuple):
    """How the methods look in all panels of a page."""

    places: dict  # method -> its place in the palette; a method without one is faint
    leading: list  # main method and control, if they are there: thick lines, always with a band


def _log_ticks(low, high):
    """Powers of ten between low and high; in a narrow range 2 and 5 times them too, in a very narrow one even steps."""
    exponents = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for factors in ((1,), (1, 2, 5)):
        ticks = [factor * 10.0**e for e in exponents for factor in factors if low <= factor * 10.0**e <= high]
        if len(ticks) >= 3:
            return ticks
    return svg.nice_ticks(low, high)


def _mean_and_band(seeds):
    """(xs, means, lows, highs) over seeds = [(xs, ys), ..], each array (P,), NaN where no seed has a value.

    Seeds that were measured at different x are joined by lines between their own points, never beyond them; a NaN
    stays a gap. At most MAX_POINTS points are kept, evenly, with the first and the last.
    """
    curves = []
    for xs, ys in seeds:
        # A dict: of a step that stands twice, as after a resumed run, the later value counts. None becomes NaN.
        curve = np.array(sorted(dict(zip(xs, ys)).items()), dtype=np.float64).reshape(-1, 2)
        curve[~np.isfinite(curve[:, 1]), 1] = np.nan
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


def _repeats(place):
    """(index of a colour, how often it was used before) of a place in the palette."""
    again, color = divmod(place - 2, len(PALETTE) - 2)
    return (place, 0) if place < 2 else (color + 2, again)


def _color(place):
    return PALETTE[_repeats(place)[0]]


def _stroke(place):
    """Colour and dash pattern of a place in the palette."""
    dash = DASHES[_repeats(place)[1] % len(DASHES)]
    return f'stroke="{_color(place)}"' + (f' stroke-dasharray="{dash}"' if dash else "")


def _is_wide(values):
    """Whether nats need a log axis: the largest is above ten times the smallest. Where some lie below the FLOOR, as the
    drift of a teacher that begins to move, a log axis is worth its empty part only if the others span more than two
    decades."""
    above = [value for value in values if value >= FLOOR]
    return bool(above) and max(above) > (10 if len(above) == len(values) else 100) * min(above)


def _y_range(drawn, log_y=False, nats=False):
    """(low, high, ticks) of an axis that holds the arrays `drawn`; widened around a constant, 0..1 if there is no
    value. A log axis begins at the FLOOR if a value is below it, and no axis of nats zooms into what is less."""
    values = np.concatenate([*drawn, np.zeros(0)])
    values = values[np.isfinite(values)]
    if not len(values):
        return 0.0, 1.0, svg.nice_ticks(0.0, 1.0)
    low, high = float(values.min()), float(values.max())
    if log_y:
        low, high = max(low / 1.15, FLOOR), max(high * 1.15, 10 * FLOOR)
        return low, high, _log_ticks(low, high)
    if nats and abs(low) < FLOOR:
        low, high = 0.0, max(high, FLOOR)
    constant = high - low <= 1e-9 * max(abs(low), abs(high))
    air = (abs(low) / 10 or 0.5) if constant else 0.04 * (high - low)
    # With the smallest value near zero, an axis without zero would only exaggerate; and no rate is below zero.
    low = 0.0 if 0 <= low < 0.4 * high or low == high == 0 else low - air
    return low, high + air, svg.nice_ticks(low, high + air)


def _score_axis(values):
    """(low, high, ticks) of an axis of scores: from 0 to 1, or to a half or a quarter where no value lies above it.
    Holds what a score cannot be, too."""
    low, most = min([0.0, *values]), max(values, default=1.0)
    high = next((end for end in (0.25, 0.5, 1.0) if most <= end), most)
    return low, high, svg.nice_ticks(low, high)


def _x_range(curves, begin=None):
    """(low, high, ticks) of an x axis of steps: ends where the data end, ticks only inside and at whole steps; begins
    at `begin` if that is given."""
    values = np.concatenate([curve[0] for curve in curves] or [np.zeros(0)])
    values = values if begin is None else np.append(values, begin)
    low, high = (float(values.min()), float(values.max())) if len(values) else (0.0, 1.0)
    if high - low <= 1e-9 * max(abs(low), abs(high)):
        low, high = low - 1.0, high + 1.0
    return low, high, svg.nice_ticks(low, high, 4, whole=True)


def _end(curve):
    """(x, y) of a line's end, its last finite mean; None where it has none."""
    xs, means, _, _ = curve
    finite = np.flatnonzero(np.isfinite(means))
    return (float(xs[finite[-1]]), float(means[finite[-1]])) if len(finite) else None


def _named(series, leading, scores):
    """The methods with a colour and a name in one panel: all, or of more than MOST_NAMED the leading ones, and of the
    others the BEST best and as many worst by their final score."""
    if len(series) <= MOST_NAMED:
        return list(series)
    ranked = sorted((name for name in series if name in scores and name not in leading), key=scores.get)
    chosen = {*leading, *ranked[:BEST], *ranked[-BEST:]}
    return [name for name in series if name in chosen]


def _panel(series, look, title, y_label, width, height, nats=False, named=None, begin=None, y_axis=None, teacher=None):
    """The SVG elements of one plot over steps in a box of width x height whose upper left corner is 0, 0.

    series = {method: [(steps, values) per run]}; the line is the mean over runs, the band goes from the lowest to the
    highest, and None and NaN are gaps. A method looks the same in all panels of a page; one that is not `named`
    (without it all are) is a thin grey line. The x axis begins at `begin`, the y axis is `y_axis` (low, high, ticks),
    or else both fit the data, that of `nats` on a log axis where their range is wide; at the height `teacher` a dashed
    line is drawn.
    """
    named = list(series) if named is None else named
    curves = {name: _mean_and_band(seeds) for name, seeds in series.items()}
    log_y = nats and _is_wide([y for runs in series.values() for _, ys in runs for y in ys if as_number(y) is not None])
    banded = [name for name in named if len(series[name]) > 1 and (len(named) <= MOST_BANDS or name in look.leading)]
    x_low, x_high, x_ticks = _x_range(curves.values(), begin)
    shown = [values for name, curve in curves.items() for values in (curve[1:] if name in banded else curve[1:2])]
    y_low, y_high, y_ticks = y_axis or _y_range(shown, log_y, nats)
    y_texts = svg.tick_texts(y_ticks)
    if log_y and y_ticks[0] == y_low == FLOOR:
        y_texts[0] = f"≤ {y_texts[0]}"
    left = max(52.0, 26.0 + CHAR_WIDTH * max((len(text) for text in y_texts), default=0))
    right = width - 30.0 - CHAR_WIDTH * max(len(svg.short_name(name)) for name in (TEACHER, *look.places))
    top, bottom = 30.0, height - 40.0

    def to_x(x):
        return left + (right - left) * (np.asarray(x) - x_low) / (x_high - x_low)

    def to_y(y):
        y, low, high = np.asarray(y), y_low, y_high
        if log_y:
            y, low, high = np.log10(np.maximum(y, low)), math.log10(low), math.log10(high)
        return bottom - (bottom - top) * (y - low) / (high - low)

    parts = [svg.text(left, 16, title, size=13, extra='font-weight="600"')]
    for tick, text in zip(y_ticks, y_texts):
        parts.append(f'<path d="M{left:.1f} {to_y(tick):.1f}H{right:.1f}" stroke="{FAINT}"/>')
        parts.append(svg.text(left - 6, to_y(tick) + 4, text, anchor="end"))
    for tick, text in zip(x_ticks, svg.tick_texts(x_ticks)):
        parts.append(f'<path d="M{to_x(tick):.1f} {top:.1f}V{bottom:.1f}" stroke="{FAINT}"/>')
        parts.append(svg.text(to_x(tick), bottom + 15, text, anchor="middle"))
    parts.append(f'<path d="M{left:.1f} {bottom:.1f}H{right:.1f}" stroke="{INK}"/>')
    parts.append(svg.text((left + right) / 2, bottom + 32, "step", anchor="middle"))
    middle, label = (top + bottom) / 2, f"{y_label} (log)" if log_y else y_label
    parts.append(svg.text(12, middle, label, anchor="middle", extra=f'transform="rotate(-90 12 {middle:.1f})"'))

    # Bands below all lines: a band must not dim another method's line.
    drawn = {name: (to_x(xs), *map(to_y, ys)) for name, (xs, *ys) in curves.items()}
    parts += [_band(drawn[name], look.places[name], 0.16 if len(banded) <= 2 else 0.10) for name in banded]
    parts += [_line(drawn[name]) for name in series if name not in named]
    # The leading ones come last, on top of the others.
    for name in sorted(named, key=lambda name: name in look.leading):
        parts.append(_line(drawn[name], look.places[name], 2.6 if name in look.leading else 1.6))
    ends = [(name, _color(look.places[name]), *end) for name in named if (end := _end(drawn[name]))]
    if teacher is not None:
        parts.append(f'<path class="teacher" d="M{left:.1f} {to_y(teacher):.1f}H{right:.1f}" stroke="{INK}" '
                     'stroke-dasharray="5 4"/>')
        ends.append((TEACHER, INK, right, float(to_y(teacher))))
    return parts + _end_labels(ends, right, top, bottom)


def _band(curve, place, opacity):
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
    color = _color(place)
    return f'<path class="band" d="{path}" fill="{color}" fill-opacity="{opacity}"/>' if path else ""


def _line(curve, place=None, wide=1.6):
    """The mean over seeds; a dot where a point stands alone. Without a place in the palette: one of the faint ones."""
    xs, means, _, _ = curve
    path, dots = "", ""
    color = GREY if place is None else _color(place)
    stroke = f'stroke="{GREY}" stroke-width="1"' if place is None else f'{_stroke(place)} stroke-width="{wide}"'
    for start, stop in _stretches(means):
        points = [f"{x:.1f} {y:.1f}" for x, y in zip(xs[start:stop], means[start:stop])]
        if stop - start == 1:
            dots += f'<circle cx="{xs[start]:.1f}" cy="{means[start]:.1f}" r="3" fill="{color}"/>'
        else:
            path += "M" + "L".join(points)
    return (f'<path class="line" d="{path}" fill="none" {stroke} stroke-linejoin="round"/>'
            if path else "") + dots


def _end_labels(ends, right, top, bottom):
    """Names right of the plot, each at the height of its line's end (name, colour, x, y) or as near as the other names
    allow."""
    places = _spread([y for *_, y in ends], LABEL_GAP, top, bottom)
    parts = []
    for (name, color, x, y), place in zip(ends, places):
        early = f"M{x:.1f} {y:.1f}H{right:.1f}" if right - x > 1 else ""  # this line ended before the others
        if early:
            parts.append(f'<path d="{early}" stroke="{color}" stroke-dasharray="1 4" fill="none"/>')
        parts.append(f'<path d="M{right:.1f} {y:.1f}L{right + 18:.1f} {place:.1f}h4" stroke="{color}" fill="none"/>')
        parts.append(svg.text(right + 25, place + 4, svg.short_name(name), extra='class="label"'))
    return parts


def _legend(places, width):
    """(SVG elements, height) of the names that are cut at their lines' ends, with their strokes, in as many columns as
    the width takes; ([], 0) if each stands there as it is."""
    names = [name for name in places if svg.short_name(name) != name]
    if not names:
        return [], 0.0
    cell = 48.0 + CHAR_WIDTH * max(map(len, names))
    rows = math.ceil(len(names) / max(1, int(width // cell)))
    columns = math.ceil(len(names) / rows)  # as even as can be: no row of one
    parts = []
    for i, name in enumerate(names):
        x, y = 52.0 + i % columns * cell, 10.0 + i // columns * 17.0
        parts.append(f'<path d="M{x:.1f} {y:.1f}h28" {_stroke(places[name])} stroke-width="2.4" fill="none"/>')
        parts.append(svg.text(x + 34, y + 4, name, extra='class="legend"'))
    return parts, 17.0 * rows + 16.0


def _panel_height(n_labels):
    """Tall enough that each label finds a place."""
    return max(250.0, 70.0 + LABEL_GAP * n_labels)


def _curves_of(runs, variants, lines, key):
    """{variant: [(steps, values) per run]} of the methods that have the figure at all."""
    series = {}
    for variant in variants:
        curves = []
        for run in runs:
            points = [(entry["step"], as_number(entry.get(key))) for entry in getattr(run, lines) if "step" in entry]
            if run.variant == variant and any(value is not None for _, value in points):
                curves.append(tuple(zip(*points)))
        if curves:
            series[variant] = curves
    return series


def _leading(runs, variants, scores, names):
    """The methods of these names; of one that is there with swept values only, the value with the best final score."""
    found = []
    for name in names:
        own = [variant for variant in variants if variant == name or variant.split()[0] == name]
        if own:
            found.append(name if name in own else max(own, key=lambda variant: scores.get(variant, -math.inf)))
    return list(dict.fromkeys(found))


def curves_page(runs, order=None, control=None, main_method=None):
    """Score of each pair, then scores, validation NLL, KL to the teacher, share of replaced tokens, top-K overlap and
    entropy gap over steps; below it the heat maps of replaced tokens: one SVG.

    What has no data is left out, and the panel of the pairs where there is only one. Runs of equal steps are drawn;
    those of equal compute only if there are no others. Of many methods some are named: see _named.
    """
    variants = ordered_variants(runs, order)
    runs = sorted_runs([run for run in runs if run.budget == "steps"] or runs, variants)
    scores = _final_scores(runs, variants)
    leading = _leading(runs, variants, scores, (main_method, control))
    panels = [(panel, _curves_of(runs, variants, *panel[1:3])) for panel in PANELS]
    panels = [(panel, series, _named(series, leading, scores)) for panel, series in panels if series]
    shown = [name for name in variants if any(name in named for _, _, named in panels)]
    # First the main method and the control, then those that have their names in most panels.
    shown.sort(key=lambda name: (-leading[::-1].index(name) if name in leading else 1,
                                 -sum(name in named for _, _, named in panels)))
    look = Look({name: i for i, name in enumerate(shown)}, leading)
    height = _panel_height(1 + max((len(named) for _, _, named in panels), default=0))
    teachers, axis = {key: _teacher_score(runs, key) for key, _ in SCORES}, _axis_of_all_scores(runs)
    plots = []
    for (title, _, key, y_label, kind), series, named in panels:
        scored = {"y_axis": axis, "teacher": teachers[key]} if kind == "score" else {}
        plots.append(_panel(series, look, title, y_label, PANEL, height, kind == "nats", named, 0.0, **scored))

    several, maps = len(pairs_of(runs)) > 1, heat_maps(runs, variants)
    cells = plots + map_panels(maps, PANEL, height)
    columns = 2 if several or maps else min(2, max(1, len(cells)))
    width = PANEL * columns + 20
    task = "".join(f"{name}: " for name in in_headers(runs, "task"))
    title = task + (_runs_text(runs) if cells else "the records hold no curves")
    parts = svg.paragraph(24, 26, width - 48, title, size=14, extra='font-weight="600"')
    below = 26.0 + 18 * len(parts)
    notes = svg.paragraph(24, below, width - 48, _notes(panels, leading, len(variants)), extra='class="note"')
    parts, below = parts + notes, below + 16 * len(notes) + 2
    if several:
        panel, panel_height = _pairs_panel(runs, variants, look.places, axis, width - 20)
        parts += svg.moved(10, below, panel)
        below += panel_height + 16
    for i, cell in enumerate(cells):
        parts += svg.moved(10 + i % columns * PANEL, below + i // columns * (height + 8), cell)
    below += math.ceil(len(cells) / columns) * (height + 8)
    for elements, elements_height in (map_scale(maps), _legend(look.places, width - 80)):
        parts += svg.moved(10, below, elements) if elements else []
        below += elements_height
    return svg.document(width, below + 8, title, parts)


def _notes(panels, leading, n_variants):
    """What a reader must know of the lines: which are named, and which have a band."""
    found, names = [], " and ".join(leading)
    if any(len(named) < len(series) for _, series, named in panels):
        swept = " (of swept values the best)" if any(" " in name for name in leading) else ""
        always = f"{', '.join(leading)}{swept}, and " if leading else ""
        found.append(f"Named, of {n_variants} methods: {always}the {BEST} best and {BEST} worst others by final greedy "
                     "score; the rest is faint.")
    seeds = any(len(curves) > 1 for _, series, _ in panels for curves in series.values())
    if seeds and any(len(named) > MOST_BANDS for _, _, named in panels):
        bands = f"bands of {names} only" if names else "no bands"
        found.append(f"A panel with more than {MOST_BANDS} names has {bands}.")
    return " ".join(found)


def _final_scores(runs, variants):
    """{method: its final greedy score, mean over pairs}, without the methods that have none."""
    found = {name: repeated([run for run in runs if run.variant == name], "score", "pair") for name in variants}
    return {name: sum(own.values()) / len(own) for name, own in found.items() if own}


def _teacher_score(runs, key):
    """The teachers' mean over pairs; None where a record lacks it."""
    scores = [as_number(point.get(key)) for point in starting_points(runs, "teacher").values()]
    return sum(scores) / len(scores) if scores and None not in scores else None


def _axis_of_all_scores(runs):
    """One axis for all scores of a page, greedy and sampled: else they could not be compared at a glance."""
    figures = [figures for run in runs for figures in (*run.evals, run.final)]
    figures += [point for which in ("teacher", "student_start") for point in starting_points(runs, which).values()]
    scores = [as_number(point.get(key)) for point in figures for key, _ in SCORES]
    return _score_axis([score for score in scores if score is not None])


def _runs_text(runs):
    """What a line and its band are made of."""
    quick = "smoke run (--quick), means nothing; " if any(run.header.get("quick") for run in runs) else ""
    n_pairs, n_runs = len(pairs_of(runs)), len({(run.pair, run.seed) for run in runs})
    if n_runs == 1:
        return f"{quick}one pair, one seed"
    what = f"{n_pairs} pairs" if n_runs == n_pairs else f"{n_runs} seeds of one pair"
    if 1 < n_pairs < n_runs:
        what = f"{n_runs} runs of {n_pairs} pairs"
    return f"{quick}lines are means over {what}, bands go from the lowest to the highest"


# ---------------------------------------------------------------------------------------------------------------------
# The score of each pair.


class _Row(NamedTuple):
    """One row of the panel of pairs."""

    name: str
    color: str
    scores: dict  # key of the score -> {pair: score, its seeds averaged}


def _rows_of(runs, variants, places):
    """Teacher and starting student, then every method."""
    rows = []
    for name, which in ((TEACHER, "teacher"), ("student at the start", "student_start")):
        points = starting_points(runs, which)
        figures = {key: {pair: as_number(point.get(key)) for pair, point in points.items()} for key, _ in SCORES}
        known = {key: {pair: x for pair, x in own.items() if x is not None} for key, own in figures.items()}
        rows += [_Row(name, INK, known)] if any(known.values()) else []
    for name in variants:
        own = [run for run in runs if run.variant == name]
        # One row per colour: a point has no dashes, which tell the later ones apart.
        color = PALETTE[places[name]] if places.get(name, len(PALETTE)) < len(PALETTE) else UNNAMED
        rows.append(_Row(name, color, {key: repeated(own, key, "pair") for key, _ in SCORES}))
    return rows


def _pairs_panel(runs, variants, places, axis, width):
    """(SVG elements, height) of a row per method with a point per pair, greedy on the left and sampled on the right.

    A pair keeps its place within all rows, from the first at the top to the last, and a faint line joins its points if
    the rows are not too many. A thick bar is the 95 % interval over pairs, and the tick on it the mean. `axis` is that
    of all scores.
    """
    pairs, rows = pairs_of(runs), _rows_of(runs, variants, places)
    names = [svg.short_name(row.name, 30) for row in rows]
    left, top, step = 24.0 + CHAR_WIDTH * max(map(len, names)), 30.0, 22.0 if len(rows) <= MOST_JOINED else 16.0
    centres = [top + step * (i + 0.5) for i in range(len(rows))]
    bottom, side = top + step * len(rows), (width - left - 60.0) / 2
    parts = [svg.text(24, 16, "Score of each pair", size=13, extra='font-weight="600"')]
    for name, y in zip(names, centres):
        parts.append(svg.text(left - 8, y + 4, name, anchor="end", extra='class="row"'))
    for number, (key, label) in enumerate(SCORES):
        box = (left + number * (side + 30.0), side, top, bottom)
        parts += _side_of_pairs(rows, centres, key, label, pairs, axis, box)
    what = f"{pairs[0]} to {pairs[-1]}" if pairs == [*range(pairs[0], pairs[-1] + 1)] else ", ".join(map(str, pairs))
    joined = ", joined by a faint line" if len(rows) <= MOST_JOINED else ""
    note = svg.paragraph(24, bottom + 52, width - 24, "A point is a pair (in each row from top to bottom: "
                         f"{what if len(what) < 40 else 'in their order'}){joined}. Bar and tick: 95 % interval over "
                         "pairs, and mean.")
    return parts + note, bottom + 46.0 + 16 * len(note)


def _side_of_pairs(rows, centres, key, label, pairs, axis, box):
    """The plot of one score in box = (left, width, top, bottom): intervals and means, and the points of all pairs."""
    left, width, top, bottom = box
    low, high, ticks = axis
    gap = 0.62 * (centres[0] - top) * 2 / len(pairs)
    shift = {pair: gap * (i - (len(pairs) - 1) / 2) for i, pair in enumerate(pairs)}  # of a pair's place in a row

    def to_x(score):
        inside = min(max(score, low), high)  # an interval may reach beyond what a score can be
        return left + width * (inside - low) / (high - low)

    parts = []
    for i, y in enumerate(centres):  # stripes lead the eye from a name to its points
        path = f"M{left:.1f} {y - centres[0] + top:.1f}h{width:.1f}v{2 * (centres[0] - top):.1f}h{-width:.1f}Z"
        parts += [f'<path d="{path}" fill="{STRIPE}"/>'] if i % 2 else []
    for tick, text in zip(ticks, svg.tick_texts(ticks)):
        parts.append(f'<path d="M{to_x(tick):.1f} {top:.1f}V{bottom:.1f}" stroke="{FAINT}"/>')
        parts.append(svg.text(to_x(tick), bottom + 15, text, anchor="middle"))
    parts.append(f'<path d="M{left:.1f} {bottom:.1f}h{width:.1f}" stroke="{INK}"/>')
    parts.append(svg.text(left + width / 2, bottom + 32, label, anchor="middle"))
    for pair in pairs if len(rows) <= MOST_JOINED else ():
        path, move = "", "M"
        for row, y in zip(rows, centres):
            present = pair in row.scores[key] and row.name != TEACHER  # its lines would cross the whole plot
            path += f"{move}{to_x(row.scores[key][pair]):.1f} {y + shift[pair]:.1f}" if present else ""
            move = "L" if present else "M"
        parts.append(f'<path class="pair" d="{path}" fill="none" stroke="{GREY}" stroke-width="0.8"/>' if path else "")
    for row, y in zip(rows, centres):
        if scores := row.scores[key]:
            mean, half_width = student_t_interval(list(scores.values()))
            if half_width is not None:
                ends = f"M{to_x(mean - half_width):.1f} {y:.1f}H{to_x(mean + half_width):.1f}"
                parts.append(f'<path class="interval" d="{ends}" stroke="{row.color}" stroke-width="7" '
                             'stroke-opacity="0.3"/>')
            parts.append(f'<path class="mean" d="M{to_x(mean):.1f} {y - 7:.1f}v14" stroke="{row.color}" '
                         'stroke-width="2.4"/>')
            parts += [f'<circle class="point" cx="{to_x(score):.1f}" cy="{y + shift[pair]:.1f}" r="2.2" '
                      f'fill="{row.color}"/>' for pair, score in scores.items()]
    return parts
