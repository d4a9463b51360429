"""Makes answers.py of solutions.py, and the copy of the repository that students get.

    python exercises/handout.py          write answers.py, the stubs, anew

In the copy (grade.py --handout DIR) the core's functions that an exercise asks for call the student's answers.py; no
reference solution is there, nor a function of the core that would tell one. What the laws compare with are stored
results. With --solved N exercises 1 to N are given: their references stand in answers.py, and their core is whole.
"""

import ast
import hashlib
import json
import shutil
import sys
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).parent.resolve()
ROOT = HERE.parent
sys.path.insert(0, str(ROOT))
sys.path.append(str(HERE))  # last: tests have a module adapters, too

import torch  # noqa: E402

import course  # noqa: E402

HEADER = '''\
"""Your answers: the one file that you write. Each function says what it takes and returns; README.md says what to read
first. Grade it with

    python exercises/grade.py            everything
    python exercises/grade.py 2          exercise 2 alone

Functions of your own, and imports, may stand anywhere. You may call the repository's functions, but not those that do
what an exercise asks for.
"""
'''


class Core(NamedTuple):
    """A function of the core that does what an exercise asks for, and its body in a handout."""

    number: int
    file: str
    function: str  # or Class.method
    body: str  # "": it comes with the second handout


CORE = (
    Core(1, "losses.py", "masked_mean",
         "assert total is None, 'parts of a batch come with the second handout'\n"
         "return answers.masked_mean(per_token, mask, reduction)"),
    Core(2, "losses.py", "kl", "return answers.kl(first_logprobs, second_logprobs)"),
    Core(2, "losses.py", "forward_kl", "return answers.forward_kl(student_logits, teacher_logits)"),
    Core(2, "losses.py", "reverse_kl", "return answers.reverse_kl(student_logits, teacher_logits)"),
    Core(3, "losses.py", "generalized_jsd", "return answers.generalized_jsd(student_logits, teacher_logits, beta)"),
    Core(4, "sample.py", "warp", "return answers.warp(model_logits, temperature, top_k, top_p)"),
    Core(5, "sample.py", "inverse_cdf", "return answers.inverse_cdf(probs, uniform)"),
    Core(6, "sample.py", "rank", "return answers.rank(model_logits, tokens)"),
    Core(6, "sample.py", "_accept_topk", "return answers.accepted_by_topk(teacher_logits, proposed, accept_top_k)"),
    Core(7, "sample.py", "interleaved_reference",
         "noise = Noise(generator, torch.tensor([row_key]))\n"
         "response, sources = answers.interleaved(\n"
         "    student, teacher, prompt, max_new_tokens, lambda at, role: noise(torch.tensor([at]), role).item(),\n"
         "    accept_top_k, eos_token)\n"
         "return response, [SOURCE_NAMES.index(source) for source in sources]"),
    Core(8, "sample.py", "countable", "return answers.countable(proposed, positions, end, eos_token)"),
    Core(8, "sample.py", "verify",
         "verdict = answers.verify(stays, counts)\n"
         "return Verdict(*verdict, (torch.arange(len(stays)), verdict[0].clamp(max=stays.size(1) - 1)))"),
    Core(8, "sample.py", "commit",
         "arguments = proposed, verdict.judged, verdict.rejected, replacement, start, eos_token\n"
         "return Commit(*answers.commit(*arguments))"),
    Core(9, "sample.py", "interleaved_plain", ""),
    Core(9, "sample.py", "_in_blocks", ""),
    Core(9, "sample.py", "interleaved_generate",
         "keys = _row_keys(row_keys, len(prompts), _device(student))\n"
         "numbers = Noise(generator, keys)\n\n\n"
         "def number(row, at, role):\n"
         "    return numbers(torch.full((len(prompts), 1), at), role)[row].item()\n\n\n"
         "responses, sources = answers.interleaved_in_blocks(\n"
         "    student, teacher, prompts, max_new_tokens, number, gamma or 4, accept_top_k, eos_token)\n"
         "rollout = rollout_from_ids(prompts, responses, [STUDENT] * len(prompts), None, eos_token)\n"
         "for row, names in enumerate(sources):\n"
         "    for at, name in enumerate(names, len(prompts[row])):\n"
         "        rollout.source[row, at] = SOURCE_NAMES.index(name)\n"
         "with torch.no_grad():\n"
         "    rollout.teacher_logits = teacher(rollout.tokens[:, :-1])\n"
         "return rollout"),
    Core(10, "sample.py", "SpeculativeRules.stays",
         "draft_logits, T = torch.stack(block.student_rows, 1), self.temperature\n"
         "return answers.speculative_stays(draft_logits / T, target_rows / T, block.proposed, uniform['accept'])"),
    Core(10, "sample.py", "SpeculativeRules.redraw",
         "draft_row, T = torch.stack(block.student_rows, 1)[at], self.temperature\n"
         "probs = answers.residual(draft_row / T, target_rows[at] / T)\n"
         "return inverse_cdf(probs, uniform['teacher'][at][..., None])[..., 0]"),
    Core(12, "train_skd.py", "distill", ""),
    Core(12, "lab/rollouts.py", "train_shortly", ""),
    Core(13, "losses.py", "with_tail", "return answers.with_tail(model_logits, ids)"),
    Core(14, "model.py", "LoRA.project",
         "if name != 'qkv':\n"
         "    return linear(x)\n"
         "query, value = ((down[layer], up[layer]) for down, up in (\n"
         "    (self.down_query, self.up_query), (self.down_value, self.up_value)))\n"
         "return answers.lora_qkv(linear, x, *query, *value, self.scale)"),
    Core(15, "train_okd.py", "kd_loss", ""),
    Core(15, "train_okd.py", "distill", ""),
    Core(16, "sample.py", "best_gamma", "return answers.best_gamma(accepted, judged, call_cost)"),
    Core(17, "lab/statistics.py", "student_t_interval", "return answers.student_t_interval(values)"),
    Core(17, "lab/statistics.py", "paired_difference", ""),
)  # fmt: skip

