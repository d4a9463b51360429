"""Distil a student from a teacher that learns along: OKD (arXiv 2409.12512), its controls and its relatives.

    python train_okd.py                          the paper's comparison on the default task
    python train_okd.py --quick                  the same path in under a minute, a smoke run
    python train_okd.py --device cuda --size small --seeds 5 --variants fixed_forward_kl,okd_no_feedback,okd
    python train_okd.py --resume                 resumes the newest run, in the middle of what was under way
    python train_okd.py --alpha 0.25 --module-lr 0.05                less feedback, and a module that learns more slowly

The teacher's own weights are frozen; a small online module beside them (LoRA on the queries and values, unless said
otherwise) learns along with the student. Each step, from ONE forward of each model on the same batch:

    student:  KL(teacher || student)                                                                         (Eq. 17)
    teacher:  alpha * KL(student || teacher) + (1 - alpha) * cross-entropy on the references                 (Eq. 16)

Either side takes the other's distribution as a constant, and both distributions are computed before either moves. So
each runs the same code with the roles swapped: `kd_loss`. Taken alone, the teacher's loss pulls it towards the mixture
alpha * student + (1 - alpha) * data: at alpha 0 the student has no influence on it (okd_no_feedback, the control that
the paper lacks); at alpha 1 nothing but the student has one, and any agreement gives loss 0: collapse (okd_collapse).

Without the plumbing, this is the method (student, base, batches of reference Rollouts, seed, steps, alpha, rate and
module_rate given):

    teacher = OnlineTeacher(base, "lora", 8, 1.0, torch.Generator().manual_seed(1_000_003 * seed + 2))
    optimizers = make_optimizer(student, rate), make_optimizer(teacher, module_rate, weight_decay=0.0)
    for step, batch in enumerate(batches):
        inputs, targets, mask = batch.tokens[:, :-1], batch.tokens[:, 1:], batch.response_mask[:, 1:]
        student_logits, teacher_logits = student(inputs), teacher(inputs)
        student_loss = masked_mean(forward_kl(student_logits, teacher_logits), mask)
        feedback = masked_mean(forward_kl(teacher_logits, student_logits), mask)
        teacher_loss = alpha * feedback + (1 - alpha) * masked_mean(cross_entropy(teacher_logits, targets), mask)
        for optimizer in optimizers:
            optimizer.zero_grad()
        student_loss.backward()
        teacher_loss.backward()
        clip_and_step(student, optimizers[0], learning_rate(step, steps, rate))
        clip_and_step(teacher, optimizers[1], learning_rate(step, steps, module_rate))

Every divergence detaches its second argument, so forward_kl(teacher_logits, student_logits) is KL(student || teacher)
with a gradient to the teacher alone. Other rows let the teacher move before the student does (`alternating`), or by the
gradient of a student's next step (`by_meta_gradient`).

A student is close to the teacher that it trains on. Here every distance is to the ORIGINAL teacher (but for the step
lines' agreement and entropy, which are the adapted one's); the adapted one has its own columns, and its drift and its
own score are part of the record.
"""

if __name__ in ("__main__", "__mp_main__"):
    import lab.interrupted  # noqa: F401  Ctrl-C while torch is imported ends with one line

import dataclasses
import functools
import math

import torch

from catalogue import ONLINE_TEACHER, OnlineVariant
from features import second_order
from lab import arguments, checks, command_line, compare, processes, program
from lab.hints import prompts_of_teacher
from lab.training import Run, all_reduce_mean, batch_order, constant, cuts
from losses import DIVERGENCES, by_chunks, cross_entropy, kl, masked_mean, minillm, reverse_kl, soften, weight_of
from methods import Method, sampling_now
from model import ONLINE_MODULES, OnlineTeacher, make_optimizer

