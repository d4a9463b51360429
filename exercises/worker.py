"""Tries the laws of one exercise on one student's code, in a process of its own that grade.py started.

    python exercises/worker.py NUMBER ANSWERS SALT FINDINGS SECONDS

It writes a line of JSON per law into FINDINGS, the moment it knows, so that what was found survives a time limit. It
ends itself when SECONDS have passed, and says where; importing torch does not count. The code that it imports is a
stranger's: see teacher.md.
"""

import contextlib
import faulthandler
import importlib
import json
import os
import sys
import traceback
import warnings
from pathlib import Path

HERE = Path(__file__).parent.resolve()
sys.path.insert(0, str(HERE.parent))
sys.path.append(str(HERE))  # last: tests have a module adapters, too

import torch  # noqa: E402

import course  # noqa: E402
import experiments  # noqa: E402
import faults  # noqa: E402
import handout  # noqa: E402
import laws  # noqa: E402


MEMORY, FILE = 4 * 2**30, 100 * 2**20  # bytes that a student's code may take and write into one file


def limit_resources():
    """Where the system can (memory on Linux, files on macOS too), one student's code does not take the machine."""
    try:
        import resource
    except ImportError:  # Windows
        return
    for what, size in ((resource.RLIMIT_DATA, MEMORY), (resource.RLIMIT_FSIZE, FILE)):
        with contextlib.suppress(ValueError, OSError):  # a lower limit is set already
            resource.setrlimit(what, (size, resource.getrlimit(what)[1]))


def as_at_first():
    """Undo what a student's code may have set for everybody, so that a law finds what it was written for."""
    torch.set_default_dtype(torch.float32)
    torch.set_default_device(None)
    torch.set_grad_enabled(True)
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")  # goes before what made them errors


def forbid(number):
    """Make the core's own version of what an exercise asks for unusable: calling it is no solution."""
    for item in handout.CORE:
        if item.number != number:
            continue
        module = importlib.import_module(item.file.removesuffix(".py").replace("/", "."))
        kind, _, name = item.function.rpartition(".")
        place = getattr(module, kind) if kind else module
        own = getattr(place, name)

        def refused(*arguments, name=item.function, **keywords):
            raise course.Broken(f"the core's own {name} was called: exercise {number} is to write it")

        setattr(place, name, refused)
        # Other modules of the project have imported it by name, and tables hold it. The laws keep theirs.
        for module in [one for title, one in sys.modules.items() if faults.of_the_project(title, one)]:
            for table in [vars(module), *(value for value in vars(module).values() if isinstance(value, dict))]:
                for key in [key for key, value in table.items() if value is own]:
                    table[key] = refused


def student_code(answers):
    """The module through which laws call the student: adapters.py, their own where they have one."""
    sys.modules["solutions"] = None  # importing it ends with ModuleNotFoundError
    sys.path.append(str(answers.parent))  # last: their laws.py is not ours
    course.module_from(answers, "answers")
    own = answers.with_name("adapters.py")
    return course.module_from(own if own.is_file() else HERE / "adapters.py", "adapters")


def of_the_student(path, answers):
    """Whether a file is the student's: answers.py, or one beside it that is none of the grader's."""
    return path == answers or (path.parent == answers.parent and (path.name == "adapters.py" or path.parent != HERE))


def where(error, answers):
    """What went wrong in a student's code, with the line of their file."""
    frames = [(Path(frame.filename), frame.lineno) for frame in traceback.extract_tb(error.__traceback__)]
    own = [f"{path.name}, line {line}" for path, line in frames if of_the_student(path, answers)]
    said, kind = str(error).splitlines(), type(error).__name__
    # An error that a law raised itself, because it was given something that no law expects.
    place = own[-1] if own else f"not in {answers.name}: is what it returns what its docstring says?"
    in_law = own or (frames and frames[-1][0].name in ("laws.py", "course.py", "experiments.py"))
    return f"{kind}: {said[0][:200] if said else 'no text'}" + (f" ({place})" if in_law else "")


def try_law(law, code, made, answers):
    """(passed, message) of one law."""
    try:
        law.check(code, made)
    except course.Broken as error:
        return False, f"{law.says} Broken for: {error}."
    except BaseException as error:
        if course.is_unwritten(error):
            return None, f"not written yet: {error}"
        return False, f"{law.says} Raised {where(error, answers)}."
    return True, ""


def oracle_of(solutions, law):
    if solutions:
        return course.Reference(solutions)
    stored = course.STORED.is_file() and law in json.loads(course.STORED.read_text(encoding="utf-8"))
    return course.Stored(law) if stored else None


def laws_of(row, answers):
    """The laws of any exercise."""
    if row.kind == "build":
        return laws.laws_of(row.number)
    return (faults if row.kind == "fault" else experiments).laws_of(row, answers)


def main(number, answers, salt, findings, seconds):
    """Try all laws of an exercise; whatever the student's code prints goes nowhere."""
    faulthandler.dump_traceback_later(float(seconds), exit=True)
    limit_resources()
    torch.set_num_threads(1)
    row, answers = course.exercise(int(number)), Path(answers)
    with (
        open(findings, "w", encoding="utf-8") as file,
        open(os.devnull, "w", encoding="utf-8") as nowhere,
        contextlib.redirect_stdout(nowhere),
    ):

        def note(**finding):
            file.write(json.dumps(finding) + "\n")
            file.flush()

        reference = HERE / "solutions.py"
        solutions = course.module_from(reference, "_reference") if reference.is_file() else None
        sys.modules.pop("_reference", None)
        all_laws = laws_of(row, answers)
        note(laws=[[law.name, law.says, law.essential] for law in all_laws])
        try:
            if answers != reference:
                forbid(row.number)
            code = student_code(answers)
        except BaseException as error:
            note(message=f"{answers.name} cannot be imported: {where(error, answers)}", done=True)
            return
        missing = [name for name in row.functions if row.kind != "fault" and not hasattr(code, name)]
        if missing:
            note(message=f"there is no {', '.join(missing)}: write it in {answers.name}, under this name")
        for law in all_laws:
            as_at_first()
            passed, message = try_law(law, code, course.Made(salt, law.name, oracle_of(solutions, law.name)), answers)
            note(law=law.name, passed=passed, message=message)
            if passed is None:
                break
        note(done=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
    os._exit(0)  # threads of the student's are not waited for
