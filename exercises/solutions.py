"""Reference solutions, the only ones: answers.py, what students get, is made of this file by exercises/handout.py.

Each function is one that a student writes; the comment above says which exercise it belongs to. Tests hold them equal
to the functions of the core that do the same. A solution may call the core, but not what its own exercise asks for.
"""

import math

import torch

# ---------------------------------------------------------------------------------------------------------------------
# Exercise 1: the masked mean.


def masked_mean(per_token, mask, reduction="token"):
    """The mean of per_token (B, T) over the positions where mask (B, T) bool is True -> scalar.

    reduction "token": every masked token counts the same. "sequence": the mean of each row first, then over the rows
    that have any token. 0, with a graph, where nothing is masked in. What stands outside the mask may be nan.
    """
    inside = torch.where(mask, per_token, 0.0)
    if reduction == "token":
        return inside.sum() / mask.sum().clamp(min=1)
    row_means = inside.sum(1) / mask.sum(1).clamp(min=1)  # (B,), 0 for a row without a token
    return row_means.sum() / mask.any(1).sum().clamp(min=1)


# ---------------------------------------------------------------------------------------------------------------------
# Exercise 2: forward and reverse KL.


def kl(first_logprobs, second_logprobs):
    """KL(first || second) of rows of log-probabilities, gradients to both: (..., V), (..., V) -> (...) in nats."""
    return (first_logprobs.exp() * (first_logprobs - second_logprobs)).sum(-1)


def forward_kl(student_logits, teacher_logits):
    """KL(teacher || student) at every position: two (B, T, V) of raw logits -> (B, T). No gradient to the teacher."""
    return kl(teacher_logits.detach().log_softmax(-1), student_logits.log_softmax(-1))


def reverse_kl(student_logits, teacher_logits):
    """KL(student || teacher) at every position: two (B, T, V) of raw logits -> (B, T). No gradient to the teacher."""
    return kl(student_logits.log_softmax(-1), teacher_logits.detach().log_softmax(-1))


# ---------------------------------------------------------------------------------------------------------------------
# Exercise 3: the generalized Jensen-Shannon divergence.


def generalized_jsd(student_logits, teacher_logits, beta=0.5):
    """beta KL(teacher || mix) + (1 - beta) KL(student || mix), mix = beta teacher + (1 - beta) student; -> (B, T).

    No gradient to the teacher. ValueError unless 0 < beta < 1: at the ends the divergence is 0 for every student.
    """
    if not 0 < beta < 1:
        raise ValueError(f"beta must lie strictly between 0 and 1, found {beta}")
    student, teacher = student_logits.log_softmax(-1), teacher_logits.detach().log_softmax(-1)
    mix = torch.logaddexp(teacher + math.log(beta), student + math.log1p(-beta))
    teacher_side = (teacher.exp() * (teacher - mix)).sum(-1)
    student_side = (student.exp() * (student - mix)).sum(-1)
    return beta * teacher_side + (1 - beta) * student_side


# ---------------------------------------------------------------------------------------------------------------------
# Exercise 4: temperature, top-k and top-p.


def warp(model_logits, temperature=1.0, top_k=None, top_p=None):
    """Sampling filters of logits (..., V) -> (..., V): divide by the temperature, then -inf for what is cut off.

    First all but the top_k largest go (ties with the k-th stay; top_k above V cuts nothing), then, of what is left, all
    outside the nucleus: the smallest set of likeliest tokens whose probabilities sum to at least top_p. None: no such
    filter. The likeliest token always stays.
    """
    warped = model_logits / temperature
    if top_k is not None and top_k < warped.size(-1):
        kth_largest = warped.topk(top_k).values[..., -1:]
        warped = warped.masked_fill(warped < kth_largest, -math.inf)
    if top_p is not None:
        ordered, order = warped.sort(-1, descending=True)
        probs = ordered.softmax(-1)
        mass_before = probs.cumsum(-1) - probs
        outside = mass_before >= top_p
        warped = warped.masked_fill(outside.scatter(-1, order, outside), -math.inf)
    return warped


# ---------------------------------------------------------------------------------------------------------------------
# Exercise 5: one draw from one uniform number.


