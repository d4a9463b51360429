"""What a teacher makes of prefixes that somebody wrote: figures by hand, teachers whose answers are known, and a folder
of runs from its checkpoints to its table."""

import json
import math
import re
import shlex
import subprocess
import sys

import adapters
import pytest
import torch
from test_report import make_lines, record, table_rows

import train_skd
from data import tasks
from data.tokenizer import Tokenizer
from lab import claims, compare, folders, pairs, premise, report, schedule, studies
from lab.archive import PACKED
from lab.evaluate import sample_responses
from model import load_checkpoint, save_checkpoint

TOKENIZER = Tokenizer([bytes([value]) for value in range(256)])
PROMPT = "3+4-2*3="  # 7, 5, 5


def ids(text, end=False):
    return TOKENIZER.encode(text) + [TOKENIZER.eos_token] * end


class Teacher(torch.nn.Module):
    """Gives `says(text so far)`, a digit, .8 after whatever was written, and the rest to the nine others."""

    def __init__(self, says):
        super().__init__()
        self.says, self.weight = says, torch.nn.Parameter(torch.zeros(1))

    def forward(self, tokens):
        logits = torch.full((*tokens.shape, TOKENIZER.n_vocab), -1e4)
        digits = torch.tensor([ord(digit) for digit in "0123456789"])
        logits[:, :, digits] = math.log(0.2 / 9)
        for row, sequence in enumerate(tokens.tolist()):
            for t in range(len(sequence)):
                logits[row, t, ord(self.says(TOKENIZER.decode(sequence[: t + 1])))] = math.log(0.8)
        return logits


def calculator(text):
    """The result of the operation before the last "=", as it is written; 0 elsewhere."""
    operation = re.search(r"=.*([0-9])([-+*~])([0-9])=$", text)  # the first = is the prompt's own
    if not operation:
        return "0"
    one, sign, other = operation.groups()
    return str({"+": int(one) + int(other), "-": int(one) - int(other), "~": int(other) - int(one),
                "*": int(one) * int(other)}[sign] % 10)


def obedient(text):
    """What the prompt asks for at the next result, whatever was written."""
    written = text.partition("=")[2].count("=")
    return str((tasks.math_steps(PROMPT) * 2)[max(0, written - 1)].result)


def judged(says, *texts, **options):
    return premise.premise(Teacher(says), TOKENIZER, [PROMPT] * len(texts), [ids(text) for text in texts], **options)


# ---------------------------------------------------------------------------------------------------------------------
# The measure.


def test_the_example_of_the_docstring():
    """The true results are 7 and 6, asked for are 7 and 5; the teacher says 6 with .8."""
    found = premise.premise(Teacher(lambda text: "6"), TOKENIZER, ["3+4-2="], [ids("3+4=8;8-2=6")])
    nats = -0.8 * math.log(0.8) - 0.2 * math.log(0.2 / 9)
    expected = {
        "responses": 1, "tokens": 11, "unread": 0, "teacher_entropy": nats,
        "places": 2, "teacher_right": 0.5, "teacher_asked": 0, "teacher_neither": 0.5,
        "teacher_probability": (0.2 / 9 + 0.8) / 2, "result_entropy": nats, "writer_right": 0.5,
        "places_on_right": 1, "teacher_right_on_right": 0, "teacher_asked_on_right": 0, "teacher_neither_on_right": 1,
        "teacher_probability_on_right": 0.2 / 9, "result_entropy_on_right": nats, "writer_right_on_right": 0,
        "places_on_wrong": 1, "teacher_right_on_wrong": 1, "teacher_asked_on_wrong": 0, "teacher_neither_on_wrong": 0,
        "teacher_probability_on_wrong": 0.8, "result_entropy_on_wrong": nats, "writer_right_on_wrong": 1,
    }  # fmt: skip
    assert found == pytest.approx(expected, abs=1e-6)


