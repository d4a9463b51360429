"""The coursework is graded here: references, stubs, the grader and its laws (exercises/)."""

import ast
import contextlib
import copy
import functools
import io
import hashlib
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
import types
import warnings
import xml.etree.ElementTree
from pathlib import Path

import adapters
import pytest
import torch

import losses
import sample
import train_okd
import train_skd
from lab import reading, records, statistics
from lab.training import Run, batch_order
from model import OnlineTeacher, learning_rate, make_optimizer

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "exercises"
sys.path.append(str(FOLDER))

import course  # noqa: E402
import experiments  # noqa: E402
import faults  # noqa: E402
import grade  # noqa: E402
import handout  # noqa: E402
import laws  # noqa: E402
import leaderboard  # noqa: E402
import solutions  # noqa: E402
import worker  # noqa: E402
import wrong  # noqa: E402

SOURCE = (FOLDER / "solutions.py").read_text(encoding="utf-8")
FRESH = "fresh"  # a salt that no student knows
NUMBERS = [row.number for row in course.EXERCISES]


def module_of(text):
    """Source text as a module that has solutions.py's imports."""
    module = types.ModuleType("handed_in")
    exec(compile(text, "handed_in.py", "exec"), module.__dict__)
    return module


def with_functions(text):
    """The references with some functions written otherwise."""
    module = module_of(SOURCE)
    exec(compile(text, "handed_in.py", "exec"), module.__dict__)
    return module


DEAR = {7, 9, 11, 12}  # exercises whose laws take a tenth of a second or more


def slow_if_dear(numbers):
    return [pytest.param(number, marks=[pytest.mark.slow] if number in DEAR else []) for number in numbers]


def findings(number, code, salt=FRESH):
    """law name -> (passed, message) of an exercise's laws on some code, in this process."""
    found = {}
    for law in laws.laws_of(number):
        made = course.Made(salt, law.name, course.Reference(solutions))
        with contextlib.redirect_stdout(io.StringIO()):
            found[law.name] = worker.try_law(law, code, made, Path("handed_in.py"))
    return found


def broken(number, code, salt=FRESH):
    """The names of the laws that some code breaks, without their number, in the order in which a message names them."""
    return [name.partition("_")[2][3:] for name, (passed, _) in findings(number, code, salt).items() if not passed]


# ---------------------------------------------------------------------------------------------------------------------
# 1. One source: references, stubs, core.


@pytest.mark.parametrize("name", ["README.md", "teacher.md", pytest.param("answers.py", marks=pytest.mark.slow)])
def test_what_is_rendered_is_todays(name):
    """The pages' tables are those of the course; answers.py holds the stubs (slow: a student who writes in it here sees
    no fast test fail)."""
    found = (FOLDER / name).read_text(encoding="utf-8")
    assert found == handout.rendered()[name], f"{name}: type python exercises/handout.py"


def test_stubs_say_what_they_take():
    """A stub has its reference's docstring, and raises NotImplementedError."""
    made = handout.stubs(SOURCE)
    stubs = handout.functions_in(ast.parse(made))
    assert list(stubs) == [name for row in course.EXERCISES for name in row.functions]
    for name, node in stubs.items():
        assert ast.get_docstring(node) == ast.get_docstring(handout.functions_in(ast.parse(SOURCE))[name])
        assert ast.get_docstring(node) and isinstance(node.body[-1], ast.Raise)


@pytest.fixture
def made():
    return course.Made(FRESH, "core", None)


def test_losses_are_equal_to_the_core(made):
    """What a student learns to write is what the project runs: exercises 1 to 3, 13 and 15."""
    logits, mask, targets = (made.logits(3, 9, 7), made.logits(3, 9, 7)), made.mask(3, 9), made.tokens(7, 3, 9)
    for name in ("forward_kl", "reverse_kl", "generalized_jsd"):
        torch.testing.assert_close(getattr(solutions, name)(*logits), getattr(losses, name)(*logits))
    for reduction in ("token", "sequence"):
        ours = losses.masked_mean(logits[0][..., 0], mask, reduction)
        torch.testing.assert_close(solutions.masked_mean(logits[0][..., 0], mask, reduction), ours)
    ids = logits[1].topk(3).indices
    sparse = losses.forward_kl(*(losses.with_tail(one, ids) for one in logits))
    torch.testing.assert_close(solutions.sparse_forward_kl(*logits, 3), sparse)
    ours, theirs = solutions.okd_losses(*logits, targets, mask, 0.3), adapters.okd_losses(*logits, targets, mask, 0.3)
    torch.testing.assert_close(ours, theirs)


def test_samplers_are_equal_to_the_core(made):
    """The same of exercises 4 to 10: the very tokens."""
    logits, uniform, proposed = made.logits(4, 5, 9), made.uniform(4, 5), made.tokens(9, 4, 5)
    for filters in ((0.7, None, None), (1.0, 3, None), (1.3, 5, 0.6)):
        assert torch.equal(solutions.warp(logits, *filters), sample.warp(logits, *filters))
    probs = logits.softmax(-1)
    assert torch.equal(solutions.inverse_cdf(probs, uniform[..., None]), sample.inverse_cdf(probs, uniform[..., None]))
    assert torch.equal(solutions.rank(logits, proposed), sample.rank(logits, proposed))
    rule = sample.ACCEPT_RULES["topk"](logits, proposed, None, None, accept_top_k=3)
    assert torch.equal(solutions.accepted_by_topk(logits, proposed, 3), rule)
    positions, end = torch.arange(3, 8).expand(4, 5), torch.tensor([[9], [6], [7], [5]])
    counts = sample.countable(proposed, positions, end, 2)
    assert torch.equal(solutions.countable(proposed, positions, end, 2), counts)
    verdict, ours = sample.verify(rule, counts), solutions.verify(rule, counts)
    assert all(map(torch.equal, ours, verdict[:3]))
    start, replacement = torch.full((4,), 3), made.tokens(9, 4, 1)
    theirs = sample.commit(proposed, verdict, replacement, start, 2)
    assert all(map(torch.equal, solutions.commit(proposed, *ours[1:], replacement, start, 2), theirs))
    assert [solutions.best_gamma(n, 40, 2.0) for n in range(41)] == [sample.best_gamma(n, 40, 2.0) for n in range(41)]
    block, target = sample.Draft(None, proposed, list(logits.unbind(1))), made.logits(4, 5, 9)
    stays = sample.SpeculativeRules(1.0).stays(block, target, {"accept": uniform}, None)
    assert torch.equal(solutions.speculative_stays(logits, target, proposed, uniform), stays)
    at = torch.arange(4), torch.tensor([0, 2, 4, 1])
    redrawn = sample.SpeculativeRules(1.0).redraw(block, target, at, {"teacher": uniform})
    left = solutions.residual(logits[at], target[at])
    assert torch.equal(solutions.inverse_cdf(left, uniform[at][:, None])[:, 0], redrawn)


