"""Files from elsewhere are data: nothing in them runs, fills the memory, leaves its folder,
or speaks to a terminal or a browser.

The attacker may write any bytes, checksums and seals included: those tell damage, not authors. Payloads are harmless:
they would make a file called `ran`.
"""

import copy
import gzip
import io
import json
import os
import pickle
import re
import time
import urllib.error
import urllib.request
import warnings
import xml.etree.ElementTree as ElementTree
import zipfile
from pathlib import Path

import adapters
import numpy as np
import pytest
import torch
from test_train_skd import SMALL, cached_pairs  # noqa: F401

import model
import train_skd
from data import corpora
from data.corpora import load_corpus
from data.tokenizer import PATTERN, Tokenizer, train_tokenizer
from lab import exchange, folders, pages, pairs, records, report, rollouts
from lab.checkpoints import Checkpointer
from lab.teacher_cache import TeacherCache
from model import (
    checksum,
    load_checkpoint,
    load_file,
    load_online_module,
    save_checkpoint,
    save_file,
    save_online_module,
)

BASE, OTHER = adapters.make_gpt(257, 26, 1, 2, 8), adapters.make_gpt(257, 26, 1, 2, 8, seed=1)
TOKENIZER = train_tokenizer(["abab abab"], 257)


def one_line(error):
    line = str(error.value if hasattr(error, "value") else error)
    assert line.strip() and "\n" not in line.strip() and len(line) < 2500, line
    return line


# ---------------------------------------------------------------------------------------------------------------------
# Code in a file.


class Payload:
    """Runs when it is unpickled, if anybody lets it."""

    def __init__(self, function, *arguments):
        self.how = function, arguments

    def __reduce__(self):
        return self.how


def payloads(marker):
    """Objects that make `marker` when they are unpickled, by the way they take."""
    words = f"open({str(marker)!r}, 'w').close()"
    return {
        "a call of os": Payload(os.mkdir, str(marker)),
        "a shell": Payload(os.system, f"touch {marker}"),
        "exec": Payload(exec, words),
        "eval": Payload(eval, words),
        "open": Payload(open, str(marker), "w"),
        "torch's own loader": Payload(torch.load, str(marker)),
    }


WRAPPED = ("zip", "old format", "bare pickle", "inside a weight's place", "inside a key")


def write_payload(path, payload, how):
    """A file like a checkpoint, a module and a state at once, with the payload somewhere in it."""
    content = {"config": payload, "weights": {}, "tokenizer": None, "module": payload, "base": "", "step": 1,
               "identity": payload, "made": {}, "parts": {}, "sha256": "0" * 64}  # fmt: skip
    if how == "inside a weight's place":
        content = {**content, "config": {}, "module": {}, "identity": {}, "weights": {"norm.weight": payload}}
    if how == "inside a key":
        content = {("a", payload): 1}
    if how == "bare pickle":
        path.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=how != "old format")


def readers(path):
    """Everything that reads a .pt file, as calls that must refuse `path`."""
    yield lambda: load_file(str(path))
    yield lambda: load_checkpoint(str(path))
    yield lambda: load_online_module(str(path), BASE)
    yield lambda: rollouts.main(["--checkpoint", str(path), "--device", "cpu"])


@pytest.mark.parametrize("how", WRAPPED)
@pytest.mark.parametrize("way", payloads("x"))
def test_no_payload_runs(tmp_path, way, how, capsys):
    """Whatever a checkpoint, a module or a state holds beside tensors and plain values:
    refused in one line, and it did not run."""
    path, marker = tmp_path / "a.pt", tmp_path / "ran"
    write_payload(path, payloads(marker)[way], how)
    for read in readers(path):
        with pytest.raises(ValueError) as error:
            read()
        one_line(error)
    with pytest.raises(SystemExit) as stop:
        exchange.main([str(path), str(tmp_path / "out")])
    assert "not a whole checkpoint" in stop.value.code and not marker.exists() and not (tmp_path / "out").exists()


@pytest.mark.parametrize("way", ["a call of os", "exec"])
def test_no_payload_of_a_state_runs(tmp_path, way):
    """--resume: a state with a payload is set aside like any damaged one, and the run begins anew."""
    marker, said = tmp_path / "ran", []
    for path in (tmp_path / "a_pair1_seed1.state.pt", tmp_path / "a_pair1_seed1.state.before.pt"):
        write_payload(path, payloads(marker)[way], "zip")
    with Checkpointer(str(tmp_path / "a_pair1_seed1"), 1, {"lr": 0.1}, said.append) as checkpointer:
        assert checkpointer.restore(student=BASE) == 0
    assert len(said) == 2 and all("set aside" in line for line in said) and not marker.exists()


def test_no_payload_of_a_run_folder_or_a_cached_pair_runs(cached_pairs, tmp_path, capsys):  # noqa: F811
    """A whole run with bombs in the place of its state, its students and both models of the pair:
    they are made anew."""
    argv = [*SMALL, "--variants", "sft", "--pair-seed", "5"]
    assert train_skd.main([*argv, "--out", str(tmp_path / "first")]) == 0
    marker, out = tmp_path / "ran", tmp_path / "out"
    out.mkdir()
    ours = max(cached_pairs.glob("*-teacher-*.pt"), key=lambda path: path.stat().st_mtime_ns)
    for path in (ours, out / "sft_pair5_seed1.state.pt", out / "teacher_pair1.pt", out / "sft_pair1_seed1.pt"):
        write_payload(path, payloads(marker)["a call of os"], "zip")
    assert train_skd.main([*argv, "--out", str(out), "--resume"]) == 0
    assert not marker.exists() and "damaged" in capsys.readouterr().out
    assert (
        load_checkpoint(str(out / "sft_pair5_seed1.pt"))[1]["score"]
        == load_checkpoint(str(tmp_path / "first" / "sft_pair5_seed1.pt"))[1]["score"]
    )