WRITTEN = {  # response to 3+4-2*3=: (results, of them on wrong prefixes, of them right as written, no steps)
    "3+4=7;7-2=5;5*3=5": (3, 0, 3, 0),
    "4+3=7|2~7=5,3*5=5": (3, 0, 3, 0),  # the other style, mixed separators
    "3+4=7;7-2=6;6*3=8": (3, 1, 2, 0),  # a wrong result, then right as written
    "3+4=7;7-3=4;4*3=2": (3, 2, 3, 0),  # a wrong left side: its own result stands on a wrong prefix already
    "3+4=7;7~2=5;5*3=5": (3, 2, 3, 0),  # 2-7 as written, and what follows is on a wrong prefix
    "3+4=7;x-2=5;5*3=5": (2, 1, 2, 1),  # no step, passed over; behind it the prefix is wrong
    "3+4=7;7-2=5;5*3=": (2, 0, 2, 1),  # cut off
    "3+4=7;7-2=5;5*3=5;5+1=7": (4, 1, 3, 0),  # one step too many, and wrong
    "": (0, 0, 0, 0),
}


@pytest.mark.parametrize("text", WRITTEN)
def test_teachers_whose_answers_are_known(text):
    """One that calculates what is written is right everywhere; one that obeys the prompt is so on right prefixes."""
    places, wrong, right, unread = WRITTEN[text]
    for says in (calculator, obedient):
        found = judged(says, text)
        assert (found["places"], found["places_on_wrong"], found["unread"]) == (places, wrong, unread)
        assert found["places_on_right"] == places - wrong and found["tokens"] == len(text)
        assert found["writer_right"] == (right / places if places else None)
        assert found["teacher_right_on_right"] == (1 if places > wrong else None)
    asked = found["teacher_asked"]  # the obedient one's
    assert asked == (None if not places else 1 if places < 4 else 0.75), "nothing is asked for beyond the chain"
    assert judged(calculator, text)["teacher_right"] == (1 if places else None)
    assert judged(calculator, text)["teacher_neither"] == (0 if places else None)


def test_a_teacher_that_obeys_is_not_right_as_written():
    """After 7-2=6 it says 5 at 6*3=, which is 8 as written: as asked, and so not neither."""
    found = judged(obedient, "3+4=7;7-2=6;6*3=8")
    assert (found["teacher_right_on_wrong"], found["teacher_asked_on_wrong"], found["teacher_neither"]) == (0, 1, 0)
    assert found["teacher_right"] == pytest.approx(2 / 3)
    assert found["teacher_probability_on_wrong"] == pytest.approx(0.2 / 9)


def test_batches_and_padding_change_nothing():
    """Whoever stands beside a response, and in whichever order; and a bad writer's bytes shift no place."""
    texts = [text for text in WRITTEN if text] + ["3 + 4 = 7; 7-2=5"]
    responses = [ids(text, end=True) for text in texts] + [ids("3+4=7;")[:-1] + [200, 195, *ids(";7-2=5")], []]
    prompts = [PROMPT] * (len(responses) - 1) + ["1+2="]
    teacher = adapters.make_gpt(TOKENIZER.n_vocab, 40, 2, 2, 16, seed=3)
    whole = premise.premise(teacher, TOKENIZER, prompts, responses)
    assert whole["tokens"] == sum(map(len, responses)) and whole["unread"] == 3  # the bytes join 3+4=7 to no step
    for options in ({"batch_size": 1}, {"batch_size": 4}):
        assert premise.premise(teacher, TOKENIZER, prompts, responses, **options) == pytest.approx(whole, rel=1e-5)
    again = premise.premise(teacher, TOKENIZER, prompts[::-1], responses[::-1])
    assert again == pytest.approx(whole, rel=1e-5)


def test_entropy_and_probability_of_a_real_model():
    """Of one response, the end token included, from logits that are made one prefix at a time."""
    teacher, response = adapters.make_gpt(TOKENIZER.n_vocab, 40, 2, 2, 16, seed=4), ids("4+3=6;2~6=4", end=True)
    rows = [adapters.model_logits(teacher, torch.tensor([ids(PROMPT) + response[:t]]))[0, -1].double()
            for t in range(len(response))]
    nats = [-(row.softmax(-1) * row.log_softmax(-1)).sum().item() for row in rows]
    found = premise.premise(teacher, TOKENIZER, [PROMPT], [response])
    assert found["teacher_entropy"] == pytest.approx(sum(nats) / 12, rel=1e-5)
    assert found["result_entropy_on_right"] == pytest.approx(nats[4], rel=1e-5)
    assert found["result_entropy_on_wrong"] == pytest.approx(nats[10], rel=1e-5)
    assert found["teacher_probability_on_right"] == pytest.approx(rows[4].softmax(-1)[ord("7")].item(), rel=1e-5)
    assert found["teacher_probability_on_wrong"] == pytest.approx(rows[10].softmax(-1)[ord("4")].item(), rel=1e-5)


