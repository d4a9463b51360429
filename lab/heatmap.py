"""Where the teacher replaces tokens: share of replaced tokens over training steps and position in the response, as heat
maps in SVG, one per method.

    step lines of runs -> replaced_shares: (steps, parts of the response), a mean over runs
                       -> heat_maps: one per method -> map_panels, map_scale: elements

What the teacher does not replace it accepts, so a map of the tokens that are accepted would say the same.
"""

from typing import NamedTuple

import numpy as np

from lab import svg
from lab.reading import as_number
from lab.svg import FAINT, INK

MOST_MAPS = 4  # on one page
LEFT = 52.0  # where plots and scale begin
MOST_COLUMNS = 40  # of a map; neighbouring steps of a longer run share a column
# From a light to a dark colour; lightness falls evenly, so it orders the shares for every kind of colour vision and in
# grey print. The lightest is darker than the page, for an empty cell and a share of zero say different things.
SHADES = ("#DFE9B4", "#8ACBAB", "#3FA4B3", "#2B74AD", "#27438F", "#0E1B4D")
LEVELS = 20  # colours on the scale


class HeatMap(NamedTuple):
    """The replaced tokens of one method."""

    name: str
    edges: np.ndarray  # (C + 1,) steps between which the columns stand
    shares: np.ndarray  # (C, parts) share of replaced tokens, from the first part of the response to the last; or NaN


def replaced_shares(runs):
    """(edges (C + 1,), shares (C, parts)) of the runs of one method; None where no run says where it replaced tokens.

    A share is the mean over runs of `replacement_by_position` at a logged step, NaN where no run has a token. Each
    logged step is a column, which reaches halfway to its neighbours, or of many steps MOST_COLUMNS groups are. A list
    that is shorter than others divides the response in another way and does not count.
    """
    by_step = {}  # step -> a list of shares per run
    for run in runs:
        # A dict: of a step that stands twice, as after a resumed run, the later line counts.
        entries = {entry["step"]: entry for entry in run.steps if entry.get("step") is not None}
        for step, entry in entries.items():
            shares = entry.get("replacement_by_position")
            by_step.setdefault(step, []).append([as_number(x) for x in shares] if isinstance(shares, list) else [])
    parts = max((len(shares) for found in by_step.values() for shares in found), default=0)
    if not parts:
        return None
    groups = np.array_split(sorted(by_step), min(len(by_step), MOST_COLUMNS))
    middles = [(before[-1] + after[0]) / 2 for before, after in zip(groups, groups[1:])]
    columns = []
    for group in groups:
        found = [shares for step in group for shares in by_step[step] if len(shares) == parts]
        found = np.array(found, dtype=np.float64).reshape(-1, parts)  # None becomes NaN
        count = np.isfinite(found).sum(0)
        columns.append(np.where(count > 0, np.nansum(found, 0) / np.maximum(count, 1), np.nan))
    shares = np.stack(columns)
    return (np.array([min(0, groups[0][0]), *middles, groups[-1][-1]]), shares) if np.isfinite(shares).any() else None


def heat_maps(runs, variants):
    """A HeatMap for each method that replaces tokens, from the one with the largest mean share to the one with the
    least; [] if none does. A method that always replaces every token has none: there is nothing to see."""
    found = [(name, replaced_shares([run for run in runs if run.variant == name])) for name in variants]
    maps = [HeatMap(name, *table) for name, table in found if table is not None and np.nanmin(table[1]) < 1]
    return sorted(maps, key=lambda heat: -np.nanmean(heat.shares))


def map_panels(maps, width, height):
    """A list of SVG elements, in a box of width x height, for each of the first MOST_MAPS maps."""
    drawn = maps[:MOST_MAPS]
    begin = min((heat.edges[0] for heat in drawn), default=0)
    end = max([begin + 1, *(heat.edges[-1] for heat in drawn)])
    return [_panel(heat, (begin, end), _ticks(maps)[-1], width, height) for heat in drawn]


def map_scale(maps):
    """(SVG elements, height) of the one scale of colours for all maps, and what it means; ([], 0) without maps."""
    if not maps:
        return [], 0.0
    lines = ["Share of tokens replaced by the teacher, mean over runs.",
             "Position 0: first token; 100: the response budget is used up. White: no token there."]
    if len(maps) > MOST_MAPS:
        lines[0] += f" {MOST_MAPS} of {len(maps)} methods, those that replace most."
    return _scale(_ticks(maps), lines), 52.0


