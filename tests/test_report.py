"""Laws of the report: intervals against the t density itself, pairing, order of rows, readable and valid SVG."""

import itertools
import json
import lzma
import math
import os
import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np
import pytest

import catalogue
import train_okd
import train_skd
from lab import (
    archive,
    curves,
    folders,
    pages,
    reading,
    records,
    report,
    statistics,
    svg,
    tables,
)

ROOT = Path(__file__).parents[1]
VARIANTS = ["sft", "supervised", "seqkd", "on_policy", "imitkd", "gkd", "two_stage", "skd"]
SVG = "{http://www.w3.org/2000/svg}"


def make_lines(variant, seed, budget="steps", order=None, pair=1, **final):
    """The lines of one made-up record: the score falls with the place in VARIANTS and changes with pair and seed."""
    order = VARIANTS.index(variant) if order is None and variant in VARIANTS else order or 0
    generator = np.random.default_rng([order, seed, budget == "steps", pair])
    score = round(0.9 - 0.1 * order + 0.01 * seed - 0.02 * pair + 0.005 * float(generator.normal()), 4)
    lines = [{"kind": "header", "format": records.FORMAT, "script": "train_skd", "variant": variant, "pair": pair,
              "fingerprint": f"{pair}a", "seed": seed, "budget": budget, "order": order, "device": "cpu",
              "task": "math", "teacher": {"score": 0.9, "score_sampled": 0.8, "val_nll": 0.3, "kl_teacher": None},
              "student_start": {"score": 0.02, "val_nll": 1.5, "kl_teacher": 0.8}}]
    for step in range(0, 101, 20):
        fade = math.exp(-step / 40)
        if variant in ("two_stage", "skd"):
            lines.append({"kind": "step", "step": step, "loss": 1.0, "replacement_rate": 0.02 + 0.1 * fade})
        risen = score * (1 - fade)
        lines.append({"kind": "eval", "step": step, "score": risen, "score_sampled": risen / 2,
                      "val_nll": 0.4 + fade + 0.02 * order, "kl_teacher": 0.01 + fade})
    figures = {"score": score, "score_sampled": score / 2, "val_nll": 0.4, "kl_teacher": 0.0123, "kl_on_policy": 0.02,
               "accept_rate": 0.97, "draft_accept_rate": None, "seconds": 31.4, "tokens_generated": 1234567,
               "teacher_forwards": 600, "compute": 12.96}
    return lines + [{"kind": "final", **figures, **final}]


def record(lines):
    """The text of a whole record."""
    return records.with_checksum("\n".join(map(json.dumps, lines))) + "\n"


def write_records(folder, variants=VARIANTS, seeds=5, budgets=("steps",), pairs=1, **final):
    """Records of so many pairs and seeds per pair; those of the first pair do not say so in their names."""
    for variant, pair, seed in itertools.product(variants, range(1, pairs + 1), range(1, seeds + 1)):
        for budget in budgets:
            name = f"{variant}{f'_pair{pair}' if pair > 1 else ''}_seed{seed}_{budget}"
            (folder / f"{name}.jsonl").write_text(record(make_lines(variant, seed, budget, pair=pair, **final)))
    return folder


def make_run(variant, of=1, budget="steps", header=(), steps=(), evals=(), **final):
    """One run without a record; `of` is its seed, from pair 1, or (pair, seed)."""
    pair, seed = of if isinstance(of, tuple) else (1, of)
    header = {"variant": variant} | dict(header)
    return reading.Run(variant, pair, seed, budget, header, list(steps), list(evals), [], {"kind": "final"} | final)


def make_runs(scores, budget="steps"):
    """Runs from {variant: {seed or (pair, seed): score}}, in that order and without curves."""
    return [make_run(variant, of, budget, score=score)
            for variant, found in scores.items() for of, score in found.items()]


def table_rows(text, heading):
    """{first cell: {column: cell}} of the Markdown tables before the raw values whose first
    column is called heading."""
    merged = {}
    for table in text.split("<details>")[0].split("\n\n"):
        if table.startswith("| " + heading):
            columns, _, *rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]
            for row in rows:
                merged.setdefault(row[0], {}).update(zip(columns, row))
    assert merged, f"no table with a first column {heading}"
    return merged


# -------------------------------------------------------------------------------------------------------- intervals


def test_t_quantiles_leave_2_5_percent_above():
    """For every n, the t density integrates to .475 from 0 to the quantile (Simpson's rule on Gamma functions)."""
    for freedom in [*range(1, 30), 30, 35, 60, 200]:
        quantile = statistics._t_quantile(freedom)
        x = np.linspace(0.0, quantile, 20001)
        log_scale = math.lgamma((freedom + 1) / 2) - math.lgamma(freedom / 2) - 0.5 * math.log(freedom * math.pi)
        density = np.exp(log_scale - (freedom + 1) / 2 * np.log1p(x**2 / freedom))
        area = (x[1] - x[0]) / 3 * (density[0] + density[-1] + 4 * density[1:-1:2].sum() + 2 * density[2:-1:2].sum())
        assert abs(area - 0.475) < 2e-7, freedom
    assert len(statistics.T_975) == 29


def test_two_values_closed_form():
    """For n = 2 the quantile is tan(.475 pi) = 12.706 and the half width that times half the distance."""
    mean, half_width = statistics.student_t_interval([0.2, 0.6])
    assert mean == pytest.approx(0.4)
    assert half_width == pytest.approx(math.tan(0.475 * math.pi) * 0.2, rel=1e-6)
    assert half_width == pytest.approx(12.706 * 0.2, rel=1e-4)


def test_one_value_has_no_interval():
    assert statistics.student_t_interval([0.3]) == (0.3, None)


def test_other_levels_are_refused():
    with pytest.raises(ValueError, match="0.9 is not tabulated"):
        statistics.student_t_interval([1.0, 2.0], level=0.9)


def test_interval_covers_the_mean_in_95_of_100_experiments():
    """2,000 experiments of 3 normal draws each cover the true mean 95 % of the time, within 4 standard errors."""
    draws = np.random.default_rng(0).normal(1.0, 2.0, (2000, 3))
    covered = 0
    for row in draws:
        mean, half_width = statistics.student_t_interval(row)
        covered += abs(mean - 1.0) <= half_width
    assert abs(covered / 2000 - 0.95) < 4 * math.sqrt(0.95 * 0.05 / 2000)


def test_pairing_is_by_seed_and_not_by_position():
    """Whatever a seed does to both methods cancels; order of the runs and seeds of only one method do not matter."""
    luck = {1: 0.1, 2: 0.5, 3: 0.9, 4: 0.3}
    a = make_runs({"a": {seed: luck[seed] + 0.05 for seed in (3, 1, 2)}})
    b = make_runs({"b": {seed: luck[seed] for seed in (1, 2, 3, 4)}})
    difference = statistics.paired_difference(a, b, "score", "seed")
    assert difference.mean == pytest.approx(0.05)
    assert difference.half_width == pytest.approx(0.0, abs=1e-12)
    assert (difference.n, difference.positive) == (3, 3)
    back = statistics.paired_difference(b, a, "score", "seed")
    assert (back.mean, back.positive) == (pytest.approx(-0.05), 0)


def test_pairs_without_a_figure_are_dropped():
    a, b = make_runs({"a": {1: 0.5, 2: None, 3: 0.4}}), make_runs({"b": {1: 0.2, 2: 0.1, 3: math.nan}})
    found = statistics.paired_difference(a, b, "score", "seed")
    assert found == statistics.PairedDifference(pytest.approx(0.3), None, 1, 1, None)
    found = statistics.paired_difference(a, [], "score", "seed")
    assert found == statistics.PairedDifference(None, None, 0, 0, None)


def test_equal_scores_are_not_positive():
    found = statistics.paired_difference(*[make_runs({"a": {1: 0.5, 2: 0.5}})] * 2, "score", "seed")
    assert (found.positive, found.p_value) == (0, 1.0)


def test_t_distribution_closed_forms():
    """With one degree of freedom the arcus tangens, with two an algebraic function, with many the normal one; and the
    usual tables."""
    for t in (-40.0, -2.0, -0.3, 0.0, 0.5, 1.0, 3.0, 1000.0):
        assert statistics.student_t_cdf(t, 1) == pytest.approx(0.5 + math.atan(t) / math.pi, rel=1e-11)
        assert statistics.student_t_cdf(t, 2) == pytest.approx(0.5 + t / (2 * math.sqrt(2 + t * t)), rel=1e-9)
        assert statistics.student_t_cdf(t, 5) + statistics.student_t_cdf(-t, 5) == pytest.approx(1, abs=1e-15)
    for freedom, quantile in enumerate(statistics.T_975, start=1):
        assert statistics.student_t_cdf(quantile, freedom) == pytest.approx(0.975, abs=1e-7)
    printed = ((7, 0.95, 1.894579), (7, 0.995, 3.499483), (10, 0.9, 1.372184), (4, 0.999, 7.173182))
    for freedom, level, quantile in (*printed, (10**7, 0.975, 1.959964)):
        assert statistics.student_t_cdf(quantile, freedom) == pytest.approx(level, abs=1e-6)
    assert statistics.student_t_cdf(-1e9, 1) == pytest.approx(1 / (math.pi * 1e9), rel=1e-9)  # tails keep their digits


def test_incomplete_beta_is_the_integral():
    """For whole numbers a polynomial; both sides of the mean agree with one less the mirrored one."""
    for x in (0, 0.01, 0.3, 0.4, 0.41, 0.9, 1):
        assert statistics.incomplete_beta(x, 2, 3) == pytest.approx(6 * x**2 - 8 * x**3 + 3 * x**4, abs=1e-14)
        arc = 2 / math.pi * math.asin(math.sqrt(x))
        assert statistics.incomplete_beta(x, 0.5, 0.5) == pytest.approx(arc, abs=1e-14)


def test_t_test_agrees_with_the_interval():
    """Two values: the closed form. Any values: below .05 where the 95 % interval leaves out 0, and nowhere else."""
    for one, other in ((0.1, 0.3), (-0.2, 0.5), (0.0, 1.0)):
        t = abs(one + other) / abs(one - other)  # mean over standard error
        assert statistics.t_test([one, other]) == pytest.approx(1 - 2 / math.pi * math.atan(t), abs=1e-12)
    generator = np.random.default_rng(0)
    for n in (2, 3, 5, 8, 30, 31, 50):
        for values in generator.normal(2.5 / math.sqrt(n), 1, (40, n)):
            mean, half_width = statistics.student_t_interval(values)
            assert (statistics.t_test(values) < 0.05) == (abs(mean) > half_width)
    assert statistics.t_test([0.3]) is None
    assert (statistics.t_test([0.0, 0.0]), statistics.t_test([0.25, 0.25])) == (1, 0)


def test_holm_by_hand():
    """The smallest of m times m, the next times m - 1, never below the one before it, never above 1, each in its
    place."""
    assert statistics.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert statistics.holm([0.03]) == [0.03] and statistics.holm([]) == []
    assert statistics.holm([0.7, 0.6]) == [1.0, 1.0] and statistics.holm([0.0, 0.0]) == [0, 0]
    found = np.random.default_rng(0).random(20) ** 3
    corrected = np.array(statistics.holm(list(found)))
    assert (np.diff(corrected[np.argsort(found)]) >= 0).all() and (corrected >= found).all()
    assert (corrected <= np.minimum(1, 20 * found)).all()  # never stricter than Bonferroni's correction


UNEVEN = {
    "a": {(4, 1): 0.2, (4, 2): 0.3, (4, 3): 0.4, (9, 1): 0.7},
    "b": {(4, 2): 0.1, (4, 3): 0.2, (9, 1): 0.1, (9, 2): 0.9},
}


def test_seeds_of_a_pair_are_averaged_first():
    """A pair with three seeds weighs as much as one with one: .3 and .7 have mean .5, not .4."""
    runs = make_runs(UNEVEN)
    assert statistics.unit_of(runs) == "pair"
    assert statistics.repeated(runs[:4], "score", "pair") == {4: pytest.approx(0.3), 9: pytest.approx(0.7)}
    half_width = 12.706205 * 0.2  # t(1) times half of the distance
    row = table_rows(tables.render_table(runs), "method")["a"]
    assert (row["pairs"], row["seeds"], row["score (greedy)"]) == ("2", "1 to 3", f"0.500 ± {half_width:.3f}")
    entry = tables.summary(runs)["variants"]["a"]
    assert [entry[end]["score"] for end in ("low", "mean", "high")] == pytest.approx(
        [0.5 - half_width, 0.5, 0.5 + half_width])
    assert entry["mean"]["score_sampled"] is entry["low"]["score_sampled"] is None
    assert [(run["pair"], run["seed"]) for run in entry["runs"]] == [(4, 1), (4, 2), (4, 3), (9, 1)]


