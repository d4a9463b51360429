"""Laws of data/runs.py: an interruption ends what is under way, and foreign files are named, not followed."""

import os
import signal
from pathlib import Path

import pytest

from data import experiment, runs


def touch(folder, number):
    """A run that leaves a file; only the first one is quick, the others wait to be ended."""
    Path(folder, f"{number}").write_text("")
    while number > 0:  # a run under way: only the parent's interruption ends it
        signal.pause()
    return f"run {number}"


def test_an_interruption_starts_nothing_new(tmp_path):
    """Ctrl-C while two runs are side by side: the queued ones never start, those under way are ended, the interrupt goes on."""

    def report(line):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        runs.run_all(touch, [(str(tmp_path), number) for number in range(8)], 2, report)
    assert len(list(tmp_path.iterdir())) <= 4  # the first, two under way, and at most one that was handed over already


def perhaps_killed(number):
    """A run whose process the system may kill."""
    if number in (1, 2):
        os.kill(os.getpid(), signal.SIGKILL)
    return f"run {number}"


def test_a_killed_process_takes_no_other_run_down():
    """Two of five runs lose their process: those two failed, in one line each, and the other three came out."""
    lines, seen = [], []
    failures = runs.run_all(
        perhaps_killed, [(n,) for n in range(5)], 2, lines.append, lambda running, waiting: seen.append((len(running), waiting))
    )
    assert sorted(task for task, _ in failures) == [(1,), (2,)]
    assert sorted(line for line in lines if line.startswith("run")) == ["run 0", "run 3", "run 4"]
    assert all("killed" in line and "\n" not in line for _, line in failures)
    assert seen[-1] == (0, 0) and all(running <= 2 for running, _ in seen)


def test_progress_is_read_from_the_records(tmp_path, capsys, monkeypatch):
    """Without a terminal a line per minute: how many are done, and the step that each running one has recorded."""
    todo = [(None, tmp_path, {}, name, 1, "steps", 40) for name in ("sft", "skd", "okd alpha=0.9")]
    (tmp_path / "skd_seed1.jsonl").write_text('{"kind": "header"}\n{"kind": "step", "step": 21}\n{"kind": "step", "st')
    monkeypatch.setattr(experiment.time, "monotonic", lambda now=iter((0.0, 59.0, 61.0, 61.0, 62.0)): next(now))
    with experiment.Progress(tmp_path, todo, 2) as progress:
        progress.watch(todo[:2], 1)
        assert capsys.readouterr().out == ""
        progress.say("sft done")
        progress.watch(todo[1:], 0)
        assert progress.bar.n == 40 + 21
        progress.watch(todo[1:], 0)
    assert capsys.readouterr().out == "sft done\n  1 of 3 runs done, skd_seed1 21/40, okd_alpha=0.9_seed1 0/40\n"


@pytest.mark.parametrize("content", [b"[1, 2]\n", b"3\n", b'{"kind": "header"}\n{"kind": "final"}\n', b"\xff\xfe\n"])
def test_a_foreign_file_is_named(tmp_path, content):
    """What is no record of this project is refused in one line that names it."""
    (tmp_path / "notes.jsonl").write_bytes(content)
    with pytest.raises(ValueError, match="notes.jsonl .*move it away") as error:
        runs.read_finished(tmp_path, "notes", {})
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("content", [b"", b'{"kind": "head', b'{"kind": "header", "flags": {}}\n{"kind": "st'])
def test_a_record_that_was_cut_off_is_run_again(tmp_path, content):
    (tmp_path / "a_seed1.jsonl").write_bytes(content)
    assert runs.read_finished(tmp_path, "a_seed1", {}) is None


def test_another_device_is_named_by_its_flag(tmp_path):
    """--device, not the name inside."""
    (tmp_path / "a.jsonl").write_text('{"kind": "header", "flags": {"device_type": "cuda"}}\n{"kind": "final"}\n')
    with pytest.raises(ValueError, match="--device cuda, now it is cpu"):
        runs.read_finished(tmp_path, "a", {"device_type": "cpu"})