# Text that shows the loop which an exercise asks for: (exercise, file, where it begins, where what stays goes on).
SHOWN = (
    (15, "train_okd.py", "Without the plumbing, this is the method", "Every divergence detaches its second argument"),
)
FOLDERS = ("", "data/", "lab/")  # of the modules that a handout holds
KEPT = (  # of exercises/
    "README.md", "reading.md", "course.py", "laws.py", "faults.py", "experiments.py", "adapters.py", "worker.py",
    "grade.py", "handout.py",
)  # fmt: skip
MANIFEST = "manifest.json"  # in a handout: the sha256 of the files that students leave alone


# ---------------------------------------------------------------------------------------------------------------------
# Stubs.


def functions_in(tree):
    """The functions of a module and the methods of its classes: name or Class.name -> node."""
    found = {}
    for node in tree.body:
        if isinstance(node, ast.FunctionDef):
            found[node.name] = node
        elif isinstance(node, ast.ClassDef):
            found |= {f"{node.name}.{part.name}": part for part in node.body if isinstance(part, ast.FunctionDef)}
    return found


def body_lines(node):
    """First and last line number of a function's body, its docstring left out."""
    body = node.body[1:] if ast.get_docstring(node) is not None else node.body
    start = (node.body[0].end_lineno + 1) if ast.get_docstring(node) is not None else body[0].lineno
    return start, node.end_lineno


