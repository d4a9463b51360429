"""bench.py works and says what it means; how fast anything is, no test asks."""

import json

import bench
import pytest
import torch

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    """The same sections on pairs and shapes that take no time."""
    monkeypatch.setattr(bench, "PAIRS", {"small": ((1, 1, 8), (1, 2, 8)), "big": ((1, 1, 8), (2, 1, 8))})
    monkeypatch.setattr(bench, "BASE", {"batch": 4, "length": 9, "vocabulary": 25})
    monkeypatch.setattr(bench, "VARIED", {"batch": (1, 4), "length": (9, 18), "vocabulary": (25, 50)})


def test_samplers():
    """Everything is beside its floor; K = V accepts all, gamma 1 throws nothing away."""
    rows = bench.samplers(CPU, 1)
    assert [row["pair"] for row in rows] == ["small"] * 14 + ["big"] * 14
    for row in rows:
        assert row["tokens/s"] == pytest.approx(4 * 9 / row["seconds"])
        assert ("times its floor" in row) == (row["what"].startswith(("interleaved", "lossless")))
        if row["what"].startswith("interleaved"):
            full, one = "100% accepted" in row["what"], "gamma 1," in row["what"]
            assert row["accepted"] == 1 if full else 0.6 < row["accepted"] < 1  # 36 draws or more at .88
            assert not (one or full) or row["thrown away"] == 0


def test_axes_vary_one_thing():
    """The base point first, then points that differ from it in one place; at the base all ratios are 1."""
    rows = bench.axes(CPU, 1)
    points = [{name: row[name] for name in bench.BASE} for row in rows]
    assert points[:5] == [bench.BASE] * 5 and len(rows) == 4 * 5
    assert all(sum(point[name] != bench.BASE[name] for name in point) == 1 for point in points[5:])
    assert all(row["time per token, times the base's"] == 1 for row in rows[:5])
    assert [row["arithmetic, times the base's"] for row in rows[:2]] == [1, 1]
    # One layer of width 8: 24 * 64 for the weights, 16 V for the head, 32 per token of context.
    longer = next(row for row in rows if row["length"] == 18)
    assert longer["arithmetic, times the base's"] == pytest.approx((1536 + 400 + 32 * 17) / (1536 + 400 + 32 * 12.5))


def test_steps_are_those_of_the_scripts():
    """Only what a model writes is sampled; a cached teacher is not asked; the parts make the whole."""
    rows = bench.steps(CPU, 2)
    assert len(rows) == 2 * len(bench.STEPS)
    for row in rows:
        assert row["step, ms"] == pytest.approx(sum(row[part.replace("_", ", ")] for part in bench.PARTS))
        assert row["memory, MB"] > 0
    assert rows[0]["times supervised"] == 1


def test_losses_and_the_memory_that_they_take(monkeypatch):
    """Chunks hold less; peak_memory counts what a call holds at once."""
    monkeypatch.setattr(bench.losses, "AT_ONCE", 4000)
    monkeypatch.setattr(bench.losses.by_chunks, "__kwdefaults__", {"at_once": 4000})
    rows = bench.large_vocabulary(CPU, 1, positions=(4, 16), vocabulary=1000)
    assert len(rows) == 12 and all(row["memory, times dense"] < 0.5 for row in rows[1::2])
    assert bench.peak_memory(lambda: [torch.ones(250_000) for _ in range(3)], CPU) == 3e6
    assert bench.peak_memory(lambda: [len(torch.ones(250_000)) for _ in range(3)], CPU) == 1e6


@pytest.mark.parametrize(
    "record", sorted((bench.ROOT / "results" / "bench").glob("*.json")), ids=lambda path: path.stem
)
def test_the_record_is_whole(record):
    """The committed figures are of every section, and were made by one commit; docs/speed.md is rendered from them."""
    figures = json.loads(record.read_text())
    assert figures["machine"]["modified"] is False and figures.keys() >= bench.SECTIONS.keys()


def test_the_command(tmp_path, capsys, monkeypatch):
    """Tables on the screen, figures and machine in the file; wrong use is one line."""
    bench.main(["--only", "sampling", "--rounds", "1", "--json", str(tmp_path / "bench.json")])
    printed, record = capsys.readouterr().out, json.loads((tmp_path / "bench.json").read_text())
    assert printed.count("\n| ") == 2 + 28 and len(record["sampling"]) == 28
    assert {"device_name", "date", "commit", "torch", "threads"} <= record["machine"].keys()
    bench.main(["--show", str(tmp_path / "bench.json")])
    shown = capsys.readouterr().out
    assert shown.strip() == bench.render(record) and "Everywhere: batch 4, length 9, vocabulary 25." in shown
    bench.main(["--only", "steps", "--show", str(tmp_path / "bench.json")])
    assert "| " not in capsys.readouterr().out
    lines = [line for line in printed.splitlines() if line.startswith("|")]
    assert len({len(line) for line in lines}) == 1
    for argv in (["--only", "everything"], ["--rounds", "0"], ["--json", str(tmp_path / "no" / "bench.json")],
                 ["--device", "tpu"],
                 ["--show", __file__], ["--show", str(tmp_path)]):  # fmt: skip
        with pytest.raises(SystemExit) as error:
            bench.main(argv)
        assert error.value.code == 2 and capsys.readouterr().err.count("\n") == 1
