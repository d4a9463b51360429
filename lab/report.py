"""What comes out: tables with intervals and SVG curves, made from the records of runs and from nothing else.

From a finished run on no model is needed, so a table can be rendered again years later from the committed records, to
the same bytes:

    records (*.jsonl) -> reading.read_records -> list of Run -> tables.render_table -> table.md
                                                             -> curves.curves_page  -> curves.svg
                                                             -> tables.summary      -> summary.json

    python -m lab.report FOLDER [--readme README.md --section NAME]      # render again, and into the README
"""

import argparse
import json
import os
import sys
from pathlib import Path

from lab.curves import curves_page
from lab.pages import methods_table, put_into
from lab.reading import ordered_variants, read_runs
from lab.records import write_whole
from lab.tables import inert, render_table, summary, with_relative_seconds

# What a comparison of each script is about: (control, focus). The control is the method that differences are taken
# to in the first table, the focus is the method that the second table holds against all others.
COMPARISONS = {"train_skd": ("supervised", "skd"), "train_okd": ("fixed_forward_kl", "okd")}


def render_report(folder, order=None, control=None, focus=None):
    """{"table.md": text, "curves.svg": text, "summary.json": text} of the records in folder; writes nothing.

    The same records give the same texts. control and focus default to those of the script that wrote the records.
    Raises ValueError if a record is broken, none is finished, or a name that was given is no method's.
    """
    runs, unfinished = read_runs(folder)
    if not runs:
        found = "; ".join(unfinished) or "no .jsonl file"
        raise ValueError(f"{folder} holds no finished run ({found}): let train_skd.py or train_okd.py finish first")
    variants = ordered_variants(runs)
    methods = dict.fromkeys([*variants, *(variant.split()[0] for variant in variants)])  # with swept values, and without
    for flag, names, known in (("--control", [control], variants), ("--focus", [focus], variants), ("--order", order or [], methods)):
        for name in names:
            if name is not None and name not in known:
                raise ValueError(f"{flag} {name!r} is no method of {folder}: there are {', '.join(known)}")
    usual = COMPARISONS.get(runs[0].header.get("script"), COMPARISONS["train_skd"])
    control, focus = usual[0] if control is None else control, usual[1] if focus is None else focus
    table = render_table(runs, control, focus, order)
    if unfinished:
        table += f"\nNot counted, unfinished: {inert('; '.join(unfinished))}.\n"
    text = json.dumps(summary(with_relative_seconds(runs, control), order), indent=1, ensure_ascii=False, allow_nan=False)
    return {"table.md": table, "curves.svg": curves_page(runs, order, (control, focus)), "summary.json": text + "\n"}


def write_report(folder, order=None, control=None, focus=None):
    """Write table.md, curves.svg and summary.json of render_report into folder; returns the text of table.md."""
    texts = render_report(folder, order, control, focus)
    for name, text in texts.items():
        write_whole(Path(folder) / name, text)
    return texts["table.md"]


def brief(table, folder_name):
    """A table.md without its last part, every run on its own: what the README shows of results/FOLDER_NAME."""
    link = f"results/{folder_name}"
    return (table.split("<details>")[0].rstrip()
            + f"\n\nEvery run on its own: [table]({link}/table.md), [curves]({link}/curves.svg).\n")


def _show(text):
    """Print to whatever stands there: a pipe may be closed, and its encoding may lack some of the characters."""
    if hasattr(sys.stdout, "reconfigure"):  # None where it was closed
        sys.stdout.reconfigure(errors="replace")
    try:
        print(text, flush=True)
    except BrokenPipeError:  # the reader has seen enough, as `head` has, and the files are written
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python itself complains on its way out
        sys.exit(1)


def main(argv=None):
    """Render again from the command line; see --help."""
    parser = argparse.ArgumentParser(description="Render table.md, curves.svg and summary.json from records of runs.")
    parser.add_argument("folder", nargs="?", help="where the .jsonl records are")
    parser.add_argument("--methods", metavar="SCRIPT", help="render the table of a script's methods in place of records: reads what"
                        " python SCRIPT.py --list-variants prints, from a pipe")
    parser.add_argument("--readme", help="also put the table into this file, between the markers of --section")
    parser.add_argument("--section", help="name in the markers <!-- NAME:begin --> and <!-- NAME:end -->")
    parser.add_argument("--order", help="names of methods in the order of the rows, joined by commas")
    parser.add_argument("--control", help="method that differences in the first table are taken to")
    parser.add_argument("--focus", help="method that the second table compares with all others")
    parser.error = lambda message: parser.exit(2, f"lab.report: {' '.join(message.split())} (see --help)\n")
    args = parser.parse_args(argv)
    try:
        for name, value in vars(args).items():
            if value == "":  # a shell's unset variable; as a path it would be the folder one stands in
                raise ValueError(f"{name if name == 'folder' else f'--{name}'} is empty: give a name, or leave it out")
        if (args.readme is None) != (args.section is None):
            raise ValueError("--readme and --section go together: give both or none")
        if (args.folder is None) == (args.methods is None):
            raise ValueError("give the folder of records, or --methods SCRIPT with the list of its methods on a pipe")
        if args.methods:
            try:
                section = table = methods_table(args.methods, json.load(sys.stdin))
            except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
                hint = f"python {args.methods}.py --list-variants | python -m lab.report --methods {args.methods}"
                raise ValueError(f"what comes on the pipe is no list of methods: type {hint}") from error
        else:
            table = write_report(args.folder, args.order.split(",") if args.order else None, args.control, args.focus)
            section = brief(table, Path(args.folder).resolve().name)
        if args.readme:
            put_into(args.readme, args.section, section)
        _show(table)
    except (ValueError, OSError) as error:
        raise SystemExit(f"lab.report: {' '.join(str(error).split())}") from None


if __name__ == "__main__":
    main()
