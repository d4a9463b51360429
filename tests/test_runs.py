"""Laws of lab/processes.py: an interruption ends what is under way, and foreign files are named, not followed."""

import concurrent.futures
import functools
import io
import json
import multiprocessing
import os
import re
import signal
import sys

import pytest
import tiny
from tiny import matrix
from workers import never_through, perhaps_killed, saved_late, touch

import train_skd
from data import progress
from lab import pairs, processes, records, schedule


@pytest.mark.slow
def test_an_interruption_starts_nothing_new(tmp_path):
    """Ctrl-C while two runs are side by side: the queued ones never start, those under way are ended,
    the interrupt goes on."""

    def report(line):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        processes.run_all(touch, [(str(tmp_path), number) for number in range(8)], 2, report)
    assert len(list(tmp_path.iterdir())) <= 4  # the first, two under way, and at most one that was handed over already


@matrix("where", ["report", "watch", "wait"], fast=["watch"])
def test_a_signal_is_raised_between_two_looks_at_the_runs(tmp_path, monkeypatch, where):
    """Whatever the loop over processes is doing when a signal comes is carried through first: an exception in the
    middle of the executor's own code can leave a lock of its held, on which the program would
    wait for ever at its end."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    carried_through = []

    def interrupting(function):
        def interrupted(*arguments):
            if not carried_through:
                os.kill(os.getpid(), signal.SIGINT)
                carried_through.append(where)
            return function(*arguments)

        return interrupted

    wait = interrupting(concurrent.futures.wait) if where == "wait" else concurrent.futures.wait
    monkeypatch.setattr(concurrent.futures, "wait", wait)
    report, watch = (
        interrupting(lambda *arguments: None) if where == name else lambda *arguments: None
        for name in ("report", "watch")
    )
    processes.catch_signals()
    try:
        with pytest.raises(processes.Stopped, match="SIGINT"):
            processes.run_all(touch, [(str(tmp_path), number) for number in range(8)], 2, report, watch)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    assert carried_through == [where] and not processes.asked_to_stop()
    assert len(list(tmp_path.iterdir())) <= 4


def test_a_second_signal_in_a_destructor_leaves_the_first(monkeypatch):
    """Python drops what a destructor raises, a progress bar's among them:
    the signal that waits is asked for all the same."""
    swallowed, before = [], signal.getsignal(signal.SIGINT)

    class Bar:
        def __del__(self):
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(sys, "unraisablehook", lambda dropped: swallowed.append(dropped.exc_type))
    processes.catch_signals()
    try:
        with pytest.raises(processes.Stopped), processes.saving_loop():
            signal.raise_signal(signal.SIGINT)
            Bar()
            assert swallowed == [processes.Stopped] and processes.asked_to_stop() == signal.SIGINT
        assert processes._waiting == {"loops": 0, "signals": [], "all": False}
    finally:
        signal.signal(signal.SIGINT, before)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def test_a_signal_to_everybody_lets_all_runs_save(tmp_path, monkeypatch):
    """SIGTERM reaches a worker and the parent: the end of one run is not taken for a second signal, which would kill
    the others. No process is left."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    wait, looks = concurrent.futures.wait, []

    def looking(futures, timeout, *how):
        looks.append(timeout)
        if looks.count(0.2) == 2:  # while the runs save, the parent looks five times a second
            (tmp_path / "looked twice").write_text("")
        return wait(futures, timeout, *how)

    monkeypatch.setattr(concurrent.futures, "wait", looking)

    def watch(running, waiting):
        if len(list(tmp_path.glob("begun*"))) == 2:
            for process in multiprocessing.active_children():
                os.kill(process.pid, signal.SIGTERM)
            os.kill(os.getpid(), signal.SIGTERM)

    processes.catch_signals()
    try:
        with pytest.raises(processes.Stopped, match="SIGTERM"):
            processes.run_all(saved_late, [(str(tmp_path), 0), (str(tmp_path), 1)], 2, pytest.fail, watch)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    assert {path.name for path in tmp_path.iterdir()} == {"begun0", "begun1", "stopped0", "stopped1", "looked twice"}
    assert not multiprocessing.active_children()


