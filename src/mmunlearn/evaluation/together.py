"""Requests of all kinds read together: likelihoods, letters and replies about one picture share the picture."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from mmunlearn.data.batch import Encoder
from mmunlearn.data.example import Example
from mmunlearn.data.processing import image_tokens
from mmunlearn.models.continuation import Written, greedy
from mmunlearn.models.likelihood import TokenStatistics, token_statistics
from mmunlearn.models.prefix import (
    Positions,
    Reading,
    Row,
    forests_of,
    in_order,
    positions_in,
    read,
    row_to_continue,
    row_to_score,
)

Answer = TypeVar("Answer")


@dataclass(frozen=True, kw_only=True)
class Requests:
    """What is to be asked."""

    scored: Sequence[Example] = ()
    """Whose answers' likelihood is wanted."""
    lettered: Sequence[Example] = ()
    """Listed questions, of whose reply the first token is wanted."""
    asked: Sequence[Example] = ()
    """Questions to be answered."""
    limit: int = 0
    """Tokens that a reply may have."""

    def rows(self, encoder: Encoder, positions: Positions = in_order) -> list[Row]:
        """One a request: those to be scored, those of letters, those to be answered."""
        scored = [row_to_score(encoder(each), pictures(each), positions) for each in self.scored]
        lettered = [row_to_continue(encoder.prompt(_scored_prompt(each)), pictures(each), positions) for each in self.lettered]
        asked = [row_to_continue(encoder.prompt(each), pictures(each), positions) for each in self.asked]
        return [*scored, *lettered, *asked]


class Answers(NamedTuple):
    """What was found for `Requests`, in their order."""

    statistics: list[TokenStatistics]
    letters: list[Tensor]
    """[letters], the logits of the letters, float32."""
    written: list[Written]


@dataclass(kw_only=True)
class _Found:
    statistics: dict[int, TokenStatistics] = field(default_factory=dict)
    letters: dict[int, Tensor] = field(default_factory=dict)
    written: dict[int, Written] = field(default_factory=dict)


def answer_together(
    model: nn.Module,
    encoder: Encoder,
    requests: Requests,
    letters: Sequence[Sequence[int]],
    *,
    batch_size: int,
    device: torch.device,
) -> Answers:
    """Answer requests with as little computed twice as fits into the memory of a batch.

    Args:
        model: one that `can_share`.
        encoder: its encoder.
        requests: what to ask.
        letters: for each of `requests.lettered`, the token that each of its letters begins with.
        batch_size: no more tokens are read at once than so many of the longest rows have.
        device: the model's.
    """
    rows = requests.rows(encoder, positions_in(model))
    first_letter, first_asked = len(requests.scored), len(requests.scored) + len(requests.lettered)
    found = _Found()
    if not rows:
        return Answers([], [], [])
    for forest in forests_of(rows, image_tokens=sorted(image_tokens(encoder.processor)), batch_size=batch_size):
        places = sorted(place for pack in forest for place in pack.places)
        limits = {place: requests.limit for place in places if place >= first_asked}
        with torch.inference_mode():
            reading = read(model, rows, forest, pad_token_id=encoder.pad_token_id, device=device, keep=bool(limits))
            _score([place for place in places if place < first_letter], rows, reading, found)
            for place in places:
                if first_letter <= place < first_asked:
                    found.letters[place] = reading.logits[reading.found[place][0], list(letters[place - first_letter])].cpu()
        if limits:
            found.written |= greedy(model, rows, forest, reading, limits, end_token_id=encoder.end_token_id)
    return Answers(_in_order(found.statistics), _in_order(found.letters), _in_order(found.written))


def _score(places: Sequence[int], rows: Sequence[Row], reading: Reading, found: _Found) -> None:
    if not places:
        return
    lines = torch.cat([reading.found[place] for place in places])
    tokens = torch.cat([rows[place].encoded.inputs["input_ids"][0, rows[place].wanted + 1] for place in places])
    whole = token_statistics(reading.logits[lines], tokens.to(lines.device))
    counts = [len(rows[place].wanted) for place in places]
    columns = [torch.split(values.cpu(), counts) for values in whole]
    found.statistics |= dict(zip(places, (TokenStatistics(*row) for row in zip(*columns, strict=True)), strict=True))


def _in_order(found: dict[int, Answer]) -> list[Answer]:
    return [found[place] for place in sorted(found)]


def pictures(example: Example) -> tuple[str, ...]:
    """Keys of all pictures of a request."""
    return tuple(image.key for image in example.images())


def _scored_prompt(order: Example) -> Example:
    """As the encoder reads it before an answer: without a space at the end of a text that is given as it is."""
    return replace(order, question=order.question.rstrip()) if order.verbatim else order
