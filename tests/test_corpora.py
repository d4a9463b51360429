"""Laws of real data sets: files are what they should be or one line says so, splits never overlap, scores are exact.

Every test builds its own tiny files; none needs the network (downloads go to a server on the loopback address).
"""

import gzip
import hashlib
import json
import random
import threading
import urllib.error
import urllib.request
from fractions import Fraction
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

import data.corpora as corpora
from data.corpora import (
    CORPORA,
    Example,
    File,
    corpus_inputs,
    corpus_note,
    download_file,
    equation_value,
    hash_split,
    load_corpus,
    prompt_key,
    separate,
)

SPLITS = ("train", "val", "test")


@pytest.fixture(autouse=True)
def no_network(monkeypatch, tmp_path):
    """Only the loopback address answers, and nothing is looked up in or written to the project's own cache."""
    really_open = urllib.request.urlopen

    def offline(url, timeout=None):
        if url.startswith("http://127.0.0.1"):
            return really_open(url, timeout=timeout)
        assert url, "a file without an address is never fetched"
        raise urllib.error.URLError("no network")

    monkeypatch.setattr(urllib.request, "urlopen", offline)
    monkeypatch.setattr(corpora, "CACHE_DIR", tmp_path / "default_cache")


@pytest.fixture
def write(monkeypatch, tmp_path):
    """write(name, {path: text or bytes}) -> data folder; the set's row then knows these files' sizes and checksums."""

    def write_files(name, contents):
        folder, files = tmp_path / "data", []
        folder.mkdir(exist_ok=True)
        for file in CORPORA[name].files:
            if file.path not in contents:
                files.append(file)
                continue
            content = contents[file.path]
            content = content.encode("utf-8") if isinstance(content, str) else content
            path = folder / file.path
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(content)
            files.append(file._replace(size=len(content), sha256=hashlib.sha256(content).hexdigest()))
        monkeypatch.setitem(CORPORA, name, CORPORA[name]._replace(files=tuple(files)))
        return folder

    return write_files


@pytest.fixture
def serve():
    """serve(body, announced length) -> address of a loopback server that answers every request with it."""
    servers = []

    def start(body, announced=None):
        class Answer(BaseHTTPRequestHandler):
            def do_GET(self):
                self.send_response(200)
                self.send_header("Content-Length", str(len(body) if announced is None else announced))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *args):
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Answer)
        servers.append(server)
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        return f"http://127.0.0.1:{server.server_port}/file"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def one_line(error, *words):
    """The error's message is one line and holds every word."""
    message = str(error.value)
    assert "\n" not in message
    assert all(word in message for word in words), message


def files_under(folder):
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


def jsonl(records):
    return "".join(json.dumps(record) + "\n" for record in records)


def own_pairs(count, start=0):
    return [{"prompt": f"say {n}:", "response": f"it is {n}"} for n in range(start, start + count)]


# ------------------------------------------------------------------------------------------------ every set's format


def multi30k_files():
    halves = {"train": (["Ein Hund.", "Zwei Hunde.", "Eine Katze."], ["A dog.", "Two dogs.", "A cat."]),
              "val": (["Ein Vogel."], ["A bird."]),
              "test_2016_flickr": (["Eine Katze.", "Ein Haus."], ["Cat.", "House."])}
    return {f"multi30k/{stem}.{language}.gz": gzip.compress(("\n".join(lines) + "\n").encode("utf-8"))
            for stem, (german, english) in halves.items() for language, lines in (("de", german), ("en", english))}


def test_multi30k_pairs_the_lines_of_two_gz_files(write):
    """Line n of .de answers line n of .en, and a training caption that is also a test caption is dropped."""
    splits = load_corpus("multi30k", write("multi30k", multi30k_files()))
    assert [example.response for example in splits["train"]] == ["A dog.", "Two dogs."]
    assert splits["val"] == [Example("Ein Vogel.\nEnglish:\n", "A bird.")]
    assert len(splits["test"]) == 2


def test_multi30k_unicode_line_separators_do_not_shift_the_pairs(write):
    """A U+2028 or U+0085 inside a caption ends no line."""
    files = multi30k_files()
    files["multi30k/train.de.gz"] = gzip.compress("Ein\u2028Hund.\nZwei\x85Hunde.\nEine Katze.\n".encode("utf-8"))
    assert [e.response for e in load_corpus("multi30k", write("multi30k", files))["train"]] == ["A dog.", "Two dogs."]