def test_differences_are_paired_by_pair():
    """Of a pair the seeds that both have count, averaged: pair 4 (.2 + .2) / 2, pair 9 .6; a pair that only one method
    has does not."""
    runs = make_runs(UNEVEN) + make_runs({"a": {(11, 1): 0.0}})
    a, b = ([run for run in runs if run.variant == variant] for variant in "ab")
    difference = statistics.paired_difference(a, b, "score", "pair")
    assert (difference.mean, difference.n, difference.positive) == (pytest.approx(0.4), 2, 2)
    assert difference.half_width == pytest.approx(12.706205 * 0.2)
    assert difference.p_value == pytest.approx(1 - 2 / math.pi * math.atan(0.4 / 0.2))
    back = statistics.paired_difference(b, a, "score", "pair")
    assert (back.mean, back.positive, back.p_value) == (pytest.approx(-0.4), 0, pytest.approx(difference.p_value))
    rows = table_rows(tables.render_table(runs, "b", "a"), "a minus")
    assert rows["b"]["score (greedy)"] == "+0.400 ± 2.541, 2 of 2 positive"
    assert table_rows(tables.render_table(runs, "b"), "method")["a"]["Δ score to b"] == "+0.400 ± 2.541 (n = 2)"


def test_many_seeds_of_one_pair_are_no_pairs():
    """Where the table is about pairs, a method that has one of them has no interval, however many its seeds are."""
    runs = make_runs({"a": {(1, 1): 0.2, (2, 1): 0.4}, "b": {(1, 1): 0.1, (1, 2): 0.3, (1, 3): 0.5}})
    text = tables.render_table(runs, "a", "b")
    row = table_rows(text, "method")["b"]
    assert (row["score (greedy)"], row["Δ score to a"], row["pairs"], row["seeds"]) == ("0.300", "-0.100", "1", "3")
    assert table_rows(text, "b minus")["a"]["score (greedy)"] == "-0.100, 0 of 1 positive"
    entry = tables.summary(runs)["variants"]["b"]
    assert entry["mean"]["score"] == pytest.approx(0.3) and entry["low"]["score"] is entry["high"]["score"] is None
    assert "- b has 3 of 4 runs: differences pair the runs that both have." in text


@pytest.mark.parametrize("seeds", [1, 3])
def test_the_number_of_a_pair_changes_no_figure(tmp_path, seeds):
    """The only pair may have any number: intervals are over its seeds, as its records alone would say."""
    runs = reading.read_records(write_records(tmp_path, ["supervised", "skd"], seeds))
    moved = [run._replace(pair=117) for run in runs]
    one, other = (tables.render_table(some).split("<details>")[0] for some in (runs, moved))
    assert one == other and ("±" in one) == (seeds > 1) and "mean" not in tables.summary(moved)["variants"]["skd"]
    assert curves.curves_page(runs) == curves.curves_page(moved)


def test_low_mean_and_high_are_in_order(tmp_path):
    """Of every method of a study with several pairs, of both scores."""
    report.write_report(write_records(tmp_path, seeds=2, pairs=3))
    found = json.loads((tmp_path / "summary.json").read_text())
    assert [start["pair"] for start in found["pairs"]] == [1, 2, 3] and len(found["variants"]) == 8
    for entry in found["variants"].values():
        for key in ("score", "score_sampled"):
            low, mean, high = (entry[end][key] for end in ("low", "mean", "high"))
            own = [np.mean([run[key] for run in entry["runs"] if run["pair"] == pair]) for pair in (1, 2, 3)]
            assert low < mean < high and mean == pytest.approx(np.mean(own)) and min(own) <= mean <= max(own)
            assert high - low == pytest.approx(2 * 4.302653 * np.std(own, ddof=1) / math.sqrt(3))


# ---------------------------------------------------------------------------------------------------------- records


def test_read_gives_back_what_was_written(tmp_path):
    """Every run of 8 methods x 5 seeds comes back with its lines in order."""
    runs = reading.read_records(write_records(tmp_path))
    assert len(runs) == 40
    run = next(run for run in runs if (run.variant, run.seed) == ("skd", 3))
    assert [run.header, *sorted(run.steps + run.evals, key=lambda line: (line["step"], line["kind"] == "eval")),
            run.final] == make_lines("skd", 3)
    assert run.budget == "steps"


def test_rollouts_and_the_untouched_student_are_kept(tmp_path):
    """Lines of kind "rollout" are the run's rollouts, in their order, and step 0 is the first evaluation; the pictures
    and tables of a run with rollouts are those of one without."""
    header, *others, final = make_lines("skd", 2, pair=12)
    told = [{"kind": "rollout", "step": step, "tokens": [3, 1, 4], "likeliest": [[1, 2]]} for step in (0, 50, 100)]
    (tmp_path / "x.jsonl").write_text(record([header, *told[:1], *others, *told[1:], final]))
    run, = reading.read_records(tmp_path)
    assert (run.pair, run.seed, run.rollouts) == (12, 2, told)
    assert [entry["step"] for entry in run.evals] == [0, 20, 40, 60, 80, 100]
    bare = report.render_report(tmp_path)
    (tmp_path / "x.jsonl").write_text(record([header, *others, final]))
    assert report.render_report(tmp_path) == bare
    report.pack(tmp_path)
    assert reading.read_records(tmp_path) == [run._replace(rollouts=[])]


def test_one_seed_may_stand_once_in_every_pair(tmp_path):
    """A run is known by method, pair, seed and budget: seed 1 of two pairs is two runs, of one pair one too many."""
    write_records(tmp_path, ["skd"], 1, ("steps", "compute"), pairs=2)
    keys = [(run.variant, run.pair, run.seed, run.budget) for run in reading.read_records(tmp_path)]
    assert len(set(keys)) == len(keys) == 4
    (tmp_path / "again.jsonl").write_text(record(make_lines("skd", 1, pair=2)))
    with pytest.raises(ValueError, match=r"both hold skd pair 2 seed 1 \(budget steps\): move one of them away"):
        reading.read_records(tmp_path)


@pytest.mark.parametrize("format", [1, records.FORMAT - 1, records.FORMAT + 1])
def test_records_of_another_format_are_refused_by_the_program(tmp_path, format):
    """One line that says the format, whether the records are loose or packed, and nothing is written."""
    header, *others = make_lines("skd", 1)
    header["format"] = format
    if format == 1:  # had none written in it
        del header["format"]
    text = record([header, *others])
    (tmp_path / "skd.jsonl").write_text(text)
    for name in ("skd.jsonl", archive.PACKED):
        line = stopped([tmp_path])
        assert f"{tmp_path / name}, line 1 is of format {format}, this code writes format {records.FORMAT}" in line
        assert [path.name for path in tmp_path.iterdir()] == [name]
        (tmp_path / "skd.jsonl").unlink(missing_ok=True)
        (tmp_path / archive.PACKED).write_bytes(archive.packed([text.encode()]))


@pytest.mark.parametrize("broken", ['{"kind": "step", "ste', "not json", "[1, 2]", '{"step": 3}', b"\xff\xfe{}"])
def test_broken_line_names_file_and_line(tmp_path, broken):
    """A line that cannot be read inside a record is one line of error text, with file name and line number."""
    lines = [json.dumps(line).encode() for line in make_lines("skd", 1)]
    lines[3] = broken if isinstance(broken, bytes) else broken.encode()
    (tmp_path / "skd_seed1.jsonl").write_bytes(b"\n".join(lines) + b"\n")
    with pytest.raises(ValueError, match=r"skd_seed1\.jsonl, line 4 ") as error:
        reading.read_records(tmp_path)
    assert "\n" not in str(error.value)


def test_every_cut_of_a_record_is_unfinished_and_never_an_error(tmp_path):
    """Wherever an interruption cuts the newest record, the run is left out and named, and all others still count."""
    write_records(tmp_path, ["sft"], seeds=2)
    text = record(make_lines("skd", 1)).encode()
    whole = len(text) - 1  # without the last newline the final line is still whole
    for cut in [0, 1, 40, *range(50, whole, 97), whole - 1]:
        (tmp_path / "skd_seed1.jsonl").write_bytes(text[:cut])
        runs, unfinished = reading.read_runs(tmp_path)
        assert [run.variant for run in runs] == ["sft", "sft"], cut
        assert len(unfinished) == 1 and "skd_seed1.jsonl" in unfinished[0], cut
    assert "stopped at step 100" in unfinished[0]
    assert "unfinished: skd_seed1.jsonl, stopped at step 100" in report.write_report(tmp_path)
    (tmp_path / "skd_seed1.jsonl").write_bytes(text[:whole])
    assert len(reading.read_records(tmp_path)) == 3


def test_garbage_after_a_finished_run_is_an_error(tmp_path):
    """Behind a final line nothing can be half written, with or without a newline."""
    text = record(make_lines("skd", 1))
    for garbage in ('{"kind": "st', '{"kind": "step", "step": 1}'):
        (tmp_path / "skd_seed1.jsonl").write_text(text + garbage)
        with pytest.raises(ValueError, match=f"line {text.count(chr(10)) + 1} "):
            reading.read_records(tmp_path)


def test_a_changed_digit_is_refused(tmp_path):
    """Another digit anywhere in a finished record, its seal included, and its figures go into no table:
    one line says so."""
    text, path = record(make_lines("skd", 1)), tmp_path / "skd_seed1.jsonl"
    places = [place for place, character in enumerate(text) if character.isdigit()]
    for place in places[::5]:
        path.write_text(f"{text[:place]}{(int(text[place]) + 1) % 10}{text[place + 1:]}")
        # 100 may become 000.
        with pytest.raises(ValueError, match=r"holds no checksum .*--resume|is not JSON|is of format") as error:
            reading.read_records(tmp_path)
        assert "\n" not in str(error.value)
    path.write_text(text)
    assert len(reading.read_records(tmp_path)) == 1


@pytest.mark.parametrize("change, complaint", [
    (dict(seed="one"), "line 1 is a header with variant 'skd', pair 1, seed 'one'"),
    (dict(pair="6d5e6f92"), "line 1 is a header with variant 'skd', pair '6d5e6f92', seed 1 "),
    (dict(pair=None), "pair None"),
    (dict(pair=True), "pair True"),
    (dict(format=records.FORMAT - 1), rf"line 1 is of format {records.FORMAT - 1}, this code writes"),
    (dict(format=None), "line 1 is of format None, this code writes"),
    (dict(variant=None), "line 1 is a header with variant None"),
    (dict(budget="time"), "budget 'time'"),
    (dict(kind="step"), "line 1 is a step line outside of a run"),
    (dict(task="translation"), "mixes the tasks math, translation"),
    (dict(variant="sft"), "both hold sft pair 1 seed 1"),
])
def test_records_that_do_not_fit_are_refused(tmp_path, change, complaint):
    """What would make the table wrong (two tasks, one run twice, no method named) stops with its reason."""
    write_records(tmp_path, ["sft"], seeds=1)
    header, *others = make_lines("skd", 1)
    (tmp_path / "x.jsonl").write_text(record([{**header, **change}, *others]))
    with pytest.raises(ValueError, match=complaint):
        reading.read_records(tmp_path)


def test_nothing_to_report_says_what_to_do(tmp_path):
    with pytest.raises(ValueError, match="holds no finished run .no .jsonl file.: let train_skd.py"):
        report.write_report(tmp_path)
    (tmp_path / "skd.jsonl").write_text("")
    with pytest.raises(ValueError, match="no finished run .skd.jsonl, without a header."):
        report.write_report(tmp_path)
    with pytest.raises(ValueError, match="is not a folder"):
        report.write_report(tmp_path / "nowhere")


# ----------------------------------------------------------------------------------------------------------- tables


def test_rows_keep_the_order_of_the_methods(tmp_path):
    """Teacher, starting student, then the order of the headers (file names and scores say otherwise) or of `order`."""
    runs = reading.read_records(write_records(tmp_path))
    first_two = ["teacher", "student at the start"]
    assert list(table_rows(tables.render_table(runs), "method")) == first_two + VARIANTS
    backwards = VARIANTS[::-1]
    assert list(table_rows(tables.render_table(runs, order=backwards), "method")) == first_two + backwards
    bare = make_runs({"b": {1: 0.1}, "c": {1: 0.9}, "a": {1: 0.5}})  # no "order": first appearance
    assert list(table_rows(tables.render_table(bare), "method")) == ["b", "c", "a"]
    assert list(table_rows(tables.render_table(bare, order=["a"]), "method")) == ["a", "b", "c"]
    for order in (["c", "a", "b"], ["c"]):  # the header's own list; who is not in it comes after
        listed = [run._replace(header={"order": order}) for run in bare]
        assert list(table_rows(tables.render_table(listed), "method")) == (order + ["b", "a"])[:3]


