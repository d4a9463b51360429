"""What comes out: tables with intervals, SVG curves and a page, made from the records of runs and from nothing else.

From a finished run on no model is needed, so a table can be rendered again years later from the committed records, to
the same bytes:

    records (*.jsonl) -> reading.read_records -> list of Run -> tables.render_table -> table.md
                                                             -> curves.curves_page  -> curves.svg
                                                             -> tables.summary      -> summary.json
                                                             -> page.report_page    -> report.html

    python -m lab.report FOLDER             # render again
    python -m lab.report FOLDER --pack      # make a study of a finished run
    python -m lab.report --pages            # render all studies and the picture in results/ and the tables in docs/

A finished run has one record file per method, pair and seed. A study, which is committed, has two or three files: the
records in one compressed file, README.md, which holds the table between markers and words of its own, and curves.svg
where few enough methods share its panels (a sweep has none).
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

from lab.archive import PACKED, packed, unpacked
from lab.claims import PREMISE, claims_table, map_table, premise_table
from lab.curves import curves_page
from lab.page import report_page
from lab.pages import methods_table, read_page, replace_section
from lab.reading import ordered_variants, read_runs, record_files
from lab.records import write_whole
from lab.rollout_picture import rollout_picture
from lab.tables import inert, render_table, short_table, summary, with_relative_seconds

ROOT = Path(__file__).parents[1]

# What a comparison of each script is about: (control, main_method). The control is the method that differences are
# taken to in the first table, the main_method is the method that the second table holds against all others.
COMPARISONS = {"train_skd": ("supervised", "skd"), "train_okd": ("fixed_forward_kl", "okd")}
SHOWN_OF_BENCH = ("--only", "sampling,steps,losses,peers", "--show")  # in docs/speed.md
OF_A_RUN = ("table.md", "summary.json", "report.html")  # what a run's folder has and a study's has not
MOST_DRAWN = 10  # methods in a study's curves.svg; a sweep has none: its lines cannot be told apart
HEADLINE = "skd-math"  # the study whose short table stands in README.md
PICTURED = "skd-raw"  # the study of the rollout there: from an untuned start the teacher has most to replace


def render_report(folder, order=None, control=None, main_method=None):
    """{file: text} of table.md, curves.svg, summary.json and report.html, from the records in folder; writes nothing.

    The same records give the same texts. control and main_method default to those of the script that wrote the records.
    Raises ValueError if a record is broken, none is finished, or a name that was given is no method's.
    """
    runs, unfinished = read_runs(folder)
    if not runs:
        found = "; ".join(unfinished) or "no .jsonl file"
        raise ValueError(f"{folder} holds no finished run ({found}): let train_skd.py or train_okd.py finish first")
    variants = ordered_variants(runs)
    methods = dict.fromkeys([*variants, *(variant.split()[0] for variant in variants)])  # with swept values and without
    asked = (
        ("--control", [control], variants),
        ("--main-method", [main_method], variants),
        ("--order", order or [], methods),
    )
    for flag, names, known in asked:
        for name in names:
            if name is not None and name not in known:
                raise ValueError(f"{flag} {name!r} is no method of {folder}: there are {', '.join(known)}")
    usual = COMPARISONS.get(runs[0].header.get("script"), COMPARISONS["train_skd"])
    control, main_method = usual[0] if control is None else control, usual[1] if main_method is None else main_method
    table = render_table(runs, control, main_method, order)
    if unfinished:
        table += f"\nNot counted, unfinished: {inert('; '.join(unfinished))}.\n"
    figures = summary(with_relative_seconds(runs, control), order)
    text = json.dumps(figures, indent=1, ensure_ascii=False, allow_nan=False)
    picture = curves_page(runs, order, control, main_method)
    return {
        "table.md": table,
        "curves.svg": picture,
        "summary.json": text + "\n",
        "report.html": report_page(runs, unfinished, order, control, main_method, picture),
    }


def write_report(folder, order=None, control=None, main_method=None):
    """Write the files of render_report into folder; returns the text of table.md.

    In a study's folder they are those of study_files.
    """
    made = render_report(folder, order, control, main_method)
    _write(Path(folder), made)
    return made["table.md"]


def _write(folder, made):
    """Write what render_report made of a folder into it. Where a study has no picture, an older one goes."""
    texts = study_files(folder, made) if (folder / PACKED).exists() else made
    for name, text in texts.items():
        write_whole(folder / name, text)
    if "curves.svg" not in texts:
        (folder / "curves.svg").unlink(missing_ok=True)


def study_files(folder, made):
    """{file: text} of a study's folder, of what render_report made of its records: the page with the table between the
    markers of the section "table", and curves.svg unless too many methods would share it."""
    files, methods = {"README.md": study_page(folder, made["table.md"])}, json.loads(made["summary.json"])["variants"]
    if len(methods) <= MOST_DRAWN and not any(" " in method for method in methods):
        files["curves.svg"] = made["curves.svg"]
    return files


def study_page(folder, table):
    """The text of a study's README.md with this table: what stands there around the markers stays; else a bare page."""
    page = Path(folder) / "README.md"
    bare = f"# {Path(folder).resolve().name}\n\n<!-- table:begin -->\n<!-- table:end -->\n"
    return replace_section(read_page(page) if page.exists() else bare, "table", table)


