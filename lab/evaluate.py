"""The one evaluation: every model of every method, in both scripts and at every stage, is measured here and nowhere
else.

    evaluate(student, teacher, task, encoded, ...) -> a flat dict of figures

Two kinds of figures, because they order methods differently. On REFERENCES (teacher forcing): how well does the model
predict a text that somebody else wrote? On its OWN samples: how far from the teacher is it on the path that it takes
itself? Supervised training looks after the first, the user meets the second; the gap is called exposure bias.

Where several processes share a run, each measures its share of the examples and all get all figures. Noise belongs to
the example, not to the process, so the figures are those of one process, to rounding.
"""

import math

import torch
import torch.distributed as dist

from data.progress import progress
from data.tasks import complete
from losses import cross_entropy, entropy, forward_kl
from sample import generate, interleaved_generate, pad_sequences, speculative_generate, to_device

MOST_IN_CURVES = 200  # examples that a learning curve is measured on
MOST_LOGITS = 2**28  # of one model at a time, while measuring: 1 GiB in float32


def _chunks(items, size):
    """Cuts of at most `size` items, in order."""
    return [items[start : start + size] for start in range(0, len(items), size)]


def _share(n):
    """The examples, of n, that are this process' own."""
    shared = dist.is_available() and dist.is_initialized()
    return range(dist.get_rank(), n, dist.get_world_size()) if shared else range(n)


def _gathered(own):
    """One object of every process, as a list that all of them get."""
    everybody = [own]
    if dist.is_available() and dist.is_initialized():
        everybody = [None] * dist.get_world_size()
        dist.all_gather_object(everybody, own)
    return everybody


