"""The laws of model.py: GPT-2 to the letter, a cache that never shows, decay groups, checkpoints, and one seed."""

import math
import os
import random

import adapters
import pytest
import torch
import torch.nn.functional as F

from model import (
    GPT,
    GPTConfig,
    KVCache,
    learning_rate,
    load_checkpoint,
    make_optimizer,
    save_checkpoint,
)


def wide_gpt(seed=0, vocab_size=11, block_size=24, n_layer=2, n_head=2, n_embd=12, gelu="erf"):
    """A float64 GPT whose weights, biases and gains are all large and random, so that every one of them matters."""
    config = GPTConfig(vocab_size, block_size, n_layer, n_head, n_embd, gelu)
    model = GPT(config, torch.Generator().manual_seed(seed)).double().eval()
    generator = torch.Generator().manual_seed(seed + 1)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn(weight.shape, generator=generator, dtype=torch.float64), alpha=0.4)
    return model


def random_tokens(*shape, vocab_size=11, seed=0):
    return torch.randint(vocab_size, shape, generator=torch.Generator().manual_seed(seed))


# ---------------------------------------------------------------------------------------------------------------------
# The architecture.


def gpt2_by_hand(weights, tokens, n_layer, n_head, gelu):
    """GPT-2's forward pass of one row of tokens, position by position and head by head, from the state dict."""

    def norm(x, name):
        mean, variance = x.mean(-1, keepdim=True), x.var(-1, keepdim=True, unbiased=False)
        return (x - mean) / torch.sqrt(variance + 1e-5) * weights[f"{name}.weight"] + weights[f"{name}.bias"]

    def linear(x, name):
        return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]

    def activation(x):
        if gelu == "tanh":
            return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
        return 0.5 * x * (1 + torch.erf(x / math.sqrt(2)))

    T = len(tokens)
    x = weights["token_embedding.weight"][tokens] + weights["position_embedding.weight"][:T]  # (T, C)
    for layer in range(n_layer):
        query, key, value = linear(norm(x, f"blocks.{layer}.norm_1"), f"blocks.{layer}.attention.qkv").chunk(3, -1)
        heads = []
        for q, k, v in zip(query.chunk(n_head, -1), key.chunk(n_head, -1), value.chunk(n_head, -1)):  # each (T, D)
            rows = [torch.softmax(q[t] @ k[: t + 1].T / math.sqrt(q.size(1)), -1) @ v[: t + 1] for t in range(T)]
            heads.append(torch.stack(rows))
        x = x + linear(torch.cat(heads, -1), f"blocks.{layer}.attention.out")
        hidden = activation(linear(norm(x, f"blocks.{layer}.norm_2"), f"blocks.{layer}.up"))
        x = x + linear(hidden, f"blocks.{layer}.down")
    return norm(x, "norm") @ weights["token_embedding.weight"].T


@pytest.mark.parametrize("gelu", ["erf", "tanh"])
@pytest.mark.parametrize("n_layer, n_head", [(1, 1), (2, 3), (3, 2)])
def test_forward_is_gpt2(gelu, n_layer, n_head):
    """The logits equal an independent forward pass written from GPT-2's definition, in float64."""
    model = wide_gpt(n_layer=n_layer, n_head=n_head, gelu=gelu)
    tokens = random_tokens(3, 9)
    logits = adapters.model_logits(model, tokens)
    by_hand = torch.stack([gpt2_by_hand(model.state_dict(), row, n_layer, n_head, gelu) for row in tokens])
    assert logits.shape == (3, 9, 11) and torch.allclose(logits, by_hand, rtol=1e-10, atol=1e-10)


def test_the_two_gelus_differ():
    """`gelu` reaches the forward pass: erf and tanh give different logits for the same weights."""
    tokens = random_tokens(1, 5)
    exact, approximate = (adapters.model_logits(wide_gpt(gelu=gelu), tokens) for gelu in ("erf", "tanh"))
    assert 1e-5 < (exact - approximate).abs().max()


