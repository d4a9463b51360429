"""The papers' claims: which difference each one is, what decides it, and what a page says where nothing was run."""

import pytest
from test_report import make_lines, record

import train_skd
from lab import claims
from lab.archive import PACKED, packed
from lab.statistics import PairedDifference


def study(root, scores, name="skd-math", start=0.5):
    """A study with these scores: {method: one number per pair}."""
    texts = []
    for method, values in scores.items():
        for pair, value in enumerate(values, 101):
            header, *lines, final = make_lines(method, pair, order=0, pair=pair)
            header["student_start"]["draft_accept_rate"] = start
            final |= {"score": value, "score_sampled": value - 0.1, "draft_accept_rate": 0.9 + value / 100}
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
    """Both are methods of the script, and no claim stands twice."""
    for claim in claims.CLAIMS:
        assert claim.better in train_skd.VARIANTS and claim.worse in (*train_skd.VARIANTS, claims.START)
    assert len({(claim.study, claim.better, claim.worse, claim.keys) for claim in claims.CLAIMS}) == len(claims.CLAIMS)
