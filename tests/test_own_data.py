"""Laws of a user's own files: texts are learned as written, one rule says which prompts are the same, nothing is lost
in silence, and what is not certain is refused in one line that says what to type."""

import csv
import gzip
import io
import json
import os
import unicodedata

import hypothesis
import pytest
import torch
from hypothesis import strategies as st

import data.corpora as corpora
from data import own_data, tasks
from data.corpora import Example, corpus_inputs, corpus_note, load_corpus
from data.tokenizer import train_tokenizer
from lab import rollouts
from model import GPT, GPTConfig, save_checkpoint

SPLITS = ("train", "val", "test")


@pytest.fixture
def own(tmp_path):
    """own({name: text, bytes or records}, **keys) -> (splits, lines that were said); the files are in own.folder."""

    def load(files, **keys):
        for name, content in files.items():
            text = jsonl(content) if isinstance(content, list) else content
            (tmp_path / name).write_bytes(text.encode("utf-8") if isinstance(text, str) else text)
        said = []
        return load_corpus("jsonl", tmp_path, say=said.append, **keys), said

    load.folder = tmp_path
    return load


def jsonl(records):
    return "".join(json.dumps(record) + "\n" for record in records)


def pairs(count, start=0):
    return [{"prompt": f"say {n}:", "response": f"it is {n}"} for n in range(start, start + count)]


def whole(records):
    """Files of three splits, of which train is these records."""
    return {"train.jsonl": records, "val.jsonl": pairs(20, 10**6), "test.jsonl": pairs(20, 2 * 10**6)}


def sizes(splits):
    return [len(splits[split]) for split in SPLITS]


def refused(own, files, *words, **keys):
    with pytest.raises((ValueError, OSError)) as error:
        own(files, **keys)
    message = str(error.value)
    assert "\n" not in message and len(message) < 400
    assert all(word in message for word in words), message
    return message


def test_own_data_with_all_files_is_taken_as_it_is(own):
    """Given files are the splits; a byte order mark, Windows line ends and blank lines do not count."""
    train = jsonl(pairs(5)).replace("\n", "\r\n\r\n").encode("utf-8-sig")
    splits, said = own({"train.jsonl": train, "val.jsonl": pairs(2, 10), "test.jsonl": pairs(3, 20)})
    assert sizes(splits) == [5, 2, 3] and said == []
    assert splits["train"][0] == Example("say 0:", "it is 0")


# -------------------------------------------------------------------------------------------------------- as written


def test_texts_are_learned_as_written(own):
    """Code keeps its indent, a prompt its last new line, tabs and blanks stay; the tokenizer gives them back."""
    record = {"prompt": "1\nAnswer:\n", "response": "    x = 1\n\tif y: \n"}
    splits, said = own(whole([record, {"prompt": "  \u00a0a ", "response": "\r\n b"}]))
    assert splits["train"] == [Example("1\nAnswer:\n", "    x = 1\n\tif y: \n"), Example("  \u00a0a ", "\r\n b")]
    assert said == []
    tokenizer = train_tokenizer([record["prompt"], record["response"]], 300)
    prompt, response = tasks.encode_example(tokenizer, splits["train"][0])
    assert tokenizer.decode(prompt) == record["prompt"] and tokenizer.decode(response) == record["response"]
    assert prompt == tasks.encode_prompt(tokenizer, record["prompt"])  # what sample.py --prompt sends


@hypothesis.given(st.lists(st.tuples(*[st.text(st.characters(exclude_categories=["Cs"]), min_size=1)] * 2), min_size=1))
def test_any_text_comes_back_from_any_format(rows):
    """JSON Lines with and without escapes, a list, CSV, TSV: every row with text is an example, letter by letter."""
    rows = [(f"a{prompt}", f"{response}b") for prompt, response in rows]  # none of blanks only
    records = [{"prompt": prompt, "response": response} for prompt, response in rows]
    formats = {
        "train.jsonl": jsonl(records),
        "train.json": json.dumps(records, ensure_ascii=False, indent=1),
        "train.jsonl.gz": "\n".join(json.dumps(record, ensure_ascii=False) for record in records),  # as unpacked
    }
    for name, delimiter in (("train.csv", ","), ("train.tsv", "\t")):
        table = io.StringIO(newline="")
        csv.writer(table, delimiter=delimiter).writerows([("prompt", "response"), *rows])
        formats[name] = table.getvalue()
    held_out = {"val.jsonl": jsonl(pairs(20)), "test.jsonl": jsonl(pairs(20, 50))}
    for name, text in formats.items():
        splits = own_data.parse_own({name: text, **held_out}, lambda line: None)
        assert [(example.prompt, example.response) for example in splits["train"]] == rows, name


