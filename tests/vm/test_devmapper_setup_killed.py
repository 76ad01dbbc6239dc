"""Set-up and teardown of pools, killed at every step: run again, they come to their end."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from lamina.errors import NotFound
from lamina.linux.dm.thin import PoolMode
from lamina.pool import manage
from lamina.pool.lvm import PROFILES
from lamina.pool.manage import Site
from lamina.pool.plan import LoopPlan, LvmPlan, plan_loop, plan_lvm
from lamina.pool.status import read_status
from tests.fixtures_thin_pool import device_name, loop_device
from tests.isolation import device_names
from tests.killed import Predicate, killed
from tests.vm.pools import MIB, open_site, yes

pytestmark = [pytest.mark.dm(boot="setup-killed"), pytest.mark.root]

PURE = {"lamina.linux.dm.layout", "lamina.linux.mountinfo", "lamina.pool.plan"}
STEP = 11
"""Every so manieth step of the loop recipe is tried; with 1, it takes two minutes."""


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    with open_site(tmp_path / "root") as opened:
        yield opened


def has_effect(module: str, _function: str) -> bool:
    """Choose whatever may have changed something."""
    packages = ("lamina.pool", "lamina.linux")
    return module.startswith(packages) and module not in PURE


def changes_lvm(module: str, function: str) -> bool:
    """Choose what LVM has been asked to change."""
    return module.startswith("lamina.tools") and function in {
        "make_physical_volume",
        "make_group",
        "make_thin_pool",
        "remove_volume",
    }


def kill_everywhere(site: Site, plan: LoopPlan | LvmPlan, counts: Predicate, step: int) -> int:
    """Kill the set-up, and then the teardown, at each step, and finish; return how often."""
    kills = 0

    def setup() -> None:
        manage.setup(site, plan, confirm=yes)

    def teardown() -> None:
        manage.teardown(site, plan.name, force=False)

    for first in (setup, teardown):
        number = 1
        while True:
            if first is teardown:
                setup()
            if not killed(first, number, counts):
                break
            kills += 1
            if first is setup:
                setup()
                record = site.records.get(plan.name)
                assert record is not None
                assert record.state == "ready"
                assert read_status(site.dm, plan.name).mode is PoolMode.READ_WRITE
            try:
                teardown()
            except NotFound:
                assert first is not setup
            assert site.records.all() == []
            assert device_names() == []
            number += step
        if first is setup:
            teardown()
    return kills


def test_loop_recipe(site: Site, tmp_path: Path) -> None:
    plan = plan_loop(device_name("pool"), tmp_path / "pool", 64 * MIB, 4 * MIB)
    assert kill_everywhere(site, plan, has_effect, STEP) > 10
    assert list((tmp_path / "pool").iterdir()) == []
    backing = Path("/sys/block").glob("loop*/loop/backing_file")
    assert not [path for path in backing if str(tmp_path) in path.read_text()]


def test_lvm_recipe(site: Site, tmp_path: Path) -> None:
    with loop_device(tmp_path / "disk", 256 * MIB) as disk:
        plan = plan_lvm("thin", device_name("vg"), Path(disk))
        assert kill_everywhere(site, plan, changes_lvm, 1) == 4
        assert subprocess.check_output(("wipefs", disk)) == b""
    assert not list(PROFILES.glob("lamina-*"))
