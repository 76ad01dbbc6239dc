"""A hard image made lazy by a peer: Debian's ctr-remote, of stargz-snapshotter."""

from __future__ import annotations

import json
import random
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.archives import Archive
from tests.fixtures_containerd import Containerd, running_containerd
from tests.fixtures_containers import APPLETS
from tests.fixtures_registry import LocalRegistry
from tests.hard_image import hard_image, layer, xattrs
from tests.images import Layer, image
from tests.kernel.test_archive import layout, pack

SOURCE = "docker.io/library/hard:1"
PEER_NAME = "peer:1"
"""Repository and tag of a converted image in a registry."""
BIG = (9 << 20) + 123
"""Bytes of the largest file: some chunks, and a part of one."""
MANY = 1000
NAMES_BELOW_MANY = MANY + MANY // 50 - 50 + 4
"""What is in the directory `many` after the last layer, itself included."""
FORMATS = {
    "estargz": ("--estargz", "--estargz-chunk-size", "65536"),
    "zstdchunked": ("--zstdchunked",),
}
"""How ctr-remote is told to convert to what a test asks for.

The latter's chunks are of 4 MiB, as they are where nobody says how long they are to be.
"""


@dataclass(frozen=True)
class PeerImage:
    """An image that a peer has converted."""

    manifest: bytes
    blobs: list[bytes]

    @property
    def layers(self) -> list[dict[str, object]]:
        """The descriptors of its layers, base first."""
        found: list[dict[str, object]] = json.loads(self.manifest)["layers"]
        return found

    def push(self, registry: LocalRegistry) -> str:
        """Return the reference by which the registry has it."""
        registry.push(self.manifest, self.blobs, *PEER_NAME.split(":"))
        return f"{registry.host}/{PEER_NAME}"


class Peer:
    """Converts the hard image, each way once."""

    def __init__(self, daemon: Containerd) -> None:
        self._daemon = daemon
        self._converted: dict[str, PeerImage] = {}

    def image(self, format: str) -> PeerImage:
        """Return the image in one of FORMATS."""
        if format not in self._converted:
            self._converted[format] = self._convert(format)
        return self._converted[format]

    def _convert(self, format: str) -> PeerImage:
        target = f"docker.io/library/{format}:1"
        options = ("--oci", *FORMATS[format])
        ctr_remote(self._daemon, "images", "convert", *options, SOURCE, target)
        [digest] = [
            words[2]
            for line in self._daemon.ctr("images", "ls").splitlines()
            if (words := line.split())[0] == target
        ]
        data = self._blob(digest)
        if "manifests" in (document := json.loads(data)):
            data = self._blob(document["manifests"][0]["digest"])
            document = json.loads(data)
        parts = [document["config"], *document["layers"]]
        return PeerImage(data, [self._blob(part["digest"]) for part in parts])

    def _blob(self, digest: str) -> bytes:
        content = self._daemon.root / "io.containerd.content.v1.content/blobs"
        return (content / digest.replace(":", "/")).read_bytes()


def ctr_remote(daemon: Containerd, *arguments: str) -> str:
    """Run `ctr-remote`, which must succeed, and return what it prints."""
    argv = ("ctr-remote", "--address", str(daemon.address), *arguments)
    done = subprocess.run(
        argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120
    )
    said = f"{done.stdout}{done.stderr}{daemon.log.read_text()[-2000:]}"
    assert done.returncode == 0, f"{' '.join(argv)}: {said}"
    return done.stdout


@contextmanager
def peer_in(directory: Path) -> Iterator[Peer]:
    """Run a containerd that has the hard image."""
    with running_containerd(directory / "c") as daemon:
        archive = directory / "hard.tar"
        named = {"io.containerd.image.name": SOURCE}
        archive.write_bytes(pack(layout(image(*layers()), annotations=named)))
        daemon.ctr("images", "import", "--all-platforms", "--no-unpack", str(archive))
        archive.unlink()
        yield Peer(daemon)


@pytest.fixture(scope="session")
def peer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Peer]:
    """The peer of this session."""
    with peer_in(tmp_path_factory.mktemp("peer")) as running:
        yield running


def layers() -> tuple[Layer, ...]:
    """Return what is hard for any snapshotter, and what is hard for lazy ones."""
    return (_busybox(), *hard_image(sparse=False), _many(), _last())


def _busybox() -> Layer:
    busybox = Path(shutil.which("busybox") or "").read_bytes()
    archive = Archive().dir("box").dir("proc").dir("sys").dir("dev").dir("run")
    archive.file("box/busybox", busybox, 0o755)
    for applet in APPLETS.split():
        archive.symlink(f"box/{applet}", "busybox")
    return layer(archive)


def _many() -> Layer:
    archive = Archive()
    noise = random.Random(1)
    for number in range(MANY):
        if number % 50 == 0:
            archive.dir(f"many/{number // 50}", mtime=number)
        size = noise.choice((0, 1, 10, 500, 4096, 9000))
        archive.file(f"many/{number // 50}/{number}", noise.randbytes(size), 0o600 | number % 8)
    archive.file("many/big", noise.randbytes(BIG)).link("many/as-big", "many/big")
    archive.file("many/zeros", bytes(5 << 20)).file("many/exactly", noise.randbytes(4 << 20))
    deep = "/".join(["deep" * 20] * 20)
    archive.file(f"{deep}/file", b"at the end of a path of 1600 bytes")
    archive.file("n" * 255, b"a name of 255 bytes")
    # 1000 bytes, and one so short that EROFS keeps it with the file's other attributes
    archive.file("noted", pax_headers=xattrs(user__long=b"x" * 1000, user__short=b""))
    return layer(archive)


def _last() -> Layer:
    archive = Archive().file("many/0/.wh.1").file("many/1/.wh..wh..opq").file("many/1/new", b"n")
    archive.file("many/.wh.as-big").file("many/2/101", b"changed").symlink("many/2/102", "101")
    return layer(archive)
