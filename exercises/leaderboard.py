"""A leaderboard of students' own methods, re-run by the teacher with one budget for all: score per teacher pass.

    python exercises/leaderboard.py FOLDER --out DIR             every FOLDER/*.py beside skd and on_policy
    python exercises/leaderboard.py FOLDER --out DIR --quick     a smoke run, about a minute per file

A student's file holds one Variant (catalogue.py), and what its columns name where the project has none of that name: a
loss (student_logits, teacher_logits) -> (B, T), a Writer, a Method. The row's name is the file's. All rows start from
the same pairs. The same command goes on after an interruption. It runs strangers' code: see teacher.md.
"""

import hashlib
import itertools
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent.resolve()
sys.path.insert(0, str(HERE.parent))
sys.path.append(str(HERE))  # last: tests have a module adapters, too
if __name__ == "__main__":
    import lab.interrupted  # noqa: F401  Ctrl-C while torch is imported ends with one line

import course  # noqa: E402
import grade  # noqa: E402
import losses  # noqa: E402
import methods  # noqa: E402
import sample  # noqa: E402
from catalogue import Variant  # noqa: E402
from lab import processes, program, reading, statistics  # noqa: E402

BESIDE = ("skd", "on_policy")  # the project's own rows, which every student is compared with
PER_PASS = "score_per_1000_passes"  # of the teacher while the student learned
COLUMNS = ("score", "score_sampled", "teacher_forwards", PER_PASS)
KNOWN = losses.DIVERGENCES | losses.MATCHING_LOSSES | losses.TOKEN_LOSSES | losses.SEQUENCE_LOSSES
KNOWN |= sample.WRITERS | methods.METHODS | {"cross_entropy": losses.cross_entropy}


def train(path, name, flags):
    """In a process of its own: train_skd.py with a student's row, and what it names, in the project's tables."""
    import train_skd

    if path:
        code = vars(course.module_from(Path(path), "handed_in"))
        rows = [value for value in code.values() if isinstance(value, Variant)]
        if len(rows) != 1 or name in train_skd.VARIANTS:
            raise ValueError(f"{name}.py must hold one Variant, and not be called as a row is: found {len(rows)}")
        tables = {"loss": losses.MATCHING_LOSSES, "writer": sample.WRITERS, "method": methods.METHODS}
        for own, table in [(getattr(rows[0], column), table) for column, table in tables.items()]:
            if own in code and KNOWN.get(own, code[own]) is not code[own]:
                raise ValueError(f"{name}.py writes {own} anew, which the project has: give it another name")
            if own in code and own not in KNOWN:
                table[own] = code[own]
        train_skd.VARIANTS[name] = rows[0]
    return train_skd.main(["--variants", name, *flags])


def run(command, seconds, log):
    """Run a command, its output into a file -> what went wrong, as one line, or nothing."""
    apart = {} if sys.platform == "win32" else {"start_new_session": True}
    with open(log, "wb") as file:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=file, stderr=file, **apart)
        try:
            status = process.wait(seconds)
        except subprocess.TimeoutExpired:
            return f"stopped after {seconds:g} s: the same command with more --seconds goes on"
        finally:
            grade.stop(process)
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    told = [line for line in lines if " failed: " in line] or lines[-1:] or ["it ended without a word"]
    return grade.clean(told[0]) if status else ""


def runs_of(path, name, args):
    """(finished runs of a row, what went wrong): trained now, or read where an earlier call has trained them."""
    # Another text of the file is another method, whose records must not be mixed with those of the first.
    digest = f"-{hashlib.sha256(path.read_bytes()).hexdigest()[:8]}" if path else ""
    folder = args.out / f"{name}{digest}"
    folder.mkdir(parents=True, exist_ok=True)
    flags = ["--pairs", args.pairs, "--pair-seed", args.pair_seed, "--seed", args.pair_seed, "--device", args.device]
    flags += ["--quick"] if args.quick else ["--steps", args.steps]
    words = ["--train", path or "", name, *flags, "--jobs", 1, "--out", folder, "--resume"]
    try:
        found, error = reading.read_records(folder), ""
        if len(found) < args.pairs:
            error = run([sys.executable, str(HERE / "leaderboard.py"), *map(str, words)], args.seconds, folder / "log")
            found = reading.read_records(folder)
    except ValueError as wrong:
        found, error = [], grade.clean(wrong)
    for one in found:
        passes = one.final["teacher_forwards"]
        one.final[PER_PASS] = 1000 * one.final["score"] / passes if passes else None
    return found, error or ("" if len(found) == args.pairs else f"{len(found)} of {args.pairs} runs have finished")


def start_of(found):
    """What runs must share to be compared: pairs, seeds and flags."""
    return sorted((run.pair, run.seed, str(run.header.get("fingerprint")), str(run.header["flags"])) for run in found)