def test_a_typed_prompt_is_the_learned_one(own, capsys):
    """sample.py shows the same rollout for a row of the test split and for its prompt typed by hand, new lines and all;
    what it prints tells a new line from none, and from a backslash and an n."""
    texts = ["1\nAnswer:\n", " 1\nAnswer:", r"1\nAnswer:\n"]
    own({**whole(pairs(20)), "test.jsonl": [{"prompt": text, "response": " b"} for text in texts]})
    tokenizer = train_tokenizer([row["prompt"] for row in pairs(20)], 280)
    for seed, name in enumerate(("student", "teacher_pair1")):
        model = GPT(GPTConfig(tokenizer.n_vocab, 48, 1, 1, 8), torch.Generator().manual_seed(seed))
        about = {"task": "jsonl", "task_options": {}, "max_new_tokens": 8, "accept_top_k": 3}
        save_checkpoint(str(own.folder / f"{name}.pt"), model, tokenizer.state_dict(), **about)

    def shown(*words):
        assert rollouts.main(["--checkpoint", str(own.folder / "student.pt"), "--device", "cpu", *words]) == 0
        lines = capsys.readouterr().out.split("\n")
        return [line for line in lines if line.startswith(("prompt", "rollout", "result"))]

    texts = [example.prompt for example in tasks.make_task("jsonl", data_dir=own.folder).examples("test")]  # its order
    rows = shown("--data-dir", str(own.folder), "--rows", "3")
    assert rows == shown(*(word for text in texts for word in ("--prompt", text)))
    assert {*rows[::3]} == {r"prompt   1\nAnswer:\n", r"prompt    1\nAnswer:", r"prompt   1\\nAnswer:\\n"}
    assert len({*rows[2::3]}) == 3


def test_rows_without_text_are_left_out_and_counted(own):
    """An empty prompt, an empty response, one of blanks only: counted in one line, with the first place."""
    empty = [{"prompt": "a", "response": ""}, {"prompt": " \n", "response": "b"}, {"prompt": "c", "response": "\t"}]
    splits, said = own(whole([*pairs(3), *empty]))
    assert sizes(splits)[0] == 3
    assert said == ["train.jsonl: 3 rows left out, whose prompt or response is empty (first: line 4)"]


# ---------------------------------------------------------------------------------------------------------- identity


def test_one_rule_says_which_prompts_are_the_same(own):
    """Unicode forms and outer white space are one prompt, letter case and inner spacing are not."""
    composed, parted = (unicodedata.normalize(form, "Was heißt café?") for form in ("NFC", "NFD"))
    assert composed != parted and own_data.identity(composed) == own_data.identity(f" {parted}\n")
    others = ["Is Ab a name?", "Is AB a name?", "Is  Ab a name?", "Is Ab a name", "x", "\tx"]
    assert len(set(map(own_data.identity, others))) == 5
    train = [{"prompt": prompt, "response": "b"} for prompt in [*others, parted]]
    test = [{"prompt": composed, "response": "c"}]
    splits, said = own({"train.jsonl": train, "val.jsonl": pairs(20), "test.jsonl": test})
    assert [example.prompt for example in splits["train"]] == others
    assert "train.jsonl: 1 of 7 rows left out, whose prompts are in test.jsonl" in said


def test_repeated_prompts_lie_in_one_split_with_all_their_rows(own):
    """4,000 rows of 40 prompts: none is lost, all splits are carved alike, and one line counts rows and prompts."""
    rows = [{"prompt": f"say {n % 40}:", "response": f"it is {n % 3}"} for n in range(4000)]
    splits, said = own({"train.jsonl": rows})
    prompts = {split: {example.prompt for example in splits[split]} for split in SPLITS}
    assert sum(sizes(splits)) == 4000 and sum(map(len, prompts.values())) == len(set.union(*prompts.values())) == 40
    assert sizes(splits) == [100 * len(prompts[split]) for split in SPLITS]
    told = ", ".join(f"{split} {len(prompts[split])} ({100 * len(prompts[split]):,})" for split in SPLITS)
    assert f"all rows of a prompt lie in one split; distinct prompts (and rows): {told}" in said


