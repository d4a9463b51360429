"""Do the tests notice? Every fault that this field is known for is planted once, and some test must fail.

    python tests/mutants.py                          all of them, some eight minutes; status 0 if all were killed
    python tests/mutants.py --only rollback          those whose name holds a text; --list shows them all
    python tests/mutants.py --jobs 2 --json mutants.json

MUTANTS is the table: in a copy of the project, never in the project itself, `old` (which must occur exactly once in
`file`) becomes `new`, and of `tests` at least one must fail: the mutant is killed. One that survives is a hole in the
tests. The notes say what happened and where it was told; thread names like trl#6357 are those of GitHub. A mutant that
nobody could notice, since it changes nothing that can be seen, has no place here.
tests/test_mutants.py keeps the table from rotting.
"""

import argparse
import ast
import concurrent.futures
import datetime
import importlib.metadata
import json
import os
import platform
import queue
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
LIMIT = 900  # seconds: tests that need longer have been sent into an endless loop
CACHES = ("__pycache__", ".pytest_cache", ".git", ".venv", "venv", "cache", "runs")


class Mutant(NamedTuple):
    """One planted fault."""

    name: str
    file: str
    old: str
    new: str
    tests: tuple  # pytest node ids below tests/
    note: str


# fmt: off
MUTANTS = [Mutant(*row) for row in (
    # ----------------------------------------------------------------------------------------------------- losses.py
    ("kl: direction swapped", "losses.py",
     "    return kl(teacher_logprobs, student_logprobs)\n", "    return kl(student_logprobs, teacher_logprobs)\n",
     ("test_losses.py::test_three_token_example",),
     "forward and reverse KL taken for each other: ms-swift#6334, slime#2254, Self-Distillation#5"),
    ("jsd: mixture side swapped", "losses.py",
     "_log_mixture(teacher_logprobs, student_logprobs, beta)", "_log_mixture(student_logprobs, teacher_logprobs, beta)",
     ("test_losses.py::test_three_token_example",),
     "beta on the wrong side of the mixture: trl#3043; at beta .5 nobody sees it"),
    ("jsd: weights of both sides swapped", "losses.py",
     "return beta * teacher_side + (1 - beta) * student_side", "return (1 - beta) * teacher_side + beta * student_side",
     ("test_losses.py::test_three_token_example",),
     "the other half of trl#3043"),
    ("jsd: arguments reversed", "losses.py",
     "    teacher_side = kl(teacher_logprobs, mix_logprobs)\n",
     "    teacher_side = kl(mix_logprobs, teacher_logprobs)\n",
     ("test_losses.py::test_three_token_example",),
     "KL(mixture || model) in SKD's released loss: no Jensen-Shannon divergence"),
    ("jsd: beta clamped in silence", "losses.py",
     "    if not 0 < beta < 1:\n", "    beta = min(max(beta, 1e-6), 1 - 1e-6)\n    if not 0 < beta < 1:\n",
     ("test_losses.py::test_numbers_out_of_range_are_refused",),
     "beta 1 gives a loss of about 0, and nothing is learned: ms-swift#10078, verl-recipe#151"),
    ("losses: log of softmax plus a little", "losses.py",
     "return raw_logits(student_logits).log_softmax(-1),",
     "return (raw_logits(student_logits).softmax(-1) + 1e-8).log(),",
     ("test_losses.py::test_values_agree_with_probabilities_written_out",),
     "an eps changes the gradient where both models disagree most"),
    ("losses: arithmetic in half precision", "losses.py",
     "    return x.to(torch.promote_types(x.dtype, torch.float32))\n", "    return x\n",
     ("test_losses.py::test_half_precision_is_raised_before_any_arithmetic",),
     "KL wrong or negative in bf16: ms-swift#10156, DSKD#15"),
    ("losses: -inf of a padded vocabulary let through", "losses.py",
     'model_logits.device.type == "cpu" and', 'model_logits.device.type != "cpu" and',
     ("test_matches.py::test_minus_infinity_is_named_or_does_no_harm",),
     "0 * inf gives nan gradients, in reverse KL only: trl#5594"),
    ("losses: gradient through the teacher", "losses.py",
     "raw_logits(teacher_logits.detach()).log_softmax(-1)", "raw_logits(teacher_logits).log_softmax(-1)",
     ("test_losses.py::test_gradient_reaches_the_student_only",),
     "a teacher that learns to be easy: labml#66, axolotl#3206 asked whether the signal is on at all"),
    ("okd: one side's loss moves the other", "losses.py",
     "    student_logprobs, teacher_logprobs = _logprobs(student_logits, teacher_logits)\n"
     "    return kl(teacher_logprobs,",
     "    student_logprobs, teacher_logprobs = "
     "(raw_logits(x).log_softmax(-1) for x in (student_logits, teacher_logits))\n"
     "    return kl(teacher_logprobs,",
     ("test_train_okd.py::test_neither_side_moves_the_other",),
     "the teacher's loss not detached from the student: both descend a sum that no paper has"),
    ("hinton: factor T squared missing", "losses.py",
     "+ kd_weight * temperature**2 * soft", "+ kd_weight * soft",
     ("test_losses.py::test_temperature_keeps_the_scale",),
     "kd_weight then means something else at every temperature (arXiv 1503.02531); trl's GKD has no such factor"),
    ("hinton: temperature on one side only", "losses.py",
     "divergence(soften(student_logits, temperature), teacher_logits)", "divergence(student_logits, teacher_logits)",
     ("test_losses.py::test_temperature_keeps_the_scale",),
     "a student compared with a softer teacher learns to be soft: trl#5731 trained at T .9 unasked"),
    ("masked mean: mask multiplied", "losses.py",
     "kept = per_token.masked_fill(~mask, 0.0)", "kept = per_token * mask",
     ("test_losses.py::test_garbage_under_the_mask_changes_nothing",),
     "0 * nan is nan: what stands under the padding leaks: DSKD#15"),
    ("masked mean: nothing to average is 0 / 0", "losses.py",
     "weight_of(mask, reduction).clamp(min=1) if total is None", "weight_of(mask, reduction) if total is None",
     ("test_losses.py::test_nothing_to_average_gives_zero_with_a_graph",),
     "nan as soon as no row has a label: LMOps#38"),
    ("masked mean: divided by rows, not by tokens", "losses.py",
     'return mask.sum() if reduction == "token" else', 'return mask.any(-1).sum() if reduction == "token" else',
     ("test_losses.py::test_reductions_of_the_example",),
     "batchmean: the loss grows with the responses' length: trl#6006"),
    ("masked mean: every part by its own tokens", "losses.py",
     "(weight_of(mask, reduction).clamp(min=1) if total is None else total.clamp(min=1e-9))",
     "weight_of(mask, reduction).clamp(min=1)",
     ("test_losses.py::test_parts_add_up_to_the_whole",),
     "a mean of means weighs tokens by how full their micro-batch is: trl#6006, axolotl#3271"),
    ("chunks: all positions at once", "losses.py",
     "split(max(1, at_once // vocab_size))", "split(max(1, at_once))",
     ("test_losses.py::test_chunks_never_hold_a_whole_batch",),
     "the logits of a whole batch are most of the memory: ms-swift#10097, verl#6593, trl#4560"),
    ("minillm: a token is paid for itself", "losses.py",
     "reward.flip(-1).cumsum(-1).flip(-1) - reward", "reward.flip(-1).cumsum(-1).flip(-1)",
     ("test_losses.py::test_minillm_is_the_gradient_of_the_sequences_reverse_kl",),
     "R_t in place of R_t+1 counts the single step twice: LMOps#118, #315 could not reproduce it"),
    ("policy gradient: advantage with a gradient", "losses.py",
     "    with torch.no_grad():\n        advantage =", "    with torch.enable_grad():\n        advantage =",
     ("test_matches.py::test_policy_gradient_holds_its_advantage_constant",),
     "differentiating the sampled estimate itself gives another gradient (arXiv 2605.07865)"),
    ("policy gradient: a token's own advantage counts as its prefix", "losses.py",
     "(size.cumsum(-1) - size) / total", "size.cumsum(-1) / total",
     ("test_matches.py::test_early_tokens_weigh_more",),
     "IW-OPD's first token has no prefix that could have strayed: it weighs most"),
    ("policy gradient: the extrapolation without its 1", "losses.py",
     "return (strength - 1) * (start_nll", "return strength * (start_nll",
     ("test_matches.py::test_extrapolation_goes_beyond_the_teacher",),
     "the teacher's reward is in the advantage already: at strength 1 nothing is to be added"),
    ("exopd: counted from the student of now", "methods.py",
     "start_logits = self.run.logits(self.student_at_start, part.inputs, self.student_at_start)",
     "start_logits = student_logits",
     ("test_methods.py::test_the_loss_by_hand[exopd-token]",),
     "the base is the frozen start: from the student of now it is on-policy distillation at another rate"),
    ("mopd: every prompt has the last teacher", "model.py",
     "torch.where(domain == number, one(", "torch.where(domain < number, one(",
     ("test_methods.py::test_each_prompt_has_its_own_teacher",),
     "each prompt goes to the teacher of its domain"),
    ("mopd: every specialist learns everything", "methods.py",
     "for example in examples if example[2] == name)", "for example in examples)",
     ("test_methods.py::test_each_prompt_has_its_own_teacher",),
     "one generalist several times is no team of specialists"),
    ("kdrl: scores normalised over the batch", "lab/groups.py",
     "for group in scores.split(size)", "for group in scores.split(len(scores))",
     ("test_methods.py::test_groups_and_their_scores", "test_methods.py::test_scores_are_compared_within_a_group"),
     "a hard prompt's best response is then punished for its prompt"),
    ("kdrl: no groups", "lab/groups.py",
     "torch.arange(run.order.size(1)) // size", "torch.arange(run.order.size(1))",
     ("test_methods.py::test_groups_and_their_scores",),
     "four prompts once each are no group: a response is compared with answers to other prompts"),
    ("kdrl: every process takes the first scores", "methods.py",
     "group_advantages(scores, self.group)[list(step.places)]",
     "group_advantages(scores, self.group)[: len(step.places)]",
     ("test_methods.py::test_every_process_takes_its_own_scores",),
     "rows of one prompt stand in several processes: each must find its own"),
    ("sdpo: one's own answer is the hint", "lab/groups.py",
     "if right[j] and j != i)", "if right[j])",
     ("test_hints.py::test_who_is_a_right_sibling", "test_hints.py::test_a_right_sibling_is_the_hint"),
     "a right response then learns to be what it is: its teacher has read it"),
    ("sdpo: who has no right sibling learns too", "methods.py",
     "(student_logits, teacher_logits, part) * self.helped[part.rows, None]", "(student_logits, teacher_logits, part)",
     ("test_hints.py::test_a_right_sibling_is_the_hint",),
     "the teacher without a hint is an average of the student: it holds it where it was"),
    ("sdpo: siblings of other processes are not seen", "methods.py",
     "batch_scores(run, step, own), gathered_in_order(own)", "batch_scores(run, step, own), own * run.num_processes",
     ("test_hints.py::test_siblings_of_other_processes",),
     "under torchrun the hint is an answer to another prompt"),
    ("sdpo: a hint that leaves no room", "lab/hints.py",
     "bool(row[0]) and sum(map(len, row)) <= block_size for", "bool(row[0]) for",
     ("test_hints.py::test_siblings_of_other_processes",),
     "what is cut off at the end of the block is the response"),
    # ----------------------------------------------------------------------------------------------------- sample.py
    ("mask: from token ids", "sample.py",
     "& (slots < self.lengths[:, None])", "& (self.tokens != 0)",
     ("test_sample.py::test_shapes_and_padding_of_a_rollout",),
     "where padding and end token share an id the student never learns to stop: trl#6357"),
    ("mask: end token left out", "sample.py",
     "& (slots < self.lengths[:, None])", "& (slots < (self.lengths - self.finished.long())[:, None])",
     ("test_sample.py::test_shapes_and_padding_of_a_rollout",),
     "EOS masked out of the loss: trl#6357"),
    ("mask: prompt in the loss", "sample.py",
     "return (slots >= self.prompt_len[:, None])", "return (slots >= 0 * self.prompt_len[:, None])",
     ("test_sample.py::test_shapes_and_padding_of_a_rollout",),
     "prompt tokens in the on-policy loss after a refactoring: trl#6006"),
    ("mask: first token of the response dropped", "sample.py",
     "return (slots >= self.prompt_len[:, None])", "return (slots > self.prompt_len[:, None])",
     ("test_sample.py::test_shapes_and_padding_of_a_rollout",),
     "the distribution that predicts the first token is never trained: SKD's released loss"),
    ("mask: padding in the loss", "sample.py",
     "& (slots < self.lengths[:, None])", "& (slots < self.lengths.max())",
     ("test_sample.py::test_shapes_and_padding_of_a_rollout",),
     "padded student generations in the loss: trl#2058"),
    ("noise: the same at every position", "sample.py",
     "_mix(row_seeds + positions)", "_mix(row_seeds + 0 * positions)",
     ("test_sample.py::test_noise_has_no_hidden_repeats",),
     "a generator seeded again before every draw: feifeibear's random_seed"),
    ("noise: acceptance and draw are one number", "sample.py",
     '"accept": 3,', '"accept": 1,',
     ("test_sample.py::test_noise_is_independent",),
     "what decides about a proposal must not know how it was drawn"),
    ("top-k: a tie at the k-th place falls out", "sample.py",
     "warped < kth_largest", "warped <= kth_largest",
     ("test_sample.py::test_top_k_keeps_ties",),
     ">= for >: the k-th token itself is cut off"),
    ("top-p: the token that reaches the mass falls out", "sample.py",
     "outside = probs.cumsum(-1) - probs >= top_p", "outside = probs.cumsum(-1) >= top_p",
     ("test_sample.py::test_top_p_is_the_smallest_sufficient_set",),
     "the classic of every second nucleus sampler"),
    ("membership: ties count against a proposal", "sample.py",
     "return (model_logits > model_logits.gather(-1, tokens[..., None])).sum(-1)",
     "return (model_logits >= model_logits.gather(-1, tokens[..., None])).sum(-1) - 1",
     ("test_sample.py::test_boundaries_of_the_rules",),
     ">= for >: which of two equal tokens is in the top K is nobody's choice"),
    ("membership: K off by one", "sample.py",
     "    return rank(teacher_logits, proposed) < accept_top_k\n",
     "    return rank(teacher_logits, proposed) <= accept_top_k\n",
     ("test_sample.py::test_boundaries_of_the_rules",),
     "ranks begin at 0: <= is K + 1"),
    ("membership: on the warped teacher", "sample.py",
     "        kept = self.accept(teacher_rows, proposed,",
     "        other = self.replacement\n"
     "        teacher_rows = warp(teacher_rows, other['temperature'] or 1.0, top_p=other.get('top_p'))\n"
     "        kept = self.accept(teacher_rows, proposed,",
     ("test_sample.py::test_interleaved_sequence_law",),
     "top-K after top-p: 1.2 tokens and 24 arbitrary ones, in SKD's released code"),
    ("membership: a second draw is judged", "sample.py",
     "replacement=replacement, fresh=judge_fresh)", "replacement=replacement, fresh=not judge_fresh)",
     ("test_sample.py::test_interleaved_sequence_law[accept_top_k=2]",),
     "SKD's released code: 69 % of the accepted tokens were outside the teacher's top K"),
    ("draft: by the teacher's sampling options", "sample.py",
     'draws = {"temperature": student_temperature, "top_p": student_top_p}',
     'draws = {"temperature": teacher_temperature, "top_p": teacher_top_p}',
     ("test_sample.py::test_interleaved_sequence_law",),
     "SKD's released code: the student's settings have no effect"),
    ("replacement: drawn from the student", "sample.py",
     'return draw(teacher_rows[at], uniform["teacher"][at], **self.replacement)',
     'return draw(torch.stack(block.student_rows, 1)[at], uniform["teacher"][at], **self.replacement)',
     ("test_sample.py::test_interleaved_sequence_law[accept_top_k=2]",),
     "a rejection that changes nothing"),
    ("replacement: from the row behind", "sample.py",
     "at = (torch.arange(n, device=device), accepted.clamp(max=G - 1))",
     "at = (torch.arange(n, device=device), (accepted + 1).clamp(max=G - 1))",
     ("test_sample.py::test_interleaved_sequence_law[accept_top_k=2]",),
     "row t of the verification judges and replaces draft t, not t + 1"),
    ("block: a teacher's token when all was accepted", "sample.py",
     "== accepted[:, None]) & counts\n    return Verdict(accepted, accepted + rejected.sum(1),",
     "== at[1][:, None]) & counts\n    return Verdict(accepted, torch.minimum(accepted + 1, counts.sum(1)),",
     ("test_sample.py::test_block_length_never_shows",),
     "the bonus token: every gamma-th token is the teacher's, and the law of SKD depends on gamma"),
    ("block: what follows a drafted end token is judged", "sample.py",
     "counts &= is_eos.cumsum(1) == is_eos\n", "counts &= is_eos.cumsum(1) <= counts.size(1)\n",
     ("test_sample.py::test_end_token_accepted_inside_a_block",),
     "tokens verified behind the end of a response"),
    ("block: one token more than the budget", "sample.py",
     "counts = positions < end\n", "counts = positions <= end\n",
     ("test_sample.py::test_the_budget_never_shows",),
     "one token of budget left: SKD's released code appends the block before it again"),
    ("block: out of budget counts as finished", "sample.py",
     "finished[live] = committed\n",
     "finished[live] = committed\n        finished[live] |= length[live] >= end[live]\n",
     ("test_sample.py::test_end_token_at_the_edge_of_the_budget",),
     "serving engines report a stop at max_tokens as completed; the share of ended responses is then 1"),
    ("block: targets one row late", "sample.py",
     "kept_rows[rows, positions - 1] = output", "kept_rows[rows, positions] = output",
     ("test_sample.py::test_teacher_logits_are_the_teachers",),
     "teacher row t against t + 1: the other half of the shift that SKD's released loss forgets"),
    ("rollback: student's cache one short", "sample.py",
     "student_cache.roll_back(length[live] - 1,", "student_cache.roll_back(length[live] - 2,",
     ("test_sample.py::test_interleaved_equals_the_reference",),
     "an off-by-one that starves the drafter: mlxcel#994"),
    ("rollback: student's cache one long", "sample.py",
     "student_cache.roll_back(length[live] - 1,", "student_cache.roll_back(length[live],",
     ("test_sample.py::test_interleaved_equals_the_reference",),
     "the rejected draft's keys stay: romsto#1, romsto#4"),
    ("rollback: teacher's cache one short", "sample.py",
     "teacher_cache.roll_back(length[live] - 1,", "teacher_cache.roll_back(length[live] - 2,",
     ("test_sample.py::test_interleaved_equals_the_reference",),
     "mlxcel#994 on the other side"),
    ("rollback: teacher's cache one long", "sample.py",
     "teacher_cache.roll_back(length[live] - 1,", "teacher_cache.roll_back(length[live],",
     ("test_sample.py::test_interleaved_equals_the_reference",),
     "the rejected draft's keys stay in the judge's cache: romsto#1, romsto#4"),
    ("rollback: length read after the verification", "sample.py",
     "teacher_cache.roll_back(length[live] - 1,", "teacher_cache.roll_back(teacher_cache.lengths,",
     ("test_sample.py::test_interleaved_equals_the_reference",),
     "the cache has grown by then: LUPI_SKD crops gamma too long"),
    ("prefill: generation starts behind the padding", "sample.py",
     "cache.roll_back(prompt_len - 1, high=width - 1)", "cache.roll_back(0 * prompt_len + width - 1, high=width - 1)",
     ("test_sample.py::test_batch_never_shows",),
     "positions count padding: trl#5137"),
    ("speculative: residual not cut at 0", "sample.py",
     "(target_probs - draft_probs).clamp(min=0)", "(target_probs - draft_probs).abs()",
     ("test_sample.py::test_speculative_sequence_law[2-1.0]",),
     "the positive part of target - draft is what is redrawn from (arXiv 2211.17192)"),
    ("speculative: residual the wrong way round", "sample.py",
     "residual = (target_probs - draft_probs)", "residual = (draft_probs - target_probs)",
     ("test_sample.py::test_speculative_sequence_law[2-1.0]",),
     "draft - target"),
    ("speculative: chance of acceptance inverted", "sample.py",
     'return uniform["accept"] * draft_prob < target_prob', 'return uniform["accept"] * target_prob < draft_prob',
     ("test_sample.py::test_speculative_sequence_law[2-1.0]",),
     "min(1, draft / target): looks like a sampler and samples something else; vllm#2336 tests for it"),
    ("speculative: ratio with a draft that was not drawn from", "sample.py",
     "warp(rows, self.temperature).log_softmax(-1).gather(", "warp(rows).log_softmax(-1).gather(",
     ("test_sample.py::test_speculative_sequence_law[2-0.6]",),
     "q of another temperature than the draft's: transformers#32867, #47932, DeepSpec#31"),
    ("mix: per sequence for everybody", "sample.py",
     'batch_size if request.mix_per == "sequence" else 1', 'batch_size if request.mix_per else 1',
     ("test_train_skd.py::test_a_coin_per_sequence_or_per_batch",),
     "GKD draws once per batch, ImitKD one per sequence: trl has the former"),
    # ------------------------------------------------------------------------------------------------------ model.py
    ("attention: not causal", "model.py",
     "is_causal=bias is None)", "is_causal=False)",
     ("test_model.py::test_causality",),
     "nanoGPT#613 asks for a proof; a loss that is far too good is the only other sign"),
    ("cache: phantom keys", "model.py",
     "later = self._slots > self._slots[:, None]", "later = self._slots > self._slots[:, None] + 1",
     ("test_model.py::test_stale_slots_are_never_seen",),
     "a query sees a slot that nobody has written yet: mlx-vlm#2113"),
    ("cache: positions one too far", "model.py",
     "self.position_embedding(positions.clamp(max",
     "self.position_embedding((positions + (cache is not None)).clamp(max",
     ("test_model.py::test_cached_equals_uncached",),
     "position embeddings off by one where there is a cache: trl#5137"),
    ("cache: rows that go on keep others' lengths", "model.py",
     "self.lengths = self.lengths[there]", "self.lengths = self.lengths[: len(rows)]",
     ("test_sample.py::test_cached_generate_equals_uncached",),
     "ragged acceptance: mask, positions and cache out of step: gpt-fast#214, transformers#32165"),
    ("optimizer: weight decay on biases", "model.py",
     '"params": [w for w in trainable if w.dim() < 2], "weight_decay": 0.0}',
     '"params": [w for w in trainable if w.dim() < 2], "weight_decay": weight_decay}',
     ("test_model.py::test_decay_on_matrices_only",),
     "gains and biases have no reason to shrink"),
    ("optimizer: first step at rate 0", "model.py",
     "return peak * (step + 1) / warmup_steps", "return peak * step / warmup_steps",
     ("test_model.py::test_learning_rate",),
     "one update of few is lost: the default of many a schedule"),
    ("optimizer: gradients not clipped", "model.py",
     "norm = torch.nn.utils.clip_grad_norm_(weights, 1.0)",
     'norm = torch.nn.utils.clip_grad_norm_(weights, float("inf"))',
     ("test_train_skd.py::test_long_gradients_are_clipped",),
     "the norm is logged and nothing is cut"),
    ("online: base left unfrozen", "model.py",
     "self.base, self.config, self.enabled = base.requires_grad_(False),",
     "self.base, self.config, self.enabled = base,",
     ("test_online.py::test_only_the_module_moves[lora]",),
     "the teacher's own weights in the module's optimizer"),
    ("online: a full module is the base itself", "model.py",
     "in copy.deepcopy(base).named_children()", "in base.named_children()",
     ("test_train_okd.py::test_the_base_never_moves[okd_full]",),
     "what the distances are measured to is trained"),
    ("file: checksum not compared", "model.py",
     "    if not whole:\n", "    if whole is None:\n",
     ("test_resume.py::test_every_flipped_bit_is_noticed",),
     "a checkpoint with a flipped bit trains on"),
    ("file: weights_only off", "model.py",
     'map_location="cpu", weights_only=True)', 'map_location="cpu", weights_only=False)',
     ("test_model.py::test_checkpoint_is_loaded_as_data_only",),
     "a checkpoint may then run code"),
    ("cuda: an id behind the vocabulary is drawn", "sample.py",
     "    return drawn.clamp(max=last)\n", "    return drawn\n",
     ("test_sample.py::test_a_drawn_id_is_a_token", "test_cuda.py::test_nan_is_a_loss_and_no_crash"),
     "nan on a GPU: a device-side assert, after which every other run of the process fails"),
    ("cuda: out of memory taken for a damaged file", "model.py",
     "    return memory or any(", "    return any(",
     ("test_cuda.py::test_memory_of_the_host_is_no_fault_of_a_file",),
     "a good model set aside, and pretrained anew"),
    ("cuda: runs are started on a closed GPU", "lab/processes.py",
     "            if gpu_is_closed():", "            if False:",
     ("test_cuda.py::test_nothing_is_started_on_a_closed_gpu",),
     "all of them fail with an error that is not theirs"),
    ("cuda: the clock begins in the steps before", "lab/costs.py",
     "        if self.exact:  # what is queued belongs to the steps before\n", "        if False:\n",
     ("test_cuda.py::test_the_clock_waits_before_it_begins",),
     "the sampler is charged with what was queued before it"),
    ("cuda: rows are dropped by a copy from pageable memory", "model.py",
     "        there = to_device(torch.tensor(rows), device)\n",
     "        there = torch.tensor(rows).to(device, non_blocking=True)\n",
     ("test_placement.py::test_samplers_stay_on_the_device",),
     "a wait that no one asked for"),
    # -------------------------------------------------------------------------------------- features.py, methods.py
    ("features: gradient through the teacher", "features.py",
     "_visible(teacher_hidden.detach(), target_mask)", "_visible(teacher_hidden, target_mask)",
     ("test_features.py::test_gradient_to_the_student_alone",),
     "hidden states of the teacher as something to be learned"),
    ("todi: the wrong KL for either token", "losses.py",
     "log_ratio.detach() for sign in (1, -1))", "log_ratio.detach() for sign in (-1, 1))",
     ("test_matches.py::test_token_wise_kl_is_both_kls_with_another_gradient",),
     "raised where it should be pressed down: the sum of both KLs would still vanish where both models agree"),
    ("dpkd: preferred and rejected swapped", "losses.py",
     "torch.stack([teacher_logprobs.argmax(-1), student_logprobs.argmax(-1)], -1)",
     "torch.stack([student_logprobs.argmax(-1), teacher_logprobs.argmax(-1)], -1)",
     ("test_matches.py::test_favourites_ask_for_the_best_token_alone",),
     "a preference loss that makes the student surer of its own favourite"),
    ("csd: the weights learn", "losses.py",
     '"student": student_logprobs.detach().exp(), "teacher"', '"student": student_logprobs.exp(), "teacher"',
     ("test_matches.py::test_what_logit_differences_are_at_their_ends",),
     "the loss shrinks when mass moves to tokens that happen to agree"),
    ("top-k: of the other model", "losses.py",
     'leader = teacher_logits if whose == "teacher" else student_logits',
     'leader = student_logits if whose == "teacher" else teacher_logits',
     ("test_matches.py::test_whose_best_tokens_are_not_seen",),
     "whose best tokens a truncated reverse KL takes: users fight over it, and the two are blind to opposite errors"),
    ("se_kd: the surest positions", "losses.py",
     ".argsort(dim=-1, descending=True, stable=True)", ".argsort(dim=-1, stable=True)",
     ("test_matches.py::test_weight_of_best",),
     "the student drills what it knows, and padding comes first"),
    ("se_kd: the choice shrinks the loss", "losses.py",
     "    return (mask & (rank < kept)) * count / kept\n", "    return (mask & (rank < kept)).float()\n",
     ("test_matches.py::test_weight_of_best",),
     "a fifth of the positions is a fifth of the learning rate: no comparison at equal rates"),
    ("tip: both are asked for in place of either", "losses.py",
     "unsure + wrong - unsure * wrong", "unsure * wrong",
     ("test_matches.py::test_what_either_score_chooses",),
     "where the student is sure and wrong, the product with its entropy is nothing"),
    ("veto: an interpolation", "losses.py",
     "    return teacher_logprobs + beta * student_logprobs\n",
     "    return (teacher_logprobs + beta * student_logprobs) / (1 + beta)\n",
     ("test_matches.py::test_veto_target_is_no_interpolation",),
     "exponents that sum to 1 make it TAID's target: summaries of the paper write it so"),
    ("veto: the power grows", "methods.py",
     "self.beta = self.start * (1 - step.progress)", "self.beta = self.start * step.progress",
     ("test_methods.py::test_vetos_power_falls_to_nothing",),
     "protection when it is no longer needed, and in the end a student sharper than its teacher"),
    ("adaspec: hard tokens in place of learnable ones", "methods.py",
     "weight_of_best(apart - learned,", "weight_of_best(learned,",
     ("test_methods.py::test_adaspec_leaves_out_what_the_copy_has_not_learned",),
     "what a model of this size cannot learn gets all of the gradient"),
    ("losses: garbage outside the mask in MiniLLM", "losses.py",
     "columns = by_chunks(_chosen_and_single, _inside(student_logits, mask), _inside(teacher_logits, mask), targets)\n"
     "    single, student_chosen, teacher_chosen = columns.unbind(-1)\n    with torch.no_grad():\n        reward = (",
     "columns = by_chunks(_chosen_and_single, student_logits, teacher_logits, targets)\n"
     "    single, student_chosen, teacher_chosen = columns.unbind(-1)\n    with torch.no_grad():\n        reward = (",
     ("test_losses.py::test_minillm_under_the_mask",),
     "nan times 0 in the backward pass of a masked mean"),
    ("features: padding takes part", "features.py",
     ".masked_fill(~mask[..., None], 0.0)\n", "\n",
     ("test_features.py::test_padding_changes_nothing",),
     "relations to positions that do not exist"),
    ("methods: projector not trained", "methods.py",
     "    if any(weight.requires_grad for weight in method.parameters()):\n",
     "    if any(weight.requires_grad for weight in method.buffers()):\n",
     ("test_methods.py::test_a_projector_learns_beside_the_student[fitnet]",),
     "a random projector left out of the optimizer: DSKD's users ask where it is"),
    ("methods: optimizer missing in a method's state", "methods.py",
     '"generator": self.generator.get_state(), "optimizer": optimizer}',
     '"generator": self.generator.get_state(), '
     '"optimizer": self.optimizer and self.optimizer.state_dict() | {"state": {}}}',
     ("test_resume.py::test_going_on_changes_no_bit[train_skd-fitnet]",),
     "the projector's moments begin anew: nanoGPT#358"),
    ("methods: sftn's teacher is the pair's own", "methods.py",
     "teacher, branch = copy.deepcopy(teacher).requires_grad_(True),",
     "teacher, branch = teacher.requires_grad_(True),",
     ("test_methods.py::test_sftns_teacher_is_a_copy_that_learned",),
     "the fixed teacher learns on, for every method that comes after"),
    ("methods: a replayed row keeps the end of another", "methods.py",
     "            self.tokens[slots], self.source[slots] = 0, 0\n", "",
     ("test_methods.py::test_a_long_batch_leaves_nothing_of_a_short_one",),
     "a slice that is not cleared: lucidrains evaluates one and does not assign it"),
    ("methods: a right guess is a second token", "methods.py",
     "entries.masked_fill(seen_twice, 0.0)", "entries",
     ("test_methods.py::test_a_right_guess_is_no_second_token",),
     "the input's own token twice in KDIGA's gradient, wherever the teacher guessed it"),
    ("methods: labels in autocast's type", "methods.py",
     "at_least_float32(answers).log_softmax(-1)", "answers.log_softmax(-1)",
     ("test_train_skd.py::test_every_row_trains_in_bf16[lwkd]",),
     "a loss of 8 bits, where a CPU's autocast leaves log_softmax as it is"),
    # ----------------------------------------------------------------------------------- train_skd.py, lab/training.py
    ("train: first token dropped, one past the end", "lab/training.py",
     "source, mask = rollout.source[rows, 1:], rollout.response_mask[rows, 1:]",
     "source, mask = rollout.source[rows, 1:], rollout.response_mask[rows, :-1]",
     ("test_methods.py::test_the_loss_by_hand[supervised-token]",),
     "the slice logits[prompt_len:] of SKD's released loss"),
    ("train: noise seeded again at every step", "lab/training.py",
     "                generator=run.noise,\n", "                generator=run.generator(1),\n",
     ("test_train_skd.py::test_noise_is_the_seeds[on_policy]",),
     "the same noise at every step: feifeibear's random_seed"),
    ("train: noise ignores the seed", "lab/training.py",
     "self.order, self.noise = order, self.generator(1)",
     "self.order, self.noise = order, torch.Generator().manual_seed(1_000_003)",
     ("test_train_skd.py::test_noise_is_the_seeds[on_policy]",),
     "the seeds of a table differ by their batches alone"),
    ("train: every part by its own tokens", "lab/training.py",
     "loss = masked_mean(per_token, self.tokens.mask, run.reduction, self.total)",
     "loss = masked_mean(per_token, self.tokens.mask, run.reduction)",
     ("test_train_skd.py::test_how_a_batch_is_computed_does_not_count[supervised---micro-batch 3]",),
     "per-micro-batch normalisation: trl#6006, axolotl#3271"),
    ("train: gradients of the step before stay", "lab/training.py",
     "                one.optimizer.zero_grad(set_to_none=True)\n", "                pass\n",
     ("test_methods.py::test_the_loss_by_hand[sft-token]",),
     "sums of all gradients so far"),
    ("train: halves of two_stage swapped", "methods.py",
     "row.student_share[int(progress >= 0.5)]", "row.student_share[int(progress < 0.5)]",
     ("test_train_skd.py::test_two_stages",),
     "student samples first, references then"),
    ("train: seqkd's answers from the student", "lab/training.py",
     "call = (teacher, self.prompts,", "call = (self.student, self.prompts,",
     ("test_train_skd.py::test_teacher_writes_its_greedy_answers",),
     "trl#5726 and DSKD#24 ask who writes with seq_kd"),
    ("train: order of the prompts ignores the seed", "lab/training.py",
     "self.num_steps, torch.Generator().manual_seed(self.seed)\n", "self.num_steps, torch.Generator().manual_seed(1)\n",
     ("test_train_skd.py::test_all_methods_see_the_same_prompts",),
     "intervals over seeds that share their batches are too narrow"),
    ("train: optimizer missing in the state", "lab/training.py",
     'parts |= {one.name: one.saved, f"{one.name}_optimizer": one.optimizer}', "parts |= {one.name: one.saved}",
     ("test_resume.py::test_going_on_changes_no_bit[train_skd-on_policy]",),
     "SKD's released code saves none: maxtext#3464, lm-engine#250, nanoGPT#358"),
    ("train: sampling generator missing in the state", "lab/training.py",
     'parts = {"sampling": self.noise} | (saved or {})', "parts = {} | (saved or {})",
     ("test_resume.py::test_going_on_changes_no_bit[train_skd-on_policy]",),
     "the noise begins anew where the run goes on"),
    ("train: method missing in the state", "methods.py",
     'saved={"method": method},', "saved={},",
     ("test_resume.py::test_going_on_changes_no_bit[train_skd-fitnet]",),
     "replay buffer, schedule and projector begin anew"),
    ("train: resumed, the batches begin anew", "lab/training.py",
     "progress(self.order[self.done :].tolist(), ",
     "progress(self.order[: self.num_steps - self.done].tolist(), ",
     ("test_resume.py::test_going_on_changes_no_bit[train_skd-sft]",),
     "the data position is part of a state: maxtext#3464"),
    ("train: resumed, the schedule begins anew", "lab/training.py",
     "self.rate = learning_rate(number, run.num_steps, run.lr)",
     "self.rate = learning_rate(number - run.done, run.num_steps, run.lr)",
     ("test_resume.py::test_going_on_changes_no_bit[train_skd-sft]",),
     "a second warm-up in the middle of the run: nanoGPT#358"),
    ("train: verification logits of other rows", "lab/training.py",
     "return None if rollout.teacher_logits is None else rollout.teacher_logits[rows]",
     "return None if rollout.teacher_logits is None else rollout.teacher_logits.flip(0)[rows]",
     ("test_methods.py::test_the_loss_by_hand[skd-token]",),
     "what the teacher said about one row is asked of another: transformers#47932 returns a q that was not drawn from"),
    ("train: a step counted as two passes", "lab/training.py",
     'passes = getattr(model, "training_passes", 3) if learns else 1',
     'passes = getattr(model, "training_passes", 2) if learns else 1',
     ("test_train_skd.py::test_costs_are_what_the_models_did[supervised]",),
     "equal compute that is none"),
    # --------------------------------------------------------------------------------------------------- train_okd.py
    ("okd: alpha swapped", "train_okd.py",
     "on_references, row.alpha, divergence,", "on_references, 1 - row.alpha, divergence,",
     ("test_train_okd.py::test_without_feedback_the_student_has_no_say",),
     "alpha weighs the student's feedback (arXiv 2409.12512, Eq. 16); at .5 nobody sees it"),
    ("okd: factor T squared missing", "train_okd.py",
     "loss = kd_weight * temperature**2 * masked_mean(", "loss = kd_weight * masked_mean(",
     ("test_train_okd.py::test_temperature_and_reduction",),
     "as in Hinton's mixture"),
    ("okd: one side moves before the other has looked", "train_okd.py",
     '"simultaneous": simultaneous,', '"simultaneous": alternating,',
     ("test_train_okd.py::test_first_step_by_hand[okd]",),
     "both distributions come before either update"),
    ("okd: alternating moves both at once", "train_okd.py",
     '"alternating": alternating,', '"alternating": simultaneous,',
     ("test_train_okd.py::test_first_step_by_hand[prokt]",),
     "ProKT and PromptKD let the student learn from the teacher as it is after its move"),
    ("okd: references learned from what a model wrote", "train_okd.py",
     '        if self.row.writer != "dataset":\n', "        if False:\n",
     ("test_train_okd.py::test_first_step_by_hand[okd_on_policy]",),
     "cross-entropy on one's own samples: a teacher that believes its student"),
    ("okd: noise seeded again at every step", "lab/training.py",
     "                generator=run.noise,\n", "                generator=run.generator(1),\n",
     ("test_train_okd.py::test_noise_is_the_seeds[okd_on_policy]",),
     "the same noise at every step: feifeibear's random_seed"),
    ("okd: anchored to the student", "train_okd.py",
     "by_chunks(reverse_kl, teacher_logits, original_logits)",
     "by_chunks(reverse_kl, teacher_logits, student_logits.detach())",
     ("test_train_okd.py::test_first_step_by_hand[promptkd]",),
     "an anchor that drifts along"),
    ("okd: the module at the student's rate", "lab/training.py",
     "one.optimizer, one.ratio * self.step.rate)", "one.optimizer, self.step.rate)",
     ("test_train_okd.py::test_the_teachers_rate_is_a_share",),
     "the schedule overwrites the group's own rate"),
    ("okd: held-out prompts are learned from", "train_okd.py",
     "run.begin(student, prompts, responses, held_out_prompts(row, len(prompts)))",
     "run.begin(student, prompts, responses)",
     ("test_train_okd.py::test_nobody_learns_held_out_prompts",),
     "an outer loss on what was learned tells nothing"),
    ("okd: the meta-gradient the wrong way round", "train_okd.py",
     "for weight in module_weights], -rate\n", "for weight in module_weights], rate\n",
     ("test_train_okd.py::test_a_meta_gradient_of_one_number",),
     "the step goes against the gradient"),
    ("okd: module's optimizer missing in the state", "lab/training.py",
     'f"{one.name}_optimizer": one.optimizer}', 'f"{one.name}_optimizer": self.trained["student"].optimizer}',
     ("test_resume.py::test_going_on_changes_no_bit[train_okd-okd]",),
     "its moments begin anew"),
    ("okd: every part by its own tokens", "train_okd.py",
     "row.alpha, divergence,\n                       row.temperature, self.run.reduction, part.total)",
     "row.alpha, divergence, row.temperature, self.run.reduction)",
     ("test_train_okd.py::test_how_a_batch_is_computed_does_not_count[okd---micro-batch 3]",),
     "per-micro-batch normalisation of the teacher's loss"),
    # ------------------------------------------------------------------------------------------------------- data/
    ("evaluate: drift the wrong way round", "lab/evaluate.py",
     'figures["drift"] = forward_kl(adapted_logits, teacher_logits)',
     'figures["drift"] = forward_kl(teacher_logits, adapted_logits)',
     ("test_pairs.py::test_distances_to_an_adapted_teacher",),
     "KL(adapted || original) is another number"),
    ("evaluate: first token of the response left out", "lab/evaluate.py",
     "target_mask = (slots >= prompt_len[:, None])", "target_mask = (slots > prompt_len[:, None])",
     ("test_pairs.py::test_distances_by_hand",),
     "the shift that SKD's released loss forgets, in the measuring"),
    ("evaluate: curves to the adapted teacher", "lab/evaluate.py",
     '"kl_teacher": measured.get("kl_teacher"),',
     '"kl_teacher": measured.get("kl_adapted_teacher", measured.get("kl_teacher")),',
     ("test_train_okd.py::test_every_line_tells_of_the_teacher",),
     "a curve that falls because the teacher comes nearer"),
    ("evaluate: distances to the adapted teacher", "lab/compare.py",
     "            student,\n            pair.teacher,\n            pair.task,",
     "            student,\n            adapted or pair.teacher,\n            pair.task,",
     ("test_train_okd.py::test_distances_are_to_the_original",),
     "whatever trains towards an adapted teacher looks good against it"),
    ("evaluate: corrections per accepted token", "lab/monitoring.py",
     '"replacement_rate": ratio(counts["replaced"], total)',
     '"replacement_rate": ratio(counts["replaced"], counts["accepted"])',
     ("test_train_skd.py::test_step_figures_by_hand",),
     "correction_rate of SKD's released code: no share of anything"),
    ("costs: weights of both models swapped", "lab/costs.py",
     "flops = 2 * (self.weights[0] * student + self.weights[1] * teacher + products)",
     "flops = 2 * (self.weights[1] * student + self.weights[0] * teacher + products)",
     ("test_train_skd.py::test_costs_are_what_the_models_did[supervised]",),
     "equal compute that is none"),
    ("costs: equal compute inverted", "lab/schedule.py",
     '(unit["compute"] - once) / (own["compute"] - once)', '(own["compute"] - once) / (unit["compute"] - once)',
     ("test_train_skd.py::test_equal_compute",),
     "a cheap method gets fewer steps in place of more"),
    ("pairs: the teacher is not frozen", "lab/pairs.py",
     "weight.requires_grad_(False)", "weight.requires_grad_(True)",
     ("test_pairs.py::test_teacher_is_frozen_and_students_are_copies",),
     "gradients of the teacher's size, or a teacher that moves: trl#4560, unsloth#3008"),
    ("pairs: the teacher left in train mode", "lab/pairs.py",
     "    return model.eval()\n", "    return model.train()\n",
     ("test_pairs.py::test_pretraining_learns",),
     "a teacher with dropout is another one at every call: unsloth#3008"),
    ("file: the model left in train mode", "model.py",
     "    return model.eval().to(device), content", "    return model.train().to(device), content",
     ("test_model.py::test_checkpoint_round_trip",),
     "the same, from the cache"),
    ("pairs: the cache forgets the teacher's rate", "lab/pairs.py",
     "        settings.teacher_lr,\n        *teacher_rows,", "        *teacher_rows,",
     ("test_pairs.py::test_what_matters_changes_the_key",),
     "a stale teacher under a new flag"),
    ("pairs: prompts learned while pretraining", "lab/pairs.py",
     "loss = masked_mean(per_token, batch.response_mask[:, 1:])",
     "loss = masked_mean(per_token, batch.response_mask[:, 1:] | True)",
     ("test_pairs.py::test_pretraining_has_responses_as_targets_only",),
     "labels of prompt tokens: trl#6006"),
    ("pairs: student starts are one object", "lab/pairs.py",
     "        student.load_state_dict(self.student_weights)\n",
     "        student.load_state_dict(self.student_weights, assign=True)\n",
     ("test_pairs.py::test_teacher_is_frozen_and_students_are_copies",),
     "the second method starts where the first one ended"),
    ("tasks: test prompts in train", "data/tasks.py",
     "if split_of(prompt) == split and prompt not in seen:", "if split_of(prompt) and prompt not in seen:",
     ("test_tasks.py::test_no_prompt_is_in_two_splits_whatever_seed_size_and_difficulty",),
     "a test split that was learned by heart"),
    ("corpora: test prompts in train", "data/corpora.py",
     "examples = [example for example in once if key(example.prompt) not in taken]", "examples = once",
     ("test_corpora.py::test_splits_never_share_a_prompt",),
     "MAWPS holds questions of SVAMP; published splits overlap"),
    ("own data: a text is stripped", "data/own_data.py",
     "rows.append(Row(prompt, answers, identity(prompt),", "rows.append(Row(prompt.strip(), answers, identity(prompt),",
     ("test_own_data.py::test_texts_are_learned_as_written",),
     "the model learns another prompt than the one that is typed"),
    ("own data: Unicode forms are two prompts", "data/own_data.py",
     'unicodedata.normalize("NFC", prompt).strip()', "prompt.strip()",
     ("test_own_data.py::test_one_rule_says_which_prompts_are_the_same",),
     "a test prompt that was learned in its other spelling"),
    ("own data: test prompts in train", "data/own_data.py",
     "[row for row in rows[split] if row.identity not in owner]", "list(rows[split])",
     ("test_own_data.py::test_an_overlapping_file_costs_train_its_rows_in_one_line",),
     "a user's files overlap"),
    ("cache of the teacher: rows one late", "lab/teacher_cache.py",
     "start, length = len(self.prompts[i]) - 1, len(self.responses[i])",
     "start, length = len(self.prompts[i]), len(self.responses[i])",
     ("test_teacher_cache.py::test_what_is_read_is_what_the_teacher_says",),
     "row t predicts token t + 1, on disk as well: trl#2255, trl#3055"),
    ("cache of the teacher: of any teacher", "lab/teacher_cache.py",
     "json.dumps([weights_hash(teacher), self.read,", "json.dumps([self.read,",
     ("test_teacher_cache.py::test_it_is_made_once_and_belongs_to_its_teacher",),
     "yesterday's teacher answers for today's"),
    # ------------------------------------------------------------------------------- a teacher that reads a hint
    ("hints: the teacher off by one", "lab/hints.py",
     "(torch.arange(T, device=device) + shift)", "(torch.arange(T, device=device) + shift - 1)",
     ("test_hints.py::test_the_teachers_rows_are_those_of_the_response",),
     "logits of two prompts laid side by side, one of them a token early"),
    ("hints: aligned by position in the text", "lab/hints.py",
     "        return inputs, part.fed + shift.sum(), aligned\n",
     "        return inputs, part.fed + shift.sum(), lambda rows: type(rows)(rows[0][:, :T], rows[1]) "
     "if isinstance(rows, HiddenStates) else rows[:, :T]\n",
     ("test_hints.py::test_the_teachers_rows_are_those_of_the_response",),
     "the teacher's answer to the hint is taken for its answer to the response"),
    ("hints: rows without a hint count as rows behind one", "lab/compare.py",
     " if all(kind[i] != prompt for kind in pair.hinted.values())]", "]",
     ("test_hints.py::test_what_a_hint_does_to_its_reader_is_measured",),
     "what a hint does is then diluted by rows that have none"),
    ("hints: a mean of what single examples score", "lab/compare.py",
     "= pair.task.corpus_score(examples, completions)",
     "= tasks.mean(pair.task.score(*one) for one in zip(examples, completions))",
     ("test_hints.py::test_what_a_hint_does_to_its_reader_is_measured",),
     "a mean of sentence BLEU is another number than the corpus BLEU beside it"),
    ("average: moves the pair's own teacher", "methods.py",
     'if kind.moves_teacher and row.teacher != "start":', 'if kind.moves_teacher and row.teacher == "none":',
     ("test_methods.py::test_only_a_copy_of_the_student_is_averaged",),
     "a row with an average and the given teacher trains on, and changes the caller's model"),
    ("resolve: any None is K", "methods.py",
     'if row.loss_kwargs.get("accept_top_k", 0) is not None:', "if None not in row.loss_kwargs.values():",
     ("test_methods.py::test_only_the_flags_own_none_is_filled_in",),
     "a loss whose None means all tokens is then given a name that it does not know"),
    ("hints: a part reads the first rows' hints", "lab/hints.py",
     "return [self.hinted[example] for example in part.step.example_ids[part.rows]]",
     "return [self.hinted[example] for example in part.step.example_ids[: part.rows.stop - part.rows.start]]",
     ("test_hints.py::test_the_teachers_rows_are_those_of_the_response",),
     "with --micro-batch the second part is judged after the first part's hints"),
    ("hints: the verification's logits are taken", "methods.py",
     "not method.captures_teacher and row.hint is None", "not method.captures_teacher",
     ("test_hints.py::test_whoever_writes",),
     "the teacher that verifies drafts has read no hint: it is skd under another name"),
    ("hints: not in the cache", "lab/training.py",
     "read=self.teacher_prompts.of(self.prompts),", "read=None,",
     ("test_hints.py::test_a_cache_keeps_what_a_teacher_with_a_hint_says",),
     "with --cache-teacher the hint has no effect, and nobody says so"),
    ("hints: the anchor reads none", "train_okd.py",
     "part.forward(teacher.base, self.run.teacher_prompts)", "part.forward(teacher.base)",
     ("test_hints.py::test_the_anchor_compares_what_was_read",),
     "the adapted teacher is pulled away from its hint"),
    ("hints: the control tells the solution", "data/tasks.py",
     'task.hint(other) if kind == "unrelated"', 'task.hint(example) if kind == "unrelated"',
     ("test_hints.py::test_a_hint_stands_before_the_prompt",),
     "a control that is the method itself"),
    ("average: the share of the wrong model", "methods.py",
     "average.lerp_(weight, 1 - self.decay)", "average.lerp_(weight, self.decay)",
     ("test_hints.py::test_the_ends_of_an_average",),
     "a decay of .99 follows the student at once"),
    ("average: missing in the state", "methods.py",
     "        self.average, self.decay = teacher, decay\n",
     '        self.decay = vars(self).setdefault("average", teacher) and decay\n',
     ("test_resume.py::test_going_on_changes_no_bit[train_skd-sdft]",),
     "a resumed run is taught by the start again"),
    ("report: quantile of the normal distribution", "lab/statistics.py",
     "_t_quantile(n - 1) * values.std(ddof=1)", "1.959964 * values.std(ddof=1)",
     ("test_report.py::test_two_values_closed_form",),
     "z for t: with three seeds an interval less than half as wide"),
    ("report: variance divided by n", "lab/statistics.py",
     "values.std(ddof=1)", "values.std()",
     ("test_report.py::test_two_values_closed_form",),
     "numpy's default"),
    ("report: pairs by place, not by seed", "lab/statistics.py",
     "{of: figures_a[of] - figures_b[of] for of in figures_a.keys() & figures_b.keys()}",
     "{of: figures_a[of] - b for of, b in zip(figures_a, figures_b.values())}",
     ("test_report.py::test_pairing_is_by_seed_and_not_by_position",),
     "what a seed does to both methods no longer cancels"),
    ("report: unpaired differences", "lab/statistics.py",
     "    mean, half_width = student_t_interval(differences)\n    return PairedDifference(",
     "    mean, _ = student_t_interval(differences)\n"
     "    widths = [student_t_interval(list(figures.values()))[1] for figures in (figures_a, figures_b)]\n"
     "    half_width = None if None in widths else math.hypot(*widths)\n    return PairedDifference(",
     ("test_report.py::test_pairing_is_by_seed_and_not_by_position",),
     "both intervals side by side: wide enough to hide any gain"),
    ("report: all runs as one sample", "lab/statistics.py",
     "groups.setdefault(pair if unit == \"pair\" else seed, [])", "groups.setdefault((pair, seed), [])",
     ("test_report.py::test_seeds_of_a_pair_are_averaged_first",),
     "five seeds of one pair counted like five pairs: an interval that other pairs leave"),
    ("report: Holm's steps left out", "lab/statistics.py",
     "(len(p_values) - rank) * p_values[i]", "p_values[i]",
     ("test_report.py::test_holm_by_hand",),
     "one of twenty tests is decided by chance"),
    ("claims: a significant loss holds", "lab/claims.py",
     '"holds" if found.mean > 0 else "does not hold"', '"holds"',
     ("test_claims.py::test_a_claim_is_a_paired_difference",),
     "a contradicted claim printed as confirmed"),
    ("pairs: every student has the same prompts", "lab/pairs.py",
     'splits["train"].shuffled(settings.seed)', 'splits["train"].shuffled(1)',
     ("test_pairs.py::test_prompts_of_pair_are_the_students",),
     "the sample of prompts, which decides most, is never repeated"),
    ("schedule: every pair is the first", "lab/schedule.py",
     "dataclasses.replace(args.settings, seed=pair_seed)", "args.settings",
     ("test_several_pairs.py::test_every_method_meets_every_pair",),
     "N copies of one pair, and intervals of width 0"),
    ("monitoring: overlap with the student's set below", "lab/evaluate.py",
     "(students & teachers).sum(-1) / teachers.sum(-1)", "(students | teachers).sum(-1) / teachers.sum(-1)",
     ("test_monitoring.py::test_overlap_is_that_of_two_sets",),
     "an overlap above 1"),
    ("report: checksum not checked", "lab/reading.py",
     '            if not has_checksum(b"', '            if False and not has_checksum(b"',
     ("test_report.py::test_a_changed_digit_is_refused",),
     "a table of figures that were changed by hand"),
    ("records: checksum not checked", "lab/records.py",
     "    if finished and not has_checksum(", "    if not finished and has_checksum(",
     ("test_resume.py::test_a_seal_is_of_everything",),
     "a damaged record counts as a finished run"),
    ("records: other flags accepted", "lab/records.py",
     'refuse_difference(path.name, header["flags"], asked)',
     'refuse_difference(path.name, header["flags"], header["flags"])',
     ("test_pairs.py::test_changed_flag_is_refused_by_name",),
     "one table of two experiments"),
    ("resume: a state of other flags accepted", "lab/checkpoints.py",
     'refuse_difference(self.paths()[0].name, state["identity"], self.identity)',
     'refuse_difference(self.paths()[0].name, state["identity"], state["identity"])',
     ("test_resume.py::test_another_runs_state_is_refused",),
     "the first half at one rate, the second at another"),
    ("stop: a signal raised in the middle of the executor", "lab/processes.py",
     "    with saving_loop(all_wait=True):\n", "    with contextlib.nullcontext():\n",
     ("test_runs.py::test_a_signal_is_raised_between_two_looks_at_the_runs",),
     "a lock left held there: the program says that it stops and never ends"),
    ("stop: the end of one run taken for a second signal", "lab/processes.py",
     'len(_waiting["signals"]) > 1', 'len(_waiting["signals"]) > 0',
     ("test_runs.py::test_a_signal_to_everybody_lets_all_runs_save",),
     "a cluster signals every process; the other runs are killed while they save"),
    ("lock: shared", "lab/folders.py",
     "fcntl.LOCK_EX |", "fcntl.LOCK_SH |",
     ("test_faults.py::test_a_lock_is_of_one",),
     "two programs pretrain the same pair, and write one file"),
    ("lock: folder not locked", "lab/compare.py",
     'if not held.enter_context(folders.locked(folder / ".lock", wait=False)):', 'if not folder.exists():',
     ("test_faults.py::test_a_folder_in_use_is_refused",),
     "two programs write the same records"),
    # ------------------------------------------------------------------------------- the writers of 2026, their page
    ("trust region: the KL's direction swapped", "model.py",
     "return (logprobs.exp() * (logprobs - student_logprobs))",
     "return (student_logprobs.exp() * (student_logprobs - logprobs))",
     ("test_writers.py::test_the_constraint_is_met_and_used_up",),
     "KL(student || writer) in place of KL(writer || student): another region of the same name"),
    ("trust region: the shares of both models swapped", "model.py",
     "return torch.lerp(student_row, teacher_row, teacher_share",
     "return torch.lerp(teacher_row, student_row, teacher_share",
     ("test_writers.py::test_the_ends_of_the_region",),
     "the budget anneals towards the teacher alone, and every rollout is off-policy in the end"),
    ("trust region: any feasible share will do", "model.py",
     "        further = share + 0.5**halving\n", "        further = share + 0.5 ** (halving + 1)\n",
     ("test_writers.py::test_the_constraint_is_met_and_used_up",),
     "within epsilon, but not the nearest to the teacher: no test of the constraint alone sees it"),
    ("prefix: the whole budget is written", "sample.py",
     "max_new_tokens = math.ceil(prefix * max_new_tokens)", "max_new_tokens = math.ceil(max_new_tokens)",
     ("test_writers.py::test_a_prefix_is_the_beginning_of_what_would_have_been_written",),
     "a loss on the prefix alone saves nothing: the samples must end early"),
    ("ssd: the start is the student that learns", "methods.py",
     "return copy.deepcopy(student).requires_grad_(False).eval()", "return student",
     ("test_writers.py::test_the_start_is_a_copy_that_stands_still",),
     "a frozen copy that shares its weights moves with them"),
    ("schedule: the end is not kept", "methods.py",
     "progress = min(1.0, progress / until[0]) if until else progress",
     "progress = progress / until[0] if until else progress",
     ("test_writers.py::test_a_schedule_may_end_early",),
     "a budget that falls on below 0"),
    ("page: own samples in the place of references", "lab/page.py",
     'figures[variant] = {key: repeated(own, key, unit_of(runs)).values() for key in OVERLAP}',
     'figures[variant] = {key: repeated(own, "topk_overlap", unit_of(runs)).values() for key in OVERLAP}',
     ("test_page.py::test_overlap_and_entropy_gap_are_the_records",),
     "one column four times"),
)]
# fmt: on


