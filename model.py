"""GPT-2's architecture, its key-value cache, its optimizer recipe, and how a model is saved.

    tokens (B, T)  ->  GPT  ->  logits (B, T, V)      row t predicts token t+1, always all rows, never a loss

Distillation needs the teacher's whole distribution at every position, so `forward` returns all logits and nothing else.
The architecture is GPT-2's to the letter (learned positions, LayerNorm before each sub-layer, biases everywhere, GELU,
output head tied to the token embedding), so that real GPT-2 weights fit. Two liberties: no dropout (its noise would come
from the global generators; a short run on a tiny model does not need it), and `gelu="erf"`, the exact GELU, for models
trained here: on a CPU it is two to three times faster than GPT-2's tanh approximation.

The cache in one sentence: **slot = absolute position**. Prompts are padded on the right, a query sees every slot up to
its own position, and taking tokens back means lowering a row's length: the stale slots above it are overwritten before
any query can see them. Nothing is shifted, copied or cleared. (tests/test_model.py fills the caches with 1e3 to show it.)
"""

import dataclasses
import math
import os
from dataclasses import dataclass

import torch
import torch.nn as nn
import torch.nn.functional as F


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
        assert self.n_embd % self.n_head == 0, f"n_embd {self.n_embd} is not divisible by n_head {self.n_head}"
        assert self.gelu in ("erf", "tanh"), f"gelu must be erf or tanh, found {self.gelu!r}"


class KVCache:
    """Keys and values of one batch, slot = absolute position; `lengths` (B,) says how many slots of a row are valid.

    One allocation holds everything: (n_layer, 2, B, n_head, capacity, head_width). `forward` writes the new keys at the
    slots lengths .. lengths + T - 1 and moves `lengths` on; `roll_back` lowers it. `high` is a bound on max(lengths)
    that the host knows without asking the device, so that attention does not read slots which nobody has written yet.
    """

    def __init__(self, config, batch_size, capacity, device=None, dtype=torch.float32):
        head_width = config.n_embd // config.n_head
        self.keys_values = torch.zeros(
            config.n_layer, 2, batch_size, config.n_head, capacity, head_width, device=device, dtype=dtype
        )
        self.lengths = torch.zeros(batch_size, dtype=torch.long, device=device)
        self.capacity = capacity
        self.high = 0
        self._rows = torch.arange(batch_size, device=device)[:, None]  # (B, 1)
        self._slots = torch.arange(capacity, device=device)

    def extend(self, T):
        """Claim the next T slots of every row: positions (B, T), and the bias (B, 1, T, high) that hides later slots."""
        positions = self.lengths[:, None] + self._slots[:T]  # (B, T)
        self.high = min(self.high + T, self.capacity)
        hidden = self._slots[: self.high] > positions[..., None]  # (B, T, high): slot <= position is visible
        bias = torch.zeros(hidden.shape, device=hidden.device, dtype=self.keys_values.dtype)
        self.lengths = self.lengths + T
        return positions, bias.masked_fill_(hidden, float("-inf"))[:, None]

    def write(self, layer, positions, key, value):
        """Store (B, H, T, D) keys and values at `positions` (B, T); returns all slots below `high`, (B, H, high, D)."""
        keys, values = self.keys_values[layer]  # each (B, H, capacity, D)
        # Two index tensors around a slice: the indexed dimensions come first, hence (B, T, H, D) on the right.
        keys[self._rows, :, positions] = key.transpose(1, 2).to(keys.dtype)
        values[self._rows, :, positions] = value.transpose(1, 2).to(values.dtype)
        return keys[:, :, : self.high], values[:, :, : self.high]

    def roll_back(self, lengths, high=None):
        """Keep only the first `lengths` (B,) slots of each row; `high` is the host's bound on their maximum, if known."""
        self.lengths = lengths
        if high is not None:
            self.high = high


