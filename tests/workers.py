"""What tests give to other processes: each of them imports this file, so it imports no more than it must."""

import functools
import importlib
import itertools
import os
import signal
import time
from pathlib import Path

import torch

from lab import processes


def wait_for(process, path, text):
    """Until a running program has written `text` into the file, or has ended."""
    while process.poll() is None and not (path.exists() and text in path.read_text(encoding="utf-8")):
        time.sleep(0.002)


def touch(folder, number):
    """A run that leaves a file; only the first one is quick, the others wait to be ended."""
    Path(folder, f"{number}").write_text("")
    while number > 0:  # a run under way: only the parent's interruption ends it
        signal.pause()
    return f"run {number}"


def saved_late(folder, number):
    """A run that saves what it has when a signal comes: the first at once,
    the second when the parent has looked twice."""
    with processes.saving_loop():
        Path(folder, f"begun{number}").write_text("")
        while not processes.asked_to_stop():
            os.sched_yield()
        while number and not Path(folder, "looked twice").exists():
            os.sched_yield()
        Path(folder, f"stopped{number}").write_text("")
        processes.stop_if_asked()


def never_through(folder, number):
    """A run that is asked to stop, and never comes to an end with it."""
    with processes.saving_loop():
        Path(folder, f"begun{number}").write_text("")
        while True:
            os.sched_yield()


def perhaps_killed(number, killed):
    """A run whose process the system may kill."""
    if killed:
        os.kill(os.getpid(), signal.SIGKILL)
    return f"run {number}"


def interrupted(number):
    """A run that a signal ends."""
    with processes.saving_loop():
        os.kill(os.getpid(), signal.SIGTERM)
        assert processes.asked_to_stop()
        processes.stop_if_asked()


lost = False  # whether a device-side assert has closed the GPU to this process


def summed_on_gpu(token):
    """A run on a pretended GPU of this process' own. A token beyond the vocabulary of 9 is a device-side assert."""
    global lost
    import pretend

    with pretend.gpu() as device:
        device.dead = lost
        try:
            table = torch.arange(9.0, device="cuda").view(9, 1)
            found = torch.nn.functional.embedding(torch.tensor([token, 1], device="cuda"), table).sum()
            return f"sum {found.item():.0f}"
        finally:
            lost = device.dead


def run_on_gpu(script, cache, trouble, *task):
    """run_one of a script on a pretended GPU that is this process' own, with the pairs in `cache`. trouble: labels of
    methods that hit a device-side assert."""
    global lost
    import pretend
    from lab import pairs

    pairs.load_or_pretrain_pair = functools.partial(pairs.load_or_pretrain_pair, cache_dir=cache)
    with pretend.gpu() as device:
        device.dead, seen = lost, itertools.count()

        def before(name):
            if task[3] in trouble and next(seen) == 500:
                device.dead = True

        device.before = before
        try:
            return importlib.import_module(script).run_one(*task)
        finally:
            lost = device.dead
