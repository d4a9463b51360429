"""The frame of an experiment, the same for both scripts: from the flags to the table.

    flags (command_line.py) -> task, tokenizer, pair -> teacher and untouched student measured
        -> every method with every seed -> table

What a method does is not here: a script hands over its table of variants and a function that trains one student.
"""

import argparse
import contextlib
import dataclasses
import functools
import gc
import json
import os
import re
import sys
import time
from pathlib import Path

import torch

from data import corpora, tasks
from data.tasks import complete, encode_hint, make_task
from lab import arguments, checkpoints, checks, command_line, folders, held_out, pairs, processes, records, report
from lab.ending import ending
from lab.evaluate import evaluate, evaluate_quickly, sample_responses
from lab.reading import read_runs
from lab.records import run_name
from lab.schedule import Progress, missing_runs, name_of, now_and_then, of_pair
from lab.svg import short_name
from lab.teacher_cache import check_best
from lab.terminal import in_color
from lab.training import Run
from model import OnlineTeacher, save_checkpoint, save_online_module

SOURCES = (  # whose sha256 a record holds, beside the script's own
    *("model.py", "losses.py", "features.py", "sample.py", "methods.py", "catalogue.py"),
    *(f"data/{name}.py" for name in ("tokenizer", "tasks", "corpora", "formats", "own_data", "metrics")),
    *(
        f"lab/{name}.py"
        for name in (
            "training",
            "monitoring",
            "evaluate",
            "held_out",
            "groups",
            "costs",
            "pairs",
            "teacher_cache",
            "hints",
            "processes",
            "folders",
            "records",
            "checkpoints",
            "checks",
            "command_line",
            "arguments",
            "schedule",
            "compare",
        )
    ),
)
# Hashes of the code as this process imported it: load_unchanged_pair refuses if a file was edited since the start.
LOADED = folders.source_hashes((*SOURCES, "train_skd.py", "train_okd.py"))
HINTED_PROMPTS = 400  # that the teacher and the untouched student answer behind each kind of hint


# ---------------------------------------------------------------------------------------------------------------------
# 1. The task.


def load_task(args, say=lambda line: None):
    """The task with the knobs that were given on the command line; `say` hears what of its files is left out."""
    knobs = {name: getattr(args, name) for name in command_line.TASK_FLAGS[1:-1]}
    options = args.task_options | {name: value for name, value in knobs.items() if value is not None}
    return make_task(args.task, data_dir=args.data_dir, say=say, **options)


def inputs_of(args):
    """{file: sha256} of what the task was read from; empty for one that is made."""
    return corpora.corpus_inputs(args.task, args.data_dir) if args.task in corpora.CORPORA else {}


_latest = {"of": None, "data": None}  # the task that was tokenised last: every run of a process needs it again


def load_data(args, say=None):
    """The task as token ids, its test split cut to --measure examples; `say` hears what of its files is left out."""
    knobs = {name: getattr(args, name) for name in command_line.TASK_FLAGS}
    of = json.dumps([knobs, args.task_options, str(args.data_dir), arguments.settings_of_all(args)])
    if say or _latest["of"] != (of, inputs_of(args)):
        data = pairs.encode_task(load_task(args, say or (lambda line: None)), args.settings)
        data.splits["test"] = data.splits["test"].first(args.measure)
        _latest.update(of=(of, inputs_of(args)), data=data)  # its files may have been downloaded just now
    return _latest["data"]


# ---------------------------------------------------------------------------------------------------------------------
# 2. One run.


def about(pair, args):
    """What sample.py needs to know to show a model that a run left."""
    return {
        "pair": args.pair_seed,
        "task": args.task,
        "task_options": pair.task.options,
        "max_new_tokens": pair.max_new_tokens,
        "accept_top_k": args.accept_top_k,
    }


def validation(pair, student, adapted=None):
    """The figures of a learning curve."""
    return evaluate_quickly(student, pair.teacher, pair.task, pair.tokenizer, pair.val, pair.max_new_tokens, adapted)


def scores(pair, rows, responses):
    """What the task's scorer gives responses (ids) to the prompts of these numbers, each in 0..1."""
    completions = complete(pair.tokenizer, responses)
    return [pair.task.score(pair.train.examples[row], text) for row, text in zip(rows, completions)]


