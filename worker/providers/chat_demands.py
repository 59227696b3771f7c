"""The demands of chat completion servers on a request, learned from what they refuse."""

import re
from collections.abc import Mapping
from typing import Any

import openai

from arkloop.worker.providers import error_bodies, refused_settings
from arkloop.worker.providers.chat_request import SIGNED

#: DeepSeek and Kimi refuse turns without reasoning while they think, in some models every turn.
#: Those of other models have none, and of a run's last turn none is kept.
_LACKS_REASONING = re.compile(
    r"reasoning_content.{0,40}(?:must be passed back|is missing)|requires reasoning_content"
)
#: What they get for it; an empty text is not enough for each of them.
_NO_REASONING = {"reasoning_content": " "}
#: Gemini 3 refuses turns whose first call is not signed, such as those of other models.
_LACKS_SIGNATURE = re.compile(r"missing a.{0,3}thought_signature")
#: Google's value for them; see https://ai.google.dev/gemini-api/docs/thought-signatures.
_NO_SIGNATURE = {"google": {"thought_signature": "skip_thought_signature_validator"}}
#: What asks for the usage. Databricks, Azure's serverless models and Mistral know none of it, or
#: not all.
_USAGE = ("stream_options", "include_usage")
#: The names of the output limit, each with the other.
_LIMITS = {"max_tokens": "max_completion_tokens", "max_completion_tokens": "max_tokens"}
#: How a server says, in lower case, that it does not know a field, and that it does: a limit that
#: is only too high keeps its name, since a server may ignore the other one.
_IS_UNKNOWN = re.compile(
    r"(?:unsupported|unrecogni[sz]ed|unknown|unexpected)(?! value)|not supported|not support param"
    r"|extra inputs|extra_forbidden|not allowed|cannot find field"
)
_IS_KNOWN = re.compile(
    r"too (?:large|small|high|low|long)|at (?:most|least)|exceed|greater|larger|less than|minimum"
    r"|maximum|range|between|[<>]"
)


class Demands:
    """The demands of one server and model, as far as its refusals have shown them."""

    def __init__(self) -> None:
        self._fills_reasoning = self._fills_signatures = False
        self._reports_usage = True
        self._refused_limit: str | None = None

    def learn(
        self, error: openai.APIStatusError, sent: Mapping[str, Any], settings: Mapping[str, Any]
    ) -> bool:
        """Take note of what the refusal of a body demands; return whether it is anything new.

        A refusal that names one of the `settings` of the request first is about that.
        """
        before = vars(self).copy()
        text = error_bodies.text_of(error).replace("`", "")
        self._fills_reasoning |= _LACKS_REASONING.search(text) is not None
        self._fills_signatures |= _LACKS_SIGNATURE.search(text) is not None
        said = error_bodies.object_of(error) or {}
        words, param = str(said.get("message") or text), said.get("param")
        own = dict.fromkeys((*_USAGE, *(sent.keys() & _LIMITS)))
        name = refused_settings.find(error.status_code, param, words, {**own, **settings})
        if name in _USAGE:
            self._reports_usage = False
        elif name in _LIMITS and _is_unknown(words.lower()):
            self._refused_limit = self._refused_limit or name
        return before != vars(self)

    def meet(self, body: dict[str, Any]) -> dict[str, Any]:
        """Return the body as the server accepts it."""
        sent = {**body, "messages": list(map(self._filled, body["messages"]))}
        if not self._reports_usage:
            del sent["stream_options"]
        if (refused := self._refused_limit) in sent:
            sent[_LIMITS[refused]] = sent.pop(refused)
        return sent

    def _filled(self, message: dict[str, Any]) -> dict[str, Any]:
        if message["role"] != "assistant":
            return message
        if self._fills_reasoning:
            message = {**_NO_REASONING, **message}
        calls = message.get("tool_calls") or ()
        if self._fills_signatures and calls and not any(SIGNED in call for call in calls):
            first, *others = calls
            message = {**message, "tool_calls": [{**first, SIGNED: _NO_SIGNATURE}, *others]}
        return message


def _is_unknown(words: str) -> bool:
    return _IS_UNKNOWN.search(words) is not None and _IS_KNOWN.search(words) is None
