"""What rating will cost, and where the answers go: said before the first request."""

from collections.abc import Sequence
from dataclasses import dataclass

from mmunlearn.config import JudgeConfig
from mmunlearn.judge.address import endpoint_of, host_of, is_local
from mmunlearn.judge.prompt import Answered, messages

BYTES_PER_TOKEN = 4
"""Of UTF-8, in English; other languages take up to twice as many tokens."""
TOKENS_PER_MESSAGE = 4
"""What the format of a conversation adds to each message."""
TOKENS_OF_A_RATING = 10
"""`{"score": 7}`; a judge that explains itself or thinks aloud writes many times more."""
MILLION = 1_000_000


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """What will be sent and come back."""

    requests: int
    tokens_in: int
    tokens_out: int


def estimate(requests: Sequence[Answered]) -> Estimate:
    """Count the tokens of some requests, by their bytes: which tokenizer the judge has is not known."""
    sent = 0
    for answered in requests:
        for message in messages(answered):
            sent += -(-len(message["content"].encode()) // BYTES_PER_TOKEN) + TOKENS_PER_MESSAGE
    return Estimate(requests=len(requests), tokens_in=sent, tokens_out=TOKENS_OF_A_RATING * len(requests))


def price(tokens_in: int, tokens_out: int, settings: JudgeConfig) -> str:
    """The price in the currency of `judge.price_in` and `judge.price_out`; empty if neither is given."""
    if not settings.price_in and not settings.price_out:
        return ""
    amount = (tokens_in * settings.price_in + tokens_out * settings.price_out) / MILLION
    return f"{amount:.2f}" if amount >= 1 else f"{amount:.2g}"


def announcement(found: Estimate, settings: JudgeConfig, *, answers: int, known: int, evaluations: int) -> str:
    """What a user must know before saying yes.

    Args:
        found: the estimate.
        settings: judge, address, prices.
        answers: number of answers to be rated, of all evaluations.
        known: so many of them have a rating already.
        evaluations: number of evaluations.
    """
    cost = price(found.tokens_in, found.tokens_out, settings)
    lines = [
        f"{answers:,} answers in {evaluations} evaluations; {known:,} of them are rated already, and equal answers to equal "
        f"questions are asked about once: {found.requests:,} requests.",
        f"About {found.tokens_in:,} tokens to read (at {BYTES_PER_TOKEN} bytes a token) and {found.tokens_out:,} to write "
        f"({TOKENS_OF_A_RATING} a rating; far more if the judge thinks aloud). "
        + (f"Price: about {cost}." if cost else "Price: unknown; judge.price_in and judge.price_out would tell."),
        f"They go to {settings.model} at {endpoint_of(settings.url)}. {_where(settings.url)}",
    ]
    return "\n".join(lines)


def _where(url: str) -> str:
    if is_local(url):
        return "That is this machine; whether the server there passes them on is not known here."
    return (
        f"Questions, expected answers and the model's answers about people leave this machine and reach whoever runs "
        f"{host_of(url)}. Send only what may go there."
    )
