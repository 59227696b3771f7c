"""Clocks: how far a server's clock is from that of this machine."""

import time
from collections.abc import Callable

from arkloop.cli.doctor.findings import Finding, fail, ok, warn

#: Seconds. Less is what NTP leaves on a busy machine.
_NOTICED = 2.0
#: Access tokens are valid for 15 minutes, and caches and logs of people compare times by minutes.
_HARMFUL = 60.0


def of_server(name: str, ask: Callable[[], float]) -> Finding:
    """Compare the Unix time that `ask` gets from a server with this machine's."""
    before = time.time()
    theirs = ask()
    after = time.time()
    # The server looked at its clock at some time in between.
    skew = theirs - min(max(theirs, before), after)
    return judged(name, skew)


def judged(name: str, skew: float) -> Finding:
    """Judge by how many seconds a server's clock is ahead of this machine's."""
    if abs(skew) < _NOTICED:
        return ok(f"{name} clock", f"within {max(abs(skew), 0.001):.3f} s of this machine's")
    text = f"{abs(skew):,.1f} s {'ahead of' if skew > 0 else 'behind'} this machine's"
    advice = (
        "Synchronize the clocks of all machines (NTP): tokens and tickets are valid by the clock of"
        " the web process, everything else by that of Postgres."
    )
    return (fail if abs(skew) >= _HARMFUL else warn)(f"{name} clock", text, advice)
