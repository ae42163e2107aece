"""What a processor makes of a text and its pictures, without resizing them or checking its settings again each time.

A question is read in some ten ways (its options, orders of its letters, with and without the answer), each of which a
processor takes for something new. What it makes of the pictures does not depend on the text: a run of tokens in the place of
each placeholder, and pixels. It is asked once for the pictures of a question, and once for texts without any; the rest is the
tokenizer's work. Only where what was put together so is equal to what the processor returned, it is done again; otherwise the
processor is asked each time.

Legend: T tokens of the whole, S those of a stretch of text, L those of a run. Pictures lie between stretches: there is one
stretch more than there are runs.
"""

from collections import Counter, OrderedDict
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mmunlearn.data.example import ImageRef

RECENT_BYTES = 1 << 29
"""How much of what was made of pictures is kept at hand, for one's questions follow each other; LLaVA-1.5's take 1.4 MB."""
CROSS_ATTENTION_MASK = "cross_attention_mask"
IDS = "input_ids"
SHORTEST = 2
"""So many tokens must a stretch have for it to be seen whether what is said of them depends on their place."""
VAIN_ATTEMPTS = 8
"""After so many texts of a kind, with or without pictures, of which nothing could be learned, no more is tried."""
Key = tuple[tuple[str, ...], bool]
"""Keys of the pictures, and whether the text begins with the begin token."""


def image_tokens(processor: Any) -> set[int]:
    """Ids of the tokens that stand for an image."""
    return {int(index) for index in (processor.image_token_id, *processor.image_token_ids) if index is not None}


def is_per_token(key: str, value: Tensor, length: int) -> bool:
    """Whether a processor's tensor has one entry a token ([1, T], or more for what a token sees of each image)."""
    return value.shape[:2] == (1, length) and (value.dim() == 2 or key == CROSS_ATTENTION_MASK)


class _Marks(NamedTuple):
    """What one of the processor's tensors holds for each token."""

    stretches: list[Tensor]
    """[1, 1, ...] each, for each token of a stretch."""
    runs: list[Tensor]
    """[1, L, ...] each"""


class _Made(NamedTuple):
    """What a processor makes of pictures, or of none, whatever the text around them."""

    runs: list[Tensor]
    """[L] each, the tokens that take the places of the placeholders."""
    marks: dict[str, _Marks]
    pixels: dict[str, Tensor]

    @property
    def num_bytes(self) -> int:
        """Memory taken by the pixels, beside which the rest is little."""
        return sum(value.numel() * value.element_size() for value in self.pixels.values())

    def within(self, stretches: Sequence[Tensor]) -> dict[str, Tensor]:
        """The whole, as the processor would return it.

        Args:
            stretches: [S] each, the tokens of the text around the placeholders.
        """
        whole = {IDS: torch.cat(_alternating(stretches, self.runs))[None]}
        for key, marks in self.marks.items():
            spread = [
                value.expand(1, len(stretch), *value.shape[2:])
                for value, stretch in zip(marks.stretches, stretches, strict=True)
            ]
            whole[key] = torch.cat(_alternating(spread, marks.runs), dim=1)
        return whole | self.pixels


