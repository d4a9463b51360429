"""From the words on a command line to checked arguments.

    parse          words -> args and names of methods, one set of args per combination of swept values
    ignored_sampling_reason, and `ignored_reason` of each script: why a flag changes nothing about how a method is
    trained
    check_room     whether runs side by side fit a GPU

Every number has a range (command_line.RANGES), which is checked before anything is run.
"""

import contextlib
import dataclasses
import difflib
import sys

import torch

from data import tasks
from lab import pairs, processes, report
from lab.command_line import EVALUATION_FLAGS, MOST, NEUTRAL_FLAGS, PAIR_FLAGS, RANGES, TASK_FLAGS, with_aliases
from lab.costs import memory_of_run
from model import GPTConfig
from sample import RANKED, SMALLEST_DIVISOR, STUDENT_DRAWS, TEACHER_DRAWS, WRITERS, check_rule


def parse(parser, argv, variants, main_variants, script, ignored_reason):
    """Command line -> (args with everything resolved that needs no data, names of the methods).

    args.swept holds one pair (label, args) per combination of swept values, or one with an empty label; args.notes
    lines for the user. ignored_reason(flag, name, args) says why a flag changes nothing about how a method is trained,
    None where it does.
    """
    argv, parser = sys.argv[1:] if argv is None else list(argv), with_aliases(parser)
    args, names = parse_once(parser, argv, variants, main_variants, script)
    args.swept, sweeps = [("", args)], {}
    for text in args.sweep:
        flag, _, values = text.partition("=")
        if not flag or not all(values.split(",")) or text.split() != [text]:
            raise ValueError(f"--sweep takes FLAG=VALUE,VALUE,.. such as lr=1e-3,5e-3; found {text!r}")
        if parser.dest_of(flag) in sweeps:
            raise ValueError(f"--sweep {text} sweeps --{flag} a second time: write all its values into one --sweep")
        sweeps[parser.dest_of(flag)] = text
        args.swept = [
            (f"{label} {flag}={value}", [*(words if isinstance(words, list) else argv), *parser.words_of(flag, value)])
            for label, words in args.swept
            for value in dict.fromkeys(values.split(","))
        ]
    if args.sweep and args.equal_compute:
        raise ValueError("--equal-compute has one budget for all runs, --sweep several: run the script once per value")
    if args.sweep:
        args.swept = [
            (label, parse_once(parser, words, variants, main_variants, script)[0]) for label, words in args.swept
        ]
        # log_every: what is logged, not what is trained. What was typed before what it comes to.
        fixed = sorted(NEUTRAL_FLAGS | {"quick", "size", "log_every", "student_width", *TASK_FLAGS, *PAIR_FLAGS}) + [
            "settings",
            "task_options",
        ]
        for label, other in args.swept:
            for name in fixed:
                if name != "swept" and getattr(other, name, None) != getattr(args, name, None):
                    raise ValueError(
                        f"--sweep{label} would change --{name.replace('_', '-')}, which all runs of a table share: "
                        "run the script once per value"
                    )
    check_sweeps(args, sweeps, names, ignored_reason)
    typed = {flag: value for flag, value in vars(parser.parse_args(argv)).items() if value != parser.get_default(flag)}
    args.notes = check_typed(args, typed, names, variants, ignored_reason)
    if note := processes.device_note(args.device, args.device_type):
        args.notes.append(note)
    if args.data_dir is not None and args.task in tasks.FAMILIES:
        args.notes.append(
            f"note: --data-dir is not read, --task {args.task} is made here (your own data: --task jsonl)"
        )
    return args, names


def check_sweeps(args, sweeps, names, ignored_reason):
    """ValueError where a sweep (flag -> its text) would be one run, repeated: by a method that trains the same whatever
    the flag says, even if it is measured otherwise, or by two values that are the same number."""
    done = {}
    for label, own in args.swept:
        for flag, text in sweeps.items():
            for name in names:
                if why := ignored_reason(flag, name, own):
                    raise ValueError(
                        f"--sweep {text} is ignored by {name}, which {why}: "
                        f"leave {name} out of --variants, or this sweep"
                    )
        values = [getattr(own, flag) for flag in sweeps]
        for other, those in done.items():
            if values == those:
                raise ValueError(f"--sweep{label} is the same run as{other}: write each value once")
        done[label] = values


