"""Shared by all tests: the --slow switch, one thread (same numbers on every machine size), and no network."""

import shutil
import socket
from pathlib import Path

import hypothesis
import pytest
import torch

ROOT = Path(__file__).parents[1]


def pytest_addoption(parser):
    more = "run the slow tests too (end-to-end runs, every row with every flag, larger samples)"
    parser.addoption("--slow", action="store_true", help=more)


def pytest_configure(config):
    config.addinivalue_line("markers", "slow: needs minutes, or is one of many of its kind; runs with --slow")
    config.addinivalue_line("markers", "more_with_slow: runs always; with --slow on more, and as a slow one")
    hypothesis.settings.register_profile("fast", max_examples=20)  # per cent of test_properties.EXAMPLES
    hypothesis.settings.register_profile("slow", max_examples=100)
    hypothesis.settings.load_profile("slow" if config.getoption("--slow") else "fast")
    torch.set_num_threads(1)


@pytest.hookimpl(tryfirst=True)  # before -m slow looks at the marks
def pytest_collection_modifyitems(config, items):
    for item in items:
        if config.getoption("--slow") and "more_with_slow" in item.keywords:
            item.add_marker(pytest.mark.slow)
        elif not config.getoption("--slow") and "slow" in item.keywords:
            item.add_marker(pytest.mark.skip(reason="needs --slow"))
    # The longest tests come first: as the last ones they would keep one of two workers waiting for minutes.
    items.sort(key=lambda item: getattr(item, "originalname", "") != "test_records_are_current")


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    """Only the loopback address may be reached: a test that needs the net is a broken test."""
    connect = socket.socket.connect

    def guarded(self, address):
        host = address[0] if isinstance(address, tuple) else address
        assert host in ("127.0.0.1", "localhost", "::1") or self.family == socket.AF_UNIX, (
            f"a test wants to reach {host}"
        )
        return connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", guarded)


@pytest.fixture(scope="module")
def clone(tmp_path_factory):
    """A copy of the project's own files, without caches, runs or git: what a fresh download holds."""
    folder = tmp_path_factory.mktemp("clone")
    for path in [*ROOT.glob("*.py"), *ROOT.glob("data/*.py"), *ROOT.glob("lab/*.py")]:
        target = folder / path.relative_to(ROOT)
        target.parent.mkdir(exist_ok=True)
        shutil.copy(path, target)
    return folder