def test_interleaved_sampling_is_equal_to_the_core(made):
    """Exercises 7 and 9 write what interleaved_reference and interleaved_generate write, from the same noise."""
    models, prompts, end = (made.gpt(), made.gpt()), [[1, 9, 4], [6], [2, 2, 8, 3, 5]], 3
    seeded = [torch.Generator().manual_seed(8) for _ in range(3)]
    rollout = sample.interleaved_generate(*models, prompts, 9, generator=seeded[0], accept_top_k=3, eos_token=end)
    noise = sample.Noise(seeded[1], torch.arange(3))

    def number(row, place, role):
        return noise(torch.full((3, 1), place), role)[row].item()

    responses, sources = solutions.interleaved_in_blocks(*models, prompts, 9, number, 4, 3, end)
    assert responses == rollout.responses()
    labels = [[sample.SOURCE_NAMES.index(name) for name in row] for row in sources]
    assert labels == [
        row[start:stop]
        for row, start, stop in zip(rollout.source.tolist(), rollout.prompt_len.tolist(), rollout.lengths.tolist())
    ]
    ours = solutions.interleaved(*models, prompts[0], 9, functools.partial(number, 0), 3, end)
    found, labels = sample.interleaved_reference(
        *models, prompts[0], 9, generator=seeded[2], accept_top_k=3, eos_token=end, row_key=0
    )
    assert ours == (found, [sample.SOURCE_NAMES[label] for label in labels]) and ours[0] == responses[0]


def test_steps_are_equal_to_the_core(made):
    """Exercises 11 and 12: several steps end at the weights of train_skd.distill."""
    teacher, start, end = made.gpt(width=12).requires_grad_(False), made.gpt(), 3
    prompts = [[1, 9, 4], [6], [2, 2, 8, 3, 5], [7, 7]]
    for name, row in (("on_policy_step", "on_policy"), ("skd_step", "skd")):
        students = [copy_of(start), copy_of(start)]
        run = Run(steps=4, batch_size=2, lr=0.01, max_new_tokens=6, eos_token=end, accept_top_k=3)
        train_skd.distill(train_skd.VARIANTS[row], students[0], teacher, prompts, run=run)
        order = batch_order(len(prompts), 2, 4, torch.Generator().manual_seed(run.seed))
        optimizer, noise = make_optimizer(students[1], 0.01), run.generator(1)
        for step, chosen in enumerate(order):
            if row == "on_policy":
                torch.rand(1, generator=noise)  # the draw that `distill` makes for a writer of its own
            batch, rate = [prompts[at] for at in chosen], learning_rate(step, 4, 0.01)
            more = (3,) if row == "skd" else ()
            getattr(solutions, name)(students[1], teacher, batch, 6, optimizer, rate, noise, end, *more)
        for ours, theirs in zip(*(student.state_dict().values() for student in students)):
            torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-5)


def copy_of(model):
    return copy.deepcopy(model)


def test_lora_and_intervals_are_equal_to_the_core(made):
    """Exercises 14 and 17."""
    base = made.gpt()
    online = OnlineTeacher(base, "lora", 2, 0.7, torch.Generator().manual_seed(1))
    module, linear, x = online.module, base.blocks[0].attention.qkv, made.normal(2, 3, 8)
    with torch.no_grad():
        module.up_query.fill_(0.3)
        module.up_value.fill_(-0.2)
    matrices = [weight[0] for weight in (module.down_query, module.up_query, module.down_value, module.up_value)]
    torch.testing.assert_close(solutions.lora_qkv(linear, x, *matrices, 0.7), module.project(0, "qkv", linear, x))
    values = [made.random.random() for _ in range(6)]
    assert solutions.student_t_interval(values) == pytest.approx(statistics.student_t_interval(values))
    a, b = ({(pair, seed): made.random.random() for pair in range(4) for seed in (1, 2)} for _ in range(2))
    runs_a, runs_b = (
        [reading.Run("x", *key, "steps", {}, [], [], [], {"score": score}) for key, score in scores.items()]
        for scores in (a, b)
    )
    found = statistics.paired_difference(runs_a, runs_b, "score", "pair")
    assert solutions.paired_interval(a, b) == pytest.approx((found.mean, found.half_width))


@pytest.mark.parametrize("row", course.EXERCISES, ids=lambda row: str(row.number))
def test_every_exercise_has_its_page(row):
    """One screen: the idea, what to read, what to hand in by name, points and minutes of the table, a folded hint."""
    text = (FOLDER / handout.page_of(row)).read_text(encoding="utf-8")
    assert text.startswith(f"# {row.number}. ") and len(text.splitlines()) <= 50
    assert f"{row.kind.capitalize()} · {row.points} points · about {row.minutes} minutes" in text
    for heading in ("**Idea.**", "**Read first.**", "**Hand in.**", "<details><summary>Hint"):
        assert text.count(heading) == 1, heading
    for name in row.functions:
        assert f"`{name}" in text, name


# ---------------------------------------------------------------------------------------------------------------------
# 2. The grader is graded.


@pytest.mark.parametrize("number", [row.number for row in course.BUILD])
def test_references_keep_every_law(number):
    """Full points on inputs that nobody has seen."""
    assert broken(number, solutions) == []


@pytest.mark.slow
@pytest.mark.parametrize("number", [row.number for row in course.BUILD])
def test_no_salt_is_unlucky(number):
    """Laws hold for the references whatever the inputs."""
    assert {salt: broken(number, solutions, str(salt)) for salt in range(3)} == {salt: [] for salt in range(3)}


def test_stubs_are_worth_nothing():
    """Every stub says that it is not written yet, at its first law."""
    stubs = module_of(handout.stubs(SOURCE))
    for row in course.BUILD:
        law = laws.laws_of(row.number)[0]
        made = course.Made(FRESH, law.name, course.Reference(solutions))
        passed, message = worker.try_law(law, stubs, made, Path("handed_in.py"))
        assert passed is None and message.startswith(f"not written yet: exercise {row.number}, ")


