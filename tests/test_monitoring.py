"""What a run tells of itself on the way: step 0, overlap and entropy gap, acceptance by position, where the time went,
and rollouts on held-out prompts. None of it changes what is learned."""

import ast
import json
import signal
from pathlib import Path
from types import SimpleNamespace

import adapters
import pytest
import torch
from tiny import (
    Watched,
    distance,
    flags,
    generator,
    matrix,
    pair,  # noqa: F401
    same_weights,
    sharp_gpt,
    tiny_pair,
    weights_of,
)

import train_okd
import train_skd
from data.tokenizer import Tokenizer
from lab import compare, costs, evaluate, held_out, processes, records
from lab.checkpoints import Checkpointer
from lab.monitoring import step_columns, step_figures
from losses import entropy
from model import OnlineTeacher
from sample import STUDENT, TEACHER, interleaved_generate
from train_skd import VARIANTS

STUDENT_ROW, TEACHER_ROW = (torch.tensor(row).log() for row in ([0.2, 0.5, 0.3], [0.6, 0.3, 0.1]))


# ---------------------------------------------------------------------------------------------------------------------
# Overlap and gap.


@pytest.mark.parametrize("best, wanted", [(1, 0.0), (2, 0.5), (3, 1.0), (9, 1.0)])
def test_overlap_of_the_example(best, wanted):
    """The likeliest: 0 against 1; the two likeliest: 0 1 against 1 2; all three, and more than there are: the same."""
    assert evaluate.topk_overlap(STUDENT_ROW, TEACHER_ROW, best).item() == wanted


def test_overlap_is_that_of_two_sets():
    """Counted by sorting; a row against itself has 1, whatever was added to it or multiplied with it."""
    student_logits, teacher_logits = torch.randn(2, 3, 5, 11, generator=generator())
    for best in range(1, 12):
        found = evaluate.topk_overlap(student_logits, teacher_logits, best)
        for b in range(3):
            for t in range(5):
                both = student_logits[b, t], teacher_logits[b, t]
                one, other = (set(row.argsort(descending=True)[:best].tolist()) for row in both)
                assert found[b, t].item() == pytest.approx(len(one & other) / best)
        assert (evaluate.topk_overlap(2 * student_logits + 1, student_logits, best) == 1).all()


def test_what_ties_at_the_last_place_is_in():
    """As in SKD's rule: fewer than K logits are strictly larger. The teacher's two best are three here, of which the
    student has one among its two."""
    teacher_logits, student_logits = torch.tensor([3.0, 1.0, 1.0, 0.0]), torch.tensor([2.0, 0.0, 0.5, 9.0])
    assert evaluate.topk_overlap(student_logits, teacher_logits, 2).item() == pytest.approx(1 / 3)
    assert evaluate.topk_overlap(teacher_logits, student_logits, 2).item() == pytest.approx(1 / 2)


def test_gap_of_the_example():
    """Entropies .897946 of the teacher and 1.029653 of the student: the student is the less sure one."""
    columns = step_columns(STUDENT_ROW[None, None], TEACHER_ROW[None, None], 2)
    assert columns[0, 0].tolist() == pytest.approx([1.029653, 0.897946, 0.0, 0.5], abs=1e-6)
    found = dict(zip(("student_entropy", "teacher_entropy"), columns[0, 0].tolist()))
    assert evaluate.entropy_gap(found) == pytest.approx(-0.131707, abs=1e-6)
    assert evaluate.entropy_gap({"student_entropy": 1.0}) is None is evaluate.entropy_gap(
        {"student_entropy": None, "teacher_entropy": None}
    )


@pytest.mark.parametrize("argv, there", [
    (["supervised"], True), (["skd"], True), (["sft"], False), (["supervised", "--cache-teacher", "3"], False),
])  # fmt: skip
def test_no_overlap_where_no_teacher_is_asked(pair, argv, there, monkeypatch, tmp_path):  # noqa: F811
    """Without a teacher's whole distribution a step line has neither overlap nor gap; else the gap is the difference of
    the entropies beside it."""
    monkeypatch.chdir(tmp_path)
    run = Watched(VARIANTS[argv[0]], pair, flags(*argv[1:]))
    for line in run.steps:
        assert {"topk_overlap", "entropy_gap"} & set(line) == ({"topk_overlap", "entropy_gap"} if there else set())
        if there:
            assert line["entropy_gap"] == line["teacher_entropy"] - line["student_entropy"]
            assert line["topk_overlap"] > 0