def test_multi30k_refuses_halves_of_unequal_length(write):
    files = multi30k_files() | {"multi30k/val.en.gz": gzip.compress(b"A bird.\nAnother.\n")}
    with pytest.raises(ValueError) as error:
        load_corpus("multi30k", write("multi30k", files))
    one_line(error, "multi30k/val.de.gz", "1 lines", "2")


def scan_files(count=100):
    lines = [f"IN: walk {n} OUT: {'I_WALK ' * (n + 1)}".strip() for n in range(count)]
    return {"scan/tasks_train_simple.txt": "\n".join(lines) + "\n",
            "scan/tasks_test_simple.txt": "IN: turn right after walk OUT: I_WALK I_TURN_RIGHT\n" + lines[0] + "\n"}


def test_scan_strips_the_marks_and_keeps_the_action_names(write):
    """No IN:/OUT: is left; train and val part the commands; the one that is also in test is in neither."""
    splits = load_corpus("scan", write("scan", scan_files()))
    assert splits["test"][0] == Example("turn right after walk\nActions:\n", "I_WALK I_TURN_RIGHT")
    assert len(splits["train"]) + len(splits["val"]) == 99
    assert not any("IN:" in example.prompt or "OUT:" in example.response for example in splits["train"])


def gsm8k_files(count=100):
    answer = "It is 48/2 = <<48/2=24>>24.\nWith 1,000 more: <<1>>1,024, <<2>>so.\n#### 1,024"
    return {"gsm8k/train.jsonl": jsonl({"question": f"Half of {n}?", "answer": answer} for n in range(count)),
            "gsm8k/test.jsonl": jsonl([{"question": "Who?", "answer": answer}])}


def test_gsm8k_drops_the_calculator_marks_only(write):
    splits = load_corpus("gsm8k", write("gsm8k", gsm8k_files()))
    assert splits["test"] == [Example("Who?\nAnswer:\n", "It is 48/2 = 24.\nWith 1,000 more: 1,024, so.\n#### 1,024")]
    assert len(splits["train"]) + len(splits["val"]) == 100


def test_gsm8k_refuses_an_answer_without_its_number(write):
    test = jsonl([{"question": "a", "answer": "#### 1"}, {"question": "b", "answer": "2"}])
    with pytest.raises(ValueError) as error:
        load_corpus("gsm8k", write("gsm8k", gsm8k_files() | {"gsm8k/test.jsonl": test}))
    one_line(error, "gsm8k/test.jsonl, line 2", "####")


def dialogsum_files(train=None):
    dev = [{"dialogue": f"#Person1#: {n}?", "summary": f"Asks {n}."} for n in range(60)]
    test = [{"dialogue": "#Person1#: Hi.", "summary1": "Says hi.", "summary2": "Greets.", "summary3": "A greeting."}]
    files = {"dialogsum/dialogsum.dev.jsonl": jsonl(dev), "dialogsum/dialogsum.test.jsonl": jsonl(test)}
    return files if train is None else files | {"dialogsum/dialogsum.train.jsonl": jsonl(train)}


def test_dialogsum_trains_on_dev_without_its_train_file_and_says_so(write):
    """Train and val part the dev set; the note names the missing file, the inputs do not hold it."""
    folder = write("dialogsum", dialogsum_files())
    splits = load_corpus("dialogsum", folder)
    assert len(splits["train"]) + len(splits["val"]) == 60 and len(splits["train"]) > 45
    assert splits["test"] == [Example("#Person1#: Hi.\nSummary:\n", "Says hi.", ("Says hi.", "Greets.", "A greeting."))]
    assert "dialogsum.train.jsonl is missing" in corpus_note("dialogsum", folder)
    assert list(corpus_inputs("dialogsum", folder)) == list(dialogsum_files())


