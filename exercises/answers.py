"""Your answers: the one file that you write. Each function says what it takes and returns; README.md says what to read
first. Grade it with

    python exercises/grade.py            everything
    python exercises/grade.py 2          exercise 2 alone

Functions of your own, and imports, may stand anywhere. You may call the repository's functions, but not those that do
what an exercise asks for.
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
    raise NotImplementedError("exercise 1, masked_mean")


# ---------------------------------------------------------------------------------------------------------------------
# Exercise 2: forward and reverse KL.


def kl(first_logprobs, second_logprobs):
    """KL(first || second) of rows of log-probabilities, gradients to both: (..., V), (..., V) -> (...) in nats."""
    raise NotImplementedError("exercise 2, kl")


def forward_kl(student_logits, teacher_logits):
    """KL(teacher || student) at every position: two (B, T, V) of raw logits -> (B, T). No gradient to the teacher."""
    raise NotImplementedError("exercise 2, forward_kl")


def reverse_kl(student_logits, teacher_logits):
    """KL(student || teacher) at every position: two (B, T, V) of raw logits -> (B, T). No gradient to the teacher."""
    raise NotImplementedError("exercise 2, reverse_kl")
