"""The laws of losses.py beyond its divergences: matches, losses of a token, losses of a sequence, and who finds them.

Whatever is parametrised over ALL, POINTWISE or SEQUENCE holds for every row of those tables, so that a new row is
tested the moment it is added. Numbers are those of teacher (.6, .3, .1) against student (.2, .5, .3), in float64.
"""

import itertools
import math

import pytest
import torch
from test_losses import (
    SEQUENCES,
    STUDENT,
    TEACHER,
    Largest,
    log_of,
    random_logits,
    sequence_logprob,
    tabular,
    two_heads,
    value_and_grad,
)

import losses
from losses import Tokens

POINTWISE = [*losses.MATCHING_LOSSES, *losses.TOKEN_LOSSES]
SEQUENCE = list(losses.SEQUENCE_LOSSES)
ALL = POINTWISE + SEQUENCE


def tokens_of(targets, by_teacher=True, mask=None):
    """Tokens from nested lists; by_teacher and mask may be one truth for all."""
    targets = torch.as_tensor(targets)
    full = torch.ones_like(targets, dtype=torch.bool)
    return Tokens(targets, full if mask is None else torch.as_tensor(mask), full & torch.as_tensor(by_teacher))


def random_tokens(*shape, vocab_size, seed=7):
    """Random targets and writers, all of them in the mask."""
    generator = torch.Generator().manual_seed(seed)
    targets = torch.randint(0, vocab_size, shape, generator=generator)
    return Tokens(targets, torch.ones(shape, dtype=torch.bool), torch.rand(shape, generator=generator) < 0.5)


def both(name, student_logits, teacher_logits, tokens=None, **hyper):
    """(per_token, its gradient in the student's logits) of the loss called `name`."""
    tokens = tokens_of(torch.zeros(student_logits.shape[:2], dtype=torch.long)) if tokens is None else tokens
    return value_and_grad(
        lambda logits: losses.per_token_loss(name, logits, teacher_logits, tokens, **hyper), student_logits
    )


# ---------------------------------------------------------------------------------------------------------------------
# Closed forms.


@pytest.mark.parametrize(
    "name, hyper, expected",
    [
        ("adaptive_kl", {}, 0.380666),
        ("standardized_kl", {}, 0.899392),
        ("standardized_kl", {"correction": 0}, 1.341659),
        ("bidirectional_logit_differences", {"top_k": 3, "temperature": 1.0}, 0.259043 + 0.596892),
        ("bidirectional_logit_differences", {}, 0.110615),
        ("pearson", {}, 1.433555),
        ("spearman", {}, 1.490879),
        ("spearman", {"tau": 1e-3}, 1.5),
        ("cmkd", {"tau": 1e-3}, 1.433555 + 0.897946 / math.log(3) * (1.5 - 1.433555)),
        ("cmkd", {"tau": 1e-3, "weight_by": "certainty"}, 1.5 - 0.897946 / math.log(3) * (1.5 - 1.433555)),
        ("cmkd", {"tau": 1e-3, "weight_by": None}, (1.5 + 1.433555) / 2),
        ("cmkd", {}, 1.480409),
        ("universal_logit", {}, 0.2),
        ("top_k_kl", {"top_k": 2}, 0.396058),
        ("top_k_kl", {"top_k": 1}, 0.381909),
        ("top_k_kl", {"top_k": 2, "missing": "renormalize_both"}, 0.310819),
        ("top_k_kl", {"top_k": 2, "missing": "renormalize_teacher"}, 0.667494),
        ("top_k_kl", {"top_k": 2, "missing": "truncate"}, 0.505920),
        ("top_k_kl", {}, 0.396058),
        ("top_k_kl", {"top_k": 2, "reverse": True}, 0.365274),
        ("top_k_kl", {"top_k": 1, "reverse": True}, 0.334795),
        ("top_k_kl", {"top_k": 1, "reverse": True, "whose": "student"}, 0.087177),
        ("top_k_kl", {"top_k": 2, "missing": "renormalize_both", "whose": "student"}, 0.035375),
        ("token_wise_kl", {}, 0.396058 + 0.365274),
        ("favourites", {}, math.log(3)),
        ("favourites", {"beta": 2.0}, math.log(26 / 2)),  # e to the margin is 1/5
        ("logit_differences", {}, 0.300260),
        ("logit_differences", {"first": "teacher"}, 0.486608),
        ("logit_differences", {"first": "uniform", "second": "uniform"}, 0.431310),
        ("decoupled_kd", {}, 0.664908),
        ("decoupled_kd", {"alpha": 1, "beta": 0.4}, 0.396058),  # 1 - .6: forward KL
        ("label_smoothing", {}, 1.565379),
        ("label_smoothing", {"smoothing": 0}, 1.609438),
        ("label_smoothing", {"among": torch.tensor([0, 1])}, 1.563623),
        ("gated_forward_kl", {}, 0.396058),
        ("gated_forward_kl", {"accept_top_k": 2}, 0.396058),
        ("gated_forward_kl", {"accept_top_k": 1}, 0.0),
        ("gated_forward_kl", {"accept_top_k": 1, "rejected": 0.25}, 0.396058 / 4),
        ("jsd_by_writer", {}, (0.087660, 0.094582)),
        ("skew_by_writer", {}, (0.305811, 0.292107)),
        ("skew_by_writer", {"beta": 0.5}, (1.5 * 0.305811, 0.5 * 0.292107)),
        ("confidence_gated", {}, (1.609438, 0.396058)),
        ("confidence_gated", {"top_k": 1}, (1.609438, 0.381909)),
        ("policy_gradient", {}, 1.768148),
        ("policy_gradient", {"baseline": True}, 2.356034),
        ("policy_gradient", {"early": 0.5}, 2.652222),
        ("policy_gradient", {"clip": 1.0}, 1.609438),
        ("policy_gradient", {"clip": 1.1}, 1.768148),
        ("policy_gradient", {"bonus": 0.274653}, 1.25 * 1.768148),
        ("policy_gradient", {"beta": 0.0, "bonus": 1.0}, 1.609438),  # a reward of 1 is a label
        ("comparative", {}, 0.0),
        ("chosen_positions", {}, 0.396058),
        ("chosen_positions", {"score": "soft_or", "divergence": "reverse_kl"}, 0.365274),
        ("cross_entropy", {}, 1.609438),
    ],
)
def test_three_token_example(name, hyper, expected):
    """The docstrings' numbers, on target 0, written by the teacher and by the student."""
    expected = expected if isinstance(expected, tuple) else (expected, expected)
    for number, by_teacher in zip(expected, (True, False)):
        value = losses.per_token_loss(name, STUDENT, TEACHER, tokens_of([[0]], by_teacher), **hyper)
        assert value.shape == (1, 1) and value.item() == pytest.approx(number, abs=2e-6)


def test_taid_target():
    """Logits are mixed: share .4 of the example, gradient student - target; 0 is the
    student, 1 the teacher; no graph."""
    target = losses.taid_target(STUDENT, TEACHER, 0.4)
    assert target.softmax(-1).flatten().tolist() == pytest.approx((0.340584, 0.447277, 0.212138), abs=1e-6)
    _, gradient = value_and_grad(
        lambda logits: losses.forward_kl(logits, losses.taid_target(logits, TEACHER, 0.4)), STUDENT
    )
    assert gradient.flatten().tolist() == pytest.approx((-0.140584, 0.052723, 0.087862), abs=1e-6)
    student_logits, teacher_logits = (random_logits(2, 5, 9, seed=seed).requires_grad_() for seed in (0, 1))
    for share, like in (
        (0.0, student_logits),
        (torch.tensor(0.0), student_logits),
        (torch.tensor(1.0), teacher_logits),
    ):
        target = losses.taid_target(student_logits, teacher_logits, share)
        assert not target.requires_grad and target.dtype == torch.float64
        torch.testing.assert_close(target.softmax(-1), like.softmax(-1))
    half = losses.taid_target(student_logits.half(), teacher_logits.bfloat16(), 0.4)
    wide = losses.taid_target(student_logits.half().float(), teacher_logits.bfloat16().float(), 0.4)
    assert half.dtype == torch.float32 and torch.equal(half, wide)
    with pytest.raises(AssertionError, match="vocabulary"):
        losses.taid_target(student_logits, teacher_logits[..., :8], 0.4)


def test_veto_target_is_no_interpolation():
    """It is taid_target at share 1 / (1 + beta), sharper by 1 + beta; beta 0 is the teacher; no graph. What forward KL
    to it leaves alone is teacher^(1 / (1 - beta)), not the teacher."""
    student_logits, teacher_logits = (random_logits(2, 5, 9, seed=seed).requires_grad_() for seed in (0, 1))
    for beta in (0.0, 0.3, 0.8):
        target = losses.veto_target(student_logits, teacher_logits, beta)
        between = losses.taid_target(student_logits, teacher_logits, 1 / (1 + beta))
        assert not target.requires_grad and target.dtype == torch.float64
        torch.testing.assert_close(target.softmax(-1), ((1 + beta) * between).softmax(-1))
        assert torch.allclose(target.softmax(-1), between.softmax(-1)) == (beta == 0)

        def towards(logits, beta=beta):
            return losses.forward_kl(logits, losses.veto_target(logits, teacher_logits, beta))

        value, gradient = value_and_grad(towards, teacher_logits / (1 - beta))
        assert value.abs().max() < 1e-12 and gradient.abs().max() < 1e-12
        assert (value_and_grad(towards, teacher_logits)[1].abs().max() > 1e-3) == (beta > 0)
    half = losses.veto_target(student_logits.half(), teacher_logits.bfloat16(), 0.4)
    assert half.dtype == torch.float32
    with pytest.raises(AssertionError, match="vocabulary"):
        losses.veto_target(student_logits, teacher_logits[..., :8], 0.4)


# ---------------------------------------------------------------------------------------------------------------------
# Laws of every row.

MINIMUM_AT_EQUALITY = [  # with hyper-parameters, and who wrote the tokens
    *((name, {}, True) for name in [*losses.MATCHING_LOSSES, "decoupled_kd", "gated_forward_kl", "policy_gradient"]),
    *((name, {}, by_teacher) for name in ("jsd_by_writer", "skew_by_writer") for by_teacher in (True, False)),
    ("adaptive_kl", {"mu": 1.0}, True),
    ("standardized_kl", {"correction": 0, "temperature": 1.0}, True),
    ("pearson", {"on": "logits"}, True),
    ("pearson", {"top_k": 3}, True),
    ("spearman", {"top_k": 3, "tau": 1.0}, True),
    ("cmkd", {"weight_by": "certainty"}, True),
    ("cmkd", {"weight_by": None}, True),
    ("top_k_kl", {"top_k": 2}, True),
    ("top_k_kl", {"top_k": 2, "missing": "renormalize_both"}, True),
    ("top_k_kl", {"top_k": 2, "whose": "student", "reverse": True}, True),
    ("top_k_kl", {"top_k": 2, "missing": "renormalize_both", "whose": "student", "reverse": True}, True),
    ("favourites", {"beta": 0.1}, True),
    ("logit_differences", {"first": "teacher", "second": "uniform"}, True),
    ("decoupled_kd", {"alpha": 0.3, "beta": 2.0, "temperature": 4.0}, True),
    ("confidence_gated", {}, False),
    ("policy_gradient", {"baseline": True}, False),
    ("policy_gradient", {"discount": 0.9}, False),
    ("policy_gradient", {"early": 0.5}, False),
    ("comparative", {"label_weight": 0.0}, True),
    ("chosen_positions", {}, True),
    ("chosen_positions", {"score": "soft_or", "share": 0.5}, True),
]


