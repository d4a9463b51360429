"""Distil a student from a fixed teacher: SKD (arXiv 2410.11325) and every baseline of its comparison.

    python train_skd.py                          all methods on the default task, with a table and curves at the end
    python train_skd.py --quick                  the same path in under a minute, a smoke run
    python train_skd.py --device cuda --size small --seeds 5
    python train_skd.py --task multi30k --data-dir DIR --size small --variants supervised,on_policy,skd

All methods are one loop, `distill`. They differ in two things only, the row of VARIANTS says which:

    WHO WRITES the response tokens that the student is trained on:
        dataset      the references                                           (sft, supervised)
        teacher      the teacher, once, before training                       (seqkd)
        student      the student itself, now                                  (on_policy)
        mixed        a coin decides between references and student            (imitkd, gkd, two_stage)
        interleaved  the student proposes, the teacher replaces what it ranks poorly      (skd)
    WHICH LOSS is taken on them: cross-entropy with the tokens, or a divergence from the teacher's distribution.

Where this differs from the SKD paper: models of 30 k to 100 M parameters pretrained here, not 0.5 to 7 B; K scales with
the vocabulary in use; the loss is the mean over all response tokens of a batch (--reduction sequence gives Eq. 1's mean
over each response first); gamma 4; the learning rate is of tiny models. Where the paper differs from its released code,
the paper is followed (README, "Paper and released code"; switches reproduce the code's way).
"""

import argparse
import dataclasses
import json
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import torch

from data import corpora, pairs, report, runs, tasks
from data.evaluate import Encoded, evaluate, evaluate_quickly, sample_responses
from data.tasks import make_task
from losses import DIVERGENCES, cross_entropy, entropy, masked_mean
from model import learning_rate, make_optimizer, save_checkpoint
from sample import (
    ACCEPT_RULES,
    DATASET,
    REPLACE_RULES,
    SOURCE_NAMES,
    STUDENT,
    TEACHER,
    check_rule,
    generate,
    interleaved_generate,
)


@dataclass(frozen=True)
class Variant:
    """One method. A new one is a new row below; flags, tests and the README's table follow."""

    writer: str  # dataset | teacher | student | mixed | interleaved
    loss: str  # "cross_entropy", or a name in losses.DIVERGENCES
    paper: str | None  # arXiv id
    note: str
    hyper: dict = field(default_factory=dict)  # of the divergence
    student_share: tuple = (
        0.0,
        0.0,
    )  # mixed: chance that the student writes, in the first and the second half of the run
    coin: str = "batch"  # mixed: one coin per "batch" or per "sequence"


# fmt: off
VARIANTS = {
    "sft": Variant("dataset", "cross_entropy", None, "no teacher: cross-entropy on the references"),
    "supervised": Variant("dataset", "forward_kl", "1910.01108", "word-level KD on the references"),
    "seqkd": Variant("teacher", "cross_entropy", "1606.07947", "cross-entropy on the teacher's greedy answers, written once"),
    "on_policy": Variant("student", "forward_kl", "2306.13649", "KD on the student's own samples"),
    "imitkd": Variant("mixed", "forward_kl", "2009.07253", "a coin per sequence: reference or student sample",
                      student_share=(0.5, 0.5), coin="sequence"),
    "gkd": Variant("mixed", "generalized_jsd", "2306.13649", "a coin per batch: references or student samples; JSD",
                   hyper={"beta": 0.5}, student_share=(0.5, 0.5)),
    "two_stage": Variant("mixed", "forward_kl", "2410.11325", "references in the first half, student samples in the second",
                         student_share=(0.0, 1.0)),
    "skd": Variant("interleaved", "forward_kl", "2410.11325", "the student proposes, the teacher replaces what it ranks poorly"),
}
# fmt: on
MAIN = tuple(VARIANTS)  # --variants main: the comparison of the paper (its section 5)
SOURCES = (
    "model.py",
    "losses.py",
    "sample.py",
    "train_skd.py",
    "data/tokenizer.py",
    "data/tasks.py",
    "data/corpora.py",
    "data/metrics.py",
    "data/evaluate.py",
    "data/pairs.py",
    "data/runs.py",
)


