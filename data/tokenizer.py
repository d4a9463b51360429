"""Byte-level BPE learned from the task's own text, carried by tiktoken.

text -> PATTERN cuts it into pieces (a word, one digit, ...) -> the UTF-8 bytes of a piece are its first tokens
     -> the merge rules join neighbours inside the piece, oldest rule first -> token ids.

A vocabulary of its own fits a small model: a few hundred ids instead of the 50,257 of GPT-2, every one of them seen in
training. All 256 bytes stay in it, so any text can be encoded and comes back unchanged.

Ids: 0..255 the bytes, then one id per merge in the order they were learned, last the end-of-text token.
Training is here, in Python; encoding and decoding are tiktoken's, which runs in Rust and needs no network for this.
"""
import hashlib
import heapq
import json
import os
from array import array
from collections import Counter, defaultdict
from itertools import pairwise
from pathlib import Path

import regex  # the engine with \p{...}; tiktoken depends on it
import tiktoken

from data.progress import progress

FORMAT_VERSION = 1
END_OF_TEXT = "<|endoftext|>"
MAX_BYTES = 2**26  # of a file that is read: 64 MiB, far above any vocabulary
NOTHING = -1  # in the slot of a token that went into another one, and between pieces
LONGEST_BLANK = 500_000  # characters of white space in a row; a million make tiktoken panic

# Merges never cross a piece. The alternatives, in order of preference:
#   letters, their accents and underscores, after an optional space, so that " cat" or "I_JUMP" can be one token
#   a single digit, never with a space: 17 is always 1 then 7, or the carry rules of arithmetic would have no digits
#   a run of punctuation, after an optional space
#   white space, except the blank that the next word or punctuation takes
PATTERN = r" ?[\p{L}\p{M}_]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}_]+|\s+(?= [^\s\p{N}])|\s+"

_PROBE = "Héllo 17 e\u0301 हिन्दी  <|x|>\n\n\t 字🙂' I_a"  # something of every kind that PATTERN tells apart


