"""What deploy/ has fits together, the program, the documentation, and Kubernetes' schemas."""

from __future__ import annotations

import re
from pathlib import Path, PurePath
from typing import Any

import kubernetes_validate
import pytest

from lamina import config
from lamina.config.daemon import DEFAULT_ADDRESS
from lamina.daemon.snapshotters import PREFIX
from lamina.plugins import directory_of
from tests.deployment import (
    CONTAINER,
    DAEMON_SET,
    DEPLOY,
    DROP_INS,
    KUBERNETES,
    POD,
    REPOSITORY,
    documents,
    toml,
)

OLDEST_KUBERNETES = "1.25"


def manifests() -> list[Path]:
    return [path for path in KUBERNETES.rglob("*.yaml") if path.name != "kustomization.yaml"]


def volumes() -> dict[str, tuple[str, dict[str, Any]]]:
    """Return the container's mount points and what is mounted there, by the volumes' names."""
    places = {each["name"]: each["mountPath"] for each in CONTAINER["volumeMounts"]}
    assert places.keys() == {each["name"] for each in POD["volumes"]}
    return {each["name"]: (places[each["name"]], each) for each in POD["volumes"]}


@pytest.mark.parametrize("path", manifests(), ids=lambda path: str(path.relative_to(KUBERNETES)))
def test_manifests_keep_to_the_schemas(path: Path) -> None:
    for document in documents(path):
        if path.parent.name == "mounting":  # a patch has only what it changes
            document = merged(DAEMON_SET, document)
        for version in (OLDEST_KUBERNETES, kubernetes_validate.latest_version()):
            kubernetes_validate.validate(document, version, strict=True)


def merged(base: Any, patch: Any) -> Any:
    """Apply a strategic merge patch, as far as ours go: lists are merged by `name`."""
    if isinstance(patch, dict):
        changed = {**base, **{k: merged(base.get(k, {}), v) for k, v in patch.items()}}
        return {key: value for key, value in changed.items() if value is not None}
    if isinstance(patch, list):
        old = {each["name"]: each for each in base}
        new = {each["name"]: merged(old.get(each["name"], {}), each) for each in patch}
        return list({**old, **new}.values())
    return patch


def test_kustomizations_name_all_manifests() -> None:
    base = documents(KUBERNETES / "base/kustomization.yaml")[0]
    files = {path.name for path in (KUBERNETES / "base").iterdir()}
    generated = set(base["configMapGenerator"][0]["files"])
    assert files == {*base["resources"], *generated, "kustomization.yaml"}
    assert volumes()["config"][1]["configMap"]["name"] == base["configMapGenerator"][0]["name"]
    above = documents(KUBERNETES / "mounting/kustomization.yaml")[0]
    assert above["resources"] == ["../base"]
    assert [patch["path"] for patch in above["patches"]] == ["daemonset.yaml"]


def test_the_configuration_is_sound_and_mounted() -> None:
    path = KUBERNETES / "base/config.toml"
    settings = config.load(path)
    assert settings.daemon.grpc.address == DEFAULT_ADDRESS
    place, _ = volumes()["config"]
    assert CONTAINER["command"][:3] == ["lamina", "--config", f"{place}/{path.name}"]
    port = settings.daemon.metrics.address.rpartition(":")[2]
    assert [each["containerPort"] for each in CONTAINER["ports"]] == [int(port)]


def test_paths_are_the_same_on_the_node() -> None:
    """Containerd is given paths of the server's, and mounts them on the node."""
    root = toml(KUBERNETES / "base/config.toml")["root"]
    for name, path in (("root", root), ("socket", str(PurePath(DEFAULT_ADDRESS).parent))):
        place, volume = volumes()[name]
        assert place == volume["hostPath"]["path"] == path


def test_the_probes_ask_at_the_socket() -> None:
    probe = CONTAINER["readinessProbe"]["exec"]["command"]
    assert probe == CONTAINER["startupProbe"]["exec"]["command"]
    assert probe[probe.index("--address") + 1] == DEFAULT_ADDRESS


@pytest.mark.parametrize("path", DROP_INS, ids=lambda path: path.stem)
def test_containerds_drop_ins(path: Path) -> None:
    drop_in = toml(path)
    root = Path(toml(KUBERNETES / "base/config.toml")["root"])
    settings = config.load(KUBERNETES / "base/config.toml")
    [(name, proxy)] = drop_in["proxy_plugins"].items()
    assert proxy["address"] == DEFAULT_ADDRESS
    assert proxy["exports"]["root"] == str(directory_of(name.removeprefix(PREFIX), root, settings))
    [runtime_class] = documents(KUBERNETES / "base/runtimeclass.yaml")
    cri = next(section for section in drop_in["plugins"].values() if "containerd" in section)
    assert cri["containerd"]["runtimes"][runtime_class["handler"]]["snapshotter"] == name
    documented = (REPOSITORY / "docs/containerd.md").read_text()
    block = path.read_text().partition("\n\n")[2].partition("\n\n")[0]
    assert block in documented


def test_the_socket_unit_listens_there_too() -> None:
    assert f"ListenStream={DEFAULT_ADDRESS}\n" in (DEPLOY / "systemd/lamina.socket").read_text()


def test_the_image() -> None:
    text = (DEPLOY / "image/Containerfile").read_text()
    for line in re.findall(r"^COPY (?!--)(.*) \S+$", text, re.MULTILINE):
        for source in line.split():
            assert (REPOSITORY / source).exists(), source
    names = re.findall(r"^(?:FROM|ARG BASE=)\s*(\S+)", text, re.MULTILINE)
    assert not [name for name in (*names, CONTAINER["image"]) if "/" in name], "a registry's host"


def test_the_readme_names_what_is_there() -> None:
    text = (DEPLOY / "README.md").read_text()
    for name in re.findall(r"deploy/[\w./-]+", text):
        assert (REPOSITORY / name.rstrip(".")).exists(), name
    for path in (*DROP_INS, KUBERNETES / "base", KUBERNETES / "mounting"):
        assert str(path.relative_to(REPOSITORY)) in text
