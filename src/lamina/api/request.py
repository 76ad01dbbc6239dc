"""The header fields of a gRPC request: what is asked for, and what is wrong with it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple

from lamina.api.headers import Fields

_TIMEOUT = re.compile(r"([0-9]{1,8})([HMSmun])", re.ASCII)
_UNITS = {"H": 3600.0, "M": 60.0, "S": 1.0, "m": 1e-3, "u": 1e-6, "n": 1e-9}
_PSEUDO = frozenset({":method", ":scheme", ":path", ":authority"})
_REQUIRED = frozenset({":method", ":scheme", ":path"})
_OF_HTTP_1 = frozenset(
    {"connection", "keep-alive", "proxy-connection", "transfer-encoding", "upgrade"}
)


class Malformed(Exception):
    """The fields are no HTTP/2 request."""


class Request(NamedTuple):
    """The head of a request.

    Attributes:
        path: `/package.Service/Method`.
        timeout: seconds from now after which the client gives up; None for never.
        metadata: all fields but pseudo ones by name; values of one name joined by commas.
    """

    path: str
    http_method: str
    timeout: float | None
    metadata: Mapping[str, str]


def parse_request(fields: Fields) -> Request:
    """Read the fields of a request.

    Raises:
        Malformed: RFC 9113, section 8, forbids it.
        ValueError: `grpc-timeout` makes no sense.
    """
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
    timeout = metadata.get("grpc-timeout")
    return Request(
        pseudo[":path"],
        pseudo[":method"],
        None if timeout is None else parse_timeout(timeout),
        metadata,
    )


def parse_timeout(text: str) -> float:
    """Return the seconds of a `grpc-timeout`; ValueError if it is none."""
    match = _TIMEOUT.fullmatch(text)
    if match is None:
        raise ValueError(f"grpc-timeout {text!r}")
    return int(match[1]) * _UNITS[match[2]]
