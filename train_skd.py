"""Distil a student from a fixed teacher: SKD (arXiv 2410.11325) and every baseline of its comparison.

    python train_skd.py                          all methods on the default task, with a table and curves at the end
    python train_skd.py --quick                  the same path in under a minute, a smoke run
    python train_skd.py --device cuda --size small --seeds 5
    python train_skd.py --task multi30k --data-dir DIR --size small --variants supervised,on_policy,skd

All methods are one loop, `distill`. They differ in two things only, the row of VARIANTS says which:

    WHO WRITES the response tokens that the student is trained on (write_tokens in sample.py):
        dataset      the references                                           (sft, supervised)
        teacher      the teacher, once, before training                       (seqkd)
        student      the student itself, now                                  (on_policy)
        mixed        a coin decides between references and student            (imitkd, gkd, two_stage)
        interleaved  the student proposes, the teacher replaces what it ranks poorly      (skd)
    WHICH LOSS is taken on them: cross-entropy with the tokens, or a divergence from the teacher's distribution.

Where this differs from the SKD paper: models of 30 k to 100 M parameters pretrained here, not 0.5 to 7 B; K scales with
the vocabulary in use; the loss is the mean over all response tokens of a batch (--reduction sequence gives Eq. 1's mean
over each response first); gamma follows the acceptance, which costs less and changes no token; the learning rate is of
tiny models. Where the paper differs from its released code, the paper is followed (README, "Paper and released code";
switches reproduce the code's way).
"""

import functools
import time
from dataclasses import dataclass, field

import torch

from data import experiment, pairs, runs
from data.evaluate import Clock, Costs, Memory, evaluate_quickly, sample_responses, step_figures
from losses import DIVERGENCES, by_chunks, cross_entropy, masked_mean, weight_of, with_tail
from model import learning_rate, make_optimizer
from sample import write_tokens


@dataclass(frozen=True)
class Variant:
    """One method. A new one is a new row below; flags, tests and the README's table follow."""

    writer: str  # dataset | teacher | student | mixed | interleaved
    loss: str  # "cross_entropy", or a name in losses.DIVERGENCES
    paper: str | None  # arXiv id
    note: str
    hyper: dict = field(default_factory=dict)  # of the divergence
    # mixed: chance that the student writes, in the first and in the second half of the run
    student_share: tuple = (0.0, 0.0)
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


# ---------------------------------------------------------------------------------------------------------------------
# The loop of every method with a fixed teacher.


