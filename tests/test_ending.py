"""Laws of what is printed: exact texts of small records, at most 100 columns whatever they hold, no claim without an
interval that leaves out zero, colour on a terminal alone."""

import io
import re
import sys

import adapters
import pytest
import torch
from test_report import make_run

from data import progress
from data.tokenizer import Tokenizer
from lab import ending, held_out, reading, rollouts, schedule, tables, terminal
from lab.terminal import flow, readable, width, wrapped
from sample import interleaved_generate

STARTS = {"teacher": {"score": 0.9, "score_sampled": 0.8}, "student_start": {"score": 0.25, "score_sampled": 0.125}}


def runs(scores, **header):
    """Runs from {method: scores of pair 1, 2, ..}; a list of lists holds the seeds of each pair."""
    made = []
    for number, (method, values) in enumerate(scores.items()):
        for pair, of_pair in enumerate(values, 1):
            for seed, score in enumerate(of_pair if isinstance(of_pair, list) else [of_pair], 1):
                figures = {"score": score, "score_sampled": score / 2, "seconds": 10.0 + number}
                made.append(make_run(method, (pair, seed), header=STARTS | header, **figures))
    return made


# "5", a byte of a split character, the end, a new line, a word, the two bytes of a Russian letter
TEXTS = {"1": "5", "2": r"\xe2", "3": "", "4": r"\n", "5": " word", "6": r"\xd0", "7": r"\xb6"}


def line(step, tokens, written_by, rejected, rank, **more):
    rollout = {"prompt": "4+2=", "tokens": tokens, "written_by": written_by, "rejected": rejected, "rank": rank}
    rollout |= {name: [[]] * len(tokens) for name in reading.LIKELIEST}
    return {"kind": "rollout", "step": step, "accept_top_k": 3, "texts": TEXTS, "rollouts": [rollout | more] * 2}


BEFORE = line(0, [1, 2, 4, 5, 6, 7, 3], "sstssst", [None, None, 1, None, None, None, 2], [1, 2, 5, 1, 1, 1, 9])
AFTER = line(40, [1, 1, 3], "sss", [None] * 3, [1, 1, 1])
ROLLOUTS = """\
Held-out prompts, answered by skd's student with the teacher (K = 3), before and after 40 updates:
plain: student   {teacher's token<-rejected proposal #its rank with the teacher}

prompt   4+2=
before   5\\xe2{\\n<-5 #5} wordж{[end]<-\\xe2 #9}
after    55[end]

prompt   4+2=
before   5\\xe2{\\n<-5 #5} wordж{[end]<-\\xe2 #9}
after    55[end]"""


def with_rollouts(made, method="skd", lines=(BEFORE, AFTER)):
    return [run._replace(rollouts=list(lines)) if run.variant == method else run for run in made]


def test_the_end_of_a_demonstration():
    """One pair, one seed: a table, three sentences without a claim, and two rollouts at the start and at the end."""
    made = with_rollouts(runs({"sft": [0.25], "supervised": [0.5], "skd": [0.75]}))
    assert ending.ending(made, "supervised", "skd") == """\
method                score (greedy)  score (sampled)  greedy minus supervised  seconds
teacher                        0.900            0.800                        -        -
student at the start           0.250            0.125                        -        -
sft                            0.250            0.125                   -0.250       10
supervised                     0.500            0.250                        -       11
skd                            0.750            0.375                   +0.250       12

One pair, one seed: a demonstration, without an interval.
One pair shows no method to be better than another: --pairs 5 repeats it.
One task, one test split, models of one size: what holds for others was not measured.

""" + ROLLOUTS


SEVERAL = {  # skd minus these: +.2 +- .025, -.1 +- .025, +.1 +- .47
    "low": [0.1, 0.3, 0.5], "high": [0.41, 0.605, 0.785], "skd": [0.31, 0.5, 0.69], "both": [0.1, 0.6, 0.5],
}  # fmt: skip


