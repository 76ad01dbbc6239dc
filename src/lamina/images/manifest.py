"""Manifests, indexes and image configurations, OCI's and Docker's, as typed values.

Decoding is strict in types and tolerant in fields: unknown fields are ignored, as both
specifications demand, `null` means absent, as Go programs write it, and anything else of a wrong
type is refused with its place in the document. Sources: OCI image specification 1.1
(`manifest.md`, `image-index.md`, `config.md`, `descriptor.md`) and Docker's "Image Manifest
Version 2, Schema 2". Docker's schema 1 has no configuration and is not supported.
"""

from __future__ import annotations

import hashlib
from typing import Annotated, TypeVar

import msgspec

from lamina.core.digest import Digest, algorithm
from lamina.core.process import ImageProcess
from lamina.errors import DigestMismatch, FormatError, InvalidArgument, NotImplementedHere

OCI_INDEX = "application/vnd.oci.image.index.v1+json"
OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_CONFIG = "application/vnd.oci.image.config.v1+json"
OCI_EMPTY = "application/vnd.oci.empty.v1+json"
OCI_LAYER = "application/vnd.oci.image.layer.v1.tar"
OCI_LAYER_GZIP = "application/vnd.oci.image.layer.v1.tar+gzip"
OCI_LAYER_ZSTD = "application/vnd.oci.image.layer.v1.tar+zstd"
OCI_NONDISTRIBUTABLE = "application/vnd.oci.image.layer.nondistributable.v1.tar"
DOCKER_INDEX = "application/vnd.docker.distribution.manifest.list.v2+json"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_CONFIG = "application/vnd.docker.container.image.v1+json"
DOCKER_LAYER = "application/vnd.docker.image.rootfs.diff.tar"
DOCKER_LAYER_GZIP = "application/vnd.docker.image.rootfs.diff.tar.gzip"
DOCKER_LAYER_ZSTD = "application/vnd.docker.image.rootfs.diff.tar.zstd"
DOCKER_FOREIGN = "application/vnd.docker.image.rootfs.foreign.diff.tar"
_DOCKER_SCHEMA_1 = "application/vnd.docker.distribution.manifest.v1"

INDEX_TYPES = frozenset({OCI_INDEX, DOCKER_INDEX})
MANIFEST_TYPES = frozenset({OCI_MANIFEST, DOCKER_MANIFEST})
CONFIG_TYPES = frozenset({OCI_CONFIG, DOCKER_CONFIG})
_LAYER_STEMS = (OCI_LAYER, OCI_NONDISTRIBUTABLE, DOCKER_LAYER, DOCKER_FOREIGN)

MAX_MANIFEST_BYTES = 4 << 20
"""The size of manifest that registries are obliged to take (OCI distribution specification)."""
MAX_CONFIG_BYTES = 8 << 20
MAX_LAYERS = 1000
"""Twice what overlayfs can stack; more is an attack or a mistake."""

NAME_ANNOTATION = "io.containerd.image.name"
"""On a manifest in an index: the full reference that containerd stores it under."""
REF_NAME_ANNOTATION = "org.opencontainers.image.ref.name"
REFERENCE_TYPE_ANNOTATION = "vnd.docker.reference.type"
"""On a manifest in an index that BuildKit made: `attestation-manifest` is no image."""

_DigestField = Annotated[
    Digest, msgspec.Meta(pattern=r"^(sha256:[0-9a-f]{64}|sha512:[0-9a-f]{128})\Z")
]
_SizeField = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]


class Platform(msgspec.Struct, frozen=True, omit_defaults=True):
    """What an image runs on; `variant` is the CPU's (`v8`, `v7`), "" where there is none."""

    architecture: str = ""
    os: str = ""
    variant: str = ""
    os_version: str = msgspec.field(default="", name="os.version")
    os_features: tuple[str, ...] = msgspec.field(default=(), name="os.features")


class Descriptor(msgspec.Struct, frozen=True, omit_defaults=True, rename="camel"):
    """Points at content: its type, digest and size in bytes. `urls` is for foreign layers."""

    media_type: str
    digest: _DigestField
    size: _SizeField
    annotations: dict[str, str] = {}
    platform: Platform | None = None
    urls: tuple[str, ...] = ()
    artifact_type: str = ""


