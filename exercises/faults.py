"""The silent faults of exercises 18 to 26, and the laws of a test that finds them.

Each is a small change of our own code, and one that really happened in a public project: nothing crashes, losses fall,
and what is learned is wrong. A student hands in a test, which must pass on the code as it is, fail on the fault, fail
on the same fault written otherwise, and pass on right code written otherwise: it has to ask what the code does.
"""

import contextlib
import importlib
import sys
import tempfile
import traceback
from pathlib import Path
from typing import NamedTuple

import handout
from course import ROOT, Broken, Law, is_unwritten, module_from


class Fault(NamedTuple):
    """One silent fault: `old` stands exactly once in `file`."""

    number: int
    file: str
    old: str
    new: str  # the fault
    others: tuple  # each (old, new): the same fault, made elsewhere or written otherwise
    right: tuple  # (old, new): code that does what it should, written otherwise


IN_MASK, IN_RANK = "(slots < self.lengths[:, None])", "(model_logits > model_logits.gather(-1, tokens[..., None]))"
IN_KL = "return (first_logprobs.exp() * (first_logprobs - second_logprobs)).sum(-1)"
TORCHS_KL = 'F.kl_div(second_logprobs, first_logprobs, reduction="none", log_target=True)'
FORWARD, POLICY = "    return kl(teacher_logprobs, student_logprobs)\n", "    return -advantage * student_chosen\n"
KEPT = "kept_rows[:, : T - 1]},"
SEED = "torch.randint(2**62, (), generator=generator).item()  # a CPU generator: no device is asked"

FAULTS = (
    Fault(18, "sample.py", IN_MASK, "(self.tokens != 0)",
          ((IN_MASK, "(self.tokens.ne(0).flip(1).cumsum(1).flip(1) > 0)"),),
          (IN_MASK, "(slots - self.lengths[:, None] < 0)")),
    Fault(19, "losses.py", IN_KL, IN_KL.replace(".sum(-1)", ".mean(-1)"),
          ((IN_KL, f"return {TORCHS_KL}.mean(-1)"),), (IN_KL, f"return {TORCHS_KL}.sum(-1)")),
    Fault(20, "losses.py", FORWARD, "    return kl(student_logprobs, teacher_logprobs)\n",
          ((FORWARD,
            f"    return {TORCHS_KL}.sum(-1)\n".replace("first_", "student_").replace("second_", "teacher_")),
           (IN_KL, "return (second_logprobs.exp() * (second_logprobs - first_logprobs)).sum(-1)")),  # both directions
          (FORWARD,
           f"    return {TORCHS_KL}.sum(-1)\n".replace("first_", "teacher_").replace("second_", "student_"))),
    Fault(21, "sample.py", "replacement=replacement, fresh=judge_fresh)", "replacement=replacement, fresh=True)",
          (("judge_fresh=False, keep_features=False, **rule,", "judge_fresh=True, keep_features=False, **rule,"),),
          (IN_RANK, "(~(model_logits <= model_logits.gather(-1, tokens[..., None])))")),
    Fault(22, "sample.py", "kept_rows[rows, positions - 1] = output  #", "kept_rows[rows, positions] = output  #",
          ((KEPT, "kept_rows.roll(1, 1)[:, : T - 1]},"),), (KEPT, "kept_rows.narrow(1, 0, T - 1)},")),
    Fault(23, "losses.py", POLICY, "    return student_chosen - teacher_chosen.detach()\n",
          ((POLICY, "    return -(0 * advantage + 1) * student_chosen\n"),
           (POLICY, "    return advantage * student_chosen\n")),  # away from the teacher
          (POLICY, "    return -(student_chosen * advantage.detach())\n")),
    Fault(24, "losses.py", "leader = teacher_logits if", "leader = student_logits if",
          (("leader = teacher_logits if", "leader = student_logits.detach().log_softmax(-1) if"),),
          ("leader = teacher_logits if", "leader = teacher_logits.log_softmax(-1) if")),
    Fault(25, "sample.py", IN_MASK, "(slots < (self.lengths - self.finished.long())[:, None])",
          ((IN_MASK, f"{IN_MASK} & ~((slots == self.lengths[:, None] - 1) & self.finished[:, None])"),),
          (IN_MASK, "(slots <= self.lengths[:, None] - 1)")),
    Fault(26, "sample.py", SEED, "generator.initial_seed()",
          ((SEED,
            "torch.randint(2**62, (), generator=torch.Generator().manual_seed(generator.initial_seed())).item()"),),
          (SEED, "int(torch.randint(2**62, (1,), generator=generator)[0])")),
)  # fmt: skip


