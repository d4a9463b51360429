"""Laws of the shared plumbing: the starting pair (lab/pairs.py), the evaluation (lab/evaluate.py),
the runs (lab/processes.py)."""

import copy
import json
import math
import random
import re
from dataclasses import replace

import adapters
import pytest
import torch
from tiny import matrix

import sample
import train_skd
from data.tasks import (
    Encoded,
    Example,
    complete,
    encode_example,
    encode_split,
    make_task,
)
from data.tokenizer import train_tokenizer
from lab import arguments, command_line, folders, pairs, processes, records
from lab import evaluate as evaluation
from lab.evaluate import (
    acceptance,
    distances,
    evaluate,
    evaluate_quickly,
    sample_responses,
)
from lab.pairs import PairSettings, batch_order, encode_task, rollout_from_ids
from model import save_file

SETTINGS = PairSettings(
    teacher_shape=(1, 2, 16), student_shape=(1, 2, 8), teacher_steps=5, start_steps=4, student_prompts=10, batch_size=4
)  # fmt: skip


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def sharpen(model, deviation=0.4):
    """Scale all matrices: the rows of a fresh model may be nearly uniform, and little could be told apart on them."""
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() > 1:
                weight.mul_(deviation / weight.std())
    return model


def weights_of(model):
    return {name: weight.clone() for name, weight in model.state_dict().items()}


