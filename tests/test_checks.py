"""Laws of lab/checks.py: planted faults are named before they cost a run, and sound runs are left in peace."""

import math
import re
import types
from pathlib import Path

import pytest
import torch
from test_train_skd import SMALL, cached_pairs, lines_of  # noqa: F401
from tiny import Watched, distilled, flags, pair, tiny_pair  # noqa: F401

import losses
import train_okd
import train_skd
from lab import checks, compare, reading, training
from lab.checkpoints import Checkpointer
from lab.records import NoLog, RunLog
from lab.training import batch_order
from losses import HiddenStates, masked_mean
from model import clip_and_step, load_file

FINAL = {"eos_share": 1.0, "student_entropy": 0.2, "teacher_entropy": 0.2, "score": 0.5}


def logits(*rows):
    return torch.tensor([rows]).log()


def loss_of(divergence):
    return lambda student_logits, teacher_logits: masked_mean(
        divergence(student_logits, teacher_logits), torch.ones(1, 2, dtype=torch.bool)
    )


STUDENT, TEACHER = logits((0.2, 0.5, 0.3), (0.3, 0.3, 0.4)), logits((0.6, 0.3, 0.1), (0.1, 0.1, 0.8))


@pytest.mark.parametrize("name", losses.DIVERGENCES)
def test_every_divergence_is_sound(name):
    """Logits, and features with their head: no complaint, and no gradient is left behind."""
    divergence = losses.DIVERGENCES[name]
    assert checks.check_signal(loss_of(divergence), STUDENT, TEACHER, is_divergence=True) is None
    noise = torch.Generator().manual_seed(0)
    own, other = (
        HiddenStates(torch.randn(1, 2, 4, generator=noise), torch.randn(5, 4, generator=noise)) for _ in range(2)
    )

    def by_chunks(student_logits, teacher_logits):
        return losses.by_chunks(divergence, student_logits, teacher_logits)

    assert checks.check_signal(loss_of(by_chunks), own, other, is_divergence=False) is None
    assert own.features.grad is None and not STUDENT.requires_grad