def test_nothing_written():
    """No response, no mean."""
    found = premise.premise(Teacher(calculator), TOKENIZER, [], [])
    assert found["places"] == found["tokens"] == 0 and found["teacher_right"] is found["teacher_entropy"] is None


def test_a_result_s_token_is_found_behind_longer_ones():
    """The 7 of "xx?;4+3=7", whose xx is one token and whose ? is a byte that is no text, is token 7 and character 8."""
    merged = Tokenizer([*TOKENIZER.tokens, b"xx"])
    (nothing, stated) = premise.results_at(merged, "3+4=", [256, 200, *ids(";4+3=7"), merged.eos_token])
    assert nothing is None and (stated.at, stated.true) == (7, 7)


def test_what_has_no_results_of_one_token_is_refused():
    """A story, and a tokenizer that joins a digit with its sign."""
    story = "Ada has 3 pens. Ada buys 4 more. How many pens does Ada have?\n"
    with pytest.raises(ValueError, match="is no chain of digits"):
        premise.premise(Teacher(calculator), TOKENIZER, [story], [ids("3+4=7")])
    joined = Tokenizer([*TOKENIZER.tokens, b"=7"], r"[\s\S]+")
    with pytest.raises(ValueError, match="digits must be tokens"):
        premise.results_at(joined, "3+4=", joined.encode("3+4=7"))


# ---------------------------------------------------------------------------------------------------------------------
# A folder of runs.

OPTIONS = {"difficulty": 2, "entropy": 0.5, "hard_share": 0.3, "stories": False, "test_examples": 6}


def leave_runs(folder, pair_seeds=(1, 2), seeds=2, methods=("supervised", "skd"), task="math", **options):
    """What train_skd.py leaves: checkpoints and records of tiny models with random weights."""
    about = {"task": task, "task_options": OPTIONS | options, "max_new_tokens": 13, "accept_top_k": 3}
    number = 0
    for pair in pair_seeds:
        names = [f"teacher_pair{pair}", f"student_start_pair{pair}"]
        for seed in range(pair, pair + seeds):
            for method in methods:
                names.append(f"{method}_pair{pair}_seed{seed}")
                lines = make_lines(method, seed, pair=pair)
                lines[0] |= {"order": ["skd", "supervised"], "quick": False}
                (folder / f"{names[-1]}.jsonl").write_text(record(lines))
        for name in names:
            number += 1
            model = adapters.make_gpt(TOKENIZER.n_vocab, 21, 1, 2, 8, seed=number)
            save_checkpoint(str(folder / f"{name}.pt"), model, TOKENIZER.state_dict(), pair=pair, **about)
    return folder


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """Such a folder, and what was measured there."""
    folder = leave_runs(tmp_path_factory.mktemp("runs"))
    return folder, premise.measure_folder(folder, 5)


def test_every_writer_of_a_folder_is_measured(measured):
    """References, teacher, untouched student, then the methods in the records' order with each pair and seed."""
    _, found = measured
    rows = [(row["pair"], row["writer"], row["seed"]) for row in found["measured"]]
    before = [("references", None), ("teacher", None), ("student at the start", None)]
    after = {pair: [(name, seed) for name in ("skd", "supervised") for seed in (pair, pair + 1)] for pair in (1, 2)}
    assert rows == [(pair, *writer) for pair in (1, 2) for writer in before + after[pair]]
    assert found["rows"] == 5 and found["fingerprints"] == {"1": "1a", "2": "2a"} and not found["quick"]
    for row in found["measured"]:
        assert row["responses"] == 5 and (row["writer"] != "references" or row["writer_right"] == 1)
    assert len({row["teacher_entropy"] for row in found["measured"]}) == len(rows), "everybody writes something else"