def test_an_overlapping_file_costs_train_its_rows_in_one_line(own):
    """Test keeps all its rows, val yields to it, train to both; each loss is a line with its reason."""
    files = {"train.jsonl": pairs(1000), "val.jsonl": pairs(30, 980), "test.jsonl": pairs(900) + pairs(5, 1005)}
    splits, said = own(files)
    assert sizes(splits) == [80, 25, 905]
    assert said == [
        "val.jsonl: 5 of 30 rows left out, whose prompts are in test.jsonl",
        "train.jsonl: 900 of 1,000 rows left out, whose prompts are in test.jsonl",
        "train.jsonl: 20 of 1,000 rows left out, whose prompts are in val.jsonl",
    ]


def test_a_split_of_the_prompt_alone(own):
    """A tenth each by hash; more data, other answers and another order move no prompt."""
    splits, said = own({"train.jsonl": pairs(300)})
    assert sum(sizes(splits)) == 300 and said == []
    assert all(4 <= len(splits[split]) <= 56 for split in ("val", "test"))  # 30 expected, sd 5.2
    assert "val.jsonl is missing" in corpus_note("jsonl", own.folder)
    more, _ = own({"train.jsonl": pairs(400)[::-1]})
    assert all(set(splits[split]) <= set(more[split]) for split in SPLITS)


@pytest.mark.parametrize("count", [3, 4, 8])
def test_a_handful_of_rows_still_works(own, count):
    """Every split gets a prompt, and one line says that a val file can be given."""
    splits, said = own({"train.jsonl": pairs(count)})
    assert sum(sizes(splits)) == count and min(sizes(splits)) >= 1
    assert len(said) == 1 and f"{count} prompts" in said[0] and "put val.jsonl and test.jsonl beside it" in said[0]


def test_too_few_prompts_and_no_folder(own):
    refused(own, {"train.jsonl": pairs(2) * 50}, "train.jsonl", "too few distinct prompts (2)", "val.jsonl and test")
    assert sizes(own({"val.jsonl": pairs(2, 9)})[0])[1] == 2
    with pytest.raises(OSError, match="train.jsonl: not found; .*--data-dir"):
        load_corpus("jsonl")


@pytest.mark.parametrize("same", [("train", "test"), ("val", "test"), ("train", "val", "test")])
def test_files_of_equal_content_are_told(own, same):
    files = {f"{split}.jsonl": pairs(50) if split in same else pairs(30, 100) for split in SPLITS}
    message = refused(own, files, "hold the same rows", *same)
    assert sum(f"{split}.jsonl" in message for split in SPLITS) >= len(same)


def test_a_split_that_lies_whole_in_another_is_told(own):
    refused(own, {"train.jsonl": pairs(50), "test.jsonl": pairs(60)}, "train.jsonl: nothing is left", "test.jsonl")


# ------------------------------------------------------------------------------------------------------------ shapes

COMPLETION = jsonl({"prompt": row["prompt"], "completion": row["response"]} for row in pairs(30))
CHAT = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
TURNS = jsonl({"messages": [CHAT[0] | {"content": row["prompt"]}, CHAT[1] | {"content": row["response"]}]}
              for row in pairs(30))  # fmt: skip
SHARED = jsonl({"conversations": [{"from": "human", "value": row["prompt"]}, {"from": "gpt", "value": row["response"]}]}
               for row in pairs(30))  # fmt: skip
CSV = "response,prompt\r\n" + "".join(f'it is {n},"say {n}:"\r\n' for n in range(30))
TSV = "prompt\tresponse\n" + "".join(f"say {n}:\tit is {n}\n" for n in range(30))


@pytest.mark.parametrize("name, content", [
    ("train.jsonl", COMPLETION), ("train.jsonl", TURNS), ("train.jsonl", SHARED), ("train.csv", CSV),
    ("train.tsv", TSV),
    ("train.json", json.dumps(pairs(30), indent=2)), ("train.json", jsonl(pairs(30))),
    ("train.jsonl", json.dumps(pairs(30))), ("train.jsonl.gz", gzip.compress(jsonl(pairs(30)).encode())),
    ("train.csv.gz", gzip.compress(CSV.encode("utf-8-sig"))), ("train.json", jsonl(pairs(30)).removesuffix("\n")),
])  # fmt: skip
def test_common_shapes_are_the_same_rows(own, name, content):
    """Completion, chats of two turns, tables with a heading, lists of objects, packed: the same texts; the record's
    inputs have the name that the file has."""
    splits, said = own({name: content, "val.jsonl": pairs(20, 100), "test.csv": "prompt,response\na,b\n"})
    assert splits["train"] == [Example(f"say {n}:", f"it is {n}") for n in range(30)] and said == []
    assert list(corpus_inputs("jsonl", own.folder)) == [name, "val.jsonl", "test.csv"]


