"""A cache whose process is killed while it fills."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.lazy_killed import LENGTHS

REPOSITORY = Path(__file__).parents[2]


@pytest.mark.parametrize("seed", [1, 2])
def test_no_mark_without_its_data_after_any_kill(tmp_path: Path, seed: int) -> None:
    argv = [sys.executable, "-m", "tests.lazy_killed", str(tmp_path), str(seed)]
    done = subprocess.run(argv, cwd=REPOSITORY, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 3 * 2 * len(LENGTHS)