# fmt: off
VARIANTS = {
    "sft": OnlineVariant(None, "no teacher: cross-entropy on the references", student_divergence="forward_kl",
                         student_kd=0.0, read_from="common knowledge", rate=2.0),
    "fixed_forward_kl": OnlineVariant("1910.01108", "word-level KD: forward KL to the fixed teacher",
                                      student_divergence="forward_kl", read_from="code"),
    "fixed_reverse_kl": OnlineVariant("2306.08543", "reverse KL to the fixed teacher on the references",
                                      student_divergence="reverse_kl", read_from="code"),
    "imitkd": OnlineVariant("2009.07253", "a draw per sequence: reference or student sample", writer="mixed",
                            student_share=(0.5, 0.5), mix_per="sequence", student_divergence="forward_kl",
                            deviation="constant chance .5, no annealing", read_from="abstract, code"),
    "gkd": OnlineVariant("2306.13649", "a draw per batch: references or student samples; JSD", writer="mixed",
                         student_share=(0.5, 0.5), student_divergence="generalized_jsd", read_from="code", rate=2.0),
    "minillm": OnlineVariant("2306.08543", "policy gradient of the sequence's reverse KL, on teacher-mixed samples",
                             writer="teacher_mixed", student_divergence="minillm",
                             deviation="no clipping, since each batch is used once; no loss on a pretraining corpus",
                             read_from="code", rate=0.5),
    "okd": OnlineVariant("2409.12512", "a module beside the teacher (LoRA) learns from student and references",
                         module="flag", deviation="alpha .5, not stated in the paper; rank 8", read_from="paper"),
    "okd_no_feedback": OnlineVariant(None, "control: the module learns from the references alone", module="flag",
                                     alpha=0.0, rate=2.0),
}
# fmt: on
MAIN = tuple(VARIANTS)  # the comparison of the paper, and the control that it lacks
VARIANTS |= ONLINE_TEACHER  # all others

# What a row's None means: a field of OnlineVariant -> its value without a flag. The flags are called the same, but for
# --module-rank.
DEFAULTS = {
    "student_divergence": "forward_kl",
    "student_kd": 1.0,
    "alpha": 0.5,
    "module": "lora",
    "rank": 8,
    "module_scale": 1.0,
    "module_lr": 1.0,
    "module_start": 0.0,
    "teacher_divergence": "reverse_kl",
    "anchor": 0.0,
    "update": "simultaneous",
    "temperature": 1.0,
    "teacher_mix": 0.2,
}
FLAG_OF = {name: name for name in DEFAULTS} | {"rank": "module_rank"}
DRIFT_WARNING = 0.2  # KL(original || adapted) in nats per token: OKD's default drifts by up to .15 on development pairs


def resolve(row, args=None):
    """The row with the flags' values, or the defaults, in place of None.

    Raises ValueError for a divergence that the teacher cannot minimise.
    """
    values = {name: default if args is None else getattr(args, FLAG_OF[name]) for name, default in DEFAULTS.items()}
    changes = {name: value for name, value in values.items() if name != "module" and getattr(row, name) is None}
    row = dataclasses.replace(row, **changes, module=values["module"] if row.module == "flag" else row.module)
    if row.teacher_divergence not in TEACHER_DIVERGENCES:
        known = ", ".join(TEACHER_DIVERGENCES)
        raise ValueError(f"the teacher cannot minimise {row.teacher_divergence!r}: choose from {known}")
    return row


# ---------------------------------------------------------------------------------------------------------------------
# 1. What either of them minimises.


