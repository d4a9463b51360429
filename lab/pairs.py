"""The shared starting point of both scripts: a task, its tokenizer, a pretrained teacher and a student to be distilled.

    task text -> tokenizer -> teacher: trained on the references of all its prompts, long
                           -> student: "sft", a short supervised start on its own (fewer) prompts, or
                                       "raw", a language model of the task's texts that never saw a prompt answered

A pair is an input of an experiment, like a data file: every method, every seed and both scripts start from the same
weights, so it is cached under a hash of everything that matters (text, shapes, steps, seed, and the syntax tree of
every function that pretraining runs through). What is distilled afterwards uses the student's prompts alone.
"""

import ast
import hashlib
import inspect
import json
import textwrap
import time
from dataclasses import dataclass, field
from pathlib import Path

import torch

from data import progress
from data.tasks import FAMILIES, HINTS, Encoded, encode_split, hint_ids, hinted_prompts
from data.tokenizer import train_tokenizer
from lab import checkpoints, folders, processes
from lab.evaluate import MOST_IN_CURVES
from lab.records import set_aside
from lab.training import batch_order
from losses import at_least_float32, cross_entropy, forward_kl, masked_mean, weight_of
from model import (
    GPT,
    Attention,
    Block,
    GPTConfig,
    clip_and_step,
    learning_rate,
    load_checkpoint,
    make_optimizer,
    save_checkpoint,
    weights_hash,
)
from sample import DATASET, Rollout, pad_sequences, rollout_from_ids

CACHE_DIR = folders.ROOT / "data" / "cache" / "pairs"  # git-ignored
LONGEST = 16_384  # tokens of a block that --block-size did not ask for: one giant line would make all models as long


@dataclass(frozen=True)
class PairSettings:
    """Everything that decides the pair's weights, beside the task's text. Shapes are (n_layer, n_head, n_embd)."""

    teacher_shape: tuple = (2, 2, 64)
    student_shape: tuple = (2, 2, 32)
    teacher_steps: int = 2000
    start_steps: int = 1000
    teacher_prompts: int | None = None  # None: the whole train split
    student_prompts: int | None = 400
    student_start: str = "sft"  # or "raw"
    hint_share: float | None = None  # of the rows that are pretrained on, those whose prompt follows a hint
    vocab_size: int = 512  # upper bound: the tokenizer stops when no pair of tokens occurs twice
    block_size: int | None = None  # None: as long as the longest example asks for
    max_new_tokens: int | None = None  # of a response that is learned or written; None: see default_budget
    batch_size: int = 64
    teacher_lr: float = 3e-3
    start_lr: float = 1e-2
    seed: int = 1


# One dial for both models, their learning rates and the lengths of the runs: --size NAME. `steps` and `lr` are the
# distillation's. "tiny" was tuned on the math task (docs/data.md), the others follow its widths and depths.
# fmt: off
SIZES = {
    "tiny": {"teacher_shape": (2, 2, 64), "student_shape": (2, 2, 32), "steps": 400, "lr": 2e-2},
    "small": {"teacher_shape": (4, 4, 128), "student_shape": (2, 2, 64), "steps": 1000, "lr": 3e-3,
              "teacher_steps": 4000, "start_steps": 600, "vocab_size": 2048, "teacher_lr": 2e-3, "start_lr": 3e-3},
    "base": {"teacher_shape": (6, 6, 384), "student_shape": (4, 4, 128), "steps": 4000, "lr": 1e-3,
             "teacher_steps": 10000, "start_steps": 1000, "vocab_size": 4096, "teacher_lr": 6e-4, "start_lr": 2e-3},
    "large": {"teacher_shape": (12, 12, 768), "student_shape": (6, 6, 384), "steps": 10000, "lr": 5e-4,
              "teacher_steps": 30000, "start_steps": 2000, "vocab_size": 8192, "teacher_lr": 3e-4, "start_lr": 6e-4},
}
# fmt: on


