"""Several runs on one GPU (--jobs): each in a process of its own, what they need checked first, and none the other's end.

The GPU is pretended (tests/pretend.py); each process has one of its own.
"""

import workers
from tiny import matrix

from lab import processes


@matrix("tokens", [(9, 2), (9, 9, 2, 3)], fast=[(9, 2)])
def test_a_failed_run_takes_its_process_with_it_and_no_other(tokens):
    """A device-side assert closes the GPU to its process: who fails by it fails alone, and the next run gets another."""
    lines = []
    failures = processes.run_all(workers.summed_on_gpu, [(token,) for token in tokens], 2, lines.append)
    assert [task for task, _ in failures] == [(token,) for token in tokens if token == 9]
    assert all("device-side assert" in line for _, line in failures)
    assert sorted(line for line in lines if line.startswith("sum")) == [f"sum {t + 1}" for t in tokens if t != 9]