def kd_loss(
    own_logits, other_logits, mask, reference_loss, kd_weight, divergence, temperature=1.0, reduction="token",
    total=None,
):  # fmt: skip
    """kd_weight * T^2 divergence(own, other) + (1 - kd_weight) * reference_loss: what either model minimises, a scalar.

    own_logits, other_logits (B, T, V); mask (B, T); the other side is a constant: divergences detach their second
    argument. `divergence` is a function of logits, `reference_loss` the model's own cross-entropy (unused at weight 1).
    For the student (own = student) forward_kl and weight 1 are Eq. 17; for the teacher (own = teacher) the same
    function and weight alpha are Eq. 16: it then is KL(student || teacher), weighted by the STUDENT's distribution
    (TEACHER_DIVERGENCES calls it reverse_kl). `total` as in masked_mean, for a part of a batch. Student (.2, .5, .3),
    teacher (.6, .3, .1), token 0: Eq. 17 gives .396058, Eq. 16 at alpha .5 .438050.
    """
    loss = 0.0
    if kd_weight > 0:
        # The factor T^2 gives the gradient back what softening takes from it.
        per_token = divergence(soften(own_logits, temperature), soften(other_logits, temperature))
        loss = kd_weight * temperature**2 * masked_mean(per_token, mask, reduction, total)
    return loss + (1 - kd_weight) * reference_loss if kd_weight < 1 else loss


# What the teacher minimises, named like the student's: forward means teacher first. Its own logits come first in the
# call, so each name stands beside the function that is its mirror; a divergence without one is not offered.
TEACHER_DIVERGENCES = {
    "forward_kl": "reverse_kl",  # KL(teacher || student)
    "reverse_kl": "forward_kl",  # KL(student || teacher): Eq. 16
    "generalized_jsd": "generalized_jsd",  # at beta .5 both sides are alike
    "skew_forward_kl": "skew_reverse_kl",
    "skew_reverse_kl": "skew_forward_kl",
    "total_variation": "total_variation",
    "squared_error": "squared_error",
}


class OnlineLosses(Method):
    """Both models' losses on a training.Part, by a row, in place of Method's per_token and learn. All logits are
    (rows, T, V); row t predicts token t+1.

    Divergences are taken on the batch, cross-entropy on the references: the same tokens where no model has written.
    Means are divided by what the whole batch holds, so that the losses of its parts add up.
    """

    initial_drift = None  # KL(original || adapted) before the first step, where there is a validation

    def write_by(self, writer, step):
        return step.write(
            writer, *self.models, teacher_mix=self.row.teacher_mix, **sampling_now(self.row, self.run, step.progress)
        )

    def reference_loss(self, part, model, model_logits):
        """Cross-entropy: tokens themselves are learned from references only, never from what a model wrote."""
        if self.row.writer != "dataset":
            part = part.references()
            model_logits = part.forward(model)
        per_token = by_chunks(cross_entropy, model_logits, part.tokens.targets)
        return masked_mean(per_token, part.tokens.mask, self.run.reduction, part.total)

    def student_divergence(self, part, student_logits, teacher_logits):
        """The divergence that the student minimises, per token (rows, T)."""
        if self.row.student_divergence == "minillm":
            return minillm(student_logits, teacher_logits, part.tokens.targets, part.tokens.mask, self.row.teacher_mix)
        return by_chunks(DIVERGENCES[self.row.student_divergence], student_logits, teacher_logits)

    def student_loss(self, part, student_logits, teacher_logits):
        """kd_loss of the student; with forward KL at weight 1 Eq. 17."""
        row, student = self.row, self.models[0]
        on_references = self.reference_loss(part, student, part.student_logits) if row.student_kd < 1 else 0.0
        divergence = functools.partial(self.student_divergence, part)
        return kd_loss(student_logits, teacher_logits, part.tokens.mask, on_references, row.student_kd, divergence,
                       row.temperature, self.run.reduction, part.total)  # fmt: skip

    def teacher_loss(self, part, teacher_logits, student_logits):
        """kd_loss of the teacher, with reverse KL Eq. 16, and the anchor KL(adapted || original) of a row that has one.

        None where the teacher stands still: fixed, not begun to move, or moved already in this step.
        """
        row, teacher = self.row, self.models[1]
        if not part.step.learns(teacher):
            return None
        on_references = self.reference_loss(part, teacher, teacher_logits) if row.alpha < 1 else 0.0
        divergence = functools.partial(by_chunks, DIVERGENCES[TEACHER_DIVERGENCES[row.teacher_divergence]])
        loss = kd_loss(teacher_logits, student_logits, part.tokens.mask, on_references, row.alpha, divergence,
                       row.temperature, self.run.reduction, part.total)  # fmt: skip
        if row.anchor > 0:
            with torch.no_grad():
                original_logits = part.forward(teacher.base, self.run.teacher_prompts)
            distance = by_chunks(reverse_kl, teacher_logits, original_logits)
            anchor = row.anchor * (1 - part.step.progress if row.anchor_decay else 1)
            loss = loss + anchor * masked_mean(distance, part.tokens.mask, self.run.reduction, part.total)
        return loss

    def check_signal(self, part):
        """Whether the teacher reaches the student's loss on a run's first part: a warning or None (lab/checks.py)."""
        if self.row.student_kd == 0:
            return None
        few = part.first_rows()

        def loss_of(student_logits, teacher_logits):
            return masked_mean(self.student_divergence(few, student_logits, teacher_logits), few.tokens.mask)

        return few.check_signal(loss_of, self.row.student_divergence in DIVERGENCES)

    def shown(self, part):
        """What the student minimises at every token of the batch, (rows, T), for a logged step; a cross-entropy that is
        taken on the references beside tokens that a model wrote is none of theirs."""
        row, targets = self.row, part.tokens.targets
        per_token = torch.zeros(targets.shape, device=targets.device)
        if row.student_kd > 0:
            softened = (soften(constant(x), row.temperature) for x in (part.compared, part.teacher_logits))
            per_token = row.student_kd * row.temperature**2 * self.student_divergence(part, *softened)
        if row.student_kd < 1 and row.writer == "dataset":
            per_token = per_token + (1 - row.student_kd) * by_chunks(cross_entropy, part.student_logits, targets)
        return per_token

    def after_evaluation(self, figures):
        """Warn once when the teacher has left the original."""
        warned = self.run.checkpointer.found("warned", list)
        if figures.get("drift", 0.0) > DRIFT_WARNING and not warned:
            warned.append("drift")
            started, since = self.initial_drift or 0.0, ""
            if started > DRIFT_WARNING:
                since = f", {started:.3f} at the start, where its module is not the identity"
            self.run.warn(
                f"the teacher has drifted {figures['drift']:.3f} nats from the original{since}: look at adapted_score; "
                "reduce --alpha or --module-lr, or add --anchor"
            )


