"""Laws of lab/exchange.py: weights come back bit for bit, GPT-2's own layout is met, and no file is believed."""

import json
import os

import adapters
import pytest
import torch
import torch.nn.functional as F

from lab import exchange
from model import GPT, GPTConfig, save_checkpoint

SHAPE = (50, 12, 3, 2, 16)


def random_model(gelu="erf", seed=1):
    model = GPT(GPTConfig(*SHAPE, gelu=gelu), torch.Generator().manual_seed(seed)).eval()
    noise = torch.Generator().manual_seed(seed + 1)
    with torch.no_grad():
        for weight in model.parameters():  # biases are 0 and gains 1 at first
            weight.add_(0.1 * torch.randn(weight.shape, generator=noise))
    return model


@pytest.mark.parametrize("gelu", ["erf", "tanh"])
def test_there_and_back(gelu, tmp_path):
    """Every weight and the configuration, to the bit; the logits are those of before."""
    model = random_model(gelu)
    adapters.export_gpt2(model, tmp_path)
    back = adapters.load_gpt2(tmp_path)
    assert back.config == model.config and not back.training
    assert all(
        torch.equal(one, other)
        for one, other in zip(model.state_dict().values(), back.state_dict().values(), strict=True)
    )
    tokens = torch.arange(24).view(2, 12)
    assert torch.equal(adapters.model_logits(model, tokens), adapters.model_logits(back, tokens))


def test_the_layout_is_gpt2s(tmp_path):
    """Written out by hand as GPT-2 defines it (x W + b with W (in, out), pre-norm, tied head): the same logits."""
    model = random_model("tanh")
    adapters.export_gpt2(model, tmp_path)
    read = exchange.read_safetensors(tmp_path / "model.safetensors")
    assert all(name.startswith("transformer.") for name in read)
    w = {name.removeprefix("transformer."): tensor for name, tensor in read.items()}
    assert (
        w["h.0.attn.c_attn.weight"].shape == (16, 48)
        and w["h.0.mlp.c_fc.weight"].shape == (16, 64)
        and len(w) == 4 + 12 * 3
    )
    tokens = torch.tensor([[3, 1, 4, 1, 5]])
    T, heads = 5, 2

    def norm(x, name):
        return F.layer_norm(x, (16,), w[f"{name}.weight"], w[f"{name}.bias"])

    x = w["wte.weight"][tokens] + w["wpe.weight"][:T]
    for layer in range(3):
        h = f"h.{layer}"
        query, key, value = (
            norm(x, f"{h}.ln_1") @ w[f"{h}.attn.c_attn.weight"] + w[f"{h}.attn.c_attn.bias"]
        ).split(16, -1)
        query, key, value = (part.view(1, T, heads, 8).transpose(1, 2) for part in (query, key, value))
        scores = query @ key.transpose(-1, -2) / 8**0.5 + torch.full((T, T), -torch.inf).triu(1)
        y = (scores.softmax(-1) @ value).transpose(1, 2).reshape(1, T, 16)
        x = x + y @ w[f"{h}.attn.c_proj.weight"] + w[f"{h}.attn.c_proj.bias"]
        inner = F.gelu(norm(x, f"{h}.ln_2") @ w[f"{h}.mlp.c_fc.weight"] + w[f"{h}.mlp.c_fc.bias"], approximate="tanh")
        x = x + inner @ w[f"{h}.mlp.c_proj.weight"] + w[f"{h}.mlp.c_proj.bias"]
    torch.testing.assert_close(
        norm(x, "ln_f") @ w["wte.weight"].T, adapters.model_logits(model, tokens), atol=1e-5, rtol=1e-5
    )


