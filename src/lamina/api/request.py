"""The header fields of a gRPC request: what is asked for, and what is wrong with it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple

from lamina.api.headers import Fields, HeaderDecoder
from lamina.errors import Internal, InvalidArgument

_TIMEOUT = re.compile(r"([0-9]{1,8})([HMSmun])", re.ASCII)
_UNITS = {"H": 3600.0, "M": 60.0, "S": 1.0, "m": 1e-3, "u": 1e-6, "n": 1e-9}
_PSEUDO = frozenset({":method", ":scheme", ":path", ":authority"})
_REQUIRED = frozenset({":method", ":scheme", ":path"})
_OF_HTTP_1 = frozenset(
    {"connection", "keep-alive", "proxy-connection", "transfer-encoding", "upgrade"}
)
_CACHED = 64
"""Heads that are remembered per connection; a client repeats a few all the time."""


class Malformed(Exception):
    """The fields are no HTTP/2 request."""


class Refusal(NamedTuple):
    """An HTTP/2 request that is no gRPC call: the HTTP status, status code and text to answer."""

    http_status: int
    code: int
    text: str


class Request(NamedTuple):
    """The head of a request.

    Attributes:
        path: `/package.Service/Method`.
        timeout: seconds from now after which the client gives up; None for never.
        metadata: all fields but pseudo ones by name; values of one name joined by commas.
        refusal: why there will be no call; None if there is nothing wrong.
    """

    path: str
    timeout: float | None
    metadata: Mapping[str, str]
    refusal: Refusal | None = None

    @property
    def encoding(self) -> str:
        """How its message is compressed, if it is."""
        return self.metadata.get("grpc-encoding", "")


class RequestDecoder:
    """Reads the heads of one connection's requests, in the order in which they arrive."""

    def __init__(self) -> None:
        self._decoder = HeaderDecoder()
        self._cache: dict[bytes, Request] = {}

    def decode(self, block: bytes) -> Request:
        """Read a header block.

        Raises:
            Malformed: RFC 9113, section 8, forbids these fields in a request.
            ConnectionFault: it is not HPACK.
        """
        known = self._cache.get(block)
        if known is not None:
            return known
        # A block of nothing but indexed fields leaves the table as it is, so that the same bytes
        # mean the same until some other block comes. Clients send mostly such, once warm.
        is_indexed = min(block, default=0) >= 0x80
        if not is_indexed or len(self._cache) >= _CACHED:
            self._cache.clear()
        request = _parse(self._decoder.decode(block))
        if is_indexed:
            self._cache[block] = request
        return request

    def skip(self, block: bytes) -> None:
        """Follow a block whose fields nobody needs (trailers)."""
        self._cache.clear()
        self._decoder.decode(block)


def _parse(fields: Fields) -> Request:
    pseudo: dict[str, str] = {}
    metadata: dict[str, str] = {}
    for name, value in fields:
        if name.startswith(":"):
            if name not in _PSEUDO or name in pseudo or metadata:
                raise Malformed(f"pseudo header field {name}")
            pseudo[name] = value
            continue
        if name != name.lower() or name in _OF_HTTP_1:
            raise Malformed(f"header field {name}")
        metadata[name] = f"{metadata[name]},{value}" if name in metadata else value
    if not pseudo.keys() >= _REQUIRED:
        raise Malformed("a pseudo header field is missing")
    path = pseudo[":path"]
    refusal = _refusal(pseudo[":method"], metadata)
    if refusal is not None:
        return Request(path, None, metadata, refusal)
    return Request(path, _timeout(metadata), metadata)


def _refusal(method: str, metadata: Mapping[str, str]) -> Refusal | None:
    if method != "POST":
        return Refusal(405, Internal.grpc_code, f"HTTP method {method}: gRPC calls are POST")
    content_type = metadata.get("content-type", "")
    if not content_type.startswith("application/grpc"):
        text = f"content-type {content_type!r}: gRPC calls have application/grpc"
        return Refusal(415, InvalidArgument.grpc_code, text)
    timeout = metadata.get("grpc-timeout")
    if timeout is not None and _TIMEOUT.fullmatch(timeout) is None:
        return Refusal(400, Internal.grpc_code, f"grpc-timeout {timeout!r} is malformed")
    return None


def _timeout(metadata: Mapping[str, str]) -> float | None:
    match = _TIMEOUT.fullmatch(metadata.get("grpc-timeout", ""))
    return int(match[1]) * _UNITS[match[2]] if match else None
