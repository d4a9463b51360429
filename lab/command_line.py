"""The flags of both scripts: names, ranges, other names, help.

    make_parser    the flags that both scripts share; each adds its own

What is made of the words that somebody typed says lab/arguments.py.
"""

import argparse
import os

from data import tasks
from data.metrics import METRICS
from lab import pairs, report
from sample import ACCEPT_RULES, REPLACE_RULES, TRUST_REGION, knobs_of

# Flags that decide where and how a run is done, but not what comes out of it. (A swept value is part of a run's name.)
NEUTRAL_FLAGS = {"device", "out", "data_dir", "resume", "jobs", "seeds", "seed", "variants", "list_variants",
                 "equal_compute", "sweep", "swept", "notes", "save_every", "pairs", "pair_seed"}  # fmt: skip

# What a number on the command line may be; a script that has no such flag is not asked.
MOST = 10**9

RANGES = {
    **dict.fromkeys(("seeds", "pairs"), (1, 10**4)),
    **dict.fromkeys(("steps", "batch_size", "jobs", "teacher_steps", "start_steps", "teacher_prompts"), (1, MOST)),
    **dict.fromkeys(("train_examples", "measure", "log_every", "save_every", "rows"), (1, MOST)),
    **dict.fromkeys(("seed", "pair_seed", "student_prompts", "accept_top_k"), (0, MOST)),
    "micro_batch": (1, MOST),
    "gamma": (1, 64),  # longer drafts are thrown away at the first rejection
    **dict.fromkeys(("block_size", "max_new_tokens"), (2, 2**20)),
    "lr": (1e-12, 100),
    "weight_decay": (0, 100),
    **dict.fromkeys(("student_temperature", "teacher_temperature"), (0, 1000)),  # 0 is greedy
    **dict.fromkeys(("student_top_p", "teacher_top_p"), (1e-6, 1)),
    **dict.fromkeys(("alpha", "student_kd", "module_start"), (0, 1)),
    **dict.fromkeys(("module_scale", "module_lr", "anchor"), (0, 1000)),  # a rate of 0: the teacher stands still
    **dict.fromkeys(("module_rank", "student_width"), (1, 4096)),
    "hint_share": (0, 0.9),  # nine copies of each prompt at most
    "temperature": (1e-3, 1000),
    "teacher_mix": (1e-6, 1 - 1e-6),
    "trust_region": (0, 1000),  # 0: the student alone
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
FIRST_FLAGS = ("variants", "task", "data_dir", "size", "steps", "quick", "pairs", "seeds", "device", "out", "resume",
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

    def words_of(self, flag, value):
        """What to type for a swept value: a flag that takes none, such as --no-write-back, is swept as yes or no."""
        takes_none = any(action.dest == self.dest_of(flag) and action.nargs == 0 for action in self._actions)
        if not takes_none:
            return [f"--{flag}={value}"]
        if value not in ("yes", "no"):
            self.error(f"--{flag} is swept as yes and no (--sweep {flag}=no,yes), found {value!r}")
        return [f"--{flag}"] if value == "yes" else []

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
        "--variants", default="main", help=f"comma-separated methods, main (default: {', '.join(main_variants)}) or all"
    )
    group.add_argument("--list-variants", action="store_true", help="print the table of methods as JSON and exit")
    group.add_argument(
        "--pairs",
        type=int,
        default=1,
        help="pretrained pairs, from --pair-seed on: intervals are over pairs (default: 1, a demonstration)",
    )
    group.add_argument("--seeds", type=int, default=1, help="runs per method and pair, from --seed on (default: 1)")
    group.add_argument(
        "--seed",
        type=int,
        default=1,
        help="first seed: order of the prompts, sampling noise (default: 1); one more with each pair",
    )
    group.add_argument(
        "--quick", action="store_true", help="smoke run: every stage in under a minute; its numbers mean nothing"
    )
    group = parser.add_argument_group("where")
    add_device_flag(group)
    group.add_argument(
        "--out",
        type=os.path.expanduser,
        metavar="DIR",
        help="folder of the records and final students (default: a new one in runs/)",
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
        "--data-dir",
        type=os.path.expanduser,
        metavar="DIR",
        help="where files of real data sets lie (default: download to data/cache)",
    )
    for key in ("prompt", "response"):
        group.add_argument(f"--{key}-key", metavar="KEY", help=f"key or heading of the {key} in your own data")
    group.add_argument(
        "--size", default="tiny", choices=tuple(sizes), help="preset: models, steps, learning rates (default: tiny)"
    )
    group.add_argument(
        "--pair-seed",
        type=int,
        default=1,
        help="seed of the first pair: first weights, order, the student's sample of prompts (default: 1)",
    )
    group.add_argument(
        "--student-start",
        default="sft",
        choices=("sft", "raw"),
        help="sft: pretrained on prompts and answers; raw: on the task's texts only (default: sft)",
    )
    group.add_argument(
        "--hint-share",
        type=float,
        metavar="X",
        help="share of the rows of pretraining whose prompt follows a hint, which rows with a hint need (default: 0)",
    )
    group.add_argument("--student-prompts", type=int, help="prompts the student may use (default: 400; 0: all)")
    group.add_argument("--teacher-prompts", type=int, help="prompts that the teacher learns from (default: all)")
    group.add_argument(
        "--teacher-steps", type=int, help="teacher's pretraining steps: its quality (default: by --size)"
    )
    group.add_argument("--start-steps", type=int, help="student's pretraining steps (default: by --size)")
    group.add_argument("--student-width", type=int, help="width of the student's layers (default: by --size)")
    group.add_argument("--vocab-size", type=int, help="tokens that the tokenizer learns at most (default: by --size)")
    group.add_argument(
        "--block-size", type=int, help="longest sequence; longer examples are left out (default: room for all)"
    )
    group.add_argument(
        "--max-new-tokens",
        type=int,
        metavar="N",
        help="longest response, end token included; longer references are left out (default: room for all; in real and"
        " own data at most about twice what 99 %% of them need)",
    )
    for knob, kind, meaning in (
        ("difficulty", int, "steps, clauses, turns or operators of an example"),
        ("train-examples", int, "size of the train split"),
        ("entropy", float, "randomness of phrasing in references (0 = none)"),
        ("hard-share", float, "share of references in the rarer style"),
    ):
        group.add_argument(f"--{knob}", type=kind, help=f"{meaning} (synthetic tasks; default: the task's own)")
    group.add_argument("--stories", action="store_true", default=None, help="math as word problems with numbers 0..99")
    group.add_argument(
        "--metric", choices=tuple(METRICS), help="score of a real data set (default: its own; own data: by its answers)"
    )
    group.add_argument(
        "--measure", type=int, metavar="N", help="evaluate on a sample of N test examples (default: all)"
    )
    group = parser.add_argument_group("distillation")
    group.add_argument("--steps", type=int, help="student updates (default: by --size)")
    group.add_argument("--batch-size", type=int, default=64, help="prompts per update (default: 64)")
    group.add_argument(
        "--lr",
        type=float,
        help="peak learning rate; cosine, 5 %% warm-up (default: that of --size times the method's own factor)",
    )
    group.add_argument(
        "--gamma",
        type=block_length,
        metavar="N|auto",
        help="draft length; changes speed only (default: auto, by the acceptance so far)",
    )
    group.add_argument(
        "--accept-top-k",
        type=int,
        help="SKD's K: a drafted token stays if it is among the teacher's K likeliest (default: by the vocabulary in"
        " use, 25 at 256,000 ids, 3 at 19)",
    )
    group.add_argument(
        "--reduction",
        default="token",
        choices=("token", "sequence"),
        help="mean over all tokens, or mean per response, then over responses (default: token)",
    )
    group = parser.add_argument_group("memory and speed (results are the same, to rounding)")
    group.add_argument(
        "--micro-batch",
        type=int,
        metavar="N",
        help="sequences per forward and backward pass (default: the whole batch)",
    )
    group.add_argument(
        "--chunk-loss",
        default="auto",
        choices=("auto", "yes", "no"),
        help="never hold the logits of a whole batch (default: auto, yes from a vocabulary of 16,384 on)",
    )
    group.add_argument(
        "--recompute", action="store_true", help="activation checkpointing: less memory, a third more arithmetic"
    )
    group.add_argument(
        "--cache-teacher",
        type=cache_kind,
        metavar="dense|K",
        help="compute a fixed teacher's logits on the references once and keep them on disk: all of them, or the K"
        " likeliest tokens and one class for the rest (which changes the loss)",
    )
    group.add_argument(
        "--precision",
        default="auto",
        choices=("auto", "fp32", "tf32", "bf16"),
        help="of matrix products; losses are float32 (default: auto, tf32 on CUDA, fp32 elsewhere)",
    )
    group.add_argument(
        "--compile", action="store_true", help="torch.compile the training passes (needs a C++ compiler)"
    )


def add_device_flag(parser):
    """--device, of a parser or a group of one."""
    kinds, told = ("auto", "cpu", "cuda", "mps"), "auto (the default) takes cuda, else cpu; mps only if asked for"
    parser.add_argument("--device", default="auto", choices=kinds, help=told)


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


TASK_FLAGS = ("task", "difficulty", "train_examples", "entropy", "hard_share", "stories", "prompt_key", "response_key",
              "metric", "measure")  # fmt: skip
PAIR_FLAGS = ("teacher_steps", "start_steps", "teacher_prompts", "student_prompts", "student_start", "hint_share",
              "vocab_size", "block_size", "max_new_tokens")  # fmt: skip
EVALUATION_FLAGS = ("accept_top_k", "gamma")  # every final student is measured with them, whoever it was trained by


def make_parser(script, description, variants, main_variants):
    """The parser of a script with all flags that both scripts share; the script adds its own."""
    examples = f"examples:\n  python {script}.py --quick\n  python {script}.py --pairs 5 --out runs/mine"
    # The list of flags follows: a usage that names each of them first would fill a screen.
    usage, about = f"python {script}.py [--flag value ..]", f"{description}\n\n{examples}"
    parser = Parser(FIRST_FLAGS, prog=f"{script}.py", usage=usage, description=about)
    add_shared_flags(parser, variants, main_variants, pairs.SIZES)
    group = parser.add_argument_group("sampling (methods whose tokens a model writes)")
    group.add_argument(
        "--accept-rule", default="topk", choices=tuple(ACCEPT_RULES), help="which drafted tokens stay (default: topk)"
    )
    knobs = {name: [knob for knob in knobs_of(name) if knob != "accept_top_k"] for name in ACCEPT_RULES}
    listed = "; ".join(f"{name}: {', '.join(own)}" for name, own in knobs.items() if own)
    group.add_argument(
        "--rule",
        default="",
        metavar="KNOB=X,..",
        help=f"settings of the accept rule, e.g. accept_min_prob=0.1 ({listed})",
    )
    group.add_argument(
        "--replace",
        default="sample",
        choices=tuple(REPLACE_RULES),
        help="what takes the place of a rejected token (default: sample)",
    )
    group.add_argument(
        "--student-temperature", type=float, default=1.0, help="of the student's samples; 0 is greedy (default: 1)"
    )
    group.add_argument("--student-top-p", type=float, help="nucleus sampling by the student (default: off)")
    group.add_argument(
        "--teacher-temperature", type=float, default=1.0, help="of the teacher's replacements; 0 is greedy (default: 1)"
    )
    group.add_argument("--teacher-top-p", type=float, help="nucleus sampling of replacements (default: off)")
    group.add_argument(
        "--no-write-back", action="store_true", help="control: log rejections, keep the student's tokens"
    )
    group.add_argument(
        "--accept-on",
        default="raw",
        choices=("raw", "warped"),
        help="warped: accept after the teacher's temperature and top-p, as the released code does (default: raw)",
    )
    group.add_argument(
        "--judge-fresh",
        action="store_true",
        help="verify a second draw of the student, not the draft, as the released code does",
    )
    group.add_argument(
        "--trust-region",
        type=float,
        default=TRUST_REGION,
        metavar="NATS",
        help=f"trb: the most KL per token from its mixture to the student, at first (default: {TRUST_REGION:g})",
    )
    group = parser.add_argument_group("comparison")
    main_method = report.COMPARISONS[script][1]
    group.add_argument("--equal-compute", action="store_true", help=f"also train with {main_method}'s FLOP budget")
    group.add_argument(
        "--sweep",
        action="append",
        default=[],
        metavar="FLAG=X,Y,..",
        help="run each method once per value of a flag, e.g. --sweep lr=1e-3,5e-3 or "
        "no-write-back=no,yes; several: every combination",
    )
    group.add_argument("--weight-decay", type=float, default=0.1, help="on the student's matrices (default: 0.1)")
    group.add_argument("--log-every", type=int, default=20, help="steps between logged lines (default: 20)")
    group.add_argument(
        "--save-every",
        type=int,
        metavar="N",
        help="steps between saved states, which --resume continues from (default: an eighth of a run)",
    )
    return parser