def test_dialogsum_with_its_train_file_keeps_dev_for_validation(write):
    train = [{"dialogue": "#Person1#: Bye.", "summary": "Says bye."}, {"dialogue": "#Person1#: 7?", "summary": "-"}]
    folder = write("dialogsum", dialogsum_files(train))
    splits = load_corpus("dialogsum", folder)
    assert [example.response for example in splits["train"]] == ["Says bye."] and len(splits["val"]) == 60
    assert "missing" not in corpus_note("dialogsum", folder)


def test_instructions_put_the_input_under_the_instruction(write):
    records = [{"instruction": f"Double {n}.", "input": "" if n % 2 else f"n = {n}", "output": str(2 * n)}
               for n in range(100)]
    files = {"instructions/instruction-data.json": json.dumps(records)}
    splits = load_corpus("instructions", write("instructions", files))
    examples = {example for split in SPLITS for example in splits[split]}
    assert len(examples) == 100
    assert {Example("Double 1.\nResponse:\n", "2"), Example("Double 2.\nn = 2\nResponse:\n", "4")} <= examples


# ---------------------------------------------------------------------------------------------------- math problems

CSV_HEAD = "Question,Numbers,Equation,Answer\n"


def mawps_files(rows, svamp=None):
    body = "".join(f'"{question}",{numbers},{equation},0\n' for question, numbers, equation in rows)
    pack = {"Body": "Sam's pack costs 76 dollars.", "Question": "How much are 2?", "Equation": "( 76.0 * 2.0 )"}
    svamp = svamp or [pack]
    return {"svamp/train.csv": CSV_HEAD + body, "svamp/SVAMP.json": json.dumps(svamp)}


def mawps_rows(count=60):
    nouns = [f"{first}{second}s" for first in "bcdfghjklm" for second in ("at", "ox", "en", "ip", "ug", "od")]
    return [(f"Ann has number0 {noun} and number1 more . How many ?", f"{n + 2}.0 0.5", "+ number0 number1")
            for n, noun in enumerate(nouns[:count])]


def test_mawps_brings_both_sources_to_one_format(write):
    """Placeholders are filled, prefix becomes infix, words are lower-case and spaced, numbers short, in both files."""
    rows = mawps_rows() + [("On Monday Bob had number0 dollars , then number1 a day for number2 days .",
                            "25000.0 1500.50 0.16666666666666666", "- number0 * number1 number2"),
                           ("Multiply number0 and number1 .", "-2.0 15", "* number0 number1")]
    splits = load_corpus("mawps", write("mawps", mawps_files(rows)))
    examples = splits["train"] + splits["val"]
    assert Example("on monday bob had 25000 dollars , then 1500.5 a day for 0.1667 days .\nEquation:\n",
                   "25000 - ( 1500.5 * 0.1667 )") in examples
    assert Example("multiply - 2 and 15 .\nEquation:\n", "-2 * 15") in examples
    assert splits["test"] == [Example("sam 's pack costs 76 dollars . how much are 2 ?\nEquation:\n", "76 * 2")]


def test_mawps_splits_by_question_not_by_row(write):
    """Rows that differ in numbers, letter case and names only never lie on both sides of train and val."""
    rows = [(question.replace("Ann", name) if number else question.lower(), f"{number + 3} {number + 2}", equation)
            for question, _, equation in mawps_rows() for number, name in enumerate(("", "Ann", "Bob", "Eve"))]
    # inside a sentence, the capital of a name shows it to be one
    rows += [(f"Then {name} slept number0 hours .", "8", "number0") for name in ("Ann", "Bob", "Eve")]
    splits = load_corpus("mawps", write("mawps", mawps_files(rows)))

    def nouns(split):
        return {example.prompt.split()[3] for example in splits[split] if "slept" not in example.prompt}

    assert len(nouns("val")) >= 2 and not nouns("train") & nouns("val")
    assert len(splits["train"]) + len(splits["val"]) == len(rows)  # kept apart by the split, not dropped


def test_mawps_drops_training_questions_that_svamp_asks(write):
    """SVAMP's question with other numbers is not trained on."""
    svamp = [{"Body": "Ann has 5 cats and 7 more.", "Question": "How many?", "Equation": "( 5.0 + 7.0 )"}]
    rows = [(question.replace(" bats ", " cats "), *rest) for question, *rest in mawps_rows()]
    splits = load_corpus("mawps", write("mawps", mawps_files(rows, svamp)))
    assert len(splits["train"]) + len(splits["val"]) == 58  # 60 rows, of which 2 ask for cats
    assert not any("cats" in example.prompt for example in splits["train"] + splits["val"])


