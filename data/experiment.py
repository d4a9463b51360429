"""The frame of an experiment, the same for both scripts: from the command line to the table.

    flags -> task, tokenizer, pair -> teacher and untouched student measured -> every method with every seed -> table

What a method does is not here: a script hands over its table of variants and a function that trains one student.
"""

import argparse
import dataclasses
import json
import os
import re
import signal
import sys
import time
from pathlib import Path

import torch
from tqdm import tqdm

from data import corpora, pairs, report, runs, tasks
from data.evaluate import Encoded, evaluate, step_columns
from data.tasks import make_task
from data.teacher_cache import TeacherCache, check_best
from losses import Unprojected, by_chunks
from model import OnlineTeacher, save_checkpoint, save_online_module
from sample import ACCEPT_RULES, REPLACE_RULES, check_rule

LARGE_VOCABULARY = 2**14  # from here on --chunk-loss auto is yes
SOURCES = (  # whose sha256 a record holds, beside the script's own
    "model.py",
    "losses.py",
    "features.py",
    "sample.py",
    "methods.py",
    "data/tokenizer.py",
    "data/tasks.py",
    "data/corpora.py",
    "data/metrics.py",
    "data/evaluate.py",
    "data/pairs.py",
    "data/teacher_cache.py",
    "data/runs.py",
    "data/experiment.py",
)


# ---------------------------------------------------------------------------------------------------------------------
# 1. The command line.


def make_parser(script, description, variants, main_variants):
    """The parser of a script with all flags that both scripts share; the script adds its own."""
    parser = runs.Parser(prog=f"{script}.py", description=description)
    runs.add_shared_flags(parser, variants, main_variants, pairs.SIZES)
    group = parser.add_argument_group("sampling (methods whose tokens a model writes)")
    group.add_argument(
        "--accept-rule", default="topk", choices=tuple(ACCEPT_RULES), help="which proposals stay (default: topk)"
    )
    group.add_argument("--rule", default="", metavar="KNOB=X,..", help="the rule's own knob, e.g. accept_min_prob=0.1")
    group.add_argument(
        "--replace", default="sample", choices=tuple(REPLACE_RULES), help="what a rejected proposal becomes"
    )
    group.add_argument("--student-temperature", type=float, default=1.0, help="of every token that the student writes")
    group.add_argument("--student-top-p", type=float, help="nucleus of the student's draws")
    group.add_argument("--teacher-temperature", type=float, default=1.0, help="of the teacher's replacements")
    group.add_argument("--teacher-top-p", type=float, help="nucleus of the teacher's replacements")
    group.add_argument(
        "--no-write-back", action="store_true", help="control: mark rejections, keep the student's tokens"
    )
    group.add_argument(
        "--accept-on", default="raw", choices=("raw", "warped"), help="warped: the released code's membership test"
    )
    group.add_argument("--judge-fresh", action="store_true", help="judge a second draw, as the released code does")
    group = parser.add_argument_group("comparison")
    focus = report.COMPARISONS[script][1]
    group.add_argument(
        "--equal-compute", action="store_true", help=f"also run each method for as long as {focus}'s model FLOPs last"
    )
    group.add_argument(
        "--sweep",
        action="append",
        default=[],
        metavar="FLAG=X,Y,..",
        help="run each method once per value of a flag, e.g. --sweep lr=1e-3,5e-3; several: every combination",
    )
    group.add_argument("--weight-decay", type=float, default=0.1, help="on the student's matrices")
    group.add_argument("--log-every", type=int, default=20, help="steps between logged lines")
    return parser


