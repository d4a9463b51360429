"""Tries the laws of one exercise on one student's code, in a process of its own that grade.py started.

    python exercises/worker.py NUMBER ANSWERS SALT FINDINGS

It writes a line of JSON per law into FINDINGS, the moment it knows, so that what was found survives a time limit. The
code that it imports is a stranger's: see teacher.md.
"""

import contextlib
import importlib
import importlib.util
import json
import sys
import traceback
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))
sys.path.append(str(HERE))  # last: tests have a module adapters, too

import torch  # noqa: E402

import course  # noqa: E402
import experiments  # noqa: E402
import faults  # noqa: E402
import handout  # noqa: E402
import laws  # noqa: E402


def module_from(path, name):
    """Import a file under a name."""
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def forbid(number):
    """Make the core's own version of what an exercise asks for unusable: calling it is no solution."""
    for item in handout.CORE:
        if item.number != number or "." in item.function:
            continue
        module = importlib.import_module(item.file.removesuffix(".py").replace("/", "."))
        own = getattr(module, item.function)

        def refused(*arguments, name=item.function, **keywords):
            raise course.Broken(f"the core's own {name} was called: exercise {number} is to write it")

        for table in [vars(module), *(value for value in vars(module).values() if isinstance(value, dict))]:
            for key in [key for key, value in table.items() if value is own]:
                table[key] = refused


def student_code(answers):
    """The module through which laws call the student: adapters.py, their own where they have one."""
    sys.modules["solutions"] = None  # importing it ends with ModuleNotFoundError
    module_from(answers, "answers")
    own = answers.with_name("adapters.py")
    return module_from(own if own.is_file() else HERE / "adapters.py", "adapters")


def where(error, answers):
    """What went wrong in a student's code, with the line of their file."""
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(answers)]
    place = f" ({answers.name}, line {lines[-1]})" if lines else ""
    said = str(error).splitlines()
    return f"{type(error).__name__}: {said[0][:200] if said else 'no text'}{place}"


def try_law(law, code, made, answers):
    """(passed, message) of one law."""
    try:
        law.check(code, made)
    except NotImplementedError as error:
        return None, f"not written yet: {error}"
    except course.Broken as error:
        return False, f"{law.says} Broken for: {error}."
    except (Exception, SystemExit) as error:
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


def main(number, answers, salt, findings):
    """Try all laws of an exercise; whatever the student's code prints goes nowhere."""
    torch.set_num_threads(1)
    row, answers = course.exercise(int(number)), Path(answers)
    with open(findings, "w", encoding="utf-8") as file, contextlib.redirect_stdout(sys.stderr):

        def note(**finding):
            file.write(json.dumps(finding) + "\n")
            file.flush()

        reference = HERE / "solutions.py"
        solutions = module_from(reference, "_reference") if reference.is_file() else None
        all_laws = laws_of(row, answers)
        note(laws=[[law.name, law.says, law.essential] for law in all_laws])
        try:
            if answers != reference:
                forbid(row.number)
            code = student_code(answers)
        except (Exception, SystemExit) as error:
            note(message=f"{answers.name} cannot be imported: {where(error, answers)}")
            return
        for law in all_laws:
            passed, message = try_law(law, code, course.Made(salt, law.name, oracle_of(solutions, law.name)), answers)
            note(law=law.name, passed=passed, message=message)
            if passed is None:
                return


if __name__ == "__main__":
    main(*sys.argv[1:])