@pytest.mark.parametrize("row, word", [
    (("Have number0 and number7 .", "1.0 2.0", "+ number0 number1"), "placeholder"),
    (("Have number0 .", "1.0", "/ number0 0.0"), "zero"),
    (("Have number0 .", "1.0", "+ number0"), "malformed"),
    (("Have number0 .", "abc", "+ number0 1.0"), "malformed"),
])
def test_mawps_names_the_line_of_a_bad_row(write, row, word):
    with pytest.raises(ValueError) as error:
        load_corpus("mawps", write("mawps", mawps_files(mawps_rows(3) + [row])))
    one_line(error, "svamp/train.csv, line 5", word)


@pytest.mark.parametrize("text", [
    "one,cell\n", "a,1,number0,1,more\n", '"open quote,1,1,1\n', '"a" b,1,+ 1 1,1\n',
])
def test_broken_csv_names_the_line(write, text):
    with pytest.raises(ValueError) as error:
        load_corpus("mawps", write("mawps", mawps_files([]) | {"svamp/train.csv": CSV_HEAD + text}))
    one_line(error, "svamp/train.csv, line 2")


@pytest.mark.parametrize("text, value", [
    ("56 * 9", 504), ("( 36 - 12 ) - 8", 16), ("36 - ( 12 - 8 )", 32), ("8 - 3 - 2", 3), ("12 / 3 / 2", 2),
    ("2 + 3 * 4", 14), ("( 2 + 3 ) * 4", 20), ("((((7))))", 7), ("-3 + 5", 2), ("2 * - 3", -6), ("- ( 1 + 2 )", -3),
    ("0.1 + 0.2", Fraction(3, 10)), ("4 / 3 * 3", 4), (".5*4", 2), (" 76-25\n", 51),
])
def test_equation_values_are_exact(text, value):
    """Precedence, left binding, unary minus, and no rounding: 0.1 + 0.2 is 3/10."""
    assert equation_value(text) == value


@pytest.mark.parametrize("text", [
    "", " ", "1 / 0", "1 / ( 2 - 2 )", "0 / 0", "+", "1 +", "* 3 4", "1 2", "( 1", "1 )", ")(", "()", "1 + + 2", "1e5",
    "x + 1", "2 ** 3", "7 // 2", "1.2.3", "٣ + 1", "1 end", "end", "__import__('os')", "1,000 + 1", "= 4", "\x00",
    "\ud800", "(" * 10_000, "-" * 10_000, "-" * 499, "(" * 60 + "1" + ")" * 60, "9" * 100_000, "1 + " * 50_000,
    "1/" * 200 + "3",
])
def test_what_is_no_equation_has_no_value(text):
    """Garbage, zero division, deep nesting and giant numbers give None: they neither hang nor raise."""
    assert equation_value(text) is None
    assert CORPORA["mawps"].score(Example("q", "1 + 1"), text) == 0.0


def test_random_equations_agree_with_python():
    """Trees of random shape: the text written from a tree has the tree's value, and Python's own arithmetic agrees."""
    rng = random.Random(0)

    def tree(depth):
        if depth == 0 or rng.random() < 0.2:
            return Fraction(rng.randint(1, 9))
        return (rng.choice("+-*/"), tree(depth - 1), tree(depth - 1))

    for _ in range(200):
        equation = tree(4)
        text = corpora.tree_text(equation)
        try:
            value = corpora.tree_value(equation)
        except ZeroDivisionError:
            value = None
        if len(text.split()) <= corpora.MAX_EQUATION_TOKENS:
            assert equation_value(text) == value
            if value is not None:
                assert float(value) == pytest.approx(eval(text))  # our own text, built above


# ------------------------------------------------------------------------------------------------------------ splits


