"""The OCI runtime that makes containers: runc, crun, or any other with their command line.

Each container has a runtime state directory of its own, inside its bundle, so containers of
several stores cannot clash and a removed bundle leaves nothing of the runtime's behind. Short
commands are run and waited for here; `run` and `exec` are command lines for a supervisor to run,
because they take over standard streams.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from lamina.errors import FailedPrecondition, Internal, InvalidArgument, NotFound, ToolError

SEARCH_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
ENVIRONMENT = {"PATH": SEARCH_PATH, "LC_ALL": "C"}
"""For the runtime; not the caller's, from which runc hands NOTIFY_SOCKET on to containers."""

_PREFERRED = ("runc", "crun")
"""runc first: it copes with every cgroup layout, while crun refuses hybrid ones."""
_CONTAINERD_NAMES = {"io.containerd.runc.v2": "runc", "io.containerd.runc.v1": "runc"}
_TIMEOUT_SECONDS = 30.0


class StartFailed(FailedPrecondition):
    """The runtime could not start the process; nothing of the container ever ran.

    Attributes:
        shown: the runtime has said why on the container's own standard error, which is this
            process's.
    """

    class_text = ""

    def __init__(self, what: str, reason: str, *, shown: bool = False) -> None:
        super().__init__(f"{what}: {reason}", hint=_hint(reason))
        self.shown = shown


class State(NamedTuple):
    """What the runtime says of a container: `created`, `running`, `paused` or `stopped`."""

    status: str
    pid: int


# runc's words, then crun's.
_NO_CONTAINER = re.compile(r"does not exist|error opening file .*: No such file or directory")


class OciRuntime:
    """Commands of one runtime on the containers in one state directory.

    Args:
        path: the program.
        state_root: directory in which it keeps a directory per container.
        log: file to which `run` and `exec` write why they failed.
    """

    def __init__(self, path: str, state_root: Path, log: Path) -> None:
        self.path = path
        self.state_root = state_root
        self.log = log

    def command(self, *words: str | os.PathLike[str]) -> list[str]:
        """Return the command line of `run` or `exec`; its errors go to the log too."""
        return self._argv(self.log, words)

    def knows(self, id: str) -> bool:
        """Tell whether there is any state of the container, without asking the runtime."""
        return (self.state_root / id).is_dir()

    def state(self, id: str) -> State | None:
        """Return the container's state, or None where the runtime knows of no such container.

        Raises:
            ToolError: the runtime fails.
            Internal: its answer makes no sense.
        """
        if not self.knows(id):
            return None
        try:
            answer = self._run("state", id)
        except ToolError as error:
            # The directory is there before the state is, and a bit longer.
            if _NO_CONTAINER.search(error.stderr):
                return None
            raise
        try:
            fields = json.loads(answer)
            return State(str(fields["status"]), int(fields.get("pid", 0)))
        except (ValueError, KeyError, TypeError) as error:
            raise Internal(f"read the state that {self.path} gives of container", id) from error

    def kill(self, id: str, signal: int, *, everyone: bool = False) -> None:
        """Send a signal to the container's first process, or to all of them."""
        options = ["--all"] if everyone else []
        self._run("kill", *options, id, str(signal))

    def delete(self, id: str) -> None:
        """Remove the container's state and cgroups; kills what is still running in it."""
        if self.knows(id):
            self._run("delete", "--force", id)

    def pause(self, id: str) -> None:
        """Freeze every process of the container."""
        self._run("pause", id)

    def resume(self, id: str) -> None:
        """Let a frozen container go on."""
        self._run("resume", id)

    def processes(self, id: str) -> list[int]:
        """Return the ids, on the host, of the container's processes."""
        pids: list[int] = json.loads(self._run("ps", "--format", "json", id))
        return pids

    def failure(self) -> str:
        """Return why the last `run` or `exec` failed, as the log has it."""
        try:
            lines = self.log.read_text(errors="replace").splitlines()
        except OSError:
            lines = []
        reasons = [entry["msg"] for entry in map(_parsed, lines) if entry.get("level") == "error"]
        if not reasons:
            return f"{Path(self.path).name} ended without saying why"
        text = str(reasons[-1])
        for prefix in ("runc run failed: ", "runc create failed: ", "exec failed: "):
            text = text.removeprefix(prefix)
        return text.removeprefix("unable to start container process: ")

    def _run(self, *words: str) -> str:
        # Loads subprocess, which running a container in the foreground does without.
        from lamina.tools.run import run

        # With a log given, the text on standard error is the bare reason.
        argv = self._argv(Path("/dev/null"), words)
        return run(argv, timeout=_TIMEOUT_SECONDS).stdout.decode(errors="replace")

    def _argv(self, log: Path, words: Sequence[str | os.PathLike[str]]) -> list[str]:
        options = ("--root", self.state_root, "--log", log, "--log-format", "json")
        return [os.fspath(word) for word in (self.path, *options, *words)]


def find_runtime(name: str = "", search_path: str = SEARCH_PATH) -> str:
    """Return the path of a runtime.

    Args:
        name: a path, a program's name, a containerd runtime name for runc, or "" for the first
            of runc and crun that is installed.
        search_path: directories to look for programs in, separated by colons.

    Raises:
        NotFound: there is no such program.
        InvalidArgument: a runtime of containerd's that is not runc's.
    """
    if "/" in name:
        if os.access(name, os.X_OK):
            return os.path.abspath(name)  # noqa: PTH100  keeps the last link: busybox-like tools
        raise NotFound("OCI runtime", name, hint="name an executable file")
    wanted = _CONTAINERD_NAMES.get(name, name)
    if wanted.startswith("io.containerd."):
        raise InvalidArgument("use runtime", name, hint="name an OCI runtime: runc, crun or a path")
    for candidate in (wanted,) if wanted else _PREFERRED:
        for directory in search_path.split(":"):
            path = os.path.join(directory, candidate)  # noqa: PTH118  with isfile
            # Not Path's: that raises where others may not search, such as root's own directories.
            if directory and os.path.isfile(path) and os.access(path, os.X_OK):  # noqa: PTH113
                return path
    raise NotFound(
        "OCI runtime",
        wanted or " or ".join(_PREFERRED),
        hint=f"apt-get install {wanted or 'runc'}, or name another one with --runtime",
    )


def _parsed(line: str) -> dict[str, Any]:
    try:
        value = json.loads(line)
    except ValueError:
        return {}
    return value if isinstance(value, dict) and "msg" in value else {}


def _hint(reason: str) -> str:
    if "hybrid mode" in reason:
        return "crun cannot run on hybrid cgroups: use --runtime runc"
    if "executable file not found" in reason or "no such file or directory" in reason:
        return "check the command and the image's PATH"
    return ""