# ---------------------------------------------------------------------------------------------------------------------
# 2. The loop.


def distill(row, student, teacher, prompts, responses=None, run=None):
    """Train `student`, and a module beside `teacher`, by a row of VARIANTS -> Result(costs, adapted teacher or None).

    prompts, responses: lists of token ids; responses end with the end token. `teacher` itself never moves. `run`
    (lab/training.py) holds steps, rates and everything that is no method; Run() keeps nothing on disk. From a notebook:

        row = dataclasses.replace(VARIANTS["okd"], alpha=0.25, module_lr=1.0)
        costs, adapted = distill(row, student, teacher, prompts, responses, Run(steps=100, lr=1e-3, eos_token=0))

    Raises ValueError where the row needs something that is not there.
    """
    run, row = run or Run(), resolve(row)
    run.begin(student, prompts, responses, held_out_prompts(row, len(prompts)))
    teacher = attach(row, teacher, run)
    method = OnlineLosses(row, student, teacher, run)
    teacher_first = TEACHER_FIRST[row.meta_gradient or row.update](row, run, method)
    module_figures = prepare(row, run, teacher, method)

    for step in run.steps():
        rollout = method.write(step)  # who writes: the data set, or a model
        teacher_first(step, rollout)  # nothing in OKD; in other rows the teacher moves here, before the student
        for part in run.parts(rollout):
            teacher_logits = part.teacher(teacher)  # one forward of each model for both losses
            student_logits = part.forward(student)  # (B, T, V), row t predicts token t+1
            part.backward(method.student_loss(part, student_logits, constant(teacher_logits)))  # Eq. 17
            part.backward(method.teacher_loss(part, teacher_logits, constant(student_logits)), of=teacher)  # Eq. 16
        run.update(student, teacher)
    return run.finish(**module_figures)


