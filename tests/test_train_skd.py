"""Laws of train_skd.py: who writes, what is learned from it, what it costs; the script from flags to files;
sample.py's main.

The loop runs on a pair of tiny untrained models: what a method does to a batch does not need models that know anything.
`Watched` (tiny.py) keeps every batch that a run trained on, so that a test can say again, slowly, what should have
happened. What each row's loss is, is said by hand in test_methods.py.
"""

import argparse
import copy
import dataclasses
import functools
import itertools
import json
import math
import os
import re
import shutil
import subprocess
import sys
import urllib.request
from pathlib import Path

import adapters
import pytest
import torch
from test_methods import plain_loss
from tiny import (  # noqa: F401  (some are for other files)
    SKD_KINDS,
    WRITING,
    Watched,
    cached,
    deep_pair,
    distance,
    flags,
    generator,
    greedy_by_loop,
    lenient,
    matrix,
    moved_apart,
    padded,
    pair,
    prompts_of,
    same_weights,
    sharp_gpt,
    sources_of,
    state_of,
    teacher_of,
    tiny_pair,
    unmeasured,
    weight_differences,
    weights_of,
)
from torch.utils.flop_counter import FlopCounterMode

import losses
import methods
import sample
import train_skd
from data import corpora, metrics
from data.tasks import HINTS, make_task
from data.tokenizer import train_tokenizer
from lab import arguments, compare, folders, monitoring, pairs, records, rollouts, schedule, training
from lab.evaluate import evaluate, sample_responses
from lab.monitoring import step_columns, step_figures
from lab.pairs import PairSettings, encode_task
from lab.terminal import width
from losses import forward_kl, with_tail
from methods import resolve, sampling_now, scheduled
from model import GPT, learning_rate, save_checkpoint
from sample import DATASET, STUDENT, TEACHER, rollout_from_ids
from train_skd import VARIANTS, main, parse_flags

ROOT = Path(train_skd.__file__).parent
SIX_SIGMA = 4.9  # |z| above this has a probability below 1e-6 for a fair coin


def write_tokens(row, student, pair, rows, half, args, generator, teacher_answers):
    """One batch as the loop asks for it: the row's writer, the flags' sampling."""
    references = pair.train.responses if teacher_answers is None else teacher_answers
    return sample.write_tokens(
        row.writer,
        student,
        pair.teacher,
        [pair.train.prompts[i] for i in rows],
        [references[i] for i in rows],
        pair.max_new_tokens,
        generator=generator,
        eos_token=pair.tokenizer.eos_token,
        reference_source=TEACHER if row.answers is not None else DATASET,
        **sampling_now(resolve(row, args.accept_top_k), compare.make_run(pair, args, 1), half / 2),
    )


def write(variant, pair, rows, half=0, seed=0, answers=None, student=None, **knobs):
    row = VARIANTS[variant] if isinstance(variant, str) else variant
    student = student or pair.new_student()
    return write_tokens(row, student, pair, rows, half, flags(**knobs), generator(seed), answers)


# ---------------------------------------------------------------------------------------------------------------------
# The table of methods.


def test_the_table_holds_what_others_rely_on(capsys):
    """The names exist, in the definitions that were promised;
    --list-variants prints the rows as JSON and does nothing else."""
    assert main(["--list-variants"]) == 0
    table = json.loads(capsys.readouterr().out)
    required = "sft supervised seqkd on_policy imitkd gkd two_stage skd".split()
    assert list(table) == list(VARIANTS) and set(required) <= set(table)
    known = {
        "cross_entropy",
        *losses.DIVERGENCES,
        *losses.MATCHING_LOSSES,
        *losses.TOKEN_LOSSES,
        *losses.SEQUENCE_LOSSES,
    }
    for row in table.values():
        assert {"writer", "loss", "paper"} <= set(row) and row["note"]
        assert row["writer"] in sample.WRITERS
        assert row["paper"] is None or re.fullmatch(r"\d{4}\.\d{4,5}|10\.\d+/\S+", row["paper"])
        assert row["loss"] in known
        assert row["method"] in {None, *methods.METHODS} and row["teacher"] in methods.TEACHERS
        assert 0 < row["kd_weight"] <= 1 and row["temperature"] > 0 and row["mix_per"] in ("batch", "sequence")
    assert all(table[name]["method"] is None and table[name]["teacher"] == "pair" for name in required)
    writers = {name: table[name]["writer"] for name in required}
    assert writers == dict(zip(required, "dataset dataset teacher student mixed mixed mixed interleaved".split()))
    forward = {"supervised", "on_policy", "imitkd", "two_stage", "skd"}
    assert {name for name in required if table[name]["loss"] == "forward_kl"} == forward
    assert table["gkd"]["loss"] == "generalized_jsd" and table["gkd"]["loss_kwargs"] == {"beta": 0.5}
    assert set(train_skd.MAIN) == set(required)


def test_flags_reach_what_they_decide():
    """--size sets both models, steps and rate; every flag of the pair overwrites its part, and nothing else."""
    usual, names = parse_flags(["--device", "cpu"])
    assert (
        names == list(train_skd.MAIN)
        and usual.steps == pairs.SIZES["tiny"]["steps"]
        and usual.settings == PairSettings()
    )
    small = parse_flags(["--device", "cpu", "--size", "small"])[0]
    for name, value in pairs.SIZES["small"].items():
        of = {"steps": (small, "steps"), "lr": (small, "default_lr")}.get(name, (small.settings, name))
        assert getattr(*of) == value
    for flag, value in (("teacher_steps", 7), ("start_steps", 8), ("teacher_prompts", 9), ("student_prompts", 10),
                        ("vocab_size", 300), ("block_size", 40), ("student_start", "raw"),
                        ("pair_seed", 5)):  # fmt: skip
        args = parse_flags(["--device", "cpu", f"--{flag.replace('_', '-')}", str(value)])[0]
        assert args.settings == dataclasses.replace(PairSettings(), **{"seed" if flag == "pair_seed" else flag: value})
    assert parse_flags(["--device", "cpu", "--student-prompts", "0"])[0].settings.student_prompts is None
    narrow = parse_flags(["--device", "cpu", "--student-width", "16"])[0].settings
    assert narrow == dataclasses.replace(PairSettings(), student_shape=(2, 2, 16))
    quick = parse_flags(["--device", "cpu", "--quick", "--teacher-steps", "7"])[0]
    assert quick.settings == dataclasses.replace(pairs.QUICK, teacher_steps=7) and quick.steps < usual.steps
    task = compare.load_task(
        parse_flags(["--device", "cpu", "--quick", "--difficulty", "3", "--entropy", "0", "--hard-share", "1"])[0]
    )
    assert {name: task.options[name] for name in ("difficulty", "entropy", "hard_share")} == {
        "difficulty": 3,
        "entropy": 0.0,
        "hard_share": 1.0,
    }
    assert task.options["test_examples"] == pairs.QUICK_TASK["test_examples"]


# ---------------------------------------------------------------------------------------------------------------------
# Who writes.


def test_dataset_writes_the_references(pair):
    """Tokens are prompt and reference of the very rows asked for, all labelled DATASET."""
    rows = [5, 0, 5, 17]
    for variant in ("sft", "supervised"):
        rollout = write(variant, pair, rows)
        assert prompts_of(rollout) == [pair.train.prompts[i] for i in rows]
        assert rollout.responses() == [pair.train.responses[i] for i in rows]
        assert sources_of(rollout) == [{DATASET}] * 4


def test_student_writes_its_own_samples(pair):
    """All tokens are the student's, drawn at the student's temperature: at 0 they are its argmaxes."""
    rows, eos = [5, 0, 5, 17], pair.tokenizer.eos_token
    rollout = write("on_policy", pair, rows)
    assert prompts_of(rollout) == [pair.train.prompts[i] for i in rows] and sources_of(rollout) == [{STUDENT}] * 4
    first, _, third, _ = rollout.responses()
    assert first != third  # two samples of one prompt
    greedy = write("on_policy", pair, rows, student_temperature=0.0)
    student = pair.new_student()
    assert greedy.responses() == [
        greedy_by_loop(student, pair.train.prompts[i], pair.max_new_tokens, eos) for i in rows
    ]


def test_teacher_writes_its_greedy_answers(pair):
    """seqkd trains on the teacher's greedy answers, the same ones at every step."""
    run = Watched(VARIANTS["seqkd"], pair, flags(steps=14))  # 14 * 4 rows: more than two epochs of 24
    eos = pair.tokenizer.eos_token
    for rollout in run.rollouts:
        assert sources_of(rollout) == [{TEACHER}] * 4
        for prompt, response in zip(prompts_of(rollout), rollout.responses()):
            assert response == greedy_by_loop(pair.teacher, prompt, pair.max_new_tokens, eos)


def test_interleaved_writers_limits(pair):
    """skd hands on its knobs: K = 0 is all teacher, K = V all student, in between both;
    argmax replacements are greedy."""
    rows, V, eos = [0, 1, 2, 3], pair.tokenizer.n_vocab, pair.tokenizer.eos_token
    assert sources_of(write("skd", pair, rows, accept_top_k=0)) == [{TEACHER}] * 4
    assert sources_of(write("skd", pair, rows, accept_top_k=V)) == [{STUDENT}] * 4
    assert set.union(*sources_of(write("skd", pair, rows))) == {STUDENT, TEACHER}
    greedy = [greedy_by_loop(pair.teacher, pair.train.prompts[i], pair.max_new_tokens, eos) for i in rows]
    for knobs in ({"replace": "argmax"}, {"teacher_temperature": 0.0}):
        assert write("skd", pair, rows, accept_top_k=0, **knobs).responses() == greedy
    own = [greedy_by_loop(pair.new_student(), pair.train.prompts[i], pair.max_new_tokens, eos) for i in rows]
    assert write("skd", pair, rows, accept_top_k=V, student_temperature=0.0).responses() == own
    assert sources_of(write("skd", pair, rows, accept_rule="all")) == [{STUDENT}] * 4
    blind = write("skd", pair, rows, accept_rule="random", rule={"replace_rate": 1.0})
    assert sources_of(blind) == [{TEACHER}] * 4
    assert sources_of(write("skd", pair, rows, accept_top_k=0, no_write_back=True)) == [{STUDENT}] * 4


@pytest.mark.parametrize(
    "knobs,passed",
    [
        ({"student_temperature": 0.3}, {"student_temperature": 0.3}),
        ({"student_top_p": 0.3}, {"student_top_p": 0.3}),
        ({"teacher_temperature": 3.0}, {"teacher_temperature": 3.0}),
        ({"teacher_top_p": 0.2}, {"teacher_top_p": 0.2}),
        ({"accept_on": "warped", "teacher_top_p": 0.2}, {"accept_on": "warped", "teacher_top_p": 0.2}),
        ({"judge_fresh": True}, {"judge_fresh": True}),
        ({"no_write_back": True}, {"write_back": False}),
        ({"replace": "sample_topk", "accept_top_k": 2}, {"replace": "sample_topk", "accept_top_k": 2}),
        ({"rule": {"accept_top_p": 0.5}, "accept_rule": "topp"}, {"accept_rule": "topp", "accept_top_p": 0.5}),
    ],
)
def test_every_switch_reaches_the_sampler(pair, knobs, passed):
    """A flag of the script is the sampler's own argument: the rollout of a direct call,
    and another one without the first flag."""
    rows, student = [2, 7, 1, 8], pair.new_student()
    arguments = {
        "gamma": 4,
        "accept_top_k": 60,
        "eos_token": pair.tokenizer.eos_token,
        "generator": generator(0),
    } | passed
    prompts = [pair.train.prompts[i] for i in rows]
    wanted = sample.interleaved_generate(student, pair.teacher, prompts, pair.max_new_tokens, **arguments)
    found = write("skd", pair, rows, student=student, **knobs)
    assert found.responses() == wanted.responses() and sources_of(found) == sources_of(wanted)
    assert found.responses() != write("skd", pair, rows, student=student, **dict(list(knobs.items())[1:])).responses()


def test_the_nucleus_is_the_students(pair):
    """--student-top-p holds for the student's own samples, too: a tiny nucleus is greedy decoding."""
    tiny, greedy = (
        write("on_policy", pair, [2, 7], **knobs) for knobs in ({"student_top_p": 1e-6}, {"student_temperature": 0.0})
    )
    assert tiny.responses() == greedy.responses() != write("on_policy", pair, [2, 7]).responses()


@pytest.mark.parametrize("gamma", [1, 3, 9, None])
def test_gamma_costs_but_does_not_count(pair, gamma):
    """The rollout of a batch is the same for every gamma; only the blocks differ (None:
    4, then 2, since all was rejected)."""
    wanted, found = (write("skd", pair, [3, 1, 4, 1], gamma=number) for number in (4, gamma))
    assert torch.equal(wanted.tokens, found.tokens) and torch.equal(wanted.source, found.source)
    assert {block.proposed.size(1) for block in found.blocks[:2]} == ({gamma} if gamma else {4, 2})


def test_mixed_rows_stay_in_place(pair):
    """A draw per sequence: rows of the student and of the dataset keep their prompts, each with its own response."""
    rows, eos, student = list(range(16)), pair.tokenizer.eos_token, pair.new_student()
    rollout = write("imitkd", pair, rows, student=student, student_temperature=0.0)
    labels = sources_of(rollout)
    assert {STUDENT} in labels and {DATASET} in labels and prompts_of(rollout) == pair.train.prompts[:16]
    for i, (label, response) in enumerate(zip(labels, rollout.responses())):
        own = greedy_by_loop(student, pair.train.prompts[i], pair.max_new_tokens, eos)
        assert response == (own if label == {STUDENT} else pair.train.responses[i])


