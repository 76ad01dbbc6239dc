"""The pytest plugin inside the virtual machine: runs the tests of a list, tells what came of each.

`reports` gets one JSON object a line: `{"running": NODE_ID}`, then the reports of that test as
pytest itself serialises them.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from tests.vm.machine import SHARED_IN_GUEST, in_guest

TESTS = "tests"
REPORTS = "reports"

# Hypothesis's plugin imports all of it, and pytest rewrites every assert in there: together they
# take longer than a boot. No other plugins are loaded when pytest sees this.
if in_guest():
    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
    pytest_plugins = ("pytest_timeout",)


def pytest_configure(config: pytest.Config) -> None:
    """Register what writes."""
    config.pluginmanager.register(_Writer(config, SHARED_IN_GUEST / REPORTS))


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Keep the tests of the list; not by command line, which some parameters' names would break."""
    wanted = set(json.loads((SHARED_IN_GUEST / TESTS).read_text()))
    unwanted = [item for item in items if item.nodeid not in wanted]
    items[:] = [item for item in items if item.nodeid in wanted]
    config.hook.pytest_deselected(items=unwanted)


class _Writer:
    def __init__(self, config: pytest.Config, path: Path) -> None:
        self._config = config
        self._file = path.open("w")

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self._write({"running": nodeid})

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        hook = self._config.hook
        self._write(hook.pytest_report_to_serializable(config=self._config, report=report))

    def pytest_unconfigure(self) -> None:
        self._file.close()

    def _write(self, record: dict[str, Any]) -> None:
        print(json.dumps(record), file=self._file, flush=True)
        os.fsync(self._file.fileno())  # the host sees nothing before
