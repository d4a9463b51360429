"""The laws of the exercises that build something; grade.py tries each on the student's code.

A law is a function law_NN_name(code, made): `code` has the student's functions, `made` makes inputs and knows what the
reference returns. Its docstring is what a student is told when it is broken. definition_NN_name is a law without which
the exercise is worth nothing: values on fresh inputs, so that a table of the visible ones scores zero. They are tried
in the order of this file, and the first broken one is the one that a message names. Inputs keep mistakes apart: V is
not T, no constant equals a dimension, rows are ragged, padding is not 0.
"""

import copy
import math
import re

import torch

from course import Broken, Law, check, described, same
from sample import generate, interleaved_generate

# ---------------------------------------------------------------------------------------------------------------------
# 1. The masked mean.


def law_01_padding(code, made):
    """What stands outside the mask changes nothing, not even nan."""
    mask, per_token = made.mask(3, 8), made.normal(3, 8)
    clean = torch.as_tensor(code.masked_mean(per_token.masked_fill(~mask, 0.0), mask)).detach()
    for garbage in (7.5, math.inf, math.nan):
        found = code.masked_mean(per_token.masked_fill(~mask, garbage), mask)
        same(found, clean, f"per_token (3, 8) with {garbage} outside a ragged mask")


def law_01_every_token_counts_the_same(code, made):
    """reduction "token": the mean over all tokens of the batch, not of means of rows, nor per row or per place."""
    mask, per_token = made.mask(3, 8), made.normal(3, 8) + 1.5
    total = sum(per_token[row, column].item() for row, column in mask.nonzero().tolist())
    same(code.masked_mean(per_token, mask), total / len(mask.nonzero()), "per_token (3, 8), rows of other lengths")


def law_01_every_response_counts_the_same(code, made):
    """reduction "sequence": the mean of each row, then the mean over the rows that have a token."""
    mask, per_token = made.mask(4, 9), made.normal(4, 9) + 1.5
    mask[2] = False
    about = 'per_token (4, 9), reduction "sequence", one of the rows without a token'
    same(
        code.masked_mean(per_token, mask, "sequence"), made.expected("masked_mean", per_token, mask, "sequence"), about
    )


def law_01_nothing_to_average(code, made):
    """A mask without True gives 0, and backward() works."""
    per_token = made.normal(2, 5).requires_grad_()
    for reduction in ("token", "sequence"):
        found = code.masked_mean(per_token, torch.zeros(2, 5, dtype=torch.bool), reduction)
        same(found, 0.0, f'a mask that is False everywhere, reduction "{reduction}"')
        check(found.requires_grad, "a mask that is False everywhere: the result has no graph")


def definition_01_values(code, made):
    """The values of both reductions on fresh inputs."""
    for B, T in ((3, 7), (5, 11)):
        mask, per_token = made.mask(B, T), made.normal(B, T, spread=3.0)
        for reduction in ("token", "sequence"):
            expected = made.expected("masked_mean", per_token, mask, reduction)
            same(code.masked_mean(per_token, mask, reduction), expected, f'per_token ({B}, {T}), "{reduction}"')


# ---------------------------------------------------------------------------------------------------------------------
# 2. Forward and reverse KL.


def law_02_one_value_per_position(code, made):
    """A sum over V, no mean over anything: (B, T, V) becomes (B, T), and tokens that nobody says change nothing."""
    student_logits, teacher_logits = made.logits(2, 3, 7), made.logits(2, 3, 7)
    for name in ("forward_kl", "reverse_kl"):
        found = getattr(code, name)(student_logits, teacher_logits)
        check(found.shape == (2, 3), f"{name} of two (2, 3, 7): found the shape {tuple(found.shape)}")
        wider = [torch.nn.functional.pad(logits, (0, 4), value=-60.0) for logits in (student_logits, teacher_logits)]
        same(
            getattr(code, name)(*wider), found, f"{name}, V = 7, with four more tokens of probability 0 in both models"
        )


def law_02_raw_logits(code, made):
    """Logits are normalised inside: a constant added to all of them changes nothing, and equal models give 0."""
    student_logits, teacher_logits = made.logits(2, 3, 7), made.logits(2, 3, 7)
    for name in ("forward_kl", "reverse_kl"):
        function = getattr(code, name)
        moved = function(student_logits + 3.0, teacher_logits - made.random.uniform(1, 5))
        same(
            moved,
            function(student_logits, teacher_logits).detach(),
            f"{name} with a constant added to all logits",
            1e-4,
        )
        same(function(student_logits, student_logits + 1), torch.zeros(2, 3), f"{name} of a model and itself", 1e-4)


def law_02_teacher_first(code, made):
    """Forward means teacher first: the student pays where the teacher has mass and it has none."""
    even, peaked = torch.zeros(1, 1, 6), torch.zeros(1, 1, 6)
    peaked[..., made.random.randrange(6)] = 9.0 + made.random.random()
    few, many = code.forward_kl(even, peaked), code.forward_kl(peaked, even)
    check(few.item() < math.log(6) < many.item(), "forward_kl between an even model and a peaked one, V = 6")
    few, many = code.reverse_kl(peaked, even), code.reverse_kl(even, peaked)
    check(few.item() < math.log(6) < many.item(), "reverse_kl between an even model and a peaked one, V = 6")


def law_02_log_space(code, made):
    """No log of a softmax, no eps: logits that are far apart give a large, exact and finite loss."""
    for gap in (60.0, 3000.0):
        low = torch.tensor([[[0.0, -gap, -gap]]], requires_grad=True)
        loss = code.forward_kl(low, torch.tensor([[[-gap, 0.0, -gap]]]))
        same(loss, [[gap]], f"forward_kl of logits that are {gap:g} apart", 1e-4)
        (gradient,) = torch.autograd.grad(loss.sum(), low)
        same(gradient, [[[1.0, -1.0, 0.0]]], f"gradient of forward_kl at logits that are {gap:g} apart", 1e-4)


def law_02_student_learns_alone(code, made):
    """The gradient reaches the student only; forward_kl's is the student's probabilities minus the teacher's."""
    for name in ("forward_kl", "reverse_kl"):
        student_logits, teacher_logits = (made.logits(2, 3, 7).requires_grad_() for _ in range(2))
        getattr(code, name)(student_logits, teacher_logits).sum().backward()
        check(
            teacher_logits.grad is None or not teacher_logits.grad.any(),
            f"{name}: the teacher's logits have a gradient",
        )
        check(student_logits.grad is not None, f"{name}: the student's logits have no gradient")
        if name == "forward_kl":
            wanted = student_logits.softmax(-1) - teacher_logits.softmax(-1)
            same(student_logits.grad, wanted.detach(), f"gradient of {name}, logits (2, 3, 7)")


def definition_02_values(code, made):
    """The values of kl, forward_kl and reverse_kl on fresh inputs."""
    for shape in ((2, 3, 7), (1, 5, 4)):
        student_logits, teacher_logits = made.logits(*shape), made.logits(*shape)
        for name in ("forward_kl", "reverse_kl"):
            expected = made.expected(name, student_logits, teacher_logits)
            same(getattr(code, name)(student_logits, teacher_logits), expected, f"{name}, logits {shape}")
        logprobs = student_logits.log_softmax(-1), teacher_logits.log_softmax(-1)
        same(code.kl(*logprobs), made.expected("kl", *logprobs), f"kl, log-probabilities {shape}")


# ---------------------------------------------------------------------------------------------------------------------
# 3. The generalized Jensen-Shannon divergence.


