"""Personas that an org publishes."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import insert

from arkloop.shared.catalog import client_tools, output_schema, published_personas
from arkloop.shared.catalog import personas as definitions
from arkloop.shared.errors import InvalidRequest, PersonaPublished
from arkloop.shared.ids import new_id
from arkloop.shared.storage.connections import Connections
from arkloop.shared.storage.tables.catalog import mcp_configs, personas
from tests.clients import Register
from tests.stored_runs import StoredRuns
from tests.waiting import in_parallel

VERSIONS = st.one_of(
    st.integers(0, 200).map(str),
    st.from_regex(r"[0-9]{1,4}", fullmatch=True),
    st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,3}", fullmatch=True),
    st.just("9" * 64),
)


@pytest.fixture
def other(connections: Connections, register: Register) -> StoredRuns:
    """Another org."""
    return StoredRuns.of(connections, register())


def publish(stored: StoredRuns, key: str, version: str | None = None, **definition: object) -> str:
    """Publish a version and return its id."""
    with stored.connections.transaction() as tx:
        row = published_personas.publish(tx, stored.actor, key, version, definition)
        return published_personas.persona_of(row).id


def row_of(stored: StoredRuns, key: str, version: str) -> dict[str, object]:
    """Build a published persona as it is in the database."""
    return {
        "org_id": stored.actor.org_id,
        "key": key,
        "version": version,
        "definition": {},
        "created_by_user_id": stored.actor.user_id,
    }


def overview(stored: StoredRuns) -> tuple[dict[str, str], frozenset[str]]:
    with stored.connections.reading() as sql:
        return published_personas.overview(sql, stored.actor.org_id)


def test_versions_are_counted(stored: StoredRuns) -> None:
    """Versions count from 1 for a new key, and from the built-in's for its key; other texts do not
    count.
    """
    assert "mine@1" == publish(stored, "mine")
    assert "mine@2" == publish(stored, "mine")
    assert "mine@rc" == publish(stored, "mine", "rc")
    assert "mine@41" == publish(stored, "mine", "41")
    assert "mine@42" == publish(stored, "mine")
    assert "assistant@2" == publish(stored, "assistant")


def test_of_those_who_publish_at_once_each_gets_a_number(stored: StoredRuns) -> None:
    """Sixteen at the same time: no hole, none twice."""
    made = in_parallel(16, lambda _: publish(stored, "busy"))

    assert {f"busy@{number}" for number in range(1, 17)} == set(made)


def test_a_client_tool_that_an_earlier_release_took_stays(stored: StoredRuns) -> None:
    """Its schema is not one that is accepted now; the persona is there all the same."""
    loose = {"type": "object", "$defs": {"x": {"type": "text"}}}
    tool = {"name": "locate", "description": "x", "parameters": loose, "client": True}
    publish(stored, "mine", "1", client_tools=[tool])

    with stored.connections.reading() as sql:
        row = published_personas.find(sql, stored.actor.org_id, "mine", "1")
    assert row is not None
    [read] = published_personas.persona_of(row).client_tools
    assert loose == read.parameters
    with pytest.raises(ValueError, match="Not a JSON Schema"):
        client_tools.check_new([read])


WEIGHTY = {"type": "string", "pattern": "(?i)^[a-zà-ÿ][a-zà-ÿ' .-]*$"}


@pytest.mark.parametrize(
    "properties",
    [
        {"x": {"type": "number", "multipleOf": 1e-31}},
        {"x": {"$ref": "#/allOf/-1"}},
        {f"x{number}": WEIGHTY for number in range(12)},
    ],
    ids=["divisor", "reference", "patterns"],
)
def test_a_schema_that_an_earlier_release_took_stays(
    stored: StoredRuns, properties: dict[str, object]
) -> None:
    """No release may refuse what cannot be published again: queued runs have this version, too."""
    schema = {"type": "object", "properties": properties}
    tool = {"name": "locate", "description": "x", "parameters": schema, "client": True}
    publish(stored, "mine", "1", output_schema=schema, client_tools=[tool])

    with stored.connections.reading() as sql:
        row = published_personas.find(sql, stored.actor.org_id, "mine", "1")
    assert row is not None
    read = published_personas.persona_of(row)
    assert [schema, schema] == [read.output_schema, read.client_tools[0].parameters]
    with pytest.raises(
        ValueError, match=r"beyond the limit|not supported|too large|Unresolvable|multiple"
    ):
        output_schema.check_new(schema)


def test_a_published_version_stays(stored: StoredRuns) -> None:
    """A second one of the same id is refused, and one of a built-in's id."""
    publish(stored, "mine", "1", system_prompt="first")

    with pytest.raises(PersonaPublished):
        publish(stored, "mine", "1", system_prompt="second")
    with pytest.raises(PersonaPublished):
        publish(stored, "assistant", "1")
    with stored.connections.reading() as sql:
        row = published_personas.find(sql, stored.actor.org_id, "mine", "1")
    assert row is not None
    assert "first" == published_personas.persona_of(row).system_prompt


