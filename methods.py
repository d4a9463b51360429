"""What methods keep from step to step, and what happens before the first one; rows stand in catalogue.py.

Most methods keep nothing: who writes and which per-token loss says it all, and `Method` below is all they need. The
others keep a schedule (Interpolation, Veto), a buffer (Replay), a projector (Feature, Flow, DualSpace), heads or
branches (Subclasses, Regions, Branches), a copy of the student (Learnable), its start (Extrapolation) or an average of
its weights (Average), a teacher of their own with a discriminator (SoftLabels), noise (SampledTargets), or what a batch
scored (Scored, Sibling). Each is one class:

    __init__       what is prepared before training
    before_run     what is distilled before training
    before_step    what changes with the step
    write          who writes the batch
    capture        what of the models' insides it wants to see
    per_token      both models' logits on a part of a batch -> (rows, T), what the student minimises
    after_step     what it learns from the step
    after_evaluation

All are nn.Modules: `state_dict` holds everything that a run needs to resume where it stopped. Their own parameters are
trained by their own AdamW at the student's rate, without decay. Small layers of theirs run in the models' precision.
"""

import copy
import dataclasses
import functools
import math
from contextlib import contextmanager, nullcontext

import torch
import torch.nn.functional as F
from torch import nn

from catalogue import Variant
from data.progress import progress
from features import (
    FEATURES,
    NEEDS_PROJECTOR,
    Projector,
    capture_hidden,
    flow,
    input_gradient,
    input_gradient_alignment,
    second_order,
)
from lab.evaluate import gathered_in_order
from lab.groups import batch_scores, group_advantages, right_siblings, use_groups
from lab.hints import prompts_after_hints, prompts_of_teacher
from lab.training import all_reduce_mean
from losses import (
    DIVERGENCES,
    NO_TEACHER,
    HiddenStates,
    at_least_float32,
    by_chunks,
    cross_entropy,
    extrapolation,
    forward_kl,
    hinton_mixture,
    kl,
    masked_mean,
    per_token_loss,
    policy_gradient,
    random_sampling_kd,
    soften,
    taid_target,
    to_logits,
    veto_target,
    weight_of_best,
)
from model import GPT, GPTConfig, Specialists, clip_and_step, learning_rate, make_optimizer
from sample import DATASET, STUDENT, TEACHER, Noise, Rollout, inverse_cdf, rollout_from_ids, to_device

# ---------------------------------------------------------------------------------------------------------------------
# 1. What a row says at a moment of a run.


def resolve(row, accept_top_k):
    """The row with the flag's K where its loss_kwargs say accept_top_k=None; any other None is the loss's own."""
    if row.loss_kwargs.get("accept_top_k", 0) is not None:
        return row
    return dataclasses.replace(row, loss_kwargs=row.loss_kwargs | {"accept_top_k": accept_top_k})


def scheduled(value, progress):
    """A number, or (shape, first, last) at `progress` in [0, 1): ("linear", 1, 3) at .5 is 2, so is ("cosine", 1, 3).
    With a fourth number `last` is reached at that progress, and stays: ("linear", 1, 3, .5) at .25 is 2."""
    if not isinstance(value, (tuple, list)):
        return value
    shape, first, last, *until = value
    progress = min(1.0, progress / until[0]) if until else progress
    share = progress if shape == "linear" else (1 - math.cos(math.pi * progress)) / 2
    return first + (last - first) * share


def sampling_now(row, run, progress):
    """The keywords of sample.write_tokens at this point of a run: the run's own, overridden by the row's."""
    options = run.sampling | {"student_share": row.student_share[int(progress >= 0.5)], "mix_per": row.mix_per}
    rule = options.pop("rule", {})
    own = {knob: scheduled(value, progress) for knob, value in row.sampling.items()}
    if "prefix" in own:
        options["prefix"] = own.pop("prefix")
    if "trust_region" in own:
        options["trust_region"] *= own.pop("trust_region")
    if row.writer == "switching":
        return options | {"switching": own}
    if "accept_top_k" in own:
        own["accept_top_k"] *= run.accept_top_k
    if "accept_rule" not in own:  # a row with a rule of its own does not take the numbers of --rule
        own = rule | own
    return options | {"interleaved": options["interleaved"] | own}


# ---------------------------------------------------------------------------------------------------------------------
# 2. What every method does, and all that most of them need.


class Method(nn.Module):
    """Nothing is kept: the row's loss is (1 - kd_weight) cross-entropy + kd_weight T^2 loss of both models' logits
    divided by T."""

    # Passes per step beyond the student's forward and backward (3: a backward counts as 2) and the teacher's forward.
    student_passes = teacher_passes = 0
    products = 0  # per token: weights times passes of layers that belong to neither model (projectors, branches)
    plain_forward = False  # True: --recompute and --compile leave the student's forward alone
    captures_teacher = False  # True: looks into the teacher's forward, so logits kept by a sampler do not suffice
    replaces_loss = False  # True: per_token ignores the row's loss; loss_kwargs, kd_weight, temperature stay defaults
    needs_its_loss = False  # True: --loss cannot replace the row's loss
    moves_teacher = False  # True: it changes the teacher's weights, so nobody checks that they stay
    takes_hints = True  # False: it asks the teacher for more than logits on the rows of the step

    def __init__(self, row, student, teacher, run):
        super().__init__()
        self.row, self.run, self.models, self.writer, self.optimizer = row, run, (student, teacher), row.writer, None
        self.generator = run.generator(3)

    def before_run(self, distill):
        """What takes a run of its own before the first step; `distill` is the loop."""

    def before_step(self, step):
        """`step` is the run's: its number, progress, and the places of this process' rows in the batch."""
        self.zero_grad(set_to_none=True)

    def write(self, step):
        """Who writes: one batch of training tokens -> Rollout."""
        self.before_step(step)
        return self.write_by(self.row.writer, step)

    def write_by(self, writer, step):
        """The batch, written by a name in sample.WRITERS."""
        return step.write(writer, *self.models, **sampling_now(self.row, self.run, step.progress))

    def capture(self, model, is_student):
        """The context of a model's forward over a part; what it yields is found again by `captured`."""
        return nullcontext()

    def captured(self, part):
        """What was captured of the student and of the teacher."""
        return [part.captured.get(id(model)) for model in self.models]

    def extra_passes(self, is_student):
        """Passes of a model beyond those that every method takes."""
        return self.student_passes if is_student else self.teacher_passes

    @property
    def loss_kwargs(self):
        """Of the row's own loss."""
        return self.row.loss_kwargs

    def row_loss(self, student_logits, teacher_logits, part):
        """The row's own loss, at every position."""
        row, loss_kwargs, targets = self.row, self.loss_kwargs, part.tokens.targets

        def distance(student_logits, teacher_logits):
            return per_token_loss(row.loss, student_logits, teacher_logits, part.tokens, **loss_kwargs)

        return hinton_mixture(student_logits, teacher_logits, targets, row.kd_weight, row.temperature, distance)

    def per_token(self, student_logits, teacher_logits, part):
        """What the student minimises at every position of a training.Part, (rows, T); what lies outside its mask is not
        looked at.

        Row t of the logits predicts part.tokens.targets[:, t]; teacher_logits are None where the row's loss asks no
        teacher.
        """
        return self.row_loss(student_logits, teacher_logits, part)

    def after_step(self, loss):
        """`loss` is the whole batch's, a scalar on the device."""

    def after_evaluation(self, figures):
        """`figures` of the run's validation."""

    def learn(self, loss, rate):
        """What the method learns from a step: after_step, and one update of its own parameters, clipped apart."""
        self.after_step(loss)
        if self.optimizer is None:
            return
        for weight in self.parameters():
            if weight.grad is not None:
                weight.grad = all_reduce_mean(weight.grad)
        clip_and_step(self, self.optimizer, rate)

    def check_signal(self, part):
        """Whether the teacher reaches the student's loss on a run's first part: a warning or None (lab/checks.py)."""
        row = self.row
        if part.teacher_logits is None or row.kd_weight == 0:
            return None
        take, few = self.per_token if self.replaces_loss else self.row_loss, part.first_rows()

        def loss_of(student_logits, teacher_logits):
            return masked_mean(take(student_logits, teacher_logits, few), few.tokens.mask)

        def distance_of(student_logits, teacher_logits):
            per_token = per_token_loss(row.loss, student_logits, teacher_logits, few.tokens, **row.loss_kwargs)
            return masked_mean(per_token, few.tokens.mask)

        if row.loss in DIVERGENCES and not self.replaces_loss:  # least at agreement, whatever is mixed in
            found = few.check_signal(distance_of, is_divergence=True)
            if row.kd_weight == row.temperature == 1:  # nothing is mixed in
                return found
        has_gate = row.loss in ("gated_forward_kl", "confidence_gated")
        return few.check_signal(loss_of, is_divergence=False, has_gate=has_gate)

    def get_extra_state(self):
        """What is no tensor of this module's own: generator, optimizer, and the plain values named in `plain`."""
        optimizer = self.optimizer.state_dict() if self.optimizer else None
        return {"generator": self.generator.get_state(), "optimizer": optimizer} | {
            name: getattr(self, name) for name in self.plain
        }

    def set_extra_state(self, state):
        self.generator.set_state(state["generator"])
        if self.optimizer:
            self.optimizer.load_state_dict(state["optimizer"])
        for name in self.plain:
            setattr(self, name, state[name])

    plain = ()  # names of attributes