def attach(row, teacher, run):
    """The teacher with the row's module beside it, which learns from step module_start on; a fixed teacher as it is."""
    if row.module is None:
        return teacher
    # A copy of the weights inherits it. No second derivative goes through a forward that is made again.
    teacher.recompute = run.recompute and row.meta_gradient is None
    run.adapted = OnlineTeacher(teacher, row.module, row.rank, row.module_scale, run.generator(2))
    optimizer = make_optimizer(run.adapted, row.module_lr * run.lr, weight_decay=0.0)
    run.add_trained("module", run.adapted, optimizer, row.module_lr, first_step=round(row.module_start * run.num_steps))
    return run.adapted


def prepare(row, run, teacher, method):
    """Everything else between the row and the first step -> what the record says of the module."""
    module_figures = {}
    run.required_responses()
    run.teacher_prompts = prompts_of_teacher(row.hint, run, getattr(teacher, "base", teacher))
    if row.module:  # 0 for every kind that starts as the identity
        initial_drift = method.initial_drift = run.evaluation().get("drift")
        for line in checks.about_module(row.module, initial_drift):
            run.report(f"  {line}")
        module_figures = {"module_parameters": teacher.num_parameters(), "initial_drift": initial_drift}
    elif run.cache_teacher is not None and can_cache_teacher(row):
        run.use_cache(teacher)
    run.start(
        getattr(teacher, "base", teacher),
        method,
        advice=f"--lr ({run.lr}) or --module-lr",
        plain_forward=row.meta_gradient is not None,
        held=(teacher,),
        uses_teacher=row.student_kd > 0 or row.module is not None,
        keeps_logits=False,  # the teacher has moved since, or is to have gradients
    )
    return module_figures


def can_cache_teacher(row):
    """Whether a method's teacher says the same in every epoch, so that --cache-teacher can keep it."""
    return row.module is None and row.writer == "dataset" and row.student_kd > 0


# ---------------------------------------------------------------------------------------------------------------------
# 3. Rows whose teacher moves before the student learns: (row, run, method) -> a function of step and rollout.


def simultaneous(row, run, method):
    """OKD: both move at the end of the step."""
    return lambda step, rollout: None


def alternating(row, run, method):
    """ProKT, PromptKD: the teacher moves by its loss against the student; the student learns from the moved teacher."""
    student, teacher = method.models

    def teacher_moves(step, rollout):
        """One update of the module, on the batch that the student learns next."""
        if not step.learns(teacher):
            return
        for part in run.parts(rollout):
            teacher_logits = part.teacher(teacher)
            with torch.no_grad():
                student_logits = part.forward(student)
            part.backward(method.teacher_loss(part, teacher_logits, student_logits), of=teacher)
        run.update(teacher)

    return teacher_moves


HELD_OUT_SHARE, INNER_RATE = 0.2, 0.1  # of the prompts; rate of the student's step that the meta-gradient looks at


def held_out_prompts(row, examples):
    """How many prompts only the outer loss of a meta-gradient sees: the last ones."""
    return max(1, round(HELD_OUT_SHARE * examples)) if row.meta_gradient else 0


