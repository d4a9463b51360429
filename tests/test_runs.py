"""Laws of data/runs.py: an interruption ends what is under way, and foreign files are named, not followed."""

import signal
from pathlib import Path

import pytest

from data import runs


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
