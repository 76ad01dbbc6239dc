"""One root directory and everything in it: what `lamina.open` returns and the CLI works on.

metadata.sqlite                     images, leases, content labels, containers, launches
io.containerd.content.v1.content/   blobs, in containerd's layout
io.containerd.snapshotter.v1.NAME/  a snapshotter's store and storage
containers/ID/                      bundles
checkouts/, tmpmounts/              mount points
"""

from __future__ import annotations

import errno
import logging
import os
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Self

from lamina import plugins
from lamina.config import Config
from lamina.core.driver import Ability
from lamina.errors import (
    FailedPrecondition,
    InvalidArgument,
    LaminaError,
    NotFound,
    PermissionDenied,
)
from lamina.snapshotters import DRIVERS, find
from lamina.snapshotters.plugin import PLUGIN_TYPE
from lamina.snapshotters.wakeup import Janitor

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from lamina.checkout import Checkout
    from lamina.core.digest import Digest
    from lamina.core.problem import Problem
    from lamina.fsck import Repaired
    from lamina.images.archive.exporting import ExportOptions
    from lamina.images.archive.importing import ImportOptions
    from lamina.images.catalogue import Image
    from lamina.images.conversion import Converted, ConvertOptions
    from lamina.images.extraction import Destination
    from lamina.images.gc import Collected
    from lamina.images.migration import Migrated
    from lamina.images.operation import Options
    from lamina.images.progress import Progress
    from lamina.images.pull import Pulled
    from lamina.images.push import Pushed, PushOptions
    from lamina.images.registry.client import Registry
    from lamina.images.store import ImageStore
    from lamina.layer.limits import LayerLimits
    from lamina.meta.containers import ContainerStore
    from lamina.meta.database import Database
    from lamina.meta.launches import Launch
    from lamina.snapshotters.engine import Engine

log = logging.getLogger(__name__)

DEFAULT_SNAPSHOTTER = "overlayfs"
CONTAINERD_METADATA = "io.containerd.metadata.v1.bolt"
"""By which a directory is seen to be containerd's root, whose content is not ours to collect."""
CERTS_D = Path("/etc/containerd/certs.d")
"""Where containerd's users describe registries and mirrors."""


