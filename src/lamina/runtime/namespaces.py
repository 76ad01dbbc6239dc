"""Linux namespaces of a container, as the OCI specification writes them."""

from __future__ import annotations

from lamina.errors import InvalidArgument

_TYPES = ("pid", "ipc", "uts", "mount", "network", "cgroup", "user")
_ALIASES = {"net": "network", "mnt": "mount"}


def parse_namespace(text: str) -> tuple[str, str]:
    """Return type and path of `TYPE:PATH`, the namespace to join instead of making a new one.

    Raises:
        InvalidArgument: an unknown type, or no absolute path.
    """
    kind, _, path = text.partition(":")
    kind = _ALIASES.get(kind, kind)
    if kind not in _TYPES or not path.startswith("/"):
        raise InvalidArgument(
            "parse namespace", text, hint=f"write TYPE:/PATH with TYPE one of {', '.join(_TYPES)}"
        )
    return kind, path


def namespaces(
    *, host_network: bool, cgroup: bool, user: bool, joined: dict[str, str]
) -> list[dict[str, str]]:
    """Return the namespaces of a container, each new or joined by its path.

    Args:
        host_network: stay in the host's network.
        cgroup: have a cgroup namespace, as containerd does where cgroup v2 rules alone.
        user: have a user namespace.
        joined: path by type, for those to join.
    """
    wanted = ["pid", "ipc", "uts", "mount"]
    if not host_network:
        wanted.append("network")
    if cgroup:
        wanted.append("cgroup")
    if user:
        wanted.append("user")
    wanted += [kind for kind in joined if kind not in wanted]
    return [
        {"type": kind, "path": joined[kind]} if kind in joined else {"type": kind}
        for kind in wanted
    ]