def test_no_payload_of_a_teacher_cache_runs(tmp_path):
    """An array of objects under a checksum that fits: refused, and nothing was unpickled."""
    cache = TeacherCache(BASE, [[1]], [[2, 3]], folder=tmp_path, report=str)
    np.save(cache.paths[0], np.array([Payload(os.mkdir, str(tmp_path / "ran"))], dtype=object), allow_pickle=True)
    cache.checksum_file.write_text(cache._checksum())
    with pytest.raises(ValueError) as error:
        TeacherCache(BASE, [[1]], [[2, 3]], folder=tmp_path, report=str)
    assert one_line(error) and not (tmp_path / "ran").exists()


# ---------------------------------------------------------------------------------------------------------------------
# Claims: more than a file holds.

def zipped(path, **parts):
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in parts.items():
            archive.writestr(name, content)


FOREIGN = {  # files of others, by what they are: (who writes one, our words for it)
    "a zip": (lambda path: zipped(path, notes="words"), "its parts are not what this project writes"),
    "a document": (lambda path: zipped(path, **{"word/document.xml": "<x/>", "[Content_Types].xml": "<y/>"}), "parts"),
    "an empty zip": (zipped, "it holds more than tensors"),
    "arrays": (lambda path: np.savez(open(path, "wb"), weights=np.zeros(3)), "its parts are not what this project"),
    "TorchScript": (lambda path: torch.jit.script(torch.nn.Linear(2, 2)).save(path), "its parts are not"),
    "a module": (lambda path: torch.save(torch.nn.Linear(2, 2), path), "it holds more than tensors and plain values"),
    "of an old torch": (
        lambda path: torch.save({"a": torch.zeros(2)}, path, _use_new_zipfile_serialization=False), "it is cut short"),
    "one tensor": (lambda path: torch.save(torch.zeros(2), path), "this project did not write it"),
    "another's weights": (lambda path: torch.save({"model": torch.zeros(2)}, path), "this project did not write it"),
    "a list": (lambda path: torch.save([torch.zeros(2)], path), "this project did not write it"),
    "text": (lambda path: Path(path).write_text("words"), "it is cut short, or no file of this project's"),
    "nothing": (lambda path: Path(path).write_bytes(b""), "it is cut short, or no file of this project's"),
    "a state": (lambda path: save_file(path, {"step": 1}), "it has no 'config'"),
}  # fmt: skip


@pytest.mark.parametrize("kind", FOREIGN)
@pytest.mark.filterwarnings("ignore")  # of torch, about what it writes here
def test_a_foreign_file_ends_in_our_words(tmp_path, kind):
    """One line, without torch's advice: to load without weights_only, or to report an enhancement request."""
    write, words = FOREIGN[kind]
    path = str(tmp_path / "a.pt")
    write(path)
    with pytest.raises(ValueError, match="a.pt is not a whole checkpoint of this project") as error:
        load_checkpoint(path)
    line = one_line(error)
    assert words in line and line.endswith("give another, or let the run write it anew")
    assert not re.search("weights_only|PyTorch|TorchScript|enforce|github", line)


CONFIGS = {  # changes of a configuration under a checksum that fits
    "vocabulary": {"vocab_size": 10**9}, "block": {"block_size": 10**12}, "width": {"n_embd": 10**9},
    "layers": {"n_layer": 10**9}, "heads": {"n_head": 10**9},
    "all": {"vocab_size": 10**9, "block_size": 10**9, "n_embd": 10**6, "n_layer": 10**4}, "nothing": {"n_head": 0},
    "negative": {"vocab_size": -257}, "half": {"n_layer": 0.5}, "nan": {"n_embd": float("nan")},
    "text": {"n_layer": "1"}, "a list": {"block_size": [26]}, "None": {"vocab_size": None}, "True": {"n_layer": True},
    "another key": {"command": "rm"}, "gelu": {"gelu": ["erf"]},
}  # fmt: skip


@pytest.mark.parametrize("name", CONFIGS)
def test_no_model_is_made_for_a_claim(tmp_path, monkeypatch, name):
    """A configuration that its weights do not bear out is refused before a model of that size is made."""
    path = str(tmp_path / "a.pt")
    save_checkpoint(path, BASE, None)
    content = load_file(path)
    content["config"] |= CONFIGS[name]
    save_file(path, content)
    monkeypatch.setattr(model, "GPT", lambda config: pytest.fail("a model was made"))
    with pytest.raises(ValueError, match="a.pt is not a whole checkpoint") as error:
        load_checkpoint(path)
    one_line(error)


def test_no_module_is_made_for_a_claim(tmp_path, monkeypatch):
    """The same for the rank, the kind and the scale of an online module."""
    path = str(tmp_path / "a.module.pt")
    save_online_module(path, model.OnlineTeacher(BASE))
    content = load_file(path)
    made = model.LoRA.__init__
    monkeypatch.setattr(
        model.LoRA,
        "__init__",
        lambda self, base, rank, *rest: made(self, base, rank, *rest) if rank <= 64 else pytest.fail("made"),
    )
    changes = [{"rank": 10**12}, {"rank": 10**6}, {"rank": -1}, {"rank": "8"}, {"rank": None}, {"kind": "../lora"},
               {"kind": ["lora"]}, {"scale": float("inf")}, {"scale": "x"}, {"generator": None, "base": None},
               {"rank": 9}]  # fmt: skip
    for change in changes:
        save_file(path, content | {"module": content["module"] | change})
        with pytest.raises(ValueError, match="a.module.pt is not a whole online module") as error:
            load_online_module(path, BASE)
        one_line(error)