def test_what_several_pairs_show():
    """Above or below is what table.md marks as decided, by how much and how exactly; the others are counted. Fewer than
    five pairs are said to be few."""
    told = ending.findings(runs(SEVERAL, jobs=2), "skd")
    assert [text.replace("\xa0", " ") for text in told] == [
        "3 pairs: ± is half the width of the 95 % interval over pairs. A claim should rest on at least 5.",
        "Greedy scores: skd is above low by 0.200 ± 0.025; below high by 0.100 ± 0.012; 1 other cannot be told from it "
        "(p < 0.05 after correction for 6 comparisons).",
        "One task, one test split, models of one size: what holds for others was not measured. Runs shared the "
        "machine: seconds do not compare.",
    ]  # fmt: skip
    page = tables.render_table(runs(SEVERAL), main_method="skd")
    marked = [line.split("|") for line in page.split("\n") if line.startswith(("| low ", "| high ", "| both "))]
    greedy = {cells[1].strip(): "*" in cells[2] for cells in marked if "positive" in cells[2]}
    assert greedy == {"low": True, "high": True, "both": False}, "the page marks what the screen says"
    five = {name: [*values, 0.45 + values[0], 0.4 + values[0]] for name, values in SEVERAL.items()}
    assert ending.findings(runs(five), "skd")[0] == "5 pairs: ± is half the width of the 95 % interval over pairs."


def test_one_pair_shows_nothing_of_others():
    """However many its seeds are."""
    told = ending.findings(runs({name: [values] for name, values in SEVERAL.items()}), "skd")
    assert told[:2] == [
        "One pair, 3 seeds: ± is half the width of the 95 % interval over runs of this pair alone.",
        "One pair shows no method to be better than another: --pairs 5 repeats it.",
    ]


@pytest.mark.parametrize("others", [
    {"a": [0.9, 0.2, 0.6]},  # an interval that covers zero
    {"a": [0.0, 0.2, 0.4]},  # the same difference three times: no spread, so no interval
    {"a": [0.03, 0.22, 0.405], **{f"b{i}": [0.9, 0.1 * i, 0.6] for i in range(9)}},  # one of ten by chance
])  # fmt: skip
def test_nothing_is_claimed_where_nothing_is_decided(others):
    """Whatever a mean may be; on the page neither."""
    made = runs({"skd": [0.1, 0.3, 0.5], **others})
    told = ending.findings(made, "skd")[1]
    assert " by 0." not in told and "skd cannot be told from any other method (none has p < 0.05 after" in told
    assert " * |" not in tables.render_table(made, main_method="skd")
    if len(others) > 1:  # alone it would be told
        alone = runs({"skd": [0.1, 0.3, 0.5], "a": others["a"]})
        assert "skd is above a by 0.082" in ending.findings(alone, "skd")[1]


def test_without_a_control_nothing_is_compared():
    told = ending.ending(runs({"gkd": [0.5], "skd": [0.75]}), "supervised", "skd")
    assert "supervised" not in told and "minus" not in told
    alone = ending.ending(runs({"supervised": [0.5]}), "supervised", "skd")
    assert "One pair shows" not in alone, "there is nothing that it could be compared with"


def test_a_smoke_run_shows_rollouts_alone():
    """Its scores mean nothing, so none is printed; without rollouts there is nothing to print."""
    made = runs({"supervised": [0.5], "skd": [0.75]}, quick=True)
    assert ending.ending(with_rollouts(made), "supervised", "skd") == ROLLOUTS
    assert ending.ending(made, "supervised", "skd") == ""


def test_whose_rollouts():
    """The main method's first run, swept or not; where it was not run, the last method that kept some."""
    order = ["supervised", "skd", "gkd"]
    made = runs({"gkd": [0.5, 0.5], "skd lr=0.01": [0.75, 0.5], "supervised": [0.5, 0.5]}, order=order)
    every = with_rollouts(with_rollouts(with_rollouts(made), "skd lr=0.01"), "gkd")
    assert "answered by skd lr=0.01's student" in ending.ending(every, "supervised", "skd")
    assert "answered by gkd's student" in ending.ending(every, "supervised", "okd"), "the last method in their order"
    assert "Held-out" not in ending.ending(with_rollouts(made, lines=[BEFORE]), "supervised", "skd")