def test_instructions_are_joined_as_in_the_published_set_and_say_so(own):
    rows = [{"instruction": f"Double {n}.", "input": ("", f"n = {n}", None)[n % 3], "output": " y"} for n in range(3)]
    splits, said = own(whole(rows))
    prompts = ["Double 0.\nResponse:\n", "Double 1.\nn = 1\nResponse:\n", "Double 2.\nResponse:\n"]
    assert splits["train"] == [Example(prompt, " y") for prompt in prompts]
    assert len(said) == 1 and "'Response:'" in said[0]


def test_keys_of_ones_own_are_named_by_flags(own):
    """--prompt-key and --response-key, one or both; the same texts as under the usual keys; others are told once."""
    rows = [{"question": f"say {n}:", "answer": f"it is {n}", "prompt": "other", "id": n} for n in range(5)]
    splits, said = own({"train.jsonl": rows, **{name: [{"question": "q", "answer": "a"}] for name in ("val.jsonl",)},
                        "test.csv": "question,answer\nr,b\n"}, prompt_key="question", response_key="answer")
    assert splits["train"] == [Example(f"say {n}:", f"it is {n}") for n in range(5)]
    assert "train.jsonl: not read: 'id', 'prompt'" in said
    refused(own, {"train.jsonl": rows}, "line 1", "'response'", "keys 'question', 'answer'", prompt_key="question")
    refused(own, {"train.jsonl": rows}, "--prompt-key and --response-key", prompt_key="id", response_key="id")
    told = []
    task = tasks.make_task("jsonl", data_dir=own.folder, say=told.append, prompt_key="question", response_key="answer")
    assert sorted(task.by_split["train"]) == splits["train"] and told == said
    again = tasks.named_in({"task": "jsonl", "task_options": task.options}, own.folder, 3)  # as sample.py reads it
    assert again.by_split == task.by_split
    with pytest.raises(ValueError, match="no option 'prompt_key'"):
        tasks.make_task("math", prompt_key="question")


def test_the_same_line_on_several_files_is_said_once(own):
    _, said = own({f"{split}.jsonl": [row | {"id": 1} for row in pairs(30, 50 * i)] for i, split in enumerate(SPLITS)})
    assert said == ["train.jsonl, val.jsonl, test.jsonl: not read: 'id'"]


def test_several_answers_are_learned_each_and_accepted_each(own):
    """A list of answers is one row per answer in train; in val and test it is one example with several references, as
    are rows that repeat a prompt."""
    several = [{"prompt": "a", "response": ["b", "c"]}, {"prompt": "d", "response": "e"}]
    test = [{"prompt": "x", "response": "1"}, {"prompt": "x ", "response": ["2", "1"]}]
    test += [{"prompt": "y", "response": "3"}]
    val = [{"prompt": "v", "response": ["w"]}]
    splits, said = own({"train.jsonl": several, "val.jsonl": val, "test.jsonl": test})
    assert splits["train"] == [Example("a", "b"), Example("a", "c"), Example("d", "e")]
    assert splits["val"] == [Example("v", "w")]
    assert splits["test"] == [Example("x", "1", ("1", "2")), Example("x ", "2", ("1", "2")), Example("y", "3")]
    assert "test: each answer of a prompt with several counts as right (1 such prompts)" in said
    assert "train: each answer of a row with several is learned as a row of its own (1 such rows)" in said


