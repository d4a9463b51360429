"""Silent faults made loud: does the teacher reach the student, does only move what should, and do the figures look
sane?

A loss that ignores its teacher trains without an error, and so do a teacher that learns along, a sampler that never
accepts and a student that never ends. At the start of each run the signal is checked, on its first batch; at its end
the figures are. What cannot be right raises ValueError; what may be meant is a warning, which says what to type.
"""

import contextlib

import torch

from losses import HiddenStates
from sample import WRITERS

GATE = 0.5  # score from which on a teacher of a synthetic task has learned it
STUDENT_WRITERS = tuple(name for name, writer in WRITERS.items() if writer.student_writes)
FEW = 8  # rows of a batch are enough to ask, and what is asked is held in memory as well


def first_rows(column):
    """The first few rows of a batch's logits, or of any other column of it."""
    if isinstance(column, HiddenStates):
        return column._replace(features=column.features[:FEW])
    return column[:FEW]


def _probe(model_logits):
    """The same numbers, of which a gradient can be asked: (what stands for them, the tensor that takes the
    gradient)."""
    if isinstance(model_logits, HiddenStates):
        features = model_logits.features.detach().requires_grad_()
        return HiddenStates(features, model_logits.head.detach()), features
    own = model_logits.detach().requires_grad_()
    return own, own


def _another(teacher_logits):
    """What a teacher would say that means other tokens and is less sure of them."""
    if isinstance(teacher_logits, HiddenStates):
        return HiddenStates(teacher_logits.features, teacher_logits.head.roll(1, 0) / 2)
    return teacher_logits.roll(1, -1) / 2


def check_signal(loss_of, student_logits, teacher_logits, is_divergence, has_gate=False):
    """Ask the loss of a run's first batch whether its teacher matters -> a warning, or None.

    loss_of(student_logits, teacher_logits) is a scalar. ValueError if another teacher gives the same gradient, or if
    the loss of a divergence is not smallest where both agree. A warning if there is no gradient at all, or if a loss
    with a gate has closed it everywhere. With losses.forward_kl, student (.2, .5, .3) and teacher (.6, .3, .1), the
    gradient is (-.4, .2, .2); at agreement it is 0.
    """

    def gradient(own_logits, other_logits):
        probe, leaf = _probe(own_logits)
        with torch.enable_grad():
            loss = loss_of(probe, other_logits)
            found = torch.autograd.grad(loss, leaf, allow_unused=True)[0] if loss.requires_grad else None
            return torch.zeros_like(leaf) if found is None else found, loss.detach()

    own, loss = gradient(student_logits, teacher_logits)
    other, _ = gradient(student_logits, _another(teacher_logits))
    if torch.equal(own, other) and has_gate:
        return "in the first rows the loss does not ask the teacher at any token: its gate is closed everywhere"
    if not bool(own.any()) and not bool(other.any()):
        return "the loss of the first rows has no gradient: nothing is learned from them"
    if torch.equal(own, other):
        raise ValueError(
            "the loss does not depend on the teacher: another one gives the same gradient; look at the row's loss, "
            "or at what the loop hands to it"
        )
    if is_divergence:
        agreed, at_agreement = gradient(teacher_logits, teacher_logits)
        length = agreed.norm()
        if at_agreement > loss + 1e-5 or length > 1e-2 * own.norm() + 1e-6:
            raise ValueError(
                f"the loss is not smallest where student and teacher agree: {at_agreement.item():.6f} there, "
                f"{loss.item():.6f} at the start, with a gradient of length {length.item():.6f}; "
                "look at its sign and sides"
            )
    return None


class Finite:
    """Whether all numbers of a run are finite: looked at in every step on the device, which is asked only now and then.

    `order`: examples of every step's batch; `checkpointer`: knows the step that a state was saved after; `advice`: what
    to lower; `log`: the run's record, if it keeps one.
    """

    def __init__(self, order, checkpointer, advice, device, log=None):
        self.order, self.checkpointer, self.advice, self.log = order, checkpointer, advice, log
        self.first_bad = torch.full((), -1, device=device)  # the first step with a loss or gradient that was not finite

    def see(self, step, number):
        """A scalar that is not finite where something of the step is not."""
        self.first_bad = torch.where((self.first_bad < 0) & ~torch.isfinite(number), step, self.first_bad)

    def check(self):
        """ValueError once a number was not finite; asks the device."""
        if self.first_bad >= 0:
            where = self._place(int(self.first_bad))
            raise ValueError(f"loss or gradient is not finite at {where}: lower {self.advice}{self._kept()}")

    def _place(self, step):
        """The step and its batch, of which a few numbers are enough to find it."""
        numbers = self.order[step].tolist()
        more = f" and {len(numbers) - 4} more" if len(numbers) > 4 else ""
        return f"step {step + 1} (train examples {', '.join(map(str, numbers[:4]))}{more})"

    def _kept(self):
        """What is still there, if anything: a run from a notebook may keep nothing on disk."""
        kept = ["the record so far"] if hasattr(self.log, "path") else []
        kept += [f"the state after {self.checkpointer.step} steps"] if self.checkpointer.step else []
        return f"; kept: {' and '.join(kept)}" if kept else ""

    @contextlib.contextmanager
    def naming(self, step):
        """A `with` block in which a model writes or is measured, in the step under way: an error there, such as that of
        a sampler who meets broken logits, names the step and the batch that went wrong first. Until then the device is
        not asked."""
        try:
            yield
        except ValueError as error:
            self.check()  # where it began
            raise ValueError(f"{error}; it was met at {self._place(step)}{self._kept()}") from error


