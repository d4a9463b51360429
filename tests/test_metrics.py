"""Metrics: equal to the reference packages on awkward cases, and to numbers worked out by hand.

The numbers of CASES are from sacrebleu 2.6.0, `corpus_bleu(...).score` (signature case:mixed|eff:no|tok:13a|smooth:exp)
and `corpus_chrf(...).score` (case:mixed|eff:yes|nc:6|nw:0|space:no), in percent, and from rouge_score 0.1.2,
`RougeScorer(["rougeL"], use_stemmer=False).score_multi(references, completion)["rougeL"].fmeasure`, to 10 digits.
"""
import math
import random

import pytest

from data.metrics import (
    SlotScore,
    corpus_bleu,
    corpus_chrf,
    corpus_slot_f1,
    exact_match,
    rouge_l,
    slot_f1,
)

CAT = "the cat sat on a mat"
CASES = {  # name: (completions, references of each, BLEU in percent, chrF in percent, ROUGE-L of each completion)
    "one word off": (["the cat sat on the mat"], [[CAT]], 53.72849659, 72.08483173, [0.8333333333]),
    "identical": ([CAT], [[CAT]], 100.0, 100.0, [1.0]),
    "nothing in common": (["xyz"], [[CAT]], 0.0, 0.0, [0.0]),
    "empty completion": ([""], [[CAT]], 0.0, 0.0, [0.0]),
    "empty one among others": (["", CAT], [[CAT], [CAT]], 36.78794412, 55.55555556, [0.0, 1.0]),
    "empty reference": ([CAT], [[""]], 0.0, 0.0, [0.0]),
    "three words, no 4-gram": (["the cat sat"], [["the cat sat"]], 0.0, 100.0, [1.0]),
    "four words, one order without a hit": (
        ["the cat sat on"], [["the cat sat in"]],
        59.46035575, 76.96368446, [0.75],
    ),
    "four words, three orders without a hit": (["a b c cat"], [["the cat sat in"]], 15.97357761, 12.4608032, [0.25]),
    "too short": (["the cat sat on"], [[CAT]], 60.65306597, 72.08507, [0.8]),
    "too long": ([CAT + " and then another mat"], [[CAT]], 51.6973154, 78.48221996, [0.75]),
    "repeated word": (
        ["the the the the the the the"], [["the cat is on the mat", "there is a cat on the mat"]],
        7.809849842, 14.23242685, [0.3076923077],
    ),
    "three references": (
        ["the quick fox jumps over a dog today"],
        [["a quick brown fox jumps over a lazy dog", "the fast fox leaps over the dog today",
          "today the quick fox jumps over one dog"]],
        76.52058833, 74.03854724, [0.75],
    ),
    "reference lengths 4 and 6 for 5": (
        ["a b c d e"], [["a b c d e f", "a b c d"]],
        100.0, 91.367713, [0.9090909091],
    ),
    "uneven numbers of references": (
        ["ein Hund läuft im Schnee .", "zwei Kinder spielen"],
        [["Ein Hund läuft durch den Schnee.", "Ein Hund rennt im Schnee."], ["Zwei Kinder spielen Ball."]],
        27.93599678, 65.89011281, [0.7692307692, 0.8571428571],
    ),
    "umlauts": (
        ["Die Mädchen grüßen über die Straße."], [["Zwei Mädchen grüßen fröhlich über die Straße."]],
        42.38365628, 63.96635263, [0.8],
    ),
    "numbers and punctuation": (
        ["Er sagt: \"1,000.5 sind 3-4 mehr!\" (laut U.S.-Quelle)"],
        [["Er sagt: \"1,000.5 sind 3 - 4 mehr\" (laut US-Quelle)."]],
        54.68017145, 82.29377959, [0.88],
    ),
    "entities and line ends": (
        ["Tom &amp; Jerry &lt;3 well-\nknown\nfilm a.b 5. <skipped> x"],
        [["Tom & Jerry <3 wellknown film a . b 5 . x"]],
        100.0, 58.79382783, [0.7272727273],
    ),
    "no Latin letters": (
        ["猫 坐 在 垫子 上 。", "кот сидит на коврике 🙂"], [["猫 在 垫子 上 坐 。"], ["кот сидел на ковре 🙂"]],
        22.57536692, 47.9755359, [0.0, 0.0],
    ),
    "odd spaces": (["the\u00a0cat \t sat\u2028on  a mat "], [[CAT]], 100.0, 100.0, [1.0]),
    "two useless references": (
        ["xyz", CAT], [["nothing is right here", "no"], [CAT]],
        96.21954582, 49.79648723, [0.0, 1.0],
    ),
    "reference of two letters": (["abcdefgh", CAT], [["ab"], [CAT]], 96.21954582, 98.03483698, [0.0, 1.0]),
    "two useless references, short one first": (
        ["xyz", CAT], [["no", "nothing is right here"], [CAT]],
        96.21954582, 96.56489783, [0.0, 1.0],
    ),
    "closest reference is the longer one": (
        ["a b c d e f g"], [["a b c d", "a b c d e f g h"]],
        86.68778998, 83.07482318, [0.9333333333],
    ),
    "apostrophes and hyphens stay": (
        ["it's a dog's tail-end, isn't it"], [["it ' s a dog ' s tail - end, isn't it"]],
        11.14789227, 100.0, [1.0],
    ),
    "marks at both ends": ([".5 is a half, not 5."], [[". 5 is a half , not 5 ."]], 100.0, 100.0, [1.0]),
    "dash at the line end": (["the film is well-\n"], [["the film is well-"]], 100.0, 100.0, [1.0]),
    "marks beside digits": (
        ["2,a a,2 2-a a-2 .5 5. 1..2 it's 3,4"], [["2 , a a , 2 2 - a a-2 . 5 5 . 1 . . 2 it's 3,4"]],
        100.0, 100.0, [1.0],
    ),
    "every mark": (
        ["a!b\"c#d$e%f&g(h)i*j+k/l:m;n<o=p>q?r@s[t\\u]v^w_x`y{z|A}B~C'D"],
        [["a ! b \" c # d $ e % f & g ( h ) i * j + k / l : m ; n < o = p > q ? r @ s [ t \\ u ] v"
          " ^ w _ x ` y { z | A } B ~ C'D"]],
        100.0, 100.0, [1.0],
    ),
    "capitals": (["The Cat Sat On A Mat"], [[CAT]], 0.0, 14.76190476, [1.0]),
}


