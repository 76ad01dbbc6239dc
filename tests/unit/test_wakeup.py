"""Waking the janitor where that is not possible: said, and no more."""

from __future__ import annotations

import logging
import signal
import threading
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