def parse(parser, argv, variants, main_variants, script):
    """Command line -> (args with everything resolved that needs no data, names of the methods).

    args.swept holds one pair (label, args) per combination of swept values, or one with an empty label.
    """
    argv = sys.argv[1:] if argv is None else list(argv)
    args, names = parse_once(parser, argv, variants, main_variants, script)
    args.swept = [("", args)]
    for text in args.sweep:
        flag, _, values = text.partition("=")
        if not flag or not all(values.split(",")):
            raise ValueError(f"--sweep takes FLAG=VALUE,VALUE,.. such as lr=1e-3,5e-3; found {text!r}")
        args.swept = [
            (f"{label} {flag}={value}", [*(before if isinstance(before, list) else argv), f"--{flag}={value}"])
            for label, before in args.swept
            for value in dict.fromkeys(values.split(","))
        ]
    if args.sweep:
        args.swept = [
            (label, parse_once(parser, words, variants, main_variants, script)[0]) for label, words in args.swept
        ]
        fixed = sorted(runs.NEUTRAL_FLAGS | {"quick", "size", "settings", "task_options", *TASK_FLAGS})
        for label, other in args.swept:
            for name in fixed:
                if name not in ("sweep", "swept") and getattr(other, name, None) != getattr(args, name, None):
                    raise ValueError(
                        f"--sweep{label} would change --{name.replace('_', '-')}, which all runs of a table share: "
                        "run the script once per value"
                    )
    return args, names


def parse_once(parser, argv, variants, main_variants, script):
    """The words of one command line -> (args, names of the methods); see parse."""
    args = parser.parse_args(argv)
    names, focus = runs.check_shared_flags(args, variants, main_variants), report.COMPARISONS[script][1]
    args.rule = parse_rule(args.rule)
    if args.equal_compute and focus not in names:
        raise ValueError(f"--equal-compute measures in units of {focus}: add it to --variants")
    check_rule(args.accept_rule, args.replace, args.accept_on, args.gamma, args.accept_top_k or 0, args.rule)
    args.device_type = runs.pick_device(args.device).type
    if runs.started_by_torchrun() and args.jobs not in (None, 1):
        raise ValueError("--jobs runs methods side by side, torchrun lets processes share each: leave one of them out")
    args.jobs = args.jobs or runs.default_jobs(args.device_type)
    size = dict(pairs.SIZES[args.size])
    default_steps, default_lr, args.task_options = size.pop("steps"), size.pop("lr"), {}
    if args.quick:  # every stage, as short as it can be
        default_steps = 40
        size |= {name: getattr(pairs.QUICK, name) for name in ("teacher_steps", "start_steps", "student_prompts")}
        args.task_options = pairs.QUICK_TASK if args.task in tasks.FAMILIES else {}
    args.steps, args.lr = args.steps or default_steps, args.lr or default_lr
    given = {
        name: getattr(args, name)
        for name in (
            "teacher_steps",
            "start_steps",
            "teacher_prompts",
            "student_prompts",
            "student_start",
            "vocab_size",
            "block_size",
        )
    }
    size |= {name: value for name, value in given.items() if value is not None}
    args.settings = pairs.PairSettings(**size, seed=args.pair_seed)
    if args.settings.student_prompts == 0:
        args.settings = dataclasses.replace(args.settings, student_prompts=None)
    return args, names


def parse_rule(text):
    """ "accept_min_prob=0.1" -> {"accept_min_prob": 0.1}; ValueError for anything else."""
    try:
        return {knob: float(value) for knob, value in (part.split("=") for part in text.split(",") if part)}
    except ValueError as error:
        raise ValueError(f"--rule takes KNOB=NUMBER, e.g. accept_min_prob=0.1; found {text!r}") from error


def sampling_options(args):
    """The flags of the sampling group as keywords of sample.write_tokens."""
    return {
        "temperature": args.student_temperature,
        "top_p": args.student_top_p,
        "interleaved": {
            "gamma": args.gamma,
            "accept_rule": args.accept_rule,
            "accept_top_k": args.accept_top_k,
            "replace": args.replace,
            "teacher_temperature": args.teacher_temperature,
            "teacher_top_p": args.teacher_top_p,
            "write_back": not args.no_write_back,
            "accept_on": args.accept_on,
            "judge_fresh": args.judge_fresh,
            "keep_features": args.chunk_loss == "yes",
            **args.rule,
        },
    }


TASK_FLAGS = ("task", "difficulty", "train_examples", "entropy", "hard_share", "stories", "measure")


