"""What befalls a program from outside: signals, kills, full disks, read-only folders, two at once.
Nothing done is lost.

The slow tests run the real commands. Moments are random and seeded: a process is ended when it has printed, or written
into its records, its n-th line, which is never the same place twice, since nobody waits for it.
"""

import contextlib
import dataclasses
import errno
import functools
import io
import json
import multiprocessing
import os
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from test_train_skd import SMALL, cached_pairs, lines_of, without_times  # noqa: F401
from workers import interrupted, wait_for

import train_skd
from lab import compare, folders, pairs, processes, records, rollouts
from model import load_file

TINY = (
    "--quick --teacher-steps 40 --start-steps 10 --batch-size 9 --steps 16 --save-every 2 --log-every 2 --device cpu"
).split()
KILLS = 6  # of each script
SIGNALS = 5
RUNS = {
    "train_skd.py": "seqkd,skd,distillm,fitnet,takd,sftn",
    "train_okd.py": "gkd,okd,promptkd,ikd",
}


@contextlib.contextmanager
def running(clone, script, *argv, limit=None):
    """The real command, whose lines can be read one by one; at the end of the block it is over."""
    process = subprocess.Popen(
        [sys.executable, script, *TINY, *argv], cwd=clone, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        env=os.environ | {"OMP_NUM_THREADS": "1"}, start_new_session=True, preexec_fn=limit,
    )  # fmt: skip
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def read_lines(process, number):
    """The first `number` lines, or fewer where it prints fewer."""
    return [line for _, line in zip(range(number), iter(process.stdout.readline, ""))]


def killed_after(process, number, out):
    """Kill it when it has printed and recorded `number` lines together -> the lines that it printed."""
    printed = []
    reader = threading.Thread(target=lambda: [printed.append(line) for line in process.stdout])
    reader.start()

    def recorded():
        with contextlib.suppress(FileNotFoundError):  # one is being replaced
            return sum(path.read_bytes().count(b"\n") for path in out.glob("*.jsonl"))
        return 0

    before = recorded()
    while process.poll() is None and len(printed) + recorded() - before < number:
        time.sleep(0.002)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    reader.join()
    return printed


def finished_records(folder, names):
    """The lines of every record but those that tell of going on, without what a clock says."""
    found = {name: lines_of(folder / f"{name}.jsonl") for name in names}
    assert all(line[-1]["kind"] == "final" for line in found.values())
    kept = {name: [without_times(line) for line in lines if line["kind"] != "resumed"] for name, lines in found.items()}
    for lines in kept.values():
        lines[0].pop("jobs")  # how many were side by side when this one began
    return kept


def stems(script):
    """The names of a script's runs."""
    return [f"{name}_pair1_seed{seed}" for name in RUNS[script].split(",") for seed in (1, 2)]


@pytest.fixture(scope="module")
def undisturbed(clone, tmp_path_factory):
    """From a script to the folder of its runs that nothing befell; made when it is first asked for."""

    @functools.cache
    def folder_of(script):
        out = tmp_path_factory.mktemp("undisturbed") / "out"
        with running(clone, script, "--seeds", "2", "--variants", RUNS[script], "--out", str(out)) as process:
            _, errors = process.communicate(timeout=600)
        assert process.returncode == 0, errors[-2000:]
        return out

    return folder_of


def same_results(one, other, names):
    """Records and final students of two folders are the same, to the bit, and nothing else is left."""
    records_of_one, records_of_other = finished_records(one, names), finished_records(other, names)
    for name in names:
        assert records_of_one[name] == records_of_other[name], name
        for kind in (".pt", ".module.pt"):
            files = [folder / f"{name}{kind}" for folder in (one, other)]
            if files[0].exists():
                contents = [torch.load(file, weights_only=True) for file in files]
                assert contents[0]["sha256"] == contents[1]["sha256"], name
    assert not [path for kind in ("state", "partial", "damaged", "lock") for path in other.glob(f"*.{kind}*")]