def gathered_in_order(own):
    """The lists that the processes have for their shares, put back in the order of the examples."""
    everybody = _gathered(own)
    return [everybody[i % len(everybody)][i // len(everybody)] for i in range(sum(map(len, everybody)))]


def topk_overlap(student_logits, teacher_logits, accept_top_k):
    """Share of the teacher's accept_top_k likeliest tokens that are among the student's: (..., V), (..., V) -> (...).

    At least 1 token, at most V. As in SKD's rule a token is among them if fewer than accept_top_k logits are strictly
    larger, so what ties at the last place is in. Student (.2, .5, .3), teacher (.6, .3, .1): 0, 1/2 and 1 for 1, 2, 3.
    """
    best = min(math.ceil(accept_top_k), student_logits.size(-1))
    students, teachers = (rows >= rows.topk(best, dim=-1).values[..., -1:] for rows in (student_logits, teacher_logits))
    return (students & teachers).sum(-1) / teachers.sum(-1)


@torch.no_grad()
def token_columns(student, teacher, prompts, responses, adapted=None, batch_size=128, accept_top_k=0):
    """One number per response token under teacher forcing: a dict of (N,) tensors, all in the same order.

    place: index in the response; nll: -log student(token); kl_teacher: KL(teacher || student), nats; agreement: both
    argmaxes are equal; uncertainty: 1 - teacher(token); logit_std: standard deviation of the student's logits over the
    vocabulary; entropies of both; topk_overlap, where accept_top_k is above 0. With an adapted teacher:
    kl_adapted_teacher, agreement_adapted, adapted_nll, and drift: KL(teacher || adapted). Without a teacher only place,
    nll, logit_std and student_entropy.
    """
    device = next(student.parameters()).device
    columns, own = {}, list(_share(len(prompts)))
    order = sorted(own, key=lambda i: len(prompts[i]) + len(responses[i]))  # little padding per batch
    longest = max([1] + [len(prompts[i]) + len(responses[i]) for i in own])
    batch_size = min(batch_size, max(1, MOST_LOGITS // (longest * student.config.vocab_size)))
    for rows in progress(_chunks(order, batch_size), "measuring"):
        tokens, lengths = pad_sequences([prompts[i] + responses[i] for i in rows], device)
        inputs, targets = tokens[:, :-1], tokens[:, 1:]
        prompt_len = to_device(torch.tensor([len(prompts[i]) for i in rows]), device)
        slots = torch.arange(1, tokens.size(1), device=device)  # the slot that each row of logits predicts
        target_mask = (slots >= prompt_len[:, None]) & (slots < lengths[:, None])
        student_logits = student(inputs)
        figures = {
            "place": (slots - prompt_len[:, None]).float(),
            "nll": cross_entropy(student_logits, targets),
            "student_entropy": entropy(student_logits),
            "logit_std": student_logits.float().std(-1),
        }
        if teacher is not None:
            teacher_logits = teacher(inputs)
            figures["kl_teacher"] = forward_kl(student_logits, teacher_logits)
            figures["agreement"] = (student_logits.argmax(-1) == teacher_logits.argmax(-1)).float()
            figures["teacher_entropy"] = entropy(teacher_logits)
            figures["uncertainty"] = -torch.expm1(-cross_entropy(teacher_logits, targets))
            if accept_top_k:
                figures["topk_overlap"] = topk_overlap(student_logits, teacher_logits, accept_top_k)
        if adapted is not None:
            adapted_logits = adapted(inputs)
            figures["kl_adapted_teacher"] = forward_kl(student_logits, adapted_logits)
            figures["agreement_adapted"] = (student_logits.argmax(-1) == adapted_logits.argmax(-1)).float()
            figures["adapted_nll"] = cross_entropy(adapted_logits, targets)
            figures["drift"] = forward_kl(adapted_logits, teacher_logits)
        for name, per_token in figures.items():
            columns.setdefault(name, []).append(per_token[target_mask])
    everybody = _gathered({name: torch.cat(parts).cpu() for name, parts in columns.items()})
    return {name: torch.cat([part[name] for part in everybody if part]) for name in columns or everybody[0]}


def distances(student, teacher, prompts, responses, adapted=None, batch_size=128):
    """Means per response token of token_columns (place and uncertainty left out), every token counting the same."""
    columns = token_columns(student, teacher, prompts, responses, adapted, batch_size)
    return {name: _mean(column) for name, column in columns.items() if name not in ("place", "uncertainty")}


def _mean(column):
    """The mean of a tensor (N,) as a float; None of nothing, which has no mean."""
    return (column.double().sum() / len(column)).item() if len(column) else None


def ratio(part, whole):
    """part / whole; None of nothing."""
    return part / whole if whole else None


def entropy_gap(figures):
    """The teacher's mean entropy less the student's, nats: above 0 the student is the surer one; None of nothing."""
    both = figures.get("teacher_entropy"), figures.get("student_entropy")
    return None if None in both else both[0] - both[1]


def easy_and_hard(columns):
    """KL, agreement and spread of the logits apart for tokens that the original teacher finds easy and hard.

    Hard: uncertainty at or above its median over the tokens (OKD's split, arXiv 2409.12512, Eq. 4): the same tokens for
    every method, since the original teacher decides. A side without a token has no figures (None).
    """
    hard = upper_half(columns["uncertainty"])
    names = ("kl_teacher", "agreement", "logit_std", "kl_adapted_teacher", "agreement_adapted")
    return {
        f"{name}_{side}": _mean(columns[name][chosen])
        for name in names
        if name in columns
        for side, chosen in (("easy", ~hard), ("hard", hard))
    }


def upper_half(values):
    """Which of `values` (N,) are at or above their median: (N,) bool.

    Several that tie at the median stay together, on the side that leaves the two halves nearest in size: of 0 0 0 0 7
    the 7 alone is above, of 0 3 3 3 7 all but the 0. Where all are equal, all are above.
    """
    middle = values.median()  # of an even number the lower of the two in the middle
    below, at, above = ((values < middle).sum(), (values == middle).sum(), (values > middle).sum())
    keep = (at <= 1) | ((len(values) - 2 * below).abs() <= (len(values) - 2 * above).abs())
    return torch.where(keep, values >= middle, values > middle)


def exposure_error(own_columns, teacher_columns, key, length=16):
    """ExAccErr in per cent (OKD's Eqs. 5-7): how much the student's own prefixes worsen its distance to the teacher.

    (R - E) / E * 100, R = KL(teacher || student) summed over the first `length` tokens of the student's own samples, E
    = the same on the teacher's samples, both means over prompts. With samples of equal lengths 0 is no exposure bias,
    and below 0 the student is nearer on its own path. A response that has ended adds nothing, so lengths count as well:
    .5 nats at every token are -50 % where the student's samples have 4 tokens and the teacher's 8. None where E is 0.
    """
    own, reference = (
        columns[key][columns["place"] < length].double().sum() for columns in (own_columns, teacher_columns)
    )
    return (100 * (own - reference) / reference).item() if reference > 0 else None


def sample_responses(model, prompts, max_new_tokens, eos_token, *, seed, temperature=1.0, top_p=None, batch_size=256):
    """One response per prompt, in order: (list of lists of ids, share that ended by the end token)."""
    written = []
    for rows in progress(_chunks(_share(len(prompts)), batch_size), "writing"):
        rollout = generate(
            model,
            [prompts[i] for i in rows],
            max_new_tokens,
            generator=torch.Generator().manual_seed(seed),
            temperature=temperature,
            top_p=top_p,
            eos_token=eos_token,
            row_keys=rows,
        )
        written += zip(rollout.responses(), rollout.finished.tolist())
    written = gathered_in_order(written)
    return [response for response, _ in written], ratio(sum(finished for _, finished in written), len(prompts))


def acceptance(sampler, first, second, prompts, batch_size=256, **arguments):
    """accepted / judged over all prompts for interleaved_generate or speculative_generate; None if none was judged."""
    accepted = judged = 0
    rest = {name: value for name, value in arguments.items() if name != "seed"} | {"keep_features": True}
    for rows in progress(_chunks(_share(len(prompts)), batch_size), "drafting"):
        generator = torch.Generator().manual_seed(arguments["seed"])
        rollout = sampler(first, second, [prompts[i] for i in rows], generator=generator, row_keys=rows, **rest)
        counts = rollout.counts()
        accepted, judged = accepted + counts["accepted"], judged + counts["judged"]
    accepted, judged = map(sum, zip(*_gathered((accepted, judged))))
    return ratio(accepted, judged)


def evaluate_quickly(student, teacher, task, tokenizer, encoded, max_new_tokens, adapted=None, most=MOST_IN_CURVES):
    """The figures of a learning curve on the first `most` examples: score (greedy), score_sampled, val_nll and
    kl_teacher (references), and the task's own details of the greedy completions, prefixed with "task_".

    With an adapted teacher also its drift from the original, its own nll, and kl_adapted_teacher. ValueError where the
    student's numbers are broken.
    """
    encoded = encoded.first(most)
    greedy, sampled = (
        sample_responses(student, encoded.prompts, max_new_tokens, tokenizer.eos_token, seed=0, temperature=t)[0]
        for t in (0, 1)
    )
    measured = distances(student, teacher, encoded.prompts, encoded.responses, adapted)
    if not math.isfinite(measured["nll"]):  # an argmax of nan is a token: the score alone would not tell
        raise ValueError(
            f"the student's loss on validation references is {measured['nll']}: its weights are broken, or its "
            "training diverged (lower --lr)"
        )
    completions = complete(tokenizer, greedy)
    figures = {
        "score": task.corpus_score(encoded.examples, completions),
        "score_sampled": task.corpus_score(encoded.examples, complete(tokenizer, sampled)),
        "val_nll": measured["nll"],
        "kl_teacher": measured.get("kl_teacher"),
    }
    details = task.details(encoded.examples, completions)
    figures |= {f"task_{name}": value for name, value in details.items() if value is not None}
    names = ("kl_adapted_teacher", "adapted_nll", "drift")
    return figures | {name: measured[name] for name in names if adapted is not None}


def evaluate(
    student, teacher, task, tokenizer, encoded, max_new_tokens, *, gamma, accept_top_k, seed=0, ood=None, adapted=None
):
    """All figures of a model on held-out examples; `teacher` None (the teacher itself) leaves its distances out (None).

    score: the task's metric by greedy decoding, 0..1; score_sampled: the same for one sample at temperature 1;
    score_ood: greedy, out of distribution, on references that fit the block (None: none does); val_nll: nats per token
    of the references; kl_teacher: KL(teacher || student) on them; kl_on_policy: the same on the student's own samples;
    accept_rate: accepted / judged under SKD's rule, topk with accept_top_k, whichever rule the student was trained by;
    draft_accept_rate: the same for lossless speculative decoding; exposure_error: see there; then lengths, end-token
    share, agreement, topk_overlap, entropies and their gap, the split into easy and hard tokens, and the task's own
    details, prefixed with "task_". A mean over nothing is None.

    `teacher` is always the ORIGINAL teacher. An `adapted` one adds the same distances to itself, how far it drifted,
    and its own score: whatever trains towards an adapted teacher looks good against it.
    """
    assert encoded.prompts, "no examples to measure on"
    eos = tokenizer.eos_token
    greedy, greedy_finished = sample_responses(student, encoded.prompts, max_new_tokens, eos, seed=seed, temperature=0)
    sampled, sampled_finished = sample_responses(student, encoded.prompts, max_new_tokens, eos, seed=seed)
    completions = complete(tokenizer, greedy)
    columns, own_columns = (
        token_columns(student, teacher, encoded.prompts, responses, adapted, accept_top_k=accept_top_k)
        for responses in (encoded.responses, sampled)
    )
    on_references, on_policy = (
        {name: _mean(column) for name, column in measured.items()} for measured in (columns, own_columns)
    )
    figures = {
        "score": task.corpus_score(encoded.examples, completions),
        "score_sampled": task.corpus_score(encoded.examples, complete(tokenizer, sampled)),
        "score_ood": None,
        "val_nll": on_references["nll"],
        "kl_teacher": on_references.get("kl_teacher"),
        "kl_on_policy": on_policy.get("kl_teacher"),
        "accept_rate": None,
        "draft_accept_rate": None,
        "exposure_error": None,
        "agreement": on_references.get("agreement"),
        "agreement_on_policy": on_policy.get("agreement"),
        "topk_overlap": on_references.get("topk_overlap"),
        "topk_overlap_on_policy": on_policy.get("topk_overlap"),
        "logit_std": on_references["logit_std"],
        "student_entropy": on_references["student_entropy"],
        "teacher_entropy": on_references.get("teacher_entropy"),
        "entropy_gap": entropy_gap(on_references),
        "entropy_gap_on_policy": entropy_gap(on_policy),
        "mean_length": sum(map(len, greedy)) / len(greedy),
        "mean_length_sampled": sum(map(len, sampled)) / len(sampled),
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
        written, _ = sample_responses(teacher, encoded.prompts, max_new_tokens, eos, seed=seed)
        figures["exposure_error"] = exposure_error(
            own_columns, token_columns(student, teacher, encoded.prompts, written), "kl_teacher"
        )
        figures |= easy_and_hard(columns)
    if adapted is not None:
        written, _ = sample_responses(adapted, encoded.prompts, max_new_tokens, eos, seed=seed)
        best, _ = sample_responses(adapted, encoded.prompts, max_new_tokens, eos, seed=seed, temperature=0)
        figures |= {
            "kl_adapted_teacher": on_references["kl_adapted_teacher"],
            "kl_on_policy_adapted": on_policy["kl_adapted_teacher"],
            "agreement_adapted": on_references["agreement_adapted"],
            "agreement_on_policy_adapted": on_policy["agreement_adapted"],
            "exposure_error_adapted": exposure_error(
                own_columns,
                token_columns(student, teacher, encoded.prompts, written, adapted),
                "kl_adapted_teacher",
            ),
            "drift": on_references["drift"],
            "drift_on_policy": on_policy["drift"],
            "adapted_nll": on_references["adapted_nll"],
            "adapted_score": task.corpus_score(encoded.examples, complete(tokenizer, best)),
            "adapted_score_sampled": task.corpus_score(encoded.examples, complete(tokenizer, written)),
        }
    details = task.details(encoded.examples, completions)
    sampled_details = task.details(encoded.examples, complete(tokenizer, sampled))
    figures |= {f"task_{name}": value for name, value in details.items()}
    figures |= {f"task_{name}_sampled": value for name, value in sampled_details.items()}
    return figures
