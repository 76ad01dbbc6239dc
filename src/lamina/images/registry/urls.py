"""URLs that others wrote: hosts.toml, redirects, token servers."""

from __future__ import annotations

from urllib.parse import SplitResult, urljoin, urlsplit


def split_url(url: str) -> SplitResult | None:
    """Return the parts of an http or https URL with a host and a possible port, else None."""
    try:
        parts = urlsplit(url)
        usable = parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return None
    return parts if usable else None


def join_url(base: str, location: str) -> str:
    """Return where a Location header leads, "" if nowhere that http or https can go."""
    try:
        url = urljoin(base, location)
    except ValueError:
        return ""
    return url if split_url(url) else ""