def gpt2_size(vocab_size, block_size, n_layer, n_embd):
    """Token and position embeddings, 12 C^2 + 13 C per layer (each linear map with bias), the last norm; head tied."""
    return (vocab_size + block_size) * n_embd + n_layer * (12 * n_embd**2 + 13 * n_embd) + 2 * n_embd


@pytest.mark.parametrize("shape", [(11, 24, 2, 2, 12), (7, 5, 1, 1, 4), (30, 9, 3, 4, 8)])
def test_number_of_parameters(shape):
    """num_parameters follows GPT-2's formula, which gives the published 124,439,808 at the published shape."""
    vocab_size, block_size, n_layer, n_head, n_embd = shape
    model = adapters.make_gpt(vocab_size, block_size, n_layer, n_head, n_embd)
    assert model.num_parameters() == gpt2_size(vocab_size, block_size, n_layer, n_embd)
    assert model.num_parameters() == sum(weight.numel() for weight in model.state_dict().values())
    assert gpt2_size(50257, 1024, 12, 768) == 124_439_808


def test_head_is_tied():
    """Moving a row of the token embedding moves that column of the logits, even for a token not in the input."""
    model = wide_gpt()
    tokens = torch.tensor([[1, 2, 3]])
    before = adapters.model_logits(model, tokens)
    with torch.no_grad():
        model.token_embedding.weight[9] += 1.0
    changed = (adapters.model_logits(model, tokens) - before).abs().amax((0, 1)) > 1e-9
    assert changed.tolist() == [token == 9 for token in range(11)]


def test_causality():
    """A later token never changes an earlier row, and always changes its own and some later one."""
    model, tokens = wide_gpt(), random_tokens(2, 10)
    before = adapters.model_logits(model, tokens)
    for t in range(10):
        changed = tokens.clone()
        changed[:, t] = (changed[:, t] + 1) % 11
        after = adapters.model_logits(model, changed)
        assert torch.equal(after[:, :t], before[:, :t])
        assert (after[:, t:] - before[:, t:]).abs().amax(-1).min() > 1e-9


def test_rows_are_independent_and_padding_on_the_right_is_harmless():
    """A row gives the same logits alone, in any batch, in any order and before any padding."""
    model, tokens = wide_gpt(), random_tokens(4, 10)
    logits = adapters.model_logits(model, tokens)
    order = torch.tensor([2, 0, 3, 1])
    assert torch.allclose(adapters.model_logits(model, tokens[order]), logits[order], atol=1e-12)
    for row in range(4):
        short = adapters.model_logits(model, tokens[row : row + 1, :6])
        assert torch.allclose(short[0], logits[row, :6], atol=1e-12)


def test_wrong_shapes_are_refused():
    """Too many tokens, heads that do not divide the width, an unknown gelu: asserts that say what was found."""
    with pytest.raises(AssertionError, match="25 tokens, but block_size is 24"):
        wide_gpt()(random_tokens(1, 25))
    with pytest.raises(AssertionError, match="not divisible"):
        GPTConfig(11, 8, 1, 5, 12)
    with pytest.raises(AssertionError, match="relu"):
        GPTConfig(11, 8, 1, 2, 12, gelu="relu")


# ---------------------------------------------------------------------------------------------------------------------
# The initial weights.


def test_same_seed_same_weights():
    """One seed gives the same bits, another seed others; no seed means seed 0."""
    one, again, other = (adapters.make_gpt(50, 16, 2, 2, 16, seed=seed).state_dict() for seed in (3, 3, 4))
    default = GPT(GPTConfig(50, 16, 2, 2, 16)).state_dict()
    zero = adapters.make_gpt(50, 16, 2, 2, 16, seed=0).state_dict()
    assert all(torch.equal(one[name], again[name]) for name in one)
    assert all(torch.equal(default[name], zero[name]) for name in one)
    assert not torch.equal(one["blocks.0.up.weight"], other["blocks.0.up.weight"])