def by_meta_gradient(row, run, method):
    """MetaDistil, IKD: the module moves such that one student step towards it lowers the loss on held-out references.

    Inner loss: what the student learns by, on the batch. Outer loss: its cross-entropy on held-out references after one
    inner step. The student then learns from the moved teacher.
    """
    student, teacher = method.models
    exact, examples = row.meta_gradient == "exact", len(run.prompts)
    held_out = held_out_prompts(row, examples)
    outer_order = batch_order(held_out, min(held_out, run.batch_size), run.num_steps, run.generator(3))

    def teacher_moves(step, rollout):
        """One update of the module, by the meta-gradient of the held-out rows of this step."""
        if not step.learns(teacher):
            return
        chosen = (examples - held_out + outer_order[step.number]).tolist()
        outer = step.examples([chosen[place] for place in range(run.rank, len(chosen), run.num_processes)])
        masks = (batch.response_mask[:, 1:] for batch in (rollout, outer))
        inner_total, outer_total = (all_reduce_mean(weight_of(response_mask, run.reduction)) for response_mask in masks)

        def inner_loss_of(rows, weights):
            with run.precision(), second_order():
                inputs, targets = rollout.tokens[rows, :-1], rollout.tokens[rows, 1:]
                student_logits, teacher_logits = (
                    run.logits(model, inputs, model) for model in (WithWeights(student, weights), teacher)
                )
                per_token = inner_loss(student_logits, teacher_logits, targets, row.student_kd, row.temperature)
                return masked_mean(per_token, rollout.response_mask[rows, 1:], run.reduction, inner_total)

        def outer_loss_of(rows, weights):
            with run.precision():
                model = WithWeights(student, weights)
                student_logits = run.logits(model, outer.tokens[rows, :-1], model)
                per_token = by_chunks(cross_entropy, student_logits, outer.tokens[rows, 1:])
                return masked_mean(per_token, outer.response_mask[rows, 1:], run.reduction, outer_total)

        with run.meter:
            inner, outer_parts = (
                [functools.partial(loss_of, rows) for rows in cuts(len(batch.tokens), run.micro_batch)]
                for loss_of, batch in ((inner_loss_of, rollout), (outer_loss_of, outer))
            )
            module = [weight for weight in teacher.parameters() if weight.requires_grad]
            found, loss = meta_gradient(inner, outer_parts, list(student.parameters()), module, exact=exact)
        for weight, gradient in zip(module, found):
            weight.grad = gradient
        step.parts_of_loss["module"].append(loss)
        # The inner step, then its derivative: forward, backward and both again (exact), or two forwards.
        fed, calls = (rollout.lengths - 1).sum(), 1 if exact else 2
        run.costs.count_forward(student, fed, 3 + (6 if exact else 2))
        run.costs.count_forward(teacher, fed, 1 + teacher.training_passes * calls)
        run.costs.count_forward(student, (outer.lengths - 1).sum(), 3)
        run.costs.count_teacher_call(1 + calls)
        step.clock.mark("teacher")
        run.update(teacher)

    return teacher_moves


TEACHER_FIRST = {
    "simultaneous": simultaneous,
    "alternating": alternating,
    "exact": by_meta_gradient,
    "difference": by_meta_gradient,
}


def inner_loss(student_logits, teacher_logits, targets, kd_weight, temperature=1.0):
    """The inner loss of a meta-gradient, (B, T): Eq. 17 and cross-entropy; the teacher is not detached.

    Student (.2, .5, .3), teacher (.6, .3, .1), token 0, weight .5: (.396058 + 1.609438) / 2 = 1.002748.
    """

    def distance(student_logits, teacher_logits):
        logprobs = [soften(x, temperature).log_softmax(-1) for x in (teacher_logits, student_logits)]
        return temperature**2 * kl(*logprobs)

    loss = kd_weight * by_chunks(distance, student_logits, teacher_logits)
    if kd_weight < 1:
        loss = loss + (1 - kd_weight) * by_chunks(cross_entropy, student_logits, targets)
    return loss


