"""Generation: plain, interleaved (SKD, arXiv 2410.11325) and lossless speculative; who writes.

    generate               one model writes                                     (on-policy KD, SeqKD, evaluation)
    interleaved_reference  the student proposes, the teacher replaces what it ranks poorly (SKD, Algorithm 1): one
                           sequence, one token at a time, no cache: slow and obviously right
    interleaved_plain      the same in blocks, batched and cached: the loop to read
    interleaved_generate   the same, fast: the one that training uses
    speculative_generate   the draft proposes, the result is distributed exactly as the target's own samples
    write_tokens           one batch of training tokens, by one of WRITERS

The samplers that draft share four functions of one block: `draft` (the student proposes gamma tokens), `countable`
(which of them count), `verify` (after one teacher forward over all of them: the leading accepted ones stay) and
`commit` (the first rejected one is replaced, the rest is thrown away). InterleavedRules and SpeculativeRules say which
proposals stay and what replaces one.

Two decisions make all of this testable token for token:

1. Noise is keyed by (row key, position, role), see `Noise`. A draw does not depend on what was drawn before it, so the
   output is the same for every gamma, batch, padding and cache. A position that is drafted twice gets the same uniform
   twice, without bias: whatever discarded the first draft depends on earlier positions only.
2. No bonus token. Textbook speculative decoding appends a teacher token after a fully accepted block; then every
   (gamma+1)-th token would come from the teacher and the distribution of an SKD rollout would depend on gamma.

Symbols: gamma = block length (paper: gamma); accept_top_k = teacher rank within which a proposal stays (paper: K);
accepted / replaced / discarded = kept, redrawn, thrown away after a replacement; judged = accepted + replaced.
Shapes: B sequences, n of them still running, T positions, V vocabulary, G = gamma. Every cache holds length - 1 valid
slots: one token is always pending.
"""

if __name__ == "__main__":
    import lab.interrupted  # noqa: F401  Ctrl-C while torch is imported ends with one line

import inspect
import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
import torch.nn.functional as F

from model import Mixture, Switching, TrustRegion, shared_vocabulary, to_device

PROMPT, STUDENT, TEACHER, DATASET = 0, 1, 2, 3  # Rollout.source: who wrote a token
SOURCE_NAMES = ("prompt", "student", "teacher", "dataset")
COUNTERS = ("proposed", "judged", "accepted", "replaced", "discarded", "teacher_calls", "student_steps")
SMALLEST_DIVISOR = 1e-30  # of a temperature: logits of 1e8 divided by it are still numbers in float32
FED = ("student_tokens", "teacher_tokens", "generated_tokens", "teacher_forwards")  # Rollout.fed
TRUST_REGION = 0.02  # nats per token: TRB's KL to the student, one of its paper's settings
BROKEN = "a model's logits are nan or infinite: its weights are broken, or its training diverged (lower --lr)"


class Block(NamedTuple):
    """One block of a speculative sampler, for the n rows that were still running; what `Rollout.blocks` lists."""

    rows: torch.Tensor  # (n,) long, their numbers in the batch
    start: torch.Tensor  # (n,) long, the position of the first proposal
    proposed: torch.Tensor  # (n, G) long
    drafted: torch.Tensor  # (n,) how many of them count: within the budget, not behind a drafted end token
    accepted: torch.Tensor  # (n,)
    judged: torch.Tensor  # (n,) accepted + replaced


@dataclass
class Rollout:
    """What a writer hands to the training step: B rows, prompts and responses in one right-padded tensor."""

    tokens: torch.Tensor  # (B, T) long, 0 after each row's end
    prompt_len: torch.Tensor  # (B,) long
    lengths: torch.Tensor  # (B,) long, prompt + response, the end token included
    source: torch.Tensor  # (B, T) int8: PROMPT, STUDENT, TEACHER or DATASET
    finished: torch.Tensor  # (B,) bool: ended by the end token, not by the budget
    teacher_logits: torch.Tensor | None = None  # (B, T-1, V), row t judged token t+1; defined on response rows only
    teacher_features: torch.Tensor | None = None  # (B, T-1, C) in their place, if asked for
    # (B, T) long: the token NOT written where a proposal was rejected, else -1.
    rejected_tokens: torch.Tensor | None = None
    counters: torch.Tensor | None = None  # (7,) long, named by COUNTERS, summed over rows
    blocks: list = field(default_factory=list)  # of Block
    fed: torch.Tensor | None = None  # (4,) long, named by FED: what writing it took; None where the tokens existed

    @property
    def response_mask(self):
        """(B, T) bool, True on response tokens. From lengths, not from token ids: padding may equal the end token."""
        slots = torch.arange(self.tokens.size(1), device=self.tokens.device)
        return (slots >= self.prompt_len[:, None]) & (slots < self.lengths[:, None])

    def responses(self):
        """The responses as lists of ids."""
        rows = zip(self.tokens.tolist(), self.prompt_len.tolist(), self.lengths.tolist())
        return [row[start:stop] for row, start, stop in rows]

    def counts(self):
        """The counters as a dict of ints (reads the device once)."""
        return dict(zip(COUNTERS, self.counters.tolist()))


# ---------------------------------------------------------------------------------------------------------------------
# 1. Noise and draws.


def _mix(x):
    """SplitMix64's finaliser on int64 tensors (wrap-around arithmetic): neighbouring inputs, unrelated outputs."""
    # >> keeps the sign in torch, so the copied sign bits are cut off with a mask: a logical shift.
    x = (x ^ ((x >> 30) & 0x3FFFFFFFF)) * -0x40A7B892E31B1A47
    x = (x ^ ((x >> 27) & 0x1FFFFFFFFF)) * -0x6B2FB644ECCEEE15
    return x ^ ((x >> 31) & 0x1FFFFFFFF)


class Noise:
    """Uniform numbers in (0, 1), a function of (one draw of the generator, row key, position, role) and nothing else.

    A counter-based generator instead of a stream: row 3 alone, with key 3, gets what row 3 of a batch got.
    """

    # A role is one independent number at a position.
    ROLES = {"student": 1, "teacher": 2, "accept": 3, "fresh": 4, "target": 5}

    def __init__(self, generator, row_keys):
        assert isinstance(generator, torch.Generator), "draws take a torch.Generator of their own, none was given"
        seed = torch.randint(2**62, (), generator=generator).item()  # a CPU generator: no device is asked
        self.row_seeds = _mix(_mix(row_keys.long()) + seed)  # (B,)

    def __call__(self, positions, role):
        """(B, ...) long -> float32 of the same shape, for Noise.ROLES[role]."""
        row_seeds = self.row_seeds.view(-1, *[1] * (positions.dim() - 1))
        bits = _mix(_mix(row_seeds + positions) + self.ROLES[role]) & 0x3FFFFF
        # 22 bits and a half step: never 0, and never so close to 1 that u * total rounds up to the total in float32.
        return (bits.float() + 0.5) * 2.0**-22

    def table(self, width, role):
        """(B, width) uniforms of all positions below `width`: a sampler looks its numbers up in it."""
        return self(torch.arange(width, device=self.row_seeds.device).expand(len(self.row_seeds), -1), role)