def ranks(rows):
    """({name: 1 + the number of rows that are better}, number of comparisons). Better means: the interval of the paired
    difference over pairs does not reach 0, at a level corrected for all comparisons of the table (Holm)."""
    asked = [name for name, runs in rows.items() if statistics.repeated(runs, PER_PASS, "pair")]
    two = list(itertools.combinations(asked, 2))
    found = [statistics.paired_difference(rows[one], rows[other], PER_PASS, "pair") for one, other in two]
    corrected = statistics.holm([1.0 if difference.p_value is None else difference.p_value for difference in found])
    rank = dict.fromkeys(asked, 1)
    for (one, other), difference, p_value in zip(two, found, corrected):
        if p_value < 0.05:
            rank[other if difference.mean > 0 else one] += 1
    return rank, len(two)


def table(rows):
    """Lines of the table, the best score per teacher pass first; without a rank where no two rows are told apart."""
    (rank, comparisons), lines = ranks(rows), []
    for name, runs in rows.items():
        values = [list(statistics.repeated(runs, key, "pair").values()) for key in COLUMNS]
        score, sampled, passes, per_pass = (statistics.student_t_interval(one) if one else (None, 0) for one in values)
        told = "never asked" if per_pass[0] is None else f"{per_pass[0]:.3f}"
        told += f" ± {per_pass[1]:.3f}" if per_pass[1] else ""
        place = rank.get(name, "") if max(rank.values(), default=1) > 1 else ""
        line = f"| {place} | {name} | {score[0]:.3f} | {sampled[0]:.3f} | {passes[0]:,.0f} | {told} |"
        lines.append((-(per_pass[0] or 0), line))
    return [
        "| rank | row | score | sampled | teacher passes | score per 1000 passes |",
        "| ---: | --- | ---: | ---: | ---: | ---: |",
        *(line for _, line in sorted(lines)),
        "",
        "±: 95 % interval over pairs. Rank: 1 + the rows that are better by a paired difference whose interval",
        f"does not reach 0, corrected for {comparisons} comparisons (Holm). Rows of one rank, or of none, are not told",
        "apart.",
    ]


def parse(argv):
    parser = grade.Parser(prog="leaderboard.py", description="Re-run students' rows: score per teacher pass.")
    parser.add_argument("folder", type=os.path.expanduser, help="where the students' files lie, one row in each")
    parser.add_argument(
        "--out", type=os.path.expanduser, required=True, metavar="DIR", help="of the records; a later call reads them"
    )
    parser.add_argument("--pairs", type=int, default=5, help="pretrained pairs (default: %(default)s)")
    parser.add_argument("--pair-seed", type=int, default=601, help="seed of the first one (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=400, help="updates of every student (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=3600, help="time limit of a file (default: %(default)s)")
    parser.add_argument("--device", default="cpu", help="as of train_skd.py (default: %(default)s)")
    parser.add_argument("--quick", action="store_true", help="a smoke run: the figures mean nothing")
    args = parser.parse_args(argv)
    if args.pairs < 1 or not 0 < args.seconds < 1e7:
        raise ValueError("--pairs must be at least 1, and --seconds lie between 0 and ten millions")
    return args


def main(argv=None):
    """Train what is missing, print the table. Returns 0 only where every file could be run."""
    args = parse(argv)
    files = sorted(path.resolve() for path in Path(args.folder).glob("*.py"))
    if not files:
        raise ValueError(f"no .py file lies in {args.folder}: name the folder of the students' files")
    args.out, rows, failed = Path(args.out).resolve(), {}, 0
    for path, name in [*((None, name) for name in BESIDE), *((path, path.stem) for path in files)]:
        if re.fullmatch(r"[A-Za-z]\w*", name) and name not in rows:
            found, error = runs_of(path, name, args)
        else:
            found, error = [], "a row needs a name of letters, digits and _, which no other row has: rename the file"
        if not error and rows and start_of(found) != start_of(rows[BESIDE[0]]):
            error = f"its records are of other pairs or flags than those of {BESIDE[0]}: give another --out"
        if error and not path:
            raise ValueError(f"{name}: {error} (its output: {args.out / name / 'log'})")
        print(f"{name}: {error or 'done'}", flush=True)
        failed, rows = failed + bool(error), rows if error else rows | {name: found}
    note = ["This was --quick, a smoke run: its figures mean nothing."] if args.quick else []
    print("\n".join(["", *table(rows), *note]))
    return 1 if failed else 0


if __name__ == "__main__":
    if sys.argv[1:2] == ["--train"]:  # the process of one row
        program.run_script("leaderboard", lambda: train(*sys.argv[2:4], sys.argv[4:]))
    signal.signal(signal.SIGTERM, grade.interrupt)
    processes.use_any_terminal()
    processes.run_tool("leaderboard.py", main)
