"""`lamina.testing` as a third party's pytest runs it: when it skips, and what it says."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from lamina.testing import SnapshotterContract

MODULE = """
from lamina.testing import SnapshotterContract

class TestIt(SnapshotterContract):
    plugin = "{plugin}"
"""


def run(directory: Path, plugin: str, *prefix: str) -> str:
    """Run the contract on a plugin, with warnings and unknown marks as errors."""
    (directory / "test_it.py").write_text(MODULE.format(plugin=plugin))
    pytest_command = (sys.executable, "-m", "pytest", "-W", "error", "--strict-markers", "-ra")
    done = subprocess.run(
        (*prefix, *pytest_command, "-p", "no:cacheprovider", "--basetemp", directory / "t"),
        cwd=directory,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert done.returncode == 0, done.stdout
    assert " passed" not in done.stdout
    return done.stdout


@pytest.mark.userns
def test_without_root_everything_is_skipped(tmp_path: Path) -> None:
    assert "needs root: snapshots are mounted" in run(tmp_path, "native", "unshare", "--user")


@pytest.mark.root
def test_where_the_plugin_cannot_work_the_reason_is_shown(tmp_path: Path) -> None:
    assert "load snapshotter aufs: " in run(tmp_path, "aufs")


def test_a_difference_names_a_check() -> None:
    with pytest.raises(TypeError, match="there is no check 'directory_rename'"):
        type("TestIt", (SnapshotterContract,), {"differences": {"directory_rename": "a typo"}})
