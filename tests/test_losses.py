"""The laws of losses.py: closed forms on three tokens, identities of the divergences, and the one reduction.

Everything is checked in float64 where a number or a gradient is compared. Whatever is parametrised over NAMES holds for
every row of the table of divergences, so that a new row is tested the moment it is added.
"""

import inspect
import math
import re

import adapters
import pytest
import torch
import torch.nn.functional as F

import losses

NAMES = adapters.divergence_names()
# The bounds at the default beta .5 and alpha .1; a divergence that is not named here is unbounded.
BOUNDS = {
    "generalized_jsd": math.log(2),
    "skew_forward_kl": -math.log(0.1),
    "skew_reverse_kl": -math.log(0.1),
    "total_variation": 1,
    "squared_error": 2,
}


def log_of(*probs):
    """Probabilities as (1, 1, V) logits in float64."""
    return torch.tensor(probs, dtype=torch.float64).log()[None, None]


TEACHER, STUDENT = log_of(0.6, 0.3, 0.1), log_of(0.2, 0.5, 0.3)


def random_logits(*shape, seed=0, scale=3.0, dtype=torch.float64):
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def value_and_grad(function, student_logits):
    """(the value, d sum(value) / d student_logits)."""
    leaf = student_logits.detach().clone().requires_grad_()
    value = function(leaf)
    (gradient,) = torch.autograd.grad(value.sum(), leaf)
    return value.detach(), gradient


def both(name, student_logits, teacher_logits, **hyper):
    return value_and_grad(lambda logits: adapters.divergence(name, logits, teacher_logits, **hyper), student_logits)


# ---------------------------------------------------------------------------------------------------------------------
# Closed forms.


@pytest.mark.parametrize(
    "name, hyper, expected, expected_gradient",
    [
        ("forward_kl", {}, 0.396058, (-0.4, 0.2, 0.2)),
        ("reverse_kl", {}, 0.365274, (-0.292777, 0.072776, 0.220001)),
        # d/dz of sum (s - t)^2 is 2 s_i ((s_i - t_i) - sum_j s_j (s_j - t_j)), with sum_j s_j (s_j - t_j) = .08
        ("squared_error", {}, 0.24, (-0.192, 0.12, 0.072)),
        ("generalized_jsd", {"beta": 0.1}, 0.034761, (-0.033654, 0.016280, 0.017374)),
        ("generalized_jsd", {"beta": 0.5}, 0.091121, (-0.078773, 0.032140, 0.046632)),
        ("generalized_jsd", {"beta": 0.9}, 0.032632, (-0.026435, 0.007709, 0.018726)),
        ("generalized_jsd", {}, 0.091121, (-0.078773, 0.032140, 0.046632)),
        ("skew_forward_kl", {"alpha": 0.1}, 0.305811, (-0.284464, 0.132589, 0.151875)),
        ("skew_forward_kl", {"alpha": 0.5}, 0.087660, None),
        ("skew_forward_kl", {"alpha": 0.0}, 0.396058, (-0.4, 0.2, 0.2)),
        ("skew_forward_kl", {}, 0.305811, (-0.284464, 0.132589, 0.151875)),
        ("skew_reverse_kl", {"alpha": 0.1}, 0.292107, (-0.239435, 0.079099, 0.160336)),
        ("skew_reverse_kl", {"alpha": 0.5}, 0.094582, None),
        ("skew_reverse_kl", {"alpha": 0.0}, 0.365274, (-0.292777, 0.072776, 0.220001)),
        ("skew_reverse_kl", {}, 0.292107, (-0.239435, 0.079099, 0.160336)),
        ("total_variation", {}, 0.4, (-0.16, 0.10, 0.06)),
        ("skew_reverse_kl", {"alpha": 0.1, "detach_mixture": True}, 0.292107, (-0.264345, 0.077090, 0.187255)),
        ("alpha_beta", {"alpha": 0.2, "beta": 0.7}, 0.414802, (-0.349706, 0.107560, 0.242146)),
        ("alpha_beta", {}, 0.414802, (-0.349706, 0.107560, 0.242146)),
        ("alpha_beta", {"alpha": 0.5, "beta": 0.5}, 0.372346, None),
        ("alpha_beta", {"alpha": 1, "beta": 1}, 0.12, None),
        ("alpha_beta", {"alpha": 1, "beta": 0}, 0.396058, (-0.4, 0.2, 0.2)),
        ("alpha_beta", {"alpha": 0, "beta": 1}, 0.365274, (-0.292777, 0.072776, 0.220001)),
        # With the limits' squared denominators; 1 / alpha in their place would give half of it at (.5, 0).
        ("alpha_beta", {"alpha": 0, "beta": 0}, 1.337420, None),
        ("alpha_beta", {"alpha": 0.5, "beta": 0}, 0.701542, None),
        ("alpha_beta", {"alpha": 0, "beta": 0.5}, 0.689274, None),
        ("alpha_beta", {"alpha": 0.5, "beta": -0.5}, 1.357642, None),
        ("amid", {}, 0.110490, None),
        ("amid", {"alpha": -1, "weight": 0.1, "base": "forward_kl"}, 0.305811, (-0.284464, 0.132589, 0.151875)),
        ("entropy_gated_kl", {}, 0.396058 + 0.365274, (-0.692777, 0.272776, 0.420001)),
        ("entropy_gated_kl", {"threshold": 0.89}, 0.396058 + 0.365274, None),
        ("entropy_gated_kl", {"threshold": 0.90}, 0.365274, (-0.292777, 0.072776, 0.220001)),
    ],
)
def test_three_token_example(name, hyper, expected, expected_gradient):
    """Teacher (.6, .3, .1) against student (.2, .5, .3) gives the numbers worked out by hand, value and gradient."""
    value, gradient = both(name, STUDENT, TEACHER, **hyper)
    assert value.item() == pytest.approx(expected, abs=1e-6)
    if expected_gradient is not None:
        assert gradient.flatten().tolist() == pytest.approx(expected_gradient, abs=1e-6)


def test_entropies_of_the_example():
    """H(teacher), H(student), and cross-entropy = entropy + forward KL; entropy of a uniform row is ln V."""
    assert losses.entropy(TEACHER).item() == pytest.approx(0.897946, abs=1e-6)
    assert losses.entropy(STUDENT).item() == pytest.approx(1.029653, abs=1e-6)
    total = losses.entropy(TEACHER) + adapters.divergence("forward_kl", STUDENT, TEACHER)
    assert total.item() == pytest.approx(1.294004, abs=1e-6)
    assert losses.entropy(torch.full((2, 3, 7), -5.0)).flatten().tolist() == pytest.approx([math.log(7)] * 6)
    assert losses.entropy(torch.tensor([[[1e4, -1e4, 0.0]]])).item() == 0
    assert torch.equal(losses.entropy(TEACHER.half()), losses.entropy(TEACHER.half().float()))


def test_acceptance_of_lossless_decoding_is_one_minus_total_variation():
    """sum_v min(teacher, student) = 1 - TVD, .6 for the example."""
    student_logits, teacher_logits = random_logits(2, 5, 9), random_logits(2, 5, 9, seed=1)
    overlap = torch.minimum(student_logits.softmax(-1), teacher_logits.softmax(-1)).sum(-1)
    assert torch.allclose(1 - adapters.divergence("total_variation", student_logits, teacher_logits), overlap)
    assert 1 - adapters.divergence("total_variation", STUDENT, TEACHER).item() == pytest.approx(0.6)


def test_forward_kl_agrees_with_torch():
    """forward_kl = F.kl_div(log student, log teacher): torch takes its arguments the other way round."""
    student_logits, teacher_logits = random_logits(2, 5, 9), random_logits(2, 5, 9, seed=1)
    peer = F.kl_div(student_logits.log_softmax(-1), teacher_logits.log_softmax(-1), log_target=True, reduction="none")
    assert torch.allclose(adapters.divergence("forward_kl", student_logits, teacher_logits), peer.sum(-1))


