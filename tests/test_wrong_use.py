"""Wrong use of every entrance ends in one line that says what was wrong:
never silently, never in an error from deep inside.

What single test files ask of their own module stands there; here is the rest, as two tables. COMMANDS: a program, its
words, and a word of its one line, which comes before anything is trained. CALLS: a call, and a word of its one line,
which is a ValueError, or an AssertionError where only a programmer can be wrong.
"""

import json
import os
import subprocess
import sys
from types import SimpleNamespace

import adapters
import pytest
import torch
from test_train_skd import ROOT, SMALL, cached_pairs, finished, nothing_trained, refused  # noqa: F401
from tiny import matrix

import losses
import sample
import train_okd
import train_skd
from data import corpora, tasks
from data.tasks import Encoded
from data.tokenizer import Tokenizer, train_tokenizer
from lab import (
    arguments,
    exchange,
    gallery,
    pairs,
    processes,
    records,
    report,
    rollouts,
    statistics,
    tables,
)
from lab.checkpoints import Checkpointer
from lab.evaluate import evaluate, token_columns
from lab.teacher_cache import TeacherCache
from losses import Tokens, masked_mean, per_token_loss, weight_of
from model import (
    GPTConfig,
    OnlineTeacher,
    load_checkpoint,
    load_online_module,
    save_checkpoint,
    save_online_module,
)

# ---------------------------------------------------------------------------------------------------------------------
# Command lines.

GOOD_ROW = '{"prompt": "say yes :", "response": "yes"}\n'
OWN_DATA = {  # a user's train.jsonl, by what is wrong with it
    "utf16": GOOD_ROW.encode("utf-16"),
    "latin1": '{"prompt": "é :", "response": "yes"}\n'.encode("latin-1"),
    "only_a_mark": b"\xef\xbb\xbf\n",
    "raw_nul": b'{"prompt": "a\x00b :", "response": "yes"}\n',
    "twice": GOOD_ROW.replace("{", '{"prompt": "other :", ').encode(),
    "words": b'["a", "b"]\n',
    "chat": b'{"messages": [{"role": "system", "content": "a"}, {"role": "user", "content": "b"}]}\n',
    "number": b'{"prompt": 1e999, "response": "b"}\n',
    "constant": b'{"prompt": NaN, "response": "b"}\n',
    "blank": b'{"prompt": "\\u0020\\t", "response": "b"}\n',
    "csv": b"prompt,response\nsay yes,yes\n",
    "quotes": b"{'prompt': 'a', 'response': 'b'}\n",
}
GIANT = str(10**12)

