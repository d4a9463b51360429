"""The command line of both scripts: what they share, what is refused, and which flag reaches which method.

    make_parser    the flags of both scripts; each adds its own
    parse          words -> args and names of methods, one set of args per combination of swept values
    ignored_sampling_reason, and `ignored_reason` of each script: why a flag changes nothing about how a method is
    trained

Every number has a range (RANGES), which is checked before anything is run.
"""

import argparse
import contextlib
import dataclasses
import difflib
import sys

from data import tasks
from lab import pairs, processes, report
from sample import (
    ACCEPT_RULES,
    RANKED,
    REPLACE_RULES,
    STUDENT_DRAWS,
    TEACHER_DRAWS,
    WRITERS,
    check_rule,
    knobs_of,
)

# Flags that decide where and how a run is done, but not what comes out of it.
NEUTRAL_FLAGS = {
    "device",
    "out",
    "data_dir",
    "resume",
    "jobs",
    "seeds",
    "seed",
    "variants",
    "list_variants",
    "equal_compute",
    "sweep",  # a swept value is part of the run's name
    "swept",
    "notes",
    "save_every",
}

# What a number on the command line may be; a script that has no such flag is not asked.
MOST = 10**9

RANGES = {
    "seeds": (1, 10**4),
    **dict.fromkeys(("steps", "batch_size", "jobs", "teacher_steps", "start_steps", "teacher_prompts"), (1, MOST)),
    **dict.fromkeys(("train_examples", "measure", "log_every", "save_every", "rows"), (1, MOST)),
    **dict.fromkeys(("seed", "pair_seed", "student_prompts", "accept_top_k"), (0, MOST)),
    "micro_batch": (1, MOST),
    "gamma": (1, 64),  # longer drafts are thrown away at the first rejection
    "block_size": (2, 2**20),
    "lr": (1e-12, 100),
    "weight_decay": (0, 100),
    **dict.fromkeys(("student_temperature", "teacher_temperature"), (0, 1000)),  # 0 is greedy
    **dict.fromkeys(("student_top_p", "teacher_top_p"), (1e-6, 1)),
    **dict.fromkeys(("alpha", "student_kd", "module_start"), (0, 1)),
    **dict.fromkeys(("module_scale", "module_lr", "anchor"), (0, 1000)),  # a rate of 0: the teacher stands still
    "module_rank": (1, 4096),
    "temperature": (1e-3, 1000),
    "teacher_mix": (1e-6, 1 - 1e-6),
}


# Another name of a flag -> the flag. Both mean the same for good; --help shows both.
ALIASES = {
    "draft_length": "gamma",
    "eval_examples": "measure",
    "accept_args": "rule",
    "replacement": "replace",
    "phrasing_randomness": "entropy",
    "second_style_share": "hard_share",
    "word_problems": "stories",
    "parallel_runs": "jobs",
    "activation_checkpointing": "recompute",
    "chunk_logits": "chunk_loss",
    "module_lr_ratio": "module_lr",
    "module_frozen_fraction": "module_start",
    "kd_weight": "student_kd",
    "update_order": "update",
    "first_seed": "seed",
    "pretrain_seed": "pair_seed",
}
# What --help shows; --help-all shows the rest as well.
FIRST_FLAGS = ("variants", "task", "data_dir", "size", "steps", "quick", "seeds", "device", "out", "resume",
               "accept_top_k", "alpha", "module", "module_lr", "loss", "help")  # fmt: skip


class Parser(argparse.ArgumentParser):
    """argparse with errors in one line instead of a screen of usage, without abbreviations, and with a short --help."""

    def __init__(self, short_help=(), **options):
        super().__init__(
            allow_abbrev=False, add_help=False, formatter_class=argparse.RawDescriptionHelpFormatter, **options
        )
        self.short_help = short_help
        self.add_argument("-h", "--help", action="help", help="this page")
        if short_help:
            self.add_argument("--help-all", action=_HelpAll, nargs=0, help="every flag")

    def format_help(self):
        """The page of --help: of the flags in short_help only, where there are so many that this was set."""
        hidden = [
            action for action in self._actions if self.short_help and action.dest not in (*self.short_help, "help_all")
        ]
        texts = [action.help for action in hidden]
        for action in hidden:
            action.help = argparse.SUPPRESS
        try:
            return super().format_help()
        finally:
            for action, text in zip(hidden, texts):
                action.help = text

    def format_full_help(self):
        """The page of --help-all."""
        return super().format_help()

    def dest_of(self, name):
        """A flag's name or alias, as typed without --, -> the name that it has in the code."""
        return ALIASES.get(name.replace("-", "_"), name.replace("-", "_"))

    def error(self, message):
        message = " ".join(message.split())  # what was typed may hold new lines
        self.exit(2, f"{self.prog}: {message} (see python {self.prog} --help)\n")


