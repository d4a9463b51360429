"""The grader's own test: wrong solutions, each of which must be rejected at the law that it breaks, and right ones that
are written otherwise and must pass. tests/test_exercises.py runs both; teacher.md holds the table of the wrong ones.

A wrong solution is solutions.py with one piece of text replaced: the mistakes that students make, and that public
projects made. `old` stands exactly once in it, unless a row says in which function.
"""

from typing import NamedTuple


class Wrong(NamedTuple):
    """A wrong solution of an exercise."""

    number: int
    mistake: str
    law: str  # the first law that it breaks, without its number
    old: str
    new: str
    function: str = ""  # where `old` is replaced, if it stands in several


WRONG = [Wrong(*row) for row in (
    (1, "the mask is multiplied", "padding",
     "torch.where(mask, per_token, 0.0)", "per_token * mask", "masked_mean"),
    (1, "the mean over all positions", "every_token_counts_the_same",
     "inside.sum() / mask.sum().clamp(min=1)", "inside.mean()"),
    (1, "divided by the rows", "every_token_counts_the_same",
     "inside.sum() / mask.sum().clamp(min=1)", "inside.sum() / len(mask)"),
    (1, "rows without a token counted", "every_response_counts_the_same",
     "mask.any(1).sum().clamp(min=1)", "len(mask)"),
    (1, "the last position dropped", "every_token_counts_the_same",
     "torch.where(mask, per_token, 0.0)", "torch.where(mask, per_token, 0.0)[:, :-1]", "masked_mean"),
    (1, "0 / 0 where nothing is masked in", "nothing_to_average",
     "mask.sum().clamp(min=1)\n    row", "mask.sum()\n    row"),
    (2, "direction swapped", "teacher_first",
     "kl(teacher_logits.detach().log_softmax(-1), student_logits.log_softmax(-1))",
     "kl(student_logits.log_softmax(-1), teacher_logits.detach().log_softmax(-1))"),
    (2, "the mean over V", "one_value_per_position",
     "(first_logprobs - second_logprobs)).sum(-1)", "(first_logprobs - second_logprobs)).mean(-1)"),
    (2, "the mean over everything", "one_value_per_position",
     "(first_logprobs - second_logprobs)).sum(-1)", "(first_logprobs - second_logprobs)).sum(-1).mean()"),
    (2, "the entropy left out", "raw_logits",
     "(first_logprobs.exp() * (first_logprobs - second_logprobs))", "(-first_logprobs.exp() * second_logprobs)"),
    (2, "the teacher not normalised", "raw_logits",
     "kl(teacher_logits.detach().log_softmax(-1), student_logits", "kl(teacher_logits.detach(), student_logits"),
    (2, "log of a softmax plus a little", "log_space",
     "kl(teacher_logits.detach().log_softmax(-1), student_logits.log_softmax(-1))",
     "kl(teacher_logits.detach().log_softmax(-1), (student_logits.softmax(-1) + 1e-9).log())"),
    (2, "the teacher not detached", "student_learns_alone",
     "kl(teacher_logits.detach().log_softmax(-1), student_logits", "kl(teacher_logits.log_softmax(-1), student_logits"),
    (2, "the student detached inside", "log_space",
     "kl(teacher_logits.detach().log_softmax(-1), student_logits.log_softmax(-1))",
     "kl(teacher_logits.detach().log_softmax(-1), student_logits.detach().log_softmax(-1))"),
    (3, "beta clamped in silence", "ends_are_refused",
     'raise ValueError(f"beta must lie strictly between 0 and 1, found {beta}")',
     "beta = min(max(beta, 1e-6), 1 - 1e-6)"),
    (3, "beta on the wrong side of the mixture", "beta_belongs_to_the_teacher",
     "torch.logaddexp(teacher + math.log(beta), student + math.log1p(-beta))",
     "torch.logaddexp(student + math.log(beta), teacher + math.log1p(-beta))"),
    (3, "the weights of both sides exchanged", "beta_belongs_to_the_teacher",
     "return beta * teacher_side + (1 - beta) * student_side",
     "return (1 - beta) * teacher_side + beta * student_side"),
    (3, "KL(mixture || model)", "log_space",
     "(teacher.exp() * (teacher - mix)).sum(-1)\n    student_side = (student.exp() * (student - mix)).sum(-1)",
     "(mix.exp() * (mix - teacher)).sum(-1)\n    student_side = (mix.exp() * (mix - student)).sum(-1)"),
    (3, "the mixture of logits", "values",
     "torch.logaddexp(teacher + math.log(beta), student + math.log1p(-beta))",
     "(beta * teacher + (1 - beta) * student).log_softmax(-1)"),
    (3, "the mixture detached", "student_learns_alone",
     "student_side = (student.exp() * (student - mix)).sum(-1)",
     "student_side = (student.exp() * (student - mix.detach())).sum(-1)"),
    (4, "the token that crosses top_p cut off", "nucleus_reaches_its_mass",
     "mass_before = probs.cumsum(-1) - probs\n", "mass_before = probs.cumsum(-1)\n"),
    (4, "one token more than needed", "nucleus_reaches_its_mass",
     "mass_before = probs.cumsum(-1) - probs\n",
     "mass_before = (probs.cumsum(-1) - probs).roll(1, -1) * (probs < probs[..., :1])\n"),
    (4, "not put back in its order", "nucleus_reaches_its_mass",
     "outside.scatter(-1, order, outside)", "outside"),
    (4, "ties with the k-th cut off", "ties_stay",
     "warped.masked_fill(warped < kth_largest, -math.inf)",
     "torch.full_like(warped, -math.inf).scatter(-1, warped.topk(top_k).indices, warped.topk(top_k).values)"),
    (4, "top_p before top_k", "top_p_sees_what_top_k_left",
     "probs = ordered.softmax(-1)",
     "probs = (model_logits / temperature).sort(-1, descending=True).values.softmax(-1)"),
    (4, "temperature multiplied", "temperature",
     "warped = model_logits / temperature", "warped = model_logits * temperature"),
    (4, "the input changed in place", "temperature",
     "warped = model_logits / temperature", "warped = model_logits.div_(temperature)"),
    (5, "the boundary on the wrong side", "impossible_tokens",
     "torch.searchsorted(cumulative, reached, right=True)", "torch.searchsorted(cumulative, reached)"),
    (5, "the total left out", "any_total",
     "reached = uniform * cumulative[..., -1:]",
     "reached = uniform.expand(*probs.shape[:-1], uniform.size(-1)).contiguous()"),
    (5, "off by one", "impossible_tokens",
     "torch.searchsorted(cumulative, reached, right=True)",
     "(torch.searchsorted(cumulative, reached, right=True) - 1).clamp(min=0)"),
    (5, "always the likeliest", "impossible_tokens",
     "torch.searchsorted(cumulative, reached, right=True)", "(0 * uniform + probs.argmax(-1, keepdim=True)).long()"),
    (5, "another number than the given one", "impossible_tokens",
     "reached = uniform * cumulative[..., -1:]",
     "reached = torch.rand(uniform.shape, generator=torch.Generator().manual_seed(1)) * cumulative[..., -1:]"),
    (6, "ties counted as larger", "ties",
     "(model_logits > model_logits.gather", "(model_logits >= model_logits.gather"),
    (6, "the place among equals", "ties",
     "(model_logits > model_logits.gather(-1, tokens[..., None])).sum(-1)",
     "(model_logits.argsort(descending=True, stable=True) == tokens[..., None]).long().argmax(-1)"),
    (6, "one too many", "as_many_as_it_says",
     "return larger < accept_top_k", "return larger <= accept_top_k"),
    (6, "rejected and accepted exchanged", "ties",
     "return larger < accept_top_k", "return larger >= accept_top_k"),
    (6, "smaller ones counted", "largest_first",
     "(model_logits > model_logits.gather", "(model_logits < model_logits.gather"),
    (7, "the teacher's noise for the student", "all_accepted",
     'noise(position, "student")', 'noise(position, "teacher")'),
    (7, "positions counted from the response", "all_accepted",
     "position, tokens = len(sequence), torch", "position, tokens = len(sequence) - len(prompt), torch"),
    (7, "a second draw judged", "judged_is_what_was_drawn",
     "(teacher_row > teacher_row[token]).sum()",
     "(teacher_row > teacher_row[draw(student_row, torch.tensor(noise(position, 'student') / 2))]).sum()"),
    (7, "one rank too many", "none_accepted",
     "sum() >= accept_top_k:\n            token", "sum() > accept_top_k:\n            token"),
    (7, "rejections marked, not written back", "none_accepted",
     'token, source = draw(teacher_row, torch.tensor(noise(position, "teacher"))), "teacher"', 'source = "teacher"'),
    (7, "the end token cut off", "end_token",
     "    return sequence[len(prompt) :], sources",
     "    if sequence[-1] == eos_token:\n        sequence.pop(), sources.pop()\n"
     "    return sequence[len(prompt) :], sources"),
    (7, "a rejected end token ends the response", "end_token",
     '        token, source = draw(student_row, torch.tensor(noise(position, "student"))), "student"\n',
     '        token, source = draw(student_row, torch.tensor(noise(position, "student"))), "student"\n'
     "        max_new_tokens = 1 if token == eos_token else max_new_tokens\n"),
    (8, "all accepted ones stay, not the leading ones", "leading_ones_stay",
     "(stays & counts).long().cumprod(1).sum(1)", "(stays & counts).sum(1)"),
    (8, "a bonus token", "no_bonus_token",
     "return accepted, accepted + rejected.sum(1), rejected", "return accepted, accepted + 1, rejected"),
    (8, "the end of what counts rejects", "no_bonus_token",
     "rejected = (torch.arange(stays.size(1)) == accepted[:, None]) & counts",
     "rejected = torch.arange(stays.size(1)) == accepted[:, None]"),
    (8, "the rejected one is not judged", "leading_ones_stay",
     "return accepted, accepted + rejected.sum(1), rejected", "return accepted, accepted, rejected"),
    (8, "the proposed end token does not count", "budget_and_end",
     "ended_before = is_eos.cumsum(1) - is_eos.long()", "ended_before = is_eos.cumsum(1)"),
    (8, "one token beyond the budget", "budget_and_end",
     "inside = positions < end\n", "inside = positions <= end\n"),
    (8, "an end token behind the block's end", "replacement_in_its_place",
     "((written == eos_token) & inside).any(1)", "(written == eos_token).any(1)"),
    (8, "a rejected end token ends", "replacement_in_its_place",
     "((written == eos_token) & inside).any(1)", "((proposed == eos_token) & inside).any(1)"),
    (9, "the cache keeps one slot too many", "every_block_length",
     "                cache.roll_back(length - 1)", "                cache.roll_back(length)"),
    (9, "the teacher's cache not rolled back", "every_block_length",
     "            for cache in caches:", "            for cache in caches[:1]:"),
    (9, "the student's cache not rolled back", "every_block_length",
     "            for cache in caches:", "            for cache in caches[1:]:"),
    (9, "one noise for all rows", "alone_as_in_a_batch",
     "noise(row, place, role)", "noise(0, place, role)"),
    (9, "the batch ends with its first row", "alone_as_in_a_batch",
     "(running := ~finished & (length < end)).any()", "(running := ~finished & (length < end)).all()"),
    (9, "finished rows write on", "alone_as_in_a_batch",
     "eos_token) & running[:, None]", "eos_token)"),
    (9, "no caches", "caches_are_used",
     "            teacher_rows = teacher(block.inputs, caches[1])  # (B, G, V), row j judges proposal j",
     "            teacher(block.inputs, caches[1])\n"
     "            ahead = torch.cat([tokens, torch.zeros_like(positions)], 1)\n"
     "            ahead[rows, positions] = block.proposed\n"
     "            ahead = ahead[:, : int(positions.max())]\n"
     "            teacher_rows = teacher(ahead)[rows, positions - 1]"),
    (10, "the ratio upside down", "the_target_wants_more",
     "return uniform * draft < target", "return uniform * target < draft"),
    (10, "accepted where the target is likelier only", "lossless",
     "return uniform * draft < target", "return draft <= target"),
    (10, "the difference the other way round", "residual_is_a_distribution",
     "left = (target - draft).clamp(min=0)", "left = (draft - target).clamp(min=0)"),
    (10, "redrawn from the target itself", "residual_is_a_distribution",
     "return torch.where(total > 0, left / total.clamp(min=1e-30), target)", "return target + 0 * total"),
    (10, "not normalised", "residual_is_a_distribution",
     "left / total.clamp(min=1e-30)", "left"),
    (10, "0 / 0 for equal models", "equal_models",
     "return torch.where(total > 0, left / total.clamp(min=1e-30), target)", "return left / total"),
    (11, "logits and tokens off by one", "a_copy_teaches_nothing",
     "forward_kl(student(inputs), teacher_logits), response_mask)",
     "forward_kl(student(inputs)[:, 1:], teacher_logits[:, :-1]), response_mask[:, 1:])"),
    (11, "the prompt in the loss", "prompts_and_padding_do_not_count",
     "rollout.tokens[:, :-1], rollout.response_mask[:, 1:]",
     "rollout.tokens[:, :-1], torch.arange(1, rollout.tokens.size(1)) < rollout.lengths[:, None]"),
    (11, "padding in the loss", "prompts_and_padding_do_not_count",
     "rollout.tokens[:, :-1], rollout.response_mask[:, 1:]",
     "rollout.tokens[:, :-1], torch.arange(1, rollout.tokens.size(1)) >= rollout.prompt_len[:, None]"),
    (11, "the mask not shifted", "prompts_and_padding_do_not_count",
     "rollout.tokens[:, :-1], rollout.response_mask[:, 1:]", "rollout.tokens[:, :-1], rollout.response_mask[:, :-1]"),
    (11, "the end token masked", "the_end_token_counts",
     "rollout.tokens[:, :-1], rollout.response_mask[:, 1:]",
     "rollout.tokens[:, :-1], rollout.response_mask[:, 1:] & (rollout.tokens[:, 1:] != eos_token)"),
    (11, "gradients for the teacher", "teacher_is_left_alone",
     "    with torch.no_grad():\n        teacher_logits = teacher(inputs)\n"
     "    loss = masked_mean(forward_kl(student(inputs), teacher_logits)",
     "    teacher_logits = teacher(inputs)\n"
     "    kl = lambda s, t: (t.softmax(-1) * (t.log_softmax(-1) - s.log_softmax(-1))).sum(-1)\n"
     "    loss = masked_mean(kl(student(inputs), teacher_logits)"),
    (11, "zero_grad forgotten", "gradients_are_fresh",
     "    optimizer.zero_grad()\n", "", "on_policy_step"),
    (11, "the teacher writes", "the_student_writes",
     "rollout = generate(student, prompts", "rollout = generate(getattr(teacher, 'model', teacher), prompts"),
    (11, "reverse KL", "values",
     "from losses import forward_kl, masked_mean", "from losses import masked_mean, reverse_kl as forward_kl",
     "on_policy_step"),
    (12, "the teacher's logits off by one", "a_copy_teaches_nothing",
     "forward_kl(student(rollout.tokens[:, :-1]), rollout.teacher_logits)",
     "forward_kl(student(rollout.tokens[:, :-1]), rollout.teacher_logits.roll(1, 1))"),
    (12, "zero_grad forgotten", "gradients_are_fresh",
     "    optimizer.zero_grad()\n", "", "skd_step"),
    (12, "accept_top_k forgotten", "replacements_are_learned_from",
     "generator=generator, accept_top_k=accept_top_k, eos_token", "generator=generator, eos_token"),
    (12, "replaced tokens left out of the loss", "replacements_are_learned_from",
     "loss = masked_mean(per_token, rollout.response_mask[:, 1:])",
     "loss = masked_mean(per_token, rollout.source[:, 1:] == 1)"),
    (12, "the teacher asked once more", "the_teacher_reads_once",
     "rollout.teacher_logits)", "teacher(rollout.tokens[:, :-1]).detach())"),
    (12, "the student writes alone", "replacements_are_learned_from",
     "accept_top_k=accept_top_k, eos_token=eos_token", "accept_rule='all', eos_token=eos_token"),
    (13, "renormalised, without a tail", "sums_to_one",
     "return torch.cat([logprobs.gather(-1, ids), others], -1)", "return logprobs.gather(-1, ids).log_softmax(-1)"),
    (13, "log of 1 minus the sum", "a_thin_tail_is_exact",
     "logprobs.scatter(-1, ids, -math.inf).logsumexp(-1, keepdim=True)",
     "(1 - logprobs.gather(-1, ids).exp().sum(-1, keepdim=True)).clamp(min=1e-12).log()"),
    (13, "the student's top-k", "the_teacher_chooses",
     "ids = teacher_logits.topk(top_k).indices", "ids = student_logits.topk(top_k).indices"),
    (13, "the tail left out of the loss", "at_most_the_whole",
     "(teacher.exp() * (teacher - student)).sum(-1)", "(teacher.exp() * (teacher - student))[..., :-1].sum(-1)",
     "sparse_forward_kl"),
    (13, "the teacher not detached", "student_learns_alone",
     "    teacher_logits = teacher_logits.detach()\n    ids", "    ids"),
    (14, "keys in the place of values", "keys_stay",
     "value = value + scale * (x @ down_value @ up_value)", "key = key + scale * (x @ down_value @ up_value)"),
    (14, "the values forgotten", "keys_stay",
     "    value = value + scale * (x @ down_value @ up_value)\n", ""),
    (14, "one pair of matrices for both", "each_its_own",
     "value = value + scale * (x @ down_value @ up_value)", "value = value + scale * (x @ down_query @ up_query)"),
    (14, "no scale on the values", "scale",
     "value = value + scale * (x @ down_value @ up_value)", "value = value + x @ down_value @ up_value"),
    (14, "scale divided by the rank", "values",
     "query = query + scale * (x @ down_query @ up_query)\n    value = value + scale * (x @ down_value @ up_value)",
     "scale = scale / down_query.size(1)\n    query = query + scale * (x @ down_query @ up_query)\n"
     "    value = value + scale * (x @ down_value @ up_value)"),
    (15, "the teacher not detached", "each_side_alone",
     "(teacher.detach().exp() * (teacher.detach() - student))", "(teacher.exp() * (teacher - student))"),
    (15, "the student not detached", "each_side_alone",
     "(student.detach().exp() * (student.detach() - teacher))", "(student.exp() * (student - teacher))"),
    (15, "the feedback the other way round", "feedback_is_weighted_by_the_student",
     "(student.detach().exp() * (student.detach() - teacher))", "(teacher.exp() * (teacher - student.detach()))"),
    (15, "alpha on the wrong side", "feedback_is_weighted_by_the_student",
     "alpha * feedback + (1 - alpha) * references", "(1 - alpha) * feedback + alpha * references"),
    (15, "the student learns from the references, too", "only_the_response",
     "references = mean(-teacher.gather(-1, targets[..., None])[..., 0])",
     "references = -teacher.gather(-1, targets[..., None])[..., 0].mean()"),
    (15, "the mean over all positions", "only_the_response",
     "return torch.where(mask, per_token, 0.0).sum() / count", "return per_token.mean()"),
    (15, "the mask multiplied", "only_the_response",
     "return torch.where(mask, per_token, 0.0).sum() / count", "return (per_token * mask).sum() / count"),
    (16, "0 / 0 before anything was judged", "nothing_judged",
     "a = (accepted + 7) / (judged + 8)\n    lengths", "a = accepted / judged\n    lengths"),
    (16, "a token more in every block", "nothing_judged",
     "sum(a**k for k in range(gamma))", "sum(a**k for k in range(gamma + 1))"),
    (16, "every token stands by itself", "extremes",
     "sum(a**k for k in range(gamma))", "(gamma * a)"),
    (16, "the call costs nothing", "extremes",
     "(gamma + call_cost) / sum", "gamma / sum"),
    (16, "the dearest", "extremes",
     "return min(lengths", "return max(lengths"),
    (17, "divided by n", "two_values",
     "for value in values) / (n - 1)", "for value in values) / n"),
    (17, "the normal distribution's 1.96", "two_values",
     "T_975[n - 2] *", "1.959964 *"),
    (17, "one degree of freedom too many", "two_values",
     "T_975[n - 2] *", "T_975[n - 1] *"),
    (17, "seeds as the unit", "the_pair_is_the_unit",
     "[sum(values) / len(values) for values in by_pair.values()]",
     "[value for values in by_pair.values() for value in values]"),
    (17, "not paired", "only_common_runs",
     "    by_pair = {}\n    for pair, seed in sorted(scores_a.keys() & scores_b.keys()):\n"
     "        by_pair.setdefault(pair, []).append(scores_a[pair, seed] - scores_b[pair, seed])\n"
     "    return student_t_interval([sum(values) / len(values) for values in by_pair.values()])",
     "    one, other = (student_t_interval(list(scores.values())) for scores in (scores_a, scores_b))\n"
     "    return one[0] - other[0], one[1] and math.hypot(one[1], other[1])"),
)]  # fmt: skip


