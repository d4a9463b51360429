"""Laws of the whole: who imports whom, what is never called, and that the pages say what the code does."""

import ast
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import train_okd
import train_skd
from data import corpora, tasks
from lab import pairs, processes, reading, report, rollouts
from lab.archive import PACKED
from lab.claims import PREMISE

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"

# What a room of lab/ may lean on.
DATA = {f"data.{name}" for name in ("tokenizer", "formats", "own_data", "metrics", "corpora", "tasks")}
BELOW = {"model", "losses", "sample", *DATA}
LAB = {f"lab.{path.stem}" for path in ROOT.glob("lab/*.py") if path.stem != "__init__"}
MAY_IMPORT = {  # file -> the project's own modules that it may know, beside what those may know
    "model.py": set(),
    "losses.py": set(),
    "sample.py": {"model"},
    "features.py": {"losses"},
    "methods.py": {"catalogue", "model", "losses", "features", "sample", "lab.groups", "lab.hints", "lab.training"},
    "catalogue.py": {"losses", "sample"},
    "data/__init__.py": set(),
    "data/progress.py": set(),
    "data/tokenizer.py": {"data.progress"},
    "data/metrics.py": {"data.progress"},
    "data/formats.py": {"data.tokenizer"},
    "data/own_data.py": {"data.formats"},
    "data/corpora.py": {"data.metrics", "data.formats", "data.own_data"},
    "data/tasks.py": {"data.metrics", "data.corpora"},
    "lab/__init__.py": set(),
    "lab/interrupted.py": set(),
    "lab/terminal.py": {"data.progress"},
    "lab/processes.py": {"data.progress", "lab.terminal"},
    "lab/archive.py": set(),
    "lab/folders.py": {"lab.archive"},
    "lab/records.py": set(),
    "lab/costs.py": {"sample", "losses", "lab.evaluate"},
    "lab/checks.py": {"losses", "sample"},
    "lab/monitoring.py": {"losses", "sample", "data.progress", "lab.evaluate"},
    "lab/held_out.py": {"sample"},
    "lab/hints.py": {"losses", "sample"},
    "lab/training.py": {
        "model",
        "losses",
        "sample",
        "lab.checks",
        "lab.processes",
        "lab.checkpoints",
        "lab.costs",
        "lab.evaluate",
        "lab.hints",
        "lab.monitoring",
        "lab.records",
        "lab.teacher_cache",
    },
    "lab/reading.py": {"lab.archive", "lab.records"},
    "lab/statistics.py": {"lab.reading"},
    "lab/tables.py": {"lab.reading", "lab.statistics"},
    "lab/svg.py": set(),
    "lab/heatmap.py": {"lab.reading", "lab.svg"},
    "lab/curves.py": {"lab.heatmap", "lab.reading", "lab.statistics", "lab.svg"},
    "lab/who_wrote.py": {"lab.reading"},
    "lab/rollout_picture.py": {"lab.reading", "lab.svg", "lab.terminal", "lab.who_wrote"},
    "lab/page_style.py": set(),
    "lab/page.py": {"lab.curves", "lab.page_style", "lab.reading", "lab.tables", "lab.who_wrote"},
    "lab/rollouts.py": {
        "losses",
        "model",
        "sample",
        "data.progress",
        "data.tasks",
        "data.tokenizer",
        "lab.arguments",
        "lab.command_line",
        "lab.pairs",
        "lab.processes",
        "lab.terminal",
        "lab.training",
    },
    "lab/pages.py": set(),
    "lab/claims.py": {"lab.archive", "lab.reading", "lab.statistics", "lab.tables"},
    "lab/report.py": {
        "lab.archive",
        "lab.claims",
        "lab.curves",
        "lab.page",
        "lab.pages",
        "lab.reading",
        "lab.records",
        "lab.rollout_picture",
        "lab.tables",
    },
    "lab/checkpoints.py": {"model", "lab.processes", "lab.records"},
    "lab/exchange.py": {
        "lab.interrupted",
        "model",
        "data.tokenizer",
        "lab.processes",
        "lab.folders",
        "lab.command_line",
    },
    "lab/gallery.py": {"losses", "lab.records", "lab.command_line", "lab.processes"},
    "lab/evaluate.py": {"losses", "sample", "data.tasks"},
    "lab/groups.py": {"losses", "lab.evaluate"},
    "lab/pairs.py": {
        "model",
        "losses",
        "sample",
        "data.tasks",
        "data.tokenizer",
        "lab.folders",
        "lab.records",
        "lab.checkpoints",
        "lab.training",
    },
    "lab/teacher_cache.py": {"model", "losses", "sample", "data.progress", "lab.folders", "lab.records"},
    "lab/command_line.py": {"sample", "data.tasks", "lab.pairs", "lab.report"},
    "lab/arguments.py": {"sample", "data.tasks", "lab.command_line", "lab.pairs", "lab.processes", "lab.report"},
    "lab/schedule.py": {
        "data.progress",
        "lab.checkpoints",
        "lab.processes",
        "lab.records",
        "lab.report",
        "lab.svg",
        "lab.terminal",
    },
    "lab/ending.py": {"lab.held_out", "lab.reading", "lab.svg", "lab.tables", "lab.terminal"},
    "lab/studies.py": {"lab.archive", "lab.claims", "lab.folders", "lab.records", "lab.report"},
    "lab/premise.py": {
        "lab.interrupted",
        "losses",
        "sample",
        "data.tasks",
        "lab.claims",
        "lab.command_line",
        "lab.evaluate",
        "lab.folders",
        "lab.processes",
        "lab.reading",
        "lab.records",
        "lab.rollouts",
    },
    "lab/program.py": {"lab.processes"},
    "lab/compare.py": BELOW
    | LAB - {"lab.compare", "lab.gallery", "lab.exchange", "lab.premise", "lab.program", "lab.rollouts"},
    "train_skd.py": BELOW | LAB | {"features", "methods", "catalogue"},
    "train_okd.py": BELOW | LAB | {"features", "methods", "catalogue"},
}
MAIN_IS_FREE = ("sample.py", "losses.py")  # their __main__ block may look into one room of lab/
THIRD_PARTY = {"torch", "tiktoken", "regex", "numpy", "tqdm"}
WIDTH = 120  # characters of a line at most
PROGRAM = sorted(
    path.relative_to(ROOT).as_posix() for path in [*ROOT.glob("*.py"), *ROOT.glob("data/*.py"), *ROOT.glob("lab/*.py")]
)