def changed(file, old, new):
    """The text of a file of the project with `old` replaced by `new`."""
    text = (ROOT / file).read_text(encoding="utf-8")
    if text.count(old) != 1:
        raise NotImplementedError("this exercise needs the whole code: it comes with the second handout")
    return text.replace(old, new)


def of_the_project(name, module):
    """Whether a module is the project's own, so that it has to be imported again where one of its files is another."""
    file = getattr(module, "__file__", None)
    return bool(file) and Path(file).parent in (ROOT, ROOT / "lab", ROOT / "data") or name in ("answers", "lab", "data")


def of_the_student(module, folder):
    """Whether a module lies beside the answers and is none of the grader's: it, too, may have imported the project."""
    file = getattr(module, "__file__", None)
    return bool(file) and Path(file).parent == folder and Path(file).name not in (*handout.KEPT, "solutions.py")


@contextlib.contextmanager
def project_with(file, text, folder):
    """Within this block `import` finds the project with one of its files replaced; text None: as it is. The modules in
    the folder of the answers are imported again, too."""
    before, path = dict(sys.modules), list(sys.path)
    with tempfile.TemporaryDirectory() as changed_one:
        if text is not None:
            Path(changed_one, file).write_text(text, encoding="utf-8")
            sys.path.insert(0, changed_one)
        for name, module in before.items():
            if of_the_project(name, module) or of_the_student(module, folder):
                del sys.modules[name]
        importlib.invalidate_caches()
        try:
            yield
        finally:
            sys.path[:] = path
            for name in [name for name in sys.modules if name not in before]:
                module = sys.modules[name]
                if of_the_project(name, module) or of_the_student(module, folder) or name == Path(file).stem:
                    del sys.modules[name]
            sys.modules.update(before)


def outcome(answers, function, file, text):
    """What a student's test says of the project with one file replaced: None where it passes, else the exception."""
    with project_with(file, text, answers.parent):
        module = module_from(answers, "answers")
        try:
            getattr(module, function)()
        except BaseException as error:  # pytest's own are no Exception
            if is_unwritten(error):
                raise
            return error
    return None


def laws_of(row, answers):
    """The laws of the test that a student hands in for a fault; `answers` is the path of their file."""
    fault = next(fault for fault in FAULTS if fault.number == row.number)
    function = row.functions[0]

    def passes(where, *change):
        def check(code, made):
            error = outcome(answers, function, fault.file, changed(fault.file, *change) if change else None)
            if error is not None:
                lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__)
                         if Path(frame.filename) == answers]  # fmt: skip
                said = (str(error).splitlines() or ["without a message: give your asserts one"])[0][:120]
                at = f" in line {lines[-1]} of {answers.name}" if lines else ""
                raise Broken(f"{where}, where it raised {type(error).__name__}{at}: {said}")

        return check

    def fails(where, changes):
        def check(code, made):
            for change in changes:
                if outcome(answers, function, fault.file, changed(fault.file, *change)) is None:
                    raise Broken(f"{where}, where it passed")

        return check

    texts = (
        ("passes_on_the_code", "Your test must pass on the code as it is.", True, passes("the code")),
        ("fails_on_the_fault", "Your test must fail on the fault.", True,
         fails("the fault", [(fault.old, fault.new)])),
        ("finds_it_written_otherwise", "Your test must fail on the same fault made in another way.", False,
         fails("the fault made in another way", fault.others)),
        ("asks_what_it_does", "Your test must pass on right code that is written otherwise.", False,
         passes("right code in other words", *fault.right)),
    )  # fmt: skip
    return [Law(f"law_{row.number:02}_{name}", says, essential, check) for name, says, essential, check in texts]