# The smoke run of both scripts and of sample.py: short chains, few prompts, seconds in place of minutes.
QUICK = PairSettings(teacher_steps=400, start_steps=200, student_prompts=200)
QUICK_TASK = {"difficulty": 2, "train_examples": 1500, "val_examples": 20, "test_examples": 30, "ood_examples": 20}


@dataclass
class Pair:
    """What a script starts from. `train` holds the student's prompts, which all distillation methods share."""

    task: object
    tokenizer: object
    teacher: GPT
    student_config: GPTConfig
    student_weights: dict  # the common start, on the host; new_student() copies it
    train: Encoded
    val: Encoded
    test: Encoded
    ood: Encoded
    max_new_tokens: int
    fingerprint: str  # of both models' weights
    pretraining_seconds: dict = field(default_factory=dict)  # by model, of the run that made it; None where unknown
    hinted: dict = field(default_factory=dict)  # kind of hint -> train's prompts after it, where the pair has seen some

    def new_student(self):
        """A fresh copy of the starting student, on the teacher's device, ready to train."""
        student = GPT(self.student_config)
        student.load_state_dict(self.student_weights)
        return student.to(next(self.teacher.parameters()).device)


def require_hints(task, examples):
    """ValueError for a task that says nothing beforehand of any of these examples."""
    if not any(task.hint(example) for example in examples):
        raise ValueError(
            f"--hint-share: task {task.name} has no hints; leave it out, take one of {', '.join(FAMILIES)}, or give "
            "your own data (--task jsonl) a 'hint' beside prompt and response"
        )


def longest_hint(tokenizer, task, examples):
    """Tokens of the longest hint that any of these examples can give."""
    return max(len(hint_ids(tokenizer, task, one, one, kind)) for one in examples for kind in HINTS)


