"""The scripts that README.md names."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]


@pytest.mark.overlay
@pytest.mark.runtime
@pytest.mark.registry
def test_demo_shows_everything_and_leaves_nothing(tmp_path: Path) -> None:
    done = subprocess.run(
        (REPOSITORY / "script/demo",),
        env={**os.environ, "TMPDIR": str(tmp_path)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert done.returncode == 0, done.stdout
    for snapshotter in ("overlayfs", "native"):
        assert f"a container on {snapshotter} says: hello from a layer of its own" in done.stdout
    assert done.stdout.splitlines()[-1].startswith("nothing is left behind")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.root
def test_demo_without_root_says_so_in_one_line() -> None:
    command = ("setpriv", "--reuid=65534", "--clear-groups", "bash", "-s")
    script = (REPOSITORY / "script/demo").read_text()
    # In /, which anybody may enter; the repository may be somebody's own.
    done = subprocess.run(command, cwd="/", input=script, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert "must be run as root" in done.stderr
