"""containerd's own suite of snapshotter tests passes through `lamina serve`.

For every snapshotter that works on this machine; each test has a daemon and a root of its own.
"""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from pathlib import Path

import pytest

from tests.fixtures_command import PROGRAM

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


def usable_snapshotters() -> list[str]:
    with tempfile.TemporaryDirectory() as root:
        done = subprocess.run(
            (PROGRAM, "--root", root, "plugins", "ls", "--json"), check=True, capture_output=True
        )
    return [plugin["ID"] for plugin in json.loads(done.stdout) if plugin["Status"] == "ok"]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "snapshotter" in metafunc.fixturenames:
        metafunc.parametrize("snapshotter", usable_snapshotters())


def run(program: Path, directory: Path, snapshotter: str, *options: str) -> str:
    """Run tests of the suite that must pass; return what they print."""
    done = subprocess.run(
        (program, "-test.v", *options),
        cwd=directory,
        env=os.environ
        | {
            "LAMINA_SUITE_PROGRAM": PROGRAM,
            "LAMINA_SUITE_SNAPSHOTTERS": snapshotter,
            "TMPDIR": str(directory),
        },
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


@pytest.mark.parametrize("test", TESTS)
def test_passes(suite_program: Path, tmp_path: Path, snapshotter: str, test: str) -> None:
    name = f"TestSnapshotter/{snapshotter}/{test}"
    said = run(suite_program, tmp_path, snapshotter, "-test.run", f"^{name}$".replace("/", "$/^"))
    assert f"--- PASS: {name} " in said


def test_knows_all_tests(suite_program: Path, tmp_path: Path) -> None:
    known = f"^TestSnapshotter$/^native$/^({'|'.join(TESTS)})$"
    said = run(suite_program, tmp_path, "native", "-test.skip", known)
    assert "=== RUN   TestSnapshotter/native/" not in said
