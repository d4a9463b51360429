"""Every loss of this project: pure functions of logits, one value per position, and one masked reduction.

A divergence compares two next-token distributions at the same position, after the same prefix:

    (student_logits, teacher_logits), each (B, T, V)  ->  per_token (B, T), in nats, float32

and `masked_mean` turns per-token values into the scalar that is trained on. Nothing here runs a model, draws a number
or knows a mask before the reduction, so each function can be checked by hand on three tokens.

Which way round? "Forward" always means teacher first: forward_kl = KL(teacher || student). The papers write the teacher
as p (SKD: M_t) and the student as q (M_s); the code never uses these letters, because half of the literature swaps them.

Two rules that every function follows:
- The arithmetic is float32 log space (float64 inputs stay float64): log_softmax and logaddexp, never log(softmax + eps).
  bf16 sums over a vocabulary drift, and an eps changes the gradient exactly where student and teacher disagree most.
- Logits come in raw. Logits filtered to -inf for sampling make 0 * (-inf) = nan here, so filters belong to sampling.

The number in each docstring is the value for TEACHER (.6, .3, .1) against STUDENT (.2, .5, .3): check one by hand.
The teacher is detached inside, gradients reach the student only. Formulas and gradients: arXiv 2306.13649 (GKD),
2402.03898 (DistiLLM, skew divergences), 1503.02531 (Hinton's mixture).
"""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint


