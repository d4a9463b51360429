"""Processes: devices, several processes that share one run (torchrun), signals, and runs side by side."""

import concurrent.futures.process
import contextlib
import datetime
import functools
import multiprocessing
import os
import re
import signal
import sys
import threading
import time
import traceback
import warnings
from pathlib import Path

import torch
import torch.distributed as dist

from data.progress import say
from lab import terminal


def pick_device(name):
    """auto, cpu, cuda or mps -> torch.device; auto takes cuda, else cpu. ValueError if it is not there."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # why CUDA is not there is told in our words
        available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        name = "cuda" if available["cuda"] else "cpu"
    if name == "cuda" and not available[name] and (trouble := cuda_trouble()):
        raise ValueError(f"--device cuda: {trouble[0]}: {trouble[1]}, or use --device cpu")
    if not available.get(name):
        there = ", ".join(device for device, present in available.items() if present)
        raise ValueError(
            f"--device {name} is not present (torch {torch.__version__} sees: {there}): use --device auto, "
            "or install a build of torch for it"
        )
    return torch.device(name)


def cuda_trouble():
    """Why a torch that is built for CUDA finds no GPU, and what to do about it: two texts. None for another torch."""
    if not torch.version.cuda:
        return None
    number = getattr(torch._C, "_cuda_getDriverVersion", int)()  # 12020 is 12.2; 0 without a driver
    known, built = f"{number // 1000}.{number % 1000 // 10}", f"torch {torch.__version__} is built for CUDA"
    if number == 0:
        return f"{built} {torch.version.cuda}, and no NVIDIA driver answers", "install the driver"
    if number // 1000 < int(torch.version.cuda.split(".")[0]):
        told = f"{built} {torch.version.cuda}, and the NVIDIA driver is too old (it knows CUDA up to {known})"
        return told, f"update the driver, install a torch for CUDA {known} (pytorch.org)"
    told = f"{built} {torch.version.cuda}, and the NVIDIA driver (CUDA {known}) shows it no GPU"
    return told, "look at nvidia-smi and CUDA_VISIBLE_DEVICES"


def check_compiler(device):
    """ValueError where torch.compile finds nothing to compile with: asked before anything is trained, in seconds."""
    try:
        torch.compile(lambda x: (x + 1).relu())(torch.zeros(4, device=device))
    except Exception as error:  # of a dozen kinds, by system and version
        first_line = (str(error).strip() or type(error).__name__).splitlines()[0][:160]
        why = f"--compile finds no compiler that works ({first_line})"
        raise ValueError(f"{why}: install g++ or clang++, or leave it out") from error


def use_precision(name, device):
    """Set how matrix products are computed -> a maker of the context in which forwards run. Losses are float32 in
    any."""
    name = {"cuda": "tf32"}.get(device.type, "fp32") if name == "auto" else name
    torch.set_float32_matmul_precision("high" if name == "tf32" else "highest")
    return functools.partial(torch.autocast, device.type, torch.bfloat16) if name == "bf16" else contextlib.nullcontext


@contextlib.contextmanager
def full_precision():
    """A `with` block whose matrix products are exact to float32, whatever use_precision has said of others."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def gpu_is_closed():
    """Whether an error on the GPU, such as a device-side assert, has closed it to this process: every call fails."""
    try:
        if torch.cuda.is_initialized():
            torch.cuda.synchronize()
    except RuntimeError:
        return True
    return False


def device_note(asked, taken):
    """A line where --device auto has taken the CPU though there is another device, or should be; else None."""
    if asked != "auto" or taken != "cpu":
        return None
    if trouble := cuda_trouble():
        return f"note: --device auto takes the CPU: {trouble[0]}"
    if torch.backends.mps.is_available():
        return "note: this machine's GPU (MPS) is left alone, since no test runs on one: --device mps takes it"
    return None


def default_jobs(device_type):
    """One run per core on a CPU: tiny models leave cores idle. One on an accelerator, or where processes share a
    run."""
    return 1 if started_by_torchrun() or device_type != "cpu" else usable_cores()


