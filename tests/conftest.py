"""Shared by all tests: the --slow switch, one thread (same numbers on every machine size), and no network."""

import shutil
import socket
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]


def pytest_addoption(parser):
    parser.addoption("--slow", action="store_true", help="run the slow tests too (end-to-end runs, larger samples)")


def pytest_configure(config):
    config.addinivalue_line("markers", "slow: minutes, not seconds; runs with --slow")
    torch.set_num_threads(1)


def pytest_collection_modifyitems(config, items):
    if not config.getoption("--slow"):
        for item in items:
            if "slow" in item.keywords:
                item.add_marker(pytest.mark.skip(reason="needs --slow"))


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