class Manifest(msgspec.Struct, frozen=True, omit_defaults=True, rename="camel", kw_only=True):
    """One image for one platform: its configuration and its layers, base first."""

    schema_version: int = 0
    media_type: str = ""
    config: Descriptor
    layers: tuple[Descriptor, ...]
    annotations: dict[str, str] = {}
    subject: Descriptor | None = None
    artifact_type: str = ""


class Index(msgspec.Struct, frozen=True, omit_defaults=True, rename="camel", kw_only=True):
    """Several manifests (or indexes) under one digest, mostly one for each platform."""

    schema_version: int = 0
    media_type: str = ""
    manifests: tuple[Descriptor, ...]
    annotations: dict[str, str] = {}
    subject: Descriptor | None = None
    artifact_type: str = ""


class ProcessConfig(msgspec.Struct, frozen=True, omit_defaults=True, rename="pascal"):
    """How a container of the image is started: the `config` object of an image configuration."""

    user: str = ""
    exposed_ports: dict[str, dict[str, object]] = {}
    env: tuple[str, ...] = ()
    entrypoint: tuple[str, ...] = ()
    cmd: tuple[str, ...] = ()
    volumes: dict[str, dict[str, object]] = {}
    working_dir: str = ""
    labels: dict[str, str] = {}
    stop_signal: str = ""
    args_escaped: bool = False

    @property
    def process(self) -> ImageProcess:
        """What running the image needs of it."""
        return ImageProcess(
            user=self.user,
            env=self.env,
            entrypoint=self.entrypoint,
            cmd=self.cmd,
            working_dir=self.working_dir,
            labels=self.labels,
            stop_signal=self.stop_signal,
        )


class RootFS(msgspec.Struct, frozen=True):
    """The digests of the layers' uncompressed tar streams, base first."""

    type: str = "layers"
    diff_ids: tuple[_DigestField, ...] = ()


class History(msgspec.Struct, frozen=True, omit_defaults=True):
    """How one layer came about; `empty_layer` marks steps that changed no file."""

    created: str = ""
    created_by: str = ""
    author: str = ""
    comment: str = ""
    empty_layer: bool = False


class ImageConfig(msgspec.Struct, frozen=True, omit_defaults=True):
    """An image configuration; `config` and `rootfs` are what running and unpacking need."""

    architecture: str = ""
    os: str = ""
    variant: str = ""
    os_version: str = msgspec.field(default="", name="os.version")
    os_features: tuple[str, ...] = msgspec.field(default=(), name="os.features")
    created: str = ""
    author: str = ""
    config: ProcessConfig = ProcessConfig()
    rootfs: RootFS = RootFS()
    history: tuple[History, ...] = ()

    @property
    def platform(self) -> Platform:
        """What the image says it runs on."""
        return Platform(self.architecture, self.os, self.variant, self.os_version, self.os_features)


def is_layer(media_type: str) -> bool:
    """Tell whether content of this type is a file system layer, compressed or not."""
    return any(
        media_type == stem or media_type.startswith((f"{stem}+", f"{stem}."))
        for stem in _LAYER_STEMS
    )


def is_foreign(media_type: str) -> bool:
    """Tell whether a layer of this type must not be distributed (nor exported, on request)."""
    return media_type.startswith((OCI_NONDISTRIBUTABLE, DOCKER_FOREIGN))


def content_ref(descriptor: Descriptor) -> str:
    """Return the name that containerd gives to the ingest of this content."""
    kinds = {"index": INDEX_TYPES, "manifest": MANIFEST_TYPES, "config": CONFIG_TYPES}
    kind = next((k for k, types in kinds.items() if descriptor.media_type in types), "unknown")
    if is_layer(descriptor.media_type):
        kind = "layer"
    return f"{kind}-{descriptor.digest}"


