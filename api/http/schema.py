"""The schema of what a request sends, from which all others are derived."""

from typing import Any, NoReturn

import marshmallow


class Schema(marshmallow.Schema):
    """A marshmallow schema that lets what it has refused be freed at once."""

    def handle_error(
        self, error: marshmallow.ValidationError, data: Any, **_options: Any
    ) -> NoReturn:
        """Raise a copy of the error, without the data.

        marshmallow calls this before it raises `error`, and its frame keeps `error`. If that were
        raised, its traceback would keep the frame: a cycle that, with body and messages, stays
        until Python's next full collection, which a web process has every 25,000 requests.

        Raises:
            marshmallow.ValidationError: always.
        """
        raise marshmallow.ValidationError(error.messages, valid_data=error.valid_data)
