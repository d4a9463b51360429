"""Every loss of this project: pure functions of logits, one value per position, and one masked reduction.

A divergence compares two next-token distributions at the same position, after the same prefix:

    (student_logits, teacher_logits), each (B, T, V)  ->  per_token (B, T), in nats, float32

and `masked_mean` turns per-token values into the scalar that is trained on. Nothing here runs a model or draws a
number, and only losses of whole sequences know a mask before the reduction, so each function can be checked by hand
on three tokens.

Which way round? "Forward" always means teacher first: forward_kl = KL(teacher || student). The papers write the teacher
as p (SKD: M_t) and the student as q (M_s); the code never uses these letters, because half of the literature swaps
them.

Two rules that every function follows:
- The arithmetic is float32 log space (float64 inputs stay float64): log_softmax and logaddexp, never
  log(softmax + eps). bf16 sums over a vocabulary drift, and an eps changes the gradient exactly where student and
  teacher disagree most.
- Logits come in raw. Logits filtered to -inf for sampling make 0 * (-inf) = nan here, so filters belong to sampling: a
  ValueError on a CPU, while on a GPU, where looking would cost a wait, the training loop finds the nan.

The number in each docstring is the value for TEACHER (.6, .3, .1) against STUDENT (.2, .5, .3): check one by hand.
The second argument is detached inside: gradients reach the first model only, the student (in OKD, where the call is
turned round to train the teacher, the teacher). Formulas and gradients: arXiv 2306.13649 (GKD),
2402.03898 (DistiLLM, skew divergences), 1503.02531 (Hinton's mixture).

Four tables, by what a loss must know; `per_token_loss` finds a name in any of them:
- DIVERGENCES: zero exactly where both models agree, and a gradient that is the derivative of the value.
- MATCHING_LOSSES: the same arguments, but zero elsewhere as well, or with a gradient that is not the value's
  derivative.
- TOKEN_LOSSES: need the token of the position, or to know who wrote it (`Tokens`); still each position for itself.
- SEQUENCE_LOSSES: the positions of a sequence depend on each other, so these take its mask too.
"""

if __name__ == "__main__":
    import lab.interrupted  # noqa: F401  Ctrl-C while torch is imported ends with one line

import functools
import math
import sys
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint


def at_least_float32(x):
    """fp16 and bf16 become float32, float64 stays: what the arithmetic of every loss is done in."""
    assert x.is_floating_point(), f"logits are floating-point numbers, found {x.dtype}: are these token ids?"
    return x.to(torch.promote_types(x.dtype, torch.float32))


def raw_logits(model_logits):
    """The logits in at least float32; ValueError for -inf among them, on a CPU (elsewhere the question would cost a
    wait)."""
    if model_logits.device.type == "cpu" and model_logits.numel() and model_logits.detach().min() == float("-inf"):
        raise ValueError(
            "found -inf among the logits: give raw ones, before top-k or top-p; "
            "padded vocabulary is cut off both models"
        )
    return at_least_float32(model_logits)


def _assert_one_vocabulary(student_logits, teacher_logits):
    assert student_logits.shape == teacher_logits.shape, (
        f"student {tuple(student_logits.shape)} and teacher {tuple(teacher_logits.shape)} must share one vocabulary"
    )


def _logprobs(student_logits, teacher_logits):
    """Both log-distributions in at least float32, the teacher without gradient: two (B, T, V) tensors."""
    _assert_one_vocabulary(student_logits, teacher_logits)
    return raw_logits(student_logits).log_softmax(-1), raw_logits(teacher_logits.detach()).log_softmax(-1)


def _log_mixture(first_logprobs, second_logprobs, first_weight):
    """log(w * first + (1 - w) * second) without leaving log space; w strictly between 0 and 1."""
    return torch.logaddexp(first_logprobs + math.log(first_weight), second_logprobs + math.log1p(-first_weight))


def kl(first_logprobs, second_logprobs):
    """KL(first || second) of two rows of log-probabilities, gradients to both: (..., V), (..., V) -> (...) nats."""
    return (first_logprobs.exp() * (first_logprobs - second_logprobs)).sum(-1)


def _require(condition, message):
    if not condition:
        raise ValueError(message)


def _checked(targets, model_logits):
    """The targets; ValueError for one that is no token, asked on a CPU as in raw_logits."""
    if targets.device.type == "cpu" and targets.numel():
        low, high = (int(end) for end in targets.aminmax())
        last = model_logits.size(-1) - 1
        _require(
            0 <= low and high <= last,
            f"targets are token ids in 0..{last}, found {low}..{high}: padding goes into the mask",
        )
    return targets


# ---------------------------------------------------------------------------------------------------------------------
# 1. Divergences. All have one skeleton: two log-softmaxes, one line of mathematics, one sum over V.


def forward_kl(student_logits, teacher_logits):
    """KL(teacher || student) at every position, (B, T, V), (B, T, V) -> (B, T). Example: .396058 nats.

    Mean-seeking: the student pays wherever the teacher has mass and it has none. Gradient in the student's logits:
    student_probs - teacher_probs. The teacher's entropy is included, so that 0 means equal. (SKD's default, Eq. 1.)
    """
    student_logprobs, teacher_logprobs = _logprobs(student_logits, teacher_logits)
    return kl(teacher_logprobs, student_logprobs)


def reverse_kl(student_logits, teacher_logits):
    """KL(student || teacher) at every position, (B, T, V), (B, T, V) -> (B, T). Example: .365274 nats.

    Mode-seeking: the student pays wherever it puts mass and the teacher puts none. The per-token part of MiniLLM.
    """
    student_logprobs, teacher_logprobs = _logprobs(student_logits, teacher_logits)
    return kl(student_logprobs, teacher_logprobs)


def generalized_jsd(student_logits, teacher_logits, beta=0.5):
    """beta KL(teacher || mix) + (1 - beta) KL(student || mix), mix = beta teacher + (1 - beta) student; -> (B, T).

    GKD's divergence (arXiv 2306.13649, Eq. 4). Example: .091121 at beta .5, .034761 at .1; at most ln 2 at beta .5.
    It VANISHES towards beta 0 and 1 (only the ratio to beta tends to forward KL), so these raise a ValueError:
    take forward_kl or reverse_kl by name.
    """
    if not 0 < beta < 1:
        raise ValueError(
            f"beta must lie strictly between 0 and 1, found {beta}: at the ends use forward_kl or reverse_kl"
        )
    student_logprobs, teacher_logprobs = _logprobs(student_logits, teacher_logits)
    mix_logprobs = _log_mixture(teacher_logprobs, student_logprobs, beta)
    teacher_side = kl(teacher_logprobs, mix_logprobs)
    student_side = kl(student_logprobs, mix_logprobs)
    return beta * teacher_side + (1 - beta) * student_side


def skew_forward_kl(student_logits, teacher_logits, alpha=0.1):
    """KL(teacher || alpha teacher + (1 - alpha) student) at every position -> (B, T). Example: .305811 at alpha .1.

    DistiLLM's skew KL: forward KL whose gradient cannot explode, since the mixture is never below alpha times the
    teacher; at most -ln alpha. alpha 0 is forward KL, alpha 1 is 0 for every student: ValueError outside [0, 1).
    """
    if not 0 <= alpha < 1:
        raise ValueError(
            f"alpha must lie in [0, 1), found {alpha}: at 1 the mixture is the teacher and nothing is learned"
        )
    if alpha == 0:
        return forward_kl(student_logits, teacher_logits)
    student_logprobs, teacher_logprobs = _logprobs(student_logits, teacher_logits)
    mix_logprobs = _log_mixture(teacher_logprobs, student_logprobs, alpha)
    return kl(teacher_logprobs, mix_logprobs)


