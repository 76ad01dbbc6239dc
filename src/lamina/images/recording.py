r"""Records of what a container has read: JSON lines, as stargz-snapshotter's `ctr-remote` has them.

One line for each file, in order of first use:

    {"path": "usr/bin/env", "manifestDigest": "sha256:...", "layerIndex": 0}

`path` is taken from the root, without a leading slash. `manifestDigest` is the manifest of the
image that was run, `layerIndex` the layer that has the file, the base being 0; both may be missing.
A path that is not UTF-8 has its other bytes as lone surrogates (`\udc80` to `\udcff`), which is
JSON, though other programs read something else.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from lamina.errors import FormatError, LaminaError, NotFound
from lamina.formats.tar.layer import clean

FORMAT = "record of opened files"
MAX_BYTES = 256 << 20


class RecordedFile(NamedTuple):
    """One line.

    Attributes:
        path: clean, from the root, without a leading slash.
        manifest: digest of the image's manifest; "" where the line has none.
        layer: index of the layer; None where the line has none.
    """

    path: bytes
    manifest: str = ""
    layer: int | None = None


def write_record(files: Iterable[RecordedFile]) -> bytes:
    """Return the lines."""
    return b"".join(json.dumps(_fields(file)).encode() + b"\n" for file in files)


def read_record(path: Path) -> list[RecordedFile]:
    """Read a record; empty lines are passed over.

    Raises:
        NotFound: there is no such file.
        FormatError: a line is no record of a file, or the whole is larger than 256 MiB.
    """
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except FileNotFoundError as error:
        raise NotFound(
            FORMAT, path, hint="make one: lamina images optimize --record-out"
        ) from error
    except OSError as error:
        raise LaminaError(f"read {FORMAT} {path}: {error.strerror}") from error
    if len(data) > MAX_BYTES:
        raise FormatError(FORMAT, MAX_BYTES, expected=f"at most {MAX_BYTES} bytes", got="more")
    return parse_record(data)


def parse_record(data: bytes) -> list[RecordedFile]:
    """Parse a record.

    Raises:
        FormatError: a line is no record of a file; the error's offset is of its first byte.
    """
    files: list[RecordedFile] = []
    at = 0
    for line in data.split(b"\n"):
        if line.strip():
            files.append(_parsed(line, at))
        at += len(line) + 1
    return files


def _fields(file: RecordedFile) -> dict[str, object]:
    fields: dict[str, object] = {"path": os.fsdecode(file.path)}
    if file.manifest:
        fields["manifestDigest"] = file.manifest
    if file.layer is not None:
        fields["layerIndex"] = file.layer
    return fields


def _parsed(line: bytes, at: int) -> RecordedFile:
    try:
        fields = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise FormatError(
            FORMAT, at, expected="a JSON object in each line", got=str(error)
        ) from error
    if not isinstance(fields, dict):
        got = type(fields).__name__
        raise FormatError(FORMAT, at, expected="a JSON object in each line", got=got)
    path = _field(fields, "path", str, at) or ""
    manifest = _field(fields, "manifestDigest", str, at) or ""
    layer = _field(fields, "layerIndex", int, at)
    cleaned = clean(_encoded(path, at))
    if not cleaned or b"\0" in cleaned:
        raise FormatError(FORMAT, at, expected="the path of a file as path", got=repr(path)[:160])
    if layer is not None and layer < 0:
        raise FormatError(FORMAT, at, expected="0 or more as layerIndex", got=str(layer)[:160])
    return RecordedFile(cleaned, manifest, layer)


def _field(fields: dict[str, Any], name: str, kind: type, at: int) -> Any:
    value = fields.get(name)
    if value is None or type(value) is kind:
        return value
    got = repr(value)[:160]
    raise FormatError(FORMAT, at, expected=f"{kind.__name__} as {name}", got=got)


def _encoded(path: str, at: int) -> bytes:
    try:
        return os.fsencode(path)
    except UnicodeEncodeError as error:
        raise FormatError(FORMAT, at, expected="text as path", got=ascii(path)[:160]) from error
