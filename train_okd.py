"""Distil a student from a teacher that moves: OKD (arXiv 2409.12512), its controls and its relatives.

    python train_okd.py                          the paper's comparison on the default task
    python train_okd.py --quick                  the same path in under a minute, a smoke run
    python train_okd.py --device cuda --size small --seeds 5 --variants fixed_forward_kl,okd_no_feedback,okd
    python train_okd.py --resume                 goes on with the newest run, in the middle of what was under way
    python train_okd.py --alpha 0.25 --module-lr 1                   both players at one rate, as in the paper

Two players and one batch. The teacher's own weights are frozen; a small online module beside them (LoRA on the queries
and values, unless said otherwise) learns along with the student. Each step, from ONE forward of each model:

    student:  KL(teacher || student)                                                                         (Eq. 17)
    teacher:  alpha * KL(student || teacher) + (1 - alpha) * cross-entropy on the references                 (Eq. 16)

Either side takes the other's distribution as a constant, and both distributions are computed before either moves. So
each runs the same code with the roles swapped: `player_loss`. Taken alone, the teacher's loss pulls it towards the
mixture alpha * student + (1 - alpha) * data: at alpha 0 the student has no say in it (okd_no_feedback, the control that
the paper lacks), at alpha 1 nothing but the student has one, and both may agree on anything (okd_collapse).

A third kind of feedback is an exam (ikd, metadistil): the teacher moves such that a student who takes one step towards it
does better on references that the student never learns from: `exam_gradient`.

Whatever trains towards an adapted teacher looks good against it. Here every distance is to the ORIGINAL teacher (but for
the step lines' agreement and entropy, which are the adapted one's); the
adapted one has its own columns, and its drift and its own score are part of the record.
"""

import dataclasses
import functools
import math
from dataclasses import dataclass

import torch

from data import checks, cli, experiment, pairs, runs
from data.evaluate import Clock, Costs, Meter, evaluate_quickly, step_figures
from data.resume import Keeper
from features import second_order
from losses import (
    DIVERGENCES,
    by_chunks,
    cross_entropy,
    kl,
    masked_mean,
    minillm,
    reverse_kl,
    soften,
    weight_of,
    with_tail,
)
from model import ONLINE_MODULES, OnlineTeacher, learning_rate, make_optimizer, move
from sample import DATASET, rollout_from_ids, write_tokens

DRIFT_WARNING = 0.03  # KL(original || adapted) in nats per token; README, "Choosing the module's rate"


@dataclass(frozen=True)
class Variant:
    """One method. None means: what the flag of the same name says."""

    paper: str | None  # arXiv id
    note: str
    writer: str = "dataset"  # of the tokens that divergences are taken on (sample.write_tokens)
    student_share: tuple = (0.0, 0.0)  # mixed: in the first and in the second half
    coin: str = "batch"
    # the student's side
    student_divergence: str | None = None  # a name in losses.DIVERGENCES, or "minillm"
    student_kd: float | None = None  # weight of the divergence; the rest is cross-entropy on the references
    # the teacher's side; without a module it is fixed
    module: str | None = None  # a name in model.ONLINE_MODULES; "flag": the one of --module
    module_lr: float | None = None  # as a share of the student's
    alpha: float | None = None  # weight of the student's feedback; the rest is cross-entropy on the references
    teacher_divergence: str | None = None
    anchor: float | None = None  # weight of KL(adapted || original)
    anchor_decay: bool = False  # the anchor falls linearly to 0
    update: str | None = None  # "simultaneous", or "alternating": the student learns from the teacher after its update
    rank: int | None = None
    # in place of the teacher's loss: the gradient of an exam, "exact" or by "difference"
    exam: str | None = None
    ours: str = ""  # what is not the paper's