def make_method(row, student, teacher, run):
    """The Method of a row, on the student's device."""
    kind = METHODS[row.method] if row.method else Method
    if kind.replaces_loss and (row.loss_kwargs or row.kd_weight != 1 or row.temperature != 1):
        raise ValueError(
            f"{row.method} has a loss of its own: loss_kwargs, kd_weight and temperature of the row would do nothing"
        )
    if row.hint and (kind.captures_teacher or not kind.takes_hints):
        raise ValueError(f"{row.method} asks its teacher for more than logits: it goes without a hint")
    if kind.moves_teacher and row.teacher != "start":
        raise ValueError(f"{row.method} changes its teacher's weights: give the row teacher='start'")
    method = kind(row, student, teacher, run, **row.method_kwargs)
    method.to(run.device)
    if any(weight.requires_grad for weight in method.parameters()):
        method.optimizer = make_optimizer(method, run.lr, weight_decay=0.0)
    return method


def prepare(row, student, teacher, run, distill):
    """Everything that a row wants before its first step -> (the teacher that the student learns from, its Method).

    Another teacher than the one given (TEACHERS; `distill` trains an assistant), its answers in place of the
    references, a cache of its logits, and what the method keeps.
    """
    teacher = TEACHERS[row.teacher](distill, student, teacher, run)
    run.teacher_prompts = prompts_of_teacher(row.hint, run, teacher)
    if row.answers is not None:
        # Greedy ones stand in for the beam search of Kim & Rush: both aim at the likeliest response.
        wrote = STUDENT if row.teacher == "start" else TEACHER
        run.use_answers(teacher, row.answers, row.answers_top_p, wrote)
    if run.cache_teacher is not None and can_cache_teacher(row):
        run.use_cache(teacher)
    run.require_references(row.writer)
    method = make_method(row, student, teacher, run)
    method.before_run(distill)
    run.start(
        teacher,
        method,
        plain_forward=method.plain_forward,
        held=(method,),
        uses_teacher=row.loss not in NO_TEACHER,
        keeps_logits=not method.captures_teacher and row.hint is None,
        saved={"method": method},
    )
    return teacher, method


def keeps_its_loss(row):
    """Whether no other loss can take the place of the row's."""
    kind = METHODS.get(row.method, Method)
    return kind.replaces_loss or kind.needs_its_loss


def can_cache_teacher(row):
    """Whether --cache-teacher can keep what a method's teacher says: the same in every epoch, and nothing else."""
    plain = row.method is None and row.teacher == "pair" and row.temperature == row.kd_weight == 1
    return row.writer == "dataset" and plain and row.loss in DIVERGENCES


def references_of(run, batch_size=64):
    """The student's references as Rollouts, in order."""
    prompts, responses = run.prompts, run.required_responses()
    for first in progress(range(0, len(prompts), batch_size), "references"):
        some = slice(first, first + batch_size)
        labels = [DATASET] * len(prompts[some])
        yield rollout_from_ids(prompts[some], responses[some], labels, run.device, run.eos_token)


