"""What the papers claim, and what our studies say of it: tables that are rendered from committed records.

A claim names two methods of a study, of which the first should be better. Its test is the paired difference over
pretrained pairs, of greedy and of sampled scores; verdicts are corrected for the number of all tests on the page.
SKD's premise, that a teacher judges badly what a poor student has begun, is no comparison of methods: what
lab/premise.py has measured of it has a table of its own.
"""

from typing import NamedTuple

from lab.archive import PACKED
from lab.reading import Run, pairs_of, read_records, select_runs, shared_the_machine, starting_points
from lab.statistics import PairedDifference, holm, paired_difference, repeated
from lab.tables import DECIDED, difference_text, markdown_table, with_interval

START = "the start"  # in place of a method: the untouched student that all methods begin with


class Claim(NamedTuple):
    """One claim of a paper."""

    text: str
    source: str
    study: str  # a name in results/, or several with commas: then their pairs are taken together
    better: str  # a method of the study
    worse: str  # another one, or START
    keys: tuple = ("score", "score_sampled")  # figures of a final line that should be larger


BOTH = "skd-math,skd-math-800"  # the two confirmations together: 16 pairs
SKD, OKD = "SKD, Table 1", "OKD, Tables II and III"
CLAIMS = (
    Claim("Supervised KD is better than SFT", SKD, BOTH, "supervised", "sft"),
    Claim("On-policy KD is better than supervised KD (arithmetic, Gemma; on Qwen it is not)", SKD, BOTH,
          "on_policy", "supervised"),
    Claim("SKD is better than supervised KD", SKD, BOTH, "skd", "supervised"),
    Claim("SKD is better than on-policy KD", SKD, BOTH, "skd", "on_policy"),
    Claim("Mixing token by token is better than by sequence: SKD over ImitKD", SKD, BOTH, "skd", "imitkd"),
    Claim("From an untuned start on-policy KD gets stuck: supervised KD is better", "SKD, section 5.3", "skd-raw",
          "supervised", "on_policy"),
    Claim("From an untuned start SKD is better than on-policy KD", "SKD, section 5.3", "skd-raw", "skd", "on_policy"),
    Claim("Supervised KD alone is better than two stages", "SKD, section 5.5", BOTH, "supervised", "two_stage"),
    Claim("On-policy KD alone is better than two stages", "SKD, section 5.5", BOTH, "on_policy", "two_stage"),
    Claim("A student is a better draft after SKD: tokens accepted by speculative decoding", "SKD, appendix K",
          BOTH, "skd", START, ("draft_accept_rate",)),
    Claim("Reverse KL to a fixed teacher is better than forward KL", OKD, "okd-math", "fixed_reverse_kl",
          "fixed_forward_kl"),
    Claim("OKD is better than forward KL to a fixed teacher", OKD, "okd-math", "okd", "fixed_forward_kl"),
    Claim("OKD is better than reverse KL to a fixed teacher", OKD, "okd-math", "okd", "fixed_reverse_kl"),
    Claim("OKD is better than ImitKD", OKD, "okd-math", "okd", "imitkd"),
    Claim("OKD is better than GKD", OKD, "okd-math", "okd", "gkd"),
    Claim("OKD is better than MiniLLM (two of three sizes)", OKD, "okd-math", "okd", "minillm"),
    Claim("The student's feedback to the teacher helps (the paper has no such control)", "OKD, Eq. 16", "okd-math",
          "okd", "okd_no_feedback"),
    Claim("GKD takes longer than OKD", "OKD, Table II, time", "okd-math", "gkd", "okd", ("seconds",)),
    Claim("MiniLLM takes longer than OKD", "OKD, Table II, time", "okd-math", "minillm", "okd", ("seconds",)),
)

# Where is SKD better than on-policy distillation? (regime in words, study)
MAP = (
    ("untuned start", "skd-raw"),
    ("start of 500 steps of SFT", "skd-500"),
    ("start of 800 steps", "skd-math-800"),
    ("start of 1,000 steps: the default", "skd-math"),
    ("half-trained teacher: 500 steps, not 2,000", "skd-half-teacher"),
    ("references with one phrasing: entropy 0, not .5", "skd-certain"),
)


