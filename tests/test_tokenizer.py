"""Tokenizer: exact round trips, learned merges against a slow rewrite, tiktoken against the merge rules, bad files."""
import json
import os
import random
import time
from collections import Counter

import pytest
import regex
import torch

from data.tokenizer import (
    END_OF_TEXT,
    PATTERN,
    Tokenizer,
    _learn_tokens,
    count_pieces,
    train_tokenizer,
)

TEXTS = [
    "Take e h d d: double each, then reverse.\n3+4=7;7+17=24\n",
    "Die Mädchen grüßen über die Straße, die Mädchen grüßen.",
    "she sells sea shells; the shells she sells are sea shells, I'm sure.   banana bananas aaaa aaaaa",
    "चाय पीते हैं, चाय पीते हैं — 猫坐在垫子上。猫坐在垫子上。 🙂🙂 e\u0301te\u0301",
] * 2
AWKWARD = [
    "", " ", "   \n\t x  ", "\x00\x1c\x85\u2028", "\ufeffab", "e\u0301", "👩\u200d👧 🇩🇪", "1234 ٣٤ Ⅻ ½", "नमस्ते",
    "\U0010ffff", "a" * 3000, f"{END_OF_TEXT} is text, <|im_start|> too", "tab\tand\r\nline", "don't ... (really)?!",
]


def tokens_by_the_book(texts, num_merges):
    """BPE as its definition reads: count every pair anew, join the most frequent one everywhere, repeat."""
    words = Counter(tuple(bytes([value]) for value in piece.encode())
                    for text in texts for piece in regex.findall(PATTERN, text))
    learned = []
    for _ in range(num_merges):
        pair_counts = Counter()
        for word, count in words.items():
            for pair in zip(word, word[1:]):
                pair_counts[pair] += count
        count, pair = min(((-count, pair) for pair, count in pair_counts.items()), default=(0, None))
        if -count < 2:
            break
        learned.append(pair)
        words = Counter({merge_by_the_book(word, pair): count for word, count in words.items()})
    return learned


def merge_by_the_book(word, pair):
    """word with every pair joined, from the left."""
    joined, rest = [], list(word)
    while rest:
        if tuple(rest[:2]) == pair:
            joined.append(rest.pop(0) + rest.pop(0))
        else:
            joined.append(rest.pop(0))
    return tuple(joined)


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(TEXTS, 400)


def random_texts(seed, alphabet, num_texts=30):
    draw = random.Random(seed)
    return ["".join(draw.choices(alphabet, k=draw.randint(1, 40))) for _ in range(num_texts)]


@pytest.mark.parametrize("alphabet", ["ab ", "aab", "abcde  1,;\n", "äöß猫e\u0301 "])
def test_learned_merges_equal_the_slow_definition(alphabet):
    """The incremental trainer learns the very merges that recounting everything learns, ties and stop included."""
    for seed in range(6):
        texts = random_texts(seed, alphabet)
        expected = [left + right for left, right in tokens_by_the_book(texts, 120)]
        assert train_tokenizer(texts, 257 + 120).tokens[256:] == expected


@pytest.mark.parametrize("alphabet", ["ab ", "aab", "abcde  1,;\n", "äöß猫e\u0301 "])
def test_tiktoken_applies_the_merges_in_the_order_learned(alphabet):
    """Encoding a piece = joining its bytes by the merge rules, oldest first: also for pieces never seen in training."""
    texts = random_texts(0, alphabet)
    merges = tokens_by_the_book(texts, 80)
    tokenizer = train_tokenizer(texts, 257 + 80)
    ids = {token: token_id for token_id, token in enumerate(tokenizer.tokens)}
    for piece in {piece for text in texts + random_texts(99, alphabet) for piece in regex.findall(PATTERN, text)}:
        word = tuple(bytes([value]) for value in piece.encode())
        for pair in merges:
            word = merge_by_the_book(word, pair)
        assert tokenizer.encode(piece) == [ids[token] for token in word]


