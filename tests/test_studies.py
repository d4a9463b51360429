"""The studies: what is told before one runs, what is left of it, and that one that fails does not stop the others."""

import functools
import json
import shlex
import signal
import sys

import pytest
from test_report import write_records

import train_okd
import train_skd
from lab import folders, pairs, reading, records, studies
from lab.archive import PACKED

SCRIPTS = {"train_skd.py": train_skd, "train_okd.py": train_okd}


@pytest.fixture
def runner(tmp_path, monkeypatch):
    """A root of one's own, where a study's command writes the records of two methods and three pairs, or fails."""
    calls = []

    def run(words, folder):
        calls.append(words)
        out = tmp_path / "runs" / "studies" / words[words.index("--out") + 1].rsplit("/", 1)[1]
        out.mkdir(parents=True, exist_ok=True)
        broken = "broken" in out.name
        if not broken:
            write_records(out, ["supervised", "skd"], 1, pairs=3)
        return int(broken)

    rows = {
        "one": studies.Study("Does it work?", "train_skd.py --pairs 3", 1, 5),
        "broken": studies.Study("Does it fail?", "train_okd.py", 2, 5, needs="scan"),
    }
    monkeypatch.setattr(studies, "STUDIES", rows)
    monkeypatch.setattr(studies, "run_program", run)
    monkeypatch.setattr(studies.folders, "ROOT", tmp_path)
    monkeypatch.setattr(studies.run_study, "__defaults__", (None, None, tmp_path))
    monkeypatch.setattr(studies.about, "__defaults__", (tmp_path,))
    return calls


def test_a_study_leaves_three_files(runner, tmp_path, capsys):
    """Its question, command and time are told first; made again, it says the same."""
    assert studies.main(["one"]) == 0
    told = capsys.readouterr().out
    assert all(text in told for text in ("Does it work?", "python train_skd.py --pairs 3", "1 minutes"))
    made = tmp_path / "results" / "one"
    before = {path.name: path.read_bytes() for path in made.iterdir()}
    assert set(before) == {"README.md", "curves.svg", PACKED}
    assert b"Does it work?" in before["README.md"] and b"| skd" in before["README.md"]
    assert {run.pair for run in reading.read_records(made)} == {1, 2, 3}
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


def test_records_that_make_no_study_do_not_stop_the_others(runner, tmp_path, capsys):
    """A page without its markers: one line, and the next study is made."""
    (tmp_path / "results" / "one").mkdir(parents=True)
    (tmp_path / "results" / "one" / "README.md").write_text("no markers")
    studies.STUDIES["two"] = studies.STUDIES["one"]
    assert studies.main(["one", "two"]) == 1
    told = capsys.readouterr().err.splitlines()
    assert len(told) == 2 and "one is not whole" in told[1] and "runs/studies/one" in told[1]
    assert (tmp_path / "results" / "two" / PACKED).exists()


STOPPED = """
import os, signal, sys, time
signal.signal(signal.{name}, lambda *_: None)
os.kill(os.getppid(), signal.{name})
time.sleep(0.5)
open("saved", "w").close()
"""


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_a_stopped_study_is_waited_for(tmp_path, capsys, name):
    """Both hear of the signal: the study's program has the time to save, then no other study is begun."""
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(SystemExit) as stop:
        studies.run_program([sys.executable, "-c", STOPPED.format(name=name)], tmp_path)
    assert stop.value.code == 128 + getattr(signal, name) and (tmp_path / "saved").exists()
    assert f"stopped by {name}: the same command goes on" in capsys.readouterr().err
    assert signal.getsignal(signal.SIGINT) is before


