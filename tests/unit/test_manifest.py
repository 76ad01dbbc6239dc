"""Decoding of manifests, indexes and image configurations."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lamina.core.digest import Digest, sha256
from lamina.errors import DigestMismatch, FormatError, InvalidArgument, NotImplementedHere
from lamina.images.manifest import (
    DOCKER_INDEX,
    DOCKER_MANIFEST,
    MAX_LAYERS,
    MAX_MANIFEST_BYTES,
    OCI_CONFIG,
    OCI_INDEX,
    OCI_LAYER_GZIP,
    OCI_MANIFEST,
    Descriptor,
    Index,
    Manifest,
    check_blob,
    content_ref,
    encode,
    is_foreign,
    is_layer,
    parse_config,
    parse_manifest,
)
from lamina.images.tree import child_labels, descendants, read_image

DIGEST = "sha256:" + "ab" * 32
CONFIG = {"mediaType": OCI_CONFIG, "digest": DIGEST, "size": 2}
LAYER = {"mediaType": OCI_LAYER_GZIP, "digest": DIGEST, "size": 3}


def manifest(**changes: object) -> bytes:
    return json.dumps({"schemaVersion": 2, "config": CONFIG, "layers": [LAYER], **changes}).encode()


def test_unknown_fields_and_nulls_are_ignored() -> None:
    data = manifest(new={"a": [1]}, annotations=None, layers=[{**LAYER, "x": 1, "urls": None}])
    found = parse_manifest(data, DOCKER_MANIFEST)
    assert isinstance(found, Manifest)
    assert found.layers[0].size == 3


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"", "JSON"),
        (b"[]", "a JSON object"),
        (b"{", "JSON"),
        (b"\xff\xfe", "JSON"),
        (b'{"a":' * 100_000, "JSON"),
        (manifest(config=None), "config"),
        (manifest(config=1), r"\$\.config"),
        (manifest(layers=[{**LAYER, "size": -1}]), r"\$\.layers\[0\]\.size"),
        (manifest(layers=[{**LAYER, "size": 2**70}]), r"\$\.layers\[0\]\.size"),
        (manifest(layers=[{**LAYER, "size": "3"}]), r"\$\.layers\[0\]\.size"),
        (manifest(layers=[{**LAYER, "digest": "sha256:ab"}]), r"\$\.layers\[0\]\.digest"),
        (manifest(layers=[{**LAYER, "digest": DIGEST + "\n"}]), r"\$\.layers\[0\]\.digest"),
        (manifest(layers=[{**LAYER, "digest": "../../etc/passwd"}]), r"\.digest"),
        (manifest(layers=[LAYER] * (MAX_LAYERS + 1)), f"at most {MAX_LAYERS} layers"),
        (manifest(manifests=[]), "no field manifests"),
        (manifest(mediaType=OCI_INDEX), "mediaType"),
        (b" " * (MAX_MANIFEST_BYTES + 1), "at most"),
    ],
)
def test_refused(data: bytes, text: str) -> None:
    with pytest.raises(FormatError, match=text):
        parse_manifest(data, OCI_MANIFEST)


@pytest.mark.parametrize("field", ["config", "layers"])
def test_an_index_is_no_manifest_too(field: str) -> None:
    data = json.dumps({"schemaVersion": 2, "manifests": [], field: CONFIG}).encode()
    with pytest.raises(FormatError, match=f"no field {field}"):
        parse_manifest(data, DOCKER_INDEX)


def test_schema_1_is_named() -> None:
    with pytest.raises(NotImplementedHere, match="schema 1"):
        parse_manifest(b'{"schemaVersion":1}', DOCKER_MANIFEST)
    with pytest.raises(NotImplementedHere, match="schema 1"):
        parse_manifest(b"{}", "application/vnd.docker.distribution.manifest.v1+prettyjws")


def test_other_media_types() -> None:
    with pytest.raises(InvalidArgument, match="text/html"):
        parse_manifest(b"{}", "text/html")


@given(st.binary(max_size=200) | st.text(max_size=200).map(str.encode))
def test_nothing_but_the_tree_is_raised(data: bytes) -> None:
    with pytest.raises(FormatError):
        parse_manifest(data, OCI_MANIFEST)
    with pytest.raises(FormatError):
        parse_config(b"[" + data)


def test_config_of_an_image() -> None:
    config = parse_config(
        b'{"architecture":"arm64","os":"linux","variant":"v8","created":"2024-02-30T99:99Z",'
        b'"config":{"Env":["A=b"],"Entrypoint":null,"Cmd":["x"],"User":"1:2","WorkingDir":"/w",'
        b'"Labels":{"a":"b"},"StopSignal":"9","Volumes":{"/v":{}}},'
        b'"rootfs":{"type":"layers","diff_ids":["' + DIGEST.encode() + b'"]}}'
    )
    assert config.platform.variant == "v8"
    assert config.config.env == ("A=b",)
    assert config.config.entrypoint == ()
    assert config.config.user == "1:2"
    assert config.rootfs.diff_ids == (DIGEST,)


def test_encoding_is_stable_and_keeps_its_version() -> None:
    entry = Descriptor(media_type=OCI_MANIFEST, digest=Digest(DIGEST), size=1)
    index = Index(schema_version=2, media_type=OCI_INDEX, manifests=(entry,))
    data = encode(index)
    assert json.loads(data)["schemaVersion"] == 2
    assert parse_manifest(data, OCI_INDEX) == index
    assert encode(index) == data


def test_check_blob() -> None:
    good = Descriptor(media_type=OCI_CONFIG, digest=sha256(b"ok"), size=2)
    check_blob(b"ok", good)
    with pytest.raises(DigestMismatch, match="size in bytes: expected 2, got 3"):
        check_blob(b"ok!", good)
    with pytest.raises(DigestMismatch, match="expected sha256:"):
        check_blob(b"no", good)


def test_kinds_of_layers() -> None:
    foreign = "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"
    assert is_layer(OCI_LAYER_GZIP)
    assert is_layer(foreign)
    assert is_foreign(foreign)
    assert not is_foreign(OCI_LAYER_GZIP)
    assert not is_layer(OCI_LAYER_GZIP.replace("tar", "tarball"))
    entry = Descriptor(media_type=OCI_LAYER_GZIP, digest=Digest(DIGEST), size=1)
    assert content_ref(entry) == f"layer-{DIGEST}"


def test_labels_for_the_collector() -> None:
    assert child_labels(parse_manifest(manifest(), OCI_MANIFEST)) == {
        "containerd.io/gc.ref.content.config": DIGEST,
        "containerd.io/gc.ref.content.l.0": DIGEST,
    }


def test_indexes_in_indexes_are_bounded() -> None:
    entry = Descriptor(media_type=OCI_INDEX, digest=Digest(DIGEST), size=1)
    endless = encode(Index(schema_version=2, media_type=OCI_INDEX, manifests=(entry,)))
    with pytest.raises(FormatError, match="in each other"):
        list(descendants(entry, lambda _: endless))


def test_an_artifact_is_no_image() -> None:
    other = {**CONFIG, "mediaType": "application/vnd.cncf.helm.config.v1+json"}
    chart = Descriptor(media_type=OCI_MANIFEST, digest=Digest(DIGEST), size=1)
    with pytest.raises(InvalidArgument, match="helm"):
        read_image(chart, lambda _: manifest(config=other))
