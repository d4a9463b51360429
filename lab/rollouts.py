"""The picture of a rollout in the terminal, python sample.py: which tokens the student wrote, and which the teacher
replaced, before and after training."""

import os
import tempfile

import torch

from data import progress, tasks
from data.tokenizer import Tokenizer
from lab import arguments, command_line, pairs, processes
from lab.terminal import LEGEND, by_student, by_teacher, flow, in_color, readable, said, visible
from lab.training import batch_order
from losses import forward_kl, masked_mean
from model import clip_and_step, learning_rate, load_checkpoint, make_optimizer, weights_hash
from sample import ACCEPT_RULES, RANKED, check_rule, interleaved_generate, rank

SHORT = {"steps": 200, "batch_size": 64, "lr": 2e-2}  # the training between the two rollouts of the quick pair


def readable_by(tokenizer):
    """ids -> readable text; the bytes of a character that was split are shown as such."""
    return lambda ids: readable(b"".join(tokenizer.tokens[token] for token in ids))


def picture(rollout, row, decode, eos_token=None):
    """One row of an interleaved rollout, as groups for `flow`: what stayed, was replaced (by whom, which rank), was
    lost.

    Student tokens are plain, proposals thrown away behind a replaced one are in <...>. `decode` turns a list of ids
    into text.
    """
    assert 0 <= row < len(rollout.tokens), f"row {row} of a rollout of {len(rollout.tokens)}"
    groups, stayed = [], []
    for block in rollout.blocks:
        if row not in block.rows:  # it was done by then
            continue
        _, at, proposals, drafted, kept, _ = (column[block.rows == row][0].tolist() for column in block)
        stayed += proposals[:kept]
        if kept < drafted:
            slot = at + kept  # where the replacement stands; the row of logits before it judged the proposal
            rejected = torch.tensor(proposals[kept], device=rollout.tokens.device)
            place = int(rank(rollout.teacher_logits[row, slot - 1], rejected)) + 1
            pair = [[int(rollout.tokens[row, slot])], [proposals[kept]], proposals[kept + 1 : drafted]]
            written, proposed, lost = (said(ids, decode, eos_token) for ids in pair)
            groups += [*by_student(said(stayed, decode, eos_token)), by_teacher(written, proposed, place)]
            groups += [[("discarded", f"<{lost}>")]] if lost else []
            stayed = []
    return groups + by_student(said(stayed, decode, eos_token))