def test_a_resumed_run_shows_its_first_and_last_state():
    twice = [BEFORE, line(20, [1], "s", [None], [1]), BEFORE, AFTER]
    told = ending.ending(with_rollouts(runs({"skd": [0.5]}, quick=True), lines=twice), "supervised", "skd")
    assert told == ROLLOUTS


def plain(text):
    return re.sub(r"\033\[[\d;]*m", "", text)


@pytest.mark.parametrize("budget", ["steps", "compute"])
def test_nothing_is_wider_than_the_screen(budget):
    """Forty methods, swept labels that differ at their ends, pairs that lack runs, equal compute, long prompts and
    answers, wide letters: at most 100 columns, and every method in a row of its own."""
    swept = [f"skd accept-rule=minprob lr=0.0001 rule=accept_min_prob=0.{i}" for i in range(20)]
    names = ["supervised", *(f"a_method_with_a_name_of_length_{i}" for i in range(20)), *swept]
    made = runs({name: [0.1, 0.2, 0.4][: 2 + (i % 3 > 0)] for i, name in enumerate(names)}, jobs=2)
    made += [run._replace(budget=budget) for run in made if budget != "steps"]
    rejected, more = [None, None, 5, None, 2] * 60, {"prompt": "字" * 300, "cut": True}
    long = line(40, [5, 6, 7, 1, 1] * 60, "sstst" * 60, rejected, [200] * 300, **more)
    made = with_rollouts(made, swept[0], [BEFORE, long])
    for color in (False, True):
        told = ending.ending(made, "supervised", "skd", color)
        widest = max(map(width, plain(told).split("\n")))
        assert 90 < widest <= 100, "what is printed has at most 100 columns"
    table = told.split("\n\n")[0].splitlines()
    assert len(table) == len({row[:40] for row in table}) == 1 + 2 + len(names), "two methods look the same"
    assert "… " not in told.split("\n\n")[1] and "after    " in told and told.rstrip().endswith("…")


