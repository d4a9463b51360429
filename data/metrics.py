"""Text metrics, all on a scale of 0 to 1: what a completion is worth against one or several references.

    exact_match        the same words?                                          any task with one right answer
    corpus_bleu        word 1- to 4-grams, precision and length                 translation
    corpus_chrf        character 1- to 6-grams, F2                              translation into rich morphology
    rouge_l            longest common subsequence of words, F1                  summaries
    slot_f1            slots of a form filled in right: precision, recall, F1   summaries and dialogue states
    token_accuracy     the same token at the same place                         own data
    same_text          the same characters                                      own data, code included

METRICS are those that own data can be scored by; choose_metric takes one of them after a look at the references.

The three n-gram metrics give the values of the packages the papers quote, divided by 100 where those use percent:
sacrebleu's `corpus_bleu` and `corpus_chrf` with their defaults, rouge_score's "rougeL" without stemming. BLEU and chrF
are figures of a corpus: the counts are added over all segments before any ratio is taken, so they are not the mean of
the scores of its segments. Wherever a reference stands, a sequence of references may stand, and the best one counts.
"""
import math
import re
import unicodedata
from collections import Counter
from collections.abc import Callable
from typing import NamedTuple

from data.progress import progress


class SlotScore(NamedTuple):
    """f1 = 2 precision recall / (precision + recall); precision: right / found; recall: right / in the truth."""

    f1: float
    precision: float
    recall: float


def exact_match(completion, reference):
    """1.0 if completion equals the reference (or one of several) up to the amount of white space, else 0.0."""
    return float(any(completion.split() == text.split() for text in _as_tuple(reference)))


# ---------------------------------------------------------------------------------------------------------------- BLEU

# The tokenisation "13a" of the NIST script mteval-v13a, in the order in which its rules apply
_ENTITIES = (("&quot;", '"'), ("&amp;", "&"), ("&lt;", "<"), ("&gt;", ">"))
_RULES_13A = (
    (re.compile(r"([!-&(-+/:-@\[-`{-~])"), r" \1 "),  # ASCII punctuation, except ' , - .
    (re.compile(r"([^0-9])([.,])"), r"\1 \2 "),  # 1,000.5 stays one word: both neighbours of its marks are digits
    (re.compile(r"([.,])([^0-9])"), r" \1 \2"),
    (re.compile(r"([0-9])(-)"), r"\1 \2 "),  # 3-4 is cut, well-known is not
)
BLEU_ORDER = 4


def corpus_bleu(completions, references):
    """BLEU-4 of a corpus (Papineni et al. 2002, aclanthology.org/P02-1040), tokenised as 13a, 0..1.

    completions: list of str; references: list as long, of str or of sequences of str.

        BLEU = min(1, exp(1 - R / H)) * (P1 * P2 * P3 * P4) ** (1/4)
        Pn = n-grams of the completions that the references also have / n-grams of the completions
        H = words of all completions, R = words of their references (of several the one closest in length)

    An n-gram counts as found at most as often as in that reference which has it most often. The k-th order without a
    hit gets Pn = 2**-k / (n-grams) in place of 0 ("exp" smoothing); no hit at all, or no 4-gram at all, gives 0.
    "the cat sat on the mat" for "the cat sat on a mat": 5/6, 3/5, 2/4, 1/3, equal length: (1/12) ** (1/4) = 0.5373.
    """
    segments = _pair_up(completions, references)
    hits, totals = [0] * BLEU_ORDER, [0] * BLEU_ORDER  # index n-1, over the whole corpus
    completion_length, reference_length = 0, 0
    for completion, texts in progress(segments, "BLEU"):
        words = _tokenize_13a(completion)
        alternatives = [_tokenize_13a(text) for text in texts]
        completion_length += len(words)
        reference_length += min((abs(len(other) - len(words)), len(other)) for other in alternatives)[1]  # tie: shorter
        for n in range(1, BLEU_ORDER + 1):
            found = _ngrams(words, n)
            allowed = Counter()
            for other in alternatives:
                allowed |= _ngrams(other, n)  # | keeps the larger count of the two
            hits[n - 1] += (found & allowed).total()  # & keeps the smaller one: clipping
            totals[n - 1] += found.total()
    if not any(hits) or not all(totals):
        return 0.0
    log_precision = 0.0
    orders_without_hit = 0
    for hit, total in zip(hits, totals):
        if hit == 0:
            orders_without_hit += 1
            hit = 0.5 ** orders_without_hit
        log_precision += math.log(hit / total) / BLEU_ORDER
    # Precision alone would reward saying little. Recall is no remedy with several references, so length stands in.
    return math.exp(min(0.0, 1.0 - reference_length / completion_length) + log_precision)


