"""What the course consists of: the table of exercises, and the inputs that their laws are tried on.

Inputs come from Python's own random numbers, seeded by the salt, the exercise and the law: another salt makes other
inputs of the same kind, and one salt makes the same ones on every machine and with every torch.
"""

import importlib.util
import json
import random
import sys
from pathlib import Path
from typing import NamedTuple

import torch

from model import GPT, GPTConfig

HERE = Path(__file__).parent
ROOT = HERE.parent
VISIBLE = "visible"  # the salt that students use
STORED = HERE / "stored.json"  # in a handout: what the references return for the visible inputs


class Exercise(NamedTuple):
    """One row of the course."""

    number: int
    name: str
    kind: str  # "build", "fault" or "experiment"
    points: int
    minutes: int  # a guess of the median
    functions: tuple  # that the student writes in answers.py
    seconds: int = 60  # the time limit of its grading, on an idle machine a twentieth of it


BUILD = (
    Exercise(1, "masked mean", "build", 4, 20, ("masked_mean",)),
    Exercise(2, "forward and reverse KL", "build", 5, 30, ("kl", "forward_kl", "reverse_kl")),
    Exercise(3, "generalized JSD", "build", 5, 30, ("generalized_jsd",)),
    Exercise(4, "temperature, top-k and top-p", "build", 5, 40, ("warp",)),
    Exercise(5, "one draw from one number", "build", 4, 20, ("inverse_cdf",)),
    Exercise(6, "rank and acceptance", "build", 4, 20, ("rank", "accepted_by_topk")),
    Exercise(7, "interleaved sampling", "build", 8, 60, ("interleaved",)),
    Exercise(8, "one block", "build", 8, 60, ("countable", "verify", "commit")),
    Exercise(9, "in blocks, with caches", "build", 12, 150, ("interleaved_in_blocks",)),
    Exercise(10, "lossless speculative decoding", "build", 6, 45, ("speculative_stays", "residual")),
    Exercise(11, "the on-policy step", "build", 8, 60, ("on_policy_step",)),
    Exercise(12, "the SKD step", "build", 6, 30, ("skd_step",)),
    Exercise(13, "sparse targets with a tail", "build", 5, 40, ("with_tail", "sparse_forward_kl")),
    Exercise(14, "LoRA on q and v", "build", 5, 30, ("lora_qkv",)),
    Exercise(15, "OKD's two losses", "build", 7, 45, ("okd_losses",)),
    Exercise(16, "block length by acceptance", "build", 3, 20, ("best_gamma",)),
    Exercise(17, "paired Student-t interval", "build", 5, 40, ("student_t_interval", "paired_interval")),
)
FAULTS = (
    Exercise(18, "mask from token ids", "fault", 3, 30, ("test_mask_from_ids",)),
    Exercise(19, "the mean over V", "fault", 3, 20, ("test_mean_over_v",)),
    Exercise(20, "the direction swapped", "fault", 3, 20, ("test_direction",)),
    Exercise(21, "a second draw judged", "fault", 4, 45, ("test_second_draw",)),
    Exercise(22, "the teacher off by one", "fault", 4, 40, ("test_teacher_off_by_one",)),
    Exercise(23, "no gradient on average", "fault", 5, 60, ("test_zero_gradient",)),
    Exercise(24, "top-k of the wrong model", "fault", 3, 30, ("test_wrong_top_k",)),
    Exercise(25, "the end token masked", "fault", 3, 20, ("test_end_token_masked",)),
    Exercise(26, "a draw seeded again", "fault", 3, 30, ("test_reseeded",)),
)
EXPERIMENTS = (
    Exercise(27, "seeking and covering modes", "experiment", 4, 30, ("explain_modes",)),
    Exercise(28, "K from 1 to V", "experiment", 4, 30, ("explain_accept_top_k",)),
    Exercise(29, "targets without a choice", "experiment", 4, 40, ("explain_deterministic_targets",)),
    Exercise(30, "exposure bias", "experiment", 4, 30, ("explain_exposure_bias",)),
    Exercise(31, "measured against a moving teacher", "experiment", 4, 30, ("explain_moving_teacher",)),
    Exercise(32, "collapse at alpha 1", "experiment", 4, 30, ("explain_collapse",)),
    Exercise(33, "does feedback help?", "experiment", 5, 45, ("explain_feedback",)),
)
# In a first handout the later pages are missing, and with them their exercises.
EXERCISES = tuple(row for row in BUILD + FAULTS + EXPERIMENTS if any(HERE.glob(f"{row.number:02}_*.md")))


def exercise(number):
    """The row of a number; ValueError for one that there is none of."""
    found = {row.number: row for row in EXERCISES}
    if number not in found:
        raise ValueError(f"no exercise {number}: the course has 1 to {max(found)}")
    return found[number]


class Broken(Exception):
    """A law that does not hold; the text says for which input, never what would be right."""


def module_from(path, name):
    """Import a file under a name."""
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def is_unwritten(error):
    """Whether an exception is a stub's NotImplementedError, not torch's about a type that a function does not take."""
    return isinstance(error, NotImplementedError) and (not str(error) or "exercise" in str(error))