@pytest.mark.parametrize("name", NAMES)
def test_values_agree_with_probabilities_written_out(name):
    """On random rows each divergence equals its definition, written with plain probabilities and loops."""
    student_logits, teacher_logits = random_logits(2, 3, 6, scale=1.5), random_logits(2, 3, 6, seed=1, scale=1.5)

    def kl(first, second):
        return sum(a * math.log(a / b) for a, b in zip(first, second))

    def mix(weight, first, second):
        return [weight * a + (1 - weight) * b for a, b in zip(first, second)]

    def ab(first, second, alpha, beta):
        total = alpha + beta
        terms = [
            x**alpha * y**beta - alpha / total * x**total - beta / total * y**total for x, y in zip(first, second)
        ]
        return -sum(terms) / (alpha * beta)

    def power_mean(first, second, power):
        raw = [(a**power / 2 + b**power / 2) ** (1 / power) for a, b in zip(first, second)]
        return [x / sum(raw) for x in raw]

    definitions = {
        "forward_kl": lambda s, t: kl(t, s),
        "reverse_kl": lambda s, t: kl(s, t),
        "generalized_jsd": lambda s, t: 0.5 * kl(t, mix(0.5, t, s)) + 0.5 * kl(s, mix(0.5, t, s)),
        "skew_forward_kl": lambda s, t: kl(t, mix(0.1, t, s)),
        "skew_reverse_kl": lambda s, t: kl(s, mix(0.1, s, t)),
        "total_variation": lambda s, t: sum(abs(a - b) for a, b in zip(s, t)) / 2,
        "squared_error": lambda s, t: sum((a - b) ** 2 for a, b in zip(s, t)),
        "alpha_beta": lambda s, t: ab(t, s, 0.2, 0.7),
        "amid": lambda s, t: ab(t, power_mean(t, s, 0.25), 0.2, 0.7),
        "entropy_gated_kl": lambda s, t: kl(s, t) + (kl(t, s) if -sum(a * math.log(a) for a in t) > 0.5 else 0),
    }
    if name not in definitions:
        pytest.skip("no definition written out here for this divergence")
    per_token = adapters.divergence(name, student_logits, teacher_logits)
    for b in range(2):
        for t in range(3):
            rows = student_logits[b, t].softmax(-1).tolist(), teacher_logits[b, t].softmax(-1).tolist()
            assert per_token[b, t].item() == pytest.approx(definitions[name](*rows), abs=1e-12)


# ---------------------------------------------------------------------------------------------------------------------
# Laws of every divergence in the table.


@pytest.mark.parametrize("name", NAMES)
def test_zero_exactly_at_equality(name):
    """Student = teacher gives value 0 and gradient 0, also where all mass sits on one token."""
    one_hot = torch.tensor([[[0.0, -1e4, -1e4, -1e4]]], dtype=torch.float64)
    for logits in (random_logits(2, 5, 9), one_hot):
        value, gradient = both(name, logits, logits)
        assert value.abs().max() < 1e-12 and gradient.abs().max() < 1e-12


@pytest.mark.parametrize("name", NAMES)
def test_positive_elsewhere_and_within_its_range(name):
    """Different distributions give a positive value, never above the divergence's bound."""
    for seed in range(20):
        value = adapters.divergence(name, random_logits(3, 4, 8, seed=seed), random_logits(3, 4, 8, seed=seed + 100))
        assert value.min() > 0 and value.max() <= BOUNDS.get(name, math.inf)


@pytest.mark.parametrize("name", NAMES)
def test_shift_invariance_and_gradients_that_sum_to_zero(name):
    """Adding a constant to the logits of a position changes nothing; hence every gradient sums to 0 over V."""
    student_logits, teacher_logits = random_logits(2, 5, 9), random_logits(2, 5, 9, seed=1)
    value, gradient = both(name, student_logits, teacher_logits)
    shift = random_logits(2, 5, 1, seed=2, scale=100.0)
    shifted_value, shifted_gradient = both(name, student_logits + shift, teacher_logits - 2 * shift)
    assert torch.allclose(value, shifted_value) and torch.allclose(gradient, shifted_gradient)
    assert gradient.sum(-1).abs().max() < 1e-12 and gradient.abs().max() > 1e-3


@pytest.mark.parametrize("name", NAMES)
def test_gradcheck(name):
    """Autograd's gradient is the derivative (central differences, float64)."""
    student_logits, teacher_logits = random_logits(2, 3, 5, scale=1.0), random_logits(2, 3, 5, seed=1, scale=1.0)
    assert torch.autograd.gradcheck(
        lambda logits: adapters.divergence(name, logits, teacher_logits), student_logits.requires_grad_()
    )


@pytest.mark.parametrize("name", NAMES)
def test_gradient_reaches_the_student_only(name):
    """The teacher is detached inside: its leaf gets no gradient, the student's does."""
    student_logits, teacher_logits = (random_logits(2, 3, 5, seed=seed).requires_grad_() for seed in (0, 1))
    adapters.divergence(name, student_logits, teacher_logits).sum().backward()
    assert teacher_logits.grad is None and student_logits.grad.abs().sum() > 0
    assert not adapters.divergence(name, student_logits.detach(), teacher_logits).requires_grad


@pytest.mark.parametrize("name", NAMES)
def test_one_value_per_position_independent_of_the_others(name):
    """(B, T, V) -> (B, T); a position alone, a permuted vocabulary and a permuted batch give the same numbers."""
    student_logits, teacher_logits = random_logits(3, 4, 6), random_logits(3, 4, 6, seed=1)
    per_token = adapters.divergence(name, student_logits, teacher_logits)
    assert per_token.shape == (3, 4)
    alone = adapters.divergence(name, student_logits[1:2, 2:3], teacher_logits[1:2, 2:3])
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    permuted = adapters.divergence(name, student_logits[..., order], teacher_logits[..., order])
    assert torch.allclose(alone, per_token[1:2, 2:3]) and torch.allclose(permuted, per_token)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", NAMES)
def test_half_precision_is_raised_before_any_arithmetic(name, dtype):
    """16-bit logits give float32 values, bit-equal to those of the same logits in float32, also under autocast."""
    student_logits, teacher_logits = random_logits(2, 3, 300).to(dtype), random_logits(2, 3, 300, seed=1).to(dtype)
    value, gradient = both(name, student_logits, teacher_logits)
    wide_value, wide_gradient = both(name, student_logits.float(), teacher_logits.float())
    assert value.dtype == torch.float32 and torch.equal(value, wide_value)
    assert gradient.dtype == dtype and torch.equal(gradient, wide_gradient.to(dtype))
    mixed = adapters.divergence(name, student_logits.float(), teacher_logits)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        under_autocast = adapters.divergence(name, student_logits, teacher_logits)
    assert torch.equal(mixed, wide_value) and torch.equal(under_autocast, wide_value)


