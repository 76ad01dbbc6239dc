"""How long a blob is, of which nobody has told: asked for its first byte, a host tells.

Not by HEAD, which some registries refuse or answer without a length.
"""

from __future__ import annotations

import re
from contextlib import closing

import urllib3

from lamina.core.digest import Digest
from lamina.errors import Unavailable
from lamina.images.reference import Reference
from lamina.images.registry.body import read_small
from lamina.images.registry.failure import Failure
from lamina.images.registry.hosts import Endpoint
from lamina.images.registry.requests import Requests

_FIRST_BYTE = {"Accept": "*/*", "Range": "bytes=0-0"}
_SMALL = 1 << 10
"""Bytes read of an answer that should have one, so that its connection can be used again."""
_CONTENT_RANGE = re.compile(r"bytes 0-0/([0-9]{1,19})", re.ASCII)
_CONTENT_LENGTH = re.compile(r"[0-9]{1,19}", re.ASCII)


class BlobSizes:
    """Asks for sizes."""

    def __init__(self, requests: Requests) -> None:
        self._requests = requests

    def get(self, endpoint: Endpoint, ref: Reference, digest: Digest) -> int:
        """Return the size in bytes that a host says a blob has.

        Nothing vouches for it but the host: whoever uses it verifies what is read with it.

        Raises:
            Failure: the host does not have the blob, or does not tell.
        """
        what = f"ask for the size of blob {digest} of {ref}"
        path = f"blobs/{digest}"
        answer = self._requests.open(endpoint, ref, "GET", path, _FIRST_BYTE, what)
        with closing(answer):
            size = _told(answer)
            if (
                answer.status == 206
            ):  # whoever ignores ranges sends all of the blob: it stays unread
                read_small(answer, _SMALL)
        if size:
            return size
        hint = "see whether a proxy or a login page answers for the registry"
        text = f"{what} from {endpoint.host}: it does not tell"
        raise Failure(Unavailable(text, hint=hint))


def _told(answer: urllib3.BaseHTTPResponse) -> int:
    """Return the size that an answer tells; 0 if it tells none, or one of nothing."""
    kind = answer.headers.get("Content-Type", "").partition(";")[0].strip().lower()
    encoded = answer.headers.get("Content-Encoding", "identity").strip().lower() != "identity"
    if encoded or kind in {"text/html", "multipart/byteranges"}:
        return 0
    if answer.status == 206:
        match = _CONTENT_RANGE.fullmatch(answer.headers.get("Content-Range", "").strip())
        return int(match[1]) if match else 0
    said = answer.headers.get("Content-Length", "").strip()
    return int(said) if answer.status == 200 and _CONTENT_LENGTH.fullmatch(said) else 0
