"""Laws for any input, tried on what hypothesis thinks up: tokenizer, splits, masks, samplers, losses, files, intervals.

EXAMPLES says how many each law is tried on with --slow, else on a fifth of it; they are the same ones every time.
"""

import contextlib
import io
import json
import math
import tempfile
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import adapters
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import train_okd
import train_skd
from data.corpora import Example, hash_split
from data.metrics import corpus_bleu, corpus_chrf, rouge_l
from data.tasks import FAMILIES, SIZES, make_task
from data.tokenizer import Tokenizer, train_tokenizer
from lab import exchange, records, report, statistics
from lab.checkpoints import Checkpointer
from losses import (
    MATCHING_LOSSES,
    SEQUENCE_LOSSES,
    TOKEN_LOSSES,
    Tokens,
    masked_mean,
    per_token_loss,
    weight_of,
)
from model import load_checkpoint, load_file, save_checkpoint, save_file
from sample import DATASET, PROMPT, WRITERS, rollout_from_ids, write_tokens

pytestmark = pytest.mark.more_with_slow
EXAMPLES = {"text": 600, "numbers": 600, "samplers": 200, "files": 200, "guesses": 1000}


def law(kind, **strategies):
    """Try a law on EXAMPLES[kind] inputs, or the profile's share of them (conftest.py), the same in every run."""

    def decorate(function):
        quiet = [HealthCheck.too_slow, HealthCheck.data_too_large]
        always = {"deadline": None, "derandomize": True, "database": None, "suppress_health_check": quiet}
        tried = settings(max_examples=EXAMPLES[kind] * settings.default.max_examples // 100, **always)
        return tried(given(**strategies)(function))

    return decorate


TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)  # all of Unicode but lone surrogates
SPECIAL = st.sampled_from(["<|endoftext|>", " <|endoftext|> ", "\x00", "é", "e\u0301", "\u2028", "🙂", "  ", "\r\n"])
MIXED = st.lists(st.one_of(TEXTS, SPECIAL), max_size=6).map("".join)

# ---------------------------------------------------------------------------------------------------------------------
# Text.

LEARNED = train_tokenizer(["add 17 to 4; double it\n", "le chat noir é 🙂"] * 3, 300)


@law("text", text=MIXED)
def test_any_text_comes_back(text):
    """Encoded and decoded it is itself, and the end token is never among its ids, not even where it is spelled out."""
    ids = LEARNED.encode(text)
    assert (
        LEARNED.decode(ids) == text and LEARNED.eos_token not in ids and all(0 <= one < LEARNED.n_vocab for one in ids)
    )
    assert LEARNED.decode([*ids, LEARNED.eos_token]) == text


@law(
    "text",
    texts=st.lists(MIXED, min_size=1, max_size=4).filter(lambda texts: any(texts)),
    extra=st.integers(0, 60),
    text=MIXED,
)
def test_any_learned_tokenizer_comes_back(texts, extra, text):
    """Whatever it learned from: no text is lost, more texts in another order learn the same,
    and its state is all there is."""
    tokenizer = train_tokenizer(texts, 257 + extra)
    assert 257 <= tokenizer.n_vocab <= 257 + extra and tokenizer.decode(tokenizer.encode(text)) == text
    assert train_tokenizer(texts[::-1], 257 + extra).fingerprint() == tokenizer.fingerprint()
    again = Tokenizer.from_state(json.loads(json.dumps(tokenizer.state_dict())))
    assert again.encode(text) == tokenizer.encode(text) and again.fingerprint() == tokenizer.fingerprint()


PROMPTS = st.lists(TEXTS, max_size=40, unique=True)


@law(
    "text", prompts=PROMPTS, others=PROMPTS, val=st.floats(0, 0.5), test=st.floats(0, 0.5),
    order=st.randoms(use_true_random=False),
)
def test_any_split_is_a_partition(prompts, others, val, test, order):
    """Every example in one split; neither their order nor others beside them move one."""

    def homes(texts):
        found = hash_split([Example(text, text) for text in texts], val=val, test=test)
        assert sorted(example.prompt for split in found.values() for example in split) == sorted(texts)
        return {example.prompt: name for name, split in found.items() for example in split}

    alone, mixed = homes(prompts), [*prompts, *(text for text in others if text not in prompts)]
    order.shuffle(mixed)
    assert alone.items() <= homes(mixed).items()


