"""The stargz snapshotter's configuration, with the names that stargz-snapshotter's keys have."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lamina.core.units import parse_size
from lamina.errors import InvalidArgument
from lamina.snapshotters.erofs_support import (
    EROFS_MOUNTS,
    OVERLAY_MOUNTS,
    check,
    loaded,
    require,
)
from lamina.snapshotters.plugin import Need, SnapshotterConfig, SnapshotterPlugin

if TYPE_CHECKING:
    from lamina.core.driver import Driver
    from lamina.lazy.served import GateName
    from lamina.snapshotters.stargz.driver import StargzDriver

ID = "stargz"
_GATES = ("auto", "fanotify", "fuse")


@dataclass(frozen=True, slots=True, kw_only=True)
class StargzConfig(SnapshotterConfig):
    """`[plugins."io.containerd.snapshotter.v1.stargz"]`.

    Attributes:
        gate: how missing bytes are asked for: `auto`, `fanotify`, `fuse` (Lamina's own key).
        config_path: a `certs.d` directory, with a `hosts.toml` for each registry.
        docker_config: a docker `config.json` with credentials (Lamina's own key).
        fetching_timeout_sec: seconds that a reader waits for what is fetched, and then fails.
        allow_no_verification: believe layers that whoever pulls says need no verification.
        disable_verification: verify nothing.
        cache_budget: bytes of disk for the data of all lazy layers, such as `20GiB`; "" for no
            bound (Lamina's own key).
        noprefetch: fetch nothing at once, whatever a layer's landmark says.
        prefetch_size: bytes of the start of a layer without landmark that are fetched at once.
        no_background_fetch: do not fetch the rest of layers in the background.
        mount_options: further options of every overlay mount (Lamina's own key).
    """

    gate: str = "auto"
    config_path: str = ""
    docker_config: str = ""
    cache_budget: str = ""
    fetching_timeout_sec: int = 60
    allow_no_verification: bool = False
    disable_verification: bool = False
    noprefetch: bool = False
    prefetch_size: int = 0
    no_background_fetch: bool = False
    mount_options: tuple[str, ...] = ()

    def problems(self) -> list[str]:
        """Return what the types do not show."""
        found = []
        if self.gate not in _GATES:
            found.append(f"gate: {self.gate!r} is none of {', '.join(_GATES)}")
        if self.prefetch_size < 0:
            found.append(f"prefetch_size: {self.prefetch_size} is no number of bytes")
        if self.fetching_timeout_sec < 1:
            said = f"{self.fetching_timeout_sec} is no number of seconds above 0"
            found.append(f"fetching_timeout_sec: {said}")
        try:
            self.budget()
        except InvalidArgument as error:
            found.append(f"cache_budget: {error}")
        return found

    def budget(self) -> int | None:
        """Return `cache_budget` in bytes.

        Raises:
            InvalidArgument: it is no size.
        """
        return parse_size(self.cache_budget) if self.cache_budget else None


def _load(config: StargzConfig, root: Path) -> Driver:
    return loaded(ID, root, lambda: _driver(config, root))


def _driver(config: StargzConfig, root: Path) -> StargzDriver:
    from lamina.snapshotters import overlay_support
    from lamina.snapshotters.lazy_access import Access
    from lamina.snapshotters.stargz.driver import StargzDriver
    from lamina.snapshotters.stargz.origin import Verification
    from lamina.snapshotters.stargz.prefetch import Prefetching

    return StargzDriver(
        root,
        gate=_gate(config),
        access=Access(
            config.config_path,
            config.docker_config,
            fetching_seconds=config.fetching_timeout_sec,
        ),
        verification=Verification(config.disable_verification, config.allow_no_verification),
        completes=not config.no_background_fetch,
        budget=config.budget(),
        prefetching=Prefetching(config.noprefetch, config.prefetch_size),
        abilities=overlay_support.abilities(slow_chown=False),
        mount_options=overlay_support.overlay_options(root, config.mount_options),
    )


def _check(config: StargzConfig, directory: Path) -> None:
    check(ID, directory)


def _gate(config: StargzConfig) -> GateName | None:
    match config.gate:
        case "fanotify" | "fuse":
            return config.gate
        case _:
            return None


def _waiting(directory: Path) -> str | None:
    from lamina.lazy.gates.choice import why_none

    return why_none(directory)


def _probe(config: StargzConfig, directory: Path) -> None:
    from lamina.lazy.gates.choice import why_not

    gate = _gate(config)
    for need in NEEDS:
        if need is _WAITING and gate is not None:
            require(ID, need, why_not(gate, directory), fix='set gate = "auto"')
        else:
            require(ID, need, need.probe(directory))


_WAITING = Need(
    what="reads that wait for what is fetched",
    tried="open a file behind FUSE, or else read one behind fanotify",
    probe=_waiting,
    fix="boot Linux 6.14 or newer, or modprobe fuse; run as root",
)
NEEDS = (OVERLAY_MOUNTS, EROFS_MOUNTS, _WAITING)

PLUGIN = SnapshotterPlugin(
    id=ID,
    config=StargzConfig,
    load=_load,
    probe=_probe,
    check=_check,
    needs=NEEDS,
    rank=20,
    merit="images in eStargz or zstd:chunked run before they are fetched; others are unpacked",
)