# fmt: off
VARIANTS = {
    # fixed teacher: the baselines of the paper
    "sft": Variant(None, "no teacher: cross-entropy on the references", student_divergence="forward_kl", student_kd=0.0),
    "fixed_forward_kl": Variant("1910.01108", "word-level KD: forward KL to the fixed teacher", student_divergence="forward_kl"),
    "fixed_reverse_kl": Variant("2306.08543", "reverse KL to the fixed teacher on the references", student_divergence="reverse_kl"),
    "fixed_jsd": Variant("2306.13649", "Jensen-Shannon divergence to the fixed teacher on the references",
                         student_divergence="generalized_jsd"),
    # fixed teacher, student samples: what the paper compares its time with
    "imitkd": Variant("2009.07253", "a coin per sequence: reference or student sample", writer="mixed",
                      student_share=(0.5, 0.5), coin="sequence", student_divergence="forward_kl"),
    "gkd": Variant("2306.13649", "a coin per batch: references or student samples; JSD", writer="mixed",
                   student_share=(0.5, 0.5), student_divergence="generalized_jsd"),
    "minillm": Variant("2306.08543", "policy gradient of the sequence's reverse KL on teacher-mixed samples",
                       writer="teacher_mixed", student_divergence="minillm",
                       ours="no clipping of repeated updates, since each batch is used once; no loss on a pretraining corpus"),
    # the online teacher
    "okd": Variant("2409.12512", "the teacher's LoRA learns from student and references", module="flag",
                   ours="the module's rate, where the paper has one for both players (--module-lr 1); alpha; rank 8"),
    "okd_no_feedback": Variant(None, "control: the LoRA learns from the references alone", module="flag", alpha=0.0),
    "okd_collapse": Variant(None, "control: the LoRA learns from the student alone, at the student's rate", module="flag",
                            alpha=1.0, module_lr=1.0),
    "okd_reverse_kl": Variant("2409.12512", "OKD with reverse KL on the student's side", module="flag",
                              student_divergence="reverse_kl"),
    "okd_jsd": Variant("2409.12512", "OKD with the JSD on the student's side", module="flag",
                       student_divergence="generalized_jsd"),
    "okd_prefix": Variant("2409.12512", "OKD with gated trainable keys and values", module="prefix",
                          ours="the gate, so that it starts as the identity"),
    "okd_ptuning": Variant("2409.12512", "OKD with trainable virtual tokens", module="ptuning",
                           ours="the virtual tokens come out of a small network and have no positions"),
    "okd_adapter": Variant("1902.00751", "OKD with bottleneck adapters behind every block", module="adapter",
                           ours="one behind each block, where the paper has one behind either part of it"),
    "okd_full": Variant(None, "OKD with all of the teacher's weights trainable", module="full"),
    # relatives
    "dml": Variant("1706.00384", "two peers, both with cross-entropy and KL, all weights of both trainable", module="full",
                   student_divergence="forward_kl", student_kd=0.5, alpha=0.5, module_lr=1.0,
                   teacher_divergence="forward_kl", update="simultaneous",
                   ours="starts from a pretrained teacher, not from two equal peers; both terms are halved, both move at once"),
    "prokt": Variant("2107.09305", "the whole teacher learns the references while kept near the student, then the student follows",
                     module="full", student_divergence="forward_kl", alpha=0.5, teacher_divergence="reverse_kl",
                     update="alternating", ours="from the abstract: the direction of its KL and the teacher's rate are readings; both terms are halved"),
    "pesf_kd": Variant("2205.15308", "an adapter on the last feature; both take squared error and cross-entropy",
                       module="last_adapter", student_divergence="squared_error", student_kd=0.5, alpha=0.5,
                       teacher_divergence="squared_error",
                       ours="the loss of its language part, sum over the vocabulary in place of the mean; its feature term is left out;"
                            " its code's rate for the adapter is --module-lr 0.2"),
    "promptkd": Variant("2402.12842", "a soft prompt learns reverse KL to student and original teacher on student samples",
                        writer="student", module="ptuning", rank=7, module_lr=1.0, student_divergence="reverse_kl", alpha=1.0,
                        teacher_divergence="reverse_kl", anchor=1.0, anchor_decay=True, update="alternating",
                        ours="the prompt comes out of a small network, starts at random and has no positions"),
    "metadistil": Variant("2106.04570", "the module learns by exam: what it taught must help the student's next step on held-out references",
                          module="flag", student_divergence="forward_kl", exam="exact", update="alternating",
                          ours="a module in place of all weights; KL alone; the step that is examined is one of plain descent, at .1; a fifth of the"
                               " prompts is the exam, its code takes the validation set"),
    "ikd": Variant("2109.04641", "the same exam, its second derivative by a difference of two first ones",
                   module="flag", student_divergence="forward_kl", exam="difference", update="alternating",
                   ours="reconstruction from the abstract and MetaDistil's code: the difference is that of DARTS, all else as metadistil"),
    # what nobody has: an online teacher on tokens that the student writes
    "okd_on_policy": Variant(None, "OKD with both KLs on student samples", writer="student", module="flag"),
    "okd_skd": Variant(None, "OKD with both KLs on SKD's interleaved samples", writer="interleaved", module="flag"),
}
# fmt: on
# --variants main: the comparison of the paper, and the control that it lacks
MAIN = ("sft", "fixed_forward_kl", "fixed_reverse_kl", "imitkd", "gkd", "minillm", "okd", "okd_no_feedback")


# ---------------------------------------------------------------------------------------------------------------------
# 1. The losses of the two players, and the exam of one by the other.


