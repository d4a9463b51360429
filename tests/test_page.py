"""Laws of report.html: it says what the records say, brings nobody's markup, needs no network, and fits in 5 MB."""

import base64
import hashlib
import json
import re
from html.parser import HTMLParser
from types import SimpleNamespace

import pytest
from test_report import ROOT, make_run, write_records
from test_security import MARKUP

import train_okd
import train_skd
from lab import arguments, page, page_style, reading, report, tables, who_wrote

VOID = {"meta", "br", "input"}


class Page(HTMLParser):
    """A page as a tree of (tag, attributes, children); fails where an element is not closed, or closed by another."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.root = SimpleNamespace(tag="", attributes={}, children=[])
        self.open = [self.root]
        self.feed(text)
        self.close()
        assert self.open == [self.root], f"<{self.open[-1].tag}> is not closed"

    def handle_starttag(self, tag, attrs):
        assert len(dict(attrs)) == len(attrs), f"<{tag}> has an attribute twice"
        element = SimpleNamespace(tag=tag, attributes=dict(attrs), children=[])
        self.open[-1].children.append(element)
        if tag not in VOID:
            self.open.append(element)

    def handle_startendtag(self, tag, attrs):  # of the picture: XML closes what is empty
        self.open[-1].children.append(SimpleNamespace(tag=tag, attributes=dict(attrs), children=[]))

    def handle_endtag(self, tag):
        assert self.open[-1].tag == tag, f"</{tag}> closes <{self.open[-1].tag}>"
        self.open.pop()

    def handle_data(self, text):
        self.open[-1].children.append(text)

    def handle_comment(self, text):
        pytest.fail(f"the page has a comment: {text}")

    def all(self, tag=None, of=None, **attributes):
        """The elements below one with this tag and these attributes, in the order of the page; class_ for class."""
        wanted = {name.rstrip("_"): value for name, value in attributes.items()}
        found = []
        for child in (of or self.root).children:
            if not isinstance(child, str):
                if tag in (None, child.tag) and wanted.items() <= child.attributes.items():
                    found.append(child)
                found += self.all(tag, child, **attributes)
        return found

    def table(self, name, i=0):
        """The cells of a section's i-th table, the header first."""
        element = self.all("table", self.all("section", id=name)[0])[i]
        return [[text_of(cell) for cell in row.children if not isinstance(cell, str)]
                for row in self.all("tr", element)]  # fmt: skip


def text_of(element):
    """The text inside of an element as it is read, without what pops up."""
    if isinstance(element, str):
        return element
    parts = [child for child in element.children if isinstance(child, str) or child.attributes.get("class") != "d"]
    return "\n" if element.tag == "br" else "".join(map(text_of, parts))


TEXTS = {"1": "a", "2": " b", "3": "\\xd0", "4": "ж", "5": ""}
ONE = {  # prompt "3+", the student's a kept, its ж rejected for a space and b, its half of a letter kept, the end
    "prompt": "3+",
    "tokens": [1, 2, 3, 5],
    "written_by": "stss",
    "rejected": [None, 4, None, None],
    "rank": [1, 7, 3, 2],
    "teacher_tokens": [[1, 2, 3, 4, 5], [2, 1, 3, 5, 4], [4, 1, 3, 5, 2], [1, 5, 2, 3, 4]],
    "teacher_probs": [[0.9, 0.05, 0.03, 0.02, 0.0]] * 4,
    "student_tokens": [[1, 2, 3, 4, 5], [4, 2, 1, 3, 5], [3, 1, 4, 5, 2], [5, 1, 2, 3, 4]],
    "student_probs": [[0.5, 0.25, 0.125, 0.1, 0.025]] * 4,
}


def line(step, *rollouts, **more):
    return {"kind": "rollout", "step": step, "accept_top_k": 3, "texts": TEXTS, "rollouts": list(rollouts), **more}


KEPT = ONE | {"written_by": "ssss", "rejected": [None] * 4, "rank": [1, 2, 3, 2]}


def run_with(*lines, variant="skd", of=1, **more):
    return make_run(variant, of, **more)._replace(rollouts=list(lines))


def sections_of(text):
    return [section.attributes["id"] for section in Page(text).all("section")]