def at_least_float32(x):
    """fp16 and bf16 become float32, float64 stays: what the arithmetic of every loss is done in."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _logprobs(student_logits, teacher_logits):
    """Both log-distributions in at least float32, the teacher without gradient: two (B, T, V) tensors."""
    assert student_logits.shape == teacher_logits.shape, (
        f"student {tuple(student_logits.shape)} and teacher {tuple(teacher_logits.shape)} must share one vocabulary"
    )
    return at_least_float32(student_logits).log_softmax(-1), at_least_float32(teacher_logits.detach()).log_softmax(-1)


def _log_mixture(first_logprobs, second_logprobs, first_weight):
    """log(w * first + (1 - w) * second) without leaving log space; w strictly between 0 and 1."""
    return torch.logaddexp(first_logprobs + math.log(first_weight), second_logprobs + math.log1p(-first_weight))


# ---------------------------------------------------------------------------------------------------------------------
# Divergences. All have one skeleton: two log-softmaxes, one line of mathematics, one sum over V.


def forward_kl(student_logits, teacher_logits):
    """KL(teacher || student) at every position, (B, T, V), (B, T, V) -> (B, T). Example: .396058 nats.

    Mean-seeking: the student pays wherever the teacher has mass and it has none. Gradient in the student's logits:
    student_probs - teacher_probs. The teacher's entropy is included, so that 0 means equal. (SKD's default, Eq. 1.)
    """
    student_logprobs, teacher_logprobs = _logprobs(student_logits, teacher_logits)
    return (teacher_logprobs.exp() * (teacher_logprobs - student_logprobs)).sum(-1)


def reverse_kl(student_logits, teacher_logits):
    """KL(student || teacher) at every position, (B, T, V), (B, T, V) -> (B, T). Example: .365274 nats.

    Mode-seeking: the student pays wherever it puts mass and the teacher puts none. The per-token part of MiniLLM.
    """
    student_logprobs, teacher_logprobs = _logprobs(student_logits, teacher_logits)
    return (student_logprobs.exp() * (student_logprobs - teacher_logprobs)).sum(-1)


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
    teacher_side = (teacher_logprobs.exp() * (teacher_logprobs - mix_logprobs)).sum(-1)
    student_side = (student_logprobs.exp() * (student_logprobs - mix_logprobs)).sum(-1)
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
    return (teacher_logprobs.exp() * (teacher_logprobs - mix_logprobs)).sum(-1)


def skew_reverse_kl(student_logits, teacher_logits, alpha=0.1):
    """KL(student || alpha student + (1 - alpha) teacher) at every position -> (B, T). Example: .292107 at alpha .1.

    DistiLLM's skew reverse KL, at most -ln alpha; the gradient flows through the student inside the mixture too.
    alpha 0 is reverse KL; ValueError outside [0, 1).
    """
    if not 0 <= alpha < 1:
        raise ValueError(
            f"alpha must lie in [0, 1), found {alpha}: at 1 the mixture is the student and nothing is learned"
        )
    if alpha == 0:
        return reverse_kl(student_logits, teacher_logits)
    student_logprobs, teacher_logprobs = _logprobs(student_logits, teacher_logits)
    mix_logprobs = _log_mixture(student_logprobs, teacher_logprobs, alpha)
    return (student_logprobs.exp() * (student_logprobs - mix_logprobs)).sum(-1)


def total_variation(student_logits, teacher_logits):
    """Half the L1 distance of the two distributions, in 0..1 (no unit) -> (B, T). Example: .4.

    1 - total_variation is the chance that lossless speculative decoding accepts a token drafted by the student.
    """
    student_logprobs, teacher_logprobs = _logprobs(student_logits, teacher_logits)
    return 0.5 * (teacher_logprobs.exp() - student_logprobs.exp()).abs().sum(-1)


def squared_error(student_logits, teacher_logits):
    """Sum over V of (student - teacher)^2 in probabilities, at most 2 (no unit) -> (B, T). Example: .24.

    What PESF-KD (arXiv 2205.15308) takes for both players; its code has the mean over V, which vanishes for large V.
    """
    student_logprobs, teacher_logprobs = _logprobs(student_logits, teacher_logits)
    return (student_logprobs.exp() - teacher_logprobs.exp()).square().sum(-1)


# A new divergence is one function above and one row here: tests and the command line follow from the table.
DIVERGENCES = {
    "forward_kl": forward_kl,
    "reverse_kl": reverse_kl,
    "generalized_jsd": generalized_jsd,
    "skew_forward_kl": skew_forward_kl,
    "skew_reverse_kl": skew_reverse_kl,
    "total_variation": total_variation,
    "squared_error": squared_error,
}


# ---------------------------------------------------------------------------------------------------------------------
# Losses that need the token itself.


def cross_entropy(student_logits, targets):
    """-log student(target) at every position: (B, T, V), (B, T) long -> (B, T) nats. Target 0 of the example: 1.609438.

    `targets[:, t]` belongs to row t of the logits: shift once, outside (targets = tokens[:, 1:]).
    """
    assert student_logits.shape[:-1] == targets.shape, (
        f"{tuple(student_logits.shape)} and targets {tuple(targets.shape)}"
    )
    return F.cross_entropy(at_least_float32(student_logits).flatten(0, -2), targets.flatten(), reduction="none").view(
        targets.shape
    )


def soften(model_logits, temperature):
    """Logits / T, in float32: bf16 logits divided by T would be rounded a second time."""
    return (model_logits if isinstance(model_logits, Unprojected) else at_least_float32(model_logits)) / temperature


def hinton_mixture(student_logits, teacher_logits, targets, kd_weight=0.5, temperature=1.0, divergence=forward_kl):
    """(1 - kd_weight) cross-entropy + kd_weight T^2 D(teacher^T, student^T) at every position -> (B, T) nats.

    Hinton's word-level distillation (arXiv 1503.02531). Softening both sides by T shrinks the gradient by 1/T^2; the
    factor T^2 gives it back, so that kd_weight means the same at every temperature. With kd_weight 1 and T = 4 the
    example gives .432038; for T to infinity it tends to the squared distance of the centred logits / (2V), .431310.
    """
    assert temperature > 0, f"the distillation temperature must be positive, found {temperature}"
    soft = divergence(soften(student_logits, temperature), soften(teacher_logits, temperature))
    return (1 - kd_weight) * cross_entropy(student_logits, targets) + kd_weight * temperature**2 * soft


def minillm(student_logits, teacher_logits, targets, mask, teacher_mix=0.2, length_norm=True):
    """MiniLLM's policy gradient of the sequence-level reverse KL (arXiv 2306.08543) -> per_token (B, T).

    With reward r_t = log teacher(y_t) - log student(y_t) the exact gradient has two parts: the reverse KL of every
    position (single step), and for each token the rewards of what came after it (long): - R_{t+1} grad log student(y_t),
    R_{t+1} the sum of later rewards, or with length_norm their mean. Both are weighted by w_t = student(y_t) / (what
    wrote y_t), which is teacher_mix * teacher + (1 - teacher_mix) * student for teacher-mixed samples and the student
    itself at teacher_mix 0. Only the gradient has a meaning, the value is not a distance.

    Rewards 1, 2, 3 give R_{t+1} = 5, 3, 0 as sums and 2.5, 3, 0 as means. The paper's clipping and its language-model
    loss on a pretraining corpus are left out: each batch is used for one update, and there is no such corpus here.
    """

    def columns(student_logits, teacher_logits, targets):
        student_logprobs, teacher_logprobs = _logprobs(student_logits, teacher_logits)
        chosen = [logprobs.gather(-1, targets[..., None])[..., 0] for logprobs in (student_logprobs, teacher_logprobs)]
        single = (student_logprobs.exp() * (student_logprobs - teacher_logprobs)).sum(-1)
        return torch.stack([single, *chosen], -1)

    single, student_chosen, teacher_chosen = by_chunks(columns, student_logits, teacher_logits, targets).unbind(-1)
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


def with_tail(model_logits, ids):
    """Log-probs of the tokens `ids` and, last, of all others together: (..., V), (..., k) long -> (..., k + 1).

    k + 1 buckets in place of V tokens; a divergence of two such rows is at most that of the whole rows. Teacher of the
    example, ids 0: log (.6, .4); forward_kl against the student is then .381909.
    """
    logprobs = at_least_float32(model_logits).log_softmax(-1)
    assert ids.size(-1) < logprobs.size(-1), f"{ids.size(-1)} of {logprobs.size(-1)} tokens leave no tail"
    tail = logprobs.scatter(-1, ids, float("-inf")).logsumexp(-1, keepdim=True)
    return torch.cat([logprobs.gather(-1, ids), tail], -1)


# ---------------------------------------------------------------------------------------------------------------------
# Large vocabularies: losses that never hold the logits of a whole batch.


class Unprojected(NamedTuple):
    """Logits that nobody has computed: `features` (B, T, C), a model's last hidden states, and its `head` (V, C).

    logits = features @ head^T. At V = 50,257 and C = 768 they are 65 times larger than the features.
    """

    features: torch.Tensor
    head: torch.Tensor

    def detach(self):
        return Unprojected(self.features.detach(), self.head.detach())

    def __truediv__(self, temperature):
        return Unprojected(self.features / temperature, self.head)


AT_ONCE = 2**22  # logits of one chunk: 16 MiB in float32


def by_chunks(function, *inputs, at_once=AT_ONCE):
    """function(*inputs) at every position, (B, T) or (B, T, k), with the logits of a few positions at a time.

    Inputs are Unprojected, or tensors (B, T, ...) that are cut alongside, such as targets; where none is Unprojected,
    this is function(*inputs). A chunk holds at most `at_once` logits of one model (at least one position) and is worked
    out again for the backward pass: value and gradients are those of the whole, for one more product with the head.
    """
    if not any(isinstance(x, Unprojected) for x in inputs):
        return function(*inputs)
    heads = [x.head if isinstance(x, Unprojected) else None for x in inputs]
    rows = [x.features if isinstance(x, Unprojected) else x for x in inputs]
    shape, vocab_size = rows[0].shape[:2], max(len(head) for head in heads if head is not None)

    def piece(*parts):
        return function(*(part if head is None else F.linear(part, head) for part, head in zip(parts, heads)))

    chunks = zip(*(x.flatten(0, 1).split(max(1, at_once // vocab_size)) for x in rows))
    # Nothing here draws a number, so there is no state of a generator to keep.
    parts = [checkpoint(piece, *parts, use_reentrant=False, preserve_rng_state=False) for parts in chunks]
    return torch.cat(parts).unflatten(0, shape)


# ---------------------------------------------------------------------------------------------------------------------
# Reduction and diagnostics.


def weight_of(mask, reduction="token"):
    """What masked_mean divides by: the number of masked tokens, or of rows that have any; a scalar tensor."""
    return mask.sum() if reduction == "token" else mask.any(-1).sum()


def masked_mean(per_token, mask, reduction="token", total=None):
    """Scalar from per_token (B, T) over the positions where mask (B, T) is True; 0 with a graph where there are none.

    reduction "token": the mean over all masked positions, every token counts the same (ours by default);
    "sequence": the mean over each row first, then over the rows that have any, every response counts the same (the
    papers' Eq. 1); "sum": the plain sum. Rows 1 1 1 1 and 5 - - - give 1.8, 3.0 and 9.0.

    `total` is what to divide by in place of weight_of(mask): where a batch is worked on in parts, the whole batch's, so
    that the parts add up to its mean. (A mean of means would weigh tokens by how full their part is.)
    """
    assert per_token.shape == mask.shape, (
        f"{tuple(per_token.shape)} and mask {tuple(mask.shape)}"
    )  # (B, T, 1) would broadcast
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


def entropy(model_logits):
    """Entropy of the next-token distribution, (B, T, V) -> (B, T) nats; teacher of the example: .897946."""
    logprobs = at_least_float32(model_logits).log_softmax(-1)
    return -(logprobs.exp() * logprobs).sum(-1)