def law_03_ends_are_refused(code, made):
    """At beta 0 and 1 the divergence is 0 for every student: a ValueError, and no clamping in silence."""
    student_logits, teacher_logits = made.logits(1, 2, 5), made.logits(1, 2, 5)
    for beta in (0, 1, -0.1, 1.5):
        try:
            code.generalized_jsd(student_logits, teacher_logits, beta)
        except ValueError:
            continue
        raise Broken(f"beta = {beta}: no ValueError was raised")


def law_03_equal_models(code, made):
    """Equal models give 0, and at beta .5 student and teacher may be exchanged."""
    student_logits, teacher_logits = made.logits(2, 3, 7), made.logits(2, 3, 7)
    for beta in (0.2, 0.5, 0.9):
        found = code.generalized_jsd(student_logits + 1, student_logits, beta)
        same(found, torch.zeros(2, 3), f"a model and itself, beta = {beta}, logits (2, 3, 7)")
    one, other = (
        code.generalized_jsd(student_logits, teacher_logits),
        code.generalized_jsd(teacher_logits, student_logits),
    )
    same(one, torch.as_tensor(other).detach(), "the two models exchanged, beta = 0.5")


def law_03_log_space(code, made):
    """Models that agree on nothing are ln 2 apart at beta .5, however far apart their logits are; the gradient is 0."""
    for gap in (60.0, 3000.0):
        student_logits = torch.tensor([[[0.0, -gap, -gap]]], requires_grad=True)
        loss = code.generalized_jsd(student_logits, torch.tensor([[[-gap, 0.0, -gap]]]))
        same(loss, [[math.log(2)]], f"logits that are {gap:g} apart")
        (gradient,) = torch.autograd.grad(loss.sum(), student_logits)
        same(gradient, torch.zeros(1, 1, 3), f"gradient at logits that are {gap:g} apart", 1e-4)


def law_03_beta_belongs_to_the_teacher(code, made):
    """Divided by beta it tends to forward KL for beta towards 0: the mixture is then nearly the student."""
    student_logits, teacher_logits = made.logits(2, 3, 7, spread=1.0), made.logits(2, 3, 7, spread=1.0)
    forward = made.expected("forward_kl", student_logits, teacher_logits)
    found = code.generalized_jsd(student_logits.double(), teacher_logits.double(), 1e-4) / 1e-4
    same(found, forward, "beta = 0.0001, logits (2, 3, 7)", 0.02)


def law_03_student_learns_alone(code, made):
    """The teacher gets no gradient; the student gets one through the mixture as well: it is the derivative."""
    student_logits, teacher_logits = (made.logits(2, 3, 7, spread=1.0).double().requires_grad_() for _ in range(2))
    code.generalized_jsd(student_logits, teacher_logits, 0.3).sum().backward()
    check(teacher_logits.grad is None or not teacher_logits.grad.any(), "the teacher's logits have a gradient")
    check(student_logits.grad is not None, "the student's logits have no gradient")
    step = 1e-2 * made.normal(2, 3, 7).double()
    with torch.no_grad():
        ahead, behind = (code.generalized_jsd(student_logits + way * step, teacher_logits, 0.3) for way in (1, -1))
    slope = (ahead - behind).sum() / 2
    same((student_logits.grad * step).sum(), slope, "gradient against the difference of two values, beta = 0.3", 1e-4)


def definition_03_values(code, made):
    """The values on fresh inputs."""
    for beta in (0.1, 0.5, 0.85):
        student_logits, teacher_logits = made.logits(2, 3, 7), made.logits(2, 3, 7)
        expected = made.expected("generalized_jsd", student_logits, teacher_logits, beta)
        same(code.generalized_jsd(student_logits, teacher_logits, beta), expected, f"beta = {beta}, logits (2, 3, 7)")


# ---------------------------------------------------------------------------------------------------------------------
# 4. Temperature, top-k and top-p.


def kept(warped):
    """Which tokens a filter left, as sets of ids, row by row."""
    return [
        set(row.isfinite().nonzero()[:, 0].tolist()) for row in torch.as_tensor(warped).reshape(-1, warped.size(-1))
    ]


def shuffled_logits(made, *probs):
    """Logits (V,) of these probabilities in a drawn order, and the ids from the likeliest to the least likely."""
    order = made.random.sample(range(len(probs)), len(probs))
    logits = torch.empty(len(probs))
    logits[order] = torch.tensor(probs).log()
    return logits, order


def law_04_temperature(code, made):
    """Without a filter it is logits / temperature, and the input stays as it was."""
    logits = made.logits(2, 9)
    before = logits.clone()
    for temperature in (0.7, 1.0, 2.5):
        same(code.warp(logits, temperature), before / temperature, f"logits (2, 9), temperature {temperature}")
    code.warp(logits, 1.0, top_k=3, top_p=0.5)
    same(logits, before, "the logits that were given, after a call with top_k 3 and top_p 0.5")


def law_04_ties_stay(code, made):
    """All tokens that tie with the top_k-th stay; a top_k beyond V cuts nothing."""
    logits, order = shuffled_logits(made, 0.4, 0.2, 0.2, 0.1, 0.1)
    check(kept(code.warp(logits[None], top_k=2)) == [set(order[:3])], "five tokens, the second and third tie, top_k 2")
    check(kept(code.warp(logits[None], top_k=8)) == [set(range(5))], "five tokens, top_k 8")


def law_04_nucleus_reaches_its_mass(code, made):
    """top_p keeps the smallest set of likeliest tokens whose mass is at least top_p; the likeliest always stays."""
    for top_p, count in ((0.1, 1), (0.45, 1), (0.6, 2), (0.79, 2), (0.85, 3), (0.99, 4)):
        logits, order = shuffled_logits(made, 0.5, 0.3, 0.15, 0.05)
        found = kept(code.warp(logits[None], top_p=top_p))
        check(found == [set(order[:count])], f"probabilities .5, .3, .15, .05 in a drawn order, top_p {top_p}")


def law_04_top_p_sees_what_top_k_left(code, made):
    """top_p measures the mass after temperature and top_k: what was cut off has none."""
    logits, order = shuffled_logits(made, 0.5, 0.3, 0.15, 0.05)
    found = kept(code.warp(logits[None], top_k=2, top_p=0.6))
    check(found == [set(order[:1])], "probabilities .5, .3, .15, .05 in a drawn order, top_k 2, top_p 0.6")
    found = kept(code.warp(logits[None], temperature=0.5, top_p=0.6))
    check(found == [set(order[:1])], "the same probabilities at temperature 0.5, top_p 0.6")


def definition_04_values(code, made):
    """The values of all filters together on fresh inputs."""
    for temperature, top_k, top_p in ((1.0, 4, None), (0.6, None, 0.8), (1.7, 5, 0.7), (2.0, 3, 0.95)):
        logits = made.logits(2, 3, 9)
        expected = made.expected("warp", logits, temperature, top_k, top_p).exp()
        found = torch.as_tensor(code.warp(logits, temperature, top_k, top_p)).exp()
        same(found, expected, f"logits (2, 3, 9), temperature {temperature}, top_k {top_k}, top_p {top_p}")


# ---------------------------------------------------------------------------------------------------------------------
# 5. One draw from one uniform number.


def law_05_impossible_tokens(code, made):
    """A token of probability 0 is never drawn, not where the number meets a cumulative mass exactly."""
    probs, uniform = torch.tensor([0.0, 0.5, 0.0, 0.5, 0.0]), torch.tensor([1e-7, 0.25, 0.5, 0.75, 0.999999])
    same(code.inverse_cdf(probs, uniform), [1, 1, 3, 3, 3], "probs 0 .5 0 .5 0, uniform .0000001 .25 .5 .75 .999999")


