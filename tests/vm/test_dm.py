"""Device-mapper's ioctls on a real kernel, compared with what dmsetup says."""

from __future__ import annotations

import errno
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from lamina.linux.dm import SECTOR, DeviceMapper, Target, node, thin
from lamina.linux.dm.thin import PoolMode, ThinStatus
from tests.fixtures_thin_pool import BLOCK_SECTORS, DATA_BYTES, ThinPool, device_name
from tests.isolation import remove_devices

pytestmark = [pytest.mark.dm, pytest.mark.root]

MIB = 1 << 20
SECTORS = 16 * MIB // SECTOR
ZERO = [Target(0, 100, "zero", ""), Target(100, 28, "error", "")]


@pytest.fixture
def dm() -> Iterator[DeviceMapper]:
    with DeviceMapper() as opened:
        yield opened


@pytest.fixture
def name() -> Iterator[str]:
    """A name for a device, which is removed after the test."""
    made = device_name("dm")
    yield made
    remove_devices(made.__eq__)


def dmsetup(*words: str) -> str:
    done = subprocess.run(("dmsetup", *words), check=True, capture_output=True, text=True)
    return done.stdout.strip()


def test_version(dm: DeviceMapper) -> None:
    major, minor, patch = dm.version()
    assert f"{major}.{minor}.{patch}" in dmsetup("version")
    assert major == 4


def test_targets(dm: DeviceMapper) -> None:
    major, minor, patch = dm.targets()["thin-pool"]
    assert f"v{major}.{minor}.{patch}" in dmsetup("targets")


def test_devices_come_and_go(dm: DeviceMapper, name: str) -> None:
    assert name not in [listed.name for listed in dm.devices()]
    info = dm.create(name)
    assert (name, info.number) in dm.devices()
    assert dm.remove(name)
    assert name not in [listed.name for listed in dm.devices()]
    assert dm.find(name) is None


def test_list_of_devices_that_needs_more_room(dm: DeviceMapper, name: str) -> None:
    prefix = f"{name}-{'x' * 80}-"
    names = [f"{prefix}{number}" for number in range(150)]
    try:
        for each in names:
            dm.create(each)
        assert {listed.name for listed in dm.devices()} >= set(names)
    finally:
        for each in names:
            dm.remove(each)


def test_table_takes_effect_with_resume(dm: DeviceMapper, name: str) -> None:
    assert not dm.create(name, uuid=f"LAMINA-{name}").live
    dm.load(name, ZERO)
    loaded = dm.info(name)
    assert (loaded.live, loaded.has_inactive_table) == (False, True)
    assert dm.table(name) == []
    assert not node(name).exists()

    info = dm.resume(name)
    assert (info.live, info.has_inactive_table, info.suspended) == (True, False, False)
    assert info.uuid == f"LAMINA-{name}"
    assert info.target_count == 2
    assert node(name).stat().st_rdev == info.number
    assert dm.table(name) == ZERO
    assert dm.status(name) == ZERO
    assert dmsetup("table", name) == "0 100 zero \n100 28 error"
    with node(name).open("rb", buffering=0) as file:
        assert file.read(64 * SECTOR) == bytes(64 * SECTOR)


def test_cleared_table_is_never_in_effect(dm: DeviceMapper, name: str) -> None:
    dm.activate(name, ZERO)
    dm.load(name, [Target(0, 8, "error", "")])
    dm.clear(name)
    assert not dm.info(name).has_inactive_table
    dm.resume(name)
    assert dm.table(name) == ZERO


def test_suspended_device_resumes(dm: DeviceMapper, name: str) -> None:
    dm.activate(name, ZERO)
    dm.suspend(name)
    assert dm.info(name).suspended
    dm.suspend(name, flush=False, freeze=False)  # a second time is no error
    assert not dm.resume(name).suspended
    assert not dm.resume(name).suspended


def test_read_only_device(dm: DeviceMapper, name: str) -> None:
    assert dm.activate(name, ZERO, read_only=True).read_only
    argv = ("blockdev", "--getro", node(name))
    assert subprocess.run(argv, check=True, capture_output=True).stdout == b"1\n"