def test_older_files_are_read(tmp_path):
    """Without the prefix, with the causal masks and a head of its own name, in float16:
    as the hub's gpt2 and its copies are."""
    model = random_model("tanh")
    adapters.export_gpt2(model, tmp_path)
    path = tmp_path / "model.safetensors"
    tensors = {
        name.removeprefix("transformer."): tensor.half() for name, tensor in exchange.read_safetensors(path).items()
    }
    for layer in range(3):
        tensors[f"h.{layer}.attn.bias"] = torch.ones(1, 1, 12, 12, dtype=torch.bool).tril()
        tensors[f"h.{layer}.attn.masked_bias"] = torch.tensor(-1e4)
    tensors["lm_head.weight"] = tensors["wte.weight"]
    exchange.write_safetensors(path, tensors)
    back = adapters.load_gpt2(tmp_path)
    for one, other in zip(model.state_dict().values(), back.state_dict().values(), strict=True):
        assert other.dtype == torch.float32 and torch.equal(one.half().float(), other)


def test_bytes_by_hand(tmp_path):
    """The format itself: eight bytes of length, a JSON header, the numbers."""
    path = tmp_path / "a.safetensors"
    exchange.write_safetensors(
        path, {"b": torch.tensor([1.0, -2.0]), "a": torch.tensor(3, dtype=torch.int16), "e": torch.empty(0, 4)}
    )
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    assert length % 8 == 0 and json.loads(data[8 : 8 + length])["b"] == {
        "dtype": "F32",
        "shape": [2],
        "data_offsets": [0, 8],
    }
    assert data[8 + length :] == bytes.fromhex("0000803f" "000000c0" "0300")
    found = exchange.read_safetensors(path)
    assert found["a"].dtype == torch.int16 and found["a"].item() == 3 and found["e"].shape == (0, 4)


@pytest.mark.parametrize("dtype", exchange.DTYPES.values(), ids=str)
def test_every_kind_of_number(dtype, tmp_path):
    values = torch.tensor([[0, 1], [1, 1], [0, 0]]).to(dtype)
    exchange.write_safetensors(tmp_path / "a", {"x": values})
    found = exchange.read_safetensors(tmp_path / "a")["x"]
    assert found.dtype == dtype and torch.equal(found, values)


