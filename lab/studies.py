"""The studies in results/: each answers a question with one command.

    python -m lab.studies                  every study: its question, its command, what it takes, whether it is there
    python -m lab.studies NAME [NAME ..]   runs them in runs/studies/, where an interrupted one goes on, and makes
                                           results/NAME of each: records, table, curves; or, where a module
                                           measures the finished runs, its figures and their table

Settings were found on development pairs (seeds 11 to 15) and confirmed on pairs nobody had looked at (101 to 108 for
an earlier start of the students, then 201 to 208). All other questions are asked on the last of these.
"""

import argparse
import os
import shlex
import shutil
import signal
import subprocess
import sys
from typing import NamedTuple

from lab import folders, report
from lab.archive import PACKED
from lab.claims import PREMISE
from lab.records import write_whole


class Study(NamedTuple):
    """A question, and the command that answers it."""

    question: str
    command: str  # what follows "python"; --out, --resume and --jobs are added
    minutes: int  # on two CPU cores; an estimate until results/NAME is there
    megabytes: int  # that its folder in runs/ came to
    needs: str | None = None  # the real data set that it reads, for --data-dir
    then: str | None = None  # a module that measures the finished runs; results/ keeps what it found, not the records


DEVELOPMENT, THREE_DEVELOPMENT = (f"--pairs {n} --pair-seed 11 --seed 11" for n in (5, 3))  # settings are chosen here
EIGHT, FIVE, THREE = (f"--pairs {n} --pair-seed 201 --seed 201" for n in (8, 5, 3))  # and by none of these

