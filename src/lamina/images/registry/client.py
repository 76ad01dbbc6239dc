"""Manifests and blobs: fetched from registries and their mirrors, pushed to registries.

Source: OCI distribution specification 1.1; to a puller, Docker's Registry HTTP API V2 is the same.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from lamina.core.digest import Digest
from lamina.errors import FailedPrecondition, FormatError, OutOfRange
from lamina.images.manifest import Descriptor
from lamina.images.reference import Reference
from lamina.images.registry.blobs import BlobDownload, Sink
from lamina.images.registry.cancel import Cancel
from lamina.images.registry.connections import Connections
from lamina.images.registry.credentials import CredentialStore
from lamina.images.registry.failure import Failure, combined
from lamina.images.registry.hosts import Capability, Endpoint, HostsConfig
from lamina.images.registry.manifests import Manifests
from lamina.images.registry.proxies import Proxies
from lamina.images.registry.requests import Requests
from lamina.images.registry.retry import RetryPolicy, retrying
from lamina.images.registry.sizes import BlobSizes
from lamina.images.registry.source import RegistrySource
from lamina.images.registry.uploads import OpenBlob, Uploads

_T = TypeVar("_T")


class Registry:
    """A client of registries; any number of threads may use one at once.

    Args:
        hosts: which hosts serve a registry name, and how to reach them.
        credentials: whom to be there.
        proxies: HTTP proxies for hosts whose `hosts.toml` does not name one.
        retry: how patient to be.
        connections: idle connections kept for each host; as many as will download at once.

    Every method that fetches or pushes raises:
        NotFound: no host has it.
        Unauthenticated, PermissionDenied: a login is needed, wrong or not enough.
        Unavailable: no host can be reached, or none gives a proper answer.
        ConfigError: a `hosts.toml`, a certificate file or the docker configuration is wrong.
        Cancelled: `cancel` was set.
    The text of the error tells what each host said.
    """

    def __init__(
        self,
        hosts: HostsConfig,
        credentials: CredentialStore,
        *,
        proxies: Proxies | None = None,
        retry: RetryPolicy | None = None,
        connections: int = 16,
    ) -> None:
        self._hosts = hosts
        self._policy = retry or RetryPolicy()
        self._connections = Connections(
            proxies or Proxies(), self._policy.read_timeout, connections
        )
        self._requests = Requests(self._connections, credentials)
        self._manifests = Manifests(self._requests, self._policy)
        self._sizes = BlobSizes(self._requests)
        self._uploads = Uploads(self._requests)

    @property
    def plain_http(self) -> bool:
        """Whether registries are asked without TLS."""
        return self._hosts.plain_http

    def close(self) -> None:
        """Close the idle connections; the registry can still be used."""
        self._connections.close()

    def resolve(self, ref: Reference, *, cancel: Cancel | None = None) -> tuple[Descriptor, bytes]:
        """Return the manifest or index that `ref` names, and its descriptor.

        A tag is looked up only at hosts that may `resolve`; bytes of a reference with a digest
        have that digest.

        Raises:
            DigestMismatch, FormatError: it is damaged, too big, or no manifest.
            NotImplementedHere: a Docker schema 1 manifest.
        """
        stop = cancel or Cancel()

        def from_tag(endpoint: Endpoint) -> tuple[Descriptor, bytes] | Descriptor:
            if "pull" in endpoint.capabilities:
                return self._manifests.get(endpoint, ref, stop)
            return self._manifests.head(endpoint, ref)

        if ref.digest is not None:
            return self._pull(ref, stop)
        found = self._ask(ref, "resolve", from_tag, stop)
        if isinstance(found, tuple):
            return found
        return self._pull(ref.with_digest(found.digest), stop)

    def manifest(
        self, ref: Reference, descriptor: Descriptor, *, cancel: Cancel | None = None
    ) -> bytes:
        """Return the bytes of a manifest in the repository of `ref`, of the descriptor's digest.

        Raises:
            DigestMismatch, FormatError: it is damaged, or not of the descriptor's size.
        """
        _, data = self._pull(ref.with_digest(descriptor.digest), cancel or Cancel())
        if len(data) != descriptor.size:
            expected = f"{descriptor.size} bytes, as its descriptor says"
            what = f"manifest {descriptor.digest} of {ref}"
            raise FormatError(what, len(data), expected=expected, got=f"{len(data)}")
        return data

    def download(
        self, ref: Reference, descriptor: Descriptor, sink: Sink, *, cancel: Cancel | None = None
    ) -> None:
        """Bring `sink` from its offset to the descriptor's size.

        What the sink has is kept through all retries and changes of host. Nothing is hashed here.

        Raises:
            DataLoss: the blob's size is not the descriptor's.
            OutOfRange: the sink has more bytes than that already.
        """
        stop = cancel or Cancel()
        if sink.offset > descriptor.size:
            raise OutOfRange(
                f"fetch blob {descriptor.digest} of {descriptor.size} bytes"
                f" from byte {sink.offset} on"
            )
        if sink.offset == descriptor.size:
            return
        download = BlobDownload(self._requests, self._policy, ref, descriptor, sink, stop)
        self._ask(ref, "pull", download.attempt, stop, lambda: sink.offset)

    def source(self, ref: Reference, descriptor: Descriptor) -> RegistrySource:
        """Return a blob in the repository of `ref` as bytes to read at any offset."""
        return RegistrySource(self._hosts, self._requests, self._policy, ref, descriptor)

    def size(self, ref: Reference, digest: Digest, *, cancel: Cancel | None = None) -> int:
        """Return the size in bytes of a blob in the repository of `ref`, as a host says.

        Only the host vouches for it: a descriptor's is to be preferred.
        """
        stop = cancel or Cancel()
        return self._ask(ref, "pull", lambda e: self._sizes.get(e, ref, digest), stop)

    def push_blob(
        self,
        ref: Reference,
        blob: Descriptor,
        open_blob: OpenBlob,
        *,
        mount_from: str = "",
        cancel: Cancel | None = None,
    ) -> bool:
        """Make sure that the repository of `ref` has a blob; return whether it had to be sent.

        Args:
            ref: names the repository.
            blob: what it is.
            open_blob: opens it at its start.
            mount_from: another repository of the registry's that may have it, "" for none.
            cancel: stops the retries.
        """

        def attempt(endpoint: Endpoint) -> bool:
            if self._uploads.has(endpoint, ref, blob):
                return False
            return self._uploads.put_blob(endpoint, ref, blob, open_blob, mount_from=mount_from)

        return self._push(ref, attempt, cancel or Cancel())

    def push_manifest(
        self, ref: Reference, manifest: Descriptor, data: bytes, *, cancel: Cancel | None = None
    ) -> None:
        """Put a manifest or an index, whose content is there, under the tag or digest of `ref`."""

        def attempt(endpoint: Endpoint) -> None:
            self._uploads.put_manifest(endpoint, ref, ref.object, manifest, data)

        self._push(ref, attempt, cancel or Cancel())

    def _push(self, ref: Reference, attempt: Callable[[Endpoint], _T], cancel: Cancel) -> _T:
        """Ask the first host that may be pushed to, and no other: all of an image goes to one."""
        endpoint = self._endpoints(ref, "push")[0]
        try:
            return self._patiently(endpoint, attempt, self._policy.attempts, cancel, lambda: 0)
        except Failure as failure:
            raise failure.error from failure

    def _pull(self, ref: Reference, cancel: Cancel) -> tuple[Descriptor, bytes]:
        return self._ask(ref, "pull", lambda e: self._manifests.get(e, ref, cancel), cancel)

    def _ask(
        self,
        ref: Reference,
        capability: Capability,
        attempt: Callable[[Endpoint], _T],
        cancel: Cancel,
        progress: Callable[[], int] = lambda: 0,
    ) -> _T:
        """Return what the first host that can gives; the last is asked most patiently."""
        endpoints = self._endpoints(ref, capability)
        failures: list[Failure] = []
        for endpoint in endpoints:
            last = endpoint is endpoints[-1]
            attempts = self._policy.attempts if last else self._policy.mirror_attempts
            try:
                return self._patiently(endpoint, attempt, attempts, cancel, progress)
            except Failure as failure:
                failures.append(failure)
        raise combined(failures) from failures[-1]

    def _endpoints(self, ref: Reference, capability: Capability) -> list[Endpoint]:
        endpoints = [e for e in self._hosts.endpoints(ref.host) if capability in e.capabilities]
        if not endpoints:
            raise FailedPrecondition(
                f"{capability} {ref}: no host may do it",
                hint=f"give one the capability {capability!r} in hosts.toml",
            )
        return endpoints

    def _patiently(
        self,
        endpoint: Endpoint,
        attempt: Callable[[Endpoint], _T],
        attempts: int,
        cancel: Cancel,
        progress: Callable[[], int],
    ) -> _T:
        what = f"ask {endpoint.host}"
        cancel.check(what, "")
        return retrying(lambda: attempt(endpoint), self._policy, attempts, cancel, what, progress)