def law_05_any_total(code, made):
    """Probabilities that do not sum to 1 are meant in proportion."""
    probs, uniform = made.uniform(2, 7), made.uniform(2, 5)
    expected = code.inverse_cdf(probs / probs.sum(-1, keepdim=True), uniform)
    for factor in (0.3, 4.0):
        same(code.inverse_cdf(factor * probs, uniform), torch.as_tensor(expected), f"probs (2, 7) times {factor}")


def law_05_frequencies(code, made):
    """Evenly spaced numbers draw every token as often as its probability says."""
    probs = made.logits(1, 6, spread=1.0).softmax(-1)
    uniform = (torch.arange(5000) + 0.5)[None] / 5000
    drawn = torch.as_tensor(code.inverse_cdf(probs, uniform))
    check(drawn.shape == uniform.shape, f"probs (1, 6), uniform (1, 5000): found the shape {tuple(drawn.shape)}")
    counts = torch.stack([(drawn == token).sum() for token in range(6)])
    same(counts / 5000, probs[0], "6 tokens, 5000 evenly spaced numbers", 1e-3)


def definition_05_values(code, made):
    """The very tokens on fresh inputs."""
    probs, uniform = made.logits(2, 3, 7).softmax(-1), made.uniform(2, 3, 5)
    found = code.inverse_cdf(probs, uniform)
    check(found.dtype == torch.long, f"found {found.dtype}: ids are long")
    same(found, made.expected("inverse_cdf", probs, uniform), "probs (2, 3, 7), uniform (2, 3, 5)")


# ---------------------------------------------------------------------------------------------------------------------
# 6. The rank of a token, and the rule of acceptance.


def law_06_ties(code, made):
    """Only strictly larger logits count: among equal ones every token has rank 0, and one accepted accepts all."""
    logits = torch.full((4, 6), made.random.gauss(0, 1))
    tokens = made.tokens(6, 4)
    same(code.rank(logits, tokens), torch.zeros(4, dtype=torch.long), "rank of four rows of six equal logits")
    same(code.accepted_by_topk(logits, tokens, 1), torch.ones(4, dtype=torch.bool), "six equal logits, accept_top_k 1")


def law_06_as_many_as_it_says(code, made):
    """Without ties accept_top_k of V tokens are accepted: 0 none, V all."""
    logits = made.logits(1, 7).expand(7, 7)
    for accept_top_k in (0, 1, 3, 7):
        found = torch.as_tensor(code.accepted_by_topk(logits, torch.arange(7), accept_top_k))
        check(found.dtype == torch.bool, f"accepted_by_topk: found {found.dtype}, a bool per proposal is wanted")
        check(int(found.sum()) == accept_top_k, f"all of 7 tokens proposed, accept_top_k {accept_top_k}")


def law_06_largest_first(code, made):
    """The likeliest token has rank 0, the least likely V - 1."""
    logits = made.logits(5, 7)
    same(code.rank(logits, logits.argmax(-1)), torch.zeros(5, dtype=torch.long), "rank of the argmax, logits (5, 7)")
    same(code.rank(logits, logits.argmin(-1)), torch.full((5,), 6), "rank of the argmin, logits (5, 7)")


def definition_06_values(code, made):
    """The values of both on fresh inputs."""
    logits, tokens = made.logits(2, 3, 9), made.tokens(9, 2, 3)
    same(code.rank(logits, tokens), made.expected("rank", logits, tokens), "rank, logits (2, 3, 9)")
    for accept_top_k in (2, 4, 6):
        expected = made.expected("accepted_by_topk", logits, tokens, accept_top_k)
        same(
            code.accepted_by_topk(logits, tokens, accept_top_k),
            expected,
            f"logits (2, 3, 9), accept_top_k {accept_top_k}",
        )


# ---------------------------------------------------------------------------------------------------------------------
# 7. Interleaved sampling, one token at a time.


class Bigram:
    """A model whose row depends on the last token alone, and which remembers what it was given."""

    def __init__(self, table):
        self.table, self.read = table, []

    def __call__(self, tokens):
        self.read.append(tokens[0].tolist())
        return self.table[tokens]


def words(response, sources):
    """A response and its sources as comparable lists."""
    return [[int(token) for token in response], [str(source) for source in sources]]


def sampled(code, made, accept_top_k, V=9, prompt=(4, 2, 7), budget=8, eos_token=None, about=""):
    """Broken unless the student's response and sources are the reference's, for two drawn bigram models."""
    tables, noise = (made.logits(V, V), made.logits(V, V)), made.noise()

    def run(one):
        return words(*one.interleaved(*map(Bigram, tables), list(prompt), budget, noise, accept_top_k, eos_token))

    expected = made.outcome(run)
    about = (
        f"{about}prompt {list(prompt)}, V = {V}, max_new_tokens {budget}, accept_top_k {accept_top_k}, end {eos_token}"
    )
    found = run(code)
    check(len(found[0]) == len(found[1]), f"{about}: {len(found[0])} tokens, {len(found[1])} sources")
    check(len(found[0]) == len(expected[0]), f"{about}: found {len(found[0])} tokens, which is another number")
    check(found[0] == torch.as_tensor(expected[0]).tolist(), f"{about}: the tokens")
    check(found[1] == expected[1], f"{about}: the sources")


def law_07_all_accepted(code, made):
    """With accept_top_k = V the response is the student's alone, drawn by the student's noise at each position."""
    sampled(code, made, 9)


def law_07_none_accepted(code, made):
    """With accept_top_k = 0 every token is the teacher's own draw, by the teacher's noise."""
    sampled(code, made, 0)


def law_07_judged_is_what_was_drawn(code, made):
    """The teacher judges the very token that was drawn, and nothing is drawn twice."""
    V = 6
    teacher = torch.zeros(V, V)
    teacher[:, 3] = 5.0  # with accept_top_k 1 it accepts 3 alone
    calls = []

    def noise(position, role):
        calls.append((position, role))
        return 0.5

    student = Bigram(made.logits(V, V, spread=0.3))
    response, sources = words(*code.interleaved(student, Bigram(teacher), [1, 5], 6, noise, 1, None))
    about = "a teacher that accepts the token 3 alone, V = 6, six new tokens"
    check(all(token == 3 for token, source in zip(response, sources) if source == "student"), about)
    check(len(calls) == len(set(calls)), f"{about}: a number of noise was asked for twice")


def law_07_written_back(code, made):
    """Both models read the sequence as it stands, replacements included; no token is read before it is written."""
    models, noise = [Bigram(made.logits(7, 7)) for _ in range(2)], made.noise()
    response, sources = words(*code.interleaved(*models, [3, 1], 9, noise, 2, None))
    check("teacher" in sources, "accept_top_k 2 of V = 7, nine new tokens: the teacher replaced nothing")
    whole = [3, 1, *response]
    for name, model in zip(("student", "teacher"), models):
        about = f"what the {name} was given, prompt [3, 1], nine new tokens"
        check(all(read == whole[: len(read)] for read in model.read), about)
        check(max(map(len, model.read)) == len(whole) - 1, f"{about}: not up to the last token but one")


def law_07_end_token(code, made):
    """The end token is kept and ends the response, whoever wrote it; one that was proposed and rejected does not."""
    V, end = 5, 2
    says_end, never_ends = torch.zeros(V, V), torch.zeros(V, V)
    says_end[:, end], never_ends[:, end] = 9.0, -9.0
    noise = made.noise()
    for accept_top_k, teacher, length in ((V, never_ends, 1), (0, says_end, 1), (1, never_ends, 6)):
        response, sources = words(
            *code.interleaved(Bigram(says_end), Bigram(teacher), [4], 6, noise, accept_top_k, end)
        )
        about = (
            f"a student that proposes the end token, accept_top_k {accept_top_k}, teacher {teacher[0, end]:+g} on it"
        )
        check(len(response) == len(sources) == length, f"{about}: found {len(response)} tokens")
        check((response[-1] == end) == (length == 1), f"{about}: the last token")