def load_task(args):
    """The task with the knobs that were given on the command line."""
    knobs = {name: getattr(args, name) for name in TASK_FLAGS[1:-1]}
    options = args.task_options | {name: value for name, value in knobs.items() if value is not None}
    return make_task(args.task, data_dir=args.data_dir, **options)


def check_cache(args, used):
    """ValueError where --cache-teacher would do nothing (no chosen method is `used` to it), or something else."""
    every = [args, *(own for _, own in args.swept)]
    if not used and any(own.cache_teacher is not None for own in every):
        raise ValueError(
            "--cache-teacher keeps what a fixed teacher says about references, and no method here asks for that: "
            "leave it out, or choose --variants supervised (train_okd.py: fixed_forward_kl)"
        )
    for own in every:
        if own.cache_teacher and getattr(own, "temperature", 1.0) != 1.0:
            raise ValueError(
                f"--cache-teacher {own.cache_teacher} keeps the tail as one bucket, which no --temperature can soften "
                "(its tokens are gone): use --cache-teacher dense, or --temperature 1"
            )


def load_data(args):
    """The task as token ids, its test split cut to --measure examples."""
    data = pairs.encode_task(load_task(args), args.settings)
    data.splits["test"] = Encoded(*(column[: args.measure] for column in data.splits["test"]))
    return data


# ---------------------------------------------------------------------------------------------------------------------
# 2. How a batch is computed: the same for every method, and no method differs by it.


@dataclasses.dataclass
class Passes:
    """Precision and memory of a run's passes, and which rows of a batch are this process' own."""

    precision: object  # the context of all passes
    chunked: bool  # logits of a whole batch never exist

    def share(self, batch_size):
        """Places in a batch of the rows that this process works on."""
        rank, size = runs.processes()
        return range(rank, batch_size, size)

    def logits(self, forward, tokens, model=None):
        """forward(tokens), as logits (B, T, V) or Unprojected; `model` owns the head if `forward` is a wrapped one."""
        if not self.chunked:
            return forward(tokens)
        features = forward(tokens, features=True)
        return Unprojected(features, (model or forward).head)


def passes_of(args, pair):
    """The Passes that the flags ask for; run_one has resolved --chunk-loss auto."""
    device = next(pair.teacher.parameters()).device
    return Passes(runs.use_precision(args.precision, device), args.chunk_loss == "yes")


def kept_logits(rollout, teacher, part):
    """What the verification of a rollout left of the teacher's logits for these rows, or None."""
    if rollout.teacher_features is not None:
        return Unprojected(rollout.teacher_features[part], teacher.head)
    return None if rollout.teacher_logits is None else rollout.teacher_logits[part]


@torch.no_grad()
def columns_of(student_logits, teacher_logits):
    """step_columns of a part of a batch; either model's logits may be Unprojected, and the teacher's may be missing."""
    both = [student_logits.detach()] + ([] if teacher_logits is None else [teacher_logits.detach()])
    return by_chunks(step_columns, *both)


def open_cache(pair, args, say):
    """The fixed teacher's answers on the student's references (--cache-teacher), made by the first process if need be."""

    def make():
        with runs.use_precision(args.precision, next(pair.teacher.parameters()).device):
            return TeacherCache(
                pair.teacher,
                pair.train.prompts,
                pair.train.responses,
                args.cache_teacher,
                args.precision,
                report=say,
                compare=runs.processes()[0] == 0,  # the others take its word: none may go on, or stop, alone
            )

    return runs.first_then_others(make)


# ---------------------------------------------------------------------------------------------------------------------
# 3. One run.


def run_name(variant, seed, budget):
    """The stem of a run's files."""
    return f"{variant}{'_compute' if budget == 'compute' else ''}_seed{seed}".replace(" ", "_")


def about(pair, args):
    """What sample.py needs to know to show a model that a run left."""
    return {
        "task": args.task,
        "task_options": pair.task.options,
        "max_new_tokens": pair.max_new_tokens,
        "accept_top_k": args.accept_top_k,
    }