@pytest.mark.slow
@pytest.mark.parametrize("script", RUNS)
def test_killed_at_random_moments(clone, tmp_path, undisturbed, script):
    """SIGKILL at six random moments of each script, in one folder and one cache, then left alone: every bit of every
    run is as if nothing had happened; no file is left over. A life begins with four lines, and a run has some twenty
    more. How far a life comes beyond its last line is the machine's affair:
    where all is done before the last kill, it begins anew."""
    noise, most = torch.Generator().manual_seed(14), 30
    for path in (clone / "data" / "cache").rglob("*.pt"):  # the pair is made, and killed, anew
        path.unlink()
    out, went_on, killed, finished, cache = tmp_path / "out", 0, 0, 1, clone / "data" / "cache"
    command = [script, "--variants", RUNS[script], "--seeds", "2", "--resume", "--out"]
    while killed < KILLS:
        lines = int(torch.randint(1, most + 1, (), generator=noise))
        jobs = 1 + int(torch.rand((), generator=noise) < 0.2)
        with running(clone, *command, str(out), "--jobs", str(jobs)) as process:
            printed = killed_after(process, lines, out)
        assert not any("damaged" in line for line in printed)
        went_on += sum(" resumes after step " in line for line in printed)
        killed += process.returncode == -signal.SIGKILL
        if process.returncode == 0:
            same_results(undisturbed(script), out, stems(script))
            out, finished = tmp_path / f"out{finished}", finished + 1
    with running(clone, *command, str(out), "--jobs", "2") as process:
        _, errors = process.communicate(timeout=600)
    assert process.returncode == 0, errors[-2000:]
    same_results(undisturbed(script), out, stems(script))
    assert went_on >= 1  # of these lives
    assert not [path for kind in ("state", "partial", "damaged", "lock") for path in cache.rglob(f"*.{kind}*")]


def has_stopped(process, errors, number, out):
    """The program was ended by this signal as it says it would be: its status, one line, no half-written file."""
    assert process.returncode == 128 + number, errors[-2000:]
    assert (
        len(errors.strip().splitlines()) == 1
        and f"stopped by {signal.Signals(number).name}" in errors
        and "--resume" in errors
    ), errors
    assert not list(out.glob("*.partial"))


@pytest.mark.slow
@pytest.mark.parametrize("number, everybody", [(signal.SIGINT, True), (signal.SIGTERM, False)])
def test_a_signal_saves_and_tells_how_to_go_on(clone, tmp_path, undisturbed, number, everybody):
    """Sent to the program, or as a terminal and a cluster do to all of its processes, in the middle of skd: a state on
    disk, and --resume ends at the same bits."""
    out = tmp_path / "out"
    command = ["train_skd.py", "--variants", RUNS["train_skd.py"], "--seeds", "2", "--out", str(out), "--jobs", "1"]
    with running(clone, *command) as process:
        wait_for(process, out / "skd_pair1_seed1.jsonl", '"kind": "eval", "step": 6,')
        (os.killpg if everybody else os.kill)(process.pid, number)
        _, errors = process.communicate(timeout=120)
        has_stopped(process, errors, number, out)
    assert [path.name for path in out.glob("*.state.pt")] == ["skd_pair1_seed1.state.pt"]
    with running(clone, *command, "--resume") as process:
        output, errors = process.communicate(timeout=600)
    assert process.returncode == 0, errors[-2000:]
    assert "skd_pair1_seed1: resumes after step " in output
    same_results(undisturbed("train_skd.py"), out, stems("train_skd.py"))


@pytest.mark.slow
def test_signals_again_and_again(clone, tmp_path, undisturbed):
    """Two runs side by side, and a signal at a random moment of every life, to the program or to all of its processes:
    each ends as a signal should, and in the end every bit is as if nothing had happened."""
    noise, out, stopped, script = torch.Generator().manual_seed(21), tmp_path / "out", 0, "train_skd.py"
    command = [script, "--variants", RUNS[script], "--seeds", "2", "--resume", "--out", str(out), "--jobs", "2"]
    while stopped < SIGNALS:
        lines, number, everybody = torch.randint(1, 7, (3,), generator=noise).tolist()
        number = signal.SIGINT if number % 2 else signal.SIGTERM
        with running(clone, *command) as process:
            read_lines(process, lines)
            with contextlib.suppress(ProcessLookupError):  # it may have come to its end
                (os.killpg if everybody % 2 else os.kill)(process.pid, number)
            _, errors = process.communicate(timeout=120)
            if process.returncode == 0:  # all was done before: a new beginning
                same_results(undisturbed(script), out, stems(script))
                shutil.rmtree(out)
                continue
            has_stopped(process, errors, number, out)
            stopped += 1
    with running(clone, *command) as process:
        _, errors = process.communicate(timeout=600)
    assert process.returncode == 0, errors[-2000:]
    same_results(undisturbed(script), out, stems(script))