@pytest.mark.parametrize("name", NAMES)
def test_float32_is_close_to_float64(name):
    """float32 inputs keep float32, float64 keeps float64, and they agree to rounding."""
    student_logits, teacher_logits = random_logits(2, 3, 300), random_logits(2, 3, 300, seed=1)
    wide = adapters.divergence(name, student_logits, teacher_logits)
    narrow = adapters.divergence(name, student_logits.float(), teacher_logits.float())
    assert wide.dtype == torch.float64 and narrow.dtype == torch.float32
    assert torch.allclose(narrow.double(), wide, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", NAMES)
def test_huge_logits_stay_finite(name, dtype):
    """Logits of +-1e4, agreeing or opposed, give finite values and gradients."""
    peaks = torch.tensor([[[1e4, -1e4, 0.0, 1.0], [-1e4, 1e4, 0.0, 1.0], [1e4, 1e4, -1e4, -1e4]]], dtype=dtype)
    for teacher_logits in (peaks, peaks.flip(1), peaks.flip(-1)):
        value, gradient = both(name, peaks, teacher_logits)
        assert value.isfinite().all() and gradient.isfinite().all() and value.min() >= 0


@pytest.mark.parametrize("name", NAMES)
def test_real_vocabulary(name):
    """V = 50,257: finite, positive, and float32 agrees with float64 to 1e-4."""
    student_logits, teacher_logits = random_logits(1, 2, 50257), random_logits(1, 2, 50257, seed=1)
    value, gradient = both(name, student_logits.float(), teacher_logits.float())
    exact = adapters.divergence(name, student_logits, teacher_logits)
    assert torch.allclose(value.double(), exact, rtol=1e-4) and gradient.isfinite().all() and value.min() > 0


@pytest.mark.parametrize("name", NAMES)
def test_vocabularies_must_match(name):
    """Different shapes are a programmer's error, not a broadcast."""
    with pytest.raises(AssertionError, match="vocabulary"):
        adapters.divergence(name, random_logits(1, 3, 5), random_logits(1, 3, 1))


# ---------------------------------------------------------------------------------------------------------------------
# Symmetries, limits, inequalities.


def test_symmetries():
    """FKL(a,b) = RKL(b,a); JSD_b(p,q) = JSD_1-b(q,p); SKL and SRKL swap roles; TVD and JSD_.5 are symmetric."""
    one, other = random_logits(2, 5, 9), random_logits(2, 5, 9, seed=1)
    pairs = [
        (("forward_kl", {}), ("reverse_kl", {})),
        (("generalized_jsd", {"beta": 0.3}), ("generalized_jsd", {"beta": 0.7})),
        (("generalized_jsd", {"beta": 0.5}), ("generalized_jsd", {"beta": 0.5})),
        (("skew_forward_kl", {"alpha": 0.2}), ("skew_reverse_kl", {"alpha": 0.2})),
        (("total_variation", {}), ("total_variation", {})),
    ]
    for (name, hyper), (swapped_name, swapped_hyper) in pairs:
        swapped = adapters.divergence(swapped_name, other, one, **swapped_hyper)
        assert torch.allclose(adapters.divergence(name, one, other, **hyper), swapped), name
    forward, backward = adapters.divergence("forward_kl", one, other), adapters.divergence("forward_kl", other, one)
    assert not torch.allclose(forward, backward)


def test_limits_in_alpha_and_beta():
    """SKL -> FKL and SRKL -> RKL as alpha -> 0, both -> 0 as alpha -> 1; JSD/beta -> FKL, JSD/(1-beta) -> RKL."""
    tiny = 1e-7

    def value(name, **hyper):
        return adapters.divergence(name, STUDENT, TEACHER, **hyper).item()

    assert value("skew_forward_kl", alpha=tiny) == pytest.approx(value("forward_kl"), abs=1e-5)
    assert value("skew_reverse_kl", alpha=tiny) == pytest.approx(value("reverse_kl"), abs=1e-5)
    assert value("skew_forward_kl", alpha=1 - tiny) == pytest.approx(0, abs=1e-9)
    assert value("skew_reverse_kl", alpha=1 - tiny) == pytest.approx(0, abs=1e-9)
    assert value("generalized_jsd", beta=tiny) / tiny == pytest.approx(value("forward_kl"), abs=1e-5)
    assert value("generalized_jsd", beta=1 - tiny) / tiny == pytest.approx(value("reverse_kl"), abs=1e-5)


AB_CASES = [
    (0.2, 0.7), (0.5, 0.5), (1, 1), (1, 0), (0, 1), (0.5, 0), (0, 0.5), (0, 0), (0.5, -0.5), (-0.3, 0.8), (1.5, 0.4),
]


@pytest.mark.parametrize("alpha, beta", AB_CASES)
def test_alpha_beta_is_a_divergence_at_every_parameter(alpha, beta):
    """AB(a, b) = AB(b, a) with the models swapped; zero with zero gradient where equal; its gradient the derivative."""
    one, other = random_logits(2, 5, 9, scale=1.0), random_logits(2, 5, 9, seed=1, scale=1.0)
    value, gradient = both("alpha_beta", one, other, alpha=alpha, beta=beta)
    torch.testing.assert_close(value, adapters.divergence("alpha_beta", other, one, alpha=beta, beta=alpha))
    assert value.min() > 0
    value, gradient = both("alpha_beta", one, one, alpha=alpha, beta=beta)
    assert value.abs().max() < 1e-12 and gradient.abs().max() < 1e-12
    assert torch.autograd.gradcheck(
        lambda logits: losses.alpha_beta(logits, other, alpha, beta), one.requires_grad_(), rtol=1e-4
    )


@pytest.mark.parametrize("alpha, beta, near", [
    (0.5, 0.0, (0.5, 2e-3)), (0.0, 0.5, (2e-3, 0.5)), (1.0, 0.0, (1.0, 2e-3)), (0.0, 1.0, (2e-3, 1.0)),
    (0.5, -0.5, (0.5, -0.498)), (0.0, 0.0, (2e-3, 2e-3)), (0.5, 0.0, (0.5, 2e-4)), (0.5, -0.5, (0.5, -0.4998)),
])  # fmt: skip
def test_alpha_beta_approaches_its_limits(alpha, beta, near):
    """The special cases are where the formula tends to, on random rows; nearer than .001 they are taken."""
    student_logits, teacher_logits = random_logits(2, 5, 9, scale=1.0), random_logits(2, 5, 9, seed=1, scale=1.0)
    limit = adapters.divergence("alpha_beta", student_logits, teacher_logits, alpha=alpha, beta=beta)
    value = adapters.divergence("alpha_beta", student_logits, teacher_logits, alpha=near[0], beta=near[1])
    torch.testing.assert_close(value, limit, rtol=0.02, atol=0)
    assert torch.equal(value, limit) == (abs(near[0] - alpha) + abs(near[1] - beta) < 1e-3)


@pytest.mark.parametrize("alpha, beta", [case for case in AB_CASES if min(case) >= 0])
def test_alpha_beta_near_and_far(alpha, beta):
    """float32 keeps its digits where both models nearly agree; logits of +-1e4 give finite values and gradients."""
    teacher_logits = random_logits(2, 3, 50, scale=1.0)
    near = teacher_logits + random_logits(2, 3, 50, seed=1, scale=1e-2)
    exact = adapters.divergence("alpha_beta", near, teacher_logits, alpha=alpha, beta=beta)
    narrow = adapters.divergence("alpha_beta", near.float(), teacher_logits.float(), alpha=alpha, beta=beta)
    torch.testing.assert_close(narrow.double(), exact, rtol=2e-2, atol=1e-7)
    peaks = torch.tensor([[[1e4, -1e4, 0.0, 1.0], [-1e4, 1e4, 0.0, 1.0], [1e4, 1e4, -1e4, -1e4]]])
    value, gradient = both("alpha_beta", peaks, peaks.flip(1), alpha=alpha, beta=beta)
    assert value.isfinite().all() and gradient.isfinite().all() and value.max() > 0


ORDERS = ("teacher_assistant", "student_assistant", "assistant_teacher", "assistant_student")


@pytest.mark.parametrize("alpha, expected", [
    (-1, (0.4, 0.4, 0.2)), (1, (0.381966, 0.427051, 0.190983)), (3, (0.363636, 0.454545, 0.181818)),
    (1.0005, (0.381966, 0.427051, 0.190983)), (1.002, (0.381966, 0.427051, 0.190983)),
    (0.998, (0.381966, 0.427051, 0.190983)),
])  # fmt: skip
def test_the_assistant_of_the_example(alpha, expected):
    """Arithmetic, geometric and harmonic mean of teacher and student, halves; around 1 nothing jumps."""
    assistant = losses.alpha_mixture(TEACHER, STUDENT, alpha, 0.5).exp().flatten()
    assert assistant.tolist() == pytest.approx(expected, abs=1e-4 if alpha not in (-1, 1, 3) else 1e-6)
    torch.testing.assert_close(assistant.sum(), torch.tensor(1.0).double())


def test_the_assistant_keeps_its_digits_around_the_geometric_mean():
    """float32 at alpha 1 - 1e-6: the geometric mean, and not what a root of the two-millionth
    degree makes of rounding."""
    rows = TEACHER.float(), STUDENT.float()
    for alpha in (1 - 1e-6, 1 + 1e-6):
        torch.testing.assert_close(
            losses.alpha_mixture(*rows, alpha, 0.3), losses.alpha_mixture(*rows, 1, 0.3), rtol=1e-5, atol=1e-5
        )


@pytest.mark.parametrize("base", ["alpha_beta", "forward_kl"])
@pytest.mark.parametrize("alpha", [-1, 0.5, 1, 3])
def test_amid_in_every_order(alpha, base):
    """Each order is the base divergence of the two that it names, gradients through the assistant; 0 where equal."""
    student_logits, teacher_logits = random_logits(2, 3, 5, scale=1.0), random_logits(2, 3, 5, seed=1, scale=1.0)
    student, teacher = student_logits.log_softmax(-1), teacher_logits.log_softmax(-1)
    rows = {"teacher": teacher, "student": student, "assistant": losses.alpha_mixture(teacher, student, alpha, 0.3)}
    for order in ORDERS:
        hyper = {"alpha": alpha, "weight": 0.3, "order": order, "base": base}
        first, second = (rows[model] for model in order.split("_"))
        expected = adapters.divergence(base, second, first)  # these take the first as the teacher
        torch.testing.assert_close(adapters.divergence("amid", student_logits, teacher_logits, **hyper), expected)
        assert torch.autograd.gradcheck(
            lambda logits, loss_kwargs=hyper: losses.amid(logits, teacher_logits, **hyper),
            student_logits.clone().requires_grad_()
        )
        value, gradient = both("amid", teacher_logits, teacher_logits, **hyper)
        assert value.abs().max() < 1e-12 and gradient.abs().max() < 1e-12
        peaks = torch.tensor([[[1e4, -1e4, 0.0, 1.0], [-1e4, 1e4, 0.0, 1.0]]])
        value, gradient = both("amid", peaks, peaks.flip(1), **hyper)
        assert value.isfinite().all() and gradient.isfinite().all() and value.min() >= 0


@pytest.mark.parametrize("weight", [0.1, 0.5, 0.9])
def test_amid_contains_skew_kl_and_taid(weight):
    """alpha -1: skew forward KL, value and gradient; alpha 1, assistant_student:
    TAID's value, with another gradient."""
    student_logits, teacher_logits = random_logits(2, 5, 9), random_logits(2, 5, 9, seed=1)
    arithmetic = {"alpha": -1, "weight": weight, "order": "teacher_assistant", "base": "forward_kl"}
    ours, theirs = (
        both("amid", student_logits, teacher_logits, **arithmetic),
        both("skew_forward_kl", student_logits, teacher_logits, alpha=weight),
    )
    torch.testing.assert_close(ours, theirs)
    geometric = {"alpha": 1, "weight": weight, "order": "assistant_student", "base": "forward_kl"}
    value, gradient = both("amid", student_logits, teacher_logits, **geometric)
    target = losses.taid_target(student_logits, teacher_logits, weight)
    torch.testing.assert_close(value, losses.forward_kl(student_logits, target))
    assert (gradient - (student_logits.softmax(-1) - target.softmax(-1))).abs().max() > 1e-3


def test_a_detached_mixture_changes_the_gradient_alone():
    """DistiLLM-2's skew reverse KL: the same value; gradient student (x - sum student x)
    with x = log(student / mix)."""
    student_logits, teacher_logits = random_logits(2, 5, 9), random_logits(2, 5, 9, seed=1)
    value, gradient = both("skew_reverse_kl", student_logits, teacher_logits, alpha=0.3)
    detached_value, detached = both("skew_reverse_kl", student_logits, teacher_logits, alpha=0.3, detach_mixture=True)
    assert torch.equal(value, detached_value) and (gradient - detached).abs().max() > 1e-3
    own, other = student_logits.softmax(-1), teacher_logits.softmax(-1)
    log_ratio = (own / (0.3 * own + 0.7 * other)).log()
    torch.testing.assert_close(detached, own * (log_ratio - (own * log_ratio).sum(-1, keepdim=True)))


@pytest.mark.parametrize(
    "name, hyper, ceiling",
    [
        ("generalized_jsd", {"beta": 0.5}, 0.693147),
        ("generalized_jsd", {"beta": 0.1}, 0.325083),
        ("skew_forward_kl", {"alpha": 0.1}, 2.302585),
        ("skew_reverse_kl", {"alpha": 0.1}, 2.302585),
        ("total_variation", {}, 1.0),
    ],
)
def test_disjoint_supports_reach_the_bound(name, hyper, ceiling):
    """Where student and teacher share no token a bounded divergence equals its bound, and does not exceed it."""
    peak = torch.tensor([[[200.0, -200.0]]], dtype=torch.float64)
    value = adapters.divergence(name, peak, -peak, **hyper).item()
    assert value == pytest.approx(ceiling, abs=1e-6)


def test_inequalities():
    """Pinsker: TVD^2 <= FKL / 2 and RKL / 2; a skew KL never exceeds its KL nor -ln alpha."""
    for seed in range(20):
        one, other = random_logits(4, 5, 6, seed=seed), random_logits(4, 5, 6, seed=seed + 50)
        value = {name: adapters.divergence(name, one, other) for name in NAMES}
        assert (value["total_variation"] ** 2 <= value["forward_kl"] / 2).all()
        assert (value["total_variation"] ** 2 <= value["reverse_kl"] / 2).all()
        assert (value["skew_forward_kl"] <= value["forward_kl"]).all()
        assert (value["skew_reverse_kl"] <= value["reverse_kl"]).all()
        for alpha in (0.01, 0.3, 0.9):
            for name in ("skew_forward_kl", "skew_reverse_kl"):
                assert adapters.divergence(name, 50 * one, 50 * other, alpha=alpha).max() <= -math.log(alpha) + 1e-9


@pytest.mark.parametrize(
    "name, hyper",
    [("generalized_jsd", {"beta": b}) for b in (0, 1, -0.1, 1.1, math.nan)]
    + [(name, {"alpha": a}) for name in ("skew_forward_kl", "skew_reverse_kl") for a in (1, -0.1, 1.1, math.nan)]
    + [("amid", {"weight": w}) for w in (0, 1, -0.1, 1.1, math.nan)]
    + [("amid", {"order": "teacher_student"}), ("amid", {"base": "reverse_kl"})]
    + [("alpha_beta", {"alpha": a}) for a in (-0.9, math.nan)],
)
def test_numbers_out_of_range_are_refused(name, hyper):
    """beta outside (0, 1) and alpha outside [0, 1) raise one line that names the value."""
    with pytest.raises(ValueError, match=str(next(iter(hyper.values())))) as caught:
        adapters.divergence(name, STUDENT, TEACHER, **hyper)
    assert "\n" not in str(caught.value)


# ---------------------------------------------------------------------------------------------------------------------
# Cross-entropy and Hinton's mixture.


def test_cross_entropy():
    """-log student(target) at every position, gradient student - onehot(target), 16-bit logits raised to float32."""
    assert losses.cross_entropy(STUDENT, torch.tensor([[0]])).item() == pytest.approx(1.609438, abs=1e-6)
    student_logits, targets = random_logits(2, 3, 5), torch.tensor([[0, 4, 2], [1, 1, 3]])
    value, gradient = value_and_grad(lambda logits: losses.cross_entropy(logits, targets), student_logits)
    by_hand = -student_logits.softmax(-1).log().gather(-1, targets[..., None])[..., 0]
    assert value.dtype == torch.float64 and torch.allclose(value, by_hand)
    assert torch.allclose(gradient, student_logits.softmax(-1) - F.one_hot(targets, 5))
    half = student_logits.half()
    value = losses.cross_entropy(half, targets)
    assert value.dtype == torch.float32 and torch.equal(value, losses.cross_entropy(half.float(), targets))
    with pytest.raises(AssertionError):
        losses.cross_entropy(student_logits, targets[:, :2])


def test_expected_cross_entropy_is_forward_kl_plus_entropy():
    """Averaged over targets drawn from the teacher, cross-entropy = forward KL + the teacher's entropy."""
    student_logits, teacher_logits = random_logits(2, 3, 5), random_logits(2, 3, 5, seed=1)
    each = torch.stack([losses.cross_entropy(student_logits, torch.full((2, 3), v)) for v in range(5)], -1)
    expected = adapters.divergence("forward_kl", student_logits, teacher_logits) + losses.entropy(teacher_logits)
    assert torch.allclose((teacher_logits.softmax(-1) * each).sum(-1), expected)


@pytest.mark.parametrize("temperature, expected", [(4, 0.432038), (100, 0.431499), (1e4, 0.431310), (1, 0.396058)])
def test_temperature_keeps_the_scale(temperature, expected):
    """T^2 KL of the example at T = 4 and 100, and its limit: the squared distance of the centred logits / 2V."""
    value, gradient = value_and_grad(
        lambda logits: losses.hinton_mixture(logits, TEACHER, torch.tensor([[0]]), 1.0, temperature), STUDENT
    )
    assert value.item() == pytest.approx(expected, abs=3e-6)
    soft_student, soft_teacher = (STUDENT / temperature).softmax(-1), (TEACHER / temperature).softmax(-1)
    assert torch.allclose(gradient, temperature * (soft_student - soft_teacher), atol=1e-9)
    centred = (STUDENT - STUDENT.mean()) - (TEACHER - TEACHER.mean())
    assert (centred**2).sum().item() / 6 == pytest.approx(0.431310, abs=1e-6)


def test_mixture_weights():
    """kd_weight 0 is cross-entropy, 1 is T^2 D, anything between lies on the line; D is whatever is passed in."""
    student_logits, teacher_logits = random_logits(2, 3, 5), random_logits(2, 3, 5, seed=1)
    targets = torch.tensor([[0, 4, 2], [1, 1, 3]])
    hard = losses.cross_entropy(student_logits, targets)
    for name in NAMES:
        divergence = losses.DIVERGENCES[name]
        soft = 9 * divergence(student_logits / 3, teacher_logits / 3)
        for weight in (0.0, 0.25, 1.0):
            mixture = losses.hinton_mixture(student_logits, teacher_logits, targets, weight, 3.0, divergence)
            assert torch.allclose(mixture, (1 - weight) * hard + weight * soft)
    half = 0.5 * hard + 0.5 * losses.forward_kl(student_logits, teacher_logits)
    assert torch.allclose(losses.hinton_mixture(student_logits, teacher_logits, targets), half)
    with pytest.raises(AssertionError, match="temperature"):
        losses.hinton_mixture(student_logits, teacher_logits, targets, temperature=0.0)


def test_mixture_reaches_the_student_only():
    """No gradient enters the teacher through the mixture."""
    student_logits, teacher_logits = (random_logits(1, 3, 5, seed=seed).requires_grad_() for seed in (0, 1))
    losses.hinton_mixture(student_logits, teacher_logits, torch.tensor([[0, 4, 2]]), temperature=2.0).sum().backward()
    assert teacher_logits.grad is None and student_logits.grad.abs().sum() > 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_mixture_softens_in_float32(dtype):
    """16-bit logits are raised before they are divided by T: dividing first would round, or overflow at small T."""
    targets = torch.zeros(2, 3, dtype=torch.long)
    student_logits, teacher_logits = random_logits(2, 3, 300).to(dtype), random_logits(2, 3, 300, seed=1).to(dtype)
    for temperature in (3.0, 1e-5):
        value = losses.hinton_mixture(student_logits, teacher_logits, targets, temperature=temperature)
        wide = losses.hinton_mixture(student_logits.float(), teacher_logits.float(), targets, temperature=temperature)
        assert value.dtype == torch.float32 and torch.equal(value, wide)


# ---------------------------------------------------------------------------------------------------------------------
# The reduction.


ROWS = torch.tensor([[1.0, 1.0, 1.0, 1.0], [5.0, 7.0, 7.0, 7.0]], dtype=torch.float64)
ROWS_MASK = torch.tensor([[True, True, True, True], [True, False, False, False]])


def test_reductions_of_the_example():
    """Rows 1 1 1 1 and 5 - - -: token mean 1.8, sequence mean 3.0, sum 9.0; token is the default."""
    assert adapters.masked_mean(ROWS, ROWS_MASK).item() == pytest.approx(1.8)
    assert losses.masked_mean(ROWS, ROWS_MASK, "token").item() == pytest.approx(1.8)
    assert losses.masked_mean(ROWS, ROWS_MASK, "sequence").item() == pytest.approx(3.0)
    assert losses.masked_mean(ROWS, ROWS_MASK, "sum").item() == pytest.approx(9.0)
    # A row without any token does not count as a row.
    empty_row = torch.tensor([[True, True, True, True], [False, False, False, False]])
    assert losses.masked_mean(ROWS, empty_row, "sequence").item() == pytest.approx(1.0)


@pytest.mark.parametrize("reduction", ["token", "sequence", "sum"])
def test_reduction_equals_a_loop(reduction):
    """Random masks: the same number as a plain Python loop."""
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        per_token = torch.randn(4, 6, generator=generator, dtype=torch.float64)
        mask = torch.rand(4, 6, generator=generator) < 0.4
        kept = [[v for v, keep in zip(*row) if keep] for row in zip(per_token.tolist(), mask.tolist())]
        flat = [v for row in kept for v in row]
        means = [sum(row) / len(row) for row in kept if row]
        expected = {"token": sum(flat) / len(flat), "sequence": sum(means) / len(means), "sum": sum(flat)}
        assert losses.masked_mean(per_token, mask, reduction).item() == pytest.approx(expected[reduction])


@pytest.mark.parametrize("garbage", [math.nan, math.inf, -math.inf, 1e30])
@pytest.mark.parametrize("reduction", ["token", "sequence", "sum"])
def test_garbage_under_the_mask_changes_nothing(reduction, garbage):
    """nan and inf at masked positions change neither the value nor the gradient, which is 0 there."""
    clean = ROWS.clone().requires_grad_()
    dirty = ROWS.masked_fill(~ROWS_MASK, garbage).requires_grad_()
    values = [losses.masked_mean(leaf, ROWS_MASK, reduction) for leaf in (clean, dirty)]
    assert values[0].item() == values[1].item()
    for value in values:
        value.backward()
    assert torch.equal(clean.grad, dirty.grad) and (dirty.grad[~ROWS_MASK] == 0).all()


@pytest.mark.parametrize("name", NAMES)
def test_garbage_logits_under_the_mask(name):
    """nan and inf logits of masked positions leave the loss, and the gradient at every kept position, as they were."""
    student_logits, teacher_logits = random_logits(2, 4, 5), random_logits(2, 4, 5, seed=1)

    def loss(student, teacher):
        return losses.masked_mean(adapters.divergence(name, student, teacher), ROWS_MASK)

    value, gradient = value_and_grad(lambda logits: loss(logits, teacher_logits), student_logits)
    for garbage in (math.nan, math.inf, 1e30):
        dirty_student, dirty_teacher = (
            logits.masked_fill(~ROWS_MASK[..., None], garbage) for logits in (student_logits, teacher_logits)
        )
        for student, teacher in ((dirty_student, teacher_logits), (student_logits, dirty_teacher)):
            dirty_value, dirty_gradient = value_and_grad(lambda logits: loss(logits, teacher), student)
            assert torch.equal(value, dirty_value) and torch.equal(gradient[ROWS_MASK], dirty_gradient[ROWS_MASK])


@pytest.mark.parametrize("name", NAMES)
def test_nan_under_the_mask_reaches_no_gradient(name):
    """Of logits that went through without_nan_outside the whole gradient is the clean one, whichever model's are nan;
    what is finite outside of the mask stays, in value and in gradient."""
    clean, outside = (random_logits(2, 4, 5, seed=seed) for seed in (0, 1)), ~ROWS_MASK[..., None]
    student_logits, teacher_logits = clean

    def gradient_of(student, teacher):
        leaf = student.clone().requires_grad_()
        student = losses.without_nan_outside(leaf * 1, ROWS_MASK)
        losses.masked_mean(adapters.divergence(name, student, teacher), ROWS_MASK).backward()
        return leaf.grad

    expected = gradient_of(student_logits, teacher_logits)
    for dirty in (0, 1):
        both = [student_logits, teacher_logits]
        both[dirty] = both[dirty].masked_fill(outside, math.nan)
        assert torch.equal(gradient_of(*both), expected)
    whole = losses.without_nan_outside((leaf := student_logits.clone().requires_grad_()) * 1, ROWS_MASK)
    assert torch.equal(whole, student_logits)
    whole.sum().backward()
    assert torch.equal(leaf.grad, torch.ones_like(leaf))


@pytest.mark.parametrize("reduction", ["token", "sequence", "sum"])
def test_nothing_to_average_gives_zero_with_a_graph(reduction):
    """An all-masked batch: loss 0, backward works, gradient 0, whatever stands under the mask."""
    per_token = torch.full((2, 3), math.nan, requires_grad=True)
    loss = losses.masked_mean(per_token, torch.zeros(2, 3, dtype=torch.bool), reduction)
    loss.backward()
    assert loss.item() == 0 and torch.equal(per_token.grad, torch.zeros(2, 3))


def test_shapes_and_names_are_checked():
    """(B, T, 1) would broadcast to (B, T, T): refused. An unknown reduction is one line."""
    with pytest.raises(AssertionError, match="mask"):
        losses.masked_mean(ROWS[..., None], ROWS_MASK)
    with pytest.raises(AssertionError, match="mask"):
        losses.masked_mean(ROWS, ROWS_MASK[:1])
    with pytest.raises(ValueError, match="token, sequence or sum") as caught:
        losses.masked_mean(ROWS, ROWS_MASK, "batchmean")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("reduction", ["token", "sequence"])
def test_padding_changes_no_gradient(reduction):
    """More padded columns: the same loss and the same gradient on the real ones, 0 on the padded ones."""
    student_logits, teacher_logits = random_logits(2, 4, 5), random_logits(2, 4, 5, seed=1)

    def loss(logits, teacher, mask):
        return losses.masked_mean(losses.forward_kl(logits, teacher), mask, reduction)

    value, gradient = value_and_grad(lambda logits: loss(logits, teacher_logits, ROWS_MASK), student_logits)
    wide = [torch.cat([x, random_logits(2, 3, 5, seed=9)], 1) for x in (student_logits, teacher_logits)]
    mask = torch.cat([ROWS_MASK, torch.zeros(2, 3, dtype=torch.bool)], 1)
    wide_value, wide_gradient = value_and_grad(lambda logits: loss(logits, wide[1], mask), wide[0])
    assert torch.allclose(value, wide_value) and torch.allclose(gradient, wide_gradient[:, :4])
    assert (wide_gradient[:, 4:] == 0).all()


def test_micro_batches_change_no_gradient():
    """Sums of micro-batches divided once by the global count give the gradient of the whole batch."""
    weight = random_logits(6, 5, scale=1.0)  # a model of one matrix
    inputs, teacher_logits = random_logits(4, 3, 6, seed=1), random_logits(4, 3, 5, seed=2)
    mask = torch.tensor([[1, 1, 1], [1, 0, 0], [1, 1, 0], [0, 0, 0]], dtype=torch.bool)

    def per_token(w, rows):
        return losses.forward_kl(inputs[rows] @ w, teacher_logits[rows])

    _, whole = value_and_grad(lambda w: losses.masked_mean(per_token(w, slice(0, 4)), mask), weight)
    parts = 0
    for rows in (slice(0, 1), slice(1, 2), slice(2, 4)):
        parts = parts + value_and_grad(
            lambda w: losses.masked_mean(per_token(w, rows), mask[rows], "sum") / mask.sum(), weight
        )[1]
    assert torch.allclose(whole, parts)


# ---------------------------------------------------------------------------------------------------------------------
# MiniLLM: a policy gradient, so its law is about the gradient, and it can be enumerated.


def tabular(logits, sequences):
    """Rows of logits for every prefix of binary sequences of length 3: logits (7, 2), one row per prefix tree node."""
    node = torch.zeros(len(sequences), 3, dtype=torch.long)
    for row, sequence in enumerate(sequences.tolist()):
        at = 0
        for t, token in enumerate(sequence):
            node[row, t] = at
            at = 2 * at + 1 + token
    return logits[node]  # (8, 3, 2)


SEQUENCES = torch.cartesian_prod(*[torch.arange(2)] * 3)  # all 8 of length 3
MASK = torch.ones(8, 3, dtype=torch.bool)


def sequence_logprob(model_rows):
    return model_rows.log_softmax(-1).gather(-1, SEQUENCES[..., None])[..., 0].sum(-1)


def test_minillm_is_the_gradient_of_the_sequences_reverse_kl():
    """V = 2, T = 3, every sequence weighted by its probability: the expected gradient is that of KL(student || teacher)
    over whole sequences; without the long part (the single step alone) it is not."""
    student_table, teacher_table = random_logits(7, 2, seed=1), random_logits(7, 2, seed=2)

    def exact(table):
        own, other = sequence_logprob(tabular(table, SEQUENCES)), sequence_logprob(tabular(teacher_table, SEQUENCES))
        return (own.exp() * (own - other)).sum()

    def expected(table):
        rows = tabular(table, SEQUENCES)
        weight = sequence_logprob(rows).exp().detach()
        per_token = losses.minillm(
            rows, tabular(teacher_table, SEQUENCES), SEQUENCES, MASK, teacher_mix=0, length_norm=False
        )
        return (weight * per_token.sum(-1)).sum()

    def single_step(table):
        rows = tabular(table, SEQUENCES)
        weight = sequence_logprob(rows).exp().detach()
        return (weight * losses.reverse_kl(rows, tabular(teacher_table, SEQUENCES)).sum(-1)).sum()

    # The chain rule of the value: the whole sequences' reverse KL is the sum of the positions',
    # each at the student's prefixes.
    (whole, _), (by_position, _) = (value_and_grad(function, student_table) for function in (exact, single_step))
    torch.testing.assert_close(by_position, whole, rtol=1e-12, atol=0)
    gradients = [value_and_grad(function, student_table)[1] for function in (exact, expected, single_step)]
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-9, atol=1e-12)
    assert (gradients[2] - gradients[0]).abs().max() > 0.01


