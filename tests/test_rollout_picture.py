"""Laws of the picture of a rollout: who wrote what is told by class, order and words; no text leaves its place."""

import random
import re
from xml.etree import ElementTree

import pytest
from test_page import KEPT, ONE, line, run_with
from test_report import ROOT, SVG

from lab import reading, report
from lab.rollout_picture import WIDTH, rollout_picture
from lab.svg import CHAR_WIDTH
from lab.terminal import width

PICTURE = ROOT / "results" / "rollout.svg"
LEGEND = [("kept", "kept"), ("rejected", "rejected"), ("teacher", "teacher's")]


def placed(element, x=0.0, y=0.0):
    """(element, x, y) of everything drawn, in the order of the file; x and y are those of its origin on the page."""
    for child in element:
        moved = re.fullmatch(r"translate\((\S+) (\S+)\)", child.get("transform", "translate(0 0)"))
        place = x + float(moved[1]), y + float(moved[2])
        yield child, *place
        yield from placed(child, *place)


def drawn(page):
    """[(tag, class, text, left, right, top, bottom)] of the boxes and texts of a picture, in the order of the file."""
    found = []
    for element, x, y in placed(ElementTree.fromstring(page)):
        tag, style = element.tag.removeprefix(SVG), element.get("class", "")
        x, y = x + float(element.get("x", 0)), y + float(element.get("y", 0))
        if tag == "rect":
            found.append((tag, style, "", x, x + float(element.get("width")), y, y + float(element.get("height"))))
        if tag == "text":
            size = float(element.get("font-size"))
            long = float(element.get("textLength", width(element.text or "") * CHAR_WIDTH * size / 11))
            left = x - {"start": 0, "middle": long / 2}[element.get("text-anchor")]
            found.append((tag, style, element.text or "", left, left + long, y - 0.75 * size, y + 0.25 * size))
    return found


def tokens_of(page):
    """[(class, text)] of the tokens and of their notes below the legend, in the order of the file."""
    found = [(style, text) for tag, style, text, *_ in drawn(page) if tag == "text"]
    found = [one for one in found if one[0] in ("kept", "rejected", "teacher", "rank")]
    assert found[: len(LEGEND)] == LEGEND
    return found[len(LEGEND) :]


REPLACED = [("rejected", "ж"), ("teacher", "␣b"), ("rank", "rank 7 > K = 3")]
BEFORE = [("kept", "a"), *REPLACED, ("kept", r"\xd0"), ("kept", "[end]")]
AFTER = [("kept", "a"), ("kept", "␣b"), ("kept", r"\xd0"), ("kept", "[end]")]


def test_who_wrote_what():
    """A kept token is one box; of a replaced one the rejected proposal comes first, with a line through it, then the
    teacher's token, then the rank. A blank, a split character's byte and the end token are seen."""
    page = rollout_picture([run_with(line(0, ONE), line(9, ONE), line(20, KEPT))], "skd")
    assert tokens_of(page) == BEFORE + AFTER, "the first line and the last, the middle one left out"
    tree = ElementTree.fromstring(page)
    struck = [element for element in tree.iter(SVG + "path") if element.get("class") == "rejected"]
    assert len(struck) == 2, "the legend's and the row's"
    assert len([element for element in tree.iter(SVG + "rect") if element.get("class") == "card"]) == 2
    goes_on = rollout_picture([run_with(line(0, ONE), line(20, KEPT | {"cut": True}))], "skd")
    assert tokens_of(goes_on) == [*BEFORE, *AFTER, ("kept", "…")]


