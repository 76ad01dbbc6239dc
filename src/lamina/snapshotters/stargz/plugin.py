"""The stargz snapshotter's configuration, with the names that stargz-snapshotter's keys have."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lamina.snapshotters.erofs_support import check, loaded
from lamina.snapshotters.lazy_plugin import NEEDS, LazyConfig, lazy_arguments, probe
from lamina.snapshotters.plugin import SnapshotterPlugin

if TYPE_CHECKING:
    from lamina.core.driver import Driver
    from lamina.snapshotters.stargz.driver import StargzDriver

ID = "stargz"


@dataclass(frozen=True, slots=True, kw_only=True)
class StargzConfig(LazyConfig):
    """`[plugins."io.containerd.snapshotter.v1.stargz"]`.

    Attributes:
        allow_no_verification: believe layers that whoever pulls says need no verification.
        disable_verification: verify nothing.
        prefetch_size: bytes of the start of a layer without landmark that are fetched at once.
    """

    allow_no_verification: bool = False
    disable_verification: bool = False
    prefetch_size: int = 0

    def problems(self) -> list[str]:
        """Return what the types do not show."""
        found = LazyConfig.problems(self)  # with slots, super() means another class
        if self.prefetch_size < 0:
            found.append(f"prefetch_size: {self.prefetch_size} is no number of bytes")
        return found


def _load(config: StargzConfig, root: Path) -> Driver:
    return loaded(ID, root, lambda: _driver(config, root))


def _driver(config: StargzConfig, root: Path) -> StargzDriver:
    from lamina.snapshotters.stargz.driver import StargzDriver
    from lamina.snapshotters.stargz.origin import Verification
    from lamina.snapshotters.stargz.prefetch import Prefetching

    return StargzDriver(
        root,
        verification=Verification(config.disable_verification, config.allow_no_verification),
        prefetching=Prefetching(config.noprefetch, config.prefetch_size),
        **lazy_arguments(config, root),
    )


def _check(config: StargzConfig, directory: Path) -> None:
    check(ID, directory)


def _probe(config: StargzConfig, directory: Path) -> None:
    probe(ID, config, directory)


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