def skew_reverse_kl(student_logits, teacher_logits, alpha=0.1, detach_mixture=False):
    """KL(student || alpha student + (1 - alpha) teacher) at every position -> (B, T). Example: .292107 at alpha .1.

    DistiLLM's skew reverse KL, at most -ln alpha; the gradient flows through the student inside the mixture too, unless
    detach_mixture (DistiLLM-2, arXiv 2503.07067): the same value, its gradient then no derivative of it. alpha 0 is
    reverse KL; ValueError outside [0, 1).
    """
    if not 0 <= alpha < 1:
        raise ValueError(
            f"alpha must lie in [0, 1), found {alpha}: at 1 the mixture is the student and nothing is learned"
        )
    if alpha == 0:
        return reverse_kl(student_logits, teacher_logits)
    student_logprobs, teacher_logprobs = _logprobs(student_logits, teacher_logits)
    in_mixture = student_logprobs.detach() if detach_mixture else student_logprobs
    mix_logprobs = _log_mixture(in_mixture, teacher_logprobs, alpha)
    return kl(student_logprobs, mix_logprobs)


def total_variation(student_logits, teacher_logits):
    """Half the L1 distance of the two distributions, in 0..1 (no unit) -> (B, T). Example: .4.

    1 - total_variation is the chance that lossless speculative decoding accepts a token drafted by the student.
    """
    student_logprobs, teacher_logprobs = _logprobs(student_logits, teacher_logits)
    return 0.5 * (teacher_logprobs.exp() - student_logprobs.exp()).abs().sum(-1)


def squared_error(student_logits, teacher_logits):
    """Sum over V of (student - teacher)^2 in probabilities, at most 2 (no unit) -> (B, T). Example: .24.

    What PESF-KD (arXiv 2205.15308) takes for both models; its code has the mean over V, which vanishes for large V.
    """
    student_logprobs, teacher_logprobs = _logprobs(student_logits, teacher_logits)
    return (student_logprobs.exp() - teacher_logprobs.exp()).square().sum(-1)


def _divided_difference(a, b, x):
    """(phi(a) - phi(b)) / (a - b) for phi(a) = (e^(a x) - 1) / a, with phi(0) = x and the derivative at a = b exact."""

    def phi(a):
        return x if a == 0 else torch.expm1(a * x) / a

    if a != b:
        return (phi(a) - phi(b)) / (a - b)
    return x.square() / 2 if a == 0 else (x * torch.exp(a * x) - phi(a)) / a


def _alpha_beta(first_logprobs, second_logprobs, alpha, beta):
    """alpha_beta of rows of log-probs, first in the teacher's place, gradients to both: (..., V), (..., V) -> (...).

    With u = log first - log second, the sum's term is second^(a+b) (phi(a+b) - phi(a)) / b at x = u, and by the
    symmetry also first^(a+b) (phi(a+b) - phi(b)) / a at x = -u. Each token takes the form whose x is negative: no power
    overflows, and near u = 0 there is no difference of nearly equal powers. The other form is then 0 at x = 0.
    """
    total, log_ratio = alpha + beta, first_logprobs - second_logprobs
    second_larger = _divided_difference(total, alpha, log_ratio.clamp(max=0))
    first_larger = _divided_difference(total, beta, (-log_ratio).clamp(max=0))
    return ((total * second_logprobs).exp() * second_larger + (total * first_logprobs).exp() * first_larger).sum(-1)


def alpha_beta(student_logits, teacher_logits, alpha=0.2, beta=0.7):
    """AB divergence at every position (no unit but at the KLs) -> (B, T). Example: .414802 at (.2, .7).

    -1 / (alpha beta) sum_v [t^alpha s^beta - alpha / (alpha + beta) t^(alpha+beta) - beta / (alpha + beta)
    s^(alpha+beta)] for teacher t and student s (ABKD, arXiv 2505.04560), limits exact: (1, 0) is forward KL, (0, 1)
    reverse KL, (0, 0) half the squared distance of the log-probs (1.337420); also (.5, .5) .372346, (1, 1) .12. What of
    alpha, beta and their sum is within .001 of 0 counts as 0: the formula loses its digits there. ValueError where the
    sum is negative. Finite for logits of +-1e4 where neither is; at (0, 0) no probability damps a log-ratio.
    """
    alpha, beta = (0.0 if abs(number) < 1e-3 else float(number) for number in (alpha, beta))
    beta = -alpha if abs(alpha + beta) < 1e-3 else beta
    _require(alpha + beta >= 0, f"alpha + beta must not be negative, found {alpha} + {beta}")
    student_logprobs, teacher_logprobs = _logprobs(student_logits, teacher_logits)
    return _alpha_beta(teacher_logprobs, student_logprobs, alpha, beta)


def alpha_mixture(teacher_logprobs, student_logprobs, alpha, weight):
    """AMiD's assistant: log of the power mean of teacher and student, normalised; gradients to both: -> (..., V).

    assistant ~ [weight teacher^k + (1 - weight) student^k]^(1/k), k = (1 - alpha) / 2: alpha -1 is the arithmetic mean
    (a skew divergence's mixture), 1 the geometric (also within .001 of it, where 1/k eats the digits), 3 the harmonic.
    Example at weight .5: (.4, .4, .2), (.381966, .427051, .190983), (.363636, .454545, .181818). Neither side detached.
    """
    power = (1 - alpha) / 2
    if abs(1 - alpha) < 1e-3:
        mixed = weight * teacher_logprobs + (1 - weight) * student_logprobs
    else:
        mixed = _log_mixture(power * teacher_logprobs, power * student_logprobs, weight) / power
    return mixed.log_softmax(-1)


AMID_BASES = {"alpha_beta": functools.partial(_alpha_beta, alpha=0.2, beta=0.7), "forward_kl": kl}


def amid(student_logits, teacher_logits, alpha=0.5, weight=0.5, order="teacher_assistant", base="alpha_beta"):
    """A divergence to an assistant between both models, alpha_mixture, not to the other one; -> (B, T). Ex.: .110490.

    base(first || second) with `order` "teacher_assistant", "student_assistant", "assistant_teacher",
    "assistant_student" (the code's pr, qr, rp, rq; arXiv 2510.15982); base "alpha_beta" at (.2, .7), or "forward_kl",
    that is KL(first || second), in nats. The gradient flows through the assistant. With alpha -1, teacher_assistant and
    forward_kl it is skew_forward_kl at `weight`. ValueError for an unknown order or base, and a weight outside (0, 1).
    """
    _require(0 < weight < 1, f"weight must lie strictly between 0 and 1, found {weight}: at the ends it is a model")
    _require(base in AMID_BASES, f"base must be one of {', '.join(AMID_BASES)}, found {base!r}")
    student_logprobs, teacher_logprobs = _logprobs(student_logits, teacher_logits)
    assistant_logprobs = alpha_mixture(teacher_logprobs, student_logprobs, alpha, weight)
    orders = {
        "teacher_assistant": (teacher_logprobs, assistant_logprobs),
        "student_assistant": (student_logprobs, assistant_logprobs),
        "assistant_teacher": (assistant_logprobs, teacher_logprobs),
        "assistant_student": (assistant_logprobs, student_logprobs),
    }
    _require(order in orders, f"order must be one of {', '.join(orders)}, found {order!r}")
    return AMID_BASES[base](*orders[order])


def entropy_gated_kl(student_logits, teacher_logits, threshold=0.5):
    """Reverse KL, plus forward KL where the teacher's entropy exceeds `threshold` nats; -> (B, T). Example: .761333.

    EOPD (PMLR v306, jin26e): where the teacher sees several ways on, reverse KL alone would pick one. Of the paper only
    the abstract was at hand: the plain sum, and .5, are a reconstruction.
    """
    student_logprobs, teacher_logprobs = _logprobs(student_logits, teacher_logits)
    uncertain = entropy(teacher_logprobs) > threshold
    return kl(student_logprobs, teacher_logprobs) + uncertain * kl(teacher_logprobs, student_logprobs)


# A new divergence is one function above and one row here: tests and the command line follow from the table.
DIVERGENCES = {
    "forward_kl": forward_kl,
    "reverse_kl": reverse_kl,
    "generalized_jsd": generalized_jsd,
    "skew_forward_kl": skew_forward_kl,
    "skew_reverse_kl": skew_reverse_kl,
    "total_variation": total_variation,
    "squared_error": squared_error,
    "alpha_beta": alpha_beta,
    "amid": amid,
    "entropy_gated_kl": entropy_gated_kl,
}


# ---------------------------------------------------------------------------------------------------------------------
# 2. Matches: two models at a position, like a divergence, and with their defaults zero where both agree. But they are
# zero elsewhere as well (each is blind to something), or their gradient is not the derivative of the value.