def wrong_source(row):
    """solutions.py with the mistake in it."""
    if not row.function:
        assert SOURCE.count(row.old) == 1, (
            f"{row.mistake}: the text stands {SOURCE.count(row.old)} times in solutions.py"
        )
        return SOURCE.replace(row.old, row.new)
    node = handout.functions_in(ast.parse(SOURCE))[row.function]
    lines = SOURCE.splitlines(keepends=True)
    inside = "".join(lines[node.lineno - 1 : node.end_lineno])
    assert inside.count(row.old) == 1, f"{row.mistake}: the text stands {inside.count(row.old)} times in {row.function}"
    return "".join([*lines[: node.lineno - 1], inside.replace(row.old, row.new), *lines[node.end_lineno :]])


def wrong_rows():
    """Of the wrong solutions of a dear exercise the first one is fast."""
    seen = set()
    for row in wrong.WRONG:
        slow = row.number in DEAR and row.number in seen
        yield pytest.param(row, id=f"{row.number}: {row.mistake}", marks=[pytest.mark.slow] if slow else [])
        seen.add(row.number)


@pytest.mark.parametrize("row", list(wrong_rows()))
def test_a_wrong_solution_is_rejected_at_its_law(row):
    """The first broken law is the one that the table says; its message names law and input, and no right value."""
    told, code = [], module_of(wrong_source(row))
    with pytest.MonkeyPatch.context() as patch:
        outcome = course.Made.outcome
        patch.setattr(course.Made, "outcome", lambda made, run: told.append(outcome(made, run)) or told[-1])
        found = findings(row.number, code)
    first = next(name for name, (passed, _) in found.items() if not passed)
    assert first.partition("_")[2][3:] == row.law
    numbers = {f"{number:.4f}" for value in told for number in numbers_in(value)}
    for passed, message in found.values():
        assert passed or ("Broken for: " in message or "Raised " in message)
        assert not [number for number in numbers if number in message]


def numbers_in(value):
    """The floating-point numbers of an expected value that are not round."""
    if isinstance(value, torch.Tensor):
        value = value.flatten().tolist()
    if isinstance(value, list):
        return [number for part in value for number in numbers_in(part)]
    return [value] if isinstance(value, float) and value != round(value, 2) else []


RIGHT = [pytest.param(row, id=f"{row[0]}: {row[1]}", marks=[pytest.mark.slow] if row[0] in DEAR - {9} else [])
         for row in wrong.RIGHT]  # fmt: skip


@pytest.mark.parametrize("row", RIGHT)
def test_a_right_solution_written_otherwise_passes(row):
    """Other operations, loops, float64: a law asks what a function does, not how."""
    number, _, text = row
    assert {number: broken(number, with_functions(text))} == {number: []}


def test_every_exercise_has_three_wrong_solutions_and_a_right_one():
    """The table is complete."""
    for row in course.BUILD:
        assert sum(one.number == row.number for one in wrong.WRONG) >= 3, row.name
        assert any(number == row.number for number, *_ in wrong.RIGHT), row.name


@pytest.mark.parametrize("number", slow_if_dear(row.number for row in course.BUILD))
def test_a_table_of_the_visible_values_scores_zero(number):
    """Answers that return what the references returned for the visible inputs break a definition on fresh ones."""
    row, returned = course.exercise(number), []
    for law in laws.laws_of(number):
        oracle = course.Reference(recorder(row, returned))
        law.check(recorder(row, returned), course.Made(course.VISIBLE, law.name, oracle))
    table = types.SimpleNamespace(**{name: replay(name, returned) for name in row.functions})
    found = findings(number, table)
    essential = [name for name in found if name.startswith("definition")]
    assert essential and not all(found[name][0] for name in essential)


def broken_by_test(row, folder, text):
    """The first law of a fault's exercise that a file with a student's test breaks, None where it keeps all."""
    path = folder / "answers.py"
    path.write_text(text, encoding="utf-8")
    for law in faults.laws_of(row, path):
        passed, message = worker.try_law(law, None, None, path)
        if not passed:
            return law.name[len("law_18_") :] if passed is False else message
    return None


TESTED = [pytest.param(row, id=row.name, marks=[pytest.mark.slow] * (row.number != 19)) for row in course.FAULTS]


@pytest.mark.parametrize("row", TESTED)
def test_a_test_that_finds_nothing_is_rejected(row, tmp_path):
    """The reference's test finds the fault; others are rejected at their law; a stub is skipped."""
    function = row.functions[0]
    assert broken_by_test(row, tmp_path, SOURCE) is None
    assert broken_by_test(row, tmp_path, handout.stubs(SOURCE)) == f"not written yet: exercise {row.number}, {function}"
    own = [(mistake, law, body) for number, mistake, law, body in wrong.WRONG_TESTS if number in (None, row.number)]
    assert len(own) >= 4
    for mistake, law, body in own:
        text = handout.with_bodies(SOURCE, {function: body.strip()})
        assert (mistake, broken_by_test(row, tmp_path, text)) == (mistake, law)


def test_a_students_test_may_use_pytest_and_a_second_file(tmp_path, monkeypatch):
    """pytest's exceptions are no Exception, and a helper that has imported the project must see the fault, too."""
    row = course.exercise(19)
    monkeypatch.syspath_prepend(str(tmp_path))
    helper = "import pytest\nimport torch\nimport losses\n\ndef check():\n"
    helper += "    a, b = torch.eye(3)[None], torch.zeros(1, 3, 3)\n"
    helper += "    if losses.forward_kl(a, b)[0, 0] < 0.08:\n        pytest.fail('a mean')\n"
    (tmp_path / "helper_of_19.py").write_text(helper, encoding="utf-8")
    text = "import helper_of_19\n\ndef test_mean_over_v():\n    helper_of_19.check()\n"
    assert broken_by_test(row, tmp_path, text) is None


def test_faults_are_small_changes_of_our_own_code():
    """Each text that a fault replaces stands exactly once in its file."""
    assert [fault.number for fault in faults.FAULTS] == [row.number for row in course.FAULTS]
    for fault in faults.FAULTS:
        for old, new in ((fault.old, fault.new), *fault.others, fault.right):
            assert old != new and faults.changed(fault.file, old, new)


WRONG_ANSWERS = (  # what is changed in the reference's answer, and the law that rejects it
    ({"figures": {}}, "figures"),
    ({"figures": 1.01}, "figures"),  # all figures times this, plus a little
    ({"folder": "no-such-folder"}, "record"),
    ({"folder": "../results/rates"}, "record"),
    ({"prediction": "who knows"}, "prediction"),
    ({"found": "the other"}, "found"),
    ({"why": "Because."}, "why"),
)


SMALL = [pytest.param(row, id=row.name, marks=[pytest.mark.slow] * (row.number not in (28, 32)))
         for row in course.EXPERIMENTS]  # fmt: skip