class Law(NamedTuple):
    """One thing that must hold. `check` takes the student's code and Made, and raises Broken."""

    name: str
    says: str
    essential: bool  # without it the exercise is worth nothing: it is the definition itself
    check: object


def described(value):
    """A value as the short text of a message: a tensor by its shape, anything else in full, cut at 60 characters."""
    if isinstance(value, torch.Tensor) and value.dim():
        return f"{str(value.dtype).removeprefix('torch.')} {tuple(value.shape)}"
    text = repr(value.item() if isinstance(value, torch.Tensor) else value)
    return text if len(text) <= 60 else f"{text[:57]}..."


class Made:
    """Inputs of one law, and what the reference returns for them."""

    def __init__(self, salt, law, oracle):
        self.random = random.Random(f"{salt}/{law}")
        self.oracle = oracle

    def normal(self, *shape, spread=1.0):
        """A float32 tensor of N(0, spread^2)."""
        numbers = [self.random.gauss(0.0, spread) for _ in range(torch.Size(shape).numel())]
        return torch.tensor(numbers).view(shape)

    def logits(self, *shape, spread=2.0):
        """Logits of a model that is neither sure nor ignorant."""
        return self.normal(*shape, spread=spread)

    def uniform(self, *shape):
        """A float32 tensor of numbers in (0, 1)."""
        numbers = [self.random.uniform(0.001, 0.999) for _ in range(torch.Size(shape).numel())]
        return torch.tensor(numbers).view(shape)

    def tokens(self, vocab_size, *shape):
        """A long tensor of ids below vocab_size."""
        numbers = [self.random.randrange(vocab_size) for _ in range(torch.Size(shape).numel())]
        return torch.tensor(numbers).view(shape)

    def mask(self, B, T):
        """(B, T) bool: runs of True, no two of one length, none empty, none at the start; one of them ends at T."""
        lengths = self.random.sample(range(1, T - 1), B)
        starts = [self.random.randint(1, T - 1 - length) for length in lengths]
        starts[-1] = T - lengths[-1]
        slots = torch.arange(T)
        start, length = torch.tensor(starts)[:, None], torch.tensor(lengths)[:, None]
        return (slots >= start) & (slots < start + length)

    def gpt(self, vocab_size=11, width=8, block_size=24, n_layer=1):
        """A GPT whose rows are far from uniform, so that two of them disagree clearly."""
        model = GPT(GPTConfig(vocab_size, block_size, n_layer, 2, width)).eval()
        with torch.no_grad():
            for weight in model.parameters():
                if weight.dim() > 1:
                    weight.copy_(self.normal(*weight.shape, spread=0.5))
        return model

    def noise(self):
        """noise(*key): a number in (0, 1) that belongs to the key, in whatever order it is asked for."""
        name = self.random.random()
        return lambda *key: random.Random(f"{name}/{key}").uniform(0.001, 0.999)

    def expected(self, function, *arguments, **keywords):
        """What the reference's function of that name returns."""
        return self.outcome(lambda code: getattr(code, function)(*arguments, **keywords))

    def outcome(self, run):
        """run(code) with the references in the place of the student's code."""
        return self.oracle(run)


def check(holds, about):
    """Broken(about) unless it holds."""
    if not holds:
        raise Broken(about)


def same(found, expected, about, tolerance=1e-5):
    """Broken unless `found` is a tensor, or numbers, of the shape and values of `expected`. Says neither."""
    expected = torch.as_tensor(expected)
    if not isinstance(found, torch.Tensor):
        try:
            found = torch.tensor(found)
        except (TypeError, ValueError, RuntimeError):
            raise Broken(f"{about}: found {described(found)}, a tensor is wanted") from None
    found = found.detach()
    check(found.shape == expected.shape, f"{about}: found the shape {tuple(found.shape)}, which is another one")
    if expected.is_floating_point():
        found, expected = found.double(), expected.double()
        check(bool(found.isfinite().all()), f"{about}: found nan or infinity")
        limit = tolerance * (1 + expected.abs())
        check(bool(((found - expected).abs() <= limit).all()), about)
    else:
        check(bool((found == expected).all()), about)


# ---------------------------------------------------------------------------------------------------------------------
# Where the right values come from.


def plain(value):
    """A result as JSON can hold it: tensors as lists, tuples as lists."""
    if isinstance(value, torch.Tensor):
        return value.detach().tolist()
    return [plain(item) for item in value] if isinstance(value, tuple | list) else value


def as_values(value):
    """The inverse of `plain` where it matters: lists of numbers become tensors, others stay lists."""
    if isinstance(value, list):
        try:
            return torch.tensor(value)
        except (TypeError, ValueError, RuntimeError):
            return [as_values(item) for item in value]
    return value


class Reference:
    """An oracle that asks the reference solutions."""

    def __init__(self, solutions):
        self.solutions, self.returned = solutions, []

    def __call__(self, run):
        value = plain(run(self.solutions))
        self.returned.append(value)
        return as_values(value)


class Stored:
    """An oracle that reads what the references returned in the same order when the handout was made."""

    def __init__(self, law):
        self.left = list(json.loads(STORED.read_text(encoding="utf-8"))[law])

    def __call__(self, run):
        return as_values(self.left.pop(0))
