"""The laws of sample.py: what each sampler's tokens are distributed as, and that nothing else about a call shows.

Three kinds of proof. Equality: tiny float64 models, noise keyed by (row, position, role), so that block size, batch,
padding and cache must not change one token. Law: sequences of two or three tokens are enumerated with the models' own
probabilities and compared by chi-square, at a seed that is fixed and a false-alarm probability below 1e-6 per test.
Scripts: GPTs whose weights spell out which token comes at which position, for the ends of rows and blocks.
"""

import dataclasses
import functools
import inspect
import itertools
import math
import random
import types

import adapters
import pytest
import torch
from pretend import gpu
from tiny import matrix

import sample
from lab import arguments, command_line
from model import GPT, GPTConfig, KVCache, OnlineTeacher
from sample import PROMPT, STUDENT, TEACHER

FALSE_ALARM = 1e-6


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def sharpen(model):
    """Give all matrices the deviation .4: clearly different rows, whatever the initial weights of a model are."""
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() > 1:
                weight.mul_(0.4 / weight.std())
    return model


def make_pair(seed=0, vocab_size=9, block_size=24, dtype=torch.float64):
    """A student and a larger teacher that disagree clearly; float64 so that block width cannot flip a near tie."""
    student = sharpen(adapters.make_gpt(vocab_size, block_size, 1, 2, 8, seed=2 * seed))
    teacher = sharpen(adapters.make_gpt(vocab_size, block_size, 2, 2, 12, seed=2 * seed + 1))
    return student.to(dtype), teacher.to(dtype)


def random_prompts(seed, number, vocab_size=9, shortest=1, longest=9):
    chance = random.Random(seed)
    return [[chance.randrange(vocab_size) for _ in range(chance.randint(shortest, longest))] for _ in range(number)]


def sources_of(rollout):
    """The sources of the responses as lists."""
    rows = zip(rollout.source.tolist(), rollout.prompt_len.tolist(), rollout.lengths.tolist())
    return [row[start:stop] for row, start, stop in rows]


def full_rows(model, prompt, response):
    """(L, V): the row that predicts each response token, from one uncached forward pass over prompt + response."""
    rows = adapters.model_logits(model, torch.tensor([prompt + response]))[0]
    return rows[len(prompt) - 1 : len(prompt) + len(response) - 1]


# ---------------------------------------------------------------------------------------------------------------------
# The laws, written out with plain probabilities: nothing here calls the code under test.


def plain_warp(row, temperature=1.0, top_k=None, top_p=None):
    """Probabilities (V,) of one row after temperature, top-k and top-p, by loops over sorted tokens."""
    row = row.double()
    if temperature == 0:
        return torch.nn.functional.one_hot(row.argmax(), len(row)).double()
    probs = (row / temperature).softmax(-1)
    if top_k is not None:
        bar = sorted(probs.tolist(), reverse=True)[min(top_k, len(probs)) - 1]
        probs = torch.tensor([prob if prob >= bar else 0.0 for prob in probs.tolist()], dtype=torch.float64)
        probs = probs / probs.sum()
    if top_p is not None:
        kept, mass = torch.zeros_like(probs), 0.0
        for token in sorted(range(len(probs)), key=lambda token: -probs[token].item()):
            kept[token], mass = probs[token], mass + probs[token].item()
            if mass >= top_p:
                break
        probs = kept / kept.sum()
    return probs


def acceptance(accept_rule, teacher_row, accept_top_k=25, position=0, **rule):
    """(V,) the probability 0..1 that each token is accepted at this position of a response,
    straight from the rule's definition."""
    probs = teacher_row.double().softmax(-1).tolist()
    ranks = [sum(other > prob for other in probs) for prob in probs]
    entropy = -sum(prob * math.log(prob) for prob in probs if prob > 0)
    epsilon = rule.get("accept_epsilon", 0.3)
    bar = min(epsilon**2, epsilon * math.exp(-entropy))
    definitions = {
        "topk": lambda v: ranks[v] < accept_top_k,
        "topk_along": lambda v: ranks[v] < along(accept_top_k, position, **rule),
        "topp": lambda v: sum(prob for prob in probs if prob > probs[v]) < rule.get("accept_top_p", 0.9),
        "minprob": lambda v: probs[v] >= rule.get("accept_min_prob", 0.05),
        "typical": lambda v: probs[v] > bar,
        "argmax": lambda v: ranks[v] == 0,
        "all": lambda v: True,
        "none": lambda v: False,
        "random": lambda v: 1 - rule.get("replace_rate", 0.05),
    }
    return torch.tensor([float(definitions[accept_rule](v)) for v in range(len(probs))], dtype=torch.float64)


def along(accept_top_k, position, first=1.0, last=0.2, along=32):
    """What topk_along's K is at this position."""
    return accept_top_k * (last if position >= along else first + (last - first) * position / along)


def interleaved_law(
    student_row, teacher_row, accept_rule="topk", accept_top_k=25, replace="sample", student_temperature=1.0,
    student_top_p=None, teacher_temperature=1.0, teacher_top_p=None, accept_on="raw", judge_fresh=False, **rule,
):  # fmt: skip
    """(V,) the law of one emitted token: student(v) a(v) + (1 - sum student a) replacement(v), a = acceptance."""
    student = plain_warp(student_row, student_temperature, top_p=student_top_p)
    replacement = {
        "sample": lambda: plain_warp(teacher_row, teacher_temperature, top_p=teacher_top_p),
        "sample_topk": lambda: plain_warp(teacher_row, teacher_temperature, top_k=max(1, accept_top_k)),
        "argmax": lambda: plain_warp(teacher_row, 0),
    }[replace]()
    accepts = acceptance(accept_rule, teacher_row, accept_top_k, **rule)
    if accept_on == "warped":  # the nucleus, filled up to accept_top_k by whatever torch.topk takes among the rest
        warped = plain_warp(teacher_row, teacher_temperature, top_p=teacher_top_p)
        accepts = torch.zeros_like(warped).scatter(0, warped.topk(accept_top_k).indices, 1.0)
    stays = (student * accepts).sum()
    kept = student * stays if judge_fresh else student * accepts
    return kept + (1 - stays) * replacement


def sequence_law(student, teacher, prompt, length, one_token, eos_token=None):
    """{sequence: probability} of all responses up to `length`, by recursion over prefixes."""
    law, open_prefixes = {}, {(): 1.0}
    for _ in range(length):
        longer = {}
        for prefix, mass in open_prefixes.items():
            tokens = torch.tensor([prompt + list(prefix)])
            rows = [adapters.model_logits(model, tokens)[0, -1] for model in (student, teacher)]
            for token, prob in enumerate(one_token(*rows).tolist()):
                ended = token == eos_token or len(prefix) + 1 == length
                (law if ended else longer)[(*prefix, token)] = mass * prob
        open_prefixes = longer
    assert sum(law.values()) == pytest.approx(1)
    return law


def assert_follows(law, responses):
    """Pearson's chi-square of sampled sequences against the enumerated law; cells expected below 5 are pooled.

    The bound k + 2 sqrt(k x) + 2 x with x = ln(1 / FALSE_ALARM) holds for every number of cells (Laurent and Massart).
    """
    counts = dict.fromkeys(law, 0)
    for response in responses:
        assert law.get(tuple(response), 0) > 0, f"{response} has probability 0"
        counts[tuple(response)] += 1
    statistic, cells, pooled, pooled_expected = 0.0, -1, 0, 0.0
    for sequence, prob in law.items():
        expected = prob * len(responses)
        if expected < 5:
            pooled, pooled_expected = pooled + counts[sequence], pooled_expected + expected
        else:
            statistic, cells = statistic + (counts[sequence] - expected) ** 2 / expected, cells + 1
    if pooled_expected > 5:
        statistic, cells = statistic + (pooled - pooled_expected) ** 2 / pooled_expected, cells + 1
    x = math.log(1 / FALSE_ALARM)
    assert statistic <= cells + 2 * math.sqrt(cells * x) + 2 * x, f"chi-square {statistic:.0f}, {cells} cells"


# ---------------------------------------------------------------------------------------------------------------------
# Noise.


def uniforms(role="student", seed=0, rows=400, positions=250, start=0):
    """(rows, positions) numbers of one call's noise."""
    noise = sample.Noise(generator(seed), torch.arange(start, start + rows))
    return noise(torch.arange(positions).expand(rows, -1), role)


def test_noise_is_a_function_of_key_position_and_role():
    """Any shape, order or subset of rows and positions: the same key, position and role give the same number."""
    table = uniforms()
    keys = torch.tensor([7, 0, 399, 7])
    noise = sample.Noise(generator(0), keys)
    positions = torch.tensor([[3, 249], [0, 0], [125, 3], [249, 3]])
    assert torch.equal(noise(positions, "student"), table[keys[:, None], positions])
    assert torch.equal(noise(positions[:, 0], "student"), table[keys, positions[:, 0]])


@pytest.mark.parametrize("role", list(sample.Noise.ROLES))
def test_noise_is_uniform(role):
    """Kolmogorov-Smirnov distance of 100,000 numbers to the uniform law; odd multiples of 2^-23, so never 0 nor 1."""
    values = uniforms(role).flatten().double().sort().values
    n = len(values)
    steps = torch.arange(n + 1, dtype=torch.float64) / n
    distance = max((steps[1:] - values).max().item(), (values - steps[:-1]).max().item())
    assert distance * math.sqrt(n) < math.sqrt(math.log(2 / FALSE_ALARM) / 2)
    assert (values * 2**23 % 2 == 1).all() and 0 < values.min() and values.max() < 1


def assert_independent(one, other):
    """Joint counts on an 8 x 8 grid follow the product law."""
    cells = (one * 8).long() * 8 + (other * 8).long()
    law = {(cell,): 1 / 64 for cell in range(64)}
    assert_follows(law, [(cell,) for cell in cells.flatten().tolist()])


def test_noise_is_independent():
    """Across roles, neighbouring rows, neighbouring positions, far rows and seeds the numbers are independent."""
    table = uniforms()
    for role in ("teacher", "accept", "fresh"):
        assert_independent(table, uniforms(role))
    assert_independent(uniforms("teacher"), uniforms("accept"))
    assert_independent(table, uniforms(seed=1))
    assert_independent(table[1:], table[:-1])
    assert_independent(table[:, 1:], table[:, :-1])
    assert_independent(table[1:, 1:], table[:-1, :-1])
    assert_independent(table[1:, :-1], table[:-1, 1:])
    assert_independent(table, uniforms(start=2**40))
    # Keys, positions and roles are small neighbouring numbers: their sum alone must not decide.
    for shift in range(1, 4):
        for role in ("teacher", "accept", "fresh"):
            assert_independent(table[:, shift:], uniforms(role)[:, :-shift])


def test_noise_has_no_hidden_repeats():
    """100,000 draws of 2^22 values repeat as often as chance says: no two rows share a stream."""
    rows = uniforms()
    assert len({tuple(row) for row in rows[:, :4].tolist()}) == len(rows)
    distinct, n, m = len(set(rows.flatten().tolist())), rows.numel(), 2**22
    assert distinct == pytest.approx(m * (1 - math.exp(-n / m)), abs=6 * math.sqrt(n * n / (2 * m)))


# ---------------------------------------------------------------------------------------------------------------------
# Warp and draw.


def test_warp_by_example():
    """Probabilities .5 .3 .2: temperature squares or flattens them, top-k and top-p cut the tail, in this order."""
    logits = torch.tensor([0.5, 0.3, 0.2]).log()
    close = lambda warped, expected: warped.softmax(-1).tolist() == pytest.approx(expected, abs=1e-6)  # noqa: E731
    assert close(sample.warp(logits), [0.5, 0.3, 0.2])
    assert close(sample.warp(logits, 0.5), [0.25 / 0.38, 0.09 / 0.38, 0.04 / 0.38])
    assert close(sample.warp(logits, top_k=2), [0.625, 0.375, 0])
    assert close(sample.warp(logits, top_k=1), [1, 0, 0])
    assert close(sample.warp(logits, top_p=0.4), [1, 0, 0])
    assert close(sample.warp(logits, top_p=0.6), [0.625, 0.375, 0])
    assert close(sample.warp(logits, top_p=0.81), [0.5, 0.3, 0.2])
    assert close(sample.warp(logits, top_k=2, top_p=0.6), [1, 0, 0])  # .625 of the top two already suffices
    assert close(sample.warp(logits, top_k=3, top_p=1.0), [0.5, 0.3, 0.2])
    assert close(sample.warp(logits, top_k=99), [0.5, 0.3, 0.2])
    halves = torch.tensor([0.0, 0.0, -200.0])  # .5 .5 0, without rounding
    assert close(sample.warp(halves, top_p=0.5), [1, 0, 0])  # a mass of exactly top_p suffices


def test_top_k_keeps_ties():
    """Ties at the k-th place all stay, wherever they stand."""
    kept = sample.warp(torch.tensor([[1.0, 3.0, 1.0, 2.0, 1.0, 0.0]]), top_k=3) > -math.inf
    assert kept.tolist() == [[True, True, True, True, True, False]]