def test_splits_never_share_a_prompt():
    """Train loses what val or test has, val what test has, both their repeats; test stays whole, twins included."""
    one, two, three, four = (Example(f"prompt {n}", "r") for n in range(4))
    other_case = Example(" PROMPT  1 ", "r")
    other_answer = Example("prompt 3", "s")
    told = []
    splits = separate({"train": [one, other_case, three, four, four, other_answer], "val": [two, one, three, three],
                       "test": [one, one]}, told.append)
    assert splits == {"train": [four, other_answer], "val": [two, three], "test": [one, one]}
    assert told == [
        "val: 1 of 4 examples left out, which repeat another one",
        "val: 1 of 4 examples left out, whose prompts are in test",
        "train: 1 of 6 examples left out, which repeat another one",
        "train: 3 of 6 examples left out, whose prompts are in val or test",
    ]


def test_a_hash_split_depends_on_the_prompt_alone():
    """Every example goes to exactly one split, in shares near those asked, and more data moves none of them."""
    examples = [Example(f"prompt {n}", str(n)) for n in range(2000)]
    splits = hash_split(examples, val=0.1, test=0.2)
    assert sorted(sum(splits.values(), []), key=lambda e: int(e.response)) == examples
    assert abs(len(splits["val"]) - 200) < 70 and abs(len(splits["test"]) - 400) < 90  # five standard deviations
    few = hash_split(examples[::-7], val=0.1, test=0.2)
    assert all(set(few[split]) <= set(splits[split]) for split in SPLITS)
    assert prompt_key(" A  b\n") == "a b"


# ------------------------------------------------------------------------------------------------------------- files


def test_every_row_is_complete():
    """Every file but the user's own has an https address that ends in its name; sizes go with checksums."""
    for name, corpus in CORPORA.items():
        assert corpus.licence and corpus.metric and corpus.note
        for file in corpus.files:
            assert (file.size is None) == (file.sha256 is None)
            assert file.sha256 is None or len(file.sha256) == 64
            assert not file.path.startswith("/") and ".." not in file.path
            if name != "jsonl":
                assert file.url.startswith("https://") and file.url.endswith("/" + file.path.rpartition("/")[2])
    with pytest.raises(ValueError) as error:
        load_corpus("nonsense")
    one_line(error, "nonsense", *CORPORA)


@pytest.mark.parametrize("download", [True, False])
def test_a_missing_file_offline_is_one_line(tmp_path, download):
    """The line names the file, its address and the flag, whether the network is down or not to be asked."""
    with pytest.raises(OSError) as error:
        load_corpus("scan", tmp_path, download=download)
    file = CORPORA["scan"].files[0]
    one_line(error, file.path, file.url, "--data-dir", "no network" if download else "not found")
    assert files_under(tmp_path) == []


def test_a_data_dir_that_is_no_folder_is_refused(tmp_path):
    with pytest.raises(OSError) as error:
        load_corpus("scan", tmp_path / "typo")
    one_line(error, "--data-dir", "typo")


def test_a_changed_file_is_refused_with_both_checksums(write):
    """One flipped letter: the line names the file, what was expected, what was found and what to do."""
    folder = write("scan", scan_files())
    path = folder / "scan/tasks_test_simple.txt"
    path.write_bytes(path.read_bytes().replace(b"turn", b"torn"))
    with pytest.raises(ValueError) as error:
        load_corpus("scan", folder)
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    one_line(error, "scan/tasks_test_simple.txt", CORPORA["scan"].files[1].sha256, found, "delete")


def test_the_inputs_are_names_and_checksums(write):
    """No folder enters the records, and the checksums are those of the bytes read."""
    files = scan_files()
    folder = write("scan", files)
    checksums = {path: hashlib.sha256(text.encode()).hexdigest() for path, text in files.items()}
    assert corpus_inputs("scan", folder) == checksums


def test_the_cache_is_read_after_the_data_dir(write, tmp_path):
    """A file missing in data_dir is found in cache_dir without asking the network."""
    folder = write("scan", scan_files())
    (tmp_path / "empty").mkdir()
    assert load_corpus("scan", tmp_path / "empty", cache_dir=folder) == load_corpus("scan", folder)