def _ticks(maps):
    return scale_ticks(max(float(np.nanmax(heat.shares)) for heat in maps[:MOST_MAPS]))


def scale_ticks(most):
    """Ticks of the scale of colours, from 0 to a round number that is at least `most`; to 1 if nothing is replaced."""
    ticks = svg.nice_ticks(0.0, most if most > 0 else 1.0, 4)
    return ticks if ticks[-1] >= most * (1 - 1e-9) else [*ticks, len(ticks) * ticks[1]]


def colour(level):
    """The colour of a level from 0 to LEVELS - 1, as #RRGGBB."""
    place = level / (LEVELS - 1) * (len(SHADES) - 1)
    i = min(int(place), len(SHADES) - 2)
    low, high = ([int(shade[c : c + 2], 16) for c in (1, 3, 5)] for shade in SHADES[i : i + 2])
    return "#" + "".join(f"{round(a + (b - a) * (place - i)):02X}" for a, b in zip(low, high))


def _panel(heat, steps, most, width, height):
    """The SVG elements of one map in a box of width x height; `steps` are the ends of its x axis, `most` that of its
    colours."""
    left, right, top, bottom = LEFT, width - 22.0, 30.0, height - 40.0
    title = f"Replaced by the teacher: {svg.short_name(heat.name)}"
    parts = [svg.text(left, 16, title, size=13, extra='font-weight="600" class="map"')]

    def to_x(step):
        return left + (right - left) * (step - steps[0]) / (steps[1] - steps[0])

    def to_y(share_of_response):
        return bottom - (bottom - top) * share_of_response

    cells = {}  # level -> path: one element per colour keeps the file small
    for (begin, end), column in zip(zip(heat.edges, heat.edges[1:]), heat.shares):
        for i, share in enumerate(column):
            if np.isfinite(share):
                low, high = to_y(i / len(column)), to_y((i + 1) / len(column))
                level = min(max(int(share / most * LEVELS), 0), LEVELS - 1)
                path = f"M{to_x(begin):.0f} {low:.0f}H{to_x(end):.0f}V{high:.0f}H{to_x(begin):.0f}Z"
                cells[level] = cells.get(level, "") + path
    # Whole pixels and crisp edges: else the white ground shines through between two cells.
    parts += [f'<path class="cells" d="{path}" fill="{colour(level)}" shape-rendering="crispEdges"/>'
              for level, path in sorted(cells.items())]
    parts.append(f'<path d="M{left:.1f} {top:.1f}H{right:.1f}V{bottom:.1f}H{left:.1f}Z" fill="none" stroke="{FAINT}"/>')
    for percent in (0, 25, 50, 75, 100):
        y = to_y(percent / 100)
        parts.append(f'<path d="M{left - 4:.1f} {y:.1f}h4" stroke="{INK}"/>')
        parts.append(svg.text(left - 7, y + 4, percent, anchor="end"))
    ticks = svg.nice_ticks(*steps, 4, whole=True)
    for tick, text in zip(ticks, svg.tick_texts(ticks)):
        parts.append(f'<path d="M{to_x(tick):.1f} {bottom:.1f}v4" stroke="{INK}"/>')
        parts.append(svg.text(to_x(tick), bottom + 16, text, anchor="middle"))
    parts.append(svg.text((left + right) / 2, bottom + 32, "step", anchor="middle"))
    middle = (top + bottom) / 2
    turned = f'transform="rotate(-90 14 {middle:.1f})"'
    return [*parts, svg.text(14, middle, "position, % of the budget", anchor="middle", extra=turned)]


def _scale(ticks, lines):
    """The SVG elements of the scale of colours, and the lines beside it."""
    left, length = LEFT, 240.0
    one = length / LEVELS
    parts = [f'<path class="scale" d="M{left + i * one:.1f} 4h{one:.1f}v12h-{one:.1f}Z" fill="{colour(i)}" '
             'shape-rendering="crispEdges"/>' for i in range(LEVELS)]
    for tick, text in zip(ticks, svg.tick_texts(ticks)):
        x = left + length * tick / ticks[-1]
        parts.append(f'<path d="M{x:.1f} 16v4" stroke="{INK}"/>')
        parts.append(svg.text(x, 32, text, anchor="middle", extra='class="scale"'))
    return parts + [svg.text(left + length + 32, 12 + 16 * i, line) for i, line in enumerate(lines)]