def warner(log, say):
    """-> a function that takes a warning, or None, to the record and to the user."""

    def warn(found):
        if found:
            log.write("warning", text=found)
            say(f"  warning: {found}")

    return warn


def weight_sums(model):
    """Two sums over the bits of each of a model's tensors, without rounding: they stay the same only if the weights
    do."""
    whole_numbers, sums = {2: torch.int16, 4: torch.int32, 8: torch.int64}, []
    for weight in model.parameters():
        bits = weight.detach().view(whole_numbers[weight.itemsize]).long()
        sums += [bits.sum(), bits.square().sum()]
    return torch.stack(sums) if sums else torch.zeros(0)


class FrozenCheck:
    """What must not move in a step, and what must: taken before a run's first step, asked after it."""

    def __init__(self, student, frozen):
        self.student, self.frozen = student, frozen
        self.before = weight_sums(student), weight_sums(frozen)

    def check(self):
        """-> a warning, or None. ValueError if a frozen model has moved."""
        student, frozen = self.before
        if not torch.equal(frozen, weight_sums(self.frozen)):
            raise ValueError("the teacher's own weights moved in the first step: nothing but its module may")
        if torch.equal(student, weight_sums(self.student)):
            return "the first step moved no weight of the student: raise --lr"
        return None


def about_start(teacher, student, solvable):
    """Warnings about where a comparison starts, from both models' figures; `solvable`: a score of 1 can be reached."""
    found = []
    if teacher["score"] < student["score"]:
        found.append(
            f"the teacher ({teacher['score']:.3f}) is worse than the student at the start ({student['score']:.3f}): "
            "raise --teacher-steps, or lower --start-steps"
        )
    elif solvable and teacher["score"] < GATE:
        found.append(
            f"the teacher's score of {teacher['score']:.3f} is below {GATE}: it has not learned the task; raise "
            "--teacher-steps or --size, or lower --difficulty"
        )
    if teacher["eos_share"] == 0:
        found.append("the teacher never ends a response: raise --teacher-steps")
    return found


def about_module(kind, drift):
    """A line about an online module that does not start as the identity; none of one that does, or was not measured."""
    return [f"the {kind} module starts {drift:.4f} nats away from the original teacher"] if drift else []


def about_run(writer, accept_rule, steps, final):
    """Warnings about a run, from who writes and by which rule, its logged steps and its final figures."""

    def always(key, value):
        """Whether the figure is `value` in all steps that have it, and some do."""
        found = [step[key] for step in steps if step.get(key) is not None]
        return bool(found) and all(one == value for one in found)

    found = []
    if always("accept_rate", 1.0) and accept_rule != "all":
        found.append(
            "every proposal was accepted in every logged step, so the teacher wrote nothing: "
            "lower --accept-top-k, or take a stricter rule"
        )
    if always("accept_rate", 0.0) and accept_rule != "none":
        found.append(
            "no proposal was accepted in any logged step, so the student wrote nothing: "
            "raise --accept-top-k, or take a laxer rule"
        )
    if writer in STUDENT_WRITERS and always("student_eos_share", 0.0):
        found.append(
            "all responses by the student, of all logged steps, were cut at the budget: raise --start-steps, it cannot "
            "end yet"
        )
    if final["eos_share"] == 0:
        found.append("the final student never ends a response by itself: look at its samples (python sample.py)")
    entropies = final["student_entropy"], final["teacher_entropy"]
    # Sequence-level KD, which learns one greedy answer per prompt, leaves a tenth.
    if None not in entropies and entropies[0] < 0.05 * entropies[1]:
        found.append(
            f"the student's entropy has collapsed to {final['student_entropy']:.4f} nats, where the teacher's is "
            f"{final['teacher_entropy']:.4f}: lower --lr, or take a loss that covers more (forward_kl)"
        )
    return found
