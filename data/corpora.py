"""Real data sets of the papers' tasks: where their files lie, how they become examples, how answers are scored.

    CORPORA[name] -> fetch each file (data_dir, else cache_dir, else download) -> verify -> decode -> parse -> separate

None of the data is part of this project. Every row of CORPORA names its files with size, sha256 and address, its
licence, and the functions that parse and score it. A new set is one row, one parser and, perhaps, one score.
Whatever is wrong with a file ends in one line (ValueError or OSError) that names it and says what to do.
"""

import codecs
import gzip
import hashlib
import http.client
import io
import os
import re
import tempfile
import unicodedata
import urllib.request
import zlib
from collections.abc import Callable
from fractions import Fraction
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm

from data import own_data
from data.formats import Example, csv_rows, json_items, json_lines, text_field, text_lines
from data.metrics import corpus_bleu, corpus_chrf, exact_match, rouge_l

CACHE_DIR = Path(__file__).parent / "cache" / "downloads"  # git-ignored
MAX_BYTES = 256 * 2**20  # of one file, downloaded or decompressed: a wrong address must not fill the disk
LARGE_BYTES = 20 * 10**6  # own data from here on takes so long that an estimate is due
CHUNK_BYTES = 2**16
OTHER_FORMATS = {b"\x1f\x8b": " but gzip: its name must end in .gz", b"PK": " but a zip archive: unpack it",
                 b"\xff\xfe": " but UTF-16", b"\xfe\xff": " but UTF-16"}  # fmt: skip
TIMEOUT = 20.0  # seconds without a byte before a download gives up; a silent firewall would hang for ever


class File(NamedTuple):
    """One file of a set. `path` is relative to the data folder; without `url` it is the user's own."""

    path: str
    size: int | None  # bytes; None: unknown
    url: str
    sha256: str | None = None  # None: recorded beside the file at its first download, checked from then on
    if_missing: str | None = None  # what happens without this file; None: it is needed


class Corpus(NamedTuple):
    """One data set: its files, how they become splits and how completions are judged. Every score lies in 0..1."""

    files: tuple[File, ...]
    licence: str
    metric: str  # human name of corpus_score; without one the task takes a row of data.metrics.METRICS (--metric)
    parse: Callable[..., dict[str, list[Example]]]  # ({path: text}, say) -> {"train", "val", "test"}
    score: Callable[[Example, str], float] | None
    corpus_score: Callable[[list[Example], list[str]], float] | None
    details: Callable[[list[Example], list[str]], dict[str, float]] | None
    note: str


# ---------------------------------------------------------------------------------------------------------------------
# Files: find, download, verify, read


def load_corpus(
    name: str, data_dir: str | Path | None = None, cache_dir: str | Path | None = None, download: bool = True,
    say: Callable[[str], None] = lambda line: None, **keys,
) -> dict[str, list[Example]]:  # fmt: skip
    """The splits "train", "val" and "test" of the set `name`; no prompt of val or test occurs in train.

    A file is taken from `data_dir`, else from `cache_dir`, else downloaded into `cache_dir` if `download` allows it.
    `say` hears a line on whatever is left out; `keys` are prompt_key and response_key of own data.
    Raises OSError for a file that cannot be had and ValueError for one that is not what it should be.
    """
    corpus = named_corpus(name)
    texts = {}
    for file in corpus.files:
        path = find_file(file, data_dir, cache_dir)
        if path is None:
            try:
                if not download or not file.url:
                    raise FileNotFoundError(missing_line(file, data_dir))
                path = download_file(file, Path(cache_dir or CACHE_DIR))
            except OSError:
                if file.if_missing is None:
                    raise
                continue  # corpus_note tells the caller what the parser does without it
        known_as = name_of(file, path)
        data = unpack(known_as, read_verified(file, path))
        if not file.url and len(data) > LARGE_BYTES:
            megabytes = len(data) / 1e6
            say(f"{known_as} has {megabytes:,.0f} MB: every process takes a minute and 2 GB of memory for 100 MB or so")
        texts[known_as] = decode(known_as, data)
    if data_dir is not None and not all(file.url for file in corpus.files):
        for line in own_data.unread_files(Path(data_dir), list(texts)):
            say(line)
    splits = corpus.parse(texts, say, **keys)
    for split in ("train", "val", "test"):
        if not splits[split]:
            raise ValueError(f"{name}: nothing is left for {split}; too few distinct prompts in {', '.join(texts)}")
    return splits


