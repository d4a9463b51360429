"""GPT-2's architecture, its key-value cache, the online teacher, the optimizer recipe, and how a model is saved.

    tokens (B, T)  ->  GPT  ->  logits (B, T, V)      row t predicts token t+1, always all rows, never a loss

Distillation needs the teacher's whole distribution at every position, so `forward` returns all logits and nothing else.
The architecture is GPT-2's to the letter (learned positions, LayerNorm before each sub-layer, biases everywhere, GELU,
output head tied to the token embedding), so that real GPT-2 weights fit. Two liberties: no dropout (its noise would
come from the global generators; a short run on a tiny model does not need it), and `gelu="erf"`, the exact GELU, for
models trained here: on a CPU it is two to three times faster than GPT-2's tanh approximation.

The cache in one sentence: **slot = absolute position**. Prompts are padded on the right, a query sees every slot up to
its own position, and taking tokens back means lowering a row's length: the stale slots above it are overwritten before
any query can see them. Nothing is shifted, copied or cleared. (tests/test_model.py fills the caches with 1e3 to show
it.)

The online teacher (OKD, arXiv 2409.12512) is a frozen GPT with a small trainable module beside it:

    tokens (B, T)  ->  OnlineTeacher(base, kind)  ->  logits (B, T, V)      the call signature of GPT, cache included

A kind of module is one class of `Hooks`: what it says of itself, and where it changes what flows through the base.
"""

import contextlib
import copy
import dataclasses
import errno
import hashlib
import math
import os
import warnings
import zipfile
from dataclasses import dataclass

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint


@dataclass(frozen=True)
class GPTConfig:
    """The shape of a GPT. `gelu` is "erf" (exact, ours) or "tanh" (GPT-2's)."""

    vocab_size: int
    block_size: int  # longest sequence, in tokens
    n_layer: int
    n_head: int
    n_embd: int
    gelu: str = "erf"

    def __post_init__(self):
        for name in ("vocab_size", "block_size", "n_layer", "n_head", "n_embd"):
            size = getattr(self, name)
            assert type(size) is int and size > 0, f"{name} must be a whole number of at least 1, found {size!r}"
        assert self.n_embd % self.n_head == 0, f"n_embd {self.n_embd} is not divisible by n_head {self.n_head}"
        assert self.gelu in ("erf", "tanh"), f"gelu must be erf or tanh, found {self.gelu!r}"


def to_device(tensor, device):
    """A host tensor on `device`; to CUDA from pinned memory, so that the host continues while it is copied."""
    if device is not None and torch.device(device).type == "cuda":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