def test_a_student_s_row_is_its_own_samples(measured):
    """Written at temperature 1 to the first prompts of the test split, and judged by its own pair's teacher."""
    folder, found = measured
    (row,) = [row for row in found["measured"] if (row["writer"], row["pair"], row["seed"]) == ("skd", 2, 3)]
    student, teacher = (load_checkpoint(str(folder / name))[0] for name in ("skd_pair2_seed3.pt", "teacher_pair2.pt"))
    prompts = [example.prompt for example in tasks.make_task("math", difficulty=2).examples("test")[:5]]
    responses, _ = sample_responses(student, [ids(prompt) for prompt in prompts], 13, TOKENIZER.eos_token, seed=2)
    assert {key: row[key] for key in row if key not in ("pair", "writer", "seed")} == premise.premise(
        teacher, TOKENIZER, prompts, responses
    )


def test_the_program_leaves_a_file_that_gives_its_table_again(measured, capsys):
    """Printed and written are the same; run again, nothing changes but what it says of the machine."""
    folder, found = measured
    assert premise.main([str(folder), "--rows", "5", "--device", "cpu"]) == 0
    kept = json.loads((folder / claims.PREMISE).read_text())
    told = capsys.readouterr().out
    assert claims.premise_table(kept) in told and "pair 2: 7 writers, 5 responses each" in told
    assert kept["measured"] == premise.rounded(found["measured"])
    assert list(table_rows(told, "who wrote")) == ["references", "teacher", "student at the start", "skd", "supervised"]


@pytest.mark.parametrize("change,words", [
    ({"task": "translation"}, "task translation, where no single token is right or wrong"),
    ({"stories": True}, "word problems, whose results have two digits"),
    ({"rows": 7}, "--rows must lie in 1..6 .*found 7"),
    ({"rows": 0}, "--rows must be at least 1, found 0"),
    ({"remove": "skd_pair1_seed1.pt"}, "no checkpoint at .*skd_pair1_seed1.pt"),
    ({"remove": "teacher_pair1.pt"}, "no checkpoint at .*teacher_pair1.pt"),
    ({"remove": "*.jsonl"}, "holds no finished run: let train_skd.py finish first"),
    ({"folder": "nowhere"}, "nowhere is not a folder"),
])  # fmt: skip
def test_wrong_use_is_one_line(change, words, tmp_path):
    """What is wrong, what was found, and what to type; nothing is written."""
    change = dict(change)
    rows, remove, folder = change.pop("rows", 5), change.pop("remove", None), change.pop("folder", "")
    leave_runs(tmp_path, (1,), 1, ("skd",), **change)
    for path in tmp_path.glob(remove) if remove else ():
        path.unlink()
    with pytest.raises(ValueError, match=words) as error:
        premise.main([str(tmp_path / folder), "--rows", str(rows), "--device", "cpu"])
    assert "\n" not in str(error.value) and not (tmp_path / claims.PREMISE).exists()


@pytest.mark.slow
def test_as_a_program_it_ends_with_one_line(tmp_path):
    """A non-zero status and a line on stderr that names the program."""
    words = [sys.executable, "-m", "lab.premise", str(tmp_path)]
    done = subprocess.run(words, cwd=folders.ROOT, capture_output=True, text=True)
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr.startswith("lab.premise: ") and len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("words", [["folder", "--rows", "many"], []])
def test_flags_that_are_none_are_one_line(words, capsys):
    """Status 2, before anything is read."""
    with pytest.raises(SystemExit) as stop:
        premise.main(words)
    (line,) = capsys.readouterr().err.splitlines()
    assert stop.value.code == 2 and line.startswith("lab.premise: ") and line.endswith("(see --help)")


# ---------------------------------------------------------------------------------------------------------------------
# The table.


def row_of(pair, writer, right, seed=None, **figures):
    """One writer's figures, made up: what is not given is .5."""
    names = [name + side for name in premise.FIGURES for side in premise.SIDES] + ["teacher_entropy"]
    counts = {f"places{side}": 10 for side in premise.SIDES} | {"tokens": 60, "unread": 1, "responses": 2}
    return {"pair": pair, "writer": writer, "seed": seed} | dict.fromkeys(names, 0.5) | counts | {
        "teacher_right": right
    } | figures  # fmt: skip


