"""Learning curves as SVG text: one plot of any series, or the page of a comparison with its panels and one legend.

With several pretrained pairs the page begins with a panel that shows the score of each pair as a point.
"""

import math
from typing import NamedTuple

import numpy as np

from lab import svg
from lab.heatmap import heat_maps
from lab.reading import as_number, in_headers, ordered_variants, pairs_of, sorted_runs, starting_points
from lab.statistics import repeated, student_t_interval
from lab.svg import CHAR_WIDTH, FAINT, INK

# Okabe & Ito's colours for every kind of colour vision, with a grey in place of yellow, which vanishes on white. The
# ninth series starts over with the next dash pattern, so 32 series look different.
PALETTE = ("#0072B2", "#8C8C8C", "#009E73", "#E69F00", "#CC79A7", "#56B4E9", "#000000", "#D55E00")
DASHES = ("", "7 3", "2 3", "9 3 2 3")
GREY, UNNAMED = "#C8C8C8", "#8C8C8C"
LABEL_GAP = 13.0  # pixels between the baselines of two labels at font size 11
MAX_POINTS = 200  # a line of more points than pixels only costs bytes
MOST_LINES = 20  # that an eye can follow in one panel; of more, those that end among the OUTERMOST have colour and name
OUTERMOST = 6

# title, which lines of a record, key, label of the y axis, which y axis: that of scores, which begins at 0 and does not
# zoom into noise; a linear one; or a linear one that becomes logarithmic where the range is wide
PANELS = (
    ("Score on held-out examples (greedy)", "evals", "score", "score, 0..1", "score"),
    ("Score on held-out examples (sampled)", "evals", "score_sampled", "score, 0..1", "score"),
    ("Validation NLL of the references", "evals", "val_nll", "nats per token", "wide"),
    ("KL(teacher ‖ student) on the references", "evals", "kl_teacher", "nats per token", "wide"),
    ("Tokens replaced by the teacher", "steps", "replacement_rate", "share of tokens", "linear"),
    ("KL(original ‖ adapted teacher): drift", "evals", "drift", "nats per token", "wide"),
    ("NLL of the adapted teacher", "evals", "adapted_nll", "nats per token", "wide"),
)
TEACHER = "teacher"
SCORES = (("score", "score (greedy), 0..1"), ("score_sampled", "score (sampled), 0..1"))


def _log_ticks(low, high):
    """Powers of ten between low and high; in a narrow range 2 and 5 times them too, in a very narrow one even steps."""
    exponents = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for factors in ((1,), (1, 2, 5)):
        ticks = [factor * 10.0**e for e in exponents for factor in factors if low <= factor * 10.0**e <= high]
        if len(ticks) >= 3:
            return ticks
    return svg.nice_ticks(low, high)


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