def run_one(distill, row, args, folder, shared, variant, seed, budget, steps):
    """One method with one seed, from the pair in the cache to its record and final student; -> a line about it.

    `variant` is its label: the method's name and, after blanks, the values that were swept.

    distill(row, student, pair, args, seed, log, say) trains the student in place and returns (costs, adapted teacher or
    None); everything around it is the same for every method.
    """
    torch.set_num_threads(1 if args.device_type == "cpu" else torch.get_num_threads())  # same numbers for every --jobs
    device = runs.join(torch.device(args.device_type))
    pair = pairs.load_or_pretrain_pair(load_data(args), args.settings, device, report=lambda _: None)
    chunk_loss = args.chunk_loss
    if chunk_loss == "auto":
        chunk_loss = "yes" if pair.tokenizer.n_vocab >= LARGE_VOCABULARY else "no"
    changes = {"steps": steps or args.steps, "chunk_loss": chunk_loss}
    name, here = run_name(variant, seed, budget), argparse.Namespace(**vars(args) | changes)
    header = {
        "variant": variant,
        "seed": seed,
        "budget": budget,
        "sets_budget": variant == report.COMPARISONS[shared["script"]][1],
        "row": dataclasses.asdict(row),
    }
    first = runs.processes()[0] == 0  # the one that writes
    log = runs.NoLog()
    if first:
        log = runs.RunLog(folder, name, shared | header | runs.describe_machine(device))
    try:
        student = pair.new_student()
        say = runs.say if args.jobs == 1 and first else lambda _: None
        say(f"{name}: {here.steps} steps")
        costs, adapted = distill(row, student, pair, here, seed, log, say)
        figures = evaluate(
            student,
            pair.teacher,
            pair.task,
            pair.tokenizer,
            pair.test,
            pair.max_new_tokens,
            gamma=args.gamma,
            accept_top_k=args.accept_top_k,
            seed=seed,
            ood=pair.ood,
            adapted=adapted,
        )
        named = {"variant": variant, "seed": seed, "score": figures["score"]}
        if first:
            stem = str(Path(folder) / name)
            save_checkpoint(f"{stem}.pt", student, pair.tokenizer.state_dict(), **named, **about(pair, args))
            if isinstance(adapted, OnlineTeacher):
                save_online_module(f"{stem}.module.pt", adapted, **named)
        log.write("final", **figures, **costs)
    finally:
        log.close()
    return f"{name:<24} score {figures['score']:.3f}  sampled {figures['score_sampled']:.3f}  {costs['seconds']:.0f} s"


# ---------------------------------------------------------------------------------------------------------------------
# 4. All of them.


