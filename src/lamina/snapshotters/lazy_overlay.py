"""Drivers whose overlays stand on lazy layers: what stargz, nydus and overlaybd share.

A lazy layer is metadata, as a rule an EROFS image with everything but the data of its files, and a
cache for each of its devices, which have the data as far as it was fetched (`lamina.lazy`). It is
mounted when something is to stand on it. Layers that are not lazy are directories, as overlayfs has
them.

    ROOT/snapshots/ID   as `OverlayStackDriver` has it, and what the driver has besides
    ROOT/lazy           the worker that fetches what is read
"""

from __future__ import annotations

import contextlib
import errno
import functools
import logging
import time
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, TypedDict, cast

from lamina.core.disk_usage import disk_bytes
from lamina.core.driver import Ability, LazyFiles, Refused, Shrunk, Snapshot
from lamina.core.labels import UNPACKED
from lamina.core.mount import Mount
from lamina.core.snapshot import EMPTY_LABELS, Usage
from lamina.errors import DataLoss, FailedPrecondition, LaminaError, NotFound
from lamina.snapshotters.lazy_access import Access
from lamina.snapshotters.lower_mounts import is_mounted, mount_in_turn, mount_once, unmount_all
from lamina.snapshotters.overlay_stack import OverlayStackDriver

if TYPE_CHECKING:
    from lamina.core.problem import Problem
    from lamina.lazy.launch import LazyWorker
    from lamina.lazy.served import GateName
    from lamina.snapshotters.lazy_eviction import LazyLayer

log = logging.getLogger(__name__)

REASON = "unpacked"
REASON_LABEL = UNPACKED
GATE_LABEL = "containerd.io/snapshot/lamina.gate"
_DATA = "data"
_DIRECT = "noatime"
"""Of mounts from cache files, to know them by: read-only ones keep no access times anyway."""
_NO_ACCESS = Access()
_RELEASE_SECONDS, _LOOK_SECONDS = 1.0, 0.02
"""How long the kernel may take to close the files of what was just unmounted."""


class LazyArguments(TypedDict, total=False):
    """What a `LazyOverlayDriver` takes beside its root."""

    gate: GateName | None
    access: Access
    completes: bool
    budget: int | None
    abilities: frozenset[Ability]
    mount_options: tuple[str, ...]


