"""What a GPU would punish, checked on a pretended one (pretend.py): tensors on the wrong device, and questions that
make the host wait. First the pretended device itself, then samplers, then training steps.
"""

import copy
import dataclasses
import functools
import itertools

import adapters
import pytest
import torch
from pretend import CUDA, gpu
from tiny import OKD_KINDS, SKD_KINDS, distilled, matrix, pair  # noqa: F401  (a fixture)

import sample
import train_okd
import train_skd
from lab import training
from model import OnlineTeacher


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def models(vocab_size=9, block_size=24):
    return [adapters.make_gpt(vocab_size, block_size, layers, 2, 8, seed=layers) for layers in (1, 2)]


PROMPTS = [[1, 2, 3], [4], [5, 6], [1, 1, 1, 1]]


def why(waits):
    """What the host waited for, without the places."""
    return [text.split(" @ ")[0] for text in waits]


# ---------------------------------------------------------------------------------------------------------------------
# The pretended device.


def planted_mix(x):
    return x + torch.ones(3)


def planted_index(x):
    return x[torch.tensor([0, 1])] + 0


def planted_factory(x):
    return torch.where(x > 0, x, torch.zeros(3))


def planted_generator(x):
    return torch.rand(3, device=x.device, generator=generator()) + x.clone().normal_(generator=generator())


def planted_cat(x):
    return torch.cat([x, torch.zeros(1)])


def planted_numpy(x):
    return x.numpy()


MISTAKES = [planted_mix, planted_index, planted_factory, planted_generator, planted_cat, planted_numpy]


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_caught(mistake):
    """A plain tensor in an operation, as an index, in a choice; a host's generator on the device; numpy."""
    with pytest.raises((AssertionError, RuntimeError)), gpu():
        mistake(torch.arange(3.0, device="cuda"))


def test_waiting_is_counted():
    """item, bool, tolist, cpu, a mask as an index, a clock and a copy from the host that is not asynchronous make the
    host wait; arithmetic and plain indices do not."""
    with gpu() as device:
        x = torch.arange(3.0, device="cuda")
        there = torch.tensor([0, 2]).pin_memory().to("cuda", non_blocking=True)
        y = (x + 1).sum() * x[there].mean() + torch.arange(3, device=x.device)
        assert device.waits == device.unpinned == [] and y.device == CUDA and x.held.tolist() == [0, 1, 2]
        y.sum().item(), bool((y > 0).all()), y.tolist(), y.cpu(), y[y > 0], torch.cuda.synchronize()
        torch.ones(2).to("cuda"), torch.tensor([1, 2], device="cuda")
        assert len(device.waits) == 8 and all("tests/test_placement.py" in text for text in device.waits)
        torch.ones(2).to("cuda", non_blocking=True)
        assert len(device.waits) == 8 and len(device.unpinned) == 1


def test_an_index_out_of_range_closes_the_device():
    """As a device-side assert does: that call fails, and so does every later one, but for what only the host does."""
    with gpu():
        table, x = torch.zeros(3, 2, device="cuda"), torch.ones(1, device="cuda")
        with pytest.raises(RuntimeError, match="CUDA error: device-side assert"):
            torch.nn.functional.embedding(torch.tensor([3], device="cuda"), table)
        for call in (lambda: x + 1, torch.cuda.synchronize, x.tolist, lambda: torch.ones(1).to("cuda")):
            with pytest.raises(RuntimeError, match="CUDA error"):
                call()
        assert torch.ones(1).item() == 1


def test_the_device_knows_what_it_holds(tmp_path):
    """Bytes now and at most: a view holds nothing of its own, what is deleted is let go. Models move, are copied,
    learn, are saved and read as on a GPU."""
    with gpu() as device:
        x = torch.zeros(100, device="cuda")
        views = x[:50], x.view(10, 10)
        assert device.live == 400 and device.peak == 400
        del x, views
        assert device.live == 0 and device.peak == 400
        layer = torch.nn.Linear(10, 10, bias=False).to("cuda")
        other = copy.deepcopy(layer)
        assert device.live == 800 and isinstance(other.weight, torch.nn.Parameter) and other.weight.device == CUDA
        optimizer = torch.optim.AdamW(other.parameters(), lr=0.1, fused=True)
        other(torch.ones(2, 10, device="cuda")).sum().backward()
        optimizer.step()
        assert not torch.equal(layer.weight, other.weight) and other.weight.grad.device == CUDA
        torch.save(other.state_dict(), tmp_path / "layer.pt")
        load = functools.partial(torch.load, tmp_path / "layer.pt", weights_only=True)
        here, there = (load(map_location=place)["weight"] for place in ("cpu", "cuda"))
        assert here.device.type == "cpu" and there.device == CUDA and torch.equal(there, other.weight)
        with torch.autocast("cuda", torch.bfloat16):
            y = layer(torch.ones(2, 10, device="cuda"))
            assert y.dtype == torch.bfloat16 and y.log_softmax(-1).dtype == torch.float32
    assert not torch.cuda.is_available() and torch.ones(1).to("cpu").cpu().device.type == "cpu"