@pytest.mark.parametrize("half", [0, 1])
def test_a_coin_per_sequence_or_per_batch(pair, half):
    """imitkd: half of the sequences, independently. gkd: half of the batches, each of one writer.
    False alarms below 1e-5."""
    short, student, draws = dataclasses.replace(pair, max_new_tokens=1), pair.new_student(), generator(1)
    batches = {}
    for variant, number, size in (("imitkd", 25, 24), ("gkd", 150, 2)):
        rollouts = [
            write_tokens(VARIANTS[variant], student, short, list(range(size)), half, flags(), draws, None)
            for _ in range(number)
        ]
        batches[variant] = [[label == {STUDENT} for label in sources_of(rollout)] for rollout in rollouts]
    n = 25 * 24
    per_sequence = sum(map(sum, batches["imitkd"]))
    assert abs(per_sequence - n / 2) < SIX_SIGMA * math.sqrt(n) / 2
    # neighbours in a batch agree half of the time: one draw per batch would agree always
    agree = sum(a == b for batch in batches["imitkd"] for a, b in zip(batch, batch[1:]))
    assert abs(agree - 25 * 23 / 2) < SIX_SIGMA * math.sqrt(25 * 23) / 2
    assert all(len(set(batch)) == 1 for batch in batches["gkd"])
    by_student = sum(batch[0] for batch in batches["gkd"])
    assert abs(by_student - 75) < SIX_SIGMA * math.sqrt(150) / 2


@pytest.mark.parametrize("steps", [4, 5])
def test_two_stages(pair, steps):
    """two_stage: references before the middle of the run, student samples from there on."""
    run = Watched(VARIANTS["two_stage"], pair, flags(steps=steps))
    writers = [set.union(*sources_of(rollout)) for rollout in run.rollouts]
    assert writers == [{DATASET} if 2 * step < steps else {STUDENT} for step in range(steps)]
    assert 2 in map(len, (set(map(tuple, writers)), writers))  # both stages were seen


# ---------------------------------------------------------------------------------------------------------------------
# What a row says about a step.


@pytest.mark.parametrize("shape", ["linear", "cosine"])
def test_a_schedule_goes_from_first_to_last(shape):
    """At 0 the first, at .5 the middle, at 1 the last, no way back;
    linear is a line, cosine stands still at both ends."""
    for first, last in ((1.0, 3.0), (0.5, 0.25), (2.0, 2.0)):
        places = [i / 50 for i in range(51)]
        values = [scheduled((shape, first, last), place) for place in places]
        assert [values[0], values[25], values[50]] == pytest.approx([first, (first + last) / 2, last])
        assert values == sorted(values, reverse=last < first)
        steps = [abs(b - a) for a, b in zip(values, values[1:])]
        if first != last:
            assert (
                (max(steps) < 1.001 * min(steps)) == (shape == "linear")
                and (steps[0] < 0.1 * steps[25]) == (shape == "cosine")
            )
    assert scheduled(["linear", 1, 3], 0.25) == 1.5  # as JSON has it
    assert [scheduled(number, place) for number in (0.3, 4) for place in (0, 0.7)] == [0.3, 0.3, 4, 4]


def options_of(variant, args, progress, pair=tiny_pair()):
    return sampling_now(resolve(VARIANTS[variant], args.accept_top_k), compare.make_run(pair, args, 1), progress)


def test_what_the_rows_ask_of_the_sampler():
    """ca_opd's bar falls from .5 to .25, skd_k_steps' K grows from a third of the flag's to twice it,
    skd_k_along's is the flag's."""
    args = flags()
    bars = [options_of("ca_opd", args, progress)["interleaved"]["accept_min_prob"] for progress in (0.0, 0.5, 1.0)]
    assert bars == pytest.approx([0.5, 0.375, 0.25])
    numbers = [options_of("skd_k_steps", args, progress)["interleaved"]["accept_top_k"] for progress in (0.0, 0.5, 1.0)]
    assert numbers == pytest.approx([20, 70, 120])
    along = options_of("skd_k_along", args, 0.7)["interleaved"]
    assert (along["accept_top_k"], along["first"], along["last"], along["along"]) == (60, 2.0, 1 / 3, 32.0)
    assert options_of("adaswitch", args, 0.3)["switching"] == {"factor": 3.0, "window": 4}
    assert VARIANTS["speckd"].loss_kwargs == {"accept_top_k": None}
    assert resolve(VARIANTS["speckd"], 60).loss_kwargs == {"accept_top_k": 60}
    for progress, half in ((0.3, 0), (0.5, 1)):
        for name, row in VARIANTS.items():
            if not row.sampling:
                wanted = arguments.sampling_options(args)
                wanted |= {"student_share": row.student_share[half], "mix_per": row.mix_per}
                assert wanted.pop("rule") == {} and options_of(name, args, progress) == wanted, name


def test_a_flags_rule_is_not_a_rows_rule():
    """A row with a rule of its own takes no knob of the flag's rule, and keeps the other flags;
    a row without one takes all."""
    args = flags("--accept-rule", "topp", "--rule", "accept_top_p=0.5", "--gamma", "3", "--teacher-temperature", "0.7")
    for name, rule in (
        ("ca_opd", "minprob"),
        ("skd_k_along", "topk_along"),
        ("skd_entropy", "typical"),
        ("skd_k_steps", "topk"),
    ):
        options = options_of(name, args, 0.2)["interleaved"]
        assert options["accept_rule"] == rule and "accept_top_p" not in options
        assert options["gamma"] == 3 and options["teacher_temperature"] == 0.7
    options = options_of("skd", args, 0.2)["interleaved"]
    assert options["accept_rule"] == "topp" and options["accept_top_p"] == 0.5
    run = compare.make_run(tiny_pair(), args, 1)
    before = copy.deepcopy(run.sampling)
    for name in VARIANTS:  # nobody takes the flags' values away from the next step
        sampling_now(VARIANTS[name], run, 0.2)
    assert args.rule == {"accept_top_p": 0.5} and run.sampling == before == arguments.sampling_options(args)
    warped = flags("--accept-on", "warped", "--teacher-top-p", "0.9")  # which is for topk alone
    assert {
        options_of(name, warped, 0.2)["interleaved"]["accept_on"] for name in ("ca_opd", "skd_k_along", "skd_entropy")
    } == {"raw"}
    assert options_of("skd_k_steps", warped, 0.2)["interleaved"]["accept_on"] == "warped"


FLAGS_OF_THE_SAMPLER = [
    ["--accept-rule", "topp", "--rule", "accept_top_p=0.8"],
    ["--accept-rule", "minprob", "--rule", "accept_min_prob=0.01"], ["--accept-on", "warped", "--teacher-top-p", "0.9"],
    ["--judge-fresh"], ["--replace", "sample_topk"], ["--no-write-back"], ["--gamma", "2"],
]  # fmt: skip


WITH_BOTH = [name for name, row in VARIANTS.items() if row.writer in ("interleaved", "switching", "trust_region")]


@pytest.mark.usefixtures("unmeasured")
@pytest.mark.parametrize("switch", FLAGS_OF_THE_SAMPLER, ids=" ".join)
@matrix("variant", WITH_BOTH, fast=["skd", "adaswitch"])
def test_rows_and_flags_get_along(pair, variant, switch):
    """Every row that writes with both models runs with every switch of the sampler."""
    run = Watched(VARIANTS[variant], pair, flags(*switch))
    assert distance(run.start, run.end) > 0


def test_a_schedule_follows_the_steps(pair, monkeypatch):
    """In a run of four steps the writer is asked at 0, 1/4, 1/2 and 3/4 of the way, with the row's numbers of then."""
    asked, original = [], training.write_tokens

    def told(*arguments, **options):
        asked.append(options["interleaved"])
        return original(*arguments, **options)

    monkeypatch.setattr(training, "write_tokens", told)
    for name, knob in (("ca_opd", "accept_min_prob"), ("skd_k_steps", "accept_top_k")):
        asked.clear()
        args = flags(steps=4)
        Watched(VARIANTS[name], pair, args)
        wanted = [options_of(name, args, step / 4)["interleaved"][knob] for step in range(4)]
        assert [options[knob] for options in asked] == wanted and len(set(wanted)) == 4


# ---------------------------------------------------------------------------------------------------------------------
# The loop.


@matrix("variant", VARIANTS, fast=SKD_KINDS)
def test_only_the_student_moves(deep_pair, variant):
    """Two steps of every method change the student and leave teacher,
    starting weights and the global generator alone."""
    pair = deep_pair
    teacher, start, state = weights_of(pair.teacher), copy.deepcopy(pair.student_weights), torch.get_rng_state()
    run = Watched(VARIANTS[variant], pair, flags())
    assert distance(run.start, run.end) > 0 and all(torch.isfinite(weight).all() for weight in run.end.values())
    assert same_weights(teacher, pair.teacher.state_dict()) and same_weights(start, pair.student_weights)
    assert all(weight.grad is None for weight in pair.teacher.parameters())
    assert torch.equal(state, torch.get_rng_state())
    assert [line["step"] for line in run.steps] == [1, 2] and run.evals[-1]["step"] == 2
    assert not run.student.training and run.costs["steps"] == 2 and run.costs["seconds"] > 0


@pytest.mark.usefixtures("unmeasured")
@matrix("variant", VARIANTS, fast=SKD_KINDS)
def test_a_run_is_a_function_of_its_seed(deep_pair, variant):
    """The same seed gives the same weights to the bit, another seed others."""
    one, other, third = (Watched(VARIANTS[variant], deep_pair, flags(), seed).end for seed in (1, 1, 2))
    assert same_weights(one, other) and not same_weights(one, third)


@pytest.mark.parametrize("variant", ["on_policy", "skd"])
def test_noise_is_the_seeds(pair, variant):
    """One prompt only, and a student that stands still, so that neither order nor learning can differ: samples still
    differ between seeds, steps and rows."""
    one_prompt = dataclasses.replace(pair, train=type(pair.train)(*(column[:1] for column in pair.train)))
    texts = [
        response
        for seed in (1, 2)
        for rollout in Watched(VARIANTS[variant], one_prompt, flags(lr=1e-12), seed).rollouts
        for response in map(tuple, rollout.responses())
    ]
    assert len(set(texts)) == len(texts) == 2 * 2 * 4


