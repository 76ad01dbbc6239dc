"""Which snapshotters there are, whether they work on this machine, and how to get one.

The twelve that containerd's world knows are always listed; third parties add theirs through the
entry point group `lamina.snapshotters`. Whether one works is found out by doing what its driver
would do when it is loaded, or by loading it.
"""

from __future__ import annotations

import fcntl
import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Literal, NamedTuple

from lamina import snapshotters
from lamina.errors import FailedPrecondition, LaminaError, SnapshotterSkipped
from lamina.snapshotters.plugin import PLUGIN_TYPE, AnyPlugin, SnapshotterConfig
from lamina.snapshotters.trials import shared

if TYPE_CHECKING:
    from lamina.config import Config
    from lamina.snapshotters.engine import Engine

log = logging.getLogger(__name__)

CONTAINERD_DATABASE = "metadata.db"
"""The file by which a directory is seen to hold the snapshots of containerd itself."""
PROBE_PREFIX = ".lamina-probe-"
"""Begins the names of directories in which drivers are tried."""
PROBE_START_SECONDS = 1.0
"""After which such a directory is locked by its process, if that lives."""
NOTHING: Mapping[str, str] = MappingProxyType({})
_Attempt = Callable[[AnyPlugin, SnapshotterConfig, Path], tuple[str, ...]]
# Go's names of what the kernel calls otherwise.
_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64", "armv7l": "arm/v7", "i686": "386"}


class PluginStatus(NamedTuple):
    """What `plugins ls` shows of one snapshotter.

    Attributes:
        id: its name.
        status: `ok`; `skip` where the machine or the configuration rules it out; `error` where
            something is wrong.
        platforms: `os/arch` for which it makes snapshots.
        exports: what it tells others, such as its `root`.
        capabilities: containerd's capability strings, sorted; none where nobody has asked for them.
        error: why it is not `ok`.
    """

    id: str
    status: Literal["ok", "skip", "error"]
    platforms: tuple[str, ...] = ()
    exports: Mapping[str, str] = NOTHING
    capabilities: tuple[str, ...] = ()
    error: LaminaError | None = None
    type: str = PLUGIN_TYPE


def known() -> list[str]:
    """Return the name of every snapshotter: Lamina's own, then those of installed third parties."""
    own = sorted(snapshotters.DRIVERS)
    return [*own, *(name for name in snapshotters.third_party() if name not in own)]


def directory_of(name: str, root: Path, config: Config) -> Path:
    """Return where the snapshotter of that name keeps its data, whether it is there yet or not.

    Raises:
        NotFound, SnapshotterSkipped, ConfigError: as `load`.
    """
    plugin = snapshotters.find(name)
    return plugin.directory(config.snapshotter(plugin), root)


def load(
    name: str, root: Path, config: Config, *, wake: Callable[[], None] | None = None
) -> Engine:
    """Return the snapshotter of that name, ready for use; it keeps its data below `root`.

    Args:
        name: containerd's id of it.
        root: Lamina's root directory.
        config: what its section may say.
        wake: called after whatever leaves work for the background.

    Raises:
        NotFound: there is no snapshotter of that name.
        SnapshotterSkipped: it cannot work here; says why and what helps.
        ConfigError: its section of the configuration is wrong.
        FailedPrecondition: its directory is one of containerd's.
    """
    from lamina.snapshotters.engine import Engine

    plugin = snapshotters.find(name)
    section = config.snapshotter(plugin)
    place = plugin.directory(section, root)
    _refuse_containerds(place)
    driver = plugin.load(section, place)
    synchronously = section.removes_synchronously()
    return Engine(name, driver, place, sync_remove=synchronously, wake=wake)


def plugins(root: Path, config: Config, *, capabilities: bool = True) -> list[PluginStatus]:
    """Return the status of every snapshotter, given where it would keep its data.

    Each is tried in a temporary directory on the filesystem where it would keep its data, so that
    nothing is left behind and nothing there is touched. What several of them need is tried once.

    Args:
        root: Lamina's root directory.
        config: what their sections may say.
        capabilities: tell these too, which drivers have to be imported for.
    """
    attempt = _loaded if capabilities else _checked
    with shared():
        return [_status(name, root, config, attempt) for name in known()]