def test_top_p_is_the_smallest_sufficient_set():
    """Random rows: the kept tokens are the likeliest ones, hold at least top_p, and one fewer would not."""
    logits = 2 * torch.randn(200, 12, generator=generator())
    for top_p in (1e-6, 0.1, 0.5, 0.9, 0.999):
        warped = sample.warp(logits, 1.3, top_p=top_p)
        probs, kept = (logits / 1.3).softmax(-1), warped > -math.inf
        mass = (probs * kept).sum(-1)
        least = probs.masked_fill(~kept, 2).amin(-1)
        assert (mass >= top_p - 1e-6).all() and (mass - least < top_p + 1e-6).all()
        assert (least >= probs.masked_fill(kept, -1).amax(-1)).all()
        assert torch.allclose(warped[kept], (logits / 1.3)[kept])


def test_warp_leaves_its_input_alone():
    """Warping is not in place: the verification rows are training targets afterwards."""
    logits = torch.randn(3, 7, generator=generator())
    before = logits.clone()
    sample.warp(logits, 0.5, top_k=2, top_p=0.5)
    sample.draw(logits, torch.rand(3, generator=generator()), 0.5, 2, 0.5)
    assert torch.equal(logits, before)


def test_draw_inverts_the_cumulative_distribution():
    """The first token whose cumulative mass exceeds the uniform; temperature 0 takes the argmax."""
    logits = torch.tensor([0.5, 0.25, 0.25]).log().expand(6, 3)
    numbers = torch.tensor([2.0**-23, 0.49, 0.51, 0.74, 0.76, 1 - 2.0**-23])
    assert sample.draw(logits, numbers).tolist() == [0, 0, 1, 1, 2, 2]
    assert sample.draw(logits, numbers, 0).tolist() == [0] * 6
    assert sample.draw(logits.flip(-1), numbers, 0).tolist() == [2] * 6


def test_draw_matches_the_softmax():
    """100,000 draws with the noise of the samplers follow plain, tempered and truncated probabilities."""
    row = torch.tensor([0.3, -1.0, 2.0, 0.9, -4.0, 1.1, 0.0])
    numbers = uniforms().flatten()
    everything = {"temperature": 2.0, "top_k": 5, "top_p": 0.7}
    for options in ({}, {"temperature": 0.6}, {"top_k": 3}, {"top_p": 0.8}, everything):
        drawn = sample.draw(row.expand(len(numbers), -1), numbers, **options)
        probs = plain_warp(row, **options)
        assert_follows({(v,): prob for v, prob in enumerate(probs.tolist())}, [(v,) for v in drawn.tolist()])


@pytest.mark.parametrize("vocab_size", [2, 3, 17, 1000, 50257])
def test_draw_never_returns_a_masked_token(vocab_size):
    """Wherever the masked tokens stand and however extreme the uniform, the drawn token has mass."""
    extremes = torch.tensor([2.0**-23, 1.5 * 2.0**-22, 0.5, 1 - 1.5 * 2.0**-22, 1 - 2.0**-23])
    for seed in range(20 if vocab_size < 50000 else 3):
        logits = 5 * torch.randn(1, vocab_size, generator=generator(seed))
        masked = torch.rand(1, vocab_size, generator=generator(seed + 100)) < (0.5, 0.99, 0.0)[seed % 3]
        masked[0, seed % vocab_size] = False
        filtered = logits.masked_fill(masked, -math.inf).expand(5, -1)
        drawn = sample.draw(filtered, extremes)
        assert drawn.max() < vocab_size and not masked[0, drawn].any()
        allowed = sample.warp(logits, top_k=1 + seed % 2, top_p=0.9).expand(5, -1) > -math.inf
        assert allowed.gather(-1, sample.draw(logits.expand(5, -1), extremes, 1.0, 1 + seed % 2, 0.9)[:, None]).all()


@pytest.mark.parametrize("temperature", [1e-40, 1e-38, 5e-324, -1.0, math.nan])
def test_a_temperature_that_float32_cannot_divide_by_is_refused(temperature):
    """Logits divided by it are infinite, and their softmax is nan: one line, from every sampler."""
    logits, uniform = torch.tensor([[1.0, 2.0, 3.0]]), torch.tensor([0.5])
    models = adapters.make_gpt(9, 24, 1, 2, 8, seed=1), adapters.make_gpt(9, 24, 1, 2, 8, seed=2)
    calls = (
        lambda: sample.warp(logits, temperature),
        lambda: sample.draw(logits, uniform, temperature),
        lambda: sample.generate(models[0], [[1]], 4, generator=generator(), temperature=temperature),
        lambda: sample.interleaved_generate(*models, [[1]], 4, generator=generator(), student_temperature=temperature),
        lambda: sample.interleaved_generate(*models, [[1]], 4, generator=generator(), teacher_temperature=temperature),
        lambda: sample.speculative_generate(*models, [[1]], 4, generator=generator(), temperature=temperature),
    )
    for call in calls:
        with pytest.raises(ValueError, match="temperature must be at least 1e-30"):
            call()


def test_the_coldest_temperature_takes_the_argmax():
    """1e-30 is the least that is allowed: logits of 1e8 divided by it are numbers, and the best token is drawn."""
    logits = torch.tensor([[1e8, -1e8, 9e7], [1.0, 2.0, 3.0], [0.0, -3.0, -1.0]])
    for temperature in (1e-30, 1e-20, 1e-6):
        for uniform in (2.0**-23, 0.5, 1 - 2.0**-23):
            drawn = sample.draw(logits, torch.full((3,), uniform), temperature)
            assert drawn.tolist() == logits.argmax(-1).tolist() == [0, 2, 0]


def test_a_drawn_id_is_a_token():
    """A row without numbers has no token to draw. Where asking is free that is an error; on a device, where an id
    behind the vocabulary would end the process, it is a token."""
    rows, uniform = torch.tensor([[0.1, 0.2, 0.3], [math.nan, 1.0, 2.0], [1.0, math.inf, 0.0]]), torch.full((3,), 0.5)
    for row in (1, 2):
        with pytest.raises(ValueError, match="nan or infinite"):
            sample.draw(rows[row : row + 1], uniform[:1])
        with gpu():
            assert 0 <= sample.draw(rows[row : row + 1].to("cuda"), uniform[:1].to("cuda")).item() < 3
    assert sample.draw(rows[:1], uniform[:1]).tolist() == [1]
    with gpu():
        assert sample.draw(rows[:1].to("cuda"), uniform[:1].to("cuda")).tolist() == [1]
    assert sample.draw(rows[:0], uniform[:0]).tolist() == []


def test_rank_counts_strictly_larger_logits():
    """0 for the argmax, ties share the better rank."""
    logits = torch.tensor([[1.0, 3.0, 1.0, 2.0], [0.0, 0.0, 0.0, 0.0]])
    ranks = [sample.rank(logits, torch.full((2,), v)).tolist() for v in range(4)]
    assert ranks == [[2, 0], [0, 0], [2, 0], [1, 0]]


# ---------------------------------------------------------------------------------------------------------------------
# Accept rules.


@pytest.mark.parametrize("accept_rule", list(sample.ACCEPT_RULES))
def test_a_rule_is_a_function_with_ranges(accept_rule):
    """Every row of the table: one bool per proposal for any shape in front; its own numbers by keyword only, each with
    a default that its Range allows and values that it refuses in one line."""
    rule, knobs = sample.ACCEPT_RULES[accept_rule], sample.knobs_of(accept_rule)
    for shape in ((3,), (2, 4)):
        rows, zeros = torch.randn(*shape, 7, generator=generator()), torch.zeros(shape, dtype=torch.long)
        found = rule(rows, zeros, torch.rand(shape, generator=generator(1)), zeros)
        assert found.shape == shape and found.dtype == torch.bool
    arguments = inspect.signature(rule).parameters
    assert list(arguments) == ["teacher_logits", "proposed", "uniform", "position", *knobs]
    for name, allowed in knobs.items():
        allowed.check(name, arguments[name].default)
        for wrong in (-1, math.nan, "1"):
            with pytest.raises(ValueError, match=f"^{name} .*found {wrong}$"):
                allowed.check(name, wrong)


def test_a_new_rule_is_one_function_and_one_row(monkeypatch):
    """Samplers and command line find a rule that is new in the table, its number, and the range of that number."""

    bit = sample.Range("is 0 or 1", lambda value: value in (0, 1))

    def every_other(teacher_logits, proposed, uniform, position, *, phase: bit = 0):
        return (position + phase) % 2 == 0

    monkeypatch.setitem(sample.ACCEPT_RULES, "every_other", every_other)
    (student, teacher), prompts = make_pair(1), random_prompts(1, 3)
    call = functools.partial(sample.interleaved_generate, student, teacher, prompts, 7, accept_rule="every_other")
    for phase in (0, 1):
        rollout = call(generator=generator(), gamma=4, phase=phase)
        assert sources_of(rollout) == [([STUDENT, TEACHER] * 4)[phase:][:7]] * 3
    for wrong, message in (({"phase": 2}, "phase is 0 or 1, found 2"), ({"x": 1}, "no knob 'x': it takes phase")):
        with pytest.raises(ValueError, match=message):
            call(generator=generator(), **wrong)
    parser = command_line.make_parser("train_skd", "", {"skd": None}, ["skd"])
    assert parser.parse_args(["--accept-rule", "every_other"]).accept_rule == "every_other"
    assert "every_other: phase" in " ".join(parser.format_full_help().split())


@pytest.mark.parametrize("kept", [torch.tensor(True), torch.ones(3, 1, dtype=torch.bool), torch.ones(3, 4)])
def test_a_rule_that_returns_no_bool_per_proposal_is_refused(kept, monkeypatch):
    """One line that says what a rule returns, not what torch makes of another shape."""
    monkeypatch.setitem(sample.ACCEPT_RULES, "wrong", lambda teacher_logits, proposed, uniform, position: kept)
    (student, teacher), prompts = make_pair(1), random_prompts(1, 3)
    with pytest.raises(ValueError, match="an accept rule returns one bool per proposal, here .3, 4."):
        sample.interleaved_generate(student, teacher, prompts, 7, accept_rule="wrong", gamma=4, generator=generator())


DEFINED = ("topk", "topk_along", "topp", "minprob", "typical", "argmax", "all", "none", "random")  # in `acceptance`


@pytest.mark.parametrize("accept_rule", DEFINED)
def test_rules_agree_with_their_definition(accept_rule):
    """On random rows every token is judged as the definition says, for any shape in front,
    wherever in the response it stands."""
    knobs = {"topk": {"accept_top_k": 3}, "topp": {"accept_top_p": 0.7}, "minprob": {"accept_min_prob": 0.1}}
    knobs["topk_along"] = {"accept_top_k": 7, "first": 0.31, "last": 2.57, "along": 9.0}
    for hyper in ({}, knobs.get(accept_rule, {})):
        teacher_rows = 2 * torch.randn(6, 5, 30, generator=generator())
        uniform = torch.rand(6, 5, generator=generator(1))
        position = torch.tensor(
            [
                [0, 1, 2, 3, 33],
                [5, 6, 7, 9, 11],
                [13, 14, 15, 17, 19],
                [21, 22, 23, 25, 27],
                [29, 30, 31, 35, 70],
                [9, 8, 4, 1, 0],
            ]
        )
        for token in range(30):
            proposed = torch.full((6, 5), token)
            found = sample.ACCEPT_RULES[accept_rule](teacher_rows, proposed, uniform, position, **hyper)
            assert found.shape == (6, 5) and found.dtype == torch.bool
            for b, g in itertools.product(range(6), range(5)):
                if accept_rule == "random":
                    assert found[b, g] == (uniform[b, g] >= 0.05)
                else:
                    at = int(position[b, g])
                    wanted = acceptance(accept_rule, teacher_rows[b, g], position=at, **hyper)[token] == 1
                    assert found[b, g] == wanted


def test_boundaries_of_the_rules():
    """K counts ties in and 0 takes none; a K between two numbers is the larger; minprob is >=, typical is >, topp looks
    at strictly likelier mass only."""
    row = torch.tensor([[0.5, 0.25, 0.125, 0.125]]).log()

    def accepted(accept_rule, position=0, **hyper):
        rule = sample.ACCEPT_RULES[accept_rule]
        return [
            bool(rule(row, torch.tensor([v]), torch.tensor([0.5]), torch.tensor([position]), **hyper)) for v in range(4)
        ]

    assert accepted("topk", accept_top_k=0) == [False] * 4
    assert accepted("topk", accept_top_k=2) == [True, True, False, False]
    assert accepted("topk", accept_top_k=3) == [True] * 4  # the tie at the third place
    assert accepted("topk", accept_top_k=4) == [True] * 4
    assert accepted("topk", accept_top_k=1.01) == [True, True, False, False]
    # From 4 to 1 within 6 positions: 4, 3.5, 3, 2.5, 2, 1.5, 1, 1, ..: the ranks below it, of 0 1 2 2.
    falling = [
        sum(accepted("topk_along", position, accept_top_k=2, first=2, last=0.5, along=6)) for position in range(9)
    ]
    assert falling == [4, 4, 4, 4, 2, 2, 1, 1, 1]
    assert accepted("topp", accept_top_p=0.45) == [True, False, False, False]
    assert accepted("topp", accept_top_p=0.55) == [True, True, False, False]
    assert accepted("topp", accept_top_p=0.76) == [True] * 4
    assert accepted("minprob", accept_min_prob=0.2499) == [True, True, False, False]
    assert accepted("minprob", accept_min_prob=0.2501) == [True, False, False, False]
    assert accepted("minprob", accept_min_prob=0.0) == [True] * 4
    assert accepted("random", replace_rate=0.5) == [True] * 4  # the uniform is .5: replaced only below the rate
    assert accepted("random", replace_rate=0.51) == [False] * 4
    # The row's entropy is 1.75 ln 2: exp(-H) = .2973. The smaller of eps^2 and eps .2973 is the bar.
    assert accepted("typical", accept_epsilon=0.2) == [True] * 4  # .04
    assert accepted("typical", accept_epsilon=0.5) == [True, True, False, False]  # .1487, where eps^2 would be .25
    assert accepted("typical", accept_epsilon=0.9) == [True, False, False, False]  # .2676
    assert accepted("typical", accept_epsilon=1.7) == [False] * 4  # .5055


