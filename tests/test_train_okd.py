"""Laws of train_okd.py: the two losses, who moves whom, every row's first step by hand,
and the script from flags to files."""

import argparse
import copy
import dataclasses
import functools
import itertools
import json
import math
import subprocess
import sys
import textwrap

import adapters
import pytest
import tiny
import torch
import torch.nn.functional as F
from test_train_skd import HOW
from tiny import (  # noqa: F401  (unmeasured is a fixture)
    OKD_KINDS,
    cached,
    distilled,
    generator,
    matrix,
    moved_apart,
    prompts_of,
    same_weights,
    sharp_gpt,
    tiny_pair,
    unmeasured,
    weights_of,
)
from torch.nn.attention import SDPBackend, sdpa_kernel

import model
import sample
import train_okd
import train_skd
from lab import command_line, compare, pairs, processes, program, reading, tables, training
from lab.evaluate import distances
from lab.training import batch_order
from losses import DIVERGENCES, cross_entropy, forward_kl, masked_mean
from model import (
    ONLINE_MODULES,
    OnlineTeacher,
    clip_and_step,
    learning_rate,
    load_online_module,
    make_optimizer,
)
from train_okd import (
    MAIN,
    TEACHER_DIVERGENCES,
    VARIANTS,
    distill,
    kd_loss,
    main,
    parse_flags,
    resolve,
)

TEACHER, STUDENT = torch.tensor([0.6, 0.3, 0.1]).log(), torch.tensor([0.2, 0.5, 0.3]).log()
EVERY_TERM = "okd --temperature 2 --anchor .3 --student-kd .7"


@pytest.fixture(scope="module")
def pair():
    """A tiny math task and two random models."""
    return tiny_pair()


def flags(*argv, **knobs):
    return tiny.flags(*argv, script=train_okd, **knobs)


class Watched:
    """One run of `distill`: student and module after each step, log lines, all batches and those that models wrote."""

    def __init__(self, variant, pair, args, seed=1, student=None):
        self.row = resolve(VARIANTS[variant], args)
        self.lines, self.students, self.modules, self.batches, self.rollouts = [], [], [], [], []
        self.student, self.teacher = student or pair.new_student(), None
        original_write, original_teacher = training.write_tokens, train_okd.OnlineTeacher

        def watch_write(writer, *arguments, **keywords):
            self.batches.append(original_write(writer, *arguments, **keywords))
            if writer != "dataset":
                self.rollouts.append(self.batches[-1])
            return self.batches[-1]

        def watch_teacher(*arguments, **keywords):
            self.teacher = original_teacher(*arguments, **keywords)
            self.module_start = weights_of(self.teacher.module)
            return self.teacher

        training.write_tokens, train_okd.OnlineTeacher = watch_write, watch_teacher
        try:
            self.costs, self.adapted = distilled(train_okd, VARIANTS[variant], self.student, pair, args, seed, self)
        finally:
            training.write_tokens, train_okd.OnlineTeacher = original_write, original_teacher

    def write(self, kind, **figures):
        self.lines.append({"kind": kind} | figures)
        if kind == "step":
            self.students.append(weights_of(self.student))
            self.modules.append(weights_of(self.teacher.module) if self.teacher else None)


# ---------------------------------------------------------------------------------------------------------------------
# The table.


