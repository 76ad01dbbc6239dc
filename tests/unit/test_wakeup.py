"""Waking the janitor where that is not possible: said, and no more."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
import time
from pathlib import Path

import pytest

from lamina.snapshotters.wakeup import LOCK, Janitor

pytestmark = pytest.mark.filterwarnings("error::pytest.PytestUnhandledThreadExceptionWarning")


def test_janitor_that_cannot_be_started(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / LOCK).mkdir()
    janitor = Janitor(tmp_path)
    with caplog.at_level(logging.WARNING):
        janitor.wake()
        janitor.close()
    assert "cannot start the janitor" in caplog.text


def test_root_that_is_gone(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    janitor = Janitor(tmp_path / "gone")
    janitor.wake()
    janitor.close()
    assert caplog.text == ""


def fake_janitor(path: Path, script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have this shell script run in place of Python."""
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o700)
    monkeypatch.setattr(sys, "executable", str(path))


def ended(janitor: Janitor, number: int) -> Janitor:
    deadline = time.monotonic() + 30
    while janitor.ended < number:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return janitor


def test_descriptors_are_not_passed_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    listed = tmp_path / "listed"
    fake_janitor(tmp_path / "sh", f"readlink /proc/$$/fd/* > {listed}", monkeypatch)
    marker = tmp_path / "a lock of the shell that has started us"
    with marker.open("w") as lock:
        os.set_inheritable(lock.fileno(), True)
        janitor = Janitor(tmp_path)
        janitor.wake()
        janitor.close()
        ended(janitor, 1)
    assert str(marker) not in listed.read_text()
    assert listed.read_text().count("/dev/null") == 2  # and the file itself


def test_runs_are_coalesced_and_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_janitor(tmp_path / "sh", f"echo >> {tmp_path}/runs; exit 1", monkeypatch)
    janitor = Janitor(tmp_path)
    for _ in range(100):
        janitor.wake()
    ended(janitor, 1)
    janitor.close()
    assert (tmp_path / "runs").read_text() == "\n"
    assert (janitor.ended, janitor.failed) == (1, 1)


def test_caller_that_ignores_its_children(tmp_path: Path) -> None:
    before = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    try:
        janitor = Janitor(tmp_path)
        janitor.wake()
        janitor.close()
        for thread in threading.enumerate():
            if thread.name == "wake-janitor":
                thread.join(30)
    finally:
        signal.signal(signal.SIGCHLD, before)


def test_its_thread_takes_no_signals(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are the caller's, who may wait for them in another thread."""
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    fake_janitor(tmp_path / "sh", f"cat {gate}", monkeypatch)
    janitor = Janitor(tmp_path)
    janitor.wake()
    (thread,) = (each for each in threading.enumerate() if each.name == "wake-janitor")
    status = Path(f"/proc/self/task/{thread.native_id}/status").read_text()
    (blocked,) = (line.split()[1] for line in status.splitlines() if line.startswith("SigBlk:"))
    assert int(blocked, 16) >> (signal.SIGTERM - 1) & 1
    assert signal.SIGTERM not in signal.pthread_sigmask(signal.SIG_BLOCK, [])
    janitor.close()
    gate.write_bytes(b"")
    ended(janitor, 1)