def tree_of(name):
    return ast.parse((ROOT / name).read_text(encoding="utf-8"))


def modules_imported(tree):
    """Dotted names of the modules that a tree imports; `from data import x` counts as data.x."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            yield from (
                (f"{node.module}.{alias.name}" for alias in node.names)
                if node.module in ("data", "lab")
                else [node.module]
            )


def is_own(module):
    return module in ("data", "lab") or f"{module.replace('.', '/')}.py" in PROGRAM


def test_every_module_has_its_place():
    """The folder holds the modules of the plan and no other, and is flat."""
    assert set(PROGRAM) == set(MAY_IMPORT)
    assert not [path for path in ROOT.glob("[dl]a[tb]*/*/**/*.py") if "cache" not in path.parts]


@pytest.mark.parametrize("name", PROGRAM)
def test_imports_go_one_way(name):
    """A module imports what lies below it and nothing else of the project."""
    allowed = set(MAY_IMPORT[name])
    while more := {m for known in allowed for m in MAY_IMPORT[f"{known.replace('.', '/')}.py"]} - allowed:
        allowed |= more
    tree = tree_of(name)
    if name in MAIN_IS_FREE:
        tree.body = [node for node in tree.body if not isinstance(node, ast.If)]
    found = {module for module in modules_imported(tree) if is_own(module)}
    assert found <= allowed, f"{name} must not know {', '.join(sorted(found - allowed))}"


def test_nothing_leans_on_the_exercises():
    """The coursework may know everything; no module of the project knows it, and its files are a page long."""
    exercises = {path.stem for path in ROOT.glob("exercises/*.py")} | {"exercises"}
    for name in PROGRAM:
        assert not {module.split(".")[0] for module in modules_imported(tree_of(name))} & exercises, name
    roots = {
        module.split(".")[0]
        for path in ROOT.glob("exercises/*.py")
        for module in modules_imported(ast.parse(path.read_text(encoding="utf-8")))
        if not is_own(module)
    }
    assert roots <= exercises | THIRD_PARTY | set(sys.stdlib_module_names)


@pytest.mark.parametrize("name", PROGRAM)
def test_third_parties_are_the_four(name):
    """At run time: torch, tiktoken (and regex, which it depends on), numpy, tqdm, and the standard library."""
    roots = {module.split(".")[0] for module in modules_imported(tree_of(name)) if not is_own(module)}
    assert roots <= THIRD_PARTY | set(sys.stdlib_module_names)


def test_requirements():
    """Four packages, torch from the oldest version that was tried on."""
    lines = [line.strip() for line in (ROOT / "requirements.txt").read_text().splitlines()]
    names = [re.match(r"[a-z]+", line)[0] for line in lines if line and not line.startswith("#")]
    assert sorted(names) == sorted(THIRD_PARTY - {"regex"}) and "torch>=2.6" in lines


PATH_FLAGS = {"--out", "--data-dir", "--checkpoint", "--teacher", "--svg", "--json", "--show", "folder", "checkpoint"}
PATH_FLAGS |= {"--folder", "--junit", "--handout"}  # of exercises/grade.py


def test_home_is_meant_wherever_a_path_is_typed():
    """~ means home in every flag that takes a path: a shell leaves it in --out=~/runs, Windows everywhere."""
    found = set()
    files = [path for folder in (".", "lab", "tests", "exercises") for path in ROOT.glob(f"{folder}/*.py")]
    texts = {path: path.read_text(encoding="utf-8") for path in files}
    for path in [path for path in files if ".add_argument(" in texts[path]]:
        for node in ast.walk(ast.parse(texts[path])):
            if not isinstance(node, ast.Call) or dotted(node.func).split(".")[-1] != "add_argument":
                continue
            keywords = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
            name = node.args[0].value if isinstance(node.args[0], ast.Constant) else ""
            if name in PATH_FLAGS or keywords.get("metavar") in ("'DIR'", "'FILE'"):
                assert keywords.get("type") == "os.path.expanduser", f"{path.name}: {name} wants os.path.expanduser"
                found.add(name)
    assert found == PATH_FLAGS
    args, _ = train_skd.parse_flags(["--device", "cpu", "--out=~/runs/x", "--task", "scan", "--data-dir=~"])
    assert (args.out, args.data_dir) == (os.path.expanduser("~/runs/x"), os.path.expanduser("~"))
    assert "~" not in args.out


def test_no_file_is_longer_than_a_sitting():
    """At most 600 lines in a script or a room of lab/, 1,200 in the core's files of numbered parts."""
    core = {"model.py", "losses.py", "sample.py", "methods.py"}
    for path in sorted([*ROOT.glob("*.py"), *ROOT.glob("data/*.py"), *ROOT.glob("lab/*.py")]):
        lines = len(path.read_text(encoding="utf-8").splitlines())
        most = 1200 if path.name in core or path.parent.name == "data" else 600
        assert lines <= most, f"{path.relative_to(ROOT)} has {lines} lines, at most {most}: cut it along its subjects"