COMMANDS = [  # program, its words (see `places` for those in braces), a word that the line must hold
    # train_skd.py
    ("skd", ["--variants", "skd,"], "variant"),
    ("skd", ["--variants", "skd, sft"], "' sft'"),
    ("skd", ["--variants", "main,sft"], "'main'"),
    ("skd", ["--variants", "okd"], "'okd'"),
    ("skd", ["--variants", "../skd"], "'../skd'"),
    ("skd", ["--seed", "-1"], "--seed"),
    ("skd", ["--seed", "1e3"], "--seed"),
    ("skd", ["--seeds", "1000000000"], "--seeds"),
    ("skd", ["--steps", GIANT], "--steps"),
    ("skd", ["--steps", "1000000000"], "--steps"),
    ("skd", ["--steps", ""], "--steps"),
    ("skd", ["--teacher-steps", "1000000000"], "--teacher-steps"),
    ("skd", ["--start-steps", "0"], "--start-steps"),
    ("skd", ["--student-width", "0"], "--student-width"),
    ("skd", ["--student-width", "31"], "--student-width must divide into 2 heads, found 31"),
    ("skd", ["--batch-size", "1000000000"], "batch size"),
    ("skd", ["--batch-size", "-4"], "--batch-size"),
    ("skd", ["--batch-size", "64.0"], "--batch-size"),
    ("skd", ["--block-size", "1000000000"], "--block-size"),
    ("skd", ["--block-size", "1"], "--block-size"),
    ("skd", ["--vocab-size", "256"], "vocab_size 256"),
    ("skd", ["--vocab-size", "-5"], "vocab_size -5"),
    ("skd", ["--train-examples", "1000000000"], "train_examples"),
    ("skd", ["--difficulty", "1000000"], "difficulty"),
    ("skd", ["--task", "translation", "--difficulty", "2000"], "difficulty"),
    ("skd", ["--task", ""], "unknown task ''"),
    ("skd", ["--task", "mine.csv"], "--task jsonl --data-dir DIR"),
    ("skd", ["--task", "MATH"], "'MATH'"),
    ("skd", ["--task", "translation", "--stories"], "'stories'"),
    ("skd", ["--task", "jsonl", "--data-dir", "{good}", "--stories"], "'stories'"),
    ("skd", ["--task", "jsonl", "--data-dir", "{good}", "--metric", "ROUGE"], "'rouge_l'"),
    ("okd", ["--metric", "chrf"], "task math has no option 'metric'"),
    ("skd", ["--task", "jsonl", "--data-dir", "{file}"], "--data-dir"),
    ("skd", ["--task", "jsonl", "--data-dir", ""], "--data-dir"),
    ("skd", ["--task", "jsonl", "--data-dir", "{folder_as_file}"], "train.jsonl"),
    ("skd", ["--task", "jsonl", "--data-dir", "{pipe}"], "train.jsonl"),
    ("skd", ["--task", "jsonl", "--data-dir", "{utf16}"], "UTF-8"),
    ("skd", ["--task", "jsonl", "--data-dir", "{latin1}"], "UTF-8"),
    ("skd", ["--task", "jsonl", "--data-dir", "{only_a_mark}"], "empty"),
    ("skd", ["--task", "jsonl", "--data-dir", "{raw_nul}"], "broken JSON"),
    ("skd", ["--task", "jsonl", "--data-dir", "{twice}"], "stands twice"),
    ("skd", ["--task", "jsonl", "--data-dir", "{words}"], "found str"),
    ("skd", ["--task", "jsonl", "--data-dir", "{chat}"], "'system', 'user'"),
    ("skd", ["--task", "jsonl", "--data-dir", "{good}", "--prompt-key", "question"], "'question'"),
    ("skd", ["--task", "jsonl", "--data-dir", "{good}", "--response-key", ""], "response_key"),
    ("skd", ["--prompt-key", "question"], "'prompt_key'"),
    ("skd", ["--task", "jsonl", "--data-dir", "{number}"], "'prompt'"),
    ("skd", ["--task", "jsonl", "--data-dir", "{constant}"], "'prompt'"),
    ("skd", ["--task", "jsonl", "--data-dir", "{blank}"], "'prompt'"),
    ("skd", ["--task", "jsonl", "--data-dir", "{csv}"], "broken JSON"),
    ("skd", ["--task", "jsonl", "--data-dir", "{quotes}"], "broken JSON"),
    ("skd", ["--out", ""], "--out"),
    ("skd", ["--out", "{file}", "--resume"], "--out"),
    ("skd", ["--out", "{finished}", "--resume", "--task", "translation"], "was made with"),
    ("skd", ["--lr", "1e999"], "--lr"),
    ("skd", ["--lr", "0x10"], "--lr"),
    ("skd", ["--lr"], "--lr"),
    ("skd", ["--weight-decay", "inf"], "--weight-decay"),
    ("skd", ["--rule", "accept_top_k=3=4"], "--rule"),
    ("skd", ["--accept-rule", "minprob", "--rule", "accept_min_prob=nan"], "accept_min_prob"),
    ("skd", ["--accept-rule", "minprob", "--rule", "accept_min_prob=1e999"], "accept_min_prob"),
    ("skd", ["--accept-rule", "random", "--rule", "replace_rate=-0.1"], "replace_rate"),
    ("skd", ["--accept-rule", "topk_along", "--rule", "along=0"], "along"),
    ("skd", ["--accept-rule", "topk_along", "--rule", "along=1e-50"], "along must be a finite number of at least"),
    ("skd", ["--student-temperature", "1e-40"], "--student-temperature must be 0 (greedy) or at least 1e-30"),
    ("skd", ["--teacher-temperature", "1e-31"], "--teacher-temperature must be 0 (greedy) or at least 1e-30"),
    ("skd", ["--variants", "skd", "--sweep", "student-temperature=1,1e-40"], "--student-temperature must be 0"),
    ("skd", ["--loss", "decoupled_kd", "--loss-args", "temperature=1e-40"], "is not finite"),
    ("skd", ["--loss", "decoupled_kd", "--loss-args", "temperature=1e300"], "decoupled_kd does not take"),
    ("skd", ["--accept-rule", "topk_along", "--rule", "first=nan"], "first"),
    ("skd", ["--accept-rule", "topk_along", "--rule", "last=-1"], "last"),
    ("skd", ["--accept-rule", "minprob", "--accept-on", "warped"], "accept_on"),
    ("skd", ["--accept-top-k", "2.5"], "--accept-top-k"),
    ("skd", ["--gamma", ""], "--gamma"),
    ("skd", ["--gamma", "9" * 5000], "--gamma"),
    ("skd", ["--save-every", "0"], "--save-every"),
    ("skd", ["--measure", "0"], "--measure"),
    ("skd", ["--student-start", "sft,raw"], "--student-start"),
    ("skd", ["--hard-share", "nan"], "hard_share"),
    ("skd", ["--cache-teacher", "-3"], "--cache-teacher"),
    ("skd", ["--sweep", "lr=1e-3,\n2e-3"], "--sweep"),
    ("skd", ["--sweep", "lr=1e-3, 2e-3"], "--sweep"),
    ("skd", ["--sweep", "sweep=lr=1,gamma=2"], "--sweep"),
    ("skd", ["--sweep", "lr=../../x,1e-3"], "--lr"),
    ("skd", ["--sweep", "rule=../../x=1"], "../../x"),
    ("skd", ["--sweep", "out=/tmp/a,/tmp/b"], "--out"),
    ("skd", ["--sweep", "data-dir=/tmp/a,/tmp/b"], "--data-dir"),
    ("skd", ["--sweep", "quick=1,2"], "--quick"),
    ("skd", ["--sweep", "unheard-of=1,2"], "unheard-of"),
    ("skd", ["--sweep", "accept-top=1,2"], "--accept-top=1"),
    ("skd", ["--student-temp", "0.5"], "--student-temp"),
    ("skd", ["--sweep", "lr=1e-3", "--sweep", "lr=2e-3"], "second time"),
    ("skd", ["--sweep", "lr=1e-3,0.001"], "the same run"),
    ("skd", ["--sweep", "log-every=5,10"], "--log-every"),
    ("skd", ["--variants", "sft", "--sweep", "student-temperature=0.5,1"], "is ignored by sft"),
    (
        "skd",
        ["--variants", "sft", "--student-temperature", "0.5"],
        "--student-temperature 0.5 is ignored by all of sft",
    ),
    (
        "skd",
        ["--variants", "sft", "--accept-rule", "random", "--rule", "replace_rate=0.1\n"],
        "is ignored by all of sft",
    ),
    ("skd", ["--accept-on", "warped", "--teacher-temperature", "0"], "--teacher-temperature"),
    ("skd", ["--variants", "opd", "--student-temperature", "0.5"], "--student-temperature"),
    ("skd", ["--variants", "sft,opd_baseline", "--student-top-p", "0.9"], "--student-top-p"),
    ("skd", ["--variants", "opd", "--sweep", "student-temperature=1,0.5"], "opd"),
    # train_okd.py
    ("okd", ["--alpha", "one"], "--alpha"),
    ("okd", ["--module-rank", "5000"], "--module-rank"),
    ("okd", ["--module-rank", "2.5"], "--module-rank"),
    ("okd", ["--module-scale", "nan"], "--module-scale"),
    ("okd", ["--module-scale", "-1"], "--module-scale"),
    ("okd", ["--module-lr", "inf"], "--module-lr"),
    ("okd", ["--module-start", "nan"], "--module-start"),
    ("okd", ["--anchor", "nan"], "--anchor"),
    ("okd", ["--temperature", "inf"], "--temperature"),
    ("okd", ["--student-temperature", "1e-38"], "--student-temperature must be 0 (greedy) or at least 1e-30"),
    ("okd", ["--student-divergence", ""], "--student-divergence"),
    ("okd", ["--out", "", "--variants", "okd"], "--out"),
    ("okd", ["--variants", "okd,okd,on_policy_x"], "on_policy_x"),
    ("okd", ["--sweep", "module-lr=0.1,0.1/../../x"], "--module-lr"),
    ("okd", ["--sweep", "alph=0,1", "--variants", "okd"], "--alph=0"),
    ("okd", ["--variants", "fixed_forward_kl", "--sweep", "teacher-mix=0.1,0.9"], "is ignored by fixed_forward_kl"),
    ("okd", ["--variants", "fixed_forward_kl", "--alpha", "0.3"], "--alpha 0.3 is ignored by all of fixed_forward_kl"),
    ("okd", ["--variants", "fixed_forward_kl", "--anchor", "2"], "add e.g. okd"),
    ("okd", ["--variants", "metadistil", "--teacher-divergence", "forward_kl"], "--teacher-divergence forward_kl"),
    ("okd", ["--teacher-divergence", "amid"], "--teacher-divergence"),  # a divergence that has no mirror
    ("okd", ["--variants", "minillm", "--temperature", "2"], "--temperature"),
    ("okd", ["--variants", "okd,minillm", "--student-temperature", "0.5"], "--student-temperature"),
    ("okd", ["--variants", "sft,minillm", "--student-top-p", "0.9"], "minillm"),
    ("okd", ["--variants", "minillm", "--sweep", "temperature=1,2"], "minillm"),
    ("skd", ["--equal-compute", "--sweep", "lr=1e-3,2e-3"], "--equal-compute has one budget"),
    (
        "skd",
        ["--sweep", "weight-decay=" + ",".join(f"0.{'0' * 200}{i}" for i in (1, 2))],
        "too long for the name of a file",
    ),
    ("okd", ["--out", "{finished}", "--resume", "--variants", "sft"], "was made by train_skd.py"),
    # sample.py
    ("sample", ["--checkpoint", "{folder}"], "no checkpoint at"),
    ("sample", ["--checkpoint", "{pipe}/train.jsonl"], "no checkpoint at"),
    ("sample", ["--checkpoint", "{finished}/skd_pair1_seed1.jsonl"], "skd_pair1_seed1.jsonl is not a whole checkpoint"),
    ("sample", ["--checkpoint", "{finished}/curves.svg"], "curves.svg is not a whole checkpoint"),
    ("sample", ["--checkpoint", "{module}"], "not a whole checkpoint"),
    ("sample", ["--checkpoint", "{state}"], "not a whole checkpoint"),
    ("sample", ["--checkpoint", "{finished}/skd_pair1_seed1.pt", "--teacher", "{module}"], "not a whole checkpoint"),
    ("sample", ["--checkpoint", "{finished}/skd_pair1_seed1.pt", "--teacher", "{folder}"], "no checkpoint at"),
    ("sample", ["--teacher", "{finished}/teacher_pair1.pt"], "--checkpoint"),
    ("sample", ["--checkpoint", "{finished}/skd_pair1_seed1.pt", "--prompt", "\udcff 1+2="], "surrogate"),
    ("sample", ["--checkpoint", "{finished}/skd_pair1_seed1.pt", "--accept-top-k", "nan"], "--accept-top-k"),
    ("sample", ["--checkpoint"], "--checkpoint"),
    ("sample", ["--rows", "-3"], "--rows"),
    ("sample", ["--rows", "1e9"], "--rows"),
    ("sample", ["--seed", "-1"], "--seed"),
    ("sample", ["--seed", "nan"], "--seed"),
    ("sample", ["--gamma", "4.0"], "--gamma"),
    ("sample", ["--device", "gpu"], "--device"),
    (
        "sample",
        ["--checkpoint", "{finished}/skd_pair1_seed1.pt", "--teacher", "{finished}/skd_pair1_seed1.pt"],
        "its own teacher",
    ),
    ("sample", ["--checkpoint", "{finished}/teacher_pair1.pt"], "its own teacher"),
    ("sample", ["--rows", "2", "--prompt", "1+2="], "--rows"),
    ("sample", ["--rows", "1000"], "--rows must lie in 1.."),
    ("sample", ["--checkpoint", "{finished}/skd_pair1_seed1.pt", "--rows", "7"], "1..6"),
    ("sample", ["--rule", "accept_min_prob"], "--rule"),
    ("sample", ["--rule", "accept_min_prob=0.1"], "accept rule topk has no knob"),
    ("sample", ["--accept-rule", "minprob", "--rule", "accept_min_prob=2"], "accept_min_prob"),
    ("sample", ["--accept-rule", "argmax", "--accept-top-k", "3"], "--accept-top-k is ignored"),
    # losses.py
    ("skd", ["--sweep", "size=tiny,small"], "would change --size"),
    ("okd", ["--sweep", "teacher-steps=5,6"], "would change --teacher-steps"),
    ("okd", ["--sweep", "student-width=16,32"], "would change --student-width"),
    ("skd", ["--accept-rule", "minprob", "--rule", "accept_min_prob=0.1,accept_min_prob=0.2"], "--rule"),
    ("skd", ["--rule", ","], "--rule"),
    ("sample", ["--checkpoint", ""], "--checkpoint"),
    ("losses", ["--svg", ""], "nothing"),
    ("losses", ["--svg", "{folder}"], "folder"),
    ("losses", ["--svg", "{folder}/not/there.svg"], "there.svg"),
    ("losses", ["--svg"], "--svg"),
    ("losses", ["forward_kl"], "forward_kl"),
    # python -m lab.report
    ("report", [], "folder"),
    ("report", ["{file}"], "is not a folder"),
    ("report", ["{folder}", "{folder}"], "unrecognized"),
    ("report", ["{finished}", "--tpyo"], "--tpyo"),
    ("report", ["{finished}", "--tp\nyo"], "--tp yo"),
    ("skd", ["--tp\nyo", "a\u2028b"], "--tp yo a b"),
    ("exchange", ["a", "b", "c\nd"], "c d"),
    ("report", ["{folder}"], "no finished run"),
    ("report", ["{folder_as_file}"], "train.jsonl"),
    ("report", ["{good}"], "line 1 has no kind"),
    ("report", ["{utf16}"], "line 1 is not JSON"),
    ("report", ["{folder}", "--pack"], "no finished run"),
    ("report", ["{file}", "--pack"], "is not a folder"),
    ("report", ["--pack"], "folder"),
    ("report", ["{finished}", "--pages"], "--pages"),
    ("report", ["--pages", "--focus", "skd"], "--pages"),
    ("report", ["--methods", "train_skd.py"], "--methods"),
    # python -m lab.exchange
    ("exchange", [], "checkpoint"),
    ("exchange", ["{folder}", "{folder}"], "no checkpoint at"),
    ("exchange", ["{finished}/table.md", "{folder}"], "table.md is not a whole checkpoint"),
    ("exchange", ["{finished}/teacher_pair1.pt", "{file}"], "file"),
]
PROGRAMS = {
    "skd": train_skd.main, "okd": train_okd.main, "sample": rollouts.main, "losses": gallery.main,
    "report": report.main, "exchange": exchange.main,
}  # fmt: skip


