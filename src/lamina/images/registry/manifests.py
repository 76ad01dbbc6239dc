"""Asking one host for a manifest, and checking that the answer is one."""

from __future__ import annotations

import hashlib
import logging
from contextlib import closing

import msgspec
import urllib3

from lamina.core.digest import Digest, algorithm, parse_digest
from lamina.errors import (
    DigestMismatch,
    FormatError,
    InvalidArgument,
    LaminaError,
    NotImplementedHere,
    Unavailable,
)
from lamina.images.manifest import INDEX_TYPES, MANIFEST_TYPES, MAX_MANIFEST_BYTES, Descriptor
from lamina.images.reference import Reference
from lamina.images.registry.body import copy_body
from lamina.images.registry.cancel import Cancel
from lamina.images.registry.failure import Failure
from lamina.images.registry.hosts import Endpoint
from lamina.images.registry.requests import Requests
from lamina.images.registry.retry import RetryPolicy

log = logging.getLogger(__name__)

_TYPES = INDEX_TYPES | MANIFEST_TYPES
_ACCEPT = ", ".join([*sorted(_TYPES), "*/*"])
_SCHEMA_1 = "application/vnd.docker.distribution.manifest.v1+"
_VAGUE_TYPES = frozenset({"", "application/json", "application/octet-stream", "text/plain"})
"""What file servers say of a manifest; its own `mediaType` decides then."""


class _Head(msgspec.Struct, rename="camel"):
    media_type: str = ""
    schema_version: int = 0


class Manifests:
    """Fetches manifests and indexes from one endpoint at a time."""

    def __init__(self, requests: Requests, policy: RetryPolicy) -> None:
        self._requests = requests
        self._policy = policy

    def get(self, endpoint: Endpoint, ref: Reference, cancel: Cancel) -> tuple[Descriptor, bytes]:
        """Return the manifest of `ref`; if that has a digest, the bytes match it.

        Raises:
            Failure: it cannot be had, or is not a manifest.
        """
        what = f"fetch manifest of {ref}"
        path = f"manifests/{ref.object}"
        headers = {"Accept": _ACCEPT}
        with closing(self._requests.open(endpoint, ref, "GET", path, headers, what)) as answer:
            _refuse_other_content(answer, endpoint, what)
            data = self._read(answer, cancel, what)
            digest = _digest(data, ref, answer, endpoint)
            media_type = _media_type(answer, data, what)
        return Descriptor(media_type, digest, len(data)), data

    def head(self, endpoint: Endpoint, ref: Reference) -> Descriptor:
        """Return what the tag of `ref` points at, as the host says without sending it.

        Raises:
            Failure: it cannot be had, or the host does not say.
        """
        what = f"resolve {ref}"
        path = f"manifests/{ref.object}"
        headers = {"Accept": _ACCEPT}
        with closing(self._requests.open(endpoint, ref, "HEAD", path, headers, what)) as answer:
            said = answer.headers.get("Docker-Content-Digest", "")
            length = answer.headers.get("Content-Length", "")
            media_type = _content_type(answer)
        try:
            digest = parse_digest(said)
        except InvalidArgument as error:
            text = f"{what} at {endpoint.host}: it names no digest"
            raise Failure(Unavailable(text)) from error
        return Descriptor(media_type, digest, int(length) if length.isdecimal() else 0)

    def _read(self, answer: urllib3.BaseHTTPResponse, cancel: Cancel, what: str) -> bytes:
        data = bytearray()

        def collect(piece: bytes) -> None:
            data.extend(piece)
            if len(data) > MAX_MANIFEST_BYTES:
                expected = f"at most {MAX_MANIFEST_BYTES} bytes"
                error = FormatError(_name(what), MAX_MANIFEST_BYTES, expected=expected, got="more")
                raise Failure(error)

        copy_body(answer, collect, self._policy, cancel, what)
        return bytes(data)


def _refuse_other_content(answer: urllib3.BaseHTTPResponse, endpoint: Endpoint, what: str) -> None:
    """Refuse what is no manifest by its type alone, such as a proxy's login page."""
    media_type = _content_type(answer)
    if media_type.startswith(_SCHEMA_1):
        raise Failure(_schema_1(what))
    if media_type not in _TYPES and media_type not in _VAGUE_TYPES:
        raise Failure(
            Unavailable(
                f"{what} from {endpoint.host}: the answer is {media_type}, not a manifest",
                hint="see whether a proxy or a login page answers for the registry",
            )
        )


def _digest(
    data: bytes, ref: Reference, answer: urllib3.BaseHTTPResponse, endpoint: Endpoint
) -> Digest:
    """Return the digest of the bytes, which must be the one asked for.

    What the registry says about a tag's digest comes from the same hand as the bytes and proves
    nothing; it is only compared.
    """
    if ref.digest is not None:
        got = _hash(data, algorithm(ref.digest))
        if got != ref.digest:
            what = f"fetch manifest from {endpoint.host}:"
            raise Failure(DigestMismatch(what, ref, expected=ref.digest, got=got))
        return got
    got = _hash(data, "sha256")
    said = answer.headers.get("Docker-Content-Digest", got)
    if said.startswith("sha256:") and said != got:
        log.warning("%s says digest %s of %s, whose digest is %s", endpoint.host, said, ref, got)
    return got


def _hash(data: bytes, name: str) -> Digest:
    return Digest(f"{name}:{hashlib.new(name, data).hexdigest()}")


def _media_type(answer: urllib3.BaseHTTPResponse, data: bytes, what: str) -> str:
    try:
        head = msgspec.json.decode(data, type=_Head)
    except (msgspec.MsgspecError, RecursionError) as error:
        raise Failure(
            FormatError(_name(what), 0, expected="a JSON manifest", got=str(error))
        ) from error
    if head.schema_version == 1 or head.media_type.startswith(_SCHEMA_1):
        raise Failure(_schema_1(what))
    said = _content_type(answer)
    media_type = said if said in _TYPES else head.media_type
    if media_type not in _TYPES:
        got = f"mediaType {media_type[:100]!r}"
        raise Failure(FormatError(_name(what), 0, expected="a manifest's media type", got=got))
    return media_type


def _name(what: str) -> str:
    """Return `manifest of REF`: a FormatError itself says that it was being read."""
    return what.removeprefix("fetch ")


def _schema_1(what: str) -> LaminaError:
    return NotImplementedHere(
        f"{what}: Docker schema 1 manifests", hint="push the image again with a current Docker"
    )


def _content_type(answer: urllib3.BaseHTTPResponse) -> str:
    return answer.headers.get("Content-Type", "").partition(";")[0].strip().lower()