def test_no_line_is_wider_than_a_screen():
    """Every line of every Python file, tests too, has at most WIDTH characters."""
    files = sorted(path for folder in ("", "data/", "lab/", "tests/", "exercises/")
                   for path in ROOT.glob(f"{folder}*.py"))
    wide = [
        f"{path.relative_to(ROOT).as_posix()}:{number} has {len(line)} characters, at most {WIDTH} are allowed"
        for path in files
        for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), 1)
        if len(line) > WIDTH
    ]
    assert len(files) > 50 and not wide, "\n".join(wide)


# ---------------------------------------------------------------------------------------------------------------------
# What is never called.

# Without generator= these draw from torch's global generator; the methods with an underscore fill a tensor.
DRAWS = {
    "rand", "randn", "randint", "randperm", "multinomial", "bernoulli", "normal", "poisson", "rand_like", "randn_like",
}
DRAWS |= {"normal_", "uniform_", "bernoulli_", "random_", "exponential_", "cauchy_", "log_normal_", "geometric_"}
DROPOUT = {"dropout", "Dropout", "alpha_dropout", "gumbel_softmax", "rrelu", "kaiming_normal_", "kaiming_uniform_",
           "xavier_normal_", "xavier_uniform_", "trunc_normal_"}  # fmt: skip
NEVER = {"manual_seed_all", "seed", "cuda", "kl_div", "KLDivLoss", "set_rng_state", "get_rng_state", "fork_rng"}


