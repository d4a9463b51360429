"""Text metrics, all on a scale of 0 to 1: what a completion is worth against one or several references.

    exact_match        the same words?                                          any task with one right answer
    corpus_bleu        word 1- to 4-grams, precision and length                 translation
    corpus_chrf        character 1- to 6-grams, F2                              translation into rich morphology
    rouge_l            longest common subsequence of words, F1                  summaries
    slot_f1            slots of a form filled in right: precision, recall, F1   summaries and dialogue states

The three n-gram metrics give the values of the packages the papers quote, divided by 100 where those use percent:
sacrebleu's `corpus_bleu` and `corpus_chrf` with their defaults, rouge_score's "rougeL" without stemming. BLEU and chrF
are figures of a corpus: the counts are added over all segments before any ratio is taken, so they are not the mean of
the scores of its segments. Wherever a reference stands, a sequence of references may stand, and the best one counts.
"""
import math
import re
from collections import Counter
from typing import NamedTuple


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
    for completion, texts in segments:
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
    for completion, texts in segments:
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

    Words are runs of a-z and 0-9 after lower-casing; all else, umlauts too, separates them, as in rouge_score.
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
    """Its length, for two lists of words. Row by row: row[j] belongs to the words of left so far and right[:j]."""
    row = [0] * (len(right) + 1)
    for word in left:
        above = row
        row = [0]
        for j, other in enumerate(right):
            row.append(above[j] + 1 if word == other else max(above[j + 1], row[j]))
    return row[-1]


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