def taid_target(student_logits, teacher_logits, share):
    """Logits of TAID's moving target: (1 - share) student + share teacher, both detached; (B, T, V) x 2 -> (B, T, V).

    The loss is forward_kl(student_logits, taid_target(student_logits, teacher_logits, share)), where `share` (a float
    or a scalar tensor) grows to 1 in training: from the student itself (loss 0) to the teacher. It is logits that are
    mixed, so the target is the geometric mean of the distributions (arXiv 2501.16937). Example: share .4 gives
    (.340584, .447277, .212138).
    """
    student_logprobs, teacher_logprobs = _logprobs(student_logits.detach(), teacher_logits)
    return (1 - share) * student_logprobs + share * teacher_logprobs


def veto_target(student_logits, teacher_logits, beta):
    """Logits of Veto's target, teacher + beta * student, both detached; (B, T, V) x 2 -> (B, T, V).

    A product of both (arXiv 2601.07155): what the student does not expect has no weight either, and forward KL's
    gradient no spike. No interpolation like taid_target: it is that at share 1 / (1 + beta), and then sharper by 1 +
    beta, so that the student that it leaves alone is not the teacher but teacher^(1 / (1 - beta)); beta 0 is the
    teacher. Example: beta .5 gives (.501330, .396336, .102334).
    """
    student_logprobs, teacher_logprobs = _logprobs(student_logits.detach(), teacher_logits)
    return teacher_logprobs + beta * student_logprobs


def adaptive_kl(student_logits, teacher_logits, mu=0.5):
    """w forward KL + (1 - w) reverse KL, w the head's part of the difference; -> (B, T) nats. Example: .380666.

    AKL (arXiv 2404.02657): w = sum |teacher - student| over the head / over V, the head being the smallest set of the
    teacher's best tokens that holds mass mu. (The authors' code takes the tokens that end within mu, and the first.) w
    is constant for the gradient, .5 in the example; where both models are equal it has no meaning. ValueError for mu
    outside (0, 1].
    """
    _require(0 < mu <= 1, f"mu must lie in (0, 1], found {mu}")
    student_logprobs, teacher_logprobs = _logprobs(student_logits, teacher_logits)
    with torch.no_grad():
        teacher_probs, ids = teacher_logprobs.exp().sort(-1, descending=True)
        gap = (teacher_probs - student_logprobs.exp().gather(-1, ids)).abs()
        mass_before = teacher_probs.cumsum(-1) - teacher_probs
        tail = mass_before > mu - 1e-6  # not a token more because two quarters add up to a little less than a half
        head_weight = gap.masked_fill(tail, 0.0).sum(-1) / gap.sum(-1).clamp(min=torch.finfo(gap.dtype).tiny)
    forward, reverse = kl(teacher_logprobs, student_logprobs), kl(student_logprobs, teacher_logprobs)
    return head_weight * forward + (1 - head_weight) * reverse


def _centred_unit(rows):
    """Rows less their mean, of length 1 (zeros, no gradient, where all is equal), and whether they vary."""
    centred = rows - rows.mean(-1, keepdim=True)
    length, whole_length = (x.norm(dim=-1, keepdim=True) for x in (centred, rows))
    varies = length > 10 * torch.finfo(rows.dtype).eps * whole_length  # by more than the mean was rounded
    return centred * varies / torch.where(varies, length, 1.0), varies[..., 0]


def standardize(model_logits, correction=1):
    """Logits with mean 0 and standard deviation 1 over V, in at least float32, (B, T, V) -> (B, T, V).

    The deviation divides by V - correction: 1 is the sample's, 0 the population's. Equal logits have no scale: they
    become zeros, without a gradient. Log (.6, .3, .1) gives .916777, .149592, -1.066369.
    """
    return _centred_unit(at_least_float32(model_logits))[0] * math.sqrt(model_logits.size(-1) - correction)


def standardized_kl(student_logits, teacher_logits, temperature=2.0, correction=1):
    """T^2 forward KL of the logits' z-scores / T: the student need not match scale; -> (B, T). Example: .899392.

    Logit standardisation (arXiv 2403.01427): 0 for every student whose logits are a teacher + b with a > 0, so
    confidence is left free. The gradient flows through mean and deviation. correction 0 gives 1.341659. ValueError for
    T <= 0.
    """
    _require(temperature > 0, f"the temperature must be positive, found {temperature}")
    both = _logprobs(student_logits, teacher_logits)
    return temperature**2 * forward_kl(*(standardize(logprobs, correction) / temperature for logprobs in both))


def bidirectional_logit_differences(student_logits, teacher_logits, top_k=8, temperature=3.0):
    """KL of the softmaxes of all differences of the top_k logits, by either model's rank; -> (B, T). Example: .110615.

    BiLD (arXiv 2406.13555): (z_i - z_j) / T for i < j by the teacher's rank, k (k - 1) / 2 of them, softmax over them,
    KL(teacher || student); plus the same by the student's rank. No T^2. At T = 1 the example's two parts are .259043
    and .596892. What lies below the top_k is free. ValueError for top_k below 2 or T <= 0.
    """
    _require(top_k >= 2, f"a difference takes two tokens, found top_k {top_k}")
    _require(temperature > 0, f"the temperature must be positive, found {temperature}")
    student_logprobs, teacher_logprobs = _logprobs(student_logits, teacher_logits)
    count = min(top_k, student_logprobs.size(-1))
    better, worse = torch.triu_indices(count, count, 1, device=student_logprobs.device)

    def ranked_by(leader):
        ids = leader.topk(count).indices
        best = (logprobs.gather(-1, ids) / temperature for logprobs in (teacher_logprobs, student_logprobs))
        return kl(*((z[..., better] - z[..., worse]).log_softmax(-1) for z in best))

    return ranked_by(teacher_logprobs) + ranked_by(student_logprobs)


def _teachers_best(student_logits, teacher_logits, top_k):
    """Log-probs of student and teacher for the teacher's top_k tokens (None: all), two (B, T, k), not renormalised."""
    student_logprobs, teacher_logprobs = _logprobs(student_logits, teacher_logits)
    if top_k is None or top_k >= student_logprobs.size(-1):
        return student_logprobs, teacher_logprobs
    ids = teacher_logprobs.topk(top_k).indices
    return student_logprobs.gather(-1, ids), teacher_logprobs.gather(-1, ids)


def _decorrelation(student_rows, teacher_rows):
    """1 - Pearson's r, (..., k) x 2 -> (...); 0 where the teacher's row is constant, 1 where the student's."""
    (student_unit, student_varies), (teacher_unit, teacher_varies) = (
        _centred_unit(student_rows),
        _centred_unit(teacher_rows),
    )
    # 1 - r is half the squared distance of unit vectors, and that is exactly 0, with gradient 0, where they are equal.
    return teacher_varies * 0.5 * ((student_unit - teacher_unit).square().sum(-1) + ~student_varies)


def pearson(student_logits, teacher_logits, top_k=None, on="probs"):
    """1 - Pearson's correlation over the teacher's top_k tokens (None: all), in 0..2 -> (B, T). Example: 1.433555.

    The inter-class part of DIST (arXiv 2205.10536) and CMKD (2410.06561). On "probs", 0 for every student that is a
    teacher + b with a > 0; on "logits" that leaves the confidence free altogether, so mix it with cross-entropy. A
    teacher that prefers no token teaches nothing: 0. A student that prefers none is uncorrelated: 1, without a
    gradient. ValueError for an unknown `on` and top_k below 2.
    """
    _require(on in ("probs", "logits"), f"on must be probs or logits, found {on!r}")
    _require(top_k is None or top_k >= 2, f"a correlation takes two tokens, found top_k {top_k}")
    rows = _teachers_best(student_logits, teacher_logits, top_k)
    if on == "probs":  # renormalised: a correlation ignores scale, and what the student hardly expects would underflow
        rows = (x.log_softmax(-1).exp() for x in rows)
    return _decorrelation(*rows)


