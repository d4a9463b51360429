"""Your answers: the one file that you write. Each function says what it takes and returns; README.md says what to read
first. Grade it with

    python exercises/grade.py            everything
    python exercises/grade.py 2          exercise 2 alone

Functions of your own, and imports, may stand anywhere. You may call the repository's functions, but not those that do
what an exercise asks for.
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
    raise NotImplementedError("exercise 1, masked_mean")


# ---------------------------------------------------------------------------------------------------------------------
# Exercise 2: forward and reverse KL.


def kl(first_logprobs, second_logprobs):
    """KL(first || second) of rows of log-probabilities, gradients to both: (..., V), (..., V) -> (...) in nats."""
    raise NotImplementedError("exercise 2, kl")


def forward_kl(student_logits, teacher_logits):
    """KL(teacher || student) at every position: two (B, T, V) of raw logits -> (B, T). No gradient to the teacher."""
    raise NotImplementedError("exercise 2, forward_kl")


def reverse_kl(student_logits, teacher_logits):
    """KL(student || teacher) at every position: two (B, T, V) of raw logits -> (B, T). No gradient to the teacher."""
    raise NotImplementedError("exercise 2, reverse_kl")


# ---------------------------------------------------------------------------------------------------------------------
# Exercise 3: the generalized Jensen-Shannon divergence.


def generalized_jsd(student_logits, teacher_logits, beta=0.5):
    """beta KL(teacher || mix) + (1 - beta) KL(student || mix), mix = beta teacher + (1 - beta) student; -> (B, T).

    No gradient to the teacher. ValueError unless 0 < beta < 1: at the ends the divergence is 0 for every student.
    """
    raise NotImplementedError("exercise 3, generalized_jsd")


# ---------------------------------------------------------------------------------------------------------------------
# Exercise 4: temperature, top-k and top-p.


def warp(model_logits, temperature=1.0, top_k=None, top_p=None):
    """Sampling filters of logits (..., V) -> (..., V): divide by the temperature, then -inf for what is cut off.

    First all but the top_k largest go (ties with the k-th stay; top_k above V cuts nothing), then, of what is left, all
    outside the nucleus: the smallest set of likeliest tokens whose probabilities sum to at least top_p. None: no such
    filter. The likeliest token always stays.
    """
    raise NotImplementedError("exercise 4, warp")


# ---------------------------------------------------------------------------------------------------------------------
# Exercise 5: one draw from one uniform number.


def inverse_cdf(probs, uniform):
    """Tokens drawn from probs (..., V) by uniform numbers (..., N) in (0, 1) -> (..., N) long.

    The first token whose cumulative mass EXCEEDS uniform times the total mass. A token of probability 0 is never drawn.
    The probabilities need not sum to 1.
    """
    raise NotImplementedError("exercise 5, inverse_cdf")


# ---------------------------------------------------------------------------------------------------------------------
# Exercise 6: the rank of a token, and SKD's rule of acceptance.


def rank(model_logits, tokens):
    """How many logits are strictly larger than the token's: 0 for the likeliest; (..., V), (...) long -> (...) long."""
    raise NotImplementedError("exercise 6, rank")


def accepted_by_topk(teacher_logits, proposed, accept_top_k):
    """SKD's rule: whether each proposal is among the teacher's accept_top_k largest logits -> (...) bool.

    teacher_logits (..., V), proposed (...) long. 0 accepts nothing, V everything. Who ties with an accepted one is in.
    """
    raise NotImplementedError("exercise 6, accepted_by_topk")


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
    raise NotImplementedError("exercise 7, interleaved")


# ---------------------------------------------------------------------------------------------------------------------
# Exercise 8: one block of proposals: which count, which stay, what is written.


def countable(proposed, positions, end, eos_token):
    """Which proposals count: those before the row's end, and none behind an end token that was proposed before it.

    proposed, positions (n, G) long, G = block length; end (n, 1) long: the first position behind the budget -> (n, G)
    bool, in each row a run of True and then False. The proposed end token itself counts. eos_token None: there is none.
    """
    raise NotImplementedError("exercise 8, countable")


def verify(stays, counts):
    """What becomes of a block: the leading accepted proposals stay, the first rejected one is replaced.

    stays (n, G) bool: what the rule of acceptance says about each; counts (n, G) bool: from `countable`.
    -> (accepted (n,) long, judged (n,) long, rejected (n, G) bool): how many proposals stay; how many tokens the block
    adds, accepted ones and the replacement; which proposal is replaced, at most one per row. Nothing behind it counts,
    and no token is added to a block that is accepted as a whole.
    """
    raise NotImplementedError("exercise 8, verify")


