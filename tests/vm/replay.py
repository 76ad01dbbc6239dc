"""The pytest plugin outside: tests marked `dm` or `zfs` run in a virtual machine, if need be.

They stay tests of the session, under their names; only their reports come from another pytest,
which runs in User-mode Linux or QEMU (`guest.py`). One boot serves all of a marker, or all with the
same `boot` in it: `dm(boot="faults")` is a boot of its own. Each boot is given
`machine.LIMIT_SECONDS`.

Such tests come last, and their machines are started first: see `boots.py`.
"""

from __future__ import annotations

import functools
import json
import os
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests import probes
from tests.vm import guest, qemu, uml
from tests.vm.boots import Ahead, Boot, Boots
from tests.vm.machine import POLL_SECONDS, Machine, MachineError

REPOSITORY = Path(__file__).parents[2]
PYTEST_CODES = (0, 1)
"""All passed; some failed. Anything else is a fault of pytest's or of its arguments."""

TEST_SECONDS = 900
"""The most for a test in there, where it has to give way to those outside."""

_BOOTS = pytest.StashKey[Boots]()


class _Emulation(NamedTuple):
    """Where the tests of a marker run on a machine that lacks what they need.

    Attributes:
        here: probe of this machine.
        there: name of the probe of the virtual machine.
        machine: starts it.
    """

    here: Callable[[], str]
    there: str
    machine: Callable[..., Machine]

    def wanted(self) -> bool:
        """Whether it is needed, and works."""
        return bool(self.here()) and not probes.PROBES[self.there]()


_EMULATIONS = {
    "dm": _Emulation(probes.device_mapper, "uml", uml.Machine),
    "zfs": _Emulation(probes.zfs_module, "qemu", qemu.Machine),
}
"""By marker."""


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Move what needs the machine to the end: no fixture has to live across such a test."""
    of_boots: defaultdict[tuple[str, str], list[pytest.Item]] = defaultdict(list)
    for item in items:
        for name in _EMULATIONS:
            if marker := item.get_closest_marker(name):
                of_boots[name, marker.kwargs.get("boot", "")].append(item)
    found: list[tuple[Boot, list[pytest.Item]]] = [
        (_Batch(config, name, members), members)
        for (name, _), members in of_boots.items()
        if _EMULATIONS[name].wanted()
    ]
    for item in items:
        marker = item.get_closest_marker("ahead")
        if marker and not any(map(_lacks, item.iter_markers())):
            found.append((Ahead(marker.kwargs["begin"], **_parameters(item)), [item]))
    if not found:
        return
    boots = Boots()
    # The longest first: at the end, no processor waits for another's work.
    for boot, members in sorted(found, key=lambda each: not _is_emulated(each[1][0])):
        boots.add(boot, members)
    for item in boots.items:
        item.add_marker(pytest.mark.timeout(0))  # a boot has its limit, and starts when it can
    items[:] = [*(item for item in items if item not in boots.items), *boots.items]
    config.stash[_BOOTS] = boots


def _is_emulated(item: pytest.Item) -> bool:
    """Tell whether the processors are emulated, which takes longest."""
    return any(item.get_closest_marker(name) for name in ("zfs", "qemu"))


@functools.cache
def _works(probe: str) -> bool:
    return not probes.PROBES[probe]()


def _lacks(marker: pytest.Mark) -> bool:
    return marker.name in probes.PROBES and not _works(marker.name)


def _parameters(item: pytest.Item) -> dict[str, Any]:
    return dict(item.callspec.params) if hasattr(item, "callspec") else {}


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> bool | None:
    """Keep machines at work; hand on a test's reports from the one that runs it."""
    boots = item.config.stash.get(_BOOTS, None)
    if boots is None:
        return None
    boot = boots.of(item)
    if not isinstance(boot, _Batch):
        boots.start_more()
        return None
    item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
    for report in boot.reports(item, waiting=boots.start_more):
        item.ihook.pytest_runtest_logreport(report=report)
    item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
    return True