@pytest.mark.parametrize("name", losses.loss_names())
def test_a_vocabulary_of_one_token_costs_nothing(name):
    """Both models are sure of the only token: 0, and a gradient of 0, whatever their logits; never nan."""
    rows = random_logits(2, 5, 1), random_logits(2, 5, 1, seed=1)
    value, gradient = both(name, *rows, random_tokens(2, 5, vocab_size=1))
    assert value.abs().max() < 1e-12 and gradient.abs().max() == 0


@pytest.mark.parametrize("weight_by", ["certainty", None])
def test_cmkd_of_one_token_however_it_is_weighed(weight_by):
    """The teacher's entropy over ln V would be 0 / 0."""
    rows = random_logits(2, 5, 1), random_logits(2, 5, 1, seed=1)
    value, gradient = both("cmkd", *rows, random_tokens(2, 5, vocab_size=1), weight_by=weight_by)
    assert value.abs().max() == gradient.abs().max() == 0


@pytest.mark.parametrize("name, hyper, by_teacher", MINIMUM_AT_EQUALITY)
def test_zero_at_equality(name, hyper, by_teacher):
    """Student = teacher gives value 0 and gradient 0, also where all mass sits on one token."""
    one_hot = torch.tensor([[[0.0, -1e4, -1e4, -1e4]] * 2], dtype=torch.float64)
    for logits in (random_logits(2, 5, 9), one_hot):
        value, gradient = both(
            name, logits, logits, tokens_of(torch.ones(logits.shape[:2], dtype=torch.long), by_teacher), **hyper
        )
        assert value.abs().max() < 1e-12 and gradient.abs().max() < 1e-12


@pytest.mark.slow
def test_every_row_is_zero_at_equality_or_said_not_to_be():
    """The list above leaves out label smoothing alone; a new row turns no fast test red."""
    missing = set(ALL) - {name for name, *_ in MINIMUM_AT_EQUALITY} - {"label_smoothing"}
    assert not missing, f"add to MINIMUM_AT_EQUALITY, or say here why not: {', '.join(sorted(missing))}"


def test_label_smoothing_is_smallest_at_the_smoothed_label():
    """Whatever the teacher says: its minimum is the smoothed label, where its value is that label's entropy."""
    smoothed = torch.full((1, 3, 5), 0.3 / 5, dtype=torch.float64)
    smoothed[0, range(3), [4, 0, 2]] += 0.7
    value, gradient = both("label_smoothing", smoothed.log(), None, tokens_of([[4, 0, 2]]), smoothing=0.3)
    torch.testing.assert_close(value, losses.entropy(smoothed.log()))
    assert gradient.abs().max() < 1e-12


@pytest.mark.parametrize("name", ALL)
def test_positive_elsewhere(name):
    """On random rows (but for the policy gradient, whose value means nothing) the value is above 0,
    and a gradient flows."""
    for seed in range(10):
        rows = random_logits(3, 4, 8, seed=seed), random_logits(3, 4, 8, seed=seed + 100)
        value, gradient = both(name, *rows, random_tokens(3, 4, vocab_size=8))
        above = (value > 0) | (gradient == 0).all(-1)  # no gradient: a proposal that was rejected
        assert above.all() or name == "policy_gradient"
        assert (gradient != 0).any() and value.shape == (3, 4)


BOUNDS = {
    "pearson": 2, "spearman": 2, "cmkd": 2, "universal_logit": 2, "jsd_by_writer": 2 * math.log(2),
    "skew_by_writer": -math.log(0.1),
}


@pytest.mark.parametrize("name", BOUNDS)
def test_bounds(name):
    """Reached, or nearly, by opposed rows, and never passed."""
    rows = [60 * random_logits(4, 6, 7, seed=seed) for seed in (0, 1)] + [
        random_logits(4, 6, 7),
        -random_logits(4, 6, 7),
    ]
    values = [losses.per_token_loss(name, *pair, random_tokens(4, 6, vocab_size=7)) for pair in (rows[:2], rows[2:])]
    assert max(value.max() for value in values) <= BOUNDS[name] + 1e-9
    ceilings = {"universal_logit": 0.2, "jsd_by_writer": math.log(2) - 1e-6, "skew_by_writer": BOUNDS[name] - 1e-6}
    assert max(value.max() for value in values) >= ceilings.get(name, 1.0)


@pytest.mark.parametrize("name", ALL)
def test_shift_invariance_and_gradients_that_sum_to_zero(name):
    """Adding a constant to the logits of a position changes nothing; hence every gradient sums to 0 over V."""
    student_logits, teacher_logits = random_logits(2, 5, 9), random_logits(2, 5, 9, seed=1)
    tokens, shift = random_tokens(2, 5, vocab_size=9), random_logits(2, 5, 1, seed=2, scale=100.0)
    value, gradient = both(name, student_logits, teacher_logits, tokens)
    shifted_value, shifted_gradient = both(name, student_logits + shift, teacher_logits - 2 * shift, tokens)
    torch.testing.assert_close(shifted_value, value)
    torch.testing.assert_close(shifted_gradient, gradient, rtol=1e-6, atol=1e-9)
    assert gradient.sum(-1).abs().max() < 1e-12 and gradient.abs().max() > 1e-3


@pytest.mark.parametrize("name", ALL)
def test_gradient_reaches_the_student_only(name):
    """The teacher is detached inside: its leaf gets no gradient, the student's does."""
    student_logits, teacher_logits = (random_logits(2, 3, 5, seed=seed).requires_grad_() for seed in (0, 1))
    tokens = random_tokens(2, 3, vocab_size=5)
    losses.per_token_loss(name, student_logits, teacher_logits, tokens).sum().backward()
    assert teacher_logits.grad is None and student_logits.grad.abs().sum() > 0
    assert not losses.per_token_loss(name, student_logits.detach(), teacher_logits, tokens).requires_grad


CONSTANT_INSIDE = ("adaptive_kl", "skew_by_writer", "policy_gradient", "token_wise_kl", "logit_differences")
SMOOTH = [name for name in ALL if name not in CONSTANT_INSIDE]


@pytest.mark.parametrize("name", SMOOTH)
def test_gradcheck(name):
    """But for rows that hold something constant, autograd's gradient is the derivative of the value."""
    student_logits, teacher_logits = random_logits(2, 3, 5, scale=1.0), random_logits(2, 3, 5, seed=1, scale=1.0)
    tokens, hyper = random_tokens(2, 3, vocab_size=5), {"tau": 1.0} if name in ("spearman", "cmkd") else {}
    assert torch.autograd.gradcheck(
        lambda logits: losses.per_token_loss(name, logits, teacher_logits, tokens, **hyper),
        student_logits.requires_grad_()
    )


@pytest.mark.parametrize("name", POINTWISE)
def test_one_value_per_position_independent_of_the_others(name):
    """A position alone, and a permuted vocabulary, give the same numbers."""
    student_logits, teacher_logits = random_logits(3, 4, 6), random_logits(3, 4, 6, seed=1)
    tokens = random_tokens(3, 4, vocab_size=6)
    per_token = losses.per_token_loss(name, student_logits, teacher_logits, tokens)
    here = slice(1, 2), slice(2, 3)
    alone = losses.per_token_loss(name, student_logits[here], teacher_logits[here], Tokens(*(x[here] for x in tokens)))
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    renamed = tokens._replace(targets=order.argsort()[tokens.targets])
    permuted = losses.per_token_loss(name, student_logits[..., order], teacher_logits[..., order], renamed)
    torch.testing.assert_close(alone, per_token[here])
    torch.testing.assert_close(permuted, per_token)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", ALL)
def test_half_precision_is_raised_before_any_arithmetic(name, dtype):
    """16-bit logits give float32 values, bit-equal to those of the same logits in float32, also under autocast."""
    student_logits, teacher_logits = random_logits(2, 3, 300).to(dtype), random_logits(2, 3, 300, seed=1).to(dtype)
    tokens = random_tokens(2, 3, vocab_size=300)
    value, gradient = both(name, student_logits, teacher_logits, tokens)
    wide_value, wide_gradient = both(name, student_logits.float(), teacher_logits.float(), tokens)
    assert value.dtype == torch.float32 and torch.equal(value, wide_value)
    assert gradient.dtype == dtype and torch.equal(gradient, wide_gradient.to(dtype))
    mixed = losses.per_token_loss(name, student_logits.float(), teacher_logits, tokens)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        under_autocast = losses.per_token_loss(name, student_logits, teacher_logits, tokens)
    assert torch.equal(mixed, wide_value) and torch.equal(under_autocast, wide_value)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ALL)
def test_huge_and_flat_logits_stay_finite(name, dtype):
    """Logits of +-1e4, agreeing or opposed, one-hot and without any preference: finite values and gradients."""
    peaks = torch.tensor(
        [[1e4, -1e4, 0.0, 1.0], [-1e4, 1e4, 0.0, 1.0], [1e4, 1e4, -1e4, -1e4], [0.0] * 4], dtype=dtype
    )[None]
    for teacher_logits in (peaks, peaks.flip(1), peaks.flip(-1), peaks.roll(1, 1)):
        for by_teacher in (True, False):
            value, gradient = both(name, peaks, teacher_logits, tokens_of([[0, 1, 2, 3]], by_teacher))
            assert value.isfinite().all() and gradient.isfinite().all()
            assert value.min() >= 0 or name == "policy_gradient"


@pytest.mark.parametrize("name", ALL)
def test_real_vocabulary(name):
    """V = 50,257: float32 agrees with float64, and the gradient is finite."""
    student_logits, teacher_logits = random_logits(1, 2, 50257), random_logits(1, 2, 50257, seed=1)
    # The proposals of two random models disagree: let one agree.
    student_logits[0, 0, teacher_logits[0, 0].argmax()] = 20.0
    tokens = random_tokens(1, 2, vocab_size=50257)
    value, gradient = both(name, student_logits.float(), teacher_logits.float(), tokens)
    exact = losses.per_token_loss(name, student_logits, teacher_logits, tokens)
    torch.testing.assert_close(value.double(), exact, rtol=1e-4, atol=1e-6)
    assert gradient.isfinite().all() and value.any()


@pytest.mark.parametrize("name", [name for name in ALL if name not in ("universal_logit", "label_smoothing")])
def test_vocabularies_must_match(name):
    """Different shapes are a programmer's error, not a broadcast."""
    for vocab_size in (1, 4, 6):
        with pytest.raises(AssertionError, match="vocabulary"):
            losses.per_token_loss(
                name, random_logits(1, 3, 5), random_logits(1, 3, vocab_size), tokens_of([[0, 0, 0]], False)
            )