@pytest.mark.slow
def test_a_full_disk_loses_nothing(clone, tmp_path, undisturbed):
    """Files may not grow past 150 kB: the runs fail in one line each, status 1;
    with room again they go on to the same bits."""
    names, out = "seqkd,skd", tmp_path / "out"
    command = ["train_skd.py", "--variants", names, "--out", str(out), "--jobs", "1", "--resume"]
    with running(
        clone, *command, limit=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (150_000, 150_000))
    ) as process:
        _, errors = process.communicate(timeout=600)
    assert process.returncode == 1 and "Traceback" not in errors and "File too large" in errors, errors[-2000:]
    assert not list(out.glob("*.partial"))
    with running(clone, *command) as process:
        _, errors = process.communicate(timeout=600)
    assert process.returncode == 0, errors[-2000:]
    names = [f"{name}_pair1_seed1" for name in names.split(",")]
    assert finished_records(undisturbed("train_skd.py"), names) == finished_records(out, names)


@pytest.mark.slow
def test_two_programs_share_a_cache(clone, tmp_path, undisturbed):
    """Started together without a cache, in folders of their own: one pretrains, both come to the same bits. Both in one
    folder: the second is refused in one line."""
    for path in (clone / "data" / "cache").rglob("*.pt"):
        path.unlink()
    command = ["train_skd.py", "--variants", "skd", "--jobs", "1", "--out"]
    with running(clone, *command, str(tmp_path / "a")) as one, running(clone, *command, str(tmp_path / "b")) as other:
        outputs = [process.communicate(timeout=600) for process in (one, other)]
    assert [one.returncode, other.returncode] == [0, 0], outputs
    assert sum(output.count("  step    40/40") for output, _ in outputs) == 1
    expected = finished_records(undisturbed("train_skd.py"), ["skd_pair1_seed1"])
    assert (
        expected
        == finished_records(tmp_path / "a", ["skd_pair1_seed1"])
        == finished_records(tmp_path / "b", ["skd_pair1_seed1"])
    )
    with running(clone, *command, str(tmp_path / "c"), "--steps", "400") as one:
        wait_for(one, tmp_path / "c" / "skd_pair1_seed1.jsonl", "header")
        with running(clone, *command, str(tmp_path / "c"), "--resume") as other:
            _, errors = other.communicate(timeout=120)
        assert (
            other.returncode == 1 and "another process is at work" in errors and len(errors.strip().splitlines()) == 1
        )
        assert one.communicate(timeout=600) and one.returncode == 0


# ---------------------------------------------------------------------------------------------------------------------
# In one process.


def test_a_lock_is_of_one(tmp_path):
    """While it is held another cannot have it; afterwards it can, and no file is left.
    A folder that cannot be made keeps nobody out."""
    path = tmp_path / ".lock"
    with folders.locked(path) as first:
        with folders.locked(path, wait=False) as second:
            assert first and not second
    with folders.locked(path, wait=False) as third:
        assert third and path.exists()
    assert not path.exists()
    (tmp_path / "file").write_text("")
    with folders.locked(tmp_path / "file" / ".lock") as alone:
        assert alone


def count_up(path):
    for _ in range(25):
        with folders.locked(f"{path}.lock"):
            path.write_text(str(int(path.read_text()) + 1))


class LocksOfWindows:
    """Windows' module msvcrt, made of this system's locks: the first byte of a file, and EACCES where it is taken."""

    LK_NBLCK = 2

    def __init__(self, real):
        self.real = real

    def locking(self, descriptor, mode, size):
        assert (mode, size) == (self.LK_NBLCK, 1) and os.lseek(descriptor, 0, os.SEEK_CUR) == 0
        try:
            self.real.flock(descriptor, self.real.LOCK_EX | self.real.LOCK_NB)
        except BlockingIOError:
            raise PermissionError(errno.EACCES, "Permission denied") from None


def test_a_lock_is_of_one_on_windows(tmp_path, monkeypatch):
    """Without fcntl the lock is Windows' own, which is asked again and again; a file is removed when it is closed."""
    path, said, real, remove = tmp_path / ".lock", [], folders.fcntl, os.remove
    monkeypatch.setattr(folders, "fcntl", None)
    monkeypatch.setattr(folders, "msvcrt", LocksOfWindows(real), raising=False)

    def remove_closed(name):
        assert name not in [Path(link).resolve() for link in Path("/proc/self/fd").iterdir()]
        remove(name)

    monkeypatch.setattr(os, "remove", remove_closed)
    with folders.locked(path) as first:
        assert first
        with folders.locked(path, wait=False) as second:
            assert not second
    assert not path.exists()
    holder = open(path, "a")
    real.flock(holder, real.LOCK_EX)
    monkeypatch.setattr(time, "sleep", lambda seconds: holder.close())
    with folders.locked(path, say=said.append) as third:
        assert third and len(said) == 1 and "waiting for it" in said[0]
    assert not path.exists()