class KVCache:
    """Keys and values of one batch, slot = absolute position; `lengths` (B,) says how many slots of a row are valid.

    One allocation holds everything: (n_layer, 2, B, n_head, capacity, head_width). `forward` writes the new keys at the
    slots lengths .. lengths + T - 1 and moves `lengths` on; `roll_back` lowers it. `high` is a bound on max(lengths)
    that the host knows without asking the device, so that attention does not read slots which nobody has written yet.
    """

    def __init__(self, config, batch_size, capacity, device=None, dtype=torch.float32):
        head_width = config.n_embd // config.n_head
        # CUDA's attention copies a bias whose width is no multiple of 16: what it is given is one.
        self.multiple = 16 if torch.device(device or "cpu").type == "cuda" else 1
        capacity = self.aligned(capacity)
        self.keys_values = torch.zeros(
            config.n_layer, 2, batch_size, config.n_head, capacity, head_width, device=device, dtype=dtype
        )
        self.lengths = torch.zeros(batch_size, dtype=torch.long, device=device)
        self.capacity = capacity
        self.high = 0
        self._rows = torch.arange(batch_size, device=device)[:, None]  # (B, 1)
        self._slots = torch.arange(capacity, device=device)
        # Row t is what a query at position t adds to its scores: 0 for the slots that it sees, -inf for later ones.
        later = self._slots > self._slots[:, None]
        self._bias = torch.zeros(capacity, capacity, device=device, dtype=dtype).masked_fill_(later, float("-inf"))

    def aligned(self, slots):
        """So many slots, or some more, which no query sees."""
        return -(-slots // self.multiple) * self.multiple

    def extend(self, T):
        """Claim the next T slots of every row: positions (B, T), and the bias (B, 1, T, aligned(high)) that hides
        later slots."""
        # (B, T); a sampler may draft past a row's end: what has no slot of its own shares the last one.
        positions = (self.lengths[:, None] + self._slots[:T]).clamp(max=self.capacity - 1)
        self.high = min(self.high + T, self.capacity)
        self.lengths = self.lengths + T
        return positions, self._bias[:, : self.aligned(self.high)][positions][:, None]

    def write(self, layer, positions, keys_values):
        """Store (B, T, 2, H, D) at `positions` (B, T) -> keys and values of all slots below aligned(high), each (B, H,
        that many, D)."""
        stored = self.keys_values[layer]  # (2, B, H, capacity, D)
        # Two index tensors around a slice: the indexed dimensions come first, hence (B, T, 2, H, D) on the right.
        stored[:, self._rows, :, positions] = keys_values.to(stored.dtype)
        return stored[:, :, :, : self.aligned(self.high)]

    def roll_back(self, lengths, high=None):
        """Keep only the first `lengths` (B,) slots of each row; `high` is the host's bound on their maximum, if
        known."""
        self.lengths = lengths
        if high is not None:
            self.high = high

    def keep_rows(self, rows):
        """Go on with these rows only: a list of n row numbers, in their new order.

        A row that keeps its number is not copied: let the last rows fill the gaps, and dropping one costs one copy.
        """
        device = self.lengths.device
        there = to_device(torch.tensor(rows), device)
        moved = [new for new, old in enumerate(rows) if new != old]
        if moved:
            new = to_device(torch.tensor(moved), device)
            self.keys_values[:, :, new] = self.keys_values[:, :, there[new]]
        self.keys_values, self._rows = self.keys_values[:, :, : len(rows)], self._rows[: len(rows)]
        self.lengths = self.lengths[there]


class Attention(nn.Module):
    """Causal self-attention with one fused projection for queries, keys and values (GPT-2's c_attn)."""

    def __init__(self, config):
        super().__init__()
        self.n_head = config.n_head
        self.qkv = nn.Linear(config.n_embd, 3 * config.n_embd)
        self.out = nn.Linear(config.n_embd, config.n_embd)

    def forward(self, x, layer, cache=None, positions=None, bias=None, online=None):
        """(B, T, C) -> (B, T, C); causal, unless a `bias` on the scores says who sees whom, as it must with a cache."""
        B, T, C = x.shape
        qkv = self.qkv(x) if online is None else online.project(layer, "qkv", self.qkv, x)
        query, key, value = self.split_heads(qkv)
        if cache is not None:
            key, value = cache.write(layer, positions, qkv[..., C:].view(B, T, 2, self.n_head, C // self.n_head))
        if online is not None:
            key, value, bias = online.widen(layer, key, value, bias)
        # softmax(query key^T / sqrt(D) + bias) value, in one kernel
        y = F.scaled_dot_product_attention(query, key, value, attn_mask=bias, is_causal=bias is None)
        if online is not None:
            y = online.attend(layer, query, y)
        y = y.transpose(1, 2).reshape(B, T, C)
        return self.out(y) if online is None else online.project(layer, "out", self.out, y)

    def split_heads(self, qkv):
        """(B, T, 3C) -> queries, keys and values, each (B, H, T, D)."""
        B, T, C = qkv.shape
        return qkv.view(B, T, 3, self.n_head, C // 3 // self.n_head).permute(2, 0, 3, 1, 4)


class Block(nn.Module):
    """One transformer layer: x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, config):
        super().__init__()
        self.norm_1 = nn.LayerNorm(config.n_embd)
        self.attention = Attention(config)
        self.norm_2 = nn.LayerNorm(config.n_embd)
        self.up = nn.Linear(config.n_embd, 4 * config.n_embd)
        self.down = nn.Linear(4 * config.n_embd, config.n_embd)
        self.gelu = "tanh" if config.gelu == "tanh" else "none"  # torch's name for the exact form is "none"

    def forward(self, x, layer, cache=None, positions=None, bias=None, online=None):
        """(B, T, C) -> (B, T, C); `online` changes what flows through the layer of that number."""
        x = x + self.attention(self.norm_1(x), layer, cache, positions, bias, online)
        y = self.norm_2(x)
        y = self.up(y) if online is None else online.project(layer, "up", self.up, y)  # (B, T, 4C)
        y = F.gelu(y, approximate=self.gelu)
        y = self.down(y) if online is None else online.project(layer, "down", self.down, y)
        x = x + y
        return x if online is None else online.output(layer, x)


class GPT(nn.Module):
    """GPT-2 (Radford et al. 2019) of any size: `model(tokens)` gives logits (B, T, V), row t predicts token t+1.

    With `recompute` set, a training pass keeps only what goes in and out of each block and works out the rest again for
    the backward pass (activation checkpointing): the same gradients for a third more arithmetic.
    """

    recompute = False

    def __init__(self, config, generator=None):
        super().__init__()
        self.config = config
        with torch.device("meta"):  # torch's own initialisation would draw from the global generator
            self.token_embedding = nn.Embedding(config.vocab_size, config.n_embd)
            self.position_embedding = nn.Embedding(config.block_size, config.n_embd)
            self.blocks = nn.ModuleList(Block(config) for _ in range(config.n_layer))
            self.norm = nn.LayerNorm(config.n_embd)
        self.to_empty(device="cpu")
        self.reset_parameters(generator or torch.Generator().manual_seed(0))

    @torch.no_grad()
    def reset_parameters(self, generator):
        """Initial weights from one CPU generator: GPT-2's N(0, .02) at its width of 768, N(0, .02 sqrt(768 / C)) at
        others.

        Residual outputs are scaled by 1/sqrt(2 n_layer). With a flat .02 a model of width 32 starts with logits so
        close to zero that it needs several times as many steps.
        """
        for name, weight in self.named_parameters():
            if weight.dim() < 2:  # biases 0, LayerNorm gains 1
                weight.fill_(1.0 if "norm" in name and name.endswith("weight") else 0.0)
            else:
                residual = name.endswith(("out.weight", "down.weight"))
                std = (
                    0.02 * math.sqrt(768 / self.config.n_embd) / (math.sqrt(2 * self.config.n_layer) if residual else 1)
                )
                weight.copy_(torch.empty(weight.shape).normal_(0.0, std, generator=generator))

    def forward(self, tokens, cache=None, online=None, features=False):
        """(B, T) long -> (B, T, V). With a KVCache the T tokens go to the next T slots of each row.

        `online` is the module of an OnlineTeacher (its Hooks); without one this is the plain model. features=True stops
        before the head, at (B, T, C): the logits are F.linear(features, head).
        """
        assert tokens.dim() == 2 and tokens.dtype == torch.long, (
            f"tokens are (B, T) long, found {tuple(tokens.shape)} {tokens.dtype}"
        )
        T = tokens.size(1)
        if cache is None:
            assert T <= self.config.block_size, f"{T} tokens, but block_size is {self.config.block_size}"
            positions, bias = torch.arange(T, device=tokens.device), None
        else:
            positions, bias = cache.extend(T)
        # A sampler may draft past the end of a row (those tokens are thrown away), hence the clamp.
        try:
            x = self.token_embedding(tokens) + self.position_embedding(positions.clamp(max=self.config.block_size - 1))
        except IndexError as error:  # told on a CPU alone
            raise ValueError(
                f"token ids {tokens.min()}..{tokens.max()}, the vocabulary has 0..{self.config.vocab_size - 1}"
            ) from error
        hooks = None if online is None else online.begin(self)
        for layer, block in enumerate(self.blocks):
            if self.recompute and cache is None and torch.is_grad_enabled():
                x = checkpoint(block, x, layer, None, None, None, hooks, use_reentrant=False, preserve_rng_state=False)
            else:
                x = block(x, layer, cache, positions, bias, hooks)
        x = self.norm(x)
        return x if features else F.linear(x, self.head)

    @property
    def head(self):
        """(V, C): the token embedding, which is the output projection as well."""
        return self.token_embedding.weight

    def new_cache(self, batch_size, capacity):
        """An empty KVCache for `batch_size` rows of `capacity` slots, on this model's device and in its dtype."""
        weight = self.token_embedding.weight
        dtype = (
            torch.get_autocast_dtype(weight.device.type)
            if torch.is_autocast_enabled(weight.device.type)
            else weight.dtype
        )
        return KVCache(self.config, batch_size, capacity, weight.device, dtype)

    def num_parameters(self):
        """Number of trainable numbers; the tied head counts once."""
        return sum(weight.numel() for weight in self.parameters())


class Specialists(nn.Module):
    """Several GPTs of one shape and one head as one teacher: each row is answered by the one of its domain.

    domain_of (V,) long: number of the specialist for a row that begins with this token. All of them read all rows, and
    each row takes its own's answer: nothing waits to learn which rows are whose. They write nothing (no cache).
    """

    def __init__(self, specialists, domain_of):
        super().__init__()
        self.config, self.specialists = specialists[0].config, nn.ModuleList(specialists)
        self.register_buffer("domain_of", domain_of)

    @property
    def head(self):
        """(V, C), which all share."""
        return self.specialists[0].head

    @property
    def position_embedding(self):
        """Of the first one, as large as any."""
        return self.specialists[0].position_embedding

    def num_parameters(self):
        """Of all of them, position tables but the first left out: all read all rows."""
        tables = (len(self.specialists) - 1) * self.position_embedding.weight.numel()
        return sum(one.num_parameters() for one in self.specialists) - tables

    def forward(self, tokens, features=False):
        """(B, T) long, rows that begin with their prompts -> (B, T, V), or features (B, T, C), as GPT.forward."""
        domain = self.domain_of[tokens[:, 0]][:, None, None]
        answer = self.specialists[0](tokens, features=features)
        for number, one in enumerate(self.specialists[1:], 1):
            answer = torch.where(domain == number, one(tokens, features=features), answer)
        return answer


# ---------------------------------------------------------------------------------------------------------------------
# 1. The online teacher (OKD).


class Hooks:
    """What a kind of online module says of itself, and where it may act while tokens pass through the frozen base.

    By default nothing changes anywhere. Flags, costs and files ask these attributes and never compare the kind's name.
    """

    has_rank = True  # `rank` decides its size: it holds at least `rank` rows as wide as the base
    has_scale = True  # `scale` is a factor on what it adds
    trains_base = False  # it trains a copy of the base's own weights, of all or of some

    def attach(self, base):
        """The GPT that runs in place of `base`, and the hooks that it runs with."""
        return base, self

    def begin(self, base):
        """Called once per forward; returns the hooks of that forward."""
        return self

    def project(self, layer, name, linear, x):
        """A linear layer of a block, its `name` is "qkv", "out", "up" or "down", and its input x -> its output."""
        return linear(x)

    def widen(self, layer, key, value, bias):
        """Keys and values (B, H, S, D) and the bias on their scores (None: causal) -> what the queries really see."""
        return key, value, bias

    def attend(self, layer, query, y):
        """Queries and what they collected, both (B, H, T, D) -> (B, H, T, D)."""
        return y

    def output(self, layer, x):
        """The output of a block, (B, T, C) -> (B, T, C)."""
        return x


def _drawn(generator, *shape, std):
    """A trainable tensor of N(0, std^2) from an explicit CPU generator."""
    return nn.Parameter(torch.empty(shape).normal_(0.0, std, generator=generator))


class LoRA(Hooks, nn.Module):
    """h + scale * x W_down W_up on the queries and values of every block (OKD Eq. 15; LoRA, arXiv 2106.09685).

    `rank` is the inner width; linear, no dropout. W_up starts at 0, so the teacher starts unchanged, and W_down gets no
    gradient in the very first step. The fused projection's key slice is left alone.
    """

    def __init__(self, base, rank, scale, generator):
        super().__init__()
        L, C = base.config.n_layer, base.config.n_embd
        self.scale = scale
        self.down_query, self.down_value = (_drawn(generator, L, C, rank, std=C**-0.5) for _ in range(2))
        self.up_query, self.up_value = (nn.Parameter(torch.zeros(L, rank, C)) for _ in range(2))

    def project(self, layer, name, linear, x):
        if name != "qkv":
            return linear(x)
        query, key, value = linear(x).chunk(3, dim=-1)
        query = query + self.scale * (x @ self.down_query[layer] @ self.up_query[layer])
        value = value + self.scale * (x @ self.down_value[layer] @ self.up_value[layer])
        return torch.cat([query, key, value], dim=-1)


class Prefix(Hooks, nn.Module):
    """`rank` trainable keys and values per block and head, attended apart and added through a gate that starts at 0.

    Prefix tuning (arXiv 2101.00190) mixes its keys into one softmax with the tokens' and so changes the teacher from
    the first step; the gate (LLaMA-Adapter's, arXiv 2303.16199) makes it start as the identity. OKD names prefixes as
    an ablation and gives no details: this is our reading.
    """

    def __init__(self, base, rank, scale, generator):
        super().__init__()
        config = base.config
        shape = (config.n_layer, config.n_head, rank, config.n_embd // config.n_head)
        self.scale = scale
        self.keys, self.values = (_drawn(generator, *shape, std=1.0) for _ in range(2))
        self.gate = nn.Parameter(torch.zeros(config.n_layer, config.n_head, 1, 1))

    def attend(self, layer, query, y):
        scores = query @ self.keys[layer].transpose(-2, -1) * query.size(-1) ** -0.5  # (B, H, T, rank)
        return y + self.scale * self.gate[layer] * (scores.softmax(-1) @ self.values[layer])


class PTuning(Hooks, nn.Module):
    """`rank` virtual tokens in front of every text: trainable embeddings through a small MLP (P-tuning, arXiv
    2103.10385).

    They have no position and see only each other, so their keys and values are worked out once per forward, and a cache
    keeps its law that a slot is a position. They are attended from the start: this kind does NOT begin as the identity.
    """

    has_scale = False

    def __init__(self, base, rank, scale, generator):
        super().__init__()
        C = base.config.n_embd
        self.embedding = _drawn(generator, rank, C, std=base.token_embedding.weight.std().item())
        self.hidden, self.last = (_drawn(generator, C, C, std=C**-0.5) for _ in range(2))

    def begin(self, base):
        x = torch.tanh(self.embedding @ self.hidden) @ self.last
        x, keys_values = x[None], []  # (1, rank, C)
        for layer, block in enumerate(base.blocks):
            _, key, value = block.attention.split_heads(block.attention.qkv(block.norm_1(x)))
            keys_values.append((key, value))  # each (1, H, rank, D)
            x = block(x, layer)
        return VirtualTokens(keys_values)


class VirtualTokens(Hooks):
    """The keys and values of virtual tokens, seen by every query beside those of the text."""

    def __init__(self, keys_values):
        self.keys_values = keys_values

    def widen(self, layer, key, value, bias):
        own_key, own_value = (x.expand(len(key), -1, -1, -1).to(key.dtype) for x in self.keys_values[layer])
        if bias is None:  # causal among the text's own tokens
            T = key.size(-2)
            bias = torch.full((T, T), float("-inf"), device=key.device, dtype=key.dtype).triu(1)
        bias = F.pad(bias, (own_key.size(-2), 0))  # 0 for the virtual ones: visible to everybody
        return torch.cat([own_key, key], dim=-2), torch.cat([own_value, value], dim=-2), bias


class Adapter(Hooks, nn.Module):
    """x + scale * gelu(x W_down) W_up behind every block, `rank` wide inside (arXiv 1902.00751). W_up starts at 0."""

    def __init__(self, base, rank, scale, generator, first=0):
        super().__init__()
        L, C = base.config.n_layer, base.config.n_embd
        self.scale, self.first = scale, first  # the first layer that has one
        self.down = _drawn(generator, L - first, C, rank, std=C**-0.5)
        self.up = nn.Parameter(torch.zeros(L - first, rank, C))

    def output(self, layer, x):
        if layer < self.first:
            return x
        at = layer - self.first
        return x + self.scale * (F.gelu(x @ self.down[at]) @ self.up[at])


class LastAdapter(Adapter):
    """An Adapter on the last feature alone, behind the last block (where PESF-KD, arXiv 2205.15308, puts its own)."""

    def __init__(self, base, rank, scale, generator):
        super().__init__(base, rank, scale, generator, first=base.config.n_layer - 1)


class FullCopy(Hooks, GPT):
    """A trainable copy of the whole base, which runs in its place; rank and scale have no meaning here."""

    has_rank, has_scale, trains_base = False, False, True

    def __init__(self, base, rank, scale, generator):
        nn.Module.__init__(self)  # GPT's own would draw weights
        self.config, self.recompute = base.config, base.recompute
        for name, part in copy.deepcopy(base).named_children():
            self.add_module(name, part)
        self.train(base.training).requires_grad_(True)

    def attach(self, base):
        return self, None


# A new kind of module is one class of Hooks above and one row here.
ONLINE_MODULES = {
    "lora": LoRA,
    "prefix": Prefix,
    "ptuning": PTuning,
    "adapter": Adapter,
    "last_adapter": LastAdapter,
    "full": FullCopy,
}


def online_module_kind(name):
    """The class of a kind of module. Raises ValueError for a name that is not in ONLINE_MODULES."""
    if name not in ONLINE_MODULES:
        raise ValueError(f"unknown online module {name!r}: choose from {', '.join(ONLINE_MODULES)}")
    return ONLINE_MODULES[name]


class OnlineTeacher(nn.Module):
    """A frozen base and a small trainable module (OKD, arXiv 2409.12512, section V); called like a GPT.

    `online(tokens)` is the adapted teacher, `online.base(tokens)` the original one, always; with `enabled = False` both
    are the same. The base is frozen here and shared, not copied: it never moves. Before its training a module leaves
    every logit bit-equal, except "ptuning". `rank` is the module's size: LoRA's and an adapter's inner width, the
    number of prefix or virtual tokens. Raises ValueError for an unknown kind or a rank below 1.
    """

    def __init__(self, base, kind="lora", rank=8, scale=1.0, generator=None):
        super().__init__()
        module_kind = online_module_kind(kind)
        if not isinstance(rank, int) or rank < 1:
            raise ValueError(f"the online module's rank must be a whole number of at least 1, found {rank}")
        if not isinstance(scale, int | float) or not math.isfinite(scale):
            raise ValueError(f"the online module's scale must be a finite number, found {scale!r}")
        assert isinstance(base, GPT), f"an online module stands beside a GPT, not beside {type(base).__name__}"
        self.base, self.config, self.enabled = base.requires_grad_(False), base.config, True
        self.about = {"kind": kind, "rank": rank, "scale": scale}
        generator = generator or torch.Generator().manual_seed(0)
        self.module = module_kind(base, rank, scale, generator).to(base.token_embedding.weight.device)

    def forward(self, tokens, cache=None, features=False):
        """(B, T) long -> (B, T, V), or the features before the head; with gradients to the module alone."""
        model, hooks = self._running()
        return model(tokens, cache, hooks, features)

    def _running(self):
        """The GPT that runs now and its hooks: the base alone where the module is switched off."""
        return self.module.attach(self.base) if self.enabled else (self.base, None)

    @property
    def head(self):
        """(V, C): what turns its features into logits."""
        return self._running()[0].head

    def new_cache(self, batch_size, capacity):
        """An empty KVCache, as GPT.new_cache."""
        return self.base.new_cache(batch_size, capacity)

    def num_parameters(self):
        """Number of trainable numbers: the module's, without those that it keeps frozen."""
        return sum(weight.numel() for weight in self.module.parameters() if weight.requires_grad)

    @property
    def training_passes(self):
        """Cost of one training pass, in forwards: forward, gradients of activations, and those of a copy's weights."""
        return 3 if self.module.trains_base else 2


# ---------------------------------------------------------------------------------------------------------------------
# 2. Two models called as one, which write a response together.


def shared_vocabulary(student, teacher):
    """The number of tokens that both models know; ids are compared directly, so a different number is a ValueError."""
    sizes = student.config.vocab_size, teacher.config.vocab_size
    if sizes[0] != sizes[1]:
        raise ValueError(f"student and teacher need one vocabulary, found {sizes[0]} and {sizes[1]} tokens")
    return sizes[0]


class Together:
    """Two models that are fed the same tokens and write one response; called like a GPT, with new_cache and config."""

    feeds = ("student", "teacher")  # both read every token

    def __init__(self, first, second):
        shared_vocabulary(first, second)
        self.models = (first, second)
        self.config = min((model.config for model in self.models), key=lambda config: config.block_size)

    def parameters(self):
        return self.models[0].parameters()

    def new_cache(self, batch_size, capacity):
        return CachePair(model.new_cache(batch_size, capacity) for model in self.models)


class Mixture(Together):
    """Every token is drawn from weight * first + (1 - weight) * second.

    Log-probabilities stand in for logits. MiniLLM's teacher-mixed sampling (arXiv 2306.08543).
    """

    def __init__(self, first, second, weight):
        super().__init__(first, second)
        assert 0 < weight < 1, f"a mixture needs a weight strictly between 0 and 1, found {weight}"
        self.weights = (weight, 1 - weight)

    def __call__(self, tokens, cache):
        parts = [
            model(tokens, own).float().log_softmax(-1) + math.log(weight)
            for model, own, weight in zip(self.models, cache, self.weights)
        ]
        return torch.logaddexp(*parts)


def teacher_share(student_logits, teacher_logits, epsilon, halvings=30):
    """How far a writer may go from the student to the teacher: (..., V), (..., V) -> (..., 1) in 0..1.

    Of all distributions within KL(writer || student) <= epsilon nats, the one with the smallest KL(writer || teacher)
    is student^(1 - share) teacher^share, normalised, with the largest share that stays within: the solution of TRB
    (arXiv 2605.31159). That KL grows with the share (its slope is the share times a variance), so bisection finds it.
    Student (1/2, 1/2), teacher (4/5, 1/5): share 1/2 writes by (2/3, 1/3), which is .0566 nats from the student.
    """
    student_logits, teacher_logits = student_logits.float(), teacher_logits.float()
    student_logprobs = student_logits.log_softmax(-1)

    def distance(share):
        logprobs = torch.lerp(student_logits, teacher_logits, share).log_softmax(-1)
        return (logprobs.exp() * (logprobs - student_logprobs)).sum(-1, keepdim=True).clamp(min=0)

    share = torch.zeros_like(student_logits[..., :1])
    for halving in range(1, halvings + 1):
        further = share + 0.5**halving
        share = torch.where(distance(further) < epsilon, further, share)  # below: at epsilon 0 it stays 0
    whole = torch.ones_like(share)
    return torch.where(distance(whole) <= epsilon, whole, share)


class TrustRegion(Together):
    """Every token is drawn as near to the teacher as a trust region of epsilon nats around the student allows.

    See teacher_share. epsilon 0 is the student, inf the teacher, each to the bit.
    """

    def __init__(self, student, teacher, epsilon):
        super().__init__(student, teacher)
        if not epsilon >= 0:
            raise ValueError(f"a trust region takes an epsilon of at least 0 nats, found {epsilon}")
        self.epsilon = epsilon

    def __call__(self, tokens, cache):
        student_row, teacher_row = (model(tokens, own)[:, -1:].float() for model, own in zip(self.models, cache))
        return torch.lerp(student_row, teacher_row, teacher_share(student_row, teacher_row, self.epsilon))


class Switching(Together):
    """Two models that write one after the other: the student until it strays, the teacher from there to the row's end.

    At every position d = KL(teacher || student); where d first exceeds `factor` times the mean of the up to `window`
    positions before it, the teacher takes over, once (AdaSwitch, arXiv 2510.07842: a reconstruction from summaries).
    Distances .1 .1 .1 .5 with window 3, factor 3: the fourth token is the teacher's. The first token is the student's;
    factor inf never switches, factor 0 switches at the second token. `first_by_teacher` (B,): the position in the
    response of the teacher's first token.
    """

    def __init__(self, student, teacher, factor=3.0, window=4):
        super().__init__(student, teacher)
        if not factor >= 0 or window < 1:
            raise ValueError(f"switching takes a factor >= 0 and a window >= 1, found {factor} and {window}")
        self.factor, self.window = factor, window

    def new_cache(self, batch_size, capacity):
        self.first_by_teacher = torch.full((batch_size,), 2**31, device=next(self.parameters()).device)
        cache = SwitchCache(model.new_cache(batch_size, capacity) for model in self.models)
        cache.begin(batch_size, next(self.parameters()).device)
        return cache

    def __call__(self, tokens, cache):
        student_rows, teacher_rows = (model(tokens, own)[:, -1:] for model, own in zip(self.models, cache))
        student_logprobs, teacher_logprobs = (rows.float().log_softmax(-1) for rows in (student_rows, teacher_rows))
        distance = (teacher_logprobs.exp() * (teacher_logprobs - student_logprobs)).sum(-1)[:, 0]  # (n,)
        first = self.first_by_teacher[cache.rows]
        if cache.recent:
            strays = distance > self.factor * torch.stack(cache.recent).mean(0)
            first = torch.where(strays, first.clamp(max=cache.position), first)  # positions grow: set once, it stays
            self.first_by_teacher[cache.rows] = first
        cache.recent, cache.position = [*cache.recent, distance][-self.window :], cache.position + 1
        return torch.where(first[:, None, None] < cache.position, teacher_rows, student_rows)


class CachePair(tuple):
    """The caches of two models that are fed the same tokens."""

    def roll_back(self, lengths, high=None):
        for cache in self:
            cache.roll_back(lengths, high)

    def keep_rows(self, rows):
        for cache in self:
            cache.keep_rows(rows)


class SwitchCache(CachePair):
    """What Switching keeps of a batch: both caches, the last distances, and which rows are still written."""

    def begin(self, batch_size, device):
        """No token of a response is written yet."""
        self.recent, self.position, self.rows = [], 0, torch.arange(batch_size, device=device)

    def roll_back(self, lengths, high=None):
        """Called once, behind the prompts: what the models said of those is no distance of a response."""
        super().roll_back(lengths, high)
        self.begin(len(lengths), lengths.device)

    def keep_rows(self, rows):
        super().keep_rows(rows)
        there = to_device(torch.tensor(rows), self.rows.device)
        self.rows, self.recent = self.rows[there], [distance[there] for distance in self.recent]


# ---------------------------------------------------------------------------------------------------------------------
# 3. Optimizer recipe and checkpoints.

MAX_BYTES = 2**36  # of a file that is read: 64 GiB


def make_optimizer(model, lr, weight_decay=0.1, betas=(0.9, 0.95)):
    """AdamW with decay on matrices only (not on biases, norms: a gain has no reason to shrink); fused where it
    exists."""
    trainable = [weight for weight in model.parameters() if weight.requires_grad]
    groups = [
        {"params": [w for w in trainable if w.dim() >= 2], "weight_decay": weight_decay},
        {"params": [w for w in trainable if w.dim() < 2], "weight_decay": 0.0},
    ]
    fused = all(weight.device.type in ("cuda", "cpu") for weight in trainable)  # one kernel for all tensors
    return torch.optim.AdamW(groups, lr=lr, betas=betas, fused=fused)


def learning_rate(step, num_steps, peak, warmup=0.05, floor=0.0):
    """Linear warm-up over a share of the steps, then a cosine down to floor * peak. The first step is never 0."""
    warmup_steps = max(1, round(warmup * num_steps))
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    progress = (step - warmup_steps) / max(1, num_steps - warmup_steps)
    return peak * (floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * progress)))


def clip_and_step(model, optimizer, rate):
    """One update of what is trainable in a model by the gradients it has, clipped at 1 -> their norm before
    clipping."""
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    for group in optimizer.param_groups:
        group["lr"] = rate
    norm = torch.nn.utils.clip_grad_norm_(weights, 1.0)
    optimizer.step()
    return norm


def checksum(content):
    """sha256 of tensors and plain values, however nested: what is read is what was saved, or the sums differ."""
    digest = hashlib.sha256()

    def add(part):
        if isinstance(part, torch.Tensor):
            if part.numel() * part.element_size() > part.untyped_storage().nbytes():
                raise ValueError("a tensor claims more numbers than it holds")
            add([str(part.dtype), list(part.shape)])
            digest.update(part.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
        elif isinstance(part, dict):
            add([*part])
            for value in part.values():
                add(value)
        elif isinstance(part, list | tuple):
            digest.update(f"{len(part)} of:".encode())
            for value in part:
                add(value)
        else:
            if type(part) not in (str, int, float, bool, type(None)):  # a subclass would not be read again
                raise TypeError(f"a file holds tensors and plain values, not {type(part).__name__}")
            digest.update(f"{type(part).__name__} {part!r};".encode())

    add(content)
    return digest.hexdigest()


@contextlib.contextmanager
def whole_file(path):
    """A `with` block that writes bytes to a file beside `path`, which is renamed at its end: never a half file."""
    os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
    beside = f"{path}.{os.getpid()}.partial"
    try:
        with contextlib.suppress(FileNotFoundError):
            os.remove(beside)
        with open(beside, "xb") as file:  # were it a link, another file would be written over
            yield file
            file.flush()
            os.fsync(file.fileno())  # on the disk before it takes the name of the one before
        os.replace(beside, path)
    finally:
        if os.path.exists(beside):
            os.remove(beside)


def save_file(path, content):
    """A dict of tensors and plain values, with its checksum, to a file that is whole or not there."""
    try:
        with whole_file(path) as file:
            torch.save(content | {"sha256": checksum(content)}, file)
    except RuntimeError as error:  # what torch makes of a file that takes no more
        raise OSError(
            f"{path} could not be written ({error.__context__ or _first_line(error)}): is the disk full?"
        ) from error


# What the system says of a file, or of itself, that is no fault of the file's content.
UNREADABLE = {errno.EACCES, errno.EPERM, errno.EIO, errno.EMFILE, errno.ENFILE, errno.ENOMEM}


def is_systems(error):
    """Whether an error says something of the system and not of the file that was being read: of rights, disk, memory,
    or a GPU that takes no more work."""
    if isinstance(error, OSError):
        return error.errno in UNREADABLE
    memory = isinstance(error, MemoryError | torch.OutOfMemoryError)
    return memory or any(words in str(error) for words in ("CUDA error", "can't allocate memory", "out of memory"))


def load_file(path):
    """Read what save_file wrote, to the host. Raises ValueError with one line for anything else, be it only a bit that
    has changed, and what `is_systems` knows for a file that cannot be read now, and may be whole."""
    if os.path.getsize(path) > MAX_BYTES:
        raise ValueError(f"it has {os.path.getsize(path):,} bytes, more than the limit of {MAX_BYTES:,}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about what is refused below, in one line
            with zipfile.ZipFile(path) as archive:  # packed parts, or parts that share bytes, could fill the memory
                if sum(part.file_size for part in archive.infolist()) > os.path.getsize(path):
                    raise ValueError("it claims more than it holds")
            content = torch.load(path, map_location="cpu", weights_only=True)
        if not isinstance(content, dict) or "sha256" not in content:
            raise ValueError("this project did not write it: it has no checksum")
        expected = content.pop("sha256")
        whole = expected == checksum(content)
    except Exception as error:  # torch raises half a dozen kinds for a broken file; the user needs one line
        if is_systems(error):
            raise
        raise ValueError(_what_is_wrong(error)) from error
    if not whole:
        raise ValueError("its checksum does not fit: a part of it has changed since it was written")
    return content


def _what_is_wrong(error):
    """Why a file cannot be read, in our words: torch's own give advice that would not help here."""
    if isinstance(error, zipfile.BadZipFile):
        return "it is cut short, or no file of this project's"
    if str(error).startswith("Weights only load failed"):
        return "it holds more than tensors and plain values"
    return _first_line(error) if type(error) is ValueError else "its parts are not what this project writes"


def _first_line(error):
    words = str(error).strip().split("\n")[0][:160]
    return f"it has no {words}" if isinstance(error, KeyError) else words


def save_checkpoint(path, model, tokenizer_state, **extra):
    """Write weights, configuration and tokenizer to `path`, beside it first and then renamed: never a half file.

    `extra` holds plain values (numbers, strings, lists, dicts) such as the metrics; loads with weights_only=True.
    """
    content = {
        "config": dataclasses.asdict(model.config),
        "weights": model.state_dict(),
        "tokenizer": tokenizer_state,
    }
    save_file(path, content | extra)


def load_checkpoint(path, device="cpu"):
    """Read what save_checkpoint wrote: (GPT in eval mode, the dict of everything else).

    Raises ValueError with one line when the file is not such a checkpoint, or its weights do not fit its configuration.
    """
    if not os.path.isfile(path):
        raise ValueError(
            f"no checkpoint at {path}: run train_skd.py first, or give the path of a .pt file that it left"
        )
    try:
        content = load_file(path)
        config, weights = GPTConfig(**content["config"]), content.pop("weights")
        # Before a model of that shape is made: a file may not ask for more memory than it has itself.
        embedding, positions = (weights[f"{kind}_embedding.weight"] for kind in ("token", "position"))
        if (
            embedding.shape != (config.vocab_size, config.n_embd)
            or positions.size(0) != config.block_size
            or config.n_layer > len(weights)
        ):
            raise ValueError("its weights do not fit its configuration")
        model = GPT(config)
        model.load_state_dict(weights, strict=True)
        if not isinstance(content["tokenizer"], dict | None):
            raise ValueError("its tokenizer is no dict")
    except Exception as error:
        if isinstance(error, OSError) or is_systems(error):
            raise
        raise ValueError(
            f"{path} is not a whole checkpoint of this project ({_first_line(error)}): "
            "give another, or let the run write it anew"
        ) from error
    return model.eval().to(device), content  # only here: a GPU without room for it says nothing of the file


def weights_hash(model):
    """sha256 over all weights, as text: two models with the same hash give the same logits."""
    return checksum(model.state_dict())


def save_online_module(path, online, **extra):
    """Write the module of an OnlineTeacher apart from its base, of which only the hash is kept."""
    content = {"module": online.about, "base": weights_hash(online.base), "weights": online.module.state_dict()}
    save_file(path, content | extra)


def load_online_module(path, base):
    """Attach a saved module to `base` -> OnlineTeacher on the base's device, in eval mode.

    Raises ValueError with one line when the file holds no module, or one that was trained beside another base.
    """
    if not os.path.isfile(path):
        raise ValueError(f"no online module at {path}: run train_okd.py first, or give the path of a .module.pt file")
    try:
        content = load_file(path)
        about, trained_beside, weights = content["module"], content["base"], content["weights"]
        # Before a module of that size is made: a kind with a rank holds as many rows as wide as the base.
        size = sum(weight.numel() for weight in weights.values())
        if online_module_kind(about["kind"]).has_rank and about["rank"] * base.config.n_embd > size:
            raise ValueError("its weights do not fit its rank")
        online = None if trained_beside != weights_hash(base) else OnlineTeacher(base, **about)
        if online is not None:
            online.module.load_state_dict(weights, strict=True)
    except Exception as error:
        if isinstance(error, OSError) or is_systems(error):
            raise
        raise ValueError(
            f"{path} is not a whole online module ({_first_line(error)}): give another, or let the run write it anew"
        ) from error
    if online is None:
        raise ValueError(f"{path} was trained beside another teacher: give the teacher of the same run")
    return online.eval()