def definition_07_values(code, made):
    """The very tokens and sources on fresh models."""
    for accept_top_k in (1, 3, 5):
        sampled(code, made, accept_top_k, budget=12, eos_token=0)
    models, noise = (made.gpt(), made.gpt()), made.noise()

    def run(one):
        return words(*one.interleaved(*models, [1, 9, 4], 10, noise, 3, None))

    check([row for row in run(code)] == as_lists(made.outcome(run)), "two GPTs, prompt [1, 9, 4], accept_top_k 3")


def as_lists(values):
    """Stored values as plain lists again."""
    if isinstance(values, torch.Tensor):
        return values.tolist()
    return [as_lists(value) for value in values] if isinstance(values, list) else values


# ---------------------------------------------------------------------------------------------------------------------
# 8. One block.

YES_NO = {"T": True, "F": False}


def flags(*rows):
    """Rows of T and F as a bool tensor."""
    return torch.tensor([[YES_NO[flag] for flag in row] for row in rows])


def law_08_leading_ones_stay(code, made):
    """What stands behind the first rejected proposal counts no more, accepted or not."""
    accepted, judged, rejected = code.verify(flags("TTFT", "FTTT", "TFFF"), flags("TTTT", "TTTT", "TTTT"))
    about = "verify: stays TTFT, FTTT, TFFF, all of which count"
    same(accepted, [2, 0, 1], f"{about}: accepted")
    same(judged, [3, 1, 2], f"{about}: judged")
    same(rejected, flags("FFTF", "TFFF", "FTFF"), f"{about}: rejected")


def law_08_no_bonus_token(code, made):
    """A block that is accepted as a whole adds its proposals alone; where what counts ends, nothing is rejected."""
    accepted, judged, rejected = code.verify(flags("TTTTT", "TTTTT", "TTFTT"), flags("TTTTT", "TTTFF", "TTFFF"))
    about = "verify: stays TTTTT, TTTTT, TTFTT; counts TTTTT, TTTFF, TTFFF"
    same(accepted, [5, 3, 2], f"{about}: accepted")
    same(judged, [5, 3, 2], f"{about}: judged")
    same(rejected, flags("FFFFF", "FFFFF", "FFFFF"), f"{about}: rejected")


def law_08_budget_and_end(code, made):
    """Proposals count up to the row's end, and up to a proposed end token, which counts itself."""
    proposed, positions = torch.tensor([[5, 0, 7, 8], [0, 0, 3, 1], [4, 6, 2, 0]]), torch.arange(3, 7).expand(3, 4)
    about = "countable: proposals 5 0 7 8, 0 0 3 1, 4 6 2 0 at positions 3 to 6, end token 0"
    found = code.countable(proposed, positions, torch.tensor([[6], [6], [5]]), 0)
    same(found, flags("TTFF", "TFFF", "TTFF"), f"{about}, rows that end at 6, 6, 5")
    found = code.countable(proposed, positions, torch.tensor([[6], [9], [3]]), None)
    same(found, flags("TTTF", "TTTT", "FFFF"), f"{about.split(', end')[0]}, no end token, rows that end at 6, 9, 3")


def law_08_replacement_in_its_place(code, made):
    """The replacement takes the rejected proposal's place; a rejected end token ends nothing, a written one does."""
    proposed, replacement = (
        torch.tensor([[5, 0, 7], [5, 6, 7], [0, 5, 6], [5, 7, 0]]),
        torch.tensor([[3], [0], [9], [4]]),
    )
    rejected, judged = flags("FTF", "FTF", "FFF", "FTF"), torch.tensor([2, 2, 1, 2])
    written, length, finished = code.commit(proposed, judged, rejected, replacement, torch.tensor([4, 6, 3, 8]), 0)
    about = "commit: proposals 507, 567, 056, 570, replaced at the second place but in row three, by 3, 0, 9, 4"
    inside = [torch.as_tensor(row)[:count] for row, count in zip(written, judged.tolist())]
    same(torch.cat(inside), [5, 3, 5, 0, 0, 5, 4], f"{about}: written")
    same(length, [6, 8, 4, 10], f"{about}: length")
    same(finished, torch.tensor([False, True, True, False]), f"{about}, end token 0: finished")


def definition_08_values(code, made):
    """All three on fresh blocks."""
    n, G = 7, 5
    proposed, stays = made.tokens(4, n, G), made.uniform(n, G) < 0.75
    start, budget, replacement = made.tokens(9, n) + 3, made.tokens(7, n) + 1, made.tokens(4, n, 1)
    positions, end = start[:, None] + torch.arange(G), (start + budget)[:, None]
    counts = made.expected("countable", proposed, positions, end, 1)
    same(code.countable(proposed, positions, end, 1), counts, "countable: 7 rows of 5 proposals, end token 1")
    verdict = made.expected("verify", stays, counts)
    for name, found, expected in zip(("accepted", "judged", "rejected"), code.verify(stays, counts), verdict):
        same(found, expected, f"verify: 7 rows of 5 proposals: {name}")
    arguments = proposed, verdict[1], verdict[2], replacement, start, 1
    written, length, finished = code.commit(*arguments)
    expected = made.expected("commit", *arguments)
    inside = torch.arange(G) < verdict[1][:, None]
    same(torch.as_tensor(written)[inside], expected[0][inside], "commit: 7 rows of 5 proposals: written")
    same(length, expected[1], "commit: 7 rows of 5 proposals: length")
    same(finished, expected[2], "commit: 7 rows of 5 proposals: finished")


# ---------------------------------------------------------------------------------------------------------------------
# 9. In blocks, with caches.


class Watched:
    """A GPT that remembers how many tokens it was given in each forward, and which."""

    def __init__(self, model):
        self.model, self.widths, self.read = model, [], []

    def __call__(self, tokens, cache=None, *more, **keywords):
        self.widths.append(tokens.size(1))
        self.read.append(tokens.tolist())
        return self.model(tokens, cache, *more, **keywords)

    def __getattr__(self, name):
        return getattr(self.model, name)


def in_blocks(one, models, prompts, budget, noise, gamma, accept_top_k, eos_token):
    """The rows of a call as lists of [response, sources]."""
    responses, sources = one.interleaved_in_blocks(*models, prompts, budget, noise, gamma, accept_top_k, eos_token)
    return [words(*row) for row in zip(responses, sources)]


PROMPTS = [[1, 9, 4], [6], [2, 2, 8, 3, 5]]


def law_09_every_block_length(code, made):
    """The same tokens for every gamma: a block proposes what single steps would have proposed."""
    models, noise = (made.gpt(), made.gpt()), made.noise()
    rows = [in_blocks(code, models, PROMPTS[:1], 9, noise, gamma, 3, None) for gamma in (1, 2, 5)]
    check(len(rows[0][0][0]) == 9, "one prompt of three tokens, max_new_tokens 9, gamma 1: the number of tokens")
    for gamma, row in zip((2, 5), rows[1:]):
        check(row == rows[0], f"one prompt of three tokens, gamma {gamma} against gamma 1, accept_top_k 3")


