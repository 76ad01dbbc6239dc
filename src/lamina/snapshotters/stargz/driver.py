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

import contextlib
import functools
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, cast

from lamina.core.driver import Ability, Claimed, LazyFiles, Refused, Shrunk, Snapshot
from lamina.core.labels import UNPACKED
from lamina.core.mount import Mount
from lamina.core.snapshot import EMPTY_LABELS, Usage
from lamina.errors import (
    DataLoss,
    FormatError,
    LaminaError,
    NotFound,
    PermissionDenied,
    Unauthenticated,
)
from lamina.snapshotters.lower_mounts import is_mounted, mount_in_turn, mount_once, unmount_all
from lamina.snapshotters.overlay_stack import OverlayStackDriver
from lamina.snapshotters.stargz.access import ACCESS, Access
from lamina.snapshotters.stargz.origin import Origin, Verification, origin_of
from lamina.snapshotters.tree import remove_tree

if TYPE_CHECKING:
    from lamina.core.problem import Problem
    from lamina.lazy.launch import LazyWorker
    from lamina.lazy.served import GateName
    from lamina.snapshotters.stargz.eviction import LazyLayer
    from lamina.snapshotters.stargz.prefetch import Prefetching

log = logging.getLogger(__name__)

IMAGE = "layer.erofs"
CACHE = "cache"
FACTORY = "lamina.snapshotters.stargz.serving:open_layer"
"""What the worker opens a cache by."""
REASON = "unpacked"
REASON_LABEL = UNPACKED
GATE_LABEL = "containerd.io/snapshot/lamina.gate"
_LOGIN_HINT = "name a docker config.json that has a login as docker_config of this snapshotter"
"""What whoever pulls logs in with, such as `--user`, is not what layers are fetched with."""
_NO_ACCESS = Access()
_ALL = Verification()
_WRITING_SECONDS = 60.0
"""Since the last change of metadata: what is claimed now, is being written."""
_SECTOR = 512
"""Bytes of `st_blocks`."""