@pytest.mark.parametrize("garbage", [math.nan, math.inf, 1e30])
def test_minillm_under_the_mask(garbage):
    """Whatever either model says outside the mask, the loss and the whole gradient, of a head too,
    are the same bits."""
    hidden, head = random_logits(2, 4, 3), random_logits(5, 3, seed=1)
    teacher_logits, targets = random_logits(2, 4, 5, seed=2), torch.arange(8).view(2, 4) % 5

    def loss(head, hidden, teacher_logits):
        return losses.masked_mean(losses.minillm(hidden @ head.T, teacher_logits, targets, ROWS_MASK), ROWS_MASK)

    value, gradient = value_and_grad(lambda head: loss(head, hidden, teacher_logits), head)
    outside = ~ROWS_MASK[..., None]
    dirty, dirty_gradient = value_and_grad(
        lambda head: loss(head, hidden, teacher_logits.masked_fill(outside, garbage)), head
    )
    assert gradient.abs().sum() > 0 and torch.equal(value, dirty) and torch.equal(gradient, dirty_gradient)


def test_minillm_looks_only_ahead():
    """Rewards 1, 2, 3 (and a fourth position outside the mask):
    5, 3, 0 as sums of what comes later, 2.5, 3, 0 as means."""
    teacher_logprob = torch.tensor([1.0, 2.0, 3.0, 9.0]) - 12
    student_logits = torch.zeros(1, 4, 2, dtype=torch.float64)
    logit = (teacher_logprob + math.log(0.5)).exp()
    teacher_logits = torch.stack([logit.log(), (1 - logit).log()], -1)[None].double()
    targets, mask = torch.zeros(1, 4, dtype=torch.long), torch.tensor([[True, True, True, False]])
    for length_norm, later in ((False, (5.0, 3.0, 0.0)), (True, (2.5, 3.0, 0.0))):
        per_token = losses.minillm(
            student_logits, teacher_logits, targets, mask, teacher_mix=0, length_norm=length_norm
        )
        long_part = (losses.reverse_kl(student_logits, teacher_logits) - per_token)[0, :3] / math.log(0.5)
        # Every reward carries the same -12, once per summand: a teacher cannot give more than probability 1.
        left = torch.tensor([2.0, 1.0, 0.0]) if not length_norm else torch.tensor([1.0, 1.0, 0.0])
        torch.testing.assert_close(
            long_part + 12 * left, torch.tensor(later, dtype=torch.float64), rtol=1e-5, atol=1e-5
        )