def inverse_cdf(probs, uniform):
    """Tokens drawn from probs (..., V) by uniform numbers (..., N) in (0, 1) -> (..., N) long.

    The first token whose cumulative mass EXCEEDS uniform times the total mass. A token of probability 0 is never drawn.
    The probabilities need not sum to 1.
    """
    cumulative = probs.cumsum(-1)
    reached = uniform * cumulative[..., -1:]
    return torch.searchsorted(cumulative, reached, right=True).clamp(max=probs.size(-1) - 1)


# ---------------------------------------------------------------------------------------------------------------------
# Exercise 6: the rank of a token, and SKD's rule of acceptance.


def rank(model_logits, tokens):
    """How many logits are strictly larger than the token's: 0 for the likeliest; (..., V), (...) long -> (...) long."""
    return (model_logits > model_logits.gather(-1, tokens[..., None])).sum(-1)


def accepted_by_topk(teacher_logits, proposed, accept_top_k):
    """SKD's rule: whether each proposal is among the teacher's accept_top_k largest logits -> (...) bool.

    teacher_logits (..., V), proposed (...) long. 0 accepts nothing, V everything. Who ties with an accepted one is in.
    """
    larger = (teacher_logits > teacher_logits.gather(-1, proposed[..., None])).sum(-1)
    return larger < accept_top_k


# ---------------------------------------------------------------------------------------------------------------------
# Exercise 7: interleaved sampling, one token at a time (SKD, Algorithm 1).


def interleaved(student, teacher, prompt, max_new_tokens, noise, accept_top_k, eos_token):
    """The student proposes each token; one that the teacher ranks poorly is replaced by the teacher's own draw.

    student, teacher: models, tokens (1, T) -> logits (1, T, V). prompt: list of ids. noise(position, role): a number in
    (0, 1) for role "student" or "teacher" at a position of the sequence, prompt included (the first new token stands at
    position len(prompt)). -> (response, sources): a list of ids, and one of "student" or "teacher" for each.

    A token is drawn as in exercise 5, at temperature 1. The response ends with eos_token, which is kept, or after
    max_new_tokens; with eos_token None, only there. Both models read the whole sequence, replacements included.
    """
    from sample import draw

    sequence, sources = list(prompt), []
    while len(sequence) < len(prompt) + max_new_tokens:
        position, tokens = len(sequence), torch.tensor([sequence])
        with torch.no_grad():
            student_row, teacher_row = student(tokens)[0, -1], teacher(tokens)[0, -1]  # (V,)
        token, source = draw(student_row, torch.tensor(noise(position, "student"))), "student"
        if (teacher_row > teacher_row[token]).sum() >= accept_top_k:
            token, source = draw(teacher_row, torch.tensor(noise(position, "teacher"))), "teacher"
        sequence.append(int(token))
        sources.append(source)
        if sequence[-1] == eos_token:
            break
    return sequence[len(prompt) :], sources


# ---------------------------------------------------------------------------------------------------------------------
# Exercise 8: one block of proposals: which count, which stay, what is written.


def countable(proposed, positions, end, eos_token):
    """Which proposals count: those before the row's end, and none behind an end token that was proposed before it.

    proposed, positions (n, G) long, G = block length; end (n, 1) long: the first position behind the budget -> (n, G)
    bool, in each row a run of True and then False. The proposed end token itself counts. eos_token None: there is none.
    """
    inside = positions < end
    if eos_token is None:
        return inside
    is_eos = proposed == eos_token
    ended_before = is_eos.cumsum(1) - is_eos.long()
    return inside & (ended_before == 0)


def verify(stays, counts):
    """What becomes of a block: the leading accepted proposals stay, the first rejected one is replaced.

    stays (n, G) bool: what the rule of acceptance says about each; counts (n, G) bool: from `countable`.
    -> (accepted (n,) long, judged (n,) long, rejected (n, G) bool): how many proposals stay; how many tokens the block
    adds, accepted ones and the replacement; which proposal is replaced, at most one per row. Nothing behind it counts,
    and no token is added to a block that is accepted as a whole.
    """
    accepted = (stays & counts).long().cumprod(1).sum(1)
    rejected = (torch.arange(stays.size(1)) == accepted[:, None]) & counts
    return accepted, accepted + rejected.sum(1), rejected