def dotted(node):
    """torch.nn.functional.kl_div as text; "" for what is no chain of names."""
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def complaints(tree):
    """What a reader of the rules would object to, one text per call."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom | ast.Import):
            names = [alias.name for alias in node.names] + [getattr(node, "module", None) or ""]
            for name in names:
                if (
                    name.split(".")[0] in ("pickle", "marshal", "shelve", "random", "dill", "joblib")
                    or name in ("kl_div", "numpy.random")
                ):
                    yield f"line {node.lineno}: imports {name}"
        if not isinstance(node, ast.Call):
            continue
        name, keywords = dotted(node.func), {keyword.arg: keyword.value for keyword in node.keywords}
        last, where = name.split(".")[-1], f"line {node.lineno}: {name}"
        if isinstance(node.func, ast.Name) and name in ("eval", "exec", "compile", "__import__"):
            yield where
        if name == "torch.load":
            safe = keywords.get("weights_only")
            if not (isinstance(safe, ast.Constant) and safe.value is True):
                yield f"{where} without weights_only=True"
        if isinstance(node.func, ast.Attribute) and last in NEVER:
            yield where
        if (
            name in ("torch.manual_seed", "torch.random.manual_seed", "np.random.default_rng")
            or name.startswith(("np.random.", "numpy.random.", "random."))
        ):
            yield where
        if isinstance(node.func, ast.Attribute) and (
            last in DROPOUT or (last in DRAWS and "generator" not in keywords)
        ):
            yield f"{where} draws from a global generator"


@pytest.mark.parametrize("name", PROGRAM)
def test_nothing_forbidden_is_called(name):
    """No unsafe load, no pickle, eval or exec, no .cuda(), no kl_div, and every draw names its generator."""
    assert list(complaints(tree_of(name))) == []


@pytest.mark.parametrize(
    "line",
    ["import pickle", "from random import choice", "import random", "eval('1')", "torch.load(path)",
     "torch.load(path, weights_only=False)", "model.cuda()", "torch.manual_seed(1)", "torch.cuda.manual_seed_all(1)",
     "F.kl_div(a, b)", "torch.rand(3)", "x.normal_()",
     "torch.multinomial(probs, 1)", "np.random.rand(3)", "F.dropout(x)", "from torch.nn.functional import kl_div"],
)  # fmt: skip
def test_the_guard_sees(line):
    """The test above finds each of these; and lets their decent relatives pass."""
    assert list(complaints(ast.parse(line)))
    fine = (
        "model.eval(); re.compile(x); torch.load(p, weights_only=True); torch.rand(3, generator=g); "
        "torch.Generator().manual_seed(1)"
    )
    assert list(complaints(ast.parse(fine))) == []


@pytest.mark.parametrize("name", PROGRAM)
def test_public_names_say_what_they_are(name):
    """Every module, and every public function and class at its top level, has a docstring;
    methods of scripts' classes may not."""
    tree = tree_of(name)
    assert ast.get_docstring(tree)
    public = [
        node for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_")
    ]
    assert [node.name for node in public if not ast.get_docstring(node)] == []


# ---------------------------------------------------------------------------------------------------------------------
# The pages. Whether they are complete, and rendered from today's sources, is asked by slow tests: a new row turns no
# fast test red.

PAGES = sorted(
    [README]
    + [path for folder in ("lab", "docs", "exercises") for path in ROOT.glob(f"{folder}/*.md")]
    + [*ROOT.glob("results/**/README.md")]
)
RENDER = "type python -m lab.report --pages"


def page(name):
    return (ROOT / name).read_text(encoding="utf-8")


def fenced(*paths):
    """Lines inside fenced blocks of pages (of all of them by default), comments and blank lines left out."""
    text = "\n".join(page(path) for path in paths or PAGES)
    blocks = re.findall(r"^```[a-z]*\n(.*?)^```", text, re.M | re.S)
    return [line.split("#")[0].strip() for block in blocks for line in block.splitlines() if line.split("#")[0].strip()]


def commands(start):
    """Fenced commands (also after &&) that begin with `start`, as lists of words."""
    parts = [part.strip() for line in fenced() for part in line.split("&&")]
    return [shlex.split(part) for part in parts if part.startswith(start)]


