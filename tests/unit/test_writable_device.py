from __future__ import annotations

import os
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from lamina.errors import AlreadyExists, DataLoss, FailedPrecondition, InvalidArgument, NotFound
from lamina.formats.lsmt.layout import NO_UUID, About
from lamina.formats.lsmt.mappings import ZEROS
from lamina.formats.lsmt.reader import open_layer
from lamina.formats.lsmt.stack import Stack
from lamina.formats.lsmt.writer import image_extents, write_layer
from lamina.lazy.sources.file import FileSource
from lamina.lazy.writable import sector_map
from lamina.lazy.writable.device import WritableDevice
from lamina.lazy.writable.directory import DATA, DEVICE, MAP, create_writable
from lamina.lazy.writable.lower import Lower
from lamina.lazy.writable.sealing import seal_writable
from tests.lazy_filler import FileFiller

SECTOR = 512
BELOW = 3 << 20
SIZE = BELOW + (1 << 20) + 2048
"""Of devices: more than what lies below, and no whole regions."""

Opener = Callable[[Path], WritableDevice]


@pytest.fixture(params=["below", "nothing"])
def lower(request: pytest.FixtureRequest, tmp_path: Path) -> Path | None:
    if request.param == "nothing":
        return None
    directory = tmp_path / "lower"
    directory.mkdir()
    half = random.randbytes(BELOW // 2)
    (directory / "source").write_bytes(half + bytes(BELOW - len(half)))
    return directory


def make(tmp_path: Path, lower: Path | None) -> Path:
    directory = tmp_path / "device"
    create_writable(directory, SIZE, lower=lower, factory="tests.lazy_filler:FileFiller")
    return directory


def opened(directory: Path) -> WritableDevice:
    described = directory.parent / "lower"
    if not described.exists():
        return WritableDevice(directory, None)
    filler = FileFiller(described)
    return WritableDevice(directory, Lower(filler.data_path, filler))


def content(lower: Path | None) -> bytearray:
    found = bytearray(SIZE)
    if lower is not None:
        found[:BELOW] = (lower / "source").read_bytes()
    return found


def read(device: WritableDevice, start: int, stop: int) -> bytes:
    buffer = bytearray(stop - start)
    device.read_into(memoryview(buffer), start)
    return bytes(buffer)


def change(device: WritableDevice, model: bytearray, *, unit: int) -> None:
    start = random.randrange(SIZE // unit) * unit
    stop = min(start + random.choice([1, 3, 9, 300]) * unit, SIZE)
    if random.random() < 0.7:
        data = random.randbytes(stop - start)
        device.write(start, memoryview(data))
        model[start:stop] = data
    else:
        device.discard(start, stop)
        model[start:stop] = bytes(stop - start)


@pytest.mark.parametrize("unit", [SECTOR, 77])
def test_it_is_what_was_written_above_what_lies_below(
    tmp_path: Path, lower: Path | None, unit: int
) -> None:
    random.seed(unit)
    directory = make(tmp_path, lower)
    model = content(lower)
    device = opened(directory)
    for step in range(200):
        change(device, model, unit=unit)
        start = random.randrange(SIZE)
        stop = min(start + random.randrange(1, 100_000), SIZE)
        assert read(device, start, stop) == model[start:stop]
        if step % 30 == 0:
            device.flush()
        if step % 40 == 0:
            device.close()
            device = opened(directory)
    assert read(device, 0, SIZE) == model
    device.close()


def test_what_was_written_needs_nothing_below(tmp_path: Path) -> None:
    below = tmp_path / "lower"
    below.mkdir()
    (below / "source").write_bytes(random.randbytes(BELOW))
    device = opened(make(tmp_path, below))
    (below / "fail").touch()
    data = random.randbytes(8192)
    assert device.can_write(0, 8192)
    device.write(0, memoryview(data))
    device.discard(8192, 16384)
    assert device.is_local(0, 16384)
    assert read(device, 0, 16384) == data + bytes(8192)
    assert device.is_local(BELOW, SIZE)
    assert read(device, BELOW, SIZE) == bytes(SIZE - BELOW)
    assert not device.is_local(16384, 16385)
    assert not device.can_write(16385, 16386)
    with pytest.raises(OSError, match="the source is gone"):
        read(device, 0, 20000)
    with pytest.raises(OSError, match="the source is gone"):
        device.write(16385, memoryview(b"x"))
    (below / "fail").unlink()
    device.write(16385, memoryview(b"x"))
    device.close()


def _mixed(old: bytes, new: bytes, unit: int) -> bytes:
    """Return what a disk may have of two states of a file."""
    places = range(0, max(len(old), len(new)), unit)
    return b"".join(random.choice((old, new))[at : at + unit] for at in places)


@pytest.mark.parametrize("seed", range(6))
def test_after_a_power_loss_each_sector_is_as_it_was_since_the_last_flush(
    tmp_path: Path, lower: Path | None, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    random.seed(seed)
    directory = make(tmp_path, lower)
    model = content(lower)
    device = opened(directory)
    places = random.sample(range(SIZE // SECTOR), 40)
    for _ in range(4):
        on_disk = {name: (directory / name).read_bytes() for name in (DATA, MAP)}
        since = [{bytes(model[place * SECTOR : (place + 1) * SECTOR])} for place in places]
        for _ in range(random.randrange(60)):
            at = random.randrange(len(places))
            start = places[at] * SECTOR
            if random.random() < 0.3:
                first = max(0, start - random.randrange(3 << 20)) // SECTOR * SECTOR
                stop = min(SIZE, start + SECTOR * random.randrange(1, 3000))
                device.discard(first, stop)
                model[first:stop] = bytes(stop - first)
            else:
                data = random.randbytes(SECTOR)
                device.write(start, memoryview(data))
                model[start : start + SECTOR] = data
            for values, place in zip(since, places, strict=True):
                values.add(bytes(model[place * SECTOR : (place + 1) * SECTOR]))
        device.close()
        for name, old in on_disk.items():
            (directory / name).write_bytes(_mixed(old, (directory / name).read_bytes(), SECTOR))
        boot = os.urandom(18).hex()
        monkeypatch.setattr(sector_map, "boot_id", lambda boot=boot: boot)
        device = opened(directory)
        found = bytearray(read(device, 0, SIZE))
        for values, place in zip(since, places, strict=True):
            assert bytes(found[place * SECTOR : (place + 1) * SECTOR]) in values
        model = found
        for _ in range(10):
            change(device, model, unit=SECTOR)
        device.flush()
    device.close()


def test_a_device_is_made_whole_or_not_at_all(tmp_path: Path) -> None:
    directory = make(tmp_path, None)
    with pytest.raises(AlreadyExists):
        make(tmp_path, None)
    for size in (0, 513, 1 << 50):
        with pytest.raises(InvalidArgument, match="whole sectors"):
            create_writable(tmp_path / "other", size)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["device"]
    (directory / DEVICE).unlink()
    with pytest.raises(NotFound):
        WritableDevice(directory, None)


def test_one_process_has_it_at_a_time(tmp_path: Path) -> None:
    directory = make(tmp_path, None)
    device = WritableDevice(directory, None)
    with pytest.raises(FailedPrecondition, match="has it open"):
        WritableDevice(directory, None)
    with pytest.raises(FailedPrecondition, match="has it open"):
        seal_writable(directory, tmp_path / "sealed", About())
    device.close()
    device.close()
    with pytest.raises(FailedPrecondition, match="closed"):
        device.write(0, memoryview(bytes(512)))
    WritableDevice(directory, None).close()


def test_after_a_loss_nothing_is_written_or_sealed_any_more(tmp_path: Path) -> None:
    directory = make(tmp_path, None)
    device = WritableDevice(directory, None)
    device.write(0, memoryview(b"x" * 512))
    device.map.note_loss()
    for attempt in (device.flush, lambda: device.write(0, memoryview(bytes(512)))):
        with pytest.raises(OSError, match="has lost"):
            attempt()
    assert read(device, 0, 512) == b"x" * 512
    device.close()
    with pytest.raises(DataLoss, match="could not take"):
        seal_writable(directory, tmp_path / "sealed", About())
    assert not (tmp_path / "sealed").exists()


@pytest.mark.parametrize("knows_below", [True, False])
def test_a_sealed_layer_is_the_device(
    tmp_path: Path, lower: Path | None, knows_below: bool
) -> None:
    random.seed(3)
    directory = make(tmp_path, lower)
    model = content(lower)
    device = opened(directory)
    for _ in range(60):
        change(device, model, unit=SECTOR)
    device.discard(BELOW // 4, BELOW)
    model[BELOW // 4 : BELOW] = bytes(BELOW - BELOW // 4)
    device.flush()
    device.close()
    layers = []
    if lower is not None:
        source = FileSource(lower / "source")
        with (tmp_path / "below").open("wb") as out:
            write_layer(out, image_extents(source), [source], About(virtual_size=BELOW))
        layers.append(open_layer(FileSource(tmp_path / "below")))
    below = Stack(layers) if layers and knows_below else None
    target = tmp_path / "sealed"
    written = seal_writable(directory, target, About(message=b"m"), below=below)
    assert written.size == target.stat().st_size
    layer = open_layer(FileSource(target))
    assert layer.about == About(SIZE, NO_UUID, NO_UUID, b"m")
    stack = Stack([*layers, layer])
    assert stack.read_at(0, SIZE) == model
    hidden = sum(one.length for one in layer.mappings.extents() if one.layer == ZEROS)
    if lower is None:
        assert hidden == 0
    elif knows_below:
        assert 0 < hidden <= BELOW // 2
    else:
        assert hidden > BELOW // 2
    assert sorted(path.name for path in directory.iterdir()) == [DATA, DEVICE, "lock", MAP]