def test_a_download_lands_in_the_cache_once(write, serve, tmp_path, monkeypatch):
    """Good bytes arrive under the final name alone; the second load works with the server's address gone."""
    folder = write("jsonl", {})
    body = jsonl(own_pairs(200)).encode("utf-8")
    file = File("set/train.jsonl", len(body), serve(body), hashlib.sha256(body).hexdigest())
    path = download_file(file, tmp_path / "cache")
    assert path.read_bytes() == body and files_under(tmp_path / "cache") == ["train.jsonl"]

    def parse(texts, say):
        return corpora.own_data.parse_own({"train.jsonl": texts["set/train.jsonl"]}, say)

    row = CORPORA["jsonl"]._replace(files=(file._replace(url="https://gone.invalid/train.jsonl"),), parse=parse)
    monkeypatch.setitem(CORPORA, "jsonl", row)
    assert sum(map(len, load_corpus("jsonl", folder, cache_dir=tmp_path / "cache").values())) == 200


def test_load_corpus_downloads_what_is_missing(serve, tmp_path, monkeypatch):
    """Without data_dir the files come from their addresses and stay in the cache, as inputs too."""
    files = []
    for file in CORPORA["scan"].files:
        body = scan_files()[file.path].encode("utf-8")
        files.append(file._replace(size=len(body), sha256=hashlib.sha256(body).hexdigest(), url=serve(body)))
    monkeypatch.setitem(CORPORA, "scan", CORPORA["scan"]._replace(files=tuple(files)))
    assert len(load_corpus("scan", cache_dir=tmp_path / "cache")["test"]) == 2
    assert len(corpus_inputs("scan", cache_dir=tmp_path / "cache")) == 2


BODY = b"one line\n" * 20_000  # several chunks


@pytest.mark.parametrize("answer, size, known, kind, word", [
    ((BODY[:-9], len(BODY)), None, False, OSError, "cut off"),  # the connection ends before the announced length
    ((BODY[:-9], len(BODY)), len(BODY), True, OSError, "cut off"),
    ((BODY[:-9], None), len(BODY), True, ValueError, "sha256"),  # a truncated file that claims to be whole
    ((BODY + b"more", None), len(BODY), True, ValueError, "more than"),
    ((BODY[:-9] + b"another\n", None), None, True, ValueError, "sha256"),
    ((b"\n <!DOCTYPE html><title>Log in</title>", None), None, False, ValueError, "HTML"),
    ((b"", None), None, False, ValueError, "empty"),
])
def test_a_bad_download_leaves_nothing_behind(serve, tmp_path, answer, size, known, kind, word):
    """Cut off, too long, changed, a portal's page, empty: one line, and neither file nor part nor record stays."""
    file = File("set/x.txt", size, serve(*answer), hashlib.sha256(BODY).hexdigest() if known else None)
    with pytest.raises(kind) as error:
        download_file(file, tmp_path)
    one_line(error, "set/x.txt", file.url, word, "--data-dir")
    assert files_under(tmp_path) == []


def test_a_download_without_end_stops_at_the_limit(serve, tmp_path, monkeypatch):
    monkeypatch.setattr(corpora, "MAX_BYTES", 100_000)
    with pytest.raises(ValueError) as error:
        download_file(File("x.txt", None, serve(BODY)), tmp_path)
    one_line(error, "x.txt", "100000")
    assert files_under(tmp_path) == []


def test_a_download_appears_under_its_name_in_one_step(serve, tmp_path, monkeypatch):
    """The complete file is renamed from beside its place, where the rename is atomic; until then the name is free."""
    renames, replace = [], corpora.os.replace

    def spy(source, target):
        assert source.startswith(f"{target}.") and open(source, "rb").read() == BODY and not target.exists()
        renames.append(target)
        replace(source, target)

    monkeypatch.setattr(corpora.os, "replace", spy)
    path = download_file(File("x.txt", None, serve(BODY)), tmp_path)
    assert renames == [path] and path.read_bytes() == BODY


def test_an_interrupted_download_keeps_the_old_file(tmp_path):
    """Ctrl-C in the middle: the complete file of before is still there, the part is not."""
    (tmp_path / "x.txt").write_bytes(b"old")

    class Interrupted:
        headers = {}
        chunks = iter([b"new"])

        def __enter__(self):
            return self

        def __exit__(self, *error):
            return None

        def read(self, size):
            for chunk in self.chunks:
                return chunk
            raise KeyboardInterrupt

    file = File("x.txt", None, "https://x.invalid/x.txt")
    with pytest.raises(KeyboardInterrupt):
        download_file(file, tmp_path, opener=lambda url, timeout: Interrupted())
    assert files_under(tmp_path) == ["x.txt"] and (tmp_path / "x.txt").read_bytes() == b"old"


