"""Losses of what happens inside a model: its hidden states, and the gradient with respect to its input.

Word-level distillation asks for the same next-token distribution; these ask for more, at a chosen pair of layers:

    (student_hidden (B, T, C_s), teacher_hidden (B, T, C_t), target_mask (B, T) bool)  ->  per_token (B, T), float32

`losses.masked_mean` reduces them like every other loss; they have no unit. They come in two families:
- Of single vectors (hidden_mse, hidden_cosine): both widths must agree, so a Projector stands behind the student.
- Of relations between positions (the others): similarities, distances and angles WITHIN one sequence, which compare
  across widths. The value belongs to a sequence, and each of its masked positions carries it, or a share whose mean it
  is: rows may be split, padded or shuffled, and the masked mean over a row is the value that its paper has for a batch.

Rules that every function follows: float32 arithmetic, under autocast too (float64 inputs stay float64); the teacher is
detached inside; what lies outside the mask is replaced by 0 before any arithmetic, so that even a nan there changes
neither value nor gradient; a vector of zeros has no direction, and its unit vector is taken to be 0.

The number in each docstring is the masked mean for a sequence of three positions, teacher_hidden (3,0) (0,4) (3,4)
against student_hidden (4,0) (0,3) (4,3): check one by hand. `capture_hidden` collects such hidden states from a GPT.
"""

from contextlib import contextmanager
from types import SimpleNamespace

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from losses import at_least_float32


def _visible(x, mask):
    """x (B, T, C) in at least float32, and 0 outside the mask (B, T)."""
    assert x.shape[:2] == mask.shape, f"{tuple(x.shape)} and mask {tuple(mask.shape)}"
    return at_least_float32(x).masked_fill(~mask[..., None], 0.0)


def _both(student_hidden, teacher_hidden, target_mask):
    """The visible part of both, the teacher's without gradient: (B, T, C_s) and (B, T, C_t)."""
    return _visible(student_hidden, target_mask), _visible(teacher_hidden.detach(), target_mask)


def _equally_wide(student_hidden, teacher_hidden):
    assert student_hidden.shape == teacher_hidden.shape, (
        f"student {tuple(student_hidden.shape)} and teacher {tuple(teacher_hidden.shape)}: a Projector must come first"
    )


def _unit(x, dim=-1):
    """x / ||x||, and 0 where x is 0 (torch's norm has the gradient 0 there, not nan)."""
    length = torch.linalg.vector_norm(x, dim=dim, keepdim=True)
    return x / length.masked_fill(length == 0, 1.0)


def _product(x, y):
    """x @ y in the dtype that they have: autocast would round both to bf16."""
    with torch.autocast(x.device.type, enabled=False):
        return x @ y


def _count(target_mask):
    """Masked positions of each sequence, (B, 1), at least 1: a number to divide by."""
    return target_mask.sum(-1, keepdim=True).clamp(min=1)


def _at_every_position(value, target_mask):
    """(B,) -> (B, T): each masked position carries the value of its sequence."""
    return value[:, None] * target_mask


# ---------------------------------------------------------------------------------------------------------------------
# 1. One vector against one vector.


def hidden_mse(student_hidden, teacher_hidden, target_mask):
    """Mean over C of the squared difference: (B, T, C), (B, T, C), (B, T) bool -> (B, T). Example: .5, .5, 1: .666667.

    FitNet's hint (arXiv 1412.6550); the student's side has gone through a Projector. Invariant to nothing: it asks for
    the teacher's numbers themselves, so layers of large norm dominate. Unequal widths raise an AssertionError.
    """
    _equally_wide(student_hidden, teacher_hidden)
    student, teacher = _both(student_hidden, teacher_hidden, target_mask)
    return (student - teacher).square().mean(-1)


def hidden_cosine(student_hidden, teacher_hidden, target_mask):
    """1 - cosine of the two vectors, in 0..2: (B, T, C), (B, T, C), (B, T) bool -> (B, T). Example: 0, 0, .04: .013333.

    FitNet's hint (arXiv 1412.6550) without the norms, as DistilBERT (arXiv 1910.01108) has it. Worked out as half the
    squared distance of the unit vectors, which is the same number, is exactly 0 at equality, and is .5 where one
    of the two is 0. Unequal widths raise an AssertionError.
    """
    _equally_wide(student_hidden, teacher_hidden)
    student, teacher = _both(student_hidden, teacher_hidden, target_mask)
    return 0.5 * (_unit(student) - _unit(teacher)).square().sum(-1)