def check_typed(args, typed, names, variants, ignored_reason):
    """ValueError where a flag that was typed (name -> value) reaches no method -> lines about those that reach some
    only."""
    notes = []
    for flag, value in typed.items():
        if flag in EVALUATION_FLAGS:
            continue
        missed = {name: [ignored_reason(flag, name, own) for _, own in args.swept] for name in names}
        missed = {name: reasons[0] for name, reasons in missed.items() if all(reasons)}
        if not missed:
            continue
        value = "dense" if (flag, value) == ("cache_teacher", 0) else "" if value is True else value
        told = " ".join(f"--{flag.replace('_', '-')} {value}".split())  # on one line, whatever was typed
        listed = ", ".join(list(missed)[:5]) + (f" and {len(missed) - 5} more" if len(missed) > 5 else "")
        whys = set(missed.values())
        if len(whys) == 1:
            listed += f" ({whys.pop()})"
        if len(missed) < len(names):
            notes.append(f"note: {told} is ignored by {listed}")
            continue
        others = [name for name in variants if not ignored_reason(flag, name, args)]
        add = f", or add e.g. {others[0]} to --variants" if others else ""
        raise ValueError(f"{told} is ignored by all of {listed}: leave it out{add}")
    return notes


def first_reason(flag, table):
    """The first `why` that concerns a flag, of rows (flags, whether it is so, why); or None."""
    return next((why for flags, is_so, why in table if flag in flags and is_so), None)


def ignored_sampling_reason(flag, writer, own, args):
    """Why a sampling flag changes neither a token nor a mark of a row with this writer, whose `own` options override
    the flags; None where it may."""
    said = vars(args) | own
    rule, replace, both = said["accept_rule"], said["replace"], writer == "interleaved"
    raw = said["accept_on"] == "raw"  # else the teacher's temperature and nucleus decide what is accepted, too
    reached = [name for name, row in WRITERS.items() if flag in row.flags]
    table = (
        (STUDENT_DRAWS, writer not in reached, "trains on no student samples"),
        ((flag,), reached and writer not in reached, f"does not write {' or '.join(reached)}"),
        (own.keys() - {"accept_top_k", "trust_region"}, True, "fixes it itself"),  # those two multiply the flag's
        (("rule",), "accept_rule" in own, "fixes the accept rule itself"),
        (("accept_top_k",), rule not in RANKED and replace != "sample_topk", "has an accept rule without a K"),
        (("teacher_temperature", "teacher_top_p"), replace == "argmax" and raw, "takes the teacher's argmax"),
        (("teacher_top_p",), replace == "sample_topk" and raw, "draws from the teacher's K best"),
        (TEACHER_DRAWS, (rule == "all" or args.no_write_back) and raw, "writes no replacement"),
        (("no_write_back", "judge_fresh"), rule == "all", "rejects nothing"),
        (("judge_fresh",), rule == "none", "accepts nothing"),
        (STUDENT_DRAWS, both and rule == "none" and not args.no_write_back, "keeps no drafted token"),
        (
            ("accept_on",),
            args.teacher_top_p is None and args.teacher_temperature == 1,
            "sets neither --teacher-top-p nor --teacher-temperature",
        ),
        (("student_top_p", "judge_fresh"), args.student_temperature == 0, "draws at temperature 0"),
        (("teacher_top_p", "replace"), args.teacher_temperature == 0, "draws at temperature 0"),
    )
    return first_reason(flag, table)


