"""`lamina run -t` and `tasks exec -t` on a real pseudo-terminal."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import termios
import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.fixtures_containers import WAIT_SECONDS, Machine, wait_for

pytestmark = [pytest.mark.root, pytest.mark.runtime, pytest.mark.overlay]


class Terminal:
    """A terminal with a command as the foreground job of its session."""

    def __init__(self) -> None:
        self.master, self.slave = pty.openpty()
        self.seen = b""
        self.process: subprocess.Popen[bytes] | None = None
        self.resize(30, 90)

    def resize(self, rows: int, columns: int) -> None:
        fcntl.ioctl(self.master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def start(self, argv: list[str]) -> subprocess.Popen[bytes]:
        slave = self.slave
        # setsid(1) of util-linux makes the terminal the controlling one of a new session.
        self.process = subprocess.Popen(
            ["setsid", "--ctty", "--wait", *argv], stdin=slave, stdout=slave, stderr=slave
        )
        return self.process

    def mode(self) -> list[Any]:
        return termios.tcgetattr(self.slave)

    def type(self, text: str) -> None:
        os.write(self.master, text.encode())

    def expect(self, pattern: str, *, seconds: float = WAIT_SECONDS) -> None:
        """Wait until the pattern is seen; what is up to its end counts as read."""
        deadline = time.monotonic() + seconds
        while not (match := re.search(pattern.encode(), self.seen)):
            left = deadline - time.monotonic()
            assert left > 0, f"no {pattern!r} in {self.seen!r}"
            if select.select([self.master], [], [], left)[0]:
                self.seen += os.read(self.master, 4096)
        self.seen = self.seen[match.end() :]

    def close(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
        os.close(self.master)
        os.close(self.slave)


@pytest.fixture
def terminal() -> Iterator[Terminal]:
    terminal = Terminal()
    yield terminal
    terminal.close()


def test_dialogue_size_and_restored_mode(machine: Machine, terminal: Terminal) -> None:
    before = terminal.mode()
    process = terminal.start(machine.argv("run", "--rm", "-t", "busybox", machine.id, "sh"))
    terminal.expect("# ")
    assert terminal.mode() != before
    terminal.type("tty; stty size; echo $TERM\n")
    terminal.expect(r"/dev/pts/0\s+30 90\s+xterm")
    terminal.resize(40, 120)
    assert process.pid
    terminal.type('while [ "$(stty size)" = "30 90" ]; do sleep 0.05; done; stty size\n')
    terminal.expect("40 120")
    terminal.type("exit 5\n")
    assert process.wait(WAIT_SECONDS) == 5
    assert terminal.mode() == before
    assert machine.leftovers() == []


def test_control_c_goes_to_the_container(machine: Machine, terminal: Terminal) -> None:
    process = terminal.start(machine.argv("run", "--rm", "-t", "busybox", machine.id, "sh"))
    terminal.expect("# ")
    terminal.type("sleep 100; echo code $?\n")
    terminal.expect("code")
    time.sleep(0.2)
    terminal.type("\x03")
    terminal.type("echo still $((20 + 2))\n")
    terminal.expect("still 22")
    terminal.type("exit\n")
    assert process.wait(WAIT_SECONDS) == 0


def test_control_c_without_terminal_arrives_once(machine: Machine, terminal: Terminal) -> None:
    script = "trap 'echo got' INT; trap 'exit 3' TERM; echo ready; while :; do sleep 0.05; done"
    process = terminal.start(machine.argv("run", "--rm", "busybox", machine.id, "sh", "-c", script))
    terminal.expect("ready")
    terminal.type("\x03")
    terminal.expect("got")
    time.sleep(0.3)
    machine.lamina("tasks", "kill", "-s", "TERM", machine.id)
    assert process.wait(WAIT_SECONDS) == 3
    terminal.expect("$")
    assert b"got" not in terminal.seen
    assert machine.leftovers() == []


def test_mode_is_restored_when_the_runtime_is_killed(machine: Machine, terminal: Terminal) -> None:
    before = terminal.mode()
    process = terminal.start(machine.argv("run", "--rm", "-t", "busybox", machine.id, "sh"))
    terminal.expect("# ")
    assert terminal.mode() != before
    listing = subprocess.run(
        ["pgrep", "-f", f"run --bundle {machine.root}"], capture_output=True, check=True
    )
    (runtime,) = map(int, listing.stdout.split())
    os.kill(runtime, signal.SIGKILL)
    process.wait(WAIT_SECONDS)
    assert terminal.mode() == before


def test_exec_on_a_terminal(machine: Machine, terminal: Terminal) -> None:
    machine.lamina("run", "-d", "busybox", machine.id, "sleep", "1000")
    before = terminal.mode()
    process = terminal.start(machine.argv("tasks", "exec", "-t", machine.id, "sh"))
    terminal.expect("# ")
    terminal.type("tty; stty size; exit 9\n")
    terminal.expect(r"/dev/pts/\d+\s+30 90")
    assert process.wait(WAIT_SECONDS) == 9
    assert terminal.mode() == before


def test_detached_with_a_terminal(machine: Machine) -> None:
    output = machine.root / "output"
    command = ["sh", "-c", "tty; echo done; sleep 1000"]
    uri = f"file://{output}"
    machine.lamina("run", "-d", "-t", "--log-uri", uri, "busybox", machine.id, *command)
    wait_for(lambda: b"done" in output.read_bytes())
    assert output.read_bytes().split() == [b"/dev/pts/0", b"done"]
    assert machine.tasks()[machine.id][1] == "RUNNING"
