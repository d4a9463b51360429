"""Laws of the heat maps: a cell is the mean of the records, what is missing stays empty, one scale holds for all."""

import re
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
from test_report import ROOT, SVG, make_run, marks_of, texts_of

from lab import curves, heatmap, reading, svg

NAN = float("nan")


def replacing(name, of, rows):
    """A run whose step lines say {step: shares by position}."""
    return make_run(name, of, steps=[{"step": step, "replacement_by_position": row} for step, row in rows.items()])


def drawn(runs, variants):
    """All maps, one below the other, and their scale."""
    maps = heatmap.heat_maps(runs, variants)
    panels = [svg.moved(0, 250.0 * i, panel) for i, panel in enumerate(heatmap.map_panels(maps, 960.0, 244.0))]
    return svg.document(960, 1100, "", [*sum(panels, []), *svg.moved(0, 1000.0, heatmap.map_scale(maps)[0])])


def cells_of(page):
    """[{(left, right, bottom, top): colour}] of every map, in pixels of its group."""
    maps = []
    for group in ElementTree.fromstring(page).iter(SVG + "g"):
        found = {}
        for element in group:
            if element.get("class") == "cells":
                for path in element.get("d").split("Z")[:-1]:
                    left, bottom, right, top, _ = map(int, re.findall(r"\d+", path))
                    found[left, right, bottom, top] = element.get("fill")
        maps += [found] if found else []
    return maps


def test_a_cell_is_the_mean_of_the_records():
    """Three runs at two steps, in quarters: the mean over the runs that have a token there, in columns that meet
    halfway; where none has, and where the figure is null or absent, the cell is empty, which is not zero."""
    runs = [
        replacing("skd", 1, {1: [0.5, 0.0, None, None], 11: [0.25, None, None, 0.0]}),
        replacing("skd", 2, {1: [0.1, 0.0, 0.2, None], 11: [0.75, None, 0.5, 0.0], 31: None}),
        replacing("skd", (2, 1), {1: [0.3, 0.3, None, None], 11: [0.5, None, 1.0, 0.0]}),
    ]
    edges, shares = heatmap.replaced_shares(runs)
    assert edges.tolist() == [0, 6, 21, 31]
    wanted = [[0.3, 0.1, 0.2, NAN], [0.5, NAN, 0.75, 0.0], [NAN] * 4]
    np.testing.assert_allclose(shares, wanted)
    (cells,) = cells_of(drawn(runs, ["skd"]))
    left, right, bottom, top = 52, 938, 204, 30  # of the plot
    xs = [round(left + (right - left) * edge / 31) for edge in (0, 6, 21, 31)]
    ys = [round(bottom - (bottom - top) * i / 4) for i in range(5)]
    # The scale ends at .8, the first round number from .75 on, and has 20 colours: .04 each.
    levels = {(0, 0): 7, (0, 1): 2, (0, 2): 5, (1, 0): 12, (1, 2): 18, (1, 3): 0}
    assert cells == {
        (xs[c], xs[c + 1], ys[i], ys[i + 1]): heatmap.colour(level) for (c, i), level in levels.items()
    }, "first tokens are at the bottom, the first step at the left, and an empty cell is not drawn"


def test_the_committed_map_is_the_mean_of_its_records():
    """Real records of one study, added up line by line."""
    runs = reading.read_records(ROOT / "results" / "rates")
    runs = [run for run in runs if run.steps[-1].get("replacement_by_position")]
    assert runs
    for name in {run.variant for run in runs}:
        own = [run for run in runs if run.variant == name]
        _, shares = heatmap.replaced_shares(own)
        for c, entries in enumerate(zip(*(run.steps for run in own), strict=True)):
            for i in range(8):
                found = [x for entry in entries if (x := entry["replacement_by_position"][i]) is not None]
                assert shares[c, i] == pytest.approx(sum(found) / len(found)) if found else np.isnan(shares[c, i])


def test_the_later_line_of_a_step_counts():
    """A resumed run logs a step again, and its later line is the run's."""
    run = make_run("skd", steps=[{"step": 1, "replacement_by_position": [x]} for x in (0.9, 0.1)])
    assert heatmap.replaced_shares([run])[1].tolist() == [[0.1]]


