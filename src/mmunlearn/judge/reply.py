"""What comes back from an endpoint: a reply, or the reason why there is none."""

import json
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Reply:
    """What the judge said."""

    text: str
    finish: str
    """Why it stopped; `length`: it was cut off."""
    answered_by: str
    """The model's name as the endpoint gives it, often with a date."""
    tokens_in: int
    tokens_out: int


@dataclass(frozen=True, kw_only=True)
class Failure:
    """Why there is no reply, after all repeats."""

    reason: str
    """For people: what happened and what to do."""
    final: bool = False
    """Every other request would end in the same way."""
    unreachable: bool = False
    """Nobody was there."""


class UnreadableReplyError(ValueError):
    """The endpoint answered, but not in the language of chat completions."""


def read_reply(body: str) -> Reply:
    """Take a chat completion apart.

    Raises:
        UnreadableReplyError: it is not JSON, or holds no reply.
    """
    try:
        record = json.loads(body)
        choice = record["choices"][0]
        text = choice["message"].get("content") or choice["message"].get("refusal")
    except ValueError as error:
        raise UnreadableReplyError(f"what it sent is not JSON ({' '.join(body[:60].split())!r})") from error
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        raise UnreadableReplyError("what it sent holds no reply (`choices` is missing, empty or of another shape)") from error
    if not isinstance(text, str) or not text.strip():
        raise UnreadableReplyError(f"its reply is empty (finish_reason {choice.get('finish_reason')!r})")
    usage = record.get("usage")
    return Reply(
        text=text,
        finish=str(choice.get("finish_reason") or ""),
        answered_by=str(record.get("model") or ""),
        tokens_in=_count(usage, "prompt_tokens"),
        tokens_out=_count(usage, "completion_tokens"),
    )


def _count(usage: object, name: str) -> int:
    """A number of tokens; 0 where the endpoint does not count them."""
    value = usage.get(name) if isinstance(usage, dict) else None
    return value if isinstance(value, int) else 0
