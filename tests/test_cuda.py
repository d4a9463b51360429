"""Both scripts from their flags to their table on a pretended GPU (pretend.py): the figures of a CPU, what fails there,
saving and resuming, memory and clocks."""

import copy
import dataclasses
import functools
import json
import re
import types

import pytest
import torch
from pretend import CUDA, gpu
from tiny import distilled, flags, matrix, same_weights, tiny_data, tiny_pair, weights_of
from torch.utils._python_dispatch import _disable_current_modes

import train_okd
import train_skd
from lab import checkpoints, compare, pairs, processes, program, records, rollouts, training
from lab.costs import Clock, Meter
from model import load_checkpoint, load_file, save_file

SHAPES = {"teacher_shape": (2, 2, 16), "student_shape": (1, 2, 8)}
FEW = {"difficulty": 1, "train_examples": 24, "val_examples": 1, "test_examples": 2, "ood_examples": 1}
SMALL = "--quick --jobs 1 --steps 2 --teacher-steps 2 --start-steps 2 --batch-size 3 --accept-top-k 200".split()
CURVE = {"score": 0.0, "val_nll": 0.0, "kl_teacher": 0.0, "drift": 0.0}


@pytest.fixture(scope="module", autouse=True)
def tiny_runs(tmp_path_factory):
    """Models and splits as small as they can be, caches in a folder of this file's own, and data that is read once."""
    folder = tmp_path_factory.mktemp("cache")
    load, make_cache = pairs.load_or_pretrain_pair, training.TeacherCache
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(pairs.SIZES, "tiny", pairs.SIZES["tiny"] | SHAPES)
        patch.setattr(pairs, "QUICK_TASK", FEW)
        patch.setattr(pairs, "load_or_pretrain_pair", functools.partial(load, cache_dir=folder / "pairs"))
        patch.setattr(training, "TeacherCache", functools.partial(make_cache, folder=folder / "teacher"))
        task = compare.make_task("math", **FEW)
        patch.setattr(compare, "load_task", lambda *arguments: task)
        patch.setattr(pairs, "encode_task", functools.cache(pairs.encode_task))
        patch.setattr(processes, "catch_signals", lambda *handler: None)
        yield folder


@pytest.fixture
def no_curve(monkeypatch):
    """Runs that are not evaluated on the way, which takes a third of their time."""
    monkeypatch.setattr(compare, "validation", lambda *arguments: CURVE)


def run(script, folder, *argv, device="cuda"):
    return script.main([*SMALL, "--device", device, "--out", str(folder), *argv])


def finals(folder):
    """name of a run -> the figures of its final line."""
    lines = {path.stem: [json.loads(line) for line in path.read_text().splitlines()] for path in folder.glob("*.jsonl")}
    return {name: found[-1] for name, found in lines.items() if found[-1]["kind"] == "final"}


def close(one, other, tolerance):
    """Whether two figures are the same, to rounding."""
    return one == other if isinstance(one, str | list | None) else abs(one - other) <= tolerance * (1 + abs(other))


# ---------------------------------------------------------------------------------------------------------------------
# From the flags to the table.

# One comparison of each script; the fast tests of placement look at a step of each kind of row.
FAST = [
    (train_skd, "skd", "--log-every 1"),
    (train_okd, "okd", "--chunk-loss yes --micro-batch 2 --recompute"),
]
ALL = [
    (train_skd, "all", "--hint-share 0.5"),
    (train_skd, "supervised,skd", "--cache-teacher dense"),
    (train_skd, "skd", "--precision bf16"),
    (train_okd, "all", "--hint-share 0.5"),
    *((train_okd, "okd", f"--module {kind} --precision bf16") for kind in ("prefix", "ptuning", "adapter", "full")),
]


