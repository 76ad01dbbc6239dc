"""What a snapshotter's package tells the rest of Lamina: its id, its configuration, how to load it.

Each package has `PLUGIN`, an instance of `SnapshotterPlugin`, in its module `plugin`. Third parties
name theirs in the entry point group `lamina.snapshotters`, as `their_module:PLUGIN`.

Nothing here, and nothing at the top of a `plugin` module, may import anything heavy: a list of all
snapshotters is printed without loading one of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, TypeVar

if TYPE_CHECKING:
    from lamina.core.driver import Driver

PLUGIN_TYPE = "io.containerd.snapshotter.v1"


@dataclass(frozen=True, slots=True, kw_only=True)
class SnapshotterConfig:
    """One `[plugins."io.containerd.snapshotter.v1.ID"]` section; the keys that all have.

    A field's name is its TOML key. Its type is `str`, `bool`, `int` or `tuple[str, ...]`, and it
    has containerd's default, so that a loader needs nothing but the dataclass itself. A section of
    no further keys is a plain class with empty `__slots__`, which takes less time to make.

    Attributes:
        root_path: where the snapshotter keeps its data; "" for its place below the root.
    """

    root_path: str = ""

    def problems(self) -> list[str]:
        """Return every fault that the types alone do not show, each as `KEY: what is wrong`."""
        return []

    def removes_synchronously(self) -> bool:
        """Whether `remove` returns only when the bytes are gone."""
        return False


ConfigT = TypeVar("ConfigT", bound=SnapshotterConfig)


def _loads_or_not(config: SnapshotterConfig, directory: Path) -> None:
    """Find nothing out beyond what `load` does."""


class Need(NamedTuple):
    """Something that a snapshotter needs of the machine, found out by trying it.

    Attributes:
        what: in a few words: `overlay mounts`.
        tried: what `probe` does, in the imperative: `mount an overlay with an upper directory`.
        probe: does it in an empty directory on the filesystem where the snapshotter keeps its
            data, and takes it back; returns None where it works, else the reason.
        fix: the command, or the setting, that would provide it.
        without: what the snapshotter lacks without it; "" where it does not work at all.
    """

    what: str
    tried: str
    probe: Callable[[Path], str | None]
    fix: str
    without: str = ""


class SnapshotterPlugin(NamedTuple, Generic[ConfigT]):
    """How to load one snapshotter.

    Attributes:
        id: containerd's plugin id, such as `overlayfs`.
        config: its configuration's class.
        load: makes the driver that keeps its storage below the directory given (which `load`
            creates). Raises SnapshotterSkipped where this machine cannot do it, LaminaError or
            OSError where something is wrong.
        probe: tries, in a directory on the same filesystem, what `load` only assumes, such as a
            mount. Raises as `load` does. Asked by `plugins ls`, not before each use.
        check: tries all that `load` tries, in such a directory after `probe`, and makes no driver:
            raises wherever `load` would. A list that shows no capabilities then imports no driver.
            None where only `load` can tell.
        needs: what `doctor` tells of, one by one.
        rank: where several snapshotters work, the highest rank is the best choice.
        merit: why one would choose it.
        in_place: its directory is something that only a user can make, such as a mount point, so
            `load` makes nothing there. To find out whether it works, it is loaded where it is.
    """

    id: str
    config: type[ConfigT]
    load: Callable[[ConfigT, Path], Driver]
    probe: Callable[[ConfigT, Path], None] = _loads_or_not
    needs: tuple[Need, ...] = ()
    rank: int = 0
    merit: str = ""
    in_place: bool = False
    check: Callable[[ConfigT, Path], None] | None = None

    @property
    def uri(self) -> str:
        """The name of its configuration section and of its directory below the root."""
        return f"{PLUGIN_TYPE}.{self.id}"

    def directory(self, config: ConfigT, root: Path) -> Path:
        """Return where it keeps its data, given Lamina's root."""
        return Path(config.root_path) if config.root_path else root / self.uri

    def exports(self, config: ConfigT, root: Path) -> Mapping[str, str]:
        """Return what `plugins ls -d` shows as its exports."""
        return {"root": str(self.directory(config, root))}


AnyPlugin = SnapshotterPlugin[Any]
