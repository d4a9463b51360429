"""Laws of a stranger's machine: macOS, Windows, another torch. What cannot be run here is shown by what they lack."""

import ast
import io
import os
import re
import shutil
import signal
import subprocess
import sys

import pytest
import torch
from test_project import PROGRAM, ROOT, dotted, page, tree_of
from test_train_skd import SMALL, cached_pairs, nothing_trained, refused  # noqa: F401
from tqdm import tqdm

import train_okd
import train_skd
from lab import folders, processes, report
from lab.records import run_name
from model import checksum, load_file

NAMES = ROOT / "tests" / "torch_names.txt"


# ---------------------------------------------------------------------------------------------------------------------
# The names of torch.


def torch_names(tree):
    """Every name of torch in a syntax tree, such as torch.nn.functional.pad, whatever it was imported as."""
    known, found = {}, set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            own = [alias for alias in node.names if alias.name.split(".")[0] == "torch"]
            known |= {alias.asname or "torch": alias.name if alias.asname else "torch" for alias in own}
            found |= {alias.name for alias in own}
        elif isinstance(node, ast.ImportFrom) and node.module.split(".")[0] == "torch":
            known |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    for node in ast.walk(tree):
        first, _, rest = (dotted(node) if isinstance(node, ast.Attribute) else "").partition(".")
        if first in known:
            found.add(f"{known[first]}.{rest}")
    return {name for name in found if not any(other.startswith(f"{name}.") for other in found)}  # the longest ones


def test_names_are_found_whatever_they_are_called():
    text = "import torch.nn as nn\nfrom torch.nn import functional as F, utils\nimport torch\n"
    text += "nn.Linear(1, 2); F.pad(x); torch.cuda.is_available(); utils; x.sum(); torch.long"
    found = {"torch.nn.Linear", "torch.nn.functional.pad", "torch.nn.utils", "torch.cuda.is_available", "torch.long"}
    assert torch_names(ast.parse(text)) == found


def versions():
    """{name of torch: the version that is known to have it}, as the committed list says."""
    lines = [line.split() for line in NAMES.read_text(encoding="utf-8").splitlines() if not line.startswith("#")]
    return {name: tuple(map(int, version.split("."))) for name, version in lines}


def test_no_name_of_torch_is_younger_than_the_oldest_version_allowed():
    """A name of torch that the code begins to use may not exist in the versions that requirements.txt lets in."""
    listed, used = versions(), set().union(*(torch_names(tree_of(name)) for name in PROGRAM))
    new, gone = sorted(used - listed.keys()), sorted(listed.keys() - used)
    assert not new, f"look up which torch brought {', '.join(new)}; add lines NAME VERSION to tests/torch_names.txt"
    assert not gone, f"no code uses {', '.join(gone)} any more: take the line out of tests/torch_names.txt"
    oldest = re.search(r"^torch>=(\d+)\.(\d+)$", (ROOT / "requirements.txt").read_text(), re.M)
    young = [name for name, version in listed.items() if version > tuple(map(int, oldest.groups()))]
    assert not young, f"raise torch>= in requirements.txt, or do without {', '.join(young)}"


def test_the_tested_versions_are_named_once():
    """The README names the torch of the tests; CI installs just that one, before the README's own command."""
    (tested,) = re.findall(r"^- Tested with Python [\d.]+, torch ([\d.]+), ", page("README.md"), re.M)
    lines = (ROOT / ".ci" / "run").read_text().splitlines()
    (first,) = [number for number, line in enumerate(lines) if line == f"pip install torch=={tested}"]
    (then,) = [number for number, line in enumerate(lines) if line.startswith("pip install -r requirements.txt")]
    assert first < then


# ---------------------------------------------------------------------------------------------------------------------
# What other systems lack.