def mutated(mutant, text):
    """The text of its file with the fault in it. ValueError names the row whose `old` does not occur exactly once."""
    found = text.count(mutant.old)
    if found != 1:
        raise ValueError(
            f"{mutant.name!r}: the old text occurs {found} times in {mutant.file}, not once: {mutant.old[:60]!r}"
        )
    return text.replace(mutant.old, mutant.new)


def problems(root):
    """What is wrong with the table, one line each: texts and tests that are gone,
    files that would no longer be Python."""
    found, names = [], [mutant.name for mutant in MUTANTS]
    found += [f"{name!r} is the name of two rows" for name in sorted({name for name in names if names.count(name) > 1})]
    for mutant in MUTANTS:
        try:
            ast.parse(mutated(mutant, (root / mutant.file).read_text(encoding="utf-8")))
        except (ValueError, OSError, SyntaxError) as error:
            found.append(str(error) if type(error) is ValueError else f"{mutant.name!r}: {error}")
        for test in mutant.tests:
            file, _, function = test.partition("::")
            path = root / "tests" / file
            source = path.read_text(encoding="utf-8") if path.is_file() else ""
            if not re.search(rf"^def {function.partition('[')[0] or 'test_'}", source, re.M):
                found.append(f"{mutant.name!r}: there is no test {test}")
    return found


