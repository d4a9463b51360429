"""What a comparison prints when it has ended: a table of at most 100 columns, what it shows and what it does not, and
two held-out prompts as they were answered before and after training.

All of it is told from the records of the runs; table.md has everything else.
"""

import itertools

from lab.held_out import token_bytes
from lab.reading import in_headers, ordered_variants, pairs_of, rollout_lines, select_runs
from lab.svg import short_name
from lab.tables import DECIDED, main_differences, short_columns
from lab.terminal import LEGEND, WIDTH, by_student, by_teacher, end_of, flow, readable, said, width, wrapped

MOST_NAMED = 4  # methods in one sentence
ENOUGH = 5  # pairs that a claim rests on


def ending(runs, control, main_method, color=False):
    """The text for the terminal, from the finished runs of a folder, as reading.read_runs gives them.

    Of a --quick run no figure is shown. The rollouts are those of the main method's student, or where it was not run of
    the last method that has some. color: whether who wrote a token is said by colour as well.
    """
    parts = []
    if not any(run.header.get("quick") for run in runs):
        parts += [table(runs, control), "\n".join(map(wrapped, findings(runs, main_method))).replace("\xa0", " ")]
    told = before_and_after(runs, main_method, color)
    return "\n\n".join([*parts, *([told] if told else [])])


# ---------------------------------------------------------------------------------------------------------------------
# 1. The table.


def table(runs, control):
    """Scores of every method, what the greedy one is above the control's, and seconds, in at most WIDTH columns."""
    columns = short_columns(runs, control)
    heads = {"method": "method", "score": "score (greedy)", "score_sampled": "score (sampled)"}
    heads |= {"above": f"greedy minus {short_name(control, 24)}"} if control in columns["method"] else {}
    heads |= {"seconds": "seconds"}
    names, *others = ([head, *columns[name]] for name, head in heads.items())
    widths = [max(map(width, column)) for column in others]
    room = WIDTH - sum(widths) - 2 * len(widths)
    names = [fitted(name, room) for name in names]
    widest = max(map(width, names))
    lines = []
    for name, *cells in zip(names, *others):
        line = name + " " * (widest - width(name))
        lines.append(line + "".join(f"  {cell:>{size}}" for cell, size in zip(cells, widths)))
    return "\n".join(lines)


def fitted(name, room):
    """A method's name in at most `room` columns: of swept flags initials, and where that is too long the end."""
    short = short_name(name, room)
    if width(short) <= room:
        return short
    method, _, swept = short.partition(" ")
    method = method[: room // 2]
    return f"{method} {end_of(swept, room - width(method) - 1)}"


# ---------------------------------------------------------------------------------------------------------------------
# 2. What it shows, in words.


def findings(runs, main_method):
    """Three sentences: how often it was repeated, what the main method is better or worse than, and what was not
    measured."""
    variants, n_pairs = ordered_variants(runs), len(pairs_of(runs))
    most = max(len(select_runs(runs, variant, "steps")) for variant in variants)
    if n_pairs > 1:
        repeated = f"{n_pairs} pairs: ± is half the width of the 95 % interval over pairs."
        repeated += f" A claim should rest on at least {ENOUGH}." if n_pairs < ENOUGH else ""
    elif most > 1:
        repeated = f"One pair, {most} seeds: ± is half the width of the 95 % interval over runs of this pair alone."
    else:
        repeated = "One pair, one seed: a demonstration, without an interval."
    limits = "One task, one test split, models of one size: what holds for others was not measured."
    if max(in_headers(runs, "jobs"), default=1) > 1:
        limits += " Runs shared the machine: seconds do not compare."
    if len(variants) == 1:
        return [repeated, limits]
    if n_pairs == 1:
        return [repeated, f"One pair shows no method to be better than another: --pairs {ENOUGH} repeats it.", limits]
    return [repeated, *([above_and_below(runs, variants, main_method)] if main_method in variants else []), limits]


def above_and_below(runs, variants, main_method):
    """Which methods the main method's greedy score is above or below: only decided differences, as table.md marks
    them."""
    _, (greedy, *_), found, tested, decided = main_differences(runs, variants, main_method)
    clear = {name: found[name, greedy] for name in variants if (name, greedy) in decided}
    test = f"p < {DECIDED:.2f} after correction for {tested} comparison{'s' * (tested != 1)}"
    if not clear:
        return f"Greedy scores: {fitted(main_method, 40)} cannot be told from any other method (none has {test})."
    sides = []
    for word, sign in (("above", 1), ("below", -1)):
        texts = [
            f"{fitted(name, 40)} by {abs(one.mean):.3f}\xa0±\xa0{one.half_width:.3f}"
            for name, one in clear.items()
            if sign * one.mean > 0
        ]
        sides += [f"{word} {listed(texts)}"] if texts else []
    rest = len(variants) - 1 - len(clear)
    sides += [f"{rest} other{'s' * (rest > 1)} cannot be told from it"] if rest else []
    return f"Greedy scores: {fitted(main_method, 40)} is {'; '.join(sides)} ({test})."


def listed(texts):
    """The first few texts, and how many more there are."""
    more = f" and {len(texts) - MOST_NAMED} more" if len(texts) > MOST_NAMED else ""
    return ", ".join(texts[:MOST_NAMED]) + more


# ---------------------------------------------------------------------------------------------------------------------
# 3. Rollouts of held-out prompts.


def before_and_after(runs, main_method, color=False):
    """The held-out rollouts of one student at its start and at its end, one under the other; "" where no run kept
    any."""
    kept = [run for run in runs if len(rollout_lines(run)) > 1]
    if not kept:
        return ""
    names = ordered_variants(kept)
    chosen = next((name for name in names if name.split()[0] == main_method), names[-1])
    run = min((run for run in kept if run.variant == chosen), key=lambda run: (run.pair, run.seed))
    first, *_, last = rollout_lines(run)
    lines = [
        wrapped(
            f"Held-out prompts, answered by {fitted(run.variant, 30)}'s student with the teacher "
            f"(K = {last['accept_top_k']}), before and after {last['step']} updates:"
        ),
        LEGEND,
    ]
    for before, after in zip(first["rollouts"], last["rollouts"]):
        prompt = end_of(("…" if before.get("prompt_cut") else "") + readable(token_bytes(before["prompt"])), 180)
        lines += ["", flow("prompt   ", by_student(prompt))]
        for label, line, rollout in (("before   ", first, before), ("after    ", last, after)):
            lines.append(flow(label, recorded(rollout, line["texts"]), color))
    return "\n".join(lines)


def recorded(rollout, texts):
    """A rollout of a record, as groups for `flow`: what is plain was written by the student."""

    def decode(tokens):
        return readable(b"".join(token_bytes(texts[str(token)]) for token in tokens))

    end_token = next((int(token) for token, text in texts.items() if not text), None)
    groups, columns = [], zip(rollout["written_by"], rollout["tokens"], rollout["rejected"], rollout["rank"])
    for writer, own in itertools.groupby(columns, lambda column: column[0]):
        _, tokens, rejected, places = zip(*own)
        if writer == "s":
            groups += by_student(said(tokens, decode, end_token))
            continue
        for token, lost, place in zip(tokens, rejected, places):
            groups.append(by_teacher(*(said([one], decode, end_token) for one in (token, lost)), place))
    return groups + ([[("", "…")]] if rollout.get("cut") else [])