@law("text", pairs=st.lists(st.tuples(MIXED, MIXED), min_size=1, max_size=3))
def test_any_score_lies_in_its_range(pairs):
    """BLEU, chrF and ROUGE-L of any texts are numbers from 0 to 1, 1 for a text with itself,
    if there is a word in it."""
    completions, references = (list(side) for side in zip(*pairs))
    for metric in (corpus_bleu, corpus_chrf):
        assert 0 <= metric(completions, references) <= 1 + 1e-9
    for completion, reference in pairs:
        assert 0 <= rouge_l(completion, reference) <= 1 and rouge_l(reference, reference) in (0.0, 1.0)


# ---------------------------------------------------------------------------------------------------------------------
# Masks and losses.

ROWS = st.lists(
    st.tuples(st.lists(st.integers(0, 8), min_size=1, max_size=5), st.lists(st.integers(0, 8), max_size=5)),
    min_size=1,
    max_size=5,
)


@law("numbers", rows=ROWS)
def test_any_mask_counts_its_responses(rows):
    """A rollout's mask covers each response and nothing else, padding not, though 0 may be a token and even the end
    token; the first response token is predicted by the prompt's last row."""
    prompts, responses = (list(side) for side in zip(*rows))
    rollout = rollout_from_ids(prompts, responses, [DATASET] * len(rows), torch.device("cpu"))
    mask = rollout.response_mask
    assert mask.sum(1).tolist() == [len(response) for response in responses] and rollout.responses() == responses
    for row, (prompt, response) in enumerate(rows):
        assert rollout.tokens[row, mask[row]].tolist() == response
        shifted = mask[row, 1:].nonzero().flatten().tolist()  # rows of logits that are learned from
        assert shifted == list(range(len(prompt) - 1, len(prompt) + len(response) - 1))
        assert rollout.source[row].eq(DATASET).tolist() == mask[row].tolist()


@law(
    "numbers", lengths=st.lists(st.integers(0, 6), min_size=1, max_size=6), seed=st.integers(0, 999),
    cut=st.integers(1, 6), reduction=st.sampled_from(["token", "sequence"]),
)
def test_any_mean_is_of_its_tokens(lengths, seed, cut, reduction):
    """Padding, its nans, the order of the rows and parts of the batch change nothing; a constant is its own mean."""
    noise = torch.Generator().manual_seed(seed)
    values = torch.randn(len(lengths), 7, generator=noise, dtype=torch.float64)
    mask = torch.arange(7) < torch.tensor(lengths)[:, None]
    mean = masked_mean(values, mask, reduction)
    spoiled = values.masked_fill(~mask, math.nan)
    order = torch.randperm(len(lengths), generator=noise)
    wider = torch.cat([spoiled, torch.full((len(lengths), 2), math.inf, dtype=torch.float64)], 1)
    wide_mask = torch.cat([mask, torch.zeros(len(lengths), 2, dtype=torch.bool)], 1)
    total = weight_of(mask, reduction)
    parts = [masked_mean(values[i : i + cut], mask[i : i + cut], reduction, total) for i in range(0, len(lengths), cut)]
    for other in (
        masked_mean(spoiled, mask, reduction),
        masked_mean(spoiled[order], mask[order], reduction),
        masked_mean(wider, wide_mask, reduction),
    ):
        torch.testing.assert_close(other, mean)
    if mask.any():
        torch.testing.assert_close(sum(parts), mean)
        torch.testing.assert_close(
            masked_mean(torch.full_like(values, 2.5), mask, reduction), torch.tensor(2.5, dtype=torch.float64)
        )


