"""marshmallow fields that take one spelling of a value and no other.

`json_schema` of a field or a validator is what the description of the API says about it.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, ClassVar
from uuid import UUID

from marshmallow import ValidationError, fields, validate

from arkloop.shared import client_data, usd
from arkloop.shared.catalog import model_settings
from arkloop.shared.ids import CANONICAL, parse_id
from arkloop.shared.runs.thread_queue import OnBusy

_TIME = "must be an RFC 3339 time with an offset, such as 2026-11-29T12:00:00Z"
_DATE_OR_TIME = "must be an RFC 3339 date or date-time"
YEARS = "must be between 2000-01-01 and 9998-12-31 (UTC)"

JsonSchema = dict[str, Any]

_HOUR_AND_MINUTE = r"(?:[01][0-9]|2[0-3]):[0-5][0-9]"
# `fromisoformat` takes much else of ISO 8601: weeks, no dashes and colons, hours alone.
_MOMENT = re.compile(
    r"[0-9]{4}-[0-9]{2}-[0-9]{2}"
    rf"(?P<time>T{_HOUR_AND_MINUTE}:[0-9]{{2}}(?:\.[0-9]+)?(?P<offset>Z|[+-]{_HOUR_AND_MINUTE})?)?",
    re.ASCII | re.IGNORECASE,
)


def repetitions(values: Sequence[str]) -> list[int]:
    """Return the places of those values in a list that it has had before."""
    first: dict[str, int] = {}
    return [place for place, value in enumerate(values) if first.setdefault(value, place) != place]


class CheckedLater(fields.Raw):
    """Any JSON, null included; it is read, by what `json_schema` describes, after the body is."""

    def __init__(self, json_schema: Mapping[str, Any]) -> None:
        super().__init__(allow_none=True)
        self.json_schema = json_schema


class StrictBoolean(fields.Field[bool]):
    """`true` or `false`; not 1, not "yes"."""

    json_schema: ClassVar[JsonSchema] = {"type": "boolean"}

    def _deserialize(self, value: Any, *_args: Any, **_kwargs: Any) -> bool:
        if not isinstance(value, bool):
            raise ValidationError("must be true or false")
        return value


class Id(fields.Field[UUID]):
    """A UUIDv7 in its canonical form."""

    json_schema: ClassVar[JsonSchema] = {
        "type": "string",
        "format": "uuid",
        "pattern": f"^{CANONICAL.pattern}$",
    }

    def _deserialize(self, value: Any, *_args: Any, **_kwargs: Any) -> UUID:
        parsed = parse_id(value)
        if parsed is None:
            raise ValidationError("must be a lower-case UUIDv7 with dashes")
        return parsed


class Digits(fields.Field[int]):
    """A query parameter that is an integer in ASCII digits, within bounds."""

    def __init__(self, *, least: int = 0, most: int = 2**63 - 1, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.least = least
        self.most = most
        self.json_schema = {"type": "integer", "minimum": least, "maximum": most}

    def _deserialize(self, value: Any, *_args: Any, **_kwargs: Any) -> int:
        # At most 19 digits before int(): that is all of 64 bits, and never slow.
        if not re.fullmatch("[0-9]{1,19}", value) or not self.least <= int(value) <= self.most:
            raise ValidationError(f"must be an integer from {self.least} to {self.most}")
        return int(value)


class BoundedList(fields.List[Any]):
    """A list whose length is checked before its items are: thousands of bad ones cost nothing."""

    def __init__(self, inner: fields.Field[Any], *, least: int = 0, most: int, **kw: Any) -> None:
        super().__init__(inner, **kw)
        self.least = least
        self.most = most
        self.json_schema = {"minItems": least, "maxItems": most}

    def _deserialize(self, value: Any, *args: Any, **kwargs: Any) -> list[Any]:
        if isinstance(value, list) and not self.least <= len(value) <= self.most:
            raise ValidationError(f"must have {self.least} to {self.most} items")
        return list(super()._deserialize(value, *args, **kwargs))


class BoundedDict(fields.Dict):
    """An object with names of its own, whose number is checked before they are."""

    def __init__(self, *, most: int, **kw: Any) -> None:
        super().__init__(**kw)
        self.most = most
        self.json_schema = {"maxProperties": most}

    def _deserialize(self, value: Any, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        if isinstance(value, dict) and len(value) > self.most:
            raise ValidationError(f"must have at most {self.most} fields")
        return dict(super()._deserialize(value, *args, **kwargs))  # type: ignore[no-untyped-call]  # marshmallow's


class Metadata(fields.Field[dict[str, str]]):
    """An object of strings, the client's own data."""

    most = client_data.MAX_PAIRS
    value_type: ClassVar[str | list[str]] = "string"

    @property
    def json_schema(self) -> JsonSchema:
        return {
            "type": "object",
            "maxProperties": self.most,
            "propertyNames": {"pattern": f"^{client_data.KEY.pattern}$"},
            "additionalProperties": {
                "type": self.value_type,
                "maxLength": client_data.MAX_VALUE_LENGTH,
            },
        }

    def _deserialize(self, value: Any, *_args: Any, **_kwargs: Any) -> Any:
        if not isinstance(value, dict):
            raise ValidationError("must be an object of strings")
        if len(value) > self.most:
            raise ValidationError(f"must have at most {self.most} pairs")
        problems = {key: [why] for key, text in value.items() if (why := self.problem(key, text))}
        if problems:
            raise ValidationError(problems)
        return value

    @staticmethod
    def check_key(key: str) -> None:
        if not client_data.KEY.fullmatch(key):
            raise ValidationError(f"must match ^{client_data.KEY.pattern}$")

    def problem(self, key: str, value: Any) -> str | None:
        if not client_data.KEY.fullmatch(key):
            return f"the key must match ^{client_data.KEY.pattern}$"
        if not isinstance(value, str) or len(value) > client_data.MAX_VALUE_LENGTH:
            return f"must be a string of at most {client_data.MAX_VALUE_LENGTH} characters"
        return None


