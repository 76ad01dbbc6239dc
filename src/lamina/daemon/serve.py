"""The daemon's life: listen, load, answer calls until a signal, end in good order."""

from __future__ import annotations

import asyncio
import faulthandler
import gc
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from lamina.api.call import Method
from lamina.api.server import Server
from lamina.api.service import snapshots_methods
from lamina.config.daemon import Daemon, host_and_port
from lamina.core.driver import Lazy
from lamina.daemon.activation import Activated, activated
from lamina.daemon.calls import CallRecorder
from lamina.daemon.listening import listening, listening_tcp
from lamina.daemon.logs import LineWriter, start_logging
from lamina.daemon.notify import Notifier
from lamina.daemon.snapshotters import Snapshotters
from lamina.linux.malloc import share_arenas
from lamina.linux.process import raise_descriptor_limit
from lamina.store import Store
from lamina.version import VERSION

if TYPE_CHECKING:
    from lamina.daemon.http import MetricsServer
    from lamina.daemon.lazy_metrics import LazyLook
    from lamina.daemon.metrics import Look, Metrics

log = logging.getLogger(__name__)

GRACE_SECONDS = 30.0
"""How long calls may go on after the first signal; then they are cancelled and undone."""
_SWITCH_SECONDS = 0.0005
_SAME_SIGNAL_SECONDS = 0.5
"""Within it, a second signal is the first once more: timeout(1) sends it twice."""


def serve(store: Store, settings: Daemon, environ: MutableMapping[str, str]) -> None:
    """Serve all snapshotters of a root until SIGTERM or SIGINT; a second one ends at once.

    Args:
        store: the root.
        settings: how to listen, log and be watched.
        environ: the service manager's variables are taken out of it.

    Raises:
        FailedPrecondition: another daemon has the socket, or no snapshotter works here.
        LaminaError: something cannot be listened on.
    """
    started = time.monotonic()
    share_arenas()
    raise_descriptor_limit()  # a login's 1024 are fewer than connections and threads may need
    notifier = Notifier.from_environment(environ)
    with ExitStack() as stack:
        writer = start_logging(settings.debug.level, settings.debug.format)
        stack.callback(writer.close)
        log.info("starting lamina", extra={"version": VERSION, "root": str(store.root)})
        handed = activated(environ)
        sockets = stack.enter_context(_call_sockets(settings, handed))
        metrics_sockets = stack.enter_context(_metrics_sockets(settings, handed))
        snapshotters = Snapshotters(settings.snapshots.aliases)
        metrics = _metrics(store, snapshotters) if metrics_sockets else None
        recorder = CallRecorder(snapshotters.names, metrics.measure if metrics else None)
        service = Service(snapshots_methods(snapshotters.lookup, recorder))

        def load() -> None:
            snapshotters.load(store)
            _settle()
            log.info("serving", extra={"startup": f"{time.monotonic() - started:.3f}s"})

        daemon = _Daemon(service, load, notifier, writer)
        asyncio.run(daemon.run(sockets, _http(metrics), metrics_sockets))
        log.info("stopped")


class Service:
    """The service's methods; until `loaded`, all run on threads, where they wait for that.

    A containerd gives a connection a second to come about, and then lets up to three pass before
    it tries again: the daemon has to answer before it has looked at every pool.
    """

    def __init__(self, methods: Mapping[str, Method]) -> None:
        self._methods = methods
        self._current = {path: method.on_thread() for path, method in methods.items()}
        self.server = Server(self._current)

    def loaded(self) -> None:
        """Let the methods that never wait run on the event loop, where this is called."""
        self._current.update(self._methods)


