"""Putting blobs and manifests into a repository of one host.

Source: OCI distribution specification 1.1, "Push": a POST opens an upload, a PUT with the whole
blob ends it. Each blob is sent in one piece: several would have to be counted anew after a failure.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from typing import BinaryIO
from urllib.parse import quote

from lamina.errors import DigestMismatch, PermissionDenied, Unauthenticated, Unavailable
from lamina.images.manifest import Descriptor
from lamina.images.reference import Reference
from lamina.images.registry.failure import Failure
from lamina.images.registry.hosts import Endpoint
from lamina.images.registry.requests import Requests

OpenBlob = Callable[[], BinaryIO]
"""Opens a blob at its start; called again where it has to be sent once more."""


class Uploads:
    """Uploads to one endpoint at a time; safe for threads."""

    def __init__(self, requests: Requests) -> None:
        self._requests = requests

    def has(self, endpoint: Endpoint, ref: Reference, blob: Descriptor) -> bool:
        """Tell whether the repository has a blob; a host that does not say so has not.

        Raises:
            Failure: the host cannot be asked, or refuses.
        """
        what = f"look for blob {blob.digest} of {ref}"
        path = f"blobs/{blob.digest}"
        try:
            with closing(self._requests.open(endpoint, ref, "HEAD", path, {}, what)) as answer:
                length = answer.headers.get("Content-Length", "")
        except Failure as failure:
            # Some hosts refuse HEAD itself, with whatever status.
            if isinstance(failure.error, PermissionDenied | Unauthenticated) or failure.transient:
                raise
            return False
        return length in {"", str(blob.size)}

    def put_blob(
        self,
        endpoint: Endpoint,
        ref: Reference,
        blob: Descriptor,
        open_blob: OpenBlob,
        *,
        mount_from: str = "",
    ) -> bool:
        """Put a blob into the repository.

        Args:
            endpoint: the host.
            ref: names the repository.
            blob: what it is.
            open_blob: opens it.
            mount_from: another repository of the host's that may have it, "" for none.

        Returns:
            Whether it was sent, rather than taken from `mount_from`.

        Raises:
            Failure: it is not there now.
        """
        what = f"push blob {blob.digest} of {ref}"
        path = "blobs/uploads/"
        if mount_from:
            path += f"?mount={quote(blob.digest)}&from={quote(mount_from)}"
        begun = self._requests.change(endpoint, ref, "POST", path, {}, None, what)
        with closing(begun):
            if begun.status == 201:
                return False
            location = begun.headers.get("Location", "")
        if not location:
            raise Failure(Unavailable(f"{what} to {endpoint.host}: it does not say where to"))
        joint = "&" if "?" in location else "?"
        target = f"{location}{joint}digest={quote(blob.digest)}"
        headers = {
            "Content-Type": "application/octet-stream",
            "Content-Length": str(blob.size),
        }
        # Opened anew for each request: one that was sent is at its end.
        ended = self._requests.change(endpoint, ref, "PUT", target, headers, open_blob, what)
        with closing(ended):
            if ended.status != 201:
                text = f"{what} to {endpoint.host}: answered {ended.status}, not that it has it"
                raise Failure(Unavailable(text))
        return True

    def put_manifest(
        self, endpoint: Endpoint, ref: Reference, object: str, manifest: Descriptor, data: bytes
    ) -> None:
        """Put a manifest or index whose blobs are there, under a tag or its own digest.

        Raises:
            Failure: it is not there now, or not what was sent.
        """
        what = f"push manifest {object} of {ref}"
        headers = {"Content-Type": manifest.media_type}
        path = f"manifests/{object}"
        answer = self._requests.change(endpoint, ref, "PUT", path, headers, lambda: data, what)
        with closing(answer):
            said = answer.headers.get("Docker-Content-Digest", manifest.digest)
        if said.startswith("sha256:") and said != manifest.digest:
            raise Failure(
                DigestMismatch(f"push to {endpoint.host}:", ref, expected=manifest.digest, got=said)
            )
