"""Tasks: where prompts and reference responses come from, and how a completion is scored. Knows no model.

Four synthetic families mirror the papers' tasks, a fifth mixes two of them; real data sets come from `data.corpora`.

    make_prompt(rng, options, ood) -> prompt          draws a prompt; `ood` asks for one out of distribution
    respond(rng, prompt, hard, entropy) -> text   writes ONE right response; `hard` picks the harder of two modes
    score(prompt, completion) -> 0..1              derives the truth from the prompt, accepts every right phrasing
    mode(prompt, completion) -> str or None        which of the two modes a completion is written in

A family is one row of `FAMILIES` with these four functions. The responses are random given the prompt, so that a
teacher's soft distribution holds more than one sampled response shows. Two separate knobs set how random:
`hard_share` is the probability of the hard mode (one coin per response), `entropy` the freedom of surface choices
(separators, synonyms, templates): 0 always takes the first choice, 1 takes all with equal probability.

Which split a prompt belongs to is a function of its sha256 alone, so no prompt is ever in two splits, whatever the
seeds and sizes. Each split has its own random stream: its first N examples do not depend on how many are asked for.

math          "3+4-2*3="                      -> "3+4=7;7-2=5;5*3=5"               digits, left to right, modulo 10
translation   "tovan Cuiek miris ->"          -> "The dog sees Zoe."               an invented language to English
summarisation a dialogue that fixes a meeting -> "Ada and Ben meet on Monday at 3 pm at the park."
instruction   "Take e h d: reverse, then sort." -> "d h e; d e h"                every intermediate list
mixed         a prompt of math or of translation, each by a chance of one half
"""

import hashlib
import re
from collections import Counter
from collections.abc import Callable
from typing import NamedTuple

import torch

from data.corpora import CORPORA, Example, accepted, load_corpus
from data.metrics import (
    METRICS,
    choose_metric,
    corpus_bleu,
    metric_warnings,
    rouge_l,
    score_texts,
    slot_f1,
)
from data.progress import progress

SPLITS = ("train", "val", "test", "ood")


class Draws:
    """Random choices from one torch.Generator; uniforms are drawn in blocks, since a draw of one costs far more."""

    def __init__(self, generator):
        self.generator = generator
        self.block = []

    def uniform(self):
        """One number in [0, 1)."""
        if not self.block:
            self.block = torch.rand(4096, generator=self.generator, dtype=torch.float64).tolist()
        return self.block.pop()

    def integer(self, low, high):
        """One of low..high, both included."""
        return low + int(self.uniform() * (high - low + 1))

    def choice(self, options):
        """One of a sequence, all equally likely."""
        return options[self.integer(0, len(options) - 1)]

    def chance(self, probability):
        """True with this probability."""
        return self.uniform() < probability

    def surface(self, options, entropy):
        """The first option with probability 1 - entropy, else any of them: entropy 1 is uniform."""
        return self.choice(options) if self.chance(entropy) else options[0]


# ------------------------------------------------------------------------------------------------------------ math
# Easy mode writes a step as it is read, `7-2=5`. Hard mode writes the operand first, `2~7=5` ("2 taken from 7") and
# `4+3=7` for 3+4: the response must fetch the operand before the running value, but the result still comes last,
# after both numbers it depends on, so the mode can be learned.

STEP_SEPARATORS = (";", ",", "|")
THINGS = ("apples", "coins", "cards", "shells", "pens")
STORY_PHRASES = (  # operator, words before the number, words after it
    ("+", "buys", "more"),
    ("+", "finds", "more"),
    ("-", "sells", "of them"),
    ("-", "loses", "of them"),
    ("*", "soon has", "times as many"),
    ("*", "ends up with", "times as many"),
)
DISTRACTORS = ("A friend has {} kites.", "It is {} degrees outside.", "The shop is {} streets away.")
STORY_OPENING = re.compile(r"\w+ has ([0-9]+) ")
STORY_STEP = re.compile(rf"({'|'.join(before for _, before, _ in STORY_PHRASES)}) ([0-9]+) (?:more|of them|times)")


class Step(NamedTuple):
    """One operation of a chain: left (operator) operand = result."""

    left: int
    operator: str
    operand: int
    result: int


class StatedResult(NamedTuple):
    """A result that a completion states, and the two that it should be."""

    at: int  # index of its first digit in the completion
    written: int
    true: int  # of the operation as it is written there, whatever the prompt asks for
    asked: int | None  # what the prompt's own chain has in this place; None beyond its end
    right_so_far: bool  # all that stands before it follows the prompt: every earlier step, and the left side of its own


def apply_operation(left, operator, operand, modulus):
    """left (operator) operand, modulo `modulus`."""
    return {"+": left + operand, "-": left - operand, "*": left * operand}[operator] % modulus


def make_math_prompt(rng, options, ood):
    """A start digit and `difficulty` operations ("3+4-2="), or the same as a story; ood: 1 to 3 operations more."""
    count = options["difficulty"] + (rng.integer(1, 3) if ood else 0)
    if options["stories"]:
        return make_story_prompt(rng, count, distractor=ood)
    prompt = str(rng.integer(0, 9))
    for _ in range(count):
        operator = rng.choice("+-*")
        # no +0, -0, *0 and *1: such steps could be copied instead of computed
        prompt += operator + str(rng.integer(2 if operator == "*" else 1, 9))
    return prompt + "="