class _Daemon:
    """What happens on the event loop."""

    def __init__(
        self,
        service: Service,
        load: Callable[[], None],
        notifier: Notifier,
        log_writer: LineWriter,
    ) -> None:
        self._service = service
        self._load = load
        self._notifier = notifier
        self._log_writer = log_writer
        self._stop = asyncio.Event()
        self._stopping_since: float | None = None

    async def run(
        self,
        sockets: Sequence[socket.socket],
        http: MetricsServer | None,
        metrics_sockets: Sequence[socket.socket],
    ) -> None:
        """Answer calls until a signal has come and the calls of then have ended.

        Raises:
            FailedPrecondition: there is nothing to serve.
        """
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._end, number)
        loop.add_signal_handler(signal.SIGHUP, _hang_up)
        if http is not None:
            await http.start(metrics_sockets)
        calls = self._service.server.run(sockets, stop=self._stop, grace_seconds=GRACE_SECONDS)
        serving = loop.create_task(calls)
        watchdog = None
        try:
            await self._become_ready(f"serving on {', '.join(map(_address, sockets))}")
            watchdog = loop.create_task(self._watch())
        finally:
            await serving
            if watchdog is not None:
                watchdog.cancel()
            if http is not None:
                http.close()

    async def _become_ready(self, status: str) -> None:
        """Load the snapshotters while calls come in already; where none works, end the daemon."""
        try:
            await asyncio.to_thread(self._load)
        except BaseException:
            self._stop.set()
            raise
        self._service.loaded()
        if not self._stop.is_set():
            self._notifier.ready(status)

    def _end(self, number: signal.Signals) -> None:
        now = time.monotonic()
        if self._stopping_since is not None:
            if now - self._stopping_since > _SAME_SIGNAL_SECONDS:
                self._log_writer.close()
                os._exit(128 + number)
            return
        self._stopping_since = now
        log.info("stopping", extra={"signal": number.name})
        self._notifier.stopping("waiting for running calls")
        self._stop.set()

    async def _watch(self) -> None:
        """Show the service manager that the loop turns; twice as often as it asks for."""
        while self._notifier.watchdog_seconds is not None:
            self._notifier.alive()
            await asyncio.sleep(self._notifier.watchdog_seconds / 2)


def _hang_up() -> None:
    log.info("ignoring SIGHUP: the configuration is read at the start only")


@contextmanager
def _call_sockets(settings: Daemon, handed: Activated) -> Iterator[Sequence[socket.socket]]:
    """Give the service manager's sockets, or one of our own."""
    if handed.calls:
        _log_addresses("serving calls", handed.calls)
        yield handed.calls
        return
    grpc = settings.grpc
    with listening(Path(grpc.address), uid=grpc.uid, gid=grpc.gid) as own:
        _log_addresses("serving calls", [own])
        yield [own]


@contextmanager
def _metrics_sockets(settings: Daemon, handed: Activated) -> Iterator[Sequence[socket.socket]]:
    """Give the service manager's, or one of our own where the configuration asks for it."""
    address = settings.metrics.address
    with ExitStack() as stack:
        sockets = list(handed.metrics)
        target = host_and_port(address)
        if not sockets and address.startswith("/"):
            grpc = settings.grpc
            own = listening(Path(address), uid=grpc.uid, gid=grpc.gid)
            sockets.append(stack.enter_context(own))
        elif not sockets and target is not None:
            sockets.append(stack.enter_context(listening_tcp(*target)))
        if sockets:
            _log_addresses("serving metrics", sockets)
        yield sockets


def _log_addresses(message: str, sockets: Sequence[socket.socket]) -> None:
    for each in sockets:
        log.info(message, extra={"address": _address(each)})


def _address(listener: socket.socket) -> str:
    name = listener.getsockname()
    if isinstance(name, tuple):
        return f"[{name[0]}]:{name[1]}" if ":" in name[0] else f"{name[0]}:{name[1]}"
    return os.fsdecode(name)


def _metrics(store: Store, snapshotters: Snapshotters) -> Metrics:
    from lamina.daemon.metrics import Metrics  # with a library that not every daemon needs
    from lamina.snapshotters.lazy_tally import LazyTally

    def looks() -> dict[str, Look | None]:
        loaded = {id: engine.totals for id, engine in list(snapshotters.engines.items())}
        return {**loaded, **dict.fromkeys(list(snapshotters.faults))}

    tallies: dict[str, LazyTally] = {}

    def lazy() -> dict[str, LazyLook]:
        for id, engine in list(snapshotters.engines.items()):
            if id not in tallies and isinstance(engine.driver, Lazy):
                tallies[id] = LazyTally(engine)
        return {id: tally.totals for id, tally in tallies.items()}

    janitor = store.janitor
    return Metrics(looks, lambda: (janitor.ended, janitor.failed), lazy)


def _http(metrics: Metrics | None) -> MetricsServer | None:
    if metrics is None:
        return None
    from lamina.daemon.http import MetricsServer
    from lamina.daemon.metrics import CONTENT_TYPE

    return MetricsServer(metrics.exposition, CONTENT_TYPE)


def _settle() -> None:
    """Prepare the interpreter for answering quickly, for a long time."""
    # Waiting for the interpreter's lock takes at most this long per thread: by default, a copying
    # thread keeps the event loop waiting for 5 ms each time.
    sys.setswitchinterval(_SWITCH_SECONDS)
    # What is loaded by now stays: collections need not look at it, nor touch its pages.
    gc.collect()
    gc.freeze()
    # Where is it? On SIGUSR1, as containerd says, and when the watchdog ends it by SIGABRT.
    if sys.__stderr__ is not None:
        faulthandler.enable(sys.__stderr__)
        faulthandler.register(signal.SIGUSR1, sys.__stderr__)
