"""Which runs of a comparison are still to be done, and how far those under way have come, read from their records."""

import argparse
import dataclasses
import itertools
import re
import sys
import time

from tqdm import tqdm

from data import progress
from lab import checkpoints, processes, records, report
from lab.records import run_name
from lab.svg import short_name
from lab.terminal import WIDTH, wrapped

EVERY = 60  # seconds between two lines about the same runs
BAR = "{percentage:3.0f}%|{bar}| {remaining} left{postfix}"


def of_pair(args, pair_seed):
    """The same flags for another pair; run seeds begin one higher with each pair."""
    settings = dataclasses.replace(args.settings, seed=pair_seed)
    seed = args.seed + pair_seed - args.pair_seed
    return argparse.Namespace(**vars(args) | {"pair_seed": pair_seed, "seed": seed, "settings": settings})


def name_of(task):
    """The name of a run, of its arguments of run_one."""
    _, _, shared, label, seed, budget, _ = task
    return run_name(label, shared["pair"], seed, budget)


def missing_runs(folder, args, methods, headers, budget):
    """What is still to be run, as arguments of run_one; what the folder holds already is left as it is.

    headers: what the records of each pair say, a dict per pair.
    """
    todo, without_student, main_method = [], 0, report.COMPARISONS[headers[0]["script"]][1]
    for shared in headers:
        first = of_pair(args, shared["pair"]).seed
        for seed, (label, own) in itertools.product(range(first, first + args.seeds), methods):
            if budget == "compute" and label == main_method:
                continue  # it sets the budget: its equal-steps run is its equal-compute run
            task = (of_pair(own, shared["pair"]), folder, shared, label, seed, budget)
            name, steps = run_name(label, shared["pair"], seed, budget), own.steps
            if records.read_finished(folder, name, shared["flags"]) is not None:
                checkpoints.forget(folder / name)  # it may have been ended before it did so itself
                without_student += not (folder / f"{name}.pt").exists()
                continue
            if budget == "compute":
                steps = equal_compute_steps(folder, label, main_method, shared, seed, steps)
            if steps:
                todo.append((*task, steps))
    if without_student:
        processes.print_line(
            f"{without_student} finished runs have no student here any more; without its record a run is run again"
        )
    return todo


def equal_compute_steps(folder, variant, main_method, shared, seed, steps):
    """Steps after which `variant` has spent the model FLOPs of the main method's run with the same pair and seed; None
    without that run.

    What was spent once, before training (compute_once), does not grow with the steps.
    """
    names = (run_name(name, shared["pair"], seed, "steps") for name in (variant, main_method))
    own, unit = (records.read_finished(folder, name, shared["flags"]) for name in names)
    if not own or not unit:
        return None
    once = own.get("compute_once", 0.0)
    return max(1, round(steps * (unit["compute"] - once) / (own["compute"] - once)))


class Progress:
    """How far runs side by side have come, read from their records: a bar on a terminal, now and then a line
    elsewhere."""

    def __init__(self, folder, todo, jobs):
        self.folder, self.finished, self.spoken = folder, 0, time.monotonic()
        self.todo = [(name_of(task), task[-1]) for task in todo]  # (name, steps), in the order of their start
        steps = sum(steps for _, steps in self.todo)
        hidden = jobs == 1 or not progress.shown()
        self.bar = tqdm(total=steps, unit="step", leave=False, disable=hidden, ncols=progress.columns(), bar_format=BAR)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.bar.close()

    def say(self, line):
        """A line that stays: a run has ended."""
        self.finished += 1
        if self.bar.disable:
            processes.print_line(line)
        else:
            self.bar.write(wrapped(line))  # above the bar
            sys.stdout.flush()

    def watch(self, running, waiting):
        """Show where the runs stand; run_all calls this once a second when they are in processes of their own."""
        started = dict(self.todo[: len(self.todo) - waiting])
        total, words = sum(started.values()), [f"{self.finished} of {len(self.todo)} runs done"]
        for task in running:
            name, steps = name_of(task), task[-1]
            done = last_step(self.folder / f"{name}.jsonl")
            total -= steps - done
            words.append(f"{short_name(name, 28)} {done}/{steps}")
        self.bar.n = total
        self.bar.set_postfix_str(fitting(words, WIDTH - 32))
        if self.bar.disable and running and time.monotonic() - self.spoken > EVERY:
            self.spoken = time.monotonic()
            processes.print_line("  " + fitting(words, WIDTH - 2))


def fitting(words, most):
    """As many of the words, joined, as have room in `most` columns, and how many more there are."""
    for left in range(len(words)):
        text = ", ".join(words[: len(words) - left] + ([f"{left} more"] if left else []))
        if len(text) <= most:
            break
    return text


def now_and_then(say, name):
    """A function that hands on to `say` how far the run `name` has come, where no bar shows it and not more often than
    once a minute."""
    spoken = time.monotonic()

    def tell(line):
        nonlocal spoken
        if not progress.shown() and time.monotonic() - spoken > EVERY:
            spoken = time.monotonic()
            say(f"  {name}{line}")

    return tell


def last_step(path):
    """The last step that a run has recorded; 0 before the first."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError:  # not begun
        return 0
    return max((int(found[1]) for line in lines[-3:] if (found := re.search(r'"step": (\d+)', line))), default=0)
