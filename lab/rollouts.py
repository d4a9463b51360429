"""The picture of a rollout in the terminal, python sample.py: which tokens the student wrote, and which the teacher
replaced."""

import os
import sys
import tempfile

import torch

from data import tasks
from data.tokenizer import Tokenizer
from lab import arguments, command_line, pairs, processes
from model import load_checkpoint, weights_hash
from sample import ACCEPT_RULES, RANKED, check_rule, interleaved_generate, rank

STYLES = {"student": "", "teacher": "\033[1;32m", "rejected": "\033[31m", "discarded": "\033[2m", "end": "\033[0m"}


def visible(text):
    """Text on one line; what a terminal would obey is written out, a new line as \\n: anything may stand in a token.

    A backslash is written twice, so that no two texts look the same.
    """
    return "".join(letter if letter.isprintable() and letter != "\\" else repr(letter)[1:-1] for letter in text)


def picture(rollout, row, decode, eos_token=None, color=True):
    """One row of an interleaved rollout as a line of text: what stayed, was replaced (by whom, which rank), was lost.

    Student tokens are plain; a replaced one reads {teacher's token <- student's proposal, its rank with the teacher};
    proposals thrown away after it are dim, in <...>. `decode` turns a list of ids into text.
    """
    assert 0 <= row < len(rollout.tokens), f"row {row} of a rollout of {len(rollout.tokens)}"
    style = STYLES if color else dict.fromkeys(STYLES, "")

    def text(token):
        return "[end]" if token == eos_token else visible(decode([token]))

    def paint(name, words):
        return f"{style[name]}{words}{style['end']}" if style[name] else words

    parts = []
    for block in rollout.blocks:
        if row not in block.rows:  # it was done by then
            continue
        _, at, proposals, drafted, kept, _ = (column[block.rows == row][0].tolist() for column in block)
        parts += [text(token) for token in proposals[:kept]]
        if kept < drafted:
            slot = at + kept  # where the replacement stands; the row of logits before it judged the proposal
            rejected = torch.tensor(proposals[kept], device=rollout.tokens.device)
            place = int(rank(rollout.teacher_logits[row, slot - 1], rejected)) + 1
            by_teacher = paint("teacher", text(int(rollout.tokens[row, slot])))
            parts.append(f"{{{by_teacher}<-{paint('rejected', text(proposals[kept]))} #{place}}}")
            lost = "".join(map(text, proposals[kept + 1 : drafted]))
            parts += [paint("discarded", f"<{lost}>")] if lost else []
    return "".join(parts)


def make_parser():
    """The flags of python sample.py."""
    parser = command_line.Parser(prog="sample.py", description="The picture of an SKD rollout: who wrote which token.")
    parser.add_argument(
        "--checkpoint",
        type=os.path.expanduser,
        metavar="FILE",
        help="a student that train_skd.py left (default: pretrain the quick pair)",
    )
    parser.add_argument(
        "--teacher",
        type=os.path.expanduser,
        metavar="FILE",
        help="its teacher (default: its pair's, beside the checkpoint)",
    )
    parser.add_argument(
        "--prompt",
        action="append",
        help="your own prompt, with every blank and new line that it was learned with; may be given several times",
    )
    parser.add_argument("--rows", type=int, help="rollouts to show, of held-out prompts of the task (default: 3)")
    parser.add_argument(
        "--data-dir", type=os.path.expanduser, metavar="DIR", help="where files of real data sets lie"
    )
    parser.add_argument("--accept-rule", default="topk", choices=tuple(ACCEPT_RULES), help="which proposals stay")
    parser.add_argument("--rule", default="", metavar="KNOB=X,..", help="its knobs, e.g. accept_min_prob=0.1")
    parser.add_argument("--accept-top-k", type=int, help="SKD's K (default: the checkpoint's)")
    parser.add_argument(
        "--gamma", type=command_line.block_length, metavar="N|auto", help="tokens drafted per block (default: auto)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the noise")
    command_line.add_device_flag(parser)
    return parser


def load_both(student_path, teacher_path, device):
    """Two checkpoints of one run -> student, teacher, their tokenizer, and what the student's says of its run; without
    a teacher's path, the one of its pair beside it.

    Raises ValueError for two that do not belong together, and for a student that is its own teacher.
    """
    student, about = load_checkpoint(student_path, device)
    beside = os.path.join(os.path.dirname(student_path), f"teacher_pair{about.get('pair', 1)}.pt")
    teacher, about_teacher = load_checkpoint(teacher_path or beside, device)
    if about["tokenizer"] != about_teacher["tokenizer"]:
        raise ValueError(
            "student and teacher were trained with different tokenizers: give the --teacher of the same run"
        )
    tokenizer = Tokenizer.from_state(about["tokenizer"])
    for name, model in (("student", student), ("teacher", teacher)):
        if model.config.vocab_size != tokenizer.n_vocab:
            raise ValueError(
                f"the {name} has a vocabulary of {model.config.vocab_size}, its tokenizer one of "
                f"{tokenizer.n_vocab}: this checkpoint was put together from two runs"
            )
    if weights_hash(student) == weights_hash(teacher):
        raise ValueError(
            f"{student_path} is its own teacher here, who would reject nothing: give a student as --checkpoint, "
            "and its teacher as --teacher"
        )
    return student, teacher, tokenizer, about