def _stroke(index):
    """Colour and dash pattern of the series with this index."""
    dash = DASHES[index // len(PALETTE) % len(DASHES)]
    return f'stroke="{PALETTE[index % len(PALETTE)]}"' + (f' stroke-dasharray="{dash}"' if dash else "")


def _y_range(curves, log_y):
    """(low, high, ticks) of an axis that holds all bands; widened around a constant, 0..1 if there is no value."""
    values = np.concatenate([np.concatenate(curve[2:]) for curve in curves] or [np.zeros(0)])
    values = values[np.isfinite(values)]
    if not len(values):
        return 0.0, 1.0, svg.nice_ticks(0.0, 1.0)
    low, high = float(values.min()), float(values.max())
    if log_y:
        low, high = low / 1.15, high * 1.15
        return low, high, _log_ticks(low, high)
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
    """(low, high, ticks) of the x axis: ends where the data end, ticks only inside; begins at `begin` if that is
    given."""
    values = np.concatenate([curve[0] for curve in curves] or [np.zeros(0)])
    values = values if begin is None else np.append(values, begin)
    low, high = (float(values.min()), float(values.max())) if len(values) else (0.0, 1.0)
    if high - low <= 1e-9 * max(abs(low), abs(high)):
        low, high = low - 1.0, high + 1.0
    return low, high, svg.nice_ticks(low, high)


def _end(xs, means):
    """(x, y) of a line's end, its last finite mean; None where it has none."""
    finite = np.flatnonzero(np.isfinite(means))
    return (float(xs[finite[-1]]), float(means[finite[-1]])) if len(finite) else None


def _named(series, always=()):
    """The methods with a colour and a name in one panel: all, or of too many the outermost at the end and `always`."""
    if len(series) <= MOST_LINES:
        return list(series)
    ends = {name: end[1] for name, seeds in series.items() if (end := _end(*_mean_and_band(seeds, log_y=False)[:2]))}
    ranked = sorted(ends, key=ends.get)
    chosen = {*ranked[:OUTERMOST], *ranked[-OUTERMOST:], *always}
    return [name for name in series if name in chosen]


def _panel(series, indices, title, x_label, y_label, log_y, width, height, named=None, begin=None, y_axis=None,
           teacher=None):
    """The SVG elements of one plot in a box of width x height whose upper left corner is 0, 0.

    indices[name] gives the colour, so that a method looks the same in all panels of a page; a method that is not
    `named` (without it all are) is a thin grey line. The x axis begins at `begin`, the y axis is `y_axis` (low, high,
    ticks), or else both fit the data; at the height `teacher` a dashed line is drawn.
    """
    named = list(series) if named is None else named
    curves = {name: _mean_and_band(seeds, log_y) for name, seeds in series.items()}
    x_low, x_high, x_ticks = _x_range(curves.values(), begin)
    y_low, y_high, y_ticks = y_axis or _y_range(curves.values(), log_y)
    y_texts = svg.tick_texts(y_ticks)
    left = max(58.0, 26.0 + CHAR_WIDTH * max((len(text) for text in y_texts), default=0))
    right = width - 30.0 - CHAR_WIDTH * max((len(svg.short_name(name)) for name in indices), default=0)
    top, bottom = 30.0, height - 40.0
    scale = np.log10 if log_y and y_low > 0 else np.asarray

    def to_x(x):
        return left + (right - left) * (np.asarray(x) - x_low) / (x_high - x_low)

    def to_y(y):
        return bottom - (bottom - top) * (scale(y) - scale(y_low)) / (scale(y_high) - scale(y_low))

    parts = [svg.text(left, 16, title, size=13, extra='font-weight="600"')]
    for tick, text in zip(y_ticks, y_texts):
        parts.append(f'<path d="M{left:.1f} {to_y(tick):.1f}H{right:.1f}" stroke="{FAINT}"/>')
        parts.append(svg.text(left - 6, to_y(tick) + 4, text, anchor="end"))
    for tick, text in zip(x_ticks, svg.tick_texts(x_ticks)):
        parts.append(f'<path d="M{to_x(tick):.1f} {top:.1f}V{bottom:.1f}" stroke="{FAINT}"/>')
        parts.append(svg.text(to_x(tick), bottom + 15, text, anchor="middle"))
    parts.append(f'<path d="M{left:.1f} {bottom:.1f}H{right:.1f}" stroke="{INK}"/>')
    parts.append(svg.text((left + right) / 2, bottom + 32, x_label, anchor="middle"))
    middle = (top + bottom) / 2
    parts.append(svg.text(12, middle, y_label, anchor="middle", extra=f'transform="rotate(-90 12 {middle:.1f})"'))

    if teacher is not None:
        parts.append(f'<path class="teacher" d="M{left:.1f} {to_y(teacher):.1f}H{right:.1f}" stroke="{INK}" '
                     'stroke-dasharray="5 4"/>')
        parts.append(svg.text(right - 4, to_y(teacher) - 4, TEACHER, size=10, anchor="end"))

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
        parts.append(svg.text(right + 25, place + 4, svg.short_name(name), extra='class="label"'))
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
        parts.append(svg.text(x + 34, y + 4, name, extra='class="legend"'))
    return parts, 17.0 * rows + 6.0


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
    return svg.document(width, height + legend_height + 16, title,
                        svg.moved(4, 6, plot) + svg.moved(64, height + 8, legend))


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


def _whole_panels(runs, variants, always):
    """[(row of PANELS, {variant: curves}, names to be shown)] of the panels that have data."""
    found = [(panel, _curves_of(runs, variants, *panel[1:3])) for panel in PANELS]
    return [(panel, series, _named(series, always)) for panel, series in found if series]


def curves_page(runs, order=None, always=()):
    """Score of each pair, then scores, validation NLL, KL to the teacher and share of replaced tokens over steps, with
    one legend; below it the heat maps of replaced tokens: one SVG.

    What has no data is left out, and the panel of the pairs where there is only one. Runs of equal steps are drawn;
    those of equal compute only if there are no others. Of more than MOST_LINES methods only those that end outermost
    are named in a panel of curves, and `always` these.
    """
    variants = ordered_variants(runs, order)
    runs = sorted_runs([run for run in runs if run.budget == "steps"] or runs, variants)
    panels = _whole_panels(runs, variants, always)
    shown = [name for name in variants if any(name in named for _, _, named in panels)]
    indices, plots = {name: i for i, name in enumerate(shown)}, []
    height = _panel_height(max((len(named) for _, _, named in panels), default=0))
    teachers, axis = {key: _teacher_score(runs, key) for key, _ in SCORES}, _axis_of_all_scores(runs)
    for (title, _, key, y_label, kind), series, named in panels:
        values = [y for curves in series.values() for _, ys in curves for y in ys if y is not None]
        log_y = kind == "wide" and min(values) > 0 and max(values) > 10 * min(values)
        scored = {"y_axis": axis, "teacher": teachers[key]} if kind == "score" else {}
        plots.append(_panel(series, indices, title, "step", y_label, log_y, 470.0, height, named, 0.0, **scored))

    several, (maps, maps_height) = len(pairs_of(runs)) > 1, heat_maps(runs, variants, 960.0)
    columns = 2 if several or maps else min(2, max(1, len(plots)))
    width, below, parts = 480.0 * columns + 20, 44.0, []
    task = "".join(f"{name}: " for name in in_headers(runs, "task"))
    title = task + (_runs_text(runs) if plots or maps else "the records hold no curves")
    if any(len(named) < len(series) for _, series, named in panels):
        title += f"; of {len(variants)} methods the outermost are named"
    parts.append(svg.text(24, 26, title, size=14, extra='font-weight="600"'))
    if several:
        panel, panel_height = _pairs_panel(runs, variants, indices, axis, width - 20)
        parts += svg.moved(10, below, panel)
        below += panel_height + 16
    for i, plot in enumerate(plots):
        parts += svg.moved(10 + i % columns * 480, below + i // columns * (height + 12), plot)
    below += math.ceil(len(plots) / columns) * (height + 12)
    legend, legend_height = _legend(shown, indices, width - 80)
    parts += svg.moved(70, below, legend)
    below += legend_height + 10
    if maps:
        parts += svg.moved(10, below + 12, maps)
        below += maps_height + 12
    return svg.document(width, below, title, parts)


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
    return f"{quick}mean over {what}, band from the lowest to the highest"


# ---------------------------------------------------------------------------------------------------------------------
# The score of each pair.


class _Row(NamedTuple):
    """One row of the panel of pairs."""

    name: str
    color: str
    scores: dict  # key of the score -> {pair: score, its seeds averaged}


def _rows_of(runs, variants, indices):
    """Teacher and starting student, then every method."""
    rows = []
    for name, which in ((TEACHER, "teacher"), ("student at the start", "student_start")):
        points = starting_points(runs, which)
        figures = {key: {pair: as_number(point.get(key)) for pair, point in points.items()} for key, _ in SCORES}
        known = {key: {pair: x for pair, x in own.items() if x is not None} for key, own in figures.items()}
        rows += [_Row(name, INK, known)] if any(known.values()) else []
    for name in variants:
        own = [run for run in runs if run.variant == name]
        color = PALETTE[indices[name] % len(PALETTE)] if name in indices else UNNAMED
        rows.append(_Row(name, color, {key: repeated(own, key, "pair") for key, _ in SCORES}))
    return rows


def _pairs_panel(runs, variants, indices, axis, width):
    """(SVG elements, height) of a row per method with a point per pair, greedy on the left and sampled on the right.

    A pair keeps its place within all rows, from the first at the top to the last, and a faint line joins its points. A
    thick bar is the 95 % interval over pairs, and the tick on it the mean. `axis` is that of all scores.
    """
    pairs, rows = pairs_of(runs), _rows_of(runs, variants, indices)
    names = [svg.short_name(row.name, 26) for row in rows]
    left, top, step = 24.0 + CHAR_WIDTH * max(map(len, names)), 30.0, 22.0 if len(rows) <= 14 else 17.0
    centres = [top + step * (i + 0.5) for i in range(len(rows))]
    bottom, side = top + step * len(rows), (width - left - 60.0) / 2
    parts = [svg.text(24, 16, "Score of each pair", size=13, extra='font-weight="600"')]
    for name, y in zip(names, centres):
        parts.append(svg.text(left - 8, y + 4, name, anchor="end", extra='class="row"'))
    for number, (key, label) in enumerate(SCORES):
        box = (left + number * (side + 30.0), side, top, bottom)
        parts += _side_of_pairs(rows, centres, key, label, pairs, axis, box)
    what = f"{pairs[0]} to {pairs[-1]}" if pairs == [*range(pairs[0], pairs[-1] + 1)] else ", ".join(map(str, pairs))
    parts.append(svg.text(24, bottom + 52, "A point is a pair, in every row from top to bottom "
                          f"{what if len(what) < 40 else 'in their order'}; a faint line joins a pair's points. Bar "
                          "and tick: 95 % interval over pairs, and mean."))
    return parts, bottom + 62.0


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
    for tick, text in zip(ticks, svg.tick_texts(ticks)):
        parts.append(f'<path d="M{to_x(tick):.1f} {top:.1f}V{bottom:.1f}" stroke="{FAINT}"/>')
        parts.append(svg.text(to_x(tick), bottom + 15, text, anchor="middle"))
    parts.append(f'<path d="M{left:.1f} {bottom:.1f}h{width:.1f}" stroke="{INK}"/>')
    parts.append(svg.text(left + width / 2, bottom + 32, label, anchor="middle"))
    for pair in pairs:
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