def test_an_unknown_checksum_is_recorded_and_checked_from_then_on(serve, tmp_path):
    """The first download writes <file>.sha256; a damaged cache, and later another answer, are refused by it."""
    file = File("x.jsonl", None, serve(BODY))
    path = download_file(file, tmp_path)
    assert files_under(tmp_path) == ["x.jsonl", "x.jsonl.sha256"]
    assert corpora.read_verified(file, path) == BODY
    path.write_bytes(BODY[:-1])
    with pytest.raises(ValueError) as error:
        corpora.read_verified(file, path)
    one_line(error, "x.jsonl", hashlib.sha256(BODY).hexdigest(), "delete")
    with pytest.raises(ValueError) as error:
        download_file(file._replace(url=serve(BODY + b"new")), tmp_path)
    one_line(error, "x.jsonl", "changed")


@pytest.mark.parametrize("content, words", [
    (b'{"prompt": "a", "response": "b"}\n{"prompt": "\xff", "response": "b"}\n', ["line 2", "UTF-8"]),
    (b"", ["empty"]),
    (b" \n\n", ["empty"]),
    (b"\xef\xbb\xbf", ["empty"]),
    (b'{"prompt": "a", "response": "b"}\n\n{"prompt": "a"\n', ["line 3", "broken JSON"]),
    (b'["a", "b"]\n', ["item 1", "object", "str"]),
    (b'{"prompt": "a"}\n', ["line 1", "'response'", "found the keys 'prompt'"]),
    (b'{"prompt": 7, "response": "b"}\n', ["line 1", "prompt", "7"]),
    (b'{"prompt": "a", "response": "  "}\n', ["line 1", "response"]),
    (b'{"prompt": "a", "response": "\\ud800"}\n', ["line 1", "surrogate"]),
    (b"[" * 200_000 + b"\n", ["line 1", "JSON"]),
    (b"9" * 10_000 + b"\n", ["line 1", "JSON"]),
])
def test_a_broken_file_names_file_and_line(write, content, words):
    """Whatever is wrong with a user's own file is one line with the place."""
    with pytest.raises(ValueError) as error:
        load_corpus("jsonl", write("jsonl", {"train.jsonl": content}))
    one_line(error, "train.jsonl", *words)


@pytest.mark.parametrize("text, words", [
    ('{"instruction": 1}', ["list", "dict"]), ('[{"instruction": "a",\n "input": "",}]', ["line 2", "broken JSON"]),
    ('[{"instruction": "a", "input": "", "output": "b"}, {"instruction": "a", "output": "b"}]', ["item 2", "input"]),
    ("[[]]", ["item 1", "object"]),
])
def test_a_broken_json_list_names_line_or_item(write, text, words):
    with pytest.raises(ValueError) as error:
        load_corpus("instructions", write("instructions", {"instructions/instruction-data.json": text}))
    one_line(error, "instruction-data.json", *words)


def test_a_malformed_scan_line_is_named(write):
    files = scan_files() | {"scan/tasks_test_simple.txt": "IN: a OUT: I_WALK\nIN: b I_RUN\n"}
    with pytest.raises(ValueError) as error:
        load_corpus("scan", write("scan", files))
    one_line(error, "scan/tasks_test_simple.txt, line 2", "IN: b I_RUN")


@pytest.mark.parametrize("content", [b"no gzip", gzip.compress(BODY)[:-20], gzip.compress(BODY)[:-6] + b"\0" * 6])
def test_a_broken_gz_is_one_line(write, content):
    with pytest.raises(ValueError) as error:
        load_corpus("multi30k", write("multi30k", multi30k_files() | {"multi30k/val.de.gz": content}))
    one_line(error, "multi30k/val.de.gz", "gzip")