def test_minillm_weights_what_the_mixture_wrote():
    """w = student / (m teacher + (1 - m) student), at most 1 / (1 - m), constant for the gradient, on both parts."""
    student_logits, teacher_logits = random_logits(2, 4, 5, seed=1), random_logits(2, 4, 5, seed=2)
    targets, mask = (
        torch.randint(0, 5, (2, 4), generator=torch.Generator().manual_seed(3)),
        torch.ones(2, 4, dtype=torch.bool),
    )
    own, other = (rows.softmax(-1).gather(-1, targets[..., None])[..., 0] for rows in (student_logits, teacher_logits))
    weight = own / (0.3 * other + 0.7 * own)
    assert weight.max() <= 1 / 0.7
    results = [
        value_and_grad(lambda logits: losses.minillm(logits, teacher_logits, targets, mask, teacher_mix=mix),
                       student_logits)
        for mix in (0, 0.3)
    ]
    torch.testing.assert_close(results[1][0], weight * results[0][0])
    torch.testing.assert_close(results[1][1], weight[..., None] * results[0][1])


def test_minillm_moves_the_student_only():
    """No gradient to the teacher, none from positions outside the mask to those inside."""
    student_logits, teacher_logits = (
        random_logits(1, 4, 3, seed=1).requires_grad_(),
        random_logits(1, 4, 3, seed=2).requires_grad_(),
    )
    targets, mask = torch.tensor([[0, 1, 2, 0]]), torch.tensor([[True, True, False, False]])
    masked = losses.masked_mean(losses.minillm(student_logits, teacher_logits, targets, mask), mask)
    own, other = torch.autograd.grad(masked, (student_logits, teacher_logits), allow_unused=True)
    assert other is None and bool(own[0, :2].any()) and not bool(own[0, 2:].any())
    with torch.no_grad():
        student_logits[0, 2:] = 40.0
    assert torch.equal(losses.masked_mean(losses.minillm(student_logits, teacher_logits, targets, mask), mask), masked)


