"""Runs: the flags that both scripts share, the device, the folder of a run, its records, and runs side by side.

A run is one method with one seed. It leaves one JSON-lines file: a header (what was asked, of which code, on which
machine), one line per logged step, one per evaluation, and a final line. A file without its final line is a run that
was interrupted: `--resume` runs it again and skips the finished ones. Records name no folder, so they can be committed.
"""

import argparse
import concurrent.futures.process
import contextlib
import datetime
import functools
import hashlib
import multiprocessing
import os
import platform
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import torch
import torch.distributed as dist

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

ROOT = Path(__file__).parents[1]
# Flags that decide where and how a run is done, but not what comes out of it.
NEUTRAL_FLAGS = {
    "device",
    "out",
    "data_dir",
    "resume",
    "jobs",
    "seeds",
    "seed",
    "variants",
    "list_variants",
    "equal_compute",
    "sweep",  # a swept value is part of the run's name
    "swept",
    "notes",
    "save_every",
}


# What a number on the command line may be; a script that has no such flag is not asked.
MOST = 10**9
RANGES = {
    "seeds": (1, 10**4),
    **dict.fromkeys(
        ("steps", "batch_size", "jobs", "teacher_steps", "start_steps", "teacher_prompts"), (1, MOST)
    ),
    **dict.fromkeys(("train_examples", "measure", "log_every", "save_every", "rows"), (1, MOST)),
    **dict.fromkeys(("seed", "pair_seed", "student_prompts", "accept_top_k"), (0, MOST)),
    "micro_batch": (1, MOST),
    "gamma": (1, 64),  # longer drafts are thrown away at the first rejection
    "block_size": (2, 2**20),
    "lr": (1e-12, 100),
    "weight_decay": (0, 100),
    **dict.fromkeys(("student_temperature", "teacher_temperature"), (0, 1000)),  # 0 is greedy
    **dict.fromkeys(("student_top_p", "teacher_top_p"), (1e-6, 1)),
    **dict.fromkeys(("alpha", "student_kd", "module_start"), (0, 1)),
    **dict.fromkeys(("module_scale", "module_lr", "anchor"), (0, 1000)),  # a rate of 0: the teacher stands still
    "module_rank": (1, 4096),
    "temperature": (1e-3, 1000),
    "teacher_mix": (1e-6, 1 - 1e-6),
}


class Parser(argparse.ArgumentParser):
    """argparse with errors in one line instead of a screen of usage, and without abbreviations: a flag has one name."""

    def __init__(self, **options):
        super().__init__(allow_abbrev=False, **options)

    def error(self, message):
        message = " ".join(message.split())  # what was typed may hold new lines
        self.exit(2, f"{self.prog}: {message} (see python {self.prog} --help)\n")


