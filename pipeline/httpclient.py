"""The HTTP client of those who call others: the dead letters' command and the sinks."""

from __future__ import annotations

from typing import Any

import httpx

from pipeline.errors import Invalid


def is_http(url: str) -> bool:
    """Whether it is a URL of HTTP that names a host, and a port, that there can be."""
    try:
        parsed = httpx.URL(url)
        parsed.host.encode("idna")  # as whoever looks the name up does
        known = parsed.scheme in ("http", "https") and bool(parsed.host) and 0 <= (parsed.port or 0) < 2**16
    except (httpx.InvalidURL, ValueError):
        return False
    return known and not any(each.isspace() for each in url)


def http_client(**options: Any) -> httpx.Client:
    """As httpx.Client takes them; a `base_url` is one that `is_http`. Invalid: what the environment says of proxies or certificates
    cannot be used."""
    try:
        return httpx.Client(**options)
    except (ImportError, ValueError, httpx.InvalidURL) as error:  # a SOCKS proxy needs a package; a URL of one that is none
        raise Invalid(f"HTTP_PROXY, HTTPS_PROXY or ALL_PROXY: {error}") from None
    except OSError as error:
        raise Invalid(f"SSL_CERT_FILE or SSL_CERT_DIR: {error.strerror or error}; expected certificates as PEM") from None
