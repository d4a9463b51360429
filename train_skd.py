"""Distil a student from a fixed teacher: SKD (arXiv 2410.11325) and every baseline of its comparison.

    python train_skd.py                          all methods on the default task, with a table and curves at the end
    python train_skd.py --quick                  the same path in under a minute, a smoke run
    python train_skd.py --device cuda --size small --seeds 5
    python train_skd.py --resume                 goes on with the newest run, in the middle of what was under way
    python train_skd.py --task multi30k --data-dir DIR --size small --variants supervised,on_policy,skd

All methods are one loop, `distill`. They differ in what the row of VARIANTS says:

    WHO WRITES the response tokens that the student is trained on (write_tokens in sample.py):
        dataset      the references                                           (sft, supervised, hinton, and many more)
        teacher      the teacher, once, before training                       (seqkd, fdistill_kl)
        student      the student itself, now                                  (on_policy, opd)
        mixed        a coin decides between references, or the teacher's answers, and student    (imitkd, gkd)
        interleaved  the student proposes, the teacher replaces what it ranks poorly      (skd)
        switching    the student begins, the teacher ends                     (adaswitch)
    WHICH LOSS is taken on them: cross-entropy with the tokens, or a comparison with the teacher (losses.py).
    WHAT IS KEPT from step to step, if anything: a schedule, a buffer, a projector, a head (methods.py).
    WHICH TEACHER: the pair's, or one that is made from it first (takd, sftn).

Where this differs from the SKD paper: models of 30 k to 100 M parameters pretrained here, not 0.5 to 7 B; K scales with
the vocabulary in use; the loss is the mean over all response tokens of a batch (--reduction sequence gives Eq. 1's mean
over each response first); gamma follows the acceptance, which costs less and changes no token; the learning rate is of
tiny models. Where the paper differs from its released code, the paper is followed (README, "Paper and released code";
switches reproduce the code's way).
"""

import argparse
import dataclasses
import math
from dataclasses import dataclass, field

import torch

import methods
from lab import checks, command_line, compare, pairs, processes, records
from lab.checkpoints import Keeper
from lab.costs import Clock, Costs, Meter
from lab.evaluate import evaluate_quickly, sample_responses, step_figures
from losses import (
    DIVERGENCES,
    NO_TEACHER,
    Tokens,
    by_chunks,
    masked_mean,
    per_token_loss,
    weight_of,
    with_tail,
)
from model import GPT, GPTConfig, learning_rate, make_optimizer, move
from sample import DATASET, TEACHER, write_tokens


@dataclass(frozen=True)
class Variant:
    """One method. A new one is a new row below; flags, tests and the README's table follow.

    A None in `hyper` is what the flag of the same name says. In `sampling`, (shape, first, last) moves over the run,
    shape being "linear" or "cosine".
    """

    writer: str  # dataset | teacher | student | mixed | interleaved | switching
    loss: str  # "cross_entropy", or a name in one of the tables of losses.py
    paper: str | None  # arXiv id
    note: str  # what it changes
    ours: str = ""  # what is not the paper's: analogy, restriction, reconstruction
    hyper: dict = field(default_factory=dict)  # of the loss
    kd_weight: float = 1.0  # of the loss; the rest is cross-entropy on the tokens
    temperature: float = 1.0  # of both sides of the loss
    # mixed: chance that the student writes, in the first and in the second half of the run
    student_share: tuple = (0.0, 0.0)
    coin: str = "batch"  # mixed: one coin per "batch" or per "sequence"
    answers: float | None = None  # the teacher's answers at this temperature take the place of the references
    sampling: dict = field(default_factory=dict)  # goes before the sampling flags; accept_top_k is in units of the flag
    method: str | None = None  # a name in methods.METHODS: what is kept from step to step
    knobs: dict = field(default_factory=dict)  # of the method
    teacher: str = "pair"  # or "assistant", "friendly": made from the pair's before training

    def __post_init__(self):
        assert self.coin in ("batch", "sequence"), f"a coin is thrown per batch or per sequence, not per {self.coin}"
        assert not self.sampling or self.writer in ("interleaved", "switching"), f"{self.writer} has no use for {self.sampling}"
        shapes = {value[0] for value in self.sampling.values() if isinstance(value, tuple)}
        assert shapes <= {"linear", "cosine"}, f"a schedule is linear or cosine, found {shapes}"
        fixed = self.loss in NO_TEACHER and self.loss != "label_smoothing"
        assert not fixed or (self.kd_weight == 1 and not self.hyper), f"{self.loss} has neither hyper nor another loss beside it"