def add_shared_flags(parser, variants, main_variants, sizes):
    """The flags that mean the same in train_skd.py and train_okd.py, with the same defaults."""
    group = parser.add_argument_group("what to run")
    group.add_argument(
        "--variants", default="main", help=f"comma-separated methods, main ({','.join(main_variants)}) or all"
    )
    group.add_argument("--list-variants", action="store_true", help="print the table of methods as JSON and exit")
    group.add_argument(
        "--seeds", type=int, default=1, help="runs per method, from --seed on (one seed is a demonstration)"
    )
    group.add_argument("--seed", type=int, default=1, help="first seed: order of the prompts, sampling noise, coins")
    group.add_argument(
        "--quick", action="store_true", help="smoke run: every stage in under a minute; its numbers mean nothing"
    )
    group = parser.add_argument_group("where")
    group.add_argument(
        "--device", default="auto", choices=("auto", "cpu", "cuda", "mps"), help="auto takes cuda, mps, cpu"
    )
    group.add_argument(
        "--out", metavar="DIR", help="folder of the records and final students (default: a new one in runs/)"
    )
    group.add_argument(
        "--resume", action="store_true", help="continue in the same folder: finished runs are not run again"
    )
    group.add_argument("--jobs", type=int, help="runs side by side, one thread each (default: CPU cores; 1 on a GPU)")
    group = parser.add_argument_group("task and pair")
    group.add_argument("--task", default="math", help="what is learned (default: math)")
    group.add_argument(
        "--data-dir", metavar="DIR", help="where files of real data sets lie (default: download to data/cache)"
    )
    group.add_argument(
        "--size", default="tiny", choices=tuple(sizes), help="one dial: both models and the number of steps"
    )
    group.add_argument("--pair-seed", type=int, default=1, help="seed of the teacher and of the starting student")
    group.add_argument(
        "--student-start", default="sft", choices=("sft", "raw"), help="start from a short SFT, or untuned"
    )
    group.add_argument("--student-prompts", type=int, help="prompts that the student may use (default: 500; 0: all)")
    group.add_argument("--teacher-prompts", type=int, help="prompts that the teacher learns from (default: all)")
    group.add_argument(
        "--teacher-steps", type=int, help="teacher's pretraining steps: its quality (default: by --size)"
    )
    group.add_argument("--start-steps", type=int, help="student's pretraining steps (default: by --size)")
    group.add_argument("--vocab-size", type=int, help="upper bound for the tokenizer (default: by --size)")
    group.add_argument(
        "--block-size", type=int, help="longest sequence; longer examples are left out (default: none is)"
    )
    for knob, kind, meaning in (
        ("difficulty", int, "steps, clauses, turns or operators of an example"),
        ("train-examples", int, "size of the train split"),
        ("entropy", float, "surface choice in the references, 0..1: how soft the teacher's targets are"),
        ("hard-share", float, "share of references in the harder mode, 0..1"),
    ):
        group.add_argument(f"--{knob}", type=kind, help=f"{meaning} (synthetic tasks; default: the task's own)")
    group.add_argument("--stories", action="store_true", default=None, help="math as word problems with numbers 0..99")
    group.add_argument("--measure", type=int, metavar="N", help="measure on the first N test examples (default: all)")
    group = parser.add_argument_group("distillation")
    group.add_argument("--steps", type=int, help="student updates (default: by --size)")
    group.add_argument("--batch-size", type=int, default=64, help="prompts per update")
    group.add_argument("--lr", type=float, help="peak learning rate, cosine with 5%% warm-up (default: by --size)")
    group.add_argument(
        "--gamma",
        type=block_length,
        metavar="N|auto",
        help="tokens that the student drafts per block: costs, not results (default: auto, by the acceptance so far)",
    )
    group.add_argument(
        "--accept-top-k",
        type=int,
        help="SKD's K: the teacher rank within which a proposal stays (default: scales with the vocabulary"
        " in use, 25 at 256,000 ids, 3 at 19)",
    )
    group.add_argument(
        "--reduction", default="token", choices=("token", "sequence"), help="mean over all tokens, or rows first"
    )
    group = parser.add_argument_group("memory and speed (results are the same, to rounding)")
    group.add_argument(
        "--micro-batch", type=int, metavar="N", help="rows per forward and backward pass (default: the whole batch)"
    )
    group.add_argument(
        "--chunk-loss",
        default="auto",
        choices=("auto", "yes", "no"),
        help="never hold the logits of a whole batch (auto: from a vocabulary of 16,384 tokens on)",
    )
    group.add_argument(
        "--recompute", action="store_true", help="activation checkpointing: less memory, a third more arithmetic"
    )
    group.add_argument(
        "--cache-teacher",
        type=cache_kind,
        metavar="dense|K",
        help="what a fixed teacher says about the references is worked out once and kept on disk, whole or as its K best"
        " tokens and one bucket for all others (the loss then is one of K + 1 buckets)",
    )
    group.add_argument(
        "--precision",
        default="auto",
        choices=("auto", "fp32", "tf32", "bf16"),
        help="of matrix products; losses are float32 (auto: tf32 on CUDA, fp32 elsewhere)",
    )
    group.add_argument("--compile", action="store_true", help="torch.compile the training passes (needs a C++ compiler)")


def block_length(text):
    """What --gamma takes: a number, or auto, which is None (sample.best_gamma)."""
    if text == "auto":
        return None
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"takes a number of tokens or auto, found {text!r}")
    return int(text)


def cache_kind(text):
    """What --cache-teacher takes: dense, which is 0, or a number of tokens."""
    if text == "dense":
        return 0
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"takes dense or a number of tokens, found {text!r}")
    return int(text)


