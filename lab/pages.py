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
    "teacher": "teacher, before training",
    "student": "student",
    "mixed": "references or student",
    "interleaved": "student, corrected by the teacher",
    "switching": "student, then teacher",
    "teacher_mixed": "a mixture of both",
}


def _learning(row):
    """What a row's teacher minimises, at which rate and in which order, as the table of methods says it."""
    if row["module"] is None:
        return "-"

    def said(name):
        flag, value = f"`--{name.replace('_', '-')}`", row[name]
        return flag if value is None else f"`{value}`" if isinstance(value, str) else f"{value:g}"

    parts = ["a meta-gradient"] if row["meta_gradient"] else [f"alpha {said('alpha')}"]
    if not row["meta_gradient"] and row["alpha"] != 0:
        parts.append(said("teacher_divergence"))
    parts.append(f"rate {said('module_lr')}")
    if row["anchor"] is not None:
        parts.append(f"anchor {row['anchor']:g}" + (" to 0" if row["anchor_decay"] else ""))
    return ", ".join([*parts, *([row["update"]] if row["update"] else [])])


def methods_table(script, variants):
    """The table of a script's methods in docs/methods.md, from what its --list-variants prints: {name: row}."""
    with_module = any("module" in row for row in variants.values())
    module_titles = ["teacher's module", "how it learns"] if with_module else []
    sources = ["paper", "read from", "not the paper's"]
    titles = ["method", "what it changes", "who writes", "loss", "rate", *module_titles, *sources]
    lines = [f"| {' | '.join(titles)} | command |", "| --- " * (len(titles) + 1) + "|"]
    for name, row in variants.items():
        writer = WRITERS.get(row["writer"], row["writer"])
        if row.get("answers") is not None and row["writer"] == "mixed":
            writer = "teacher, before training, or student"
        loss = row.get("loss") or row.get("student_divergence") or "--student-divergence"
        given = [row.get("loss_kwargs", {}), row.get("method_kwargs", {})]
        loss_kwargs, method_kwargs = (", ".join(f"{key} {value}" for key, value in values.items() if value is not None)
                        for values in given)
        loss = f"`{loss}`" + (f" ({loss_kwargs})" if loss_kwargs else "")
        weight = row.get("kd_weight", row.get("student_kd"))
        loss = f"{weight:g} {loss} + {1 - weight:.2g} cross-entropy" if weight and weight < 1 else loss
        loss = "`cross_entropy`" if weight == 0 else loss
        loss += f", T = {row['temperature']:g}" if row.get("temperature") not in (None, 1) else ""
        loss += (
            f", keeps `{row['method']}`" + (f" ({method_kwargs})" if method_kwargs else "")
            if row.get("method")
            else ""
        )
        module = {None: "fixed", "flag": "lora (`--module`)"}.get(row.get("module"), row.get("module"))
        cells = [
            f"`{name}`",
            row["note"],
            writer,
            loss,
            f"{row['rate']:g}",
            *([module, _learning(row)] if with_module else []),
            row["paper"] or "-",
            row["read_from"],
            row["deviation"] or "-",
        ]
        lines.append(f"| {' | '.join(cells)} | `python {script}.py --variants {name}` |")
    return "\n".join(lines) + "\n"
