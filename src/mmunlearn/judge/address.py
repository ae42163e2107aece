"""The address of an endpoint: whether it can be asked, what of it may be shown, and whether it is this machine."""

import ipaddress
from urllib.parse import urlsplit

from mmunlearn.errors import ConfigError


def check_url(url: str) -> None:
    """Make sure that an address can be asked.

    Raises:
        ConfigError: it is empty or no http address.
    """
    example = "the base address of an endpoint, such as judge.url=http://localhost:8000/v1"
    if not url.strip():
        raise ConfigError(f"judge.url is empty. Give {example}; the answers are sent there.")
    try:
        parts = urlsplit(url.strip())
        plain = url.isascii() and url.isprintable() and " " not in url.strip()
        usable = plain and parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # a port that is no number, a bracket left open
        usable = False
    if not usable:
        raise ConfigError(f"judge.url={url}: not an address that starts with http:// or https://. Give {example}.")
    if parts.username or parts.password:
        raise ConfigError(
            "judge.url holds a user name or a password, which would be stored with the ratings' settings. Put the key into the "
            "environment variable that judge.key_variable names."
        )


def host_of(url: str) -> str:
    """Host and port of an address, without a user name or password."""
    return urlsplit(url.strip()).netloc.rpartition("@")[2]


def endpoint_of(url: str) -> str:
    """Identifies an endpoint: host, port and path."""
    return host_of(url) + urlsplit(url.strip()).path.rstrip("/")


def is_local(url: str) -> bool:
    """Whether what is sent there stays on this machine."""
    host = urlsplit(url.strip()).hostname or ""
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:  # a name
        return False
