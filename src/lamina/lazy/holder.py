"""Program: keeps kernel objects open, so that a worker's death is a short wait and nothing more.

Three processes have copies of the objects (fanotify group, FUSE connection, request memory,
listening socket): the holder, its standby and the worker. The holder starts the other two and
starts them again when they die. When the holder dies, whichever of the others is faster takes its
place, so that all three have to be killed at one instant for the objects to be closed.

Run by path, isolated and without site packages, so that it is small: it imports nothing of this
package, and what is imported here once never depends on files that an upgrade may replace.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import select
import signal
import socket
import struct
import sys
import time
from collections.abc import Iterable
from typing import Any, NamedTuple

MESSAGE_BYTES = 4096
ANSWER_SECONDS = 30.0
"""How long a process may take to say that it has a copy, before it is taken for dead."""
LOCK = "holder.lock"
FIRST_NUMBER = 100
"""Kept descriptors have numbers from here on, out of the way of what each process opens itself."""
FINISHED = 0
"""Exit code of a worker that nothing needs any more."""
_LAUNCH_SECONDS = 10.0
"""How long a holder that is just ending is waited for."""
_LIVED_SECONDS = 2.0
"""A worker that lived longer is started again at once."""
_SHORTEST_PAUSE = 0.05
_LONGEST_PAUSE = 1.0

_FLOCK = struct.Struct("hhqqi4x")
"""`struct flock` of fcntl(2): l_type, l_whence, l_start, l_len (0: to the end), l_pid."""
_WHOLE_FILE = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)

Kept = dict[str, int]


class Child(NamedTuple):
    """A process of ours and the socket to it."""

    pid: int
    connection: socket.socket


class Holder:
    """The active holder.

    Args:
        directory: of the sockets and locks.
        worker: arguments of the worker's program; one more, JSON, is added.
        kept: descriptors by name; the same numbers in all three processes.
        lock: descriptor that holds the holder's lock.
    """

    def __init__(self, directory: str, worker: list[str], kept: Kept, lock: int) -> None:
        self._directory = directory
        self._argv = worker
        self._kept = kept
        self._lock = lock
        self._pause = 0.0
        self._standby = self._start_standby()
        self._begun = time.monotonic()
        self._worker = self._start_worker()

    def run(self) -> None:
        """Serve until the worker says that nothing is needed any more."""
        while True:
            poll = select.poll()
            poll.register(self._standby.connection, select.POLLIN)
            poll.register(self._worker.connection, select.POLLIN)
            ready = [fd for fd, _ in poll.poll()]
            if self._standby.connection.fileno() in ready:
                self._replace_standby()  # it never speaks unasked: it is dead
            if self._worker.connection.fileno() in ready and not self._serve_worker():
                break
        with contextlib.suppress(OSError):
            self._standby.connection.send(b'{"op": "finish"}')

    def _serve_worker(self) -> bool:
        """Take one message, or replace a dead worker; False when it has finished."""
        try:
            data, fds, _, _ = socket.recv_fds(self._worker.connection, MESSAGE_BYTES, 1)
        except ConnectionResetError:
            data, fds = b"", []
        if not data:
            return self._replace_worker()
        message = json.loads(data)
        number = apply(self._kept, message, fds)
        if not tell(self._standby.connection, message, number):
            self._replace_standby()  # the new one is born with the descriptor
        with contextlib.suppress(OSError):
            self._worker.connection.send(b"{}")
        return True

    def _replace_worker(self) -> bool:
        self._worker.connection.close()
        status = os.waitpid(self._worker.pid, 0)[1]
        if os.waitstatus_to_exitcode(status) == FINISHED:
            return False
        if time.monotonic() - self._begun > _LIVED_SECONDS:
            self._pause = 0.0
        time.sleep(self._pause)
        self._pause = min(max(self._pause * 2, _SHORTEST_PAUSE), _LONGEST_PAUSE)
        self._begun = time.monotonic()
        self._worker = self._start_worker()
        return True

    def _replace_standby(self) -> None:
        self._standby.connection.close()
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._standby.pid, signal.SIGKILL)
        os.waitpid(self._standby.pid, 0)
        self._standby = self._start_standby()

    def _start_standby(self) -> Child:
        return self._spawn(self_command("standby", self._directory, self._argv))

    def _start_worker(self) -> Child:
        return self._spawn([*self._argv, self._directory])

    def _spawn(self, argv: list[str]) -> Child:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            ours.settimeout(ANSWER_SECONDS)
            task = {"kept": self._kept, "holder": os.getpid(), "connection": theirs.fileno()}
            numbers = [*self._kept.values(), theirs.fileno()]
            return Child(spawn([*argv, json.dumps(task)], numbers), ours)


def spawn(argv: list[str], inherited: Iterable[int]) -> int:
    """Start a program with these descriptors, under the same numbers; return its process id.

    What keeps it from starting is waited out, because readers depend on it.
    """
    # To its own number: that is how spawning says "inheritable".
    actions = [(os.POSIX_SPAWN_DUP2, fd, fd) for fd in inherited]
    while True:
        try:
            return os.posix_spawn(
                argv[0], argv, os.environ, file_actions=actions, setsid=True, setsigmask=[]
            )
        except OSError as error:
            sys.stderr.write(f"cannot start {argv[0]}: {error.strerror}\n")
            time.sleep(_LONGEST_PAUSE)


def apply(kept: Kept, message: dict[str, Any], fds: list[int]) -> int | None:
    """Carry out `keep` or `drop`; return the number of the new descriptor."""
    name = message["name"]
    if message["op"] == "drop":
        if name in kept:
            os.close(kept.pop(name))
        return None
    if name in kept:
        os.close(kept.pop(name))
    # The number that it has in the worker, so that all know it by one.
    number = message["number"]
    if fds[0] != number:
        os.dup2(fds[0], number, inheritable=False)
        os.close(fds[0])
    os.set_inheritable(number, False)
    kept[name] = number
    return int(number)


def tell(connection: socket.socket, message: dict[str, Any], fd: int | None) -> bool:
    """Pass a message on, with its descriptor, and wait for the answer; False if nobody gives it."""
    try:
        socket.send_fds(connection, [json.dumps(message).encode()], [] if fd is None else [fd])
        return bool(connection.recv(MESSAGE_BYTES))
    except OSError:
        return False


def stand_by(connection: socket.socket, holder: int, kept: Kept) -> bool:
    """Keep copies; return True when the holder is dead, False when all is finished."""
    life = pidfd_of_parent(holder)
    while life is not None:
        try:
            data, fds, _, _ = socket.recv_fds(connection, MESSAGE_BYTES, 1)
        except ConnectionResetError:
            break
        if not data:
            break
        message = json.loads(data)
        if message["op"] == "finish":
            return False
        apply(kept, message, fds)
        with contextlib.suppress(OSError):
            connection.send(b"{}")
    wait_for_end(life)
    return True


def pidfd_of_parent(parent: int) -> int | None:
    """Return a descriptor of this process's parent; None if it is dead already."""
    if os.getppid() != parent:
        return None
    life = os.pidfd_open(parent)
    return life if os.getppid() == parent else None