@matrix("more", [1, 2], fast=[])
def test_a_second_signal_does_not_wait(tmp_path, more):
    """Two or three at once, before the loop has looked: runs that would never have done are killed,
    no process is left."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    reached = []

    def watch(running, waiting):
        if len(list(tmp_path.glob("begun*"))) == 2:
            for _ in range(1 + more):
                os.kill(os.getpid(), signal.SIGINT)
            reached.append(more)

    processes.catch_signals()
    try:
        with pytest.raises(processes.Stopped, match="SIGINT"):
            processes.run_all(
                never_through, [(str(tmp_path), n) for n in range(3)], 2, pytest.fail, watch, patience=1e6
            )
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    assert reached == [more] and not processes.asked_to_stop() and not multiprocessing.active_children()
    assert not (tmp_path / "begun2").exists()


@matrix("runs, killed", [(5, (1, 2)), (3, (1,))], fast=[(3, (1,))])
def test_a_killed_process_takes_no_other_run_down(runs, killed):
    """Some of the runs lose their process: those failed, in one line each, and the others came out."""
    lines, seen = [], []
    tasks = [(n, n in killed) for n in range(runs)]

    def watch(running, waiting):
        seen.append((len(running), waiting))

    failures = processes.run_all(perhaps_killed, tasks, 2, lines.append, watch)
    assert sorted(task for task, _ in failures) == [(n, True) for n in killed]
    left = [f"run {n}" for n in range(runs) if n not in killed]
    assert sorted(line for line in lines if line.startswith("run")) == left
    assert all("killed" in line and "\n" not in line for _, line in failures)
    assert seen[-1] == (0, 0) and all(running <= 2 for running, _ in seen)


class Terminal(io.StringIO):
    def isatty(self):
        return True


def bars(text):
    """The names of the bars that were drawn, in order."""
    return list(dict.fromkeys(re.findall(r"([\w'. ]+):\s+\d+(?:%\||it)", text)))


def test_a_bar_is_for_a_terminal(monkeypatch, capsys):
    """On a terminal a bar that is gone at the end, lines above it; elsewhere, in a process of its own and in all of
    several processes but the first, not a letter."""
    for name, value in (("stderr", io.StringIO()), ("stderr", None)):
        monkeypatch.setattr(sys, name, value)
        rows = [1, 2]
        assert progress.progress(rows, "rows") is rows
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    for row in progress.progress(rows, "rows"):
        progress.say(f"row {row}")
    assert bars(terminal.getvalue()) == ["rows"] and terminal.getvalue().split("\r")[-1] == ""
    assert capsys.readouterr().out == "row 1\nrow 2\n"
    monkeypatch.setenv("RANK", "1")
    assert not progress.shown()
    monkeypatch.setenv("RANK", "0")
    assert progress.shown()
    monkeypatch.setattr(progress.multiprocessing, "parent_process", lambda: "one")
    assert not progress.shown()


def test_every_long_stage_has_a_bar(tmp_path, monkeypatch, capsys):
    """From the file to the table nothing that grows with data or models is silent on a terminal."""
    rows = [json.dumps({"prompt": f"{n}?", "response": "yes"}) for n in range(30)]
    for split in ("train", "val", "test"):
        (tmp_path / f"{split}.jsonl").write_text("\n".join(rows).replace("?", f" {split}?"))
    tiny.cached(monkeypatch, tmp_path / "teacher")
    load = pairs.load_or_pretrain_pair
    monkeypatch.setattr(pairs, "load_or_pretrain_pair", functools.partial(load, cache_dir=tmp_path / "pairs"))
    argv = ["--quick", "--device", "cpu", "--jobs", "1", "--steps", "2", "--teacher-steps", "3", "--start-steps", "3"]
    argv += ["--task", "jsonl", "--data-dir", str(tmp_path), "--batch-size", "8", "--variants", "supervised"]
    monkeypatch.setattr(sys, "stderr", terminal := Terminal())
    assert train_skd.main([*argv, "--cache-teacher", "dense", "--out", str(tmp_path / "out")]) == 0
    stages = ["train.jsonl", "order", "words", "tokenizer", "tokens", "pretraining", "writing", "measuring", "drafting"]
    assert [name for name in bars(terminal.getvalue()) if name in stages] == stages
    assert {"teacher's answers", " supervised"} <= set(bars(terminal.getvalue())), "a run's bar: [1/1] supervised"


def test_progress_is_read_from_the_records(tmp_path, capsys, monkeypatch):
    """Without a terminal a line per minute: how many are done, and the step that each running one has recorded."""
    todo = [(None, tmp_path, {"pair": 1}, name, 1, "steps", 40) for name in ("sft", "skd", "okd alpha=0.9")]
    (tmp_path / "skd_pair1_seed1.jsonl").write_text(
        '{"kind": "header"}\n{"kind": "step", "step": 21}\n{"kind": "step", "st'
    )
    monkeypatch.setattr(schedule.time, "monotonic", lambda now=iter((0.0, 59.0, 61.0, 61.0, 62.0)): next(now))
    with schedule.Progress(tmp_path, todo, 2) as progress:
        progress.watch(todo[:2], 1)
        assert capsys.readouterr().out == ""
        progress.say("sft done")
        progress.watch(todo[1:], 0)
        assert progress.bar.n == 40 + 21
        progress.watch(todo[1:], 0)
    assert (
        capsys.readouterr().out
        == "sft done\n  1 of 3 runs done, skd_pair1_seed1 21/40, okd_alpha=0.9_pair1_seed1 0/40\n"
    )


@pytest.mark.parametrize("content", [b"[1, 2]\n", b"3\n", b'{"kind": "header"}\n{"kind": "final"}\n', b"\xff\xfe\n"])
def test_a_foreign_file_is_named(tmp_path, content):
    """What is no record of this project is refused in one line that names it."""
    (tmp_path / "notes.jsonl").write_bytes(content)
    with pytest.raises(ValueError, match="notes.jsonl .*move it away") as error:
        records.read_finished(tmp_path, "notes", {})
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "content", [b"", b'{"kind": "head', b'{"kind": "header", "format": 3, "flags": {}}\n{"kind": "st']
)
def test_a_record_that_was_cut_off_is_run_again(tmp_path, content):
    (tmp_path / "a_pair1_seed1.jsonl").write_bytes(content)
    assert records.read_finished(tmp_path, "a_pair1_seed1", {}) is None


def test_another_device_is_named_by_its_flag(tmp_path):
    """--device, not the name inside."""
    text = '{"kind": "header", "format": 3, "flags": {"device_type": "cuda"}}\n{"kind": "final"}'
    (tmp_path / "a.jsonl").write_text(records.with_checksum(text) + "\n")
    with pytest.raises(ValueError, match="--device cuda, now it is cpu"):
        records.read_finished(tmp_path, "a", {"device_type": "cpu"})
