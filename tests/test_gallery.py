"""Laws of the gallery of losses: its table says what losses.py says,
and its student with one parameter goes where it must."""

import re
import xml.etree.ElementTree as ElementTree

import adapters
import pytest
import torch

import losses
from lab import gallery

PAIRS = [*losses.DIVERGENCES, *losses.MATCHING_LOSSES]
ALL = [*PAIRS, "cross_entropy", *losses.TOKEN_LOSSES, *losses.SEQUENCE_LOSSES]


@pytest.mark.parametrize("name", losses.DIVERGENCES)
def test_the_table_says_what_the_divergence_says(name):
    """Value and gradient of the first position are the divergence's own, whatever stands beside it."""
    value, gradient = gallery.value_and_gradient(name)
    own = gallery.as_logits(gallery.STUDENT).requires_grad_()
    wanted = adapters.divergence(name, own, gallery.as_logits(gallery.TEACHER))
    assert (
        value == pytest.approx(wanted.item())
        and gradient == pytest.approx(torch.autograd.grad(wanted.sum(), own)[0].flatten().tolist())
    )
    assert gallery.value_and_gradient(name, gallery.TEACHER)[0] == pytest.approx(0, abs=1e-12)


def test_every_loss_has_its_line():
    """One line for each name of the four tables and cross-entropy, and all its numbers are finite."""
    lines = [line for line in gallery.table()[1:] if not line.endswith(":")]
    assert [line.split()[0] for line in lines] == [
        *losses.DIVERGENCES, *losses.MATCHING_LOSSES, "cross_entropy", *losses.TOKEN_LOSSES, *losses.SEQUENCE_LOSSES
    ]  # fmt: skip
    assert all(len(re.findall(r"[-+]?\d+\.\d{6}", line)) == 7 for line in lines)


def test_forward_kl_stands_at_the_mean_and_reverse_kl_on_the_mode():
    """Bumps of one width: forward KL is smallest where the means agree, .6 * 15 + .4 * 45 = 27;
    reverse KL at the larger one."""
    assert gallery.fit("forward_kl")[0] == pytest.approx(27.0) and gallery.verdict(27.0) == "stands between them"
    place, loss, _ = gallery.fit("reverse_kl")
    assert place == pytest.approx(15.0) and loss == pytest.approx(-torch.tensor(0.6).log().item(), abs=1e-3)
    assert gallery.verdict(place) == "seeks the larger mode" and gallery.verdict(44.0) == "seeks the smaller mode"


@pytest.mark.parametrize("name", PAIRS)
def test_the_fit_is_the_best_of_the_grid(name):
    """No other place of the grid has a smaller loss, asked one at a time."""
    place, loss, spread = gallery.fit(name)
    teacher = gallery.two_bumps()[None, None]
    for other in (0.0, 15.0, 21.5, 27.0, 30.0, 45.0, 60.0):
        student = gallery.bump(torch.tensor([other], dtype=torch.float64))[None]
        value = losses.per_token_loss(name, student, teacher, None).item()
        assert loss - 1e-12 <= value <= loss + spread + 1e-12
    assert 0 <= place <= 60 and spread > 0


def test_the_picture_and_the_command(tmp_path, capsys):
    """One panel per loss in a well-formed SVG; every loss is named in what is printed;
    a folder is no file to write to."""
    assert gallery.main(["--svg", str(tmp_path / "fits.svg")]) == 0
    root = ElementTree.parse(tmp_path / "fits.svg").getroot()
    space = "{http://www.w3.org/2000/svg}"
    assert len(root.findall(f"{space}polyline")) == len(root.findall(f"{space}polygon")) == len(PAIRS)
    words = {element.text for element in root.findall(f"{space}text")}
    assert set(PAIRS) <= words and {"stands between them", "seeks the larger mode"} <= words
    printed = capsys.readouterr().out
    assert all(name in printed for name in ALL)
    with pytest.raises(OSError, match="cannot be written to .*: name another place by --svg"):
        gallery.main(["--svg", str(tmp_path)])


def test_the_picture_takes_nobodys_place(tmp_path, monkeypatch):
    """A file that is no picture stays, and nothing is worked out first;
    a picture is replaced, a link is not followed."""
    (tmp_path / "notes.txt").write_text("mine")
    monkeypatch.setattr(gallery, "fit", lambda name: pytest.fail("fitted before the place was looked at"))
    for place in (str(tmp_path / "notes.txt"), str(tmp_path), str(tmp_path / "none" / "x.svg"), ""):
        with pytest.raises(OSError, match="cannot be written to .*: name another place by --svg"):
            gallery.main(["--svg", place])
    assert (tmp_path / "notes.txt").read_text() == "mine"
    monkeypatch.setattr(gallery, "fit", lambda name: (0.0, 0.0, 1.0))
    (tmp_path / "old.svg").write_text("<svg >older</svg>")
    (tmp_path / "link.svg").symlink_to(tmp_path / "old.svg")
    gallery.main(["--svg", str(tmp_path / "link.svg")])
    assert (tmp_path / "old.svg").read_text() == "<svg >older</svg>" and not (tmp_path / "link.svg").is_symlink()
    gallery.main(["--svg", str(tmp_path / "old.svg")])
    assert (tmp_path / "old.svg").read_bytes() == (tmp_path / "link.svg").read_bytes()