def wait_for_end(life: int | None) -> None:
    """Wait until a process has ended, its locks being free."""
    if life is not None:
        poll = select.poll()
        poll.register(life, select.POLLIN)
        poll.poll()


def take_lock(directory: str, seconds: float) -> int | None:
    """Become the only holder; None if another process is it.

    Args:
        directory: where the lock is.
        seconds: how long one that is just ending is waited for.
    """
    deadline = time.monotonic() + seconds
    lock = _open_lock(directory)
    while True:
        try:
            fcntl.fcntl(lock, fcntl.F_OFD_SETLK, _WHOLE_FILE)
        except (BlockingIOError, PermissionError):  # EAGAIN or EACCES, says fcntl(2)
            if time.monotonic() >= deadline:
                os.close(lock)
                return None
            time.sleep(0.01)
        else:
            return lock


def is_held(directory: str) -> bool:
    """Tell whether some process is the holder, without taking the lock even for a moment."""
    lock = _open_lock(directory)
    try:
        found = fcntl.fcntl(lock, fcntl.F_OFD_GETLK, _WHOLE_FILE)
    finally:
        os.close(lock)
    return bool(_FLOCK.unpack(found)[0] != fcntl.F_UNLCK)


def _open_lock(directory: str) -> int:
    path = f"{directory}/{LOCK}"
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)


def self_command(role: str, directory: str, worker: list[str]) -> list[str]:
    """Return the command of this program; the holder's task, JSON, comes behind it."""
    return [sys.executable, "-I", "-S", __file__, role, directory, json.dumps(worker)]


def main(arguments: list[str]) -> None:
    """Be the holder, or stand by for it.

    Args:
        arguments: the role (`launch` starts the first holder, `successor` is a later one, `standby`
            may become one), the directory, the worker's arguments and the task, both as JSON.
    """
    role, directory, argv, text = arguments
    task = json.loads(text)
    kept: Kept = task["kept"]
    # A logout or an interrupted command is not to take away what readers depend on.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP, signal.SIGINT, signal.SIGTERM})
    os.chdir("/")
    if role == "launch":
        os.closerange(3, 1 << 20)  # whatever the starter has open is not to stay so
        if os.fork():
            return
    _be_spared()
    seconds = _LAUNCH_SECONDS if role == "launch" else 0.0  # who comes first has everything
    for fd in kept.values():
        os.set_inheritable(fd, False)
    if role == "standby":
        os.set_inheritable(task["connection"], False)
        with socket.socket(fileno=task["connection"]) as connection:
            if not stand_by(connection, task["holder"], kept):
                return
    lock = take_lock(directory, seconds)
    if lock is not None:
        Holder(directory, json.loads(argv), kept, lock).run()


def _be_spared() -> None:
    """Ask the kernel to end any other process first when memory is short."""
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:
        file.write("-1000")


if __name__ == "__main__":
    main(sys.argv[1:])
