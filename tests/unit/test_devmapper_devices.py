from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from lamina.snapshotters.devmapper.devices import FIRST_DEVICE_ID, RANGE, Device, Devices


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "devices.sqlite"


@pytest.fixture
def devices(path: Path) -> Iterator[Devices]:
    opened = Devices(path)
    opened.begin_range(START)
    opened.end_range(START)
    yield opened
    opened.close()


START = FIRST_DEVICE_ID + 3 * RANGE
V1 = """
CREATE TABLE devices (device INTEGER PRIMARY KEY, snapshot INTEGER UNIQUE, template TEXT UNIQUE,
    sectors INTEGER NOT NULL, inherited INTEGER NOT NULL DEFAULT 0, filesystem TEXT NOT NULL,
    suspended TEXT) STRICT;
CREATE TABLE counter (next INTEGER NOT NULL) STRICT;
INSERT INTO devices (device, snapshot, sectors, filesystem) VALUES (1048577, 7, 8, 'ext4');
PRAGMA user_version=1;
"""


def allocate(devices: Devices, snapshot: int | None = None) -> Device:
    device = devices.allocate(snapshot, sectors=2048, filesystem="xfs")
    assert device is not None
    return device


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
    assert first + second == list(range(START + 1, START + 7))


def test_ranges(devices: Devices) -> None:
    devices.begin_range(other := START - RANGE)
    assert (devices.ranges(), devices.begun()) == ([START], [other])
    assert allocate(devices).id == START + 1
    devices.end_range(other)
    assert allocate(devices).id == other + 1
    for start in (START, other):
        devices.begin_range(start)
    assert not devices.has_number()
    assert devices.allocate(None, sectors=8, filesystem="ext4") is None
    devices.drop_range(other)
    assert devices.numbers() == {START + 1}
    devices.end_range(START)
    assert allocate(devices).id == START + 2


def test_numbers_that_a_power_loss_may_have_undone_are_skipped(devices: Devices) -> None:
    first = allocate(devices).id
    devices.skip_reserved()
    second = allocate(devices).id
    assert second == first + 64
    devices.skip_reserved()
    assert [allocate(devices).id for _ in range(70)] == list(range(second + 64, second + 134))


def test_numbers_begin_again_past_those_in_use(devices: Devices, path: Path) -> None:
    used = allocate(devices, 1).id
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE ranges SET next = ?", (START + RANGE - 1,))
    connection.close()
    assert allocate(devices).id == START + RANGE - 1
    assert devices.allocate(None, sectors=8, filesystem="ext4") is None
    assert devices.begin_again()
    assert allocate(devices).id == used + 1


def test_rows_from_before_there_were_ranges(tmp_path: Path) -> None:
    path = tmp_path / "old.sqlite"
    with sqlite3.connect(path) as connection:
        connection.executescript(V1)
    connection.close()
    devices = Devices(path)
    assert devices.snapshots() == {7: 1048577}
    assert devices.allocate(8, sectors=8, filesystem="ext4") is None
    devices.close()


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
