"""Several runs on one GPU (--jobs): each in a process of its own, what they need checked first, and none another's end.

The GPU is pretended (tests/pretend.py); each process has one of its own.
"""

import functools
import signal
import types

import pretend
import pytest
import torch
import train_okd
import train_skd
import workers
from test_train_skd import cached_pairs, lines_of, without_times  # noqa: F401  (a fixture)
from tiny import flags, generator

from lab import arguments, compare, costs, processes, schedule
from model import GPT, GPTConfig


@pytest.mark.slow
@pytest.mark.parametrize("tokens", [(9, 2), (9, 9, 2)])
def test_a_failed_run_takes_its_process_with_it_and_no_other(tokens):
    """A device-side assert closes the GPU to its process: who hits it fails alone, and the next run gets another."""
    lines = []
    failures = processes.run_all(workers.summed_on_gpu, [(token,) for token in tokens], 2, lines.append)
    assert [task for task, _ in failures] == [(token,) for token in tokens if token == 9]
    assert all("device-side assert" in line for _, line in failures)
    assert sorted(line for line in lines if line.startswith("sum")) == [f"sum {t + 1}" for t in tokens if t != 9]


def test_a_run_without_memory_says_what_to_lower():
    """Of torch's page about it one line is left, with the flags that help; the next run is started."""

    def run(fails):
        if fails:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has a total capacity")
        return "fine"

    lines = []
    ((_, line),) = processes.run_all(run, [(True,), (False,)], 1, lines.append)
    assert line.startswith("the GPU is out of memory: lower --jobs") and "Tried" not in line and lines[1:] == ["fine"]


# ---------------------------------------------------------------------------------------------------------------------
# What is checked first.

SHAPES = {"wide": (1, 2, 32), "narrow": (2, 2, 16)}
CASES = [  # script, row, flags, vocabulary, longest sequence, batch
    (train_skd, "supervised", "", 64, 32, 8),
    (train_okd, "okd_full", "", 64, 32, 8),
    (train_skd, "skd", "", 64, 72, 4),
    (train_skd, "gkd", "", 2048, 16, 8),
    (train_skd, "distillm", "--micro-batch 4", 2048, 16, 8),
    (train_skd, "skd", "--chunk-loss yes", 2048, 16, 8),
    (train_okd, "okd_skd", "", 64, 72, 4),
    (train_okd, "okd_full", "", 2048, 16, 8),
]


def memory_used(script, name, extra, vocabulary, length, batch, device):
    """(bytes of a run of random models, what is said of it before)."""
    args = flags("--batch-size", str(batch), *extra.split(), script=script)
    args.chunk_loss = arguments.chunks_its_loss(args, vocabulary)
    configs = [GPTConfig(vocabulary, length, *SHAPES[shape]) for shape in ("narrow", "wide")]
    student, teacher = (GPT(config, generator(1)).to(device) for config in configs)
    prompts = torch.randint(1, vocabulary, (batch, 4), generator=generator(2)).tolist()
    tokenizer = types.SimpleNamespace(eos_token=None, n_vocab=vocabulary)
    no_examples = types.SimpleNamespace(examples=[])
    pair = types.SimpleNamespace(tokenizer=tokenizer, max_new_tokens=length - 4, train=no_examples, hinted={})
    run = compare.make_run(pair, args, 1)
    run.validate = lambda *models: {"score": 0.0, "val_nll": 0.0, "drift": 0.0}
    row = script.VARIANTS[name] if script is train_skd else train_okd.resolve(script.VARIANTS[name], args)
    responses = [prompt[:1] * (length - 4) for prompt in prompts]
    found = script.distill(row, student, teacher.requires_grad_(False), prompts, responses, run)[0]["memory_mb"]
    rows = min(args.micro_batch or batch, batch)
    said = costs.memory_of_run(*configs, batch, rows, script is train_okd, args.chunk_loss == "yes")
    return 1e6 * found, said - costs.CONTEXT


@pytest.mark.parametrize("case", CASES[:2], ids=lambda case: case[1])
def test_a_run_needs_no_more_than_was_said(case):
    """What a run counts on a CPU: less than what is asked for on a GPU, which has room for the measuring beside it."""
    counted, said = memory_used(*case, "cpu")
    assert counted < said


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case[1]} {case[2]} {case[3]}".strip())
def test_a_run_on_a_gpu_needs_no_more_than_was_said(case):
    """The pretended allocator's peak, over shapes in which weights, activations, caches or logits weigh most."""
    with pretend.gpu():
        counted, said = memory_used(*case, "cuda")
    assert counted < said


def test_parameters_are_counted_right():
    """16 bytes for a weight of the student, 4 for one of the teacher and 16 more where a copy of it learns; a further
    block brings its weights, and its share of both caches."""
    student, teacher = GPTConfig(11, 8, 3, 2, 6), GPTConfig(11, 8, 2, 2, 10)
    small, large = (GPT(config).num_parameters() for config in (student, teacher))
    alone, together = (costs.memory_of_run(student, teacher, 0, 0, learns) for learns in (False, True))
    assert together - alone == 16 * large
    bigger = costs.memory_of_run(GPTConfig(11, 8, 4, 2, 6), teacher, 0, 0)
    assert bigger - alone == 16 * (GPT(GPTConfig(11, 8, 4, 2, 6)).num_parameters() - small) + 4 * 4 * 256 * 8 * 6


