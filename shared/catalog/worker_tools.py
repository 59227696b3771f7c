"""The tools that workers of the customer have registered, by the pool of these workers.

A tool stays known while no worker is connected. The definition that was registered last counts.
"""

import hashlib
import json
import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, Row, delete, func, select
from sqlalchemy.dialects.postgresql import insert as upsert

from arkloop.shared import portable_schema, schema_patterns
from arkloop.shared.errors import InvalidRequest, WorkerToolNotFound
from arkloop.shared.json_schema import MAX_NODES, MAX_PATTERNS, InvalidSchema, JsonSchema
from arkloop.shared.storage import org_locks
from arkloop.shared.storage.connections import Transaction
from arkloop.shared.storage.tables.catalog import worker_tools

POOL_NAME = re.compile("[a-z0-9_-]{1,32}")
TOOL_NAME = re.compile("[A-Za-z0-9_-]{1,64}")
MAX_TOOLS = 128  # of one worker
MAX_TOOLS_OF_ORG = 2_000
#: Of the schemas that one request registers or changes, which a web process compiles.
MAX_NODES_TOGETHER = 10 * MAX_NODES
MAX_PATTERN_CHARACTERS_TOGETHER = 4_000 * MAX_PATTERNS
MAX_TIMEOUT_SECONDS = 3_600


@dataclass(frozen=True, slots=True, kw_only=True)
class Definition:
    """A tool, as its worker describes it."""

    name: str
    description: str
    parameters: Mapping[str, Any]
    idempotent: bool = False
    timeout_seconds: float = 60.0

    @property
    def hash(self) -> str:
        """SHA-256 of all fields, in hex."""
        text = json.dumps(asdict(self), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()


def hash_of(tools: Collection[Definition]) -> str:
    """Return the hash by which a worker names all of its tools."""
    hashes = sorted(tool.hash for tool in tools)
    return hashlib.sha256("".join(hashes).encode()).hexdigest()


def register(tx: Transaction, org_id: UUID, pool: str, tools: Sequence[Definition]) -> None:
    """Store the definitions; other tools of the pool stay.

    Raises:
        InvalidRequest: parameters that are no usable schema; the org has too many tools.
    """
    query = select(worker_tools.c.name, worker_tools.c.hash).where(
        worker_tools.c.org_id == org_id, worker_tools.c.pool == pool
    )
    known = {row.name: row.hash for row in tx.sql.execute(query)}
    # In one order: workers that start together do not wait for each other in a circle.
    changed = sorted(
        (tool for tool in tools if known.get(tool.name) != tool.hash), key=lambda tool: tool.name
    )
    if not changed:
        return
    _check_schemas(tools, changed)
    if {tool.name for tool in changed} - known.keys():
        _check_count(tx, org_id, pool, {tool.name for tool in tools})
    values = [
        {**asdict(tool), "org_id": org_id, "pool": pool, "hash": tool.hash} for tool in changed
    ]
    statement = upsert(worker_tools).values(values)
    described = ("description", "parameters", "idempotent", "timeout_seconds", "hash")
    tx.sql.execute(
        statement.on_conflict_do_update(
            index_elements=["org_id", "pool", "name"],
            set_={
                **{name: statement.excluded[name] for name in described},
                "updated_at": func.now(),
            },
        )
    )


def _check_count(tx: Transaction, org_id: UUID, pool: str, names: Collection[str]) -> None:
    """Check that the org can have these tools of the pool with all others. Raises: InvalidRequest.

    Other workers of the pool may register them at the same time: each counts them once.
    """
    # One at a time in an org, so that each counts those of the others.
    org_locks.lock(tx, org_id)
    is_one = (worker_tools.c.pool == pool) & worker_tools.c.name.in_(names)
    others = select(func.count()).where(worker_tools.c.org_id == org_id, ~is_one)
    if (tx.sql.scalar(others) or 0) + len(names) > MAX_TOOLS_OF_ORG:
        why = f"limit reached: {MAX_TOOLS_OF_ORG:,} tools of workers per organization"
        raise InvalidRequest(tools=[why])


def _check_schemas(tools: Sequence[Definition], changed: Sequence[Definition]) -> None:
    problems: dict[str, list[str]] = {}
    nodes, characters, patterns = 0, 0, Counter[str]()
    too_large = "The schemas are too large together:"
    for tool in changed:
        field = f"tools.{tools.index(tool)}.parameters"
        if nodes > MAX_NODES_TOGETHER:
            problems[field] = [f"{too_large} more than {MAX_NODES_TOGETHER:,} nodes."]
            break
        if characters > MAX_PATTERN_CHARACTERS_TOGETHER:
            most = f"{MAX_PATTERN_CHARACTERS_TOGETHER:,} characters"
            count = patterns.total()
            problems[field] = [f"{too_large} {count} patterns count as more than {most}."]
            break
        try:
            schema = JsonSchema(tool.parameters)
            added = portable_schema.check(tool.parameters)
        except InvalidSchema as error:
            problems[field] = [str(error)]
            # It may have had as many, and alternatives whose merging was given up.
            nodes += MAX_NODES + len(json.dumps(tool.parameters)) // 4
        else:
            nodes += schema.nodes + added
            for pattern in {*schema.patterns}:  # a schema compiles an equal one for nothing
                is_known = pattern in patterns
                characters += schema_patterns.characters(pattern, is_known=is_known)
            patterns.update(schema.patterns)
    if problems:
        raise InvalidRequest(**problems)


def of_pools(sql: Connection, org_id: UUID, pools: Collection[str]) -> list[Row[Any]]:
    """Return the tools of these pools, by pool and name."""
    query = select(worker_tools).where(
        worker_tools.c.org_id == org_id, worker_tools.c.pool.in_(pools)
    )
    return list(sql.execute(query.order_by(worker_tools.c.pool, worker_tools.c.name)))


def parameters_of(tool: Row[Any]) -> dict[str, Any] | None:
    """Return the tool's schema with a type, which models require; None if it is not of an object.

    Such a tool was registered before a registration checked the type.
    """
    parameters: dict[str, Any] = tool.parameters
    if "type" not in parameters:
        # Arguments are an object in any case, and some schemas say nothing of it.
        return {"type": "object", "properties": {}, **parameters}
    return parameters if parameters["type"] == "object" else None


def remove(tx: Transaction, org_id: UUID, pool: str, name: str) -> None:
    """Forget a tool, until a worker registers it again. Raises: WorkerToolNotFound."""
    removed = tx.sql.execute(
        delete(worker_tools).where(
            worker_tools.c.org_id == org_id,
            worker_tools.c.pool == pool,
            worker_tools.c.name == name,
        )
    )
    if removed.rowcount == 0:
        raise WorkerToolNotFound()