# ---------------------------------------------------------------------------------------------------------------------
# 1. Who writes.


def write_tokens(row, student, pair, rows, half, args, generator, teacher_answers):
    """One batch of training tokens, written as `row` says -> Rollout. `rows` are indices into pair.train.

    The sampling temperature is the same for every method, and no gradient flows through it.
    """
    prompts = [pair.train.prompts[i] for i in rows]
    device, eos = next(student.parameters()).device, pair.tokenizer.eos_token
    if row.writer == "interleaved":
        return interleaved_generate(
            student,
            pair.teacher,
            prompts,
            pair.max_new_tokens,
            generator=generator,
            gamma=args.gamma,
            accept_rule=args.accept_rule,
            accept_top_k=args.accept_top_k,
            replace=args.replace,
            student_temperature=args.student_temperature,
            student_top_p=args.student_top_p,
            teacher_temperature=args.teacher_temperature,
            teacher_top_p=args.teacher_top_p,
            eos_token=eos,
            write_back=not args.no_write_back,
            accept_on=args.accept_on,
            judge_fresh=args.judge_fresh,
            **args.rule,
        )
    if row.writer == "teacher":
        return pairs.rollout_from_ids(prompts, [teacher_answers[i] for i in rows], [TEACHER] * len(rows), device)

    # dataset, student, mixed: each row of the batch is written by the student with chance `share`.
    share = {"dataset": 0.0, "student": 1.0, "mixed": row.student_share[half]}[row.writer]
    coins = torch.rand(len(rows) if row.coin == "sequence" else 1, generator=generator).expand(len(rows))
    by_student = (coins < share).tolist()
    responses = [pair.train.responses[i] for i in rows]
    if any(by_student):
        rollout = generate(
            student,
            [prompt for prompt, own in zip(prompts, by_student) if own],
            pair.max_new_tokens,
            generator=generator,
            temperature=args.student_temperature,
            top_p=args.student_top_p,
            eos_token=eos,
        )
        if all(by_student):
            return rollout
        own_responses = iter(rollout.responses())
        responses = [next(own_responses) if own else response for own, response in zip(by_student, responses)]
    return pairs.rollout_from_ids(prompts, responses, [STUDENT if own else DATASET for own in by_student], device)


# ---------------------------------------------------------------------------------------------------------------------
# 2. The loop of every method with a fixed teacher.