# ---------------------------------------------------------------------------------------------------------------------
# The laws of the samplers.

RULES = [
    {"accept_top_k": 2},
    {"accept_top_k": 1, "replace": "argmax"},
    {"accept_top_k": 2, "replace": "sample_topk", "teacher_temperature": 0.7},
    {"accept_rule": "topp", "accept_top_p": 0.6, "teacher_temperature": 1.5},
    {"accept_rule": "minprob", "accept_min_prob": 0.2, "student_temperature": 0.7},
    {"accept_rule": "typical", "accept_epsilon": 0.5},
    {"accept_rule": "argmax", "student_temperature": 1.4},
    {"accept_rule": "all"},
    {"accept_rule": "none"},
    {"accept_rule": "random", "replace_rate": 0.4},
    {"accept_top_k": 2, "student_top_p": 0.8, "teacher_top_p": 0.7},
    {"accept_top_k": 2, "accept_on": "warped", "teacher_top_p": 0.5},
    {"accept_top_k": 3, "accept_on": "warped", "teacher_temperature": 0.5, "teacher_top_p": 0.8},
    {"accept_top_k": 1, "judge_fresh": True},
    {"accept_top_k": 2, "judge_fresh": True, "student_temperature": 0.7},
]


MANY = 8000  # responses per law; --slow takes 100,000


def law_pair():
    """A small float32 pair over 5 tokens, for the tests that count many rollouts."""
    models = (adapters.make_gpt(5, 8, 1, 1, 8, seed=seed) for seed in (8, 9))
    return [sharpen(model) for model in models]


def name_of(options):
    return " ".join(f"{name}={value}" for name, value in options.items())


@pytest.mark.parametrize("options", RULES, ids=name_of)
def test_interleaved_sequence_law(options):
    """Responses of three tokens (end token 4) follow the product of the exact one-token laws."""
    student, teacher = law_pair()
    law = sequence_law(student, teacher, [1, 2], 3, lambda s, t: interleaved_law(s, t, **options), eos_token=4)
    rollout = sample.interleaved_generate(
        student, teacher, [[1, 2]] * MANY, 3, generator=generator(5), gamma=2, eos_token=4, **options
    )
    assert_follows(law, rollout.responses())


@pytest.mark.slow
@pytest.mark.parametrize("gamma", [2, 5])
@pytest.mark.parametrize("options", RULES, ids=name_of)
def test_interleaved_sequence_law_at_length(options, gamma):
    """The same with 100,000 responses, a block within and one beyond the budget."""
    student, teacher = law_pair()
    law = sequence_law(student, teacher, [3], 3, lambda s, t: interleaved_law(s, t, **options), eos_token=0)
    rollout = sample.interleaved_generate(
        student, teacher, [[3]] * 100_000, 3, generator=generator(6), gamma=gamma, eos_token=0, **options
    )
    assert_follows(law, rollout.responses())


def test_the_laws_can_tell_the_rules_apart():
    """The chi-square above has teeth: the law of any other option is rejected for the same responses."""
    student, teacher = law_pair()
    rollout = sample.interleaved_generate(student, teacher, [[1, 2]] * MANY, 2, generator=generator(5), accept_top_k=2)
    others = {"accept_top_k": 1}, {"accept_top_k": 3}, {"accept_top_k": 2, "judge_fresh": True}, {"accept_rule": "all"}
    for wrong in others:
        law = sequence_law(student, teacher, [1, 2], 2, lambda s, t: interleaved_law(s, t, **wrong))
        with pytest.raises(AssertionError, match="chi-square"):
            assert_follows(law, rollout.responses())


def test_generate_sequence_law():
    """One model alone: responses follow its own tempered and truncated probabilities, end token included."""
    student, teacher = law_pair()
    for options in ({}, {"temperature": 0.6}, {"top_k": 2}, {"top_p": 0.7, "temperature": 1.3}):
        law = sequence_law(student, teacher, [1, 2], 3, lambda s, t: plain_warp(t, **options), eos_token=4)
        responses = adapters.generate(teacher, [[1, 2]] * MANY, 3, eos_token=4, seed=3, **options)
        assert_follows(law, responses)


@pytest.mark.parametrize("temperature", [1.0, 0.6])
@pytest.mark.parametrize("gamma", [1, 2, 4])
def test_speculative_sequence_law(gamma, temperature):
    """Lossless speculative decoding: responses follow the target's own law, whatever the draft."""
    draft, target = law_pair()
    law = sequence_law(draft, target, [1, 2], 3, lambda s, t: plain_warp(t, temperature), eos_token=4)
    responses = adapters.speculative_generate(
        draft, target, [[1, 2]] * MANY, 3, gamma=gamma, temperature=temperature, eos_token=4, seed=2
    )
    assert_follows(law, responses)


def test_one_prompt_in_n_rows_is_n_independent_draws():
    """The first token of row 0 says nothing about the first token of row 1."""
    student, teacher = law_pair()
    responses = adapters.interleaved_generate(student, teacher, [[1]] * 2 * MANY, 1, accept_top_k=2, seed=1)[0]
    rows = [adapters.model_logits(model, torch.tensor([[1]]))[0, -1] for model in (student, teacher)]
    one = interleaved_law(*rows, accept_top_k=2).tolist()
    law = {(a, b): one[a] * one[b] for a in range(5) for b in range(5)}
    assert_follows(law, [(a[0], b[0]) for a, b in zip(responses[::2], responses[1::2])])


# ---------------------------------------------------------------------------------------------------------------------
# Equalities: what must not show.


def random_case(seed):
    """A random pair, prompts from one token to nearly the whole block, and random options of interleaved_generate."""
    chance = random.Random(seed)
    student, teacher = make_pair(seed)
    prompts = random_prompts(seed, chance.randint(1, 5), longest=chance.choice((1, 4, 9, 23)))
    if chance.random() < 0.3:
        prompts[0] = (prompts[0] * 23)[:23]  # block_size - 1: room for one token
    rule = chance.choice([{"accept_top_k": k} for k in (0, 1, 2, 3, 5, 9)] + RULES[3:10])
    options = {
        "replace": chance.choice(list(sample.REPLACE_RULES)),
        "student_temperature": chance.choice((0, 0.7, 1.0, 1.5)),
        "teacher_temperature": chance.choice((0, 0.7, 1.0)),
        "eos_token": chance.choice((None, 0, 4, 8)),
        **rule,
    }
    return student, teacher, prompts, chance.choice((1, 2, 5, 12, 40)), options


@pytest.mark.parametrize("seed", range(40))
def test_interleaved_equals_the_reference(seed):
    """Batched, cached and in blocks = one row, one token at a time, no cache: same tokens, same sources."""
    student, teacher, prompts, budget, options = random_case(seed)
    gamma = 1 + seed % 8
    responses, sources = adapters.interleaved_generate(student, teacher, prompts, budget, gamma=gamma, **options)
    for key, prompt in enumerate(prompts):
        expected, expected_sources = sample.interleaved_reference(
            student, teacher, prompt, budget, generator=generator(0), row_key=key, **options
        )
        assert responses[key] == expected
        assert sources[key] == [sample.SOURCE_NAMES[source] for source in expected_sources]


def test_the_random_cases_cover_what_they_should():
    """The comparison above meets replacements, acceptances, end tokens, budgets and full blocks, each many times."""
    seen = dict.fromkeys(("accepted", "replaced", "discarded", "finished", "unfinished", "full"), 0)
    for seed in range(40):
        student, teacher, prompts, budget, options = random_case(seed)
        rollout = sample.interleaved_generate(student, teacher, prompts, budget, generator=generator(), **options)
        for name in ("accepted", "replaced", "discarded"):
            seen[name] += rollout.counts()[name]
        seen["finished"] += int(rollout.finished.sum())
        seen["unfinished"] += int((~rollout.finished).sum())
        seen["full"] += int((rollout.lengths == 24).sum())
    assert min(seen.values()) >= 10, seen


@pytest.mark.parametrize("seed", range(6))
def test_a_k_that_stands_still_is_k(seed):
    """topk_along from 1 to 1 writes what topk writes, with whatever reach; 1 to 2 does not."""
    (student, teacher), prompts = make_pair(seed), random_prompts(seed, 5)

    def written(**rule):
        rollout = sample.interleaved_generate(
            student, teacher, prompts, 12, generator=generator(seed), accept_top_k=2, **rule
        )
        return rollout.responses(), sources_of(rollout)

    for reach in (1.0, 5.0, 32.0):
        assert written(accept_rule="topk_along", first=1.0, last=1.0, along=reach) == written()
    assert written(accept_rule="topk_along", first=0.0, last=0.0, along=3.0)[1] != written()[1]


@pytest.mark.parametrize("gamma", [1, 2, 3, 5, 8, None])
def test_a_k_that_moves_equals_the_reference(gamma):
    """topk_along in blocks, batched and cached = one token at a time:
    what counts is the position in the response, not in the block."""
    for seed in range(4):
        student, teacher, prompts, _, _ = random_case(seed)
        options = {
            "accept_rule": "topk_along", "accept_top_k": 2, "first": (0.0, 3.0)[seed % 2], "last": (3.0, 0.0)[seed % 2],
            "along": 6.0,
        }
        rollout = sample.interleaved_generate(
            student, teacher, prompts, 12, generator=generator(0), gamma=gamma, eos_token=0, **options
        )
        for key, prompt in enumerate(prompts):
            expected, expected_sources = sample.interleaved_reference(
                student, teacher, prompt, 12, generator=generator(0), row_key=key, eos_token=0, **options
            )
            assert rollout.responses()[key] == expected and sources_of(rollout)[key] == expected_sources


def test_a_k_that_moves_is_seen_in_the_sources():
    """From 0 to the whole vocabulary within six tokens: the teacher writes the first,
    the student all from the seventh on; and back."""
    student, teacher = make_pair(3)
    prompts = random_prompts(3, 40, longest=6)
    for first, last, begins, ends in ((0.0, 9.0, TEACHER, STUDENT), (9.0, 0.0, STUDENT, TEACHER)):
        rollout = sample.interleaved_generate(
            student, teacher, prompts, 12, generator=generator(), accept_rule="topk_along", accept_top_k=1,
            first=first, last=last, along=6.0
        )
        rows = sources_of(rollout)
        assert {row[0] for row in rows} == {begins} and {source for row in rows for source in row[6:]} == {ends}
        by_place = [sum(row[place] == ends for row in rows) for place in range(7)]
        assert by_place[0] == 0 < by_place[3] < 40 == by_place[6]


@pytest.mark.parametrize("options", [{}, {"accept_on": "warped"}, {"replace": "sample_topk"}], ids=name_of)
def test_a_k_between_two_numbers_is_the_larger(options):
    """A schedule gives any K: 1.3 accepts two tokens, and whatever else K says is of two tokens as well."""
    student, teacher = make_pair(5)
    prompts = random_prompts(5, 6)
    two, between, one = (
        sample.interleaved_generate(
            student, teacher, prompts, 12, generator=generator(), accept_top_k=number, **options
        )
        for number in (2, 1.3, 1)
    )
    same_rollout(two, between)
    assert one.responses() != two.responses()


def same_rollout(one, other):
    """Everything that training reads is equal, padding aside."""
    assert one.responses() == other.responses() and sources_of(one) == sources_of(other)
    assert torch.equal(one.finished, other.finished)
    T = int(one.lengths.max())
    assert torch.equal(one.rejected_tokens[:, :T], other.rejected_tokens[:, :T])
    response = one.response_mask[:, 1:T]
    difference = (one.teacher_logits[:, : T - 1] - other.teacher_logits[:, : T - 1])[response]
    assert difference.abs().max() < 1e-8


@pytest.mark.parametrize("options", [{}, {"judge_fresh": True}, RULES[9]], ids=name_of)
def test_block_length_never_shows(options):
    """Tokens, sources, ends, marks and teacher logits are the same for every gamma,
    one beyond the budget and the adaptive one, too."""
    student, teacher = make_pair(1)
    prompts = random_prompts(1, 6)
    options = {"accept_top_k": 2, **options}
    one, *others = (
        sample.interleaved_generate(
            student, teacher, prompts, 11, generator=generator(3), gamma=gamma, eos_token=0, **options
        )
        for gamma in (1, 2, 3, 4, 5, 8, 11, 30, None)
    )
    for other in others:
        same_rollout(one, other)


