"""What the service manager is told, and what it hands over."""

from __future__ import annotations

import logging
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from lamina.daemon.activation import activated
from lamina.daemon.notify import Notifier
from lamina.errors import InvalidArgument


def listener(address: str) -> socket.socket:
    manager = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    manager.bind(address)
    manager.settimeout(5)
    return manager


def test_states_reach_the_manager(tmp_path: Path) -> None:
    path = str(tmp_path / "notify")
    environ = {"NOTIFY_SOCKET": path, "PATH": "/bin"}
    with listener(path) as manager:
        notifier = Notifier.from_environment(environ)
        notifier.ready("serving")
        assert manager.recv(100) == b"READY=1\nSTATUS=serving"
        notifier.alive()
        assert manager.recv(100) == b"WATCHDOG=1"
        notifier.stopping("bye")
        assert manager.recv(100) == b"STOPPING=1\nSTATUS=bye"
    assert environ == {"PATH": "/bin"}


def test_abstract_address() -> None:
    name = f"lamina-test-{os.getpid()}"
    with listener(f"\0{name}") as manager:
        Notifier(f"@{name}").ready("x")
        assert manager.recv(100) == b"READY=1\nSTATUS=x"


def test_no_manager_and_a_deaf_one(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        Notifier().ready("x")
        assert caplog.text == ""
        Notifier(str(tmp_path / "gone")).ready("x")
        assert "cannot tell the service manager" in caplog.text


@pytest.mark.parametrize(
    ("variables", "seconds"),
    [
        ({}, None),
        ({"WATCHDOG_USEC": "3000000"}, 3.0),
        ({"WATCHDOG_USEC": "3000000", "WATCHDOG_PID": str(os.getpid())}, 3.0),
        ({"WATCHDOG_USEC": "3000000", "WATCHDOG_PID": "1"}, None),
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
    ],
)
def test_watchdog(variables: dict[str, str], seconds: float | None) -> None:
    assert Notifier.from_environment(variables).watchdog_seconds == seconds
    assert variables == {}


def test_nothing_handed_over() -> None:
    assert activated({}) == ((), ())
    others = {"LISTEN_PID": "1", "LISTEN_FDS": "1", "LISTEN_FDNAMES": "x"}
    assert activated(others) == ((), ())
    assert others == {}


HAND_OVER = """
import os, socket, sys
made = []
for word in sys.argv[1].split():
    kind = {"calls": socket.AF_UNIX, "metrics": socket.AF_INET, "deaf": socket.AF_UNIX}[word]
    made.append(socket.socket(kind))
    if word == "calls":
        made[-1].bind(os.path.join(sys.argv[2], "s"))
    if word != "deaf":
        made[-1].listen()
fds = [os.dup(each.fileno()) for each in made]
for number, fd in enumerate(fds):
    os.dup2(fd, 3 + number)
names = ":".join("lamina.socket" if word == "calls" else word for word in sys.argv[1].split())
environ = {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": str(len(made)), "LISTEN_FDNAMES": names}
from lamina.daemon.activation import activated
from lamina.errors import LaminaError
try:
    found = activated(environ)
except LaminaError as error:
    sys.exit(str(error))
assert environ == {}
for each in (*found.calls, *found.metrics):
    assert not each.get_inheritable() and not each.getblocking()
print([each.family.name for each in found.calls], [each.family.name for each in found.metrics])
"""


def hand_over(words: str, directory: Path) -> str:
    argv = [sys.executable, "-c", HAND_OVER, words, str(directory)]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)
    return (done.stdout or done.stderr).strip()


def test_sockets_handed_over(tmp_path: Path) -> None:
    assert hand_over("calls metrics", tmp_path) == "['AF_UNIX'] ['AF_INET']"


def test_a_socket_that_does_not_listen(tmp_path: Path) -> None:
    assert "use descriptor 3: it is no listening stream socket" in hand_over("deaf", tmp_path)


def test_calls_are_for_local_sockets_only(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setattr("lamina.daemon.activation.FIRST", os.dup(server.fileno()))
        environ = {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "1"}
        with pytest.raises(InvalidArgument, match="no unix socket"):
            activated(environ)
