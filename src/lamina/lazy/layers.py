"""The layers that a worker serves: opened, given to a gate, completed, closed."""

from __future__ import annotations

import importlib
import logging
import threading
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import cast

from lamina.errors import (
    FailedPrecondition,
    InvalidArgument,
    LaminaError,
    NotFound,
    PermissionDenied,
    Unavailable,
)
from lamina.lazy.background import Background, Progress
from lamina.lazy.control import LayerStatus
from lamina.lazy.gates import Filler, GatedFile
from lamina.lazy.gates.objects import GateObjects
from lamina.lazy.quiet import quiet_of_process
from lamina.lazy.served import GateName, Served, ServedList, Wish
from lamina.lazy.writable.device import WritableDevice
from lamina.lazy.writable.directory import read_device
from lamina.lazy.writable.lower import Lower

log = logging.getLogger(__name__)


class _Open:
    """A layer that is served; `filler` is None when it cannot be, and `error` says why."""

    def __init__(self, served: Served) -> None:
        self.served = served
        self.filler: Filler | None = None
        self.error = ""
        self.background: Background | None = None


class Layers:
    """All of a root. Safe to use from any thread.

    Args:
        served: what is served, on disk.
        objects: the gates.
    """

    def __init__(self, served: ServedList, objects: GateObjects) -> None:
        self._served = served
        self._objects = objects
        self._lock = threading.RLock()
        self._open: dict[str, _Open] = {}

    def open_all(self) -> None:
        """Open what earlier workers served; what cannot be opened is told by `status`."""
        for served in self._served.layers:
            layer = self._open[served.directory] = _Open(served)
            try:
                self._begin(layer)
            except Exception as error:  # whatever it is, other layers are to be served
                layer.error = str(error)
                log.exception("cannot serve layer", extra={"path": served.directory})
            self._doubt(layer)
            if layer.served.wish and layer.filler is not None:
                self._fetch(layer, layer.filler, layer.served.wish)

    def add(self, directory: Path, factory: str, gate: GateName) -> Path:
        """Serve a layer; return the file to mount: of a complete one, the cache file itself.

        A layer that is complete and synced when it is added is not served: nothing has to be.

        Raises:
            FailedPrecondition: mounts of it may have read zeros: they have to go first, and the
                layer be removed.
            InvalidArgument: the factory does not exist.
            LaminaError: it cannot be opened, or the gate does not work there.
        """
        quiet_of_process().disturb()  # the image's next layer is about to come, or a container
        with self._lock:
            layer = self._open.get(str(directory))
            try:
                return self._add(directory, factory, gate) if layer is None else self._again(layer)
            except OSError as error:
                raise _refused(error, directory) from error

    def remove(self, directory: Path) -> None:
        """Serve a layer no more; an unknown one is no error.

        Raises:
            FailedPrecondition: devices that are written to need it.
        """
        with self._lock:
            layer = self._open.get(str(directory))
            if layer is None:
                return
            self._check_free(layer)
            del self._open[str(directory)]
            self._objects.get(layer.served.gate).remove(layer.served.number)
            self._served.remove(layer.served.number)
        _close(layer)

    def fetch(self, directory: Path, wish: Wish, *, at_once: bool = False) -> Future[None]:
        """Begin to fetch in the background, in later workers too; see `Background.begin`.

        Raises:
            NotFound: the layer is not served.
            Unavailable: it could not be opened.
        """
        with self._lock:
            layer = self._open.get(str(directory))
            if layer is None:
                raise NotFound("lazy layer", directory)
            if layer.filler is None:
                raise Unavailable("complete a lazy layer", directory, hint=layer.error)
            if isinstance(layer.filler, WritableDevice):
                raise FailedPrecondition("complete a writable device", directory,
                                         hint="it can be done with what lies below")  # fmt: skip
            return self._fetch(layer, layer.filler, wish, at_once=at_once)

    def settle(self) -> None:
        """Begin to sync layers whose last bytes came with reads: only then are they let go of."""
        with self._lock:
            for layer in self._open.values():
                filler, background = layer.filler, layer.background
                if filler is None or filler.is_durable or not filler.is_complete:
                    continue
                if background is None or not background.is_under_way:
                    self._fetch(layer, filler, "all")

    def status(self) -> list[LayerStatus]:
        """Describe every layer."""
        with self._lock:  # so that none is closed meanwhile
            return [_describe(layer) for layer in self._open.values()]

    @property
    def is_needed(self) -> bool:
        """Whether readers depend on this process, or something is still being fetched."""
        with self._lock:
            layers = list(self._open.values())
        if any(layer.background and layer.background.is_under_way for layer in layers):
            return True
        # A layer that cannot be opened is still marked: its readers wait for an answer.
        return self.is_read or any(layer.filler is None for layer in layers)

    @property
    def is_read(self) -> bool:
        """Whether readers depend on this process."""
        return self._objects.is_needed

    def let_go(self) -> bool:
        """Unmount what was mounted for the layers; False when somebody uses it."""
        return self._objects.let_go()

    def close(self) -> None:
        """Close all fillers."""
        with self._lock:
            for layer in reversed(self._open.values()):  # devices before what lies below
                _close(layer)

    def _add(self, directory: Path, factory: str, gate: GateName) -> Path:
        filler = self._make(directory, factory, gate)
        if filler.is_durable:
            filler.close()
            return filler.data_path
        layer = _Open(self._served.add(directory, factory, gate))
        layer.filler = filler
        try:
            path = self._begin(layer)
        except BaseException:
            self._served.remove(layer.served.number)
            filler.close()
            raise
        self._open[str(directory)] = layer
        return path

    def _again(self, layer: _Open) -> Path:
        if layer.served.doubt:
            raise FailedPrecondition(
                "serve a layer whose holder, standby and worker were killed",
                layer.served.directory,
                hint="unmount it everywhere, and remove it from the worker",
            )
        path = self._begin(layer)
        # Older mounts go on being served; a new one has no need of it.
        if layer.filler is not None and layer.filler.is_durable:
            return layer.filler.data_path
        return path

    def _begin(self, layer: _Open) -> Path:
        """Open a layer unless it is, and give it to its gate."""
        served = layer.served
        if layer.filler is None:
            layer.filler = self._make(Path(served.directory), served.factory, served.gate)
        file = GatedFile(served.number, layer.filler.data_path, layer.filler)
        path = self._objects.get(served.gate).add(file)
        layer.error = ""
        return path

    def _make(self, directory: Path, factory: str, gate: GateName) -> Filler:
        if gate != "writable":
            return _factory(factory)(directory)
        described = read_device(directory)
        lower = self._lower(Path(described.lower), described.factory) if described.lower else None
        try:
            return WritableDevice(directory, lower)
        except BaseException:
            if lower is not None:
                lower.close()
            raise

    def _lower(self, directory: Path, factory: str) -> Lower:
        """Open what lies below a device, and serve it as a layer if that is not durable."""
        if str(directory) not in self._open:
            path = self._add(directory, factory, "fuse")
            if str(directory) not in self._open:
                return Lower(path)
        layer = self._open[str(directory)]
        if layer.filler is None:
            self._begin(layer)
        assert layer.filler is not None
        return Lower(layer.filler.data_path, layer.filler)

    def _check_free(self, lower: _Open) -> None:
        """See that no device needs a layer; one that is durable is needed as a file only."""
        for layer in self._open.values():
            device = layer.filler
            if not isinstance(device, WritableDevice) or device.lower is None:
                continue
            if device.described.lower == lower.served.directory and device.lower.needs_filler:
                raise FailedPrecondition(
                    "remove a layer that a writable device needs", lower.served.directory,
                    hint=f"remove {device.directory} first",
                )  # fmt: skip

    def _fetch(
        self, layer: _Open, filler: Filler, wish: Wish, *, at_once: bool = False
    ) -> Future[None]:
        if layer.background is None:
            number = layer.served.number
            layer.background = Background(filler, lambda kept: self._served.wish(number, kept))
        return layer.background.begin(wish, at_once=at_once)

    def _doubt(self, layer: _Open) -> None:
        """Note what nobody has guarded for a time."""
        served, filler = layer.served, layer.filler
        if served.gate != "fanotify" or self._objects.inherited_group or served.doubt:
            return
        if filler is None or not filler.is_complete:
            log.error("holder, standby and worker were killed: mounts of the layer may have read "
                      "zeros", extra={"path": served.directory})  # fmt: skip
            self._served.doubt(served.number)
            found = self._served.find(Path(served.directory))
            layer.served = found or served


