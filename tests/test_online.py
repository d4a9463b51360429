"""Laws of the online teacher: what it leaves alone, what it moves, and that its cache tells the same story."""

import copy

import pytest
import torch
from adapters import attach_online_module, make_gpt, model_logits

import sample
import train_okd
from losses import cross_entropy, forward_kl
from model import (
    ONLINE_MODULES,
    FullCopy,
    Hooks,
    OnlineTeacher,
    load_online_module,
    make_optimizer,
    save_checkpoint,
    save_online_module,
    weights_hash,
)

V, KINDS = 23, tuple(ONLINE_MODULES)
IDENTITY = tuple(kind for kind in KINDS if kind != "ptuning")  # ptuning's virtual tokens are attended from the start


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def base():
    return make_gpt(V, 20, 2, 2, 16, seed=3)


@pytest.fixture
def tokens():
    return torch.randint(0, V, (3, 11), generator=generator(1))


def stirred(online, seed=5, size=0.3):
    """The same teacher after its module has moved a long way."""
    with torch.no_grad():
        for weight in online.module.parameters():
            weight.add_(size * torch.randn(weight.shape, generator=generator(seed)))
    return online


@pytest.mark.parametrize("kind", IDENTITY)
def test_attached_changes_nothing(base, tokens, kind):
    """Test 1 of the paper's list: every logit is bit-equal to the base's, with and without a cache."""
    online = attach_online_module(base, kind)
    assert torch.equal(model_logits(online, tokens), model_logits(base, tokens)), (
        f"{kind} does not start as the identity: let what it adds be 0 at first, or leave it out of IDENTITY"
    )
    with torch.no_grad():
        caches = [model.new_cache(3, 11) for model in (online, base)]
        for part in tokens.split([4, 1, 6], 1):
            assert torch.equal(online(part, caches[0]), base(part, caches[1]))


def test_virtual_tokens_change_the_teacher(base, tokens):
    """ptuning is no identity: it starts at a distance, which is what train_okd.py reports."""
    online = attach_online_module(base, "ptuning")
    drift = forward_kl(model_logits(online, tokens), model_logits(base, tokens))
    assert (drift > 1e-6).all()


@pytest.mark.parametrize("kind", KINDS)
def test_only_the_module_moves(base, tokens, kind):
    """The base gets no gradient and keeps every bit over 3 updates; every tensor of the module has moved by then."""
    before = copy.deepcopy(base.state_dict())
    online = attach_online_module(base, kind, rank=4)
    start = copy.deepcopy(online.module.state_dict())
    assert all(weight.requires_grad for weight in online.module.parameters())
    optimizer = make_optimizer(online, 1e-2, weight_decay=0.0)
    for _ in range(3):
        optimizer.zero_grad(set_to_none=True)
        cross_entropy(online(tokens[:, :-1]), tokens[:, 1:]).mean().backward()
        optimizer.step()
    assert all(weight.grad is None and not weight.requires_grad for weight in base.parameters())
    assert all(torch.equal(weight, before[name]) for name, weight in base.state_dict().items())
    for name, weight in online.module.state_dict().items():
        if not name.endswith("position_embedding.weight"):  # of a full copy: positions beyond the text never move
            assert not torch.equal(weight, start[name]), name
    assert not torch.equal(model_logits(online, tokens), model_logits(base, tokens))


def test_first_step_of_lora(base, tokens):
    """W_up starts at 0, hence W_down gets a gradient of exactly 0 in the first step, and W_up does not."""
    online = attach_online_module(base, "lora")
    cross_entropy(online(tokens[:, :-1]), tokens[:, 1:]).mean().backward()
    for name, weight in online.module.named_parameters():
        assert bool(weight.grad.any()) == name.startswith("up"), name