def test_device_in_use(dm: DeviceMapper, name: str) -> None:
    dm.activate(name, ZERO)
    with node(name).open("rb"):
        assert dm.info(name).open_count == 1
        with pytest.raises(OSError, match=f"device-mapper: remove: .*busy.*{name}") as failure:
            dm.remove(name)
        assert failure.value.errno == errno.EBUSY
        assert not dm.remove(name, deferred=True)
        assert dm.info(name).goes_when_closed
        assert not node(name).exists()
    deadline = time.monotonic() + 5
    while dm.find(name) is not None:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_deferred_removal_of_an_unused_device_is_at_once(dm: DeviceMapper, name: str) -> None:
    dm.activate(name, ZERO)
    assert dm.remove(name, deferred=True)
    assert not node(name).exists()


def test_name_that_is_taken(dm: DeviceMapper, name: str) -> None:
    dm.create(name)
    with pytest.raises(OSError, match="create") as failure:
        dm.create(name)
    assert failure.value.errno == errno.EBUSY


@pytest.mark.parametrize("call", ["info", "remove", "table", "suspend", "resume", "dependencies"])
def test_device_that_is_not_there(dm: DeviceMapper, name: str, call: str) -> None:
    with pytest.raises(OSError, match=name) as failure:
        getattr(dm, call)(name)
    assert failure.value.errno == errno.ENXIO


def test_activation_that_fails_leaves_nothing(dm: DeviceMapper, name: str) -> None:
    with pytest.raises(OSError, match="load table") as failure:
        dm.activate(name, [Target(0, 8, "linear", "no arguments")])
    assert failure.value.errno == errno.EINVAL
    assert dm.find(name) is None


def test_stale_node_is_replaced(dm: DeviceMapper, name: str) -> None:
    os.mknod(node(name), 0o600 | 0o060000, os.makedev(7, 0))
    info = dm.activate(name, ZERO)
    assert node(name).stat().st_rdev == info.number
    assert [path for path in node(name).parent.iterdir() if path.name.startswith(".")] == []


def test_nodes_are_those_of_dmsetup(dm: DeviceMapper, name: str) -> None:
    dm.activate(name, ZERO)
    before = node(name).stat()
    dmsetup("mknodes", name)
    assert node(name).stat().st_ino == before.st_ino


def test_dependencies(dm: DeviceMapper, thin_pool: ThinPool) -> None:
    numbers = [os.stat(thin_pool.data).st_rdev, os.stat(thin_pool.metadata).st_rdev]
    assert sorted(dm.dependencies(thin_pool.name)) == sorted(numbers)


def test_message_with_an_answer(dm: DeviceMapper, name: str) -> None:
    dm.activate(name, ZERO)
    region = dm.message(name, "@stats_create - /1")
    assert dm.message(name, "@stats_list").startswith(f"{region}: 0+128 128")


def test_message_that_nobody_knows(dm: DeviceMapper, thin_pool: ThinPool) -> None:
    with pytest.raises(OSError, match="message 'frobnicate'") as failure:
        dm.message(thin_pool.name, "frobnicate")
    assert failure.value.errno == errno.EINVAL


def activate_thin(dm: DeviceMapper, pool: ThinPool, device_id: int) -> str:
    name = f"{pool.name}-snap-{device_id}"
    target = thin.thin_target(pool=dm.info(pool.name).number, device_id=device_id, sectors=SECTORS)
    dm.activate(name, [target])
    return name


