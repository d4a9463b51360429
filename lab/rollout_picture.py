"""A picture of speculative knowledge distillation: rollouts of one student before and after it was distilled, as SVG.

    runs of a study -> first run of a method -> its first and its last `rollout` line -> one row of tokens for each

Nothing is picked by hand: it is the run of the lowest pair and seed, with the first PROMPTS of its held-out prompts
(held_out.py). Who wrote a token is said by a colour and by a form: a plain box, a line through it, a frame. SVG cannot
measure text, so a token's box is as wide as its letters are in the widest of the fonts, and a row is as wide as its
boxes.
"""

from lab import svg
from lab.reading import as_number, rollout_lines
from lab.terminal import width
from lab.who_wrote import BLANK, teachers_share, written_out

PROMPTS = 1
WIDTH, MARGIN = 840, 12
FONTS = "ui-monospace, SFMono-Regular, Menlo, Consolas, 'DejaVu Sans Mono', 'Liberation Mono', monospace"
LETTER = 7.2  # pixels of an average letter of other text at font size 12, on the wide side
ADVANCE = 0.62  # width of a letter in font sizes, in the widest of these fonts
TOKEN, SMALL = 16, 11  # font sizes of a token, and of its rank with the teacher
BOX, PADDING, GAP = 22, 3.5, 2  # height of a token's box, space beside its letters, space between two boxes
MOST_OF_TOKEN, MOST_OF_PROMPT, MOST_OF_FACTS, MOST_OF_LINE = 24, 70, 50, 120  # columns; what is longer is cut
STYLE = f"""<style>
.prompt, .kept, .rejected, .teacher, .rank {{ font-family: {FONTS}; }}
.faint {{ fill: #555555; }}
rect.card {{ fill: #FFF1DC; }}
rect.kept {{ fill: #EDEFF2; }}
rect.rejected {{ fill: none; }}
rect.teacher {{ fill: #FFFFFF; stroke: #0060A0; stroke-width: 2; }}
text.rejected {{ fill: #8F3300; }}
path.rejected {{ stroke: #E07B39; stroke-width: 2; }}
text.teacher {{ fill: #004C80; font-weight: 700; }}
</style>"""


def rollout_picture(runs, method):
    """SVG text of the rollouts of a method's first run, before the first step and after the last.

    Raises ValueError if no run is of the method, or its rollout lines of step 0 and of a later step cannot be drawn.
    """
    own = [run for run in runs if run.variant == method]
    if not own:
        raise ValueError(f"the picture of a rollout needs a finished run of {method}, and there is none: run it first")
    run = min(own, key=lambda run: (run.pair, run.seed, run.budget != "steps"))
    name = f"{_cut(run.variant, 20)}, pair {run.pair}, seed {run.seed}"
    lines = [line for line in rollout_lines(run) if line["rollouts"]]
    steps = [line["step"] for line in lines]
    if not steps or steps[0] != 0 or len(steps) == 1:
        found = f"those of step {', '.join(map(str, steps))} alone" if steps else "none"
        raise ValueError(f"the picture of a rollout needs the rollout lines of step 0 and of a later step, and the "
                         f"record of {name} holds {found} that can be drawn: run it again")
    before, after = lines[0], lines[-1]
    stages = {"before": before, f"after {after['step']} steps": after}
    left = MARGIN + 8 + max(len(label) for label in stages) * LETTER
    parts, top = _heading(run, name, before)
    n_prompts = min(PROMPTS, *(len(line["rollouts"]) for line in stages.values()))
    for number in range(n_prompts):
        asked = before["rollouts"][number]
        cut = "… " if asked.get("prompt_cut") else ""
        prompt = _cut(cut + written_out(asked["prompt"]), MOST_OF_PROMPT)
        parts.append(svg.text(MARGIN, top + 12, "held-out prompt", 12, extra='class="faint"'))
        parts.append(svg.text(left, top + 12, prompt, 13, extra=f'class="prompt" {_held(prompt, 13)}'))
        top += 18
        for label, line in stages.items():
            rollout = line["rollouts"][number]
            count = f"{rollout['written_by'].count('t')} of {len(rollout['tokens'])} replaced"
            parts.append(svg.text(MARGIN, top + 14, label, 12, extra='font-weight="600"'))
            parts.append(svg.text(MARGIN, top + 28, count, 11, extra='class="faint"'))
            row, height = _wrapped(_units(line, rollout), left, top)
            parts, top = parts + row, top + max(height, 30)
        top += 7
    told = []
    for label, line in stages.items():
        replaced, whole = teachers_share({"rollouts": line["rollouts"][:n_prompts]})
        told.append(f"{label}, the teacher replaced {replaced} of {whole} tokens")
    title = f"Rollouts of speculative knowledge distillation ({name}): {'; '.join(told)}"
    return svg.document(WIDTH, top, title, [STYLE, *parts])