def test_initial_scales():
    """Biases 0, gains 1, matrices N(0, .02 sqrt(768 / C)), those that end a residual branch over sqrt(2 n_layer)."""
    model = adapters.make_gpt(256, 64, 8, 4, 64)
    for name, weight in model.named_parameters():
        if weight.dim() < 2:
            assert (weight == (1.0 if "norm" in name and name.endswith("weight") else 0.0)).all(), name
        else:
            std = 0.02 * math.sqrt(768 / 64) / (4 if name.endswith(("out.weight", "down.weight")) else 1)
            # The sample deviation of n normal numbers has relative error 1 / sqrt(2 n): seven of these.
            assert weight.std().item() == pytest.approx(std, rel=7 / math.sqrt(2 * weight.numel())), name
            assert abs(weight.mean().item()) < 7 * std / math.sqrt(weight.numel()), name


def test_global_generators_are_left_alone():
    """Building and running a model neither reads nor moves the global random states."""
    torch.manual_seed(1)
    first = adapters.make_gpt(50, 16, 2, 2, 16)
    torch.manual_seed(2)
    states = torch.random.get_rng_state(), random.getstate()
    second = adapters.make_gpt(50, 16, 2, 2, 16)
    adapters.model_logits(second, torch.tensor([[1, 2]]))
    assert torch.equal(states[0], torch.random.get_rng_state()) and states[1] == random.getstate()
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters()))


def test_train_and_eval_mode_agree():
    """No dropout: train mode computes the same function, so that sampling never needs a mode switch."""
    model, tokens = wide_gpt(), random_tokens(2, 6)
    assert torch.equal(model.train()(tokens), model.eval()(tokens))


# ---------------------------------------------------------------------------------------------------------------------
# The cache.


def check_cache(model, seed, poison, bound, batch_size=5, steps=25):
    """Random extensions and roll-backs of ragged rows: every cached row of logits equals the uncached one."""
    chance = random.Random(seed)
    block_size = model.config.block_size
    capacity = block_size
    cache = model.new_cache(batch_size, capacity)
    cache.keys_values.fill_(poison)
    rows = [[] for _ in range(batch_size)]
    checked = 0
    for _ in range(steps):
        T = chance.randint(1, min(6, block_size - max(map(len, rows))))
        fed = [[chance.randrange(11) for _ in range(T)] for _ in rows]
        with torch.no_grad():
            logits = model(torch.tensor(fed), cache)
        for row, new, found in zip(rows, fed, logits):
            row += new
            full = adapters.model_logits(model, torch.tensor([row]))[0, -T:]
            assert torch.allclose(found, full, rtol=1e-9, atol=1e-9)
            checked += T
        # Take back any number of tokens, row by row, sometimes everything; always leave room for the next ones.
        for row in rows:
            del row[min(block_size - 1, chance.randint(max(0, len(row) - chance.choice((0, 1, 3, 30))), len(row))) :]
        keep = [len(row) for row in rows]
        cache.roll_back(torch.tensor(keep), high=max(keep) if bound else None)
    return checked


@pytest.mark.parametrize("poison", [0.0, 1e3])
@pytest.mark.parametrize("bound", [True, False])
@pytest.mark.parametrize("seed", range(4))
def test_cached_equals_uncached(seed, poison, bound):
    """Any pattern of feeding and taking back, ragged lengths, poisoned slots, tight or loose bound: the same logits."""
    assert check_cache(wide_gpt(seed), seed, poison, bound) > 100


def test_stale_slots_are_never_seen():
    """What was cached and taken back, however wild, leaves no trace once the row goes on."""
    model = wide_gpt()
    tokens, wild = random_tokens(2, 12), random_tokens(2, 12, seed=5)
    cache = model.new_cache(2, 24)
    with torch.no_grad():
        model(tokens[:, :4], cache)
        model(wild, cache)
        cache.keys_values[..., 4:, :] *= 1e3
        cache.roll_back(torch.tensor([4, 3]), high=4)
        found = model(torch.stack([tokens[0, 4:8], tokens[1, 3:7]]), cache)
    expected = adapters.model_logits(model, tokens)
    assert torch.allclose(found, torch.stack([expected[0, 4:8], expected[1, 3:7]]), atol=1e-9)
    assert cache.lengths.tolist() == [8, 7] and cache.high == 8


