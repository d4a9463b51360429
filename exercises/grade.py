"""Grades the exercises.

    python exercises/grade.py                      your answers.py: points, and the first broken law of each exercise
    python exercises/grade.py 2 5-7                exercises 2, 5, 6 and 7 alone
    python exercises/grade.py --folder DIR --salt S --json FILE --junit FILE        a teacher's, on fresh inputs
    python exercises/grade.py --solutions          the reference solutions: full points
    python exercises/grade.py --handout DIR        write the copy of the repository that students get
    python exercises/grade.py --handout DIR --solved 17             the same with the references of exercises 1 to 17

Every exercise is graded in a process of its own, with a time limit. A result is written after each one, so that an
interruption loses nothing. Exit status 0: full points in all that was graded; 1: fewer; 2: wrong use, or a result
cannot be written, in one line; 130: interrupted.
"""

import argparse
import concurrent.futures
import contextlib
import json
import os
import re
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
if __name__ == "__main__":
    import lab.interrupted  # noqa: F401  Ctrl-C while torch is imported ends with one line

import course  # noqa: E402
import handout  # noqa: E402
from lab import processes  # noqa: E402


class Result(NamedTuple):
    """What one exercise is worth, and why."""

    row: course.Exercise
    points: float
    status: str  # "passed", "failed" or "skipped": nothing was handed in
    message: str
    laws: list  # (name, says, passed: True, False or None, message)


START = 120  # seconds more until a worker that has not ended itself is ended: importing torch on a busy machine


class Workers:
    """The processes under way, so that an interruption can end them."""

    def __init__(self):
        self.running, self.ending = set(), False

    def add(self, process):
        self.running.add(process)
        if self.ending:
            stop(process)

    def end(self):
        self.ending = True
        for process in list(self.running):
            stop(process)


def run_worker(row, answers, salt, limit, workers):
    """(findings as dicts, what the process says of its end) of one exercise."""
    # What the student's code has left there may not be ours to remove.
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        findings, output, cwd = Path(folder, "findings"), Path(folder, "output"), Path(folder, "cwd")
        cwd.mkdir()
        # It ends itself at its limit and says where it was, also where nobody is left to end it.
        words = [row.number, answers, salt, findings, limit]
        command = [sys.executable, str(HERE / "worker.py"), *map(str, words)]
        apart = {} if os.name == "nt" else {"start_new_session": True}
        environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1", "PYTHONWARNINGS": "ignore"}
        # Into a file: a pipe would keep us waiting for whatever the student's code has started.
        with open(output, "wb") as file:
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=file, stderr=file, env=environment, cwd=cwd, **apart
            )
            workers.add(process)
            try:
                status = process.wait(limit + START)
            except subprocess.TimeoutExpired:
                status = None
            finally:
                stop(process)
                workers.running.discard(process)
        found = list(read_findings(findings))
        return found, end_of(status, output.read_text(encoding="utf-8", errors="replace"), found, limit, answers)


def read_findings(path):
    """The dicts that a worker has written; what is cut short, or a stranger's, is passed over."""
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else ():
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        if isinstance(entry, dict):
            yield entry


def end_of(status, output, found, limit, answers):
    """What to say of a process's end: nothing where it came to its own, with all laws tried."""
    if status is None and not found:
        return f"had not begun after {limit + START:g} s: is the machine busy? --jobs 1 grades one exercise at a time"
    stopped = re.search(r"^Timeout \(.*\)!$", output, re.MULTILINE)
    if status is None or stopped:
        lines = re.findall(rf'{re.escape(answers.name)}", line (\d+)', output[stopped.end() :] if stopped else "")
        place = f" in {answers.name}, line {lines[0]}" if lines else ""
        return f"stopped after {limit:g} s{place}: does a loop never end?"
    if status == 0:
        done = any("done" in finding for finding in found)
        return "" if done else "the process ended itself before its laws were tried: is there an os._exit?"
    last = output.strip().splitlines()[-1:] or ["without a word"]
    if -status in set(signal.Signals):  # a crash of C code, the stack's end, no memory left
        return f"the process was ended by {signal.Signals(-status).name}: {last[0]}"
    return f"the process ended with status {status}: {last[0]}"


def clean(text):
    """What a student's code says, as one line that every terminal, JSON and XML take, of at most 500 characters."""
    text = "".join(letter if letter.isprintable() else " " for letter in str(text))
    return text if len(text) <= 500 else f"{text[:497]}..."


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


def grade(row, answers, salt, limit, workers):
    """Grade one exercise -> Result, whatever happens."""
    try:
        return result_of(row, *run_worker(row, answers, salt, limit, workers))
    except Exception as error:  # a full disk, no process to be had: the other exercises go on
        return Result(row, 0.0, "failed", clean(f"could not be graded: {type(error).__name__}: {error}"), [])


def result_of(row, findings, end):
    """Result of what a worker has found."""
    said = [finding["message"] for finding in findings if "message" in finding and "law" not in finding] + [end]
    about = next((finding["laws"] for finding in findings if "laws" in finding), [])
    tried = {finding["law"]: finding for finding in findings if "law" in finding}
    laws = [
        (name, says, tried[name]["passed"], clean(tried[name]["message"]))
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
    needed = {name for name, _, needed in about if needed}
    broken = [(name not in needed, f"{name}: {message}") for name, _, passed, message in laws if not passed]
    broken = [text for _, text in sorted(broken, key=lambda one: one[0])]  # what is needed comes first
    message = clean(next((text for text in [*said, *broken] if text), ""))
    if broken and len(laws) > len(broken):
        why = "" if essential else "; without this one there are no points"
        message += f" ({len(laws) - len(broken)} of {len(laws)} laws hold{why})"
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
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")  # two graders may write one file
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, path)