def law_09_alone_as_in_a_batch(code, made):
    """A row gets in a batch what it gets alone, whatever the others do: longer prompts, an earlier end."""
    models, noise, end = (made.gpt(), made.gpt()), made.noise(), made.random.randrange(11)
    together = in_blocks(code, models, PROMPTS, 10, noise, 3, 3, end)
    check(len(together) == 3, "three prompts: the number of responses")
    for number, prompt in enumerate(PROMPTS):

        def own(row, position, role, number=number):
            return noise(number, position, role)

        alone = in_blocks(code, models, [prompt], 10, own, 3, 3, end)
        check(
            alone[0] == together[number], f"prompts of 3, 1 and 5 tokens, gamma 3, end token {end}: row {number} alone"
        )


def law_09_caches_are_used(code, made):
    """Behind the prompts no token is read again: the teacher reads a block at once, the student token by token."""
    student, teacher, noise = Watched(made.gpt()), Watched(made.gpt()), made.noise()
    rows = in_blocks(code, (student, teacher), PROMPTS[:1], 12, noise, 4, 8, None)
    written = len(rows[0][0])
    about = "one prompt of three tokens, twelve new ones, gamma 4, accept_top_k 8 of V = 11"
    check(max(teacher.widths) <= 5, f"{about}: the teacher was given {max(teacher.widths)} tokens in one forward")
    check(len(teacher.widths) < written, f"{about}: {len(teacher.widths)} forwards of the teacher")
    check(max(student.widths) <= 3, f"{about}: the student was given {max(student.widths)} tokens in one forward")


def definition_09_values(code, made):
    """The very tokens and sources on fresh models, with an end token and without."""
    for gamma, accept_top_k, end in ((3, 3, None), (4, 2, 7), (2, 5, 0)):
        models, noise = (made.gpt(), made.gpt()), made.noise()

        def run(one):
            return in_blocks(one, models, PROMPTS, 9, noise, gamma, accept_top_k, end)

        about = f"prompts of 3, 1 and 5 tokens, gamma {gamma}, accept_top_k {accept_top_k}, end token {end}"
        check(run(code) == as_lists(made.outcome(run)), about)


# ---------------------------------------------------------------------------------------------------------------------
# 10. Lossless speculative decoding.


def law_10_the_target_wants_more(code, made):
    """A token that the target likes at least as well as the draft stays, whatever the number."""
    draft_logits, target_logits = made.logits(1, 7), made.logits(1, 7)
    wanted = (target_logits.softmax(-1) > draft_logits.softmax(-1))[0].nonzero()[:, 0]
    shape = len(wanted), 7
    for number in (0.001, 0.999):
        uniform = torch.full((len(wanted),), number)
        found = code.speculative_stays(draft_logits.expand(shape), target_logits.expand(shape), wanted, uniform)
        same(found, torch.ones(len(wanted), dtype=torch.bool), f"tokens likelier under the target, uniform {number}")


def law_10_residual_is_a_distribution(code, made):
    """What a rejected token is redrawn from sums to 1, and holds nothing that the draft says too often."""
    draft_logits, target_logits = made.logits(3, 7), made.logits(3, 7)
    found = torch.as_tensor(code.residual(draft_logits, target_logits))
    same(found.sum(-1), torch.ones(3), "residual of logits (3, 7): its sum")
    too_often = draft_logits.softmax(-1) >= target_logits.softmax(-1)
    same(found[too_often], torch.zeros(int(too_often.sum())), "residual where the draft is above the target")


def law_10_equal_models(code, made):
    """Equal models reject nothing; should rounding do so, the target's own distribution is right, not nan."""
    logits = made.logits(2, 7)
    same(code.residual(logits, logits), logits.softmax(-1), "residual of a model and itself, logits (2, 7)")
    found = code.speculative_stays(logits, logits, made.tokens(7, 2), torch.full((2,), 0.999))
    same(found, torch.ones(2, dtype=torch.bool), "a model and itself, uniform .999")


def law_10_lossless(code, made):
    """Accepted and redrawn together are distributed as the target's own tokens."""
    draft_logits, target_logits = made.logits(5, spread=1.0), made.logits(5, spread=1.0)
    uniform = ((torch.arange(2000) + 0.5) / 2000).expand(5, 2000)
    shape, proposed = (5, 2000, 5), torch.arange(5)[:, None].expand(5, 2000)
    stays = code.speculative_stays(draft_logits.expand(shape), target_logits.expand(shape), proposed, uniform)
    draft = draft_logits.softmax(-1)
    kept = draft * torch.as_tensor(stays).float().mean(1)  # (V,)
    written = kept + (1 - kept.sum()) * torch.as_tensor(code.residual(draft_logits, target_logits))
    same(written, target_logits.softmax(-1), "five tokens, 2000 evenly spaced numbers each", 2e-3)


def definition_10_values(code, made):
    """The values of both on fresh inputs."""
    draft_logits, target_logits, uniform = made.logits(4, 5, 7), made.logits(4, 5, 7), made.uniform(4, 5)
    arguments = draft_logits, target_logits, made.tokens(7, 4, 5), uniform
    same(code.speculative_stays(*arguments), made.expected("speculative_stays", *arguments), "stays, logits (4, 5, 7)")
    same(code.residual(*arguments[:2]), made.expected("residual", *arguments[:2]), "residual, logits (4, 5, 7)")


# ---------------------------------------------------------------------------------------------------------------------
# 11 and 12. One step of on-policy distillation, and one of SKD.


def weights_of(model):
    """All weights in one vector."""
    return torch.cat([weight.detach().flatten() for weight in model.parameters()])


class Echo:
    """A teacher that says what a model says, plus `extra` (T, V) on its rows: what differs is known exactly."""

    def __init__(self, model, extra=None):
        self.model, self.extra = model, extra

    def __call__(self, tokens, *more, **keywords):
        logits = self.model(tokens, *more, **keywords)
        return logits if self.extra is None else logits + self.extra[: logits.size(1)]

    def __getattr__(self, name):
        return getattr(self.model, name)


def step_of(one, name, made_student, teacher, prompts, budget=6, eos_token=3, dirty=False, **more):
    """One step on a copy of the student -> (loss, its weights afterwards)."""
    student = copy.deepcopy(made_student)
    if dirty:
        for weight in student.parameters():
            weight.grad = torch.ones_like(weight)
    optimizer, generator = torch.optim.SGD(student.parameters(), 0.1), torch.Generator().manual_seed(5)
    loss = getattr(one, name)(student, teacher, prompts, budget, optimizer, 0.1, generator, eos_token, **more)
    check(isinstance(loss, float), f"{name} returned {described(loss)}: a float is wanted")
    return loss, weights_of(student)


def stands_still(code, name, made, **more):
    """A teacher that says what the student says leaves it as it is; one that differs moves it."""
    student = made.gpt()
    twin, other = copy.deepcopy(student), made.gpt()
    loss, weights = step_of(code, name, student, twin, PROMPTS, **more)
    same([loss], [0.0], "a teacher that is a copy of the student: the loss", 1e-4)
    same(weights, weights_of(student), "a teacher that is a copy of the student: the student's weights after the step")
    loss, weights = step_of(code, name, student, other, PROMPTS, **more)
    check(not torch.equal(weights, weights_of(student)), "another teacher: the student did not move")


def teacher_is_left_alone(code, name, made, **more):
    """The teacher's weights neither move nor get a gradient."""
    student, teacher = made.gpt(), made.gpt()
    before = weights_of(teacher)
    step_of(code, name, student, teacher, PROMPTS, **more)
    same(weights_of(teacher), before, "the teacher's weights after the step")
    check(all(weight.grad is None for weight in teacher.parameters()), "the teacher's weights have a gradient")