# Names of modules and functions that Windows (and for some macOS) has not. In the program each is asked for first.
MODULES = {"fcntl", "resource", "pwd", "grp", "termios", "tty", "pty", "readline", "curses", "syslog", "posix"}
FUNCTIONS = {
    "os": {"fork", "forkpty", "wait", "kill", "killpg", "getuid", "geteuid", "getgid", "setsid", "getpgid", "mkfifo",
           "chown", "sched_getaffinity", "sched_yield", "uname", "statvfs", "pread", "pwrite", "fchmod", "O_NOFOLLOW",
           "O_NONBLOCK", "O_DIRECTORY", "O_CLOEXEC", "getloadavg", "openpty", "WNOHANG", "waitpid", "nice"},
    "signal": {"SIGKILL", "SIGHUP", "SIGQUIT", "SIGALRM", "SIGUSR1", "SIGUSR2", "SIGCHLD", "SIGPIPE", "SIGSTOP",
               "SIGCONT", "alarm", "setitimer", "pause", "pthread_sigmask", "pthread_kill", "sigwait", "SIG_BLOCK",
               "SIG_SETMASK", "SIG_UNBLOCK", "siginterrupt", "set_wakeup_fd"},
    "time": {"tzset", "clock_gettime", "pthread_getcpuclockid"},
}  # fmt: skip
ASKED_FIRST = {  # who asks whether it is there
    ("lab/folders.py", "fcntl"), ("lab/processes.py", "os.sched_getaffinity"),
    ("lab/processes.py", "signal.pthread_sigmask"), ("lab/processes.py", "signal.SIG_BLOCK"),
    ("lab/processes.py", "signal.SIG_SETMASK"),
}  # fmt: skip
TEXT_CALLS = {"open": 1, "fdopen": 1, "read_text": None, "write_text": None}  # name -> where the mode stands


def other_systems(name, tree):
    """What would fail or differ on macOS or Windows: a line for each."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            for module in {alias.name for alias in node.names} | {getattr(node, "module", None)}:
                if module in MODULES and (name, module) not in ASKED_FIRST:
                    yield f"line {node.lineno} imports {module}, which Windows has not"
        elif isinstance(node, ast.Attribute):
            module, _, function = dotted(node).partition(".")
            if function in FUNCTIONS.get(module, ()) and (name, dotted(node)) not in ASKED_FIRST:
                yield f"line {node.lineno} takes {dotted(node)} for granted"
        elif isinstance(node, ast.Call):
            yield from texts_in_the_systems_own_way(node)


def texts_in_the_systems_own_way(node):
    """A text that is read in the system's own encoding, or written with its own line ends."""
    called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", None)
    keywords = {keyword.arg: keyword.value for keyword in node.keywords}
    where = f"line {node.lineno} calls {called}"
    if called in ("run", "Popen") and dotted(node.func).startswith("subprocess."):
        if {"text", "universal_newlines"} & keywords.keys() and "encoding" not in keywords:
            yield f"{where} without encoding="
    if called not in TEXT_CALLS or dotted(node.func) == "os.open":
        return
    at, mode = TEXT_CALLS[called], "w" if called == "write_text" else "r"
    if at is not None:
        at -= dotted(node.func) not in ("open", "os.fdopen")  # a method of a path
        given = keywords.get("mode") or (node.args[at] if at < len(node.args) else None)
        mode = "r" if given is None else getattr(given, "value", "?")
    if "b" not in mode:
        if "encoding" not in keywords:
            yield f"{where} without encoding="
        if "r" not in mode and "newline" not in keywords:
            yield f"{where} for writing without newline="


@pytest.mark.parametrize("name", PROGRAM)
def test_nothing_is_taken_for_granted_that_another_system_lacks(name):
    """No module, function, signal, encoding or line end of one system, unless the code asks for it first."""
    assert list(other_systems(name, tree_of(name))) == []


@pytest.mark.parametrize("line", [
    "import fcntl", "from resource import getrusage", "os.fork()", "os.kill(1, signal.SIGTERM)", "signal.SIGHUP",
    "open('a')", "open('a', 'w', encoding='utf-8')", "path.read_text()", "path.write_text('x', encoding='utf-8')",
    "path.open('x', encoding='utf-8')", "subprocess.run(['git'], text=True)", "os.fdopen(3, 'w')",
])  # fmt: skip
def test_the_guard_sees(line):
    """The test above finds each of these, and lets their relatives pass that are the same everywhere."""
    assert list(other_systems("losses.py", ast.parse(line)))
    fine = "import os, signal; signal.SIGTERM; open('a', 'rb'); path.open('x', encoding='utf-8', newline='\\n')\n"
    fine += "path.read_bytes(); path.read_text(encoding='utf-8'); subprocess.run(['a'], encoding='utf-8')"
    assert list(other_systems("losses.py", ast.parse(fine))) == []


