"""A root directory with content, leases and snapshotters open, as one process has it.

Run as a program it pulls: `python -m tests.roots ROOT REFERENCE SNAPSHOTTER`.
"""

from __future__ import annotations

import random
import sys
from pathlib import Path

from lamina.core.driver import Ability
from lamina.core.snapshot import Kind
from lamina.images.extraction import Destination
from lamina.images.gc import Collected, collect
from lamina.images.progress import Event
from lamina.images.pull import Pulled, pull
from lamina.images.registry.client import Registry
from lamina.images.registry.credentials import CredentialStore
from lamina.images.registry.hosts import HostsConfig
from lamina.images.registry.retry import RetryPolicy
from lamina.images.store import ImageStore
from lamina.mount import temp_mount
from lamina.snapshotters.engine import Engine
from lamina.snapshotters.native.driver import NativeDriver
from lamina.snapshotters.overlayfs.driver import OverlayDriver
from tests.images import ImageFiles, Layer, image

SNAPSHOTTERS = ("overlayfs", "native")


class Root:
    """A root directory with everything open, as one process has it."""

    def __init__(self, root: Path, *, retry: RetryPolicy | None = None, boot: str = "") -> None:
        root.mkdir(mode=0o700, exist_ok=True)
        self.root = root
        self.store = ImageStore(root)
        self.engines = {name: self._engine(name, boot) for name in SNAPSHOTTERS}
        self.registry = Registry(HostsConfig(plain_http=True), CredentialStore(), retry=retry)
        self.events: list[Event] = []

    def _engine(self, name: str, boot: str) -> Engine:
        directory = self.root / f"io.containerd.snapshotter.v1.{name}"
        directory.mkdir(mode=0o700, exist_ok=True)
        driver = OverlayDriver(directory) if name == "overlayfs" else NativeDriver(directory)
        return Engine(name, driver, directory, sync_remove=True, boot=boot)

    def update(self, event: Event) -> None:
        self.events.append(event)

    def destination(self, name: str) -> Destination:
        engine = self.engines[name]
        rebase = Ability.REBASE in engine.abilities
        return Destination(
            name,
            engine,
            rebase=rebase,
            remote=engine.is_remote,
            layer_image=engine.layer_image,
        )

    def collect(self) -> Collected:
        return collect(self.store, self.engines)

    def pull(self, ref: str, name: str = "overlayfs", **more: object) -> Pulled:
        arguments = {"destination": self.destination(name), "progress": self, **more}
        return pull(
            ref,
            store=self.store,
            registry=self.registry,
            collect=self.collect,
            **arguments,  # type: ignore[arg-type]  # the tests' own arguments
        )

    def files(self, pulled: Pulled, name: str) -> dict[str, bytes]:
        """Return path and content of every file of the image."""
        engine = self.engines[name]
        [unpacked] = pulled.unpacked
        mounts = engine.view("look", unpacked.chain_id or "")
        try:
            with temp_mount(mounts, dir=self.store.mounts, read_only=True) as path:
                found = (p for p in path.rglob("*") if p.is_file())
                return {str(p.relative_to(path)): p.read_bytes() for p in found}
        finally:
            engine.remove("look")

    def assert_clean(self, name: str, layers: int) -> None:
        """Nothing but so many committed layers is there."""
        infos = list(self.engines[name].walk())
        assert [i.kind for i in infos] == [Kind.COMMITTED] * layers, infos
        assert self.engines[name].fsck() == []
        assert self.store.content.ingests() == []
        assert self.store.leases.all() == []
        assert list(self.store.locks.iterdir()) == []

    def close(self) -> None:
        for engine in self.engines.values():
            engine.close()
        self.store.close()
        self.registry.close()


def three_layers(size: int = 200_000, seed: int = 1) -> ImageFiles:
    """An image in which each layer changes the one below."""
    noise = random.Random(seed)
    return image(
        Layer.of({"etc/": None, "etc/a": b"old a", "etc/b": b"b", "big0": noise.randbytes(size)}),
        Layer.of(
            {"etc/": None, "etc/a": b"new a", "etc/.wh.b": b"", "big1": noise.randbytes(size)}
        ),
        Layer.of({"etc/": None, "etc/c": b"c", "big2": noise.randbytes(size)}),
    )


SMALL = {"etc/a": b"new a", "etc/c": b"c"}


def small_files(files: dict[str, bytes]) -> dict[str, bytes]:
    return {name: content for name, content in files.items() if len(content) < 100}


def main(root: str, reference: str, name: str) -> None:
    """Pull, and print how many bytes came from the registry."""
    opened = Root(Path(root))
    try:
        print(opened.pull(reference, name).timings.downloaded)
    finally:
        opened.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
