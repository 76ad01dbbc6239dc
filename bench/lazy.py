"""Lazy images: their start beside a full pull by containerd, and reading beside source and EROFS.

Converts images to eStargz, Nydus and overlaybd's and pushes them to Debian's registry on loopback.
What is measured:

- `start`: from `images pull` on an empty root to the first line that `python3` prints in a
  container, over 100 Mbit/s with 20 ms for there and back, beside containerd's pull and run; of
  eStargz, of Nydus with bootstraps of version 6 and 5, and of overlaybd.
- `sequential`: reading 1 GiB of which nothing is local, beside reading the layer's blob from the
  same registry with nothing behind it; of eStargz and overlaybd; over 1 Gbit/s, and over loopback.
- `random`: reads of 4 KiB here and there in it, beside ranges of 4 KiB of the blob; of eStargz,
  Nydus and overlaybd; over 100 Mbit/s with 20 ms for there and back, and over loopback.
- `local`: reading it once it is all local, page cache dropped, beside the same from the image that
  the erofs snapshotter makes.
- `find`: `stat` of every file, beside the same; the lazy worker is stopped meanwhile.
- `memory`: what the worker takes that serves twenty Nydus images, each read in part.

LAMINA_BENCH_LAZY chooses some of them, LAMINA_BENCH_GATES some of the gates, and LAMINA_BENCH_KINDS
some of the kinds of images (KINDS) for the first three.
"""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

from bench.figures import RUNS, Figure, paired
from bench.lazy_images import (
    KINDS,
    ONE_FILE,
    Images,
    debian_image,
    one_file_image,
    python_image,
)
from bench.lazy_reads import combined, read_file, scattered, sequential
from bench.process import drop_caches, resident_bytes, timed
from bench.roots import Root
from bench.slow_link import SlowLink, slow_link
from tests.fixtures_containerd import running_containerd
from tests.fixtures_registry import running_registry

PARTS = "start sequential random local find memory"
GATES = "fanotify fuse"
COMMAND = ("python3", "-c", "print(1)")
SLOW_RUNS = 3
"""Of what takes long; the peer's start takes more than a minute."""
READ = {
    "sequential": ("stargz", "overlaybd"),
    "random": ("stargz", "nydus-6", "overlaybd"),
}
"""The kinds of images whose one file is read, by what is measured."""
MEMORY_LIMIT = 150e6
_COMPRESSORS = ("none", "lz4_block", "gzip", "zstd")
_CHUNK_SIZES = ("256KiB", "512KiB", "1MiB", "2MiB", "4MiB")
_numbers = itertools.count()


def measure() -> tuple[list[Figure], dict[str, str]]:
    """Measure the parts asked for, with each gate."""
    parts = os.environ.get("LAMINA_BENCH_LAZY", PARTS).split()
    gates = os.environ.get("LAMINA_BENCH_GATES", GATES).split()
    kinds = os.environ.get("LAMINA_BENCH_KINDS", " ".join(KINDS)).split()
    figures: list[Figure] = []
    with ExitStack() as stack:
        scratch = tempfile.TemporaryDirectory(prefix="lamina-bench-", dir="/var/tmp")
        directory = Path(stack.enter_context(scratch))
        running = stack.enter_context(running_registry(directory / "registry"))
        images = Images(directory, running.host)
        if "start" in parts:
            plain = images.of(python_image(), "stargz")
            python = {kind: images.of(python_image(), kind) for kind in kinds}
            figures += _start(directory, python, plain, running.host, gates)
        for part, read in (("sequential", sequential), ("random", scattered)):
            if part in parts:
                of_part = [kind for kind in READ[part] if kind in kinds]
                one_file = {kind: images.of(one_file_image(), kind) for kind in of_part}
                figures += read(directory, one_file, running.host, gates)
        if "local" in parts:
            stargz = images.of(one_file_image(), "stargz")
            figures += [_local(directory, stargz, gate) for gate in gates]
        if "find" in parts:
            stargz = images.of(python_image(), "stargz")
            figures += [_find(directory, stargz, gate) for gate in gates]
        if "memory" in parts:
            figures += _memory(directory, images, gates)
    said = subprocess.run(["containerd", "--version"], check=True, capture_output=True, text=True)
    return figures, {"containerd": said.stdout.split()[2]}


