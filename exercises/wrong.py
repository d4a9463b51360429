"""The grader's own test: wrong solutions, each of which must be rejected at the law that it breaks, and right ones that
are written otherwise and must pass. tests/test_exercises.py runs both; teacher.md holds the table of the wrong ones.

A wrong solution is solutions.py with one piece of text replaced: the mistakes that students make, and that public
projects made. `old` stands exactly once in it, unless a row says in which function.
"""

from typing import NamedTuple


class Wrong(NamedTuple):
    """A wrong solution of an exercise."""

    number: int
    mistake: str
    law: str  # the first law that it breaks, without its number
    old: str
    new: str
    function: str = ""  # where `old` is replaced, if it stands in several


WRONG = [Wrong(*row) for row in (
    (1, "the mask is multiplied", "padding",
     "torch.where(mask, per_token, 0.0)", "per_token * mask"),
    (1, "the mean over all positions", "every_token_counts_the_same",
     "inside.sum() / mask.sum().clamp(min=1)", "inside.mean()"),
    (1, "divided by the rows", "every_token_counts_the_same",
     "inside.sum() / mask.sum().clamp(min=1)", "inside.sum() / len(mask)"),
    (1, "rows without a token counted", "every_response_counts_the_same",
     "mask.any(1).sum().clamp(min=1)", "len(mask)"),
    (1, "the last position dropped", "every_token_counts_the_same",
     "torch.where(mask, per_token, 0.0)", "torch.where(mask, per_token, 0.0)[:, :-1]"),
    (1, "0 / 0 where nothing is masked in", "nothing_to_average",
     "mask.sum().clamp(min=1)\n    row", "mask.sum()\n    row"),
    (2, "direction swapped", "teacher_first",
     "kl(teacher_logits.detach().log_softmax(-1), student_logits.log_softmax(-1))",
     "kl(student_logits.log_softmax(-1), teacher_logits.detach().log_softmax(-1))"),
    (2, "the mean over V", "one_value_per_position",
     "(first_logprobs - second_logprobs)).sum(-1)", "(first_logprobs - second_logprobs)).mean(-1)"),
    (2, "the mean over everything", "one_value_per_position",
     "(first_logprobs - second_logprobs)).sum(-1)", "(first_logprobs - second_logprobs)).sum(-1).mean()"),
    (2, "the entropy left out", "raw_logits",
     "(first_logprobs.exp() * (first_logprobs - second_logprobs))", "(-first_logprobs.exp() * second_logprobs)"),
    (2, "the teacher not normalised", "raw_logits",
     "kl(teacher_logits.detach().log_softmax(-1), student_logits", "kl(teacher_logits.detach(), student_logits"),
    (2, "log of a softmax plus a little", "log_space",
     "kl(teacher_logits.detach().log_softmax(-1), student_logits.log_softmax(-1))",
     "kl(teacher_logits.detach().log_softmax(-1), (student_logits.softmax(-1) + 1e-9).log())"),
    (2, "the teacher not detached", "student_learns_alone",
     "kl(teacher_logits.detach().log_softmax(-1), student_logits", "kl(teacher_logits.log_softmax(-1), student_logits"),
    (2, "the student detached inside", "log_space",
     "kl(teacher_logits.detach().log_softmax(-1), student_logits.log_softmax(-1))",
     "kl(teacher_logits.detach().log_softmax(-1), student_logits.detach().log_softmax(-1))"),
)]  # fmt: skip


# Right, but written otherwise: (number, how, source of its functions).
RIGHT = (
    (1, "loops", '''
def masked_mean(per_token, mask, reduction="token"):
    rows = [[value for value, inside in zip(row, keep) if inside] for row, keep in zip(per_token, mask.tolist())]
    if reduction == "sequence":
        rows = [[sum(row) / len(row)] for row in rows if row]
    values = [value for row in rows for value in row]
    return sum(values) / len(values) if values else 0.0 * per_token.nan_to_num(0, 0, 0).sum()
'''),
    (1, "index and float64", '''
def masked_mean(per_token, mask, reduction="token"):
    values = per_token.double()
    if not mask.any():
        return values[mask].sum()
    if reduction == "token":
        return values[mask].mean()
    return torch.stack([row[keep].mean() for row, keep in zip(values, mask) if keep.any()]).mean()
'''),
    (2, "torch's own kl_div", '''
def kl(first_logprobs, second_logprobs):
    return torch.nn.functional.kl_div(second_logprobs, first_logprobs, reduction="none", log_target=True).sum(-1)
def forward_kl(student_logits, teacher_logits):
    return kl(torch.log_softmax(teacher_logits, -1).detach(), torch.log_softmax(student_logits, -1))
def reverse_kl(student_logits, teacher_logits):
    return kl(torch.log_softmax(student_logits, -1), torch.log_softmax(teacher_logits, -1).detach())
'''),
    (2, "cross-entropy minus entropy, in float64", '''
def kl(first_logprobs, second_logprobs):
    first, second = first_logprobs.double(), second_logprobs.double()
    return -(first.exp() * second).sum(-1) + (first.exp() * first).sum(-1)
def forward_kl(student_logits, teacher_logits):
    return kl(teacher_logits.detach().double().log_softmax(-1), student_logits.double().log_softmax(-1))
def reverse_kl(student_logits, teacher_logits):
    with torch.no_grad():
        teacher_logprobs = teacher_logits.double().log_softmax(-1)
    return kl(student_logits.double().log_softmax(-1), teacher_logprobs)
'''),
)  # fmt: skip
