"""Held-out rollouts as HTML: who wrote each token, what was rejected, and what both models would have written instead.

    rollout lines of a run (held_out.py) -> one block per prompt, with a row of tokens per line: start, middle, end

Everything is there without a script: a token that is hovered over, tapped or reached with the tab key shows its details
by CSS alone. Who wrote a token is said by a colour and by a form: a line below, a frame, or a line through it.
"""

from html import escape

from lab.reading import as_number

LEGEND = (
    '<p class="legend"><span class="s">kept</span> written by the student. <del>rejected</del>'
    '<span class="t">replacement</span> a student\'s token that was rejected, and what the teacher wrote instead. '
    "Point at a token, tap it or reach it with the tab key to see what both models hold likely there.</p>"
)
BLANK = "\u2423"  # a space that is seen


def written_out(text):
    """Text of a record on one line: what cannot be printed is written out."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(text))


def shown(text):
    """Text of a record as HTML that shows it as it is: markup is text, and what cannot be printed is written out."""
    return escape(written_out(text))


def teachers_share(line):
    """(tokens that the teacher wrote, all tokens) of a line's rollouts."""
    written_by = [letter for rollout in line["rollouts"] for letter in rollout["written_by"]]
    return written_by.count("t"), len(written_by)


def stage(lines, i):
    """What the i-th of a run's lines is called: start, middle or end, with its step."""
    step = lines[i]["step"]
    words = "start" if step == 0 else "end" if i == len(lines) - 1 else "middle" if len(lines) == 3 else ""
    return f"{words}, step {step}".removeprefix(", ")


def rollouts_html(lines):
    """The lines of one run as HTML: per prompt a row of tokens for each line, so that the same prompt is compared."""
    parts = []
    for number in range(max((len(line["rollouts"]) for line in lines), default=0)):
        rows = [(i, line["rollouts"][number]) for i, line in enumerate(lines) if number < len(line["rollouts"])]
        prompt = rows[0][1]
        cut = "… " if prompt.get("prompt_cut") else ""
        parts.append(f'<p class="prompt">prompt <code>{cut}{shown(prompt["prompt"])}</code></p>')
        for i, rollout in rows:
            replaced, n_tokens = rollout["written_by"].count("t"), len(rollout["tokens"])
            count = f"the teacher wrote {replaced} of {n_tokens}"
            parts.append(f'<div class="stage">{stage(lines, i)}: {count}</div>')
            tokens = "".join(_token(lines[i], rollout, at) for at in range(n_tokens))
            goes_on = " <small>… goes on</small>" if rollout.get("cut") else ""
            parts.append(f'<div class="rollout">{tokens}{goes_on}</div>')
    return "\n".join(parts)


def _text(line, token):
    """The text of a token id; the end token, whose text is empty, is named."""
    text = line["texts"].get(str(token), "?")
    return shown(text) if text else "<small>[end]</small>"


def _token(line, rollout, at):
    """One position: the rejected proposal if there is one, the token that stands, and the details of both."""
    token, rejected = rollout["tokens"][at], rollout["rejected"][at]
    writer = "t" if rollout["written_by"][at] == "t" else "s"
    rank = f"the teacher's rank {shown(rollout['rank'][at])}, K = {shown(line['accept_top_k'])}"
    struck, what = "", f"kept: {rank}"
    if rejected is not None:
        struck = f"<del>{_text(line, rejected)}</del>"
        what = f"student's {_quoted(line, rejected)} rejected: {rank}; teacher wrote {_quoted(line, token)}"
    lists = "".join(
        f'<span class="list"><b>{name}</b>\n{_likeliest(line, rollout, name, at, token)}</span>'
        for name in ("student", "teacher")
    )
    stands = f'<span class="{writer}">{_text(line, token)}</span>'
    return f'<span class="p" tabindex="0">{struck}{stands}<span class="d">{what}<br>{lists}</span></span>'


def _quoted(line, token):
    return f"<code>{_text(line, token).replace(' ', BLANK)}</code>"


def _likeliest(line, rollout, name, at, written):
    """A model's five likeliest tokens as lines of text, with their probabilities; an arrow at the one that stands."""
    rows = []
    for token, prob in zip(rollout[f"{name}_tokens"][at], rollout[f"{name}_probs"][at]):
        prob, arrow = as_number(prob), " ←" if token == written else ""
        rows.append(f"{'?' if prob is None else f'{prob:.3f}'} {_text(line, token).replace(' ', BLANK)}{arrow}")
    return "\n".join(rows)
