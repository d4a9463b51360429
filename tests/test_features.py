"""The laws of features.py: closed forms by loops, invariances, masks, and a GPT's insides seen from outside.

Everything is checked in float64. METHODS holds the whole table of losses and, beside it, flow between two layers, so
that a new row of the table is tested the moment it is added.
"""

import math
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import features
from losses import masked_mean
from model import GPT, GPTConfig


def random(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def flow(student_hidden, teacher_hidden, target_mask):
    """features.flow between a layer and another one made from it."""
    seconds = (x.roll(1, -1) + 0.5 * x for x in (student_hidden, teacher_hidden))
    (student_second, teacher_second) = seconds
    return features.flow(student_hidden, student_second, teacher_hidden, teacher_second, target_mask)


METHODS = {**features.FEATURES, "flow": flow}
NAMES = list(METHODS)
EQUAL_WIDTHS = features.NEEDS_PROJECTOR | {"flow"}
TEACHER = torch.tensor([[[3.0, 0], [0, 4], [3, 4]]], dtype=torch.float64)
STUDENT = torch.tensor([[[4.0, 0], [0, 3], [4, 3]]], dtype=torch.float64)
ALL_THREE = torch.ones(1, 3, dtype=torch.bool)
MASK = torch.tensor([[0, 1, 1, 0, 1, 1, 1], [1, 0, 0, 1, 0, 0, 1], [1, 1, 1, 1, 1, 1, 1]], dtype=torch.bool)


def hidden_pair(name, B=3, T=7, seed=0):
    """(student_hidden, teacher_hidden), of different widths where the method can take that."""
    return random(B, T, 4 if name in EQUAL_WIDTHS else 3, seed=seed), random(B, T, 4, seed=seed + 1)


def value_and_grad(name, student_hidden, teacher_hidden, target_mask):
    """(per_token, d sum(per_token) / d student_hidden)."""
    leaf = student_hidden.detach().clone().requires_grad_()
    value = METHODS[name](leaf, teacher_hidden, target_mask)
    (gradient,) = torch.autograd.grad(value.sum(), leaf)
    return value.detach(), gradient


def close(x, y):
    return torch.allclose(x, y, rtol=1e-9, atol=1e-11)


# ---------------------------------------------------------------------------------------------------------------------
# Closed forms.


@pytest.mark.parametrize(
    "name, expected",
    [
        ("hidden_mse", (0.5, 0.5, 1)),
        ("hidden_cosine", (0, 0, 0.04)),
        ("attention_transfer", (147 / 962, 147 / 962, 0)),
        ("similarity_preserving", (0, 0, 98 / 962 / 3)),
        ("rkd_distance", (1 / 48,) * 3),
        ("rkd_angle", (1 / 75,) * 3),
        ("rkd", (25 / 48 + 50 / 75,) * 3),
    ],
)
def test_three_position_example(name, expected):
    """Two triangles with sides 3, 4, 5 give the numbers of the docstrings, which are worked out by hand."""
    value = features.FEATURES[name](STUDENT, TEACHER, ALL_THREE)
    assert value[0].tolist() == pytest.approx(expected, abs=1e-12)
    first_line = features.FEATURES[name].__doc__.split("\n")[0]
    assert f"{sum(expected) / 3:.6f}".strip("0") in first_line


def test_three_position_example_of_flow():
    """G of the teacher is (6 4, 4 32/3), of the student (32/3 4, 4 6): two of four entries differ by 14/3."""
    value = features.flow(STUDENT, STUDENT, TEACHER, TEACHER, ALL_THREE)
    assert value[0].tolist() == pytest.approx([(14 / 3) ** 2 / 2] * 3)
    assert "10.888889" in features.flow.__doc__


def dot(x, y):
    return sum(a * b for a, b in zip(x, y))


def minus(x, y):
    return [a - b for a, b in zip(x, y)]


def unit(x):
    return [a / math.sqrt(dot(x, x)) for a in x]


def smooth_l1(x):
    return 0.5 * x * x if abs(x) < 1 else abs(x) - 0.5


def mean(values):
    return sum(values) / len(values)


def by_loops(name, student, teacher):
    """One sequence's value at each of its masked positions; student and teacher are lists of n vectors."""
    n = len(student)
    pairs = [(i, j) for i in range(n) for j in range(n) if i != j]
    if name == "hidden_mse":
        return [mean([d * d for d in minus(s, t)]) for s, t in zip(student, teacher)]
    if name == "hidden_cosine":
        return [1 - dot(unit(s), unit(t)) for s, t in zip(student, teacher)]
    if name == "attention_transfer":
        energies = [unit([mean([c * c for c in h]) for h in side]) for side in (student, teacher)]
        return [n * d * d for d in minus(*energies)]
    if name == "similarity_preserving":
        rows = [[unit([dot(h, other) for other in side]) for h in side] for side in (student, teacher)]
        return [mean([d * d for d in minus(s, t)]) for s, t in zip(*rows)]
    if name == "rkd_distance":
        sides = [{(i, j): math.dist(side[i], side[j]) for i, j in pairs} for side in (student, teacher)]
        means = [mean(list(side.values())) for side in sides]
        return [mean([smooth_l1(sides[0][pair] / means[0] - sides[1][pair] / means[1]) for pair in pairs])] * n
    if name == "rkd_angle":

        def cosine(side, i, j, k):
            return dot(unit(minus(side[j], side[i])), unit(minus(side[k], side[i])))

        triplets = [(i, j, k) for i, j in pairs for k in range(n) if k not in (i, j)]
        return [mean([smooth_l1(cosine(student, *three) - cosine(teacher, *three)) for three in triplets])] * n
    if name == "rkd":
        both = by_loops("rkd_distance", student, teacher), by_loops("rkd_angle", student, teacher)
        return [25 * distance + 50 * angle for distance, angle in zip(*both)]
    assert name == "flow", f"{name} is a new feature: write it as a loop into by_loops"
    C = len(student[0])
    grams = []
    for side in (student, teacher):
        second = [[h[c - 1] + 0.5 * h[c] for c in range(C)] for h in side]
        grams.append([mean([h[a] * g[b] for h, g in zip(side, second)]) for a in range(C) for b in range(C)])
    return [mean([d * d for d in minus(*grams)])] * n


@pytest.mark.parametrize("name", NAMES)
def test_value_by_loops(name):
    """Every masked position has the value that plain loops over its sequence's masked positions give; others have 0."""
    student, teacher = hidden_pair(name)
    student[0], teacher[2] = 5 * student[0], 3 * teacher[2] + 2
    value = METHODS[name](student, teacher, MASK)
    assert value.shape == MASK.shape and value.dtype == torch.float64
    for row in range(3):
        here = MASK[row]
        expected = by_loops(name, student[row][here].tolist(), teacher[row][here].tolist())
        assert value[row][here].tolist() == pytest.approx(expected, rel=1e-9)
        assert (value[row][~here] == 0).all()


def test_smooth_l1_has_its_linear_part():
    """A relative distance that is off by more than 1 is charged in proportion: 8 points together, one far away."""
    student, teacher = random(1, 9, 3), random(1, 9, 3, seed=1)
    student[0, 0] += 100
    here = torch.ones(1, 9, dtype=torch.bool)
    relative = torch.cdist(student, student)[0, 0, 1] / (torch.cdist(student, student).sum() / 72)
    assert relative > 2.5
    expected = by_loops("rkd_distance", student[0].tolist(), teacher[0].tolist())
    assert features.rkd_distance(student, teacher, here)[0].tolist() == pytest.approx(expected)


@pytest.mark.parametrize("name", ["rkd_distance", "rkd_angle", "rkd"])
def test_at_most_so_many_positions(name):
    """With 10 masked positions of 13 and most 4, the 1st, 4th, 7th and 10th count; with most 10 or more, all do."""
    student, teacher = random(1, 13, 3), random(1, 13, 4, seed=1)
    places = [0, 1, 3, 4, 5, 7, 8, 9, 11, 12]
    mask = torch.zeros(1, 13, dtype=torch.bool)
    mask[0, places] = True
    method = features.FEATURES[name]
    for most, kept in ((4, places[::3]), (2, [0, 12]), (10, places), (64, places)):
        expected = by_loops(name, student[0, kept].tolist(), teacher[0, kept].tolist())[0] if len(kept) > 2 else 0
        value = method(student, teacher, mask, most=most)
        assert value[mask].tolist() == pytest.approx([expected] * 10, abs=1e-12), most
    with pytest.raises(AssertionError, match="most 1"):
        method(student, teacher, mask, most=1)


def test_sixty_four_positions_by_default():
    """80 positions give what their 64 evenly spaced ones give."""
    student, teacher = random(1, 80, 3), random(1, 80, 4, seed=1)
    mask = torch.ones(1, 80, dtype=torch.bool)
    kept = [i * 79 // 63 for i in range(64)]
    assert kept[0] == 0 and kept[-1] == 79 and {b - a for a, b in pairwise(kept)} == {1, 2}
    for name in ("rkd_distance", "rkd_angle", "rkd"):
        whole = features.FEATURES[name](student, teacher, mask)
        assert close(whole[:, :64], features.FEATURES[name](student[:, kept], teacher[:, kept], mask[:, :64])), name


def test_rkd_weights():
    """rkd is the weighted sum of its two parts."""
    student, teacher = hidden_pair("rkd")
    distance, angle = (features.FEATURES[f"rkd_{part}"](student, teacher, MASK) for part in ("distance", "angle"))
    assert close(features.rkd(student, teacher, MASK, distance_weight=2, angle_weight=3), 2 * distance + 3 * angle)
    assert close(features.rkd(student, teacher, MASK), 25 * distance + 50 * angle)


# ---------------------------------------------------------------------------------------------------------------------
# Laws of every row.


@pytest.mark.parametrize("name", NAMES)
def test_zero_at_equality(name):
    """Equal hidden states: value 0 and gradient 0; others: more than 0."""
    student, teacher = random(3, 7, 4), random(3, 7, 4, seed=1)
    value, gradient = value_and_grad(name, teacher, teacher, MASK)
    assert (value == 0).all() and gradient.abs().max() < 1e-12
    value, gradient = value_and_grad(name, student, teacher, MASK)
    assert (value[MASK] > 1e-4).all() and gradient.abs().max() > 1e-4


ROTATION = torch.linalg.qr(random(4, 4, seed=5))[0]
CHANGES = {
    "scale": lambda h: 7 * h,
    "rotation": lambda h: h @ ROTATION,
    "translation": lambda h: h + random(4, seed=6),
}
INVARIANT = {
    "hidden_mse": set(),
    "hidden_cosine": {"scale"},
    "attention_transfer": {"scale", "rotation"},
    "similarity_preserving": {"scale", "rotation"},
    "rkd_distance": {"scale", "rotation", "translation"},
    "rkd_angle": {"scale", "rotation", "translation"},
    "rkd": {"scale", "rotation", "translation"},
    "flow": set(),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("name", NAMES)
def test_invariances(name, change):
    """What a method does not see, on either side; and that it sees the rest."""
    assert name in INVARIANT, f"{name} is a new feature: say in INVARIANT which changes it does not see"
    student, teacher = random(3, 7, 4), random(3, 7, 4, seed=1)
    value = METHODS[name](student, teacher, MASK)
    changed = CHANGES[change](student), CHANGES[change](teacher)
    for sides in ((changed[0], teacher), (student, changed[1])):
        assert close(value, METHODS[name](*sides, MASK)) == (change in INVARIANT[name])


@pytest.mark.parametrize("name", NAMES)
def test_gradient_to_the_student_alone(name):
    """The teacher is detached inside."""
    student, teacher = (x.requires_grad_() for x in hidden_pair(name))
    value = METHODS[name](student, teacher, MASK).sum()
    for_student, for_teacher = torch.autograd.grad(value, (student, teacher), allow_unused=True)
    assert for_student.abs().sum() > 0 and for_teacher is None


@pytest.mark.parametrize("name", NAMES)
def test_gradcheck(name):
    """The gradient is that of the value."""
    student, teacher = hidden_pair(name, T=5)
    mask = MASK[:, 2:]
    assert torch.autograd.gradcheck(lambda x: METHODS[name](x, teacher, mask), student.requires_grad_())


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_is_float32_arithmetic(name, dtype):
    """bf16 in gives what the same numbers give in float32, bit by bit; the gradient comes back in bf16."""
    student, teacher = (x.to(dtype) for x in hidden_pair(name))
    if name == "flow":  # its second layer is made in the test
        value = features.flow(student, student, teacher, teacher, MASK)
        assert value.dtype == torch.float32
        assert torch.equal(value, features.flow(*[student.float()] * 2, *[teacher.float()] * 2, MASK))
        return
    value, gradient = value_and_grad(name, student, teacher, MASK)
    wide_value, wide_gradient = value_and_grad(name, student.float(), teacher.float(), MASK)
    assert value.dtype == torch.float32 and torch.equal(value, wide_value)
    assert gradient.dtype == dtype and torch.equal(gradient, wide_gradient.to(dtype))


@pytest.mark.parametrize("name", NAMES)
def test_autocast_changes_nothing(name):
    """Under bf16 autocast the arithmetic is still float32 (the backward pass runs outside, as it does in training)."""
    student, teacher = (x.float() for x in hidden_pair(name))
    value, gradient = value_and_grad(name, student, teacher, MASK)
    leaf = student.requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        again = METHODS[name](leaf, teacher, MASK)
    assert torch.equal(value, again) and torch.equal(gradient, torch.autograd.grad(again.sum(), leaf)[0])


@pytest.mark.parametrize("name", NAMES)
def test_rows_are_apart(name):
    """Splitting a batch into rows, or shuffling them, changes neither value nor gradient."""
    student, teacher = hidden_pair(name)
    value, gradient = value_and_grad(name, student, teacher, MASK)
    for rows in ([0], [1], [2], [2, 0, 1], [1, 2]):
        part, part_gradient = value_and_grad(name, student[rows], teacher[rows], MASK[rows])
        assert close(part, value[rows]) and close(part_gradient, gradient[rows])


@pytest.mark.parametrize("name", NAMES)
def test_padding_changes_nothing(name):
    """Positions outside the mask may be added on either side, or taken out."""
    student, teacher = hidden_pair(name)
    value, gradient = value_and_grad(name, student, teacher, MASK)
    for left, right in ((0, 5), (3, 0), (70, 1)):
        padded = [F.pad(x, (0, 0, left, right), value=9.0) for x in (student, teacher)]
        more, more_gradient = value_and_grad(name, *padded, F.pad(MASK, (left, right)))
        there = slice(left, left + 7)
        assert close(more[:, there], value) and close(more_gradient[:, there], gradient)
        assert (F.pad(more, (-left, -right)) == more[:, there]).all() and more.sum().isclose(value.sum())
    here = MASK[0]
    short, short_gradient = value_and_grad(name, student[:1, here], teacher[:1, here], MASK[:1, here])
    assert close(short, value[:1, here]) and close(short_gradient, gradient[:1, here])


@pytest.mark.parametrize("garbage", [math.nan, math.inf, -math.inf, 1e30])
@pytest.mark.parametrize("name", NAMES)
def test_garbage_outside_the_mask(name, garbage):
    """Whatever stands outside the mask, on either side, changes no bit of value and gradient."""
    student, teacher = hidden_pair(name)
    value, gradient = value_and_grad(name, student, teacher, MASK)
    dirty = [x.masked_fill(~MASK[..., None], garbage) for x in (student, teacher)]
    dirty_value, dirty_gradient = value_and_grad(name, *dirty, MASK)
    assert torch.equal(value, dirty_value)
    if name != "flow":  # whose second layer is made in the test, outside the mask too
        assert torch.equal(gradient, dirty_gradient) and (dirty_gradient[~MASK] == 0).all()


def test_garbage_outside_the_mask_of_flow():
    """The same for all four sides of flow, with its gradients."""
    clean = [random(3, 7, width, seed=width) for width in (4, 5, 4, 5)]
    results = []
    for fill in (0.0, math.nan):
        sides = [x.masked_fill(~MASK[..., None], fill).requires_grad_() for x in clean]
        value = features.flow(*sides, MASK)
        gradients = torch.autograd.grad(value.sum(), sides, allow_unused=True)
        assert gradients[2:] == (None, None)
        results.append((value, *gradients[:2]))
    assert all(torch.equal(x, y) and y.isfinite().all() for x, y in zip(*results))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("count", [0, 1, 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_few_positions(name, count, dtype):
    """0, 1 or 2 masked positions: finite, with a graph; 0 where there is no position, or no relation between some."""
    student, teacher = (x.to(dtype) for x in hidden_pair(name))
    mask = torch.zeros(3, 7, dtype=torch.bool)
    mask[:, 2 : 2 + count] = True
    value, gradient = value_and_grad(name, student, teacher, mask)
    assert value.isfinite().all() and gradient.isfinite().all() and (value >= 0).all()
    relational = name not in EQUAL_WIDTHS
    if count == 0 or (relational and count == 1) or (name in ("rkd_angle", "rkd", "rkd_distance") and count == 2):
        # (two positions have one distance, which is its own mean)
        assert value.abs().max() < 1e-6
    else:
        assert value[mask].min() > 0
    leaf = student.clone().requires_grad_()
    masked_mean(METHODS[name](leaf, teacher, mask), mask).backward()
    assert leaf.grad.isfinite().all()


DEGENERATE = {
    "zeros": torch.zeros(3, 7, 4),
    "constant": torch.ones(3, 7, 4),
    "one position zero": random(3, 7, 4, seed=8, dtype=torch.float32).index_fill(1, torch.tensor([4]), 0.0),
    "one vector twice": random(3, 7, 4, seed=9, dtype=torch.float32)[:, [0, 1, 2, 3, 4, 4, 6]],
    "random": random(3, 7, 4, seed=10, dtype=torch.float32),
}


@pytest.mark.parametrize("student", DEGENERATE)
@pytest.mark.parametrize("teacher", DEGENERATE)
@pytest.mark.parametrize("name", NAMES)
def test_degenerate_vectors(name, student, teacher):
    """Vectors that are 0 or all the same have a finite value and gradient, and 0 if they are so on both sides."""
    value, gradient = value_and_grad(name, DEGENERATE[student], DEGENERATE[teacher], MASK)
    assert value.isfinite().all() and gradient.isfinite().all() and gradient.abs().max() < 1e3
    assert (value == 0).all() or student != teacher


@pytest.mark.parametrize("name", sorted(EQUAL_WIDTHS))
def test_unequal_widths_need_a_projector(name):
    """Where numbers are compared one by one, other widths are an error that names the remedy; a Projector is one."""
    student, teacher = random(3, 7, 3), random(3, 7, 4, seed=1)
    with pytest.raises(AssertionError, match="Projector"):
        METHODS[name](student, teacher, MASK)
    projector = features.Projector(3, 4, torch.Generator().manual_seed(0)).double()
    value = METHODS[name](projector(student), teacher, MASK)
    masked_mean(value, MASK).backward()
    assert projector.weight.grad.abs().sum() > 0


def test_both_layers_of_flow_need_a_projector():
    """Each of the two on its own; a width of 1 would broadcast."""
    wide, narrow = random(3, 7, 4), random(3, 7, 1)
    for student_sides in ((narrow, wide), (wide, narrow)):
        with pytest.raises(AssertionError, match="Projector"):
            features.flow(*student_sides, wide, wide, MASK)


@pytest.mark.parametrize("name", NAMES)
def test_another_mask_is_an_error(name):
    """A mask of another shape would broadcast."""
    student, teacher = hidden_pair(name)
    with pytest.raises(AssertionError, match="mask"):
        METHODS[name](student, teacher, MASK[:1])


def test_tables():
    """Whatever needs a Projector is a row, and all other rows take unequal widths (which the tests above use)."""
    assert {"hidden_mse", "hidden_cosine"} == features.NEEDS_PROJECTOR <= set(features.FEATURES)
    assert set(INVARIANT) == set(METHODS)


def test_projector():
    """Weights from the generator alone, N(0, 1 / C_s), no bias; the mean square of a vector stays."""
    before = torch.get_rng_state()
    projector = features.Projector(400, 300, torch.Generator().manual_seed(3))
    same, other = (features.Projector(400, 300, torch.Generator().manual_seed(seed)) for seed in (3, 4))
    assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(projector.weight, same.weight) and not torch.equal(projector.weight, other.weight)
    assert [name for name, _ in projector.named_parameters()] == ["weight"]
    assert projector.weight.std().item() == pytest.approx(400**-0.5, rel=0.02)
    x = random(2, 5, 400, dtype=torch.float32)
    assert projector(x).shape == (2, 5, 300)
    assert projector(x).square().mean().item() == pytest.approx(x.square().mean().item(), rel=0.1)
    assert torch.allclose(projector(x)[1, 2], projector.weight @ x[1, 2], atol=1e-5)


# ---------------------------------------------------------------------------------------------------------------------
# watch.


def tiny_gpt(seed=0, n_embd=8, n_layer=3):
    config = GPTConfig(vocab_size=11, block_size=8, n_layer=n_layer, n_head=2, n_embd=n_embd)
    return GPT(config, torch.Generator().manual_seed(seed)).double()


TOKENS = torch.tensor([[1, 4, 0, 7, 3, 9], [2, 2, 8, 10, 5, 6]])
TARGETS = torch.tensor([[4, 0, 7, 3, 9, 1], [2, 8, 10, 5, 6, 0]])


def number_of_hooks(model):
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())


def by_hand(model, tokens):
    """Token embeddings and the outputs of all blocks."""
    embedded = model.token_embedding.weight[tokens]
    x, outputs = embedded + model.position_embedding.weight[: tokens.size(1)], []
    for layer, block in enumerate(model.blocks):
        x = block(x, layer)
        outputs.append(x)
    return embedded, outputs


def test_watch_sees_the_blocks():
    """In the order asked for, the outputs that a run by hand gives; the logits are the same as without."""
    model = tiny_gpt()
    embedded, outputs = by_hand(model, TOKENS)
    logits = model(TOKENS)
    with features.capture_hidden(model, (2, 0, -2), inputs=True) as seen:
        assert torch.equal(model(TOKENS), logits)
    assert len(seen.hidden) == 3 and torch.equal(seen.inputs, embedded)
    assert all(torch.equal(x, outputs[at]) for x, at in zip(seen.hidden, (2, 0, 1)))
    assert len({x.data_ptr() for x in seen.hidden}) == 3


def test_watch_keeps_the_last_forward():
    """A second forward replaces the first; no_grad and features=True work as well."""
    model = tiny_gpt()
    with features.capture_hidden(model, [1], inputs=True) as seen:
        model(TOKENS)
        first = seen.hidden
        with torch.no_grad():
            model(TOKENS[:1, :3], features=True)
    assert seen.hidden[0].shape == (1, 3, 8) and seen.inputs.shape == (1, 3, 8) and not seen.inputs.requires_grad
    assert first[0].shape == (2, 6, 8), "who holds the list of an earlier forward keeps it"


def test_watch_leaves_no_hook():
    """Not at the end, not after an exception, and not after a block that does not exist."""
    model = tiny_gpt()
    with features.capture_hidden(model, (0, 1), inputs=True):
        assert number_of_hooks(model) == 5
    assert number_of_hooks(model) == 0
    with pytest.raises(ZeroDivisionError), features.capture_hidden(model, (0,), inputs=True):
        raise ZeroDivisionError
    assert number_of_hooks(model) == 0
    with pytest.raises(IndexError), features.capture_hidden(model, (0, 3)):
        pass
    assert number_of_hooks(model) == 0


class Wrapper(nn.Module):
    """Calls a model as DistributedDataParallel does."""

    def __init__(self, module):
        super().__init__()
        self.module = module

    def forward(self, *args, **kw):
        return self.module(*args, **kw)


def test_watch_through_a_wrapper():
    """The GPT is watched, its wrapper is called."""
    model = tiny_gpt()
    with features.capture_hidden(model, (1,)) as seen:
        Wrapper(model)(TOKENS)
    assert torch.equal(seen.hidden[0], by_hand(model, TOKENS)[1][1])


@pytest.mark.parametrize("early_stop", [True, False])
@pytest.mark.parametrize("loss", ["hidden", "input"])
def test_watch_with_recompute(loss, early_stop):
    """With activation checkpointing the tensors of the first run are kept, and all gradients are bit-equal.

    By default torch leaves the second run of a block before its end, so that no hook sees its output; not so without.
    """

    def gradients(recompute):
        model = tiny_gpt()
        model.recompute = recompute
        calls = []
        model.blocks[1].register_forward_pre_hook(lambda *_: calls.append(0))
        stop = torch.utils.checkpoint.set_checkpoint_early_stop(early_stop)
        with stop, features.capture_hidden(model, (0, 1), inputs=True) as seen, features.second_order():
            per_token = F.cross_entropy(model(TOKENS).mT, TARGETS, reduction="none")
            kept = [*seen.hidden, seen.inputs]
            if loss == "hidden":
                (per_token.sum() + seen.hidden[1].pow(3).sum() + seen.inputs.pow(3).sum()).backward()
            else:
                gradient = features.input_gradient(per_token, seen.inputs, model.head, torch.ones_like(TOKENS) > 0)
                gradient.pow(3).sum().backward()
            assert all(x is y for x, y in zip(kept, [*seen.hidden, seen.inputs]))
        assert (len(calls) > 1) == recompute, "the block ran once more"
        return [weight.grad for weight in model.parameters()]

    plain, again = gradients(False), gradients(True)
    for x, y in zip(plain, again):  # the input gradient knows no final bias
        assert (x is None and y is None) or torch.equal(x, y)
    assert sum(x.abs().sum() for x in plain if x is not None) > 0


def test_watch_frozen_inputs():
    """A frozen model's embeddings require a gradient while it is watched, its weights do not."""
    model = tiny_gpt().requires_grad_(False)
    logits = model(TOKENS)
    with features.capture_hidden(model, inputs=True) as seen:
        watched = model(TOKENS)
    assert seen.hidden == [] and torch.equal(watched, logits) and watched.requires_grad and not logits.requires_grad
    (gradient,) = torch.autograd.grad(watched[0, 2].sum(), seen.inputs)
    assert gradient[0, :3].abs().sum() > 0 and (gradient[0, 3:] == 0).all() and (gradient[1] == 0).all()
    assert not any(weight.requires_grad for weight in model.parameters())


# ---------------------------------------------------------------------------------------------------------------------
# Input gradients.

TARGET_MASK = torch.tensor([[0, 0, 1, 1, 1, 0], [0, 1, 0, 1, 0, 0]], dtype=torch.bool)
INPUT_MASK = torch.tensor([[1, 1, 1, 1, 1, 0], [1, 1, 1, 1, 0, 0]], dtype=torch.bool)


def gradient_of(model, tokens=TOKENS, targets=TARGETS, target_mask=TARGET_MASK, ids=None, create_graph=True):
    """The one-hot input gradient of a GPT's mean cross-entropy."""
    with features.second_order(), features.capture_hidden(model, inputs=True) as seen:
        per_token = F.cross_entropy(model(tokens).mT, targets, reduction="none")
        return features.input_gradient(per_token, seen.inputs, model.head, target_mask, ids, create_graph)


def test_input_gradient_example():
    """Loss 2 x_1 - x_2 and rows (1, 0), (0, 1), (1, 1) give 2, -1, 1; a chosen token alone gives its entry."""
    inputs = torch.zeros(1, 1, 2, requires_grad=True)
    rows = torch.tensor([[1.0, 0], [0, 1], [1, 1]])
    here = torch.ones(1, 1, dtype=torch.bool)
    loss = inputs @ torch.tensor([2.0, -1])
    assert features.input_gradient(loss, inputs, rows, here).flatten().tolist() == [2, -1, 1]
    chosen = features.input_gradient(loss, inputs, rows, here, ids=torch.tensor([[[2, 0]]]))
    assert chosen.flatten().tolist() == [1, 2]
    with pytest.raises(RuntimeError):
        features.input_gradient(torch.zeros(1, 1, requires_grad=True), inputs, rows, here)


def test_linear_model_law():
    """Cross-entropy of softmax(W x), x one-hot, has the gradient W^T (probs - one_hot(target)), over the count."""
    V, W = 5, random(5, 5)
    tokens, targets = torch.tensor([[0, 3, 4], [2, 2, 1]]), torch.tensor([[1, 1, 0], [4, 3, 2]])
    mask = torch.tensor([[1, 1, 0], [0, 0, 1]], dtype=torch.bool)
    one_hot = F.one_hot(tokens, V).double().requires_grad_()
    model_logits = one_hot @ W.T
    per_token = F.cross_entropy(model_logits.mT, targets, reduction="none")
    found = features.input_gradient(per_token, one_hot, torch.eye(V, dtype=torch.float64), mask)
    expected = (model_logits.softmax(-1) - F.one_hot(targets, V)) @ W
    assert close(found, expected * mask[..., None] / torch.tensor([2.0, 1])[:, None, None])


def test_input_gradient_by_finite_differences():
    """Mixing a little of token v into the input at position t changes a sequence's mean loss by the entry [t, v]."""
    model = tiny_gpt()
    found = gradient_of(model, create_graph=False)
    assert found.shape == (2, 6, 11)

    @torch.no_grad()
    def loss(row, t, v, dash):
        def mix(module, args, output):
            output[row, t] += dash * model.head[v]

        hook = model.token_embedding.register_forward_hook(mix)
        per_token = F.cross_entropy(model(TOKENS).mT, TARGETS, reduction="none")[row]
        hook.remove()
        return per_token[TARGET_MASK[row]].mean().item()

    for row, t, v in ((0, 0, 1), (0, 2, 5), (0, 4, 9), (1, 1, 2), (1, 3, 10)):
        slope = (loss(row, t, v, 1e-5) - loss(row, t, v, -1e-5)) / 2e-5
        assert found[row, t, v].item() == pytest.approx(slope, rel=1e-6, abs=1e-9) and abs(slope) > 1e-6
    assert (found[0, 5] == 0).all() and (found[1, 4:] == 0).all(), "nothing looks ahead"


def test_input_gradient_of_some_tokens():
    """`ids` picks entries of the whole, in any order and with repeats, for value and second derivative."""
    model = tiny_gpt()
    ids = torch.randint(11, (2, 6, 4), generator=torch.Generator().manual_seed(2))
    results = []
    for gradient in (gradient_of(model, ids=ids), gradient_of(model).gather(-1, ids)):
        second = torch.autograd.grad(gradient.pow(3).sum(), [*model.blocks.parameters(), model.head], allow_unused=True)
        results.append([gradient, *(x for x in second if x is not None)])
    assert len(results[0]) > 20 and all(close(x, y) for x, y in zip(*results))


def test_input_gradient_rows_and_masks():
    """Rows are apart, padding on the right and an empty row change nothing; bf16 gives float32, under autocast too."""
    model = tiny_gpt()
    whole = gradient_of(model)
    assert close(gradient_of(model, TOKENS[1:], TARGETS[1:], TARGET_MASK[1:]), whole[1:])
    padded = [F.pad(x, (0, 2)) for x in (TOKENS, TARGETS, TARGET_MASK)]
    assert close(gradient_of(model, *padded)[:, :6], whole)
    empty = gradient_of(model, target_mask=TARGET_MASK & torch.tensor([[True], [False]]))
    assert close(empty[0], whole[0]) and (empty[1] == 0).all()
    inputs = random(1, 3, 4).bfloat16().requires_grad_()
    low = features.input_gradient(inputs.sum(-1), inputs, random(5, 4).bfloat16(), torch.ones(1, 3) > 0)
    assert low.dtype == torch.float32 and low.shape == (1, 3, 5)
    inputs, weight, rows = random(1, 3, 4).float().requires_grad_(), random(4, 4).float(), random(5, 4).float()
    per_token = (inputs @ weight).square().sum(-1)
    here = torch.ones(1, 3) > 0
    plain = features.input_gradient(per_token, inputs, rows, here)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(features.input_gradient(per_token, inputs, rows, here), plain)


def alignment(student_gradient, teacher_gradient):
    """One number per sequence."""
    value = features.input_gradient_alignment(student_gradient, teacher_gradient, INPUT_MASK)
    return torch.stack([masked_mean(value[row], INPUT_MASK[row]) for row in range(2)])


def test_alignment_by_hand():
    """(3, 4) against (1, 0) gives .8; in general 2 - 2 cosine over all entries of a sequence's real positions."""
    one = torch.ones(1, 1, dtype=torch.bool)
    value = features.input_gradient_alignment(torch.tensor([[[3.0, 4]]]), torch.tensor([[[1.0, 0]]]), one)
    assert value.item() == pytest.approx(0.8)
    a, b = random(2, 6, 3), random(2, 6, 3, seed=1)
    for row, n in ((0, 5), (1, 4)):
        cosine = F.cosine_similarity(a[row, :n].flatten(), b[row, :n].flatten(), dim=0)
        assert alignment(a, b)[row].item() == pytest.approx(2 - 2 * cosine.item())
    value = features.input_gradient_alignment(a, b, INPUT_MASK)
    first, second = a[1, :4] / a[1, :4].norm(), b[1, :4] / b[1, :4].norm()
    assert close(value[1, :4], 4 * (first - second).square().sum(-1)) and (value[1, 4:] == 0).all()
    assert close(alignment(3 * a, b), alignment(a, b)) and close(alignment(a, -a), torch.full((2,), 4.0).double())
    with pytest.raises(AssertionError, match="token ids"):
        features.input_gradient_alignment(a, b[..., :2], INPUT_MASK)


def test_alignment_laws():
    """Gradient to the student only, gradcheck, garbage outside the mask, zeros, bf16."""
    a, b = random(2, 6, 3).requires_grad_(), random(2, 6, 3, seed=1).requires_grad_()
    value = features.input_gradient_alignment(a, b, INPUT_MASK)
    for_student, for_teacher = torch.autograd.grad(value.sum(), (a, b), allow_unused=True)
    assert for_teacher is None and for_student.abs().sum() > 0
    assert torch.autograd.gradcheck(lambda x: features.input_gradient_alignment(x, b, INPUT_MASK), a)
    dirty = [x.detach().masked_fill(~INPUT_MASK[..., None], math.nan).requires_grad_() for x in (a, b)]
    dirty_value = features.input_gradient_alignment(*dirty, INPUT_MASK)
    assert torch.equal(value, dirty_value)
    assert torch.equal(torch.autograd.grad(dirty_value.sum(), dirty[0])[0], for_student)
    nothing = torch.zeros(2, 6, 3, requires_grad=True)
    for teacher_gradient, expected in ((nothing, 0), (b, 1)):
        value = alignment(nothing, teacher_gradient)
        assert value.tolist() == pytest.approx([expected] * 2)
        assert torch.autograd.grad(value.sum(), nothing)[0].isfinite().all()
    low = features.input_gradient_alignment(a.bfloat16(), b.bfloat16(), INPUT_MASK)
    wide = features.input_gradient_alignment(a.bfloat16().float(), b.bfloat16().float(), INPUT_MASK)
    assert low.dtype == torch.float32 and torch.equal(low, wide)


def test_identical_models_are_aligned():
    """A copy of the teacher has alignment 0 and no gradient; another model, of another width, has not."""
    teacher = tiny_gpt(seed=1).requires_grad_(False)
    teacher_gradient = gradient_of(teacher, create_graph=False)
    assert not teacher_gradient.requires_grad
    others = tiny_gpt(seed=2), tiny_gpt(seed=2, n_embd=12, n_layer=2)
    for student, same in ((tiny_gpt(seed=1), True), *((other, False) for other in others)):
        value = alignment(gradient_of(student), teacher_gradient)
        value.sum().backward()
        assert (value.max() < 1e-20) == same and (value.min() > 0.05) != same
        largest = max(weight.grad.abs().max() for weight in student.parameters() if weight.grad is not None)
        assert (largest < 1e-8) == same


@pytest.mark.parametrize("ids", [None, TOKENS[..., None].repeat(1, 1, 2) // torch.tensor([1, 2])])
def test_alignment_reaches_the_weights(ids):
    """The second derivative: along a random direction in all weights, backward gives the slope of the loss."""
    student, teacher = tiny_gpt(seed=2, n_embd=12, n_layer=2), tiny_gpt(seed=1).requires_grad_(False)
    teacher_gradient = gradient_of(teacher, ids=ids, create_graph=False)

    def loss():
        value = features.input_gradient_alignment(gradient_of(student, ids=ids), teacher_gradient, INPUT_MASK)
        return masked_mean(value, INPUT_MASK)

    loss().backward()
    weights = list(student.parameters())
    directions = [random(*weight.shape, seed=seed) for seed, weight in enumerate(weights)]
    expected = sum((weight.grad * d).sum().item() for weight, d in zip(weights, directions) if weight.grad is not None)

    def at(step):
        with torch.no_grad():
            for weight, direction in zip(weights, directions):
                weight.add_(direction, alpha=step)
        found = loss().item()
        with torch.no_grad():
            for weight, direction in zip(weights, directions):
                weight.sub_(direction, alpha=step)
        return found

    slope = (at(1e-6) - at(-1e-6)) / 2e-6
    assert abs(slope) > 1e-3 and expected == pytest.approx(slope, rel=1e-5)