class Tokenizer:
    """Text to ids and back. Learn one with `train_tokenizer`, keep it with `save` or inside a checkpoint."""

    def __init__(self, tokens, pattern=PATTERN):
        """tokens: list of bytes, index = id; pattern: how text is cut first. ValueError if they cannot work."""
        _check_pattern(pattern)
        _check_tokens(tokens)
        self.tokens = tokens
        self.pattern = pattern
        self.eos_token = len(tokens)
        self.n_vocab = len(tokens) + 1
        try:
            self._encoding = tiktoken.Encoding(
                "task",
                pat_str=pattern,
                mergeable_ranks={token: rank for rank, token in enumerate(tokens)},
                special_tokens={END_OF_TEXT: self.eos_token},
                explicit_n_vocab=self.n_vocab,  # tiktoken then checks that the ids have no holes
            )
        except ValueError as error:  # its engine takes less than `regex` does
            raise ValueError(f"split pattern {pattern!r} is not taken by tiktoken: {_one_line(error)[:160]}") from error

    def encode(self, text):
        """The ids of a text, without an end token; "<|endoftext|>" inside it is ordinary text, not the special id."""
        _check_text(text, "the text")
        return self._encoding.encode_ordinary(text)

    def decode(self, ids):
        """The text of a list of ids, end tokens left out; bytes that are no UTF-8 (a cut character) become U+FFFD."""
        ids = [token_id for token_id in ids if token_id != self.eos_token]
        assert all(isinstance(token_id, int) for token_id in ids), f"ids are whole numbers, found {ids[:3]}"
        assert not ids or 0 <= min(ids) <= max(ids) < self.n_vocab, f"ids {min(ids)}..{max(ids)} of {self.n_vocab}"
        return self._encoding.decode(ids, errors="replace")

    def state_dict(self):
        """Plain values for JSON and `torch.load(weights_only=True)`: version, pattern, tokens in hex, special ids."""
        return {
            "version": FORMAT_VERSION,
            "pattern": self.pattern,
            "tokens": [token.hex() for token in self.tokens],
            "special": {END_OF_TEXT: self.eos_token},
        }

    @classmethod
    def from_state(cls, state):
        """The tokenizer that `state_dict` described. ValueError, one line, for anything else."""
        if not isinstance(state, dict) or "version" not in state:
            raise ValueError("no tokenizer state: a dict with version, pattern, tokens and special was expected")
        if state["version"] != FORMAT_VERSION:
            raise ValueError(
                f"tokenizer format version {repr(state['version'])[:60]}, this code reads {FORMAT_VERSION}"
            )
        if not isinstance(state.get("pattern"), str):
            raise ValueError(f"the pattern must be a string, found {repr(state.get('pattern'))[:60]}")
        try:
            tokens = [bytes.fromhex(token) for token in state["tokens"]]
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError("the tokens must be a list of strings in hex") from error
        tokenizer = cls(tokens, state["pattern"])
        if state.get("special") != {END_OF_TEXT: tokenizer.eos_token}:
            raise ValueError(f"special must be {{'{END_OF_TEXT}': {tokenizer.eos_token}}}, the id after the last "
                             f"token; found {repr(state.get('special'))[:60]}")
        return tokenizer

    def fingerprint(self):
        """sha256 (hex) of everything that decides the ids: equal fingerprints, equal encodings."""
        canonical = json.dumps(self.state_dict(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()

    def save(self, path):
        """Writes the state as JSON, whole or not at all: beside the file first, then renamed over it."""
        path = Path(path)
        beside = path.with_name(f"{path.name}.{os.getpid()}.tmp")  # by process: parallel runs share a cache folder
        try:
            with open(beside, "w", encoding="utf-8", newline="\n") as file:
                json.dump(self.state_dict(), file, indent=0)
                file.flush()
                os.fsync(file.fileno())  # a rename may reach the disk before the data it names
            os.replace(beside, path)
        finally:
            beside.unlink(missing_ok=True)

    @classmethod
    def load(cls, path):
        """Reads what `save` wrote. OSError if there is none, ValueError (one line, with the path) if it is bad."""
        with open(path, "rb") as file:
            content = file.read(MAX_BYTES + 1)
        try:
            if len(content) > MAX_BYTES:
                raise ValueError(f"more than {MAX_BYTES} bytes")
            state = json.loads(content, object_pairs_hook=distinct_keys)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path}: not JSON ({_one_line(error)}); delete it and train anew") from error
        try:
            return cls.from_state(state)
        except ValueError as error:
            raise ValueError(f"{path}: {_one_line(error)}; delete it and train anew") from error


def train_tokenizer(texts, vocab_size):
    """Learns byte-level BPE (Sennrich et al., arXiv 1508.07909, on bytes) from an iterable of texts.

    vocab_size counts the 256 bytes, the merges and the end token. Fewer come out when no pair of tokens is left that
    occurs twice: ask `n_vocab`. Only counts enter, so the order of the texts does not matter, and ties go to the pair
    with the smaller bytes. ValueError for vocab_size < 257, for nothing to learn from, for text that is no Unicode.
    """
    if not isinstance(vocab_size, int) or vocab_size < 257:
        raise ValueError(f"vocab_size {vocab_size} is too small: 256 bytes and the end token need at least 257")
    piece_counts = count_pieces(texts)
    if not piece_counts:
        raise ValueError("no text to train the tokenizer on: give at least one text that is not empty")
    return Tokenizer(_learn_tokens(piece_counts, vocab_size - 1))


def count_pieces(texts):
    """Cuts every text by PATTERN: Counter of pieces (as UTF-8 bytes). BPE never looks beyond a piece."""
    assert not isinstance(texts, str), "train on a list of texts, not on one string"
    split = regex.compile(PATTERN).findall
    counts = Counter()
    for number, text in enumerate(progress(texts, "words")):
        _check_text(text, f"text {number}")
        counts.update(split(text))
    return Counter({piece.encode(): count for piece, count in counts.items()})


def _learn_tokens(piece_counts, num_tokens):
    """The bytes and then the merges: repeatedly joins the most frequent pair of neighbours into a new token.

    aaab twice, cab once: (a, a) 4, (a, b) 3 -> aa; now aa a b and c a b: (a, b) 3 -> ab; now aa ab and c ab:
    (aa, ab) 2 -> aaab; (c, ab) occurs once and stays apart.

    All distinct pieces stand in one row of slots, each once, with its count. A merge touches only the slots where its
    pair stands and their neighbours, so that a piece of a million letters (text without blanks) costs no more than a
    million letters in words.
    """
    tokens = [bytes([value]) for value in range(256)]
    ids, weights = array("i", [NOTHING]), array("q", [0])
    for piece, count in piece_counts.items():
        ids.extend(piece)  # bytes iterate as ints, which are the ids of the bytes
        ids.append(NOTHING)  # no pair reaches across a border
        weights.extend([count] * (len(piece) + 1))
    left, right = array("q", range(-1, len(ids) - 1)), array("q", range(1, len(ids) + 1))  # the neighbours' slots

    pair_counts = Counter()
    pair_slots = defaultdict(lambda: array("q"))  # pair -> slots where it begins, or once did, in order
    for slot, (pair, weight) in enumerate(zip(pairwise(ids), weights)):
        if NOTHING not in pair:
            pair_counts[pair] += weight
            pair_slots[pair].append(slot)

    def priority(pair):  # the heap's order: most frequent first, then by bytes, never by order of arrival
        return -pair_counts[pair], tokens[pair[0]], tokens[pair[1]], pair

    heap = [priority(pair) for pair in pair_counts]
    heapq.heapify(heap)

    def most_frequent():
        # Merges elsewhere only ever lower the count of an old pair, so an entry promises too much, never too little:
        # putting it back at its true place is all the updating the heap needs.
        while heap:
            count, *_, pair = heapq.heappop(heap)
            if -count == pair_counts[pair]:
                return pair
            heapq.heappush(heap, priority(pair))
        return None

    for new_token in progress(range(256, num_tokens), "tokenizer"):
        pair = most_frequent()
        if pair is None or pair_counts[pair] < 2:
            break
        first, second = pair
        tokens.append(tokens[first] + tokens[second])
        born = set()
        for slot in pair_slots.pop(pair):
            if ids[slot] != first or ids[right[slot]] != second:  # it once did: aaa holds (a, a) twice, and is aa a
                continue
            # c a b d -> c X d: loses (c, a), (b, d), gains (c, X), (X, d). c may itself just have become X.
            taken, before, after, weight = right[slot], left[slot], right[right[slot]], weights[slot]
            for old, new, begin in (
                ((ids[before], first), (ids[before], new_token), before),
                ((second, ids[after]), (new_token, ids[after]), slot),
            ):
                if NOTHING not in old:
                    pair_counts[old] -= weight
                    pair_counts[new] += weight
                    pair_slots[new].append(begin)
                    born.add(new)
            ids[slot], ids[taken] = new_token, NOTHING
            right[slot], left[after] = after, slot
        del pair_counts[pair]  # every occurrence is merged now
        for neighbours in born:
            heapq.heappush(heap, priority(neighbours))
    return tokens


# What tiktoken is given is checked first: bad ranks and empty pieces make it panic, past every `except Exception`.


def _check_text(text, name):
    if not isinstance(text, str):
        raise ValueError(f"{name} is no text but {type(text).__name__}: decode it first")
    try:
        text.encode()
    except UnicodeEncodeError as error:  # half a UTF-16 pair; tiktoken would silently put U+FFFD in its place
        raise ValueError(f"{name} has the lone surrogate {text[error.start]!r} at character {error.start}: "
                         "repair it, for example by text.encode('utf-8', 'replace').decode()") from error
    if len(text) > LONGEST_BLANK and regex.search(rf"\s{{{LONGEST_BLANK}}}", text):
        raise ValueError(f"{name} has more than {LONGEST_BLANK} blanks in a row: cut them out")


# What an engine without memory cannot do: look around, refer back, keep what it has. On some texts it takes for ever,
# or
# tiktoken gives up in a panic; PATTERN, which looks ahead once, is known to do neither.
_BACKTRACKS = regex.compile(r"\(\?(?!:)|\\[1-9gkK]|[*+?]\+|\d\}\+")


def _check_pattern(pattern):
    """ValueError unless pattern is a regular expression that cuts text into pieces without losing any of it."""
    if not isinstance(pattern, str) or len(pattern) > 1000:
        raise ValueError(f"the split pattern must be a string of at most 1000 characters, found {repr(pattern)[:60]}")
    if pattern != PATTERN and _BACKTRACKS.search(pattern):
        raise ValueError(
            f"split pattern {pattern!r} looks around or refers back, which can take for ever: use plain (?:...) groups"
        )
    try:
        pieces = [match.group() for match in regex.finditer(pattern, _PROBE, timeout=1.0)]
    except (regex.error, TimeoutError, MemoryError) as error:
        raise ValueError(f"split pattern {pattern!r} is no regular expression that ends: {_one_line(error)}") from error
    if "" in pieces or "".join(pieces) != _PROBE:
        raise ValueError(f"split pattern {pattern!r} loses text: its pieces must cover every character")


def _check_tokens(tokens):
    """ValueError unless tokens are distinct, not empty, and hold all 256 single bytes."""
    first = set(tokens[:256])
    missing = [value for value in range(256) if bytes([value]) not in first]
    if missing:
        raise ValueError(f"{len(missing)} of the 256 single bytes are missing from the first 256 tokens, "
                         f"the first of them {missing[0]:#04x}")
    if b"" in tokens:
        raise ValueError(f"token {tokens.index(b'')} is empty")
    if len(set(tokens)) < len(tokens):
        token, count = Counter(tokens).most_common(1)[0]
        raise ValueError(f"token {token!r} stands {count} times, ranks must be unique")


def distinct_keys(pairs):
    """The dict of a JSON object's pairs; ValueError for a key that stands twice: one of the two would be lost."""
    if len(dict(pairs)) < len(pairs):
        raise ValueError("a key stands twice in one object")
    return dict(pairs)


def _one_line(error):
    return " ".join(str(error).split())