def test_overlap_and_gap_of_an_evaluation(pair):  # noqa: F811
    """Means over response tokens, on the references and on the student's own samples."""
    student, args = pair.new_student().eval(), {"gamma": None, "accept_top_k": 4, "seed": 0}
    measure = (pair.task, pair.tokenizer, pair.test, pair.max_new_tokens)
    found = evaluate.evaluate(student, pair.teacher, *measure, **args)
    prompts, eos = pair.test.prompts, pair.tokenizer.eos_token
    own, _ = evaluate.sample_responses(student, prompts, pair.max_new_tokens, eos, seed=0)
    for suffix, responses in (("", pair.test.responses), ("_on_policy", own)):
        overlaps, gaps = [], []
        for prompt, response in zip(prompts, responses):
            rows = [
                adapters.model_logits(model, torch.tensor([prompt + response]))[0, len(prompt) - 1 : -1]
                for model in (student, pair.teacher)
            ]
            overlaps += evaluate.topk_overlap(*rows, 4).tolist()
            gaps += (entropy(rows[1]) - entropy(rows[0])).tolist()
        assert found[f"topk_overlap{suffix}"] == pytest.approx(sum(overlaps) / len(overlaps), rel=1e-4)
        assert found[f"entropy_gap{suffix}"] == pytest.approx(sum(gaps) / len(gaps), rel=1e-4)
    none = evaluate.evaluate(student, pair.teacher, *measure, **args | {"accept_top_k": 0})
    assert none["topk_overlap"] is None and none["entropy_gap"] == found["entropy_gap"]


# ---------------------------------------------------------------------------------------------------------------------
# Acceptance by position.


