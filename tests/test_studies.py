"""The studies: what is told before one runs, what is left of it, and that one that fails does not stop the others."""

import json
import shlex
import subprocess
import sys

import pytest
from test_report import write_records

import train_okd
import train_skd
from lab import studies
from lab.archive import PACKED

SCRIPTS = {"train_skd.py": train_skd, "train_okd.py": train_okd}


@pytest.fixture
def runner(tmp_path, monkeypatch):
    """A root of one's own, where a study's command writes the records of two methods and three pairs, or fails."""
    calls = []

    def run(words, cwd=None, **options):
        calls.append(words)
        out = tmp_path / "runs" / "studies" / words[words.index("--out") + 1].rsplit("/", 1)[1]
        out.mkdir(parents=True, exist_ok=True)
        broken = "broken" in out.name
        if not broken:
            write_records(out, ["supervised", "skd"], 1, pairs=3)
        return subprocess.CompletedProcess(words, int(broken))

    rows = {
        "one": studies.Study("Does it work?", "train_skd.py --pairs 3", 1),
        "broken": studies.Study("Does it fail?", "train_okd.py", 2, needs="scan"),
    }
    monkeypatch.setattr(studies, "STUDIES", rows)
    monkeypatch.setattr(studies.subprocess, "run", run)
    monkeypatch.setattr(studies.folders, "ROOT", tmp_path)
    monkeypatch.setattr(studies.run_study, "__defaults__", (None, None, tmp_path))
    monkeypatch.setattr(studies.about, "__defaults__", (tmp_path,))
    return calls


def test_a_study_leaves_four_files(runner, tmp_path, capsys):
    """Its question, command and time are told first; made again, it says the same."""
    assert studies.main(["one"]) == 0
    told = capsys.readouterr().out
    assert all(text in told for text in ("Does it work?", "python train_skd.py --pairs 3", "1 minutes"))
    made = tmp_path / "results" / "one"
    before = {path.name: path.read_bytes() for path in made.iterdir()}
    assert set(before) == {"README.md", "curves.svg", "summary.json", PACKED}
    assert b"Does it work?" in before["README.md"] and b"| skd" in before["README.md"]
    assert [point["pair"] for point in json.loads(before["summary.json"])["pairs"]] == [1, 2, 3]
    assert studies.main(["one"]) == 0
    assert {path.name: path.read_bytes() for path in made.iterdir()} == before
    (words, _) = runner
    assert words[:2] == [sys.executable, "train_skd.py"] and "--resume" in words


def test_one_that_fails_does_not_stop_the_others(runner, tmp_path, capsys):
    """The others are made; the status and one line tell of the one that is not. Only who needs it gets --data-dir."""
    assert studies.main(["broken", "one", "--data-dir", "files"]) == 1
    assert "broken is not whole" in capsys.readouterr().err
    assert (tmp_path / "results" / "one" / PACKED).exists() and not (tmp_path / "results" / "broken").exists()
    assert ["--data-dir" in words for words in runner] == [True, False]


def test_the_list_names_every_study(capsys):
    """Without a name nothing runs."""
    assert studies.main([]) == 0
    told = capsys.readouterr().out
    assert all(f"{name}: {study.question}" in told for name, study in studies.STUDIES.items())


def test_an_unknown_study_is_refused(capsys):
    """One line that names those that there are, before any work."""
    with pytest.raises(SystemExit) as stop:
        studies.main(["skd-math", "nothing"])
    (line,) = capsys.readouterr().err.splitlines()
    assert stop.value.code == 2 and "no study 'nothing'" in line and "skd-math" in line


@pytest.mark.parametrize("name", studies.STUDIES)
def test_every_command_is_understood(name):
    """The flags of a study exist, and its pairs are several: development pairs below 100, others from 101 on."""
    script, *words = shlex.split(studies.STUDIES[name].command)
    args, names = SCRIPTS[script].parse_flags(words)
    assert names and args.pairs >= 3 and args.seed == args.pair_seed
    assert args.pair_seed >= 101 or args.pair_seed + args.pairs <= 100, "no study mixes both kinds of pairs"