@pytest.mark.parametrize("sampler", ["generate", "interleaved", "speculative"])
def test_batch_never_shows(sampler):
    """A row with its key gives the same response alone, in any order, beside any rows, and under any padding."""
    student, teacher = make_pair(2)
    prompts = random_prompts(2, 7)

    def run(prompts, row_keys):
        if sampler == "generate":
            return adapters.generate(teacher, prompts, 9, eos_token=0, seed=4, row_keys=row_keys)
        if sampler == "speculative":
            return adapters.speculative_generate(student, teacher, prompts, 9, eos_token=0, seed=4, row_keys=row_keys)
        pairs = adapters.interleaved_generate(
            student, teacher, prompts, 9, accept_top_k=2, eos_token=0, seed=4, row_keys=row_keys
        )
        return list(zip(*pairs))

    together = run(prompts, None)
    assert run(prompts, list(range(7))) == together  # the row index is the default key
    order = [4, 0, 6, 2, 1, 5, 3]
    assert run([prompts[key] for key in order], order) == [together[key] for key in order]
    for key in range(7):
        assert run([prompts[key]], [key]) == [together[key]]
        assert run([prompts[key], [1] * 20], torch.tensor([key, 99]))[0] == together[key]
    same_prompt = run([prompts[0]] * 7, None)
    assert len({str(row) for row in same_prompt}) > 1  # different keys, different draws


@pytest.mark.parametrize("gamma", [None, 8])
def test_a_large_vocabulary_has_short_blocks(monkeypatch, gamma):
    """No block holds more than BLOCK_LOGITS logits of a model, and nothing but the time depends on it."""
    student, teacher = make_pair(5)
    write = functools.partial(
        sample.interleaved_generate, student, teacher, random_prompts(5, 6), 9, accept_top_k=6, eos_token=0, gamma=gamma
    )
    long = write(generator=generator(1))
    monkeypatch.setattr(sample, "BLOCK_LOGITS", 3 * 6 * student.config.vocab_size)
    short = write(generator=generator(1))
    assert torch.equal(long.tokens, short.tokens) and torch.equal(long.source, short.source)
    assert max(block.proposed.size(1) for block in long.blocks) > 3
    for block in short.blocks:
        assert block.proposed.numel() <= 3 * 6


@pytest.mark.parametrize("adapted", [False, True])
@pytest.mark.parametrize("sampler", ["interleaved", "speculative"])
def test_kept_features_are_the_kept_logits(sampler, adapted):
    """keep_features: the same tokens, and hidden states whose product with the teacher's
    head are the logits left out."""
    student, teacher = make_pair(5)
    if adapted:
        teacher = OnlineTeacher(teacher, "adapter", 2).double()
    write = {
        "interleaved": functools.partial(sample.interleaved_generate, accept_top_k=2),
        "speculative": sample.speculative_generate,
    }
    options = {"eos_token": 0, "gamma": 3}
    plain, kept = (
        write[sampler](student, teacher, random_prompts(5, 6), 9, generator=generator(1), keep_features=keep, **options)
        for keep in (False, True)
    )
    assert torch.equal(plain.tokens, kept.tokens) and plain.teacher_features is None and kept.teacher_logits is None
    rows = plain.response_mask[:, 1:]
    torch.testing.assert_close((kept.teacher_features @ teacher.head.T)[rows], plain.teacher_logits[rows])
    assert kept.teacher_features.isfinite().all()  # beside the responses as well: a loss may project them


@pytest.mark.parametrize(
    "writer", ["dataset", "student", "mixed", "interleaved", "teacher_mixed", "teacher", "switching", "trust_region"]
)
@pytest.mark.parametrize("mix_per", ["batch", "sequence"])
def test_a_batch_shared_by_processes_is_one_batch(writer, mix_per):
    """Three processes, each with its own rows and the same generator, write what one writes;
    all generators stay in step."""
    student, teacher = make_pair(6)
    prompts, references = random_prompts(6, 7), random_prompts(7, 7)

    def run(rows, source, seed):
        draws = generator(seed)
        rollout = sample.write_tokens(
            writer, student, teacher, [prompts[i] for i in rows], [references[i] for i in rows], 8, generator=draws,
            student_share=0.4, mix_per=mix_per, rows=rows, batch_size=7, eos_token=0, **source,
        )  # fmt: skip
        return rollout.responses(), torch.rand(3, generator=draws).tolist()

    source = {"interleaved": {"accept_top_k": 2}} if writer == "interleaved" else {}
    for seed in range(8):
        whole, after = run(range(7), source, seed)
        for first in range(3):
            own, own_after = run(range(first, 7, 3), source, seed)
            assert own == whole[first::3] and own_after == after


def test_the_budget_never_shows():
    """A longer budget only appends: the noise does not depend on how long a row may become."""
    student, teacher = make_pair(3)
    prompts = random_prompts(3, 5)
    long, _ = adapters.interleaved_generate(student, teacher, prompts, 12, accept_top_k=2, seed=1)
    for budget in range(1, 12):
        short, _ = adapters.interleaved_generate(student, teacher, prompts, budget, accept_top_k=2, seed=1)
        assert short == [row[:budget] for row in long]
        plain = adapters.generate(student, prompts, budget, seed=1)
        assert plain == [row[:budget] for row in adapters.generate(student, prompts, 12, seed=1)]


@pytest.mark.parametrize("sampler", ["generate", "interleaved", "speculative"])
def test_poisoned_caches_never_show(sampler, monkeypatch):
    """Caches that start full of 1e3 change no token: no slot is read before it is written."""
    student, teacher = make_pair(4)
    prompts = random_prompts(4, 6)

    def run():
        if sampler == "generate":
            return adapters.generate(teacher, prompts, 12, eos_token=0)
        if sampler == "speculative":
            return adapters.speculative_generate(student, teacher, prompts, 12, eos_token=0)
        rollout = sample.interleaved_generate(student, teacher, prompts, 12, generator=generator(1), accept_top_k=2)
        return rollout.responses(), sources_of(rollout), rollout.teacher_logits[rollout.response_mask[:, 1:]].tolist()

    clean, poisoned = run(), []
    new_cache = GPT.new_cache

    def poison(self, batch_size, capacity):
        cache = new_cache(self, batch_size, capacity)
        cache.keys_values.fill_(1e3)
        poisoned.append(cache)
        return cache

    monkeypatch.setattr(GPT, "new_cache", poison)
    assert run() == clean and poisoned and all(isinstance(cache, KVCache) for cache in poisoned)


def test_cached_generate_equals_uncached():
    """generate = drawing token by token from full forward passes with the same noise."""
    _, teacher = make_pair(5)
    prompts = random_prompts(5, 5)
    for options in ({}, {"temperature": 0.7, "top_k": 4}, {"top_p": 0.6}, {"greedy": True}, {"temperature": 0}):
        responses = adapters.generate(teacher, prompts, 10, eos_token=3, seed=8, **options)
        draw_options = {name: value for name, value in options.items() if name != "greedy"}
        if "greedy" in options:
            draw_options = {"temperature": 0}
        for key, prompt in enumerate(prompts):
            noise, sequence = sample.Noise(generator(8), torch.tensor([key])), list(prompt)
            while len(sequence) < len(prompt) + 10 and (len(sequence) == len(prompt) or sequence[-1] != 3):
                row = adapters.model_logits(teacher, torch.tensor([sequence]))[:, -1]
                sequence.append(int(sample.draw(row, noise(torch.tensor([len(sequence)]), "student"), **draw_options)))
            assert responses[key] == sequence[len(prompt) :]


# ---------------------------------------------------------------------------------------------------------------------
# One block, function by function, and the loop to read.


def test_draft_is_the_student_token_by_token():
    """The tokens of generate for the same numbers, each drawn from its own row; the cache moves on by what was fed."""
    student, _ = make_pair(3)
    prompts = random_prompts(3, 4, longest=5)
    tokens, lengths = sample.pad_sequences(prompts)
    noise, G = sample.Noise(generator(1), torch.arange(4)), 6
    uniform = noise(lengths[:, None] + torch.arange(G), "student")
    with torch.no_grad():
        cache = student.new_cache(4, 24)
        student(tokens, cache)
        cache.roll_back(lengths - 1)
        block = sample.draft(student, cache, tokens[torch.arange(4), lengths - 1], uniform, {"temperature": 0.8})
    expected = sample.generate(student, prompts, G, generator=generator(1), temperature=0.8)
    assert block.proposed.tolist() == expected.responses()
    assert block.inputs[:, 0].tolist() == [prompt[-1] for prompt in prompts]
    assert torch.equal(block.inputs[:, 1:], block.proposed[:, :-1])
    assert torch.equal(cache.lengths, lengths - 1 + G)
    for b, (prompt, response) in enumerate(zip(prompts, expected.responses())):
        rows = torch.stack([row[b] for row in block.student_rows])
        assert torch.allclose(rows, full_rows(student, prompt, response), rtol=1e-9, atol=1e-9)


def block_by_loop(proposed, stays, replacement, position, end, eos_token):
    """One sequence, proposal by proposal: (tokens that it adds, how many were accepted, how many count)."""
    added, accepted, counted, stopped = [], 0, 0, False
    for token, stay, other in zip(proposed, stays, replacement):
        if position + counted >= end or (counted and proposed[counted - 1] == eos_token):
            break
        counted += 1
        if not stopped:
            added, accepted, stopped = [*added, token if stay else other], accepted + stay, not stay
    return added, accepted, counted


@pytest.mark.parametrize("eos_token", [None, 0])
def test_a_block_is_what_a_loop_says(eos_token):
    """Random proposals, verdicts and budgets: countable, verify and commit against one proposal after the other."""
    draws = generator(4)
    for G in (1, 2, 3, 7):
        proposed, replacement = torch.randint(0, 4, (2, 300, G), generator=draws)
        stays = torch.rand(300, G, generator=draws) < 0.7
        start, room = torch.randint(1, 9, (2, 300), generator=draws)
        end = start + room - 1
        counts = sample.countable(proposed, start[:, None] + torch.arange(G), end[:, None], eos_token)
        verdict = sample.verify(stays, counts)
        drawn = replacement[verdict.at][:, None]
        committed = sample.commit(proposed, verdict, drawn, start, eos_token)
        for b in range(300):
            rows = (x[b].tolist() for x in (proposed, stays, replacement))
            added, accepted, counted = block_by_loop(*rows, int(start[b]), int(end[b]), eos_token)
            assert counts[b].tolist() == [True] * counted + [False] * (G - counted)
            assert verdict.accepted[b] == accepted and verdict.judged[b] == len(added)
            assert committed.written[b, : len(added)].tolist() == added and committed.length[b] == start[b] + len(added)
            assert verdict.rejected[b].tolist() == [j == accepted < len(added) for j in range(G)]
            assert committed.finished[b] == (eos_token in added)


@matrix("gamma", [1, 2, 3, 5, 8], fast=[1, 5])
def test_the_plain_loop_is_the_fast_one(gamma):
    """interleaved_plain = interleaved_generate: tokens, sources, lengths and ends; teacher logits to rounding."""
    options = [{"accept_top_k": 4}, *RULES, {"accept_rule": "topk_along", "accept_top_k": 3, "along": 5.0}]
    for seed, rule in enumerate(options * 2):
        student, teacher, prompts, budget, _ = random_case(seed)
        call = {"eos_token": (None, 0, 4)[seed % 3], **rule}
        if seed % 4 == 0:
            call["row_keys"] = [7 * row + 3 for row in range(len(prompts))]
        plain, fast = (
            sampler(student, teacher, prompts, budget, generator=generator(seed), gamma=length, **call)
            for sampler, length in (
                (sample.interleaved_plain, gamma),
                (sample.interleaved_generate, (gamma, None)[seed % 2]),
            )
        )
        for name in ("tokens", "prompt_len", "lengths", "source", "finished"):
            assert torch.equal(getattr(plain, name), getattr(fast, name)), name
        assert plain.source.dtype == torch.int8 and plain.teacher_logits.shape == fast.teacher_logits.shape
        response = plain.response_mask[:, 1:]
        torch.testing.assert_close(plain.teacher_logits[response], fast.teacher_logits[response], rtol=1e-9, atol=1e-9)


# ---------------------------------------------------------------------------------------------------------------------
# Limits.


@pytest.mark.parametrize("eos_token", [None, 0])
def test_accepting_everything_is_the_student(eos_token):
    """K = V, K > V and the rule `all` give exactly generate(student); nothing is replaced."""
    student, teacher = make_pair(6)
    prompts = random_prompts(6, 6)
    expected = adapters.generate(student, prompts, 12, temperature=0.8, eos_token=eos_token, seed=5)
    too_many = {"accept_top_k": 10**9}
    for options in ({"accept_top_k": 9}, too_many, {**too_many, "accept_on": "warped"}, {"accept_rule": "all"}):
        responses, sources = adapters.interleaved_generate(
            student, teacher, prompts, 12, student_temperature=0.8, eos_token=eos_token, seed=5, **options
        )
        assert responses == expected and all(set(row) == {"student"} for row in sources)


