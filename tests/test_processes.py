"""Several processes share a run (torchrun): the figures of one process, one writer,
and a clear end when one is lost."""

import math
import os
import re
import signal
import subprocess
import sys
import types
from pathlib import Path

import adapters
import pytest
import torch
from test_train_skd import lines_of, weight_differences, without_times
from workers import wait_for

import train_skd
from lab import costs, evaluate, processes

TINY = "--quick --teacher-steps 40 --start-steps 10 --batch-size 9 --steps 4 --device cpu --jobs 1".split()
# Figures that differ: of the clock, of the memory that a share of the batch takes, and of what the samplers spent, as
# each process chooses its blocks' length for its own rows. A step's line describes the share of the batch too.
OWN = {"kind", "seconds", "seconds_by_stage", "memory_mb", "teacher_forwards", "compute", "sha256", "warnings"}
SHARED_BY_STEP = {"step", "loss", "gradient_norm", "lr"}


def start(clone, size, script, *argv):
    """The running command, its output unbuffered lines."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(size)]
    return subprocess.Popen(
        [*(launcher if size > 1 else [sys.executable]), script, *TINY, *argv],
        cwd=clone, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip


def comparable(line):
    """A record's line without what may differ between one process and two."""
    if line["kind"] == "step":
        return {name: line[name] for name in SHARED_BY_STEP}
    if line["kind"] == "rollout":  # weights that differ by rounding may choose another token
        return {"step": line["step"], "rollouts": len(line["rollouts"])}
    figures = {name: value for name, value in line.items() if name not in OWN and not isinstance(value, str)}
    return {name: math.inf if value is None else value for name, value in figures.items()}  # approx takes no None


CASES = {
    "train_skd.py": "sft,supervised,imitkd,gkd,skd,adaswitch,taid,fitnet,lelp,rdd,kdiga,lwkd,one,kdrl,mopd",
    "train_okd.py": "okd,prokt,okd_on_policy,okd_skd,promptkd,minillm,metadistil,ikd",
}


@pytest.mark.slow
@pytest.mark.parametrize("script", CASES)
def test_two_processes_train_as_one(clone, tmp_path, script):
    """Five rows here, four there, in parts of three, with unequal token counts:
    the losses, gradients and figures of one."""
    for size in (1, 2):
        names, out = ["--variants", CASES[script]], ["--out", str(tmp_path / str(size))]
        # At minillm's own rate a draw lies so near a border that rounding decides it: then the rows are others.
        names += ["--lr", "0.02"] if script == "train_okd.py" else []
        running = start(clone, size, script, *names, *out, *(["--micro-batch", "3"] if size == 2 else []))
        output, errors = running.communicate(timeout=600)
        assert running.returncode == 0, errors[:4000]  # torchrun's own words come last
        told = " ".join(output.split())  # a long path stands on a line of its own
        assert told.count(" in all; the page: ") == output.count("\nprompt   ") / 2 == 1  # one speaks
    for name in CASES[script].split(","):
        one, two = (lines_of(tmp_path / str(size) / f"{name}_pair1_seed1.jsonl") for size in (1, 2))
        assert (one[0]["processes"], two[0]["processes"]) == (1, 2)
        assert one[0]["flags"] | {"micro_batch": 3} == two[0]["flags"]
        assert len(one) == len(two)
        for line, other in zip(one[1:], two[1:]):
            assert comparable(line) == pytest.approx(comparable(other), rel=2e-4, abs=1e-6), name
        one, two = (
            torch.load(tmp_path / str(n) / f"{name}_pair1_seed1.pt", weights_only=True)["weights"] for n in (1, 2)
        )
        for weight, difference in weight_differences(one, two).items():
            # AdamW divides small gradients by themselves: rounding can show in single weights.
            assert difference.mean() < 1e-6 and difference.max() < 3e-4, (name, weight)