def commit(proposed, judged, rejected, replacement, start, eos_token):
    """Write a block: the replacement in the place of the rejected proposal.

    proposed (n, G), judged (n,), rejected (n, G) as above; replacement (n, 1) long; start (n,): the position of the
    first proposal. -> (written (n, G), length (n,), finished (n,) bool): the tokens, of which the first `judged` are
    part of the sequence; its length now; whether the end token is among these.
    """
    written = torch.where(rejected, replacement, proposed)
    inside = torch.arange(proposed.size(1)) < judged[:, None]
    finished = torch.zeros_like(judged, dtype=torch.bool)
    if eos_token is not None:
        finished = ((written == eos_token) & inside).any(1)
    return written, start + judged, finished


# ---------------------------------------------------------------------------------------------------------------------
# Exercise 9: interleaved sampling in blocks, for a batch, with caches.


def interleaved_in_blocks(student, teacher, prompts, max_new_tokens, noise, gamma, accept_top_k, eos_token):
    """Exercise 7 for several prompts at once, in blocks of gamma proposals, each model with a KVCache.

    prompts: B lists of ids of any lengths. noise(row, position, role): a number in (0, 1). -> (responses, sources): for
    each row what exercise 7 gives for its prompt and noise, token for token, for every gamma.

    The teacher reads a block in one forward; no model reads a token again that it has in its cache. model.new_cache(B,
    capacity) is an empty cache, model(tokens, cache) writes the tokens (B, T) behind what is there, and
    cache.roll_back(lengths) keeps the first lengths (B,) slots of each row.
    """
    from sample import commit, countable, draft, draw, pad_sequences, rank, verify

    tokens, length = pad_sequences(prompts)
    B, widest = tokens.shape
    prompt_len, end = length.clone(), length + max_new_tokens
    tokens = torch.cat([tokens, torch.zeros(B, max_new_tokens + gamma, dtype=torch.long)], 1)
    by_teacher, rows = torch.zeros_like(tokens, dtype=torch.bool), torch.arange(B)[:, None]
    finished = torch.zeros(B, dtype=torch.bool)
    with torch.no_grad():
        caches = []
        for model in (student, teacher):
            caches.append(model.new_cache(B, tokens.size(1)))
            if widest > 1:
                model(tokens[:, : widest - 1], caches[-1])
            caches[-1].roll_back(length - 1)  # all but the last token, which is pending
        while (running := ~finished & (length < end)).any():
            positions = length[:, None] + torch.arange(gamma)  # (B, G)
            uniform = {
                role: torch.tensor(
                    [[noise(row, place, role) for place in places] for row, places in enumerate(all_places)]
                )
                for all_places in [positions.tolist()]
                for role in ("student", "teacher")
            }
            pending = tokens.gather(1, length[:, None] - 1)[:, 0]
            block = draft(student, caches[0], pending, uniform["student"], {})
            teacher_rows = teacher(block.inputs, caches[1])  # (B, G, V), row j judges proposal j
            counts = countable(block.proposed, positions, end[:, None], eos_token) & running[:, None]
            verdict = verify(rank(teacher_rows, block.proposed) < accept_top_k, counts)
            replacement = draw(teacher_rows, uniform["teacher"])  # (B, G); one of them is used
            written, length, ended = commit(block.proposed, verdict, replacement, length, eos_token)
            tokens[rows, positions], by_teacher[rows, positions] = written, verdict.rejected
            finished |= ended
            for cache in caches:
                cache.roll_back(length - 1)
    ranges = [slice(start, stop) for start, stop in zip(prompt_len.tolist(), length.tolist())]
    responses = [row[place].tolist() for row, place in zip(tokens, ranges)]
    names = [[("student", "teacher")[flag] for flag in row[place]] for row, place in zip(by_teacher, ranges)]
    return responses, names


# ---------------------------------------------------------------------------------------------------------------------
# Exercise 10: lossless speculative decoding: what stays, and what replaces the rest.


def speculative_stays(draft_logits, target_logits, proposed, uniform):
    """Whether each token that the draft proposed stays: with probability min(1, target / draft) -> (...) bool.

    draft_logits, target_logits (..., V); proposed (...) long, drawn from the draft at temperature 1; uniform (...).
    """
    index = proposed[..., None]
    draft, target = (logits.softmax(-1).gather(-1, index)[..., 0] for logits in (draft_logits, target_logits))
    return uniform * draft < target