def warp(model_logits, temperature=1.0, top_k=None, top_p=None):
    """Sampling filters: logits / temperature, then -inf outside the top-k, then outside the nucleus of mass top_p.

    (..., V) -> (..., V). Ties at the k-th place all stay; the nucleus is the smallest top set with mass >= top_p. For
    drawing only: never hand warped logits to a loss.
    """
    too_cold = not temperature >= SMALLEST_DIVISOR
    if too_cold or (top_k is not None and top_k < 1) or (top_p is not None and not 0 < top_p <= 1):
        raise ValueError(
            f"temperature must be at least {SMALLEST_DIVISOR:g}, top_p in (0, 1], top_k at least 1; "
            f"found {temperature}, {top_p}, {top_k}"
        )
    warped = model_logits.float() if temperature == 1 else model_logits.float() / temperature
    if top_k is not None and top_k < warped.size(-1):
        kth_largest = warped.topk(top_k, dim=-1).values[..., -1:]
        warped = warped.masked_fill(warped < kth_largest, float("-inf"))
    if top_p is not None and top_p < 1:
        ordered, order = warped.sort(dim=-1, descending=True)
        probs = ordered.softmax(-1)
        outside = probs.cumsum(-1) - probs >= top_p  # the mass of all likelier tokens already suffices
        warped = warped.masked_fill(outside.scatter(-1, order, outside), float("-inf"))
    return warped


def draw(model_logits, uniform, temperature=1.0, top_k=None, top_p=None):
    """One token per row from warped logits: (..., V), uniform (...,) -> (...,) long; temperature 0 takes the argmax.

    One uniform per draw, several times faster than torch.multinomial. Raises ValueError for nan on a CPU.
    """
    if temperature == 0:
        return model_logits.argmax(-1)
    probs = warp(model_logits, temperature, top_k, top_p).softmax(-1)
    return inverse_cdf(probs, uniform[..., None])[..., 0]


def inverse_cdf(probs, uniform):
    """The first token whose cumulative mass exceeds uniform * total: (..., V), (..., N) -> (..., N) long.

    A token of mass 0 is never drawn. A row of nan has no such token: ValueError on a CPU. On a GPU nothing is checked,
    since that would wait for the device: the last token is returned, and the loss becomes nan.
    """
    cumulative = probs.cumsum(-1)
    drawn, last = torch.searchsorted(cumulative, uniform * cumulative[..., -1:], right=True), probs.size(-1) - 1
    if drawn.device.type == "cpu" and drawn.numel() and int(drawn.max()) > last:
        raise ValueError(BROKEN)
    return drawn.clamp(max=last)


# ---------------------------------------------------------------------------------------------------------------------
# 2. Which proposals stay. An accept rule is one function and one row of ACCEPT_RULES: (teacher_logits (..., V),
# proposed (...,) long, uniform (...,) in (0, 1), position (...,) long, tokens of the response before it) -> (...,)
# bool. Its own numbers are keyword-only arguments, each annotated with the Range of its legal values.
# Rules judge the drafted token on the teacher's raw logits (T = 1, nothing cut off), as Algorithm 1 does.


class Range(NamedTuple):
    """The legal values of a rule's number."""

    says: str  # what an error message says about them
    allows: Callable  # number -> bool

    def check(self, name, value):
        """Raise a one-line ValueError for a value outside."""
        if not isinstance(value, int | float) or not self.allows(value):
            raise ValueError(f"{name} {self.says}, found {value}")


RANK = Range("must be at least 0", lambda value: value >= 0)
SHARE = Range("is a share or a probability, 0..1", lambda value: 0 <= value <= 1)
FACTOR = Range("must be a finite number of at least 0", lambda value: 0 <= value < math.inf)
LENGTH = Range(
    f"must be a finite number of at least {SMALLEST_DIVISOR:g}", lambda value: SMALLEST_DIVISOR <= value < math.inf
)


def rank(model_logits, tokens):
    """Number of strictly larger logits: 0 for the argmax; (..., V), (...,) -> (...,). Counting beats sorting here."""
    return (model_logits > model_logits.gather(-1, tokens[..., None])).sum(-1)


def _accept_topk(teacher_logits, proposed, uniform, position, *, accept_top_k: RANK = 25):
    """SKD: among the teacher's accept_top_k largest logits (0 accepts none, V accepts all)."""
    return rank(teacher_logits, proposed) < accept_top_k


def _accept_topk_along(
    teacher_logits, proposed, uniform, position, *, accept_top_k: RANK = 25, first: FACTOR = 1.0, last: FACTOR = 0.2,
    along: LENGTH = 32,
):  # fmt: skip
    """topk with a K that moves in a straight line: from first * accept_top_k to last * accept_top_k at `along`."""
    share = (position / along).clamp(max=1.0)
    return rank(teacher_logits, proposed) < accept_top_k * (first + (last - first) * share)


def _accept_topp(teacher_logits, proposed, uniform, position, *, accept_top_p: SHARE = 0.9):
    """In the teacher's nucleus: the tokens that are strictly likelier hold less than accept_top_p of the mass."""
    larger = teacher_logits > teacher_logits.gather(-1, proposed[..., None])
    return (teacher_logits.float().softmax(-1) * larger).sum(-1) < accept_top_p


def _teacher_prob(teacher_logits, proposed):
    return teacher_logits.float().log_softmax(-1).gather(-1, proposed[..., None])[..., 0].exp()


def _accept_minprob(teacher_logits, proposed, uniform, position, *, accept_min_prob: SHARE = 0.05):
    """The teacher gives it at least accept_min_prob: rank is not confidence (CA-OPD's gate)."""
    return _teacher_prob(teacher_logits, proposed) >= accept_min_prob


def _accept_typical(teacher_logits, proposed, uniform, position, *, accept_epsilon: SHARE = 0.3):
    """Typical acceptance: teacher prob > min(eps^2, eps exp(-H)); the bar falls where the teacher itself is unsure."""
    logprobs = teacher_logits.float().log_softmax(-1)
    teacher_entropy = -(logprobs.exp() * logprobs).sum(-1)
    bar = (accept_epsilon * torch.exp(-teacher_entropy)).clamp(max=accept_epsilon**2)
    return _teacher_prob(teacher_logits, proposed) > bar


def _accept_argmax(teacher_logits, proposed, uniform, position):
    """Only the teacher's argmax."""
    return rank(teacher_logits, proposed) < 1


def _accept_all(teacher_logits, proposed, uniform, position):
    """The limit K = V: plain on-policy sampling."""
    return torch.ones_like(proposed, dtype=torch.bool)


def _accept_none(teacher_logits, proposed, uniform, position):
    """The limit K = 0: plain teacher sampling."""
    return torch.zeros_like(proposed, dtype=torch.bool)


def _accept_random(teacher_logits, proposed, uniform, position, *, replace_rate: SHARE = 0.05):
    """Control: replace blindly at a given rate. What SKD gains over this at the same rate, the judging gained."""
    return uniform >= replace_rate


ACCEPT_RULES = {
    "topk": _accept_topk,
    "topk_along": _accept_topk_along,
    "topp": _accept_topp,
    "minprob": _accept_minprob,
    "typical": _accept_typical,
    "argmax": _accept_argmax,
    "all": _accept_all,
    "none": _accept_none,
    "random": _accept_random,
}


def knobs_of(accept_rule):
    """The numbers that an accept rule takes: name -> Range."""
    arguments = inspect.signature(ACCEPT_RULES[accept_rule]).parameters.values()
    return {argument.name: argument.annotation for argument in arguments if argument.kind is argument.KEYWORD_ONLY}


RANKED = tuple(name for name in ACCEPT_RULES if "accept_top_k" in knobs_of(name))  # the rules that know accept_top_k