# ---------------------------------------------------------------------------------------------------------------------
# The samplers.


SAMPLERS = ["generate", "interleaved", "fresh", "warped", "control", "speculative", "mixture", "trust region"]
ADAPTED = [(name, True) for name in ("generate", "interleaved", "mixture")]  # one of each loop


FAST_SAMPLERS = [*((name, False) for name in SAMPLERS), *ADAPTED]


@matrix("sampler, adapted", itertools.product(SAMPLERS, (False, True)), fast=FAST_SAMPLERS)
def test_samplers_stay_on_the_device(sampler, adapted):
    """The same tokens as on the host, nothing on the wrong side, and one wait per block."""

    def run(student, teacher):
        if adapted:
            teacher = OnlineTeacher(teacher, "lora", 2)
        waits.clear()
        options = {"generator": generator(3), "eos_token": 0}
        if sampler == "generate":
            return sample.generate(teacher, PROMPTS, 12, temperature=0.9, top_p=0.9, **options)
        if sampler == "mixture":
            return sample.generate(sample.Mixture(teacher, student, 0.3), PROMPTS, 12, **options)
        if sampler == "trust region":
            return sample.generate(sample.TrustRegion(student, teacher, 0.02), PROMPTS, 12, **options)
        if sampler == "speculative":
            return sample.speculative_generate(student, teacher, PROMPTS, 12, **options)
        switches = {"fresh": {"judge_fresh": True}, "warped": {"accept_on": "warped"}, "control": {"write_back": False}}
        return sample.interleaved_generate(
            student, teacher, PROMPTS, 12, accept_top_k=3, **options, **switches.get(sampler, {})
        )

    waits = []
    expected = run(*models())
    with torch.no_grad(), gpu() as device:
        waits = device.waits
        rollout = run(*(model.to("cuda") for model in models()))
        waits = why(waits)
        assert rollout.tokens.held.tolist() == expected.tokens.tolist()
    if rollout.blocks:
        assert waits == ["tolist"] * len(rollout.blocks)
    else:  # every eight steps: who is done?
        assert waits.count("tolist") == len(waits) - 1 <= 2 and waits[-1] == "_local_scalar_dense"
    assert not device.unpinned, f"pin what is copied while the host goes on: {device.unpinned}"


def test_attention_gets_aligned_rows(monkeypatch):
    """CUDA's attention copies a bias whose width is no multiple of 16, twice per layer: it gets none. (That the tokens
    are those of a CPU is tested above.)"""
    widths, attention = [], torch.nn.functional.scaled_dot_product_attention

    def watched(*arguments, attn_mask=None, **keywords):
        widths.append(None if attn_mask is None else attn_mask.size(-1))
        return attention(*arguments, attn_mask=attn_mask, **keywords)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", watched)
    with gpu(), torch.no_grad():
        student, teacher = (model.to("cuda") for model in models())
        sample.interleaved_generate(student, teacher, PROMPTS, 18, accept_top_k=3, generator=generator(3))
    assert set(widths) == {16, 32}


@matrix("layers", [(1, 2), (2, 2), (4, 6)], [(2, 2)])
def test_the_block_length_counts_launches(layers, monkeypatch):
    """What a block costs beside its drafting steps, in units of one of them: counted, and as the sampler takes it."""
    attention, write, drafts = torch.nn.functional.scaled_dot_product_attention, sample.draft, []

    def one_kernel(*arguments, **keywords):
        before = device.launches
        out = attention(*arguments, **keywords)
        device.launches = before + 1
        return out

    def drafting(*arguments, **keywords):
        before = device.launches
        block = write(*arguments, **keywords)
        drafts.append((before, device.launches, block.proposed.size(1)))
        return block

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", one_kernel)
    monkeypatch.setattr(sample, "draft", drafting)
    with gpu() as device, torch.no_grad():
        student, teacher = (adapters.make_gpt(9, 40, depth, 2, 8, seed=depth).to("cuda") for depth in layers)
        sample.interleaved_generate(student, teacher, PROMPTS, 16, accept_top_k=3, generator=generator(3))
        guess = sample._call_cost(student, teacher)
    a_step = sum((after - before) / length for before, after, length in drafts) / len(drafts)
    rest = sum(following[0] - after for (_, after, _), following in zip(drafts, drafts[1:])) / (len(drafts) - 1)
    assert guess == pytest.approx(rest / a_step, rel=0.15), f"count anew: {rest:.0f} launches, a step {a_step:.0f}"


# ---------------------------------------------------------------------------------------------------------------------
# The training steps.