# fmt: off
VARIANTS = {
    # the comparison of the SKD paper
    "sft": Variant("dataset", "cross_entropy", None, "no teacher: cross-entropy on the references"),
    "supervised": Variant("dataset", "forward_kl", "1910.01108", "word-level KD on the references"),
    "seqkd": Variant("teacher", "cross_entropy", "1606.07947", "cross-entropy on the teacher's greedy answers, written once",
                     "greedy answers in place of beam search", answers=0.0),
    "on_policy": Variant("student", "forward_kl", "2306.13649", "KD on the student's own samples"),
    "imitkd": Variant("mixed", "forward_kl", "2009.07253", "a coin per sequence: reference or student sample",
                      "constant chance .5; the paper's annealing was not seen", student_share=(0.5, 0.5), coin="sequence"),
    "gkd": Variant("mixed", "generalized_jsd", "2306.13649", "a coin per batch: references or student samples; JSD",
                   hyper={"beta": 0.5}, student_share=(0.5, 0.5)),
    "two_stage": Variant("mixed", "forward_kl", "2410.11325", "references in the first half, student samples in the second",
                         student_share=(0.0, 1.0)),
    "skd": Variant("interleaved", "forward_kl", "2410.11325", "the student proposes, the teacher replaces what it ranks poorly"),

    # another loss on the references
    "hinton": Variant("dataset", "forward_kl", "1503.02531", "half cross-entropy, half KL between distributions softened by T = 2",
                      kd_weight=0.5, temperature=2.0),
    "tvd": Variant("dataset", "total_variation", "2307.15190", "total variation in place of KL"),
    "skew_kl": Variant("dataset", "skew_forward_kl", "2402.03898", "KL to a mixture with .1 teacher: gradients stay bounded"),
    "skew_reverse_kl": Variant("dataset", "skew_reverse_kl", "2402.03898", "reverse KL to a mixture with .1 student"),
    "abkd": Variant("dataset", "alpha_beta", "2505.04560", "alpha-beta divergence (.2, .7), between forward and reverse KL"),
    "amid": Variant("dataset", "amid", "2510.15982", "the teacher is compared with an alpha-mixture of both"),
    "akl": Variant("dataset", "adaptive_kl", "2404.02657", "forward and reverse KL over all tokens, weighed by how far the models differ on the teacher's head and on its tail",
                   "the head is the smallest set with half the mass, weights are constants"),
    "dkd": Variant("dataset", "decoupled_kd", "2203.08679", "KL split at the reference token: token against rest, and within the rest",
                   "from image classification, class = token; alpha 1 and beta 2 are ours; half cross-entropy",
                   hyper={"beta": 2.0}, kd_weight=0.5),
    "logit_std": Variant("dataset", "standardized_kl", "2403.01427", "logits are standardised over the vocabulary before the KL; .1 cross-entropy, which alone fixes the student's confidence",
                         "from image classification", kd_weight=0.9),
    "bild": Variant("dataset", "bidirectional_logit_differences", "2406.13555",
                    "pairwise differences of the 8 best logits, once the teacher's 8, once the student's"),
    "taid": Variant("dataset", "forward_kl", "2501.16937", "the target moves from the student's own logits to the teacher's",
                    "the schedule reads the KL, the paper's code the cross-entropy", method="interpolation"),
    "topk_kd": Variant("dataset", "top_k_kl", "2503.16870", "KL of the teacher's 8 best tokens and one bucket for all others",
                       "the bucket is ours", hyper={"top_k": 8}),
    "rs_kd": Variant("dataset", "forward_kl", "2503.16870", "cross-entropy with 12 tokens drawn from the teacher at every position",
                     "drawn from the teacher itself, no proposal", method="sampled_targets"),
    "uld": Variant("dataset", "universal_logit", "2402.12030", "probabilities are compared by rank, whatever the tokens",
                   "one tokenizer here, for which it is not made; 1.5 against 1 of cross-entropy", kd_weight=0.6),

    # another writer
    "fdistill_kl": Variant("teacher", "forward_kl", "2307.15190", "KL on the teacher's samples", answers=1.0),
    "fdistill_rkl": Variant("student", "reverse_kl", "2307.15190", "reverse KL on the student's samples"),
    "fdistill_js": Variant("mixed", "jsd_by_writer", "2307.15190", "JSD: its student part on student samples, its teacher part on teacher samples",
                           "one response per prompt, by a coin, in place of both; mean over tokens", answers=1.0, student_share=(0.5, 0.5), coin="sequence"),
    "fdistill_tvd": Variant("mixed", "total_variation", "2307.15190", "total variation, half on student samples and half on teacher samples",
                            "one response per prompt, by a coin, in place of both; mean over tokens", answers=1.0, student_share=(0.5, 0.5), coin="sequence"),
    "distillm": Variant("mixed", "skew_forward_kl", "2402.03898", "skew KL; references until validation worsens, then student samples, kept and replayed",
                        "validation NLL, asked eight times a run; no language-model loss on a pretraining corpus",
                        method="replay"),  # which says from batch to batch who of the mixed writes
    "distillm2": Variant("mixed", "skew_by_writer", "2503.07067", "skew KL on teacher samples, skew reverse KL on student samples",
                         "one response per prompt, by a coin, in place of both, hence half the paper's sum; the student's is drawn now, not once"
                         " per epoch; mean over tokens; the curriculum for alpha is off, as in its code",
                         answers=1.0, student_share=(0.5, 0.5), coin="sequence"),
    "distillspec": Variant("student", "total_variation", "2310.08461", "trains a draft: total variation is its rejection rate"),
    "opd": Variant("student", "policy_gradient", None, "on-policy policy gradient: log teacher - log student of the sampled token is its advantage",
                   "one update per batch, hence no importance ratio"),
    "opd_baseline": Variant("student", "policy_gradient", "2605.07865", "opd less what the position is worth on average: the same gradient, less noise",
                            hyper={"baseline": True}),
    "eopd": Variant("student", "entropy_gated_kl", None, "reverse KL on student samples, and forward KL where the teacher is unsure",
                    "reconstruction from the abstract (PMLR v306, jin26e): above .5 nats"),
    "speckd": Variant("dataset", "gated_forward_kl", "2510.24021", "KL only where the student's best token is among the teacher's K best",
                      "reconstruction; divided by all tokens", hyper={"accept_top_k": None}),
    "adaswitch": Variant("switching", "forward_kl", "2510.07842", "the student writes until it strays, then the teacher to the end",
                         "reconstruction: above three times the mean KL of the up to four tokens before, asked from the second token on;"
                         " the teacher writes at the student's temperature",
                         sampling={"factor": 3.0, "window": 4}),
    "fresh_teacher": Variant("interleaved", "forward_kl", None, "control: the teacher writes anew in every step, the student nothing",
                             "ours: skd that accepts nothing, whose proposals are paid for all the same",
                             sampling={"accept_rule": "none", "accept_on": "raw"}),
    "ca_opd": Variant("interleaved", "confidence_gated", None, "the teacher's probability decides, not its rank; cross-entropy on what it replaced",
                      "after Li et al. 2026; KL of the 8 best and a bucket elsewhere",
                      sampling={"accept_rule": "minprob", "accept_min_prob": ("cosine", 0.5, 0.25), "replace": "argmax", "accept_on": "raw"}),
    "skd_k_steps": Variant("interleaved", "forward_kl", None, "SKD with a K that grows over the run, from a third to twice",
                           "ours: a schedule that SKD does without",
                           sampling={"accept_rule": "topk", "accept_top_k": ("linear", 1 / 3, 2.0)}),
    "skd_k_along": Variant("interleaved", "forward_kl", None, "SKD with a K that falls along the response, from twice to a third",
                           "ours", sampling={"accept_rule": "topk_along", "first": 2.0, "last": 1 / 3, "along": 32.0, "accept_on": "raw"}),
    "skd_entropy": Variant("interleaved", "forward_kl", None, "SKD with a bar on the teacher's probability that falls where it is unsure",
                           "ours: typical acceptance", sampling={"accept_rule": "typical", "accept_on": "raw"}),

    # features, added to word-level KD on the references
    "fitnet": Variant("dataset", "forward_kl", "1412.6550", "+ squared error of the middle block's output, behind a projector",
                      "together with KD, not as a stage before it", method="feature", knobs={"feature": "hidden_mse", "weight": 1.0}),
    "hidden_cosine": Variant("dataset", "forward_kl", "1910.01108", "+ 1 - cosine of the last block's output, behind a projector",
                             "the projector, since the widths differ", method="feature", knobs={"feature": "hidden_cosine", "at": "last"}),
    "at": Variant("dataset", "forward_kl", "1612.03928", "+ where along the sequence the activations are large",
                  "position of a sequence = pixel; the sum over positions, not their mean", method="feature", knobs={"feature": "attention_transfer", "weight": 10.0}),
    "sp": Variant("dataset", "forward_kl", "1907.09682", "+ which positions of a sequence resemble each other",
                  "position of a sequence = sample of a batch", method="feature",
                  knobs={"feature": "similarity_preserving", "at": "last", "weight": 10.0}),
    "rkd_distance": Variant("dataset", "forward_kl", "1904.05068", "+ distances between the positions of a sequence",
                            "16 positions of a sequence = samples of a batch; weight 1 in place of 25", method="feature",
                            knobs={"feature": "rkd_distance", "at": "last", "weight": 1.0, "most": 16}),
    "rkd_angle": Variant("dataset", "forward_kl", "1904.05068", "+ angles between the positions of a sequence",
                         "16 positions of a sequence = samples of a batch; weight 2 in place of 50", method="feature",
                         knobs={"feature": "rkd_angle", "at": "last", "weight": 2.0, "most": 16}),
    "rkd": Variant("dataset", "forward_kl", "1904.05068", "+ distances and angles between the positions of a sequence",
                   "16 positions of a sequence = samples of a batch; weights 1 and 2 in place of 25 and 50", method="feature",
                   knobs={"feature": "rkd", "at": "last", "weight": 0.04, "most": 16}),
    "fsp": Variant("dataset", "forward_kl", "10.1109/CVPR.2017.754", "+ how features go from the middle block to the last",
                   "positions = pixels; together with KD, behind projectors", method="flow"),

    "dskd": Variant("dataset", "forward_kl", "2406.17328",
                    "both models' last features under one head: the teacher's under the student's, the student's under the teacher's",
                    "one tokenizer; KL in both spaces; half cross-entropy", kd_weight=0.5, method="dual_space"),

    # papers of other fields
    "cmkd": Variant("dataset", "cmkd", "2410.06561", "Pearson and Spearman correlation with the teacher in place of KL",
                    "restricted to the teacher's 32 best tokens, renormalised; ranks are soft (sigmoids of differences, .1); weights by the entropy's share of"
                    " the log of the whole vocabulary are a reconstruction; half cross-entropy", kd_weight=0.5),
    "ckd": Variant("dataset", "comparative", "2311.02253", "differences between the logits of two positions are matched, not the logits",
                   "positions of one sequence = samples, all pairs in closed form; differences leave the mean logits free, which cross-entropy"
                   " fixes in place of the paper's labels' part", hyper={"label_weight": 0.0}, kd_weight=0.5),
    "lelp": Variant("dataset", "forward_kl", "2409.20449", "+ the teacher's last feature splits each token into 4 parts, to be learned too",
                    "reconstruction, restricted to the teacher's 2 best tokens and the 256 most frequent ones; directions scaled to unit deviation", method="subclasses"),
    "rdd": Variant("dataset", "forward_kl", "2407.03719", "+ cross-entropy on easy tokens first, then where one of both models has it hard",
                   "token = pixel; the teacher's middle block = auxiliary head; a median in place of .7; divided by all tokens, with no least number that counts", method="regions"),
    "kdiga": Variant("dataset", "forward_kl", "2110.12072", "+ both losses must react alike to a change of the input",
                     "analogy: one-hot tokens = pixels, at the token and the teacher's 4 guesses for it; gradients of unit length", method="input_gradient", knobs={"weight": 0.05}),
    "lwkd": Variant("dataset", "cross_entropy", "2005.09163", "soft labels of a classifier that never sees the text, and a discriminator",
                    "analogy: points with noise = its simple pictures", method="soft_labels"),
    "label_smoothing": Variant("dataset", "label_smoothing", "1512.00567", "control for lwkd: .9 on the reference, .1 spread over the tokens in use",
                               method="smoothing"),
    "one": Variant("dataset", "cross_entropy", "1806.04606", "no teacher: three branches on one trunk learn from their gated sum",
                   "one gate per position, even at first; one branch is the pair's, the others start anew", method="branches"),

    # another teacher
    "takd": Variant("dataset", "forward_kl", "1902.03393", "a teacher's assistant of middle size is distilled first and then teaches",
                    "the assistant learns for three times the student's steps, since it starts from nothing", teacher="assistant"),
    "sftn": Variant("dataset", "forward_kl", "2102.07650", "the teacher first learns on together with a student's upper half",
                    "reconstruction: one branch behind the middle block", teacher="friendly"),
}
# fmt: on
MAIN = ("sft", "supervised", "seqkd", "on_policy", "imitkd", "gkd", "two_stage", "skd")  # the comparison of the paper (its section 5)


