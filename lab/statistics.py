"""Intervals over pretrained pairs, differences between two methods paired by pair, and Holm's correction for many.

The unit of replication is the pretrained pair: runs of one pair repeat each other far more closely than runs of
different pairs do. So the seeds of a pair are averaged first, and intervals are over the pairs. With a single pair they
are over its seeds, and cover what repeated runs of that pair give, nothing else. Intervals are Student-t intervals,
since a percentile bootstrap over five values covers too little; differences are paired, since two methods of one pair
start from the same models.
"""

import math
from typing import NamedTuple

import numpy as np

from lab.reading import as_number, pairs_of

# .975 quantiles of Student's t with 1, 2, .. 29 degrees of freedom: half width of a 95 % interval = t * s / sqrt(n).
T_975 = (
    12.706205, 4.302653, 3.182446, 2.776445, 2.570582, 2.446912, 2.364624, 2.306004, 2.262157, 2.228139,
    2.200985, 2.178813, 2.160369, 2.144787, 2.131450, 2.119905, 2.109816, 2.100922, 2.093024, 2.085963,
    2.079614, 2.073873, 2.068658, 2.063899, 2.059539, 2.055529, 2.051831, 2.048407, 2.045230,
)


# ---------------------------------------------------------------------------------------------------------------------
# 1. Student's t.


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


def student_t_cdf(t, freedom):
    """P(T <= t) of Student's t with so many degrees of freedom: for one of them 1/2 + arctan(t) / pi.

    The tail beyond |t| is half of the incomplete beta function I_x(freedom / 2, 1 / 2) at x = freedom / (freedom + t^2)
    (Abramowitz & Stegun 26.7.1), which keeps its digits where the tail is tiny.
    """
    tail = incomplete_beta(freedom / (freedom + t * t), freedom / 2, 0.5) / 2
    return tail if t < 0 else 1 - tail


def incomplete_beta(x, a, b):
    """The regularised incomplete beta function I_x(a, b), the share of Beta(a, b) below x; a, b > 0, x in 0..1.

    By its continued fraction (Abramowitz & Stegun 26.5.8), which converges fast for x below the mean of Beta(a, b);
    above it I_x(a, b) = 1 - I_{1-x}(b, a).
    """
    if x in (0, 1):
        return float(x)
    if x > (a + 1) / (a + b + 2):
        return 1 - incomplete_beta(1 - x, b, a)
    log_front = math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x)
    # 1 / (1 + d_1 / (1 + d_2 / (1 + ..))) by Lentz's method: the fraction grows by one ratio of numerators and
    # denominators per term, and neither has to be summed from its end.
    fraction, numerator, denominator = 1.0, 1.0, 0.0
    for term in range(1, 1000):
        m = term // 2
        if term % 2:
            d = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        else:
            d = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        numerator = 1 + d / numerator
        denominator = 1 / (1 + d * denominator)
        fraction *= numerator * denominator
        if abs(numerator * denominator - 1) < 1e-15:
            break
    return math.exp(log_front) / (a * fraction)


# ---------------------------------------------------------------------------------------------------------------------
# 2. What is repeated: pairs, or the seeds of the only pair.


def unit_of(runs):
    """What is counted as repeated: "pair" where the runs are of several pretrained pairs, else "seed"."""
    return "pair" if len(pairs_of(runs)) > 1 else "seed"


def repeated(runs, key, unit):
    """{number of the unit: figure} of the final figure `key`, the seeds of a pair averaged; without what has none."""
    return _averaged(_figures(runs, key), unit)


def _figures(runs, key):
    """{(pair, seed): figure} of a method's runs."""
    figures = {(run.pair, run.seed): as_number(run.final.get(key)) for run in runs}
    assert len(figures) == len(runs), "a pair and seed stand twice in one method"
    return {of: value for of, value in figures.items() if value is not None}


def _averaged(figures, unit):
    """{(pair, seed): figure} -> {pair: mean over its seeds}, or {seed: figure} where seeds are the unit."""
    groups = {}
    for (pair, seed), value in sorted(figures.items()):
        groups.setdefault(pair if unit == "pair" else seed, []).append(value)
    return {number: sum(values) / len(values) for number, values in groups.items()}


# ---------------------------------------------------------------------------------------------------------------------
# 3. Two methods, and many of them.


class PairedDifference(NamedTuple):
    """a - b over the units that both have; mean None without a common one, half_width and p_value None with only
    one."""

    mean: float | None
    half_width: float | None
    n: int
    positive: int  # in how many of the n units a is strictly above b
    p_value: float | None  # two-sided, of the paired t-test


def paired_difference(runs_a, runs_b, key, unit):
    """PairedDifference of the final figure `key` between two methods: run by run, then averaged within each pair.

    What a pair does to both methods (a good teacher, an early transition) cancels in the difference, so its interval
    is much narrower than the two intervals of the methods side by side would make believe. Of a pair only the seeds
    that both methods have count.
    """
    figures_a, figures_b = _figures(runs_a, key), _figures(runs_b, key)
    common = {of: figures_a[of] - figures_b[of] for of in figures_a.keys() & figures_b.keys()}
    differences = list(_averaged(common, unit).values())
    if not differences:
        return PairedDifference(None, None, 0, 0, None)
    mean, half_width = student_t_interval(differences)
    return PairedDifference(mean, half_width, len(differences), sum(d > 0 for d in differences), t_test(differences))


def t_test(values):
    """The two-sided p-value of the t-test that the mean of values is 0; None for a single value.

    Without any spread it is the limit: 0, or 1 where all values are 0.
    """
    if len(values) < 2:
        return None
    mean, standard_error = float(np.mean(values)), float(np.std(values, ddof=1)) / math.sqrt(len(values))
    if standard_error == 0:
        return float(mean == 0)
    return 2 * student_t_cdf(-abs(mean / standard_error), len(values) - 1)


def holm(p_values):
    """p-values of several tests -> the same corrected for their number (Holm, 1979), in the same order.

    Calling those below .05 decided lets a true null hypothesis among all of them through in at most 5 of 100 tables,
    however the tests depend on each other. The smallest is multiplied by their number m, the next by m - 1, and so on;
    none is smaller than the one before it, nor above 1.
    """
    corrected, largest = [0.0] * len(p_values), 0.0
    for rank, i in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[i]))
        corrected[i] = largest
    return corrected