def test_lora_is_the_weights_sum(base, tokens):
    """x W + s x W_down W_up = x (W + s W_down W_up) on the query and value slices;
    the key slice keeps the base's weights."""
    online = stirred(OnlineTeacher(base, "lora", rank=4, scale=2.5, generator=generator()))
    merged, lora, C = copy.deepcopy(base), online.module, base.config.n_embd
    with torch.no_grad():
        for layer, block in enumerate(merged.blocks):
            weight = block.attention.qkv.weight  # (3C, C): queries, keys, values
            keys = weight[C : 2 * C].clone()
            weight[:C] += 2.5 * (lora.down_query[layer] @ lora.up_query[layer]).T
            weight[2 * C :] += 2.5 * (lora.down_value[layer] @ lora.up_value[layer]).T
            assert torch.equal(weight[C : 2 * C], keys)
    torch.testing.assert_close(model_logits(online, tokens), model_logits(merged, tokens), rtol=1e-4, atol=1e-4)


def test_lora_size(base):
    """n_layer * 2 * 2 * d * rank numbers, the paper's count."""
    assert attach_online_module(base, "lora", rank=4).num_parameters() == 2 * 2 * 2 * 16 * 4


def test_virtual_tokens_are_attended(base, tokens):
    """ptuning equals the base run on [virtual embeddings; embedded tokens], the tokens keeping their own positions."""
    online = stirred(attach_online_module(base, "ptuning", rank=3))
    module, T = online.module, tokens.size(1)
    with torch.no_grad():
        virtual = (torch.tanh(module.embedding @ module.hidden) @ module.last).expand(len(tokens), -1, -1)
        embedded = base.token_embedding(tokens) + base.position_embedding(torch.arange(T))
        x = torch.cat([virtual, embedded], 1)
        for layer, block in enumerate(base.blocks):
            x = block(x, layer)
        expected = base.norm(x[:, 3:]) @ base.token_embedding.weight.T
    torch.testing.assert_close(model_logits(online, tokens), expected, rtol=1e-4, atol=1e-5)


def test_prefix_adds_what_it_attends(base, tokens):
    """The gate scales the prefix's own attention: at gate g the output is the base's plus g times the same term."""
    online = stirred(attach_online_module(base, "prefix", rank=3))
    query, y = torch.randn(2, 2, 5, 8, generator=generator(7)), torch.randn(2, 2, 5, 8, generator=generator(8))
    with torch.no_grad():
        online.module.gate.fill_(0.5)
        half = online.module.attend(0, query, y) - y
        online.module.gate.fill_(1.0)
        torch.testing.assert_close(online.module.attend(0, query, y) - y, 2 * half, rtol=1e-5, atol=1e-5)
        keys, values = online.module.keys[0], online.module.values[0]  # (H, rank, D)
        weights = torch.einsum("bhtd,hrd->bhtr", query, keys).div(8**0.5).softmax(-1)
        torch.testing.assert_close(2 * half, torch.einsum("bhtr,hrd->bhtd", weights, values), rtol=1e-4, atol=1e-5)


def test_last_adapter_acts_behind_the_last_block_only(base, tokens):
    """Its logits are the head of the adapted last feature; the adapter of all blocks has one
    pair of matrices per block."""
    online = stirred(attach_online_module(base, "last_adapter", rank=4))
    with torch.no_grad():
        x = base.token_embedding(tokens) + base.position_embedding(torch.arange(tokens.size(1)))
        for layer, block in enumerate(base.blocks):
            x = block(x, layer)
        x = x + torch.nn.functional.gelu(x @ online.module.down[0]) @ online.module.up[0]
        torch.testing.assert_close(online(tokens), base.norm(x) @ base.token_embedding.weight.T, rtol=1e-4, atol=1e-5)
    assert len(online.module.up) == 1 and len(attach_online_module(base, "adapter").module.up) == 2


@pytest.mark.parametrize("kind", KINDS)
def test_cache_and_rows_do_not_matter(base, tokens, kind):
    """A moved module gives the same logits in one go, in pieces through a cache, after a rollback, and row by row."""
    online = stirred(attach_online_module(base, kind, rank=4))
    whole = model_logits(online, tokens)
    with torch.no_grad():
        cache = online.new_cache(3, 14)
        pieces = [online(part, cache) for part in tokens.split([4, 1, 6], 1)]
        torch.testing.assert_close(torch.cat(pieces, 1), whole, rtol=1e-4, atol=1e-4)
        cache.roll_back(torch.tensor([5, 7, 10]), high=10)  # drafts taken back: row 0 keeps 5 slots, ...
        again = online(torch.stack([tokens[0, 5:6], tokens[1, 7:8], tokens[2, 10:11]]), cache)[:, 0]
        torch.testing.assert_close(again, whole[[0, 1, 2], [5, 7, 10]], rtol=1e-4, atol=1e-4)
    for row in range(3):
        torch.testing.assert_close(
            model_logits(online, tokens[row : row + 1, :6])[0], whole[row, :6], rtol=1e-4, atol=1e-4
        )