@pytest.mark.parametrize("row", SMALL)
def test_an_experiment_is_read_off_its_records(row, runs_kept):
    """The reference's answer keeps all laws; a wrong figure, setting, word, or no explanation breaks its own."""
    experiment, (function,) = next(one for one in experiments.EXPERIMENTS if one.number == row.number), row.functions
    right = getattr(solutions, function)()
    assert right["prediction"] in experiment.choices

    def first_broken(answer):
        code = types.SimpleNamespace(**{function: lambda: answer})
        for law in experiments.laws_of(row, FOLDER / "solutions.py"):
            passed, _ = worker.try_law(law, code, None, FOLDER / "solutions.py")
            if not passed:
                return law.name[len("law_27_") :]
        return None

    assert first_broken(right) is None
    for change, law in WRONG_ANSWERS:
        if change.get("figures"):
            change = {"figures": {name: number * 1.01 + 0.01 for name, number in right["figures"].items()}}
        if change.get("found"):
            change = {"found": next(choice for choice in experiment.choices if choice != right["found"])}
        assert (change, first_broken(right | change)) == (change, law)
    assert first_broken({"figures": {}}) == "record"


@pytest.fixture(scope="module")
def runs_kept():
    """Records are read once per folder in this module: unpacking those of a study takes half a second."""
    read = experiments.read_records
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(experiments, "read_records", functools.cache(read))
        yield


def test_pages_of_experiments_name_commands_that_work():
    """The command of each experiment stands on its page, and its script takes it; so do figures and words."""
    for experiment in experiments.EXPERIMENTS:
        text = (FOLDER / handout.page_of(course.exercise(experiment.number))).read_text(encoding="utf-8")
        for name in (*experiment.commands, *experiment.figures, *experiment.choices):
            assert f"`{name}`" in text, name
        for command in experiment.commands:
            words = command.split()
            script = {"train_skd": train_skd, "train_okd": train_okd}[experiment.script]
            assert words[:2] == ["python", f"{experiment.script}.py"]
            script.parse_flags([*words[2:], "--device", "cpu"])


def recorder(row, returned):
    """The references; each result of the row's functions is noted as (function, result)."""

    def noted(name):
        def call(*arguments, **keywords):
            result = getattr(solutions, name)(*arguments, **keywords)
            returned.append((name, result))
            return result

        return call

    return types.SimpleNamespace(**vars(solutions) | {name: noted(name) for name in row.functions})


def replay(name, returned):
    """A function that returns the noted results of `name` one after the other, whatever it is given."""
    left = [result for own, result in returned if own == name]
    return lambda *arguments, **keywords: left.pop(0) if len(left) > 1 else left[0]


# ---------------------------------------------------------------------------------------------------------------------
# 3. grade.py.


@pytest.mark.slow
def test_the_references_have_full_points(tmp_path):
    """grade.py --solutions, one exercise of each kind, each in its process; a stub has none."""
    status, output = graded(9, 22, 32, "--solutions", "--salt", FRESH, "--seconds", 600)
    assert status == 0 and "20 of 20" in output, output
    (tmp_path / "answers.py").write_text(handout.stubs(SOURCE), encoding="utf-8")
    status, output = graded(32, "--folder", tmp_path, "--seconds", 600)
    assert status == 1 and "0 of 4" in output and "not written yet" in output


def graded(*argv):
    """(exit status, output) of grade.py in this process; its workers are processes of their own."""
    output = io.StringIO()
    with contextlib.redirect_stdout(output):
        status = grade.main([str(word) for word in argv])
    return status, output.getvalue()


def test_one_exercise_end_to_end(tmp_path):
    """A half-right answer: points of the laws that hold, the message of the first broken one, JSON and JUnit."""
    row = next(row for row in wrong.WRONG if row.mistake == "the teacher not detached")
    (tmp_path / "answers.py").write_text(wrong_source(row), encoding="utf-8")
    (tmp_path / "laws.py").write_text("# all laws hold\n", encoding="utf-8")
    status, output = graded(2, "--folder", tmp_path, "--salt", "x", "--json", tmp_path / "a", "--junit", tmp_path / "b",
                            "--seconds", 600)  # fmt: skip
    found = json.loads((tmp_path / "a").read_text())
    (entry,) = found["exercises"]
    assert status == 1 and 0 < entry["points"] < entry["max_points"] == 5 and "student_learns_alone" in entry["message"]
    assert found["total"] == found["score"] == entry["points"] and found["max_total"] == 5 and found["complete"]
    assert found["tests"][0]["max_score"] == 5 and found["tests"][0]["output"] == entry["message"]
    assert "laws.py" in output and "not used" in found["notes"][0]
    assert (tmp_path / "b").read_text().count("<failure") == 1


ENDS = {
    "a loop that never ends": ("while True:\n        pass", "stopped after"),
    "the process ends": ("import os\nos._exit(0)", "the process ended itself"),
    "exit": ("raise SystemExit(0)", "SystemExit"),
    "the core's own": ("import losses\nreturn losses.masked_mean(per_token, mask, reduction)", "core's own"),
    "the core's own by another way": ("import lab.training as t\nreturn t.masked_mean(per_token, mask)", "core's own"),
    "the reference that the laws ask": ("import sys\nreturn sys.modules['_reference'].masked_mean()", "KeyError"),
    "all memory": ("return [torch.empty(2**27) for _ in range(20)][0].sum()", "memory"),
    "the references": ("import solutions\nreturn solutions.masked_mean(per_token, mask)", "solutions"),
}


LINUX = pytest.mark.skipif(sys.platform != "linux", reason="only Linux limits a process's memory")


@pytest.mark.parametrize("name", [pytest.param(name, marks=[pytest.mark.slow, *[LINUX] * ("memory" in name)])
                                  for name in ENDS])  # fmt: skip
def test_a_result_is_written_whatever_the_code_does(name, tmp_path):
    """Endless loops, exits and short cuts cost their own exercise, and nothing else."""
    body, said = ENDS[name]
    text = handout.with_bodies(SOURCE, {"masked_mean": body})
    (tmp_path / "answers.py").write_text(text, encoding="utf-8")
    limit, numbers = (5, (1,)) if "loop" in name else (600, (1, 2)) if name == "exit" else (600, (1,))
    status, _ = graded(*numbers, "--folder", tmp_path, "--json", tmp_path / "json", "--seconds", limit)
    first, *others = json.loads((tmp_path / "json").read_text())["exercises"]
    assert status == 1 and first["points"] == 0 and said in first["message"], first["message"]
    assert "loop" not in name or "answers.py, line " in first["message"]
    assert [other["points"] for other in others] == [5] * len(others)