def check_shared_flags(args, variants, main_variants):
    """The list of methods asked for; raises ValueError with one line for the first flag out of range."""
    names = {"main": list(main_variants), "all": list(variants)}.get(args.variants) or args.variants.split(",")
    for name in names:
        if name not in variants:
            raise ValueError(f"unknown variant {name!r}: choose from {', '.join(variants)}, main or all")
    check_ranges(args)
    for flag in ("out", "data_dir"):
        if getattr(args, flag) == "":  # an empty variable of the shell; it would mean the folder that one is in
            raise ValueError(f"--{flag.replace('_', '-')} must name a folder, found nothing: use . for this one")
    return list(dict.fromkeys(names))


def check_ranges(args):
    """Raise ValueError with one line for the first number of `args` that lies outside RANGES."""
    for flag, (low, high) in RANGES.items():
        value = getattr(args, flag, None)
        if value is not None and not low <= value <= high:  # nan is in no range
            raise ValueError(f"--{flag.replace('_', '-')} must lie in {low:g}..{high:g}, found {value}")


def pick_device(name):
    """auto, cpu, cuda or mps -> torch.device; ValueError if it is not there."""
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        name = next(device for device, there in available.items() if there)
    if not available.get(name):
        there = ", ".join(device for device, present in available.items() if present)
        raise ValueError(
            f"--device {name} is not present (torch {torch.__version__} sees: {there}): use --device auto, "
            "or install a build of torch for it"
        )
    return torch.device(name)


def use_precision(name, device):
    """Set how matrix products are computed -> the context in which a model's passes run. Losses are float32 in any."""
    name = {"cuda": "tf32"}.get(device.type, "fp32") if name == "auto" else name
    torch.set_float32_matmul_precision("high" if name == "tf32" else "highest")
    return torch.autocast(device.type, torch.bfloat16) if name == "bf16" else contextlib.nullcontext()


def default_jobs(device_type):
    """One run per core on a CPU: tiny models leave cores idle. One on an accelerator, or where processes share a run."""
    if started_by_torchrun():
        return 1
    return len(os.sched_getaffinity(0)) if device_type == "cpu" and hasattr(os, "sched_getaffinity") else 1


# ---------------------------------------------------------------------------------------------------------------------
# One run by several processes: torchrun --nproc_per_node N train_skd.py ...
# Every process walks the same path: the same flags, the same order of batches, its own rows of each. What may differ
# between them is either averaged (across) or decided by the first one (first_decides), never left to chance.


def started_by_torchrun():
    """Whether several processes are to share this run. A variable that something else has left is nobody's start."""
    size = os.environ.get("WORLD_SIZE", "")
    return size.isdecimal() and int(size) > 1 and os.environ.get("RANK", "").isdecimal()


def processes():
    """(number of this process, how many share the run); (0, 1) without torchrun."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def join(device):
    """Join the processes that torchrun started, if it did; -> this process' own device."""
    if started_by_torchrun() and not dist.is_initialized():
        # The first process pretrains while the others wait; one that dies is noticed by torchrun, not by a timeout.
        wait = datetime.timedelta(days=1)
        # What is decided on the CPU is told from CPU to CPU: no process waits for its device to hear of it.
        dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo", timeout=wait)
    if device.type == "cuda" and dist.is_initialized():
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    return device


def leave():
    """Take leave of the other processes; nothing happens where there are none."""
    if dist.is_initialized():
        dist.destroy_process_group()


def across(tensor):
    """Mean over the processes, as float; the tensor itself where there is one."""
    if processes()[1] == 1:
        return tensor
    tensor = tensor.detach().float().clone()
    dist.all_reduce(tensor)
    return tensor / processes()[1]


def wait_for_all():
    """Until every process is here."""
    if processes()[1] > 1:
        dist.barrier()


def first_decides(function):
    """The value of function() in the first process, which alone calls it; the others wait for it. Errors reach all."""
    rank, size = processes()
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
    _, size = processes()
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


