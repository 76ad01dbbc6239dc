"""The fixture that makes thin pools, and the sweep of what killed sessions made."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from tests.fixtures_thin_pool import active_pool
from tests.isolation import device_names, sweep

pytestmark = [pytest.mark.dm, pytest.mark.root]

STARTER = """
import subprocess, time
from tests.isolation import Session
session = Session.start({})
name = f"{session.name}-left1"
subprocess.run(("dmsetup", "create", name, "--table", "0 8 zero"), check=True)
print(name, flush=True)
time.sleep(60)
"""


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


def test_sweep_removes_the_devices_of_a_killed_session() -> None:
    environ = {**os.environ, "TMPDIR": tempfile.gettempdir()}
    argv = (sys.executable, "-c", STARTER)
    with subprocess.Popen(argv, env=environ, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        name = process.stdout.readline().strip()
        assert name in device_names()
        sweep()
        assert name in device_names()
        process.kill()
    sweep()
    assert name not in device_names()