STUDIES = {
    "rates": Study(
        "Which learning rate does each method of the SKD paper's comparison want?",
        f"train_skd.py {DEVELOPMENT} --start-steps 800 --sweep lr=0.01,0.02,0.04",
        37,
        24,
    ),
    "start": Study(
        "Does the order of the methods hold on development pairs from a start of 1,000 steps?",
        f"train_skd.py {DEVELOPMENT} --variants supervised,on_policy,skd --sweep lr=0.02",
        8,
        6,
    ),
    "okd-module": Study(
        "How fast should OKD's module learn, and how much of its loss should be the student's feedback?",
        f"train_okd.py {DEVELOPMENT} --variants okd --lr 0.02 --sweep alpha=0.25,0.5 --sweep module-lr=0.05,0.25,1",
        14,
        10,
    ),
    "rates-okd": Study(
        "Which learning rate does each method of the OKD paper's comparison want?",
        f"train_okd.py {DEVELOPMENT} --variants fixed_reverse_kl,minillm,okd,okd_no_feedback "
        "--sweep lr=0.01,0.02,0.04",
        23,
        16,
    ),
    "skd-math-800": Study(
        "The first confirmation of SKD's comparison, from a weaker start: does the development pairs' order hold?",
        "train_skd.py --pairs 8 --pair-seed 101 --seed 101 --start-steps 800",
        27,
        18,
    ),
    "skd-math": Study(
        "Which method of the SKD paper teaches the default task best, on pairs that no setting was chosen by?",
        f"train_skd.py {EIGHT}",
        29,
        18,
    ),
    "okd-math": Study(
        "Does a teacher that learns along teach the default task better than a fixed one?",
        f"train_okd.py {EIGHT}",
        30,
        18,
    ),
    "skd-raw": Study(
        "Does on-policy distillation get stuck from a bad start, and SKD not?",
        f"train_skd.py {FIVE} --variants sft,supervised,on_policy,imitkd,skd --student-start raw",
        10,
        6,
    ),
    "skd-500": Study(
        "Does on-policy distillation get stuck from a start of 500 steps of SFT, and SKD not?",
        f"train_skd.py {FIVE} --variants sft,supervised,on_policy,imitkd,skd --start-steps 500",
        11,
        6,
    ),
    "skd-half-teacher": Study(
        "Is the order of the methods the same with a teacher that was stopped after a quarter of its steps?",
        f"train_skd.py {THREE} --variants sft,supervised,on_policy,skd --teacher-steps 500",
        5,
        4,
    ),
    "skd-certain": Study(
        "Is the order of the methods the same on references that are phrased in one way only?",
        f"train_skd.py {THREE} --variants sft,supervised,on_policy,skd --entropy 0",
        9,
        4,
    ),
    "skd-k": Study(
        "How does SKD depend on K, from the teacher's best token alone to every token in use?",
        f"train_skd.py {FIVE} --variants skd --sweep accept-top-k=1,2,3,5,10,19",
        17,
        6,
    ),
    "skd-switches": Study(
        "What changes if nothing is written back, and if a second draw is judged, as in the released code?",
        f"train_skd.py {FIVE} --variants skd --sweep no-write-back=no,yes --sweep judge-fresh=no,yes",
        10,
        6,
    ),
    "skd-rules": Study(
        "Does it matter which tokens the teacher replaces?",
        f"train_skd.py {FIVE} --variants skd --sweep accept-rule=topk,argmax,random,none,all",
        13,
        6,
    ),
    "writers": Study(
        "Who should write, and which divergence should be learned?",
        f"train_skd.py {FIVE} --variants supervised,on_policy,skd,fresh_teacher "
        "--sweep loss=forward_kl,reverse_kl,generalized_jsd",
        30,
        12,
    ),
    "skd-equal-compute": Study(
        "Who is ahead when cheaper methods go on until they have spent what SKD spends?",
        f"train_skd.py {FIVE} --variants supervised,on_policy,skd --equal-compute",
        13,
        8,
    ),
    "skd-translation": Study(
        "Is the order of the methods the same on another task?",
        f"train_skd.py {THREE} --task translation --variants sft,supervised,on_policy,skd",
        13,
        6,
    ),
    "skd-scan": Study(
        "Is the order of the methods the same on SCAN, commands and the actions that they ask for?",
        f"train_skd.py {THREE} --task scan --measure 1000 --variants sft,supervised,on_policy,skd",
        15,
        6,
        needs="scan",
    ),
    "skd-multi30k": Study(
        "Is the order of the methods the same on Multi30k, German captions and their English translations?",
        f"train_skd.py {THREE} --task multi30k --vocab-size 1024 --block-size 64 --max-new-tokens 28 --metric chrf "
        "--student-prompts 4000 --measure 500 --variants sft,supervised,on_policy,skd",
        35,
        7,
        needs="multi30k",
    ),
    "okd-half-teacher": Study(
        "Does OKD gain from a teacher that was stopped after a quarter of its steps?",
        f"train_okd.py {THREE} --teacher-steps 500 --variants fixed_forward_kl,okd_no_feedback,okd",
        5,
        4,
    ),
    "okd-samples": Study(
        "On whose samples should an online teacher learn and teach: references, the student's, or SKD's?",
        f"train_okd.py {FIVE} --variants fixed_forward_kl,okd,okd_on_policy,okd_skd",
        19,
        6,
    ),
    "okd-kinds": Study(
        "Does it matter what the online module is, or that the whole teacher learns?",
        f"train_okd.py {THREE} --variants okd,okd_prefix,okd_ptuning,okd_adapter,okd_full,prokt",
        9,
        5,
    ),
    "okd-narrow": Study(
        "Does OKD help a student that is far smaller than its teacher?",
        f"train_okd.py {THREE} --student-width 16 --variants fixed_forward_kl,okd_no_feedback,okd",
        8,
        3,
    ),
    "okd-wide": Study(
        "Does OKD help a student that is nearly as large as its teacher?",
        f"train_okd.py {THREE} --student-width 48 --variants fixed_forward_kl,okd_no_feedback,okd",
        12,
        6,
    ),
    "catalogue": Study(
        "A first look at every row with a fixed teacher: one pair, one seed.",
        "train_skd.py --variants all --pair-seed 201 --seed 201",
        34,
        21,
    ),
    "catalogue-ends": Study(
        "Are the ten best and the ten worst rows of that first look so on three pairs?",
        f"train_skd.py {THREE} --variants supervised,trb,fdistill_tvd,tip,fdistill_rkl,fdistill_js,opd,distillm2,"
        "rkl_students_top,opd_baseline,veto,gkd,distillspec,abkd,ssd,lwkd,label_smoothing,opsd_no_hint,one,"
        "rkl_teachers_top,prefix_opd",
        22,
        16,
    ),
    "catalogue-okd": Study(
        "A first look at every row with a moving teacher: one pair, one seed.",
        "train_okd.py --variants all --pair-seed 201 --seed 201",
        14,
        7,
    ),
    "skd-trb": Study(
        "Is it better to blend teacher and student than to replace tokens: TRB against SKD, with the loss of TRB?",
        f"train_skd.py {FIVE} --loss reverse_kl --variants on_policy,skd,trb,trb_fixed",
        15,
        6,
    ),
    "rates-gradients": Study(
        "Which learning rate does each policy gradient on the student's samples want?",
        f"train_skd.py {THREE_DEVELOPMENT} --variants fdistill_rkl,opd,exopd,iw_opd,kdrl "
        "--sweep lr=0.0025,0.005,0.01,0.02",
        28,
        15,
    ),
    "gradients": Study(
        "Does a reward beside the teacher, or a target beyond it, teach better than the teacher alone?",
        f"train_skd.py {FIVE} --variants fdistill_rkl,opd,exopd,iw_opd,kdrl",
        10,
        9,
    ),
    "rates-hints": Study(
        "Which learning rate does each method want whose teacher reads a hint?",
        f"train_skd.py {THREE_DEVELOPMENT} --hint-share 0.5 --variants context_kd,context_on_policy,opsd,sdft,sdpo "
        "--sweep lr=0.005,0.01,0.02",
        29,
        13,
    ),
    "rates-own-teacher": Study(
        "Which learning rate does a student want whose teacher is an average of its own weights?",
        f"train_skd.py {THREE_DEVELOPMENT} --hint-share 0.5 --variants sdft,sdpo,opsd_live "
        "--sweep lr=0.00025,0.0005,0.001",
        11,
        9,
    ),
    "hints": Study(
        "Does a hint help the teacher, and does it help the student?",
        f"train_skd.py {THREE} --hint-share 0.5 --variants supervised,context_kd,context_kd_wrong_hint,on_policy,"
        "context_on_policy,opsd,opsd_no_hint,opsd_wrong_hint,sdft,sdpo",
        20,
        9,
    ),
    "hints-weak-start": Study(
        "Does a hint help a student that does not know its prompts by heart, and whose start needs the hint?",
        f"train_skd.py {FIVE} --hint-share 0.5 --student-prompts 0 --start-steps 500 --variants supervised,on_policy,"
        "context_on_policy,opsd,opsd_no_hint,opsd_wrong_hint,sdft",
        21,
        11,
    ),
    "premise": Study(
        "Is the teacher worse on the student's prefixes, before distillation and after it?",
        f"train_skd.py {EIGHT} --variants supervised,on_policy,skd",
        16,
        10,
        then="lab.premise",
    ),
}