def difference(claim, runs, key):
    """The PairedDifference of a claim's two sides over the pairs of its studies; None where a method was not run."""
    better = select_runs(runs, claim.better, "steps")
    if claim.worse == START:
        worse = [run._replace(final={key: run.header["student_start"].get(key)}) for run in better]
    else:
        worse = select_runs(runs, claim.worse, "steps")
    found = paired_difference(better, worse, key, "pair")
    return found if found.n > 1 else None


def verdict(found: PairedDifference, corrected):
    """Words for a difference whose p-value, corrected for all tests of the page, is `corrected`."""
    if corrected >= DECIDED:
        return "not decided"
    return "holds" if found.mean > 0 else "does not hold"


def claims_table(root, claims=CLAIMS):
    """The table of results/README.md, and a line on how many tests it holds."""
    runs = {}
    for studies in dict.fromkeys(claim.study for claim in claims):
        folders = [root / "results" / name for name in studies.split(",")]
        if all((folder / PACKED).exists() for folder in folders):
            runs[studies] = [run for folder in folders for run in read_records(folder)]
    tests = {(claim, key): found for claim in claims for key in claim.keys if claim.study in runs
             if (found := difference(claim, runs[claim.study], key))}
    corrected = dict(zip(tests, holm([found.p_value for found in tests.values()])))
    lines = []
    for claim in claims:
        cells = []
        for place in range(2):
            of = (claim, claim.keys[place]) if place < len(claim.keys) else None
            if of not in tests:
                cells += ["-" if of is None else "not run", "-"]
                continue
            found = tests[of]
            digits = ".0f" if of[1] == "seconds" else ".3f"
            cells += [f"{found.mean:+{digits}} ± {found.half_width:{digits}}, {found.positive} of {found.n} pairs",
                      verdict(found, corrected[of])]
        against = f"{claim.better} minus {claim.worse}"
        if claim.keys[0] != "score":  # then it stands in the first of the two columns, which are headed by scores
            against += f" in {claim.keys[0]}"
        lines.append([claim.text, claim.source, f"{claim.study.replace(',', ', ')}: {against}", *cells])
    header = ["claim", "where", "our test", "greedy", "verdict", "sampled", "verdict"]
    told = (
        f"Each test: a paired t-test over pretrained pairs, mean ± half width of the 95 % interval. A verdict other "
        f'than "not decided" has p < {DECIDED:.2f} after Holm\'s correction for the {len(tests)} tests of this page.'
    )
    timed = [run for claim, key in tests if key == "seconds" for run in runs[claim.study]]
    if shared_the_machine(timed):
        told += " Seconds are rough: several of those runs shared the machine."
    return f"{markdown_table(lines, header, left=3)}\n\n{told}"


def map_table(root, regimes=MAP):
    """The table of regimes in results/README.md: scores of teacher, start, on-policy and SKD, and SKD's lead."""
    lines = []
    for words, study in regimes:
        if not (root / "results" / study / PACKED).exists():
            continue
        runs = read_records(root / "results" / study)
        scores = [[figures["score"] for figures in starting_points(runs, which).values()]
                  for which in ("teacher", "student_start")]
        methods = [select_runs(runs, name, "steps") for name in ("on_policy", "skd")]
        scores += [[run.final["score"] for run in chosen] for chosen in methods]
        leads = [paired_difference(methods[1], methods[0], key, "pair") for key in ("score", "score_sampled")]
        lines.append([words, study, str(leads[0].n), *(f"{sum(values) / len(values):.3f}" for values in scores),
                      *(difference_text(lead, lead.n) for lead in leads)])
    header = ["regime", "study", "pairs", "teacher", "start", "on_policy", "skd", "skd minus on_policy", "sampled"]
    return markdown_table(lines, header, left=2)


# ---------------------------------------------------------------------------------------------------------------------
# SKD's premise.

PREMISE = "premise.json"  # what lab/premise.py measured, in a folder of runs and in results/
REFERENCES, TEACHER, STUDENT_START = "references", "teacher", "student at the start"  # writers that are no method


