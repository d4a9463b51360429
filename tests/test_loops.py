"""Laws of the two loops: they fit a slide, a plain loop ends at the same weights, and they run from a notebook."""

import ast
import copy
import dataclasses
import inspect
import re
import textwrap
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from tiny import generator, matrix, moved_apart, sharp_gpt, weights_of

import methods
import train_okd
import train_skd
from lab.training import Run, batch_order
from sample import DATASET, rollout_from_ids

ROOT = Path(__file__).parents[1]
VOCABULARY, END, BUDGET, RATE, SEED, BATCH, STEPS = 23, 0, 10, 2e-3, 3, 4, 9


def models():
    """A student, a teacher of the same vocabulary, prompts and responses: nothing of the laboratory is needed."""
    student, teacher = sharp_gpt(8, VOCABULARY, 24, seed=1), sharp_gpt(12, VOCABULARY, 24, seed=2)
    draws = generator(5)
    lengths = torch.randint(1, 6, (11,), generator=draws).tolist()
    prompts = [torch.randint(1, VOCABULARY, (length,), generator=draws).tolist() for length in lengths]
    responses = [torch.randint(1, VOCABULARY, (length + 1,), generator=draws).tolist() + [END] for length in lengths]
    return student.train(), teacher.requires_grad_(False), prompts, responses


def run(**changes):
    settings = {
        "steps": STEPS, "batch_size": BATCH, "lr": RATE, "seed": SEED, "max_new_tokens": BUDGET, "eos_token": END,
    }
    return Run(**settings | changes)


def order_of(prompts):
    return batch_order(len(prompts), BATCH, STEPS, generator(SEED)).tolist()


