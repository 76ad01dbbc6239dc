"""What the plugins of drivers with lazy layers have in common: keys, and what has to be there."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lamina.core.units import parse_size
from lamina.errors import InvalidArgument
from lamina.snapshotters.erofs_support import EROFS_FILES, OVERLAY_MOUNTS, require
from lamina.snapshotters.lazy_access import Access
from lamina.snapshotters.plugin import Need, SnapshotterConfig
from lamina.snapshotters.trials import tried

if TYPE_CHECKING:
    from lamina.lazy.served import GateName
    from lamina.snapshotters.lazy_overlay import LazyArguments


@dataclass(frozen=True, slots=True, kw_only=True)
class LazyConfig(SnapshotterConfig):
    """The keys that all of them have.

    Attributes:
        gate: how missing bytes are asked for: `auto`, `fanotify`, `fuse`.
        config_path: a `certs.d` directory, with a `hosts.toml` for each registry.
        docker_config: a docker `config.json` with credentials.
        cache_budget: bytes of disk for the data of all lazy layers, such as `20GiB`; "" for no
            bound.
        fetching_timeout_sec: seconds that a reader waits for what is fetched, and then fails.
        noprefetch: fetch nothing at once, whatever an image's maker says.
        no_background_fetch: do not fetch the rest of layers in the background.
        mount_options: further options of every overlay mount.
    """

    gate: str = "auto"
    config_path: str = ""
    docker_config: str = ""
    cache_budget: str = ""
    fetching_timeout_sec: int = 60
    noprefetch: bool = False
    no_background_fetch: bool = False
    mount_options: tuple[str, ...] = ()

    def problems(self) -> list[str]:
        """Return what the types do not show."""
        found = []
        if self.gate not in self.gates():
            found.append(f"gate: {self.gate!r} is none of {', '.join(self.gates())}")
        if self.fetching_timeout_sec < 1:
            said = f"{self.fetching_timeout_sec} is no number of seconds above 0"
            found.append(f"fetching_timeout_sec: {said}")
        try:
            self.budget()
        except InvalidArgument as error:
            found.append(f"cache_budget: {error}")
        return found

    def gates(self) -> tuple[str, ...]:
        """Return what `gate` can be."""
        return ("auto", "fanotify", "fuse")

    def budget(self) -> int | None:
        """Return `cache_budget` in bytes.

        Raises:
            InvalidArgument: it is no size.
        """
        return parse_size(self.cache_budget) if self.cache_budget else None


def lazy_arguments(config: LazyConfig, root: Path) -> LazyArguments:
    """Return what the configuration makes a driver with."""
    from lamina.snapshotters import overlay_support
    from lamina.snapshotters.lazy_overlay import LazyArguments

    access = Access(
        config.config_path, config.docker_config, fetching_seconds=config.fetching_timeout_sec
    )
    return LazyArguments(
        gate=_gate(config),
        access=access,
        completes=not config.no_background_fetch,
        budget=config.budget(),
        abilities=overlay_support.abilities(slow_chown=False),
        mount_options=overlay_support.overlay_options(root, config.mount_options),
    )


def probe(id: str, config: LazyConfig, directory: Path) -> None:
    """Try what such a driver needs; see `SnapshotterPlugin.probe`."""
    from lamina.lazy.gates.choice import why_not

    gate = _gate(config)
    for need in NEEDS:
        if need is _WAITING and gate is not None:
            require(id, need, why_not(gate, directory), fix='set gate = "auto"')
        else:
            require(id, need, need.probe(directory))


def _gate(config: LazyConfig) -> GateName | None:
    match config.gate:
        case "fanotify" | "fuse" | "nbd":
            return config.gate
        case _:
            return None


def shown_by_fuse(directory: Path) -> str | None:
    """Return why FUSE does not show files; None where it does."""
    from lamina.linux import probes

    return tried(probes.fuse, directory)


def _waiting(directory: Path) -> str | None:
    if shown_by_fuse(directory) is None:
        return None
    from lamina.lazy.gates.choice import why_none

    return why_none(directory)


_WAITING = Need(
    what="reads that wait for what is fetched",
    tried="open a file behind FUSE, or else read one behind fanotify",
    probe=_waiting,
    fix="boot Linux 6.14 or newer, or modprobe fuse; run as root",
)
NEEDS = (OVERLAY_MOUNTS, EROFS_FILES, _WAITING)