@pytest.mark.slow
@pytest.mark.parametrize("lost", [0, 1])
def test_a_lost_process_ends_the_run_with_a_word(clone, tmp_path, lost):
    """Killed in the second method: no waiting, one line that says how to go on. Going on (of one case, for its time)
    keeps what was finished, begins where both processes have a state, and ends at the bits of a run that nobody was
    lost from."""
    out, command = (
        str(tmp_path / "out"),
        ["train_skd.py", "--variants", "sft,skd", "--steps", "96", "--save-every", "4", "--out"],
    )
    running = start(clone, 2, *command, out)
    wait_for(running, tmp_path / "out" / "skd_pair1_seed1.jsonl", '"kind": "eval", "step": 12,')
    ranks = {}
    for child in Path(f"/proc/{running.pid}/task/{running.pid}/children").read_text().split():
        variables = Path(f"/proc/{child}/environ").read_text().split("\0")
        ranks.update({int(value.removeprefix("RANK=")): int(child) for value in variables if value.startswith("RANK=")})
    os.kill(ranks[lost], signal.SIGKILL)
    _, errors = running.communicate(timeout=120)
    assert running.returncode != 0
    words = [line for line in errors.splitlines() if line.startswith("train_skd.py: ")]
    assert len(words) == 1 and f"process {1 - lost} " in words[0] and "--resume" in words[0], errors[-3000:]
    finished = (tmp_path / "out" / "sft_pair1_seed1.jsonl").read_bytes()
    assert b'"kind": "final"' in finished
    if lost == 1:
        continues(clone, tmp_path, 2, command, "skd", r"\d+")
        assert (tmp_path / "out" / "sft_pair1_seed1.jsonl").read_bytes() == finished


@pytest.mark.slow
@pytest.mark.parametrize("script,number", [("train_skd.py", signal.SIGTERM), ("train_okd.py", signal.SIGINT)])
def test_a_signal_lets_three_processes_save(clone, tmp_path, script, number):
    """Sent to torchrun in a run that none has saved yet: all three save the same step, and one says so. Going on (of
    OKD, which has two models to go on with) ends at the bits of a run that nobody stopped. Begins without a pair in the
    cache, which one process makes."""
    for path in (clone / "data" / "cache").rglob("*.pt"):
        path.unlink()
    name = {"train_skd.py": "skd", "train_okd.py": "okd"}[script]
    command = [script, "--variants", name, "--steps", "160", "--save-every", "150", "--log-every", "40", "--out"]
    running = start(clone, 3, *command, str(tmp_path / "out"))
    wait_for(running, tmp_path / "out" / f"{name}_pair1_seed1.jsonl", '"kind": "eval", "step": 40,')
    running.send_signal(number)
    _, errors = running.communicate(timeout=120)
    assert running.returncode != 0
    words = [line for line in errors.splitlines() if line.startswith(script)]
    assert len(words) == 1 and f"stopped by {number.name}" in words[0] and "--resume" in words[0], errors[-3000:]
    states = [torch.load(path, weights_only=True) for path in (tmp_path / "out").glob("*.state.pt")]
    assert len(states) == 3 and len({state["step"] for state in states}) == 1
    assert 40 <= states[0]["step"] < 150
    if name == "okd":
        continues(clone, tmp_path, 3, command, name, states[0]["step"])


def continues(clone, tmp_path, size, command, name, step):
    """With --resume the run in "out" continues after `step` and leaves no state; its record and weights are those of a
    run that nobody stopped."""
    for folder, argv in (("out", ["--resume"]), ("whole", [])):
        running = start(clone, size, *command, str(tmp_path / folder), *argv)
        output, errors = running.communicate(timeout=600)
        assert running.returncode == 0, errors[:4000]  # torchrun's own words come last
        resumed = re.search(rf"{name}_pair1_seed1: resumes after step {step}\b", output)
        assert bool(resumed) == (folder == "out") and not list((tmp_path / folder).glob("*.state*"))
    broken, whole = (lines_of(tmp_path / folder / f"{name}_pair1_seed1.jsonl") for folder in ("out", "whole"))
    assert [without_times(line) for line in broken if line["kind"] != "resumed"] == [
        without_times(line) for line in whole
    ]
    one, two = (
        torch.load(tmp_path / folder / f"{name}_pair1_seed1.pt", weights_only=True) for folder in ("out", "whole")
    )
    assert one["sha256"] == two["sha256"]