def parse_once(parser, argv, variants, main_variants, script):
    """The words of one command line -> (args, names of the methods); see parse."""
    args = parser.parse_args(argv)
    names, main_method = check_shared_flags(args, variants, main_variants), report.COMPARISONS[script][1]
    args.rule = parse_rule(args.rule)
    if hasattr(args, "loss_args"):
        args.loss_args = parse_keywords(args.loss_args)
    if args.equal_compute and main_method not in names:
        raise ValueError(f"--equal-compute measures in units of {main_method}: add it to --variants")
    if args.accept_on == "warped" and args.teacher_temperature == 0:
        raise ValueError("--accept-on warped divides by --teacher-temperature: give one above 0, or --replace argmax")
    check_rule(args.accept_rule, args.replace, args.accept_on, args.gamma, args.accept_top_k or 0, args.rule)
    args.device_type = processes.pick_device(args.device).type
    if processes.started_by_torchrun() and args.jobs not in (None, 1):
        raise ValueError("--jobs runs methods side by side, torchrun lets processes share each: leave one of them out")
    args.jobs = args.jobs or processes.default_jobs(args.device_type)
    size = dict(pairs.SIZES[args.size])
    default_steps, default_lr, args.task_options = size.pop("steps"), size.pop("lr"), {}
    if args.quick:  # every stage, as short as it can be
        default_steps = 40
        size |= {name: getattr(pairs.QUICK, name) for name in ("teacher_steps", "start_steps", "student_prompts")}
        args.task_options = pairs.QUICK_TASK if args.task in tasks.FAMILIES else {}
    args.steps, args.default_lr = args.steps or default_steps, default_lr
    given = {name: getattr(args, name) for name in PAIR_FLAGS}
    size |= {name: value for name, value in given.items() if value is not None}
    if args.student_width is not None:
        layers, heads, _ = size["student_shape"]
        if args.student_width % heads:
            raise ValueError(f"--student-width must divide into {heads} heads, found {args.student_width}")
        size["student_shape"] = (layers, heads, args.student_width)
    args.settings = pairs.PairSettings(**size, seed=args.pair_seed)
    pretraining = max(args.settings.teacher_steps, args.settings.start_steps) * args.settings.batch_size
    prompts = max(args.steps * args.batch_size, pretraining)
    if prompts > MOST:  # their order is drawn before the first step, and held in memory
        raise ValueError(
            "--steps (or --teacher-steps, --start-steps) times the batch size must be at most "
            f"{MOST:,}, found {prompts:,}"
        )
    if args.settings.student_prompts == 0:
        args.settings = dataclasses.replace(args.settings, student_prompts=None)
    return args, names


def parse_rule(text):
    """ "accept_min_prob=0.1" -> {"accept_min_prob": 0.1}; ValueError for anything else."""
    try:
        pairs_of = [part.split("=") for part in text.split(",")] if text else []
        knobs = {knob: float(value) for knob, value in pairs_of}
        if len(knobs) < len(pairs_of):
            raise ValueError("a knob stands twice")
        return knobs
    except ValueError as error:
        raise ValueError(f"--rule takes KNOB=NUMBER, e.g. accept_min_prob=0.1; found {text!r}") from error


def parse_keywords(text):
    """ "beta=0.3,baseline=true" -> {"beta": 0.3, "baseline": True}: numbers, true, false and names; ValueError for
    anything else."""
    words = [part.partition("=") for part in text.split(",")] if text else []
    if not all(key.isidentifier() and value for key, _, value in words) or len({key for key, *_ in words}) < len(words):
        raise ValueError(f"--loss-args takes K=V,K=V, e.g. beta=0.3, each once; found {text!r}")

    def plain(value):
        for kind in (int, float):
            with contextlib.suppress(ValueError):
                return kind(value)
        return {"true": True, "false": False}.get(value, value)

    return {key: plain(value) for key, _, value in words}


def sampling_options(args):
    """The flags of the sampling group as training.Run takes them: keywords of sample.write_tokens, and the accept
    rule's knobs."""
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
        },
        "trust_region": args.trust_region,
        "rule": args.rule,
    }


LARGE_VOCABULARY = 2**14  # from here on --chunk-loss auto is yes


def chunks_its_loss(args, vocab_size):
    """yes or no: what --chunk-loss comes to."""
    if args.chunk_loss == "auto":
        return "yes" if vocab_size >= LARGE_VOCABULARY else "no"
    return args.chunk_loss


