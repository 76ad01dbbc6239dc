"""Which blob of which image a layer is, as the labels of its extraction snapshot say."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from lamina.core.labels import MANIFEST_DIGEST, PLAIN_HTTP
from lamina.errors import DataLoss, InvalidArgument, NotImplementedHere
from lamina.formats.rafs.annotations import BLOB, BOOTSTRAP, ENCRYPTED, FS_VERSION
from lamina.snapshotters.lazy_labels import digest_in, reference_in, size_in

BLOB_NOTE = "blob.json"
"""What is kept beside a layer that is a blob."""
BOOTSTRAP_NOTE = "bootstrap.json"
"""The same beside one that has a bootstrap."""
_VERSIONS = ("5", "6")
PULL_HINT = (
    "push the image and pull it from its registry; a containerd has to set cri.image-ref and"
    " cri.layer-digest: see docs/snapshotters/nydus.md"
)


class Origin(NamedTuple):
    """Where a layer comes from.

    Attributes:
        reference: the image's, with its registry's host; "" where no label tells.
        digest: of the layer's blob; "" where no label tells.
        size: of the blob in bytes; 0 where no label tells.
        manifest: digest of the manifest that names the blob; "" where no label tells.
        plain_http: its registry was asked without TLS.
    """

    reference: str
    digest: str
    size: int = 0
    manifest: str = ""
    plain_http: bool = False

    def write(self, path: Path) -> None:
        """Keep it."""
        import json  # lists of snapshotters do without

        path.write_text(json.dumps(self._asdict()), encoding="utf-8")


def origin_of(labels: Mapping[str, str]) -> Origin:
    """Return what the labels say.

    Raises:
        InvalidArgument: a digest or size is none.
    """
    return Origin(
        reference_in(labels),
        digest_in(labels) or "",
        size_in(labels),
        labels.get(MANIFEST_DIGEST, ""),
        labels.get(PLAIN_HTTP) == "true",
    )


def read_origin(path: Path) -> Origin | None:
    """Return what was kept; None where nothing was.

    Raises:
        DataLoss: it is damaged.
    """
    import json

    try:
        return Origin(**json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError) as error:
        raise DataLoss(f"read where a Nydus layer comes from: {error}", path) from error


def require_servable(labels: Mapping[str, str]) -> None:
    """Refuse a layer of a Nydus image that can neither be served nor be unpacked.

    Raises:
        NotImplementedHere: it is of a kind that is not supported, which is named.
        InvalidArgument: its labels do not say where to fetch it.
    """
    if ENCRYPTED in labels:
        hint = "use the image that it was made from, which is not encrypted"
        raise NotImplementedHere("serve a Nydus image:", "it is encrypted", hint=hint)
    version = labels.get(FS_VERSION, _VERSIONS[0])
    if BOOTSTRAP in labels and version not in _VERSIONS:
        hint = f"convert it with --fs-version {_VERSIONS[-1]}"
        raise NotImplementedHere("serve a Nydus image of fs-version", version, hint=hint)
    if BLOB not in labels:
        return
    origin = origin_of(labels)
    if not origin.reference or not origin.digest:
        raise InvalidArgument(
            "serve a Nydus blob: the labels of its snapshot do not say which image it is of",
            hint=PULL_HINT,
        )