# Right, but written otherwise: (number, how, source of its functions).
RIGHT = (
    (1, "loops", '''
def masked_mean(per_token, mask, reduction="token"):
    rows = [[value for value, inside in zip(row, keep) if inside] for row, keep in zip(per_token, mask.tolist())]
    if reduction == "sequence":
        rows = [[sum(row) / len(row)] for row in rows if row]
    values = [value for row in rows for value in row]
    return sum(values) / len(values) if values else 0.0 * per_token.nan_to_num(0, 0, 0).sum()
'''),
    (1, "index and float64", '''
def masked_mean(per_token, mask, reduction="token"):
    values = per_token.double()
    if not mask.any():
        return values[mask].sum()
    if reduction == "token":
        return values[mask].mean()
    return torch.stack([row[keep].mean() for row, keep in zip(values, mask) if keep.any()]).mean()
'''),
    (2, "torch's own kl_div", '''
def kl(first_logprobs, second_logprobs):
    return torch.nn.functional.kl_div(second_logprobs, first_logprobs, reduction="none", log_target=True).sum(-1)
def forward_kl(student_logits, teacher_logits):
    return kl(torch.log_softmax(teacher_logits, -1).detach(), torch.log_softmax(student_logits, -1))
def reverse_kl(student_logits, teacher_logits):
    return kl(torch.log_softmax(student_logits, -1), torch.log_softmax(teacher_logits, -1).detach())
'''),
    (2, "cross-entropy minus entropy, in float64", '''
def kl(first_logprobs, second_logprobs):
    first, second = first_logprobs.double(), second_logprobs.double()
    return -(first.exp() * second).sum(-1) + (first.exp() * first).sum(-1)
def forward_kl(student_logits, teacher_logits):
    return kl(teacher_logits.detach().double().log_softmax(-1), student_logits.double().log_softmax(-1))
def reverse_kl(student_logits, teacher_logits):
    with torch.no_grad():
        teacher_logprobs = teacher_logits.double().log_softmax(-1)
    return kl(student_logits.double().log_softmax(-1), teacher_logprobs)
'''),
    (3, "sums over plain probabilities, in float64", '''
def generalized_jsd(student_logits, teacher_logits, beta=0.5):
    if beta <= 0 or beta >= 1:
        raise ValueError("beta")
    student, teacher = student_logits.double().softmax(-1), teacher_logits.detach().double().softmax(-1)
    mix = beta * teacher + (1 - beta) * student
    def side(one):
        gap = one.clamp(min=1e-300).log() - mix.clamp(min=1e-300).log()
        return torch.where(one > 0, one * gap, 0.0).sum(-1)
    return beta * side(teacher) + (1 - beta) * side(student)
'''),
    (4, "row by row", '''
def warp(model_logits, temperature=1.0, top_k=None, top_p=None):
    rows = []
    for row in (model_logits / temperature).reshape(-1, model_logits.size(-1)):
        row = row.clone()
        ids = sorted(range(len(row)), key=lambda i: -row[i].item())
        if top_k is not None and top_k < len(ids):
            least = row[ids[top_k - 1]].item()
            row[row < least] = -math.inf
        if top_p is not None:
            probs, mass = row.softmax(-1), 0.0
            for i in ids:
                if mass >= top_p:
                    row[i] = -math.inf
                mass += probs[i].item()
        rows.append(row)
    return torch.stack(rows).reshape(model_logits.shape)
'''),
    (5, "counting, in float64", '''
def inverse_cdf(probs, uniform):
    cumulative = probs.double().cumsum(-1)
    reached = uniform.double() * cumulative[..., -1:]
    return (cumulative[..., None, :] <= reached[..., None]).sum(-1)
'''),
    (6, "sorting", '''
def rank(model_logits, tokens):
    own = model_logits.gather(-1, tokens[..., None])
    return model_logits.size(-1) - torch.searchsorted(model_logits.sort(-1).values, own, right=True)[..., 0]
def accepted_by_topk(teacher_logits, proposed, accept_top_k):
    return rank(teacher_logits, proposed) < accept_top_k
'''),
    (7, "its own draw, in float64", '''
def interleaved(student, teacher, prompt, max_new_tokens, noise, accept_top_k, eos_token):
    def drawn(row, number):
        mass = row.double().softmax(-1).cumsum(-1)
        return int((mass <= number * mass[-1]).sum())
    response, sources = [], []
    for position in range(len(prompt), len(prompt) + max_new_tokens):
        tokens = torch.tensor([list(prompt) + response])
        rows = [model(tokens).detach()[0, -1] for model in (student, teacher)]
        token = drawn(rows[0], noise(position, "student"))
        kept = sum(value > rows[1][token] for value in rows[1]) < accept_top_k
        response.append(token if kept else drawn(rows[1], noise(position, "teacher")))
        sources.append("student" if kept else "teacher")
        if response[-1] == eos_token:
            break
    return response, sources
'''),
    (8, "loops", '''
def countable(proposed, positions, end, eos_token):
    counts = torch.zeros_like(proposed, dtype=torch.bool)
    for row in range(len(proposed)):
        for j in range(proposed.size(1)):
            if positions[row, j] >= end[row, 0]:
                break
            counts[row, j] = True
            if proposed[row, j] == eos_token:
                break
    return counts
def verify(stays, counts):
    accepted, judged, rejected = [], [], torch.zeros_like(stays)
    for row, (stay, count) in enumerate(zip(stays.tolist(), counts.tolist())):
        kept = 0
        while kept < len(stay) and count[kept] and stay[kept]:
            kept += 1
        replaced = kept < len(stay) and count[kept]
        if replaced:
            rejected[row, kept] = True
        accepted.append(kept)
        judged.append(kept + replaced)
    return torch.tensor(accepted), torch.tensor(judged), rejected
def commit(proposed, judged, rejected, replacement, start, eos_token):
    written = proposed * ~rejected + replacement * rejected
    finished = [eos_token in row[:count].tolist() for row, count in zip(written, judged.tolist())]
    return written, start + judged, torch.tensor(finished)
'''),
    (9, "row by row", '''
def interleaved_in_blocks(student, teacher, prompts, max_new_tokens, noise, gamma, accept_top_k, eos_token):
    from sample import draw
    responses, names = [], []
    for number, prompt in enumerate(prompts):
        sequence, sources, end = list(prompt), [], len(prompt) + max_new_tokens
        caches = [model.new_cache(1, end + gamma) for model in (student, teacher)]
        with torch.no_grad():
            for model, cache in zip((student, teacher), caches):
                if len(prompt) > 1:
                    model(torch.tensor([prompt[:-1]]), cache)
            while len(sequence) < end and sequence[-1:] != [eos_token] or not sources:
                start, block = len(sequence), [sequence[-1]]
                for j in range(gamma):
                    row = student(torch.tensor([block[-1:]]), caches[0])[0, -1]
                    block.append(int(draw(row, torch.tensor(noise(number, start + j, "student")))))
                rows = teacher(torch.tensor([block[:-1]]), caches[1])[0]
                for j, token in enumerate(block[1:]):
                    if start + j >= end:
                        break
                    kept = int((rows[j] > rows[j, token]).sum()) < accept_top_k
                    if not kept:
                        token = int(draw(rows[j], torch.tensor(noise(number, start + j, "teacher"))))
                    sequence.append(token)
                    sources.append("student" if kept else "teacher")
                    if not kept or token == eos_token:
                        break
                for cache in caches:
                    cache.roll_back(torch.tensor([len(sequence) - 1]), high=len(sequence) - 1)
        responses.append(sequence[len(prompt):])
        names.append(sources)
    return responses, names
'''),
    (10, "in log space", '''
def speculative_stays(draft_logits, target_logits, proposed, uniform):
    gap = target_logits.log_softmax(-1) - draft_logits.log_softmax(-1)
    return uniform.log() < gap.gather(-1, proposed[..., None])[..., 0].clamp(max=0) + 1e-7
def residual(draft_logits, target_logits):
    draft, target = draft_logits.double().softmax(-1), target_logits.double().softmax(-1)
    left = target - torch.minimum(draft, target)
    equal = left.sum(-1, keepdim=True) == 0
    left = left + equal * target
    return left / left.sum(-1, keepdim=True)
'''),
    (11, "row by row, its own losses", '''
def on_policy_step(student, teacher, prompts, max_new_tokens, optimizer, rate, generator, eos_token):
    from model import clip_and_step
    from sample import generate
    rollout = generate(student, prompts, max_new_tokens, generator=generator, eos_token=eos_token)
    student.zero_grad()
    terms, count = [], 0
    with torch.no_grad():
        wanted = teacher(rollout.tokens[:, :-1]).double().log_softmax(-1)
    found = student(rollout.tokens[:, :-1]).double().log_softmax(-1)
    for row in range(len(prompts)):
        start, stop = rollout.prompt_len[row] - 1, rollout.lengths[row] - 1
        own, others = found[row, start:stop], wanted[row, start:stop]
        terms.append((others.exp() * (others - own)).sum())
        count += int(stop - start)
    loss = sum(terms) / count
    loss.backward()
    clip_and_step(student, optimizer, rate)
    return float(loss.detach())
'''),
    (12, "its own losses", '''
def skd_step(student, teacher, prompts, max_new_tokens, optimizer, rate, generator, eos_token, accept_top_k):
    from model import clip_and_step
    from sample import interleaved_generate
    rollout = interleaved_generate(student, teacher, prompts, max_new_tokens, generator=generator, gamma=2,
                                   accept_top_k=accept_top_k, eos_token=eos_token)
    inside = rollout.response_mask[:, 1:]
    wanted = rollout.teacher_logits[inside].log_softmax(-1)
    own = student(rollout.tokens)[:, :-1][inside].log_softmax(-1)
    loss = torch.nn.functional.kl_div(own, wanted, reduction="batchmean", log_target=True)
    for weight in student.parameters():
        weight.grad = None
    loss.backward()
    clip_and_step(student, optimizer, rate)
    return loss.item()
'''),
    (13, "a mask, in float64", '''
def with_tail(model_logits, ids):
    logits = model_logits.double()
    total = logits.logsumexp(-1, keepdim=True)
    chosen = torch.zeros_like(logits, dtype=torch.bool).scatter(-1, ids, True)
    tail = logits.masked_fill(chosen, -torch.inf).logsumexp(-1, keepdim=True)
    return torch.cat([logits.gather(-1, ids), tail], -1) - total
def sparse_forward_kl(student_logits, teacher_logits, top_k):
    with torch.no_grad():
        ids = teacher_logits.argsort(-1, descending=True)[..., :top_k]
        wanted = with_tail(teacher_logits, ids)
    return torch.nn.functional.kl_div(with_tail(student_logits, ids), wanted, reduction="none", log_target=True).sum(-1)
'''),
    (14, "added to slices", '''
def lora_qkv(linear, x, down_query, up_query, down_value, up_value, scale):
    C = x.size(-1)
    nothing = torch.zeros_like(x)
    added = torch.cat([(x @ down_query) @ up_query, nothing, (x @ down_value) @ up_value], 2)
    return linear(x) + added * scale
'''),
    (15, "by index", '''
def okd_losses(student_logits, teacher_logits, targets, mask, alpha=0.5):
    student, teacher = student_logits[mask], teacher_logits[mask]
    kl_div = lambda own, other: torch.nn.functional.kl_div(
        own.log_softmax(-1), other.detach().log_softmax(-1), reduction="batchmean", log_target=True)
    references = torch.nn.functional.cross_entropy(teacher, targets[mask])
    return kl_div(student, teacher), alpha * kl_div(teacher, student) + (1 - alpha) * references
'''),
    (16, "the closed form", '''
def best_gamma(accepted, judged, call_cost):
    a, best = (accepted + 7) / (judged + 8), None
    for gamma in (1, 2, 4, 8, 16, 32):
        written = gamma if a == 1 else (1 - a ** gamma) / (1 - a)
        cost = (gamma + call_cost) / written
        if best is None or cost < best[0]:
            best = cost, gamma
    return best[1]
'''),
    (17, "numpy", '''
def student_t_interval(values):
    import numpy
    from lab.statistics import T_975
    values = numpy.asarray(values, dtype=float)
    if values.size == 1:
        return values[0], None
    return values.mean(), T_975[values.size - 2] * values.std(ddof=1) / numpy.sqrt(values.size)
def paired_interval(scores_a, scores_b):
    common = [key for key in scores_a if key in scores_b]
    pairs = {pair for pair, _ in common}
    gaps = []
    for one in pairs:
        seeds = [seed for pair, seed in common if pair == one]
        gaps.append(sum(scores_a[one, seed] for seed in seeds) / len(seeds)
                    - sum(scores_b[one, seed] for seed in seeds) / len(seeds))
    return student_t_interval(gaps)
'''),
)  # fmt: skip


