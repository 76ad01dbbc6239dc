"""What a layer worker and the process that started it say to each other: JSON, one value a line."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from socket import socket
from typing import Any

from lamina import errors
from lamina.core.digest import Digest
from lamina.errors import Internal, LaminaError
from lamina.layer.limits import Applied, LayerLimits
from lamina.layer.target import LayerTarget


@dataclass(frozen=True, slots=True)
class Job:
    """One layer to apply.

    Attributes:
        blob: file that has, or is getting, the layer as it was distributed.
        sniff: the media type leaves open how it is compressed.
        target: where to extract it.
        size: length of the whole blob in bytes; None for a pipe, which is read to its end.
        diff_id: digest that the uncompressed stream must have, or None for any.
        limits: bounds.
    """

    blob: Path
    sniff: bool
    target: LayerTarget
    size: int | None
    diff_id: Digest | None
    limits: LayerLimits


def encode_job(job: Job) -> dict[str, Any]:
    """Return the job as JSON values."""
    return {
        "blob": str(job.blob),
        "sniff": job.sniff,
        "root": str(job.target.root),
        "overlay_whiteouts": job.target.overlay_whiteouts,
        "parents": [str(parent) for parent in job.target.parents],
        "user_xattrs": job.target.user_xattrs,
        "image": str(job.target.image) if job.target.image else None,
        "size": job.size,
        "diff_id": job.diff_id,
        "limits": asdict(job.limits),
    }


def decode_job(value: dict[str, Any]) -> Job:
    """Return the job that `encode_job` was given."""
    target = LayerTarget(
        Path(value["root"]),
        value["overlay_whiteouts"],
        tuple(Path(parent) for parent in value["parents"]),
        value["user_xattrs"],
        Path(value["image"]) if value["image"] else None,
    )
    limits = LayerLimits(**value["limits"])
    blob = Path(value["blob"])
    return Job(blob, value["sniff"], target, value["size"], value["diff_id"], limits)


def encode_applied(applied: Applied) -> dict[str, Any]:
    """Return the result as JSON values."""
    return asdict(applied)


def decode_applied(value: dict[str, Any]) -> Applied:
    """Return the result that `encode_applied` was given."""
    warnings = tuple(value["warnings"])
    return Applied(value["diff_id"], value["size"], value["entries"], warnings, value["implied"])


def encode_error(error: LaminaError) -> dict[str, Any]:
    """Return class and attributes of an error as JSON values."""
    return {"class": type(error).__name__, "attributes": vars(error)}


def decode_error(value: dict[str, Any]) -> LaminaError:
    """Return an error of the same class, with the same text and attributes."""
    kind = getattr(errors, value["class"], None)
    if not (isinstance(kind, type) and issubclass(kind, LaminaError)):
        return Internal("unpack layer", hint=f"the worker failed with {value['class']}")
    error = kind.__new__(kind)
    attributes = value["attributes"]
    Exception.__init__(error, *(attributes[key] for key in ("what", "subject", "hint")))
    vars(error).update(attributes)
    return error


Answer = Applied | LaminaError


def decode_answer(value: dict[str, Any]) -> Answer:
    """Return the result or the error of a job."""
    if "applied" in value:
        return decode_applied(value["applied"])
    return decode_error(value["error"])


def send(connection: socket, value: object) -> None:
    """Send one value; names that are no UTF-8 survive as escapes."""
    connection.sendall(json.dumps(value).encode("ascii") + b"\n")


def receive(connection: socket) -> Iterator[dict[str, Any]]:
    """Yield what arrives until the other side closes or dies."""
    buffer = b""
    while data := _receive_some(connection):
        *lines, buffer = (buffer + data).split(b"\n")
        for line in lines:
            yield json.loads(line)


def _receive_some(connection: socket) -> bytes:
    try:
        return connection.recv(65536)
    except ConnectionResetError:
        return b""