# ---------------------------------------------------------------------------------------------------------------------
# Large vocabularies: the same loss without the logits of a whole batch, and the buckets of a cached teacher.

PER_TOKEN = {name: (lambda own, other, ids, name=name: adapters.divergence(name, own, other)) for name in NAMES} | {
    "cross_entropy": lambda own, other, ids: losses.cross_entropy(own, ids),
    "softened": lambda own, other, ids: losses.forward_kl(losses.soften(own, 3.0), losses.soften(other, 3.0)),
    "bucketed": lambda own, other, ids: losses.forward_kl(
        losses.with_tail(own, ids[..., None]), losses.with_tail(other, ids[..., None])
    ),
}  # fmt: skip


def two_heads(vocab_size=11, dtype=torch.float64):
    """Features and heads of a student (5 wide) and a teacher (7 wide), and target ids, for a batch of 3 x 4."""
    parts = [random_logits(3, 4, 5, seed=1), random_logits(vocab_size, 5, seed=2), random_logits(3, 4, 7, seed=3)]
    parts = [part.to(dtype) for part in [*parts, random_logits(vocab_size, 7, seed=4)]]
    return *parts, torch.randint(0, vocab_size, (3, 4), generator=torch.Generator().manual_seed(5))


@pytest.mark.parametrize("at_once", [1, 11, 30, 10**6])
@pytest.mark.parametrize("name", PER_TOKEN)
def test_chunks_change_nothing(name, at_once):
    """Value and both gradients of the student are those of the dense loss, whatever the chunk;
    the teacher gets none."""
    features, head, teacher_features, teacher_head, ids = two_heads()
    results = []
    for chunked in (False, True):
        leaves = [x.detach().clone().requires_grad_() for x in (features, head, teacher_features, teacher_head)]
        own, other = losses.HiddenStates(*leaves[:2]), losses.HiddenStates(*leaves[2:])
        if chunked:
            value = losses.by_chunks(PER_TOKEN[name], own, other, ids, at_once=at_once)
        else:
            value = PER_TOKEN[name](own.features @ own.head.T, other.features @ other.head.T, ids)
        gradients = torch.autograd.grad((value * torch.arange(12.0).view(3, 4)).sum(), leaves, allow_unused=True)
        assert all(gradient is None or not gradient.any() for gradient in gradients[2:])
        results.append((value, *gradients[:2]))
    for dense, ours in zip(*results):
        torch.testing.assert_close(ours, dense)


