"""The laws of a teacher that reads another prompt before the same response: lab/hints.py, the hints of data/tasks.py,
the share of hinted prompts in lab/pairs.py, and the rows with a hint."""

import copy
import dataclasses
import itertools
import json
import re

import pytest
import torch
from test_methods import method_of, ragged
from test_train_skd import refused
from tiny import (
    SIZES,
    Watched,
    cached,
    distilled,
    flags,
    matrix,
    moved_apart,
    odd_is_right,
    padded,
    prompts_of,
    same_weights,
    tiny_pair,
    unmeasured,  # noqa: F401  a fixture
    weights_of,
)

import methods
import train_okd
import train_skd
from data import own_data
from data.tasks import HINTS, Encoded, hinted_prompts, make_task
from lab import compare, groups, hints, pairs, tables, training
from losses import to_logits, top_k_kl
from sample import STUDENT, rollout_from_ids
from train_skd import VARIANTS

# Every kind of teacher, and how a row asks it: (writer, columns of the row).
TEACHERS = {
    "the pair's": {},
    "frozen start": {"teacher": "start"},
    "average": {"teacher": "start", "method": "average", "method_kwargs": {"decay": 0.5}},
    "live weights": {"teacher": "start", "method": "average", "method_kwargs": {"decay": 0.0}},
}


def row_of(teacher, hint="solution", writer="dataset", **columns):
    """A row with this kind of teacher."""
    return dataclasses.replace(VARIANTS["context_kd"], hint=hint, writer=writer, **TEACHERS[teacher], **columns)


@pytest.fixture
def seen(monkeypatch):
    """What every part of the runs of a test was told by its teacher: (part, logits, the teacher's weights then)."""
    parts, own = [], methods.Method.per_token

    def spy(method, student_logits, teacher_logits, part):
        parts.append((part, to_logits(teacher_logits).detach(), copy.deepcopy(method.models[1])))
        return own(method, student_logits, teacher_logits, part)

    monkeypatch.setattr(methods.Method, "per_token", spy)
    return parts


def responses_of(part):
    rollout, rows = part.rollout, part.rows
    columns = (rollout.tokens[rows], rollout.prompt_len[rows], rollout.lengths[rows])
    return [row[start:stop] for row, start, stop in zip(*(column.tolist() for column in columns))]


def check_aligned(parts, hinted):
    """All that the teachers said is what each says of one row alone: hint, prompt, response."""
    compared = 0
    for part, teacher_logits, teacher in parts:
        examples = part.step.example_ids[part.rows]
        for example, response, rows, inside in zip(examples, responses_of(part), teacher_logits, part.tokens.mask):
            with torch.no_grad():
                alone = teacher(torch.tensor([hinted[example] + response])[:, :-1])[0, len(hinted[example]) - 1 :]
            assert torch.allclose(rows[inside], alone, atol=1e-4), "the teacher's rows are not those of the response"
            compared += len(alone)
    assert compared > 20


WAYS = {
    "dense": {},
    "chunked": {"chunk_loss": "yes"},
    "in parts": {"micro_batch": 3},
    "in parts of one, chunked": {"micro_batch": 1, "chunk_loss": "yes"},
}


@pytest.mark.usefixtures("unmeasured")
@matrix(
    "teacher, kind, way",
    itertools.product(TEACHERS, HINTS, WAYS),
    fast=[*((name, "solution", "dense") for name in TEACHERS), *(("the pair's", kind, "dense") for kind in HINTS[1:]),
          *(("live weights", "demonstration", way) for way in [*WAYS][1:])],
)
def test_the_teachers_rows_are_those_of_the_response(seen, teacher, kind, way):
    """Whoever the teacher is and however the batch is worked out: row by row what it says after hint and prompt."""
    pair = tiny_pair()
    Watched(row_of(teacher, kind), pair, flags(**WAYS[way]), change=ragged)
    check_aligned(seen, pair.hinted[kind])


