"""Weights to and from other programs: safetensors files, and GPT-2 in the Hugging Face layout.

    export_gpt2(model, folder)  config.json and model.safetensors, which `GPT2LMHeadModel.from_pretrained(folder)` reads
    model = load_gpt2(folder)   the same two files, of any GPT-2, as a GPT of this project

Only numbers travel: a safetensors file is a JSON header and raw bytes, so reading one runs no code. What the header
promises is checked against the bytes that are there before a tensor is made. The tokenizer does not travel: two models
are comparable only with one vocabulary.
"""

if __name__ == "__main__":
    import lab.interrupted  # noqa: F401  Ctrl-C while torch is imported ends with one line

import argparse
import json
import math
import os
from pathlib import Path

import torch

from data.tokenizer import distinct_keys
from model import GPT, MAX_BYTES, GPTConfig, load_checkpoint, whole_file

DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64,
    "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip
MOST_HEADER = 10**8  # bytes, the format's own limit


def write_safetensors(path, tensors):
    """{name: tensor} to a safetensors file, beside it first and then renamed."""
    names = {dtype: name for name, dtype in DTYPES.items()}
    header, at, parts = {"__metadata__": {"format": "pt"}}, 0, []
    for name, tensor in tensors.items():
        data = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        header[name] = {"dtype": names[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [at, at + len(data)]}
        at += len(data)
        parts.append(data)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # data begins at a multiple of 8
    with whole_file(path) as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.writelines(parts)


def read_safetensors(path):
    """A safetensors file -> {name: tensor}. ValueError with one line for what is none, whatever it claims."""
    size = os.path.getsize(path)
    if not 8 <= size <= MAX_BYTES:
        raise ValueError(f"{path}: {size} bytes are no safetensors file")
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > min(MOST_HEADER, size - 8):
            raise ValueError(f"{path}: a header of {length} bytes does not fit into a file of {size}")
        try:
            header = json.loads(file.read(length).decode("utf-8"), object_pairs_hook=distinct_keys)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path}: its header is no JSON object ({error})") from error
        if not isinstance(header, dict):
            raise ValueError(f"{path}: its header is no JSON object")
        header.pop("__metadata__", None)
        data, tensors, end = bytearray(size - 8 - length), {}, 0
        file.readinto(data)
    try:
        for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
            dtype, shape, (start, stop) = DTYPES[entry["dtype"]], entry["shape"], entry["data_offsets"]
            whole = all(type(number) is int and number >= 0 for number in (*shape, start, stop))
            if not whole or start != end or stop > len(data) or stop - start != math.prod(shape) * dtype.itemsize:
                raise ValueError(f"{name!r:.99} has shape {shape} and bytes {start} to {stop} of {len(data)}")
            raw = (
                torch.frombuffer(data, dtype=torch.uint8, count=stop - start, offset=start)
                if stop > start
                else torch.empty(0, dtype=torch.uint8)
            )
            tensors[name], end = raw.clone().view(dtype).reshape(shape), stop
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: an entry that does not fit ({error})") from error
    if end != len(data):
        raise ValueError(f"{path}: {len(data) - end} bytes belong to no tensor")
    return tensors


# Our name of a block's layer -> GPT-2's. Those with a star hold matrices as (in, out), where ours are (out, in).
LAYERS = {"norm_1": "ln_1", "attention.qkv": "attn.c_attn*", "attention.out": "attn.c_proj*", "norm_2": "ln_2",
          "up": "mlp.c_fc*", "down": "mlp.c_proj*"}  # fmt: skip
AROUND = {"token_embedding": "wte", "position_embedding": "wpe", "norm": "ln_f"}
GELUS = {"erf": "gelu", "tanh": "gelu_new"}


def _names(n_layer):
    """Pairs (our name, GPT-2's name, whether it is transposed) of all tensors."""
    for ours, theirs in AROUND.items():
        for kind in ("weight",) if theirs.startswith("w") else ("weight", "bias"):
            yield f"{ours}.{kind}", f"{theirs}.{kind}", False
    for layer in range(n_layer):
        for ours, theirs in LAYERS.items():
            for kind in ("weight", "bias"):
                name = f"h.{layer}.{theirs.rstrip('*')}.{kind}"
                yield f"blocks.{layer}.{ours}.{kind}", name, theirs.endswith("*") and kind == "weight"


FILES = ("config.json", "model.safetensors")


def _folder(folder):
    """As a Path, which would take an empty name for the folder that one stands in."""
    if not str(folder):
        raise ValueError(f"the folder's name is empty: give a folder for {' and '.join(FILES)}")
    return Path(folder)


def export_gpt2(model, folder):
    """Write a GPT as folder/config.json and folder/model.safetensors, in the layout of Hugging Face's GPT-2.

    Files of those names are replaced, as when a checkpoint is saved again. Raises ValueError for weights that are not
    finite.
    """
    config, weights, tensors = model.config, model.state_dict(), {}
    config_path, path = (_folder(folder) / name for name in FILES)
    for ours, theirs, transposed in _names(config.n_layer):
        if not weights[ours].isfinite().all():
            raise ValueError(f"{ours} holds nan or infinity: the model has diverged, export an earlier one")
        tensors[f"transformer.{theirs}"] = weights[ours].T if transposed else weights[ours]
    about = {
        "architectures": ["GPT2LMHeadModel"], "model_type": "gpt2", "activation_function": GELUS[config.gelu],
        "vocab_size": config.vocab_size, "n_positions": config.block_size, "n_ctx": config.block_size,
        "n_embd": config.n_embd, "n_layer": config.n_layer, "n_head": config.n_head, "n_inner": None,
        "layer_norm_epsilon": 1e-5, "tie_word_embeddings": True, "embd_pdrop": 0.0, "attn_pdrop": 0.0,
        "resid_pdrop": 0.0, "bos_token_id": None, "eos_token_id": None,
    }  # fmt: skip
    write_safetensors(path, tensors)
    with whole_file(config_path) as file:
        file.write(f"{json.dumps(about, indent=1)}\n".encode())


