"""The session's isolation, the gates of the markers, and fixtures that every part uses."""

from __future__ import annotations

import itertools
import os
import re
import signal
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from tests.filesystems import mounted
from tests.isolation import Session, mount_points, sweep, unmount
from tests.probes import PROBES
from tests.vm.machine import in_guest

pytest_plugins = [
    "tests.fixtures_command",
    "tests.fixtures_containers",
    "tests.fixtures_registry",
    "tests.fixtures_thin_pool",
    "tests.fixtures_zfs",
    "tests.vm.replay",
]

if not in_guest():  # where importing what no test there needs takes longer than many a test
    pytest_plugins += [
        "tests.fixtures_containerd",
        "tests.fixtures_go",
        "tests.fixtures_peer",
        "tests.fixtures_serve",
        "tests.fixtures_stargz",
    ]

    from hypothesis import HealthCheck, settings

    # Nothing is timed on a machine that others use too, an example of a property neither.
    settings.register_profile(
        "lamina", deadline=None, suppress_health_check=[HealthCheck.too_slow], print_blob=True
    )
    settings.load_profile("lamina")

_SESSION = pytest.StashKey[Session]()
_REQUIRED = pytest.StashKey[frozenset[str]]()


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    """Read what must not be skipped, sweep, and go private, before any test module is imported."""
    required = frozenset(os.environ.get("LAMINA_REQUIRE", "").replace(",", " ").split())
    if unknown := required - PROBES.keys():
        raise pytest.UsageError(
            f"LAMINA_REQUIRE names unknown features: {', '.join(sorted(unknown))};"
            f" known are {', '.join(PROBES)}"
        )
    # A shell starts its background jobs with SIGINT ignored, and every command inherits that.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    session = Session.start(dict(os.environ))
    if session.owner:
        sweep()
    session.scrub_environment()
    if config.option.basetemp is None:  # a short one: sockets' paths must be under 104 bytes
        config.option.basetemp = str(session.directory / "t")
    os.environ["LAMINA_REQUIRE"] = ",".join(sorted(required))
    config.stash[_SESSION] = session
    config.stash[_REQUIRED] = required


@pytest.hookimpl(trylast=True)
def pytest_unconfigure(config: pytest.Config) -> None:
    """Remove what the session left."""
    if _SESSION in config.stash:
        config.stash[_SESSION].end()


def _gates(item: pytest.Item) -> list[str]:
    return [name for name in PROBES if item.get_closest_marker(name) is not None]


def pytest_report_collectionfinish(items: Iterable[pytest.Item]) -> list[str]:
    """Say which features the chosen tests need, and whether they are there."""
    used = {name for item in items for name in _gates(item)}
    return [f"{name}: {PROBES[name]() or 'on'}" for name in PROBES if name in used]


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip a test whose feature is missing; fail it where LAMINA_REQUIRE names the feature."""
    for name in _gates(item):
        if not (reason := PROBES[name]()):
            continue
        if name in item.config.stash[_REQUIRED]:
            pytest.fail(f"LAMINA_REQUIRE asks for {name}: {reason}", pytrace=False)
        pytest.skip(f"{name}: {reason}")


_LAYER = re.compile(r"/snapshots/[0-9]+/fs\Z")
"""Where drivers mount layers that are filesystems: for as long as there are the snapshots."""


@pytest.fixture(autouse=True)
def no_leaked_mounts() -> Iterator[None]:
    """Fail a test that leaves a mount, and take the mount off for the tests after it."""
    before = mount_points()
    yield
    leaked = mount_points()
    for point in before:
        if point in leaked:
            leaked.remove(point)
    layers = {point for point in leaked if _LAYER.search(point)}
    for point in reversed(leaked):
        unmount(point)
    leaked = [point for point in leaked if point not in layers]
    assert not leaked, f"left mounted: {', '.join(leaked)}"


_numbers = itertools.count(1)


@pytest.fixture
def container_id(request: pytest.FixtureRequest) -> str:
    """A container id, by which the sweep knows the container's cgroup as this session's."""
    session = request.config.stash[_SESSION]
    return f"{session.name}-{os.getpid()}x{next(_numbers)}"


@pytest.fixture
def root_dir(tmp_path: Path) -> Path:
    """A root directory for a store, not made yet."""
    return tmp_path / "root"


@pytest.fixture
def reflink_dir(tmp_path: Path) -> Iterator[Path]:
    """A directory on XFS, where files can share extents; for tests marked `reflink`."""
    with mounted(tmp_path, "mkfs.xfs", "-q", "-m", "reflink=1") as directory:
        yield directory


@pytest.fixture
def btrfs_dir(tmp_path: Path) -> Iterator[Path]:
    """A directory on btrfs; for tests marked `btrfs`."""
    with mounted(tmp_path, "mkfs.btrfs", "-q") as directory:
        yield directory
