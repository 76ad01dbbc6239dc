"""Filesystems made of archives, what finds fault with them, and mounts of them."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from lamina.core.mount import Mount
from lamina.formats.ext4.layers import Applied, Ext4Layers
from lamina.mount import temp_mount
from tests.archives import Archive, in_chunks

SIZE = 64 << 20


class Image:
    """A file that layers are applied to, and to which a device of `size` bytes is made."""

    def __init__(self, path: Path, size: int = SIZE) -> None:
        self.path = path
        self.size = size
        self._file = open(path, "w+b")  # noqa: SIM115 - `close` does it
        self._file.truncate(size)
        self._layers = Ext4Layers(size, self._file)

    def __enter__(self) -> Image:
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()

    def apply(
        self, archive: Archive | bytes, *, prioritized: Sequence[bytes] = (), chunk: int = 1000
    ) -> Applied:
        data = archive if isinstance(archive, bytes) else archive.data()
        applied = self._layers.apply(in_chunks(data, chunk), prioritized=prioritized)
        self._file.flush()
        assert self.path.stat().st_size == self.size
        return applied


def fsck(path: Path) -> None:
    """Let the filesystem's own tool find fault with it; nothing is changed."""
    command = shutil.which("e2fsck", path="/usr/sbin:/sbin:/usr/bin:/bin")
    assert command is not None
    argv = (command, "-fn", path)
    done = subprocess.run(argv, capture_output=True, text=True, env={"LC_ALL": "C"})
    assert done.returncode == 0, done.stdout + done.stderr


@contextmanager
def mounted(image: Path, *, read_only: bool = True) -> Iterator[Path]:
    """Mount an image by a loop device."""
    options = ("loop", "ro" if read_only else "rw")
    mount = Mount("ext4", str(image), "", options)
    with temp_mount([mount], dir=image.parent, read_only=read_only) as root:
        yield Path(root)
