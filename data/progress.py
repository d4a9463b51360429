"""A bar for what may take longer than two seconds: on a terminal only, gone when it is done."""

import multiprocessing
import os
import shutil
import sys

from tqdm import tqdm

WIDTH = 100  # columns that anything on a screen has at most


def shown():
    """Whether bars are: on a terminal, by the first of several processes."""
    first = multiprocessing.parent_process() is None and os.environ.get("RANK", "0") == "0"
    return first and sys.stderr is not None and sys.stderr.isatty()


def progress(items, what):
    """`items` to iterate over, under a bar that says `what` is done with them."""
    return tqdm(items, desc=what, leave=False, ncols=columns()) if shown() else items


def columns():
    """How wide a bar may be: as the terminal, at most WIDTH."""
    return min(WIDTH, shutil.get_terminal_size().columns)


def note(bar, words):
    """Words behind a bar, if it is one."""
    if isinstance(bar, tqdm):
        bar.set_postfix_str(words)


def say(line):
    """Print a line at once, also into a pipe or a log file; above the bar, if there is one."""
    if shown():
        tqdm.write(line)
        sys.stdout.flush()
    else:
        print(line, flush=True)