def test_the_table_is_that_of_the_records(tmp_path):
    """Every number of the main table is the mean of the records' own; the page holds the cells of table.md, no more and
    no less, and each of its rows begins with a heading."""
    write_records(tmp_path, ["supervised", "skd"], seeds=3, pairs=2)
    texts, runs = report.render_report(tmp_path), reading.read_records(tmp_path)
    shown = Page(texts["report.html"])
    rows = {row[0]: dict(zip(shown.table("results")[0], row)) for row in shown.table("results")}
    for variant in ("supervised", "skd"):
        for heading, key in (("score (greedy)", "score"), ("score (sampled)", "score_sampled")):
            scores = [run.final[key] for run in runs if run.variant == variant]
            assert rows[variant][heading].startswith(f"{sum(scores) / len(scores):.3f} ± ")
    found = tables.compare_runs(runs)
    for i, table in enumerate(found.tables):
        assert shown.table("results", i) == [table.header, *table.rows]
        for row in table.rows:
            assert re.search(r"\| *" + r" *\| *".join(map(re.escape, row)) + r" *\|", texts["table.md"])
    assert shown.table("runs") == [found.every_run.header, *found.every_run.rows] and len(found.every_run.rows) == 12
    for element in shown.all("tbody"):
        assert all(row.children[0].attributes == {"scope": "row"} for row in shown.all("tr", element))
    notes = [text_of(item) for item in shown.all("li", shown.all("section", id="results")[0])]
    assert notes == found.notes and all(f"- {note}" in texts["table.md"] for note in notes)


def test_the_heading_says_what_was_run(tmp_path):
    """Task, methods, pairs, seeds, metric, both models and the commands."""
    header = {"script": "train_skd", "task": "math", "metric": "whole chain right", "device_name": "two cores"}
    header |= {"teacher": {"score": 0.9, "parameters": 4321}, "flags": {"task": "math", "lr": None, "steps": 20}}
    runs = [make_run(name, (pair, pair + 4 + more), header=header, score=0.5)
            for name in ("sft", "skd") for pair in (2, 3, 4) for more in (0, 1)]  # fmt: skip
    shown = Page(page.report_page(runs))
    (facts,) = shown.all("dl")
    texts = [text_of(child) for child in facts.children]
    assert dict(zip(texts[::2], texts[1::2])) == {
        "methods": "2: sft, skd", "pairs": "3 (2 to 4)", "seeds per pair": "2 (6 to 9)",
        "score": "whole chain right, 0 to 1", "device": "two cores",
        "teacher": "4,321 parameters, score 0.900, mean over pairs",
    }  # fmt: skip
    assert text_of(shown.all("h1")[0]) == text_of(shown.all("title")[0]) == "Methods compared on the task math"
    run, again = (text_of(element) for element in shown.all("pre"))
    assert run == ("python train_skd.py --variants sft,skd --pairs 3 --pair-seed 2 --seeds 2 --seed 6 --task math "
                   "--steps 20")  # fmt: skip
    assert again == "python -m lab.report FOLDER"


@pytest.mark.parametrize(
    "script, asked, swept",
    [
        (train_skd, "--variants skd,gkd --task math --difficulty 4 --no-write-back --accept-rule minprob "
                    "--rule accept_min_prob=0.1 --equal-compute", [""]),
        (train_skd, "--variants supervised --lr 0.1 --sweep loss=reverse_kl,skew_forward_kl --quick",
                    [" loss=reverse_kl", " loss=skew_forward_kl"]),
        (train_okd, "--variants okd,okd_no_feedback --alpha 0.25 --sweep module-lr=0.5,1 --lr 0.02",
                    [" module-lr=0.5", " module-lr=1"]),
    ],
)  # fmt: skip
def test_the_command_is_taken_and_means_the_same(script, asked, swept):
    """What the page says was run, typed again, comes to the flags, methods, pairs, seeds and sweeps of the records, and
    so it does when the defaults of the pair are others by then."""
    asked = [*asked.split(), "--device", "cpu", "--pairs", "2", "--pair-seed", "5", "--seed", "7", "--seeds", "3"]
    args, names = script.parse_flags(asked)
    header = {"script": script.__name__, "flags": json.loads(json.dumps(arguments.result_flags(args)))}
    runs = [make_run(f"{name}{label}", (pair, pair + 2 + more), budget, header=header)
            for name in names for label in swept for pair in (5, 6) for more in range(3)
            for budget in ("steps", "compute")[: 1 + args.equal_compute]]  # fmt: skip
    words = page.command(runs).split()
    assert words[:2] == ["python", f"{script.__name__}.py"]
    again, named = script.parse_flags(words[2:])
    settings = header["flags"]["settings"]
    wanted = {name: settings.get(name) if value is None else value for name, value in header["flags"].items()}
    assert json.loads(json.dumps(arguments.result_flags(again))) == wanted and named == names
    assert "--start-steps" in words and "--teacher-steps" in words
    assert [label for label, _ in again.swept] == [label for label, _ in args.swept] == swept
    for name in ("pairs", "pair_seed", "seed", "seeds", "equal_compute"):
        assert getattr(again, name) == getattr(args, name), name


