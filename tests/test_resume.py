"""Laws of going on: who stopped and went on ends with the very bits of who never stopped, whatever method,
moment or damage."""

import dataclasses
import errno
import json
import os
import signal

import pytest
import torch
from tiny import (  # noqa: F401  (lenient is a fixture)
    OKD_KINDS,
    SKD_KINDS,
    distilled,
    flags,
    lenient,
    matrix,
    same_weights,
    tiny_pair,
    weights_of,
)

import train_okd
import train_skd
from lab import checkpoints, compare, folders, pairs, processes, records, training
from lab.checkpoints import Checkpointer
from model import load_checkpoint, load_file, save_checkpoint, save_file

SCRIPTS = {"train_skd": train_skd, "train_okd": train_okd}
EVERY = [("train_skd", name) for name in train_skd.VARIANTS] + [("train_okd", name) for name in train_okd.VARIANTS]


@pytest.fixture(autouse=True)
def handlers():
    """Signals as a script has them, and afterwards as the tests have them."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    processes.catch_signals()
    yield
    assert processes._waiting == {"loops": 0, "signals": [], "all": False}
    for number, handler in before.items():
        signal.signal(number, handler)


class Signalled(records.RunLog):
    """A record that sends a signal to its own process when it is told of the step `stop`."""

    def __init__(self, folder, stop=None, number=signal.SIGTERM):
        super().__init__(folder, "run_pair1_seed1", {"flags": {}})
        self.stop, self.number = stop, number

    def write(self, kind, **figures):
        super().write(kind, **figures)
        if kind == "step" and figures["step"] == self.stop:
            os.kill(os.getpid(), self.number)


def go(script, variant, folder, stop=None, every=1000, steps=4, checkpointer=None, **how):
    """A run in `folder`, stopped by a signal in step `stop`, or gone on with -> what it came to;
    None if it was stopped."""
    script, pair = SCRIPTS[script], tiny_pair()
    args = flags("--steps", str(steps), "--lr", "0.05", script=script)
    folder.mkdir(exist_ok=True)
    student, log = pair.new_student(), Signalled(folder, stop, **how)
    try:
        with checkpointer or Checkpointer(str(folder / "run_pair1_seed1"), every, {"steps": steps}) as checkpointer:
            row = script.VARIANTS[variant]
            costs, adapted = distilled(script, row, student, pair, args, log=log, checkpointer=checkpointer)
    except processes.Stopped as stopped:
        assert stopped.number == log.number
        return None
    finally:
        log.close()
    lines = [json.loads(line) for line in log.path.read_text().splitlines()]
    modules = {} if adapted is None else weights_of(adapted.module)
    return (
        weights_of(student),
        modules,
        timeless(costs),
        [timeless(line) for line in lines if line["kind"] != "resumed"],
        lines,
        costs["seconds"],
    )


def timeless(figures):
    """Without what a clock says."""
    return {
        name: value for name, value in figures.items() if not name.startswith("seconds") and not name.endswith("_ms")
    }


def same_run(one, other):
    return same_weights(one[0], other[0]) and same_weights(one[1], other[1]) and one[2:4] == other[2:4]


FAST = [*(("train_skd", name) for name in SKD_KINDS), *(("train_okd", name) for name in OKD_KINDS)]


@matrix("script,variant", EVERY, fast=FAST)
def test_going_on_changes_no_bit(script, variant, tmp_path):
    """Stopped by a signal in the second of four steps: the state is saved there, and what goes on ends where the other
    run ends: weights of student and module, costs, every line of the record."""
    whole = go(script, variant, tmp_path / "whole")
    assert go(script, variant, tmp_path / "parts", stop=2) is None
    assert load_file(str(tmp_path / "parts" / "run_pair1_seed1.state.pt"))["step"] == 2
    went_on = go(script, variant, tmp_path / "parts")
    assert same_run(whole, went_on)
    assert [line["step"] for line in went_on[4] if line["kind"] == "resumed"] == [2]
    other = weights_of(tiny_pair().new_student())
    assert not same_weights(whole[0], other)  # it learned


PARTS = [
    ("train_skd", "on_policy", "student"), ("train_skd", "on_policy", "student_optimizer"),
    ("train_skd", "on_policy", "sampling"), ("train_skd", "fitnet", "method"), ("train_skd", "on_policy", "costs"),
    ("train_skd", "sft", "log"), ("train_okd", "okd", "module"),
    ("train_okd", "okd", "module_optimizer"), ("train_okd", "gkd", "sampling"),
]  # fmt: skip


@pytest.mark.parametrize("script,variant,part", PARTS)
def test_every_part_of_a_state_counts(script, variant, part, tmp_path, monkeypatch):
    """Who leaves one part out when going on ends elsewhere."""
    whole = go(script, variant, tmp_path / "whole")
    go(script, variant, tmp_path / "parts", stop=2)
    restore = Checkpointer.restore
    monkeypatch.setattr(
        Checkpointer,
        "restore",
        lambda self, **parts: restore(self, **{name: x for name, x in parts.items() if name != part}),
    )
    assert not same_run(whole, go(script, variant, tmp_path / "parts"))


def test_the_parts_are_all_there_are(tmp_path):
    """What the tests above leave out, one by one, is what a state holds, and the meter:
    seconds add up over the processes."""
    for script, variant in (("train_skd", "fitnet"), ("train_okd", "okd")):
        folder = tmp_path / script
        go(script, variant, folder, stop=2)
        path = str(folder / "run_pair1_seed1.state.pt")
        state = load_file(path)
        assert set(state["parts"]) - {"meter"} <= {part for _, _, part in PARTS} and "meter" in state["parts"]
        state["parts"]["meter"]["seconds"] += 1000.0
        save_file(path, state)
        assert 1000 < go(script, variant, folder)[5]


@pytest.mark.parametrize("variant", ["takd", "sftn", "seqkd", "distillm2"])
def test_what_was_made_before_training_is_found(variant, tmp_path, monkeypatch):
    """Another teacher, and the teacher's answers, are not made a second time:
    its own steps are done, its answers kept."""
    whole = go("train_skd", variant, tmp_path / "whole")
    go("train_skd", variant, tmp_path / "parts", stop=2, every=2)
    inner = {"takd": "assistant", "sftn": "sftn"}.get(variant)
    if inner:
        state = load_file(str(tmp_path / "parts" / f"run_pair1_seed1.{inner}.state.pt"))
        assert state["step"] == {"takd": 12, "sftn": 4}[variant]
    else:
        monkeypatch.setattr(training, "sample_responses", None)
    assert same_run(whole, go("train_skd", variant, tmp_path / "parts"))


@pytest.mark.parametrize("variant,inner,stop", [("takd", "assistant", 7), ("sftn", "sftn", 3)])
def test_another_teacher_is_gone_on_with(variant, inner, stop, tmp_path, monkeypatch):
    """A run that ends while it makes its teacher goes on in the middle of that."""
    whole = go("train_skd", variant, tmp_path / "whole")
    save = Checkpointer.save

    def dies(self, step):
        save(self, step)
        if step == stop:
            raise processes.Stopped(signal.SIGTERM)

    monkeypatch.setattr(Checkpointer, "save", dies)
    assert go("train_skd", variant, tmp_path / "parts", every=1) is None
    monkeypatch.setattr(Checkpointer, "save", save)
    assert not (tmp_path / "parts" / "run_pair1_seed1.state.pt").exists()
    assert load_file(str(tmp_path / "parts" / f"run_pair1_seed1.{inner}.state.pt"))["step"] == stop
    assert same_run(whole, go("train_skd", variant, tmp_path / "parts"))


def test_pretraining_is_gone_on_with(tmp_path):
    """The pair's models, stopped in the middle, have the same weights as if they had not been; no state is left."""
    settings = pairs.PairSettings(teacher_shape=(1, 2, 8), student_shape=(1, 2, 8), teacher_steps=10, start_steps=10)
    data = pairs.encode_task(tiny_pair().task, settings)
    whole = pairs.load_or_pretrain_pair(data, settings, cache_dir=tmp_path / "whole", report=lambda line: None)
    for stop in (4, 8):  # once in each model's: lines come every second step
        lines = []

        def said(line, stop=stop, lines=lines):
            lines.append(line)
            if f"step {stop:>5}/10" in line and not (stop == 8 and any("student" in line for line in lines)):
                os.kill(os.getpid(), signal.SIGINT)

        with pytest.raises(processes.Stopped):
            pairs.load_or_pretrain_pair(data, settings, cache_dir=tmp_path / "parts", report=said)
    lines = []
    found = pairs.load_or_pretrain_pair(data, settings, cache_dir=tmp_path / "parts", report=lines.append)
    assert any("resumes after step 8" in line for line in lines) and found.fingerprint == whole.fingerprint
    assert sorted(path.suffix for path in (tmp_path / "parts").iterdir()) == [".pt", ".pt"]