def test_cells_are_the_figures_of_the_records(tmp_path):
    """The cells of the main table by hand: mean and half width, paired difference, units, '-' for None."""
    runs = reading.read_records(write_records(tmp_path))
    rows = table_rows(tables.render_table(runs, control="supervised"), "method")
    scores = {v: [r.final["score"] for r in runs if r.variant == v] for v in ("skd", "supervised")}
    mean, half_width = statistics.student_t_interval(scores["skd"])
    skd = rows["skd"]
    assert skd["score (greedy)"] == f"{mean:.3f} ± {half_width:.3f}"
    delta, delta_half = statistics.student_t_interval(np.subtract(scores["skd"], scores["supervised"]))
    assert skd["Δ score to supervised"] == f"{delta:+.3f} ± {delta_half:.3f}"
    assert rows["supervised"]["Δ score to supervised"] == "-"
    assert (skd["pairs"], skd["seeds"], skd["tokens generated"], skd["seconds"]) == ("1", "5", "1,234,567", "31.4")
    assert (skd["compute (model TFLOP)"], skd["draft accept rate"]) == ("13", "-")
    assert (skd["KL to teacher (references)"], skd["val NLL"]) == ("0.0123", "0.400")
    assert skd["replaced (first → last)"] == "0.120 → 0.028" and rows["sft"]["replaced (first → last)"] == "-"
    assert (rows["teacher"]["score (greedy)"], rows["teacher"]["KL to teacher (references)"]) == ("0.900", "-")
    assert rows["student at the start"]["val NLL"] == "1.500"
    assert "score at equal compute" not in skd


def test_missing_seeds_are_said_and_only_common_ones_paired():
    """A method with 2 of 3 seeds shows its n everywhere, and its difference uses the two common seeds only."""
    runs = make_runs({"supervised": {1: 0.1, 2: 0.2, 3: 0.9}, "skd": {2: 0.4, 1: 0.3}, "gkd": {3: 0.5, 2: None}})
    text = tables.render_table(runs)
    rows = table_rows(text, "method")
    assert (rows["skd"]["seeds"], rows["supervised"]["seeds"]) == ("2", "3")
    assert rows["skd"]["Δ score to supervised"] == "+0.200 ± 0.000"
    assert rows["gkd"]["score (greedy)"] == "0.500 (n = 1)"
    assert rows["gkd"]["Δ score to supervised"] == "-0.400 (n = 1)"
    assert "skd has 2 of 3 seeds" in text and "supervised has" not in text
    differences = table_rows(text, "skd minus")
    assert differences["supervised"]["score (greedy)"] == "+0.200 ± 0.000, 2 of 2 positive"
    assert differences["gkd"]["score (greedy)"] == "-"


def test_equal_compute_stands_beside_equal_steps(tmp_path):
    """Runs of equal compute fill a column of their own and never mix with those of equal steps."""
    runs = reading.read_records(write_records(tmp_path, ["supervised", "skd"], 3, ("steps", "compute")))
    rows = table_rows(tables.render_table(runs), "method")["skd"]
    for column, budget in (("score (greedy)", "steps"), ("score at equal compute", "compute")):
        scores = [run.final["score"] for run in runs if run.variant == "skd" and run.budget == budget]
        assert rows[column] == "{:.3f} ± {:.3f}".format(*statistics.student_t_interval(scores))
    differences = table_rows(tables.render_table(runs), "skd minus")["supervised"]
    assert differences["greedy at equal compute"].endswith("0 of 3 positive")
    assert list(tables.summary(runs)["variants_equal_compute"]) == ["supervised", "skd"]


def test_one_seed_is_called_a_demonstration(tmp_path):
    text = report.write_report(write_records(tmp_path, seeds=1))
    assert "One pair, one seed: a demonstration, no interval." in text and "±" not in text
    assert "(--pairs N)" not in text and "| seeds" not in text
    write_records(tmp_path, seeds=2)
    assert "demonstration" not in report.write_report(tmp_path)


def test_what_the_intervals_are_over_is_said(tmp_path):
    """Above every table: over how many pairs; of one pair, that they say nothing about others."""
    warned = ("- One pretrained pair: the intervals are over repeated runs of it and say nothing about other pairs "
              "(--pairs N).")
    one = report.write_report(write_records(tmp_path, ["supervised", "skd"], seeds=2))
    assert warned in one.splitlines() and "interval over seeds" in one and "pretrained pairs" not in one
    several = report.write_report(write_records(tmp_path, ["supervised", "skd"], seeds=2, pairs=3))
    assert "95 % interval over 3 pretrained pairs (Student-t; the seeds of a pair are averaged first)" in several
    assert "One pretrained pair" not in several and "over seeds" not in several
    plain = tables.render_table([run for run in reading.read_records(tmp_path) if run.seed == 1])
    assert "95 % interval over 3 pretrained pairs (Student-t); other" in plain
    assert table_rows(plain, "method")["skd"]["pairs"] == "3" and "| seeds" not in plain.split("<details>")[0]
    assert "Δ: paired differences, one per pair." in plain and "**, one difference per pair" in plain


def test_decided_differences_are_marked_and_counted():
    """Of three differences over four pairs, p = .0005, .035 and .08, Holm's correction leaves the first: .035 times two
    is too much. Alone the second is decided. Seeds of one pair decide nothing."""
    changes = {"b": (0.10, 0.11, 0.12, 0.09), "c": (0.02, 0.05, 0.05, 0.09), "d": (0.00, 0.06, 0.03, 0.06)}

    def runs(names, unit=lambda i: (i, 1)):
        scores = {"a": {unit(i): 0.5 for i in range(1, 5)}}
        scores |= {name: {unit(i): 0.5 - change for i, change in enumerate(changes[name], start=1)} for name in names}
        return make_runs(scores)

    found = [statistics.t_test(changes[name]) for name in "bcd"]
    assert found[0] < 0.05 / 3 and found[1] < 0.05 < 2 * found[1] and found[2] > 0.05
    text = tables.render_table(runs("bcd"), main_method="a")
    cells = {name: row["score (greedy)"] for name, row in table_rows(text, "a minus").items()}
    assert [cell.endswith("positive *") for cell in cells.values()] == [True, False, False]
    assert "for the 3 comparisons of this table. Decided: 1." in text
    text = tables.render_table(runs("c"), main_method="a")
    assert "positive *" in text and "for the 1 comparisons of this table. Decided: 1." in text
    text = tables.render_table(runs("bcd", lambda i: (1, i)), main_method="a")
    assert "*" not in text.split("a minus every other method**")[1] and "Decided" not in text


def test_a_quick_run_compares_nothing(tmp_path):
    """Its table names the methods, their seconds and that they have finished: no score, no difference, no curve;
    summary.json holds the scores."""
    header, *others = make_lines("skd", 1, warnings=["every proposal was accepted"])
    (tmp_path / "skd.jsonl").write_text(record([header | {"quick": True, "metric": "chrF"}, *others]))
    header, *others = make_lines("supervised", 1, order=0)
    (tmp_path / "supervised.jsonl").write_text(record([header | {"quick": True}, *others]))
    text = report.write_report(tmp_path)
    score = others[-1]["score"]
    assert table_rows(text, "method") == {
        "supervised": {"method": "supervised", "seconds": "31.4", "finished": "yes"},
        "skd": {"method": "skd", "seconds": "31.4", "finished": "yes"},
    }
    assert "Its scores (chrF) are in summary.json and mean nothing" in text and f"{score:.3f}" not in text
    assert "minus" not in text and "Δ" not in text and "<details>" not in text
    assert "- skd seed 1: warning: every proposal was accepted." in text
    assert json.loads((tmp_path / "summary.json").read_text())["variants"]["supervised"]["runs"][0]["score"] == score
    assert "smoke run" in (tmp_path / "curves.svg").read_text()
    (tmp_path / "again.jsonl").write_text(record([header | {"quick": True, "seed": 2}, *others]))
    assert table_rows(report.write_report(tmp_path), "method")["supervised"]["finished"] == "2 runs"


def test_steps_right_stand_beside_the_scores(tmp_path):
    """A score with a slope, with its interval, where the records have one; else no column, and no key in the
    summary."""
    without = report.write_report(write_records(tmp_path, ["skd"], 2))
    assert "steps right" not in without and "task_steps_right" not in (tmp_path / "summary.json").read_text()
    for seed, share in ((1, 0.5), (2, 0.7)):
        text = record(make_lines("skd", seed, task_steps_right=share, task_steps_right_sampled=share / 2))
        (tmp_path / f"skd_seed{seed}_steps.jsonl").write_text(text)
    text = report.write_report(tmp_path)
    row = table_rows(text, "method")["skd"]
    assert (row["steps right"], row["steps right (sampled)"]) == ("0.600 ± 1.271", "0.300 ± 0.635")
    headings = [cell.strip() for cell in text.split("| method")[1].splitlines()[0].split("|")]
    assert headings[headings.index("score (sampled)") + 1 :][:2] == ["steps right", "steps right (sampled)"]


def test_the_order_of_the_runs_does_not_matter(tmp_path):
    """Table, picture and summary are functions of the set of runs."""
    runs = reading.read_records(write_records(tmp_path, seeds=2, budgets=("steps", "compute"), pairs=3))
    for seed in range(2):
        mixed = [runs[i] for i in np.random.default_rng(seed).permutation(len(runs))]
        assert tables.render_table(mixed) == tables.render_table(runs)
        assert tables.summary(mixed) == tables.summary(runs) and curves.curves_page(mixed) == curves.curves_page(runs)


def test_seconds_are_compared_within_a_pair():
    """A pair on a slow day does not count twice: the ratio is to the control's run of the same pair and seed."""
    runs = [make_run(variant, (pair, pair), score=0.5, seconds=seconds * pair)
            for variant, seconds in (("supervised", 2.0), ("skd", 3.0)) for pair in (1, 10)]
    assert table_rows(tables.render_table(runs), "method")["skd"]["seconds / control"] == "1.50"


def test_every_run_stands_in_the_raw_table(tmp_path):
    """The last table has one row per run and the exact score of each."""
    runs = reading.read_records(write_records(tmp_path))
    raw = tables.render_table(runs).split("<details>")[1]
    for run in runs:
        score = f"{run.final['score']:.3f}"
        assert any(line.startswith(f"| {run.variant} ") and score in line for line in raw.splitlines())
    assert sum("steps" in line for line in raw.splitlines()) == 40 + 1  # and the heading "score over steps"


def test_a_pair_that_differs_between_methods_is_said():
    """Methods of one pair that did not start from the same models are not comparable without a word."""
    runs = make_runs({"a": {(7, 1): 0.5}, "b": {(7, 1): 0.6}})
    said = "Pair 7: the methods did not start from the same two models"
    for one, other in (({"fingerprint": "12ab"}, {"fingerprint": "cd34"}),
                       ({"teacher": {"score": 0.8}}, {"teacher": {"score": 0.9}}),
                       ({"student_start": {"score": 0.1}}, {"student_start": {"score": 0.2}})):
        assert said in tables.render_table([runs[0]._replace(header=one), runs[1]._replace(header=other)])
        assert said not in tables.render_table([run._replace(header=one) for run in runs])
        others = make_runs({"a": {(8, 1): 0.5}})[0]  # another pair's models are others
        assert "did not start" not in tables.render_table([runs[0]._replace(header=one), others._replace(header=other)])


@pytest.mark.parametrize("entry, others, said", [
    ({"quick": True}, {"quick": False}, "a smoke run: it shows that every stage works"),
    ({"jobs": 4}, {"jobs": 1}, "shared the machine (--jobs): seconds do not compare"),
    ({"device": "cpu"}, {"device": "cuda"}, "several machines (cpu; cuda): seconds do not compare"),
    ({"metric": "chain right"}, {"metric": "chain right"}, "Score: chain right, 0..1,"),
])
def test_what_limits_the_numbers_is_said(entry, others, said):
    """A smoke run, seconds that do not compare and the meaning of the score stand above the table, where they hold."""
    first, second = make_runs({"a": {1: 0.5}, "b": {1: 0.6}})
    assert said in tables.render_table([first._replace(header=entry), second._replace(header=others)])
    assert said not in tables.render_table([first, second])


def notes_of(headers, variants=("a", "b", "c")):
    """The notes about versions and flags above a table of runs with these headers."""
    runs = [
        run._replace(header=header)
        for run, header in zip(make_runs({variant: {1: 0.5} for variant in variants}), headers)
    ]
    return [
        line
        for line in tables.render_table(runs).splitlines()
        if "versions of the code" in line or "different flags" in line
    ]


def test_swept_values_stand_at_the_ends_of_the_lines():
    """Names too long for the picture give up the words of their flags before their values."""
    assert svg.short_name("okd module-lr=0.02") == "okd module-lr=0.02"
    assert svg.short_name("okd alpha=0.25 module-lr=0.02") == "okd a=0.25 ml=0.02"
    assert svg.short_name("okd_no_feedback module-lr=0.2") == "okd_no_fe…ack ml=0.2"
    ends = [
        svg.short_name(f"okd alpha={alpha} module-lr={rate}") for alpha in (0.25, 0.5, 0.75) for rate in (0.02, 0.2, 1)
    ]
    assert len(set(ends)) == 9 and max(map(len, ends)) <= 20
    assert svg.short_name("a_method_with_quite_a_name") == "a_method_…ite_a_name"
    ends = {
        svg.short_name(f"okd module-start={start} module-lr=0.05 alpha={alpha}")
        for start in (0.25, 0.5)
        for alpha in (0.5, 0.9)
    }
    assert len(ends) == 4 and "okd ms=0.25 ml=0.05 a=0.5" in ends
    assert svg.short_name("supervised lr=0.005 batch-size=16") == "super… l=0.005 bs=16"


