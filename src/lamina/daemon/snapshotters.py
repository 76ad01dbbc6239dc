"""The snapshotters that the daemon serves, by every name under which a client may ask for them."""

from __future__ import annotations

import logging
from collections.abc import Mapping

from lamina import plugins
from lamina.errors import FailedPrecondition, InvalidArgument, LaminaError, SnapshotterSkipped
from lamina.snapshotters.engine import Engine
from lamina.store import Store

log = logging.getLogger(__name__)

PREFIX = "lamina-"
"""A containerd sends the name of its proxy plugin, which has to differ from its built-in ones."""


class Snapshotters:
    """All snapshotters that can work here, loaded once.

    Args:
        engines: those that can, by id.
        faults: why the others cannot, by id.
        aliases: further names; each leads to an id.

    Attributes:
        names: the id that each name stands for, those of unusable ones included.
    """

    def __init__(
        self,
        engines: Mapping[str, Engine],
        faults: Mapping[str, LaminaError],
        aliases: Mapping[str, str],
    ) -> None:
        self.engines = engines
        self.faults = faults
        ids = [*engines, *faults]
        prefixed = {f"{PREFIX}{id}": id for id in ids}
        self.names = {**prefixed, **aliases, **{id: id for id in ids}}
        self._by_name = {name: engines[id] for name, id in self.names.items() if id in self.engines}

    def lookup(self, name: str) -> Engine:
        """Return the snapshotter that a request means.

        Raises:
            InvalidArgument: it means none, one that nobody knows, or one that cannot work here.
        """
        engine = self._by_name.get(name)
        if engine is None:
            raise self._fault(name)
        return engine

    def _fault(self, name: str) -> InvalidArgument:
        if not name:
            return InvalidArgument("snapshotter argument missing")
        fault = self.faults.get(self.names.get(name, ""))
        if fault is None:
            known = ", ".join(self.engines)
            return InvalidArgument(f"snapshotter not loaded: {name}", hint=f"there are {known}")
        return InvalidArgument(f"snapshotter not loaded: {name}: {_reason(fault)}", hint=fault.hint)


def load(store: Store, aliases: Mapping[str, str]) -> Snapshotters:
    """Load every snapshotter that can work here, and log each that cannot, with what would help.

    Raises:
        FailedPrecondition: none can.
    """
    engines: dict[str, Engine] = {}
    faults: dict[str, LaminaError] = {}
    for id in plugins.known():
        try:
            engines[id] = store.snapshotter(id)
        except SnapshotterSkipped as skipped:
            faults[id] = skipped
            _log(logging.INFO, "skipping snapshotter", id, skipped)
        except LaminaError as error:
            faults[id] = error
            _log(logging.WARNING, "cannot load snapshotter", id, error)
        except Exception as error:  # a third party's may raise anything; the others go on
            faults[id] = LaminaError(f"load snapshotter {id}: {type(error).__name__}: {error}")
            _log(logging.WARNING, "cannot load snapshotter", id, faults[id])
        else:
            log.info("loaded snapshotter", extra={"snapshotter": id})
    if not engines:
        hint = "the log says why, as `lamina plugins ls -d` does"
        raise FailedPrecondition("serve snapshotters: none can work on", store.root, hint=hint)
    return Snapshotters(engines, faults, aliases)


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