@pytest.mark.slow
def test_pages_are_rendered():
    """Every study, the picture of a rollout, the tables of methods and those of the benchmarks are what records, rows
    and figures say today."""
    made = report.rendered_pages()
    assert ROOT / "results" / "rollout.svg" in made
    stale = [str(path.relative_to(ROOT)) for path, text in made.items() if not path.is_file() or page(path) != text]
    assert not stale, f"{RENDER}: {', '.join(stale)} is not what it renders"


@pytest.mark.slow
def test_pages_name_every_task():
    """Every task is a row of the table of tasks, and the score in its row has a word in common
    with the code's own metric."""
    table = {**tasks.FAMILIES, **corpora.CORPORA}
    assert list(table) == tasks.task_names()
    for name, task in table.items():
        cells = re.findall(rf"^\| `{name}`[^|]*\|[^|]*\|([^|]*)\|", page("docs/data.md"), re.M)
        assert len(cells) == 1, f"docs/data.md lacks a row of {name}"
        words, metric = (set(re.findall(r"[a-z]{3,}", text.lower())) for text in (cells[0], task.metric))
        assert words & metric, f"{name}: docs/data.md says {cells[0].strip()!r}, the code {task.metric!r}"


@pytest.fixture(scope="module")
def record_keys(tmp_path_factory):
    """Every key of the step, eval and final lines of a real, very small run of all methods."""
    folder = tmp_path_factory.mktemp("run")
    with pytest.MonkeyPatch.context() as patch:
        load = pairs.load_or_pretrain_pair
        patch.setattr(
            pairs, "load_or_pretrain_pair", lambda *args, **kw: load(*args, **kw | {"cache_dir": folder / "pairs"})
        )
        argv = [
            "--quick", "--steps", "1", "--teacher-steps", "2", "--start-steps", "2", "--batch-size", "8",
            "--device", "cpu", "--jobs", "1",
        ]
        every = ["--variants", "all", "--hint-share", "0.5"]
        assert train_skd.main([*argv, *every, "--out", str(folder / "out" / "skd")]) == 0
        few = "fixed_forward_kl,minillm,okd,dml,promptkd,okd_skd"
        assert train_okd.main([*argv, "--variants", few, "--out", str(folder / "out" / "okd")]) == 0
    lines = [json.loads(line) for path in (folder / "out").glob("*/*.jsonl") for line in path.read_text().splitlines()]
    return {key for line in lines if line["kind"] != "header" for key in line}


@pytest.mark.slow
def test_pages_explain_every_figure(record_keys):
    """Whatever a record holds stands in the glossary as `key`; figures that depend on the task as `task_...`."""
    text = page("docs/metrics.md")
    words = set(re.findall(r"`([\w*.]+)`", text))
    missing = [
        key
        for key in sorted(record_keys - {"kind"})
        if key not in words and not (key.startswith("task_") and "`task_" in text)
    ]
    assert missing == [], "docs/metrics.md explains every figure but these"


def anchor(heading):
    """What a link to a heading ends in, as GitHub makes it."""
    return re.sub(r"[^\w -]", "", heading.strip().lower()).replace(" ", "-")


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(path):
    """Every relative link, from where its page stands, with its anchor;
    every file of the project that is named exists."""
    text = page(path)
    links = [link for found in re.findall(r"\]\(([^)\s]+)\)|(?:src|href)=\"([^\"]+)\"", text) for link in found if link]
    missing = []
    for link in links:
        name, _, part = link.partition("#")
        if link.startswith(("http://", "https://", "mailto:")):
            continue
        target = path.parent / name if name else path
        if not target.exists() or part and part not in map(anchor, re.findall(r"^#+ (.*)", page(target), re.M)):
            missing.append(link)
    named = re.findall(r"(?<![\w./-])((?:data|docs|lab|results|tests|exercises|\.ci)/[\w./-]*\*?|[\w-]+\.py)", text)
    own = {file.name for folder in (".", "data", "lab", "tests", "exercises") for file in ROOT.glob(f"{folder}/*.py")}
    for name in {name.rstrip(".") for name in named}:
        made_later = name.startswith("data/cache")
        if not (made_later or list(ROOT.glob(name.rstrip("/"))) or name in own):
            missing.append(name)
    assert missing == []


