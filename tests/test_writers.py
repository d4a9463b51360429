"""The laws of the newer writers: a trust region around the student (trb), an early end (prefix_opd), the student's own
start (ssd).

TRB's writer is the distribution nearest to the teacher within epsilon nats of the student. That is asked of single
rows, of whole responses by enumeration, and of runs.
"""

import dataclasses
import math

import pytest
import torch
from test_sample import (
    assert_follows,
    full_rows,
    generator,
    make_pair,
    random_prompts,
    sequence_law,
    sources_of,
)
from test_train_skd import options_of
from tiny import Watched, flags, matrix, same_weights, tiny_pair, unmeasured, weights_of  # noqa: F401

import sample
from catalogue import Variant
from lab.training import Run
from methods import TEACHERS, scheduled
from model import TrustRegion, teacher_share
from sample import STUDENT
from train_skd import VARIANTS

EPSILONS = (0.001, 0.02, 0.3)


def kl(one, other):
    """KL in nats of probabilities (..., V), in their own precision; a probability 0 of `one` counts nothing."""
    return torch.where(one > 0, one * (one / other).log(), 0.0).sum(-1)


def some_rows(scale, number=300, vocab_size=12, seed=0):
    """Student's and teacher's logits (number, V), each with a constant of its own, which no law may see."""
    both = scale * torch.randn(2, number, vocab_size, generator=generator(seed))
    return both + torch.tensor([5.0, -3.0]).view(2, 1, 1)


def blend(student_logits, teacher_logits, epsilon):
    """(share, probabilities) of the writer, in float64."""
    share = teacher_share(student_logits, teacher_logits, epsilon).double()
    return share, ((1 - share) * student_logits.double() + share * teacher_logits.double()).softmax(-1)


# ---------------------------------------------------------------------------------------------------------------------
# One row.


def test_the_example_of_the_docstring():
    """Student (1/2, 1/2), teacher (4/5, 1/5): at ln 2 - H(1/3) = .0566 nats the share is a half, the writer
    (2/3, 1/3)."""
    student_logits, teacher_logits = torch.tensor([0.5, 0.5]).log(), torch.tensor([0.8, 0.2]).log()
    epsilon = math.log(2) + 2 / 3 * math.log(2 / 3) + 1 / 3 * math.log(1 / 3)
    share, probs = blend(student_logits, teacher_logits, epsilon)
    assert round(epsilon, 4) == 0.0566 and share.item() == pytest.approx(0.5, abs=1e-5)
    assert probs.tolist() == pytest.approx([2 / 3, 1 / 3], abs=1e-5)


@pytest.mark.parametrize("scale", [0.3, 2.0, 8.0])
def test_the_constraint_is_met_and_used_up(scale):
    """KL(writer || student) is at most epsilon, within 1e-6, and is epsilon wherever the teacher itself is further
    away; where it is not, the writer is the teacher."""
    student_logits, teacher_logits = some_rows(scale)
    student, teacher = (rows.double().softmax(-1) for rows in (student_logits, teacher_logits))
    inside = []
    for epsilon in EPSILONS:
        share, probs = blend(student_logits, teacher_logits, epsilon)
        spent, within = kl(probs, student), kl(teacher, student) <= epsilon
        assert (spent <= epsilon + 1e-6).all() and torch.equal(share[:, 0] == 1, within)
        assert torch.allclose(spent[~within], torch.full_like(spent[~within], epsilon), atol=1e-6)
        inside += within.tolist()
    assert scale > 1 or {True, False} == {*inside}


def test_the_distance_grows_with_the_share():
    """KL(writer || student) never falls and KL(writer || teacher) never grows on the way to the teacher, and a larger
    epsilon never gives a smaller share: what bisection rests on."""
    student_logits, teacher_logits = (rows.double() for rows in some_rows(2.0))
    shares = torch.linspace(0, 1, 41, dtype=torch.float64).view(-1, 1, 1)
    writers = torch.lerp(student_logits, teacher_logits, shares).softmax(-1)  # (41, number, V)
    assert (kl(writers, student_logits.softmax(-1)).diff(dim=0) > -1e-12).all()
    assert (kl(writers, teacher_logits.softmax(-1)).diff(dim=0) < 1e-12).all()
    found = [teacher_share(student_logits, teacher_logits, epsilon) for epsilon in (0.0, *EPSILONS, 1.0, math.inf)]
    assert all((more >= less).all() for less, more in zip(found, found[1:]))
    assert (found[0] == 0).all() and (found[-1] == 1).all()