def hint_of(pair, response):
    """The ids of a hint that tells a response (ids), as the pair has read some."""
    return encode_hint(pair.tokenizer, *complete(pair.tokenizer, [response]))


def scores_by_hint(pair, model, seed):
    """{"hint_none", "hint_solution", ..}: what a model scores, 0..1, on the student's first prompts, greedily, when no
    hint stands before them and when one of each kind does; {} where the pair has read no hints. Of own data those
    prompts are taken that have one of each kind."""
    own, found = pair.train, {}
    rows = [i for i, prompt in enumerate(own.prompts) if all(kind[i] != prompt for kind in pair.hinted.values())]
    rows = rows[:HINTED_PROMPTS]
    if not (pair.hinted and rows):
        return {}
    for kind, prompts in {"none": own.prompts, **pair.hinted}.items():
        asked = [prompts[i] for i in rows]
        responses, _ = sample_responses(
            model, asked, pair.max_new_tokens, pair.tokenizer.eos_token, seed=seed, temperature=0.0
        )
        examples, completions = [own.examples[i] for i in rows], complete(pair.tokenizer, responses)
        found[f"hint_{kind}"] = pair.task.corpus_score(examples, completions)
    return found


def peak_rate(row, args):
    """The peak learning rate of a method: --lr, or the size's times the row's own."""
    return args.lr or args.default_lr * row.rate


def make_run(pair, args, seed, log=None, report=lambda line: None, checkpointer=None, **shown):
    """What the flags say of one student's training, as a training.Run; `shown` are its `show`, `tell` and `label`."""
    same = (
        "steps batch_size weight_decay reduction accept_top_k micro_batch recompute compile precision cache_teacher "
        "log_every"
    )
    return Run(
        **{name: getattr(args, name) for name in same.split()},
        lr=args.lr or args.default_lr,
        seed=seed,
        max_new_tokens=pair.max_new_tokens,
        eos_token=pair.tokenizer.eos_token,
        sampling=arguments.sampling_options(args),
        chunk_loss=args.chunk_loss == "yes",
        validate=functools.partial(validation, pair),
        reward=functools.partial(scores, pair),
        domains=[pair.task.part(example) for example in pair.train.examples],
        pretraining_lr=args.settings.teacher_lr,
        hinted=pair.hinted and pair.hinted | {"sibling": functools.partial(hint_of, pair)},
        log=log,
        report=report,
        checkpointer=checkpointer,
        **shown,
    )


def state_identity(shared, header, steps):
    """What a saved state must have in common with the run that goes on from it: a dict of plain values. A row's prose
    may be reworded in between, its other columns may not."""
    identity = shared["flags"] | {name: shared[name] for name in ("fingerprint", "inputs", "accept_top_k", "processes")}
    identity |= {name: header[name] for name in ("variant", "seed", "budget")}
    return identity | {"row": records.without_prose(header["row"]), "steps": steps, "torch": str(torch.__version__)}


def load_unchanged_pair(args, folder, shared, device):
    """The cached pair of a run. ValueError where code, data or pair have changed since the program was started."""
    again = "the program was started: start it again, with another --out"
    for source, digest in shared["sources"].items():
        if LOADED[source] != digest:
            raise ValueError(f"{source} has changed since {again}")
    if changed := records.changed_files(shared["inputs"], inputs_of(args)):
        raise ValueError(f"{changed} since {again}")
    cached = {"report": lambda _: None, "otherwise": [Path(folder) / "pairs"]}
    pair = pairs.load_or_pretrain_pair(load_data(args), args.settings, device, **cached)
    if pair.fingerprint != shared["fingerprint"]:
        raise ValueError(f"the cached pair has changed since {again}")
    return pair


def lines_about(name, row, figures, costs, warnings, unheard, quick):
    """What the terminal says of a finished run: one line, and indented ones. `unheard`: warnings of the run that were
    not printed on the way, or None where all were."""
    told = f"score {figures['score']:.3f}  sampled {figures['score_sampled']:.3f}"
    told = "done" if quick else told  # a smoke run's numbers would look like an order
    notes = [f"warning: {text}" for text in (unheard or []) + warnings]
    if unheard is not None:
        notes = checks.about_module(getattr(row, "module", None), costs.get("initial_drift")) + notes
    return "\n  ".join([f"{short_name(name, 50):<24} {told}  {costs['seconds']:.0f} s", *notes])


