"""Lazy images for the tests of stargz: made, pushed, pulled into a store, and read."""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import random
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lamina.config import load
from lamina.errors import FormatError
from lamina.formats.estargz.annotations import TOC_DIGEST
from lamina.formats.estargz.footer import find_toc
from lamina.formats.estargz.toc import read_toc
from lamina.lazy.launch import LazyWorker
from lamina.mount import temp_mount, unmount_recursive
from lamina.store import Store
from tests.erofs import Bytes
from tests.estargz import make_blob
from tests.fixtures_registry import LocalRegistry
from tests.images import ImageFiles, Layer, digest, image
from tests.killing import kill_all

GATES = [
    pytest.param("fanotify", marks=pytest.mark.fanotify),
    pytest.param("fuse", marks=pytest.mark.fuse),
]
CHUNK = 64 << 10
TOC = "stargz.index.json"
CONFIG = """version = 3
[plugins."io.containerd.snapshotter.v1.{snapshotter}"]
gate = "{gate}"
no_background_fetch = {quiet}
"""


def noise(size: int, seed: int) -> bytes:
    return random.Random(seed).randbytes(size)


FILES = [
    {"a": b"first", "big": noise(700_000, 1), "empty": b"", "dir/deep/file": noise(90_000, 2)},
    {"b": b"second", "other": noise(300_000, 3), "dir/more": b"more"},
]
ALL = {path: content for files in FILES for path, content in files.items()}


def write_config(
    directory: Path,
    gate: str,
    *,
    quiet: bool = True,
    more: str = "",
    snapshotter: str = "stargz",
) -> Path:
    """Write a configuration and return its path; `more` is further lines about the snapshotter."""
    path = directory / "config.toml"
    said = CONFIG.format(snapshotter=snapshotter, gate=gate, quiet=str(quiet).lower())
    path.write_text(said + more)
    return path


def stargz_layer(files: dict[str, bytes], mode: int = 0o644) -> Layer:
    blob = make_blob(files, CHUNK, mode=mode)
    # Not gzip.decompress, which copies what is left of a blob for each of its many members.
    with gzip.open(io.BytesIO(blob)) as tar:
        return Layer(blob, digest(tar.read()))


def toc_digest(blob: bytes) -> str:
    return read_toc(Bytes(blob), find_toc(Bytes(blob))).digest


def annotated(files: ImageFiles, **changed: str) -> bytes:
    """Return the manifest with the digests of the tables of contents."""
    manifest = json.loads(files.manifest)
    for entry, layer in zip(manifest["layers"], files.layers, strict=True):
        with contextlib.suppress(FormatError):
            entry["annotations"] = {TOC_DIGEST: toc_digest(layer.blob), **changed}
    return json.dumps(manifest).encode()


@pytest.fixture
def files() -> ImageFiles:
    """A lazy image of two layers, with what is in FILES."""
    return image(*map(stargz_layer, FILES))


@pytest.fixture
def open_store(root_dir: Path, tmp_path: Path) -> Iterator[Callable[..., Store]]:
    """Open the store, as often as a test likes; takes what `write_config` takes of a gate."""
    with opening(root_dir, tmp_path, "stargz") as make:
        yield make


@contextlib.contextmanager
def opening(root: Path, directory: Path, snapshotter: str) -> Iterator[Callable[..., Store]]:
    """Close what was opened, and end what it has started; the configuration is in a directory."""
    opened: list[Store] = []

    def make(gate: str = "auto", *, quiet: bool = True, more: str = "") -> Store:
        config = write_config(directory, gate, quiet=quiet, more=more, snapshotter=snapshotter)
        opened.append(Store(root, config=load(config)))
        return opened[-1]

    yield make
    for store in opened:
        store.close()
    end_lazy(root)


def end_lazy(root: Path) -> None:
    """Unmount the lazy layers of a root, and kill what serves them."""
    unmount_recursive(root)
    end_worker(root)


def end_worker(root: Path) -> None:
    """Kill whatever serves the root, so that none takes another's place, and wait for its end."""
    kill_all(lambda: processes(root))


def processes(root: Path) -> list[int]:
    done = subprocess.run(
        ("pgrep", "-f", f"lamina.lazy.*{root}"), stdout=subprocess.PIPE, text=True
    )
    return [int(pid) for pid in done.stdout.split()]


def push(registry: LocalRegistry, files: ImageFiles, manifest: bytes | None = None) -> str:
    registry.push(manifest or annotated(files), files.blobs, "test", "1")
    return f"{registry.host}/test:1"


def worker(store: Store) -> LazyWorker:
    return LazyWorker(store.snapshotter("stargz").root)


def top(store: Store, ref: str) -> str:
    return store.launch(ref).chain_id


def read_all(store: Store, ref: str, tmp_path: Path) -> dict[str, bytes]:
    engine = store.snapshotter("stargz")
    mounts = engine.view("look", top(store, ref))
    try:
        with temp_mount(mounts, dir=tmp_path, read_only=True) as root:
            # Unpacking leaves the table of contents in the tree: to a tar, it is a file.
            found = (path for path in root.rglob("*") if path.is_file() and path.name != TOC)
            return {str(path.relative_to(root)): path.read_bytes() for path in found}
    finally:
        engine.remove("look")


def fetched(store: Store) -> int:
    return sum(layer.local_bytes for layer in worker(store).status().layers)