def _tokenize_13a(text):
    """The words and punctuation marks of a line: "Sie sagt: 1,000.5!" -> Sie sagt : 1,000.5 !"""
    text = text.rstrip().replace("<skipped>", "").replace("-\n", "")  # a word hyphenated over a line end is joined
    for entity, character in _ENTITIES:
        text = text.replace(entity, character)
    text = f" {text} "  # the rules for . and , look at both neighbours
    for rule, replacement in _RULES_13A:
        text = rule.sub(replacement, text)
    return text.split()


# ---------------------------------------------------------------------------------------------------------------- chrF

CHRF_ORDER = 6
CHRF_BETA = 2.0


def corpus_chrf(completions, references):
    """chrF2 of a corpus (Popovic 2015, aclanthology.org/W15-3049): F-score of character n-grams, n = 1..6, 0..1.

    completions: list of str; references: list as long, of str or of sequences of str. White space is removed first.

        chrF = (1 + beta^2) P R / (beta^2 P + R), beta = 2: recall weighs four times as much in the mean
        P = mean over n of hits / n-grams of the completions; R = mean over n of hits / n-grams of the references

    Orders that the completions or the references are too short for are left out of both means. Of several references
    the one with the best chrF for its segment enters the counts.
    "Hund" for "Hunde": P = 1 (four orders), R = (4/5 + 3/4 + 2/3 + 1/2) / 4 = 0.6792, chrF = 5 R / (4 + R) = 0.7257.
    """
    segments = _pair_up(completions, references)
    corpus_counts = [(0, 0, 0)] * CHRF_ORDER  # per order: n-grams of the completions, of the references, hits
    for completion, texts in progress(segments, "chrF"):
        best = max((_chrf_counts(completion, text) for text in texts), key=_chrf_score)  # the first of equals
        corpus_counts = [tuple(a + b for a, b in zip(old, new)) for old, new in zip(corpus_counts, best)]
    return _chrf_score(corpus_counts)


def _chrf_counts(completion, reference):
    """Per order n: (n-grams of the completion, of the reference, common ones)."""
    completion, reference = "".join(completion.split()), "".join(reference.split())
    counts = []
    for n in range(1, CHRF_ORDER + 1):
        found, wanted = _ngrams(completion, n), _ngrams(reference, n)
        # a completion longer than a reference without any n-gram of this order is not blamed for it
        counts.append((found.total() if wanted else 0, wanted.total(), (found & wanted).total()))
    return counts


def _chrf_score(counts):
    """F2 from the counts of the orders 1..6; 0 if nothing can be compared."""
    usable = [(hits / found, hits / wanted) for found, wanted, hits in counts if found and wanted]
    if not usable:
        return 0.0
    precision, recall = (sum(column) / len(usable) for column in zip(*usable))
    return _f_score(precision, recall, CHRF_BETA)


# ------------------------------------------------------------------------------------------------------------- ROUGE-L


def rouge_l(completion, reference):
    """ROUGE-L F1 of one completion (Lin 2004, aclanthology.org/W04-1013); of several references the best, 0..1.

        P = L / words of the completion, R = L / words of the reference, F1 = 2 P R / (P + R)
        L = length of the longest common subsequence: words in the same order, gaps allowed

    Words are runs of a-z and 0-9 after lower-casing; all else separates them, as in rouge_score, whose values papers
    quote. So it is blind to signs ("7" for "-7" is 1), to umlauts, and to every other script: see choose_metric.
    "the dog bit the man" for "the man bit the dog": L = 3 (the bit the), P = R = 3/5, F1 = 0.6. No words: 0.
    """
    found = _rouge_words(completion)
    scores = []
    for text in _as_tuple(reference):
        wanted = _rouge_words(text)
        common = _longest_common_subsequence(found, wanted)
        scores.append(_f_score(common / len(found), common / len(wanted)) if found and wanted else 0.0)
    return max(scores)


def _rouge_words(text):
    return re.findall(r"[a-z0-9]+", text.lower())


def _longest_common_subsequence(left, right):
    """Its length, for two lists of words.

    The usual table, row by row, a row being the bits of one number: bit j is 0 where the length grows from right[:j]
    to right[:j + 1] (Hyyro 2004), so that a row of thousands of words costs one addition.
    """
    places, everywhere = {}, (1 << len(right)) - 1
    for j, word in enumerate(right):
        places[word] = places.get(word, 0) | 1 << j
    row = everywhere
    for word in left:
        hits = row & places.get(word, 0)
        row = (row + hits | row - hits) & everywhere
    return len(right) - row.bit_count()


