"""Groups: several samples of one prompt side by side in a batch, and what the task's scorer gives each of them."""

import torch

from lab.evaluate import gathered_in_order
from losses import standardize


def use_groups(run, size):
    """Give every prompt of a batch `size` rows, side by side; of the batch's prompts the first, as many as there is
    room for. To be asked before the first step.

    A batch keeps its number of rows; where that is no multiple of `size`, its last group is smaller. ValueError without
    a scorer.
    """
    if run.reward is None:
        raise ValueError(
            "this method learns from scores: give Run(reward=...), a function of numbers of prompts and responses (ids)"
        )
    run.order = run.order[:, torch.arange(run.order.size(1)) // size]


def batch_scores(run, step, responses):
    """Score of every response of a batch, whichever process wrote it, in the batch's order: (batch,) on the host.
    `responses` (ids) are this process' own; every process must ask."""
    return torch.tensor(gathered_in_order([float(score) for score in run.reward(step.example_ids, responses)]))


def group_advantages(scores, size):
    """Scores less their group's mean, over its standard deviation: (batch,) -> (batch,). 1, 0, 0, 0 in a group of 4:
    1.732051, -.577350 three times. A group of equal scores has zeros (GRPO, arXiv 2402.03300).
    """
    return torch.cat([standardize(group, correction=0) for group in scores.split(size)])


def right_siblings(scores, size):
    """For each response the number of the first other one of its group with score 1, None where there is none: (batch,)
    -> list. Groups of 3 with scores 1, 0, 1, 0, 1, 0: 2, 0, 0, 4, None, 4."""
    right = (scores >= 1).tolist()
    groups = [range(i // size * size, min(i // size * size + size, len(right))) for i in range(len(right))]
    return [next((j for j in group if right[j] and j != i), None) for i, group in enumerate(groups)]
