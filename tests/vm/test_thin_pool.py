"""The fixture that makes thin pools."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.fixtures_thin_pool import active_pool
from tests.isolation import device_names

pytestmark = [pytest.mark.dm, pytest.mark.root]


def test_pool_is_removed_with_what_is_on_it(tmp_path: Path) -> None:
    with active_pool(tmp_path) as pool:
        assert pool.path.is_block_device()
        for argv in (
            ("message", pool.name, "0", "create_thin 1"),
            ("create", f"{pool.name}-snap-1", "--table", f"0 2048 thin {pool.path} 1"),
        ):
            subprocess.run(("dmsetup", *argv), check=True)
        assert f"{pool.name}-snap-1" in device_names()
    assert device_names() == []


def test_pool_comes_back_from_its_files(tmp_path: Path) -> None:
    with active_pool(tmp_path) as pool:
        subprocess.run(("dmsetup", "message", pool.name, "0", "create_thin 1"), check=True)
    with active_pool(tmp_path) as pool:
        again = ("dmsetup", "message", pool.name, "0", "create_thin 1")
        done = subprocess.run(again, capture_output=True, text=True)
        assert "File exists" in done.stderr
