"""The table of planted faults fits the project of today; whether they are noticed,
tests/mutants.py itself finds out."""

import json
import subprocess

import mutants
import pytest
from tiny import matrix


def test_the_table_fits_the_project():
    """Every old text occurs once, every new one leaves Python, every test is there, no name stands twice;
    each has its note."""
    assert mutants.problems(mutants.ROOT) == []
    assert all(mutant.old != mutant.new and mutant.tests and mutant.note for mutant in mutants.MUTANTS)


def test_every_fault_is_noticed_by_a_fast_test(request):
    """Of every test that a row names some case runs without --slow: a known fault is heard of within minutes."""
    config = request.config
    if any("::" in arg for arg in config.args) or config.option.keyword or config.option.markexpr:
        pytest.skip("only some of the tests are here to be looked up")
    collected = {item.nodeid.split("tests/")[-1]: item for item in request.session.items}
    files = {name.partition("::")[0] for name in collected}
    for mutant in mutants.MUTANTS:
        for test in mutant.tests:
            if test.partition("::")[0] not in files:
                continue  # only some files are run
            items = [item for name, item in collected.items() if name == test or name.startswith(f"{test}[")]
            assert items, f"{mutant.name!r}: there is no test {test}"
            fast = [item for item in items if "slow" not in item.keywords]
            assert fast, f"{mutant.name!r}: all of {test} are slow, name a fast one"


@pytest.mark.slow
def test_the_page_shows_the_record():
    """Every fault of today's table was planted and killed in the committed run;
    its counts stand in docs/reliability.md."""
    record = json.loads((mutants.ROOT / "results" / "mutants.json").read_text())
    again = "type python tests/mutants.py --json results/mutants.json, and put its counts into docs/reliability.md"
    assert record["names"] == {mutant.name: "killed" for mutant in mutants.MUTANTS}, again
    assert record["mutants"] == record["killed"] == len(mutants.MUTANTS), again
    lines = (mutants.ROOT / "docs" / "reliability.md").read_text().splitlines()
    line = next(line for line in lines if "results/mutants.json" in line)
    assert f"| {record['mutants']} planted faults" in line and f"| {record['killed']} noticed" in line, again
    assert f"({record['seconds'] / 60:.0f} minutes)" in line, again


PASSES = "import module\n\n\ndef test_two():\n    assert module.TWO == 2\n"


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A project of one module and one test, and a table of three faults for it."""
    root = tmp_path / "project"
    (root / "tests").mkdir(parents=True)
    (root / "module.py").write_text("TWO = 2\nTHREE = 3\n")
    (root / "tests" / "test_module.py").write_text(PASSES)
    table = [
        ("seen", "TWO = 2", "TWO = 4"),
        ("unseen", "THREE = 3", "THREE = 4"),
        ("broken", "TWO = 2", "TWO = missing"),
    ]
    rows = [mutants.Mutant(name, "module.py", old, new, ("test_module.py::test_two",), "") for name, old, new in table]
    monkeypatch.setattr(mutants, "ROOT", root)
    monkeypatch.setattr(mutants, "MUTANTS", rows)
    return root


@matrix("jobs", ["1", "2"], fast=["2"])
def test_what_is_killed_and_what_is_not(project, jobs, capsys, tmp_path):
    """A failing test kills, passing ones do not, a module that cannot be imported tells nothing.
    The project stays as it is."""
    file = tmp_path / "found.json"
    assert mutants.main(["--jobs", jobs, "--json", str(file)]) == 1
    found = json.loads(file.read_text())
    assert found["names"] == {"seen": "killed", "unseen": "SURVIVED", "broken": "BROKEN"}
    assert (found["killed"], found["mutants"]) == (1, 3) and {"python", "torch", "date", "seconds"} <= set(found)
    lines = capsys.readouterr().out.splitlines()
    assert sorted(line.split()[0] for line in lines[1:4]) == ["BROKEN", "SURVIVED", "killed"]
    assert lines[4].startswith("1 of 3 killed")
    assert (project / "module.py").read_text() == "TWO = 2\nTHREE = 3\n"
    if jobs == "1":
        assert mutants.main(["--only", "seen", "--json", str(file)]) == 1  # "unseen" holds it too
    assert mutants.main(["--only", "seen", "--list"]) == 0 and len(capsys.readouterr().out.splitlines()[-2:]) == 2


def test_a_table_that_rots_is_named(project, monkeypatch):
    """A text that is gone or stands twice, a test that is gone, a change that is no Python:
    named before any test runs."""
    monkeypatch.setattr(mutants, "run_tests", None)
    first, second, _ = mutants.MUTANTS
    for changes, word in (
        ({"old": "FOUR = 4"}, "occurs 0 times"),
        ({"old": " = "}, "occurs 2 times"),
        ({"new": "TWO ="}, "invalid syntax"),
        ({"file": "gone.py"}, "No such file"),
        ({"tests": ("test_module.py::test_three",)}, "no test"),
        ({"name": "unseen"}, "two rows"),
    ):
        monkeypatch.setattr(mutants, "MUTANTS", [first._replace(**changes), second])
        with pytest.raises(SystemExit, match=f"mutants.py: .*{word}"):
            mutants.main([])


def test_a_project_that_fails_anyway_proves_nothing(project):
    """Where the tests fail without any fault, the check ends with the name of the test."""
    (project / "module.py").write_text("TWO = 2\nTHREE = 3\nTWO -= 1\n")
    with pytest.raises(SystemExit, match="without any fault the tests fail.*test_two"):
        mutants.main(["--only", "unseen"])


def test_the_copy_is_what_git_knows(project, tmp_path):
    """With git: tracked and new files, no ignored ones. Without: all but caches."""
    (project / ".gitignore").write_text("*.log\n")
    (project / "a.log").write_text("")
    (project / "__pycache__").mkdir()
    (project / "__pycache__" / "module.pyc").write_text("")
    wanted = {".gitignore", "module.py", "tests"}
    mutants.copy_project(project, tmp_path / "without")
    assert {path.name for path in (tmp_path / "without").iterdir()} == wanted | {"a.log"}
    subprocess.run(["git", "init", "-q", str(project)], check=True)
    subprocess.run(["git", "-C", str(project), "add", "module.py"], check=True)
    (project / ".gitignore").write_text("*.log\n__pycache__/\n")
    mutants.copy_project(project, tmp_path / "with")
    assert {path.name for path in (tmp_path / "with").iterdir()} == wanted
