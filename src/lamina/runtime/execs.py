"""More processes in a running container."""

from __future__ import annotations

import json
import os
import secrets
import select
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from lamina.errors import AlreadyExists, InvalidArgument, NotFound
from lamina.meta.containers import Container
from lamina.runtime.bundle import Bundle, check_id, read_pid
from lamina.runtime.oci_runtime import ENVIRONMENT, OciRuntime, StartFailed
from lamina.runtime.spec import changed_environment
from lamina.runtime.supervise import run_foreground, signals_held
from lamina.runtime.tasks import Tasks
from lamina.runtime.user import account_files, resolve


class ExecRequest(NamedTuple):
    """One more process in a running container.

    Attributes:
        container: id of the container.
        args: its command line.
        exec_id: a name for it; "" for any.
        terminal: have a pseudo-terminal.
        cwd: working directory; "" for the container's.
        user: as in `lamina.runtime.user.resolve`; None for the container's.
        env: `NAME=VALUE` to set, `NAME` to unset, on top of the container's environment.
        detach: return when it is started; its standard streams are /dev/null.
        forward_signals: pass on signals; for the main thread of a command.
    """

    container: str
    args: Sequence[str]
    exec_id: str = ""
    terminal: bool = False
    cwd: str = ""
    user: str | None = None
    env: Sequence[str] = ()
    detach: bool = False
    forward_signals: bool = False


class Execs:
    """Processes beside the first one, in the containers of one store."""

    def __init__(self, tasks: Tasks) -> None:
        self._tasks = tasks

    def run(self, request: ExecRequest) -> int:
        """Run one more process in a container.

        Returns:
            its exit code (128 + N when signal N killed it); 0 at once for a detached one.

        Raises:
            FailedPrecondition: the container does not run.
            StartFailed: there is no such program, for example.
        """
        if request.detach and request.terminal:
            raise InvalidArgument("exec", request.container, hint="use -t or -d, not both")
        if request.terminal and not os.isatty(0):
            raise InvalidArgument("exec with a terminal", hint="-t needs one on standard input")
        container, task = self._tasks.alive(request.container)
        bundle = self._tasks.containers.bundle(container.id)
        name = request.exec_id or f"exec-{secrets.token_hex(8)}"
        check_id(name)
        bundle.execs.mkdir(exist_ok=True)
        pid_file = bundle.execs / f"{name}.pid"
        pid = read_pid(pid_file)
        if pid and _same_pid_namespace(pid, task.pid):
            raise AlreadyExists(f"process of container {container.id}", name)
        pid_file.unlink(missing_ok=True)
        process_file = bundle.execs / f"{name}.json"
        process_file.write_text(json.dumps(_process(bundle, task.pid, request)))
        try:
            return self._exec(request, container, pid_file, process_file)
        finally:
            process_file.unlink(missing_ok=True)
            if not request.detach:
                pid_file.unlink(missing_ok=True)

    def kill(self, id: str, exec_id: str, signal_number: int) -> None:
        """Send a signal to a process that `run` has started.

        Raises:
            NotFound: no process of that name runs.
        """
        check_id(exec_id)
        _, task = self._tasks.alive(id)
        pid = read_pid(self._tasks.containers.bundle(id).execs / f"{exec_id}.pid")
        try:
            fd = os.pidfd_open(pid)
        except (ProcessLookupError, OSError) as error:
            raise NotFound(f"process of container {id}", exec_id) from error
        try:
            # The number may be another process's by now: that would be in another namespace. A
            # descriptor of one that has ended can be read.
            ended = select.select([fd], [], [], 0)[0]
            if ended or not _same_pid_namespace(pid, task.pid):
                raise NotFound(f"process of container {id}", exec_id)
            signal.pidfd_send_signal(fd, signal_number)
        finally:
            os.close(fd)

    def _exec(
        self, request: ExecRequest, container: Container, pid_file: Path, process_file: Path
    ) -> int:
        bundle = self._tasks.containers.bundle(container.id)
        log = process_file.with_suffix(".log")
        runtime = OciRuntime(container.runtime, bundle.state_root, log)
        options = ["--process", str(process_file), "--pid-file", str(pid_file)]
        if request.detach:
            options.append("--detach")
        argv = runtime.command("exec", *options, container.id)
        try:
            if request.forward_signals and not request.detach:
                with signals_held():
                    code = run_foreground(argv, ENVIRONMENT, forward=True)
            else:
                code = run_foreground(argv, ENVIRONMENT, forward=False, null_io=request.detach)
            if not pid_file.exists():
                raise StartFailed(
                    f"exec in container {container.id}",
                    runtime.failure(),
                    shown=not request.detach,
                )
        finally:
            log.unlink(missing_ok=True)
        return code


def _process(bundle: Bundle, pid: int, request: ExecRequest) -> dict[str, Any]:
    """Return the `process` object: the container's own, changed as asked for."""
    process: dict[str, Any] = dict(bundle.read_spec()["process"])
    env = list(process.get("env", ()))
    if request.terminal and not any(entry.startswith("TERM=") for entry in env):
        env.append("TERM=xterm")
    process["args"] = list(request.args)
    process["env"] = changed_environment(env, request.env)
    process["terminal"] = request.terminal
    process.pop("consoleSize", None)
    if request.cwd:
        process["cwd"] = request.cwd
    if request.user is not None:
        user = resolve(request.user, account_files(Path(f"/proc/{pid}/root")))
        process["user"] = user.as_oci()
    return process


def _same_pid_namespace(one: int, other: int) -> bool:
    try:
        return os.path.samestat(*(Path(f"/proc/{pid}/ns/pid").stat() for pid in (one, other)))
    except OSError:
        return False
