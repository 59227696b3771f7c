"""Rows of an org that outlive its erasure, in a cell that it comes back to.

The cell that it comes from has the truth. Here entries may have been added behind the copy of
then: a failed log-in, a suspension after a restore, credits that were granted in the wrong cell.
None of it may keep the org away, and nothing of it gets lost: entries of the audit log are appended
again behind those of the other cell, and movements of the ledger get a contra entry.
"""

from collections.abc import Sequence
from typing import Any
from uuid import UUID

import psycopg
from psycopg.rows import dict_row

from arkloop.shared.audit import audit_log
from arkloop.shared.audit.audit_log import By, NewEntry, Origin
from arkloop.shared.ids import new_id
from arkloop.shared.times import rfc3339

Connection = psycopg.Connection[Any]
Entry = dict[str, Any]

# Of what the other cell does not have, it had the entries up to `common` and has pruned them: its
# first one follows an entry of this cell, or is later than the copy that it was made from. Only
# where this cell knows of no copy do the times decide: after a restore, or if this cell has pruned
# its `org.copied`.
_TAKE_ENTRIES = """
WITH first AS (
    SELECT seq, prev_hash, created_at FROM moved_audit_entries ORDER BY seq LIMIT 1
), common AS (
    SELECT max(e.seq) AS seq FROM audit_entries e JOIN first f ON e.seq < f.seq
    WHERE e.org_id = %(org_id)s
        AND (e.action = 'org.copied' OR (e.seq, e.hash) = (f.seq - 1, f.prev_hash))
), taken AS (
    DELETE FROM audit_entries e WHERE org_id = %(org_id)s AND NOT EXISTS (
        SELECT FROM moved_audit_entries m WHERE m.seq = e.seq AND m.hash = e.hash
    )
    RETURNING *
)
SELECT t.* FROM taken t, common c, first f
WHERE t.seq > c.seq OR c.seq IS NULL AND t.created_at >= f.created_at
ORDER BY t.seq
"""
_LOCK_HEAD = "SELECT seq FROM audit_heads WHERE org_id = %(org_id)s FOR UPDATE"
_SET_HEAD = """
UPDATE audit_heads h SET seq = m.seq, hash = m.hash FROM moved_audit_heads m
WHERE h.org_id = %(org_id)s AND m.org_id = h.org_id AND (h.seq, h.hash) <> (m.seq, m.hash)
"""
_ALLOW = "SELECT set_config(%s, %s, true)"
_PRUNE = "arkloop.audit_prune"
_APPEND = "SELECT append_audit_entry(%(entry)s::jsonb, %(pieces)s::text[])"

# The name is taken off by an erasure of what the org had left behind.
_RESTORE_USERS = """
UPDATE users u SET {columns} FROM moved_users m
WHERE u.id = m.id AND u.login = '@erased-' || u.id AND u.login <> m.login
"""

# The other cell has charged these runs as well, or has yet to end them: each is charged once.
_CHARGED_HERE = """
SELECT l.id FROM ledger_entries l
WHERE l.org_id = %(org_id)s AND l.run_id IS NOT NULL
    AND NOT EXISTS (SELECT FROM moved_ledger_entries m WHERE m.id = l.id)
"""
_LEDGER = "arkloop.ledger_return"
_TAKE_RUN_OFF = "UPDATE ledger_entries SET run_id = NULL WHERE id = ANY (%s)"
# Of movements between the same accounts, with contra entries of an earlier return.
_MOVED_HERE = """
SELECT kind, one, other, sum(credits)::bigint
FROM (
    SELECT kind, least(debit_account, credit_account) AS one,
        greatest(debit_account, credit_account) AS other,
        CASE WHEN debit_account < credit_account THEN credits ELSE -credits END AS credits
    FROM ledger_entries l WHERE org_id = %(org_id)s
        AND NOT EXISTS (SELECT FROM moved_ledger_entries m WHERE m.id = l.id)
) AS here
GROUP BY kind, one, other HAVING sum(credits) <> 0
"""
_CONTRA = """
INSERT INTO ledger_entries (id, org_id, kind, debit_account, credit_account, credits, note)
VALUES (%s, %s, %s, %s, %s, %s, 'entered here while another cell had the organization')
"""


def remove_diverged_entries(target: Connection, org_id: UUID) -> list[Entry]:
    """Remove those entries of the audit log that the other cell does not have; returns them.

    Nobody appends until the end of the transaction.
    """
    target.execute(_LOCK_HEAD, {"org_id": org_id})
    target.execute(_ALLOW, [_PRUNE, "on"])
    with target.cursor(row_factory=dict_row) as cursor:
        taken = cursor.execute(_TAKE_ENTRIES, {"org_id": org_id}).fetchall()
    target.execute(_ALLOW, [_PRUNE, "off"])
    return taken


def set_head(target: Connection, org_id: UUID) -> None:
    """Set the head of the audit log to that of the other cell."""
    target.execute(_ALLOW, [_PRUNE, "on"])
    target.execute(_SET_HEAD, {"org_id": org_id})
    target.execute(_ALLOW, [_PRUNE, "off"])


def append_again(target: Connection, org_id: UUID, entries: Sequence[Entry]) -> None:
    """Append entries that were taken, with their first numbers and times in `details`."""
    for entry in entries:
        by = {name: entry[f"actor_{name}"] for name in ("type", "user_id", "api_key_id")}
        former = {
            "former_seq": entry["seq"],
            "former_created_at": rfc3339(entry["created_at"]),
        }
        has_target = entry["target_type"] is not None
        again = NewEntry(
            org_id=org_id,
            action=entry["action"],
            by=By(**by, end_user_id=entry["actor_end_user_id"]),
            target=(entry["target_type"], entry["target_id"]) if has_target else None,
            details={**former, **entry["details"]},  # an earlier return has noted them
            origin=Origin(ip=entry["ip"], user_agent=entry["user_agent"]),
        )
        target.execute(_APPEND, audit_log.arguments(again))


def restore_users(target: Connection, columns: Sequence[str]) -> None:
    """Give users whose name was taken off here what the other cell has of them."""
    values = ", ".join(f'"{name}" = m."{name}"' for name in columns)
    target.execute(_RESTORE_USERS.format(columns=values))


def detach_charges(target: Connection, org_id: UUID) -> None:
    """Take the run off movements of the ledger that the other cell does not have."""
    charged = [id_ for (id_,) in target.execute(_CHARGED_HERE, {"org_id": org_id})]
    if charged:
        target.execute(_ALLOW, [_LEDGER, "on"])
        target.execute(_TAKE_RUN_OFF, [charged])
        target.execute(_ALLOW, [_LEDGER, "off"])


def enter_contra(target: Connection, org_id: UUID) -> None:
    """Undo by contra entries what the ledger has that the other cell does not have."""
    for kind, one, other, credits in target.execute(_MOVED_HERE, {"org_id": org_id}).fetchall():
        debit, credit = (other, one) if credits > 0 else (one, other)
        target.execute(_CONTRA, [new_id(), org_id, kind, debit, credit, abs(credits)])