class Attention(nn.Module):
    """Causal self-attention with one fused projection for queries, keys and values (GPT-2's c_attn)."""

    def __init__(self, config):
        super().__init__()
        self.n_head = config.n_head
        self.qkv = nn.Linear(config.n_embd, 3 * config.n_embd)
        self.out = nn.Linear(config.n_embd, config.n_embd)

    def forward(self, x, layer, cache=None, positions=None, bias=None):
        B, T, C = x.shape
        query, key, value = (
            self.qkv(x).view(B, T, 3, self.n_head, C // self.n_head).permute(2, 0, 3, 1, 4)
        )  # (B, H, T, D)
        if cache is None:
            y = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        else:
            # Written out: for a handful of queries against a cache this is faster than the fused kernel on a CPU.
            keys, values = cache.write(layer, positions, key, value)
            scores = query @ keys.transpose(-2, -1) * (C // self.n_head) ** -0.5  # (B, H, T, high)
            y = (scores + bias).softmax(-1) @ values
        return self.out(y.transpose(1, 2).reshape(B, T, C))


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

    def forward(self, x, layer, cache=None, positions=None, bias=None):
        x = x + self.attention(self.norm_1(x), layer, cache, positions, bias)
        return x + self.down(F.gelu(self.up(self.norm_2(x)), approximate=self.gelu))


class GPT(nn.Module):
    """GPT-2 (Radford et al. 2019) of any size: `model(tokens)` gives logits (B, T, V), row t predicts token t+1."""

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
        """Initial weights from one CPU generator: GPT-2's N(0, .02) at its width of 768, N(0, .02 sqrt(768 / C)) at others.

        Residual outputs are scaled by 1/sqrt(2 n_layer). With a flat .02 a model of width 32 starts with logits so close
        to zero that it needs several times as many steps.
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

    def forward(self, tokens, cache=None):
        """(B, T) long -> (B, T, V). With a KVCache the T tokens go to the next T slots of each row."""
        T = tokens.size(1)
        if cache is None:
            assert T <= self.config.block_size, f"{T} tokens, but block_size is {self.config.block_size}"
            positions, bias = torch.arange(T, device=tokens.device), None
        else:
            positions, bias = cache.extend(T)
        # A sampler may draft past the end of a row (those tokens are thrown away), hence the clamp.
        x = self.token_embedding(tokens) + self.position_embedding(positions.clamp(max=self.config.block_size - 1))
        for layer, block in enumerate(self.blocks):
            x = block(x, layer, cache, positions, bias)
        return F.linear(self.norm(x), self.token_embedding.weight)  # tied head

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


def make_optimizer(model, lr, weight_decay=0.1, betas=(0.9, 0.95)):
    """AdamW with decay on matrices only (not on biases, norms: a gain has no reason to shrink); fused where it exists."""
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


def save_checkpoint(path, model, tokenizer_state, **extra):
    """Write weights, configuration and tokenizer to `path`, beside it first and then renamed: never a half file.

    `extra` holds plain values (numbers, strings, lists, dicts) such as the metrics; loads with weights_only=True.
    """
    os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
    content = {
        "config": dataclasses.asdict(model.config),
        "weights": model.state_dict(),
        "tokenizer": tokenizer_state,
        **extra,
    }
    beside = f"{path}.{os.getpid()}.partial"
    try:
        torch.save(content, beside)
        os.replace(beside, path)
    finally:
        if os.path.exists(beside):
            os.remove(beside)


def load_checkpoint(path, device="cpu"):
    """Read what save_checkpoint wrote: (GPT in eval mode, the dict of everything else).

    Raises ValueError with one line when the file is not such a checkpoint, or its weights do not fit its configuration.
    """
    if not os.path.isfile(path):
        raise ValueError(
            f"no checkpoint at {path}: run train_skd.py first, or give the path of a .pt file that it left"
        )
    try:
        content = torch.load(path, map_location=device, weights_only=True)
        model = GPT(GPTConfig(**content["config"])).to(device)
        model.load_state_dict(content.pop("weights"), strict=True)
        tokenizer_state = content["tokenizer"]
    except Exception as error:  # torch raises half a dozen kinds for a broken file; the user needs one line
        first_line = str(error).strip().split("\n")[0][:160]
        raise ValueError(
            f"{path} is not a whole checkpoint of this project ({first_line}): delete it and run again"
        ) from error
    assert tokenizer_state is None or isinstance(tokenizer_state, dict)
    return model.eval(), content
