"""A few rollouts on held-out prompts for a run's record: how the student writes, what the teacher makes of it, and what
both would have written instead, token by token.

The rule is SKD's, whatever the method: the student proposes at temperature 1, the teacher replaces what is not among
its K likeliest tokens. The noise is the same in every run and at every step, so the rollouts of a run differ by what
the student has learned.
"""

import ast
import json
import re

import torch
import torch.nn.functional as F

from sample import TEACHER, interleaved_generate, rank

EXAMPLES = 2  # the first ones of the validation split
LIKELIEST = 5  # tokens of each model that are told at a position
MOST_BYTES = 40_000 // 3  # of a line, of which a run writes three
MOST_OF_PROMPT = 1_000  # bytes
MOST_TOKENS = 128  # of a rollout: more have no room in a line


def held_out_rollouts(pair, accept_top_k, student):
    """The `rollout` line of a record (docs/metrics.md): the student's rollouts on a pairs.Pair's first validation
    prompts, judged by its original teacher; a dict of plain values of at most MOST_BYTES bytes as JSON."""
    prompts = pair.val.prompts[:EXAMPLES]
    return rollout_line(student, pair.teacher, pair.tokenizer, prompts, pair.max_new_tokens, accept_top_k)


@torch.no_grad()
def rollout_line(student, teacher, tokenizer, prompts, max_new_tokens, accept_top_k):
    """Rollouts of these prompts (lists of ids) as a dict: "accept_top_k", "texts" (id -> text) and "rollouts", which
    hold lists with an entry per response token; they are cut ("cut": true) where the line would be too long."""
    rollout = interleaved_generate(
        student,
        teacher,
        prompts,
        min(max_new_tokens, MOST_TOKENS),
        generator=torch.Generator().manual_seed(0),
        accept_top_k=accept_top_k,
        eos_token=tokenizer.eos_token,
        keep_features=True,
    )
    # Hidden states first, logits of the responses only: a prompt may have thousands of tokens.
    features = {"teacher": rollout.teacher_features, "student": student(rollout.tokens[:, :-1], features=True)}
    heads = {"teacher": teacher.head, "student": student.head}
    rows = []
    for row, prompt in enumerate(prompts):
        start, stop = int(rollout.prompt_len[row]), int(rollout.lengths[row])
        written, lost = rollout.tokens[row, start:stop], rollout.rejected_tokens[row, start:stop]
        by_teacher = rollout.source[row, start:stop] == TEACHER
        of_response = slice(start - 1, stop - 1)  # row t predicts response token t: logits are (T, V)
        model_logits = {name: F.linear(features[name][row, of_response], head).float() for name, head in heads.items()}
        columns = {
            "tokens": written.tolist(),
            "written_by": "".join("t" if replaced else "s" for replaced in by_teacher.tolist()),
            "rejected": [None if token < 0 else token for token in lost.tolist()],
            "rank": (1 + rank(model_logits["teacher"], torch.where(lost < 0, written, lost))).tolist(),
        }
        for name, own_logits in model_logits.items():
            best = own_logits.softmax(-1).topk(min(LIKELIEST, own_logits.size(-1)))
            columns[f"{name}_tokens"] = best.indices.tolist()
            columns[f"{name}_probs"] = [[round(prob, 3) for prob in probs] for probs in best.values.tolist()]
        room = min(max_new_tokens, student.config.block_size - start, teacher.config.block_size - start)
        stopped = not bool(rollout.finished[row]) and stop - start < room
        rows.append((prompt_text(tokenizer, prompt), columns, stopped))
    return fitted(tokenizer, rows, accept_top_k)


def fitted(tokenizer, rows, accept_top_k):
    """The line with as many positions of each rollout as it has room for; rows: (prompt, columns, stopped)."""

    def line(most):
        rollouts, used = [], set()
        for prompt, whole, stopped in rows:
            columns = {name: column[:most] for name, column in whole.items()}
            used |= {token for token in columns["tokens"] + columns["rejected"] if token is not None}
            used |= {token for name in ("teacher", "student") for best in columns[f"{name}_tokens"] for token in best}
            is_cut = stopped or len(whole["tokens"]) > most
            rollouts.append(prompt | columns | ({"cut": True} if is_cut else {}))
        texts = {str(token): token_text(tokenizer, token) for token in sorted(used)}
        return {"accept_top_k": accept_top_k, "texts": texts, "rollouts": rollouts}

    fits, too_many = 0, 1 + max(len(columns["tokens"]) for _, columns, _ in rows)
    while too_many - fits > 1:
        middle = (fits + too_many) // 2
        fits, too_many = (middle, too_many) if size(line(middle)) <= MOST_BYTES else (fits, middle)
    return line(fits)


def size(figures):
    """Bytes of a `rollout` line that holds these figures."""
    return len(json.dumps({"kind": "rollout", "step": 10**9} | figures)) + 1


def prompt_text(tokenizer, prompt):
    """{"prompt": its text}, printable; of a long one the end, and "prompt_cut": true."""
    letters, text = tokenizer.decode(prompt), ""
    for letter in reversed(letters[-MOST_OF_PROMPT:]):
        longer = printable(letter.encode()) + text
        if len(json.dumps(longer)) > MOST_OF_PROMPT:
            return {"prompt": text, "prompt_cut": True}
        text = longer
    return {"prompt": text}


def token_text(tokenizer, token):
    """A token as printable text; "" is the end token, which the tokenizer decodes to nothing."""
    return "" if token == tokenizer.eos_token else printable(tokenizer.tokens[token])


def printable(data):
    r"""Bytes as text from which they can be told: what is printable as it is, a new line as \n, a backslash twice, a
    byte of a character that was split as \xe4."""
    text = data.replace(b"\\", rb"\\").decode("utf-8", "backslashreplace")
    return "".join(letter if letter.isprintable() else _escaped(letter) for letter in text)


def token_bytes(text):
    """The bytes that a printable text stands for."""
    return b"".join(
        bytes.fromhex(piece[2:]) if piece[:2] == "\\x" else _unescaped(piece).encode()
        for piece in re.findall(r"\\(?:x..|u.{4}|U.{8}|.)|[^\\]+", text)
    )


def _unescaped(piece):
    if piece[0] != "\\":
        return piece
    try:
        return ast.literal_eval(f"'{piece}'")
    except (SyntaxError, ValueError):  # no escape of ours: it stands for itself
        return piece


def _escaped(letter):
    number = ord(letter)
    if number < 128:
        return repr(letter)[1:-1]
    return f"\\u{number:04x}" if number < 2**16 else f"\\U{number:08x}"  # \xa0 would be a byte
