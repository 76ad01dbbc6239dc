"""The images of the benchmark of lazy images, converted by this Lamina and pushed to a registry."""

from __future__ import annotations

import subprocess
import tarfile
from pathlib import Path
from typing import NamedTuple

from bench.images import LAYERS, MTIME, Content, Write, build_of, generated
from bench.process import CACHE
from bench.startup import LAMINA
from lamina.formats.tar import END_OF_ARCHIVE, Entry, Type, header, padding

ONE_FILE_BYTES = 1 << 30
ONE_FILE = "data/file"
_PACKAGES = "python3-minimal"
_PIECE = 4 << 20


class Kind(NamedTuple):
    """A kind of lazy images: who pulls it, what makes it, and the gates that it is read through."""

    snapshotter: str
    options: tuple[str, ...]
    gates: tuple[str, ...] = ("fanotify", "fuse")


KINDS = {
    "stargz": Kind("stargz", ("--estargz",)),
    "nydus-6": Kind("nydus", ("--nydus",)),
    "nydus-5": Kind("nydus", ("--nydus", "--fs-version", "5")),
    # A loop device is read through, whose reads fanotify is not told of.
    "overlaybd": Kind("overlaybd", ("--overlaybd",), ("fuse",)),
}


class Images:
    """A root with images to convert and push; `directory` is its own."""

    def __init__(self, directory: Path, registry: str) -> None:
        self._directory = directory
        self._registry = registry
        self._imported: set[Path] = set()
        self._pushed: dict[str, str] = {}

    def push(self, layout: Path, name: str, *options: str) -> str:
        """Convert the only image of a layout as the options say, push it, return its reference."""
        source, target = f"{layout.name}:plain", f"{self._registry}/{name}:latest"
        if layout not in self._imported:
            self._lamina("images", "import", "--no-unpack", "--index-name", source, str(layout))
            self._imported.add(layout)
        self._lamina("images", "convert", "--quiet", *options, source, target)
        self._lamina("images", "push", "--quiet", "--plain-http", target)
        return target

    def of(self, layout: Path, kind: str) -> str:
        """Return the only image of a layout as one of KINDS; it is converted and pushed once."""
        name = f"bench/{layout.name}-{kind}"
        if name not in self._pushed:
            self._pushed[name] = self.push(layout, name, *KINDS[kind].options)
        return self._pushed[name]

    def _lamina(self, *arguments: str) -> None:
        root = str(self._directory / "root")
        subprocess.run([LAMINA, "--root", root, *arguments], check=True, stdout=subprocess.DEVNULL)


def python_image() -> Path:
    """Return an OCI layout of Debian with Python, below three layers of other files: 1.6 GB."""
    above = [generated(layer, seed) for seed, layer in enumerate(LAYERS)]
    return build_of(CACHE / "lazy-python", [_debian, *above])


def debian_image() -> Path:
    """Return an OCI layout of Debian with Python, in one layer."""
    return build_of(CACHE / "lazy-debian", [_debian])


def one_file_image() -> Path:
    """Return an OCI layout with one file of 1 GiB, of which deflate takes off about half."""
    return build_of(CACHE / "lazy-one-file", [_one_file])


def _debian(write: Write) -> int:
    archive = CACHE / "debian-python.tar"
    unfinished = archive.with_suffix(".new.tar")
    if not archive.exists():
        argv = ("mmdebstrap", "--variant=apt", f"--include={_PACKAGES}", "bookworm")
        subprocess.run([*argv, str(unfinished)], check=True)
        unfinished.rename(archive)
    with archive.open("rb") as file:
        while data := file.read(_PIECE):
            write(data)
    with tarfile.open(archive) as file:
        return len(file.getnames())


def _one_file(write: Write) -> int:
    content = Content(1)
    write(header(Entry(b"data/", Type.DIRECTORY, 0o755, mtime=MTIME)))
    entry = Entry(ONE_FILE.encode(), Type.REGULAR, 0o644, size=ONE_FILE_BYTES, mtime=MTIME)
    write(header(entry))
    for _ in range(0, ONE_FILE_BYTES, _PIECE):
        write(content.bytes(_PIECE))
    write(bytes(padding(ONE_FILE_BYTES)) + END_OF_ARCHIVE)
    return 2