class MetadataFilter(Metadata):
    """The pairs of `metadata.<key>=<value>` in a query."""

    most = 4

    @property
    def json_schema(self) -> JsonSchema:
        schema = super().json_schema
        key = client_data.KEY.pattern.removeprefix("^").removesuffix("$")
        return {**schema, "propertyNames": {"pattern": rf"^metadata\.{key}$"}}


class MetadataChange(Metadata):
    """A change of metadata: null removes a key."""

    most = 2 * client_data.MAX_PAIRS  # all can be replaced at once
    value_type: ClassVar[str | list[str]] = ["string", "null"]

    def problem(self, key: str, value: Any) -> str | None:
        return super().problem(key, "" if value is None else value)


class ClientId(fields.String):
    """An id that the client has given, 1 to 128 printable characters."""

    json_schema: ClassVar[JsonSchema] = {"type": "string", "minLength": 1, "maxLength": 128}

    def _deserialize(self, value: Any, *args: Any, **kwargs: Any) -> Any:
        text = super()._deserialize(value, *args, **kwargs)
        if text is not None and (not 1 <= len(text) <= 128 or not text.isprintable()):
            raise ValidationError("must be 1 to 128 printable characters")
        return text


class Moment(fields.Field[datetime]):
    """A time in RFC 3339 with its offset; with `dates` also a date, its first moment in UTC."""

    def __init__(self, *, dates: bool = False, **kw: Any) -> None:
        super().__init__(**kw)
        self.dates = dates
        formats: list[JsonSchema] = [{"format": "date-time"}, {"format": "date"}]
        self.json_schema: JsonSchema = {
            "type": "string",
            **({"anyOf": formats} if dates else {"format": "date-time"}),
        }

    def _deserialize(self, value: Any, *_args: Any, **_kwargs: Any) -> datetime:
        parts = _MOMENT.fullmatch(value) if isinstance(value, str) else None
        try:
            if parts is None:
                raise ValueError
            moment = datetime.fromisoformat(value.upper())
        except ValueError:
            raise ValidationError(_DATE_OR_TIME if self.dates else _TIME) from None
        if parts["time"] is None and self.dates:
            moment = moment.replace(tzinfo=UTC)
        elif parts["offset"] is None:
            raise ValidationError("must include a UTC offset, such as Z" if self.dates else _TIME)
        try:
            moment = moment.astimezone(UTC)
        except OverflowError:
            raise ValidationError(YEARS) from None
        if not 2000 <= moment.year < 9999:
            raise ValidationError(YEARS)
        return moment