def test_the_table_holds_what_others_rely_on(capsys):
    """The names of the contract and of the papers are rows; every entry is a name that the code knows."""
    needed = """sft fixed_forward_kl fixed_reverse_kl fixed_jsd okd okd_no_feedback okd_collapse okd_reverse_kl okd_jsd
        okd_prefix okd_ptuning okd_full imitkd gkd minillm dml prokt pesf_kd promptkd okd_on_policy okd_skd""".split()
    assert set(needed) <= set(VARIANTS) and set(MAIN) <= set(VARIANTS)
    for name, row in VARIANTS.items():
        row = resolve(row, parse_flags([])[0])
        assert row.student_divergence in {*DIVERGENCES, "minillm"}, name
        assert row.teacher_divergence in TEACHER_DIVERGENCES, name
        assert row.module in {None, *ONLINE_MODULES} and row.update in ("simultaneous", "alternating"), name
        assert row.writer in ("dataset", "student", "mixed", "interleaved", "teacher_mixed"), name
    assert main(["--list-variants"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert (
        list(listed) == list(VARIANTS)
        and listed["okd"]["paper"] == "2409.12512"
        and listed["okd"]["writer"] == "dataset"
    )


def test_shared_flags_mean_the_same():
    """Every flag of train_skd.py is one of train_okd.py, with the same default, choices and (but for names) help."""

    def options(script, variants, main_variants):
        parser = command_line.make_parser(script, "", variants, main_variants)
        return {action.dest: (action.default, action.choices, action.type) for action in parser._actions}

    assert options("train_skd", train_skd.VARIANTS, ()) == options("train_okd", VARIANTS, ())
    own, other = vars(parse_flags([])[0]), vars(train_skd.parse_flags([])[0])
    shared = other.keys() - {"swept", "loss", "loss_args"}  # which stand for --student-divergence there
    assert {name: own[name] for name in shared} == {name: other[name] for name in shared}


def test_a_rows_value_goes_before_a_flag():
    """Flags fill in what a row leaves open, and nothing else."""
    args = flags(
        "--alpha", "0.9", "--module", "adapter", "--module-rank", "3", "--module-lr", "0.3", "--update", "alternating"
    )
    okd, control, collapse, prefix, prompt = (
        resolve(VARIANTS[name], args) for name in ("okd", "okd_no_feedback", "okd_collapse", "okd_prefix", "promptkd")
    )
    assert (okd.alpha, okd.module, okd.rank, okd.module_lr, okd.update) == (0.9, "adapter", 3, 0.3, "alternating")
    assert control.alpha == 0 and control.module == "adapter" and collapse.alpha == 1 and collapse.module_lr == 1
    assert prefix.module == "prefix" and prefix.alpha == 0.9 and prompt.rank == 7 and prompt.alpha == 1
    assert (
        resolve(VARIANTS["fixed_reverse_kl"], flags("--student-divergence", "total_variation")).student_divergence
        == "reverse_kl"
    )


# ---------------------------------------------------------------------------------------------------------------------
# The two losses.


def test_both_losses_by_hand():
    """Tests 5: with teacher (.6, .3, .1), student (.2, .5, .3), token 0, unlike in both directions,
    so a swap would show."""
    student, teacher = STUDENT.view(1, 1, 3), TEACHER.view(1, 1, 3)
    token, mask = torch.tensor([[0]]), torch.tensor([[True]])
    for alpha, expected in ((1.0, 0.365274), (0.0, 0.510826), (0.5, 0.438050)):
        student_loss, teacher_loss = adapters.okd_losses(student, teacher, token, mask, alpha)
        assert student_loss.item() == pytest.approx(0.396058, abs=1e-6)  # KL(teacher || student), at every alpha
        assert teacher_loss.item() == pytest.approx(expected, abs=1e-6)  # KL(student || teacher) and -log .6


CLOSED_FORMS = {  # teacher (.6, .3, .1), student (.2, .5, .3)
    "forward_kl": 0.6 * math.log(3) + 0.3 * math.log(0.6) + 0.1 * math.log(1 / 3),  # .396058, the teacher first
    "reverse_kl": 0.2 * math.log(1 / 3) + 0.5 * math.log(5 / 3) + 0.3 * math.log(3),  # .365274, the student first
    "generalized_jsd": (0.6 * math.log(1.5) + 0.3 * math.log(0.75) + 0.1 * math.log(0.5)
                        + 0.2 * math.log(0.5) + 0.5 * math.log(1.25) + 0.3 * math.log(1.5)) / 2,  # against (.4, .4, .2)
    "skew_forward_kl": 0.6 * math.log(0.6 / 0.24) + 0.3 * math.log(0.3 / 0.48) + 0.1 * math.log(0.1 / 0.28),
    "skew_reverse_kl": 0.2 * math.log(0.2 / 0.56) + 0.5 * math.log(0.5 / 0.32) + 0.3 * math.log(0.3 / 0.12),
    "total_variation": (0.4 + 0.2 + 0.2) / 2,
    "squared_error": 0.4**2 + 0.2**2 + 0.2**2,
}  # fmt: skip


@pytest.mark.parametrize("name", TEACHER_DIVERGENCES)
def test_a_divergence_is_what_its_name_says_on_either_side(name):
    """Forward means teacher first, whoever minimises it: one number on three tokens, a gradient to who learns alone."""
    student, teacher = (logits.view(1, 1, 3).clone().requires_grad_() for logits in (STUDENT, TEACHER))
    for own, other, function in ((student, teacher, name), (teacher, student, TEACHER_DIVERGENCES[name])):
        loss = kd_loss(own, other, torch.tensor([[True]]), 0.0, 1.0, DIVERGENCES[function])
        assert name in CLOSED_FORMS, f"{name} is new: put its number on three tokens into CLOSED_FORMS"
        assert loss.item() == pytest.approx(CLOSED_FORMS[name], abs=1e-6)
        to_own, to_other = torch.autograd.grad(loss, (own, other), allow_unused=True)
        assert to_other is None and to_own.abs().max() > 0.01


def test_gradients_by_hand():
    """Test 6: dL_s/dz_s = student - teacher; dL_t/dz_t = teacher - (alpha student + (1 - alpha) one-hot)."""
    student_logits, teacher_logits = (torch.randn(2, 5, 7, generator=generator(seed)) for seed in (1, 2))
    targets, mask = torch.randint(0, 7, (2, 5), generator=generator(3)), torch.ones(2, 5, dtype=torch.bool)
    for alpha in (0.0, 0.3, 1.0):
        zs, zt = (logits.clone().requires_grad_() for logits in (student_logits, teacher_logits))
        student_loss, teacher_loss = adapters.okd_losses(zs, zt, targets, mask, alpha)
        (of_student,) = torch.autograd.grad(student_loss, zs)
        (of_teacher,) = torch.autograd.grad(teacher_loss, zt)
        student, teacher, onehot = zs.softmax(-1), zt.softmax(-1), F.one_hot(targets, 7).float()
        torch.testing.assert_close(of_student * 10, student - teacher, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(
            of_teacher * 10, teacher - (alpha * student + (1 - alpha) * onehot), rtol=1e-4, atol=1e-6
        )


def test_neither_side_moves_the_other():
    """Tests 3 and 4: no cross-gradient, and one backward of the sum equals two separate ones."""
    zs, zt = (torch.randn(2, 4, 6, generator=generator(seed)).requires_grad_() for seed in (1, 2))
    targets, mask = torch.zeros(2, 4, dtype=torch.long), torch.ones(2, 4, dtype=torch.bool)
    student_loss, teacher_loss = adapters.okd_losses(zs, zt, targets, mask)
    alone = torch.autograd.grad(student_loss, (zs, zt), retain_graph=True, allow_unused=True)
    assert alone[1] is None
    others = torch.autograd.grad(teacher_loss, (zs, zt), retain_graph=True, allow_unused=True)
    assert others[0] is None
    together = torch.autograd.grad(student_loss + teacher_loss, (zs, zt))
    assert torch.equal(together[0], alone[0]) and torch.equal(together[1], others[1])


def test_prompts_and_padding_do_not_count():
    """Test 9: whatever stands outside the mask changes neither loss."""
    zs, zt = (torch.randn(2, 6, 5, generator=generator(seed)) for seed in (1, 2))
    targets, mask = (
        torch.zeros(2, 6, dtype=torch.long),
        torch.arange(6).expand(2, 6).ge(2) & torch.tensor([[6], [4]]).gt(torch.arange(6)),
    )
    before = adapters.okd_losses(zs, zt, targets, mask)
    zs[~mask], zt[~mask], targets[~mask] = 50.0 * torch.randn(int((~mask).sum()), 5, generator=generator(3)), -1e3, 4
    assert all(torch.equal(one, other) for one, other in zip(before, adapters.okd_losses(zs, zt, targets, mask)))


def test_temperature_and_reduction():
    """tau^2 D at logits / tau; cross-entropy stays at 1; the reduction reaches the divergence."""
    zs, zt = (torch.randn(2, 3, 5, generator=generator(seed)) for seed in (1, 2))
    mask, fixed = torch.tensor([[True, True, True], [True, False, False]]), torch.tensor(7.0)
    per_token = 9 * forward_kl(zs / 3, zt / 3)
    for reduction, expected in (
        ("token", (per_token[0].sum() + per_token[1, 0]) / 4),
        ("sequence", (per_token[0].mean() + per_token[1, 0]) / 2),
    ):
        got = kd_loss(zs, zt, mask, fixed, 0.25, forward_kl, 3.0, reduction)
        torch.testing.assert_close(got, 0.25 * expected + 0.75 * 7)


# ---------------------------------------------------------------------------------------------------------------------
# The loop.


def test_the_plain_loop_of_the_docstring(pair):
    """train_okd.py's docstring shows OKD without the plumbing: the very weights of `distill`, student and module."""
    code = train_okd.__doc__.split("Without the plumbing")[1].split(":\n\n", 1)[1].split("\n\n", 1)[0]
    assert code.count("\n") > 10 and all(line.startswith("    ") for line in code.splitlines())
    steps, rate, seed = 12, 5e-3, 3
    row = dataclasses.replace(VARIANTS["okd"], alpha=0.25, module_lr=1.0)
    run = training.Run(steps=steps, batch_size=4, lr=rate, seed=seed)
    student, base, texts = pair.new_student(), pair.teacher, (pair.train.prompts, pair.train.responses)
    _, adapted = distill(row, student, base, *texts, run)
    batches = [
        sample.rollout_from_ids(*([column[i] for i in rows] for column in texts), [sample.DATASET] * 4, "cpu")
        for rows in batch_order(24, 4, steps, generator(seed)).tolist()
    ]
    names = {"student": pair.new_student(), "base": base, "batches": batches, "steps": steps, "rate": rate}
    functions = (OnlineTeacher, make_optimizer, masked_mean, forward_kl, cross_entropy, clip_and_step, learning_rate)
    names |= {"module_rate": rate, "alpha": 0.25, "seed": seed, "torch": torch}
    names |= {function.__name__: function for function in functions}
    exec(textwrap.dedent(code), names)
    assert same_weights(weights_of(names["student"]), weights_of(student))
    assert same_weights(weights_of(names["teacher"].module), weights_of(adapted.module))
    assert not same_weights(weights_of(student), pair.student_weights)
    untrained = OnlineTeacher(base, "lora", 8, 1.0, generator(1_000_003 * seed + 2))
    assert not same_weights(weights_of(untrained.module), weights_of(adapted.module))


def divergence_by_hand(name, student_logits, teacher_logits):
    """The divergence of this name in plain probabilities, for logits of moderate size; forward means teacher first."""
    student, teacher = student_logits.softmax(-1), teacher_logits.softmax(-1)

    def kl(one, other):
        return (one * (one / other).log()).sum(-1)

    by_hand = {
        "forward_kl": lambda: kl(teacher, student),
        "reverse_kl": lambda: kl(student, teacher),
        "generalized_jsd": lambda: (kl(teacher, (student + teacher) / 2) + kl(student, (student + teacher) / 2)) / 2,
        "skew_forward_kl": lambda: kl(teacher, 0.1 * teacher + 0.9 * student),
        "skew_reverse_kl": lambda: kl(student, 0.1 * student + 0.9 * teacher),
        "total_variation": lambda: (student - teacher).abs().sum(-1) / 2,
        "squared_error": lambda: ((student - teacher) ** 2).sum(-1),
    }
    assert name in by_hand, f"{name} is new: write it in plain probabilities into divergence_by_hand"
    return by_hand[name]()


def minillm_by_hand(own, other, tokens, mask, teacher_mix):
    """Single step plus length-normalised long part, each weighted by student / mixture, token by token in loops."""
    per_token = torch.zeros(own.shape[:2])
    own, other = own.log_softmax(-1), other.log_softmax(-1).detach()
    for row, place in mask.nonzero().tolist():
        reward = [
            (other[row, t, tokens[row, t]] - own[row, t, tokens[row, t]]).item()
            for t in range(place + 1, own.size(1))
            if mask[row, t]
        ]
        later = sum(reward) / len(reward) if reward else 0.0
        chosen = own[row, place, tokens[row, place]]
        single = (own[row, place].exp() * (own[row, place] - other[row, place])).sum()
        writer = teacher_mix * other[row, place, tokens[row, place]].exp() + (1 - teacher_mix) * chosen.exp()
        per_token[row, place] = (chosen.exp() / writer).detach() * (single - later * chosen)
    return per_token


def masked(per_token, mask):
    return (per_token * mask).sum() / mask.sum()


@pytest.mark.parametrize("variant", [*VARIANTS, *(f"okd --teacher-divergence {name}" for name in TEACHER_DIVERGENCES)])
def test_first_step_by_hand(pair, variant):
    """One update of student and teacher module, worked out again from the row: the very gradients that the loop leaves.

    The module is stirred first: at its start an adapted teacher is the original one, and much could be mixed up unseen.
    A hint, which has tests of its own (test_hints.py), is empty here.
    """
    pair = dataclasses.replace(pair, hinted=dict.fromkeys(pair.hinted, pair.train.prompts))
    variant, *own = variant.split()
    args = flags("--steps", "1", "--lr", "1e-2", "--teacher-mix", "0.3", "--module-lr", "0.5", *own)
    stir = train_okd.OnlineTeacher

    def stirred(*arguments):
        online = stir(*arguments)
        if not online.module.trains_base:
            with torch.no_grad():
                for weight in online.module.parameters():
                    weight.add_(0.2 * torch.randn(weight.shape, generator=generator(4)))
        return online

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train_okd, "OnlineTeacher", stirred)
        run = Watched(variant, pair, args)
    row, student, moving = run.row, pair.new_student(), run.row.module is not None
    teacher = pair.teacher
    if moving:
        teacher = OnlineTeacher(pair.teacher, row.module, row.rank, generator=generator())
        teacher.module.load_state_dict(run.module_start)
    held_out = 5 if row.meta_gradient else 0  # a fifth of 24
    order = batch_order(len(pair.train.prompts) - held_out, 4, 1, generator(1))[0].tolist()
    texts = [(pair.train.prompts[i], pair.train.responses[i]) for i in order]
    references = sample.rollout_from_ids(*zip(*texts), [sample.DATASET] * 4, "cpu")
    assert len(run.rollouts) == (row.writer != "dataset")
    rollout = run.rollouts[0] if run.rollouts else references
    assert [r[:n] for r, n in zip(rollout.tokens.tolist(), rollout.prompt_len.tolist())] == [
        prompt for prompt, _ in texts
    ]
    inputs, tokens, mask = rollout.tokens[:, :-1], rollout.tokens[:, 1:], rollout.response_mask[:, 1:]
    rate = learning_rate(0, 1, args.lr)

    def on_references(model):
        logprobs = model(references.tokens[:, :-1]).log_softmax(-1)
        picked = logprobs.gather(-1, references.tokens[:, 1:, None])[..., 0]
        return masked(-picked, references.response_mask[:, 1:])

    def update(loss, model, rate, weight_decay):
        optimizer = make_optimizer(model, rate, weight_decay)
        loss.backward()
        trainable = [weight for weight in model.parameters() if weight.requires_grad]
        torch.nn.utils.clip_grad_norm_(trainable, 1.0)
        optimizer.step()

    if row.meta_gradient:
        loss = outer_loss_unrolled(pair, student, teacher, inputs, mask)
        update(loss, teacher, rate * row.module_lr, 0.0)
        seen = teacher(inputs).detach()
        student.zero_grad(set_to_none=True)
    elif moving:
        with torch.no_grad():
            student_logits, original = student(inputs), pair.teacher(inputs)
        adapted = teacher(inputs)
        loss = row.alpha * masked(divergence_by_hand(row.teacher_divergence, student_logits, adapted), mask)
        loss = loss + (1 - row.alpha) * on_references(teacher)
        loss = loss + row.anchor * masked(divergence_by_hand("reverse_kl", adapted, original), mask)
        before = teacher(inputs).detach()
        update(loss, teacher, rate * row.module_lr, 0.0)
        seen = teacher(inputs).detach() if row.update == "alternating" else before
    else:
        seen = teacher(inputs).detach()
    own = student(inputs)
    if row.student_divergence == "minillm":
        per_token = minillm_by_hand(own, seen, tokens, mask, 0.3)
    else:
        per_token = divergence_by_hand(row.student_divergence, own, seen)
    update(
        row.student_kd * masked(per_token, mask) + (1 - row.student_kd) * on_references(student),
        student,
        rate,
        args.weight_decay,
    )
    # Gradients after clipping, not weights: AdamW's first step is the sign of a gradient, rounding included.
    same_gradients(run.student, student)
    if moving:
        same_gradients(run.adapted.module, teacher.module, rtol=3e-2 if row.meta_gradient == "difference" else 1e-3)
        assert not same_weights(run.modules[0], run.module_start)


def outer_loss_unrolled(pair, student, teacher, inputs, mask, seed=1):
    """The student's loss on held-out references after one plain step towards this teacher, with the whole graph."""
    picked = 19 + batch_order(5, 4, 1, generator(1_000_003 * seed + 3))[0]
    texts = ([column[i] for i in picked] for column in (pair.train.prompts, pair.train.responses))
    outer = sample.rollout_from_ids(*texts, [0] * 4, "cpu")
    with sdpa_kernel(SDPBackend.MATH):
        logprobs = [model(inputs).log_softmax(-1) for model in (student, teacher)]
        inner = masked((logprobs[1].exp() * (logprobs[1] - logprobs[0])).sum(-1), mask)
        weights = dict(student.named_parameters())
        steps = torch.autograd.grad(inner, weights.values(), create_graph=True)
        after = {name: weight - 0.1 * step for (name, weight), step in zip(weights.items(), steps)}
        logprobs = torch.func.functional_call(student, after, (outer.tokens[:, :-1],)).log_softmax(-1)
    return masked(-logprobs.gather(-1, outer.tokens[:, 1:, None])[..., 0], outer.response_mask[:, 1:])


def same_gradients(model, expected, rtol=1e-3):
    """Both models hold the same gradients, up to rounding."""
    for (name, weight), other in zip(model.named_parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(weight.grad, other.grad, rtol=rtol, atol=2e-5, msg=lambda text: f"{name}: {text}")


@matrix("variant", VARIANTS, fast=OKD_KINDS)
def test_the_base_never_moves(pair, variant):
    """After a run of any row: the original teacher has every bit and no gradient; the student has moved."""
    before = copy.deepcopy(pair.teacher.state_dict())
    run = Watched(variant, pair, flags())
    assert same_weights(before, pair.teacher.state_dict())
    assert all(weight.grad is None for weight in pair.teacher.parameters())
    assert not same_weights(run.students[-1], pair.student_weights)
    assert (run.adapted is None) == (VARIANTS[variant].module is None)
    assert run.adapted is None or run.adapted.base is pair.teacher


@pytest.mark.usefixtures("unmeasured")
@matrix("variant", VARIANTS, fast=OKD_KINDS)
def test_a_run_is_a_function_of_its_seed(pair, variant):
    """Same seed, same bits, whatever torch's global generator holds."""
    one = Watched(variant, pair, flags())
    torch.rand(3)
    other = Watched(variant, pair, flags())
    assert same_weights(one.students[-1], other.students[-1])
    assert one.adapted is None or same_weights(one.modules[-1], other.modules[-1])
    assert not same_weights(one.students[-1], Watched(variant, pair, flags(), seed=2).students[-1])


@pytest.mark.parametrize("variant", ["minillm", "okd_on_policy", "okd_skd"])
def test_noise_is_the_seeds(pair, variant):
    """One prompt only, and a student and a teacher module that stand still:
    samples still differ between seeds, steps and rows."""
    one_prompt = dataclasses.replace(pair, train=type(pair.train)(*(column[:1] for column in pair.train)))
    texts = [
        response
        for seed in (1, 2)
        for rollout in Watched(variant, one_prompt, flags(lr=1e-12), seed).rollouts
        for response in map(tuple, rollout.responses())
    ]
    assert len(set(texts)) == len(texts) == 2 * 2 * 4


@pytest.mark.parametrize("kind", [kind for kind in ONLINE_MODULES if kind != "ptuning"])
def test_a_teacher_that_stands_still_is_the_fixed_one(pair, kind):
    """okd with a module rate of 0 equals fixed_forward_kl bit for bit, over all steps."""
    args = flags("--steps", "6", "--module-lr", "0", "--module", kind)
    online, fixed = Watched("okd", pair, args), Watched("fixed_forward_kl", pair, args)
    assert all(same_weights(one, other) for one, other in zip(online.students, fixed.students, strict=True))
    assert same_weights(online.modules[-1], online.module_start)
    moving = Watched("okd", pair, flags("--steps", "6", "--module", kind))
    assert not same_weights(moving.students[-1], fixed.students[-1])


@pytest.mark.parametrize(
    "name,twin", [("fixed_forward_kl", "supervised"), ("sft", "sft"), ("imitkd", "imitkd"), ("gkd", "gkd")]
)
def test_both_scripts_agree_on_the_baselines(pair, name, twin):
    """The same method in both scripts leaves the same student, bit for bit."""
    args, student = flags("--steps", "4"), pair.new_student()

    distilled(train_skd, train_skd.VARIANTS[twin], student, pair, args)
    assert same_weights(weights_of(student), Watched(name, pair, args).students[-1])


def test_without_feedback_the_student_has_no_say(pair):
    """Test 7: at alpha 0 the module's path is the same, bit for bit, beside any student; at alpha .5 it is not."""
    stranger = sharp_gpt(8, pair.tokenizer.n_vocab, pair.student_config.block_size, 77)
    for variant, equal in (("okd_no_feedback", True), ("okd", False)):
        one = Watched(variant, pair, flags("--steps", "4"))
        other = Watched(variant, pair, flags("--steps", "4"), student=copy.deepcopy(stranger))
        assert [same_weights(*modules) for modules in zip(one.modules, other.modules)] == [equal] * 4


def test_the_collapse(pair):
    """Test 8: at alpha 1 both agree (KL(adapted || student) falls near 0) while KL(original || student) stays high."""
    args = flags("--steps", "150", "--lr", "2e-2", "--batch-size", "8", "--log-every", "150")
    run, fixed = Watched("okd_collapse", pair, args), Watched("fixed_forward_kl", pair, args)
    texts = pair.train.prompts, pair.train.responses
    collapsed = distances(run.student, pair.teacher, *texts, run.adapted)
    normal = distances(fixed.student, pair.teacher, *texts)
    assert collapsed["kl_adapted_teacher"] < 0.1 * collapsed["kl_teacher"]
    assert collapsed["kl_teacher"] > 1.5 * normal["kl_teacher"] and collapsed["drift"] > 0.5 * collapsed["kl_teacher"]


@pytest.mark.parametrize("variant", [name for name, row in VARIANTS.items() if row.writer == "dataset"])
def test_nothing_is_generated(pair, variant, monkeypatch):
    """Test 10: in training on references every forward is over references (measuring, which samples, is set aside)."""
    fed, written, forward, write = [], [], model.GPT.forward, training.rollout_from_ids

    def watched(self, tokens, *rest, **options):
        fed.append(tokens)
        return forward(self, tokens, *rest, **options)

    def outer(*arguments):
        written.append(write(*arguments))
        return written[-1]

    monkeypatch.setattr(model.GPT, "forward", watched)
    monkeypatch.setattr(training, "rollout_from_ids", outer)
    figures = {"score": 0.0, "val_nll": 0.0, "kl_teacher": 0.0, "drift": 0.0}
    monkeypatch.setattr(compare, "validation", lambda *arguments: figures)
    run = Watched(variant, dataclasses.replace(pair, hinted=dict.fromkeys(pair.hinted, pair.train.prompts)), flags())
    assert run.costs["tokens_generated"] == 0 and run.rollouts == []
    inputs = [rollout.tokens[:, :-1] for rollout in run.batches + written]
    assert len(fed) >= 2 and all(any(torch.equal(tokens, one) for one in inputs) for tokens in fed)
    texts = [prompt + response for prompt, response in zip(pair.train.prompts, pair.train.responses)]
    for rollout in run.batches + written:
        assert all(row[:length] in texts for row, length in zip(rollout.tokens.tolist(), rollout.lengths.tolist()))


def test_the_module_may_start_late(pair):
    """Up to --module-start nothing of the teacher moves and the student is that of the fixed teacher; then both do."""
    args = flags("--steps", "8", "--module-start", "0.5")
    run, fixed = Watched("okd", pair, args), Watched("fixed_forward_kl", pair, args)
    assert [same_weights(module, run.module_start) for module in run.modules] == [True] * 4 + [False] * 4
    equal = [same_weights(one, other) for one, other in zip(run.students, fixed.students)]
    assert equal[:5] == [True] * 5 and not any(equal[5:])  # step 5 still learns from the teacher as it was


def test_the_teachers_rate_is_a_share(pair):
    """Both follow one schedule; AdamW's first step moves a weight by its rate,
    so the ratio of the steps is the share."""
    args = flags("--steps", "1", "--module-lr", "0.25", "--lr", "1e-3", "--weight-decay", "0")
    run = Watched("okd", pair, args)
    moved = max((run.modules[0][name] - start).abs().max() for name, start in run.module_start.items())
    own = max((weight - pair.student_weights[name]).abs().max() for name, weight in run.students[0].items())
    assert moved / own == pytest.approx(0.25, rel=0.02)


def test_an_anchor_holds_the_teacher(pair):
    """The stronger the anchor, the smaller the drift; a decaying one weighs 1 - step / steps."""
    drifts = []
    for anchor in ("0", "1", "30"):
        args = flags("--steps", "40", "--module-lr", "1", "--alpha", "1", "--anchor", anchor, "--log-every", "40")
        drifts.append(Watched("okd", pair, args).lines[-1]["drift"])
    assert drifts[0] > 1.5 * drifts[1] > 3 * drifts[2]
    row = dataclasses.replace(VARIANTS["okd"], anchor=3.0)
    runs_ = {}
    for decay in (False, True):
        VARIANTS["okd_test"] = dataclasses.replace(row, anchor_decay=decay)
        try:
            runs_[decay] = Watched("okd_test", pair, flags("--steps", "3", "--module-lr", "1"))
        finally:
            del VARIANTS["okd_test"]
    # equal at step 0 (weight 1), and after it; the gradient of an anchor at distance 0 is 0, so unlike from step 3 on
    assert same_weights(runs_[False].modules[0], runs_[True].modules[0])
    assert not same_weights(runs_[False].modules[2], runs_[True].modules[2])


def test_every_line_tells_of_the_teacher(pair):
    """Step lines hold the teacher's loss, eval lines its drift and nll, the end its size and where it started. The last
    eval line's distances are those of the models that are left."""
    run = Watched("okd_ptuning", pair, flags("--steps", "8"))
    steps, evals = ([line for line in run.lines if line["kind"] == kind] for kind in ("step", "eval"))
    assert len(steps) == len(evals) - 1 == 8 and all(
        {"teacher_loss", "module_gradient_norm"} <= set(line) for line in steps
    )
    assert all({"drift", "adapted_nll", "kl_adapted_teacher"} <= set(line) for line in evals)
    measured = distances(run.student, pair.teacher, pair.val.prompts, pair.val.responses, run.adapted)
    for key in ("kl_teacher", "drift", "adapted_nll", "kl_adapted_teacher"):  # the first to the original teacher
        assert evals[-1][key] == pytest.approx(measured[key], rel=1e-5), key
    assert abs(measured["kl_teacher"] / measured["kl_adapted_teacher"] - 1) > 1e-3
    assert run.costs["initial_drift"] > 0 and run.costs["module_parameters"] == run.adapted.num_parameters()
    assert Watched("okd", pair, flags()).costs["initial_drift"] == 0
    assert not {"drift", "teacher_loss"} & {key for line in Watched("sft", pair, flags()).lines for key in line}


SOFTENED = [EVERY_TERM, "dml --temperature 2", "okd_on_policy --temperature 2"]


@matrix("variant", [*VARIANTS, *SOFTENED], fast=["pesf_kd", "okd_skd", *SOFTENED])
def test_the_loss_by_who_wrote_the_token_is_the_loss(pair, variant):
    """Weights, temperature and cross-entropy included: the mean over the batch of loss_on_* is the loss of the line."""
    variant, *own = variant.split()
    for line in Watched(variant, pair, flags("--steps", "3", *own)).lines:
        if line["kind"] == "step":
            who = [name for name in ("student", "teacher", "dataset") if f"{name}_share" in line]
            mean = sum(line[f"{name}_share"] * line[f"loss_on_{name}"] for name in who)
            assert line["loss"] == pytest.approx(mean, rel=1e-4, abs=1e-7)


def test_the_loss_on_a_models_tokens_leaves_out_the_references(pair):
    """Beside samples the cross-entropy is taken on the references, so it is none of the samples': their loss is the
    divergence's share of the whole, nothing at --student-kd 0."""
    runs = [Watched("okd_on_policy", pair, flags("--steps", "1", "--student-kd", kd)) for kd in ("1", "0.25", "0")]
    alone, quarter, none = (next(line for line in run.lines if line["kind"] == "step") for run in runs)
    assert quarter["loss_on_student"] == pytest.approx(0.25 * alone["loss_on_student"], rel=1e-5)
    assert none["loss_on_student"] == 0 < none["loss"] and "loss_on_dataset" not in none


def test_drift_is_told(pair):
    """A teacher that runs away is announced once, with what to do; a calm one is not."""

    def said(variant, *argv):
        args, lines = flags("--steps", "40", "--lr", "2e-2", *argv), []
        distilled(train_okd, VARIANTS[variant], pair.new_student(), pair, args, report=lines.append)
        return [line for line in lines if "drifted" in line]

    assert len(said("okd_collapse")) == 1 and "--module-lr" in said("okd_collapse")[0]
    assert said("okd", "--module-lr", "1e-5") == []


@pytest.mark.parametrize("variant", ["fixed_forward_kl", "okd"])
def test_a_loss_that_is_not_finite_ends_the_run(pair, variant, monkeypatch):
    """One line with the step and what to lower: the second move is endless,
    so the third loss is the first that is not finite."""
    rate = training.learning_rate
    monkeypatch.setattr(training, "learning_rate", lambda step, *rest: math.inf if step == 1 else rate(step, *rest))
    with pytest.raises(ValueError, match=r"not finite at step 3 .*--lr") as error:
        Watched(variant, pair, flags("--steps", "30"))
    assert "\n" not in str(error.value)


# Variant: passes over the references or samples (student, teacher forwards, teacher FLOPs in forwards),
# samples written.
PASSES = {
    "sft": (3, 0, 0),
    "fixed_forward_kl": (3, 1, 1),
    "okd": (3, 1, 2),  # forward and gradients of activations
    "okd_full": (3, 1, 3),
    "prokt": (4, 2, 4),  # both once more for the student, after the teacher's move
}


@pytest.mark.parametrize("variant", PASSES)
def test_costs_on_references(pair, variant):
    """Model FLOPs are 2 x weights x tokens x passes; nothing is generated."""
    args = flags("--steps", "3")
    costs = Watched(variant, pair, args).costs
    fed = sum(
        len(pair.train.prompts[i]) + len(pair.train.responses[i]) - 1
        for i in batch_order(len(pair.train.prompts), 4, 3, generator(1)).flatten().tolist()
    )
    weights = [
        model.num_parameters() - model.position_embedding.weight.numel() for model in (pair.new_student(), pair.teacher)
    ]
    student, forwards, teacher = PASSES[variant]
    assert costs["compute"] == pytest.approx(2e-12 * fed * (student * weights[0] + teacher * weights[1]), rel=1e-9)
    assert costs["teacher_forwards"] == 3 * forwards and costs["tokens_generated"] == 0


@pytest.mark.parametrize("variant,student_passes,teacher_passes,forwards", [("metadistil", 12, 4, 3), ("ikd", 8, 6, 4)])
def test_costs_of_a_meta_gradient(pair, variant, student_passes, teacher_passes, forwards):
    """The inner step, its second derivative or two forwards, the real step; three passes over the held-out prompts."""
    costs = Watched(variant, pair, flags("--steps", "3")).costs
    fed = [len(prompt) + len(response) - 1 for prompt, response in zip(pair.train.prompts, pair.train.responses)]
    learned = sum(fed[i] for i in batch_order(19, 4, 3, generator(1)).flatten().tolist())
    held_out = sum(fed[19 + i] for i in batch_order(5, 4, 3, generator(1_000_003 + 3)).flatten().tolist())
    models = (pair.new_student(), pair.teacher)
    weights = [model.num_parameters() - model.position_embedding.weight.numel() for model in models]
    wanted = (student_passes * learned + 3 * held_out) * weights[0] + teacher_passes * learned * weights[1]
    assert costs["compute"] == pytest.approx(2e-12 * wanted, rel=1e-9)
    assert costs["teacher_forwards"] == 3 * forwards and costs["tokens_generated"] == 0


# ---------------------------------------------------------------------------------------------------------------------
# Meta-gradients (MetaDistil, IKD).


@pytest.mark.parametrize("exact", [True, False])
def test_a_meta_gradient_of_one_number(exact):
    """Inner (w - m)^2 / 2, outer (w - 2)^2 / 2, rate .1: w = 1 goes to 1.2, the outer gradient in m = 3 is -.08."""
    w, m = (torch.tensor(value, dtype=torch.float64, requires_grad=True) for value in (1.0, 3.0))
    seen = []

    def outer(weights):
        seen.append(weights[0].item())
        return 0.5 * (weights[0] - 2) ** 2

    for pieces in (1, 2):  # a loss in two parts is the same loss
        inner = [lambda weights, pieces=pieces: 0.5 * (weights[0] - m) ** 2 / pieces] * pieces
        found, loss = train_okd.meta_gradient(inner, [outer], [w], [m], exact=exact)
        assert found[0].item() == pytest.approx(-0.08, abs=1e-9) and loss.item() == pytest.approx(0.32)
    assert seen == pytest.approx([1.2, 1.2]) and w.grad is None and m.grad is None


def test_a_meta_gradient_of_curved_losses():
    """Both losses of a small network in float64: the exact gradient is the numeric one, the difference is near it."""
    noise = generator(3)
    w, m, x, y = (
        torch.randn(shape, generator=noise, dtype=torch.float64) for shape in ((3, 2), (3, 2), (5, 3), (5, 2))
    )
    w, m = w.requires_grad_(), m.requires_grad_()

    def inner(weights):
        return ((x @ weights[0]).tanh() - (x @ m).tanh()).square().sum() + (weights[0].exp() * m).sum()

    def outer(weights):
        return ((x @ weights[0]).sigmoid() - y).square().sum()

    def after(shift):
        with torch.no_grad():
            m.add_(shift)
        (step,) = torch.autograd.grad(inner([w]), w)
        with torch.no_grad():
            m.sub_(shift)
            return outer([w - 0.1 * step]).item()

    losses = [inner], [outer], [w], [m]
    exact, approximate = (train_okd.meta_gradient(*losses, exact=kind)[0][0] for kind in (True, False))
    for place in range(6):
        shift = torch.zeros(6, dtype=torch.float64).index_fill(0, torch.tensor(place), 1e-6).view(3, 2)
        assert exact.flatten()[place].item() == pytest.approx((after(shift) - after(-shift)) / 2e-6, rel=1e-5)
    assert exact.abs().min() > 1e-3
    torch.testing.assert_close(approximate, exact, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("variant", ["metadistil", "ikd"])
def test_nobody_learns_held_out_prompts(pair, variant, monkeypatch):
    """The last fifth of the prompts gives the outer loss and is never distilled on."""
    outer, write = [], training.rollout_from_ids

    def watched(prompts, *rest):
        outer.append(prompts)
        return write(prompts, *rest)

    monkeypatch.setattr(training, "rollout_from_ids", watched)
    run = Watched(variant, pair, flags("--steps", "6"))
    learned = {tuple(prompt) for batch in run.batches for prompt in prompts_of(batch)}
    held_out = {tuple(prompt) for batch in outer for prompt in batch}
    assert len(run.batches) == len(outer) == 6
    assert learned <= set(map(tuple, pair.train.prompts[:19])) and len(learned) > 4
    assert held_out == set(map(tuple, pair.train.prompts[19:]))


def test_too_few_prompts_for_a_meta_gradient(monkeypatch):
    """One prompt cannot be both learned from and held out, and each process needs a held-out one of its own."""
    train_okd.check_row("okd", flags(), 1)
    for size, fewest in ((1, 2), (2, 8), (3, 13)):
        monkeypatch.setattr(processes, "rank_and_size", lambda size=size: (0, size))
        held_out = [max(1, round(train_okd.HELD_OUT_SHARE * examples)) for examples in (fewest - 1, fewest)]
        assert min(held_out) < size <= held_out[1] or fewest == 2
        train_okd.check_row("ikd", flags(), fewest)
        with pytest.raises(ValueError, match=f"too few for the meta-gradient of ikd.*at least {fewest} "):
            train_okd.check_row("ikd", flags(), fewest - 1)


@pytest.mark.parametrize("variant", ["metadistil", "ikd"])
def test_a_meta_gradient_needs_an_inner_step(variant):
    """A student who takes nothing from the teacher leaves the meta-gradient at zero: refused before anything runs."""
    train_okd.check_row(variant, flags("--student-kd", "0.1"), 100)
    with pytest.raises(ValueError, match=f"teacher of {variant} learns from the student's step towards it"):
        train_okd.check_row(variant, flags("--student-kd", "0"), 100)
    train_okd.check_row("okd", flags("--student-kd", "0"), 100)


def test_the_inner_loss_of_the_docstring():
    """Eq. 17 and cross-entropy by half; the gradient reaches the teacher, which is no constant here."""
    student_logits, teacher_logits = (
        torch.tensor([[row]]).log().requires_grad_() for row in ((0.2, 0.5, 0.3), (0.6, 0.3, 0.1))
    )
    loss = train_okd.inner_loss(student_logits, teacher_logits, torch.tensor([[0]]), 0.5)
    assert loss.item() == pytest.approx(1.002748, abs=1e-6)
    (moved,) = torch.autograd.grad(loss.sum(), teacher_logits)
    assert moved.abs().min() > 0.01


def test_costs_of_minillm(pair):
    """Every token of a teacher-mixed sample costs a forward of both models, and one more each is learned from."""
    run = Watched("minillm", pair, flags("--steps", "2"))
    lengths = [(rollout.lengths, rollout.prompt_len) for rollout in run.rollouts]
    assert run.costs["tokens_generated"] == sum(int((end - start).sum()) for end, start in lengths)
    assert run.costs["teacher_forwards"] == sum(2 + int((end - start).max()) for end, start in lengths)


# ---------------------------------------------------------------------------------------------------------------------
# How a batch is computed: parts, chunks, recomputation, a cache, precision. It costs, and it does not count.

# Every kind of row in three ways at once, three rows in each.
FAST_HOW = [
    *itertools.product([*OKD_KINDS, EVERY_TERM], HOW[-1:]),
    *itertools.product(["okd", "fixed_jsd", "okd_skd"], HOW),
]


@pytest.fixture(scope="module")
def run_how(pair):
    """(variant and its flags, how) -> a run; that of no way at all is kept, all ways are compared with it."""

    def run(variant, how):
        variant, *own = variant.split()
        names = ["--variants", "fixed_jsd,okd"] if "cache" in how else []
        argv = ["--chunk-loss", "no", "--module-lr", "1", *own, *how.split(), *names]
        return Watched(variant, copy.deepcopy(pair), flags(*argv))

    plain = functools.cache(lambda variant: run(variant, ""))
    return lambda variant, how: run(variant, how) if how else plain(variant)


@matrix("variant, how", itertools.product([*VARIANTS, EVERY_TERM], HOW), fast=FAST_HOW)
def test_how_a_batch_is_computed_does_not_count(run_how, tmp_path, monkeypatch, variant, how):
    """The same losses, gradients, step figures and weights of student and teacher module, to rounding,
    however the batch is worked out."""
    cached(monkeypatch, tmp_path)
    plain, ours = run_how(variant, ""), run_how(variant, how)
    assert len(plain.lines) == len(ours.lines) > 2
    for line, other in zip(plain.lines, ours.lines):
        assert line.keys() == other.keys()
        for name in (name for name in line if name not in ("kind", "text") and not name.endswith("_ms")):
            assert other[name] == pytest.approx(line[name], rel=2e-4, abs=1e-6), name
    assert moved_apart(plain.students[-1], ours.students[-1]) < 2e-5
    if plain.modules[-1]:
        assert moved_apart(plain.modules[-1], ours.modules[-1]) < 2e-5


@pytest.mark.parametrize("argv", [["--temperature", "2"], ["--sweep", "temperature=1,2"]])
def test_a_tail_cannot_be_softened(argv, capsys):
    """A temperature changes the share of tokens that are gone: with the best tokens only, it is refused;
    dense is not."""
    with pytest.raises(ValueError, match="--cache-teacher 5 .*use --cache-teacher dense"):
        parse_flags(["--variants", "fixed_jsd", "--cache-teacher", "5", *argv])
    parse_flags(["--variants", "fixed_jsd", "--cache-teacher", "dense", *argv])
    with pytest.raises(ValueError, match="--cache-teacher 5 .*use --cache-teacher dense"):
        parse_flags(
            [
                "--variants", "fixed_jsd", "--cache-teacher", "dense", "--sweep", "cache-teacher=dense,5",
                "--temperature", "2",
            ]
        )
    with pytest.raises(ValueError, match="ignored by (all of )?okd.*takes nothing from a cache"):
        parse_flags(["--variants", "okd", "--sweep", "cache-teacher=dense,5"])
    with pytest.raises(ValueError, match="ignored by (all of )?okd.*takes nothing from a cache"):
        parse_flags(["--variants", "okd", "--cache-teacher", "dense"])


# ---------------------------------------------------------------------------------------------------------------------
# The script.


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """A folder for pairs, so that no test touches the user's."""
    folder = tmp_path_factory.mktemp("pairs")
    load = pairs.load_or_pretrain_pair
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pairs, "load_or_pretrain_pair", lambda *args, **kw: load(*args, **kw | {"cache_dir": folder}))
        yield folder


TINY = [
    "--quick", "--teacher-steps", "3", "--start-steps", "2", "--batch-size", "8", "--steps", "3", "--device", "cpu",
    "--jobs", "1",
]


@pytest.fixture(scope="module")
def finished(cache, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "out"
    assert main([*TINY, "--variants", "fixed_forward_kl,okd,okd_no_feedback,okd_skd", "--out", str(folder)]) == 0
    return folder


def records(folder, name):
    lines = [json.loads(line) for line in (folder / f"{name}.jsonl").read_text().splitlines()]
    return lines[0], lines[-1]


def test_the_pair_is_the_very_one_of_train_skd(finished, cache, tmp_path):
    """Both scripts take their models from the same cache files:
    nothing is pretrained again, figures and hash are equal."""
    files = {path.name: path.stat().st_mtime_ns for path in cache.iterdir()}
    assert len(files) == 2
    assert train_skd.main([*TINY, "--variants", "supervised", "--out", str(tmp_path / "skd")]) == 0
    assert {path.name: path.stat().st_mtime_ns for path in cache.iterdir()} == files
    own, other = records(finished, "okd_pair1_seed1")[0], records(tmp_path / "skd", "supervised_pair1_seed1")[0]
    for key in ("pair", "teacher", "student_start", "vocabulary_in_use", "accept_top_k"):
        assert own[key] == other[key], key
    # and the twin methods end at the same student: the same figures of it
    own, other = (
        records(finished, "fixed_forward_kl_pair1_seed1")[1],
        records(tmp_path / "skd", "supervised_pair1_seed1")[1],
    )
    timed = ("seconds", "seconds_by_stage", "sha256")
    assert {key: value for key, value in own.items() if key not in timed} == {
        key: value for key, value in other.items() if key not in timed
    }


def test_what_a_run_leaves(finished):
    """Records, students, modules apart from their base, table, curves, summary of the promised shape."""
    names = {path.name for path in finished.iterdir()}
    for variant in ("fixed_forward_kl", "okd", "okd_no_feedback", "okd_skd"):
        assert {f"{variant}_pair1_seed1.jsonl", f"{variant}_pair1_seed1.pt"} <= names
        assert (f"{variant}_pair1_seed1.module.pt" in names) == (variant != "fixed_forward_kl")
    assert {"table.md", "curves.svg", "summary.json", "report.html"} <= names
    assert {"teacher_pair1.pt", "student_start_pair1.pt"} <= names
    summary = json.loads((finished / "summary.json").read_text())
    for variant, entry in summary["variants"].items():
        (run,) = entry["runs"]
        for key in (
            "seed", "score", "val_nll", "kl_teacher", "kl_on_policy", "accept_rate", "seconds", "tokens_generated",
        ):
            assert run[key] is not None, (variant, key)
        assert run["seconds_relative"] > 0 and run["memory_mb"] > 0
        for key in ("drift", "adapted_score", "adapted_nll", "kl_adapted_teacher", "exposure_error_adapted"):
            assert (run.get(key) is not None) == (variant != "fixed_forward_kl"), (variant, key)
    assert summary["variants"]["fixed_forward_kl"]["runs"][0]["seconds_relative"] == 1
    runs = [run._replace(header=run.header | {"quick": False}) for run in reading.read_records(finished)]
    table = tables.render_table(runs, "fixed_forward_kl", "okd")  # of a quick run nothing is compared
    assert (
        "The adapted teacher" in table
        and "okd minus every other method" in table
        and "Δ score to fixed_forward_kl" in table
    )


def test_distances_are_to_the_original(finished, cache):
    """kl_teacher is measured against the pair's own teacher, kl_adapted_teacher against the saved module on it."""
    from model import load_checkpoint

    args = parse_flags(TINY)[0]
    pair = pairs.load_or_pretrain_pair(compare.load_data(args), args.settings, report=lambda line: None)
    student = load_checkpoint(str(finished / "okd_pair1_seed1.pt"))[0]
    adapted = load_online_module(str(finished / "okd_pair1_seed1.module.pt"), pair.teacher)
    final = records(finished, "okd_pair1_seed1")[1]
    texts = pair.test.prompts, pair.test.responses
    measured = distances(student, pair.teacher, *texts, adapted)
    other = distances(student, adapted, *texts)
    for key in ("kl_teacher", "kl_adapted_teacher", "drift", "adapted_nll", "agreement", "agreement_adapted"):
        assert final[key] == pytest.approx(measured[key], rel=1e-5), key
    assert other["kl_teacher"] == pytest.approx(final["kl_adapted_teacher"], rel=1e-5) and final["drift"] > 0
    assert final["adapted_nll"] == pytest.approx(distances(adapted, None, *texts)["nll"], rel=1e-5)


def test_headers_tell_the_resolved_row(finished):
    """A record says what was done, flags filled in; --list-variants says what the row leaves open."""
    row = records(finished, "okd_pair1_seed1")[0]["row"]
    assert (
        (row["alpha"], row["module"], row["module_lr"], row["student_divergence"])
        == (0.5, "lora", parse_flags([])[0].module_lr, "forward_kl")
    )
    assert records(finished, "okd_no_feedback_pair1_seed1")[0]["row"]["alpha"] == 0


WITHOUT_MIRROR = [name for name in DIVERGENCES if name not in TEACHER_DIVERGENCES]  # no teacher can minimise them


@pytest.mark.parametrize(
    "argv,word",
    [
        (["--alpha", "1.1"], "--alpha must lie in 0..1"),
        (["--alpha", "nan"], "--alpha"),
        (["--module", "lorax"], "--module"),
        (["--module-rank", "0"], "--module-rank must lie in 1.."),
        (["--module-lr", "-1"], "--module-lr"),
        (["--module-start", "2"], "--module-start"),
        (["--student-kd", "-0.1"], "--student-kd"),
        (["--temperature", "0"], "--temperature"),
        (["--teacher-mix", "1"], "--teacher-mix"),
        (["--teacher-mix", "0"], "--teacher-mix"),
        (["--anchor", "-1"], "--anchor"),
        (["--update", "both"], "--update"),
        (["--student-divergence", "minillm"], "--student-divergence"),
        *((["--teacher-divergence", name], "--teacher-divergence") for name in ["x", *WITHOUT_MIRROR]),
        (["--variants", "okd", "--sweep", "teacher-divergence=amid,forward_kl"], "--teacher-divergence"),
        (["--variants", "skd"], "unknown variant 'skd'"),
        (["--variants", "ikd", "--student-prompts", "1"], "--student-prompts"),
        (["--equal-compute", "--variants", "sft"], "add it to --variants"),
    ],
)
def test_wrong_flags_are_refused(argv, word, monkeypatch, capsys, tmp_path):
    """One line that names the flag, a status other than 0, before anything is trained or written."""
    monkeypatch.setattr(pairs, "load_or_pretrain_pair", None)
    monkeypatch.setattr(sys, "argv", ["train_okd.py", *argv, "--out", str(tmp_path / "out")])
    with pytest.raises(SystemExit) as stop:
        program.run_script("train_okd", main)
    told = capsys.readouterr().err + str(stop.value.code if isinstance(stop.value.code, str) else "")
    assert stop.value.code not in (0, None) and word in told and len(told.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_every_variant_as_a_command(clone, tmp_path):
    """--quick --variants all, a few steps each: status 0, every row with finite figures in the summary."""
    command = [
        sys.executable, "train_okd.py", "--quick", "--steps", "8", "--variants", "all", "--hint-share", "0.5",
        "--device", "cpu", "--out", str(tmp_path / "out"),
    ]
    subprocess.run(command, cwd=clone, check=True, capture_output=True, text=True, timeout=1200)
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert list(summary["variants"]) == list(VARIANTS)
    for name, entry in summary["variants"].items():
        assert all(run["val_nll"] > 0 and run["kl_teacher"] > 0 for run in entry["runs"]), name


@pytest.mark.slow
def test_jobs_change_no_figure(clone, tmp_path):
    """Two runs side by side give the figures of one after another (times aside)."""
    finals = []
    for jobs in ("1", "2"):
        command = [
            sys.executable, "train_okd.py", "--quick", "--variants", "okd,okd_skd", "--device", "cpu", "--jobs", jobs,
        ]
        subprocess.run(
            [*command, "--out", str(tmp_path / jobs)], cwd=clone, check=True, capture_output=True, timeout=600
        )
        finals.append(
            [
                records(tmp_path / jobs, f"{name}_pair1_seed1")[1]
                | {"seconds": None, "seconds_by_stage": None, "sha256": None}
                for name in ("okd", "okd_skd")
            ]
        )
    assert finals[0] == finals[1]
    assert processes.default_jobs("cuda") == 1


# ---------------------------------------------------------------------------------------------------------------------
# --sweep: one table over the values of a flag.


def test_a_sweep_is_every_combination():
    """Labels and flags of all combinations, first flag slowest; a value that is given twice runs once."""
    args, names = parse_flags(["--variants", "okd", "--sweep", "alpha=0,0.5,0", "--sweep", "module-lr=.1,.2"])
    assert names == ["okd"] and [label for label, _ in args.swept] == [
        " alpha=0 module-lr=.1", " alpha=0 module-lr=.2", " alpha=0.5 module-lr=.1", " alpha=0.5 module-lr=.2",
    ]  # fmt: skip
    assert [(own.alpha, own.module_lr) for _, own in args.swept] == [(0, 0.1), (0, 0.2), (0.5, 0.1), (0.5, 0.2)]
    assert [label for label, _ in parse_flags([])[0].swept] == [""]


def test_a_flag_without_a_value_is_swept_as_yes_or_no():
    """Any other word is refused in one line."""
    args, _ = parse_flags(["--variants", "okd_skd", "--sweep", "no-write-back=no,yes", "--sweep", "judge-fresh=yes,no"])
    assert [(own.no_write_back, own.judge_fresh) for _, own in args.swept] == [
        (False, True), (False, False), (True, True), (True, False),
    ]  # fmt: skip
    assert args.swept[2][0] == " no-write-back=yes judge-fresh=yes"
    with pytest.raises(SystemExit):
        parse_flags(["--variants", "okd_skd", "--sweep", "no-write-back=maybe"])


@pytest.mark.parametrize(
    "text,word",
    [("alpha", "FLAG=VALUE"), ("alpha=", "FLAG=VALUE"), ("=1", "FLAG=VALUE"), ("alpha=1,2", "--alpha must lie"),
     ("seeds=1,2", "run the script once"), ("task=math,translation", "run the script once"),
     ("teacher-steps=5,6", "run the script once"), ("entropy=0,1", "run the script once"),
     ("size=tiny,small", "run the script once"), ("out=a,b", "run the script once")],
)  # fmt: skip
def test_wrong_sweeps_are_refused(text, word):
    """Wrong syntax, a value out of range, and what all runs of a table share: one line each."""
    with pytest.raises(ValueError, match=word) as error:
        parse_flags(["--sweep", text])
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "names,sweep,word",
    [("okd,okd_no_feedback", "alpha=0,1", "okd_no_feedback, which fixes it itself"),
     ("okd_prefix", "module=lora,prefix", "fixes it itself"),
     ("okd,fixed_forward_kl", "module-lr=.1,.2", "fixed_forward_kl, which has no module"),
     ("sft", "student-kd=0,1", "fixes it itself"), ("fixed_forward_kl", "module-start=0,.5", "has no module"),
     ("fixed_forward_kl", "teacher-mix=0.1,0.9", "draws nothing from a mixture"),
     ("metadistil", "alpha=0,.5", "has a meta-gradient"), ("ikd", "anchor=0,.5", "has a meta-gradient"),
     ("okd,okd_full", "module-rank=2,4", "okd_full, which has a module without"),
     ("okd_ptuning", "module-scale=1,2", "without a scale"),
     ("okd_no_feedback", "teacher-divergence=forward_kl,reverse_kl", "is run at alpha 0"),
     ("sft", "temperature=1,2", "takes no divergence"), ("okd", "gamma=1,2", "does not write interleaved"),
     ("okd", "student-temperature=.5,1", "trains on no student samples"),
     ("okd_skd,okd_on_policy", "teacher-top-p=.5,.9", "okd_on_policy, which does not write interleaved"),
     ("okd", "cache-teacher=dense,5", "cache")],
)  # fmt: skip
def test_a_sweep_that_reaches_nothing_is_refused(names, sweep, word):
    """A method that fixes the swept value would repeat one run under several names."""
    with pytest.raises(ValueError, match=word):
        parse_flags(["--variants", names, "--sweep", sweep])


@pytest.mark.parametrize(
    "sweeps",
    [
        "alpha=0,.5 teacher-divergence=forward_kl,reverse_kl",
        "module-lr=0,.1 alpha=0,1",
        "module=lora,full module-rank=2,4",
    ],
)
def test_sweeps_whose_product_holds_a_run_twice_are_refused(sweeps):
    """Where one value of one sweep makes the other mean nothing; each alone is taken."""
    with pytest.raises(ValueError, match="is ignored by okd"):
        parse_flags(["--variants", "okd", *(word for text in sweeps.split() for word in ("--sweep", text))])
    for text in sweeps.split():
        assert len(parse_flags(["--variants", "okd", "--sweep", text])[0].swept) == 2


@pytest.mark.parametrize("argv, word", [
    (["--sweep", "lr=1e-3", "--sweep", "lr=2e-3"], "second time"),
    (["--sweep", "module-lr=.1", "--sweep", "alpha=0", "--sweep", "module-lr=.2"], "second time"),
    (["--sweep", "lr=1e-3,0.001"], "lr=0.001 is the same run as lr=1e-3"),
    (["--sweep", "alpha=0,1", "--sweep", "lr=.01,1e-2"], "alpha=0 lr=1e-2 is the same run as alpha=0 lr=.01"),
    (["--sweep", "alpha=0,-0.0"], "the same run"), (["--sweep", "log-every=1,2"], "run the script once"),
])  # fmt: skip
def test_one_run_under_two_names_is_refused(argv, word):
    """A flag that is swept twice, and two values that are one number."""
    with pytest.raises(ValueError, match=word):
        parse_flags(["--variants", "okd", *argv])


@pytest.mark.parametrize("argv", [["--sweep", "alph=0,1"], ["--alph", "0.3"], ["--sweep", "module-r=2,4"]], ids=str)
def test_flags_have_one_name(argv, capsys):
    """No abbreviations: by them a sweep would pass what looks at its flag."""
    with pytest.raises(SystemExit) as stop:
        parse_flags(["--variants", "okd", *argv])
    assert stop.value.code == 2 and "unrecognized arguments" in capsys.readouterr().err


# flag -> another value than the one that runs are compared with
OTHERWISE = {
    "alpha": 0.9, "module": "adapter", "module_rank": 3, "module_scale": 2.0, "module_lr": 0.3, "module_start": 0.5,
    "student_divergence": "reverse_kl", "teacher_divergence": "forward_kl", "student_kd": 0.6, "temperature": 2.0,
    "update": "alternating", "anchor": 0.5, "teacher_mix": 0.6, "student_temperature": 0.5, "student_top_p": 0.6,
    "replace": "argmax", "teacher_top_p": 0.3,
}  # fmt: skip
KINDS = [(name, {}) for name in VARIANTS] + [
    ("okd", settings)
    for settings in ({"module": "full"}, {"module": "ptuning"}, {"module_lr": 0.0}, {"student_kd": 0.0}, {"alpha": 0.0})
]
KINDS += [("okd_no_feedback", {"student_kd": 0.0}), ("metadistil", {"module": "full"})]


FAST_KINDS = [(name, {}) for name in ("fixed_forward_kl", "okd", "minillm")]
FAST_KINDS += [("okd", {"module_lr": 0.0})]


@pytest.mark.usefixtures("unmeasured")
@matrix("variant, settings", KINDS, fast=FAST_KINDS, ids=str)
def test_flags_that_do_not_reach_a_row_change_no_bit_of_it(pair, variant, settings):
    """What `ignored_reason` says of a flag is what happens:
    the very same student and module, or another student or module."""
    base = flags(**{"steps": 4, "batch_size": 6, "lr": 1e-2} | settings)

    def end(args):
        run = Watched(variant, pair, args)
        return weights_of(run.student), weights_of(run.teacher.module) if run.teacher else {}

    before = end(base)
    for flag, value in OTHERWISE.items():
        after = end(argparse.Namespace(**vars(base) | {flag: value}))
        reason = train_okd.ignored_reason(flag, variant, base)
        changed = not all(one.keys() == other.keys() and same_weights(one, other) for one, other in zip(before, after))
        assert changed == (reason is None), (flag, reason)


TYPED = [
    ("fixed_forward_kl", "--alpha 0.3",
     "--alpha 0.3 is ignored by all of fixed_forward_kl \\(has no module\\): leave it out, or add e.g. "
     "okd to --variants"),
    ("fixed_forward_kl", "--anchor 2", "okd"), ("sft,gkd", "--module-lr 0.3", "ignored by all of sft, gkd .*okd"),
    ("okd", "--teacher-mix 0.9", "minillm"), ("okd_no_feedback", "--alpha 0.3", "fixes it itself"),
    ("okd", "--no-write-back", "okd_skd"), ("okd", "--student-top-p .5", "imitkd"),
    ("okd", "--cache-teacher dense", "--cache-teacher dense is ignored by all of okd"),
    ("okd_full", "--module-rank 3", "without a rank"), ("metadistil", "--alpha .3", "has a meta-gradient"),
    ("ikd", "--recompute", "--recompute is ignored by all of ikd"),
]  # fmt: skip


@pytest.mark.parametrize("names, argv, word", TYPED)
def test_a_flag_that_reaches_no_chosen_row_is_refused(names, argv, word):
    """One line with the flag, the methods and what to type, before any work; the evaluation's flags reach every row."""
    with pytest.raises(ValueError, match=word) as error:
        parse_flags(["--variants", names, *argv.split()])
    assert "\n" not in str(error.value)
    parse_flags(["--variants", names, "--accept-top-k", "2", "--gamma", "3"])


def test_a_flag_that_reaches_some_rows_is_noted():
    """One line per flag, of at most five names; with a sweep a flag reaches a row that one of its runs hears it in."""

    def notes_of(*argv):
        return parse_flags([*argv, "--device", "cpu"])[0].notes  # auto may have one more to tell

    assert notes_of("--variants", "okd,okd_no_feedback", "--alpha", "0.9") == [
        "note: --alpha 0.9 is ignored by okd_no_feedback (fixes it itself)"
    ]
    (note,) = notes_of("--variants", "all", "--anchor", "1")
    assert note == "note: --anchor 1.0 is ignored by sft, fixed_forward_kl, fixed_reverse_kl, imitkd, gkd and 5 more"
    assert notes_of("--variants", "okd", "--module-rank", "3", "--sweep", "module=lora,full") == []
    assert notes_of("--variants", "all", "--lr", "1e-3") == notes_of() == []


@pytest.mark.parametrize(
    "sweep", ["alpha=0,1", "module-rank=2,4", "student-kd=.5,1", "lr=1e-3,2e-3", "temperature=1,2"]
)
def test_a_sweep_that_reaches_its_row_is_taken(sweep):
    """Each value gives a row, or arguments, of its own."""
    args, _ = parse_flags(["--variants", "okd", "--sweep", sweep])
    rows = [(resolve(VARIANTS["okd"], own), own.lr, own.temperature) for _, own in args.swept]
    assert len(rows) == 2 and rows[0] != rows[1]


def test_a_sweep_runs_beside_its_control(cache, tmp_path):
    """Each value has its record and row, the flag reaches the run, and the folder goes on with --resume."""
    out = ["--out", str(tmp_path / "out")]
    assert main([*TINY, "--variants", "fixed_forward_kl", *out]) == 0
    sweep = [*TINY, "--variants", "okd", "--sweep", "alpha=0,1", "--resume", *out]
    assert main(sweep) == 0
    before = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*.jsonl")}
    assert sorted(before) == [
        "fixed_forward_kl_pair1_seed1.jsonl",
        "okd_alpha=0_pair1_seed1.jsonl",
        "okd_alpha=1_pair1_seed1.jsonl",
    ]
    rows = [records(tmp_path / "out", f"okd_alpha={value}_pair1_seed1")[0]["row"]["alpha"] for value in (0, 1)]
    assert rows == [0, 1]
    assert main(sweep) == 0  # nothing is run again
    assert {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*.jsonl")} == before
    assert list(json.loads((tmp_path / "out" / "summary.json").read_text())["variants"]) == [
        "fixed_forward_kl",
        "okd alpha=0",
        "okd alpha=1",
    ]