@pytest.mark.parametrize("record, words", [
    ({"messages": [{"role": "system", "content": "s"}, *CHAT]}, ["'system', 'user', 'assistant'", "two turns"]),
    ({"messages": CHAT * 2}, ["'user', 'assistant', 'user', 'assistant'"]),
    ({"messages": []}, ["found none"]),
    ({"messages": "a"}, ["list of messages"]),
    ({"messages": [CHAT[0], CHAT[1] | {"content": [{"type": "text", "text": "b"}]}]}, ["'messages'", "a list"]),
    ({"messages": [CHAT[0], {"role": "assistant", "content": None, "tool_calls": []}]}, ["'messages'", "null"]),
    ({"prompt": "a", "chosen": "b", "rejected": "c"}, ["preference pairs", "--response-key chosen"]),
    ({"input_ids": [1, 2], "labels": [1, 2]}, ["token ids", "'input_ids', 'labels'"]),
    ({"text": "a b"}, ["where its prompt ends", "'text'"]),
    ({"text": "a", "label": 1}, ["where its prompt ends"]),
    ({"text": "a", "label": "b"}, ["--prompt-key text --response-key label"]),
    ({"messages": CHAT, "system": "be kind"}, ["'system'", "'prompt'"]),
    ({"instruction": "a", "output": "b", "history": [["c", "d"]]}, ["'history'"]),
    ({"question": "a", "answer": "b"}, ["'question', 'answer'", "--prompt-key question --response-key answer"]),
    ({"my question": "a", "$(x)": "b"}, ["--prompt-key 'my question' --response-key '$(x)'"]),
    ({"a": 1}, ["found the keys 'a'", "--prompt-key KEY"]),
    ({}, ["found the keys none"]),
    ({f"key {n}": n for n in range(100)}, ["and 92 more"]),
    ({"a\nb\x1b[31m": "c", "d": "e"}, [r"'a\nb\x1b[31m'", "--prompt-key KEY"]),
    ({"prompt": "a", "response": 7}, ["'response'", "found 7"]),
    ({"prompt": "a", "response": True}, ["'response'", "found True"]),
    ({"prompt": "a", "response": None}, ["'response'", "found null"]),
    ({"prompt": {"text": "a"}, "response": "b"}, ["'prompt'", "an object"]),
    ({"prompt": CHAT[:1], "completion": CHAT[1:]}, ["'prompt'", "a list"]),
    ({"prompt": [5, 6], "response": "a"}, ["'prompt'", "a list"]),
    ({"prompt": "a", "response": [5, 6]}, ["'response'", "found 5"]),
    ({"prompt": "a", "response": []}, ["'response'", "a list"]),
    ({"prompt": "a", "response": ["b", " "]}, ["an empty text among the answers"]),
    ({"instruction": "a", "input": 3, "output": "b"}, ["'input'", "found 3"]),
])  # fmt: skip
def test_what_is_not_certain_is_refused_by_name(own, record, words):
    """The line says what stands there and what to type; a number is no text: 7 and "7.0" must not be guessed."""
    refused(own, whole([record]), "train.jsonl, line 1", *words)


def test_a_row_of_another_shape_is_named(own):
    rows = [*pairs(3), {"instruction": "a", "output": "b"}]
    refused(own, whole(rows), "line 4", "'prompt'", "found the keys 'instruction', 'output'")


@pytest.mark.parametrize("files, words", [
    ({"train.jsonl": jsonl(pairs(3))[:-9]}, ["train.jsonl, line 3", "cut off"]),
    ({"train.jsonl": json.dumps(pairs(1)[0], indent=2)}, ["line 1", "one whole object"]),
    ({"train.jsonl": '{"data": [{"prompt": "a", "response": "b"}]}'}, ["line 1", "'data'"]),
    ({"train.json": "[]"}, ["train.json", "no row"]),
    ({"train.csv": "prompt,response\n"}, ["train.csv", "no row"]),
    ({"train.csv": "prompt;response\na;b\n"}, ["train.csv", "';'", "commas"]),
    ({"train.csv": "say yes,yes\nsay no,no\n"}, ["heading 'say yes', 'yes'"]),
    ({"train.csv": "prompt,prompt\na,b\n"}, ["train.csv", "twice in the heading"]),
    ({"train.csv": "prompt,response\na,b,c\n"}, ["train.csv, line 2", "2 cells"]),
    ({"train.csv": 'prompt,response\n"a "b"",c\n'}, ["train.csv, line 2", "broken CSV"]),
    ({"train.csv": 'prompt,response\n"a,b\nc,d\n'}, ["train.csv, line 3", "broken CSV"]),
    ({"train.tsv": "prompt,response\na,b\n"}, ["train.tsv", "','", "tabs"]),
    ({"train.jsonl": pairs(9), "train.csv": CSV}, ["train.jsonl and train.csv", "two files"]),
    ({"data.jsonl": pairs(9)}, ["train.jsonl: not found", "it holds 'data.jsonl'", "--data-dir"]),
    ({"a\nb\x1b[31m.json": "{}"}, [r"it holds 'a\nb\x1b[31m.json'"]),
    ({"train.parquet": b"PAR1"}, ["train.jsonl: not found", "it holds 'train.parquet'"]),
    ({}, ["train.jsonl: not found", "--data-dir"]),
    ({"train.jsonl.gz": b"no gzip"}, ["train.jsonl.gz", "gzip"]),
    ({"train.jsonl": "prompt,response\na,b\n"}, ["line 1", "broken JSON"]),
    ({"train.jsonl": gzip.compress(b"{}")}, ["train.jsonl, line 1", "gzip", ".gz"]),
    ({"train.csv": CSV.encode("utf-16")}, ["train.csv, line 1", "UTF-16"]),
    ({"train.csv": "prompt,response\ncafé,b\n".encode("cp1252")}, ["train.csv, line 2", "not UTF-8"]),
])  # fmt: skip
def test_a_file_that_is_nearly_right_is_one_line(own, files, words):
    refused(own, files, *words)


