"""What both training loops lean on, so that a loop shows its method and nothing else. A reader of the loops may skip
this room.

    run = Run(steps=200, batch_size=64, lr=5e-3)   every default keeps nothing on disk and needs no command line
    run.begin(student, prompts, responses)         which prompts in which order, and the noise of the samplers
    run.start(teacher, method)                     optimizer, costs, compilation; a saved state is put back
    for step in run.steps():                       afterwards: monitors, saves; stops for a signal or a nan
        rollout = step.write(writer, ...)          counts what the models were fed
        for part in run.parts(rollout):            the rows that share one forward and backward pass (--micro-batch)
            part.teacher(teacher)                  logits: kept by the sampler, read from a cache, or asked now
            part.forward(student)                  logits, in the run's precision (--precision, --compile, --recompute)
            part.backward(per_token)               one masked mean, one backward pass
        run.update(student)                        clip and step; gradients of several processes are averaged
        run.note("name", scalar)                   one more figure in the step's record
    run.finish()                                   what it cost

Cost is counted where a model is called: by a part's forward and teacher, and by the sampler, which notes in its rollout
what it fed to either model. Padding is not counted.
"""

import contextlib
import copy
from typing import NamedTuple

import torch

from data.progress import progress
from lab import checks, processes
from lab.checkpoints import Checkpointer
from lab.checks import first_rows
from lab.costs import Clock, Costs, Meter
from lab.evaluate import sample_responses
from lab.hints import OwnPrompt
from lab.monitoring import Monitor
from lab.processes import all_reduce_mean
from lab.records import NoLog
from lab.teacher_cache import TeacherCache
from losses import HiddenStates, Tokens, by_chunks, masked_mean, weight_of, with_tail, without_nan_outside
from model import clip_and_step, learning_rate, make_optimizer
from sample import DATASET, TEACHER, TRUST_REGION, WRITERS, rollout_from_ids, write_tokens