@pytest.mark.parametrize("teacher_mix", [0, 0.2])
def test_minillm_by_chunks(teacher_mix, monkeypatch):
    """Its sums over later tokens cross the chunks' borders unharmed."""
    monkeypatch.setattr(losses, "by_chunks", lambda *inputs, whole=losses.by_chunks: whole(*inputs, at_once=23))
    features, head, teacher_features, teacher_head, ids = two_heads()
    mask = torch.arange(4) < torch.tensor([[4], [2], [3]])
    results = []
    for chunked in (False, True):
        leaf = features.clone().requires_grad_()
        pairs = (losses.HiddenStates(leaf, head), losses.HiddenStates(teacher_features, teacher_head))
        own, other = pairs if chunked else [pair.features @ pair.head.T for pair in pairs]
        value = losses.masked_mean(losses.minillm(own, other, ids, mask, teacher_mix), mask)
        results.append((value, *torch.autograd.grad(value, leaf)))
    for dense, ours in zip(*results):
        torch.testing.assert_close(ours, dense)


class Largest(torch.utils._python_dispatch.TorchDispatchMode):
    """Elements of the largest tensor that any operation makes."""

    numbers = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, (tuple, list)) else [out]:
            self.numbers = max(self.numbers, tensor.numel() if isinstance(tensor, torch.Tensor) else 0)
        return out


@pytest.mark.parametrize("name", PER_TOKEN)
def test_chunks_never_hold_a_whole_batch(name):
    """Forward and backward, nothing is made that is larger than a chunk (but for features,
    heads and their gradients)."""
    features, head, teacher_features, teacher_head, ids = two_heads(vocab_size=200)
    features, head = features.repeat(9, 1, 1).requires_grad_(), head.requires_grad_()
    own, other = (
        losses.HiddenStates(features, head),
        losses.HiddenStates(teacher_features.repeat(9, 1, 1), teacher_head),
    )
    with Largest() as largest:
        losses.by_chunks(PER_TOKEN[name], own, other, ids.repeat(9, 1), at_once=2000).sum().backward()
    assert largest.numbers == 2000 < 27 * 4 * 200 / 10


def test_unprojected_logits():
    """Detached they teach nobody; divided by a temperature they are the logits divided; without any, chunks are off."""
    features, head, *_ = two_heads()
    own = losses.HiddenStates(features.requires_grad_(), head.requires_grad_())
    assert not any(part.requires_grad for part in own.detach())
    torch.testing.assert_close((own / 4).features @ (own / 4).head.T, features @ head.T / 4)
    seen = []
    losses.by_chunks(lambda logits: seen.append(logits.shape) or logits.sum(-1), features, at_once=1)
    assert seen == [(3, 4, 5)]


def test_the_tail_is_a_bucket():
    """Example: token 0 and the rest, log (.6, .4); each row sums to 1; with all others named nothing is lost."""
    first = torch.tensor([[[0]]])
    assert losses.with_tail(TEACHER, first).exp().flatten().tolist() == pytest.approx([0.6, 0.4])
    value = losses.forward_kl(losses.with_tail(STUDENT, first), losses.with_tail(TEACHER, first))
    assert value.item() == pytest.approx(0.381909, abs=1e-6)
    rows = random_logits(2, 5, 9)
    ids = rows.topk(8).indices
    whole = torch.cat([ids, 36 - ids.sum(-1, keepdim=True)], -1)  # the one that is left
    torch.testing.assert_close(losses.with_tail(rows, ids), rows.log_softmax(-1).gather(-1, whole))
    torch.testing.assert_close(losses.with_tail(rows, ids[..., :3]).exp().sum(-1), torch.ones(2, 5).double())
    with pytest.raises(AssertionError, match="no tail"):
        losses.with_tail(rows, whole)


F_DIVERGENCES = (
    "forward_kl", "reverse_kl", "generalized_jsd", "skew_forward_kl", "skew_reverse_kl", "total_variation",
)  # fmt: skip