class Store:
    """Images, snapshots and containers below one directory.

    Several processes may have the same root open, and several threads may use one Store.

    Args:
        root: the directory; made with mode 0711 when absent (its parent must exist).
        config: what the snapshotters' sections say; defaults without it.
        default_snapshotter: used where a call names none.

    Attributes:
        janitor: starts the process that does the background work.

    Raises:
        PermissionDenied: the directory can be neither made nor written.
        FailedPrecondition: it is containerd's own root, or no directory.
        InvalidArgument: it is `/`.
    """

    def __init__(
        self,
        root: Path,
        *,
        config: Config | None = None,
        default_snapshotter: str = DEFAULT_SNAPSHOTTER,
    ) -> None:
        # Without symbolic links: OCI runtimes take no root file system behind one.
        self.root = Path(os.path.realpath(root))
        self.default_snapshotter = default_snapshotter
        if (self.root / CONTAINERD_METADATA).exists():
            hint = "containerd keeps its images there; name another directory with --root"
            raise FailedPrecondition("use as root", self.root, hint=hint)
        self._config = config or Config()
        self._engines: dict[str, Engine] = {}
        self._mutex = threading.RLock()
        self.janitor = Janitor(self.root)
        self._holding = 0
        self._images: ImageStore | None = None
        self._metadata: Database | None = None
        _make_root(self.root)

    def snapshotter(self, name: str | None = None) -> Engine:
        """Return the snapshotter of that name, or the default one; closed with the store.

        Raises:
            NotFound: there is none of that name.
            SnapshotterSkipped: it cannot work on this machine; says why, and what helps.
        """
        name = name or self.default_snapshotter
        with self._mutex:
            if name not in self._engines:
                self._engines[name] = self._load(name)
            return self._engines[name]

    @property
    def images(self) -> ImageStore:
        """Image records, content and leases."""
        with self._mutex:
            if self._images is None:
                from lamina.images.store import ImageStore

                self._images = ImageStore(self.root, self._database)
            return self._images

    @property
    def containers(self) -> ContainerStore:
        """Records of containers."""
        from lamina.meta.containers import ContainerStore

        return ContainerStore(self._database)

    @property
    def _database(self) -> Database:
        with self._mutex:
            if self._metadata is None:
                from lamina.meta.schema import open_metadata

                self._metadata = open_metadata(self.root)
            return self._metadata

    def pull(
        self,
        ref: str,
        *,
        snapshotter: str | None = None,
        unpack: bool = True,
        registry: Registry | None = None,
        plain_http: bool = False,
        options: Options | None = None,
        progress: Progress | None = None,
        sync: bool = False,
    ) -> Pulled:
        """Bring an image up to date with its registry and unpack it into a snapshotter.

        Args:
            ref: such as `docker.io/library/debian:12`, or short, `debian:12`.
            snapshotter: where to unpack; None for the default.
            unpack: false fetches the content only.
            registry: how to reach registries; None makes an anonymous one that knows the mirrors
                in /etc/containerd/certs.d.
            plain_http: speak http, where `registry` is None.
            options: platforms, limits, numbers of downloads and workers.
            progress: told what happens.
            sync: make it survive power loss before returning; otherwise that happens soon after.

        Raises:
            NotFound: no such image.
            Unavailable, Unauthenticated, PermissionDenied: the registry cannot be had.
            DigestMismatch, FormatError: what it sends is not what it says.
        """
        from lamina.images.pull import pull

        names = [snapshotter or self.default_snapshotter] if unpack else []
        with self._janitor_held(), ExitStack() as stack:
            if registry is None:
                registry = _anonymous(plain_http)
                stack.callback(registry.close)
            return pull(
                ref,
                store=self.images,
                registry=registry,
                destination=self._destination(*names) if unpack else None,
                options=options,
                progress=progress,
                sync=(lambda: self.sync(names)) if sync else None,
                collect=self.collect,
            )

    def push(
        self,
        ref: str,
        target: str = "",
        *,
        plain_http: bool = False,
        registry: Registry | None = None,
        options: PushOptions | None = None,
        progress: Progress | None = None,
    ) -> Pushed:
        """Push an image to a registry.

        Args:
            ref: the image.
            target: where to; "" for its own name.
            plain_http: speak http; for a registry without TLS.
            registry: asked instead of the one that `target` names, anonymously.
            options: for which platforms.
            progress: told what happens.

        Raises:
            NotFound: there is no such image, or some of its content is not here.
            Unavailable, Unauthenticated, PermissionDenied: the registry does not take it.
        """
        from lamina.images.push import push
        from lamina.images.reference import parse

        image = self.image(ref)
        with ExitStack() as stack:
            if registry is None:
                registry = _anonymous(plain_http)
                stack.callback(registry.close)
            return push(
                image,
                parse(target or image.name),
                store=self.images,
                registry=registry,
                options=options,
                progress=progress,
            )

    def import_images(
        self,
        source: Path | BinaryIO,
        *,
        snapshotter: str | None = None,
        unpack: bool = True,
        options: ImportOptions | None = None,
        progress: Progress | None = None,
        sync: bool = False,
    ) -> list[Image]:
        """Import the images of an OCI layout (directory or tar) or of a `docker save` archive.

        Args:
            source: a directory, a tar file, or a stream of one; compressed or not.
            snapshotter: where to unpack; None for the default.
            unpack: false keeps the content only.
            options: how images are named, and which platforms are unpacked.
            progress: told of the unpacking.
            sync: make it survive power loss before returning.

        Raises:
            FormatError: it is no such archive, or damaged.
            DigestMismatch: a blob is not what its name says.
            NotFound: no image in it gets a name, or content is missing.
        """
        from lamina.images.archive.importing import import_images

        names = [snapshotter or self.default_snapshotter] if unpack else []
        with self._janitor_held():
            return import_images(
                source,
                store=self.images,
                destination=self._destination(*names) if unpack else None,
                options=options,
                progress=progress,
                sync=(lambda: self.sync(names)) if sync else None,
                collect=self.collect,
            )

    def export_images(
        self, refs: Iterable[str], out: BinaryIO, *, options: ExportOptions | None = None
    ) -> None:
        """Write images as one tar that is an OCI layout and that `docker load` takes as well.

        Raises:
            NotFound: there is no such image, or some of its content is not here.
        """
        from lamina.images.archive.exporting import export_images

        found = [self.image(ref) for ref in refs]
        export_images(found, out, store=self.images, options=options)

    def unpack(
        self,
        ref: str,
        snapshotter: str | None = None,
        *,
        options: Options | None = None,
        lease: str = "",
    ) -> Digest | None:
        """Make sure that an image that was pulled is in a snapshotter; return its chain id.

        Args:
            ref: the image.
            snapshotter: where to unpack; None for the default.
            options: for which platform, and within which limits.
            lease: id of a lease of the caller's that is to hold the layers.

        Raises:
            NotFound: there is no such image, or its content is gone.
        """
        from lamina.images.pull import unpack

        with self._janitor_held():
            image = unpack(
                self.image(ref),
                store=self.images,
                destination=self._destination(snapshotter or self.default_snapshotter),
                options=options,
                lease=lease,
            )
        return image.chain_id

    def migrate(
        self,
        ref: str,
        source: str,
        snapshotter: str | None = None,
        *,
        remove_source: bool = False,
        limits: LayerLimits | None = None,
        progress: Progress | None = None,
        sync: bool = False,
    ) -> Migrated:
        """Copy an unpacked image to another snapshotter, without its layers' blobs or a registry.

        Args:
            ref: the image; every platform of it that is unpacked is copied.
            source: the snapshotter where it is unpacked.
            snapshotter: where to copy it; None for the default.
            remove_source: once the copy survives power loss, free the layers in `source`. Those
                that something else needs stay.
            limits: bounds of each layer.
            progress: told what happens.
            sync: make the copy survive power loss before returning.

        Raises:
            InvalidArgument: source and target are the same.
            FailedPrecondition: the image is not unpacked in `source`.
            DataLoss: the copy is not what it was made from; it is removed.
            ResourceExhausted: there is no room for it.
        """
        from lamina.images.migration import Migrated, forget, left_in, migrate

        name = snapshotter or self.default_snapshotter
        if source == name:
            hint = "name another one with --snapshotter"
            raise InvalidArgument("copy an image to the snapshotter that has it:", name, hint=hint)
        origin, image = self._destination(source), self.image(ref)
        with self._janitor_held():
            copies = migrate(
                image,
                store=self.images,
                source=origin,
                target=self._destination(name),
                limits=limits,
                progress=progress,
                collect=self.collect,
            )
            if sync or remove_source:
                self.sync([name])
        if not remove_source:
            return Migrated(image, copies)
        forget(image, store=self.images, snapshotter=source)
        self.collect()
        return Migrated(image, copies, left_in(origin, copies))

    def convert(
        self,
        ref: str,
        target: str,
        *,
        options: ConvertOptions | None = None,
        progress: Progress | None = None,
        sync: bool = False,
    ) -> Converted:
        """Make a lazy image of one that was pulled: of eStargz or zstd:chunked, Nydus or overlaybd.

        Args:
            ref: the image; its blobs have to be in the store.
            target: name of the new image.
            options: for which platforms, and how.
            progress: told what happens.
            sync: make it survive power loss before returning.

        Raises:
            NotFound: there is no such image, or some of its content is not here.
            FormatError, DigestMismatch: a layer is damaged.
        """
        from lamina.images.conversion import convert

        with self._janitor_held():
            return convert(
                self.images,
                self.image(ref),
                target,
                options,
                progress=progress,
                sync=self.images.content.sync if sync else None,
                collect=self.collect,
            )

    def image(self, ref: str) -> Image:
        """Return the record of an image by its reference, full or short, or by its plain name.

        Raises:
            NotFound: there is none.
        """
        for name in _names(ref):
            found = self.images.catalogue.find(name)
            if found is not None:
                return found
        return self.images.catalogue.get(name)

    def launch(self, ref: str, platform: str | None = None) -> Launch:
        """Return how to run an image: the name of its top layer's snapshot, and its process.

        Args:
            ref: a reference, full or short.
            platform: such as `linux/arm64`; None for the machine's own.

        Raises:
            NotFound: there is no such image, or not for that platform.
            InvalidArgument: that is no platform.
        """
        from lamina.meta.launches import Launch, Launches

        launches = Launches(self._database)
        found = None if platform else launches.find(_names(ref))
        if found is not None:
            return found
        from lamina.images.platform import default_platform, parse_platform

        try:
            record = self.image(ref)
        except NotFound as error:
            raise NotFound("image", ref, hint=f"get it: lamina images pull {ref}") from error
        wanted = parse_platform(platform) if platform else default_platform()
        image = self.images.select(record, wanted)
        found = Launch(image.chain_id or "", image.config.config.process)
        if not platform:
            launches.remember(record.target.digest, found)
        return found

    def remove_image(self, ref: str) -> None:
        """Remove an image's record; `collect` then removes what only it has named.

        What a failed or killed pull of it has kept, to go on from there, is named no more either.

        Raises:
            NotFound: there is no such image.
        """
        from lamina.images.operation import IMAGE_LABEL

        for name in _names(ref):
            with self._database.write() as connection:
                self.images.leases.drop_abandoned(connection, IMAGE_LABEL, name)
        self.images.catalogue.delete(self.image(ref).name)

    def collect(self) -> Collected:
        """Remove the content and the unpacked layers that no image, lease or snapshot names."""
        from lamina.images.gc import collect

        return collect(self.images, self._existing_snapshotters())

    def checkout(
        self, ref: str, *, snapshotter: str | None = None
    ) -> AbstractContextManager[Checkout]:
        """Mount a writable copy of an image's root file system for the length of a `with` block.

        What was not committed by its end is discarded. Needs root.

        Args:
            ref: an image that was pulled.
            snapshotter: where the copy is made; the image is unpacked there if it is not yet.
        """
        from lamina.checkout import checkout

        return checkout(self, ref, snapshotter or self.default_snapshotter)

    def sync(self, names: Iterable[str] | None = None) -> None:
        """Make all content, and the commits of those snapshotters (or all), survive power loss."""
        self.images.content.sync()
        for name in names if names is not None else list(self._existing_snapshotters()):
            self.snapshotter(name).sync()

    def cleanup(self) -> None:
        """Collect, and free now what removed or abandoned snapshots and checkouts still occupy."""
        from lamina.checkout import sweep

        sweep(self)
        self.collect()
        for name in self._existing_snapshotters():
            self.snapshotter(name).cleanup()

    def fsck(self, *, deep: bool = False) -> list[Problem]:
        """Compare records, disk and mounts, both ways; change nothing.

        What a dead process left half done is undone by opening the store, so it is no problem.

        Args:
            deep: read the EROFS images of layers whole, of which else the beginning is looked at,
                and hash every blob as well, which is measured only otherwise: each is hashed
                when it is used.
        """
        from lamina.fsck import check

        return check(self, deep=deep)

    def repair(self, *, deep: bool = False) -> Repaired:
        """Do what `fsck` says that can be done; nothing that may still be wanted is deleted."""
        from lamina.fsck import repair

        return repair(self, deep=deep)

    def close(self) -> None:
        """Close everything; calling it again does nothing."""
        self.janitor.close()
        while self._engines:
            self._engines.popitem()[1].close()
        if self._images is not None:
            self._images.close()
            self._images = None
        if self._metadata is not None:
            self._metadata.close()
            self._metadata = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _load(self, name: str) -> Engine:
        plugin = find(name)
        engine = plugins.load(name, self.root, self._config, wake=self._wake)
        self.janitor.register(plugin, self._config.snapshotter(plugin), engine.root)
        return engine

    def _wake(self) -> None:
        with self._mutex:
            if not self._holding:
                self.janitor.wake()

    @contextmanager
    def _janitor_held(self) -> Iterator[None]:
        """Wake the janitor after the body, not within: its sync would compete with our writing."""
        with self._mutex:
            self._holding += 1
        try:
            yield
        finally:
            with self._mutex:
                self._holding -= 1
                if not self._holding:
                    self.janitor.wake()

    def _destination(self, name: str) -> Destination:
        from lamina.images.extraction import Destination

        engine = self.snapshotter(name)
        rebase = Ability.REBASE in engine.abilities
        return Destination(
            name,
            engine,
            rebase=rebase,
            remote=engine.is_remote,
            layer_image=engine.layer_image,
        )

    def existing_snapshotters(self) -> list[str]:
        """Return the names of those that have a directory already, usable or not."""
        prefix = f"{PLUGIN_TYPE}."
        found = {path.name.removeprefix(prefix) for path in self.root.glob(f"{prefix}*")}
        return sorted(filter(self._has_directory, found | DRIVERS.keys() | self._engines.keys()))

    def _has_directory(self, name: str) -> bool:
        if name in self._engines:
            return True
        try:
            return plugins.directory_of(name, self.root, self._config).is_dir()
        except LaminaError as error:
            log.warning("leaving snapshotter %s alone: %s", name, error)
            return False

    def _existing_snapshotters(self) -> Mapping[str, Engine]:
        """Return those that have a directory already; what cannot be loaded is left alone."""
        existing: dict[str, Engine] = {}
        for name in self.existing_snapshotters():
            try:
                existing[name] = self.snapshotter(name)
            except LaminaError as error:
                log.warning("leaving snapshotter %s alone: %s", name, error)
        return existing