def learner(model, compiled=False):
    """What a training pass calls in place of `model`: compiled if asked for, and averaging gradients over processes."""
    if processes()[1] == 1:
        return torch.compile(model, dynamic=True) if compiled else model
    shared = torch.nn.parallel.DistributedDataParallel(model)
    # After its first backward pass it gathers gradients in the order in which they came, and from three processes on
    # that order decides how sums round: one pass is spent on it, so that a run that goes on adds as the one before did.
    shared(torch.zeros(2, 2, dtype=torch.long, device=next(model.parameters()).device)).sum().backward()
    model.zero_grad(set_to_none=True)
    if compiled:  # only now: that pass has a shape of its own
        shared.module = torch.compile(model, dynamic=True)
    return shared


def parts(num_rows, micro_batch):
    """Slices of a batch's rows, at most micro_batch each, and whether it is the last: [(slice, bool)]."""
    size = micro_batch or num_rows
    return [(slice(first, first + size), first + size >= num_rows) for first in range(0, num_rows, size)]


def averaging(last, *models):
    """The context of a part's passes: gradients add up locally and are averaged over processes in the last part only."""
    context = contextlib.ExitStack()
    for model in models:
        if not last and isinstance(model, torch.nn.parallel.DistributedDataParallel):
            context.enter_context(model.no_sync())
    return context


# ---------------------------------------------------------------------------------------------------------------------
# Folders.


def make_run_folder(out, resume, default_name):
    """The folder for records: `out`, or a new one runs/NAME-N. Refuses to mix with finished records unless resuming."""
    if out is None:
        numbered = re.compile(re.escape(default_name) + r"-(\d+)")
        matches = [numbered.fullmatch(path.name) for path in (ROOT / "runs").glob("*")]
        taken = sorted(int(match[1]) for match in matches if match)
        number = taken[-1] + (not resume) if taken else 1
        out = ROOT / "runs" / f"{default_name}-{number}"
    folder = Path(out)
    if len(os.fsencode(folder.name)) > 255:
        raise ValueError(f"--out names a folder of {len(folder.name):,} letters: give a shorter name")
    if not resume and folder.is_dir():
        if any([*folder.glob("*.jsonl"), *folder.glob("*.state*.pt")]):
            raise ValueError(f"{out} already holds records: add --resume to continue them, or give another --out")
        for path in sorted(folder.iterdir()):
            if re.fullmatch(r"(teacher|student_start|.+_seed\d+(\.module)?)\.pt|table\.md|curves\.svg|summary\.json", path.name):
                raise ValueError(
                    f"{path.name} in {out} may be written over: add --resume if a run of yours was interrupted here, "
                    "or give another --out"
                )
    if error := write_error(folder):
        raise ValueError(f"cannot write to --out {out} ({error.strerror}): give a folder of yours") from error
    return folder


def write_error(folder):
    """What the system has against files in a folder, which is made if need be: an OSError, or None."""
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        return error
    return None


def source_hashes(names):
    """sha256 of the project's own files: which code made a record."""
    return {name: hashlib.sha256((ROOT / name).read_bytes()).hexdigest() for name in names}


def describe_machine(device):
    """What a record says about the place where it was made; no host names, no folders."""
    name = (
        torch.cuda.get_device_name(device) if device.type == "cuda" else f"{platform.machine()}, {os.cpu_count()} cores"
    )
    try:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
        ask = functools.partial(subprocess.run, capture_output=True, text=True, check=True, cwd=ROOT, env=environment)
        top, commit = ask(["git", "rev-parse", "--show-toplevel", "HEAD"]).stdout.split("\n")[:2]
        if not os.path.samefile(top, ROOT):
            raise OSError("a repository around this folder, not of it")
        dirty = bool(ask(["git", "status", "--porcelain", "-uno"]).stdout.strip())
    except (OSError, subprocess.CalledProcessError):  # a downloaded archive, or no git: the hashes still tell
        commit, dirty = None, None
    return {
        "device": device.type,
        "device_name": name,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "commit": commit,
        "modified": dirty,
        "date": time.strftime("%Y-%m-%d"),
    }


def result_flags(args):
    """The flags that decide a result, without folders: what --resume compares and a record keeps."""
    return {name: value for name, value in sorted(vars(args).items()) if name not in NEUTRAL_FLAGS}


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


# Loops that will look; the signals that wait for them; whether a second one waits as well, in place of being raised at once.
_waiting = {"loops": 0, "signals": [], "all": False}


