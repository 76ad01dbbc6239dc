"""Pools that tests set up with `lamina.pool`, without the command line."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lamina.linux.dm import DeviceMapper
from lamina.pool import manage
from lamina.pool.manage import Site
from lamina.pool.plan import plan_loop
from lamina.pool.record import Record, Records
from lamina.pool.snapshots import PoolSnapshots
from lamina.pool.unit import pool_unit

MIB = 1 << 20


def yes(_lost: str) -> bool:
    """Agree to lose what is on a disk."""
    return True


def no(lost: str) -> bool:
    """Agree to nothing."""
    return False


@contextmanager
def open_site(root: Path) -> Iterator[Site]:
    """Return a site whose units are those of a system below `root`."""
    with DeviceMapper() as dm:
        yield Site(
            dm=dm,
            records=Records(root),
            root=root,
            program=("lamina",),
            unit=lambda device: pool_unit(device, root=root / "system"),
            snapshots=lambda _: PoolSnapshots(root / "io.containerd.snapshotter.v1.devmapper"),
            say=lambda _: None,
        )


@contextmanager
def made_pool(site: Site, name: str, directory: Path) -> Iterator[Record]:
    """Set a pool of 64 MiB up for the body."""
    yield manage.setup(site, plan_loop(name, directory, 64 * MIB, 4 * MIB), confirm=no).record
    if site.records.get(name) is not None:
        manage.teardown(site, name, force=True)