def premise_page(folder):
    """The text of README.md beside a premise.json, with its table. Raises ValueError for a file that is damaged."""
    path = Path(folder) / PREMISE
    try:
        table = premise_table(json.loads(path.read_bytes()))
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path} is not what lab.premise writes ({error!r}): take it from the repository again"
        ) from None
    return study_page(folder, table)


def pack(folder, order=None, control=None, main_method=None):
    """Make a study of a finished run's folder; returns the text of the table, which then stands in its README.md.

    What is removed is what was packed: the records, once the archive was read back, and files of a run that say what
    they say (table.md, summary.json, report.html; curves.svg where a study has none). All else in the folder stays.
    Raises ValueError if a run is unfinished, or an archive is there that lacks a record.
    """
    folder = Path(folder)
    archive, texts = folder / PACKED, dict(record_files(folder))
    if not archive.exists():  # else an earlier call was interrupted: it is finished here
        # Every complaint comes before the first change.
        study_page(folder, render_report(folder, order, control, main_method)["table.md"])
        if unfinished := read_runs(folder)[1]:
            raise ValueError(f"{folder} holds what is unfinished ({'; '.join(unfinished)}): use --resume, or move it "
                             "away")
        write_whole(archive, packed(texts.values()))
    whole = unpacked(archive)
    if missing := [path.name for path, text in texts.items() if text not in whole]:
        raise ValueError(f"{archive} does not hold {missing[0]}: move one of the two away")
    for path in texts:
        path.unlink()
    made = render_report(folder, order, control, main_method)
    _write(folder, made)
    for name in OF_A_RUN:
        old = folder / name
        if old.is_file() and old.read_bytes() == made[name].encode():
            old.unlink()
    return made["table.md"]