def corpus_inputs(
    name: str, data_dir: str | Path | None = None, cache_dir: str | Path | None = None
) -> dict[str, str]:
    """{file: sha256} of the files that load_corpus reads now, for the records; the keys hold no absolute folder."""
    found = {file: find_file(file, data_dir, cache_dir) for file in named_corpus(name).files}
    return {name_of(file, path): sha256_of(path.read_bytes()) for file, path in found.items() if path}


def name_of(file: File, path: Path) -> str:
    """What a file is called in messages and records: without folders of the user's, and with the ending it has."""
    return file.path if file.url else path.name


def corpus_note(name: str, data_dir: str | Path | None = None, cache_dir: str | Path | None = None) -> str:
    """What a reader of the scores should know: the set's own note and what follows from files that are missing now."""
    corpus = named_corpus(name)
    missing = [file for file in corpus.files if file.if_missing and not find_file(file, data_dir, cache_dir)]
    return " ".join([corpus.note] + [f"{file.path} is missing: {file.if_missing}." for file in missing])


def named_corpus(name: str) -> Corpus:
    """The row of CORPORA; ValueError lists the names there are."""
    if name not in CORPORA:
        raise ValueError(f"unknown data set {name!r}; there are {', '.join(CORPORA)}")
    return CORPORA[name]


def find_file(file: File, data_dir: str | Path | None, cache_dir: str | Path | None) -> Path | None:
    """Where `file` lies, data_dir first; None if it is in neither folder."""
    if data_dir is not None and not Path(data_dir).is_dir():
        wrong = "is a file" if Path(data_dir).exists() else "no such folder"
        raise NotADirectoryError(f"--data-dir {data_dir}: {wrong}; name the folder that holds {file.path}")
    if not file.url:  # the cache holds downloads only: a user's own train.jsonl is never looked up there
        return own_data.own_file(Path(data_dir), Path(file.path).stem) if data_dir is not None else None
    paths = [Path(folder) / file.path for folder in (data_dir, cache_dir or CACHE_DIR) if folder is not None]
    return next((path for path in paths if path.is_file()), None)


def missing_line(file: File, data_dir: str | Path | None, reason: str = "not found") -> str:
    """The one line for a file that cannot be had."""
    if not file.url:
        return own_data.missing_file(file.path, None if data_dir is None else Path(data_dir))
    return f"{file.path}: {reason}; get it from {file.url} and pass --data-dir DIR with the file at DIR/{file.path}"


def download_file(file: File, folder: Path, opener: Callable | None = None) -> Path:
    """Download `file` into `folder` and return its path; only a complete and checked file ever gets that name.

    `opener(url, timeout=...)` returns a response to read from, urllib.request.urlopen unless given.
    Raises OSError naming file, address and flag if it cannot be had, ValueError if something else arrived.
    """
    path = folder / file.path
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, part = tempfile.mkstemp(dir=path.parent, prefix=path.name + ".", suffix=".part")  # one per process
    try:
        with os.fdopen(handle, "wb") as out:
            try:
                copy_response(file, opener or urllib.request.urlopen, out)
            except (OSError, http.client.HTTPException) as error:
                reason = " ".join(str(error).split()) or type(error).__name__
                raise OSError(missing_line(file, None, f"download failed ({reason})")) from error
        data = Path(part).read_bytes()
        if data[:512].lstrip().startswith(b"<"):  # no file of ours does: a proxy's or portal's page
            raise ValueError(f"{file.path}: {file.url} sent an HTML page; get the file itself and pass --data-dir DIR")
        expected = file.sha256 or recorded_sha256(path)
        check_bytes(file, data, expected, f"{file.url} has changed or was cut off: run again, or pass --data-dir DIR")
        if expected is None:  # before the file itself: a file in the cache never stands without its record
            Path(f"{path}.sha256").write_text(sha256_of(data) + "\n", encoding="ascii", newline="\n")
        os.replace(part, path)
    finally:
        Path(part).unlink(missing_ok=True)
    return path


def copy_response(file: File, opener: Callable, out: io.BufferedIOBase) -> None:
    """Copy what `opener` answers for the file's address to `out`; OSError if it is cut off, ValueError if too long."""
    limit = file.size or MAX_BYTES
    with opener(file.url, timeout=TIMEOUT) as response:
        announced = response.headers.get("Content-Length")
        received = 0
        with tqdm(total=file.size, desc=file.path, unit="B", unit_scale=True, leave=False, disable=None) as bar:
            while chunk := response.read(CHUNK_BYTES):
                received += len(chunk)
                if received > limit:
                    raise ValueError(missing_line(file, None, f"the server sends more than {limit} bytes"))
                out.write(chunk)
                bar.update(len(chunk))
    if announced is not None and received < int(announced):  # read(n) ends silently when the connection does
        raise OSError(f"cut off after {received} of {announced} bytes")


