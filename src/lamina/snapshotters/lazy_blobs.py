"""Opens the cache of a layer, and the registry that has the rest; in the lazy worker, too."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lamina.core.digest import Digest
from lamina.core.source import RangeSource
from lamina.errors import NotFound, NotImplementedHere, PermissionDenied, Unauthenticated
from lamina.images.manifest import Descriptor, Manifest, parse_manifest
from lamina.images.reference import Reference, parse
from lamina.images.registry.client import Registry
from lamina.images.registry.credentials import CredentialStore
from lamina.images.registry.hosts import HostsConfig
from lamina.lazy.cache import LayerCache
from lamina.lazy.codecs import Decoder, decode_alone
from lamina.lazy.policy import FillPolicy
from lamina.lazy.quiet import quiet_of_process
from lamina.lazy.sources.description import Opener, RegistryDescription, SourceDescription
from lamina.lazy.workers import Workers
from lamina.snapshotters.lazy_access import Access, read_access

_THREADS = 8
_LOGIN_HINT = "name a docker config.json that has a login as docker_config of this snapshotter"
"""What whoever pulls logs in with, such as `--user`, is not what layers are fetched with."""


def open_layer(directory: Path, decoder: Decoder = decode_alone) -> LayerCache:
    """Open the cache in a directory that has an `Access` beside it; see `LayerCache`."""
    opener = functools.partial(open_source, read_access(directory.parent))
    return open_cache(directory, opener, decoder)


def open_cache(
    directory: Path,
    opener: Opener,
    decoder: Decoder = decode_alone,
    *,
    counts_fetched: bool = True,
) -> LayerCache:
    """Open the cache in a directory that has an `Access` beside it, by any source."""
    policy = FillPolicy(fill_seconds=read_access(directory.parent).fetching_seconds)
    return LayerCache(
        directory,
        opener,
        policy=policy,
        workers=_workers(),
        quiet=quiet_of_process(),
        decoder=decoder,
        counts_fetched=counts_fetched,
    )


def open_source(access: Access, description: SourceDescription) -> RangeSource:
    """Return the blob in its registry.

    Raises:
        NotImplementedHere: it is not in a registry.
    """
    if not isinstance(description, RegistryDescription):
        raise NotImplementedHere("read a layer from", type(description).__name__)
    blob = Descriptor(description.media_type, Digest(description.digest), description.size)
    return registry(access).source(parse(description.reference), blob)


def manifest_layers(access: Access, ref: Reference) -> tuple[Descriptor, ...]:
    """Return the layers that an image's manifest names; none of an index.

    Raises:
        LaminaError: as the registry raises.
    """
    found, data = registry(access).resolve(ref)
    parsed = parse_manifest(data, found.media_type)
    return parsed.layers if isinstance(parsed, Manifest) else ()


def size_in_manifest(access: Access, reference: str, manifest: Digest, blob: Digest) -> int:
    """Return the size in bytes that an image's manifest says one of its layers has.

    Raises:
        NotFound: the manifest has no such layer, or the registry no such manifest.
        LaminaError: as the registry raises.
    """
    for layer in manifest_layers(access, parse(reference).with_digest(manifest)):
        if layer.digest == blob:
            return layer.size
    raise NotFound(f"find in manifest {manifest} the layer", blob)


def size_in_registry(access: Access, reference: str, blob: Digest) -> int:
    """Return the size in bytes that the registry says a blob of an image has.

    Raises:
        LaminaError: as the registry raises; it does not tell.
    """
    return registry(access).size(parse(reference), blob)


@contextmanager
def login_hint() -> Iterator[None]:
    """Say in errors of the body that are about a login where to name one."""
    try:
        yield
    except (PermissionDenied, Unauthenticated) as error:
        error.hint = _LOGIN_HINT
        raise


@functools.cache
def registry(access: Access) -> Registry:
    """Return a client; layers that are reached alike share its connections."""
    hosts = HostsConfig(Path(access.hosts) if access.hosts else None, access.plain_http)
    docker_config = Path(access.docker_config) if access.docker_config else None
    return Registry(hosts, CredentialStore(docker_config=docker_config))


@functools.cache
def _workers() -> Workers:
    return Workers(_THREADS)