# Entries of config.json that would change the arithmetic, with the only value that this project's GPT computes.
FIXED = {"model_type": "gpt2", "layer_norm_epsilon": 1e-5, "scale_attn_weights": True,
         "scale_attn_by_inverse_layer_idx": False, "add_cross_attention": False,
         "tie_word_embeddings": True}  # fmt: skip


def load_gpt2(folder):
    """folder/config.json and folder/model.safetensors of a Hugging Face GPT-2 -> GPT on the CPU, float32, in eval mode.

    Raises ValueError with one line for a file that is missing, broken, or of a model that is not GPT-2 to the letter.
    """
    config_path, path = (_folder(folder) / name for name in FILES)
    for file in (config_path, path):
        if not file.is_file():
            raise ValueError(f"{file} is missing: give a folder with config.json and model.safetensors of a GPT-2")
    if config_path.stat().st_size > 10**6:
        raise ValueError(f"{config_path} is too large for a configuration")
    try:
        about = json.loads(config_path.read_text(encoding="utf-8"), object_pairs_hook=distinct_keys)
        fixed = {**FIXED, "n_inner": 4 * about["n_embd"]}
        for name, value in fixed.items():
            if about.get(name) not in (None, value):
                raise ValueError(f"{name} is {about[name]!r}, only {value!r} is read")
        gelus = {theirs: ours for ours, theirs in GELUS.items()} | {"gelu_pytorch_tanh": "tanh"}
        gelu = gelus[about.get("activation_function", "gelu_new")]
        sizes = [about[name] for name in ("vocab_size", "n_positions", "n_layer", "n_head", "n_embd")]
        if not all(type(number) is int and number > 0 for number in sizes):
            raise ValueError(f"sizes {sizes} are no whole numbers above 0")
        if about["n_embd"] % about["n_head"]:  # GPTConfig asserts it, and python -O leaves that out
            raise ValueError(f"n_embd {about['n_embd']} is not divisible by n_head {about['n_head']}")
        config = GPTConfig(*sizes, gelu=gelu)
    except (KeyError, TypeError, ValueError, AssertionError, RecursionError) as error:
        raise ValueError(f"{config_path} is no configuration of a GPT-2 ({error})") from error
    tensors = read_safetensors(path)
    found = {name.removeprefix("transformer."): tensor for name, tensor in tensors.items()}
    if len(found) < len(tensors):
        twice = next(name for name in found if name in tensors and f"transformer.{name}" in tensors)
        raise ValueError(
            f"{path} holds {twice!r:.99} with and without 'transformer.' before it: one of the two would be lost"
        )
    head = found.pop("lm_head.weight", None)
    whole = sorted(name for name, tensor in found.items() if not tensor.is_floating_point() and "attn." not in name)
    if whole:
        raise ValueError(f"{path}: {whole[0]!r:.99} holds whole numbers, no weights")
    for name in [name for name in found if name.endswith((".attn.bias", ".attn.masked_bias"))]:
        del found[name]  # the causal mask, in older files
    width = config.n_embd
    needed = (config.vocab_size + config.block_size + 2) * width + config.n_layer * (12 * width + 13) * width
    held = sum(tensor.numel() for tensor in found.values())
    if held != needed:  # asked before a model of that size is made
        raise ValueError(f"{path} holds {held:,} numbers, where {config_path.name} says {needed:,}")
    model = GPT(config)
    weights = model.state_dict()
    for ours, theirs, transposed in _names(config.n_layer):
        tensor, place = found.get(theirs, torch.empty(0)), weights[ours].T if transposed else weights[ours]
        if tensor.shape != place.shape:
            raise ValueError(f"{path}: {theirs} has shape {list(tensor.shape)}, expected {list(place.shape)}")
        place.copy_(tensor)
        if not place.isfinite().all():
            raise ValueError(f"{path}: {theirs} holds nan, infinity, or what float32 has no number for")
    if head is not None and not torch.equal(head.float(), model.head):
        raise ValueError(f"{path}: its output head is not its token embedding, which here are one")
    return model.eval()


def main(argv=None):
    """python -m lab.exchange CHECKPOINT FOLDER: a student or teacher that a run left, for other programs."""
    parser = argparse.ArgumentParser(
        description="Write a checkpoint of this project in the Hugging Face layout of GPT-2."
    )
    parser.error = lambda message: parser.exit(2, f"lab.exchange: {' '.join(message.split())} (see --help)\n")
    parser.add_argument("checkpoint", type=os.path.expanduser, help="a .pt file that a run left")
    parser.add_argument("folder", type=os.path.expanduser, help="where config.json and model.safetensors go")
    args = parser.parse_args(argv)
    try:
        model, _ = load_checkpoint(args.checkpoint)
        there = [name for name in FILES if os.path.lexists(_folder(args.folder) / name)]
        if there:  # whose they are, an export's or a stranger's, cannot be seen
            raise ValueError(
                f"{args.folder} holds {' and '.join(there)} already: give another folder, or move them away"
            )
        export_gpt2(model, args.folder)
    except (ValueError, OSError) as error:
        raise SystemExit(f"lab.exchange: {error}") from None
    print(f"{model.num_parameters():,} weights in {args.folder}: GPT2LMHeadModel.from_pretrained reads them")


if __name__ == "__main__":
    main()
