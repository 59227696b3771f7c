"""Fields that check how much there is before they check what it is."""

import pytest
from marshmallow import Schema, ValidationError, fields

from arkloop.api.http.fields import BoundedDict, BoundedList


class Body(Schema):
    items = BoundedList(fields.Integer(), least=1, most=3)
    names = BoundedDict(most=2, keys=fields.String(), values=fields.Integer())


@pytest.mark.parametrize(
    ("values", "problems"),
    [
        ({"items": []}, {"items": ["must have 1 to 3 items"]}),
        ({"items": ["x"] * 9_000}, {"items": ["must have 1 to 3 items"]}),
        (
            {"names": {str(i): "x" for i in range(9_000)}},
            {"names": ["must have at most 2 fields"]},
        ),
    ],
)
def test_too_many_items_are_one_problem_however_bad_each_is(
    values: dict[str, object], problems: dict[str, list[str]]
) -> None:
    """The items are not looked at."""
    with pytest.raises(ValidationError) as caught:
        Body().load(values)

    assert problems == caught.value.messages


def test_items_within_the_bounds_are_checked_each() -> None:
    """A bad item is named by its place."""
    assert {"items": [1, 2, 3], "names": {"a": 1}} == Body().load(
        {"items": [1, 2, 3], "names": {"a": 1}}
    )
    with pytest.raises(ValidationError) as caught:
        Body().load({"items": [1, "x"]})

    assert {"items": {1: ["Not a valid integer."]}} == caught.value.messages