def test_a_lock_waits(tmp_path):
    """Four processes add 1 to a number in a file, each 25 times: none is lost."""
    (tmp_path / "number").write_text("0")
    fork = multiprocessing.get_context("fork")  # which imports nothing anew
    started = [fork.Process(target=count_up, args=(tmp_path / "number",)) for _ in range(4)]
    for process in started:
        process.start()
    for process in started:
        process.join(60)
    assert [process.exitcode for process in started] == [0] * 4
    assert (tmp_path / "number").read_text() == "100" and len(list(tmp_path.iterdir())) == 1


def test_a_folder_in_use_is_refused(cached_pairs, tmp_path):  # noqa: F811
    """One line before anything is trained or written."""
    out = tmp_path / "out"
    out.mkdir()
    with (
        folders.locked(out / ".lock"),
        pytest.raises(ValueError, match="another process is at work in .*: wait for it, or give another --out"),
    ):
        train_skd.main([*SMALL, "--out", str(out)])
    assert list(out.iterdir()) == []


def test_a_read_only_cache(cached_pairs, tmp_path, monkeypatch, capsys):  # noqa: F811
    """A pair in a cache that may not be written to is used; one that has to be made is kept in the run's own folder."""
    refuses = folders.write_error
    assert train_skd.main([*SMALL, "--variants", "sft", "--out", str(tmp_path / "before")]) == 0

    def read_only(folder):
        return OSError(30, "Read-only file system") if os.path.samefile(folder, cached_pairs) else refuses(folder)

    monkeypatch.setattr(
        folders, "write_error", lambda folder: read_only(folder) if os.path.isdir(folder) else refuses(folder)
    )
    assert train_skd.main([*SMALL, "--variants", "sft", "--out", str(tmp_path / "a")]) == 0
    before = sorted(cached_pairs.iterdir())
    capsys.readouterr()
    assert train_skd.main([*SMALL, "--variants", "sft", "--pair-seed", "77", "--out", str(tmp_path / "b")]) == 0
    assert "read-only: models are kept in" in capsys.readouterr().out and sorted(cached_pairs.iterdir()) == before
    assert len(list((tmp_path / "b" / "pairs").glob("*.pt"))) == 2 and not (tmp_path / "a" / "pairs").exists()
    monkeypatch.setattr(pairs, "QUICK", dataclasses.replace(pairs.QUICK, teacher_steps=4, start_steps=4))
    monkeypatch.setattr(rollouts, "SHORT", {"steps": 2, "batch_size": 2, "lr": 0.05})
    assert rollouts.main(["--rows", "1"]) == 0  # the picture needs a pair, and keeps it nowhere
    assert "read-only: models are kept in" in capsys.readouterr().out and sorted(cached_pairs.iterdir()) == before


def own_data(folder, answer="yes"):
    """A data set of one's own whose answers are all the same."""
    folder.mkdir(exist_ok=True)
    for split, first in (("train", 0), ("val", 40), ("test", 50)):
        rows = [
            json.dumps({"prompt": f"question {i}", "response": answer})
            for i in range(first, first + (40 if first == 0 else 6))
        ]
        (folder / f"{split}.jsonl").write_text("\n".join(rows) + "\n")
    return ["--task", "jsonl", "--data-dir", str(folder)]


def compare_with(argv, before_each):
    """A comparison whose runs begin with before_each() -> status."""

    def run_one(*task):
        before_each()
        return train_skd.run_one(*task)

    return compare.compare("train_skd", *train_skd.parse_flags(argv), train_skd.VARIANTS, run_one, train_skd.check_row)