@pytest.fixture(scope="module")
def places(finished, tmp_path_factory):  # noqa: F811
    """Files and folders that are not what they are taken for: name -> path."""
    folder = tmp_path_factory.mktemp("places")
    found = {name: folder / name for name in ("file", "folder", "folder_as_file", "pipe", "good", *OWN_DATA)}
    found["file"].write_text("words\n")
    for name, path in found.items():
        if name != "file":
            path.mkdir()
    for name, content in {**OWN_DATA, "good": GOOD_ROW.encode()}.items():
        (found[name] / "train.jsonl").write_bytes(content)
    (found["folder_as_file"] / "train.jsonl").mkdir()
    os.mkfifo(found["pipe"] / "train.jsonl")
    base = adapters.make_gpt(257, 26, 1, 2, 8)
    found["module"], found["state"] = folder / "okd_pair1_seed1.module.pt", folder / "skd_pair1_seed1.state.pt"
    save_online_module(str(found["module"]), OnlineTeacher(base), score=0.5)
    with Checkpointer(str(folder / "skd_pair1_seed1"), 1, {"lr": 0.1}) as checkpointer:
        checkpointer.restore(student=base)
        checkpointer.save(1)
    return found | {"finished": finished}


def name_of(row):
    program, words, _ = row
    return f"{program} {' '.join(words)}"[:60]


