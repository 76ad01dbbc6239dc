"""Trials shared by snapshotters: once for each filesystem, and never remembered too long."""

from __future__ import annotations

import io
import stat
from pathlib import Path

from lamina.formats.erofs.tree import Inode
from lamina.formats.erofs.writer import write_image
from lamina.linux import probes
from lamina.snapshotters.trials import shared, tried


class _Probe:
    def __init__(self) -> None:
        self.places: list[Path] = []

    def __call__(self, directory: Path) -> str | None:
        self.places.append(directory)
        return f"tried {len(self.places)} times"


def test_outside_of_a_listing_nothing_is_remembered(tmp_path: Path) -> None:
    probe = _Probe()
    assert tried(probe, tmp_path) == "tried 1 times"
    assert tried(probe, tmp_path) == "tried 2 times"


def test_one_trial_serves_all_of_a_listing_on_one_filesystem(tmp_path: Path) -> None:
    probe, other = _Probe(), _Probe()
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    with shared():
        assert tried(probe, tmp_path / "a") == "tried 1 times"
        with shared():
            assert tried(probe, tmp_path / "b") == "tried 1 times"
        assert tried(other, tmp_path / "b") == "tried 1 times"
        assert tried(probe, Path("/proc")) == "tried 2 times"
    with shared():
        assert tried(probe, tmp_path / "a") == "tried 3 times"


def test_the_image_that_is_mounted_on_trial_is_what_the_writer_makes() -> None:
    children = {probes.EROFS_NAME.encode(): Inode(stat.S_IFREG | 0o444)}
    out = io.BytesIO()
    write_image(Inode(stat.S_IFDIR | 0o755, children=children), out)
    made = bytearray(probes.EROFS_SIZE)
    for offset, data in probes.EROFS_IMAGE:
        raw = bytes.fromhex(data)
        made[offset : offset + len(raw)] = raw
    assert bytes(made) == out.getvalue()
