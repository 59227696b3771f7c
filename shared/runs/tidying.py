"""Tidying up beside the sweep: the deletion of what is too old, and room for events to come."""

from arkloop.shared.billing import usage_days
from arkloop.shared.events import partitions
from arkloop.shared.runs import retention
from arkloop.shared.storage.connections import Connections


def tidy(connections: Connections) -> bool:
    """Delete what is too old, make room for events to come, and sum up the days that are over;
    returns whether more is left.

    Raises:
        Unavailable: Postgres is out of reach.
    """
    partitions.add_ahead(connections)
    are_left = [retention.forget(connections), usage_days.roll_up(connections)]
    return any(are_left)