# ---------------------------------------------------------------------------------------------------------------------
# 2. Relations between the positions of one sequence. C_s and C_t may differ.


def attention_transfer(student_hidden, teacher_hidden, target_mask):
    """Where along the sequence is the energy? (B, T, C_s), (B, T, C_t), (B, T) bool -> (B, T). Example: .101871.

    Activation-based attention transfer (arXiv 1612.03928): a position's energy is the mean over C of h^2, the n masked
    positions of a sequence make one vector, scaled to unit length. Position t has n times the squared difference there,
    so that the masked mean over the sequence is the squared distance of the two unit vectors, in 0..2; energies 9 16 25
    against 16 9 25 give 98 / 962. Not the matrix of self-attention.
    """
    both = _both(student_hidden, teacher_hidden, target_mask)
    student, teacher = (_unit(hidden.square().mean(-1)) for hidden in both)  # (B, T)
    return _count(target_mask) * (student - teacher).square()


def similarity_preserving(student_hidden, teacher_hidden, target_mask):
    """Who resembles whom? (B, T, C_s), (B, T, C_t), (B, T) bool -> (B, T). Example: 0, 0, .033957: .011319.

    Similarity-preserving distillation (arXiv 1907.09682) with positions as samples: the n x n Gram matrix h h^T of a
    sequence's masked positions, each row scaled to unit length; position t has the mean squared difference of row t,
    so that the masked mean over the sequence is the mean over all n^2 entries.
    """
    student, teacher = (
        _unit(_product(hidden, hidden.transpose(-2, -1)))
        for hidden in _both(student_hidden, teacher_hidden, target_mask)
    )  # (B, T, T), row t of unit length
    return (student - teacher).square().sum(-1) / _count(target_mask)