class _HelpAll(argparse.Action):
    def __call__(self, parser, namespace, values, option_string=None):
        parser.exit(message=parser.format_full_help())


def with_aliases(parser):
    """Give every flag that has one its other name."""
    names = {flag: alias for alias, flag in ALIASES.items()}
    for action in [action for action in parser._actions if action.dest in names]:
        alias = f"--{names[action.dest].replace('_', '-')}"
        action.option_strings.insert(0, alias)
        parser._option_string_actions[alias] = action
    return parser


def add_shared_flags(parser, variants, main_variants, sizes):
    """The flags that mean the same in train_skd.py and train_okd.py, with the same defaults."""
    group = parser.add_argument_group("what to run")
    group.add_argument(
        "--variants", default="main", help=f"comma-separated methods, main ({', '.join(main_variants)}) or all"
    )
    group.add_argument("--list-variants", action="store_true", help="print the table of methods as JSON and exit")
    group.add_argument(
        "--seeds", type=int, default=1, help="runs per method, from --seed on (one seed is a demonstration)"
    )
    group.add_argument(
        "--seed", type=int, default=1, help="first seed: order of the prompts, sampling noise (default: 1)"
    )
    group.add_argument(
        "--quick", action="store_true", help="smoke run: every stage in under a minute; its numbers mean nothing"
    )
    group = parser.add_argument_group("where")
    group.add_argument(
        "--device", default="auto", choices=("auto", "cpu", "cuda", "mps"), help="auto takes cuda, mps, cpu"
    )
    group.add_argument(
        "--out", metavar="DIR", help="folder of the records and final students (default: a new one in runs/)"
    )
    group.add_argument(
        "--resume", action="store_true", help="continue in the same folder: finished runs are not run again"
    )
    group.add_argument("--jobs", type=int, help="runs side by side, one thread each (default: CPU cores; 1 on a GPU)")
    group = parser.add_argument_group("task and pair")
    group.add_argument(
        "--task",
        default="math",
        metavar="NAME",
        help=f"what is learned (default: math): {', '.join(tasks.task_names())}",
    )
    group.add_argument(
        "--data-dir", metavar="DIR", help="where files of real data sets lie (default: download to data/cache)"
    )
    group.add_argument("--size", default="tiny", choices=tuple(sizes), help="preset: models, steps, learning rates")
    group.add_argument("--pair-seed", type=int, default=1, help="seed of the teacher and of the starting student")
    group.add_argument(
        "--student-start", default="sft", choices=("sft", "raw"), help="start from a short SFT, or untuned"
    )
    group.add_argument("--student-prompts", type=int, help="prompts that the student may use (default: 500; 0: all)")
    group.add_argument("--teacher-prompts", type=int, help="prompts that the teacher learns from (default: all)")
    group.add_argument(
        "--teacher-steps", type=int, help="teacher's pretraining steps: its quality (default: by --size)"
    )
    group.add_argument("--start-steps", type=int, help="student's pretraining steps (default: by --size)")
    group.add_argument("--vocab-size", type=int, help="upper bound for the tokenizer (default: by --size)")
    group.add_argument(
        "--block-size", type=int, help="longest sequence; longer examples are left out (default: none is)"
    )
    for knob, kind, meaning in (
        ("difficulty", int, "steps, clauses, turns or operators of an example"),
        ("train-examples", int, "size of the train split"),
        ("entropy", float, "randomness of phrasing in references (0 = none)"),
        ("hard-share", float, "share of references in the rarer style"),
    ):
        group.add_argument(f"--{knob}", type=kind, help=f"{meaning} (synthetic tasks; default: the task's own)")
    group.add_argument("--stories", action="store_true", default=None, help="math as word problems with numbers 0..99")
    group.add_argument("--measure", type=int, metavar="N", help="measure on the first N test examples (default: all)")
    group = parser.add_argument_group("distillation")
    group.add_argument("--steps", type=int, help="student updates (default: by --size)")
    group.add_argument("--batch-size", type=int, default=64, help="prompts per update")
    group.add_argument("--lr", type=float, help="peak learning rate, cosine with 5%% warm-up (default: by --size)")
    group.add_argument(
        "--gamma",
        type=block_length,
        metavar="N|auto",
        help="draft length; changes speed only (default: auto, by the acceptance so far)",
    )
    group.add_argument(
        "--accept-top-k",
        type=int,
        help="SKD's K: the teacher rank within which a proposal stays (default: scales with the vocabulary"
        " in use, 25 at 256,000 ids, 3 at 19)",
    )
    group.add_argument(
        "--reduction",
        default="token",
        choices=("token", "sequence"),
        help="mean over all tokens, or mean per response, then over responses (default: token)",
    )
    group = parser.add_argument_group("memory and speed (results are the same, to rounding)")
    group.add_argument(
        "--micro-batch", type=int, metavar="N", help="rows per forward and backward pass (default: the whole batch)"
    )
    group.add_argument(
        "--chunk-loss",
        default="auto",
        choices=("auto", "yes", "no"),
        help="never hold the logits of a whole batch (auto: yes from a vocabulary of 16,384 tokens on)",
    )
    group.add_argument(
        "--recompute", action="store_true", help="activation checkpointing: less memory, a third more arithmetic"
    )
    group.add_argument(
        "--cache-teacher",
        type=cache_kind,
        metavar="dense|K",
        help="what a fixed teacher says about the references is worked out once and kept on disk, "
             "whole or as its K best"
        " tokens and all others as one class (the loss then is one of K + 1 classes)",
    )
    group.add_argument(
        "--precision",
        default="auto",
        choices=("auto", "fp32", "tf32", "bf16"),
        help="of matrix products; losses are float32 (auto: tf32 on CUDA, fp32 elsewhere)",
    )
    group.add_argument(
        "--compile", action="store_true", help="torch.compile the training passes (needs a C++ compiler)"
    )


