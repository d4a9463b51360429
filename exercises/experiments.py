"""The experiments, exercises 27 to 33: what a student predicts, runs, reads off and explains; grading runs nothing.

A student's function returns a dict:

    {"prediction": one of the choices, made before the run,
     "folder": the folder of the run's records, seen from answers.py, or a list of folders,
     "figures": {name: number} read off these records,
     "found": one of the choices, what the records show,
     "why": an explanation in sentences of your own}

The setting of the records is checked, and whether the figures are theirs; whether a prediction came true is not.
"""

from pathlib import Path
from typing import NamedTuple

import course
from course import Broken, Law, check
from lab import statistics
from lab.reading import read_records


class Experiment(NamedTuple):
    """One experiment."""

    number: int
    commands: tuple  # the page names them; the last part is the folder
    script: str
    variants: tuple  # that the records must hold
    pairs: int  # at least so many
    choices: tuple  # of prediction and found
    figures: dict  # name -> function of the runs
    found: object  # function of the figures -> one of the choices
    setting: object = None  # (runs) -> what is wrong with it, or None


def final(key, variant):
    """A function of runs: the mean over a method's runs of a figure of their final line."""

    def mean(runs):
        return mean_of([run.final.get(key) for run in runs if run.variant == variant], f"{key} of {variant}")

    return mean


def mean_of(values, about):
    values = [float(value) for value in values if value is not None]
    if not values:
        raise Broken(f"the records hold no {about}")
    return sum(values) / len(values)


def replaced(variant):
    """A function of runs: the mean over logged steps and runs of the share of tokens that the teacher replaced."""

    def mean(runs):
        steps = [step for run in runs if run.variant == variant for step in run.steps]
        return mean_of([step.get("replacement_rate") for step in steps], f"replacement_rate of {variant}")

    return mean


def with_entropy(key, variant, deterministic):
    """A function of runs: the mean of a final figure over the runs with --entropy 0, or over those without."""

    def mean(runs):
        chosen = [run for run in runs if run.variant == variant and is_deterministic(run) == deterministic]
        return mean_of([run.final.get(key) for run in chosen], f"{key} of {variant}, --entropy 0: {deterministic}")

    return mean


def is_deterministic(run):
    return run.header["flags"].get("entropy") == 0


def both_entropies(runs):
    found = {is_deterministic(run) for run in runs}
    return None if found == {True, False} else "runs with --entropy 0 and runs without are needed"


def difference(one, other, place):
    """A function of runs: mean (place 0) or half width (1) of a paired difference of scores over pairs."""

    def figure(runs):
        found = statistics.paired_difference(
            *([run for run in runs if run.variant == name and run.budget == "steps"] for name in (one, other)),
            "score",
            "pair",
        )
        number = (found.mean, found.half_width)[place]
        if number is None:
            raise Broken(f"{one} and {other} have no two pairs in common")
        return number

    return figure


def decided(figures):
    """better, worse or open: whether an interval lies on one side of 0."""
    if abs(figures["difference"]) <= figures["half_width"]:
        return "open"
    return "better" if figures["difference"] > 0 else "worse"


def larger(one, other, yes, no):
    """A function of figures: `yes` where one is larger than other."""
    return lambda figures: yes if figures[one] > figures[other] else no


EXPERIMENTS = (
    Experiment(
        27, ("python train_okd.py --variants fixed_forward_kl,fixed_reverse_kl --out runs/27",), "train_okd",
        ("fixed_forward_kl", "fixed_reverse_kl"), 1, ("forward is surer", "reverse is surer"),
        {"forward": final("student_entropy", "fixed_forward_kl"),
         "reverse": final("student_entropy", "fixed_reverse_kl")},
        larger("forward", "reverse", "reverse is surer", "forward is surer"),
    ),
    Experiment(
        28, ("python train_skd.py --variants skd --sweep accept-top-k=1,3,19 --out runs/28",), "train_skd",
        ("skd accept-top-k=1", "skd accept-top-k=3", "skd accept-top-k=19"), 1, ("falls to 0", "stays above 0"),
        {f"replaced at {k}": replaced(f"skd accept-top-k={k}") for k in (1, 3, 19)},
        larger("replaced at 19", "zero", "stays above 0", "falls to 0"),
    ),
    Experiment(
        29, ("python train_skd.py --variants sft,supervised --out runs/29/two-ways",
             "python train_skd.py --variants sft,supervised --entropy 0 --out runs/29/one-way"), "train_skd",
        ("sft", "supervised"), 1, ("lower with one way", "not lower with one way"),
        {"two ways": with_entropy("teacher_entropy", "supervised", False),
         "one way": with_entropy("teacher_entropy", "supervised", True)},
        larger("two ways", "one way", "lower with one way", "not lower with one way"), both_entropies,
    ),
    Experiment(
        30, ("python train_skd.py --variants supervised,on_policy --out runs/30",), "train_skd",
        ("supervised", "on_policy"), 1, ("farther on its own text", "not farther on its own text"),
        {"on references": final("kl_teacher", "supervised"), "on its own text": final("kl_on_policy", "supervised"),
         "on its own text, on-policy": final("kl_on_policy", "on_policy")},
        larger("on its own text", "on references", "farther on its own text", "not farther on its own text"),
    ),
    Experiment(
        31, ("python train_okd.py --variants okd --out runs/31",), "train_okd", ("okd",), 1,
        ("looks closer to the adapted one", "does not look closer to the adapted one"),
        {"to the original": final("kl_teacher", "okd"), "to the adapted": final("kl_adapted_teacher", "okd"),
         "drift": final("drift", "okd")},
        larger("to the original", "to the adapted", "looks closer to the adapted one",
               "does not look closer to the adapted one"),
    ),
    Experiment(
        32, ("python train_okd.py --variants okd,okd_collapse --out runs/32",), "train_okd", ("okd", "okd_collapse"), 1,
        ("alpha 1 drifts farther", "alpha 1 does not drift farther"),
        {"drift at alpha .5": final("drift", "okd"), "drift at alpha 1": final("drift", "okd_collapse"),
         "student to adapted at alpha 1": final("kl_adapted_teacher", "okd_collapse")},
        larger("drift at alpha 1", "drift at alpha .5", "alpha 1 drifts farther", "alpha 1 does not drift farther"),
    ),
    Experiment(
        33, ("python train_okd.py --variants okd_no_feedback,okd --pairs 3 --out runs/33",), "train_okd",
        ("okd", "okd_no_feedback"), 2, ("better", "worse", "open"),
        {"difference": difference("okd", "okd_no_feedback", 0), "half_width": difference("okd", "okd_no_feedback", 1)},
        decided,
    ),
)  # fmt: skip
TOLERANCE = 0.002  # of a figure that was read off a table


