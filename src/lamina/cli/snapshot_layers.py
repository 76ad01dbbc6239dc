"""`lamina snapshots diff|export|unpack`: from snapshots to layers, and back."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import click

from lamina.cli.app import App, parse_labels, pass_app
from lamina.cli.output import binary_output, now, say
from lamina.cli.snapshot_options import Verb
from lamina.core.digest import parse_digest
from lamina.core.labels import GC_ROOT, UNCOMPRESSED
from lamina.errors import NotFound

if TYPE_CHECKING:
    from lamina.layer.diff import Diff

_COMPRESSIONS = {
    "application/vnd.oci.image.layer.v1.tar": "none",
    "application/vnd.oci.image.layer.v1.tar+gzip": "gzip",
    "application/vnd.oci.image.layer.v1.tar+zstd": "zstd",
}


@click.command(cls=Verb)
@click.option(
    "--media-type",
    type=click.Choice(list(_COMPRESSIONS)),
    default="application/vnd.oci.image.layer.v1.tar+gzip",
    show_default=True,
    help="Media type of the layer.",
)
@click.option("--keep", is_flag=True, help="Keep the layer in the content store of --root, too.")
@click.option("--ref", metavar="NAME", help="With --keep: name of the ingest.")
@click.option(
    "--label", "labels", multiple=True, metavar="KEY=VALUE", help="With --keep: label the layer."
)
@click.argument("key_a")
@click.argument("key_b", default="")
@pass_app
def diff(
    app: App,
    key_a: str,
    key_b: str,
    media_type: str,
    keep: bool,
    ref: str | None,
    labels: tuple[str, ...],
) -> None:
    """Write a layer with what KEY_A changes in its parent, or what leads from KEY_A to KEY_B."""

    def write(*sinks: Callable[[bytes], object]) -> Diff:
        from lamina.formats.compression import Compression
        from lamina.layer.snapshot_diff import write_snapshot_diff

        return write_snapshot_diff(
            app.snapshotter,
            key_b or key_a,
            lambda data: [sink(data) for sink in (*sinks, binary_output().write)],
            mounts=_mount_points(app),
            against=key_a if key_b else None,
            compression=Compression(_COMPRESSIONS[media_type]),
        )

    if keep:
        _keep(app, write, ref, {GC_ROOT: now(), **parse_labels(labels)})
    else:
        write()


def _keep(app: App, write: Callable[..., Diff], ref: str | None, labels: Mapping[str, str]) -> None:
    """Write a layer to the content store as well, labelled from its first moment on."""
    import secrets

    with app.store.images.content.open_writer(ref or f"diff-{secrets.token_hex(8)}") as writer:
        try:
            diff = write(writer.write)
            uncompressed = {} if diff.diff_id == diff.digest else {UNCOMPRESSED: diff.diff_id}
            writer.commit({**uncompressed, **labels})
        except BaseException:
            writer.abort()
            raise


@click.command(cls=Verb)
@click.option(
    "--compressor",
    type=click.Choice(["lz4", "zstd"]),
    default="lz4",
    show_default=True,
    help="How blocks are compressed.",
)
@click.option(
    "--bs",
    type=click.Choice(["4", "8", "16", "32", "64"]),
    default="4",
    show_default=True,
    help="Size in KiB of the blocks that are compressed; with 64, data that does not compress is "
    "an error.",
)
@click.option(
    "--vsize",
    type=click.IntRange(1, 16384),
    metavar="GIB",
    help="Size in GiB of the device.  [default: 64]",
)
@click.option(
    "--blocks",
    is_flag=True,
    help="Write the filesystem that blockfile or devmapper keeps for KEY, as it is.",
)
@click.argument("key")
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
@pass_app
def export(
    app: App, key: str, file: Path, compressor: str, bs: str, vsize: int | None, blocks: bool
) -> None:
    """Write what KEY shows, with all below it, to FILE as a layer of overlaybd.

    The layer is a block device with an ext4 filesystem and needs no other; overlaybd calls such
    files overlaybd.commit.
    """
    from lamina.formats.zfile.layout import Algorithm
    from lamina.formats.zfile.writer import ZFileOptions
    from lamina.images.conversion_overlaybd import DEFAULT_SIZE, OverlaybdOptions
    from lamina.images.snapshot_blocks import export_blocks
    from lamina.images.snapshot_export import export_overlaybd

    zfile = ZFileOptions(Algorithm[compressor.upper()], int(bs) << 10)
    if blocks and vsize is not None:
        raise click.UsageError("--blocks keeps the size of the filesystem: leave out --vsize")
    with _replacing(file) as out:
        if blocks:
            exported = export_blocks(app.snapshotter, key, out, zfile)
        else:
            exported = export_overlaybd(
                app.snapshotter,
                key,
                out,
                mounts=_mount_points(app),
                temporary=file.absolute().parent,
                options=OverlaybdOptions(zfile, vsize << 30 if vsize else DEFAULT_SIZE),
            )
    for warning in exported.warnings:
        say(warning)


@contextmanager
def _replacing(path: Path) -> Iterator[BinaryIO]:
    """Open a file for writing that is at a path when the body has succeeded."""
    import tempfile

    fd, name = tempfile.mkstemp(dir=path.absolute().parent, prefix=f".{path.name}-")
    with open(fd, "w+b") as file:
        try:
            yield file
            file.flush()
            os.fchmod(fd, 0o644)
            Path(name).replace(path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise


def _mount_points(app: App) -> Path:
    """Return where to mount for a moment; a daemon's snapshots need no store here."""
    if app.address_option is None:
        return app.store.images.mounts
    import tempfile

    return Path(tempfile.gettempdir())


@click.command(cls=Verb)
@click.option("--sync-fs", is_flag=True, help="Return when the snapshots survive power loss.")
@click.argument("digest")
@pass_app
def unpack(app: App, digest: str, sync_fs: bool) -> None:
    """Unpack the image whose manifest or index has that digest.

    With --address the image is one of --root, and its layers become the daemon's snapshots.
    """
    if sync_fs and app.address_option is not None:
        raise click.UsageError("--sync-fs is for snapshots of --root; a daemon syncs its own")
    found = list(app.store.images.catalogue.walk([f"target.digest=={parse_digest(digest)}"]))
    if not found:
        raise NotFound("image of", digest, hint="lamina images ls shows the digests there are")
    if app.address_option is None:
        app.store.unpack(found[0].name, app.snapshotter_option)
    else:
        from lamina.api.unpack import unpack_remotely

        unpack_remotely(
            found[0],
            store=app.store.images,
            channel=app.channel,
            snapshotter=app.snapshotter_name,
            namespace=app.namespace,
        )
    if sync_fs:
        app.store.sync([app.snapshotter_name])
    click.echo(f"unpacking {digest} ({found[0].target.media_type})...done")
