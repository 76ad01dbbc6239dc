"""Device-mapper where a udev makes the nodes, which here is a thread that follows its rules."""

from __future__ import annotations

import os
import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from lamina.linux.dm import DeviceMapper, Target, control, node, udev
from tests.fixtures_thin_pool import device_name
from tests.isolation import remove_devices

pytestmark = [
    pytest.mark.dm,
    pytest.mark.root,
    pytest.mark.skipif(udev.running(), reason="udev runs, and would answer, too"),
]

NETLINK_KOBJECT_UEVENT = 15
ZERO = [Target(0, 8, "zero", "")]


class Rules:
    """What 55-dm.rules and 95-dm-notify.rules do of a uevent."""

    def __init__(self, name: str) -> None:
        self.seen: list[dict[str, str]] = []
        self._link = node(name)

    def run(self, uevent: dict[str, str]) -> None:
        if uevent.get("SUBSYSTEM") != "block" or "DM_COOKIE" not in uevent:
            return
        self.seen.append(uevent)
        with suppress(FileNotFoundError):
            self._link.unlink()
        if uevent["ACTION"] == "change":
            self._link.symlink_to(f"../{uevent['DEVNAME']}")
        environ = {"PATH": os.environ["PATH"]}  # without DM_DISABLE_UDEV, which would hinder it
        argv = ("dmsetup", "udevcomplete", uevent["DM_COOKIE"])
        subprocess.run(argv, check=True, env=environ)


@pytest.fixture
def control_socket() -> Iterator[None]:
    """What says that udev runs; without it `dmsetup udevcomplete` does nothing."""
    path = Path("/run/udev/control")
    path.parent.mkdir(exist_ok=True)
    path.touch()
    yield
    path.unlink()


@contextmanager
def answering(rules: Rules) -> Iterator[None]:
    """Run the rules on the kernel's uevents."""
    uevents = socket.socket(socket.AF_NETLINK, socket.SOCK_DGRAM, NETLINK_KOBJECT_UEVENT)
    with uevents:
        uevents.bind((0, 1))
        uevents.settimeout(0.05)
        stopped = threading.Event()

        def serve() -> None:
            while not stopped.is_set():
                with suppress(TimeoutError):
                    fields = uevents.recv(8192).decode().split("\0")[1:]
                    rules.run(dict(field.split("=", 1) for field in fields if field))

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield
        finally:
            stopped.set()
            thread.join()


@pytest.fixture
def name() -> Iterator[str]:
    made = device_name("udev")
    yield made
    remove_devices(made.__eq__)
    node(made).unlink(missing_ok=True)


def semaphores() -> int:
    return len(Path("/proc/sysvipc/sem").read_text().splitlines()) - 1


@pytest.mark.usefixtures("control_socket")
def test_node_is_udevs_when_the_call_returns(name: str) -> None:
    rules = Rules(name)
    with answering(rules), DeviceMapper(wait_for_udev=True) as dm:
        info = dm.activate(name, ZERO)
        assert os.readlink(node(name)) == f"../dm-{os.minor(info.number)}"
        dm.suspend(name)
        dm.resume(name)
        assert dm.remove(name)
        assert not node(name).is_symlink()
    assert [uevent["ACTION"] for uevent in rules.seen] == ["change", "remove"]
    assert semaphores() == 0


@pytest.mark.usefixtures("control_socket")
def test_flags_of_the_cookie_are_what_dmsetup_reads(name: str) -> None:
    rules = Rules(name)
    with answering(rules), DeviceMapper(wait_for_udev=True) as dm:
        dm.activate(name, ZERO)
    argv = ("dmsetup", "udevflags", rules.seen[0]["DM_COOKIE"])
    flags = subprocess.run(argv, check=True, capture_output=True, text=True).stdout.split()
    assert flags == [
        "DM_UDEV_DISABLE_SUBSYSTEM_RULES_FLAG='1'",
        "DM_UDEV_DISABLE_DISK_RULES_FLAG='1'",
        "DM_UDEV_DISABLE_OTHER_RULES_FLAG='1'",
        "DM_UDEV_PRIMARY_SOURCE_FLAG='1'",
    ]


def test_udev_that_does_not_answer_is_not_waited_for_again(
    name: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(control, "_UDEV_SECONDS", 0.2)
    with DeviceMapper(wait_for_udev=True) as dm:
        info = dm.activate(name, ZERO)
        assert node(name).stat().st_rdev == info.number
        assert dm.remove(name)
        assert not node(name).exists()
    assert caplog.messages == ["udev does not answer; it is not waited for again"]
    assert semaphores() == 0
