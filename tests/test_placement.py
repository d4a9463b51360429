"""What a GPU would punish, checked on a CPU: tensors on the wrong device, and questions that make the host wait.

A `Placed` tensor says that its device is "meta" and holds real CPU data. Under the `Device` mode every operation works
on the data; one that mixes a placed tensor with a plain CPU tensor fails as it would between a GPU and its host, and
whatever needs an answer from the device (item, bool, tolist, a mask as an index) is counted. This proves where things
are and when the host waits, not kernels and not numerics.
"""

import contextlib
import copy
import dataclasses
import itertools

import adapters
import pytest
import torch
from tiny import OKD_KINDS, SKD_KINDS, distilled, matrix, pair  # noqa: F401  (a fixture)
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

import sample
import train_okd
import train_skd
from lab import training
from lab.costs import Meter
from model import OnlineTeacher

META = torch.device("meta")
ANSWERS = {"_local_scalar_dense", "equal", "nonzero", "masked_select", "unique_dim", "_unique2", "is_nonzero"}
current = None  # the Device that is at work


class Placed(torch.Tensor):
    """A tensor that lies on the pretended device; `held` is its data."""

    @staticmethod
    def __new__(cls, held, requires_grad=False):
        return torch.Tensor._make_wrapper_subclass(
            cls, held.shape, strides=held.stride(), dtype=held.dtype, device=META, requires_grad=requires_grad
        )

    def __init__(self, held, requires_grad=False):
        self.held = held

    def __repr__(self):
        return f"Placed({self.held})"

    def tolist(self):
        current.wait("tolist")
        return self.held.tolist()

    def numpy(self):
        raise AssertionError("a tensor on a device has no numpy()")

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        assert current is not None, f"{func} outside of the mode"
        return current.run(func, args, kwargs or {})


class Device(TorchDispatchMode):
    """Every operation inside is carried out on real data, and judged."""

    def __init__(self):
        super().__init__()
        self.waits = []

    def __enter__(self):
        global current
        current = self
        return super().__enter__()

    def __exit__(self, *error):
        global current
        current = None
        return super().__exit__(*error)

    def wait(self, why):
        self.waits.append(why)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return self.run(func, args, kwargs or {})

    def run(self, func, args, kwargs):
        name = func.overloadpacket.__name__
        flat = tree_flatten((args, kwargs))[0]
        placed = any(isinstance(x, Placed) for x in flat)
        plain = [x for x in flat if isinstance(x, torch.Tensor) and not isinstance(x, Placed) and x.dim() > 0]
        there = kwargs.get("device") == META
        moves = name in ("_to_copy", "copy_")
        assert moves or not (placed and plain), f"{name} mixes devices: a plain tensor {tuple(plain[0].shape)}"
        if placed and kwargs.get("generator") is not None:
            raise AssertionError(f"{name} draws on the device from a generator of the host")
        home = name == "_to_copy" and kwargs.get("device") is not None and not there
        if placed and (name in ANSWERS or home or (name == "copy_" and not isinstance(args[0], Placed))):
            self.wait(name)
        if placed and name in ("index", "index_put", "index_put_", "_index_put_impl_"):
            for index in args[1]:
                if index is not None and index.dtype in (torch.bool, torch.uint8):
                    self.wait(f"{name} by a mask")
        real_args, real_kwargs = tree_map(lambda x: x.held if isinstance(x, Placed) else x, (args, kwargs))
        if there:
            real_kwargs = real_kwargs | {"device": torch.device("cpu")}
        out = func(*real_args, **real_kwargs)
        if func._schema.is_mutable and name.endswith("_"):
            return args[0]
        if home or not (placed or there):
            return out
        return tree_map(lambda x: Placed(x) if isinstance(x, torch.Tensor) else x, out)