@pytest.mark.parametrize("kind", KINDS)
def test_the_future_is_hidden(base, tokens, kind):
    """Changing token 7 changes no logit before row 7 (and does change row 7)."""
    online = stirred(attach_online_module(base, kind, rank=4))
    changed = tokens.clone()
    changed[:, 7] = (changed[:, 7] + 1) % V
    before, after = model_logits(online, tokens), model_logits(online, changed)
    assert torch.equal(before[:, :7], after[:, :7]) and not torch.equal(before[:, 7], after[:, 7])


@pytest.mark.parametrize("kind", KINDS)
def test_switched_off_it_is_the_original(base, tokens, kind):
    """Test 11: after the module has moved, enabled = False gives back every logit of the original,
    and True the adapted."""
    original = model_logits(base, tokens)
    online = stirred(attach_online_module(base, kind))
    adapted = model_logits(online, tokens)
    online.enabled = False
    assert torch.equal(model_logits(online, tokens), original)
    online.enabled = True
    assert torch.equal(model_logits(online, tokens), adapted) and not torch.equal(adapted, original)
    assert torch.equal(model_logits(online.base, tokens), original)


@pytest.mark.parametrize("kind", KINDS)
def test_samplers_take_it(base, kind):
    """Block sampling with a moved online teacher writes what the token-by-token reference writes, for several gamma."""
    online, student = stirred(attach_online_module(base, kind, rank=3)), make_gpt(V, 20, 1, 2, 8, seed=9)
    prompts = [[1, 2, 3], [4], [5, 6]]
    expected = [
        sample.interleaved_reference(student, online, prompt, 8, generator=generator(2), accept_top_k=4, row_key=row)[0]
        for row, prompt in enumerate(prompts)
    ]
    for gamma in (1, 3, 5):
        rollout = sample.interleaved_generate(
            student, online, prompts, 8, generator=generator(2), gamma=gamma, accept_top_k=4
        )
        assert rollout.responses() == expected


@pytest.mark.parametrize("kind", KINDS)
def test_the_seed_decides(base, kind):
    """Same seed, same module; torch's global generator is not touched."""
    state = torch.random.get_rng_state()
    modules = [attach_online_module(base, kind, seed=seed).module.state_dict() for seed in (0, 0, 1)]
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(modules[0][name], modules[1][name]) for name in modules[0])
    if not ONLINE_MODULES[kind].trains_base and any(weight.any() for weight in modules[0].values()):
        # What is not 0 was drawn.
        assert any(not torch.equal(modules[0][name], modules[2][name]) for name in modules[0])


def test_wrong_kind_and_rank(base):
    """One line that says what there is."""
    with pytest.raises(ValueError, match="choose from lora, prefix"):
        OnlineTeacher(base, "lorax")
    with pytest.raises(ValueError, match="at least 1, found 0"):
        OnlineTeacher(base, rank=0)


# ---------------------------------------------------------------------------------------------------------------------
# Saved apart from the base.


@pytest.mark.parametrize("kind", KINDS)
def test_saved_and_loaded_apart(base, tokens, kind, tmp_path):
    """A loaded module gives the same logits bit for bit; for a small kind the file is far smaller than the base's."""
    online, path = stirred(OnlineTeacher(base, kind, 4, 1.5, generator())), str(tmp_path / "x.module.pt")
    save_online_module(path, online, seed=7)
    loaded = load_online_module(path, copy.deepcopy(base))
    assert loaded.about == {"kind": kind, "rank": 4, "scale": 1.5}
    assert torch.equal(model_logits(loaded, tokens), model_logits(online, tokens))
    assert [file.name for file in tmp_path.iterdir()] == ["x.module.pt"]
    if not ONLINE_MODULES[kind].trains_base:
        assert not any("token_embedding" in name for name in torch.load(path, weights_only=True)["weights"])


