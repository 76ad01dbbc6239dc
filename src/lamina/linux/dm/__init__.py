"""Device-mapper: its ioctls, its nodes with udev and without, and thin pools."""

from __future__ import annotations

from lamina.linux.dm.control import DeviceMapper
from lamina.linux.dm.layout import SECTOR, DeviceInfo, Listed, Target
from lamina.linux.dm.nodes import node

__all__ = ["SECTOR", "DeviceInfo", "DeviceMapper", "Listed", "Target", "node"]