def test_a_gz_that_unpacks_beyond_the_limit_is_refused(monkeypatch):
    """Half a megabyte of zeros fits into a file of 600 bytes: the limit counts what comes out."""
    monkeypatch.setattr(corpora, "MAX_BYTES", 100_000)
    assert corpora.unpack("x.gz", gzip.compress(bytes(100_000))) == bytes(100_000)
    with pytest.raises(ValueError) as error:
        corpora.unpack("x.gz", gzip.compress(bytes(100_001)))
    one_line(error, "x.gz", "100000")


# ------------------------------------------------------------------------------------------------------------ scores

RESPONSES = {"multi30k": "A dog runs in the park .", "scan": "I_WALK I_TURN_RIGHT", "mawps": "( 76 - 25 ) * 2",
             "gsm8k": "7 - 4 = 3\n#### 3", "dialogsum": "They meet.", "instructions": "It is 7."}


@pytest.mark.parametrize("name", [name for name, corpus in CORPORA.items() if corpus.score])
def test_the_response_scores_one_and_garbage_zero(name):
    """Score, corpus score and details are 1 for the response itself; the score of garbage is 0; all lie in 0..1."""
    corpus, example = CORPORA[name], Example("prompt", RESPONSES[name])
    perfect = [corpus.score(example, example.response), corpus.corpus_score([example], [example.response])]
    perfect += corpus.details([example], [example.response]).values()
    assert perfect == pytest.approx([1.0] * len(perfect)) and len(perfect) > 2
    for garbage in ("", "§", "\n"):
        assert corpus.score(example, garbage) == corpus.corpus_score([example], [garbage]) == 0.0
    half = corpus.corpus_score([example, example], [example.response, "§"])
    assert 0.0 <= half < 1.0


def test_the_equation_score_asks_for_the_value():
    """Another equation of the same value counts, another value does not; the details tell form from validity."""
    corpus, example = CORPORA["mawps"], Example("q", "( 76 - 25 ) * 2")
    completions = ["2 * ( 76 - 25 )", "102", "( 76 - 25 ) * 3", "76 -", "( 76 - 25 ) * 2\n"]
    assert [corpus.score(example, completion) for completion in completions] == [1.0, 1.0, 0.0, 0.0, 1.0]
    assert corpus.corpus_score([example] * 5, completions) == pytest.approx(0.6)
    assert corpus.details([example] * 5, completions) == pytest.approx({"valid_equation": 0.8, "same_equation": 0.2})


@pytest.mark.parametrize("completion, right", [
    ("#### 1080", 1), ("so\n#### 1,080", 1), ("#### $1,080.00", 1), ("####1080 dollars", 1), ("#### 1\n#### 1080", 1),
    ("#### 1081", 0), ("#### -1080", 0), ("1080", 0), ("#### many", 0), ("####", 0), ("#### 10801", 0),
    ("#### 1080.5", 0), ("#### " + "9" * 100_000, 0), ("#### ,", 0),
])
def test_the_final_number_is_compared_as_a_number(completion, right):
    """Commas, a currency sign and zero decimals do not count; the last #### does, and its absence is wrong."""
    assert CORPORA["gsm8k"].score(Example("q", "#### 1,080"), completion) == right


def test_a_forgotten_mark_is_forgiven_in_the_details_only():
    example = Example("q", "#### 1,080")
    assert CORPORA["gsm8k"].details([example] * 2, ["it is 1080 dollars.", "no"]) == {"last_number": 0.5}


def test_actions_are_counted_up_to_the_first_error():
    """Two of four actions stand before the first wrong one; what is right after it does not count."""
    example = Example("c", "I_WALK I_RUN I_JUMP I_LOOK")
    completions = ["I_WALK I_RUN I_LOOK I_LOOK", "I_WALK I_RUN I_JUMP I_LOOK I_LOOK"]
    assert CORPORA["scan"].details([example] * 2, completions) == {"right_before_first_error": 0.75}
    assert CORPORA["scan"].corpus_score([example] * 2, completions) == 0.0


def test_summaries_are_scored_by_the_best_reference():
    """Any of the three references gives full marks."""
    example = Example("d", "Says hi.", ("Says hi.", "Greets him warmly.", "A greeting."))
    assert CORPORA["dialogsum"].score(example, "Greets him warmly.") == 1.0
    assert CORPORA["dialogsum"].score(example._replace(references=()), "Greets him warmly.") == 0.0