# --------------------------------------------------------------------------------------------------------------- slots


def slot_f1(found, truth):
    """SlotScore of dicts slot -> value: a slot is right if it is in both with the same value.

    A wrong value costs twice: it is one found too many and one missed. Nothing found where nothing was to be found is
    right (all three 1.0).
    {day: Mon, time: 3} for {day: Mon, time: 4, place: cafe}: precision 1/2, recall 1/3, F1 0.4.
    """
    return corpus_slot_f1([found], [truth])


def corpus_slot_f1(found, truth):
    """SlotScore of lists of dicts, with the slots of all items counted together (micro average)."""
    assert len(found) == len(truth), f"{len(found)} found dicts for {len(truth)} true ones"
    num_found, num_true = sum(map(len, found)), sum(map(len, truth))
    num_right = sum(slot in here and here[slot] == value
                    for here, there in zip(found, truth) for slot, value in there.items())
    if num_found == num_true == 0:
        return SlotScore(1.0, 1.0, 1.0)
    precision = num_right / num_found if num_found else 0.0
    recall = num_right / num_true if num_true else 0.0
    return SlotScore(_f_score(precision, recall), precision, recall)


# ------------------------------------------------------------------------------------------------- metrics of own data

# Scripts written without blanks between words, of which every character is a token: Thai to Khmer, kana, Han
_NO_BLANKS = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
)
_TOKEN = re.compile(rf"[{_NO_BLANKS}]|[^\W{_NO_BLANKS}]+|[^\w\s]")


def same_text(completion, reference):
    """1.0 if completion is the reference (or one of several) character by character, else 0.0.

    Only white space at the end and the Unicode form of a character (e and its accent as one or as two) do not count:
    "  x = 1" is not "x = 1", which is other code.
    """
    return float(any(_normal(completion) == _normal(text) for text in _as_tuple(reference)))


def _normal(text):
    return unicodedata.normalize("NFC", text).rstrip()


def token_accuracy(completion, reference):
    """Share of places at which both have the same token, of several references the best, 0..1.

    Tokens are runs of letters and digits of any script, all other visible characters, and the single characters of
    scripts without blanks. The longer of the two says how many places there are; no token in either is 1.
    "a - 3" for "a + 3 b": 2 of 4 places.
    """
    scores, found = [], _tokens(completion)
    for text in _as_tuple(reference):
        wanted = _tokens(text)
        places = max(len(found), len(wanted))
        scores.append(sum(map(str.__eq__, found, wanted)) / places if places else 1.0)
    return max(scores)


def _tokens(text):
    return _TOKEN.findall(_normal(text))


def _visible(text):
    return "".join(text.split())


class TextMetric(NamedTuple):
    """One metric for own data. `sees`: all that it knows of a text; a text scores 1 against itself if that has a length
    of at least `least`."""

    title: str
    score: Callable  # (completion, reference or references) -> 0..1
    corpus_score: Callable | None  # (completions, references of each) -> 0..1; None: the mean of the scores
    sees: Callable  # text -> words or characters
    least: int


METRICS = {  # --metric: its row. A new one is one function and one row
    "exact_match": TextMetric("exact match", same_text, None, _normal, 0),
    "rouge_l": TextMetric("ROUGE-L", rouge_l, None, _rouge_words, 1),
    "chrf": TextMetric("chrF", lambda one, of: corpus_chrf([one], [of]), corpus_chrf, _visible, 1),
    "bleu": TextMetric("BLEU", lambda one, of: corpus_bleu([one], [of]), corpus_bleu, _tokenize_13a, BLEU_ORDER),
    "token_accuracy": TextMetric("token accuracy", token_accuracy, None, _tokens, 0),
}
SHORT_WORDS, SHORT_TOKENS = 3, 8  # at most, of a short answer: "New York City", "-1,234.50"
MOST_ARE_SHORT = 0.95  # share of the references from which on all are judged as short answers
SEES_ENOUGH = 0.9  # share of visible characters in a-z and 0-9: German has .97, Polish .93, Python .84, Vietnamese .67
FEW_ALIKE = 0.01  # share of different references that a metric may take for one another


def score_texts(name, completions, references):
    """Corpus score of METRICS[name], 0..1; completions: list of str, references: list of str or sequences of str."""
    segments = _pair_up(completions, references)
    row = METRICS[name]
    if row.corpus_score:
        return row.corpus_score(completions, references)
    return sum(row.score(completion, texts) for completion, texts in segments) / len(segments)