def residual(draft_logits, target_logits):
    """The distribution that a rejected proposal is redrawn from: the positive part of target - draft, summing to 1.

    (..., V), (..., V) -> probabilities (..., V). Where both models agree nothing is left: the target's own.
    """
    draft, target = draft_logits.softmax(-1), target_logits.softmax(-1)
    left = (target - draft).clamp(min=0)
    total = left.sum(-1, keepdim=True)
    return torch.where(total > 0, left / total.clamp(min=1e-30), target)


# ---------------------------------------------------------------------------------------------------------------------
# Exercise 11: one step of on-policy distillation.


def on_policy_step(student, teacher, prompts, max_new_tokens, optimizer, rate, generator, eos_token):
    """One update of the student: it writes, the teacher says how likely it finds every token, the student learns.

    The responses are sample.generate's at temperature 1. Loss: forward KL at every response token, the end token
    included, averaged over the tokens of the batch. Update: model.clip_and_step at learning rate `rate`; the gradients
    of earlier steps do not count. The teacher does not move. -> the loss as a float.
    """
    from losses import forward_kl, masked_mean
    from model import clip_and_step
    from sample import generate

    rollout = generate(student, prompts, max_new_tokens, generator=generator, eos_token=eos_token)
    inputs, response_mask = rollout.tokens[:, :-1], rollout.response_mask[:, 1:]
    with torch.no_grad():
        teacher_logits = teacher(inputs)
    loss = masked_mean(forward_kl(student(inputs), teacher_logits), response_mask)
    optimizer.zero_grad()
    loss.backward()
    clip_and_step(student, optimizer, rate)
    return loss.item()


# ---------------------------------------------------------------------------------------------------------------------
# Exercise 12: one step of SKD.


def skd_step(student, teacher, prompts, max_new_tokens, optimizer, rate, generator, eos_token, accept_top_k):
    """One update of the student by Speculative Knowledge Distillation.

    As exercise 11, but student and teacher write together: the responses are sample.interleaved_generate's with
    accept_top_k. Kept and replaced tokens count the same. The teacher does not read the responses a second time: its
    logits come with them. -> the loss as a float.
    """
    from losses import forward_kl, masked_mean
    from model import clip_and_step
    from sample import interleaved_generate

    rollout = interleaved_generate(
        student, teacher, prompts, max_new_tokens, generator=generator, accept_top_k=accept_top_k, eos_token=eos_token
    )
    per_token = forward_kl(student(rollout.tokens[:, :-1]), rollout.teacher_logits)
    loss = masked_mean(per_token, rollout.response_mask[:, 1:])
    optimizer.zero_grad()
    loss.backward()
    clip_and_step(student, optimizer, rate)
    return loss.item()


# ---------------------------------------------------------------------------------------------------------------------
# Exercise 13: sparse targets, with a tail.


def with_tail(model_logits, ids):
    """Log-probs of the tokens `ids` and, last, of all others together: (..., V), (..., k) long -> (..., k + 1)."""
    logprobs = model_logits.log_softmax(-1)
    others = logprobs.scatter(-1, ids, -math.inf).logsumexp(-1, keepdim=True)
    return torch.cat([logprobs.gather(-1, ids), others], -1)


def sparse_forward_kl(student_logits, teacher_logits, top_k):
    """Forward KL of the teacher's top_k tokens and a tail: two (B, T, V) -> (B, T), at most the whole forward KL.

    No gradient to the teacher.
    """
    teacher_logits = teacher_logits.detach()
    ids = teacher_logits.topk(top_k).indices
    teacher, student = with_tail(teacher_logits, ids), with_tail(student_logits, ids)
    return (teacher.exp() * (teacher - student)).sum(-1)


# ---------------------------------------------------------------------------------------------------------------------
# Exercise 14: LoRA on the queries and values.


def lora_qkv(linear, x, down_query, up_query, down_value, up_value, scale):
    """A fused projection with LoRA beside its queries and values: x (B, T, C) -> (B, T, 3 C), queries, keys, values.

    linear: the frozen torch.nn.Linear(C, 3 C). down_... (C, r), up_... (r, C) are trained: scale * x down up is added
    to the queries, and likewise to the values. The keys stay as they are.
    """
    query, key, value = linear(x).chunk(3, -1)
    query = query + scale * (x @ down_query @ up_query)
    value = value + scale * (x @ down_value @ up_value)
    return torch.cat([query, key, value], -1)


