"""A deterministic image of the size and mix that people pull, as an OCI layout on disk.

Three layers with about 43,000 entries and 1.44 GB uncompressed: a distribution, a language runtime
with its packages, an application with data. Most files are small; most bytes are in large ones.

    python bench/images.py DIRECTORY
"""

from __future__ import annotations

import hashlib
import json
import random
import sys
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from lamina.formats.tar import END_OF_ARCHIVE, Entry, Type, header, padding

MTIME = 1_700_000_000 * 1_000_000_000
REFERENCE = "lamina-bench:latest"

Write = Callable[[bytes], object]
Tar = Callable[[Write], int]
"""Writes an uncompressed tar, and returns how many entries it has."""


@dataclass(frozen=True)
class Layer:
    """How much of what a layer has; sizes in bytes.

    Attributes:
        top: directory that everything is below.
        files: number of regular files; directories and links come on top.
        size: bytes of all files together.
    """

    top: str
    files: int
    size: int


LAYERS = (
    Layer("usr", 12_000, 260_000_000),
    Layer("opt/runtime", 21_000, 640_000_000),
    Layer("srv/app", 3_500, 520_000_000),
)

SMALL_LAYER = Layer("srv/app", 1_000, 80_000_000)
LARGE_LAYER = Layer("srv/app", 10_000, 800_000_000)


class Content:
    """Bytes that deflate about as well as programs, texts and archives do together."""

    POOL = 16 << 20

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        words = [self._random.randbytes(self._random.randint(2, 9)).hex() for _ in range(4000)]
        parts: list[str] = []
        length = 0
        while length < self.POOL:
            word = words[min(int(self._random.expovariate(1 / 500)), 3999)]
            parts.append(word)
            length += len(word) + 1
        self._text = " ".join(parts).encode()
        self._noise = self._random.randbytes(self.POOL)

    def bytes(self, size: int) -> bytes:
        """Return `size` bytes, in pieces of text and of noise."""
        parts = []
        left = size
        while left:
            source = self._noise if self._random.random() < 0.13 else self._text
            piece = min(left, self._random.randint(20_000, 200_000))
            start = self._random.randrange(len(source) - piece)
            parts.append(source[start : start + piece])
            left -= piece
        return b"".join(parts)


def entries(layer: Layer, seed: int) -> Iterator[tuple[Entry, bytes]]:
    """Yield the entries of a layer with their bodies."""
    chance = random.Random(seed)
    content = Content(seed)
    shares = [chance.paretovariate(0.75) for _ in range(layer.files)]
    shares = [min(share, 4000.0) for share in shares]
    scale = layer.size / sum(shares)
    directory = ""
    parts = layer.top.split("/")
    for depth in range(len(parts)):
        yield _directory("/".join(parts[: depth + 1])), b""
    for index, share in enumerate(shares):
        if index % 7 == 0:
            directory = f"{layer.top}/group{index // 420:03d}"
            if index % 420 == 0:
                yield _directory(directory), b""
            directory = f"{directory}/package-{index // 7:05d}"
            yield _directory(directory), b""
        body = content.bytes(int(share * scale))
        name = f"{directory}/file-{index:06d}.dat"
        mode = 0o755 if index % 9 == 0 else 0o644
        yield _entry(name, Type.REGULAR, mode, size=len(body)), body
        if index % 40 == 0:
            link = f"{directory}/link-{index:06d}"
            yield _entry(link, Type.SYMLINK, 0o777, link=f"file-{index:06d}.dat"), b""
        if index % 300 == 0:
            yield _entry(f"{directory}/hard-{index:06d}", Type.HARD_LINK, mode, link=name), b""


def _directory(name: str) -> Entry:
    return _entry(f"{name}/", Type.DIRECTORY, 0o755)


def _entry(name: str, type: bytes, mode: int, *, size: int = 0, link: str = "") -> Entry:
    return Entry(name.encode(), type, mode, size=size, mtime=MTIME, linkname=link.encode())


def generated(layer: Layer, seed: int) -> Tar:
    """Return what writes a layer's tar, the same for the same seed."""

    def tar(write: Write) -> int:
        count = 0
        for entry, body in entries(layer, seed):
            count += 1
            write(header(entry) + body + bytes(padding(len(body))))
        write(END_OF_ARCHIVE)
        return count

    return tar


def write_layer(tar: Tar, write: Write) -> dict[str, object]:
    """Write a gzip layer and return its facts: digest, size, diff_id, entries."""
    compressor = zlib.compressobj(6, zlib.DEFLATED, 31)
    blob, diff = hashlib.sha256(), hashlib.sha256()
    size = uncompressed = 0

    def emit(data: bytes) -> None:
        nonlocal size
        blob.update(data)
        size += len(data)
        write(data)

    def add(data: bytes) -> None:
        nonlocal uncompressed
        diff.update(data)
        uncompressed += len(data)
        emit(compressor.compress(data))

    count = tar(add)
    emit(compressor.flush())
    return {
        "digest": f"sha256:{blob.hexdigest()}",
        "size": size,
        "diff_id": f"sha256:{diff.hexdigest()}",
        "uncompressed": uncompressed,
        "entries": count,
    }


def build(directory: Path, wanted: Sequence[Layer] = LAYERS) -> Path:
    """Make an image of these layers in `directory` unless it is there, and return that path."""
    return build_of(directory, [generated(layer, seed) for seed, layer in enumerate(wanted)])


def build_of(directory: Path, tars: Sequence[Tar]) -> Path:
    """Make an image of layers that are written by `tars`, as `build`."""
    index = directory / "index.json"
    if index.exists():
        return directory
    blobs = directory / "blobs" / "sha256"
    blobs.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(2) as pool:
        layers = list(pool.map(lambda item: _layer_blob(blobs, *item), enumerate(tars)))
    config = {
        "architecture": "amd64",
        "os": "linux",
        "config": {"Cmd": ["/bin/sh"]},
        "rootfs": {"type": "layers", "diff_ids": [layer["diff_id"] for layer in layers]},
    }
    manifest = {
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": _json_blob(blobs, config, "application/vnd.oci.image.config.v1+json"),
        "layers": [
            {
                "mediaType": "application/vnd.oci.image.layer.v1.tar+gzip",
                "digest": layer["digest"],
                "size": layer["size"],
            }
            for layer in layers
        ],
    }
    descriptor = _json_blob(blobs, manifest, str(manifest["mediaType"]))
    descriptor["annotations"] = {"org.opencontainers.image.ref.name": REFERENCE}
    (directory / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
    (directory / "layers.json").write_text(json.dumps(layers, indent=1))
    index.write_text(json.dumps({"schemaVersion": 2, "manifests": [descriptor]}))
    return directory


def _layer_blob(blobs: Path, number: int, tar: Tar) -> dict[str, object]:
    unnamed = blobs / f".layer-{number}"
    with unnamed.open("wb") as file:
        facts = write_layer(tar, file.write)
    unnamed.rename(blobs / str(facts["digest"]).partition(":")[2])
    return facts


def _json_blob(blobs: Path, value: object, media_type: str) -> dict[str, object]:
    data = json.dumps(value).encode()
    digest = hashlib.sha256(data).hexdigest()
    (blobs / digest).write_bytes(data)
    return {"mediaType": media_type, "digest": f"sha256:{digest}", "size": len(data)}


if __name__ == "__main__":
    made = build(Path(sys.argv[1]))
    print((made / "layers.json").read_text())
