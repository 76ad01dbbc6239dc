"""containerd's own suite of snapshotter tests passes through `lamina serve`.

For every snapshotter that works on this machine. Each test has a daemon and a root of its own on
overlayfs; on the others, all tests share one, and each finds it empty. That `fsck` likes what such
tests leave, the contract shows on every driver.
"""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.filesystems import mounted
from tests.fixtures_command import PROGRAM
from tests.probes import GO, SUITE

pytestmark = [pytest.mark.go, pytest.mark.overlay]

# In the suite's own spelling.
TESTS = (
    "Basic",
    "StatActive",
    "StatComitted",
    "TransitivityTest",
    "PreareViewFailingtest",
    "Update",
    "Remove",
    "Walk",
    "LayerFileupdate",
    "RemoveDirectoryInLowerLayer",
    "Chown",
    "DirectoryPermissionOnCommit",
    "RemoveIntermediateSnapshot",
    "DeletedFilesInChildSnapshot",
    "MoveFileFromLowerLayer",
    "ViewReadonly",
    "StatInWalk",
    "CloseTwice",
    "RootPermission",
    "Rename",
    "128LayersMount",
)

ON_ITS_OWN = ("btrfs",)
"""Snapshotters that need a filesystem of their own for their roots, named as its marker."""
PARALLEL = 4
"""Tests that run at the same time where each has a daemon of its own; the longest is the last."""


def usable_snapshotters() -> list[str]:
    with tempfile.TemporaryDirectory() as root:
        done = subprocess.run(
            (PROGRAM, "--root", root, "plugins", "ls", "--json"), check=True, capture_output=True
        )
    return [plugin["ID"] for plugin in json.loads(done.stdout) if plugin["Status"] == "ok"]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "snapshotter" in metafunc.fixturenames:
        usable = [name for name in usable_snapshotters() if name not in ON_ITS_OWN]
        own = [pytest.param(name, marks=getattr(pytest.mark, name)) for name in ON_ITS_OWN]
        metafunc.parametrize("snapshotter", [*usable, *own])


class Outcome(NamedTuple):
    """How one test of the suite ended, and what it printed."""

    action: str
    output: str


class Suite:
    """Runs the suite for one snapshotter after another, all tests of it together."""

    def __init__(self, program: Path, directory: Path) -> None:
        self._program = program
        self._directory = directory
        self._outcomes: dict[str, dict[str, Outcome]] = {}

    def outcomes(self, snapshotter: str) -> dict[str, Outcome]:
        """Return how each test ended."""
        if snapshotter not in self._outcomes:
            self._outcomes[snapshotter] = self._run_where_it_works(snapshotter)
        return self._outcomes[snapshotter]

    def _run_where_it_works(self, snapshotter: str) -> dict[str, Outcome]:
        if snapshotter not in ON_ITS_OWN:
            return self._run(snapshotter, self._directory)
        with mounted(self._directory, f"mkfs.{snapshotter}", "-q") as directory:
            return self._run(snapshotter, directory)

    def _run(self, snapshotter: str, directory: Path) -> dict[str, Outcome]:
        shared = "" if snapshotter == "overlayfs" else "1"
        options = ("-test.v=test2json", f"-test.parallel={PARALLEL}")
        done = subprocess.run(
            (GO, "-C", SUITE, "tool", "test2json", self._program, *options),
            env=os.environ
            | {
                "LAMINA_SUITE_PROGRAM": PROGRAM,
                "LAMINA_SUITE_SNAPSHOTTERS": snapshotter,
                "LAMINA_SUITE_SHARED": shared,
                "TMPDIR": str(directory),
            },
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            text=True,
        )
        outputs: dict[str, list[str]] = defaultdict(list)
        actions: dict[str, str] = {}
        for event in map(json.loads, done.stdout.splitlines()):
            if event["Action"] == "output":
                outputs[event.get("Test", "")].append(event["Output"])
            else:
                actions[event.get("Test", "")] = event["Action"]
        prefix = f"TestSnapshotter/{snapshotter}/"
        found = {
            test.removeprefix(prefix): Outcome(action, "".join(outputs[test]))
            for test, action in actions.items()
            if test.startswith(prefix)
        }
        assert found, done.stdout
        return found


@pytest.fixture(scope="module")
def suite(suite_program: Path, tmp_path_factory: pytest.TempPathFactory) -> Suite:
    return Suite(suite_program, tmp_path_factory.mktemp("suite"))


@pytest.mark.parametrize("test", TESTS)
def test_passes(suite: Suite, snapshotter: str, test: str) -> None:
    outcome = suite.outcomes(snapshotter)[test]
    assert outcome.action == "pass", outcome.output


def test_these_are_all_tests(suite: Suite, snapshotter: str) -> None:
    assert sorted(suite.outcomes(snapshotter)) == sorted(TESTS)
