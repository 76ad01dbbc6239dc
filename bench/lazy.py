"""Lazy images: their start beside a full pull by containerd, and reading beside source and EROFS.

Converts images to eStargz and Nydus and pushes them to Debian's registry on loopback. What is
measured:

- `start`: from `images pull` on an empty root to the first line that `python3` prints in a
  container, over 100 Mbit/s with 20 ms for there and back, beside containerd's pull and run; of
  eStargz, and of Nydus with bootstraps of version 6 and 5.
- `sequential`: reading 1 GiB of which nothing is local, beside reading the layer's blob from the
  same registry with nothing behind it; over 1 Gbit/s, and over loopback.
- `local`: reading it once it is all local, page cache dropped, beside the same from the image that
  the erofs snapshotter makes.
- `find`: `stat` of every file, beside the same; the lazy worker is stopped meanwhile.
- `memory`: what the worker takes that serves twenty Nydus images, each read in part.

LAMINA_BENCH_LAZY chooses some of them, LAMINA_BENCH_GATES some of the gates.
"""

from __future__ import annotations

import functools
import itertools
import json
import os
import signal
import subprocess
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

from bench.figures import RUNS, Figure, paired
from bench.lazy_images import ONE_FILE, Images, debian_image, one_file_image, python_image
from bench.process import drop_caches, resident_bytes, timed
from bench.roots import Root
from bench.slow_link import SlowLink, slow_link
from lamina.core.digest import Digest
from lamina.images.reference import parse
from lamina.lazy.sources.description import RegistryDescription
from lamina.snapshotters.lazy_access import Access
from lamina.snapshotters.lazy_blobs import open_source, registry
from tests.fixtures_containerd import running_containerd
from tests.fixtures_registry import running_registry

PARTS = "start sequential local find memory"
GATES = "fanotify fuse"
COMMAND = ("python3", "-c", "print(1)")
SLOW_RUNS = 3
"""Of what takes long; the peer's start takes more than a minute."""
REQUEST_BYTES = 4 << 20
KINDS = {
    "stargz": ("stargz", "--estargz"),
    "nydus-6": ("nydus", "--nydus"),
    "nydus-5": ("nydus", "--nydus", "--fs-version", "5"),
}
"""Of images: the snapshotter, and how they are converted."""
MEMORY_LIMIT = 150e6
_COMPRESSORS = ("none", "lz4_block", "gzip", "zstd")
_CHUNK_SIZES = ("256KiB", "512KiB", "1MiB", "2MiB", "4MiB")
_numbers = itertools.count()


def measure() -> tuple[list[Figure], dict[str, str]]:
    """Measure the parts asked for, with each gate."""
    parts = os.environ.get("LAMINA_BENCH_LAZY", PARTS).split()
    gates = os.environ.get("LAMINA_BENCH_GATES", GATES).split()
    figures: list[Figure] = []
    with ExitStack() as stack:
        scratch = tempfile.TemporaryDirectory(prefix="lamina-bench-", dir="/var/tmp")
        directory = Path(stack.enter_context(scratch))
        running = stack.enter_context(running_registry(directory / "registry"))
        images = Images(directory, running.host)
        if {"start", "find"} & set(parts):
            kinds = KINDS if "start" in parts else ("stargz",)
            python = {
                kind: images.push(python_image(), f"bench/python-{kind}", *KINDS[kind][1:])
                for kind in kinds
            }
        if {"sequential", "local"} & set(parts):
            one_file = images.push(one_file_image(), "bench/one-file", "--estargz")
        if "start" in parts:
            figures += _start(directory, python, running.host, gates)
        if "sequential" in parts:
            figures += _sequential(directory, one_file, running.host, gates)
        if "local" in parts:
            figures += [_local(directory, one_file, gate) for gate in gates]
        if "find" in parts:
            figures += [_find(directory, python["stargz"], gate) for gate in gates]
        if "memory" in parts:
            figures += _memory(directory, images, gates)
    said = subprocess.run(["containerd", "--version"], check=True, capture_output=True, text=True)
    return figures, {"containerd": said.stdout.split()[2]}


def _start(
    directory: Path, references: dict[str, str], host: str, gates: list[str]
) -> list[Figure]:
    """Measure the first line of a container whose image has to come first, and what came."""
    figures = []
    peer = "ctr images pull, ctr run"
    with slow_link(host, bits=100e6, delay=0.010) as link:
        references = {kind: ref.replace(host, link.host) for kind, ref in references.items()}
        theirs, whole = zip(
            *(_peer_start(directory, references["stargz"], link) for _ in range(SLOW_RUNS)),
            strict=True,
        )
        for kind, gate in itertools.product(references, gates):
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
    snapshotter = KINDS[kind][0]
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


def _sequential(directory: Path, reference: str, host: str, gates: list[str]) -> list[Figure]:
    """Measure a cold read of the whole file beside its blob's ranges, read one after the other."""
    figures = []
    with slow_link(host, bits=1e9, delay=0.0005) as link:
        for network, at in (("1-gbit", link.host), ("loopback", host)):
            image = reference.replace(host, at)
            for gate in gates:
                ours, theirs = paired(
                    functools.partial(_cold, directory, image, gate),
                    functools.partial(_ranges, image),
                    SLOW_RUNS,
                )
                name = f"lazy-sequential-{gate}-{network}"
                figures.append(Figure(name, ours, theirs, 1 / 0.8, "the source alone"))
    return figures


def _cold(directory: Path, reference: str, gate: str) -> float:
    with Root(directory, "stargz", gate, quiet=True) as root:
        root.pull(reference)
        file = root.mount(reference) / ONE_FILE
        drop_caches()
        return _read(file)


def _ranges(reference: str) -> float:
    """Read the only layer's blob as the worker does, and do nothing with it."""
    access = Access(plain_http=True)
    client, name = registry(access), parse(reference)
    document = json.loads(client.resolve(name)[1])
    if "manifests" in document:
        digest = Digest(document["manifests"][0]["digest"])
        document = json.loads(client.resolve(name.with_digest(digest))[1])
    layer = document["layers"][0]
    blob = RegistryDescription(reference, layer["digest"], layer["size"])
    drop_caches()
    began = time.perf_counter()
    source = open_source(access, blob)
    for offset in range(0, blob.size, REQUEST_BYTES):
        source.read_at(offset, min(REQUEST_BYTES, blob.size - offset))
    return time.perf_counter() - began


def _local(directory: Path, reference: str, gate: str) -> Figure:
    """Measure a read of the whole file, which is on the disk, by a mount made after it came."""

    def cold(file: Path) -> float:
        drop_caches()
        return _read(file)

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
                _read(root.mount(reference) / "usr/bin/bash")
            taken = float(resident_bytes(root.worker.status().pid))
        name = f"lazy-worker-memory-{gate}"
        figures.append(Figure(name, [taken], [MEMORY_LIMIT], 1.0, "the limit", "B"))
    return figures


def _read(file: Path) -> float:
    return timed(["dd", f"if={file}", "of=/dev/null", "bs=1M", "status=none"])


def _id() -> str:
    return f"lamina-bench-{os.getpid()}-{next(_numbers)}"
