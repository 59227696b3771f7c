"""The times of runs that tests store."""

import pytest
from sqlalchemy.dialects import postgresql

from tests.stored_runs import ago


@pytest.mark.parametrize(
    ("length", "seconds"),
    [({"seconds": 5}, 5), ({"minutes": 2}, 120), ({"hours": 1, "days": 1}, 90_000), ({}, 0)],
)
def test_every_unit_of_a_length_counts(length: dict[str, float], seconds: float) -> None:
    """A test whose rows are to be old has old rows."""
    compiled = ago(**length).compile(dialect=postgresql.dialect())

    assert seconds in compiled.params.values()


def test_an_unknown_unit_of_a_length_is_refused() -> None:
    """It does not count as now."""
    with pytest.raises(TypeError):
        ago(fortnights=1)  # type: ignore[call-arg]  # what is tested