@law(
    "numbers", seed=st.integers(0, 10**6), vocab_size=st.integers(2, 40), scale=st.floats(0, 1e4),
    shift=st.floats(-1e3, 1e3),
)
def test_any_divergence_is_one(seed, vocab_size, scale, shift):
    """For logits of any size: finite, not negative, 0 where both are the same,
    and blind to a constant added to a row."""
    noise = torch.Generator().manual_seed(seed)
    own, other = (scale * torch.randn(2, 3, vocab_size, generator=noise) for _ in range(2))
    for name in adapters.divergence_names():
        apart = adapters.divergence(name, own, other)
        assert bool(apart.isfinite().all()) and bool((apart >= -1e-4 * (1 + scale)).all()), name
        assert adapters.divergence(name, own, own).abs().max() < 1e-5 * (1 + scale), name
        if name != "squared_error":  # of the logits themselves
            moved = adapters.divergence(name, own + shift, other - shift)
            torch.testing.assert_close(moved, apart, rtol=1e-3, atol=1e-3 * (1 + scale), msg=name)


@law(
    "numbers", seed=st.integers(0, 10**6), vocab_size=st.integers(2, 30), scale=st.floats(0, 1e4),
    length=st.integers(1, 4),
)
def test_any_loss_is_a_number_per_position(seed, vocab_size, scale, length):
    """For logits of any size every loss of every table is finite, one number per position, with a finite gradient for
    the student and none for the teacher."""
    noise = torch.Generator().manual_seed(seed)
    targets = torch.randint(vocab_size, (2, length), generator=noise)
    uniforms = torch.rand(2, 2, length, generator=noise)
    tokens = Tokens(targets, uniforms[0] < 0.7, uniforms[1] < 0.5)
    own, other = ((scale * torch.randn(2, length, vocab_size, generator=noise)).requires_grad_() for _ in range(2))
    for name in ("cross_entropy", *MATCHING_LOSSES, *TOKEN_LOSSES, *SEQUENCE_LOSSES):
        value = per_token_loss(name, own, other, tokens)
        assert value.shape == targets.shape and bool(value.isfinite().all()), name
        to_own, to_other = torch.autograd.grad(masked_mean(value, tokens.mask), [own, other], allow_unused=True)
        assert to_other is None and (to_own is None or bool(to_own.isfinite().all())), name


@law(
    "numbers",
    values=st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=40),
    shift=st.floats(-1e6, 1e6),
    order=st.randoms(use_true_random=False),
)
def test_any_interval_is_around_its_mean(values, shift, order):
    """The mean lies between the smallest and the largest value, the half width is not negative and grows with the
    spread alone: order and a shift of all values do not touch it."""
    mean, half_width = statistics.student_t_interval(values)
    assert min(values) - 1e-6 <= mean <= max(values) + 1e-6
    assert (half_width is None) == (len(values) == 1)
    shuffled = list(values)
    order.shuffle(shuffled)
    other, other_width = statistics.student_t_interval([value + shift for value in shuffled])
    assert other == pytest.approx(mean + shift, abs=1e-6)
    if half_width is not None:
        assert half_width >= 0 and other_width == pytest.approx(half_width, rel=1e-6, abs=1e-4)


# ---------------------------------------------------------------------------------------------------------------------
# Samplers.

MODELS = {seed: adapters.make_gpt(11, 24, 1, 2, 8, seed=seed) for seed in (1, 2)}
with torch.no_grad():
    for model in MODELS.values():
        model.token_embedding.weight.mul_(12)  # far from uniform
PROMPT_ROWS = st.lists(st.lists(st.integers(0, 10), min_size=1, max_size=6), min_size=1, max_size=5)


@law("samplers", prompts=PROMPT_ROWS, budget=st.integers(1, 12),
     gammas=st.tuples(st.integers(1, 14), st.integers(1, 14)), top_k=st.integers(0, 11),
     seed=st.integers(0, 999), eos=st.sampled_from([None, 0, 3]))  # fmt: skip
