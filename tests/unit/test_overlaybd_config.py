"""config.v1.json: as overlaybd's snapshotter writes it, and what is refused of it."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lamina.errors import FormatError
from lamina.formats.overlaybd.device_config import (
    MAX_SIZE,
    DeviceConfig,
    Download,
    Lower,
    Upper,
    read_device_config,
    write_device_config,
)

DIGEST = "sha256:" + "a" * 64
TEXT = (
    '{"repoBlobUrl":"https://registry.example/v2/a/b/blobs",'
    '"lowers":[{"file":"/opt/base"},'
    f'{{"digest":"{DIGEST}","size":123,"dir":"/s/1/fs"}},'
    f'{{"gzipIndex":"/s/2/fs/gzip.meta","file":"/s/2/fs/ext4.fs.meta","targetDigest":"{DIGEST}",'
    '"dir":"/s/2/fs"},'
    '{"file":"/s/3/fs/ext4.fs.meta","targetFile":"/s/3/layer.tar"}],'
    '"upper":{"index":"/s/4/block/writable_index","data":"/s/4/block/writable_data","vsize":64},'
    '"resultFile":"/s/4/block/init-debug.log",'
    '"accelerationLayer":true,"recordTracePath":"/t",'
    '"download":{"enable":true,"delay":600,"delayExtra":30,"maxMBps":100,"tryCnt":5,'
    '"blockSize":262144}}'
)
CONFIG = DeviceConfig(
    repo_blob_url="https://registry.example/v2/a/b/blobs",
    lowers=(
        Lower(file="/opt/base"),
        Lower(digest=DIGEST, size=123, dir="/s/1/fs"),
        Lower(
            file="/s/2/fs/ext4.fs.meta",
            target_digest=DIGEST,
            dir="/s/2/fs",
            gzip_index="/s/2/fs/gzip.meta",
        ),
        Lower(file="/s/3/fs/ext4.fs.meta", target_file="/s/3/layer.tar"),
    ),
    upper=Upper(index="/s/4/block/writable_index", data="/s/4/block/writable_data", vsize=64),
    result_file="/s/4/block/init-debug.log",
    acceleration_layer=True,
    record_trace_path="/t",
    download=Download(enable=True, delay=600),
)


def test_reads_and_writes() -> None:
    assert read_device_config(TEXT.encode()) == CONFIG
    assert write_device_config(CONFIG).decode() == TEXT


def test_what_says_nothing() -> None:
    empty = b'{"repoBlobUrl":"","lowers":[],"upper":{},"resultFile":""}'
    assert write_device_config(DeviceConfig()) == empty
    for raw in (b"{}", empty, b'{"lowers":null,"upper":null,"download":null}'):
        assert read_device_config(raw) == DeviceConfig()


def test_other_keys_are_passed_over() -> None:
    more = json.loads(TEXT) | {"later": [1], "x": None}
    more["lowers"][0]["later"] = more["upper"]["later"] = {}
    assert read_device_config(json.dumps(more, indent=2).encode()) == CONFIG


def test_cut_off() -> None:
    for length in range(len(TEXT)):
        with pytest.raises(FormatError):
            read_device_config(TEXT[:length].encode())


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        (b"[]", "Expected `object`, got `array`"),
        (b'{"lowers":{}}', r"Expected `array`, got `object` - at `\$.lowers`"),
        (b'{"lowers":[{"size":"1"}]}', r"Expected `int`, got `str` - at `\$.lowers\[0\].size`"),
        (b'{"lowers":[{"size":-1}]}', r"`int` >= 0 - at `\$.lowers\[0\].size`"),
        (b'{"lowers":[{"size":1.5}]}', r"`int`, got `float`"),
        (b'{"lowers":[{"size":9223372036854775808}]}', r"9223372036854775807"),
        (b'{"lowers":[{},{"file":null}]}', r"`str`, got `null` - at `\$.lowers\[1\].file`"),
        (b'{"upper":{"data":5}}', r"`str`, got `int` - at `\$.upper.data`"),
        (b'{"accelerationLayer":"yes"}', r"`bool`, got `str` - at `\$.accelerationLayer`"),
        (b'{"accelerationLayer":1}', r"`bool`, got `int`"),
        (b'{"download":{"maxMBps":"5"}}', r"`int`, got `str` - at `\$.download.maxMBps`"),
        (b'{"repoBlobUrl":"\xff"}', "JSON"),
        (b"[" * 100_000, "JSON"),
        (b'{"repoBlobUrl":"' + b"a" * MAX_SIZE + b'"}', f"at most {MAX_SIZE} bytes"),
    ],
)
def test_refused(raw: bytes, expected: str) -> None:
    with pytest.raises(FormatError, match=expected):
        read_device_config(raw)


def test_errors_name_the_file() -> None:
    with pytest.raises(FormatError, match=r'config.v1.json in "/s/5/block/config.v1.json"'):
        read_device_config(b"", "/s/5/block/config.v1.json")


TEXTS = st.text(max_size=5)
SIZES = st.integers(0, (1 << 63) - 1)
LOWERS = st.builds(Lower, file=TEXTS, dir=TEXTS, digest=TEXTS, target_file=TEXTS, size=SIZES)


@settings(max_examples=100, deadline=None)
@given(
    st.builds(
        DeviceConfig,
        repo_blob_url=TEXTS,
        lowers=st.lists(LOWERS, max_size=3).map(tuple),
        upper=st.builds(Upper, index=TEXTS, data=TEXTS, target=TEXTS, vsize=SIZES),
        result_file=TEXTS,
        acceleration_layer=st.booleans(),
        record_trace_path=TEXTS,
        download=st.none() | st.builds(Download, enable=st.booleans(), delay=st.integers(0, 9)),
    )
)
def test_any_config(config: DeviceConfig) -> None:
    assert read_device_config(write_device_config(config)) == config
