"""Measuring in a virtual machine, whose processors are emulated: slow, and alike for all sides."""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests import probes
from tests.isolation import SESSION_VARIABLE
from tests.vm.machine import MEMORY_MIB, SHARED_IN_GUEST
from tests.vm.qemu import PROCESSORS, Machine
from tests.vm.replay import REPOSITORY

VERSIONS = {
    "virtual machine": f"QEMU, {PROCESSORS} emulated processors, {MEMORY_MIB >> 10} GiB",
}
_RESULT = "result"


def measured_in_guest(module: str, environ: Mapping[str, str]) -> Any:
    """Boot the machine, which runs a module as a program, and return what that has told.

    Args:
        module: of `bench`; it calls `tell`.
        environ: variables for it.

    Raises:
        SystemExit: there is no machine here, or the module has failed.
    """
    if reason := probes.qemu():
        raise SystemExit(f"bench: {module} needs QEMU and its kernel: {reason}")
    with tempfile.TemporaryDirectory(prefix="lamina-bench-") as name:
        machine = Machine(
            Path(name),
            (sys.executable, "-m", module),
            files={_RESULT: ""},
            environ={
                "PYTHONDONTWRITEBYTECODE": "1",
                SESSION_VARIABLE: "lamina-bench",
                **environ,
            },
            cwd=REPOSITORY,
        )
        with machine:
            if machine.wait() != 0:
                raise SystemExit(f"bench: in the virtual machine: {machine.console()}")
            return json.loads((machine.shared / _RESULT).read_text())


def tell(found: object) -> None:
    """Tell the host, from within the machine, what was measured; once."""
    with (SHARED_IN_GUEST / _RESULT).open("w") as file:
        json.dump(found, file)
        file.flush()
        os.fsync(file.fileno())  # the host sees nothing before