class Enough(Exception):
    """Nothing was refused so far."""


def enough(*arguments):
    raise Enough


@pytest.mark.parametrize("free, word", [(80e9, None), (3.6e9, "--jobs 3"), (1.5e9, "--jobs 1")])
def test_too_many_runs_for_a_gpu_are_refused_before_anything_is_made(monkeypatch, capsys, tmp_path, free, word):
    """One line: what a run needs, what is free of how much where, how many fit; where all fit, the same as a note."""
    monkeypatch.setattr(compare, "open_folder", enough)
    with pretend.gpu():
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device=None: (free, 80e9))
        with pytest.raises(ValueError if word else Enough) as error:
            train_skd.main(["--quick", "--device", "cuda", "--jobs", "4", "--out", str(tmp_path / "out")])
    told = str(error.value) if word else capsys.readouterr().out
    line = next(line for line in told.splitlines() if line.startswith("--jobs 4: a run may need 1."))
    assert f"{free / 1e9:.1f} of 80.0 GB are free on pretended GPU" in line
    assert line.endswith("GPU") if word is None else f"use {word}," in line
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("more", [[], ["--pairs", "4"], ["--pairs", "2", "--seeds", "2"]])
def test_the_runs_of_all_pairs_take_room(monkeypatch, capsys, more):
    """As many runs stand side by side as there are, at most --jobs: one method has one per pair and seed."""
    monkeypatch.setattr(compare, "open_folder", enough)
    with pretend.gpu(), pytest.raises(Enough):
        train_skd.main(["--quick", "--device", "cuda", "--jobs", "4", "--variants", "sft", *more])
    assert f"--jobs {4 if more else 1}: a run may need" in capsys.readouterr().out


def test_one_at_a_time_and_a_cpu_are_not_asked(monkeypatch):
    """Nobody asks for memory where runs follow each other, or where there is no GPU."""
    monkeypatch.setattr(arguments, "check_room", pytest.fail)
    monkeypatch.setattr(compare, "open_folder", enough)
    for device, jobs in (("cuda", "1"), ("cpu", "2")):
        with pretend.gpu(), pytest.raises(Enough):
            train_skd.main(["--quick", "--device", device, "--jobs", jobs])


# ---------------------------------------------------------------------------------------------------------------------
# From flags to table.

def comparable(line):
    """A record's line without clocks."""
    return without_times(line) | {"jobs": None}


@pytest.mark.slow
def test_runs_side_by_side_on_one_gpu(cached_pairs, monkeypatch, tmp_path, capsys):  # noqa: F811
    """One run hits an assert, in a line, and the other goes on until SIGINT, which it answers by saving. --resume ends
    at the figures of runs that follow each other undisturbed."""

    def main(jobs, *argv, trouble=()):
        if jobs == "2":
            there = functools.partial(workers.run_on_gpu, "train_skd", cached_pairs, trouble)
            monkeypatch.setattr(train_skd, "run_one", there)
        small = "--quick --device cuda --steps 32 --batch-size 4 --teacher-steps 2 --start-steps 2".split()
        with pretend.gpu():
            return train_skd.main([*small, "--jobs", jobs, "--out", str(tmp_path / jobs), *argv])

    watch, handler = schedule.Progress.watch, signal.getsignal(signal.SIGINT)

    def interrupt(self, running, waiting):
        watch(self, running, waiting)
        begun = schedule.last_step(tmp_path / "2" / "supervised_pair1_seed1.jsonl")
        if begun and self.finished and not processes.asked_to_stop():  # the other has failed
            signal.raise_signal(signal.SIGINT)

    assert main("1", "--variants", "supervised") == 0
    names = ["--variants", "skd,supervised"]
    with monkeypatch.context() as patch:
        patch.setattr(schedule.Progress, "watch", interrupt)
        processes.catch_signals()
        try:
            with pytest.raises(processes.Stopped):
                main("2", *names, trouble=("skd",))
        finally:
            signal.signal(signal.SIGINT, handler)
    told = [line for line in capsys.readouterr().out.splitlines() if line.startswith("FAILED")]
    assert len(told) == 1 and "device-side assert" in told[0]
    assert list((tmp_path / "2").glob("supervised_pair1_seed1.state*"))
    assert main("2", *names, "--resume") == 0
    one, two = (lines_of(tmp_path / jobs / "supervised_pair1_seed1.jsonl") for jobs in "12")
    assert any(line["kind"] == "resumed" for line in two)
    two = [line for line in two if line["kind"] != "resumed"]
    assert [comparable(line) for line in one] == [comparable(line) for line in two]
