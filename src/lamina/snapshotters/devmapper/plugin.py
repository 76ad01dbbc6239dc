"""The devmapper snapshotter's plugin: how it is loaded, what it needs, and how to get that."""

from __future__ import annotations

import errno
import logging
from pathlib import Path
from typing import TYPE_CHECKING

from lamina.errors import NotFound, SnapshotterSkipped
from lamina.snapshotters.devmapper.config import DevmapperConfig
from lamina.snapshotters.plugin import Need, SnapshotterPlugin

if TYPE_CHECKING:
    from lamina.core.driver import Driver
    from lamina.snapshotters.devmapper.pool import Pool

log = logging.getLogger(__name__)

_SETUP = "`lamina devmapper setup --loop`, or with `--device DISK --vg NAME`"


def _load(config: DevmapperConfig, root: Path) -> Driver:
    log.info('loading plugin "%s"...', PLUGIN.uri)
    if not config.pool_name:
        raise SnapshotterSkipped(
            "devmapper",
            reason="devmapper not configured: there is no pool_name",
            fix=f"make a pool with {_SETUP}, and write what it prints into the configuration",
        )
    from lamina.snapshotters.devmapper.devices import Devices
    from lamina.snapshotters.devmapper.driver import DevmapperDriver
    from lamina.snapshotters.devmapper.leases import Leases
    from lamina.snapshotters.devmapper.lock import Lock
    from lamina.snapshotters.devmapper.template import Template
    from lamina.snapshotters.devmapper.volumes import Volumes

    pool = _open(config)
    try:
        root.mkdir(0o700, parents=True, exist_ok=True)
        devices = Devices(root / "devices.sqlite")
        lock = Lock(root / "devices.lock")
        leases = Leases(pool, devices, root)
        volumes = Volumes(pool, devices, leases, lock, discard=config.discard_blocks)
    except BaseException:
        pool.close()
        raise
    template = Template(
        volumes,
        sectors=config.base_image_sectors(),
        filesystem=config.filesystem(),
        options=config.fs_options,
    )
    return DevmapperDriver(volumes, template)


def _open(config: DevmapperConfig) -> Pool:
    """Open the pool, which somebody else has made.

    Raises:
        SnapshotterSkipped: there is none, or no device-mapper.
        FailedPrecondition: it is something else.
    """
    from lamina.linux.dm import DeviceMapper
    from lamina.snapshotters.devmapper.pool import Pool

    try:
        dm = DeviceMapper()
    except OSError as error:
        if error.errno not in {errno.ENODEV, errno.EACCES, errno.EPERM, errno.ENXIO}:
            raise
        raise SnapshotterSkipped(
            "devmapper",
            reason=f"device-mapper cannot be used: {error.strerror}",
            fix="run as root, on a kernel with dm-thin-pool (modprobe dm-thin-pool)",
        ) from error
    log.info('initializing pool device "%s"', config.pool_name)
    try:
        return Pool(dm, config.pool_name)
    except NotFound as error:
        dm.close()
        raise SnapshotterSkipped(
            "devmapper",
            reason=f"there is no pool device {config.pool_name}",
            fix=f"make it with {_SETUP}, or activate it",
        ) from error
    except BaseException:
        dm.close()
        raise


def _probe(config: DevmapperConfig, directory: Path) -> None:
    """Look for mkfs, which the first snapshot needs."""
    from lamina.tools.lookup import installed

    program = f"mkfs.{config.filesystem()}"
    if config.pool_name and not installed(program):
        package = "xfsprogs" if config.filesystem() == "xfs" else "e2fsprogs"
        raise SnapshotterSkipped(
            "devmapper", reason=f"{program} is not installed", fix=f"apt-get install {package}"
        )


def _device_mapper(directory: Path) -> str | None:
    from lamina.linux.dm import DeviceMapper

    try:
        with DeviceMapper() as dm:
            dm.create(name := f"lamina-probe-{directory.name}"[:100])
            dm.remove(name)
            targets = dm.targets()
    except OSError as error:
        return error.strerror
    return None if "thin-pool" in targets else "the kernel has no target thin-pool"


NEEDS = (
    Need(
        what="device-mapper with thin pools",
        tried="make a device without a table, and look for the target thin-pool",
        probe=_device_mapper,
        fix="modprobe dm-thin-pool, and run as root",
    ),
)

PLUGIN = SnapshotterPlugin(
    id="devmapper", config=DevmapperConfig, load=_load, probe=_probe, needs=NEEDS
)
