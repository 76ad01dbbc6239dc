"""Devices of layers: where they are, making them, and mounting them.

    ROOT/snapshots/ID/layer.json    of a layer of a device: where it is
    ROOT/snapshots/ID/kept          of one in a registry: its indexes
    ROOT/snapshots/ID/device.json   of one on which something stands: what its device is made of
    ROOT/snapshots/ID/device        the data of that device, as far as it was fetched
    ROOT/snapshots/ID/mnt           where the device is mounted
    ROOT/snapshots/ID/backing.json  what it was mounted from

A device is made of a layer and those below when it is the topmost of its image, or something is to
stand on it; all that does shares it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Unpack

from lamina.core.driver import LazyFiles
from lamina.errors import FailedPrecondition
from lamina.snapshotters.directories import make_directory
from lamina.snapshotters.lazy_access import ACCESS
from lamina.snapshotters.lazy_overlay import LazyArguments, LazyOverlayDriver
from lamina.snapshotters.lower_mounts import locked
from lamina.snapshotters.overlaybd.notes import (
    BACKING,
    DEVICE,
    LAYER,
    BackingNote,
    DeviceNote,
    LayerNote,
    read_backing,
    read_note,
    write_note,
)
from lamina.snapshotters.tree import remove_tree

if TYPE_CHECKING:
    from lamina.lazy.served import GateName

CACHE = "device"
_POINT = "mnt"
_NOTES = 4096
"""Notes of layers that are kept in memory."""


class DeviceStackDriver(LazyOverlayDriver):
    """The part of the overlaybd driver that knows devices.

    Args:
        root: the snapshotter's directory; made when absent.
        prefetches: fetch at once what an acceleration layer names.
        arguments: as for `LazyOverlayDriver`.
    """

    factory = "lamina.snapshotters.overlaybd.serving:open_device"

    def __init__(
        self, root: Path, *, prefetches: bool = True, **arguments: Unpack[LazyArguments]
    ) -> None:
        super().__init__(root, **arguments)
        self._prefetches = prefetches

    def image(self, id: int) -> Path:
        """Return the note of a layer's device."""
        return self.of(id) / DEVICE

    def devices(self, id: int) -> tuple[Path, ...]:
        """Return the cache of a layer's device."""
        return (self.of(id) / CACHE,) if self.is_lazy(id) else ()

    def lower(self, id: int) -> Path:
        """Return where a layer's device is mounted; of one that is none, its directory."""
        note = self._layer_note(id)
        if note is not None and note.kind == "trace":
            return self.lower(note.below[-1])
        return super().lower(id)

    def lower_name(self, id: int) -> str:
        """Return `mnt` of a layer with a device."""
        return _POINT if self.is_lazy(id) else "fs"

    def point(self, id: int) -> Path:
        """Return where the device of a layer is mounted."""
        return self.of(id) / _POINT

    def stack(self, parents: tuple[int, ...]) -> tuple[int, ...]:
        """Leave out what is below the topmost layer of a device, and layers without files."""
        found = []
        for id in parents:
            note = self._layer_note(id)
            if note is None or note.kind != "trace":
                found.append(id)
            if note is not None and note.kind != "trace":
                break
        return tuple(found)

    def standing(self, parents: tuple[int, ...]) -> list[int]:
        """Return the topmost layer of a device, if that was made."""
        return [id for id in self.stack(parents)[-1:] if self.is_lazy(id)]

    def is_open(self, id: int) -> bool:
        """Tell whether the device of a layer is in use, in whichever namespace."""
        from lamina.snapshotters.overlaybd.mounting import is_backing

        return any(map(is_backing, read_backing(self.of(id)).paths))

    def mount_layer(self, id: int, devices: Sequence[Path], *options: str) -> None:
        """Mount what is on a layer's device."""
        from lamina.lazy.unit_list import WANTED
        from lamina.snapshotters.overlaybd.mounting import mount_device
        from lamina.snapshotters.overlaybd.prefetch import want_listed

        path = str(devices[0])
        before = read_backing(self.of(id))
        if path not in before.paths:
            write_note(self.of(id), BACKING, BackingNote((*before.paths, path)))
        device = self._device_note(id)
        mount_device(path, self.point(id), device.filesystem, *options)
        if device.wanted and not (self.of(id) / CACHE / WANTED).exists():
            want_listed(Path(device.wanted), self.point(id), self.of(id) / CACHE)

    def lazy_layers(self, id: int) -> tuple[LazyFiles, ...]:
        """Return where the data of a layer's device is."""
        return tuple(LazyFiles(None, cache) for cache in self.devices(id))

    # Making them

    @functools.cached_property
    def _gate(self) -> GateName:
        from lamina.lazy.gates.choice import choose_device_gate

        return self._wanted_gate or choose_device_gate(self._root)

    @functools.cached_property
    def _layer_note(self) -> Callable[[int], LayerNote | None]:
        """Return what is known of a Committed layer; None for one that is a directory."""
        return functools.lru_cache(_NOTES)(self._note_of)

    def _note_of(self, id: int) -> LayerNote | None:
        return read_note(self.of(id), LAYER, LayerNote)

    def _device_note(self, id: int) -> DeviceNote:
        note = read_note(self.of(id), DEVICE, DeviceNote)
        if note is None:
            raise FailedPrecondition("find the device of layer", id)
        return note

    def _below(self, parents: tuple[int, ...]) -> tuple[int, ...]:
        """Return the ids of the layers below a new one on its device, the lowest first.

        Raises:
            FailedPrecondition: the layer below it is of no device.
        """
        if not parents:
            return ()
        note = self._layer_note(parents[0])
        if note is None:
            hint = "convert the whole image"
            raise FailedPrecondition(
                "put an overlaybd layer on one that is a directory:", parents[0], hint=hint
            )
        return note.below if note.kind == "trace" else (*note.below, parents[0])

    def _require_device(self, parents: tuple[int, ...]) -> None:
        """Make the device that snapshots with these parents stand on, unless it was made."""
        for id in self.stack(parents)[-1:]:
            note = self._layer_note(id)
            if note is None or self.is_lazy(id):
                continue
            with locked(self.point(id)):
                if not self.is_lazy(id):
                    self._make_device(id, note, self._trace(parents))

    def _trace(self, parents: tuple[int, ...]) -> Path | None:
        """Return what the topmost layer says is read first."""
        note = self._note_of(parents[0])
        return self.of(parents[0]) / note.file if note and note.kind == "trace" else None

    def _make_device(self, id: int, note: LayerNote, trace: Path | None = None) -> None:
        # Only those who make a device need the formats.
        from lamina.snapshotters.lazy_eviction import expect_all
        from lamina.snapshotters.overlaybd.device import make_cache, opened_stack
        from lamina.snapshotters.overlaybd.prefetch import want_traced

        directory = self.of(id)
        remove_tree(directory / CACHE)  # what a process has left that was killed here
        layers = (*note.below, id)
        self._access.write(directory)
        with opened_stack([self.of(one) for one in layers], self._access) as stack:
            size = make_cache(stack, directory / CACHE, self._gate)
            wanted = ""
            if self._prefetches and trace and not want_traced(trace, stack, directory / CACHE):
                wanted = str(trace)  # it has names, which are known once the device is mounted
            device = DeviceNote(layers, note.filesystem, stack.size, wanted)
        if self._has_room(id, size) and self._completes:
            expect_all(directory / CACHE, size)
        if not self.point(id).exists():  # or what a killed process, or a writable device, has left
            make_directory(self.point(id), 0o755)
        write_note(directory, DEVICE, device)

    def _undo(self, id: int) -> None:
        """Make the storage what `create` has made it."""
        self._undo_mount(id)
        remove_tree(self.of(id) / CACHE)
        for name in (DEVICE, BACKING, LAYER, "kept", ACCESS):
            (self.of(id) / name).unlink(missing_ok=True)
        if self.point(id).is_dir():
            self.point(id).rmdir()
