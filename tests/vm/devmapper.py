"""The devmapper snapshotter on a test's pool, and what the pool's own tools say of its devices."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable
from pathlib import Path

from lamina.core.mount import Mount
from lamina.core.snapshot import Kind
from lamina.mount import temp_mount
from lamina.snapshotters.devmapper.config import DevmapperConfig
from lamina.snapshotters.devmapper.devices import FIRST_DEVICE_ID, RANGE, Devices
from lamina.snapshotters.devmapper.driver import DevmapperDriver
from lamina.snapshotters.devmapper.plugin import PLUGIN
from lamina.snapshotters.engine import Engine
from tests.fixtures_thin_pool import ThinPool
from tests.isolation import device_names

NAME = "name"
SIZE = "64MiB"


def load(
    pool: ThinPool, root: Path, *, size: str = SIZE, filesystem: str = "ext4"
) -> DevmapperDriver:
    """Return the driver on a pool."""
    config = DevmapperConfig(pool_name=pool.name, base_image_size=size, fs_type=filesystem)
    driver = PLUGIN.load(config, root)
    assert isinstance(driver, DevmapperDriver)
    return driver


def open_engine(pool: ThinPool, root: Path, *, boot: str = "", size: str = SIZE) -> Engine:
    """Return the snapshotter on a pool; it frees at once what is removed."""
    return Engine("devmapper", load(pool, root, size=size), root, sync_remove=True, boot=boot)


def fill(mounts: list[Mount], work: Path, name: str) -> None:
    """Write a layer's name into it, and make sure that it is there."""
    with temp_mount(mounts, dir=work) as root:
        (root / NAME).write_text(name)


def commit(engine: Engine, work: Path, name: str, parent: str = "") -> None:
    """Make a layer of that name, which has it in a file."""
    fill(engine.prepare(f"key {name}", parent), work, name)
    engine.commit(name, f"key {name}")


def check_layers(engine: Engine, work: Path) -> None:
    """See whether every layer has what belongs into it."""
    for info in list(engine.walk(["kind==committed"])):
        key = f"check {info.name}"
        with temp_mount(engine.view(key, info.name), dir=work) as root:
            assert {path.name: path.read_text() for path in root.iterdir()} == {NAME: info.name}
        engine.remove(key)


def remove_all(engine: Engine) -> None:
    """Remove every snapshot, and free what it had."""
    while infos := list(engine.walk()):
        parents = {info.parent for info in infos}
        for info in infos:
            if info.name not in parents:
                engine.remove(info.name)
    engine.cleanup()


def kinds(engine: Engine) -> dict[str, Kind]:
    """Return the kind of each snapshot by its key."""
    return {info.name: info.kind for info in engine.walk()}


def thin_ids(pool: ThinPool) -> set[int]:
    """Return the numbers of the pool's devices but for leases, as thin_dump finds them."""
    return {id for id in all_thin_ids(pool) if not is_lease(id)}


def lease_ids(pool: ThinPool) -> set[int]:
    """Return the numbers of the devices that are leases."""
    return {id for id in all_thin_ids(pool) if is_lease(id)}


def is_lease(id: int) -> bool:
    """Tell whether a number is the first of a range."""
    return id >= FIRST_DEVICE_ID and id % RANGE == 0


def range_of(engine: Engine) -> int:
    """Return where the snapshotter's only range begins."""
    (start,) = devices_of(engine).ranges()
    return start


def devices_of(engine: Engine) -> Devices:
    """Return the rows of the snapshotter's devices."""
    driver = engine._driver
    assert isinstance(driver, DevmapperDriver)
    return driver._volumes.devices


def all_thin_ids(pool: ThinPool) -> set[int]:
    """Return the numbers of all the pool's devices."""
    dmsetup("message", pool.name, "0", "reserve_metadata_snap")
    try:
        argv = ("thin_dump", "--metadata-snap", "--skip-mappings", pool.metadata)
        dump = subprocess.run(argv, check=True, capture_output=True, text=True).stdout
    finally:
        dmsetup("message", pool.name, "0", "release_metadata_snap")
    return {int(id) for id in re.findall(r'<device dev_id="(\d+)"', dump)}


def active_devices(pool: ThinPool) -> set[str]:
    """Return what is active on the pool, without the pool's name."""
    prefix = f"{pool.name}-"
    return {name.removeprefix(prefix) for name in device_names() if name.startswith(prefix)}


def dmsetup(*words: str) -> str:
    """Run dmsetup."""
    done = subprocess.run(("dmsetup", *words), check=True, capture_output=True, text=True)
    return done.stdout.strip()


Action = Callable[[Engine, Path], None]