def usable_cores():
    """The CPU cores that this process may use, where the system tells (Linux), else all there are; at least 1."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return getattr(os, "process_cpu_count", os.cpu_count)() or 1  # Python 3.13 knows the former; either may be None


# ---------------------------------------------------------------------------------------------------------------------
# One run by several processes: torchrun --nproc_per_node N train_skd.py ...
# Every process walks the same path: the same flags, the same order of batches, its own rows of each. What may differ
# between them is either averaged (all_reduce_mean) or decided by the first one (first_decides), never left to chance.


def started_by_torchrun():
    """Whether several processes are to share this run. A variable that something else has left starts nothing."""
    size = os.environ.get("WORLD_SIZE", "")
    return size.isdecimal() and int(size) > 1 and os.environ.get("RANK", "").isdecimal()


def is_shared():
    """Whether several processes have joined. A torch may be built without what they join by."""
    return dist.is_available() and dist.is_initialized()


def rank_and_size():
    """(number of this process, how many share the run); (0, 1) without torchrun."""
    return (dist.get_rank(), dist.get_world_size()) if is_shared() else (0, 1)


def join(device):
    """Join the processes that torchrun started, if it did; -> this process' own device."""
    if started_by_torchrun() and not is_shared():
        if not dist.is_available():
            raise ValueError(f"torch {torch.__version__} was built without torch.distributed: start without torchrun")
        # The first process pretrains while the others wait; one that dies is noticed by torchrun, not by a timeout.
        wait = datetime.timedelta(days=1)
        # What is decided on the CPU is told from CPU to CPU: no process waits for its device to hear of it.
        dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo", timeout=wait)
    if device.type == "cuda" and is_shared():
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    return device


def leave():
    """Destroy the process group; nothing happens where there is none."""
    if is_shared():
        dist.destroy_process_group()


def all_reduce_mean(tensor):
    """Mean over the processes, as float; the tensor itself where there is one."""
    if rank_and_size()[1] == 1:
        return tensor
    tensor = tensor.detach().float().clone()
    dist.all_reduce(tensor)
    return tensor / rank_and_size()[1]


def wait_for_all():
    """Until every process is here."""
    if rank_and_size()[1] > 1:
        dist.barrier()


def first_decides(function):
    """The value of function() in the first process, which alone calls it; the others wait for it. Errors reach all."""
    rank, size = rank_and_size()
    if size == 1:
        return function()
    outcome = [None, None]
    if rank == 0:
        try:
            outcome = [function(), None]
        except (ValueError, OSError) as error:
            outcome = [None, str(error)]
    dist.broadcast_object_list(outcome)
    if outcome[1] is not None:
        raise ValueError(outcome[1])
    return outcome[0]


def newest_of_all(steps):
    """The largest of `steps` that every process has, or None."""
    _, size = rank_and_size()
    everybody = [list(steps)]
    if size > 1:
        everybody = [None] * size
        dist.all_gather_object(everybody, list(steps))
    return max(set.intersection(*map(set, everybody)), default=None)


def first_then_others(function):
    """function() in every process, in the first one before the others: what it leaves in a cache, they find there."""
    made = []
    first_decides(lambda: made.append(function()))
    return made[0] if made else function()


def wrapped(model, compiled=False):
    """What a training pass calls in place of `model`: compiled if asked for, and averaging gradients over processes."""
    if rank_and_size()[1] == 1:
        return torch.compile(model, dynamic=True) if compiled else model
    shared = torch.nn.parallel.DistributedDataParallel(model)
    # After its first backward pass it gathers gradients in the order in which they came, and from three processes on
    # that order decides how sums round: one pass is spent on it, so that a resumed run adds as the one before did.
    shared(torch.zeros(2, 2, dtype=torch.long, device=next(model.parameters()).device)).sum().backward()
    model.zero_grad(set_to_none=True)
    if compiled:  # only now: that pass has a shape of its own
        shared.module = torch.compile(model, dynamic=True)
    return shared


# ---------------------------------------------------------------------------------------------------------------------
# Signals: SIGINT (Ctrl-C) and SIGTERM (a cluster that wants its machine back) end a program with status 130 and 143. A
# loop that can save what it has asks for the time to do so; a second signal ends it at once.


class Stopped(BaseException):
    """A signal ends the program. No Exception: what looks after failed runs must not take it for one."""

    def __init__(self, number):
        super().__init__(number)
        self.number = number

    def __str__(self):
        return f"stopped by {signal.Signals(self.number).name}"


