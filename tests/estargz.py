"""eStargz blobs made in memory, entry by entry."""

from __future__ import annotations

import hashlib
import json
import re
import struct
import sys
import tarfile
import zlib
from collections.abc import Iterator
from typing import Any

from lamina.formats.estargz.footer import estargz_footer, external_footer

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd


def member(data: bytes) -> bytes:
    packer = zlib.compressobj(6, wbits=31)
    return packer.compress(data) + packer.flush()


def zstd_frame(data: bytes) -> bytes:
    return zstd.compress(data)


def sha256(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


def tar_member(name: str, body: bytes) -> bytes:
    info = tarfile.TarInfo(name)
    info.size = len(body)
    return info.tobuf(tarfile.USTAR_FORMAT)


def make_blob(files: dict[str, bytes], chunk: int, *, shared: int = 0, mode: int = 0o644) -> bytes:
    """Make an eStargz blob; streams are begun once the last has `shared` bytes of the tar."""
    blob, entries, pending = bytearray(), [], b""
    for name, body in files.items():
        pending += tar_member(name, body)
        entry: dict[str, Any] = {"name": name, "type": "reg", "size": len(body), "mode": mode}
        for at in range(0, len(body), chunk):
            part = body[at : at + chunk]
            if len(pending) >= shared:
                blob += member(pending)
                pending = b""
            place: dict[str, Any] = {"offset": len(blob), "innerOffset": len(pending)}
            place |= {"chunkOffset": at, "chunkDigest": sha256(part)}
            place |= {"chunkSize": chunk} if len(body) - at >= chunk else {}
            entries.append(entry | {k: v for k, v in place.items() if v})
            entry = dict[str, Any](name=name, type="chunk")
            pending += part
        if not body:
            entries.append(entry)
        pending += bytes(-len(body) % 512)
    blob += member(pending)
    return bytes(blob) + toc_member(entries) + estargz_footer(len(blob))


def toc_member(entries: list[dict[str, Any]]) -> bytes:
    """Return the gzip member that has the table of contents."""
    toc = json.dumps({"version": 1, "entries": entries}).encode()
    return member(tar_member("stargz.index.json", toc) + toc + bytes(-len(toc) % 512 + 1024))


def outsource(blob: bytes) -> tuple[bytes, bytes]:
    """Return an eStargz with an external TOC instead, and the layer that has this TOC."""
    end = int(blob[-35:-19], 16)
    return blob[:end] + external_footer(), blob[end : -len(estargz_footer(end))]


def make_chunked_blob(files: dict[str, bytes], chunk: int) -> bytes:
    """Make a zstd:chunked blob as Podman does: with holes, tar-split data and the long footer.

    Podman cuts chunks where a rolling checksum says so, and before and after 1024 zeros; `chunk` is
    the most that they have here.
    """
    blob, entries, pending = b"", [], b""
    for name, body in files.items():
        pending += tar_member(name, body)
        entry: dict[str, Any] = {"type": "reg", "name": name, "mode": 0o644, "size": len(body)}
        places: list[dict[str, Any]] = []
        for at, part, kind in _cut(body, chunk):
            blob, pending = blob + zstd_frame(pending), b""
            places.append({"offset": len(blob), "chunkSize": len(part), "chunkOffset": at})
            places[-1] |= {"chunkDigest": sha256(part)} | ({"chunkType": kind} if kind else {})
            blob += zstd_frame(part)
        if body:
            entry["digest"] = sha256(body)
        if len(places) == 1:
            places = [{"offset": places[0]["offset"]}]
        parts = [entry, *({"type": "chunk", "name": name} for _ in places[1:])]
        entries += [part | place for part, place in zip(parts, places or [{}], strict=True)]
        pending += bytes(-len(body) % 512)
    blob += zstd_frame(pending + bytes(1024))
    split = zstd_frame(b'{"type":2,"payload":"","position":0}\n')
    toc = {"version": 1, "entries": entries, "tarSplitDigest": sha256(split)}
    raw = json.dumps(toc).encode()
    packed = zstd_frame(raw)
    numbers = (
        len(blob) + 8,
        len(packed),
        len(raw),
        1,
        len(blob) + len(packed) + 16,
        len(split),
        37,
    )
    return blob + b"".join(
        map(_skippable, [packed, split, struct.pack("<7Q8s", *numbers, b"GnUlInUx")])
    )


def _skippable(data: bytes) -> bytes:
    return bytes.fromhex("502a4d18") + struct.pack("<I", len(data)) + data


def _cut(body: bytes, chunk: int) -> Iterator[tuple[int, bytes, str]]:
    """Yield where each chunk begins, its bytes, and its `chunkType`."""
    at = 0
    for piece in re.split(rb"(\0{1024,})", body):
        hole = len(piece) >= 1024 and not piece.strip(b"\0")
        for start in range(0, len(piece), len(piece) if hole else chunk):
            part = piece[start : start + (len(piece) if hole else chunk)]
            yield at, part, "zeros" if hole else ""
            at += len(part)
