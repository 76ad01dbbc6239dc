"""Making an image of a snapshot: the image below it, and one layer more."""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any

from lamina.core.digest import Digest, chain_ids, sha256
from lamina.core.labels import DIFF_ID, GC_REF_SNAPSHOT, PARENT_CHAIN_ID, SNAPSHOT_REF, UNCOMPRESSED
from lamina.errors import AlreadyExists
from lamina.images.catalogue import Image
from lamina.images.extraction import Destination
from lamina.images.manifest import (
    OCI_CONFIG,
    OCI_LAYER_GZIP,
    OCI_MANIFEST,
    Descriptor,
    Manifest,
    encode,
)
from lamina.images.store import ImageStore
from lamina.images.tree import PlatformImage, child_labels
from lamina.layer.snapshot_diff import write_snapshot_diff
from lamina.meta.leases import Resource


def commit_image(
    store: ImageStore,
    destination: Destination,
    base: PlatformImage,
    key: str,
    name: str,
    *,
    comment: str = "",
    release: Callable[[], None],
) -> Image:
    """Turn an Active snapshot on top of an image into a new image, and record it under `name`.

    Args:
        store: where content and record go; an older record of that name is replaced.
        destination: where the snapshot is.
        base: the image whose top layer is the snapshot's parent.
        key: the snapshot; Committed under its chain id afterwards.
        name: full reference of the new image.
        comment: for the image's history.
        release: unmounts the snapshot; called once its layer is written. When an error comes
            before that, the snapshot is as it was.

    Raises:
        Aborted: something wrote to the snapshot meanwhile.
        ResourceExhausted: there is no room for the layer.
    """
    lease = store.leases.create(owned=True).id
    try:
        layer, diff_id = _write_layer(store, destination, key, lease)
        config = _with_layer(store, base, diff_id, comment)
        release()
        chain_id = _commit(destination, base, key, diff_id, store, lease)
        label = {f"{GC_REF_SNAPSHOT}.{destination.name}": chain_id}
        config_descriptor = _put(store, lease, config, OCI_CONFIG, label)
        manifest = Manifest(
            schema_version=2,
            media_type=OCI_MANIFEST,
            config=config_descriptor,
            layers=(*base.manifest.layers, layer),
        )
        target = _put(store, lease, encode(manifest), OCI_MANIFEST, child_labels(manifest))
        return store.catalogue.put(name, target)
    finally:
        store.leases.delete(lease)


def _write_layer(
    store: ImageStore, destination: Destination, key: str, lease: str
) -> tuple[Descriptor, Digest]:
    with store.content.open_writer(f"commit-{secrets.token_hex(8)}") as writer:
        try:
            diff = write_snapshot_diff(
                destination.snapshotter, key, writer.write, mounts=store.mounts
            )
            store.leases.add(lease, [Resource.content(diff.digest)])
            writer.commit({UNCOMPRESSED: diff.diff_id})
        except BaseException:
            writer.abort()
            raise
    return Descriptor(OCI_LAYER_GZIP, diff.digest, diff.size), diff.diff_id


def _with_layer(store: ImageStore, base: PlatformImage, diff_id: Digest, comment: str) -> bytes:
    """Return the base's configuration with one layer more; fields unknown to us are kept."""
    now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    config: dict[str, Any] = json.loads(store.read(base.manifest.config))
    rootfs = config.setdefault("rootfs", {"type": "layers"})
    rootfs["diff_ids"] = [*(rootfs.get("diff_ids") or ()), diff_id]
    history = {"created": now, "created_by": "lamina commit"}
    if comment:
        history["comment"] = comment
    config["history"] = [*(config.get("history") or ()), history]
    config["created"] = now
    return json.dumps(config, separators=(",", ":")).encode()


def _commit(
    destination: Destination,
    base: PlatformImage,
    key: str,
    diff_id: Digest,
    store: ImageStore,
    lease: str,
) -> Digest:
    """Commit the snapshot under its chain id; one that is there already makes it superfluous."""
    chain_id = chain_ids([*base.config.rootfs.diff_ids, diff_id])[-1]
    labels = {SNAPSHOT_REF: chain_id, DIFF_ID: diff_id}
    if base.chain_id is not None:
        labels[PARENT_CHAIN_ID] = base.chain_id
    store.leases.add(lease, [Resource.snapshot(destination.name, chain_id)])
    try:
        destination.snapshotter.commit(chain_id, key, labels=labels)
    except AlreadyExists:
        destination.snapshotter.remove(key)
    return chain_id


def _put(
    store: ImageStore, lease: str, data: bytes, media_type: str, labels: Mapping[str, str]
) -> Descriptor:
    descriptor = Descriptor(media_type, sha256(data), len(data))
    store.leases.add(lease, [Resource.content(descriptor.digest)])
    store.content.put(data, descriptor)
    store.content.label(descriptor.digest, labels)
    return descriptor
