"""The only part of the judge that speaks to another machine: one question, one reply or one reason why there is none."""

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from mmunlearn.config import JudgeConfig
from mmunlearn.errors import ConfigError
from mmunlearn.judge.address import host_of, is_local
from mmunlearn.judge.reply import Failure, Reply, UnreadableReplyError, read_reply

try:
    import openai
except ModuleNotFoundError as error:
    raise ConfigError(
        f"mmunlearn judge needs the package openai ({error}). Install it: pip install 'mmunlearn[judge]'"
    ) from error

MAX_TOKENS = 1024
"""A rating takes ten tokens; a model that thinks aloud some hundreds."""
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 8.0
"""Seconds between repeats after a reply that could not be read, doubled each time; as the library's own repeats."""
SAID_AT_MOST = 300
"""Characters of a server's own words in a message."""


@dataclass(frozen=True, kw_only=True)
class Judge:
    """A model behind an endpoint. Safe to use from several threads."""

    client: openai.OpenAI = field(repr=False)
    settings: JudgeConfig
    secret: str = field(repr=False)

    def ask(self, conversation: Sequence[dict[str, str]]) -> Reply | Failure:
        """Put one question; greedy and with a fixed seed.

        Repeats after time-outs, cut connections, and status 408, 409, 429 and 5xx are the library's, with `Retry-After` of up
        to two minutes; repeats after a reply without content are ours.
        """
        reason = ""
        for attempt in range(self.settings.retries + 1):
            if attempt:
                time.sleep(min(FIRST_PAUSE * 2 ** (attempt - 1), LONGEST_PAUSE))
            try:
                return self._reply(conversation)
            except openai.APIError as error:
                return self._failure(error)
            except UnreadableReplyError as error:
                reason = str(error)
        return Failure(reason=f"{self._host} answered, but {self._without_secret(reason)}. Is judge.url the right address?")

    def _reply(self, conversation: Sequence[dict[str, str]]) -> Reply:
        messages: Any = list(conversation)
        raw = self.client.chat.completions.with_raw_response.create(
            model=self.settings.model, messages=messages, temperature=0, seed=0, max_tokens=MAX_TOKENS
        )
        return read_reply(raw.text)

    @property
    def _host(self) -> str:
        return host_of(self.settings.url)

    def _failure(self, error: openai.APIError) -> Failure:
        if isinstance(error, openai.APITimeoutError):
            return Failure(
                reason=f"{self._host} gave no answer within {self.settings.timeout:g} seconds, asked "
                f"{self.settings.retries + 1} times. Raise judge.timeout or lower judge.parallel."
            )
        if isinstance(error, openai.APIStatusError):
            return self._refusal(error)
        cause = self._without_secret(str(error.__cause__ or error))
        return Failure(
            reason=f"{self._host} cannot be reached ({cause}). Is judge.url right, and is it running?", unreachable=True
        )

    def _refusal(self, error: openai.APIStatusError) -> Failure:
        """The endpoint answered with an error."""
        status, said = error.status_code, self._said(error)
        if status in (401, 403):
            key = f"the key in {self.settings.key_variable}" if self.secret else "a request without a key (judge.key_variable)"
            return Failure(reason=f"{self._host} does not take {key}: {said}", final=True)
        if status == 404:
            return Failure(
                reason=f"{self._host} knows no model {self.settings.model!r}, or judge.url is not its base address, which "
                f"mostly ends in /v1: {said}",
                final=True,
            )
        if status < 400:
            return Failure(
                reason=f"{self._host} sends us on to {error.response.headers.get('location', 'nowhere')}. Answers about people "
                "go to the address in judge.url alone: set it to that one if you mean it.",
                final=True,
            )
        if status == 429:
            later = error.response.headers.get("retry-after")
            wish = f" (it asks to wait {later} seconds)" if later else ""
            return Failure(reason=f"{self._host} takes no more for now{wish}: {said} Lower judge.parallel, or go on later.")
        return Failure(reason=f"{self._host} answered with an error: {said}")

    def _said(self, error: openai.APIStatusError) -> str:
        """Status and words of the server, in one line."""
        words = error.body.get("message", error.body) if isinstance(error.body, dict) else error.body
        line = " ".join(self._without_secret(str(words or "")).split())
        short = line if len(line) <= SAID_AT_MOST else f"{line[:SAID_AT_MOST]}…"
        return f"status {error.status_code}{f', {short!r}' if short else ''}."

    def _without_secret(self, text: str) -> str:
        """Some servers repeat the key that they refuse."""
        return text.replace(self.secret, "[key]") if self.secret else text


def open_judge(settings: JudgeConfig) -> Judge:
    """A client that speaks to `judge.url` alone: it follows no redirects and, to this machine, takes no proxy.

    Raises:
        ConfigError: the key is missing or cannot be sent, or the address is none.
    """
    secret = _key(settings)
    address = settings.url.strip()
    client = openai.OpenAI(
        base_url=address,
        api_key=secret or "none",  # local servers want none, but the library insists
        timeout=settings.timeout,
        max_retries=settings.retries,
        http_client=openai.DefaultHttpxClient(follow_redirects=False, trust_env=not is_local(address)),
    )
    return Judge(client=client, settings=settings, secret=secret)


def _key(settings: JudgeConfig) -> str:
    name = settings.key_variable
    if name and not name.isidentifier():
        raise ConfigError("judge.key_variable: takes the name of an environment variable, not the key itself.")
    key = os.environ.get(name, "").strip() if name else ""
    if name and not key and not is_local(settings.url):
        raise ConfigError(
            f"judge.key_variable: the environment variable {name} is not set, and {host_of(settings.url)} is not this machine. "
            f"Put the key there (export {name}=…), or set judge.key_variable='' if that endpoint needs none."
        )
    if not (key.isascii() and key.isprintable()):
        raise ConfigError(f"The environment variable {name} holds characters that a key cannot have. Copy the key again.")
    return key