class Processing:
    """A processor, and what it made lately."""

    def __init__(self, processor: Any) -> None:
        """Prepare.

        Args:
            processor: a transformers processor with tokenizer and image processor.
        """
        self.processor = processor
        self.placeholder = str(processor.image_token)
        tokenizer = processor.tokenizer
        self._placeholder_id = tokenizer.convert_tokens_to_ids(self.placeholder)
        self._begin: str | None = tokenizer.bos_token or None
        shown = tokenizer.convert_ids_to_tokens(sorted(image_tokens(processor)))
        self._others = {*processor.all_special_multimodal_tokens, *shown} - {self.placeholder}
        self._added = tokenizer.added_tokens_decoder
        self._cuts = {"truncation": False} if tokenizer.init_kwargs.get("truncation") else {}
        self._made: OrderedDict[Key, _Made] = OrderedDict()
        self._used = 0
        self._vain: Counter[tuple[bool, bool]] = Counter()
        self._learned: set[tuple[bool, bool]] = set()

    def __call__(self, text: str, images: Sequence[ImageRef]) -> dict[str, Tensor]:
        """What the processor returns for one text with a placeholder for each of its images.

        Pixels are those of every other text about the same pictures: they must not be changed in place.
        """
        settings = self._settings(text)
        if self._has_marks_within(text, settings):
            return self._asked(text, images, settings)
        key = tuple(image.key for image in images), bool(settings)
        made = self._made.get(key)
        if made is None:
            return self._learn(key, text, images, settings)
        stretches = self._stretches(text, settings)
        if len(stretches) != len(images) + 1:
            return self._asked(text, images, settings)
        self._made.move_to_end(key)
        return made.within(stretches)

    def _settings(self, text: str) -> dict[str, bool]:
        """A template that writes the begin token itself must not get a second one from the tokenizer."""
        return {"add_special_tokens": False} if self._begin and text.startswith(self._begin) else {}

    def _has_marks_within(self, text: str, settings: dict[str, bool]) -> bool:
        """Whether a text holds what some processors act upon: a begin token not at its beginning, a mark of another medium."""
        begins_within = self._begin is not None and not settings and self._begin in text
        return begins_within or any(mark in text for mark in self._others)

    def _asked(self, text: str, images: Sequence[ImageRef], settings: dict[str, bool]) -> dict[str, Tensor]:
        opened = {"images": [image.open() for image in images]} if images else {}
        return dict(self.processor(text=text, **opened, return_tensors="pt", **settings, **self._cuts))

    def _stretches(self, text: str, settings: dict[str, bool]) -> list[Tensor]:
        """The tokens of a text around the placeholders: [S] each."""
        ids = torch.tensor(self.processor.tokenizer(text, **settings)[IDS], dtype=torch.long)
        places = [] if self._placeholder_id is None else (ids == self._placeholder_id).nonzero()[:, 0].tolist()
        starts, stops = [0, *(place + 1 for place in places)], [*places, len(ids)]
        return [ids[start:stop] for start, stop in zip(starts, stops, strict=True)]

    def _learn(self, key: Key, text: str, images: Sequence[ImageRef], settings: dict[str, bool]) -> dict[str, Tensor]:
        """Ask the processor, and keep what it made if it can be told from what the tokenizer does."""
        asked = self._asked(text, images, settings)
        kind = bool(images), bool(settings)
        if kind not in self._learned and self._vain[kind] >= VAIN_ATTEMPTS:
            return asked
        stretches = self._stretches(text, settings)
        made = self._told_apart(asked, stretches) if len(stretches) == len(images) + 1 else None
        self._vain[kind] += 1
        if made is not None:
            self._learned.add(kind)
            self._made[key] = made
            self._used += made.num_bytes
            while self._used > RECENT_BYTES:
                self._used -= self._made.popitem(last=False)[1].num_bytes
        return asked

    def _told_apart(self, asked: dict[str, Tensor], stretches: Sequence[Tensor]) -> _Made | None:
        ids, length = asked[IDS][0], asked[IDS].shape[1]
        starts = _starts(ids.tolist(), [stretch.tolist() for stretch in stretches])
        if starts is None or min(map(len, stretches)) < SHORTEST:
            return None
        ends = [start + len(stretch) for start, stretch in zip(starts, stretches, strict=True)]
        between = list(zip(ends[:-1], starts[1:], strict=True))
        per_token = {key: value for key, value in asked.items() if key != IDS and is_per_token(key, value, length)}
        pixels = {key: value for key, value in asked.items() if key != IDS and key not in per_token}
        if pixels.keys() - set(self.processor.image_processor.model_input_names if between else ()):
            return None  # of what else it depends is not known
        marks = {
            key: _Marks(
                [value[:, start : start + 1].clone() for start in starts],
                [value[:, one:other].clone() for one, other in between],
            )
            for key, value in per_token.items()
        }
        made = _Made([ids[one:other].clone() for one, other in between], marks, pixels)
        return made if _equal(made.within(stretches), asked) and all(map(self._stands_apart, made.runs)) else None

    def _stands_apart(self, run: Tensor) -> bool:
        """Whether the text on both sides of a run is tokenised as if the placeholder were there."""
        if not len(run):
            return False
        if self._begin is not None and self.processor.tokenizer.bos_token_id in run.tolist():
            return False  # which was put there because the text has none: Llama-Vision's processor does so
        ends = [self._added.get(int(token)) for token in (run[0], run[-1], self._placeholder_id)]
        return all(token is not None and token.special and _taken(token) == _taken(ends[-1]) for token in ends)


def _taken(token: Any) -> tuple[bool, ...]:
    """How an added token is found in a text, and what it takes with it."""
    return token.lstrip, token.rstrip, token.normalized, token.single_word


def _starts(ids: list[int], stretches: Sequence[list[int]]) -> list[int] | None:
    """Where stretches begin: the outer ones lie at both ends, each other one where it comes first. None: they do not fit."""
    if len(stretches) == 1:
        return [0] if len(ids) == len(stretches[0]) else None
    starts, stop = [0], len(stretches[0])
    for stretch in stretches[1:-1]:
        places = range(stop, len(ids) - len(stretch) + 1)
        found = next((place for place in places if ids[place : place + len(stretch)] == stretch), None)
        if found is None:
            return None
        starts.append(found)
        stop = found + len(stretch)
    last = len(ids) - len(stretches[-1])
    return [*starts, last] if stop <= last else None


def _alternating(stretches: Sequence[Tensor], runs: Sequence[Tensor]) -> list[Tensor]:
    return [stretches[0], *(each for pair in zip(runs, stretches[1:], strict=True) for each in pair)]


def _equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(
        value.dtype == other[key].dtype and torch.equal(value, other[key]) for key, value in one.items()
    )