@pytest.mark.parametrize("what", ["data", "test split", "code", "pair"])
def test_what_changes_under_a_running_program_is_told(cached_pairs, tmp_path, monkeypatch, capsys, what):  # noqa: F811
    """Data edited between two runs of a table, code that a later process would read, a pair made anew:
    the run fails in one line."""
    argv, began = [*SMALL, *own_data(tmp_path / "data"), "--out", str(tmp_path / "out")], []

    def edit():
        began.append(1)
        if len(began) < 2:
            return
        if what == "data":
            own_data(tmp_path / "data", "no")
        elif what == "test split":  # of which the pair knows nothing
            (tmp_path / "data" / "test.jsonl").write_text((tmp_path / "data" / "val.jsonl").read_text())
        elif what == "code":
            monkeypatch.setattr(compare, "LOADED", compare.LOADED | {"losses.py": "another"})
        else:
            monkeypatch.setattr(pairs, "SYNTAX_TREES", [*pairs.SYNTAX_TREES, "more"])
            for path in cached_pairs.glob("jsonl-*.pt"):
                path.unlink()
            monkeypatch.setattr(pairs, "make_optimizer", lambda model, lr: torch.optim.SGD(model.parameters(), lr=lr))

    assert compare_with(argv, edit) == 1
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "failed" in line]
    words = {"code": "losses.py has", "pair": "the cached pair has", "test split": "test.jsonl has"}
    word = words.get(what, "train.jsonl has changed, val.jsonl has")
    assert (
        line.startswith("train_skd.py: run skd_pair1_seed1 failed")
        and f"{word} changed" in line
        and "since the program was started" in line
        and "start it again" in line
    )
    assert (
        b'"final"' in (tmp_path / "out" / "sft_pair1_seed1.jsonl").read_bytes()
        and not (tmp_path / "out" / "skd_pair1_seed1.jsonl").exists()
    )