def test_a_token_says_who_wrote_it_and_what_was_rejected():
    """Each position has one element; its class is its writer, a rejected proposal stands struck through before it, and
    what pops up holds rank, K, and both models' five likeliest tokens with their probabilities."""
    shown = Page(page.report_page([run_with(line(0, ONE), score=0.5)]))
    (row,) = shown.all("div", class_="rollout")
    positions = shown.all("span", row, class_="p")
    assert [text_of(position) for position in positions] == ["a", "ж b", "\\xd0", "[end]"]
    assert [len(shown.all("span", position, class_="t")) for position in positions] == [0, 1, 0, 0]
    assert [len(shown.all("span", position, class_="s")) for position in positions] == [1, 0, 1, 1]
    assert [text_of(element) for element in shown.all("del", row)] == ["ж"]
    assert [text_of(element) for element in shown.all("span", row, class_="t")] == [" b"]
    assert all(position.attributes["tabindex"] == "0" for position in positions), "a tap and the tab key reach it"
    details = [SimpleNamespace(tag="", attributes={}, children=shown.all("span", position, class_="d")[0].children)
               for position in positions]  # fmt: skip
    assert text_of(details[0]).split("\n")[0] == "kept: the teacher's rank 1, K = 3"
    assert text_of(details[1]) == (
        "student's ж rejected: the teacher's rank 7, K = 3; teacher wrote ␣b\n"
        "student\n0.500 ж\n0.250 ␣b ←\n0.125 a\n0.100 \\xd0\n0.025 [end]"
        "teacher\n0.900 ␣b ←\n0.050 a\n0.030 \\xd0\n0.020 [end]\n0.000 ж"
    )
    assert "\ufffd" not in text_of(shown.root)


def test_the_teacher_is_seen_to_fall_silent():
    """Start, middle and end of one prompt follow each other; each says how many tokens the teacher wrote, and the
    method's line sums them up. A step that stands twice counts once, as it was written last."""
    start = line(0, ONE, ONE | {"prompt": "4+", "cut": True})
    lines = [line(0, KEPT), line(20, KEPT, KEPT), line(9, ONE), line(9, KEPT, ONE | {"prompt_cut": True}), start]
    shown = Page(page.report_page([run_with(*lines, score=0.5)]))
    (section,) = shown.all("section", id="rollouts")
    assert [text_of(element) for element in shown.all("p", section, class_="prompt")] == ["prompt 3+", "prompt 4+"]
    assert [text_of(element) for element in shown.all("div", section, class_="stage")] == [
        "start, step 0: the teacher wrote 1 of 4",
        "middle, step 9: the teacher wrote 0 of 4",
        "end, step 20: the teacher wrote 0 of 4",
        "start, step 0: the teacher wrote 1 of 4",
        "middle, step 9: the teacher wrote 1 of 4",
        "end, step 20: the teacher wrote 0 of 4",
    ]
    (summary,) = shown.all("summary", section)
    assert text_of(summary) == "skd, pair 1, seed 1: the teacher wrote 2 of 8 → 1 of 8 → 0 of 8"
    assert ["goes on" in text_of(element) for element in shown.all("div", section, class_="rollout")] == [
        False, False, False, True, False, False,
    ]  # fmt: skip
    four = reading.rollout_lines(run_with(*lines, line(10, ONE)))
    assert [who_wrote.stage(four, i) for i in range(4)] == ["start, step 0", "step 9", "step 10", "end, step 20"]


