"""Mounts of a container: those that every one has, and the user's (`--mount`)."""

from __future__ import annotations

from typing import NamedTuple

from lamina.errors import InvalidArgument

_KEYS = {
    "type": "type",
    "src": "source",
    "source": "source",
    "dst": "destination",
    "destination": "destination",
    "target": "destination",
    "options": "options",
}


class ContainerMount(NamedTuple):
    """One entry of `mounts` in the OCI runtime specification (`config.md`, Mounts)."""

    destination: str
    type: str
    source: str
    options: tuple[str, ...] = ()

    def as_oci(self) -> dict[str, object]:
        """Return its JSON object."""
        return {
            "destination": self.destination,
            "type": self.type,
            "source": self.source,
            "options": list(self.options),
        }

    @property
    def reaches_host(self) -> bool:
        """Whether mounts made below it inside the container are to appear on the host."""
        return not {"shared", "rshared"}.isdisjoint(self.options)


def parse_mount(text: str) -> ContainerMount:
    """Return the mount meant by `type=bind,src=/tmp,dst=/host,options=rbind:ro`.

    The type may be left out where the options have `bind` or `rbind`.

    Raises:
        InvalidArgument: an unknown key, or no absolute destination.
    """
    values = {"type": "", "source": "", "destination": "", "options": ""}
    for part in text.split(","):
        key, equals, value = part.partition("=")
        if not equals or key not in _KEYS:
            raise InvalidArgument(
                "parse mount", text, hint="write type=bind,src=/tmp,dst=/host,options=rbind:ro"
            )
        values[_KEYS[key]] = value
    if not values["destination"].startswith("/"):
        raise InvalidArgument("parse mount", text, hint="dst= must be an absolute path")
    options = tuple(option for option in values["options"].split(":") if option)
    kind = values["type"] or ("bind" if {"bind", "rbind"} & set(options) else "")
    if not kind:
        raise InvalidArgument("parse mount", text, hint="say type=, such as type=bind")
    if kind == "bind" and not {"bind", "rbind"} & set(options):
        options = ("rbind", *options)
    return ContainerMount(values["destination"], kind, values["source"] or kind, options)


def default_mounts(*, writable_sysfs: bool) -> list[ContainerMount]:
    """Return what containerd mounts in every container, in its order."""
    access = "rw" if writable_sysfs else "ro"
    small_tmpfs = ("nosuid", "strictatime", "mode=755", "size=65536k")
    hardened = ("nosuid", "noexec", "nodev")
    return [
        ContainerMount("/proc", "proc", "proc", hardened),
        ContainerMount("/dev", "tmpfs", "tmpfs", small_tmpfs),
        ContainerMount(
            "/dev/pts",
            "devpts",
            "devpts",
            ("nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"),
        ),
        ContainerMount("/dev/shm", "tmpfs", "shm", (*hardened, "mode=1777", "size=65536k")),
        ContainerMount("/dev/mqueue", "mqueue", "mqueue", hardened),
        ContainerMount("/sys", "sysfs", "sysfs", (*hardened, access)),
        ContainerMount("/run", "tmpfs", "tmpfs", small_tmpfs),
    ]


HOST_NETWORK_MOUNTS = (
    ContainerMount("/etc/hosts", "bind", "/etc/hosts", ("rbind", "ro")),
    ContainerMount("/etc/resolv.conf", "bind", "/etc/resolv.conf", ("rbind", "ro")),
)
"""What a container on the host's network needs to resolve names as the host does."""