def copy_project(root, folder):
    """What git knows of the project, changes and new files included, as a copy; without git all files but caches."""
    command = ["git", "-C", str(root), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    try:
        names = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split("\0")
    except (OSError, subprocess.CalledProcessError):
        shutil.copytree(root, folder, ignore=shutil.ignore_patterns(*CACHES))
        return
    for name in filter(None, names):
        if (root / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(root / name, folder / name)


def run_tests(folder, tests):
    """pytest in a copy -> (its status, None where it does not end; the last lines that it said, seconds)."""
    started = time.monotonic()
    # Two edits of one size within a second leave a .pyc that fits both: none may be written.
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    for name in ("PYTHONPATH", "PYTEST_ADDOPTS"):
        environment.pop(name, None)
    command = [
        sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", f"--basetemp={folder.parent / 'tmp'}",
    ]
    command += [f"tests/{test}" for test in tests]
    try:
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=LIMIT)
    except subprocess.TimeoutExpired:
        return None, "", time.monotonic() - started
    return done.returncode, done.stdout + done.stderr, time.monotonic() - started


def verdict(status):
    """killed: a test failed, or the tests do not end. SURVIVED: all passed. BROKEN: they could not even be run."""
    return {0: "SURVIVED", 1: "killed", None: "killed"}.get(status, "BROKEN")


def tested(mutant, folder):
    """Plant a fault in a copy, run its tests, take it out again -> (verdict, seconds)."""
    path = folder / mutant.file
    before = path.read_text(encoding="utf-8")
    try:
        path.write_text(mutated(mutant, before), encoding="utf-8")
        status, _, seconds = run_tests(folder, mutant.tests)
    finally:
        path.write_text(before, encoding="utf-8")
    return verdict(status), seconds


def unchanged_fails(folder, mutants):
    """What fails without any fault: a line, or None."""
    status, said, _ = run_tests(folder, dict.fromkeys(test for mutant in mutants for test in mutant.tests))
    if status == 0:
        return None
    lines = (
        [line for line in said.splitlines() if line.startswith(("FAILED", "ERROR"))]
        or said.strip().splitlines()[-1:]
    )
    return " ".join(lines[:1]) or "no end"


def all_tested(mutants, folders, say):
    """Every mutant in one of the copies -> their verdicts, in order; `say` gets a line for each as it is known."""
    free = queue.SimpleQueue()
    for folder in folders:
        free.put(folder)

    def one(mutant):
        folder = free.get()
        try:
            found, seconds = tested(mutant, folder)
        finally:
            free.put(folder)
        say(f"{found:<9} {mutant.name:<58} {seconds:6.1f} s")
        return found

    with concurrent.futures.ThreadPoolExecutor(len(folders)) as pool:
        return list(pool.map(one, mutants))


def main(argv=None):
    """Plant every fault that was asked for; returns 0 only if all were killed."""
    description = "Plant known faults, one by one, and see whether a test fails."
    parser = argparse.ArgumentParser(prog="mutants.py", description=description)
    parser.add_argument("--only", metavar="TEXT", default="", help="those whose name holds this text")
    parser.add_argument("--list", action="store_true", help="show the table and plant nothing")
    parser.add_argument("--json", type=os.path.expanduser, metavar="FILE", help="write counts and names to a file")
    parser.add_argument("--jobs", type=int, default=1, help="faults at a time, each in a copy of its own (default: 1)")
    args = parser.parse_args(argv)
    chosen = [mutant for mutant in MUTANTS if args.only in mutant.name]
    if args.list:
        for mutant in chosen:
            print(f"{mutant.name:<58} {mutant.file:<22} {mutant.note}")
        return 0
    if wrong := problems(ROOT):
        sys.exit("mutants.py: " + "\n".join(wrong))
    if not chosen:
        sys.exit(f"mutants.py: no name holds {args.only!r}, --list shows them all")
    if args.jobs < 1:
        sys.exit(f"mutants.py: --jobs must be at least 1, found {args.jobs}")
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as scratch:
        folders = [Path(scratch) / str(job) / "project" for job in range(min(args.jobs, len(chosen)))]
        for folder in folders:
            copy_project(ROOT, folder)
        if failed := unchanged_fails(folders[0], chosen):
            sys.exit(f"mutants.py: without any fault the tests fail, which tells nothing: {failed}")
        print(f"without any fault all pass, {time.monotonic() - started:.0f} s", flush=True)
        verdicts = all_tested(chosen, folders, lambda line: print(line, flush=True))
    seconds, killed = time.monotonic() - started, verdicts.count("killed")
    print(f"{killed} of {len(chosen)} killed, {seconds:.0f} s")
    if args.json:
        record = {
            "mutants": len(chosen),
            "killed": killed,
            "names": {mutant.name: found for mutant, found in zip(chosen, verdicts)},
            "seconds": round(seconds),
            "python": platform.python_version(),
            "torch": importlib.metadata.version("torch"),
            "date": datetime.date.today().isoformat(),
        }
        Path(args.json).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    return 0 if killed == len(chosen) else 1


if __name__ == "__main__":
    sys.exit(main())
