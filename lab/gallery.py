"""The loss laboratory: python losses.py. Every loss on three tokens, and what a student with one parameter makes of
each.

The table takes the example of losses.py, teacher (.6, .3, .1) against student (.2, .5, .3), and goes to the limits: a
student that is the teacher, one that says nothing but the teacher's best token, one that says nothing but its worst.
The picture fits a student whose only parameter is where its bump stands to a teacher with two bumps. A loss that covers
modes puts it between them, where the teacher says nothing; a loss that seeks one puts it on one of them.
"""

import os
from xml.sax.saxutils import escape

import torch

from lab import command_line, processes
from lab.records import write_whole
from losses import (
    DIVERGENCES,
    MATCHING_LOSSES,
    SEQUENCE_LOSSES,
    TOKEN_LOSSES,
    Tokens,
    per_token_loss,
)

TEACHER, STUDENT = (0.6, 0.3, 0.1), (0.2, 0.5, 0.3)
NEARLY_NOTHING = 1e-6  # of a student that says one token only; with 0 most losses would be infinite, and some are nan
PLACES, WIDTH = 61, 4.0  # tokens on a line, and the width of all bumps
BUMPS = ((15, 0.6), (45, 0.4))  # place and share of the teacher's two


def as_logits(probs):
    """Probabilities as (1, 1, V) logits in float64."""
    return torch.tensor(probs, dtype=torch.float64).log()[None, None]


def two_rows(logits):
    """The example at two positions, so that losses of whole sequences have a pair: (1, 2, V), the second one
    reversed."""
    return torch.cat([logits, logits.flip(-1)], 1)


def value_and_gradient(name, student_probs=STUDENT):
    """(value, gradient as a list) of a loss at the example's first position, target 0, written by the student."""
    student_logits, teacher_logits = two_rows(as_logits(student_probs)), two_rows(as_logits(TEACHER))
    student_logits.requires_grad_()
    tokens = Tokens(torch.tensor([[0, 2]]), torch.ones(1, 2, dtype=torch.bool), torch.zeros(1, 2, dtype=torch.bool))
    value = per_token_loss(name, student_logits, teacher_logits, tokens)[0, 0]
    (gradient,) = torch.autograd.grad(value, student_logits)
    return value.item(), gradient[0, 0].tolist()


def table():
    """Every loss of losses.py on three tokens, as lines of text."""
    best, worst = ([NEARLY_NOTHING] * 3 for _ in range(2))
    best[0] = worst[2] = 1 - 2 * NEARLY_NOTHING
    lines = [
        f"{'':<34}{'value':>10}  {'gradient in the student logits':<32}{'equal':>10}{'best only':>11}{'worst only':>11}"
    ]
    groups = (("divergences", DIVERGENCES), ("matches", MATCHING_LOSSES),
              ("of a token", ["cross_entropy", *TOKEN_LOSSES]),
              ("of a sequence", SEQUENCE_LOSSES))  # fmt: skip
    for title, names in groups:
        lines.append(f"{title}:")
        for name in names:
            value, gradient = value_and_gradient(name)
            limits = [value_and_gradient(name, probs)[0] + 0.0 for probs in (TEACHER, best, worst)]
            limits = "".join(f"{0.0 if abs(limit) < 5e-7 else limit:>11.6f}" for limit in limits)
            numbers = " ".join(f"{number:+.6f}" for number in gradient)
            lines.append(f"  {name:<32}{value:>10.6f}  {numbers:<31}{limits}")
    return lines


def bump(place):
    """Log-probabilities of a student whose bump stands at `place` (any shape (...)): (..., PLACES)."""
    away = torch.arange(PLACES, dtype=torch.float64) - place[..., None]
    return (-0.5 * (away / WIDTH) ** 2).log_softmax(-1)


def two_bumps():
    """The teacher's log-probabilities, (PLACES,)."""
    shares = torch.tensor([share for _, share in BUMPS], dtype=torch.float64)
    return (
        bump(torch.tensor([float(place) for place, _ in BUMPS], dtype=torch.float64)) + shares.log()[:, None]
    ).logsumexp(0)


def fit(name):
    """Where the loss puts the student's bump: the best of a fine grid -> (place, its loss, the loss's range over the
    grid)."""
    grid = torch.linspace(0, PLACES - 1, 20 * (PLACES - 1) + 1, dtype=torch.float64)
    student_logits = bump(grid)[None]  # (1, places, V)
    losses = per_token_loss(name, student_logits, two_bumps().expand_as(student_logits), None)[0]
    best = int(losses.argmin())
    return grid[best].item(), losses[best].item(), (losses.max() - losses.min()).item()