@matrix("script, names, argv", [*FAST, *ALL], FAST)
def test_the_figures_are_those_of_a_cpu(script, names, argv, tmp_path, no_curve, monkeypatch):
    """Every row runs to its record and into the table, with the CPU's figures, to rounding; bf16 is less exact. Where
    there are many they are measured on the host, which is as right and half the time."""
    argv, measure = ["--variants", names, *argv.split()], compare.evaluate

    def measured_here(*models, adapted=None, **more):
        here = [copy.deepcopy(one).to("cpu") if isinstance(one, torch.nn.Module) else one for one in (*models, adapted)]
        with _disable_current_modes():
            return measure(*here[:-1], adapted=here[-1], **more)

    if (script, names, " ".join(argv[2:])) not in FAST:
        monkeypatch.setattr(compare, "evaluate", measured_here)
        monkeypatch.setattr(compare, "gc", types.SimpleNamespace(collect=int))  # whose time is that of a whole run
    with gpu() as device:
        assert run(script, tmp_path / "there", *argv) == 0
    assert not device.unpinned, f"pin what is copied while the host goes on: {device.unpinned}"
    assert run(script, tmp_path / "here", *argv, device="cpu") == 0
    there, here = finals(tmp_path / "there"), finals(tmp_path / "here")
    assert there.keys() == here.keys() and len(there) >= len(names.split(","))
    tolerance = 0.05 if "bf16" in argv else 1e-3
    for name, figures in there.items():
        assert figures.keys() == here[name].keys()
        if name.startswith("opsd_no_hint"):  # it learns from its own start: its first gradients are rounding alone
            continue
        for key in ("val_nll", "kl_teacher", "logit_std"):
            assert close(figures[key], here[name][key], tolerance), (name, key, figures[key], here[name][key])
        if "bf16" not in argv:  # from other pairs other tokens are drawn
            assert all(close(figures[key], here[name][key], 1e-3) for key in ("steps", "score")), name
    table = (tmp_path / "there" / "table.md").read_text()
    assert all(name.removesuffix("_pair1_seed1") in table for name in there)


@pytest.mark.slow
def test_the_picture_of_a_rollout(tmp_path, capsys):
    """sample.py on the GPU shows the tokens that it shows on a CPU, from the models that a run left."""
    run(train_skd, tmp_path / "out", "--variants", "sft", device="cpu")
    told = {}
    for device in ("cuda", "cpu"):
        capsys.readouterr()
        with gpu():
            left = str(tmp_path / "out" / "sft_pair1_seed1.pt")
            argv = ["--checkpoint", left, "--device", device, "--prompt", "5*3=", "--gamma", "3"]
            assert rollouts.main(argv) == 0
        told[device] = capsys.readouterr().out
    assert told["cuda"] == told["cpu"] and "\nafter " in told["cpu"]


# ---------------------------------------------------------------------------------------------------------------------
# What fails on a GPU fails alone.


def pair_on_gpu():
    """tiny.py's pair, with its teacher on the device."""
    pair = tiny_pair()
    return dataclasses.replace(pair, teacher=copy.deepcopy(pair.teacher).to("cuda"))


def in_step(number, variant, what):
    """`distill` of train_skd.py, with what(student) done when step `number` of this variant's run is over."""
    distill = train_skd.distill

    def changed(row, student, teacher, prompts, responses, run):
        update = run.update

        def updated(*models):
            update(*models)
            if run.step.number + 1 == number and row == train_skd.VARIANTS[variant]:
                what(student)

        run.update = updated
        return distill(row, student, teacher, prompts, responses, run)

    return changed


def poison(student):
    with torch.no_grad():
        student.token_embedding.weight.fill_(float("nan"))


def files_of(folder):
    return {path.name: path.read_bytes() for path in folder.rglob("*")}


# A student alone; student and teacher in blocks; one after the other; a loss that draws tokens.
WRITING = ["on_policy", "skd", "adaswitch", "rs_kd"]


@matrix("variant", WRITING, ["skd", "rs_kd"])
def test_nan_is_a_loss_and_no_crash(variant, monkeypatch):
    """Weights that are nan from step 3 on: tokens are drawn all the same, the GPU goes on working, and the run ends
    with a line that names the step."""
    monkeypatch.setattr(compare, "validation", lambda *arguments: CURVE)
    with gpu() as device:
        pair = pair_on_gpu()
        args, row = flags("--steps", "4", "--log-every", "4"), train_skd.VARIANTS[variant]
        script = types.SimpleNamespace(distill=in_step(2, variant, poison), VARIANTS=train_skd.VARIANTS)
        with pytest.raises(ValueError, match="not finite at step 3 "):
            distilled(script, row, pair.new_student(), pair, args)
        torch.cuda.synchronize()
    assert not device.dead