def commit(proposed, judged, rejected, replacement, start, eos_token):
    """Write a block: the replacement in the place of the rejected proposal.

    proposed (n, G), judged (n,), rejected (n, G) as above; replacement (n, 1) long; start (n,): the position of the
    first proposal. -> (written (n, G), length (n,), finished (n,) bool): the tokens, of which the first `judged` are
    part of the sequence; its length now; whether the end token is among these.
    """
    raise NotImplementedError("exercise 8, commit")


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
    raise NotImplementedError("exercise 9, interleaved_in_blocks")


# ---------------------------------------------------------------------------------------------------------------------
# Exercise 10: lossless speculative decoding: what stays, and what replaces the rest.


def speculative_stays(draft_logits, target_logits, proposed, uniform):
    """Whether each token that the draft proposed stays: with probability min(1, target / draft) -> (...) bool.

    draft_logits, target_logits (..., V); proposed (...) long, drawn from the draft at temperature 1; uniform (...).
    """
    raise NotImplementedError("exercise 10, speculative_stays")


def residual(draft_logits, target_logits):
    """The distribution that a rejected proposal is redrawn from: the positive part of target - draft, summing to 1.

    (..., V), (..., V) -> probabilities (..., V). Where both models agree nothing is left: the target's own.
    """
    raise NotImplementedError("exercise 10, residual")


# ---------------------------------------------------------------------------------------------------------------------
# Exercise 11: one step of on-policy distillation.


def on_policy_step(student, teacher, prompts, max_new_tokens, optimizer, rate, generator, eos_token):
    """One update of the student: it writes, the teacher says how likely it finds every token, the student learns.

    The responses are sample.generate's at temperature 1. Loss: forward KL at every response token, the end token
    included, averaged over the tokens of the batch. Update: model.clip_and_step at learning rate `rate`; the gradients
    of earlier steps do not count. The teacher does not move. -> the loss as a float.
    """
    raise NotImplementedError("exercise 11, on_policy_step")


# ---------------------------------------------------------------------------------------------------------------------
# Exercise 12: one step of SKD.


def skd_step(student, teacher, prompts, max_new_tokens, optimizer, rate, generator, eos_token, accept_top_k):
    """One update of the student by Speculative Knowledge Distillation.

    As exercise 11, but student and teacher write together: the responses are sample.interleaved_generate's with
    accept_top_k. Kept and replaced tokens count the same. The teacher does not read the responses a second time: its
    logits come with them. -> the loss as a float.
    """
    raise NotImplementedError("exercise 12, skd_step")


# ---------------------------------------------------------------------------------------------------------------------
# Exercise 13: sparse targets, with a tail.


def with_tail(model_logits, ids):
    """Log-probs of the tokens `ids` and, last, of all others together: (..., V), (..., k) long -> (..., k + 1)."""
    raise NotImplementedError("exercise 13, with_tail")


def sparse_forward_kl(student_logits, teacher_logits, top_k):
    """Forward KL of the teacher's top_k tokens and a tail: two (B, T, V) -> (B, T), at most the whole forward KL.

    No gradient to the teacher.
    """
    raise NotImplementedError("exercise 13, sparse_forward_kl")


# ---------------------------------------------------------------------------------------------------------------------
# Exercise 14: LoRA on the queries and values.


def lora_qkv(linear, x, down_query, up_query, down_value, up_value, scale):
    """A fused projection with LoRA beside its queries and values: x (B, T, C) -> (B, T, 3 C), queries, keys, values.

    linear: the frozen torch.nn.Linear(C, 3 C). down_... (C, r), up_... (r, C) are trained: scale * x down up is added
    to the queries, and likewise to the values. The keys stay as they are.
    """
    raise NotImplementedError("exercise 14, lora_qkv")


# ---------------------------------------------------------------------------------------------------------------------
# Exercise 15: OKD's two losses.


def okd_losses(student_logits, teacher_logits, targets, mask, alpha=0.5):
    """What either model minimises in Online Knowledge Distillation -> (student_loss, teacher_loss), two scalars.

    student: KL(teacher || student). teacher: alpha KL(student || teacher) + (1 - alpha) cross-entropy with the targets.
    All are means over the tokens of mask (B, T) bool; targets (B, T) long, logits (B, T, V). Each model takes the other
    as a constant: student_loss.backward() gives the student's logits a gradient and no other ones.
    """
    raise NotImplementedError("exercise 15, okd_losses")


