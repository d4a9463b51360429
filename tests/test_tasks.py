"""Laws of data/tasks.py: splits, knobs, references that score 1, scorers that read the truth from the prompt alone."""

import functools
import json
import random
import re
from collections import Counter
from pathlib import Path

import pytest
import torch

from data import tasks
from data.metrics import METRICS, score_texts
from data.tasks import Draws, Example, encode_example, make_task, split_of, task_names
from sample import pad_sequences

FAMILY_CASES = {  # every synthetic family, math in both of its forms
    "math": ("math", {}),
    "stories": ("math", {"stories": True}),
    "translation": ("translation", {}),
    "summarisation": ("summarisation", {}),
    "instruction": ("instruction", {}),
    "mixed": ("mixed", {"difficulty": 4}),  # below, a chain may tell no mode
}
SMALL = {"train_examples": 200, "val_examples": 40, "test_examples": 60, "ood_examples": 60}
CASES = pytest.mark.parametrize("case", FAMILY_CASES)


@functools.cache  # tasks never change once built; most tests can share them
def build(case, **changes):
    name, options = FAMILY_CASES[case]
    return make_task(name, **{"seed": 1, **SMALL, **options, **changes})


def new_rng(seed):
    return Draws(torch.Generator().manual_seed(seed))


def score_text(task, prompt, completion):
    """The score with a reference that says nothing: it must come from the prompt."""
    return task.score(Example(prompt, "no reference"), completion)


# ---------------------------------------------------------------------------------------------------------- splits


@CASES
def test_no_prompt_is_in_two_splits_whatever_seed_size_and_difficulty(case):
    """Each prompt hashes to the one split that holds it, and occurs there once."""
    home = {}
    for changes in ({"seed": 1}, {"seed": 2, "val_examples": 90}, {"seed": 1, "difficulty": 3}):
        task = build(case, **changes)
        for split in task.splits:
            prompts = [example.prompt for example in task.examples(split)]
            assert len(prompts) == len(set(prompts)) == task.options[f"{split}_examples"]
            for prompt in prompts:
                assert split_of(prompt) == split
                assert home.setdefault(prompt, split) == split


@CASES
def test_first_examples_do_not_depend_on_sizes(case):
    """A smaller split is a prefix of a larger one, and no other split's size matters."""
    large, small = build(case), build(case, train_examples=40, val_examples=0, ood_examples=7)
    for split in large.splits:
        count = len(small.examples(split))
        assert small.examples(split) == large.examples(split)[:count]
    assert len(small.examples("train")) == 40 and small.examples("val") == []


@CASES
def test_same_seed_same_data_other_seed_other_data(case):
    """The data are a function of the seed; two seeds share few prompts."""
    first, again, other = build(case), build.__wrapped__(case), build(case, seed=2)
    for split in first.splits:
        assert first.examples(split) == again.examples(split)
        shared = {e.prompt for e in first.examples(split)} & {e.prompt for e in other.examples(split)}
        assert len(shared) < len(first.examples(split)) / 5


def test_too_few_prompts_are_counted_and_the_named_remedy_works():
    """One operation: 10 start digits x 26 operations = 260 prompts in all splits; the count in the error is usable."""
    with pytest.raises(ValueError, match="distinct train prompts.*train_examples") as caught:
        make_task("math", difficulty=1)
    available = int(re.search(r"has only (\d+) distinct", str(caught.value))[1])
    operations = [f"{sign}{n}" for sign in "+-*" for n in range(1, 10) if (sign, n) != ("*", 1)]
    prompts = [f"{start}{operation}=" for start in range(10) for operation in operations]
    assert len(prompts) == 260
    assert available == sum(split_of(prompt) == "train" for prompt in prompts)
    sizes = {"val_examples": 5, "test_examples": 5, "ood_examples": 5}
    task = make_task("math", difficulty=1, train_examples=available, **sizes)
    assert len(task.examples("train")) == available


# ------------------------------------------------------------------------------------------------------ references


@CASES
def test_every_reference_scores_one(case):
    """In every split, out of distribution included, alone and as a corpus; all shares of right answers are 1."""
    task = build(case)
    for split in task.splits:
        examples = task.examples(split)
        responses = [example.response for example in examples]
        assert all(task.score(example, example.response) == 1.0 for example in examples)
        assert task.corpus_score(examples, responses) == 1.0
        figures = task.details(examples, responses)
        right = {"final_answer", "whole_chain", "exact", "names", "bleu", "all_slots", "rouge_l", "parseable"}
        assert all(figures[name] == pytest.approx(1.0) for name in right & set(figures)), figures
        assert figures["mixed_share"] == 0.0


@CASES
def test_score_ignores_mode_and_surface_choices(case):
    """Whatever the style rng write for a prompt, easy or hard, is right, and differs between the modes."""
    task = build(case)
    respond, rng = task.family.respond, new_rng(5)
    for example in task.examples("test") + task.examples("ood"):
        for hard in (False, True):
            for entropy in (0.0, 1.0):
                text = respond(rng, example.prompt, hard, entropy)
                assert score_text(task, example.prompt, text) == 1.0
                assert task.family.mode(example.prompt, text) in ("hard" if hard else "easy", None)


