"""Rendered parts of pages: what stands between two markers in a Markdown file, and the table of methods."""

from pathlib import Path


def replace_section(readme_text, name, new_body):
    """readme_text with new_body between the lines `<!-- name:begin -->` and `<!-- name:end -->`.

    Raises ValueError unless each marker stands there exactly once, begin before end.
    """
    begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
    for marker in (begin, end):
        if readme_text.count(marker) != 1:
            raise ValueError(f"the text holds {marker} {readme_text.count(marker)} times: it must stand there once")
    before, rest = readme_text.split(begin)
    if end not in rest:
        raise ValueError(f"{end} stands before {begin}: swap them")
    # Blank lines around the body: Markdown takes a table that touches a comment for part of the comment.
    body = f"\n\n{new_body.strip()}\n\n".replace("\n", "\r\n" if "\r\n" in readme_text else "\n")
    return f"{before}{begin}{body}{end}{rest.split(end)[1]}"


def read_page(path):
    """The text of a page with its own line ends. Raises ValueError for another encoding than UTF-8."""
    try:
        return Path(path).read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 (byte {error.start}): save it as UTF-8") from error


WRITERS = {  # a row's writer, as the table of methods says it
    "dataset": "references",
    "teacher": "teacher (once)",
    "student": "student",
    "mixed": "references or student",
    "interleaved": "interleaved",
    "switching": "student, then teacher",
    "trust_region": "mixture near the student",
    "teacher_mixed": "mixture of both models",
}


def _keywords(values, own=None):
    """ " (beta 0.5)" of {"beta": 0.5}, nothing of a dict without values; the key `own` is left out before its value."""
    told = [f"{value}" if key == own else f"{key} {value}" for key, value in values.items() if value is not None]
    return f" ({', '.join(told)})" if told else ""


def _loss(row):
    """What a row's student minimises, what is kept beside it, and the row's learning rate where it has one."""
    loss = row.get("loss") or row.get("student_divergence") or "--student-divergence"
    loss = f"`{loss}`" + _keywords(row.get("loss_kwargs", {}))
    weight = row.get("kd_weight", row.get("student_kd"))
    if weight == 0:
        loss = "`cross_entropy`"
    elif weight and weight < 1:
        loss = f"{weight:g} {loss} + {1 - weight:.2g} cross-entropy"
    if row.get("temperature") not in (None, 1):
        loss += f", T = {row['temperature']:g}"
    if row.get("method"):
        loss += f", with `{row['method']}`" + _keywords(row.get("method_kwargs", {}), row["method"])
    if row.get("hint"):
        loss += f"; the teacher reads a hint: {row['hint']}"
    return loss if row["rate"] == 1 else f"{loss}; rate x {row['rate']:g}"


def _teacher(row):
    """A row's module and what of the teacher's side it fixes; what is not named here, a flag decides."""
    if row["module"] is None:
        return "fixed"
    parts = ["`--module`" if row["module"] == "flag" else row["module"]]
    if row["meta_gradient"]:
        parts.append("meta-gradient")
    if row["alpha"] is not None:
        parts.append(f"alpha {row['alpha']:g}")
    if row["teacher_divergence"]:
        parts.append(f"`{row['teacher_divergence']}`")
    if row["module_lr"] is not None:
        parts.append(f"module rate {row['module_lr']:g}")
    if row["anchor"] is not None:
        parts.append(f"anchor {row['anchor']:g}" + (" to 0" if row["anchor_decay"] else ""))
    if row["update"]:
        parts.append(row["update"])
    return ", ".join(parts)


def methods_table(variants):
    """The table of a script's methods in docs/methods.md, from what its --list-variants prints: {name: row}."""
    with_module = any("module" in row for row in variants.values())
    titles = ["method", "what it changes", "who writes", "loss", *(["teacher's module"] if with_module else [])]
    titles += ["paper (what was read)", "how it differs from the paper"]
    lines = [f"| {' | '.join(titles)} |", "| --- " * len(titles) + "|"]
    for name, row in variants.items():
        writer = WRITERS.get(row["writer"], row["writer"])
        if row.get("answers") is not None and row["writer"] == "mixed":
            writer = "teacher (once) or student"
        if row.get("answers") is not None and row["teacher"] == "start":
            writer = "the student's start (once)"
        cells = [f"`{name}`", row["note"], writer, _loss(row), *([_teacher(row)] if with_module else [])]
        cells += [f"{row['paper']} ({row['read_from']})" if row["paper"] else row["read_from"], row["deviation"] or "-"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"