def runs_of(experiment, answer, answers):
    """The records that an answer names, with the setting that the page names."""
    named, runs = answer["folder"], []
    for folder in named if isinstance(named, list) else [named]:
        folder = (Path(answers).parent / str(folder)).resolve()
        for place in [folder, *sorted(path for path in folder.glob("*") if path.is_dir())]:
            try:
                runs += read_records(place)
            except ValueError as error:
                raise Broken(f"the records of {answer['folder']} cannot be read: {error}") from None
    check(runs, f"no finished record lies in {answer['folder']}, seen from answers.py")
    runs = [run for run in runs if run.variant in experiment.variants]
    found = {run.variant for run in runs}
    missing = [name for name in experiment.variants if name not in found]
    check(not missing, f"the records of {answer['folder']} lack {', '.join(missing)}")
    quick = any(run.header.get("quick") for run in runs)
    check(not quick, "a record is of a --quick run, whose figures mean nothing: run the page's command")
    for key, wanted in (("script", experiment.script), ("task", "math")):
        others = {run.header.get(key) for run in runs} - {wanted}
        check(not others, f"the records' {key} is {', '.join(map(str, others))}, the page says {wanted}")
    pairs = len({run.pair for run in runs})
    check(pairs >= experiment.pairs, f"the records hold {pairs} pairs, at least {experiment.pairs} are needed")
    wrong = experiment.setting(runs) if experiment.setting else None
    check(not wrong, wrong)
    return runs


def figures_of(experiment, runs):
    return {name: figure(runs) for name, figure in experiment.figures.items()}


def laws_of(row, answers):
    """The laws of an experiment; `answers` is the path of the student's file."""
    experiment = next(one for one in EXPERIMENTS if one.number == row.number)
    function = row.functions[0]

    def answer_of(code):
        answer = getattr(code, function)()
        wanted = {"prediction", "folder", "figures", "found", "why"}
        complete = isinstance(answer, dict) and wanted <= set(answer)
        check(complete, f"{function}() must return a dict with {sorted(wanted)}")
        return answer

    def record(code, made):
        runs_of(experiment, answer_of(code), answers)

    def figures(code, made):
        answer = answer_of(code)
        expected = figures_of(experiment, runs_of(experiment, answer, answers))
        for name, number in expected.items():
            found = answer["figures"].get(name)
            check(isinstance(found, int | float), f'figures["{name}"] is {course.described(found)}, a number is wanted')
            check(abs(found - number) <= TOLERANCE, f'figures["{name}"] is not what the records say')

    def prediction(code, made):
        found = answer_of(code)["prediction"]
        check(found in experiment.choices, f"the prediction is {found!r}; it is one of {', '.join(experiment.choices)}")

    def found(code, made):
        answer = answer_of(code)
        expected = figures_of(experiment, runs_of(experiment, answer, answers))
        right = experiment.found(expected | {"zero": 0.0})
        check(answer["found"] == right, f"the records do not show that it is {answer['found']!r}")

    def why(code, made):
        words = str(answer_of(code)["why"]).split()
        check(len(words) >= 25, f"{len(words)} words: explain in at least 25 what you expected, what came, and why")

    texts = (
        ("record", "Finished records of the page's setting lie in the folder that you name.", True, record),
        ("figures", "The figures are those of your records.", True, figures),
        ("prediction", "A prediction is made, right or wrong.", False, prediction),
        ("found", "What you say you found is what your records show.", False, found),
        ("why", "There is an explanation; your teacher reads it.", False, why),
    )
    return [Law(f"law_{row.number:02}_{name}", says, essential, test) for name, says, essential, test in texts]