# ---------------------------------------------------------------------------------------------------------------------
# What a row says about this step.


def resolve(row, args):
    """The row with the flags' values in place of None."""
    return dataclasses.replace(row, hyper={k: getattr(args, k) if v is None else v for k, v in row.hyper.items()})


def scheduled(value, progress):
    """A number, or (shape, first, last) at `progress` in [0, 1): ("linear", 1, 3) at .5 is 2, so is ("cosine", 1, 3)."""
    if not isinstance(value, (tuple, list)):
        return value
    shape, first, last = value
    share = progress if shape == "linear" else (1 - math.cos(math.pi * progress)) / 2
    return first + (last - first) * share


def sampling_now(row, args, progress):
    """The keywords of write_tokens at this point of the run: the flags, and before them what the row says."""
    options = command_line.sampling_options(args)
    own = {knob: scheduled(value, progress) for knob, value in row.sampling.items()}
    if row.writer == "switching":
        return options | {"switching": own}
    if "accept_rule" in own:  # knobs of the flag's rule are none of this one's
        options["interleaved"] = {k: v for k, v in options["interleaved"].items() if k not in args.rule}
    if "accept_top_k" in own:
        own["accept_top_k"] *= args.accept_top_k
    return options | {"interleaved": options["interleaved"] | own}