def equal(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


# ---------------------------------------------------------------------------------------------------------------------
# They fit a slide.


def loop_of(script):
    function = ast.parse(textwrap.dedent(inspect.getsource(script.distill))).body[0]
    (loop,) = [node for node in function.body if isinstance(node, ast.For)]
    return function, loop


def lines_of(node, source):
    """Lines of code of a node: no blank one, no comment, no docstring."""
    documented = set()
    if isinstance(node, ast.FunctionDef) and ast.get_docstring(node):
        documented = set(range(node.body[0].lineno, node.body[0].end_lineno + 1))
    numbered = enumerate(source.splitlines()[node.lineno - 1 : node.end_lineno], node.lineno)
    return [line for number, line in numbered if line.strip() and line.strip()[0] != "#" and number not in documented]


@pytest.mark.parametrize("script, most", [(train_skd, 45), (train_okd, 60)])
def test_the_loop_fits_a_slide(script, most):
    """Few lines, at most two indents, no branch on the row,
    and every step of the method is called by its name in the loop itself."""
    source = textwrap.dedent(inspect.getsource(script.distill))
    function, loop = loop_of(script)
    assert len(lines_of(function, source)) <= most
    indents = {(len(line) - len(line.lstrip())) // 4 for line in lines_of(loop, source)[1:]}
    assert max(indents) <= 3  # the function's own, the steps', the parts'
    branches = (ast.If, ast.IfExp, ast.With, ast.Try, ast.Match, ast.BoolOp)
    assert not [node for node in ast.walk(loop) if isinstance(node, branches)]
    called = [
        node.func.attr for node in ast.walk(loop) if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)
    ]
    assert {"steps", "write", "parts", "teacher", "forward", "backward", "update"} <= set(called)
    assert "distill" not in {
        node.func.id for node in ast.walk(function) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
    }


# ---------------------------------------------------------------------------------------------------------------------
# A plain loop is enough.


def test_the_readmes_loop_ends_at_the_same_weights():
    """The first Python block of README.md, run with the names that the sentence above it introduces,
    is `distill` of skd."""
    block = re.search(r"^```python\n(.*?)^```", (ROOT / "README.md").read_text(encoding="utf-8"), re.M | re.S)[1]
    assert len([line for line in block.splitlines() if line.strip()]) <= 15 and not re.search(r"\brun\b", block)
    plain, teacher, prompts, _ = models()
    batches = [[prompts[i] for i in rows] for rows in order_of(prompts)]
    noise = torch.Generator().manual_seed(1_000_003 * SEED + 1)
    names = {
        "student": plain, "teacher": teacher, "batches": batches, "budget": BUDGET, "noise": noise, "end_token": END,
        "rate": RATE,
    }
    exec(compile(block, "README.md", "exec"), names)
    student, teacher, prompts, _ = models()
    start = weights_of(student)
    train_skd.distill(train_skd.VARIANTS["skd"], student, teacher, prompts, run=run(accept_top_k=3))
    assert equal(weights_of(student), weights_of(plain)) and not equal(weights_of(student), start)


def test_the_plain_loop_of_okd_ends_at_the_same_weights():
    """The loop in the docstring of train_okd.py is `distill` of okd at alpha .25 and one rate: student and module."""
    block = re.search(r"^    teacher = OnlineTeacher.*?(?=^\S)", train_okd.__doc__, re.M | re.S)[0]
    plain, base, prompts, responses = models()
    batches = [
        rollout_from_ids([prompts[i] for i in rows], [responses[i] for i in rows], [DATASET] * len(rows), "cpu")
        for rows in order_of(prompts)
    ]
    names = {
        "student": plain, "base": base, "batches": batches, "steps": STEPS, "rate": RATE, "module_rate": RATE,
        "seed": SEED, "alpha": 0.25,
    }
    imports = (
        "import torch\nfrom losses import cross_entropy, forward_kl, masked_mean\n"
        "from model import OnlineTeacher, clip_and_step, learning_rate, make_optimizer\n"
    )
    exec(compile(imports + textwrap.dedent(block), "train_okd.py", "exec"), names)
    student, base, prompts, responses = models()
    row = dataclasses.replace(train_okd.VARIANTS["okd"], alpha=0.25, module_lr=1.0)
    _, adapted = train_okd.distill(row, student, base, prompts, responses, run())
    assert equal(weights_of(student), weights_of(plain))
    assert equal(weights_of(adapted.module), weights_of(names["teacher"].module))
    # It moved.
    assert any(weight.abs().max() > 0 for name, weight in weights_of(adapted.module).items() if name.startswith("up"))


# ---------------------------------------------------------------------------------------------------------------------
# From a notebook.


@matrix("steps", [5, 100], fast=[5])
def test_the_example_of_the_docstring_runs(steps):
    """The example in train_skd.py: at most fifteen lines, two models of one's own, a list of prompts,
    and nothing else."""
    block = re.search(r"From a notebook.*?:\n\n(.*?)(?=^\S)", train_skd.__doc__, re.M | re.S)[1]
    assert len([line for line in block.splitlines() if line.strip()]) <= 15
    names, shorter = {}, textwrap.dedent(block).replace("steps=100", f"steps={steps}")
    exec(compile(shorter, "train_skd.py", "exec"), names)
    assert names["costs"]["steps"] == steps and names["costs"]["tokens_generated"] > 0 and names["adapted"] is None


LEARN_FROM_REFERENCES = ("supervised", "gkd", "lelp", "rdd", "lwkd", "label_smoothing", "takd", "sftn", "rs_kd", "mopd")


@pytest.mark.parametrize("name", LEARN_FROM_REFERENCES)
def test_a_missing_reference_is_named(name):
    """A row that learns from references says so before the first step."""
    student, teacher, prompts, _ = models()
    with pytest.raises(ValueError, match="`responses`|pretraining_lr"):
        train_skd.distill(train_skd.VARIANTS[name], student, teacher, prompts, run=run())


@pytest.mark.parametrize(
    "name, missing",
    [("distillm", "validate"), ("sftn", "pretraining_lr"), ("kdrl", "reward"), ("sdpo", "sibling")],
)
def test_what_else_is_missing_is_named(name, missing):
    """A row that follows a validation, or goes on with the pretraining, names the argument."""
    student, teacher, prompts, responses = models()
    with pytest.raises(ValueError, match=missing) as error:
        train_skd.distill(train_skd.VARIANTS[name], student, teacher, prompts, responses, run())
    assert "\n" not in str(error.value)


def test_okd_wants_references():
    student, teacher, prompts, _ = models()
    with pytest.raises(ValueError, match="`responses`"):
        train_okd.distill(train_okd.VARIANTS["okd"], student, teacher, prompts, None, run())


@pytest.mark.parametrize(
    "name", ["skd", "on_policy", "opd", "exopd", "fresh_teacher", "adaswitch", "seqkd", "fdistill_kl", "skd_k_along"]
)
def test_prompts_are_enough_where_a_model_writes(name):
    """Methods whose tokens a model writes train without a reference, and the teacher does not move."""
    student, teacher, prompts, _ = models()
    before, start = weights_of(teacher), weights_of(student)
    costs, adapted = train_skd.distill(train_skd.VARIANTS[name], student, teacher, prompts, run=run(steps=3))
    assert equal(weights_of(teacher), before) and not equal(weights_of(student), start)
    assert adapted is None and costs["compute"] > 0 and costs["tokens_generated"] > 0


def test_a_run_keeps_nothing_and_says_nothing(tmp_path, monkeypatch, capsys):
    """By default no file is written and no line printed."""
    monkeypatch.chdir(tmp_path)
    student, teacher, prompts, responses = models()
    train_okd.distill(train_okd.VARIANTS["okd"], student, teacher, prompts, responses, run(steps=2))
    assert list(tmp_path.iterdir()) == [] and capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    "wrong", [{"steps": 0}, {"batch_size": 2.5}, {"lr": 0.0}, {"max_new_tokens": -1}, {"log_every": None}]
)
def test_numbers_that_make_no_run_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        run(**wrong)


