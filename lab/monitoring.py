"""What a run tells of itself on the way: step lines, evaluations, held-out rollouts, lines for the user.

Nothing here trains: a run with a Monitor that says nothing ends with the same weights.
"""

import functools

import torch

from data import progress
from lab.evaluate import entropy_gap, ratio, topk_overlap
from losses import by_chunks, entropy, masked_mean
from sample import SOURCE_NAMES, STUDENT


class Monitor:
    """Writes the lines of one training.Run."""

    def __init__(self, run):
        self.run = run

    def before_first_step(self):
        """Step 0 of the curve and the first held-out rollouts; the method does not hear of them."""
        try:
            self.evaluate(0)
            self.show(0)
        except ValueError as error:
            raise ValueError(f"before the first step: {error}") from error

    def after_step(self, step):
        """The step's line, if it is logged; about eight times a run an evaluation, which the method hears of."""
        run, done, figures = self.run, step.number + 1, None
        if step.logged:
            self.log(step)
        evaluated = done % max(1, run.num_steps // 8) == 0 or step.last
        with run.finite.naming(step.number):
            if evaluated:
                figures = self.evaluate(done)
            self.show(done)
        if evaluated:
            run.method.after_evaluation(figures)
            self.tell(step, figures)

    def evaluate(self, done):
        """The figures after so many steps, {} without a validation; they become a line of the record."""
        figures = self.run.evaluation()
        if figures:
            self.run.log.write("eval", step=done, **figures)
        return figures

    def show(self, done):
        """What run.show makes of the student at the start, in the middle and at the end, as a line of the record."""
        run = self.run
        if run.show is not None and done in (0, run.num_steps // 2, run.num_steps):
            with run.measuring():
                run.log.write("rollout", step=done, **run.show(run.student))

    def see(self, part, per_token):
        """Keep what a part of a logged step tells of both models' logits, on the device; per_token is its loss."""
        run, step = self.run, part.step
        if not per_token.dim():  # several terms: the method says which one is shown
            per_token = run.method.shown(part)
        both = [part.student_logits.detach()]
        if part.teacher_logits is not None and not (run.cache and run.cache.best):
            both.append(part.teacher_logits.detach())
        columns = by_chunks(functools.partial(step_columns, accept_top_k=run.accept_top_k), *both)
        step.columns.append((columns, per_token.detach()))

    def log(self, step):
        """What happened? Read from the device only now and then."""
        run = self.run
        run.finite.check()
        columns, per_token = (torch.cat(column) for column in zip(*step.columns))
        figures = {"step": step.number + 1, "loss": step.losses["student"].item()}
        figures |= {"gradient_norm": step.norms["student"].item(), "lr": step.rate}
        for name in step.norms.keys() - {"student"}:
            figures |= {"teacher_loss": step.losses[name].item(), f"{name}_gradient_norm": step.norms[name].item()}
        figures |= step_figures(step.rollout, columns, per_token, run.max_new_tokens)
        figures |= {name: float(value) for name, value in step.notes.items()}
        run.log.write("step", **figures, **step.clock.figures("sampling", "teacher", "student", "update"))

    def tell(self, step, figures):
        """How far the run has come, to the user: behind the bar of its steps, and as a line."""
        named = {"score": "val score", "val_nll": "val nll"}
        told = "".join(f"  {named[name]} {figures[name]:.3f}" for name in named if figures.get(name) is not None)
        told += f"  drift {figures['drift']:.4f}" if "drift" in figures else ""
        loss = step.losses["student"].item()
        progress.note(self.run.bar, told.strip().split("  ")[0] or f"loss {loss:.4f}")  # a line has room for one figure
        (self.run.tell or self.run.report)(f"  step {step.number + 1:>5}/{self.run.num_steps}  loss {loss:.4f}{told}")


@torch.no_grad()
def step_columns(student_logits, teacher_logits=None, accept_top_k=0):
    """What step_figures wants to know of the logits at every position: (..., V) -> (..., 1), with a teacher (..., 4),
    or (..., 3) where accept_top_k is 0."""
    columns = [entropy(student_logits)]
    if teacher_logits is not None:
        columns += [entropy(teacher_logits), (student_logits.argmax(-1) == teacher_logits.argmax(-1)).float()]
        columns += [topk_overlap(student_logits, teacher_logits, accept_top_k)] if accept_top_k else []
    return torch.stack(columns, -1)


@torch.no_grad()
def step_figures(rollout, columns, per_token, budget, bins=8):
    """What one batch tells about its writer and both models: a dict of plain numbers, None for a mean over nothing
    (docs/metrics.md).

    columns (B, T-1, 1, 3 or 4) of step_columns and per_token (B, T-1), the loss.
    """
    mask, target_mask = rollout.response_mask, rollout.response_mask[:, 1:]
    total = mask.sum()
    figures = {"mean_length": total / len(mask), "eos_share": rollout.finished.float().mean()}
    own_rows = ((rollout.source == STUDENT) & mask).any(1)
    if bool(own_rows.any()):
        figures["student_eos_share"] = rollout.finished[own_rows].float().mean()
    of_logits = ("student_entropy", "teacher_entropy", "agreement", "topk_overlap")[: columns.size(-1)]
    for name, column in zip(of_logits, columns.unbind(-1)):
        figures[name] = masked_mean(column, target_mask)
    for number, name in enumerate(SOURCE_NAMES):  # the loss by who wrote the token
        written = (rollout.source[:, 1:] == number) & target_mask
        if name != "prompt" and bool(written.any()):
            figures[f"loss_on_{name}"] = masked_mean(per_token, written)
            figures[f"{name}_share"] = written.sum() / total
    figures, total = {name: value.item() for name, value in figures.items()}, int(total)
    if not total:  # every row's prompt has filled its block
        figures |= dict.fromkeys(of_logits)
    if "teacher_entropy" in figures:
        figures["entropy_gap"] = entropy_gap(figures)
    if rollout.counters is not None:
        counts = rollout.counts()
        rejected = (rollout.rejected_tokens >= 0) & mask  # every response token was judged: it stayed, or it did not
        slots = torch.arange(mask.size(1), device=mask.device) - rollout.prompt_len[:, None]  # place in the response
        place = (slots * bins // budget).clamp(0, bins - 1)
        judged = torch.stack([(place == b) & mask for b in range(bins)])  # (bins, B, T)
        chosen = torch.stack([judged & ~rejected, judged & rejected])
        accepted_by_position, replaced_by_position = (
            [rate if rate == rate else None for rate in rates]
            for rates in (chosen.sum((2, 3)) / judged.sum((1, 2))).tolist()
        )
        figures |= {
            "accept_rate": ratio(counts["accepted"], counts["judged"]),
            "accept_by_position": accepted_by_position,
            "replacement_rate": ratio(counts["replaced"], total),
            "replacement_by_position": replaced_by_position,
            "discarded_share": ratio(counts["discarded"], counts["proposed"]),
            "teacher_calls_per_token": ratio(counts["teacher_calls"], total),
            "student_steps_per_token": ratio(counts["student_steps"], total),
        }
    return figures
