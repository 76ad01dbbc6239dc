"""Pulling images with a lazy snapshotter, and looking at what they show."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from lamina.core.mount import Mount
from lamina.lazy.launch import LazyWorker
from lamina.mount import temp_mount
from lamina.store import Store


class Looking(NamedTuple):
    """One snapshotter of stores."""

    snapshotter: str

    def pull(self, store: Store, ref: str) -> None:
        store.pull(ref, snapshotter=self.snapshotter, plain_http=True)

    def worker(self, store: Store) -> LazyWorker:
        return LazyWorker(store.snapshotter(self.snapshotter).root)

    def fetched(self, store: Store) -> int:
        """Return the bytes of all layers that are local."""
        return sum(layer.local_bytes for layer in self.worker(store).status().layers)

    @contextmanager
    def at(self, store: Store, ref: str, tmp_path: Path) -> Iterator[Path]:
        """Mount a View of an image."""
        engine = store.snapshotter(self.snapshotter)
        mounts: list[Mount] = engine.view("look", store.launch(ref).chain_id)
        try:
            with temp_mount(mounts, dir=tmp_path, read_only=True) as root:
                yield root
        finally:
            engine.remove("look")


def read_all(root: Path) -> dict[str, bytes]:
    """Return the content of all regular files, by their paths."""
    found = (path for path in root.rglob("*") if path.is_file())
    return {str(path.relative_to(root)): path.read_bytes() for path in found}