def gradients_are_fresh(code, name, made, **more):
    """Gradients that earlier steps left do not count."""
    student, teacher = made.gpt(), made.gpt()
    clean, dirty = (step_of(code, name, student, teacher, PROMPTS, dirty=dirty, **more) for dirty in (False, True))
    same(dirty[1], clean[1], "a student with gradients of 1 before the step: its weights afterwards")


def law_11_a_copy_teaches_nothing(code, made):
    """A teacher that says what the student says gives loss 0; row t of both is compared at the same place."""
    stands_still(code, "on_policy_step", made)


def law_11_prompts_and_padding_do_not_count(code, made):
    """A teacher that differs on the prompt alone, or behind the response, teaches nothing."""
    student = made.gpt()
    prompt, budget = [1, 9, 4, 7], 3
    extra = made.logits(24, 11)
    extra[3:] = 0.0  # row t predicts token t + 1: rows 0 to 2 predict prompt tokens
    loss, weights = step_of(code, "on_policy_step", student, Echo(student, extra), [prompt], budget, None)
    same([loss], [0.0], "a teacher that differs from the student before the last prompt token only", 1e-4)
    extra = made.logits(24, 11)
    extra[: 3 + budget] = 0.0
    prompts = [prompt, [2, 5, 8, 6, 10, 1, 2]]
    loss, weights = step_of(code, "on_policy_step", student, Shorter(student, extra), prompts, budget, None)
    same([loss], [0.0], "a teacher that differs behind the response of the shorter row only", 1e-4)


class Shorter(Echo):
    """An Echo whose extra falls on the first row of the batch alone."""

    def __call__(self, tokens, *more, **keywords):
        logits = self.model(tokens, *more, **keywords)
        added = torch.zeros_like(logits)
        added[0] = self.extra[: logits.size(1)]
        return logits + added


def law_11_the_end_token_counts(code, made):
    """The first and the last token of a response, the end token too, are learned."""
    student = made.gpt()
    with torch.no_grad():
        student.norm.bias.copy_(3.0 * student.token_embedding.weight[3])  # the end token is likely
    seen = Watched(copy.deepcopy(student))
    step_of(code, "on_policy_step", student, seen, [[1, 9, 4, 7]])
    length = max(seen.widths)  # rows that the teacher gave
    for place, name in ((3, "first"), (length - 1, "last")):
        extra = torch.zeros(24, 11)
        extra[place] = made.logits(11)
        loss, _ = step_of(code, "on_policy_step", student, Echo(student, extra), [[1, 9, 4, 7]])
        check(loss > 1e-3, f"a teacher that differs at the {name} token of the response only: the loss is {loss:.0e}")


def law_11_teacher_is_left_alone(code, made):
    """The teacher's weights neither move nor get a gradient."""
    teacher_is_left_alone(code, "on_policy_step", made)


def law_11_gradients_are_fresh(code, made):
    """Gradients that earlier steps left do not count."""
    gradients_are_fresh(code, "on_policy_step", made)


def law_11_the_student_writes(code, made):
    """The responses are the student's own samples, and the teacher reads them."""
    student, teacher, noise = made.gpt(), Watched(made.gpt()), torch.Generator().manual_seed(5)
    rows = generate(student, PROMPTS, 6, generator=noise, eos_token=3)
    step_of(code, "on_policy_step", student, teacher, PROMPTS)
    wanted = [prompt + response for prompt, response in zip(PROMPTS, rows.responses())]
    for number, row in enumerate(wanted):
        read = [batch[number][: len(row) - 1] for batch in teacher.read if len(batch) == 3]
        check(row[:-1] in read, f"what the teacher was given for row {number} of prompts of 3, 1 and 5 tokens")


def definition_11_values(code, made):
    """Loss and weights after one step on fresh models."""
    for budget, eos_token in ((6, 3), (9, None)):
        student, teacher = made.gpt(), made.gpt(width=12)

        def run(one):
            return list(step_of(one, "on_policy_step", student, teacher, PROMPTS, budget, eos_token))

        found, expected = run(code), made.outcome(run)
        about = f"prompts of 3, 1 and 5 tokens, max_new_tokens {budget}, end token {eos_token}"
        same([found[0]], [float(expected[0])], f"{about}: the loss", 1e-4)
        same(found[1], expected[1], f"{about}: the student's weights", 1e-4)


def law_12_a_copy_teaches_nothing(code, made):
    """A teacher that says what the student says gives loss 0; row t of both is compared at the same place."""
    stands_still(code, "skd_step", made, accept_top_k=4)


def law_12_teacher_is_left_alone(code, made):
    """The teacher's weights neither move nor get a gradient."""
    teacher_is_left_alone(code, "skd_step", made, accept_top_k=4)


def law_12_gradients_are_fresh(code, made):
    """Gradients that earlier steps left do not count."""
    gradients_are_fresh(code, "skd_step", made, accept_top_k=4)


def law_12_replacements_are_learned_from(code, made):
    """Replaced tokens stand in the text that is learned, and count like kept ones: accept_top_k 0 and V differ."""
    student, teacher = made.gpt(), made.gpt(width=12)
    for accept_top_k in (0, 2, 11):

        def run(one):
            return step_of(one, "skd_step", student, teacher, PROMPTS, 7, None, accept_top_k=accept_top_k)[0]

        same([run(code)], [float(made.outcome(run))], f"accept_top_k {accept_top_k} of V = 11: the loss", 1e-4)


def law_12_the_teacher_reads_once(code, made):
    """The teacher's logits come with the responses: it reads nothing again."""
    student, teacher, again = made.gpt(), Watched(made.gpt()), Watched(made.gpt())
    again.model.load_state_dict(teacher.model.state_dict())
    step_of(code, "skd_step", student, teacher, PROMPTS, accept_top_k=4)
    noise = torch.Generator().manual_seed(5)
    interleaved_generate(student, again, PROMPTS, 6, generator=noise, accept_top_k=4, eos_token=3)
    found = len(teacher.widths)
    check(found <= len(again.widths), f"prompts of 3, 1 and 5 tokens: {found} forwards of the teacher in one step")


def definition_12_values(code, made):
    """Loss and weights after one step on fresh models."""
    student, teacher = made.gpt(), made.gpt(width=12)

    def run(one):
        return list(step_of(one, "skd_step", student, teacher, PROMPTS, accept_top_k=3))

    found, expected = run(code), made.outcome(run)
    same([found[0]], [float(expected[0])], "prompts of 3, 1 and 5 tokens, accept_top_k 3, end token 3: the loss", 1e-4)
    same(found[1], expected[1], "prompts of 3, 1 and 5 tokens, accept_top_k 3, end token 3: the weights", 1e-4)


# ---------------------------------------------------------------------------------------------------------------------
# 13. Sparse targets, with a tail.


def law_13_sums_to_one(code, made):
    """k tokens and a tail are one distribution: the k probabilities as they are, the tail all others together."""
    logits, ids = made.logits(2, 3, 9), torch.tensor([1, 4, 8, 0]).expand(2, 3, 4)
    found = torch.as_tensor(code.with_tail(logits, ids))
    check(found.shape == (2, 3, 5), f"logits (2, 3, 9), four ids: found the shape {tuple(found.shape)}")
    same(found.exp().sum(-1), torch.ones(2, 3), "logits (2, 3, 9), four ids: the sum of the probabilities")
    same(found[..., :4].exp(), logits.softmax(-1).gather(-1, ids), "logits (2, 3, 9), four ids: their probabilities")


def law_13_a_thin_tail_is_exact(code, made):
    """The tail stays in log space: where all others have e^-40 it is that, not log(0)."""
    logits = torch.full((1, 5), -40.0)
    logits[0, 2] = 0.0
    same(
        code.with_tail(logits, torch.tensor([[2]]))[0, 1], math.log(4) - 40, "one token of 0, four of -40, ids 2", 1e-4
    )