@pytest.mark.slow
def test_a_run_of_nan_fails_alone(tmp_path, tiny_runs, monkeypatch, capsys, no_curve):
    """A student whose weights are nan from step 3 on: its run fails and names the step, the pair in the cache stays
    what it is, and the other run is what it is without it."""
    with gpu():
        assert run(train_skd, tmp_path / "alone", "--variants", "sft", "--steps", "4") == 0
    before = files_of(tiny_runs / "pairs")
    monkeypatch.setattr(train_skd, "distill", in_step(2, "skd", poison))
    with gpu():
        status = run(train_skd, tmp_path / "out", "--variants", "skd,sft", "--steps", "4", "--log-every", "1")
    out, err = capsys.readouterr()
    assert status == 1 and re.search(r"run skd_pair1_seed1 failed: .* not finite at step 3 ", err), err
    assert files_of(tiny_runs / "pairs") == before and "set aside" not in out
    assert [*finals(tmp_path / "out")] == ["sft_pair1_seed1"]
    same = [load_checkpoint(str(tmp_path / name / "sft_pair1_seed1.pt"))[0].state_dict() for name in ("alone", "out")]
    assert all(torch.equal(weight, same[1][name]) for name, weight in same[0].items())


def look_up(number):
    """A run that reads row `number` of a table of three."""
    torch.nn.functional.embedding(torch.tensor([number]).to("cuda"), torch.zeros(3, 2, device="cuda"))
    return f"run {number}"


def test_nothing_is_started_on_a_closed_gpu():
    """The run that closed it has failed, those after it were not started, and say how they are; a run that failed
    otherwise closes nothing."""
    with gpu():
        told = []
        failed = processes.run_all(look_up, [(0,), ("x",), (1,), (3,), (2,)], 1, told.append)
    assert [told[0], told[2]] == ["run 0", "run 1"] and len(told) == 4
    assert [task for task, _ in failed] == [("x",), (3,), (2,)]
    assert failed[1][1].startswith("RuntimeError: CUDA error: device-side assert triggered")
    assert failed[2][1].startswith("not started: ") and "--resume" in failed[2][1]


@pytest.mark.slow
def test_a_closed_gpu_ends_the_queue(tmp_path, tiny_runs, monkeypatch, capsys, no_curve):
    """After a device-side assert nothing works in this process: what waits is not tried, no file is set aside, and a
    new process goes on."""
    argv = ["--variants", "sft,supervised,skd"]
    with gpu():
        assert run(train_skd, tmp_path / "before", "--variants", "sft") == 0  # the pair is in the cache
    before, capsys = files_of(tiny_runs / "pairs"), (capsys.readouterr(), capsys)[1]
    with gpu() as device, monkeypatch.context() as patch:
        patch.setattr(
            train_skd, "distill", in_step(1, "supervised", lambda student: student(torch.tensor([[999]]).to("cuda")))
        )
        status = run(train_skd, tmp_path / "out", *argv)
    out, err = capsys.readouterr()
    assert status == 1 and device.dead and err.count(" failed: ") == 2, err
    assert "run supervised_pair1_seed1 failed: RuntimeError: CUDA error: device-side assert" in err
    assert re.search("run skd_pair1_seed1 failed: not started: .* --resume", err)
    assert files_of(tiny_runs / "pairs") == before and "set aside" not in out
    with gpu():
        assert run(train_skd, tmp_path / "out", *argv, "--resume") == 0
    assert sorted(finals(tmp_path / "out")) == ["sft_pair1_seed1", "skd_pair1_seed1", "supervised_pair1_seed1"]


def out_of_memory(device, when):
    """The device has no memory for an operation for which when() is true."""

    def before(name):
        if when(name):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has 8 GiB")

    device.before = before


