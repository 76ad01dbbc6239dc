"""The installed `lamina` command on a root directory, and what it must have left there."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

import lamina
from tests.isolation import mount_points
from tests.startup import LAMINA

PROGRAM = LAMINA


@dataclass
class Command:
    """`lamina --root ROOT`; each command has to end within `seconds`."""

    root: Path
    started: list[subprocess.Popen[bytes]] = field(default_factory=list)
    seconds: float = 60

    def argv(self, *arguments: object) -> list[str]:
        return [PROGRAM, "--root", str(self.root), *map(str, arguments)]

    def run(
        self, *arguments: object, code: int | None = 0, **options: Any
    ) -> subprocess.CompletedProcess[bytes]:
        """Run a command to its end; `code` is what it must exit with, None for anything."""
        done = subprocess.run(
            self.argv(*arguments), capture_output=True, timeout=self.seconds, check=False, **options
        )
        assert code is None or done.returncode == code, done.stderr.decode()
        return done

    def out(self, *arguments: object) -> str:
        """Return the standard output of a command that succeeds."""
        return self.run(*arguments).stdout.decode()

    def json(self, *arguments: object) -> Any:
        return json.loads(self.out(*arguments))

    def error(self, *arguments: object, code: int) -> str:
        """Return the one line that a failing command says, behind what it said of its progress."""
        said = self.run(*arguments, code=code).stderr.decode()
        lines = [line for line in said.splitlines() if line.startswith("lamina: ")]
        assert len(lines) == 1, said
        assert said.endswith(f"{lines[0]}\n"), said
        assert "Traceback" not in said
        return lines[0]

    def start(self, *arguments: object, **options: Any) -> subprocess.Popen[bytes]:
        """Start a command and leave it running."""
        streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}
        process = subprocess.Popen(self.argv(*arguments), **streams)
        self.started.append(process)
        return process

    def stop(self, process: subprocess.Popen[bytes], number: signal.Signals) -> tuple[bytes, float]:
        """Send a signal; return what it said on standard error, and how long it took to end."""
        process.send_signal(number)
        began = time.monotonic()
        said = process.communicate(timeout=60)[1]
        return said, time.monotonic() - began

    def assert_sound(self, snapshots: int = 0) -> None:
        """Nothing is wrong, mounted or half made, and there are so many snapshots."""
        assert self.out("fsck") == ""
        assert [point for point in mount_points() if point.startswith(str(self.root))] == []
        assert list(self.root.glob("tmpmounts/*/*")) == []
        for name in ("overlayfs", "native"):
            kinds = [
                s["Kind"] for s in self.json("snapshots", "--snapshotter", name, "ls", "--json")
            ]
            assert kinds == ["Committed"] * (snapshots if name == "overlayfs" else 0)

    def open(self) -> Any:
        """Open the root with the library."""
        return lamina.open(self.root)

    def close(self) -> None:
        for process in self.started:
            process.kill()
            process.wait()
            # Not read to their end: a container that outlives its command may hold them.
            for stream in filter(None, (process.stdin, process.stdout, process.stderr)):
                stream.close()


@pytest.fixture
def command(root_dir: Path) -> Iterator[Command]:
    running = Command(root_dir)
    yield running
    running.close()


def workers() -> list[int]:
    """Return the process ids of the layer workers of this session."""
    found = []
    session = os.environ["LAMINA_TEST_SESSION"]
    for entry in Path("/proc").iterdir():
        try:
            words = (entry / "cmdline").read_bytes().split(b"\0")
            environ = (entry / "environ").read_bytes()
        except OSError:
            continue
        if b"lamina.layer.worker" in words and session.encode() in environ:
            found.append(int(entry.name))
    return found
