"""How to reach the registry of a layer, as it is kept beside the layer."""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path
from typing import NamedTuple

from lamina.core.cancel import within
from lamina.errors import DataLoss
from lamina.lazy.policy import FILL_SECONDS

ACCESS = "registry.json"


class Access(NamedTuple):
    """How to reach a registry; no credentials, which are looked for anew each time.

    Attributes:
        hosts: a `certs.d` directory, or "".
        docker_config: a docker `config.json`, or "".
        plain_http: without TLS.
        fetching_seconds: how long a reader waits for it, or whoever asks whether it has a layer.
    """

    hosts: str = ""
    docker_config: str = ""
    plain_http: bool = False
    fetching_seconds: float = FILL_SECONDS

    def patience(self) -> AbstractContextManager[None]:
        """Have what the block asks of the registry take no longer than a reader would wait."""
        return within(self.fetching_seconds)

    def write(self, directory: Path) -> None:
        """Keep it in a layer's directory."""
        import json  # lists of snapshotters do without

        (directory / ACCESS).write_text(json.dumps(self._asdict()), encoding="utf-8")


def read_access(directory: Path) -> Access:
    """Return what was kept.

    Raises:
        DataLoss: it is gone or damaged.
    """
    import json

    path = directory / ACCESS
    try:
        return Access(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise DataLoss(f"read how to reach a registry: {error}", path) from error