class LazyOverlayDriver(OverlayStackDriver):
    """The part of a driver that is the same for all whose overlays stand on lazy layers.

    Args:
        root: the snapshotter's directory; made when absent.
        gate: through which lazy layers are read; None for the best that works, found out by
            trying when the first is to be mounted.
        access: how to reach registries.
        completes: fetch the rest of a layer in the background.
        budget: bytes of disk for the data of all lazy layers; None for no bound.
        abilities: what kernel and configuration allow; never REBASE.
        mount_options: for every overlay mount.

    Attributes:
        is_used: as `Evicting` has it; until the engine sets it, everything is.
        factory: what the worker opens a cache by.
    """

    mounts_at_once = False
    mounts_layers = True
    factory: ClassVar[str]

    def __init__(
        self,
        root: Path,
        *,
        gate: GateName | None = None,
        access: Access = _NO_ACCESS,
        completes: bool = True,
        budget: int | None = None,
        abilities: frozenset[Ability] = frozenset(),
        mount_options: tuple[str, ...] = (),
    ) -> None:
        super().__init__(root, abilities=abilities - {Ability.REBASE}, mount_options=mount_options)
        self._wanted_gate = gate
        self._access = access
        self._completes = completes
        self._budget = budget
        self.is_used: Callable[[int], bool] = lambda _: True
        self._root = root
        self._direct: set[int] = set()
        """Layers known to be mounted from their cache files, in spite of the gate `fuse`."""

    # What each driver has in its own way

    @abstractmethod
    def image(self, id: int) -> Path:
        """Return the metadata of a lazy layer."""

    @abstractmethod
    def devices(self, id: int) -> tuple[Path | None, ...]:
        """Return the caches of a lazy layer, by the image's devices; None for one without data."""

    def caches(self, id: int) -> tuple[Path, ...]:
        """Return the caches of a lazy layer."""
        return tuple(cache for cache in self.devices(id) if cache is not None)

    def empty_device(self) -> Path:
        """Return the file for a device without data; of drivers alone whose `devices` has None."""
        raise NotImplementedError

    def mounting(self) -> AbstractContextManager[None]:
        """Return what to hold while lazy layers are mounted, beside the lock of each."""
        return contextlib.nullcontext()

    def is_lazy(self, id: int) -> bool:
        """Tell whether a layer is served, rather than unpacked."""
        return self.image(id).exists()

    def point(self, id: int) -> Path:
        """Return where a lazy layer is mounted."""
        return self.lower(id)

    def standing(self, parents: tuple[int, ...]) -> list[int]:
        """Return the lazy layers that have to be mounted for a snapshot with these parents."""
        return [id for id in parents if self.is_lazy(id)]

    def is_open(self, id: int) -> bool:
        """Tell whether something has a lazy layer mounted, in whichever namespace.

        Raises:
            OSError: EINVAL where the filesystem cannot tell.
        """
        from lamina.linux.file_lease import is_open_elsewhere

        return is_open_elsewhere(self.image(id))

    def mount_layer(self, id: int, devices: Sequence[Path], *options: str) -> None:
        """Mount a lazy layer, over what is at its point.

        Args:
            id: the layer.
            devices: a file for each of `devices`.
            options: of the mount.
        """
        from lamina.snapshotters.erofs_layer import mount_erofs

        mount_erofs(self.image(id), self.point(id), devices, *options)

    # What the engine asks for

    def create(self, snapshot: Snapshot) -> None:
        """Make the directories, after mounting the lazy layers below; see `OverlayStackDriver`."""
        from lamina.snapshotters import lazy_eviction

        layers = [self._layer(id) for id in self.standing(snapshot.parents)]
        for layer in layers:
            with self.mounting():
                mount_in_turn(layer.point, functools.partial(self._mount, layer.id))
        lazy_eviction.touch(layers)
        super().create(snapshot)

    def mounts(self, snapshot: Snapshot) -> list[Mount]:
        """Return one bind mount or one overlay, after mounting the lazy layers it stands on.

        Raises:
            DataLoss: what a lazy layer is mounted from is gone.
            FailedPrecondition: everybody who guarded its readers was killed.
            Unavailable: there is no worker to serve it, and none can be started.
        """
        self._mount_layers(self.standing(snapshot.parents))
        return super().mounts(snapshot)

    def seal(self, snapshot: Snapshot) -> Usage:
        """Measure; a lazy layer is what it takes now, and grows."""
        if not self.is_lazy(snapshot.id):
            return super().seal(snapshot)
        return Usage(2, disk_bytes(self.image(snapshot.id).stat()))

    def destroy(self, id: int) -> None:
        """Unmount a lazy layer and let go of it; remove the directory.

        Raises:
            FailedPrecondition: somebody still has it mounted, and would read zeros or errors.
        """
        unmount_all(self.point(id))
        self._require_unused(id)
        self.let_go(id)
        super().destroy(id)

    def _require_unused(self, id: int) -> None:
        """Return if nothing has a lazy layer mounted, in whichever namespace, alone or below."""
        image = self.image(id)
        deadline = time.monotonic() + _RELEASE_SECONDS
        while image.exists() and self._seems_open(id):
            if time.monotonic() > deadline:
                where = "here or in another mount namespace (grep its path in /proc/*/mountinfo)"
                hint = f"unmount it {where}; it is removed with the next cleanup then"
                raise FailedPrecondition(
                    "remove lazy layer that is still mounted", image, hint=hint
                )
            time.sleep(_LOOK_SECONDS)

    def _seems_open(self, id: int) -> bool:
        try:
            return self.is_open(id)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            return False

    def let_go(self, id: int) -> None:
        """Have the caches of a lazy layer, which is not mounted, served no more."""
        for cache in self.caches(id):
            if cache.exists():
                self._worker.remove(cache)

    def shrink(self, to: int | None = None) -> Shrunk:
        """Empty the caches of layers that nobody uses, until the others fit."""
        from lamina.snapshotters import lazy_eviction

        bound = self._budget if to is None else to
        return lazy_eviction.shrink(self._lazy_layers(), bound, self._evict)

    def growth(self, id: int) -> int:
        """Return the bytes of disk that a lazy layer's caches take now; 0 for another."""
        from lamina.lazy.emptying import allocated

        return sum(map(allocated, self.caches(id)))

    def faults(self, exists: Callable[[int], bool]) -> Iterator[Problem]:
        """Yield also the lazy layers whose metadata does not begin as it should."""
        yield from super().faults(exists)
        yield from self._damaged(exists, deep=False)

    def damage(self, exists: Callable[[int], bool]) -> Iterator[Problem]:
        """Yield the lazy layers whose metadata is damaged somewhere else, or what is cached."""
        from lamina.snapshotters.lazy_checks import cache_problem

        yield from self._damaged(exists, deep=True)
        layers = [id for id in self.ids() if exists(id) and self.is_lazy(id)]
        # One that several layers have is read once.
        caches = {cache: id for id in layers for cache in self._sound_caches(id)}
        for cache, id in caches.items():
            problem = cache_problem(id, cache, functools.partial(self._empty, id))
            if problem is not None:
                yield problem

    def _sound_caches(self, id: int) -> tuple[Path, ...]:
        """Return the caches of a layer; none where other checks tell what is wrong with it."""
        try:
            return self.caches(id)
        except LaminaError:
            return ()

    def _empty(self, id: int) -> None:
        if self._evict(self._layer(id)) is None:
            hint = "remove the containers that stand on it, and try again"
            raise FailedPrecondition("empty the caches of layer", id, hint=hint)

    def problem_of(self, id: int, *, deep: bool) -> Problem | None:
        """Look into the metadata of a lazy layer; None where it is sound, or gone."""
        from lamina.snapshotters.erofs_check import problem_of

        return problem_of(id, self.image(id), deep=deep)

    def _damaged(self, exists: Callable[[int], bool], *, deep: bool) -> Iterator[Problem]:
        from lamina.snapshotters.lazy_checks import is_written, lost_problem

        for id in self.ids():
            if exists(id) and is_written(self.image(id)):
                problem = self.problem_of(id, deep=deep) or lost_problem(id, self.caches(id))
                if problem is not None and exists(id):
                    yield problem

    def info_labels(self, id: int) -> Mapping[str, str]:
        """Return why a layer is not lazy."""
        try:
            reason = (self.of(id) / REASON).read_text()
        except FileNotFoundError:
            return EMPTY_LABELS
        return {REASON_LABEL: reason}

    def lazy_layers(self, id: int) -> tuple[LazyFiles, ...]:
        """Return where the data of a lazy layer is; nothing for one that is unpacked."""
        if not self.is_lazy(id):
            return ()
        image, numbered = self.image(id), enumerate(self.devices(id), 1)
        return tuple(LazyFiles(image, cache, number) for number, cache in numbered if cache)

    def serve(self, id: int) -> None:
        """Mount a lazy layer, and have it served, unless it is complete.

        Raises:
            DataLoss, Unavailable: as `mounts`.
            FailedPrecondition: everybody who guarded its readers was killed.
        """
        self._mount_layers([id])

    # What drivers are made of

    @functools.cached_property
    def _gate(self) -> GateName:
        from lamina.lazy.gates.choice import choose_gate

        return self._wanted_gate or choose_gate(self._root)

    @functools.cached_property
    def _worker(self) -> LazyWorker:
        from lamina.lazy.launch import LazyWorker  # lists of snapshotters need none

        return LazyWorker(self._root)

    def _mount_new(self, id: int) -> None:
        """Mount a layer that was just made, or was not since the machine has started."""
        with self.mounting():
            mount_once(self.point(id), functools.partial(self._mount, id))

    def _has_room(self, id: int, size: int) -> bool:
        """Make room for caches of so many bytes; tell if they may be filled in the background."""
        from lamina.snapshotters import lazy_eviction

        if self._budget is None:
            return True
        self.shrink(max(0, self._budget - size))
        others = [layer for layer in self._lazy_layers() if layer.id != id]
        return lazy_eviction.expected(others) + size <= self._budget

    def _evict(self, layer: LazyLayer) -> int | None:
        from lamina.snapshotters import lazy_eviction

        return lazy_eviction.evict(layer, self.is_used, self._worker.remove)

    def _layer(self, id: int) -> LazyLayer:
        from lamina.snapshotters.lazy_eviction import LazyLayer

        is_open = functools.partial(self.is_open, id)
        return LazyLayer(id, self.point(id), is_open, self.caches(id))

    def _lazy_layers(self) -> list[LazyLayer]:
        return [self._layer(id) for id in self.ids() if self.is_lazy(id)]

    def _mount_layers(self, ids: Iterable[int]) -> None:
        for id in ids:
            if not self.is_lazy(id):
                continue
            if not is_mounted(self.point(id)):
                self._mount_new(id)
            else:
                self._guard(id)
                try:
                    self._let_go_of_gate(id)
                except (LaminaError, OSError) as error:  # the mount that is there serves as well
                    log.warning("cannot mount a complete layer from its cache file: %s", error,
                                extra={"path": str(self.of(id))})  # fmt: skip

    def _guard(self, id: int) -> None:
        """Have an incomplete layer served that is mounted: those who did may have been killed."""
        from lamina.lazy.layer import read_layer
        from lamina.lazy.view import is_durable

        for cache in self.caches(id):
            if cache.is_dir() and _has_data(cache) and not is_durable(cache):
                gate = cast("GateName", read_layer(cache).gate)
                device = self._worker.add(cache, self.factory, gate)
                if gate == "fuse":
                    self._renew(id, device.parent)

    def _renew(self, id: int, served: Path) -> None:
        """Mount a layer anew whose mount is older than the filesystem that it would read through.

        Everybody who served that one was killed, so that it gives errors for ever. The new mount
        goes over the old one, as in `_let_go_of_gate`; what stands on that stays as it is.
        """
        from lamina.snapshotters.lower_mounts import is_older, locked

        point = self.point(id)
        if not is_older(point, served):
            return
        with self.mounting(), locked(point):
            if is_older(point, served):
                self._mount_at(id, self._devices(id))
                log.warning("mounted a lazy layer anew, as all who served it were killed: "
                            "containers of before can read no more of it, later ones can",
                            extra={"path": str(self.of(id))})  # fmt: skip

    def _let_go_of_gate(self, id: int) -> None:
        """Mount a layer that was read through FUSE, and is complete now, from its cache files.

        It goes over the other mount, so that there is no moment without one; what stands on that
        stays there. Only a layer that is durable is mounted without a gate.
        """
        from lamina.snapshotters.lower_mounts import has_option, locked

        if id in self._direct or not self._needs_no_gate(id):
            return
        with self.mounting(), locked(self.point(id)):
            # It may have been emptied since.
            if not has_option(self.point(id), _DIRECT) and self._needs_no_gate(id):
                self._mount_at(id, [self._data(cache) for cache in self.devices(id)])
            self._direct.add(id)

    def _needs_no_gate(self, id: int) -> bool:
        """Tell whether a layer has the gate `fuse`, and is durable."""
        from lamina.lazy.layer import read_layer
        from lamina.lazy.view import is_durable

        caches = self.caches(id)
        gates = {read_layer(cache).gate for cache in caches}
        return gates == {"fuse"} and all(map(is_durable, caches))

    def _mount(self, id: int) -> None:
        caches = self.caches(id)
        for cache in caches:
            if not cache.is_dir():
                hint = "`lamina fsck --repair` tells how to have the layer again"
                raise DataLoss("mount lazy layer", cache, hint=hint)
        devices = self._devices(id)
        self._direct.discard(id)  # of one that was emptied since
        self._mount_at(id, devices)
        for cache in caches:
            self._fetch(cache)

    def _devices(self, id: int) -> list[Path]:
        return [self._device(cache) for cache in self.devices(id)]

    def _device(self, cache: Path | None) -> Path:
        """Return the file to mount as a device; its cache is served from then on."""
        if cache is None:
            return self.empty_device()
        return self._worker.add(cache, self.factory, self._gate)

    def _data(self, cache: Path | None) -> Path:
        """Return the file that has all of a device."""
        return self.empty_device() if cache is None else cache / _DATA

    def _mount_at(self, id: int, devices: Sequence[Path]) -> None:
        direct = devices and devices == [self._data(cache) for cache in self.devices(id)]
        self.mount_layer(id, devices, *([_DIRECT] if direct else []))

    def _fetch(self, cache: Path) -> None:
        """Have fetched in the background what the configuration says; nobody waits for it."""
        from lamina.lazy.unit_list import WANTED
        from lamina.snapshotters.lazy_eviction import COMPLETES

        everything = self._completes and (cache / COMPLETES).exists()
        if not everything and not (cache / WANTED).exists():
            return
        try:
            self._worker.prefetch(cache, everything=everything)
        except NotFound:
            pass  # it is complete, and not served
        except LaminaError as error:
            log.warning("cannot fetch in the background: %s", error, extra={"path": str(cache)})

    def _undo_mount(self, id: int) -> None:
        """Take back that a layer was mounted and is served, as far as that can be."""
        with contextlib.suppress(LaminaError, OSError):
            unmount_all(self.point(id))
            self.let_go(id)

    def _refuse(self, id: int, reason: str) -> Refused:
        self._note(id, reason)
        return Refused(reason)

    def _note(self, id: int, reason: str) -> None:
        (self.of(id) / REASON).write_text(reason[:1000])


def _has_data(cache: Path) -> bool:
    try:
        return bool((cache / _DATA).stat().st_size)
    except FileNotFoundError:
        return True  # whoever serves it makes it anew