def check_targets(args, answers):
    """ValueError for a --json or --junit that would be lost, or would cost something else."""
    targets = [Path(name).resolve() for name in (args.json, args.junit) if name]
    if len(set(targets)) < len(targets):
        raise ValueError(f"--json and --junit are one file, {targets[0]}: give two names")
    for target in targets:
        if not target.parent.is_dir():
            raise ValueError(f"there is no folder {target.parent} for {target.name}: make it first")
        if target.is_dir() or target.suffix == ".py":
            raise ValueError(
                f"{target} is no file for results: name another, such as results{target.suffix or '.json'}"
                if target.is_dir()
                else f"{target} holds code: name another file, such as results.json"
            )


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


class Parser(argparse.ArgumentParser):
    """argparse with errors in one line instead of a screen of usage."""

    def error(self, message):
        self.exit(2, f"{self.prog}: {' '.join(message.split())} (see python exercises/{self.prog} --help)\n")


def rows_of(words):
    """["2", "5-7", "9,11"] -> the exercises 2, 5, 6, 7, 9, 11, each once; all of them without a word."""
    found = {}
    for word in ",".join(words).split(",") if words else ():
        ends = re.fullmatch(r"(\d{1,6})(?:-(\d{1,6}))?", word.strip())
        numbers = range(int(ends[1]), int(ends[2] or ends[1]) + 1) if ends else ()
        if not numbers:
            raise ValueError(f"{word!r} names no exercise: type numbers, such as 2 7 or 5-9")
        found |= {number: course.exercise(number) for number in numbers}
    return list(found.values()) or course.EXERCISES


def parse(argv):
    parser = Parser(prog="grade.py", description="Grade the exercises: points, and the first broken law of each.")
    parser.add_argument("numbers", nargs="*", metavar="N", help="exercises to grade, as 2 7 or 5-9 (default: all)")
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
    if not (HERE / "solutions.py").is_file():  # a handout: what only a teacher can do is not told
        for action in parser._actions:
            if action.dest in ("solutions", "handout", "solved", "salt"):
                action.help = argparse.SUPPRESS
    args = parser.parse_args(argv)
    if args.solved and not args.handout:
        raise ValueError("--solved goes with --handout DIR")
    if args.handout and (args.numbers or args.folder or args.json or args.junit):
        raise ValueError("--handout writes a copy and grades nothing: give it alone, or with --solved N")
    if args.solutions and args.folder:
        raise ValueError("give --solutions or --folder, not both")
    if args.jobs < 1 or not (args.seconds is None or 0 < args.seconds <= 86400):  # nan is neither
        raise ValueError("--jobs must be at least 1 and --seconds more than 0, at most a day's 86400")
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
    if answers.parent.is_file():
        raise ValueError(f"{answers.parent} is a file: name the folder that it lies in, with an answers.py")
    if not answers.is_file():
        raise ValueError(f"no answers.py in {answers.parent}: name the folder that holds it with --folder")
    return answers


def finished(jobs):
    """The results of the jobs that are done."""
    return [job.result() for job in jobs if job.done() and not job.cancelled()]


def main(argv=None):
    """Grade, print, write. Returns 0 only with full points."""
    args = parse(argv)
    if args.handout:
        print(handout.write_handout(Path(args.handout), args.solved))
        return 0
    rows, answers = rows_of(args.numbers), answers_of(args)
    check_targets(args, answers)
    notes, results, workers = handout.changed_files(answers.parent), [], Workers()
    for note in notes:
        print(note)
    write_results(args, results, rows, notes)  # says at once whether it can be written
    with concurrent.futures.ThreadPoolExecutor(args.jobs) as pool:
        jobs = [pool.submit(grade, row, answers, args.salt, args.seconds or row.seconds, workers) for row in rows]
        silent = list(jobs)  # they are printed in the order of the course, and written as they come
        try:
            for _ in concurrent.futures.as_completed(jobs):
                results = finished(jobs)
                write_results(args, results, rows, notes)
                while silent and silent[0].done():
                    print_result(silent.pop(0).result())
        except BaseException:  # also where a result cannot be written: nothing is left running
            pool.shutdown(wait=False, cancel_futures=True)
            with contextlib.suppress(OSError):  # which may be what went wrong
                write_results(args, finished(jobs), rows, notes)
            with contextlib.suppress(OSError):
                for result in finished(silent):
                    print_result(result)
            workers.end()
            raise
    total, most = sum(result.points for result in results), sum(row.points for row in rows)
    print(f"{'total':<38} {f'{total:g} of {most}':>10}")
    return 0 if total == most else 1


def interrupt(number, frame):
    """Ctrl-C, or SIGTERM as of a time limit around the grader."""
    raise KeyboardInterrupt


if __name__ == "__main__":
    processes.use_any_terminal()
    signal.signal(signal.SIGTERM, interrupt)
    signal.signal(signal.SIGINT, interrupt)
    try:
        sys.exit(main())
    except (ValueError, OSError) as error:
        print(f"grade.py: {clean(error)}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print(
            "grade.py: interrupted; what was graded is printed, and written where --json or --junit says",
            file=sys.stderr,
        )
        sys.exit(130)