def same_weights(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def one_line(error):
    """The text of an error that a user sees: one line, not empty."""
    text = str(error.value)
    assert text.strip() and "\n" not in text, repr(text)
    return text


class TextTask:
    """A task of given texts, split -> list of (prompt, response); right is what equals the reference."""

    name, metric, options = "text", "exact", {}

    def __init__(self, **by_split):
        self.by_split = {split: [Example(*pair) for pair in pairs_] for split, pairs_ in by_split.items()}

    def examples(self, split):
        return self.by_split.get(split, [])

    def texts(self):
        return [text for example in self.by_split["train"] for text in (example.prompt, example.response)]

    def corpus_score(self, examples, completions):
        assert 0 < len(examples) == len(completions)
        return sum(example.response == completion for example, completion in zip(examples, completions)) / len(examples)

    def details(self, examples, completions):
        return {"characters": sum(map(len, completions)) / len(completions)}


@pytest.fixture(scope="module")
def data():
    """A tiny math task as token ids."""
    sizes = {"train_examples": 24, "val_examples": 5, "test_examples": 7, "ood_examples": 3}
    return encode_task(make_task("math", difficulty=1, **sizes), SETTINGS)


def load(data, settings, folder):
    """(pair, lines that were reported)"""
    lines = []
    return pairs.load_or_pretrain_pair(data, settings, cache_dir=folder, report=lines.append), lines


@pytest.fixture
def untrained(monkeypatch):
    """pretrain does nothing but note what it was given: for tests of what is built when, and from what."""
    calls = []

    def note(model, prompts, responses, num_steps, batch_size, peak_lr, generator, report, checkpointer):
        calls.append((model.config.n_embd, prompts, responses))
        return model.eval()

    monkeypatch.setattr(pairs, "pretrain", note)
    return calls


# ---------------------------------------------------------------------------------------------------------------------
# pairs: batches


@pytest.mark.parametrize(
    "num_examples,batch_size,num_steps", [(10, 4, 12), (5, 8, 3), (7, 7, 2), (1, 3, 2), (50, 4, 2)]
)
def test_batch_order_is_one_permutation_after_another(num_examples, batch_size, num_steps):
    """Every epoch holds every example once, whether or not the batches divide it."""
    order = batch_order(num_examples, batch_size, num_steps, generator())
    assert order.shape == (num_steps, batch_size) and order.dtype == torch.long
    flat = order.flatten().tolist()
    for start in range(0, len(flat), num_examples):
        epoch = flat[start : start + num_examples]
        assert sorted(epoch) == list(range(num_examples)) or (
            len(epoch) < num_examples and len(set(epoch)) == len(epoch)
        )


def test_batch_order_is_a_function_of_its_seed():
    """The same seed gives the same order, another seed another;
    epochs differ, and a longer run begins like a shorter one."""
    order = batch_order(20, 5, 8, generator(3))
    assert torch.equal(order, batch_order(20, 5, 8, generator(3)))
    assert not torch.equal(order, batch_order(20, 5, 8, generator(4)))
    assert not torch.equal(order[:4], order[4:])
    assert torch.equal(order, batch_order(20, 5, 16, generator(3))[:8])


def test_rollout_of_known_responses():
    """Tokens are prompt + response, the mask is the response with its end token and nothing else,
    labels follow rows."""
    chance = random.Random(0)
    prompts = [[chance.randrange(3) for _ in range(chance.randint(1, 6))] for _ in range(9)]  # 0 is padding, too
    responses = [[chance.randrange(3) for _ in range(chance.randint(0, 5))] + [2] for _ in range(9)]
    labels = [chance.choice([sample.STUDENT, sample.TEACHER, sample.DATASET]) for _ in range(9)]
    rollout = rollout_from_ids(prompts, responses, labels, "cpu", eos_token=2)
    assert rollout.responses() == responses
    for row, (prompt, response, label) in enumerate(zip(prompts, responses, labels)):
        rest = rollout.tokens.size(1) - len(prompt) - len(response)
        assert rollout.tokens[row].tolist() == prompt + response + [0] * rest
        assert rollout.response_mask[row].tolist() == [False] * len(prompt) + [True] * len(response) + [False] * rest
        assert rollout.source[row].tolist() == [sample.PROMPT] * len(prompt) + [label] * len(response) + [0] * rest
    assert rollout.lengths.tolist() == [len(prompt + response) for prompt, response in zip(prompts, responses)]
    assert rollout.source.dtype == torch.int8 and rollout.finished.all()


def test_a_known_response_is_finished_if_it_ends_with_the_end_token():
    """Whoever wrote it, and wherever else the token stands; one that was cut or is empty is not, nor any without."""
    responses = [[5, 2], [2, 5], [5], [], [2]]
    finished = rollout_from_ids([[1, 2]] * 5, responses, [sample.STUDENT, 3, 3, 3, 2], "cpu", eos_token=2).finished
    assert finished.tolist() == [True, False, False, False, True] and finished.dtype == torch.bool
    assert not rollout_from_ids([[1]] * 5, responses, [3] * 5, "cpu").finished.any()


# ---------------------------------------------------------------------------------------------------------------------
# pairs: pretraining


PROMPT_IDS, RESPONSE_IDS = range(0, 4), range(4, 8)  # of the little language below; 8 is the end token


def copy_language(number=40):
    """Prompts over one half of the ids; the response says the same in the other half."""
    chance = random.Random(1)
    prompts = [[chance.choice(PROMPT_IDS) for _ in range(3)] for _ in range(number)]
    return prompts, [[token + 4 for token in prompt] + [8] for prompt in prompts]


def pretrained(steps=60, lr=1e-2, seed=0, batch_size=8):
    prompts, responses = copy_language()
    model = adapters.make_gpt(9, 8, 1, 2, 16, seed=0)
    lines = []
    return pairs.pretrain(model, prompts, responses, steps, batch_size, lr, generator(seed), lines.append), lines


def response_nll(model):
    return distances(model, None, *copy_language())["nll"]


def test_pretraining_learns():
    """The loss on what it trains on falls well below that of a fresh model, and the model comes back ready to use."""
    model, lines = pretrained()
    assert response_nll(model) < 0.7 * response_nll(adapters.make_gpt(9, 8, 1, 2, 16, seed=0))
    assert not model.training and lines and all("\n" not in line for line in lines)


def test_pretraining_is_deterministic():
    """The same seed gives the same weights to the bit, another order of the batches others."""
    one, other, third = (weights_of(pretrained(6, seed=seed)[0]) for seed in (0, 0, 1))
    assert same_weights(one, other) and not same_weights(one, third)


def test_pretraining_has_responses_as_targets_only():
    """Ids that no response holds lose probability at every position: a prompt's token is never a target."""
    prompts, responses = copy_language()
    tokens = torch.tensor([prompt + response for prompt, response in zip(prompts, responses)])
    masses = [
        adapters.model_logits(model, tokens).softmax(-1)[..., list(PROMPT_IDS)].sum(-1)  # (B, T)
        for model in (adapters.make_gpt(9, 8, 1, 2, 16, seed=0), pretrained()[0])
    ]
    assert (masses[1] < masses[0] / 2).all()


def test_pretraining_cools_down():
    """The rate follows the cosine: the weights move far less in the last fifth of the run than in the second."""
    prompts, responses = copy_language()
    model = adapters.make_gpt(9, 8, 1, 2, 16, seed=0)
    seen = []  # the weights after each fifth
    pairs.pretrain(model, prompts, responses, 40, 8, 1e-3, generator(), lambda line: seen.append(weights_of(model)))
    moved = [sum((late[name] - early[name]).norm() for name in late) for early, late in zip(seen, seen[1:])]
    assert len(seen) == 5 and moved[-1] < 0.3 * moved[0]


def test_pretraining_stops_at_nan():
    """A rate that blows up ends with one line that names the step and the rate."""
    with pytest.raises(ValueError) as error:
        pretrained(20, lr=1e30)
    assert "step" in one_line(error) and "1e+30" in one_line(error)


# ---------------------------------------------------------------------------------------------------------------------
# pairs: the cache


def test_second_call_trains_nothing(data, tmp_path, monkeypatch):
    """What was pretrained once is loaded: the same weights to the bit, the same fingerprint, no training, no word."""
    first, said = load(data, SETTINGS, tmp_path)
    assert said
    monkeypatch.setattr(pairs, "pretrain", lambda *args: pytest.fail("trained again"))
    second, said = load(data, SETTINGS, tmp_path)
    assert not said and first.fingerprint == second.fingerprint
    assert same_weights(first.teacher.state_dict(), second.teacher.state_dict())
    assert same_weights(first.student_weights, second.student_weights)


def test_the_pair_is_a_function_of_its_settings(data, tmp_path):
    """Two empty caches give the same weights to the bit; teacher and student start from weights of their own."""
    one, other = (load(data, SETTINGS, tmp_path / name)[0] for name in "ab")
    assert same_weights(one.teacher.state_dict(), other.teacher.state_dict())
    assert same_weights(one.student_weights, other.student_weights)
    twins = replace(SETTINGS, student_shape=SETTINGS.teacher_shape, start_steps=5, student_prompts=None)
    twin, _ = load(data, twins, tmp_path / "a")
    assert not same_weights(twin.teacher.state_dict(), twin.student_weights)


@pytest.mark.parametrize(
    "change,rebuilt",
    [
        ({"seed": 2}, "both"),
        ({"batch_size": 5}, "both"),
        ({"block_size": 40}, "both"),
        ({"hint_share": 0.5}, "both"),
        ({"teacher_shape": (1, 2, 24)}, "teacher"),
        ({"teacher_steps": 6}, "teacher"),
        ({"teacher_lr": 1e-3}, "teacher"),
        ({"teacher_prompts": 9}, "teacher"),
        ({"student_shape": (1, 2, 12)}, "student"),
        ({"start_steps": 3}, "student"),
        ({"start_lr": 1e-3}, "student"),
        ({"student_prompts": 9}, "student"),
        ({"student_start": "raw"}, "student"),
    ],
)
def test_what_matters_changes_the_key(data, tmp_path, untrained, change, rebuilt):
    """A change rebuilds the model that it decides and leaves the other model's file alone; the fingerprint tells."""
    first, _ = load(data, SETTINGS, tmp_path)
    files = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    assert len(files) == len(untrained) == 2
    data = encode_task(data.task, replace(SETTINGS, **change))
    second, _ = load(data, replace(SETTINGS, **change), tmp_path)
    new = sorted(path.name.split("-")[1] for path in tmp_path.iterdir() if path not in files)
    assert new == {"both": ["student", "teacher"]}.get(rebuilt, [rebuilt])
    assert all(path.stat().st_mtime_ns == before for path, before in files.items())
    assert first.fingerprint == load(data, SETTINGS, tmp_path)[0].fingerprint or rebuilt == "both"


def test_the_fingerprint_is_of_the_weights(data, tmp_path, untrained):
    """One number changed in either model is another fingerprint, though the key of the file is the same."""
    first, _ = load(data, SETTINGS, tmp_path)
    for path in tmp_path.iterdir():
        whole = path.read_bytes()
        content = torch.load(path, weights_only=True)
        content["weights"]["norm.bias"][0] += 1e-3
        del content["sha256"]
        save_file(str(path), content)
        assert load(data, SETTINGS, tmp_path)[0].fingerprint != first.fingerprint
        path.write_bytes(whole)


def test_other_text_is_another_pair(data, tmp_path, untrained):
    """The same settings on other examples of the same task share no file."""
    load(data, SETTINGS, tmp_path)
    options = data.task.options
    load(encode_task(make_task("math", seed=1, **options), SETTINGS), SETTINGS, tmp_path)
    assert len(list(tmp_path.iterdir())) == 4


@pytest.mark.parametrize("number", range(len(pairs.PRETRAINING)))
def test_other_code_is_another_pair(data, tmp_path, untrained, monkeypatch, number):
    """An edit of any function that pretraining runs through makes a new pair."""
    load(data, SETTINGS, tmp_path)
    name = pairs.PRETRAINING[number].__name__
    assert re.match(rf"Module\(body=\[(Class|Function)Def\(name='{name}'", pairs.SYNTAX_TREES[number])
    trees = [tree + "an edit" * (place == number) for place, tree in enumerate(pairs.SYNTAX_TREES)]
    monkeypatch.setattr(pairs, "SYNTAX_TREES", trees)
    load(data, SETTINGS, tmp_path)
    assert len(list(tmp_path.iterdir())) == 4


CODE = '''
@register
class Mean:
    """A mean."""

    floor: float = 1e-6

    def of(self, values, weights, floor=2, *, power=1):
        """What it is."""
        total = sum(value**power for value in values)  # a comment
        text = "no docstring"

        def inner(value):
            "Inside."
            return value - floor

        return inner(total / len(weights)), text
'''


def tree_of(code, monkeypatch):
    """The tree of a class whose source is `code`."""
    monkeypatch.setattr(pairs.inspect, "getsource", lambda part: code)
    return pairs.syntax_trees([None])


SAME = [
    ('"""A mean."""', '"""Another\n    mean."""'),
    ('    """A mean."""\n', ""),
    ('"""What it is."""', "'What?'"),
    ('"Inside."', '"Or not."'),
    ("  # a comment", ""),
    ("a comment", "another"),
    ("\n        def inner", "\n\n        # more\n        def inner"),
    ("values, weights, floor=2", "values,\n        weights,\n        floor=2"),
    ("total / len(weights)", "(total / len(weights))"),
    ("values, weights", "values: list, weights: 'a list'"),
    ("power=1)", "power: int = 1) -> float"),
    ('"no docstring"', "'no docstring'"),
    ("\n", "\n    "),
]


@pytest.mark.parametrize("old, new", SAME)
def test_what_is_only_written_differently_is_the_same_pair(monkeypatch, old, new):
    """Docstrings, comments, line breaks, blank lines, brackets, quotes, types of arguments, indent: the same tree."""
    assert old in CODE
    assert tree_of(CODE.replace(old, new), monkeypatch) == tree_of(CODE, monkeypatch)


OTHER = [
    ("1e-6", "1e-7"),
    ("floor=2", "floor=3"),
    ("power=1", "power=1.0"),
    ("value**power", "value*power"),
    ("value - floor", "value + floor"),
    ("value - floor", "floor - value"),
    ("values, weights", "weights, values"),
    ("*, power", "power"),
    ("float =", "int ="),
    ("no docstring", "no  docstring"),
    ("@register\n", ""),
    ("inner(total", "inner(-total"),
    ("def of", "def mean"),
    ("        text = ", "        text = total = "),
    ('"Inside."', 'f"Inside."'),
    ("class Mean", "class Mean(list)"),
]


@pytest.mark.parametrize("old, new", OTHER)
def test_what_is_done_differently_is_another_pair(monkeypatch, old, new):
    """A number, an operator, a default, arguments that swap places, a decorator, a field, a text: another tree."""
    assert CODE.count(old) == 1
    assert tree_of(CODE.replace(old, new), monkeypatch) != tree_of(CODE, monkeypatch)


def test_the_code_is_read_as_it_is_imported():
    """The key holds the trees of PRETRAINING, in its order, without the docstrings that the files hold."""
    assert pairs.syntax_trees(pairs.PRETRAINING) == pairs.SYNTAX_TREES
    said = pairs.cross_entropy.__doc__[:40]
    assert said and not any(said in tree for tree in pairs.SYNTAX_TREES)


def test_what_pretraining_calls_is_in_the_key():
    """Every name of model, losses, sample and pairs that `pretrain` and rollout_from_ids use is in PRETRAINING."""
    listed = {part.__name__ for part in pairs.PRETRAINING}
    for function in (pairs.pretrain, pairs.rollout_from_ids):
        own = {name for name in function.__code__.co_names if hasattr(pairs, name) and callable(getattr(pairs, name))}
        assert own <= listed, own - listed


@pytest.mark.parametrize("damage", [lambda raw: raw[: len(raw) // 2], lambda raw: b"", lambda raw: b"not a model"])
def test_broken_cache_file_is_rebuilt_with_a_word(data, tmp_path, damage):
    """A damaged file is named, built again to the same weights, and whole afterwards; the other file stays."""
    first, _ = load(data, SETTINGS, tmp_path)
    broken, whole = (next(tmp_path.glob(f"*-{which}-*")) for which in ("teacher", "student"))
    untouched = whole.stat().st_mtime_ns
    broken.write_bytes(damage(broken.read_bytes()))
    second, said = load(data, SETTINGS, tmp_path)
    assert any(broken.name in line and "\n" not in line for line in said)
    assert same_weights(first.teacher.state_dict(), second.teacher.state_dict())
    assert whole.stat().st_mtime_ns == untouched
    assert load(data, SETTINGS, tmp_path)[1] == []
    # Nothing half-written.
    assert {path.name for path in tmp_path.iterdir()} == {broken.name, f"{broken.name}.damaged", whole.name}


def test_starts_see_what_they_should(data, tmp_path, untrained):
    """sft: the student's prompts with their responses. raw: each text alone, so that no prompt is ever answered."""
    everything, ten = data.splits["train"].shuffled(SETTINGS.seed), SETTINGS.student_prompts
    load(data, SETTINGS, tmp_path)
    (_, prompts, responses), (_, own_prompts, own_responses) = untrained
    assert (prompts, responses) == (everything.prompts, everything.responses)
    assert (own_prompts, own_responses) == (everything.prompts[:ten], everything.responses[:ten])
    untrained.clear()
    load(data, replace(SETTINGS, student_start="raw"), tmp_path)
    ((width, starts, rests),) = untrained
    assert width == SETTINGS.student_shape[2]
    texts = everything.prompts[:ten] + everything.responses[:ten]
    assert sorted(start + rest for start, rest in zip(starts, rests)) == sorted(texts)
    assert all(len(start) == 1 and rest for start, rest in zip(starts, rests))


def test_prompts_of_pair_are_the_students(data, tmp_path, untrained):
    """Distillation gets the student's prompts alone, the held-out splits whole."""
    pair, _ = load(data, SETTINGS, tmp_path)
    shuffled = data.splits["train"].shuffled(SETTINGS.seed)
    assert pair.train == shuffled.first(10) and sorted(shuffled.prompts) == sorted(data.splits["train"].prompts)
    assert (pair.val, pair.test, pair.ood) == tuple(data.splits[name] for name in ("val", "test", "ood"))
    everything, _ = load(data, replace(SETTINGS, student_prompts=None), tmp_path)
    assert everything.train == shuffled
    other, _ = load(data, replace(SETTINGS, seed=SETTINGS.seed + 1), tmp_path)
    assert other.train != pair.train  # another pair's student has another sample


def test_teacher_is_frozen_and_students_are_copies(data, tmp_path, untrained):
    """No gradient reaches the teacher; each student can be trained without a trace in the
    pair or in another student."""
    pair, _ = load(data, SETTINGS, tmp_path)
    first, second = pair.new_student(), pair.new_student()
    before = copy.deepcopy(pair.student_weights)
    assert not any(weight.requires_grad for weight in pair.teacher.parameters()) and not pair.teacher.training
    assert all(weight.requires_grad for weight in first.parameters())
    tokens = torch.tensor([[1, 2, 3]])
    (first(tokens).logsumexp(-1).sum() + pair.teacher(tokens).sum()).backward()
    assert all(weight.grad is None for weight in pair.teacher.parameters())
    with torch.no_grad():
        for weight in first.parameters():
            weight.add_(1)
    assert same_weights(second.state_dict(), before) and same_weights(pair.student_weights, before)
    assert same_weights(pair.new_student().state_dict(), before)


# ---------------------------------------------------------------------------------------------------------------------
# pairs: a task as ids


def test_vocabulary_in_use_counts_ids(data):
    """The ids that occur in the training text, the end token included, and nothing of the 256 bytes beside them."""
    used = {data.tokenizer.eos_token}
    for text in data.task.texts():
        used |= set(data.tokenizer.encode(text))
    assert data.vocabulary_in_use == len(used) < data.tokenizer.n_vocab


def test_default_accept_top_k():
    """25 at the paper's 256,000 ids, 3 at 19, at least 1, and never less for more ids."""
    assert pairs.default_accept_top_k(256_000) == 25 and pairs.default_accept_top_k(19) == 3
    values = [pairs.default_accept_top_k(number) for number in [*range(1, 500), *range(500, 300_000, 997)]]
    assert values == sorted(values) and values[0] >= 1


def test_longer_examples_are_left_out():
    """With --block-size exactly the examples that fit stay, their columns stay aligned, and the rest is counted.

    Out of distribution only a prompt has to fit: its longer reference is never fed to a model.
    """
    chance = random.Random(2)
    rows = [(f"prompt {'x' * chance.randrange(20)}", "y" * chance.randrange(1, 25)) for _ in range(80)]
    task = TextTask(train=rows[:30], val=rows[30:45], test=rows[45:60], ood=rows[60:])
    whole = encode_task(task, replace(SETTINGS, vocab_size=257))
    assert whole.dropped == 0 and sum(len(split.prompts) for split in whole.splits.values()) == 80
    lengths = {
        name: [len(p) + (1 if name == "ood" else len(r)) for p, r in zip(split.prompts, split.responses)]
        for name, split in whole.splits.items()
    }
    for block_size in (26, 32, 40):
        data = encode_task(task, replace(SETTINGS, vocab_size=257, block_size=block_size))
        for name, split in data.splits.items():
            examples = whole.splits[name].examples
            kept = [example for example, length in zip(examples, lengths[name]) if length <= block_size]
            assert split.examples == kept
            ids = [encode_example(data.tokenizer, example) for example in kept]
            assert list(zip(split.prompts, split.responses)) == ids
        assert data.block_size == block_size and 1 <= data.max_new_tokens < block_size
        assert data.dropped == sum(length > block_size for column in lengths.values() for length in column) > 0


@pytest.mark.parametrize("long_one", ["val", "test"])
def test_every_example_fits_the_block(long_one):
    """Whatever the splits hold, what is measured later fits the model:
    a long held-out reference must not end the run."""
    splits = {name: [(f"{name} {i} ?", "ok") for i in range(5)] for name in ("train", "val", "test")}
    splits[long_one][2] = ("long ?", "no " * 60)
    data = encode_task(TextTask(**splits), SETTINGS)
    for split in data.splits.values():
        for prompt, response in zip(split.prompts, split.responses):
            assert len(prompt) + len(response) <= data.block_size + 1  # the last token is never fed
    budget = max(len(response) for response in data.splits["train"].responses)
    assert budget < data.max_new_tokens < data.block_size


@pytest.mark.parametrize("giant", ["train", "val", "test"])
def test_one_giant_line_does_not_decide_the_block(giant):
    """An example of 20,000 tokens is refused in one line, before any model has as many positions;
    --block-size leaves it out."""
    splits = {name: [(f"{name} {i} ?", "ok") for i in range(5)] for name in ("train", "val", "test")}
    splits[giant][2] = ("long ?", "".join(random.Random(1).choices("abcdefghij", k=20_000)))
    settings = replace(SETTINGS, vocab_size=257)
    with pytest.raises(ValueError) as error:
        encode_task(TextTask(**splits), settings)
    assert "--block-size 1024" in one_line(error)
    data = encode_task(TextTask(**splits), replace(settings, block_size=64))
    assert data.dropped == 1 and data.block_size == 64
    insisted = encode_task(TextTask(**splits), replace(settings, block_size=30_000))
    assert insisted.dropped == 0


def sized(lengths, prompt="q?"):
    """Rows whose references have these lengths in tokens, the end token included, with one token per letter."""
    return [(prompt, "".join(random.Random(n).choices("abcdefgh", k=length - 1))) for n, length in enumerate(lengths)]


BYTES = replace(SETTINGS, vocab_size=257)


@pytest.mark.parametrize(
    "lengths, own_data, budget",
    [
        ([8] * 50, True, 10),  # all alike: an eighth more, at least two
        ([40] * 199 + [79], True, 88),  # twice as long as usual is not out of the way
        ([40] * 199 + [4500], True, 90),
        ([40] * 197 + [4500] * 3, True, 5062),  # more than a hundredth: not out of the way either
        ([40] * 199 + [4500], False, 5062),  # a made task keeps its budget
        ([2] * 90 + [100] * 10, True, 112),  # one answer in ten is long
        ([5, 300], True, 337),  # of few references each is more than a hundredth
        ([1], True, 3),
    ],
)
def test_the_budget_follows_the_usual_reference(lengths, own_data, budget):
    """An eighth more than the longest reference, which in own data counts as twice the 99th percentile at most."""
    for order in (lengths, lengths[::-1]):
        assert pairs.default_budget(order, own_data) == budget


def test_one_long_answer_does_not_decide_for_all():
    """200 short answers and one of 900 tokens: it is left out of training, and models are as long as without it."""
    held_out = {"val": sized([8] * 3), "test": sized([8] * 3)}
    usual, long_one = sized([8] * 200), sized([8] * 77 + [900] + [8] * 123)
    without = encode_task(TextTask(train=usual, **held_out), BYTES)
    data = encode_task(TextTask(train=long_one, **held_out), BYTES)
    assert (data.max_new_tokens, data.block_size) == (18, 20) and without.max_new_tokens == 10
    assert (data.too_long, data.dropped, len(data.splits["train"].prompts)) == (1, 0, 200)
    assert max(map(len, data.splits["train"].responses)) == 8
    assert data.splits["train"].examples == [Example(*row) for row in long_one if len(row[1]) < 100]
    lines = list(pairs.about_choice(data, BYTES, 4))
    assert lines[-1] == (
        "left out of training: 1 of 201 references, which are longer than 18 tokens (--max-new-tokens)"
    )


def test_max_new_tokens_decides_what_is_learned():
    """Training references of up to N tokens stay whole, longer ones go; held-out ones stay and are told; N fits."""
    rows = sized([3, 5, 8, 9, 20])
    task = TextTask(train=rows, val=sized([3, 4]), test=sized([8, 9, 30]))
    data = encode_task(task, replace(BYTES, max_new_tokens=8))
    assert (data.max_new_tokens, data.too_long) == (8, 2)
    assert [len(response) for response in data.splits["train"].responses] == [3, 5, 8]
    assert all(response[-1] == data.tokenizer.eos_token for response in data.splits["train"].responses)  # none is cut
    assert [len(response) for response in data.splits["test"].responses] == [8, 9, 30] and data.block_size == 32
    told = [line for line in pairs.about_choice(data, BYTES, 4) if "equal to them" in line]
    assert len(told) == 1 and told[0].startswith("2 of 3 test references are longer than 8 tokens")
    assert encode_task(task, replace(BYTES, max_new_tokens=100)).block_size == 102
    assert encode_task(task, replace(BYTES, max_new_tokens=100)).max_new_tokens == 100
    with pytest.raises(ValueError) as error:
        encode_task(task, replace(BYTES, max_new_tokens=2))
    assert "--max-new-tokens 2 leaves no training example: the shortest reference has 3 tokens" in one_line(error)


def test_a_made_task_keeps_its_budget(data):
    """An eighth more than the longest reference, and every example: what its studies were measured with."""
    longest = max(map(len, data.splits["train"].responses))
    assert data.max_new_tokens == longest + max(2, longest // 8) and data.too_long == 0
    assert [len(split.prompts) for split in data.splits.values()] == [24, 5, 7, 3]
    task = TextTask(train=sized([8] * 199 + [300]), val=sized([8]), test=sized([8]))
    for name, budget, too_long in (("text", 18, 1), ("math", 337, 0)):  # whatever its references are
        task.name = name
        data = encode_task(task, BYTES)
        assert (data.max_new_tokens, data.too_long) == (budget, too_long)


def test_what_padding_costs_by_counting():
    """Expected longest row of a batch with and without the rows that stand apart, against drawn batches."""
    chance, lengths = random.Random(5), [50] * 198 + [70, 4500]
    few, others, times = pairs.cost_of_longest(lengths, 64)
    drawn = [
        sum(max(chance.choices(rows, k=64)) for _ in range(2000)) / 2000 for rows in (lengths, sorted(lengths)[:-1])
    ]
    assert (few, others) == (1, 70) and times == pytest.approx(drawn[0] / drawn[1], rel=0.1)
    assert pairs.cost_of_longest([50] * 980 + [60] * 18 + [3000, 4000], 64)[:2] == (2, 60)
    assert pairs.cost_of_longest(list(range(20, 420)), 64)[2] < 1.02  # lengths of all kinds: nobody stands apart
    assert pairs.cost_of_longest([7] * 30, 64)[2] == 1.0
    assert pairs.cost_of_longest([7], 64) == pairs.cost_of_longest([], 64) == (0, 0, 1.0)


def test_a_row_that_makes_the_others_slow_is_told():
    """One prompt far longer than the rest: a warning with its length, its price, and the flag that leaves it out,
    which does."""
    rows, settings = sized([8] * 40) + sized([8], "why? " * 200), replace(BYTES, student_prompts=None)
    task = TextTask(train=rows, val=sized([8] * 3), test=sized([8] * 3))
    (line,) = pairs.about_choice(encode_task(task, settings), settings, 4)
    assert line.startswith("warning: 1 of 41 train examples with up to 1,008 tokens, all others with at most 10: padd")
    settings = replace(settings, block_size=int(re.search(r"--block-size (\d+) leaves", line)[1]))
    data = encode_task(task, settings)
    assert data.dropped == 1 and list(pairs.about_choice(data, settings, 4)) == []


def test_what_is_drawn_is_told():
    """One line says how many of how many, for each flag that leaves some out and for the curves."""
    task = TextTask(train=sized([8] * 30), val=sized([8] * 250), test=sized([8] * 6))
    data = encode_task(task, BYTES)
    data.splits["test"] = data.splits["test"].first(4)
    assert list(pairs.about_choice(data, replace(BYTES, teacher_prompts=20), 4, measure=4)) == [
        "drawn at random: 10 of your 30 prompts for the student (--student-prompts, 0 for all), 20 of your 30 for the "
        "teacher (--teacher-prompts), 4 of your 6 test examples (--measure), 200 of your 250 val examples for "
        "the curves"
    ]
    everything = replace(BYTES, student_prompts=None)
    data = encode_task(TextTask(**{name: sized([8] * 30) for name in ("train", "val", "test")}), everything)
    assert list(pairs.about_choice(data, everything, 4, measure=30)) == []


def test_another_choice_is_another_pair(tmp_path, untrained):
    """The prompts that were drawn decide the key: the lines in another order share both models; without a line that was
    not drawn the student stays and the teacher, who learns all, is another; without one that was, both are."""
    held_out = {split: [{"prompt": f"{split}?", "response": "ab"}] for split in ("val", "test")}

    def files(lines):
        for split, rows in ({"train": lines} | held_out).items():
            (tmp_path / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)))
        data = encode_task(make_task("jsonl", data_dir=tmp_path), BYTES)
        load(data, BYTES, tmp_path / "cache")
        found = sorted(path.name.split("-")[1] for path in (tmp_path / "cache").iterdir())
        return found, [example.prompt for example in data.splits["train"].shuffled(BYTES.seed).examples]

    lines = [{"prompt": f"{i}?", "response": "ab"} for i in range(60)]
    found, prompts = files(lines)
    assert found == ["student", "teacher"] and [len(rows) for _, rows, _ in untrained] == [60, 10]
    assert files(lines[::-1])[0] == found
    assert files([line for line in lines if line["prompt"] != prompts[10]])[0] == ["student", "teacher", "teacher"]
    assert files([line for line in lines if line["prompt"] != prompts[9]])[0] == ["student"] * 2 + ["teacher"] * 3


@pytest.mark.parametrize("empty", ["train", "val", "test"])
def test_no_split_that_is_used_is_empty(empty):
    """A split that a block size leaves without examples ends with one line that names it, before any training."""
    splits = {name: [(f"{name} {i} ?", "ok") for i in range(5)] for name in ("train", "val", "test")}
    splits[empty] = [("a far too long prompt " * 5, "ok")]
    with pytest.raises(ValueError) as error:
        encode_task(TextTask(**splits), replace(SETTINGS, vocab_size=257, block_size=20))
    assert "--block-size" in one_line(error)


def test_tasks_without_text_are_refused():
    """No train or no test examples: one line says which."""
    for empty in ("train", "test"):
        splits = {name: [(f"{name} {i} ?", "ok")] for i in range(2) for name in ("train", "val", "test")}
        task = TextTask(**splits)
        task.by_split[empty] = []
        task.texts = lambda: ["some text"]
        with pytest.raises(ValueError) as error:
            encode_task(task, SETTINGS)
        assert empty in one_line(error)


# ---------------------------------------------------------------------------------------------------------------------
# evaluate


@pytest.fixture(scope="module")
def measured():
    """(student, teacher, task, tokenizer, encoded) of random sharp models;
    half of the references are greedy answers."""
    texts = [(f"{name}{i}?", "yes") for name in "ab" for i in range(5)]
    tokenizer = train_tokenizer([text for pair in texts for text in pair], 257)
    student, teacher = (sharpen(adapters.make_gpt(257, 24, 1, 2, width, seed=width)) for width in (8, 12))
    prompts = [tokenizer.encode(prompt) for prompt, _ in texts]
    greedy = [greedy_by_loop(student, prompt, BUDGET, tokenizer.eos_token) for prompt in prompts]
    answers = [text if i % 2 else (text[0], complete(tokenizer, [greedy[i]])[0]) for i, text in enumerate(texts)]
    task = TextTask(train=answers, test=answers)
    encoded = Encoded(task.examples("test"), prompts, [tokenizer.encode(response) + [256] for _, response in texts])
    return student, teacher, task, tokenizer, encoded


BUDGET = 7


def greedy_by_loop(model, prompt, budget, eos):
    """Argmax after argmax, the whole prefix anew each time."""
    response = []
    while len(response) < budget and eos not in response:
        response.append(int(adapters.model_logits(model, torch.tensor([prompt + response]))[0, -1].argmax()))
    return response


def figures_of(measured, **changes):
    student, teacher, task, tokenizer, encoded = measured
    arguments = {"gamma": 3, "accept_top_k": 40, "seed": 5} | changes
    return evaluate(student, arguments.pop("teacher", teacher), task, tokenizer, encoded, BUDGET, **arguments)


def by_loop(student, teacher, prompts, responses):
    """The figures of `distances`, token by token in float64."""
    sums, count = (
        dict.fromkeys(("nll", "kl_teacher", "agreement", "student_entropy", "teacher_entropy", "logit_std"), 0.0),
        0,
    )
    for prompt, response in zip(prompts, responses):
        for place, token in enumerate(response):
            prefix = torch.tensor([prompt + response[:place]])
            one, two = (
                adapters.model_logits(model, prefix)[0, -1].double().softmax(-1).tolist()
                for model in (student, teacher)
            )
            row = adapters.model_logits(student, prefix)[0, -1].double()
            sums["logit_std"] += ((row - row.mean()) ** 2).sum().div(len(row) - 1).sqrt().item()
            sums["nll"] -= math.log(one[token])
            sums["kl_teacher"] += sum(b * math.log(b / a) for a, b in zip(one, two))
            sums["agreement"] += one.index(max(one)) == two.index(max(two))
            sums["student_entropy"] -= sum(a * math.log(a) for a in one)
            sums["teacher_entropy"] -= sum(b * math.log(b) for b in two)
            count += 1
    return {name: total / count for name, total in sums.items()}


def test_distances_by_hand(measured):
    """Every figure is the mean over response tokens of its definition;
    a batch, its padding and its order do not matter."""
    student, teacher, _, _, encoded = measured
    chance = random.Random(0)
    responses = [[chance.randrange(257) for _ in range(chance.randint(1, 9))] for _ in encoded.prompts]
    prompts = [prompt * chance.randint(1, 3) for prompt in encoded.prompts]
    wanted = by_loop(student, teacher, prompts, responses)
    for batch_size in (1, 3, 128):
        found = distances(student, teacher, prompts, responses, batch_size=batch_size)
        assert found == pytest.approx(wanted, rel=1e-4)
    alone = distances(student, None, prompts, responses)
    assert alone == pytest.approx({name: wanted[name] for name in ("nll", "student_entropy", "logit_std")}, rel=1e-4)


def test_distances_to_an_adapted_teacher(measured):
    """Its figures are the definitions with other models in their places;
    drift is KL(original || adapted), not the way back."""
    student, teacher, _, _, encoded = measured
    adapted = sharpen(adapters.make_gpt(257, 24, 1, 2, 10, seed=10))
    texts = encoded.prompts, encoded.responses
    found = distances(student, teacher, *texts, adapted)
    original, to_adapted, moved, back = (
        by_loop(*models, *texts)
        for models in ((student, teacher), (student, adapted), (adapted, teacher), (teacher, adapted))
    )
    wanted = {"kl_adapted_teacher": to_adapted["kl_teacher"], "agreement_adapted": to_adapted["agreement"]}
    wanted |= {"adapted_nll": moved["nll"], "drift": moved["kl_teacher"]}
    assert found == pytest.approx(original | wanted, rel=1e-4)
    assert abs(back["kl_teacher"] / moved["kl_teacher"] - 1) > 0.01


def test_easy_and_hard_by_hand():
    """Hard: at or above the median of 1 - teacher(token); means of either side."""
    columns = {
        "uncertainty": torch.tensor([0.1, 0.9, 0.5, 0.2, 0.6]),
        "kl_teacher": torch.tensor([1.0, 2.0, 4.0, 3.0, 9.0]),
        "agreement": torch.tensor([1.0, 0.0, 0.0, 1.0, 1.0]),
    }
    assert evaluation.easy_and_hard(columns) == pytest.approx(
        {"kl_teacher_easy": 2, "kl_teacher_hard": 5, "agreement_easy": 1, "agreement_hard": 1 / 3}
    )


@pytest.mark.parametrize("values,upper", [
    ([0, 0, 0, 0, 7], [0, 0, 0, 0, 1]),  # the median is 0, and all would be hard
    ([7, 0, 0, 0, 0, 7, 0], [1, 0, 0, 0, 0, 1, 0]),
    ([0, 3, 3, 3, 7], [0, 1, 1, 1, 1]),
    ([0, 1, 1, 2, 2], [0, 0, 0, 1, 1]),
    ([0, 0, 1, 1, 2], [0, 0, 1, 1, 1]),
    ([4, 4, 4], [1, 1, 1]),
    ([3, 1, 2, 4], [1, 0, 1, 1]),  # without ties at the median: at or above it, of an even number the lower one
    ([1], [1]),
    ([], []),
])  # fmt: skip
def test_ties_at_the_median_stay_together(values, upper):
    """On the side that leaves the halves nearest in size; the order makes no difference."""
    for order in (list(range(len(values))), list(range(len(values)))[::-1]):
        found = evaluation.upper_half(torch.tensor([values[i] for i in order], dtype=torch.float32))
        assert found.tolist() == [bool(upper[i]) for i in order]


def test_halves_of_random_values():
    """Never is an equal value on both sides, a lower one above a higher one, or a side empty that need not be."""
    chance = random.Random(4)
    for _ in range(200):
        most, length = chance.choice([1, 3, 50]), chance.randint(3, 12)
        values = torch.tensor([float(chance.randint(0, most)) for _ in range(length)])
        upper = evaluation.upper_half(values)
        assert upper.any() and (upper.all() == (len(set(values.tolist())) == 1))
        if not upper.all():
            assert values[upper].min() > values[~upper].max()
        if int((values == values.median()).sum()) == 1:
            assert torch.equal(upper, values >= values.median())


def test_a_mean_over_nothing_is_none():
    """A teacher that is equally sure of every token knows no easy ones: their figures are null, not 0."""
    columns = {"uncertainty": torch.zeros(4), "kl_teacher": torch.arange(4.0)} | dict.fromkeys(
        ("agreement", "logit_std"), torch.ones(4)
    )
    found = evaluation.easy_and_hard(columns)
    missing = {name for name, value in found.items() if value is None}
    assert missing == {"kl_teacher_easy", "agreement_easy", "logit_std_easy"}
    assert (found["kl_teacher_hard"], found["agreement_hard"]) == (1.5, 1.0)
    sure = evaluation.easy_and_hard(columns | {"uncertainty": torch.tensor([0.0, 0, 0, 0.5])})
    assert (sure["kl_teacher_easy"], sure["kl_teacher_hard"]) == (1.0, 3.0)
    assert evaluation.easy_and_hard({name: column[:0] for name, column in columns.items()}).keys() == found.keys()


def test_nothing_judged_has_no_rate(measured, monkeypatch):
    """A sampler whose rollouts hold no judged proposal has no acceptance, rather than one of 0."""
    student, teacher, _, tokenizer, encoded = measured
    monkeypatch.setattr(sample.Rollout, "counts", lambda self: {"accepted": 0, "judged": 0})
    arguments = {"max_new_tokens": BUDGET, "eos_token": tokenizer.eos_token, "gamma": 2, "seed": 5}
    assert acceptance(sample.interleaved_generate, student, teacher, encoded.prompts, **arguments) is None


def test_exposure_error_by_hand():
    """100 (R - E) / E over places below the length; None where the teacher's own path costs nothing."""
    own = {"place": torch.tensor([0.0, 1, 2, 0, 1]), "kl_teacher": torch.tensor([1.0, 2, 90, 3, 4])}
    other = {"place": torch.tensor([0.0, 1, 0, 7]), "kl_teacher": torch.tensor([2.0, 2, 4, 90])}
    assert evaluation.exposure_error(own, other, "kl_teacher", length=2) == pytest.approx(100 * (10 - 8) / 8)
    assert evaluation.exposure_error(own, other | {"kl_teacher": torch.zeros(4)}, "kl_teacher") is None
    four, eight = ({"place": torch.arange(n).float(), "kl_teacher": torch.full((n,), 0.5)} for n in (4, 8))
    assert evaluation.exposure_error(four, eight, "kl_teacher") == -50  # sums, not means: a shorter path costs less


def test_evaluate_by_hand(measured):
    """val_nll and kl_teacher are of the references, kl_on_policy and agreement of the own samples, per token."""
    student, teacher, _, tokenizer, encoded = measured
    found = figures_of(measured)
    on_references = by_loop(student, teacher, encoded.prompts, encoded.responses)
    sampled, _ = sample_responses(student, encoded.prompts, BUDGET, tokenizer.eos_token, seed=5)
    on_policy = by_loop(student, teacher, encoded.prompts, sampled)
    wanted = {
        "val_nll": on_references["nll"], "kl_teacher": on_references["kl_teacher"],
        "agreement": on_references["agreement"], "student_entropy": on_references["student_entropy"],
        "teacher_entropy": on_references["teacher_entropy"], "kl_on_policy": on_policy["kl_teacher"],
        "agreement_on_policy": on_policy["agreement"],
    }  # fmt: skip
    assert {name: found[name] for name in wanted} == pytest.approx(wanted, rel=1e-4)
    assert found["mean_length_sampled"] == sum(map(len, sampled)) / len(sampled)


def test_score_counts_greedy_answers(measured):
    """score is the task's own count over greedy answers, score_sampled over samples;
    lengths and ends are counted, too."""
    student, _, task, tokenizer, encoded = measured
    eos = tokenizer.eos_token
    greedy = [greedy_by_loop(student, prompt, BUDGET, eos) for prompt in encoded.prompts]
    assert sample_responses(student, encoded.prompts, BUDGET, eos, seed=9, temperature=0)[0] == greedy
    right = [i for i in range(10) if complete(tokenizer, [greedy[i]])[0] == encoded.examples[i].response]
    assert len(right) == 5
    found = figures_of(measured)
    assert found["score"] == 0.5
    sampled, finished = sample_responses(student, encoded.prompts, BUDGET, eos, seed=5)
    assert found["score_sampled"] == task.corpus_score(encoded.examples, complete(tokenizer, sampled))
    assert found["mean_length"] == sum(map(len, greedy)) / 10
    assert found["eos_share"] == sum(eos in response for response in greedy) / 10
    assert found["eos_share_sampled"] == finished == sum(eos in response for response in sampled) / 10
    assert found["task_characters"] == sum(map(len, complete(tokenizer, greedy))) / 10
    assert found["task_characters_sampled"] == sum(map(len, complete(tokenizer, sampled))) / 10


def test_score_out_of_distribution(measured):
    """The same examples out of distribution have the same score; without examples there is none."""
    some = Encoded(*(column[:3] for column in measured[-1]))
    whole, part = figures_of((*measured[:-1], some)), figures_of(measured, ood=some)
    assert part["score_ood"] == whole["score"] == pytest.approx(2 / 3)
    assert (
        figures_of(measured)["score_ood"] is None and figures_of(measured, ood=Encoded([], [], []))["score_ood"] is None
    )


def students_share(rollout):
    return int((rollout.source == sample.STUDENT).sum()) / int(rollout.response_mask.sum())


def test_accept_rate_is_the_share_of_the_students_tokens(measured):
    """Every token of a rollout was judged: accept_rate is the student's share of them, for any gamma and batch."""
    student, teacher, _, tokenizer, encoded = measured
    found = figures_of(measured)
    keys = range(len(encoded.prompts))
    common = {"eos_token": tokenizer.eos_token, "row_keys": keys}
    rollout = sample.interleaved_generate(
        student, teacher, encoded.prompts, BUDGET, gamma=1, accept_top_k=40, generator=generator(5), **common
    )
    assert found["accept_rate"] == students_share(rollout)
    assert 0 < found["accept_rate"] < 1
    rollout = sample.speculative_generate(
        student, teacher, encoded.prompts, BUDGET, gamma=1, generator=generator(5), **common
    )
    assert found["draft_accept_rate"] == students_share(rollout)
    for batch_size in (1, 4):
        rate = acceptance(
            sample.interleaved_generate, student, teacher, encoded.prompts, batch_size, max_new_tokens=BUDGET,
            eos_token=tokenizer.eos_token, gamma=5, accept_top_k=40, seed=5,
        )  # fmt: skip
        assert rate == found["accept_rate"]


def test_accept_rate_at_its_limits(measured):
    """K = 0 accepts nothing, K = V everything; as a draft for itself a model loses nothing and is at no distance."""
    student = measured[0]
    assert figures_of(measured, accept_top_k=0)["accept_rate"] == 0
    assert figures_of(measured, accept_top_k=257)["accept_rate"] == 1
    itself = figures_of(measured, teacher=student)
    assert itself["draft_accept_rate"] > 0.98 and itself["agreement"] == itself["agreement_on_policy"] == 1
    assert abs(itself["kl_teacher"]) < 1e-6 and abs(itself["kl_on_policy"]) < 1e-6


def test_batch_size_changes_no_sample(measured):
    """Rows have noise of their own: any chunking gives the same responses, in order; another seed gives others."""
    student, _, _, tokenizer, encoded = measured
    eos = tokenizer.eos_token
    wanted = sample_responses(student, encoded.prompts, BUDGET, eos, seed=5)
    for batch_size in (1, 3, 10):
        assert sample_responses(student, encoded.prompts, BUDGET, eos, seed=5, batch_size=batch_size) == wanted
    assert sample_responses(student, encoded.prompts, BUDGET, eos, seed=6) != wanted
    same_prompt = sample_responses(student, encoded.prompts[:1] * 6, BUDGET, eos, seed=5)[0]
    assert len(set(map(tuple, same_prompt))) > 1  # six samples of one prompt, not one sample six times


def test_without_a_teacher_there_are_no_distances(measured):
    """teacher None: what needs a teacher is None, the rest is unchanged."""
    alone, both = figures_of(measured, teacher=None), figures_of(measured)
    needs_teacher = {
        "kl_teacher", "kl_on_policy", "accept_rate", "draft_accept_rate", "agreement", "agreement_on_policy",
        "teacher_entropy", "exposure_error", "topk_overlap", "topk_overlap_on_policy", "entropy_gap",
        "entropy_gap_on_policy",
    }  # fmt: skip
    assert {name for name, value in alone.items() if value is None} == needs_teacher | {"score_ood"}
    needs_teacher |= {name for name in both if name.endswith(("_easy", "_hard"))}
    assert needs_teacher & set(alone) == needs_teacher - {name for name in both if name.endswith(("_easy", "_hard"))}
    assert {name: value for name, value in both.items() if name not in needs_teacher} == {
        name: value for name, value in alone.items() if name not in needs_teacher
    }


def test_figures_are_json_and_models_are_left_alone(measured):
    """A flat dict of numbers and None; measuring moves no weight, leaves no gradient, and repeats itself."""
    student, teacher = measured[:2]
    before = weights_of(student), weights_of(teacher)
    state = torch.get_rng_state()
    found = figures_of(measured)
    assert json.loads(json.dumps(found, allow_nan=False)) == found == figures_of(measured)
    assert all(value is None or type(value) in (int, float) for value in found.values())
    assert same_weights(before[0], student.state_dict()) and same_weights(before[1], teacher.state_dict())
    assert all(weight.grad is None for model in (student, teacher) for weight in model.parameters())
    assert torch.equal(state, torch.get_rng_state())  # the global generator belongs to nobody


def test_quick_figures_are_those_of_evaluate(measured):
    """A point of a learning curve equals the figures of the full evaluation."""
    student, teacher, task, tokenizer, encoded = measured
    quick, full = evaluate_quickly(student, teacher, task, tokenizer, encoded, BUDGET), figures_of(measured)
    of_task = {name for name in full if name.startswith("task_") and not name.endswith("_sampled")}
    assert quick == {name: full[name] for name in ("score", "score_sampled", "val_nll", "kl_teacher", *of_task)}
    assert of_task


def test_complete_drops_one_end_token(measured):
    """With or without the end token a response gives the same text; an empty response the empty text."""
    tokenizer = measured[3]
    ids = tokenizer.encode("Ünder 3+4")
    assert (
        complete(tokenizer, [ids, ids + [tokenizer.eos_token], [], [tokenizer.eos_token]])
        == ["Ünder 3+4"] * 2 + ["", ""]
    )


def test_encode_split_keeps_rows_together(data):
    """Prompts, responses and examples of a row belong together, and decode to the example's text."""
    for split in data.splits.values():
        assert len(split.examples) == len(split.prompts) == len(split.responses)
        for example, prompt, response in zip(split.examples, split.prompts, split.responses):
            assert data.tokenizer.decode(prompt) == example.prompt
            assert (
                response[-1] == data.tokenizer.eos_token
                and complete(data.tokenizer, [response]) == [example.response]
            )
    assert encode_split(data.tokenizer, []) == Encoded([], [], [])


# ---------------------------------------------------------------------------------------------------------------------
# runs


def shared_parser():
    parser = command_line.Parser(prog="some.py")
    command_line.add_shared_flags(parser, {"one": 1, "two": 2}, ("one",), {"tiny": {}, "small": {}})
    return parser


@pytest.mark.parametrize(
    "argv", [["--nope"], ["--seeds", "many"], ["--device", "tpu"], ["--lr"], ["extra"], ["--size", "huge"]]
)
def test_parser_errors_are_one_line(argv, capsys):
    """What argparse refuses is one line on stderr with the program's name and where to look, and status 2."""
    with pytest.raises(SystemExit) as stop:
        shared_parser().parse_args(argv)
    out, err = capsys.readouterr()
    assert stop.value.code == 2 and out == "" and err.count("\n") == 1
    assert err.startswith("some.py: ") and "--help" in err


def test_help_is_complete(capsys):
    """--help prints (a stray % in a help text would raise) and names every flag of the contract."""
    with pytest.raises(SystemExit) as stop:
        shared_parser().parse_args(["--help"])
    text = capsys.readouterr().out
    flags = (
        "device task data-dir variants steps batch-size lr gamma accept-top-k reduction list-variants seeds seed size "
        "quick"
    )
    assert stop.value.code == 0 and all(f"--{flag}" in text for flag in f"{flags} out resume jobs".split())


def test_variants_are_picked_by_name():
    """main, all, or names once each in the order given; an unknown one is named beside the known ones."""
    parser = shared_parser()

    def picked(text):
        return arguments.check_shared_flags(parser.parse_args(["--variants", text]), {"one": 1, "two": 2}, ("one",))

    assert picked("main") == ["one"] and picked("all") == ["one", "two"] and picked("two,one,two") == ["two", "one"]
    for wrong in ("three", "one,three", "", "one,"):
        with pytest.raises(ValueError) as error:
            picked(wrong)
        assert "one, two" in one_line(error)


def test_auto_takes_cuda_then_cpu(monkeypatch):
    """auto takes CUDA, else the CPU, and says where it leaves MPS alone, which is taken when asked for; what is asked
    for and absent ends with one line that says what there is."""
    there = {"cuda": True, "mps": True}
    monkeypatch.setattr(torch.cuda, "is_available", lambda: there["cuda"])
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: there["mps"])
    monkeypatch.setattr(torch.version, "cuda", None)  # whichever torch this is: one for a Mac
    found = []
    for gone in (None, "cuda", "mps"):
        there.update({gone: False} if gone else {})
        device = processes.pick_device("auto").type
        found.append((device, "--device mps" in (processes.device_note("auto", device) or "")))
        assert not there["mps"] or processes.pick_device("mps").type == "mps"
        assert processes.device_note("cpu", "cpu") is None  # said to those who asked for nothing
    assert found == [("cuda", False), ("cpu", True), ("cpu", False)]
    assert processes.pick_device("cpu") == torch.device("cpu")
    for absent in ("cuda", "mps"):
        with pytest.raises(ValueError) as error:
            processes.pick_device(absent)
        assert absent in one_line(error) and "cpu" in one_line(error)


def test_run_folders_are_numbered(tmp_path, monkeypatch):
    """Without --out each run gets the next number (10 follows 9); --resume takes the last one."""
    monkeypatch.setattr(folders, "ROOT", tmp_path)
    made = []
    for _ in range(11):
        made.append(folders.make_run_folder(None, False, "skd-math"))
        (made[-1] / "sft_pair1_seed1.jsonl").write_text("{}\n")
    assert [folder.name for folder in made] == [f"skd-math-{number}" for number in range(1, 12)]
    assert folders.make_run_folder(None, True, "skd-math") == made[-1]
    assert folders.make_run_folder(None, True, "skd-scan").name == "skd-scan-1"  # nothing to resume: a new one
    (tmp_path / "runs" / "skd-math-2-my-notes").mkdir()  # not ours: it must not stop anybody
    assert folders.make_run_folder(None, False, "skd-math").name == "skd-math-12"


def test_finished_records_are_not_mixed(tmp_path):
    """A folder with records is refused without --resume, taken with it; an empty or new one is fine and stays empty."""
    folder = tmp_path / "deep" / "out"
    assert (
        folders.make_run_folder(str(folder), False, "x") == folder == folders.make_run_folder(str(folder), False, "x")
    )
    assert list(folder.iterdir()) == []
    (folder / "skd_pair1_seed1.jsonl").write_text("{}\n")
    with pytest.raises(ValueError) as error:
        folders.make_run_folder(str(folder), False, "x")
    assert "--resume" in one_line(error) and "--out" in one_line(error)
    assert folders.make_run_folder(str(folder), True, "x") == folder


def test_unwritable_folder_is_one_line(tmp_path):
    """A path below a file, or a file itself, cannot be written to: one line says so."""
    (tmp_path / "file").write_text("")
    for out in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(ValueError) as error:
            folders.make_run_folder(str(out), False, "x")
        assert "--out" in one_line(error) and str(out) in one_line(error)


FLAGS = {"lr": 2e-3, "steps": 3, "shape": (1, 2), "rule": {"x": 0.1}}


def record(folder, *, final=True, cut=0, flags=FLAGS):
    """A record as RunLog writes it, without its last `cut` characters."""
    log = records.RunLog(folder, "skd_pair1_seed1", {"flags": flags})
    log.write("step", step=1, loss=0.5)
    if final:
        log.write("final", score=0.25)
    log.close()
    text = log.path.read_text()
    log.path.write_text(text[: len(text) - cut])
    return log.path


def test_only_finished_records_count(tmp_path):
    """No file, no final line, a line cut short or an empty file: not finished. Otherwise the final figures."""
    assert records.read_finished(tmp_path, "skd_pair1_seed1", FLAGS) is None
    record(tmp_path, final=False)
    assert records.read_finished(tmp_path, "skd_pair1_seed1", FLAGS) is None
    for cut in (5, 30):
        record(tmp_path, cut=cut)
        assert records.read_finished(tmp_path, "skd_pair1_seed1", FLAGS) is None
    path = record(tmp_path)
    assert records.read_finished(tmp_path, "skd_pair1_seed1", FLAGS)["score"] == 0.25
    path.write_text("")
    assert records.read_finished(tmp_path, "skd_pair1_seed1", FLAGS) is None


@pytest.mark.parametrize("change", [{"lr": 1e-3}, {"steps": 4}, {"shape": (1, 3)}, {"rule": {}}, {"new_flag": 1}])
def test_changed_flag_is_refused_by_name(tmp_path, change):
    """A finished record of other flags is not taken for this one's: one line names the flag and both values."""
    record(tmp_path)
    with pytest.raises(ValueError) as error:
        records.read_finished(tmp_path, "skd_pair1_seed1", FLAGS | change)
    (name,) = change
    assert f"--{name.replace('_', '-')}" in one_line(error) and "skd_pair1_seed1.jsonl" in one_line(error)


def test_records_are_json_lines(tmp_path):
    """Every line is there as soon as it is written, is valid JSON (NaN is null) and has floats of 7 digits."""
    log = records.RunLog(tmp_path, "skd_pair1_seed1", {"seed": 1})
    log.write("step", step=1, loss=1 / 3, bad=float("nan"), worse=[float("-inf"), {"deep": 2 / 3}], flag=True, text="ü")
    lines = [json.loads(line, parse_constant=pytest.fail) for line in log.path.read_text(encoding="utf-8").splitlines()]
    log.close()
    assert lines == [
        {"kind": "header", "format": records.FORMAT, "seed": 1},
        {"kind": "step", "step": 1, "loss": 0.3333333, "bad": None, "worse": [None, {"deep": 0.6666667}], "flag": True,
         "text": "ü"},
    ]


def test_rounding_is_to_significant_digits():
    """Small numbers keep their digits; ints, strings, bools and None pass through; tuples become lists."""
    assert records.rounded(1.23456789e-9) == 1.234568e-9 and records.rounded(123456789.0) == 123456800.0
    assert records.rounded({"a": (1, True, None, "x", -0.0)}) == {"a": [1, True, None, "x", 0.0]}
    assert records.rounded(123456789) == 123456789


@matrix("jobs", [1, 2], fast=[1])  # side by side: test_a_killed_process_takes_no_other_run_down
def test_one_failed_run_leaves_the_others(jobs):
    """Every task is run and reported; the failed one comes back with one line."""
    lines = []
    failures = processes.run_all(math.sqrt, [(4.0,), (-1.0,), (9.0,)], jobs, lines.append)
    assert [task for task, _ in failures] == [(-1.0,)] and "math domain error" in failures[0][1]
    assert sorted(map(str, lines))[:2] == ["2.0", "3.0"] and len(lines) == 3
    assert all("\n" not in str(line) for line in lines)


def test_no_kind_of_failure_takes_the_others_down():
    """A bug in one run (an assert, a missing key) is a failed run like any other, not the end of the night's work."""

    def task(error):
        if error:
            raise error("first line\nsecond line")

    kinds = [None, ValueError, OSError, RuntimeError, AssertionError, KeyError, ZeroDivisionError, None]
    lines = []
    failures = processes.run_all(task, [(kind,) for kind in kinds], 1, lines.append)
    assert [task for task, _ in failures] == [(kind,) for kind in kinds if kind]
    assert len(lines) == len(kinds) and not any("\n" in str(line) for _, line in failures)


def divide(number):
    return 1 / number


@matrix("jobs", [1, 2], fast=[1])
def test_a_bug_is_named_with_its_line(jobs):
    """What is no wrong use names the line of this project that it came from, from a process of its own as well."""
    failures = processes.run_all(divide, [(0,)], jobs, lambda line: None)
    place = r"\(line \d+ of tests/test_pairs.py, in divide\)"
    assert re.fullmatch(f"ZeroDivisionError: division by zero {place}", failures[0][1])


def test_flags_of_a_record_name_no_folder():
    """What is kept and compared decides results: no folder, no way of running, no choice of which runs; plain JSON."""
    argv = [
        "--out", "/somewhere/out", "--data-dir", "/somewhere/data", "--resume", "--jobs", "2", "--seeds", "3",
        "--seed", "7",
    ]
    one, other = (
        arguments.result_flags(train_skd.parse_flags(more)[0])
        for more in ([], argv + ["--variants", "sft", "--pairs", "3", "--pair-seed", "9"])
    )
    assert one == other and "lr" in one and "steps" in one and "task" in one
    json.dumps(one)


def test_sources_and_machine_say_where_a_number_comes_from():
    """sha256 of the files as they are; the machine without host name or folder."""
    names = ("model.py", "lab/pairs.py")
    hashes = folders.source_hashes(names)
    assert set(hashes) == set(names) and all(len(value) == 64 for value in hashes.values())
    assert len(set(hashes.values())) == 2
    text = json.dumps(folders.describe_machine(torch.device("cpu")))
    assert json.loads(text)["device"] == "cpu" and str(folders.ROOT) not in text


def test_exit_is_one_line_with_status():
    """What the scripts end with: the program's name and the line; sys.exit turns the text into status 1."""
    with pytest.raises(SystemExit) as stop:
        processes.exit_with("some.py", ValueError("what was wrong"))
    assert stop.value.code == "some.py: what was wrong"