def test_a_score_of_nothing_stands_on_the_axis():
    """Where every value is 0 the axis begins there: no share lies below it."""
    zeros = np.zeros(3)
    low, high, ticks = curves._y_range([zeros])
    assert low == 0.0 < high and min(ticks) == 0.0


def test_a_warning_of_many_seeds_is_said_once():
    """Seeds whose warnings differ in their numbers share a line; another text, method or budget has its own."""
    runs = []
    for variant, budget, seed, warnings in (
        ("okd", "steps", 1, ["it drifted 0.052 nats"]),
        ("okd", "steps", 2, ["it drifted 0.31 nats", "no end in 4 of 8"]),
        ("okd", "compute", 2, ["it drifted 1 nats"]),
        ("skd", "steps", 1, ["it drifted 0.05 nats"]), ("skd", "steps", 3, []),
    ):
        header, *_, final = make_lines(variant, seed, budget, warnings=warnings)
        runs.append(reading.Run(variant, 1, seed, budget, header, [], [], [], final))
    assert [line for line in tables.render_table(runs).splitlines() if "warning" in line] == [
        "- okd seed 1 (likewise 2): warning: it drifted 0.052 nats.",
        "- okd seed 2: warning: no end in 4 of 8.",
        "- okd, equal compute, seed 2: warning: it drifted 1 nats.",
        "- skd seed 1: warning: it drifted 0.05 nats.",
    ]


def test_a_warning_of_many_pairs_is_said_once():
    """With several pairs a warning names them, and the seed where a pair has more than one; so does one about the
    teacher, which of one pair needs no name."""
    def run(pair, seed, warnings=()):
        start = [f"the teacher scores 0.{pair}"] if pair > 1 else []
        return make_run("okd", (pair, seed), header={"start_warnings": start}, score=0.5, warnings=warnings)

    def said(runs):
        return [line for line in tables.render_table(runs).splitlines() if "arning" in line]

    runs = [run(1, 1), run(2, 2, ["it drifted 0.2 nats"]), run(3, 3, ["it drifted 0.3 nats"])]
    assert said(runs) == ["- Warning, pair 2 (likewise 3): the teacher scores 0.2.",
                          "- okd pair 2 (likewise 3): warning: it drifted 0.2 nats."]
    assert said(runs[1:2]) == ["- Warning: the teacher scores 0.2.", "- okd seed 2: warning: it drifted 0.2 nats."]
    assert said([*runs, run(2, 5, ["it drifted 5 nats"])])[1] == (
        "- okd pair 2 seed 2 (likewise 2 seed 5, 3 seed 3): warning: it drifted 0.2 nats.")


def test_versions_of_the_code_are_counted():
    """Runs whose files had other contents: one note with the number of versions and the files;
    what a record lacks is no difference."""
    old, new = (
        {"model.py": "12", "losses.py": "ab", "sample.py": "ff"},
        {"model.py": "34", "losses.py": "cd", "sample.py": "ff"},
    )
    (note,) = notes_of([{"sources": old}, {"sources": new}, {"sources": new}])
    assert note == ("- The runs were made by 2 versions of the code, which differ in model.py, losses.py; "
                    "not every change there moves a result.")
    assert "by 3 versions" in notes_of([{"sources": old}, {"sources": new}, {"sources": old | {"model.py": "56"}}])[0]
    assert (
        notes_of([{"sources": old}, {"sources": old}, {}])
        == notes_of([{"sources": old}, {"sources": {"train_okd.py": "1"}}, {"sources": {}}])
        == []
    )
    many = [{"sources": {f"{name}.py": value for name in range(9)}} for value in "123"]
    assert "differ in 0.py, 1.py, 2.py, 3.py, 5 more;" in notes_of(many)[0]


def test_different_flags_are_said():
    """Flags that were not the same for all runs stand there with their values;
    what was swept, or decided by --size, does not."""
    common = {"lr": 0.005, "gamma": None, "device_type": "cpu", "settings": {"teacher_steps": 700}}
    (note,) = notes_of(
        [{"flags": common}, {"flags": common | {"lr": 0.001, "gamma": 4}}, {"flags": common | {"device_type": "cuda"}}]
    )
    assert note == ("- The runs were made with different flags (--lr 0.005 or 0.001; --gamma not given or 4; "
                    "--device cpu or cuda): a difference between methods may be theirs.")
    bare = [{"flags": common}, {"flags": {"lr": 0.005}}, {}]
    assert (
        notes_of(bare)
        == notes_of([{"flags": common | {"settings": {"teacher_steps": steps}}} for steps in (1, 2, 3)])
        == []
    )
    rates = [{"flags": {"module_lr": rate, "lr": 0.1}} for rate in (0.02, 0.2, 0.2)]
    assert notes_of(rates, ("a module-lr=1", "b", "c lr=0.3")) == [] != notes_of(rates, ("a lr=1", "b", "c"))
    many = [{"flags": {f"flag_{name}": value for name in range(9)}} for value in ("<b>\n# x", "y" * 99, "[z](u)")]
    (note,) = notes_of(many)
    assert (
        "--flag-3" in note and "; 5 more)" in note and "--flag-4" not in note and "<b>" not in note and len(note) < 700
    )


def test_column_of_the_adapted_teacher_only_where_there_is_one(tmp_path):
    (tmp_path / "a").mkdir()
    plain = report.write_report(write_records(tmp_path / "a", ["skd"], 1))
    (tmp_path / "b").mkdir()
    moving = report.write_report(write_records(tmp_path / "b", ["skd"], 1, kl_adapted_teacher=0.0085))
    assert "KL to adapted teacher" not in plain
    assert table_rows(moving, "method")["skd"]["KL to adapted teacher"] == "0.0085"


def test_summary_is_the_contract_in_strict_json(tmp_path):
    """summary.json has a run per method and seed with every figure, null for None and NaN, and parses strictly."""
    write_records(tmp_path, ["sft", "skd"], 2, kl_on_policy=math.nan)
    report.write_report(tmp_path)
    found = json.loads((tmp_path / "summary.json").read_text(), parse_constant=lambda name: pytest.fail(name))
    assert list(found) == ["task", "device", "teacher", "student_start", "pairs", "variants"]
    assert [(start["pair"], start["teacher"]["score"]) for start in found["pairs"]] == [(1, 0.9)]
    assert found["pairs"][0]["student_start"] == found["student_start"]
    assert (found["task"], found["device"], found["teacher"]["score"]) == ("math", "cpu", 0.9)
    runs = found["variants"]["skd"]["runs"]
    assert [(run["pair"], run["seed"]) for run in runs] == [(1, 1), (1, 2)]
    assert list(found["variants"]["skd"]) == ["runs"]
    assert runs[0]["score"] == make_lines("skd", 1)[-1]["score"]
    assert runs[0]["kl_on_policy"] is None and runs[0]["draft_accept_rate"] is None and "kind" not in runs[0]
    unsorted = tables.summary(make_runs({"a": {3: 0.5, 1: 0.6, 2: 0.7}}))["variants"]["a"]["runs"]
    assert [run["seed"] for run in unsorted] == [1, 2, 3]
    names = {"score", "val_nll", "kl_teacher", "kl_on_policy", "accept_rate", "seconds", "tokens_generated",
             "teacher_forwards"}
    bare = tables.summary(make_runs({"a": {1: 0.5}}))["variants"]["a"]["runs"][0]
    assert names <= bare.keys() and bare["accept_rate"] is None


def test_teachers_of_several_pairs_are_averaged():
    """Each pair has its own teacher, however many seeds it has: the summary holds their mean and each of them, the
    table their number and an interval."""
    runs = [run._replace(header={"variant": "a", "teacher": {"score": 0.6 + 0.1 * run.pair, "kl_teacher": None}})
            for run in make_runs({"a": {(2, 1): 0.5, (3, 2): 0.6, (3, 3): 0.6, (3, 4): 0.6}})]
    runs[0].header["teacher"]["score_ood"] = 0.25
    found = tables.summary(runs)
    assert found["teacher"]["score"] == pytest.approx(0.85)
    assert (found["teacher"]["kl_teacher"], found["teacher"]["score_ood"]) == (None, 0.25)  # of the pairs that have it
    assert [(start["pair"], start["teacher"]["score"]) for start in found["pairs"]] == [
        (2, pytest.approx(0.8)), (3, pytest.approx(0.9))]
    assert found["student_start"] == {} == found["pairs"][0]["student_start"]
    row = table_rows(tables.render_table(runs), "method")["teacher"]
    assert (row["pairs"], row["seeds"], row["score (greedy)"]) == ("2", "-", "0.850 ± 0.635")


def test_what_has_no_meaning_is_a_dash(tmp_path):
    """A null among figures: the mean is over the runs that have it; where none has it the cell is a dash, not 0.000."""
    easy = {"kl_teacher_easy": None, "kl_teacher_hard": 0.2, "agreement_easy": None}
    write_records(tmp_path, ["supervised", "skd"], seeds=2, accept_rate=None, **easy)
    text = record(make_lines("skd", 1, kl_teacher_easy=0.1, accept_rate=None, kl_teacher_hard=0.4))
    (tmp_path / "skd_seed1_steps.jsonl").write_text(text)
    table = table_rows(report.write_report(tmp_path), "method")
    assert (table["supervised"]["KL, easy tokens"], table["supervised"]["hard"]) == ("-", "0.2000")
    assert (table["skd"]["KL, easy tokens"], table["skd"]["hard"]) == ("0.1000", "0.3000")
    assert table["skd"]["accept rate (topk rule)"] == "-" and "agreement, easy" not in table["skd"]
    assert json.loads((tmp_path / "summary.json").read_text())["variants"]["skd"]["runs"][1]["kl_teacher_easy"] is None


def test_a_curve_has_gaps_where_figures_are_null():
    """Steps and evaluations whose figure is null leave a gap, and a method with nothing else is not drawn."""
    run = make_runs({"a": {1: 0.5}, "b": {1: 0.6}})
    steps = [{"step": step, "replacement_rate": rate} for step, rate in ((1, 0.5), (2, None), (3, 0.25), (4, 0.125))]
    evals = [{"step": step, "score": 0.5, "kl_teacher": None} for step in (1, 2)]
    runs = [run[0]._replace(steps=steps, evals=evals), run[1]._replace(steps=[{"step": 1, "replacement_rate": None}])]
    drawn = curves.curves_page(runs)
    assert "Tokens replaced" in drawn and "KL(teacher" not in drawn and "nan" not in drawn and ">b<" not in drawn
    assert (tables._replaced_text(runs[:1]), tables._replaced_text(runs[1:])) == ("0.500 → 0.125", "-")


def test_markdown_table_is_aligned_and_escapes_bars():
    text = tables.markdown_table([["a|b", "1"], ["c", "10.25"]], ["name", "x"])
    assert text.splitlines()[:2] == ["| name |     x |", "| ---- | ----: |"]
    assert len({len(line) for line in text.splitlines()}) == 1
    assert "a\\|b" in text


def test_sparkline():
    """Lowest and highest get the lowest and highest block, None a blank, a constant one height, nothing nothing."""
    assert tables.sparkline([0, 1, 2, 3, 4, 5, 6, 7]) == "▁▂▃▄▅▆▇█"
    assert tables.sparkline([0, None, 1, math.nan]) == "▁ █ "
    assert len(set(tables.sparkline([0.5] * 9))) == 1
    assert tables.sparkline([]) == "" and tables.sparkline([None]) == " "
    long = tables.sparkline(range(1000), width=10)
    assert len(long) == 10 and long[0] == "▁" and long[-1] == "█" and list(long) == sorted(long)


# ----------------------------------------------------------------------------------------------------------- curves


def texts_of(svg, css_class):
    """[(text, x, y)] of the text elements of a class; parsing fails on invalid XML."""
    return [(element.text, float(element.get("x")), float(element.get("y")))
            for element in ElementTree.fromstring(svg).iter(SVG + "text") if element.get("class") == css_class]


def lines_of(svg):
    return [e.get("d") for e in ElementTree.fromstring(svg).iter(SVG + "path") if e.get("class") == "line"]


def plot(series, nats=False, leading=()):
    """One panel with all the series, as the text of an SVG file."""
    look, height = curves.Look({name: i for i, name in enumerate(series)}, list(leading)), 100.0 + 13 * len(series)
    panel = curves._panel(series, look, "a < b & c", "y & z", 650.0, height, nats)
    return svg.document(660.0, height + 10, "a < b & c", svg.moved(4, 6, panel))


def wavy(n_series, n_seeds, spread=0.02, points=50):
    generator = np.random.default_rng(0)
    steps = list(range(0, 20 * points, 20))
    return {f"method_{i}": [(steps, list(spread * i + generator.normal(0, 0.01, points))) for _ in range(n_seeds)]
            for i in range(n_series)}