def main(argv=None):
    """Show rollouts of SKD in the terminal; see --help."""
    processes.use_any_terminal()
    args = make_parser().parse_args(argv)
    device = processes.pick_device(args.device)
    if note := processes.device_note(args.device, device.type):
        processes.print_line(note)
    torch.set_num_threads(1)  # models this small gain nothing from more
    arguments.check_ranges(args)
    rule = arguments.parse_rule(args.rule)
    check_rule(args.accept_rule, "sample", "raw", args.gamma, args.accept_top_k or 0, rule)
    if args.accept_top_k is not None and args.accept_rule not in RANKED:
        raise ValueError(f"--accept-top-k is ignored by --accept-rule {args.accept_rule}, which has no K: leave it out")
    if args.prompt and args.rows is not None:
        raise ValueError("--rows counts prompts of the task, --prompt gives your own: leave one of them out")
    rows = args.rows or 3

    def first_prompts(examples):
        if len(examples) < (args.rows or 1):
            raise ValueError(f"--rows must lie in 1..{len(examples)} (the task's test split), found {rows}")
        return [example.prompt for example in examples[:rows]]

    def check_top_k(vocabulary):
        if args.accept_top_k is not None and args.accept_top_k > vocabulary:
            raise ValueError(f"--accept-top-k must lie in 0..{vocabulary} (the vocabulary), found {args.accept_top_k}")

    if args.checkpoint == "" or args.teacher == "":
        raise ValueError(
            "--checkpoint and --teacher want the name of a .pt file, and found nothing: leave them out, or name it"
        )
    if args.teacher and not args.checkpoint:
        raise ValueError("--teacher goes with the --checkpoint of its student: give both, or none")
    if args.checkpoint:
        student, teacher, tokenizer, about = load_both(args.checkpoint, args.teacher, device)
        check_top_k(tokenizer.n_vocab)
        if not args.prompt and "task" not in about:
            raise ValueError(f"{args.checkpoint} does not name its task: give a --prompt")
        top_k, budget, prompts = about.get("accept_top_k", 3), about.get("max_new_tokens", 32), args.prompt
        if not prompts:
            prompts = first_prompts(tasks.named_in(about, args.data_dir, rows).examples("test"))
    else:
        data = pairs.encode_task(tasks.make_task("math", **pairs.QUICK_TASK), pairs.QUICK)
        check_top_k(data.tokenizer.n_vocab)
        prompts = args.prompt or first_prompts(data.splits["test"].examples)
        with tempfile.TemporaryDirectory() as elsewhere:  # where the pair is kept if the checkout is read-only
            kept = {"report": processes.print_line, "otherwise": [elsewhere]}
            pair = pairs.load_or_pretrain_pair(data, pairs.QUICK, device, **kept)
        student, teacher, tokenizer = pair.new_student().eval(), pair.teacher, pair.tokenizer
        top_k, budget = pairs.default_accept_top_k(data.vocabulary_in_use), pair.max_new_tokens

    rollout = interleaved_generate(
        student,
        teacher,
        [tasks.encode_prompt(tokenizer, prompt) for prompt in prompts],
        budget,
        generator=torch.Generator().manual_seed(args.seed),
        gamma=args.gamma,
        accept_rule=args.accept_rule,
        accept_top_k=top_k if args.accept_top_k is None else args.accept_top_k,
        eos_token=tokenizer.eos_token,
        **rule,
    )
    color = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
    print(
        f"\n{student.num_parameters():,} student and {teacher.num_parameters():,} teacher parameters"
        f", rule {args.accept_rule}"
        + (
            f", K = {args.accept_top_k if args.accept_top_k is not None else top_k}"
            if args.accept_rule in RANKED
            else ""
        )
        + "".join(f", {knob} = {value:g}" for knob, value in rule.items())
        + f", gamma = {args.gamma or 'auto'}"
    )
    print("plain: student   {teacher's token<-rejected proposal #its rank with the teacher}   <discarded proposals>\n")
    if any("\\n" in prompt for prompt in args.prompt or ()):
        print("note: a \\ and an n in --prompt are two characters; bash writes a new line as $'..\\n'\n")
    for row, prompt in enumerate(prompts):
        print(f"prompt   {visible(prompt)}")
        print(f"rollout  {picture(rollout, row, tokenizer.decode, tokenizer.eos_token, color)}")
        print(f"result   {visible(tokenizer.decode(rollout.responses()[row]))}\n")
    counts, written = rollout.counts(), int(rollout.response_mask.sum())
    print(
        f"{written} tokens written: {counts['accepted']} accepted, {counts['replaced']} replaced"
        f" (accept rate {counts['accepted'] / counts['judged']:.3f}); {counts['discarded']} proposals discarded;"
        f" {counts['teacher_calls'] / written:.2f} teacher calls and"
        f" {counts['student_steps'] / written:.2f} student steps per token"
    )
    return 0


def run_program():
    """Call main() as a program: wrong use ends with one line and a non-zero status."""
    processes.run_tool("sample.py", main)