def test_cache_rows_do_not_mix():
    """One row's keys never reach another row: a batch equals its rows fed alone."""
    model, tokens = wide_gpt(), random_tokens(3, 8)
    cache = model.new_cache(3, 8)
    alone = [model.new_cache(1, 8) for _ in range(3)]
    with torch.no_grad():
        for start, stop in ((0, 3), (3, 4), (4, 8)):
            together = model(tokens[:, start:stop], cache)
            for row in range(3):
                single = model(tokens[row : row + 1, start:stop], alone[row])
                assert torch.allclose(single[0], together[row], atol=1e-12)


@pytest.mark.parametrize("seed", range(4))
def test_dropping_rows(seed):
    """Rows that stay, in any new order, go on as if the others had never been there;
    a row that keeps its place is not copied."""
    chance, model, tokens = random.Random(seed), wide_gpt(seed), random_tokens(6, 12)
    full, cache, rows, length = adapters.model_logits(model, tokens), model.new_cache(6, 12), list(range(6)), 2
    with torch.no_grad():
        model(tokens[:, :2], cache)
        while rows:
            found = model(tokens[rows, length : length + 2], cache)
            assert torch.allclose(found, full[rows, length : length + 2], atol=1e-9)
            stay = chance.sample(range(len(rows)), len(rows) - 1)
            at = cache.keys_values.data_ptr()
            cache.keep_rows(stay)
            rows, length = [rows[row] for row in stay], length + 2
            if stay == list(range(len(stay))):
                assert cache.keys_values.data_ptr() == at
            cache.roll_back(torch.full((len(rows),), length), high=length)
            if length == 12:
                break
    assert len(rows) == 1


def test_cache_layout():
    """One allocation (n_layer, 2, B, H, capacity, D) on the model's dtype; positions past the block are clamped."""
    model = wide_gpt()
    cache = model.new_cache(3, 30)
    assert isinstance(cache, KVCache) and cache.keys_values.shape == (2, 2, 3, 2, 30, 6)
    assert cache.keys_values.dtype == torch.float64 and cache.lengths.tolist() == [0, 0, 0]
    with torch.no_grad():
        logits = model(random_tokens(3, 30), cache)  # block_size is 24: drafting past the end must not crash
    assert torch.allclose(logits[:, :24], adapters.model_logits(model, random_tokens(3, 30)[:, :24]), atol=1e-9)


def test_cache_under_autocast():
    """Under bf16 autocast the cache is bf16 and its logits are those of the uncached pass to bf16 rounding."""
    model = adapters.make_gpt(11, 24, 2, 2, 12)
    tokens = random_tokens(2, 6)
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.no_grad():
        cache = model.new_cache(2, 6)
        cached = torch.cat([model(tokens[:, t : t + 1], cache) for t in range(6)], 1)
        full = model(tokens)
    assert cache.keys_values.dtype == torch.bfloat16
    assert torch.allclose(cached.float(), full.float(), atol=0.02)


def test_gradients_flow_through_the_uncached_pass():
    """model(tokens) carries gradients to every parameter."""
    model = wide_gpt()
    model(random_tokens(2, 24)).square().sum().backward()
    assert all(weight.grad is not None and weight.grad.abs().sum() > 0 for weight in model.parameters())


# ---------------------------------------------------------------------------------------------------------------------
# The optimizer recipe.


