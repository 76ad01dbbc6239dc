"""A unix socket of our own: made, guarded against a second daemon, and removed at the end."""

from __future__ import annotations

import fcntl
import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from lamina.errors import FailedPrecondition, LaminaError, PermissionDenied

DIRECTORY_MODE = 0o711
"""Others may pass, but not list: the socket's own mode says who may call."""
SOCKET_MODE = 0o600
_BACKLOG = 1024
_CONNECT_SECONDS = 1.0


@contextmanager
def listening(path: Path, *, uid: int, gid: int) -> Iterator[socket.socket]:
    """Listen on a socket at this path during the body; it is gone afterwards.

    What a dead daemon left there is replaced. `PATH.lock` says whether one lives: the kernel gives
    the lock up with the process, and two daemons that start at once cannot both have it.

    Args:
        path: absolute; its directory is made where it is missing.
        uid: owner of the socket.
        gid: group of the socket.

    Raises:
        FailedPrecondition: another daemon listens there, or something else is there.
        PermissionDenied: the socket cannot be made.
    """
    with ExitStack() as stack:
        try:
            listener = _listen(stack, path, uid, gid)
        except OSError as error:
            hint = "run as root, or name a socket of yours with --address"
            kind = PermissionDenied if isinstance(error, PermissionError) else LaminaError
            raise kind(f"listen: {error.strerror or error}", path, hint=hint) from error
        yield listener


def listening_tcp(host: str, port: int) -> socket.socket:
    """Listen on a TCP port; no host means all addresses of the machine.

    Raises:
        LaminaError: the port is taken, the address not this machine's, or the name unknown.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(
            host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.create_server(address[:2], family=family, backlog=_BACKLOG)
    except OSError as error:
        hint = "correct metrics.address in the configuration"
        raise LaminaError(f"listen: {error.strerror}", f"{host}:{port}", hint=hint) from error
    listener.setblocking(False)
    return listener


def _listen(stack: ExitStack, path: Path, uid: int, gid: int) -> socket.socket:
    """Do it; `stack` undoes it."""
    _make_directory(path.parent)
    stack.enter_context(_lock(path))
    _remove_stale(path)
    listener = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
    # The kernel gives the file the socket's own mode: there is no moment with a wider one.
    os.fchmod(listener.fileno(), SOCKET_MODE)
    listener.bind(str(path))
    stack.callback(_remove, path, _identity(path))
    if (path.lstat().st_uid, path.lstat().st_gid) != (uid, gid):
        os.chown(path, uid, gid, follow_symlinks=False)
    listener.listen(_BACKLOG)
    listener.setblocking(False)
    return listener


def _make_directory(directory: Path) -> None:
    if directory.is_dir():
        return
    directory.mkdir(parents=True, exist_ok=True)
    directory.chmod(DIRECTORY_MODE)  # whatever the umask


@contextmanager
def _lock(path: Path) -> Iterator[None]:
    """Hold the lock of a socket; its file stays, or a third daemon could lock a new one."""
    fd = os.open(f"{path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = os.read(fd, 20).decode(errors="replace").strip()
            raise _live(path, f"lamina serve (process {owner})") from None
        os.ftruncate(fd, 0)
        os.write(fd, f"{os.getpid()}\n".encode())
        yield
    finally:
        os.close(fd)


def _live(path: Path, whom: str) -> FailedPrecondition:
    hint = "stop it first, or name another socket with --address"
    return FailedPrecondition(f"listen: {whom} listens there already", path, hint=hint)


def _remove_stale(path: Path) -> None:
    """Remove a socket that nobody listens on; programs that know of no lock are asked."""
    if not path.is_symlink() and not path.exists():
        return
    if path.is_symlink() or not path.is_socket():
        hint = "remove it, or name another socket with --address"
        raise FailedPrecondition("listen: something is there that is no socket", path, hint=hint)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(_CONNECT_SECONDS)
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink()
            return
        except (BlockingIOError, TimeoutError):
            pass  # alive, though busy
    raise _live(path, "another program")


def _remove(path: Path, made: tuple[int, int]) -> None:
    """Remove the socket, if it is still the one that was made here."""
    with suppress(FileNotFoundError):
        if _identity(path) == made:
            path.unlink()


def _identity(path: Path) -> tuple[int, int]:
    status = path.lstat()
    return status.st_dev, status.st_ino