# Tests that find no fault, for exercises 18 to 26: (number or None for each, mistake, law, body of the function).
WRONG_TESTS = (
    (None, "asserts nothing", "fails_on_the_fault", "pass"),
    (None, "fails always", "passes_on_the_code", "assert False"),
    (None, "cannot be run", "passes_on_the_code", "from losses import nothing"),
    (18, "no id of 0 in the text", "fails_on_the_fault", """
from sample import DATASET, rollout_from_ids
mask = rollout_from_ids([[5, 6], [7]], [[3, 1, 4], [2, 2]], [DATASET, DATASET], None).response_mask
assert mask.tolist() == [[False, False, True, True, True], [False, True, True, False, False]]"""),
    (18, "a 0 inside, none at the end", "finds_it_written_otherwise", """
from sample import DATASET, rollout_from_ids
assert rollout_from_ids([[5]], [[3, 0, 4]], [DATASET], None).response_mask.sum() == 3"""),
    (19, "equal models only", "fails_on_the_fault", """
from losses import forward_kl
assert forward_kl(torch.zeros(1, 2, 5), torch.zeros(1, 2, 5)).abs().max() < 1e-6"""),
    (20, "both directions positive", "fails_on_the_fault", """
from losses import forward_kl
assert forward_kl(torch.tensor([[[0.0, 1.0]]]), torch.tensor([[[1.0, 0.0]]])) > 0"""),
    (20, "compares the two directions", "finds_it_written_otherwise", """
from losses import forward_kl, reverse_kl
models = torch.tensor([[[0.2, 0.5, 0.3]]]).log(), torch.tensor([[[0.6, 0.3, 0.1]]]).log()
assert (forward_kl(*models) - reverse_kl(*models)).abs() > 0.01"""),
    (20, "reads the source", "asks_what_it_does", """
import inspect, losses
assert "return kl(teacher_logprobs, student_logprobs)" in inspect.getsource(losses.forward_kl)
assert "(first_logprobs.exp() *" in inspect.getsource(losses.kl)"""),
    (21, "accepts every token", "fails_on_the_fault", """
from model import GPT, GPTConfig
from sample import interleaved_generate
models = [GPT(GPTConfig(11, 24, 1, 2, 8), torch.Generator().manual_seed(seed)) for seed in (1, 2)]
rollout = interleaved_generate(*models, [[1]], 9, generator=torch.Generator().manual_seed(0), accept_top_k=11)
assert rollout.counts()["replaced"] == 0"""),
    (22, "the shape alone", "fails_on_the_fault", """
from model import GPT, GPTConfig
from sample import interleaved_generate
models = [GPT(GPTConfig(11, 24, 1, 2, 8), torch.Generator().manual_seed(seed)) for seed in (1, 2)]
rollout = interleaved_generate(*models, [[1]], 9, generator=torch.Generator().manual_seed(0), accept_top_k=3)
assert rollout.teacher_logits.shape == (1, 9, 11)"""),
    (23, "that the teacher matters", "finds_it_written_otherwise", """
from losses import Tokens, policy_gradient
def gradient(teacher):
    student = torch.tensor([[[0.2, 0.5, 0.3]]]).log().requires_grad_()
    yes = torch.ones(1, 1, dtype=torch.bool)
    policy_gradient(student, teacher, Tokens(torch.tensor([[1]]), yes, yes)).sum().backward()
    return student.grad
assert not torch.equal(gradient(torch.zeros(1, 1, 3)), gradient(torch.tensor([[[1.0, 0.0, 0.0]]])))"""),
    (23, "that there is a gradient", "fails_on_the_fault", """
from losses import Tokens, policy_gradient
student = torch.tensor([[[0.2, 0.5, 0.3]]]).log().requires_grad_()
yes = torch.ones(1, 1, dtype=torch.bool)
policy_gradient(student, torch.zeros(1, 1, 3), Tokens(torch.tensor([[1]]), yes, yes)).sum().backward()
assert student.grad.abs().sum() > 0"""),
    (24, "models that agree on the best token", "fails_on_the_fault", """
from losses import top_k_kl
logits = torch.tensor([[[5.0, 1.0, 0.0]]])
assert top_k_kl(logits, logits + 1, top_k=1).abs().max() < 1e-5"""),
    (25, "a response that was cut off", "fails_on_the_fault", """
from sample import DATASET, rollout_from_ids
assert rollout_from_ids([[5]], [[3, 4]], [DATASET], None, eos_token=2).response_mask.sum() == 2"""),
    (26, "equal seeds only", "fails_on_the_fault", """
from model import GPT, GPTConfig
from sample import generate
model = GPT(GPTConfig(11, 24, 1, 2, 8))
first, second = (generate(model, [[1]], 9, generator=torch.Generator().manual_seed(1)).responses() for _ in range(2))
assert first == second"""),
)  # fmt: skip