def test_decay_on_matrices_only():
    """Every trainable parameter is in exactly one group; decay meets matrices and embeddings, not biases nor gains."""
    model = adapters.make_gpt(11, 24, 2, 2, 12)
    model.position_embedding.weight.requires_grad_(False)
    optimizer = make_optimizer(model, 1e-3, weight_decay=0.3, betas=(0.8, 0.9))
    decay = {id(w): group["weight_decay"] for group in optimizer.param_groups for w in group["params"]}
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(decay)
    for name, weight in model.named_parameters():
        if name == "position_embedding.weight":
            assert id(weight) not in decay
        else:
            assert decay[id(weight)] == (0.0 if name.endswith("bias") or "norm" in name else 0.3), name
    assert all(group["lr"] == 1e-3 and group["betas"] == (0.8, 0.9) for group in optimizer.param_groups)


def test_one_optimizer_step_is_adamw():
    """The first step is -lr (sign of the gradient + decay w): decoupled decay on a matrix, none on a bias."""
    model = adapters.make_gpt(11, 24, 1, 2, 12)
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    model(random_tokens(2, 24)).square().sum().backward()
    make_optimizer(model, lr=0.01, weight_decay=0.5).step()
    for name, weight in model.named_parameters():
        decay = 0.5 if weight.dim() >= 2 else 0.0
        expected = before[name] * (1 - 0.01 * decay) - 0.01 * weight.grad / (weight.grad.abs() + 1e-8)
        assert torch.allclose(weight, expected, atol=1e-5), name


def test_learning_rate():
    """Linear warm-up over a share of the steps, cosine to the floor: the hand-computed values, never 0 at the start."""
    rates = [learning_rate(step, 100, 2.0, warmup=0.1, floor=0.1) for step in range(101)]
    assert rates[:10] == pytest.approx([2.0 * (step + 1) / 10 for step in range(10)])
    assert rates[10] == pytest.approx(2.0) and rates[55] == pytest.approx(2.0 * (0.1 + 0.9 / 2))
    assert rates[100] == pytest.approx(0.2)
    assert rates[32] == pytest.approx(2 * (0.1 + 0.45 * (1 + math.cos(math.pi * 22 / 90))))
    assert all(later <= earlier + 1e-12 for earlier, later in zip(rates[10:], rates[11:]))
    assert max(rates) == pytest.approx(2.0)
    for num_steps in (1, 2, 3, 7):
        assert all(0 < learning_rate(step, num_steps, 1e-3) <= 1e-3 for step in range(num_steps))
    assert learning_rate(0, 1, 1e-3) == 1e-3 and learning_rate(0, 10, 1.0, warmup=0.0) == 1.0
    assert learning_rate(99, 100, 1.0) < 0.001  # the default floor is 0


# ---------------------------------------------------------------------------------------------------------------------
# Checkpoints.


def test_checkpoint_round_trip(tmp_path):
    """Weights bit for bit, configuration, tokenizer state and extras come back; nothing else is left in the folder."""
    model = adapters.make_gpt(11, 24, 2, 2, 12, seed=3)
    path = tmp_path / "new" / "folder" / "model.pt"
    tokenizer_state = {"merges": ["6162", "616263"], "eos_token": 10}
    save_checkpoint(str(path), model, tokenizer_state, step=7, metrics={"score": [0.5, 1.0]})
    loaded, content = load_checkpoint(str(path))
    assert loaded.config == model.config and not loaded.training
    for (name, weight), (other, found) in zip(model.state_dict().items(), loaded.state_dict().items(), strict=True):
        assert name == other and torch.equal(weight, found)
    assert content["tokenizer"] == tokenizer_state
    assert content["step"] == 7 and content["metrics"] == {"score": [0.5, 1.0]}
    assert os.listdir(path.parent) == ["model.pt"]
    tokens = random_tokens(1, 9)
    assert torch.equal(adapters.model_logits(loaded, tokens), adapters.model_logits(model, tokens))


def test_checkpoint_keeps_the_gelu(tmp_path):
    """The activation is part of the configuration: a tanh model stays one."""
    model = GPT(GPTConfig(11, 24, 2, 2, 12, gelu="tanh"))
    save_checkpoint(str(tmp_path / "model.pt"), model, None)
    assert load_checkpoint(str(tmp_path / "model.pt"))[0].config.gelu == "tanh"