def choose_metric(references):
    """(name in METRICS, why) for answers like these; references: list of str or of sequences of str.

    Short answers: exact match. Else ROUGE-L, unless its a-z and 0-9 miss a whole reference, many characters, or what
    tells references apart: then chrF, which sees every character but white space.
    """
    texts = [text for one in references for text in _as_tuple(one)]
    count = f"of {len(texts):,} references"
    short = sum(len(text.split()) <= SHORT_WORDS and len(_tokens(text)) <= SHORT_TOKENS for text in texts)
    if short >= MOST_ARE_SHORT * len(texts):
        return "exact_match", f"{short:,} {count} have at most {SHORT_WORDS} words"
    unseen = sum(not _rouge_words(text) for text in texts)
    if unseen:
        return "chrf", f"{unseen:,} {count} hold nothing that ROUGE sees (a-z, 0-9)"
    seen = _seen_by_rouge(texts)
    if seen < SEES_ENOUGH:
        return "chrf", f"ROUGE sees {100 * seen:.0f} % of the references' characters (a-z, 0-9)"
    alike, different = _alike("rouge_l", texts)
    if alike > FEW_ALIKE * different:
        return "chrf", f"ROUGE (a-z, 0-9) takes {alike:,} of {different:,} different references for another one"
    return "rouge_l", f"{len(texts) - short:,} {count} are longer, and ROUGE sees {100 * seen:.0f} % of the characters"


def metric_warnings(name, references):
    """Lines about what METRICS[name] cannot tell of these references; references as in choose_metric."""
    row, groups = METRICS[name], [_as_tuple(one) for one in references]
    texts = [text for group in groups for text in group]
    found, other = [], "another --metric sees more"
    below = sum(len(row.sees(text)) < row.least for text in texts)
    if below:
        found.append(f"{below:,} of {len(texts):,} references score below 1 against themselves in {row.title}: {other}")
    elif name == "rouge_l" and (seen := _seen_by_rouge(texts)) < SEES_ENOUGH:
        found.append(f"ROUGE-L sees {100 * seen:.0f} % of the references' characters (a-z, 0-9): {other}")
    right_everywhere = set.intersection(*({tuple(row.sees(text)) for text in group} for group in groups))
    alike, different = _alike(name, texts)
    if len(groups) > 1 and right_everywhere:
        found.append(f"one and the same answer is right in all {len(groups):,} examples, as far as {row.title} sees: "
                     "the score cannot tell who has learned the task")
    elif alike > FEW_ALIKE * different:
        found.append(f"{row.title} takes {alike:,} of {different:,} different references for another one: {other}")
    return found


def _seen_by_rouge(texts):
    """Share of the visible characters of texts that are in words of ROUGE; 0 of none."""
    return sum(len("".join(_rouge_words(text))) for text in texts) / max(1, sum(len(_visible(text)) for text in texts))


def _alike(name, texts):
    """How many of the different texts METRICS[name] takes for an earlier one, and how many different ones there are;
    capitals and white space make no difference."""
    different = {" ".join(_normal(text).casefold().split()): text for text in texts}
    return len(different) - len({tuple(METRICS[name].sees(text)) for text in different.values()}), len(different)


# -------------------------------------------------------------------------------------------------------- common parts


def _f_score(precision, recall, beta=1.0):
    """Weighted harmonic mean; beta > 1 leans to recall; 0 if both are 0."""
    if precision == recall == 0.0:
        return 0.0
    return (1 + beta ** 2) * precision * recall / (beta ** 2 * precision + recall)


def _ngrams(sequence, n):
    """Counter of the n-grams of a list of words (as tuples) or of a string (as strings)."""
    pieces = [sequence[start:start + n] for start in range(len(sequence) - n + 1)]
    return Counter(pieces if isinstance(sequence, str) else map(tuple, pieces))


def _as_tuple(reference):
    """One reference or several -> a tuple of references."""
    texts = (reference,) if isinstance(reference, str) else tuple(reference)
    assert texts, "an item without a reference cannot be scored"
    return texts


def _pair_up(completions, references):
    """The segments of a corpus: list of (completion, tuple of its references)."""
    assert not isinstance(completions, str) and not isinstance(references, str), "lists of texts, not one text"
    assert len(completions) == len(references), f"{len(completions)} completions for {len(references)} references"
    if len(completions) == 0:
        raise ValueError("no completions to score: the split or the sample is empty, take at least one example")
    return [(completion, _as_tuple(reference)) for completion, reference in zip(completions, references)]