def count_pass(run):
    """Note one pass of the teacher over all references."""
    tokens = sum(map(len, run.prompts)) + sum(map(len, run.responses)) - len(run.prompts)
    run.note_preparation(teacher_tokens=tokens, teacher_forwards=-(-len(run.prompts) // 64))


# ---------------------------------------------------------------------------------------------------------------------
# 3. Targets that move or are drawn.


class Interpolation(Method):
    """TAID (arXiv 2501.16937): the target lies between the student's own logits and the teacher's, and moves to the
    latter.

    Its share of the teacher starts at `start`, is at least linear in the steps, and grows faster while the loss falls:
    with losses 2.0, 1.0 at share .4 the momentum becomes .005 and the step 1.503750e-4. The first loss is only stored.
    """

    replaces_loss = True

    def __init__(self, row, student, teacher, run, start=0.4, rate=5e-4, decay=0.99):
        super().__init__(row, student, teacher, run)
        self.start, self.rate, self.decay, self.num_steps = start, rate, decay, run.num_steps
        for name, value in (("share", start), ("momentum", 0.0), ("before", float("nan"))):
            self.register_buffer(name, torch.tensor(value))

    def per_token(self, student_logits, teacher_logits, part):
        def towards_target(student_logits, teacher_logits):
            return forward_kl(student_logits, taid_target(student_logits, teacher_logits, self.share))

        return by_chunks(towards_target, student_logits, teacher_logits)

    def before_step(self, step):
        super().before_step(step)
        linear = self.start + (1 - self.start) * step.number / self.num_steps
        self.share = self.share.clamp(min=linear, max=1.0)

    def after_step(self, loss):
        change = (self.before - loss) / (self.before + 1e-15)  # nan at the first step: nothing to compare with
        momentum = self.decay * self.momentum + (1 - self.decay) * change
        first = self.before.isnan()
        self.momentum = torch.where(first, self.momentum, momentum)
        grown = self.share + self.rate * momentum.sigmoid() * (1 - self.share)
        self.share, self.before = torch.where(first, self.share, grown).clamp(max=1.0), loss.detach().clone()


class Veto(Method):
    """Veto (arXiv 2601.07155): forward KL to the product of the teacher and the student to the power beta, which falls
    from `start` to 0 over the run."""

    replaces_loss = True

    def __init__(self, row, student, teacher, run, start=0.8):
        super().__init__(row, student, teacher, run)
        self.start = start

    def before_step(self, step):
        super().before_step(step)
        self.beta = self.start * (1 - step.progress)

    def per_token(self, student_logits, teacher_logits, part):
        def towards_target(student_logits, teacher_logits):
            return forward_kl(student_logits, veto_target(student_logits, teacher_logits, self.beta))

        return by_chunks(towards_target, student_logits, teacher_logits)


class SampledTargets(Method):
    """Random-sampling KD (arXiv 2503.16870): cross-entropy with `draws` tokens drawn from the teacher at every
    position."""

    replaces_loss = True

    def __init__(self, row, student, teacher, run, draws=12):
        super().__init__(row, student, teacher, run)
        self.draws = draws

    def before_step(self, step):
        super().before_step(step)
        self.step_seed = draw_seed(self.generator)

    def per_token(self, student_logits, teacher_logits, part):
        (B, T), N = part.inputs.shape, self.draws
        uniform = uniforms(self.step_seed, part.places, part.inputs[..., None].expand(B, T, N))

        def sampled(student_logits, teacher_logits, uniform):
            ids = inverse_cdf(at_least_float32(teacher_logits).softmax(-1), uniform)
            return random_sampling_kd(student_logits, ids, torch.full_like(uniform, 1 / N))

        return by_chunks(sampled, student_logits, teacher_logits, uniform)


# Policy gradients with a reward beside the teacher's.


class Extrapolation(Method):
    """ExOPD (arXiv 2602.12125): policy gradient; the teacher's reward, counted from the student's start, times
    `strength`."""

    replaces_loss = True
    student_passes = 1  # the start's

    def __init__(self, row, student, teacher, run, strength=1.25):
        super().__init__(row, student, teacher, run)
        self.strength = strength
        self.student_at_start = copy.deepcopy(student).requires_grad_(False).eval()

    def per_token(self, student_logits, teacher_logits, part):
        with torch.no_grad():
            start_logits = self.run.logits(self.student_at_start, part.inputs, self.student_at_start)
        bonus = extrapolation(teacher_logits, start_logits, part.tokens, self.strength)
        return policy_gradient(student_logits, teacher_logits, part.tokens, bonus=bonus)


class Scored(Method):
    """KDRL (arXiv 2506.02208): policy gradient with the task's score of the whole response and the teacher as rewards.

    Each prompt is answered `group` times. The advantage of a token is its response's score, normalised in the group,
    + beta (log teacher - log student): the gradient of -score log student + beta (log student - log teacher)^2 / 2, so
    that a group with equal scores learns from the teacher alone, and with beta 0 the teacher says nothing (GRPO).
    """

    replaces_loss = True

    def __init__(self, row, student, teacher, run, group=4, beta=1.0):
        super().__init__(row, student, teacher, run)
        self.group, self.beta = group, beta
        use_groups(run, group)

    def write(self, step):
        rollout = super().write(step)
        scores = batch_scores(self.run, step, rollout.responses())
        self.run.note("reward", scores.mean())
        own = group_advantages(scores, self.group)[list(step.places)]  # of this process' rows
        self.advantages = to_device(own, self.run.device)
        return rollout

    def per_token(self, student_logits, teacher_logits, part):
        bonus = self.advantages[part.rows, None]
        return policy_gradient(student_logits, teacher_logits, part.tokens, beta=self.beta, bonus=bonus)


# ---------------------------------------------------------------------------------------------------------------------
# 4. Who writes depends on how it goes.


class Replay(Method):
    """DistiLLM's off-policy schedule (arXiv 2402.03898): references, until validation says that they teach no more.

    `threshold` starts at 0 and rises by .1 whenever the validation loss is .1 nats above the one at its last rise. With
    chance threshold * (1 - progress), and as long as the buffer is not full with chance threshold, the student writes
    and the batch is kept; with the rest of threshold a batch is drawn from what was kept; otherwise it is the
    references.
    """

    plain = ("threshold", "reference", "seen_rows", "width")
    takes_hints = False

    def __init__(self, row, student, teacher, run, capacity=1000, rise=0.1, tolerance=0.1):
        super().__init__(row, student, teacher, run)
        self.capacity, self.num_steps = max(capacity, run.batch_size), run.num_steps
        self.rise, self.tolerance = rise, tolerance
        self.batch_size, self.threshold, self.reference, self.seen_rows, self.width = run.batch_size, 0.0, None, 0, 1
        size = self.size = run.num_processes
        own = -(-self.capacity // size)  # rows that this process keeps
        self.at_least = size * (run.batch_size // size)  # rows of a batch, as the process with the fewest counts them
        block = student.config.block_size
        self.register_buffer("tokens", torch.zeros(own, block, dtype=torch.long))
        self.register_buffer("prompt_len", torch.zeros(own, dtype=torch.long))
        self.register_buffer("lengths", torch.zeros(own, dtype=torch.long))
        self.register_buffer("finished", torch.zeros(own, dtype=torch.bool))
        self.register_buffer("source", torch.zeros(own, block, dtype=torch.int8))
        self.register_buffer("next_slot", torch.zeros((), dtype=torch.long))
        run.require_evaluation("replay")
        self.after_evaluation(run.evaluation())

    def before_step(self, step):
        super().before_step(step)
        self.progress, self.rows = step.progress, len(step.places)

    def choose(self, uniform):
        """A number in [0, 1) -> student, replay or dataset."""
        if uniform < self.threshold * (1 - self.progress):
            return "student"
        if uniform < self.threshold:
            return "replay" if self.seen_rows >= len(self.lengths) * self.size else "student"
        return "dataset"

    def write(self, step):
        self.before_step(step)
        self.writer = self.choose(torch.rand((), generator=self.generator).item())
        if self.writer == "replay":
            drawn = torch.randperm(len(self.lengths), generator=self.generator)[: self.rows]
            rows = to_device(drawn, self.lengths.device)
            tokens, source = self.tokens[rows, : self.width], self.source[rows, : self.width]
            return Rollout(tokens, self.prompt_len[rows], self.lengths[rows], source, self.finished[rows])
        rollout = self.write_by(self.writer, step)
        if self.writer == "student":
            n, T = rollout.tokens.shape
            slots = (self.next_slot + torch.arange(n, device=self.next_slot.device)) % len(self.lengths)
            self.tokens[slots], self.source[slots] = 0, 0
            self.tokens[slots, :T], self.source[slots, :T] = rollout.tokens, rollout.source
            self.prompt_len[slots], self.lengths[slots] = rollout.prompt_len, rollout.lengths
            self.finished[slots], self.next_slot = rollout.finished, self.next_slot + n
            self.seen_rows, self.width = self.seen_rows + self.at_least, max(self.width, T)
        return rollout

    def after_evaluation(self, figures):
        loss = figures["val_nll"]
        if self.reference is None:
            self.reference = loss
        elif loss >= self.reference + self.tolerance:
            self.threshold, self.reference = min(1.0, self.threshold + self.rise), loss


# ---------------------------------------------------------------------------------------------------------------------
# 5. Features: a loss of hidden states, or of gradients, added to the row's own.


def block_at(model, where):
    """Number of a model's "middle" or "last" block: the middle one of 2 is the first, of 12 the sixth."""
    last = model.config.n_layer - 1
    return {"middle": last // 2, "last": last}[where]


class Feature(Method):
    """The row's loss + `weight` times a loss of hidden states (a name in features.FEATURES), behind one block of each
    model."""

    captures_teacher = True

    def __init__(self, row, student, teacher, run, feature, weight=1.0, at="middle", **feature_kwargs):
        super().__init__(row, student, teacher, run)
        self.feature, self.weight, self.at = functools.partial(FEATURES[feature], **feature_kwargs), weight, at
        if feature in NEEDS_PROJECTOR:
            self.projector = Projector(student.config.n_embd, teacher.config.n_embd, self.generator)

    def capture(self, model, is_student):
        return capture_hidden(model, [block_at(model, self.at)])

    def per_token(self, student_logits, teacher_logits, part):
        student_hidden, teacher_hidden = (captured.hidden[0] for captured in self.captured(part))
        if hasattr(self, "projector"):
            student_hidden = self.projector(student_hidden)
        return self.row_loss(student_logits, teacher_logits, part) + self.weight * self.feature(
            student_hidden, teacher_hidden, part.tokens.mask
        )


def like(model_logits, as_these):
    """HiddenStates logits, worked out unless `as_these` are HiddenStates themselves."""
    return model_logits if isinstance(as_these, HiddenStates) else to_logits(model_logits)


class Flow(Method):
    """The row's loss + `weight` times FSP's (CVPR 2017): how features change from the middle block to the last."""

    captures_teacher = True

    def __init__(self, row, student, teacher, run, weight=1.0):
        super().__init__(row, student, teacher, run)
        self.weight, widths = weight, (student.config.n_embd, teacher.config.n_embd)
        self.first, self.second = (Projector(*widths, self.generator) for _ in range(2))

    def capture(self, model, is_student):
        return capture_hidden(model, [block_at(model, "middle"), block_at(model, "last")])

    def per_token(self, student_logits, teacher_logits, part):
        student_hidden, teacher_hidden = (captured.hidden for captured in self.captured(part))
        own = self.first(student_hidden[0]), self.second(student_hidden[1])
        return self.row_loss(student_logits, teacher_logits, part) + self.weight * flow(
            *own, *teacher_hidden, part.tokens.mask
        )


class DualSpace(Method):
    """DSKD (arXiv 2406.17328): both models' last features under one head, in the student's space and in the teacher's.

    One linear map takes the teacher's features to the student's head, another the student's to the teacher's head. With
    both, and the row's loss as D, the loss is (1 - kd_weight) cross-entropy + kd_weight times the sum of
        cross-entropy(projected teacher)            from which only the first map learns
        T^2 D(projected teacher^T || student^T)     in the student's space, the projected teacher a constant
        T^2 KL(teacher^T || projected student^T)    in the teacher's space, to the student and the second map
    """

    captures_teacher = True

    def __init__(self, row, student, teacher, run):
        super().__init__(row, student, teacher, run)
        widths = student.config.n_embd, teacher.config.n_embd
        self.to_teacher, self.to_student = Projector(*widths, self.generator), Projector(*widths[::-1], self.generator)
        # The heads stand still, and so does what goes into to_student: two passes each in place of three.
        heads = student.head.numel() + teacher.head.numel()
        self.products = 2 * heads + 3 * self.to_teacher.weight.numel() + 2 * self.to_student.weight.numel()

    def capture(self, model, is_student):
        return capture_hidden(model, [block_at(model, "last")])

    def per_token(self, student_logits, teacher_logits, part):
        """Both spaces' losses, (B, T)."""
        student, teacher = self.models
        both = zip(self.models, self.captured(part))
        own, other = (model.norm(captured.hidden[0]) for model, captured in both)  # (B, T, C) each
        projected_teacher = like(HiddenStates(self.to_student(other), student.head.detach()), student_logits)
        projected_student = like(HiddenStates(self.to_teacher(own), teacher.head), student_logits)
        of_map = by_chunks(cross_entropy, projected_teacher, part.tokens.targets)
        teachers_space = by_chunks(self.softened_kl, projected_student, teacher_logits)
        students_space = self.row_loss(student_logits, projected_teacher.detach(), part)
        return students_space + self.row.kd_weight * (of_map + teachers_space)

    def softened_kl(self, student_logits, teacher_logits):
        """T^2 KL(teacher^T || student^T) at the row's temperature T, (B, T) nats."""
        temperature = self.row.temperature
        return temperature**2 * forward_kl(soften(student_logits, temperature), soften(teacher_logits, temperature))


class InputGradient(Method):
    """The row's loss + `weight` times the distance of both models' input gradients (KDIGA, arXiv 2110.12072).

    Pixels become one-hot tokens: the gradient of each sequence's cross-entropy in the input token at a position, at
    that token and at the teacher's `top_k` guesses for it, is comparable because the vocabulary is shared. The student
    is differentiated twice, which needs unfused attention.
    """

    # Gradients in the inputs are one pass of either model, their derivative two of the student's.
    student_passes, teacher_passes = 3, 1
    plain_forward = True  # made again it would take fused attention; compiled it has no second derivative
    captures_teacher = True

    def __init__(self, row, student, teacher, run, weight=1.0, top_k=4):
        super().__init__(row, student, teacher, run)
        self.weight, self.top_k = weight, top_k

    @contextmanager
    def capture(self, model, is_student):
        with capture_hidden(model, inputs=True) as captured, second_order() if is_student else torch.enable_grad():
            yield captured

    def per_token(self, student_logits, teacher_logits, part):
        """The row's loss, and one distance of gradients per sequence at all of its positions."""
        masked, targets = part.tokens.mask, part.tokens.targets
        with torch.no_grad():
            guesses = by_chunks(lambda rows: rows.topk(min(self.top_k, rows.size(-1))).indices, teacher_logits)
        # Guesses for this token, not the next; the first one, which nobody guesses, takes those of its successor.
        guesses = torch.cat([guesses[:, :1], guesses[:, :-1]], 1)
        ids = torch.cat([part.inputs[..., None], guesses], -1)  # (B, T, 1 + k)
        seen_twice = F.pad(guesses == part.inputs[..., None], (1, 0))  # a right guess is the token itself
        gradients = []
        for model, model_logits, captured in zip(self.models, (student_logits, teacher_logits), self.captured(part)):
            model_loss = by_chunks(cross_entropy, model_logits, targets)
            twice = model is self.models[0]
            entries = input_gradient(model_loss, captured.inputs, model.head, masked, ids, create_graph=twice)
            gradients.append(entries.masked_fill(seen_twice, 0.0))
        # The prompt's tokens are inputs too; what stands behind the last token that counts has no gradient.
        is_input = masked.flip(-1).cumsum(-1).flip(-1) > 0
        apart = input_gradient_alignment(*gradients, is_input).sum(-1) / is_input.sum(-1).clamp(min=1)  # (B,)
        return self.row_loss(student_logits, teacher_logits, part) + self.weight * apart[:, None]


# ---------------------------------------------------------------------------------------------------------------------
# 6. Targets of another kind.


class Subclasses(Method):
    """LELP (arXiv 2409.20449): the teacher's classes split by where its last feature lies, and the student learns the
    parts too.

    A reconstruction. One pass over the references gathers the teacher's features by their next token; along the first
    principal directions of each class, rotated at random and each scaled to unit deviation (the scaling is ours),
    `subclasses` parts get softmax probabilities. Of the classes the `most_classes` most frequent ones are split. The
    student's (class, part) distribution is its own next-token distribution times a softmax of a head per class, so its
    marginal is what it says without that head, and the loss is the sum over both: forward KL + sum over classes of
    teacher(class) KL(teacher's parts || student's parts), taken on the teacher's `top_k` classes of a position. Classes
    seen fewer than `least` times stay whole. The paper's projection on the null space of the output matrix has no use
    here: with at least as many tokens as dimensions that space is {0}.
    """

    captures_teacher = True

    def __init__(self, row, student, teacher, run, subclasses=4, sharpness=1.0, top_k=2, most_classes=256, least=16):
        super().__init__(row, student, teacher, run)
        self.top_k, device, vocab_size = top_k, next(student.parameters()).device, student.config.vocab_size
        hidden, gold = [], []
        with torch.no_grad():
            for batch in references_of(run):
                masked = batch.response_mask[:, 1:]
                hidden.append(teacher(batch.tokens[:, :-1], features=True)[masked].float())
                gold.append(batch.tokens[:, 1:][masked])
        hidden, gold = torch.cat(hidden), torch.cat(gold)
        count_pass(run)
        counts = torch.bincount(gold, minlength=vocab_size)
        order = counts.argsort(descending=True, stable=True)[:most_classes].tolist()
        classes = [token for token in order if counts[token] >= max(least, subclasses)]
        slot, centres, directions = torch.full((vocab_size,), -1), [], []
        for number, token in enumerate(classes):
            own = hidden[gold == token]
            directions_by_spread = torch.linalg.svd(own - own.mean(0), full_matrices=False)[2]  # (S, C)
            axes = directions_by_spread[:subclasses]
            square = torch.empty(subclasses, subclasses).normal_(generator=self.generator)
            rotated = torch.linalg.qr(square)[0].to(device) @ axes
            spread = ((own - own.mean(0)) @ rotated.T).std(0).clamp(min=1e-6)
            slot[token] = number
            centres.append(own.mean(0))
            directions.append(sharpness * rotated / spread[:, None])
        width = student.config.n_embd
        self.register_buffer("slot", slot)
        self.register_buffer("centres", torch.stack(centres) if centres else hidden.new_zeros(1, hidden.size(1)))
        self.register_buffer(
            "directions", torch.stack(directions) if centres else hidden.new_zeros(1, subclasses, hidden.size(1))
        )
        head = torch.empty(len(self.centres), subclasses, width).normal_(0.0, width**-0.5, generator=self.generator)
        self.head = nn.Parameter(head)

    def capture(self, model, is_student):
        return capture_hidden(model, [block_at(model, "last")])

    def per_token(self, student_logits, teacher_logits, part):
        both = zip(self.models, self.captured(part))
        own, others = (model.norm(captured.hidden[0]) for model, captured in both)  # (B, T, C) each
        with torch.no_grad():
            ids = by_chunks(lambda rows: rows.topk(self.top_k).indices, teacher_logits)
            probs = by_chunks(lambda rows: at_least_float32(rows).softmax(-1).topk(self.top_k).values, teacher_logits)
            slot = self.slot[ids]  # (B, T, k)
            at = slot.clamp(min=0)
            offsets = others[:, :, None] - self.centres[at]
            targets = torch.einsum("btksc,btkc->btks", self.directions[at], offsets)
            targets = at_least_float32(targets).log_softmax(-1)
        parts = at_least_float32(torch.einsum("btksc,btc->btks", self.head[at], own)).log_softmax(-1)
        conditional = kl(targets, parts)  # (B, T, k)
        return self.row_loss(student_logits, teacher_logits, part) + (probs * conditional * (slot >= 0)).sum(-1)


class Regions(Method):
    """RDD (arXiv 2407.03719): forward KL everywhere, and cross-entropy where it is worth it.

    In the first `warmup` of the steps the weight of a token is exp(-KL(early || teacher)), `early` being what the
    teacher says from its middle block: easy tokens count. Then tokens count that are hard for one of the two models and
    not for the other: a token is hard for a model that gives it at most `threshold`, the teacher's median over the
    references (the first 3,200), since many a language model is below the paper's fixed .7 nearly everywhere. The early
    answer goes through a linear map that is trained for `early_steps` steps before the run (the paper's teacher has an
    auxiliary head of its own). The mean is over all tokens, not over those that count.
    """

    captures_teacher = True

    def __init__(self, row, student, teacher, run, warmup=0.1, early_steps=50, early_rate=1e-2):
        super().__init__(row, student, teacher, run)
        self.warmup, middle = warmup * run.num_steps, block_at(teacher, "middle")
        early_map = nn.Parameter(torch.eye(teacher.config.n_embd, device=run.device))
        optimizer = torch.optim.Adam([early_map], lr=early_rate)
        batches = list(references_of(run))
        kept, fed = [], 0
        for step in range(early_steps):
            batch = batches[step % len(batches)]
            inputs, targets, masked = batch.tokens[:, :-1], batch.tokens[:, 1:], batch.response_mask[:, 1:]
            with torch.no_grad(), capture_hidden(teacher, [middle]) as captured:
                teacher_logits = teacher(inputs)
            if step < len(batches):
                kept.append((-cross_entropy(teacher_logits, targets)[masked]).exp())
            fed += int((batch.lengths - 1).sum())
            loss = masked_mean(cross_entropy(to_logits(self.early(captured.hidden[0], early_map)), targets), masked)
            optimizer.zero_grad()
            (early_map.grad,) = torch.autograd.grad(loss, early_map)
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(step, early_steps, early_rate)
            optimizer.step()
        self.register_buffer("early_map", early_map.detach())
        probs = torch.cat(kept)
        below = probs[probs < probs.max()]  # a teacher may be sure of most tokens: what ties at the top is easy
        self.register_buffer("threshold", torch.minimum(probs.median(), (below if len(below) else probs).max()))
        run.note_preparation(teacher_tokens=2 * fed, teacher_forwards=early_steps)

    def early(self, hidden, early_map):
        """What the teacher would say from these hidden states of its middle block."""
        teacher = self.models[1]
        return HiddenStates(teacher.norm(hidden @ early_map), teacher.head)

    def before_step(self, step):
        super().before_step(step)
        self.warm = step.number < self.warmup

    def capture(self, model, is_student):
        return nullcontext() if is_student or not self.warm else capture_hidden(model, [block_at(model, "middle")])

    def per_token(self, student_logits, teacher_logits, part):
        teacher, targets = self.models[1], part.tokens.targets
        own = by_chunks(cross_entropy, student_logits, targets)
        with torch.no_grad():
            if self.warm:
                early = self.early(self.captured(part)[1].hidden[0], self.early_map)
                weight = (-by_chunks(forward_kl, teacher_logits, early)).exp()  # KL(early || teacher)
            else:
                others = by_chunks(cross_entropy, teacher_logits, targets)
                weight = ((-own).exp() <= self.threshold) ^ ((-others).exp() <= self.threshold)
        return self.row_loss(student_logits, teacher_logits, part) + weight * own


class Learnable(Method):
    """AdaSPEC (arXiv 2510.19779): the row's loss where a copy of the student, distilled before it, shows what can be
    learned.

    Of each response the `share` of positions counts (weight_of_best) at which the student's KL to the teacher exceeds
    the copy's most. What the copy has not learned either is too hard for a model of its size, and left out.
    """

    student_passes = 1  # the copy's

    def __init__(self, row, student, teacher, run, share=0.4):
        super().__init__(row, student, teacher, run)
        self.share = share

    def before_run(self, distill):
        student, teacher = self.models
        self.reference = trained_first("reference", distill, WORD_LEVEL, copy.deepcopy(student), teacher, self.run)

    def per_token(self, student_logits, teacher_logits, part):
        own = self.row_loss(student_logits, teacher_logits, part)
        with torch.no_grad():
            others = self.run.logits(self.reference, part.inputs, self.reference)
            apart, learned = (by_chunks(forward_kl, x, teacher_logits) for x in (student_logits, others))
        return own * weight_of_best(apart - learned, part.tokens.mask, self.share)


class Branches(Method):
    """ONE (arXiv 1806.04606): no teacher; the student's upper half exists several times, and a gated sum teaches each.

    All branches stand on the student's lower blocks (a student of one block has no upper ones: its branches stay
    equal). Loss: cross-entropy of every branch and of the sum of their logits under a softmax gate, and T^2 KL(sum ||
    branch) for every branch. The first branch is the student, which is kept.
    """

    replaces_loss = True

    def __init__(self, row, student, teacher, run, branches=3, temperature=3.0):
        super().__init__(row, student, teacher, run)
        self.trunk, self.temperature = block_at(student, "middle"), temperature
        upper = nn.ModuleList([*student.blocks[self.trunk + 1 :], student.norm])
        self.others = nn.ModuleList(copy.deepcopy(upper) for _ in range(branches - 1))
        with torch.no_grad():  # copies would stay equal for ever: matrices are drawn anew
            for weight in self.others.parameters():
                if weight.dim() >= 2:
                    drawn = torch.empty(weight.shape).normal_(0.0, weight.std().item(), generator=self.generator)
                    weight.copy_(drawn)
        self.gate = nn.Parameter(torch.zeros(student.config.n_embd, branches))
        extra = sum(weight.numel() for weight in self.others.parameters()) + (branches - 1) * student.head.numel()
        self.products = 3 * extra

    def capture(self, model, is_student):
        return capture_hidden(model, [self.trunk]) if is_student else nullcontext()

    def per_token(self, student_logits, teacher_logits, part):
        student, trunk = self.models[0], self.captured(part)[0].hidden[0]
        branches = [student_logits]
        for *blocks, norm in self.others:
            x = trunk
            for number, block in enumerate(blocks):
                x = block(x, self.trunk + 1 + number)
            branches.append(like(HiddenStates(norm(x), student.head), student_logits))
        gate = at_least_float32(trunk @ self.gate).softmax(-1)  # (B, T, branches)

        def all_of_them(gate, targets, *branches):
            ensemble = sum(share[..., None] * branch for share, branch in zip(gate.unbind(-1), branches))
            loss = cross_entropy(ensemble, targets)
            for branch in branches:
                soft = forward_kl(soften(branch, self.temperature), soften(ensemble, self.temperature))
                loss = loss + cross_entropy(branch, targets) + self.temperature**2 * soft
            return loss

        return by_chunks(all_of_them, gate, part.tokens.targets, *branches)


def tokens_in_use(run):
    """The ids that occur in the student's references, in order."""
    return sorted({token for response in run.required_responses() for token in response})


class Smoothing(Method):
    """Label smoothing over the tokens in use: on ids that never occur it would only teach what is wrong."""

    needs_its_loss = True

    def __init__(self, row, student, teacher, run):
        super().__init__(row, student, teacher, run)
        self.register_buffer("among", torch.tensor(tokens_in_use(run)), persistent=False)

    @property
    def loss_kwargs(self):
        return self.row.loss_kwargs | {"among": self.among}


class SoftLabels(Method):
    """LW-KD (arXiv 2005.09163) by analogy: a teacher that never sees the text, only the token, and a discriminator.

    Its data set is made up: one point per token and noise around it. A linear softmax classifier learns it and then
    answers, for a noisy point of the reference token, with soft labels that vary from position to position; its
    temperature is set such that the token itself gets `gold` on average. Loss: cross-entropy + KL(soft label ||
    student) + `adversarial` times -log D(student), where D, a small network on the sorted best probabilities, learns to
    tell labels from students. With gold .8 the two targets put .9 on the reference between them: `label_smoothing` is
    the control with about as much (.9 and its share of the rest), in one term where here are two, hence half as strong
    a pull.
    """

    replaces_loss = True

    def __init__(self, row, student, teacher, run, gold=0.8, adversarial=0.1, width=16, noise=0.2, best=8):
        super().__init__(row, student, teacher, run)
        device = next(student.parameters()).device
        used = tokens_in_use(run)
        self.adversarial, self.noise, self.best = adversarial, noise, min(best, len(used), student.config.vocab_size)
        slot = torch.zeros(student.config.vocab_size, dtype=torch.long)
        slot[used] = torch.arange(len(used))
        points = F.normalize(torch.empty(len(used), width).normal_(generator=self.generator), dim=-1)
        weights = nn.Parameter(torch.zeros(len(used), width))
        optimizer = torch.optim.Adam([weights], lr=0.1)
        for _ in range(300):
            labels = torch.randint(len(used), (256,), generator=self.generator)
            loss = F.cross_entropy(self.noisy(points[labels]) @ weights.T, labels)
            (weights.grad,) = torch.autograd.grad(loss, weights)
            optimizer.step()
        labels = torch.randint(len(used), (2048,), generator=self.generator)
        answers = (self.noisy(points[labels]) @ weights.T).detach()
        low, high = 1e-3, 1e3  # the gold mass falls as the temperature rises
        for _ in range(60):
            middle = math.sqrt(low * high)
            mass = (answers / middle).softmax(-1).gather(-1, labels[:, None]).mean().item()
            low, high = (middle, high) if mass > gold else (low, middle)
        kept = {"used": torch.tensor(used), "slot": slot, "points": points, "weights": weights.detach() / low}
        for name, value in kept.items():
            self.register_buffer(name, value.to(device))

        def drawn(*shape):
            return nn.Parameter(torch.empty(shape).normal_(0.0, shape[0] ** -0.5, generator=self.generator))

        self.hidden, self.last = drawn(self.best, 32), drawn(32, 1)

    def noisy(self, points, uniform=None):
        """Points and uniform noise of standard deviation `noise` in every direction."""
        if uniform is None:
            uniform = torch.rand(points.shape, generator=self.generator)
        return points + self.noise * math.sqrt(12) * (uniform - 0.5)

    def looks_real(self, probs):
        """The discriminator: sorted best probabilities (..., best) -> log-odds that they are a label's."""
        return (F.gelu(probs @ self.hidden) @ self.last)[..., 0]

    def before_step(self, step):
        super().before_step(step)
        self.step_seed, self.real, self.made_up = draw_seed(self.generator), [], []

    def soft_labels(self, targets, places):
        """(B, T) -> (B, T, tokens in use) log-probabilities."""
        points = self.points[self.slot[targets]]  # (B, T, width)
        answers = self.noisy(points, uniforms(self.step_seed, places, points)) @ self.weights.T
        return at_least_float32(answers).log_softmax(-1)

    def per_token(self, student_logits, teacher_logits, part):
        """The student's loss; what the discriminator will learn from is kept for after_step."""
        labels = self.soft_labels(part.tokens.targets, part.places)

        def columns(student_logits, labels, targets):
            logprobs = at_least_float32(student_logits).log_softmax(-1)
            distance = kl(labels, logprobs[..., self.used])
            best = logprobs.topk(self.best).values.exp()
            return torch.cat([(cross_entropy(student_logits, targets) + distance)[..., None], best], -1)

        found = by_chunks(columns, student_logits, labels, part.tokens.targets)
        masked = part.tokens.mask
        self.real.append((labels.topk(self.best).values.exp(), masked))
        self.made_up.append((found[..., 1:].detach().float(), masked))
        return found[..., 0] + self.adversarial * F.softplus(-self.looks_real(found[..., 1:]))

    def after_step(self, loss):
        self.zero_grad(set_to_none=True)  # what the student's loss left here is not the discriminator's
        count = all_reduce_mean(sum(masked.sum() for _, masked in self.real))
        for probs, masked, sign in [(*rows, -1) for rows in self.real] + [(*rows, 1) for rows in self.made_up]:
            masked_mean(F.softplus(sign * self.looks_real(probs)), masked, total=count).backward()


class Average(Method):
    """The teacher, which is the student's start, moves: after every step decay * teacher + (1 - decay) * student.

    A teacher of weight 4 and a student of weight 2 give 3 at decay .5. Decay 0 are the student's live weights, decay 1
    is the frozen start. The average is part of what is saved.
    """

    moves_teacher = True

    def __init__(self, row, student, teacher, run, decay=0.99):
        super().__init__(row, student, teacher, run)
        if not 0 <= decay <= 1:
            raise ValueError(f"decay is the share that the average keeps in a step, 0..1; found {decay}")
        self.average, self.decay = teacher, decay

    @torch.no_grad()
    def after_step(self, loss):
        for average, weight in zip(self.average.parameters(), self.models[0].parameters()):
            average.lerp_(weight, 1 - self.decay)


class Sibling(Average):
    """SDPO (arXiv 2601.20802): the teacher, an average of the student's weights, reads a right answer of the batch.

    Each prompt is answered `group` times, and the first right answer of the group, never the response itself, is the
    hint. Where nobody else was right, or the hint leaves no room in the block, a response teaches nothing: its loss is
    0, and counts in the mean.
    """

    def __init__(self, row, student, teacher, run, group=4, decay=0.99):
        super().__init__(row, student, teacher, run, decay)
        self.group, self.hint_of, self.block_size = group, run.hinted["sibling"], teacher.config.block_size
        use_groups(run, group)

    def write(self, step):
        """The student's batch; what the teacher reads before each of its responses is made of the others."""
        rollout, run = super().write(step), self.run
        own = rollout.responses()
        scores, everybodys = batch_scores(run, step, own), gathered_in_order(own)
        siblings = right_siblings(scores, self.group)
        hints = [[] if siblings[i] is None else self.hint_of(everybodys[siblings[i]]) for i in step.places]
        run.teacher_prompts, helped = prompts_after_hints(hints, step.prompts, own, self.block_size)
        self.helped = to_device(torch.tensor(helped), run.device)
        run.note("reward", scores.mean())
        return rollout

    def per_token(self, student_logits, teacher_logits, part):
        return self.row_loss(student_logits, teacher_logits, part) * self.helped[part.rows, None]

    def check_signal(self, part):
        if not self.helped.any():
            return "the first batch teaches nothing: no response has another right answer (score 1) to its prompt"
        return super().check_signal(part)


def draw_seed(generator):
    """A seed for one step's noise."""
    return torch.randint(2**62, (), generator=generator).item()


def uniforms(seed, places, like):
    """Uniform numbers of the shape of `like` (B, T, N), a function of (seed, place in the batch, position, n) alone."""
    B, T, N = like.shape
    noise = Noise(torch.Generator().manual_seed(seed), to_device(torch.tensor(list(places)), like.device))
    numbers = torch.arange(T * N, device=like.device).view(1, T, N).expand(B, -1, -1)
    return noise(numbers, "target")


# A new kind of state is one class above and one row here.
METHODS = {
    "interpolation": Interpolation,
    "veto": Veto,
    "sampled_targets": SampledTargets,
    "extrapolation": Extrapolation,
    "scored": Scored,
    "replay": Replay,
    "feature": Feature,
    "flow": Flow,
    "dual_space": DualSpace,
    "input_gradient": InputGradient,
    "subclasses": Subclasses,
    "regions": Regions,
    "learnable": Learnable,
    "branches": Branches,
    "soft_labels": SoftLabels,
    "smoothing": Smoothing,
    "average": Average,
    "sibling": Sibling,
}


# ---------------------------------------------------------------------------------------------------------------------
# 7. Another teacher than the one given: (distill, student, teacher, run) -> teacher.


def given_teacher(distill, student, teacher, run):
    """The teacher as it is."""
    return teacher


def own_start(distill, student, teacher, run):
    """The student as it is before its first step, frozen."""
    return copy.deepcopy(student).requires_grad_(False).eval()


WORD_LEVEL = Variant("dataset", "forward_kl", None, "a run before another one")


def assistant(distill, student, teacher, run):
    """TAKD (arXiv 1902.03393): a model between the two in depth and width, drawn anew, and distilled from the teacher.

    The link is a run of supervised KD of its own, three times as long as the student's; a chain of more links would be
    more of these.
    """
    shapes = [(config.n_layer, config.n_head, config.n_embd) for config in (student.config, teacher.config)]
    n_layer, n_head, n_embd = (round(math.sqrt(small * large)) for small, large in zip(*shapes))
    n_embd = n_head * round(n_embd / n_head)
    config = GPTConfig(student.config.vocab_size, student.config.block_size, n_layer, n_head, n_embd)
    between = GPT(config, run.generator(5)).to(run.device)
    return trained_first("assistant", distill, WORD_LEVEL, between, teacher, run, steps=3 * run.num_steps)


def trained_first(name, distill, row, model, teacher, run, data=None, **settings):
    """`model` after a run of its own by a row, on data (prompts, responses), frozen; what it took is noted in `run`."""
    prompts, responses = data or (run.prompts, run.required_responses())
    with run.inner(name, **settings) as inner:
        spent = distill(row, model.train(), teacher, prompts, responses, inner).costs
    model.zero_grad(set_to_none=True)
    tflop, forwards = spent["compute"], spent["teacher_forwards"]
    run.note_preparation(spent["seconds"], tflop=tflop, teacher_forwards=forwards, grows=True)
    return model.requires_grad_(False)


def sftn_teacher(distill, student, teacher, run, rate=0.1):
    """SFTN (arXiv 2102.07650): a copy of the teacher learns on, together with a student's upper half on top of its
    lower half.

    Both learn the references, and the KL from teacher to branch reaches both: what a student cannot follow becomes
    costly. The three losses weigh 1 each, which is ours. As many updates as the student's, at `rate` times the rate
    that the teacher was pretrained with.
    """
    if run.pretraining_lr is None:
        raise ValueError("sftn continues the teacher's pretraining: give Run(pretraining_lr=...), the rate that it had")
    generator, lr = run.generator(4), rate * run.pretraining_lr
    teacher, branch = copy.deepcopy(teacher).requires_grad_(True), copy.deepcopy(student)
    below, above = block_at(teacher, "middle"), branch.blocks[block_at(branch, "middle") + 1 :]
    bridge = Projector(teacher.config.n_embd, branch.config.n_embd, generator).to(run.device)
    both = nn.ModuleList([teacher, bridge, above, branch.norm])
    head = nn.Parameter(branch.head.detach().clone())
    both.register_parameter("head", head)
    prompts, responses = run.prompts, run.required_responses()
    order = [torch.randperm(len(prompts), generator=generator)[: run.batch_size].tolist() for _ in range(run.num_steps)]
    optimizer = make_optimizer(both, lr)
    with run.inner("sftn") as inner:
        for step, rows in inner.plain_steps(order, both=both, optimizer=optimizer):
            batch = rollout_from_ids(
                [prompts[i] for i in rows], [responses[i] for i in rows], [DATASET] * len(rows), run.device
            )
            inputs, targets, masked = batch.tokens[:, :-1], batch.tokens[:, 1:], batch.response_mask[:, 1:]
            with capture_hidden(teacher, [below]) as captured:
                teacher_logits = teacher(inputs)
            x = bridge(captured.hidden[0])
            for number, block in enumerate(above):
                x = block(x, number)
            branch_logits = F.linear(branch.norm(x), head)
            logprobs = [model_logits.float().log_softmax(-1) for model_logits in (teacher_logits, branch_logits)]
            distance = kl(*logprobs)  # KL(teacher || branch): gradients to both
            per_token = cross_entropy(teacher_logits, targets) + cross_entropy(branch_logits, targets) + distance
            optimizer.zero_grad(set_to_none=True)
            masked_mean(per_token, masked).backward()
            clip_and_step(both, optimizer, learning_rate(step, run.num_steps, lr))
        seconds = inner.meter.figures()["seconds"]
    fed = sum(len(prompts[i]) + len(responses[i]) - 1 for rows in order for i in rows)
    trained, of_teacher = (sum(weight.numel() for weight in model.parameters()) for model in (both, teacher))
    tflop = 6e-12 * fed * (trained - of_teacher)  # of the branch
    run.note_preparation(seconds, tflop=tflop, teacher_tokens=3 * fed, teacher_forwards=run.num_steps, grows=True)
    return teacher.requires_grad_(False).eval()


def specialists(distill, student, teacher, run, rate=0.1):
    """MOPD (arXiv 2606.30406): a copy of the teacher per domain of the prompts learns on by that domain's references,
    and each prompt is answered by its own.

    As many updates as the student's, at `rate` times the rate that the teacher was pretrained with. The embedding,
    which is the head, stands still: they share it. A domain is told by a prompt's first token.
    """
    if run.pretraining_lr is None:
        raise ValueError("mopd continues the teacher's pretraining: give Run(pretraining_lr=...), the rate it had")
    domains = run.domains or [""] * len(run.prompts)
    if len(domains) != len(run.prompts):
        raise ValueError(f"give one of `domains` for each prompt: found {len(domains)}, {len(run.prompts)} prompts")
    row = Variant("dataset", "cross_entropy", None, "a specialist of MOPD")
    names, examples = sorted(set(domains)), list(zip(run.prompts, run.required_responses(), domains))
    domain_of, experts = torch.zeros(teacher.config.vocab_size, dtype=torch.long), []
    for number, name in enumerate(names):
        prompts, responses, _ = zip(*(example for example in examples if example[2] == name))
        domain_of[[prompt[0] for prompt in prompts]] = number
        expert = copy.deepcopy(teacher).requires_grad_(True)
        expert.token_embedding.requires_grad_(False)
        label, lr = f"specialist{chr(ord('a') + number)}", rate * run.pretraining_lr
        trained_first(label, distill, row, expert, teacher, run, (prompts, responses), lr=lr)
        experts.append(expert.eval())
    if any(names[domain_of[prompt[0]]] != domain for prompt, _, domain in examples):
        raise ValueError(f"a prompt's first token must tell its domain ({', '.join(names)}): some begin prompts of two")
    return Specialists(experts, domain_of.to(run.device))


# Another way to make a teacher is one function above and one row here.
TEACHERS = {
    "pair": given_teacher,
    "start": own_start,
    "assistant": assistant,
    "sftn": sftn_teacher,
    "specialists": specialists,
}
