"""Ctrl-C while a program still imports torch, which takes seconds: one line and status 130 in place of a traceback.

A program imports this module before all others, and importing it is what does it; `processes.catch_signals` takes over
later. It must not import torch itself.
"""

import multiprocessing
import os
import signal
import sys


def end_at_once(number, frame):
    """End the program with one line. No exception: an import that is under way could lose it."""
    os.write(2, f"{os.path.basename(sys.argv[0])}: stopped by SIGINT\n".encode())
    os._exit(130)


if multiprocessing.current_process().name == "MainProcess":
    signal.signal(signal.SIGINT, end_at_once)
else:  # a worker, which the program that started it will end
    signal.signal(signal.SIGINT, signal.SIG_IGN)