def test_files_of_other_names_are_told(own):
    """validation.jsonl beside train.jsonl is not read, and one line says so."""
    _, said = own({"train.jsonl": pairs(300), "validation.jsonl": pairs(3), "notes.json": "{}"})
    assert said == ["'validation.jsonl' not read: the splits' files are called train, val and test (.jsonl, .csv, ..)"]


def test_a_cell_may_be_long_and_hold_lines_and_quotes(own):
    """Beyond the csv module's 131,072 characters, over several lines, with doubled quotes; all as written."""
    answer = 'He said "no",\nthen  left. ' + "x" * 200_000
    quoted = answer.replace('"', '""')
    held_out = {"val.jsonl": pairs(20), "test.jsonl": pairs(20, 50)}
    splits, _ = own({"train.csv": f'prompt,response\n" a","{quoted}"\n', **held_out})
    assert splits["train"] == [Example(" a", answer)]


def test_a_folder_a_file_and_a_link(own):
    """A folder named train.jsonl, a file as --data-dir, a link to a file, a broken link."""
    (own.folder / "train.jsonl").mkdir()
    refused(own, {}, "train.jsonl: not found", "no file there")
    (own.folder / "train.jsonl").rmdir()
    (own.folder / "elsewhere").write_text(jsonl(pairs(300)))
    with pytest.raises(OSError, match="elsewhere: is a file; name the folder"):
        load_corpus("jsonl", own.folder / "elsewhere")
    os.symlink(own.folder / "elsewhere", own.folder / "train.jsonl")
    assert sum(sizes(own({})[0])) == 300
    (own.folder / "elsewhere").unlink()
    refused(own, {}, "train.jsonl: not found")


def test_a_large_file_says_what_it_takes(own, monkeypatch):
    """An estimate before the work, also of a small file that unpacks to a large one; not of usual ones."""
    text = jsonl(pairs(300)).encode()
    for name, content in (("train.jsonl", text), ("train.jsonl.gz", gzip.compress(text))):
        assert not any("memory" in line for line in own({name: content})[1])
        with monkeypatch.context() as limited:
            limited.setattr(corpora, "LARGE_BYTES", len(text) - 1)
            told = f"{name} has 0 MB: every process takes a minute and 2 GB of memory for 100 MB or so"
            assert own({})[1][0] == told
        (own.folder / name).unlink()


def test_a_file_above_the_limit_says_what_to_do(own, monkeypatch):
    monkeypatch.setattr(corpora, "MAX_BYTES", 1000)
    refused(own, {"train.jsonl": pairs(300)}, "train.jsonl", "more than the limit of 1000", "first 100,000 lines")


def test_every_accepted_answer_is_right(own):
    test = [{"prompt": "a", "response": ["b", "c"]}]
    own({"train.jsonl": pairs(9), "val.jsonl": pairs(9, 20), "test.jsonl": test})
    task = tasks.make_task("jsonl", data_dir=own.folder)
    assert [task.score(task.by_split["test"][0], text) for text in ("b", "c", "d")] == [1.0, 1.0, 0.0]