def compare(script, args, names, variants, run_one):
    """Task, pair, every method with every seed, table. Returns 0 only when every run finished.

    run_one(args, folder, shared, variant, seed, budget, steps) must be a function at a module's top level: with --jobs
    it is called in processes of its own.
    """
    if args.list_variants:
        print(json.dumps({name: dataclasses.asdict(row) for name, row in variants.items()}, indent=2))
        return 0
    # What is run: (label, flags), the label being the method's name and the values that were swept for it.
    methods = [(f"{name}{label}", own) for name in names for label, own in args.swept]
    started, focus = time.perf_counter(), report.COMPARISONS[script][1]
    device = runs.join(torch.device(args.device_type))
    rank, size = runs.processes()
    smallest = min(own.batch_size for own in [args, *(own for _, own in methods)])
    if smallest < size:
        raise ValueError(f"--batch-size {smallest} leaves some of {size} processes without a row: raise it")

    # 1. Task, tokenizer, pair. All that can be refused is refused before anything is written or trained.
    data = load_data(args)
    vocabulary = data.tokenizer.n_vocab
    for own in [args, *(own for _, own in methods)]:
        if own.accept_top_k is None:
            own.accept_top_k = pairs.default_accept_top_k(data.vocabulary_in_use)
        if own.accept_top_k > vocabulary:
            raise ValueError(
                f"--accept-top-k must lie in 0..{vocabulary} (this tokenizer's vocabulary), found {own.accept_top_k}"
            )
        check_best(own.cache_teacher or 0, vocabulary)
    sizes = {name: len(split.prompts) for name, split in data.splits.items()}
    runs.say(
        f"task {args.task}: {sizes['train']} train, {sizes['val']} val, {sizes['test']} test, {sizes['ood']} ood examples"
        + (f" ({data.dropped} longer than the block left out)" if data.dropped else "")
    )
    runs.say(
        f"tokenizer: {vocabulary} tokens, {data.vocabulary_in_use} in use; block of {data.block_size}, at most "
        f"{data.max_new_tokens} new tokens; K = {args.accept_top_k}, gamma = {args.gamma or 'auto'}"
    )
    if args.task in corpora.CORPORA:
        runs.say(f"data: {corpora.corpus_note(args.task, args.data_dir)}")
    flags = runs.result_flags(args) | {"settings": dataclasses.asdict(args.settings)}
    inputs = corpora.corpus_inputs(args.task, args.data_dir) if args.task in corpora.CORPORA else {}  # name -> sha256
    default_name = f"{script.removeprefix('train_')}-{args.task}{'-quick' if args.quick else ''}"

    def make_folder():
        folder = runs.make_run_folder(args.out, args.resume, default_name)
        for path in sorted(folder.glob("*.jsonl")):  # a table must not mix runs of different flags or data
            runs.read_finished(folder, path.stem, flags, inputs)
        return folder

    folder = runs.first_decides(make_folder)
    torch.set_num_threads(1 if device.type == "cpu" else torch.get_num_threads())

    def load_pair():
        return pairs.load_or_pretrain_pair(data, args.settings, device, report=runs.say)

    pair = runs.first_then_others(load_pair)  # pretrained once
    runs.use_precision(args.precision, device)  # what the students will be measured with

    # 2. Where the comparison starts: the teacher and the untouched student.
    measure = {"gamma": args.gamma, "accept_top_k": args.accept_top_k, "seed": args.seed, "ood": pair.ood}
    start = pair.new_student().eval()
    teacher_figures, start_figures = (
        {"parameters": model.num_parameters()}
        | evaluate(model, judge, pair.task, pair.tokenizer, pair.test, pair.max_new_tokens, **measure)
        for model, judge in ((pair.teacher, None), (start, pair.teacher))
    )
    for label, model, figures in (("teacher", pair.teacher, teacher_figures), ("student_start", start, start_figures)):
        if rank == 0:
            path, tokenizer = str(folder / f"{label}.pt"), pair.tokenizer.state_dict()
            save_checkpoint(path, model, tokenizer, score=figures["score"], **about(pair, args))
        runs.say(
            f"{label:<24} score {figures['score']:.3f}  sampled {figures['score_sampled']:.3f}  "
            f"{figures['parameters']:,} parameters"
        )
    shared = {  # what the header of every record says
        "script": script,
        "task": args.task,
        "metric": pair.task.metric,
        "order": list(dict.fromkeys([*variants, *(label for label, _ in methods)])),
        "flags": flags,
        "quick": args.quick,
        "jobs": args.jobs,
        "processes": size,
        "pair": pair.fingerprint,
        "vocabulary_in_use": data.vocabulary_in_use,
        "accept_top_k": args.accept_top_k,
        "inputs": inputs,
        "sources": runs.source_hashes((*SOURCES, f"{script}.py")),
        "teacher": teacher_figures,
        "student_start": start_figures,
    }

    # 3. Every method with every seed; what a resumed folder holds already is left as it is.
    failures = []

    def missing(budget):
        todo = []
        for seed in range(args.seed, args.seed + args.seeds):
            for label, own in methods:
                if budget == "compute" and label == focus:
                    continue  # it sets the budget: its equal-steps run is its equal-compute run
                if runs.read_finished(folder, run_name(label, seed, budget), flags) is None:
                    steps = own.steps
                    if budget == "compute":
                        steps = equal_compute_steps(folder, label, focus, seed, steps, flags)
                    todo.append((own, folder, shared, label, seed, budget, steps))
        return [task for task in todo if task[-1]]

    for budget in ("steps", "compute") if args.equal_compute else ("steps",):
        todo = runs.first_decides(lambda budget=budget: missing(budget))
        with Progress(folder, todo, args.jobs) as progress:
            failures += runs.run_all(run_one, todo, args.jobs, progress.say, progress.watch)

    # 4. What came out.
    if rank == 0:
        for task, line in failures:
            print(f"{script}.py: run {run_name(*task[3:6])} failed: {line}", file=sys.stderr)
        print("\n" + report.write_report(folder))
    runs.say(
        f"{time.perf_counter() - started:.0f} s in all; table.md, curves.svg, summary.json and the students lie in {folder}"
    )
    if args.quick:
        runs.say("This was --quick, a smoke run: its numbers mean nothing.")
    runs.leave()
    return 1 if failures else 0