def filled(text, places):  # noqa: F811
    """{name} in a word becomes the path of that place; all other braces stay."""
    for name, path in places.items():
        text = text.replace("{" + name + "}", str(path))
    return text


@pytest.mark.parametrize("row", COMMANDS, ids=name_of)
def test_wrong_commands_are_refused(nothing_trained, places, capsys, monkeypatch, tmp_path, row):  # noqa: F811
    """One line that names what was wrong, a status that is not 0; nothing is trained and no folder is made."""
    program, words, word = row
    monkeypatch.chdir(tmp_path)
    argv = [filled(text, places) for text in words]
    quick = (
        ["--quick"] if program in ("skd", "okd") and "{finished}" not in words
        else SMALL if program in ("skd", "okd")
        else []
    )
    before = {path for path in tmp_path.rglob("*") if path.name != "losses.svg"}
    line = refused(PROGRAMS[program], [*quick, *argv], capsys)
    assert word in line and len(line) < 6000, line
    assert {path for path in tmp_path.rglob("*") if path.name != "losses.svg"} == before


REAL_COMMANDS = [
    (["train_okd.py", "--module-rank", "5000"], "--module-rank"), (["sample.py", "--teacher", "x.pt"], "--checkpoint"),
    (["losses.py", "--svg"], "--svg"), (["-m", "lab.report", "nowhere"], "not a folder"),
    (["-m", "lab.report"], "folder"), (["-m", "lab.exchange", "x.pt"], "folder"),
]  # fmt: skip


@matrix("command,word", REAL_COMMANDS, fast=REAL_COMMANDS[3:4])
def test_real_commands_write_one_line(command, word):
    """As a process: a status, one line on stderr, nothing on stdout."""
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True, cwd=ROOT)
    assert (
        done.returncode not in (0, None) and done.stdout == "" and done.stderr.count("\n") == 1 and word in done.stderr
    ), done.stderr


# ---------------------------------------------------------------------------------------------------------------------
# Calls.

STUDENT, TEACHER = (adapters.make_gpt(11, 24, 1, 2, 8, seed=seed) for seed in (1, 2))
PADDED = adapters.make_gpt(64, 24, 1, 2, 8)  # a teacher whose vocabulary was padded, and its student
UNPADDED = adapters.make_gpt(60, 24, 1, 2, 8)
BROKEN = adapters.make_gpt(11, 24, 1, 2, 8)
with torch.no_grad():
    BROKEN.norm.weight.fill_(float("nan"))
TOKENIZER = train_tokenizer(["abab abab"], 300)
ENDLESS = float("inf")
NAN = float("nan")


def noise():
    return torch.Generator().manual_seed(0)


def plain(prompts=((1, 2),), max_new_tokens=4, model=STUDENT, **options):
    """sample.generate with everything right but what is given."""
    prompts = [list(prompt) for prompt in prompts] if isinstance(prompts, tuple) else prompts
    return sample.generate(model, prompts, max_new_tokens, **{"generator": noise()} | options)


def interleaved(prompts=((1, 2),), max_new_tokens=4, student=STUDENT, teacher=TEACHER, **options):
    prompts = [list(prompt) for prompt in prompts] if isinstance(prompts, tuple) else prompts
    return sample.interleaved_generate(
        student, teacher, prompts, max_new_tokens, **{"generator": noise(), "accept_top_k": 3} | options
    )


def speculative(prompts=((1, 2),), max_new_tokens=4, draft=STUDENT, target=TEACHER, **options):
    prompts = [list(prompt) for prompt in prompts] if isinstance(prompts, tuple) else prompts
    return sample.speculative_generate(draft, target, prompts, max_new_tokens, **{"generator": noise()} | options)


def written(writer="mixed", prompts=((1, 2),), references=((3, 4),), **options):
    common = {"generator": noise(), "eos_token": 10, "student_share": 0.5}
    return sample.write_tokens(
        writer,
        STUDENT,
        TEACHER,
        [list(row) for row in prompts],
        [list(row) for row in references],
        4,
        **common | options,
    )


def logits(*shape, dtype=torch.float32):
    return torch.randn(shape, generator=noise()).to(dtype)


def loss(name, targets, student=None, mask=None, **hyper):
    """per_token_loss of (1, 3, 5) logits on targets (1, 3)."""
    targets = torch.tensor([targets])
    mask = torch.ones(1, 3, dtype=torch.bool) if mask is None else mask
    tokens = Tokens(targets, mask, torch.zeros(1, 3, dtype=torch.bool))
    return per_token_loss(name, logits(1, 3, 5) if student is None else student, logits(1, 3, 5), tokens, **hyper)