def _make_root(root: Path) -> None:
    if root == Path("/"):  # mostly a variable that is unset, before a slash
        raise InvalidArgument("use as root", root, hint="name a directory of its own with --root")
    if root.is_dir():
        return
    try:
        root.mkdir(exist_ok=True)
        # Not 0700: root of a user namespace has to pass on its way to its root file system.
        root.chmod(0o711)
    except FileNotFoundError as error:
        raise NotFound("directory for the root", root.parent, hint="make it first") from error
    except (FileExistsError, NotADirectoryError) as error:
        hint = "it is no directory; name one with --root"
        raise FailedPrecondition("use as root", root, hint=hint) from error
    except OSError as error:
        hint = "run as root, or name a directory of yours with --root"
        refused = error.errno in {errno.EACCES, errno.EPERM, errno.EROFS}
        kind = PermissionDenied if refused else LaminaError
        raise kind(f"open store: {error.strerror}", root, hint=hint) from error


def _names(ref: str) -> Iterator[str]:
    """Yield the names that an image meant by `ref` may have: as it stands, then in full."""
    yield ref
    from lamina.images.reference import parse

    try:
        yield str(parse(ref))
    except InvalidArgument:
        return


def _anonymous(plain_http: bool) -> Registry:
    from lamina.images.registry.client import Registry
    from lamina.images.registry.credentials import CredentialStore
    from lamina.images.registry.hosts import HostsConfig

    hosts = HostsConfig(directory=CERTS_D if CERTS_D.is_dir() else None, plain_http=plain_http)
    return Registry(hosts, CredentialStore())