@pytest.mark.usefixtures("unmeasured")
@pytest.mark.parametrize("writer", ["student", "interleaved", "mixed"])
def test_whoever_writes(seen, writer):
    """On the student's samples too, and on SKD's, whose verification reads no hint: its logits are not taken."""
    pair = tiny_pair()
    Watched(row_of("the pair's", writer=writer, student_share=(0.5, 0.5)), pair, flags())
    check_aligned(seen, pair.hinted["solution"])


@pytest.mark.usefixtures("unmeasured")
def test_another_prompt_may_be_shorter(seen):
    """Longer for some rows of a batch, shorter for others: whatever stands there, the response follows it."""
    pair = tiny_pair()
    both = zip(pair.train.prompts, pair.hinted["solution"])
    other = [prompt[-2:] if i % 2 else hinted for i, (prompt, hinted) in enumerate(both)]
    Watched(row_of("the pair's"), dataclasses.replace(pair, hinted={"solution": other}), flags(), change=ragged)
    check_aligned(seen, other)
    seen.clear()
    other = [prompt[-1:] for prompt in pair.train.prompts]  # each of them shorter
    Watched(row_of("the pair's"), dataclasses.replace(pair, hinted={"solution": other}), flags(steps=1), change=ragged)
    check_aligned(seen, other)


@pytest.mark.usefixtures("unmeasured")
def test_padding_shifts_nothing(seen):
    """Columns on the right, so many that hint and padding together are longer than the block."""
    pair = tiny_pair(room=8)
    Watched(row_of("the pair's", "demonstration"), pair, flags(), change=lambda rollout: padded(padded(rollout), 3))
    check_aligned(seen, pair.hinted["demonstration"])


@pytest.mark.usefixtures("unmeasured")
@pytest.mark.parametrize("best", ["dense", "8"])
def test_a_cache_keeps_what_a_teacher_with_a_hint_says(seen, tmp_path, monkeypatch, best):
    """--cache-teacher: the same rows from disk, in files of their own."""
    cached(monkeypatch, tmp_path)
    pair, row = tiny_pair(), VARIANTS["context_kd"]
    args = flags("--cache-teacher", best, "--variants", "context_kd", "--hint-share", ".5")
    run = Watched(row, pair, args)
    if best == "dense":
        check_aligned(seen, pair.hinted["solution"])
        assert moved_apart(run.end, Watched(row, pair, flags(chunk_loss="no")).end) < 1e-4
    files = set(tmp_path.iterdir())
    Watched(VARIANTS["context_kd_wrong_hint"], pair, args)
    Watched(VARIANTS["supervised"], pair, args)
    assert len(set(tmp_path.glob("*.sha256")) - files) == 2


WITHOUT = {"context_kd": "supervised", "context_on_policy": "on_policy", "opsd": "opsd_no_hint"}


def without_hints(pair):
    """The same pair; its hints are empty."""
    return dataclasses.replace(pair, hinted=dict.fromkeys(HINTS, pair.train.prompts))


@pytest.mark.usefixtures("unmeasured")
@matrix(
    "hinted, plain, way",
    [(*names, way) for names in WITHOUT.items() for way in WAYS],
    fast=[*((*names, "dense") for names in WITHOUT.items()), ("opsd", "opsd_no_hint", [*WAYS][-1])],
)
def test_an_empty_hint_changes_no_bit(hinted, plain, way):
    """A row whose hints are empty is the row without: weights, losses and costs; with them it is not."""
    pair, args = tiny_pair(), flags(**WAYS[way])
    one, other = (Watched(VARIANTS[name], without_hints(pair), args) for name in (hinted, plain))
    assert same_weights(one.end, other.end)
    for name in ("loss", "gradient_norm", "teacher_entropy"):
        assert [line[name] for line in one.steps] == [line[name] for line in other.steps]
    assert all(one.costs[name] == other.costs[name] for name in ("compute", "teacher_forwards"))
    more = Watched(VARIANTS[hinted], pair, args)
    assert not same_weights(more.end, other.end) and more.costs["compute"] > other.costs["compute"]