@pytest.mark.parametrize("name", CASES)
def test_bleu_equals_sacrebleu(name):
    """corpus_bleu is sacrebleu's default BLEU, divided by 100."""
    completions, references, bleu, _, _ = CASES[name]
    assert corpus_bleu(completions, references) == pytest.approx(bleu / 100, rel=1e-8, abs=1e-12)


@pytest.mark.parametrize("name", CASES)
def test_chrf_equals_sacrebleu(name):
    """corpus_chrf is sacrebleu's default chrF2, divided by 100."""
    completions, references, _, chrf, _ = CASES[name]
    assert corpus_chrf(completions, references) == pytest.approx(chrf / 100, rel=1e-8, abs=1e-12)


@pytest.mark.parametrize("name", CASES)
def test_rouge_l_equals_rouge_score(name):
    """rouge_l is rouge_score's rougeL F1 without stemming, the best over the references."""
    completions, references, _, _, rouge = CASES[name]
    scores = [rouge_l(completion, several) for completion, several in zip(completions, references)]
    assert scores == pytest.approx(rouge, rel=1e-8, abs=1e-12)


def test_docstring_examples_by_hand():
    """The numbers the docstrings invite the reader to check."""
    assert corpus_bleu(["the cat sat on the mat"], [CAT]) == pytest.approx((5 / 6 * 3 / 5 * 2 / 4 * 1 / 3) ** (1 / 4))
    recall = (4 / 5 + 3 / 4 + 2 / 3 + 1 / 2) / 4
    assert corpus_chrf(["Hund"], ["Hunde"]) == pytest.approx(5 * recall / (4 + recall))
    assert rouge_l("the dog bit the man", "the man bit the dog") == pytest.approx(0.6)


def test_brevity_penalty_by_hand():
    """A perfect but short completion of 4 words for 6 gets exp(1 - 6/4); a longer one gets no bonus."""
    assert corpus_bleu(["the cat sat on"], [CAT]) == pytest.approx(math.exp(-0.5))
    assert corpus_bleu([CAT], ["the cat sat on"]) == pytest.approx((4 / 6 * 3 / 5 * 2 / 4 * 1 / 3) ** (1 / 4))