@pytest.mark.usefixtures("unmeasured")
@matrix("variant", VARIANTS, fast=SKD_KINDS)
def test_all_methods_see_the_same_prompts(pair, variant):
    """Batch by batch the prompts are the order of the seed, the same for every method, and others for another seed.

    A batch that distillm replays is the exception, by design: it was seen before. So early in a run there is none.
    kdrl and sdpo answer the first prompts of a batch several times.
    """
    run = Watched(VARIANTS[variant], pair, flags(), 3)
    assert "replay" not in run.writers
    times = VARIANTS[variant].method_kwargs.get("group", 1)
    wanted, other = (
        [
            [pair.train.prompts[rows[place // times]] for place in range(4)]
            for rows in training.batch_order(24, 4, 2, generator(seed)).tolist()
        ]
        for seed in (3, 4)
    )
    assert [prompts_of(rollout) for rollout in run.rollouts] == wanted != other


def test_responses_of_different_lengths_tell_the_reductions_apart(pair):
    """A batch as above with one short response: means over tokens and over responses differ
    (the test above sees both)."""
    def cut(rollout):
        return rollout_from_ids(
            prompts_of(rollout),
            [response[: 3 * i + 1] for i, response in enumerate(rollout.responses())],
            [DATASET] * 4,
            "cpu",
        )

    found = []
    for reduction in ("token", "sequence"):
        run = Watched(VARIANTS["supervised"], pair, flags(steps=1, reduction=reduction), change=cut)
        wanted = plain_loss("supervised", run, 0, reduction)
        assert (run.steps[0]["loss"], run.steps[0]["gradient_norm"]) == pytest.approx(wanted, rel=1e-4)
        found.append(run.steps[0]["loss"])
    assert abs(found[0] - found[1]) > 1e-3


LEARNS_FROM_ITSELF = {  # rows whose loss a teacher that is the student does not make minimal: what else is in it
    **dict.fromkeys(("sft", "seqkd", "ssd", "lwkd", "label_smoothing", "one"), "labels, and no teacher"),
    **dict.fromkeys(("hinton", "dkd", "logit_std", "uld", "cmkd", "ckd", "rdd", "dpkd"), "labels beside the teacher"),
    "rs_kd": "tokens that were drawn from the teacher stand for it",
    "ca_opd": "what was replaced is a label",
    "veto": "a product of both models is sharper than either",
    "kdrl": "a score is a reward of its own",
    **dict.fromkeys(("fitnet", "hidden_cosine", "fsp", "dskd"), "a projector that starts at random"),
    "lelp": "a head that starts at random",
    **dict.fromkeys(("takd", "sftn", "mopd"), "another teacher is made first"),
    **{name: "the teacher reads more than the student" for name, row in VARIANTS.items() if row.hint},
}


@pytest.mark.usefixtures("unmeasured")
@matrix("variant", VARIANTS, fast=SKD_KINDS)
def test_nothing_is_learned_from_a_teacher_that_is_the_student(variant):
    """Distilling a model from itself: loss 0, its minimum, and gradient 0, whoever writes.
    Where not, there is a reason."""
    room = 20 if VARIANTS[variant].hint == "sibling" else 0  # for another response before one's own
    pair = tiny_pair(2, 3, room)
    twin = dataclasses.replace(pair, teacher=pair.new_student().requires_grad_(False).eval())
    (line,) = Watched(VARIANTS[variant], twin, flags(steps=1)).steps
    if variant in LEARNS_FROM_ITSELF:
        assert abs(line["loss"]) > 1e-4 and line["gradient_norm"] > 1e-3  # a policy gradient's value has no sign
    else:
        assert abs(line["loss"]) < 1e-6 and line["gradient_norm"] < 1e-4


COLD = dataclasses.replace(VARIANTS["rdd"], method_kwargs={"warmup": 0.0})  # rdd's second stage, from the first step on


@pytest.mark.usefixtures("unmeasured")
@matrix("variant", [*VARIANTS, "rdd's second stage"], fast=[*SKD_KINDS, "rdd's second stage"])
def test_padding_teaches_nothing(variant):
    """Extra columns on the right change neither loss nor gradient nor any other figure of the step."""
    roomy, row = tiny_pair(2, 3, room=8), VARIANTS.get(variant, COLD)
    one, other = (Watched(row, roomy, flags(steps=1), change=change) for change in (lambda rollout: rollout, padded))
    assert other.rollouts[0].tokens.size(1) == one.rollouts[0].tokens.size(1) + 5
    for figure in one.steps[0].keys() - {"kind"}:
        if figure.endswith("_ms"):
            continue
        least = 5e-6 if figure == "entropy_gap" else None  # the rounding of both entropies
        assert other.steps[0][figure] == pytest.approx(one.steps[0][figure], rel=1e-4, abs=least), figure
    assert moved_apart(weights_of_own(one), weights_of_own(other)) < 2e-5  # what its method learned


def weights_of_own(run):
    """The method's own parameters and buffers."""
    return {
        name: x for name, x in state_of(run.method).items() if isinstance(x, torch.Tensor) and x.is_floating_point()
    }


def test_verification_logits_are_the_teachers(pair):
    """skd's targets come from the verification: the very rows that the teacher gives for the finished text."""
    for gamma in (1, 4):
        rollout = write("skd", pair, [0, 1, 2, 3, 4], gamma=gamma)
        wanted = adapters.model_logits(pair.teacher, rollout.tokens)[:, :-1]
        mask = rollout.response_mask[:, 1:]
        assert torch.allclose(rollout.teacher_logits[mask], wanted[mask], atol=1e-4)

    def forget(rollout):
        return dataclasses.replace(rollout, teacher_logits=None)

    kept, asked = (
        Watched(VARIANTS["skd"], pair, flags(steps=1), change=change) for change in (lambda rollout: rollout, forget)
    )
    assert kept.steps[0]["loss"] == pytest.approx(asked.steps[0]["loss"], rel=1e-4)
    assert kept.steps[0]["gradient_norm"] == pytest.approx(asked.steps[0]["gradient_norm"], rel=1e-4)


def test_skd_at_k_v_writes_the_on_policy_text(pair):
    """Where the teacher accepts everything, skd's rollout is the student's own of the same noise
    (on_policy drew who writes before)."""
    draws = generator(5)
    torch.rand(1, generator=draws)
    args, rows = flags(accept_top_k=pair.tokenizer.n_vocab), [3, 0, 7, 7]
    skd = write_tokens(VARIANTS["skd"], pair.new_student(), pair, rows, 0, args, draws, None)
    on_policy = write("on_policy", pair, rows, seed=5)
    assert skd.responses() == on_policy.responses() and sources_of(skd) == sources_of(on_policy)


def test_the_rate_warms_up_and_cools_down(pair):
    """The logged rates are the schedule; the steps obey it:
    Adam's first step is the first rate, its last ones are tiny."""
    run = Watched(VARIANTS["sft"], pair, flags(steps=40, lr=1e-3))
    assert [line["lr"] for line in run.steps] == [learning_rate(step, 40, 1e-3) for step in range(40)]
    biases = [name for name in run.start if name.endswith("bias")]
    moved = [
        max((late[name] - early[name]).abs().max().item() for name in biases)
        for early, late in zip([run.start, *run.weights], run.weights)
    ]
    assert moved[0] == pytest.approx(learning_rate(0, 40, 1e-3), rel=0.02)  # 5 % warm-up of 40 steps: half the peak
    assert moved[-1] < 0.1 * max(moved)


def test_weight_decay_reaches_matrices(pair):
    """--weight-decay pulls matrices towards 0 by rate * decay beyond the step without it, and leaves gains alone."""
    plain, decayed = (
        Watched(VARIANTS["sft"], pair, flags(steps=1, lr=1e-3, weight_decay=decay)) for decay in (0.0, 0.5)
    )
    for name, start in plain.start.items():
        pulled = plain.end[name] - decayed.end[name]
        wanted = 1e-3 * 0.5 * start if start.dim() >= 2 else torch.zeros_like(start)
        assert torch.allclose(pulled, wanted, atol=2e-6), name


def test_long_gradients_are_clipped(pair):
    """The norm that is logged is the one before clipping; the update is that of a gradient of norm 1."""
    run = Watched(VARIANTS["sft"], pair, flags(steps=1))
    assert run.steps[0]["gradient_norm"] > 1  # so the batch below is clipped
    wanted = plain_loss("sft", run, 0, "token")[1]
    assert run.steps[0]["gradient_norm"] == pytest.approx(wanted, rel=1e-4)
    norm = math.sqrt(sum(weight.grad.square().sum().item() for weight in run.student.parameters()))
    assert norm == pytest.approx(1, rel=1e-4)  # what the optimizer was given


@pytest.mark.parametrize("variant", ["on_policy", "imitkd", "skd"])
def test_measuring_changes_nothing(pair, variant, monkeypatch):
    """A run that is never measured or logged on the way ends with the same weights."""
    wanted = Watched(VARIANTS[variant], pair, flags(steps=3)).end
    figures = {"score": 0.0, "val_nll": 0.0, "kl_teacher": 0.0}
    monkeypatch.setattr(compare, "evaluate_quickly", lambda *args, **kwargs: figures)
    monkeypatch.setattr(monitoring, "step_figures", lambda *args, **kwargs: {})
    assert same_weights(wanted, Watched(VARIANTS[variant], pair, flags(steps=3, log_every=100)).end)


def test_lines_on_the_way(pair):
    """Step lines every log_every steps and at the end, eval lines before the first step, about eight times, at the
    end."""
    run = Watched(VARIANTS["sft"], pair, flags(steps=33, log_every=10))
    assert [line["step"] for line in run.steps] == [1, 11, 21, 31, 33]
    at = [line["step"] for line in run.evals]
    assert at[0] == 0 and at[-1] == 33 and 9 <= len(at) <= 11 and at == sorted(set(at))
    assert all({"score", "val_nll", "kl_teacher"} <= set(line) for line in run.evals)


def test_a_loss_that_is_not_finite_ends_the_run(pair):
    """One line says that it was so before the first step; the run does not go on."""
    broken = dataclasses.replace(pair, student_weights=copy.deepcopy(pair.student_weights))
    broken.student_weights["norm.weight"].fill_(float("nan"))
    with pytest.raises(ValueError) as error:
        Watched(VARIANTS["sft"], broken, flags())
    text = str(error.value)
    assert "\n" not in text and "before the first step" in text and "--lr" in text


@pytest.mark.parametrize("log_every", [1, 20])
def test_the_step_that_went_wrong_is_named(pair, log_every):
    """The loss is not finite from step 4 on: that is the step, and those the examples, of the line,
    however rare the log."""
    calls = []

    def poison(rollout):
        calls.append(rollout)
        if len(calls) == 4:
            logits = torch.full((*rollout.tokens[:, 1:].shape, pair.tokenizer.n_vocab), float("nan"))
            rollout = dataclasses.replace(rollout, teacher_logits=logits)
        return rollout

    order = training.batch_order(len(pair.train.prompts), 4, 30, generator(1)).tolist()
    with pytest.raises(ValueError) as error:
        Watched(VARIANTS["supervised"], pair, flags(steps=30, log_every=log_every), change=poison)
    assert "step 4 " in str(error.value) and str(order[3]).strip("[]") in str(error.value)


# ---------------------------------------------------------------------------------------------------------------------
# How a batch is computed: parts, chunks, recomputation, a cache, precision. It costs, and it does not count.

HOW = ["--micro-batch 3", "--chunk-loss yes", "--recompute", "--cache-teacher dense", "--precision tf32",
       "--micro-batch 1 --chunk-loss yes --recompute"]  # fmt: skip


# Every kind of row in three ways at once, every writer in each.
FAST_HOW = [*itertools.product(SKD_KINDS, HOW[-1:]), *itertools.product(WRITING, HOW)]


@pytest.fixture(scope="module")
def plain_run(deep_pair):
    """variant -> its run without any of this, which all ways are compared with."""
    return functools.cache(lambda variant: Watched(VARIANTS[variant], deep_pair, flags("--chunk-loss", "no")))


@pytest.mark.usefixtures("unmeasured")
@matrix("variant, how", itertools.product(VARIANTS, HOW), fast=FAST_HOW)
def test_how_a_batch_is_computed_does_not_count(deep_pair, plain_run, tmp_path, monkeypatch, variant, how):
    """The same losses, gradients, step figures and weights, to rounding, however the batch is worked out."""
    cached(monkeypatch, tmp_path)
    plain = plain_run(variant)
    changes = {} if "--chunk-loss" in how else {"chunk_loss": "no"}
    names = ["--variants", "supervised"] if "cache" in how else []
    ours = Watched(VARIANTS[variant], deep_pair, flags(*how.split(), *names, **changes))
    times = {"sampling_ms", "teacher_ms", "student_ms", "update_ms"}
    for line, other in zip(plain.steps, ours.steps):
        assert line.keys() == other.keys() and times <= line.keys()
        for name in line.keys() - times - {"kind"}:
            assert other[name] == pytest.approx(line[name], rel=1e-4, abs=1e-6), name
    # A hundredth of a step of Adam's.
    assert moved_apart(plain.end, ours.end) < 1e-4 < 1e-3 < distance(plain.start, plain.end)
    assert moved_apart(weights_of_own(plain), weights_of_own(ours)) < 1e-4


def test_the_cache_spares_the_teacher(pair, tmp_path, monkeypatch):
    """One batch of 24 references before training; without the cache, one pass per step."""
    cached(monkeypatch, tmp_path)
    plain = Watched(VARIANTS["supervised"], pair, flags())
    ours = Watched(VARIANTS["supervised"], pair, flags("--cache-teacher", "dense", "--variants", "supervised"))
    assert plain.costs["teacher_forwards"] == 2 and ours.costs["teacher_forwards"] == 1
    assert ours.costs["compute_once"] > 0 and plain.costs.get("compute_once", 0) == 0
    asked = Watched(VARIANTS["skd"], pair, flags("--cache-teacher", "dense", "--variants", "supervised"))
    assert asked.costs.get("compute_once", 0) == 0  # what a model writes now is in no cache


@pytest.mark.parametrize("how", [[], ["--micro-batch", "3"], ["--chunk-loss", "yes"]])
def test_the_best_and_the_tail_are_learned_from(pair, tmp_path, monkeypatch, how):
    """--cache-teacher 5: the first loss is that of six buckets, worked out slowly."""
    cached(monkeypatch, tmp_path)
    args = flags("--cache-teacher", "5", "--variants", "supervised", *how)
    args.chunk_loss = "yes" if "yes" in how else "no"
    ours = Watched(VARIANTS["supervised"], pair, args)
    rollout = ours.rollouts[0]
    student_logits, teacher_logits = (
        adapters.model_logits(model, rollout.tokens[:, :-1]) for model in (pair.new_student(), pair.teacher)
    )
    ids = teacher_logits.topk(5).indices
    per_token = forward_kl(with_tail(student_logits, ids), with_tail(teacher_logits, ids))
    expected = per_token[rollout.response_mask[:, 1:]].mean().item()
    assert ours.steps[0]["loss"] == pytest.approx(expected, rel=1e-5)
    assert expected < forward_kl(student_logits, teacher_logits)[rollout.response_mask[:, 1:]].mean()


def types_of_losses(monkeypatch):
    """A list that gets the type of every per-token loss whose mean a run takes."""
    seen, mean = [], training.masked_mean

    def told(per_token, *rest):
        seen.append(per_token.dtype)
        return mean(per_token, *rest)

    monkeypatch.setattr(training, "masked_mean", told)
    return seen


def test_bf16_is_close_and_its_losses_are_float32(pair, monkeypatch):
    """Under autocast the passes round to 8 bits, the losses and the weights do not."""
    seen = types_of_losses(monkeypatch)
    plain, ours = (Watched(VARIANTS["supervised"], pair, flags("--precision", name)) for name in ("fp32", "bf16"))
    assert ours.steps[0]["loss"] != plain.steps[0]["loss"] == pytest.approx(ours.steps[0]["loss"], rel=0.05)
    assert set(seen) == {torch.float32} and {weight.dtype for weight in ours.end.values()} == {torch.float32}
    assert not torch.is_autocast_enabled("cpu")


@pytest.mark.usefixtures("unmeasured")
@matrix("name", VARIANTS, fast=SKD_KINDS)
def test_every_row_trains_in_bf16(name, monkeypatch):
    """Whatever a row keeps, learns and compares, its losses,
    its gradients and its own weights are float32 and finite."""
    seen, kept = types_of_losses(monkeypatch), []
    for module, divergence in ((losses, "kl"), (methods, "kl")):
        inner = getattr(module, divergence)
        monkeypatch.setattr(
            module, divergence, lambda *rows, inner=inner: kept.extend(x.dtype for x in rows) or inner(*rows)
        )
    ours = Watched(VARIANTS[name], tiny_pair(2, 3), flags("--precision", "bf16", steps=2))
    assert all(math.isfinite(line["loss"]) and math.isfinite(line["gradient_norm"]) for line in ours.steps)
    assert {*seen, *kept} == {torch.float32} and {weight.dtype for weight in ours.end.values()} == {torch.float32}


def test_parts_cost_less_memory(pair):
    """The counted figure falls with smaller parts, with recomputation and with chunks, and says the same every time."""

    def megabytes(*argv):
        costs = Watched(VARIANTS["supervised"], pair, flags("--batch-size", "16", *argv)).costs
        return costs["memory_mb"]

    plain = megabytes("--chunk-loss", "no")
    assert plain == megabytes("--chunk-loss", "no")
    for argv in (["--micro-batch", "4"], ["--recompute"]):
        assert megabytes("--chunk-loss", "no", *argv) < plain
    assert megabytes("--chunk-loss", "yes") < plain
    assert megabytes("--chunk-loss", "no", "--micro-batch", "8") > megabytes("--chunk-loss", "no", "--micro-batch", "2")


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
def test_compiled_passes_train_the_same(pair):
    plain, ours = (Watched(VARIANTS["skd"], pair, flags("--chunk-loss", "no", *how)) for how in ([], ["--compile"]))
    for line, other in zip(plain.steps, ours.steps):
        assert other["loss"] == pytest.approx(line["loss"], rel=1e-4)
    assert moved_apart(plain.end, ours.end) < 2e-5


# ---------------------------------------------------------------------------------------------------------------------
# What it costs, what it tells.


@pytest.fixture
def counted(monkeypatch):
    """run(row, pair, ..) -> (the run, FLOP of its matrix products, forwards of its teacher once the teacher is there).

    Evaluation is left out.
    """
    figures = {"score": 0.0, "val_nll": 0.0, "kl_teacher": 0.0}
    monkeypatch.setattr(compare, "evaluate_quickly", lambda *args, **kwargs: figures)
    forward, events = GPT.forward, []

    def called(self, *args, **kwargs):
        events.append(self)
        return forward(self, *args, **kwargs)

    def made(make, *arguments):
        teacher = make(*arguments)
        events.append("there")
        return teacher

    def run(row, pair, **knobs):
        with monkeypatch.context() as patch, FlopCounterMode(display=False) as counter:
            patch.setattr(GPT, "forward", called)
            for name, make in methods.TEACHERS.items():
                patch.setitem(methods.TEACHERS, name, functools.partial(made, make))
            watched = Watched(row, pair, flags(**knobs))
        products = counter.get_flop_counts()["Global"]  # attention's own are others
        flop = sum(number for name, number in products.items() if str(name) in ("aten.mm", "aten.addmm"))
        since = len(events) - events[::-1].index("there")  # takd's assistant has a teacher of its own, before
        first = getattr(watched.teacher, "specialists", [watched.teacher])[0]
        return watched, flop, sum(model is first for model in events[since:])

    return run


ON_REFERENCES = [name for name, row in VARIANTS.items() if row.writer == "dataset"]
# A classifier and a discriminator of its own, of a size that does not grow with the models: as if not there.
UNCOUNTED = {"lwkd": "sft"}


# Who writes, and who prepares something.
@matrix("variant", VARIANTS, fast=["supervised", "seqkd", "on_policy", "skd", "lelp", "rdd", "takd", "sftn"])
def test_costs_are_what_the_models_did(deep_pair, counted, variant):
    """2 FLOP per weight, token and pass are what the matrix products come to; a forward is a call of the teacher.

    One row at a time, so without padding. Biases and gains are weights, too, and no product has them: here some 7 %.
    """
    row = VARIANTS[variant]
    run, flop, forwards = counted(VARIANTS[UNCOUNTED.get(variant, variant)], deep_pair, steps=5, batch_size=1)
    if variant in UNCOUNTED:
        run.costs = Watched(row, deep_pair, flags(steps=5, batch_size=1)).costs
    teacher = sum(weight.numel() for name, weight in deep_pair.teacher.named_parameters() if "position" not in name)
    if variant == "lelp":  # its pass over the references stops before the head, and is counted as a whole one
        flop += 2 * deep_pair.teacher.head.numel() * tokens_of_references(deep_pair)
    if variant == "rdd":  # a step of its lens: one pass, and the head forth and back; counted as two passes
        fed = 24 * (max(len(a) + len(b) for a, b in zip(*deep_pair.train[1:])) - 1)
        flop += 50 * fed * 2 * (teacher - 2 * deep_pair.teacher.head.numel())
    # Of rdd the lens is rounded to whole passes; exopd's start is asked again by the first step's check; mopd's
    # specialists have an embedding that stands still, whose gradient is counted.
    rounded = variant in ("rdd", "exopd", "mopd")
    assert run.costs["compute"] == pytest.approx(1.07 * flop / 1e12, rel=0.12 if rounded else 0.05)
    if row.answers is not None:
        forwards -= 1  # the prompts of the answers, all at once
    before = {"takd": 15, "sftn": 5}.get(variant, 0)  # asked of the pair's own teacher, for one of their own
    assert run.costs["teacher_forwards"] == forwards + before
    if row.answers is None and row.writer in ("dataset", "student", "mixed"):  # the teacher writes nothing
        before = {"lelp": 1, "rdd": 50, "adaspec": 5}.get(variant, 0)
        assert forwards == before + (0 if row.loss in losses.NO_TEACHER else 5)


def tokens_of_references(pair):
    """What one pass over the student's references processes."""
    return sum(len(prompt) + len(response) - 1 for prompt, response in zip(pair.train.prompts, pair.train.responses))


def weights_that_count(model):
    return model.num_parameters() - model.position_embedding.weight.numel()


@pytest.mark.usefixtures("unmeasured")
@matrix("variant", VARIANTS, fast=SKD_KINDS)
def test_generated_tokens_are_counted(pair, variant):
    """tokens_generated: response tokens that a model wrote, the teacher's answers once, not at each use;
    references cost nothing."""
    row, eos = VARIANTS[variant], pair.tokenizer.eos_token
    run, answers = Watched(row, pair, flags(steps=4)), []
    if row.answers == 0:
        answers = [greedy_by_loop(pair.teacher, prompt, pair.max_new_tokens, eos) for prompt in pair.train.prompts]
    elif row.answers is not None:
        wrote, draws = pair.new_student() if row.teacher == "start" else pair.teacher, {"temperature": row.answers}
        draws["top_p"] = row.answers_top_p
        answers, _ = sample_responses(wrote, pair.train.prompts, pair.max_new_tokens, eos, seed=1, **draws)
    now = {STUDENT, TEACHER} if row.answers is None else {STUDENT} if row.writer == "mixed" else set()
    written = sum(
        int(rollout.source[rollout.response_mask].eq(source).sum()) for rollout in run.rollouts for source in now
    )
    assert run.costs["tokens_generated"] == sum(map(len, answers)) + written
    # distillm begins with references.
    assert (written == 0) == (row.writer in ("dataset", "teacher") or variant == "distillm")
    if answers:
        processed = sum(map(len, answers)) + sum(map(len, pair.train.prompts))
        assert run.costs["compute_once"] == pytest.approx(2e-12 * weights_that_count(run.teacher) * processed)


SWEEPS = [
    ("skd_entropy", "accept-top-k=1,2"), ("ca_opd", "accept-rule=topk,argmax"), ("ca_opd", "replace=sample,argmax"),
    ("skd_k_along,skd", "accept-rule=topk,argmax"), ("sft", "student-temperature=0.5,1"),
    ("on_policy,supervised", "student-top-p=.5,.9"), ("on_policy", "teacher-temperature=.5,1"),
    ("skd,on_policy", "gamma=1,2"), ("sft,skd", "accept-top-k=1,2"), ("supervised,sft", "cache-teacher=dense,5"),
    ("gkd", "accept-on=raw,warped"), ("skd", "accept-on=raw,warped"), ("fresh_teacher", "student-temperature=.5,1"),
    ("adaswitch", "teacher-top-p=.5,.9"),
]  # fmt: skip


@pytest.mark.parametrize("names, sweep", SWEEPS)
def test_a_sweep_that_a_row_would_not_hear_is_refused(names, sweep):
    """Where a row trains the same whatever the swept flag says all its runs would be one run;
    skd and its K schedules hear a swept K."""
    with pytest.raises(ValueError, match="is ignored by") as error:
        parse_flags(["--variants", names, "--sweep", sweep])
    assert "\n" not in str(error.value)
    args, _ = parse_flags(["--variants", "skd,skd_k_steps,skd_k_along", "--sweep", "accept-top-k=1,2"])
    assert len(args.swept) == 2


@pytest.mark.parametrize(
    "sweeps",
    [
        "replace=sample,argmax teacher-temperature=.5,1",
        "student-temperature=0,1 student-top-p=.5,.9",
        "accept-rule=topk,argmax accept-top-k=1,2",
    ],
)
def test_sweeps_whose_product_holds_a_run_twice_are_refused(sweeps):
    """At replace=argmax no temperature counts, at temperature 0 no nucleus, at accept-rule=argmax no K;
    one such value alone is well."""
    with pytest.raises(ValueError, match="is ignored by skd"):
        parse_flags(["--variants", "skd", *(word for text in sweeps.split() for word in ("--sweep", text))])
    for text in sweeps.split():
        assert len(parse_flags(["--variants", "skd", "--sweep", text])[0].swept) == 2


# flag -> another value than the one that runs are compared with
OTHERWISE = {
    "student_temperature": 0.5, "student_top_p": 0.6, "accept_rule": "minprob", "accept_top_k": 2, "replace": "argmax",
    "teacher_temperature": 0.2, "teacher_top_p": 0.3, "no_write_back": True, "accept_on": "warped", "judge_fresh": True,
    "gamma": 2, "trust_region": 0.5,
}  # fmt: skip
SETTINGS = [{}, {"replace": "argmax"}, {"replace": "sample_topk"}, {"no_write_back": True}, {"accept_rule": "all"},
            {"accept_rule": "none"}, {"student_temperature": 0.0, "teacher_temperature": 0.0}, {"teacher_top_p": 0.5}]
KINDS = [(name, settings) for name in ("skd", "fresh_teacher", "skd_k_along") for settings in SETTINGS]
KINDS += [
    (name, settings)
    for name in ("sft", "seqkd", "on_policy", "imitkd", "speckd", "adaswitch", "ca_opd", "skd_k_steps", "trb", "ssd")
    for settings in ({}, {"accept_rule": "none"})
]


FAST_KINDS = [("skd", {}), ("skd_k_along", {"teacher_top_p": 0.5})]
FAST_KINDS += [(name, {}) for name in ("seqkd", "imitkd", "adaswitch")]


@pytest.mark.usefixtures("unmeasured")
@matrix("variant, settings", KINDS, fast=FAST_KINDS, ids=str)
def test_flags_that_do_not_reach_a_row_change_no_bit_of_it(pair, variant, settings):
    """What `ignored_reason` says of a flag is what happens: the very same student, or another one, or at least other
    counts of its rollouts."""
    base = flags(**{"accept_top_k": 20, "steps": 3, "batch_size": 8} | settings)

    def end(args):
        run = Watched(VARIANTS[variant], pair, args)
        return run.end, [rollout.counters.tolist() for rollout in run.rollouts if rollout.counters is not None]

    weights, counted = end(base)
    for flag, value in OTHERWISE.items():
        if (
            value == getattr(base, flag)
            or flag == "accept_on" and (base.accept_rule != "topk" or base.teacher_temperature == 0)
        ):
            continue  # the same, or refused
        other_weights, other_counted = end(argparse.Namespace(**vars(base) | {flag: value}))
        reason = train_skd.ignored_reason(flag, variant, base)
        if reason:
            assert same_weights(weights, other_weights), (flag, reason)
        elif variant != "ca_opd":  # of which these models' proposals satisfy the rule nowhere
            assert not same_weights(weights, other_weights) or counted != other_counted, flag


TYPED = [
    ("sft", "--student-temperature 0.5", "trains on no student samples.*on_policy"),
    ("supervised,sft", "--teacher-top-p .5", "skd"),
    ("on_policy", "--rule accept_min_prob=.5 --accept-rule minprob", "skd"),
    ("supervised", "--no-write-back", "--no-write-back is ignored by all of supervised"),
    ("on_policy,ssd", "--trust-region 0.5", "--trust-region 0.5 is ignored by all of on_policy, ssd .*trb"),
    ("skd", "--replace argmax --teacher-temperature 2", "argmax.*leave it out$"), ("kdiga", "--recompute", "as it is"),
    ("kdiga", "--compile", "as it is"),
    ("skd,sft", "--cache-teacher dense", "--cache-teacher dense is ignored by all of skd, sft"),
    ("sft,supervised,seqkd,hinton,tvd,skew_kl,abkd", "--accept-rule argmax", "hinton, tvd and 2 more"),
]  # fmt: skip


@pytest.mark.parametrize("names, argv, word", TYPED)
def test_a_flag_that_reaches_no_chosen_row_is_refused(nothing_trained, capsys, names, argv, word):
    """One line with the flag, the methods and what to type, before any work; the evaluation's flags reach every row."""
    assert re.search(word, refused(main, ["--quick", "--variants", names, *argv.split()], capsys))
    parse_flags(["--variants", names, "--accept-top-k", "2", "--gamma", "3"])


def test_a_flag_that_reaches_some_rows_is_noted():
    """One line per flag, of at most five names; none where it reaches all, or belongs to the evaluation."""

    def notes_of(*argv):
        return parse_flags([*argv, "--device", "cpu"])[0].notes  # auto may have one more to tell

    notes = notes_of("--student-temperature", "0.5", "--lr", "1e-3", "--gamma", "2")
    ignored = "is ignored by sft, supervised, seqkd (trains on no student samples)"
    assert notes == [f"note: --student-temperature 0.5 {ignored}"]
    (note,) = notes_of("--variants", "all", "--judge-fresh")
    assert re.fullmatch(r"note: --judge-fresh is ignored by (\w+, ){4}\w+ and \d+ more", note)
    (note,) = notes_of("--data-dir", "X")
    assert note == "note: --data-dir is not read, --task math is made here (your own data: --task jsonl)"
    assert notes_of("--variants", "all", "--quick") == notes_of() == []


def test_notes_are_said_at_the_start(cached_pairs, tmp_path, capsys):
    """Before the task is named, and not in the table."""
    argv = [*SMALL, "--variants", "sft,on_policy", "--student-temperature", "0.5", "--out", str(tmp_path / "out")]
    assert main(argv) == 0
    note = "note: --student-temperature 0.5 is ignored by sft (trains on no student samples)"
    assert (
        capsys.readouterr().out.startswith(note + "\n") and "note:" not in (tmp_path / "out" / "table.md").read_text()
    )


@pytest.mark.parametrize("wrong, word", [
    ({"mix_per": "sentence"}, "drawn per batch"), ({"sampling": {"temperature": 0.1}}, "no use"),
    ({"loss": "cross_entropy", "loss_kwargs": {"beta": 1}}, "neither"),
    ({"writer": "interleaved", "sampling": {"accept_top_k": ("lineer", 1, 2)}}, "linear or cosine"),
])  # fmt: skip
def test_a_row_that_would_not_do_what_it_says_is_refused(wrong, word):
    """A mistyped word or a knob without effect in a row is an error when the row is made."""
    with pytest.raises(AssertionError, match=word):
        dataclasses.replace(VARIANTS["supervised"], **wrong)


def test_a_methods_own_loss_takes_no_knobs(pair):
    """taid and its like take their loss themselves: what the row says of another is refused;
    so is a place that is no place."""
    for variant, changes, error in (
        ("taid", {"kd_weight": 0.5}, ValueError),
        ("rs_kd", {"loss_kwargs": {"typo": 1}}, ValueError),
    ):
        with pytest.raises(error, match="would do nothing"):
            Watched(dataclasses.replace(VARIANTS[variant], **changes), pair, flags())
    row = dataclasses.replace(VARIANTS["sp"], method_kwargs={"feature": "similarity_preserving", "at": "lsat"})
    with pytest.raises(KeyError):
        Watched(row, pair, flags())


@pytest.mark.parametrize("variant", ["fitnet", "lelp", "rdd", "kdiga"])
def test_a_method_that_looks_into_the_teacher_goes_with_any_writer(pair, variant):
    """On interleaved samples the verification's logits are not enough:
    the teacher is asked again, and the loss is finite."""
    row = dataclasses.replace(VARIANTS[variant], writer="interleaved")
    run = Watched(row, pair, flags())
    assert all(math.isfinite(line["loss"]) for line in run.steps) and run.costs["teacher_forwards"] > 2


@pytest.mark.parametrize("changes", [{"kd_weight": 0.5}, {"temperature": 2.0}])
def test_a_loss_without_a_teacher_mixes_like_any_other(pair, changes):
    """label_smoothing has no teacher's logits; cross-entropy beside it, or a temperature, needs none."""
    run = Watched(dataclasses.replace(VARIANTS["label_smoothing"], **changes), pair, flags())
    assert all(math.isfinite(line["loss"]) for line in run.steps) and run.costs["teacher_forwards"] == 0


def test_buckets_are_for_distances_alone(pair, tmp_path, monkeypatch):
    """A row with cross-entropy beside its distance does not learn from a cache's K + 1 buckets,
    where tokens have no ids."""
    cached(monkeypatch, tmp_path)
    args = flags("--cache-teacher", "5", "--variants", "supervised")
    run = Watched(dataclasses.replace(VARIANTS["supervised"], kd_weight=0.5), pair, args)
    assert run.costs["teacher_forwards"] == 2 and "compute_once" not in run.costs


@pytest.mark.usefixtures("unmeasured")
@matrix("variant", VARIANTS, fast=SKD_KINDS)
def test_preparations_are_counted_once(pair, variant):
    """compute_once: what answers and passes over the references took before the run; everybody else has no such figure.

    lelp: one pass of the teacher; rdd: two for each of its 50 steps, padding included. What takd's assistant and sftn's
    teacher took grows with the steps, and so is no part of it.
    """
    row, costs = VARIANTS[variant], Watched(VARIANTS[variant], pair, flags(steps=3)).costs
    lengths = [len(prompt) + len(response) - 1 for prompt, response in zip(pair.train.prompts, pair.train.responses)]
    if variant in ("lelp", "rdd"):
        fed = sum(lengths) if variant == "lelp" else 2 * 50 * 24 * max(lengths)
        assert costs["compute_once"] == pytest.approx(2e-12 * fed * weights_that_count(pair.teacher))
    else:
        assert ("compute_once" in costs) == (row.answers is not None)


def test_another_teacher_is_counted(pair):
    """takd costs a run of `supervised` from teacher to assistant, and one from there; sftn one from its own teacher,
    and three passes of the teacher and of the branch (bridge, norm and head:
    a student of one block has no upper one) before."""
    args = flags(steps=3)
    for variant in ("takd", "sftn"):
        teacher = teacher_of(VARIANTS[variant], pair, args)
        found = Watched(VARIANTS[variant], pair, args).costs["compute"]
        plain = Watched(VARIANTS["supervised"], dataclasses.replace(pair, teacher=teacher), args).costs["compute"]
        if variant == "takd":
            between = dataclasses.replace(pair, student_config=teacher.config, student_weights=teacher.state_dict())
            before = Watched(VARIANTS["supervised"], between, flags(steps=9)).costs["compute"]
        else:
            draws = generator(1_000_003 + 4)
            torch.empty(8, 12).normal_(generator=draws)  # the bridge
            rows = [i for _ in range(3) for i in torch.randperm(24, generator=draws)[:4].tolist()]
            fed = sum(len(pair.train.prompts[i]) + len(pair.train.responses[i]) - 1 for i in rows)
            branch = 8 * 12 + 2 * 8 + pair.new_student().head.numel()
            before = 2e-12 * 3 * fed * (weights_that_count(pair.teacher) + branch)
        assert found == pytest.approx(plain + before) and before > 0


@pytest.mark.usefixtures("unmeasured")
@matrix("variant", ON_REFERENCES, fast=[name for name in ON_REFERENCES if name in SKD_KINDS])
def test_steps_cost_in_proportion(deep_pair, variant, monkeypatch):
    """A run twice as long on the same batch costs twice as much beyond what was spent once."""
    monkeypatch.setattr(training, "batch_order", lambda n, size, steps, generator: torch.arange(size).expand(steps, -1))
    costs = [Watched(VARIANTS[variant], deep_pair, flags(steps=steps)).costs for steps in (2, 4)]
    short, long = (cost["compute"] - cost.get("compute_once", 0) for cost in costs)
    assert long == pytest.approx(2 * short)


def test_step_figures_by_hand(pair):
    """Shares, lengths, agreement, entropies and the loss by writer, recounted token by token."""
    rollout = write("skd", pair, list(range(8)))
    student, teacher = pair.new_student(), pair.teacher
    student_logits, teacher_logits = (
        adapters.model_logits(model, rollout.tokens[:, :-1]) for model in (student, teacher)
    )
    per_token = torch.rand(rollout.tokens[:, 1:].shape, generator=generator())
    columns = step_columns(student_logits, teacher_logits)
    found = step_figures(rollout, columns, per_token, pair.max_new_tokens)
    cells, by_place = [], [[0, 0] for _ in range(8)]
    for b, (start, stop) in enumerate(zip(rollout.prompt_len.tolist(), rollout.lengths.tolist())):
        for t in range(start, stop):
            probs = [logits[b, t - 1].double().softmax(-1) for logits in (student_logits, teacher_logits)]
            entropies = [-(p * p.log()).sum().item() for p in probs]
            cells.append(
                (
                    int(rollout.source[b, t]),
                    per_token[b, t - 1].item(),
                    probs[0].argmax() == probs[1].argmax(),
                    *entropies,
                )
            )
            place = min(7, (t - start) * 8 // pair.max_new_tokens)
            by_place[place][0] += int(rollout.source[b, t]) == TEACHER
            by_place[place][1] += 1
    total = len(cells)
    wanted = {
        "mean_length": total / 8,
        "eos_share": sum(response[-1] == pair.tokenizer.eos_token for response in rollout.responses()) / 8,
        "student_eos_share": rollout.finished[(rollout.source == STUDENT).any(1)].float().mean().item(),
        "agreement": sum(cell[2] for cell in cells) / total,
        "student_entropy": sum(cell[3] for cell in cells) / total,
        "teacher_entropy": sum(cell[4] for cell in cells) / total,
    }
    for source, name in ((STUDENT, "student"), (TEACHER, "teacher")):
        own = [cell[1] for cell in cells if cell[0] == source]
        wanted |= {f"{name}_share": len(own) / total, f"loss_on_{name}": sum(own) / len(own)}
    wanted["replacement_rate"] = wanted["teacher_share"]
    wanted["accept_rate"] = wanted["student_share"]  # every token was judged: it stayed, or it was replaced
    for name, value in wanted.items():
        assert found[name] == pytest.approx(float(value), rel=1e-4), name
    by_place = [teacher / all_ if all_ else None for teacher, all_ in by_place]
    assert found["replacement_by_position"] == [place if place is None else pytest.approx(place) for place in by_place]
    assert not any(name.endswith(("prompt", "dataset")) for name in found)
    counts = rollout.counts()
    assert found["discarded_share"] == counts["discarded"] / counts["proposed"]
    assert found["teacher_calls_per_token"] == counts["teacher_calls"] / total
    assert found["student_steps_per_token"] == counts["student_steps"] / total
    json.dumps(found)


def test_step_figures_of_nothing_are_none(pair):
    """Short responses leave the end of the budget empty: no share of it was replaced. No token has no entropy."""
    rollout = write("skd", pair, list(range(8)))
    columns, per_token = torch.ones(8, rollout.tokens.size(1) - 1, 3), torch.ones(8, rollout.tokens.size(1) - 1)
    found = step_figures(rollout, columns, per_token, 8 * pair.max_new_tokens)  # all in the first eighth
    assert found["replacement_by_position"] == [pytest.approx(found["replacement_rate"]), *[None] * 7]
    none = rollout_from_ids([[1, 2]] * 2, [[], []], [DATASET] * 2, "cpu")
    found = step_figures(none, torch.ones(2, 1, 3), torch.ones(2, 1), 8)
    assert [found[name] for name in ("student_entropy", "teacher_entropy", "agreement")] == [None] * 3
    assert (found["mean_length"], found["eos_share"]) == (0.0, 0.0) and "student_eos_share" not in found


@pytest.mark.parametrize("variant", ["imitkd", "gkd", "distillm2", "fdistill_js", "seqkd", "sft"])
def test_who_finished_is_known_of_every_row(pair, variant):
    """A row is finished where it ends with the end token, whoever wrote it; the student's rows have their own share."""
    cut = dataclasses.replace(pair, max_new_tokens=2)  # no reference is as short
    answers = [response[:2] for response in pair.train.responses] if VARIANTS[variant].answers is not None else None
    seen = set()
    for seed in range(4):
        rollout = write(variant, cut, list(range(8)), seed=seed, answers=answers)
        ended = [response[-1] == pair.tokenizer.eos_token for response in rollout.responses()]
        assert rollout.finished.tolist() == ended
        per_token = torch.ones(rollout.tokens[:, 1:].shape)
        figures = step_figures(rollout, per_token[..., None], per_token, 2)
        by_student = [end for end, own in zip(ended, (rollout.source == STUDENT).any(1).tolist()) if own]
        assert figures["eos_share"] == sum(ended) / 8
        share = pytest.approx(sum(by_student) / len(by_student)) if by_student else None
        assert figures.get("student_eos_share") == share
        seen |= {len(by_student)}
    assert seen == {0} if VARIANTS[variant].writer in ("dataset", "teacher") else seen != {0}


@pytest.mark.usefixtures("unmeasured")
@matrix("variant", VARIANTS, fast=SKD_KINDS)
def test_every_writer_is_accounted_for(pair, variant):
    """In every batch of every method the shares of the writers add up to 1, and the loss is their weighted mean."""
    row = VARIANTS[variant]
    for line in Watched(row, pair, flags(batch_size=8), seed=2).steps:
        shares = {who: line[f"{who}_share"] for who in ("student", "teacher", "dataset") if f"{who}_share" in line}
        assert sum(shares.values()) == pytest.approx(1)
        mean = sum(share * line[f"loss_on_{who}"] for who, share in shares.items())
        assert line["loss"] == pytest.approx(mean, rel=1e-4)
        assert ("replacement_rate" in line) == (row.writer == "interleaved")


# ---------------------------------------------------------------------------------------------------------------------
# The script, from flags to files.

SMALL = ["--quick", "--device", "cpu", "--jobs", "1", "--steps", "2", "--teacher-steps", "3", "--start-steps", "3"]
SMALL += ["--batch-size", "8", "--variants", "sft,skd"]


@pytest.fixture(scope="module")
def cached_pairs(tmp_path_factory):
    """--quick is quicker still, and pairs are cached in a folder of this file's own, never in the project's."""
    with pytest.MonkeyPatch.context() as patch:
        sizes = {"train_examples": 60, "val_examples": 4, "test_examples": 6, "ood_examples": 3}
        patch.setattr(pairs, "QUICK_TASK", {"difficulty": 1} | sizes)
        load, folder = pairs.load_or_pretrain_pair, tmp_path_factory.mktemp("pairs")
        patch.setattr(pairs, "load_or_pretrain_pair", functools.partial(load, cache_dir=folder))
        yield folder


@pytest.fixture(scope="module")
def finished(cached_pairs, tmp_path_factory):
    """The folder of one small run of two methods; tests that write into it take a copy."""
    folder = tmp_path_factory.mktemp("run") / "out"
    assert main([*SMALL, "--out", str(folder)]) == 0
    return folder


@pytest.fixture
def copied(finished, tmp_path):
    return Path(shutil.copytree(finished, tmp_path / "copied"))


def lines_of(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def strings(value):
    """Every text in a JSON value, keys included."""
    if isinstance(value, dict):
        return [text for item in value.items() for part in item for text in strings(part)]
    return (
        [text for item in value for text in strings(item)]
        if isinstance(value, list)
        else [value] * isinstance(value, str)
    )


def test_what_a_run_leaves(finished):
    """Records, final students, the two starting models and four reports; no half-written file."""
    names = {path.name for path in finished.iterdir()}
    assert names == {
        "sft_pair1_seed1.jsonl", "skd_pair1_seed1.jsonl", "sft_pair1_seed1.pt", "skd_pair1_seed1.pt",
        "teacher_pair1.pt", "student_start_pair1.pt",
        "table.md", "curves.svg", "summary.json", "report.html",
    }  # fmt: skip


def test_records_tell_all(finished):
    """Header, steps, evals, rollouts, final; the header says of which method, seed, task, code and machine,
    and names no folder."""
    for name, row in (("sft", VARIANTS["sft"]), ("skd", VARIANTS["skd"])):
        header, *lines, final = lines_of(finished / f"{name}_pair1_seed1.jsonl")
        assert (
            header["kind"] == "header"
            and final["kind"] == "final"
            and {line["kind"] for line in lines} == {"step", "eval", "rollout"}
        )
        wanted = {
            "script": "train_skd", "variant": name, "seed": 1, "budget": "steps", "task": "math", "device": "cpu",
            "quick": True,
        }
        assert {key: header[key] for key in wanted} == wanted
        assert header["row"] == json.loads(json.dumps(dataclasses.asdict(row)))
        assert (
            header["flags"]["steps"] == 2
            and header["lr"] > 0
            and header["flags"]["accept_top_k"] == header["accept_top_k"] > 0
        )
        assert {"train_skd.py", "sample.py", "losses.py", "model.py", "lab/pairs.py"} <= set(header["sources"])
        assert header["torch"] == torch.__version__
        assert not any(
            os.sep in text and Path(text).is_absolute()
            for line in (header, *lines, final)
            for text in strings(line)
            if line["kind"] != "rollout"  # a token may be a slash
        )
        assert rollout_steps(finished / f"{name}_pair1_seed1.jsonl") == [0, 1, 2]
        stages = final["seconds_by_stage"]
        assert min(stages.values()) >= 0 < stages["final_evaluation"] and list(stages)[-1] == "final_evaluation"
        assert str(ROOT) not in json.dumps(header) and str(finished) not in json.dumps(header)


def test_summary_is_of_the_promised_shape(finished):
    """summary.json holds task, device, the starting pair and, per method, the figures of each run."""
    summary = json.loads((finished / "summary.json").read_text())
    assert summary["task"] == "math" and summary["device"] == "cpu" and list(summary["variants"]) == ["sft", "skd"]
    figures = (
        "seed score val_nll kl_teacher kl_on_policy accept_rate draft_accept_rate seconds tokens_generated "
        "teacher_forwards"
    )
    for name, group in summary["variants"].items():
        (run,) = group["runs"]
        assert set(figures.split()) <= set(run) and all(run[key] is not None for key in figures.split()), name
        assert 0 <= run["score"] <= 1 and run["val_nll"] > 0 and 0 <= run["accept_rate"] <= 1
    teacher, start = summary["teacher"], summary["student_start"]
    assert teacher["parameters"] > start["parameters"] > 0
    assert teacher["kl_teacher"] is None and teacher["accept_rate"] is None and start["kl_teacher"] > 0
    assert (
        summary["variants"]["sft"]["runs"][0]["teacher_forwards"]
        == 0
        < summary["variants"]["skd"]["runs"][0]["teacher_forwards"]
    )


def test_final_figures_are_of_the_final_student(finished, cached_pairs):
    """Loading skd_pair1_seed1.pt and measuring it again gives the figures of the record:
    the final student, not another one."""
    from lab.evaluate import evaluate
    from model import load_checkpoint

    args, _ = parse_flags(SMALL)
    data = encode_task(compare.load_task(args), args.settings)
    pair = pairs.load_or_pretrain_pair(data, args.settings, report=pytest.fail)
    student, about = load_checkpoint(str(finished / "skd_pair1_seed1.pt"))
    final = lines_of(finished / "skd_pair1_seed1.jsonl")[-1]
    found = evaluate(student, pair.teacher, pair.task, pair.tokenizer, pair.test, pair.max_new_tokens, gamma=4,
                     accept_top_k=about["accept_top_k"], seed=1, ood=pair.ood)  # fmt: skip
    assert records.rounded(found) == {name: final[name] for name in found}
    header = lines_of(finished / "skd_pair1_seed1.jsonl")[0]
    for which, model, judge in (
        ("teacher", pair.teacher, None),
        ("student_start", pair.new_student().eval(), pair.teacher),
    ):
        found = evaluate(model, judge, pair.task, pair.tokenizer, pair.test, pair.max_new_tokens, gamma=4,
                         accept_top_k=about["accept_top_k"], seed=1, ood=pair.ood)  # fmt: skip
        assert records.rounded(found | {"parameters": model.num_parameters()}) == header[which]
    assert about["variant"] == "skd" and about["score"] == pytest.approx(final["score"])
    assert same_weights(load_checkpoint(str(finished / "teacher_pair1.pt"))[0].state_dict(), pair.teacher.state_dict())
    assert same_weights(load_checkpoint(str(finished / "student_start_pair1.pt"))[0].state_dict(), pair.student_weights)


def test_resume_runs_nothing_again(copied, cached_pairs, monkeypatch):
    """With --resume what is finished stays, byte for byte; a method that is new is run beside it."""
    before = {path: path.read_bytes() for path in copied.glob("*.jsonl")}
    with monkeypatch.context() as patch:
        patch.setattr(train_skd, "distill", lambda *args: pytest.fail("ran a finished method again"))
        assert main([*SMALL, "--out", str(copied), "--resume"]) == 0
    assert main([*SMALL, "--variants", "sft,supervised,skd", "--out", str(copied), "--resume"]) == 0
    assert {path: path.read_bytes() for path in before} == before
    assert set(json.loads((copied / "summary.json").read_text())["variants"]) == {"sft", "supervised", "skd"}


def without_times(line):
    """A line of a record without what a clock or a calendar says."""
    clocks = ("seconds", "seconds_by_stage", "pretraining_seconds", "date", "commit", "modified", "sha256")
    return {key: value for key, value in line.items() if key not in clocks and not key.endswith("_ms")}


def test_an_interrupted_run_is_done_again(copied, finished, cached_pairs):
    """A record that was cut short is written anew, to the same figures:
    a run depends on nothing that came before it."""
    path = copied / "skd_pair1_seed1.jsonl"
    text = path.read_text()
    path.write_text(text[: len(text) // 2])
    assert main([*SMALL, "--out", str(copied), "--resume"]) == 0
    wanted, found = (lines_of(folder / "skd_pair1_seed1.jsonl") for folder in (finished, copied))
    assert list(map(without_times, found)) == list(map(without_times, wanted))


@pytest.mark.parametrize(
    "flag,value",
    [("--lr", "0.001"), ("--gamma", "3"), ("--accept-top-k", "9"), ("--reduction", "sequence"), ("--steps", "3"),
     ("--teacher-steps", "4"), ("--student-prompts", "50"), ("--start-steps", "2"), ("--student-start", "raw"),
     ("--teacher-prompts", "50"), ("--difficulty", "3"), ("--entropy", "0.1"), ("--size", "small"),
     ("--student-temperature", "0.5")],
)  # fmt: skip
def test_resume_with_another_flag_is_refused(copied, cached_pairs, monkeypatch, flag, value):
    """One line names the very flag that was given, before anything is trained; the records stay as they are."""
    before = {path: path.read_bytes() for path in copied.iterdir()}
    monkeypatch.setattr(pairs, "pretrain", lambda *args: pytest.fail("trained before it looked at the flags"))
    with pytest.raises(ValueError) as error:
        main([*SMALL, flag, value, "--out", str(copied), "--resume"])
    assert "\n" not in str(error.value) and f"{flag} " in str(error.value)
    assert {path: path.read_bytes() for path in copied.iterdir()} == before


def test_resume_does_not_mix_seeds_of_other_flags(copied, cached_pairs, monkeypatch):
    """A table's rows are means over seeds: another seed with other flags is refused like the same seed."""
    monkeypatch.setattr(pairs, "pretrain", lambda *args: pytest.fail("trained before it looked at the flags"))
    with pytest.raises(ValueError) as error:
        main([*SMALL, "--seed", "2", "--lr", "0.001", "--out", str(copied), "--resume"])
    assert "\n" not in str(error.value) and "--lr " in str(error.value)


def test_resume_does_not_mix_inputs(cached_pairs, tmp_path, monkeypatch):
    """The same flags on data that changed in the meantime: one line says so, as for a changed flag."""
    rows = [json.dumps({"prompt": f"say {i} :", "response": "yes no"}) for i in range(40)]
    (tmp_path / "train.jsonl").write_text("\n".join(rows))
    argv = [*SMALL, "--task", "jsonl", "--data-dir", str(tmp_path), "--out", str(tmp_path / "out"), "--variants"]
    assert main([*argv, "sft"]) == 0
    header = lines_of(tmp_path / "out" / "sft_pair1_seed1.jsonl")[0]
    assert list(header["inputs"]) == ["train.jsonl"] and str(tmp_path) not in json.dumps(header)
    (tmp_path / "train.jsonl").write_text("\n".join(rows[:-1]).replace("yes", "maybe"))
    with pytest.raises(ValueError) as error:
        main([*argv, "sft,supervised", "--resume"])
    assert "\n" not in str(error.value) and "sft_pair1_seed1.jsonl" in str(error.value)


def own_answers_without_latin_letters(folder):
    """The words of a command on 60 Russian answers."""
    rows = [{"prompt": f"{i} ?", "response": f"Столица страны {'абвгд'[i % 5]} на реке"} for i in range(60)]
    (folder / "train.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return [*SMALL[:-1], "sft", "--lr", "0.005", "--task", "jsonl", "--data-dir", str(folder), "--out"]


def test_the_metric_is_chosen_told_and_kept(cached_pairs, tmp_path, capsys):
    """Own data from flags to table: a line says what the score is, the record holds every metric, a table only one."""
    argv = own_answers_without_latin_letters(tmp_path)
    assert main([*argv, str(tmp_path / "auto")]) == 0
    out = capsys.readouterr().out
    assert "score: chrF, since 8 of 8 references hold nothing that ROUGE sees" in out and "warning" not in out
    header, *_, final = lines_of(tmp_path / "auto" / "sft_pair1_seed1.jsonl")
    assert header["metric"] == "chrF" and final["score"] == final["task_chrf"]
    assert {f"task_{name}{how}" for name in metrics.METRICS for how in ("", "_sampled")} <= final.keys()
    assert "Its scores (chrF) are in summary.json" in (tmp_path / "auto" / "table.md").read_text()
    with pytest.raises(ValueError, match="made with --metric not given, now it is bleu"):
        main([*argv, str(tmp_path / "auto"), "--resume", "--metric", "bleu"])
    with pytest.raises(ValueError, match="task math has no option 'metric'"):
        main([*SMALL, "--metric", "bleu"])


@pytest.mark.slow
def test_another_metric_is_another_score_of_the_same_pair(cached_pairs, tmp_path, monkeypatch, capsys):
    """A blind metric that was asked for is warned of, in the record too; nothing is pretrained again for it."""
    argv = own_answers_without_latin_letters(tmp_path)
    assert main([*argv, str(tmp_path / "auto")]) == 0
    monkeypatch.setattr(pairs, "pretrain", lambda *args: pytest.fail("another metric is no other pair"))
    assert main([*argv, str(tmp_path / "blind"), "--metric", "rouge_l"]) == 0
    warning = "8 of 8 references score below 1 against themselves in ROUGE-L"
    assert f"  warning: {warning}" in capsys.readouterr().out
    header, *_, final = lines_of(tmp_path / "auto" / "sft_pair1_seed1.jsonl")
    other, *_, blind = lines_of(tmp_path / "blind" / "sft_pair1_seed1.jsonl")
    assert other["pair"] == header["pair"] and blind["score"] == final["task_rouge_l"] == 0.0
    assert blind["task_chrf"] == final["task_chrf"] and other["start_warnings"][0].startswith(warning)


@pytest.mark.slow
def test_null_figures_go_from_a_run_to_its_table(cached_pairs, tmp_path, monkeypatch):
    """Where a figure has no meaning the record says null, tables a dash; curves, summary and --resume go on."""
    def bare(*args, **named):
        figures = evaluate(*args, **named)
        kept = ("score", "score_sampled", "eos_share", "val_nll")
        return dict.fromkeys(figures) | {name: figures[name] for name in kept}

    monkeypatch.setattr(compare, "evaluate", bare)
    argv = [*SMALL, "--out", str(tmp_path / "out")]
    assert main(argv) == 0 and main([*argv, "--resume"]) == 0
    final = lines_of(tmp_path / "out" / "skd_pair1_seed1.jsonl")[-1]
    assert final["kl_teacher"] is None and final["kl_teacher_easy"] is None
    assert "nan" not in (tmp_path / "out" / "table.md").read_text() + (tmp_path / "out" / "curves.svg").read_text()
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["variants"]["skd"]["runs"][0]["accept_rate"] is None


def test_a_failed_run_is_told_and_the_rest_is_kept(cached_pairs, tmp_path, monkeypatch, capsys):
    """One method fails: the other one is in the table, the status is not 0, stderr has one line with the reason."""
    original = train_skd.distill

    def fail(row, *args):
        if row.writer == "dataset":
            raise ValueError("the reason")
        return original(row, *args)

    monkeypatch.setattr(train_skd, "distill", fail)
    assert main([*SMALL, "--out", str(tmp_path / "out")]) == 1
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and "sft_pair1_seed1" in err and "the reason" in err
    assert list(json.loads((tmp_path / "out" / "summary.json").read_text())["variants"]) == ["skd"]


def test_when_all_runs_fail_the_reason_is_told(cached_pairs, tmp_path, monkeypatch, capsys):
    """Nothing finished: stderr still says which run failed and why, and the status is not 0."""

    def fail(*args):
        raise ValueError("the reason")

    monkeypatch.setattr(train_skd, "distill", fail)
    try:
        status, line = main([*SMALL, "--variants", "sft", "--out", str(tmp_path / "out")]), ""
    except (ValueError, OSError) as error:
        status, line = 1, str(error)
    assert status == 1 and "the reason" in capsys.readouterr().err + line


def test_k_of_zero_is_not_the_default(cached_pairs, tmp_path):
    """--accept-top-k 0 is a choice, not the absence of one: every token is the teacher's, and the record says 0."""
    assert main([*SMALL, "--variants", "skd", "--accept-top-k", "0", "--out", str(tmp_path)]) == 0
    header, *lines = lines_of(tmp_path / "skd_pair1_seed1.jsonl")
    assert header["accept_top_k"] == header["flags"]["accept_top_k"] == 0 and lines[-1]["accept_rate"] == 0
    assert all(line["replacement_rate"] == 1 for line in lines if line["kind"] == "step")


def test_seeds_are_runs_of_their_own(cached_pairs, tmp_path):
    """--seeds 2 --seed 5 makes runs 5 and 6 of every method; the same pair, other figures."""
    assert main([*SMALL, "--variants", "on_policy", "--seeds", "2", "--seed", "5", "--out", str(tmp_path)]) == 0
    headers = [lines_of(tmp_path / f"on_policy_pair1_seed{seed}.jsonl")[0] for seed in (5, 6)]
    assert [header["seed"] for header in headers] == [5, 6] and headers[0]["pair"] == headers[1]["pair"]
    finals = [lines_of(tmp_path / f"on_policy_pair1_seed{seed}.jsonl")[-1] for seed in (5, 6)]
    assert finals[0]["val_nll"] != finals[1]["val_nll"]
    assert [rollout_steps(tmp_path / f"on_policy_pair1_seed{seed}.jsonl") for seed in (5, 6)] == [[0, 1, 2], []]


def rollout_steps(path):
    """The steps of the held-out rollouts in a record."""
    return [line["step"] for line in lines_of(path) if line["kind"] == "rollout"]


def test_seeds_begin_one_higher_with_each_pair():
    """Pairs 3, 4 and 5 begin with seeds 7, 8 and 9, of which rollouts are shown."""
    args = parse_flags(["--device", "cpu", "--pair-seed", "3", "--pairs", "3", "--seed", "7", "--seeds", "2"])[0]
    found = [schedule.of_pair(args, pair_seed) for pair_seed in (3, 4, 5)]
    assert [(own.pair_seed, own.settings.seed, own.seed) for own in found] == [(3, 3, 7), (4, 4, 8), (5, 5, 9)]
    assert (args.pair_seed, args.settings.seed, args.seed) == (3, 3, 7)


def test_equal_compute(cached_pairs, tmp_path):
    """--equal-compute: every method also runs for about the model FLOPs of skd's run, in records of their own."""
    assert main([*SMALL, "--variants", "sft,supervised,skd", "--equal-compute", "--out", str(tmp_path)]) == 0
    budget = lines_of(tmp_path / "skd_pair1_seed1.jsonl")[-1]["compute"]
    for name in ("sft", "supervised"):
        plain, long = (lines_of(tmp_path / f"{name}{part}_pair1_seed1.jsonl") for part in ("", "_compute"))
        one_step = plain[-1]["compute"] / plain[-1]["steps"]
        assert plain[0]["budget"] == "steps" and long[0]["budget"] == "compute"
        assert "rollout" in {line["kind"] for line in plain} and "rollout" not in {line["kind"] for line in long}
        assert abs(long[-1]["compute"] - budget) <= 0.6 * one_step + 0.05 * budget
    groups = json.loads((tmp_path / "summary.json").read_text())
    assert {"sft", "supervised"} <= set(groups["variants_equal_compute"]) and groups["variants"].keys() == {
        "sft",
        "supervised",
        "skd",
    }


# ---------------------------------------------------------------------------------------------------------------------
# Wrong use: one line, a status that is not 0, and nothing was trained.


def refused(program, argv, capsys):
    """The one line with which `program` refuses argv, as its __main__ part would print it."""
    try:
        status = program(argv)
    except (ValueError, OSError) as error:
        status = f"{error}"
    except SystemExit as stop:
        status = stop.code
    err = capsys.readouterr().err
    line = err + (status if isinstance(status, str) else "")
    assert status not in (0, None), "it went through"
    assert line.strip() and line.strip().count("\n") == 0, f"not one line: {line!r}"
    return line.strip()


@pytest.fixture
def nothing_trained(monkeypatch, tmp_path):
    """Training of any kind fails the test; there is no network and no cache of real data;
    run folders go to tmp_path."""
    def offline(url, timeout=None):
        raise urllib.error.URLError("no network")

    for module, name in ((pairs, "pretrain"), (train_skd, "distill")):
        monkeypatch.setattr(module, name, lambda *args, **kwargs: pytest.fail("trained before it refused"))
    monkeypatch.setattr(
        pairs, "load_or_pretrain_pair", functools.partial(pairs.load_or_pretrain_pair, cache_dir=tmp_path / "pairs")
    )
    monkeypatch.setattr(urllib.request, "urlopen", offline)
    monkeypatch.setattr(corpora, "CACHE_DIR", tmp_path / "no_cache")
    monkeypatch.setattr(folders, "ROOT", tmp_path)


WRONG_FLAGS = [  # flags, a word that the line must hold
    (["--task", "chess"], "chess"),
    (["--variants", "skd,unheard_of"], "unheard_of"),
    (["--variants", ""], "variant"),
    (["--device", "cuda"], "cuda"),
    (["--device", "abacus"], "abacus"),
    (["--size", "gigantic"], "gigantic"),
    (["--gamma", "0"], "--gamma"),
    (["--gamma", "65"], "--gamma"),
    (["--gamma", "2.5"], "--gamma"),
    (["--accept-top-k", "-1"], "--accept-top-k"),
    (["--accept-top-k", "99999"], "--accept-top-k"),
    (["--accept-top-k", "0", "--variants", "speckd"], "--accept-top-k"),
    (["--accept-rule", "guess"], "guess"),
    (["--accept-rule", "topk", "--rule", "accept_top_p=0.5"], "accept_top_p"),
    (["--rule", "nonsense"], "--rule"),
    (["--accept-rule", "minprob", "--rule", "accept_min_prob=much"], "much"),
    (["--replace", "best"], "best"),
    (["--reduction", "sum"], "sum"),
    (["--steps", "0"], "--steps"),
    (["--steps", "many"], "--steps"),
    (["--batch-size", "0"], "--batch-size"),
    (["--seeds", "0"], "--seeds"),
    (["--seed", str(10**15)], "--seed"),
    (["--pair-seed", str(10**17)], "--pair-seed"),
    (["--jobs", "0"], "--jobs"),
    (["--micro-batch", "0"], "--micro-batch"),
    (["--cache-teacher", "0"], "--cache-teacher"),
    (["--cache-teacher", "all"], "--cache-teacher"),
    (["--cache-teacher", "257", "--variants", "supervised"], "--cache-teacher"),
    (["--cache-teacher", "dense", "--variants", "skd,sft"], "--cache-teacher"),
    (["--chunk-loss", "maybe"], "--chunk-loss"),
    (["--precision", "fp8"], "--precision"),
    (["--gamma", "fast"], "--gamma"),
    (["--lr", "nan"], "--lr"),
    (["--lr", "0"], "--lr"),
    (["--lr", "-1"], "--lr"),
    (["--lr", "inf"], "--lr"),
    (["--lr", "fast"], "--lr"),
    (["--log-every", "0"], "--log-every"),
    (["--weight-decay", "-1"], "--weight-decay"),
    (["--weight-decay", "nan"], "--weight-decay"),
    (["--student-temperature", "-1"], "--student-temperature"),
    (["--student-temperature", "nan"], "--student-temperature"),
    (["--teacher-temperature", "inf"], "--teacher-temperature"),
    (["--student-top-p", "0"], "--student-top-p"),
    (["--teacher-top-p", "1.5"], "--teacher-top-p"),
    (["--student-prompts", "-1"], "--student-prompts"),
    (["--teacher-prompts", "0"], "--teacher-prompts"),
    (["--teacher-steps", "0"], "--teacher-steps"),
    (["--train-examples", "0"], "--train-examples"),
    (["--difficulty", "0"], "difficulty"),
    (["--entropy", "2"], "entropy"),
    (["--entropy", "nan"], "entropy"),
    (["--hard-share", "-0.1"], "hard_share"),
    (["--train-examples", "1000000", "--difficulty", "1"], "train_examples"),
    (["--vocab-size", "100"], "vocab_size"),
    (["--block-size", "0"], "--block-size"),
    (["--block-size", "6"], "--block-size"),
    (["--equal-compute", "--variants", "sft"], "skd"),
    (["--task", "multi30k", "--difficulty", "3"], "difficulty"),
    (["--tpyo"], "--tpyo"),
    (["stray"], "stray"),
]  # fmt: skip


@pytest.mark.parametrize("argv,word", WRONG_FLAGS, ids=[" ".join(argv)[:60] for argv, _ in WRONG_FLAGS])
def test_wrong_flags_are_refused(nothing_trained, capsys, tmp_path, argv, word):
    """Every wrong value ends with one line that names it, before any training."""
    if argv == ["--device", "cuda"] and torch.cuda.is_available():
        pytest.skip("this machine has it")
    line = refused(main, ["--quick", *argv], capsys)
    assert word.replace("-", "_").strip("_") in line.replace("-", "_"), line


@pytest.mark.parametrize("argv", [["--task", "chess"], ["--task", "../../chess"], ["--difficulty", "0"],
                                  ["--task", "jsonl"], ["--block-size", "6"],
                                  ["--accept-top-k", "99999"]])  # fmt: skip
def test_what_is_refused_leaves_no_folder(nothing_trained, capsys, tmp_path, argv):
    """Nothing was run, so there is no run folder: the numbers of real runs have no gaps."""
    before = set(tmp_path.rglob("*"))
    refused(main, ["--quick", *argv], capsys)
    assert set(tmp_path.rglob("*")) == before


def test_missing_data_is_refused(nothing_trained, capsys, tmp_path):
    """A real set without files and without a network: one line with the file and --data-dir;
    the same for a missing folder."""
    (tmp_path / "empty").mkdir()
    for task in ("multi30k", "scan", "gsm8k", "jsonl"):
        for folder in ("empty", "not_there"):
            assert "--data-dir" in refused(main, ["--task", task, "--data-dir", str(tmp_path / folder)], capsys)
    assert "train.jsonl" in refused(main, ["--task", "jsonl"], capsys)


GOOD_ROW = b'{"prompt": "say yes :", "response": "yes"}\n'


@pytest.mark.parametrize(
    "content,word",
    [(b"", "train"), (b"\n\n", "train"), (GOOD_ROW, "train.jsonl"), (GOOD_ROW * 50, "train.jsonl"),
     (b"not json\n", "line 1"), (GOOD_ROW + b'{"prompt": "a"}\n', "response"),
     (GOOD_ROW + b'{"prompt": 3, "response": "b"}\n', "prompt"),
     (GOOD_ROW + b'{"prompt": "", "response": "b"}\n', "prompt"),
     (GOOD_ROW + b'{"prompt": "\xff\xfe", "response": "b"}\n', "train.jsonl"),
     (GOOD_ROW + b'["a", "b"]\n', "line 2"), (GOOD_ROW + b'{"prompt": "\\ud800", "response": "b"}\n', "surrogate")],
)  # fmt: skip
def test_damaged_own_data_is_refused(nothing_trained, capsys, tmp_path, content, word):
    """A user's own file that is empty, too small, no JSON, no UTF-8 or incomplete: one line says what and where."""
    (tmp_path / "train.jsonl").write_bytes(content)
    assert word in refused(main, ["--quick", "--task", "jsonl", "--data-dir", str(tmp_path)], capsys)


def own_data(folder, **columns):
    """Own data with the given responses or prompts, split -> list of (prompt, response)."""
    for split, rows in columns.items():
        text = "".join(json.dumps({"prompt": prompt, "response": response}) + "\n" for prompt, response in rows)
        (folder / f"{split}.jsonl").write_text(text)
    return ["--task", "jsonl", "--data-dir", str(folder)]


def test_prompts_longer_than_the_block_are_refused(nothing_trained, capsys, tmp_path):
    """No example fits --block-size: one line with the length that is needed. A held-out split of none: the same."""
    short, long = [(f"{i} ?", "ok") for i in range(20)], [("far too long " * 9, "ok")]
    each = {name: [(f"{name} is far too long " * 6, "ok")] for name in ("train", "val", "test")}
    argv = own_data(tmp_path, **each)
    assert "--block-size" in refused(main, [*argv, "--block-size", "30"], capsys)
    for split in ("val", "test"):
        argv = own_data(tmp_path, **{"train": short, "val": short[:3], "test": short[3:5], split: long})
        assert "--block-size" in refused(main, [*argv, "--block-size", "30"], capsys)


def test_long_held_out_references_do_no_harm(cached_pairs, tmp_path):
    """A test reference far longer than any training response is left out or measured,
    but never ends a run with a traceback."""
    rows = {name: [(f"{name} {i} ?", "ok") for i in range(12)] for name in ("train", "val", "test")}
    for split in ("val", "test"):
        rows[split][3] = ("x ?", "very " * 30)
    argv = own_data(tmp_path, **rows)
    assert main([*SMALL, *argv, "--variants", "sft", "--out", str(tmp_path / "out")]) == 0


def test_unwritable_folder_is_refused(nothing_trained, capsys, tmp_path):
    """--out below a file: one line that names it."""
    (tmp_path / "file").write_text("")
    for out in (tmp_path / "file", tmp_path / "file" / "out"):
        assert "--out" in refused(main, ["--quick", "--out", str(out)], capsys)


def test_records_are_not_overwritten(nothing_trained, capsys, copied):
    """A folder with records is refused without --resume, and stays as it is."""
    before = {path: path.read_bytes() for path in copied.iterdir()}
    assert "--resume" in refused(main, [*SMALL, "--out", str(copied)], capsys)
    assert {path: path.read_bytes() for path in copied.iterdir()} == before


def test_a_damaged_pair_in_the_cache_is_told_and_mended(cached_pairs, tmp_path, capsys):
    """A cached model that was cut short does not stop a run: it is named and built again."""
    assert main([*SMALL, "--variants", "sft", "--pair-seed", "9", "--out", str(tmp_path / "one")]) == 0
    newest = max(cached_pairs.glob("*-teacher-*"), key=lambda path: path.stat().st_mtime_ns)
    newest.write_bytes(newest.read_bytes()[:1000])
    capsys.readouterr()
    assert main([*SMALL, "--variants", "sft", "--pair-seed", "9", "--out", str(tmp_path / "two")]) == 0
    assert newest.name in capsys.readouterr().out
    one, two = (lines_of(tmp_path / name / "sft_pair9_seed1.jsonl") for name in ("one", "two"))
    assert without_times(one[-1]) == without_times(two[-1])


SCRIPTS = [("train_skd.py", ["--gamma", "0"]), ("sample.py", ["--checkpoint", "nothing.pt"])]


@matrix("script,argv", SCRIPTS, fast=SCRIPTS[:1])
def test_status_and_stderr_of_the_real_command(script, argv, tmp_path):
    """As a process: status 1, nothing on stdout, one line on stderr that starts with the script's name."""
    done = subprocess.run([sys.executable, str(ROOT / script), *argv], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr.startswith(f"{script}: ") and done.stderr.count("\n") == 1


# ---------------------------------------------------------------------------------------------------------------------
# sample.py's main.


def shown(argv, capsys):
    assert rollouts.main(argv) == 0
    return capsys.readouterr().out


def test_the_picture_of_a_students_rollout(finished, capsys):
    """Prompts of the task, each written before and after training, and counts that add up; the same seed shows the
    same. Nothing is wider than 100 columns."""
    argv = ["--checkpoint", str(finished / "skd_pair1_seed1.pt"), "--device", "cpu", "--rows", "2"]
    text = shown([*argv, "--seed", "3"], capsys)
    for example in make_task("math", **pairs.QUICK_TASK).examples("test")[:2]:
        assert f"prompt   {example.prompt}\n" in text
    assert text.count("\nprompt   ") == text.count("\nbefore   ") == text.count("\nafter    ") == 2
    assert text.count("\nresult   ") == 4 and "after: skd_pair1_seed1.pt\n" in text
    counts = re.findall(r"\n(before|after): (\d+) tokens written: (\d+) accepted, (\d+) replaced", text)
    for _, written, accepted, replaced in counts:
        assert int(written) == int(accepted) + int(replaced)
        assert f"{int(accepted) / int(written):.3f}" in text and "\033" not in text  # no colour into a pipe
    assert [name for name, *_ in counts] == ["before", "after"]
    assert text.count("<-") == sum(int(replaced) for *_, replaced in counts) + 1  # the legend shows one, too
    assert max(map(width, text.split("\n"))) <= 100
    assert text == shown([*argv, "--seed", "3"], capsys) != shown([*argv, "--seed", "4"], capsys)


def test_the_picture_follows_its_flags(finished, capsys):
    """K = 0 replaces everything, K = V nothing; an own prompt takes the place of the task's; gamma changes no text."""
    argv = [
        "--checkpoint",
        str(finished / "skd_pair1_seed1.pt"),
        "--teacher",
        str(finished / "teacher_pair1.pt"),
        "--prompt",
        "1+2=",
        "--prompt",
        "7",
    ]
    assert re.search(r"written: 0 accepted", shown([*argv, "--accept-top-k", "0"], capsys))
    assert re.search(r" 0 replaced", shown([*argv, "--accept-top-k", "257"], capsys))
    assert re.search(r" 0 replaced", shown([*argv, "--accept-rule", "all"], capsys))
    for least, none in ((0, "replaced"), (1, "accepted")):  # a rule's knob, as the training scripts take it
        text = shown([*argv, "--accept-rule", "minprob", "--rule", f"accept_min_prob={least}"], capsys)
        assert f"rule minprob, accept_min_prob = {least}, gamma = auto" in text and f" 0 {none}" in text
    texts = [shown([*argv, "--gamma", str(gamma)], capsys) for gamma in (1, 7)]
    results = [re.findall("result   .*", text) for text in texts]
    assert results[0] == results[1] and len(results[0]) == 4 and "prompt   1+2=\n" in texts[0]


def test_the_picture_of_a_start(copied, capsys):
    """The start itself, and a student whose start is gone, have nothing to be held against; a start of another run is
    named and left out."""
    start, student = copied / "student_start_pair1.pt", copied / "skd_pair1_seed1.pt"
    for path in (start, student):
        text = shown(["--checkpoint", str(path), "--device", "cpu", "--rows", "1"], capsys)
        assert (text.count("\nrollout  "), text.count("\nbefore   ")) == ((1, 0) if path == start else (0, 1))
    save_checkpoint(str(start), adapters.make_gpt(257, 26, 1, 2, 8), train_tokenizer(["words"] * 9, 260).state_dict())
    text = shown(["--checkpoint", str(student), "--device", "cpu", "--rows", "1"], capsys)
    left_out = "note: the student's start is left out:"
    assert text.startswith(f"{left_out} student_start_pair1.pt is of another run") and text.count("\nrollout  ") == 1
    start.write_bytes(start.read_bytes()[:1000])
    assert shown(["--checkpoint", str(student), "--device", "cpu", "--rows", "1"], capsys).startswith(left_out)
    start.unlink()
    assert shown(["--checkpoint", str(student), "--device", "cpu", "--rows", "1"], capsys).count("\nrollout  ") == 1


def test_the_picture_without_a_checkpoint(cached_pairs, capsys, monkeypatch):
    """Nothing given: the quick pair is pretrained, its student trained (here: shortly), and its held-out prompts are
    shown before and after that."""
    monkeypatch.setattr(pairs, "QUICK", dataclasses.replace(pairs.QUICK, teacher_steps=3, start_steps=3))
    monkeypatch.setattr(rollouts, "SHORT", {"steps": 2, "batch_size": 2, "lr": 0.05})
    text = shown(["--rows", "1", "--device", "cpu"], capsys)
    before, after = (re.search(rf"\n{name}   *(.*)", text)[1] for name in ("before", "after"))
    assert before != after and "2 updates of SKD later" in text and text.count("\nprompt   ") == 1
    assert "prompt   4+4=\n" in shown(["--prompt", "4+4=", "--device", "cpu"], capsys)


@pytest.fixture
def checkpoints(finished, tmp_path):
    """Paths of checkpoints that do not belong together, by what is wrong with them."""
    paths = {name: str(finished / f"{name}.pt") for name in ("skd_pair1_seed1", "teacher_pair1")}
    other = train_tokenizer(["a text with yet other words"] * 9, 270)
    model = adapters.make_gpt(other.n_vocab, 26, 1, 2, 8)
    about = torch.load(paths["skd_pair1_seed1"], weights_only=True)
    for name, gpt, state, extra in (
        ("one_tokenizer", model, train_tokenizer(["words of one text"] * 9, 270).state_dict(), {"task": "math"}),
        ("other_tokenizer", model, other.state_dict(), {"task": "math"}),
        ("other_shape", model, about["tokenizer"], {"task": "math"}),
        ("no_tokenizer", adapters.make_gpt(257, 26, 1, 2, 8), None, {"task": "math"}),
        ("no_task", adapters.make_gpt(257, 26, 1, 2, 8), about["tokenizer"], {}),
    ):
        paths[name] = str(tmp_path / f"{name}.pt")
        save_checkpoint(paths[name], gpt, state, **extra)
    (tmp_path / "text.pt").write_text("this is no checkpoint")
    (tmp_path / "half.pt").write_bytes(Path(paths["teacher_pair1"]).read_bytes()[:5000])
    torch.save({"weights": [1, 2]}, tmp_path / "strange.pt")
    return paths | {name: str(tmp_path / f"{name}.pt") for name in ("text", "half", "strange", "missing")}


WRONG_CHECKPOINTS = [  # student, teacher, a word that the line must hold
    ("missing", None, "missing.pt"),
    ("text", None, "text.pt"),
    ("half", None, "half.pt"),
    ("strange", None, "strange.pt"),
    ("skd_pair1_seed1", "missing", "missing.pt"),
    ("skd_pair1_seed1", "half", "half.pt"),
    ("skd_pair1_seed1", "other_tokenizer", "tokenizer"),
    ("one_tokenizer", "other_tokenizer", "different tokenizers"),  # of one size
    ("skd_pair1_seed1", "other_shape", "vocabulary"),
    ("other_shape", "other_shape", "vocabulary"),  # a model that does not fit its own tokenizer
    ("no_tokenizer", "no_tokenizer", "tokenizer"),
    ("no_task", "teacher_pair1", "--prompt"),
    ("other_tokenizer", None, "teacher_pair1.pt"),  # nothing beside it
]


@pytest.mark.parametrize("student,teacher,word", WRONG_CHECKPOINTS, ids=[f"{a}-{b}" for a, b, _ in WRONG_CHECKPOINTS])
def test_wrong_checkpoints_are_refused(checkpoints, capsys, student, teacher, word):
    """A file that is missing, damaged, or of another run: one line that says which and why."""
    argv = ["--checkpoint", checkpoints[student]] + (["--teacher", checkpoints[teacher]] if teacher else [])
    assert word in refused(rollouts.main, [*argv, "--device", "cpu"], capsys)


WRONG_VIEWS = [
    (["--rows", "0"], "--rows"), (["--rows", "some"], "--rows"), (["--gamma", "0"], "gamma"),
    (["--gamma", "65"], "gamma"), (["--accept-top-k", "-1"], "accept_top_k"),
    (["--accept-top-k", "99999"], "accept_top_k"), (["--device", "abacus"], "abacus"),
    (["--accept-rule", "guess"], "guess"), (["--prompt", ""], "empty"), (["--prompt", "1+" * 50], "block_size"),
    (["--seed", str(10**20)], "seed"), (["--tpyo"], "tpyo"),
]  # fmt: skip


@pytest.mark.parametrize("given", [True, False])
@pytest.mark.parametrize("argv,word", WRONG_VIEWS, ids=[" ".join(argv)[:40] for argv, _ in WRONG_VIEWS])
def test_wrong_views_are_refused(finished, nothing_trained, capsys, argv, word, given):
    """Wrong values end with one line, with a checkpoint as without one;
    what needs no model is seen before any training."""
    if not given and argv[0] == "--prompt":
        pytest.skip("how long a prompt may be is known once there is a pair")
    line = refused(
        rollouts.main, [*(["--checkpoint", str(finished / "skd_pair1_seed1.pt")] if given else []), *argv], capsys
    )
    assert word in line.replace("--accept-top-k", "accept_top_k"), line


# ---------------------------------------------------------------------------------------------------------------------
# The real commands (slow).


def command(clone, *argv):
    done = subprocess.run([sys.executable, *argv], capture_output=True, text=True, cwd=clone)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stderr == ""
    return done.stdout


@pytest.mark.slow
def test_quick_and_the_picture_as_commands(clone):
    """`python train_skd.py --quick` runs every method of the comparison, compares none on the screen, and shows two
    rollouts; sample.py shows its students, and one of a pair of its own before and after training."""
    out = command(clone, "train_skd.py", "--quick")
    folder = clone / "runs" / "skd-math-quick-1"
    assert "smoke" in out and "greedy" not in out and max(map(width, out.split("\n"))) <= 100
    assert out.count("\nbefore   ") == out.count("\nafter    ") == 2 and (folder / "table.md").exists()
    assert sorted(path.stem for path in folder.glob("*.jsonl")) == sorted(
        f"{name}_pair1_seed1" for name in train_skd.MAIN
    )
    finals = {name: lines_of(folder / f"{name}_pair1_seed1.jsonl")[-1] for name in train_skd.MAIN}
    start = lines_of(folder / "skd_pair1_seed1.jsonl")[0]["student_start"]
    assert all(
        final["kl_teacher"] < start["kl_teacher"]
        for name, final in finals.items()
        if VARIANTS[name].loss == "forward_kl"
    )
    assert "after: " in command(clone, "sample.py", "--checkpoint", str(folder / "skd_pair1_seed1.pt"))
    told = command(clone, "sample.py", "--seed", "1").split("\n")
    assert max(map(width, told)) <= 100
    assert [line.split(" ")[0] for line in told if line.startswith(("prompt ", "before ", "after "))] == [
        "prompt", "before", "after"
    ] * 3


@pytest.mark.slow
def test_every_row_on_the_quick_setting(clone):
    """`--quick --variants all`, half of the steps: every row from flags to table;
    all figures finite, and whoever has a teacher moved towards it."""
    words = ["train_skd.py", "--quick", "--steps", "20", "--variants"]
    out = command(clone, *words, "all", "--out", "quick_all")
    hinted = [name for name, row in VARIANTS.items() if row.hint]  # whose pair is another one
    assert all(f"the teacher of {name} reads a hint" in " ".join(out.split()) for name in hinted)
    out += command(clone, *words, ",".join(hinted), "--hint-share", "0.5", "--out", "quick_hinted")
    assert max(map(width, out.split("\n"))) <= 100 and (clone / "quick_all" / "table.md").exists()
    for name in VARIANTS:
        folder = clone / ("quick_hinted" if name in hinted else "quick_all")
        header, *lines, final = lines_of(folder / f"{name}_pair1_seed1.jsonl")
        assert (
            header["row"] == json.loads(json.dumps(records.rounded(dataclasses.asdict(VARIANTS[name]))))
            and final["kind"] == "final"
        )
        for who in ("teacher", "student_start"):
            measured = {key for key in header[who] if key.startswith("hint_")}
            assert measured == ({f"hint_{kind}" for kind in ("none", *HINTS)} if name in hinted else set()), name
        losses_seen = [line["loss"] for line in lines if line["kind"] == "step"]
        assert all(map(math.isfinite, losses_seen)) and final["steps"] == 20 and math.isfinite(final["val_nll"])
        assert (folder / f"{name}_pair1_seed1.pt").exists()
    started = lines_of(clone / "quick_all" / "supervised_pair1_seed1.jsonl")[0]["student_start"]["kl_teacher"]
    plain = {name: row for name, row in VARIANTS.items() if row.teacher == "pair" and row.hint is None}
    word_level = [name for name, row in plain.items() if row.loss == "forward_kl" and name != "veto"]  # another target
    finals = [lines_of(clone / "quick_all" / f"{name}_pair1_seed1.jsonl")[-1]["kl_teacher"] for name in word_level]
    assert len(word_level) > 15 and max(finals) < started


@pytest.mark.slow
def test_every_budget_and_switch(clone, cached_pairs, tmp_path):
    """Two seeds and two budgets of the comparison and of a row that prepares, as commands; every switch of the sampler,
    from flags to files."""
    small = [*SMALL[:-2], "--variants"]
    command(clone, "train_skd.py", *small, "main", "--equal-compute", "--seeds", "2", "--out", "main")
    # skd sets the compute budget and runs once per seed.
    assert len(list((clone / "main").glob("*.jsonl"))) == 4 * len(train_skd.MAIN) - 2
    command(clone, "train_skd.py", *small, "skd,takd,sftn,lelp", "--equal-compute", "--out", "prepared")
    assert len(list((clone / "prepared").glob("*.jsonl"))) == 7
    for i, switch in enumerate((
        ["--accept-rule", "topp", "--rule", "accept_top_p=0.8"],
        ["--accept-rule", "random", "--rule", "replace_rate=0.2"], ["--replace", "sample_topk"],
        ["--replace", "argmax"], ["--no-write-back"], ["--accept-on", "warped", "--teacher-top-p", "0.9"],
        ["--judge-fresh"], ["--student-temperature", "0.5", "--student-top-p", "0.9"], ["--reduction", "sequence"],
        ["--student-start", "raw"], ["--student-prompts", "0"], ["--block-size", "24"], ["--task", "translation"],
        ["--task", "summarisation"], ["--task", "instruction"], ["--accept-top-k", "0"], ["--gamma", "64"],
    )):  # fmt: skip
        assert main([*small, "skd", *switch, "--out", str(tmp_path / f"switch{i}")]) == 0


@pytest.mark.slow
def test_jobs_change_no_figure(clone):
    """Two runs side by side give the same records as one after the other, but for the clock."""
    for jobs in ("1", "2"):
        command(
            clone, "train_skd.py", *SMALL, "--variants", "sft,on_policy,skd", "--jobs", jobs, "--out", f"jobs{jobs}"
        )
    for name in ("sft", "on_policy", "skd"):
        one, two = (lines_of(clone / f"jobs{jobs}" / f"{name}_pair1_seed1.jsonl") for jobs in "12")
        assert [without_times(line) | {"jobs": 0} for line in one] == [
            without_times(line) | {"jobs": 0} for line in two
        ]