# ---------------------------------------------------------------------------------------------------------------------
# Exercise 16: the block length by acceptance.


def best_gamma(accepted, judged, call_cost):
    """The block length among 1, 2, 4, 8, 16, 32 that costs least per written token.

    The acceptance is a = (accepted + 7) / (judged + 8): one rejection in eight is assumed before anything was judged. A
    block of gamma proposals costs gamma + call_cost. It writes 1 + a + ... + a^(gamma - 1) tokens in the mean: each one
    stands only if all before it were accepted. The shorter of equally good ones.
    """
    raise NotImplementedError("exercise 16, best_gamma")


# ---------------------------------------------------------------------------------------------------------------------
# Exercise 17: an interval for a difference, paired by pretrained pair.


def student_t_interval(values):
    """(mean, half width) of the 95 % Student-t interval for the mean of n values; (value, None) for a single one.

    Half width = t * s / sqrt(n), s with n - 1 below the fraction line; lab.statistics.T_975[0] is t for n = 2.
    """
    raise NotImplementedError("exercise 17, student_t_interval")


def paired_interval(scores_a, scores_b):
    """(mean, half width) of the difference a - b of two methods, the pretrained pair as the unit.

    scores_a, scores_b: dicts {(pair, seed): score}. Runs of equal pair and seed are subtracted, those that one method
    lacks are left out, the seeds of a pair are averaged, and the interval is over the pairs.
    """
    raise NotImplementedError("exercise 17, paired_interval")


# ---------------------------------------------------------------------------------------------------------------------
# Exercises 18 to 26: tests that find a silent fault. Import the project inside the function.


def test_mask_from_ids():
    """response_mask covers every token of the responses, whatever their ids are, and nothing else."""
    raise NotImplementedError("exercise 18, test_mask_from_ids")


def test_mean_over_v():
    """A divergence is a sum over the vocabulary, in nats: its size does not fall as V grows."""
    raise NotImplementedError("exercise 19, test_mean_over_v")


def test_direction():
    """forward_kl is KL(teacher || student)."""
    raise NotImplementedError("exercise 20, test_direction")


def test_second_draw():
    """Every token that interleaved_generate keeps is among the teacher's accept_top_k."""
    raise NotImplementedError("exercise 21, test_second_draw")


def test_teacher_off_by_one():
    """Row t of a rollout's teacher_logits is what the teacher says of token t + 1."""
    raise NotImplementedError("exercise 22, test_teacher_off_by_one")


def test_zero_gradient():
    """The expected gradient of policy_gradient is that of reverse KL: sum it over all tokens, weighted by student."""
    raise NotImplementedError("exercise 23, test_zero_gradient")


def test_wrong_top_k():
    """top_k_kl looks at the teacher's best tokens: what the student makes of the teacher's best one is seen."""
    raise NotImplementedError("exercise 24, test_wrong_top_k")


def test_end_token_masked():
    """The end token is a token of the response: a student that never learns it never stops."""
    raise NotImplementedError("exercise 25, test_end_token_masked")


def test_reseeded():
    """A second call with the same generator draws other numbers: a training step does not repeat the one before."""
    raise NotImplementedError("exercise 26, test_reseeded")


# ---------------------------------------------------------------------------------------------------------------------
# Exercises 27 to 33: experiments. "folder" is seen from this file; the pages name commands, figures and words.


def explain_modes():
    """What reverse KL makes of two ways to write a step -> dict of prediction, folder, figures, found and why."""
    raise NotImplementedError("exercise 27, explain_modes")


def explain_accept_top_k():
    """How much the teacher replaces for K from 1 to all tokens in use -> dict as above."""
    raise NotImplementedError("exercise 28, explain_accept_top_k")


def explain_deterministic_targets():
    """What is left of soft targets where every step has one way to be written -> dict as above."""
    raise NotImplementedError("exercise 29, explain_deterministic_targets")


def explain_exposure_bias():
    """How far a supervised student is from its teacher on references and on its own text -> dict as above."""
    raise NotImplementedError("exercise 30, explain_exposure_bias")


def explain_moving_teacher():
    """The student's distance to the original teacher, to the adapted one, and between these -> dict as above."""
    raise NotImplementedError("exercise 31, explain_moving_teacher")


def explain_collapse():
    """What happens where the teacher learns from the student alone -> dict as above."""
    raise NotImplementedError("exercise 32, explain_collapse")


def explain_feedback():
    """Whether OKD gains on its control without feedback, paired by pretrained pair -> dict as above."""
    raise NotImplementedError("exercise 33, explain_feedback")