def test_one_reference_may_be_a_plain_string():
    """A str and a sequence of one str mean the same, for every metric that takes references."""
    completions, references = ["the cat", "a dog ran off"], ["the cat sat", "a dog ran"]
    wrapped = [(text,) for text in references]
    assert corpus_bleu(completions, references) == corpus_bleu(completions, wrapped) > 0
    assert corpus_chrf(completions, references) == corpus_chrf(completions, wrapped) > 0
    assert rouge_l(completions[0], references[0]) == rouge_l(completions[0], wrapped[0]) > 0
    assert exact_match("the  cat", "the cat") == exact_match("the  cat", ["a dog", "the cat"]) == 1.0


def test_corpus_metrics_ignore_the_order_of_segments_and_stay_in_range():
    """Counts are added up: shuffling the segments changes nothing, and identical texts give exactly 1."""
    draw = random.Random(0)
    texts = [" ".join(draw.choices(["ein", "Hund", "läuft", "schnell,", "2.5", "über"], k=draw.randint(1, 9)))
             for _ in range(40)]
    references = [" ".join(draw.sample(text.split(), len(text.split()))) for text in texts]
    order = draw.sample(range(40), 40)
    for metric in (corpus_bleu, corpus_chrf):
        score = metric(texts, references)
        assert 0.0 < score < 1.0
        assert metric([texts[i] for i in order], [references[i] for i in order]) == pytest.approx(score, rel=1e-12)
        assert metric(texts, texts) == 1.0


def test_longest_common_subsequence_against_brute_force():
    """rouge_l's L is the longest among all common subsequences, listed one by one."""
    draw = random.Random(1)
    for _ in range(50):
        left, right = (draw.choices("abc", k=draw.randint(1, 7)) for _ in range(2))

        def subsequences(words):
            return {tuple(word for i, word in enumerate(words) if chosen >> i & 1) for chosen in range(2 ** len(words))}

        longest = max(map(len, subsequences(left) & subsequences(right)))
        assert rouge_l(" ".join(left), " ".join(right)) == pytest.approx(2 * longest / (len(left) + len(right)))


def test_exact_match():
    """White space is normalised, nothing else."""
    assert exact_match(" a  b\n", "a b") == 1.0
    assert exact_match("ab", "a b") == exact_match("A b", "a b") == exact_match("a b.", "a b") == 0.0
    assert exact_match("", " ") == 1.0
    assert isinstance(exact_match("a", "a"), float)


def test_slot_f1_by_hand():
    """One of two found is right, three were to be found: precision 1/2, recall 1/3, F1 0.4."""
    score = slot_f1({"day": "Mon", "time": 3}, {"day": "Mon", "time": 4, "place": "cafe"})
    assert score == pytest.approx((0.4, 1 / 2, 1 / 3)) and (score.f1, score.precision, score.recall) == score


def test_slot_f1_limits():
    """Nothing found, nothing to find, both, and a slot name with a value that stands under another name."""
    assert slot_f1({}, {}) == SlotScore(f1=1.0, precision=1.0, recall=1.0)
    assert slot_f1({}, {"day": "Mon"}) == slot_f1({"day": "Mon"}, {}) == SlotScore(0.0, 0.0, 0.0)
    assert slot_f1({"day": "Mon"}, {"place": "Mon"}).f1 == 0.0
    assert slot_f1({}, {"day": None}) == SlotScore(0.0, 0.0, 0.0)  # an absent slot is not a slot with the value None


def test_corpus_slot_f1_adds_counts_before_dividing():
    """Micro average: 1 right of 1 found of 1, and 1 of 2 found of 4, give 2/3 and 2/5 together."""
    score = corpus_slot_f1([{"a": 1}, {"a": 1, "b": 0}], [{"a": 1}, {"a": 1, "b": 2, "c": 3, "d": 4}])
    assert score == pytest.approx((2 * 2 / (3 + 5), 2 / 3, 2 / 5))


def test_misuse_is_refused():
    """An empty corpus is the user's mistake; lists of unequal length or a bare string are the programmer's."""
    for metric in (corpus_bleu, corpus_chrf):
        with pytest.raises(ValueError, match="no completions to score"):
            metric([], [])
        with pytest.raises(AssertionError, match="1 completions for 2 references"):
            metric(["a"], ["a", "b"])
        with pytest.raises(AssertionError, match="not one text"):
            metric(["a", "b"], "ab")
    with pytest.raises(AssertionError, match="without a reference"):
        rouge_l("a", [])
    with pytest.raises(AssertionError, match="2 found dicts for 1"):
        corpus_slot_f1([{}, {}], [{}])