@pytest.mark.parametrize("unfinished", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_data_that_changed_before_resume_is_named(cached_pairs, tmp_path, unfinished):  # noqa: F811
    """A file that was edited, is gone or came with it: one line with its name and what to type, before anything is
    trained or written; with the files as they were, the table is continued. So it is where no run has ended yet."""
    data, out = tmp_path / "data", tmp_path / "out"
    argv = [*SMALL, *own_data(data), "--out", str(out), "--resume"]
    assert train_skd.main([*argv, "--variants", "sft"]) == 0
    if unfinished:
        text = (out / "sft_pair1_seed1.jsonl").read_text().splitlines(keepends=True)
        (out / "sft_pair1_seed1.jsonl").write_text("".join(text[:-1]))
    before, left = {path.name: path.read_text() for path in data.iterdir()}, sorted(out.iterdir())
    alphabet = "abcdefghijklmnopqrstuvwxyz" * 9
    more = "".join(json.dumps({"prompt": f"{n}{word}", "response": word}) + "\n" for n, word in enumerate(alphabet))
    cases = {
        "test.jsonl has changed": {"test.jsonl": before["test.jsonl"].replace("yes", "no", 1)},
        "train.jsonl has changed": {"train.jsonl": before["train.jsonl"] + more},  # K follows from the vocabulary
        "val.jsonl is gone": {"val.jsonl": None},
        "test.jsonl has changed, val.jsonl is gone": {"test.jsonl": before["val.jsonl"], "val.jsonl": None},
    }
    for told, files in cases.items():
        for name, text in (before | files).items():
            (data / name).unlink(missing_ok=True) if text is None else (data / name).write_text(text)
        with pytest.raises(ValueError) as error:
            train_skd.main([*argv, "--variants", "sft,supervised"])
        assert str(error.value) == (
            f"{told} since sft_pair1_seed1.jsonl was begun: put the data back as it was, "
            "or start anew with another --out"
        )
        assert sorted(out.iterdir()) == left
    for name, text in before.items():
        (data / name).write_text(text)
    assert train_skd.main([*argv, "--variants", "sft,supervised"]) == 0


def test_a_state_names_the_data_that_changed():
    """What a run was interrupted with, too: the file before what follows from it; another task is named as the flag."""
    before = {"task": "jsonl", "accept_top_k": 3, "inputs": {"train.jsonl": "a"}, "settings": {"lr": 1}}
    with pytest.raises(ValueError, match="^train.jsonl has changed, val.jsonl is new since x.state.pt was begun: put"):
        now = before | {"accept_top_k": 4, "inputs": {"train.jsonl": "b", "val.jsonl": "c"}}
        records.refuse_difference("x.state.pt", before, now)
    with pytest.raises(ValueError, match="made with --task jsonl, now it is math"):
        records.refuse_difference("x.state.pt", before, before | {"task": "math", "inputs": {}})
    records.refuse_difference("x.state.pt", before, before | {"settings": {"lr": 1, "a_new_one": None}})


def test_a_task_is_tokenised_once_per_process(cached_pairs, tmp_path, monkeypatch):  # noqa: F811
    """Two methods, one tokenizer; an edited file, another flag: again."""
    encode, calls = pairs.encode_task, []
    monkeypatch.setattr(pairs, "encode_task", lambda *given: calls.append(given) or encode(*given))
    argv = [*SMALL, *own_data(tmp_path / "data")]
    assert train_skd.main([*argv, "--out", str(tmp_path / "out")]) == 0 and len(calls) == 1
    for changes in (["--measure", "2"], ["--student-prompts", "7"], ["--max-new-tokens", "9"]):
        compare.load_data(train_skd.parse_flags([*argv, *changes])[0])
    assert len(calls) == 4
    args = train_skd.parse_flags(argv)[0]
    for _ in range(2):
        assert compare.load_data(args).splits["train"].examples[0].response == "yes"
    own_data(tmp_path / "data", "no")
    assert compare.load_data(args).splits["train"].examples[0].response == "no" and len(calls) == 6


def test_a_record_that_is_gone_at_the_end_is_a_failure(cached_pairs, tmp_path, capsys):  # noqa: F811
    """The first run's record is deleted while the second runs: status 1 and its name, though both have run."""
    out, began = tmp_path / "out", []

    def delete():
        began.append(1)
        if len(began) == 2:
            (out / "sft_pair1_seed1.jsonl").unlink()

    assert compare_with([*SMALL, "--out", str(out)], delete) == 1
    assert "run sft_pair1_seed1 failed: its record is gone" in capsys.readouterr().err


def test_what_going_on_finds_is_told(cached_pairs, tmp_path, capsys):  # noqa: F811
    """--resume where nothing is, as after a typing error, says so;
    so it does where students of finished runs are gone."""
    argv = [*SMALL, "--variants", "sft", "--resume", "--out", str(tmp_path / "out")]
    assert train_skd.main(argv) == 0
    assert "nothing to resume in" in capsys.readouterr().out
    assert train_skd.main(argv) == 0
    again = capsys.readouterr().out
    assert "nothing to resume" not in again and "no student" not in again
    (tmp_path / "out" / "sft_pair1_seed1.pt").unlink()
    assert train_skd.main(argv) == 0
    assert "1 finished runs have no student here" in capsys.readouterr().out


def test_a_folder_with_files_of_ones_own_is_refused(cached_pairs, tmp_path):  # noqa: F811
    """What a run would write over is named, and nothing is written; other files are in nobody's way."""
    (tmp_path / "notes.txt").write_text("mine")
    for name in ("teacher_pair1.pt", "sft_pair1_seed1.pt", "table.md", "summary.json", "curves.svg", "report.html"):
        (tmp_path / name).write_text("mine")
        with pytest.raises(ValueError, match=f"{name} in .* may be written over: add --resume"):
            train_skd.main([*SMALL, "--variants", "sft", "--out", str(tmp_path)])
        assert (tmp_path / name).read_text() == "mine"
        (tmp_path / name).unlink()
    assert train_skd.main([*SMALL, "--variants", "sft", "--out", str(tmp_path)]) == 0


def test_a_later_seed_finds_the_same_teacher(cached_pairs, tmp_path):  # noqa: F811
    """Seeds 1 and 2 at once, or one after the other: the teacher is measured with the pair's seed,
    and its figures are the same."""
    argv, found = [*SMALL, "--variants", "sft", "--out"], []
    for name, more in (("both", [["--seeds", "2"]]), ("apart", [[], ["--seed", "2", "--resume"]])):
        for words in more:
            assert train_skd.main([*argv, str(tmp_path / name), *words]) == 0
        found += [lines_of(tmp_path / name / f"sft_pair1_seed{seed}.jsonl")[0] for seed in (1, 2)]
    assert all(
        header["teacher"] == found[0]["teacher"] and header["student_start"] == found[0]["student_start"]
        for header in found
    )


def test_a_cached_model_under_another_name_is_not_taken(cached_pairs, tmp_path, capsys):  # noqa: F811
    """A file that was copied to the place of another pair's: set aside, and the pair is made."""
    argv = [*SMALL, "--variants", "sft", "--out"]
    for seed in ("71", "72"):
        assert train_skd.main([*argv, str(tmp_path / seed), "--pair-seed", seed]) == 0
        if seed == "71":
            before = {path: path.read_bytes() for path in cached_pairs.glob("math-teacher-*.pt")}
    (path,) = set(cached_pairs.glob("math-teacher-*.pt")) - set(before)
    path.write_bytes(next(iter(before.values())))
    capsys.readouterr()
    assert train_skd.main([*argv, str(tmp_path / "again"), "--pair-seed", "72"]) == 0
    assert "under another name" in capsys.readouterr().out
    one, other = (lines_of(tmp_path / name / "sft_pair72_seed1.jsonl")[0] for name in ("72", "again"))
    assert (
        one["pair"] == 72 and one["fingerprint"] == other["fingerprint"] and load_file(str(path))["name"] == path.name
    )


def test_another_users_pair_is_left_as_it_is(cached_pairs, tmp_path, monkeypatch, capsys):  # noqa: F811
    """A cached pair that may not be read: another one is kept with the run.
    Where there is no other place, that is said."""
    argv, load = [*SMALL, "--variants", "sft", "--out"], pairs.load_checkpoint
    assert train_skd.main([*argv, str(tmp_path / "before")]) == 0
    before = {path: path.read_bytes() for path in cached_pairs.iterdir()}

    def refuses(path, *rest):
        if os.path.samefile(os.path.dirname(path), cached_pairs):
            raise PermissionError(13, "Permission denied", path)
        return load(path, *rest)

    monkeypatch.setattr(pairs, "load_checkpoint", refuses)
    capsys.readouterr()
    assert train_skd.main([*argv, str(tmp_path / "a")]) == 0
    assert capsys.readouterr().out.count("may not be read: it is left as it is") == 2  # teacher and student
    assert {path: path.read_bytes() for path in cached_pairs.iterdir()} == before
    assert len(list((tmp_path / "a" / "pairs").glob("*.pt"))) == 2
    args, _ = train_skd.parse_flags([*argv, "x"])
    with pytest.raises(PermissionError, match="may not be read: ask its owner"):
        pairs.load_or_pretrain_pair(compare.load_data(args), args.settings)


def test_a_method_that_cannot_work_is_left_out_of_all(cached_pairs, tmp_path, monkeypatch, capsys):  # noqa: F811
    """With main or all it is noted and left out of the comparison;
    by name, and where nothing else is left, it is refused."""
    monkeypatch.setattr(train_skd, "MAIN", ("sft", "opd", "speckd"))
    argv = [*SMALL, "--student-temperature", "0.5", "--out", str(tmp_path / "out"), "--variants"]
    assert train_skd.main([*argv, "main"]) == 0
    said = capsys.readouterr().out
    assert said.count("note: left out: opd takes its samples") == 1
    assert {path.stem for path in (tmp_path / "out").glob("*.jsonl")} == {"sft_pair1_seed1", "speckd_pair1_seed1"}
    with pytest.raises(ValueError, match="opd takes its samples as drawn from the student itself"):
        train_skd.main([*argv, "sft,opd"])


@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
def test_a_terminal_without_our_letters_ends_nothing(monkeypatch, encoding):
    """What it cannot show becomes a question mark."""
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    monkeypatch.setattr(sys, "stdout", stream)
    monkeypatch.setattr(sys, "stderr", None)  # closed
    processes.use_any_terminal()
    processes.print_line("\N{GREEK CAPITAL LETTER DELTA} score")
    stream.flush()
    assert stream.buffer.getvalue() == b"? score\n"


def test_only_the_projects_own_commit_is_recorded(tmp_path, monkeypatch):
    """An archive that was unpacked inside another repository has no commit, whatever git or its variables say."""
    project = tmp_path / "around" / "project"
    project.mkdir(parents=True)
    for folder in (tmp_path / "around", tmp_path / "other"):
        git = ["git", "-c", "user.name=a", "-c", "user.email=a@example.org", "-C", str(folder)]
        folder.mkdir(exist_ok=True)
        for words in (["init", "-q"], ["commit", "-q", "--allow-empty", "-m", "x"]):
            subprocess.run([*git, *words], check=True)
    monkeypatch.setattr(folders, "ROOT", project)
    assert folders.describe_machine(torch.device("cpu"))["commit"] is None
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "other" / ".git"))
    assert folders.describe_machine(torch.device("cpu"))["commit"] is None
    monkeypatch.setattr(folders, "ROOT", tmp_path / "around")
    about = folders.describe_machine(torch.device("cpu"))
    assert len(about["commit"]) == 40 and about["modified"] is False