# Loops that will look; the signals that wait for them; whether a second one waits as well, in place of being raised at
# once.
_waiting = {"loops": 0, "signals": [], "all": False}


def let_wait(number):
    """Whether a loop will look for this signal, and has been told of it; False where none will, or where one is
    enough."""
    waits = bool(_waiting["loops"]) and (_waiting["all"] or not _waiting["signals"])
    if waits:
        _waiting["signals"].append(number)
    return waits


def _on_signal(number, frame):
    if not let_wait(number):
        if _waiting["loops"]:
            # Waits in place of the first: in a destructor Python drops what is raised here.
            _waiting["signals"] = [number]
        raise Stopped(number)


def catch_signals(handler=_on_signal):
    """From now on a signal is a Stopped, raised where the program is or, in a `saving_loop`, where that asks; or what
    another `handler` makes of it."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, handler)


@contextlib.contextmanager
def saving_loop(all_wait=False):
    """A `with` block whose signals wait until it asks for them by `stop_if_asked`, or until its end. A second one is
    raised at once, unless `all_wait`: then the block asks for it as well (`asked_again`)."""
    before = _waiting["all"]
    _waiting["loops"], _waiting["all"] = _waiting["loops"] + 1, all_wait
    try:
        yield
    finally:  # also of a loop that ended with an error: the signal was meant for the program
        _waiting["loops"], _waiting["all"] = _waiting["loops"] - 1, before
        if not _waiting["loops"]:
            stop_if_asked()


def asked_to_stop():
    """The number of the first signal that waits, or None."""
    return next(iter(_waiting["signals"]), None)


def asked_again():
    """Whether more than one signal waits: no more patience."""
    return len(_waiting["signals"]) > 1


def any_asked_to_stop():
    """The signal that waits in any of the processes that share the run, or None: they all ask, and get one answer."""
    if rank_and_size()[1] == 1:
        return asked_to_stop()
    number = torch.tensor(asked_to_stop() or 0)  # on the CPU
    dist.all_reduce(number, dist.ReduceOp.MAX)
    return int(number) or None


def stop(number):
    """End the program by this signal, of which nobody needs to be told any more."""
    _waiting["signals"].clear()
    raise Stopped(number)


def stop_if_asked():
    """Raise Stopped if a signal waits."""
    if asked_to_stop():
        stop(asked_to_stop())


def _place(error):
    """Which line of this project raised an error that is neither wrong use nor the disk's, as text behind its
    message."""
    if isinstance(error, ValueError | OSError):
        return ""
    lines = "".join(traceback.format_exception(error)).split("The above exception was the direct cause")[0]
    root = re.escape(str(Path(__file__).parents[1]) + os.sep)  # a process of its own hands its traceback over as text
    found = re.findall(rf'File "{root}(.+?)", line (\d+), in (\S+)', lines)
    return " (line {1} of {0}, in {2})".format(*found[-1]) if found else ""


def run_all(function, tasks, jobs, report, watch=lambda running, waiting: None, patience=60.0):
    """Call function(*task) for every task, `jobs` at a time in processes of their own; -> list of (task, error line).

    A failed run does not take the others down, not even one whose process dies: each process works on one task at a
    time, and on none after one that failed (a GPU that an error has closed to a process stays closed to it, and memory
    may be held by what is left of the run). With one job everything happens in this process, in order; with more,
    watch(running tasks, number of waiting ones) is called about once a second.
    """
    failures = []

    def settle(task, outcome):
        try:
            report(outcome())
        except Exception as error:  # whatever it was, the other runs continue; the line says what
            if rank_and_size()[1] > 1:
                raise  # the others may know nothing of it: continuing alone, this process would wait for them forever
            broken = isinstance(error, concurrent.futures.process.BrokenProcessPool)
            line = "its process was killed (out of memory?)" if broken else f"{type(error).__name__}: {error}"
            if isinstance(error, torch.OutOfMemoryError):  # torch tells a page on one line
                line = "the GPU is out of memory: lower --jobs, --micro-batch or --batch-size"
            failures.append((task, line.split("\n")[0] + ("" if broken else _place(error))))
            report(f"FAILED {failures[-1][1]}")

    if jobs == 1:
        for number, task in enumerate(tasks):
            settle(task, lambda task=task: function(*task))
            if gpu_is_closed():  # files would seem damaged that cannot be read to it
                left = "not started: the GPU takes no more work after the error before; the same command with --resume"
                return failures + [(other, f"{left} runs it") for other in tasks[number + 1 :]]
        return failures
    # spawn: a forked child would inherit torch's thread pool in an undefined state, and cannot use CUDA
    spawn = multiprocessing.get_context("spawn")
    waiting, workers, free, busy = list(tasks), [], [], {}
    # A signal raised inside the executor could leave one of its locks held, and its threads waiting for ever.
    with saving_loop(all_wait=True):
        try:
            while waiting or busy:
                while waiting and len(busy) < jobs and not asked_to_stop():
                    if not free:
                        workers.append(concurrent.futures.ProcessPoolExecutor(1, spawn, _begin_worker))
                        free.append(workers[-1])
                    worker = free.pop()
                    try:
                        with _interrupts_wait():  # until a new process has learned to ignore them
                            busy[worker.submit(_in_worker, function, *waiting[0])] = worker, waiting[0]
                    except concurrent.futures.process.BrokenProcessPool:
                        continue  # killed while it had nothing to do: take another one
                    waiting.pop(0)
                done, _ = concurrent.futures.wait(busy, 1.0, concurrent.futures.FIRST_COMPLETED)
                if asked_to_stop():  # before what it did to the workers is taken for their own failure
                    raise Stopped(asked_to_stop())
                for future in done:
                    worker, task = busy.pop(future)
                    settle(task, future.result)
                    if future.exception() is None:
                        free.append(worker)
                    else:
                        for process in list(worker._processes.values()):
                            process.kill()
                watch([task for _, task in busy.values()], len(waiting))
        except BaseException:  # a signal: nothing new is started, and what is under way saves itself and ends
            under_way = [process for worker, _ in busy.values() for process in list(worker._processes.values())]
            latest = time.monotonic() + patience
            try:
                for process in under_way:
                    process.terminate()
                while concurrent.futures.wait(busy, 0.2).not_done and time.monotonic() < latest and not asked_again():
                    pass
            finally:
                for process in under_way:
                    process.kill()
            raise
        finally:
            # Idle or killed: soon over. A thread of theirs that outlives this one would quarrel with Python's own end
            # about a pipe.
            for worker in workers:
                worker.shutdown(cancel_futures=True)
    return failures


@contextlib.contextmanager
def _interrupts_wait():
    """A `with` block in which SIGINT waits; so it does in a process that is started there."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT]) if hasattr(signal, "pthread_sigmask") else None
    try:
        yield
    finally:
        if before is not None:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _begin_worker():
    """Ctrl-C reaches every process of a terminal; the parent ends the workers, without a traceback from each. If the
    parent is killed they end at once: a run that nobody looks after would write into the files of the resumed one."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent():
    multiprocessing.parent_process().join()
    os._exit(1)


def _in_worker(function, *task):
    """function(*task), which SIGTERM ends with what it has saved; a worker without a run it ends at once."""
    # Once is enough: a cluster may send it to all processes, and the parent sends it to its workers as well.
    before = signal.signal(signal.SIGTERM, lambda number, frame: asked_to_stop() or _on_signal(number, frame))
    try:
        return function(*task)
    finally:
        signal.signal(signal.SIGTERM, before)


def use_any_terminal():
    """What a terminal or a pipe has no letter for is printed as a question mark, and ends no program."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # None where it was closed
            stream.reconfigure(errors="replace")


def print_line(line):
    """Print at once, also into a pipe or a log file, in at most 100 columns; of processes that share a run the first
    one speaks."""
    if rank_and_size()[0] == 0:
        say(terminal.wrapped(line))


def run_tool(program, main):
    """Call main() of a program that keeps nothing to go on from: wrong use, and Ctrl-C, end with one line."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # lab/interrupted.py stood in for it
    try:
        sys.exit(main())
    except (ValueError, OSError) as error:
        exit_with(program, " ".join(str(error).splitlines()))
    except KeyboardInterrupt:
        print(f"{program}: interrupted", file=sys.stderr)
        sys.exit(130)


def exit_with(program, error):
    """End the program with one line on stderr and status 1."""
    sys.exit(f"{program}: {str(error).strip()}")