@CASES
def test_responses_are_random_only_through_the_two_knobs(case):
    """entropy 0 and hard_share 0: one response per prompt; hard_share 1: all hard; the prompts never change."""
    plain, rich = build(case, entropy=0, hard_share=0), build(case, entropy=1, hard_share=1.0)
    for split in plain.splits:
        assert [e.prompt for e in plain.examples(split)] == [e.prompt for e in rich.examples(split)]
    for number, example in enumerate(plain.examples("train")):
        assert example.response == plain.family.respond(new_rng(number), example.prompt, False, 0.0)
    for task, share in ((plain, 0.0), (rich, 1.0)):
        examples = task.examples("train")
        figures = task.details(examples, [example.response for example in examples])
        assert (figures["hard_share"], figures["mixed_share"]) == (share, 0.0)
    fixed = {e.prompt: e.response for e in build(case, entropy=0, hard_share=1.0).examples("train")}
    assert sum(fixed[e.prompt] != e.response for e in rich.examples("train")) > 60


@CASES
def test_share_of_the_hard_mode(case):
    """2000 coins of .3: within 5 standard deviations, .051; a right generator fails with probability below 1e-6."""
    task = build(case, train_examples=2000, val_examples=0, test_examples=0, ood_examples=0)
    examples = task.examples("train")
    figures = task.details(examples, [example.response for example in examples])
    assert abs(figures["hard_share"] - 0.3) < 0.052  # .001 more for the few responses that show no mode
    assert figures["parseable"] > 0.99


def test_entropy_sets_the_share_of_the_first_choice():
    """P(first of 3) = 1 - e + e/3; 3000 draws, 5 standard deviations, false alarm below 1e-6; e = 0 and 1 are exact."""
    for entropy in (0.0, 0.3, 1.0):
        rng, expected = new_rng(3), 1 - entropy + entropy / 3
        draws = [rng.surface("abc", entropy) for _ in range(3000)]
        allowed = 5 * (expected * (1 - expected) / 3000) ** 0.5
        assert abs(draws.count("a") / 3000 - expected) <= allowed
        assert abs(draws.count("b") - draws.count("c")) <= 5 * (3000 * 2 * entropy / 3) ** 0.5


def test_dice_reach_both_ends_and_nothing_else():
    """integer(2, 5) takes exactly 2, 3, 4, 5, and blocks of uniforms do not repeat."""
    rng = new_rng(0)
    assert {rng.integer(2, 5) for _ in range(500)} == {2, 3, 4, 5}
    assert len({rng.uniform() for _ in range(9000)}) == 9000  # more than two blocks


# -------------------------------------------------------------------------------------------------- hostile completions


