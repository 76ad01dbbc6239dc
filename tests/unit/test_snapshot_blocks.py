"""What a file that is a filesystem's device has, found by its holes and by reading it."""

from __future__ import annotations

import tempfile

from hypothesis import given, settings
from hypothesis import strategies as st

from lamina.formats.lsmt.writer import image_extents
from lamina.images.snapshot_blocks import FileDevice

SIZE = (3 << 20) + 512
PIECES = st.lists(st.tuples(st.integers(0, SIZE - 1), st.integers(1, 20_000), st.booleans()))


@settings(max_examples=60, deadline=None)
@given(PIECES)
def test_holes_are_left_out_as_zeros_are(pieces: list[tuple[int, int, bool]]) -> None:
    with tempfile.TemporaryFile(buffering=0) as file:
        file.truncate(SIZE)
        for offset, length, is_zeros in pieces:
            file.seek(offset)
            file.write(bytes([0 if is_zeros else 1]) * min(length, SIZE - offset))
        device = FileDevice(file)
        assert list(device.extents()) == list(image_extents(device))