def meta_gradient(inner, outer, weights, module_weights, rate=INNER_RATE, exact=True):
    """d outer(weights - rate * d inner / d weights) / d module_weights -> (list of gradients, the outer loss).

    `inner` and `outer` are lists of functions of the student's weights whose sums are the losses; inner also depends on
    the module. With v = the outer loss's gradient at the weights after the step, the chain rule leaves
        - rate * d <d inner / d weights, v> / d module                               (exact: a second derivative)
        ~ - rate * d [inner(weights + e v) - inner(weights - e v)] / d module / 2e      (e |v| = .01, as in DARTS)
    and the latter asks for first derivatives only. MetaDistil (arXiv 2106.04570), IKD (2109.04641).
    Inner (w - m)^2 / 2, outer (w - 2)^2 / 2, rate .1, w 1, m 3: the step leads to 1.2, the gradient in m is -.08.
    """

    def gradient(parts, at):
        found, loss = [torch.zeros_like(weight) for weight in at], 0.0
        for part in parts:
            value = part(at)
            loss = loss + value.detach()
            found = [total + own for total, own in zip(found, torch.autograd.grad(value, at))]
        return [all_reduce_mean(total) for total in found], loss

    inner_gradient, _ = gradient(inner, weights)
    after = [(weight - rate * own).detach().requires_grad_() for weight, own in zip(weights, inner_gradient)]
    direction, outer_loss = gradient(outer, after)
    found, scale = [torch.zeros_like(weight) for weight in module_weights], -rate
    if not exact:
        length = torch.stack([part.square().sum() for part in direction]).sum().sqrt().clamp(min=1e-12)
        apart, scale = 0.01 / length, -rate * length / 0.02
        ahead, behind = (
            [(weight + sign * apart * part).detach() for weight, part in zip(weights, direction)] for sign in (1, -1)
        )
    for part in inner:
        if exact:
            own = torch.autograd.grad(part(weights), weights, create_graph=True)
            value = torch.stack([(one * other).sum() for one, other in zip(own, direction)]).sum()
        else:
            value = part(ahead) - part(behind)
        found = [total + scale * own for total, own in zip(found, torch.autograd.grad(value, module_weights))]
    return [all_reduce_mean(total) for total in found], outer_loss


class WithWeights:
    """A model with other weights (a list in the order of its parameters), called like it."""

    def __init__(self, model, weights):
        self.model, self.weights = model, dict(zip((name for name, _ in model.named_parameters()), weights))

    def __call__(self, tokens, **options):
        return torch.func.functional_call(self.model, self.weights, (tokens,), options)

    @property
    def head(self):
        return self.weights["token_embedding.weight"]


# ---------------------------------------------------------------------------------------------------------------------
# 4. The script: flags, and what lies around the loop (lab/compare.py, the same for train_skd.py).


def check_row(name, args, examples):
    """ValueError for a method that cannot work with these flags, or with so many prompts: a meta-gradient holds out a
    fifth of them, and each process needs one."""
    row = resolve(VARIANTS[name], args)
    softened = args.temperature != 1 or args.student_temperature != 1 or args.student_top_p is not None
    if row.student_divergence == "minillm" and softened:
        raise ValueError(
            f"{name} computes its importance weights at temperature 1: leave out --temperature,"
            " --student-temperature and --student-top-p, or leave it out of --variants"
        )
    if row.meta_gradient and row.student_kd == 0:
        raise ValueError(
            f"the teacher of {name} learns from the student's step towards it, which is none at --student-kd 0: give"
            " more, or leave it out of --variants"
        )
    size = processes.rank_and_size()[1]
    fewest = 2 if size == 1 else math.ceil((size - 0.5) / HELD_OUT_SHARE)  # by rounding, one for each process
    if row.meta_gradient and examples < fewest:
        raise ValueError(
            f"{examples} prompts are too few for the meta-gradient of {name}, which holds out a fifth of them: give at"
            f" least {fewest} by --student-prompts"
        )