def test_colour_says_the_same(monkeypatch):
    """With colour the letters are the same, and the teacher's are coloured; without there is no escape at all."""
    made = with_rollouts(runs({"supervised": [0.5], "skd": [0.75]}))
    grey, colored = (ending.ending(made, "supervised", "skd", color) for color in (False, True))
    assert "\033" not in grey and plain(colored) == grey
    assert "\033[1;32m\\n\033[0m<-\033[31m5\033[0m #5}" in colored

    class Screen(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.delenv("NO_COLOR", raising=False)
    for stream, wanted in ((io.StringIO(), False), (Screen(), True), (None, False)):
        monkeypatch.setattr(sys, "stdout", stream)
        assert terminal.in_color() == wanted
    monkeypatch.setattr(sys, "stdout", Screen())
    monkeypatch.setenv("NO_COLOR", "1")
    assert not terminal.in_color()


# ---------------------------------------------------------------------------------------------------------------------
# Lines.


def test_long_lines_are_wrapped_at_blanks():
    """The words stay, the next lines are indented, a path stays whole; what fits is not touched."""
    text = "  warning: " + "word " * 40 + "/a/path/" + "x" * 120 + " end"
    lines = wrapped(f"short  as it is\n{text}").split("\n")
    assert lines[0] == "short  as it is" and " ".join(" ".join(lines[1:]).split()) == " ".join(text.split())
    assert [one for one in lines if len(one) > 100] == ["    /a/path/" + "x" * 120]
    assert lines[1].startswith("  warning: word") and all(one.startswith("    ") for one in lines[2:])
    assert max(map(width, wrapped("字" * 30 + " " + "字 " * 60).split("\n"))) <= 100


def test_groups_stay_together_where_they_can():
    """A group that does not fit begins a line; one longer than a line is broken."""
    group = [("", "{"), ("teacher", "b" * 10), ("", "}")]
    assert flow("label ", [[("", "a" * 90)], group, [("", "c")]]) == f"label {'a' * 90}\n      {{{'b' * 10}}}c"
    assert flow("label ", [[("", "a" * 150)]]) == f"label {'a' * 94}\n      {'a' * 56}"
    assert flow("label ", []) == "label "
    assert plain(flow("label ", [[("teacher", "a" * 150)]], True)) == f"label {'a' * 94}\n      {'a' * 56}"


def test_stray_bytes_are_shown():
    """What was split and is whole again is a letter; what is no letter is told byte by byte, never as a question mark
    in a box; what a terminal would obey is written out."""
    assert readable("aж字\\\n\x1b".encode()) == "aж字\\\\\\n\\x1b"
    assert readable(b"a\xe2b\xff") == "a\\xe2b\\xff" and readable("字".encode()[:2]) == "\\xe5\\xad"
    tokenizer = Tokenizer([bytes([value]) for value in range(256)])
    decode = rollouts.readable_by(tokenizer)
    assert decode([*"ж".encode(), 0xE2]) == "ж\\xe2"
    eos = tokenizer.eos_token
    assert terminal.said([*"ж".encode(), eos, 65, eos, eos], decode, eos) == "ж[end]A[end][end]"


@pytest.mark.parametrize("data", ["a b\n\\x\\n \x1bж字🙂\xa0".encode(), bytes(range(256)), b"", b"\\xe4\xe4"])
def test_printable_text_is_told_back(data):
    """The texts of a record stand for bytes, and those are found again."""
    assert held_out.token_bytes(held_out.printable(data)) == data


def test_a_picture_is_what_was_written():
    """Without what was rejected and discarded, the groups are the response; letters of several bytes stay whole across
    the blocks of the sampler."""
    student, teacher = (adapters.make_gpt(257, 40, 1, 2, size, seed=size) for size in (8, 16))
    tokenizer = Tokenizer([bytes([value]) for value in range(256)])
    rollout = interleaved_generate(
        student, teacher, [[1, 2], [3]], 30, generator=torch.Generator().manual_seed(0), gamma=3, accept_top_k=150,
        eos_token=256,
    )  # fmt: skip
    decode = rollouts.readable_by(tokenizer)
    for row, response in enumerate(rollout.responses()):
        groups = rollouts.picture(rollout, row, lambda ids: " ".join(map(str, ids)) + " ", 256)
        written = [text for group in groups for style, text in group if style in ("student", "teacher")]
        assert "".join(written).split() == [str(token) if token != 256 else "[end]" for token in response]
        assert len([group for group in groups if len(group) > 1]) > 2 and len(rollout.blocks) > 2
        assert "\ufffd" not in flow("", rollouts.picture(rollout, row, decode, 256))


# ---------------------------------------------------------------------------------------------------------------------
# While runs are under way.


def test_a_line_now_and_then(monkeypatch):
    """A run in this process is heard of once a minute where no bar is, and not at all beside one."""
    said, clock = [], [0.0]
    monkeypatch.setattr(schedule.time, "monotonic", lambda: clock[0])
    tell = schedule.now_and_then(said.append, "[1/2] skd")
    for clock[0] in (1.0, 59.0, 61.0, 100.0, 122.0):
        tell(f"  step {clock[0]:.0f}")
    assert said == ["  [1/2] skd  step 61", "  [1/2] skd  step 122"]
    monkeypatch.setattr(progress, "shown", lambda: True)
    clock[0] = 999.0
    tell("  step 999")
    assert len(said) == 2


def test_many_runs_side_by_side_have_one_line(tmp_path, monkeypatch, capsys):
    """Those that have no room are counted."""
    todo = [(None, tmp_path, {"pair": 1}, f"skd lr=0.00{i} batch-size=32", 1, "steps", 400) for i in range(30)]
    clock = iter((0.0, 61.0, 62.0))
    monkeypatch.setattr(schedule.time, "monotonic", lambda: next(clock))
    with schedule.Progress(tmp_path, todo, 16) as running:
        running.watch(todo[:16], 14)
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("  0 of 30 runs done, ") and line.endswith(" more") and len(line) <= 100
    assert schedule.fitting(["a", "bc"], 5) == "a, bc" and schedule.fitting(["a", "bcde", "f"], 9) == "a, 2 more"