STRANGE = {  # tensors that are not what their shape says
    "expanded": lambda: torch.zeros(1).expand(10**12),
    "expanded rows": lambda: torch.zeros(1, 8).expand(10**9, 8),
    "overlapping": lambda: torch.zeros(10).as_strided((10**6, 10**6), (0, 0)),
    "sparse": lambda: torch.sparse_coo_tensor(torch.tensor([[0], [0]]), torch.tensor([1.0]), (10**9, 10**9)),
    "sparse rows": lambda: torch.sparse_csr_tensor(torch.tensor([0, 1]), torch.tensor([0]), torch.tensor([1.0]),
                                                   (1, 10**9)),
    "without data": lambda: torch.empty(10**9, device="meta"),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", STRANGE)
def test_a_tensor_holds_what_it_claims(tmp_path, name):
    """Expanded, sparse and empty tensors are refused in one line, in a weight's place as beside it;
    nothing large is made."""
    path, weights, tensor = str(tmp_path / "a.pt"), BASE.state_dict(), STRANGE[name]()
    save_checkpoint(path, BASE, None)
    content = load_file(path)
    for place in ("token_embedding.weight", "blocks.0.up.bias", "another"):
        torch.save(content | {"weights": weights | {place: tensor}, "sha256": "0" * 64}, path)
        with pytest.raises(ValueError) as error:
            load_checkpoint(path)
        one_line(error)


def rewritten(path, change):
    """The same zip archive with every part's bytes put through change(name, bytes) -> (bytes, compression)."""
    parts = {}
    with zipfile.ZipFile(path) as archive:
        parts = {info.filename: archive.read(info) for info in archive.infolist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in parts.items():
            data, compression = change(name, data)
            archive.writestr(name, data, compression)


def test_a_packed_checkpoint_is_not_unpacked(tmp_path, monkeypatch):
    """64 MB of zeros in 64 kB: seen in the list of parts, before torch reads one."""
    path = tmp_path / "a.pt"
    save_file(str(path), {"weights": torch.zeros(16)})
    rewritten(path, lambda name, data: (bytes(2**26) if "/data/" in name else data, zipfile.ZIP_DEFLATED))
    assert path.stat().st_size < 2**18
    monkeypatch.setattr(torch, "load", lambda *args, **kwargs: pytest.fail("it was read"))
    with pytest.raises(ValueError, match="claims more than it holds"):
        load_file(str(path))


def test_parts_that_share_bytes_are_not_read(tmp_path, monkeypatch):
    """A thousand names for the same megabyte."""
    path = tmp_path / "a.pt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/data/0", bytes(2**20))
        (first,) = archive.filelist
        for number in range(1000):
            other = copy.copy(first)
            other.filename = f"a/data/{number + 1}"
            archive.filelist.append(other)
    monkeypatch.setattr(torch, "load", lambda *args, **kwargs: pytest.fail("it was read"))
    with pytest.raises(ValueError, match="claims more than it holds"):
        load_file(str(path))


@pytest.mark.parametrize("cut", [0, 1, 63])
def test_a_part_that_is_too_short_is_refused(tmp_path, cut):
    """The bytes of a tensor are fewer than its shape asks for."""
    path = tmp_path / "a.pt"
    save_file(str(path), {"weights": torch.ones(16)})
    rewritten(path, lambda name, data: (data[:cut] if "/data/0" in name else data, zipfile.ZIP_STORED))
    with pytest.raises(ValueError) as error:
        load_file(str(path))
    one_line(error)


def nested(depth):
    value = []
    for _ in range(depth):
        value = [value]
    return value


PLAIN = {
    "nested": lambda: nested(100_000),
    "a giant number": lambda: 10**20_000,
    "a long text": lambda: "x" * 10**6,
    "itself": lambda: loop(),
}


def loop():
    value = []
    value.append(value)
    return value


@pytest.mark.parametrize("name", PLAIN)
def test_plain_values_without_end_are_refused(tmp_path, name):
    """Nesting, numbers and loops that no file of ours has: one line, or, where it is harmless,
    read as any other value."""
    path = str(tmp_path / "a.pt")
    value = PLAIN[name]()
    if name == "a long text":
        save_file(path, {"a": value})
        assert load_file(path)["a"] == value
        return
    try:
        torch.save({"a": value, "sha256": "0" * 64}, path)
    except RecursionError:  # nor can it be written by this program
        (tmp_path / "a.pt").write_bytes(b"\x80\x02" + b"]" * 100_000 + b"a" * 99_999 + b".")
    with pytest.raises(ValueError) as error:
        load_file(path)
    one_line(error)
    with pytest.raises((ValueError, RecursionError)):
        checksum({"a": value})


STATES = {  # of a run, under a checksum that fits
    "no step": {"identity": {}, "made": {}, "parts": {}},
    "a step in words": {"step": "1", "identity": {}, "made": {}, "parts": {}},
    "no identity": {"step": 1, "made": {}, "parts": {}},
    "an identity that is none": {"step": 1, "identity": [1], "made": {}, "parts": {}},
    "nothing made": {"step": 1, "identity": {}, "parts": {}},
    "no parts": {"step": 1, "identity": {}, "made": {}, "parts": None},
    "a list": {"step": [1], "identity": {}, "made": {}, "parts": {}}, "nothing": {},
}  # fmt: skip


@pytest.mark.parametrize("name", STATES)
def test_a_state_that_is_none_is_set_aside(tmp_path, name):
    """Whole by its checksum, but no state of a run: told, set aside, begun anew."""
    said = []
    save_file(str(tmp_path / "a_pair1_seed1.state.pt"), STATES[name])
    with Checkpointer(str(tmp_path / "a_pair1_seed1"), 1, {}, said.append) as checkpointer:
        assert checkpointer.restore(student=BASE) == 0
    assert len(said) == 1 and "set aside as a_pair1_seed1.state.pt.damaged" in said[0]


def test_an_array_that_claims_more_than_its_file_is_refused(tmp_path):
    """The header of a cached array asks for a terabyte: one line, nothing is mapped."""
    cache = TeacherCache(BASE, [[1]], [[2, 3]], folder=tmp_path, report=str)
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f4", "fortran_order": False, "shape": (10**9, 257)})
    cache.paths[0].write_bytes(header.getvalue() + bytes(100))
    cache.checksum_file.write_text(cache._checksum())
    with pytest.raises(ValueError) as error:
        TeacherCache(BASE, [[1]], [[2, 3]], folder=tmp_path, report=str)
    one_line(error)


# ---------------------------------------------------------------------------------------------------------------------
# JSON.

JSON = {  # bytes that are no value which anybody here reads
    "open brackets": b"[" * 200_000,
    "brackets": b"[" * 100_000 + b"]" * 100_000,
    "objects": b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
    "digits": b"9" * 100_000,
    "digits of a field": b'{"prompt": ' + b"9" * 5000 + b', "response": "b"}',
    "an exponent": b'{"prompt": 1e999, "response": -1e999}',
    "NaN": b'{"prompt": NaN, "response": Infinity}',
    "a key twice": b'{"prompt": "a", "response": "b", "prompt": "c"}',
    "a key twice below": b'{"prompt": "a", "response": {"x": 1, "x": 2}}',
    "a surrogate": b'{"prompt": "\\ud800", "response": "b"}',
    "UTF-16": '{"prompt": "a", "response": "b"}'.encode("utf-16"),
    "UTF-32": '{"prompt": "a", "response": "b"}'.encode("utf-32"),
    "overlong UTF-8": b'{"prompt": "\xc0\xaf", "response": "b"}',
    "NUL": b"\x00" * 100,
    "a NUL within": b'{"prompt": "a\x00", "response": "b"}',
    "a text": b'"prompt"',
    "null": b"null",
    "two values": b'{"prompt": "a", "response": "b"} {}',
    "a pickle": pickle.dumps({"prompt": "a"}),
}


@pytest.mark.parametrize("name", JSON)
def test_no_json_is_believed(tmp_path, name):
    """As own data, as a list of items, as a tokenizer, as a record, as a configuration:
    ValueError in one line, or no record at all."""
    files = {file: tmp_path / file for file in ("train.jsonl", "tokenizer.json", "a_pair1_seed1.jsonl", "config.json")}
    for path in files.values():
        path.write_bytes(JSON[name] + b"\n")
    (tmp_path / "model.safetensors").write_bytes(b"")
    began = time.monotonic()
    for read in (lambda: load_corpus("jsonl", tmp_path), lambda: Tokenizer.load(files["tokenizer.json"]),
                 lambda: exchange.load_gpt2(tmp_path),
                 lambda: list(corpora.json_items("a", JSON[name].decode("latin-1"))),
                 lambda: report.write_report(tmp_path)):  # fmt: skip
        with pytest.raises(ValueError) as error:
            read()
        one_line(error)
    said = []
    assert records.read_finished(tmp_path, "a_pair1_seed1", {}, say=said.append) is None
    assert time.monotonic() - began < 10


@pytest.mark.parametrize("name", JSON)
def test_no_line_of_a_record_is_believed(tmp_path, name):
    """The same bytes as a line between the header and a final line whose seal fits:
    one line that names file and line."""
    lines = [
        json.dumps({"kind": "header", "format": records.FORMAT, "variant": "a", "pair": 1, "seed": 1}).encode(),
        JSON[name].replace(b"\n", b" "),
        b'{"kind": "final", "score": 0.5}',
    ]
    text = b"\n".join(lines).decode("latin-1")
    (tmp_path / "a_pair1_seed1.jsonl").write_text(records.with_checksum(text) + "\n", encoding="latin-1")
    with pytest.raises(ValueError, match="a_pair1_seed1.jsonl, line 2 ") as error:
        report.write_report(tmp_path)
    one_line(error)


FIGURES = [
    1e999, -1e999, float("nan"), 10**400, -(10**4000), 1e308, -1e308, 5e-324, True, "high", [1], {"a": 1}, None, "<b>",
    "",
]


@pytest.mark.parametrize("first", range(len(FIGURES)))
def test_no_figure_breaks_a_report(tmp_path, first):
    """Infinite, giant, tiny and senseless figures in sealed records, of one pair or of several:
    the table, a valid picture and strict JSON are still made."""
    for seed in range(3):
        value = FIGURES[(first + 4 * seed) % len(FIGURES)]
        lines = [
            {
                "kind": "header", "format": records.FORMAT, "variant": "a", "task": "math",
                "pair": seed * (first % 2), "seed": seed,
                "teacher": {"score": value}, "student_start": {"val_nll": value},
            }
        ]
        lines += [{"kind": kind, "step": step, "score": value, "val_nll": value,
                   "kl_teacher": value, "replacement_rate": value}
                  for step in (1, 2**40) for kind in ("step", "eval")]  # fmt: skip
        lines.append(
            {
                "kind": "final", "score": value, "score_sampled": value, "seconds": value, "compute": value,
                "drift": value,
            }
        )
        (tmp_path / f"a_pair1_seed{seed}.jsonl").write_text(
            records.with_checksum("\n".join(map(json.dumps, lines))) + "\n"
        )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert "| a " in report.write_report(tmp_path)
    ElementTree.parse(tmp_path / "curves.svg")
    json.loads((tmp_path / "summary.json").read_text(), parse_constant=lambda name: pytest.fail(name))


@pytest.mark.parametrize(
    "key,value",
    [
        ("step", 10**400), ("step", "1"), ("step", 1.5), ("step", [1]), ("jobs", 10**30), ("jobs", [2]),
        ("kind", ["step"]),
    ],
)
def test_counts_are_whole_numbers(tmp_path, key, value):
    """What is counted with is one, and of a size that can be drawn: otherwise one line."""
    lines = [
        {"kind": "header", "format": records.FORMAT, "variant": "a", "pair": 1, "seed": 1},
        {"kind": "eval", "step": 1, "score": 0.5},
        {"kind": "final", "score": 0.5},
    ]
    lines[0 if key == "jobs" else 1][key] = value
    (tmp_path / "a_pair1_seed1.jsonl").write_text(records.with_checksum("\n".join(map(json.dumps, lines))) + "\n")
    with pytest.raises(ValueError, match=f"a {key} that is none") as error:
        report.write_report(tmp_path)
    one_line(error)


# ---------------------------------------------------------------------------------------------------------------------
# Tokenizers.

BYTES = [f"{value:02x}" for value in range(256)]
TOKENIZERS = {  # changes of a state
    "looks ahead for ever": {"pattern": r"(?:a(?!b)|a(?!c))*d|[\s\S]"},
    "looks back": {"pattern": r"(?<=a)b|[\s\S]"},
    "refers back": {"pattern": r"(\S+)\1|[\s\S]"},
    "calls itself": {"pattern": r"(?R)?x|[\s\S]"},
    "keeps what it has": {"pattern": r"(?>\S+)+x|[\s\S]"},
    "possessive": {"pattern": r"\S++|\s"},
    "fuzzy": {"pattern": r"(?:foo){e<=3}|[\s\S]"},
    "a flag": {"pattern": r"(?i)a|[\s\S]"},
    "repeats without end": {"pattern": r"[\s\S]{1,1000000000}"},
    "repeats of repeats": {"pattern": r"(((\S{1,100}){1,100}){1,100}){1,100}|\s"},
    "backtracks": {"pattern": r"((\S+)+)+~|(\s|\S)*"},
    "a long pattern": {"pattern": r"[\s\S]|" + "a" * 100_000},
    "a NUL": {"pattern": "\x00"},
    "a list of patterns": {"pattern": [PATTERN]},
    "bytes for a pattern": {"pattern": b"\\s|\\S"},
    "a surrogate": {"pattern": "\ud800|[\\s\\S]"},
    "tokens are an object": {"tokens": {"61": 1}},
    "tokens are one text": {"tokens": "61" * 256},
    "tokens are nested": {"tokens": [BYTES]},
    "tokens are null": {"tokens": [None] * 256},
    "tokens are no hex": {"tokens": BYTES + ["0x61"]},
    "half a byte": {"tokens": BYTES + ["616"]},
    "one token very often": {"tokens": BYTES + ["6162"] * 10**5},
    "bytes are missing": {"tokens": BYTES[1:]},
    "bytes in another place": {"tokens": ["6162", *BYTES]},
    "a giant end token": {"special": {"<|endoftext|>": 10**30}},
    "a negative end token": {"special": {"<|endoftext|>": -1}},
    "many special tokens": {"special": {f"<{number}>": number for number in range(1000)}},
    "version in words": {"version": "1"},
    "an infinite version": {"version": float("inf")},
}


@pytest.mark.parametrize("name", TOKENIZERS)
def test_no_tokenizer_is_believed(tmp_path, name, capfd):
    """A state in memory, a file and a checkpoint: ValueError in one line within seconds,
    and tiktoken has not panicked."""
    state = TOKENIZER.state_dict() | TOKENIZERS[name]
    began = time.monotonic()
    with pytest.raises(ValueError) as error:
        Tokenizer.from_state(state)
    one_line(error)
    if name != "bytes for a pattern":  # which neither kind of file holds
        (tmp_path / "tokenizer.json").write_text(json.dumps(state))
        with pytest.raises(ValueError, match="tokenizer.json: ") as error:
            Tokenizer.load(tmp_path / "tokenizer.json")
        one_line(error)
        for path in ("a.pt", "teacher_pair1.pt"):
            save_file(str(tmp_path / path), checkpoint_content(tokenizer=state, task="math"))
        with pytest.raises(ValueError) as error:
            rollouts.main(["--checkpoint", str(tmp_path / "a.pt"), "--device", "cpu", "--prompt", "a"])
        one_line(error)
    assert "panicked" not in capfd.readouterr().err and time.monotonic() - began < 20


@pytest.mark.parametrize(
    "text",
    [" " * 400_000 + "7", "\n" * 400_000 + "7", "a" * 10**6, "7" * 10**6, "~" * 10**6, "\u0301" * 10**5, " a" * 10**5],
)
def test_no_text_takes_for_ever(text, capfd):
    """Long runs of anything are encoded in time proportional to their length, and come back."""
    began = time.monotonic()
    assert TOKENIZER.decode(TOKENIZER.encode(text)) == text
    assert time.monotonic() - began < 10 and not capfd.readouterr().err


def test_a_tokenizer_file_without_end_is_not_read():
    """A device that never ends: one line, after the limit."""
    with pytest.raises(ValueError, match="/dev/zero: not JSON .more than") as error:
        Tokenizer.load("/dev/zero")
    one_line(error)


# ---------------------------------------------------------------------------------------------------------------------
# Large files.


def test_a_file_above_the_limit_is_not_read(tmp_path, monkeypatch):
    """300 MB, of which the disk holds nothing: its size is asked first.
    At the limit the same file is read, and refused by its line."""
    path = tmp_path / "train.jsonl"
    with open(path, "wb") as file:
        file.truncate(300 * 2**20)
    monkeypatch.setattr(Path, "read_bytes", lambda self: pytest.fail("it was read"))
    with pytest.raises(ValueError, match="314572800 bytes, more than the limit") as error:
        load_corpus("jsonl", tmp_path)
    one_line(error)
    with open(tmp_path / "a.pt", "wb") as file:
        file.truncate(model.MAX_BYTES + 1)
    with pytest.raises(ValueError, match="more than the limit"):
        load_file(str(tmp_path / "a.pt"))


def test_a_line_without_end_is_one_line(tmp_path, monkeypatch):
    """A line as long as a file may be, and one that is longer."""
    monkeypatch.setattr(corpora, "MAX_BYTES", 10**6)
    for length, word in ((10**6 - 40, "too few distinct prompts"), (10**6, "more than the limit")):
        (tmp_path / "train.jsonl").write_text(json.dumps({"prompt": "a" * length, "response": "b"}))
        with pytest.raises(ValueError, match=word) as error:
            load_corpus("jsonl", tmp_path)
        one_line(error)


def test_a_bomb_under_a_known_name_is_not_unpacked(tmp_path, monkeypatch):
    """Files of published sets are compared with their checksum before anything unpacks them."""
    (tmp_path / "multi30k").mkdir()
    for file in corpora.CORPORA["multi30k"].files:
        (tmp_path / file.path).write_bytes(gzip.compress(bytes(10**6)))
    monkeypatch.setattr(corpora, "unpack", lambda *args: pytest.fail("it was unpacked"))
    with pytest.raises(ValueError, match="expected .* sha256") as error:
        load_corpus("multi30k", tmp_path)
    one_line(error)


def test_a_bomb_in_a_bomb_stays_one(monkeypatch):
    """One layer is unpacked, up to the limit; what comes out is no file to unpack again."""
    monkeypatch.setattr(corpora, "MAX_BYTES", 10**5)
    inner = gzip.compress(bytes(10**7))
    assert corpora.unpack("x.gz", gzip.compress(inner)) == inner
    with pytest.raises(ValueError, match="unpacks to more than"):
        corpora.unpack("x.gz", inner * 3)


# ---------------------------------------------------------------------------------------------------------------------
# Folders.


def checkpoint_content(**extra):
    return {"config": {"vocab_size": 257, "block_size": 26, "n_layer": 1, "n_head": 2, "n_embd": 8, "gelu": "erf"},
            "weights": BASE.state_dict(), "tokenizer": TOKENIZER.state_dict()} | extra  # fmt: skip


def shown(tmp_path, capsys, *argv, **about):
    """What sample.py says of a checkpoint with these entries: (its output, its one line of refusal or None)."""
    save_file(str(tmp_path / "a.pt"), checkpoint_content(**about))
    save_file(str(tmp_path / "teacher_pair1.pt"), checkpoint_content(weights=OTHER.state_dict()))
    rows = [] if "--prompt" in argv else ["--rows", "1"]
    try:
        assert rollouts.main(["--checkpoint", str(tmp_path / "a.pt"), "--device", "cpu", *rows, *argv]) == 0
    except (ValueError, OSError) as error:
        return capsys.readouterr().out, one_line(error)
    return capsys.readouterr().out, None


@pytest.mark.parametrize(
    "task",
    [
        "../../etc/passwd", "/etc/passwd", "math/../math", "", "jsonl\x00", 3, None, ["math"], {"name": "math"},
        b"math" * 3, True,
    ],
)
def test_a_checkpoint_names_a_task_and_no_path(tmp_path, capsys, task):
    """Anything that is no task's name is refused in one line."""
    if isinstance(task, bytes):
        with pytest.raises(TypeError):
            save_file(str(tmp_path / "a.pt"), {"task": task})
        return
    _, line = shown(tmp_path, capsys, task=task)
    assert line and "task" in line


@pytest.mark.parametrize(
    "options",
    [{"data_dir": "{secret}"}, {"cache_dir": "{secret}"}, {"cache_dir": "{secret}", "download": True}, {"name": "scan"},
     {"seed": 3}, {"nonsense": 1},
     {"train_examples": 10**9, "val_examples": 10**9, "ood_examples": 10**9}, {"test_examples": 10**7}],
)  # fmt: skip
@pytest.mark.parametrize("task", ["math", "jsonl", "scan"])
def test_a_checkpoint_names_no_folder(tmp_path, capsys, monkeypatch, task, options):
    """Options beside a task's knobs are not heard: no folder but --data-dir is read, none is written to,
    no split is made for nothing."""
    secret, asked = tmp_path / "secret", []
    secret.mkdir()
    (secret / "train.jsonl").write_text(
        "".join(json.dumps({"prompt": f"secret {i}", "response": "b"}) + "\n" for i in range(50))
    )

    def offline(url, timeout=None):
        asked.append(url)
        raise urllib.error.URLError("no network")

    monkeypatch.setattr(urllib.request, "urlopen", offline)
    monkeypatch.setattr(corpora, "CACHE_DIR", tmp_path / "cache")
    before = {path for path in secret.rglob("*")}
    options = {name: str(secret) if value == "{secret}" else value for name, value in options.items()}
    began = time.monotonic()
    output, line = shown(tmp_path, capsys, task=task, task_options=options)
    assert "secret" not in output and {path for path in secret.rglob("*")} == before and time.monotonic() - began < 10
    assert line is None if task == "math" else "--data-dir" in line
    assert all(url in {file.url for file in corpora.CORPORA["scan"].files} for url in asked)


@pytest.mark.parametrize(
    "about,word",
    [({"task_options": [1]}, "options"), ({"task_options": "x"}, "options"),
     ({"task_options": {"difficulty": 10**9}}, "difficulty"),
     ({"task_options": {"test_examples": -5}}, "test_examples"),
     ({"task_options": {"test_examples": "9"}}, "test_examples"), ({"task_options": {"entropy": "x"}}, "entropy"),
     ({"max_new_tokens": -1}, "max_new_tokens"), ({"max_new_tokens": "9"}, "max_new_tokens"),
     ({"max_new_tokens": None}, "max_new_tokens"), ({"max_new_tokens": float("nan")}, "max_new_tokens"),
     ({"accept_top_k": "3"}, "accept_top_k"), ({"accept_top_k": -1}, "accept_top_k"),
     ({"accept_top_k": float("nan")}, "accept_top_k"), ({"accept_top_k": [3]}, "accept_top_k"),
     ({"tokenizer": "gpt2"}, "tokenizer"), ({"tokenizer": {}}, "tokenizer")],
)  # fmt: skip
def test_a_checkpoint_says_nothing_senseless(tmp_path, capsys, about, word):
    """Every entry that sample.py reads is checked: one line that names it."""
    _, line = shown(tmp_path, capsys, **({"task": "math", "task_options": {"difficulty": 1}} | about))
    assert line and word in line


def test_what_is_large_but_sensible_is_cut(tmp_path, capsys):
    """A budget and a K beyond all bounds are the block and the vocabulary."""
    output, line = shown(
        tmp_path, capsys, task="math", max_new_tokens=10**12, accept_top_k=10**30, task_options={"difficulty": 1}
    )
    assert line is None and " 0 replaced" in output


def test_a_terminal_is_not_spoken_to(tmp_path, capsys):
    """Bytes that a terminal would obey are written out, wherever a model or a prompt brings them."""
    evil = adapters.make_gpt(257, 26, 1, 2, 8)
    with torch.no_grad():
        # Always ESC.
        evil.norm.bias.copy_(50 * evil.token_embedding.weight[27] / evil.token_embedding.weight[27].norm())
    save_file(str(tmp_path / "a.pt"), checkpoint_content(weights=evil.state_dict()))
    with torch.no_grad():
        evil.norm.bias.mul_(1.1)
    save_file(str(tmp_path / "teacher_pair1.pt"), checkpoint_content(weights=evil.state_dict()))
    assert (
        rollouts.main(["--checkpoint", str(tmp_path / "a.pt"), "--device", "cpu", "--prompt", "a\x1b]0;title\x07\r"])
        == 0
    )
    output = capsys.readouterr().out
    assert "\\x1b" in output and all(letter.isprintable() or letter == "\n" for letter in output)


LINKS = (
    "sft_pair1_seed1.jsonl",
    "table.md",
    "curves.svg",
    "summary.json",
    "report.html",
    "teacher_pair1.pt",
    "student_start_pair1.pt",
    "sft_pair1_seed1.pt",
    ".lock",
)


@pytest.mark.parametrize("there", [True, False])
def test_links_in_a_run_folder_lead_nowhere(cached_pairs, tmp_path, there):  # noqa: F811
    """Somebody has put links in the place of a run's files:
    they are replaced, and what they point to is neither changed nor made."""
    out, outside = tmp_path / "out", tmp_path / "outside"
    out.mkdir(), outside.mkdir()
    for name in LINKS:
        if there:
            (outside / name).write_text("mine")
        (out / name).symlink_to(outside / name)
    assert train_skd.main([*SMALL, "--variants", "sft", "--out", str(out), "--resume"]) == 0
    assert sorted(path.name for path in outside.iterdir()) == (sorted(LINKS) if there else [])
    assert all(path.read_text() == "mine" for path in outside.iterdir())
    assert all(not (out / name).is_symlink() for name in LINKS if name != ".lock")


def test_labels_of_a_sweep_stay_in_their_folder():
    """Whatever a flag takes, no value with a slash becomes a part of a file's name; nor does a method's."""
    swept = ["lr=1e-3/..,1", "gamma=../1,2", "rule=../../x=1", "replace=../sample", "accept-rule=/topk",
             "reduction=../token", "cache-teacher=../8", "precision=/fp32", "chunk-loss=../no", "student-top-p=/1",
             "weight-decay=../0", "micro-batch=./1", "save-every=/1", "accept-on=../raw"]  # fmt: skip
    for text in swept:
        with pytest.raises((ValueError, SystemExit)):
            train_skd.parse_flags(["--variants", "supervised", "--sweep", text])
    for name in ("../skd", "/skd", "skd/../skd", "skd\x00"):
        with pytest.raises(ValueError, match="unknown variant"):
            train_skd.parse_flags(["--variants", name])
    assert all("/" not in name and name.isidentifier() for name in train_skd.VARIANTS)


def test_names_of_corpora_stay_in_their_folder(tmp_path, monkeypatch):
    """A file's path is a part of the row, never of a name that comes from outside; none climbs out of its folder."""
    for name in ("../jsonl", "/jsonl", "jsonl/../jsonl", "jsonl\x00"):
        with pytest.raises(ValueError, match="unknown data set"):
            load_corpus(name, tmp_path)
    for corpus in corpora.CORPORA.values():
        for file in corpus.files:
            assert (tmp_path / file.path).resolve().is_relative_to(tmp_path.resolve())


def test_a_cached_pair_has_a_name_of_its_own():
    """Task and hash make the name: no text of the user's is in it."""
    assert not [
        part
        for part in (*corpora.CORPORA, "math", "translation", "summarisation", "instruction")
        if not part.isidentifier()
    ]
    assert pairs.CACHE_DIR.is_relative_to(folders.ROOT)


# ---------------------------------------------------------------------------------------------------------------------
# Browsers.

MARKUP = [
    "<script>alert(1)</script>", '"><svg onload=alert(1)>', "<img src=x onerror=alert(1)>", "]]><script/>",
    "<!-- results:end -->", "&lt;b&gt;", "[x](javascript:alert(1))", "![x](http://somewhere/x.png)", "a|b|c",
    "<details>", "<style>*{}</style>", "'/><a href='x'>", "<?xml?>", "<a",
]  # fmt: skip


@pytest.mark.parametrize("text", MARKUP)
@pytest.mark.parametrize("place", ["variant", "task", "metric", "device_name", "warnings", "file", "focus"])
def test_records_bring_no_markup(tmp_path, text, place):
    """Names and sentences of records are shown as they are:
    no element, no link and no marker of them is in the table or the picture."""
    variants = [text if place in ("variant", "focus") else "a", "b"]
    for number, variant in enumerate(variants):
        header = {
            "variant": variant, "pair": 1, "seed": 1, "task": "math", "metric": "share", "flags": {},
            "device_name": f"machine {number}",
        }
        if place in header:
            header[place] = text + (str(number) if place == "device_name" else "") if place != "variant" else variant
        log = records.RunLog(tmp_path, f"r{number}_pair1_seed1", header)
        log.write("eval", step=1, score=0.5)
        log.write("eval", step=2, score=0.6)
        log.write("final", score=0.5, warnings=[text] if place == "warnings" else [])
        log.close()
    if place == "file" and "/" not in text:
        (tmp_path / f"{text}.jsonl").write_text("")
    texts = report.render_report(tmp_path, main_method=text if place == "focus" else None)
    table = texts["table.md"].replace("<details><summary>Every run</summary>", "").replace("</details>", "")
    assert "<" not in table.replace("\\<", "") and "](" not in table.replace("\\[x](", "").replace("!\\[x](", "")
    for part in table.split("\n\n"):
        if part.startswith("|"):  # no name adds a cell
            assert len({line.count("|") - line.count("\\|") for line in part.splitlines()}) == 1
    space = "{http://www.w3.org/2000/svg}"
    root = ElementTree.fromstring(texts["curves.svg"])
    assert {element.tag.removeprefix(space) for element in root.iter()} <= {
        "svg", "title", "rect", "g", "text", "path", "circle",
    }
    assert not [name for element in root.iter() for name in element.attrib if name.startswith("on") or "href" in name]
    json.loads(texts["summary.json"])


def test_a_name_cannot_end_a_section(tmp_path):
    """A method called like a marker of a page leaves both markers where they are."""
    header = {"variant": "<!-- x:end -->", "pair": 1, "seed": 1, "task": "<!-- x:begin -->", "flags": {}}
    log = records.RunLog(tmp_path, "a_pair1_seed1", header)
    log.write("final", score=0.5)
    log.close()
    page = "top\n<!-- x:begin -->\nold\n<!-- x:end -->\nbottom\n"
    section = report.write_report(tmp_path)
    once = pages.replace_section(page, "x", section)
    assert once.startswith("top\n") and once.endswith("bottom\n") and pages.replace_section(once, "x", section) == once


def test_a_report_is_written_through_no_link(tmp_path):
    """Links in a run folder, in the place of a file of the report and of what becomes one,
    lead nobody to write elsewhere."""
    victim, folder = tmp_path / "victim", tmp_path / "run"
    victim.write_text("mine")
    folder.mkdir()
    log = records.RunLog(folder, "a_pair1_seed1", {"variant": "a", "pair": 1, "seed": 1, "flags": {}})
    log.write("final", score=0.5)
    log.close()
    for name in ("table.md", "curves.svg", "summary.json", "report.html"):
        (folder / name).symlink_to(victim)
        (folder / f".{name}.{os.getpid()}.tmp").symlink_to(victim)
    assert "| a " in report.write_report(folder)
    assert victim.read_text() == "mine" and not [path for path in folder.iterdir() if path.is_symlink()]
    assert sorted(path.name for path in folder.iterdir()) == [
        "a_pair1_seed1.jsonl",
        "curves.svg",
        "report.html",
        "summary.json",
        "table.md",
    ]