def place(model):
    """The model with its weights on the pretended device."""
    for module in model.modules():
        for name, weight in list(module.named_parameters(recurse=False)):
            if not isinstance(weight, Placed):
                module._parameters[name] = torch.nn.Parameter(Placed(weight.detach().clone()), weight.requires_grad)
    return model


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def models(vocab_size=9, block_size=24):
    return [adapters.make_gpt(vocab_size, block_size, layers, 2, 8, seed=layers) for layers in (1, 2)]


@pytest.fixture(autouse=True)
def no_autocast(monkeypatch):
    """torch knows no autocast for the pretended kind of device."""
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda kind: False)
    monkeypatch.setattr(torch, "autocast", lambda *arguments, **keywords: contextlib.nullcontext())


PROMPTS = [[1, 2, 3], [4], [5, 6], [1, 1, 1, 1]]


# ---------------------------------------------------------------------------------------------------------------------
# The check itself.


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


@pytest.mark.parametrize("mistake", [planted_mix, planted_index, planted_factory, planted_generator, planted_cat])
def test_mistakes_are_caught(mistake):
    """A plain tensor in an operation, as an index, in a choice; a host's generator on the device."""
    with pytest.raises((AssertionError, RuntimeError)), Device():
        mistake(Placed(torch.arange(3.0)))


def test_waiting_is_counted():
    """item, bool, tolist, cpu and a mask as an index make the host wait; arithmetic and plain indices do not."""
    with Device() as device:
        x = Placed(torch.arange(3.0))
        y = (x + 1).sum() * x[Placed(torch.tensor([0, 2]))].mean() + torch.arange(3, device=x.device)
        assert device.waits == [] and y.device == META and x.held.tolist() == [0, 1, 2]
        y.sum().item(), bool((y > 0).all()), y.tolist(), y.cpu(), y[y > 0]
    assert len(device.waits) == 5


# ---------------------------------------------------------------------------------------------------------------------
# The samplers.


SAMPLERS = ["generate", "interleaved", "fresh", "warped", "control", "speculative", "mixture"]
ADAPTED = [(name, True) for name in ("generate", "interleaved", "mixture")]  # one of each loop


FAST_SAMPLERS = [*((name, False) for name in SAMPLERS), *ADAPTED]


@matrix("sampler, adapted", itertools.product(SAMPLERS, (False, True)), fast=FAST_SAMPLERS)
def test_samplers_stay_on_the_device(sampler, adapted):
    """The same tokens as on the host, nothing on the wrong side, and one wait per block."""

    def run(student, teacher):
        if adapted:
            teacher = OnlineTeacher(teacher, "lora", 2)
            if student.token_embedding.weight.device == META:
                place(teacher.module)
        options = {"generator": generator(3), "eos_token": 0}
        if sampler == "generate":
            return sample.generate(teacher, PROMPTS, 12, temperature=0.9, top_p=0.9, **options)
        if sampler == "mixture":
            return sample.generate(sample.Mixture(teacher, student, 0.3), PROMPTS, 12, **options)
        if sampler == "speculative":
            return sample.speculative_generate(student, teacher, PROMPTS, 12, **options)
        switches = {"fresh": {"judge_fresh": True}, "warped": {"accept_on": "warped"}, "control": {"write_back": False}}
        return sample.interleaved_generate(
            student, teacher, PROMPTS, 12, accept_top_k=3, **options, **switches.get(sampler, {})
        )

    expected, ours = run(*models()), models()
    with torch.no_grad(), Device() as device:
        rollout = run(*map(place, ours))
        waits = list(device.waits)
        assert rollout.tokens.held.tolist() == expected.tokens.tolist()
    if rollout.blocks:
        assert waits == ["tolist"] * len(rollout.blocks)
    else:  # every eight steps: who is done?
        assert waits.count("tolist") == len(waits) - 1 <= 2 and waits[-1] == "_local_scalar_dense"


# ---------------------------------------------------------------------------------------------------------------------
# The training steps.


class Enough(Exception):
    """Three steps show what all do."""