def _status(name: str, root: Path, config: Config, attempt: _Attempt) -> PluginStatus:
    exports = NOTHING
    try:
        plugin = snapshotters.find(name)
        section = config.snapshotter(plugin)
        exports = plugin.exports(section, root)
        capabilities = _try(plugin, section, plugin.directory(section, root), attempt)
    except SnapshotterSkipped as skipped:
        return PluginStatus(name, "skip", _platforms(), exports, error=skipped)
    except LaminaError as error:
        return PluginStatus(name, "error", _platforms(), exports, error=error)
    except OSError as error:
        return PluginStatus(name, "error", _platforms(), exports, error=_described(name, error))
    return PluginStatus(name, "ok", _platforms(), exports, capabilities)


def _described(name: str, error: OSError) -> LaminaError:
    what = f"load snapshotter {name}: {error.filename or 'its directory'}: {error.strerror}"
    hint = "run as root, or name a directory of yours with --root"
    return LaminaError(what, hint=hint if isinstance(error, PermissionError) else "")


def _try(
    plugin: AnyPlugin, section: SnapshotterConfig, directory: Path, attempt: _Attempt
) -> tuple[str, ...]:
    _refuse_containerds(directory)
    with probe_directory(directory) as place:
        plugin.probe(section, place)
        return attempt(plugin, section, directory if plugin.in_place else place)


def _loaded(plugin: AnyPlugin, section: SnapshotterConfig, directory: Path) -> tuple[str, ...]:
    """Load the driver, and return its capabilities."""
    driver = plugin.load(section, directory)
    try:
        return tuple(sorted(driver.abilities))
    finally:
        driver.close()


def _checked(plugin: AnyPlugin, section: SnapshotterConfig, directory: Path) -> tuple[str, ...]:
    """Try what loading the driver would, or load it where that is no other thing."""
    if plugin.check is None:
        return _loaded(plugin, section, directory)
    plugin.check(section, directory)
    return ()


def abandoned_probes(root: Path) -> list[Path]:
    """Return the directories near `root` in which processes that have died tried drivers."""
    nearest = _nearest(root)
    places = (nearest, *nearest.glob(f"{PLUGIN_TYPE}.*"))
    return [path for place in places for path in _probes_in(place) if not _is_locked(path)]


def remove_probe(path: Path) -> None:
    """Remove a directory in which a driver was tried, unless it is being tried.

    Raises:
        LaminaError: something there cannot be unmounted.
        OSError: something cannot be removed.
    """
    if path.name.startswith(PROBE_PREFIX) and path.is_dir() and not _is_locked(path):
        _clear(path)


@contextmanager
def probe_directory(directory: Path) -> Iterator[Path]:
    """Make a directory where `directory` is or, while it does not exist, as near as can be.

    It is locked meanwhile, by which it is told from those that killed processes have left; these
    are removed.
    """
    nearest = _nearest(directory)
    for path in _probes_in(nearest):
        _sweep(path)
    place = nearest / f"{PROBE_PREFIX}{os.getpid()}-{os.urandom(4).hex()}"
    place.mkdir(mode=0o700)
    fd = os.open(place, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield place
    finally:
        try:
            _clear(place)
        finally:
            os.close(fd)


def _nearest(directory: Path) -> Path:
    return next(path for path in (directory, *directory.parents) if path.is_dir())


def _probes_in(directory: Path) -> list[Path]:
    try:
        with os.scandir(directory) as entries:
            return [Path(entry.path) for entry in entries if entry.name.startswith(PROBE_PREFIX)]
    except OSError:
        return []  # who may not look there cannot tidy up either


def _is_locked(path: Path) -> bool:
    """Tell whether a living process is at work there; one that has just made it counts as one."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return True
    try:
        if time.time() - os.fstat(fd).st_ctime < PROBE_START_SECONDS:
            return True
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False


def _sweep(path: Path) -> None:
    try:
        remove_probe(path)
    except (LaminaError, OSError) as error:
        log.warning("cannot remove what a killed process has left in %s: %s", path, error)


def _clear(path: Path) -> None:
    from lamina.snapshotters.tree import remove_tree

    try:
        remove_tree(path)
    except FailedPrecondition:  # a mount is there
        from lamina.mount import unmount_recursive  # only after a kill in the middle of one

        unmount_recursive(path)
        remove_tree(path)


def _refuse_containerds(directory: Path) -> None:
    """Raise FailedPrecondition for a directory in which containerd itself keeps snapshots.

    To Lamina they would be storage that no snapshot owns, which `cleanup` deletes.
    """
    if (directory / CONTAINERD_DATABASE).exists():
        raise FailedPrecondition(
            "use directory",
            directory,
            hint="containerd keeps its snapshots there;"
            " name another with --root or the key root_path",
        )


def _platforms() -> tuple[str, ...]:
    machine = os.uname().machine
    return (f"linux/{_ARCHITECTURES.get(machine, machine)}",)
