"""The OCI runtime specification of a container: an image's configuration and the user's wishes.

What nobody asks to be different is as `ctr run` makes it: 14 capabilities, seven mounts, five new
namespaces, the usual devices, `no_new_privs`, 1024 open files. Two deviations: `cpu.shares` is only
there when asked for (the 1024 that ctr always writes is the kernel's default in cgroup v1, but two
fifths of the default in v2), and an image without PATH gets the default one.

Source: OCI runtime specification 1.0.2, `config.md` and `config-linux.md`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from lamina.core.idmap import IdRange
from lamina.core.process import ImageProcess
from lamina.core.snapshot import EMPTY_LABELS
from lamina.errors import InvalidArgument
from lamina.runtime import capabilities, devices
from lamina.runtime.mounts import HOST_NETWORK_MOUNTS, ContainerMount, default_mounts
from lamina.runtime.namespaces import namespaces
from lamina.runtime.user import Accounts, resolve

Spec = dict[str, Any]
"""`config.json` before it is written."""

DEFAULT_PATH = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
CPU_PERIOD_US = 100_000
"""Period of the CFS quota that `cpus` is turned into."""

_MASKED_PATHS = (
    "/proc/acpi",
    "/proc/asound",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/sys/firmware",
    "/sys/devices/virtual/powercap",
    "/proc/scsi",
)
_READONLY_PATHS = ("/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger")


class Resources(NamedTuple):
    """Limits of the container's cgroup; 0 means none.

    Attributes:
        memory_limit: bytes.
        cpus: CPUs' worth of time, turned into a quota; not together with `cpu_quota`.
        cpu_shares: relative weight.
        cpu_quota: microseconds of CPU time in each period.
        cpu_period: microseconds.
    """

    memory_limit: int = 0
    cpus: float = 0.0
    cpu_shares: int = 0
    cpu_quota: int = 0
    cpu_period: int = 0


class SpecOptions(NamedTuple):
    """What a user can ask for; the defaults are those of `ctr run`.

    Attributes:
        args: command line; instead of the image's `Cmd`, after its `Entrypoint`.
        entrypoint: instead of the image's `Entrypoint`; its `Cmd` is left out then. None: no wish.
        env: `NAME=VALUE` to set, `NAME` to unset.
        cwd: working directory; "" for the image's.
        user: as in `lamina.runtime.user.resolve`; None for the image's.
        terminal: have a pseudo-terminal, of `console_size` (rows, columns) at first.
        hostname: "" for none of its own.
        host_network: stay in the host's network, with its name and its resolver.
        host_name: the host's name, for `host_network`.
        joined_namespaces: path by type.
        devices: paths of the host, of nodes or directories of them.
        cgroup_namespace: have a cgroup namespace of its own.
    """

    args: Sequence[str] = ()
    entrypoint: Sequence[str] | None = None
    env: Sequence[str] = ()
    cwd: str = ""
    user: str | None = None
    terminal: bool = False
    console_size: tuple[int, int] | None = None
    hostname: str = ""
    read_only: bool = False
    privileged: bool = False
    allow_new_privileges: bool = False
    cap_add: Sequence[str] = ()
    cap_drop: Sequence[str] = ()
    mounts: Sequence[ContainerMount] = ()
    devices: Sequence[str] = ()
    host_network: bool = False
    host_name: str = ""
    joined_namespaces: Mapping[str, str] = EMPTY_LABELS
    uid_maps: Sequence[IdRange] = ()
    gid_maps: Sequence[IdRange] = ()
    annotations: Mapping[str, str] = EMPTY_LABELS
    resources: Resources = Resources()
    cgroup_namespace: bool = False
    rootfs_propagation: str = ""
    apparmor_profile: str = ""
    seccomp: Mapping[str, Any] | None = None


def build_spec(
    image: ImageProcess | None, options: SpecOptions, *, rootfs: str, accounts: Accounts
) -> Spec:
    """Return the specification of a container.

    Args:
        image: what the image says; None for a root file system without one.
        options: what the user says.
        rootfs: path of the root file system, absolute or relative to the bundle.
        accounts: reads the container's `/etc/passwd` and `/etc/group`.

    Raises:
        InvalidArgument: nothing to run, or options that contradict each other.
        NotFound: an unknown user, group or device.
    """
    if bool(options.uid_maps) != bool(options.gid_maps):
        raise InvalidArgument("map ids", hint="give both --uidmap and --gidmap")
    spec: Spec = {
        "ociVersion": "1.0.2",
        "process": _process(image, options, accounts),
        "root": {"path": rootfs},
        "mounts": [mount.as_oci() for mount in _mounts(options)],
        "linux": _linux(options),
    }
    if options.read_only:
        spec["root"]["readonly"] = True
    if options.hostname:
        spec["hostname"] = options.hostname
    if options.annotations:
        spec["annotations"] = dict(options.annotations)
    return spec


def command_line(image: ImageProcess | None, options: SpecOptions) -> list[str]:
    """Return what the container executes.

    Raises:
        InvalidArgument: neither the user nor the image says.
    """
    if options.entrypoint is not None:
        args = [*options.entrypoint, *options.args]
    else:
        entrypoint = image.entrypoint if image else ()
        default = image.cmd if image else ()
        args = [*entrypoint, *(options.args or default)]
    if not args:
        raise InvalidArgument(
            "run container", hint="the image names no command: give one after the container's id"
        )
    return args


def environment(image: ImageProcess | None, options: SpecOptions) -> list[str]:
    """Return the environment: the image's, TERM for a terminal, then the user's changes."""
    changes = [DEFAULT_PATH, *(image.env if image else ())]
    if options.terminal:
        changes.append("TERM=xterm")
    if options.host_network and options.host_name:
        changes.append(f"HOSTNAME={options.host_name}")
    return changed_environment(changes, options.env)


def changed_environment(before: Sequence[str], changes: Sequence[str]) -> list[str]:
    """Return an environment with `NAME=VALUE` set and `NAME` unset; the last one wins."""
    values: dict[str, str] = {}
    for change in (*before, *changes):
        name, equals, value = change.partition("=")
        if not name or "\0" in change:
            raise InvalidArgument("set environment variable", change, hint="write NAME=VALUE")
        if equals:
            values[name] = value
        else:
            values.pop(name, None)
    return [f"{name}={value}" for name, value in values.items()]


def _process(
    image: ImageProcess | None, options: SpecOptions, accounts: Accounts
) -> dict[str, Any]:
    cwd = options.cwd or (image.working_dir if image else "") or "/"
    if not cwd.startswith("/"):
        raise InvalidArgument("use working directory", cwd, hint="it must be an absolute path")
    name = (image.user if image else "") if options.user is None else options.user
    user = resolve(name, accounts)
    granted = capabilities.granted(
        privileged=options.privileged, add=options.cap_add, drop=options.cap_drop
    )
    process: dict[str, Any] = {
        "user": user.as_oci(),
        "args": command_line(image, options),
        "env": environment(image, options),
        "cwd": cwd,
        "capabilities": dict.fromkeys(("bounding", "effective", "permitted"), granted),
        "rlimits": [{"type": "RLIMIT_NOFILE", "hard": 1024, "soft": 1024}],
        "noNewPrivileges": not options.allow_new_privileges,
    }
    if options.terminal:
        process["terminal"] = True
        if options.console_size:
            rows, columns = options.console_size
            process["consoleSize"] = {"height": rows, "width": columns}
    if options.apparmor_profile:
        process["apparmorProfile"] = options.apparmor_profile
    return process


def _mounts(options: SpecOptions) -> list[ContainerMount]:
    mounts = default_mounts(writable_sysfs=options.privileged)
    if options.host_network:
        mounts += HOST_NETWORK_MOUNTS
    return [*mounts, *options.mounts]


def _linux(options: SpecOptions) -> dict[str, Any]:
    nodes = devices.devices_at(options.devices)
    if options.privileged:
        known = {node["path"] for node in nodes}
        nodes += [node for node in devices.host_devices() if node["path"] not in known]
        rules = [devices.ALLOW_ALL]
    else:
        rules = [*devices.default_rules(), *map(devices.rule_for, nodes)]
    linux: dict[str, Any] = {
        "resources": {"devices": rules, **_limits(options.resources)},
        "namespaces": namespaces(
            host_network=options.host_network,
            cgroup=options.cgroup_namespace,
            user=bool(options.uid_maps),
            joined=dict(options.joined_namespaces),
        ),
    }
    if nodes:
        linux["devices"] = nodes
    if options.uid_maps:
        linux["uidMappings"] = _id_maps(options.uid_maps)
        linux["gidMappings"] = _id_maps(options.gid_maps)
    if not options.privileged:
        linux["maskedPaths"] = list(_MASKED_PATHS)
        linux["readonlyPaths"] = list(_READONLY_PATHS)
    if options.rootfs_propagation:
        linux["rootfsPropagation"] = options.rootfs_propagation
    if options.seccomp is not None:
        linux["seccomp"] = dict(options.seccomp)
    return linux


def _id_maps(ranges: Sequence[IdRange]) -> list[dict[str, int]]:
    return [{"containerID": ids.container, "hostID": ids.host, "size": ids.size} for ids in ranges]


def _limits(resources: Resources) -> dict[str, Any]:
    if resources.cpus and (resources.cpu_quota or resources.cpu_period):
        raise InvalidArgument(
            "limit CPU time", hint="--cpus is a quota already: use it or --cpu-quota, not both"
        )
    limits: dict[str, Any] = {}
    if resources.memory_limit:
        limits["memory"] = {"limit": resources.memory_limit}
    cpu: dict[str, int] = {}
    if resources.cpu_shares:
        cpu["shares"] = resources.cpu_shares
    if resources.cpus:
        cpu["quota"] = round(resources.cpus * CPU_PERIOD_US)
        cpu["period"] = CPU_PERIOD_US
    if resources.cpu_quota:
        cpu["quota"] = resources.cpu_quota
    if resources.cpu_period:
        cpu["period"] = resources.cpu_period
    if cpu:
        limits["cpu"] = cpu
    return limits