@pytest.mark.parametrize("argv, word", [
    (["--jobs", "2"], "torchrun"),
    (["--batch-size", "1"], "--batch-size"),
    (["--variants", "sft", "--sweep", "batch-size=1,4"], "--batch-size"),
])  # fmt: skip
def test_what_several_processes_cannot_share_is_refused(monkeypatch, capsys, argv, word):
    """Methods side by side and processes in one; a batch, swept or not, with less rows than processes:
    one line at once."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setattr(processes, "join", lambda device: device)
    monkeypatch.setattr(processes, "rank_and_size", lambda: (0, 2))
    with pytest.raises(ValueError, match=word):
        train_skd.main(["--quick", *argv])


@pytest.mark.parametrize(
    "size, rank, shared",
    [("2", "1", True), ("1", "0", False), ("2", None, False), ("", "0", False), ("abc", "0", False)],
)
def test_a_variable_that_was_left_is_no_start(monkeypatch, size, rank, shared):
    """torchrun sets both variables; a scheduler's, or one without a number, starts nothing and breaks nothing."""
    monkeypatch.setenv("WORLD_SIZE", size)
    monkeypatch.delenv("RANK", raising=False)
    if rank is not None:
        monkeypatch.setenv("RANK", rank)
    assert processes.started_by_torchrun() == shared


def test_no_process_goes_on_alone(monkeypatch):
    """An error that the other processes may not share ends this one; with one process the next run follows."""

    def task(number):
        if number == 0:
            raise ValueError("only here")
        return "done"

    lines = []
    assert len(processes.run_all(task, [(0,), (1,)], 1, lines.append)) == 1 and lines[1:] == ["done"]
    monkeypatch.setattr(processes, "rank_and_size", lambda: (1, 2))
    with pytest.raises(ValueError, match="only here"):
        processes.run_all(task, [(0,), (1,)], 1, lines.append)


def cores(monkeypatch, **missing_or_not):
    """usable_cores() where the system has these functions of os and no others of the three."""
    for name in ("sched_getaffinity", "process_cpu_count", "cpu_count"):
        monkeypatch.delattr(os, name, raising=False)
    for name, function in missing_or_not.items():
        monkeypatch.setattr(os, name, function, raising=False)
    return processes.usable_cores()


def test_every_core_has_a_job_on_every_system(monkeypatch):
    """Linux tells which cores this process may use; macOS and Windows only how many there are, or nothing at all."""
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert cores(monkeypatch, cpu_count=lambda: 8) == 8  # macOS, Windows
    assert (processes.default_jobs("cpu"), processes.default_jobs("cuda"), processes.default_jobs("mps")) == (8, 1, 1)
    assert cores(monkeypatch, cpu_count=lambda: 8, process_cpu_count=lambda: 6) == 6  # from Python 3.13 on
    assert cores(monkeypatch, cpu_count=lambda: 8, sched_getaffinity=lambda pid: {0, 3}) == 2  # Linux, in a container
    assert cores(monkeypatch, cpu_count=lambda: None) == 1


def test_a_torch_that_knows_nothing_of_processes(monkeypatch):
    """Built without torch.distributed it has none of its functions: one process works alone, torchrun is refused."""
    missing = types.SimpleNamespace(is_available=lambda: False)
    for module in (processes, costs, evaluate):
        monkeypatch.setattr(module, "dist", missing)
    assert processes.rank_and_size() == (0, 1) and processes.join(torch.device("cpu")) == torch.device("cpu")
    assert evaluate.gathered_in_order([3, 4]) == [3, 4] and list(evaluate._share(2)) == [0, 1]
    model = adapters.make_gpt(5, 8, 1, 1, 4)
    assert costs.Costs(model, model).figures()["teacher_forwards"] == 0
    processes.leave()
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    with pytest.raises(ValueError, match="without torchrun"):
        processes.join(torch.device("cpu"))
