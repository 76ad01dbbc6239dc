"""The error tree on the wire: a status code and a text."""

from __future__ import annotations

import re
from collections.abc import Mapping
from urllib.parse import unquote_to_bytes

from lamina import errors
from lamina.errors import LaminaError

OK = 0
UNKNOWN = LaminaError.grpc_code

MESSAGE_LIMIT = 4096
"""Bytes of an encoded text; peers refuse a response with more than 8 KiB of headers."""

_PLAIN = frozenset(range(0x20, 0x7F)) - {ord("%")}
_CUT = re.compile(rb"%[0-9A-F]?$")

_CLASSES: Mapping[int, type[LaminaError]] = {
    UNKNOWN: LaminaError,
    **{each.grpc_code: each for each in LaminaError.__subclasses__()},
}


def from_status(code: int, text: str) -> LaminaError:
    """Return the error that a peer has sent; its `str` is the text as it was where it came from.

    Args:
        code: any number but 0; one that gRPC does not know counts as UNKNOWN.
        text: the status message.
    """
    return _CLASSES.get(code, LaminaError)(text)


def to_status(error: BaseException) -> tuple[int, str]:
    """Return code and text for what a handler has raised; only the error tree's text is told.

    The class is named last, after the hint: there containerd's clients look for it, and add it
    where it is missing.
    """
    if not isinstance(error, LaminaError):
        return errors.Internal.grpc_code, f"internal error ({type(error).__name__}), see the log"
    text = str(error)
    ending = f": {error.class_text}" if error.class_text else ""
    if error.hint:
        body = text.removesuffix(f"; {error.hint}").removesuffix(ending)
        text = f"{body}; {error.hint}{ending}"
    return error.grpc_code, text


def encode_message(text: str) -> bytes:
    """Percent-encode a text for `grpc-message`, cut to `MESSAGE_LIMIT`."""
    if text.isascii() and text.isprintable() and "%" not in text:
        return text.encode()[:MESSAGE_LIMIT]
    raw = text.encode(errors="replace")
    encoded = b"".join(b"%c" % byte if byte in _PLAIN else b"%%%02X" % byte for byte in raw)
    return _CUT.sub(b"", encoded[:MESSAGE_LIMIT])


def decode_message(encoded: str) -> str:
    """Return the text of a `grpc-message`; what is wrong in it stays as it is."""
    return unquote_to_bytes(encoded).decode(errors="replace")