def player_loss(
    own_logits,
    other_logits,
    mask,
    reference_loss,
    kd_weight,
    divergence,
    temperature=1.0,
    reduction="token",
    total=None,
):
    """kd_weight * T^2 D(other || own) + (1 - kd_weight) * reference_loss: what one player minimises, a scalar.

    own_logits, other_logits (B, T, V); mask (B, T); the other side is a constant: divergences detach their second
    argument. `divergence` is a function of logits, `reference_loss` the player's own cross-entropy (unused at weight 1).
    Each player calls itself the student: forward KL is KL(other || own), reverse KL is KL(own || other).
    For the student (own = student) forward KL and weight 1 are Eq. 17; for the teacher (own = teacher) forward KL and
    weight alpha are Eq. 16: its KL is then KL(student || teacher), weighted by the STUDENT's distribution. `total` as in
    masked_mean, for a part of a batch.
    Student (.2, .5, .3), teacher (.6, .3, .1), token 0: Eq. 17 gives .396058, Eq. 16 at alpha .5 .438050.
    """
    loss = 0.0
    if kd_weight > 0:
        # The factor T^2 gives the gradient back what softening takes from it.
        per_token = divergence(soften(own_logits, temperature), soften(other_logits, temperature))
        loss = kd_weight * temperature**2 * masked_mean(per_token, mask, reduction, total)
    return loss + (1 - kd_weight) * reference_loss if kd_weight < 1 else loss


def course_loss(student_logits, teacher_logits, targets, kd_weight, temperature=1.0):
    """What an examined student learns by, (B, T): Eq. 17 and cross-entropy, the teacher being no constant.

    Student (.2, .5, .3), teacher (.6, .3, .1), token 0, weight .5: (.396058 + 1.609438) / 2 = 1.002748.
    """

    def distance(student_logits, teacher_logits):
        logprobs = [soften(x, temperature).log_softmax(-1) for x in (teacher_logits, student_logits)]
        return temperature**2 * kl(*logprobs)

    loss = kd_weight * by_chunks(distance, student_logits, teacher_logits)
    if kd_weight < 1:
        loss = loss + (1 - kd_weight) * by_chunks(cross_entropy, student_logits, targets)
    return loss


EXAM_SHARE, EXAM_STEP = 0.2, 0.1  # of the prompts; rate of the step that is examined


def exam_gradient(course, exam, weights, module_weights, rate=EXAM_STEP, exact=True):
    """d exam(weights - rate * d course / d weights) / d module_weights -> (list of gradients, the exam's loss).

    `course` and `exam` are lists of functions of the student's weights whose sums are the losses; course also depends on
    the module. With v = the exam's gradient at the weights after the step, the chain rule leaves
        - rate * d <d course / d weights, v> / d module                               (exact: a second derivative)
        ~ - rate * d [course(weights + e v) - course(weights - e v)] / d module / 2e      (e |v| = .01, as in DARTS)
    and the latter asks for first derivatives only. MetaDistil (arXiv 2106.04570), IKD (2109.04641).
    Course (w - m)^2 / 2, exam (w - 2)^2 / 2, rate .1, w 1, m 3: the step leads to 1.2, the gradient in m is -.08.
    """

    def gradient(parts, at):
        found, loss = [torch.zeros_like(weight) for weight in at], 0.0
        for part in parts:
            value = part(at)
            loss = loss + value.detach()
            found = [total + own for total, own in zip(found, torch.autograd.grad(value, at))]
        return [runs.across(total) for total in found], loss

    after = [(weight - rate * own).detach().requires_grad_() for weight, own in zip(weights, gradient(course, weights)[0])]
    direction, exam_loss = gradient(exam, after)
    found = [torch.zeros_like(weight) for weight in module_weights]
    scale = -rate
    if not exact:
        length = torch.stack([part.square().sum() for part in direction]).sum().sqrt().clamp(min=1e-12)
        apart, scale = 0.01 / length, -rate * length / 0.02
        ahead, behind = (
            [(weight + sign * apart * part).detach() for weight, part in zip(weights, direction)] for sign in (1, -1)
        )
    for part in course:
        if exact:
            own = torch.autograd.grad(part(weights), weights, create_graph=True)
            value = torch.stack([(one * other).sum() for one, other in zip(own, direction)]).sum()
        else:
            value = part(ahead) - part(behind)
        found = [total + scale * own for total, own in zip(found, torch.autograd.grad(value, module_weights))]
    return [runs.across(total) for total in found], exam_loss


class At:
    """A model with other weights (a list in the order of its parameters), called like it."""

    def __init__(self, model, weights):
        self.model, self.weights = model, dict(zip((name for name, _ in model.named_parameters()), weights))

    def __call__(self, tokens, **options):
        return torch.func.functional_call(self.model, self.weights, (tokens,), options)

    @property
    def head(self):
        return self.weights["token_embedding.weight"]


# ---------------------------------------------------------------------------------------------------------------------
# 2. One step's batch, and what each player minimises on it.


