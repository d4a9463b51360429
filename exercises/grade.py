"""Grades the exercises.

    python exercises/grade.py                      your answers.py: points, and the first broken law of each exercise
    python exercises/grade.py 2 7                  exercises 2 and 7 alone
    python exercises/grade.py --folder DIR --salt S --json FILE --junit FILE        a teacher's, on fresh inputs
    python exercises/grade.py --solutions          the reference solutions: full points
    python exercises/grade.py --handout DIR        write the copy of the repository that students get
    python exercises/grade.py --handout DIR --solved 17             the same with the references of exercises 1 to 17

Every exercise is graded in a process of its own, with a time limit. A result is written after each one, so that an
interruption loses nothing. Exit status 0: full points in all that was graded.
"""

import argparse
import concurrent.futures
import json
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple
from xml.sax.saxutils import quoteattr

HERE = Path(__file__).parent.resolve()
sys.path.insert(0, str(HERE.parent))
sys.path.append(str(HERE))  # last: tests have a module adapters, too

import course  # noqa: E402
import handout  # noqa: E402


class Result(NamedTuple):
    """What one exercise is worth, and why."""

    row: course.Exercise
    points: float
    status: str  # "passed", "failed" or "skipped": nothing was handed in
    message: str
    laws: list  # (name, says, passed: True, False or None, message)


def run_worker(row, answers, salt, limit):
    """(findings as dicts, what the process says of its end) of one exercise."""
    with tempfile.TemporaryDirectory() as folder:
        findings, output = Path(folder, "findings"), Path(folder, "output")
        command = [sys.executable, str(HERE / "worker.py"), str(row.number), str(answers), salt, str(findings)]
        apart = {} if os.name == "nt" else {"start_new_session": True}
        environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
        # Into a file: a pipe would keep us waiting for whatever the student's code has started.
        with open(output, "wb") as file:
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=file, stderr=file, env=environment, cwd=folder, **apart
            )
            try:
                status, end = process.wait(limit), ""
            except subprocess.TimeoutExpired:
                status, end = None, f"stopped after {limit:g} s: does a loop never end?"
            finally:
                stop(process)
        if status not in (0, None):
            last = output.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-1:]
            end = f"ended with status {status}: {last[0][:200] if last else 'without a word'}"
        lines = findings.read_text(encoding="utf-8").splitlines() if findings.exists() else []
        return [json.loads(line) for line in lines if line.endswith("}")], end


def stop(process):
    """End a worker and what it has started; a process group on POSIX, a tree on Windows."""
    if os.name == "nt":
        if process.poll() is None:
            subprocess.run(["taskkill", "/F", "/T", "/PID", str(process.pid)], capture_output=True, check=False)
    else:
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
    process.wait()


def grade(row, answers, salt, limit):
    """Grade one exercise -> Result."""
    findings, end = run_worker(row, answers, salt, limit)
    said = [finding["message"] for finding in findings if "message" in finding and "law" not in finding] + [end]
    about = next((finding["laws"] for finding in findings if "laws" in finding), [])
    tried = {finding["law"]: finding for finding in findings if "law" in finding}
    laws = [
        (name, says, tried[name]["passed"], tried[name]["message"])
        if name in tried
        else (name, says, False, "not tried")
        for name, says, _ in about
    ]
    if any(passed is None for *_, passed, _ in laws):
        message = next(message for *_, passed, message in laws if passed is None)
        return Result(row, 0.0, "skipped", message, laws)
    held = sum(passed for *_, passed, _ in laws)
    essential = bool(laws) and all(tried.get(name, {}).get("passed") for name, _, needed in about if needed)
    points = round(row.points * held / len(laws), 2) if essential else 0.0
    broken = [f"{name}: {message}" for name, _, passed, message in laws if not passed]
    message = next((text for text in [*said, *broken] if text), "")
    if broken and len(laws) > len(broken):
        message += f" ({len(laws) - len(broken)} of {len(laws)} laws hold)"
    return Result(row, points, "failed" if message else "passed", message, laws)


# ---------------------------------------------------------------------------------------------------------------------
# What is written.


def as_json(results, rows, notes):
    """The result as a dict: our own keys, and beside them what Gradescope reads."""
    exercises = [
        {
            "number": result.row.number,
            "name": result.row.name,
            "points": result.points,
            "max_points": result.row.points,
            "message": result.message,
            "laws": [{"name": name, "passed": passed} for name, _, passed, _ in result.laws],
        }
        for result in results
    ]
    tests = [
        {
            "number": str(entry["number"]),
            "name": entry["name"],
            "score": entry["points"],
            "max_score": entry["max_points"],
            "status": "passed" if entry["points"] == entry["max_points"] else "failed",
            "output": entry["message"],
            "visibility": "visible",
        }
        for entry in exercises
    ]
    total = round(sum(result.points for result in results), 2)
    return {
        "exercises": exercises,
        "total": total,
        "max_total": sum(row.points for row in rows),
        "notes": notes,
        "complete": len(results) == len(rows),
        "score": total,
        "output": " ".join(notes),
        "tests": tests,
    }