def law_13_the_teacher_chooses(code, made):
    """The top_k tokens are the teacher's: where it is sure, one token is enough to see a student that is not."""
    teacher_logits, student_logits = torch.zeros(1, 1, 8), torch.zeros(1, 1, 8)
    best, other = made.random.sample(range(8), 2)
    teacher_logits[..., best], student_logits[..., other] = 12.0, 6.0
    loss = code.sparse_forward_kl(student_logits, teacher_logits, 1)
    check(loss.item() > 5, "a teacher that is sure of one token, a student that is sure of another, top_k 1 of V = 8")


def law_13_at_most_the_whole(code, made):
    """It grows with top_k up to the whole forward KL, which it is at V - 1; equal models give 0."""
    student_logits, teacher_logits = made.logits(2, 3, 7), made.logits(2, 3, 7)
    whole = made.expected("forward_kl", student_logits, teacher_logits)
    losses = [torch.as_tensor(code.sparse_forward_kl(student_logits, teacher_logits, top_k)) for top_k in (1, 3, 5, 6)]
    check(losses[0].shape == (2, 3), f"logits (2, 3, 7): found the shape {tuple(losses[0].shape)}")
    for fewer, more, top_k in zip(losses, losses[1:], (1, 3, 5)):
        check(bool((fewer <= more + 1e-5).all()), f"logits (2, 3, 7): top_k {top_k} against a larger one")
    same(losses[-1], whole, "logits (2, 3, 7), top_k 6")
    same(code.sparse_forward_kl(student_logits, student_logits, 3), torch.zeros(2, 3), "a model and itself, top_k 3")


def law_13_student_learns_alone(code, made):
    """The teacher gets no gradient, the student one in all logits: the tail is learned, too."""
    student_logits, teacher_logits = (made.logits(2, 3, 7).requires_grad_() for _ in range(2))
    code.sparse_forward_kl(student_logits, teacher_logits, 3).sum().backward()
    check(teacher_logits.grad is None or not teacher_logits.grad.any(), "the teacher's logits have a gradient")
    check(student_logits.grad is not None and bool((student_logits.grad != 0).all()), "logits without a gradient")


def definition_13_values(code, made):
    """The values of both on fresh inputs."""
    for top_k in (1, 2, 4):
        student_logits, teacher_logits = made.logits(2, 3, 9), made.logits(2, 3, 9)
        ids = made.tokens(9, 2, 3, 1) if top_k == 1 else torch.arange(top_k).expand(2, 3, top_k)
        same(
            code.with_tail(student_logits, ids),
            made.expected("with_tail", student_logits, ids),
            f"with_tail, k = {top_k}",
        )
        expected = made.expected("sparse_forward_kl", student_logits, teacher_logits, top_k)
        same(
            code.sparse_forward_kl(student_logits, teacher_logits, top_k), expected, f"logits (2, 3, 9), top_k {top_k}"
        )


# ---------------------------------------------------------------------------------------------------------------------
# 14. LoRA on the queries and values.


def adapted(made, C=6, r=2):
    """(linear, x, the four matrices) of drawn numbers; x is (2, 3, C)."""
    linear = torch.nn.Linear(C, 3 * C)
    with torch.no_grad():
        linear.weight.copy_(made.normal(3 * C, C))
        linear.bias.copy_(made.normal(3 * C))
    return linear, made.normal(2, 3, C), [made.normal(C, r), made.normal(r, C), made.normal(C, r), made.normal(r, C)]


def law_14_starts_as_the_identity(code, made):
    """With up matrices of 0 nothing changes, not a bit."""
    linear, x, (down_query, up_query, down_value, up_value) = adapted(made)
    found = code.lora_qkv(linear, x, down_query, 0 * up_query, down_value, 0 * up_value, 1.5)
    check(torch.equal(found, linear(x)), "x (2, 3, 6), rank 2, up matrices of 0")


def law_14_keys_stay(code, made):
    """The keys, the middle third, are the frozen projection's; queries and values are not."""
    linear, x, matrices = adapted(made)
    found, plain = code.lora_qkv(linear, x, *matrices, 1.5), linear(x)
    check(found.shape == plain.shape, f"x (2, 3, 6): found the shape {tuple(found.shape)}")
    same(found[..., 6:12], plain[..., 6:12].detach(), "x (2, 3, 6), rank 2: the keys")
    for name, third in (("queries", slice(0, 6)), ("values", slice(12, 18))):
        check(
            not torch.allclose(found[..., third], plain[..., third]), f"x (2, 3, 6), rank 2: the {name} did not change"
        )


def law_14_each_its_own(code, made):
    """The queries' matrices change the queries alone, the values' the values alone."""
    linear, x, (down_query, up_query, down_value, up_value) = adapted(made)
    one = code.lora_qkv(linear, x, down_query, up_query, down_value, 0 * up_value, 0.7)
    same(one[..., 6:], linear(x)[..., 6:].detach(), "up_value of 0: keys and values")
    other = code.lora_qkv(linear, x, down_query, 0 * up_query, down_value, up_value, 0.7)
    same(other[..., :12], linear(x)[..., :12].detach(), "up_query of 0: queries and keys")


def law_14_scale(code, made):
    """What is added grows in proportion to the scale, in queries and values."""
    linear, x, matrices = adapted(made)
    once, thrice = (code.lora_qkv(linear, x, *matrices, scale) - linear(x) for scale in (0.5, 1.5))
    same(thrice, 3 * once.detach(), "x (2, 3, 6): what scale 1.5 adds against three times what .5 adds", 1e-4)


def definition_14_values(code, made):
    """The values on fresh inputs."""
    for C, r in ((6, 2), (4, 3)):
        linear, x, matrices = adapted(made, C, r)
        expected = made.expected("lora_qkv", linear, x, *matrices, 0.7)
        same(code.lora_qkv(linear, x, *matrices, 0.7), expected, f"C = {C}, rank {r}, scale 0.7")


# ---------------------------------------------------------------------------------------------------------------------
# 15. OKD's two losses.


def okd_inputs(made, B=3, T=8, V=5):
    """(student_logits, teacher_logits, targets, mask), both logits with gradients."""
    logits = [made.logits(B, T, V).requires_grad_() for _ in range(2)]
    return *logits, made.tokens(V, B, T), made.mask(B, T)


def law_15_each_side_alone(code, made):
    """Each loss moves its own model: the other one is a constant."""
    student_logits, teacher_logits, targets, mask = okd_inputs(made)
    for name, at, own, other in (
        ("student", 0, student_logits, teacher_logits),
        ("teacher", 1, teacher_logits, student_logits),
    ):
        loss = code.okd_losses(student_logits, teacher_logits, targets, mask)[at]
        gradients = torch.autograd.grad(loss, (own, other), allow_unused=True)
        check(
            gradients[0] is not None and bool(gradients[0].any()), f"the {name}'s loss gives its own logits no gradient"
        )
        check(gradients[1] is None or not gradients[1].any(), f"the {name}'s loss gives the other model a gradient")


def law_15_feedback_is_weighted_by_the_student(code, made):
    """The feedback is KL(student || teacher): the teacher pays where the student has mass and it has none."""
    V = 6
    even, peaked = torch.zeros(1, 4, V), torch.zeros(1, 4, V)
    peaked[..., made.random.randrange(V)] = 9.0
    targets, mask = made.tokens(V, 1, 4), torch.ones(1, 4, dtype=torch.bool)
    sure_teacher = code.okd_losses(even, peaked, targets, mask, 1.0)
    sure_student = code.okd_losses(peaked, even, targets, mask, 1.0)
    check(
        sure_student[1] < math.log(V) < sure_teacher[1], "teacher's loss at alpha 1, one model even, the other peaked"
    )
    check(sure_teacher[0] < math.log(V) < sure_student[0], "student's loss, one model even, the other peaked")