@pytest.mark.parametrize(
    ("argv", "said"),
    [(["99"], "no exercise 99"), (["--folder", "nowhere"], "no answers.py"), (["--solved", "2"], "--handout"),
     (["--solutions", "--folder", "."], "not both"), (["--handout", "."], "not empty"), (["--jobs", "0"], "--jobs"),
     (["two"], "'two' names no exercise"), (["9-2"], "such as 2 7 or 5-9"), (["1-"], "'1-'"),
     (["1-999999"], "no exercise 34"), (["--seconds", "nan"], "--seconds"), (["--seconds", "inf"], "--seconds"),
     (["--handout", "x", "2"], "grades nothing"),
     (["--folder", __file__], "is a file"), (["--json", "x", "--junit", "./x"], "give two names"),
     (["--json", "no-such-folder/x"], "make it first"), (["--json", "."], "is no file"),
     (["--junit", "exercises/answers.py"], "holds code")],
)  # fmt: skip
def test_wrong_use_gets_one_line(argv, said, monkeypatch):
    """What was wrong, and what to type, before anything is graded."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(grade, "run_worker", None)
    with pytest.raises(ValueError, match=re.escape(said)) as caught:
        grade.main(argv)
    assert "\n" not in str(caught.value)


def test_a_flag_that_there_is_none_of_gets_one_line(capsys):
    """No screen of usage; the status of wrong use."""
    with pytest.raises(SystemExit) as caught:
        grade.main(["--folders", "x"])
    assert caught.value.code == 2 and capsys.readouterr().err.count("\n") == 1


def test_exercises_are_named_as_one_types_them():
    """Numbers, lists and ranges, each exercise once."""
    assert [row.number for row in grade.rows_of(["2", "5-7", "9,2"])] == [2, 5, 6, 7, 9]
    assert grade.rows_of([]) == course.EXERCISES


TIMEOUT = '''Timeout (0:00:12)!
Thread 0x00007f (most recent call first):
  File "/x/answers.py", line 22 in masked_mean
  File "/x/answers.py", line 7 in helper
'''


@pytest.mark.parametrize(
    ("status", "output", "said"),
    [(1, TIMEOUT, "stopped after 9 s in answers.py, line 22: does a loop never end?"),
     (None, "", "stopped after 9 s: does a loop never end?"), (None, None, "is the machine busy?"),
     (0, "", "is there an os._exit?"),
     (3, "words\nlast words\n", "status 3: last words"), (1, "", "status 1: without a word"),
     (-11, "", "ended by SIGSEGV")],
)  # fmt: skip
def test_the_end_of_a_process_is_told(status, output, said):
    """Which line a loop never left, which signal, or the last words; nothing where all laws were tried."""
    found = [] if output is None else [{"laws": []}]  # a worker that has not begun has written nothing
    assert said in grade.end_of(status, output, found, 9, Path("/x/answers.py"))
    assert grade.end_of(0, output="", found=[{"done": True}], limit=9, answers=Path("answers.py")) == ""


def pretended(monkeypatch, points):
    """grade.py without processes: exercise -> the passed of its laws, or an exception."""

    def run_worker(row, answers, salt, limit, workers):
        if isinstance(points[row.number], BaseException):
            raise points[row.number]
        told = [(f"law_{at}", passed) for at, passed in enumerate(points[row.number])]
        found = [{"law": name, "passed": passed, "message": "" if passed else "\ud800\x1b[31mü\0" * 500}
                 for name, passed in told]  # fmt: skip
        return [{"laws": [[name, "says", False] for name, _ in told]}, *found, {"done": True}], ""

    monkeypatch.setattr(grade, "run_worker", run_worker)


def test_odd_text_of_a_student_costs_nobody_the_result(tmp_path, monkeypatch):
    """Half a character, control characters and pages of text: JSON, XML and a terminal take the message."""
    pretended(monkeypatch, {1: [True, False]})
    status, output = graded(1, "--json", tmp_path / "a", "--junit", tmp_path / "b")
    (entry,) = json.loads((tmp_path / "a").read_text(encoding="utf-8"))["exercises"]
    assert status == 1 and entry["points"] == 2 and len(entry["message"]) < 600 and entry["message"].isprintable()
    assert len(xml.etree.ElementTree.parse(tmp_path / "b").getroot()) == 2
    assert all(line.isprintable() for line in output.splitlines())


def test_findings_that_are_none_are_passed_over(tmp_path):
    """A line cut short, or written by a stranger, loses itself alone."""
    (tmp_path / "findings").write_bytes(b'{"law": "a", "passed": true}\n{}}\n\xff\n[1]\n{"law": "b", "pass')
    assert list(grade.read_findings(tmp_path / "findings")) == [{"law": "a", "passed": True}]
    assert list(grade.read_findings(tmp_path / "none")) == []


def test_an_exercise_that_cannot_be_graded_costs_itself_alone(tmp_path, monkeypatch):
    """No process to be had for one of them: the others have their points."""
    pretended(monkeypatch, {1: OSError("no process"), 5: [True]})
    status, output = graded(1, 5, "--json", tmp_path / "a")
    first, second = json.loads((tmp_path / "a").read_text(encoding="utf-8"))["exercises"]
    assert status == 1 and "could not be graded" in first["message"] and (first["points"], second["points"]) == (0, 4)


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError("the disk is full")])
def test_an_interruption_loses_nothing(error, tmp_path, monkeypatch):
    """Ctrl-C in the middle, or a result that cannot be written: what was graded is written and printed, and no worker
    is left running."""
    pretended(monkeypatch, {1: [True], 5: [True], 6: [True]})
    ended, printed, write, raised = [], [], grade.write_results, []
    monkeypatch.setattr(grade.Workers, "end", lambda workers: ended.append(workers))
    monkeypatch.setattr(grade, "print_result", printed.append)

    def write_results(args, results, rows, notes):
        if len(results) == 3 and not raised:
            raised.append(error)
            raise error
        write(args, results, rows, notes)

    monkeypatch.setattr(grade, "write_results", write_results)
    with pytest.raises(type(error)):
        grade.main(["1", "5", "6", "--json", str(tmp_path / "a"), "--jobs", "1"])
    found = json.loads((tmp_path / "a").read_text(encoding="utf-8"))
    assert [entry["number"] for entry in found["exercises"]] == [1, 5, 6] == [one.row.number for one in printed]
    assert found["complete"] and len(ended) == 1


def test_a_result_is_written_before_the_first_is_there(tmp_path, monkeypatch):
    """An exercise that takes its time keeps none of the others' results: they are written as they come."""
    pretended(monkeypatch, {1: [True], 5: [True]})
    quick, path, seen = grade.run_worker, tmp_path / "a", []

    def run_worker(row, *others):
        patience = time.time() + 20
        while row.number == 1 and time.time() < patience and seen[-1:] != [[5]]:
            time.sleep(0.01)
            found = json.loads(path.read_text(encoding="utf-8"))
            seen.append([entry["number"] for entry in found["exercises"]])
        return quick(row, *others)

    monkeypatch.setattr(grade, "run_worker", run_worker)
    assert graded(1, 5, "--json", path)[0] == 0 and seen[-1] == [5]


