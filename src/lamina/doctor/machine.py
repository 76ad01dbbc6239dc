"""Looks at the machine: kernel, privileges, cgroups, seccomp, clock, OCI runtime."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from lamina.doctor.finding import Finding, Level
from lamina.errors import LaminaError
from lamina.linux.userns import in_user_namespace
from lamina.runtime import cgroup
from lamina.runtime.oci_runtime import find_runtime

_NEEDED = (5, 12)
"""mount_setattr(2)."""
_WANTED = (5, 19)
"""Overlays on id-mapped layers."""
_CAP_SYS_ADMIN = 21
_PROGRAM = Path(__file__)


def examine_machine(search_path: str) -> Iterator[Finding]:
    """Yield what is so of the machine, whatever the root; runtimes are looked for on that path."""
    yield _kernel()
    yield _privileges()
    yield _runtime(search_path)
    yield _cgroups()
    yield _seccomp()
    yield _clock()


def _kernel() -> Finding:
    release = os.uname().release
    found = re.match(r"([0-9]+)\.([0-9]+)", release)
    version = (int(found[1]), int(found[2])) if found else (0, 0)
    detail = f"Linux {release} {os.uname().machine}"
    if version < _NEEDED:
        what = f"{detail}: older than 5.12, mounts cannot be made read-only or id-mapped as a whole"
        return Finding("kernel", Level.BAD, what, "boot Linux 5.12 or newer; 5.19 is better")
    if version < _WANTED:
        what = f"{detail}: older than 5.19, no id-mapped layers"
        return Finding("kernel", Level.WARN, what, "boot Linux 5.19 or newer")
    return Finding("kernel", Level.OK, detail)


def _privileges() -> Finding:
    fields = dict(
        line.split(":\t", 1) for line in Path("/proc/self/status").read_text().splitlines()
    )
    may_mount = int(fields["CapEff"], 16) >> _CAP_SYS_ADMIN & 1
    who = f"user id {os.geteuid()}"
    if in_user_namespace():
        who += ", in a user namespace"
    if may_mount:
        return Finding("privileges", Level.OK, f"{who}, may mount")
    what = f"{who}, may not mount: images can be pulled and exported, not run or mounted"
    fix = "run as root, or in a user namespace: unshare --user --map-root-user --mount"
    return Finding("privileges", Level.WARN, what, fix)


def _runtime(search_path: str) -> Finding:
    try:
        return Finding("OCI runtime", Level.OK, find_runtime("", search_path))
    except LaminaError:
        what = "neither runc nor crun: `lamina run` cannot start anything"
        return Finding("OCI runtime", Level.WARN, what, "apt-get install runc")


def _cgroups() -> Finding:
    if cgroup.unified():
        return Finding("cgroups", Level.OK, "version 2")
    if Path("/sys/fs/cgroup/memory").is_dir():
        return Finding("cgroups", Level.NOTE, "version 1, or both")
    what = "none below /sys/fs/cgroup: containers cannot be limited"
    return Finding("cgroups", Level.WARN, what, "mount -t cgroup2 none /sys/fs/cgroup")


def _seccomp() -> Finding:
    actions = Path("/proc/sys/kernel/seccomp/actions_avail")
    if actions.exists():
        return Finding("seccomp", Level.OK, "filters work")
    what = "the kernel has no filters: `run --seccomp-profile` fails"
    return Finding("seccomp", Level.WARN, what, "boot a kernel with CONFIG_SECCOMP_FILTER")


def _clock() -> Finding:
    now = time.time()
    shown = datetime.fromtimestamp(now, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    if now < _PROGRAM.stat().st_mtime - 86400:
        what = f"{shown}, which is before this program was installed: certificates will be refused"
        return Finding("clock", Level.WARN, what, "timedatectl set-ntp true")
    return Finding("clock", Level.OK, shown)
