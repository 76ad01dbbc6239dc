"""Lazy layers as network block devices, which the kernel of the machine that has ZFS has too.

One root, one worker and one image for all, as everything takes its time here.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from lamina.config import load
from lamina.core.mount import Mount
from lamina.errors import LaminaError
from lamina.formats.ext4.layers import Ext4Layers
from lamina.formats.lsmt.layout import About
from lamina.formats.lsmt.writer import write_layer
from lamina.formats.zfile.envelope import wrapped
from lamina.lazy.checks import digest_of
from lamina.lazy.gates.choice import choose_device_gate, why_not
from lamina.lazy.layer import LayerFile, create_layer
from lamina.lazy.sources.description import FileDescription
from lamina.lazy.sources.file import FileSource
from lamina.lazy.table import Header
from lamina.lazy.unit import Check, Codec, Piece, Unit
from lamina.linux.blockdev import device_size
from lamina.linux.nbd_probe import probe
from lamina.mount import mount_all, temp_mount, unmount
from lamina.store import Store
from tests.fixtures_stargz import end_worker
from tests.images import tar
from tests.lazy_layers import FACTORY
from tests.lazy_root import Lazy
from tests.vm.machine import in_guest

pytestmark = [pytest.mark.zfs, pytest.mark.root]

MIB = 1 << 20
UNIT = 256 << 10
FILES = 6
FILE_BYTES = 2 * MIB + 777
IMAGE_BYTES = 24 * MIB
KILLS = 4
READS = 5
"""Of a worker before it is killed."""
SECONDS = 300.0


@pytest.fixture(scope="module", autouse=True)
def module() -> None:
    subprocess.run(("modprobe", "nbd"), check=in_guest())
    if (reason := probe()) and not in_guest():  # that has ZFS of its own
        pytest.skip(reason)


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An ext4 with a few files, and half of it empty."""
    directory = tmp_path_factory.mktemp("image")
    (directory / "tree").mkdir()
    for number in range(FILES):
        (directory / f"tree/{number}").write_bytes(random.randbytes(FILE_BYTES))
    disk = directory / "disk"
    with disk.open("wb") as file:
        file.truncate(IMAGE_BYTES)
    subprocess.run(("mkfs.ext4", "-q", "-d", directory / "tree", disk), check=True)
    return disk


@pytest.fixture
def lazy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Lazy]:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    # So that the worker's first start, for which there is a limit, finds all in the page cache.
    warm = "import lamina.lazy.worker, lamina.lazy.server, tests.lazy_layers"
    subprocess.run((sys.executable, "-c", warm), check=True)
    (tmp_path / "root").mkdir()
    (tmp_path / "at").mkdir()
    found = Lazy(tmp_path / "root", hasty=True)
    yield found
    print(
        (tmp_path / "root/lazy/worker.log").read_text() if found.worker.directory.exists() else ""
    )
    found.kill_all()
    if os.path.ismount(tmp_path / "at"):
        unmount(tmp_path / "at")


def make_layer(directory: Path, image: Path) -> Path:
    data = image.read_bytes()
    units = []
    for start in range(0, len(data), UNIT):
        digest = digest_of(Check.SHA256, data[start : start + UNIT])
        pieces = (Piece(0, UNIT, start, Check.SHA256, digest),)
        units.append(Unit(start, UNIT, start, UNIT, Codec.NONE, pieces))
    layer = LayerFile(FileDescription(str(image)))
    create_layer(directory, layer, Header(len(data), len(data)), units)
    return directory


def add(lazy: Lazy, layer: Path) -> Path:
    """Add a layer, even where starting the worker takes longer than anybody waits elsewhere."""
    deadline = time.monotonic() + SECONDS
    while True:
        try:
            return lazy.worker.add(layer, FACTORY, "nbd")
        except LaminaError:
            if time.monotonic() > deadline:
                raise


def wait_until(what: Callable[[], bool]) -> None:
    deadline = time.monotonic() + SECONDS
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def drop_caches() -> None:
    Path("/proc/sys/vm/drop_caches").write_text("3")


def compare(point: Path, tree: Path) -> None:
    """Read all files, of which the kernel has nothing any more."""
    drop_caches()
    for number in range(FILES):
        assert (point / str(number)).read_bytes() == (tree / str(number)).read_bytes()


def connected() -> list[str]:
    """Return the names of devices that are connected."""
    found = []
    for path in Path("/sys/block").glob("nbd*/backend"):
        with contextlib.suppress(OSError):
            found.append(path.read_text())
    return found


def worker_of(lazy: Lazy) -> int:
    """Return the worker's process, 0 if there is none; it need not answer yet."""
    for pid in lazy.processes():
        with contextlib.suppress(OSError):
            if b"lamina.lazy.worker" in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0"):
                return pid
    return 0