def test_checkpoint_is_loaded_as_data_only(tmp_path, monkeypatch):
    """torch.load is called with weights_only=True: a checkpoint cannot run code."""
    path, ran = str(tmp_path / "evil.pt"), tmp_path / "ran"

    class Evil:
        def __reduce__(self):
            return (os.mkdir, (str(ran),))

    torch.save({"config": Evil(), "weights": {}, "tokenizer": None}, path)
    with pytest.raises(ValueError):
        load_checkpoint(path)
    assert not ran.exists()


def test_a_failed_save_leaves_the_old_file(tmp_path, monkeypatch):
    """A save that dies half way keeps the previous checkpoint whole and leaves nothing beside it."""
    path = str(tmp_path / "model.pt")
    save_checkpoint(path, adapters.make_gpt(11, 24, 1, 2, 12, seed=1), None)
    whole = open(path, "rb").read()

    def dies(content, target):
        target.write(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(torch, "save", dies)
    with pytest.raises(OSError, match="disk full"):
        save_checkpoint(path, adapters.make_gpt(11, 24, 1, 2, 12, seed=2), None)
    assert open(path, "rb").read() == whole and os.listdir(tmp_path) == ["model.pt"]


def damaged(kind, path):
    """Write a file that is not a whole checkpoint."""
    model = adapters.make_gpt(11, 24, 1, 2, 12)
    save_checkpoint(path, model, None)
    if kind == "truncated":
        whole = open(path, "rb").read()
        open(path, "wb").write(whole[: len(whole) // 2])
    elif kind == "empty":
        open(path, "wb").close()
    elif kind == "text":
        open(path, "w").write("not a checkpoint\n" * 9)
    elif kind == "missing":
        os.remove(path)
    elif kind == "folder":
        os.remove(path)
        os.mkdir(path)
    else:
        content = torch.load(path, weights_only=True)
        if kind == "wrong shape":
            content["weights"]["norm.weight"] = torch.ones(13)
        elif kind == "missing weight":
            del content["weights"]["norm.weight"]
        elif kind == "further weight":
            content["weights"]["head.weight"] = torch.ones(1)
        elif kind == "no config":
            del content["config"]
        elif kind == "no tokenizer":
            del content["tokenizer"]
        elif kind == "bad config":
            content["config"]["n_head"] = 5
        elif kind == "other object":
            content = [1, 2]
        torch.save(content, path)


@pytest.mark.parametrize(
    "kind",
    ["truncated", "empty", "text", "missing", "folder", "wrong shape", "missing weight", "further weight", "no config"]
    + ["no tokenizer", "bad config", "other object"],
)
def test_a_broken_checkpoint_is_one_line(kind, tmp_path):
    """Whatever is wrong with the file, the error is a ValueError of one line that names the file."""
    path = str(tmp_path / "model.pt")
    damaged(kind, path)
    with pytest.raises(ValueError, match="model.pt") as caught:
        load_checkpoint(path)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400 + len(path)


def test_two_layers_of_names_are_stable():
    """The names of the weights are the format of the checkpoints: renaming one breaks every file that exists."""
    names = set(adapters.make_gpt(11, 24, 1, 2, 12).state_dict())
    block = {"norm_1", "attention.qkv", "attention.out", "norm_2", "up", "down"}
    expected = {f"blocks.0.{part}.{kind}" for part in block for kind in ("weight", "bias")}
    expected |= {"token_embedding.weight", "position_embedding.weight", "norm.weight", "norm.bias"}
    assert names == expected


def test_float32_uncached_pass_is_accurate():
    """float32 logits agree with float64 ones to 1e-4 of their scale."""
    model = wide_gpt()
    tokens = random_tokens(2, 24)
    exact = adapters.model_logits(model, tokens)
    narrow = adapters.model_logits(model.float(), tokens).double()
    assert F.l1_loss(narrow, exact) < 1e-4 * exact.abs().mean()