# ---------------------------------------------------------------------------------------------------------------------
# Exercise 15: OKD's two losses.


def okd_losses(student_logits, teacher_logits, targets, mask, alpha=0.5):
    """What either model minimises in Online Knowledge Distillation -> (student_loss, teacher_loss), two scalars.

    student: KL(teacher || student). teacher: alpha KL(student || teacher) + (1 - alpha) cross-entropy with the targets.
    All are means over the tokens of mask (B, T) bool; targets (B, T) long, logits (B, T, V). Each model takes the other
    as a constant: student_loss.backward() gives the student's logits a gradient and no other ones.
    """
    student, teacher = student_logits.log_softmax(-1), teacher_logits.log_softmax(-1)
    count = mask.sum().clamp(min=1)

    def mean(per_token):
        return torch.where(mask, per_token, 0.0).sum() / count

    student_loss = mean((teacher.detach().exp() * (teacher.detach() - student)).sum(-1))
    feedback = mean((student.detach().exp() * (student.detach() - teacher)).sum(-1))
    references = mean(-teacher.gather(-1, targets[..., None])[..., 0])
    return student_loss, alpha * feedback + (1 - alpha) * references


# ---------------------------------------------------------------------------------------------------------------------
# Exercise 16: the block length by acceptance.


def best_gamma(accepted, judged, call_cost):
    """The block length among 1, 2, 4, 8, 16, 32 that costs least per written token.

    The acceptance is a = (accepted + 7) / (judged + 8): one rejection in eight is assumed before anything was judged. A
    block of gamma proposals costs gamma + call_cost. It writes 1 + a + ... + a^(gamma - 1) tokens in the mean: each one
    stands only if all before it were accepted. The shorter of equally good ones.
    """
    a = (accepted + 7) / (judged + 8)
    lengths = (1, 2, 4, 8, 16, 32)
    return min(lengths, key=lambda gamma: (gamma + call_cost) / sum(a**k for k in range(gamma)))


# ---------------------------------------------------------------------------------------------------------------------
# Exercise 17: an interval for a difference, paired by pretrained pair.


def student_t_interval(values):
    """(mean, half width) of the 95 % Student-t interval for the mean of n values; (value, None) for a single one.

    Half width = t * s / sqrt(n), s with n - 1 below the fraction line; lab.statistics.T_975[0] is t for n = 2.
    """
    from lab.statistics import T_975

    n = len(values)
    mean = sum(values) / n
    if n == 1:
        return mean, None
    variance = sum((value - mean) ** 2 for value in values) / (n - 1)
    return mean, T_975[n - 2] * math.sqrt(variance / n)


def paired_interval(scores_a, scores_b):
    """(mean, half width) of the difference a - b of two methods, the pretrained pair as the unit.

    scores_a, scores_b: dicts {(pair, seed): score}. Runs of equal pair and seed are subtracted, those that one method
    lacks are left out, the seeds of a pair are averaged, and the interval is over the pairs.
    """
    by_pair = {}
    for pair, seed in sorted(scores_a.keys() & scores_b.keys()):
        by_pair.setdefault(pair, []).append(scores_a[pair, seed] - scores_b[pair, seed])
    return student_t_interval([sum(values) / len(values) for values in by_pair.values()])


# ---------------------------------------------------------------------------------------------------------------------
# Exercises 18 to 26: tests that find a silent fault. Import the project inside the function.


def test_mask_from_ids():
    """response_mask covers every token of the responses, whatever their ids are, and nothing else."""
    from sample import DATASET, rollout_from_ids

    rollout = rollout_from_ids([[5, 6], [7]], [[3, 0, 4], [0, 0]], [DATASET, DATASET], None)
    assert rollout.response_mask.tolist() == [[False, False, True, True, True], [False, True, True, False, False]]


def test_mean_over_v():
    """A divergence is a sum over the vocabulary, in nats: its size does not fall as V grows."""
    from losses import forward_kl

    student, teacher = torch.tensor([[[0.2, 0.5, 0.3]]]).log(), torch.tensor([[[0.6, 0.3, 0.1]]]).log()
    assert abs(forward_kl(student, teacher).item() - 0.396058) < 1e-5


