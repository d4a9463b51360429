"""What tests of the training loops share: a tiny pair of untrained models, flags,
and a run with everything that can be seen of it.

Two pairs: `pair` has models of one block, `deep_pair` a student of two and a teacher of three, so that a middle block
is not the last one, and the two models' middles have different numbers.
"""

import argparse
import copy
import dataclasses
import functools

import adapters
import pytest
import torch

import methods
import train_okd
import train_skd
from data.tasks import HINTS, hinted_prompts, make_task
from lab import compare, training
from lab.pairs import Pair, PairSettings, encode_task, longest_hint
from model import GPT
from sample import PROMPT


def matrix(names, rows, fast, ids=None):
    """pytest.mark.parametrize over all `rows`, of which only those in `fast` run without --slow."""
    rows, several = list(rows), "," in names
    strangers = [row for row in fast if row not in rows]
    assert not strangers, f"{strangers} are no rows of the matrix: say which rows of it run without --slow"
    slow = [pytest.param(*row if several else (row,), marks=pytest.mark.slow) for row in rows]
    return pytest.mark.parametrize(names, [row if row in fast else other for row, other in zip(rows, slow)], ids=ids)


def one_of_each(table, *kinds):
    """Names of the rows that are the first to show something new in one of these of their attributes."""
    found, seen = [], set()
    for name, row in table.items():
        new = {(kind, getattr(row, kind)) for kind in kinds} - seen
        found += [name] if new else []
        seen |= new
    return found


# One row of each kind: what a test of every row looks at without --slow. `supervised` is the plainest with a teacher.
SKD_KINDS = ["supervised", *one_of_each(train_skd.VARIANTS, "writer", "method")]
OKD_KINDS = one_of_each(train_okd.VARIANTS, "writer", "module", "update", "meta_gradient")
WRITING = ["supervised", *one_of_each(train_skd.VARIANTS, "writer")]

SIZES = {"train_examples": 24, "val_examples": 3, "test_examples": 3, "ood_examples": 2}


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def sharp_gpt(width, vocab_size, block_size, seed, depth=1):
    """A random model whose rows are far from uniform, so that two of them disagree clearly."""
    model = adapters.make_gpt(vocab_size, block_size, depth, 2, width, seed=seed)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() > 1:
                weight.mul_(0.4 / weight.std())
    return model


def longer(model, positions):
    """The same model with so many positions more, which only a teacher with a hint reaches."""
    config = dataclasses.replace(model.config, block_size=model.config.block_size + positions)
    weights, name = model.state_dict(), "position_embedding.weight"
    more = 0.4 * torch.randn(positions, config.n_embd, generator=generator(99))
    weights[name] = torch.cat([weights[name], more.to(weights[name].device)])
    model = GPT(config, generator(99))
    model.load_state_dict(weights)
    return model.eval()


@functools.cache
def tiny_data():
    """A tiny math task as token ids."""
    return encode_task(make_task("math", difficulty=2, **SIZES), PairSettings())


@functools.cache
def tiny_hints():
    """(tokens of the longest hint, kind of hint -> the prompts after it) of the tiny task."""
    data, train = tiny_data(), tiny_data().splits["train"]
    hinted = {kind: hinted_prompts(data.tokenizer, data.task, train, kind) for kind in HINTS}
    return longest_hint(data.tokenizer, data.task, train.examples), hinted


@functools.cache
def tiny_models(student_depth, teacher_depth, block_size):
    """Two random models of so many blocks, which tiny_pair copies: drawing them takes ten times as long."""
    n_vocab, hint = tiny_data().tokenizer.n_vocab, tiny_hints()[0]
    teacher = longer(sharp_gpt(12, n_vocab, block_size, 12, teacher_depth), hint)
    student = longer(sharp_gpt(8, n_vocab, block_size, 8, student_depth), hint)
    return teacher.requires_grad_(False), student


def tiny_pair(student_depth=1, teacher_depth=1, room=0):
    """A tiny math task and two random models of so many blocks; `room` more positions than the task needs."""
    data, (_, hinted) = tiny_data(), tiny_hints()
    teacher, student = copy.deepcopy(tiny_models(student_depth, teacher_depth, data.block_size + room))
    splits = [data.splits[name] for name in ("train", "val", "test", "ood")]
    return Pair(
        data.task, data.tokenizer, teacher, student.config, student.state_dict(), *splits, data.max_new_tokens, "tiny",
        hinted=dict(hinted),
    )  # fmt: skip


@pytest.fixture(scope="module")
def pair():
    """A tiny math task and two random models."""
    return tiny_pair()


@pytest.fixture(scope="module")
def deep_pair():
    """The same task, and models whose middle block is not their last."""
    return tiny_pair(2, 3)


@pytest.fixture
def unmeasured(monkeypatch):
    """Runs whose models are not evaluated on the way, which takes half of their time."""
    figures = {"score": 0.0, "val_nll": 0.0, "kl_teacher": 0.0, "drift": 0.0}
    monkeypatch.setattr(compare, "validation", lambda *arguments: figures)


def odd_is_right(pair, rows, responses):
    """A scorer that some responses of an untrained model satisfy."""
    return [float(sum(response) % 2) for response in responses]


@pytest.fixture(autouse=True)  # in the files that import it
def lenient(monkeypatch):
    """Scores that untrained models earn: without any, kdrl and sdpo would learn nothing of them."""
    monkeypatch.setattr(compare, "scores", odd_is_right)


