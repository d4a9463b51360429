"""The one yardstick: every model of every method, in both scripts and at every stage, is measured here and nowhere else.

    evaluate(student, teacher, task, encoded, ...) -> a flat dict of figures

Two kinds of figures, because they order methods differently. On REFERENCES (teacher forcing): how well does the model
predict a text that somebody else wrote? On its OWN samples: how far from the teacher is it on the path that it takes
itself? Supervised training looks after the first, the user meets the second; the gap is called exposure bias.
"""

from typing import NamedTuple

import torch

from data.tasks import encode_example, pad_sequences
from losses import entropy, forward_kl, masked_mean, cross_entropy
from sample import generate, interleaved_generate, speculative_generate


class Encoded(NamedTuple):
    """A split as token ids: prompts and responses (lists of lists, responses end with the end token), and its examples."""

    examples: list
    prompts: list
    responses: list


def encode_split(tokenizer, examples):
    """Tokenise examples -> Encoded."""
    pairs = [encode_example(tokenizer, example) for example in examples]
    return Encoded(list(examples), [prompt for prompt, _ in pairs], [response for _, response in pairs])


def complete(tokenizer, responses):
    """Responses (lists of ids, with or without the end token) -> texts."""
    eos = tokenizer.eos_token
    return [tokenizer.decode(response[:-1] if response and response[-1] == eos else response) for response in responses]


def _chunks(items, size):
    return [items[start : start + size] for start in range(0, len(items), size)]


@torch.no_grad()
def distances(student, teacher, prompts, responses, batch_size=128):
    """Sums over response tokens, teacher forcing: a dict of means per token, in nats (agreement: a share).

    nll: -log student(token); kl_teacher: KL(teacher || student); agreement: the two argmaxes are equal; entropies of
    both. Without a teacher only nll and student_entropy. Every token counts the same.
    """
    device = next(student.parameters()).device
    totals, count = {}, 0
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]) + len(responses[i]))  # little padding per batch
    for rows in _chunks(order, batch_size):
        tokens, lengths = pad_sequences([prompts[i] + responses[i] for i in rows], device)
        prompt_len = torch.tensor([len(prompts[i]) for i in rows], device=device)
        slots = torch.arange(1, tokens.size(1), device=device)  # the slot that each row of logits predicts
        target_mask = (slots >= prompt_len[:, None]) & (slots < lengths[:, None])
        student_logits = student(tokens[:, :-1])
        figures = {"nll": cross_entropy(student_logits, tokens[:, 1:]), "student_entropy": entropy(student_logits)}
        if teacher is not None:
            teacher_logits = teacher(tokens[:, :-1])
            figures["kl_teacher"] = forward_kl(student_logits, teacher_logits)
            figures["agreement"] = (student_logits.argmax(-1) == teacher_logits.argmax(-1)).float()
            figures["teacher_entropy"] = entropy(teacher_logits)
        for name, per_token in figures.items():
            totals[name] = totals.get(name, 0.0) + masked_mean(per_token, target_mask, "sum").double()
        count += sum(len(responses[i]) for i in rows)
    return {name: (total / max(1, count)).item() for name, total in totals.items()}


def sample_responses(model, prompts, max_new_tokens, eos_token, *, seed, temperature=1.0, batch_size=256):
    """One response per prompt, in order: (list of lists of ids, share that ended by the end token)."""
    responses, finished = [], 0
    for number, chunk in enumerate(_chunks(prompts, batch_size)):
        rollout = generate(
            model,
            chunk,
            max_new_tokens,
            generator=torch.Generator().manual_seed(seed),
            temperature=temperature,
            eos_token=eos_token,
            row_keys=range(number * batch_size, number * batch_size + len(chunk)),
        )
        responses += rollout.responses()
        finished += int(rollout.finished.sum())
    return responses, finished / max(1, len(prompts))


def acceptance(sampler, first, second, prompts, batch_size=256, **arguments):
    """accepted / judged over all prompts for interleaved_generate or speculative_generate."""
    accepted = judged = 0
    for number, chunk in enumerate(_chunks(prompts, batch_size)):
        keys = range(number * batch_size, number * batch_size + len(chunk))
        seed = arguments["seed"]
        rest = {name: value for name, value in arguments.items() if name != "seed"}
        rollout = sampler(first, second, chunk, generator=torch.Generator().manual_seed(seed), row_keys=keys, **rest)
        counts = rollout.counts()
        accepted, judged = accepted + counts["accepted"], judged + counts["judged"]
    return accepted / max(1, judged)


