"""The template: the device with an empty filesystem that snapshots without parent are copies of."""

from __future__ import annotations

import logging

from lamina.linux.dm import SECTOR, node
from lamina.snapshotters.devmapper.devices import Device
from lamina.snapshotters.devmapper.filesystem import make_empty
from lamina.snapshotters.devmapper.volumes import Volumes

log = logging.getLogger(__name__)


class Template:
    """The template of one configuration, made when it is first needed.

    Args:
        volumes: where it is made.
        sectors: its size.
        filesystem: what is made on it: `ext4`, `ext2` or `xfs`.
        options: what mkfs is given with -E; "" for the usual ones.
    """

    def __init__(self, volumes: Volumes, *, sectors: int, filesystem: str, options: str) -> None:
        self._volumes = volumes
        self.sectors = sectors
        self.filesystem = filesystem
        self._options = options
        self._key = f"{filesystem} {sectors} {options}"

    def ready(self) -> Device:
        """Return it, after making it where there is none.

        Raises:
            ToolError, OSError: it cannot be made.
        """
        devices = self._volumes.devices
        device = devices.template(self._key)
        if device is not None:
            return device
        with self._volumes.alone():
            device = devices.template(self._key)
            if device is None:
                device = self._make()
        self._volumes.sweep()  # the one of another configuration
        return device

    def drop(self, device: Device) -> None:
        """Let go of one that is not in the pool any more."""
        self._volumes.devices.drop_template(device.id)

    def make_on(self, name: str, device: Device) -> None:
        """Make such an empty filesystem on a device that is active under that name.

        Raises:
            ToolError, OSError: it cannot be made.
        """
        size = device.sectors * SECTOR
        make_empty(node(name), self.filesystem, options=self._options, size=size)

    def _make(self) -> Device:
        pool = self._volumes.pool
        device = self._volumes.create(sectors=self.sectors, filesystem=self.filesystem)
        with pool.active(device.id, device.sectors) as name:
            self.make_on(name, device)
        pool.sync()  # a power loss must not leave a row for less than this
        self._volumes.devices.set_template(device.id, self._key)
        log.info("made the empty filesystem", extra={"pool": pool.name, "type": self.filesystem})
        return device
