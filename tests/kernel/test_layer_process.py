"""Worker processes: results, errors, growing blobs, and every way to die."""

from __future__ import annotations

import fcntl
import gzip
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from lamina.core.digest import Digest, sha256
from lamina.errors import (
    Aborted,
    Cancelled,
    DigestMismatch,
    FormatError,
    Internal,
    ResourceExhausted,
)
from lamina.layer.limits import LayerLimits
from lamina.layer.process import LayerJob, LayerWorkers
from lamina.layer.target import LayerTarget
from tests.archives import Archive

GZIP = "application/vnd.oci.image.layer.v1.tar+gzip"
PLAIN = "application/vnd.oci.image.layer.v1.tar"
DATA = Archive().dir("d").file("d/f", random.Random(1).randbytes(3_000_000)).file("e", "x").data()


@pytest.fixture
def workers() -> Iterator[LayerWorkers]:
    with LayerWorkers(2) as workers:
        yield workers


class Layer:
    """A blob in a file, and a directory to apply it to."""

    def __init__(self, directory: Path, data: bytes = DATA, name: str = "0") -> None:
        self.blob = directory / f"blob{name}"
        self.blob.write_bytes(data)
        self.root = directory / f"root{name}"
        self.root.mkdir()
        self.size = len(data)

    def start(
        self,
        workers: LayerWorkers,
        *,
        available: int | None = None,
        diff_id: Digest | None = None,
        media_type: str = GZIP,
        limits: LayerLimits | None = None,
    ) -> LayerJob:
        return workers.start(
            self.blob,
            media_type,
            LayerTarget(self.root),
            size=self.size,
            available=self.size if available is None else available,
            diff_id=diff_id,
            limits=limits or LayerLimits(),
        )


def test_many_layers_on_two_workers(tmp_path: Path, workers: LayerWorkers) -> None:
    packed = gzip.compress(DATA, 1)
    layers = [Layer(tmp_path, packed, str(number)) for number in range(7)]
    jobs = [layer.start(workers, diff_id=sha256(DATA)) for layer in layers]
    for layer, job in zip(layers, jobs, strict=True):
        applied = job.result()
        assert (applied.diff_id, applied.size, applied.entries) == (sha256(DATA), len(DATA), 3)
        assert (layer.root / "d/f").stat().st_size == 3_000_000


def test_a_blob_that_grows_and_is_renamed(tmp_path: Path, workers: LayerWorkers) -> None:
    whole = gzip.compress(DATA, 1)
    layer = Layer(tmp_path, whole)
    layer.blob.write_bytes(b"")
    job = layer.start(workers, available=0)
    with layer.blob.open("ab", buffering=0) as file:
        for start in range(0, len(whole), 100_000):
            file.write(whole[start : start + 100_000])
            job.advance(file.tell())
            if start == 2_000_000:
                wait_for(lambda: (layer.root / "d").exists())
                layer.blob.rename(tmp_path / "elsewhere")
    assert job.result().diff_id == sha256(DATA)


def wait_for(condition: object, seconds: float = 20) -> None:
    assert callable(condition)
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_wrong_diff_id(tmp_path: Path, workers: LayerWorkers) -> None:
    with pytest.raises(DigestMismatch) as caught:
        Layer(tmp_path).start(workers, diff_id=sha256(b"other")).result()
    assert (caught.value.expected, caught.value.got) == (sha256(b"other"), sha256(DATA))
    assert "check diff id of layer blob0: expected sha256:" in str(caught.value)


def test_errors_arrive_as_they_were(tmp_path: Path, workers: LayerWorkers) -> None:
    cut = Layer(tmp_path, gzip.compress(DATA, 1)[:-9], "cut").start(workers)
    with pytest.raises(
        FormatError, match=r"read gzip at byte [0-9]+: expected more data"
    ) as caught:
        cut.result()
    assert caught.value.format == "gzip"
    bounded = Layer(tmp_path, DATA, "bounded")
    with pytest.raises(ResourceExhausted, match="more than 1000 bytes"):
        bounded.start(workers, limits=LayerLimits(max_bytes=1000)).result()
    short = Layer(tmp_path, DATA, "short")
    short.size += 5
    with pytest.raises(FormatError, match="layer blob"):
        short.start(workers).result()
    missing = Layer(tmp_path, DATA, "missing")
    missing.blob.unlink()
    with pytest.raises(Internal, match="FileNotFoundError"):
        missing.start(workers).result()
    with pytest.raises(FormatError, match="tar"):
        compressed = Layer(tmp_path, gzip.compress(DATA, 1), "plain")
        compressed.start(workers, media_type=PLAIN).result()
    assert Layer(tmp_path, DATA, "after").start(workers).result().diff_id == sha256(DATA)