def _accept_warped(teacher_logits, proposed, uniform, position, *, accept_top_k, temperature, top_p):
    """accept_on="warped", the released code's topk: among the accept_top_k likeliest after temperature and top-p."""
    # Few tokens keep any mass after top-p; topk fills up with arbitrary ids of mass 0, as the released code does.
    if accept_top_k == 0:
        return torch.zeros_like(proposed, dtype=torch.bool)
    probs = warp(teacher_logits, temperature, top_p=top_p).softmax(-1)
    return (probs.topk(math.ceil(accept_top_k), dim=-1).indices == proposed[..., None]).any(-1)


# What a rejected proposal is replaced by: the keywords of `draw` on the teacher's row.
REPLACE_RULES = {
    "sample": lambda accept_top_k, temperature, top_p: {"temperature": temperature, "top_p": top_p},
    "sample_topk": lambda accept_top_k, temperature, top_p: {
        "temperature": temperature,
        "top_k": max(1, math.ceil(accept_top_k)),
    },
    "argmax": lambda accept_top_k, temperature, top_p: {"temperature": 0},
}


def check_rule(accept_rule, replace, accept_on, gamma, accept_top_k, rule):
    """Raise a one-line ValueError for a rule, a knob or a number that the interleaved sampler does not know."""
    if accept_rule not in ACCEPT_RULES:
        raise ValueError(f"unknown accept rule {accept_rule!r}: choose from {', '.join(ACCEPT_RULES)}")
    if replace not in REPLACE_RULES:
        raise ValueError(f"unknown replace rule {replace!r}: choose from {', '.join(REPLACE_RULES)}")
    if accept_on not in ("raw", "warped") or (accept_on == "warped" and accept_rule != "topk"):
        raise ValueError(
            f"accept_on must be raw, or warped with the topk rule; found {accept_on!r} with {accept_rule!r}"
        )
    _check_gamma(gamma)
    RANK.check("accept_top_k", accept_top_k)
    known = {name: allowed for name, allowed in knobs_of(accept_rule).items() if name != "accept_top_k"}
    for name, value in rule.items():
        if name not in known:
            raise ValueError(f"accept rule {accept_rule} has no knob {name!r}: it takes {', '.join(known) or 'none'}")
        known[name].check(name, value)


def _check_gamma(gamma):
    if gamma is not None and not (isinstance(gamma, int) and gamma >= 1):
        raise ValueError(f"gamma must be at least 1, found {gamma!r}; it is a whole number or None")


# ---------------------------------------------------------------------------------------------------------------------
# 3. Plain generation.


def _start(prompts, max_new_tokens, block_size, vocab_size, eos_token, device, spare):
    """Prompts (lists of ids) -> right-padded tokens (B, max end + spare), prompt_len (B,), end (B,), both as lists."""
    if isinstance(prompts, torch.Tensor) or any(not hasattr(prompt, "__len__") for prompt in prompts):
        raise ValueError("prompts are a list of lists of token ids, one per row: put a single prompt into brackets")
    if not prompts:
        raise ValueError("no prompts: give at least one list of token ids")
    lengths = [len(prompt) for prompt in prompts]
    if min(lengths) < 1:
        raise ValueError(f"prompt {lengths.index(0)} is empty: a model predicts from at least one token")
    if max(lengths) >= block_size:
        raise ValueError(
            f"prompt {lengths.index(max(lengths))} has {max(lengths)} tokens, but block_size is {block_size}: "
            "shorten the prompt, or train models with a larger block_size"
        )
    if not isinstance(max_new_tokens, int) or max_new_tokens < 1:
        raise ValueError(f"max_new_tokens must be at least 1, found {max_new_tokens}")
    if eos_token is not None and not (isinstance(eos_token, int) and 0 <= eos_token < vocab_size):
        raise ValueError(f"eos_token {eos_token} is no id of this vocabulary, 0..{vocab_size - 1}: it would never come")
    ends = [min(length + max_new_tokens, block_size) for length in lengths]  # the block's end is a length limit too
    tokens = torch.zeros(len(prompts), max(ends) + spare, dtype=torch.long)
    for number, (row, prompt) in enumerate(zip(tokens, prompts)):
        try:
            ids = torch.as_tensor(prompt)
        except (TypeError, ValueError, RuntimeError):  # text, None, a number of more than 64 bits
            ids = None
        if ids is None or ids.dtype != torch.long or ids.dim() != 1:
            raise ValueError(f"prompt {number} is no list of token ids (whole numbers): encode the text first")
        row[: len(prompt)] = ids
    low, high = int(tokens.min()), int(tokens.max())  # still on the host
    if low < 0 or high >= vocab_size:
        found = low if low < 0 else high
        raise ValueError(f"a prompt holds token id {found}, the vocabulary has 0..{vocab_size - 1}")
    return *(to_device(x, device) for x in (tokens, torch.tensor(lengths), torch.tensor(ends))), lengths, ends


def _close_ranks(done):
    """Sequences that still run, in their new order: the last ones fill the gaps of those that are done.

    [no, yes, no, no] -> [0, 3, 2]: with KVCache.keep_rows this copies one row, not the batch.
    """
    left = done.count(False)
    movers = (row for row in range(left, len(done)) if not done[row])
    return [next(movers) if done[row] else row for row in range(left)]


def _prefill(model, tokens, prompt_len, width, capacity):
    """A cache that holds all prompt tokens but the last of each row. Padding is cached too, and overwritten later."""
    cache = model.new_cache(len(tokens), capacity)
    if width > 1:
        model(tokens[:, : width - 1], cache)
    cache.roll_back(prompt_len - 1, high=width - 1)
    return cache


def _row_keys(row_keys, B, device):
    """Row keys as a (B,) tensor: the row's index unless given."""
    if row_keys is None:
        return torch.arange(B, device=device)
    assert len(row_keys) == B, f"{len(row_keys)} row keys for {B} prompts"
    row_keys = torch.as_tensor(row_keys)
    assert row_keys.dtype == torch.long or not B, f"row keys are whole numbers, found {row_keys.dtype}"
    return to_device(row_keys, device)


def _device(model):
    return next(model.parameters()).device


def _check_numbers(model_rows):
    """ValueError for nan in logits that a model gave, on a CPU; elsewhere the question would cost a wait."""
    if model_rows.device.type == "cpu" and not bool(model_rows.amax(-1).isfinite().all()):
        raise ValueError(BROKEN)


def _as_rollout(tokens, prompt_len, length, source, finished, T, **more):
    """The first T columns as a Rollout, 0 and PROMPT where no response stands. source: one label, or (B, T or more)."""
    padding = torch.arange(T, device=tokens.device) >= length[:, None]
    rollout = Rollout(tokens[:, :T].masked_fill(padding, 0), prompt_len, length, source, finished, **more)
    labels = source[:, :T] if isinstance(source, torch.Tensor) else source
    rollout.source = torch.where(rollout.response_mask, labels, PROMPT).to(torch.int8)
    return rollout


def _fed(prompt_len, length, feeds):
    """Rollout.fed of `generate`: each model in `feeds` reads every token: one forward for the prompts, one a step."""
    read, written = length.sum(), length - prompt_len
    student, teacher = (int(role in feeds) for role in ("student", "teacher"))
    return torch.stack([student * read, teacher * read, written.sum(), teacher * (1 + written.max())])


