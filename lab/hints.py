"""What the teacher reads: the student's prompt, or another one before the same response.

    student    prompt           response          row t of its logits predicts token t + 1 of this text
    teacher    hint prompt      response          the same tokens, as many places later as the hint has tokens

A part of a batch (training.Part) holds the student's text. `feed` says what a model is to read for it, and how its
logits are laid beside the student's: by position in the response, not by position in the text. Whose logits they are
does not matter: the pair's teacher, the student's frozen start, an average of its weights, a module that learns along.

The way of a hint: data.tasks.hinted_prompts -> Pair.hinted -> Run(hinted=...) -> `prepare` of methods.py or of
train_okd.py sets run.teacher_prompts (Sibling sets it anew for each batch) -> Part.teacher -> Part.forward, which
calls `feed`.
"""

import torch

from losses import HiddenStates
from sample import pad_sequences, to_device


class OwnPrompt:
    """A model reads what the student reads, and its logits lie as they are."""

    def of(self, prompts):
        """What stands before each response, of all examples of a run: lists of ids."""
        return prompts

    def feed(self, part):
        """For a part -> (inputs (rows, T'); how many tokens they hold without padding, a scalar; a function that takes
        logits (rows, T', V) to (rows, T, V)). Only rows that predict response tokens have a meaning afterwards; the
        mask leaves out the others."""
        return part.inputs, part.fed, lambda model_logits: model_logits


class AnotherPrompt:
    """A model reads `hinted[i]`, a list of ids, in place of prompt i, and then the same response."""

    def __init__(self, hinted, block_size):
        self.hinted, self.block_size = hinted, block_size

    def of(self, prompts):
        """As OwnPrompt.of."""
        return self.hinted

    def prompts_of(self, part):
        """What stands before each response of a part."""
        return [self.hinted[example] for example in part.step.example_ids[part.rows]]

    def feed(self, part):
        """As OwnPrompt.feed."""
        rollout, rows, device = part.rollout, part.rows, part.inputs.device
        prompts = self.prompts_of(part)
        own = [len(part.run.prompts[example]) for example in part.step.example_ids[rows]]
        shift = [len(prompt) - length for prompt, length in zip(prompts, own)]  # of the response, to the right
        tokens, T = rollout.tokens[rows], part.inputs.size(1)  # (rows, T + 1)
        width = min(T + 1 + max(shift), self.block_size)  # what is cut off is padding
        prompt_ids, prompt_len = pad_sequences(prompts, device)
        prompt_ids = torch.nn.functional.pad(prompt_ids, (0, max(0, width - prompt_ids.size(1))))[:, :width]
        shift = to_device(torch.tensor(shift), device)[:, None]
        slots = torch.arange(width, device=device)
        moved_text = tokens.gather(1, (slots - shift).clamp(0, T))  # the student's text, moved to the right
        inputs = torch.where(slots < prompt_len[:, None], prompt_ids, moved_text)[:, :-1]
        # (rows, T): which row of this model's logits predicts the same token as row t of the student's
        model_row = (torch.arange(T, device=device) + shift).clamp(0, width - 2)

        def aligned(model_logits):
            if isinstance(model_logits, HiddenStates):
                return model_logits._replace(features=aligned(model_logits.features))
            return model_logits.gather(1, model_row[..., None].expand(-1, -1, model_logits.size(-1)))

        return inputs, part.fed + shift.sum(), aligned


class PromptsOfBatch(AnotherPrompt):
    """`hinted[i]`, a hint and the prompt, is read in place of the prompt of row i of one batch. For hints that are made
    of the batch itself."""

    def prompts_of(self, part):
        """As AnotherPrompt.prompts_of."""
        return self.hinted[part.rows]


def prompts_after_hints(hints, prompts, responses, block_size):
    """Hint and prompt for each row of a batch, the prompt alone where there is no hint ([]) or no room for it and the
    whole response -> (PromptsOfBatch, for each row whether it has a hint)."""
    rows = list(zip(hints, prompts, responses))
    has_hint = [bool(row[0]) and sum(map(len, row)) <= block_size for row in rows]
    hinted = [hint + prompt if has else prompt for has, (hint, prompt, _) in zip(has_hint, rows)]
    return PromptsOfBatch(hinted, block_size), has_hint


def prompts_of_teacher(kind, run, teacher):
    """What the teacher of a run reads, by the kind of hint that a row names. None: the student's own prompt. "sibling":
    the student's own prompt too, until Sibling.write sets the hints of each batch.

    ValueError where the run has no such prompts, not one for each, or where one leaves the teacher no room for a whole
    response.
    """
    if kind is None:
        return OwnPrompt()
    hinted, of_batch = run.hinted.get(kind), kind == "sibling"
    if hinted is None or callable(hinted) != of_batch:
        there, wanted = ", ".join(run.hinted) or "none", "a function of a response" if of_batch else "lists of ids"
        raise ValueError(
            f"the teacher of this method reads prompts with a hint ({kind}), found {there}: give --hint-share 0.5, or "
            f"Run(hinted={{{kind!r}: {wanted}}})"
        )
    if of_batch:
        return OwnPrompt()
    if len(hinted) != len(run.prompts) or not all(hinted):
        raise ValueError(
            f"hinted[{kind!r}] holds {sum(map(bool, hinted))} prompts for {len(run.prompts)}: give one for each, as "
            "the teacher is to read it"
        )
    block_size = teacher.config.block_size
    responses = run.references or [()] * len(hinted)
    needed = max(
        len(prompt) + max(min(run.max_new_tokens, block_size - len(own)), len(response))
        for prompt, own, response in zip(hinted, run.prompts, responses)
    )
    if needed > block_size:
        raise ValueError(
            f"a hint, its prompt and a whole response take {needed} tokens, and the teacher's block has {block_size}: "
            "give shorter hints, a smaller max_new_tokens, or a longer block"
        )
    return AnotherPrompt(hinted, block_size)