def test_a_full_gpu_damages_no_file(tmp_path):
    """Out of memory while a cached model is read is told as that: the file stays, and is read when there is room; so
    does an error that closed the GPU. A file that is damaged is still set aside."""
    settings = pairs.PairSettings(teacher_steps=1, start_steps=1, batch_size=2, **SHAPES)
    load = functools.partial(pairs.load_or_pretrain_pair.func, tiny_data(), settings, "cuda", cache_dir=tmp_path)
    with gpu() as device:
        made, before = load(report=lambda line: None), files_of(tmp_path)
        out_of_memory(device, lambda name: name == "_to_copy")
        with pytest.raises(torch.OutOfMemoryError):
            load()
        assert files_of(tmp_path) == before
        device.before = None
        assert load().fingerprint == made.fingerprint and files_of(tmp_path) == before
        device.dead = True
        with pytest.raises(RuntimeError, match="CUDA error"):
            load()
        assert files_of(tmp_path) == before
    (teacher,) = tmp_path.glob("*teacher*.pt")
    teacher.write_bytes(before[teacher.name][:-100])
    with gpu():
        told = []
        assert load(report=told.append).fingerprint == made.fingerprint
    assert any("set aside" in line for line in told)


FULL = "[enforce fail at alloc_cpu.cpp:124] data. DefaultCPUAllocator: can't allocate memory: you tried to allocate 9"


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError(FULL), torch.OutOfMemoryError("CUDA out of memory")])
def test_memory_of_the_host_is_no_fault_of_a_file(error, tmp_path, monkeypatch):
    """Nor is memory that is missing while a file is read on the host: the error stays what it is."""
    save_file(str(tmp_path / "a.pt"), {"x": 1})

    def load(*arguments, **keywords):
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(torch, "load", load)
        with pytest.raises(type(error)):
            load_file(str(tmp_path / "a.pt"))
    assert load_file(str(tmp_path / "a.pt")) == {"x": 1}


@pytest.mark.slow
def test_out_of_memory_fails_alone(tmp_path, tiny_runs, monkeypatch, capsys, no_curve):
    """No memory for the first of three runs while its teacher is read, and for the second in a step: both say so, no
    file is taken for damaged, the third one finishes; the others are trained by --resume."""
    with gpu():
        assert run(train_skd, tmp_path / "before", "--variants", "sft") == 0  # the pair is in the cache
    before, capsys = files_of(tiny_runs / "pairs"), (capsys.readouterr(), capsys)[1]
    started, argv, one = [], ["--variants", "supervised,skd,sft"], compare.run_one

    def counted(*arguments):
        started.append(arguments)
        return one(*arguments)

    def is_full(name):
        return len(started) == 1 and name == "_to_copy" or len(started) == 2 and name == "_fused_adamw_"

    with gpu() as device, monkeypatch.context() as patch:
        patch.setattr(compare, "run_one", counted)
        out_of_memory(device, is_full)
        status = run(train_skd, tmp_path / "out", *argv)
    out, err = capsys.readouterr()
    assert status == 1 and len(re.findall("_pair1_seed1 failed: .*out of memory", err)) == 2, err
    assert files_of(tiny_runs / "pairs") == before and "set aside" not in out
    assert [*finals(tmp_path / "out")] == ["sft_pair1_seed1"]
    with gpu():
        assert run(train_skd, tmp_path / "out", *argv, "--resume") == 0
    assert len(finals(tmp_path / "out")) == 3


def test_out_of_memory_is_one_line_before_the_first_run(tmp_path, tiny_runs, capsys, no_curve, monkeypatch):
    """Where not even the pair fits, the script ends with one line that says what to lower."""
    argv = ["train_skd.py", *SMALL, "--device", "cuda", "--out", str(tmp_path / "out")]
    monkeypatch.setattr(program.sys, "argv", argv)
    with gpu() as device:
        out_of_memory(device, lambda name: name == "_to_copy")
        with pytest.raises(SystemExit) as ended:
            program.run_script("train_skd", train_skd.main)
    words = str(ended.value)
    assert words.startswith("train_skd.py: CUDA out of memory") and "--batch-size" in words and "\n" not in words