def premise_table(found):
    """The table of what lab.premise.measure_folder found, in Markdown: a row per writer, means over pairs."""
    runs = [Run(row["writer"], row["pair"], row["seed"], "steps", {}, [], [], [], row) for row in found["measured"]]
    pairs = pairs_of(runs)
    by_writer = {writer: select_runs(runs, writer, "steps") for writer in dict.fromkeys(run.variant for run in runs)}
    own = {run.pair: run for run in by_writer[TEACHER]}
    differences = {}  # of the teacher's accuracy, to that on its own samples
    for writer, of_writer in by_writer.items():
        if writer != TEACHER:
            theirs = [run._replace(final=own[run.pair].final) for run in of_writer]
            differences[writer] = paired_difference(of_writer, theirs, "teacher_right", "pair")
    tested = {writer: one.p_value for writer, one in differences.items() if one.p_value is not None}
    decided = {writer for writer, p_value in zip(tested, holm([*tested.values()])) if p_value < DECIDED}

    def cell(writer, key):
        return with_interval(list(repeated(by_writer[writer], key, "pair").values()), len(pairs))

    def difference_cell(writer, _):
        if writer == TEACHER:
            return "-"
        return difference_text(differences[writer], differences[writer].n) + " *" * (writer in decided)

    def total(writer, key):
        return f"{sum(run.final[key] for run in by_writer[writer]):,}"

    columns = {  # title of a table: (heading, how a cell is made, of which figure)
        "The teacher on what they wrote": (
            ("teacher right", cell, "teacher_right"), ("minus on its own samples", difference_cell, None),
            ("probability", cell, "teacher_probability"), ("entropy", cell, "teacher_entropy"),
        ),
        "The teacher on right prefixes, and on wrong ones": (
            ("right: teacher right", cell, "teacher_right_on_right"),
            ("entropy there", cell, "result_entropy_on_right"),
            ("wrong: teacher right", cell, "teacher_right_on_wrong"), ("as asked", cell, "teacher_asked_on_wrong"),
            ("neither", cell, "teacher_neither_on_wrong"), ("entropy there", cell, "result_entropy_on_wrong"),
        ),
        "The writers themselves (counts: all pairs together)": (
            ("writer right", cell, "writer_right"), ("on right prefixes", cell, "writer_right_on_right"),
            ("on wrong prefixes", cell, "writer_right_on_wrong"), ("results", total, "places"),
            ("on wrong prefixes", total, "places_on_wrong"), ("pieces that are no step", total, "unread"),
        ),
    }
    many = len(pairs) > 1
    notes = [
        f"Means over {len(pairs)} pretrained pairs ± half width of the 95 % interval (Student-t)." if many else
        f"One pretrained pair ({pairs[0]}): there is no interval, and other pairs can differ.",
        f"Each writer answered the same {found['rows']} prompts of the test split; models wrote one sample per prompt, "
        "at temperature 1. The same fixed teacher judges all of them.",
        "Teacher right: of the places where a response states a result, the share at which the teacher's likeliest "
        "token is the true result of the operation as it is written there. Probability: the teacher's of that result. "
        "Entropy: the teacher's, in nats per token, over all response tokens.",
        "A prefix is right as long as all that stands before the result follows the prompt, the result's own left side "
        "included; from the first mistake on it is wrong. Then the prompt asks for another result than the one that "
        "is true as it is written: as asked, the share at which the teacher says that; neither, any other token.",
    ]
    if many:
        notes.append(f"Asterisk: p < {DECIDED:.2f} in a paired t-test over pairs, after Holm's correction for "
                     f"{len(tested)} comparisons.")
    if found["quick"]:
        notes.insert(0, "Made of a --quick run, a smoke run: these numbers mean nothing.")
    parts = ["\n".join(f"- {note}" for note in notes)]
    for title, of_table in columns.items():
        lines = [[writer, *(make(writer, key) for _, make, key in of_table)] for writer in by_writer]
        parts += [f"**{title}**", markdown_table(lines, ["who wrote", *(heading for heading, _, _ in of_table)])]
    return "\n\n".join(parts)
