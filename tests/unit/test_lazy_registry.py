"""A layer's cache over a blob in a registry that goes wrong."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from lamina.core.digest import parse_digest
from lamina.errors import DataLoss, DeadlineExceeded, LaminaError, Unavailable
from lamina.images.manifest import Descriptor
from lamina.images.reference import parse
from lamina.images.registry.client import Registry
from lamina.images.registry.credentials import CredentialStore
from lamina.images.registry.hosts import HostsConfig
from lamina.images.registry.retry import RetryPolicy
from lamina.lazy.cache import LayerCache
from lamina.lazy.policy import FillPolicy
from tests.faulty_registry import (
    FaultyRegistry,
    cut,
    faulty_registry,
    hang_up,
    ignore_range,
    send,
    stall,
    status,
)
from tests.lazy_layers import ALONE, IMPATIENT, make_layer

LAYER = make_layer([[40_000], [3, 700, 4096], [90_000], [9000]] * 3, ALONE)


@pytest.fixture
def faulty() -> Iterator[FaultyRegistry]:
    with faulty_registry() as running:
        yield running


def opened(faulty: FaultyRegistry, directory: Path, policy: FillPolicy = IMPATIENT) -> LayerCache:
    digest = parse_digest(faulty.add_blob(LAYER.blob))
    retry = RetryPolicy(first_delay=0.01, longest_delay=0.05, read_timeout=0.3)
    registry = Registry(HostsConfig(plain_http=True), CredentialStore(), retry=retry)
    descriptor = Descriptor("application/octet-stream", digest, len(LAYER.blob))
    source = registry.source(parse(f"{faulty.host}/app:v1"), descriptor)
    return LayerCache(directory, lambda _: source, policy=policy)


def test_faults_are_outlived(tmp_path: Path, faulty: FaultyRegistry) -> None:
    cache = opened(faulty, LAYER.create(tmp_path / "layer"), replace(IMPATIENT, background_bytes=1))
    faults = (hang_up(), status(503), cut(5), stall(10), ignore_range(), status(429), cut(0))
    faulty.fault("/blobs/", *faults)
    cache.complete()
    assert cache.read(0, cache.size) == LAYER.content
    cache.close()


def test_wrong_bytes_are_never_served(tmp_path: Path, faulty: FaultyRegistry) -> None:
    cache = opened(faulty, LAYER.create(tmp_path / "layer"))
    first = LAYER.units[0]
    said = f"bytes 0-{first.source_length - 1}/{len(LAYER.blob)}"
    faulty.fault("/blobs/", send(bytes(first.source_length), 206, Content_Range=said))
    with pytest.raises(DataLoss):
        cache.read(0, 10)
    assert cache.read(0, 10) == LAYER.content[:10]
    cache.close()


def test_a_registry_that_fell_silent_is_an_error_in_time_and_no_longer_than_it_is(
    tmp_path: Path, faulty: FaultyRegistry
) -> None:
    policy = replace(IMPATIENT, fill_seconds=0.2)
    cache = opened(faulty, LAYER.create(tmp_path / "layer"), policy)
    faulty.fault("/blobs/", *[stall(3)] * 50)
    errors: list[LaminaError] = []

    def read() -> None:
        try:
            cache.read(0, cache.size)
        except LaminaError as error:
            errors.append(error)

    threads = [threading.Thread(target=read) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(errors) == 4
    assert all(isinstance(error, DeadlineExceeded | Unavailable) for error in errors)
    faulty.faults.clear()
    while not cache.is_complete:
        time.sleep(0.01)
        try:
            cache.fill(0, cache.size)
        except (DeadlineExceeded, Unavailable):
            continue
    assert cache.read(0, cache.size) == LAYER.content
    cache.close()