def with_bodies(source, bodies):
    """The source with other bodies: function or Class.method -> text of the new body, or None to take it out whole."""
    lines = source.splitlines()
    known = functions_in(ast.parse(source))
    for name in sorted(bodies, key=lambda name: -known[name].lineno):
        node, text = known[name], bodies[name]
        start, end = body_lines(node)
        if text is None:
            start = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
            while end < len(lines) and not lines[end].strip():
                end += 1  # the blank lines behind it
            lines[start - 1 : end] = []
            continue
        indent = " " * (node.col_offset + 4)
        lines[start - 1 : end] = [(indent + line).rstrip() for line in text.splitlines()]
    return "\n".join(lines) + "\n"


def exercise_of(function):
    """The number of the exercise that asks for a function; None for a helper of the references."""
    return next((row.number for row in course.EXERCISES if function in row.functions), None)


LATER = f"\n\n# {117 * '-'}\n# Exercises 18 to 26"  # where in solutions.py the second part begins


def stubs(solutions, solved=0, part=2):
    """answers.py as text, made of solutions.py: exercises up to `solved` as they are, the others without a body; part
    1: without those of the second handout."""
    if part == 1:
        assert LATER in solutions, "solutions.py has no heading for exercise 18"
        solutions = solutions.partition(LATER)[0]
    known = functions_in(ast.parse(solutions))
    bodies = {}
    for name in known:
        number = exercise_of(name)
        if number is None:  # a helper
            if not solved:
                bodies[name] = None
        elif number > solved:
            bodies[name] = f'raise NotImplementedError("exercise {number}, {name}")'
    text = with_bodies(solutions, bodies)
    docstring = ast.parse(text).body[0]
    return HEADER + "\n".join(text.splitlines()[docstring.end_lineno :]) + "\n"


# ---------------------------------------------------------------------------------------------------------------------
# The copy.


def in_handout(file, source, solved):
    """A file of the core as a handout holds it."""
    for number, name, start, end in SHOWN:
        if name == file and number > solved:
            before, _, rest = source.partition(start)
            source = before + end + rest.partition(end)[2]
    bodies = {}
    for item in CORE:
        if item.file == file and item.number > solved:
            later = f'raise NotImplementedError("exercise {item.number}: this comes with the second handout")'
            bodies[item.function] = f"from exercises import answers\n\n{item.body}" if item.body else later
    return with_bodies(source, bodies) if bodies else source


def stored_results(solved):
    """What the references return for the visible inputs: law -> list of results, in the order in which laws ask."""
    import laws
    import solutions

    torch.set_num_threads(1)  # small models: more threads only wait for each other
    stored = {}
    for row in course.BUILD:
        for law in laws.laws_of(row.number):
            oracle = course.Reference(solutions)
            law.check(solutions, course.Made(course.VISIBLE, law.name, oracle))
            stored[law.name] = oracle.returned
    return stored


def write_handout(folder, solved=0):
    """Write the students' copy into a folder that is new or empty -> a line that says so."""
    if not (HERE / "solutions.py").is_file():
        raise ValueError("this copy is a handout itself: make one from the whole repository")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{folder} is not empty: name a new folder")
    if not 0 <= solved <= len(course.BUILD):
        raise ValueError(f"--solved must lie in 0..{len(course.BUILD)}, found {solved}")
    for place in FOLDERS:
        for path in sorted(ROOT.glob(f"{place}*.py")):
            copy(path, folder / place / path.name, lambda text, name=place + path.name: in_handout(name, text, solved))
    for name in ("requirements.txt", "LICENSE", "docs/metrics.md", "docs/data.md", "docs/methods.md", "docs/papers.md"):
        copy(ROOT / name, folder / name)
    to, part = folder / "exercises", 2 if solved == len(course.BUILD) else 1
    rows = course.EXERCISES if part == 2 else course.BUILD
    for path in [HERE / name for name in KEPT] + [HERE / page_of(row) for row in rows]:
        copy(path, to / path.name)
    copy(HERE / "README.md", to / "README.md", lambda text: with_table(text, table_of_exercises(rows)))
    (to / course.STORED.name).write_text(json.dumps(stored_results(solved)), encoding="utf-8")
    solutions = (HERE / "solutions.py").read_text(encoding="utf-8")
    (to / "answers.py").write_text(stubs(solutions, solved, part), encoding="utf-8")
    names = [name for name in KEPT if name.endswith(".py") and name != "adapters.py"] + [course.STORED.name]
    (to / MANIFEST).write_text(json.dumps({name: digest(to / name) for name in names}, indent=1), encoding="utf-8")
    given = f", exercises 1 to {solved} solved" if solved else ""
    return f"{folder}: a copy without solutions{given}; students write exercises/answers.py"


