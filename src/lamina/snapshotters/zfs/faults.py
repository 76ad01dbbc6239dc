"""What is wrong with the datasets, beyond which of them there are."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from lamina.core.problem import Problem, Repair
from lamina.linux import zfs
from lamina.snapshotters.zfs.datasets import FORK, SNAPSHOT, Child, Datasets
from lamina.snapshotters.zfs.forks import Forks


def faults(datasets: Datasets, forks: Forks) -> Iterator[Problem]:
    """Yield every problem; see `Inspectable.faults`."""
    before = forks.ids()
    children = datasets.survey()
    forking = {f"{FORK}{id}" for id in (*before, *forks.ids())}
    for child in children:
        if child.id is None:
            fix = f"if nobody needs it: zfs destroy -r {child.dataset}"
            yield Problem(f"dataset {child.dataset}", "no snapshot here knows it", fix)
            continue
        if child.sealed and SNAPSHOT not in child.snapshots:
            snapshot = datasets.snapshot_of(child.id)
            what = f"its ZFS snapshot {snapshot} is gone: nothing can stand on it"
            yield Problem(str(child.id), what, "remove it, and pull or commit it again")
        yield from _leftovers(child, forking)


def _leftovers(child: Child, forking: set[str]) -> Iterator[Problem]:
    for name in sorted(child.uncloned - forking):
        if name.startswith(FORK):
            snapshot = f"{child.dataset}@{name}"
            destroy = partial(zfs.destroy_snapshot, snapshot, later=True)
            what = "no fork is made from it any more"
            yield Problem(f"ZFS snapshot {snapshot}", what, "", Repair("destroys it", destroy))