def test_signals_wait_where_they_can(monkeypatch):
    """Windows has no pthread_sigmask: workers are started all the same."""
    for name in ("pthread_sigmask", "SIG_BLOCK", "SIG_SETMASK"):
        monkeypatch.delattr(signal, name)
    entered = False
    with processes._interrupts_wait():
        entered = True
    assert entered


def test_a_console_without_letters(monkeypatch):
    """Windows' console may know 256 letters (cp1252): others are printed as ?, in a line as in a bar; nothing ends."""
    console = io.TextIOWrapper(io.BytesIO(), encoding="cp1252", write_through=True)
    monkeypatch.setattr(sys, "stdout", console)
    processes.use_any_terminal()
    processes.print_line("d\u00e9j\u00e0 \u2264 \u4f60")
    for _ in tqdm(range(3), desc="\u2713", file=console):
        pass
    text = console.buffer.getvalue().decode("cp1252")
    assert text.startswith("d\u00e9j\u00e0 ? ?\n") and "3/3" in text


@pytest.mark.slow
def test_the_whole_program_on_a_pretended_windows(clone, tmp_path):
    """Two runs side by side, a cache of the teacher's answers, a run that goes on: what is missing changes no bit."""
    shutil.copy(ROOT / "tests" / "pretended_windows.py", tmp_path / "sitecustomize.py")
    pretended = {"PYTHONPATH": str(tmp_path), "PRETENDED_WINDOWS": str(clone), "PYTHONIOENCODING": "cp1252"}
    words = "import os; a = open('a', 'w'); os.replace('a', 'b')"
    done = subprocess.run([sys.executable, "-c", words], cwd=clone, env=os.environ | pretended, capture_output=True)
    assert b"PermissionError" in done.stderr  # the pretence holds

    def go(out, more, *flags):
        command = [sys.executable, "train_skd.py", *SMALL, "--variants", "sft,supervised", "--cache-teacher", "8"]
        command += ["--out", out, "--jobs", "2", *flags]
        done = subprocess.run(command, cwd=clone, env=os.environ | more, capture_output=True)
        assert done.returncode == 0, done.stderr

    go("windows", pretended)
    (clone / "windows" / "sft_pair1_seed1.jsonl").unlink()
    go("windows", pretended, "--resume")  # sft again, over what it left
    shutil.rmtree(clone / "data" / "cache")
    go("here", {})
    for name in ("sft", "supervised"):
        one, other = (load_file(str(clone / out / f"{name}_pair1_seed1.pt")) for out in ("windows", "here"))
        assert checksum(one) == checksum(other)
    assert not [path for kind in ("partial", "damaged", "state") for path in (clone / "windows").glob(f"*.{kind}*")]


@pytest.mark.parametrize("script", [train_skd, train_okd], ids=lambda script: script.__name__)
def test_files_have_names_that_every_system_takes(script):
    """No row's name holds what Windows forbids, ends in a dot, or differs from another by its capitals alone."""
    names = [run_name(label, 1, 1, budget) for label in script.VARIANTS for budget in ("steps", "compute")]
    names += [run_name("skd lr=0.001 accept-rule=minprob rule=accept_min_prob=0.1", 1, 1, "steps")]
    assert all(re.fullmatch(r"[\w=.,+-]+", name) and not name.endswith(".") for name in names)
    assert len({name.lower() for name in names}) == len(names)


def test_a_folder_that_takes_no_long_names(nothing_trained, capsys, monkeypatch, tmp_path):  # noqa: F811
    """Windows' paths end at 260 letters, some file systems' names at 143: asked before anything is trained."""
    refuses = folders.name_error
    monkeypatch.setattr(folders, "name_error", lambda folder, name: refuses(folder, name + "x" * 255))
    line = refused(train_skd.main, [*SMALL, "--out", str(tmp_path / "out")], capsys)
    assert "takes no file called" in line and "give a shorter --out" in line
    assert not list((tmp_path / "out").iterdir())