def raw(header, data=b"", length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data


F8 = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
MALICIOUS = {
    "empty": b"", "short": b"1234567", "header longer than the file": raw({}, length=2**62),
    "no JSON": raw(b"{not json"), "no object": raw([1, 2]), "nested": raw(b"[" * 100_000 + b"]" * 100_000),
    "latin-1": raw(b'{"\xe9": 1}'), "entry is no object": raw({"a": 3}),
    "no shape": raw({"a": {"dtype": "F32", "data_offsets": [0, 0]}}),
    "unknown dtype": raw({"a": F8 | {"dtype": "OBJ"}}, b"x" * 8), "past the end": raw({"a": F8}, b"x" * 4),
    "negative": raw({"a": F8 | {"data_offsets": [-8, 0]}}, b"x" * 8),
    "negative shape": raw({"a": F8 | {"shape": [-1, -2]}}, b"x" * 8),
    "shape too large": raw({"a": F8 | {"shape": [10**12, 10**12]}}, b"x" * 8),
    "fraction": raw({"a": F8 | {"shape": [2.0]}}, b"x" * 8), "overlap": raw({"a": F8, "b": F8}, b"x" * 8),
    "gap": raw({"a": F8 | {"data_offsets": [8, 16]}}, b"x" * 16), "left over": raw({"a": F8}, b"x" * 9),
    "three offsets": raw({"a": F8 | {"data_offsets": [0, 8, 9]}}, b"x" * 8),
    "a name twice": raw(b'{"a": %s, "a": %s}' % ((json.dumps(F8).encode(),) * 2), b"x" * 8),
    "a key twice": raw(b'{"a": {"dtype": "F32", "shape": [2], "shape": [1, 2], "data_offsets": [0, 8]}}', b"x" * 8),
    "a line end in a name": raw({"a\nb": F8}, b"x" * 4),
    "a pickle": b"\x80\x04\x95\x10\x00\x00\x00\x00\x00\x00\x00\x8c\x02os\x94",
}  # fmt: skip


@pytest.mark.parametrize("name", MALICIOUS)
def test_no_file_is_believed(name, tmp_path):
    """One line that names the file, whatever its header claims; nothing large is made."""
    path = tmp_path / "a.safetensors"
    path.write_bytes(MALICIOUS[name])
    with pytest.raises(ValueError, match=r"a\.safetensors: ") as error:
        exchange.read_safetensors(path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("change,word", [
    ({"model_type": "llama"}, "llama"), ({"activation_function": "relu"}, "relu"),
    ({"layer_norm_epsilon": 1e-6}, "layer_norm_epsilon"), ({"n_inner": 32}, "n_inner"),
    ({"scale_attn_by_inverse_layer_idx": True}, "inverse"), ({"tie_word_embeddings": False}, "tie"),
    ({"n_head": 3}, "divisible"), ({"n_layer": 10**9}, "says"), ({"n_embd": 10**9}, "says"),
    ({"vocab_size": 60}, "says"), ({"n_layer": 2}, "says"), ({"n_positions": 0}, "no whole numbers"),
    ({"n_embd": "16"}, "no whole numbers"), ({"n_layer": None}, "no whole numbers"),
])  # fmt: skip
def test_another_architecture_is_refused(change, word, tmp_path):
    """What would be computed otherwise elsewhere is named; sizes that the weights do not have are not even tried."""
    adapters.export_gpt2(random_model(), tmp_path)
    about = json.loads((tmp_path / "config.json").read_text()) | change
    (tmp_path / "config.json").write_text(json.dumps(about))
    with pytest.raises(ValueError, match=word) as error:
        adapters.load_gpt2(tmp_path)
    assert "\n" not in str(error.value)


def test_what_is_missing_is_named(tmp_path):
    """A folder without files, a tensor of another shape, a head of its own, a name that has no place."""
    with pytest.raises(ValueError, match="config.json is missing: give a folder"):
        adapters.load_gpt2(tmp_path)
    adapters.export_gpt2(random_model(), tmp_path)
    path = tmp_path / "model.safetensors"
    whole = exchange.read_safetensors(path)
    bias = "transformer.h.1.attn.c_attn.bias"
    for changed, word in (
        ({name: x for name, x in whole.items() if name != bias} | {"transformer.h.1.other": whole[bias]},
         "c_attn.bias has shape"),
        (whole | {"transformer.h.0.mlp.c_fc.weight": whole["transformer.h.0.mlp.c_fc.weight"].T},
         r"c_fc.weight has shape \[64, 16\], expected \[16, 64\]"),
        (whole | {"lm_head.weight": whole["transformer.wte.weight"] + 1}, "output head is not its token embedding"),
        (whole | {"transformer.more": torch.ones(3)}, "holds .* numbers"),
    ):
        exchange.write_safetensors(path, changed)
        with pytest.raises(ValueError, match=word):
            adapters.load_gpt2(tmp_path)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 1e300])
def test_weights_are_finite(value, tmp_path):
    """nan, infinity, and a float64 that is none in float32 are refused with the tensor's name,
    in a file as in a model."""
    model = random_model()
    adapters.export_gpt2(model, tmp_path / "a")
    path = tmp_path / "a" / "model.safetensors"
    tensors = {name: tensor.double() for name, tensor in exchange.read_safetensors(path).items()}
    tensors["transformer.h.1.mlp.c_fc.weight"][3, 5] = value
    exchange.write_safetensors(path, tensors)
    with pytest.raises(ValueError, match=r"model.safetensors: h\.1\.mlp\.c_fc\.weight holds nan"):
        adapters.load_gpt2(tmp_path / "a")
    with torch.no_grad():
        model.blocks[1].up.weight[5, 3] = torch.tensor(value, dtype=torch.float64)
    with pytest.raises(ValueError, match=r"blocks\.1\.up\.weight holds nan"):
        adapters.export_gpt2(model, tmp_path / "b")
    assert not (tmp_path / "b").exists()


def test_heads_that_do_not_divide_are_refused_without_asserts(tmp_path, monkeypatch):
    """Also where python -O leaves the configuration's own check out."""
    adapters.export_gpt2(random_model(), tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"n_head": 3}))
    monkeypatch.setattr(GPTConfig, "__post_init__", lambda self: None)
    with pytest.raises(ValueError, match="config.json .*n_embd 16 is not divisible by n_head 3"):
        adapters.load_gpt2(tmp_path)