@pytest.mark.parametrize("name", F_DIVERGENCES)
@pytest.mark.parametrize("best", [1, 3, 8])
def test_buckets_never_exaggerate(name, best):
    """Joining tokens to a bucket loses distance (data processing), and loses none where both spread the tail alike."""
    student_logits, teacher_logits = random_logits(4, 5, 9), random_logits(4, 5, 9, seed=1)
    ids = teacher_logits.topk(best).indices
    whole = adapters.divergence(name, student_logits, teacher_logits)
    joined = adapters.divergence(name, losses.with_tail(student_logits, ids), losses.with_tail(teacher_logits, ids))
    assert (joined <= whole + 1e-12).all() and (joined > 0).all()
    inside = torch.zeros_like(student_logits).scatter(-1, ids, 1.0)
    student_logits = teacher_logits + inside * student_logits
    whole = adapters.divergence(name, student_logits, teacher_logits)
    joined = adapters.divergence(name, losses.with_tail(student_logits, ids), losses.with_tail(teacher_logits, ids))
    torch.testing.assert_close(joined, whole)


@pytest.mark.parametrize("reduction", ["token", "sequence"])
def test_parts_add_up_to_the_whole(reduction):
    """Parts of unequal token counts, one without any, each divided by the whole batch's weight, sum to its mean."""
    per_token = random_logits(6, 5)
    mask = torch.arange(5) < torch.tensor([[5], [1], [0], [0], [3], [2]])
    total = losses.weight_of(mask, reduction)
    assert total == {"token": 11, "sequence": 4}[reduction]
    parts = [losses.masked_mean(per_token[i : i + 2], mask[i : i + 2], reduction, total) for i in (0, 2, 4)]
    torch.testing.assert_close(sum(parts), losses.masked_mean(per_token, mask, reduction))
    assert parts[1] == 0
    # Two processes, one token in all: the mean weight is a half, and the mean of both losses is that token's.
    half = losses.masked_mean(per_token[1:2], mask[1:2], reduction, torch.tensor(0.5))
    torch.testing.assert_close((half + 0) / 2, per_token[1, 0])


# ---------------------------------------------------------------------------------------------------------------------
# The numbers in the docstrings.


def examples():
    """function -> what it gives on the example, in the order of its docstring; target 0."""
    both_logits = STUDENT, TEACHER
    zero, yes, no = torch.tensor([[0]]), torch.tensor([[True]]), torch.tensor([[False]])
    by_teacher, by_student = losses.Tokens(zero, yes, yes), losses.Tokens(zero, yes, no)
    means = [losses.alpha_mixture(TEACHER, STUDENT, alpha, 0.5).exp().flatten().tolist() for alpha in (-1, 1, 3)]

    def of(function, *knobs, tokens=()):
        return [function(*both_logits, *tokens, **each).item() for each in knobs or ({},)]

    bild, head = losses.bidirectional_logit_differences, losses.standardize(TEACHER).flatten().tolist()
    differences = [torch.stack([x[0, 0, i] - x[0, 0, j] for i, j in ((0, 1), (0, 2), (1, 2))]) for x in both_logits]
    reordered = [torch.stack([x[0, 0, i] - x[0, 0, j] for i, j in ((1, 2), (1, 0), (2, 0))]) for x in both_logits]
    halves = [losses.forward_kl(*(x[None, None] for x in pair)).item() for pair in (differences, reordered)]
    cut = [{"top_k": 2, "missing": word} for word in ("other", "renormalize_both", "renormalize_teacher", "truncate")]
    cut += [{"top_k": 1, "reverse": True, "whose": whose} for whose in ("teacher", "student")]
    three = torch.tensor([[[0, 0, 1]]])
    drawn = losses.random_sampling_kd(STUDENT, three, torch.full((1, 1, 3), 1 / 3, dtype=torch.float64)).item()
    tails = (losses.with_tail(logits, torch.tensor([[[0]]])) for logits in both_logits)
    student, teacher = (x - x.mean() for x in both_logits)
    limit = ((student - teacher) ** 2).sum().item() / 6  # of Hinton's mixture as T grows
    return {
        "forward_kl": of(losses.forward_kl),
        "reverse_kl": of(losses.reverse_kl),
        "generalized_jsd": of(losses.generalized_jsd, {"beta": 0.5}, {"beta": 0.1}),
        "skew_forward_kl": of(losses.skew_forward_kl),
        "skew_reverse_kl": of(losses.skew_reverse_kl),
        "total_variation": of(losses.total_variation),
        "squared_error": of(losses.squared_error),
        "alpha_beta": of(losses.alpha_beta, {}, {"alpha": 0, "beta": 0}, {"alpha": 0.5, "beta": 0.5}),
        "alpha_mixture": means[1] + means[2],
        "amid": of(losses.amid),
        "entropy_gated_kl": of(losses.entropy_gated_kl),
        "taid_target": losses.taid_target(*both_logits, 0.4).softmax(-1).flatten().tolist(),
        "veto_target": losses.veto_target(*both_logits, 0.5).softmax(-1).flatten().tolist(),
        "adaptive_kl": of(losses.adaptive_kl),
        "standardize": head,
        "standardized_kl": of(losses.standardized_kl, {}, {"correction": 0}),
        "bidirectional_logit_differences": of(bild) + halves,
        "pearson": of(losses.pearson),
        "soft_ranks": losses.soft_ranks(TEACHER, 1.0).flatten().tolist(),
        "spearman": of(losses.spearman),
        "cmkd": of(losses.cmkd),
        "universal_logit": of(losses.universal_logit),
        "top_k_kl": of(losses.top_k_kl, *cut),
        "token_wise_kl": of(losses.token_wise_kl),
        "favourites": of(losses.favourites),
        "logit_differences": of(losses.logit_differences, {}, {"first": "uniform", "second": "uniform"},
                                {"first": "teacher"}),
        "cross_entropy": [losses.cross_entropy(STUDENT, zero).item()],
        "hinton_mixture": of(losses.hinton_mixture, {"kd_weight": 1, "temperature": 4}, tokens=[zero]) + [limit],
        "decoupled_parts": [part.item() for part in losses.decoupled_parts(*both_logits, zero)],
        "decoupled_kd": of(losses.decoupled_kd, tokens=[by_student]),
        "label_smoothing": of(losses.label_smoothing, {}, {"among": torch.tensor([0, 1])}, tokens=[by_student]),
        "gated_forward_kl": of(losses.gated_forward_kl, tokens=[by_student]),
        "jsd_by_writer": [losses.jsd_by_writer(*both_logits, each).item() for each in (by_student, by_teacher)],
        "skew_by_writer": [losses.skew_by_writer(*both_logits, each).item() for each in (by_teacher, by_student)],
        "confidence_gated": [losses.confidence_gated(*both_logits, each).item() for each in (by_teacher, by_student)],
        "random_sampling_kd": [drawn],
        "policy_gradient": of(losses.policy_gradient, {}, {"baseline": True}, {"early": 0.5}, {"clip": 1.0},
                              tokens=[by_student]),
        "extrapolation": [losses.extrapolation(TEACHER, STUDENT, by_student).item()],
        "chosen_positions": of(losses.chosen_positions, tokens=[by_student]),
        "with_tail": [losses.forward_kl(*tails).item()],
        "entropy": [losses.entropy(TEACHER).item()],
    }


def numbers_of(docstring):
    """Those with four digits or more behind the point, and whatever follows "Example: "; no arXiv numbers."""
    found = re.findall(r"(?<![\d.])(?:-?\d?\.\d{4,}|(?<=Example: )-?\d?\.\d+)", docstring)
    return [float(number) for number in found]


def test_the_docstrings_numbers_are_what_their_functions_give():
    """Every example number in losses.py, which is there to be checked by hand, is what the code computes."""
    functions = [one for one in vars(losses).values() if inspect.isfunction(one) and one.__module__ == "losses"]
    said = {one.__name__: numbers for one in functions if (numbers := numbers_of(one.__doc__ or ""))}
    found = examples()
    for name, numbers in said.items():
        assert name in found, f"losses.{name} gives an example: say in examples() how its {numbers} are found"
        same = numbers == pytest.approx(found[name], abs=1e-6)
        assert same, f"the docstring of losses.{name} says {numbers}, its code {found[name]}"
    silent = found.keys() - said.keys()
    assert not silent, f"no number in the docstrings of {silent}: take them out of examples()"