def read_verified(file: File, path: Path) -> bytes:
    """The bytes of `file` at `path`, once size and checksum are what is known of them."""
    if path.stat().st_size > MAX_BYTES:
        advice = "" if file.url else "; keep its first 100,000 lines or so: small models learn nothing from more"
        raise ValueError(f"{path}: {path.stat().st_size} bytes, more than the limit of {MAX_BYTES}{advice}")
    data = path.read_bytes()
    advice = f"delete {path} and get it again from {file.url}" if file.url else f"look into {path}"
    check_bytes(file, data, file.sha256 or recorded_sha256(path), advice)
    return data


def check_bytes(file: File, data: bytes, expected: str | None, advice: str) -> None:
    """ValueError unless `data` has the size and sha256 expected of `file`, as far as they are known."""
    if not data.strip():
        raise ValueError(f"{file.path}: the file is empty; {advice}")
    found = sha256_of(data)
    if expected is not None and found != expected or file.size not in (None, len(data)):
        wanted = f"{file.size or '?'} bytes, sha256 {expected}"
        raise ValueError(f"{file.path}: expected {wanted}, found {len(data)} bytes, sha256 {found}; {advice}")


def recorded_sha256(path: Path) -> str | None:
    """The checksum recorded in `<path>.sha256` at the first download; None without a record."""
    record = Path(f"{path}.sha256")
    return record.read_text(encoding="ascii", errors="replace")[:64] if record.is_file() else None


def sha256_of(data: bytes) -> str:
    """sha256 as 64 hex digits."""
    return hashlib.sha256(data).hexdigest()


