"""Errors of temporary files say what was written, and below which directory."""

from __future__ import annotations

from pathlib import Path

import pytest

from lamina.errors import ResourceExhausted
from lamina.formats.temporary import spooling


def test_a_full_disk_is_told(tmp_path: Path) -> None:
    with (
        Path("/dev/full").open("wb", buffering=0) as full,
        pytest.raises(ResourceExhausted, match=f"write the layer to .*{tmp_path}.*free some space"),
        spooling("the layer", tmp_path),
    ):
        full.write(b"x")


def test_files_that_have_a_name_keep_it(tmp_path: Path) -> None:
    missing = tmp_path / "missing"
    with pytest.raises(FileNotFoundError) as caught, spooling("the layer", tmp_path):
        missing.open("rb")
    assert caught.value.filename == str(missing)