def test_direction():
    """forward_kl is KL(teacher || student)."""
    from losses import forward_kl

    student, teacher = torch.tensor([[[0.2, 0.5, 0.3]]]).log(), torch.tensor([[[0.6, 0.3, 0.1]]]).log()
    expected = (teacher.exp() * (teacher - student)).sum(-1)
    assert torch.allclose(forward_kl(student, teacher), expected)


def test_second_draw():
    """Every token that interleaved_generate keeps is among the teacher's accept_top_k."""
    from model import GPT, GPTConfig
    from sample import STUDENT, interleaved_generate

    student, teacher = (
        GPT(GPTConfig(11, 24, 1, 2, 8), torch.Generator().manual_seed(seed)).requires_grad_(False) for seed in (1, 2)
    )
    rollout = interleaved_generate(
        student, teacher, [[1, 2], [3]] * 8, 12, generator=torch.Generator().manual_seed(0), accept_top_k=4
    )
    written, judged_by = rollout.tokens[:, 1:], rollout.teacher_logits
    larger = (judged_by > judged_by.gather(-1, written[..., None])).sum(-1)
    assert (larger[rollout.source[:, 1:] == STUDENT] < 4).all()


def test_teacher_off_by_one():
    """Row t of a rollout's teacher_logits is what the teacher says of token t + 1."""
    from model import GPT, GPTConfig
    from sample import interleaved_generate

    student, teacher = (
        GPT(GPTConfig(11, 24, 1, 2, 8), torch.Generator().manual_seed(seed)).requires_grad_(False) for seed in (1, 2)
    )
    rollout = interleaved_generate(
        student, teacher, [[1, 2], [3, 4, 5]], 8, generator=torch.Generator().manual_seed(0), accept_top_k=4
    )
    inside = rollout.response_mask[:, 1:]
    expected = teacher(rollout.tokens[:, :-1])
    assert torch.allclose(rollout.teacher_logits[inside], expected[inside], atol=1e-4)


def test_zero_gradient():
    """The expected gradient of policy_gradient is that of reverse KL: sum it over all tokens, weighted by student."""
    from losses import Tokens, policy_gradient, reverse_kl

    student = torch.tensor([0.2, 0.5, 0.3]).log().requires_grad_()
    teacher = torch.tensor([0.6, 0.3, 0.1]).log()
    rows = 1, 3, 3  # the same position three times, each with another token
    mask = torch.ones(1, 3, dtype=torch.bool)
    per_token = policy_gradient(
        student.expand(rows), teacher.expand(rows), Tokens(torch.tensor([[0, 1, 2]]), mask, mask)
    )
    (found,) = torch.autograd.grad((student.detach().softmax(-1) * per_token[0]).sum(), student)
    (expected,) = torch.autograd.grad(reverse_kl(student[None, None], teacher[None, None]).sum(), student)
    assert torch.allclose(found, expected, atol=1e-5)


def test_wrong_top_k():
    """top_k_kl looks at the teacher's best tokens: what the student makes of the teacher's best one is seen."""
    from losses import top_k_kl

    student, teacher = torch.tensor([[[5.0, 0.0, -5.0, -5.0]]]), torch.tensor([[[0.0, 0.0, 9.0, -3.0]]])
    best = [[row.softmax(-1)[0, 0, 2] for row in (teacher, student)]]
    wanted = sum(t * (t / s).log() for t, s in [best[0], [1 - best[0][0], 1 - best[0][1]]])
    assert abs(top_k_kl(student, teacher, top_k=1).item() - wanted.item()) < 1e-3


def test_end_token_masked():
    """The end token is a token of the response: a student that never learns it never stops."""
    from sample import DATASET, rollout_from_ids

    rollout = rollout_from_ids([[5, 6], [7]], [[3, 4, 2], [8, 9]], [DATASET, DATASET], None, eos_token=2)
    assert rollout.finished.tolist() == [True, False]
    assert rollout.response_mask.sum(1).tolist() == [3, 2]