def run_one(distill, row, args, folder, shared, variant, seed, budget, steps):
    """One method with one pair and seed, from the cache to its record and final student; -> a line about it.

    `variant` is its label: the method's name and, after blanks, the values that were swept.

    distill(row, student, teacher, prompts, responses, run) trains the student in place and returns (costs, adapted
    teacher or None); everything around it is the same for every method.
    """
    if args.device_type == "cpu" or args.jobs > 1:
        torch.set_num_threads(1)  # same numbers for every --jobs
    device = processes.join(torch.device(args.device_type))
    if device.type == "cuda":
        gc.collect()  # what is left of the run before would count as this one's memory
    pair = load_unchanged_pair(args, folder, shared, device)
    changes = {
        "steps": steps or args.steps,
        "lr": peak_rate(row, args),
        "chunk_loss": arguments.chunks_its_loss(args, pair.tokenizer.n_vocab),
    }
    name, here = run_name(variant, shared["pair"], seed, budget), argparse.Namespace(**vars(args) | changes)
    header = {
        "variant": variant,
        "seed": seed,
        "budget": budget,
        "sets_budget": variant == report.COMPARISONS[shared["script"]][1],
        "row": dataclasses.asdict(row),
        "lr": here.lr,
    }
    first, machine = processes.rank_and_size()[0] == 0, folders.describe_machine(device)  # the first one writes
    say = processes.print_line if args.jobs == 1 and first else lambda _: None
    identity = state_identity(shared, header, here.steps)
    every = args.save_every or max(1, here.steps // 8)
    stem, log = str(Path(folder) / name), records.NoLog()
    sources = shared["sources"]
    checkpointer = checkpoints.Checkpointer(
        stem, every, identity, processes.print_line, machine | {"sources": sources}, sources
    )
    try:
        if first:
            log = records.RunLog(folder, name, shared | header | machine)
        pairs.warm_up(pair, here.batch_size)
        student = pair.new_student()
        with checkpointer:
            show = functools.partial(held_out.held_out_rollouts, pair, args.accept_top_k)
            show = show if seed == args.seed and budget == "steps" else None  # of a pair's first seed
            label = getattr(args, "place", "") + short_name(variant, 24)
            shown = {"show": show, "label": label, "tell": now_and_then(say, label)}
            run = make_run(pair, here, seed, log, say, checkpointer, **shown)
            costs, adapted = distill(row, student, pair.teacher, pair.train.prompts, pair.train.responses, run)
        started = time.perf_counter()
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
        costs["seconds_by_stage"]["final_evaluation"] = time.perf_counter() - started
        named = {"variant": variant, "seed": seed, "score": figures["score"]}
        if first:
            save_checkpoint(f"{stem}.pt", student, pair.tokenizer.state_dict(), **named, **about(pair, args))
            if isinstance(adapted, OnlineTeacher):
                save_online_module(f"{stem}.module.pt", adapted, **named)
        told = [json.loads(line) for line in log.text.splitlines()]  # nothing in all processes but the first
        before = [line["text"] for line in told if line["kind"] == "warning"]
        rule = row.sampling.get("accept_rule", args.accept_rule)
        step_lines = [line for line in told if line["kind"] == "step"]
        warnings = checkpointer.warnings + checks.about_run(row.writer, rule, step_lines, figures)
        log.write("final", **figures, **costs, warnings=before + warnings)
        if first:  # the states of all processes: none may go before the final line is there
            checkpointer.forget()
    finally:
        log.close()
    unheard = before if args.jobs > 1 else None
    return lines_about(name, row, figures, costs, warnings, unheard, shared["quick"])


# ---------------------------------------------------------------------------------------------------------------------
# 3. All of them.


def longest_name(label, args):
    """The longest name that a run of this method may get."""
    return run_name(label, args.pair_seed + args.pairs, args.seed + args.pairs + args.seeds, "compute")


def resolve_vocabulary(data, every):
    """K where no flag gave it, for `every` set of flags; ValueError for what the vocabulary is too small for."""
    vocabulary = data.tokenizer.n_vocab
    for own in every:
        if own.accept_top_k is None:
            own.accept_top_k = pairs.default_accept_top_k(data.vocabulary_in_use)
        if own.accept_top_k > vocabulary:
            raise ValueError(
                f"--accept-top-k must lie in 0..{vocabulary} (this tokenizer's vocabulary), found {own.accept_top_k}"
            )
        check_best(own.cache_teacher or 0, vocabulary)


def without_unfit(methods, args, data, check_row, variants):
    """The methods [(label, flags)] without those of `variants` that cannot work with these flags, which a note names;
    ValueError where such a one was asked for by its name."""
    left_out, examples = set(), len(data.splits["train"].first(args.settings.student_prompts).prompts)
    for label, own in methods:
        try:
            arguments.check_hint(label.split()[0], variants[label.split()[0]].hint, own)
            check_row(label.split()[0], own, examples)
        except ValueError as error:
            if args.variants not in ("main", "all"):
                raise
            processes.print_line(f"note: left out: {error}")
            left_out.add(label)
    return [(label, own) for label, own in methods if label not in left_out]


def say_data(args, data):
    """What is learned, in how many examples and tokens."""
    sizes = {name: len(split.prompts) for name, split in data.splits.items()}
    processes.print_line(
        f"task {args.task}: {sizes['train']} train, {sizes['val']} val, {sizes['test']} test, "
        f"{sizes['ood']} ood examples"
        + (f" ({data.dropped} longer than the block left out)" if data.dropped else "")
    )
    processes.print_line(
        f"tokenizer: {data.tokenizer.n_vocab} tokens, {data.vocabulary_in_use} in use; "
        f"block of {data.block_size}, at most {data.max_new_tokens} new tokens; "
        f"K = {args.accept_top_k}, gamma = {args.gamma or 'auto'}"
    )
    if args.task in corpora.CORPORA:
        processes.print_line(f"data: {corpora.corpus_note(args.task, args.data_dir)}")
        for line in pairs.about_choice(data, args.settings, args.batch_size, args.measure):
            processes.print_line(line)
    if data.task.metric_note:
        processes.print_line(data.task.metric_note)


def open_folder(held, script, args, flags, inputs, longest, variants):
    """The folder of the comparison, locked until `held` ends, without what killed processes have left.

    ValueError where another process is at work in it, where it takes no file with the name of the `longest` run, or
    where its records are of other flags, data or rows of `variants`: a table must not mix them.
    """
    default_name = f"{script.removeprefix('train_')}-{args.task}{'-quick' if args.quick else ''}"
    folder = folders.make_run_folder(args.out, args.resume, default_name)
    if not held.enter_context(folders.locked(folder / ".lock", wait=False)):
        raise ValueError(f"another process is at work in {args.out or folder.name}: wait for it, or give another --out")
    if error := folders.name_error(folder, f"{longest}.assistant.state.before.pt.{os.getpid()}.partial"):
        raise ValueError(f"{folder} takes no file called {longest[:60]}.. ({error.strerror}): give a shorter --out")
    for path in folder.glob("*.pt.*.partial"):  # of a process that was killed while it wrote
        if re.search(r"\.pt\.\d+\.partial$", path.name):
            path.unlink()
    kept = sorted(folder.glob("*.jsonl"))
    if args.resume and not [*kept, *folder.glob("*.state*.pt")]:
        processes.print_line(f"nothing to resume in {args.out or folder.name}: starts anew")
    for path in kept:
        records.read_finished(folder, path.stem, flags, inputs, script, variants)
    return folder


def prepare_pair(args, folder, say=processes.print_line):
    """The pair of these flags, from the cache or pretrained, and what it starts from: the figures of its teacher and of
    its untouched student, which are saved in the folder, too -> what the records of the pair's runs say of it, a dict.

    `say` hears how pretraining goes.
    """
    device = processes.join(torch.device(args.device_type))
    data, otherwise = load_data(args), [folder / "pairs"]

    def load():
        return pairs.load_or_pretrain_pair(data, args.settings, device, report=say, otherwise=otherwise)

    pair = processes.first_then_others(load)  # pretrained once
    processes.use_precision(args.precision, device)  # what the students will be measured with
    measure = {"gamma": args.gamma, "accept_top_k": args.accept_top_k, "seed": args.pair_seed, "ood": pair.ood}
    start = {"pair": args.pair_seed, "fingerprint": pair.fingerprint}
    start["pretraining_seconds"] = pair.pretraining_seconds
    models = {"teacher": (pair.teacher, None), "student_start": (pair.new_student().eval(), pair.teacher)}
    for name, (model, judge) in models.items():
        start[name] = {"parameters": model.num_parameters()}
        start[name] |= evaluate(model, judge, pair.task, pair.tokenizer, pair.test, pair.max_new_tokens, **measure)
        start[name] |= scores_by_hint(pair, model, args.pair_seed)
        if processes.rank_and_size()[0] == 0:
            path, tokenizer = str(folder / f"{name}_pair{args.pair_seed}.pt"), pair.tokenizer.state_dict()
            save_checkpoint(path, model, tokenizer, score=start[name]["score"], **about(pair, args))
    start["start_warnings"] = list(data.task.metric_warnings)
    if not args.quick:
        found = checks.about_start(start["teacher"], start["student_start"], args.task in tasks.FAMILIES)
        start["start_warnings"] += found
    return start


def prepare_silently(args, folder):
    """prepare_pair in a process of its own, beside others."""
    if args.device_type == "cpu":
        torch.set_num_threads(1)
    return prepare_pair(args, folder, say=lambda line: None)


def prepare_pairs(args, folder):
    """prepare_pair for each of --pairs, --jobs at a time; each is told when it is there -> their dicts, in order."""
    todo, starts = [of_pair(args, args.pair_seed + number) for number in range(args.pairs)], {}

    def tell(start):
        if isinstance(start, str):  # of one that failed
            return
        starts[start["pair"]] = start
        for name in ("teacher", "student_start"):
            label = f"{name} of pair {start['pair']}" if args.pairs > 1 else name
            processes.print_line(
                f"{label:<24} score {start[name]['score']:.3f}  sampled {start[name]['score_sampled']:.3f}  "
                f"{start[name]['parameters']:,} parameters"
            )
        for text in start["start_warnings"]:
            processes.print_line(f"  warning: {text}")

    if len(todo) == 1 or args.jobs == 1:
        for own in todo:
            try:
                tell(prepare_pair(own, folder))
            except ValueError as error:
                if len(todo) == 1:
                    raise
                raise ValueError(f"pair {own.pair_seed} failed: {error}") from error
    else:
        jobs = min(args.jobs, len(todo))
        processes.print_line(f"{len(todo)} pairs are pretrained (or read from the cache), {jobs} at a time")
        failures = processes.run_all(prepare_silently, [(own, folder) for own in todo], jobs, tell)
        for (own, _), line in failures:
            raise ValueError(f"pair {own.pair_seed} failed: {line}")
    return [starts[own.pair_seed] for own in todo]


def tell_end(script, folder, flags, seconds):
    """Write what comes out of a folder's records, and print the short of it."""
    if not any(records.read_finished(folder, path.stem, flags) for path in folder.glob("*.jsonl")):
        processes.print_line(
            f"{seconds:.0f} s in all; no table, since no run has finished; the records lie in {near(folder)}"
        )
        return
    report.write_report(folder)
    runs, _ = read_runs(folder)
    if text := ending(runs, *report.COMPARISONS[script], in_color()):
        print(f"\n{text}")
    processes.print_line(f"\n{seconds:.0f} s in all; the page: {near(folder / 'report.html')}")
    processes.print_line("all figures: table.md beside it, with curves.svg, summary.json, records and students")


def near(path):
    """A path as short as it can be typed here."""
    path, here = Path(path).absolute(), Path.cwd()
    return str(path.relative_to(here) if path.is_relative_to(here) else path)


def compare(script, args, names, variants, run_one, check_row):
    """All methods, in a folder that no other process is at work in; see compare_in."""
    with contextlib.ExitStack() as held:
        return compare_in(held, script, args, names, variants, run_one, check_row)


def compare_in(held, script, args, names, variants, run_one, check_row):
    """Task, pairs, every method with every pair and seed, table. Returns 0 only when every run finished.

    run_one(args, folder, shared, variant, seed, budget, steps) must be a function at a module's top level: with --jobs
    it is called in processes of its own. check_row(name, args, examples) raises ValueError for a method that cannot
    work with these flags and so many of the student's prompts. `held` is an ExitStack, which takes the folder's lock.
    """
    if args.list_variants:
        print(json.dumps({name: dataclasses.asdict(row) for name, row in variants.items()}, indent=2))
        return 0
    # What is run: (label, flags), the label being the method's name and the values that were swept for it.
    methods = [(f"{name}{label}", own) for name in names for label, own in args.swept]
    started = time.perf_counter()
    device = processes.join(torch.device(args.device_type))
    rank, size = processes.rank_and_size()
    smallest = min(own.batch_size for own in [args, *(own for _, own in methods)])
    if smallest < size:
        raise ValueError(f"--batch-size {smallest} leaves some of {size} processes without a row: raise it")

    for label, _ in methods:
        if len(longest_name(label, args).encode()) > 200:  # 255 with what states are called
            raise ValueError(
                f"a run would be called {label[:60]}...: too long for the name of a file, sweep less at a time"
            )
    for note in args.notes:
        processes.print_line(note)

    # 1. Task, tokenizer, pair. All that can be refused is refused before anything is written or trained.
    data = load_data(args, say=lambda line: processes.print_line(f"data: {line}"))
    resolve_vocabulary(data, [args, *(own for _, own in methods)])
    methods = without_unfit(methods, args, data, check_row, variants)
    if any(own.compile for own in [args, *(own for _, own in methods)]):
        processes.print_line("--compile: trying the compiler")
        processes.check_compiler(device)
    say_data(args, data)
    if device.type == "cuda" and args.jobs > 1:
        processes.print_line(arguments.check_room(args, data, methods, variants))
    flags = arguments.result_flags(args)
    inputs = inputs_of(args)
    longest = max((longest_name(label, args) for label, _ in methods), key=len, default="")
    folder = processes.first_decides(lambda: open_folder(held, script, args, flags, inputs, longest, variants))
    torch.set_num_threads(1 if device.type == "cpu" else torch.get_num_threads())

    # 2. Where the comparison starts: every pair, its teacher and its untouched student.
    starts = prepare_pairs(args, folder)
    shared = {  # what the header of every record says
        "script": script,
        "task": args.task,
        "metric": data.task.metric,
        "order": list(dict.fromkeys([*variants, *(label for label, _ in methods)])),
        "flags": flags,
        "quick": args.quick,
        "jobs": args.jobs,
        "processes": size,
        "vocabulary_in_use": data.vocabulary_in_use,
        "accept_top_k": args.accept_top_k,
        "inputs": inputs,
        "sources": {name: LOADED[name] for name in (*SOURCES, f"{script}.py")},
    }
    headers = [shared | start for start in starts]

    # 3. Every method with every pair and seed.
    if device.type == "cuda" and args.jobs > 1:
        torch.cuda.empty_cache()  # other processes need what pretraining and measuring has left
    failed, asked = {}, []  # name of a run -> what it failed with
    for budget in ("steps", "compute") if args.equal_compute else ("steps",):
        todo = processes.first_decides(lambda budget=budget: missing_runs(folder, args, methods, headers, budget))
        asked += todo
        for number, task in enumerate(todo, 1):
            task[0].place = f"[{number}/{len(todo)}] "  # before its name on the screen
        with Progress(folder, todo, args.jobs) as progress:
            failures = processes.run_all(run_one, todo, args.jobs, progress.say, progress.watch)
        failed |= {name_of(task): line for task, line in failures}

    # 4. What came out.
    if rank == 0:
        for name in map(name_of, asked):
            if name not in failed and records.read_finished(folder, name, flags) is None:
                failed[name] = "its record is gone: run the same command with --resume"
        for name, line in failed.items():
            print(f"{script}.py: run {name} failed: {line}", file=sys.stderr)
        tell_end(script, folder, flags, time.perf_counter() - started)
    if args.quick:
        processes.print_line("This was --quick, a smoke run: its numbers mean nothing.")
    processes.leave()
    return 1 if failed else 0
