"""The remote snapshot protocol: a layer that its snapshotter serves itself is never unpacked.

Whoever unpacks an image prepares an extraction snapshot for each layer, and names the chain id that
it is to become (SNAPSHOT_REF). A driver that can serve the layer from elsewhere claims it: it is
committed there and then, and Prepare fails with AlreadyExists, which tells the client that there is
nothing to fetch. What a driver refuses is unpacked as anywhere else.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping

from lamina.core.driver import Claimed, Refused, Remote, Snapshot
from lamina.core.labels import REMOTE, SNAPSHOT_REF
from lamina.errors import LaminaError

log = logging.getLogger(__name__)

REMOTE_VALUE = "remote snapshot"
_COMMIT_SECONDS, _LOOK_SECONDS = 10.0, 0.01
"""How long such a commit may take."""


def layer_of(labels: Mapping[str, str] | None) -> str:
    """Return the chain id that a snapshot with these labels is to become; "" for no layer."""
    return (labels or {}).get(SNAPSHOT_REF, "")


def claimed_labels(driver: Remote, snapshot: Snapshot) -> dict[str, str] | None:
    """Have the driver claim a layer; return the labels to commit it with, None if it does not.

    A failure to claim it is a warning: the layer can still be unpacked.
    """
    layer = layer_of(snapshot.labels)
    try:
        outcome = driver.claim(snapshot)
    except (LaminaError, OSError) as error:
        log.warning("layer %s is unpacked: %s", layer, error, extra={"snapshot": snapshot.id})
        return None
    if isinstance(outcome, Refused):
        reason = outcome.reason
        log.info("layer %s is unpacked: %s", layer, reason, extra={"snapshot": snapshot.id})
        return None
    return _kept(snapshot, outcome)


def wait_until_seen(is_seen: Callable[[], bool]) -> None:
    """Wait for a layer that another thread or process is just committing, having claimed it too.

    Whoever is told that it exists looks for it at once, and fails if it is not there.
    """
    deadline = time.monotonic() + _COMMIT_SECONDS
    while not is_seen() and time.monotonic() < deadline:
        time.sleep(_LOOK_SECONDS)


def _kept(snapshot: Snapshot, claimed: Claimed) -> dict[str, str]:
    """Return all labels: with those of Prepare, the layer can be found again after a restart."""
    return {**snapshot.labels, **claimed.labels, REMOTE: REMOTE_VALUE}
