"""What a run costs: model FLOPs, tokens and forwards, its time and memory; and whether several fit one GPU."""

import collections
import contextlib
import time

import torch
import torch.distributed as dist

from lab.evaluate import MOST_LOGITS
from losses import AT_ONCE


class Costs:
    """What a run used, counted on the device and read once: tokens that each model processed, forwards, model TFLOP.

    FLOPs are 2 x parameters per token and pass (position table left out: it is only looked up); attention's own
    products are neglected. A training step is 3 passes of the model that learns: forward, gradients of activations,
    gradients of weights. A frozen teacher with an online module needs the first two. The same rule for every method, so
    that "equal compute" has a meaning that does not depend on the machine.
    """

    def __init__(self, student, teacher):
        self.student = student
        self.weights = [
            model.num_parameters() - model.position_embedding.weight.numel() for model in (student, teacher)
        ]
        # processed by the student, processed by the teacher, generated, batched forwards of the teacher, products of
        # others
        self.counts = torch.zeros(5, dtype=torch.long, device=next(student.parameters()).device)
        self.once = torch.zeros(5, dtype=torch.long)  # the same, before training
        self.longer = torch.zeros(5, dtype=torch.long)  # before training as well, but longer where the run is longer
        self.others = 0.0  # TFLOP of models that are neither of the two; longer where the run is longer

    def count_rollout(self, rollout):
        """Add what a sampler noted in its rollout; a rollout that nobody wrote now holds no note."""
        if rollout.fed is not None:
            self.counts[:4] += rollout.fed

    def count_forward(self, model, fed, passes):
        """Add `passes` of a model over `fed` tokens (a scalar on the device): 1 forward, 3 with the backward pass to
        all weights."""
        self.counts[0 if model is self.student else 1] += passes * fed

    def count_teacher_call(self, calls=1):
        """Add batched forwards of the teacher; those of the parts of one batch count once."""
        self.counts[3] += calls

    def count_products(self, products):
        """Add what layers beyond both models cost: weights times passes times tokens."""
        self.counts[4] += products

    def count_cache(self, prompts, responses, batch_size=64):
        """Add the one pass over all references that fills a cache of the teacher's answers."""
        tokens = sum(map(len, prompts)) + sum(map(len, responses)) - len(prompts)
        self.once += torch.tensor([0, tokens, 0, -(-len(prompts) // batch_size), 0])

    def count_offline_teacher(self, prompts, answers, batch_size=256):
        """Add the answers that a teacher wrote before training, batch by batch."""
        tokens, written = sum(map(len, prompts)) + sum(map(len, answers)), sum(map(len, answers))
        forwards = sum(
            max(map(len, chunk)) for chunk in (answers[i : i + batch_size] for i in range(0, len(answers), batch_size))
        )
        self.once += torch.tensor([0, tokens, written, forwards, 0])

    def count_preparation(self, tflop=0.0, student_tokens=0, teacher_tokens=0, teacher_forwards=0, grows=False):
        """Add what was prepared before training: passes over so many tokens, and the TFLOP of other models. Where it
        takes longer for a longer run (`grows`, and all other models), it is no part of compute_once."""
        spent = torch.tensor([student_tokens, teacher_tokens, 0, teacher_forwards, 0])
        self.longer, self.once = (self.longer + spent, self.once) if grows else (self.longer, self.once + spent)
        self.others += tflop

    def state_dict(self):
        """What the steps so far took; what was counted before training is counted again."""
        return {"counts": self.counts}

    def load_state_dict(self, state):
        self.counts.copy_(state["counts"])

    def figures(self):
        """The record's figures, of all processes that share the run; a forward of theirs counts once."""
        counts = self.counts.clone()
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(counts)
            counts[3] //= dist.get_world_size()
        student, teacher, generated, forwards, products = (counts.cpu() + self.once + self.longer).tolist()
        flops = 2 * (self.weights[0] * student + self.weights[1] * teacher + products)
        figures = {"tokens_generated": generated, "teacher_forwards": forwards, "compute": flops / 1e12 + self.others}
        once = 2 * (self.weights[0] * int(self.once[0]) + self.weights[1] * int(self.once[1])) / 1e12
        return figures | ({"compute_once": once} if once else {})


class Clock:
    """Milliseconds of a step by what they were spent on. `exact` waits for the device at each mark: only where the step
    is written down, since waiting costs time."""

    def __init__(self, device, exact):
        self.device, self.spans = device, {}
        self.exact = exact and device.type == "cuda"
        if self.exact:  # what is queued belongs to the steps before
            torch.cuda.synchronize(self.device)
        self.last = time.perf_counter()

    def mark(self, name):
        """What happened since the last mark was `name`."""
        if self.exact:
            torch.cuda.synchronize(self.device)
        now = time.perf_counter()
        self.spans[name] = self.spans.get(name, 0.0) + 1000 * (now - self.last)
        self.last = now

    def figures(self, *names):
        """{name_ms: milliseconds}, 0 for what did not happen."""
        return {f"{name}_ms": self.spans.get(name, 0.0) for name in names}


STAGES = ("sampling", "teacher", "student", "update")  # of a training step, as its Clock names them


class Meter:
    """Time and memory of training; a `with meter.paused()` block is left out.

    What the time went to is counted beside it: see by_stage.

    Memory is the allocator's peak on CUDA; elsewhere it is counted, which no other program can disturb: weights,
    gradients and AdamW's two moments of what learns, the frozen teacher's weights, and the most that the first step's
    `with` blocks keep at one time for backward passes. What a sampler uses is only in CUDA's figure.
    """

    def __init__(self, device):
        self.device, self.weights = device, {}
        self.graphs, self.now, self.most = collections.Counter(), 0, 0
        self.counting, self.seconds = self.device.type != "cuda", 0.0
        self.stages = {}  # seconds by stage, as far as they were measured
        self._go()

    def hold(self, *models):
        """These models' weights are held in memory."""
        self.weights |= {weight.data_ptr(): weight for model in models for weight in model.parameters()}

    def _halt(self):
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)  # what is queued is training
        self.seconds += time.perf_counter() - self.since
        if self.device.type == "cuda":
            self.most = max(self.most, torch.cuda.max_memory_allocated(self.device))

    def _go(self):
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)  # what is queued was none
            torch.cuda.reset_peak_memory_stats(self.device)
        self.since = time.perf_counter()

    @contextlib.contextmanager
    def paused(self, stage=None):
        """What comes now is no training; its time is counted as `stage`, if that has a name."""
        self._halt()
        started = time.perf_counter()
        try:
            yield
        finally:
            self._go()
            if stage:
                self.stages[stage] = self.stages.get(stage, 0.0) + self.since - started

    def count_step(self, clock, first):
        """Add a step's spans to the stages: on a CPU of every step; on a GPU of those whose clock waits for it, and not
        of a run's first one, in which kernels are loaded."""
        if clock.device.type == "cpu" or clock.exact and not first:
            for stage in STAGES:
                self.stages[stage] = self.stages.get(stage, 0.0) + clock.spans.get(stage, 0.0) / 1000

    def by_stage(self):
        """Seconds of preparation, of STAGES and of evaluations on the way; None where a stage could not be measured.

        On a GPU the steps that were measured say in which shares all of the time after the preparation is divided.
        """
        preparation = self.stages.get("preparation", 0.0)
        stages, scale = {stage: self.stages.get(stage) for stage in STAGES}, 1.0
        if self.device.type == "cuda" and None not in stages.values():
            scale = (self.seconds - preparation) / sum(stages.values())
        stages = {stage: None if seconds is None else scale * seconds for stage, seconds in stages.items()}
        return {"preparation": preparation} | stages | {"evaluation": self.stages.get("evaluation", 0.0)}

    def __enter__(self):
        self.hooks = torch.autograd.graph.saved_tensors_hooks(
            lambda tensor: _Kept(tensor, self), lambda kept: kept.tensor
        )
        if self.counting:
            self.hooks.__enter__()

    def __exit__(self, *error):
        if self.counting:
            self.hooks.__exit__(*error)

    def count(self, address, size, change):
        """A graph takes hold of a storage (+1) or lets it go (-1): what is kept twice lies there once."""
        held = self.graphs[address]
        self.graphs[address] += change
        if address not in self.weights and (held == 0 or held + change == 0):
            self.now += size * change
            self.most = max(self.most, self.now)

    def stop(self):
        """The first step is over, the others are like it."""
        self.counting = False

    def figures(self):
        """{"seconds", "seconds_by_stage", "memory_mb"}, the latter in units of 1e6 bytes."""
        self._halt()
        self._go()
        held = 0
        if self.device.type != "cuda":
            held = sum(weight.nbytes * (4 if weight.requires_grad else 1) for weight in self.weights.values())
        memory = (held + self.most) / 1e6
        return {"seconds": self.seconds, "seconds_by_stage": self.by_stage(), "memory_mb": memory}

    def state_dict(self):
        """The figures so far, for a process that resumes."""
        return {"seconds": self.seconds, "stages": dict(self.stages), "most": self.most}

    def load_state_dict(self, state):
        """Resume counting; what has passed since this meter was made is the time of loading, not of training."""
        self.seconds, self.stages, self.most = state["seconds"], dict(state["stages"]), state["most"]
        self.counting = False
        self._go()


class _Kept:
    """A tensor kept for a backward pass; counted until its graph lets it go."""

    def __init__(self, tensor, memory):
        storage = tensor.untyped_storage()
        self.tensor, self.memory, self.place = tensor, memory, (storage.data_ptr(), storage.nbytes())
        memory.count(*self.place, +1)

    def __del__(self):
        self.memory.count(*self.place, -1)


# ---------------------------------------------------------------------------------------------------------------------
# Several runs on one GPU (--jobs).

CONTEXT = 1e9  # bytes of a process before its first tensor: CUDA's kernels and workspaces. A guess, from above


def memory_of_run(student, teacher, batch_size, rows, teacher_learns=False, chunked=False):
    """Bytes of a GPU that a run may take, from above, for two GPTConfigs; `rows` of a batch are learned from at a time.

    Weights, gradients and AdamW's moments; a sampler's two caches, one of them being copied (256 rows are measured at
    once); what a block keeps for its backward pass, 20 numbers per token and unit of width; 14 numbers per logit in a
    loss, 7 while 128 rows are measured.
    """
    length, vocab_size = student.block_size, student.vocab_size

    def weights(config):
        width, layers = config.n_embd, config.n_layer
        return (vocab_size + length + 2) * width + layers * (12 * width**2 + 13 * width)

    inside = [config.n_layer * config.n_embd for config in (student, teacher)]
    copies = 5 if teacher_learns else 1  # what learns may be a full copy beside the frozen one
    numbers = 4 * weights(student) + copies * weights(teacher)
    numbers += 4 * max(batch_size, 256) * length * sum(inside)
    widest = max(student.n_embd, teacher.n_embd)
    kept = rows * length * (20 * (inside[0] + teacher_learns * inside[1]) + 12 * widest)
    logits = rows * length * vocab_size
    kept += 14 * min(logits, AT_ONCE) if chunked else 14 * logits
    # What a sampler's verification has left.
    kept += batch_size * length * (student.n_embd + teacher.n_embd if chunked else vocab_size)
    measured = 7 * min(128 * length * vocab_size, MOST_LOGITS)
    return CONTEXT + 4 * (numbers + max(kept, measured))