def _factory(name: str) -> Callable[[Path], Filler]:
    module, _, attribute = name.partition(":")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise InvalidArgument("find the factory of a lazy layer", name, hint=str(error)) from error
    return cast(Callable[[Path], Filler], found)


def _close(layer: _Open) -> None:
    if layer.background is not None:
        layer.background.close()
    if layer.filler is not None:
        layer.filler.close()


def _describe(layer: _Open) -> LayerStatus:
    filler = layer.filler
    progress = layer.background.progress if layer.background else Progress()
    return LayerStatus(
        directory=layer.served.directory,
        gate=layer.served.gate,
        size=filler.size if filler else 0,
        local_bytes=filler.local_bytes if filler else 0,
        complete=filler is not None and filler.is_complete,
        doubt=layer.served.doubt,
        error=layer.error,
        stage=progress.stage,
        reason=progress.reason,
        resume_seconds=progress.resume_seconds,
    )


def _refused(error: OSError, directory: Path) -> LaminaError:
    kind = PermissionDenied if isinstance(error, PermissionError) else FailedPrecondition
    hint = "use another gate, or another filesystem"
    if isinstance(error, FileNotFoundError):
        hint = "its files were removed: remove the images that have this layer, and pull them again"
    return kind(f"serve a lazy layer: {error.strerror}", directory, hint=hint)