def ignored_reason(flag, name, args):
    """Why a flag changes nothing about how a method is trained, as what follows "which"; None where it does."""
    own, row = VARIANTS[name], resolve(VARIANTS[name], args)
    of_student = ("student_divergence", "student_kd", "temperature", "teacher_mix")
    of_module = {flag for flag in FLAG_OF.values() if flag not in of_student}
    of_teacher = ("alpha", "teacher_divergence", "anchor")  # what its loss is made of
    fixes = {flag for field, flag in FLAG_OF.items() if getattr(own, field) not in (None, "flag")}
    listens = row.module is not None and row.meta_gradient is None and row.alpha > 0 and row.module_lr > 0
    table = (
        (of_module, row.module is None, "has no module"),
        (fixes, True, "fixes it itself"),
        (of_teacher, row.meta_gradient, "has a meta-gradient in place of the teacher's loss"),
        ((*of_teacher, "update", "module_start", "module_scale"), row.module_lr == 0, "has a module at rate 0"),
        (("teacher_divergence",), row.alpha == 0, "is run at alpha 0"),
        (("student_divergence", "update"), row.student_kd == 0, "is run at student-kd 0"),
        (("temperature",), row.student_kd == 0 and not listens, "takes no divergence"),
        (("module_rank",), row.module and not ONLINE_MODULES[row.module].has_rank, "has a module without a rank"),
        (("module_scale",), row.module and not ONLINE_MODULES[row.module].has_scale, "has a module without a scale"),
        (("teacher_mix",), row.writer != "teacher_mixed", "draws nothing from a mixture"),
        (("cache_teacher",), not can_cache_teacher(row), "takes nothing from a cache"),
        (("recompute",), row.meta_gradient, "takes a second derivative"),
    )
    return arguments.first_reason(flag, table) or arguments.ignored_sampling_reason(flag, row.writer, {}, args)


def run_one(args, folder, shared, variant, seed, budget="steps", steps=None):
    """One method with one seed -> a line about it."""
    row = resolve(VARIANTS[variant.split()[0]], args)
    return compare.run_one(distill, row, args, folder, shared, variant, seed, budget, steps)


def parse_flags(argv=None):
    """Command line -> (args with everything resolved that needs no data, names of the methods)."""
    description = "Distil a student from a teacher that learns along: OKD, its controls and its relatives."
    parser = command_line.make_parser("train_okd", description, VARIANTS, MAIN)
    group = parser.add_argument_group(
        "teacher module and losses (a method's fixed setting overrides a flag, which is then refused or noted)"
    )

    def add(name, kind=None, help=None, **options):
        flag, default = FLAG_OF[name].replace("_", "-"), DEFAULTS[name]
        group.add_argument(f"--{flag}", type=kind, default=default, help=f"{help} (default: {default})", **options)

    add("alpha", float, "weight of the student's feedback in the teacher's loss")
    add("module", None, "kind of the online module", choices=tuple(ONLINE_MODULES))
    add("rank", int, "inner width of the module, or number of prefix or virtual tokens")
    add("module_scale", float, "factor on what the module adds (OKD's s)")
    add("module_lr", float, "module learning rate / student learning rate")
    add("module_start", float, "fraction of steps the module stays frozen")
    forward = "forward_kl is KL(teacher || student)"
    add("student_divergence", None, f"what the student minimises; {forward}", choices=tuple(DIVERGENCES))
    add("teacher_divergence", None, f"what the teacher minimises; {forward}", choices=tuple(TEACHER_DIVERGENCES))
    add("student_kd", float, "weight of the student's divergence; the rest is cross-entropy (Fig. 9)")
    add("temperature", float, "of both divergences; cross-entropy stays at 1")
    add("update", None, "alternating: the teacher moves first", choices=("simultaneous", "alternating"))
    add("anchor", float, "weight of KL(adapted || original teacher)")
    add("teacher_mix", float, "minillm: the teacher's share in every draw")
    args, names = arguments.parse(parser, argv, VARIANTS, MAIN, "train_okd", ignored_reason)
    arguments.check_cache(args)
    return args, names


def main(argv=None):
    """Task, pair, every method with every seed, table. Returns 0 only when every run finished."""
    args, names = parse_flags(argv)
    return compare.compare("train_okd", args, names, VARIANTS, run_one, check_row)


if __name__ == "__main__":
    program.run_script("train_okd", main)