# ---------------------------------------------------------------------------------------------------------------------
# The loop of every method with a fixed teacher.


def distill(row, student, pair, args, seed, log, say, keeper=None):
    """Train `student` in place for args.steps updates -> (dict of costs, None: no adapted teacher).

    Reads from top to bottom: write, judge, learn. `keeper` saves the state, and knows whether some steps are done already.
    """
    keeper = keeper or Keeper()
    device, row = next(student.parameters()).device, resolve(row, args)
    order = pairs.batch_order(len(pair.train.prompts), args.batch_size, args.steps, torch.Generator().manual_seed(seed))
    sampling = torch.Generator().manual_seed(1_000_003 * seed + 1)
    meter = Meter(device)
    with meter.paused():  # it has a clock of its own
        taught, prepared = TEACHERS[row.teacher](pair, args, seed, keeper)  # the pair, with the teacher that the student learns from
    meter.seconds += prepared.pop("seconds", 0.0)
    teacher, method = taught.teacher, methods.begin(row, student, taught, args, seed)
    optimizer = make_optimizer(student, args.lr, weight_decay=args.weight_decay)
    costs = Costs(student, teacher)
    meter.hold(student, teacher, method)
    costs.count_preparation(**prepared)
    costs.count_preparation(**method.prepared)
    references, by_teacher = pair.train.responses, row.answers is not None
    passes = compare.passes_of(args, pair)  # precision, chunks, who shares the batch: how it is computed, not what
    student.recompute = args.recompute and not method.plain_pass
    learner = processes.learner(student, args.compile and not method.plain_pass)
    if by_teacher:
        # Greedy answers stand in for the beam search of Kim & Rush: both aim at the teacher's most likely response.
        question = (teacher, pair.train.prompts, pair.max_new_tokens, pair.tokenizer.eos_token)
        references = keeper.found("answers", lambda: sample_responses(*question, seed=seed, temperature=row.answers)[0])
        costs.count_offline_teacher(pair.train.prompts, references)
    cache = None
    if args.cache_teacher is not None and asks_about_references(row):
        cache = compare.open_cache(pair, args, say)
        costs.count_cache(pair.train.prompts, references)
    buckets = cache is not None and cache.best > 0
    asks = row.loss not in NO_TEACHER  # whether the loss wants to know the teacher's distribution

    def validate():
        """Figures on the validation split, at the cost of no one's clock and memory."""
        with meter.paused():
            student.eval()
            figures = evaluate_quickly(student, pair.teacher, pair.task, pair.tokenizer, pair.val, pair.max_new_tokens)
            student.train()
            return figures

    if method.asks_start:
        method.after_evaluation(validate())
    parts = {"student": student, "optimizer": optimizer, "method": method, "sampling": sampling}
    done = keeper.restore(**parts, costs=costs, meter=meter, log=log)
    warn, finite = checks.warner(log, say), checks.Finite(order, keeper, f"--lr ({args.lr})", device)
    with meter.paused():
        still = checks.Stillness(student, teacher) if done == 0 else None

    for step, rows in enumerate(order[done:].tolist(), done):
        half, last = int(2 * step >= args.steps), step + 1 == args.steps
        logged = step % args.log_every == 0 or last
        clock = Clock(device, exact=logged)

        # Who writes? (With several processes, each its own rows of the batch.)
        places = passes.share(len(rows))
        own = [rows[place] for place in places]
        method.before_step(step, places)

        def write(writer):
            return write_tokens(
                writer,
                student,
                teacher,
                [pair.train.prompts[i] for i in own],
                [references[i] for i in own],
                pair.max_new_tokens,
                generator=sampling,
                eos_token=pair.tokenizer.eos_token,
                student_share=row.student_share[half],
                coin=row.coin,
                reference_source=TEACHER if by_teacher else DATASET,
                rows=places,
                batch_size=len(rows),
                **sampling_now(row, args, step / args.steps),
            )

        with passes.precision, finite.naming(step):
            rollout = method.write(write)
        clock.mark("sampling")
        inputs, targets, source = rollout.tokens[:, :-1], rollout.tokens[:, 1:], rollout.source[:, 1:]
        target_mask = rollout.response_mask[:, 1:]
        total = processes.across(weight_of(target_mask, args.reduction))  # what the loss of the whole batch is divided by

        optimizer.zero_grad(set_to_none=True)
        losses, columns = [], []
        for part, final in processes.parts(len(own), args.micro_batch):
            with processes.averaging(final, learner):
                with passes.precision, meter:
                    # What is the student compared with? Row t of the teacher's logits predicts token t+1; SKD's
                    # verification has computed them already, and a cache holds what it said about references.
                    kept = None if method.sees_teacher else compare.kept_logits(rollout, teacher, part)
                    stored = cache.batch(own[part], inputs.size(1), device) if cache else None
                    teacher_logits = seen_teacher = None
                    if stored:
                        teacher_logits = stored[-1]
                    elif kept is not None:
                        teacher_logits = kept
                    elif asks:
                        with torch.no_grad(), method.watching(teacher, is_student=False) as seen_teacher:
                            teacher_logits = passes.logits(teacher, inputs[part])
                    clock.mark("teacher")

                    # The student learns: a per-token loss, one masked mean.
                    with method.watching(student, is_student=True) as seen_student:
                        student_logits = compared = passes.logits(learner, inputs[part], student)
                    if buckets:  # of the cache: the teacher's best tokens, and all others as one
                        compared = by_chunks(with_tail, student_logits, stored[0])
                    tokens = Tokens(targets[part], target_mask[part], source[part] == TEACHER)
                    seen = (seen_student, seen_teacher)
                    batch = methods.Batch(
                        compared, teacher_logits, tokens, inputs[part], places[part], (student, teacher), seen
                    )
                    per_token = method.per_token(batch)
                    loss = masked_mean(per_token, target_mask[part], args.reduction, total)
                loss.backward()
            losses.append((loss.detach(), per_token.detach()))
            clock.mark("student")
            if step == 0 and part.start == 0:
                with meter.paused(), passes.precision:
                    warn(signal_of(row, method, batch))
            if logged:
                columns.append(compare.columns_of(student_logits, None if buckets else teacher_logits))
                clock.mark("logging")

        rate = learning_rate(step, args.steps, args.lr)
        gradient_norm = move(student, optimizer, rate)
        loss = processes.across(torch.stack([part for part, _ in losses]).sum())
        method.after_step(loss)
        method.learn(rate)
        meter.stop()
        clock.mark("update")
        if step == 0:
            with meter.paused():
                warn(still.check())
            clock.mark("logging")
        finite.see(step, loss + gradient_norm)
        costs.count_writing(rollout, method.writer)
        asked = int(asks and not cache and kept is None)
        costs.count_learning(
            rollout, 3 + method.student_passes, asked + method.teacher_passes, asked, method.products
        )

        # What happened? Read from the device only now and then.
        if logged:
            finite.check()
            per_token = torch.cat([part for _, part in losses])
            figures = step_figures(rollout, torch.cat(columns), per_token, pair.max_new_tokens)
            figures |= clock.figures("sampling", "teacher", "student", "update")
            log.write("step", step=step + 1, loss=loss.item(), gradient_norm=gradient_norm.item(), lr=rate, **figures)
        if (step + 1) % max(1, args.steps // 8) == 0 or last:
            with finite.naming(step):
                figures = validate()
                log.write("eval", step=step + 1, **figures)
            method.after_evaluation(figures)
            say(
                f"  step {step + 1:>5}/{args.steps}  loss {loss.item():.4f}  val score {figures['score']:.3f}"
                f"  val nll {figures['val_nll']:.3f}"
            )
        if keeper.due(step + 1, last):
            with meter.paused():
                finite.check()
                keeper.save(step + 1)
    student.eval()
    return {"steps": args.steps} | meter.figures() | costs.figures(), None


def signal_of(row, method, batch):
    """Whether the teacher reaches the student's loss on a batch: checks.check_signal of the row's own loss."""
    if batch.teacher_logits is None or row.kd_weight == 0:
        return None
    take = method.per_token if method.own_loss else method.word_loss
    both_logits = [checks.first_rows(one) for one in (batch.student_logits, batch.teacher_logits)]
    tokens = Tokens(*(checks.first_rows(column) for column in batch.tokens))
    batch = batch._replace(tokens=tokens, inputs=checks.first_rows(batch.inputs), places=checks.first_rows(batch.places))

    def loss_of(student_logits, teacher_logits):
        per_token = take(batch._replace(student_logits=student_logits, teacher_logits=teacher_logits))
        return masked_mean(per_token, batch.tokens.mask)

    def distance_of(student_logits, teacher_logits):
        per_token = per_token_loss(row.loss, student_logits, teacher_logits, batch.tokens, **row.hyper)
        return masked_mean(per_token, batch.tokens.mask)

    if row.loss in DIVERGENCES and not method.own_loss:  # whatever stands beside it
        found = checks.check_signal(distance_of, *both_logits, is_divergence=True)
        if row.kd_weight == row.temperature == 1:  # nothing does
            return found
    has_gate = row.loss in ("gated_forward_kl", "confidence_gated")
    return checks.check_signal(loss_of, *both_logits, is_divergence=False, has_gate=has_gate)


def unreached(flag, name, args):
    """Why a flag does not reach the training of a method, as what follows "which"; None where it does."""
    row = VARIANTS[name]
    if flag in row.hyper and row.hyper[flag] is None:
        return None
    if flag == "cache_teacher" and not asks_about_references(row):
        return "takes nothing from a cache"
    if flag in ("recompute", "compile") and row.method and methods.METHODS[row.method].plain_pass:
        return "needs the student's pass as it is"
    return command_line.unreached_tokens(flag, row.writer, row.sampling, args)


def check_row(name, args, examples):
    """ValueError for a method that cannot work with these flags, whatever the pair."""
    warped = args.student_temperature != 1 or args.student_top_p is not None
    if VARIANTS[name].loss == "policy_gradient" and warped:
        raise ValueError(
            f"{name} weighs its samples as the student's own, without an importance ratio: leave out --student-temperature"
            " and --student-top-p, or leave it out of --variants"
        )
    if resolve(VARIANTS[name], args).hyper.get("accept_top_k") == 0:
        raise ValueError(f"--accept-top-k 0 leaves {name} without a loss: give at least 1, or leave it out of --variants")


def asks_about_references(row):
    """Whether a method's teacher says the same in every epoch and nothing but that, so that --cache-teacher can keep it."""
    plain = row.method is None and row.teacher == "pair" and row.temperature == row.kd_weight == 1
    return row.writer == "dataset" and plain and row.loss in DIVERGENCES


# ---------------------------------------------------------------------------------------------------------------------
# Whom the student learns from: (pair, args, seed, keeper) -> (the pair with that teacher, what preparing it cost: keywords of
# Costs.count_preparation, and seconds). What is measured is measured against the pair's own.


def pairs_teacher(pair, args, seed, keeper):
    """The pair's own teacher."""
    return pair, {}


def assistant(pair, args, seed, keeper):
    """TAKD (arXiv 1902.03393): a model between the two in depth and width, drawn anew, and distilled from the teacher.

    The link is a run of `supervised` of its own, three times as long as the student's; a chain of more links would be more
    of these.
    """
    shapes = [(config.n_layer, config.n_head, config.n_embd) for config in (pair.student_config, pair.teacher.config)]
    n_layer, n_head, n_embd = (round(math.sqrt(small * large)) for small, large in zip(*shapes))
    n_embd = n_head * round(n_embd / n_head)
    config = GPTConfig(pair.student_config.vocab_size, pair.student_config.block_size, n_layer, n_head, n_embd)
    between = GPT(config, torch.Generator().manual_seed(1_000_003 * seed + 5)).to(next(pair.teacher.parameters()).device)
    link = dataclasses.replace(pair, val=pair.val._replace(**{k: column[:1] for k, column in pair.val._asdict().items()}))
    longer = argparse.Namespace(**vars(args) | {"steps": 3 * args.steps, "cache_teacher": None})
    with keeper.inner("assistant") as inner:
        untold = (records.NoLog(), lambda line: None)
        spent, _ = distill(VARIANTS["supervised"], between.train(), link, longer, seed, *untold, inner)
    between.zero_grad(set_to_none=True)
    prepared = {"tflop": spent["compute"], "teacher_forwards": spent["teacher_forwards"], "grows": True}
    prepared["seconds"] = spent["seconds"]
    return dataclasses.replace(pair, teacher=between.requires_grad_(False)), prepared


def friendly(pair, args, seed, keeper):
    """SFTN: a copy of the teacher that has learned on, together with a student's upper half."""
    with keeper.inner("friendly") as inner:
        teacher, prepared = methods.friendly_teacher(pair, args, seed, inner)
    return dataclasses.replace(pair, teacher=teacher), prepared


TEACHERS = {"pair": pairs_teacher, "assistant": assistant, "friendly": friendly}


# ---------------------------------------------------------------------------------------------------------------------
# The script: what lies around the loop is lab/compare.py, the same for train_okd.py.


def run_one(args, folder, shared, variant, seed, budget="steps", steps=None):
    """One method with one seed -> a line about it."""
    return compare.run_one(distill, VARIANTS[variant.split()[0]], args, folder, shared, variant, seed, budget, steps)


def parse_flags(argv=None):
    """Command line -> (args with everything resolved that needs no data, names of the methods)."""
    description = "Distil a student from a fixed teacher: SKD and its baselines."
    parser = command_line.make_parser("train_skd", description, VARIANTS, MAIN)
    args, names = command_line.parse(parser, argv, VARIANTS, MAIN, "train_skd", unreached)
    command_line.check_cache(args)
    return args, names


def main(argv=None):
    """Task, pair, every method with every seed, table. Returns 0 only when every run finished."""
    args, names = parse_flags(argv)
    return compare.compare("train_skd", args, names, VARIANTS, run_one, check_row)


if __name__ == "__main__":
    compare.run_script("train_skd", main)