def test_many_steps_share_columns():
    """400 logged steps: 40 columns of ten steps each, which hold their mean and meet between two steps."""
    edges, shares = heatmap.replaced_shares([replacing("skd", 1, {s: [s / 1000] for s in range(1, 401)})])
    assert shares[:, 0] == pytest.approx([(10 * c + 5.5) / 1000 for c in range(40)])
    assert edges.tolist() == [0, *(10 * c + 0.5 for c in range(1, 40)), 400]


@pytest.mark.parametrize("most, ends", [(0.75, "0.8"), (0.083, "0.100"), (0.1, "0.100"), (1.0, "1.00"), (0.0, "1.00")])
def test_the_scale_goes_from_zero_to_a_round_number(most, ends):
    """From 0, in its lightest colour, to the first tick that no share is above, in its darkest; to 1 if all are 0."""
    page = drawn([replacing("skd", 1, {1: [most, 0.0]})], ["skd"])
    ticks = [text for text, _, _ in texts_of(page, "scale")]
    assert float(ticks[0]) == 0 and ticks[-1] == ends and 3 <= len(ticks) <= 6
    steps = np.diff([float(text) for text in ticks])
    assert steps == pytest.approx(steps[0])
    bar = [element.get("fill") for element, _, _ in marks_of(page, "scale") if element.tag == SVG + "path"]
    assert bar == [heatmap.colour(i) for i in range(heatmap.LEVELS)]
    assert (bar[0], bar[-1]) == (heatmap.SHADES[0], heatmap.SHADES[-1])


def test_colours_are_told_apart_by_lightness_alone():
    """CIE lightness falls from level to level by a visible amount, so hue is not needed; zero is darker than the white
    of an empty cell."""

    def lightness(colour):
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
        return 116 * np.dot(linear, (0.2126, 0.7152, 0.0722)) ** (1 / 3) - 16

    falls = -np.diff([lightness("#FFFFFF"), *(lightness(heatmap.colour(i)) for i in range(heatmap.LEVELS))])
    assert falls[0] > 8 and falls[1:].min() > 3 and falls[1:].max() < 6


def names_of(page):
    return [text.removeprefix("Replaced by the teacher: ") for text, _, _ in texts_of(page, "map")]


def test_one_scale_holds_for_all_maps():
    """The same share has the same colour in every map, also where another method replaces far more."""
    runs = [replacing("less", 1, {1: [0.1, 0.2]}), replacing("most", 1, {1: [0.1, 1.0]})]
    page = drawn(runs, ["less", "most"])
    assert names_of(page) == ["most", "less"]
    most, less = [{cell[2]: colour for cell, colour in found.items()} for found in cells_of(page)]
    assert most[204] == less[204] == heatmap.colour(2) and most[117] == heatmap.colour(19)
    assert less[117] == heatmap.colour(4)


def test_none_one_and_more_than_four_methods():
    """Methods without the figure have no map; of six with it the four that replace most, most first, and a line says
    so; ties stay in the order of the methods."""
    silent = [make_run("sft"), replacing("on_policy", 1, {1: None}), replacing("odd", 1, {1: [None, None], 21: []})]
    assert heatmap.heat_maps(silent, ["sft", "on_policy", "odd"]) == []
    assert heatmap.map_panels([], 960.0, 244.0) == [] and heatmap.map_scale([]) == ([], 0.0)
    one = [*silent, replacing("skd", 1, {1: [0.1]})]
    assert names_of(drawn(one, ["sft", "on_policy", "odd", "skd"])) == ["skd"]
    shares = {"a": 0.1, "b": 0.5, "c": 0.0, "d": 0.2, "e": 0.2, "f": 0.9}
    many = [replacing(name, 1, {1: [share]}) for name, share in shares.items()]
    page = drawn(many, list(shares))
    assert names_of(page) == ["f", "b", "d", "e"] and "4 of 6 methods, those that replace most.<" in page
    assert names_of(drawn(many[:4], list(shares))) == ["b", "d", "a", "c"]
    assert "methods" not in drawn(many[:4], list(shares))