def rendered_pages(root=ROOT):
    """{path: text} of all files of the project with rendered parts, as they should be today; writes nothing.

    These are the files of every study in results/ and their claims, of one of them the short table in README.md and the
    picture of a rollout, the tables of methods in docs/methods.md and those of the benchmarks in docs/speed.md. The
    scripts are started for what they know: this module imports none of them.
    """
    texts = {}
    for archive in sorted(root.glob(f"results/*/{PACKED}")):
        folder, made = archive.parent, render_report(archive.parent)
        texts |= {folder / name: text for name, text in study_files(folder, made).items()}
    for path in sorted(root.glob(f"results/*/{PREMISE}")):
        texts[path.with_name("README.md")] = premise_page(path.parent)
    if (root / "results" / HEADLINE / PACKED).exists():
        table = short_table(read_runs(root / "results" / HEADLINE)[0], COMPARISONS["train_skd"][0])
        texts[root / "README.md"] = replace_section(read_page(root / "README.md"), "results", table)
        index = root / "results" / "README.md"
        text = replace_section(read_page(index), "claims", claims_table(root))
        texts[index] = replace_section(text, "map", map_table(root))
    if (root / "results" / PICTURED / PACKED).exists():
        runs = read_runs(root / "results" / PICTURED)[0]
        texts[root / "results" / "rollout.svg"] = rollout_picture(runs, COMPARISONS["train_skd"][1])
    sections = {"methods.md": {}, "speed.md": {}}
    for script in COMPARISONS:
        rows = json.loads(_printed(root, f"{script}.py", "--list-variants"))
        sections["methods.md"][f"methods-{script.removeprefix('train_')}"] = methods_table(rows)
    for record in sorted(root.glob("results/bench/*.json")):
        sections["speed.md"][f"bench-{record.stem}"] = _printed(root, "tests/bench.py", *SHOWN_OF_BENCH, str(record))
    for name, bodies in sections.items():
        text = read_page(root / "docs" / name)
        for section, body in bodies.items():
            text = replace_section(text, section, body)
        texts[root / "docs" / name] = text
    return texts


def _printed(root, *words):
    """What a program of the project prints."""
    environment = os.environ | {"PYTHONIOENCODING": "utf-8"}
    done = subprocess.run([sys.executable, *words], cwd=root, env=environment, capture_output=True, encoding="utf-8")
    if done.returncode:
        raise ValueError(f"python {' '.join(words)} failed: {done.stderr.strip()}")
    return done.stdout


def write_pages(root=ROOT):
    """Write those of rendered_pages that say something else than today's files -> their paths."""
    texts = rendered_pages(root)
    changed = [path for path, text in texts.items() if not path.is_file() or path.read_bytes() != text.encode()]
    for path in changed:
        write_whole(path, texts[path])
    return changed


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
    parser = argparse.ArgumentParser(description="Render table.md, curves.svg, summary.json and report.html from "
                                     "records of runs.")
    parser.add_argument("folder", nargs="?", type=os.path.expanduser, help=f"where the .jsonl records are, or {PACKED}")
    parser.add_argument("--pack", action="store_true", help="make a study of a finished run's folder: its records "
                        f"become {PACKED}, its table.md a part of README.md")
    parser.add_argument("--pages", action="store_true",
                        help="render all studies in results/, the picture of a rollout and the tables in docs/ again")
    parser.add_argument("--order", help="names of methods in the order of the rows, joined by commas")
    parser.add_argument("--control", help="method that differences in the first table are taken to")
    parser.add_argument("--main-method", "--focus", help="method that the second table compares with all others")
    parser.error = lambda message: parser.exit(2, f"lab.report: {' '.join(message.split())} (see --help)\n")
    args = parser.parse_args(argv)
    try:
        for name, value in vars(args).items():
            if value == "":  # a shell's unset variable; as a path it would be the folder one stands in
                raise ValueError(f"{name if name == 'folder' else f'--{name}'} is empty: give a name, or leave it out")
        given = [args.order, args.control, args.main_method]
        if args.pages:
            if args.folder or args.pack or any(given):
                raise ValueError("--pages renders all pages: give nothing beside it")
            _show("\n".join(str(path) for path in write_pages()) or "all pages are as they should be")
            return
        if args.folder is None:
            raise ValueError("give the folder of records, or --pages")
        make = pack if args.pack else write_report
        _show(make(args.folder, args.order.split(",") if args.order else None, args.control, args.main_method))
    except (ValueError, OSError) as error:
        raise SystemExit(f"lab.report: {' '.join(str(error).split())}") from None


if __name__ == "__main__":
    main()