@pytest.mark.parametrize("eos_token", [None, 0])
def test_accepting_nothing_is_the_teacher(eos_token):
    """K = 0 and the rule `none` give exactly generate(teacher, role="teacher"); every token is labelled so."""
    student, teacher = make_pair(6)
    prompts = random_prompts(6, 6)
    expected = sample.generate(
        teacher, prompts, 12, generator=generator(5), temperature=0.8, top_p=0.9, eos_token=eos_token, role="teacher"
    )
    assert (expected.source[expected.response_mask] == TEACHER).all()
    for options in ({"accept_top_k": 0}, {"accept_rule": "none"}):
        rollout = sample.interleaved_generate(
            student, teacher, prompts, 12, generator=generator(5), teacher_temperature=0.8, teacher_top_p=0.9,
            eos_token=eos_token, **options,
        )  # fmt: skip
        assert rollout.responses() == expected.responses() and sources_of(rollout) == sources_of(expected)


def test_student_equal_to_teacher_and_greedy_replaces_nothing():
    """A student that is the teacher, decoding greedily, proposes the teacher's argmax: K = 1 keeps all of it."""
    _, teacher = make_pair(7)
    prompts = random_prompts(7, 6)
    rollout = sample.interleaved_generate(
        teacher, teacher, prompts, 12, generator=generator(), accept_top_k=1, student_temperature=0
    )
    counts = rollout.counts()
    assert counts["replaced"] == counts["discarded"] == 0 and counts["accepted"] == counts["judged"] > 0


def test_greedy_student_with_argmax_replacement_is_greedy_teacher():
    """Temperature 0, K = 1, argmax replacement: every token is the teacher's argmax, whoever wrote it."""
    student, teacher = make_pair(8)
    prompts = random_prompts(8, 6)
    expected = adapters.generate(teacher, prompts, 12, greedy=True, eos_token=0)
    for options in ({"replace": "argmax"}, {"replace": "sample_topk"}, {"teacher_temperature": 0}):
        responses, sources = adapters.interleaved_generate(
            student, teacher, prompts, 12, accept_top_k=1, student_temperature=0, eos_token=0, **options
        )
        assert responses == expected and {"student", "teacher"} == {source for row in sources for source in row}


# ---------------------------------------------------------------------------------------------------------------------
# What a rollout records.


@pytest.mark.parametrize("options", RULES[:9], ids=name_of)
def test_sources_agree_with_membership(options):
    """Proposals and membership recomputed from full forward passes give the sources and
    `rejected_tokens`, token by token."""
    student, teacher = make_pair(9)
    prompts = random_prompts(9, 6)
    rollout = sample.interleaved_generate(student, teacher, prompts, 12, generator=generator(2), eos_token=0, **options)
    membership = {name: options[name] for name in options if name.startswith("accept_")}
    noise = sample.Noise(generator(2), torch.arange(6))
    student_temperature = options.get("student_temperature", 1.0)
    for b, (prompt, response) in enumerate(zip(prompts, rollout.responses())):
        student_rows, teacher_rows = full_rows(student, prompt, response), full_rows(teacher, prompt, response)
        for i, token in enumerate(response):
            slot = len(prompt) + i
            positions = torch.full((6,), slot)
            numbers = noise(positions, "student")
            proposed = int(sample.draw(student_rows[i].expand(6, -1), numbers, student_temperature)[b])
            stays = acceptance(teacher_row=teacher_rows[i], **{"accept_rule": "topk", **membership})[proposed] == 1
            assert rollout.source[b, slot] == (STUDENT if stays else TEACHER)
            assert rollout.rejected_tokens[b, slot] == (-1 if stays else proposed)
            assert token == proposed or not stays


@pytest.mark.parametrize("sampler", ["interleaved", "speculative", "control"])
def test_teacher_logits_are_the_teachers(sampler):
    """On every response row they equal one full teacher forward pass over the finished rollout."""
    student, teacher = make_pair(10)
    prompts = random_prompts(10, 6)
    for gamma in (1, 3, 5):
        if sampler == "speculative":
            rollout = sample.speculative_generate(student, teacher, prompts, 10, generator=generator(), gamma=gamma)
        else:
            rollout = sample.interleaved_generate(
                student, teacher, prompts, 10, generator=generator(), gamma=gamma, accept_top_k=2, eos_token=0,
                write_back=sampler != "control",
            )  # fmt: skip
        T = rollout.tokens.size(1)
        assert rollout.teacher_logits.shape == (6, T - 1, 9)
        full = adapters.model_logits(teacher, rollout.tokens)[:, :-1]
        response = rollout.response_mask[:, 1:]
        assert torch.allclose(rollout.teacher_logits[response], full[response], rtol=1e-9, atol=1e-9)
        assert rollout.teacher_logits.isfinite().all()  # a masked loss multiplies these rows by a gradient of 0


@pytest.mark.parametrize("sampler", ["generate", "interleaved", "speculative", "control"])
def test_shapes_and_padding_of_a_rollout(sampler):
    """Prompts are kept, what follows a row's end is 0 / PROMPT / -1, and the mask is exactly the response."""
    student, teacher = make_pair(11)
    prompts = random_prompts(11, 6)
    if sampler == "generate":
        rollout = sample.generate(student, prompts, 10, generator=generator(), eos_token=0)
    elif sampler == "speculative":
        rollout = sample.speculative_generate(student, teacher, prompts, 10, generator=generator(), eos_token=0)
    else:
        rollout = sample.interleaved_generate(
            student, teacher, prompts, 10, generator=generator(), accept_top_k=2, eos_token=0,
            write_back=sampler == "interleaved",
        )  # fmt: skip
    assert rollout.prompt_len.tolist() == list(map(len, prompts)) and rollout.source.dtype == torch.int8
    assert rollout.finished.any() and not rollout.finished.all()
    for b, (prompt, response) in enumerate(zip(prompts, rollout.responses())):
        start, stop = len(prompt), len(prompt) + len(response)
        assert rollout.tokens[b].tolist() == prompt + response + [0] * (rollout.tokens.size(1) - stop)
        slots = range(rollout.tokens.size(1))
        assert rollout.response_mask[b].tolist() == [start <= slot < stop for slot in slots]
        assert (rollout.source[b][~rollout.response_mask[b]] == PROMPT).all()
        assert (rollout.source[b][rollout.response_mask[b]] != PROMPT).all()
        # The padding id is the end token's id here: only lengths can tell them apart.
        assert rollout.finished[b] == (response[-1] == 0) and 0 not in response[:-1]
        assert len(response) == 10 or rollout.finished[b]
        if rollout.rejected_tokens is not None:
            assert (rollout.rejected_tokens[b][~rollout.response_mask[b]] == -1).all()


@pytest.mark.parametrize("sampler", ["interleaved", "speculative", "control"])
def test_counters_add_up(sampler):
    """judged = response tokens = accepted + replaced, proposed = judged + discarded, accepted = kept tokens."""
    for gamma in (1, 2, 5, 8):
        student, teacher = make_pair(12)
        prompts = random_prompts(12, 8)
        if sampler == "speculative":
            rollout = sample.speculative_generate(
                student, teacher, prompts, 11, generator=generator(), gamma=gamma, eos_token=0
            )
        else:
            rollout = sample.interleaved_generate(
                student, teacher, prompts, 11, generator=generator(), gamma=gamma, accept_top_k=2, eos_token=0,
                write_back=sampler == "interleaved",
            )  # fmt: skip
        counts = rollout.counts()
        assert list(counts) == list(sample.COUNTERS)
        assert counts["judged"] == counts["accepted"] + counts["replaced"] == sum(map(len, rollout.responses()))
        assert counts["proposed"] == counts["judged"] + counts["discarded"]
        assert counts["replaced"] == (rollout.rejected_tokens >= 0).sum() > 0
        assert counts["teacher_calls"] <= counts["student_steps"] <= gamma * counts["teacher_calls"]
        if sampler != "control":
            assert counts["accepted"] == (rollout.source == STUDENT).sum()
            assert counts["replaced"] == (rollout.source == TEACHER).sum()
        # The blocks tell the same story: they tile each response, and a row costs one teacher call per block it is in.
        at = rollout.prompt_len.clone()
        for block in rollout.blocks:
            left = rollout.lengths[block.rows] - at[block.rows]  # what these rows, and no others, have still to write
            assert (left > 0).all() and (at < rollout.lengths).sum() == len(block.rows) == len(block.rows.unique())
            assert torch.equal(block.start, at[block.rows])
            # A block is not longer than the longest budget left, so the last ones are shorter than gamma.
            assert block.proposed.shape == (
                len(block.rows),
                min(gamma, int((rollout.prompt_len + 11 - at)[block.rows].max())),
            )
            assert (block.accepted <= block.judged).all() and (block.judged <= block.drafted).all()
            at[block.rows] += block.judged
        assert torch.equal(at, rollout.lengths)
        for name, column in (("proposed", "drafted"), ("accepted", "accepted"), ("judged", "judged")):
            assert counts[name] == sum(int(getattr(block, column).sum()) for block in rollout.blocks)
        assert counts["teacher_calls"] == sum(len(block.rows) for block in rollout.blocks)
        assert counts["student_steps"] == sum(block.proposed.numel() for block in rollout.blocks)


@pytest.mark.parametrize("gamma, keep_rate", [(5, 0.85), (3, 0.4), (1, 0.7), (4, 1.0)])
def test_cost_formula(gamma, keep_rate):
    """A blind rule that keeps with probability a commits E = (1 - a^gamma) / (1 - a) tokens per block on average."""
    student, teacher = law_pair()
    rollout = sample.interleaved_generate(
        student, teacher, [[1]] * MANY, gamma, generator=generator(), gamma=gamma, accept_rule="random",
        replace_rate=1 - keep_rate,
    )  # fmt: skip
    _, start, _, drafted, accepted, judged = rollout.blocks[0]
    committed = (accepted + (accepted < drafted)).double()
    assert torch.equal(committed, judged.double())
    expected = gamma if keep_rate == 1 else (1 - keep_rate**gamma) / (1 - keep_rate)
    spread = gamma * math.sqrt(math.log(2 / FALSE_ALARM) / (2 * MANY))  # Hoeffding, numbers in 0..gamma
    assert committed.mean().item() == pytest.approx(expected, abs=spread)
    assert (drafted == gamma).all() and (start == 1).all()


@pytest.mark.parametrize("keep_rate", [0.0, 0.3, 0.5, 0.7, 0.88, 0.95, 1.0])
@pytest.mark.parametrize("call_cost", [0.0, 2.0, 6.0])
def test_best_gamma(keep_rate, call_cost):
    """It is the cheapest per token of GAMMAS, the expected tokens of a block counted outcome by outcome."""
    judged = 10**9  # so many that the prior does not count

    def price(gamma):
        rejected_at = [keep_rate**k * (1 - keep_rate) for k in range(gamma)]  # k accepted, then a replacement
        expected = sum((k + 1) * prob for k, prob in enumerate(rejected_at)) + gamma * keep_rate**gamma
        return (gamma + call_cost) / expected

    found = sample.best_gamma(round(keep_rate * judged), judged, call_cost)
    assert found in sample.GAMMAS
    assert price(found) == pytest.approx(min(map(price, sample.GAMMAS)), rel=1e-6)


def test_best_gamma_follows_the_acceptance():
    """4 before anything was judged; more for a student that is accepted, less for one that is not; a floor of 1."""
    assert sample.best_gamma(0, 0, 2.0) == 4
    found = [sample.best_gamma(accepted, 1000, 2.0) for accepted in range(0, 1001, 10)]
    assert found == sorted(found) and found[0] == 1 and found[-1] == max(sample.GAMMAS)


def test_adaptive_blocks_grow_and_shrink():
    """A teacher's twin is given longer blocks, a student that is always wrong shorter ones,
    until the budget cuts them."""
    student, teacher = make_pair(18)
    for rule, widths in (({"accept_rule": "all"}, [4, 8, 8, 3]), ({"accept_rule": "none"}, [4, 2, 2, 2, 2])):
        rollout = sample.interleaved_generate(student, teacher, [[1]] * 2, 30, generator=generator(), **rule)
        assert [block.proposed.size(1) for block in rollout.blocks][: len(widths)] == widths


@pytest.mark.parametrize("size", range(1, 6))
def test_closing_ranks(size):
    """Every pattern: all rows that are not done stay, once; one that can keep its number keeps it."""
    for done in itertools.product([False, True], repeat=size):
        kept = sample._close_ranks(done)
        assert sorted(kept) == [row for row in range(size) if not done[row]]
        assert all(new == old for new, old in enumerate(kept) if not done[new])