@pytest.mark.parametrize(
    "name, hyper",
    [("adaptive_kl", {"mu": mu}) for mu in (0, 1.5, math.nan)]
    + [("top_k_kl", {"top_k": 0}), ("top_k_kl", {"missing": "zeros"}), ("confidence_gated", {"top_k": 0})]
    + [("top_k_kl", {"whose": "both"}), ("favourites", {"beta": 0}), ("logit_differences", {"second": "data"})]
    + [(name, {"top_k": 1}) for name in ("bidirectional_logit_differences", "pearson", "spearman", "cmkd")]
    + [(name, {"temperature": 0.0}) for name in ("standardized_kl", "bidirectional_logit_differences", "decoupled_kd")]
    + [("pearson", {"on": "ranks"}), ("cmkd", {"weight_by": "length"}), ("spearman", {"tau": 0.0}),
       ("cmkd", {"tau": -1.0})]
    + [("label_smoothing", {"smoothing": s}) for s in (1, -0.1)]
    + [("gated_forward_kl", {"accept_top_k": 0}), ("skew_by_writer", {"alpha": 1})]
    + [("jsd_by_writer", {"beta": beta}) for beta in (0, 1, math.nan)]
    + [("policy_gradient", {"discount": d}) for d in (-0.1, 1.1, math.nan)]
    + [("policy_gradient", {"clip": c}) for c in (0.0, -1.0, math.nan)]
    + [("policy_gradient", {"early": e}) for e in (-0.1, math.nan)]
    + [("chosen_positions", {"share": share}) for share in (0, 1.1, math.nan)]
    + [("chosen_positions", {"score": "loss"}), ("chosen_positions", {"divergence": "pearson"})],
)
def test_numbers_out_of_range_are_refused(name, hyper):
    """One line that names the value."""
    with pytest.raises(ValueError, match=str(next(iter(hyper.values())))) as caught:
        losses.per_token_loss(name, STUDENT, TEACHER, tokens_of([[0]]), **hyper)
    assert "\n" not in str(caught.value)


# ---------------------------------------------------------------------------------------------------------------------
# One name for all of them, with and without the logits of a whole batch.


@pytest.mark.parametrize("name", ["cross_entropy", *losses.DIVERGENCES, *ALL])
def test_chunks_change_nothing(name, monkeypatch):
    """Value and both gradients of the student are those of the dense loss; the teacher gets none."""
    monkeypatch.setattr(losses, "by_chunks", lambda *inputs, chunked=losses.by_chunks: chunked(*inputs, at_once=23))
    *parts, ids = two_heads()
    tokens = random_tokens(3, 4, vocab_size=11)._replace(
        targets=ids, mask=torch.arange(4) < torch.tensor([[4], [2], [3]])
    )
    results = []
    for chunked in (False, True):
        leaves = [x.detach().clone().requires_grad_() for x in parts]
        pairs = losses.HiddenStates(*leaves[:2]), losses.HiddenStates(*leaves[2:])
        own, other = pairs if chunked else [losses.to_logits(pair) for pair in pairs]
        value = losses.per_token_loss(name, own, other, tokens)
        gradients = torch.autograd.grad((value * torch.arange(12.0).view(3, 4)).sum(), leaves, allow_unused=True)
        assert all(gradient is None or not gradient.any() for gradient in gradients[2:])
        results.append((value, *gradients[:2]))
    for dense, ours in zip(*results):
        torch.testing.assert_close(ours, dense)


@pytest.mark.parametrize(
    "name", ["cross_entropy", *losses.DIVERGENCES, *(name for name in ALL if name != "comparative")]
)
def test_chunks_never_hold_a_whole_batch(name, monkeypatch):
    """Forward and backward, nothing is made that is larger than a chunk."""
    monkeypatch.setattr(losses, "by_chunks", lambda *inputs, chunked=losses.by_chunks: chunked(*inputs, at_once=2000))
    features, head, teacher_features, teacher_head, ids = two_heads(vocab_size=200)
    features, head = features.repeat(9, 1, 1).requires_grad_(), head.requires_grad_()
    own, other = (
        losses.HiddenStates(features, head),
        losses.HiddenStates(teacher_features.repeat(9, 1, 1), teacher_head),
    )
    hyper = {"top_k": 8} if name in ("spearman", "cmkd") else {}
    tokens = random_tokens(27, 4, vocab_size=200)._replace(targets=ids.repeat(9, 1))
    with Largest() as largest:
        losses.per_token_loss(name, own, other, tokens, **hyper).sum().backward()
    assert largest.numbers == 2000


def test_a_name_is_found_in_any_table_and_once():
    """Each row as its function gives it; a typo names the choices; no name stands in two tables."""
    tables = [
        losses.DIVERGENCES, losses.MATCHING_LOSSES, losses.TOKEN_LOSSES, losses.SEQUENCE_LOSSES,
        {"cross_entropy": None},
    ]
    assert len(set().union(*tables)) == sum(map(len, tables))
    rows, tokens = (random_logits(2, 3, 5), random_logits(2, 3, 5, seed=1)), random_tokens(2, 3, vocab_size=5)
    for table, arguments in zip(tables, [rows, rows, (*rows, tokens), (*rows, tokens)]):
        for name, function in table.items():
            assert torch.equal(losses.per_token_loss(name, *rows, tokens), function(*arguments))
    assert torch.equal(
        losses.per_token_loss("cross_entropy", rows[0], None, tokens), losses.cross_entropy(rows[0], tokens.targets)
    )
    with pytest.raises(ValueError, match="kl_forward.*forward_kl.*pearson.*decoupled_kd.*comparative") as caught:
        losses.per_token_loss("kl_forward", *rows, tokens)
    assert "\n" not in str(caught.value) and "cross_entropy" in str(caught.value)
    with pytest.raises(TypeError):
        losses.per_token_loss("cross_entropy", *rows, tokens, smoothing=0.1)


@pytest.mark.parametrize("name", ["cross_entropy", "label_smoothing"])
def test_no_teacher_is_needed(name, monkeypatch):
    """None for a teacher, dense and by chunks, is as good as any."""
    monkeypatch.setattr(losses, "by_chunks", lambda *inputs, chunked=losses.by_chunks: chunked(*inputs, at_once=23))
    features, head, *_, ids = two_heads()
    own, tokens = losses.HiddenStates(features, head), tokens_of(ids)
    expected = losses.per_token_loss(name, losses.to_logits(own), random_logits(3, 4, 11), tokens)
    for student in (own, losses.to_logits(own)):
        torch.testing.assert_close(losses.per_token_loss(name, student, None, tokens), expected)


# ---------------------------------------------------------------------------------------------------------------------
# Matches: what each of them sees, and what it does not.


def head_weight(student_logits, teacher_logits, mu=0.5):
    """adaptive_kl's w, from its value."""
    forward, reverse = (
        losses.forward_kl(student_logits, teacher_logits),
        losses.reverse_kl(student_logits, teacher_logits),
    )
    return ((losses.adaptive_kl(student_logits, teacher_logits, mu) - reverse) / (forward - reverse)).item()


@pytest.mark.parametrize(
    "teacher, student, mu, weight",
    [
        ((0.6, 0.3, 0.1), (0.2, 0.5, 0.3), 0.5, 0.5),  # the head is token 0: .4 of .8
        ((0.6, 0.3, 0.1), (0.2, 0.5, 0.3), 0.6, 0.5),  # and still, where it holds mu exactly
        ((0.6, 0.3, 0.1), (0.2, 0.5, 0.3), 0.7, 0.75),
        ((0.6, 0.3, 0.1), (0.2, 0.5, 0.3), 1.0, 1.0),
        # Two tokens; the first alone, as in the authors' code, would be .4.
        ((0.4, 0.35, 0.25), (0.2, 0.3, 0.5), 0.5, 0.5),
        ((0.25, 0.25, 0.25, 0.25), (0.4, 0.2, 0.1, 0.3), 0.5, 0.5),  # two of four: (.15 + .05) / .4
        ((0.25, 0.25, 0.25, 0.25), (0.4, 0.2, 0.1, 0.3), 0.51, 0.875),
        ((0.1, 0.3, 0.6), (0.3, 0.5, 0.2), 0.5, 0.5),  # by the teacher's mass, not by the place in the vocabulary
        ((0.2, 0.5, 0.3), (0.6, 0.3, 0.1), 0.5, 0.25),  # the teacher's head, not the student's
    ],
)
def test_adaptive_kl_takes_the_smallest_head(teacher, student, mu, weight):
    """Its weight by hand: what both differ by on the head, over what they differ by."""
    assert head_weight(log_of(*student), log_of(*teacher), mu) == pytest.approx(weight, abs=1e-9)


def test_adaptive_kl_holds_its_weight_constant():
    """.159812 for (.4, .35, .25) against (.2, .3, .5); gradient w FKL' + (1 - w) RKL',
    not the derivative of the value."""
    student_logits, teacher_logits = log_of(0.2, 0.3, 0.5), log_of(0.4, 0.35, 0.25)
    value, gradient = both("adaptive_kl", student_logits, teacher_logits)
    assert value.item() == pytest.approx(0.159812, abs=1e-6)
    parts = [both(name, student_logits, teacher_logits)[1] for name in ("forward_kl", "reverse_kl")]
    torch.testing.assert_close(gradient, sum(parts) / 2)
    ends = [losses.DIVERGENCES[name](student_logits, teacher_logits).item() for name in ("forward_kl", "reverse_kl")]
    assert ends == pytest.approx([0.157925, 0.161699], abs=1e-6)
    value, gradient = both("adaptive_kl", student_logits, teacher_logits, mu=0.4)  # w = .4
    assert value.item() == pytest.approx(0.160189, abs=1e-6)
    torch.testing.assert_close(gradient, 0.4 * parts[0] + 0.6 * parts[1])
    student_logits, teacher_logits = random_logits(1, 1, 5, scale=1.0), random_logits(1, 1, 5, seed=1, scale=1.0)
    _, gradient = both("adaptive_kl", student_logits, teacher_logits)
    step = 1e-6 * torch.eye(5).double()[:, None]
    slope = [
        (losses.adaptive_kl(student_logits + d, teacher_logits)
         - losses.adaptive_kl(student_logits - d, teacher_logits)) / 2e-6
        for d in step
    ]
    assert (torch.stack(slope).flatten() - gradient.flatten()).abs().max() > 1e-3


def test_standardize():
    """Mean 0, deviation 1 by either count; log (.6, .3, .1) by hand; equal logits are zeros, with gradient 0."""
    rows = random_logits(2, 5, 9)
    for correction in (0, 1):
        scores = losses.standardize(rows, correction)
        torch.testing.assert_close(scores.mean(-1), torch.zeros(2, 5).double())
        torch.testing.assert_close(scores.std(-1, correction=correction), torch.ones(2, 5).double())
    assert losses.standardize(TEACHER).flatten().tolist() == pytest.approx((0.916777, 0.149592, -1.066369), abs=1e-6)
    for flat in (torch.zeros(1, 1, 5), torch.full((1, 1, 5), 3.3)):
        value, gradient = value_and_grad(losses.standardize, flat)
        assert not value.any() and not gradient.any()
    half = rows.half()
    assert torch.equal(losses.standardize(half), losses.standardize(half.float()))


def reordered(logits, order):
    return logits[..., list(order)]


BLIND = [  # a student that is not the teacher, and that the match does not tell from it
    ("standardized_kl", {}, lambda t: 0.3 * t - 5),
    ("standardized_kl", {"correction": 0}, lambda t: 7 * t + 1),
    ("pearson", {"on": "logits"}, lambda t: 0.3 * t - 5),
    ("pearson", {}, lambda t: (0.4 * t.softmax(-1) + 0.6 / 9).log()),
    ("universal_logit", {}, lambda t: reordered(t, (3, 0, 5, 1, 4, 2, 8, 7, 6))),
    *((name, {"top_k": 3, **hyper}, lambda t: t - 2.0 * (t < t.sort(-1).values[..., 6:7]).double())
      for name, hyper in (("bidirectional_logit_differences", {}), ("pearson", {}), ("spearman", {}), ("cmkd", {}),
                          ("top_k_kl", {"missing": "renormalize_both"}))),
    ("spearman", {"tau": 1e-4}, lambda t: t.sign() * t.abs().sqrt()),
]  # fmt: skip


