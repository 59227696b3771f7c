"""Questions to the service and to the local model: do they answer on this machine?"""

import json
from contextlib import suppress
from urllib.request import ProxyHandler, build_opener


def problem_of(url: str) -> str | None:
    """Return why the service does not execute runs yet, by `/readyz`; None if it does."""
    try:
        degraded = json.loads(_read(f"{url}/readyz")).get("degraded", [])
    except (OSError, ValueError) as error:
        return str(error)
    return "no worker yet" if "workers" in degraded else None


def answers(url: str) -> bool:
    """Return whether a request for the URL succeeds."""
    with suppress(OSError):
        return bool(_read(url))
    return False


def _read(url: str) -> bytes:
    """Return the body of a successful response. Raises: OSError: there is none."""
    with build_opener(ProxyHandler({})).open(url, timeout=1) as response:
        body: bytes = response.read()
        return body
