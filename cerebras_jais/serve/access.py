"""Who may ask: no page of another site, no name that another site has pointed at this machine, none without a key."""

from __future__ import annotations

import hmac
import ipaddress
import re
from collections.abc import Collection

from cerebras_jais.serve.http11 import Head, HttpError


def check_origin(head: Head, hosts: Collection[str]) -> None:
    """Refuse what a page of another site asks.

    A browser tells the page's site in Origin, and in Host the name under which it reached this machine. That name may
    be one that the other site has pointed here (DNS rebinding), which an IP address cannot be.

    Args:
        hosts: names in small letters that Host may have beside `localhost`.

    Raises HttpError 421 or 403.
    """
    host = head.fields.get("host", "").lower()
    name = _name_of(host)
    if not (name == "localhost" or name in hosts or _is_address(name)):
        raise HttpError(
            421, "the Host field is no name of this server; use its address, or start it with --allow-host NAME"
        )
    origin = head.fields.get("origin")
    if origin is not None and origin.lower() not in (f"http://{host}", f"https://{host}"):
        raise HttpError(403, "pages of other sites may not use this server; use its own page")


def check_key(head: Head, key: str | None) -> None:
    """Raises HttpError 401 where there is a key and the request does not have it."""
    if key is None:
        return
    kind, _, given = head.fields.get("authorization", "").partition(" ")
    right = hmac.compare_digest(given.strip().encode(), key.encode())
    if kind.lower() != "bearer" or not right:
        raise HttpError(
            401,
            "the key is missing or wrong; send Authorization: Bearer KEY",
            code="invalid_api_key",
            fields={"WWW-Authenticate": "Bearer"},
        )


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches an address that a server is bound to."""
    return host == "localhost" or (_is_address(host) and ipaddress.ip_address(host).is_loopback)


def _name_of(host: str) -> str:
    """The name or address of a Host field without its port; empty for anything else."""
    found = re.fullmatch(r"(\[[0-9a-f:.]+\]|[a-z0-9._-]+)(:[0-9]{1,5})?", host, re.ASCII)
    return found[1].strip("[]") if found else ""


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