@pytest.mark.parametrize("alphabet", ["ab", "aaab", "🙂🙃猫"])
def test_a_piece_without_blanks_learns_the_same_merges(alphabet):
    """One piece of hundreds of letters with overlapping pairs (aaaa), beside short ones: the slow definition again."""
    draw = random.Random(3)
    texts = ["".join(draw.choices(alphabet, k=300)), "".join(draw.choices(alphabet, k=5)), alphabet[0] * 100]
    expected = [left + right for left, right in tokens_by_the_book(texts, 40)]
    assert train_tokenizer(texts, 257 + 40).tokens[256:] == expected


def test_text_without_blanks_costs_what_words_cost():
    """The same letters in one piece and cut into words of ten: a merge looks at its own places, not at all of them.

    A merge that rewrote the whole piece of 20,000 letters took ten times as long as one that rewrites words."""
    letters = "".join(random.Random(0).choices("abcdefghijklmnopqrstuvwxyz", k=20_000))
    words = " ".join(letters[start : start + 10] for start in range(0, len(letters), 10))

    def seconds(text):
        pieces, began = count_pieces([text]), time.process_time()
        _learn_tokens(pieces, 1500)
        return time.process_time() - began

    seconds(words)  # to warm up
    with_blanks, without = min(seconds(words) for _ in range(2)), min(seconds(letters) for _ in range(2))
    assert without < 4 * with_blanks, f"{without:.2f} s without blanks, {with_blanks:.2f} s with them"


def test_worked_example():
    """aaab twice, cab once: (a, a) 4 before (a, b) 3; then (a, b) 3; then (aa, ab) 2; c ab stands once and stays."""
    tokenizer = train_tokenizer(["aaab\ncab\naaab"], 300)
    assert tokenizer.tokens[256:] == [b"aa", b"ab", b"aaab"]
    assert tokenizer.n_vocab == 260 and tokenizer.eos_token == 259
    assert tokenizer.encode("aaab") == [258] and tokenizer.encode("cab") == [ord("c"), 257]


def test_ties_are_broken_by_bytes():
    """Of pairs that occur equally often the one with the smaller bytes comes first, wherever it stands in the text."""
    assert train_tokenizer(["yz\nyz\nab\nab\n"], 259).tokens[256:] == [b"ab", b"yz"]
    assert train_tokenizer(["ab\nab\nyz\nyz\n"], 259).tokens[256:] == [b"ab", b"yz"]
    assert train_tokenizer(["zab\nzab"], 259).tokens[256:] == [b"ab", b"zab"]


def test_training_does_not_depend_on_the_order_of_texts(tokenizer):
    """Only counts enter: shuffled texts, or a generator, give the same fingerprint; a changed count need not."""
    shuffled = random.Random(0).sample(TEXTS, len(TEXTS))
    assert train_tokenizer(iter(shuffled), 400).fingerprint() == tokenizer.fingerprint()
    assert train_tokenizer(TEXTS + ["zzzz zzzz"] * 9, 400).fingerprint() != tokenizer.fingerprint()


@pytest.mark.parametrize("text", TEXTS[:4] + AWKWARD)
def test_round_trip_is_exact(tokenizer, text):
    """decode(encode(text)) == text for any Unicode text, and no text ever gives the end token."""
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert all(type(token_id) is int and 0 <= token_id < tokenizer.eos_token for token_id in ids)


def test_every_id_decodes_and_the_bytes_come_first(tokenizer):
    """Ids 0..255 are the bytes; every id is a token of its own; concatenated tokens are the text's bytes."""
    assert tokenizer.tokens[:256] == [bytes([value]) for value in range(256)]
    assert len(set(tokenizer.tokens)) == len(tokenizer.tokens) == tokenizer.eos_token == tokenizer.n_vocab - 1
    for text in TEXTS + AWKWARD:
        assert b"".join(tokenizer.tokens[token_id] for token_id in tokenizer.encode(text)) == text.encode()


