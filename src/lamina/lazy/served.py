"""Which layers a root's worker serves: `layers.json`, that the next worker goes on from."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Literal

import msgspec

from lamina.errors import FormatError
from lamina.meta.boot import boot_id

GateName = Literal["fanotify", "fuse", "nbd", "writable"]
"""`writable` is for writable devices, and for nothing else."""
Wish = Literal["", "first", "all"]
"""What to fetch in the background: nothing; what the layer's `wanted` names; that and the rest."""

_FILE = "layers.json"


class Served(msgspec.Struct, frozen=True):
    """One layer that is served.

    Attributes:
        number: unique in the root.
        directory: of the layer; what the factory gets.
        factory: `module:callable` that makes a `Filler` of the directory; "" for a writable device.
        gate: which gate.
        boot: id of the boot in which it was added: no older mount can be there.
        wish: what is to be fetched in the background (`Wish`).
        doubt: every process that held the gate ended while the layer was not complete, so that
            mounts from that time may have read zeros.
    """

    number: int
    directory: str
    factory: str
    gate: GateName
    boot: str
    doubt: bool = False
    wish: Wish = ""


class ServedFile(msgspec.Struct):
    """What the file has; `next` is the next layer's number."""

    next: int = 1
    layers: list[Served] = []


class ServedList:
    """The file of one root, for one process at a time; safe for its threads.

    Args:
        directory: that the worker keeps its files in.

    Raises:
        FormatError: the file is damaged.
    """

    def __init__(self, directory: Path) -> None:
        self._path = directory / _FILE
        self._lock = threading.Lock()
        self._content = self._read()

    @property
    def layers(self) -> list[Served]:
        """All of this boot, in the order they were added."""
        return [layer for layer in self._content.layers if layer.boot == boot_id()]

    def find(self, directory: Path) -> Served | None:
        """Return the layer in that directory."""
        return next((one for one in self.layers if one.directory == str(directory)), None)

    def add(self, directory: Path, factory: str, gate: GateName) -> Served:
        """Note a new layer; on disk when this returns, as far as this boot is concerned."""
        with self._lock:
            layer = Served(self._content.next, str(directory), factory, gate, boot_id())
            self._content.next += 1
            self._content.layers = [*self.layers, layer]
            self._write()
        return layer

    def remove(self, number: int) -> None:
        """Forget a layer."""
        with self._lock:
            self._content.layers = [one for one in self.layers if one.number != number]
            self._write()

    def doubt(self, number: int) -> None:
        """Note that mounts of a layer may have read zeros."""
        self._change(number, doubt=True)

    def wish(self, number: int, wish: Wish) -> None:
        """Note what is to be fetched in the background, in this process or the next."""
        self._change(number, wish=wish)

    def _change(self, number: int, **fields: object) -> None:
        with self._lock:
            self._content.layers = [
                msgspec.structs.replace(one, **fields) if one.number == number else one
                for one in self.layers
            ]
            self._write()

    def _read(self) -> ServedFile:
        try:
            data = self._path.read_bytes()
        except FileNotFoundError:
            return ServedFile()
        try:
            return msgspec.json.decode(data, type=ServedFile)
        except msgspec.DecodeError as error:
            raise FormatError(
                "layers.json", 0, expected="a list of layers", got=str(error), source=self._path
            ) from error

    def _write(self) -> None:
        # Mounts do not outlive the boot, so nothing need be on the disk.
        new = self._path.with_name(f".{_FILE}.{os.getpid()}")
        new.write_bytes(msgspec.json.encode(self._content))
        new.replace(self._path)