def soft_ranks(model_logits, tau):
    """Rank of every logit, 1 for the largest, made smooth: 1 + sum over the others of sigmoid((other - own) / tau).

    (..., k) -> (..., k), k^2 numbers per row; exact for tau to 0. Log (.6, .3, .1) at tau 1: 1.476190, 1.916667,
    2.607143.
    """
    model_logits = at_least_float32(model_logits)
    lead = (model_logits[..., None, :] - model_logits[..., None]) / tau
    return 0.5 + lead.sigmoid().sum(-1)  # sigmoid(0) = .5 of the token itself is in the sum


def spearman(student_logits, teacher_logits, top_k=32, tau=0.1):
    """1 - correlation of both models' soft ranks of the teacher's top_k tokens, in 0..2 -> (B, T). Example: 1.490879.

    The rank part of CMKD (arXiv 2410.06561), which asks for the order alone; over all of V that would be an order of
    noise. Ranks by pairwise sigmoids of logits / tau are our stand-in for the paper's, of which only the abstract was
    at hand. Equal logits as in pearson: the teacher's 0, the student's 1. Exact ranks (tau to 0) give 1.5. ValueError
    for top_k below 2, tau <= 0.
    """
    _require(top_k >= 2, f"an order takes two tokens, found top_k {top_k}")
    _require(tau > 0, f"tau must be positive, found {tau}")
    rows = _teachers_best(student_logits, teacher_logits, top_k)
    return _decorrelation(*(soft_ranks(x, tau) for x in rows))


def cmkd(student_logits, teacher_logits, top_k=32, tau=0.1, weight_by="entropy"):
    """(1 - w) pearson + w spearman over the teacher's top_k tokens, in 0..2 (no unit) -> (B, T). Example: 1.480409.

    CMKD (arXiv 2410.06561) weighs the two by how hard the sample is; its rule was not at hand, so w is ours, a
    reconstruction: with "entropy" the teacher's entropy / ln V, so that a teacher in doubt passes on its order more
    than its numbers, "certainty" the other way round, and None one half. A vocabulary of one token: 0. ValueError for
    another weight_by, and as pearson and spearman do.
    """
    doubt = entropy(teacher_logits.detach()) / math.log(max(2, teacher_logits.size(-1)))  # of one token: no doubt
    shares = {"entropy": doubt, "certainty": 1 - doubt, None: 0.5}
    _require(weight_by in shares, f"weight_by must be entropy, certainty or None, found {weight_by!r}")
    student_logits, share = at_least_float32(student_logits), shares[weight_by]
    by_order = spearman(student_logits, teacher_logits, top_k, tau)
    return (1 - share) * pearson(student_logits, teacher_logits, top_k) + share * by_order


def universal_logit(student_logits, teacher_logits):
    """Sum of |differences| of the sorted probabilities, in 0..2 (no unit); V may differ. -> (B, T). Example: .2.

    ULD (arXiv 2402.12030): best against best, second against second; the smaller vocabulary is padded with zeros. It is
    at most 2 total_variation and never asks which tokens: any permutation of the teacher gives 0.
    """
    assert student_logits.shape[:-1] == teacher_logits.shape[:-1], (
        f"student {tuple(student_logits.shape)} and teacher {tuple(teacher_logits.shape)} must share their positions"
    )
    widest = max(student_logits.size(-1), teacher_logits.size(-1))

    def ordered(model_logits):
        probs = at_least_float32(model_logits).log_softmax(-1).exp()
        return F.pad(probs.sort(-1, descending=True).values, (0, widest - probs.size(-1)))

    return (ordered(student_logits) - ordered(teacher_logits.detach())).abs().sum(-1)


def top_k_kl(student_logits, teacher_logits, top_k=8, missing="other", whose="teacher", reverse=False):
    """Forward (`reverse`: reverse) KL over the top_k tokens of "teacher" or "student" (`whose`); -> (B, T) nats.

    What becomes of the `missing` mass? "other": all other tokens are one (with_tail), a true KL, at most the whole
    one. "renormalize_both": each model's top_k is made to sum to 1, the tail is free. "renormalize_teacher": the
    teacher's alone; zero for an over-confident student, and -ln of the top_k's mass at the teacher itself. "truncate":
    the terms are left out; may be negative, and its gradient pulls away from the teacher. Example, k 2, in that order:
    .396058, .310819, .667494, .505920; k 1, "other", reverse: .334795 of the teacher's best, .087177 of the student's.

    `whose` is what is not seen. Of the teacher's best: what the student puts on tokens the teacher ranks low; with
    "renormalize_both" their mass has no gradient, though on-policy it is what the student writes. Of the student's
    best: what the teacher likes and the student hardly expects; no gradient raises it, not even forward KL's. "other"
    sees the sum of what is missing, and nothing of how it is spread. ValueError for another word and top_k below 1.
    (Bias of the forward one: arXiv 2503.16870.)
    """
    choices = ("other", "renormalize_teacher", "renormalize_both", "truncate")
    _require(missing in choices, f"missing must be one of {', '.join(choices)}, found {missing!r}")
    _require(whose in ("teacher", "student"), f"whose must be teacher or student, found {whose!r}")
    _require(top_k >= 1, f"top_k must be at least 1, found {top_k}")
    _assert_one_vocabulary(student_logits, teacher_logits)
    leader = teacher_logits if whose == "teacher" else student_logits
    most = leader.size(-1) - (missing == "other")  # one token is a class as well
    ids = leader.topk(min(top_k, most)).indices
    if missing == "other":
        student_best, teacher_best = with_tail(student_logits, ids), with_tail(teacher_logits, ids)
        return (reverse_kl if reverse else forward_kl)(student_best, teacher_best)
    if missing == "renormalize_both":  # of raw logits: the tail gets no gradient, not even one of rounding
        rows = raw_logits(student_logits), raw_logits(teacher_logits.detach())
        student_best, teacher_best = (logits.gather(-1, ids).log_softmax(-1) for logits in rows)
    else:
        rows = _logprobs(student_logits, teacher_logits)
        student_best, teacher_best = (logprobs.gather(-1, ids) for logprobs in rows)
        teacher_best = teacher_best.log_softmax(-1) if missing == "renormalize_teacher" else teacher_best
    return kl(student_best, teacher_best) if reverse else kl(teacher_best, student_best)


# Targets of 2024 to 2026.


def token_wise_kl(student_logits, teacher_logits):
    """sum_v w t ln(t / s) + (1 - w) s ln(s / t) with w = t / (t + s), constant; -> (B, T) nats. Example: .761333.

    ToDi (arXiv 2505.16297): each token for itself chooses forward KL where the student is too low (w near 1), reverse
    KL where it is too high. The value is forward KL + reverse KL, exactly, for w t - (1 - w) s = t - s; it is the
    gradient that differs, with w held constant.
    """
    student_logprobs, teacher_logprobs = _logprobs(student_logits, teacher_logits)
    log_ratio = teacher_logprobs - student_logprobs
    too_low, too_high = (sign * log_ratio.detach() for sign in (1, -1))  # w is the sigmoid of the log-ratio
    raised = too_low.sigmoid() * teacher_logprobs.exp() * log_ratio
    return (raised - too_high.sigmoid() * student_logprobs.exp() * log_ratio).sum(-1)


def favourites(student_logits, teacher_logits, beta=1.0):
    """-ln sigmoid(beta [ln s(w)/s(l) - ln t(w)/t(l)]) - ln 2, w the teacher's best token, l the student's; -> (B, T).

    DPKD (arXiv 2406.19774), a preference loss at every position. As w is never below l for the teacher, nor above it
    for the student, it is least, 0 without a gradient, wherever both like the same token best; nothing else is asked,
    so mix it with cross-entropy. (The ln 2 is taken off for that.) Example: ln 3 = 1.098612. ValueError for beta <= 0.
    """
    _require(beta > 0, f"beta must be positive, found {beta}")
    student_logprobs, teacher_logprobs = _logprobs(student_logits, teacher_logits)
    ids = torch.stack([teacher_logprobs.argmax(-1), student_logprobs.argmax(-1)], -1)  # (B, T, 2): w, l
    own, other = (logprobs.gather(-1, ids) for logprobs in (student_logprobs, teacher_logprobs))
    margin = beta * ((own[..., 0] - own[..., 1]) - (other[..., 0] - other[..., 1]))
    return F.softplus(-margin) - F.softplus(torch.zeros_like(margin))