def test_nothing_within_the_region_is_nearer_to_the_teacher():
    """Of 20,000 other distributions within epsilon of the student, none has a smaller KL to the teacher (not: from the
    teacher, for which another one would win)."""
    student_logits, teacher_logits = (rows[:10] for rows in some_rows(1.0, vocab_size=4))
    student, teacher = (rows.double().softmax(-1) for rows in (student_logits, teacher_logits))
    for epsilon in EPSILONS:
        _, probs = blend(student_logits, teacher_logits, epsilon)
        around = torch.randn(20_000, 1, 4, generator=generator(1)).double()
        others = (probs.log() + around * torch.rand(20_000, 1, 1, generator=generator(2)).double() ** 3).softmax(-1)
        feasible = kl(others, student) <= epsilon
        assert feasible.sum() > 1000
        nearest = kl(others, teacher).masked_fill(~feasible, math.inf).amin(0)
        assert (nearest >= kl(probs, teacher) - 1e-5).all()


def test_a_row_stands_for_itself():
    """Any shape, and beside any other rows: the same share."""
    student_logits, teacher_logits = some_rows(2.0, number=24)
    whole = teacher_share(student_logits, teacher_logits, 0.02)
    shaped = teacher_share(student_logits.view(4, 6, -1), teacher_logits.view(4, 6, -1), 0.02)
    alone = [teacher_share(*rows, 0.02) for rows in zip(student_logits, teacher_logits)]
    assert torch.equal(shaped.view(24, 1), whole) and torch.equal(torch.stack(alone), whole)


@pytest.mark.parametrize("epsilon", [-0.1, math.nan])
def test_a_region_of_nothing_is_refused(epsilon):
    """In one line, with what was found."""
    with pytest.raises(ValueError, match="epsilon of at least 0 nats, found") as error:
        TrustRegion(*make_pair(), epsilon)
    assert "\n" not in str(error.value)


# ---------------------------------------------------------------------------------------------------------------------
# Whole responses.


def written(student, teacher, prompts, budget, epsilon, seed=0, eos_token=None, **places):
    return sample.write_tokens(
        "trust_region", student, teacher, prompts, None, budget, generator=generator(seed), eos_token=eos_token,
        trust_region=epsilon, **places,
    )  # fmt: skip


def by_hand(epsilon):
    """-> (student_row, teacher_row) -> the writer's probabilities, by a bisection of its own on plain numbers."""

    def one_token(student_row, teacher_row):
        student, teacher = (row.double().softmax(-1) for row in (student_row, teacher_row))
        low, high = 0.0, 1.0
        for _ in range(50):
            middle = (low + high) / 2
            probs = student ** (1 - middle) * teacher**middle
            low, high = (middle, high) if kl(probs / probs.sum(), student) <= epsilon else (low, middle)
        probs = student ** (1 - low) * teacher**low
        return probs / probs.sum()

    return one_token


@pytest.mark.parametrize("eos_token", [None, 0])
def test_responses_follow_the_product_of_the_writers(eos_token):
    """5,000 responses of three tokens against their enumerated law, by chi-square with a false alarm below 1e-6; and
    three tokens are at most three epsilons away from the student's own law."""
    epsilon, n = 0.15, 5_000
    student, teacher = make_pair(3, vocab_size=3)
    law = sequence_law(student, teacher, [1, 2], 3, by_hand(epsilon), eos_token)
    responses = written(student, teacher, [[1, 2]] * n, 3, seed=5, eos_token=eos_token, epsilon=epsilon).responses()
    assert_follows(law, responses)
    own = sequence_law(student, teacher, [1, 2], 3, lambda student_row, _: student_row.softmax(-1), eos_token)
    apart = sum(mass * math.log(mass / own[response]) for response, mass in law.items())
    assert epsilon < apart <= 3 * epsilon
    other = sequence_law(student, teacher, [1, 2], 3, lambda _, teacher_row: teacher_row.softmax(-1), eos_token)
    for wrong in (own, other):  # so many are enough to tell
        with pytest.raises(AssertionError, match="chi-square"):
            assert_follows(wrong, responses)


def loop(student, teacher, prompt, budget, key, eos_token, epsilon, seed=0):
    """A response, one token at a time, without a cache."""
    draws, response = generator(seed), []
    torch.rand(1, generator=draws)  # which `student` makes as well: who of the mixed writes
    noise = sample.Noise(draws, torch.tensor([key]))
    while len(response) < budget and eos_token not in response and len(prompt) + len(response) < 24:
        rows = [full_rows(model, prompt + response, [0])[0] for model in (student, teacher)]
        uniform = noise(torch.tensor([len(prompt) + len(response)]), "student")
        response.append(int(sample.draw(by_hand(epsilon)(*rows).log()[None], uniform)))
    return response


