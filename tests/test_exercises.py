"""The coursework is graded here: references, stubs, the grader and its laws (exercises/)."""

import ast
import contextlib
import io
import json
import re
import subprocess
import sys
import types
from pathlib import Path

import pytest
import torch

import losses

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "exercises"
sys.path.insert(0, str(FOLDER))

import course  # noqa: E402
import grade  # noqa: E402
import handout  # noqa: E402
import laws  # noqa: E402
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


def test_stubs_are_made_of_the_references():
    """answers.py is what the references give without their bodies."""
    made = handout.stubs(SOURCE)
    assert (FOLDER / "answers.py").read_text(encoding="utf-8") == made, "type python exercises/handout.py"
    stubs = handout.functions_in(ast.parse(made))
    assert list(stubs) == [name for row in course.EXERCISES for name in row.functions]
    for name, node in stubs.items():
        assert ast.get_docstring(node) == ast.get_docstring(handout.functions_in(ast.parse(SOURCE))[name])
        assert ast.get_docstring(node) and isinstance(node.body[-1], ast.Raise)


def test_references_are_equal_to_the_core():
    """What a student learns to write is what the project runs."""
    made = course.Made(FRESH, "core", None)
    student_logits, teacher_logits, mask = made.logits(3, 9, 7), made.logits(3, 9, 7), made.mask(3, 9)
    for name in ("forward_kl", "reverse_kl"):
        ours = getattr(losses, name)(student_logits, teacher_logits)
        torch.testing.assert_close(getattr(solutions, name)(student_logits, teacher_logits), ours)
    for reduction in ("token", "sequence"):
        ours = losses.masked_mean(student_logits[..., 0], mask, reduction)
        torch.testing.assert_close(solutions.masked_mean(student_logits[..., 0], mask, reduction), ours)


# ---------------------------------------------------------------------------------------------------------------------
# 2. The grader is graded.


@pytest.mark.parametrize("number", [row.number for row in course.BUILD])
def test_references_keep_every_law(number):
    """Full points on inputs that nobody has seen, twice."""
    assert [broken(number, solutions, salt) for salt in (FRESH, "another")] == [[], []]


def test_stubs_are_worth_nothing():
    """Every stub says that it is not written yet, at its first law."""
    stubs = module_of(handout.stubs(SOURCE))
    for row in course.BUILD:
        passed, message = next(iter(findings(row.number, stubs).values()))
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


@pytest.mark.parametrize("row", wrong.WRONG, ids=lambda row: f"{row.number}: {row.mistake}")
def test_a_wrong_solution_is_rejected_at_its_law(row):
    """The first broken law is the one that the table says, and its message does not tell what would be right."""
    assert broken(row.number, module_of(wrong_source(row)))[:1] == [row.law]


@pytest.mark.parametrize("row", wrong.RIGHT, ids=lambda row: f"{row[0]}: {row[1]}")
def test_a_right_solution_written_otherwise_passes(row):
    """Other operations, loops, float64: a law asks what a function does, not how."""
    number, _, text = row
    assert {number: broken(number, with_functions(text))} == {number: []}


def test_every_exercise_has_three_wrong_solutions_and_a_right_one():
    """The table is complete."""
    for row in course.BUILD:
        assert sum(one.number == row.number for one in wrong.WRONG) >= 3, row.name
        assert any(number == row.number for number, *_ in wrong.RIGHT), row.name


@pytest.mark.parametrize("number", [row.number for row in course.BUILD])
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


def recorder(row, returned):
    """The references, each result of which is noted as (function, result)."""

    def noted(name):
        def call(*arguments, **keywords):
            result = getattr(solutions, name)(*arguments, **keywords)
            returned.append((name, result))
            return result

        return call

    return types.SimpleNamespace(**{name: noted(name) for name in row.functions})


def replay(name, returned):
    """A function that returns the noted results of `name` one after the other, whatever it is given."""
    left = [result for own, result in returned if own == name]
    return lambda *arguments, **keywords: left.pop(0) if len(left) > 1 else left[0]


# ---------------------------------------------------------------------------------------------------------------------
# 3. grade.py.


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
    status, output = graded(2, "--folder", tmp_path, "--salt", "x", "--json", tmp_path / "a", "--junit", tmp_path / "b")
    found = json.loads((tmp_path / "a").read_text())
    (entry,) = found["exercises"]
    assert status == 1 and 0 < entry["points"] < entry["max_points"] == 5 and "student_learns_alone" in entry["message"]
    assert found["total"] == found["score"] == entry["points"] and found["max_total"] == 5 and found["complete"]
    assert found["tests"][0]["max_score"] == 5 and found["tests"][0]["output"] == entry["message"]
    assert "laws.py" in output and "not used" in found["notes"][0]
    assert (tmp_path / "b").read_text().count("<failure") == 1


