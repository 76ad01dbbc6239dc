from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from lamina.core.snapshot import Usage
from lamina.layer.usage import disk_usage


def test_agrees_with_du(tmp_path: Path) -> None:
    (tmp_path / "d/e").mkdir(parents=True)
    (tmp_path / "d/file").write_bytes(b"x" * 10_000)
    (tmp_path / "d/e/hard").hardlink_to(tmp_path / "d/file")
    (tmp_path / "d/link").symlink_to("/usr")
    (tmp_path / "hole").touch()
    os.truncate(tmp_path / "hole", 1 << 30)
    blocks = subprocess.run(["du", "-s", "-B512", tmp_path], capture_output=True, check=True)
    inodes = subprocess.run(["du", "-s", "--inodes", tmp_path], capture_output=True, check=True)
    expected = Usage(int(inodes.stdout.split()[0]), 512 * int(blocks.stdout.split()[0]))
    assert disk_usage(tmp_path) == expected
    assert expected.inodes == 6


def test_depth_does_not_matter(tmp_path: Path) -> None:
    fd = os.open(tmp_path, os.O_RDONLY)
    for _ in range(2500):
        os.mkdir("d", dir_fd=fd)
        below = os.open("d", os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = below
    os.close(fd)
    assert disk_usage(tmp_path).inodes == 2501
    subprocess.run(["rm", "-rf", tmp_path / "d"], check=True)


def test_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        disk_usage(tmp_path / "missing")