def test_number_of_teacher_calls():
    """Over a whole budget the mean number of blocks follows the renewal equation, hence about budget / E."""
    gamma, keep_rate, budget, rows = 4, 0.8, 30, 1000
    calls = [0.0]
    for n in range(1, budget + 1):  # calls[n]: expected blocks for n tokens
        width = min(gamma, n)
        ends = [keep_rate ** (k - 1) * (1 - keep_rate) for k in range(1, width)] + [keep_rate ** (width - 1)]
        calls.append(1 + sum(prob * calls[n - k] for k, prob in enumerate(ends, 1)))
    student, teacher = make_pair(13, block_size=40, dtype=torch.float32)
    rollout = sample.interleaved_generate(
        student, teacher, [[1]] * rows, budget, generator=generator(), gamma=gamma, accept_rule="random",
        replace_rate=1 - keep_rate,
    )  # fmt: skip
    # A row's number of blocks deviates by less than 2 (about one block for every four replacements).
    mean, error = rollout.counts()["teacher_calls"] / rows, 5 * 2 / math.sqrt(rows)
    assert mean == pytest.approx(calls[budget], abs=error)
    assert calls[budget] == pytest.approx(budget * (1 - keep_rate) / (1 - keep_rate**gamma), rel=0.08)


# ---------------------------------------------------------------------------------------------------------------------
# The switches that leave the paper.


def test_without_write_back_the_student_writes_everything():
    """write_back=False: tokens of generate(student), marks by membership,
    `rejected_tokens` holds the teacher's own draws."""
    student, teacher = make_pair(14)
    prompts = random_prompts(14, 6)
    expected = adapters.generate(student, prompts, 12, eos_token=0, seed=7)
    noise = sample.Noise(generator(7), torch.arange(6))
    for gamma in (1, 3, 5, 16):
        rollout = sample.interleaved_generate(
            student, teacher, prompts, 12, generator=generator(7), gamma=gamma, accept_top_k=2, eos_token=0,
            write_back=False,
        )  # fmt: skip
        assert rollout.responses() == expected
        assert (rollout.source[rollout.response_mask] == STUDENT).all()
        assert rollout.counts()["discarded"] == 0
        for b, (prompt, response) in enumerate(zip(prompts, expected)):
            for i, row in enumerate(full_rows(teacher, prompt, response)):
                slot = len(prompt) + i
                numbers = noise(torch.full((6,), slot), "teacher")
                teachers_own = int(sample.draw(row.expand(6, -1), numbers)[b])
                stays = acceptance("topk", row, 2)[response[i]] == 1
                assert rollout.rejected_tokens[b, slot] == (-1 if stays else teachers_own)


def test_warped_membership_differs_from_raw():
    """Without top-p both memberships are one; with top-p they part (the sequence laws above say exactly how)."""
    student, teacher = make_pair(15)
    prompts = random_prompts(15, 20)

    def rollout(**options):
        options = {"accept_top_k": 4, "generator": generator(), **options}
        return sample.interleaved_generate(student, teacher, prompts, 12, **options)

    plain, same = rollout(), rollout(accept_on="warped")
    assert plain.responses() == same.responses() and sources_of(plain) == sources_of(same)
    raw, warped = rollout(teacher_top_p=0.5), rollout(teacher_top_p=0.5, accept_on="warped")
    assert sources_of(raw) != sources_of(warped)


# ---------------------------------------------------------------------------------------------------------------------
# Lossless speculative decoding.


def test_speculative_never_shows_its_block_length():
    """The same tokens for every gamma."""
    draft, target = make_pair(16)
    prompts = random_prompts(16, 6)
    one, *others = (
        adapters.speculative_generate(draft, target, prompts, 11, gamma=gamma, eos_token=0, seed=2)
        for gamma in (1, 2, 3, 4, 7, 20, None)
    )
    assert all(other == one for other in others)


def test_speculative_acceptance_is_one_minus_total_variation():
    """accepted - sum of (1 - TVD) over the judged prefixes is a martingale: Azuma's bound on 20,000 judgements."""
    draft, target = make_pair(17, dtype=torch.float32)
    rollout = sample.speculative_generate(draft, target, [[1], [2, 3]] * 500, 20, generator=generator(), gamma=4)
    counts, T = rollout.counts(), rollout.tokens.size(1)
    rows = [adapters.model_logits(model, rollout.tokens)[:, : T - 1] for model in (draft, target)]
    overlap = 1 - adapters.divergence("total_variation", *rows)
    expected = overlap[rollout.response_mask[:, 1:]].sum().item()
    n = counts["judged"]
    assert n == 20000 and abs(counts["accepted"] - expected) < math.sqrt(n * math.log(2 / FALSE_ALARM) / 2)
    assert 0.2 < counts["accepted"] / n < 0.9


def test_speculative_with_the_target_as_draft_accepts_everything():
    """draft == target: no rejection, and the tokens are generate(target) with the same noise."""
    _, target = make_pair(18)
    prompts = random_prompts(18, 6)
    rollout = sample.speculative_generate(target, target, prompts, 12, generator=generator(3), eos_token=0)
    assert rollout.counts()["replaced"] == 0
    assert rollout.responses() == adapters.generate(target, prompts, 12, eos_token=0, seed=3)


def test_speculative_at_temperature_zero_is_greedy_target():
    """temperature 0: the target's greedy decode, for any draft and gamma."""
    draft, target = make_pair(19)
    prompts = random_prompts(19, 6)
    expected = adapters.generate(target, prompts, 12, greedy=True, eos_token=0)
    for gamma in (1, 4, 9):
        found = adapters.speculative_generate(draft, target, prompts, 12, gamma=gamma, temperature=0, eos_token=0)
        assert found == expected


# ---------------------------------------------------------------------------------------------------------------------
# Ends of rows and blocks, with models that follow a script.

A, B, C, EOS = 1, 2, 3, 0


def scripted(tokens_by_position, vocab_size=5, block_size=16):
    """A real GPT whose position embedding makes it predict tokens_by_position[i] for position i, whatever it is fed."""
    model = GPT(GPTConfig(vocab_size, block_size, 1, 1, vocab_size)).double().eval()
    with torch.no_grad():
        for weight in model.blocks.parameters():
            weight.zero_()  # the block passes its input through
        model.token_embedding.weight.copy_(30 * torch.eye(vocab_size))
        model.position_embedding.weight.zero_()
        for position, token in tokens_by_position.items():
            model.position_embedding.weight[position - 1, token] = 1e4
    return model


def run_script(student_says, teacher_says, max_new_tokens, gamma, **options):
    """Prompt [1], then the scripts (lists from position 1 on), under the argmax rule: (response, sources, rollout)."""
    student, teacher = (scripted(dict(enumerate(says, 1))) for says in (student_says, teacher_says))
    options = {"accept_rule": "argmax", "eos_token": EOS, **options}
    rollout = sample.interleaved_generate(
        student, teacher, [[1]], max_new_tokens, generator=generator(), gamma=gamma, **options
    )
    options.pop("write_back", None)
    reference, _ = sample.interleaved_reference(student, teacher, [1], max_new_tokens, generator=generator(), **options)
    assert rollout.responses()[0] == reference
    return rollout.responses()[0], sources_of(rollout)[0], rollout


@pytest.mark.parametrize("gamma", range(1, 9))
def test_end_token_accepted_inside_a_block(gamma):
    """A drafted end token that is accepted ends the row; nothing after it is proposed, judged or written."""
    says = [A, B, EOS, C, C, C, C, C, C]
    response, sources, rollout = run_script(says, says, 9, gamma)
    assert response == [A, B, EOS] and sources == [STUDENT] * 3 and rollout.finished.item()
    counts = rollout.counts()
    assert counts["proposed"] == counts["judged"] == 3 and counts["discarded"] == 0
    assert counts["teacher_calls"] == math.ceil(3 / gamma)


@pytest.mark.parametrize("gamma", range(1, 9))
def test_end_token_rejected(gamma):
    """A drafted end token that the teacher rejects is replaced, and the row goes on."""
    response, sources, rollout = run_script([A, EOS, C, A, A, A], [A, B, C, A, EOS, A], 6, gamma)
    assert response == [A, B, C, A, EOS]
    assert sources == [STUDENT, TEACHER, STUDENT, STUDENT, TEACHER]
    assert rollout.finished.item() and rollout.rejected_tokens[0].tolist() == [-1, -1, EOS, -1, -1, A]


@pytest.mark.parametrize("gamma", range(1, 9))
def test_end_token_as_replacement(gamma):
    """An end token that the teacher writes ends the row; the rest of the block is discarded."""
    response, sources, rollout = run_script([A, B, C, C, C, C], [A, EOS, C, C, C, C], 6, gamma)
    assert response == [A, EOS] and sources == [STUDENT, TEACHER] and rollout.finished.item()
    proposed = 2 if gamma == 1 else min(gamma, 6)
    assert rollout.counts() == {
        "proposed": proposed, "judged": 2, "accepted": 1, "replaced": 1, "discarded": proposed - 2,
        "teacher_calls": 2 if gamma == 1 else 1, "student_steps": 2 if gamma == 1 else proposed,
    }  # fmt: skip


@pytest.mark.parametrize("gamma", range(1, 9))
def test_end_token_at_the_edge_of_the_budget(gamma):
    """The end token as the last token of the budget finishes the row; one token less does not."""
    says = [A, B, C, EOS, C, C]
    response, _, rollout = run_script(says, says, 4, gamma)
    assert response == [A, B, C, EOS] and rollout.finished.item()
    response, _, rollout = run_script(says, says, 3, gamma)
    assert response == [A, B, C] and not rollout.finished.item()
    # An end token that was drafted beyond the budget counts for nothing.
    assert rollout.counts()["proposed"] == 3 and rollout.tokens.tolist() == [[1, A, B, C]]
    model = scripted(dict(enumerate(says, 1)))
    for budget, finished in ((3, False), (4, True), (5, True)):
        plain = sample.generate(model, [[1]], budget, generator=generator(), eos_token=EOS)
        lossless = sample.speculative_generate(
            model, model, [[1]], budget, generator=generator(), gamma=gamma, eos_token=EOS
        )
        assert plain.finished.item() == lossless.finished.item() == finished
        assert plain.responses() == lossless.responses() == [says[: min(budget, 4)]]


@pytest.mark.parametrize("gamma", range(1, 9))
def test_without_an_end_token_only_the_budget_ends_a_row(gamma):
    """eos_token=None: the same script runs on through token 0."""
    says = [A, EOS, B, EOS, C, A]
    response, _, rollout = run_script(says, says, 5, gamma, eos_token=None)
    assert response == [A, EOS, B, EOS, C] and not rollout.finished.item()
    assert rollout.counts()["proposed"] == 5  # the last block is cut to the budget, divisible by gamma or not


@pytest.mark.parametrize("gamma", range(1, 9))
def test_one_new_token(gamma):
    """max_new_tokens = 1: one proposal, kept or replaced, never more."""
    for teacher_says, source in (([A], STUDENT), ([B], TEACHER), ([EOS], TEACHER)):
        response, sources, rollout = run_script([A], teacher_says, 1, gamma)
        assert response == teacher_says and sources == [source]
        assert rollout.counts()["proposed"] == 1 and rollout.finished.item() == (teacher_says == [EOS])


@pytest.mark.parametrize("gamma", range(1, 9))
def test_every_proposal_rejected(gamma):
    """A student that is always wrong costs one block per token, and every token is the teacher's."""
    response, sources, rollout = run_script([A] * 6, [B, C, B, C, B, C], 6, gamma)
    assert response == [B, C, B, C, B, C] and sources == [TEACHER] * 6
    assert rollout.counts()["teacher_calls"] == 6
    assert rollout.counts()["proposed"] == sum(min(gamma, left) for left in (6, 5, 4, 3, 2, 1))


def test_end_token_without_write_back():
    """write_back=False: the student's end token ends the row although the teacher would have gone on."""
    student, teacher = (scripted(dict(enumerate(says, 1))) for says in ([A, B, EOS, C, C], [B, B, C, C, C]))
    for gamma in range(1, 7):
        rollout = sample.interleaved_generate(
            student, teacher, [[1]], 5, generator=generator(), gamma=gamma, accept_rule="argmax", eos_token=EOS,
            write_back=False,
        )  # fmt: skip
        assert rollout.responses() == [[A, B, EOS]] and rollout.finished.item()
        assert rollout.rejected_tokens.tolist() == [[-1, B, -1, C]]
        assert rollout.counts()["judged"] == 3 and rollout.counts()["replaced"] == 2


def test_rows_end_each_at_its_own_place():
    """Rows of one batch that end by end token, by budget and by the block's end do not disturb each other."""
    says = dict(enumerate([A, B, C, A, B, EOS, C, A, B, C, A, B, C, A, B], 1))
    student, teacher = scripted(says), scripted(says)
    prompts = [[1] * length for length in (1, 4, 5, 6, 7, 14, 15)]
    expected = [[A, B, C, A], [A, B, EOS], [B, EOS], [EOS], [C, A, B, C], [A, B], [B]]
    plain = sample.generate(student, prompts, 4, generator=generator(), eos_token=EOS)
    assert plain.responses() == expected and plain.finished.tolist() == [EOS in response for response in expected]
    for gamma in range(1, 7):
        rollout = sample.interleaved_generate(
            student, teacher, prompts, 4, generator=generator(), gamma=gamma, accept_rule="argmax", eos_token=EOS
        )
        assert rollout.responses() == expected and torch.equal(rollout.finished, plain.finished)