def found_in(*rows, quick=False):
    return {"rows": 2, "quick": quick, "measured": list(rows)}


THREE = (
    *(row_of(pair, "teacher", right) for pair, right in ((1, 0.99), (2, 1.0), (3, 0.98))),
    # of pair 1 two seeds, which are averaged first: .80, .79, .81
    *(row_of(pair, "skd", right, seed) for pair, seed, right in ((1, 1, 0.7), (1, 2, 0.9), (2, 2, 0.79), (3, 3, 0.81))),
    *(row_of(pair, "references", right, teacher_right_on_wrong=None) for pair, right in ((1, 0.9), (2, 1.0), (3, 1.0))),
)


def test_means_and_differences_are_over_pairs():
    """.80, .79, .81: .800 +- 4.303 * .01 / sqrt(3); minus the teacher's own, -.19, -.21, -.17: -.190 +- .050."""
    table = claims.premise_table(found_in(*THREE))
    rows = table_rows(table, "who wrote")
    assert rows["skd"]["teacher right"] == "0.800 ± 0.025"
    assert rows["skd"]["minus on its own samples"] == "-0.190 ± 0.050 *"
    assert rows["references"]["minus on its own samples"] == "-0.023 ± 0.146"
    assert rows["teacher"]["minus on its own samples"] == "-"
    assert rows["references"]["wrong: teacher right"] == "-"
    assert rows["skd"]["results"] == "40" and rows["skd"]["pieces that are no step"] == "4"
    assert "over 3 pretrained pairs" in table and "for 2 comparisons" in table


def test_a_pair_without_a_figure_is_left_out_and_counted():
    changed = [row | {"teacher_right_on_wrong": None} if (row["pair"], row["writer"]) == (2, "skd") else row
               for row in THREE]
    assert table_rows(claims.premise_table(found_in(*changed)), "who wrote")["skd"]["wrong: teacher right"] == (
        "0.500 ± 0.000 (n = 2)"
    )


def test_one_pair_has_no_interval():
    """And a line says what that means; a smoke run's table says that it is one."""
    table = claims.premise_table(found_in(*(row for row in THREE if row["pair"] == 1), quick=True))
    assert "One pretrained pair (1): there is no interval" in table and "Asterisk" not in table and "±" not in table
    assert table_rows(table, "who wrote")["skd"]["minus on its own samples"] == "-0.190"
    assert "smoke run" in table.splitlines()[0]


def test_a_page_is_rendered_from_its_file(tmp_path):
    """Words around the markers stay; a file that is damaged is named in one line."""
    (tmp_path / claims.PREMISE).write_text(json.dumps(found_in(*THREE)))
    (tmp_path / "README.md").write_text("# Own words\n\n<!-- table:begin -->\n<!-- table:end -->\n\nMore.\n")
    text = report.premise_page(tmp_path)
    assert text.startswith("# Own words") and text.endswith("More.\n")
    assert claims.premise_table(found_in(*THREE)) in text
    for damaged in ("{", "[]", '{"measured": []}', '{"measured": [{"pair": 1}]}'):
        (tmp_path / claims.PREMISE).write_text(damaged)
        with pytest.raises(ValueError, match="is not what lab.premise writes") as error:
            report.premise_page(tmp_path)
        assert "\n" not in str(error.value)


# ---------------------------------------------------------------------------------------------------------------------
# The study.

MADE = folders.ROOT / "results" / "premise"


