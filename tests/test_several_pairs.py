"""--pairs N: every method with every pretrained pair, each pair as if it had been asked for alone."""

import json
import re

import pytest
from test_train_skd import SMALL, cached_pairs, lines_of, without_times  # noqa: F401

import train_skd
from data.tasks import Example, Encoded, random_order
from lab import arguments, command_line, compare, schedule

ARGV = [*SMALL, "--jobs", "1", "--variants", "sft,skd"]


def headers(folder):
    """{name: header} of all records in a folder."""
    return {path.stem: lines_of(path)[0] for path in sorted(folder.glob("*.jsonl"))}


def figures(path):
    """The lines of a record behind its header, without times."""
    return [without_times(line) for line in lines_of(path)[1:]]


@pytest.fixture(scope="module")
def three(cached_pairs, tmp_path_factory):  # noqa: F811
    """The folder of two methods with pairs 7 to 9, run seeds from 4 on."""
    folder = tmp_path_factory.mktemp("pairs") / "out"
    assert train_skd.main([*ARGV, "--pairs", "3", "--pair-seed", "7", "--seed", "4", "--out", str(folder)]) == 0
    return folder


def test_every_method_meets_every_pair(three):
    """Pair 7 + i is distilled with run seed 4 + i; the pairs differ, and the methods of one share it."""
    found = headers(three)
    assert set(found) == {f"{name}_pair{7 + i}_seed{4 + i}" for i in range(3) for name in ("sft", "skd")}
    for name, header in found.items():
        assert name == f"{header['variant']}_pair{header['pair']}_seed{header['seed']}"
    for i in range(3):
        sft, skd = (found[f"{name}_pair{7 + i}_seed{4 + i}"] for name in ("sft", "skd"))
        for key in ("fingerprint", "teacher", "student_start"):
            assert sft[key] == skd[key], key
    assert len({header["fingerprint"] for header in found.values()}) == 3
    assert all((three / f"{model}_pair{7 + i}.pt").exists() for i in range(3) for model in ("teacher", "student_start"))


def test_a_pair_among_others_is_the_pair_alone(cached_pairs, three, tmp_path):  # noqa: F811
    """Pair 8 with run seed 5, asked for alone: every line of its records but times, and its weights' hash."""
    assert train_skd.main([*ARGV, "--pair-seed", "8", "--seed", "5", "--out", str(tmp_path / "alone")]) == 0
    for name in ("sft_pair8_seed5", "skd_pair8_seed5"):
        assert figures(three / f"{name}.jsonl") == figures(tmp_path / "alone" / f"{name}.jsonl")


def test_more_pairs_join_those_that_are_there(cached_pairs, tmp_path, capsys):  # noqa: F811
    """--resume with more pairs, and with more seeds of each, runs what is missing and nothing else."""
    argv, out = [*SMALL, "--jobs", "1", "--variants", "sft"], tmp_path / "out"
    assert train_skd.main([*argv, "--out", str(out)]) == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if re.match(r"sft_pair1_seed1 .* s$", line)]
    assert "done" in line and "score" not in line, "a smoke run compares no scores"
    before = (out / "sft_pair1_seed1.jsonl").read_bytes()
    assert train_skd.main([*argv, "--out", str(out), "--resume", "--pairs", "2", "--seeds", "2"]) == 0
    assert (out / "sft_pair1_seed1.jsonl").read_bytes() == before
    assert set(headers(out)) == {f"sft_pair{p}_seed{s}" for p, s in ((1, 1), (1, 2), (2, 2), (2, 3))}


def test_a_summary_holds_every_pair(three):
    """Means over pairs of what the pairs have; an interval of each method over three pairs."""
    summary = json.loads((three / "summary.json").read_text())
    assert [point["pair"] for point in summary["pairs"]] == [7, 8, 9]
    for which in ("teacher", "student_start"):
        scores = [point[which]["score_sampled"] for point in summary["pairs"]]
        assert summary[which]["score_sampled"] == pytest.approx(sum(scores) / 3)
    for variant in summary["variants"].values():
        scores = [run["score"] for run in variant["runs"]]
        assert [run["pair"] for run in variant["runs"]] == [7, 8, 9]
        assert variant["mean"]["score"] == pytest.approx(sum(scores) / 3)
        assert variant["low"]["score"] <= variant["mean"]["score"] <= variant["high"]["score"]


@pytest.mark.slow
def test_pairs_side_by_side_are_those_in_order(cached_pairs, three, tmp_path):  # noqa: F811
    """Two jobs pretrain and distil what one did; with a cache of their own they find no pair that is there."""
    argv = [*SMALL, "--jobs", "2", "--variants", "sft,skd", "--pairs", "3", "--pair-seed", "7", "--seed", "4"]
    assert train_skd.main([*argv, "--out", str(tmp_path / "out")]) == 0
    for name in headers(three):
        assert figures(three / f"{name}.jsonl") == figures(tmp_path / "out" / f"{name}.jsonl")


@pytest.mark.usefixtures("cached_pairs")
def test_a_pair_that_fails_is_named(tmp_path, monkeypatch):
    """Pretraining that ends in nan: one line, with the pair, before any run."""
    def broken(args, folder):
        if args.pair_seed == 2:
            raise ValueError("pretraining became nan")
        return prepare(args, folder)

    prepare = compare.prepare_pair
    monkeypatch.setattr(compare, "prepare_pair", broken)
    with pytest.raises(ValueError, match="^pair 2 failed: pretraining became nan$"):
        train_skd.main([*ARGV, "--pairs", "2", "--out", str(tmp_path / "out")])
    assert not list((tmp_path / "out").glob("*.jsonl"))


def test_the_pair_decides_no_flag_of_a_record():
    """Records of pairs that were run apart are one comparison: what is compared on --resume names no pair."""
    one, other = (train_skd.parse_flags(["--pair-seed", seed])[0] for seed in ("1", "2"))
    assert arguments.result_flags(one) == arguments.result_flags(other) and one.settings.seed == 1
    assert schedule.of_pair(one, 2).settings == other.settings
    assert {"pairs", "pair_seed", "seed", "seeds"} <= command_line.NEUTRAL_FLAGS


def test_another_pair_has_another_sample_of_prompts():
    """shuffled: a permutation that the seed decides, in which one example more or less moves no other; repeats keep
    places of their own."""
    examples = [Example(f"{i}?", "yes") for i in range(200)] + [Example("again?", "yes")] * 20
    split = Encoded(examples, [[i] for i in range(220)], [[0]] * 220)
    one, again, other = (split.shuffled(seed) for seed in (1, 1, 2))
    assert one == again != other and sorted(one.prompts) == sorted(other.prompts) == split.prompts
    # Among 110 of 220, of 20 repeats some are in and some are out (all on one side: chance below 1e-6).
    assert 0 < sum(example.prompt == "again?" for example in one.first(110).examples) < 20
    without = Encoded(*(column[1:] for column in split)).shuffled(1)
    assert [example for example in one.examples if example != examples[0]] == without.examples
    assert random_order(examples) != random_order(examples, 1)