def test_an_unfinished_run_of_other_flags_is_refused(cached_pairs, tmp_path):  # noqa: F811
    """What is under way is not gone on with under another rate, nor begun anew over it:
    flag and both values are named."""
    out = tmp_path / "out"
    assert train_skd.main([*SMALL, "--variants", "sft", "--out", str(out)]) == 0
    path = out / "sft_pair1_seed1.jsonl"
    path.write_text("\n".join(path.read_text().split("\n")[:3]) + "\n")
    before = path.read_bytes()
    with pytest.raises(ValueError, match="made with --lr .*, now it is 0.123: give another --out, or the same flags"):
        train_skd.main([*SMALL, "--variants", "sft", "--lr", "0.123", "--out", str(out), "--resume"])
    assert path.read_bytes() == before


def test_leftovers_of_a_kill_are_cleared(cached_pairs, tmp_path):  # noqa: F811
    """A half-written file beside its place, and states of a run that has its final line: gone with the next start."""
    out = tmp_path / "out"
    assert train_skd.main([*SMALL, "--variants", "sft", "--out", str(out)]) == 0
    before = {path.name for path in out.iterdir()}
    for name in ("sft_pair1_seed1.state.pt", "sft_pair1_seed1.state.before.pt", "sft_pair1_seed1.pt.99.partial"):
        (out / name).write_text("half")
    assert train_skd.main([*SMALL, "--variants", "sft", "--out", str(out), "--resume"]) == 0
    assert {path.name for path in out.iterdir()} == before


