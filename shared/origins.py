"""Origins, as browsers write them: `https://runs.example.com`."""

import re

ORIGIN = re.compile(
    r"(?P<scheme>https?)://([a-z0-9_]([a-z0-9_.-]*[a-z0-9_])?|\[[0-9a-f:.]+\])(:(?P<port>[1-9][0-9]{0,4}))?"
)
_SAFE = re.compile(r"https:|http://(localhost|127(\.[0-9]+){3}|\[::1\])(:|\Z)")


def problem_of_public_url(url: str) -> str | None:
    """Return why an origin is none at which people log in; only loopback needs no TLS."""
    if not ORIGIN.fullmatch(url):
        return f"{url!r} is not an origin such as https://runs.example.com, in lower case"
    if not _SAFE.match(url):
        return "must begin with https://, except on loopback"
    return None