def test_rows_and_words(monkeypatch):
    """Per prompt a row before and a row after, each with its count; above them method, pair, seed, task, K and how much
    is replaced on all test prompts, where both figures are there."""
    monkeypatch.setattr("lab.rollout_picture.PROMPTS", 2)
    other = {"prompt": "4+", "prompt_cut": True}
    header = {"task": "math", "student_start": {"accept_rate": 0.75}}
    lines = [line(0, ONE, ONE | other, ONE), line(20, KEPT, ONE | other, ONE)]
    run = run_with(*lines, of=(201, 3), header=header, accept_rate=0.98765)
    page = rollout_picture([run], "skd")
    assert tokens_of(page) == BEFORE + AFTER + BEFORE + BEFORE, "two prompts, and of each the start before the end"
    texts = [text for tag, style, text, *_ in drawn(page) if tag == "text" and style in ("", "faint", "prompt")]
    facts = "skd, pair 201, seed 3, task math, K = 3."
    assert texts == [
        "Speculative knowledge distillation: the student writes, the teacher corrects",
        f"{facts} Replaced on all test prompts: 25.0 % of the tokens before, 1.2 % after.",
        "the student's proposal stays", "not among the teacher's K = 3 likeliest",
        "held-out prompt", "3+", "before", "1 of 4 replaced", "after 20 steps", "0 of 4 replaced",
        "held-out prompt", "… 4+", "before", "1 of 4 replaced", "after 20 steps", "1 of 4 replaced",
    ]  # fmt: skip
    root = ElementTree.fromstring(page)
    assert root.get("role") == "img" and root[0].tag == SVG + "title"
    assert root[0].text.endswith("before, the teacher replaced 2 of 8 tokens; after 20 steps, the teacher replaced "
                                 "1 of 8 tokens")
    assert root[1].get("fill") == "#FFFFFF", "a white ground, for pages in dark mode"
    without = rollout_picture([run._replace(final={"accept_rate": None})], "skd")
    assert facts in [text for _, _, text, *_ in drawn(without)] and " % " not in without


def test_the_first_run_is_drawn():
    """That of the lowest pair, then seed, in whatever order they were read; of two budgets that of equal steps."""
    def one(pair, seed, budget, token):
        made = run_with(line(0, ONE), line(20, KEPT | {"tokens": [token] * 4}), of=(pair, seed))
        return made._replace(budget=budget)

    runs = [one(3, 1, "steps", 1), one(2, 9, "compute", 2), one(2, 9, "steps", 4), one(2, 10, "steps", 3),
            run_with(variant="gkd", of=(1, 1))]  # fmt: skip
    for _ in range(4):
        assert tokens_of(rollout_picture(runs, "skd"))[-4:] == [("kept", "ж")] * 4
        runs = runs[1:] + runs[:1]


@pytest.mark.parametrize("markup", ["<script>alert(1)</script>", '"><svg onload=alert(1)>', "&lt;]]>", "</style>"])
def test_no_text_is_obeyed(markup):
    """Markup in a token, a prompt, or a name is text, and what cannot be printed is written out."""
    texts = {"1": markup, "2": "\x1b[31m", "3": "\u202e", "4": "a & b", "5": "\ud800"}
    before = line(0, ONE | {"prompt": markup + "\x00", "rank": [markup] * 4}, texts=texts)
    run = run_with(before, line(1, KEPT), variant=f"{markup}\x07", header={"task": f"{markup}\ud800"})
    page = rollout_picture([run], run.variant)
    root = ElementTree.fromstring(page.encode("utf-8"))
    tags = {element.tag.removeprefix(SVG) for element in root.iter()}
    assert tags == {"svg", "title", "style", "rect", "text", "path", "g"}
    assert not [name for element in root.iter() for name in element.attrib if name.startswith("on") or "href" in name]
    assert all(letter.isprintable() or letter == "\n" for letter in page)
    shown = (markup if len(markup) <= 24 else markup[:23] + "…").replace(" ", "␣")
    assert [one for one in tokens_of(page) if one[0] != "rank"][:5] == [
        ("kept", shown), ("rejected", "a␣&␣b"), ("teacher", r"\x1b[31m"), ("kept", r"\u202e"), ("kept", r"\ud800")
    ]  # fmt: skip
    assert ("text", "prompt", markup + r"\x00") in [one[:3] for one in drawn(page)]


LETTERS = ["i", "W", "\x00", " ", "漢", "\u0301", "😀", "<", "\\", "ж"]


