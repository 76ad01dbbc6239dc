from __future__ import annotations

from dataclasses import replace

import pytest

from lamina.errors import InvalidArgument
from lamina.snapshotters.devmapper.config import DevmapperConfig

GOOD = DevmapperConfig(pool_name="devpool", base_image_size="10GB")


def test_defaults_are_containerds() -> None:
    config = DevmapperConfig()
    assert (config.root_path, config.pool_name, config.base_image_size) == ("", "", "")
    assert not (config.async_remove or config.discard_blocks)
    assert (config.fs_type, config.fs_options) == ("", "")
    assert config.filesystem() == "ext4"
    assert config.removes_synchronously()
    assert config.problems() == []


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("128Mb", 128 << 20),
        ("32KIB", 32 << 10),
        ("10GB", 10 << 30),
        ("1.5 g", 3 << 29),
        ("2t", 2 << 40),
        ("1PiB", 1 << 50),
        ("4096", 4096),
        ("4097b", 4096),
    ],
)
def test_size(text: str, size: int) -> None:
    config = replace(GOOD, base_image_size=text)
    assert config.problems() == []
    assert config.base_image_sectors() * 512 == size


@pytest.mark.parametrize("text", ["y", "10xb", "-1", "1  g", "10 G B", "0", "511", "9999PB"])
def test_what_is_no_size(text: str) -> None:
    (problem,) = replace(GOOD, base_image_size=text).problems()
    assert problem.startswith(f'base_image_size: failed to parse base image size: "{text}"; ')


def test_size_is_required_with_a_pool() -> None:
    assert DevmapperConfig(pool_name="devpool").problems() == ["base_image_size: is required"]
    with pytest.raises(InvalidArgument):
        DevmapperConfig().base_image_sectors()


@pytest.mark.parametrize("fs_type", ["", "ext4", "ext2", "xfs"])
def test_filesystem(fs_type: str) -> None:
    assert replace(GOOD, fs_type=fs_type, fs_options="nodiscard").problems() == []
    assert replace(GOOD, fs_type=fs_type).filesystem() == (fs_type or "ext4")


@pytest.mark.parametrize("name", ["devpool", "vg-thin--pool", "a" * 100, "pool_1.x"])
def test_name_of_a_pool(name: str) -> None:
    assert replace(GOOD, pool_name=name).problems() == []


@pytest.mark.parametrize("name", ["a/b", "a b", "a" * 101, "päl"])
def test_name_that_no_pool_has(name: str) -> None:
    (problem,) = replace(GOOD, pool_name=name).problems()
    assert problem.startswith(f"pool_name: {name!r} is not a device's name")


def test_path_for_a_name() -> None:
    (problem,) = replace(GOOD, pool_name="/dev/mapper/devpool").problems()
    assert problem == "pool_name: write 'devpool', without /dev/mapper/"


def test_all_problems_are_told_together() -> None:
    config = DevmapperConfig(pool_name="a/b", base_image_size="y", fs_type="ntfs")
    keys = [problem.partition(":")[0] for problem in config.problems()]
    assert keys == ["base_image_size", "pool_name", "fs_type"]


def test_asynchronous_removal() -> None:
    assert not replace(GOOD, async_remove=True).removes_synchronously()
