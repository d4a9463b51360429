"""How a run resumes where it stopped: a Checkpointer saves its state now and then, and loads it again.

    with Checkpointer("out/skd_pair1_seed1", every=25, identity={...}) as checkpointer:
                                                                        what lies on disk is read, and checked
        answers = checkpointer.found("answers", make)                   made once, before the loop
        done = checkpointer.restore(student=student, optimizer=optimizer, ...)
                                                                        from here on a signal waits for a step's end
        for step in range(done, steps):
            ...
            if checkpointer.due(step + 1, last):
                checkpointer.save(step + 1)

The state is complete: a resumed run is bit-identical to an uninterrupted one. A part is anything with `state_dict` and
`load_state_dict`, or a torch.Generator. What is drawn from the seed before the loop (the order of the batches, the
first weights of a projector) is drawn again. The two newest states are kept, so that a damaged one costs some steps and
not the run; they are deleted when the run has its final line.
"""

import contextlib
import re
from pathlib import Path

import torch

from lab import processes
from lab.records import FORMAT, refuse_difference, refuse_format, rounded, set_aside
from model import is_systems, load_file, save_file


class Checkpointer:
    """The state of one run on disk, of this process. Without a `stem` nothing is kept, and nothing waits.

    `every` so many steps it is time to save; `identity` is a dict of plain values that decide the run: ValueError names
    the first one in which a state on disk differs. `say` takes lines for the user; `about` is what the record is to say
    of a process that resumes, `sources` the sha256 of its code by file. What is odd about resuming is in `warnings`.
    Processes that share a run each keep a state of their own, and save, stop and resume at the same step; with `alone`
    the run is this process' own, whatever the others do.
    """

    def __init__(
        self, stem=None, every=None, identity=None, say=lambda line: None, about=None, sources=None, alone=False
    ):
        self.stem, self.every, self.identity, self.say, self.about = (
            stem,
            every,
            rounded(identity or {}),
            say,
            about or {},
        )
        self.sources, self.warnings = sources or {}, []
        self.step, self.made, self.parts, self.state = 0, {}, {}, None
        self.loop, self.stop = contextlib.ExitStack(), None
        rank, size = (0, 1) if alone else processes.rank_and_size()
        self.shared = size > 1
        if stem is None:
            return
        self.suffix = ".state" if rank == 0 else f".rank{rank}.state"
        states, damaged = {}, []
        for path in self.paths():
            if path.is_file() and (self.shared or not states):
                try:
                    state = load_file(str(path))
                    if type(state["step"]) is not int or not all(
                        isinstance(state[name], dict) for name in ("identity", "made", "parts")
                    ):
                        raise ValueError("it holds no state of a run")
                    states[state["step"]] = state
                except (ValueError, KeyError, TypeError) as error:
                    damaged.append(f"{path.name} is damaged ({error}): set aside as {set_aside(path).name}")
        instead = f"the state after step {max(states)} is used" if states else "none is left, the run begins anew"
        for words in damaged:
            say(f"{words}, {instead}")
        for state in states.values():
            refuse_format(self.paths()[0].name, state.get("format", 1))
            refuse_difference(self.paths()[0].name, state["identity"], self.identity)
        # Of several processes one may have died while it saved.
        step = processes.newest_of_all(states) if self.shared else max(states, default=None)
        if step is not None:
            self.state = states[step]
            self.step, self.made = step, self.state["made"]
        if self.found("sources", lambda: self.sources) != self.sources:
            self.warnings.append(
                "the code has changed since a state was saved: its steps were made by two versions of it"
            )

    def paths(self):
        """Where the newest state lies, and the one before it."""
        return Path(f"{self.stem}{self.suffix}.pt"), Path(f"{self.stem}{self.suffix}.before.pt")

    def inner(self, name):
        """A Checkpointer for a run within this one."""
        stem = None if self.stem is None else f"{self.stem}.{name}"
        checkpointer = Checkpointer(stem, self.every, self.identity | {"inner": name}, self.say, sources=self.sources)
        self.warnings += checkpointer.warnings
        return checkpointer

    def found(self, name, make):
        """The plain value that an earlier process made before its loop, or make() now."""
        if name not in self.made:
            self.made[name] = make()
        return self.made[name]

    def restore(self, **parts):
        """Put every part into its saved state, if there is one -> the number of steps that are done. A part `log` is
        told."""
        self.parts = parts
        if self.stem is not None:
            self.loop.enter_context(processes.saving_loop())
        if self.state is not None:
            saved, self.state = self.state["parts"], None
            try:
                for name, part in parts.items():
                    if isinstance(part, torch.Generator):
                        part.set_state(saved[name])
                    else:
                        part.load_state_dict(saved[name])
            except (KeyError, ValueError, RuntimeError) as error:
                if is_systems(error):
                    raise
                raise ValueError(
                    f"{self.paths()[0].name} does not fit this code ({str(error).strip().splitlines()[0]}): "
                    "delete the run's states, and it begins anew"
                ) from error
            if "log" in parts:
                parts["log"].write("resumed", step=self.step, **self.about)
            self.say(f"{Path(self.stem).name}: resumes after step {self.step}")
        return self.step

    def due(self, step, last):
        """Whether it is time to save after `step` steps; at the last one it is, and where a signal waits for this
        process or one that shares the run."""
        if self.stem is None:
            return False
        self.stop = processes.any_asked_to_stop() if self.shared else processes.asked_to_stop()
        return last or step % self.every == 0 or self.stop is not None

    def save(self, step):
        """Write the state after `step` steps; the newest one so far becomes the one before. Ends the run if a signal
        waited."""
        parts = {
            name: part.get_state() if isinstance(part, torch.Generator) else part.state_dict()
            for name, part in self.parts.items()
        }
        newest, before = self.paths()
        if newest.exists():
            newest.replace(before)
        save_file(
            str(newest), {"format": FORMAT, "step": step, "identity": self.identity, "made": self.made, "parts": parts}
        )
        self.step = step
        if self.stop is not None:
            if self.shared:
                processes.wait_for_all()  # whoever ends first takes the others with it
            processes.stop(self.stop)

    def forget(self):
        """The run has its final line: delete the states, those of runs within it too."""
        if self.stem is not None:
            forget(self.stem)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        return self.loop.__exit__(*error)


def forget(stem):
    """Delete all states of a run, the other processes' too."""
    stem = Path(stem)
    own = re.compile(re.escape(stem.name) + r"\.([a-z]+\.)?(rank\d+\.)?state(\.before)?\.pt(\.\d+\.partial)?")
    for path in stem.parent.glob("*.state*.pt*"):
        if own.fullmatch(path.name):  # what was set aside, and what is somebody's, stays
            path.unlink(missing_ok=True)
