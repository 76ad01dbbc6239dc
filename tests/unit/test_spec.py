"""The OCI specification of a container, compared with what `ctr run` makes."""

from __future__ import annotations

import json
from typing import Any

import pytest

from lamina.core.idmap import parse_idmap
from lamina.core.process import ImageProcess
from lamina.errors import InvalidArgument, LaminaError, NotFound
from lamina.runtime import capabilities
from lamina.runtime.mounts import parse_mount
from lamina.runtime.spec import Resources, SpecOptions, build_spec

_IMAGE = ImageProcess(env=("PATH=/bin",), cmd=("sh",))


def _spec(options: SpecOptions | None = None, image: ImageProcess | None = _IMAGE) -> Any:
    options = SpecOptions() if options is None else options
    return build_spec(image, options, rootfs="rootfs", accounts=lambda _: "")


def test_defaults_are_those_of_ctr() -> None:
    spec = _spec(SpecOptions(args=("true",)))
    granted = spec["process"].pop("capabilities")
    assert spec["process"] == {
        "user": {"uid": 0, "gid": 0, "additionalGids": [0]},
        "args": ["true"],
        "env": ["PATH=/bin"],
        "cwd": "/",
        "rlimits": [{"type": "RLIMIT_NOFILE", "hard": 1024, "soft": 1024}],
        "noNewPrivileges": True,
    }
    assert set(granted) == {"bounding", "effective", "permitted"}
    assert all(
        " ".join(name.removeprefix("CAP_").lower() for name in names)
        == "chown dac_override fsetid fowner mknod net_raw setgid setuid setfcap setpcap"
        " net_bind_service sys_chroot kill audit_write"
        for names in granted.values()
    )
    assert spec["root"] == {"path": "rootfs"}
    assert [(m["destination"], m["type"], m["source"]) for m in spec["mounts"]] == [
        ("/proc", "proc", "proc"),
        ("/dev", "tmpfs", "tmpfs"),
        ("/dev/pts", "devpts", "devpts"),
        ("/dev/shm", "tmpfs", "shm"),
        ("/dev/mqueue", "mqueue", "mqueue"),
        ("/sys", "sysfs", "sysfs"),
        ("/run", "tmpfs", "tmpfs"),
    ]
    assert ",".join(spec["mounts"][2]["options"]) == (
        "nosuid,noexec,newinstance,ptmxmode=0666,mode=0620,gid=5"
    )
    assert spec["mounts"][5]["options"] == ["nosuid", "noexec", "nodev", "ro"]
    assert set(spec) == {"ociVersion", "process", "root", "mounts", "linux"}


def test_linux_defaults_are_those_of_ctr() -> None:
    linux = _spec()["linux"]
    assert [entry["type"] for entry in linux["namespaces"]] == [
        "pid",
        "ipc",
        "uts",
        "mount",
        "network",
    ]
    denied, *allowed = linux["resources"]["devices"]
    assert denied == {"allow": False, "access": "rwm"}
    assert [(rule["major"], rule.get("minor")) for rule in allowed] == [
        (1, 3),
        (1, 8),
        (1, 7),
        (5, 0),
        (1, 5),
        (1, 9),
        (5, 1),
        (136, None),
        (5, 2),
    ]
    assert all(rule["allow"] and rule["type"] == "c" for rule in allowed)
    assert {"/proc/kcore", "/proc/keys", "/sys/firmware"} <= set(linux["maskedPaths"])
    assert "/proc/sys" in linux["readonlyPaths"]
    assert set(linux) == {"resources", "namespaces", "maskedPaths", "readonlyPaths"}
    assert set(linux["resources"]) == {"devices"}


def test_specification_is_json() -> None:
    spec = _spec()
    assert json.loads(json.dumps(spec)) == spec