def test_one_run_of_each_method_is_shown():
    """Of several pairs and seeds the first that kept rollouts; the main method is open and comes first, without it the
    first one is."""
    runs = [run_with(line(0, ONE), variant=name, of=of, score=0.5)
            for name in ("sft", "gkd", "skd") for of in ((3, 4), (2, 9), (2, 8))]  # fmt: skip
    runs = [run if (run.pair, run.seed) != (2, 8) else run._replace(rollouts=[]) for run in runs]

    def summaries(main_method):
        shown = Page(page.report_page(runs, main_method=main_method))
        found = shown.all("details", shown.all("section", id="rollouts")[0])
        opened = ["open" in element.attributes for element in found]
        return [text_of(shown.all("summary", element)[0]).split(":")[0] for element in found], opened

    first = [True, False, False]
    assert summaries("skd") == ([f"{name}, pair 2, seed 9" for name in ("skd", "sft", "gkd")], first)
    assert summaries("okd") == ([f"{name}, pair 2, seed 9" for name in ("sft", "gkd", "skd")], first)


def test_lines_that_cannot_be_drawn_are_passed_over():
    """A checksum does not say that a line fits: what lacks a column, or has one that is too short, is not shown."""
    broken = [{"kind": "rollout"}, line(1, ONE, texts=[]), line(1, ONE, texts={"1": 1}), line("1", ONE), line(1, 5)]
    names = ("tokens", *reading.ROLLOUT_COLUMNS)
    broken += [line(1, ONE | {name: value}) for name in names for value in (None, 7, [1])]
    broken += [line(1, ONE | {"teacher_probs": [1, 2, 3, 4]}), line(1, rollouts=None)]
    for bad in broken:
        assert reading.rollout_lines(run_with(bad)) == []
    assert "rollouts" not in sections_of(page.report_page([run_with(*broken[:2], score=0.5)]))
    odd = ONE | {"rank": [[], {}, None, "<b>"], "prompt": None, "teacher_probs": [["x", None, float("nan"), 1, 1]] * 4}
    Page(page.report_page([run_with(line(0, odd, accept_top_k="<i>"), line(1), score=0.5)]))


STAGES = {"preparation": 0.0, "sampling": 6.0, "teacher": 1.0, "student": 2.0, "update": 0.5, "evaluation": 1.5,
          "final_evaluation": None}  # fmt: skip


def test_the_time_of_each_stage():
    """A bar is as long as the method's share of the longest, its pieces as the stages; the numbers are means over the
    runs that have them; runs of equal compute do not count."""
    runs = [make_run("skd", seed, score=0.5, seconds_by_stage=STAGES | {"sampling": seconds, "update": update})
            for seed, seconds, update in ((1, 4.0, 0.5), (2, 8.0, None))]  # fmt: skip
    runs.append(make_run("sft", 1, score=0.5, seconds_by_stage={"student": 5.5, "update": -1.0, "other": 99.0}))
    runs.append(make_run("skd", 1, "compute", score=0.5, seconds_by_stage={"sampling": 99.0}))
    runs.append(make_run("old", 1, score=0.5, seconds_by_stage="none"))
    shown = Page(page.report_page(runs))
    assert shown.table("time") == [
        ["method", "all", *page.STAGES.values()],
        ["skd", "11", "0", "6", "1", "2", "0.5", "1.5", "-"],
        ["sft", "5.5", "-", "-", "-", "5.5", "-", "-", "-"],
    ]
    bars = shown.all("div", class_="stack")
    assert [bar.attributes["style"] for bar in bars] == ["width:100.0%", "width:50.0%"]
    pieces = [piece.attributes["style"] for piece in shown.all("span", bars[0])]
    assert pieces == [f"flex:{seconds} 1 0" for seconds in ("6", "1", "2", "0.5", "1.5")]
    assert [text_of(piece) for piece in shown.all("span", bars[0])] == ["2: 6 s", "3", "4", "5", "6"]
    titles = [piece.attributes["title"] for piece in shown.all("span", bars[0])]
    assert titles[0] == "sampling: 6 s" and titles[-1] == "evaluation on the way: 1.5 s"


