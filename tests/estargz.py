"""eStargz blobs made in memory, entry by entry."""

from __future__ import annotations

import hashlib
import json
import tarfile
import zlib
from typing import Any

from lamina.formats.estargz.footer import estargz_footer


def member(data: bytes) -> bytes:
    packer = zlib.compressobj(6, wbits=31)
    return packer.compress(data) + packer.flush()


def sha256(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


def tar_member(name: str, body: bytes) -> bytes:
    info = tarfile.TarInfo(name)
    info.size = len(body)
    return info.tobuf(tarfile.USTAR_FORMAT)


def make_blob(files: dict[str, bytes], chunk: int, *, shared: int = 0, mode: int = 0o644) -> bytes:
    """Make an eStargz blob; streams are begun once the last has `shared` bytes of the tar."""
    blob, entries, pending = b"", [], b""
    for name, body in files.items():
        pending += tar_member(name, body)
        entry: dict[str, Any] = {"name": name, "type": "reg", "size": len(body), "mode": mode}
        for at in range(0, len(body), chunk):
            part = body[at : at + chunk]
            if len(pending) >= shared:
                blob, pending = blob + member(pending), b""
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
    toc = json.dumps({"version": 1, "entries": entries}).encode()
    tail = tar_member("stargz.index.json", toc) + toc + bytes(-len(toc) % 512 + 1024)
    return blob + member(tail) + estargz_footer(len(blob))