class Lesson:
    """What both players learn from in one step, and their losses on a part of it: a slice of its rows (--micro-batch).

    Divergences are taken on `rollout`, cross-entropy on `references`: the same object where no model has written. All logits
    are (rows of the part, T, V); row t predicts token t+1. Means are divided by what the whole batch holds, so that the
    losses of the parts add up. `progress` in [0, 1) is how much of the run is over; `forward` is a model as training calls it,
    perhaps compiled, or wrapped for several processes.
    """

    def __init__(self, row, args, passes, progress, rollout, references):
        self.row, self.args, self.passes, self.progress = row, args, passes, progress
        self.references, self.written = references, rollout is not references  # written: by a model
        self.inputs, self.targets, self.mask = rollout.tokens[:, :-1], rollout.tokens[:, 1:], rollout.response_mask[:, 1:]
        self.total, self.reference_total = (
            runs.across(weight_of(batch.response_mask[:, 1:], args.reduction)) for batch in (rollout, references)
        )
        self.means = {"temperature": args.temperature, "reduction": args.reduction, "total": self.total}

    def reference_loss(self, part, forward, model, model_logits):
        """Cross-entropy: tokens themselves are learned from references only, never from what a model wrote."""
        if self.written:
            model_logits = self.passes.logits(forward, self.references.tokens[part, :-1], model)
        per_token = by_chunks(cross_entropy, model_logits, self.references.tokens[part, 1:])
        return masked_mean(per_token, self.references.response_mask[part, 1:], self.args.reduction, self.reference_total)

    def student_divergence(self, part, student_logits, teacher_logits):
        """The divergence that the student minimises, per token (rows, T)."""
        if self.row.student_divergence == "minillm":
            return minillm(student_logits, teacher_logits, self.targets[part], self.mask[part], self.args.teacher_mix)
        return by_chunks(DIVERGENCES[self.row.student_divergence], student_logits, teacher_logits)

    def student_loss(self, part, forward, student, student_logits, teacher_logits, compared):
        """player_loss of the student, with forward KL at weight 1 Eq. 17. `compared` stands against the teacher's logits: the
        student's own, or those of a cache's buckets."""
        weight = self.row.student_kd
        learned = self.reference_loss(part, forward, student, student_logits) if weight < 1 else 0.0
        divergence = functools.partial(self.student_divergence, part)
        return player_loss(compared, teacher_logits, self.mask[part], learned, weight, divergence, **self.means)

    def teacher_loss(self, part, forward, teacher, teacher_logits, student_logits, original_teacher):
        """player_loss of the teacher, with forward KL Eq. 16; and an anchor, KL(adapted || original), for a row that has one."""
        weight, anchor = self.row.alpha, self.row.anchor
        learned = self.reference_loss(part, forward, teacher, teacher_logits) if weight < 1 else 0.0
        divergence = functools.partial(by_chunks, DIVERGENCES[self.row.teacher_divergence])
        loss = player_loss(teacher_logits, student_logits, self.mask[part], learned, weight, divergence, **self.means)
        if anchor > 0:
            with torch.no_grad():
                original_logits = self.passes.logits(original_teacher, self.inputs[part])
            distance = by_chunks(reverse_kl, teacher_logits, original_logits)
            anchor *= 1 - self.progress if self.row.anchor_decay else 1
            loss = loss + anchor * masked_mean(distance, self.mask[part], self.args.reduction, self.total)
        return loss

    def examine(self, exam, student, teacher):
        """In place of the teacher's loss: its module gets the gradient of an exam, a rollout; -> the exam's loss."""
        exam_total = runs.across(weight_of(exam.response_mask[:, 1:], self.args.reduction))

        def course_of(part, weights):
            with self.passes.precision, second_order():
                student_logits = self.passes.logits(At(student, weights), self.inputs[part])
                teacher_logits = self.passes.logits(teacher, self.inputs[part])
                weight, temperature = self.row.student_kd, self.args.temperature
                per_token = course_loss(student_logits, teacher_logits, self.targets[part], weight, temperature)
                return masked_mean(per_token, self.mask[part], self.args.reduction, self.total)

        def exam_of(part, weights):
            with self.passes.precision:
                exam_logits = self.passes.logits(At(student, weights), exam.tokens[part, :-1])
                per_token = by_chunks(cross_entropy, exam_logits, exam.tokens[part, 1:])
                return masked_mean(per_token, exam.response_mask[part, 1:], self.args.reduction, exam_total)

        course, questions = (
            [functools.partial(loss_of, part) for part, _ in runs.parts(len(tokens), self.args.micro_batch)]
            for loss_of, tokens in ((course_of, self.inputs), (exam_of, exam.tokens))
        )
        module = [weight for weight in teacher.parameters() if weight.requires_grad]
        found, loss = exam_gradient(course, questions, list(student.parameters()), module, exact=self.row.exam == "exact")
        for weight, gradient in zip(module, found):
            weight.grad = gradient
        return loss

    def check_signal(self, part, compared, teacher_logits):
        """Whether the teacher reaches the student's loss: checks.check_signal on the first rows. `part` is the batch's first."""
        few = slice(0, len(checks.first_rows(self.inputs[part])))

        def loss_of(student_logits, teacher_logits):
            return masked_mean(self.student_divergence(few, student_logits, teacher_logits), self.mask[few])

        both_logits = [checks.first_rows(one) for one in (compared, teacher_logits)]
        return checks.check_signal(loss_of, *both_logits, self.row.student_divergence in DIVERGENCES)