def test_reseeded():
    """A second call with the same generator draws other numbers: a training step does not repeat the one before."""
    from model import GPT, GPTConfig
    from sample import generate

    model = GPT(GPTConfig(11, 24, 1, 2, 8), torch.Generator().manual_seed(1)).requires_grad_(False)
    noise = torch.Generator().manual_seed(0)
    first, second = (generate(model, [[1, 2]] * 4, 12, generator=noise).responses() for _ in range(2))
    assert first != second


# ---------------------------------------------------------------------------------------------------------------------
# Exercises 27 to 33: experiments. "folder" is seen from this file; the pages name commands, figures and words.


def explain_modes():
    """What reverse KL makes of two ways to write a step -> dict of prediction, folder, figures, found and why."""
    return {
        "prediction": "reverse is surer",
        "folder": "../results/okd-math",
        "figures": {"forward": 0.1652, "reverse": 0.1199},
        "found": "reverse is surer",
        "why": "Reverse KL pays for mass where the teacher has little, and nothing for a way that is left out, so "
        "its student settles on one of the two ways to write a step. Forward KL makes the student keep "
        "both, which costs entropy.",
    }


def explain_accept_top_k():
    """How much the teacher replaces for K from 1 to all tokens in use -> dict as above."""
    return {
        "prediction": "falls to 0",
        "folder": "../results/skd-k",
        "figures": {"replaced at 1": 0.0909, "replaced at 3": 0.0305, "replaced at 19": 0.0005},
        "found": "stays above 0",
        "why": "With K = 1 every token that is not the teacher's argmax is replaced, with 3 a third as many. Nineteen "
        "tokens are in use, but the vocabulary has 257: a student that still proposes one of the others is "
        "replaced even at K = 19, until it has learned that they do not occur.",
    }


def explain_deterministic_targets():
    """What is left of soft targets where every step has one way to be written -> dict as above."""
    return {
        "prediction": "lower with one way",
        "folder": ["../results/skd-math", "../results/skd-certain"],
        "figures": {"two ways": 0.1398, "one way": 0.0204},
        "found": "lower with one way",
        "why": "With one way to write a step the teacher's distribution on the references is nearly one-hot "
        "wherever it is right, so its soft targets say little more than the token itself.",
    }


def explain_exposure_bias():
    """How far a supervised student is from its teacher on references and on its own text -> dict as above."""
    return {
        "prediction": "farther on its own text",
        "folder": "../results/skd-math",
        "figures": {"on references": 0.16, "on its own text": 0.2353, "on its own text, on-policy": 0.087},
        "found": "farther on its own text",
        "why": "The supervised student was trained on right prefixes alone. On its own text it meets its own "
        "mistakes, where nothing taught it what the teacher would say; the on-policy student was trained "
        "exactly there, and is closer.",
    }


def explain_moving_teacher():
    """The student's distance to the original teacher, to the adapted one, and between these -> dict as above."""
    return {
        "prediction": "looks closer to the adapted one",
        "folder": "../results/okd-math",
        "figures": {"to the original": 0.1311, "to the adapted": 0.1168, "drift": 0.0241},
        "found": "looks closer to the adapted one",
        "why": "The adapted teacher has moved towards the student, so the distance between them fell from both "
        "sides. Part of that gain is the teacher's walk and not the student's learning, which only the "
        "original teacher can show.",
    }


def explain_collapse():
    """What happens where the teacher learns from the student alone -> dict as above."""
    return {
        "prediction": "alpha 1 drifts farther",
        "folder": "../results/catalogue-okd",
        "figures": {"drift at alpha .5": 0.0234, "drift at alpha 1": 2.898, "student to adapted at alpha 1": 0.0012},
        "found": "alpha 1 drifts farther",
        "why": "At alpha 1 nothing ties the teacher to the data: any agreement gives loss 0. The distance between "
        "student and adapted teacher then looks fine, and only the drift from the original teacher, or the "
        "adapted teacher's own score, tells that both went astray.",
    }


def explain_feedback():
    """Whether OKD gains on its control without feedback, paired by pretrained pair -> dict as above."""
    return {
        "prediction": "better",
        "folder": "../results/okd-math",
        "figures": {"difference": 0.0352, "half_width": 0.0924},
        "found": "open",
        "why": "Over eight pairs the mean is above 0 and the interval holds it. The difference varies between "
        "pairs by three times its mean; for a half width of that mean some seven times as many pairs would "
        "be needed. So nothing is decided.",
    }
