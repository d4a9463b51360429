"""A script as a program: what a signal does to it, and how wrong use ends, with one line and a non-zero status."""

import contextlib
import os
import signal
import sys
import threading

import torch

from lab import processes

GO_ON = "saved; to continue: the same command with --resume (and its --out)"
GRACE = 20  # seconds that one of several processes gets to save after a signal; torchrun itself has patience for 30


def end_process(script, why):
    """End one of several processes at once, with one line. torchrun may be ending it at the same moment, and an
    exception raised then could be lost on its way out: hence no exception. Records are on disk, line by line."""
    with contextlib.suppress(ValueError):  # only the main thread may
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    os.write(2, f"{script}.py: process {os.environ['RANK']} {why}: {GO_ON}\n".encode())
    os._exit(1)


def catch_shared_signals(script):
    """What a signal does to one of several processes: where they can save, they are given the time to, together.

    torchrun sends SIGTERM also where another process has failed. Then nobody answers, and after GRACE seconds this one
    ends as it would have elsewhere.
    """

    def on_signal(number, frame):
        why = f"stopped by {signal.Signals(number).name}"
        if processes.let_wait(number):
            patience = threading.Timer(GRACE, end_process, (script, why))
            patience.daemon = True
            patience.start()
        elif not processes.asked_to_stop():  # a terminal sends it to all processes, and torchrun passes it on
            end_process(script, why)

    processes.catch_signals(on_signal)


def run_script(script, main):
    """Call main() as a program: wrong use ends with one line and a non-zero status, never with a traceback."""
    processes.use_any_terminal()
    if processes.started_by_torchrun():
        catch_shared_signals(script)
    else:
        processes.catch_signals()
    try:
        status = main()
        # All is written: a signal that comes while Python takes itself apart has nothing to stop, and under torchrun
        # what torch's threads do meanwhile can abort it.
        processes.catch_signals(signal.SIG_IGN)
        if processes.started_by_torchrun():
            print(end="", flush=True)
            os._exit(status)
        sys.exit(status)
    except (ValueError, OSError) as error:
        processes.exit_with(f"{script}.py", error)
    except processes.Stopped as stop:
        if processes.rank_and_size()[0] == 0:
            print(f"{script}.py: {stop}: {GO_ON}", file=sys.stderr)
        processes.leave()
        sys.exit(128 + stop.number)
    except KeyboardInterrupt:
        processes.exit_with(f"{script}.py", f"interrupted: {GO_ON}")
    except RuntimeError as error:
        if isinstance(error, torch.OutOfMemoryError) and not processes.started_by_torchrun():
            first_line = str(error).strip().split(". ")[0]
            processes.exit_with(f"{script}.py", f"{first_line}: lower --batch-size (or --micro-batch), or --size")
        if not processes.started_by_torchrun():
            raise
        first_line = str(error).strip().split("\n")[0][:160]
        end_process(script, f"lost the others or failed ({first_line})")
