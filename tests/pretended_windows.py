"""A system that lacks what Windows and macOS lack. test_machines.py lets Python import it first, as sitecustomize.

Gone are fcntl and its like, os.sched_getaffinity, signal masks and SIGHUP; msvcrt stands in for Windows' locks. A file
that any process has open or mapped can neither be renamed, removed nor written over, as on Windows: PermissionError.
"""

import concurrent.futures.process  # all that asks for msvcrt to learn which system this is
import errno
import fcntl
import multiprocessing.connection
import os
import signal
import subprocess
import sys
import tempfile
import types

assert concurrent and multiprocessing and subprocess and tempfile


def locking(descriptor, mode, size):
    """Windows' lock on the next `size` bytes of a file, by this system's own."""
    try:
        _flock(descriptor, _EXCLUSIVE)
    except BlockingIOError:
        raise PermissionError(errno.EACCES, "Permission denied") from None


_flock, _EXCLUSIVE = fcntl.flock, fcntl.LOCK_EX | fcntl.LOCK_NB
sys.modules["msvcrt"] = types.SimpleNamespace(LK_NBLCK=2, locking=locking)
for name in ("fcntl", "termios", "resource"):
    sys.modules[name] = None  # an import of it fails
for module, name in ((os, "sched_getaffinity"), (os, "O_NOFOLLOW"), (signal, "pthread_sigmask"), (signal, "SIGHUP")):
    delattr(module, name)


def user_of(path):
    """The number of a process that has a file open or mapped, or None."""
    for process in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{process}/maps") as file:
                if path in file.read():
                    return process
            for number in os.listdir(f"/proc/{process}/fd"):
                if os.path.realpath(f"/proc/{process}/fd/{number}") == path:
                    return process
        except OSError:  # it has ended, or is another user's
            pass
    return None


def refusing(function):
    """A function of os that changes names, for files in the folder of this test alone."""

    def call(*paths, **keywords):
        for path in [os.path.abspath(path) for path in paths if isinstance(path, str | os.PathLike)]:
            if path.startswith(os.environ["PRETENDED_WINDOWS"]) and os.path.isfile(path) and (process := user_of(path)):
                raise PermissionError(errno.EACCES, f"in use by process {process}", path)
        return function(*paths, **keywords)

    return call


for name in ("replace", "rename", "remove", "unlink"):
    setattr(os, name, refusing(getattr(os, name)))