def distill(row, student, pair, args, seed, log, say):
    """Train `student` in place for args.steps updates -> dict of costs. Reads from top to bottom: write, judge, learn."""
    device = next(student.parameters()).device
    optimizer = make_optimizer(student, args.lr, weight_decay=args.weight_decay)
    order = pairs.batch_order(len(pair.train.prompts), args.batch_size, args.steps, torch.Generator().manual_seed(seed))
    sampling = torch.Generator().manual_seed(1_000_003 * seed + 1)
    first_bad = torch.full((), -1, device=device)  # the first step whose loss or gradient was not finite
    costs, evaluation_seconds, started = Costs(student, pair.teacher), 0.0, time.perf_counter()
    teacher_answers = None
    if row.writer == "teacher":
        # Greedy answers stand in for the beam search of Kim & Rush: both aim at the teacher's most likely response.
        teacher_answers, _ = sample_responses(
            pair.teacher, pair.train.prompts, pair.max_new_tokens, pair.tokenizer.eos_token, seed=seed, temperature=0
        )
        costs.count_offline_teacher(pair.train.prompts, teacher_answers)

    for step, rows in enumerate(order.tolist()):
        half = int(2 * step >= args.steps)
        clock = [time.perf_counter()]

        # Who writes?
        rollout = write_tokens(row, student, pair, rows, half, args, sampling, teacher_answers)
        clock.append(time.perf_counter())

        # What does the teacher say? Row t of the logits predicts token t+1. SKD's verification has said it already.
        inputs, targets = rollout.tokens[:, :-1], rollout.tokens[:, 1:]
        target_mask = rollout.response_mask[:, 1:]
        teacher_logits = rollout.teacher_logits
        if row.loss != "cross_entropy" and teacher_logits is None:
            with torch.no_grad():
                teacher_logits = pair.teacher(inputs)
        clock.append(time.perf_counter())

        # The student learns: a per-token loss, one masked mean, one update.
        student_logits = student(inputs)
        if row.loss == "cross_entropy":
            per_token = cross_entropy(student_logits, targets)
        else:
            per_token = DIVERGENCES[row.loss](student_logits, teacher_logits, **row.hyper)
        loss = masked_mean(per_token, target_mask, args.reduction)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, args.steps, args.lr)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        gradient_norm = torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        optimizer.step()
        clock.append(time.perf_counter())
        bad = ~torch.isfinite(loss.detach() + gradient_norm)
        first_bad = torch.where((first_bad < 0) & bad, step, first_bad)  # stays on the device
        costs.count(rollout, teacher_asked=row.loss != "cross_entropy", gamma=args.gamma)

        # What happened? Read from the device only now and then.
        last = step + 1 == args.steps
        if step % args.log_every == 0 or last:
            if first_bad >= 0:
                raise ValueError(
                    f"loss or gradient is not finite at step {first_bad + 1} (train examples "
                    f"{order[first_bad, :8].tolist()}...): lower --lr ({args.lr}); the records so far are kept"
                )
            figures = step_figures(
                rollout, student_logits.detach(), teacher_logits, per_token.detach(), pair.max_new_tokens
            )
            times = [1000 * (end - begin) for begin, end in zip(clock, clock[1:])]
            figures |= dict(zip(("sampling_ms", "teacher_ms", "student_ms"), times))
            rate = learning_rate(step, args.steps, args.lr)
            log.write("step", step=step + 1, loss=loss.item(), gradient_norm=gradient_norm.item(), lr=rate, **figures)
        if (step + 1) % max(1, args.steps // 8) == 0 or last:
            before = time.perf_counter()
            student.eval()
            figures = evaluate_quickly(student, pair.teacher, pair.task, pair.tokenizer, pair.val, pair.max_new_tokens)
            student.train()
            log.write("eval", step=step + 1, **figures)
            say(
                f"  step {step + 1:>5}/{args.steps}  loss {loss.item():.4f}  val score {figures['score']:.3f}"
                f"  val nll {figures['val_nll']:.3f}"
            )
            evaluation_seconds += time.perf_counter() - before
    student.eval()
    return {"steps": args.steps, "seconds": time.perf_counter() - started - evaluation_seconds} | costs.figures()


@torch.no_grad()
def step_figures(rollout, student_logits, teacher_logits, per_token, budget, bins=8):
    """What one batch tells about its writer and both models: a dict of plain numbers (README, metric glossary)."""
    mask, target_mask = rollout.response_mask, rollout.response_mask[:, 1:]
    total = mask.sum()
    figures = {
        "mean_length": total / len(mask),
        "eos_share": rollout.finished.float().mean(),
        "student_entropy": masked_mean(entropy(student_logits), target_mask),
    }
    if teacher_logits is not None:
        figures["teacher_entropy"] = masked_mean(entropy(teacher_logits), target_mask)
        figures["agreement"] = masked_mean(
            (student_logits.argmax(-1) == teacher_logits.argmax(-1)).float(), target_mask
        )
    for number, name in enumerate(SOURCE_NAMES):  # the loss by who wrote the token
        written = (rollout.source[:, 1:] == number) & target_mask
        if name != "prompt" and bool(written.any()):
            figures[f"loss_on_{name}"] = masked_mean(per_token, written)
            figures[f"{name}_share"] = written.sum() / total
    figures = {name: value.item() for name, value in figures.items()}
    if rollout.counters is not None:
        counts = rollout.counts()
        rejected = (rollout.unwritten >= 0) & mask
        slots = torch.arange(mask.size(1), device=mask.device) - rollout.prompt_len[:, None]  # place in the response
        place = (slots * bins // budget).clamp(0, bins - 1)
        by_position = [(rejected & (place == b)).sum() / ((place == b) & mask).sum().clamp(min=1) for b in range(bins)]
        figures |= {
            "accept_rate": counts["accepted"] / max(1, counts["judged"]),
            "replacement_rate": counts["replaced"] / max(1, int(total)),
            "replacement_by_position": torch.stack(by_position).tolist(),
            "discarded_share": counts["discarded"] / max(1, counts["proposed"]),
            "teacher_calls_per_token": counts["teacher_calls"] / max(1, int(total)),
            "student_steps_per_token": counts["student_steps"] / max(1, int(total)),
        }
    return figures


class Costs:
    """What a run used, counted on the device and read once: tokens that each model processed, forwards, model TFLOP.

    FLOPs are 2 x parameters per token and forward (position table left out: it is only looked up), 3 forwards' worth for
    a training step; attention's own products are neglected. The same rule for every method, so that "equal compute" has
    a meaning that does not depend on the machine.
    """

    def __init__(self, student, teacher):
        self.weights = [
            model.num_parameters() - model.position_embedding.weight.numel() for model in (student, teacher)
        ]
        # processed by the student, processed by the teacher, generated
        self.tokens = torch.zeros(3, dtype=torch.long, device=next(student.parameters()).device)
        self.teacher_forwards = 0

    def count(self, rollout, teacher_asked, gamma):
        """Add one training step."""
        fed = (rollout.lengths - 1).sum()  # tokens that a training forward processes
        student, teacher = 3 * fed, torch.zeros_like(fed)
        if rollout.counters is not None:
            prompt, counts = rollout.prompt_len.sum(), rollout.counters  # teacher_calls and student_steps are per row
            student, teacher = student + prompt + counts[6], teacher + prompt + counts[5] * gamma
            self.teacher_forwards += 1 + len(rollout.blocks)
        else:
            own = (rollout.source == STUDENT).any(1)
            student = student + (rollout.lengths * own).sum()
            if teacher_asked:
                teacher, self.teacher_forwards = teacher + fed, self.teacher_forwards + 1
        written = ((rollout.source == STUDENT) | (rollout.source == TEACHER)) & rollout.response_mask
        self.tokens += torch.stack([student, teacher, written.sum()])

    def count_offline_teacher(self, prompts, answers):
        """Add the answers that a teacher wrote before training (they are counted as generated at each use as well)."""
        self.tokens[1] += sum(map(len, prompts)) + sum(map(len, answers))
        self.teacher_forwards += max(map(len, answers))

    def figures(self):
        student, teacher, generated = self.tokens.tolist()
        flops = 2 * (self.weights[0] * student + self.weights[1] * teacher)
        return {"tokens_generated": generated, "teacher_forwards": self.teacher_forwards, "compute": flops / 1e12}


# ---------------------------------------------------------------------------------------------------------------------
# 3. One run, and all of them.


def run_name(variant, seed, budget):
    """The stem of a run's files."""
    return f"{variant}{'_compute' if budget == 'compute' else ''}_seed{seed}"


def about(pair, args):
    """What sample.py needs to know to show a model that a run left."""
    return {
        "task": args.task,
        "task_options": pair.task.options,
        "max_new_tokens": pair.max_new_tokens,
        "accept_top_k": args.accept_top_k,
    }


def run_one(args, folder, shared, variant, seed, budget="steps", steps=None):
    """One method with one seed, from the pair in the cache to its record and final student; -> a line about it."""
    torch.set_num_threads(1 if args.device_type == "cpu" else torch.get_num_threads())  # same numbers for every --jobs
    device, row = torch.device(args.device_type), VARIANTS[variant]
    pair = pairs.load_or_pretrain_pair(load_data(args), args.settings, device, report=lambda _: None)
    name, here = run_name(variant, seed, budget), argparse.Namespace(**vars(args) | {"steps": steps or args.steps})
    log = runs.RunLog(
        folder,
        name,
        shared
        | {
            "variant": variant,
            "seed": seed,
            "budget": budget,
            "sets_budget": variant == "skd",
            "row": dataclasses.asdict(row),
            **runs.describe_machine(device),
        },
    )
    try:
        student = pair.new_student()
        say = runs.say if args.jobs == 1 else lambda _: None
        say(f"{name}: {here.steps} steps")
        costs = distill(row, student, pair, here, seed, log, say)
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
        )
        save_checkpoint(
            str(Path(folder) / f"{name}.pt"),
            student,
            pair.tokenizer.state_dict(),
            variant=variant,
            seed=seed,
            score=figures["score"],
            **about(pair, args),
        )
        log.write("final", **figures, **costs)
    finally:
        log.close()
    return f"{name:<24} score {figures['score']:.3f}  sampled {figures['score_sampled']:.3f}  {costs['seconds']:.0f} s"


def load_task(args):
    """The task with the knobs that were given on the command line."""
    knobs = {name: getattr(args, name) for name in ("difficulty", "train_examples", "entropy", "hard_share", "stories")}
    options = args.task_options | {name: value for name, value in knobs.items() if value is not None}
    return make_task(args.task, data_dir=args.data_dir, **options)


def load_data(args):
    """The task as token ids, its test split cut to --measure examples."""
    data = pairs.encode_task(load_task(args), args.settings)
    data.splits["test"] = Encoded(*(column[: args.measure] for column in data.splits["test"]))
    return data


def parse_rule(text):
    """ "accept_min_prob=0.1" -> {"accept_min_prob": 0.1}; ValueError for anything else."""
    try:
        return {knob: float(value) for knob, value in (part.split("=") for part in text.split(",") if part)}
    except ValueError as error:
        raise ValueError(f"--rule takes KNOB=NUMBER, e.g. accept_min_prob=0.1; found {text!r}") from error


def parse_flags(argv=None):
    """Command line -> (args with everything resolved that needs no data, names of the methods)."""
    parser = runs.Parser(
        prog="train_skd.py", description="Distil a student from a fixed teacher: SKD and its baselines."
    )
    runs.add_shared_flags(parser, VARIANTS, MAIN, pairs.SIZES)
    group = parser.add_argument_group("sampling (skd)")
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
    group.add_argument(
        "--equal-compute", action="store_true", help="also run each method for as long as skd's model FLOPs last"
    )
    group.add_argument("--weight-decay", type=float, default=0.1, help="on the student's matrices")
    group.add_argument("--log-every", type=int, default=20, help="steps between logged lines")
    args = parser.parse_args(argv)

    names = runs.check_shared_flags(args, VARIANTS, MAIN)
    args.rule = parse_rule(args.rule)
    if args.equal_compute and "skd" not in names:
        raise ValueError("--equal-compute measures in units of skd: add it to --variants")
    check_rule(args.accept_rule, args.replace, args.accept_on, args.gamma, args.accept_top_k or 0, args.rule)
    args.device_type = runs.pick_device(args.device).type
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


def main(argv=None):
    """Task, pair, every method with every seed, table. Returns 0 only when every run finished."""
    args, names = parse_flags(argv)
    if args.list_variants:
        print(json.dumps({name: dataclasses.asdict(row) for name, row in VARIANTS.items()}, indent=2))
        return 0
    started = time.perf_counter()

    # 1. Task, tokenizer, pair. All that can be refused is refused before anything is written or trained.
    data = load_data(args)
    vocabulary = data.tokenizer.n_vocab
    if args.accept_top_k is None:
        args.accept_top_k = pairs.default_accept_top_k(data.vocabulary_in_use)
    if args.accept_top_k > vocabulary:
        raise ValueError(
            f"--accept-top-k must lie in 0..{vocabulary} (this tokenizer's vocabulary), found {args.accept_top_k}"
        )
    sizes = {name: len(split.prompts) for name, split in data.splits.items()}
    runs.say(
        f"task {args.task}: {sizes['train']} train, {sizes['val']} val, {sizes['test']} test, {sizes['ood']} ood examples"
        + (f" ({data.dropped} longer than the block left out)" if data.dropped else "")
    )
    runs.say(
        f"tokenizer: {vocabulary} tokens, {data.vocabulary_in_use} in use; block of {data.block_size}, at most "
        f"{data.max_new_tokens} new tokens; K = {args.accept_top_k}, gamma = {args.gamma}"
    )
    if args.task in corpora.CORPORA:
        runs.say(f"data: {corpora.corpus_note(args.task, args.data_dir)}")
    flags = runs.result_flags(args) | {"settings": dataclasses.asdict(args.settings)}
    inputs = corpora.corpus_inputs(args.task, args.data_dir) if args.task in corpora.CORPORA else {}  # name -> sha256
    folder = runs.make_run_folder(args.out, args.resume, f"skd-{args.task}{'-quick' if args.quick else ''}")
    seeds = range(args.seed, args.seed + args.seeds)
    budgets = ("steps", "compute") if args.equal_compute else ("steps",)
    for path in sorted(folder.glob("*.jsonl")):  # a table must not mix runs of different flags or data
        runs.read_finished(folder, path.stem, flags, inputs)
    device = torch.device(args.device_type)
    torch.set_num_threads(1 if device.type == "cpu" else torch.get_num_threads())
    pair = pairs.load_or_pretrain_pair(data, args.settings, device, report=runs.say)

    # 2. Where the comparison starts: the teacher and the untouched student.
    measure = {"gamma": args.gamma, "accept_top_k": args.accept_top_k, "seed": args.seed, "ood": pair.ood}
    start = pair.new_student().eval()
    teacher_figures, start_figures = (
        {"parameters": model.num_parameters()}
        | evaluate(model, judge, pair.task, pair.tokenizer, pair.test, pair.max_new_tokens, **measure)
        for model, judge in ((pair.teacher, None), (start, pair.teacher))
    )
    for label, model, figures in (("teacher", pair.teacher, teacher_figures), ("student_start", start, start_figures)):
        save_checkpoint(
            str(folder / f"{label}.pt"), model, pair.tokenizer.state_dict(), score=figures["score"], **about(pair, args)
        )
        runs.say(
            f"{label:<24} score {figures['score']:.3f}  sampled {figures['score_sampled']:.3f}  "
            f"{figures['parameters']:,} parameters"
        )
    shared = {  # what the header of every record says
        "script": "train_skd",
        "task": args.task,
        "metric": pair.task.metric,
        "order": list(VARIANTS),
        "flags": flags,
        "quick": args.quick,
        "jobs": args.jobs,
        "pair": pair.fingerprint,
        "vocabulary_in_use": data.vocabulary_in_use,
        "accept_top_k": args.accept_top_k,
        "inputs": inputs,
        "sources": runs.source_hashes(SOURCES),
        "teacher": teacher_figures,
        "student_start": start_figures,
    }

    # 3. Every method with every seed; what a resumed folder holds already is left as it is.
    failures = []
    for budget in budgets:
        todo = []
        for seed in seeds:
            for name in names:
                if budget == "compute" and name == "skd":
                    continue  # it sets the budget: its equal-steps run is its equal-compute run
                if runs.read_finished(folder, run_name(name, seed, budget), flags) is None:
                    steps = (
                        args.steps if budget == "steps" else equal_compute_steps(folder, name, seed, args.steps, flags)
                    )
                    todo.append((args, folder, shared, name, seed, budget, steps))
        failures += runs.run_all(run_one, [task for task in todo if task[-1]], args.jobs, runs.say)

    # 4. What came out.
    for task, line in failures:
        print(f"train_skd.py: run {run_name(*task[3:6])} failed: {line}", file=sys.stderr)
    print("\n" + report.write_report(folder))
    runs.say(
        f"{time.perf_counter() - started:.0f} s in all; table.md, curves.svg, summary.json and the students lie in {folder}"
    )
    if args.quick:
        runs.say("This was --quick, a smoke run: its numbers mean nothing.")
    return 1 if failures else 0


def equal_compute_steps(folder, variant, seed, steps, flags):
    """Steps after which `variant` has spent the model FLOPs of skd's run with the same seed; None where skd has not run."""
    own, skd = (runs.read_finished(folder, run_name(name, seed, "steps"), flags) for name in (variant, "skd"))
    return round(steps * skd["compute"] / own["compute"]) if own and skd else None


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (ValueError, OSError) as error:
        runs.exit_with("train_skd.py", error)
    except KeyboardInterrupt:
        runs.exit_with("train_skd.py", "interrupted: finished runs are kept, go on with --resume and the same --out")