@pytest.mark.parametrize("epsilon", [0.02, 0.3])
def test_a_batch_is_what_a_loop_writes(epsilon):
    """Batched and cached, with rows that end at different times and prompts of any length: each row is what a loop
    writes for it alone, and what the batch writes for it alone."""
    student, teacher = make_pair(4)
    prompts = random_prompts(4, 8)
    rollout = written(student, teacher, prompts, 11, eos_token=0, epsilon=epsilon)
    for key, prompt in enumerate(prompts):
        assert rollout.responses()[key] == loop(student, teacher, prompt, 11, key, 0, epsilon)
        alone = written(student, teacher, [prompt], 11, epsilon, eos_token=0, rows=[key], batch_size=8)
        assert alone.responses()[0] == rollout.responses()[key]
    assert len(set(rollout.lengths.tolist())) > 2  # rows left the batch one after the other
    assert {source for row in sources_of(rollout) for source in row} == {STUDENT}


@pytest.mark.parametrize("temperature, top_p", [(1.0, None), (0.7, 0.8)])
def test_the_ends_of_the_region(temperature, top_p):
    """epsilon 0 is the student and epsilon inf the teacher, token for token, with the same noise; at 0 the teacher is
    not asked, and what lies between is neither."""
    student, teacher = make_pair(12)
    prompts, draws = random_prompts(12, 8), {"temperature": temperature, "top_p": top_p}

    def write(epsilon, writer="trust_region", student=student):
        return sample.write_tokens(
            writer, student, teacher, prompts, None, 12, generator=generator(3), eos_token=0,
            trust_region=epsilon, **draws,
        )  # fmt: skip

    own, other = (write(None, "student", model) for model in (student, teacher))
    least, most, between = write(0.0), write(math.inf), write(0.3)
    assert torch.equal(least.tokens, own.tokens) and torch.equal(least.finished, own.finished)
    assert torch.equal(least.fed, own.fed) and int(least.fed[1]) == 0
    assert torch.equal(most.tokens, other.tokens) and torch.equal(most.lengths, other.lengths)
    assert between.responses() not in (own.responses(), other.responses()) and int(between.fed[1]) > 0


def test_no_length_and_no_epsilon_leaves_a_trace_in_the_draws():
    """Whoever writes, the run's generator goes on alike: neither decides the noise of the next steps."""
    student, teacher = make_pair(6)
    after = []
    for epsilon, prefix in ((0.0, 1.0), (0.02, 1.0), (0.02, 0.2)):
        draws = generator(1)
        sample.write_tokens(
            "trust_region", student, teacher, [[1], [2, 3]], None, 5, generator=draws, eos_token=0,
            trust_region=epsilon, prefix=prefix,
        )  # fmt: skip
        after.append(torch.rand(3, generator=draws).tolist())
    assert after[0] == after[1] == after[2]


# ---------------------------------------------------------------------------------------------------------------------
# A share of the budget.


@pytest.mark.parametrize("writer", ["student", "interleaved", "teacher_mixed", "switching", "trust_region"])
def test_a_prefix_is_the_beginning_of_what_would_have_been_written(writer):
    """The same tokens, cut at the share of the budget, rounded up, and fewer of them are fed."""
    student, teacher = make_pair(9)
    prompts = random_prompts(9, 6)

    def write(prefix):
        return sample.write_tokens(
            writer, student, teacher, prompts, None, 10, generator=generator(3), eos_token=0, prefix=prefix
        )

    whole = write(1.0)
    for prefix, length in ((0.05, 1), (0.31, 4), (0.5, 5)):
        rollout = write(prefix)
        assert rollout.responses() == [response[:length] for response in whole.responses()]
        assert (rollout.fed[:3] < whole.fed[:3]).all() or int(whole.fed[1]) == 0


@pytest.mark.parametrize("prefix", [0.0, -1, 1.5, math.nan])
def test_a_prefix_of_nothing_is_refused(prefix):
    """In one line, with what was found."""
    with pytest.raises(ValueError, match="above 0 and at most 1; found") as error:
        sample.write_tokens(
            "student", *make_pair(), [[1]], None, 5, generator=generator(), eos_token=None, prefix=prefix
        )
    assert "\n" not in str(error.value)


