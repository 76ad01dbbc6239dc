"""The harness itself: what keeps runs apart and cleans up after killed ones."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from tests import isolation
from tests.isolation import SESSION_VARIABLE, Session

STARTER = """
import os, subprocess, sys, time
from tests.isolation import Session
session = Session.start({})
child = subprocess.Popen(("sleep", "60"), env={})
print(session.directory, child.pid, flush=True)
time.sleep(60)
"""


@pytest.fixture
def killed_session() -> tuple[Path, int]:
    """A session that was killed, and the process that it left running."""
    repository = Path(__file__).parents[2]
    environ = {"PATH": os.environ["PATH"], "TMPDIR": tempfile.gettempdir()}
    process = subprocess.Popen(
        (sys.executable, "-c", STARTER),
        cwd=repository,
        env=environ,
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:
        assert process.stdout is not None
        directory, child = process.stdout.readline().split()
        process.send_signal(signal.SIGKILL)
    return Path(directory), int(child)


def test_environment_is_isolated() -> None:
    session = Path(os.environ[SESSION_VARIABLE])
    assert Path.home() == session / "home"
    assert Path(tempfile.gettempdir()) == session
    assert not [name for name in os.environ if name.startswith(("DOCKER_", "XDG_", "CONTAINERD_"))]
    assert not [name for name in os.environ if name.lower().endswith("_proxy")]


def test_umask_is_fixed() -> None:
    umask = os.umask(0o022)
    assert umask == 0o022


def test_sweep_removes_what_a_killed_session_left(killed_session: tuple[Path, int]) -> None:
    directory, child = killed_session
    assert directory.is_dir()
    isolation.sweep()
    assert not directory.exists()
    if os.geteuid() == 0:
        assert not isolation.runs(child)
    else:
        os.kill(child, signal.SIGKILL)


def test_sweep_leaves_a_living_session_alone() -> None:
    other = Path(tempfile.mkdtemp(prefix=isolation.PREFIX))
    lock = isolation._take_lock(other)
    isolation.sweep()
    assert other.is_dir()
    os.close(lock)
    isolation.sweep()
    assert not other.exists()


@pytest.mark.root
def test_mounts_are_private() -> None:
    session = Session(Path(os.environ[SESSION_VARIABLE]), None)
    assert str(session.home) in isolation.mount_points()
    assert str(session.home) not in isolation.mount_points("1")


@pytest.mark.loop
def test_sweep_detaches_loop_devices_of_killed_sessions(killed_session: tuple[Path, int]) -> None:
    directory, _ = killed_session
    backing = directory / "disk"
    backing.write_bytes(bytes(1 << 20))
    command = ("losetup", "--find", "--show", str(backing))
    device = subprocess.run(command, check=True, text=True, capture_output=True).stdout.strip()
    isolation.sweep()
    assert not Path(f"/sys/block/{Path(device).name}/loop").exists()