@pytest.mark.parametrize("seed", range(4))
def test_no_text_leaves_its_place(seed):
    """Whatever the texts: nothing passes an edge of the picture, no two tokens overlap, a token stays in its box, a
    card holds its boxes and its note."""
    rng = random.Random(seed)

    def text(most):
        return "".join(rng.choices(LETTERS, k=rng.randrange(most)))

    def rollout():
        n_tokens = rng.choice([1, 12, 60])
        writers = rng.choices("st", weights=[1, rng.random()], k=n_tokens)
        return {
            "prompt": text(300), "prompt_cut": rng.random() < 0.5, "cut": rng.random() < 0.5,
            "tokens": rng.choices(range(20), k=n_tokens), "written_by": "".join(writers),
            "rejected": [rng.randrange(20) if writer == "t" else None for writer in writers],
            "rank": [10 ** rng.randrange(20) for _ in writers],
            **{name: [[]] * n_tokens for name in reading.LIKELIEST},
        }  # fmt: skip

    texts = {str(token): text(rng.choice([2, 8, 90])) for token in range(20)}
    lines = [line(step, rollout(), rollout(), texts=texts, accept_top_k=10 ** rng.randrange(12))
             for step in (0, 10 ** rng.randrange(16))]  # fmt: skip
    header = {"task": text(90), "student_start": {"accept_rate": 1.0}}
    run = run_with(*lines, variant="skd " + text(90), of=(2**53 - 1, 7), header=header, accept_rate=0.5)
    page = rollout_picture([run], run.variant)
    height = float(ElementTree.fromstring(page).get("height"))
    found = drawn(page)
    for tag, style, text_, left, right, top, bottom in found:
        assert 0 <= left and right <= WIDTH and 0 <= top and bottom <= height + 1e-6, (tag, style, text_, left, right)

    def within(inner, outer):
        return all(inner[i] >= outer[i] - 0.1 and inner[i + 1] <= outer[i + 1] + 0.1 for i in (3, 5))

    boxes = [one for one in found if one[0] == "rect" and one[1]]
    cards = [one for one in boxes if one[1] == "card"]
    for i, one in enumerate(boxes):
        for other in boxes[i + 1 :]:
            apart = one[4] <= other[3] or other[4] <= one[3] or one[6] <= other[5] + 0.1 or other[6] <= one[5] + 0.1
            assert apart or (one in cards and within(other, one)), (one, other)
    boxes = [one for one in boxes if one[1] != "card"]
    words = [one for one in found if one[0] == "text" and one[1] in ("kept", "rejected", "teacher")]
    assert len(words) == len(boxes)
    for word, box in zip(words, boxes):
        assert word[1] == box[1] and within(word, box) or len(word[2]) == 1, (word, box)
    notes = [one for one in found if one[1] == "rank"]
    assert len(notes) == len(cards) - 1, "the legend's card has none"
    assert all(within(note, card) for note, card in zip(notes, cards[1:]))


@pytest.mark.parametrize(
    ("lines", "found"),
    [
        ([], "holds none"),
        ([line(0, ONE)], "those of step 0 alone"),
        ([line(9, ONE), line(20, ONE)], "those of step 9, 20 alone"),
        ([line(0, ONE), line(20)], "those of step 0 alone"),
        ([line(0, ONE), line(20, ONE | {"rank": [1]})], "those of step 0 alone"),
    ],
)
def test_what_is_missing_is_named(lines, found):
    """Without the line of step 0 and a later one there is no picture, but one line that says what is there."""
    with pytest.raises(ValueError, match=found) as stop:
        rollout_picture([run_with(*lines, of=(201, 3))], "skd")
    assert "skd, pair 201, seed 3" in str(stop.value) and str(stop.value).endswith("run it again")
    with pytest.raises(ValueError, match="a finished run of gkd"):
        rollout_picture([run_with(*lines)], "gkd")


def test_the_committed_picture_is_that_of_its_source():
    """results/rollout.svg is drawn from the records of one study, and fits on README.md's first screen."""
    runs = reading.read_records(ROOT / "results" / report.PICTURED)
    made = rollout_picture(runs, report.COMPARISONS["train_skd"][1])
    there = PICTURE.read_text(encoding="utf-8") if PICTURE.is_file() else ""
    assert there == made, "results/rollout.svg is not what its records render: type python -m lab.report --pages"
    root = ElementTree.fromstring(made)
    assert float(root.get("width")) == WIDTH == 840 and float(root.get("height")) <= 280