HARD_CASES = {
    "8 series of 5 seeds": wavy(8, 5), "20 series": wavy(20, 2), "20 series at one place": wavy(20, 1, spread=0.0),
    "one series, one seed": wavy(1, 1), "one point": {"a": [([3], [0.5])]},
    "points of 2 seeds": {"a": [([3], [1]), ([3], [2])]}, "constant": {"a": [([0, 1], [0.5, 0.5])]},
    "all zero": {"a": [([0, 1], [0, 0])]}, "nothing": {},
    "no value": {"a": [([0, 1], [None, math.nan])], "b": [([], [])]},
    "infinite": {"a": [([0, 1, 2], [1, math.inf, 2])]}, "constant on a log axis": {"a": [([0, 1], [1e-7, 1e-7])]},
    "gap": {"a": [([0, 1, 2, 3, 4], [1, 2, math.nan, 3, 4])]}, "negative": {"a": [([0, 1], [-3, 5])]},
    "tiny and huge": {"a": [([0, 1e6], [1e-9, 1e9])]}, "markup": {"<a & 'b' \"c\"\x01>": [([0, 1], [1, 2])]},
}


@pytest.mark.parametrize("case", HARD_CASES)
@pytest.mark.parametrize("nats", [False, True])
def test_hard_cases_are_valid_and_inside(case, nats):
    """Any series gives valid XML on a drawn white ground, without nan, and every text inside of the picture; what has
    a value has its name at its line's end."""
    series = HARD_CASES[case]
    drawn = plot(series, nats)
    root = ElementTree.fromstring(drawn)
    assert "nan" not in drawn and "inf" not in drawn
    ground = next(root.iter(SVG + "rect"))
    assert (ground.get("fill"), ground.get("width"), ground.get("height")) == ("#FFFFFF", root.get("width"),
                                                                               root.get("height"))
    for group in root.iter(SVG + "g"):
        dx, dy = map(float, group.get("transform")[len("translate("):-1].split())
        for element in group.iter(SVG + "text"):
            assert 0 <= dx + float(element.get("x")) < float(root.get("width"))
            assert 10 <= dy + float(element.get("y")) < float(root.get("height"))
    printable = ["".join(c for c in name if c.isprintable()) for name in series] if case != "no value" else []
    assert [text for text, _, _ in texts_of(drawn, "label")] == printable


@pytest.mark.parametrize("case", HARD_CASES)
def test_labels_never_overlap(case):
    """Labels at line ends are at least a line of text apart, however near the lines end."""
    places = sorted(y for _, _, y in texts_of(plot(HARD_CASES[case]), "label"))
    assert all(b - a >= 12 for a, b in zip(places, places[1:]))


def test_labels_stand_in_the_order_of_the_lines():
    """Nudging keeps the order: the label of the highest line is the highest, and without need nothing moves."""
    series = wavy(8, 1, spread=0.001)
    labels = {name: y for name, _, y in texts_of(plot(series), "label")}
    by_value = sorted(series, key=lambda name: -series[name][0][1][-1])
    assert sorted(labels, key=labels.get) == by_value
    assert curves._spread([10.0, 90.0, 50.0], 13, 0, 100) == [10.0, 90.0, 50.0]


def test_spread_is_as_near_as_can_be():
    """Two labels for one place move half a gap each; at the border all of the way."""
    assert curves._spread([50.0, 50.0], 10, 0, 100) == [45.0, 55.0]
    assert curves._spread([100.0, 100.0, 0.0], 10, 0, 100) == [90.0, 100.0, 0.0]


def test_twenty_six_lines_look_different():
    """No two lines share both colour and dash pattern, and the first two share their colours with none: they are those
    of the main method and the control."""
    root = ElementTree.fromstring(plot(wavy(26, 1)))
    styles = [(e.get("stroke"), e.get("stroke-dasharray")) for e in root.iter(SVG + "path") if e.get("class") == "line"]
    assert len(styles) == len(set(styles)) == 26 and curves.GREY not in dict(styles)
    assert not {styles[0][0], styles[1][0]} & {color for color, _ in styles[2:]}


def test_line_is_the_mean_and_band_the_range():
    """Seeds (0, 2) and (1, 3) on one grid: mean (.5, 2.5), from (0, 2) to (1, 3); a seed's gap does not move others."""
    xs, means, lows, highs = curves._mean_and_band([([0, 10], [0, 2]), ([10, 0], [3, 1])])
    assert (xs.tolist(), means.tolist(), lows.tolist(), highs.tolist()) == ([0, 10], [0.5, 2.5], [0, 2], [1, 3])
    _, means, _, _ = curves._mean_and_band([([0, 1, 2], [1, None, 3])])
    assert np.isnan(means).tolist() == [False, True, False]
    _, means, _, _ = curves._mean_and_band([([0, 2], [0, 2]), ([1], [5])])
    assert means.tolist() == [0, 3, 2]  # the first seed's line is at 1 when the second has its only point


def bands_of(page):
    return [e.get("fill") for e in ElementTree.fromstring(page).iter(SVG + "path") if e.get("class") == "band"]


def test_bands_never_lie_over_each_other_in_crowds():
    """Up to four lines have bands; of more lines only the main method and the control, which are thick and on top."""
    assert len(bands_of(plot(wavy(4, 2)))) == 4 and bands_of(plot(wavy(4, 1))) == [] == bands_of(plot(wavy(5, 2)))
    page = plot(wavy(5, 2), leading=["method_0", "method_1"])
    assert bands_of(page) == list(curves.PALETTE[:2])
    lines = [e for e in ElementTree.fromstring(page).iter(SVG + "path") if e.get("class") == "line"]
    assert [e.get("stroke") for e in lines][-2:] == list(curves.PALETTE[:2])
    assert [e.get("stroke-width") for e in lines] == ["1.6"] * 3 + ["2.6"] * 2
    apart = {"method_4": [([0, 20], [9.0, 0.5]), ([0, 20], [-8.0, 0.5])]}  # their mean lies among the others
    highest = [max(float(text) for text, _ in axis_texts(plot(wavy(n, 2) | apart))) for n in (3, 5)]
    assert highest[0] >= 5 and highest[1] < 1, "a band that is not drawn takes no room"


def test_gaps_break_the_line_and_lone_points_are_dots():
    drawn = plot({"a": [([0, 1, 2, 3, 4, 5, 6], [1, 2, None, 3, None, 4, 5])]})
    assert lines_of(drawn)[0].count("M") == 2
    assert len(list(ElementTree.fromstring(drawn).iter(SVG + "circle"))) == 1


def test_long_curves_are_thinned_with_their_ends():
    drawn = plot({"a": [(range(5000), np.arange(5000) / 5000)]})
    assert lines_of(drawn)[0].count("L") + 1 == curves.MAX_POINTS
    grid = curves._mean_and_band([(range(5000), range(5000))])[0]
    assert (grid[0], grid[-1]) == (0, 4999)


def heights_of(drawn):
    """[y of each point] of the first line."""
    return [float(point.split()[1]) for point in lines_of(drawn)[0][1:].split("L")]


def axis_texts(drawn):
    """[(text, y)] of the ticks of a plot's y axis."""
    return [(e.text, float(e.get("y")) - 4) for e in ElementTree.fromstring(drawn).iter(SVG + "text")
            if e.get("text-anchor") == "end"]


def test_log_axis_makes_exponential_decay_straight():
    """Equal factors are equal distances on a log axis, which says what it is; a linear one does not."""
    drawn = plot({"a": [(range(9), [2.0**-i for i in range(9)])]}, nats=True)
    ys = heights_of(drawn)
    assert np.allclose(np.diff(ys), np.diff(ys).mean(), atol=0.11)  # coordinates have one decimal
    assert ">y &amp; z (log)<" in drawn
    for series, nats in (([2.0**-i for i in range(9)], False), ([3.0, 2.0, 1.0], True)):
        assert ">y &amp; z<" in plot({"a": [(range(len(series)), series)]}, nats)


def test_no_axis_of_nats_shows_what_is_noise():
    """A log axis ends at the floor, whose tick says that less may lie there, and what is below is drawn at it; where
    all is below, a linear axis does not zoom into it. An axis of no nats has no floor."""
    drawn = plot({"a": [(range(6), [1e-9, 0.0, -1e-9, 1e-4, 1e-2, 1.0])]}, nats=True)
    ys, ticks = heights_of(drawn), axis_texts(drawn)
    assert ticks[0][0] == "≤ 0.0001" and [text for text, _ in ticks[1:]] == ["0.001", "0.01", "0.1", "1"]
    assert ys == pytest.approx([ticks[0][1]] * 4 + [ticks[2][1], ticks[4][1]], abs=0.11)
    assert min(y for _, y in ticks) < ticks[0][1] == max(y for _, y in ticks)
    for series in ([0.0, 1e-8, -2e-9], [3e-7, 5e-7, 4e-7], [0.0, 0.0, 0.0]):
        drawn = plot({"a": [(range(3), series)]}, nats=True)
        texts = [text for text, _ in axis_texts(drawn)]
        assert texts[0] == "0.00000" and texts[-1] == "0.00010" and "(log)" not in drawn
        assert max(heights_of(drawn)) - min(heights_of(drawn)) < 1
    assert "e-07" in plot({"a": [(range(3), [3e-7, 5e-7, 4e-7])]})


def test_a_drift_from_nothing_needs_no_log_axis():
    """Drift begins at 0, or at what rounding leaves of it: a linear axis shows it, unless the rest spans two decades
    above the floor. The average of two runs is not moved by the floor."""
    for start in (0.0, 1e-8):
        assert "(log)" not in plot({"a": [(range(4), [start, 0.14, 0.06, 0.01])]}, nats=True)
        assert "(log)" in plot({"a": [(range(4), [start, 0.14, 0.06, 0.001])]}, nats=True)
    drawn = plot({"a": [(range(3), [0.0, 0.02, 1.0])], "b": [(range(3), [1.0, 1.0, 1e-3])]}, nats=True)
    two = plot({"a": [(range(3), [0.0, 0.02, 1.0]), (range(3), [0.02, 0.0, 1.0])],
                "b": [(range(3), [1.0, 1.0, 1e-3])]}, nats=True)
    assert heights_of(drawn)[1] < heights_of(two)[0] == heights_of(two)[1] < heights_of(drawn)[0]


@pytest.mark.parametrize("high", [1, 2, 3, 4, 6, 8, 25, 100, 400, 800, 30_000, 250_000])
def test_steps_have_no_halves(high):
    """Ticks of steps are whole numbers, and few enough that their texts do not touch."""
    ticks = svg.nice_ticks(0, high, 4, whole=True)
    assert 2 <= len(ticks) <= 5 and all(tick == int(tick) for tick in ticks) and ticks[0] == 0
    assert all("." not in text for text in svg.tick_texts(ticks))
    root = ElementTree.fromstring(plot({"a": [([0, high], [100, 200])]}))
    texts = [e.text for e in root.iter(SVG + "text") if e.get("text-anchor") == "middle" and not e.get("transform")]
    assert texts == [*svg.tick_texts(ticks), "step"]


@pytest.mark.parametrize("ticks, texts", [
    ([0, 0.025, 0.05], ["0.000", "0.025", "0.050"]), ([0, 2e-5, 4e-5], ["0.00000", "0.00002", "0.00004"]),
    ([0, 500_000, 1e6], ["0", "500,000", "1,000,000"]), ([1e-8, 2e-8, 3e-8], ["1e-08", "2e-08", "3e-08"]),
    ([0.05, 0.1, 0.2, 0.5, 1, 2], ["0.05", "0.1", "0.2", "0.5", "1", "2"]), ([1e-4, 1, 1e4], ["0.0001", "1", "10,000"]),
])
def test_texts_of_ticks_are_numbers_that_people_write(ticks, texts):
    """As many decimals as are needed and none more; powers of ten only where all else is too long."""
    assert svg.tick_texts(ticks) == texts


@pytest.mark.parametrize("low, high", [(0, 1), (0, 0.013), (-3, 17), (0.4, 0.41), (1e-9, 3e-9), (100, 123456)])
def test_ticks_are_round_and_inside(low, high):
    """3 to 8 ticks at equal distances, inside of the range, and no two with the same text."""
    ticks = svg.nice_ticks(low, high)
    assert 3 <= len(ticks) <= 8 and ticks[0] >= low - 1e-12 and ticks[-1] <= high * (1 + 1e-9)
    mantissa = (ticks[1] - ticks[0]) / 10.0 ** math.floor(math.log10(ticks[1] - ticks[0]) + 1e-9)
    assert any(math.isclose(mantissa, nice, rel_tol=1e-6) for nice in (1, 2, 2.5, 5))
    texts = svg.tick_texts(ticks)
    assert len(set(texts)) == len(texts)
    assert np.allclose([float(text.replace(",", "")) for text in texts], ticks, rtol=1e-5, atol=1e-12)


def test_page_has_the_panels_that_have_data(tmp_path):
    """Five panels for records with everything; without the interleaved methods no replacement panel."""
    write_records(tmp_path)
    runs = reading.read_records(tmp_path)
    page = curves.curves_page(runs)
    titles = [title for title, *_ in curves.PANELS]
    assert [title for title in titles if f">{title}<" in page] == titles[:5]  # no teacher moves here
    assert len(lines_of(page)) == 4 * len(VARIANTS) + 2
    page = curves.curves_page([run for run in runs if run.variant == "sft"])
    assert [title for title in titles if f">{title}<" in page] == titles[:4]
    assert "no curves" in curves.curves_page(make_runs({"a": {1: 0.5}}))