@torch.no_grad()
def generate(
    model, prompts, max_new_tokens, *, generator, temperature=1.0, top_k=None, top_p=None, greedy=False,
    eos_token=None, row_keys=None, role="student",
):  # fmt: skip
    """Let one model continue every prompt: list of B lists of ids -> Rollout (source = STUDENT, or TEACHER by `role`).

    Rows end at `eos_token` (kept), after max_new_tokens, or at the block's end. `generator` is a CPU torch.Generator;
    `role` picks the noise and the label: "teacher" draws the very tokens that interleaved_generate draws at K = 0.
    """
    if role not in ("student", "teacher"):
        raise ValueError(f"role must be student or teacher, found {role!r}")
    device = _device(model)
    ask_every = 1 if device.type == "cpu" else 8  # steps between questions to the device: who is done?
    tokens, prompt_len, end, prompt_lens, ends = _start(
        prompts, max_new_tokens, model.config.block_size, model.config.vocab_size, eos_token, device, spare=ask_every
    )
    uniforms = Noise(generator, _row_keys(row_keys, len(prompts), device)).table(tokens.size(1), role)  # (B, T)
    cache = _prefill(model, tokens, prompt_len, max(prompt_lens), tokens.size(1))
    live, at, recent = torch.arange(len(prompts), device=device), prompt_len, []  # (n,) rows that are still written
    current = tokens[live, at - 1][:, None]  # (n, 1) the pending token
    while True:
        model_row = model(current, cache)[:, -1]
        new = draw(model_row, uniforms[live, at], 0 if greedy else temperature, top_k, top_p)
        tokens[live, at] = new  # a row that is done writes on until somebody asks; that is cut off below
        at, current = at + 1, new[:, None]
        recent.append(new)
        if len(recent) == ask_every:
            over = at >= end[live]
            if eos_token is not None:
                over = over | (torch.stack(recent) == eos_token).any(0)
            done, recent = over.tolist(), []
            if all(done):
                break
            if any(done):  # work on with the rest only
                kept = _close_ranks(done)
                cache.keep_rows(kept)
                kept = to_device(torch.tensor(kept), device)
                live, at, current = live[kept], at[kept], current[kept]

    slots = torch.arange(tokens.size(1), device=device)
    ended = (tokens == eos_token) & (slots >= prompt_len[:, None]) & (slots < end[:, None])  # all False without one
    finished = ended.any(1)
    length = torch.where(finished, ended.long().argmax(1) + 1, end)  # argmax: the first one
    source, feeds = TEACHER if role == "teacher" else STUDENT, getattr(model, "feeds", (role,))
    fed = _fed(prompt_len, length, feeds)
    return _as_rollout(tokens, prompt_len, length, source, finished, int(length.max()), fed=fed)


# ---------------------------------------------------------------------------------------------------------------------
# 4. One block of G drafted tokens, for n sequences that are still running.


class Draft(NamedTuple):
    """What the student proposes in one block."""

    inputs: torch.Tensor  # (n, G) long, what both models read: the pending token, then every proposal but the last
    proposed: torch.Tensor  # (n, G) long
    student_rows: list  # G x (n, V), the student's logits: proposed[:, j] was drawn from student_rows[j]


class Verdict(NamedTuple):
    """What becomes of the proposals of one block."""

    accepted: torch.Tensor  # (n,) long: so many leading proposals stay
    judged: torch.Tensor  # (n,) long, accepted + replaced: so many tokens the block adds
    rejected: torch.Tensor  # (n, G) bool: the proposal that is replaced, at most one per sequence
    at: tuple  # index into (n, G), or ... for all of it: where a replacement is drawn; unused where none was rejected


class Commit(NamedTuple):
    """Where the sequences stand after a block."""

    written: torch.Tensor  # (n, G) long; the first `judged` of a row are part of the sequence
    length: torch.Tensor  # (n,) long
    finished: torch.Tensor  # (n,) bool: the end token is among them


def draft(student, cache, pending, uniform, sampling):
    """The student proposes G tokens, each one fed the token before it -> Draft. Only `cache` moves on, by G slots.

    pending (n,) long: the last token of each sequence, which the cache does not hold yet; uniform (n, G): one number
    per draw; sampling: keywords of `draw`.
    """
    tokens, rows = [pending], []
    for numbers in uniform.unbind(1):
        rows.append(student(tokens[-1][:, None], cache)[:, -1])  # (n, V)
        tokens.append(draw(rows[-1], numbers, **sampling))
    return Draft(torch.stack(tokens[:-1], 1), torch.stack(tokens[1:], 1), rows)


def countable(proposed, positions, end, eos_token):
    """Which proposals count, (n, G) bool: within the budget, and no end token drafted before. A leading run of True.

    proposed, positions (n, G) long; end (n, 1) long: the first position behind the budget. With end token 0, proposals
    5 0 7 8 at positions 3 4 5 6 and a budget that ends at 6: True True False False.
    """
    counts = positions < end
    if eos_token is not None:
        is_eos = proposed == eos_token
        counts &= is_eos.cumsum(1) == is_eos
    return counts


def verify(stays, counts):
    """The leading accepted proposals stay, the first rejected one is replaced -> Verdict.

    stays (n, G) bool: what an accept rule says about each proposal; counts (n, G) bool: see `countable`. Of stays
    T T F T, all of which count, two are accepted, three judged, and the third is rejected; T T T T has no rejection.
    """
    (n, G), device = stays.shape, stays.device
    accepted = (stays & counts).long().cumprod(1).sum(1)
    at = (torch.arange(n, device=device), accepted.clamp(max=G - 1))
    rejected = (torch.arange(G, device=device) == accepted[:, None]) & counts
    return Verdict(accepted, accepted + rejected.sum(1), rejected, at)


def commit(proposed, verdict, replacement, start, eos_token):
    """Put the replacement in the place of the rejected proposal -> Commit.

    proposed (n, G) long; replacement (n, 1) or (n, G) long; start (n,) long: the position of the first proposal.
    """
    written = torch.where(verdict.rejected, replacement, proposed)
    finished = torch.zeros_like(start, dtype=torch.bool)
    if eos_token is not None:
        columns = torch.arange(proposed.size(1), device=proposed.device)
        finished = ((written == eos_token) & (columns < verdict.judged[:, None])).any(1)
    return Commit(written, start + verdict.judged, finished)


class InterleavedRules(NamedTuple):
    """SKD: which proposals stay, and what replaces one that does not."""

    accept: Callable  # one of ACCEPT_RULES
    knobs: dict  # its own numbers
    student: dict  # keywords of `draw`: the student's proposals
    replacement: dict  # keywords of `draw`: the teacher's replacement
    fresh: bool  # judge a second draw of the student's in place of the proposal

    @property
    def roles(self):
        """The noise that a block needs."""
        return ("student", "teacher", "accept", "fresh") if self.fresh else ("student", "teacher", "accept")

    def stays(self, block, teacher_rows, uniform, position):
        """(n, G) bool. block: Draft; teacher_rows (n, G, V): row j judges proposal j; uniform: role -> (n, G)."""
        proposed = block.proposed
        if self.fresh:
            proposed = draw(torch.stack(block.student_rows, 1), uniform["fresh"], **self.student)
        kept = self.accept(teacher_rows, proposed, uniform["accept"], position, **self.knobs)
        if kept.shape != proposed.shape or kept.dtype != torch.bool:
            raise ValueError(
                f"an accept rule returns one bool per proposal, here {tuple(proposed.shape)}: "
                f"{self.accept.__name__} returned {tuple(kept.shape)} {kept.dtype}"
            )
        return kept

    def redraw(self, block, teacher_rows, at, uniform):
        """The teacher's tokens at the index `at` into (n, G)."""
        return draw(teacher_rows[at], uniform["teacher"][at], **self.replacement)


