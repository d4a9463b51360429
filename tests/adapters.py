"""Thin functions from plain values to this project's code: the stable surface that tests and exercises use.

Everything runs on CPU in float32. A prompt or response is a list of token ids; a response holds what was generated,
the end token included. Tests go through here, so that the inside of the project is free to change.
"""

import torch

import losses
import sample
import train_okd
from data import tasks
from lab import exchange
from model import GPT, GPTConfig, OnlineTeacher


def make_gpt(vocab_size, block_size, n_layer, n_head, n_embd, seed=0):
    """A GPT in eval mode whose weights are drawn from `seed`."""
    config = GPTConfig(vocab_size, block_size, n_layer, n_head, n_embd)
    return GPT(config, torch.Generator().manual_seed(seed)).eval()


def model_logits(model, tokens):
    """(B, T) long -> (B, T, V); row t predicts token t+1."""
    with torch.no_grad():
        return model(tokens)


def divergence_names():
    """The names in the table of token-level divergences."""
    return list(losses.DIVERGENCES)


def divergence(name, student_logits, teacher_logits, **hyper):
    """(B, T, V), (B, T, V) -> (B, T) in nats."""
    return losses.DIVERGENCES[name](student_logits, teacher_logits, **hyper)


def masked_mean(per_token, mask):
    """Scalar: the mean of per_token over the positions where mask is True."""
    return losses.masked_mean(per_token, mask)


def _generator(seed):
    return torch.Generator().manual_seed(seed)


def generate(
    model, prompts, max_new_tokens, *, temperature=1.0, top_k=None, top_p=None, greedy=False, eos_token=None, seed=0,
    row_keys=None,
):  # fmt: skip
    """List of responses."""
    return sample.generate(
        model, prompts, max_new_tokens, generator=_generator(seed), temperature=temperature, top_k=top_k, top_p=top_p,
        greedy=greedy, eos_token=eos_token, row_keys=row_keys,
    ).responses()  # fmt: skip


def interleaved_generate(
    student, teacher, prompts, max_new_tokens, *, gamma=5, accept_rule="topk", accept_top_k=25, replace="sample",
    student_temperature=1.0, teacher_temperature=1.0, eos_token=None, seed=0, row_keys=None, **rule,
):  # fmt: skip
    """(responses, sources): a source is a list of "student" / "teacher", one per response token."""
    rollout = sample.interleaved_generate(
        student, teacher, prompts, max_new_tokens, generator=_generator(seed), gamma=gamma, accept_rule=accept_rule,
        accept_top_k=accept_top_k, replace=replace, student_temperature=student_temperature,
        teacher_temperature=teacher_temperature, eos_token=eos_token, row_keys=row_keys, **rule,
    )  # fmt: skip
    rows = zip(rollout.source.tolist(), rollout.prompt_len.tolist(), rollout.lengths.tolist())
    sources = [[sample.SOURCE_NAMES[source] for source in row[start:stop]] for row, start, stop in rows]
    return rollout.responses(), sources


def speculative_generate(
    draft, target, prompts, max_new_tokens, *, gamma=4, temperature=1.0, eos_token=None, seed=0, row_keys=None
):
    """List of responses, distributed exactly as the target's own samples."""
    return sample.speculative_generate(
        draft, target, prompts, max_new_tokens, generator=_generator(seed), gamma=gamma, temperature=temperature,
        eos_token=eos_token, row_keys=row_keys,
    ).responses()  # fmt: skip


def task_names():
    """The names that make_task knows."""
    return tasks.task_names()


def make_task(name, **options):
    """A task with examples(split), score(example, completion) and corpus_score(examples, completions)."""
    return tasks.make_task(name, **options)


def attach_online_module(teacher, kind="lora", rank=8, seed=0):
    """An OnlineTeacher with the call signature of the GPT."""
    return OnlineTeacher(teacher, kind, rank, generator=_generator(seed)).eval()


def okd_losses(student_logits, teacher_logits, targets, mask, alpha=0.5):
    """(student_loss, teacher_loss) scalars, each side detached from the other."""
    references = losses.masked_mean(losses.cross_entropy(teacher_logits, targets), mask)
    student_loss = train_okd.kd_loss(student_logits, teacher_logits, mask, 0.0, 1.0, losses.forward_kl)
    return student_loss, train_okd.kd_loss(
        teacher_logits, student_logits, mask, references, alpha, losses.forward_kl
    )


def load_gpt2(folder):
    """A GPT-2 in the Hugging Face layout (config.json, model.safetensors) as a GPT."""
    return exchange.load_gpt2(folder)


def export_gpt2(model, folder):
    """A GPT into that layout."""
    exchange.export_gpt2(model, folder)