def test_a_state_is_not_damaged_by_a_full_gpu(tmp_path):
    """Out of memory while a saved state is put back says so; it is no state of other code."""
    with gpu() as device:
        student = torch.nn.Linear(4, 4).to("cuda")
        optimizer = torch.optim.AdamW(student.parameters(), fused=True)
        student(torch.ones(1, 4, device="cuda")).sum().backward()
        optimizer.step()
        with checkpoints.Checkpointer(str(tmp_path / "run"), 1) as checkpointer:
            checkpointer.restore(optimizer=optimizer)
            checkpointer.save(1)
        with checkpoints.Checkpointer(str(tmp_path / "run"), 1) as checkpointer:
            out_of_memory(device, lambda name: name == "_to_copy")
            with pytest.raises(torch.OutOfMemoryError):
                checkpointer.restore(optimizer=optimizer)
        device.before = None
        with checkpoints.Checkpointer(str(tmp_path / "run"), 1) as checkpointer:
            assert checkpointer.restore(optimizer=optimizer) == 1


# ---------------------------------------------------------------------------------------------------------------------
# Saving and resuming.


STATES = [(train_skd, "skd"), (train_skd, "taid"), (train_okd, "okd"), (train_okd, "dml")]


class Stopping(records.NoLog):
    """A record that stops the run in step 2."""

    def write(self, kind, **figures):
        if kind == "step" and figures["step"] == 2:
            raise processes.Stopped(2)


@matrix("script, variant", STATES, [(train_skd, "taid")])
def test_a_state_goes_to_disk_and_back(script, variant, tmp_path, monkeypatch):
    """What a run on a GPU saved puts another process where the first one was, bit for bit."""
    monkeypatch.setattr(compare, "validation", lambda *arguments: CURVE)
    ends, args = [], flags("--steps", "3", "--log-every", "1", script=script)
    for stem, log in ((None, None), (tmp_path / "run", Stopping()), (tmp_path / "run", None)):
        with gpu(), checkpoints.Checkpointer(stem and str(stem), 1) as checkpointer:
            pair = pair_on_gpu()
            student = pair.new_student()
            try:
                row = script.VARIANTS[variant]
                _, adapted = distilled(script, row, student, pair, args, log=log, checkpointer=checkpointer)
            except processes.Stopped:
                continue
            modules = {} if adapted is None else weights_of(adapted.module)
            ends.append({name: weight.cpu() for name, weight in (weights_of(student) | modules).items()})
    assert len(ends) == 2 and same_weights(*ends)


@pytest.mark.slow
def test_a_stopped_run_resumes_to_the_same_bits(tmp_path, monkeypatch, no_curve):
    """Stopped in step 3 of 4 and resumed in another process: the weights of the run that was never stopped."""
    argv = ["--variants", "okd", "--steps", "4", "--save-every", "1", "--log-every", "1"]
    with gpu():
        assert run(train_okd, tmp_path / "whole", *argv) == 0
    write = records.RunLog.write

    def stopping(log, kind, **figures):
        write(log, kind, **figures)
        if kind == "step" and figures["step"] == 3:
            raise processes.Stopped(2)

    with gpu(), monkeypatch.context() as patch, pytest.raises(processes.Stopped):
        patch.setattr(records.RunLog, "write", stopping)
        run(train_okd, tmp_path / "out", *argv)
    assert (tmp_path / "out" / "okd_pair1_seed1.state.pt").exists()
    with gpu():
        assert run(train_okd, tmp_path / "out", *argv, "--resume") == 0
    for suffix in (".pt", ".module.pt"):
        paths = (tmp_path / name / f"okd_pair1_seed1{suffix}" for name in ("whole", "out"))
        one, other = (torch.load(path, weights_only=True) for path in paths)
        assert one.keys() == other.keys() and one["sha256"] == other["sha256"], suffix


# ---------------------------------------------------------------------------------------------------------------------
# Memory and clocks.


