"""The snapshotters that the daemon serves, by every name under which a client may ask for them."""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping

from lamina import plugins
from lamina.core.cancel import check_cancelled
from lamina.errors import FailedPrecondition, InvalidArgument, LaminaError, SnapshotterSkipped
from lamina.snapshotters.engine import Engine
from lamina.store import Store

log = logging.getLogger(__name__)

PREFIX = "lamina-"
"""A containerd sends the name of its proxy plugin, which has to differ from its built-in ones."""
_POLL_SECONDS = 0.1


class Snapshotters:
    """All snapshotters that can work here.

    Args:
        aliases: further names; each leads to an id.

    Attributes:
        engines: those that can work, by id; none before `load`.
        faults: why the others cannot, by id.
        names: the id that each name stands for, those of unusable ones included.
    """

    def __init__(self, aliases: Mapping[str, str]) -> None:
        self.engines: dict[str, Engine] = {}
        self.faults: dict[str, LaminaError] = {}
        self._ids = plugins.known()
        prefixed = {f"{PREFIX}{id}": id for id in self._ids}
        self.names = {**prefixed, **aliases, **{id: id for id in self._ids}}
        self._by_name: Mapping[str, Engine] = {}
        self._loaded = threading.Event()

    def load(self, store: Store) -> None:
        """Load every snapshotter that can work here, and log each that cannot, with what helps.

        Raises:
            FailedPrecondition: none can.
        """
        for id in self._ids:
            self._load(store, id)
        self._by_name = {
            name: self.engines[id] for name, id in self.names.items() if id in self.engines
        }
        self._loaded.set()
        if not self.engines:
            hint = "the log says why, as `lamina plugins ls -d` does"
            raise FailedPrecondition("serve snapshotters: none can work on", store.root, hint=hint)

    def lookup(self, name: str) -> Engine:
        """Return the snapshotter that a request means; waits until all are loaded.

        Raises:
            InvalidArgument: it means none, one that nobody knows, or one that cannot work here.
        """
        engine = self._by_name.get(name)
        if engine is None:
            self._wait()
            engine = self._by_name.get(name)
        if engine is None:
            raise self._fault(name)
        return engine

    def _load(self, store: Store, id: str) -> None:
        try:
            self.engines[id] = store.snapshotter(id)
        except SnapshotterSkipped as skipped:
            self.faults[id] = skipped
            _log(logging.INFO, "skipping snapshotter", id, skipped)
        except LaminaError as error:
            self.faults[id] = error
            _log(logging.WARNING, "cannot load snapshotter", id, error)
        except Exception as error:  # a third party's may raise anything; the others go on
            fault = LaminaError(f"load snapshotter {id}: {type(error).__name__}: {error}")
            self.faults[id] = fault
            _log(logging.WARNING, "cannot load snapshotter", id, fault)
        else:
            log.info("loaded snapshotter", extra={"snapshotter": id})

    def _wait(self) -> None:
        while not self._loaded.wait(_POLL_SECONDS):
            check_cancelled()

    def _fault(self, name: str) -> InvalidArgument:
        if not name:
            return InvalidArgument("snapshotter argument missing")
        fault = self.faults.get(self.names.get(name, ""))
        if fault is None:
            known = ", ".join(self.engines)
            return InvalidArgument(f"snapshotter not loaded: {name}", hint=f"there are {known}")
        return InvalidArgument(f"snapshotter not loaded: {name}: {_reason(fault)}", hint=fault.hint)


def _log(level: int, message: str, id: str, fault: LaminaError) -> None:
    fields = {"snapshotter": id, "error": _reason(fault)}
    if fault.hint:
        fields["fix"] = fault.hint
    log.log(level, message, extra=fields)


def _reason(fault: LaminaError) -> str:
    """Return why, without the hint, which is told by itself."""
    if isinstance(fault, SnapshotterSkipped):
        return fault.reason
    return str(fault).removesuffix(f"; {fault.hint}")
