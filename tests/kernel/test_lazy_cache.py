"""A lazy cache on a disk that fills up."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from lamina.errors import ResourceExhausted
from tests.lazy_layers import ALONE, IMPATIENT, MemorySource, make_layer

pytestmark = pytest.mark.root


@contextmanager
def small_disk(path: Path, size: str) -> Iterator[Path]:
    path.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "none", path], check=True)
    try:
        yield path
    finally:
        subprocess.run(["umount", path], check=True)


def test_a_full_disk_is_an_error_and_loses_nothing(tmp_path: Path) -> None:
    layer = make_layer([[200_000]] * 10, ALONE)
    with small_disk(tmp_path / "disk", "1m") as disk:
        directory = layer.create(disk / "layer")
        cache = layer.open(directory, MemorySource(layer.blob), IMPATIENT)
        with pytest.raises(ResourceExhausted, match=r"No space left.*free space"):
            cache.complete()
        assert 0 < cache.local_bytes < cache.unit_bytes
        there = cache.local_bytes
        cache.close()

        cache = layer.open(directory, MemorySource(layer.blob), IMPATIENT)
        assert cache.local_bytes == there
        with pytest.raises(ResourceExhausted):
            cache.fill(0, cache.size)
        subprocess.run(["mount", "-o", "remount,size=8m", disk], check=True)
        assert cache.read(0, cache.size) == layer.content
        assert cache.is_complete
        cache.close()