def copy(source, target, change=None):
    """Copy a file, its text changed on the way."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if change is None:
        shutil.copy(source, target)
    else:
        target.write_text(change(source.read_text(encoding="utf-8")), encoding="utf-8")


def digest(path):
    """sha256 of a text file; Windows, and git on it, may write its line ends otherwise."""
    return hashlib.sha256(path.read_bytes().replace(b"\r\n", b"\n")).hexdigest()


def manifest():
    """{file: sha256} of what was handed out, empty in the whole repository; with a manifest that is gone or cannot be
    read, that file itself, which then counts as changed."""
    path = HERE / MANIFEST
    if not path.is_file() and (HERE / "solutions.py").is_file():
        return {}
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return {MANIFEST: None}


def changed_files(folder):
    """Notes about test files that were changed in this copy, or that lie beside the answers, where nobody uses them."""
    notes = []
    for name, expected in manifest().items():
        if not (HERE / name).is_file() or digest(HERE / name) != expected:
            notes.append(f"{name} is not as it was handed out: these points are not those a teacher will find.")
    if folder != HERE:
        for name in KEPT:
            path = folder / name
            if (
                name.endswith(".py")
                and name != "adapters.py"
                and path.is_file()
                and digest(path) != digest(HERE / name)
            ):
                notes.append(f"{name} in {folder.name} is not the grader's own: it was not used.")
    return notes


# ---------------------------------------------------------------------------------------------------------------------
# What is rendered: python exercises/handout.py


def page_of(row):
    """The name of an exercise's page."""
    return next(path.name for path in sorted(HERE.glob(f"{row.number:02}_*.md")))


def table_of_exercises(rows=course.EXERCISES):
    """The table of README.md."""
    lines = ["| | exercise | kind | points | minutes |", "| ---: | --- | --- | ---: | ---: |"]
    for row in rows:
        name = f"[{row.name}]({page_of(row)})"
        lines.append(f"| {row.number} | {name} | {row.kind} | {row.points} | {row.minutes} |")
    points, minutes = (sum(getattr(row, name) for row in rows) for name in ("points", "minutes"))
    return [*lines, f"| | all | | {points} | {minutes} |"]


def table_of_wrong_solutions():
    """The table of teacher.md: what is handed in wrong on purpose, and the law that rejects it."""
    import wrong

    lines = ["| | mistake | rejected at |", "| ---: | --- | --- |"]
    return lines + [f"| {row.number} | {row.mistake} | {row.law.replace('_', ' ')} |" for row in wrong.WRONG]


def with_table(text, lines):
    """A page with its table, between two comments, replaced."""
    start, end = "<!-- table: python exercises/handout.py -->\n", "<!-- end -->"
    before, _, rest = text.partition(start)
    return before + start + "\n".join(lines) + "\n" + end + rest.partition(end)[2]


def rendered():
    """File of exercises/ -> what it must hold, as far as it is made of other files."""
    files = {"answers.py": stubs((HERE / "solutions.py").read_text(encoding="utf-8"))}
    for name, table in (("README.md", table_of_exercises), ("teacher.md", table_of_wrong_solutions)):
        if (HERE / name).is_file():
            files[name] = with_table((HERE / name).read_text(encoding="utf-8"), table())
    return files


if __name__ == "__main__":
    for name, text in rendered().items():
        (HERE / name).write_text(text, encoding="utf-8")
