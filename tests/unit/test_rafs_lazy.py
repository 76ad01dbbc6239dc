"""RAFS images through the lazy cache: its units are those of a layout."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import pytest

from lamina.formats.rafs.bootstrap import read_bootstrap
from lamina.formats.rafs.flags import Compressor, Digester
from lamina.formats.rafs.units import DeviceLayout, Layout, lay_out_v5, lay_out_v6
from lamina.lazy.unit import Check, Codec, Piece, Unit
from tests.erofs import Bytes
from tests.lazy_layers import Layer
from tests.rafs import sample
from tests.rafs_blobs import BLAKE3, GZIP, LZ4, NONE, SHA256, ZSTD
from tests.rafs_devices import filled, metas
from tests.rafs_v5 import make_v5
from tests.rafs_v6 import make_v6

CODECS = {
    Compressor.NONE: Codec.NONE,
    Compressor.LZ4_BLOCK: Codec.LZ4_BLOCK,
    Compressor.GZIP: Codec.GZIP,
    Compressor.ZSTD: Codec.ZSTD,
}
CHECKS = {Digester.SHA256: Check.SHA256, Digester.BLAKE3: Check.BLAKE3}


def lazy_units(device: DeviceLayout, digester: Digester) -> list[Unit]:
    return [
        Unit(
            *unit[:4],
            CODECS[unit.compressor],
            [Piece(*piece[:3], CHECKS[digester], piece.digest) for piece in unit.pieces],
        )
        for unit in device.units
    ]


@pytest.mark.parametrize("digester", [BLAKE3, SHA256])
@pytest.mark.parametrize("compressor", [NONE, LZ4, GZIP, ZSTD])
@pytest.mark.parametrize(("version", "batch"), [(5, 0), (6, 0), (6, 8192)])
def test_a_cache_is_filled(
    version: int, batch: int, compressor: int, digester: int, tmp_path: Path
) -> None:
    layout: Layout
    if version == 5:
        raw, blob = make_v5(sample(), compressor=compressor, digester=digester)
        bootstrap = read_bootstrap(Bytes(raw))
        layout = lay_out_v5(bootstrap)
    else:
        raw, blob = make_v6(sample(), compressor=compressor, digester=digester, batch=batch)
        bootstrap = read_bootstrap(Bytes(raw))
        layout = lay_out_v6(bootstrap, metas(bootstrap, blob))
    (device,) = layout.devices
    (content,) = filled(layout, bootstrap, {0: blob})
    layer = Layer(blob, lazy_units(device, bootstrap.digester), content)
    directory = layer.create(tmp_path / "layer")
    with closing(layer.open(directory)) as cache:
        assert cache.read(0, cache.size) == content