def measured(prompts=((1, 2),), references=((3, 10),), student=STUDENT, teacher=TEACHER, max_new_tokens=4, **options):
    task = SimpleNamespace(corpus_score=lambda examples, completions: 0.0, details=lambda examples, completions: {})
    spoken = SimpleNamespace(eos_token=10, decode=lambda ids: "")
    encoded = Encoded([None] * len(prompts), [list(row) for row in prompts], [list(row) for row in references])
    return evaluate(
        student, teacher, task, spoken, encoded, max_new_tokens, **{"gamma": 2, "accept_top_k": 3} | options
    )


def state(**changes):
    return Tokenizer.from_state(TOKENIZER.state_dict() | changes)


MATH = tasks.make_task("math", difficulty=1, train_examples=3, val_examples=2, test_examples=2, ood_examples=1)

CALLS = {
    # Samplers.
    "one prompt without brackets": (lambda: plain([1, 2, 3]), "brackets"),
    "a number for prompts": (lambda: plain([7]), "brackets"),
    "a tensor of prompts": (lambda: plain(torch.ones(2, 3, dtype=torch.long)), "list of lists"),
    "text for a prompt": (lambda: plain(["1+2="]), "encode the text first"),
    "float ids": (lambda: plain([[1.0, 2.0]]), "whole numbers"),
    "one float id": (lambda: plain([[1, 2], [1, 2.5]]), "prompt 1"),
    "truth values for ids": (lambda: plain([[True, False]]), "whole numbers"),
    "None among the ids": (lambda: plain([[1, None]]), "whole numbers"),
    "a giant id": (lambda: plain([[2**70]]), "whole numbers"),
    "nested ids": (lambda: plain([[[1], [2]]]), "whole numbers"),
    "an id above the vocabulary": (lambda: plain([[1, 11]]), "token id 11, the vocabulary has 0..10"),
    "an id below 0": (lambda: plain([[1, -1]]), "token id -1"),
    "an id above, interleaved": (lambda: interleaved([[99]]), "token id 99"),
    "an id above, speculative": (lambda: speculative([[99]]), "token id 99"),
    "an id of the padding": (lambda: plain([[60]], model=UNPADDED), "0..59"),
    "a prompt of exactly the block": (lambda: speculative([[1] * 24]), "block_size is 24"),
    "a prompt far above the block": (lambda: interleaved([[1] * 5000]), "5000 tokens"),
    "no prompts, speculative": (lambda: speculative([]), "no prompts"),
    "an empty prompt, speculative": (lambda: speculative([[1], []]), "prompt 1 is empty"),
    "half a token": (lambda: plain(max_new_tokens=2.5), "max_new_tokens"),
    "a negative budget": (lambda: interleaved(max_new_tokens=-3), "found -3"),
    "a budget as text": (lambda: speculative(max_new_tokens="4"), "max_new_tokens"),
    "no budget": (lambda: plain(max_new_tokens=None), "max_new_tokens"),
    "a nan budget": (lambda: plain(max_new_tokens=NAN), "max_new_tokens"),
    "an end token above the vocabulary": (lambda: plain(eos_token=11), "eos_token 11"),
    "an end token below 0": (lambda: interleaved(eos_token=-1), "eos_token -1"),
    "an end token as text": (lambda: speculative(eos_token="<|endoftext|>"), "eos_token"),
    "negative temperature": (lambda: plain(temperature=-1.0), "temperature"),
    "nan temperature": (lambda: speculative(temperature=NAN), "temperature"),
    "nan temperature of the student": (lambda: interleaved(student_temperature=NAN), "temperature"),
    "negative temperature of the teacher": (lambda: interleaved(teacher_temperature=-0.1), "temperature"),
    "a nucleus of nothing": (lambda: plain(top_p=0.0), "top_p"),
    "a nucleus above 1": (lambda: plain(top_p=1.5), "top_p"),
    "a nan nucleus": (lambda: interleaved(student_top_p=NAN), "top_p"),
    "a negative nucleus of the teacher": (lambda: interleaved(teacher_top_p=-0.5), "top_p"),
    "the best -1 tokens": (lambda: plain(top_k=-1), "top_k"),
    "no generator": (lambda: plain(generator=None), "torch.Generator"),
    "a seed for a generator": (lambda: interleaved(generator=3), "torch.Generator"),
    "an unknown role": (lambda: plain(role="assistant"), "role must be student or teacher"),
    "a role of the noise alone": (lambda: plain(role="accept"), "role"),
    "fractions as row keys": (lambda: plain([[1], [2]], row_keys=[0.2, 0.7]), "row keys are whole numbers"),
    "too few row keys": (lambda: speculative([[1], [2]], row_keys=[0]), "1 row keys for 2 prompts"),
    "a broken model": (lambda: plain(model=BROKEN), "nan"),
    "a broken student": (lambda: interleaved(student=BROKEN), "nan"),
    "a broken teacher": (lambda: interleaved(teacher=BROKEN), "nan"),
    "a broken draft": (lambda: speculative(draft=BROKEN), "nan"),
    "a broken target, greedily": (lambda: speculative(target=BROKEN, temperature=0), "nan"),
    "a padded teacher, interleaved": (lambda: interleaved(student=UNPADDED, teacher=PADDED), "60 and 64"),
    "a padded draft, speculative": (lambda: speculative(draft=PADDED, target=UNPADDED), "64 and 60"),
    "a padded teacher in a mixture": (lambda: sample.Mixture(PADDED, UNPADDED, 0.2), "64 and 60"),
    "a padded teacher to switch to": (lambda: sample.Switching(UNPADDED, PADDED), "60 and 64"),
    "a padded teacher near a student": (lambda: sample.TrustRegion(UNPADDED, PADDED, 0.02), "60 and 64"),
    "a mixture of one": (lambda: sample.Mixture(STUDENT, TEACHER, 1.0), "strictly between 0 and 1"),
    "a nan mixture": (lambda: written("teacher_mixed", teacher_mix=NAN), "strictly between 0 and 1"),
    "a window of nothing": (lambda: written("switching", switching={"window": 0}), "window"),
    "a nan factor": (lambda: written("switching", switching={"factor": NAN}), "factor"),
    "a nan region": (lambda: written("trust_region", trust_region=NAN), "epsilon"),
    "half a gamma": (lambda: interleaved(gamma=2.5), "gamma"),
    "gamma as text": (lambda: speculative(gamma="auto"), "gamma"),
    "nan for K": (lambda: interleaved(accept_top_k=NAN), "accept_top_k"),
    "K as text": (lambda: interleaved(accept_top_k="3"), "accept_top_k"),
    "None for K": (lambda: interleaved(accept_top_k=None), "accept_top_k"),
    "a share above 1": (lambda: interleaved(accept_rule="topp", accept_top_p=1.5), "accept_top_p"),
    "a nan probability": (lambda: interleaved(accept_rule="minprob", accept_min_prob=NAN), "accept_min_prob"),
    "no replacement": (lambda: interleaved(replace=None), "unknown replace rule None"),
    "an unknown writer": (lambda: written("nobody"), "a writer is one of"),
    "an unknown unit of mixing": (lambda: written(mix_per="token"), "mix_per batch or sequence"),
    "a share of 2": (lambda: written(student_share=2.0), "share"),
    "a nan share": (lambda: written(student_share=NAN), "share"),
    "a reference too few": (lambda: written("dataset", prompts=((1,), (2,)), references=((3,),)),
                            "2 prompts, 1 references"),
    "a gamma of 0 among the options": (lambda: written("interleaved", interleaved={"gamma": 0}), "gamma"),
    "an unknown option of a rule": (lambda: written("interleaved", interleaved={"acept_top_k": 3}), "acept_top_k"),
    "sources of another length": (lambda: sample.rollout_from_ids([[1], [2]], [[3], [4]], [3], None), "1 sources"),
    "responses of another length": (lambda: sample.rollout_from_ids([[1], [2]], [[3]], [3, 3], None), "1 responses"),
    "float ids to pad": (lambda: sample.pad_sequences([[1], [1.5]]), "whole numbers"),
    "a picture of no row": (lambda: rollouts.picture(interleaved(), 1, str), "row 1 of a rollout of 1"),
    "an unknown device": (lambda: processes.pick_device("tpu"), "--device tpu"),
    # Models.
    "an empty vocabulary": (lambda: GPTConfig(0, 8, 1, 2, 8), "vocab_size"),
    "half a layer": (lambda: GPTConfig(11, 8, 1.5, 2, 8), "n_layer"),
    "no position": (lambda: adapters.make_gpt(11, 0, 1, 2, 8), "block_size"),
    "a negative width": (lambda: GPTConfig(11, 8, 1, 2, -8), "n_embd"),
    "True heads": (lambda: GPTConfig(11, 8, 1, True, 8), "n_head"),
    "a width as text": (lambda: GPTConfig(11, 8, 1, 2, "8"), "n_embd"),
    "heads that do not divide": (lambda: adapters.make_gpt(11, 8, 1, 3, 8), "divisible"),
    "another gelu": (lambda: GPTConfig(11, 8, 1, 2, 8, "relu"), "gelu"),
    "float tokens": (lambda: adapters.model_logits(STUDENT, torch.ones(1, 3)), "long"),
    "int32 tokens": (lambda: STUDENT(torch.ones(1, 3, dtype=torch.int32)), "long"),
    "tokens above the vocabulary": (lambda: adapters.model_logits(STUDENT, torch.full((1, 3), 11)), "token ids 11..11"),
    "tokens below 0": (lambda: OnlineTeacher(adapters.make_gpt(11, 24, 1, 2, 8))(torch.full((1, 3), -1)),
                       "token ids -1..-1"),
    "tokens without a batch": (lambda: STUDENT(torch.ones(3, dtype=torch.long)), "(B, T)"),
    "tokens beyond the block": (lambda: STUDENT(torch.ones(1, 25, dtype=torch.long)), "block_size is 24"),
    "half a rank": (lambda: OnlineTeacher(STUDENT, "lora", 2.5), "rank"),
    "a rank as text": (lambda: OnlineTeacher(STUDENT, "prefix", "8"), "rank"),
    "a nan scale": (lambda: OnlineTeacher(STUDENT, scale=NAN), "scale"),
    "an endless scale": (lambda: OnlineTeacher(STUDENT, scale=ENDLESS), "scale"),
    "a module on a module": (lambda: OnlineTeacher(OnlineTeacher(adapters.make_gpt(11, 24, 1, 2, 8))), "OnlineTeacher"),
    "no kind of module": (lambda: adapters.attach_online_module(STUDENT, None), "unknown online module None"),
    # Losses.
    "ids for logits": (lambda: adapters.divergence("forward_kl", torch.ones(1, 2, 5, dtype=torch.long),
                                                   logits(1, 2, 5)), "floating-point"),
    "ids for the teacher's logits": (lambda: adapters.divergence("total_variation", logits(1, 2, 5),
                                                                 torch.ones(1, 2, 5, dtype=torch.long)),
                                     "floating-point"),
    "truth values for logits": (lambda: losses.entropy(torch.ones(1, 2, 5, dtype=torch.bool)), "floating-point"),
    "60 and 64 columns": (lambda: adapters.divergence("reverse_kl", logits(1, 2, 60), logits(1, 2, 64)),
                          "must share one vocabulary"),
    "another length": (lambda: adapters.divergence("amid", logits(1, 2, 5), logits(1, 3, 5)), "(1, 3, 5)"),
    "another batch": (lambda: adapters.divergence("alpha_beta", logits(2, 3, 5), logits(1, 3, 5)), "(2, 3, 5)"),
    "half logits that are cut off": (lambda: adapters.divergence("forward_kl",
                                                                 logits(1, 1, 3, dtype=torch.half) - ENDLESS,
                                                                 logits(1, 1, 3)), "-inf"),
    "a target above the vocabulary": (lambda: loss("cross_entropy", [0, 1, 5]), "0..4"),
    "a target of -100": (lambda: loss("cross_entropy", [0, 1, -100]), "padding goes into the mask"),
    "a target above, decoupled": (lambda: loss("decoupled_kd", [0, 1, 9]), "0..4"),
    "a target above, smoothed": (lambda: loss("label_smoothing", [0, 1, 9]), "0..4"),
    "a target above, by policy gradient": (lambda: loss("policy_gradient", [0, 1, 9]), "0..4"),
    "a target above, minillm": (lambda: losses.minillm(logits(1, 1, 5), logits(1, 1, 5), torch.tensor([[5]]),
                                                       torch.ones(1, 1, dtype=torch.bool)), "0..4"),
    "float targets": (lambda: loss("cross_entropy", [0.0, 1.0, 2.0]), "long"),
    "targets of another length": (lambda: losses.cross_entropy(logits(1, 3, 5), torch.zeros(1, 4, dtype=torch.long)),
                                  "(1, 4)"),
    "okd's targets of another length": (lambda: adapters.okd_losses(logits(1, 3, 5), logits(1, 3, 5),
                                                                    torch.zeros(1, 2, dtype=torch.long),
                                                                    torch.ones(1, 3, dtype=torch.bool)), "(1, 2)"),
    "okd's mask of another length": (lambda: adapters.okd_losses(logits(1, 3, 5), logits(1, 3, 5),
                                                                 torch.zeros(1, 3, dtype=torch.long),
                                                                 torch.ones(1, 2, dtype=torch.bool)), "mask (1, 2)"),
    "an unknown loss": (lambda: loss("forward_lk", [0, 1, 2]), "no loss 'forward_lk'"),
    "a temperature of 0": (lambda: losses.soften(logits(1, 1, 3), 0), "temperature"),
    "a nan temperature of a loss": (lambda: losses.soften(logits(1, 1, 3), NAN), "temperature"),
    "a weight of 2": (lambda: losses.hinton_mixture(logits(1, 1, 3), logits(1, 1, 3),
                                                    torch.zeros(1, 1, dtype=torch.long), 2.0), "kd_weight"),
    "a nan alpha": (lambda: adapters.divergence("skew_forward_kl", logits(1, 1, 3), logits(1, 1, 3), alpha=NAN),
                    "alpha"),
    "a mask of numbers": (lambda: adapters.masked_mean(torch.ones(1, 3), torch.ones(1, 3)), "a mask is bool"),
    "a mask of ids": (lambda: masked_mean(torch.ones(1, 3), torch.ones(1, 3, dtype=torch.long)), "a mask is bool"),
    "a mask with a further axis": (lambda: masked_mean(torch.ones(1, 3), torch.ones(1, 3, 1, dtype=torch.bool)),
                                   "mask (1, 3, 1)"),
    "the weight of an unknown mean": (lambda: weight_of(torch.ones(1, 3, dtype=torch.bool), "tokens"), "'tokens'"),
    "the weight of a sum": (lambda: weight_of(torch.ones(1, 3, dtype=torch.bool), "sum"), "'sum'"),
    # Tokenizer.
    "None to encode": (lambda: TOKENIZER.encode(None), "no text but NoneType"),
    "bytes to encode": (lambda: TOKENIZER.encode(b"abc"), "decode it first"),
    "ids to encode": (lambda: TOKENIZER.encode([1, 2]), "no text but list"),
    "a lone surrogate to encode": (lambda: TOKENIZER.encode("ab\ud83d"), "lone surrogate"),
    "a million blanks": (lambda: TOKENIZER.encode(" " * 1_200_000 + "7"), "blanks in a row"),
    "float ids to decode": (lambda: TOKENIZER.decode([1.0, 2.0]), "whole numbers"),
    "text to decode": (lambda: TOKENIZER.decode("abc"), "whole numbers"),
    "an id that no token has": (lambda: TOKENIZER.decode([3, TOKENIZER.n_vocab + 4]), f"of {TOKENIZER.n_vocab}"),
    "half a token of vocabulary": (lambda: train_tokenizer(["abab"], 300.5), "vocab_size 300.5"),
    "a nan vocabulary": (lambda: train_tokenizer(["abab"], NAN), "vocab_size nan"),
    "a vocabulary as text": (lambda: train_tokenizer(["abab"], "300"), "vocab_size 300"),
    "bytes to learn from": (lambda: train_tokenizer([b"abab"], 300), "text 0 is no text but bytes"),
    "None to learn from": (lambda: train_tokenizer(["abab", None], 300), "text 1 is no text"),
    "a million blanks to learn from": (lambda: train_tokenizer(["a", "\n" * 600_000 + "7"], 300),
                                       "text 1 has more than"),
    "tokens as text": (lambda: Tokenizer([chr(value) for value in range(256)]), "256 single bytes"),
    "no version": (lambda: state(version=None), "format version None"),
    # Tasks.
    "a list for a task's name": (lambda: adapters.make_task(["math"]), "unknown task"),
    "a difficulty without end": (lambda: adapters.make_task("translation", difficulty=2000), "at most 100"),
    "a giant difficulty": (lambda: adapters.make_task("math", difficulty=2**70), "at most 100"),
    "a giant train split": (lambda: adapters.make_task("math", train_examples=10**9), "at most 10000000"),
    "a negative split": (lambda: adapters.make_task("math", ood_examples=-1), "at least 0"),
    "stories in numbers": (lambda: adapters.make_task("math", stories="yes"), "True or False"),
    "an unknown split": (lambda: MATH.examples("dev"), "unknown split 'dev'"),
    "no split": (lambda: MATH.examples(None), "unknown split None"),
    "a completion too few": (lambda: MATH.corpus_score(MATH.examples("val"), ["1"]), "2 examples, 1 completions"),
    "nothing to score": (lambda: MATH.corpus_score([], []), "0 examples"),
    "nothing to tell details of": (lambda: MATH.details([], []), "0 examples"),
    "an unknown data set": (lambda: corpora.load_corpus("../multi30k"), "unknown data set"),
    # Measuring.
    "nothing to measure on": (lambda: measured((), ()), "no examples to measure on"),
    "a prompt beyond the block, measured": (lambda: measured([[1] * 24]), "block_size is 24"),
    "a reference beyond the block": (lambda: measured([[1] * 20], [[2] * 20]), "block_size is 24"),
    "no new tokens, measured": (lambda: measured(max_new_tokens=0), "max_new_tokens"),
    "a teacher of another vocabulary, measured": (lambda: measured(teacher=PADDED), "must share one vocabulary"),
    "None for K, measured": (lambda: measured(accept_top_k=None), "accept_top_k"),
    "a broken student, measured": (lambda: measured(student=BROKEN), "nan"),
    "a target above, measured": (lambda: token_columns(STUDENT, None, [[1]], [[2, 11]]), "0..10"),
    "a cache of -1 tokens": (lambda: TeacherCache(TEACHER, [[1]], [[2]], best=-1), "--cache-teacher"),
    "a cache of too few responses": (lambda: TeacherCache(TEACHER, [[1], [2]], [[2]]), "2 prompts, 1 responses"),
    "an interval of nothing": (lambda: statistics.student_t_interval([]), "[]"),
    "an interval of nan": (lambda: statistics.student_t_interval([0.5, NAN]), "nan"),
    "a table of nothing": (lambda: tables.render_table([]), "no finished run"),
    "an unknown start": (lambda: pairs.load_or_pretrain_pair(None, pairs.PairSettings(student_start="cold")), "'cold'"),
    "an unknown rule for numbers": (lambda: arguments.parse_rule("a=1;b=2"), "KNOB=NUMBER"),
}


