"""Laws of lab/teacher_cache.py: what is read back is what the teacher says, and nothing else is ever believed."""

import os
import shutil
from pathlib import Path

import adapters
import numpy as np
import pytest
import torch

import losses
from lab.teacher_cache import TeacherCache

PROMPTS = [[1, 2, 3], [4], [5, 6], [1, 1, 1, 1], [2]]
RESPONSES = [[7, 8], [1, 2, 3, 0], [], [0], [5, 4, 3, 2, 1]]


@pytest.fixture
def teacher():
    model = adapters.make_gpt(9, 12, 2, 2, 8, seed=3)
    with torch.no_grad():
        model.token_embedding.weight.mul_(30)  # far from uniform
    return model


def open_cache(teacher, folder, best=0, said=None, **options):
    report = said.append if said is not None else lambda line: None
    return TeacherCache(teacher, PROMPTS, RESPONSES, best, folder=folder, report=report, **options)


@pytest.mark.parametrize("best", [0, 1, 3, 8])
def test_what_is_read_is_what_the_teacher_says(teacher, tmp_path, best):
    """Row t of an example predicts token t + 1; rows that predict no response token are 0; any batch, any order."""
    cache = open_cache(teacher, tmp_path, best)
    for chosen in ([0, 1, 2, 3, 4], [4, 0], [3]):
        tensors = cache.batch(chosen, 9, torch.device("cpu"))
        for b, i in enumerate(chosen):
            text, start = PROMPTS[i] + RESPONSES[i], len(PROMPTS[i]) - 1
            answers = adapters.model_logits(teacher, torch.tensor([text]))[0, start : len(text) - 1]
            rows = slice(start, len(text) - 1)
            if best:
                ids, logprobs = (tensor[b] for tensor in tensors)
                assert ids.dtype == torch.long and ids.shape == (9, best) and logprobs.shape == (9, best + 1)
                assert torch.equal(ids[rows], answers.topk(best).indices)
                torch.testing.assert_close(logprobs[rows], losses.with_tail(answers, ids[rows]))
            else:
                torch.testing.assert_close(tensors[0][b, rows], answers)
            outside = torch.ones(9, dtype=torch.bool)
            outside[rows] = False
            assert all(not tensor[b][outside].any() for tensor in tensors)


def test_it_is_made_once_and_belongs_to_its_teacher(teacher, tmp_path):
    """A second opening reads; another teacher, another K, another precision or other
    references have files of their own."""
    said = []
    first = open_cache(teacher, tmp_path, 0, said)
    second = open_cache(teacher, tmp_path, 0, said)
    assert len(said) == 1 and first.paths == second.paths and isinstance(second.arrays[0], np.memmap)
    other = adapters.make_gpt(9, 12, 2, 2, 8, seed=4)
    paths = [open_cache(*arguments, said=said).paths[0] for arguments in ((other, tmp_path), (teacher, tmp_path, 2))]
    paths.append(open_cache(teacher, tmp_path, said=said, precision="bf16").paths[0])
    paths.append(TeacherCache(teacher, PROMPTS, RESPONSES[::-1], folder=tmp_path, report=said.append).paths[0])
    assert len({first.paths[0], *paths}) == 5 == len(said)
    assert not list(tmp_path.glob("*.partial"))


def test_a_file_that_contradicts_the_teacher_is_refused(teacher, tmp_path):
    """Other numbers or another shape under a checksum of their own: one line, and what to delete."""
    cache = open_cache(teacher, tmp_path)
    good = np.load(cache.paths[0])
    for bad in (good[::-1], good * 1.2, good[:-1], np.full_like(good, np.nan)):
        np.save(cache.paths[0], bad)
        cache.checksum_file.write_text(cache._checksum())
        with pytest.raises(ValueError, match="does not agree with the teacher: delete"):
            open_cache(teacher, tmp_path)


@pytest.mark.parametrize("best", [0, 2])
def test_a_damaged_file_is_set_aside_and_made_again(teacher, tmp_path, best):
    """Any bit of any file, a cut or a missing one: named in one line, kept under another name,
    and the answers are right again."""
    first = open_cache(teacher, tmp_path, best)
    whole = {path: path.read_bytes() for path in (*first.paths, first.checksum_file)}
    for path, content in whole.items():
        flips = [
            content[:place] + bytes([content[place] ^ 1 << place % 8]) + content[place + 1 :]
            for place in (0, len(content) // 2, len(content) - 1)
        ]
        for bad in (*flips, content[: len(content) // 2], b"", None):
            path.unlink() if bad is None else path.write_bytes(bad)
            said = []
            again = open_cache(teacher, tmp_path, best, said)
            assert all(np.array_equal(one, other) for one, other in zip(first.arrays, again.arrays))
            # The seal is written last: without one nothing was promised.
            unfinished = path == first.checksum_file and bad is None
            assert (
                len(said) == (1 if unfinished else len(whole) + (bad is not None))
                and all("set aside" in line for line in said[:-1])
            )
            assert {path: path.read_bytes() for path in whole} == whole
    assert all(path in whole or ".damaged" in path.name for path in tmp_path.iterdir())


def test_a_build_that_breaks_leaves_nothing(teacher, tmp_path, monkeypatch):
    """Out of disk, before or while writing: no file that a later run would take for a whole one."""
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage._replace(free=10))
    with pytest.raises(ValueError, match="keep the best tokens only"):
        open_cache(teacher, tmp_path)
    monkeypatch.undo()
    answers = TeacherCache._answers

    def fail(self, chosen):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(TeacherCache, "_answers", fail)
    with pytest.raises(OSError, match="No space"):
        open_cache(teacher, tmp_path)
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setattr(TeacherCache, "_answers", answers)
    open_cache(teacher, tmp_path)


def test_more_than_the_vocabulary_is_refused(teacher, tmp_path):
    with pytest.raises(ValueError, match="1..8"):
        open_cache(teacher, tmp_path, 9)


def test_only_closed_files_are_renamed(teacher, tmp_path, monkeypatch):
    """Windows renames no file that is open or mapped: when one takes its name, it is neither in this process."""
    renamed, replace = [], os.replace

    def replace_closed(source, target):
        assert not [link for link in Path("/proc/self/fd").iterdir() if os.path.realpath(link) == str(source)]
        assert str(source) not in Path("/proc/self/maps").read_text()
        renamed.append(Path(target).suffix)
        replace(source, target)

    monkeypatch.setattr(os, "replace", replace_closed)
    open_cache(teacher, tmp_path, best=2)
    assert renamed == [".npy", ".npy", ".sha256"]