def size_of(folder):
    """Bytes of the files in a study's folder."""
    return sum(path.stat().st_size for path in folder.iterdir())


def about(name, root=folders.ROOT):
    """What is known of a study before it is run, as lines."""
    study, made = STUDIES[name], root / "results" / name
    needs = f", needs the files of {study.needs} (--data-dir)" if study.needs else ""
    size = f"; results/{name} has {size_of(made) / 1e6:.1f} MB" if made.is_dir() else f"; no results/{name} yet"
    takes = f"{study.minutes} minutes on two cores, {study.megabytes} MB in runs/studies"
    return f"{name}: {study.question}\n  {told_commands(study)}\n  {takes}{needs}{size}"


def told_commands(study):
    """What is run, in words."""
    return f"python {study.command}" + (f", then python -m {study.then} on its folder" if study.then else "")


def run_program(words, folder):
    """Run a program in a folder, to its end -> its status.

    A signal stops it, too: Ctrl-C reaches it from the terminal, SIGTERM is passed on. It is waited for, since it saves
    what it has; then this program ends as well (SystemExit).
    """
    program, stopped = None, []

    def on_signal(number, frame):
        stopped.append(number)
        if program and number == signal.SIGTERM:
            program.terminate()

    before = {number: signal.signal(number, on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        program = subprocess.Popen(words, cwd=folder)
        program.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if stopped:
        print(f"lab.studies: stopped by {signal.Signals(stopped[0]).name}: the same command goes on", file=sys.stderr)
        sys.exit(128 + stopped[0])
    return program.returncode


def run_study(name, jobs=None, data_dir=None, root=folders.ROOT):
    """Run a study, or what is missing of it, and make results/NAME of its records -> whether it is whole."""
    study, work, made = STUDIES[name], root / "runs" / "studies" / name, root / "results" / name
    words = [*shlex.split(study.command), "--out", str(work), "--resume"]
    words += ["--jobs", str(jobs)] if jobs is not None else []
    words += ["--data-dir", os.path.abspath(data_dir)] if data_dir and study.needs else []
    if run_program([sys.executable, *words], root):
        return False
    if study.then and run_program([sys.executable, "-m", study.then, str(work)], root):
        return False
    made.mkdir(parents=True, exist_ok=True)
    (made / PACKED).unlink(missing_ok=True)  # the one that was made before
    for path in [work / PREMISE] if study.then else work.glob("*.jsonl"):
        shutil.copy(path, made)
    if not (made / "README.md").exists():
        command = f"```\npython -m lab.studies {name}     # {told_commands(study)}\n```"
        table = "<!-- table:begin -->\n<!-- table:end -->"
        write_whole(made / "README.md", f"# {name}\n\n{study.question}\n\n{command}\n\n{table}\n")
    if study.then:
        write_whole(made / "README.md", report.premise_page(made))
    else:
        report.pack(made)
    return True


def main(argv=None):
    """Run the studies that were named, or list all -> 0 where every one of them is whole."""
    parser = argparse.ArgumentParser(prog="lab.studies", description="Run the studies behind results/ again.")
    parser.add_argument("names", nargs="*", metavar="NAME", help="which (default: list all)")
    parser.add_argument("--jobs", type=int, help="runs side by side (default: CPU cores; 1 on a GPU)")
    parser.add_argument("--data-dir", type=os.path.expanduser, metavar="DIR", help="where files of real data sets lie")
    parser.error = lambda message: parser.exit(2, f"lab.studies: {' '.join(message.split())} (see --help)\n")
    args = parser.parse_args(argv)
    for name in args.names:
        if name not in STUDIES:
            parser.error(f"there is no study {name!r}: there are {', '.join(STUDIES)}")
    if not args.names:
        print("\n".join(about(name) for name in STUDIES))
    failed = []
    for name in args.names:
        print(about(name), flush=True)
        try:
            whole = run_study(name, args.jobs, args.data_dir)
        except (ValueError, OSError) as error:
            print(f"lab.studies: {' '.join(str(error).split())}", file=sys.stderr)
            whole = False
        failed += [] if whole else [name]
    for name in failed:
        print(f"lab.studies: {name} is not whole: what was said above; the same command goes on (or starts anew, "
              f"without runs/studies/{name})", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