@pytest.mark.parametrize("name", CALLS)
def test_wrong_calls_are_refused(name):
    """A ValueError or an AssertionError of the project's own, in one line that says what was found."""
    call, word = CALLS[name]
    with pytest.raises((ValueError, AssertionError)) as error:
        call()
    line = str(error.value)
    assert word in line and "\n" not in line and len(line) < 500, line
    assert "/torch/" not in str(error.traceback[-1].path)


# ---------------------------------------------------------------------------------------------------------------------
# Files that do not belong to what they are given to.


@pytest.mark.parametrize(
    "other", [(11, 24, 2, 2, 8), (11, 24, 1, 2, 12), (12, 24, 1, 2, 8), (11, 25, 1, 2, 8)], ids=str
)
def test_a_checkpoint_of_another_shape_is_refused(tmp_path, other):
    """Weights of one shape under the configuration of another: one line, and no such model is made."""
    path = str(tmp_path / "a.pt")
    save_checkpoint(path, SimpleNamespace(config=GPTConfig(*other), state_dict=STUDENT.state_dict), None)
    with pytest.raises(ValueError, match="a.pt is not a whole checkpoint") as error:
        load_checkpoint(path)
    assert "\n" not in str(error.value)


def test_a_module_of_another_base_is_refused(tmp_path):
    """A module goes with the very weights that it was trained beside, of another size or of another seed alike."""
    path = str(tmp_path / "a.module.pt")
    save_online_module(path, OnlineTeacher(adapters.make_gpt(11, 24, 1, 2, 8, seed=5)))
    for base in (adapters.make_gpt(11, 24, 1, 2, 8, seed=6), adapters.make_gpt(64, 24, 2, 2, 16)):
        with pytest.raises(ValueError, match="a.module.pt") as error:
            load_online_module(path, base)
        assert "\n" not in str(error.value)


