"""What is tested: a driver, loaded as Lamina loads it, and what a machine has to have for that."""

from __future__ import annotations

import functools
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

import pytest

from lamina import snapshotters
from lamina.core.driver import Ability, Driver
from lamina.core.mount import Mount
from lamina.errors import LaminaError
from lamina.mount import temp_mount
from lamina.snapshotters.engine import Engine
from lamina.snapshotters.plugin import AnyPlugin, SnapshotterConfig


class Subject:
    """The driver under test.

    Attributes:
        plugin: the plugin, or the name by which `lamina plugins ls` lists it. A test class that
            overrides `load` needs none.
        config: keys of the plugin's configuration section; the others have their defaults.
    """

    plugin: ClassVar[str | AnyPlugin] = ""
    config: ClassVar[Mapping[str, object]] = {}

    def load(self, root: Path) -> Driver:
        """Return a driver that keeps its storage below `root`, which may not exist yet.

        Override it to make the driver in another way than through its plugin.

        Raises:
            SnapshotterSkipped: this machine cannot do it; every check is skipped then.
        """
        plugin, section = self._plugin()
        root.mkdir(0o700, exist_ok=True)
        plugin.probe(section, root)
        return plugin.load(section, root)

    def open(self, root: Path) -> Engine:
        """Return the snapshotter on `root`, new or not, as a store opens it."""
        synchronously = bool(self.plugin) and self._plugin()[1].removes_synchronously()
        return Engine("contract", self.load(root), root, sync_remove=synchronously)

    def _plugin(self) -> tuple[AnyPlugin, SnapshotterConfig]:
        name = type(self).__name__
        if not self.plugin:
            raise pytest.UsageError(f"{name} has neither `plugin` nor a `load` of its own")
        plugin = snapshotters.find(self.plugin) if isinstance(self.plugin, str) else self.plugin
        section = plugin.config(**self.config)
        if problems := section.problems():
            raise pytest.UsageError(f"{name}.config: {'; '.join(problems)}")
        return plugin, section


def require(ability: Ability, declared: frozenset[Ability]) -> None:
    """Skip a check of what the driver does not declare to be able to do."""
    if ability not in declared:
        pytest.skip(f"the driver does not declare {ability}")


@functools.cache
def why_not_mount() -> str:
    """Return why this process cannot mount, having tried; "" if it can."""
    if os.geteuid() != 0:
        return "needs root: snapshots are mounted"
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        try:
            with temp_mount([Mount("tmpfs", "tmpfs")], dir=directory):
                return ""
        except LaminaError as error:
            return f"needs CAP_SYS_ADMIN: {error}"


def remove_all(engine: Engine) -> None:
    """Remove every snapshot, children before their parents, and free all storage."""
    left = {info.name: info.parent for info in engine.walk()}
    while left:
        for key in left.keys() - set(left.values()):
            engine.remove(key)
            del left[key]
    engine.cleanup()
