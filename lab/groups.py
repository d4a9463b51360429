"""Groups: several samples of one prompt side by side in a batch, and what the task's scorer gives each of them."""

import torch

from lab.evaluate import in_order
from losses import standardize


def use_groups(run, size):
    """Give every prompt of a batch `size` rows, side by side; of the batch's prompts the first, as many as there is
    room for. To be asked before the first step.

    A batch keeps its number of rows; where that is no multiple of `size`, its last group is smaller.
    """
    run.order = run.order[:, torch.arange(run.order.size(1)) // size]


def batch_scores(run, step, rollout):
    """Score of every response of a batch, whichever process wrote it, in the batch's order: (batch,) on the host."""
    return torch.tensor(in_order([float(score) for score in run.reward(step.rows, rollout.responses())]))


def in_group(scores, size):
    """Scores less their group's mean, over its standard deviation: (batch,) -> (batch,). 1, 0, 0, 0 in a group of 4:
    1.732051, -.577350 three times. A group of equal scores has zeros (GRPO, arXiv 2402.03300).
    """
    return torch.cat([standardize(group, correction=0) for group in scores.split(size)])
