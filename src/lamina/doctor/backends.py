"""Tries every snapshotter, and each thing that it needs."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from lamina import plugins, snapshotters
from lamina.errors import LaminaError, SnapshotterSkipped
from lamina.plugins import PluginStatus
from lamina.snapshotters.trials import shared

if TYPE_CHECKING:
    from lamina.config import Config
    from lamina.snapshotters.plugin import AnyPlugin, Need


class Trial(NamedTuple):
    """One need of a snapshotter, and why it is not met; "" where it is."""

    need: Need
    reason: str = ""


class Backend(NamedTuple):
    """What was found of one snapshotter.

    Attributes:
        status: as `plugins ls` shows it: its driver was loaded on this filesystem, and taken back.
        trials: what it needs, each tried.
        rank: how good a choice it is where it works.
        merit: why.
    """

    status: PluginStatus
    trials: tuple[Trial, ...] = ()
    rank: int = 0
    merit: str = ""

    @property
    def reason(self) -> str:
        """Why it does not work; "" where it does."""
        error = self.status.error
        if isinstance(error, SnapshotterSkipped):
            return error.reason
        return str(error).removesuffix(f"; {error.hint}") if error else ""

    @property
    def fix(self) -> str:
        """What would make it work."""
        return self.status.error.hint if self.status.error else ""


def examine_backends(root: Path, config: Config) -> list[Backend]:
    """Try all snapshotters where they would keep their data; nothing is left behind."""
    with shared():
        return [_examine(status, root, config) for status in plugins.plugins(root, config)]


def best_of(backends: Iterable[Backend]) -> Backend | None:
    """Return the best choice of those that work here; None where none does."""
    usable = [backend for backend in backends if backend.status.status == "ok"]
    return max(usable, key=lambda backend: backend.rank, default=None)


def _examine(status: PluginStatus, root: Path, config: Config) -> Backend:
    try:
        plugin = snapshotters.find(status.id)
        directory = plugin.directory(config.snapshotter(plugin), root)
    except LaminaError:
        return Backend(status)  # not there, disabled or ill configured, as its status says
    return Backend(status, _trials(plugin, directory), plugin.rank, plugin.merit)


def _trials(plugin: AnyPlugin, directory: Path) -> tuple[Trial, ...]:
    if not plugin.needs:
        return ()
    try:
        with plugins.probe_directory(directory) as place:
            return tuple(Trial(need, _reason(need, place)) for need in plugin.needs)
    except OSError as error:
        reason = f"{error.filename or directory}: {error.strerror}"
        return tuple(Trial(need, reason) for need in plugin.needs)


def _reason(need: Need, place: Path) -> str:
    try:
        return need.probe(place) or ""
    except (LaminaError, OSError) as error:
        return str(error)