def flags(*argv, script=train_skd, **knobs):
    """A script's own flags, with a few small values; `knobs` overwrite what was parsed."""
    argv = ["--lr", "0.005", "--steps", "2", "--batch-size", "4", "--accept-top-k", "60", "--log-every", "1", *argv]
    argv = ["--device", "cpu", *argv]
    return argparse.Namespace(**vars(script.parse_flags(argv)[0]) | knobs)


def weights_of(model):
    return {name: weight.detach().clone() for name, weight in model.state_dict().items()}


def same_weights(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def distance(one, other):
    """The largest difference of two sets of weights."""
    return max((one[name] - other[name]).abs().max().item() for name in one)


def weight_differences(one, other):
    """name -> |difference| of two sets of weights. No key bias changes a softmax:
    its gradient is rounding, and left out."""
    found = {name: (one[name] - other[name]).abs() for name in one}
    return {name: torch.cat(x.chunk(3)[::2]) if name.endswith("qkv.bias") else x for name, x in found.items()}


def moved_apart(one, other):
    """The largest of weight_differences, 0 if there is no weight."""
    return max((difference.max().item() for difference in weight_differences(one, other).values()), default=0.0)


def prompts_of(rollout):
    return [row[:start] for row, start in zip(rollout.tokens.tolist(), rollout.prompt_len.tolist())]


def sources_of(rollout):
    """The set of sources in each row's response."""
    rows = zip(rollout.source.tolist(), rollout.prompt_len.tolist(), rollout.lengths.tolist())
    return [set(row[start:stop]) for row, start, stop in rows]


def greedy_by_loop(model, prompt, budget, eos):
    """Argmax after argmax, the whole prefix anew each time."""
    response = []
    while len(response) < budget and eos not in response:
        response.append(int(adapters.model_logits(model, torch.tensor([prompt + response]))[0, -1].argmax()))
    return response


def cached(monkeypatch, folder):
    """Caches of a teacher's answers go to `folder`."""
    monkeypatch.setattr(training, "TeacherCache", functools.partial(training.TeacherCache, folder=folder))


def padded(rollout, extra=5):
    """The same rollout with `extra` more columns: other tokens, and logits that would be noticed."""
    B = len(rollout.tokens)
    logits = rollout.teacher_logits
    return dataclasses.replace(
        rollout,
        tokens=torch.cat([rollout.tokens, torch.full((B, extra), 7)], 1),
        source=torch.cat([rollout.source, torch.full((B, extra), PROMPT, dtype=torch.int8)], 1),
        teacher_logits=(
            None if logits is None else torch.cat([logits, torch.full((B, extra, logits.size(-1)), 50.0)], 1)
        ),
        rejected_tokens=(
            None
            if rollout.rejected_tokens is None
            else torch.cat([rollout.rejected_tokens, torch.full((B, extra), -1)], 1)
        ),
    )


def state_of(method):
    """What a method knows at one moment: name -> a copy of each of its tensors, and its plain values."""
    tensors = {name: x.detach().clone() for name, x in [*method.named_parameters(), *method.named_buffers()]}
    return tensors | {name: x for name, x in vars(method).items() if isinstance(x, int | float | str | None)}


def distilled(script, row, student, pair, args, seed=1, log=None, report=lambda line: None, checkpointer=None):
    """`distill` of a script, as the laboratory calls it: everything around it as the flags say -> (costs,
    adapted teacher)."""
    run = compare.make_run(pair, args, seed, log, report, checkpointer)
    row = train_okd.resolve(row, args) if script is train_okd else row
    return script.distill(row, student, pair.teacher, pair.train.prompts, pair.train.responses, run)


def teacher_of(row, pair, args, seed=1, **knobs):
    """Whom a row's student learns from, made as a run makes it; `knobs` of the function in methods.TEACHERS."""
    run, student = compare.make_run(pair, args, seed), pair.new_student()
    run.begin(student, pair.train.prompts, pair.train.responses)
    return methods.TEACHERS[row.teacher](train_skd.distill, student, pair.teacher, run, **knobs)


class Watched:
    """One run of `distill` with everything that can be seen of it: rollouts, log lines, weights, costs;
    and of its method.

    `change` is made to every rollout before anybody learns from it. states[i] is what the method knew in step i. What
    is trained on the way to a teacher is not this run's.
    """

    def __init__(self, row, pair, args, seed=1, change=lambda rollout: rollout):
        self.rollouts, self.lines, self.weights, self.states, self.writers = [], [], [], [], []
        self.student, self.change, self.pair = pair.new_student(), change, pair
        self.start = weights_of(self.student)
        make = methods.make_method

        def watch(row, student, teacher, run):
            method = make(row, student, teacher, run)
            if student is self.student:
                self.method, self.teacher, self.row = method, teacher, row
                self.listen(method)
            return method

        methods.make_method = watch
        try:
            self.costs, adapted = distilled(train_skd, row, self.student, pair, args, seed, self)
            assert adapted is None
        finally:
            methods.make_method = make
        self.steps = [line for line in self.lines if line["kind"] == "step"]
        self.evals = [line for line in self.lines if line["kind"] == "eval"]
        self.end = weights_of(self.student)

    def listen(self, method):
        before_step, write = method.before_step, method.write

        def begun(step):
            before_step(step)
            self.states.append(state_of(method))

        def written(step):
            self.rollouts.append(self.change(write(step)))
            self.writers.append(method.writer)
            return self.rollouts[-1]

        method.before_step, method.write = begun, written

    def write(self, kind, **figures):
        self.lines.append({"kind": kind} | figures)
        if kind == "step":
            self.weights.append(weights_of(self.student))
