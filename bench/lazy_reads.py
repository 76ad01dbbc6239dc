"""Reading what is not local yet: a whole file, and a little of it here and there.

The peer of both is the registry client alone, which reads ranges of the layer's blob one after the
other and does nothing with them.
"""

from __future__ import annotations

import functools
import itertools
import json
import os
import random
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from bench.figures import Figure, paired
from bench.lazy_images import KINDS, ONE_FILE, ONE_FILE_BYTES
from bench.process import drop_caches, timed
from bench.roots import Root
from bench.slow_link import slow_link
from lamina.core.digest import Digest
from lamina.core.source import RangeSource
from lamina.images.reference import parse
from lamina.lazy.sources.description import RegistryDescription
from lamina.snapshotters.lazy_access import Access
from lamina.snapshotters.lazy_blobs import open_source, registry

RUNS = 3
REQUEST_BYTES = 4 << 20
RANDOM_READS = 200
RANDOM_BYTES = 4096
_SEED = 1
_PEER = "ranges alone"


def sequential(
    directory: Path, references: Mapping[str, str], host: str, gates: Sequence[str]
) -> list[Figure]:
    """Measure a cold read of the whole file beside its blob's ranges, in seconds."""
    figures = []
    with slow_link(host, bits=1e9, delay=0.0005) as link:
        for network, at in (("1-gbit", link.host), ("loopback", host)):
            for kind, gate in combined(references, gates):
                image = references[kind].replace(host, at)
                ours, theirs = paired(
                    functools.partial(_all, directory, kind, image, gate),
                    functools.partial(_all_ranges, image),
                    RUNS,
                )
                name = f"lazy-sequential-{kind}-{gate}-{network}"
                figures.append(Figure(name, ours, theirs, 1 / 0.8, "the source alone"))
    return figures


def scattered(
    directory: Path, references: Mapping[str, str], host: str, gates: Sequence[str]
) -> list[Figure]:
    """Measure how long cold reads of 4 KiB take, in seconds: the median of a run, and p99.

    Each is at a place of its own, the same in all runs; one is made when the last has ended.
    """
    figures = []
    with slow_link(host, bits=100e6, delay=0.010) as link:
        for network, at in (("100-mbit", link.host), ("loopback", host)):
            for kind, gate in combined(references, gates):
                image = references[kind].replace(host, at)
                name = f"lazy-random-{kind}-{gate}-{network}"
                figures += _scattered(name, directory, kind, image, gate)
    return figures


def combined(kinds: Iterable[str], gates: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Yield each kind with each gate that it has."""
    for kind, gate in itertools.product(kinds, gates):
        if gate in KINDS[kind].gates:
            yield kind, gate


def read_file(file: Path) -> float:
    """Read a file to its end and return how many seconds that took."""
    return timed(["dd", f"if={file}", "of=/dev/null", "bs=1M", "status=none"])


def p99(samples: Sequence[float]) -> float:
    """Return what all but one in a hundred are below of."""
    return statistics.quantiles(samples, n=100)[-1]


def _scattered(name: str, directory: Path, kind: str, image: str, gate: str) -> list[Figure]:
    runs = [(_few(directory, kind, image, gate), _few_ranges(image)) for _ in range(RUNS)]
    medians, slowest = (
        [[judge(samples) for samples in side] for side in zip(*runs, strict=True)]
        for judge in (statistics.median, p99)
    )
    return [
        Figure(name, medians[0], medians[1], None, _PEER),
        Figure(f"{name}-p99", slowest[0], slowest[1], None, _PEER),
    ]


def _all(directory: Path, kind: str, reference: str, gate: str) -> float:
    with Root(directory, KINDS[kind].snapshotter, gate, quiet=True) as root:
        root.pull(reference)
        file = root.mount(reference) / ONE_FILE
        drop_caches()
        return read_file(file)


def _all_ranges(reference: str) -> float:
    source = _blob(reference)
    drop_caches()
    began = time.perf_counter()
    for offset in range(0, source.size, REQUEST_BYTES):
        source.read_at(offset, min(REQUEST_BYTES, source.size - offset))
    return time.perf_counter() - began


def _few(directory: Path, kind: str, reference: str, gate: str) -> list[float]:
    with Root(directory, KINDS[kind].snapshotter, gate, quiet=True) as root:
        root.pull(reference)
        file = root.mount(reference) / ONE_FILE
        drop_caches()
        fd = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
        try:
            return [
                _latency(lambda place: os.pread(fd, RANDOM_BYTES, place), at) for at in _places()
            ]
        finally:
            os.close(fd)


def _few_ranges(reference: str) -> list[float]:
    """Read as many bytes of the blob, about where it has those of the file."""
    source = _blob(reference)
    drop_caches()
    last = source.size - RANDOM_BYTES
    places = [last * at // ONE_FILE_BYTES for at in _places()]
    return [_latency(lambda place: source.read_at(place, RANDOM_BYTES), at) for at in places]


def _places() -> list[int]:
    chance = random.Random(_SEED)
    blocks = chance.sample(range(ONE_FILE_BYTES // RANDOM_BYTES), RANDOM_READS)
    return [block * RANDOM_BYTES for block in blocks]


def _latency(read: Callable[[int], bytes], place: int) -> float:
    began = time.perf_counter()
    data = read(place)
    seconds = time.perf_counter() - began
    if len(data) != RANDOM_BYTES:
        raise RuntimeError(f"{len(data)} bytes were read at {place}")
    return seconds


def _blob(reference: str) -> RangeSource:
    """Open the largest layer's blob as the worker does."""
    access = Access(plain_http=True)
    client, name = registry(access), parse(reference)
    document = json.loads(client.resolve(name)[1])
    if "manifests" in document:
        digest = Digest(document["manifests"][0]["digest"])
        document = json.loads(client.resolve(name.with_digest(digest))[1])
    layer = max(document["layers"], key=lambda each: int(each["size"]))
    return open_source(access, RegistryDescription(reference, layer["digest"], layer["size"]))