def test_a_gzip_bomb_of_10_gigabytes(tmp_path: Path, workers: LayerWorkers) -> None:
    header = Archive().file("bomb", size=0).data()[:512]
    block = bytearray(header)
    block[124:136] = b"\x80" + (10 << 30).to_bytes(11, "big")
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    zeros = gzip.compress(bytes(10 << 20), 9)
    bomb = Layer(tmp_path, gzip.compress(bytes(block)) + zeros * 1024)
    assert bomb.size < 11 << 20
    began = time.monotonic()
    with pytest.raises(ResourceExhausted, match="more than"):
        bomb.start(workers, limits=LayerLimits(max_bytes=1 << 30)).result()
    assert time.monotonic() - began < 20
    hidden = Layer(tmp_path, gzip.compress(Archive().data()) + zeros * 1024, "hidden")
    with pytest.raises(ResourceExhausted, match="uncompressed"):
        hidden.start(workers, limits=LayerLimits(max_bytes=1 << 28)).result()


def test_cancel_running_and_waiting(tmp_path: Path) -> None:
    with LayerWorkers(1) as workers:
        running = Layer(tmp_path, DATA, "1").start(workers, available=1000)
        waiting = Layer(tmp_path, DATA, "2").start(workers)
        after = Layer(tmp_path, DATA, "3").start(workers)
        waiting.cancel()
        running.cancel()
        for job in (running, waiting):
            with pytest.raises(Cancelled):
                job.result()
        assert after.result().diff_id == sha256(DATA)
        after.cancel()
        assert after.result().diff_id == sha256(DATA)


def test_leaving_cancels(tmp_path: Path) -> None:
    with LayerWorkers(1) as workers:
        jobs = [Layer(tmp_path, DATA, str(n)).start(workers, available=10) for n in range(3)]
    for job in jobs:
        with pytest.raises(Cancelled):
            job.result()
    assert not children()


def children() -> list[int]:
    """Return the worker processes of this one."""
    done = subprocess.run(
        ["pgrep", "-P", str(os.getpid()), "-f", "lamina.layer.worker"],
        capture_output=True,
        text=True,
        check=False,
    )
    return [int(pid) for pid in done.stdout.split()]


def test_a_killed_worker_is_an_error_and_no_hang(tmp_path: Path, workers: LayerWorkers) -> None:
    job = Layer(tmp_path).start(workers, available=1000)
    wait_for(children)
    for pid in children():
        os.kill(pid, signal.SIGKILL)
    with pytest.raises(Aborted, match="was killed by signal 9"):
        job.result()
    assert Layer(tmp_path, DATA, "again").start(workers).result().diff_id == sha256(DATA)


def test_nothing_is_left_running(tmp_path: Path) -> None:
    threads = threading.active_count()
    with LayerWorkers(2) as workers:
        Layer(tmp_path).start(workers).result()
        assert len(children()) == 1
    assert not children()
    assert threading.active_count() == threads


PARENT = """
import sys, time
from pathlib import Path
from lamina.layer.limits import LayerLimits
from lamina.layer.process import LayerWorkers
from lamina.layer.target import LayerTarget
blob, root, lock = Path(sys.argv[1]), Path(sys.argv[2]), open(sys.argv[3])
workers = LayerWorkers(1, held=[lock.fileno()])
import fcntl
fcntl.flock(lock, fcntl.LOCK_EX)
workers.start(blob, "", LayerTarget(root), size=blob.stat().st_size, available=1 << 20,
              diff_id=None, limits=LayerLimits())
print("started", flush=True)
time.sleep(60)
"""


def test_workers_die_with_their_parent_and_hold_its_lock(tmp_path: Path) -> None:
    layer = Layer(tmp_path)
    lock = tmp_path / "lock"
    lock.touch()
    argv = [sys.executable, "-c", PARENT, *map(str, (layer.blob, layer.root, lock))]
    with subprocess.Popen(argv, stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == b"started\n"
        wait_for(lambda: (layer.root / "d/f").exists())
        parent.kill()
    with lock.open() as file:
        began = time.monotonic()
        fcntl.flock(file, fcntl.LOCK_EX)
    assert time.monotonic() - began < 5
    done = subprocess.run(["pgrep", "-f", str(layer.blob)], capture_output=True, check=False)
    assert done.stdout == b""


def test_memory_stays_flat(tmp_path: Path) -> None:
    """The peak of a worker is bounded, whatever a layer has."""
    archive = Archive()
    noise = random.Random(2).randbytes(8 << 20)
    for number in range(20_000):
        archive.dir(f"d{number:05}") if number % 4 == 0 else archive.file(f"f{number:05}")
    for number in range(12):
        archive.file(f"big{number}", noise)
    data = gzip.compress(archive.data(), 1)
    with LayerWorkers(1) as workers:
        job = Layer(tmp_path, data).start(workers)
        job.result()
        (pid,) = children()
        status = Path(f"/proc/{pid}/status").read_text()
    peak = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM"))
    assert peak < 64 << 10, f"{peak} KiB"


def test_the_current_directory_is_not_trusted(
    tmp_path: Path, workers: LayerWorkers, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "lamina").mkdir()
    (tmp_path / "lamina/__init__.py").write_text("raise SystemExit('not the package')")
    monkeypatch.chdir(tmp_path)
    assert Layer(tmp_path).start(workers).result().entries == 3