def test_a_program_s_status_is_told(tmp_path):
    """0 is the only status of a whole study."""
    assert [studies.run_program([sys.executable, "-c", f"exit({n})"], tmp_path) for n in (0, 3)] == [0, 3]


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
    """The flags of a study exist; its pairs are several, but for a first look at everything: development pairs below
    100, others from 101 on."""
    script, *words = shlex.split(studies.STUDIES[name].command)
    args, names = SCRIPTS[script].parse_flags(words)
    assert names and (args.pairs >= 3 or name.startswith("catalogue")) and args.seed == args.pair_seed
    assert args.pair_seed >= 101 or args.pair_seed + args.pairs <= 100, "no study mixes both kinds of pairs"
    assert "--pair-seed" in words


# ---------------------------------------------------------------------------------------------------------------------
# Committed studies.

MADE = [name for name in studies.STUDIES if (folders.ROOT / "results" / name / PACKED).exists()]
ONLY_OKD = ("fixed_reverse_kl", "minillm", "okd", "okd_no_feedback")


def means_of(name):
    """{method: {swept values: mean over the development pairs of (greedy + sampled) / 2 on validation examples}}."""
    found = {}
    for run in reading.read_records(folders.ROOT / "results" / name):
        method, swept = run.variant.split(" ", 1)
        last = run.evals[-1]
        found.setdefault(method, {}).setdefault(swept, []).append((last["score"] + last["score_sampled"]) / 2)
    words = studies.STUDIES[name].command.split()
    number = int(words[words.index("--pairs") + 1])
    assert {len(values) for scores in found.values() for values in scores.values()} == {number}
    return {m: {swept: sum(values) / number for swept, values in scores.items()} for m, scores in found.items()}


@pytest.mark.parametrize("names,rows,methods", [
    ("rates", train_skd.VARIANTS, train_skd.MAIN), ("rates-okd", train_okd.VARIANTS, ONLY_OKD),
    ("rates-gradients", train_skd.VARIANTS, ("fdistill_rkl", "opd", "exopd", "iw_opd", "kdrl")),
    ("rates-hints rates-own-teacher", train_skd.VARIANTS,
     ("context_kd", "context_on_policy", "opsd", "opsd_live", "sdft", "sdpo")),
])  # fmt: skip
def test_rates_are_what_the_study_found(names, rows, methods):
    """A method's rate is the one with the best mean over development pairs, as a multiple of the size's."""
    found = {}
    for name in names.split():
        for method, scores in means_of(name).items():
            found.setdefault(method, {}).update(scores)
    assert set(found) == set(methods)
    for method, scores in found.items():
        best = float(max(scores, key=scores.get).removeprefix("lr="))
        told = f"{method}: its rate should lead to {best}"
        assert pairs.SIZES["tiny"]["lr"] * rows[method].rate == pytest.approx(best), told


def test_both_scripts_train_a_method_at_one_rate():
    """What they share has one rate, and all others of OKD's comparison are in a study of their own."""
    same = {"sft": "sft", "supervised": "fixed_forward_kl", "imitkd": "imitkd", "gkd": "gkd"}
    for one, other in same.items():
        assert train_skd.VARIANTS[one].rate == train_okd.VARIANTS[other].rate, other
    assert {*same.values(), *ONLY_OKD} == set(train_okd.MAIN)


def test_the_module_is_what_the_study_found():
    """OKD's alpha and its module's rate are those with the best mean over development pairs."""
    (scores,) = means_of("okd-module").values()
    values = dict(knob.split("=") for knob in max(scores, key=scores.get).split())
    found = {"alpha": float(values["alpha"]), "module_lr": float(values["module-lr"])}
    assert {name: train_okd.DEFAULTS[name] for name in found} == found


class EnoughSeen(Exception):
    """The first logged steps are there."""


def pair_of(name):
    """The script and the first pair of a study."""
    script, *words = shlex.split(studies.STUDIES[name].command)
    return script, int(words[words.index("--pair-seed") + 1])


def asks_the_teacher(name, method):
    """Whether a method of a study asks the pair's teacher."""
    row = SCRIPTS[pair_of(name)[0]].VARIANTS[method]
    return method != "sft" and getattr(row, "teacher", "pair") != "start"