def test_decode_drops_end_tokens_and_replaces_broken_characters(tokenizer):
    """A generated sequence may hold end tokens and cut characters; ids outside the vocabulary are a bug upstream."""
    assert tokenizer.decode([tokenizer.eos_token, ord("a"), tokenizer.eos_token, ord("b")]) == "ab"
    assert tokenizer.decode([ord("a"), "ä".encode()[0]]) == "a\ufffd"
    assert tokenizer.decode([]) == ""
    for bad in (-1, tokenizer.n_vocab):  # a padded column of the logits would look like this
        with pytest.raises(AssertionError, match="ids"):
            tokenizer.decode([bad])


def test_what_a_piece_is():
    """Letters with their marks take a leading blank, a digit never does, punctuation runs together."""
    pieces = [" cat", "1", "7", " +=(", "x", ")", " ", " हिन्दी", " e\u0301t", "\n\n", "7", "  ", "8",
              "\n ", " .", "\t\n", "8", " ", "9", "\t\n "]
    assert count_pieces(["".join(pieces)]) == Counter(piece.encode() for piece in pieces)


def test_no_token_holds_two_digits_or_crosses_a_piece():
    """However often a number or a phrase occurs, its digits and its words stay apart."""
    tokenizer = train_tokenizer(["17 17 the end 17"] * 50, 400)
    assert tokenizer.decode(tokenizer.encode("1717")) == "1717" and len(tokenizer.encode("1717")) == 4
    assert [tokenizer.tokens[token_id] for token_id in tokenizer.encode("17 the end")] == [b"1", b"7", b" the", b" end"]


def test_special_looking_text_is_text(tokenizer):
    """User data cannot end a sequence: the marker spelled out is encoded by its characters."""
    assert tokenizer.eos_token not in tokenizer.encode(f"a{END_OF_TEXT}b")
    assert tokenizer.eos_token not in train_tokenizer([END_OF_TEXT] * 99, 400).encode(END_OF_TEXT)


def test_vocabulary_size_is_exact_or_stops_early():
    """n_vocab is the size asked for while pairs repeat, and less when none does; 257 learns nothing."""
    assert [train_tokenizer(TEXTS, size).n_vocab for size in (257, 258, 300)] == [257, 258, 300]
    assert train_tokenizer(["abcdefg"], 5000).n_vocab == 257
    assert train_tokenizer(["x y 1 2"], 5000).n_vocab == 257


def test_bad_training_input_is_refused_in_one_line():
    """The user learns what was wrong and where; a lone surrogate would be replaced in silence by tiktoken."""
    for texts, size, message in [
        (["a"], 256, "vocab_size 256 is too small"),
        ([], 300, "no text to train"),
        (["", ""], 300, "no text to train"),
        (["fine", "bad \ud800"], 300, "text 1 has the lone surrogate '.ud800' at character 4"),
    ]:
        with pytest.raises(ValueError, match=message) as caught:
            train_tokenizer(texts, size)
        assert "\n" not in str(caught.value)
        str(caught.value).encode()  # printable: the message names the surrogate, it does not hold it
    with pytest.raises(AssertionError, match="list of texts"):
        train_tokenizer("one string", 300)


def test_state_survives_file_json_and_torch(tokenizer, tmp_path):
    """save/load, JSON and a checkpoint with weights_only=True give a tokenizer with the same fingerprint and ids."""
    tokenizer.save(tmp_path / "tokenizer.json")
    torch.save({"tokenizer": tokenizer.state_dict()}, tmp_path / "checkpoint.pt")
    checkpoint = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    for again in (
        Tokenizer.load(tmp_path / "tokenizer.json"),
        Tokenizer.load(str(tmp_path / "tokenizer.json")),
        Tokenizer.from_state(json.loads(json.dumps(tokenizer.state_dict()))),
        Tokenizer.from_state(checkpoint["tokenizer"]),
    ):
        assert again.fingerprint() == tokenizer.fingerprint() and len(again.fingerprint()) == 64
        assert (again.n_vocab, again.eos_token) == (tokenizer.n_vocab, tokenizer.eos_token)
        assert [again.encode(text) for text in TEXTS + AWKWARD] == [tokenizer.encode(text) for text in TEXTS + AWKWARD]