def test_thin_device_and_its_snapshot(dm: DeviceMapper, thin_pool: ThinPool) -> None:
    thin.create_thin(dm, thin_pool.name, 1)
    origin = activate_thin(dm, thin_pool, 1)
    assert thin.thin_status(dm, origin) == ThinStatus(0, None)
    with node(origin).open("r+b") as file:
        file.write(b"a" * MIB)
        os.fsync(file.fileno())
    assert thin.thin_status(dm, origin) == ThinStatus(MIB // SECTOR, MIB // SECTOR - 1)

    dm.suspend(origin)
    thin.create_snap(dm, thin_pool.name, 2, 1)
    dm.resume(origin)
    with node(origin).open("r+b") as file:
        file.write(b"b" * MIB)
        os.fsync(file.fileno())
    snapshot = activate_thin(dm, thin_pool, 2)
    assert node(snapshot).read_bytes()[:MIB] == b"a" * MIB
    assert node(origin).read_bytes()[:MIB] == b"b" * MIB
    status = thin.pool_status(dm, thin_pool.name)
    assert status.used_data == 2 * MIB // SECTOR // BLOCK_SECTORS


def test_thin_devices_are_deleted(dm: DeviceMapper, thin_pool: ThinPool) -> None:
    pool = thin_pool.name
    thin.create_thin(dm, pool, 1)
    name = activate_thin(dm, thin_pool, 1)
    with pytest.raises(OSError) as failure:
        thin.delete(dm, pool, 1)
    assert failure.value.errno == errno.EBUSY
    dm.remove(name)
    thin.delete(dm, pool, 1)
    with pytest.raises(OSError) as failure:
        thin.delete(dm, pool, 1)
    assert failure.value.errno == errno.ENODATA
    with pytest.raises(OSError) as failure:
        thin.create_snap(dm, pool, 2, 1)
    assert failure.value.errno == errno.ENODATA


def test_number_that_is_taken(dm: DeviceMapper, thin_pool: ThinPool) -> None:
    thin.create_thin(dm, thin_pool.name, thin.MAX_DEVICE_ID)
    with pytest.raises(FileExistsError):
        thin.create_thin(dm, thin_pool.name, thin.MAX_DEVICE_ID)
    with pytest.raises(OSError) as failure:
        thin.create_thin(dm, thin_pool.name, thin.MAX_DEVICE_ID + 1)
    assert failure.value.errno == errno.EINVAL


def test_transaction_id(dm: DeviceMapper, thin_pool: ThinPool) -> None:
    thin.set_transaction_id(dm, thin_pool.name, current=0, new=7)
    assert thin.pool_status(dm, thin_pool.name).transaction_id == 7
    with pytest.raises(OSError) as failure:
        thin.set_transaction_id(dm, thin_pool.name, current=0, new=8)
    assert failure.value.errno == errno.EINVAL


def test_status_of_a_pool(dm: DeviceMapper, thin_pool: ThinPool) -> None:
    status = thin.pool_status(dm, thin_pool.name)
    assert status.mode is PoolMode.READ_WRITE
    assert status.total_data == DATA_BYTES // SECTOR // BLOCK_SECTORS
    assert 0 < status.used_metadata < status.total_metadata == 4 * MIB // thin.METADATA_BLOCK
    assert not (status.used_data or status.needs_check or status.fails_when_full)
    assert thin.pool_status(dm, thin_pool.name, flush=False) == status
    dm.message(thin_pool.name, "reserve_metadata_snap")
    assert thin.pool_status(dm, thin_pool.name).held_root is not None


def test_pool_of_ones_own_that_fills_up(
    dm: DeviceMapper, name: str, tmp_path: Path, thin_pool: ThinPool
) -> None:
    """The pool lies on devices of another, which is as good as any for what it is made for."""
    for number in (1, 2):
        thin.create_thin(dm, thin_pool.name, number)
        activate_thin(dm, thin_pool, number)
    target = thin.pool_target(
        sectors=2 * MIB // SECTOR,
        metadata=str(node(f"{thin_pool.name}-snap-1")),
        data=str(node(f"{thin_pool.name}-snap-2")),
        block_sectors=BLOCK_SECTORS,
        low_water=1,
        features=("skip_block_zeroing", "error_if_no_space"),
    )
    pool = dm.activate(name, [target])
    thin.create_thin(dm, name, 1)
    device = f"{thin_pool.name}-inner"
    dm.activate(device, [thin.thin_target(pool=pool.number, device_id=1, sectors=SECTORS)])
    with pytest.raises(OSError), node(device).open("r+b") as file:
        file.write(b"x" * (4 * MIB))
        os.fsync(file.fileno())
    status = thin.pool_status(dm, name)
    assert status.mode is PoolMode.OUT_OF_DATA_SPACE
    assert status.used_data == status.total_data == 32
    assert status.fails_when_full
    dm.remove(device)
    dm.remove(name)