def test_a_study_that_measures_leaves_two_files(tmp_path, monkeypatch):
    """Its second command gets the folder of the first; the figures are kept, the records are not."""
    work, made, calls = tmp_path / "runs/studies/one", tmp_path / "results/one", []

    def run(words, folder):
        calls.append(words[1:])
        work.mkdir(parents=True, exist_ok=True)
        if words[1] == "-m":
            (work / claims.PREMISE).write_text(json.dumps(found_in(*THREE)))
        return 0

    row = studies.Study("Is it worse?", "train_skd.py --pairs 3", 1, 5, then="lab.premise")
    monkeypatch.setattr(studies, "STUDIES", {"one": row})
    monkeypatch.setattr(studies, "run_program", run)
    assert studies.run_study("one", root=tmp_path)
    assert calls[0][0] == "train_skd.py" and calls[1] == ["-m", "lab.premise", str(work)]
    assert {path.name for path in made.iterdir()} == {"README.md", claims.PREMISE}
    page = (made / "README.md").read_text()
    assert "Is it worse?" in page and "-0.190 ± 0.050 *" in page and page == report.premise_page(made)
    assert "then python -m lab.premise" in page and "then python -m lab.premise" in studies.about("one", tmp_path)
    texts = {path.parent.name for path in tmp_path.glob(f"results/*/{claims.PREMISE}")}
    assert texts == {"one"} and not (made / PACKED).exists()


def test_a_second_command_that_fails_leaves_no_study(tmp_path, monkeypatch):
    """Nothing is copied, and the study is not whole."""
    row = studies.Study("Is it worse?", "train_skd.py --pairs 3", 1, 5, then="lab.premise")
    monkeypatch.setattr(studies, "STUDIES", {"one": row})
    monkeypatch.setattr(studies, "run_program", lambda words, folder: int(words[1] == "-m"))
    assert not studies.run_study("one", root=tmp_path) and not (tmp_path / "results").exists()


@pytest.mark.skipif(not MADE.exists(), reason="python -m lab.studies premise has not been run")
def test_the_committed_study_is_whole():
    """Every pair of its command has every writer, no smoke run among them, and no text is somebody's folder."""
    found = json.loads((MADE / claims.PREMISE).read_text())
    args, methods = train_skd.parse_flags(shlex.split(studies.STUDIES["premise"].command)[1:])
    writers = [claims.REFERENCES, claims.TEACHER, claims.STUDENT_START, *methods]
    for pair in range(args.pair_seed, args.pair_seed + args.pairs):
        assert [row["writer"] for row in found["measured"] if row["pair"] == pair] == writers
    assert not found["quick"] and found["rows"] == premise.ROWS
    assert {path.name for path in MADE.iterdir()} == {"README.md", claims.PREMISE}
    assert not any(text.startswith(("/", "~")) for text in map(str, found["made_on"].values()))


@pytest.mark.slow
@pytest.mark.skipif(not MADE.exists(), reason="python -m lab.studies premise has not been run")
def test_the_committed_study_is_current(tmp_path, monkeypatch):
    """The untouched student of its first pair, pretrained anew, writes what it wrote: as right, as often no step. (No
    teacher is needed for that, so none is trained.)"""
    args, _ = train_skd.parse_flags([*shlex.split(studies.STUDIES["premise"].command)[1:], "--device", "cpu"])
    own, train = schedule.of_pair(args, args.pair_seed), pairs.pretrain

    def pretrain(model, *arguments):
        return model.eval() if model.config.n_embd == own.settings.teacher_shape[2] else train(model, *arguments)

    monkeypatch.setattr(pairs, "pretrain", pretrain)
    pair = pairs.load_or_pretrain_pair(compare.load_data(own), own.settings, cache_dir=tmp_path, report=print)
    test = pair.test.first(premise.ROWS)
    budget, end, seed = pair.max_new_tokens, pair.tokenizer.eos_token, own.pair_seed
    responses, _ = sample_responses(pair.new_student().eval(), test.prompts, budget, end, seed=seed)
    prompts = [example.prompt for example in test.examples]
    found = premise.premise(pair.teacher, pair.tokenizer, prompts, responses)
    rows = json.loads((MADE / claims.PREMISE).read_text())["measured"]
    (row,) = [row for row in rows if (row["pair"], row["writer"]) == (own.pair_seed, claims.STUDENT_START)]
    same = all(found[key] == row[key] for key in ("tokens", "places", "places_on_wrong", "unread"))
    for name in ("writer_right", "writer_right_on_right", "writer_right_on_wrong"):
        # On another kind of CPU pretraining ends elsewhere: then all is near, and no more than that.
        assert found[name] == pytest.approx(row[name], abs=1e-6 if same else 0.15), "python -m lab.studies premise"