def test_a_teacher_that_writes_every_token_has_no_map():
    """It would be of one colour, and the scale of the others would end at 1."""
    runs = [replacing("teacher", 1, {1: [1.0, 1.0], 21: [1.0, None]}), replacing("skd", 1, {1: [0.1, 0.2]})]
    page = drawn(runs, ["teacher", "skd"])
    assert names_of(page) == ["skd"] and texts_of(page, "scale")[-1][0] == "0.20"
    assert heatmap.heat_maps(runs[:1], ["teacher"]) == []
    assert len(heatmap.heat_maps([replacing("nearly", 1, {1: [1.0, 0.99]})], ["nearly"])) == 1


def test_a_title_stays_on_its_map():
    """The longest name that stays as it is, in bold letters of 8 pixels."""
    page = drawn([replacing("w" * 20, 1, {1: [0.1]})], ["w" * 20])
    (title,) = [text for text, _, _ in texts_of(page, "map")]
    assert title.endswith(" " + "w" * 20) and heatmap.LEFT + 8 * len(title) < curves.PANEL


def test_names_are_text_and_values_are_checked():
    """Markup in a name is text, and a long one is cut; what cannot be a share is an empty cell or an end of the scale;
    all texts stand inside of the picture."""
    odd = {1: [0.5, "x", NAN, 1e300], 2: "abcd", 3: [0.5], 4: {"a": 1}, 5: [-3.0, True, None, 0.5], None: [1.0] * 4}
    runs = [replacing("<a & 'b' \"c\"\x01>", 1, odd), replacing("x" * 300, 1, {7: [0.1]})]
    page = drawn(runs, [run.variant for run in runs])
    assert names_of(page)[1] == "<a & 'b' \"c\">" and len(names_of(page)[0]) <= 20 and "nan" not in page
    assert [len(cells) for cells in cells_of(page)] == [1, 3]
    for element, dx, dy in [mark for css in ("map", "scale", None) for mark in marks_of(page, css)]:
        if element.tag == SVG + "text":
            assert 0 < dx + float(element.get("x")) < 960 and 0 < dy + float(element.get("y")) < 1100


def test_a_map_has_ticks_at_whole_steps():
    """A run of two steps has no half ones."""
    page = drawn([replacing("skd", 1, {1: [0.1], 2: [0.2]})], ["skd"])
    texts = [element.text for element, _, _ in marks_of(page, None) if element.tag == SVG + "text"]
    assert {"0", "1", "2"} <= set(texts) and not {"0.5", "1.5"} & set(texts)


@pytest.mark.parametrize("methods", [1, 2, 3])
def test_the_page_shows_the_maps_behind_the_curves(methods):
    """The maps go on where the panels end, beside the last one if there is room, with their scale below; without
    replaced tokens the page says and holds nothing of them."""
    evals = [{"step": step, "score": step / 100, "score_sampled": 0.1, "val_nll": 1.0} for step in (0, 50)]
    rows = {step: [0.1, None] for step in (1, 21, 50)}
    runs = [replacing(f"m{i}", 1, rows)._replace(evals=evals) for i in range(methods)]
    page = curves.curves_page([make_run("sft", evals=evals), *runs])
    root = ElementTree.fromstring(page)
    groups = root.findall(SVG + "g")
    groups = [(*map(float, group.get("transform")[len("translate(") : -1].split()), group) for group in groups]
    panels = [(x, y) for x, y, group in groups if group.find(f"{SVG}path[@class='line']") is not None]
    maps = [(x, y) for x, y, group in groups if group.find(f"{SVG}path[@class='cells']") is not None]
    (scale,) = [y for _, y, group in groups if group.find(f"{SVG}path[@class='scale']") is not None]
    assert len(panels) == 3 and len(maps) == methods
    assert maps[0] == (panels[1][0], panels[2][1]), "beside the third panel"
    places = panels + maps
    assert places == sorted(places, key=lambda place: place[::-1]) and len(set(places)) == len(places)
    assert scale > max(y for _, y in places) and scale + 40 < float(root.get("height"))
    without = [run._replace(steps=[]) for run in runs]
    assert curves.curves_page(without) == curves.curves_page([run._replace(steps=[{"step": 1}]) for run in runs])
    assert "Replaced by the teacher" in page and "Replaced by" not in curves.curves_page(without)
    assert "no curves" not in curves.curves_page([run._replace(evals=[]) for run in runs])