def test_overlap_and_entropy_gap_have_their_panels():
    """A line for each method whose step lines hold the figure, at their values; a gap may be below 0."""
    steps = [{"step": step, "topk_overlap": step / 100, "entropy_gap": step / 100 - 0.5} for step in (1, 50, 100)]
    runs = [make_run("skd", steps=steps), make_run("on_policy", steps=[{"step": 1, "topk_overlap": 0.5}, *steps[1:]]),
            make_run("sft", steps=[{"step": step, "loss": 1.0} for step in (1, 50, 100)])]
    for key, low in (("topk_overlap", 0.01), ("entropy_gap", -0.49)):
        (title, lines, _, _, kind), = [panel for panel in curves.PANELS if panel[2] == key]
        series = curves._curves_of(runs, ["skd", "on_policy", "sft"], lines, key)
        assert set(series) == {"skd", "on_policy"} and kind == "linear" and f">{title}<" in curves.curves_page(runs)
        assert series["skd"] == [((1, 50, 100), (low, pytest.approx(low + 0.49), pytest.approx(low + 0.99)))]
    assert len(lines_of(curves.curves_page(runs))) == 4


def test_no_legend_repeats_the_names_at_the_lines(tmp_path):
    """Every line has its name at its end; a legend holds only the names that are cut there."""
    write_records(tmp_path, ["sft", "supervised", "skd"], 2)
    runs = reading.read_records(tmp_path)
    page = curves.curves_page(runs, None, "supervised", "skd")
    assert texts_of(page, "legend") == []
    labels = [{e.text for e in group.iter(SVG + "text") if e.get("class") == "label"}
              for group in ElementTree.fromstring(page).iter(SVG + "g")]
    assert labels == [{"sft", "supervised", "skd", "teacher"}] * 2 + [{"sft", "supervised", "skd"}] * 2 + [{"skd"}]
    long = "skd accept-top-k=25 gamma=5"
    page = curves.curves_page([run._replace(variant=long) if run.variant == "skd" else run for run in runs])
    assert [text for text, _, _ in texts_of(page, "legend")] == [long]
    assert svg.short_name(long) in {text for text, _, _ in texts_of(page, "label")}


def test_page_draws_equal_steps_and_makes_room(tmp_path):
    """Runs of equal compute do not change the page while there are others; as many methods as are named find room for
    their labels, with the teacher's where there is a score."""
    write_records(tmp_path, ["sft", "skd"], 2, ("steps", "compute"))
    runs = reading.read_records(tmp_path)
    only_steps, only_compute = ([run for run in runs if run.budget == budget] for budget in ("steps", "compute"))
    assert curves.curves_page(runs) == curves.curves_page(only_steps) != curves.curves_page(only_compute)
    page = curves.curves_page([only_steps[0]._replace(variant=f"method_{i}") for i in range(curves.MOST_NAMED)])
    groups = list(ElementTree.fromstring(page).iter(SVG + "g"))
    assert len(groups) == 4
    for group, names in zip(groups, (9, 9, 8, 8)):
        places = sorted(float(e.get("y")) for e in group.iter(SVG + "text") if e.get("class") == "label")
        assert len(places) == names and min(np.diff(places)) >= 12
    assert texts_of(page, "note") == []


def said_on(page):
    return " ".join(text for text, _, _ in texts_of(page, "note"))


def test_of_many_methods_eight_are_named(tmp_path):
    """30 methods: all have a line in every panel; a colour and a name have the main method, the control, and of the
    others the three best and the three worst by the final greedy score, whatever a panel shows, and a line says so.
    Among the few that have a figure, those are chosen; up to eight are all named. No two names look alike."""
    write_records(tmp_path, ["skd"], 1)
    (blank,) = reading.read_records(tmp_path)

    def page_of(replacing):
        runs = []
        for i in range(30):
            shift = {"score": i / 100, "val_nll": 1 + (i * 7 % 30) / 100}  # 7: another order
            steps = blank.steps if i in replacing else []
            runs.append(blank._replace(variant=f"m{i:02}", steps=steps, evals=[e | shift for e in blank.evals],
                                       final=blank.final | {"score": (i * 11 % 30) / 100 if i != 20 else None}))
        return curves.curves_page(runs, None, "m15", "m17")

    root = ElementTree.fromstring(page_of([0, 1, 2]))
    panels = [[e for e in group.iter() if e.get("class") in ("line", "label")] for group in root.iter(SVG + "g")][:5]
    labels = [{e.text for e in panel if e.get("class") == "label"} - {"teacher"} for panel in panels]
    ranked = sorted((i for i in range(30) if i not in (15, 17, 20)), key=lambda i: i * 11 % 30)
    assert labels[:4] == [{f"m{i:02}" for i in (15, 17, *ranked[:3], *ranked[-3:])}] * 4
    assert labels[4] == {"m00", "m01", "m02"}
    strokes = [[(e.get("stroke"), e.get("stroke-dasharray")) for e in panel if e.get("class") == "line"]
               for panel in panels]
    assert [len(lines) for lines in strokes] == [30, 30, 30, 30, 3]
    assert [lines.count((curves.GREY, None)) for lines in strokes] == [22, 22, 22, 22, 0]
    assert {stroke for lines in strokes[:4] for stroke in lines} == {(c, None) for c in (*curves.PALETTE, curves.GREY)}
    assert [lines[-2:] for lines in strokes[:4]] == [[(curves.PALETTE[1], None), (curves.PALETTE[0], None)]] * 4
    page = page_of([*range(18, 30)])
    names = [{e.text for e in group.iter() if e.get("class") == "label"}
             for group in ElementTree.fromstring(page).iter(SVG + "g")]
    few = [i for i in ranked if i >= 18]
    assert names[4] == {f"m{i:02}" for i in (*few[:3], *few[-3:])}
    assert said_on(page) == ("Named, of 30 methods: m17, m15, and the 3 best and 3 worst others by final greedy "
                              "score; the rest is faint.")


def test_of_swept_values_the_best_stands_for_the_method(tmp_path):
    """Main method and control are found among swept values, too, also in the records of the other script, and have the
    same two colours."""
    write_records(tmp_path, ["skd"], 2)
    blank = reading.read_records(tmp_path)
    scores = {"sft": 0.9, "fixed_forward_kl lr=1": 0.1, "fixed_forward_kl lr=2": 0.3, "okd lr=1": 0.5, "okd lr=2": 0.4}
    runs = [run._replace(variant=name, final=run.final | {"score": score, "okd": 1})
            for name, score in scores.items() for run in blank]
    page = curves.curves_page(runs, None, "fixed_forward_kl", "okd")
    assert said_on(page) == "A panel with more than 4 names has bands of okd lr=1 and fixed_forward_kl lr=2 only."
    assert bands_of(page) == list(curves.PALETTE[:2]) * 5 and "of swept" not in page
    assert "bands of okd lr=2 and sft only" in said_on(curves.curves_page(runs, None, "sft", "okd lr=2"))
    more = [run._replace(variant=f"m{i}") for i in range(9) for run in blank]
    page = curves.curves_page(runs + more, None, "fixed_forward_kl", "okd")
    assert "14 methods: okd lr=1, fixed_forward_kl lr=2 (of swept values the best), and the 3 best" in said_on(page)
    assert "bands" not in said_on(curves.curves_page([run for run in runs if run.seed == 1]))


def test_a_method_has_one_colour_in_all_panels(tmp_path):
    """skd is one of two in the replacement panel and of eight elsewhere, in one colour, that of the main method."""
    runs = reading.read_records(write_records(tmp_path))
    root = ElementTree.fromstring(curves.curves_page(runs, None, "supervised", "skd"))
    panels = [[e.get("stroke") for e in group.iter(SVG + "path") if e.get("class") == "line"]
              for group in root.iter(SVG + "g")]
    assert panels[4] == [panels[0][5], curves.PALETTE[0]]  # two_stage is the last but main method and control
    assert panels[0][-2:] == [curves.PALETTE[1], curves.PALETTE[0]] and len(set(panels[0])) == 8


def marks_of(svg, css_class):
    """Elements of a class with the shift of the group that they stand in: [(element, dx, dy)]."""
    found = []
    for group in ElementTree.fromstring(svg).iter(SVG + "g"):
        dx, dy = map(float, group.get("transform")[len("translate("):-1].split())
        found += [(element, dx, dy) for element in group.iter() if element.get("class") == css_class]
    return found


def numbers_of(path):
    return [float(number) for number in re.findall(r"-?\d+\.?\d*", path)]


def test_each_pair_is_a_point(tmp_path):
    """Several pairs: a row per method, teacher and start, a point per pair in it, greedy and sampled side by side, each
    pair at one place within all rows and joined by a line; bar and tick are the interval and the mean."""
    write_records(tmp_path, ["sft", "supervised", "skd"], seeds=2, pairs=4)
    runs = reading.read_records(tmp_path)
    page = curves.curves_page(runs)
    root = ElementTree.fromstring(page)
    rows = [(element.text, float(element.get("y")) - 4) for element, _, _ in marks_of(page, "row")]
    assert [name for name, _ in rows] == ["teacher", "student at the start", "sft", "supervised", "skd"]
    points = [(float(e.get("cx")), float(e.get("cy")), e.get("fill")) for e, _, _ in marks_of(page, "point")]
    assert len(points) == 4 * (5 + 4)  # the start has no sampled score here
    places = {round(min(y - centre for _, centre in rows if abs(y - centre) < 8), 1) for _, y, _ in points}
    assert len(places) == 4  # one for each pair
    assert len(marks_of(page, "pair")) == 2 * 4 and len(marks_of(page, "interval")) == len(marks_of(page, "mean")) == 9
    # What is drawn for skd, greedily, against the ticks at 0 and 1.
    ticks = [(e.text, float(e.get("x"))) for e in next(root.iter(SVG + "g")).iter(SVG + "text")]
    zero, one = (next(x for text, x in ticks if text == label) for label in ("0.0", "1.0"))
    scores = statistics.repeated([run for run in runs if run.variant == "skd"], "score", "pair")
    mean, half_width = statistics.student_t_interval(list(scores.values()))
    centre, near = rows[-1][1], pytest.approx(rows[-1][1], abs=0.11)
    tick = min(x for x, y, _ in (numbers_of(e.get("d")) for e, _, _ in marks_of(page, "mean")) if y + 7 == near)
    low, _, high = min(end for e, _, _ in marks_of(page, "interval") if (end := numbers_of(e.get("d")))[1] == near)
    found = sorted(x for x, y, _ in points if abs(y - centre) < 8)[:4]
    drawn = [zero + score * (one - zero) for score in (mean, mean - half_width, mean + half_width, *scores.values())]
    assert [tick, low, high, *found] == pytest.approx([*drawn[:3], *sorted(drawn[3:])], abs=0.11)
    single = curves.curves_page([run for run in runs if run.pair == 1])
    assert "Score of each pair" in page and "Score of each pair" not in single and not marks_of(single, "point")


@pytest.mark.parametrize("many", [9, 40])
def test_the_panel_of_pairs_takes_what_is_there(many):
    """Forty methods, pairs and figures that are missing, an interval beyond 0..1: valid, inside of the picture. A pair
    is joined by a line, with a gap where a method lacks it; among many rows there are no such lines."""
    scores = {f"m{i}": {(pair, 1): 0.02 * i + 0.05 * pair for pair in range(1, 4) if (i, pair) != (7, 2)}
              for i in range(many)}
    page = curves.curves_page(make_runs(scores) + [make_run("none", (1, 1))])
    root = ElementTree.fromstring(page)
    width, height = float(root.get("width")), float(root.get("height"))
    points = marks_of(page, "point")
    assert len(points) == 3 * many - 1 and [e.text for e, _, _ in marks_of(page, "row")] == [*scores, "none"]
    assert all(0 < float(e.get("cx")) + dx < width and 0 < float(e.get("cy")) + dy < height for e, dx, dy in points)
    gaps = [e.get("d").count("M") for e, _, _ in marks_of(page, "pair")]
    assert gaps == ([1, 2, 1] if many == 9 else []) and ("joined by a faint line" in page) == (many == 9)
    for element, dx, _ in marks_of(page, "interval"):
        low, _, high = numbers_of(element.get("d"))
        assert 0 < low + dx <= high + dx < width
    assert "nan" not in page and "no curves" in page


def test_no_two_rows_of_pairs_share_a_colour(tmp_path):
    """A row has the colour of its method's line, or grey: a colour that comes again, in another dash pattern, would
    say that two rows are one."""
    write_records(tmp_path, ["skd"], pairs=2, seeds=1)
    blank = reading.read_records(tmp_path)
    runs = [run._replace(variant=f"m{i:02}", steps=run.steps if i in (8, 9, 10) else [],
                         final=run.final | {"score": i / 20}) for i in range(20) for run in blank]
    page = curves.curves_page(runs, None, "m09", "m10")
    colors = {}
    for element, _, _ in marks_of(page, "mean"):
        colors.setdefault(element.get("stroke"), set()).add(numbers_of(element.get("d"))[1])
    assert {c: len(rows) for c, rows in colors.items()} == {
        curves.INK: 1, curves.UNNAMED: 12, **dict.fromkeys(curves.PALETTE, 1)} | {curves.INK: 2}