@pytest.mark.slow
def test_a_run_shares_the_gpu_with_no_other(tmp_path, monkeypatch, no_curve):
    """Where a run begins, nothing lies on the device but its own pair, not the comparison's and nothing of a run
    before; its kernels are loaded."""
    found, seen, make = [], set(), compare.make_run

    def made(pair, *arguments, **shown):
        live, both = device.live, (pair.teacher, pair.new_student())
        found.append((live, sum(weight.nbytes for model in both for weight in model.parameters())))
        assert {"native_layer_norm_backward", "_fused_adamw_"} <= seen, "kernels are loaded before a run's clock begins"
        return make(pair, *arguments, **shown)

    monkeypatch.setattr(compare, "make_run", made)
    with gpu() as device:
        device.before = seen.add
        assert run(train_skd, tmp_path / "out", "--variants", "sft") == 0
        found.clear()
        seen.clear()
        assert run(train_skd, tmp_path / "again", "--variants", "supervised,skd") == 0  # from a pair in the cache
    assert len(found) == 2
    assert all(live == pair for live, pair in found), f"bytes on the device, and of the pair: {found}"


def test_the_clock_waits_before_it_begins():
    """What a step's first span holds is this step's: a clock that is read waits when it begins and at each mark; others
    never do."""
    with gpu() as device:
        Clock(CUDA, exact=False).mark("sampling")
        assert device.waits == []
        clock = Clock(CUDA, exact=True)
        assert len(device.waits) == 1
        clock.mark("sampling")
        assert len(device.waits) == 2


def test_the_clock_of_a_run_waits_where_training_begins():
    """What is queued while the meter is paused, such as an evaluation, is no training."""
    with gpu() as device:
        meter = Meter(CUDA)
        with meter.paused():
            device.waits.clear()
        assert [text.split(" @ ")[0] for text in device.waits] == ["synchronize"]


def test_a_pair_is_pretrained_in_full_precision(tmp_path, monkeypatch):
    """A pair that a run has to make anew is the one that was made before --precision was set; which stays set."""
    found, before = [], torch.get_float32_matmul_precision()
    pretrain = pairs.pretrain

    def watched(*arguments, **keywords):
        found.append(torch.get_float32_matmul_precision())
        return pretrain(*arguments, **keywords)

    monkeypatch.setattr(pairs, "pretrain", watched)
    settings = pairs.PairSettings(teacher_steps=1, start_steps=1, batch_size=2, **SHAPES)
    try:
        processes.use_precision("tf32", CUDA)
        pairs.load_or_pretrain_pair.func(tiny_data(), settings, cache_dir=tmp_path, report=lambda line: None)
        assert found == ["highest", "highest"] and torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision(before)


# ---------------------------------------------------------------------------------------------------------------------
# A torch for CUDA that finds no GPU.


TROUBLES = {  # what the driver says -> what the user is told, and what to do
    12020: ("the NVIDIA driver is too old .it knows CUDA up to 12.2.", "update the driver"),
    0: ("no NVIDIA driver answers", "install the driver"),
    13000: ("shows it no GPU", "CUDA_VISIBLE_DEVICES"),
}


@pytest.mark.parametrize("driver", TROUBLES)
def test_a_driver_that_does_not_fit_is_named(driver, monkeypatch):
    """auto takes the CPU and says why; --device cuda says what is wrong with the driver, and advises no build of torch
    that is there already. Nobody is told who asked for a CPU."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch._C, "_cuda_getDriverVersion", lambda: driver, raising=False)
    trouble, advice = TROUBLES[driver]
    args, _ = train_skd.parse_flags(["--quick"])
    assert args.device_type == "cpu"
    (note,) = [line for line in args.notes if "--device" in line]
    assert re.search(f"auto takes the CPU: torch .* is built for CUDA 13.0, and {trouble}|{trouble}", note), note
    assert not [line for line in train_skd.parse_flags(["--device", "cpu"])[0].notes if "CUDA" in line]
    with pytest.raises(ValueError, match=trouble) as error:
        processes.pick_device("cuda")
    assert advice in str(error.value) and "--device cpu" in str(error.value) and "\n" not in str(error.value)


def test_a_torch_without_cuda_is_named(monkeypatch):
    """There the advice is another build; auto has nothing to say."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", None)
    assert processes.device_note("auto", "cpu") is None
    with pytest.raises(ValueError, match="install a build"):
        processes.pick_device("cuda")