def evaluate_quickly(student, teacher, task, tokenizer, encoded, max_new_tokens, most=200):
    """The figures of a learning curve on the first `most` examples: score (greedy), val_nll and kl_teacher (references)."""
    encoded = Encoded(*(column[:most] for column in encoded))
    responses, _ = sample_responses(
        student, encoded.prompts, max_new_tokens, tokenizer.eos_token, seed=0, temperature=0
    )
    measured = distances(student, teacher, encoded.prompts, encoded.responses)
    return {
        "score": task.corpus_score(encoded.examples, complete(tokenizer, responses)),
        "val_nll": measured["nll"],
        "kl_teacher": measured.get("kl_teacher"),
    }


def evaluate(student, teacher, task, tokenizer, encoded, max_new_tokens, *, gamma, accept_top_k, seed=0, ood=None):
    """All figures of a model on held-out examples; `teacher` None (the teacher itself) leaves its distances out (None).

    score: the task's metric by greedy decoding, 0..1; score_sampled: the same for one sample at temperature 1;
    score_ood: greedy, out of distribution, on references that fit the block (None: none does); val_nll: nats per token of the references; kl_teacher: KL(teacher || student)
    on them; kl_on_policy: the same on the student's own samples; accept_rate: accepted / judged under the SKD rule
    with accept_top_k; draft_accept_rate: the same for lossless speculative decoding; then lengths, end-token share,
    agreement, entropies and the task's own details, prefixed with "task_".
    """
    eos = tokenizer.eos_token
    greedy, greedy_finished = sample_responses(student, encoded.prompts, max_new_tokens, eos, seed=seed, temperature=0)
    sampled, sampled_finished = sample_responses(student, encoded.prompts, max_new_tokens, eos, seed=seed)
    completions = complete(tokenizer, greedy)
    on_references = distances(student, teacher, encoded.prompts, encoded.responses)
    on_policy = distances(student, teacher, encoded.prompts, sampled)
    figures = {
        "score": task.corpus_score(encoded.examples, completions),
        "score_sampled": task.corpus_score(encoded.examples, complete(tokenizer, sampled)),
        "score_ood": None,
        "val_nll": on_references["nll"],
        "kl_teacher": on_references.get("kl_teacher"),
        "kl_on_policy": on_policy.get("kl_teacher"),
        "accept_rate": None,
        "draft_accept_rate": None,
        "agreement": on_references.get("agreement"),
        "agreement_on_policy": on_policy.get("agreement"),
        "student_entropy": on_references["student_entropy"],
        "teacher_entropy": on_references.get("teacher_entropy"),
        "mean_length": sum(map(len, greedy)) / max(1, len(greedy)),
        "mean_length_sampled": sum(map(len, sampled)) / max(1, len(sampled)),
        "eos_share": greedy_finished,
        "eos_share_sampled": sampled_finished,
    }
    if ood is not None:
        # Only examples whose reference could be written at all: positions end at the block.
        room = student.config.block_size
        fits = [i for i in range(len(ood.prompts)) if len(ood.prompts[i]) + len(ood.responses[i]) <= room]
        if fits:
            prompts, longest = (
                [ood.prompts[i] for i in fits],
                max([max_new_tokens] + [len(ood.responses[i]) for i in fits]),
            )
            responses, _ = sample_responses(student, prompts, longest, eos, seed=seed, temperature=0)
            figures["score_ood"] = task.corpus_score([ood.examples[i] for i in fits], complete(tokenizer, responses))
    if teacher is not None:
        common = {"max_new_tokens": max_new_tokens, "eos_token": eos, "gamma": gamma, "seed": seed}
        figures["accept_rate"] = acceptance(
            interleaved_generate, student, teacher, encoded.prompts, accept_top_k=accept_top_k, **common
        )
        figures["draft_accept_rate"] = acceptance(speculative_generate, student, teacher, encoded.prompts, **common)
    details = task.details(encoded.examples, completions)
    sampled_details = task.details(encoded.examples, complete(tokenizer, sampled))
    figures |= {f"task_{name}": value for name, value in details.items()}
    figures |= {f"task_{name}_sampled": value for name, value in sampled_details.items()}
    return figures