@CASES
def test_any_completion_gets_a_score_in_range(case):
    """Nothing, noise, halves, repeats, deep nesting and huge numbers neither raise nor leave 0..1."""
    task = build(case)
    examples = task.examples("test")[:6] + task.examples("ood")[:6]
    noise = random.Random(0)
    endless = ["9" * 5000 + "=" + "9" * 5000, "the dog that " * 1200]  # beyond the limits of int() and of recursion
    alphabet = "0123456789+-*~=;,|/<> abcthe\n.:éß٣\u0000"
    for example in examples:
        half = example.response[: len(example.response) // 2]
        completions = ["", " ", ";", "<", "=", "\ufffd", half, example.response * 2, example.prompt]
        completions += ["".join(noise.choice(alphabet) for _ in range(80)), *endless]
        for completion in completions:
            assert 0.0 <= task.score(example, completion) <= 1.0
        figures = task.details([example] * len(completions), completions)
        assert all(value is None or isinstance(value, float) and value >= 0 for value in figures.values())
        assert score_text(task, example.prompt, "") == 0.0
        assert score_text(task, example.prompt, "no idea") < 1.0


@CASES
def test_reference_is_never_read_by_the_score(case):
    """The same prompt with another reference gives the same score, for right and wrong completions."""
    task = build(case)
    first, second = task.examples("test")[:2]
    for completion in (first.response, second.response, first.response[:-2]):
        assert score_text(task, first.prompt, completion) == task.score(first, completion)
    assert task.score(first, second.response) < 1.0


# ------------------------------------------------------------------------------------------------------------ math


def test_math_by_hand():
    """3+4=7, 7-2=5, 5*3=15 -> 5; both modes, a mix, any separators and spaces; nothing wrong or missing passes."""
    task, prompt = build("math"), "3+4-2*3="
    right = ["3+4=7;7-2=5;5*3=5", "4+3=7;2~7=5;3*5=5", "3+4=7,2~7=5|5*3=5"]
    right += ["3 + 4 = 7; 7-2 = 5\n5*3=5;", "3+4=7 7-2=5 5*3=5"]
    wrong = ["3+4=7;7-2=5", "3+4=7;7-2=5;5*3=5;5+1=6", "3+4=7;2-7=5;5*3=5", "3+4=7;7~2=5;5*3=5"]
    wrong += ["3+4=7;7-2=5;5*3=15", "7-2=5;3+4=7;5*3=5", "5"]
    assert [score_text(task, prompt, text) for text in right] == [1.0] * len(right)
    assert [score_text(task, prompt, text) for text in wrong] == [0.0] * len(wrong)
    assert [task.family.mode(prompt, text) for text in right] == ["easy", "hard", "mixed", "easy", "easy"]


def test_math_details_by_hand():
    """7, 5, 0: first wrong steps 4 (none), 2, 3 (missing), 1: mean 2.5; 2 of 4 final answers; 1 of 3 modes hard."""
    task, example = build("math"), Example("3+4-2*2=", "")
    completions = ["4+3=7;2~7=5;2*5=0", "3+4=7;7-2=4;4*2=0", "3+4=7;7-2=5", "nonsense"]
    figures = task.details([example] * 4, completions)
    assert figures["first_wrong_step"] == 2.5
    assert (figures["final_answer"], figures["whole_chain"], figures["parseable"]) == (0.5, 0.25, 0.75)
    assert figures["hard_share"] == pytest.approx(1 / 3)


def test_stated_results_by_hand():
    """3+4=7, 7-2=5, 5*3=5: where a result stands, what is written, true as written, asked for, and right so far."""
    prompt = "3+4-2*3="
    for text, expected in {
        "3+4=7;7-2=5": [(4, 7, 7, 7, True), (10, 5, 5, 5, True)],
        "4+3=7|2~7=5,5*3=1": [(4, 7, 7, 7, True), (10, 5, 5, 5, True), (16, 1, 5, 5, True)],  # style and separators mix
        " 3 + 4 = 7; 7-2=6 6*3=8": [(9, 7, 7, 7, True), (16, 6, 5, 5, True), (22, 8, 8, 5, False)],
        "3+4=6;6-2=4": [(4, 6, 7, 7, True), (10, 4, 4, 5, False)],  # a wrong result before it
        "3+4=7;7-3=5": [(4, 7, 7, 7, True), (10, 5, 4, 5, False)],  # another operand
        "3+4=7;7~2=5": [(4, 7, 7, 7, True), (10, 5, 5, 5, False)],  # 2-7 is 5, too, but not what was asked for
        "3+4=7;7=2;5*3=5": [(4, 7, 7, 7, True), None, (14, 5, 5, 5, False)],  # no step, and wrong for what follows
        "3+4=7;7-2=": [(4, 7, 7, 7, True), None],
        "3+4=7;7-2=5;5*3=15;5*3=5": [(4, 7, 7, 7, True), (10, 5, 5, 5, True), (16, 15, 5, 5, True),
                                     (23, 5, 5, None, False)],  # one digit too many; one step too many
        "3+4": [None],
        "": [],
    }.items():  # fmt: skip
        found = tasks.stated_results(prompt, text)
        assert found == [None if one is None else tasks.StatedResult(*one) for one in expected], text
    taken_from = tasks.stated_results("7-1=", "1~7=6"), tasks.stated_results("7-1=", "7~1=6")  # 7-1, and 1-7
    assert taken_from == ([tasks.StatedResult(4, 6, 6, 6, True)], [tasks.StatedResult(4, 6, 4, 6, False)])


@pytest.mark.parametrize("case", ["math", "stories"])
def test_stated_results_of_references(case):
    """Each step of a reference states its result where it stands: written, true, asked for and right so far."""
    for example in build(case).examples("test")[:30]:
        steps, stated = tasks.math_steps(example.prompt), tasks.stated_results(example.prompt, example.response)
        assert [(one.written, one.true, one.asked, one.right_so_far) for one in stated] == [
            (step.result, step.result, step.result, True) for step in steps
        ]
        assert all(example.response[one.at :].startswith(str(one.written)) for one in stated)
        assert all(example.response[one.at - 1] == "=" for one in stated)


@pytest.mark.parametrize("case", ["math", "stories"])
def test_math_truth_against_plain_arithmetic(case):
    """The last result equals Python's own arithmetic, left to right; story values stay in 0..99 unwrapped."""
    task = build(case)
    signs = {"buys": "+", "finds": "+", "sells": "-", "loses": "-", "soon has": "*", "ends up with": "*"}
    for example in task.examples("test") + task.examples("ood"):
        if case == "math":
            value, parts = int(example.prompt[0]), re.findall(r"[-+*]\d", example.prompt)
        else:
            value = int(example.prompt.split()[2])
            found = re.findall(rf"({'|'.join(signs)}) (\d+)", example.prompt)
            parts = [signs[verb] + number for verb, number in found]
        for part in parts:
            value = eval(f"{value}{part}")
            assert case == "math" or 0 <= value <= 99
        assert example.response.endswith(f"={value % 10 if case == 'math' else value}")
        assert example.response.count("=") == len(parts)


@pytest.mark.parametrize("case", ["math", "stories"])
def test_math_any_wrong_digit_is_wrong(case):
    """Changing any one digit of any response gives 0, and the first wrong step is the changed one."""
    task = build(case)
    for example in task.examples("test")[:30]:
        for place, character in enumerate(example.response):
            if character.isdigit():
                changed = example.response[:place] + str((int(character) + 1) % 10) + example.response[place + 1 :]
                assert task.score(example, changed) == 0.0
                step = 1 + sum(example.response[:place].count(separator) for separator in tasks.STEP_SEPARATORS)
                assert tasks.first_wrong_step(example.prompt, changed) == step


def test_math_beyond():
    """1 to 3 operations more than in training; stories also hold one sentence that changes nothing."""
    for case in ("math", "stories"):
        task = build(case)
        lengths = {len(tasks.math_steps(example.prompt)) for example in task.examples("ood")}
        assert lengths == {6, 7, 8}
        assert {len(tasks.math_steps(example.prompt)) for example in task.examples("train")} == {5}
    beginnings = tuple(sentence.split("{}")[0] for sentence in tasks.DISTRACTORS)
    for split, expected in (("train", 0), ("ood", 1)):
        for example in task.examples(split):  # the stories
            assert sum(example.prompt.count(beginning) for beginning in beginnings) == expected


# ----------------------------------------------------------------------------------------------------- translation


def test_translation_by_hand():
    """Tara-SUBJECT sees-RELATIVE big-SUBJECT dog-SUBJECT Zoe-OBJECT helps; t -> w, a -> e, r -> t in names.

    Slots: verb, subject noun, subject adjective, subject verb, subject by name, object name: one wrong costs 1/6.
    """
    task, prompt = build("translation"), "Wetean mirri balan tovan Cuiek helis ->"
    for text in (
        "The big dog that Tara sees helps Zoe.",
        "The huge hound which Tara notices assists Zoe.",
        "Zoe is supported by the large dog that Tara spots",
    ):
        assert score_text(task, prompt, text) == 1.0
    for text in (
        "The big dog that Tara sees helps Ben.",
        "The old dog that Tara sees helps Zoe.",
        "The dog that Tara sees helps Zoe.",
    ):
        assert score_text(task, prompt, text) == pytest.approx(5 / 6)
    # one slot too many lengthens the list instead
    assert score_text(task, prompt, "The big dog that Tara sees helps Zoe again.") == pytest.approx(6 / 7)
    assert score_text(task, prompt, "Zoe helps the big dog that Tara sees.") < 0.5
    assert task.family.mode(prompt, "Zoe is helped by the dog.") == "hard"


def test_translation_every_content_word_counts():
    """Dropping any word but an article, or replacing it by a word of another meaning, scores below 1."""
    task = build("translation")
    for example in task.examples("test")[:40]:
        words = example.response.rstrip(".").split()
        for place, word in enumerate(words):
            if word.lower() != "the":
                for changed in (words[:place] + words[place + 1 :], words[:place] + ["cat"] + words[place + 1 :]):
                    assert task.score(example, " ".join(changed)) < 1.0


def test_translation_vocabulary_is_unambiguous():
    """No English word has two meanings, no stem two uses, the cipher is a bijection, no name is a common word."""
    synonyms = [word for table in (tasks.NOUNS, tasks.ADJECTIVES) for words in table.values() for word in words]
    synonyms += [form for forms in tasks.VERBS.values() for pair in forms for form in pair]
    assert len(synonyms) == len(set(synonyms))
    stems = [*tasks.NOUNS, *tasks.ADJECTIVES, *tasks.VERBS]
    assert len(stems) == len(set(stems))
    assert sorted(tasks.LETTERS) == sorted(tasks.CIPHER) == sorted("abcdefghijklmnopqrstuvwxyz")
    names = {name.lower() for name in tasks.NAMES + tasks.UNSEEN_NAMES}
    assert len(names) == len(tasks.NAMES) + len(tasks.UNSEEN_NAMES) and not names & tasks.NOT_NAMES


def test_translation_beyond():
    """Out of distribution: more nested clauses than training has, and only names that training never has."""
    task = build("translation")
    unseen = {name.lower() for name in tasks.UNSEEN_NAMES}

    def depth_and_names(prompt):
        slots = tasks.read_source(prompt)
        return max(slot.count("by ") for slot in slots), {v for slot, v in slots.items() if slot.endswith("name")}

    for example in task.examples("train"):
        depth, names = depth_and_names(example.prompt)
        assert depth == 1 and not names & unseen
    for example in task.examples("ood"):
        depth, names = depth_and_names(example.prompt)
        assert depth in (2, 3) and names <= unseen


# --------------------------------------------------------------------------------------------------- summarisation

DIALOGUE = """Ada: Let us meet on Monday at 3 pm at the park.
Ben: Work is busy. How about on Friday instead?
Ben: Sorry, I meant on Sunday.
Ada: Fine with me.
Ben: I can only come at 9 am.
Ada: I would rather not.
Ada: Could we make it at the cafe?
Ben: Yes, that works.
Ada: See you then.
Summary:
"""


def test_summarisation_by_hand():
    """Corrected and accepted: Sunday; refused: 9 am; accepted: the cafe. One of 4 slots wrong: P = R = F1 = 3/4."""
    task = build("summarisation")
    assert score_text(task, DIALOGUE, "Ben meets Ada at 3 pm in the cafe, Sunday!") == 1.0
    for text in ("Ada and Ben meet on Friday at 3 pm at the cafe.", "Ada and Ben meet on Sunday at 9 am at the cafe."):
        assert score_text(task, DIALOGUE, text) == 0.75
    # naming both days is not a way to be right
    assert score_text(task, DIALOGUE, "Ada and Ben meet on Sunday or Tuesday at 3 pm at the cafe.") == 0.75
    assert score_text(task, DIALOGUE, "Ada and Ben meet on Sunday at 3 pm.") == pytest.approx(2 * 1 * 0.75 / 1.75)


def test_summarisation_every_slot_counts():
    """Replacing any one value or name by another of its kind scores 3/4."""
    task = build("summarisation")
    for example in task.examples("test")[:20] + task.examples("ood")[:20]:
        for values in (*tasks.SLOT_VALUES.values(), tasks.NAMES):
            present = [value for value in values if re.search(rf"\b{value}\b", example.response)]
            other = next(value for value in values if value not in example.prompt + example.response)
            changed = re.sub(rf"\b{present[0]}\b", other, example.response)
            assert task.score(example, changed) == 0.75


def test_summarisation_beyond():
    """One proposal more than training ever has, the last one refused; in training the last one is accepted."""
    task = build("summarisation")
    counts = set()
    for split in ("train", "ood"):
        for example in task.examples(split):
            texts = [line.split(": ", 1)[1] for line in example.prompt.splitlines()[:-1]]
            verdicts = [text for text in texts if text in tasks.ACCEPTANCES + tasks.REFUSALS]
            proposals = sum(any(mark in text for mark in ("How about", "only come", "make it")) for text in texts)
            if split == "ood":
                assert proposals == 3 and verdicts[-1] in tasks.REFUSALS
            else:
                counts.add(proposals)
                assert verdicts[-1] in tasks.ACCEPTANCES
    assert counts == {0, 1, 2}


def test_summarisation_proposals_change_something():
    """Nobody proposes what is agreed already, and a correction differs from what it corrects."""
    task = build("summarisation", difficulty=6, train_examples=200, val_examples=0, test_examples=0)
    for example in task.examples("train"):
        lines = example.prompt.splitlines()
        for number, line in enumerate(lines[1:], 1):
            values = tasks.VALUE_PATTERN.findall(line)
            before = "\n".join(lines[:number] + [f"{lines[1].split(':')[0]}: "])  # the state when this line is said
            assert not set(values) & set(tasks.read_dialogue(before).values())
            assert "meant" not in line or values != tasks.VALUE_PATTERN.findall(lines[number - 1])


# ----------------------------------------------------------------------------------------------------- instruction


def test_instruction_by_hand():
    """e h d d doubled, then reversed; spaces, commas, separators and direction are free; the final list decides."""
    task, prompt = build("instruction"), "Take e h d d: double each, then reverse.\n"
    chain = ["eehhdddd", "ddddhhee"]
    assert tasks.instruction_lists(prompt) == chain
    both_ways = ["e e h h d d d d; d d d d h h e e", "< d d d d h h e e / < e e h h d d d d"]
    for text in (*both_ways, "eehhdddd|ddddhhee", "d,d,d,d,h,h,e,e"):
        assert score_text(task, prompt, text) == 1.0
    for text in ("e e h h d d d d", "e e h h d d d d; d d d d h h e", "< e e h h d d d d; < d d d d h h e e"):
        assert score_text(task, prompt, text) == 0.0
    examples = [Example(prompt, "")] * 4
    figures = task.details(examples, ["eehhdddd; ddddhhee", "ddddhhee", "eehhdddd; < eehhdddd", "e 1; ddddhhee"])
    assert (figures["whole_chain"], figures["mixed_share"], figures["parseable"]) == (0.5, pytest.approx(1 / 3), 0.75)


def test_instruction_operators_by_hand():
    """What each operator does to c a a b z, in both of its phrasings and behind every opener and joiner."""
    results = {
        "double": "ccaaaabbzz", "reverse": "zbaac", "drop_first": "aabz", "drop_last": "caab", "swap": "acabz",
        "rotate": "aabzc", "sort": "aabcz", "unique": "cabz", "next": "dbbca",
    }
    assert set(results) == set(tasks.OPERATORS)
    for name, result in results.items():
        for phrase in tasks.OPERATORS[name][0]:
            for opener in tasks.TASK_OPENERS:
                for joiner in tasks.JOINERS:
                    prompt = opener.format("c a a b z", joiner.join([phrase, "reverse"]))
                    assert tasks.instruction_lists(prompt) == [result, result[::-1]]


def test_instruction_every_letter_of_the_final_list_counts():
    """A wrong letter in the last list scores 0; one before it leaves the score but not the chain."""
    task = build("instruction")
    for example in task.examples("test")[:30]:
        for place, character in enumerate(example.response):
            if character.isalpha():
                changed = example.response[:place] + "y" + example.response[place + 1 :]
                in_last = not any(separator.strip() in example.response[place:] for separator in tasks.LIST_SEPARATORS)
                assert task.score(example, changed) == (0.0 if in_last else 1.0)
                assert task.details([example], [changed])["whole_chain"] == 0.0


def test_instruction_beyond():
    """Training has no unseen pair; beyond, either one with as many operators, or two operators more without."""
    task, kinds = build("instruction", difficulty=2), set()
    for split in ("train", "val", "test", "ood"):
        for example in task.examples(split):
            names = [tasks.OPERATOR_OF[phrase] for phrase in tasks.OPERATOR_PATTERN.findall(example.prompt)]
            kind = len(names), sum(pair in tasks.UNSEEN_PAIRS for pair in zip(names, names[1:]))
            assert split == "ood" or kind == (2, 0)
            kinds.add(kind)
            rows = ["".join(tasks.LIST_PATTERN.search(example.prompt)[0].split())]
            rows += tasks.instruction_lists(example.prompt)
            assert all(2 <= len(row) <= tasks.MAX_LETTERS for row in rows)
            assert all(row != after for row, after in zip(rows, rows[1:]))  # no step can be copied
    assert kinds == {(2, 0), (2, 1), (4, 0)}
    # every operator is still trained on in first and in second place
    seen = {(a, b) for a in tasks.OPERATORS for b in tasks.OPERATORS} - tasks.UNSEEN_PAIRS
    assert {a for a, _ in seen} == {b for _, b in seen} == set(tasks.OPERATORS)


@CASES
def test_difficulty_is_the_size_of_the_problem(case):
    """Harder settings build, their references are right, and their prompts are longer on average."""
    lengths = []
    for difficulty in (2, 4, 6):
        sizes = {"train_examples": 60, "val_examples": 10, "test_examples": 10, "ood_examples": 20}
        task = build(case, difficulty=difficulty, **sizes)
        for split in task.splits:
            assert all(task.score(example, example.response) == 1.0 for example in task.examples(split))
        lengths.append(sum(len(example.prompt) for example in task.examples("train")))
    assert lengths == sorted(lengths) and lengths[0] < 0.8 * lengths[-1]


# ------------------------------------------------------------------------------------------------- make_task, real sets


def test_wrong_use_is_named_in_one_line():
    """Unknown names list the known ones, unknown knobs the valid ones, bad values their range."""
    for arguments, words in (
        (({"name": "maths"}), ["'maths'", "math", "instruction"]),
        (({"name": "math", "difficult": 3}), ["'difficult'", "difficulty", "hard_share", "stories"]),
        (({"name": "translation", "stories": True}), ["'stories'", "entropy"]),
        (({"name": "jsonl", "entropy": 0.5}), ["'entropy'", "cache_dir"]),
        (({"name": "math", "entropy": 1.5}), ["entropy", "0..1", "1.5"]),
        (({"name": "math", "hard_share": "much"}), ["hard_share", "'much'"]),
        (({"name": "math", "hard_share": float("nan")}), ["hard_share", "nan"]),
        (({"name": "math", "difficulty": 0}), ["difficulty", "at least 1"]),
        (({"name": "math", "difficulty": True}), ["whole number", "True"]),
        (({"name": "math", "train_examples": 2.5}), ["train_examples", "2.5"]),
        (({"name": "math", "stories": 1}), ["stories", "True or False"]),
    ):
        with pytest.raises(ValueError) as caught:
            make_task(**arguments)
        message = str(caught.value)
        assert all(word in message for word in words) and "\n" not in message, message
    with pytest.raises(ValueError, match="train, val, test, ood"):
        build("math").examples("validation")


def test_mixed_is_half_math_and_half_translation():
    """Each prompt is one of either family, is scored by it, and says which it is; other tasks have one part."""
    task, math, translation = build("mixed"), build("math"), build("translation")
    parts = {name: [example for example in task.examples("train") if task.part(example) == name]
             for name in ("math", "translation")}
    assert min(map(len, parts.values())) > 70 and sum(map(len, parts.values())) == 200
    for name, family in (("math", math), ("translation", translation)):
        for example in parts[name]:
            assert family.score(example, example.response) == task.score(example, example.response) == 1
    one = parts["math"][0], parts["translation"][0]
    assert [task.score(example, one[1].response) for example in one] == [0, 1]
    found = task.details([*parts["math"], *parts["translation"]], [example.response for example in parts["math"]]
                         + [""] * len(parts["translation"]))
    assert found["math"] == 1 and found["translation"] == 0
    assert {math.part(example) for example in math.examples("test")} == {"math"}


def test_task_names_and_defaults():
    """Families and real sets share one table without a clash; the defaults are the documented ones."""
    assert task_names() == [*tasks.FAMILIES, *tasks.CORPORA]
    assert len(set(task_names())) == len(tasks.FAMILIES) + len(tasks.CORPORA)
    task = make_task("math")
    assert [len(task.examples(split)) for split in ("train", "val", "test", "ood")] == [4000, 200, 500, 200]
    assert (task.name, task.options["difficulty"], task.options["hard_share"]) == ("math", 5, 0.3)
    assert task.texts()[:2] == [task.examples("train")[0].prompt, task.examples("train")[0].response]
    assert len(task.texts()) == 8000


def test_own_data_from_a_folder(tmp_path: Path):
    """A folder with three JSONL files becomes a task with the same surface; no file is a one-line error."""
    for split, count in (("train", 20), ("val", 5), ("test", 5)):
        rows = [{"prompt": f"{split} {number}:", "response": f"answer {number} here"} for number in range(count)]
        (tmp_path / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    task = make_task("jsonl", data_dir=tmp_path, download=False)
    assert {split: len(task.examples(split)) for split in task.splits} == {"train": 20, "val": 5, "test": 5, "ood": 0}
    examples = task.examples("test")
    responses = [example.response for example in examples]
    assert task.corpus_score(examples, responses) == task.score(examples[0], responses[0]) == pytest.approx(1.0)
    assert task.corpus_score(examples, ["wrong"] * 5) == 0.0
    assert all(0.0 <= value <= 1.0 for value in task.details(examples, responses).values())
    assert len(task.texts()) == 40
    with pytest.raises((ValueError, OSError)):
        make_task("jsonl", data_dir=tmp_path / "nowhere", download=False)


def own_task(folder, responses, **options):
    """A task of own data whose val and test splits have these responses."""
    for split in ("train", "val", "test"):
        rows = [{"prompt": f"{split} {number}:", "response": response} for number, response in enumerate(responses)]
        (folder / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    return make_task("jsonl", data_dir=folder, download=False, **options)


@pytest.mark.parametrize("responses,metric", [
    (["yes", "no", "-7", "7"] * 5, "exact match"),
    ([f"Столица страны {'абвгд'[i % 5]} стоит на большой реке" for i in range(20)], "chrF"),
    ([f"They will meet on day {i} and talk about the plan." for i in range(20)], "ROUGE-L"),
])  # fmt: skip
def test_own_data_is_scored_by_what_sees_it(tmp_path, responses, metric):
    """Right answers score 1 whatever they are written in; a line says which metric, why and which flag."""
    task = own_task(tmp_path, responses)
    examples = task.examples("test")
    responses = [example.response for example in examples]  # in the task's order
    others = responses[1:] + responses[:1]
    assert (task.metric, task.metric_warnings) == (metric, [])
    assert task.metric_note.startswith(f"score: {metric}, since ") and "--metric" in task.metric_note
    assert "\n" not in task.metric_note
    assert task.corpus_score(examples, responses) == 1.0 > task.corpus_score(examples, others)
    assert [task.score(example, text) for example, text in zip(examples, responses)] == [1.0] * len(responses)
    details = task.details(examples, responses)
    assert details.keys() == METRICS.keys() and details[task.chosen] == 1.0
    assert task.details(examples, others)[task.chosen] == task.corpus_score(examples, others)


def test_the_metric_can_be_asked_for(tmp_path):
    """Every name of METRICS scores own data; a blind one says so, and so does one that a constant answer satisfies."""
    responses = ["7", "-7", "x > y", "x < y"] * 5
    for name, row in METRICS.items():
        task = own_task(tmp_path, responses, metric=name)
        assert (task.metric, task.metric_note) == (row.title, None)
        right = [example.response for example in task.examples("test")]
        assert task.corpus_score(task.examples("test"), right) == score_texts(name, right, right)
    wrong = {"7": "-7", "-7": "7", "x > y": "x < y", "x < y": "x > y"}
    blind = own_task(tmp_path, responses, metric="rouge_l")
    examples = blind.examples("test")
    assert blind.corpus_score(examples, [wrong[example.response] for example in examples]) == 1.0
    assert any("2 of 4 different references" in line for line in blind.metric_warnings)
    assert "right in all 20 examples" in own_task(tmp_path, ["positive"] * 20).metric_warnings[0]
    for metric in ("ROUGE", "", 3, ["bleu"]):
        with pytest.raises(ValueError, match="metric must be one of exact_match, rouge_l, chrf, bleu, token_accuracy"):
            make_task("jsonl", data_dir=tmp_path, metric=metric)
    with pytest.raises(ValueError, match="task math has no option 'metric'"):
        make_task("math", metric="bleu")


def test_a_set_with_a_score_takes_another_as_its_headline(monkeypatch):
    """--metric on a corpus: the score is that metric's, all are recorded, and what the set goes by as own_score."""
    splits = {"train": [Example("a?", "b")], "val": [], "test": [Example("d", "Says hi.", ("Says hi.", "Greets."))] * 2}
    monkeypatch.setattr(tasks, "load_corpus", lambda name, **options: splits)
    usual, task = make_task("dialogsum"), make_task("dialogsum", metric="exact_match")
    test, texts = task.examples("test"), ["Greets.", "says hi"]
    assert (usual.metric, usual.corpus_score(test, texts)) == (tasks.CORPORA["dialogsum"].metric, 1.0)
    assert usual.details(test, texts) == tasks.CORPORA["dialogsum"].details(test, texts) and not usual.metric_warnings
    assert (task.metric, task.corpus_score(test, texts), task.score(test[0], "Greets.")) == ("exact match", 0.5, 1.0)
    details = task.details(test, texts)
    assert details.keys() == METRICS.keys() | {"own_score"} and details["own_score"] == 1.0


def test_shares_of_nothing_are_none():
    """Where no completion can be read there is no share of hard ones among them, rather than one of 0."""
    task = build("math")
    details = task.details(task.examples("test")[:2], ["?", "?"])
    assert (details["parseable"], details["hard_share"], details["mixed_share"]) == (0.0, None, None)
    assert tasks.mean([]) is None and tasks.mean(iter([1, 0])) == 0.5


def test_no_file_decides_by_its_order_who_is_chosen(tmp_path: Path):
    """A file sorted by label, reversed or shuffled gives the same examples in the same order, and any 500 of 2,000
    hold both labels about equally often; so do the first of the splits that are carved from it."""
    rows = [json.dumps({"prompt": f"{i} good or bad?", "response": "good" if i < 1000 else "bad"}) for i in range(2000)]
    orders = (rows, rows[::-1], random.Random(0).sample(rows, len(rows)))
    found = []
    for lines in orders:
        (tmp_path / "train.jsonl").write_text("\n".join(lines))
        task = make_task("jsonl", data_dir=tmp_path)
        found.append([task.examples(split) for split in ("train", "val", "test")])
    assert found[0] == found[1] == found[2]
    train, val, test = ([example.response for example in examples] for examples in found[0])
    for labels, most, slack in ((train, 500, 70), (train, 100, 30), (val, 100, 30), (test, 100, 30)):  # 6 sigma
        assert abs(labels[:most].count("good") - most / 2) < slack


def test_repeats_are_chosen_apart():
    """3,000 lines of which 3 are different: a sample of 300 holds each about 100 times, not one of them 300 times."""
    rows = [Example(letter, "x") for letter in "abc" for _ in range(1000)]
    order = tasks.in_random_order(rows)
    assert sorted(order) == sorted(rows)
    assert all(60 < count < 140 for count in Counter(order[:300]).values()) and len(set(order[:300])) == 3


def test_a_made_task_keeps_its_order():
    """Its examples were drawn in random order: the numbers of a study with 500 prompts stay what they are."""
    task = make_task("math", train_examples=30, val_examples=2, test_examples=2, ood_examples=2)
    assert [example.prompt for example in task.examples("train")[:2]] == ["3-7-3*6-9*8=", "8+7+9*9+8-8="]
    assert task.examples("train") == task.build("train", 30)


def test_a_real_set_brings_its_own_scores(monkeypatch):
    """A corpus task asks its row for every figure: the corpus metric need not be the mean of the example scores."""
    row = next(iter(tasks.CORPORA.values()))._replace(
        metric="share of commas",
        score=lambda example, completion: 0.25,
        corpus_score=lambda examples, completions: 0.75,
        details=lambda examples, completions: {"count": float(len(completions))},
    )
    splits = {"train": [Example("a?", "b")], "val": [], "test": [Example("c?", "d", ("d", "e"))]}
    calls = []

    def load(name, **options):
        calls.append((name, options))
        return splits

    monkeypatch.setitem(tasks.CORPORA, "stub", row)
    monkeypatch.setitem(tasks.TASKS, "stub", row)
    monkeypatch.setattr(tasks, "load_corpus", load)
    task = make_task("stub", data_dir="somewhere", cache_dir="elsewhere")
    assert [name for name, _ in calls] == ["stub"] and callable(calls[0][1].pop("say"))
    assert calls[0][1] == {"data_dir": "somewhere", "cache_dir": "elsewhere", "download": True}
    test = task.examples("test")
    assert (task.metric, task.score(test[0], "x"), task.corpus_score(test, ["x"])) == ("share of commas", 0.25, 0.75)
    assert task.details(test, ["x"]) == {"count": 1.0} and task.examples("ood") == []
    with pytest.raises(AssertionError):
        task.corpus_score(test, ["x", "y"])


# ------------------------------------------------------------------------------------------------------- to tokens


class LetterTokenizer:
    """One id per character, and an end token."""

    eos_token = 999

    def encode(self, text):
        return [ord(character) for character in text]


def test_encode_example_ends_the_response_only():
    """Prompt and response are encoded apart; the response alone ends with eos."""
    assert encode_example(LetterTokenizer(), Example("ab", "c")) == ([97, 98], [99, 999])


def test_pad_sequences():
    """Right-padded with 0, lengths exact, ids that are 0 kept, an empty row allowed, nothing to pad refused."""
    tokens, lengths = pad_sequences([[5, 0, 7], [], [1]])
    assert tokens.tolist() == [[5, 0, 7], [0, 0, 0], [1, 0, 0]] and lengths.tolist() == [3, 0, 1]
    assert tokens.dtype == lengths.dtype == torch.long
    rows = [list(range(1, n + 1)) for n in (4, 9, 1)]
    tokens, lengths = pad_sequences(rows, device="cpu")
    assert [tokens[row, : lengths[row]].tolist() for row in range(3)] == rows
    assert int((tokens != 0).sum()) == int(lengths.sum())
    with pytest.raises(AssertionError):
        pad_sequences([])