def test_a_row_may_not_say_what_its_writer_does_not_hear():
    """A trust region for a student, a prefix of references: refused where the row is written."""
    with pytest.raises(AssertionError, match="student has no use for"):
        Variant("student", "reverse_kl", None, "", sampling={"trust_region": 1.0})
    with pytest.raises(AssertionError, match="dataset writes nothing now"):
        Variant("dataset", "reverse_kl", None, "", sampling={"prefix": 0.5})


# ---------------------------------------------------------------------------------------------------------------------
# The rows.


def test_a_schedule_may_end_early():
    """With a fourth number the last value is reached at that share of the run, and stays."""
    assert [scheduled(("linear", 1, 3, 0.5), place) for place in (0, 0.25, 0.5, 0.9)] == [1, 2, 3, 3]
    assert [scheduled(("cosine", 1, 3, 0.5), place) for place in (0, 0.25, 0.5, 0.9)] == pytest.approx([1, 2, 3, 3])


def test_what_the_new_rows_ask_of_the_sampler():
    """trb's region falls from the flag's to 0 over an eighth of the run, its control's stays; prefix_opd's share grows
    from a quarter to all."""

    def over(name, *places, args=flags()):
        return [options_of(name, args, place) for place in places]

    for argv, nats in ((), 0.02), (("--variants", "trb", "--trust-region", "0.5"), 0.5):
        args = flags(*argv)
        regions = [options["trust_region"] for options in over("trb", 0.0, 0.0625, 0.125, 0.9, args=args)]
        assert regions == pytest.approx([nats, nats / 2, 0.0, 0.0])
        assert regions[2] == 0.0  # to the bit: from here on the teacher is not asked
        assert [options["trust_region"] for options in over("trb_fixed", 0.0, 0.9, args=args)] == [nats] * 2
    assert [options["prefix"] for options in over("prefix_opd", 0.0, 0.5, 1.0)] == [0.25, 0.625, 1.0]
    assert Run(steps=1).sampling["trust_region"] == sample.TRUST_REGION  # a notebook's


@pytest.mark.usefixtures("unmeasured")
@matrix("name", ["trb", "prefix_opd"], fast=["trb"])
def test_behind_its_schedule_a_row_is_on_policy(name):
    """With a schedule that has ended, weights and costs are those of reverse KL on student samples, bit for bit; with
    one that goes on they are not."""
    pair, end = tiny_pair(), {"trb": {"trust_region": ("linear", 0.0, 0.0, 0.5)}, "prefix_opd": {"prefix": 1.0}}[name]
    plain, ended, going_on = (
        Watched(row, pair, flags())
        for row in (VARIANTS["fdistill_rkl"], dataclasses.replace(VARIANTS[name], sampling=end), VARIANTS[name])
    )
    assert same_weights(plain.end, ended.end) and not same_weights(plain.end, going_on.end)
    for figure in ("tokens_generated", "teacher_forwards", "compute"):
        assert plain.costs[figure] == ended.costs[figure]
    assert going_on.costs["compute"] != plain.costs["compute"]


@pytest.mark.usefixtures("unmeasured")
def test_ssd_learns_from_the_student_as_it_was():
    """The samples are the start's, at the row's temperature and nucleus, written once, and say so; the frozen start
    pays for them, and no other model is asked for anything."""
    pair, args = tiny_pair(), flags(steps=3)
    run = Watched(VARIANTS["ssd"], pair, args)
    row, start, prompts = VARIANTS["ssd"], pair.new_student(), pair.train.prompts
    wanted = sample.generate(
        start, prompts, pair.max_new_tokens, generator=generator(1), temperature=row.answers, top_p=row.answers_top_p,
        eos_token=pair.tokenizer.eos_token,
    ).responses()  # fmt: skip
    assert [*run.method.run.references] == wanted
    assert {source for rollout in run.rollouts for row in sources_of(rollout) for source in row} == {STUDENT}
    read = sum(map(len, prompts)) + sum(map(len, wanted))
    trained = sum((rollout.lengths - 1).sum().item() for rollout in run.rollouts)
    weights = start.num_parameters() - start.position_embedding.weight.numel()
    assert run.costs["compute"] == pytest.approx(2e-12 * weights * (read + 3 * trained))
    assert run.costs["tokens_generated"] == sum(map(len, wanted))


def test_the_start_is_a_copy_that_stands_still():
    """The student's own weights, which learn on, are not the ones that wrote."""
    student = tiny_pair().new_student()
    frozen = TEACHERS["start"](None, student, None, None)
    before = weights_of(frozen)
    with torch.no_grad():
        next(student.parameters()).add_(1.0)
    assert same_weights(before, weights_of(frozen)) and not any(weight.requires_grad for weight in frozen.parameters())
