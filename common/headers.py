"""What every answer tells browsers to keep to; a handler that needs more says so in a header of its own."""

from collections.abc import Sequence

Header = tuple[bytes, bytes]

POLICY = "default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
"""The Content-Security-Policy of data: nothing is run, loaded or framed."""

SCRIPTS_POLICY = f"{POLICY}; script-src 'self'; connect-src 'self'"
"""What a page needs that runs our modules and asks us."""

EVERYWHERE: Sequence[Header] = (
    (b"content-security-policy", POLICY.encode()),
    (b"x-content-type-options", b"nosniff"),
    # Not `no-referrer`: browsers would then say `Origin: null` where a form is posted, even to its own site.
    (b"referrer-policy", b"same-origin"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"permissions-policy", b"camera=(), geolocation=(), microphone=(), payment=(), usb=()"),
)

HTTPS_ONLY: Header = (b"strict-transport-security", b"max-age=31536000")
"""For a year; of this host alone, for it does not know what else there is in its domain."""

NO_STORE: Header = (b"cache-control", b"no-store")


def headers_for(public_url: str) -> Sequence[Header]:
    """The headers of all answers of a system that is reached at this address."""
    return (*EVERYWHERE, HTTPS_ONLY) if public_url.startswith("https://") else EVERYWHERE


def with_headers(answer: Sequence[Header], wanted: Sequence[Header]) -> list[Header]:
    """An answer's headers, and of those wanted the ones that it has not."""
    there = {name for name, _ in answer}
    return [*answer, *(header for header in wanted if header[0] not in there)]