def test_a_mask_of_nothing_is_a_loss_of_nothing():
    """All-false masks are no error: 0, with a graph, for every loss that takes one, and never nan."""
    student = logits(1, 3, 5).requires_grad_()
    mask = torch.zeros(1, 3, dtype=torch.bool)
    for name in ("forward_kl", "cross_entropy", "policy_gradient", "comparative"):
        mean = masked_mean(loss(name, [0, 1, 2], student, mask), mask)
        assert mean.item() == 0 and mean.requires_grad, name


def test_the_end_tokens_text_is_plain_text():
    """Spelled out in a prompt, in a reference or in training text the end token is its letters,
    so no text ends a response."""
    text = "say <|endoftext|> twice <|endoftext|>"
    learned = train_tokenizer([text] * 50, 400)
    for tokenizer in (TOKENIZER, learned):
        prompt, response = tasks.encode_example(tokenizer, corpora.Example(text, text))
        assert (
            tokenizer.eos_token not in prompt
            and response.count(tokenizer.eos_token) == 1
            and tokenizer.decode(response) == text
        )
    model = adapters.make_gpt(learned.n_vocab, 64, 1, 2, 8)
    (response,) = adapters.generate(model, [learned.encode(text)], 3, eos_token=learned.eos_token)
    assert 1 <= len(response) <= 3