@pytest.hookimpl(tryfirst=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """Stop the machines of a session that was interrupted."""
    if boots := session.config.stash.get(_BOOTS, None):
        boots.stop()


@pytest.fixture
def ended_machine(request: pytest.FixtureRequest) -> Iterator[Machine]:
    """The machine of a test marked `ahead`, at its end, or stopped where it took too long."""
    boots = request.config.stash[_BOOTS]
    boot = boots.of(request.node)
    assert boot is not None, "the test is not marked `ahead`"
    machine = boot.start()
    while machine.running():
        boots.start_more()
        time.sleep(POLL_SECONDS)
    yield machine
    machine.stop()


class _Batch(Boot):
    """The tests of one boot, and its machine."""

    def __init__(self, config: pytest.Config, marker: str, items: list[pytest.Item]) -> None:
        self.items = items
        self._marker = marker
        self._config = config
        super().__init__()
        self._records: Iterator[dict[str, Any] | None] = iter(())
        self._reports: defaultdict[str, list[pytest.TestReport]] = defaultdict(list)
        self._unfinished = ""

    def reports(self, item: pytest.Item, *, waiting: Callable[[], None]) -> list[pytest.TestReport]:
        """Return the reports of one of its tests; a fault of its own is one.

        Args:
            item: the test.
            waiting: called now and then until they are there.
        """
        machine = self.start()
        while not self._complete(item):
            try:
                record = next(self._records)
            except StopIteration:
                break
            if record is None:
                waiting()
            else:
                self._take(record)
        reports = self._reports[item.nodeid]
        fault = "" if self._complete(item) else self._why_not(machine)
        if not fault and item is self.items[-1]:
            fault = self._bad_end(machine)
        if fault:
            reports.append(_failure(item, fault))
        for report in reports:
            if report.failed:
                report.sections.append(("console of the virtual machine", machine.console()))
        return reports

    def _begin(self, directory: Path) -> Machine:
        option = self._config.option
        asked = {*os.environ["LAMINA_REQUIRE"].split(",")} - {"", *_EMULATIONS}
        required = {*asked, self._marker} - {each.there for each in _EMULATIONS.values()}
        command = (
            *(sys.executable, "-m", "pytest", "-p", "tests.vm.guest", "--quiet", "--color=no"),
            f"--timeout={TEST_SECONDS}",
            *(f"--tb={option.tbstyle}", *(["--showlocals"] if option.showlocals else [])),
            *sorted({str(item.path) for item in self.items}),
        )
        environ = {
            "LAMINA_REQUIRE": ",".join(sorted(required)),
            "PYTHONDONTWRITEBYTECODE": "1",
        }
        files = {guest.TESTS: json.dumps([item.nodeid for item in self.items]), guest.REPORTS: ""}
        start = _EMULATIONS[self._marker].machine
        machine = start(directory, command, files=files, environ=environ, cwd=REPOSITORY)
        self._records = _follow(machine)
        return machine

    def _take(self, record: dict[str, Any]) -> None:
        if nodeid := record.get("running"):
            self._unfinished = nodeid
            return
        for name in ("location", "longrepr"):  # tuples that JSON makes lists
            if isinstance(record[name], list):
                record[name] = tuple(record[name])
        report = self._config.hook.pytest_report_from_serializable(config=self._config, data=record)
        assert isinstance(report, pytest.TestReport)
        self._reports[report.nodeid].append(report)
        if report.when == "teardown":
            self._unfinished = ""

    def _complete(self, item: pytest.Item) -> bool:
        return any(report.when == "teardown" for report in self._reports[item.nodeid])

    def _why_not(self, machine: Machine) -> str:
        """Say why a test has no result; the machine has ended."""
        during = f" while it ran {self._unfinished}" if self._unfinished else ""
        try:
            code = machine.wait()
        except MachineError as error:
            return f"the virtual machine: {error}{during}"
        return f"pytest in the virtual machine exited with {code} and did not run this test"

    def _bad_end(self, machine: Machine) -> str:
        """Wait for the machine's end; say what is wrong with it."""
        try:
            code = machine.wait()
        except MachineError as error:
            return f"the virtual machine: {error} after its last test"
        if code in PYTEST_CODES:
            return ""
        return f"pytest in the virtual machine exited with {code} after its last test"


def _follow(machine: Machine) -> Iterator[dict[str, Any] | None]:
    """Yield what the guest reports until the machine's end, and None while there is nothing."""
    with (machine.shared / guest.REPORTS).open() as file:
        line = ""
        running = True
        while running:
            running = machine.running()  # asked first: what it writes at its end is read, too
            while part := file.readline():
                line += part
                if line.endswith("\n"):
                    yield json.loads(line)
                    line = ""
            if running:
                yield None
                time.sleep(POLL_SECONDS)


def _failure(item: pytest.Item, text: str) -> pytest.TestReport:
    return pytest.TestReport(item.nodeid, item.location, {}, "failed", text, "call")