def law_15_the_ends_of_alpha(code, made):
    """At alpha 0 the student has no influence on the teacher; at alpha 1 the targets have none."""
    student_logits, teacher_logits, targets, mask = okd_inputs(made)
    one, other = (
        code.okd_losses(logits, teacher_logits, targets, mask, 0.0)[1] for logits in (student_logits, -student_logits)
    )
    same(one, other.detach(), "teacher's loss at alpha 0 for two students")
    one, other = (code.okd_losses(student_logits, teacher_logits, ids, mask, 1.0)[1] for ids in (targets, 4 - targets))
    same(one, other.detach(), "teacher's loss at alpha 1 for two sets of targets")


def law_15_only_the_response(code, made):
    """What stands outside the mask changes neither loss, not even nan."""
    student_logits, teacher_logits, targets, mask = okd_inputs(made)
    clean = code.okd_losses(student_logits, teacher_logits, targets, mask, 0.4)
    outside = ~mask[..., None]
    for garbage in (7.0, math.nan):
        dirty = [logits.masked_fill(outside, garbage) for logits in (student_logits, teacher_logits)]
        found = code.okd_losses(*dirty, targets.masked_fill(~mask, 0), mask, 0.4)
        for name, ours, wanted in zip(("student", "teacher"), found, clean):
            same(ours, wanted.detach(), f"{garbage} outside the mask, alpha 0.4: the {name}'s loss")


def definition_15_values(code, made):
    """Both losses on fresh inputs."""
    for alpha in (0.0, 0.3, 0.8, 1.0):
        inputs = okd_inputs(made)
        found, expected = code.okd_losses(*inputs, alpha), made.expected("okd_losses", *inputs, alpha)
        for name, ours, wanted in zip(("student", "teacher"), found, expected):
            same(ours, wanted, f"logits (3, 8, 5), alpha {alpha}: the {name}'s loss")


# ---------------------------------------------------------------------------------------------------------------------
# 16. The block length by acceptance.


def law_16_extremes(code, made):
    """Where nearly all is rejected and a call costs little, single tokens are best; where all is accepted, 32."""
    same([code.best_gamma(0, 500, 1.0)], [1], "accepted 0 of 500, call_cost 1")
    same([code.best_gamma(5000, 5000, 2.0)], [32], "accepted 5000 of 5000, call_cost 2")


def law_16_nothing_judged(code, made):
    """Before anything was judged there is an answer, too."""
    same([code.best_gamma(0, 0, 2.0)], [4], "accepted 0, judged 0, call_cost 2")


def law_16_costly_calls_want_long_blocks(code, made):
    """The block never gets shorter where a call costs more, or more is accepted."""
    judged = made.random.randint(100, 300)
    for accepted in (judged // 2, judged * 3 // 4):
        found = [code.best_gamma(accepted, judged, cost) for cost in (0.5, 2.0, 8.0, 40.0)]
        check(found == sorted(found), f"accepted {accepted} of {judged}, call_cost .5, 2, 8, 40")
    found = [code.best_gamma(share * judged // 10, judged, 3.0) for share in (1, 5, 8, 10)]
    check(found == sorted(found), f"1, 5, 8, 10 tenths of {judged} accepted, call_cost 3")


def definition_16_values(code, made):
    """The value on fresh numbers."""
    for _ in range(60):
        judged = made.random.randint(0, 400)
        accepted, cost = round(judged * made.random.random() ** 0.3), made.random.choice((0.5, 1.0, 2.0, 5.0, 12.0))
        expected = made.expected("best_gamma", accepted, judged, cost)
        same(
            [code.best_gamma(accepted, judged, cost)],
            [int(expected)],
            f"accepted {accepted} of {judged}, call_cost {cost}",
        )


# ---------------------------------------------------------------------------------------------------------------------
# 17. An interval for a paired difference.


def close(found, expected, about):
    """Broken unless (mean, half width) is as expected; None stays None."""
    check(
        isinstance(found, tuple | list) and len(found) == 2,
        f"{about}: found {described(found)}, two numbers are wanted",
    )
    for name, ours, wanted in zip(("mean", "half width"), found, expected):
        check((ours is None) == (wanted is None), f"{about}: the {name}")
        if wanted is not None:
            same([float(ours)], [float(wanted)], f"{about}: the {name}")


def law_17_a_single_value(code, made):
    """One value has a mean and no interval."""
    value = made.random.gauss(0, 1)
    close(code.student_t_interval([value]), (value, None), "a single value")
    close(code.paired_interval({(1, 1): value}, {(1, 1): 0.0}), (value, None), "one pair with one seed")


def law_17_two_values(code, made):
    """Two values that are 2 apart: the half width is t with one degree of freedom, 12.706205."""
    low = made.random.gauss(0, 1)
    close(code.student_t_interval([low, low + 2]), (low + 1, 12.706205), "two values that are 2 apart")


def law_17_only_common_runs(code, made):
    """Runs that one method lacks are left out."""
    scores_a = {(pair, 1): made.random.random() for pair in range(5)}
    scores_b = {(pair, 1): made.random.random() for pair in range(5)}
    expected = code.paired_interval(scores_a, scores_b)
    found = code.paired_interval(scores_a | {(9, 1): 50.0, (2, 7): 9.0}, scores_b | {(8, 1): -50.0})
    close(found, expected, "five common runs, two more of a, one more of b")


def law_17_the_pair_is_the_unit(code, made):
    """More seeds of a pair that say the same make the interval no narrower, and weigh the pair no heavier."""
    gaps = [made.random.gauss(0.1, 0.2) for _ in range(4)]
    once = {(pair, 1): gap for pair, gap in enumerate(gaps)}
    often = once | {(0, seed): gaps[0] for seed in range(2, 9)}
    expected = code.paired_interval(once, dict.fromkeys(once, 0.0))
    close(code.paired_interval(often, dict.fromkeys(often, 0.0)), expected, "four pairs, eight seeds of the first")


def law_17_paired(code, made):
    """What a pair does to both methods cancels."""
    scores_b = {(pair, 1): made.random.random() for pair in range(6)}
    scores_a = {key: score + 0.03 for key, score in scores_b.items()}
    close(code.paired_interval(scores_a, scores_b), (0.03, 0.0), "six pairs, a always .03 above b")


def definition_17_values(code, made):
    """Both on fresh numbers."""
    for n in (3, 5, 9):
        values = [made.random.gauss(0.3, 1.0) for _ in range(n)]
        close(code.student_t_interval(values), made.expected("student_t_interval", values), f"{n} values")
        a, b = ({(pair, seed): made.random.random() for pair in range(n) for seed in (1, 2)} for _ in range(2))
        close(code.paired_interval(a, b), made.expected("paired_interval", a, b), f"{n} pairs of two seeds")


# ---------------------------------------------------------------------------------------------------------------------


def laws_of(number):
    """The laws of an exercise, in the order of this file."""
    found = []
    for name, function in globals().items():
        kind, _, rest = name.partition("_")
        if kind in ("law", "definition") and rest.startswith(f"{number:02}_"):
            says = re.sub(r"\s+", " ", function.__doc__)
            found.append(Law(name, says, kind == "definition", function))
    return found


__all__ = ["Broken", "laws_of"]
