"""Starts a container that outlives this process, under a supervisor (`lamina.runtime.shim`)."""

from __future__ import annotations

import fcntl
import json
import os
import sys
from contextlib import ExitStack
from pathlib import Path

from lamina.errors import LaminaError, NotFound
from lamina.runtime.bundle import Bundle
from lamina.runtime.oci_runtime import OciRuntime, StartFailed
from lamina.runtime.request import RunRequest

LOCK_FD = 3
REPORT_FD = 4
"""Descriptors that the supervisor finds open: the bundle's lock, and where it reports the start."""

_FIRST_FREE_FD = 10


def start_detached(request: RunRequest, bundle: Bundle, pid_file: Path, *, lock: int) -> None:
    """Start the container and return when it runs.

    The supervisor is spawned into the mount namespace of the calling thread, and inherits `lock`.

    Raises:
        StartFailed: the runtime could not start it; the supervisor is gone then.
        NotFound: the output's directory does not exist.
    """
    with ExitStack() as stack:
        report, report_end = os.pipe2(os.O_CLOEXEC)
        stack.callback(os.close, report)
        ended = stack.enter_context(ExitStack())
        ended.callback(os.close, report_end)
        null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        stack.callback(os.close, null)
        output = null
        if request.output is not None:
            output = _open_output(request.output)
            stack.callback(os.close, output)
        streams = {0: null, 1: output, 2: output, LOCK_FD: lock, REPORT_FD: report_end}
        # From numbers above all that they are to get, so that none is overwritten before its turn.
        copies = {}
        for target, fd in streams.items():
            copies[target] = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, _FIRST_FREE_FD)
            ended.callback(os.close, copies[target])
        child = os.posix_spawn(
            sys.executable,
            [sys.executable, "-m", "lamina.runtime.shim", _task(request, bundle, pid_file)],
            os.environ,
            file_actions=[(os.POSIX_SPAWN_DUP2, fd, target) for target, fd in copies.items()],
            setsid=True,
            setsigmask=[],
        )
        ended.close()
        if os.read(report, 16):
            return
        os.waitpid(child, 0)
    runtime = OciRuntime(request.runtime, bundle.state_root, bundle.log)
    raise StartFailed(f"start container {bundle.id}", runtime.failure())


def _task(request: RunRequest, bundle: Bundle, pid_file: Path) -> str:
    return json.dumps(
        {
            "directory": str(bundle.path.parent),
            "id": bundle.id,
            "runtime": request.runtime,
            "pid_file": str(pid_file),
            "no_pivot": request.no_pivot,
        }
    )


def _open_output(path: Path) -> int:
    try:
        return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    except FileNotFoundError as error:
        raise NotFound("directory of the container's output", path.parent) from error
    except OSError as error:
        raise LaminaError(f"open the container's output {path}: {error.strerror}") from error
