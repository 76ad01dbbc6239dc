"""The Go programs of tests/containerd-suite, for tests marked `go`."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.probes import GO, SUITE


def go(*arguments: str | Path) -> None:
    """Run Go in the module of the suite."""
    done = subprocess.run(
        (GO, "-C", SUITE, *arguments), stdin=subprocess.DEVNULL, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="session")
def suite_program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The suite's test binary."""
    program = tmp_path_factory.mktemp("go") / "suite.test"
    go("test", "-c", "-o", program, ".")
    return program


@pytest.fixture(scope="session")
def imagefs_program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A client of CRI that asks what kubelet asks."""
    program = tmp_path_factory.mktemp("go") / "imagefs"
    go("build", "-o", program, "./cmd/imagefs")
    return program
