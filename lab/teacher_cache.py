"""What a fixed teacher says about every token of the references, worked out once and read from disk by memory map.

A method that trains on references alone asks its teacher the same questions in every epoch. With --cache-teacher the
answers are kept, one row per response token of the student's prompts:

    dense      the teacher's logits, (N, V) float32: the same training, to rounding
    K          its K best tokens, ids (N, K) and log-probabilities (N, K + 1) of these and of all other tokens together:
               the tail. A divergence is then one of K + 1 classes, which is never above that of the V tokens.

Leaving the tail out and scaling the K up to 1 would teach the student that nothing else can happen; that is why it is a
class of its own. The files are named by a hash of all that decides them; what is read has the checksum of what was
written, and is compared with the teacher.
"""

import contextlib
import hashlib
import json
import os
import shutil
from pathlib import Path

import numpy as np
import torch

from data.progress import progress
from lab.folders import ROOT, locked, write_error
from lab.records import set_aside, write_whole
from losses import at_least_float32, with_tail
from model import weights_hash
from sample import pad_sequences, to_device

CACHE_DIR = ROOT / "data" / "cache" / "teacher"  # git-ignored
TOLERANCE = 0.05  # mean difference between two ways to batch the same forward, in nats; bf16 is the loosest


def check_best(best, vocab_size):
    """ValueError unless `best` tokens leave others for the tail; 0 is dense."""
    if not 0 <= best < vocab_size:
        raise ValueError(
            f"--cache-teacher must lie in 1..{vocab_size - 1} (below this tokenizer's vocabulary) or be dense, "
            f"found {best}"
        )