def logit_differences(student_logits, teacher_logits, first="student", second="student"):
    """1/4 sum_uv a(u) b(v) (d_u - d_v)^2, d = student - teacher logits; -> (B, T) (no unit). Example: .300260.

    CSD (arXiv 2509.25837): all pairs of tokens, in linear time: with m_a, m_b the means of d, the sum is the two
    variances + (m_a - m_b)^2. The weights a and b, constant, are "student", "teacher" or "uniform". Both "student", its
    code's main loss, has reverse KL's gradient, to the last digit: s (d - mean d). Both "uniform" is the squared
    distance of centred logits / (2V), .431310, the limit of hinton_mixture. "teacher", "student": .486608. ValueError
    for another weight.
    """
    student_logprobs, teacher_logprobs = _logprobs(student_logits, teacher_logits)
    gap = student_logprobs - teacher_logprobs
    weights = {"student": student_logprobs.detach().exp(), "teacher": teacher_logprobs.exp()}
    weights["uniform"] = torch.full_like(weights["teacher"], 1 / gap.size(-1))
    for weight in (first, second):
        _require(weight in weights, f"weights must be student, teacher or uniform, found {weight!r}")
    means = [(weights[weight] * gap).sum(-1) for weight in (first, second)]
    spread = sum(
        (weights[weight] * (gap - mean[..., None]).square()).sum(-1) for weight, mean in zip((first, second), means)
    )
    return (spread + (means[0] - means[1]).square()) / 4


MATCHING_LOSSES = {
    "adaptive_kl": adaptive_kl,
    "standardized_kl": standardized_kl,
    "bidirectional_logit_differences": bidirectional_logit_differences,
    "pearson": pearson,
    "spearman": spearman,
    "cmkd": cmkd,
    "universal_logit": universal_logit,
    "top_k_kl": top_k_kl,
    "token_wise_kl": token_wise_kl,
    "favourites": favourites,
    "logit_differences": logit_differences,
}


# ---------------------------------------------------------------------------------------------------------------------
# 3. Losses that need the token itself.


class Tokens(NamedTuple):
    """The tokens that rows of logits predict: what stands there, whether it counts, who wrote it; each (B, T)."""

    targets: torch.Tensor  # long: targets[:, t] belongs to row t of the logits
    mask: torch.Tensor  # bool: it belongs to a response
    by_teacher: torch.Tensor  # bool: the teacher wrote it, not the student


def cross_entropy(student_logits, targets):
    """-log student(target) at every position: (B, T, V), (B, T) long -> (B, T) nats. Target 0 of the example: 1.609438.

    `targets[:, t]` belongs to row t of the logits: shift once, outside (targets = tokens[:, 1:]).
    """
    assert student_logits.shape[:-1] == targets.shape, (
        f"{tuple(student_logits.shape)} and targets {tuple(targets.shape)}"
    )
    assert targets.dtype == torch.long, f"targets are token ids (long), found {targets.dtype}"
    targets = _checked(targets, student_logits)  # torch would take -100 for a position that is left out
    return F.cross_entropy(at_least_float32(student_logits).flatten(0, -2), targets.flatten(), reduction="none").view(
        targets.shape
    )


def soften(model_logits, temperature):
    """Logits / T, in float32: bf16 logits divided by T would be rounded a second time."""
    _require(temperature > 0, f"a temperature must be positive, found {temperature}")
    return (model_logits if isinstance(model_logits, HiddenStates) else at_least_float32(model_logits)) / temperature


def hinton_mixture(student_logits, teacher_logits, targets, kd_weight=0.5, temperature=1.0, divergence=forward_kl):
    """(1 - kd_weight) cross-entropy + kd_weight T^2 D(teacher^T, student^T) at every position -> (B, T) nats.

    Hinton's word-level distillation (arXiv 1503.02531). Softening both sides by T shrinks the gradient by 1/T^2; the
    factor T^2 gives it back, so that kd_weight means the same at every temperature. With kd_weight 1 and T = 4 the
    example gives .432038; for T to infinity it tends to the squared distance of the centred logits / (2V), .431310.
    `divergence` is any function of two logits; either may be HiddenStates, if it takes that.
    """
    _require(0 <= kd_weight <= 1, f"kd_weight is a share, 0..1; found {kd_weight}")
    assert temperature > 0, f"the distillation temperature must be positive, found {temperature}"
    if kd_weight == temperature == 1:
        return divergence(student_logits, teacher_logits)
    # label_smoothing asks no teacher.
    teacher_logits = None if teacher_logits is None else soften(teacher_logits, temperature)
    soft = divergence(soften(student_logits, temperature), teacher_logits)
    hard = by_chunks(cross_entropy, student_logits, targets)
    return (1 - kd_weight) * hard + kd_weight * temperature**2 * soft


def decoupled_parts(student_logits, teacher_logits, targets):
    """The two parts of DKD at every position, (B, T) each, in nats. Example, target 0: .381909 and .035375.

    "Target": KL between the two-way distributions (target, everything else). "Others": KL between the distributions
    over everything else, renormalised. forward_kl = target part + (1 - teacher(target)) * others part, exactly. Both
    are 0 where the vocabulary is a single token.
    """
    two_way, others, targets = [], [], _checked(targets, student_logits)
    if student_logits.size(-1) == 1:  # there is nothing else, and no token has a probability over nothing
        zero = forward_kl(student_logits, teacher_logits)
        return zero, zero
    for logprobs in _logprobs(student_logits, teacher_logits):
        # The V - 1 other tokens are picked, not masked with -inf: no 0 * inf, and log(1 - p) is a logsumexp.
        ids = torch.arange(logprobs.size(-1) - 1, device=logprobs.device)
        rest = logprobs.gather(-1, ids + (ids >= targets[..., None]))
        rest_logprob = rest.logsumexp(-1, keepdim=True)
        two_way.append(torch.cat([logprobs.gather(-1, targets[..., None]), rest_logprob], -1))
        others.append(rest - rest_logprob)
    return kl(*reversed(two_way)), kl(*reversed(others))


def decoupled_kd(student_logits, teacher_logits, tokens, alpha=1.0, beta=8.0, temperature=1.0):
    """T^2 (alpha * target part + beta * others part of decoupled_parts) -> (B, T) nats. Example, target 0: .664908.

    DKD (arXiv 2203.08679). In forward KL the others part weighs 1 - teacher(target): what a confident teacher says
    about the wrong tokens hardly counts. Here it counts beta everywhere. ValueError for T <= 0.
    """
    _require(temperature > 0, f"the temperature must be positive, found {temperature}")
    target_part, others_part = decoupled_parts(
        soften(student_logits, temperature), soften(teacher_logits, temperature), tokens.targets
    )
    return temperature**2 * (alpha * target_part + beta * others_part)


def label_smoothing(student_logits, teacher_logits, tokens, smoothing=0.1, among=None):
    """Cross-entropy with 1 - smoothing on the target and the rest spread evenly -> (B, T) nats. Target 0: 1.565379.

    A teacher that knows only the label (arXiv 1512.00567): the control of every soft target. Spread over all V tokens,
    or over the ids `among` (1-D long): a classifier uses all of its classes, a byte vocabulary hardly ever.
    teacher_logits is ignored and may be None. Among (0, 1): 1.563623. ValueError for a smoothing outside [0, 1).
    """
    _require(0 <= smoothing < 1, f"smoothing must lie in [0, 1), found {smoothing}")
    student_logits = raw_logits(student_logits)
    logprobs = student_logits.log_softmax(-1)
    uniform = -(logprobs if among is None else logprobs[..., among]).mean(-1)
    return (1 - smoothing) * cross_entropy(student_logits, tokens.targets) + smoothing * uniform