ENDS = {
    "a loop that never ends": ("while True:\n        pass", "stopped after"),
    "the process ends": ("import os\n    os._exit(0)", "not tried"),
    "exit": ("raise SystemExit(0)", "SystemExit"),
    "the core's own": ("import losses\n    return losses.masked_mean(per_token, mask, reduction)", "core's own"),
    "the references": ("import solutions\n    return solutions.masked_mean(per_token, mask)", "solutions"),
}


@pytest.mark.parametrize("name", [pytest.param(name, marks=pytest.mark.slow) for name in ENDS])
def test_a_result_is_written_whatever_the_code_does(name, tmp_path):
    """Endless loops, exits and short cuts cost their own exercise, and nothing else."""
    body, said = ENDS[name]
    text = handout.with_bodies(SOURCE, {"masked_mean": body})
    (tmp_path / "answers.py").write_text(text, encoding="utf-8")
    limit = ("--seconds", "20") if "loop" in name else ()
    status, _ = graded(1, 2, "--folder", tmp_path, "--json", tmp_path / "json", *limit)
    first, second = json.loads((tmp_path / "json").read_text())["exercises"]
    assert status == 1 and first["points"] == 0 and said in first["message"] and second["points"] == 5


@pytest.mark.parametrize(
    ("argv", "said"),
    [(["99"], "no exercise 99"), (["--folder", "nowhere"], "no answers.py"), (["--solved", "2"], "--handout"),
     (["--solutions", "--folder", "."], "not both"), (["--handout", "."], "not empty"), (["--jobs", "0"], "--jobs")],
)  # fmt: skip
def test_wrong_use_gets_one_line(argv, said):
    """What was wrong, and what to type."""
    with pytest.raises(ValueError, match=re.escape(said)) as caught:
        grade.main(argv)
    assert "\n" not in str(caught.value)


# ---------------------------------------------------------------------------------------------------------------------
# 4. The handout.


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    """A handout without solutions."""
    folder = tmp_path_factory.mktemp("handout") / "copy"
    handout.write_handout(folder)
    return folder


def telling_lines(source, name):
    """Lines of a function's body that stand nowhere else in its file and are long enough to tell something."""
    node = handout.functions_in(ast.parse(source))[name]
    start, end = handout.body_lines(node)
    lines = [line.strip() for line in source.splitlines()]
    body = {line for line in lines[start - 1 : end] if len(line) > 25 and not line.startswith("#")}
    return {line for line in body if lines.count(line) == 1}


def test_a_handout_holds_no_solution(copy):
    """No line of a reference, nor of a core function that an exercise asks for, stands in any file of the copy."""
    secrets = set()
    for row in course.BUILD:
        for name in row.functions:
            secrets |= telling_lines(SOURCE, name)
    for item in handout.CORE:
        secrets |= telling_lines((ROOT / item.file).read_text(encoding="utf-8"), item.function)
    files = [path for path in copy.rglob("*") if path.is_file()]
    assert len(files) > 60 and len(secrets) > 3 * len(course.BUILD) // 2
    names = {path.name for path in files}
    assert not names & {"solutions.py", "wrong.py", "teacher.md", "test_losses.py"}
    told = [(path.name, line) for path in files for line in path.read_text(encoding="utf-8").splitlines()
            if line.strip() in secrets]  # fmt: skip
    assert told == []


def run_in(folder, *argv):
    """(exit status, output) of a copy's own grade.py."""
    command = [sys.executable, str(folder / "exercises" / "grade.py"), *map(str, argv)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout + done.stderr


@pytest.mark.slow
def test_a_handout_turns_green_one_exercise_at_a_time(copy):
    """With exercise 2 written, it has its points and 1 is skipped; a changed law is noticed."""
    answers = copy / "exercises" / "answers.py"
    source = "".join(SOURCE.splitlines(keepends=True)).replace("def masked_mean", "def _masked_mean")
    text = answers.read_text(encoding="utf-8")
    answers.write_text(source + "\n\ndef masked_mean(*_):\n    raise NotImplementedError('exercise 1')\n", "utf-8")
    status, output = run_in(copy, 1, 2)
    answers.write_text(text, encoding="utf-8")
    assert status == 1 and re.search(r"0 of 4 +not written yet", output) and "5 of 5" in output, output
    assert "as it was handed out" not in output
    path = copy / "exercises" / "laws.py"
    path.write_text(path.read_text(encoding="utf-8") + "# mine\n", encoding="utf-8")
    assert "laws.py is not as it was handed out" in run_in(copy, 1)[1]