def batch_order(num_examples, batch_size, num_steps, generator):
    """Indices of num_steps batches, (num_steps, batch_size) long: one random permutation after another.

    Drawn before the run, so that every method sees the same prompts in the same order.
    """
    needed = num_steps * batch_size
    epochs = -(-needed // num_examples)
    order = torch.cat([torch.randperm(num_examples, generator=generator) for _ in range(max(1, epochs))])
    return order[:needed].view(num_steps, batch_size)


def constant(model_logits):
    """Logits to which no gradient flows; None, where no model was asked, stays None."""
    return None if model_logits is None else model_logits.detach()


class Result(NamedTuple):
    """What `distill` returns; the student was trained in place."""

    costs: dict  # steps, seconds, memory_mb, tokens_generated, teacher_forwards, compute
    adapted: object  # the OnlineTeacher, where a teacher has learned along; else None


class Run:
    """One student's training. Every argument has a default; the command line hands over its flags under the same names.

    sampling: keywords of sample.write_tokens (temperature, top_p, interleaved={...}); accept_top_k: SKD's K.
    validate: (student, adapted teacher or None) -> dict of figures with "score" and "val_nll"; asked before the first
    step and eight times on the way. show: (student) -> dict of plain values, such as rollouts on held-out prompts,
    which becomes a line of the record at the start, in the middle and at the end.
    What few methods ask for: reward (numbers of prompts, responses as ids) -> a score each; domains: the task of each
    prompt; hinted: kind of hint -> for each prompt the ids read in its place ("sibling": a function from a response to
    the ids before its prompt); pretraining_lr: the teacher's rate.
    log, report, checkpointer: where records, lines for the user and states go; by default nowhere. tell: hears in place
    of `report` how far the run has come. label: what the bar of its steps is called.
    Raises ValueError for a number that makes no run.
    """

    def __init__(
        self,
        *,
        steps=200,
        batch_size=64,
        lr=5e-3,
        weight_decay=0.1,
        reduction="token",
        seed=1,
        max_new_tokens=32,
        eos_token=None,
        accept_top_k=3,
        sampling=None,
        micro_batch=None,
        chunk_loss=False,
        recompute=False,
        compile=False,
        precision="auto",
        cache_teacher=None,
        log_every=20,
        validate=None,
        show=None,
        reward=None,
        domains=None,
        pretraining_lr=None,
        hinted=None,
        log=None,
        report=lambda line: None,
        tell=None,
        label="steps",
        checkpointer=None,
    ):
        self.settings = {name: value for name, value in locals().items() if name != "self"}
        for name in ("steps", "batch_size", "max_new_tokens", "log_every"):
            if type(self.settings[name]) is not int or self.settings[name] < 1:
                raise ValueError(f"{name} must be a whole number of at least 1, found {self.settings[name]!r}")
        if not lr > 0:
            raise ValueError(f"lr must be above 0, found {lr!r}")
        self.num_steps, self.batch_size, self.lr, self.weight_decay = steps, batch_size, lr, weight_decay
        self.reduction, self.seed, self.max_new_tokens, self.eos_token = reduction, seed, max_new_tokens, eos_token
        interleaved = {"accept_top_k": accept_top_k} | (sampling or {}).get("interleaved", {})
        sampling = {"trust_region": TRUST_REGION} | (sampling or {})
        self.accept_top_k, self.sampling = accept_top_k, sampling | {"interleaved": interleaved}
        self.micro_batch, self.chunked, self.recompute, self.compile = micro_batch, chunk_loss, recompute, compile
        self.cache_teacher, self.log_every, self.reward, self.domains = cache_teacher, log_every, reward, domains
        self.validate, self.show, self.pretraining_lr, self.hinted = validate, show, pretraining_lr, hinted or {}
        self.log, self.report, self.checkpointer = log or NoLog(), report, checkpointer or Checkpointer()
        self.tell, self.label, self.bar = tell, label, None
        self.rank, self.num_processes = processes.rank_and_size()
        self.trained, self.reference_source, self.cache, self.teacher_prompts = {}, DATASET, None, OwnPrompt()
        self.prepared, self.preparation_seconds, self.adapted = [], 0.0, None
        self.step, self.figures_at_start, self.monitor = None, None, Monitor(self)

    def generator(self, number):
        """A torch.Generator of this run's seed. Numbers in use: 1 samplers, 2 the online module, 3 a method's own draws
        and the held-out order of a meta-gradient (whose method draws nothing), 4 sftn, 5 the assistant."""
        return torch.Generator().manual_seed(1_000_003 * self.seed + number)

    @contextlib.contextmanager
    def inner(self, name, **changes):
        """A `with` block that yields a Run within this one, such as that of a teacher's assistant: quiet, its states
        apart."""
        quiet = {"log": None, "report": lambda line: None, "tell": None, "label": "steps", "cache_teacher": None}
        quiet |= {"validate": None, "show": None}
        with self.meter.paused(), self.checkpointer.inner(name) as checkpointer:
            run = Run(**self.settings | quiet | changes | {"checkpointer": checkpointer})
            run.device = self.device
            yield run

    # -----------------------------------------------------------------------------------------------------------------
    # 1. Before the first step.

    def begin(self, student, prompts, responses=None, held_out=0, order=None):
        """The data of a run: `student`, on whose device all happens, and lists of ids. The last `held_out` prompts are
        not learned."""
        if hasattr(self, "student"):
            raise ValueError("a Run is one student's training, and this one has begun: make another")
        if not any(weight.requires_grad for weight in student.parameters()):
            raise ValueError("the student has no weight that learns: give another model than the frozen teacher")
        if not prompts or responses is not None and len(responses) != len(prompts):
            found = "" if responses is None else f" and {len(responses)} responses"
            found = f"{len(prompts)} prompts{found}"
            raise ValueError(f"give at least one prompt, and no responses or one for each; found {found}")
        self.student, self.device = student, next(student.parameters()).device
        self.prompts, self.responses, self.references = prompts, responses, responses
        if order is None:
            order = batch_order(
                len(prompts) - held_out, self.batch_size, self.num_steps, torch.Generator().manual_seed(self.seed)
            )
        self.order, self.noise = order, self.generator(1)
        self.meter = Meter(self.device)
        self.precision = processes.use_precision(self.settings["precision"], self.device)

    def plain_steps(self, order, **parts):
        """(number, rows) of a loop that prepares something before the run and has nothing to log; `parts` are saved and
        put back."""
        self.meter = Meter(self.device)
        for number in progress(range(self.checkpointer.restore(**parts, meter=self.meter), len(order)), "preparing"):
            yield number, order[number]
            if self.checkpointer.due(number + 1, number + 1 == len(order)):
                with self.meter.paused():
                    self.checkpointer.save(number + 1)

    def required_responses(self):
        """The references as lists of ids; ValueError where a method wants them and none were given."""
        if self.responses is None:
            raise ValueError("this method learns from references: give `responses`, a list of ids for each prompt")
        return self.responses

    def note_preparation(self, seconds=0.0, **spent):
        """Note what preparing cost before the first step: seconds, and keywords of Costs.count_preparation."""
        self.prepared.append(spent)
        self.preparation_seconds += seconds

    def require_references(self, writer):
        """ValueError where `writer` takes references and there are none."""
        if self.references is None and WRITERS[writer].needs_references:
            self.required_responses()

    def require_evaluation(self, method):
        """ValueError where a method follows a validation and none was given."""
        if self.validate is None:
            wanted = "Run(validate=...), a function of student and adapted teacher"
            raise ValueError(f"{method} follows the validation loss: give {wanted}")

    def use_answers(self, teacher, temperature, top_p=None, source=TEACHER):
        """The teacher's answers at this temperature (0: greedy), written once, are the references now, by `source`."""
        call = (teacher, self.prompts, self.max_new_tokens, self.eos_token)
        self.references = self.checkpointer.found(
            "answers", lambda: sample_responses(*call, seed=self.seed, temperature=temperature, top_p=top_p)[0]
        )
        self.reference_source = source

    def use_cache(self, teacher):
        """Read the fixed teacher's logits on the references from disk (--cache-teacher), made by the first process if
        need be."""

        def make():
            with self.precision():
                return TeacherCache(
                    teacher,
                    self.prompts,
                    self.references,
                    self.cache_teacher,
                    self.settings["precision"],
                    report=self.report,
                    read=self.teacher_prompts.of(self.prompts),
                    compare=self.rank == 0,  # the others take its word: none may continue, or stop, alone
                )

        self.cache = processes.first_then_others(make)

    def add_trained(self, name, model, optimizer, ratio=1.0, first_step=0):
        """`model` is trained by `optimizer` at `ratio` times the run's rate, from step `first_step` on."""
        self.trained[name] = TrainedModel(name, model, optimizer, ratio, first_step)

    def start(self, teacher, method, advice=None, plain_forward=False, held=(), uses_teacher=True, keeps_logits=True,
              saved=None):  # fmt: skip
        """Everything between the data and the first step.

        `method` is a methods.Method: it is asked for what it captures of a forward, what its own layers cost, the check
        of the first part, and what it makes of an evaluation. advice: what to lower after a nan. plain_forward: neither
        compiled nor made again in the backward pass. held: models that take memory beside student and teacher.
        uses_teacher: whether the loss wants the teacher's logits; keeps_logits: whether those of a sampler's
        verification will do. saved: what else a state holds, by name.
        """
        self.method, self.uses_teacher, self.keeps_logits = method, uses_teacher, keeps_logits
        student = self.student
        student.recompute = self.recompute and not plain_forward
        self.add_trained("student", student, make_optimizer(student, self.lr, self.weight_decay))
        self.wrapped = {id(student): processes.wrapped(student, self.compile and not plain_forward)}
        for one in self.trained.values():
            if one.model is not student:
                self.wrapped[id(one.model)] = processes.wrapped(one.model)
        self.costs = Costs(student, teacher)
        for spent in self.prepared:
            self.costs.count_preparation(**spent)
        if self.reference_source != DATASET:
            self.costs.count_offline_teacher(self.prompts, self.references)
        if self.cache:
            self.costs.count_cache(self.teacher_prompts.of(self.prompts), self.references)
        self.meter.hold(student, teacher, *held)
        self.meter.seconds += self.preparation_seconds
        parts = {"sampling": self.noise} | (saved or {})
        for one in self.trained.values():
            parts |= {one.name: one.saved, f"{one.name}_optimizer": one.optimizer}
        self.done = self.checkpointer.restore(**parts, costs=self.costs, meter=self.meter, log=self.log)
        self.warn = checks.warner(self.log, self.report)
        self.finite = checks.Finite(self.order, self.checkpointer, advice or f"--lr ({self.lr})", self.device, self.log)
        with self.meter.paused():
            if self.done == 0:
                self.meter.stages["preparation"] = self.meter.seconds
            frozen = torch.nn.Module() if method.moves_teacher else getattr(teacher, "base", teacher)
            self.frozen = checks.FrozenCheck(student, frozen) if self.done == 0 else None

    # -----------------------------------------------------------------------------------------------------------------
    # 2. Steps.

    def steps(self):
        """Every step that is not done yet; what a step leaves is logged, evaluated and saved when the loop asks for the
        next."""
        if self.done == 0:
            self.monitor.before_first_step()
        self.bar = progress(self.order[self.done :].tolist(), self.label)
        for number, rows in enumerate(self.bar, self.done):
            self.step = Step(self, number, rows)
            yield self.step
            self._end(self.step)

    def parts(self, rollout):
        """The rollout's rows, all at once or at most --micro-batch at a time; gradients add up over the parts.

        Forwards and losses of a part run in the run's precision, its backward passes outside of it.
        """
        step = self.step
        step.rollout = rollout
        step.clock.mark("sampling")
        for one in self.trained.values():
            if one.name not in step.norms:
                one.optimizer.zero_grad(set_to_none=True)
        total = all_reduce_mean(weight_of(rollout.response_mask[:, 1:], self.reduction))  # of the whole batch
        num_rows = len(rollout.tokens)
        for rows in cuts(num_rows, self.micro_batch):
            with contextlib.ExitStack() as averaging:
                for forward in self.wrapped.values():  # several processes average gradients in the last part only
                    if rows.stop < num_rows and isinstance(forward, torch.nn.parallel.DistributedDataParallel):
                        averaging.enter_context(forward.no_sync())
                part = Part(self, rollout, rows, total)
                with part:
                    yield part

    def update(self, *models):
        """Clip the gradients and step, for each of `models` that learns and has not moved in this step."""
        for model in models:
            if not self.step.learns(model):
                continue
            one = self.trained_model(model)
            self.step.norms[one.name] = clip_and_step(model, one.optimizer, one.ratio * self.step.rate)
            self.step.losses[one.name] = all_reduce_mean(torch.stack(self.step.parts_of_loss[one.name]).sum())
        self.step.clock.mark("update")

    def note(self, name, value):
        """A figure of this step for its record: a scalar, which is read from the device only when the step is
        logged."""
        self.step.notes[name] = value.detach() if isinstance(value, torch.Tensor) else value

    def trained_model(self, model):
        """The TrainedModel of a model, or None for one that stands still."""
        return next((one for one in self.trained.values() if one.model is model), None)

    @property
    def loss(self):
        """The student's loss in this step, over the whole batch: a scalar on the device."""
        return self.step.losses["student"]

    @property
    def rate(self):
        """The student's learning rate in this step."""
        return self.step.rate

    def logits(self, forward, tokens, model):
        """forward(tokens) as logits (B, T, V), or hidden states and head in their place (--chunk-loss); `model` owns
        the head."""
        if not self.chunked:
            return forward(tokens)
        return HiddenStates(forward(tokens, features=True), model.head)

    # -----------------------------------------------------------------------------------------------------------------
    # 3. After a step.

    def _end(self, step):
        self.meter.stop()
        step.clock.mark("update")
        self.meter.count_step(step.clock, first=step.number == 0)
        if step.number == 0:
            with self.meter.paused():
                self.warn(self.frozen.check())
        self.finite.see(step.number, sum(step.losses.values()) + sum(step.norms.values()))
        self.monitor.after_step(step)
        if self.checkpointer.due(step.number + 1, step.last):
            with self.meter.paused():
                self.finite.check()
                self.checkpointer.save(step.number + 1)

    @contextlib.contextmanager
    def measuring(self):
        """A `with` block in which the student is looked at; neither its time nor its memory count as training."""
        with self.meter.paused("evaluation"):
            was_training = self.student.training
            self.student.eval()
            yield
            self.student.train(was_training)

    def evaluation(self):
        """Figures on the validation split, {} without one; those before the first step are measured once."""
        if self.validate is None:
            return {}
        if self.step is None and self.figures_at_start is not None:
            return self.figures_at_start
        with self.measuring():
            figures = self.validate(self.student, self.adapted)
        if self.step is None:
            self.figures_at_start = figures
        return figures

    def finish(self, **more):
        """The costs of the run (with `more` of the record's figures) and the teacher that has learned along, if any."""
        self.student.eval()
        costs = {"steps": self.num_steps} | self.meter.figures() | self.costs.figures() | more
        return Result(costs, self.adapted)


class TrainedModel(NamedTuple):
    """A model that a run trains."""

    name: str
    model: torch.nn.Module
    optimizer: torch.optim.Optimizer
    ratio: float  # its learning rate over the student's
    first_step: int

    @property
    def saved(self):
        """What a state holds of it: of an OnlineTeacher its module, for its base never moves."""
        return getattr(self.model, "module", self.model)


def cuts(num_rows, micro_batch):
    """Slices of a batch's rows, at most `micro_batch` each."""
    size = micro_batch or num_rows
    return [slice(first, min(first + size, num_rows)) for first in range(0, num_rows, size)]


class Step:
    """One update: which examples, and what it leaves. Of several processes each has its own rows of the batch.

    example_ids: numbers of the examples; places: where they stand in the batch, which is what noise is keyed by.
    """

    def __init__(self, run, number, rows):
        self.run, self.number, self.batch_size = run, number, len(rows)
        self.last = number + 1 == run.num_steps
        self.logged = number % run.log_every == 0 or self.last
        self.progress = number / run.num_steps  # in [0, 1)
        self.rate = learning_rate(number, run.num_steps, run.lr)
        self.places = range(run.rank, len(rows), run.num_processes)
        self.example_ids = [rows[place] for place in self.places]
        self.prompts = [run.prompts[example] for example in self.example_ids]
        self.clock = Clock(run.device, exact=self.logged)
        self.parts_of_loss = {name: [] for name in run.trained}
        self.references, self.rollout, self.notes = None, None, {}
        # By model; update() fills both, so who has a norm has moved in this step. columns: of the parts, if logged.
        self.losses, self.norms, self.columns = {}, {}, []

    def write(self, writer, student, teacher, **options):
        """One batch of training tokens by `writer`, a name in WRITERS -> Rollout; `options` are write_tokens'."""
        run = self.run
        references = run.references and [run.references[example] for example in self.example_ids]
        with run.precision(), run.finite.naming(self.number):
            rollout = write_tokens(
                writer,
                student,
                teacher,
                self.prompts,
                references,
                run.max_new_tokens,
                generator=run.noise,
                eos_token=run.eos_token,
                reference_source=run.reference_source,
                rows=self.places,
                batch_size=self.batch_size,
                **options,
            )
        run.costs.count_rollout(rollout)
        return rollout

    def examples(self, rows):
        """References of these numbers as a Rollout."""
        prompts, responses = ([column[row] for row in rows] for column in (self.run.prompts, self.run.responses))
        return rollout_from_ids(prompts, responses, [DATASET] * len(rows), self.run.device, self.run.eos_token)

    def learns(self, model):
        """Whether a model is trained, has reached its first step, and has not moved in this step."""
        one = self.run.trained_model(model)
        return one is not None and one.name not in self.norms and self.number >= one.first_step


class Part:
    """Rows of a batch that share one forward and backward pass: all of them, unless --micro-batch says less.

    Row t of all logits predicts token t+1: `tokens.targets[:, t]`, at the positions of `tokens.mask`. inputs (rows, T).
    total: what masked_mean divides by, of the whole batch. first: whether it is the batch's first part. stored: what
    the cache holds for these rows, or None. compared: the student's logits as the loss sees them.
    """

    def __init__(self, run, rollout, rows, total):
        self.run, self.step, self.rollout, self.rows, self.total = run, run.step, rollout, rows, total
        self.first = rows.start == 0
        source, mask = rollout.source[rows, 1:], rollout.response_mask[rows, 1:]
        self.inputs = rollout.tokens[rows, :-1]
        self.tokens = Tokens(rollout.tokens[rows, 1:], mask, source == TEACHER)
        self.places = self.step.places[rows]
        self.student_logits = self.compared = self.teacher_logits = self.stored = self._references = None
        self.captured = {}  # what the method wants to see of a model's inside, by id of the model

    def __enter__(self):
        self.contexts = contextlib.ExitStack()
        self.contexts.enter_context(self.run.precision())
        self.contexts.enter_context(self.run.meter)
        return self

    def __exit__(self, *error):
        self.contexts.close()

    @property
    def fed(self):
        """Tokens that a forward over these rows processes, padding left out: a scalar on the device."""
        return (self.rollout.lengths[self.rows] - 1).sum()

    def first_rows(self):
        """The first few rows of this part, for a check."""
        few = copy.copy(self)
        few.tokens = Tokens(*(first_rows(column) for column in self.tokens))
        few.inputs, few.places = first_rows(self.inputs), first_rows(self.places)
        few.rows = slice(self.rows.start, self.rows.start + len(few.inputs))
        few.compared, few.teacher_logits = first_rows(self.compared), first_rows(self.teacher_logits)
        return few

    def check_signal(self, loss_of, is_divergence, has_gate=False):
        """Whether the teacher reaches the scalar loss_of(student_logits, teacher_logits): a warning, or None."""
        return checks.check_signal(loss_of, self.compared, self.teacher_logits, is_divergence, has_gate)

    def references(self):
        """The same examples' references as a Part of their own, whose mean is over the whole batch of references."""
        if self._references is None:
            if self.step.references is None:
                rollout = self.step.examples(self.step.example_ids)
                total = all_reduce_mean(weight_of(rollout.response_mask[:, 1:], self.run.reduction))
                self.step.references = rollout, total
            self._references = Part(self.run, self.step.references[0], self.rows, self.step.references[1])
        return self._references

    def forward(self, model, prompts=OwnPrompt()):
        """A model's logits on these rows (rows, T, V), with gradients to what learns; without any under
        torch.no_grad(). HiddenStates with --chunk-loss; log-probs (rows, T, K + 1) of the student beside a cache of the
        teacher's K best tokens. `prompts`: what it reads before each response (lab/hints.py)."""
        run, learns = self.run, torch.is_grad_enabled() and self.step.learns(model)
        is_student, (inputs, fed, aligned) = model is run.student, prompts.feed(self)
        with run.method.capture(model, is_student) as self.captured[id(model)]:
            model_logits = aligned(run.logits(run.wrapped[id(model)] if learns else model, inputs, model))
        model_logits = without_nan_outside(model_logits, self.tokens.mask)
        passes = getattr(model, "training_passes", 3) if learns else 1
        run.costs.count_forward(model, fed, passes + run.method.extra_passes(is_student))
        if not is_student:
            run.costs.count_teacher_call(self.first)
            return model_logits
        run.costs.count_products(run.method.products * self.fed)
        self.student_logits = self.compared = model_logits
        if self.stored is not None and run.cache.best:  # of the cache: the teacher's best tokens, and all others as one
            self.compared = by_chunks(with_tail, model_logits, self.stored[0])
        return self.compared

    def teacher(self, teacher):
        """What the teacher says of these tokens, shaped as what `forward` gives; None where nobody asks it.

        Its verification has computed the logits of an SKD rollout already, and a cache keeps those on references.
        """
        run = self.run
        with torch.set_grad_enabled(self.step.learns(teacher)):
            if run.cache:
                self.stored = run.cache.batch(self.step.example_ids[self.rows], self.inputs.size(1), run.device)
                self.teacher_logits = self.stored[-1]
            elif run.keeps_logits and (kept := kept_logits(self.rollout, teacher, self.rows)) is not None:
                self.teacher_logits = kept
            elif run.uses_teacher:
                self.teacher_logits = self.forward(teacher, run.teacher_prompts)
        self.step.clock.mark("teacher")
        return self.teacher_logits

    def backward(self, loss, of=None):
        """Take the masked mean of a per-token loss (rows, T), or a scalar as it is, and its gradients.

        `of` is the model that minimises it, the student unless said otherwise. None, the loss of a model that stands
        still, is passed over.
        """
        if loss is None:
            return
        run, per_token = self.run, loss
        role = "student" if of is None else run.trained_model(of).name
        if loss.dim():
            loss = masked_mean(per_token, self.tokens.mask, run.reduction, self.total)
        self.contexts.close()  # backward passes take the precision that the forward took
        loss.backward()
        self.step.parts_of_loss[role].append(loss.detach())
        self.step.clock.mark("student" if role == "student" else "teacher")
        if role == "student":
            self._look(per_token)
        self.__enter__()

    def _look(self, per_token):
        """The check of a run's first part, and what a logged step tells of either model's logits."""
        run, step = self.run, self.step
        if step.number == 0 and self.first:
            with run.meter.paused(), run.precision():
                run.warn(run.method.check_signal(self))
        if step.logged:
            with torch.no_grad():
                run.monitor.see(self, per_token)
            step.clock.mark("logging")


def kept_logits(rollout, teacher, rows):
    """What the verification of a rollout left of the teacher's logits for these rows, or None."""
    if rollout.teacher_features is not None:
        return HiddenStates(rollout.teacher_features[rows], teacher.head)
    return None if rollout.teacher_logits is None else rollout.teacher_logits[rows]