class OnBusyField(fields.Field[OnBusy]):
    """A value of `on_busy`."""

    json_schema: ClassVar[JsonSchema] = {"type": "string", "enum": [*map(str, OnBusy)]}

    def _deserialize(self, value: Any, *_args: Any, **_kwargs: Any) -> OnBusy:
        try:
            return OnBusy(value)
        except ValueError:
            raise ValidationError(f"must be one of: {', '.join(OnBusy)}") from None


class Usd(fields.Field[Decimal]):
    """An amount of USD, a JSON number with at most 8 decimals."""

    json_schema: ClassVar[JsonSchema] = usd.JSON_SCHEMA

    def _deserialize(self, value: Any, *_args: Any, **_kwargs: Any) -> Decimal:
        try:
            return usd.parse(value)
        except ValueError as error:
            raise ValidationError(str(error)) from None


class UsdText(Usd):
    """A query parameter that is an amount of USD."""

    def _deserialize(self, value: Any, *args: Any, **kwargs: Any) -> Decimal:
        # With an exponent, as small amounts in responses have it.
        if not re.fullmatch(r"[0-9]{1,9}(\.[0-9]{1,8})?([eE][+-]?[0-9]{1,2})?", value):
            raise ValidationError("must be an amount of USD, such as 0.05")
        return super()._deserialize(float(value), *args, **kwargs)


class ModelSettings(fields.Field[dict[str, Any]]):
    """Settings of model calls, as `shared/catalog/model_settings.py` reads them."""

    json_schema: ClassVar[JsonSchema] = dict(model_settings.FIELD.json_schema)

    def _deserialize(self, value: Any, *_args: Any, **_kwargs: Any) -> dict[str, Any]:
        try:
            return model_settings.read(value)
        except model_settings.InvalidModelSettings as error:
            raise ValidationError(dict(error.problems)) from None
        except ValueError as error:
            raise ValidationError(str(error)) from None


def whole(least: int, most: int) -> fields.Integer:
    """Return a nullable field for a JSON number without a fraction, within bounds."""
    error = f"must be a whole number from {least} to {most}"
    return fields.Integer(
        strict=True,
        allow_none=True,
        validate=validate.Range(least, most, error=error),
        error_messages={"invalid": error},
    )


class Seconds(fields.Field[float]):
    """A JSON number of seconds within bounds."""

    def __init__(self, least: int, most: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.least = least
        self.most = most
        self.json_schema = {"type": "number", "minimum": least, "maximum": most}

    def _deserialize(self, value: Any, *_args: Any, **_kwargs: Any) -> float:
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if not is_number or not self.least <= value <= self.most:
            raise ValidationError(f"must be a number of seconds from {self.least} to {self.most}")
        return float(value)


@dataclass(frozen=True, slots=True)
class Check:
    """A validator of a text, and what can be said of it as JSON Schema."""

    check: Callable[[str], None]
    json_schema: JsonSchema

    def __call__(self, text: str) -> None:
        self.check(text)


def shown_name(most: int) -> Check:
    """Return a validator for names shown in lists: never empty, and without line breaks."""

    def check(text: str) -> None:
        if not 1 <= len(text) <= most or not text.isprintable() or text != text.strip():
            raise ValidationError(
                f"must be 1 to {most} printable characters, without leading or trailing spaces"
            )

    return Check(check, {"minLength": 1, "maxLength": most})


def utf8_length(least: int, most: int) -> Check:
    """Return a validator of a text's length in bytes of UTF-8."""

    def check(text: str) -> None:
        if not least <= len(text.encode()) <= most:
            raise ValidationError(f"must have {least} to {most} bytes of UTF-8")

    return Check(check, {"minLength": min(least, 1), "maxLength": most})
