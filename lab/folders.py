"""Folders: where a run's files go, who may write there, and what a record says of code and machine."""

import contextlib
import errno
import functools
import hashlib
import os
import platform
import re
import subprocess
import tempfile
import time
from pathlib import Path

import torch

from lab.archive import PACKED

try:
    import fcntl
except ImportError:  # Windows, which has a lock of another kind
    fcntl = None
    import msvcrt

ROOT = Path(__file__).parents[1]

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
    if (folder / PACKED).exists():
        raise ValueError(f"{out} holds a finished study ({PACKED}): give another --out")
    if not resume and folder.is_dir():
        if any([*folder.glob("*.jsonl"), *folder.glob("*.state*.pt")]):
            raise ValueError(f"{out} already holds records: add --resume to continue them, or give another --out")
        for path in sorted(folder.iterdir()):
            if re.fullmatch(
                r"((teacher|student_start)_pair\d+|.+_seed\d+(\.module)?)\.pt"
                r"|table\.md|curves\.svg|summary\.json|report\.html",
                path.name,
            ):
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


def name_error(folder, name):
    """What the system has against a new file of this name, which is removed again: an OSError, or None. Windows counts
    the letters of the whole path (260), some file systems those of the name alone (143, 255)."""
    path = Path(folder) / name
    try:
        with open(path, "xb"):
            pass
        path.unlink()
    except OSError as error:
        return error
    return None


def try_lock(file):
    """Whether this process has got the system's lock on an open file; False where another one has it, OSError where the
    file system has no locks."""
    try:
        if fcntl:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        else:  # Windows locks bytes: the first one, which need not be there
            file.seek(0)
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
    except OSError as error:
        if isinstance(error, BlockingIOError) or not fcntl and error.errno in (errno.EACCES, errno.EDEADLK):
            return False
        raise
    return True


def _wait_for_lock(file, patient, say):
    """Whether the lock is had, at once or, if `patient`, in the end; `say` is called before the waiting."""
    try:
        if try_lock(file):
            return True
        if not patient:
            return False
        say()
        if fcntl:
            fcntl.flock(file, fcntl.LOCK_EX)
        while not fcntl and not try_lock(file):  # Windows' own way to wait ends after ten seconds
            time.sleep(0.1)
    except OSError:  # a file system without locks: nobody is kept out
        pass
    return True


@contextlib.contextmanager
def locked(path, wait=True, say=lambda line: None):
    """A `with` block that no other process on this machine is in at the same time; without `wait` it yields False where
    another one is, else `say` is told.

    The lock is the system's, on a file at `path` that is there as long as the block: it ends with the process, however
    that ends. Where the file system has no locks, or the folder may not be written to, nobody is kept out.
    """
    with contextlib.suppress(OSError):
        Path(path).parent.mkdir(parents=True, exist_ok=True)
    while True:
        try:
            # Neither through a link, nor waiting for the other end of a pipe.
            only = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
            file = open(path, "ab", opener=lambda *how: os.open(how[0], how[1] | only, 0o666))
        except OSError:
            yield True
            return
        with file:
            words = f"another process is at work on {Path(path).stem}: waiting for it"
            if not _wait_for_lock(file, wait, lambda: say(words)):
                yield False
                return
            # The one before deletes the file at its end: a lock on a file that has no name any more keeps nobody out.
            still = False
            with contextlib.suppress(FileNotFoundError):
                still = os.path.samestat(os.fstat(file.fileno()), os.stat(path))
            if still:
                try:
                    yield True
                finally:
                    if not fcntl:  # Windows: an open file cannot be removed, and whoever waits for this one has it open
                        file.close()
                    with contextlib.suppress(OSError):  # somebody tidied up
                        os.remove(path)
                return


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
        ask = functools.partial(subprocess.run, capture_output=True, check=True, cwd=ROOT, env=environment)
        ask = functools.partial(ask, encoding="utf-8", errors="surrogateescape")  # git's, whatever the system's own is
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
