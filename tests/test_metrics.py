"""Metrics: equal to the reference packages on awkward cases, and to numbers worked out by hand.

The numbers of CASES are from sacrebleu 2.6.0, `corpus_bleu(...).score` (signature case:mixed|eff:no|tok:13a|smooth:exp)
and `corpus_chrf(...).score` (case:mixed|eff:yes|nc:6|nw:0|space:no), in percent, and from rouge_score 0.1.2,
`RougeScorer(["rougeL"], use_stemmer=False).score_multi(references, completion)["rougeL"].fmeasure`, to 10 digits.
"""
import math
import random

import pytest

from data.metrics import (
    METRICS,
    SlotScore,
    choose_metric,
    corpus_bleu,
    corpus_chrf,
    corpus_slot_f1,
    exact_match,
    metric_warnings,
    rouge_l,
    same_text,
    score_texts,
    slot_f1,
    token_accuracy,
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


# ------------------------------------------------------------------------------------------------- metrics of own data

# What people bring: name: (references, the metric that is chosen, a word of its reason)
ANSWERS = {
    "yes and no": (["yes", "no", "no"] * 9, "exact_match", "at most 3 words"),
    "numbers with signs and commas": (["7", "-7", "1,234.50", "-1,234.50", "192.168.0.1"], "exact_match", "5 of 5"),
    "comparisons": (["x > y", "x < y", "x = 1"], "exact_match", "3 words"),
    "emoji": (["👍", "👎🏽"] * 5, "exact_match", "10 of 10"),
    "names in Han": (["东京", "爱因斯坦"], "exact_match", "2 of 2"),
    "Han without blanks": ([f"东京是日本的首都, 人口很多{i}" for i in range(9)], "chrf", "ROUGE sees"),
    "Russian": (["Столица страны, большой город на реке", "Он родился в деревне около моря"], "chrf", "2 of 2"),
    "Russian with digits": ([f"Он родился в {1900 + i} году в деревне около моря" for i in range(9)], "chrf", "11 %"),
    "Python": (
        [f"def add_{i}(a, b):\n    if a is None:\n        return b\n    return a + b" for i in range(9)],
        "chrf", "82 %",
    ),
    "a sign in a sentence": ([f"The answer to this is {i}" for i in range(-20, 20)], "chrf", "19 of 40"),
    "English": ([f"They will meet on day {i} and talk about the plan." for i in range(9)], "rouge_l", "9 of 9"),
    "German": ([f"Alle Menschen sind frei und gleich an Würde, Nummer {i}." for i in range(9)], "rouge_l", "longer"),
    "one emoji among English": (["They will meet and talk about it."] * 30 + ["👍"] * 2, "chrf", "2 of 32"),
}


@pytest.mark.parametrize("name", ANSWERS)
def test_the_chosen_metric_sees_what_own_data_says(name):
    """Right answers score 1, all others less, each alone and all together; nothing is left to warn of."""
    references, wanted, word = ANSWERS[name]
    chosen, why = choose_metric(references)
    assert (chosen, word in why) == (wanted, True), f"{chosen}, since {why}"
    assert metric_warnings(chosen, references) == [] and "\n" not in why
    assert score_texts(chosen, references, references) == 1.0
    other = next(text for text in references if text != references[0])
    assert METRICS[chosen].score(references[0], references[0]) == 1.0 > METRICS[chosen].score(other, references[0])
    assert score_texts(chosen, [other, *references[1:]], references) < 1.0


def test_rouge_is_blind_and_no_headline_of_what_it_does_not_see():
    """The cases that were met: 300 right Cyrillic answers at 0, a sign and a comparison that nobody missed."""
    cyrillic = [f"Столица страны {'абвгде'[i % 6]}, город на реке" for i in range(300)]
    assert score_texts("rouge_l", cyrillic, cyrillic) == 0.0
    assert score_texts(choose_metric(cyrillic)[0], cyrillic, cyrillic) == 1.0
    for one, other in (("7", "-7"), ("x > y", "x < y")):
        assert rouge_l(one, other) == 1.0  # rouge_score's value, which papers quote
        assert METRICS[choose_metric([one, other])[0]].score(one, other) == 0.0


@pytest.mark.parametrize("metric,references,words", [
    ("rouge_l", ["у моря", "They meet today"], ["1 of 2 references score below 1 against themselves"]),
    ("rouge_l", [f"Он родился в {1900 + i} году" for i in range(9)], ["ROUGE-L sees 22 % of the references'"]),
    ("rouge_l", [f"the answer is {i}" for i in range(-9, 10)], ["takes 9 of 19 different references for another"]),
    ("rouge_l", ["she says x > y today", "she says x < y today"], ["one and the same answer is right in all 2"]),
    ("bleu", ["two words", "these are four words", "of five words this is"], ["1 of 3 references", "1", "BLEU"]),
    ("chrf", ["a = [1, 2]", "a = [1,2]", "a=[1, 2]"], ["right in all 3 examples, as far as chrF sees"]),
    ("exact_match", ["positive"] * 40, ["right in all 40 examples"]),
    ("token_accuracy", [("yes", "no"), ("no", "never"), "no"], ["right in all 3 examples"]),
])  # fmt: skip
def test_a_metric_that_cannot_tell_is_told_of(metric, references, words):
    """One line each, with how many of how many."""
    (line,) = metric_warnings(metric, references)
    assert all(word in line for word in words) and "\n" not in line, line


def test_no_warning_without_a_reason():
    """Capitals and full stops that make no difference to ROUGE are none; one example alone has the answer it has."""
    many = ["They meet.", "they  meet", "We do not."] + [f"We talk of {i}." for i in range(150)]
    assert metric_warnings("rouge_l", many) == [] == metric_warnings("exact_match", ["yes"])
    assert metric_warnings("exact_match", [("a", "b"), ("b", "c"), ("c", "a")]) == []


def random_text(draw):
    return "".join(draw.choices("ab1-> \n\u00e9\u0436\u4eac\u0e01\u0e31\U0001f44d_", k=draw.randint(0, 12)))


@pytest.mark.parametrize("name", METRICS)
def test_what_a_metric_sees_is_all_that_it_knows(name):
    """A text scores 1 against itself exactly if enough of it is seen; texts that look the same score the same; 0..1."""
    draw, row = random.Random(name), METRICS[name]
    texts = [random_text(draw) for _ in range(60)] + ["", "one two three four", "four short words, here"]
    for text in texts:
        assert row.score(text, text) == (1.0 if len(row.sees(text)) >= row.least else 0.0), text
    for one, other in zip(texts, texts[1:]):
        assert 0.0 <= row.score(one, other) <= 1.0
        assert row.score(one, (other, one)) == row.score(one, one) or row.score(one, one) == 0.0
        if row.sees(one) == row.sees(other):
            assert row.score(one, other) == row.score(one, one)
    assert score_texts(name, ["four words are here"], [("no", "four words are here")]) == 1.0
    with pytest.raises(ValueError, match="no completions to score"):
        score_texts(name, [], [])


def test_token_accuracy_by_hand():
    """Places with the same token over the places of the longer text; every sign and every Han character is a token."""
    assert token_accuracy("a - 3", "a + 3 b") == 2 / 4
    assert token_accuracy("-1,234.5", "1,234.5") == 0.0 and token_accuracy("1,234.5", "1,235.5") == 4 / 5
    assert token_accuracy("东京很大", "东京很小。") == 3 / 5
    assert token_accuracy("да нет", "да да") == 1 / 2 and token_accuracy("I_WALK now", "I_WALK") == 1 / 2
    assert token_accuracy("b c", ("a b c", "b d")) == 1 / 2
    assert token_accuracy("", "") == token_accuracy(" ", "\n") == 1.0
    assert token_accuracy("", "a") == token_accuracy("a", "") == 0.0


def test_the_same_text_is_the_same_code():
    """Blanks and line ends within a text and before it count, those behind it and the form of an accent do not."""
    assert same_text("    x = 1", "x = 1") == same_text("a\n  b", "a\nb") == same_text("A", "a") == 0.0
    assert same_text("x = 1\n", "x = 1") == same_text("caf\u00e9", "cafe\u0301") == same_text("b", ["a", "b"]) == 1.0


def test_a_mean_is_one_of_scores_and_a_corpus_is_counted_as_one():
    """BLEU and chrF of own data are figures of the corpus, as in the packages; the others are means."""
    completions, references = ["the cat sat on the mat", "no"], [[CAT], ["yes", "no"]]
    assert score_texts("bleu", completions, references) == corpus_bleu(completions, references)
    assert score_texts("chrf", completions, references) == corpus_chrf(completions, references)
    assert score_texts("rouge_l", completions, references) == pytest.approx((5 / 6 + 1) / 2)
    assert score_texts("token_accuracy", completions, references) == pytest.approx((5 / 6 + 1) / 2)
    assert score_texts("exact_match", completions, references) == 0.5


def test_long_texts_are_compared_in_time():
    """A subsequence of two texts of 10,000 words takes thousands of steps, not a hundred million."""
    long = " ".join(str(i % 97) for i in range(10_000))
    assert rouge_l(long, long) == 1.0 and rouge_l(long + " x", long) == pytest.approx(20_000 / 20_001)