WRONG = {
    "ignores its teacher": (lambda s, t: losses.forward_kl(s, s.detach().roll(1, -1)),
                            "does not depend on the teacher"),
    "entropy alone": (lambda s, t: losses.entropy(s), "does not depend on the teacher"),
    "sign": (lambda s, t: -losses.forward_kl(s, t), "not smallest where"),
    "shifted by a row": (lambda s, t: losses.forward_kl(s, t.roll(1, 1)), "not smallest where"),
    "mixture of the wrong kind": (lambda s, t: losses.forward_kl(s, (t + 1).relu()), "not smallest where"),
    "softened on one side": (lambda s, t: losses.forward_kl(s, t / 2), "not smallest where"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_loss_is_refused(name):
    """What a modified loss gets wrong is said in one line."""
    divergence, word = WRONG[name]
    with pytest.raises(ValueError, match=word) as error:
        checks.check_signal(loss_of(divergence), STUDENT, TEACHER, is_divergence=True)
    assert "\n" not in str(error.value)


def test_what_has_no_gradient_is_a_warning():
    """A constant, a loss of a closed gate, and one that has cut its graph."""
    for divergence in (lambda s, t: 0 * losses.forward_kl(s, t), lambda s, t: losses.forward_kl(s.detach(), t)):
        assert "no gradient" in checks.check_signal(loss_of(divergence), STUDENT, TEACHER, is_divergence=False)
    gated = checks.check_signal(
        loss_of(lambda s, t: losses.entropy(s)), STUDENT, TEACHER, is_divergence=False, has_gate=True
    )
    assert "gate is closed" in gated


PLANTED = {
    "supervised": "forward_kl",
    "bild": "bidirectional_logit_differences",
    "dkd": "decoupled_kd",
    "opd": "policy_gradient",
}


@pytest.mark.parametrize("variant", PLANTED)
def test_a_run_with_a_deaf_loss_ends_at_once(pair, variant, monkeypatch):  # noqa: F811
    """Whatever the table of its loss: a loss that has lost its teacher does not survive the first step of a run."""
    table = next(
        table
        for table in (losses.DIVERGENCES, losses.MATCHING_LOSSES, losses.TOKEN_LOSSES, losses.SEQUENCE_LOSSES)
        if PLANTED[variant] in table
    )
    monkeypatch.setitem(table, PLANTED[variant], lambda student_logits, *rest, **hyper: losses.entropy(student_logits))
    with pytest.raises(ValueError, match="does not depend on the teacher"):
        Watched(train_skd.VARIANTS[variant], pair, flags())


def test_a_deaf_loss_of_the_other_script(pair, monkeypatch):  # noqa: F811
    args = flags(script=train_okd)
    monkeypatch.setitem(
        train_okd.DIVERGENCES, "forward_kl", lambda student_logits, teacher_logits: losses.entropy(student_logits)
    )
    with pytest.raises(ValueError, match="does not depend on the teacher"):
        distilled(train_okd, train_okd.VARIANTS["okd"], pair.new_student(), pair, args, log=Told())


class Told:
    """A log that keeps the warnings."""

    def __init__(self):
        self.warnings = []

    def write(self, kind, **figures):
        if kind == "warning":
            self.warnings.append(figures["text"])


def test_a_teacher_that_moves_is_noticed(monkeypatch):
    """An optimizer that was given the teacher as well: the run ends after its first step, in both scripts."""
    for script, variant in ((train_skd, "supervised"), (train_okd, "okd")):
        own, args, step = tiny_pair(), flags(script=script), clip_and_step

        def moves_all(model, optimizer, rate, own=own, step=step):
            with torch.no_grad():
                own.teacher.norm.bias += 1e-4
            return step(model, optimizer, rate)

        monkeypatch.setattr(training, "clip_and_step", moves_all)
        with pytest.raises(ValueError, match="the teacher's own weights moved"):
            distilled(script, script.VARIANTS[variant], own.new_student(), own, args, log=Told())


def test_a_student_that_does_not_move_is_warned_of(pair, monkeypatch):  # noqa: F811
    """An update that changes no weight: said in the record and to the user, and the run goes on."""
    log, said = Told(), []
    monkeypatch.setattr(training, "clip_and_step", lambda model, optimizer, rate: torch.zeros(()))
    distilled(train_skd, train_skd.VARIANTS["sft"], pair.new_student(), pair, flags(), log=log, report=said.append)
    assert log.warnings == ["the first step moved no weight of the student: raise --lr"]
    assert [line for line in said if "warning" in line] == [f"  warning: {log.warnings[0]}"]


def test_sums_tell_any_change():
    """One weight moved by a rounding step, two exchanged within a tensor of equal sum: seen; nothing moved: equal."""
    student = tiny_pair().new_student()
    before = checks.weight_sums(student)
    assert torch.equal(before, checks.weight_sums(student))
    with torch.no_grad():
        weight = student.token_embedding.weight
        weight[3, 2] = torch.nextafter(weight[3, 2], torch.tensor(9.0))
    assert not torch.equal(before, checks.weight_sums(student))
    with torch.no_grad():
        weight[3, 2] = torch.nextafter(weight[3, 2], torch.tensor(-9.0))
        weight[0, 0] += 0.25
        weight[0, 1] -= 0.25
    assert not torch.equal(before, checks.weight_sums(student))


def steps(**figures):
    return [{"kind": "step"} | figures] * 3


@pytest.mark.parametrize("rule,rate", [("all", 1.0), ("none", 0.0)])
def test_a_rule_that_always_says_the_same_is_meant(rule, rate):
    """Who asks for all or none of the proposals is not told that all or none were accepted;
    the other way round he is."""
    assert checks.about_run("interleaved", rule, steps(accept_rate=rate), FINAL) == []
    assert len(checks.about_run("interleaved", rule, steps(accept_rate=1 - rate), FINAL)) == 1


@pytest.mark.parametrize("writer,logged,final,word", [
    ("interleaved", steps(accept_rate=1.0), {}, "lower --accept-top-k"),
    ("interleaved", steps(accept_rate=0.0), {}, "raise --accept-top-k"),
    ("student", steps(eos_share=0.0, student_eos_share=0.0), {}, "cut at the budget"),
    ("mixed", steps(eos_share=0.5, student_eos_share=0.0), {}, "cut at the budget"),
    ("dataset", steps(eos_share=1.0), {"eos_share": 0.0}, "never ends a response"),
    ("student", steps(eos_share=1.0), {"student_entropy": 0.001}, "collapsed to 0.0010 nats"),
])  # fmt: skip
def test_each_warning_has_its_reason(writer, logged, final, word):
    """One figure out of order, one warning that says what to do; one step in order is enough to take it back."""
    (found,) = checks.about_run(writer, "topk", logged, FINAL | final)
    assert word in found and "\n" not in found
    if not final:
        other = [*logged, {"kind": "step", "accept_rate": 0.5, "eos_share": 0.5, "student_eos_share": 0.5}]
        assert checks.about_run(writer, "topk", other, FINAL) == []
    assert (
        checks.about_run(writer, "topk", [], FINAL)
        == []
        == checks.about_run("dataset", "topk", steps(eos_share=0.0), FINAL)
    )


def test_a_figure_that_is_missing_or_null_warns_of_nothing():
    """Of a batch of references alone there is no share of the student's rows, and no rate where nothing was judged."""
    by_turns = [*steps(eos_share=1.0, accept_rate=None), *steps(eos_share=0.0, student_eos_share=0.0)]
    (found,) = checks.about_run("mixed", "topk", by_turns, FINAL)
    assert "cut at the budget" in found
    assert checks.about_run("mixed", "topk", steps(eos_share=0.0, accept_rate=None), FINAL) == []
    assert checks.about_run("student", "topk", [], FINAL | {"teacher_entropy": None}) == []


def test_warnings_about_the_start():
    """A teacher below its student, below its gate, or without an end."""
    good, bad = {"score": 0.9, "eos_share": 1.0}, {"score": 0.1, "eos_share": 0.5}
    assert checks.about_start(good, bad, True) == [] == checks.about_start(bad, bad, False)
    assert "worse than the student" in checks.about_start(bad, good, True)[0]
    assert "below 0.5" in checks.about_start(bad, bad, True)[0]
    assert "never ends" in checks.about_start(good | {"eos_share": 0.0}, bad, True)[0]


def test_committed_runs_are_left_in_peace():
    """Of all records that are committed, okd_collapse is warned of, where it is there, and nothing else:
    the thresholds stand where they should."""
    warned, seen = set(), set()
    for folder in (Path(train_skd.__file__).parent / "results").glob("*kd-*"):
        for run in reading.read_records(folder):
            seen.add(run.variant)
            row = run.header["row"]
            swept = dict(text.split("=", 1) for text in run.variant.split()[1:])
            rule = row.get("sampling", {}).get("accept_rule", swept.get("accept-rule", "topk"))
            if checks.about_run(row["writer"], rule, run.steps, FINAL | run.final):
                warned.add(run.variant)
            teacher, start = FINAL | run.header["teacher"], run.header["student_start"]
            assert checks.about_start(teacher, start, run.header["task"] == "math") == []
    assert warned == {"okd_collapse"} & seen


def test_a_warning_reaches_record_line_and_table(cached_pairs, tmp_path, capsys):  # noqa: F811
    """--accept-top-k as large as the vocabulary: said once the run ends, in its record, and above the table, which is
    not printed; two rollouts are, and where the page lies."""
    argv = [*SMALL, "--variants", "skd", "--accept-top-k", "257", "--out", str(tmp_path / "out")]
    assert train_skd.main(argv) == 0
    final = lines_of(tmp_path / "out" / "skd_pair1_seed1.jsonl")[-1]
    assert any("lower --accept-top-k" in text for text in final["warnings"])
    out = capsys.readouterr().out
    assert out.count("  warning: every proposal was accepted") == 1 and "greedy" not in out
    assert out.count("\nbefore   ") == out.count("\nafter    ") == 2 and "after 2 updates:" in out
    page = re.search(r" s in all; the page:\s+(\S+)", out)[1]
    assert Path(page).exists() and max(map(len, out.replace(page, "").split("\n"))) <= 100
    assert "- skd seed 1: warning: every proposal was accepted" in (tmp_path / "out" / "table.md").read_text()


def test_a_sum_that_is_not_finite_is_never_saved(pair, tmp_path):  # noqa: F811
    """Logged or not: before a state is written its run is asked, and a broken one keeps the state before."""
    args = flags("--steps", "6", "--log-every", "1000", "--lr", "0.05")
    saved, student = [], pair.new_student()
    checkpointer = Checkpointer(str(tmp_path / "run_pair1_seed1"), 2, {})
    save = checkpointer.save

    def save_and_break(step):
        save(step)
        saved.append(step)
        with torch.no_grad():
            student.norm.bias[0] = math.nan

    class Quiet(Told):
        state_dict = load_state_dict = lambda self, *state: {}

    checkpointer.save = save_and_break
    with pytest.raises(ValueError, match="not finite at step 3 .*the state after 2 steps"), checkpointer:
        row = train_skd.VARIANTS["supervised"]
        distilled(train_skd, row, student, pair, args, log=Quiet(), checkpointer=checkpointer)
    assert saved == [2] and all(
        bool(w.isfinite().all())
        for w in load_file(str(tmp_path / "run_pair1_seed1.state.pt"))["parts"]["student"].values()
    )


@pytest.mark.parametrize("where", ["writing", "measuring", "learning"])
@pytest.mark.parametrize("script, variant",
                         [(train_skd, "on_policy"), (train_skd, "skd"),
                          (train_okd, "okd_on_policy"), (train_okd, "minillm")],
                         ids=lambda value: getattr(value, "__name__", value))  # fmt: skip
def test_a_sampler_that_meets_broken_logits_names_the_step(
    pair, monkeypatch, tmp_path, script, variant, where  # noqa: F811
):
    """A student that breaks before it writes, or where it is measured: the step under way and its batch; one that broke
    a step before, while it learned: that one and its batch. The record ends with the last whole line."""
    args = flags("--steps", "30", "--log-every", "1000", script=script)
    row = script.VARIANTS[variant]
    student, calls, log = pair.new_student(), [], RunLog(tmp_path, "run_pair1_seed1", {})

    def breaks(function, number, before=True):
        def call(*arguments, **keywords):
            calls.append(number)
            result = None if before else function(*arguments, **keywords)
            if len(calls) == number:
                with torch.no_grad():
                    student.norm.bias[0] = math.nan
            return function(*arguments, **keywords) if before else result

        return call

    if where == "measuring":  # before the first step, and in every third
        monkeypatch.setattr(compare, "validation", breaks(compare.validation, 3))
    else:
        monkeypatch.setattr(training, "write_tokens", breaks(training.write_tokens, 5, before=where == "writing"))
    wrong = {"writing": 5, "measuring": 6, "learning": 5}[where]
    with pytest.raises(ValueError) as error:
        distilled(script, row, student, pair, args, log=log)
    log.close()
    order = batch_order(len(pair.train.prompts), 4, 30, torch.Generator().manual_seed(1)).tolist()
    batch, words = ", ".join(map(str, order[wrong - 1])), str(error.value)
    assert f" step {wrong} (train examples {batch})" in words and "; kept: the record so far" in words
    assert "--lr" in str(error.value) and lines_of(tmp_path / "run_pair1_seed1.jsonl")[-1]["step"] == 3


@pytest.mark.parametrize("chunked", ["no", "yes"])
@pytest.mark.parametrize("whose", ["teacher", "student"])
def test_nan_before_the_response_changes_no_bit(pair, monkeypatch, whose, chunked):  # noqa: F811
    """A model may say nan where nobody is asked, as one whose padding sees nothing: the same student, to the bit."""
    args, weights, logits = flags("--steps", "3", "--chunk-loss", chunked), [], training.Run.logits

    def nan_at_the_first_token(run, forward, tokens, model):
        found = logits(run, forward, tokens, model)
        if (model is run.student) != (whose == "student"):
            return found
        first = torch.zeros(tokens.size(1), 1)
        first[0] = math.nan
        return found._replace(features=found.features + first) if isinstance(found, HiddenStates) else found + first

    for function in (logits, nan_at_the_first_token):
        monkeypatch.setattr(training.Run, "logits", function)
        student = pair.new_student()
        distilled(train_skd, train_skd.VARIANTS["supervised"], student, pair, args)
        weights.append([weight.detach().clone() for weight in student.parameters()])
    assert all(torch.equal(one, other) for one, other in zip(*weights))


def test_an_error_in_a_step_is_short_and_true():
    """Four numbers of a batch are enough; what is not on disk is not said to be kept."""
    order = torch.arange(128).view(2, 64)

    def line(step, log):
        finite = checks.Finite(order, types.SimpleNamespace(step=step), "--lr (0.05)", torch.device("cpu"), log)
        finite.see(1, torch.tensor(math.nan))
        with pytest.raises(ValueError) as error:
            finite.check()
        return str(error.value)

    begins = "loss or gradient is not finite at step 2 (train examples 64, 65, 66, 67 and 60 more): lower --lr (0.05)"
    assert line(0, NoLog()) == begins  # a notebook
    record = types.SimpleNamespace(path="skd_pair1_seed1.jsonl")
    assert line(0, record) == f"{begins}; kept: the record so far"
    assert line(1, record) == f"{begins}; kept: the record so far and the state after 1 steps"