def test_any_interleaved_batch_is_its_rows(prompts, budget, gammas, top_k, seed, eos):
    """Any block length gives the same tokens and sources, any row alone with its key too; K = 0 is all teacher, K = V
    all student; no response is longer than its budget, and what ends early ends with the end token."""
    student, teacher = MODELS[1], MODELS[2]
    common = {"accept_top_k": top_k, "eos_token": eos, "seed": seed}
    one, other = (
        adapters.interleaved_generate(student, teacher, prompts, budget, gamma=gamma, **common) for gamma in gammas
    )
    assert one == other
    for row, prompt in enumerate(prompts):
        alone = adapters.interleaved_generate(
            student, teacher, [prompt], budget, gamma=gammas[0], row_keys=[row], **common
        )
        assert (alone[0][0], alone[1][0]) == (one[0][row], one[1][row])
        response, sources = one[0][row], one[1][row]
        assert len(response) == len(sources) and 1 <= len(response) <= budget
        assert (len(response) == budget or response[-1] == eos) and eos not in response[:-1]
        assert {0: {"teacher"}, 11: {"student"}}.get(top_k, {"teacher", "student"}) >= set(sources)


@law("samplers", prompts=PROMPT_ROWS, budget=st.integers(1, 12), gamma=st.integers(1, 9),
     temperature=st.sampled_from([0.0, 0.5, 1.0, 2.0]), seed=st.integers(0, 999),
     eos=st.sampled_from([None, 0, 3]))  # fmt: skip
def test_any_batch_of_one_model_is_its_rows(prompts, budget, gamma, temperature, seed, eos):
    """Plain and lossless speculative sampling: a row alone with its key is the row of the batch; greedy speculative
    decoding is greedy decoding, whatever drafts."""
    draft, target = MODELS[1], MODELS[2]
    common = {"temperature": temperature, "eos_token": eos, "seed": seed}
    plain = adapters.generate(target, prompts, budget, **common)
    fast = adapters.speculative_generate(draft, target, prompts, budget, gamma=gamma, **common)
    for row, prompt in enumerate(prompts):
        assert adapters.generate(target, [prompt], budget, row_keys=[row], **common) == [plain[row]]
        assert adapters.speculative_generate(
            draft, target, [prompt], budget, gamma=gamma, row_keys=[row], **common
        ) == [fast[row]]
        for response in (plain[row], fast[row]):
            assert len(response) == budget or response[-1] == eos
    if temperature == 0:
        assert plain == fast


@law("samplers", writer=st.sampled_from(list(WRITERS)),
     rows=st.lists(st.tuples(*[st.lists(st.integers(0, 10), min_size=1, max_size=5)] * 2), min_size=1, max_size=6),
     share=st.floats(0, 1), mix_per=st.sampled_from(["batch", "sequence"]), seed=st.integers(0, 999),
     processes=st.integers(1, 3), budget=st.integers(1, 9), top_k=st.integers(0, 11))  # fmt: skip
def test_any_writer_writes_one_batch(writer, rows, share, mix_per, seed, processes, budget, top_k):
    """Whoever writes, and however many processes share the batch: the same rows, prompts as they were, a source for the
    tokens of the responses and for no others, nothing behind a row's end."""
    prompts, references = (list(side) for side in zip(*rows))

    def write(places):
        noise = torch.Generator().manual_seed(seed)
        return write_tokens(writer, MODELS[1], MODELS[2], [prompts[i] for i in places], [references[i] for i in places],
                            budget, generator=noise, eos_token=3, student_share=share, mix_per=mix_per,
                            interleaved={"accept_top_k": top_k}, rows=places, batch_size=len(rows))  # fmt: skip

    whole = write(range(len(rows)))
    mask = whole.response_mask
    assert [row[:start] for row, start in zip(whole.tokens.tolist(), whole.prompt_len.tolist())] == prompts
    assert (
        bool(((whole.source == PROMPT) == ~mask).all())
        and mask.sum(1).tolist() == (whole.lengths - whole.prompt_len).tolist()
    )
    assert not whole.tokens[torch.arange(mask.size(1)) >= whole.lengths[:, None]].any()
    for rank in range(processes):
        places = range(rank, len(rows), processes)
        if places:
            assert write(places).responses() == [whole.responses()[i] for i in places]