def let_wait(number):
    """Whether a loop will look for this signal, and has been told of it; False where none will, or where one is enough."""
    waits = bool(_waiting["loops"]) and (_waiting["all"] or not _waiting["signals"])
    if waits:
        _waiting["signals"].append(number)
    return waits


def _on_signal(number, frame):
    if not let_wait(number):
        if _waiting["loops"]:
            _waiting["signals"] = [number]  # waits in place of the first: in a destructor Python drops what is raised here
        raise Stopped(number)


def catch_signals(handler=_on_signal):
    """From now on a signal is a Stopped, raised where the program is or, in a `saving_loop`, where that asks; or what
    another `handler` makes of it."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, handler)


@contextlib.contextmanager
def saving_loop(all_wait=False):
    """A `with` block whose signals wait until it asks for them by `stop_if_asked`, or until its end. A second one is raised at
    once, unless `all_wait`: then the block asks for it as well (`asked_again`)."""
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
    if processes()[1] == 1:
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


@contextlib.contextmanager
def locked(path, wait=True, say=lambda line: None):
    """A `with` block that no other process on this machine is in at the same time; without `wait` it yields False where
    another one is, else `say` is told.

    The lock is the system's, on a file at `path` that is there as long as the block: it ends with the process, however that
    ends. Where the file system has no locks, or the folder may not be written to, nobody is kept out.
    """
    with contextlib.suppress(OSError):
        Path(path).parent.mkdir(parents=True, exist_ok=True)
    while True:
        try:
            # Neither through a link, nor waiting for the other end of a pipe.
            only = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
            file = open(path, "a", opener=lambda *how: os.open(how[0], how[1] | only, 0o666))
        except OSError:
            yield True
            return
        with file:
            try:
                if fcntl:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if not wait:
                    yield False
                    return
                say(f"another process is at work on {Path(path).stem}: waiting for it")
                fcntl.flock(file, fcntl.LOCK_EX)
            except OSError:  # a file system without locks: nobody is kept out
                pass
            # The one before deletes the file at its end: a lock on a file that has no name any more keeps nobody out.
            still = False
            with contextlib.suppress(FileNotFoundError):
                still = os.path.samestat(os.fstat(file.fileno()), os.stat(path))
            if still:
                try:
                    yield True
                finally:
                    with contextlib.suppress(OSError):  # somebody tidied up
                        os.remove(path)
                return


def run_all(function, tasks, jobs, report, watch=lambda running, waiting: None, patience=60.0):
    """Call function(*task) for every task, `jobs` at a time in processes of their own; -> list of (task, error line).

    A failed run does not take the others down, not even one whose process dies: each process works on one task at a
    time. With one job everything happens in this process, in order; with more, watch(running tasks, number of waiting
    ones) is called about once a second.
    """
    failures = []

    def settle(task, outcome):
        try:
            report(outcome())
        except Exception as error:  # whatever it was, the other runs go on; the line says what
            if processes()[1] > 1:
                raise  # the others may know nothing of it: going on alone, this process would wait for them forever
            broken = isinstance(error, concurrent.futures.process.BrokenProcessPool)
            line = "its process was killed (out of memory?)" if broken else f"{type(error).__name__}: {error}"
            failures.append((task, line.split("\n")[0]))
            report(f"FAILED {failures[-1][1]}")

    if jobs == 1:
        for task in tasks:
            settle(task, lambda task=task: function(*task))
        return failures
    # spawn: a forked child would inherit torch's thread pool in an undefined state
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
                    if not isinstance(future.exception(), concurrent.futures.process.BrokenProcessPool):
                        free.append(worker)
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
            # Idle or killed: soon over. A thread of theirs that outlives this one would quarrel with Python's own end about a pipe.
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
    """Ctrl-C reaches every process of a terminal; the parent ends the workers, without a traceback from each. If the parent
    is killed they end at once: a run that nobody looks after would write into the files of the one that goes on."""
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


def say(line):
    """Print at once, also into a pipe or a log file; of processes that share a run, the first one speaks."""
    if processes()[0] == 0:
        print(line, flush=True)


def exit_with(program, error):
    """End the program with one line on stderr and status 1."""
    sys.exit(f"{program}: {str(error).strip()}")