def unpack(path: str, data: bytes) -> bytes:
    """Decompress a .gz file, up to MAX_BYTES; anything else passes unchanged."""
    if not path.endswith(".gz"):
        return data
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(data)) as stream:
            unpacked = stream.read(MAX_BYTES + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{path}: broken gzip file ({error}); get it again") from error
    if len(unpacked) > MAX_BYTES:
        raise ValueError(f"{path}: unpacks to more than {MAX_BYTES} bytes")
    return unpacked


def decode(path: str, data: bytes) -> str:
    """UTF-8 bytes to text without a byte order mark; ValueError names the line of the first broken byte."""
    data = data.removeprefix(codecs.BOM_UTF8)
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        line, looks_like = data.count(b"\n", 0, error.start) + 1, OTHER_FORMATS.get(data[:2], "")
        raise ValueError(f"{path}, line {line}: not UTF-8 ({error.reason}){looks_like}; save it as UTF-8") from error
    if not text.strip():
        raise ValueError(f"{path}: the file is empty")
    return text


# ---------------------------------------------------------------------------------------------------------------------
# Splits


def prompt_key(prompt: str) -> str:
    """What makes two prompts of a published set the same: Unicode's form, letter case and spacing do not count.

    Looser than own_data.identity, since published splits repeat questions in another spelling.
    """
    return " ".join(unicodedata.normalize("NFC", prompt).casefold().split())


def hash_split(examples: list[Example], key: Callable[[str], str] = prompt_key, **shares: float) -> dict:
    """Split by a hash of the prompt's key: {"train": the rest, **{split: about its share of the keys}}.

    An example's split depends on nothing but its own prompt, so adding data moves no example.
    """
    splits = {"train": [], **{split: [] for split in shares}}
    for example in examples:
        position, home = own_data.position(key(example.prompt)), "train"
        for split, share in shares.items():
            if 0 <= position < share:
                home = split
            position -= share
        splits[home].append(example)
    return splits


def separate(
    splits: dict[str, list[Example]], say: Callable[[str], None], key: Callable[[str], str] = prompt_key
) -> dict[str, list[Example]]:
    """Drop from train what is in val or test, from val what is in test, and repeated examples from both.

    `say` hears how many. Test stays as published, so that its scores can be compared.
    """
    separated, taken = {}, set()
    for split in ("test", "val", "train"):
        examples = splits[split]
        if split != "test":
            once, held_out = list(dict.fromkeys(examples)), "test" if split == "val" else "val or test"
            examples = [example for example in once if key(example.prompt) not in taken]
            for lost, why in (
                (len(splits[split]) - len(once), "which repeat another one"),
                (len(once) - len(examples), f"whose prompts are in {held_out}"),
            ):
                if lost:
                    say(f"{split}: {lost:,} of {len(splits[split]):,} examples left out, {why}")
        taken |= {key(example.prompt) for example in examples}
        separated[split] = examples
    return {split: separated[split] for split in ("train", "val", "test")}


# ---------------------------------------------------------------------------------------------------------------------
# Parsers: {path: text} -> splits


def parse_multi30k(texts: dict[str, str], say: Callable[[str], None]) -> dict[str, list[Example]]:
    """Parallel files, line n of .de is line n of .en."""
    splits = {}
    for split, stem in (("train", "train"), ("val", "val"), ("test", "test_2016_flickr")):
        path = f"multi30k/{stem}.de.gz"
        german, english = text_lines(texts[path]), text_lines(texts[f"multi30k/{stem}.en.gz"])
        if len(german) != len(english):
            raise ValueError(f"{path}: {len(german)} lines, but {len(english)} in its English half; get both again")
        pairs = [(source.strip(), target.strip()) for source, target in zip(german, english)]
        splits[split] = [Example(f"{source}\nEnglish:\n", target) for source, target in pairs if source and target]
        if empty := len(pairs) - len(splits[split]):
            say(f"{path}: {empty:,} lines left out, which are empty in one of the two languages")
    return separate(splits, say)


def parse_scan(texts: dict[str, str], say: Callable[[str], None]) -> dict[str, list[Example]]:
    """Lines "IN: command OUT: actions"; val is 5 % of the training commands."""
    halves = {}
    for half in ("train", "test"):
        path, halves[half] = f"scan/tasks_{half}_simple.txt", []
        for number, line in enumerate(text_lines(texts[path]), start=1):
            parts = re.fullmatch(r"IN: (.+) OUT: (.+)", line.strip())
            if parts is None:
                raise ValueError(f"{path}, line {number}: expected 'IN: command OUT: actions', found {line[:60]!r}")
            halves[half].append(Example(f"{parts[1]}\nActions:\n", parts[2]))
    return separate({**hash_split(halves["train"], val=0.05), "test": halves["test"]}, say)


def parse_gsm8k(texts: dict[str, str], say: Callable[[str], None]) -> dict[str, list[Example]]:
    """Worked solutions without their calculator marks <<48/2=24>>; val is 5 % of the training questions."""
    halves = {}
    for half in ("train", "test"):
        halves[half] = []
        for place, record in json_lines(f"gsm8k/{half}.jsonl", texts[f"gsm8k/{half}.jsonl"]):
            question = text_field(place, record, "question")
            answer = re.sub(r"<<[^<>\n]*>>", "", text_field(place, record, "answer"))
            if marked_number(answer) is None:
                raise ValueError(f"{place}: expected an answer that ends with '#### number'")
            halves[half].append(Example(f"{question}\nAnswer:\n", answer))
    return separate({**hash_split(halves["train"], val=0.05), "test": halves["test"]}, say)


def parse_dialogsum(texts: dict[str, str], say: Callable[[str], None]) -> dict[str, list[Example]]:
    """Dialogues with one summary, in test with three; without the train file, 90 % of dev is train and the rest val."""
    halves = {}
    for half in ("train", "dev", "test"):
        path, halves[half] = f"dialogsum/dialogsum.{half}.jsonl", []
        fields = ("summary1", "summary2", "summary3") if half == "test" else ("summary",)
        for place, record in json_lines(path, texts.get(path, "")):
            summaries = tuple(text_field(place, record, field) for field in fields)
            prompt = f"{text_field(place, record, 'dialogue')}\nSummary:\n"
            halves[half].append(Example(prompt, summaries[0], summaries if half == "test" else ()))
    if halves["train"]:
        return separate({"train": halves["train"], "val": halves["dev"], "test": halves["test"]}, say)
    return separate({**hash_split(halves["dev"], val=0.1), "test": halves["test"]}, say)


def parse_instructions(texts: dict[str, str], say: Callable[[str], None]) -> dict[str, list[Example]]:
    """An instruction, on the next line its input if there is one, and the answer; val and test are 10 % each."""
    examples = []
    for place, record in json_items("instructions/instruction-data.json", texts["instructions/instruction-data.json"]):
        given = text_field(place, record, "input", empty_allowed=True)
        prompt = text_field(place, record, "instruction") + (f"\n{given}" if given else "") + "\nResponse:\n"
        examples.append(Example(prompt, text_field(place, record, "output")))
    return separate(hash_split(examples, val=0.1, test=0.1), say)


# ---------------------------------------------------------------------------------------------------------------------
# Math word problems: one text format for both sources, equations as trees

OPERATORS = ("+", "-", "*", "/")
MAX_EQUATION_CHARS, MAX_EQUATION_TOKENS = 500, 60  # about twice the data's longest; bounds numbers and recursion


def parse_mawps(texts: dict[str, str], say: Callable[[str], None]) -> dict[str, list[Example]]:
    """MAWPS and ASDiv-A are train and val (10 % of the questions), SVAMP is test; questions never cross a split.

    The training file has placeholders (number0, with a column of numbers) and prefix equations, SVAMP numbers in the
    text and infix equations. Both become lower-case spaced words, numbers filled in, and infix equations.
    Questions are the same if they differ in numbers and names only: 3,138 rows hold about 2,260 questions.
    """
    rows = list(csv_rows("svamp/train.csv", texts["svamp/train.csv"]))
    names = capitalised_words([text_field(place, row, "Question") for place, row in rows])

    def question_key(prompt: str) -> str:
        return " ".join("0" if is_number(word) else "_" if word in names else word for word in prompt.split())

    examples = []
    for place, row in rows:
        fields = [text_field(place, row, field) for field in ("Question", "Equation")]
        numbers = [f" {number} " for number in text_field(place, row, "Numbers").split()]
        try:
            question, equation = (
                re.sub(r"\bnumber([0-9]+)\b", lambda found: numbers[int(found[1])], text) for text in fields
            )
        except IndexError as error:
            raise ValueError(f"{place}: a placeholder has no number in 'Numbers' {row['Numbers']!r}") from error
        examples.append(word_problem(place, question, parse_prefix(equation)))
    test = []
    for place, item in json_items("svamp/SVAMP.json", texts["svamp/SVAMP.json"]):
        question = f"{text_field(place, item, 'Body')} {text_field(place, item, 'Question')}"
        test.append(word_problem(place, question, parse_infix(text_field(place, item, "Equation"))))
    return separate({**hash_split(examples, question_key, val=0.1), "test": test}, say, question_key)


def word_problem(place: str, question: str, tree: Fraction | tuple | None) -> Example:
    """A question as spaced lower-case words, its equation tree as infix text; ValueError if that has no value."""
    words = re.findall(r"[0-9]*\.?[0-9]+|'s\b|\w+|[^\w\s]", question.lower())
    prompt = " ".join(number_text(Fraction(word)) if is_number(word) else word for word in words)
    equation = "" if tree is None else tree_text(tree)
    if equation_value(equation) is None:
        raise ValueError(f"{place}: the equation is malformed or divides by zero")
    # the outermost parentheses say nothing
    return Example(f"{prompt}\nEquation:\n", equation[2:-2] if equation.startswith("(") else equation)


def capitalised_words(questions: list[str]) -> set[str]:
    """Lower-case forms of the words that somewhere begin with a capital inside a sentence: names, mostly."""
    tokens = [pair for question in questions for pair in pairwise(re.findall(r"\w+|[^\w\s]", question))]
    return {word.lower() for before, word in tokens if word[0].isupper() and before not in (".", "?", "!", '"')}


def is_number(token: str) -> bool:
    """Whether a token is a plain decimal number, perhaps with a sign."""
    return re.fullmatch(r"-?[0-9]*\.?[0-9]+", token) is not None


def number_text(number: Fraction) -> str:
    """At most four decimals and no trailing zeros: 56 for 56.0, 0.1667 for 1/6."""
    whole, decimals = divmod(round(abs(number) * 10**4), 10**4)  # in integers: a float would overflow or drift
    return "-" * (number < 0) + f"{whole}.{decimals:04d}".rstrip("0").rstrip(".")


def equation_value(text: str) -> Fraction | None:
    """The exact value of an infix equation such as "( 56 - 4 ) * 9"; None if it is malformed or has none.

    Exact fractions: 4 / 3 * 3 is 4, without a tolerance. Never eval: a completion is not code.
    """
    tree = parse_infix(text)
    try:
        return None if tree is None else tree_value(tree)
    except ZeroDivisionError:
        return None


def parse_prefix(text: str) -> Fraction | tuple | None:
    """"* - 56 4 9" -> the tree (operator, left, right) over numbers; None if malformed.

    Read from its end, so that both operands of an operator already lie on the stack.
    """
    stack = []
    for token in reversed(text.split()[: MAX_EQUATION_TOKENS + 1]):
        if is_number(token):
            stack.append(Fraction(token))
        elif token in OPERATORS and len(stack) >= 2:
            stack.append((token, stack.pop(), stack.pop()))
        else:
            return None
    return stack[0] if len(stack) == 1 else None


def parse_infix(text: str) -> Fraction | tuple | None:
    """"( 56 - 4 ) * 9" -> the tree (operator, left, right) over numbers; None if malformed or too long.

    Recursive descent; the usual precedence, operators of one rank bind from the left: 8 - 3 - 2 is 3.
    """
    tokens = re.findall(r"[0-9]*\.?[0-9]+|\S", text) if len(text) <= MAX_EQUATION_CHARS else []
    if not 0 < len(tokens) <= MAX_EQUATION_TOKENS:
        return None
    tree, end = parse_sum(tokens + ["end"], 0)
    return tree if end == len(tokens) else None


def parse_sum(tokens: list[str], start: int) -> tuple:
    """(tree, position after it) of products joined by + and -; (None, ...) if malformed, as in the functions below."""
    return parse_chain(tokens, start, ("+", "-"), parse_product)


def parse_product(tokens: list[str], start: int) -> tuple:
    """(tree, position after it) of atoms joined by * and /."""
    return parse_chain(tokens, start, ("*", "/"), parse_atom)


def parse_chain(tokens: list[str], start: int, operators: tuple, parse_operand: Callable) -> tuple:
    """(tree, position after it) of operands joined by `operators`."""
    tree, at = parse_operand(tokens, start)
    while tree is not None and tokens[at] in operators:
        right, after = parse_operand(tokens, at + 1)
        tree, at = None if right is None else (tokens[at], tree, right), after
    return tree, at


def parse_atom(tokens: list[str], start: int) -> tuple:
    """(tree, position after it) of a number, a negated atom or a sum in parentheses."""
    token = tokens[start]
    if is_number(token):
        return Fraction(token), start + 1
    if token == "-":
        tree, at = parse_atom(tokens, start + 1)
        return None if tree is None else ("-", Fraction(0), tree), at
    if token == "(":
        tree, at = parse_sum(tokens, start + 1)
        if tokens[at] == ")":
            return tree, at + 1
    return None, start


def tree_value(tree: Fraction | tuple) -> Fraction:
    """Value of an equation tree; raises ZeroDivisionError."""
    if isinstance(tree, Fraction):
        return tree
    operator, left, right = tree[0], tree_value(tree[1]), tree_value(tree[2])
    if operator == "/":
        return left / right
    return left + right if operator == "+" else left - right if operator == "-" else left * right


def tree_text(tree: Fraction | tuple) -> str:
    """Infix text of an equation tree, every operation in parentheses."""
    if isinstance(tree, Fraction):
        return number_text(tree)
    return f"( {tree_text(tree[1])} {tree[0]} {tree_text(tree[2])} )"


# ---------------------------------------------------------------------------------------------------------------------
# Scores


def accepted(example: Example) -> tuple[str, ...]:
    """Every accepted response."""
    return example.references or (example.response,)


def mean_score(score: Callable, examples: list[Example], completions: list[str]) -> float:
    """Mean over the examples of score(example, completion)."""
    assert len(examples) == len(completions) > 0, f"{len(examples)} examples, {len(completions)} completions"
    return sum(score(example, completion) for example, completion in zip(examples, completions)) / len(examples)


def score_exact(example: Example, completion: str) -> float:
    """1 if the completion is the response."""
    return float(exact_match(completion, example.response))


def score_rouge(example: Example, completion: str) -> float:
    """ROUGE-L, the best over the references."""
    return rouge_l(completion, accepted(example))


def score_chrf(example: Example, completion: str) -> float:
    """chrF of one sentence: BLEU of a single sentence is 0 as soon as no four words match."""
    return corpus_chrf([completion], [accepted(example)])


def bleu(examples: list[Example], completions: list[str]) -> float:
    """Corpus BLEU."""
    return corpus_bleu(completions, [accepted(example) for example in examples])


def chrf(examples: list[Example], completions: list[str]) -> float:
    """Corpus chrF."""
    return corpus_chrf(completions, [accepted(example) for example in examples])


def score_equation(example: Example, completion: str) -> float:
    """1 if the completion is an equation with the value of the reference's, in whatever form."""
    value = equation_value(completion)
    return float(value is not None and value == equation_value(example.response))


def score_valid_equation(example: Example, completion: str) -> float:
    """1 if the completion is an equation that has a value, right or wrong."""
    return float(equation_value(completion) is not None)


def score_action_prefix(example: Example, completion: str) -> float:
    """Share of the reference's actions that stand before the first wrong one."""
    actions, found = example.response.split(), completion.split()
    right = 0
    while right < min(len(actions), len(found)) and actions[right] == found[right]:
        right += 1
    return right / len(actions)


NUMBER = r"-?[0-9][0-9,]{0,29}(?:\.[0-9]{1,30})?"  # bounded: a completion may be digits to the end


def plain_number(text: str) -> Fraction:
    """A number without thousands separators: "1,080.00" equals "1080"."""
    return Fraction(text.replace(",", ""))


def marked_number(text: str) -> Fraction | None:
    """The number behind the last ####, currency sign or not; None without one."""
    found = re.match(rf"\s*\$?\s*({NUMBER})", text.rpartition("####")[2]) if "####" in text else None
    return plain_number(found[1]) if found else None


def score_final_number(example: Example, completion: str) -> float:
    """1 if the number behind #### equals the reference's."""
    value = marked_number(completion)
    return float(value is not None and value == marked_number(example.response))


def score_last_number(example: Example, completion: str) -> float:
    """1 if the last number anywhere equals the reference's: forgives a forgotten ####."""
    numbers = re.findall(NUMBER, completion)
    return float(bool(numbers) and plain_number(numbers[-1]) == marked_number(example.response))


def detail_scores(scores: dict[str, Callable], examples: list[Example], completions: list[str]) -> dict[str, float]:
    """Further figures of a set, each the mean of one score."""
    return {name: mean_score(score, examples, completions) for name, score in scores.items()}


def text_details(examples: list[Example], completions: list[str]) -> dict[str, float]:
    """Further figures of a set with free text."""
    return {"chrf": chrf(examples, completions), "exact_match": mean_score(score_exact, examples, completions)}


# ---------------------------------------------------------------------------------------------------------------------
# The table

MULTI30K_URL = "https://raw.githubusercontent.com/multi30k/dataset/master/data/task1/raw"
SCAN_URL = "https://raw.githubusercontent.com/brendenlake/SCAN/master/simple_split"
SVAMP_URL = "https://raw.githubusercontent.com/arkilpatel/SVAMP/main"
GSM8K_URL = "https://raw.githubusercontent.com/openai/grade-school-math/master/grade_school_math/data"
DIALOGSUM_URL = "https://raw.githubusercontent.com/cylnlp/dialogsum/main/DialogSum_Data"
INSTRUCTIONS_URL = "https://raw.githubusercontent.com/rasbt/LLMs-from-scratch/main/ch07/01_main-chapter-code"

CORPORA = {
    "multi30k": Corpus(
        files=(
            File("multi30k/train.de.gz", 637_044, f"{MULTI30K_URL}/train.de.gz",
                 "726e39b2fa9eb9ffb6dc763fb35a179f80fae06ffc5d28b6ace5faa883de28a6"),
            File("multi30k/train.en.gz", 568_929, f"{MULTI30K_URL}/train.en.gz",
                 "d79cfa999dd4c51d2cb42499b6796d5a882c3a8a961923c25a898c90f8bbd56f"),
            File("multi30k/val.de.gz", 24_681, f"{MULTI30K_URL}/val.de.gz",
                 "f0cba2f995189cf5770f29a8a9a537a3ad3f51657ad873405082ff6863a5e75a"),
            File("multi30k/val.en.gz", 21_650, f"{MULTI30K_URL}/val.en.gz",
                 "14f7d25ddd868909a9213e361768460edcacdd6ab9d1e77b92560dc10c10dc28"),
            File("multi30k/test_2016_flickr.de.gz", 22_890, f"{MULTI30K_URL}/test_2016_flickr.de.gz",
                 "9204244e408ccb38d2a55cfcd344df15005fc42a07a6e55ca6c52b6ababb8cc8"),
            File("multi30k/test_2016_flickr.en.gz", 21_077, f"{MULTI30K_URL}/test_2016_flickr.en.gz",
                 "611d361c6334bc7246101d48097c13cf5c4413c5befc793cc629934359d532d9"),
        ),
        licence="captions: none stated; images: non-commercial research",
        metric="corpus BLEU, German to English",
        parse=parse_multi30k,
        score=score_chrf,
        corpus_score=bleu,
        details=text_details,
        note="Raw captions, test_2016_flickr. One sentence is scored by chrF, a corpus by BLEU.",
    ),
    "scan": Corpus(
        files=(
            File("scan/tasks_train_simple.txt", 3_267_938, f"{SCAN_URL}/tasks_train_simple.txt",
                 "941bb8a088c5f53ceff12fde902dc008933cf0c4203cc672c47b5f79d73262dd"),
            File("scan/tasks_test_simple.txt", 812_450, f"{SCAN_URL}/tasks_test_simple.txt",
                 "1fe1c8f5a19d0dc40e41bab94278f45f66f3dc415a978bd29855a23440610fc6"),
        ),
        licence="BSD",
        metric="exact match of the actions",
        parse=parse_scan,
        score=score_exact,
        corpus_score=partial(mean_score, score_exact),
        details=partial(detail_scores, {"right_before_first_error": score_action_prefix}),
        note="Simple split; val is 5 % of its training commands.",
    ),
    "mawps": Corpus(
        files=(
            File("svamp/train.csv", 1_242_909, f"{SVAMP_URL}/data/mawps-asdiv-a_svamp/train.csv",
                 "c761cdc6390a67a285c6c346a2931f61bc8f47430eceaeb123cc3d0263efa821"),
            File("svamp/SVAMP.json", 339_970, f"{SVAMP_URL}/SVAMP.json",
                 "5be77703a6d891ae476d7c082787ad361392aa02453b132516cdd5f4e7934e3e"),
        ),
        licence="MIT",
        metric="exact match of the equation's value, on SVAMP",
        parse=parse_mawps,
        score=score_equation,
        corpus_score=partial(mean_score, score_equation),
        details=partial(detail_scores, {"valid_equation": score_valid_equation, "same_equation": score_exact}),
        note="MAWPS and ASDiv-A train and validate (split by question), SVAMP tests: another distribution.",
    ),
    "gsm8k": Corpus(
        files=(
            File("gsm8k/train.jsonl", 4_166_206, f"{GSM8K_URL}/train.jsonl",
                 "17f347dc51477c50d4efb83959dbb7c56297aba886e5544ee2aaed3024813465"),
            File("gsm8k/test.jsonl", 749_738, f"{GSM8K_URL}/test.jsonl",
                 "3730d312f6e3440559ace48831e51066acaca737f6eabec99bccb9e4b3c39d14"),
        ),
        licence="MIT",
        metric="exact match of the final number",
        parse=parse_gsm8k,
        score=score_final_number,
        corpus_score=partial(mean_score, score_final_number),
        details=partial(detail_scores, {"last_number": score_last_number}),
        note="Calculator marks <<...>> are dropped; the final number stands behind ####; val is 5 % of train.",
    ),
    "dialogsum": Corpus(
        files=(
            File("dialogsum/dialogsum.train.jsonl", None, f"{DIALOGSUM_URL}/dialogsum.train.jsonl",
                 if_missing="90 % of the dev set train, the rest is val"),
            File("dialogsum/dialogsum.dev.jsonl", 471_830, f"{DIALOGSUM_URL}/dialogsum.dev.jsonl",
                 "436721e0a3571eef7072964f80e042fb151d8c6178db1a688ce8f803bbf0a13f"),
            File("dialogsum/dialogsum.test.jsonl", 639_707, f"{DIALOGSUM_URL}/dialogsum.test.jsonl",
                 "6de36eca7e7b9b10975fd5ea3f47391df172d8b3c15d03d84d763cbaab015fda"),
        ),
        licence="CC BY-NC-SA 4.0",
        metric="ROUGE-L, best of three references",
        parse=parse_dialogsum,
        score=score_rouge,
        corpus_score=partial(mean_score, score_rouge),
        details=text_details,
        note="Val has one reference summary, test three: their scores do not compare.",
    ),
    "instructions": Corpus(
        files=(
            File("instructions/instruction-data.json", 203_524, f"{INSTRUCTIONS_URL}/instruction-data.json",
                 "7e09a9af353722ca15c18bc580f093f9c39d3178335a75177319cb1e1d163944"),
        ),
        licence="Apache-2.0",
        metric="ROUGE-L",
        parse=parse_instructions,
        score=score_rouge,
        corpus_score=partial(mean_score, score_rouge),
        details=text_details,
        note="Val and test are 10 % each, by a hash of the prompt.",
    ),
    "jsonl": Corpus(
        files=(
            File("train.jsonl", None, ""),
            File("val.jsonl", None, "", if_missing="10 % of the training prompts, by hash, are val"),
            File("test.jsonl", None, "", if_missing="10 % of the training prompts, by hash, are test"),
        ),
        licence="your own",
        metric="--metric, else chosen from the data",
        parse=own_data.parse_own,
        score=None,
        corpus_score=None,
        details=None,
        note="Texts are learned as written; a prompt should end with its own cue.",
    ),
}
