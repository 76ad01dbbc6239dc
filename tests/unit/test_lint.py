"""The linters, as tests."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]


@pytest.mark.parametrize(
    "linter",
    ["ruff", "format", "mypy", "imports", "spelling", pytest.param("go", marks=pytest.mark.go)],
)
def test_lint(linter: str) -> None:
    command = (REPOSITORY / "script/lint", linter)
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    assert done.returncode == 0, done.stdout.decode()