@pytest.mark.parametrize(
    ("image", "options", "expected"),
    [
        (ImageProcess(cmd=("a", "b")), SpecOptions(), "a b"),
        (ImageProcess(entrypoint=("e",), cmd=("a",)), SpecOptions(), "e a"),
        (ImageProcess(entrypoint=("e",), cmd=("a",)), SpecOptions(args=("x",)), "e x"),
        (ImageProcess(cmd=("a",)), SpecOptions(args=("x", "y")), "x y"),
        (ImageProcess(entrypoint=("e",), cmd=("a",)), SpecOptions(entrypoint=("n",)), "n"),
        (ImageProcess(cmd=("a",)), SpecOptions(entrypoint=("n",), args=("x",)), "n x"),
        (None, SpecOptions(args=("x",)), "x"),
    ],
)
def test_command_line(image: ImageProcess | None, options: SpecOptions, expected: str) -> None:
    assert _spec(options, image)["process"]["args"] == expected.split()


@pytest.mark.parametrize("image", [None, ImageProcess()])
def test_nothing_to_run(image: ImageProcess | None) -> None:
    with pytest.raises(InvalidArgument, match="no command"):
        _spec(SpecOptions(), image)


def test_environment_without_path_gets_one() -> None:
    env = _spec(image=ImageProcess(env=("A=1",), cmd=("sh",)))["process"]["env"]
    assert env == ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "A=1"]


def test_environment_changes_in_order() -> None:
    image = ImageProcess(env=("PATH=/bin", "A=1", "B=2"), cmd=("sh",))
    options = SpecOptions(env=("A=3", "B", "C=x=y", "C=z", "D="))
    assert _spec(options, image)["process"]["env"] == ["PATH=/bin", "A=3", "C=z", "D="]


def test_terminal() -> None:
    process = _spec(SpecOptions(terminal=True, console_size=(24, 80)))["process"]
    assert process["terminal"] is True
    assert process["consoleSize"] == {"height": 24, "width": 80}
    assert "TERM=xterm" in process["env"]
    process = _spec(SpecOptions(terminal=True, env=("TERM=vt100",)))["process"]
    assert "TERM=vt100" in process["env"]
    assert "TERM=xterm" not in process["env"]


def test_image_decides_user_and_directory_unless_told() -> None:
    image = ImageProcess(user="5:6", working_dir="/work", cmd=("sh",))
    process = _spec(image=image)["process"]
    assert process["user"] == {"uid": 5, "gid": 6, "additionalGids": [6]}
    assert process["cwd"] == "/work"
    process = _spec(SpecOptions(user="7", cwd="/else"), image)["process"]
    assert (process["user"]["uid"], process["cwd"]) == (7, "/else")
    assert _spec(SpecOptions(user=""), image)["process"]["user"]["uid"] == 0


def test_privileged() -> None:
    spec = _spec(SpecOptions(privileged=True))
    assert "maskedPaths" not in spec["linux"]
    assert "readonlyPaths" not in spec["linux"]
    assert spec["linux"]["resources"]["devices"] == [{"allow": True, "access": "rwm"}]
    assert "/dev/null" in {node["path"] for node in spec["linux"]["devices"]}
    assert spec["mounts"][5]["options"][-1] == "rw"


def test_host_network() -> None:
    spec = _spec(SpecOptions(host_network=True, host_name="here"))
    assert "network" not in {entry["type"] for entry in spec["linux"]["namespaces"]}
    assert spec["mounts"][-2:] == [
        {"destination": path, "type": "bind", "source": path, "options": ["rbind", "ro"]}
        for path in ("/etc/hosts", "/etc/resolv.conf")
    ]
    assert "HOSTNAME=here" in spec["process"]["env"]


def test_joined_namespaces() -> None:
    options = SpecOptions(joined_namespaces={"network": "/run/n", "cgroup": "/run/c"})
    entries = {entry["type"]: entry.get("path") for entry in _spec(options)["linux"]["namespaces"]}
    assert (entries["network"], entries["cgroup"], entries["pid"]) == ("/run/n", "/run/c", None)