def gated_forward_kl(student_logits, teacher_logits, tokens, accept_top_k=3, rejected=0.0):
    """Forward KL, times `rejected` where the student's best token is not in the teacher's accept_top_k; -> (B, T) nats.

    SpecKD (arXiv 2510.24021, from summaries; the token itself is not asked): learn where the student is nearly right.
    Ties count for the student. Rejected positions stay in the denominator: a mean over all tokens, so the loss shrinks
    with the share of rejections. Example: .396058 (the student's best is the teacher's second), 0 at accept_top_k 1.
    ValueError for accept_top_k below 1.
    """
    _require(accept_top_k >= 1, f"accept_top_k must be at least 1, found {accept_top_k}")
    per_token, proposal = forward_kl(student_logits, teacher_logits), student_logits.argmax(-1, keepdim=True)
    better = (teacher_logits > teacher_logits.gather(-1, proposal)).sum(-1)
    return torch.where(better < accept_top_k, 1.0, rejected) * per_token


def jsd_by_writer(student_logits, teacher_logits, tokens, beta=0.5):
    """Each half of a Jensen-Shannon divergence on its own model's tokens -> (B, T) nats. Example: .094582 or .087660.

    Where the student wrote 2 beta KL(student || mix), where the teacher wrote 2 (1 - beta) KL(teacher || mix), with
    mix = (1 - beta) teacher + beta student. So every expectation is under the model that it belongs to (f-distill,
    arXiv 2307.15190); with half of the tokens from either, the 2 makes the mean their sum. beta is the student's share
    here and the teacher's in generalized_jsd, which at beta is half the sum of both branches at 1 - beta. ValueError
    for beta outside (0, 1).
    """
    _require(0 < beta < 1, f"beta must lie strictly between 0 and 1, found {beta}")
    student_logprobs, teacher_logprobs = _logprobs(student_logits, teacher_logits)
    mix_logprobs = _log_mixture(student_logprobs, teacher_logprobs, beta)
    student_side, teacher_side = kl(student_logprobs, mix_logprobs), kl(teacher_logprobs, mix_logprobs)
    return torch.where(tokens.by_teacher, 2 * (1 - beta) * teacher_side, 2 * beta * student_side)


def skew_by_writer(student_logits, teacher_logits, tokens, alpha=0.1, beta=1.0):
    """(2 - beta) skew_forward_kl on the teacher's tokens, beta skew_reverse_kl on the student's -> (B, T) nats.

    DistiLLM-2 (arXiv 2503.07067): pull up what the teacher writes, push down what only the student writes. The student
    inside the reverse side's mixture is detached, as there. Example: .305811 or .292107. ValueError for alpha outside
    [0, 1).
    """
    pulled = skew_forward_kl(student_logits, teacher_logits, alpha)
    pushed = skew_reverse_kl(student_logits, teacher_logits, alpha, detach_mixture=True)
    return torch.where(tokens.by_teacher, (2 - beta) * pulled, beta * pushed)


def confidence_gated(student_logits, teacher_logits, tokens, top_k=8):
    """Cross-entropy where the teacher wrote (replaced) the token, top_k_kl elsewhere -> (B, T) nats.

    CA-OPD (2026): a replaced token is a label. Example: 1.609438 (target 0) or .396058. ValueError for top_k below 1.
    """
    label = cross_entropy(student_logits, tokens.targets)
    return torch.where(tokens.by_teacher, label, top_k_kl(student_logits, teacher_logits, top_k))


def random_sampling_kd(student_logits, ids, weights):
    """Cross-entropy with a few tokens drawn from the teacher: (B, T, V), (B, T, N) long, (B, T, N) -> (B, T) nats.

    -sum_n weights_n log student(ids_n); a token that is drawn twice counts twice. With N draws from the teacher and
    weights 1/N the target is unbiased (arXiv 2503.16870), unlike its top k; with draws from another proposal take
    weights teacher / (N proposal), not normalised: normalising them brings a bias. Example, ids 0, 0, 1: 1.304008.
    """
    student_logprobs = raw_logits(student_logits).log_softmax(-1)
    return -(weights.detach() * student_logprobs.gather(-1, ids)).sum(-1)


# (student_logits, teacher_logits, tokens) -> per_token (B, T), each position for itself.
TOKEN_LOSSES = {
    "decoupled_kd": decoupled_kd,
    "label_smoothing": label_smoothing,
    "gated_forward_kl": gated_forward_kl,
    "jsd_by_writer": jsd_by_writer,
    "skew_by_writer": skew_by_writer,
    "confidence_gated": confidence_gated,
}


# ---------------------------------------------------------------------------------------------------------------------
# 4. Losses of a sequence: a position's value depends on other positions of its row.


def _chosen_and_single(student_logits, teacher_logits, targets):
    """Reverse KL, log student(target) and log teacher(target) at every position, stacked: -> (B, T, 3)."""
    student_logprobs, teacher_logprobs = _logprobs(student_logits, teacher_logits)
    targets = _checked(targets, student_logprobs)
    chosen = [logprobs.gather(-1, targets[..., None])[..., 0] for logprobs in (student_logprobs, teacher_logprobs)]
    return torch.stack([kl(student_logprobs, teacher_logprobs), *chosen], -1)


def minillm(student_logits, teacher_logits, targets, mask, teacher_mix=0.2, length_norm=True):
    """MiniLLM's policy gradient of the sequence-level reverse KL (arXiv 2306.08543) -> per_token (B, T).

    With reward r_t = log teacher(y_t) - log student(y_t) the exact gradient has two parts: the reverse KL of every
    position (single step), and for each token the rewards of what came after it (long): - R_{t+1} grad log
    student(y_t), R_{t+1} the sum of later rewards, or with length_norm their mean. Both are weighted by w_t =
    student(y_t) / (what wrote y_t), which is teacher_mix * teacher + (1 - teacher_mix) * student for teacher-mixed
    samples and the student itself at teacher_mix 0. (Exact would be the product of these ratios over all tokens up to
    t, whose spread grows with the length; the paper takes the token's own.) Both models' logits at temperature 1, as
    the samples. Only the gradient has a meaning, the value is not a distance.

    Rewards 1, 2, 3 give R_{t+1} = 5, 3, 0 as sums and 2.5, 3, 0 as means. The paper's clipping and its language-model
    loss on a pretraining corpus are left out: each batch is used for one update, and there is no such corpus here.
    """
    columns = by_chunks(_chosen_and_single, _inside(student_logits, mask), _inside(teacher_logits, mask), targets)
    single, student_chosen, teacher_chosen = columns.unbind(-1)
    with torch.no_grad():
        reward = (teacher_chosen - student_chosen).masked_fill(~mask, 0.0)
        later = reward.flip(-1).cumsum(-1).flip(-1) - reward  # (B, T): the sum over i > t
        if length_norm:
            tokens_left = mask.flip(-1).cumsum(-1).flip(-1) - mask.long()
            later = later / tokens_left.clamp(min=1)
        weight = torch.ones_like(reward)
        if teacher_mix > 0:
            writer = _log_mixture(teacher_chosen, student_chosen, teacher_mix)
            weight = (student_chosen - writer).exp()  # at most 1 / (1 - teacher_mix)
    return weight * (single - later * student_chosen)


def _inside(model_logits, mask):
    """Logits, or features, with zeros wherever the mask is False: not even nan there reaches a head's gradient."""
    if isinstance(model_logits, HiddenStates):
        return HiddenStates(_inside(model_logits.features, mask), model_logits.head)
    return model_logits.masked_fill(~mask[..., None], 0.0)


def discounted_sum(reward, mask, discount):
    """sum over i >= t in the mask of discount^(i - t) reward_i, (B, T), (B, T) bool -> (B, T).

    Rewards 1, 2, 3 at discount .5: 2.75, 3.5, 3. (discount^i, from the start of the row, would give 2.75, 1.75, .75.)
    """
    later, sums = torch.zeros_like(reward[:, 0]), []
    for now in reversed(reward.masked_fill(~mask, 0.0).unbind(1)):
        later = now + discount * later
        sums.append(later)
    return torch.stack(sums[::-1], 1)


