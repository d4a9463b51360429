"""Distil a student from a fixed teacher: SKD (arXiv 2410.11325) and every baseline of its comparison.

    python train_skd.py                          all methods on the default task, with a table and curves at the end
    python train_skd.py --quick                  the same path in under a minute, a smoke run
    python train_skd.py --device cuda --size small --seeds 5
    python train_skd.py --resume                 resumes the newest run, in the middle of what was under way
    python train_skd.py --variants skd,on_policy --loss reverse_kl           another loss in these methods
    python train_skd.py --task multi30k --data-dir DIR --size small --variants supervised,on_policy,skd

All methods are one loop, `distill`. They differ in what a row of VARIANTS says:

    WHO WRITES the response tokens that the student is trained on (WRITERS in sample.py):
        dataset      the references                                           (sft, supervised, hinton, and many more)
        teacher      the teacher, once, before training                       (seqkd, fdistill_kl)
        student      the student itself, now                                  (on_policy, opd)
        mixed        references, or the teacher's answers, or the student, by a draw per batch or sequence
                                                                              (imitkd, gkd)
        interleaved  the student proposes, the teacher replaces what it ranks poorly      (skd)
        switching    the student begins, the teacher ends                     (adaswitch)
        trust_region both at every token, near the student                    (trb)
    WHICH LOSS is taken on them: cross-entropy with the tokens, or a comparison with the teacher (losses.py).
    WHAT IS KEPT from step to step, if anything: a schedule, a buffer, a projector, a head (methods.py).
    WHICH TEACHER: the given one, one that is made first (takd, sftn, mopd), or the student's start (ssd, opsd, sdpo).
    WHAT IT READS before the response: the student's prompt, or one with a hint (context_kd, opsd; lab/hints.py).

From a notebook, with two models of one vocabulary and a list of prompts:

    import torch
    from lab.training import Run
    from model import GPT, GPTConfig
    from train_skd import VARIANTS, distill
    noise = torch.Generator().manual_seed(1)
    teacher = GPT(GPTConfig(vocab_size=50, block_size=24, n_layer=2, n_head=2, n_embd=32), noise)
    student = GPT(GPTConfig(vocab_size=50, block_size=24, n_layer=1, n_head=2, n_embd=16), noise)
    prompts = [[1, 2, 3], [4, 5], [6, 7, 8, 9]] * 10
    run = Run(steps=100, batch_size=8, lr=1e-3, max_new_tokens=12, eos_token=0, accept_top_k=5)
    costs, adapted = distill(VARIANTS["skd"], student, teacher.requires_grad_(False), prompts, run=run)

Where this differs from the SKD paper: models of 30 k to 100 M parameters pretrained here, not 0.5 to 7 B; K scales with
the vocabulary in use; the loss is the mean over all response tokens of a batch (--reduction sequence gives Eq. 1's mean
over each response first); gamma follows the acceptance, which costs less and changes no token; the learning rate is of
tiny models. Where the paper differs from its released code, the paper is followed (docs/papers.md; switches reproduce
the code's way).
"""

if __name__ in ("__main__", "__mp_main__"):
    import lab.interrupted  # noqa: F401  Ctrl-C while torch is imported ends with one line

import dataclasses

import methods
from catalogue import FIXED_TEACHER, Variant
from lab import arguments, command_line, compare, program
from lab.training import Run
from losses import NO_TEACHER, check_loss, loss_names

# fmt: off
VARIANTS = {
    # the comparison of the SKD paper
    "sft": Variant("dataset", "cross_entropy", None, "no teacher: cross-entropy on the references",
                   read_from="common knowledge", rate=2.0),
    "supervised": Variant("dataset", "forward_kl", "1910.01108", "word-level KD on the references", read_from="code"),
    "seqkd": Variant("teacher", "cross_entropy", "1606.07947",
                     "cross-entropy on the teacher's greedy answers, written once", "greedy answers, no beam search",
                     answers=0.0, read_from="code"),
    "on_policy": Variant("student", "forward_kl", "2306.13649", "KD on the student's own samples", read_from="code"),
    "imitkd": Variant("mixed", "forward_kl", "2009.07253", "a draw per sequence: reference or student sample",
                      "constant chance .5, no annealing", student_share=(0.5, 0.5), mix_per="sequence",
                      read_from="abstract, code"),
    "gkd": Variant("mixed", "generalized_jsd", "2306.13649", "a draw per batch: references or student samples; JSD",
                   loss_kwargs={"beta": 0.5}, student_share=(0.5, 0.5), read_from="code", rate=2.0),
    "two_stage": Variant("mixed", "forward_kl", "2410.11325",
                         "references in the first half, student samples in the second",
                         student_share=(0.0, 1.0), read_from="code"),
    "skd": Variant("interleaved", "forward_kl", "2410.11325",
                   "the student drafts, the teacher replaces tokens outside its K likeliest", read_from="paper, code"),
}
# fmt: on
MAIN = tuple(VARIANTS)  # the comparison of the paper (its section 5)
VARIANTS |= FIXED_TEACHER  # all others