# ---------------------------------------------------------------------------------------------------------------------
# 3. The loop of every method.


def references_of(pair, rows, device):
    """The training examples of these numbers, as a rollout that nobody had to write."""
    prompts, responses = ([column[i] for i in rows] for column in (pair.train.prompts, pair.train.responses))
    return rollout_from_ids(prompts, responses, [DATASET] * len(rows), device)


def distill(row, student, pair, args, seed, log, say, keeper=None):
    """Train `student`, and the teacher's module, for args.steps updates -> (dict of costs, the adapted teacher or None).

    Reads from top to bottom: who writes, one forward of each, both losses, both updates. `keeper` saves the state, and
    knows whether some steps are done already.
    """
    keeper = keeper or Keeper()
    device = next(student.parameters()).device
    teacher = pair.teacher
    optimizer, module_optimizer = make_optimizer(student, args.lr, weight_decay=args.weight_decay), None
    passes = experiment.passes_of(args, pair)  # precision, chunks, who shares the batch: how it is computed, not what
    # Also of a copy of the teacher, where that is the module. Not in an exam: a pass that is made again, in the backward
    # pass, would take the student's own weights and fused attention.
    student.recompute = teacher.recompute = args.recompute and row.exam is None
    learner, follower = runs.learner(student, args.compile), None
    if row.module:
        generator = torch.Generator().manual_seed(1_000_003 * seed + 2)
        teacher = OnlineTeacher(pair.teacher, row.module, row.rank, args.module_scale, generator)
        module_optimizer = make_optimizer(teacher, row.module_lr * args.lr, weight_decay=0.0)
        follower = runs.learner(teacher)
    examples = len(pair.train.prompts)
    held_out = max(1, round(EXAM_SHARE * examples)) if row.exam else 0  # the last ones: no student learns from them
    order = pairs.batch_order(examples - held_out, args.batch_size, args.steps, torch.Generator().manual_seed(seed))
    if row.exam:
        exams = torch.Generator().manual_seed(1_000_003 * seed + 3)
        exams = examples - held_out + pairs.batch_order(held_out, min(held_out, args.batch_size), args.steps, exams)
    sampling, sampled_with = torch.Generator().manual_seed(1_000_003 * seed + 1), cli.sampling_options(args)
    start = round(args.module_start * args.steps)  # the step from which on the teacher moves
    costs = Costs(student, pair.teacher)
    initial_drift = cache = None
    warned = keeper.found("warned", list)  # of what it is enough to warn once
    if row.module:  # 0 for every kind that starts as the identity
        at_start = evaluate_quickly(
            student, pair.teacher, pair.task, pair.tokenizer, pair.val, pair.max_new_tokens, teacher
        )
        initial_drift = at_start["drift"]
        if initial_drift > 0:
            say(f"  the {row.module} module starts {initial_drift:.4f} nats away from the original teacher")
    elif args.cache_teacher is not None and asks_about_references(row):
        cache = experiment.open_cache(pair, args, say)
        costs.count_cache(pair.train.prompts, pair.train.responses)
    buckets = cache is not None and cache.best > 0
    meter = Meter(device)
    meter.hold(student, teacher)
    saved = {"student": student, "optimizer": optimizer, "sampling": sampling}
    if row.module:
        saved |= {"module": teacher.module, "module_optimizer": module_optimizer}
    done = keeper.restore(**saved, costs=costs, meter=meter, log=log)
    warn, finite = checks.warner(log, say), checks.Finite(order, keeper, f"--lr ({args.lr}) or --module-lr", device)
    with meter.paused():
        still = checks.Stillness(student, pair.teacher) if done == 0 else None

    for step, rows in enumerate(order[done:].tolist(), done):
        moving, last = row.module is not None and step >= start, step + 1 == args.steps
        rate = learning_rate(step, args.steps, args.lr)
        logged = step % args.log_every == 0 or last
        clock = Clock(device, exact=logged)

        # Who writes? References, unless a row says that a model does; a model writes with the teacher as it is now.
        places = passes.share(len(rows))
        own = [rows[place] for place in places]
        rollout = references = references_of(pair, own, device)
        if row.writer != "dataset":
            with passes.precision, finite.naming(step):
                rollout = write_tokens(
                    row.writer,
                    student,
                    teacher,
                    [pair.train.prompts[i] for i in own],
                    [pair.train.responses[i] for i in own],
                    pair.max_new_tokens,
                    generator=sampling,
                    eos_token=pair.tokenizer.eos_token,
                    student_share=row.student_share[int(2 * step >= args.steps)],
                    coin=row.coin,
                    teacher_mix=args.teacher_mix,
                    rows=places,
                    batch_size=len(rows),
                    **sampled_with,
                )
        lesson = Lesson(row, args, passes, step / args.steps, rollout, references)
        inputs = lesson.inputs
        student_losses, teacher_losses, per_token, columns = [], [], [], []
        clock.mark("sampling")

        def student_side(part, student_logits, teacher_logits, kept_tokens=None):
            """The student's loss on these rows, and its backward pass."""
            with passes.precision, meter:
                compared = student_logits
                if kept_tokens is not None:  # of the cache: the teacher's best tokens, and all others as one
                    compared = by_chunks(with_tail, student_logits, kept_tokens)
                loss = lesson.student_loss(part, learner, student, student_logits, teacher_logits, compared)
            loss.backward()
            student_losses.append(loss.detach())
            clock.mark("student")
            if step == 0 and part.start == 0 and row.student_kd > 0:
                with meter.paused(), passes.precision:
                    warn(lesson.check_signal(part, compared, teacher_logits))
            if logged:
                with torch.no_grad():
                    if teacher_logits is None:
                        per_token.append(by_chunks(cross_entropy, student_logits, lesson.targets[part]))
                    else:
                        per_token.append(lesson.student_divergence(part, compared.detach(), teacher_logits))
                columns.append(experiment.columns_of(student_logits, None if buckets else teacher_logits))
                clock.mark("logging")

        optimizer.zero_grad(set_to_none=True)
        if moving:
            module_optimizer.zero_grad(set_to_none=True)
        parts = runs.parts(len(own), args.micro_batch)
        examined = moving and row.exam is not None
        if examined:
            chosen = exams[step].tolist()
            with meter:
                exam = references_of(pair, [chosen[place] for place in passes.share(len(chosen))], device)
                teacher_losses.append(lesson.examine(exam, student, teacher))
            costs.count_learning(exam, 3, 0, 0)
            clock.mark("teacher")
        waits = moving and row.update == "alternating"  # the student learns from the teacher as it is after its move
        for part, final in [] if examined else parts:
            with runs.averaging(final, learner, follower):
                # One forward of each. Row t of the logits predicts token t+1. The teacher's graph is kept for its module alone.
                with passes.precision, meter:
                    teacher_logits = stored = None
                    if cache:
                        stored = cache.batch(own[part], inputs.size(1), device)
                        teacher_logits = stored[-1]
                    elif row.student_kd > 0 or moving:
                        with torch.set_grad_enabled(moving):
                            teacher_logits = passes.logits(follower if moving else teacher, inputs[part], teacher)
                    clock.mark("teacher")
                    if waits:
                        with torch.no_grad():
                            student_logits = passes.logits(student, inputs[part])
                    else:
                        student_logits = passes.logits(learner, inputs[part], student)
                    clock.mark("student")

                # The teacher's loss, from the same pair of distributions as the student's.
                if moving:
                    with passes.precision, meter:
                        student_constant = student_logits.detach()
                        teacher_loss = lesson.teacher_loss(
                            part, follower, teacher, teacher_logits, student_constant, pair.teacher
                        )
                    teacher_loss.backward()
                    teacher_losses.append(teacher_loss.detach())
                    clock.mark("teacher")
                if not waits:
                    teacher_constant = None if teacher_logits is None else teacher_logits.detach()
                    student_side(part, student_logits, teacher_constant, stored[0] if buckets else None)

        # Both move. The other's distribution is a constant, so the order matters only where the student waits.
        if moving:
            module_norm = move(teacher, module_optimizer, row.module_lr * rate)
            clock.mark("update")
        for part, final in parts if waits else []:
            with runs.averaging(final, learner):
                with passes.precision, meter:
                    with torch.no_grad():
                        teacher_logits = passes.logits(teacher, inputs[part])
                    student_logits = passes.logits(learner, inputs[part], student)
                student_side(part, student_logits, teacher_logits)
        student_norm = move(student, optimizer, rate)
        meter.stop()
        clock.mark("update")
        if step == 0:
            with meter.paused():
                warn(still.check())
            clock.mark("logging")

        student_loss = runs.across(torch.stack(student_losses).sum())
        teacher_loss = runs.across(torch.stack(teacher_losses).sum()) if moving else None
        finite.see(step, student_loss + student_norm + (teacher_loss + module_norm if moving else 0))
        count_step(costs, row, rollout, references, moving, cached=cache is not None)

        # What happened? Read from the device only now and then.
        if logged:
            finite.check()
            figures = step_figures(rollout, torch.cat(columns), torch.cat(per_token), pair.max_new_tokens)
            figures |= {"loss": student_loss.item(), "gradient_norm": student_norm.item(), "lr": rate}
            if moving:
                figures |= {"teacher_loss": teacher_loss.item(), "module_gradient_norm": module_norm.item()}
            figures |= clock.figures("sampling", "teacher", "student", "update")
            log.write("step", step=step + 1, **figures)
        if (step + 1) % max(1, args.steps // 8) == 0 or last:
            adapted = teacher if row.module else None
            with meter.paused(), finite.naming(step):
                student.eval()
                figures = evaluate_quickly(
                    student, pair.teacher, pair.task, pair.tokenizer, pair.val, pair.max_new_tokens, adapted
                )
                student.train()
                log.write("eval", step=step + 1, **figures)
            drift = f"  drift {figures['drift']:.4f}" if adapted else ""
            say(
                f"  step {step + 1:>5}/{args.steps}  loss {student_loss.item():.4f}  val score {figures['score']:.3f}"
                f"  val nll {figures['val_nll']:.3f}{drift}"
            )
            if adapted and figures["drift"] > DRIFT_WARNING and not warned:
                warned.append("drift")
                warn(
                    f"the teacher has drifted {figures['drift']:.3f} nats from the original: look at adapted_score; "
                    "a smaller --alpha, --module-lr or an --anchor holds it"
                )
        if keeper.due(step + 1, last):
            with meter.paused():
                finite.check()
                keeper.save(step + 1)
    student.eval()
    figures = {"steps": args.steps} | meter.figures() | costs.figures()
    if row.module:
        figures |= {"module_parameters": teacher.num_parameters(), "initial_drift": initial_drift}
    return figures, teacher if row.module else None


def count_step(costs, row, rollout, references, moving, cached=False):
    """What one step cost, in passes (data/evaluate.py, Costs); `cached`: the teacher was not asked."""
    # A frozen base under a module: forward and gradients of activations; all weights: those of the weights as well.
    learning = (3 if ONLINE_MODULES[row.module].trains_base else 2) if moving else 1
    asked = (row.student_kd > 0 or moving) and not cached
    waits = moving and row.update == "alternating"  # both models are asked again after the teacher's move
    repeated = int(waits) + int(moving and row.anchor > 0)
    if moving and row.exam:
        # The step that is examined, what its second derivative takes, and the student's real step; the exam counts apart.
        exact = row.exam == "exact"  # forward, backward and both of those again; or two forwards
        costs.count_learning(rollout, 6 + (6 if exact else 2), 2 + learning * (1 if exact else 2), 3 if exact else 4)
        return
    if rollout is not references:
        costs.count_writing(rollout, row.writer)
        student_ce, teacher_ce = row.student_kd < 1, moving and row.alpha < 1
        costs.count_learning(references, 3 * student_ce, learning * teacher_ce, int(teacher_ce))
    costs.count_learning(rollout, 3 + int(waits), learning * asked + repeated, int(asked) + repeated)


def check_row(name, args, examples):
    """ValueError for a method that cannot work with these flags, or with so many prompts: an exam is a fifth of them, a row
    per process."""
    row = resolve(VARIANTS[name], args)
    softened = args.temperature != 1 or args.student_temperature != 1 or args.student_top_p is not None
    if row.student_divergence == "minillm" and softened:
        raise ValueError(
            f"{name} weighs samples by who would have written them, at temperature 1: leave out --temperature,"
            " --student-temperature and --student-top-p, or leave it out of --variants"
        )
    if row.exam and row.student_kd == 0:
        raise ValueError(
            f"the teacher of {name} learns from what it taught, which is nothing at --student-kd 0: give more, or leave it out of"
            " --variants"
        )
    processes = runs.processes()[1]
    fewest = 2 if processes == 1 else math.ceil((processes - 0.5) / EXAM_SHARE)  # one is always held out
    if row.exam and examples < fewest:
        raise ValueError(
            f"{examples} prompts are too few for the exam of {name}, a fifth of them: give at least {fewest} by --student-prompts"
        )


def asks_about_references(row):
    """Whether a method's teacher says the same in every epoch, so that --cache-teacher can keep it."""
    return row.module is None and row.writer == "dataset" and row.student_kd > 0


# field of a row -> flag, for what stands on the student's side, and for what has no meaning without a module
STUDENT_FLAGS = {"student_divergence": "student_divergence", "student_kd": "student_kd"}
MODULE_FLAGS = {name: name for name in ("alpha", "teacher_divergence", "anchor", "update", "module_lr")} | {
    "rank": "module_rank"
}


def resolve(row, args):
    """The row with the flags' values in place of None."""
    flags = STUDENT_FLAGS | MODULE_FLAGS
    changes = {name: getattr(args, flag) for name, flag in flags.items() if getattr(row, name) is None}
    if row.module == "flag":
        changes["module"] = args.module
    return dataclasses.replace(row, **changes)


def unreached(flag, name, args):
    """Why a flag does not reach the training of a method, as what follows "which"; None where it does."""
    own, row = VARIANTS[name], resolve(VARIANTS[name], args)
    of_module = {"module", "module_scale", "module_start", *MODULE_FLAGS.values()}
    of_teacher = ("alpha", "teacher_divergence", "anchor")  # what its loss is made of
    fixes = {flag for field, flag in (STUDENT_FLAGS | MODULE_FLAGS).items() if getattr(own, field) is not None}
    fixes |= {"module"} if own.module != "flag" else set()
    listens = row.module is not None and row.exam is None and row.alpha > 0 and row.module_lr > 0
    table = (
        (of_module, row.module is None, "has no module"),
        (fixes, True, "fixes it itself"),
        (of_teacher, row.exam, "has an exam in place of the teacher's loss"),
        ((*of_teacher, "update", "module_start", "module_scale"), row.module_lr == 0, "has a module at rate 0"),
        (("teacher_divergence",), row.alpha == 0, "gives the student no say (alpha 0)"),
        (("student_divergence", "update"), row.student_kd == 0, "gives the teacher no say (student-kd 0)"),
        (("temperature",), row.student_kd == 0 and not listens, "takes no divergence"),
        (("module_rank",), row.module and not ONLINE_MODULES[row.module].has_rank, "has a module without a rank"),
        (("module_scale",), row.module and not ONLINE_MODULES[row.module].has_scale, "has a module without a scale"),
        (("teacher_mix",), row.writer != "teacher_mixed", "draws nothing from a mixture"),
        (("cache_teacher",), not asks_about_references(row), "takes nothing from a cache"),
        (("recompute",), row.exam, "takes a second derivative"),
    )
    return cli.first_reason(flag, table) or cli.unreached_tokens(flag, row.writer, {}, args)


# ---------------------------------------------------------------------------------------------------------------------
# 4. The script: what lies around the loop is data/experiment.py, the same for train_skd.py.


def run_one(args, folder, shared, variant, seed, budget="steps", steps=None):
    """One method with one seed -> a line about it."""
    row = resolve(VARIANTS[variant.split()[0]], args)
    return experiment.run_one(distill, row, args, folder, shared, variant, seed, budget, steps)


def parse_flags(argv=None):
    """Command line -> (args with everything resolved that needs no data, names of the methods)."""
    description = "Distil a student from a teacher that moves: OKD, its controls and its relatives."
    parser = cli.make_parser("train_okd", description, VARIANTS, MAIN)
    group = parser.add_argument_group("the two players (a row's own value goes before a flag, which then is refused or noted)")
    group.add_argument(
        "--alpha", type=float, default=0.5, help="weight of the student's feedback in the teacher's loss"
    )
    group.add_argument("--module", default="lora", choices=tuple(ONLINE_MODULES), help="kind of the online module")
    group.add_argument(
        "--module-rank", type=int, default=8, help="its inner width, or number of prefix or virtual tokens"
    )
    group.add_argument("--module-scale", type=float, default=1.0, help="factor on what it adds (OKD's s)")
    group.add_argument("--module-lr", type=float, default=0.02, help="its learning rate as a share of the student's")
    group.add_argument("--module-start", type=float, default=0.0, help="share of the steps before it starts to move")
    names = tuple(DIVERGENCES)
    group.add_argument("--student-divergence", default="forward_kl", choices=names, help="which the student minimises")
    group.add_argument("--teacher-divergence", default="forward_kl", choices=names, help="which the teacher minimises, its own side as the"
                       " student's of that name: forward_kl is KL(student || teacher)")
    group.add_argument("--student-kd", type=float, default=1.0, help="weight of it; the rest is cross-entropy (Fig. 9)")
    group.add_argument("--temperature", type=float, default=1.0, help="of both divergences; cross-entropy stays at 1")
    group.add_argument(
        "--update", default="simultaneous", choices=("simultaneous", "alternating"), help="alternating: teacher first"
    )
    group.add_argument("--anchor", type=float, default=0.0, help="weight of KL(adapted || original teacher)")
    group.add_argument("--teacher-mix", type=float, default=0.2, help="minillm: the teacher's share in every draw")
    args, names = cli.parse(parser, argv, VARIANTS, MAIN, "train_okd", unreached)
    cli.check_cache(args)
    return args, names


def main(argv=None):
    """Task, pair, every method with every seed, table. Returns 0 only when every run finished."""
    args, names = parse_flags(argv)
    return experiment.compare("train_okd", args, names, VARIANTS, run_one, check_row)


if __name__ == "__main__":
    experiment.run_script("train_okd", main)