class Enough(Exception):
    """Three steps show what all do."""


@pytest.fixture
def on_device(pair, monkeypatch):  # noqa: F811
    """(script, variant, flags) -> what the host waited for per step, [(while writing, while learning)], rollouts, and
    the device."""

    def run(script, variant, *argv):
        args = script.parse_flags(
            [*"--device cpu --steps 24 --batch-size 4 --accept-top-k 60 --log-every 100".split(), *argv]
        )[0]
        args.chunk_loss = "no" if args.chunk_loss == "auto" else args.chunk_loss
        clock, cut, write = training.Clock, training.cuts, training.write_tokens
        begins, learns, rollouts = [], [], []

        def begin(*arguments, **keywords):
            begins.append(len(device.waits))
            return clock(*arguments, **keywords)

        def stop(*arguments, **keywords):
            if begins:
                begins.append(len(device.waits))  # the end of the last one
                raise Enough
            return {"drift": 0.0, "val_nll": 0.0}

        def cuts(*arguments):
            if len(learns) < len(begins):  # the held-out batch of a meta-gradient is cut as well
                learns.append(len(device.waits))
            return cut(*arguments)

        def written(*arguments, **keywords):
            rollouts.append(write(*arguments, **keywords))
            return rollouts[-1]

        monkeypatch.setattr(training, "Clock", begin)
        for module in (training, train_okd):
            monkeypatch.setattr(module, "cuts", cuts)
        monkeypatch.setattr(training, "write_tokens", written)
        monkeypatch.setattr(training.Run, "evaluation", stop)
        with gpu() as device:
            there = dataclasses.replace(pair, teacher=copy.deepcopy(pair.teacher).to("cuda"))
            device.unpinned.clear()
            with pytest.raises(Enough):
                distilled(script, script.VARIANTS[variant], there.new_student(), there, args)
        waits = [(why(device.waits[a:b]), why(device.waits[b:c])) for a, b, c in zip(begins, learns, begins[1:])]
        return waits, rollouts, device

    return run


CASES = [
    *((train_skd, variant) for variant in train_skd.VARIANTS),
    *((train_okd, variant) for variant in train_okd.VARIANTS),
    (train_skd, "supervised", "--chunk-loss", "yes"),
    (train_skd, "skd", "--chunk-loss", "yes", "--micro-batch", "3", "--recompute"),
    (train_skd, "sft", "--reduction", "sequence"),
    (train_okd, "okd", "--chunk-loss", "yes", "--micro-batch", "3", "--recompute"),
    *((script, name, "--precision", "bf16") for script, name in ((train_skd, "skd"), (train_okd, "okd"))),
    (train_skd, "supervised", "--cache-teacher", "3"),
]
# Of okd's rows those whose writers are not among skd's.
OKD_FAST = [name for name in OKD_KINDS if train_okd.VARIANTS[name].writer in ("dataset", "teacher_mixed")]
FAST_CASES = [*((train_skd, name) for name in SKD_KINDS), *((train_okd, name) for name in OKD_FAST)]
FAST_CASES += [CASES[-4], *CASES[-2:]]


@matrix("case", CASES, fast=FAST_CASES, ids=lambda case: " ".join([case[0].__name__, *case[1:]]))
def test_training_steps_stay_on_the_device(on_device, case):
    """Between two logged steps the host waits for nothing but the samplers: once per block, or every eight tokens."""
    steps, rollouts, device = on_device(*case)
    assert not device.unpinned, f"pin what is copied while the host goes on: {device.unpinned}"
    # The first step is logged. What is seen of takd is its first link, which is three times as long.
    assert len(steps) == (9 if case[1] == "takd" else 3) and len(steps[0][1]) > 2
    assert all(learning == [] for _, learning in steps[1:]), steps
    assert "synchronize" in steps[0][0] + steps[0][1]  # its clock waits at each mark
    steps = [([one for one in writing if one != "synchronize"], learning) for writing, learning in steps]
    row = case[0].VARIANTS[case[1]]
    if row.writer == "interleaved":
        assert [len(writing) for writing, _ in steps] == [len(rollout.blocks) for rollout in rollouts]
    tokens = 15  # at most, per response of this pair
    most = tokens if row.writer == "interleaved" else 2 + tokens // 8
    # A batch of both kinds is put together on the host: tokens and lengths.
    most += 3 * (row.writer == "mixed" and row.mix_per == "sequence")
    most += 3 * (getattr(row, "method", None) in ("scored", "sibling"))  # responses are scored on the host
    assert all(len(writing) <= most for writing, _ in steps)
    # at the start of a run; of mopd the first specialist is seen
    asleep = row.writer in ("dataset", "teacher") or case[1] in ("two_stage", "distillm", "mopd")
    assert any(writing for writing, _ in steps) != asleep