def test_the_shorter_block_of_the_two_models_decides():
    """A teacher (or student) with the shorter block ends every row there, in the reference too."""
    for sizes in ((16, 10), (10, 16)):
        student = make_pair(20, block_size=sizes[0])[0]
        teacher = make_pair(20, block_size=sizes[1])[1]
        responses, _ = adapters.interleaved_generate(student, teacher, [[1, 2], [3] * 9], 30, accept_top_k=2)
        assert [len(response) for response in responses] == [8, 1]
        reference, _ = sample.interleaved_reference(student, teacher, [1, 2], 30, generator=generator(), accept_top_k=2)
        assert responses[0] == reference


# ---------------------------------------------------------------------------------------------------------------------
# Randomness and wrong use.


def test_generator_state():
    """Two calls with one generator differ, the same seed repeats, and each call takes exactly one draw."""
    student, teacher = make_pair(21)
    prompts = [[1, 2]] * 8

    def calls(shared):
        yield sample.generate(student, prompts, 8, generator=shared).responses()
        yield sample.interleaved_generate(student, teacher, prompts, 8, generator=shared, accept_top_k=2).responses()
        yield sample.speculative_generate(student, teacher, prompts, 8, generator=shared).responses()

    shared = generator(1)
    first, second = list(calls(shared)), list(calls(shared))
    assert first == list(calls(generator(1))) and all(a != b for a, b in zip(first, second))
    by_hand = generator(1)
    for _ in range(6):
        torch.randint(2**62, (), generator=by_hand)
    assert torch.equal(by_hand.get_state(), shared.get_state())


def test_global_generators_are_left_alone():
    """No sampler reads or moves torch's or Python's global random state."""
    student, teacher = make_pair(22)

    def outputs():
        return (
            adapters.generate(student, [[1, 2]] * 4, 8, top_p=0.9),
            adapters.interleaved_generate(student, teacher, [[1, 2]] * 4, 8, accept_rule="random", replace_rate=0.3),
            adapters.speculative_generate(student, teacher, [[1, 2]] * 4, 8),
        )

    torch.manual_seed(1)
    random.seed(1)
    expected = outputs()
    torch.manual_seed(2)
    random.seed(2)
    states = torch.random.get_rng_state(), random.getstate()
    assert outputs() == expected
    assert torch.equal(states[0], torch.random.get_rng_state()) and states[1] == random.getstate()


def test_sampling_needs_no_gradient():
    """Nothing that a sampler returns carries a graph, and the models' parameters get no gradient."""
    student, teacher = make_pair(23)
    rollout = sample.interleaved_generate(student, teacher, [[1, 2]], 5, generator=generator(), accept_top_k=2)
    assert not rollout.teacher_logits.requires_grad
    assert all(weight.grad is None for model in (student, teacher) for weight in model.parameters())


WRONG_USES = [
    ("no prompts", {"prompts": []}),
    ("prompt 1 is empty", {"prompts": [[1], []]}),
    ("prompt 0 has 24 tokens, but block_size is 24", {"prompts": [[1] * 24]}),
    ("max_new_tokens must be at least 1, found 0", {"max_new_tokens": 0}),
    ("gamma must be at least 1, found 0", {"gamma": 0}),
    ("accept_top_k must be at least 0, found -1", {"accept_top_k": -1}),
    ("unknown accept rule 'topq'.*topk, topk_along, topp", {"accept_rule": "topq"}),
    ("unknown replace rule 'median'.*sample", {"replace": "median"}),
    ("no knob 'accept_top_p': it takes none", {"accept_top_p": 0.5}),
    ("no knob 'replace_rate': it takes accept_top_p", {"accept_rule": "topp", "replace_rate": 0.5}),
    ("no knob 'position': it takes first, last, along", {"accept_rule": "topk_along", "position": 3}),
    ("accept_on must be raw, or warped", {"accept_on": "cooked"}),
    ("accept_on must be raw, or warped", {"accept_on": "warped", "accept_rule": "minprob"}),
    ("accept_on must be raw, or warped", {"accept_on": "warped", "accept_rule": "topk_along"}),
]


@pytest.mark.parametrize("message, options", WRONG_USES, ids=[message[:30] for message, _ in WRONG_USES])
def test_wrong_use_of_interleaved_generate(message, options):
    """Each wrong argument ends in one line that names it and what was found."""
    student, teacher = make_pair(24)
    call = {"prompts": [[1]], "max_new_tokens": 3, "generator": generator(), **options}
    with pytest.raises(ValueError, match=message) as caught:
        sample.interleaved_generate(student, teacher, **call)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("sampler", [sample.interleaved_generate, sample.speculative_generate])
def test_vocabularies_must_match(sampler):
    """Models of two vocabularies: one line with both sizes, before anything runs."""
    student, teacher = make_pair(25, vocab_size=9)[0], make_pair(25, vocab_size=10)[1]
    with pytest.raises(ValueError, match="9 and 10") as caught:
        sampler(student, teacher, [[1]], 3, generator=generator())
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("message, options", [WRONG_USES[i] for i in (0, 1, 2, 3)])
def test_wrong_use_of_the_other_samplers(message, options):
    """generate and speculative_generate refuse the same prompts and budgets."""
    student, teacher = make_pair(26)
    call = {"prompts": [[1]], "max_new_tokens": 3, "generator": generator(), **options}
    with pytest.raises(ValueError, match=message):
        sample.generate(teacher, **call)
    with pytest.raises(ValueError, match=message):
        sample.speculative_generate(student, teacher, **call)
    with pytest.raises(ValueError, match="gamma must be at least 1"):
        sample.speculative_generate(student, teacher, [[1]], 3, generator=generator(), gamma=0)


def test_number_of_row_keys():
    """One key per prompt."""
    student, _ = make_pair(27)
    with pytest.raises(AssertionError, match="3 row keys for 1 prompts"):
        sample.generate(student, [[1]], 3, generator=generator(), row_keys=[1, 2, 3])


@pytest.mark.parametrize("wrong", [{"temperature": -1.0}, {"temperature": float("nan")}, {"top_p": 0.0}, {"top_k": 0}])
def test_senseless_filters_are_refused(wrong):
    """A filter that leaves nothing, or turns the law upside down, is a one-line ValueError and not a silent draw."""
    with pytest.raises(ValueError) as error:
        sample.draw(torch.zeros(1, 4), torch.tensor([0.5]), **wrong)
    assert "\n" not in str(error.value) and "found" in str(error.value)


def test_warped_rule_at_zero_accepts_nothing():
    """accept_top_k 0 is teacher sampling under the warped rule as well."""
    student, teacher = (adapters.make_gpt(9, 24, 1, 1, 8, seed=seed) for seed in (1, 2))
    _, sources = adapters.interleaved_generate(student, teacher, [[1], [2, 3]], 8, accept_top_k=0, accept_on="warped")
    assert {source for row in sources for source in row} == {"teacher"}


# ---------------------------------------------------------------------------------------------------------------------
# Who writes, and what it took.


def write(writer, student, teacher, prompts, references, **options):
    common = {"generator": generator(2), "eos_token": 0, "student_share": 0.6, "mix_per": "sequence"}
    common["interleaved"] = {"accept_top_k": 3}
    return sample.write_tokens(writer, student, teacher, prompts, references, 9, **common | options)


class Listener:
    """Counts what a model is really fed: tokens, padding included, forwards, and sequences (the rows of each cache)."""

    def __init__(self, model):
        self.tokens = self.forwards = self.sequences = 0
        self.caches = []
        model.register_forward_pre_hook(self.hear)

    def hear(self, model, inputs):
        tokens, cache = inputs
        self.tokens, self.forwards = self.tokens + tokens.numel(), self.forwards + 1
        if not any(cache is seen for seen in self.caches):
            self.caches.append(cache)
            self.sequences += len(tokens)


@pytest.mark.parametrize("writer", list(sample.WRITERS))
def test_what_a_writer_feeds_is_noted(writer):
    """Against hooks in both models, with prompts of one length: nothing is padded. Forwards and generated tokens
    are those counted. Of tokens processed `fed` has one more per sequence: the last one is written, but not read."""
    for seed in range(4):
        student, teacher = make_pair(seed)
        prompts = [[1 + b % 8, 2, 3] for b in range(6)]
        heard = [Listener(model) for model in (student, teacher)]
        rollout = write(writer, student, teacher, prompts, random_prompts(seed, 6), generator=generator(seed))
        by_model = [source for row in sources_of(rollout) for source in row if source != sample.DATASET]
        if rollout.fed is None:
            assert not any(model.tokens for model in heard) and (writer == "teacher" or not by_model)
            continue
        tokens, (forwards, written) = rollout.fed[:2].tolist(), rollout.fed[[3, 2]].tolist()
        assert tokens == [model.tokens + model.sequences for model in heard] and tokens[0] > 0
        assert forwards == heard[1].forwards and written == len(by_model)


@pytest.mark.parametrize("sampler", ["speculative", "control", "teacher", "student"])
def test_what_a_sampler_feeds_is_noted(sampler):
    """The same for what no writer calls so: speculative decoding, the control without write-back, one model alone."""
    student, teacher = make_pair(3)
    prompts, heard = [[b, 2] for b in range(7)], [Listener(model) for model in (student, teacher)]
    call = {"generator": generator(1), "eos_token": 0}
    if sampler == "speculative":
        rollout = sample.speculative_generate(student, teacher, prompts, 9, **call)
    elif sampler == "control":
        rollout = sample.interleaved_generate(student, teacher, prompts, 9, accept_top_k=2, write_back=False, **call)
    else:
        rollout = sample.generate(teacher if sampler == "teacher" else student, prompts, 9, role=sampler, **call)
    fed = dict(zip(sample.FED, rollout.fed.tolist()))
    assert [fed["student_tokens"], fed["teacher_tokens"]] == [model.tokens + 7 * (model.tokens > 0) for model in heard]
    assert fed["teacher_forwards"] == heard[1].forwards
    assert fed["generated_tokens"] == sum(map(len, rollout.responses()))


@pytest.mark.parametrize("writer", ["student", "interleaved", "teacher_mixed", "switching", "trust_region"])
def test_padding_is_not_fed(writer):
    """Tokens that a batch feeds are those that its sequences feed alone, whatever their prompts' lengths."""
    student, teacher = make_pair(5)
    prompts, options = random_prompts(5, 7), {"interleaved": {"accept_top_k": 3, "gamma": 1}}
    together = write(writer, student, teacher, prompts, None, **options)
    alone = [
        write(writer, student, teacher, [prompt], None, rows=[row], batch_size=7, **options)
        for row, prompt in enumerate(prompts)
    ]
    assert torch.stack([rollout.fed for rollout in alone])[:, :3].sum(0).tolist() == together.fed[:3].tolist()


@pytest.mark.parametrize("writer", list(sample.WRITERS))
def test_references_are_needed_or_not(writer):
    """A writer that needs none writes the same without them; one that does says so in one line, with the argument."""
    (student, teacher), prompts, references = make_pair(6), random_prompts(6, 4), random_prompts(7, 4)
    with_them = write(writer, student, teacher, prompts, references)
    for none, which in ((None, 0), ([None] * 4, 0), ([*references[:2], None, references[3]], 2)):
        if sample.WRITERS[writer].needs_references:
            with pytest.raises(ValueError, match=f"^writer {writer} needs .*, {which} has none: give `responses`$"):
                write(writer, student, teacher, prompts, none)
        else:
            assert torch.equal(write(writer, student, teacher, prompts, none).tokens, with_them.tokens)


def test_a_new_writer_is_one_function_and_one_row(monkeypatch):
    """It writes, and the command line knows which flags reach it."""

    def write_greedily(request):
        return sample.generate(
            request.student, request.prompts, request.max_new_tokens, generator=request.generator, greedy=True
        )

    monkeypatch.setitem(sample.WRITERS, "greedy", sample.Writer(write_greedily, True, False, ("teacher_mix",)))
    student, teacher = make_pair(7)
    rollout = write("greedy", student, teacher, [[1], [2, 3]], None)
    assert rollout.responses() == adapters.generate(student, [[1], [2, 3]], 9, greedy=True)
    assert rollout.fed[0] == rollout.lengths.sum()
    args = types.SimpleNamespace(
        accept_rule="topk", replace="sample", accept_on="raw", no_write_back=False, teacher_top_p=None,
        teacher_temperature=1, student_temperature=1,
    )  # fmt: skip
    assert arguments.ignored_sampling_reason("teacher_mix", "greedy", {}, args) is None
    assert (
        arguments.ignored_sampling_reason("teacher_mix", "student", {}, args)
        == "does not write teacher_mixed or greedy"
    )
    assert arguments.ignored_sampling_reason("student_top_p", "greedy", {}, args) == "trains on no student samples"
    assert arguments.ignored_sampling_reason("gamma", "greedy", {}, args) == "does not write interleaved"