def test_commands_on_pages_work(monkeypatch, capsys):
    """Every fenced `python ...` line names a script that exists and flags and values that it takes."""
    monkeypatch.setattr(processes, "pick_device", lambda name: torch.device("cpu"))
    assert [line for line in fenced(README) if line.startswith("pip install") and "python train_skd.py" in line]
    view = commands("python sample.py")
    for script in (train_skd, train_okd):
        assert commands(f"python {script.__name__}.py")
        for words in commands(f"python {script.__name__}.py"):
            script.parse_flags(words[2:])  # raises what the user would see
    assert view
    with pytest.raises(SystemExit):
        rollouts.main(["--help"])
    known = set(re.findall(r"--[a-z-]+", capsys.readouterr().out))
    assert {word for words in view for word in words if word.startswith("--")} <= known
    for words in commands("python "):
        if words[1] == "-m":
            assert words[2] in ("pytest", "venv") or (ROOT / f"{words[2].replace('.', '/')}.py").is_file(), words
        else:
            assert (ROOT / words[1]).is_file(), words


def test_the_readme_is_one_page():
    """What is not needed on the first day stands in docs/ and results/."""
    assert README.stat().st_size <= 20_000 and len(page(README).splitlines()) <= 250


def test_every_room_of_the_laboratory_is_named():
    """lab/README.md says of each module what it does."""
    named = set(re.findall(r"`(\w+\.py)`", page("lab/README.md")))
    modules = {path.name for path in ROOT.glob("lab/*.py")} - {"__init__.py"}
    assert named >= modules, f"lab/README.md lacks {sorted(modules - named)}"


def test_ci_runs_the_readmes_test_command():
    """The fenced line that ends in pytest stands literally in .ci/run."""
    (command,) = [line for line in fenced(README) if re.search(r"pip install .*&& python -m pytest\b", line)]
    script = (ROOT / ".ci" / "run").read_text()
    assert command in script.splitlines()
    assert (ROOT / ".ci" / "run").stat().st_mode & 0o111, ".ci/run is executable"
    subprocess.run(["bash", "-n", str(ROOT / ".ci" / "run")], check=True)


# ---------------------------------------------------------------------------------------------------------------------
# Committed results.


STUDIES = sorted(path.parent for path in ROOT.glob(f"results/*/{PACKED}"))
MEASURED = sorted(path.parent for path in ROOT.glob(f"results/*/{PREMISE}"))  # studies that keep figures, no records


@pytest.mark.slow
def test_every_study_is_in_the_index():
    """The index names each study, with its question and its answer."""
    links = re.findall(r"^\| \[([\w-]+)\]\(\1/README\.md\) \| [^|]+ \| [^|]+ \|$", page("results/README.md"), re.M)
    folders = sorted(folder.name for folder in STUDIES + MEASURED)
    assert sorted(links) == folders, "results/README.md has one row per study"


def strings(value):
    """Every text in a JSON value, keys included."""
    if isinstance(value, dict):
        return [text for item in value.items() for part in item for text in strings(part)]
    return (
        [text for item in value for text in strings(item)]
        if isinstance(value, list)
        else [value] * isinstance(value, str)
    )


@pytest.mark.parametrize("folder", STUDIES, ids=lambda folder: folder.name)
def test_committed_records_name_no_folder(folder):
    """No text in a committed record is a path of somebody's machine, and a quick run is no result."""
    runs = reading.read_records(folder)
    assert runs
    for run in runs:
        assert not run.header["quick"]
        for text in strings([run.header, *run.steps, *run.evals, run.final]):
            assert not re.match(r"/|~|[A-Za-z]:\\|\.\./", text) and "://" not in text, (run.variant, run.seed, text)


def test_a_study_has_three_files_at_most():
    """README.md, the records, curves.svg where few enough methods share it, and nothing else; no loose records. All of
    results/ is small: a reader clones it."""
    for folder in STUDIES:
        methods = {run.variant for run in reading.read_records(folder)}
        drawn = len(methods) <= report.MOST_DRAWN and not any(" " in method for method in methods)
        names = {path.name for path in folder.iterdir()}
        assert names == {"README.md", PACKED} | ({"curves.svg"} if drawn else set()), folder.name
    assert not list(ROOT.glob("results/**/*.jsonl"))
    files = [path for path in ROOT.glob("results/**/*") if path.is_file()]
    assert len(files) <= 100 and sum(path.stat().st_size for path in files) < 6e6, "results/: 100 files, 6 MB at most"