def make_parser():
    """The flags of python sample.py."""
    parser = command_line.Parser(prog="sample.py", description="The picture of an SKD rollout: who wrote which token.")
    parser.add_argument(
        "--checkpoint",
        type=os.path.expanduser,
        metavar="FILE",
        help="a student that train_skd.py left, shown beside its start if that lies there too (default: the quick "
        "pair's, at the start and after a short training by SKD)",
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


def start_beside(path, student, about, device):
    """What a checkpoint's student was before its training, from the file that its run left beside it; None where there
    is none of it, or where it is the student itself."""
    beside = os.path.join(os.path.dirname(path), f"student_start_pair{about.get('pair', 1)}.pt")
    if not os.path.isfile(beside):
        return None
    try:
        start, about_start = load_checkpoint(beside, device)
        if about_start.get("tokenizer") != about["tokenizer"] or start.config != student.config:
            raise ValueError(f"{os.path.basename(beside)} is of another run")
    except (ValueError, OSError) as error:  # the student can be shown without it
        processes.print_line(f"note: the student's start is left out: {error}")
        return None
    return None if weights_hash(start) == weights_hash(student) else start


def train_shortly(student, pair, options):
    """Train the pair's student in place by SKD: the loop of README.md."""
    order = batch_order(
        len(pair.train.prompts), SHORT["batch_size"], SHORT["steps"], torch.Generator().manual_seed(pairs.QUICK.seed)
    )
    optimizer, noise = make_optimizer(student.train(), SHORT["lr"]), torch.Generator().manual_seed(pairs.QUICK.seed)
    for step, rows in enumerate(progress.progress(order.tolist(), "training")):
        prompts = [pair.train.prompts[i] for i in rows]
        rollout = interleaved_generate(student, pair.teacher, prompts, pair.max_new_tokens, generator=noise, **options)
        per_token = forward_kl(student(rollout.tokens[:, :-1]), rollout.teacher_logits)
        loss = masked_mean(per_token, rollout.response_mask[:, 1:])
        optimizer.zero_grad()
        loss.backward()
        clip_and_step(student, optimizer, learning_rate(step, SHORT["steps"], SHORT["lr"]))
    student.eval()


def print_rollouts(shown, prompts, tokenizer):
    """Per prompt: who wrote what in each of the rollouts, {what it is called: Rollout}, and the text that came out."""
    decode, color = readable_by(tokenizer), in_color()
    for row, prompt in enumerate(prompts):
        print(flow("prompt   ", [[("", visible(prompt))]]))
        for name, rollout in shown.items():
            print(flow(f"{name:<9}", picture(rollout, row, decode, tokenizer.eos_token), color))
            text = decode([token for token in rollout.responses()[row] if token != tokenizer.eos_token])
            print(flow("result   ", by_student(text)))
        print()


def print_counts(shown):
    """A line per rollout: how many tokens were accepted, replaced and discarded, and what each cost."""
    for name, rollout in shown.items():
        counts, written = rollout.counts(), int(rollout.response_mask.sum())
        processes.print_line(
            (f"{name}: " if len(shown) > 1 else "")
            + f"{written} tokens written: {counts['accepted']} accepted, {counts['replaced']} replaced"
            f" (accept rate {counts['accepted'] / counts['judged']:.3f}); {counts['discarded']} proposals discarded;"
            f" {counts['teacher_calls'] / written:.2f} teacher calls and"
            f" {counts['student_steps'] / written:.2f} student steps per token"
        )


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

    top_k = top_k if args.accept_top_k is None else args.accept_top_k
    options = {"accept_rule": args.accept_rule, "accept_top_k": top_k, "gamma": args.gamma} | rule
    options["eos_token"] = tokenizer.eos_token
    encoded = [tasks.encode_prompt(tokenizer, prompt) for prompt in prompts]

    def write(model):
        noise = torch.Generator().manual_seed(args.seed)  # the same for all
        return interleaved_generate(model, teacher, encoded, budget, generator=noise, **options)

    if args.checkpoint:
        start = start_beside(args.checkpoint, student, about, device)
        shown = {"before": write(start), "after": write(student)} if start else {"rollout": write(student)}
        told = f"before: student_start_pair{about.get('pair', 1)}.pt   after: {os.path.basename(args.checkpoint)}"
    else:
        shown = {"before": write(student)}
        train_shortly(student, pair, options)
        shown["after"] = write(student)
        told = f"before: the student at the start   after: the same student, {SHORT['steps']} updates of SKD later"
    processes.print_line(
        f"\n{student.num_parameters():,} student and {teacher.num_parameters():,} teacher parameters"
        f", rule {args.accept_rule}"
        + (f", K = {top_k}" if args.accept_rule in RANKED else "")
        + "".join(f", {knob} = {value:g}" for knob, value in rule.items())
        + f", gamma = {args.gamma or 'auto'}"
    )
    if len(shown) > 1:
        processes.print_line(told)
    print(f"{LEGEND}   <discarded>\n")
    if any("\\n" in prompt for prompt in args.prompt or ()):
        print("note: a \\ and an n in --prompt are two characters; bash writes a new line as $'..\\n'\n")
    print_rollouts(shown, prompts, tokenizer)
    print_counts(shown)
    return 0


def run_program():
    """Call main() as a program: wrong use ends with one line and a non-zero status."""
    processes.run_tool("sample.py", main)