def _evenly_spaced(target_mask, most):
    """At most `most` masked positions of each sequence: their places (B, N) long, and which of these exist (B, N).

    The first, the last and evenly spaced ones between, counted along masked positions: padding changes nothing.
    """
    count, N = target_mask.sum(-1, keepdim=True), min(target_mask.size(-1), most)
    at = torch.arange(N, device=target_mask.device)
    masked_first = (~target_mask).byte().argsort(dim=-1, stable=True)  # (B, T): places, the masked ones in their order
    return masked_first.gather(-1, at * (count.clamp(min=N) - 1) // max(N - 1, 1)), at < count


def _differences(student_hidden, teacher_hidden, target_mask, most):
    """h_j - h_i at place [i, j], for student and teacher (B, N, N, C), and which pairs i != j there are (B, N, N)."""
    assert most >= 2, f"a pair needs two positions, found most {most}"
    places, exists = _evenly_spaced(target_mask, most)
    points = [x.take_along_dim(places[..., None], 1) for x in _both(student_hidden, teacher_hidden, target_mask)]
    pairs = exists[:, :, None] & exists[:, None, :]
    pairs = pairs & ~torch.eye(places.size(-1), dtype=torch.bool, device=places.device)
    return *(x[:, None] - x[:, :, None] for x in points), pairs


def _mean_over(value, which):
    """(B, ...) -> (B,): the mean of each sequence where `which` (B, ...) is True, 0 if nowhere."""
    return value.masked_fill(~which, 0.0).flatten(1).sum(-1) / which.flatten(1).sum(-1).clamp(min=1)


def rkd_distance(student_hidden, teacher_hidden, target_mask, most=64):
    """How far from each other, in relative terms? (B, T, C_s), (B, T, C_t), (B, T) bool -> (B, T). Example: .020833.

    Relational KD, distances (arXiv 1904.05068): smooth L1 of the pairwise distances of a sequence's masked positions,
    on each side divided by their mean (5 4 3 and 5 3 4 become 1.25 1 .75 and 1.25 .75 1), mean over pairs. Invariant to
    scale, rotation and translation of either side. Memory is N^2 C numbers a sequence, hence at most `most` positions,
    evenly spaced; below 2 an AssertionError. A sequence of 0 or 1 positions has no pair: 0.
    """
    *sides, pairs = _differences(student_hidden, teacher_hidden, target_mask, most)
    student, teacher = (torch.linalg.vector_norm(apart, dim=-1) for apart in sides)  # (B, N, N)
    means = [_mean_over(distance, pairs)[:, None, None] for distance in (student, teacher)]
    student, teacher = (d / mean.masked_fill(mean == 0, 1.0) for d, mean in zip((student, teacher), means))
    return _at_every_position(_mean_over(F.smooth_l1_loss(student, teacher, reduction="none"), pairs), target_mask)


def rkd_angle(student_hidden, teacher_hidden, target_mask, most=64):
    """At which angles? (B, T, C_s), (B, T, C_t), (B, T) bool -> (B, T). Example: .013333.

    Relational KD, angles (arXiv 1904.05068): smooth L1 of the cosine of the angle at i between j and k, mean over the
    triplets of distinct masked positions of a sequence (cosines .8 .6 0 against .6 .8 0). Invariant to scale, rotation
    and translation of either side. N^3 cosines a sequence, hence at most `most` positions, evenly spaced; below 2 an
    AssertionError. A sequence of fewer than 3 positions has no triplet: 0.
    """
    *sides, pairs = _differences(student_hidden, teacher_hidden, target_mask, most)
    towards = [_unit(apart) for apart in sides]  # (B, i, j, C): from i to j
    student, teacher = (_product(x, x.transpose(-2, -1)) for x in towards)  # (B, i, j, k)
    triplets = pairs[:, :, :, None] & pairs[:, :, None, :] & pairs[:, None, :, :]
    return _at_every_position(_mean_over(F.smooth_l1_loss(student, teacher, reduction="none"), triplets), target_mask)


def rkd(student_hidden, teacher_hidden, target_mask, distance_weight=25.0, angle_weight=50.0, most=64):
    """distance_weight rkd_distance + angle_weight rkd_angle -> (B, T). Example: 25 / 48 + 50 / 75 = 1.1875.

    Relational KD with both parts and the paper's weights (arXiv 1904.05068); raises what they raise.
    """
    student_hidden = at_least_float32(student_hidden)  # here, so that both gradients are summed in float32
    distance = rkd_distance(student_hidden, teacher_hidden, target_mask, most)
    return distance_weight * distance + angle_weight * rkd_angle(student_hidden, teacher_hidden, target_mask, most)


def flow(student_first, student_second, teacher_first, teacher_second, target_mask):
    """How do the features of two layers go together? Four (B, T, C), (B, T) bool -> (B, T). Example: 10.888889.

    Flow of solution procedure (Yim et al., CVPR 2017): G[a, b] = mean over a sequence's masked positions of
    first[a] second[b], between an earlier and a later layer, and the mean squared difference of the entries of both G.
    Firsts need one width, and so do seconds (Projectors), else AssertionError. In the example both layers are the same:
    G is (6 4, 4 32/3) for the teacher and (32/3 4, 4 6) for the student.
    """
    _equally_wide(student_first, teacher_first)
    _equally_wide(student_second, teacher_second)
    firsts = _both(student_first, teacher_first, target_mask)
    seconds = _both(student_second, teacher_second, target_mask)
    student, teacher = (
        _product(first.transpose(-2, -1), second) / _count(target_mask)[..., None]
        for first, second in zip(firsts, seconds)
    )  # (B, C_first, C_second)
    return _at_every_position((student - teacher).square().mean((-2, -1)), target_mask)


# A new loss of one pair of layers is one function above and one row here.
FEATURES = {
    "hidden_mse": hidden_mse,
    "hidden_cosine": hidden_cosine,
    "attention_transfer": attention_transfer,
    "similarity_preserving": similarity_preserving,
    "rkd_distance": rkd_distance,
    "rkd_angle": rkd_angle,
    "rkd": rkd,
}
NEEDS_PROJECTOR = {"hidden_mse", "hidden_cosine"}  # these compare numbers one by one: equal widths


class Projector(nn.Module):
    """A trainable linear map (B, T, student_width) -> (B, T, teacher_width), no bias; FitNet's regressor (1412.6550).

    Weights (teacher_width, student_width) are N(0, 1 / student_width) from an explicit CPU generator: what comes out
    starts with the mean square of what goes in. It belongs to the loss, not to the student: thrown away after training.
    """

    def __init__(self, student_width, teacher_width, generator):
        super().__init__()
        drawn = torch.empty(teacher_width, student_width).normal_(0.0, student_width**-0.5, generator=generator)
        self.weight = nn.Parameter(drawn)

    def forward(self, student_hidden):
        return F.linear(student_hidden, self.weight)


# ---------------------------------------------------------------------------------------------------------------------
# 3. Looking into a GPT.


@contextmanager
def capture_hidden(model, blocks=(), inputs=False):
    """`with capture_hidden(gpt, (0, -1)) as captured: gpt(tokens)` keeps captured.hidden, the outputs (B, T, C) of
    these blocks.

    They are those of the model's last forward, in the order of `blocks` (negative numbers count from the end, one that
    is out of range raises an IndexError), and part of its graph. With inputs=True, captured.inputs are the token
    embeddings (B, T, C) before positions are added, which require a gradient even if the weights are frozen (not under
    no_grad). `model` is the GPT itself, which may be called through a wrapper. All hooks are gone when the `with` block
    ends.
    """
    watched = [model.blocks[block] for block in blocks]
    captured = SimpleNamespace(hidden=[None] * len(blocks), inputs=None)
    inside = False

    def begin(module, args):
        nonlocal inside
        inside, captured.hidden, captured.inputs = True, [None] * len(blocks), None

    def end(module, args, output):
        nonlocal inside
        inside = False

    def keep(place):
        def hook(module, args, output):
            if inside:  # and not in a backward pass, where activation checkpointing runs a block once more
                captured.hidden[place] = output

        return hook

    def keep_inputs(module, args, output):
        captured.inputs = output if output.requires_grad or not torch.is_grad_enabled() else output.requires_grad_()

    hooks = [model.register_forward_pre_hook(begin), model.register_forward_hook(end)]
    try:
        hooks += [block.register_forward_hook(keep(place)) for place, block in enumerate(watched)]
        hooks += [model.token_embedding.register_forward_hook(keep_inputs)] if inputs else []
        yield captured
    finally:
        for hook in hooks:
            hook.remove()


# ---------------------------------------------------------------------------------------------------------------------
# 4. Input gradients (KDIGA, arXiv 2110.12072): two models that react alike to a change of their input.


def second_order():
    """`with second_order(): student(tokens)`: attention whose gradient can be differentiated again.

    Fused attention has no second derivative; this is its plain form. A student with `recompute` set runs its blocks
    again in the backward passes: keep those inside too.
    """
    return sdpa_kernel(SDPBackend.MATH)


def input_gradient(loss_per_token, inputs, embedding_weight, target_mask, ids=None, create_graph=True):
    """d (mean loss of a sequence) / d (its one-hot inputs) in nats: (B, T, k) for `ids` (B, T, k) long, else (B, T, V).

    `inputs` (B, T, C) are token embeddings that loss_per_token (B, T) was worked out from (see `capture_hidden`), the
    loss of a sequence is its mean over target_mask. The chain rule through one_hot @ embedding_weight, (V, C), gives
    the entry of token v at position t as the gradient at inputs[t] times row v: how much the loss would change with a
    dash of v there. Models of any width share V, so these compare (our reading of arXiv 2110.12072; embeddings would
    not). Keep create_graph for a student that learns from it; a teacher needs none. Raises torch's RuntimeError if the
    loss does not depend on inputs. Loss 2 x_1 - x_2 and rows (1, 0) (0, 1) (1, 1) give 2, -1, 1.
    """
    per_sequence = loss_per_token.masked_fill(~target_mask, 0.0).sum(-1) / _count(target_mask)[:, 0]
    # Rows do not see each other, so the gradient of the sum holds the gradient of each. Autocast would round this pass.
    with torch.autocast(inputs.device.type, enabled=False):
        (gradient,) = torch.autograd.grad(per_sequence.sum(), inputs, create_graph=create_graph)
    gradient, embedding_weight = at_least_float32(gradient), at_least_float32(embedding_weight)
    if ids is None:
        return _product(gradient, embedding_weight.T)
    return (gradient[:, :, None] * F.embedding(ids, embedding_weight)).sum(-1)


def input_gradient_alignment(student_gradient, teacher_gradient, input_mask):
    """Do both losses point the same way in the input? (B, T, k), (B, T, k), (B, T) bool -> (B, T), no unit.

    KDIGA's alignment (arXiv 2110.12072), on gradients scaled to unit length over all entries of a sequence's real input
    positions, because the length says how confident a model is. Position t has n times the squared difference there, so
    that the masked mean over input_mask is the squared distance of two unit vectors, 2 - 2 cosine, in 0..4. Unequal
    shapes raise an AssertionError. One position, (3, 4) against (1, 0): .4^2 + .8^2 = .8.
    """
    assert student_gradient.shape == teacher_gradient.shape, (
        f"student {tuple(student_gradient.shape)} and teacher {tuple(teacher_gradient.shape)} need the same token ids"
    )
    student, teacher = (_unit(g, dim=(-2, -1)) for g in _both(student_gradient, teacher_gradient, input_mask))
    return _count(input_mask) * (student - teacher).square().sum(-1)