def distill(row, student, teacher, prompts, responses=None, run=None):
    """Train `student` in place by the method of a row of VARIANTS -> Result(costs, None: no teacher learns along).

    prompts, responses: lists of token ids (responses end with the end token); methods whose tokens a model writes need
    no responses. `run` (lab/training.py) holds steps, rates and everything that is no method; Run() keeps nothing on
    disk. Raises ValueError where the row needs something that is not there: references, a validation, a pretraining
    rate.
    """
    run = run or Run()
    run.begin(student, prompts, responses)
    row = methods.resolve(row, run.accept_top_k)
    teacher, method = methods.prepare(row, student, teacher, run, distill)

    for step in run.steps():
        rollout = method.write(step)  # who writes: the data set, the student, or student and teacher in turns (SKD)
        for part in run.parts(rollout):
            teacher_logits = part.teacher(teacher)  # (B, T, V), row t predicts token t+1
            student_logits = part.forward(student)
            per_token = method.per_token(student_logits, teacher_logits, part)  # (B, T): how far the student is
            part.backward(per_token)
        run.update(student)
        method.learn(run.loss, run.rate)  # what the method keeps: a schedule, a projector; nothing for most
    return run.finish()


# ---------------------------------------------------------------------------------------------------------------------
# The command line.


def with_loss(row, args):
    """The row with --loss in the place of its own, if it takes one."""
    if args.loss and not methods.keeps_its_loss(row):
        kd_weight = 1.0 if args.loss in NO_TEACHER else row.kd_weight
        row = dataclasses.replace(row, loss=args.loss, loss_kwargs=args.loss_args, kd_weight=kd_weight)
    return row


def resolve(row, args):
    """The row with what the flags say of it: --loss, and --accept-top-k where its loss wants it."""
    return methods.resolve(with_loss(row, args), args.accept_top_k)


def ignored_reason(flag, name, args):
    """Why a flag changes nothing about how a method is trained, as what follows "which"; None where it does."""
    row = VARIANTS[name]
    if flag in ("loss", "loss_args") and methods.keeps_its_loss(row):
        return "has a loss of its own"
    if flag in row.loss_kwargs and row.loss_kwargs[flag] is None:
        return None
    row = resolve(row, args)
    if flag == "cache_teacher" and not methods.can_cache_teacher(row):
        return "takes nothing from a cache"
    if flag in ("recompute", "compile") and row.method and methods.METHODS[row.method].plain_forward:
        return "needs the student's forward as it is"
    return arguments.ignored_sampling_reason(flag, row.writer, row.sampling, args)


def check_row(name, args, examples):
    """ValueError for a method that cannot work with these flags, whatever the pair."""
    row = resolve(VARIANTS[name], args)
    warped = args.student_temperature != 1 or args.student_top_p is not None
    if row.loss == "policy_gradient" and warped:
        raise ValueError(
            f"{name} takes its samples as drawn from the student itself, without an importance ratio: "
            "leave out --student-temperature and --student-top-p, or leave it out of --variants"
        )
    group = row.method_kwargs.get("group", 1)
    if args.batch_size < group:
        raise ValueError(
            f"{name} answers each prompt {group} times: give at least --batch-size {group}, found {args.batch_size}, "
            "or leave it out of --variants"
        )
    if row.loss_kwargs.get("accept_top_k") == 0:
        raise ValueError(
            f"--accept-top-k 0 leaves {name} without a loss: give at least 1, or leave it out of --variants"
        )


def run_one(args, folder, shared, variant, seed, budget="steps", steps=None):
    """One method with one seed -> a line about it."""
    row = with_loss(VARIANTS[variant.split()[0]], args)
    return compare.run_one(distill, row, args, folder, shared, variant, seed, budget, steps)


def parse_flags(argv=None):
    """Command line -> (args with everything resolved that needs no data, names of the methods)."""
    description = "Distil a student from a fixed teacher: SKD and its baselines."
    parser = command_line.make_parser("train_skd", description, VARIANTS, MAIN)
    group = parser.add_argument_group("loss")
    group.add_argument(
        "--loss", choices=loss_names(), metavar="NAME", help="in place of each method's own: a name of losses.py"
    )
    group.add_argument("--loss-args", default="", metavar="K=V,..", help="its keywords, e.g. beta=0.3")
    args, names = arguments.parse(parser, argv, VARIANTS, MAIN, "train_skd", ignored_reason)
    arguments.check_cache(args)
    for own in [args, *(own for _, own in args.swept)]:
        if own.loss_args and not own.loss:
            raise ValueError("--loss-args goes with --loss: give both, or none")
        if own.loss:
            check_loss(own.loss, own.loss_args)
    return args, names


def main(argv=None):
    """Task, pair, every method with every seed, table. Returns 0 only when every run finished."""
    args, names = parse_flags(argv)
    return compare.compare("train_skd", args, names, VARIANTS, run_one, check_row)


if __name__ == "__main__":
    program.run_script("train_skd", main)