class TeacherCache:
    """A teacher's rows for all responses; `batch` gives those of some examples, padded like their rollout.

    `best` is K, 0 for dense. `read` are the prompts that the teacher reads, if not the student's. Files that are
    damaged are set aside and made again. Raises ValueError when the disk is too small or read-only, when K is not below
    the vocabulary, or when a file does not agree with the teacher.
    """

    def __init__(
        self, teacher, prompts, responses, best=0, precision="fp32", folder=CACHE_DIR, report=print, compare=True,
        read=None,
    ):  # fmt: skip
        vocab_size = teacher.config.vocab_size
        check_best(best, vocab_size)
        assert len(prompts) == len(responses), f"{len(prompts)} prompts, {len(responses)} responses"
        self.teacher, self.best, self.prompts, self.responses = teacher, best, prompts, responses
        self.read = prompts if read is None else read
        lengths = np.array([len(response) for response in responses])
        self.starts = np.cumsum(lengths) - lengths  # of each example's rows
        columns = {"logits": ((vocab_size,), np.float32)}
        if best:
            columns = {"ids": ((best,), np.int32), "logprobs": ((best + 1,), np.float32)}
        device = next(teacher.parameters()).device.type
        key = json.dumps([weights_hash(teacher), self.read, responses, best, precision, device])
        stem = Path(folder) / hashlib.sha256(key.encode()).hexdigest()[:16]
        self.paths = [stem.with_suffix(f".{name}.npy") for name in columns]
        self.shapes = [((int(lengths.sum()), *width), kind) for width, kind in columns.values()]
        self.checksum_file = stem.with_suffix(".sha256")
        with locked(stem.with_suffix(".lock")) if compare else contextlib.nullcontext():  # one process makes it
            if compare and not self._is_whole(report):
                self._build(report)
        self.arrays = [np.load(path, mmap_mode="r", allow_pickle=False) for path in self.paths]
        if compare and not self._agrees():
            raise ValueError(
                f"{self.paths[0].name} does not agree with the teacher: delete data/cache/teacher, run again"
            )

    def _checksum(self):
        digest = hashlib.sha256()
        for path in self.paths:
            with open(path, "rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
        return digest.hexdigest()

    def _is_whole(self, report):
        """Whether the files are there and are what was written; others are set aside, unfinished ones deleted."""
        if not self.checksum_file.exists():  # which is written last
            for path in [*self.paths, *self.checksum_file.parent.glob(f"{self.checksum_file.stem}*.partial")]:
                path.unlink(missing_ok=True)
            return False
        there = [path for path in (*self.paths, self.checksum_file) if path.exists()]
        if (
            len(there) == len(self.paths) + 1
            and self.checksum_file.read_text(encoding="ascii", errors="replace") == self._checksum()
        ):
            return True
        for path in there:
            report(f"{path.name} is damaged: set aside as {set_aside(path).name}, to be made again")
        return False

    def _answers(self, chosen):
        """The teacher's own rows for these examples, one array per file."""
        device = next(self.teacher.parameters()).device
        texts = [self.read[i] + self.responses[i] for i in chosen]
        tokens, _ = pad_sequences(texts, device)
        with torch.no_grad():
            teacher_logits = self.teacher(tokens[:, :-1])
        # Row t predicts t + 1.
        rows = [range(len(self.read[i]) - 1, len(text) - 1) for i, text in zip(chosen, texts)]
        answers = torch.cat([teacher_logits[b, row.start : row.stop] for b, row in enumerate(rows)])  # (n, V)
        answers = at_least_float32(answers)
        if not self.best:
            return [answers.cpu().numpy()]
        ids = answers.topk(self.best, dim=-1).indices
        return [ids.int().cpu().numpy(), with_tail(answers, ids).cpu().numpy()]

    def _build(self, report, batch_size=64):
        size = sum(int(np.prod(shape)) * np.dtype(kind).itemsize for shape, kind in self.shapes)
        folder = self.paths[0].parent
        if error := write_error(folder):
            raise ValueError(f"--cache-teacher cannot write to data/cache/teacher ({error.strerror}): leave it out")
        report(f"teacher's answers on {len(self.prompts)} references: {size / 1e6:.0f} MB on disk")
        if shutil.disk_usage(folder).free < size + 1e8:
            raise ValueError(
                f"--cache-teacher needs {size / 1e6:.0f} MB, the disk has less: keep the best tokens only (32)"
            )
        beside = [path.with_name(f"{path.name}.{os.getpid()}.partial") for path in self.paths]
        for path in beside:
            path.unlink(missing_ok=True)
        try:
            with contextlib.ExitStack() as opened:
                files = [opened.enter_context(open(path, "xb")) for path in beside]
                for file, (shape, kind) in zip(files, self.shapes):
                    about = {"descr": np.dtype(kind).str, "fortran_order": False, "shape": shape}
                    np.lib.format.write_array_header_1_0(file, about)
                for first in progress(range(0, len(self.prompts), batch_size), "teacher's answers"):
                    answers = self._answers(range(first, min(first + batch_size, len(self.prompts))))
                    for file, (_, kind), rows in zip(files, self.shapes, answers):
                        file.write(np.ascontiguousarray(rows, kind))
                for file in files:
                    file.flush()
                    os.fsync(file.fileno())
            # Only closed files can be renamed everywhere: Windows refuses to where one is open or mapped.
            for path, final in zip(beside, self.paths):
                os.replace(path, final)
            write_whole(self.checksum_file, self._checksum())
        finally:
            for path in beside:
                path.unlink(missing_ok=True)

    def _agrees(self):
        """Whether what is on disk is what the teacher answers now, for three examples."""
        if any(array.shape != shape for array, (shape, _) in zip(self.arrays, self.shapes)):
            return False
        for i in sorted({0, len(self.prompts) // 2, len(self.prompts) - 1}):
            # Ids may change places where two tokens are equally good; their log-probabilities do not.
            stored = torch.from_numpy(self.arrays[-1][self.starts[i] : self.starts[i] + len(self.responses[i])].copy())
            answers = torch.from_numpy(self._answers([i])[-1])
            difference = (stored.log_softmax(-1) - answers.log_softmax(-1)).abs()
            if difference.numel() and not difference.mean() < TOLERANCE:  # nan is not below
                return False
        return True

    def batch(self, chosen, width, device):
        """Rows of the examples `chosen` -> one tensor per file, (B, width, ...), 0 where no response token is
        predicted."""
        tensors = []
        for array in self.arrays:
            out = np.zeros((len(chosen), width, array.shape[1]), array.dtype)
            for b, i in enumerate(chosen):
                start, length = len(self.prompts[i]) - 1, len(self.responses[i])
                out[b, start : start + length] = array[self.starts[i] : self.starts[i] + length]
            tensors.append(to_device(torch.from_numpy(out), device))
        return [tensor.long() if tensor.dtype == torch.int32 else tensor for tensor in tensors]