@pytest.mark.parametrize("options", [{}, {"write_back": False}, {"gamma": 3}])
def test_acceptance_by_position(pair, options):  # noqa: F811
    """Recounted block by block: of the proposals that were judged in an eighth of the budget, how many were kept."""
    student, budget, K = pair.new_student(), pair.max_new_tokens, pair.tokenizer.n_vocab // 2
    rollout = interleaved_generate(
        student, pair.teacher, pair.train.prompts, budget, generator=generator(), accept_top_k=K,
        eos_token=pair.tokenizer.eos_token, **options,
    )  # fmt: skip
    kept, judged = [0] * 8, [0] * 8
    for block in rollout.blocks:
        columns = (block.rows, block.start, block.accepted, block.judged)
        for row, start, n_accepted, n_judged in zip(*(column.tolist() for column in columns)):
            for slot in range(start, start + n_judged):
                place = min(7, (slot - int(rollout.prompt_len[row])) * 8 // budget)
                judged[place] += 1
                # Without write-back, rejections stand between what was kept.
                kept[place] += slot < start + n_accepted if options.get("write_back", True) else (
                    int(rollout.rejected_tokens[row, slot]) < 0
                )
    per_token = torch.ones(rollout.tokens[:, 1:].shape)
    found = step_figures(rollout, per_token[..., None], per_token, budget)
    wanted = [accepted / all_ if all_ else None for accepted, all_ in zip(kept, judged)]
    assert found["accept_by_position"] == [x if x is None else pytest.approx(x) for x in wanted]
    for accepted, replaced in zip(found["accept_by_position"], found["replacement_by_position"]):
        assert (accepted is None) == (replaced is None)
        assert accepted is None or accepted + replaced == pytest.approx(1)
    assert 0 < sum(kept) < sum(judged) == int(rollout.response_mask.sum())
    late = step_figures(rollout, per_token[..., None], per_token, 8 * budget)
    assert late["accept_by_position"][1:] == [None] * 7


# ---------------------------------------------------------------------------------------------------------------------
# Step 0.


@matrix("script, variant", [(train_skd, "skd"), (train_okd, "okd"), (train_skd, "distillm")],
        fast=[(train_okd, "okd"), (train_skd, "distillm")])  # fmt: skip
def test_the_curve_begins_before_the_first_step(script, variant, pair, monkeypatch):  # noqa: F811
    """The first line is the evaluation of the untouched student, measured once; the method hears of the others only."""
    measured, heard = [], []
    validation = compare.validation

    def counted(of_pair, student, adapted=None):
        measured.append(weights_of(student))
        return validation(of_pair, student, adapted)

    monkeypatch.setattr(compare, "validation", counted)
    monkeypatch.setattr(train_skd.methods.Method, "after_evaluation", lambda self, figures: heard.append(figures))
    monkeypatch.setattr(train_okd.OnlineLosses, "after_evaluation", lambda self, figures: heard.append(figures))
    monkeypatch.setattr(train_skd.methods.Replay, "after_evaluation", lambda self, figures: heard.append(figures))
    lines, student = run_of(script, variant, pair)
    evals = [line for line in lines if line["kind"] == "eval"]
    assert [line["step"] for line in evals] == [0, 1, 2, 3, 4] and lines[0] == evals[0]
    assert len(measured) == 5 and same_weights(measured[0], pair.new_student().state_dict())
    start = evaluate.evaluate_quickly(
        pair.new_student(), pair.teacher, pair.task, pair.tokenizer, pair.val, pair.max_new_tokens,
        OnlineTeacher(pair.teacher, "lora", 8, 1.0, generator()) if variant == "okd" else None,
    )  # fmt: skip
    assert {name: evals[0][name] for name in start} == pytest.approx(start, rel=1e-6) and "task_steps_right" in start
    if variant == "distillm":  # it asks for a reference by itself
        heard.pop(0)
    assert [records.rounded(figures) for figures in heard] == [
        {name: value for name, value in line.items() if name not in ("kind", "step")} for line in evals[1:]
    ]


def run_of(script, variant, pair, *argv, show=None, folder=None, stop=None, steps=4):  # noqa: F811
    """(lines of the record, student) of a run; None if it was stopped in step `stop`."""
    args = flags("--steps", str(steps), "--lr", "0.05", *argv, script=script)
    row, student, lines = script.VARIANTS[variant], pair.new_student(), Lines(stop)
    row = train_okd.resolve(row, args) if script is train_okd else row
    checkpointer = Checkpointer(folder and str(folder / "run_pair1_seed1"), 1000, {"steps": steps})
    run = compare.make_run(pair, args, 1, lines, checkpointer=checkpointer, show=show)
    try:
        with checkpointer:
            script.distill(row, student, pair.teacher, pair.train.prompts, pair.train.responses, run)
    except processes.Stopped:
        return None
    return [json.loads(line) for line in lines.text.splitlines()], student


class Lines(records.NoLog):
    """A record in memory, which sends a signal to its process at a step."""

    def __init__(self, stop=None):
        self.text, self.stop = "", stop

    def write(self, kind, **figures):
        self.text += json.dumps({"kind": kind} | records.rounded(figures)) + "\n"
        if kind == "step" and figures["step"] == self.stop:
            signal.raise_signal(signal.SIGTERM)

    def state_dict(self):
        return {"text": self.text}

    def load_state_dict(self, state):
        self.text = state["text"]


def shown(pair, K=60):  # noqa: F811
    """What a run shows of its student."""
    return lambda student: held_out.held_out_rollouts(pair, K, student)


def without_times(lines):
    return [{name: value for name, value in line.items() if not name.endswith("_ms")} for line in lines]


SHOWN = [
    (train_skd, "skd"), (train_skd, "on_policy"), (train_skd, "imitkd"), (train_skd, "distillm"), (train_skd, "takd"),
    (train_okd, "okd"), (train_okd, "prokt"),
]  # fmt: skip


@matrix("script, variant", SHOWN, fast=[(train_skd, "skd"), (train_okd, "okd")])
def test_showing_changes_nothing(script, variant, pair):  # noqa: F811
    """With and without rollouts on the way: the same weights, bit for bit, and every other line the same."""
    state = torch.get_rng_state()
    (plain, student), (lines, other) = (run_of(script, variant, pair, show=show) for show in (None, shown(pair)))
    assert same_weights(student.state_dict(), other.state_dict())
    assert distance(student.state_dict(), pair.new_student().state_dict()) > 0
    assert without_times(line for line in lines if line["kind"] != "rollout") == without_times(plain)
    assert [line["step"] for line in lines if line["kind"] == "rollout"] == [0, 2, 4]
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize("steps, wanted", [(1, [0, 1]), (2, [0, 1, 2]), (5, [0, 2, 5])])
def test_rollouts_are_shown_three_times(pair, steps, wanted):  # noqa: F811
    """At the start, in the middle and at the end, whenever evaluations are; the student that is shown is that
    step's."""
    seen = []

    def show(student):
        seen.append((student.training, weights_of(student)))
        return {"seen": len(seen)}

    lines, student = run_of(train_skd, "sft", pair, show=show, steps=steps)
    at = [(line["step"], line["seen"]) for line in lines if line["kind"] == "rollout"]
    assert at == list(zip(wanted, range(1, 9)))
    assert not any(training for training, _ in seen) and same_weights(seen[-1][1], student.state_dict())
    assert same_weights(seen[0][1], pair.new_student().state_dict())


@matrix("script, variant, stop", [(train_skd, "skd", 1), (train_skd, "skd", 2), (train_okd, "okd", 3)],
        fast=[(train_skd, "skd", 2)])  # fmt: skip
def test_a_resumed_run_shows_each_line_once(script, variant, stop, tmp_path):
    """Stopped before, at or behind the middle: the record has the lines of a run that nobody stopped."""
    here = tiny_pair()
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    processes.catch_signals()
    try:
        whole, student = run_of(script, variant, here, show=shown(here))
        folder = tmp_path / "out"
        folder.mkdir()
        assert run_of(script, variant, here, show=shown(here), folder=folder, stop=stop) is None
        lines, other = run_of(script, variant, here, show=shown(here), folder=folder)
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    assert same_weights(student.state_dict(), other.state_dict())
    assert without_times(line for line in lines if line["kind"] != "resumed") == without_times(whole)


# ---------------------------------------------------------------------------------------------------------------------
# Where the time went.


def test_stages_add_up_on_a_cpu(pair):  # noqa: F811
    """Preparation and the four parts of all steps, logged or not, are most of `seconds`; evaluations are beside it."""
    found = Watched(VARIANTS["takd"], pair, flags(steps=6, log_every=100)).costs
    stages = found["seconds_by_stage"]
    assert list(stages) == ["preparation", "sampling", "teacher", "student", "update", "evaluation"]
    assert all(seconds > 0 for seconds in stages.values())
    inside = sum(seconds for name, seconds in stages.items() if name != "evaluation")
    assert 0.5 * found["seconds"] < inside <= found["seconds"]
    assert stages["preparation"] > stages["student"]  # the assistant's run is three times as long


def clock(kind, exact, **spans):
    spans = {name: 1000.0 * seconds for name, seconds in spans.items()}
    return SimpleNamespace(device=torch.device(kind), exact=exact, spans=spans)


def test_stages_of_a_gpu_are_scaled():
    """Only steps that waited for the device are measured, without a run's first: they divide what training took."""
    meter = costs.Meter(torch.device("cpu"))
    meter.device = torch.device("cuda")
    meter.count_step(clock("cuda", True, sampling=50.0, student=1.0), first=True)
    meter.count_step(clock("cuda", False, sampling=7.0, student=7.0), first=False)
    assert meter.by_stage() == {
        "preparation": 0.0, "sampling": None, "teacher": None, "student": None, "update": None, "evaluation": 0.0,
    }  # fmt: skip
    for _ in range(2):
        meter.count_step(clock("cuda", True, sampling=2.0, student=1.0, update=1.0, logging=9.0), first=False)
    meter.seconds, meter.stages["preparation"] = 50.0, 10.0
    assert meter.by_stage() == {
        "preparation": 10.0, "sampling": 20.0, "teacher": 0.0, "student": 10.0, "update": 10.0, "evaluation": 0.0,
    }  # fmt: skip
    again = costs.Meter(torch.device("cpu"))
    again.load_state_dict(meter.state_dict())
    assert again.stages == meter.stages and again.stages is not meter.stages
    meter.count_step(clock("cpu", False, teacher=3.0), first=True)
    assert meter.stages["teacher"] == 3.0


def test_a_pause_with_a_name_is_counted(monkeypatch):
    """An evaluation of five seconds is no training, and stands under its name; one without a name is in neither."""
    now = [100.0]
    monkeypatch.setattr(costs.time, "perf_counter", lambda: now[0])
    meter = costs.Meter(torch.device("cpu"))
    for stage, seconds in (("evaluation", 5.0), (None, 3.0), ("evaluation", 2.0)):
        now[0] += 1.0
        with meter.paused(stage):
            now[0] += seconds
    assert (meter.seconds, meter.stages) == (3.0, {"evaluation": 7.0})


# ---------------------------------------------------------------------------------------------------------------------
# Held-out rollouts.


def test_rollouts_are_the_samplers(pair):  # noqa: F811
    """Tokens, writers and rejected proposals are interleaved_generate's; ranks and likeliest tokens are those of both
    models' own logits."""
    student, K = pair.new_student().eval(), pair.tokenizer.n_vocab // 3
    line = held_out.held_out_rollouts(pair, K, student)
    prompts = pair.val.prompts[:2]
    rollout = interleaved_generate(
        student, pair.teacher, prompts, pair.max_new_tokens, generator=generator(0), accept_top_k=K,
        eos_token=pair.tokenizer.eos_token,
    )  # fmt: skip
    assert [found["tokens"] for found in line["rollouts"]] == rollout.responses() and line["accept_top_k"] == K
    writers = {"s": STUDENT, "t": TEACHER}
    seen = set()
    for row, (prompt, found) in enumerate(zip(prompts, line["rollouts"])):
        start, tokens = len(prompt), found["tokens"]
        assert found["prompt"] == pair.tokenizer.decode(prompt) and not {"cut", "prompt_cut"} & set(found)
        logits = {
            name: adapters.model_logits(model, torch.tensor([prompt + tokens]))[0, start - 1 : -1]
            for name, model in (("student", student), ("teacher", pair.teacher))
        }
        for t, token in enumerate(tokens):
            assert writers[found["written_by"][t]] == int(rollout.source[row, start + t])
            lost = int(rollout.rejected_tokens[row, start + t])
            assert found["rejected"][t] == (None if lost < 0 else lost)
            proposal, teacher_row = token if lost < 0 else lost, logits["teacher"][t]
            assert found["rank"][t] == 1 + int((teacher_row > teacher_row[proposal]).sum())
            assert (found["rank"][t] <= K) == (lost < 0) == (found["written_by"][t] == "s")
            seen.add(found["written_by"][t])
            for name, rows in logits.items():
                probs = rows[t].softmax(-1)
                best = probs.argsort(descending=True)[:5]
                assert found[f"{name}_tokens"][t] == best.tolist()
                assert found[f"{name}_probs"][t] == pytest.approx(probs[best].tolist(), abs=6e-4)
                assert all(round(x, 3) == x for x in found[f"{name}_probs"][t])
    assert seen == {"s", "t"}
    assert line == held_out.held_out_rollouts(pair, K, student)  # the noise is the same at every step
    used = set()
    for found in line["rollouts"]:
        used |= {*found["tokens"], *found["rejected"], *sum(found["student_tokens"] + found["teacher_tokens"], [])}
    assert set(line["texts"]) == {str(token) for token in used - {None}}


def test_the_original_teacher_judges(pair):  # noqa: F811
    """A teacher that moves is not asked: the last line is that of the student that is left, with the pair's teacher."""
    lines, student = run_of(train_okd, "okd", pair, show=shown(pair))
    assert {"kind": "rollout", "step": 4, **shown(pair)(student.eval())} == lines[-1]


def bytes_of(text):
    """The bytes that a printable text stands for."""
    found, rest = b"", text
    while rest:
        end = {"x": 4, "u": 6, "U": 10}.get(rest[1], 2) if rest[0] == "\\" else 1
        piece, rest = rest[:end], rest[end:]
        if piece.startswith("\\x"):
            found += bytes([int(piece[2:], 16)])
        else:
            found += (ast.literal_eval(f"'{piece}'") if piece[0] == "\\" else piece).encode()
    return found


@pytest.mark.parametrize("text, wanted", [
    ("a b", "a b"), ("\n\t", r"\n\t"), ("\\n", r"\\n"), ("ü 字 ж 🙂", "ü 字 ж 🙂"), ("\x1b[31m", r"\x1b[31m"),
    ("\xa0\xad\u200d\U000e0001", r"\u00a0\u00ad\u200d\U000e0001"), ("'\"", "'\""), ("\\xe4", r"\\xe4"), ("", ""),
])  # fmt: skip
def test_printable_text(text, wanted):
    """What can be printed stays, everything else is an escape from which the bytes are told."""
    found = held_out.printable(text.encode())
    assert found == wanted and found.isprintable() and bytes_of(found) == text.encode()


def test_every_token_can_be_told():
    """All single bytes, and cuts through characters of several: the texts of a response, put together, are what the
    tokenizer decodes. None is a question mark in a box."""
    tokens = [bytes([value]) for value in range(256)]
    tokenizer = Tokenizer([*tokens, "字".encode()[:2], "🙂".encode(), "жa".encode(), b"b\\\n"])
    texts = [held_out.token_text(tokenizer, token) for token in range(tokenizer.n_vocab)]
    assert len(set(texts)) == len(texts) and texts[tokenizer.eos_token] == ""
    assert all(text.isprintable() and "\ufffd" not in text for text in texts)
    assert texts[0xE4] == r"\xe4" and texts[256] == r"\xe5\xad"
    for ids in (tokenizer.encode("字 🙂 ж\\a\n"), [0xE4, 0x20, 256, 0x97, tokenizer.eos_token], range(tokenizer.n_vocab)):
        whole = b"".join(bytes_of(texts[token]) for token in ids)
        assert whole.decode("utf-8", "replace") == tokenizer.decode(ids)


@pytest.mark.parametrize("first_letter, prompt_len, budget", [
    ("a", 3, 400), ("\u0430", 3, 400), ("\u4e00", 3, 400), ("\u0430", 2000, 50), ("\u4e00", 700, 200),
])  # fmt: skip
def test_the_rollouts_of_a_run_stay_small(first_letter, prompt_len, budget, tmp_path, monkeypatch):
    """Long tokens in Latin, Russian and Chinese, prompts of thousands of them, responses without an end: at most 40,000
    bytes in three lines; what is left out is said, and what is there is the beginning of the sampler's rollout."""
    words = ["".join(chr(ord(first_letter) + (7 * i + 3 * j) % 26) for j in range(9)) + str(i) for i in range(300)]
    tokenizer = Tokenizer([bytes([value]) for value in range(256)] + [word.encode() for word in words])
    student, teacher = (sharp_gpt(width, tokenizer.n_vocab, prompt_len + budget + 1, width) for width in (8, 12))
    prompts = [torch.randint(256, 556, (prompt_len,), generator=generator(seed)).tolist() for seed in (1, 2)]
    wanted, sampler = [], held_out.interleaved_generate

    def endless(*arguments, **options):
        wanted.extend((rollout := sampler(*arguments, **options | {"eos_token": None})).responses())
        return rollout

    monkeypatch.setattr(held_out, "interleaved_generate", endless)
    line = held_out.rollout_line(student, teacher, tokenizer, prompts, budget, 100)
    log = records.RunLog(tmp_path, "a_pair1_seed1", {})
    before = len(log.text)
    for step in (0, 10**6, 2 * 10**6):
        log.write("rollout", step=step, **line)
    log.close()
    assert 25_000 < len((tmp_path / "a_pair1_seed1.jsonl").read_bytes()) - before <= 40_000
    for prompt, found, response in zip(prompts, line["rollouts"], wanted):
        length = len(found["tokens"])
        assert found["cut"] is True and 10 < length < len(response) <= 128 and found["tokens"] == response[:length]
        lists = [name for name in found if name not in ("prompt", "prompt_cut", "cut")]
        assert len(lists) == 8 and all(len(found[name]) == length for name in lists)
        text = tokenizer.decode(prompt)
        assert text.endswith(found["prompt"]) and ("prompt_cut" in found) == (found["prompt"] != text)
        assert ("prompt_cut" in found) == (prompt_len > 3) and len(found["prompt"]) > 30


@pytest.mark.parametrize("budget, most, cut", [(2, 2, False), (3, 2, True)])
def test_a_response_that_the_budget_ends_is_whole(pair, monkeypatch, budget, most, cut):  # noqa: F811
    """No end token came, and no room was left either: nothing is cut. Where there was room, it is said."""
    monkeypatch.setattr(held_out, "MOST_TOKENS", most)
    here = SimpleNamespace(val=pair.val, teacher=pair.teacher, tokenizer=pair.tokenizer, max_new_tokens=budget)
    for found in held_out.held_out_rollouts(here, 60, pair.new_student())["rollouts"]:
        assert len(found["tokens"]) == 2 and ("cut" in found) == cut


def test_the_glossary_explains_what_is_inside(pair):  # noqa: F811
    """Keys of a rollout and names of stages stand in docs/metrics.md, as the keys of a line do."""
    page = (Path(__file__).parents[1] / "docs" / "metrics.md").read_text(encoding="utf-8")
    line = held_out.held_out_rollouts(pair, 60, pair.new_student())
    keys = {*line, *line["rollouts"][0], "cut", "prompt_cut", *costs.Meter(torch.device("cpu")).by_stage()}
    assert not [key for key in sorted(keys) if f"`{key}`" not in page], "explain these keys in docs/metrics.md"