@pytest.mark.parametrize("name, hyper, change", BLIND)
def test_matches_are_zero_elsewhere_as_well(name, hyper, change):
    """Affine logits, affine probabilities, a permutation, another tail, another scale of the same order."""
    teacher_logits = random_logits(2, 5, 9)
    student_logits = change(teacher_logits)
    assert losses.forward_kl(student_logits, teacher_logits).min() > 1e-4
    assert losses.MATCHING_LOSSES[name](student_logits, teacher_logits, **hyper).abs().max() < 1e-9


@pytest.mark.parametrize(
    "name, hyper", [(name, hyper) for name, hyper, _ in BLIND] + [("cmkd", {}), ("top_k_kl", {"top_k": 3})]
)
def test_matches_are_not_blind_to_the_order(name, hyper):
    """The teacher with its two best tokens swapped differs (but for ULD), and so does one that is turned round."""
    teacher_logits = random_logits(2, 5, 9).sort(-1, descending=True).values
    swapped, turned = reordered(teacher_logits, (1, 0, 2, 3, 4, 5, 6, 7, 8)), -teacher_logits
    assert (losses.MATCHING_LOSSES[name](swapped, teacher_logits, **hyper).min() > 1e-6) == (name != "universal_logit")
    assert losses.MATCHING_LOSSES[name](turned, teacher_logits, **hyper).min() > 1e-3


def test_bild_by_hand():
    """t-LD and s-LD from plain loops on the best three of seven, T = 2; more than V takes all of V."""
    student_logits, teacher_logits = random_logits(2, 3, 7), random_logits(2, 3, 7, seed=1)
    value = losses.bidirectional_logit_differences(student_logits, teacher_logits, 3, 2.0)
    for b, t in itertools.product(range(2), range(3)):
        rows, total = {"student": student_logits[b, t], "teacher": teacher_logits[b, t]}, 0
        for leader in rows.values():
            ids = sorted(range(7), key=lambda v: -leader[v])[:3]
            soft = {}
            for model, row in rows.items():
                gaps = [
                    math.exp((row[i] - row[j]) / 2) for i, j in ((ids[0], ids[1]), (ids[0], ids[2]), (ids[1], ids[2]))
                ]
                soft[model] = [gap / sum(gaps) for gap in gaps]
            total += sum(p * math.log(p / s) for p, s in zip(soft["teacher"], soft["student"]))
        assert value[b, t].item() == pytest.approx(total, abs=1e-12)
    everything = losses.bidirectional_logit_differences(student_logits, teacher_logits, 7)
    assert torch.equal(everything, losses.bidirectional_logit_differences(student_logits, teacher_logits, 100))


def test_soft_ranks():
    """Log (.6, .3, .1) at tau 1 by hand; tau to 0 gives 1, 2, 3; equal logits share the middle rank;
    16 bits are raised."""
    assert losses.soft_ranks(TEACHER, 1.0).flatten().tolist() == pytest.approx((1.476190, 1.916667, 2.607143), abs=1e-6)
    assert losses.soft_ranks(TEACHER, 1e-3).flatten().tolist() == pytest.approx((1, 2, 3))
    assert losses.soft_ranks(STUDENT, 1e-3).flatten().tolist() == pytest.approx((3, 1, 2))
    assert losses.soft_ranks(torch.zeros(2, 5), 0.1).tolist() == [[3.0] * 5] * 2
    torch.testing.assert_close(losses.soft_ranks(random_logits(4, 6), 0.7).sum(-1), torch.full((4,), 21.0).double())
    assert losses.soft_ranks(TEACHER.half(), 0.1).dtype == torch.float32


def test_correlations_by_torch():
    """Pearson on probabilities and on logits, over V and over the teacher's three best, is torch.corrcoef's."""
    student_logits, teacher_logits = random_logits(2, 5, 9), random_logits(2, 5, 9, seed=1)
    for top_k, on in itertools.product((None, 3, 9, 20), ("probs", "logits")):
        value = losses.pearson(student_logits, teacher_logits, top_k, on)
        for b, t in itertools.product(range(2), range(5)):
            ids = teacher_logits[b, t].argsort(descending=True)[:top_k]
            rows = [(x[b, t].softmax(-1) if on == "probs" else x[b, t])[ids] for x in (student_logits, teacher_logits)]
            assert value[b, t].item() == pytest.approx(1 - torch.corrcoef(torch.stack(rows))[0, 1].item(), abs=1e-9)
    ranks = [x.argsort(-1).argsort(-1).double() for x in (student_logits[0, 0], teacher_logits[0, 0])]
    value = losses.spearman(student_logits[:1, :1], teacher_logits[:1, :1], tau=1e-4)
    assert value.item() == pytest.approx(1 - torch.corrcoef(torch.stack(ranks))[0, 1].item(), abs=1e-9)