def interleaved_rules(
    student, teacher, *, gamma=None, accept_rule="topk", accept_top_k=25, replace="sample", student_temperature=1.0,
    student_top_p=None, teacher_temperature=1.0, teacher_top_p=None, accept_on="raw", judge_fresh=False, **rule,
):  # fmt: skip
    """The options of interleaved_generate as InterleavedRules; ValueError for a wrong one, and for two vocabularies."""
    check_rule(accept_rule, replace, accept_on, gamma, accept_top_k, rule)
    vocab_size = shared_vocabulary(student, teacher)
    accept, knobs = ACCEPT_RULES[accept_rule], rule
    if "accept_top_k" in knobs_of(accept_rule):
        knobs = {"accept_top_k": min(accept_top_k, vocab_size), **rule}
    if accept_on == "warped":
        accept, knobs = _accept_warped, {**knobs, "temperature": teacher_temperature, "top_p": teacher_top_p}
    draws = {"temperature": student_temperature, "top_p": student_top_p}
    replacement = REPLACE_RULES[replace](accept_top_k, teacher_temperature, teacher_top_p)
    return InterleavedRules(accept, knobs, student=draws, replacement=replacement, fresh=judge_fresh)


# ---------------------------------------------------------------------------------------------------------------------
# 5. Interleaved sampling (SKD), as it is read: the algorithm as printed, and in blocks.


@torch.no_grad()
def interleaved_reference(
    student, teacher, prompt, max_new_tokens, *, generator, accept_rule="topk", accept_top_k=25, replace="sample",
    student_temperature=1.0, teacher_temperature=1.0, eos_token=None, row_key=0, **rule,
):  # fmt: skip
    """Algorithm 1 as printed: one prompt, one token at a time, no cache. -> (response ids, sources), the test's oracle.

    Given the same seed and row key, interleaved_generate returns exactly these tokens for every gamma and batch.
    """
    device = _device(student)
    noise = Noise(generator, torch.tensor([row_key], device=device))
    if accept_rule in RANKED:
        rule = {"accept_top_k": accept_top_k, **rule}
    replacement_law = REPLACE_RULES[replace](accept_top_k, teacher_temperature, None)
    sequence, sources = list(prompt), []
    end = min(len(prompt) + max_new_tokens, student.config.block_size, teacher.config.block_size)
    while len(sequence) < end:
        prefix, position = torch.tensor([sequence], device=device), torch.tensor([len(sequence)], device=device)
        student_row, teacher_row = student(prefix)[:, -1], teacher(prefix)[:, -1]  # (1, V)
        token = draw(student_row, noise(position, "student"), student_temperature)
        source = STUDENT
        uniform, written = noise(position, "accept"), position - len(prompt)
        if not ACCEPT_RULES[accept_rule](teacher_row, token, uniform, written, **rule):
            token = draw(teacher_row, noise(position, "teacher"), **replacement_law)
            source = TEACHER
        sequence.append(int(token))
        sources.append(source)
        if sequence[-1] == eos_token:
            break
    return sequence[len(prompt) :], sources


@torch.no_grad()
def interleaved_plain(
    student, teacher, prompts, max_new_tokens, *, generator, gamma=4, eos_token=None, row_keys=None, **options
):
    """SKD's sampling in blocks of gamma tokens, batched and cached. The loop to read. B lists of ids -> Rollout.

    interleaved_generate writes the same tokens for the same generator, and is fast. Here the block length is fixed, all
    sequences stay in the batch (for one that is done no proposal counts), and the rollout has neither counters nor
    blocks. options: accept_rule, accept_top_k and all others that decide tokens, as there.
    """
    if gamma is None:
        raise ValueError(
            "interleaved_plain takes a fixed gamma of at least 1: interleaved_generate chooses one by itself"
        )
    rules = interleaved_rules(student, teacher, gamma=gamma, **options)
    device, vocab_size = _device(student), student.config.vocab_size
    block_size = min(student.config.block_size, teacher.config.block_size)
    tokens, prompt_len, end, prompt_lens, _ = _start(
        prompts, max_new_tokens, block_size, vocab_size, eos_token, device, spare=gamma
    )
    B, capacity = tokens.shape
    student_cache, teacher_cache = (
        _prefill(model, tokens, prompt_len, max(prompt_lens), capacity) for model in (student, teacher)
    )
    noise, rows = Noise(generator, _row_keys(row_keys, B, device)), torch.arange(B, device=device)[:, None]  # (B, 1)
    length, finished = prompt_len, torch.zeros(B, dtype=torch.bool, device=device)
    source, teacher_logits = torch.zeros_like(tokens), teacher.head.new_zeros(B, capacity, vocab_size)

    while (running := ~finished & (length < end)).any():
        positions = length[:, None] + torch.arange(gamma, device=device)  # (B, G): where the proposals would stand
        uniform = {role: noise(positions, role) for role in rules.roles}

        # The student drafts, the teacher reads all of it in one forward.
        pending = tokens.gather(1, length[:, None] - 1)[:, 0]  # (B,): the last token, not in the caches yet
        block = draft(student, student_cache, pending, uniform["student"], rules.student)
        teacher_rows = teacher(block.inputs, teacher_cache)  # (B, G, V): row j judges proposal j

        # The leading accepted proposals stay, the teacher replaces the first rejected one.
        counts = countable(block.proposed, positions, end[:, None], eos_token) & running[:, None]
        stays = rules.stays(block, teacher_rows, uniform, positions - prompt_len[:, None])
        verdict = verify(stays, counts)
        replacement = rules.redraw(block, teacher_rows, verdict.at, uniform)[:, None]
        written, length, ended = commit(block.proposed, verdict, replacement, length, eos_token)

        # All G columns are written; the next block overwrites what lies behind the new length, or the end cuts it off.
        tokens[rows, positions] = written
        source[rows, positions] = torch.where(verdict.rejected, TEACHER, STUDENT)
        teacher_logits[rows, positions - 1] = teacher_rows  # row t predicts token t+1
        finished = finished | ended
        student_cache.roll_back(length - 1)  # forget all that is stale, and the last token, which is pending
        teacher_cache.roll_back(length - 1)

    T = int(length.max())
    return _as_rollout(tokens, prompt_len, length, source, finished, T, teacher_logits=teacher_logits[:, : T - 1])


# ---------------------------------------------------------------------------------------------------------------------
# 6. The same, fast: the block length follows the acceptance, and sequences that are done leave the batch.


GAMMAS = (1, 2, 4, 8, 16, 32)  # few different shapes, since kernels are chosen by shape
BLOCK_LOGITS = 2**26  # of a model in a block at most, 256 MiB in float32: large batches and vocabularies, short blocks


def best_gamma(accepted, judged, call_cost):
    """The block length that costs least per written token at the acceptance seen so far.

    A block of gamma drafted tokens costs gamma + call_cost, in units of drafting and judging one token; call_cost is
    what a teacher forward costs whatever its length. With acceptance a it writes 1 + a + ... + a^(gamma-1) tokens: each
    one stands only if all before it were accepted. Smallest ratio wins. Nothing but time depends on it. Before anything
    was judged one rejection in eight is assumed: gamma 4 at call_cost 2.
    """
    a = (accepted + 7) / (judged + 8)
    return min(GAMMAS, key=lambda gamma: (gamma + call_cost) / sum(a**k for k in range(gamma)))


def _call_cost(student, teacher):
    """call_cost of best_gamma. A CPU is bound by arithmetic, and a forward's fixed part is reading its cache: about two
    tokens' work. Other devices are bound by launches: those of the teacher and of all else in a block, counted, in
    units of a drafting step's.
    """
    if _device(student).type == "cpu":
        return 2.0
    return (76 + 12 * teacher.config.n_layer) / (16 + 11 * student.config.n_layer)


def _mark(stays, counts):
    """`verify` of the control without write-back: every rejection is marked, and no proposal is thrown away. `at` is
    Ellipsis: a replacement is drawn at every position."""
    return Verdict((stays & counts).sum(1), counts.sum(1), counts & ~stays, ...)


