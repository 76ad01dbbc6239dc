"""Work that is killed in the middle: at any function of those that are chosen."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

import pytest

Predicate = Callable[[str, str], bool]

_FINISHED = 7


def killed(action: Callable[[], object], number: int, counts: Predicate) -> bool:
    """Do something in a process that is killed when the Nth function of those has returned.

    Args:
        action: what.
        number: N.
        counts: chooses, given the names of a module and of a function in it.

    Returns:
        False when it came to its end before.
    """
    process = os.fork()
    if not process:
        left = number

        def profile(frame: FrameType, event: str, _argument: Any) -> None:
            nonlocal left
            if event == "return" and counts(frame.f_globals["__name__"], frame.f_code.co_name):
                left -= 1
                if not left:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.setprofile(profile)
        try:
            action()
        finally:
            sys.setprofile(None)
            os._exit(0 if sys.exc_info()[0] is None else 1)
    _, status = os.waitpid(process, 0)
    code = os.waitstatus_to_exitcode(status)
    assert code in {0, -signal.SIGKILL}
    return code != 0


def finished(action: Callable[[], None], arm: Callable[[pytest.MonkeyPatch], object]) -> bool:
    """Do something in a process that may be killed on the way.

    Args:
        action: what.
        arm: called there first; puts in the way what kills the process.

    Returns:
        True when it came to its end.
    """
    process = os.fork()
    if not process:
        try:
            with pytest.MonkeyPatch.context() as monkeypatch:
                arm(monkeypatch)
                action()
            os._exit(_FINISHED)
        finally:
            os._exit(1)
    _, status = os.waitpid(process, 0)
    code = os.waitstatus_to_exitcode(status)
    assert code in {_FINISHED, -signal.SIGKILL}
    return code == _FINISHED


def kill_after(process: subprocess.Popen[bytes], seconds: float) -> None:
    """Kill a process at that moment, unless it comes to its end before."""
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        process.kill()
