"""Storage of the stargz snapshotter.

    ROOT/snapshots/ID/fs              as overlayfs has it; of a lazy layer, where it is mounted
    ROOT/snapshots/ID/work            work directory of an Active snapshot
    ROOT/snapshots/ID/layer.erofs     of a lazy layer: everything but the data of its files
    ROOT/snapshots/ID/cache           of a lazy layer: the data, as far as it was fetched
    ROOT/snapshots/ID/registry.json   of a lazy layer: how to reach its registry
    ROOT/lazy                         the worker that fetches what is read

A layer that cannot be lazy is unpacked to `fs`, and the reason is told in `unpacked`.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Unpack

from lamina.core.driver import Claimed, LazyFiles, Refused, Snapshot
from lamina.errors import FormatError, LaminaError
from lamina.snapshotters.lazy_access import ACCESS
from lamina.snapshotters.lazy_overlay import GATE_LABEL, LazyArguments, LazyOverlayDriver
from lamina.snapshotters.stargz.origin import Origin, Verification, origin_of
from lamina.snapshotters.tree import remove_tree

if TYPE_CHECKING:
    from lamina.snapshotters.stargz.prefetch import Prefetching

IMAGE = "layer.erofs"
CACHE = "cache"
_ALL = Verification()


class StargzDriver(LazyOverlayDriver):
    """The stargz driver.

    Args:
        root: the snapshotter's directory; made when absent.
        verification: what has to be verified.
        prefetching: what is fetched at once.
        arguments: as for `LazyOverlayDriver`.
    """

    factory = "lamina.snapshotters.lazy_blobs:open_layer"

    def __init__(
        self,
        root: Path,
        *,
        verification: Verification = _ALL,
        prefetching: Prefetching | None = None,
        **arguments: Unpack[LazyArguments],
    ) -> None:
        super().__init__(root, **arguments)
        self._verification = verification
        self._prefetching = prefetching

    def image(self, id: int) -> Path:
        """Return the metadata of a lazy layer."""
        return self.of(id) / IMAGE

    def devices(self, id: int) -> tuple[Path, ...]:
        """Return the one cache that a lazy layer has, unless no file has data."""
        cache = self.of(id) / CACHE
        try:
            has_data = bool((cache / "data").stat().st_size)
        except FileNotFoundError:
            has_data = True  # it is gone: whoever mounts it says so
        return (cache,) if has_data else ()

    def lazy_layers(self, id: int) -> tuple[LazyFiles, ...]:
        """Return where the data of a lazy layer would be, too, if it had any."""
        return (LazyFiles(self.image(id), self.of(id) / CACHE),) if self.is_lazy(id) else ()

    def claim(self, snapshot: Snapshot) -> Claimed | Refused:
        """Mount the layer, after its table of contents was read and verified.

        Raises:
            LaminaError: it is one, and cannot be had, or is not what it should be.
        """
        try:
            origin = origin_of(snapshot.labels)
            if origin is None:
                return self._refuse(snapshot.id, "its labels do not say which image it is of")
            self._make_lazy(snapshot, origin)
        except BaseException as error:
            self._undo(snapshot.id)
            if isinstance(error, FormatError):
                return self._refuse(snapshot.id, f"it is no eStargz or zstd:chunked ({error})")
            if isinstance(error, LaminaError | OSError):
                self._note(snapshot.id, str(error))
            raise
        return Claimed({GATE_LABEL: self._gate})

    def _make_lazy(self, snapshot: Snapshot, origin: Origin) -> None:
        # Only those who claim need the formats.
        from lamina.snapshotters import lazy_eviction
        from lamina.snapshotters.stargz import layer, prefetch

        id = snapshot.id
        access = self._access._replace(plain_http=origin.plain_http)
        # Lazy ones are mounted since `create`.
        below = [self.lower(parent) for parent in snapshot.parents]
        with access.patience():
            contents = layer.read_contents(access, origin, self._verification, below)
        directory = self.of(id)
        access.write(directory)
        layer.make_cache(contents, directory / CACHE, self._gate)
        prefetching = self._prefetching or prefetch.Prefetching()
        first = prefetch.first_bytes(prefetching, contents.tree.prefetch, snapshot.labels)
        prefetch.want_first(contents.tree, directory / CACHE, first)
        layer.write_metadata(contents, self.image(id))
        size = contents.tree.cache_size
        if self._has_room(id, size) and self._completes and size:
            (directory / CACHE / lazy_eviction.COMPLETES).touch()
        self._mount_new(id)

    def _undo(self, id: int) -> None:
        """Make the storage what `create` has made it."""
        self._undo_mount(id)
        remove_tree(self.of(id) / CACHE)
        for name in (IMAGE, ACCESS):
            (self.of(id) / name).unlink(missing_ok=True)