def test_git_speaks_utf_8(monkeypatch):
    """What git prints is read as it is written, not in the console's own encoding; a folder may be called Übung."""
    asked, run = [], subprocess.run
    monkeypatch.setattr(subprocess, "run", lambda *words, **how: asked.append(how["encoding"]) or run(*words, **how))
    folders.describe_machine(torch.device("cpu"))
    assert asked and set(asked) == {"utf-8"}


# ---------------------------------------------------------------------------------------------------------------------
# What a program does before it begins, and when all of it fails.


@pytest.mark.parametrize("program", ["train_skd.py", "train_okd.py", "sample.py", "losses.py", "-m lab.exchange"])
def test_ctrl_c_while_torch_is_imported(tmp_path, program):
    """The import takes seconds; a traceback of torch's inside helps nobody. Here it is a torch that only interrupts."""
    (tmp_path / "torch.py").write_text("import os, signal, time\nos.kill(os.getpid(), signal.SIGINT)\ntime.sleep(60)\n")
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    done = subprocess.run([sys.executable, *program.split()], cwd=ROOT, env=environment, capture_output=True, text=True)
    name = program.replace("-m lab.exchange", "exchange.py")
    assert (done.returncode, done.stdout, done.stderr) == (130, "", f"{name}: stopped by SIGINT\n")


@pytest.mark.slow
def test_a_program_that_is_imported_keeps_its_signals():
    """Only a program that was started handles Ctrl-C: who imports one keeps their own handler."""
    handler = "signal.getsignal(signal.SIGINT)"  # "ignored", where the tests run in the background of a shell
    programs = "train_skd, train_okd, sample, losses"
    words = f"import signal; before = {handler}; import {programs}; print({handler} == before)"
    done = subprocess.run([sys.executable, "-c", words], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == "True\n", done.stderr


def test_no_compiler_is_noticed_before_training(nothing_trained, capsys, monkeypatch, tmp_path):  # noqa: F811
    """--compile without a compiler: one line, before the pair is pretrained and a folder is made."""

    def no_compiler(function):
        raise RuntimeError("InvalidCxxCompiler: No working C++ compiler found\n\nSet TORCHDYNAMO_VERBOSE=1 for ...")

    monkeypatch.setattr(torch, "compile", no_compiler)
    line = refused(train_skd.main, [*SMALL, "--compile", "--out", str(tmp_path / "out")], capsys)
    assert "--compile" in line and "No working C++ compiler" in line and "leave it out" in line
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_machine_without_a_compiler(tmp_path):
    """The same with torch's own search for one."""
    environment = os.environ | {"CXX": "/nowhere/g++", "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "compiled")}
    command = [sys.executable, "train_skd.py", *SMALL, "--compile", "--out", str(tmp_path / "out")]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 1 and done.stderr.count("\n") == 1 and "finds no compiler that works" in done.stderr
    assert not (tmp_path / "out").exists()


def test_when_all_runs_fail(cached_pairs, capsys, monkeypatch, tmp_path):  # noqa: F811
    """Status 1, one line per run, and no advice to finish first: there is no table, and that is said."""
    monkeypatch.setattr(train_skd, "distill", lambda *given: 1 / 0)
    monkeypatch.setattr(report, "write_report", lambda folder: pytest.fail("nothing to report"))
    assert train_skd.main([*SMALL, "--out", str(tmp_path / "out")]) == 1
    told = capsys.readouterr()
    assert [line.split(": ")[1] for line in told.err.splitlines()] == [
        "run sft_pair1_seed1 failed",
        "run skd_pair1_seed1 failed",
    ]
    assert "no table, since no run has finished" in told.out and "table.md" not in told.out


def test_a_modules_distance_is_told_with_jobs(cached_pairs, capsys, monkeypatch, tmp_path):  # noqa: F811
    """A module that does not start as the identity is told of, with runs side by side once each run has ended."""
    run_all = processes.run_all
    monkeypatch.setattr(processes, "run_all", lambda run, todo, jobs, *rest: run_all(run, todo, 1, *rest))
    argv = [*SMALL, "--variants", "okd", "--module", "ptuning", "--out", str(tmp_path / "out"), "--jobs", "2"]
    assert train_okd.main(argv) == 0
    assert capsys.readouterr().out.count("the ptuning module starts ") == 1