@pytest.mark.parametrize("first, second", [("seqkd", "fdistill_kl"), ("seqkd", "sft"), ("sft", "sft")])
def test_a_run_is_of_one_student(first, second):
    """What the first has prepared, answers and costs, would be taken for the second's:
    one line, before anything is trained."""
    student, teacher, prompts, responses = models()
    once = run(steps=2)
    train_skd.distill(train_skd.VARIANTS[first], student, teacher, prompts, responses, once)
    before = weights_of(student)
    with pytest.raises(ValueError, match="make another") as error:
        train_skd.distill(train_skd.VARIANTS[second], student, teacher, prompts, responses, once)
    assert "\n" not in str(error.value) and equal(before, weights_of(student))


@pytest.mark.parametrize("script, name", [(train_skd, "skd"), (train_skd, "supervised"), (train_okd, "okd")])
def test_a_frozen_student_is_refused(script, name):
    """Such as the teacher itself, or a copy of it that was made when it was frozen: one line, not autograd's error."""
    _, teacher, prompts, responses = models()
    for student in (teacher.requires_grad_(False), copy.deepcopy(teacher)):
        with pytest.raises(ValueError, match="no weight that learns") as error:
            script.distill(script.VARIANTS[name], student, teacher, prompts, responses, run(steps=2))
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("keep, given", [(0, 0), (0, None), (11, 10), (11, 0), (10, 11)])
def test_columns_that_do_not_fit_are_refused(keep, given):
    """No prompt, or not one response for each: one line with both numbers."""
    student, teacher, prompts, responses = models()
    responses = None if given is None else responses[:given]
    found = f"found {keep} prompts" + ("" if given is None else f" and {given} responses")
    with pytest.raises(ValueError, match=found) as error:
        train_skd.distill(train_skd.VARIANTS["seqkd"], student, teacher, prompts[:keep], responses, run())
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "sampling", [{"temperature": 1.0}, {"interleaved": {"gamma": 2}}, {"interleaved": {"accept_top_k": 5}}]
)
@pytest.mark.parametrize("name", ["on_policy", "skd"])
def test_what_sampling_leaves_out_keeps_its_default(name, sampling):
    """What is given is added to what a run does without it: K stays accept_top_k, and gamma changes rounding alone."""
    ends = []
    for given in (None, sampling):
        student, teacher, prompts, _ = models()
        this = run(steps=3, accept_top_k=5, sampling=given)
        train_skd.distill(train_skd.VARIANTS[name], student, teacher, prompts, run=this)
        ends.append(weights_of(student))
    assert moved_apart(*ends) < 1e-5


def test_a_noted_figure_stands_in_the_steps_record(monkeypatch):
    """run.note, called anywhere in a step, adds a figure to the record of every logged step."""
    lines, (student, teacher, prompts, _) = [], models()
    learn = methods.Method.learn
    monkeypatch.setattr(
        methods.Method, "learn", lambda self, loss, rate: (self.run.note("double", 2 * loss), learn(self, loss, rate))
    )
    log = SimpleNamespace(write=lambda kind, **figures: lines.append(figures | {"kind": kind}))
    train_skd.distill(train_skd.VARIANTS["skd"], student, teacher, prompts, run=run(steps=3, log_every=2, log=log))
    steps = [line for line in lines if line["kind"] == "step"]
    assert [line["step"] for line in steps] == [1, 3]
    assert all(line["double"] == pytest.approx(2 * line["loss"]) for line in steps)


def test_a_teachers_divergence_without_a_mirror_is_refused():
    """In a row of one's own as on the command line: one line, with what may be chosen."""
    student, teacher, prompts, responses = models()
    row = dataclasses.replace(train_okd.VARIANTS["okd"], teacher_divergence="amid")
    with pytest.raises(ValueError, match="cannot minimise 'amid': choose from forward_kl, reverse_kl") as error:
        train_okd.distill(row, student, teacher, prompts, responses, run())
    assert "\n" not in str(error.value)