@torch.no_grad()
def _in_blocks(
    student, teacher, prompts, max_new_tokens, *, rules, generator, gamma, eos_token, row_keys, write_back=True,
    keep_features=False,
):  # fmt: skip
    """interleaved_plain, fast, by InterleavedRules or SpeculativeRules -> Rollout, with counters, blocks,
    `rejected_tokens`.

    n sequences are running; one that is done leaves the working set. gamma None: best_gamma. Reads the device once per
    block. write_back False: the control, see `_mark`. keep_features: teacher_features in the place of teacher_logits.
    """
    device = _device(student)
    B, block_size = len(prompts), min(student.config.block_size, teacher.config.block_size)
    noise = Noise(generator, _row_keys(row_keys, B, device))
    tokens, prompt_len, end, prompt_lens, ends = _start(
        prompts, max_new_tokens, block_size, student.config.vocab_size, eos_token, device, spare=1
    )
    width, capacity = max(prompt_lens), tokens.size(1)
    student_cache = _prefill(student, tokens, prompt_len, width, capacity)
    teacher_cache = _prefill(teacher, tokens, prompt_len, width, capacity)
    tables = {role: noise.table(capacity, role) for role in rules.roles}
    length, rejected_tokens = prompt_len.clone(), torch.full_like(tokens, -1)
    finished = torch.zeros(B, dtype=torch.bool, device=device)
    kept_rows = None  # (B, capacity, V), or C with keep_features
    blocks, live, live_on_host, T = [], torch.arange(B, device=device), list(range(B)), 0
    columns = torch.arange(gamma or max(GAMMAS), device=device)
    accepted_so_far, judged_so_far, call_cost = 0, 0, _call_cost(student, teacher)
    room = max(stop - start for start, stop in zip(prompt_lens, ends))  # tokens that the slowest row may still write

    while True:
        # 1. How long is this block, and where does it stand? The spare last column takes what lies behind every end.
        at_most = max(1, BLOCK_LOGITS // (len(live) * student.config.vocab_size))
        G = min(gamma or best_gamma(accepted_so_far, judged_so_far, call_cost), room, at_most)
        start, rows = length[live], live[:, None]  # (n,), (n, 1)
        positions = (start[:, None] + columns[:G]).clamp(max=capacity - 1)
        uniform = {role: table[rows, positions] for role, table in tables.items()}

        # 2. The block, as in interleaved_plain.
        block = draft(student, student_cache, tokens[live, start - 1], uniform["student"], rules.student)
        counts = countable(block.proposed, positions, end[rows], eos_token)
        output = teacher(block.inputs, teacher_cache, features=keep_features)
        teacher_rows = F.linear(output, teacher.head) if keep_features else output  # (n, G, V)
        if not blocks:  # once per call
            _check_numbers(teacher_rows)
        stays = rules.stays(block, teacher_rows, uniform, positions - prompt_len[rows])
        if write_back:
            verdict = verify(stays, counts)
            replacement, lost = rules.redraw(block, teacher_rows, verdict.at, uniform)[:, None], block.proposed
        else:
            verdict = _mark(stays, counts)
            replacement, lost = block.proposed, rules.redraw(block, teacher_rows, verdict.at, uniform)
        committed = commit(block.proposed, verdict, replacement, start, eos_token)

        # 3. Keep it. All G columns are written; the next block overwrites those behind the judged, or they are cut.
        tokens[rows, positions], length[live], finished[live] = committed
        rejected_tokens[rows, positions] = torch.where(verdict.rejected, lost, -1)
        if kept_rows is None:
            kept_rows = output.new_zeros(B, capacity, output.size(-1))
        kept_rows[rows, positions - 1] = output  # row t predicts token t+1: these are the training targets
        accepted, judged = verdict.accepted, verdict.judged
        blocks.append(Block(live, start, block.proposed, counts.sum(1), accepted, judged))

        # 4. Which sequences still run? Their last committed token stays pending, whatever was cached beyond it is
        # stale.
        done = finished[live] | (length[live] >= end[live])
        lengths, done, *counted = torch.stack([length[live], done, accepted, judged]).tolist()  # the one host sync
        accepted_so_far, judged_so_far = accepted_so_far + sum(counted[0]), judged_so_far + sum(counted[1])
        T = max(T, *lengths)  # of the whole batch, in the end
        kept = _close_ranks(done)
        if not kept:
            break
        if len(kept) < len(live_on_host):
            student_cache.keep_rows(kept)
            teacher_cache.keep_rows(kept)
            live_on_host, lengths = [live_on_host[row] for row in kept], [lengths[row] for row in kept]
            live = to_device(torch.tensor(live_on_host), device)
        room = max(ends[row] - at for row, at in zip(live_on_host, lengths))
        student_cache.roll_back(length[live] - 1, high=max(lengths) - 1)
        teacher_cache.roll_back(length[live] - 1, high=max(lengths) - 1)

    counters, source = _count(blocks), torch.where((rejected_tokens >= 0) & write_back, TEACHER, STUDENT)
    rollout = _as_rollout(
        tokens, prompt_len, length, source, finished, T, counters=counters, blocks=blocks,
        fed=_fed_in_blocks(counters, prompt_len, len(blocks)),
        **{"teacher_features" if keep_features else "teacher_logits": kept_rows[:, : T - 1]},
    )  # fmt: skip
    rollout.rejected_tokens = rejected_tokens[:, :T].masked_fill(~rollout.response_mask, -1)
    return rollout


def _count(blocks):
    """The counters of a rollout, (7,) long in the order of COUNTERS; a row counts while it is running."""
    drafted, accepted, judged = (
        torch.cat([getattr(block, name) for block in blocks]).sum() for name in ("drafted", "accepted", "judged")
    )
    calls, steps = (sum(block.proposed.size(0) for block in blocks), sum(block.proposed.numel() for block in blocks))
    counted = torch.stack([drafted, judged, accepted, judged - accepted, drafted - judged])
    return torch.cat([counted, to_device(torch.tensor([calls, steps]), counted.device)])


def _fed_in_blocks(counters, prompt_len, number):
    """Rollout.fed of so many blocks: both models read prompts and drafts, the teacher in one forward a block."""
    counted = dict(zip(COUNTERS, counters))
    read = prompt_len.sum() + counted["student_steps"]
    return torch.stack([read, read, counted["judged"], torch.full_like(read, 1 + number)])


def interleaved_generate(
    student, teacher, prompts, max_new_tokens, *, generator, gamma=None, accept_rule="topk", accept_top_k=25,
    replace="sample", student_temperature=1.0, student_top_p=None, teacher_temperature=1.0, teacher_top_p=None,
    eos_token=None, row_keys=None, write_back=True, accept_on="raw", judge_fresh=False, keep_features=False, **rule,
):  # fmt: skip
    """SKD's sampling (arXiv 2410.11325, Algorithm 1), batched and cached: list of B lists of ids -> Rollout.

    A proposal of the student stays if `accept_rule` says so on the teacher's raw logits; otherwise the teacher's own
    draw takes its place. At one position, with A the accepted set: P(token) = student(token) [token in A] +
    student(not A) * teacher(token). This distribution does not depend on gamma; accept_top_k 0 is teacher sampling, V
    (or more) is on-policy sampling. `Rollout.teacher_logits` are the verification rows, ready as training targets; with
    keep_features they are left as features (B, T-1, C), which a large vocabulary makes much smaller.

    Switches away from the paper, for measuring what they cost: write_back=False marks rejections but leaves the
    student's own tokens in place (control); accept_on="warped" tests membership after temperature and top-p, and
    judge_fresh=True judges a second, fresh draw in place of the emitted token (both as in the released code,
    docs/papers.md, "paper and code"). Raises ValueError for an unknown rule, gamma < 1, accept_top_k < 0, an empty or
    too long prompt.
    """
    rules = interleaved_rules(
        student, teacher, gamma=gamma, accept_rule=accept_rule, accept_top_k=accept_top_k, replace=replace,
        student_temperature=student_temperature, student_top_p=student_top_p, teacher_temperature=teacher_temperature,
        teacher_top_p=teacher_top_p, accept_on=accept_on, judge_fresh=judge_fresh, **rule,
    )  # fmt: skip
    return _in_blocks(
        student, teacher, prompts, max_new_tokens, rules=rules, generator=generator, gamma=gamma, eos_token=eos_token,
        row_keys=row_keys, write_back=write_back, keep_features=keep_features,
    )  # fmt: skip


# ---------------------------------------------------------------------------------------------------------------------
# 7. Lossless speculative decoding: what a distilled student is worth as a draft.


class SpeculativeRules(NamedTuple):
    """Lossless: which drafted tokens stay, and what replaces one that does not. The target takes the teacher's part."""

    temperature: float

    roles = ("student", "teacher", "accept")  # the noise that a block needs

    @property
    def student(self):
        """Keywords of `draw`: the drafted tokens."""
        return {"temperature": self.temperature}

    def stays(self, block, target_rows, uniform, position):
        """(n, G) bool, True with probability min(1, target / draft); arguments as of InterleavedRules.stays."""
        if self.temperature == 0:
            return target_rows.argmax(-1) == block.proposed
        draft_prob, target_prob = (
            warp(rows, self.temperature).log_softmax(-1).gather(-1, block.proposed[..., None])[..., 0].exp()
            for rows in (torch.stack(block.student_rows, 1), target_rows)
        )
        return uniform["accept"] * draft_prob < target_prob

    def redraw(self, block, target_rows, at, uniform):
        """Tokens from the positive part of target - draft, at the index `at` into (n, G)."""
        draft_row, target_row = torch.stack(block.student_rows, 1)[at], target_rows[at]
        if self.temperature == 0:
            return target_row.argmax(-1)
        draft_probs, target_probs = (warp(row, self.temperature).softmax(-1) for row in (draft_row, target_row))
        residual = (target_probs - draft_probs).clamp(min=0)
        # Equal distributions leave no residual; rounding may still reject, and then the target's own one is right.
        residual = torch.where(residual.sum(-1, keepdim=True) > 0, residual, target_probs)
        return draw(residual.log(), uniform["teacher"][at])


def speculative_generate(
    draft, target, prompts, max_new_tokens, *, generator, gamma=None, temperature=1.0, eos_token=None, row_keys=None,
    keep_features=False,
):  # fmt: skip
    """Speculative sampling (arXiv 2211.17192): tokens distributed exactly as the target's own; -> Rollout.

    A drafted token stays with probability min(1, target / draft); otherwise it is redrawn from the positive part of
    target - draft. The chance to stay is 1 - total_variation: `counters` give accepted / judged. The usual extra token
    after a fully accepted block is left out: the distribution is the same, and so is the loop of interleaved sampling.
    """
    _check_gamma(gamma)
    shared_vocabulary(draft, target)
    return _in_blocks(
        draft, target, prompts, max_new_tokens, rules=SpeculativeRules(temperature), generator=generator, gamma=gamma,
        eos_token=eos_token, row_keys=row_keys, keep_features=keep_features,
    )  # fmt: skip


# ---------------------------------------------------------------------------------------------------------------------
# 8. Who writes the tokens that a student is trained on.


def pad_sequences(sequences, device=None):
    """Lists of ids -> tokens (B, T) long, right-padded with 0, and lengths (B,) long."""
    assert len(sequences) > 0, "no sequences to pad"
    lengths = torch.tensor([len(ids) for ids in sequences])  # (B,)
    tokens = torch.zeros(len(sequences), int(lengths.max()), dtype=torch.long)  # (B, T)
    filled = torch.arange(tokens.shape[1]) < lengths[:, None]  # (B, T) bool
    flat = torch.tensor([token for ids in sequences for token in ids])  # float where there is none
    assert flat.dtype == torch.long or not len(flat), f"token ids are whole numbers, found {flat.dtype}"
    tokens[filled] = flat.long()
    return to_device(tokens, device), to_device(lengths, device)


def rollout_from_ids(prompts, responses, sources, device, eos_token=None):
    """Known responses (lists of ids) as a Rollout; `sources` has one label per row: DATASET, STUDENT or TEACHER.

    A row is finished if its response ends with `eos_token`, whoever wrote it; without one none is.
    """
    counts = len(prompts), len(responses), len(sources)
    assert len({*counts}) == 1, "{} prompts, {} responses, {} sources".format(*counts)
    tokens, lengths = pad_sequences([prompt + response for prompt, response in zip(prompts, responses)], device)
    prompt_len = to_device(torch.tensor([len(prompt) for prompt in prompts]), device)
    source = to_device(torch.tensor(sources, dtype=torch.int8), device)[:, None].expand(tokens.shape)
    finished = torch.tensor([bool(response) and response[-1] == eos_token for response in responses])
    rollout = Rollout(tokens, prompt_len, lengths, source, to_device(finished, device))
    rollout.source = torch.where(rollout.response_mask, source, PROMPT).to(torch.int8)
    return rollout


class Request(NamedTuple):
    """The arguments of write_tokens, which explains them, in its order; rows and batch_size are never None."""

    student: object
    teacher: object
    prompts: list
    references: list | None
    max_new_tokens: int
    generator: torch.Generator
    eos_token: int | None
    student_share: float
    mix_per: str
    temperature: float
    top_p: float | None
    teacher_mix: float
    interleaved: dict | None
    switching: dict | None
    trust_region: float
    reference_source: int
    rows: list
    batch_size: int

    def generate(self, model, prompts, row_keys):
        """`generate` with the student's sampling options."""
        return generate(
            model, prompts, self.max_new_tokens, generator=self.generator, temperature=self.temperature,
            top_p=self.top_p, eos_token=self.eos_token, row_keys=row_keys,
        )  # fmt: skip


def _write_mixed(request):
    """References or student, by a draw per "batch" or per "sequence" that takes the student at student_share."""
    prompts, rows, batch_size = request.prompts, request.rows, request.batch_size
    uniform = torch.rand(
        batch_size if request.mix_per == "sequence" else 1, generator=request.generator
    ).expand(batch_size)
    anywhere = (uniform < request.student_share).tolist()  # in the whole batch
    number = list(itertools.accumulate(anywhere))  # the student's rows are numbered through: their noise's keys
    by_student, responses, fed = [anywhere[row] for row in rows], request.references, None
    if any(anywhere) and not any(by_student):
        torch.randint(2**62, (), generator=request.generator)  # as Noise draws: all processes' generators stay in step
    if any(by_student):
        own_prompts = [prompt for prompt, own in zip(prompts, by_student) if own]
        keys = [number[row] - 1 for row, own in zip(rows, by_student) if own]
        rollout = request.generate(request.student, own_prompts, keys)
        if all(by_student):
            return rollout
        own_responses, fed = iter(rollout.responses()), rollout.fed
        responses = [next(own_responses) if own else response for own, response in zip(by_student, responses)]
    sources = [STUDENT if own else request.reference_source for own in by_student]
    rollout = rollout_from_ids(prompts, responses, sources, _device(request.student), request.eos_token)
    rollout.fed = fed
    return rollout


def _write_dataset(request):
    """The references. The draw of `mixed` is made as well: a run draws the same numbers whoever writes a batch."""
    return _write_mixed(request._replace(student_share=0.0))


def _write_student(request):
    """The student itself, now; the draw of `mixed` is made as for `dataset`."""
    return _write_mixed(request._replace(student_share=1.0))


def _write_teacher(request):
    """The references, which are answers that the teacher gave before training."""
    sources = [TEACHER] * len(request.prompts)
    return rollout_from_ids(request.prompts, request.references, sources, _device(request.student), request.eos_token)


def _write_interleaved(request):
    """SKD: the student proposes, the teacher replaces (`interleaved` holds interleaved_generate's options)."""
    options = {"student_temperature": request.temperature, "student_top_p": request.top_p} | (request.interleaved or {})
    return interleaved_generate(
        request.student, request.teacher, request.prompts, request.max_new_tokens, generator=request.generator,
        eos_token=request.eos_token, row_keys=request.rows, **options,
    )  # fmt: skip


def _write_teacher_mixed(request):
    """Every token from teacher_mix * teacher + (1 - teacher_mix) * student (MiniLLM)."""
    both = Mixture(request.teacher, request.student, request.teacher_mix)
    return request.generate(both, request.prompts, request.rows)


def _write_switching(request):
    """The student until it strays from the teacher, then the teacher (`switching`: knobs of Switching)."""
    both = Switching(request.student, request.teacher, **(request.switching or {}))
    rollout = request.generate(both, request.prompts, request.rows)
    position = torch.arange(rollout.tokens.size(1), device=rollout.tokens.device) - rollout.prompt_len[:, None]
    by_teacher = (position >= both.first_by_teacher[:, None]) & rollout.response_mask
    rollout.source = rollout.source.masked_fill(by_teacher, TEACHER)
    return rollout


def _write_trust_region(request):
    """Every token as near to the teacher as a KL of `trust_region` nats to the student allows (TRB).

    It draws as `student` does: at 0 nats it is that very batch, and the teacher is not asked.
    """
    both = TrustRegion(request.student, request.teacher, request.trust_region)
    return _write_student(request._replace(student=both) if both.epsilon > 0 else request)


class Writer(NamedTuple):
    """One way to write training tokens. A new one is one function and one row of WRITERS."""

    write: Callable  # Request -> Rollout
    student_writes: bool  # the student has a part in the tokens
    needs_references: bool
    flags: tuple  # of the command line, those that reach it (names as in args)


STUDENT_DRAWS = ("student_temperature", "student_top_p")  # flags of whatever a student writes
TEACHER_DRAWS = ("replace", "teacher_temperature", "teacher_top_p")  # flags of the teacher's replacements
ACCEPTANCE = ("accept_rule", "rule", "no_write_back", "accept_on", "judge_fresh", "accept_top_k", "gamma")

WRITERS = {  # writer: its function, whether a student writes, whether it needs references, the flags that reach it
    "dataset": Writer(_write_dataset, False, True, ()),
    "teacher": Writer(_write_teacher, False, True, ()),
    "student": Writer(_write_student, True, False, STUDENT_DRAWS),
    "mixed": Writer(_write_mixed, True, True, STUDENT_DRAWS),
    "interleaved": Writer(_write_interleaved, True, False, (*STUDENT_DRAWS, *TEACHER_DRAWS, *ACCEPTANCE)),
    "teacher_mixed": Writer(_write_teacher_mixed, True, False, (*STUDENT_DRAWS, "teacher_mix")),
    "switching": Writer(_write_switching, True, False, STUDENT_DRAWS),
    "trust_region": Writer(_write_trust_region, True, False, (*STUDENT_DRAWS, "trust_region")),
}


def write_tokens(
    writer, student, teacher, prompts, references, max_new_tokens, *, generator, eos_token, student_share=0.0,
    mix_per="batch", temperature=1.0, top_p=None, teacher_mix=0.2, interleaved=None, switching=None,
    trust_region=TRUST_REGION, prefix=1.0, reference_source=DATASET, rows=None, batch_size=None,
):  # fmt: skip
    """One batch of training tokens -> Rollout, written by `writer`, a row of WRITERS, whose function explains it.

    student_share and mix_per are mixed's, teacher_mix is teacher_mixed's, `interleaved` holds interleaved_generate's
    options, `switching` the knobs of Switching; trust_region is the epsilon of TrustRegion. What a model writes now
    ends after the share `prefix` of max_new_tokens, rounded up. Where the references are the teacher's answers,
    `reference_source` says TEACHER; a writer that needs none takes None for each, or for all. The student's temperature
    and top_p are the same for every writer, and no gradient flows through a draw.

    Several processes write one batch together: `rows` are the places in it that these prompts have, `batch_size` is its
    size. Noise and draws belong to the places, so the batch is the same, however many processes share it. Raises
    ValueError for an unknown writer or mix_per, a share outside 0..1, a prefix of nothing, references that are needed
    and missing, and (on a CPU) for a rollout without labels or cost.
    """
    if writer not in WRITERS or mix_per not in ("batch", "sequence") or not 0 <= student_share <= 1:
        raise ValueError(
            f"a writer is one of {', '.join(WRITERS)}, mix_per batch or sequence, a share in 0..1; "
            f"found {writer!r}, {mix_per!r}, {student_share}"
        )
    if not 0 < prefix <= 1:
        raise ValueError(f"prefix is the share of max_new_tokens to write, above 0 and at most 1; found {prefix}")
    if prefix < 1:
        max_new_tokens = math.ceil(prefix * max_new_tokens)
    if references is None:
        references = [None] * len(prompts)
    assert len(prompts) == len(references), f"{len(prompts)} prompts, {len(references)} references"
    missing = [row for row, reference in enumerate(references) if reference is None]
    if missing and WRITERS[writer].needs_references:
        raise ValueError(f"writer {writer} needs a reference for each prompt, {missing[0]} has none: give `responses`")
    rows, batch_size = range(len(prompts)) if rows is None else rows, batch_size or len(prompts)
    request = Request(
        student, teacher, prompts, references, max_new_tokens, generator, eos_token, student_share, mix_per,
        temperature, top_p, teacher_mix, interleaved, switching, trust_region, reference_source, rows, batch_size,
    )  # fmt: skip
    rollout = WRITERS[writer].write(request)
    if not isinstance(rollout, Rollout) or getattr(rollout.source, "shape", None) != rollout.tokens.shape:
        raise ValueError(
            f"writer {writer} must return a Rollout whose source (B, T) says who wrote each token: see rollout_from_ids"
        )
    if rollout.source.device.type == "cpu":  # elsewhere the question would cost a wait
        _check_labels(writer, rollout, reference_source)
    return rollout


def _check_labels(writer, rollout, reference_source):
    """ValueError for response tokens that nobody has written, and for ones written now whose cost is not noted."""
    labels = set(rollout.source[rollout.response_mask].tolist())
    if PROMPT in labels:
        raise ValueError(f"writer {writer} labels response tokens as PROMPT: say STUDENT, TEACHER or DATASET of each")
    free = {reference_source} | ({TEACHER} if WRITERS[writer].needs_references else set())  # written before
    if rollout.fed is None and labels - free:
        raise ValueError(
            f"writer {writer} returned tokens that a model has just written, and no `fed`, by which their cost is "
            "counted: pass on the sampler's"
        )


if __name__ == "__main__":
    from lab.rollouts import run_program  # only here: the samplers themselves know nothing of data

    run_program()