def policy_gradient(
    student_logits, teacher_logits, tokens, discount=0.0, baseline=False, early=0.0, beta=1.0, bonus=0.0, clip=None
):
    """On-policy distillation: -advantage * log student(y_t) on tokens that the student drew -> per_token (B, T).

    advantage_t = beta (log teacher(y_t) - log student(y_t)), constant for the gradient; with a discount plus that of
    later tokens (discounted_sum). At discount 0 its expected gradient is that of reverse_kl at every position
    (thinkingmachines.ai, 2025); at 1 that of the sequences' reverse KL. `baseline` takes off what the position is worth
    on average, -reverse_kl: the same expectation with less noise (arXiv 2605.07865). `bonus`, a number, (B, 1) or
    (B, T), is a reward beside the teacher's, added to the advantage as it is. `early` times the share of the row's
    |advantage| that is still to come is added to a token's weight of 1 (IW-OPD, arXiv 2606.22600): the further a prefix
    has strayed, the less the teacher's word on it counts. `clip` bounds the advantage on either side (MOPD, arXiv
    2606.30406). Only the gradient has a meaning. Example, y_t 0: 1.768148, with the baseline 2.356034, at early .5
    2.652222, at clip 1 1.609438. 0 outside the mask. ValueError for a discount outside [0, 1], and with a baseline but
    at 0, a negative `early` and a clip that is not positive.
    """
    _require(0 <= discount <= 1, f"discount must lie in [0, 1], found {discount}")
    _require(not baseline or discount == 0, f"the baseline is one step's worth: discount must be 0, found {discount}")
    _require(early >= 0, f"early must not be negative, found {early}")
    _require(clip is None or clip > 0, f"clip must be positive, found {clip}")
    mask, targets = tokens.mask, tokens.targets.masked_fill(~tokens.mask, 0)
    columns = by_chunks(_chosen_and_single, _inside(student_logits, mask), _inside(teacher_logits, mask), targets)
    single, student_chosen, teacher_chosen = columns.unbind(-1)
    with torch.no_grad():
        advantage = discounted_sum(teacher_chosen - student_chosen, mask, discount)
        if baseline:
            advantage = advantage + single
        advantage = (beta * advantage + bonus).masked_fill(~mask, 0.0)
        if clip is not None:
            advantage = advantage.clamp(-clip, clip)
        size = advantage.abs()
        total = size.sum(-1, keepdim=True).clamp(min=torch.finfo(size.dtype).tiny)
        advantage = advantage * (1 + early * (1 - (size.cumsum(-1) - size) / total))
    return -advantage * student_chosen


def extrapolation(teacher_logits, start_logits, tokens, strength=1.25):
    """(strength - 1) (log teacher(y_t) - log start(y_t)): ExOPD's `bonus`, a constant -> (B, T). y_t 0: .274653.

    G-OPD (arXiv 2602.12125): with it the advantage is strength (log teacher - log start) - (log student - log start),
    the teacher's reward counted from where the student started. Strength 1 is on-policy distillation whatever the
    start, above 1 the target lies beyond the teacher. (The example has its student for a start.) 0 outside the mask.
    """
    targets = tokens.targets.masked_fill(~tokens.mask, 0)
    with torch.no_grad():
        teacher_nll, start_nll = (
            by_chunks(cross_entropy, _inside(logits, tokens.mask), targets) for logits in (teacher_logits, start_logits)
        )
        return (strength - 1) * (start_nll - teacher_nll).masked_fill(~tokens.mask, 0.0)


def comparative(student_logits, teacher_logits, tokens, label_weight=1.0, teacher_weight=1.0):
    """Differences between positions, student against teacher and against labels; one value per row -> (B, T) (no unit).

    CKD (arXiv 2311.02253) compares samples in pairs: ||(s_i - s_j) - (t_i - t_j)||^2 / V with s and t centred logits,
    here averaged over all ordered pairs of a row's masked positions, the same with one-hot labels for t. In closed
    form, with e = s - t: 2 (mean ||e||^2 - ||mean e||^2) / V, plain logit regression but for the row's mean error. So
    it is blind to a constant vector that is added at every position. The value stands at every masked position, 0
    elsewhere. Pairs within a row, and centring (a softmax ignores a shift), are our transfer to sequences. A row of one
    position, as the example: 0.
    """
    outside = ~tokens.mask[..., None]
    student_logits, teacher_logits = (
        raw_logits(to_logits(_inside(x, tokens.mask))) for x in (student_logits, teacher_logits.detach())
    )
    _assert_one_vocabulary(student_logits, teacher_logits)
    count = tokens.mask.sum(-1).clamp(min=1)[:, None, None]

    def over_pairs(wanted):
        error = student_logits - wanted
        error = (error - error.mean(-1, keepdim=True)).masked_fill(outside, 0.0)
        deviation = (error - error.sum(1, keepdim=True) / count).masked_fill(outside, 0.0)
        return 2 * (deviation.square().sum((1, 2), keepdim=True) / count)[..., 0] / error.size(-1)

    per_row = teacher_weight * over_pairs(teacher_logits)
    if label_weight:
        targets = tokens.targets.masked_fill(~tokens.mask, 0)
        labels = torch.zeros_like(student_logits).scatter(-1, targets[..., None], 1.0)
        per_row = per_row + label_weight * over_pairs(labels)
    return per_row.expand_as(tokens.mask).masked_fill(~tokens.mask, 0.0)


def weight_of_best(score, mask, share):
    """What each position counts if of every row only the best `share` by `score` do: (B, T), (B, T) bool -> (B, T).

    Of n masked positions k = share * n, rounded up, count n / k each, so that their mean is the row's; of equals the
    earlier one. Scores 1, 4, 2, 3 at share .5 give 0, 2, 0, 2. ValueError for a share outside (0, 1].
    """
    _require(0 < share <= 1, f"the share of positions must lie in (0, 1], found {share}")
    count = mask.sum(-1, keepdim=True)
    kept = (share * count - 1e-3).ceil().clamp(min=1)  # a fifth of 35 are 7, however it is rounded
    rank = score.masked_fill(~mask, float("-inf")).argsort(dim=-1, descending=True, stable=True).argsort(-1)
    return (mask & (rank < kept)) * count / kept


def chosen_positions(student_logits, teacher_logits, tokens, share=0.2, score="entropy", divergence="forward_kl"):
    """A divergence at the best `share` of each response's positions, times 1 / share; 0 elsewhere: -> per_token (B, T).

    score "entropy": where the student is least sure (SE-KD, arXiv 2602.01395). "soft_or": h + d - h d with h = entropy
    / ln V and d = Jensen-Shannon divergence / ln 2, so that one of both is enough: unsure, or sure and wrong (TIP,
    2604.14084). The choice is constant, see weight_of_best; a response's mean is that of its chosen positions, and
    share 1 is the divergence, a name in DIVERGENCES. A row of one position, as the example: .396058. ValueError for
    another score or divergence.
    """
    _require(score in ("entropy", "soft_or"), f"score must be entropy or soft_or, found {score!r}")
    _require(divergence in DIVERGENCES, f"divergence must be one of {', '.join(DIVERGENCES)}, found {divergence!r}")

    def columns(student_logits, teacher_logits):
        with torch.no_grad():
            unsure = entropy(student_logits) / math.log(max(2, student_logits.size(-1)))
            wrong = generalized_jsd(student_logits, teacher_logits) / math.log(2) if score == "soft_or" else 0 * unsure
        return torch.stack(
            [DIVERGENCES[divergence](student_logits, teacher_logits), unsure + wrong - unsure * wrong], -1
        )

    both = (_inside(model_logits, tokens.mask) for model_logits in (student_logits, teacher_logits))
    per_token, found = by_chunks(columns, *both).unbind(-1)
    return per_token * weight_of_best(found.detach(), tokens.mask, share)


# (student_logits, teacher_logits, tokens) -> per_token (B, T); never through by_chunks, which would cut a row.
SEQUENCE_LOSSES = {
    "policy_gradient": policy_gradient,
    "comparative": comparative,
    "chosen_positions": chosen_positions,
}

NO_TEACHER = ("cross_entropy", "label_smoothing")  # names of per_token_loss that ask nobody


def loss_names():
    """Every name that per_token_loss knows."""
    return ["cross_entropy", *DIVERGENCES, *MATCHING_LOSSES, *TOKEN_LOSSES, *SEQUENCE_LOSSES]