@pytest.mark.parametrize("name", ["pearson", "spearman", "cmkd"])
def test_a_correlation_keeps_its_digits_near_one(name):
    """float32: exactly 0 where equal, and right where 1 - r is 1e-6, which 1 minus a rounded r would not be."""
    teacher_logits = random_logits(2, 5, 50, scale=1.0).float()
    near = teacher_logits + random_logits(2, 5, 50, seed=1, scale=1e-3).float()
    hyper = {} if name == "pearson" else {"tau": 1.0}
    value, gradient = both(name, teacher_logits, teacher_logits, **hyper)
    assert not value.any() and gradient.abs().max() < 1e-9
    exact = losses.MATCHING_LOSSES[name](near.double(), teacher_logits.double(), **hyper)
    assert exact.max() < 1e-5
    torch.testing.assert_close(
        losses.MATCHING_LOSSES[name](near, teacher_logits, **hyper).double(), exact, rtol=0.01, atol=0
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("vocab_size", [5, 7, 300])  # the mean of 300 equal numbers is rounded
@pytest.mark.parametrize("shift", [0.0, 0.3, 77.0])
@pytest.mark.parametrize(
    "name, hyper", [("pearson", {}), ("pearson", {"on": "logits"}), ("spearman", {}), ("cmkd", {})]
)
def test_a_correlation_with_a_constant(name, hyper, shift, vocab_size, dtype):
    """A teacher without preferences teaches nothing; a student without any is uncorrelated, 1, and gets no gradient."""
    flat = torch.full((1, 1, vocab_size), shift, dtype=dtype)
    slope = torch.arange(vocab_size, dtype=dtype).div(vocab_size)[None, None]
    for student_logits, teacher_logits, expected in ((slope, flat, 0.0), (flat, slope, 1.0), (flat, flat, 0.0)):
        value, gradient = both(name, student_logits, teacher_logits, **hyper)
        assert value.item() == pytest.approx(expected, abs=1e-6) and not gradient.any()


def test_pearson_where_the_student_underflows():
    """Among the teacher's best tokens a student's probabilities of e^-300 correlate as those of e^-1 do, in float32."""
    teacher_logits = torch.tensor([[[5.0, 4.0, 3.0, 0.0]]])
    near, far = torch.tensor([[[1.0, 2.0, 3.0, 2.0]]]), torch.tensor([[[1.0, 2.0, 3.0, 300.0]]])
    values = [both("pearson", student_logits, teacher_logits, top_k=3) for student_logits in (near, far)]
    assert values[0][0].item() > 1
    torch.testing.assert_close(values[0][0], values[1][0], rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(values[0][1], values[1][1], rtol=1e-3, atol=1e-6)


def test_cmkd_weighs_by_the_teachers_doubt():
    """The teacher's normalised entropy, not the student's, is Spearman's share; the two directions add up."""
    student_logits, teacher_logits = random_logits(2, 5, 9), random_logits(2, 5, 9, seed=1)
    parts = losses.pearson(student_logits, teacher_logits, 4), losses.spearman(student_logits, teacher_logits, 4, 0.5)
    doubt = losses.entropy(teacher_logits) / math.log(9)
    by = {way: losses.cmkd(student_logits, teacher_logits, 4, 0.5, way) for way in ("entropy", "certainty", None)}
    torch.testing.assert_close(by["entropy"], (1 - doubt) * parts[0] + doubt * parts[1])
    torch.testing.assert_close(by["entropy"] + by["certainty"], sum(parts))
    torch.testing.assert_close(by[None], sum(parts) / 2)


def test_universal_logit():
    """At most 2 total_variation; 0 for permutations; a smaller vocabulary on either side is padded with zeros."""
    for seed in range(10):
        rows = random_logits(4, 5, 6, seed=seed), random_logits(4, 5, 6, seed=seed + 50)
        value = losses.universal_logit(*rows)
        assert (value <= 2 * losses.total_variation(*rows) + 1e-12).all() and (value > 0).all()
    assert losses.total_variation(STUDENT, TEACHER).item() == pytest.approx(0.4)  # the bound is .8, the value .2
    assert losses.universal_logit(STUDENT, TEACHER).item() == pytest.approx(0.2)
    wide = log_of(0.4, 0.1, 0.2, 0.3)  # sorted .4 .3 .2 .1 against .5 .3 .2 0
    assert losses.universal_logit(STUDENT, wide).item() == pytest.approx(0.2)
    assert losses.universal_logit(wide, STUDENT).item() == pytest.approx(0.2)
    own, other = two_heads(), two_heads(vocab_size=6)
    own, other = losses.HiddenStates(*own[:2]), losses.HiddenStates(*other[2:4])
    value = losses.per_token_loss("universal_logit", own, other, random_tokens(3, 4, vocab_size=6))
    assert torch.allclose(value, losses.universal_logit(losses.to_logits(own), losses.to_logits(other)))
    with pytest.raises(AssertionError, match="positions"):
        losses.universal_logit(random_logits(1, 3, 5), random_logits(1, 2, 5))


def test_what_becomes_of_the_missing_mass():
    """(.5, .3, .15, .05) against (.55, .35, .05, .05), k = 2: cut off it is -.0939; one bucket gives .0447 <= .0709."""
    student_logits, teacher_logits = log_of(0.55, 0.35, 0.05, 0.05), log_of(0.5, 0.3, 0.15, 0.05)
    value = {way: losses.top_k_kl(student_logits, teacher_logits, 2, way).item() for way in ("truncate", "other")}
    assert value["truncate"] == pytest.approx(-0.0939, abs=5e-5)
    assert value["other"] == pytest.approx(0.0447, abs=5e-5)
    assert losses.forward_kl(student_logits, teacher_logits).item() == pytest.approx(0.0709, abs=5e-5)


@pytest.mark.parametrize("top_k", [1, 3, 8, 9, 20])
def test_top_k_kl(top_k):
    """The four by hand; "other" is never above forward KL, and with all but one token named it is forward KL."""
    student_logits, teacher_logits = random_logits(2, 5, 9), random_logits(2, 5, 9, seed=1)
    whole = losses.forward_kl(student_logits, teacher_logits)
    for b, t in itertools.product(range(2), range(5)):
        ids = teacher_logits[b, t].argsort(descending=True)[:top_k].tolist()
        other, own = (x[b, t].softmax(-1)[ids].tolist() for x in (teacher_logits, student_logits))
        mass, own_mass = sum(other), sum(own)
        cut = sum(p * math.log(p / s) for p, s in zip(other, own))
        by_hand = {
            "truncate": cut,
            "renormalize_teacher": cut / mass - math.log(mass),
            "renormalize_both": cut / mass - math.log(mass / own_mass),
            "other": cut + (1 - mass) * math.log((1 - mass) / (1 - own_mass)) if top_k < 9 else cut,
        }
        for missing, expected in by_hand.items():
            value = losses.top_k_kl(
                student_logits[b : b + 1, t : t + 1], teacher_logits[b : b + 1, t : t + 1], top_k, missing
            )
            assert value.item() == pytest.approx(expected, abs=1e-9), missing
    bucket = losses.top_k_kl(student_logits, teacher_logits, top_k)
    assert (bucket <= whole + 1e-12).all()
    assert torch.allclose(bucket, whole) == (top_k >= 8)


def test_a_renormalised_teacher_wants_an_overconfident_student():
    """Its minimum, 0, is the teacher's top k made to sum to 1; at the teacher itself it is -ln of their mass."""
    confident = log_of(0.6 / 0.9, 0.3 / 0.9, 1e-300)
    value, gradient = both("top_k_kl", confident, TEACHER, top_k=2, missing="renormalize_teacher")
    assert value.abs().max() < 1e-12 and gradient.abs().max() < 1e-12
    value, gradient = both("top_k_kl", TEACHER, TEACHER, top_k=2, missing="renormalize_teacher")
    assert value.item() == pytest.approx(-math.log(0.9)) and gradient.abs().max() > 0.01


REMOTE = [  # (missing, student, teacher, whose best tokens show the difference; of the others' it has no trace)
    # Two of the teacher's best in the teacher's ratio, but most of the mass on a token that the teacher ranks last:
    # on-policy, this is what the student writes.
    ("renormalize_both", (0.2, 0.1, 0.01, 0.69), (0.6, 0.3, 0.06, 0.04), "student"),
    # The student's two best in the teacher's ratio, but hardly anything on what the teacher likes best.
    ("renormalize_both", (0.6, 0.3, 0.06, 0.04), (0.2, 0.1, 0.01, 0.69), "teacher"),
    # The best two and the sum of the rest agree; how the rest is spread, no sum tells.
    ("other", (0.5, 0.3, 0.05, 0.15), (0.5, 0.3, 0.15, 0.05), None),
]


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("missing, student, teacher, seen_by", REMOTE)
def test_whose_best_tokens_are_not_seen(missing, student, teacher, seen_by, reverse):
    """Value and gradient are zero where the whole KL has a gradient above .05: the bias that the docstring tells of."""
    student_logits, teacher_logits = log_of(*student), log_of(*teacher)
    whole = losses.reverse_kl if reverse else losses.forward_kl
    assert value_and_grad(lambda logits: whole(logits, teacher_logits), student_logits)[1].abs().max() > 0.05
    for whose in ("teacher", "student"):
        hyper = {"top_k": 2, "missing": missing, "whose": whose, "reverse": reverse}
        value, gradient = both("top_k_kl", student_logits, teacher_logits, **hyper)
        assert (value.item() > 0.1 and gradient.abs().max() > 0.05) if whose == seen_by else (
            abs(value.item()) < 1e-9 and gradient.abs().max() < 1e-9
        )


@pytest.mark.parametrize("whose", ["teacher", "student"])
@pytest.mark.parametrize("reverse", [False, True])
def test_a_truncated_kl_by_hand(reverse, whose):
    """All four ways, for either model's best three of nine; all of V is the whole KL, whoever is asked."""
    student_logits, teacher_logits = random_logits(2, 5, 9), random_logits(2, 5, 9, seed=1)
    value = {
        missing: losses.top_k_kl(student_logits, teacher_logits, 3, missing, whose, reverse)
        for missing in ("other", "renormalize_both", "renormalize_teacher", "truncate")
    }
    for b, t in itertools.product(range(2), range(5)):
        own, other = (x[b, t].softmax(-1) for x in (student_logits, teacher_logits))
        ids = (own if whose == "student" else other).argsort(descending=True)[:3]
        own, other = (torch.cat([x[ids], 1 - x[ids].sum(0, keepdim=True)]) for x in (own, other))

        def kl(own, other):
            first, second = (own, other) if reverse else (other, own)
            return (first * (first / second).log()).sum().item()

        by_hand = {
            "other": kl(own, other),
            "renormalize_both": kl(own[:3] / own[:3].sum(), other[:3] / other[:3].sum()),
            "renormalize_teacher": kl(own[:3], other[:3] / other[:3].sum()),
            "truncate": kl(own[:3], other[:3]),
        }
        for missing, expected in by_hand.items():
            assert value[missing][b, t].item() == pytest.approx(expected, abs=1e-9), missing
    whole = (losses.reverse_kl if reverse else losses.forward_kl)(student_logits, teacher_logits)
    assert (value["other"] <= whole + 1e-12).all()
    for missing in value:
        torch.testing.assert_close(losses.top_k_kl(student_logits, teacher_logits, 9, missing, whose, reverse), whole)


@pytest.mark.parametrize("whose", ["teacher", "student"])
@pytest.mark.parametrize("reverse", [False, True])
def test_a_renormalised_tail_has_no_gradient_at_all(reverse, whose):
    """Exactly 0 outside the best tokens, in float32 too: Adam would take rounding for a gradient like any other."""
    rows = random_logits(3, 4, 50).float(), random_logits(3, 4, 50, seed=1).float()
    hyper = {"top_k": 8, "missing": "renormalize_both", "whose": whose, "reverse": reverse}
    _, gradient = both("top_k_kl", *rows, **hyper)
    best = torch.zeros(3, 4, 50, dtype=torch.bool).scatter(-1, rows[whose == "teacher"].topk(8).indices, True)
    assert not gradient[~best].any() and (gradient[best] != 0).all()


def test_token_wise_kl_is_both_kls_with_another_gradient():
    """Its value is forward + reverse KL; its gradient that of the weighted sum, each token's weight t / (t + s) held
    constant: where the student is far too low the token's forward term, where far too high its reverse term."""
    student_logits, teacher_logits = random_logits(2, 5, 9), random_logits(2, 5, 9, seed=1)
    value, gradient = both("token_wise_kl", student_logits, teacher_logits)
    torch.testing.assert_close(
        value, losses.forward_kl(student_logits, teacher_logits) + losses.reverse_kl(student_logits, teacher_logits)
    )
    own, other = student_logits.softmax(-1), teacher_logits.softmax(-1)
    weight = other / (other + own)
    forward = own * (weight * other).sum(-1, keepdim=True) - weight * other
    pushed = (1 - weight) * own * ((own / other).log() + 1)
    torch.testing.assert_close(gradient, forward + pushed - own * pushed.sum(-1, keepdim=True))
    assert (gradient - both_kls(student_logits, teacher_logits)).abs().max() > 0.01
    numbers = both("token_wise_kl", STUDENT, TEACHER)[1].flatten().tolist()
    assert numbers == pytest.approx((-0.525309, 0.183688, 0.341621), abs=1e-6)


def both_kls(student_logits, teacher_logits):
    """The gradient of forward + reverse KL."""
    return value_and_grad(
        lambda logits: losses.forward_kl(logits, teacher_logits) + losses.reverse_kl(logits, teacher_logits),
        student_logits,
    )[1]


def test_favourites_ask_for_the_best_token_alone():
    """0 and no gradient for every student that likes the teacher's best token best; else positive, by hand, with a
    gradient to the two tokens alone: up for the teacher's, down for its own."""
    teacher_logits = random_logits(4, 6, 9)
    agreeing = random_logits(4, 6, 9, seed=1).scatter(-1, teacher_logits.argmax(-1, keepdim=True), 20.0)
    value, gradient = both("favourites", agreeing, teacher_logits)
    assert not value.any() and not gradient.any()
    student_logits = random_logits(4, 6, 9, seed=2)
    value, gradient = both("favourites", student_logits, teacher_logits, beta=0.7)
    seen = 0
    for b, t in itertools.product(range(4), range(6)):
        best, own = int(teacher_logits[b, t].argmax()), int(student_logits[b, t].argmax())
        ratios = [(x[b, t, best] - x[b, t, own]).item() for x in (student_logits, teacher_logits)]
        margin = 0.7 * (ratios[0] - ratios[1])
        assert value[b, t].item() == pytest.approx(math.log(1 + math.exp(-margin)) - math.log(2), abs=1e-9)
        if best != own:
            seen += 1
            slope = 0.7 / (1 + math.exp(margin))
            expected = torch.zeros(9).double()
            expected[best], expected[own] = -slope, slope
            torch.testing.assert_close(gradient[b, t], expected)
            assert value[b, t] > 0
    assert seen > 10


WEIGHTS = ("student", "teacher", "uniform")


@pytest.mark.parametrize("second", WEIGHTS)
@pytest.mark.parametrize("first", WEIGHTS)
def test_logit_differences_equal_a_loop_over_pairs(first, second):
    """1/4 of the weighted sum over all ordered pairs, its gradient with constant weights, and symmetric in both."""
    student_logits, teacher_logits = random_logits(2, 3, 6, scale=1.0), random_logits(2, 3, 6, seed=1, scale=1.0)
    value, gradient = both("logit_differences", student_logits, teacher_logits, first=first, second=second)
    probs = {
        "student": student_logits.softmax(-1),
        "teacher": teacher_logits.softmax(-1),
        "uniform": torch.full_like(student_logits, 1 / 6),
    }
    pairs = probs[first][..., :, None] * probs[second][..., None, :]

    def by_pairs(logits):
        gap = logits - teacher_logits
        return (pairs * (gap[..., :, None] - gap[..., None, :]).square()).sum((-2, -1)) / 4

    expected, slope = value_and_grad(by_pairs, student_logits)
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(gradient, slope)
    swapped = losses.logit_differences(student_logits, teacher_logits, second, first)
    torch.testing.assert_close(swapped, value)


def test_what_logit_differences_are_at_their_ends():
    """Weighed by the student twice: reverse KL's gradient. Without weights: centred logits, Hinton's limit."""
    student_logits, teacher_logits = random_logits(2, 5, 9), random_logits(2, 5, 9, seed=1)
    _, gradient = both("logit_differences", student_logits, teacher_logits)
    _, wanted = value_and_grad(lambda logits: losses.reverse_kl(logits, teacher_logits), student_logits)
    torch.testing.assert_close(gradient, wanted)
    plain = losses.logit_differences(student_logits, teacher_logits, "uniform", "uniform")
    centred = [x - x.mean(-1, keepdim=True) for x in (student_logits, teacher_logits)]
    torch.testing.assert_close(plain, (centred[0] - centred[1]).square().sum(-1) / 18)
    nobody = torch.zeros(2, 5, dtype=torch.long)
    hot = losses.hinton_mixture(student_logits, teacher_logits, nobody, kd_weight=1.0, temperature=1e4)
    torch.testing.assert_close(hot, plain, rtol=1e-3, atol=1e-4)


# ---------------------------------------------------------------------------------------------------------------------
# Losses of a token.


def test_decoupled_parts_add_up_to_forward_kl():
    """target part + (1 - teacher(target)) others part = forward KL: the example's six numbers, and random rows."""
    for target, parts in enumerate([(0.381909, 0.035375), (0.082283, 0.448251), (0.116322, 0.310819)]):
        found = losses.decoupled_parts(STUDENT, TEACHER, torch.tensor([[target]]))
        assert [x.item() for x in found] == pytest.approx(parts, abs=1e-6)
    rows, targets = (random_logits(2, 5, 9), random_logits(2, 5, 9, seed=1)), random_tokens(2, 5, vocab_size=9).targets
    target_part, others_part = losses.decoupled_parts(*rows, targets)
    rest = 1 - rows[1].softmax(-1).gather(-1, targets[..., None])[..., 0]
    torch.testing.assert_close(target_part + rest * others_part, losses.forward_kl(*rows))


def test_decoupled_kd_keeps_its_scale_at_every_temperature():
    """T^2 (alpha target part + beta others part) of logits / T, by hand;
    a target of probability 1 - 1e-9 costs no digits."""
    rows, tokens = (random_logits(2, 5, 9), random_logits(2, 5, 9, seed=1)), random_tokens(2, 5, vocab_size=9)
    target_part, others_part = losses.decoupled_parts(rows[0] / 3, rows[1] / 3, tokens.targets)
    value = losses.decoupled_kd(*rows, tokens, alpha=0.3, beta=2.0, temperature=3.0)
    torch.testing.assert_close(value, 9 * (0.3 * target_part + 2.0 * others_part))
    sure = torch.tensor([[[20.0, 0.0, 1.0]]])
    narrow = losses.decoupled_parts(sure, sure.flip(-1) - 3, torch.tensor([[0]]))
    wide = losses.decoupled_parts(sure.double(), sure.double().flip(-1) - 3, torch.tensor([[0]]))
    torch.testing.assert_close([x.double() for x in narrow], list(wide), rtol=1e-5, atol=0)


def test_label_smoothing_agrees_with_torch():
    """The same as F.cross_entropy with its keyword, and a teacher changes nothing."""
    student_logits, tokens = random_logits(2, 5, 9), random_tokens(2, 5, vocab_size=9)
    peer = torch.nn.functional.cross_entropy(
        student_logits.flatten(0, 1), tokens.targets.flatten(), reduction="none", label_smoothing=0.2
    )
    for teacher_logits in (None, random_logits(2, 5, 9, seed=1)):
        torch.testing.assert_close(losses.label_smoothing(student_logits, teacher_logits, tokens, 0.2), peer.view(2, 5))


def test_the_gate_asks_the_teacher_about_the_students_best():
    """Weight 1 where fewer than accept_top_k of the teacher's logits are above the proposal's, `rejected` elsewhere."""
    student_logits, teacher_logits = random_logits(4, 5, 9), random_logits(4, 5, 9, seed=1)
    rank = (teacher_logits.argsort(-1, descending=True) == student_logits.argmax(-1, keepdim=True)).long().argmax(-1)
    assert (rank < 3).any() and (rank >= 3).any()
    kl = losses.forward_kl(student_logits, teacher_logits)
    tokens = random_tokens(4, 5, vocab_size=9)
    for accept, rejected in ((1, 0.0), (3, 0.0), (3, 0.1), (9, 0.0)):
        value = losses.gated_forward_kl(student_logits, teacher_logits, tokens, accept, rejected)
        torch.testing.assert_close(value, torch.where(rank < accept, kl, rejected * kl))
    tie = torch.tensor([[[2.0, 2.0, 0.0]]])  # the second of two equals is still among the best one
    assert losses.gated_forward_kl(torch.tensor([[[0.0, 1.0, 0.0]]]), tie, tokens_of([[0]]), 1) > 0


@pytest.mark.parametrize("beta", [0.2, 0.5, 0.9])
def test_jsd_by_writer_is_twice_the_two_halves(beta):
    """One token of each writer: their mean is (1 - beta) KL(teacher || mix) + beta KL(student
    || mix) = JSD at 1 - beta."""
    student_logits, teacher_logits = random_logits(2, 5, 9), random_logits(2, 5, 9, seed=1)
    sides = [
        losses.jsd_by_writer(student_logits, teacher_logits, tokens_of(torch.zeros(2, 5).long(), by), beta)
        for by in (True, False)
    ]
    torch.testing.assert_close(sum(sides) / 2, losses.generalized_jsd(student_logits, teacher_logits, 1 - beta))
    mix = (1 - beta) * teacher_logits.softmax(-1) + beta * student_logits.softmax(-1)
    torch.testing.assert_close(sides[0], 2 * (1 - beta) * losses.forward_kl(mix.log(), teacher_logits))
    torch.testing.assert_close(sides[1], 2 * beta * losses.reverse_kl(student_logits, mix.log()))


@pytest.mark.parametrize("name", ["jsd_by_writer", "skew_by_writer", "confidence_gated"])
def test_each_position_has_its_own_writer(name):
    """A mixed batch is, position by position, the batch of one writer or of the other, value and gradient."""
    rows, tokens = (random_logits(2, 5, 9), random_logits(2, 5, 9, seed=1)), random_tokens(2, 5, vocab_size=9)
    assert tokens.by_teacher.any() and not tokens.by_teacher.all()
    mixed = both(name, *rows, tokens)
    for by_teacher in (True, False):
        pure, here = both(name, *rows, tokens_of(tokens.targets, by_teacher)), tokens.by_teacher == by_teacher
        for ours, expected in zip(mixed, pure):
            torch.testing.assert_close(ours[here], expected[here])
            assert not torch.allclose(ours[~here], expected[~here])


def test_skew_by_writer():
    """(2 - beta) SKL on the teacher's tokens, beta SRKL on the student's, whose mixture is held constant."""
    rows = random_logits(2, 5, 9), random_logits(2, 5, 9, seed=1)
    sides = [
        both("skew_by_writer", *rows, tokens_of(torch.zeros(2, 5).long(), by), alpha=0.3, beta=0.4)
        for by in (True, False)
    ]
    expected = [
        both("skew_forward_kl", *rows, alpha=0.3),
        both("skew_reverse_kl", *rows, alpha=0.3, detach_mixture=True),
    ]
    for ours, theirs, weight in zip(sides, expected, (1.6, 0.4)):
        torch.testing.assert_close(ours, tuple(weight * x for x in theirs))


def test_confidence_gated():
    """Cross-entropy on what the teacher replaced, bucketed forward KL on what it kept."""
    rows, tokens = (random_logits(2, 5, 9), random_logits(2, 5, 9, seed=1)), random_tokens(2, 5, vocab_size=9)
    expected = torch.where(
        tokens.by_teacher, losses.cross_entropy(rows[0], tokens.targets), losses.top_k_kl(*rows, 3, "other")
    )
    torch.testing.assert_close(losses.confidence_gated(*rows, tokens, top_k=3), expected)


def expectation_over_draws(proposal, weight_of, draws=2):
    """The expected random_sampling_kd of the example, every list of `draws` tokens times its probability."""

    def expected(logits):
        total = 0
        for ids in itertools.product(range(3), repeat=draws):
            weights = weight_of(ids)[None, None]
            chance = math.prod(proposal[i] for i in ids)
            total = total + chance * losses.random_sampling_kd(logits, torch.tensor(ids)[None, None], weights)
        return total

    return value_and_grad(expected, STUDENT)


@pytest.mark.parametrize("draws", [1, 2, 3])
def test_random_sampling_kd_is_unbiased(draws):
    """Over all draws from the teacher, weights 1/N: the expected value is H + forward KL,
    the gradient that of forward KL."""
    teacher = (0.6, 0.3, 0.1)
    value, gradient = expectation_over_draws(teacher, lambda ids: torch.full((draws,), 1 / draws).double(), draws)
    assert value.item() == pytest.approx(1.294004, abs=1e-6)
    assert gradient.flatten().tolist() == pytest.approx((-0.4, 0.2, 0.2))


def test_random_sampling_kd_with_another_proposal():
    """Proposal ~ sqrt(teacher), N = 2: plain importance weights give (.6, .3, .1),
    normalised ones (.538, .324, .137)."""
    teacher = torch.tensor([0.6, 0.3, 0.1]).double()
    proposal = teacher.sqrt() / teacher.sqrt().sum()

    def plain(ids):
        return (teacher / proposal)[list(ids)] / 2

    targets = []
    for weight_of in (plain, lambda ids: plain(ids) / plain(ids).sum()):
        _, gradient = expectation_over_draws(proposal.tolist(), weight_of)
        targets.append((STUDENT.exp() - gradient).flatten().tolist())  # the target: gradient = student - target
    assert targets[0] == pytest.approx((0.6, 0.3, 0.1))
    assert targets[1] == pytest.approx((0.538, 0.324, 0.137), abs=1e-3)


def test_random_sampling_kd_counts_duplicates():
    """Ids 0, 0, 1 are the target (2/3, 1/3); no gradient to the weights; 16 bits are raised; exact with all of V."""
    ids, weights = torch.tensor([[[0, 0, 1]]]), torch.full((1, 1, 3), 1 / 3).requires_grad_()
    value = losses.random_sampling_kd(STUDENT.clone().requires_grad_(), ids, weights)
    assert (
        value.item() == pytest.approx(-(2 * math.log(0.2) + math.log(0.5)) / 3)
        and value.item() == pytest.approx(1.304008, abs=1e-6)
    )
    value.sum().backward()
    assert weights.grad is None
    assert losses.random_sampling_kd(STUDENT.half(), ids, weights).dtype == torch.float32
    exact = losses.random_sampling_kd(STUDENT, torch.arange(3)[None, None], TEACHER.exp())
    assert exact.item() == pytest.approx(1.294004, abs=1e-6)


# ---------------------------------------------------------------------------------------------------------------------
# Losses of a sequence: the policy gradient by enumeration, CKD by its pairs.

FULL = tokens_of(SEQUENCES, False)
TABLES = random_logits(7, 2, seed=1), random_logits(7, 2, seed=2)


def expected_loss(**hyper):
    """Gradient in the student's table of the expected sum of policy_gradient, over all 8 sequences that it may draw."""

    def expected(table):
        rows = tabular(table, SEQUENCES)
        chance = sequence_logprob(rows).exp().detach()
        per_token = losses.policy_gradient(rows, tabular(TABLES[1], SEQUENCES), FULL, **hyper)
        return (chance * per_token.sum(-1)).sum()

    return value_and_grad(expected, TABLES[0])[1]


def single_step(divergence):
    """Gradient of the expected sum over positions of a divergence, the draw held constant."""

    def expected(table):
        rows = tabular(table, SEQUENCES)
        chance = sequence_logprob(rows).exp().detach()
        return (chance * divergence(rows, tabular(TABLES[1], SEQUENCES)).sum(-1)).sum()

    return value_and_grad(expected, TABLES[0])[1]


def test_policy_gradient_is_the_single_step_of_reverse_kl():
    """V = 2, T = 3, every sequence by its probability; with and without the baseline, and of no other divergence."""
    for baseline in (False, True):
        torch.testing.assert_close(
            expected_loss(baseline=baseline), single_step(losses.reverse_kl), rtol=1e-9, atol=1e-12
        )
    assert (expected_loss() - single_step(losses.forward_kl)).abs().max() > 0.01
    assert (expected_loss() - expected_loss(discount=1.0)).abs().max() > 0.01


def test_policy_gradient_without_discounting_is_the_sequences_reverse_kl():
    """discount 1: the gradient of KL(student || teacher) over whole sequences."""

    def exact(table):
        own, other = sequence_logprob(tabular(table, SEQUENCES)), sequence_logprob(tabular(TABLES[1], SEQUENCES))
        return (own.exp() * (own - other)).sum()

    torch.testing.assert_close(expected_loss(discount=1.0), value_and_grad(exact, TABLES[0])[1], rtol=1e-9, atol=1e-12)


def test_the_baseline_lowers_the_noise():
    """The variance of the gradient over the draw, at the first position of all eight sequences, falls."""
    spread = []
    for baseline in (False, True):
        rows = tabular(TABLES[0], SEQUENCES)
        chance = sequence_logprob(rows).exp()[:, None]
        _, gradient = value_and_grad(
            lambda logits, baseline=baseline: losses.policy_gradient(
                logits, tabular(TABLES[1], SEQUENCES), FULL, baseline=baseline
            ),
            rows,
        )
        first = gradient[:, 0]
        spread.append((chance * (first - (chance * first).sum(0)) ** 2).sum().item())
    assert spread[1] < 0.9 * spread[0]


def test_what_becomes_of_sampled_estimates_when_differentiated():
    """The loss is no estimate to differentiate: by enumeration, k1's gradient is 0, k2's reverse KL's,
    k3's FORWARD KL's."""
    estimates = {
        "k1": lambda own, other: own - other,
        "k2": lambda own, other: (own - other) ** 2 / 2,
        "k3": lambda own, other: (other - own).exp() - 1 - (other - own),
    }
    gradients = {}
    for name, estimate in estimates.items():

        def per_token(rows, teacher_rows, estimate=estimate):
            chosen = [x.log_softmax(-1).gather(-1, SEQUENCES[..., None])[..., 0] for x in (rows, teacher_rows)]
            return estimate(*chosen)

        gradients[name] = single_step(per_token)
    assert gradients["k1"].abs().max() < 1e-12
    torch.testing.assert_close(gradients["k2"], single_step(losses.reverse_kl), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(gradients["k3"], single_step(losses.forward_kl), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(gradients["k2"], expected_loss(), rtol=1e-9, atol=1e-12)


def test_discounted_sum():
    """Rewards 1, 2, 3 at .5: (2.75, 3.5, 3), not (2.75, 1.75, .75);
    a fourth outside the mask, nan or not, is not there."""
    reward, mask = (
        torch.tensor([[1.0, 2.0, 3.0, math.nan], [1.0, 2.0, 3.0, 50.0]]),
        torch.tensor([[True] * 3 + [False]] * 2),
    )
    sums = losses.discounted_sum(reward, mask, 0.5)
    assert sums[:, :3].tolist() == [[2.75, 3.5, 3.0]] * 2 and sums.shape == (2, 4)
    assert losses.discounted_sum(reward, mask, 0.0)[0, :3].tolist() == [1.0, 2.0, 3.0]
    assert losses.discounted_sum(reward, mask, 1.0)[1, :3].tolist() == [6.0, 5.0, 3.0]
    gap = torch.tensor([[True, False, True, False]])
    assert losses.discounted_sum(reward[:1], gap, 0.5)[0, 0] == 1.75  # a position that does not count takes its time


def test_policy_gradient_holds_its_advantage_constant():
    """Gradient -A (onehot - student) with A = log teacher - log student, its sum over later tokens,
    or less reverse KL."""
    rows, tokens = (random_logits(2, 4, 5), random_logits(2, 4, 5, seed=1)), random_tokens(2, 4, vocab_size=5)
    own, other = (x.log_softmax(-1).gather(-1, tokens.targets[..., None])[..., 0] for x in rows)
    advantage = other - own
    later = torch.stack([sum(0.7 ** (i - t) * advantage[:, i] for i in range(t, 4)) for t in range(4)], 1)
    score = torch.nn.functional.one_hot(tokens.targets, 5) - rows[0].softmax(-1)
    for hyper, expected in (
        ({}, advantage),
        ({"discount": 0.7}, later),
        ({"baseline": True}, advantage + losses.reverse_kl(*rows)),
    ):
        value, gradient = both("policy_gradient", *rows, tokens, **hyper)
        torch.testing.assert_close(value, -expected * own)
        torch.testing.assert_close(gradient, -expected[..., None] * score)
    with pytest.raises(ValueError, match="baseline.*0.5"):
        losses.policy_gradient(*rows, tokens, discount=0.5, baseline=True)


def test_early_tokens_weigh_more():
    """IW-OPD by hand: the first token weighs 1 + early, a later one the less, the larger the advantages before it were;
    what is masked has no share, and early 0 is the loss without it to the bit."""
    rows, tokens = (random_logits(1, 4, 5), random_logits(1, 4, 5, seed=1)), random_tokens(1, 4, vocab_size=5)
    tokens = tokens._replace(mask=torch.tensor([[True, True, False, True]]))
    plain = losses.policy_gradient(*rows, tokens)
    own, other = (x.log_softmax(-1).gather(-1, tokens.targets[..., None])[..., 0] for x in rows)
    first, second, _, last = (other - own).abs()[0].tolist()
    whole = first + second + last
    for early in (0.5, 2.0):
        weights = torch.tensor([[1 + early, 1 + early * (1 - first / whole), 0, 1 + early * last / whole]])
        torch.testing.assert_close(losses.policy_gradient(*rows, tokens, early=early), weights.double() * plain)
    for one, ours in zip(both("policy_gradient", *rows, tokens), both("policy_gradient", *rows, tokens, early=0.0)):
        assert torch.equal(one, ours)


def test_extrapolation_goes_beyond_the_teacher():
    """ExOPD: with the bonus the advantage is strength (ln t - ln b) - (ln s - ln b), b the start; at strength 1 the
    loss is on-policy distillation's to the bit, whatever the start."""
    rows = [random_logits(2, 4, 5, seed=seed).requires_grad_() for seed in (0, 1, 2)]
    tokens = random_tokens(2, 4, vocab_size=5)._replace(mask=ROWS_MASK[:2])
    own, other, start = (x.log_softmax(-1).gather(-1, tokens.targets[..., None])[..., 0].detach() for x in rows)
    for strength in (1.0, 1.25, 3.0):
        bonus = losses.extrapolation(rows[1], rows[2], tokens, strength)
        assert not bonus.requires_grad and not bonus[~tokens.mask].any()
        value = losses.policy_gradient(rows[0], rows[1], tokens, bonus=bonus)
        wanted = -(strength * (other - start) - (own - start)) * own
        torch.testing.assert_close(value[tokens.mask], wanted[tokens.mask])
        if strength == 1:
            assert torch.equal(value, losses.policy_gradient(*rows[:2], tokens))
    dirty = [x.detach().masked_fill(~tokens.mask[..., None], math.nan) for x in rows[1:]]
    nobody = tokens._replace(targets=tokens.targets.masked_fill(~tokens.mask, -100))
    assert torch.equal(losses.extrapolation(*dirty, nobody, 3.0), bonus)


def test_extrapolation_by_enumeration():
    """V = 2, T = 3, every sequence: the expected gradient is that of the KL to teacher^1.25 / start^.25."""
    start = random_logits(7, 2, seed=3)

    def expected(table):
        rows, other = tabular(table, SEQUENCES), tabular(TABLES[1], SEQUENCES)
        chance = sequence_logprob(rows).exp().detach()
        bonus = losses.extrapolation(other, tabular(start, SEQUENCES), FULL, 1.25)
        return (chance * losses.policy_gradient(rows, other, FULL, bonus=bonus).sum(-1)).sum()

    def beyond(rows, other):
        return losses.reverse_kl(rows, 1.25 * other.log_softmax(-1) - 0.25 * tabular(start, SEQUENCES).log_softmax(-1))

    found = value_and_grad(expected, TABLES[0])[1]
    torch.testing.assert_close(found, single_step(beyond), rtol=1e-9, atol=1e-12)
    assert (found - single_step(losses.reverse_kl)).abs().max() > 0.01


SCORES = torch.tensor([0.0, 1, 1, 0, 0.5, 0, 1, 0], dtype=torch.float64)[:, None]  # of the eight sequences


@pytest.mark.parametrize("beta", [0.0, 0.3, 1.0])
def test_a_score_and_the_teacher_by_enumeration(beta):
    """KDRL: the expected gradient is that of - expected score + beta times reverse KL at each position; for one
    sequence that of -score ln s + beta (ln s - ln t)^2 / 2; equal scores of 0 leave beta times the teacher's part."""

    def expected(table, loss):
        rows = tabular(table, SEQUENCES)
        return (sequence_logprob(rows).exp().detach() * loss(rows).sum(-1)).sum()

    def ours(rows, scores=SCORES):
        return losses.policy_gradient(rows, tabular(TABLES[1], SEQUENCES), FULL, beta=beta, bonus=scores)

    def papers(rows):
        own, other = (
            x.log_softmax(-1).gather(-1, SEQUENCES[..., None])[..., 0] for x in (rows, tabular(TABLES[1], SEQUENCES))
        )
        return -SCORES * own + beta * (own - other) ** 2 / 2

    def expected_score(table):
        return -(sequence_logprob(tabular(table, SEQUENCES)).exp() * SCORES[:, 0]).sum()

    rows = tabular(TABLES[0], SEQUENCES)
    torch.testing.assert_close(
        value_and_grad(lambda rows: ours(rows).sum(), rows)[1], value_and_grad(lambda rows: papers(rows).sum(), rows)[1]
    )
    exact = value_and_grad(expected_score, TABLES[0])[1] + beta * single_step(losses.reverse_kl)
    torch.testing.assert_close(
        value_and_grad(lambda table: expected(table, ours), TABLES[0])[1], exact, rtol=1e-9, atol=1e-12
    )
    alone = losses.policy_gradient(rows, tabular(TABLES[1], SEQUENCES), FULL)
    torch.testing.assert_close(ours(rows, 0.0), beta * alone)


def test_comparative_equals_a_loop_over_pairs():
    """The mean over all ordered pairs of a row's masked positions, of centred logits, / V; labels as one-hot rows."""
    student_logits, teacher_logits = random_logits(3, 5, 4), random_logits(3, 5, 4, seed=1)
    mask = torch.tensor([[1, 1, 1, 1, 1], [0, 1, 0, 1, 1], [0, 0, 1, 0, 0]], dtype=torch.bool)
    tokens = random_tokens(3, 5, vocab_size=4)._replace(mask=mask)
    labels = torch.nn.functional.one_hot(tokens.targets, 4).double()

    def by_loop(wanted, row):
        places = [t for t in range(5) if mask[row, t]]
        centred = [[x[row, t] - x[row, t].mean() for t in range(5)] for x in (student_logits, wanted)]
        pairs = [
            ((centred[0][i] - centred[0][j]) - (centred[1][i] - centred[1][j])).square().mean()
            for i, j in itertools.product(places, places)
        ]
        return (sum(pairs) / len(pairs)).item()

    for label_weight, teacher_weight in ((1.0, 1.0), (0.0, 1.0), (1.0, 0.0), (0.3, 2.0)):
        value = losses.comparative(student_logits, teacher_logits, tokens, label_weight, teacher_weight)
        for row in range(3):
            expected = teacher_weight * by_loop(teacher_logits, row) + label_weight * by_loop(labels, row)
            assert value[row][mask[row]].tolist() == pytest.approx([expected] * int(mask[row].sum()), abs=1e-12)
        assert not value[~mask].any() and not value[2].any() and value[0, 0] > 0


def test_comparative_is_blind_to_the_rows_mean_error():
    """The same vector added to the logits of all positions changes neither value nor gradient."""
    student_logits, teacher_logits = random_logits(2, 5, 4), random_logits(2, 5, 4, seed=1)
    tokens, vector = random_tokens(2, 5, vocab_size=4), random_logits(2, 1, 4, seed=3)
    torch.testing.assert_close(
        both("comparative", student_logits, teacher_logits, tokens),
        both("comparative", student_logits + vector, teacher_logits, tokens)
    )


def test_weight_of_best():
    """k of n, rounded up, at n / k each, so that the row's mean is the chosen ones'; earlier before equal; padding is
    not ranked, however high it scores; a row without a token keeps nothing; a fifth of 5, 10, .. 95 is 1, 2, .. 19."""
    mask = torch.tensor([[True] * 4, [True] * 4, [False, True, True, True], [False] * 4])
    score = torch.tensor([[1.0, 4.0, 2.0, 3.0], [1.0, 1.0, 1.0, 0.0], [9.0, 1.0, 2.0, 0.5], [1.0, 2.0, 3.0, 4.0]])
    found = losses.weight_of_best(score, mask, 0.5)
    assert found.tolist() == [[0, 2, 0, 2], [2, 2, 0, 0], [0, 1.5, 1.5, 0], [0, 0, 0, 0]]
    assert torch.equal(losses.weight_of_best(score, mask, 1.0), mask.float())
    assert losses.weight_of_best(score, mask, 0.01)[0].tolist() == [0, 4, 0, 0]
    for n in range(5, 100, 5):
        kept = losses.weight_of_best(torch.arange(n).float()[None], torch.ones(1, n, dtype=torch.bool), 0.2)
        assert (kept > 0).sum() == n // 5 and kept.mean().item() == pytest.approx(1)


def test_what_either_score_chooses():
    """Of four positions: unsure and right, sure and right, sure and wrong, a little unsure and a little wrong.

    Entropy takes the unsure one, and never the one where the student is sure and wrong; soft-or takes both."""
    sure, other, flat = (0.97, 0.01, 0.01, 0.01), (0.01, 0.97, 0.01, 0.01), (0.25, 0.25, 0.25, 0.25)
    student_logits = torch.cat([log_of(*x) for x in (flat, sure, sure, (0.8, 0.1, 0.06, 0.04))], 1)
    teacher_logits = torch.cat([log_of(*x) for x in (flat, sure, other, (0.7, 0.2, 0.06, 0.04))], 1)
    student_logits[0, 0, 0] += 0.1  # so that there is a loss
    tokens = tokens_of([[0, 0, 0, 0]])
    chosen = {
        (score, share): losses.chosen_positions(student_logits, teacher_logits, tokens, share, score).ne(0).tolist()[0]
        for score in ("entropy", "soft_or")
        for share in (0.25, 0.5, 0.75)
    }
    assert chosen["entropy", 0.25] == chosen["soft_or", 0.25] == [True, False, False, False]
    assert chosen["entropy", 0.5] == [True, False, False, True]
    assert chosen["soft_or", 0.5] == [True, False, True, False]
    assert chosen["soft_or", 0.75] == [True, False, True, True]


@pytest.mark.parametrize("score", ["entropy", "soft_or"])
def test_chosen_positions_mean_the_chosen_ones(score):
    """A row's mean is the divergence's mean where the score, written out, is highest; all positions: the divergence;
    the gradient is that of these positions alone, though the score knows the student."""
    student_logits, teacher_logits = random_logits(3, 10, 6), random_logits(3, 10, 6, seed=1)
    mask = torch.arange(10) < torch.tensor([[10], [7], [1]])
    tokens = random_tokens(3, 10, vocab_size=6)._replace(mask=mask)
    hyper = {"share": 0.3, "score": score, "divergence": "reverse_kl"}
    value, gradient = both("chosen_positions", student_logits, teacher_logits, tokens, **hyper)
    whole, slope = value_and_grad(lambda logits: losses.reverse_kl(logits, teacher_logits), student_logits)
    unsure = losses.entropy(student_logits) / math.log(6)
    wrong = losses.generalized_jsd(student_logits, teacher_logits) / math.log(2)
    found = unsure if score == "entropy" else 1 - (1 - unsure) * (1 - wrong)
    for row, (n, k) in enumerate([(10, 3), (7, 3), (1, 1)]):
        best = sorted(range(n), key=lambda t: -found[row, t])[:k]
        expected = torch.zeros(10).double()
        expected[best] = n / k
        torch.testing.assert_close(value[row], whole[row] * expected)
        torch.testing.assert_close(gradient[row], slope[row] * expected[:, None])
        assert value[row, :n].mean().item() == pytest.approx(whole[row, best].mean().item())
    everywhere = losses.chosen_positions(student_logits, teacher_logits, tokens, 1.0, score, "reverse_kl")
    torch.testing.assert_close(everywhere, whole.masked_fill(~mask, 0.0))


SEQUENCE_CASES = [(name, {}) for name in SEQUENCE] + [
    ("policy_gradient", {"discount": 0.7}),
    ("policy_gradient", {"baseline": True}),
    ("policy_gradient", {"early": 0.5}),
    ("chosen_positions", {"share": 0.5, "score": "soft_or", "divergence": "reverse_kl"}),
]
ROWS_MASK = torch.tensor([[False, True, True, True], [True, False, False, False], [False] * 4])


def reduced(name, hyper, own, other, tokens):
    return losses.masked_mean(losses.per_token_loss(name, own, other, tokens, **hyper), tokens.mask)


@pytest.mark.parametrize("garbage", [math.nan, math.inf, -math.inf, 1e30])
@pytest.mark.parametrize("name, hyper", SEQUENCE_CASES)
def test_garbage_outside_the_mask_changes_nothing(name, hyper, garbage):
    """nan and inf logits, and ids of no token: the same loss and, at every position, the same finite gradient."""
    rows, tokens = (
        [random_logits(3, 4, 5), random_logits(3, 4, 5, seed=1)],
        random_tokens(3, 4, vocab_size=5)._replace(mask=ROWS_MASK),
    )
    clean = value_and_grad(lambda logits: reduced(name, hyper, logits, rows[1], tokens), rows[0])
    assert clean[1][ROWS_MASK].any() and not clean[1][~ROWS_MASK].any()
    dirty = [x.masked_fill(~ROWS_MASK[..., None], garbage) for x in rows]
    nobody = tokens._replace(
        targets=tokens.targets.masked_fill(~ROWS_MASK, -100), by_teacher=tokens.by_teacher ^ ~ROWS_MASK
    )
    for found in (
        value_and_grad(lambda logits: reduced(name, hyper, logits, dirty[1], nobody), dirty[0]),
        value_and_grad(lambda logits: reduced(name, hyper, logits, rows[1], nobody), dirty[0]),
        value_and_grad(lambda logits: reduced(name, hyper, logits, dirty[1], tokens), rows[0]),
    ):
        assert torch.equal(found[0], clean[0]) and torch.equal(found[1], clean[1])


@pytest.mark.parametrize("name, hyper", SEQUENCE_CASES)
def test_garbage_features_reach_no_head(name, hyper, monkeypatch):
    """HiddenStates, with nan features outside the mask: the head's gradient is that of clean ones."""
    monkeypatch.setattr(losses, "by_chunks", lambda *inputs, chunked=losses.by_chunks: chunked(*inputs, at_once=23))
    *parts, ids = two_heads()
    tokens, gradients = tokens_of(ids)._replace(mask=ROWS_MASK), []
    for garbage in (0.5, math.nan):
        features, teacher_features = (x.masked_fill(~ROWS_MASK[..., None], garbage) for x in (parts[0], parts[2]))
        leaves = [features.requires_grad_(), parts[1].clone().requires_grad_()]
        loss = reduced(
            name, hyper, losses.HiddenStates(*leaves), losses.HiddenStates(teacher_features, parts[3]), tokens
        )
        gradients.append(torch.autograd.grad(loss, leaves))
    assert gradients[0][1].any() and all(torch.equal(one, other) for one, other in zip(*gradients))


@pytest.mark.parametrize("name, hyper", SEQUENCE_CASES)
@pytest.mark.parametrize("left", [0, 2])
def test_padding_changes_nothing(name, hyper, left):
    """More columns on either side, more rows without a token: the same values and gradients on the real ones."""
    rows, tokens = (
        [random_logits(3, 4, 5), random_logits(3, 4, 5, seed=1)],
        random_tokens(3, 4, vocab_size=5)._replace(mask=ROWS_MASK),
    )

    def padded(x, filler):
        wide = filler.clone()
        wide[:3, left : left + 4] = x
        return wide

    wide_rows = [padded(x, random_logits(4, 8, 5, seed=9)) for x in rows]
    wide_tokens = Tokens(*(padded(x, torch.zeros(4, 8, dtype=x.dtype)) for x in tokens))
    narrow, wide = both(name, *rows, tokens, **hyper), both(name, *wide_rows, wide_tokens, **hyper)
    for one, other in zip(narrow, wide):
        torch.testing.assert_close(other[:3, left : left + 4][ROWS_MASK], one[ROWS_MASK])
    assert not wide[0][~wide_tokens.mask].any() and not wide[1][~wide_tokens.mask].any()


@pytest.mark.parametrize("name, hyper", SEQUENCE_CASES)
def test_rows_are_independent(name, hyper):
    """A row alone gives the numbers that it gives in a batch; its positions are not independent of each other."""
    rows, tokens = [random_logits(3, 4, 5), random_logits(3, 4, 5, seed=1)], random_tokens(3, 4, vocab_size=5)
    per_token = losses.per_token_loss(name, *rows, tokens, **hyper)
    alone = losses.per_token_loss(name, *(x[1:2] for x in rows), Tokens(*(x[1:2] for x in tokens)), **hyper)
    torch.testing.assert_close(alone, per_token[1:2])
    first = losses.per_token_loss(name, *(x[:, :1] for x in rows), Tokens(*(x[:, :1] for x in tokens)), **hyper)
    assert torch.allclose(first, per_token[:, :1]) == (name == "policy_gradient" and "discount" not in hyper)


@pytest.mark.parametrize("name, hyper", SEQUENCE_CASES)
def test_no_token_gives_zero_with_a_graph(name, hyper):
    """A batch without a masked position: loss 0, and a backward pass with gradient 0."""
    rows, tokens = [random_logits(2, 3, 5), random_logits(2, 3, 5, seed=1)], random_tokens(2, 3, vocab_size=5)
    nothing = tokens._replace(mask=torch.zeros(2, 3, dtype=torch.bool))
    value, gradient = value_and_grad(lambda logits: reduced(name, hyper, logits, rows[1], nothing), rows[0])
    assert value.item() == 0 and not gradient.any()


# ---------------------------------------------------------------------------------------------------------------------
# Logits that somebody has filtered.


@pytest.mark.parametrize("side", ["student", "teacher"])
@pytest.mark.parametrize(
    "name",
    [*losses.DIVERGENCES, *losses.MATCHING_LOSSES, "cross_entropy", *losses.TOKEN_LOSSES, *losses.SEQUENCE_LOSSES],
)
def test_minus_infinity_is_named_or_does_no_harm(name, side):
    """One logit of -inf on either side: a ValueError that says what to give, or finite values
    and gradients; never a nan."""
    noise = torch.Generator().manual_seed(5)
    student_logits, teacher_logits = (torch.randn(1, 2, 12, generator=noise, dtype=torch.float64) for _ in range(2))
    (student_logits if side == "student" else teacher_logits)[0, 0, 5] = float("-inf")
    both = torch.ones(1, 2, dtype=torch.bool)
    tokens = losses.Tokens(torch.tensor([[0, 1]]), both, torch.tensor([[True, False]]))
    try:
        value = losses.per_token_loss(name, student_logits.requires_grad_(), teacher_logits, tokens)
    except ValueError as error:
        assert "found -inf" in str(error)
        return
    value.sum().backward()
    assert value.isfinite().all() and student_logits.grad.isfinite().all()
    assert name not in losses.DIVERGENCES  # whose formulas have no place for it


def test_random_sampling_names_minus_infinity():
    """The same for the loss that is in no table."""
    student_logits = torch.tensor([[[0.0, float("-inf"), 1.0]]])
    with pytest.raises(ValueError, match="found -inf"):
        losses.random_sampling_kd(student_logits, torch.tensor([[[0, 1]]]), torch.full((1, 1, 2), 0.5))