def rerun(name, method, folder, monkeypatch):
    """The record of a study's first run of `method`, and the lines of the first steps of that run, made again from
    nothing but pairs that lie in the folder. (Who learns from no teacher or from its own start needs none: it is not
    trained.)"""
    of_method = [run for run in reading.read_records(folders.ROOT / "results" / name)
                 if run.variant.split()[0] == method and run.budget == "steps"]  # fmt: skip
    recorded = min(of_method, key=lambda run: (run.pair, run.seed, run.variant))
    train, load, write = pairs.pretrain, pairs.load_or_pretrain_pair, records.RunLog.write
    asks_none = not asks_the_teacher(name, method)

    def pretrain(model, *args):
        is_teacher = model.config.n_embd == pairs.PairSettings().teacher_shape[2]
        return model.eval() if asks_none and is_teacher else train(model, *args)

    def until_enough(log, kind, **figures):
        write(log, kind, **figures)
        if kind == "step" and figures["step"] > 40:
            raise EnoughSeen

    out, cache = folder / name, folder / ("no-teacher" if asks_none else "pairs")
    script, *words = shlex.split(studies.STUDIES[name].command)
    while "--sweep" in words:
        del words[words.index("--sweep") : words.index("--sweep") + 2]
    words = [word for word in words if word != "--equal-compute"]  # one run has no other to be equal to
    words += [word for swept in recorded.variant.split()[1:] for word in ("--sweep", swept)]
    with monkeypatch.context() as patch:
        patch.setattr(pairs, "pretrain", pretrain)
        patch.setattr(pairs, "load_or_pretrain_pair", functools.partial(load, cache_dir=cache))
        patch.setattr(records.RunLog, "write", until_enough)
        SCRIPTS[script].main([*words, "--pairs", "1", "--variants", method, "--jobs", "1", "--out", str(out)])
    (path,) = out.glob("*.jsonl")
    return recorded, list(map(json.loads, path.read_text().splitlines()))


# Their teacher is a third one to be pretrained here; what they chose is bound to their records above. Nor are studies
# of real data repeated, whose files are not part of the repository.
ONLY_SETTINGS = ("start", "okd-module", "rates-okd", "rates-gradients", "rates-hints", "rates-own-teacher")
REPEATED = [name for name in MADE if name not in ONLY_SETTINGS and not studies.STUDIES[name].needs]


@pytest.mark.slow
@pytest.mark.parametrize("script, first", sorted({pair_of(name) for name in REPEATED}))
def test_records_are_current(script, first, tmp_path, monkeypatch):
    """The first logged steps of one run of each study that begins with this pair, made again from nothing, are those
    of its record: to rounding on the kind of machine that made it, nearly so elsewhere."""
    for name in (name for name in REPEATED if pair_of(name) == (script, first)):
        methods = dict.fromkeys(
            run.variant.split()[0] for run in reading.read_records(folders.ROOT / "results" / name)
        )
        main = {"skd-math": "skd", "okd-math": "okd", "hints": "sdft", "hints-weak-start": "opsd"}.get(name)
        method = main or ("sft" if "sft" in methods else list(methods)[-1])
        recorded, (header, *lines) = rerun(name, method, tmp_path, monkeypatch)
        steps = [line for line in lines if line["kind"] == "step"]
        # On another kind of CPU pretraining ends elsewhere: then all is near, and no more than that.
        same_start = steps[0]["loss"] == pytest.approx(recorded.steps[0]["loss"], rel=1e-6)
        near = {"rel": 1e-5} if same_start else {"rel": 0.3, "abs": 0.1}
        assert [[line["step"] for line in lines] for lines in (steps, recorded.steps[:3])] == [[1, 21, 41]] * 2
        for line, other in zip(steps, recorded.steps):
            assert line["loss"] == pytest.approx(other["loss"], **near), f"run python -m lab.studies {name} again"
        if asks_the_teacher(name, method):
            for which in ("teacher", "student_start"):
                assert header[which]["score"] == pytest.approx(recorded.header[which]["score"], **near), (name, which)