@pytest.fixture
def on_device(pair, monkeypatch):  # noqa: F811
    """(script, variant, flags) -> what the host waited for per step, [(while writing, while learning)],
    and rollouts."""

    def run(script, variant, *argv):
        args = script.parse_flags(
            [*"--device cpu --steps 24 --batch-size 4 --accept-top-k 60 --log-every 100".split(), *argv]
        )[0]
        args.chunk_loss = "no" if args.chunk_loss == "auto" else args.chunk_loss
        attach, clock, cut, write = OnlineTeacher.__init__, training.Clock, training.cuts, training.write_tokens
        begins, learns, rollouts = [], [], []

        def begin(*arguments, **keywords):
            begins.append(len(device.waits))
            return clock(*arguments, **keywords)

        def stop(*arguments, **keywords):
            if begins:
                raise Enough
            return {"drift": 0.0, "val_nll": 0.0}

        def attach_there(self, *arguments, **keywords):
            attach(self, *arguments, **keywords)
            place(self.module)

        monkeypatch.setattr(OnlineTeacher, "__init__", attach_there)
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
        monkeypatch.setattr(Meter, "__enter__", lambda self: None)  # it asks for addresses, which nothing here has
        monkeypatch.setattr(Meter, "__exit__", lambda self, *error: None)
        teacher, student = copy.deepcopy(pair.teacher), pair.new_student()
        with Device() as device:
            student, there = place(student), dataclasses.replace(pair, teacher=place(teacher))
            with pytest.raises(Enough):
                distilled(script, script.VARIANTS[variant], student, there, args)
            waits = list(device.waits)
        ends = [*begins[1:], len(waits)]
        return [(waits[a:b], waits[b:c]) for a, b, c in zip(begins, learns, ends)], rollouts

    return run


CASES = [
    *((train_skd, variant) for variant in train_skd.VARIANTS),
    *((train_okd, variant) for variant in train_okd.VARIANTS),
    (train_skd, "supervised", "--chunk-loss", "yes"),
    (train_skd, "skd", "--chunk-loss", "yes", "--micro-batch", "3", "--recompute"),
    (train_skd, "sft", "--reduction", "sequence"),
    (train_okd, "okd", "--chunk-loss", "yes", "--micro-batch", "3", "--recompute"),
]
# Of okd's rows those whose writers are not among skd's.
OKD_FAST = [name for name in OKD_KINDS if train_okd.VARIANTS[name].writer in ("dataset", "teacher_mixed")]
FAST_CASES = [*((train_skd, name) for name in SKD_KINDS), *((train_okd, name) for name in OKD_FAST), CASES[-1]]


# The branch of sftn is on torch's own meta device.
@pytest.mark.filterwarnings("ignore:for .* copying from a non-meta parameter")
@matrix("case", CASES, fast=FAST_CASES, ids=lambda case: " ".join([case[0].__name__, *case[1:]]))
def test_training_steps_stay_on_the_device(on_device, case):
    """Between two logged steps the host waits for nothing but the samplers: once per block, or every eight tokens."""
    steps, rollouts = on_device(*case)
    # The first step is logged. What is seen of takd is its first link, which is three times as long.
    assert len(steps) == (9 if case[1] == "takd" else 3) and len(steps[0][1]) > 2
    assert all(learning == [] for _, learning in steps[1:])
    row = case[0].VARIANTS[case[1]]
    if row.writer == "interleaved":
        assert [len(writing) for writing, _ in steps] == [len(rollout.blocks) for rollout in rollouts]
    tokens = 15  # at most, per response of this pair
    most = tokens if row.writer == "interleaved" else 2 + tokens // 8
    # A batch of both kinds is put together on the host: tokens and lengths.
    most += 3 * (row.writer == "mixed" and row.mix_per == "sequence")
    assert all(len(writing) <= most for writing, _ in steps)
    asleep = row.writer in ("dataset", "teacher") or case[1] in ("two_stage", "distillm")  # at the start of a run
    assert any(writing for writing, _ in steps) != asleep