@pytest.mark.parametrize(
    "wrong", [lambda rollout: rollout.responses(), lambda rollout: dataclasses.replace(rollout, source=None)]
)
def test_a_writer_that_returns_no_source_is_refused(wrong, monkeypatch):
    """One line that says what a writer returns, where it has written and not where the source is first asked."""
    student, teacher = make_pair(7)
    right = sample.WRITERS["student"].write
    monkeypatch.setitem(sample.WRITERS, "wrong", sample.Writer(lambda request: wrong(right(request)), True, False, ()))
    with pytest.raises(ValueError, match="writer wrong must return a Rollout whose source"):
        write("wrong", student, teacher, [[1], [2, 3]], None)


UNLABELLED = {  # what a new writer may forget
    "all labels": (lambda rollout: dataclasses.replace(rollout, source=torch.zeros_like(rollout.source)), "as PROMPT"),
    "a row's labels": (
        lambda rollout: dataclasses.replace(rollout, source=rollout.source.index_fill(0, torch.tensor([1]), 0)),
        "as PROMPT"),
    "the cost": (lambda rollout: dataclasses.replace(rollout, fed=None), "no `fed`"),
}  # fmt: skip


@pytest.mark.parametrize("forgotten", UNLABELLED)
def test_a_writer_that_forgets_a_label_or_the_cost_is_refused(forgotten, monkeypatch):
    """Else nobody would have written the tokens, or nobody paid for them. References cost nothing now."""
    student, teacher = make_pair(7)
    right, (change, words) = sample.WRITERS["student"].write, UNLABELLED[forgotten]
    monkeypatch.setitem(sample.WRITERS, "new", sample.Writer(lambda request: change(right(request)), True, False, ()))
    with pytest.raises(ValueError, match="writer new ") as error:
        write("new", student, teacher, [[1], [2, 3]], None)
    assert words in str(error.value) and "\n" not in str(error.value)
    for writer in ("dataset", "teacher"):
        assert write(writer, student, teacher, [[1], [2, 3]], [[4], [5]]).fed is None


# ---------------------------------------------------------------------------------------------------------------------
# Two models that write together.


def test_a_mixture_is_the_mean_of_two_laws():
    """Its rows are log(w first + (1 - w) second), with a cache as without one, and after a rollback."""
    first, second = adapters.make_gpt(11, 16, 1, 2, 8, seed=1), adapters.make_gpt(11, 12, 2, 2, 8, seed=2)
    mixture, tokens = (
        sample.Mixture(first, second, 0.2),
        torch.randint(0, 11, (3, 9), generator=torch.Generator().manual_seed(0)),
    )
    probs = (
        0.2 * adapters.model_logits(first, tokens).softmax(-1)
        + 0.8 * adapters.model_logits(second, tokens).softmax(-1)
    )
    with torch.no_grad():
        cache = mixture.new_cache(3, 12)
        parts = [mixture(part, cache) for part in tokens.split([4, 5], 1)]
        torch.testing.assert_close(torch.cat(parts, 1).exp(), probs, rtol=1e-4, atol=1e-6)
        cache.roll_back(torch.tensor([2, 4, 8]), high=8)
        again = mixture(tokens[[0, 1, 2], [2, 4, 8]][:, None], cache)[:, 0].exp()
    torch.testing.assert_close(again, probs[[0, 1, 2], [2, 4, 8]], rtol=1e-4, atol=1e-6)
    assert mixture.config.block_size == 12  # neither model may leave its block


def test_what_a_mixture_writes():
    """20,000 first tokens follow the mixture, not either model: total variation below .02 (a chance of exceeding it
    below 1e-6: the mean of the statistic is at most .5 sqrt(V / n) = .012, and one draw moves it by 1 / n),
    the models' own above .1."""
    V, n = 11, 20_000
    first, second = adapters.make_gpt(V, 8, 1, 2, 8, seed=1), adapters.make_gpt(V, 8, 1, 2, 8, seed=2)
    with torch.no_grad():
        for model in (first, second):
            for weight in model.parameters():
                if weight.dim() > 1:
                    weight.mul_(0.6 / weight.std())
    rows = [adapters.model_logits(model, torch.tensor([[3, 5]]))[0, -1].softmax(-1) for model in (first, second)]
    rollout = sample.write_tokens(
        "teacher_mixed", second, first, [[3, 5]] * n, [[]] * n, 1, generator=torch.Generator().manual_seed(4),
        eos_token=None, teacher_mix=0.3
    )
    seen = torch.bincount(torch.tensor(rollout.responses()).flatten(), minlength=V) / n
    assert 0.5 * (seen - (0.3 * rows[0] + 0.7 * rows[1])).abs().sum() < 0.02
    assert min(0.5 * (seen - row).abs().sum() for row in rows) > 0.1
    assert bool((rollout.source[:, 2:] == sample.STUDENT).all())


# ---------------------------------------------------------------------------------------------------------------------
# Two models, one after the other (AdaSwitch).


class Spoken:
    """In place of a GPT: says the next of some probabilities at every call, to all rows, or rows[key] to each row."""

    config = GPTConfig(2, 64, 1, 1, 2)

    def __init__(self, probs):
        self.probs = torch.as_tensor(probs, dtype=torch.float64)  # (calls, 2)

    def parameters(self):
        yield self.probs

    def new_cache(self, batch_size, capacity):
        return SpokenCache(batch_size)

    def __call__(self, tokens, cache):
        cache.calls += 1
        return self.probs[cache.calls - 1].log().expand(cache.batch_size, 1, 2)


class SpokenCache:
    def __init__(self, batch_size):
        self.batch_size, self.calls = batch_size, 0

    def roll_back(self, lengths, high=None):
        self.calls = 0

    def keep_rows(self, rows):
        self.batch_size = len(rows)


def teacher_at(distance):
    """Two probabilities whose KL to (.5, .5) is `distance`, by bisection."""
    low, high = 0.5, 1 - 1e-12
    for _ in range(200):
        middle = (low + high) / 2
        apart = middle * math.log(2 * middle) + (1 - middle) * math.log(2 * (1 - middle))
        low, high = (middle, high) if apart < distance else (low, middle)
    return [low, 1 - low]


def first_of_the_teacher(distances, factor, window):
    """Which token (from 1) is the teacher's first where the models are so far apart; None: none.
    Asked as generate asks."""
    teacher = Spoken([teacher_at(distance) for distance in distances])
    both = sample.Switching(Spoken([[0.5, 0.5]] * len(distances)), teacher, factor, window)
    cache = both.new_cache(1, 64)
    both(torch.zeros(1, 3, dtype=torch.long), cache)  # a prompt, of which no distance may be kept
    cache.roll_back(torch.tensor([3]), high=3)
    by_teacher = []
    for place in range(len(distances)):
        row = both(torch.zeros(1, 1, dtype=torch.long), cache)[0, 0].exp()
        by_teacher.append(torch.allclose(row, teacher.probs[place]))
        assert by_teacher[-1] or torch.allclose(row, torch.tensor([0.5, 0.5], dtype=torch.float64))
    first = by_teacher.index(True) if any(by_teacher) else None
    assert by_teacher == [first is not None and place >= first for place in range(len(distances))]  # once, to the end
    assert int(both.first_by_teacher[0]) == (2**31 if first is None else first)
    return None if first is None else first + 1


@pytest.mark.parametrize(
    "distances, factor, window, wanted",
    [
        ((0.1, 0.1, 0.1, 0.5), 3.0, 3, 4),  # the paper's example
        ((0.1, 0.1, 0.1, 0.5), 5.01, 3, None),
        ((0.1, 0.1, 0.1, 0.5, 0.1, 0.1), 3.0, 3, 4),  # once the teacher writes, it writes on
        ((0.1, 0.5), 3.0, 3, 2),  # fewer than `window` before it
        ((0.5, 0.1, 0.1, 0.1), 3.0, 3, None),
        ((0.5, 0.1, 0.1, 0.1, 0.4), 3.0, 3, 5),  # the mean of three: .1
        ((0.5, 0.1, 0.1, 0.1, 0.4), 3.0, 4, None),  # of four: .2
        ((0.5, 0.1, 0.2, 0.3, 0.4), 3.0, 1, None),
        ((0.5, 0.5, 0.5), math.inf, 4, None),
        ((0.5, 0.1, 0.1), 0.0, 4, 2),
    ],
)
def test_when_the_teacher_takes_over(distances, factor, window, wanted):
    """Where the distance first exceeds `factor` times the mean of the up to `window` before it;
    never at the first token."""
    assert first_of_the_teacher(distances, factor, window) == wanted


def switched(student, teacher, prompts, budget, seed=0, rows=None, eos_token=None, **knobs):
    return sample.write_tokens(
        "switching", student, teacher, prompts, prompts, budget, generator=generator(seed), eos_token=eos_token,
        switching=knobs, rows=rows
    )


def switch_by_loop(student, teacher, prompt, budget, key, eos_token, factor, window, seed=0):
    """(response, sources): one token at a time, no cache, the rule as it reads."""
    noise, response, distances, sources = sample.Noise(generator(seed), torch.tensor([key])), [], [], []
    while len(response) < budget and eos_token not in response and len(prompt) + len(response) < 24:
        rows = [adapters.model_logits(model, torch.tensor([prompt + response]))[0, -1] for model in (student, teacher)]
        own, other = (row.softmax(-1) for row in rows)
        distances.append((other * (other / own).log()).sum().item())
        before = distances[-1 - window : -1]
        strays = bool(before) and distances[-1] > factor * sum(before) / len(before)
        sources.append(TEACHER if strays or TEACHER in sources else STUDENT)
        uniform = noise(torch.tensor([len(prompt) + len(response)]), "student")
        response.append(int(sample.draw(rows[sources[-1] == TEACHER][None], uniform)))
    return response, sources


@pytest.mark.parametrize("factor, window", [(1.2, 4), (2.0, 1), (1.5, 2), (3.0, 3)])
def test_switching_equals_a_loop(factor, window):
    """Batched and cached, with rows that end at different times:
    each row is what a loop writes for it, sources included."""
    switches = 0
    for seed in range(6):
        student, teacher = make_pair(seed)
        prompts = random_prompts(seed, 7)
        rollout = switched(student, teacher, prompts, 11, eos_token=0, factor=factor, window=window)
        for key, prompt in enumerate(prompts):
            response, sources = switch_by_loop(student, teacher, prompt, 11, key, 0, factor, window)
            assert rollout.responses()[key] == response and sources_of(rollout)[key] == sources
            switches += TEACHER in sources
        assert len(set(rollout.lengths.tolist())) > 2  # rows left the batch one after the other
    assert 0 < switches


def test_a_row_switches_for_itself():
    """A row alone, with its key, is the row in a batch that others have left."""
    student, teacher = make_pair(11)
    prompts = random_prompts(11, 9)
    whole = switched(student, teacher, prompts, 12, eos_token=0, factor=1.5, window=3)
    for row, prompt in enumerate(prompts):
        alone = switched(student, teacher, [prompt], 12, rows=[row], eos_token=0, factor=1.5, window=3)
        assert alone.responses()[0] == whole.responses()[row] and sources_of(alone)[0] == sources_of(whole)[row]


def test_never_switching_is_the_student():
    """factor inf: the student's own tokens, bit for bit, and its name on all of them."""
    student, teacher = make_pair(12)
    prompts = random_prompts(12, 8)
    rollout = switched(student, teacher, prompts, 12, seed=3, eos_token=0, factor=math.inf)
    own = sample.generate(student, prompts, 12, generator=generator(3), eos_token=0)
    assert torch.equal(rollout.tokens, own.tokens) and torch.equal(rollout.source, own.source)
    assert torch.equal(rollout.finished, own.finished) and torch.equal(rollout.lengths, own.lengths)


def test_switching_at_once_leaves_one_token_to_the_student():
    """factor 0: the student's first token, and behind it what the teacher draws for the same noise."""
    student, teacher = make_pair(13)
    prompts = random_prompts(13, 8, longest=6)
    rollout = switched(student, teacher, prompts, 12, seed=3, factor=0.0)
    first = [response[0] for response in rollout.responses()]
    own = sample.generate(student, prompts, 1, generator=generator(3))
    assert [[token] for token in first] == own.responses()
    rest = sample.generate(
        teacher, [prompt + [token] for prompt, token in zip(prompts, first)], 11, generator=generator(3)
    )
    assert [response[1:] for response in rollout.responses()] == rest.responses()
    assert all(row == [STUDENT] + [TEACHER] * 11 for row in sources_of(rollout))


def test_answers_of_the_teacher_are_labelled_so():
    """reference_source: references that the teacher wrote say so, the student's rows say student;
    the default is DATASET."""
    student, teacher = make_pair(14)
    prompts, answers = random_prompts(14, 12), random_prompts(15, 12)
    for source, wanted in (({}, sample.DATASET), ({"reference_source": TEACHER}, TEACHER)):
        for writer, share in (("mixed", 0.5), ("dataset", 0.0)):
            rollout = sample.write_tokens(
                writer, student, teacher, prompts, answers, 8, generator=generator(2), eos_token=0, student_share=share,
                mix_per="sequence", **source
            )
            labels = [set(row) for row in sources_of(rollout)]
            assert (
                {wanted} in labels
                and ({STUDENT} in labels) == (writer == "mixed")
                and all(len(label) == 1 for label in labels)
            )
            for label, response, answer in zip(labels, rollout.responses(), answers):
                assert label == {STUDENT} or response == answer