def block_length(text):
    """What --gamma takes: a number, or auto, which is None (sample.best_gamma)."""
    if text == "auto":
        return None
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"takes a number of tokens or auto, found {text!r}")
    return int(text)


def cache_kind(text):
    """What --cache-teacher takes: dense, which is 0, or a number of tokens."""
    if text == "dense":
        return 0
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"takes dense or a number of tokens, found {text!r}")
    return int(text)


TASK_FLAGS = ("task", "difficulty", "train_examples", "entropy", "hard_share", "stories", "measure")
PAIR_FLAGS = (
    "teacher_steps",
    "start_steps",
    "teacher_prompts",
    "student_prompts",
    "student_start",
    "vocab_size",
    "block_size",
)
EVALUATION_FLAGS = (
    "accept_top_k",
    "gamma",
)  # flags that every final student is measured with, whoever it was trained by


def make_parser(script, description, variants, main_variants):
    """The parser of a script with all flags that both scripts share; the script adds its own."""
    examples = f"examples:\n  python {script}.py --quick\n  python {script}.py --seeds 5 --jobs 1 --out runs/mine"
    parser = Parser(FIRST_FLAGS, prog=f"{script}.py", description=f"{description}\n\n{examples}")
    add_shared_flags(parser, variants, main_variants, pairs.SIZES)
    group = parser.add_argument_group("sampling (methods whose tokens a model writes)")
    group.add_argument(
        "--accept-rule", default="topk", choices=tuple(ACCEPT_RULES), help="which drafted tokens stay (default: topk)"
    )
    knobs = {name: [knob for knob in knobs_of(name) if knob != "accept_top_k"] for name in ACCEPT_RULES}
    listed = "; ".join(f"{name}: {', '.join(own)}" for name, own in knobs.items() if own)
    group.add_argument(
        "--rule", default="", metavar="KNOB=X,..", help=f"the rule's own knobs, e.g. accept_min_prob=0.1 ({listed})"
    )
    group.add_argument(
        "--replace",
        default="sample",
        choices=tuple(REPLACE_RULES),
        help="what takes the place of a rejected token (default: sample)",
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
    main_method = report.COMPARISONS[script][1]
    group.add_argument("--equal-compute", action="store_true", help=f"also train with {main_method}'s FLOP budget")
    group.add_argument(
        "--sweep",
        action="append",
        default=[],
        metavar="FLAG=X,Y,..",
        help="run each method once per value of a flag, e.g. --sweep lr=1e-3,5e-3; several: every combination",
    )
    group.add_argument("--weight-decay", type=float, default=0.1, help="on the student's matrices")
    group.add_argument("--log-every", type=int, default=20, help="steps between logged lines")
    group.add_argument(
        "--save-every",
        type=int,
        metavar="N",
        help="steps between saved states, which --resume continues from (default: an eighth)",
    )
    return parser


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
            (f"{label} {flag}={value}", [*(before if isinstance(before, list) else argv), f"--{flag}={value}"])
            for label, before in args.swept
            for value in dict.fromkeys(values.split(","))
        ]
    if args.sweep and args.equal_compute:
        raise ValueError("--equal-compute has one budget for all runs, --sweep several: run the script once per value")
    if args.sweep:
        args.swept = [
            (label, parse_once(parser, words, variants, main_variants, script)[0]) for label, words in args.swept
        ]
        # log_every: what is logged, not what is trained. What was typed before what it comes to.
        fixed = sorted(NEUTRAL_FLAGS | {"quick", "size", "log_every", *TASK_FLAGS, *PAIR_FLAGS}) + [
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
    if args.data_dir is not None and args.task in tasks.FAMILIES:
        args.notes.append(f"note: --data-dir is not read, --task {args.task} is made here")
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
    """Why a sampling flag changes neither a token nor a mark of a row with this writer, whose `own` options go before
    the flags; None where it may."""
    said = vars(args) | own
    rule, replace, both = said["accept_rule"], said["replace"], writer == "interleaved"
    raw = said["accept_on"] == "raw"  # else the teacher's temperature and nucleus decide what is accepted, too
    reached = [name for name, row in WRITERS.items() if flag in row.flags]
    table = (
        (STUDENT_DRAWS, writer not in reached, "lets no student write"),
        ((flag,), reached and writer not in reached, f"does not write {' or '.join(reached)}"),
        (own.keys() - {"accept_top_k"}, True, "fixes it itself"),  # a row's accept_top_k is in units of the flag
        (("rule",), "accept_rule" in own, "fixes the accept rule itself"),
        (("accept_top_k",), rule not in RANKED and replace != "sample_topk", "has an accept rule without a K"),
        (("teacher_temperature", "teacher_top_p"), replace == "argmax" and raw, "takes the teacher's argmax"),
        (("teacher_top_p",), replace == "sample_topk" and raw, "draws from the teacher's K best"),
        (TEACHER_DRAWS, (rule == "all" or args.no_write_back) and raw, "writes no replacement"),
        (("no_write_back", "judge_fresh"), rule == "all", "rejects nothing"),
        (("judge_fresh",), rule == "none", "accepts nothing"),
        (STUDENT_DRAWS, both and rule == "none" and not args.no_write_back, "keeps nothing of the student's"),
        (
            ("accept_on",),
            args.teacher_top_p is None and args.teacher_temperature == 1,
            "has no --teacher-top-p to warp by",
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
    args.steps, args.lr = args.steps or default_steps, args.lr or default_lr
    given = {name: getattr(args, name) for name in PAIR_FLAGS}
    size |= {name: value for name, value in given.items() if value is not None}
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
        "rule": args.rule,
    }


def check_cache(args):
    """ValueError where --cache-teacher would change what it keeps."""
    for own in [args, *(own for _, own in args.swept)]:
        if own.cache_teacher and getattr(own, "temperature", 1.0) != 1.0:
            raise ValueError(
                f"--cache-teacher {own.cache_teacher} keeps all other tokens as one class, "
                "which no --temperature can soften (its tokens are gone): use --cache-teacher dense, or --temperature 1"
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


def result_flags(args):
    """The flags that decide a result, without folders: what --resume compares and a record keeps."""
    return {name: value for name, value in sorted(vars(args).items()) if name not in NEUTRAL_FLAGS}