def check_room(args, data, methods, variants):
    """A line on what --jobs runs take of the GPU; ValueError where that is more than what is free.

    methods: (label, flags) of each; variants: name -> row.
    """
    vocabulary, shapes = data.tokenizer.n_vocab, (args.settings.student_shape, args.settings.teacher_shape)
    student, teacher = (GPTConfig(vocabulary, data.block_size, *shape) for shape in shapes)
    needed, jobs = 0, min(args.jobs, len(methods) * args.seeds * args.pairs)
    for label, own in methods:
        learns = getattr(variants[label.split()[0]], "module", None) is not None
        rows, chunked = min(own.micro_batch or MOST, own.batch_size), chunks_its_loss(own, vocabulary) == "yes"
        needed = max(needed, memory_of_run(student, teacher, own.batch_size, rows, learns, chunked))
    free, total = torch.cuda.mem_get_info()
    found = (
        f"--jobs {jobs}: a run may need {needed / 1e9:.1f} GB, and {free / 1e9:.1f} of {total / 1e9:.1f} GB are free "
        f"on {torch.cuda.get_device_name()}"
    )
    if jobs * needed <= free:
        return found
    raise ValueError(f"{found}: use --jobs {max(1, int(free // needed))}, or take less at a time by --micro-batch")


def check_cache(args):
    """ValueError where --cache-teacher would change what it keeps."""
    for own in [args, *(own for _, own in args.swept)]:
        if own.cache_teacher and getattr(own, "temperature", 1.0) != 1.0:
            raise ValueError(
                f"--cache-teacher {own.cache_teacher} keeps all other tokens as one class, "
                "which no --temperature can soften (its tokens are gone): use --cache-teacher dense, or --temperature 1"
            )


def check_hint(name, hint, args):
    """ValueError where a method's teacher reads a hint, and the pair is not to know any."""
    if hint and not args.settings.hint_share:
        raise ValueError(
            f"the teacher of {name} reads a hint, which a pair must have seen in pretraining: give --hint-share 0.5, "
            "or leave it out of --variants"
        )


def check_shared_flags(args, variants, main_variants):
    """The list of methods asked for; raises ValueError with one line for the first flag out of range."""
    names = {"main": list(main_variants), "all": list(variants)}.get(args.variants) or args.variants.split(",")
    for name in names:
        if name not in variants:
            close = difflib.get_close_matches(name, variants, 3)
            nearest = f"did you mean {' or '.join(close)}? " if close else ""
            every = (
                f"--list-variants shows all {len(variants)}"
                if len(variants) > 10
                else f"there are {', '.join(variants)}"
            )
            raise ValueError(f"unknown variant {name!r}: {nearest}{every}")
    check_ranges(args)
    for flag in ("out", "data_dir"):
        if getattr(args, flag) == "":  # an empty variable of the shell; it would mean the folder that one is in
            raise ValueError(f"--{flag.replace('_', '-')} must name a folder, found nothing: use . for this one")
    return list(dict.fromkeys(names))


def check_ranges(args):
    """Raise ValueError with one line for the first number of `args` that lies outside RANGES."""
    for flag, (low, high) in RANGES.items():
        value = getattr(args, flag, None)
        if value is not None and not low <= value <= high:  # nan is in no range
            bounds = f"be at least {low:g}" if value < low and high >= MOST else f"lie in {low:g}..{high:g}"
            raise ValueError(f"--{flag.replace('_', '-')} must {bounds}, found {value}")
        if flag in ("student_temperature", "teacher_temperature") and value and value < SMALLEST_DIVISOR:
            least = f"be 0 (greedy) or at least {SMALLEST_DIVISOR:g}, which float32 can divide by"
            raise ValueError(f"--{flag.replace('_', '-')} must {least}, found {value}")


def result_flags(args):
    """The flags that decide a result, without folders: what --resume compares and a record keeps."""
    flags = {name: value for name, value in sorted(vars(args).items()) if name not in NEUTRAL_FLAGS}
    return flags | {"settings": settings_of_all(args)}


def settings_of_all(args):
    """What all pairs of a comparison have in common: their settings without the seed, a dict."""
    return {name: value for name, value in dataclasses.asdict(args.settings).items() if name != "seed"}
