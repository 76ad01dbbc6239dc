"""Answers the control socket, and notices when nothing needs the worker any more."""

from __future__ import annotations

import fcntl
import logging
import os
import select
import selectors
import socket
import threading
import time
from concurrent.futures import TimeoutError as FutureTimeoutError
from contextlib import suppress
from pathlib import Path

import msgspec

from lamina.errors import DeadlineExceeded, Internal, InvalidArgument, LaminaError
from lamina.lazy import control
from lamina.lazy.keeping import Keeper
from lamina.lazy.layers import Layers

log = logging.getLogger(__name__)

LISTENER = "control"
_BACKLOG = 128
_IDLE_SECONDS = 60.0
_LOOK_SECONDS = 0.5

_decode = msgspec.json.Decoder(control.Request).decode


class Server:
    """Serves the control socket of one root.

    Args:
        directory: of the socket.
        keeper: keeps the listening socket, so that clients of the next worker need not wait for it.
        layers: what is controlled.
        linger: seconds to wait for more when nothing is needed any more.
    """

    def __init__(self, directory: Path, keeper: Keeper, layers: Layers, linger: float) -> None:
        self._directory = directory
        self._inode = directory.stat().st_ino
        self._layers = layers
        self._linger = linger
        self._busy = 0
        self._busy_lock = threading.Lock()
        self._again = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        if LISTENER not in keeper.kept:
            keeper.keep(LISTENER, self._listen())
        self._listener = socket.socket(fileno=keeper.kept[LISTENER])
        self._listener.setblocking(False)

    def run(self) -> bool:
        """Serve; return True when nothing is needed, False when a new worker is to take over."""
        idle_since = time.monotonic()
        with selectors.DefaultSelector() as selector:
            selector.register(self._listener, selectors.EVENT_READ)
            selector.register(self._again, selectors.EVENT_READ)
            while True:
                ready = [key.fd for key, _ in selector.select(_LOOK_SECONDS)]
                if self._again in ready:
                    return False
                if ready:
                    self._accept()
                self._layers.settle()
                if ready or self._busy or self._is_needed():
                    idle_since = time.monotonic()
                elif time.monotonic() - idle_since > self._linger and self._may_end():
                    return True

    def _accept(self) -> None:
        with suppress(BlockingIOError, ConnectionAbortedError):
            connection = self._listener.accept()[0]
            with self._busy_lock:
                self._busy += 1
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _is_needed(self) -> bool:
        """Tell whether to go on; what is fetched for a root that was deleted is for nobody."""
        return self._layers.is_read if self._is_gone() else self._layers.is_needed

    def _is_gone(self) -> bool:
        """Tell whether the root was deleted, and maybe made anew: nobody can come then."""
        try:
            return self._directory.stat().st_ino != self._inode
        except FileNotFoundError:
            return True

    def _may_end(self) -> bool:
        """End the reachability of this worker; False when somebody is just coming."""
        if self._is_gone():
            return True
        path = self._directory / control.LAUNCH_LOCK
        try:
            lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except FileNotFoundError:  # the root was deleted just now
            return True
        if self._ends(lock):
            return True  # the lock goes with the process
        os.close(lock)
        return False

    def _ends(self, lock: int) -> bool:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        if select.select([self._listener], [], [], 0)[0] or not self._layers.let_go():
            return False
        with suppress(FileNotFoundError):
            (self._directory / control.SOCKET).unlink()
        return True

    def _serve(self, connection: socket.socket) -> None:
        try:
            with connection:
                connection.settimeout(_IDLE_SECONDS)
                if control.may_ask(connection):
                    self._answer(connection)
        except OSError as error:  # the client is gone, or says nothing
            log.info("control connection: %s", error)
        finally:
            with self._busy_lock:
                self._busy -= 1

    def _answer(self, connection: socket.socket) -> None:
        while line := control.read_line(connection):
            request: control.Request | None = None
            try:
                request = _decode(line)
                answer = self._carry_out(request)
            except msgspec.DecodeError as error:
                answer = control.encode_error(InvalidArgument("read a request", hint=str(error)))
            except LaminaError as error:
                answer = control.encode_error(error)
            except Exception as error:
                log.exception("cannot carry out a request")
                answer = control.encode_error(Internal(f"carry out a request: {error}"))
            connection.sendall(msgspec.json.encode(answer) + b"\n")
            if isinstance(request, control.Upgrade):
                os.eventfd_write(self._again, 1)

    def _carry_out(self, request: control.Request) -> control.Answer:
        match request:
            case control.Add(directory, factory, gate):
                return control.Added(str(self._layers.add(Path(directory), factory, gate)))
            case control.Remove(directory):
                self._layers.remove(Path(directory))
            case control.Status():
                return control.Report(os.getpid(), self._layers.status())
            case control.Prefetch(directory, everything):
                self._layers.fetch(Path(directory), "all" if everything else "first")
            case control.Wait(directory, seconds):
                self._wait(Path(directory), seconds)
            case control.Upgrade():
                pass
        return control.Done()

    def _wait(self, directory: Path, seconds: float) -> None:
        try:
            self._layers.fetch(directory, "all", at_once=True).result(seconds)
        except FutureTimeoutError as error:
            raise DeadlineExceeded("complete a lazy layer", directory) from error

    def _listen(self) -> int:
        with suppress(FileNotFoundError):
            (self._directory / control.SOCKET).unlink()
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        # The file gets the socket's own mode: there is no moment with a wider one.
        os.fchmod(listener.fileno(), 0o600)
        with control.socket_address(self._directory) as address:
            listener.bind(address)
        listener.listen(_BACKLOG)
        return listener.detach()