def test_scores_have_one_axis_from_zero(tmp_path):
    """Greedy and sampled curves share an axis that begins at 0 and does not zoom into noise, with the teacher's score
    as a line; curves begin at step 0, also those of figures that have none there."""
    write_records(tmp_path, ["sft", "skd"], 2)
    page = curves.curves_page(reading.read_records(tmp_path))
    panels = [[e for e in group.iter(SVG + "text") if e.get("class") is None]
              for group in ElementTree.fromstring(page).iter(SVG + "g")]
    labels = [[e.text for e in panel] for panel in panels]
    ticks = [[(e.text, e.get("y")) for e in panel][1:] for panel in panels[:2]]
    assert ticks[0] == ticks[1]
    for panel in labels[:2]:
        assert "0.0" in panel and "1.0" in panel and "1.2" not in panel
    assert [text for text, _, _ in texts_of(page, "label")].count("teacher") == 2
    assert all("0" in panel and "100" in panel for panel in labels[:5])
    lines = [float(numbers_of(e.get("d"))[1]) for e, _, _ in marks_of(page, "teacher")]
    top, bottom = (next(float(e.get("y")) - 4 for e in panels[0] if e.text == text) for text in ("1.0", "0.0"))
    assert lines == pytest.approx([bottom + (top - bottom) * score for score in (0.9, 0.8)], abs=0.11)
    assert curves._score_axis([0.501, 0.499])[:2] == (0.0, 1.0) == curves._score_axis([])[:2]
    assert curves._score_axis([0.3])[1] == 0.5 and curves._score_axis([0.0, 0.1])[1] == 0.25
    assert curves._score_axis([-1.0, 3.0])[:2] == (-1.0, 3.0)  # no score, but inside of the picture
    late = make_run("a", evals=[{"step": 50, "score": 0.1}, {"step": 100, "score": 0.2}], score=0.2)
    drawn = curves.curves_page([late])
    assert min(numbers_of(lines_of(drawn)[0])[::2]) > 150  # the line begins in the middle of the plot


# ------------------------------------------------------------------------------------------------------------ files


def test_same_records_same_bytes(tmp_path):
    """Rendering twice, or in another folder, gives identical files, and leaves nothing else behind."""
    texts = []
    for name in ("a", "a", "b"):
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        write_records(folder, budgets=("steps", "compute"))
        returned = report.write_report(folder)
        outputs = {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix != ".jsonl"}
        assert sorted(outputs) == ["curves.svg", "report.html", "summary.json", "table.md"]
        assert outputs["table.md"].decode() == returned == report.render_report(folder)["table.md"]
        texts.append(outputs)
    assert texts[0] == texts[1] == texts[2]


def test_failed_write_keeps_the_old_file(tmp_path, monkeypatch):
    """If the rename does not happen, the old report stays whole and no temporary file is left."""
    write_records(tmp_path, ["sft"], 1)
    before = report.write_report(tmp_path)
    write_records(tmp_path, ["skd"], 1)

    def fail(source, target):
        raise OSError("disk full")

    monkeypatch.setattr(report.os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        report.write_report(tmp_path)
    assert (tmp_path / "table.md").read_text() == before
    assert not [path for path in tmp_path.iterdir() if path.name.endswith(".tmp")]


def test_control_and_focus_follow_the_script(tmp_path):
    """Records of train_okd compare with its own control and main_method unless others are asked for."""
    for variant in ("fixed_forward_kl", "okd"):
        header, *others = make_lines(variant, 1)
        lines = [{**header, "script": "train_okd"}, *others]
        (tmp_path / f"{variant}.jsonl").write_text(record(lines))
    text = report.write_report(tmp_path)
    assert "Δ score to fixed_forward_kl" in text and "| okd minus" in text
    text = report.write_report(tmp_path, control="okd", main_method="fixed_forward_kl")
    assert "Δ score to okd" in text and "| fixed_forward_kl minus" in text


def test_replace_section():
    """Only what stands between the markers changes, doing it twice changes nothing, and markers must be there once."""
    readme = "top\n<!-- results:begin -->\nold\n<!-- results:end -->\nbottom\n"
    once = pages.replace_section(readme, "results", "| new |\n")
    assert once == "top\n<!-- results:begin -->\n\n| new |\n\n<!-- results:end -->\nbottom\n"
    assert pages.replace_section(once, "results", "| new |") == once
    assert pages.replace_section(readme, "results", r"\1 \g<0>").count(r"\1 \g<0>") == 1
    for broken in ("nothing", readme + readme, "<!-- results:end --> <!-- results:begin -->"):
        with pytest.raises(ValueError, match="results:"):
            pages.replace_section(broken, "results", "new")


def test_command_line_prints_what_it_writes(tmp_path, capsys):
    """main prints the table and ends with one line when something is wrong."""
    report.main([str(write_records(tmp_path, ["sft", "skd"], 2)), "--control", "sft", "--order", "skd,sft"])
    table = (tmp_path / "table.md").read_text()
    assert table.strip() in capsys.readouterr().out and "Δ score to sft" in table
    assert "not a folder" in stopped([tmp_path / "no"])


# ---------------------------------------------------------------------------------------------------------- studies


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("methods, drawn", [
    (["sft", "skd"], True), ([f"m{i}" for i in range(report.MOST_DRAWN)], True),
    ([f"m{i}" for i in range(report.MOST_DRAWN + 1)], False), (["skd lr=1", "skd lr=2"], False),
])  # fmt: skip
def test_a_study_of_many_methods_has_no_picture(tmp_path, methods, drawn):
    """Nor has a sweep; a picture that was there, of the run or of fewer methods, goes."""
    write_records(tmp_path, methods, 1)
    report.write_report(tmp_path)
    assert (tmp_path / "curves.svg").exists()
    report.pack(tmp_path)
    assert set(contents(tmp_path)) == {"README.md", archive.PACKED} | ({"curves.svg"} if drawn else set())
    (tmp_path / "curves.svg").write_text("of other records")
    report.write_report(tmp_path)
    assert (tmp_path / "curves.svg").exists() == drawn


def test_a_packed_run_is_the_same_study(tmp_path):
    """Three files, the same runs and the same figures; packed twice, the same bytes; what is not the report's stays."""
    made = {}
    for name in ("a", "b"):
        folder = tmp_path / name
        folder.mkdir()
        write_records(folder, budgets=("steps", "compute"))
        (folder / "skd_seed1.pt").write_bytes(b"a student")
        table, before, old = report.write_report(folder), reading.read_records(folder), contents(folder)
        report.main([str(folder), "--pack"])
        made[name] = contents(folder)
        assert sorted(made[name]) == ["README.md", "curves.svg", "records.jsonl.xz", "skd_seed1.pt"]
        assert reading.read_records(folder) == before
        assert all(made[name][file] == old[file] for file in ("curves.svg", "skd_seed1.pt"))
        page = f"# {name}\n\n<!-- table:begin -->\n\n{table.strip()}\n\n<!-- table:end -->\n"
        assert made[name]["README.md"].decode() == page
    assert made["a"]["records.jsonl.xz"] == made["b"]["records.jsonl.xz"]
    records_of = [old[file] for file in sorted(old) if file.endswith(".jsonl")]
    assert archive.unpacked(folder / archive.PACKED) == b"".join(records_of)


def test_a_studys_own_words_stay(tmp_path):
    """Rendering a study again changes what stands between the markers of its page and nothing else."""
    report.pack(write_records(tmp_path, ["sft"], 2))
    page = tmp_path / "README.md"
    text = page.read_text()
    words = text.replace("# ", "# Why: ").replace("Task math", "Task maths") + "\nWhat it shows.\n"
    page.write_text(words)
    report.main([str(tmp_path)])
    assert page.read_text() == words.replace("Task maths", "Task math") and not (tmp_path / "table.md").exists()
    assert report.pack(tmp_path) in page.read_text()  # packed again: nothing is left to do
    page.write_text("no markers")
    assert "table:begin" in stopped([tmp_path]) and page.read_text() == "no markers"
    page.write_bytes("é <!-- table:begin -->\n<!-- table:end -->\n".encode("latin-1"))
    assert f"{page} is not UTF-8" in stopped([tmp_path]) and page.read_bytes().startswith(b"\xe9")


def test_an_interrupted_pack_is_finished_by_the_next(tmp_path, monkeypatch):
    """Wherever it stops, no record is lost; the next --pack ends at the same files;
    meanwhile one line says what to type."""
    whole = tmp_path / "whole"
    whole.mkdir()
    report.pack(write_records(whole, ["sft", "skd"], 2))
    for stop_at in range(6):
        folder = tmp_path / str(stop_at)
        folder.mkdir()
        write_records(folder, ["sft", "skd"], 2)
        left, unlink = [stop_at], Path.unlink

        def stopping(path, **flags):
            if path.suffix == ".jsonl":
                left[0] -= 1
                if left[0] < 0:
                    raise KeyboardInterrupt
            unlink(path, **flags)

        with monkeypatch.context() as patch:
            patch.setattr(Path, "unlink", stopping)
            if stop_at < 4:
                with pytest.raises(KeyboardInterrupt):
                    report.pack(folder)
                assert "type --pack again" in stopped([folder])
            else:
                report.pack(folder)
        report.pack(folder)
        assert {**contents(folder), "README.md": b""} == {**contents(whole), "README.md": b""}


def test_what_cannot_be_packed_stays(tmp_path):
    """An unfinished run, other records beside an archive, a page without markers, nothing:
    one line, no file is touched."""
    assert "no finished run" in stopped([tmp_path, "--pack"])
    write_records(tmp_path, ["sft"], 2)
    path = tmp_path / "sft_seed3_steps.jsonl"
    path.write_text("\n".join(map(json.dumps, make_lines("sft", 3)[:-1])) + "\n")
    before = contents(tmp_path)
    assert "unfinished" in stopped([tmp_path, "--pack"]) and contents(tmp_path) == before
    path.unlink()
    (tmp_path / "README.md").write_text("my own")
    before = contents(tmp_path)
    assert "table:begin" in stopped([tmp_path, "--pack"]) and contents(tmp_path) == before
    (tmp_path / "README.md").unlink()
    report.pack(tmp_path)
    write_records(tmp_path, ["skd"], 1)
    before = contents(tmp_path)
    assert "does not hold skd_seed1_steps.jsonl" in stopped([tmp_path, "--pack"]) and contents(tmp_path) == before
    assert "skd_seed1_steps.jsonl beside it" in stopped([tmp_path])


def test_a_table_of_other_words_stays(tmp_path):
    """A table.md that is not what the records say is somebody's own: it is not removed."""
    write_records(tmp_path, ["sft"], 1)
    (tmp_path / "table.md").write_text("mine")
    report.pack(tmp_path)
    assert (tmp_path / "table.md").read_text() == "mine"


@pytest.mark.parametrize("kind, said", [
    ("cut", "cut short"), ("longer", "longer"), ("flipped", "no archive"), ("text", "no archive"),
    ("folder", "no file"), ("pipe", "no file"), ("broken link", "no file"),
])
def test_a_damaged_archive_is_named(tmp_path, kind, said):
    """Whatever stands in an archive's place: one line with its path, no waiting, and nothing is written."""
    report.pack(write_records(tmp_path, ["sft"], 2))
    path = tmp_path / archive.PACKED
    data = path.read_bytes()
    path.unlink()
    flipped = data[:200] + bytes([data[200] ^ 1]) + data[201:]
    changed = {"cut": data[:-9], "longer": data + b"more", "flipped": flipped, "text": b"{}" * 99}
    other = {"folder": path.mkdir, "pipe": lambda: os.mkfifo(path),
             "broken link": lambda: path.symlink_to(tmp_path / "nowhere")}
    path.write_bytes(changed[kind]) if kind in changed else other[kind]()
    line = stopped([tmp_path])
    assert str(path) in line and said in line


def test_a_small_archive_takes_no_memory(tmp_path, monkeypatch):
    """A few bytes that would become millions, or ask for a large dictionary, are refused before they are unpacked."""
    path = tmp_path / archive.PACKED
    path.write_bytes(lzma.compress(bytes(2**24)))
    monkeypatch.setattr(archive, "MOST", 2**20)
    with pytest.raises(ValueError, match="holds more than 1,048,576 bytes"):
        archive.unpacked(path)
    with pytest.raises(ValueError, match="at most"):
        archive.packed([bytes(2**21)])
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 0, "dict_size": 2**28}]
    path.write_bytes(lzma.compress(b"x", filters=filters))
    with pytest.raises(ValueError, match="no archive of records"):
        archive.unpacked(path)
    path.write_bytes(b" " * (2**20 + 1))
    with pytest.raises(ValueError, match="is larger than"):
        archive.unpacked(path)