def test_overlap_and_entropy_gap_are_the_records():
    """Means over pairs of the final figures, the start first; what a method lacks is a dash. A smoke run has none."""
    start = {"student_start": {"topk_overlap": 0.25, "entropy_gap": -0.5}}
    runs = [
        make_run("skd", (pair, pair), header=start, score=0.5, topk_overlap=overlap, topk_overlap_on_policy=0.75,
                 entropy_gap=gap, entropy_gap_on_policy=0.125)
        for pair, overlap, gap in ((1, 0.5, -0.25), (2, 1.0, 0.5))
    ] + [make_run("sft", (1, 1), header=start, score=0.5, topk_overlap=None), make_run("gkd", (1, 1), header=start)]
    assert Page(page.report_page(runs)).table("overlap") == [
        ["method", *page.OVERLAP.values()],
        ["student at the start", "0.250", "-", "-0.500", "-"],
        ["skd", "0.750", "0.750", "0.125", "0.125"],
    ]
    quick = [run._replace(header=run.header | {"quick": True}) for run in runs]
    assert "overlap" not in sections_of(page.report_page(quick))


def test_what_the_records_lack_the_page_lacks(tmp_path):
    """Old records, without rollouts, stages and curves: their sections are not there, nor a link to them. A smoke run
    compares no score."""
    text = page.report_page([make_run("skd", score=0.512345)])
    assert sections_of(text) == ["results", "curves", "runs"]
    links = [element.attributes["href"] for element in Page(text).all("a")]
    assert links == [f"#{name}" for name in sections_of(text)]
    quick = [make_run("skd", header={"quick": True, "teacher": {"score": 0.75}}, score=0.5, seconds=7.0)]
    shown = Page(page.report_page(quick, main_method=None))
    assert shown.table("results") == [["method", "seconds", "finished"], ["skd", "7", "yes"]]
    assert "0.75" not in text_of(shown.all("dl")[0]) and not shown.all("section", id="runs")
    with pytest.raises(ValueError, match="no finished run"):
        page.report_page([])


def test_warnings_are_counted_and_told():
    """What looked wrong in the runs, and which of them are not finished."""
    runs = [make_run("skd", 1, score=0.5, warnings=["the loss is not a number"])]
    shown = Page(page.report_page(runs, ["skd_pair1_seed2.jsonl, stopped at step 3"]))
    (section,) = shown.all("section", id="warnings")
    assert text_of(shown.all("h2", section)[0]) == "Warnings (2)"
    assert [text_of(item) for item in shown.all("li", section)] == [
        "skd seed 1: warning: the loss is not a number.",
        "Not counted, unfinished: skd_pair1_seed2.jsonl, stopped at step 3.",
    ]


def everywhere(text):
    """Runs that hold a text wherever a record can hold one."""
    header = {"script": text, "task": text, "metric": text, "device_name": text, "start_warnings": [text]}
    header |= {"order": [text], "flags": {text: text, "rule": {text: 1}}}
    rollout = ONE | {"prompt": text, "rank": [text] * 4}
    evals = [{"step": step, "score": 0.5} for step in (0, 1)]
    return [run_with(line(0, rollout, texts={key: text for key in TEXTS}), variant=name, of=seed,
                     header=header, evals=evals, score=0.5, warnings=[text], seconds_by_stage=STAGES)
            for name in (text, f"{text} a={text}") for seed in (1, 2)]  # fmt: skip


GROUP = ("g", ["transform"])


@pytest.mark.parametrize("text", [*MARKUP, '" onmouseover="alert(1)', "' x='", "</script><script>alert(1)</script>",
                                  "</style>", "&amp;&#60;", "Привет, «мир»", "`${1}`"])  # fmt: skip
