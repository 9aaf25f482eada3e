"""The page that the server has at `/`, and the headers that it is sent with."""

import base64
import hashlib
import re
from dataclasses import dataclass
from functools import cache
from importlib.resources import files


@dataclass(frozen=True)
class Page:
    """An HTML file in UTF-8, and the headers that belong to its bytes; their number is not among them."""

    content: bytes
    headers: dict[str, str]


@cache
def page() -> Page:
    """Read the page, and name its one style and its one script by their digests.

    The browser runs no other script, sends requests nowhere but to the page's own origin, and takes no text for markup:
    a string cannot become HTML under `require-trusted-types-for`.
    """
    content = (files(__package__) / "page.html").read_bytes()
    policy = (
        "default-src 'none'",
        f"style-src {_digest_of(b'style', content)}",
        f"script-src {_digest_of(b'script', content)}",
        "connect-src 'self'",
        "img-src data:",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
    )
    headers = {
        "Content-Type": "text/html; charset=utf-8",
        "Content-Security-Policy": "; ".join(policy),
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
        "Cross-Origin-Opener-Policy": "same-origin",
        "Cache-Control": "no-cache",
    }
    return Page(content, headers)


def _digest_of(tag: bytes, content: bytes) -> str:
    """What the policy calls the one element of a kind: the digest of its text."""
    (text,) = re.findall(rb"<%b(?: [^>]*)?>(.*?)</%b>" % (tag, tag), content, re.DOTALL)
    return f"'sha256-{base64.b64encode(hashlib.sha256(text).digest()).decode()}'"
