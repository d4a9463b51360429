"""Intervals over seeds, and differences between two methods that are paired by seed.

Student-t intervals, since a percentile bootstrap over five seeds covers too little; paired differences, since methods
of one seed share the pair of models they start from.
"""

import math
from typing import NamedTuple

import numpy as np

from lab.reading import as_number

# .975 quantiles of Student's t with 1, 2, .. 29 degrees of freedom: half width of a 95 % interval = t * s / sqrt(n).
T_975 = (
    12.706205, 4.302653, 3.182446, 2.776445, 2.570582, 2.446912, 2.364624, 2.306004, 2.262157, 2.228139,
    2.200985, 2.178813, 2.160369, 2.144787, 2.131450, 2.119905, 2.109816, 2.100922, 2.093024, 2.085963,
    2.079614, 2.073873, 2.068658, 2.063899, 2.059539, 2.055529, 2.051831, 2.048407, 2.045230,
)


def student_t_interval(values, level=0.95):
    """(mean, half width) of the Student-t interval for the mean of values; (value, None) for a single one.

    Half width = t * s / sqrt(n), with s the standard deviation with n - 1 below the fraction line. It assumes
    roughly normal values, and then covers the true mean in 95 of 100 experiments even for n = 2, where t is 12.7.
    Raises ValueError for another level than .95, the one that is tabulated.
    """
    if level != 0.95:
        raise ValueError(f"level {level} is not tabulated: only .95 is")
    values = np.asarray(values, dtype=np.float64)
    n = len(values)
    assert values.ndim == 1 and n >= 1 and np.isfinite(values).all(), values
    if n == 1:
        return float(values[0]), None
    return float(values.mean()), float(_t_quantile(n - 1) * values.std(ddof=1) / math.sqrt(n))


def _t_quantile(freedom):
    """The .975 quantile of Student's t; beyond the table by Abramowitz & Stegun 26.7.5, then right to 2e-6."""
    if freedom <= len(T_975):
        return T_975[freedom - 1]
    z = 1.959963984540054  # the same quantile of the normal distribution, the limit of many degrees of freedom
    return (z + (z**3 + z) / (4 * freedom) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)
            + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * freedom**3))


class PairedDifference(NamedTuple):
    """a - b over the seeds that both have; mean None without a common seed, half_width None with only one."""

    mean: float | None
    half_width: float | None
    n: int
    positive: int  # in how many of the n seeds a is strictly above b


def paired_difference(runs_a, runs_b, key):
    """PairedDifference of the final figure `key` between two methods, seed by seed.

    What a seed does to both methods (a lucky pair of models, easy batches) cancels in the difference, so its
    interval is much narrower than the two intervals of the methods side by side would make believe.
    """
    figures_a, figures_b = ({run.seed: as_number(run.final.get(key)) for run in runs} for runs in (runs_a, runs_b))
    assert len(figures_a) == len(runs_a) and len(figures_b) == len(runs_b), "a seed stands twice in one method"
    differences = [figures_a[seed] - figures_b[seed] for seed in sorted(figures_a.keys() & figures_b.keys())
                   if figures_a[seed] is not None and figures_b[seed] is not None]
    if not differences:
        return PairedDifference(None, None, 0, 0)
    mean, half_width = student_t_interval(differences)
    return PairedDifference(mean, half_width, len(differences), sum(d > 0 for d in differences))