def parse_manifest(data: bytes, media_type: str) -> Manifest | Index:
    """Decode a manifest or an index, as `media_type` says.

    Raises:
        FormatError: not JSON, a wrong type somewhere, too big, or a document that could be read
            both as a manifest and as an index, or that contradicts `media_type`.
        NotImplementedHere: Docker's schema 1.
        InvalidArgument: any other media type.
    """
    if media_type.startswith(_DOCKER_SCHEMA_1):
        raise NotImplementedHere(
            "read Docker schema 1 manifest", hint="push the image again with a current Docker"
        )
    if media_type in INDEX_TYPES:
        return _parse_index(data, media_type)
    if media_type in MANIFEST_TYPES:
        return _parse_image_manifest(data, media_type)
    raise InvalidArgument("read manifest of media type", media_type or "(none)")


def parse_config(data: bytes) -> ImageConfig:
    """Decode an image configuration.

    Raises:
        FormatError: not JSON, a wrong type somewhere, or more than 8 MiB.
    """
    return _convert(_load(data, "image config", MAX_CONFIG_BYTES), ImageConfig, "image config")


def encode(document: Manifest | Index | ImageConfig) -> bytes:
    """Return the document as compact JSON: the same value gives the same bytes."""
    return msgspec.json.encode(document, order="deterministic")


def check_blob(data: bytes, descriptor: Descriptor) -> None:
    """Check that `data` is what the descriptor points at.

    Raises:
        DigestMismatch: size or digest differ.
    """
    if len(data) != descriptor.size:
        raise DigestMismatch(
            "read",
            f"{descriptor.digest}: size in bytes",
            expected=str(descriptor.size),
            got=str(len(data)),
        )
    got = (
        f"{algorithm(descriptor.digest)}:"
        + hashlib.new(algorithm(descriptor.digest), data).hexdigest()
    )
    if got != descriptor.digest:
        raise DigestMismatch("read", descriptor.media_type, expected=descriptor.digest, got=got)


_T = TypeVar("_T")


def _parse_index(data: bytes, media_type: str) -> Index:
    fields = _load(data, "image index", MAX_MANIFEST_BYTES)
    _check_kind(fields, media_type, "image index", foreign=("config", "layers"))
    return _convert(fields, Index, "image index")


def _parse_image_manifest(data: bytes, media_type: str) -> Manifest:
    fields = _load(data, "image manifest", MAX_MANIFEST_BYTES)
    _check_kind(fields, media_type, "image manifest", foreign=("manifests",))
    manifest = _convert(fields, Manifest, "image manifest")
    if len(manifest.layers) > MAX_LAYERS:
        raise FormatError(
            "image manifest",
            0,
            expected=f"at most {MAX_LAYERS} layers",
            got=str(len(manifest.layers)),
        )
    return manifest


def _check_kind(
    fields: dict[str, object], media_type: str, format: str, *, foreign: tuple[str, ...]
) -> None:
    """Refuse a document that another reader could take for the other kind (CVE-2021-41190)."""
    if fields.get("schemaVersion") == 1:
        raise NotImplementedHere(
            "read Docker schema 1 manifest", hint="push the image again with a current Docker"
        )
    said = fields.get("mediaType", media_type)
    if said != media_type:
        raise FormatError(format, 0, expected=f"mediaType {media_type}", got=f"{said}"[:160])
    for name in foreign:
        if name in fields:
            raise FormatError(format, 0, expected=f"no field {name}", got="one")


def _load(data: bytes, format: str, limit: int) -> dict[str, object]:
    """Return the JSON object without its `null` members."""
    if len(data) > limit:
        raise FormatError(format, 0, expected=f"at most {limit} bytes", got=str(len(data)))
    try:
        value = msgspec.json.decode(data)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise FormatError(format, 0, expected="JSON", got=str(error)) from error
    if not isinstance(value, dict):
        raise FormatError(format, 0, expected="a JSON object", got=type(value).__name__)
    return {key: _without_null(member) for key, member in value.items() if member is not None}


def _without_null(value: object) -> object:
    if isinstance(value, dict):
        return {key: _without_null(member) for key, member in value.items() if member is not None}
    if isinstance(value, list):
        return [_without_null(member) for member in value]
    return value


def _convert(fields: dict[str, object], type: type[_T], format: str) -> _T:
    try:
        return msgspec.convert(fields, type)
    except msgspec.ValidationError as error:
        raise FormatError(format, 0, expected="its fields", got=str(error)) from error