def kill_worker(lazy: Lazy, device: Path, last: int) -> int:
    """Kill the next worker after `last`, which has answered some reads, and return its number."""
    wait_until(lambda: worker_of(lazy) not in {0, last})
    worker = worker_of(lazy)
    begin = reads_of(device)
    wait_until(lambda: reads_of(device) > begin + READS)
    os.kill(worker, signal.SIGKILL)
    return worker


def reads_of(device: Path) -> int:
    return int(Path(f"/sys/block/{device.name}/stat").read_text().split()[0])


def test_the_probe_works_and_leaves_nothing(tmp_path: Path) -> None:
    assert why_not("nbd", tmp_path) is None
    assert connected() == []
    assert choose_device_gate(tmp_path) in {"fuse", "nbd"}


def test_killed_workers_are_waits_and_the_end_of_all_is_an_error(
    lazy: Lazy, image: Path, tmp_path: Path
) -> None:
    point, tree = tmp_path / "at", image.parent / "tree"
    layer = make_layer(tmp_path / "root/layer", image)
    device = add(lazy, layer)
    with device.open("rb") as file:
        assert device_size(file.fileno()) == IMAGE_BYTES
    with device.open("r+b", buffering=0) as writer, pytest.raises(PermissionError):
        writer.write(bytes(4096))
    mount_all([Mount("ext4", str(device), options=("ro",))], point)

    stop = threading.Event()

    def compare_on() -> None:  # first bytes that are not local, then those that are
        while not stop.is_set():
            compare(point, tree)

    with ThreadPoolExecutor(1) as pool:
        reads = pool.submit(compare_on)
        killed = 0
        try:
            for _ in range(KILLS):
                killed = kill_worker(lazy, device, killed)
        finally:
            stop.set()
            reads.result()

    lazy.kill_all()
    with pytest.raises(OSError, match="Input/output error") as raised:
        compare(point, tree)
    assert raised.value.errno == errno.EIO
    assert add(lazy, layer) == device
    compare(point, tree)

    # The root is deleted: what is mounted goes on, and what served it ends with the mount.
    shutil.rmtree(lazy.worker.directory)
    compare(point, tree)
    unmount(point)
    wait_until(lambda: not lazy.processes() and not connected())


def test_removed_layers_and_dead_roots_free_their_devices(
    lazy: Lazy, image: Path, tmp_path: Path
) -> None:
    layers = [make_layer(tmp_path / f"root/{name}", image) for name in ("one", "two", "three")]
    one, two = (add(lazy, layer) for layer in layers[:2])
    assert one != two
    assert two.read_bytes() == one.read_bytes() == image.read_bytes()
    lazy.worker.remove(layers[0])
    assert len(connected()) == 1
    with add(lazy, layers[2]).open("rb") as three:
        assert three.read(MIB) == image.read_bytes()[:MIB]
    assert len(connected()) == 2
    lazy.kill_all()
    wait_until(lambda: not connected())
    for layer in layers[1:]:
        assert add(lazy, layer).read_bytes() == image.read_bytes()
        lazy.worker.remove(layer)
    wait_until(lambda: not lazy.processes() and not connected())


def test_device_of_overlaybd_layers_is_mounted_from_it(tmp_path: Path) -> None:
    files = {"a": b"first", "dir/file": random.randbytes(3 * MIB)}
    blob = io.BytesIO()
    with (tmp_path / "spool").open("w+b") as spool:
        applied = Ext4Layers(64 * MIB, spool).apply(iter([tar({"dir/": None, **files})]))
        spool.flush()
        with contextlib.closing(FileSource(tmp_path / "spool")) as source, wrapped(blob):
            write_layer(blob, applied.extents, [source], About(64 * MIB))
    config = tmp_path / "config.toml"
    name = "io.containerd.snapshotter.v1.overlaybd"
    config.write_text(f'version = 3\n[plugins."{name}"]\ngate = "nbd"\n')
    root = tmp_path / "root"
    root.mkdir()
    with Store(root, config=load(config)) as store:
        engine = store.snapshotter("overlaybd")
        with temp_mount(engine.prepare("extract"), dir=tmp_path) as at:
            (at / "overlaybd.commit").write_bytes(blob.getvalue())
        engine.commit("layer", "extract")
        found: dict[str, bytes] = {}
        while not found:
            try:
                mounts = engine.view("look", "layer")
            except LaminaError:
                continue  # starting the worker takes its time here
            with temp_mount(mounts, dir=tmp_path, read_only=True) as at:
                found = {each: (at / each).read_bytes() for each in files}
        assert found == files
        assert "/dev/nbd" in Path("/proc/self/mountinfo").read_text()
        engine.remove("look")
        engine.remove("layer")
        engine.cleanup()
        assert [*(engine.root / "snapshots").iterdir()] == []
    assert "/dev/nbd" not in Path("/proc/self/mountinfo").read_text()
    end_worker(root)
    wait_until(lambda: not connected())