@pytest.mark.usefixtures("unmeasured")
def test_the_order_of_a_batch_does_not_count(monkeypatch):
    """The same rows the other way round: the same loss and gradient, each row with its own hint."""
    pair, row, order = tiny_pair(), VARIANTS["context_kd"], training.batch_order
    one = Watched(row, pair, flags(steps=1))
    monkeypatch.setattr(training, "batch_order", lambda *arguments: order(*arguments).flip(1))
    other = Watched(row, pair, flags(steps=1))
    for name in ("loss", "gradient_norm", "teacher_entropy"):
        assert one.steps[0][name] == pytest.approx(other.steps[0][name], rel=1e-5)


def test_what_is_read_is_counted():
    """A teacher's tokens: one forward over hint, prompt and response of each row, padding left out."""
    pair, teacher_tokens = tiny_pair(), {}
    for name in ("supervised", "context_kd"):
        costs = Watched(VARIANTS[name], pair, flags(steps=1)).costs
        teacher_tokens[name] = costs["compute"]
    rows = training.batch_order(24, 4, 1, torch.Generator().manual_seed(1))[0].tolist()
    hint = sum(len(pair.hinted["solution"][i]) - len(pair.train.prompts[i]) for i in rows)
    weights = pair.teacher.num_parameters() - pair.teacher.position_embedding.weight.numel()
    more = teacher_tokens["context_kd"] - teacher_tokens["supervised"]
    assert more == pytest.approx(2e-12 * weights * hint, rel=1e-9)


# ---------------------------------------------------------------------------------------------------------------------
# The student as its own teacher.


def with_decay(decay):
    return dataclasses.replace(VARIANTS["opsd"], method="average", method_kwargs={"decay": decay})


@pytest.mark.usefixtures("unmeasured")
def test_the_ends_of_an_average():
    """Decay 0: the teacher has the student's weights in every step. Decay 1: it stays the start, to the bit."""
    pair, args = tiny_pair(), flags("--steps", "4")
    live = Watched(with_decay(0.0), pair, args)
    for state, weights in zip(live.states, [live.start, *live.weights], strict=False):
        average = {name[8:]: x for name, x in state.items() if name.startswith("average.")}
        assert average and all(torch.equal(x, weights[name]) for name, x in average.items())
    frozen, start = Watched(with_decay(1.0), pair, args), Watched(VARIANTS["opsd"], pair, args)
    assert same_weights(frozen.end, start.end) and not same_weights(live.end, start.end)
    assert same_weights(weights_of(frozen.teacher), frozen.start)
    assert same_weights(live.end, Watched(VARIANTS["opsd_live"], pair, args).end)


@pytest.mark.usefixtures("unmeasured")
def test_an_average_by_hand():
    """Teacher 4, student 2, decay .5: 3. In a run: decay * before + (1 - decay) * the student after each step."""
    run = Watched(with_decay(0.5), tiny_pair(), flags("--steps", "3"))
    wanted = run.start
    for weights in run.weights:
        wanted = {name: 0.5 * wanted[name] + 0.5 * weights[name] for name in wanted}
    assert moved_apart(weights_of(run.teacher), wanted) < 1e-6
    with torch.no_grad():
        for weight in run.method.average.parameters():
            weight.fill_(4.0)
        for weight in run.student.parameters():
            weight.fill_(2.0)
    run.method.after_step(None)
    assert all(bool((weight == 3).all()) for weight in run.method.average.parameters())