def check_loss(name, loss_kwargs):
    """ValueError with one line for a keyword or a value that the loss `name` does not take, or cannot work with in
    float32: it is tried on two tokens."""
    student_logits, teacher_logits = torch.tensor([[[0.0, 1, 2], [1, 0, 2]]]), torch.tensor([[[1.0, 0, 0], [0, 2, 0]]])
    tokens = Tokens(torch.tensor([[0, 1]]), torch.ones(1, 2, dtype=torch.bool), torch.zeros(1, 2, dtype=torch.bool))
    try:
        per_token = per_token_loss(name, student_logits, teacher_logits, tokens, **loss_kwargs)
    except (TypeError, AssertionError, RuntimeError, ArithmeticError) as error:
        raise ValueError(f"{name} does not take {loss_kwargs}: {str(error).splitlines()[0]}") from error
    _require(bool(per_token.isfinite().all()), f"{name} with {loss_kwargs} is not finite: take less extreme numbers")


def per_token_loss(name, student_logits, teacher_logits, tokens, **loss_kwargs):
    """The loss called `name`, from whichever table has it, at every position -> per_token (B, T).

    Either model's logits (B, T, V) may be HiddenStates; what needs one position at a time goes through by_chunks.
    Beside the four tables "cross_entropy" is a name; it and label_smoothing take None for a teacher. ValueError for
    another name.
    """
    if name in SEQUENCE_LOSSES:
        return SEQUENCE_LOSSES[name](student_logits, teacher_logits, tokens, **loss_kwargs)
    if name == "cross_entropy":
        return by_chunks(functools.partial(cross_entropy, **loss_kwargs), student_logits, tokens.targets)
    pairs = DIVERGENCES | MATCHING_LOSSES
    if name in pairs:
        return by_chunks(functools.partial(pairs[name], **loss_kwargs), student_logits, teacher_logits)
    _require(name in TOKEN_LOSSES, f"no loss {name!r}: choose from {', '.join(loss_names())}")
    loss = functools.partial(TOKEN_LOSSES[name], **loss_kwargs)
    if teacher_logits is None:
        return by_chunks(lambda own, *columns: loss(own, None, Tokens(*columns)), student_logits, *tokens)
    return by_chunks(lambda own, other, *columns: loss(own, other, Tokens(*columns)), student_logits, teacher_logits,
                     *tokens)  # fmt: skip


def with_tail(model_logits, ids):
    """Log-probs of the tokens `ids` and, last, of all others together: (..., V), (..., k) long -> (..., k + 1).

    k + 1 classes in place of V tokens; a divergence of two such rows is at most that of the whole rows. Teacher of the
    example, ids 0: log (.6, .4); forward_kl against the student is then .381909.
    """
    logprobs = at_least_float32(model_logits).log_softmax(-1)
    assert ids.size(-1) < logprobs.size(-1), f"{ids.size(-1)} of {logprobs.size(-1)} tokens leave no tail"
    tail = logprobs.scatter(-1, ids, float("-inf")).logsumexp(-1, keepdim=True)
    return torch.cat([logprobs.gather(-1, ids), tail], -1)


# ---------------------------------------------------------------------------------------------------------------------
# 5. Large vocabularies: losses that never hold the logits of a whole batch.


class HiddenStates(NamedTuple):
    """Logits that nobody has computed: `features` (B, T, C), a model's last hidden states, and its `head` (V, C).

    logits = features @ head^T. At V = 50,257 and C = 768 they are 65 times larger than the features.
    """

    features: torch.Tensor
    head: torch.Tensor

    def detach(self):
        return HiddenStates(self.features.detach(), self.head.detach())

    def __truediv__(self, temperature):
        return HiddenStates(self.features / temperature, self.head)


def to_logits(model_logits):
    """The logits (B, T, V) themselves, worked out if they are HiddenStates."""
    return F.linear(*model_logits) if isinstance(model_logits, HiddenStates) else model_logits


AT_ONCE = 2**22  # logits of one chunk: 16 MiB in float32


def by_chunks(function, *inputs, at_once=AT_ONCE):
    """function(*inputs) at every position, (B, T) or (B, T, k), with the logits of a few positions at a time.

    Inputs are HiddenStates, or tensors (B, T, ...) that are cut alongside, such as targets; where none is HiddenStates,
    this is function(*inputs). A chunk holds at most `at_once` logits of one model (at least one position) and is worked
    out again for the backward pass: value and gradients are those of the whole, for one more product with the head.
    """
    if not any(isinstance(x, HiddenStates) for x in inputs):
        return function(*inputs)
    heads = [x.head if isinstance(x, HiddenStates) else None for x in inputs]
    rows = [x.features if isinstance(x, HiddenStates) else x for x in inputs]
    shape, vocab_size = rows[0].shape[:2], max(len(head) for head in heads if head is not None)

    def piece(*parts):
        return function(*(part if head is None else F.linear(part, head) for part, head in zip(parts, heads)))

    chunks = zip(*(x.flatten(0, 1).split(max(1, at_once // vocab_size)) for x in rows))
    # Nothing here draws a number, so there is no state of a generator to keep.
    parts = [checkpoint(piece, *parts, use_reentrant=False, preserve_rng_state=False) for parts in chunks]
    return torch.cat(parts).unflatten(0, shape)


# ---------------------------------------------------------------------------------------------------------------------
# 6. Reduction and diagnostics.


def weight_of(mask, reduction="token"):
    """What masked_mean divides by: the number of masked tokens, or of rows that have any; a scalar tensor."""
    _require(reduction in ("token", "sequence"), f"reduction must be token or sequence, found {reduction!r}")
    return mask.sum() if reduction == "token" else mask.any(-1).sum()


def masked_mean(per_token, mask, reduction="token", total=None):
    """Scalar from per_token (B, T) over the positions where mask (B, T) is True; 0 with a graph where there are none.

    reduction "token": the mean over all masked positions, every token counts the same (ours by default);
    "sequence": the mean over each row first, then over the rows that have any, every response counts the same (the
    papers' Eq. 1); "sum": the plain sum. Rows 1 1 1 1 and 5 - - - give 1.8, 3.0 and 9.0.

    `total` is what to divide by in place of weight_of(mask): where a batch is worked on in parts, the whole batch's, so
    that the parts add up to its mean. (A mean of means would weigh tokens by how full their part is.)
    """
    # (B, T, 1) would broadcast
    assert per_token.shape == mask.shape, f"{tuple(per_token.shape)} and mask {tuple(mask.shape)}"
    assert mask.dtype == torch.bool, f"a mask is bool, found {mask.dtype}"
    # Fill, do not multiply: a nan or inf at a padded position must not leak (0 * inf = nan).
    kept = per_token.masked_fill(~mask, 0.0)
    if reduction == "sum":
        return kept.sum()
    if reduction not in ("token", "sequence"):
        raise ValueError(f"reduction must be token, sequence or sum, found {reduction!r}")
    if reduction == "sequence":
        kept = kept.sum(-1) / mask.sum(-1).clamp(min=1)  # (B,)
    # A total may be below 1: the mean over several processes, one of which alone has a token.
    return kept.sum() / (weight_of(mask, reduction).clamp(min=1) if total is None else total.clamp(min=1e-9))


def without_nan_outside(model_logits, mask):
    """The same logits, or features, such that nan outside the mask (rows, T), of either model, reaches no gradient.

    A masked mean sends 0 back to what it leaves out, and a loss makes nan of it where a logit is nan (0 * nan). Finite
    numbers stay as they are, there too.
    """
    outside = ~mask[..., None]

    def mended(x):
        broken = outside & x.sum(-1, keepdim=True).isnan()  # (rows, T, 1)
        if x.device.type == "cpu" and not broken.any():  # saves a copy; elsewhere the question would cost a wait
            return x
        return x.masked_fill(broken, 0.0)

    if isinstance(model_logits, HiddenStates):  # whose head is multiplied by them
        return model_logits._replace(features=mended(model_logits.features))
    if model_logits.requires_grad:
        model_logits.register_hook(mended)
    return model_logits


def entropy(model_logits):
    """Entropy of the next-token distribution, (B, T, V) -> (B, T) nats; teacher of the example: .897946."""
    logprobs = at_least_float32(model_logits).log_softmax(-1)
    return -(logprobs.exp() * logprobs).sum(-1)


if __name__ == "__main__":
    from lab.gallery import main  # only here: a loss knows nothing of tables and pictures

    try:
        sys.exit(main())
    except OSError as error:
        sys.exit(f"losses.py: {error}")