def test_no_clock_decides(monkeypatch):
    """Nothing asks the wall clock but for the date of a record: a clock that jumps changes no run."""
    sources = [path.read_text() for kind in ("*.py", "data/*.py", "lab/*.py") for path in folders.ROOT.glob(kind)]
    assert not any("time.time(" in source or "datetime.now" in source for source in sources)
    assert sum(source.count("time.strftime") for source in sources) == 1


def test_a_stopped_worker_stops_its_parent():
    """A worker that was sent a signal of its own ends the whole program as that signal would, and is no failed run."""
    with pytest.raises(processes.Stopped, match="stopped by SIGTERM"):
        processes.run_all(interrupted, [(1,), (2,), (3,)], 2, pytest.fail)


def test_a_signal_waits_for_the_step_and_a_second_does_not():
    """In a saving loop the first signal is kept until the loop asks; the second is raised where it comes;
    outside so is the first."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    processes.catch_signals()
    try:
        with pytest.raises(processes.Stopped) as stopped:
            os.kill(os.getpid(), signal.SIGINT)
        assert stopped.value.number == signal.SIGINT
        reached = []
        with pytest.raises(processes.Stopped) as stopped, processes.saving_loop():
            os.kill(os.getpid(), signal.SIGTERM)
            reached.append(1)
            os.kill(os.getpid(), signal.SIGINT)
            reached.append(2)
        assert reached == [1] and stopped.value.number == signal.SIGINT
        with pytest.raises(processes.Stopped), processes.saving_loop():
            os.kill(os.getpid(), signal.SIGTERM)
            reached.append(3)
        assert reached == [1, 3] and not processes.asked_to_stop()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def test_a_signal_outlives_a_loop_that_fails():
    """A signal that came in a step which then broke ends the program all the same:
    it was not meant for that run alone."""
    before = signal.getsignal(signal.SIGTERM)
    processes.catch_signals()
    try:
        with pytest.raises(processes.Stopped), processes.saving_loop():
            os.kill(os.getpid(), signal.SIGTERM)
            raise ValueError("not finite")
    finally:
        signal.signal(signal.SIGTERM, before)
        signal.signal(signal.SIGINT, signal.default_int_handler)


def test_others_files_are_left_alone(cached_pairs, tmp_path):  # noqa: F811
    """What only looks like a leftover of ours stays where it is."""
    (tmp_path / "film.mkv.partial").write_text("")
    (tmp_path / "skd_pair1_seed1.pt.12.partial").write_text("")
    assert train_skd.main([*SMALL, "--variants", "sft", "--out", str(tmp_path)]) == 0
    assert (tmp_path / "film.mkv.partial").exists() and not (tmp_path / "skd_pair1_seed1.pt.12.partial").exists()


def test_states_are_not_gone_on_with_unasked(cached_pairs, tmp_path):  # noqa: F811
    """A folder with the state of a run but without its record is refused without --resume."""
    (tmp_path / "skd_pair1_seed1.state.pt").write_text("")
    with pytest.raises(ValueError, match="already holds records: add --resume"):
        train_skd.main([*SMALL, "--variants", "skd", "--out", str(tmp_path)])


def test_a_lock_makes_its_folder(tmp_path):
    """A fresh checkout has no cache folder yet: two programs that need it still come one after the other."""
    path = tmp_path / "cache" / "teacher" / "a.lock"
    with folders.locked(path), folders.locked(path, wait=False) as second:
        assert not second
