from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from lamina.linux.dm.thin import MAX_DEVICE_ID
from lamina.snapshotters.devmapper.devices import FIRST_DEVICE_ID, Device, Devices


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "devices.sqlite"


@pytest.fixture
def devices(path: Path) -> Iterator[Devices]:
    opened = Devices(path)
    yield opened
    opened.close()


def allocate(devices: Devices, snapshot: int | None = None) -> Device:
    return devices.allocate(snapshot, sectors=2048, filesystem="xfs")


def test_device_of_a_snapshot(devices: Devices, path: Path) -> None:
    device = allocate(devices, 7)
    devices.set_inherited(device.id, 128)
    again = Devices(path)
    assert again.of(7) == Device(device.id, 7, 2048, 128, "xfs")
    assert again.of(8) is None
    assert again.snapshots() == {7: device.id}
    again.close()


def test_numbers_are_given_out_once(devices: Devices) -> None:
    first = [allocate(devices).id for _ in range(3)]
    for id in first:
        devices.forget(id)
    second = [allocate(devices).id for _ in range(3)]
    assert first + second == list(range(FIRST_DEVICE_ID, FIRST_DEVICE_ID + 6))


def test_numbers_begin_again_past_those_in_use(devices: Devices, path: Path) -> None:
    used = allocate(devices, 1).id
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE counter SET next = ?", (MAX_DEVICE_ID,))
    connection.close()
    assert [allocate(devices).id for _ in range(2)] == [MAX_DEVICE_ID, used + 1]


def test_one_device_per_snapshot(devices: Devices) -> None:
    allocate(devices, 1)
    with pytest.raises(Exception, match="UNIQUE"):
        allocate(devices, 1)


def test_template(devices: Devices) -> None:
    first, second = allocate(devices), allocate(devices)
    assert devices.unowned() == [first, second]
    devices.set_template(first.id, "xfs 2048")
    assert devices.template("xfs 2048") == first
    assert devices.template("ext4 2048") is None
    devices.set_template(second.id, "ext4 2048")
    assert devices.template("xfs 2048") is None
    assert devices.unowned() == [first]
    devices.drop_template(second.id)
    assert devices.template("ext4 2048") is None


def test_exchange(devices: Devices) -> None:
    old, new = allocate(devices, 7), allocate(devices)
    devices.set_inherited(old.id, 128)
    devices.exchange(old._replace(inherited=128), new)
    assert devices.of(7) == new._replace(snapshot=7, inherited=128)
    assert [device.id for device in devices.unowned()] == [old.id]
    assert devices.numbers() == {old.id, new.id}


def test_suspended(devices: Devices) -> None:
    device = allocate(devices, 1)
    devices.set_suspended(device.id, "pool-snap-1")
    assert devices.suspended() == {device.id: "pool-snap-1"}
    devices.set_suspended(device.id, None)
    assert devices.suspended() == {}
    devices.flush()
