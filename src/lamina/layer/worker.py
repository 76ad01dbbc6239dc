"""Main module of a layer worker: applies layers, one after another, until its parent goes away.

Its standard input is a socket. It is a process of its own so that layers are applied side by side,
with a file mode mask of zero, and gone without delay when the parent dies or kills it.
"""

from __future__ import annotations

import gc
import os
import socket
import threading
from typing import Any

from lamina.errors import DigestMismatch, Internal, LaminaError
from lamina.formats.compression import decompress
from lamina.layer import message
from lamina.layer.apply import apply_layer
from lamina.layer.blob import GrowingBlob, PipedBlob
from lamina.layer.limits import Applied
from lamina.linux.malloc import reuse_large_blocks


def main() -> None:
    """Serve the socket; never returns.

    This thread only listens, so that messages never pile up and the parent's death is seen even
    while a layer is being applied.
    """
    os.umask(0)
    reuse_large_blocks()
    gc.freeze()
    connection = socket.socket(fileno=0)
    blob: GrowingBlob | PipedBlob | None = None
    ahead = threading.Event()
    for value in message.receive(connection):
        if "ahead" in value:
            ahead.set() if value["ahead"] else ahead.clear()
            continue
        if "available" in value:
            if blob is not None:
                blob.advance(value["available"])
            continue
        job = message.decode_job(value)
        try:
            blob = PipedBlob(job.blob) if job.size is None else GrowingBlob(job.blob, job.size)
        except OSError as error:
            _answer_error(connection, error)
            continue
        arguments = (connection, job, blob, ahead)
        threading.Thread(target=_work, args=arguments, name="apply", daemon=True).start()
    os._exit(0)


def _work(
    connection: socket.socket,
    job: message.Job,
    blob: GrowingBlob | PipedBlob,
    ahead: threading.Event,
) -> None:
    try:
        with blob:
            applied = _apply(job, blob, ahead)
    except Exception as error:
        _answer_error(connection, error)
    else:
        _answer(connection, {"applied": message.encode_applied(applied)})


def _apply(job: message.Job, blob: GrowingBlob | PipedBlob, ahead: threading.Event) -> Applied:
    chunks = decompress(blob.read, sniff=job.sniff)
    if job.target.image is None:
        return _checked(job, apply_layer(chunks, job.target, limits=job.limits, ahead=ahead))
    from lamina.layer.imaging import new_image, write_layer_image  # for snapshotters of images

    with new_image(job.target.image) as out:
        return _checked(
            job,
            write_layer_image(
                chunks, job.target, out, limits=job.limits, ahead=ahead, diff_id=job.diff_id
            ),
        )


def _checked(job: message.Job, applied: Applied) -> Applied:
    if job.diff_id is not None and applied.diff_id != job.diff_id:
        raise DigestMismatch(
            "check diff id of layer", job.blob.name, expected=job.diff_id, got=applied.diff_id
        )
    return applied


def _answer_error(connection: socket.socket, error: Exception) -> None:
    if not isinstance(error, LaminaError):
        error = Internal("unpack layer", hint=f"{type(error).__name__}: {error}")
    _answer(connection, {"error": message.encode_error(error)})


def _answer(connection: socket.socket, value: dict[str, Any]) -> None:
    try:
        message.send(connection, value)
    except OSError:
        os._exit(0)  # nobody is left to hear it


if __name__ == "__main__":
    main()