def as_junit(results):
    """The result as JUnit's XML: a test case per law."""
    cases = []
    for result in results:
        for name, _, passed, message in result.laws or [("import", "", False, result.message)]:
            inside = "" if passed else f"<failure message={quoteattr(message)}/>"
            inside = f"<skipped message={quoteattr(message)}/>" if passed is None else inside
            title = f"exercise {result.row.number}: {result.row.name}"
            cases.append(f"<testcase classname={quoteattr(title)} name={quoteattr(name)}>{inside}</testcase>")
    failed, skipped = (sum(f"<{word} " in case for case in cases) for word in ("failure", "skipped"))
    head = f'<testsuite name="exercises" tests="{len(cases)}" failures="{failed}" skipped="{skipped}">'
    return "\n".join(['<?xml version="1.0" encoding="utf-8"?>', head, *cases, "</testsuite>", ""])


def write_whole(path, text):
    """Write a file such that nobody ever sees half of it."""
    path = Path(path)
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, path)


def write_results(args, results, rows, notes):
    results = sorted(results, key=lambda result: result.row.number)
    if args.json:
        write_whole(args.json, json.dumps(as_json(results, rows, notes), indent=1) + "\n")
    if args.junit:
        write_whole(args.junit, as_junit(results))


def print_result(result):
    points = f"{result.points:g} of {result.row.points}"
    line = f"{result.row.number:>2}  {result.row.name:<34} {points:>10}  {result.message}"
    print(line.rstrip(), flush=True)


# ---------------------------------------------------------------------------------------------------------------------
# The command line.


def parse(argv):
    parser = argparse.ArgumentParser(description="Grade the exercises: points, and the first broken law of each.")
    parser.add_argument("numbers", nargs="*", type=int, metavar="N", help="exercises to grade (default: all)")
    parser.add_argument(
        "--folder", type=os.path.expanduser, metavar="DIR", help="where answers.py lies (default: exercises/)"
    )
    parser.add_argument("--solutions", action="store_true", help="grade the reference solutions")
    parser.add_argument(
        "--salt", default=course.VISIBLE, metavar="S", help="a word that decides the inputs (default: %(default)s)"
    )
    parser.add_argument(
        "--json", type=os.path.expanduser, metavar="FILE", help="write the result there; Gradescope reads it too"
    )
    parser.add_argument("--junit", type=os.path.expanduser, metavar="FILE", help="write the result as JUnit's XML")
    parser.add_argument("--seconds", type=float, metavar="X", help="time limit of each exercise in place of its own")
    parser.add_argument(
        "--jobs", type=int, default=2, metavar="N", help="exercises graded at a time (default: %(default)s)"
    )
    parser.add_argument(
        "--handout", type=os.path.expanduser, metavar="DIR", help="write the students' copy of the repository there"
    )
    parser.add_argument(
        "--solved", type=int, default=0, metavar="N", help="with --handout: include the references of exercises 1 to N"
    )
    args = parser.parse_args(argv)
    if args.solved and not args.handout:
        raise ValueError("--solved goes with --handout DIR")
    if args.solutions and args.folder:
        raise ValueError("give --solutions or --folder, not both")
    if args.jobs < 1 or (args.seconds is not None and args.seconds <= 0):
        raise ValueError("--jobs must be at least 1 and --seconds more than 0")
    if args.salt != course.VISIBLE and not (HERE / "solutions.py").is_file():
        raise ValueError(f"a handout knows the inputs of --salt {course.VISIBLE} only: leave --salt out")
    return args


def answers_of(args):
    """The file that is graded; ValueError where there is none."""
    if args.solutions:
        answers = HERE / "solutions.py"
        if not answers.is_file():
            raise ValueError("this copy holds no reference solutions: it is a handout")
        return answers
    answers = Path(args.folder or HERE).resolve() / "answers.py"
    if not answers.is_file():
        raise ValueError(f"no answers.py in {answers.parent}: name the folder that holds it with --folder")
    return answers


def main(argv=None):
    """Grade, print, write. Returns 0 only with full points."""
    args = parse(argv)
    if args.handout:
        print(handout.write_handout(Path(args.handout), args.solved))
        return 0
    rows, answers = [course.exercise(number) for number in args.numbers] or course.EXERCISES, answers_of(args)
    notes, results = handout.changed_files(answers.parent), []
    for note in notes:
        print(note)
    write_results(args, results, rows, notes)  # says at once whether it can be written
    with concurrent.futures.ThreadPoolExecutor(args.jobs) as pool:
        jobs = [pool.submit(grade, row, answers, args.salt, args.seconds or row.seconds) for row in rows]
        try:
            for job in jobs:
                results.append(job.result())
                print_result(results[-1])
                write_results(args, results, rows, notes)
        except KeyboardInterrupt:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    total, most = sum(result.points for result in results), sum(row.points for row in rows)
    print(f"{'total':<38} {f'{total:g} of {most}':>10}")
    return 0 if total == most else 1


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (ValueError, OSError) as error:
        sys.exit(f"grade.py: {error}")
    except KeyboardInterrupt:
        sys.exit("grade.py: interrupted; what was graded is written")