@pytest.mark.slow
def test_an_interrupted_grader_leaves_no_process(tmp_path):
    """SIGTERM in the middle of a loop that never ends: status 130, a result that says that it is none, no worker."""
    body = "import os\nfrom pathlib import Path\nPath(__file__).with_name('pid').write_text(str(os.getpid()))\n"
    text = handout.with_bodies(SOURCE, {"masked_mean": f"{body}while True:\n    pass"})
    (tmp_path / "answers.py").write_text(text, encoding="utf-8")
    command = [sys.executable, str(FOLDER / "grade.py"), "1", "--folder", str(tmp_path), "--json", str(tmp_path / "a"),
               "--seconds", "600"]  # fmt: skip
    grader = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    patience = time.time() + 300
    while not (tmp_path / "pid").exists() and time.time() < patience:
        time.sleep(0.1)
    grader.send_signal(signal.SIGTERM)
    assert "interrupted" in grader.communicate(timeout=60)[1] and grader.returncode == 130
    assert json.loads((tmp_path / "a").read_text())["complete"] is False
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)


def test_a_law_finds_what_it_was_written_for():
    """Default dtype, device, gradients and warnings are as at first, whatever a student's code has set."""
    threads = torch.get_num_threads()
    torch.set_default_dtype(torch.float64)
    torch.set_default_device("meta")
    torch.set_grad_enabled(False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        worker.as_at_first()
        warnings.warn("nobody hears it", stacklevel=1)
        made = torch.ones(1)
        torch.set_num_threads(threads)
    assert (made.dtype, made.device.type, torch.is_grad_enabled()) == (torch.float32, "cpu", True)


def test_a_type_that_torch_does_not_take_is_no_stub():
    """torch raises NotImplementedError, too: that is a mistake, and its line is told."""

    def rounded(per_token, mask, reduction="token"):
        return mask.long().softmax(-1)

    passed, message = findings(1, types.SimpleNamespace(masked_mean=rounded))["law_01_padding"]
    assert passed is False and "not written yet" not in message
    passed, message = findings(1, types.SimpleNamespace(masked_mean=lambda *_: None))["law_01_padding"]
    assert passed is False and "not in handed_in.py: is what it returns" in message


def test_the_cores_own_is_refused_wherever_it_stands(monkeypatch):
    """In its module, in one that has imported it by name, in a table, and as a method of a class."""

    class Kind:
        def method(self):
            return 1

    def own():
        return 1

    home, other = types.ModuleType("home_of_own"), types.ModuleType("other_of_own")
    vars(home).update(own=own, Kind=Kind, __file__=str(ROOT / "home_of_own.py"))
    vars(other).update(named=own, TABLE={"row": own}, __file__=str(ROOT / "lab" / "other_of_own.py"))
    for module in (home, other):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    cores = [handout.Core(1, "home_of_own.py", name, "") for name in ("own", "Kind.method")]
    monkeypatch.setattr(handout, "CORE", cores)
    worker.forbid(2)
    assert home.own() == other.named() == 1
    worker.forbid(1)
    for refused in (home.own, other.named, other.TABLE["row"], Kind().method):
        with pytest.raises(course.Broken, match="exercise 1 is to write it"):
            refused()


@pytest.mark.slow
def test_what_students_and_their_machines_do_costs_no_point(tmp_path):
    """A right answer has full points with Windows' line ends and BOM, in a folder with blanks, in two files, with odd
    settings of torch and Python, with a thread, a process and unremovable files left behind."""
    folder = tmp_path / "Jürgen Ü" / "my answers"
    folder.mkdir(parents=True)
    odd = """
import os, subprocess, threading, time, warnings
import torch
import my_helper
warnings.simplefilter("error")
torch.set_default_dtype(torch.float64), torch.set_default_device("meta"), torch.set_grad_enabled(False)
threading.Thread(target=time.sleep, args=(1000,)).start()
child = subprocess.Popen([os.sys.executable, "-c", "import time; time.sleep(1000)"])
open("findings", "w").write("{}}"), os.mkdir("kept"), open("kept/file", "w"), os.chmod("kept", 0)
open(os.path.join(os.path.dirname(__file__), "pid"), "w").write(str(child.pid))
"""
    (folder / "my_helper.py").write_text("", encoding="utf-8")
    (folder / "answers.py").write_bytes(("\ufeff" + SOURCE + odd).replace("\n", "\r\n").encode())
    status, output = graded(1, "--folder", os.path.relpath(folder), "--salt", FRESH, "--seconds", 600)
    assert status == 0, output
    words = Path("/proc", (folder / "pid").read_text(), "cmdline")  # empty where nobody has asked how it ended
    assert not words.exists() or not words.read_bytes()


def test_commands_on_pages_are_known():
    """Every command of the pages that calls grade.py or leaderboard.py has flags that it takes."""
    lines = [line for path in FOLDER.glob("*.md") for line in path.read_text(encoding="utf-8").splitlines()]
    commands = [line.split("#")[0].split("exercises/grade.py")[1] for line in lines if "exercises/grade.py " in line]
    for words in commands:
        argv = shlex.split(words.partition("; done")[0].partition("`")[0])
        assert grade.parse(argv)
    assert len(commands) > 5
    words = [line.split("#")[0].partition("exercises/leaderboard.py ")[2] for line in lines]
    boards = [one for one in words if one]
    assert len(boards) == 2 and all(leaderboard.parse(shlex.split(words)).folder == "submissions" for words in boards)


# ---------------------------------------------------------------------------------------------------------------------
# 4. The handout.


@pytest.fixture(scope="module")
def handed_out(tmp_path_factory):
    """A handout without solutions."""
    folder = tmp_path_factory.mktemp("handout") / "copy"
    handout.write_handout(folder)
    return folder


# Lines of solutions that stand elsewhere in the project for other reasons, and tell nothing.
ELSEWHERE = {
    "for part in run.parts(rollout):",
    "student_logits = part.forward(student)",
    "teacher_logits = teacher(inputs)",
    "rollout = interleaved_generate(",
}


def telling_lines(source, name):
    """Lines of a function's body that stand nowhere else in its file and are long enough to tell something."""
    node = handout.functions_in(ast.parse(source))[name]
    start, end = handout.body_lines(node)
    lines = [line.strip() for line in source.splitlines()]
    body = {line for line in lines[start - 1 : end] if len(line) > 25 and not line.startswith("#")}
    return {line for line in body if lines.count(line) == 1} - ELSEWHERE


def test_a_handout_holds_no_solution(handed_out):
    """No line of a reference, nor of a core function that an exercise asks for, stands in any file of the copy."""
    secrets = set()
    for row in course.BUILD:
        for name in row.functions:
            secrets |= telling_lines(SOURCE, name)
    for item in handout.CORE:
        secrets |= telling_lines((ROOT / item.file).read_text(encoding="utf-8"), item.function)
    files = [path for path in handed_out.rglob("*") if path.is_file()]
    assert len(files) > 60 and len(secrets) > 3 * len(course.BUILD) // 2
    names = {path.name for path in files}
    assert not names & {"solutions.py", "wrong.py", "teacher.md", "test_losses.py"}
    told = [(path.name, line) for path in files for line in path.read_text(encoding="utf-8").splitlines()
            if line.strip() in secrets]  # fmt: skip
    assert told == []


def test_a_handout_gives_what_was_solved():
    """--solved N: references and core up to N whole, the rest without; with all of part 1 the core is as it was."""
    given = handout.functions_in(ast.parse(handout.stubs(SOURCE, 8)))
    whole = handout.functions_in(ast.parse(SOURCE))
    for row in course.EXERCISES:
        for name in row.functions:
            assert (ast.dump(given[name]) == ast.dump(whole[name])) == (row.number <= 8), name
    for file in {item.file for item in handout.CORE}:
        text = (ROOT / file).read_text(encoding="utf-8")
        assert handout.in_handout(file, text, len(course.BUILD)) == text
        found, wanted = (handout.functions_in(ast.parse(one)) for one in (handout.in_handout(file, text, 8), text))
        for item in handout.CORE:
            if item.file == file:
                same = ast.dump(found[item.function]) == ast.dump(wanted[item.function])
                assert same == (item.number <= 8), item.function


def run_in(folder, *argv):
    """(exit status, output) of a copy's own grade.py."""
    command = [sys.executable, str(folder / "exercises" / "grade.py"), *map(str, argv)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout + done.stderr


@pytest.mark.slow
def test_a_handout_turns_green_one_exercise_at_a_time(handed_out):
    """With exercise 2 written, it has its points and 1 is skipped; a changed law is noticed."""
    answers = handed_out / "exercises" / "answers.py"
    source = "".join(SOURCE.splitlines(keepends=True)).replace("def masked_mean", "def _masked_mean")
    text = answers.read_text(encoding="utf-8")
    answers.write_text(source + "\n\ndef masked_mean(*_):\n    raise NotImplementedError('exercise 1')\n", "utf-8")
    status, output = run_in(handed_out, 1, 2)
    answers.write_text(text, encoding="utf-8")
    assert status == 1 and re.search(r"0 of 4 +not written yet", output) and "5 of 5" in output, output
    assert run_in(handed_out, 18)[1].strip() == "grade.py: no exercise 18: the course has 1 to 17"
    assert "as it was handed out" not in output
    path = handed_out / "exercises" / "laws.py"
    path.write_text(path.read_text(encoding="utf-8") + "# mine\n", encoding="utf-8")
    assert "laws.py is not as it was handed out" in run_in(handed_out, 1)[1]


def test_what_was_handed_out_is_known_again(tmp_path, monkeypatch):
    """Line ends of Windows change nothing; a changed file, and a manifest that is gone or broken, are told."""
    names = ("laws.py", "grade.py")
    for name in names:
        (tmp_path / name).write_bytes(b"one\ntwo\n")
    manifest = tmp_path / handout.MANIFEST
    manifest.write_text(json.dumps({name: handout.digest(tmp_path / name) for name in names}))
    monkeypatch.setattr(handout, "HERE", tmp_path)
    (tmp_path / "laws.py").write_bytes(b"one\r\ntwo\r\n")
    assert handout.changed_files(tmp_path) == []
    (tmp_path / "grade.py").write_bytes(b"one\nthree\n")
    assert [note.split()[0] for note in handout.changed_files(tmp_path)] == ["grade.py"]
    for broken in ("", "[1]", "{"):
        manifest.write_text(broken)
        assert [note.split()[0] for note in handout.changed_files(tmp_path)] == [handout.MANIFEST]
    manifest.unlink()
    assert [note.split()[0] for note in handout.changed_files(tmp_path)] == [handout.MANIFEST]


# ---------------------------------------------------------------------------------------------------------------------
# 5. leaderboard.py.

SCORES = {"skd": 0.40, "on_policy": 0.30, "anna": 0.60, "zoe": 0.301}


def pretend_training(monkeypatch, asked, flags=lambda name: {"steps": 400}, passes=2000):
    """leaderboard.py without processes: every row but `bad` leaves records, a bit better on every further pair."""

    def run(command, seconds, log):
        words = command[command.index("--train") + 1 :]
        name, folder, pairs = words[1], Path(words[words.index("--out") + 1]), int(words[words.index("--pairs") + 1])
        asked.append(name)
        if name == "bad":
            return "ModuleNotFoundError: No module named 'x'"
        for pair in range(601, 601 + pairs):
            header = {"kind": "header", "format": records.FORMAT, "variant": name, "pair": pair, "seed": pair,
                      "flags": flags(name), "fingerprint": f"pair {pair}"}  # fmt: skip
            score = SCORES[name] + 0.01 * (pair - 601) + 0.002 * (name == "zoe") * (-1) ** pair
            final = {"kind": "final", "score": score, "score_sampled": score / 2, "teacher_forwards": passes}
            text = "\n".join(json.dumps(line) for line in (header, final))
            (folder / f"{name}_{pair}.jsonl").write_text(records.with_checksum(text) + "\n")
        return ""

    monkeypatch.setattr(leaderboard, "run", run)


def board(folder, *argv):
    """(exit status, output) of leaderboard.py."""
    output = io.StringIO()
    with contextlib.redirect_stdout(output):
        status = leaderboard.main([str(folder), "--out", str(folder / "board"), *map(str, argv)])
    return status, output.getvalue()


def test_a_leaderboard_ranks_what_is_told_apart(tmp_path, monkeypatch):
    """Score per pass by hand: .62 / 2000 passes = .31 per 1000. zoe is not told apart from on_policy, whose rank it
    shares; a file that fails has one line; the second call trains nothing; a changed file is trained anew."""
    asked = []
    pretend_training(monkeypatch, asked)
    for name in ("anna", "zoe", "bad", "no name"):
        (tmp_path / f"{name}.py").write_text("", encoding="utf-8")
    status, output = board(tmp_path)
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in output.splitlines() if line.startswith("| ")]
    assert status == 1 and asked == ["skd", "on_policy", "anna", "bad", "zoe"]
    assert [(row[0], row[1]) for row in rows[2:]] == [("1", "anna"), ("2", "skd"), ("3", "zoe"), ("3", "on_policy")]
    half = 2.776445 * 0.0000625**0.5 / 5**0.5  # t of 4 degrees of freedom; s^2 of .30, .305 .. .32 is .0000625
    assert rows[2][2:] == ["0.620", "0.310", "2,000", f"0.310 ± {half:.3f}"]
    assert "6 comparisons" in output and output.count("ModuleNotFoundError") == 1
    assert "no name: a row needs a name" in output
    asked.clear()
    assert board(tmp_path)[0] == 1 and asked == ["bad"]
    (tmp_path / "anna.py").write_text("# changed", encoding="utf-8")
    (tmp_path / "bad.py").unlink()
    (tmp_path / "no name.py").unlink()
    asked.clear()
    assert board(tmp_path)[0] == 0 and asked == ["anna"]


def test_a_leaderboard_without_a_difference_has_no_rank(tmp_path, monkeypatch):
    """One pair tells nobody apart; a row that never asks the teacher has no score per pass."""
    pretend_training(monkeypatch, [])
    (tmp_path / "anna.py").write_text("", encoding="utf-8")
    output = board(tmp_path, "--pairs", 1)[1]
    assert "|  | anna | 0.600 | 0.300 | 2,000 | 0.300 |" in output and "±" in output
    pretend_training(monkeypatch, [], passes=0)
    assert "| 0 | never asked |" in board(tmp_path, "--pairs", 2)[1]


def test_a_leaderboard_refuses_what_cannot_be_compared(tmp_path, monkeypatch):
    """Records of other flags; an empty folder; a row of the project that fails ends it."""
    with pytest.raises(ValueError, match="no .py file"):
        board(tmp_path)
    with pytest.raises(ValueError, match="--seconds"):
        board(tmp_path, "--seconds", "nan")
    (tmp_path / "anna.py").write_text("", encoding="utf-8")
    pretend_training(monkeypatch, [], flags=lambda name: {"steps": 400 + (name == "anna")})
    status, output = board(tmp_path)
    assert status == 1 and "anna: its records are of other pairs or flags" in output and "| anna |" not in output
    monkeypatch.setattr(leaderboard, "run", lambda *_: "no room")
    with pytest.raises(ValueError, match="skd: no room"):
        leaderboard.main([str(tmp_path), "--out", str(tmp_path / "other")])


def test_a_leaderboards_processes_end(tmp_path):
    """A time limit and a failure are one line each."""
    log = tmp_path / "log"
    assert leaderboard.run([sys.executable, "-c", "pass"], 60, log) == ""
    assert leaderboard.run([sys.executable, "-c", "print('a'); raise SystemExit('why')"], 60, log) == "why"
    failed = "print('run a failed: nan'); print('no table'); raise SystemExit(1)"
    assert leaderboard.run([sys.executable, "-c", failed], 60, log) == "run a failed: nan"
    assert "stopped after 0.2 s" in leaderboard.run([sys.executable, "-c", "import time; time.sleep(60)"], 0.2, log)


ROW = """
from losses import forward_kl, reverse_kl
from catalogue import Variant

def both_ways(student_logits, teacher_logits):
    return (forward_kl(student_logits, teacher_logits) + reverse_kl(student_logits, teacher_logits)) / 2

ROW = Variant("student", "both_ways", None, "both directions")
"""


def test_a_students_row_stands_beside_the_projects(tmp_path, monkeypatch):
    """Its loss is found by name; a second row, a name of the project, and a loss that it has are refused."""
    monkeypatch.setattr(train_skd, "main", lambda argv: argv)
    monkeypatch.setattr(train_skd, "VARIANTS", dict(train_skd.VARIANTS))
    monkeypatch.setattr(losses, "MATCHING_LOSSES", dict(losses.MATCHING_LOSSES))
    path = tmp_path / "anna.py"
    path.write_text(ROW, encoding="utf-8")
    assert leaderboard.train(str(path), "anna", ["--quick"]) == ["--variants", "anna", "--quick"]
    logits = torch.tensor([[[0.0, 1.0, 2.0]]]), torch.tensor([[[2.0, 0.0, 1.0]]])
    both = (losses.forward_kl(*logits) + losses.reverse_kl(*logits)) / 2
    assert train_skd.VARIANTS["anna"].loss == "both_ways"
    torch.testing.assert_close(losses.per_token_loss("both_ways", *logits, None), both)
    assert leaderboard.train("", "skd", []) == ["--variants", "skd"]
    path.write_text(ROW.replace('"both_ways"', '"reverse_kl"'), encoding="utf-8")  # the project's, by its own name
    assert leaderboard.train(str(path), "emil", []) and train_skd.VARIANTS["emil"].loss == "reverse_kl"
    for text, name, said in (
        (ROW + "OTHER = ROW\n", "berta", "must hold one Variant"),
        (ROW, "skd", "not be called as a row is"),
        (ROW.replace("both_ways", "skew_forward_kl"), "carl", "another name"),
        (ROW.replace("def both_ways", "def student"), "dora", "student anew"),
    ):
        path.write_text(text, encoding="utf-8")
        with pytest.raises(ValueError, match=said):
            leaderboard.train(str(path), name, [])


@pytest.mark.slow
def test_a_leaderboard_end_to_end(tmp_path, monkeypatch):
    """--quick: a student's own loss beside a row of the project, from the same pair, and a file that fails."""
    (tmp_path / "anna.py").write_text(ROW, encoding="utf-8")
    (tmp_path / "bad.py").write_text("import no_such_module\n", encoding="utf-8")
    monkeypatch.setattr(leaderboard, "BESIDE", ("on_policy",))
    status, output = board(tmp_path, "--quick", "--pairs", 1)
    assert status == 1 and "anna: done" in output and "no_such_module" in output, output
    assert "| anna |" in output and "smoke run" in output
    assert (tmp_path / "board" / f"anna-{hashlib.sha256(ROW.encode()).hexdigest()[:8]}").is_dir()