def test_a_python_without_lzma_says_so(tmp_path, monkeypatch):
    report.pack(write_records(tmp_path, ["sft"], 1))
    monkeypatch.setattr(archive, "lzma", None)
    assert "module lzma" in stopped([tmp_path])


def test_a_run_does_not_write_into_a_study(tmp_path):
    """--out with a study's folder is refused before any work, with --resume and without."""
    (tmp_path / archive.PACKED).write_bytes(b"")
    for resume in (False, True):
        with pytest.raises(ValueError, match="holds a finished study .records.jsonl.xz.: give another --out"):
            folders.make_run_folder(str(tmp_path), resume, "x")


# --------------------------------------------------------------------------------------------------- groups, methods


def test_groups_appear_with_their_figures():
    """The adapted teacher's table holds the methods that have one, and is left out of records without any."""
    figures = {"score": 0.5, "seconds": 2.0}
    runs = [make_run(name, seed, header={"script": "train_okd"}, **figures | extra)
            for seed in (1, 2)
            for name, extra in (("fixed_forward_kl", {}), ("okd", {"drift": 0.25 * seed, "seconds": 2.0 + 2 * seed}))]
    table = tables.render_table(runs, "fixed_forward_kl", "okd")
    group = table.split("**The adapted teacher**")[1].split("**okd minus")[0]
    assert "| okd " in group and "fixed_forward_kl" not in group and "0.3750" in group  # the mean drift of .25 and .5
    assert re.search(r"\| okd .*\| +2.50 \|", table)  # the mean of the ratios 4 / 2 and 6 / 2
    assert "adapted teacher" not in tables.render_table(
        [run for run in runs if run.variant != "okd"], "fixed_forward_kl", "okd"
    )


def test_what_a_hint_does_stands_in_a_table():
    """Means over pairs of the models that all methods start from, without rows for the methods; without such figures,
    no table."""
    runs = make_runs({"opsd": {(1, 1): 0.5, (2, 2): 0.5}})
    assert "by the hint" not in tables.render_table(runs)
    for which, gain in (("teacher", 0.0), ("student_start", 0.5)):
        for run in runs:
            run.header[which] = {"score": 0.25, "hint_none": 0.1 * run.pair, "hint_solution": 0.1 * run.pair + gain}
    table = tables.render_table(runs).split("by the hint that stands before them**\n\n")[1].split("\n\n")[0]
    assert table_rows(table, "method") == {
        "teacher": {"method": "teacher", "none": "0.150", "solution": "0.150"},
        "student at the start": {"method": "student at the start", "none": "0.150", "solution": "0.650"},
    }


def test_swept_methods_stand_with_their_method():
    """Labels follow their method in the order of their numbers, whatever the order in which they were run."""
    header = {"order": ["a", "b", "b x=10", "b x=2"]}
    runs = [make_run(name, header=header, score=0.5) for name in ("b x=10", "c", "b", "b x=2", "a")]
    assert reading.ordered_variants(runs) == ["a", "b", "b x=2", "b x=10", "c"]


@pytest.mark.parametrize("script", [train_skd, train_okd], ids=lambda script: script.__name__)
def test_a_row_says_what_it_is(script, capsys):
    """The table of methods has a line per row, in their order;
    what each teacher does, by row or by flag, stands in it."""
    assert script.main(["--list-variants"]) == 0
    table = pages.methods_table(json.loads(capsys.readouterr().out))
    lines = {line.split("`")[1]: line for line in table.splitlines()[2:]}
    assert list(lines) == list(script.VARIANTS)
    if script is train_okd:
        assert "| `generalized_jsd`; rate x 2 | fixed |" in lines["gkd"]
        assert "| `--student-divergence` | `--module` |" in lines["okd"]
        assert "| `--module`, alpha 0 |" in lines["okd_no_feedback"]
        assert "| ptuning, alpha 1, `forward_kl`, module rate 1, anchor 1 to 0, alternating |" in lines["promptkd"]
        assert "| `--module`, meta-gradient, alternating |" in lines["ikd"]
    else:
        assert "| 0.5 `forward_kl` + 0.5 cross-entropy, T = 2 |" in lines["hinton"]
        assert "| `forward_kl`, with `feature` (hidden_mse, weight 1.0) |" in lines["fitnet"]
        assert "| teacher (once) or student | `skew_by_writer` |" in lines["distillm2"]
    for name, row in script.VARIANTS.items():
        assert row.note, name
        assert row.paper is None or re.fullmatch(r"\d{4}\.\d{4,5}|10\.\d{4}/\S+", row.paper), name
        read = f"{row.paper} ({row.read_from})" if row.paper else row.read_from
        assert f"| {read} | {row.deviation or '-'} |" in lines[name]


@pytest.mark.slow
@pytest.mark.parametrize("script", [train_skd, train_okd], ids=lambda script: script.__name__)
def test_a_row_says_where_it_was_read(script):
    """In words of READ_FROM; a row with a paper was read somewhere, and one that was read in part says what is ours."""
    for name, row in script.VARIANTS.items():
        read = row.read_from.split(", ")
        known = catalogue.READ_FROM
        assert set(read) <= set(known), f"{name}: read_from {row.read_from!r} is none of {', '.join(known)}"
        assert row.paper is None or "ours" not in read, f"{name} names a paper: say in read_from where it was read"
        in_part = {"abstract", "summary"} & set(read) and not {"paper", "code"} & set(read)
        assert row.deviation or not in_part, f"{name} was read in part only: say in its deviation what is a guess"


@pytest.fixture
def project(tmp_path):
    """A project of one study, one record of benchmarks and two scripts that print what they are asked for."""
    (tmp_path / "docs").mkdir()
    (tmp_path / "tests").mkdir()
    (tmp_path / "results" / "bench").mkdir(parents=True)
    (tmp_path / "results" / "skd-a").mkdir()
    (tmp_path / "results" / "notes").mkdir()
    (tmp_path / "results" / "bench" / "cpu.json").write_text("fast")
    (tmp_path / "tests" / "bench.py").write_text("import sys; print(open(sys.argv[-1]).read(), '‖')")
    row = {"note": "é", "writer": "student", "loss": "kl", "rate": 0.5, "paper": None, "read_from": "ours",
           "deviation": None}
    for script in ("skd", "okd"):
        (tmp_path / f"train_{script}.py").write_text(f"import json; print(json.dumps({{'{script}': {row}}}))")
    sections = "".join(f"<!-- methods-{script}:begin --><!-- methods-{script}:end -->\n" for script in ("skd", "okd"))
    (tmp_path / "docs" / "methods.md").write_text(f"top\n{sections}bottom\n")
    (tmp_path / "docs" / "speed.md").write_text("<!-- bench-cpu:begin -->\nold\n<!-- bench-cpu:end -->\n")
    report.pack(write_records(tmp_path / "results" / "skd-a", ["sft"], 2))
    return tmp_path


def test_pages_are_rendered_by_one_command(project):
    """Studies, tables of methods and benchmarks: what is out of date is written, what is not is left,
    own words stay."""
    study = project / "results" / "skd-a"
    assert report.write_pages(project) == [project / "docs" / "methods.md", project / "docs" / "speed.md"]
    assert report.write_pages(project) == []
    text = (project / "docs" / "methods.md").read_text(encoding="utf-8")
    assert text.startswith("top\n") and text.endswith("bottom\n")
    assert "| `skd` | é | student | `kl`; rate x 0.5 | ours | - |" in text
    assert "fast ‖" in (project / "docs" / "speed.md").read_text(encoding="utf-8")
    page = (study / "README.md").read_text()
    (study / "README.md").write_text(page.replace("Task math", "Task maths").replace("# skd-a", "# Why"))
    (study / "curves.svg").unlink()
    assert report.write_pages(project) == [study / "README.md", study / "curves.svg"]
    assert (study / "README.md").read_text() == page.replace("# skd-a", "# Why")


def test_a_program_that_fails_stops_the_pages(project):
    """What a script cannot say is no empty table: one error that names the command, and no page is written."""
    (project / "train_okd.py").write_text("raise SystemExit('broken')")
    before = (project / "docs" / "methods.md").read_text()
    with pytest.raises(ValueError, match="python train_okd.py --list-variants failed: broken"):
        report.write_pages(project)
    assert (project / "docs" / "methods.md").read_text() == before


def stopped(argv):
    """The one line with which main ends."""
    with pytest.raises(SystemExit) as stop:
        report.main([str(word) for word in argv])
    assert (
        isinstance(stop.value.code, str) and "\n" not in stop.value.code and stop.value.code.startswith("lab.report: ")
    )
    return stop.value.code


@pytest.mark.parametrize("flag", ["--control", "--main-method", "--order"])
def test_unknown_methods_are_named(tmp_path, flag):
    """A method that is not in the folder, or a blank too many: one line with those that are, and nothing is written."""
    write_records(tmp_path, ["sft", "skd"], 1)
    (tmp_path / "x.jsonl").write_text(record(make_lines("skd lr=0.1", 1, order=7)))
    for wrong in ("sdk", " skd", "skd lr=0.2", *(["sft,,skd", "skd,dks"] if flag == "--order" else [])):
        line = stopped([tmp_path, flag, wrong])
        assert flag in line and "sft, skd, skd lr=0.1" in line
    assert not (tmp_path / "table.md").exists()
    for right in ("skd", "skd lr=0.1", *(["skd,sft"] if flag == "--order" else [])):
        report.main([str(tmp_path), flag, right])


@pytest.mark.parametrize("kind", ["folder", "pipe", "broken link"])
def test_what_is_no_file_is_no_record(tmp_path, kind):
    """A folder, a pipe (from which reading would wait for ever) and a link to nothing in a record's place
    are named, not passed over."""
    write_records(tmp_path, ["sft"], 1)
    path = tmp_path / "x.jsonl"
    {
        "folder": path.mkdir,
        "pipe": lambda: os.mkfifo(path),
        "broken link": lambda: path.symlink_to(tmp_path / "nowhere"),
    }[kind]()
    assert f"{path} is no file" in stopped([tmp_path])


def test_a_folder_in_a_files_place_is_named(tmp_path):
    """A folder called like a file of the report: one line with its path, and no temporary file is left."""
    write_records(tmp_path, ["sft"], 1)
    (tmp_path / "table.md").mkdir()
    assert f"{tmp_path / 'table.md'} is a folder" in stopped([tmp_path])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["sft_seed1_steps.jsonl", "table.md"]


@pytest.mark.parametrize(
    "argv", [[""], ["{}", "--order", ""], ["{}", "--control", ""], ["{}", "--main-method", ""]], ids=str
)
def test_empty_words_are_refused(tmp_path, monkeypatch, argv):
    """An empty folder is not the one that one stands in, and an empty flag is not one left out."""
    monkeypatch.chdir(write_records(tmp_path, ["sft"], 1))
    assert "is empty" in stopped([word.format(tmp_path) for word in argv])
    assert not (tmp_path / "table.md").exists()


def test_a_page_keeps_its_line_ends(tmp_path):
    """Between the markers as everywhere in the file; what stands outside of them stays to the byte."""
    report.pack(write_records(tmp_path, ["sft"], 1))
    page = tmp_path / "README.md"
    for end in (b"\r\n", b"\n"):
        above, below = b"\xef\xbb\xbf# \xc3\xa9" + end + b"<!-- table:begin -->", b"<!-- table:end -->" + end + b"last"
        for body in (end + b"old" + end, None):  # into the old text, and again into its own
            if body:
                page.write_bytes(above + body + below)
            report.main([str(tmp_path)])
            found = page.read_bytes()
            assert found.startswith(above + end * 2) and found.endswith(end * 2 + below) and b"Score" in found
            assert (
                found.count(b"\n") == found.count(end)
                and found.count(b"\r") == (found.count(b"\n") if end == b"\r\n" else 0)
            )


def test_a_closed_pipe_ends_it_quietly(tmp_path):
    """As in `python -m lab.report FOLDER | head -1`: the files are written, and nothing is said about the pipe."""
    end, start = os.pipe()
    os.close(end)
    command = [sys.executable, "-m", "lab.report", str(write_records(tmp_path, ["sft"], 1))]
    done = subprocess.run(command, stdout=start, stderr=subprocess.PIPE, cwd=ROOT)
    os.close(start)
    assert done.stderr == b"" and done.returncode == 1 and (tmp_path / "summary.json").exists()


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_a_terminal_of_another_encoding_shows_what_it_can(tmp_path, encoding):
    """The characters that it lacks become question marks there, and stay what they are in the file."""
    environment = os.environ | {"PYTHONIOENCODING": encoding}
    command = [sys.executable, "-m", "lab.report", str(write_records(tmp_path, ["sft", "skd"], 2))]
    done = subprocess.run(command, capture_output=True, cwd=ROOT, env=environment)
    text = (tmp_path / "table.md").read_text(encoding="utf-8")
    assert (
        done.returncode == 0
        and done.stderr == b""
        and done.stdout.decode(encoding) == text.encode(encoding, "replace").decode(encoding) + "\n"
    )
