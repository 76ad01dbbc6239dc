"""Which files of an image the start of a container reads: a run, and the layers that have them."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from lamina.errors import NotFound
from lamina.images.platform import default_platform
from lamina.images.recording import read_record, write_record
from lamina.images.recording_layers import Attributed, attribute, require_blobs
from lamina.images.tree import PlatformImage
from lamina.runtime.containers import Containers
from lamina.runtime.oci_runtime import find_runtime
from lamina.runtime.recording import Recorded, Until, record
from lamina.runtime.request import RunRequest
from lamina.runtime.spec import SpecOptions

if TYPE_CHECKING:
    from lamina.store import Store


class RecordedImage(NamedTuple):
    """What `record_image` returns.

    Attributes:
        image: the one that was run.
        run: how that went.
        files: of the image, in order of first use, and paths that are none of its files.
    """

    image: PlatformImage
    run: Recorded
    files: Attributed

    def lines(self) -> bytes:
        """Return the record file."""
        return write_record(self.files.files)


def record_image(
    store: Store,
    ref: str,
    command: Sequence[str] = (),
    *,
    snapshotter: str | None = None,
    options: SpecOptions | None = None,
    until: Until | None = None,
    request: RunRequest | None = None,
) -> RecordedImage:
    """Run a throw-away container of an image and note which of its files are opened.

    Its standard streams are this process's. Needs root.

    Args:
        store: has the image and the blobs of its layers; it is unpacked if need be.
        ref: the image, for the machine's own platform.
        command: what to run; empty for the image's own.
        snapshotter: where the container is made; None for the default.
        options: what else the container is like; `args` is the command.
        until: when to end it; without it after ten seconds.
        request: names runtime, cgroup and streams, and has options where there are no others; the
            rest of it does not count.

    Raises:
        NotFound: there is no such image, or a layer's blob is not in the store.
        StartFailed: the runtime could not start the container.
        PermissionDenied, NotImplementedHere, ResourceExhausted: opened files cannot be watched.
    """
    image = store.images.select(store.image(ref), default_platform())
    require_blobs(image, store.images)
    name = snapshotter or store.default_snapshotter
    launch = store.launch(ref)
    _unpack(store, ref, name, launch.chain_id)
    request = request or RunRequest(id="", runtime=find_runtime())
    options = options or request.options
    request = request._replace(
        id=f"recording-{secrets.token_hex(6)}",
        image=ref,
        process=launch.process,
        snapshotter=name,
        parent=launch.chain_id,
        options=options._replace(args=list(command)) if command else options,
    )
    containers = Containers(store.containers, store.root / "containers", store.snapshotter)
    run = record(containers, request, until or Until())
    return RecordedImage(image, run, attribute(image, store.images, run.paths))


def recorded_before(store: Store, ref: str, path: Path) -> tuple[PlatformImage, Attributed]:
    """Return an image and which of its files an earlier record names.

    The record may be of another image, such as an earlier build: only its paths count.

    Raises:
        NotFound: there is no such image or record, or a layer's blob is not in the store.
        FormatError: it is no record.
    """
    files = read_record(path)
    image = store.images.select(store.image(ref), default_platform())
    return image, attribute(image, store.images, [file.path for file in files])


def _unpack(store: Store, ref: str, snapshotter: str, chain_id: str) -> None:
    if not chain_id:
        return
    try:
        store.snapshotter(snapshotter).stat(chain_id)
    except NotFound:
        store.unpack(ref, snapshotter)
