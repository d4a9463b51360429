"""The papers' claims: which difference each one is, what decides it, and what a page says where nothing was run."""

import pytest
from test_report import make_lines, record

import train_okd
import train_skd
from lab import claims, studies
from lab.archive import PACKED, packed
from lab.statistics import PairedDifference


def study(root, scores, name="skd-math", start=0.5, first=101):
    """A study with these scores: {method: one number per pair}."""
    texts = []
    for method, values in scores.items():
        for pair, value in enumerate(values, first):
            header, *lines, final = make_lines(method, pair, order=0, pair=pair)
            header["student_start"] |= {"draft_accept_rate": start, "score": start}
            header["teacher"]["score"] = 0.99
            final |= {"score": value, "score_sampled": value - 0.1, "draft_accept_rate": 0.9 + value / 100}
            final["seconds"] = 15.0 if method == "a" else 10.0
            texts.append(record([header, *lines, final]).encode())
    folder = root / "results" / name
    folder.mkdir(parents=True)
    (folder / PACKED).write_bytes(packed(texts))
    return root


A_BEATS_B = claims.Claim("a is better", "here", "skd-math", "a", "b")
B_BEATS_A = claims.Claim("b is better", "here", "skd-math", "b", "a")


def cells(table):
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()[2:] if "|" in line]


def test_a_claim_is_a_paired_difference(tmp_path):
    """a is above b by .10, .12, .11 and .11: mean .11; of the two opposite claims one holds and one does not."""
    root = study(tmp_path, {"a": [0.6, 0.5, 0.4, 0.7], "b": [0.5, 0.38, 0.29, 0.59]})
    table = claims.claims_table(root, (A_BEATS_B, B_BEATS_A))
    one, other = cells(table)
    assert one[3].startswith("+0.110 ±") and one[3].endswith("4 of 4 pairs") and one[4] == one[6] == "holds"
    assert other[3].startswith("-0.110 ±") and other[3].endswith("0 of 4 pairs") and other[4] == "does not hold"
    assert "the 4 tests" in table


def test_a_page_with_more_claims_decides_less(tmp_path):
    """A difference with p = .02 holds alone; beside nine that say nothing it is not decided."""
    root = study(tmp_path, {"a": [0.6, 0.5, 0.4, 0.7], "b": [0.55, 0.41, 0.36, 0.60], "c": [0.6, 0.5, 0.41, 0.69]})
    alone = claims.Claim("a over b", "here", "skd-math", "a", "b", ("score",))
    found = claims.difference(alone, claims.read_records(root / "results" / "skd-math"), "score")
    assert 0.01 < found.p_value < 0.05
    assert cells(claims.claims_table(root, (alone,)))[0][4] == "holds"
    noise = tuple(claims.Claim(f"a over c, {i}", "here", "skd-math", "a", "c", ("score",)) for i in range(9))
    assert cells(claims.claims_table(root, (alone, *noise)))[0][4] == "not decided"


def test_a_claim_against_the_start(tmp_path):
    """A figure of the final student less that of the untouched one, which the header holds."""
    root = study(tmp_path, {"skd": [0.1, 0.2, 0.3]}, start=0.8)
    draft = claims.Claim("a better draft", "here", "skd-math", "skd", claims.START, ("draft_accept_rate",))
    (row,) = cells(claims.claims_table(root, (draft,)))
    assert row[3].startswith("+0.102 ±") and row[4] == "holds" and row[5:] == ["-", "-"]
    assert row[2] == "skd-math: skd minus the start in draft_accept_rate"


def test_the_pairs_of_two_studies_are_taken_together(tmp_path):
    """Four pairs of one study and two of another: mean of six differences; without one of the two it was not run."""
    two = claims.Claim("a over b", "here", "skd-math,more", "a", "b", ("score",))
    study(tmp_path, {"a": [0.6, 0.5, 0.4, 0.7], "b": [0.5, 0.4, 0.3, 0.6]})
    assert cells(claims.claims_table(tmp_path, (two,)))[0][3] == "not run"
    study(tmp_path, {"a": [0.8, 0.9], "b": [0.4, 0.5]}, name="more", first=201)
    (row,) = cells(claims.claims_table(tmp_path, (two,)))
    assert row[2] == "skd-math, more: a minus b" and row[3].startswith("+0.200 ±") and row[3].endswith("6 of 6 pairs")


def test_what_was_not_run_says_so(tmp_path):
    """Without the study, without the method, or with one pair alone, a claim has no verdict."""
    (tmp_path / "results").mkdir()
    assert cells(claims.claims_table(tmp_path, (A_BEATS_B,)))[0][3:] == ["not run", "-", "not run", "-"]
    study(tmp_path, {"a": [0.1, 0.2]})
    assert cells(claims.claims_table(tmp_path, (A_BEATS_B,)))[0][3:] == ["not run", "-", "not run", "-"]


@pytest.mark.parametrize("mean,corrected,words", [(0.1, 0.01, "holds"), (-0.1, 0.01, "does not hold"),
                                                  (0.1, 0.06, "not decided"), (-0.1, 0.5, "not decided")])
def test_verdicts(mean, corrected, words):
    assert claims.verdict(PairedDifference(mean, 0.01, 5, 5, 0.001), corrected) == words


def test_every_claim_is_about_two_sides():
    """Both are methods of the study's script, and no claim stands twice; a map names studies that there are."""
    for claim in claims.CLAIMS:
        (script,) = {studies.STUDIES[name].command.split(".")[0] for name in claim.study.split(",")}
        methods = {"train_skd": train_skd.VARIANTS, "train_okd": train_okd.VARIANTS}[script]
        assert claim.better in methods and claim.worse in (*methods, claims.START), claim
    assert len({(claim.study, claim.better, claim.worse, claim.keys) for claim in claims.CLAIMS}) == len(claims.CLAIMS)
    assert {study for _, study in claims.MAP} <= set(studies.STUDIES)


def test_a_claim_of_time_is_in_seconds(tmp_path):
    """Whole seconds, in the first of the two columns, and the figure is named."""
    root = study(tmp_path, {"a": [0.1, 0.2, 0.3], "b": [0.1, 0.2, 0.3]})
    slower = claims.Claim("a is slower", "here", "skd-math", "a", "b", ("seconds",))
    (row,) = cells(claims.claims_table(root, (slower,)))
    assert row[2].endswith("a minus b in seconds") and row[3] == "+5 ± 0, 3 of 3 pairs" and row[4] == "holds"


def test_the_map_is_a_row_per_regime(tmp_path):
    """Means over pairs of both models and both methods, SKD's lead with its interval; what was not run is left out."""
    study(tmp_path, {"on_policy": [0.2, 0.3, 0.4], "skd": [0.4, 0.5, 0.6]}, name="weak", start=0.1)
    study(tmp_path, {"on_policy": [0.8, 0.9], "skd": [0.9, 0.8]}, name="strong", start=0.7)
    weak, strong = cells(claims.map_table(tmp_path, (("a", "weak"), ("b", "none"), ("c", "strong"))))
    assert weak == ["a", "weak", "3", "0.990", "0.100", "0.300", "0.500", "+0.200 ± 0.000", "+0.200 ± 0.000"]
    assert strong[0] == "c" and strong[2] == "2" and strong[4:8] == ["0.700", "0.850", "0.850", "+0.000 ± 1.271"]