def test_records_of_another_task_are_refused(tmp_path):
    """Two tasks in one folder make no table: one line with both."""
    for name, task in (("a", "math"), ("b", "translation")):
        header = {"variant": name, "pair": 1, "seed": 1, "task": task, "flags": {}}
        log = records.RunLog(tmp_path, f"{name}_pair1_seed1", header)
        log.write("final", score=0.5)
        log.close()
    with pytest.raises(ValueError, match="mixes the tasks math, translation"):
        report.write_report(tmp_path)
    assert not (tmp_path / "table.md").exists()


@pytest.mark.parametrize("change", [{"task": 3}, {"task": "math\n# x"}, {"metric": ["a"]}, {"teacher": 5},
                                    {"student_start": [1]}, {"jobs": "two"}, {"device_name": 7}, {"variant": ""},
                                    {"variant": "a\ud800"}, {"seed": 1.5}, {"pair": "6d5e"}, {"script": {}},
                                    {"flags": ["lr"]}, {"sources": "model.py"}], ids=str)  # fmt: skip
def test_headers_of_another_kind_are_refused(tmp_path, change):
    """A sealed record whose header holds something else than the report takes it for:
    one line with file and line number."""
    header = {"variant": "a", "pair": 1, "seed": 1, "task": "math", "flags": {}}
    log = records.RunLog(tmp_path, "a_pair1_seed1", header | change)
    log.write("final", score=0.5)
    log.close()
    with pytest.raises(ValueError, match="a_pair1_seed1.jsonl, line 1 ") as error:
        report.write_report(tmp_path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("figures", [{"warnings": 5}, {"warnings": [1]}, {"kind": ["final"]}], ids=str)
def test_lines_of_another_kind_are_refused(tmp_path, figures):
    """The same for a final line and its warnings."""
    header = {"kind": "header", "format": records.FORMAT, "variant": "a", "pair": 1, "seed": 1, "task": "math"}
    lines = [header, {"kind": "final", "score": 0.5} | figures]
    (tmp_path / "a_pair1_seed1.jsonl").write_text(records.with_checksum("\n".join(map(json.dumps, lines))) + "\n")
    with pytest.raises(ValueError, match="a_pair1_seed1.jsonl, line 2 ") as error:
        report.write_report(tmp_path)
    assert "\n" not in str(error.value)