def verdict(place):
    """What such a student does, in words."""
    for (mode, _), words in zip(BUMPS, ("seeks the larger mode", "seeks the smaller mode")):
        if abs(place - mode) < WIDTH:
            return words
    return "stands between them" if BUMPS[0][0] < place < BUMPS[1][0] else "is elsewhere"


def picture(fits):
    """{name: place} -> the text of an SVG file: one panel per loss, teacher grey, fitted student blue."""
    columns, wide, high, top = 4, 200, 130, 58
    teacher, rows = two_bumps().exp(), -(-len(fits) // columns)
    tallest = bump(torch.tensor(30.0)).exp().max().item()

    def curve(probs, left, base, close):
        points = " ".join(
            f"{left + 10 + i * (wide - 20) / (PLACES - 1):.1f},{base - 70 * p / tallest:.1f}"
            for i, p in enumerate(probs.tolist())
        )
        start, end = f"{left + 10},{base}", f"{left + wide - 10},{base}"
        return f"{start} {points} {end}" if close else points

    width, height = columns * wide, top + rows * high
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}" '
        'role="img" font-family="sans-serif">',
        "<title>A student with one parameter fits a teacher with two modes, under every loss</title>",
        f'<rect width="{width}" height="{height}" fill="#FFFFFF"/>',
        '<text x="10" y="22" font-size="15" font-weight="600">One parameter against two modes</text>',
        '<text x="10" y="41" font-size="12" fill="#555555">grey: the teacher; '
        "blue: the student where the loss is smallest; "
        "it can move, and do nothing else</text>",
    ]
    for number, (name, place) in enumerate(fits.items()):
        left, base = number % columns * wide, top + number // columns * high + 92
        parts.append(f'<polygon points="{curve(teacher, left, base, True)}" fill="#C8C8C8"/>')
        student = bump(torch.tensor(place, dtype=torch.float64)).exp()
        parts.append(
            f'<polyline points="{curve(student, left, base, False)}" fill="none" stroke="#0072B2" stroke-width="2"/>'
        )
        parts.append(f'<path d="M{left + 10} {base}H{left + wide - 10}" stroke="#333333"/>')
        parts.append(f'<text x="{left + 10}" y="{base + 15}" font-size="11">{escape(name)}</text>')
        parts.append(f'<text x="{left + 10}" y="{base + 28}" font-size="10" fill="#555555">{verdict(place)}</text>')
    return "\n".join([*parts, "</svg>"]) + "\n"


def check_place(path):
    """OSError, before all fits, where the picture cannot be written, or where something lies that is no picture."""
    why = None
    if not path or os.path.isdir(path):
        why = "a file's name is needed"
    elif not os.path.isdir(os.path.dirname(path) or "."):
        why = "there is no such folder"
    elif os.path.lexists(path):
        why = "something lies there that is no picture"
        if os.path.isfile(path):  # a pipe would keep its reader waiting
            with open(path, "rb") as file:
                why = None if file.read(5) == b"<svg " else why
    if why:
        raise OSError(f"the picture cannot be written to {path or 'nothing'} ({why}): name another place by --svg")


def tell(path):
    """Print table and fits, write the picture to `path`."""
    check_place(path)
    print(
        "Teacher (.6, .3, .1), student (.2, .5, .3); the target, where one is asked for, is token 0, "
        "written by the student."
    )
    print("equal: the student is the teacher; best/worst only: it says nothing but the teacher's best/worst token.\n")
    print("\n".join(table()))
    print(
        f"\nA bump that can only move, and a teacher with bumps at {BUMPS[0][0]} ({BUMPS[0][1]}) and {BUMPS[1][0]} "
        f"({BUMPS[1][1]}):\n"
    )
    fits = {}
    for name in (*DIVERGENCES, *MATCHING_LOSSES):
        fits[name], loss, spread = fit(name)
        flat = "; hardly cares" if spread < 1e-3 else ""
        print(f"  {name:<34}at {fits[name]:5.2f}   loss {loss:8.4f}   {verdict(fits[name])}{flat}")
    try:
        write_whole(path, picture(fits))
    except OSError as error:
        raise OSError(
            f"the picture cannot be written to {path} ({error.strerror}): name another place by --svg"
        ) from error
    print(f"\nthe picture lies in {path}")
    return fits


def main(argv=None):
    """The gallery of losses: every loss on three tokens, and a picture of what each makes of a teacher with two
    modes."""
    processes.use_any_terminal()
    parser = command_line.Parser(
        prog="losses.py", description="Every loss on three tokens, and on a teacher with two modes."
    )
    parser.add_argument(
        "--svg",
        type=os.path.expanduser,
        metavar="FILE",
        default="losses.svg",
        help="where the picture goes (default: losses.svg)",
    )
    tell(parser.parse_args(argv).svg)
    return 0