def test_id_maps() -> None:
    maps = parse_idmap("0:100000:65536")
    spec = _spec(SpecOptions(uid_maps=maps, gid_maps=maps))
    expected = [{"containerID": 0, "hostID": 100000, "size": 65536}]
    assert spec["linux"]["uidMappings"] == spec["linux"]["gidMappings"] == expected
    assert {"type": "user"} in spec["linux"]["namespaces"]
    with pytest.raises(InvalidArgument, match="both"):
        _spec(SpecOptions(uid_maps=maps))


def test_limits() -> None:
    resources = Resources(memory_limit=1 << 20, cpus=1.5, cpu_shares=512)
    limits = _spec(SpecOptions(resources=resources))["linux"]["resources"]
    assert limits["memory"] == {"limit": 1 << 20}
    assert limits["cpu"] == {"shares": 512, "quota": 150_000, "period": 100_000}
    resources = Resources(cpu_quota=5000, cpu_period=10_000)
    limits = _spec(SpecOptions(resources=resources))["linux"]["resources"]
    assert limits["cpu"] == {"quota": 5000, "period": 10_000}
    with pytest.raises(InvalidArgument, match="not both"):
        _spec(SpecOptions(resources=resources._replace(cpus=1.0)))


def test_capabilities_are_added_and_dropped() -> None:
    options = SpecOptions(cap_add=("CAP_SYS_ADMIN", "net_admin"), cap_drop=("chown", "CAP_KILL"))
    names = _spec(options)["process"]["capabilities"]["effective"]
    assert names[-2:] == ["CAP_SYS_ADMIN", "CAP_NET_ADMIN"]
    assert not {"CAP_CHOWN", "CAP_KILL"} & set(names)
    assert (
        _spec(SpecOptions(cap_drop=capabilities.DEFAULT))["process"]["capabilities"]["bounding"]
        == []
    )
    with pytest.raises(InvalidArgument, match="CAP_NOPE"):
        _spec(SpecOptions(cap_add=("CAP_NOPE",)))


def test_smaller_options() -> None:
    spec = _spec(
        SpecOptions(
            read_only=True,
            hostname="name",
            annotations={"a": "b"},
            allow_new_privileges=True,
            apparmor_profile="profile",
            rootfs_propagation="shared",
            seccomp={"defaultAction": "SCMP_ACT_ALLOW"},
            cgroup_namespace=True,
            mounts=(parse_mount("type=tmpfs,dst=/x,options=size=1m"),),
        )
    )
    assert spec["root"]["readonly"] is True
    assert spec["hostname"] == "name"
    assert spec["annotations"] == {"a": "b"}
    assert spec["process"]["noNewPrivileges"] is False
    assert spec["process"]["apparmorProfile"] == "profile"
    assert spec["linux"]["rootfsPropagation"] == "shared"
    assert spec["linux"]["seccomp"] == {"defaultAction": "SCMP_ACT_ALLOW"}
    assert {"type": "cgroup"} in spec["linux"]["namespaces"]
    assert spec["mounts"][-1]["destination"] == "/x"


@pytest.mark.parametrize(
    ("options", "error"),
    [
        (SpecOptions(cwd="relative"), InvalidArgument),
        (SpecOptions(env=("=x",)), InvalidArgument),
        (SpecOptions(env=("A=\0",)), InvalidArgument),
        (SpecOptions(user="no-such-user"), NotFound),
        (SpecOptions(devices=("/no/such/device",)), NotFound),
        (SpecOptions(devices=("/etc/passwd",)), InvalidArgument),
    ],
)
def test_refused(options: SpecOptions, error: type[LaminaError]) -> None:
    with pytest.raises(error):
        _spec(options)


def test_device() -> None:
    linux = _spec(SpecOptions(devices=("/dev/null",)))["linux"]
    (node,) = linux["devices"]
    assert (node["path"], node["type"], node["major"], node["minor"]) == ("/dev/null", "c", 1, 3)
    assert linux["resources"]["devices"][-1] == {
        "allow": True,
        "type": "c",
        "major": 1,
        "minor": 3,
        "access": "rwm",
    }
