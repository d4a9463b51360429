"""The laws of the exercises that build something; grade.py tries each on the student's code.

A law is a function law_NN_name(code, made): `code` has the student's functions, `made` makes inputs and knows what the
reference returns. Its docstring is what a student is told when it is broken. definition_NN_name is a law without which
the exercise is worth nothing: values on fresh inputs, so that a table of the visible ones scores zero. They are tried
in the order of this file, and the first broken one is the one that a message names. Inputs keep mistakes apart: V is
not T, no constant equals a dimension, rows are ragged, padding is not 0.
"""

import math
import re

import torch

from course import Broken, Law, check, same

# ---------------------------------------------------------------------------------------------------------------------
# 1. The masked mean.


def law_01_padding(code, made):
    """What stands outside the mask changes nothing, not even nan."""
    mask, per_token = made.mask(3, 8), made.normal(3, 8)
    clean = torch.as_tensor(code.masked_mean(per_token.masked_fill(~mask, 0.0), mask)).detach()
    for garbage in (7.5, math.inf, math.nan):
        found = code.masked_mean(per_token.masked_fill(~mask, garbage), mask)
        same(found, clean, f"per_token (3, 8) with {garbage} outside a ragged mask")


def law_01_every_token_counts_the_same(code, made):
    """reduction "token": the mean over all tokens of the batch, not of means of rows, nor per row or per place."""
    mask, per_token = made.mask(3, 8), made.normal(3, 8) + 1.5
    total = sum(per_token[row, column].item() for row, column in mask.nonzero().tolist())
    same(code.masked_mean(per_token, mask), total / len(mask.nonzero()), "per_token (3, 8), rows of other lengths")


def law_01_every_response_counts_the_same(code, made):
    """reduction "sequence": the mean of each row, then the mean over the rows that have a token."""
    mask, per_token = made.mask(4, 9), made.normal(4, 9) + 1.5
    mask[2] = False
    about = 'per_token (4, 9), reduction "sequence", one of the rows without a token'
    same(
        code.masked_mean(per_token, mask, "sequence"), made.expected("masked_mean", per_token, mask, "sequence"), about
    )


def law_01_nothing_to_average(code, made):
    """A mask without True gives 0, and backward() works."""
    per_token = made.normal(2, 5).requires_grad_()
    for reduction in ("token", "sequence"):
        found = code.masked_mean(per_token, torch.zeros(2, 5, dtype=torch.bool), reduction)
        same(found, 0.0, f'a mask that is False everywhere, reduction "{reduction}"')
        check(found.requires_grad, "a mask that is False everywhere: the result has no graph")


def definition_01_values(code, made):
    """The values of both reductions on fresh inputs."""
    for B, T in ((3, 7), (5, 11)):
        mask, per_token = made.mask(B, T), made.normal(B, T, spread=3.0)
        for reduction in ("token", "sequence"):
            expected = made.expected("masked_mean", per_token, mask, reduction)
            same(code.masked_mean(per_token, mask, reduction), expected, f'per_token ({B}, {T}), "{reduction}"')


# ---------------------------------------------------------------------------------------------------------------------
# 2. Forward and reverse KL.


def law_02_one_value_per_position(code, made):
    """A sum over V, no mean over anything: (B, T, V) becomes (B, T), and tokens that nobody says change nothing."""
    student_logits, teacher_logits = made.logits(2, 3, 7), made.logits(2, 3, 7)
    for name in ("forward_kl", "reverse_kl"):
        found = getattr(code, name)(student_logits, teacher_logits)
        check(found.shape == (2, 3), f"{name} of two (2, 3, 7): found the shape {tuple(found.shape)}")
        wider = [torch.nn.functional.pad(logits, (0, 4), value=-60.0) for logits in (student_logits, teacher_logits)]
        same(
            getattr(code, name)(*wider), found, f"{name}, V = 7, with four more tokens of probability 0 in both models"
        )