class StargzDriver(OverlayStackDriver):
    """The stargz driver.

    Args:
        root: the snapshotter's directory; made when absent.
        gate: through which lazy layers are read; None for the best that works, found out by
            trying when the first is to be mounted.
        access: how to reach registries.
        verification: what has to be verified.
        completes: fetch the rest of a layer in the background.
        budget: bytes of disk for the data of all lazy layers; None for no bound.
        prefetching: what is fetched at once.
        abilities: what kernel and configuration allow; never REBASE.
        mount_options: for every overlay mount.

    Attributes:
        is_used: as `Evicting` has it; until the engine sets it, everything is.
    """

    mounts_at_once = False
    mounts_layers = True

    def __init__(
        self,
        root: Path,
        *,
        gate: GateName | None = None,
        access: Access = _NO_ACCESS,
        verification: Verification = _ALL,
        completes: bool = True,
        budget: int | None = None,
        prefetching: Prefetching | None = None,
        abilities: frozenset[Ability] = frozenset(),
        mount_options: tuple[str, ...] = (),
    ) -> None:
        super().__init__(root, abilities=abilities - {Ability.REBASE}, mount_options=mount_options)
        self._wanted_gate = gate
        self._access = access
        self._verification = verification
        self._completes = completes
        self._budget = budget
        self.is_used: Callable[[int], bool] = lambda _: True
        self._prefetching = prefetching
        self._root = root
        self._direct: set[int] = set()
        """Layers known to be mounted from their cache files, in spite of the gate `fuse`."""

    def create(self, snapshot: Snapshot) -> None:
        """Make the directories, after mounting the lazy layers below; see `OverlayStackDriver`."""
        from lamina.snapshotters.stargz import eviction

        layers = [self._layer(id) for id in snapshot.parents if self.is_lazy(id)]
        for layer in layers:
            mount_in_turn(layer.point, functools.partial(self._mount, layer.id))
        eviction.touch(layers)
        super().create(snapshot)

    def mounts(self, snapshot: Snapshot) -> list[Mount]:
        """Return one bind mount or one overlay, after mounting the lazy layers it stands on.

        Raises:
            DataLoss: what a lazy layer is mounted from is gone.
            FailedPrecondition: everybody who guarded its readers was killed.
            Unavailable: there is no worker to serve it, and none can be started.
        """
        self._mount_layers(snapshot.parents)
        return super().mounts(snapshot)

    def claim(self, snapshot: Snapshot) -> Claimed | Refused:
        """Mount the layer, after its table of contents was read and verified.

        Raises:
            LaminaError: it is one, and cannot be had, or is not what it should be.
        """
        try:
            origin = origin_of(snapshot.labels)
            if origin is None:
                return self._refuse(snapshot.id, "its labels do not say which image it is of")
            self._make_lazy(snapshot.id, origin, snapshot.labels)
        except BaseException as error:
            self._undo(snapshot.id)
            if isinstance(error, FormatError):
                return self._refuse(snapshot.id, f"it is no eStargz or zstd:chunked ({error})")
            if isinstance(error, LaminaError):
                self._note(snapshot.id, str(error))
            raise
        return Claimed({GATE_LABEL: self._gate})

    def seal(self, snapshot: Snapshot) -> Usage:
        """Measure; a lazy layer is what it takes now, and grows."""
        if not self.is_lazy(snapshot.id):
            return super().seal(snapshot)
        return Usage(2, self.image(snapshot.id).stat().st_blocks * _SECTOR)

    def destroy(self, id: int) -> None:
        """Unmount a lazy layer and let go of it; remove the directory."""
        unmount_all(self.fs(id))
        if (self.of(id) / CACHE).exists():
            self._worker.remove(self.of(id) / CACHE)
        super().destroy(id)

    def shrink(self, to: int | None = None) -> Shrunk:
        """Empty the caches of layers that nobody uses, until the others fit."""
        from lamina.snapshotters.stargz import eviction

        bound = self._budget if to is None else to
        return eviction.shrink(self._lazy_layers(), bound, self._evict)

    def growth(self, id: int) -> int:
        """Return the bytes of disk that a lazy layer's cache takes now; 0 for another."""
        from lamina.lazy.emptying import allocated

        return allocated(self.of(id) / CACHE)

    def faults(self, exists: Callable[[int], bool]) -> Iterator[Problem]:
        """Yield also the lazy layers whose metadata does not begin as it should."""
        yield from super().faults(exists)
        yield from self._damaged(exists, deep=False)

    def damage(self, exists: Callable[[int], bool]) -> Iterator[Problem]:
        """Yield the lazy layers whose metadata is damaged somewhere else."""
        return self._damaged(exists, deep=True)

    def _damaged(self, exists: Callable[[int], bool], *, deep: bool) -> Iterator[Problem]:
        from lamina.snapshotters.erofs_check import problem_of

        for id in self.ids():
            if exists(id) and self._is_written(id):
                problem = problem_of(id, self.image(id), deep=deep)
                if problem is not None:
                    yield problem

    def _is_written(self, id: int) -> bool:
        """Tell whether there is metadata, and nobody seems to be at it."""
        try:
            age = time.time() - self.image(id).stat().st_mtime
        except FileNotFoundError:
            return False
        return age > _WRITING_SECONDS

    def info_labels(self, id: int) -> Mapping[str, str]:
        """Return why a layer is not lazy."""
        try:
            reason = (self.of(id) / REASON).read_text()
        except FileNotFoundError:
            return EMPTY_LABELS
        return {REASON_LABEL: reason}

    @functools.cached_property
    def _gate(self) -> GateName:
        from lamina.lazy.gates.choice import choose_gate

        return self._wanted_gate or choose_gate(self._root)

    @functools.cached_property
    def _worker(self) -> LazyWorker:
        from lamina.lazy.launch import LazyWorker  # lists of snapshotters need none

        return LazyWorker(self._root)

    def image(self, id: int) -> Path:
        """Return the metadata of a lazy layer."""
        return self.of(id) / IMAGE

    def is_lazy(self, id: int) -> bool:
        """Tell whether a layer is served, rather than unpacked."""
        return self.image(id).exists()

    def lazy_layer(self, id: int) -> LazyFiles | None:
        """Return where a lazy layer's files are; None for one that is unpacked."""
        return LazyFiles(self.image(id), self.of(id) / CACHE) if self.is_lazy(id) else None

    def serve(self, id: int) -> None:
        """Mount a lazy layer, and have it served, unless it is complete.

        Raises:
            DataLoss, Unavailable: as `mounts`.
            FailedPrecondition: everybody who guarded its readers was killed.
        """
        self._mount_layers([id])

    def _make_lazy(self, id: int, origin: Origin, labels: Mapping[str, str]) -> None:
        # Only those who claim need the formats.
        from lamina.snapshotters.stargz import eviction, layer, prefetch

        access = self._access._replace(plain_http=origin.plain_http)
        try:
            contents = layer.read_contents(access, origin, self._verification)
        except (PermissionDenied, Unauthenticated) as error:
            error.hint = _LOGIN_HINT
            raise
        directory = self.of(id)
        access.write(directory)
        layer.make_cache(contents, directory / CACHE, self._gate)
        prefetching = self._prefetching or prefetch.Prefetching()
        first = prefetch.first_bytes(prefetching, contents.tree.prefetch, labels)
        prefetch.want_first(contents.tree, directory / CACHE, first)
        layer.write_metadata(contents, self.image(id))
        size = contents.tree.cache_size
        if self._has_room(id, size) and self._completes and size:
            (directory / CACHE / eviction.COMPLETES).touch()
        mount_once(self.fs(id), functools.partial(self._mount, id))

    def _has_room(self, id: int, size: int) -> bool:
        """Make room for a cache of so many bytes; tell if it may be filled in the background."""
        from lamina.snapshotters.stargz import eviction

        if self._budget is None:
            return True
        self.shrink(max(0, self._budget - size))
        others = [layer for layer in self._lazy_layers() if layer.id != id]
        return sum(map(eviction.expected, others)) + size <= self._budget

    def _evict(self, layer: LazyLayer) -> int | None:
        from lamina.snapshotters.stargz import eviction

        return eviction.evict(layer, self.is_used, self._worker.remove)

    def _layer(self, id: int) -> LazyLayer:
        from lamina.snapshotters.stargz.eviction import LazyLayer

        return LazyLayer(id, self.fs(id), self.image(id), self.of(id) / CACHE)

    def _lazy_layers(self) -> list[LazyLayer]:
        return [self._layer(id) for id in self.ids() if self.is_lazy(id)]

    def _mount_layers(self, ids: Iterable[int]) -> None:
        for id in ids:
            if not self.is_lazy(id):
                continue
            if not is_mounted(self.fs(id)):
                mount_once(self.fs(id), functools.partial(self._mount, id))
            else:
                self._guard(id)
                try:
                    self._let_go(id)
                except (LaminaError, OSError) as error:  # the mount that is there serves as well
                    log.warning("cannot mount a complete layer from its cache file: %s", error,
                                extra={"path": str(self.of(id))})  # fmt: skip

    def _guard(self, id: int) -> None:
        """Have an incomplete layer served that is mounted: those who did may have been killed."""
        from lamina.lazy.layer import read_layer
        from lamina.lazy.view import is_durable

        cache = self.of(id) / CACHE
        if cache.is_dir() and (cache / "data").stat().st_size and not is_durable(cache):
            self._worker.add(cache, FACTORY, cast("GateName", read_layer(cache).gate))

    def _let_go(self, id: int) -> None:
        """Mount a layer that was read through FUSE, and is complete now, from its cache file.

        It goes over the other mount, so that there is no moment without one; what stands on that
        stays there. Only a layer that is durable is mounted without a gate.
        """
        from lamina.lazy.layer import read_layer
        from lamina.lazy.view import is_durable
        from lamina.snapshotters.lower_mounts import locked, mount_count

        cache = self.of(id) / CACHE
        if id in self._direct or read_layer(cache).gate != "fuse" or not is_durable(cache):
            return
        with locked(self.fs(id)):
            # Two are it and the one that was there before. It may have been emptied since.
            if mount_count(self.fs(id)) == 1 and is_durable(cache):
                self._mount_erofs(id, f"device={cache / 'data'}")
            self._direct.add(id)

    def _mount(self, id: int) -> None:
        cache = self.of(id) / CACHE
        if not cache.is_dir():
            hint = "`lamina fsck --repair` tells how to have the layer again"
            raise DataLoss("mount lazy layer", cache, hint=hint)
        if not (cache / "data").stat().st_size:
            self._mount_erofs(id)
            return
        device = self._worker.add(cache, FACTORY, self._gate)
        self._direct.discard(id)  # of one that was emptied since
        self._mount_erofs(id, f"device={device}")
        self._fetch(cache)

    def _mount_erofs(self, id: int, *options: str) -> None:
        from lamina.mount import mount_all

        image = Mount("erofs", str(self.image(id)), options=("ro", *options))
        mount_all([image], self.fs(id))

    def _fetch(self, cache: Path) -> None:
        """Have fetched in the background what the configuration says; nobody waits for it."""
        from lamina.lazy.unit_list import WANTED
        from lamina.snapshotters.stargz.eviction import COMPLETES

        everything = self._completes and (cache / COMPLETES).exists()
        if not everything and not (cache / WANTED).exists():
            return
        try:
            self._worker.prefetch(cache, everything=everything)
        except NotFound:
            pass  # it is complete, and not served
        except LaminaError as error:
            log.warning("cannot fetch in the background: %s", error, extra={"path": str(cache)})

    def _undo(self, id: int) -> None:
        """Make the storage what `create` has made it."""
        with contextlib.suppress(LaminaError):
            unmount_all(self.fs(id))
            if (self.of(id) / CACHE).exists():
                self._worker.remove(self.of(id) / CACHE)
        remove_tree(self.of(id) / CACHE)
        for name in (IMAGE, ACCESS):
            (self.of(id) / name).unlink(missing_ok=True)

    def _refuse(self, id: int, reason: str) -> Refused:
        self._note(id, reason)
        return Refused(reason)

    def _note(self, id: int, reason: str) -> None:
        (self.of(id) / REASON).write_text(reason[:1000])