def test_what_stands_twice_is_refused(tmp_path):
    """A key of config.json, and a tensor with and without GPT-2's prefix: which of the two was meant, nobody knows."""
    adapters.export_gpt2(random_model(), tmp_path)
    path, config = tmp_path / "model.safetensors", tmp_path / "config.json"
    whole, about = exchange.read_safetensors(path), config.read_text()
    config.write_text(about.replace('"n_head": 2', '"n_head": 2, "n_head": 4'))
    with pytest.raises(ValueError, match="config.json .*a key stands twice"):
        adapters.load_gpt2(tmp_path)
    config.write_text(about)
    exchange.write_safetensors(path, whole | {"wte.weight": whole["transformer.wte.weight"] + 1})
    with pytest.raises(ValueError, match="model.safetensors holds 'wte.weight' with and without 'transformer.'"):
        adapters.load_gpt2(tmp_path)


def test_an_export_is_whole_and_follows_no_link(tmp_path, monkeypatch):
    """Links in the places of both files are replaced, what they lead to stays;
    a write that fails leaves the files of before."""
    victim, folder, model = tmp_path / "victim", tmp_path / "out", random_model()
    victim.write_text("mine")
    folder.mkdir()
    for name in exchange.FILES:
        (folder / name).symlink_to(victim)
    adapters.export_gpt2(model, folder)
    assert victim.read_text() == "mine" and not [path for path in folder.iterdir() if path.is_symlink()]
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert sorted(before) == sorted(exchange.FILES)

    def full(descriptor):
        raise OSError("no space left")

    monkeypatch.setattr(os, "fsync", full)
    monkeypatch.setattr(exchange, "write_safetensors", lambda path, tensors: None)
    with pytest.raises(OSError, match="no space left"):
        adapters.export_gpt2(random_model("tanh"), folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_an_empty_name_is_no_folder(tmp_path, monkeypatch, capsys):
    """"" is not the folder that one stands in, not even where that holds a model."""
    model = random_model()
    adapters.export_gpt2(model, tmp_path)
    save_checkpoint(str(tmp_path / "a.pt"), model, None)
    monkeypatch.chdir(tmp_path)
    before = sorted(path.name for path in tmp_path.iterdir())
    for call in (
        lambda: adapters.load_gpt2(""),
        lambda: adapters.export_gpt2(model, ""),
        lambda: exchange.main(["a.pt", ""]),
    ):
        with pytest.raises((ValueError, SystemExit), match="the folder's name is empty"):
            call()
    assert sorted(path.name for path in tmp_path.iterdir()) == before


@pytest.mark.parametrize("name", exchange.FILES)
def test_the_command_replaces_nothing(tmp_path, name):
    """A file of one of the two names, or a link, is somebody's: one line with folder and name.
    A program's own export may be replaced."""
    save_checkpoint(str(tmp_path / "a.pt"), random_model(), None)
    out = tmp_path / "out"
    out.mkdir()
    for make in (lambda: (out / name).write_text("mine"), lambda: (out / name).symlink_to("nowhere")):
        make()
        with pytest.raises(SystemExit, match=f"lab.exchange: {out} holds {name} already: give another folder") as stop:
            exchange.main([str(tmp_path / "a.pt"), str(out)])
        assert "\n" not in str(stop.value) and os.listdir(out) == [name]
        (out / name).unlink()
    for seed in (1, 2):
        adapters.export_gpt2(random_model(seed=seed), out)
    assert torch.equal(adapters.load_gpt2(out).head, random_model(seed=2).head)


def test_the_command(tmp_path, capsys):
    """A checkpoint becomes a folder; what is no checkpoint is one line and a status."""
    model = random_model()
    save_checkpoint(str(tmp_path / "a.pt"), model, None)
    exchange.main([str(tmp_path / "a.pt"), str(tmp_path / "out")])
    assert f"{model.num_parameters():,} weights" in capsys.readouterr().out
    assert torch.equal(adapters.load_gpt2(tmp_path / "out").head, model.head)
    with pytest.raises(SystemExit, match="no checkpoint at") as stop:
        exchange.main([str(tmp_path / "nothing.pt"), str(tmp_path / "out")])
    assert "\n" not in str(stop.value)