def _heading(run, name, line):
    """(elements, height) of what stands above the rows: what it is, of which run, and what the boxes mean."""
    facts = _cut(f"{name}, task {run.header.get('task', '?')}, K = {_top_k(line)}.", MOST_OF_FACTS)
    kept = [as_number(figures.get("accept_rate")) for figures in (run.header.get("student_start") or {}, run.final)]
    if None not in kept:
        start, end = (f"{100 * (1 - share):.1f} %" for share in kept)
        facts += f" Replaced on all test prompts: {start} of the tokens before, {end} after."
    words = "Speculative knowledge distillation: the student writes, the teacher corrects"
    parts = [svg.text(MARGIN, 19, words, 15, extra='font-weight="700"'),
             svg.text(MARGIN, 35, _cut(facts, MOST_OF_LINE), 11, extra='class="faint"')]
    x = MARGIN
    for (wide, _, box), meaning in (
        (_kept("kept"), "the student's proposal stays"),
        (_replaced("rejected", "teacher's"), f"not among the teacher's K = {_top_k(line)} likeliest"),
    ):
        parts += [*svg.moved(x, 43, box), svg.text(x + wide + 8, 58, meaning, 12)]
        x += wide + 24 + len(meaning) * LETTER
    return parts, 71


def _top_k(line):
    """SKD's K as text."""
    return _cut(str(line["accept_top_k"]), 6)


def _units(line, rollout):
    """(width, height, elements at the origin) of each token; a replaced one is one with the proposal before it."""
    def text(token):
        return _cut(written_out(line["texts"][str(token)]), MOST_OF_TOKEN).replace(" ", BLANK)

    columns = (rollout[name] for name in ("tokens", "written_by", "rejected", "rank"))
    for token, writer, rejected, rank in zip(*columns):
        if writer != "t":
            yield _kept(text(token))
        else:
            yield _replaced(text(rejected), text(token), f"rank {_cut(written_out(rank), 12)} > K = {_top_k(line)}")
    if rollout.get("cut"):
        yield _kept("…")


def _kept(words):
    """A token that the student wrote."""
    wide, box = _box(words, "kept")
    return wide, BOX, box


def _replaced(rejected, words, note=None):
    """A card with what the student proposed, an arrow, what the teacher wrote instead, and a note below."""
    (before, struck), (behind, framed), arrow = _box(rejected, "rejected"), _box(words, "teacher"), 20
    boxes, noted = before + arrow + behind, _letters(note, SMALL) if note else 0
    whole, height = max(boxes, noted) + 2 * PADDING, BOX + (13 if note else 0)
    x = (whole - boxes) / 2
    parts = [
        f'<rect class="card" y="-3" width="{whole:.1f}" height="{height + 6}" rx="4"/>',
        *svg.moved(x, 0, struck),
        f'<path d="M{x + before + 4:.1f} 11h{arrow - 9}m-4 -4l4 4l-4 4" fill="none" stroke="{svg.INK}"/>',
        *svg.moved(x + before + arrow, 0, framed),
    ]
    if note:
        parts.append(svg.text(whole / 2, BOX + 12, note, SMALL, "middle", f'class="rank" {_held(note, SMALL)}'))
    return whole, height, parts


def _box(words, kind):
    """(width, elements) of a token in its box, at the origin; the end token has no text, and is named."""
    words, size = (words, TOKEN) if words else ("[end]", SMALL)
    wide = _letters(words, size) + 2 * PADDING
    held = _held(words, size) if len(words) > 1 else ""
    return wide, [
        f'<rect class="{kind}" width="{wide:.1f}" height="{BOX}" rx="3"/>',
        # Slanted, since a level line looks like a minus, and behind the letters, which stay legible.
        *([f'<path class="rejected" d="M0 {BOX - 2}L{wide:.1f} 2"/>'] if kind == "rejected" else []),
        svg.text(wide / 2, BOX / 2 + 0.35 * size, words, size, "middle", f'class="{kind}" {held}'),
    ]


def _wrapped(units, left, top):
    """(elements, height) of units beside each other from left to the margin, on as many lines as they need."""
    parts, x, y, tallest = [], left, top, 0
    for wide, height, elements in units:
        if x + wide > WIDTH - MARGIN and x > left:
            x, y, tallest = left, y + tallest + 7, 0
        parts += svg.moved(x, y, elements)
        x, tallest = x + wide + GAP, max(tallest, height)
    return parts, y + tallest + 7 - top


def _letters(words, size):
    """Pixels that a text takes in the widest of the fonts."""
    return max(width(words), 1) * ADVANCE * size


def _held(words, size):
    """Attributes that hold a text to that width in whatever font there is."""
    return f'textLength="{_letters(words, size):.1f}" lengthAdjust="spacingAndGlyphs"'


def _cut(text, most):
    """The beginning of a text, at most so many columns; an ellipsis says that it goes on."""
    if width(text) <= most:
        return text
    while width(text) > most - 1:
        text = text[:-1]
    return text + "…"