class Progress:
    """How far runs side by side have come, read from their records: a bar on a terminal, now and then a line elsewhere."""

    def __init__(self, folder, todo, jobs):
        self.folder, self.finished, self.spoken = folder, 0, time.monotonic()
        self.todo = [(run_name(*task[3:6]), task[-1]) for task in todo]  # (name, steps), in the order of their start
        steps = sum(steps for _, steps in self.todo)
        hidden = True if jobs == 1 else None  # None: shown on a terminal only
        self.bar = tqdm(total=steps, unit="step", leave=False, disable=hidden, dynamic_ncols=True)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.bar.close()

    def say(self, line):
        """A line that stays: a run has ended."""
        self.finished += 1
        if self.bar.disable:
            runs.say(line)
        else:
            self.bar.write(line)  # above the bar
            sys.stdout.flush()

    def watch(self, running, waiting):
        """Show where the runs stand; run_all calls this once a second when they are in processes of their own."""
        started = dict(self.todo[: len(self.todo) - waiting])
        total, words = sum(started.values()), [f"{self.finished} of {len(self.todo)} runs done"]
        for *_, label, seed, budget, steps in running:
            name = run_name(label, seed, budget)
            done = last_step(self.folder / f"{name}.jsonl")
            total -= steps - done
            words.append(f"{name} {done}/{steps}")
        self.bar.n = total
        self.bar.set_postfix_str(", ".join(words))
        if self.bar.disable and running and time.monotonic() - self.spoken > 60:
            self.spoken = time.monotonic()
            runs.say("  " + ", ".join(words))


def last_step(path):
    """The last step that a run has recorded; 0 before the first."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError:  # not begun
        return 0
    return max((int(found[1]) for line in lines[-3:] if (found := re.search(r'"step": (\d+)', line))), default=0)


def equal_compute_steps(folder, variant, focus, seed, steps, flags):
    """Steps after which `variant` has spent the model FLOPs of the focus's run with the same seed; None without that run.

    What was spent once, before training (compute_once), does not grow with the steps.
    """
    own, unit = (runs.read_finished(folder, run_name(name, seed, "steps"), flags) for name in (variant, focus))
    if not own or not unit:
        return None
    once = own.get("compute_once", 0.0)
    return max(1, round(steps * (unit["compute"] - once) / (own["compute"] - once)))


GO_ON = "finished runs are kept, go on with --resume and the same --out"


def end_process(script, why):
    """End one of several processes at once, with one line. torchrun may be ending it at the same moment, and an exception
    raised then could be lost on its way out: hence no exception. Records are on disk, line by line."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    os.write(2, f"{script}.py: process {os.environ['RANK']} {why}: {GO_ON}\n".encode())
    os._exit(1)


def run_script(script, main):
    """Call main() as a program: wrong use ends with one line and a non-zero status, never with a traceback."""
    if runs.started_by_torchrun():  # which ends the other processes when one has failed
        signal.signal(signal.SIGTERM, lambda *signal_and_frame: end_process(script, "ended, as another one failed"))
    try:
        sys.exit(main())
    except (ValueError, OSError) as error:
        runs.exit_with(f"{script}.py", error)
    except KeyboardInterrupt:
        runs.exit_with(f"{script}.py", f"interrupted: {GO_ON}")
    except RuntimeError as error:
        if not runs.started_by_torchrun():
            raise
        first_line = str(error).strip().split("\n")[0][:160]
        end_process(script, f"lost the others or failed ({first_line})")
