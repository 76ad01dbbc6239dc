from __future__ import annotations

import os
from pathlib import Path

import pytest

from lamina.linux.dm import udev


def semaphores() -> set[str]:
    """Return the keys of this machine's System V semaphores that are udev cookies of ours."""
    lines = Path("/proc/sysvipc/sem").read_text().splitlines()[1:]
    keys = [int(line.split()[0]) for line in lines if int(line.split()[4]) == os.geteuid()]
    return {f"{key:#x}" for key in keys if key >> 16 == 0x0D4D}


def test_change_without_uevent_is_not_waited_for() -> None:
    given = []

    def change(cookie: int) -> bool:
        given.append(cookie)
        assert f"0xd4d{cookie & 0xFFFF:04x}" in semaphores()
        return False

    assert udev.settle(change, timeout_seconds=60)
    (cookie,) = given
    assert cookie >> 16 == 0x4E  # whose change it is, and that nobody is to look into the device
    assert f"0xd4d{cookie & 0xFFFF:04x}" not in semaphores()


def test_udev_that_does_not_answer() -> None:
    before = semaphores()
    assert not udev.settle(lambda cookie: True, timeout_seconds=0.05)
    assert semaphores() <= before


def test_change_that_fails_leaves_no_semaphore() -> None:
    before = semaphores()

    def change(_cookie: int) -> bool:
        raise OSError("no")

    with pytest.raises(OSError, match="no"):
        udev.settle(change, timeout_seconds=1)
    assert semaphores() <= before