def test_a_module_knows_its_base(base, tmp_path):
    """Beside another teacher, even one that differs in a single number, it is refused in one line."""
    path, other = str(tmp_path / "x.module.pt"), copy.deepcopy(base)
    save_online_module(path, attach_online_module(base))
    with torch.no_grad():
        other.blocks[1].down.bias[3] += 1e-6
    assert weights_hash(other) != weights_hash(base) == weights_hash(copy.deepcopy(base))
    with pytest.raises(ValueError, match="trained beside another teacher") as error:
        load_online_module(path, other)
    assert "\n" not in str(error.value)


def test_what_is_no_module(base, tmp_path):
    """A missing file, a torn one, a whole model and a module with other shapes: one line each that names the file."""
    path = tmp_path / "x.module.pt"
    with pytest.raises(ValueError, match="no online module at"):
        load_online_module(str(path), base)
    save_online_module(str(path), attach_online_module(base))
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="not a whole online module"):
        load_online_module(str(path), base)
    save_checkpoint(str(path), base, None)
    with pytest.raises(ValueError, match="not a whole online module"):
        load_online_module(str(path), base)
    content = {"module": {"kind": "lora", "rank": 5, "scale": 1.0}, "base": weights_hash(base)}
    torch.save(content | {"weights": attach_online_module(base, rank=4).module.state_dict()}, path)
    with pytest.raises(ValueError, match="not a whole online module"):
        load_online_module(str(path), base)


# ---------------------------------------------------------------------------------------------------------------------
# A new kind is one class and one row: biases alone, and a copy of which only a part is trained.


class Biases(Hooks, torch.nn.Module):
    """An addition to the bias of every linear layer of every block (BitFit, arXiv 2106.10199); all start at 0."""

    has_rank = has_scale = False

    def __init__(self, base, rank, scale, generator):
        super().__init__()
        L, C = base.config.n_layer, base.config.n_embd
        widths = {"qkv": 3 * C, "out": C, "up": 4 * C, "down": C}
        self.added = torch.nn.ParameterDict({name: torch.zeros(L, width) for name, width in widths.items()})

    def project(self, layer, name, linear, x):
        return linear(x) + self.added[name][layer]


class LastBlockCopy(FullCopy):
    """A copy of the base of which only the last block is trained."""

    def __init__(self, base, rank, scale, generator):
        super().__init__(base, rank, scale, generator)
        self.requires_grad_(False).blocks[-1].requires_grad_(True)


NEW_KINDS = {"biases": Biases, "last_block": LastBlockCopy}


@pytest.fixture(params=NEW_KINDS)
def new_kind(request, monkeypatch):
    """The name of a kind that is in the table for one test."""
    monkeypatch.setitem(ONLINE_MODULES, request.param, NEW_KINDS[request.param])
    return request.param


def test_a_new_kind_keeps_the_laws(base, tokens, new_kind, tmp_path):
    """It starts as the base, trains its own numbers alone, works with a cache, can be switched off and saved."""
    test_attached_changes_nothing(base, tokens, new_kind)
    test_cache_and_rows_do_not_matter(base, tokens, new_kind)
    test_switched_off_it_is_the_original(base, tokens, new_kind)
    test_recomputed_gradients_are_the_gradients(base, tokens, new_kind)
    test_saved_and_loaded_apart(base, tokens, new_kind, tmp_path)
    online = attach_online_module(base, new_kind)
    learns = {name for name, weight in online.named_parameters() if weight.requires_grad}
    before = copy.deepcopy(online.state_dict())
    optimizer = make_optimizer(online, 1e-2)
    cross_entropy(online(tokens[:, :-1]), tokens[:, 1:]).mean().backward()
    optimizer.step()
    moved = {name for name, weight in online.state_dict().items() if not torch.equal(weight, before[name])}
    assert moved == learns and all(name.startswith("module.") for name in learns)