def test_texts_are_shown_as_they_are(text):
    """Whatever a record says, the page has the elements and attributes that it has for a harmless word, and the reader
    sees the text itself. Only of the picture's lines of text, and of the legend of long names, there may be more."""

    def outline(word):
        shown = Page(page.report_page(everywhere(word), [word], None, word, word))
        found = [(element.tag, sorted(element.attributes)) for element in shown.all()]
        return [element for element in found if element[0] not in ("text", "path") and element != GROUP], shown

    (wanted, _), (found, shown) = outline("word"), outline(text)
    assert found == wanted
    (rollout,) = shown.all("div", class_="rollout")[:1]
    assert text_of(rollout).count(text) == 5
    assert shown.table("results")[1][0] == text and f"task {text}" in text_of(shown.all("h1")[0])


def test_what_cannot_be_printed_is_written_out():
    """Control characters, half of a pair of surrogates and a mark that turns the line round are told by their names."""
    for text, seen in (("\x1b[2J", "\\x1b[2J"), ("\x00", "\\x00"), ("\ud800", "\\ud800"), ("\u202e", "\\u202e"),
                       ("\r\n", "\\r\\n"), ("\u2028", "\\u2028")):  # fmt: skip
        words = page.report_page([run_with(line(0, ONE, texts={key: f"a{text}" for key in TEXTS}), score=0.5)], [text])
        assert all(letter.isprintable() or letter == "\n" for letter in words) and words.encode()
        assert f'<span class="s">a{seen}</span>' in words and f"unfinished: {seen}." in words


def test_the_page_needs_no_network_and_runs_one_script():
    """Every link is within the page, nothing is loaded, and the policy lets the browser run the page's own script and
    no other: its hash is that of the script."""
    text = page.report_page(everywhere("word"))
    shown = Page(text)
    links = [value for element in shown.all() for name, value in element.attributes.items()
             if name in ("href", "src", "srcset", "data", "action", "poster")]  # fmt: skip
    assert links and all(link.startswith("#") for link in links)
    ids = [element.attributes["id"] for element in shown.all() if "id" in element.attributes]
    assert {link[1:] for link in links} <= set(ids) and len(ids) == len(set(ids))
    assert not re.search(r"url\(|@import|//", page_style.STYLE + page_style.SCRIPT)
    assert re.findall(r"https?://[^\"' ]*", text) == ["http://www.w3.org/2000/svg"], "a name that nobody reads from"
    assert not [name for element in shown.all() for name in element.attributes if name.startswith("on")]
    (script,) = shown.all("script")
    digest = base64.b64encode(hashlib.sha256("".join(script.children).encode()).digest()).decode()
    (policy,) = [element.attributes["content"] for element in shown.all("meta") if "http-equiv" in element.attributes]
    assert policy == f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"


def long_line(step):
    """A line of a little less than a record's third of 40,000 bytes."""
    n_tokens = 61
    columns = {"tokens": [2] * n_tokens, "written_by": "t" * n_tokens, "rejected": [4] * n_tokens,
               "rank": [1000] * n_tokens}  # fmt: skip
    for name in ("teacher", "student"):
        columns |= {f"{name}_tokens": [[1, 2, 3, 4, 5]] * n_tokens, f"{name}_probs": [[0.123] * 5] * n_tokens}
    found = line(step, {"prompt": "p" * 1000} | columns, texts={key: "<&<&<&" for key in TEXTS})
    assert 8_000 < len(json.dumps(found)) < 40_000 / 3
    return found


