"""tests/gpu.py works without a GPU: its steps in miniature, and what becomes of those that hang, die or find much."""

import json
import shutil
import subprocess
import sys
import time
import warnings

import bench
import gpu
import pytest
import torch
from conftest import ROOT

CPU = torch.device("cpu")


def steps_of(path):
    return json.loads(path.read_text(encoding="utf-8"))["steps"]


def test_no_step_costs_the_findings_of_another(monkeypatch, tmp_path, capsys):
    """One hangs, one dies, one lacks something, one has a fault: the record grows by each, and the status is 1."""
    path = tmp_path / "gpu.json"

    def hang(place):
        place.findings["before"] = 1
        place.python("-c", "import time; print('so far', flush=True); time.sleep(60)")

    def lacks(place):
        assert list(steps_of(path)) == ["hang", "die"]  # written after each step
        raise gpu.Skipped("there is one GPU")

    steps = {
        "hang": (0.01, hang),
        "die": (1, lambda place: place.python("-c", "print('last words'); raise SystemExit(3)")),
        "lacks": (1, lacks),
        "fault": (1, lambda place: place.findings["nothing"]),
        "fine": (1, lambda place: place.findings.update(found=2)),
    }
    monkeypatch.setattr(gpu, "STEPS", steps)
    started = time.monotonic()
    assert gpu.main(["--device", "cpu", "--json", str(path), "--minutes", "1", "--only", ",".join(steps)]) == 1
    assert time.monotonic() - started < 30
    found = steps_of(path)
    assert {name: step["status"] for name, step in found.items()} == {
        "hang": "failed", "die": "failed", "lacks": "skipped", "fault": "failed", "fine": "passed"
    }  # fmt: skip
    assert "time was up" in found["hang"]["why"] and found["hang"]["findings"] == {"before": 1}
    assert "status 3" in found["die"]["why"] and "last words" in found["die"]["why"]
    assert found["lacks"]["why"] == "there is one GPU" and "KeyError" in found["fault"]["why"]
    printed = capsys.readouterr().out
    assert "3 failed, 1 skipped, 1 passed" in printed and "    found: 2\n" in printed and "No GPU was asked" in printed


def test_what_is_left_when_the_time_is_over_is_skipped(monkeypatch, tmp_path):
    """It says which step to ask for; nothing failed."""
    monkeypatch.setattr(gpu, "STEPS", {"slow": (1, lambda place: time.sleep(0.1)), "late": (1, pytest.fail)})
    path = tmp_path / "gpu.json"
    assert gpu.main(["--device", "cpu", "--json", str(path), "--minutes", "0.001", "--only", "slow,late"]) == 0
    assert steps_of(path)["late"]["status"] == "skipped" and "--only late" in steps_of(path)["late"]["why"]


@pytest.mark.parametrize(
    "argv", [["--device", "cpu", "--only", "a,bits"], ["--device", "cpu", "--minutes", "0"], ["--minutes", "nan"], []]
)
def test_wrong_use_and_a_missing_gpu_are_one_line(argv, capsys):
    """An unknown step, no minutes, no GPU: status 2 before anything is run."""
    if not argv and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(SystemExit) as stop:
        gpu.main(argv)
    line = capsys.readouterr().err
    assert stop.value.code == 2 and line.count("\n") == 1 and line.startswith("tests/gpu.py: ")


def left(folder, weight, losses):
    """What a run leaves, with one weight."""
    folder.mkdir()
    torch.save({"weights": {"w": torch.tensor(weight)}}, folder / "skd_pair1_seed1.pt")
    lines = [{"kind": "step", "step": number + 1, "loss": loss} for number, loss in enumerate(losses)]
    lines = [json.dumps(line) + "\n" for line in [{"kind": "header"}, *lines, {"kind": "final"}]]
    (folder / "skd_pair1_seed1.jsonl").write_text("".join(lines), encoding="utf-8")


def test_other_bits_fail_where_the_same_were_promised(tmp_path):
    """Equal weights; others, with the step at which the losses part; a folder without a finished run proves nothing."""
    place = gpu.Place("cpu", tmp_path)
    left(tmp_path / "one", [1.0, 2.0], [0.5, 0.25, 0.125])
    left(tmp_path / "two", [1.0, 2.0], [0.5, 0.25, 0.125])
    left(tmp_path / "other", [1.0, 2.5], [0.5, 0.2, 0.1])
    place.compare("same", "one", "two", promised=True)
    place.compare("finding", "one", "other", promised=False)
    with pytest.raises(gpu.Failed, match="by up to 0.5, .* step 2"):
        place.compare("promised", "one", "other", promised=True)
    with pytest.raises(gpu.Failed, match="no run"):
        place.compare("nothing", "none", "one", promised=True)
    assert place.findings["same"] == "the same bits" and "up to 0.5" in place.findings["finding"]


def test_runs_that_failed_are_listed(monkeypatch, tmp_path):
    """A script's status 1 is a failed step, with the line of each run; the other script is run all the same."""
    place = gpu.Place("cuda", tmp_path)
    failed, asked = "train_skd.py: run taid_pair1_seed1 failed: ValueError: nan", []

    def python(*words, **options):
        asked.append(words[0])
        return f"x\n{failed}\ny" if words[0] == "train_skd.py" else "all well"

    monkeypatch.setattr(place, "python", python)
    with pytest.raises(gpu.Failed) as error:
        gpu.scripts(place, *gpu.EVERY_ROW)
    assert str(error.value) == failed and asked == ["train_skd.py", "train_okd.py"]
    assert list(place.findings) == asked


def test_waits_are_counted_per_step_and_place(monkeypatch):
    """Three waits in each step and five around them: three."""

    def train(script, variant, extra, pair, device, steps, folder):
        for _ in range(3 * (steps + 2) + 5):
            warnings.warn("called a synchronizing CUDA operation")

    monkeypatch.setattr(bench, "train", train)
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", lambda mode: None)
    found = gpu.hidden_waits(CPU)
    assert [list(waits.values()) for waits in found.values()] == [[3.0]] * len(found)


@pytest.mark.slow
def test_miniature(clone):
    """On a CPU, from a clone: what must pass passes, what needs a GPU is skipped with its reason."""
    shutil.copytree(ROOT / "tests", clone / "tests", ignore=shutil.ignore_patterns("__pycache__"))
    command = [sys.executable, "tests/gpu.py", "--device", "cpu", "--json", "gpu.json"]
    only = "noise,waits,resume,bench,suite"  # the others start more of the same commands
    ran = subprocess.run([*command, "--only", only], cwd=clone, capture_output=True, text=True, timeout=600)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    found = steps_of(clone / "gpu.json")
    for name, step in found.items():
        assert step["status"] == ("skipped" if name in ("waits", "bench") else "passed"), ran.stdout
        assert step["why"] if step["status"] == "skipped" else step["findings"]
    assert found["resume"]["findings"] == {"after SIGINT and --resume": "the same bits"}
    assert "No GPU was asked" in ran.stdout