def test_added_biases_are_the_biases_sum(base, tokens, monkeypatch):
    """Logits are those of a base whose biases were raised by the same numbers: every linear layer is reached, once."""
    monkeypatch.setitem(ONLINE_MODULES, "biases", Biases)
    online = stirred(attach_online_module(base, "biases"))
    merged, added = copy.deepcopy(base), online.module.added
    with torch.no_grad():
        for layer, block in enumerate(merged.blocks):
            linears = {"qkv": block.attention.qkv, "out": block.attention.out, "up": block.up, "down": block.down}
            for name, linear in linears.items():
                linear.bias += added[name][layer]
    assert len(linears) * 2 == sum(isinstance(part, torch.nn.Linear) for part in base.modules())
    torch.testing.assert_close(model_logits(online, tokens), model_logits(merged, tokens), rtol=1e-4, atol=1e-5)


def test_a_partial_copy_reports_its_own_size(base, monkeypatch):
    """Only what is trained counts: one block of the two, all of a full copy."""
    monkeypatch.setitem(ONLINE_MODULES, "last_block", LastBlockCopy)
    block = sum(weight.numel() for weight in base.blocks[-1].parameters())
    assert attach_online_module(base, "last_block").num_parameters() == block
    assert attach_online_module(base, "full").num_parameters() == base.num_parameters() > 2 * block


def test_a_kind_says_what_it_costs(base, monkeypatch):
    """Gradients of weights are a third pass, which only a copy of the base's weights takes."""
    monkeypatch.setitem(ONLINE_MODULES, "last_block", LastBlockCopy)
    passes = {kind: attach_online_module(base, kind).training_passes for kind in ONLINE_MODULES}
    assert passes == dict.fromkeys(ONLINE_MODULES, 2) | {"full": 3, "last_block": 3}


def test_flags_ask_the_kind(monkeypatch):
    """--module-rank and --module-scale do not reach a kind without them, be it one that nobody has heard of."""
    monkeypatch.setitem(ONLINE_MODULES, "biases", Biases)
    for kind in ONLINE_MODULES:
        args = train_okd.parse_flags(["--module", kind])[0]
        for flag, has in (("module_rank", "has_rank"), ("module_scale", "has_scale")):
            reason = train_okd.ignored_reason(flag, "okd", args)
            assert (reason is None) == getattr(ONLINE_MODULES[kind], has), (kind, flag)
    with pytest.raises(ValueError, match="has a module without a rank"):
        train_okd.parse_flags(["--module", "biases", "--module-rank", "3", "--variants", "okd"])


# ---------------------------------------------------------------------------------------------------------------------
# What saves memory changes no number.


@pytest.mark.parametrize("kind", [None, *KINDS])
def test_features_and_head_are_the_logits(base, tokens, kind):
    """Last hidden states times the head are the logits, of a GPT and of every adapted one."""
    model = stirred(OnlineTeacher(base, kind)) if kind else base
    features = model(tokens, features=True)
    assert features.shape == (*tokens.shape, base.config.n_embd)
    torch.testing.assert_close(features @ model.head.T, model(tokens))


@pytest.mark.parametrize("kind", [None, *KINDS])
def test_recomputed_gradients_are_the_gradients(base, tokens, kind):
    """Activation checkpointing: the same loss and gradients to the last bit, from fewer kept tensors."""
    results, kept = [], []
    for recompute in (False, True):
        own = copy.deepcopy(base)
        own.recompute, sizes = recompute, {}
        model = stirred(OnlineTeacher(own, kind)) if kind else own.requires_grad_(True)
        with torch.autograd.graph.saved_tensors_hooks(
            lambda x: sizes.update({x.data_ptr(): x.nbytes}) or x, lambda x: x
        ):
            loss = model(tokens).square().mean()
        learns = [weight for weight in model.parameters() if weight.requires_grad]
        results.append([loss.detach(), *torch.autograd.grad(loss, learns)])
        kept.append(sum(sizes.values()))
    assert all(torch.equal(plain, again) for plain, again in zip(*results))
    # The last feature's adapter has no graph in the blocks below, so there is little to leave out.
    assert kept[1] < (1.0 if kind == "last_adapter" else 0.7) * kept[0]