@pytest.mark.parametrize("methods", [40, 90])
def test_the_page_has_at_most_five_megabytes(monkeypatch, methods):
    """Forty methods with rollouts as long as a record takes them; of more than have room the last are named."""
    monkeypatch.setattr(page, "MOST_BYTES", page.MOST_BYTES // 10)  # a tenth of everything: it is the same rule
    lines = [long_line(step) for step in (0, 5)]
    runs = [run_with(*lines, variant=f"method{i}", score=0.5, seconds_by_stage=STAGES) for i in range(methods // 10)]
    text = page.report_page(runs)
    assert len(text.encode()) < 480_000
    shown = Page(text)
    (section,) = shown.all("section", id="rollouts")
    drawn = len(shown.all("details", section))
    left_out = [f"method{i}" for i in range(drawn, len(runs))]
    assert len(shown.table("results")) == 1 + len(runs)
    assert bool(left_out) == (methods > 40)
    assert (f"Left out, for want of room: {', '.join(left_out)}." in text) == bool(left_out)


def test_too_many_runs_for_a_table(monkeypatch):
    """A table of runs that would fill the page is left to table.md."""
    monkeypatch.setattr(page, "MOST_BYTES_OF_RUNS", 500)
    shown = Page(page.report_page([make_run("skd", seed, score=0.5) for seed in range(20)]))
    assert "20 runs are too many for this page: table.md" in text_of(shown.all("section", id="runs")[0])


def test_the_same_records_give_the_same_bytes():
    """In whatever order they were read."""
    runs = [run_with(line(0, ONE), line(4, KEPT), variant=name, of=of, score=0.5, seconds_by_stage=STAGES)
            for name in ("sft", "skd") for of in ((1, 1), (1, 2), (2, 3))]  # fmt: skip
    assert page.report_page(runs) == page.report_page(runs[::2] + runs[1::2], order=["sft", "skd"])


def test_a_run_has_a_page_and_a_study_has_none(tmp_path):
    """report.html lies beside table.md; packing the folder takes it away if it says what the records say."""
    write_records(tmp_path, ["skd"], seeds=2)
    report.main([str(tmp_path)])
    made = (tmp_path / "report.html").read_bytes()
    assert made == report.render_report(tmp_path)["report.html"].encode() and b"\r" not in made
    report.pack(tmp_path)
    assert not (tmp_path / "report.html").exists() and not (tmp_path / "table.md").exists()
    assert report.render_report(tmp_path)["report.html"].encode() == made
    (tmp_path / "report.html").write_text("mine")
    report.pack(tmp_path)
    assert (tmp_path / "report.html").read_text() == "mine"


def test_a_real_study_fills_the_page():
    """The committed records of eight methods: every section is there, and every token of the rollouts."""
    runs = [run for run in reading.read_records(ROOT / "results" / "skd-math-800") if run.pair < 103]
    shown = Page(page.report_page(runs))
    found = [section.attributes["id"] for section in shown.all("section")]
    assert found == ["results", "curves", "overlap", "rollouts", "time", "runs"]
    first = [run for run in runs if run.pair == 101]
    lines = [line for run in first for line in run.rollouts]
    n_tokens = sum(len(rollout["tokens"]) for line in lines for rollout in line["rollouts"])
    assert len(shown.all("span", class_="p")) == n_tokens > 1000
    by_teacher = sum(rollout["written_by"].count("t") for line in lines for rollout in line["rollouts"])
    assert len(shown.all("span", class_="t")) == len(shown.all("del")) == by_teacher + 1  # the legend has one more


def test_words_are_legible_on_every_ground():
    """WCAG's contrast of 4.5 for every text and ground, in light and dark; a name that is used is defined in both."""

    def lightness(colour):
        colour = "".join(c * 2 for c in colour[1:]) if len(colour) == 4 else colour[1:]
        parts = [int(colour[i : i + 2], 16) / 255 for i in (0, 2, 4)]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
        return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear))

    def contrast(one, other):
        dark, light = sorted((lightness(one), lightness(other)))
        return (light + 0.05) / (dark + 0.05)

    light, dark, printed = (dict(re.findall(r"--([\w-]+): (#\w+)", block))
                            for block in re.findall(r":root \{(.*?)\}", page_style.STYLE, re.S))  # fmt: skip
    used = set(re.findall(r"var\(--([\w-]+)\)", page_style.STYLE))
    assert used == set(light) == set(dark)
    for colours in (light, dark, light | printed):
        for ground in ("ground", "soft"):
            for ink in ("ink", "link", "gone"):
                assert contrast(colours[ink], colours[ground]) >= 4.5, (ink, ground)
            assert contrast(colours["student"], colours[ground]) >= 3, "a line, not a text"
        assert contrast(colours["on-teacher"], colours["teacher"]) >= 4.5
    bars = re.findall(r"\.g\d \{ background: (#\w+); \}", page_style.STYLE)
    assert len(bars) == len(page.STAGES) and all(contrast("#000000", colour) >= 4.5 for colour in bars)
