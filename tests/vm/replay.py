"""The pytest plugin outside: tests marked `dm` run in a virtual machine where the machine lacks it.

They stay tests of the session, under their names; only their reports come from another pytest,
which runs in User-mode Linux (`guest.py`). One boot serves all of them, or all with the same
`boot` in their marker: `dm(boot="faults")` is a boot of its own. Each boot is given
`uml.LIMIT_SECONDS`.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests import probes
from tests.vm import guest
from tests.vm.uml import POLL_SECONDS, Machine, MachineError

REPOSITORY = Path(__file__).parents[2]
PYTEST_CODES = (0, 1)
"""All passed; some failed. Anything else is a fault of pytest's or of its arguments."""

_BATCHES = pytest.StashKey[dict[pytest.Item, "_Batch"]]()


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Move what needs the machine to the end: no fixture has to live across such a test."""
    boots: defaultdict[str, list[pytest.Item]] = defaultdict(list)
    for item in items:
        if marker := item.get_closest_marker("dm"):
            boots[marker.kwargs.get("boot", "")].append(item)
    if not boots or not probes.device_mapper() or probes.uml():
        return
    batches = {}
    for members in boots.values():
        batches.update(dict.fromkeys(members, _Batch(config, members)))
    items[:] = [item for item in items if item not in batches] + list(batches)
    config.stash[_BATCHES] = batches


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> bool | None:
    """Hand on a test's reports from the machine, which the first test of its batch starts."""
    batch = item.config.stash.get(_BATCHES, {}).get(item)
    if batch is None:
        return None
    item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
    for report in batch.reports(item):
        item.ihook.pytest_runtest_logreport(report=report)
    item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
    return True


@pytest.hookimpl(tryfirst=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """Stop the machines of a session that was interrupted."""
    for batch in session.config.stash.get(_BATCHES, {}).values():
        batch.stop()


class _Batch:
    """The tests of one boot, and its machine."""

    def __init__(self, config: pytest.Config, items: list[pytest.Item]) -> None:
        self._config = config
        self._items = items
        self._machine: Machine | None = None
        self._records: Iterator[dict[str, Any]] = iter(())
        self._reports: defaultdict[str, list[pytest.TestReport]] = defaultdict(list)
        self._unfinished = ""

    def reports(self, item: pytest.Item) -> list[pytest.TestReport]:
        """Return the reports of one of its tests, waiting for them; a fault of its own is one."""
        machine = self._machine
        if machine is None:
            machine = self._machine = self._start()
            self._records = _follow(machine)
        while not self._complete(item) and (record := next(self._records, None)):
            self._take(record)
        reports = self._reports[item.nodeid]
        fault = "" if self._complete(item) else self._why_not(machine)
        if not fault and item is self._items[-1]:
            fault = self._bad_end(machine)
        if fault:
            reports.append(_failure(item, fault))
        for report in reports:
            if report.failed:
                report.sections.append(("console of the virtual machine", machine.console()))
        return reports

    def stop(self) -> None:
        """Stop its machine, if it has one."""
        if self._machine is not None:
            self._machine.stop()

    def _start(self) -> Machine:
        directory = Path(tempfile.mkdtemp(prefix="vm-"))
        option = self._config.option
        required = {*os.environ["LAMINA_REQUIRE"].split(","), "dm"} - {"", "uml"}
        command = (
            *(sys.executable, "-m", "pytest", "-p", "tests.vm.guest", "--quiet", "--color=no"),
            *(f"--tb={option.tbstyle}", *(["--showlocals"] if option.showlocals else [])),
            *sorted({str(item.path) for item in self._items}),
        )
        environ = {
            "LAMINA_REQUIRE": ",".join(sorted(required)),
            "PYTHONDONTWRITEBYTECODE": "1",
        }
        files = {guest.TESTS: json.dumps([item.nodeid for item in self._items]), guest.REPORTS: ""}
        return Machine(directory, command, files=files, environ=environ, cwd=REPOSITORY)

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


def _follow(machine: Machine) -> Iterator[dict[str, Any]]:
    """Yield what the guest reports until the machine's end."""
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
            time.sleep(POLL_SECONDS if running else 0)


def _failure(item: pytest.Item, text: str) -> pytest.TestReport:
    return pytest.TestReport(item.nodeid, item.location, {}, "failed", text, "call")