def distill(row, student, pair, args, seed, log, say):
    """Train `student` in place for args.steps updates -> (dict of costs, None: no adapted teacher).

    Reads from top to bottom: write, judge, learn.
    """
    device, teacher = next(student.parameters()).device, pair.teacher
    optimizer = make_optimizer(student, args.lr, weight_decay=args.weight_decay)
    order = pairs.batch_order(len(pair.train.prompts), args.batch_size, args.steps, torch.Generator().manual_seed(seed))
    sampling = torch.Generator().manual_seed(1_000_003 * seed + 1)
    first_bad = torch.full((), -1, device=device)  # the first step whose loss or gradient was not finite
    costs, memory = Costs(student, teacher), Memory(student, teacher)
    evaluation_seconds, started = 0.0, time.perf_counter()
    references, sampled_with = pair.train.responses, experiment.sampling_options(args)
    passes = experiment.passes_of(args, pair)  # precision, chunks, who shares the batch: how it is computed, not what
    student.recompute, learner = args.recompute, runs.learner(student, args.compile)
    loss_of, cache = cross_entropy, None
    if row.loss != "cross_entropy":
        loss_of = functools.partial(DIVERGENCES[row.loss], **row.hyper)
    if row.writer == "teacher":
        # Greedy answers stand in for the beam search of Kim & Rush: both aim at the teacher's most likely response.
        references, _ = sample_responses(
            teacher, pair.train.prompts, pair.max_new_tokens, pair.tokenizer.eos_token, seed=seed, temperature=0
        )
        costs.count_offline_teacher(pair.train.prompts, references)
    if args.cache_teacher is not None and asks_about_references(row):
        cache = experiment.open_cache(pair, args, say)
        costs.count_cache(pair.train.prompts, references)
    buckets = cache is not None and cache.best > 0

    for step, rows in enumerate(order.tolist()):
        half, last = int(2 * step >= args.steps), step + 1 == args.steps
        logged = step % args.log_every == 0 or last
        clock = Clock(device, exact=logged)

        # Who writes? (With several processes, each its own rows of the batch.)
        places = passes.share(len(rows))
        own = [rows[place] for place in places]
        with passes.precision:
            rollout = write_tokens(
                row.writer,
                student,
                teacher,
                [pair.train.prompts[i] for i in own],
                [references[i] for i in own],
                pair.max_new_tokens,
                generator=sampling,
                eos_token=pair.tokenizer.eos_token,
                student_share=row.student_share[half],
                coin=row.coin,
                rows=places,
                batch_size=len(rows),
                **sampled_with,
            )
        clock.mark("sampling")
        inputs, targets = rollout.tokens[:, :-1], rollout.tokens[:, 1:]
        target_mask = rollout.response_mask[:, 1:]
        total = runs.across(weight_of(target_mask, args.reduction))  # what the loss of the whole batch is divided by

        optimizer.zero_grad(set_to_none=True)
        losses, columns = [], []
        for part, final in runs.parts(len(own), args.micro_batch):
            with runs.averaging(final, learner):
                with passes.precision, memory:
                    # What is the student compared with? Row t of the teacher's logits predicts token t+1; SKD's
                    # verification has computed them already, and a cache holds what it said about references.
                    kept = experiment.kept_logits(rollout, teacher, part)
                    stored = cache.batch(own[part], inputs.size(1), device) if cache else None
                    if row.loss == "cross_entropy":
                        judgement = targets[part]
                    elif stored:
                        judgement = stored[-1]
                    elif kept is not None:
                        judgement = kept
                    else:
                        with torch.no_grad():
                            judgement = passes.logits(teacher, inputs[part])
                    clock.mark("teacher")

                    # The student learns: a per-token loss, one masked mean.
                    student_logits = compared = passes.logits(learner, inputs[part], student)
                    if buckets:  # of the cache: the teacher's best tokens, and all others as one
                        compared = by_chunks(with_tail, student_logits, stored[0])
                    per_token = by_chunks(loss_of, compared, judgement)
                    loss = masked_mean(per_token, target_mask[part], args.reduction, total)
                loss.backward()
            losses.append((loss.detach(), per_token.detach()))
            clock.mark("student")
            if logged:
                whole = row.loss != "cross_entropy" and not buckets
                columns.append(experiment.columns_of(student_logits, judgement if whole else None))
                clock.mark("logging")

        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, args.steps, args.lr)
        gradient_norm = torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        optimizer.step()
        memory.stop()
        clock.mark("update")
        loss = runs.across(torch.stack([part for part, _ in losses]).sum())
        bad = ~torch.isfinite(loss + gradient_norm)
        first_bad = torch.where((first_bad < 0) & bad, step, first_bad)  # stays on the device
        costs.count_writing(rollout, row.writer)
        asked = row.loss != "cross_entropy" and not cache and kept is None
        costs.count_learning(rollout, student_passes=3, teacher_passes=int(asked))

        # What happened? Read from the device only now and then.
        if logged:
            if first_bad >= 0:
                raise ValueError(
                    f"loss or gradient is not finite at step {first_bad + 1} (train examples "
                    f"{order[first_bad, :8].tolist()}...): lower --lr ({args.lr}); the records so far are kept"
                )
            per_token = torch.cat([part for _, part in losses])
            figures = step_figures(rollout, torch.cat(columns), per_token, pair.max_new_tokens)
            figures |= clock.figures("sampling", "teacher", "student", "update")
            rate = learning_rate(step, args.steps, args.lr)
            log.write("step", step=step + 1, loss=loss.item(), gradient_norm=gradient_norm.item(), lr=rate, **figures)
        if (step + 1) % max(1, args.steps // 8) == 0 or last:
            before = time.perf_counter()
            memory.pause()
            student.eval()
            figures = evaluate_quickly(student, teacher, pair.task, pair.tokenizer, pair.val, pair.max_new_tokens)
            student.train()
            log.write("eval", step=step + 1, **figures)
            say(
                f"  step {step + 1:>5}/{args.steps}  loss {loss.item():.4f}  val score {figures['score']:.3f}"
                f"  val nll {figures['val_nll']:.3f}"
            )
            memory.resume()
            evaluation_seconds += time.perf_counter() - before
    student.eval()
    seconds = time.perf_counter() - started - evaluation_seconds
    return {"steps": args.steps, "seconds": seconds, "memory_mb": memory.megabytes()} | costs.figures(), None


def asks_about_references(row):
    """Whether a method's teacher says the same in every epoch, so that --cache-teacher can keep it."""
    return row.writer == "dataset" and row.loss != "cross_entropy"


# ---------------------------------------------------------------------------------------------------------------------
# The script: what lies around the loop is data/experiment.py, the same for train_okd.py.


def run_one(args, folder, shared, variant, seed, budget="steps", steps=None):
    """One method with one seed -> a line about it."""
    return experiment.run_one(distill, VARIANTS[variant.split()[0]], args, folder, shared, variant, seed, budget, steps)


def parse_flags(argv=None):
    """Command line -> (args with everything resolved that needs no data, names of the methods)."""
    description = "Distil a student from a fixed teacher: SKD and its baselines."
    parser = experiment.make_parser("train_skd", description, VARIANTS, MAIN)
    args, names = experiment.parse(parser, argv, VARIANTS, MAIN, "train_skd")
    experiment.check_cache(args, any(asks_about_references(VARIANTS[name]) for name in names))
    return args, names


def main(argv=None):
    """Task, pair, every method with every seed, table. Returns 0 only when every run finished."""
    args, names = parse_flags(argv)
    return experiment.compare("train_skd", args, names, VARIANTS, run_one)


if __name__ == "__main__":
    experiment.run_script("train_skd", main)