def test_fingerprint_covers_tokens_and_pattern(tokenizer):
    """Two swapped ranks, or another split pattern, are another tokenizer."""
    tokens = tokenizer.tokens
    swapped = Tokenizer(tokens[:256] + [tokens[257], tokens[256]] + tokens[258:])
    other_pattern = Tokenizer(tokens, r"\s|\S+")
    assert len({tokenizer.fingerprint(), swapped.fingerprint(), other_pattern.fingerprint()}) == 3
    assert Tokenizer.from_state(other_pattern.state_dict()).pattern == r"\s|\S+"


def test_failed_save_keeps_the_old_file(tokenizer, tmp_path, monkeypatch):
    """Written beside and renamed: an error on the way leaves the old content and no litter."""
    path = tmp_path / "tokenizer.json"
    tokenizer.save(path)
    before = path.read_bytes()

    def full_disk(descriptor):
        raise OSError("No space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OSError, match="No space"):
        train_tokenizer(["other"], 257).save(path)
    assert path.read_bytes() == before and os.listdir(tmp_path) == ["tokenizer.json"]


def edited(**changes):
    """The state of a small tokenizer with some entries replaced."""
    return {**train_tokenizer(["abab abab"], 300).state_dict(), **changes}


BYTES = [f"{value:02x}" for value in range(256)]
BAD_STATES = {
    "not a dict": (["version"], "no tokenizer state"),
    "empty": ({}, "no tokenizer state"),
    "newer version": (edited(version=2), "version 2, this code reads 1"),
    "no pattern": (edited(pattern=None), "pattern must be a string"),
    "pattern is no regex": (edited(pattern="("), "is no regular expression"),
    "pattern loses text": (edited(pattern=r"\p{L}+"), "loses text"),
    "pattern matches nothing": (edited(pattern="x*"), "loses text"),
    "pattern matches nothing too": (edited(pattern=r"\S+|\s|$"), "loses text"),
    "tokens are missing": ({key: value for key, value in edited().items() if key != "tokens"}, "strings in hex"),
    "tokens are numbers": (edited(tokens=[1, 2]), "strings in hex"),
    "tokens are no hex": (edited(tokens=BYTES + ["xy"]), "strings in hex"),
    "no tokens": (edited(tokens=[]), "256 of the 256 single bytes are missing"),
    "a byte is missing": (edited(tokens=BYTES[:7] + BYTES[8:]), "1 of the 256 .* 0x07"),
    "a token twice": (edited(tokens=BYTES + ["6162", "6162"]), "b'ab' stands 2 times"),
    "an empty token": (edited(tokens=BYTES + [""]), "token 256 is empty"),
    "special inside the tokens": (edited(tokens=BYTES + ["6162"], special={END_OF_TEXT: 256}), "special must be"),
    "special with a gap": (edited(tokens=BYTES, special={END_OF_TEXT: 300}), "special must be"),
    "other special": (edited(tokens=BYTES, special={END_OF_TEXT: 256, "<|pad|>": 257}), "special must be"),
}


@pytest.mark.parametrize("name", BAD_STATES)
def test_bad_state_is_a_one_line_value_error(name, tmp_path):
    """Whatever is wrong with a file, load says so in one line with its path, and tiktoken never sees it (it panics)."""
    state, message = BAD_STATES[name]
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(state))
    with pytest.raises(ValueError, match=message) as caught:
        Tokenizer.load(path)
    assert str(caught.value).startswith(f"{path}: ") and "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe\x00", b"[" * 100_000])
def test_file_that_is_no_json(content, tmp_path):
    """Empty, cut, binary or absurdly nested files are told apart from a bad state; a missing one is an OSError."""
    path = tmp_path / "tokenizer.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="not JSON") as caught:
        Tokenizer.load(path)
    assert "\n" not in str(caught.value) and str(path) in str(caught.value)
    with pytest.raises(FileNotFoundError):
        Tokenizer.load(tmp_path / "absent.json")
