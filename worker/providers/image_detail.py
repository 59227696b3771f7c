"""The detail in which a model of OpenAI sees an image."""

import re

AUTO, HIGH = "auto", "high"
#: A model's name at OpenAI, and where it is offered: `~openai/gpt-latest`, `databricks-gpt-5-5`.
_OPENAIS = re.compile(r"(?<![a-z])gpt-(?!oss)|(?:^|/)chat-latest", re.IGNORECASE)


def detail_of_images(model: str, *, is_vendor: bool) -> str:
    """Return the detail to be sent: `high` for a model of OpenAI, otherwise `auto`.

    With `high`, OpenAI scales an image down to 2,500 patches. From GPT-5.5 on, `auto` keeps its
    size, up to 30,000 patches; models before see both alike
    (https://developers.openai.com/api/docs/guides/images-vision#model-sizing-behavior).
    Other models may take `high` for an order of more tokens.
    """
    return HIGH if is_vendor or _OPENAIS.search(model) else AUTO