def with_hints(tokenizer, task, split, share):
    """(prompts, responses) of an Encoded and, behind them, as many copies that follow a hint, a solution or a
    demonstration in turn, that they are `share` of all rows. 400 rows at share .2: 100 copies more."""
    if not share:
        return split.prompts, split.responses
    size = len(split.prompts)
    kinds = [hinted_prompts(tokenizer, task, split, kind) for kind in ("solution", "demonstration")]
    copies = range(round(share / (1 - share) * size))
    return (
        split.prompts + [kinds[(row + row // size) % 2][row % size] for row in copies],
        split.responses + [split.responses[row % size] for row in copies],
    )


def pretrain(model, prompts, responses, num_steps, batch_size, peak_lr, generator, report, checkpointer=None):
    """Plain cross-entropy on the responses, AdamW, cosine, gradient norm clipped at 1. The model is trained in
    place."""
    checkpointer = checkpointer or checkpoints.Checkpointer()
    device = next(model.parameters()).device
    optimizer = make_optimizer(model, peak_lr)
    order = batch_order(len(prompts), batch_size, num_steps, generator)
    done = checkpointer.restore(model=model, optimizer=optimizer)
    model.train()
    for step, rows in enumerate(progress.progress(order[done:].tolist(), "pretraining"), done):
        batch = rollout_from_ids(
            [prompts[i] for i in rows], [responses[i] for i in rows], [DATASET] * len(rows), device
        )
        per_token = cross_entropy(model(batch.tokens[:, :-1]), batch.tokens[:, 1:])  # (B, T-1)
        loss = masked_mean(per_token, batch.response_mask[:, 1:])
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, num_steps, peak_lr)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if (step + 1) % max(1, num_steps // 5) == 0:
            figure = loss.item()
            if figure != figure:
                raise ValueError(f"pretraining became nan before step {step + 1}: lower the learning rate ({peak_lr})")
            report(f"  step {step + 1:>5}/{num_steps}  loss {figure:.4f}")
        if checkpointer.due(step + 1, step + 1 == num_steps):
            checkpointer.save(step + 1)
    return model.eval()


def warm_up(pair, batch_size):
    """On CUDA one training step that nobody counts: a kernel is loaded when it is first called, and that is no time of
    the method that happens to call it."""
    device = next(pair.teacher.parameters()).device
    if device.type != "cuda":
        return
    prompts, responses = pair.train.prompts[:batch_size], pair.train.responses[:batch_size]
    batch, student = rollout_from_ids(prompts, responses, [DATASET] * len(prompts), device), pair.new_student()
    inputs, mask = batch.tokens[:, :-1], batch.response_mask[:, 1:]
    masked_mean(forward_kl(student(inputs), pair.teacher(inputs)), mask).backward()
    clip_and_step(student, make_optimizer(student, 1e-3), 1e-3)


# The code that decides a pair's weights: change any of it, and pairs are pretrained anew.
PRETRAINING = (
    *(GPTConfig, Attention, Block, GPT, learning_rate, make_optimizer),
    *(at_least_float32, cross_entropy, weight_of, masked_mean, pad_sequences, rollout_from_ids, Rollout, batch_order,
      pretrain),
)


def syntax_trees(parts):
    """The syntax trees of functions and classes as texts, without docstrings and without types of arguments.

    Comments and line breaks are in no tree. Another Python may write a tree otherwise: pairs are then pretrained anew.
    """
    return [ast.dump(_bare(ast.parse(textwrap.dedent(inspect.getsource(part))))) for part in parts]


def _bare(tree):
    """A syntax tree, changed in place: no docstring of a class or function, no type of an argument or result."""
    for node in ast.walk(tree):
        documented = isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        if documented and ast.get_docstring(node, clean=False) is not None:
            del node.body[0]
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            node.returns = None
        elif isinstance(node, ast.arg):
            node.annotation = None
    return tree


SYNTAX_TREES = syntax_trees(PRETRAINING)  # as they run: the files may be edited while a program runs


def _hash(*parts):
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()


def _cached(name, candidates, device, build, tokenizer_state, report):
    """The model `name` from the first folder that holds it whole; if none does, build(path without suffix) makes it,
    and it is saved in the first folder that may be written to.

    Of several processes that want it at the same time one builds, and the others wait. What an interrupted one has left
    is resumed. -> (model, seconds that its building took: of the last process, if it was interrupted)
    """

    def load(mend):
        for path in (Path(folder) / name for folder in candidates):
            if path.exists():
                try:
                    model, content = load_checkpoint(str(path), device)
                    if content.get("name", name) != name:
                        raise ValueError(f"{path} is {content['name']} under another name")
                    return model, content.get("seconds")
                except PermissionError:  # another user's, and perhaps whole: it stays, and one is made elsewhere
                    closed.add(path.parent)
                except ValueError as error:
                    if not mend:  # nobody moves a file that another process may have made anew
                        continue
                    aside = "nothing (read-only)" if folders.write_error(path.parent) else set_aside(path).name
                    report(f"  {error}; set aside as {aside}, building it again")
        return None

    closed = set()
    found = load(mend=False)
    if found is None:
        places = [Path(folder) for folder in candidates if Path(folder) not in closed]
        if not places:
            raise PermissionError(f"{candidates[0]}/{name} may not be read: ask its owner, or take another checkout")
        folder = next((place for place in places if not folders.write_error(place)), places[0])
        if closed:
            report(f"{', '.join(sorted(place.name for place in closed))}/{name} may not be read: it is left as it is")
        elif folder != Path(candidates[0]):
            report(f"{candidates[0]} is read-only: models are kept in {folder}")
        path, stem = folder / name, (folder / name).with_suffix("")
        with folders.locked(stem.with_suffix(".lock"), say=report):
            for left in folder.glob(f"{stem.name}*.partial"):  # by a process that was killed
                left.unlink(missing_ok=True)
            found = load(mend=True)  # another process may have been faster
            if found is None:
                started = time.perf_counter()
                found = build(stem), round(time.perf_counter() - started, 1)
                save_checkpoint(str(path), found[0], tokenizer_state, name=name, seconds=found[1])
                checkpoints.forget(stem)
    return found


@dataclass
class TaskData:
    """A task as token ids, before any model exists."""

    task: object
    tokenizer: object
    splits: dict  # name -> Encoded
    block_size: int
    max_new_tokens: int
    vocabulary_in_use: int  # distinct ids that occur in the training text
    dropped: int  # examples longer than the block, left out of all splits
    too_long: int = 0  # references longer than max_new_tokens, left out of train

    def __post_init__(self):
        self.sizes = {name: len(split.prompts) for name, split in self.splits.items()}  # before --measure


def default_accept_top_k(vocabulary_in_use):
    """SKD's K for a vocabulary: 25 at 256,000 ids (the paper's Gemma pair), 3 at 19 (measured on tiny pairs), and a
    power law through both points. A fixed 25 would accept every token where only 30 ids occur at all."""
    return max(1, round(25 * (vocabulary_in_use / 256_000) ** 0.223))


def default_budget(lengths, own_data):
    """How many tokens a response may have, from the references' `lengths`: an eighth more than the longest of them.

    One answer of 4,500 tokens among 200 short ones must not decide for all. In `own_data`, which may hold such a one,
    a reference counts as twice the length that 99 % do not exceed, if it is longer than that.
    """
    longest = max(lengths)
    if own_data:
        usual = sorted(lengths)[-(-99 * len(lengths) // 100) - 1]
        longest = min(longest, 2 * usual)
    return longest + max(2, longest // 8)


def cost_of_longest(lengths, batch_size):
    """What a few rows that are far longer than all others do to the batches, which are padded to their longest row:
    (how many they are, length of the longest other row, work with them / work without); (0, 0, 1.0) for fewer than two.

    They are the longest ones down to the widest gap, a hundredth of all at most, or one. 200 rows of 50 tokens but one
    of 4,500, 64 a batch: one batch in four holds it, and is 90 times as long; (1, 50, 25.4) comes out.
    """
    lengths = sorted(lengths)

    def mean_longest(rows):  # of batch_size rows, each drawn from all
        below = [(i / len(rows)) ** batch_size for i in range(len(rows) + 1)]  # chance that none is drawn from rows[i:]
        return sum(length * (below[i + 1] - below[i]) for i, length in enumerate(rows))

    if len(lengths) < 2:
        return 0, 0, 1.0
    candidates = range(1, min(len(lengths) - 1, max(1, len(lengths) // 100)) + 1)
    few = max(candidates, key=lambda few: lengths[-few] / lengths[-few - 1])
    return few, lengths[-few - 1], mean_longest(lengths) / mean_longest(lengths[:-few])


def encode_task(task, settings):
    """Train the tokenizer on the task's text and encode every split -> TaskData.

    Raises ValueError for an empty split, when no example fits the block or the budget of new tokens, or when one is
    longer than anybody means.
    """
    tokenizer = train_tokenizer(task.texts(), settings.vocab_size)
    splits = {name: encode_split(tokenizer, task.examples(name)) for name in ("train", "val", "test", "ood")}
    for name in ("train", "val", "test"):
        if not splits[name].examples:
            raise ValueError(f"task {task.name} has no {name} examples: give it some, all three splits are used")
    in_use = len(set().union(*splits["train"].prompts, *splits["train"].responses))  # responses end with the end token
    own_data, block_size = task.name not in FAMILIES, settings.block_size
    lengths = [len(response) for response in splits["train"].responses]
    dropped = 0
    for name, split in splits.items() if block_size else ():
        # References of "ood" are longer by design and are not fed (see evaluate, score_ood).
        asked = [len(prompt) + (1 if name == "ood" else len(reply)) for prompt, reply in zip(*split[1:])]
        splits[name] = split.only([i for i, length in enumerate(asked) if length <= block_size])
        dropped += len(asked) - len(splits[name].prompts)
        if name != "ood" and not splits[name].prompts:
            raise ValueError(
                f"no {name} example fits a block of {block_size} tokens (the shortest needs {min(asked)}): "
                "raise --block-size"
            )
    if own_data:  # what the block leaves out has no say
        lengths = [len(response) for response in splits["train"].responses]
    budget, train = settings.max_new_tokens or default_budget(lengths, own_data), splits["train"]
    # Cut at the budget, a reference would teach never to end.
    splits["train"] = train.only([i for i, response in enumerate(train.responses) if len(response) <= budget])
    too_long = len(train.prompts) - len(splits["train"].prompts)
    if not splits["train"].prompts:
        raise ValueError(
            f"--max-new-tokens {budget} leaves no training example: the shortest reference has {min(lengths)} tokens "
            "with its end"
        )
    # Room for the longest prompt with a full budget, and for a held-out reference longer than any in training.
    fed = [row for name in ("train", "val", "test") for row in zip(splits[name].prompts, splits[name].responses)]
    needed = max(len(prompt) + max(budget, len(response)) for prompt, response in fed)
    needed = max([needed] + [len(prompt) + budget for prompt in splits["ood"].prompts])
    if settings.hint_share:  # room for one before the longest prompt, in any pair
        require_hints(task, train.examples)
        needed += longest_hint(tokenizer, task, train.examples)
        if block_size and block_size < needed:
            raise ValueError(f"--hint-share needs a block of {needed} tokens: give --block-size {needed}, or none")
    if block_size is None and needed > LONGEST:
        raise ValueError(
            f"the longest example needs a block of {needed:,} tokens: "
            f"give --block-size 1024 or so, which leaves out what is longer, or --block-size {needed} if it is meant"
        )
    block_size = block_size or needed
    if block_size < needed:
        budget = min(budget, block_size - 1)
    return TaskData(task, tokenizer, splits, block_size, budget, in_use, dropped, too_long)


def about_choice(data, settings, batch_size, measure=None):
    """What of a stranger's data is not learned or not measured, and which of it makes the rest slow: lines for the
    user."""
    sizes, budget = data.sizes, data.max_new_tokens
    asked = (
        (settings.student_prompts, sizes["train"], "prompts for the student (--student-prompts, 0 for all)"),
        (settings.teacher_prompts, sizes["train"], "for the teacher (--teacher-prompts)"),
        (measure, sizes["test"], "test examples (--measure)"),
        (MOST_IN_CURVES, sizes["val"], "val examples for the curves"),
    )
    drawn = [f"{most:,} of your {size:,} {what}" for most, size, what in asked if most is not None and most < size]
    if drawn:
        yield f"drawn at random: {', '.join(drawn)}"
    examples = data.splits["train"].examples if settings.hint_share else []
    if without := sum(not data.task.hint(example) for example in examples):
        yield f"{without:,} of {len(examples):,} train examples have no hint: there a teacher reads the prompt alone"
    if data.too_long:
        yield (
            f"left out of training: {data.too_long:,} of {data.too_long + sizes['train']:,} references, which are "
            f"longer than {budget:,} tokens (--max-new-tokens)"
        )
    for name in ("val", "test"):
        replies = data.splits[name].responses
        if longer := sum(len(reply) > budget for reply in replies):
            yield (
                f"{longer:,} of {len(replies):,} {name} references are longer than {budget:,} tokens: no answer can be "
                "equal to them (--max-new-tokens)"
            )
    for name, rows in (("train", batch_size), ("val", 128), ("test", 128)):
        _, prompts, responses = data.splits[name]
        lengths = [len(prompt) + len(reply) for prompt, reply in zip(prompts, responses)]
        few, others, times = cost_of_longest(lengths, rows)
        if times >= 2:
            yield (
                f"warning: {few:,} of {len(lengths):,} {name} examples with up to {max(lengths):,} tokens, all others "
                f"with at most {others:,}: padding makes batches {times:.0f} times as long; --block-size "
                f"{others + max(2, others // 8)} leaves them out"
            )


def load_or_pretrain_pair(data, settings, device="cpu", cache_dir=CACHE_DIR, report=print, otherwise=()):
    """The pair for a TaskData, from the cache if it was made before; `report` takes lines of progress. -> Pair

    `otherwise` are folders that stand in for a cache that may not be written to.
    """
    assert settings.student_start in ("sft", "raw"), (
        f"student_start must be sft or raw, found {settings.student_start!r}"
    )
    candidates, device = (cache_dir, *otherwise), torch.device(device)
    task, tokenizer, splits, block_size = data.task, data.tokenizer, data.splits, data.block_size
    # Another pair's student has another sample of the prompts.
    everything = splits["train"].shuffled(settings.seed)
    teacher_data, student_data = (everything.first(n) for n in (settings.teacher_prompts, settings.student_prompts))
    share = settings.hint_share
    teacher_rows = with_hints(tokenizer, task, teacher_data, share)
    # A raw start reads texts alone, and no prompt before an answer.
    student_rows = with_hints(tokenizer, task, student_data, share if settings.student_start == "sft" else None)

    # What decides the weights: settings, data as ids, the code that trains, and the kind of device.
    common = [
        tokenizer.fingerprint(),
        block_size,
        settings.batch_size,
        settings.seed,
        SYNTAX_TREES,
        device.type,
        torch.__version__,
    ]
    teacher_key = _hash(
        "teacher",
        common,
        settings.teacher_shape,
        settings.teacher_steps,
        settings.teacher_lr,
        *teacher_rows,
    )
    student_key = _hash(
        "student",
        common,
        settings.student_shape,
        settings.start_steps,
        settings.start_lr,
        settings.student_start,
        *student_rows,
    )
    state = tokenizer.state_dict()

    def build(stem, shape, prompts, responses, num_steps, peak_lr, seed):
        generator = torch.Generator().manual_seed(seed)  # initial weights first, then the order of the batches
        model = GPT(GPTConfig(tokenizer.n_vocab, block_size, *shape), generator).to(device)
        # The stem names all that decides. One process pretrains, the others wait.
        kept = checkpoints.Checkpointer(str(stem), max(1, num_steps // 5), say=report, alone=True)
        with processes.full_precision(), kept as checkpointer:  # the same pair, whatever --precision ran before
            pretrain(
                model, prompts, responses, num_steps, settings.batch_size, peak_lr, generator, report, checkpointer
            )
        return model

    def build_teacher(stem):
        report(f"teacher: {settings.teacher_steps} steps on {len(teacher_data.prompts)} prompts")
        return build(
            stem,
            settings.teacher_shape,
            *teacher_rows,
            settings.teacher_steps,
            settings.teacher_lr,
            1000 * settings.seed,
        )

    def build_student(stem):
        report(
            f"student start ({settings.student_start}): {settings.start_steps} steps on {len(student_data.prompts)} "
            "prompts"
        )
        prompts, responses = student_rows
        if settings.student_start == "raw":
            # Prompts and responses as separate texts, all tokens but the first as targets: the language without the
            # task.
            texts = [text for text in prompts + responses if len(text) > 1]
            prompts, responses = [text[:1] for text in texts], [text[1:] for text in texts]
        return build(
            stem,
            settings.student_shape,
            prompts,
            responses,
            settings.start_steps,
            settings.start_lr,
            1000 * settings.seed + 1,
        )

    seconds = {}
    name = f"{task.name}-teacher-{teacher_key[:16]}.pt"
    teacher, seconds["teacher"] = _cached(name, candidates, device, build_teacher, state, report)
    name = f"{task.name}-student-{student_key[:16]}.pt"
    student, seconds["student_start"] = _cached(name, candidates, device, build_student, state, report)
    for weight in teacher.parameters():
        weight.requires_grad_(False)  # the teacher never moves
    return Pair(
        task,
        tokenizer,
        teacher,
        student.config,
        {name: weight.cpu() for name, weight in student.state_dict().items()},
        student_data,
        splits["val"],
        splits["test"],
        splits["ood"],
        data.max_new_tokens,
        _hash(weights_hash(teacher), weights_hash(student))[:16],
        seconds,
        {kind: hinted_prompts(tokenizer, task, student_data, kind) for kind in HINTS} if share else {},
    )
