"""How the pool of the zfs snapshotter is doing, whoever has made it."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from lamina.errors import NotFound
from lamina.snapshotters.zfs.datasets import Datasets
from lamina.snapshotters.zfs.plugin import dataset_at
from lamina.tools import zfs
from lamina.tools.zfs import Pool


class Report(NamedTuple):
    """What ZFS says; sizes are in bytes.

    Attributes:
        pool: the pool.
        dataset: what is mounted at the snapshotter's directory.
        mountpoint: that directory.
        file: the file that the pool was set up on; "" if it was made otherwise.
        used: by the dataset and all below it.
        available: to them.
        datasets: how many there are below it.
    """

    pool: Pool
    dataset: str
    mountpoint: str
    file: str
    used: int
    available: int
    datasets: int


def read_status(directory: Path, *, file: str) -> Report:
    """Ask ZFS for what is mounted at the snapshotter's directory.

    Raises:
        SnapshotterSkipped: no dataset is.
        NotFound: its pool is gone meanwhile.
    """
    dataset = dataset_at(directory)
    name = dataset.partition("/")[0]
    pool = zfs.find_pool(name)
    if pool is None:
        raise NotFound("find pool", name)
    datasets = Datasets(dataset)
    return Report(
        pool=pool,
        dataset=dataset,
        mountpoint=str(directory),
        file=file,
        used=datasets.number(dataset, "used") or 0,
        available=datasets.number(dataset, "available") or 0,
        datasets=len(datasets.survey()),
    )
