"""Stays with one detached container, to tell afterwards how it ended.

Run as a program of its own, `python -m lamina.runtime.shim JSON`, in the mount namespace that has
the container's root mounted; it imports next to nothing, because there is one for each container.
It starts the container, reports whether that worked, waits for the container's process (which
becomes its child when the runtime leaves it), writes the end into the bundle and removes the
runtime's state. It holds the lock of the bundle, which the kernel frees when this process ends,
however it ends.

Should it be killed, the container goes on; only the exit code is lost.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import threading
import time
from pathlib import Path
from typing import Any

from lamina.linux.process import become_subreaper
from lamina.runtime.bundle import Bundle, Exit
from lamina.runtime.detach import REPORT_FD
from lamina.runtime.oci_runtime import ENVIRONMENT, OciRuntime


def main(task: dict[str, Any]) -> None:
    """Start the container and see it to its end.

    Args:
        task: `directory`, `id`, `runtime`, `pid_file` and `no_pivot`, as `detach` writes them.
    """
    # Nothing of the session it was started from is to end a container.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP, signal.SIGINT, signal.SIGTERM})
    become_subreaper()
    bundle = Bundle(Path(task["directory"]), task["id"])
    runtime = OciRuntime(task["runtime"], bundle.state_root, bundle.log)
    pid = _start(task, bundle, runtime)
    if not pid:
        return
    bundle.pid_file.write_text(str(pid))
    os.write(REPORT_FD, b"started")
    os.close(REPORT_FD)
    code = _wait(pid)
    bundle.write_exit(Exit(pid, code, time.time_ns()))
    _run(runtime.command("delete", "--force", bundle.id))
    _unmount(bundle.rootfs)


def _start(task: dict[str, Any], bundle: Bundle, runtime: OciRuntime) -> int:
    """Have the runtime start the container; return its process id, 0 after a failure."""
    options = ["--detach", "--bundle", str(bundle.path), "--pid-file", task["pid_file"]]
    if task["no_pivot"]:
        options.append("--no-pivot")
    command = runtime.command("run", *options)
    if bundle.read_spec()["process"].get("terminal"):
        started = _run_with_terminal(command, bundle)
    else:
        started = _run([*command, bundle.id]) == 0
    return int(Path(task["pid_file"]).read_text()) if started else 0


def _run(argv: list[str]) -> int:
    child = os.posix_spawn(
        argv[0],
        argv,
        ENVIRONMENT,
        setsigmask=[],
        setsigdef=[signal.SIGPIPE, signal.SIGXFSZ],
    )
    # Only this one: the container's process may be waiting to be reaped already.
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def _run_with_terminal(command: list[str], bundle: Bundle) -> bool:
    """Run the runtime with a console socket; keep the terminal that it sends open, and empty."""
    directory = os.open(bundle.path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    # The bundle's own path may be longer than the 107 bytes that a socket's may have.
    address = f"/proc/{os.getpid()}/fd/{directory}/console"
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(address)
        server.listen(1)
        code = _run([*command, "--console-socket", address, bundle.id])
        Path(address).unlink()
        os.close(directory)
        if code != 0:
            return False
        connection = server.accept()[0]
    with connection:
        terminal = socket.recv_fds(connection, 1024, 1)[1][0]
    threading.Thread(target=_drain, args=(terminal,), daemon=True).start()
    return True


def _drain(terminal: int) -> None:
    """Copy what the container writes to standard output, until its last process is gone."""
    while True:
        try:
            data = os.read(terminal, 65536)
        except OSError:  # EIO: nobody has the other end open any more
            return
        os.write(1, data)


def _wait(pid: int) -> int:
    """Reap children until `pid` has ended; return its code, 128 + N when signal N killed it."""
    while True:
        child, status = os.wait()
        if child == pid:
            code = os.waitstatus_to_exitcode(status)
            return 128 - code if code < 0 else code


def _unmount(rootfs: Path) -> None:
    from lamina.mount import unmount_recursive  # loaded at the end only, to stay small

    unmount_recursive(rootfs)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
