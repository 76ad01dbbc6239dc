"""What a pool is to be, before anything is done."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from lamina.errors import InvalidArgument
from lamina.linux.dm.thin import parse_pool_table
from lamina.pool.loop import LoopPool
from lamina.pool.plan import (
    LARGEST_METADATA_BYTES,
    LvmPlan,
    config_section,
    lvm_device,
    lvm_sizes,
    plan_loop,
    plan_lvm,
    pool_table,
)

GIB = 1 << 30
MIB = 1 << 20
DISK = Path("/dev/sdx")


def test_sizes_of_the_documentation() -> None:
    record = LoopPool.record(plan_loop("devpool", Path("/d")))
    assert (record.data_bytes, record.metadata_bytes) == (100 * GIB, 10 * GIB)


def test_data_is_whole_blocks() -> None:
    assert plan_loop("p", Path("/d"), 64 * MIB + 65535, 4 * MIB).data_bytes == 64 * MIB


@pytest.mark.parametrize(
    ("name", "data", "metadata", "says"),
    [
        ("", GIB, 4 * MIB, "empty"),
        ("a/b", GIB, 4 * MIB, "not a device's name"),
        ("p" * 101, GIB, 4 * MIB, "not a device's name"),
        ("p", MIB, 4 * MIB, "at least 16.0 MiB"),
        ("p", 0, 4 * MIB, "at least 16.0 MiB"),
        ("p", GIB, MIB, "the kernel uses"),
        ("p", GIB, LARGEST_METADATA_BYTES + 1, "the kernel uses"),
    ],
)
def test_loop_pools_that_cannot_be(name: str, data: int, metadata: int, says: str) -> None:
    with pytest.raises(InvalidArgument, match=says):
        plan_loop(name, Path("/d"), data, metadata)


@pytest.mark.parametrize(("group", "pool"), [("a b", "p"), ("-a", "p"), ("..", "p"), ("g", "p/q")])
def test_names_that_lvm_refuses(group: str, pool: str) -> None:
    with pytest.raises(InvalidArgument, match="LVM takes"):
        plan_lvm(pool, group, DISK)


def test_table_is_that_of_the_documentation() -> None:
    target = pool_table(100 * GIB, metadata="7:1", data="7:0")
    assert target.params == "7:1 7:0 128 32768 1 skip_block_zeroing"
    assert target.length == 100 * GIB // 512


def test_small_pool_is_not_low_at_once() -> None:
    table = parse_pool_table(pool_table(64 * MIB, metadata="7:1", data="7:0").params)
    assert table.low_water == 64 * MIB // 65536 // 8


def test_device_of_a_volume_has_its_dashes_doubled() -> None:
    assert lvm_device("my-vg", "thin-pool") == "my--vg-thin--pool"
    assert plan_lvm("thin-pool", "my-vg", DISK).name == "my--vg-thin--pool"


def test_section_is_toml_for_every_name() -> None:
    text = config_section("my--vg-thin", "10GB")
    assert tomllib.loads(text)["plugins"] == {
        "io.containerd.snapshotter.v1.devmapper": {
            "pool_name": "my--vg-thin",
            "base_image_size": "10GB",
            "discard_blocks": True,
        }
    }
    with pytest.raises(InvalidArgument, match="base_image_size"):
        config_section("p", "many")


@pytest.mark.parametrize("free", [256 * MIB, 10 * GIB, 1024 * GIB, 100 << 40])
def test_chosen_sizes_leave_room_for_a_repair_and_to_grow(free: int) -> None:
    data, metadata = lvm_sizes(LvmPlan("p", "g", DISK), free)
    assert data % 65536 == 0
    assert free * 0.89 < data < free * 0.91
    assert data + 2 * metadata < free
    assert metadata <= 15 * GIB


def test_sizes_that_do_not_fit() -> None:
    with pytest.raises(InvalidArgument, match="--data-size"):
        lvm_sizes(LvmPlan("p", "g", DISK, data_bytes=GIB, metadata_bytes=4 * MIB), GIB)
    with pytest.raises(InvalidArgument, match="--data-size"):
        lvm_sizes(LvmPlan("p", "g", DISK), 4 * MIB)