@pytest.mark.usefixtures("unmeasured")
@pytest.mark.parametrize("variant", ["opsd", "opsd_live", "sdft"])
def test_gradients_reach_the_student_alone(variant):
    """The teacher is a copy of the student, and nobody's gradient reaches it; the pair's own teacher is not asked."""
    pair = tiny_pair()
    run = Watched(VARIANTS[variant], pair, flags())
    assert run.teacher is not pair.teacher and run.teacher is not run.student
    assert all(weight.grad is None and not weight.requires_grad for weight in run.teacher.parameters())
    assert run.method.optimizer is None and not run.teacher.training


@pytest.mark.usefixtures("unmeasured")
def test_without_a_hint_there_is_nothing_to_learn_from_oneself():
    """Control: the first loss of opsd_no_hint is 0, its minimum; that of opsd is not."""
    first = {name: Watched(VARIANTS[name], tiny_pair(), flags(steps=1)).steps[0] for name in ("opsd", "opsd_no_hint")}
    assert abs(first["opsd_no_hint"]["loss"]) < 1e-6 < 1e-2 < first["opsd"]["loss"]
    assert first["opsd_no_hint"]["gradient_norm"] < 1e-4


# A right answer of the same group as the hint (SDPO).


@pytest.mark.usefixtures("unmeasured")
@pytest.mark.parametrize("way", [*WAYS])
def test_a_right_sibling_is_the_hint(monkeypatch, way):
    """sdpo by hand: whoever has a right sibling learns what the averaged teacher says after it, response by response;
    whoever has none adds tokens to the mean and nothing to the sum."""
    monkeypatch.setattr(compare, "scores", odd_is_right)
    pair, kinds = tiny_pair(room=20), set()
    row = dataclasses.replace(VARIANTS["sdpo"], method_kwargs={"group": 4, "decay": 0.5})
    run = Watched(row, pair, flags("--batch-size", "8", "--steps", "3", **WAYS[way]))
    for step, (line, rollout) in enumerate(zip(run.steps, run.rollouts)):
        student, teacher = pair.new_student(), pair.new_student()
        student.load_state_dict([run.start, *run.weights][step])
        teacher.load_state_dict(student.state_dict() | {
            name[8:]: x for name, x in run.states[step].items() if name.startswith("average.")
        })  # fmt: skip
        responses, lost, tokens = rollout.responses(), 0.0, 0
        right = odd_is_right(pair, None, responses)
        assert line["reward"] == pytest.approx(sum(right) / 8)
        for i, (prompt, response) in enumerate(zip(prompts_of(rollout), responses)):
            others = [j for j in range(i // 4 * 4, i // 4 * 4 + 4) if right[j] and j != i]
            kinds.add((bool(right[i]), bool(others)))
            tokens += len(response)
            if not others:
                continue
            text = pair.tokenizer.decode([token for token in responses[others[0]] if token != pair.tokenizer.eos_token])
            hinted = pair.tokenizer.encode(f"({text})\n") + prompt
            own = student(torch.tensor([prompt + response])[:, :-1])[:, len(prompt) - 1 :]
            with torch.no_grad():
                others = teacher(torch.tensor([hinted + response])[:, :-1])[:, len(hinted) - 1 :]
            lost = lost + top_k_kl(own, others, 20, whose="student", reverse=True).sum()
        (lost / tokens).backward()
        norm = torch.nn.utils.clip_grad_norm_(student.parameters(), 1e9)
        assert (line["loss"], line["gradient_norm"]) == pytest.approx(((lost / tokens).item(), norm.item()), rel=1e-3)
    assert {(True, True), (False, True)} <= kinds and any(not helped for _, helped in kinds)


@pytest.mark.usefixtures("unmeasured")
def test_where_nobody_is_right_nothing_is_learned():
    """Untrained students answer nothing right: losses and gradients are 0, to the bit, and the user is told."""
    run = Watched(VARIANTS["sdpo"], tiny_pair(), flags("--batch-size", "8"))
    (warning,) = (line["text"] for line in run.lines if line["kind"] == "warning")
    assert "the first batch teaches nothing" in warning
    assert [(line["reward"], line["loss"], line["gradient_norm"]) for line in run.steps] == [(0, 0, 0)] * 2


def test_who_is_a_right_sibling():
    """The first other one of the group; none for the only right one, nor across groups; a last group may be smaller."""
    scores = torch.tensor([1.0, 0, 1, 0, 1, 0, 1])
    assert groups.right_siblings(scores, 3) == [2, 0, 0, 4, None, 4, None]
    assert groups.right_siblings(torch.tensor([0.9, 1.0, 0.99]), 3) == [1, None, 1]


def test_siblings_of_other_processes(monkeypatch):
    """Of three processes the second has rows 1 and 4 of six: their hints are answers that others wrote. A hint that
    leaves no room before the response is none."""
    written = [[7], [7, 7], [9], [14], [21, 7, 7], [28]]  # rows 0 and 3 are right
    method = method_of("sdpo", group=3)
    monkeypatch.setattr(groups, "gathered_in_order", lambda own: [1.0, own[0], 0.0, 1.0, own[1], 0.0])
    gathered = lambda own: [written[0], own[0], *written[2:4], own[1], written[5]]  # noqa: E731
    monkeypatch.setattr(methods, "gathered_in_order", gathered)
    method.run.reward = lambda rows, responses: [0.0 for _ in rows]
    method.hint_of = lambda response: [40, *response]
    rollout = rollout_from_ids([[1], [2]], [written[1], written[4]], [STUDENT] * 2, "cpu")
    prompts, number = method.run.prompts, {"places": [1, 4], "example_ids": [5, 6], "progress": 0.0}
    number["prompts"] = [prompts[5], prompts[6]]
    step = type("step", (), number | {"write": lambda self, *_, **options: rollout})()
    method.write(step)
    assert method.run.teacher_prompts.hinted == [[40, 7] + prompts[5], [40, 14] + prompts[6]]
    assert method.helped.tolist() == [True, True]
    method.block_size = len(prompts[6]) + 4  # the second response has three tokens, the first one and its prompt fewer
    method.write(step)
    assert method.run.teacher_prompts.hinted == [[40, 7] + prompts[5], prompts[6]]
    assert method.helped.tolist() == [True, False]


# ---------------------------------------------------------------------------------------------------------------------
# OKD.


def okd(row, pair, args):
    student = pair.new_student()
    _, adapted = distilled(train_okd, row, student, pair, args)
    return weights_of(student), weights_of(adapted.module)


@pytest.mark.usefixtures("unmeasured")
def test_an_online_teacher_reads_the_hint_too():
    """okd_context with empty hints is okd, bit for bit, anchor included; with hints student and module go elsewhere."""
    pair, args = tiny_pair(), flags("--anchor", "0.5", "--variants", "okd", script=train_okd)
    empty, hinted = (okd(train_okd.VARIANTS["okd_context"], p, args) for p in (without_hints(pair), pair))
    plain = okd(train_okd.VARIANTS["okd"], pair, args)
    assert all(map(same_weights, empty, plain)) and not any(map(same_weights, hinted, plain))


@pytest.mark.usefixtures("unmeasured")
def test_the_anchor_compares_what_was_read(monkeypatch):
    """A module that has not moved is at distance 0 from the original only if both read the same prompt."""
    pair, found, own = tiny_pair(), [], train_okd.reverse_kl

    def spy(teacher_logits, original_logits):
        found.append(own(teacher_logits, original_logits).detach())
        return own(teacher_logits, original_logits)

    monkeypatch.setattr(train_okd, "reverse_kl", spy)
    okd(train_okd.VARIANTS["okd_context"], pair, flags("--anchor", "0.5", "--steps", "1", "--variants", "okd_context",
                                                       "--hint-share", ".5", script=train_okd))  # fmt: skip
    assert found and max(distance.abs().max() for distance in found) < 1e-5


# ---------------------------------------------------------------------------------------------------------------------
# What a hint is.


@pytest.mark.parametrize("name", ["math", "translation", "summarisation", "instruction"])
def test_a_made_tasks_hint_is_a_worked_solution(name):
    """It is right, always the same for a prompt, and not merely the reference."""
    task = make_task(name, **SIZES)
    found = [(example, task.hint(example)) for example in task.examples("train")]
    assert all(task.score(example, hint) == 1.0 for example, hint in found)
    assert [make_task(name, **SIZES).hint(example) for example, _ in found] == [hint for _, hint in found]
    assert any(hint != example.response for example, hint in found)


def test_a_hint_stands_before_the_prompt():
    """In brackets and on a line of its own; demonstration and control come from the next example, in a circle."""
    pair = tiny_pair()
    task, tokenizer, train = pair.task, pair.tokenizer, pair.train
    for i, example in enumerate(train.examples):
        other = train.examples[(i + 1) % len(train.examples)]
        told = {"solution": task.hint(example), "demonstration": other.prompt + other.response,
                "unrelated": task.hint(other)}  # fmt: skip
        for kind in HINTS:
            assert tokenizer.decode(pair.hinted[kind][i]) == f"({told[kind]})\n{example.prompt}"
            assert pair.hinted[kind][i][-len(train.prompts[i]) :] == train.prompts[i]


def test_the_other_example_has_another_prompt():
    """Rows of one prompt are no control of each other; a single prompt has none, and one line says so."""
    pair = tiny_pair()
    twice = Encoded(*(column[:1] * 2 + column[1:2] for column in pair.train))
    other = pair.task.hint(pair.train.examples[1])
    read = [pair.tokenizer.decode(ids) for ids in hinted_prompts(pair.tokenizer, pair.task, twice, "unrelated")]
    assert all(text.startswith(f"({other})") for text in read[:2])
    with pytest.raises(ValueError, match="at least two different prompts"):
        hinted_prompts(pair.tokenizer, pair.task, twice.first(2), "unrelated")


def test_own_data_may_say_a_hint():
    """The key "hint" of a record, as written; a row without one is read as it is. Not where it is the prompt's key."""
    rows = [{"prompt": f"say {i}:", "response": f"it is {i}", "hint": f" {i} "} for i in range(40)]
    said, whole = [], "\n".join(map(json.dumps, rows))
    del rows[3]["hint"]
    rows[4]["hint"] = None
    text = "\n".join(map(json.dumps, rows))
    splits = own_data.parse_own({"train.jsonl": text}, said.append)
    found = {example.prompt: example.hint for split in splits.values() for example in split}
    assert found == {row["prompt"]: row.get("hint") or "" for row in rows} and not any("not read" in x for x in said)
    asked = own_data.parse_own({"train.jsonl": whole.replace('"prompt"', '"q"')}, said.append, "hint", "response")
    assert all(not example.hint for split in asked.values() for example in split)
    with pytest.raises(ValueError, match="line 1: expected text in 'hint', found a list"):
        own_data.parse_own({"train.jsonl": json.dumps(rows[0] | {"hint": []})}, said.append)


# ---------------------------------------------------------------------------------------------------------------------
# The pair.


@pytest.mark.parametrize("share, copies", [(None, 0), (0.0, 0), (0.2, 6), (0.5, 24), (0.75, 72)])
def test_the_share_of_hinted_rows(share, copies):
    """Behind the prompts as they are stand so many hinted copies that they are `share` of all rows; solution and
    demonstration take turns, and a second round swaps them."""
    pair = tiny_pair()
    prompts, responses = pairs.with_hints(pair.tokenizer, pair.task, pair.train, share)
    assert len(prompts) == len(responses) == 24 + copies
    assert (prompts[:24], responses[:24]) == (pair.train.prompts, pair.train.responses)
    for row, (prompt, response) in enumerate(zip(prompts[24:], responses[24:])):
        kind = ("solution", "demonstration")[(row + row // 24) % 2]
        assert prompt == pair.hinted[kind][row % 24] and response == pair.train.responses[row % 24]


@pytest.mark.parametrize("reads", [*HINTS, None])
def test_what_a_hint_does_to_its_reader_is_measured(reads, monkeypatch):
    """A model that is right behind one kind of hint alone has the task's own score there and 0 elsewhere, on the first
    prompts that have a hint of each kind."""
    pair = tiny_pair()
    pair.hinted = {kind: list(prompts) for kind, prompts in pair.hinted.items()}
    pair.hinted["solution"][1] = pair.train.prompts[1]  # as in own data, a row without a hint
    rows, asked = [0, 2, 3, 4, 5], []
    right_prompts = [pair.hinted.get(reads, pair.train.prompts)[i] for i in rows]
    monkeypatch.setattr(compare, "HINTED_PROMPTS", 5)

    def score_of_all(examples, completions):  # no mean of what single examples score
        return 0.5 * all(pair.task.score(*one) == 1 for one in zip(examples, completions))

    monkeypatch.setattr(pair.task, "corpus_score", score_of_all)

    def respond(model, given, budget, eos_token, *, seed, temperature):
        asked.append((model, len(given), budget, temperature))
        right = given == right_prompts
        return [pair.train.responses[i] if right else [eos_token] for i in rows], 1.0

    monkeypatch.setattr(compare, "sample_responses", respond)
    found = compare.scores_by_hint(pair, "a model", seed=3)
    assert found == {f"hint_{kind}": 0.5 * (kind == (reads or "none")) for kind in ("none", *HINTS)}
    assert asked == [("a model", 5, pair.max_new_tokens, 0.0)] * 4
    assert compare.scores_by_hint(dataclasses.replace(pair, hinted={}), "a model", seed=3) == {}
    assert [key for _, key, _ in tables.BEHIND_A_HINT] == list(found), "lab/tables.py names the kinds of data/tasks.py"


def test_no_share_is_todays_pair(monkeypatch):
    """--hint-share 0 and none at all: the same block, the same names in the cache, and no hints."""
    names = []

    def found(name, *rest):
        names.append(name)
        return model.requires_grad_(True), None

    monkeypatch.setattr(pairs, "_cached", found)
    model, task, made = tiny_pair().teacher, make_task("math", difficulty=2, **SIZES), []
    for share in (None, 0.0, 0.5):
        settings = pairs.PairSettings(hint_share=share)
        data = pairs.encode_task(task, settings)
        made.append((data, pairs.load_or_pretrain_pair(data, settings)))
    assert names[:2] == names[2:4] and not set(names[:2]) & set(names[4:])
    blocks = [data.block_size for data, _ in made]
    hint = max(len(pairs.hint_ids(made[0][0].tokenizer, task, one, one, kind)) for one in task.examples("train")
               for kind in HINTS)  # fmt: skip
    assert blocks == [blocks[0], blocks[0], blocks[0] + hint]
    assert [set(pair.hinted) for _, pair in made] == [set(), set(), set(HINTS)]
    raw = pairs.PairSettings(hint_share=0.5, student_start="raw")
    pairs.load_or_pretrain_pair(pairs.encode_task(task, raw), raw)
    assert "-student-" in names[7] and names[7] != names[5]


# ---------------------------------------------------------------------------------------------------------------------
# Wrong use.


def on_command_line(*argv, script=train_skd):
    return lambda capsys: refused(script.main, ["--quick", "--device", "cpu", *argv], capsys)


def from_notebook(row, hinted, **knobs):
    def found(capsys):
        pair = tiny_pair()
        run = compare.make_run(dataclasses.replace(pair, hinted=hinted(pair)), flags(**knobs), 1)
        with pytest.raises(ValueError) as error:
            train_skd.distill(row, pair.new_student(), pair.teacher, pair.train.prompts, pair.train.responses, run)
        return str(error.value)

    return found


HINTED_FEATURE = dataclasses.replace(VARIANTS["fitnet"], hint="solution")
WRONG_USE = {
    "no hint was pretrained on": (on_command_line("--variants", "opsd"), "the teacher of opsd.*--hint-share 0.5"),
    "in OKD": (on_command_line("--variants", "okd_context", script=train_okd), "of okd_context.*--hint-share 0.5"),
    "a share of all": (on_command_line("--hint-share", "1"), "--hint-share must lie in 0..0.9, found 1"),
    "a short block": (on_command_line("--hint-share", ".5", "--block-size", "20"), "--hint-share needs a block of"),
    "a run without": (from_notebook(VARIANTS["opsd"], lambda pair: {}), r"found none.*Run\(hinted=\{'solution'"),
    "a run of others": (
        from_notebook(VARIANTS["opsd"], lambda pair: {"clue": pair.train.prompts}),
        "with a hint .solution., found clue",
    ),
    "too few": (
        from_notebook(VARIANTS["opsd"], lambda pair: {"solution": pair.train.prompts[:3]}),
        "holds 3 prompts for 24: give one for each",
    ),
    "an empty one": (
        from_notebook(VARIANTS["opsd"], lambda pair: {"solution": [[]] + pair.train.prompts[1:]}),
        "holds 23 prompts for 24",
    ),
    "one that leaves no room": (
        from_notebook(VARIANTS["context_kd"], lambda pair: {"solution": [30 * [1] for _ in pair.train.prompts]}),
        "the teacher's block has 42: give shorter hints",
    ),
    "a method that looks inside": (from_notebook(HINTED_FEATURE, lambda pair: pair.hinted), "feature asks its teacher"),
    "a method that replays": (
        from_notebook(dataclasses.replace(VARIANTS["distillm"], hint="solution"), lambda pair: pair.hinted),
        "replay asks its teacher",
    ),
    "a decay above 1": (from_notebook(with_decay(1.5), lambda pair: pair.hinted), "0..1; found 1.5"),
}


@pytest.mark.parametrize("case", WRONG_USE)
def test_wrong_use_is_refused_in_one_line(case, capsys):
    """What was wrong, what was found, what to type; before any training."""
    found, wanted = WRONG_USE[case]
    line = found(capsys)
    assert "\n" not in line and len(line) < 300
    assert re.search(wanted, line), line


def test_a_task_without_hints_is_refused_in_one_line(tmp_path, capsys):
    """Own data without the key, and with it: then the pair's block has room."""
    rows = [{"prompt": f"say {i}:", "response": f"it is {i}"} for i in range(60)]
    (tmp_path / "train.jsonl").write_text("\n".join(map(json.dumps, rows)))
    argv = ["--quick", "--device", "cpu", "--task", "jsonl", "--data-dir", str(tmp_path), "--hint-share", "0.5"]
    line = refused(train_skd.main, argv, capsys)
    assert "--hint-share: task jsonl has no hints" in line and "'hint'" in line


@pytest.mark.parametrize("change", [{"writer": "student"}, {"meta_gradient": "exact"}])
def test_an_online_row_that_cannot_read_a_hint(change):
    """A mistake in a row is told where it is written down."""
    with pytest.raises(AssertionError, match="references only"):
        dataclasses.replace(train_okd.VARIANTS["okd_context"], **change)


def test_the_default_reads_what_the_student_reads():
    """OwnPrompt hands on the part's own tensors, and the logits as they are."""
    part = type("part", (), {"inputs": torch.zeros(2, 3), "fed": torch.tensor(6)})
    inputs, fed, aligned = hints.OwnPrompt().feed(part)
    model_logits = torch.zeros(2, 3, 5)
    assert inputs is part.inputs and fed is part.fed and aligned(model_logits) is model_logits
    assert hints.OwnPrompt().of([[1]]) == [[1]]
