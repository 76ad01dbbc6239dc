"""Checks and repairs everything below one root: records, disk, and what is mounted from it.

Every difference is a `Problem`, which says what would mend it. Repairs are small and each is
crash safe by itself: one transaction, or something that can be done again. One may uncover the
next (a layer whose storage is gone is marked lost, then unpacked), so they are done in passes.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from lamina import plugins
from lamina.checkout import abandoned, sweep
from lamina.core.problem import Problem, Repair
from lamina.errors import LaminaError, SnapshotterSkipped
from lamina.fsck.containers import check_containers
from lamina.fsck.devices import check_devices
from lamina.fsck.mounts import check_mounts
from lamina.images import fsck as images_fsck
from lamina.images.operation import Options
from lamina.images.survey import Survey, survey
from lamina.snapshotters.fsck import Origin

if TYPE_CHECKING:
    from lamina.snapshotters.engine import Engine
    from lamina.store import Store

PASSES = 5


class Outcome(NamedTuple):
    """What became of a problem: mended, or why not."""

    problem: Problem
    failure: str = ""


class Repaired(NamedTuple):
    """What a repair did, and which problems there are after it."""

    outcomes: list[Outcome]
    left: list[Problem]


def check(store: Store, *, deep: bool = False) -> list[Problem]:
    """Return every problem below the root; see `Store.fsck`."""
    names = store.existing_snapshotters()
    rows = images_fsck.check_rows(store.images, names)
    if rows:
        return rows  # all that follows reads them
    found = survey(store.images, names)
    problems = images_fsck.check(store.images, found, deep=deep)
    engines: dict[str, Engine] = {}
    for name in names:
        try:
            engines[name] = store.snapshotter(name)
        except SnapshotterSkipped:
            continue  # `plugins ls` and `doctor` tell of it
        except LaminaError as error:
            problems.append(Problem(name, f"it cannot be opened: {error}"))
    for name, engine in engines.items():
        origin = partial(_origin, store, found, name)
        problems += (
            p._replace(subject=f"{name}: {p.subject}") for p in engine.fsck(origin, deep=deep)
        )
    problems += _checkouts(store)
    problems += check_containers(store, engines)
    problems += check_mounts(store, engines)
    problems += check_devices(store)
    problems += _probes(store)
    return problems


def repair(store: Store, *, deep: bool = False) -> Repaired:
    """Mend what can be mended; see `Store.repair`."""
    outcomes: list[Outcome] = []
    tried: set[tuple[str, str]] = set()
    left = check(store)
    hidden: list[Problem] = []
    if deep:
        seen = set(map(_key, left))
        hidden = [problem for problem in check(store, deep=True) if _key(problem) not in seen]
    for _ in range(PASSES):
        found = [*left, *hidden]
        new = [problem for problem in found if problem.repair and _key(problem) not in tried]
        if not new:
            break
        tried.update(map(_key, new))
        outcomes += map(_mended, new)
        mended = {_key(outcome.problem) for outcome in outcomes if not outcome.failure}
        # What only reading all of it can tell is not read a second time.
        hidden = [problem for problem in hidden if _key(problem) not in mended]
        left = check(store)
    return Repaired(outcomes, [*left, *hidden])


def _key(problem: Problem) -> tuple[str, str]:
    return problem.subject, problem.what


def _mended(problem: Problem) -> Outcome:
    if problem.repair is None:
        raise AssertionError(problem)
    try:
        problem.repair.run()
    except (LaminaError, OSError) as error:
        return Outcome(problem, str(error))
    return Outcome(problem)


def _origin(store: Store, found: Survey, snapshotter: str, chain_id: str) -> Origin | None:
    known = found.chains.get(chain_id)
    if known is None:
        return None
    image, platform, whole = known
    if not whole:
        return Origin(image)
    options = Options(platforms=(platform,))
    return Origin(image, lambda: store.unpack(image, snapshotter, options=options))


def _checkouts(store: Store) -> Iterator[Problem]:
    for path in abandoned(store):
        what = "the process that had this checkout has died"
        yield Problem(str(path), what, repair=Repair("discards it", lambda: sweep(store)))


def _probes(store: Store) -> Iterator[Problem]:
    for path in plugins.abandoned_probes(store.root):
        what = "the process that tried snapshotters there has died"
        repair = Repair("removes it", partial(plugins.remove_probe, path))
        yield Problem(str(path), what, repair=repair)
