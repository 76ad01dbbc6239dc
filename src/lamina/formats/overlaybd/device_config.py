"""`config.v1.json`: what a device of overlaybd is made of, from the lowest layer to the uppermost.

Keys that are not known are passed over, as overlaybd does; an empty text is the same as none.
"""

from __future__ import annotations

from typing import Annotated, Any

import msgspec

from lamina.errors import FormatError

FORMAT = "config.v1.json"
MAX_SIZE = 1 << 20
"""Bytes of a file."""

_Size = Annotated[int, msgspec.Meta(ge=0, le=(1 << 63) - 1)]
_Number = Annotated[int, msgspec.Meta(ge=-(1 << 31), le=(1 << 31) - 1)]


class Lower(msgspec.Struct, rename="camel", frozen=True, kw_only=True, omit_defaults=True):
    """A layer that is only read.

    Attributes:
        file: path of the layer; comes before all others.
        dir: directory with the layer as `overlaybd.commit`, `.commit` or `overlaybd.sealed`, and
            where it is put once all of it has been downloaded.
        digest: of the blob in the registry.
        size: bytes of that.
        target_file: path of the original layer's tar (TurboOCI).
        target_digest: of the original layer's blob in the registry.
        gzip_index: path of `gzip.meta` of the original layer, if that is gzip.
    """

    gzip_index: str = ""
    file: str = ""
    digest: str = ""
    target_file: str = ""
    target_digest: str = ""
    size: _Size = 0
    dir: str = ""


class Upper(msgspec.Struct, rename="camel", frozen=True, kw_only=True, omit_defaults=True):
    """The layer that is written to; with neither `index` nor `data` there is none.

    Attributes:
        index: path of the log of mappings; empty for a sparse layer.
        data: path of the data.
        target: path of the original layer's tar (TurboOCI).
        gzip_index: path of `gzip.meta` of that, if it is gzip.
        vsize: GiB of the device, as the snapshotter wants it; overlaybd does not look at it.
    """

    index: str = ""
    data: str = ""
    target: str = ""
    gzip_index: str = ""
    vsize: _Size = 0


class Download(msgspec.Struct, rename="camel", frozen=True, kw_only=True):
    """How blobs are downloaded as a whole; given, it replaces what holds for all devices.

    Attributes:
        enable: whether they are.
        delay: seconds after the device began.
        delay_extra: seconds more, at random.
        max_mbps: MiB a second.
        try_cnt: how often it is tried.
        block_size: bytes of a request.
    """

    enable: bool = False
    delay: _Number = 300
    delay_extra: _Number = 30
    max_mbps: _Number = msgspec.field(default=100, name="maxMBps")
    try_cnt: _Number = 5
    block_size: Annotated[int, msgspec.Meta(ge=0, le=(1 << 32) - 1)] = 262144


class DeviceConfig(msgspec.Struct, rename="camel", frozen=True, kw_only=True, omit_defaults=True):
    """A device.

    Attributes:
        repo_blob_url: `https://HOST/v2/REPOSITORY/blobs`, to which a slash and digests are added.
        lowers: from the lowest to the uppermost.
        upper: what is written to.
        result_file: path of a file that gets `success` or `failed:` and why.
        acceleration_layer: whether the last of `lowers` only has a trace.
        record_trace_path: path of a trace: to be recorded if empty, else to be replayed.
        download: how blobs are downloaded, if other than for all devices.
    """

    repo_blob_url: str = ""
    lowers: tuple[Lower, ...] = ()
    upper: Upper = Upper()
    result_file: str = ""
    acceleration_layer: bool = False
    record_trace_path: str = ""
    download: Download | None = None


_ALWAYS: dict[str, Any] = {"repoBlobUrl": "", "lowers": [], "upper": {}, "resultFile": ""}
"""What overlaybd's snapshotter always writes."""


def read_device_config(raw: bytes, source: object = "") -> DeviceConfig:
    """Return what a file says; `source` is its path, for errors.

    Raises:
        FormatError: it is longer than MAX_SIZE, no JSON, or a key has a value of a wrong type or
            outside its range; the text has its path.
    """
    if len(raw) > MAX_SIZE:
        raise _damaged(f"at most {MAX_SIZE} bytes", str(len(raw)), source)
    try:
        decoded = msgspec.json.decode(raw)
    except (msgspec.DecodeError, RecursionError, UnicodeError) as error:
        raise _damaged("JSON", str(error), source) from error
    if isinstance(decoded, dict):
        # Go writes a list without elements so.
        decoded = {key: value for key, value in decoded.items() if value is not None}
    try:
        return msgspec.convert(decoded, DeviceConfig)
    except msgspec.ValidationError as error:
        raise _damaged("values of the format's types", str(error), source) from error


def write_device_config(config: DeviceConfig) -> bytes:
    """Return the file; equal configurations give equal bytes."""
    return msgspec.json.encode(_ALWAYS | msgspec.to_builtins(config))


def _damaged(expected: str, got: str, source: object) -> FormatError:
    return FormatError(FORMAT, 0, expected=expected, got=got[:500], source=source)