# ---------------------------------------------------------------------------------------------------------------------
# What lies on the disk.


def flipped(data, place, bit=0):
    """The bytes with one bit changed."""
    return data[:place] + bytes([data[place] ^ 1 << bit]) + data[place + 1 :]


DAMAGES = {
    "cut short": lambda data: data[: len(data) // 2],
    "empty": lambda data: b"",
    "a flipped bit": lambda data: flipped(
        data, data.index(b"\x00\x00\x80\x3f") + 1 if b"\x00\x00\x80\x3f" in data else len(data) // 2
    ),
    "another file": lambda data: b"<html>proxy</html>",
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("both", [False, True])
def test_a_damaged_state_is_set_aside(damage, both, tmp_path):
    """It is named and kept under another name; the state before it is used, or the run begins anew: the same bits."""
    whole = go("train_skd", "on_policy", tmp_path / "whole")
    go("train_skd", "on_policy", tmp_path / "parts", stop=3, every=2)
    stem = tmp_path / "parts" / "run_pair1_seed1"
    newest, before = Checkpointer(str(stem), 2, {"steps": 4}).paths()
    assert (load_file(str(newest))["step"], load_file(str(before))["step"]) == (3, 2)
    for path in (newest, before) if both else (newest,):
        path.write_bytes(DAMAGES[damage](path.read_bytes()))
    said = []
    checkpointer = Checkpointer(str(stem), 1000, {"steps": 4}, said.append)
    assert (
        checkpointer.step == (0 if both else 2)
        and [line.split()[0] for line in said] == [newest.name, before.name][: 1 + both]
    )
    taken = "none is left, the run begins anew" if both else "the state after step 2 is used"
    assert all(line.endswith(taken) for line in said)
    assert (
        not newest.exists()
        and newest.with_name(f"{newest.name}.damaged").exists()
        and all("\n" not in line for line in said)
    )
    assert same_run(whole, go("train_skd", "on_policy", tmp_path / "parts", checkpointer=checkpointer))


def test_every_flipped_bit_is_noticed(tmp_path):
    """One bit anywhere in a file: it is refused, or what is read is what was saved (zip keeps
    bytes that mean nothing)."""
    content = {
        "step": 3,
        "weights": {"w": torch.randn(5, 3, generator=torch.Generator().manual_seed(0))},
        "text": "ä" * 40,
        "x": [1.5, None, True],
    }
    path, other = str(tmp_path / "a.pt"), tmp_path / "b.pt"
    save_file(path, content)
    whole, expected = open(path, "rb").read(), load_file(path)
    refused = 0
    places = torch.randperm(len(whole), generator=torch.Generator().manual_seed(1))[:400].tolist()
    places += range(whole.index(expected["weights"]["w"].numpy().tobytes()), len(whole), 97)
    for place in places:
        other.write_bytes(flipped(whole, place, place % 8))
        try:
            found = load_file(str(other))
        except ValueError as error:
            refused += 1
            assert "\n" not in str(error)
            continue
        assert (
            torch.equal(found["weights"].pop("w"), expected["weights"]["w"])
            and found["text"] == content["text"]
            and found["x"] == content["x"]
        )
    assert refused > 20


def test_another_runs_state_is_refused(tmp_path):
    """A state of other flags is not gone on with, and is left as it is; the line names flag and values."""
    go("train_skd", "sft", tmp_path / "run", stop=2)
    before = {path.name: path.read_bytes() for path in (tmp_path / "run").glob("*.pt")}
    with pytest.raises(ValueError, match="--steps 4, now it is 5") as error:
        Checkpointer(str(tmp_path / "run" / "run_pair1_seed1"), 2, {"steps": 5})
    assert "\n" not in str(error.value) and before == {
        path.name: path.read_bytes() for path in (tmp_path / "run").glob("*.pt")
    }


def test_a_reworded_row_goes_on():
    """A state fits a row whose note, deviation, paper or source was reworded, and no row of another loss or weight."""
    shared = {"flags": {"lr": 1.0}, "fingerprint": "a", "inputs": {}, "accept_top_k": 3, "processes": 1}

    def identity(**changes):
        row = dataclasses.asdict(dataclasses.replace(train_skd.VARIANTS["skd"], **changes))
        return compare.state_identity(shared, {"variant": "skd", "seed": 1, "budget": "steps", "row": row}, 10)

    whole = identity()
    assert identity(note="other words", deviation="none", paper=None, read_from="code") == whole
    assert identity(loss="reverse_kl") != whole and identity(kd_weight=0.5) != whole and set(whole["row"]) > {"writer"}


def test_a_finished_run_of_another_row_is_refused(tmp_path):
    """A table must not mix two rows of one name: the column is named. Prose may differ, and a rate where --lr was
    typed or swept."""
    row = train_skd.VARIANTS["skd"]

    def record(variant, flags, **changes):
        folder = tmp_path / f"{variant}{len(list(tmp_path.iterdir()))}"
        folder.mkdir()
        name = records.run_name(variant, 1, 1, "steps")
        changed = dataclasses.asdict(dataclasses.replace(row, **changes))
        header = {"variant": variant, "pair": 1, "seed": 1, "budget": "steps", "flags": flags, "row": changed}
        log = records.RunLog(folder, name, header)
        log.write("final", score=0.25)
        log.close()
        return records.read_finished(folder, name, flags, variants=train_skd.VARIANTS)

    for variant, flags, changes in (
        ("skd", {}, {"note": "other words", "read_from": "code"}),
        ("skd", {"lr": 0.1}, {"rate": 2.0}),
        ("skd lr=0.1", {}, {"rate": 2.0}),
        ("renamed", {}, {"rate": 2.0}),
    ):
        assert record(variant, flags, **changes)["score"] == 0.25, (variant, changes)
    for column, value in (("rate", 2.0), ("loss", "reverse_kl")):
        with pytest.raises(ValueError, match=rf"{column} {value} in the row of skd, now it is .*: give another --out"):
            record("skd", {}, **{column: value})


def test_changed_code_is_said_and_a_state_that_does_not_fit_is_named(tmp_path):
    """Other sources than those that saved: a warning, of a run within the run too; other parts:
    one line that says what to do."""
    go(
        "train_skd",
        "sft",
        tmp_path / "run",
        checkpointer=Checkpointer(
            str(tmp_path / "run" / "run_pair1_seed1"), 1, {"steps": 4}, sources={"losses.py": "1"}
        ),
    )
    stem = str(tmp_path / "run" / "run_pair1_seed1")
    assert Checkpointer(stem, 1, {"steps": 4}, sources={"losses.py": "1"}).warnings == []
    changed = Checkpointer(stem, 1, {"steps": 4}, sources={"losses.py": "2"})
    assert ["the code has changed" in text for text in changed.warnings] == [True]
    with pytest.raises(ValueError, match="does not fit this code .*: delete the run's states") as error:
        changed.restore(another=torch.Generator())
    changed.loop.close()
    assert "\n" not in str(error.value)


def test_seconds_of_a_preparation_are_kept(tmp_path):
    """What the assistant took before a stop is part of the run's seconds."""
    go("train_skd", "takd", tmp_path / "run", stop=2)
    path = str(tmp_path / "run" / "run_pair1_seed1.assistant.state.pt")
    state = load_file(path)
    state["parts"]["meter"]["seconds"] += 500.0
    save_file(path, state)
    (tmp_path / "run" / "run_pair1_seed1.state.pt").unlink()
    assert go("train_skd", "takd", tmp_path / "run")[5] > 500


def test_forgetting_is_of_one_run(tmp_path):
    """All states of the run and of runs within it go, those of others stay."""
    names = [
        "a_pair1_seed1.state.pt",
        "a_pair1_seed1.state.before.pt",
        "a_pair1_seed1.rank1.state.pt",
        "a_pair1_seed1.assistant.state.pt",
        "a_pair1_seed1.state.pt.12.partial",
    ]
    others = ["a_pair1_seed11.state.pt", "b_a_pair1_seed1.state.pt", "a_pair1_seed1.pt", "a_pair1_seed1.jsonl"]
    others += [
        "a_pair1_seed1.state.pt.damaged",
        "a_pair1_seed1.statement.txt",
        "a_pair1_seed1.state.pt.mine",
    ]  # set aside, or somebody's
    for name in names + others:
        (tmp_path / name).write_text("")
    checkpoints.forget(tmp_path / "a_pair1_seed1")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(others)


# ---------------------------------------------------------------------------------------------------------------------
# Records.


def test_a_seal_is_of_everything(tmp_path):
    """A record reads back; with any bit changed it is not a sealed one, and is set aside, never read."""
    log = records.RunLog(tmp_path, "a_pair1_seed1", {"flags": {"lr": 0.1}})
    log.write("step", step=1, loss=0.5)
    log.write("final", score=0.25)
    log.close()
    path = tmp_path / "a_pair1_seed1.jsonl"
    whole = path.read_bytes()
    assert records.read_finished(tmp_path, "a_pair1_seed1", {"lr": 0.1})["score"] == 0.25
    for place in range(len(whole) - 1):
        path.write_bytes(flipped(whole, place, place % 8))
        said = []
        try:
            found = records.read_finished(tmp_path, "a_pair1_seed1", {"lr": 0.1}, say=said.append)
        except ValueError as error:  # a flag's value in an unfinished record
            assert "was made with" in str(error)
            continue
        assert found is None, place
        assert said or path.exists()
        for aside in tmp_path.glob("*.damaged*"):
            aside.unlink()


def finished_record(folder, name="a_pair1_seed1", **header):
    """The path of a short record that has its final line."""
    log = records.RunLog(folder, name, {"flags": {"lr": 0.1}} | header)
    log.write("final", score=0.25)
    log.close()
    return folder / f"{name}.jsonl"


def test_another_format_is_refused(tmp_path):
    """Records and states of older code have no format number:
    one line, before anything is run, and they stay as they are."""
    log = records.RunLog(tmp_path, "a_pair1_seed1", {"flags": {}})
    log.write("final", score=0.5)
    log.close()
    path = tmp_path / "a_pair1_seed1.jsonl"
    assert records.read_finished(tmp_path, "a_pair1_seed1", {})["score"] == 0.5
    header, final = path.read_text().splitlines()
    assert json.loads(header)["format"] == records.FORMAT
    older = records.with_checksum(
        header.replace(f'"format": {records.FORMAT}, ', "") + "\n" + '{"kind": "final", "score": 0.5}'
    ) + "\n"
    path.write_text(older)
    with pytest.raises(
        ValueError, match="a_pair1_seed1.jsonl is of format 1, this code writes format 3: give another --out"
    ):
        records.read_finished(tmp_path, "a_pair1_seed1", {})
    assert path.read_text() == older
    stem = tmp_path / "b_pair1_seed1"
    with Checkpointer(str(stem), 1) as checkpointer:
        checkpointer.restore(weights=torch.nn.Linear(1, 1))
        checkpointer.save(1)
    state = load_file(f"{stem}.state.pt")
    save_file(f"{stem}.state.pt", {name: value for name, value in state.items() if name != "format"})
    with pytest.raises(ValueError, match="b_pair1_seed1.state.pt is of format 1"):
        Checkpointer(str(stem), 1)
    assert load_file(f"{stem}.state.pt").keys() == state.keys() - {"format"}


def test_a_record_under_another_name_is_refused(tmp_path):
    """What one method has done is no other's, be it that a file was renamed or copied: both names are told."""
    for variant, budget, name in (
        ("skd", "steps", "skd_pair1_seed2"),
        ("skd lr=0.1", "compute", "skd_lr=0.1_compute_pair1_seed2"),
    ):
        path = finished_record(tmp_path, name, variant=variant, pair=1, seed=2, budget=budget)
        assert records.read_finished(tmp_path, name, {"lr": 0.1})["score"] == 0.25
        for other in ("sft_pair1_seed2", "skd_pair1_seed3", "skd_compute_pair1_seed2"):
            path.rename(tmp_path / f"{other}.jsonl")
            with pytest.raises(ValueError, match=f"{other}.jsonl is the record of {name}: give it that name"):
                records.read_finished(tmp_path, other, {"lr": 0.1})
            path = (tmp_path / f"{other}.jsonl").rename(path)


def test_another_scripts_folder_is_refused(tmp_path):
    """The script is named before any flag in which the two differ; a flag that was not typed is called so."""
    path = finished_record(tmp_path, script="train_okd", flags={"alpha": 0.5, "gamma": None})
    whole = path.read_bytes()
    with pytest.raises(
        ValueError, match="a_pair1_seed1.jsonl was made by train_okd.py, this is train_skd.py: give another --out"
    ):
        records.read_finished(tmp_path, "a_pair1_seed1", {"lr": 0.1}, script="train_skd")
    with pytest.raises(ValueError, match="was made with --gamma not given, now it is 4: "):
        records.read_finished(tmp_path, "a_pair1_seed1", {"alpha": 0.5, "gamma": 4}, script="train_okd")
    assert path.read_bytes() == whole


@pytest.mark.parametrize("more", ["\n", "a note\n", '{"kind": "step"}\n'])
def test_a_line_behind_the_seal_is_noticed(tmp_path, more):
    """A finished record to which something was added is set aside and said to be, not written over."""
    path, said = finished_record(tmp_path), []
    whole = path.read_text() + more
    path.write_text(whole)
    assert records.read_finished(tmp_path, "a_pair1_seed1", {"lr": 0.1}, say=said.append) is None
    assert (
        "renamed to a_pair1_seed1.jsonl.damaged" in said[0]
        and (tmp_path / "a_pair1_seed1.jsonl.damaged").read_text() == whole
    )


def test_sealed_words_are_no_record(tmp_path):
    """A file with a seal that fits and no header is nobody's damaged record: it is named, and left."""
    for first in ("[1]", "17", '{"flags": 1}'):
        (tmp_path / "a_pair1_seed1.jsonl").write_text(records.with_checksum(f'{first}\n{{"kind": "final"}}') + "\n")
        with pytest.raises(ValueError, match="a_pair1_seed1.jsonl is no record of this project"):
            records.read_finished(tmp_path, "a_pair1_seed1", {"lr": 0.1})


def test_a_pipe_is_no_record(tmp_path):
    """Reading it would wait for ever: it is named."""
    os.mkfifo(tmp_path / "a_pair1_seed1.jsonl")
    with pytest.raises(ValueError, match="a_pair1_seed1.jsonl is no file"):
        records.read_finished(tmp_path, "a_pair1_seed1", {"lr": 0.1})
    os.mkfifo(tmp_path / "b_pair1_seed1.state.pt")
    assert Checkpointer(str(tmp_path / "b_pair1_seed1"), 1, {}).step == 0
    os.mkfifo(tmp_path / ".lock")
    with folders.locked(tmp_path / ".lock") as alone:
        assert alone


@pytest.mark.parametrize("lost", ["moved", "emptied", "another"])
def test_a_record_whose_folder_was_moved_is_written_anew(tmp_path, lost):
    """At its end the whole record lies where it was asked for, and nobody else's file is written to."""
    folder = tmp_path / "out"
    folder.mkdir()
    log = records.RunLog(folder, "a_pair1_seed1", {"flags": {}})
    log.write("step", step=1)
    if lost == "moved":
        folder.rename(tmp_path / "moved")
    else:
        log.path.unlink()
    if lost == "another":
        log.path.write_text("somebody's")
    log.write("step", step=2)
    log.write("final", score=1.0)
    log.close()
    text = log.path.read_text()
    assert records.has_checksum(text.removesuffix("\n")) and text.count('"kind": "step"') == 2


@pytest.mark.parametrize("reason", [errno.EACCES, errno.EIO, errno.EMFILE])
def test_a_file_that_cannot_be_read_is_not_damaged(tmp_path, monkeypatch, reason):
    """A disk or a system that refuses says nothing about what a file holds: nothing is set aside or made anew."""
    go("train_skd", "sft", tmp_path / "run", stop=2)
    path = tmp_path / "run" / "run_pair1_seed1.state.pt"
    before = path.read_bytes()
    save_checkpoint(str(tmp_path / "model.pt"), tiny_pair().teacher, None)

    def refuses(*args, **kwargs):
        raise OSError(reason, os.strerror(reason))

    monkeypatch.setattr(torch, "load", refuses)
    for read in (
        lambda: Checkpointer(str(tmp_path / "run" / "run_pair1_seed1"), 1, {"steps": 4}),
        lambda: load_checkpoint(str(tmp_path / "model.pt")),
    ):
        with pytest.raises(OSError) as error:
            read()
        assert error.value.errno == reason
    assert [file.name for file in tmp_path.glob("run/*.pt*")] == [path.name] and path.read_bytes() == before


def test_a_planted_link_is_not_written_through(tmp_path):
    """A folder from elsewhere may hold links under the names that files have while they are written."""
    victim = tmp_path / "victim"
    victim.write_text("precious")
    for name in ("a.pt", "a_pair1_seed1.jsonl"):
        (tmp_path / f"{name}.{os.getpid()}.partial").symlink_to(victim)
        (tmp_path / name).symlink_to(victim)
    save_file(str(tmp_path / "a.pt"), {"x": 1})
    finished_record(tmp_path)
    assert load_file(str(tmp_path / "a.pt")) == {"x": 1} and victim.read_text() == "precious"
    assert folders.write_error(tmp_path) is None and folders.write_error(victim) is not None


def test_a_record_goes_on_behind_its_text(tmp_path):
    """What another process had written stands again, whatever became of the file, and the seal is of the whole."""
    log = records.RunLog(tmp_path, "a_pair1_seed1", {"flags": {}})
    log.write("step", step=1)
    state = log.state_dict()
    log.write("step", step=2)
    log.close()
    again = records.RunLog(tmp_path, "a_pair1_seed1", {"flags": {}, "other": 1})
    again.load_state_dict(state)
    again.write("step", step=2, again=True)
    again.write("final", score=1.0)
    again.close()
    lines = (tmp_path / "a_pair1_seed1.jsonl").read_text().splitlines()
    assert (
        [json.loads(line).get("step") for line in lines] == [None, 1, 2, None]
        and "again" in lines[2]
        and "other" not in lines[0]
    )
    assert records.has_checksum("\n".join(lines))
