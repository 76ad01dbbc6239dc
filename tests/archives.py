"""Archives made entry by entry, hostile ones included, and applying them to directories."""

from __future__ import annotations

import io
import os
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path

from lamina.layer.apply import apply_layer
from lamina.layer.limits import Applied, LayerLimits
from lamina.layer.target import LayerTarget

MTIME = 1_600_000_000


class Archive:
    """A tar archive being written; its methods return it, so that they can be chained."""

    def __init__(self, *, owner: tuple[int, int] | None = None) -> None:
        self._out = io.BytesIO()
        self._tar = tarfile.open(  # noqa: SIM115 - `data` closes it
            fileobj=self._out, mode="w", format=tarfile.PAX_FORMAT, errors="surrogateescape"
        )
        self._owner = owner or (os.geteuid(), os.getegid())

    def entry(self, name: str, type: bytes, data: bytes = b"", /, **values: object) -> Archive:
        info = tarfile.TarInfo()
        info.name, info.type, info.size, info.mtime = name, type, len(data), MTIME
        info.uid, info.gid = self._owner
        for key, value in values.items():
            setattr(info, key, value)
        self._tar.addfile(info, io.BytesIO(data))
        return self

    def file(
        self, name: str, data: bytes | str = b"", mode: int = 0o644, **values: object
    ) -> Archive:
        content = data.encode() if isinstance(data, str) else data
        return self.entry(name, tarfile.REGTYPE, content, mode=mode, **values)

    def dir(self, name: str, mode: int = 0o755, **values: object) -> Archive:
        return self.entry(name, tarfile.DIRTYPE, mode=mode, **values)

    def symlink(self, name: str, target: str, **values: object) -> Archive:
        return self.entry(name, tarfile.SYMTYPE, linkname=target, mode=0o777, **values)

    def link(self, name: str, target: str, **values: object) -> Archive:
        return self.entry(name, tarfile.LNKTYPE, linkname=target, **values)

    def data(self) -> bytes:
        self._tar.close()
        return self._out.getvalue()


def gnu_tar(directory: Path, *options: str) -> bytes:
    """Return an archive of a directory, made by GNU tar."""
    argv = ["tar", "-C", str(directory), *options, "-cf", "-", "."]
    return subprocess.run(argv, check=True, capture_output=True).stdout


def in_chunks(data: bytes, size: int = 1000) -> Iterator[bytes]:
    """Yield pieces of an odd size, so that headers and bodies cross their borders."""
    for start in range(0, len(data), size):
        yield data[start : start + size]


def apply(
    archive: Archive | bytes,
    target: Path | LayerTarget,
    *,
    limits: LayerLimits | None = None,
    chunk: int = 1000,
) -> Applied:
    """Apply an archive; a path means plain whiteouts."""
    data = archive if isinstance(archive, bytes) else archive.data()
    if isinstance(target, Path):
        target.mkdir(exist_ok=True)
        target = LayerTarget(target)
    return apply_layer(in_chunks(data, chunk), target, limits=limits or LayerLimits())