def make_story_prompt(rng, count, distractor):
    """A word problem whose running value stays in 0..99; `distractor` adds one sentence that changes nothing."""
    who, thing, value = rng.choice(NAMES), rng.choice(THINGS), rng.integer(1, 99)
    sentences = [f"{who} has {value} {thing}."]
    for _ in range(count):
        largest = {"+": 99 - value, "-": value, "*": min(5, 99 // value) if value else 0}  # 0 * 5 teaches nothing
        smallest = {"+": 1, "-": 1, "*": 2}
        # only operations that keep the value in range: `+` or `-` is always among them
        feasible = [phrase for phrase in STORY_PHRASES if largest[phrase[0]] >= smallest[phrase[0]]]
        operator, before, after = rng.choice(feasible)
        operand = rng.integer(smallest[operator], largest[operator])
        sentences.append(f"{who} {before} {operand} {after}.")
        value = apply_operation(value, operator, operand, 100)
    if distractor:
        sentences.insert(rng.integer(1, count), rng.choice(DISTRACTORS).format(rng.integer(2, 30)))
    return " ".join(sentences) + f" How many {thing} does {who} have?\n"


def modulus_of(prompt):
    """What a prompt's results are taken modulo: 10 for digits, 100 for a story."""
    return 10 if prompt.endswith("=") else 100


def math_steps(prompt):
    """The right chain, read from the prompt alone: a list of Step."""
    modulus = modulus_of(prompt)
    if prompt.endswith("="):
        value = int(prompt[0])
        operations = re.findall(r"([-+*])([0-9])", prompt)
    else:
        value = int(STORY_OPENING.match(prompt)[1])  # values never leave 0..99, so nothing wraps
        operator_of = {before: operator for operator, before, _ in STORY_PHRASES}
        operations = [(operator_of[before], number) for before, number in STORY_STEP.findall(prompt)]
    steps = []
    for operator, number in operations:
        result = apply_operation(value, operator, int(number), modulus)
        steps.append(Step(value, operator, int(number), result))
        value = result
    return steps


def write_step(step, hard):
    """A step in either mode: "7-2=5" or "2~7=5", "3+4=7" or "4+3=7"."""
    if hard:
        return f"{step.operand}{'~' if step.operator == '-' else step.operator}{step.left}={step.result}"
    return f"{step.left}{step.operator}{step.operand}={step.result}"


def respond_math(rng, prompt, hard, entropy):
    """The chain of all steps, one mode throughout, a separator drawn for each gap."""
    first, *rest = [write_step(step, hard) for step in math_steps(prompt)]
    return first + "".join(rng.surface(STEP_SEPARATORS, entropy) + step for step in rest)


# A written step, with any spaces around its signs; it ends where a separator, or a space without a sign, stands.
PIECE = re.compile(r"(?:\s*[-+*~=]\s*|[^;,|\s])+")
STEP_PIECE = re.compile(r"([0-9]+)([-+*~])([0-9]+)=([0-9]+)")


def split_chain(completion):
    """The pieces of a written chain, for any separators and any spaces around the signs."""
    return [tight(piece) for piece in PIECE.findall(completion)]


def tight(text):
    """Text without white space."""
    return "".join(text.split())


def first_wrong_step(prompt, completion):
    """1 for the first step, ...; the number of steps plus 1 if none is wrong or missing."""
    steps, pieces = math_steps(prompt), split_chain(completion)
    for number, step in enumerate(steps, 1):
        if number > len(pieces) or pieces[number - 1] not in (write_step(step, False), write_step(step, True)):
            return number
    return len(steps) + 1


def stated_results(prompt, completion):
    """A StatedResult for each piece of a written chain, None for one that is no step: "3+4=7;7-3=5" on "3+4-2=" states
    the 7 at index 4, and at 10 a 5. That should be 4, as it is written, after a left side that should be 7-2, so that
    5 is what was asked for.

    A step may be in either mode; one too many is not right so far.
    """
    steps, first_wrong = math_steps(prompt), first_wrong_step(prompt, completion)
    stated = []
    for number, piece in enumerate(PIECE.finditer(completion), 1):
        match = STEP_PIECE.fullmatch(tight(piece[0]))
        if not match:
            stated.append(None)
            continue
        one, sign, other, result = match.groups()
        left, operator, operand = (other, "-", one) if sign == "~" else (one, sign, other)
        true = apply_operation(int(left), operator, int(operand), modulus_of(prompt))
        asked, right_so_far = None, False
        if number <= len(steps):
            step = steps[number - 1]
            written_right = [write_step(step._replace(result=result), hard) for hard in (False, True)]  # its left side
            asked, right_so_far = step.result, number <= first_wrong and match[0] in written_right
        stated.append(StatedResult(piece.end() - len(result), int(result), true, asked, right_so_far))
    return stated


def score_math(prompt, completion):
    """1.0 if the whole chain is right, in either mode or a mix of them, and nothing follows it; else 0.0."""
    num_steps = len(math_steps(prompt))
    return float(first_wrong_step(prompt, completion) > num_steps and len(split_chain(completion)) == num_steps)


def mode_math(prompt, completion):
    """Is it "easy", "hard", "mixed" or None? Judged by the place of the operand, so a wrong result still has a mode."""
    steps, pieces = math_steps(prompt), split_chain(completion)
    if len(pieces) > len(steps):
        return None
    modes = set()
    for step, piece in zip(steps, pieces):
        match = STEP_PIECE.fullmatch(piece)
        if not match:
            return None
        left, sign, right, _ = match.groups()
        if sign in "-~":
            modes.add("hard" if sign == "~" else "easy")
        elif left != right and str(step.operand) in (left, right):  # 4+4 tells nothing
            modes.add("hard" if left == str(step.operand) else "easy")
    return join_modes(modes)


def details_math(examples, completions):
    """`steps_right`: share of the steps before the first wrong one; `final_answer`: share of right last results;
    `whole_chain`; `first_wrong_step`: mean, 1-based."""
    answers = [re.findall(r"=\s*([0-9]+)", completion)[-1:] for completion in completions]
    truths = [[str(math_steps(example.prompt)[-1].result)] for example in examples]
    pairs = list(zip(examples, completions))
    firsts = [first_wrong_step(example.prompt, completion) for example, completion in pairs]
    return {
        "steps_right": mean((first - 1) / len(math_steps(example.prompt)) for first, example in zip(firsts, examples)),
        "final_answer": mean(answer == truth for answer, truth in zip(answers, truths)),
        "whole_chain": mean(score_math(example.prompt, completion) for example, completion in pairs),
        "first_wrong_step": mean(firsts),
    }


# ----------------------------------------------------------------------------------------------------- translation
# The language: subject, object, verb. A noun takes a case ending, its adjective stands before it and takes the same
# one; a relative clause stands before both, its verb ends in -ri. Names are spelt with a letter substitution.
#     Cuiek                      Zoe, as the object: z -> c, o -> u, e -> i, and the ending -ek
#     tovan mirri balek semek    the big doctor that the dog sees, as the object: dog sees-that big doctor
# Hard mode is the passive: the English sentence must begin with the object, which the source names second.

SUBJECT, OBJECT, MAIN_VERB, RELATIVE_VERB = "an", "ek", "is", "ri"
NOUNS = {
    "tov": ("dog", "hound"), "sem": ("doctor", "physician"), "lud": ("teacher", "tutor", "instructor"),
    "pab": ("child", "kid"), "gor": ("king", "monarch", "ruler"), "fip": ("thief", "robber"),
    "nal": ("sailor", "seaman", "mariner"), "zum": ("rabbit", "bunny"), "kes": ("friend", "companion", "pal"),
    "hob": ("cook", "chef"), "jat": ("farmer", "grower"), "wex": ("soldier", "fighter", "warrior"),
    "cul": ("lawyer", "attorney"), "bri": ("boss", "chief", "manager"), "dop": ("stranger", "outsider"),
    "yun": ("writer", "author"),
}
ADJECTIVES = {
    "bal": ("big", "large", "huge"), "vit": ("small", "little", "tiny"), "ros": ("happy", "glad", "cheerful"),
    "meg": ("sad", "unhappy", "gloomy"), "kul": ("clever", "smart", "bright"), "oth": ("old", "aged", "elderly"),
    "zig": ("quick", "fast", "rapid"), "dar": ("brave", "bold"), "pel": ("rich", "wealthy"),
    "shu": ("quiet", "silent"),
}
VERBS = {  # third person and participle of each synonym
    "mir": (("sees", "seen"), ("spots", "spotted"), ("notices", "noticed")),
    "hel": (("helps", "helped"), ("assists", "assisted"), ("supports", "supported")),
    "lok": (("likes", "liked"), ("admires", "admired")),
    "fun": (("calls", "called"), ("phones", "phoned")),
    "seg": (("follows", "followed"), ("trails", "trailed")),
    "tro": (("finds", "found"), ("discovers", "discovered")),
    "fas": (("fears", "feared"), ("dreads", "dreaded")),
    "gru": (("greets", "greeted"), ("welcomes", "welcomed")),
    "emp": (("hires", "hired"), ("employs", "employed")),
    "sav": (("saves", "saved"), ("rescues", "rescued")),
}
NAMES = (
    "Ada", "Ben", "Carl", "Dana", "Emil", "Fay", "Gus", "Hana", "Ivan", "Jill", "Kurt", "Lena",
    "Max", "Nora", "Otto", "Paula", "Rosa", "Sam", "Tara", "Uma", "Vera", "Wanda", "Yara", "Zoe",
)
UNSEEN_NAMES = (
    "Anton", "Bella", "Clara", "David", "Ella", "Felix", "Greta", "Hugo", "Iris", "Jonas", "Karin", "Leo",
)
LETTERS, CIPHER = "aeioubcdfghjklmnpqrstvwxyz", "eiouadfghjklmnpqrstvwxyzbc"  # vowels to vowels: speakable
ENCIPHER, DECIPHER = str.maketrans(LETTERS, CIPHER), str.maketrans(CIPHER, LETTERS)

# the way back: English word -> stem
NOUN_OF = {word: stem for stem, words in NOUNS.items() for word in words}
ADJECTIVE_OF = {word: stem for stem, words in ADJECTIVES.items() for word in words}
VERB_OF = {verb: stem for stem, pairs in VERBS.items() for verb, _ in pairs}
PARTICIPLE_OF = {participle: stem for stem, pairs in VERBS.items() for _, participle in pairs}
ARTICLES, RELATIVE_PRONOUNS = ("the", "a", "an"), ("that", "which")
NOT_NAMES = {*NOUN_OF, *ADJECTIVE_OF, *VERB_OF, *PARTICIPLE_OF, *ARTICLES, *RELATIVE_PRONOUNS, "is", "by"}


def make_translation_prompt(rng, options, ood):
    """A sentence of `difficulty` clauses; ood: 1 or 2 more, nested in one noun, and names never seen in training."""
    relatives, names = options["difficulty"] - 1, NAMES
    on_subject = rng.integer(0, relatives)
    if ood:
        relatives, names = relatives + rng.integer(1, 2), UNSEEN_NAMES
        on_subject = relatives * rng.integer(0, 1)  # all on the subject or all on the object: deeper than in training
    words = make_phrase(rng, SUBJECT, on_subject, names)
    words += make_phrase(rng, OBJECT, relatives - on_subject, names)
    return " ".join(words) + f" {rng.choice(tuple(VERBS))}{MAIN_VERB} ->"


def make_phrase(rng, case, relatives, names):
    """The words of one noun phrase that holds `relatives` relative clauses, one inside the other."""
    if relatives == 0 and rng.chance(0.5):
        return [rng.choice(names).lower().translate(ENCIPHER).capitalize() + case]
    words = []
    if relatives:
        words += make_phrase(rng, SUBJECT, relatives - 1, names) + [rng.choice(tuple(VERBS)) + RELATIVE_VERB]
    if rng.chance(0.5):
        words.append(rng.choice(tuple(ADJECTIVES)) + case)
    return words + [rng.choice(tuple(NOUNS)) + case]


def read_source(prompt):
    """Slots of a sentence of the invented language: {"verb": "mir", "subject noun": "tov", "object name": "zoe", ...}.

    A relative clause adds "verb" and the slots of its own subject under "by": "subject by noun". The case endings
    make the word order enough: a stack of finished phrases, and the phrase still waiting for its noun.
    """
    finished, waiting = [], {}
    for word in prompt.removesuffix("->").split():
        stem, ending = word[:-2], word[-2:]
        if word[0].isupper():
            finished.append({"name": stem.lower().translate(DECIPHER)})
        elif ending == MAIN_VERB:
            subject, object_ = finished
            return {"verb": stem} | under("subject", subject) | under("object", object_)
        elif ending == RELATIVE_VERB:
            waiting = {"verb": stem} | under("by", finished.pop())
        elif stem in ADJECTIVES:
            waiting["adjective"] = stem
        else:
            finished.append(waiting | {"noun": stem})
            waiting = {}
    raise ValueError(f"no main verb in the prompt {prompt!r}: was it made by this task?")


def under(path, slots):
    """The same slots one level deeper: {"noun": ...} -> {"subject noun": ...}."""
    return {f"{path} {slot}": value for slot, value in slots.items()}


def inside(path, slots):
    """The inverse of `under`: the slots below `path`."""
    return {slot.removeprefix(path + " "): value for slot, value in slots.items() if slot.startswith(path + " ")}


def respond_translation(rng, prompt, hard, entropy):
    """One English sentence: active, or passive in hard mode; each word drawn among its synonyms."""
    slots = read_source(prompt)
    subject = write_phrase(rng, inside("subject", slots), entropy)
    object_ = write_phrase(rng, inside("object", slots), entropy)
    verb, participle = rng.surface(VERBS[slots["verb"]], entropy)
    sentence = f"{object_} is {participle} by {subject}." if hard else f"{subject} {verb} {object_}."
    return sentence[0].upper() + sentence[1:]


def write_phrase(rng, slots, entropy):
    """A noun phrase in English: "Zoe", "the big dog", "the dog that Zoe sees"."""
    if "name" in slots:
        return slots["name"].capitalize()
    words = ["the"]
    if "adjective" in slots:
        words.append(rng.surface(ADJECTIVES[slots["adjective"]], entropy))
    words.append(rng.surface(NOUNS[slots["noun"]], entropy))
    if "verb" in slots:
        words.append(rng.surface(RELATIVE_PRONOUNS, entropy))
        words.append(write_phrase(rng, inside("by", slots), entropy))
        words.append(rng.surface(VERBS[slots["verb"]], entropy)[0])
    return " ".join(words)


def read_english(completion):
    """(slots, mode) of an English sentence, read from the left until the grammar breaks; mode None: no main verb."""
    words = re.findall(r"[a-z]+", completion.lower())[:200]  # bounds the recursion on degenerate completions
    slots, mode = {}, None
    front, back = "subject", "object"
    phrase = read_phrase(words)
    if words[:1] == ["is"] and words[1:2] and words[1] in PARTICIPLE_OF and words[2:3] == ["by"]:
        slots["verb"], mode = PARTICIPLE_OF[words[1]], "hard"
        front, back = back, front
        del words[:3]
    elif words and words[0] in VERB_OF:
        slots["verb"], mode = VERB_OF[words.pop(0)], "easy"
    slots |= under(front, phrase)
    if mode is not None:
        slots |= under(back, read_phrase(words))
    if words:
        slots["unread"] = " ".join(words)  # a slot that no truth has: text that does not belong there costs
    return slots, mode


def read_phrase(words):
    """Slots of the noun phrase at the front of `words`, which are consumed as far as they fit the grammar."""
    if not words:
        return {}
    if words[0] not in NOT_NAMES:
        return {"name": words.pop(0)}
    slots = {}
    if words[0] in ARTICLES:
        words.pop(0)
    for slot, stem_of in (("adjective", ADJECTIVE_OF), ("noun", NOUN_OF)):
        if words and words[0] in stem_of:
            slots[slot] = stem_of[words.pop(0)]
    if words and "noun" in slots and words[0] in RELATIVE_PRONOUNS:
        words.pop(0)
        slots |= under("by", read_phrase(words))
        if words and words[0] in VERB_OF:
            slots["verb"] = VERB_OF[words.pop(0)]
    return slots


def score_translation(prompt, completion):
    """Share of right slots among those of the truth and of the completion together: too much costs as well."""
    truth, (found, _) = read_source(prompt), read_english(completion)
    return mean(truth.get(slot) == found.get(slot) for slot in {**truth, **found})


def mode_translation(prompt, completion):
    """Gives "easy" for the active, "hard" for the passive, None without a main verb."""
    return read_english(completion)[1]


def details_translation(examples, completions):
    """`exact`: share of sentences with every slot right; `names`: share of right names; `bleu`: BLEU of all."""
    pairs = [(read_source(example.prompt), read_english(text)[0]) for example, text in zip(examples, completions)]
    return {
        "exact": mean(truth == found for truth, found in pairs),
        "names": mean(
            found.get(slot) == name for truth, found in pairs for slot, name in truth.items() if slot.endswith("name")
        ),
        "bleu": corpus_bleu(completions, [example.response for example in examples]),
    }


# --------------------------------------------------------------------------------------------------- summarisation
# Somebody proposes day, time and place of a meeting; proposals to change one of them are corrected, accepted or
# refused. The summary is the state at the end. Hard mode turns its order round: the people come last, so that the
# first word is no longer the first word of the dialogue.

SLOT_VALUES = {
    "day": ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"),
    "time": ("9 am", "10 am", "11 am", "1 pm", "2 pm", "3 pm", "4 pm", "5 pm"),
    "place": ("park", "library", "cafe", "museum", "station", "market", "school", "garden"),
}
SLOT_OF = {value: slot for slot, values in SLOT_VALUES.items() for value in values}
SLOT_PHRASES = {"day": "on {}", "time": "at {}", "place": "at the {}"}
VALUE_PATTERN = re.compile(rf"\b({'|'.join(SLOT_OF)})\b")
NAME_PATTERN = re.compile(rf"\b({'|'.join(NAMES + UNSEEN_NAMES)})\b")

OPENINGS = ("Let us meet {}.", "Can we meet {}?", "Are you free {}?")
PROPOSALS = ("How about {} instead?", "I can only come {}.", "Could we make it {}?")
CORRECTIONS = ("Sorry, I meant {}.", "No wait, I mean {}.")
ACCEPTANCES = ("Fine with me.", "Yes, that works.", "Sure, good idea.")
REFUSALS = ("No, that is bad for me.", "Sorry, I cannot.", "I would rather not.")
CLOSINGS = ("See you then.", "Great, see you.")
SMALL_TALK = (
    "It rained all week.", "My sister says hello.", "I saw a good film.", "How is the dog?",
    "I need a holiday.", "The bus was late again.", "Work is busy.", "I slept badly.",
)
SUMMARIES = (
    "{a} and {b} meet {day} {time} {place}.",
    "{a} meets {b} {day} {time} {place}.",
    "{a} will see {b} {day} {time} {place}.",
)
HARD_SUMMARIES = (
    "{place} {time} {day} {b} and {a} meet.",
    "{place} {time} {day} {b} meets {a}.",
    "{place} {time} {day} {b} will see {a}.",
)


def make_summarisation_prompt(rng, options, ood):
    """A dialogue with up to `difficulty` proposals, the last one accepted; ood: one more, the last one refused."""
    opener = rng.choice(NAMES)
    partner = rng.choice([name for name in NAMES if name != opener])
    agreed = {slot: rng.choice(values) for slot, values in SLOT_VALUES.items()}
    opening = " ".join(SLOT_PHRASES[slot].format(value) for slot, value in agreed.items())
    lines = [f"{opener}: {rng.choice(OPENINGS).format(opening)}"]
    proposer, judge = partner, opener
    num_proposals = options["difficulty"] + 1 if ood else rng.integer(0, options["difficulty"])
    for number in range(1, num_proposals + 1):
        small_talk = rng.choice(SMALL_TALK) + " " if rng.chance(0.5) else ""
        slot = rng.choice(tuple(SLOT_VALUES))
        values = [value for value in SLOT_VALUES[slot] if value != agreed[slot]]
        value = rng.choice(values)
        lines.append(f"{proposer}: {small_talk}{rng.choice(PROPOSALS).format(SLOT_PHRASES[slot].format(value))}")
        if rng.chance(0.25):
            value = rng.choice([other for other in values if other != value])
            lines.append(f"{proposer}: {rng.choice(CORRECTIONS).format(SLOT_PHRASES[slot].format(value))}")
        accepted = not ood if number == num_proposals else rng.chance(0.6)
        if accepted:
            agreed[slot] = value
        lines.append(f"{judge}: {rng.choice(ACCEPTANCES if accepted else REFUSALS)}")
        if rng.chance(0.5):
            proposer, judge = judge, proposer
    if num_proposals == 0:
        lines.append(f"{partner}: {rng.choice(ACCEPTANCES)}")
    lines.append(f"{opener}: {rng.choice(CLOSINGS)}")
    return "\n".join(lines) + "\nSummary:\n"


def read_dialogue(prompt):
    """The final state, read line by line: {"people": (opener, partner), "day": ..., "time": ..., "place": ...}."""
    lines = [line.split(": ", 1) for line in prompt.splitlines() if ": " in line]
    opener = lines[0][0]
    agreed = {"people": (opener, next(speaker for speaker, _ in lines if speaker != opener))}
    agreed |= {SLOT_OF[value]: value for value in VALUE_PATTERN.findall(lines[0][1])}
    proposed = {}
    for _, text in lines[1:]:
        if value := VALUE_PATTERN.search(text):
            proposed = {SLOT_OF[value[1]]: value[1]}  # replaces what was corrected or refused before
        elif text in ACCEPTANCES:
            agreed |= proposed
    return agreed


def respond_summarisation(rng, prompt, hard, entropy):
    """One sentence with people, day, time and place; hard mode turns the order round."""
    agreed = read_dialogue(prompt)
    phrases = {slot: phrase.format(agreed[slot]) for slot, phrase in SLOT_PHRASES.items()}
    opener, partner = agreed["people"]
    template = rng.surface(HARD_SUMMARIES if hard else SUMMARIES, entropy)
    summary = template.format(a=opener, b=partner, **phrases)
    return summary[0].upper() + summary[1:]


def meeting_slots(people, values):
    """Slots as compared: each value under its slot, the people in alphabetical order since either may come first."""
    slots = {slot: " and ".join(sorted(set(values) & set(SLOT_VALUES[slot]))) for slot in SLOT_VALUES}
    slots["people"] = " and ".join(sorted(set(people)))
    return {slot: text for slot, text in slots.items() if text}


def compare_summary(prompt, completion):
    """(found, truth): two days in one summary are joined to one value, so naming both is wrong."""
    agreed = read_dialogue(prompt)
    truth = meeting_slots(agreed["people"], [agreed[slot] for slot in SLOT_VALUES])
    return meeting_slots(NAME_PATTERN.findall(completion), VALUE_PATTERN.findall(completion)), truth


def score_summarisation(prompt, completion):
    """F1 of the slots people, day, time and place, in any wording and order."""
    found, truth = compare_summary(prompt, completion)
    return slot_f1(found, truth).f1


def mode_summarisation(prompt, completion):
    """Gives "hard" if the first place stands before the first day, "easy" the other way round, None without both."""
    order = [SLOT_OF[value] for value in VALUE_PATTERN.findall(completion)]
    if "day" not in order or "place" not in order:
        return None
    return "hard" if order.index("place") < order.index("day") else "easy"


def details_summarisation(examples, completions):
    """`all_slots`: share of summaries with every slot right; `rouge_l`: mean against the one reference."""
    pairs = list(zip(examples, completions))
    compared = [compare_summary(example.prompt, completion) for example, completion in pairs]
    return {
        "all_slots": mean(found == truth for found, truth in compared),
        "rouge_l": mean(rouge_l(completion, example.response) for example, completion in pairs),
    }


# ----------------------------------------------------------------------------------------------------- instruction
# A list of letters and operators to apply in turn; the response writes the list after each operator. Hard mode
# writes every list from its end, marked by "<": the last letter must be known first.

OPERATORS = {  # name: (phrases in prompts, what it does to a list of letters)
    "double": (("double each", "write each letter twice"), lambda row: [x for x in row for _ in range(2)]),
    "reverse": (("reverse", "turn it round"), lambda row: row[::-1]),
    "drop_first": (("drop the first", "remove the first letter"), lambda row: row[1:]),
    "drop_last": (("drop the last", "remove the last letter"), lambda row: row[:-1]),
    "swap": (("swap the first two", "exchange the first two letters"), lambda row: row[1::-1] + row[2:]),
    "rotate": (("rotate", "move the first to the end"), lambda row: row[1:] + row[:1]),
    "sort": (("sort", "put it in order"), lambda row: sorted(row)),
    "unique": (("remove duplicates", "keep each letter once"), lambda row: list(dict.fromkeys(row))),
    "next": (("replace each by its successor", "shift each letter up"), lambda row: [next_letter(x) for x in row]),
}
OPERATOR_OF = {phrase: name for name, (phrases, _) in OPERATORS.items() for phrase in phrases}
OPERATOR_PATTERN = re.compile("|".join(OPERATOR_OF))  # no phrase occurs inside another one
LIST_PATTERN = re.compile(r"\b[a-z](?: [a-z])+\b")
TASK_OPENERS = ("Take {}: {}.", "Start with {}: {}.", "Given {}, {}.", "Here is {}. Please {}.")
JOINERS = (", then ", ", and then ", ", after that ")
LIST_SEPARATORS = ("; ", " | ", " / ")
MAX_LETTERS = 8
# one pair of neighbours in five is never trained on; every operator still occurs in both places of other pairs
UNSEEN_PAIRS = {
    (first, second)
    for i, first in enumerate(OPERATORS)
    for j, second in enumerate(OPERATORS)
    if (i + 2 * j) % 5 == 0
}


def next_letter(letter):
    """The letter after this one; a follows z."""
    return chr((ord(letter) - ord("a") + 1) % 26 + ord("a"))


def make_instruction_prompt(rng, options, ood):
    """A list of 3 to 5 letters and `difficulty` operators; ood: a pair of neighbours never trained on, or two more.

    With a single operator there are no pairs, so that ood is then always two operators more.
    """
    unseen_pair = ood and options["difficulty"] > 1 and rng.chance(0.5)
    count = options["difficulty"] + (2 if ood and not unseen_pair else 0)
    names = None
    while names is None:  # a draw may reach a list to which no operator of the wanted kind applies
        letters = [rng.choice("abcdefghij") for _ in range(rng.integer(3, 5))]
        names = draw_operators(rng, letters, count, unseen_at=rng.integer(1, count - 1) if unseen_pair else None)
    opener, joiner = rng.choice(TASK_OPENERS), rng.choice(JOINERS)
    return opener.format(" ".join(letters), joiner.join(rng.choice(OPERATORS[name][0]) for name in names)) + "\n"


def draw_operators(rng, letters, count, unseen_at=None):
    """Names of `count` operators that keep 2 to MAX_LETTERS letters, or None where the drawn ones lead nowhere.

    The operator at position `unseen_at`, if any, and the one before it are an unseen pair; all other pairs are seen.
    """
    names, row = [], letters
    for position in range(count):
        candidates = [
            name
            for name, (_, operator) in OPERATORS.items()
            if 2 <= len(operator(row)) <= MAX_LETTERS
            and operator(row) != row  # a step that changes nothing could be copied
            and (not names or ((names[-1], name) in UNSEEN_PAIRS) == (position == unseen_at))
        ]
        if not candidates:
            return None
        names.append(rng.choice(candidates))
        row = OPERATORS[names[-1]][1](row)
    return names


def instruction_lists(prompt):
    """The list after each operator, read from the prompt alone: ["eehh", "hhee"], one string of letters per list."""
    row, lists = LIST_PATTERN.search(prompt)[0].split(), []
    for phrase in OPERATOR_PATTERN.findall(prompt):
        row = OPERATORS[OPERATOR_OF[phrase]][1](row)
        lists.append("".join(row))
    return lists


def respond_instruction(rng, prompt, hard, entropy):
    """Every intermediate list and the final one: "e e h h; h h e e", or "< h h e e; < e e h h" in hard mode."""
    first, *rest = ["< " + " ".join(row[::-1]) if hard else " ".join(row) for row in instruction_lists(prompt)]
    return first + "".join(rng.surface(LIST_SEPARATORS, entropy) + row for row in rest)


def read_lists(completion):
    """(lists, modes): each written list as a string, in its true order, and the set of modes they are written in."""
    lists, modes = [], set()
    for piece in re.split(r"[;|/\n]", completion.strip().rstrip(".;|/")):
        letters = re.sub(r"[\s,]", "", piece)  # "eehh" and "e, e, h, h" are as good as "e e h h"
        modes.add("hard" if letters.startswith("<") else "easy")
        lists.append(letters[:0:-1] if letters.startswith("<") else letters)
    return lists, modes


def score_instruction(prompt, completion):
    """1.0 if the last list written is the right final list, in either direction; else 0.0."""
    return float(read_lists(completion)[0][-1] == instruction_lists(prompt)[-1])


def mode_instruction(prompt, completion):
    """Is it "easy", "hard" or "mixed"? None unless everything written is lists of letters."""
    lists, modes = read_lists(completion)
    return join_modes(modes) if all(re.fullmatch("[a-z]+", row) for row in lists) else None


def details_instruction(examples, completions):
    """`whole_chain`: share of responses whose every list is right, none missing and none too many."""
    pairs = zip(examples, completions)
    return {"whole_chain": mean(read_lists(text)[0] == instruction_lists(example.prompt) for example, text in pairs)}


# ---------------------------------------------------------------------------------------------------------- tables


# ----------------------------------------------------------------------------------------------------------- mixed


def family_of(prompt):
    """The name of the family that a prompt of `mixed` is of: "3+4=" of math, "tovan Cuiek miris ->" of translation."""
    return "translation" if prompt.endswith("->") else "math"


def make_mixed_prompt(rng, options, ood):
    """A prompt of math or of translation, both at this difficulty."""
    return FAMILIES[rng.choice(("math", "translation"))].make_prompt(rng, options | {"stories": False}, ood)


def respond_mixed(rng, prompt, hard, entropy):
    """As its family does."""
    return FAMILIES[family_of(prompt)].respond(rng, prompt, hard, entropy)


def score_mixed(prompt, completion):
    """By its family's metric."""
    return FAMILIES[family_of(prompt)].score(prompt, completion)


def mode_mixed(prompt, completion):
    """As its family sees it."""
    return FAMILIES[family_of(prompt)].mode(prompt, completion)


def details_mixed(examples, completions):
    """`math`, `translation`: the mean score of either's prompts."""
    scored = [(family_of(example.prompt), score_mixed(example.prompt, text))
              for example, text in zip(examples, completions)]
    return {name: mean(score for family, score in scored if family == name) for name in ("math", "translation")}


def join_modes(modes):
    """One word for the set of modes seen in one response: "easy", "hard", "mixed", or None if none was seen."""
    return "mixed" if len(modes) > 1 else next(iter(modes), None)


def mean(values):
    """Arithmetic mean as a float; None of nothing, which has no mean."""
    values = list(values)
    return float(sum(values)) / len(values) if values else None


class Family(NamedTuple):
    """One synthetic family: its four functions (see the top of this file), further figures, metric and knobs."""

    make_prompt: Callable
    respond: Callable
    score: Callable
    mode: Callable
    details: Callable
    metric: str
    options: dict  # its own knobs and their defaults, beside SIZES
    part: Callable | None = None  # prompt -> which of several tasks it is of; None: there is one


SIZES = {"train_examples": 4000, "val_examples": 200, "test_examples": 500, "ood_examples": 200}
# sixteenths of the hash range; ood has its own, since a longer problem here is an ordinary one at higher difficulty
SPLIT_PARTS = {"train": range(0, 10), "val": range(10, 12), "test": range(12, 14), "ood": range(14, 16)}

FAMILIES = {
    "math": Family(
        make_math_prompt, respond_math, score_math, mode_math, details_math,
        metric="whole chain right",
        options={"difficulty": 5, "entropy": 0.5, "hard_share": 0.3, "stories": False},
    ),
    "translation": Family(
        make_translation_prompt, respond_translation, score_translation, mode_translation, details_translation,
        metric="slot accuracy",
        options={"difficulty": 2, "entropy": 0.5, "hard_share": 0.3},
    ),
    "summarisation": Family(
        make_summarisation_prompt, respond_summarisation, score_summarisation, mode_summarisation,
        details_summarisation, metric="slot F1",
        options={"difficulty": 2, "entropy": 0.5, "hard_share": 0.3},
    ),
    "instruction": Family(
        make_instruction_prompt, respond_instruction, score_instruction, mode_instruction, details_instruction,
        metric="final list right",
        options={"difficulty": 2, "entropy": 0.5, "hard_share": 0.3},
    ),
    "mixed": Family(
        make_mixed_prompt, respond_mixed, score_mixed, mode_mixed, details_mixed,
        metric="whole chain right or slot accuracy",
        options={"difficulty": 2, "entropy": 0.5, "hard_share": 0.3}, part=family_of,
    ),
}

TASKS = {**FAMILIES, **CORPORA}  # name -> Family or Corpus
CORPUS_OPTIONS = {"cache_dir": None, "download": True, "metric": None}
OWN_KEYS = {"prompt_key": None, "response_key": None}  # of own data: under which keys of a record its texts stand
MOST_LOOKED_AT = 1000  # test examples whose references decide on a metric, and are warned of


# ----------------------------------------------------------------------------------------------------------- tasks


class Task:
    """A named set of splits and its score. The two kinds below fill `by_split` and bring score(example, completion)
    -> 0..1 and details(examples, completions) -> {name: float, or None where there is nothing to average}, the further
    figures."""

    splits = SPLITS
    metric_note, metric_warnings = None, ()  # why this metric was chosen, and what it cannot tell: lines for the user

    def __init__(self, name, metric, options, by_split):
        self.name, self.metric, self.options = name, metric, options
        self.by_split = by_split  # split -> list of Example

    def examples(self, split):
        """The examples of "train", "val", "test" or "ood"; a real set has no "ood": an empty list."""
        if split not in SPLITS:
            raise ValueError(f"unknown split {split!r}; the splits are {', '.join(SPLITS)}")
        return self.by_split.get(split, [])

    def corpus_score(self, examples, completions):
        """The metric `metric` over many completions, 0..1."""
        check_paired(examples, completions)
        return mean(self.score(example, completion) for example, completion in zip(examples, completions))

    def part(self, example):
        """The name of the task that an example is of, where there are several in one; else this one's."""
        return self.name

    def hint(self, example):
        """What somebody who knows the answer would tell beforehand; "" where there is nothing."""
        return example.hint

    def texts(self):
        """Text for training the tokenizer: prompts and responses of the train split, each on its own."""
        return [text for example in self.by_split["train"] for text in (example.prompt, example.response)]


class GeneratedTask(Task):
    """A task of a synthetic family: builds all splits at once, so that impossible knobs fail at the start."""

    def __init__(self, name, seed, options):
        self.family, self.seed = FAMILIES[name], seed
        super().__init__(name, self.family.metric, options, {})
        for split in SPLITS:
            self.by_split[split] = self.build(split, options[f"{split}_examples"])

    def build(self, split, count):
        """`count` examples with distinct prompts; raises ValueError where the knobs do not allow that many."""
        # two streams: the prompts stay the same whatever `entropy` and `hard_share` do to the responses
        prompt_rng, style_rng = (self.rng(split, use) for use in ("prompts", "responses"))
        hash_share = len(SPLIT_PARTS[split]) / 16
        examples, seen, misses = [], set(), 0
        while len(examples) < count:
            prompt = self.family.make_prompt(prompt_rng, self.options, split == "ood")
            if split_of(prompt) == split and prompt not in seen:
                hard = style_rng.chance(self.options["hard_share"])
                response = self.family.respond(style_rng, prompt, hard, self.options["entropy"])
                examples.append(Example(prompt, response))
                seen.add(prompt)
                misses = 0
                continue
            misses += 1
            # if one of n equally likely prompts were left, so many misses would have probability exp(-30)
            if misses > 30 * (len(seen) + 10) / hash_share:
                difficulty = self.options["difficulty"]
                raise ValueError(
                    f"task {self.name} at difficulty {difficulty} has only {len(seen)} distinct {split} prompts, "
                    f"{count} wanted: set {split}_examples to {len(seen)} or difficulty to {difficulty + 1}"
                )
        return examples

    def rng(self, split, use):
        """Independent streams for each task, seed, split and use."""
        digest = hashlib.sha256(f"{self.name} {self.seed} {split} {use}".encode()).digest()
        return Draws(torch.Generator().manual_seed(int.from_bytes(digest[:7], "big")))

    def hint(self, example):
        """A worked solution: a right response of its own, as good as the reference but not a copy of it."""
        rng = self.rng("any", f"hint of {example.prompt}")
        return self.family.respond(
            rng, example.prompt, rng.chance(self.options["hard_share"]), self.options["entropy"]
        )

    def score(self, example, completion):
        """The family's score; reads the prompt only, never the reference."""
        return self.family.score(example.prompt, completion)

    def part(self, example):
        return self.family.part(example.prompt) if self.family.part else self.name

    def details(self, examples, completions):
        """The family's figures, and in which mode the completions are written.

        `parseable`: share of completions with a mode; `hard_share`, `mixed_share`: shares among those.
        """
        check_paired(examples, completions)
        pairs = zip(examples, completions)
        modes = [self.family.mode(example.prompt, completion) for example, completion in pairs]
        told = [mode for mode in modes if mode is not None]
        return self.family.details(examples, completions) | {
            "parseable": len(told) / len(modes),
            "hard_share": mean(mode == "hard" for mode in told),
            "mixed_share": mean(mode == "mixed" for mode in told),
        }


class CorpusTask(Task):
    """A real data set; files, splits and scores come with its row of CORPORA.

    A set without a metric of its own, such as own data, is scored by the row of METRICS that the option "metric" names,
    else by the one that its test references ask for. On a set with one, the option takes its place.
    """

    def __init__(self, name, data_dir, say, options):
        self.corpus = CORPORA[name]
        wanted = {option: value for option, value in options.items() if option != "metric"}
        splits, self.chosen = load_corpus(name, data_dir=data_dir, say=say, **wanted), options["metric"]
        by_split = {split: in_random_order(progress(examples, "order")) for split, examples in splits.items()}
        references = [accepted(example) for example in by_split["test"]]
        references = references[:: -(-len(references) // MOST_LOOKED_AT)]
        if self.corpus.score is None and self.chosen is None:
            self.chosen, why = choose_metric(references)
            title, others = METRICS[self.chosen].title, ", ".join(name for name in METRICS if name != self.chosen)
            self.metric_note = f"score: {title}, since {why} (--metric takes {others}; all are recorded)"
        if self.chosen:
            self.metric_warnings = metric_warnings(self.chosen, references)
        metric = METRICS[self.chosen].title if self.chosen else self.corpus.metric
        super().__init__(name, metric, options, by_split)

    def score(self, example, completion):
        """How right one completion is, 0..1."""
        if self.chosen:
            return METRICS[self.chosen].score(completion, accepted(example))
        return self.corpus.score(example, completion)

    def corpus_score(self, examples, completions):
        """The metric over many completions, which need not be a mean over examples (BLEU is not)."""
        check_paired(examples, completions)
        if self.chosen:
            return score_texts(self.chosen, completions, [accepted(example) for example in examples])
        return self.corpus.corpus_score(examples, completions)

    def details(self, examples, completions):
        """The further figures that the set's row names; with a chosen metric every row of METRICS, and what the set
        itself would be scored by, as "own_score"."""
        check_paired(examples, completions)
        found = self.corpus.details(examples, completions) if self.corpus.details else {}
        if not self.chosen:
            return found
        if self.corpus.score:
            found["own_score"] = self.corpus.corpus_score(examples, completions)
        references = [accepted(example) for example in examples]
        return found | {name: score_texts(name, completions, references) for name in METRICS}


def task_names():
    """All names that `make_task` takes: the synthetic families first."""
    return list(TASKS)


def make_task(name, *, data_dir=None, seed=0, say=lambda line: None, **options):
    """The task `name`, ready to use; `options` are its knobs, `data_dir` is where files of real sets lie, and `say`
    hears a line on what of them is left out.

    Raises ValueError for an unknown name, an unknown knob, a value out of range or too few distinct prompts, and
    OSError or ValueError where the files of a real set are missing or damaged.
    """
    if not isinstance(name, str) or name not in TASKS:
        own = "; a file of your own is read as DIR/train.jsonl: --task jsonl --data-dir DIR" if "." in str(name) else ""
        raise ValueError(f"unknown task {name!r}; the tasks are {', '.join(TASKS)}{own}")
    defaults = {**FAMILIES[name].options, **SIZES} if name in FAMILIES else CORPUS_OPTIONS | own_keys(name)
    for option, value in options.items():
        if option not in defaults:
            raise ValueError(f"task {name} has no option {option!r}; its options are {', '.join(defaults)}")
        check_option(name, option, value)
    if name in FAMILIES:
        return GeneratedTask(name, seed, defaults | options)
    return CorpusTask(name, data_dir, say, defaults | options)


def own_keys(name):
    """The options of own data, by default; none of any other task."""
    return OWN_KEYS if name == "jsonl" else {}


def named_in(about, data_dir, most):
    """The task that a checkpoint names in `about`, with `most` test examples at most and no others; ValueError if it
    names none.

    Of its options only the knobs of a family count: a file that came from elsewhere names no folder and no address.
    """
    name, options = about["task"], about.get("task_options", {})
    if not isinstance(name, str) or not isinstance(options, dict):
        raise ValueError(
            f"the checkpoint's task is {repr(name)[:40]} with options {repr(options)[:40]}: give a --prompt"
        )
    if name not in FAMILIES:
        return make_task(name, data_dir=data_dir, **{key: options[key] for key in own_keys(name) if options.get(key)})
    knobs = {option: value for option, value in options.items() if option in FAMILIES[name].options}
    test_examples = options.get("test_examples", SIZES["test_examples"])
    check_option(name, "test_examples", test_examples)
    fewest = {"train_examples": 1, "val_examples": 0, "ood_examples": 0, "test_examples": min(most, test_examples)}
    return make_task(name, **knobs, **fewest)


def check_option(name, option, value):
    """Raises ValueError if the value of a knob is out of its range."""
    if option in ("entropy", "hard_share"):
        right, wanted = isinstance(value, int | float) and 0 <= value <= 1, "a number in 0..1"
    elif option == "difficulty" or option in SIZES:
        least, most = 1 if option in ("difficulty", "train_examples") else 0, 100 if option == "difficulty" else 10**7
        right = type(value) is int and least <= value <= most  # not True
        wanted = f"a whole number of at least {least} and at most {most}"
    elif option in ("stories", "download"):
        right, wanted = isinstance(value, bool), "True or False"
    elif option in OWN_KEYS:
        right, wanted = value is None or isinstance(value, str) and value != "", "a key of the records"
    elif option == "metric":
        right, wanted = value is None or isinstance(value, str) and value in METRICS, f"one of {', '.join(METRICS)}"
    else:
        return  # a folder: whoever opens it checks it
    if not right:
        raise ValueError(f"task {name}: {option} must be {wanted}, not {value!r}")


def random_order(examples, seed=None):
    """The numbers of examples in an order that follows from what they say, not from where they stand: by a hash of it
    and of the seed.

    The first n of them are a random sample, whichever n, and the same one however a file is sorted: files often are, by
    label or by length. An example more or less leaves the order of all others.
    """
    seen = Counter()

    def place(example):
        seen[example] += 1  # repeats of a line have places of their own: else a sample would hold all of them, or none
        said = (example.prompt, example.response, *example.references, str(seen[example]))
        said = (*said, example.hint) if example.hint else said
        return hashlib.sha256("\0".join(said if seed is None else (str(seed), *said)).encode()).digest()

    places = [place(example) for example in examples]
    return sorted(range(len(places)), key=places.__getitem__)


def in_random_order(examples):
    """Examples of a file, as random_order has them. (A made task draws its examples in random order.)"""
    examples = list(examples)
    return [examples[i] for i in random_order(examples)]


def check_paired(examples, completions):
    """Asserts one completion per example, and at least one."""
    assert 0 < len(examples) == len(completions), f"{len(examples)} examples, {len(completions)} completions"


def split_of(prompt):
    """The split that a generated prompt belongs to: a function of its sha256 alone."""
    part = hashlib.sha256(prompt.encode()).digest()[0] % 16
    return next(split for split, parts in SPLIT_PARTS.items() if part in parts)


# ------------------------------------------------------------------------------------------------------- to tokens


def encode_prompt(tokenizer, prompt):
    """The ids of a prompt as it is written: the one way to every model, in training, evaluation and sample.py."""
    return tokenizer.encode(prompt)


def encode_example(tokenizer, example):
    """(prompt_ids, response_ids), encoded apart, so that no token spans the border; the response ends with eos."""
    return encode_prompt(tokenizer, example.prompt), tokenizer.encode(example.response) + [tokenizer.eos_token]


class Encoded(NamedTuple):
    """A split as token ids: prompts and responses (lists of lists, responses end with the end token), and its
    examples."""

    examples: list
    prompts: list
    responses: list

    def first(self, most):
        """The first `most` examples, all for None: a random sample, since no task keeps the order of a file."""
        return Encoded(*(column[:most] for column in self))

    def shuffled(self, seed):
        """The same examples in another random order, which `seed` decides."""
        return self.only(random_order(self.examples, seed))

    def only(self, rows):
        """The examples of these numbers."""
        return Encoded(*([column[i] for i in rows] for column in self))


def encode_split(tokenizer, examples):
    """Tokenise examples -> Encoded."""
    pairs = [encode_example(tokenizer, example) for example in progress(examples, "tokens")]
    return Encoded(list(examples), [prompt for prompt, _ in pairs], [response for _, response in pairs])


# What a teacher that sees more may read before a prompt: its worked solution; another prompt with the response to it;
# and, as a control, another prompt's solution.
HINTS = ("solution", "demonstration", "unrelated")


def hint_ids(tokenizer, task, example, other, kind):
    """The ids of a hint for `example`, which stand before its prompt: "(3+4=7;7-2=5)" and a new line. [] where the task
    has none. `other` is another example."""
    text = other.prompt + other.response if kind == "demonstration" else task.hint(example)
    text = task.hint(other) if kind == "unrelated" else text
    return encode_hint(tokenizer, text) if text else []


def encode_hint(tokenizer, text):
    """The ids of a text as a hint: in brackets, on a line of its own."""
    return tokenizer.encode(f"({text})\n")


def hinted_prompts(tokenizer, task, split, kind):
    """For each example of an Encoded the ids that a teacher with a hint of this kind reads in place of its prompt.

    The other example is the next one with another prompt, in a circle; ValueError where all share one.
    """
    examples, hinted = split.examples, []
    for i, (example, prompt) in enumerate(zip(examples, split.prompts)):
        others = (examples[(i + step) % len(examples)] for step in range(1, len(examples)))
        other = next((other for other in others if other.prompt != example.prompt), None)
        if other is None:
            raise ValueError("a hint from another prompt needs one: give at least two different prompts")
        hinted.append(hint_ids(tokenizer, task, example, other, kind) + prompt)
    return hinted


def complete(tokenizer, responses):
    """Responses (lists of ids, with or without the end token) -> texts."""
    eos = tokenizer.eos_token
    return [tokenizer.decode(response[:-1] if response and response[-1] == eos else response) for response in responses]