def test_after_the_last_number_a_version_must_be_given(stored: StoredRuns) -> None:
    """The next one would be too long for an id."""
    publish(stored, "mine", "9" * 64)

    with pytest.raises(InvalidRequest) as raised:
        publish(stored, "mine")
    assert ["version"] == list(raised.value.details)


def test_an_org_has_so_many_and_no_more(
    stored: StoredRuns, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The number of personas that an org publishes is limited, over all keys together."""
    monkeypatch.setattr(published_personas, "MAX_PERSONAS", 2)
    publish(stored, "a")
    publish(stored, "b")

    with pytest.raises(InvalidRequest):
        publish(stored, "c")


def test_mcp_servers_must_be_there(stored: StoredRuns) -> None:
    """The org's own; a missing one is named."""
    with stored.connections.transaction() as tx:
        tx.sql.execute(
            insert(mcp_configs).values(
                id=new_id(), org_id=stored.actor.org_id, name="time", transport="stdio"
            )
        )

    assert "mine@1" == publish(stored, "mine", mcp=["time"])
    with pytest.raises(InvalidRequest) as raised:
        publish(stored, "mine", mcp=["time", "space"])
    assert {"mcp": ["unknown MCP server 'space'"]} == raised.value.details


def test_the_list_is_in_order_and_goes_on_after_any_row(stored: StoredRuns) -> None:
    """Personas are listed by the codes of their characters, whatever the database's collation, and
    after any row.
    """
    made = [publish(stored, key, version) for key in "bBa" for version in ("1", "Z", "a", "10")]

    walked: list[str] = []
    after: tuple[str, str] | None = None
    while True:
        with stored.connections.reading() as sql:
            rows = published_personas.list_(sql, stored.actor.org_id, limit=5, after=after)
        if not rows:
            break
        walked += [f"{row.key}@{row.version}" for row in rows]
        after = (rows[-1].key, rows[-1].version)

    assert sorted(made, key=lambda id_: tuple(id_.split("@"))) == walked


def test_an_org_sees_its_own_alone(stored: StoredRuns, other: StoredRuns) -> None:
    """The list, an id and the overview show an org its own personas alone."""
    publish(other, "theirs", "1")

    with stored.connections.reading() as sql:
        org_id = stored.actor.org_id
        assert [] == published_personas.list_(sql, org_id, limit=10, after=None)
        assert published_personas.find(sql, org_id, "theirs", "1") is None
    assert ({}, frozenset()) == overview(stored)


def test_an_id_that_a_later_release_builds_in_is_told(stored: StoredRuns) -> None:
    """It was the org's before, and stays what it was."""
    with stored.connections.transaction() as tx:
        tx.sql.execute(insert(personas).values(row_of(stored, "careful", "1")))

    assert ({"careful": "1"}, frozenset({"careful@1"})) == overview(stored)


def test_versions_that_are_no_numbers_sort_before_all_numbers(stored: StoredRuns) -> None:
    """The database orders versions as the code does, words before 0."""
    for version in ("draft", "0"):
        publish(stored, "mine", version)

    assert {"mine": "0"} == overview(stored)[0]


def test_the_database_and_the_code_agree_on_the_newest(stored: StoredRuns) -> None:
    """The database and the code find the same newest version, for any set of versions."""
    org_id = stored.actor.org_id

    @given(st.sets(VERSIONS, min_size=1, max_size=12))
    def agree(versions: set[str]) -> None:
        rows = [row_of(stored, "mine", version) for version in versions]
        with stored.connections.transaction() as tx:
            tx.sql.execute(insert(personas), rows)
            newest, _ = published_personas.overview(tx.sql, org_id)
            tx.sql.execute(personas.delete().where(personas.c.org_id == org_id))

        assert definitions.newest(versions) == newest["mine"]

    agree()
