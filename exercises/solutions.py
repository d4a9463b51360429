"""Reference solutions, the only ones: answers.py, what students get, is made of this file by exercises/handout.py.

Each function is one that a student writes; the comment above says which exercise it belongs to. Tests hold them equal
to the functions of the core that do the same. A solution may call the core, but not what its own exercise asks for.
"""

import math

import torch

# ---------------------------------------------------------------------------------------------------------------------
# Exercise 1: the masked mean.


def masked_mean(per_token, mask, reduction="token"):
    """The mean of per_token (B, T) over the positions where mask (B, T) bool is True -> scalar.

    reduction "token": every masked token counts the same. "sequence": the mean of each row first, then over the rows
    that have any token. 0, with a graph, where nothing is masked in. What stands outside the mask may be nan.
    """
    inside = torch.where(mask, per_token, 0.0)
    if reduction == "token":
        return inside.sum() / mask.sum().clamp(min=1)
    row_means = inside.sum(1) / mask.sum(1).clamp(min=1)  # (B,), 0 for a row without a token
    return row_means.sum() / mask.any(1).sum().clamp(min=1)


# ---------------------------------------------------------------------------------------------------------------------
# Exercise 2: forward and reverse KL.


def kl(first_logprobs, second_logprobs):
    """KL(first || second) of rows of log-probabilities, gradients to both: (..., V), (..., V) -> (...) in nats."""
    return (first_logprobs.exp() * (first_logprobs - second_logprobs)).sum(-1)


def forward_kl(student_logits, teacher_logits):
    """KL(teacher || student) at every position: two (B, T, V) of raw logits -> (B, T). No gradient to the teacher."""
    return kl(teacher_logits.detach().log_softmax(-1), student_logits.log_softmax(-1))


def reverse_kl(student_logits, teacher_logits):
    """KL(student || teacher) at every position: two (B, T, V) of raw logits -> (B, T). No gradient to the teacher."""
    return kl(student_logits.log_softmax(-1), teacher_logits.detach().log_softmax(-1))