def _start(
    directory: Path, references: dict[str, str], plain: str, host: str, gates: list[str]
) -> list[Figure]:
    """Measure the first line of a container whose image has to come first, and what came."""
    figures = []
    peer = "ctr images pull, ctr run"
    with slow_link(host, bits=100e6, delay=0.010) as link:
        references = {kind: ref.replace(host, link.host) for kind, ref in references.items()}
        theirs, whole = zip(
            *(
                _peer_start(directory, plain.replace(host, link.host), link)
                for _ in range(SLOW_RUNS)
            ),
            strict=True,
        )
        for kind, gate in combined(references, gates):
            ours, came = zip(
                *(_our_start(directory, kind, references[kind], link, gate) for _ in range(RUNS)),
                strict=True,
            )
            name = f"lazy-start-{kind}-{gate}"
            figures += [
                Figure(name, list(ours), list(theirs), 0.1, peer),
                Figure(f"{name}-fetched", list(came), list(whole), None, peer, "B"),
            ]
    return figures


def _our_start(
    directory: Path, kind: str, reference: str, link: SlowLink, gate: str
) -> tuple[float, float]:
    snapshotter = KINDS[kind].snapshotter
    with Root(directory, snapshotter, gate) as root:
        drop_caches()
        link.bytes_sent()
        began = time.perf_counter()
        root.pull(reference)
        run = root.argv("run", "--rm", "--snapshotter", snapshotter, reference, _id(), *COMMAND)
        return _first_line(run, began), link.bytes_sent()


def _peer_start(directory: Path, reference: str, link: SlowLink) -> tuple[float, float]:
    place = directory / f"containerd-{next(_numbers)}"
    with running_containerd(place) as daemon:
        drop_caches()
        link.bytes_sent()
        began = time.perf_counter()
        pull = daemon.argv("images", "pull", "--plain-http", reference)
        subprocess.run(pull, check=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        seconds = _first_line(daemon.argv("run", "--rm", reference, _id(), *COMMAND), began)
        came = link.bytes_sent()
    return seconds, came


def _first_line(argv: list[str], began: float) -> float:
    with subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        seconds = time.perf_counter() - began
    if process.returncode or line.strip() != b"1":
        raise RuntimeError(f"{argv}: {line!r}, exit code {process.returncode}")
    return seconds


def _local(directory: Path, reference: str, gate: str) -> Figure:
    """Measure a read of the whole file, which is on the disk, by a mount made after it came."""

    def cold(file: Path) -> float:
        drop_caches()
        return read_file(file)

    with Root(directory, "stargz", gate) as lazy, Root(directory, "erofs") as plain:
        for root in (lazy, plain):
            root.pull(reference)
        lazy("lazy", "wait", reference)
        ours, theirs = (root.mount(reference) / ONE_FILE for root in (lazy, plain))
        samples = paired(lambda: cold(ours), lambda: cold(theirs))
    return Figure(f"lazy-local-{gate}", *samples, 1 / 0.95, "the erofs snapshotter")


def _find(directory: Path, reference: str, gate: str) -> Figure:
    """Measure `stat` of every file, which the stopped worker could not answer."""

    def walk(place: Path) -> float:
        drop_caches()
        return timed(["sh", "-c", f"find {place} -type f -print0 | xargs -0 stat"])

    with (
        Root(directory, "stargz", gate, quiet=True) as lazy,
        Root(directory, "erofs") as plain,
    ):
        for root in (lazy, plain):
            root.pull(reference)
        ours, theirs = (root.mount(reference) for root in (lazy, plain))
        worker = lazy.worker.status().pid
        os.kill(worker, signal.SIGSTOP)
        try:
            samples = paired(lambda: walk(ours), lambda: walk(theirs))
        finally:
            os.kill(worker, signal.SIGCONT)
    return Figure(f"lazy-find-{gate}", *samples, 1.0, "the erofs snapshotter")


def _memory(directory: Path, images: Images, gates: list[str]) -> list[Figure]:
    """Measure the resident memory of the worker, in bytes."""
    kinds = list(itertools.product(_COMPRESSORS, _CHUNK_SIZES))
    options = [("--nydus", "--compressor", c, "--chunk-size", size) for c, size in kinds]
    references = [
        images.push(debian_image(), f"bench/debian-{number}", *given)
        for number, given in enumerate(options)
    ]
    figures = []
    for gate in gates:
        with Root(directory, "nydus", gate, quiet=True) as root:
            for reference in references:
                root.pull(reference)
                read_file(root.mount(reference) / "usr/bin/bash")
            taken = float(resident_bytes(root.worker.status().pid))
        name = f"lazy-worker-memory-{gate}"
        figures.append(Figure(name, [taken], [MEMORY_LIMIT], 1.0, "the limit", "B"))
    return figures


def _id() -> str:
    return f"lamina-bench-{os.getpid()}-{next(_numbers)}"