def law_02_raw_logits(code, made):
    """Logits are normalised inside: a constant added to all of them changes nothing, and equal models give 0."""
    student_logits, teacher_logits = made.logits(2, 3, 7), made.logits(2, 3, 7)
    for name in ("forward_kl", "reverse_kl"):
        function = getattr(code, name)
        moved = function(student_logits + 3.0, teacher_logits - made.random.uniform(1, 5))
        same(
            moved,
            function(student_logits, teacher_logits).detach(),
            f"{name} with a constant added to all logits",
            1e-4,
        )
        same(function(student_logits, student_logits + 1), torch.zeros(2, 3), f"{name} of a model and itself", 1e-4)


def law_02_teacher_first(code, made):
    """Forward means teacher first: the student pays where the teacher has mass and it has none."""
    even, peaked = torch.zeros(1, 1, 6), torch.zeros(1, 1, 6)
    peaked[..., made.random.randrange(6)] = 9.0 + made.random.random()
    few, many = code.forward_kl(even, peaked), code.forward_kl(peaked, even)
    check(few.item() < math.log(6) < many.item(), "forward_kl between an even model and a peaked one, V = 6")
    few, many = code.reverse_kl(peaked, even), code.reverse_kl(even, peaked)
    check(few.item() < math.log(6) < many.item(), "reverse_kl between an even model and a peaked one, V = 6")


def law_02_log_space(code, made):
    """No log of a softmax, no eps: logits that are far apart give a large, exact and finite loss."""
    for gap in (60.0, 3000.0):
        low = torch.tensor([[[0.0, -gap, -gap]]], requires_grad=True)
        loss = code.forward_kl(low, torch.tensor([[[-gap, 0.0, -gap]]]))
        same(loss, [[gap]], f"forward_kl of logits that are {gap:g} apart", 1e-4)
        (gradient,) = torch.autograd.grad(loss.sum(), low)
        same(gradient, [[[1.0, -1.0, 0.0]]], f"gradient of forward_kl at logits that are {gap:g} apart", 1e-4)


def law_02_student_learns_alone(code, made):
    """The gradient reaches the student only; forward_kl's is the student's probabilities minus the teacher's."""
    for name in ("forward_kl", "reverse_kl"):
        student_logits, teacher_logits = (made.logits(2, 3, 7).requires_grad_() for _ in range(2))
        getattr(code, name)(student_logits, teacher_logits).sum().backward()
        check(
            teacher_logits.grad is None or not teacher_logits.grad.any(),
            f"{name}: the teacher's logits have a gradient",
        )
        check(student_logits.grad is not None, f"{name}: the student's logits have no gradient")
        if name == "forward_kl":
            wanted = student_logits.softmax(-1) - teacher_logits.softmax(-1)
            same(student_logits.grad, wanted.detach(), f"gradient of {name}, logits (2, 3, 7)")


def definition_02_values(code, made):
    """The values of kl, forward_kl and reverse_kl on fresh inputs."""
    for shape in ((2, 3, 7), (1, 5, 4)):
        student_logits, teacher_logits = made.logits(*shape), made.logits(*shape)
        for name in ("forward_kl", "reverse_kl"):
            expected = made.expected(name, student_logits, teacher_logits)
            same(getattr(code, name)(student_logits, teacher_logits), expected, f"{name}, logits {shape}")
        logprobs = student_logits.log_softmax(-1), teacher_logits.log_softmax(-1)
        same(code.kl(*logprobs), made.expected("kl", *logprobs), f"kl, log-probabilities {shape}")


# ---------------------------------------------------------------------------------------------------------------------


def laws_of(number):
    """The laws of an exercise, in the order of this file."""
    found = []
    for name, function in globals().items():
        kind, _, rest = name.partition("_")
        if kind in ("law", "definition") and rest.startswith(f"{number:02}_"):
            says = re.sub(r"\s+", " ", function.__doc__)
            found.append(Law(name, says, kind == "definition", function))
    return found


__all__ = ["Broken", "laws_of"]