# ---------------------------------------------------------------------------------------------------------------------
# Files.

PLAIN = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-(2**62), 2**62), st.floats(allow_nan=False), TEXTS),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(TEXTS, inner, max_size=3)),
    max_leaves=8,
)
DTYPES = st.sampled_from(
    [torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.int64, torch.int8, torch.uint8, torch.bool]
)
TENSORS = st.tuples(DTYPES, st.lists(st.integers(0, 3), max_size=3), st.integers(0, 99))


def tensor_of(dtype, shape, seed):
    return (4 * torch.randn(shape, generator=torch.Generator().manual_seed(seed))).to(dtype)


@law(
    "files",
    values=st.dictionaries(st.text("abcdefgh", min_size=1, max_size=6), PLAIN, max_size=4),
    bit=st.integers(0, 10**6),
)
def test_any_record_comes_back(values, bit):
    """What RunLog writes is read as `rounded` says; its seal fits, and fits no more when any bit is changed."""
    values = {name: value for name, value in values.items() if name not in ("kind", "flags")}
    with tempfile.TemporaryDirectory() as folder:
        log = records.RunLog(folder, "a_pair1_seed1", {"flags": {}})
        log.write("step", **values)
        log.write("final", **values)
        log.close()
        path = Path(folder) / "a_pair1_seed1.jsonl"
        lines = path.read_bytes().decode().removesuffix("\n").split("\n")
        expected = json.loads(json.dumps(records.rounded(values)))
        found = records.read_finished(folder, "a_pair1_seed1", {})
        assert (
            {name: found[name] for name in values} == expected == {name: json.loads(lines[1])[name] for name in values}
        )
        data = "\n".join(lines).encode()
        place = bit % (8 * len(data))
        flipped = data[: place // 8] + bytes([data[place // 8] ^ 1 << place % 8]) + data[place // 8 + 1 :]
        assert records.has_checksum(data.decode()) and not records.has_checksum(flipped.decode("utf-8", "replace"))


@law("files", plain=PLAIN, tensors=st.dictionaries(TEXTS, TENSORS, max_size=3))
def test_any_file_comes_back(plain, tensors):
    """Tensors of every kind and shape and plain values, however nested: read as they were saved."""
    content = {"plain": plain, "tensors": {name: tensor_of(*about) for name, about in tensors.items()}}
    with tempfile.TemporaryDirectory() as folder:
        save_file(f"{folder}/a.pt", content)
        found = load_file(f"{folder}/a.pt")
    assert found["plain"] == plain and found["tensors"].keys() == content["tensors"].keys()
    for name, tensor in content["tensors"].items():
        assert found["tensors"][name].dtype == tensor.dtype and torch.equal(found["tensors"][name], tensor)


@law(
    "files",
    tensors=st.dictionaries(st.text("abc.", min_size=1, max_size=5), TENSORS, max_size=4),
    cut=st.integers(0, 200),
)
def test_any_safetensors_file_comes_back(tensors, cut):
    """Written and read the tensors are the same; cut short the file is refused in one line."""
    content = {name: tensor_of(*about) for name, about in tensors.items()}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a"
        exchange.write_safetensors(path, content)
        found = exchange.read_safetensors(path)
        assert found.keys() == content.keys() and all(torch.equal(found[name], content[name]) for name in content)
        whole = path.read_bytes()
        if cut < len(whole):
            path.write_bytes(whole[:cut])
            with pytest.raises(ValueError, match="a: "):
                exchange.read_safetensors(path)


@law("files", data=st.binary(max_size=400))
def test_no_bytes_are_believed(data):
    """Random bytes are no checkpoint, no safetensors file, no tokenizer and no record:
    ValueError in one line, never another error."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a_pair1_seed1.jsonl"
        path.write_bytes(data)
        for read in (load_file, exchange.read_safetensors, Tokenizer.load):
            with pytest.raises(ValueError) as error:
                read(str(path))
            assert "\n" not in str(error.value)
        assert records.read_finished(folder, "a_pair1_seed1", {}, say=lambda line: None) is None


SCORES = st.lists(st.floats(0, 1), min_size=1, max_size=6)


@law("files", methods=st.dictionaries(st.text("abcxyz_<&|", min_size=1, max_size=8), SCORES, min_size=1, max_size=4))
def test_any_scores_make_a_report(methods):
    """Whatever the methods are called and scored: a table with each of them, a valid picture,
    intervals around the mean."""
    with tempfile.TemporaryDirectory() as folder:
        for number, (name, scores) in enumerate(methods.items()):
            for seed, score in enumerate(scores):
                header = {"flags": {}, "variant": name, "pair": seed // 2, "seed": seed, "task": "math"}
                log = records.RunLog(folder, f"m{number}_pair{seed // 2}_seed{seed}", header)
                log.write("eval", step=1, score=score)
                log.write("final", score=score, score_sampled=score)
                log.close()
        table = report.write_report(folder)
        summary = json.loads((Path(folder) / "summary.json").read_text())
        assert {name: [run["score"] for run in entry["runs"]] for name, entry in summary["variants"].items()} == {
            name: records.rounded(scores) for name, scores in methods.items()
        }
        assert table.count("\n") > 5
        ElementTree.parse(io.StringIO((Path(folder) / "curves.svg").read_text()))


class Part:
    """Anything with a state."""

    def __init__(self, state=None):
        self.state = state

    def state_dict(self):
        return self.state

    def load_state_dict(self, state):
        self.state = state


@law("files", parts=st.dictionaries(st.text("abc", min_size=1, max_size=3).map("part_{}".format), PLAIN, max_size=3),
     made=PLAIN, drawn=st.integers(0, 20), step=st.integers(1, 9),
     identity=st.dictionaries(st.text("abc", min_size=1, max_size=4),
                              st.one_of(st.integers(-9, 9), st.floats(0, 1), TEXTS), max_size=3))  # fmt: skip
def test_any_state_is_gone_on_with(parts, made, drawn, step, identity):
    """Parts, what was made before the loop and the place of a generator come back;
    a state of another identity is refused by name."""
    noise = torch.Generator().manual_seed(1)
    torch.rand(drawn, generator=noise)
    with tempfile.TemporaryDirectory() as folder:
        with Checkpointer(f"{folder}/a_pair1_seed1", 1, identity) as checkpointer:
            assert checkpointer.found("made", lambda: made) == made
            assert checkpointer.restore(noise=noise, **{name: Part(value) for name, value in parts.items()}) == 0
            checkpointer.save(step)
        other, found = torch.Generator(), {name: Part() for name in parts}
        with Checkpointer(f"{folder}/a_pair1_seed1", 1, identity) as checkpointer:
            assert checkpointer.found("made", lambda: pytest.fail("made again")) == made
            assert checkpointer.restore(noise=other, **found) == step
        assert {name: part.state for name, part in found.items()} == parts
        assert torch.equal(torch.rand(3, generator=noise), torch.rand(3, generator=other))
        with pytest.raises(ValueError, match="was made with --another not given, now it is 1"):
            Checkpointer(f"{folder}/a_pair1_seed1", 1, identity | {"another": 1})


@law("files", place=st.integers(0, 10**6), value=st.integers(0, 255), count=st.integers(1, 4))
def test_any_damage_of_a_checkpoint_is_noticed(place, value, count):
    """Some bytes in a row become another one, anywhere: refused in one line that names the file,
    or read as it was saved."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.pt"
        save_checkpoint(str(path), MODELS[1], {"version": 1}, score=0.5)
        whole = path.read_bytes()
        place %= len(whole) - count
        path.write_bytes(whole[:place] + bytes([value]) * count + whole[place + count :])
        try:
            model, about = load_checkpoint(str(path))
        except ValueError as error:
            assert "\n" not in str(error) and "a.pt" in str(error)
            return
        assert about["score"] == 0.5 and about["tokenizer"] == {"version": 1} and model.config == MODELS[1].config
        assert all(
            torch.equal(weight, other)
            for weight, other in zip(model.state_dict().values(), MODELS[1].state_dict().values(), strict=True)
        )


# ---------------------------------------------------------------------------------------------------------------------
# Guesses at what is taken: one line, or what was asked for.

STATE = LEARNED.state_dict()


@law("guesses",
     changes=st.dictionaries(st.sampled_from([*STATE, "more"]),
                             st.one_of(PLAIN, st.sampled_from(list(STATE.values())),
                                       st.lists(st.text("0123456789abcdef", max_size=4))), max_size=3),
     gone=st.sets(st.sampled_from([*STATE, "nothing"]), max_size=2))  # fmt: skip
def test_any_tokenizer_state_is_one_or_refused(changes, gone):
    """Entries changed, added and taken away: the same tokenizer as before, or ValueError in one line."""
    state = {name: value for name, value in (STATE | changes).items() if name not in gone}
    try:
        found = Tokenizer.from_state(state)
    except ValueError as error:
        assert "\n" not in str(error) and len(str(error)) < 1500
        return
    assert found.decode(found.encode("chat 17")) == "chat 17"


NUMBERS = st.one_of(st.integers(-3, 12), st.floats(), st.booleans(), st.none(), st.text(max_size=3), st.just(2**70))
KNOBS = st.sampled_from(
    ["difficulty", "entropy", "hard_share", "stories", *SIZES] * 2 + ["download", "cache_dir", "nonsense"]
)


@law(
    "files",
    name=st.sampled_from([*FAMILIES] * 4 + ["maths"]),
    options=st.dictionaries(KNOBS, st.one_of(st.integers(1, 3), NUMBERS), max_size=2),
)
def test_any_knobs_make_a_task_or_are_refused(name, options):
    """A task with as many examples as were asked for, or ValueError in one line."""
    sizes = {"train_examples": 6, "val_examples": 2, "test_examples": 2, "ood_examples": 2} | options
    try:
        task = make_task(name, **sizes)
    except ValueError as error:
        assert "\n" not in str(error)
        return
    assert [len(task.examples(split)) for split in task.splits] == [sizes[size] for size in SIZES]


PARSERS = {"train_skd": train_skd, "train_okd": train_okd}
FLAGS = st.sampled_from(["steps", "batch-size", "seeds", "seed", "variants", "sweep", "rule", "accept-rule",
                         "accept-top-k", "gamma", "lr", "block-size", "vocab-size", "micro-batch", "cache-teacher",
                         "student-top-p", "teacher-temperature", "alpha", "module-rank", "temperature", "save-every",
                         "size", "quick", "chunk-loss", "jobs", "out", "student-prompts", "tpyo"])  # fmt: skip
WORDS = st.one_of(st.integers(-2, 99).map(str), st.floats().map(str), st.text(max_size=6), st.sampled_from(
    ["", "skd", "okd", "supervised", "all", "main", "lr=1e-3,2e-3", "gamma=1,auto", "accept_min_prob=0.5", "minprob",
     "dense", "auto", "tiny", "1e-3", "0.5", "steps=1,x"]))  # fmt: skip


@law(
    "guesses", script=st.sampled_from(list(PARSERS)), words=st.lists(st.tuples(FLAGS, WORDS, st.booleans()), max_size=3)
)
def test_any_command_line_is_understood_or_refused(script, words):
    """Flags and values at random: what was asked for, or an error in one line and a status that is not 0."""
    argv = [part for flag, word, joined in words for part in ([f"--{flag}={word}"] if joined else [f"--{flag}", word])]
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            args, names = PARSERS[script].parse_flags(["--device", "cpu", *argv])
    except ValueError as error:
        assert len(str(error).splitlines()) == 1, str(error)
        return
    except SystemExit as stop:
        assert stop.code == 2 and len(said.getvalue().splitlines()) == 1, said.getvalue()
        return
    for _, own in args.swept:
        assert names and own.steps >= 1 and (own.lr or own.default_lr) > 0 and own.settings.vocab_size is not None
