"""The Go programs of tests/containerd-suite, for tests marked `go`."""

from __future__ import annotations

import functools
import subprocess
import tempfile
from pathlib import Path

import pytest

from tests.probes import GO, SUITE


def go(*arguments: str | Path) -> None:
    """Run Go in the module of the suite."""
    done = subprocess.run(
        (GO, "-C", SUITE, *arguments), stdin=subprocess.DEVNULL, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr


@functools.cache
def build_suite() -> Path:
    """Return the suite's test binary, built once in a session; outside of fixtures, too."""
    program = Path(tempfile.mkdtemp(prefix="go-"), "suite.test")
    go("test", "-c", "-o", program, ".")
    return program


@pytest.fixture(scope="session")
def suite_program() -> Path:
    """The suite's test binary."""
    return build_suite()


@pytest.fixture(scope="session")
def imagefs_program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A client of CRI that asks what kubelet asks."""
    program = tmp_path_factory.mktemp("go") / "imagefs"
    go("build", "-o", program, "./cmd/imagefs")
    return program
