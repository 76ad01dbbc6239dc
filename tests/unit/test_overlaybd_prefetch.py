"""Which files of a device a list of paths names."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from lamina.formats.overlaybd.priorities import Priority
from lamina.snapshotters.overlaybd.prefetch import paths_of


def named(point: Path, path: bytes, *, tree: bool = True) -> list[str]:
    root = os.open(point, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        return sorted(paths_of(root, Priority(path, tree)))
    finally:
        os.close(root)


@pytest.fixture
def point(tmp_path: Path) -> Path:
    for path in ("device/etc/ssl/cert", "device/etc/passwd", "device/top", "host/file"):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).touch()
    return tmp_path / "device"


def test_a_directory_names_all_that_is_in_it(point: Path) -> None:
    assert named(point, b"/etc") == ["etc/passwd", "etc/ssl/cert"]
    assert named(point, b"/") == ["etc/passwd", "etc/ssl/cert", "top"]
    assert named(point, b"/none") == []


def test_a_file_names_itself_even_if_it_is_not_there(point: Path) -> None:
    assert named(point, b"/top", tree=False) == ["top"]
    assert named(point, b"/none", tree=False) == ["none"]


@pytest.mark.parametrize("target", ["../host", "/", "etc"])
def test_no_directory_is_walked_that_a_link_leads_to(point: Path, target: str) -> None:
    (point / "link").symlink_to(target)
    assert named(point, b"/link") == []
    assert named(point, b"/link/file") == []
    assert "link" not in {path.partition("/")[0] for path in named(point, b"/") if "/" in path}
