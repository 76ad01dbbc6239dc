"""A virtual machine that runs one command, whatever emulates it.

A machine sees all the host's files, through an overlay whose changes it keeps in its own memory;
one directory, `shared`, is the host's own. It has no network but its loopback, and no udev. What
the guest cannot reach: other processes of the host, and anything below /run and /dev.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import signal
import subprocess
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType

INIT = Path(__file__).with_name("init.sh")
SHARED_IN_GUEST = Path("/run/shared")
GUEST_VARIABLES = {
    "HOME": "/root",
    "TMPDIR": "/run/tmp",
    "LANG": "C.UTF-8",
    "DM_DISABLE_UDEV": "1",  # or libdevmapper leaves making nodes to a udev that is not there
}

MEMORY_MIB = 2048
"""The guest's memory; the host gives only what is touched."""
LIMIT_SECONDS = 2400.0
"""A boot with its tests is to take an eighth of this on a quiet machine; others it gives way to."""
STOP_SECONDS = 5.0
CONSOLE_LINES = 60
POLL_SECONDS = 0.05


class MachineError(Exception):
    """The machine ended, or was ended, without the command's exit code."""


class Machine(ABC):
    """One boot that runs one command; a context manager that leaves nothing behind.

    Attributes:
        shared: a directory of the host that the guest sees as SHARED_IN_GUEST. What the guest
            writes to it shows on the host once the guest has called fsync.
        program: what emulates it.
    """

    program: str

    def __init__(
        self,
        directory: Path,
        command: Sequence[str | Path],
        *,
        files: Mapping[str, str] | None = None,
        environ: Mapping[str, str] | None = None,
        cwd: Path = Path("/"),
        limit_seconds: float = LIMIT_SECONDS,
    ) -> None:
        """Start it; must be called on the main thread, with whose end the machine ends, too.

        Args:
            directory: an empty one; its path may contain no white space.
            command: what to run as root, seen by the guest.
            files: names and texts of files in `shared`.
            environ: variables to add to GUEST_VARIABLES and to PATH.
            cwd: the command's directory.
            limit_seconds: after this time `wait` stops the machine and fails.
        """
        self.shared = directory / "shared"
        self.shared.mkdir()
        self._limit_seconds = limit_seconds
        self._late = False
        self._deadline = time.monotonic() + limit_seconds
        self._console = directory / "console"
        script = _script(command, environ or {}, cwd)
        for name, text in {**(files or {}), "command": script}.items():
            (self.shared / name).write_text(text)
        shutil.copy2(INIT, directory / "init")
        with self._console.open("wb") as console:
            # The signal of the parent's death reaches a machine whose test run was killed.
            self._process = subprocess.Popen(
                ("setpriv", "--pdeathsig", "TERM", self.program, *self._arguments(directory)),
                stdin=subprocess.DEVNULL,
                stdout=console,
                stderr=subprocess.STDOUT,
                env={**os.environ, **self._environ(directory)},
                start_new_session=True,
            )

    @abstractmethod
    def _arguments(self, directory: Path) -> list[str]:
        """Return those of `program`."""

    def _environ(self, directory: Path) -> dict[str, str]:
        """Return variables for `program`."""
        return {}

    def __enter__(self) -> Machine:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    def running(self) -> bool:
        """Whether it neither powered off nor crashed, and has time left; without, it is stopped."""
        if self._ended():
            return False
        self._late = time.monotonic() >= self._deadline
        if self._late:
            self.stop()
        return not self._late

    def give_way(self, niceness: int) -> None:
        """Let whatever else the machine of the tests does go first; right after the start."""
        with contextlib.suppress(ProcessLookupError):
            os.setpriority(os.PRIO_PROCESS, self._process.pid, niceness)

    def wait(self) -> int:
        """Wait for the end; return the command's exit code.

        Raises:
            MachineError: the machine crashed, or took too long and was stopped.
        """
        while self.running():
            time.sleep(POLL_SECONDS)
        self.stop()
        with contextlib.suppress(FileNotFoundError):
            return int((self.shared / "status").read_text())
        if self._late:
            raise MachineError(f"no end after {self._limit_seconds:g} s")
        raise MachineError(f"{self.program} exited with {self._process.returncode} in the middle")

    def console(self) -> str:
        """Return the end of what the guest's kernel, and the command, have printed."""
        lines = self._console.read_text(errors="replace").splitlines()
        return "\n".join(lines[-CONSOLE_LINES:])

    def stop(self) -> None:
        """Cut the power: whatever the guest has not synced is lost. Does nothing a second time."""
        if self._process.returncode is not None:
            return
        self._process.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + STOP_SECONDS
        while not self._ended() and time.monotonic() < deadline:
            time.sleep(POLL_SECONDS)
        # Not reaped yet, so that its number still is that of its process group: processes of the
        # guest may be processes of the host, which a killed kernel leaves behind.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def _ended(self) -> bool:
        if self._process.returncode is not None:
            return True
        options = os.WEXITED | os.WNOHANG | os.WNOWAIT
        try:
            return os.waitid(os.P_PID, self._process.pid, options) is not None
        except ChildProcessError:  # it ended while a test had the kernel forget children
            return True


def _script(command: Sequence[str | Path], environ: Mapping[str, str], cwd: Path) -> str:
    variables = {**GUEST_VARIABLES, **environ}
    exports = [f"export {name}={shlex.quote(value)}" for name, value in variables.items()]
    run = shlex.join(map(str, command))
    return "\n".join((*exports, f"cd {shlex.quote(str(cwd))} || exit", f"exec {run}", ""))


def in_guest() -> bool:
    """Whether this process runs in such a machine."""
    return (SHARED_IN_GUEST / "command").exists()
