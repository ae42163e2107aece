"""What a processor makes of a text and its picture, without resizing the picture or checking its settings again each time.

A question is read in some ten ways (its options, orders of its letters, with and without the answer), each of which a
processor takes for something new. What it makes of a picture does not depend on the text: a run of tokens in the place of
the placeholder, and pixels. It is asked once for each picture, and once for texts without any; the rest is the tokenizer's
work. Only where what was put together so is equal to what the processor returned, it is done again; otherwise, and for texts
with several pictures, the processor is asked each time.

Legend: T tokens of the whole, L tokens of the run.
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
BOTH_SIDES = 2
"""So many tokens must stand before and behind a picture for it to be seen whether theirs depend on their place."""
VAIN_ATTEMPTS = 8
"""After so many texts of a kind, with or without a picture, of which nothing could be learned, no more is tried."""


def is_per_token(key: str, value: Tensor, length: int) -> bool:
    """Whether a processor's tensor has one entry a token ([1, T], or more for what a token sees of each image)."""
    return value.shape[:2] == (1, length) and (value.dim() == 2 or key == CROSS_ATTENTION_MASK)


class _Marks(NamedTuple):
    """What one of the processor's tensors holds for each token."""

    before: Tensor
    """[1, 1, ...], for each token before the run."""
    run: Tensor
    """[1, L, ...]"""
    behind: Tensor
    """[1, 1, ...], for each token behind it."""


class _Made(NamedTuple):
    """What a processor makes of a picture, or of none, whatever the text around it."""

    run: Tensor
    """[L], the tokens that take the placeholder's place; L = 0 without a picture."""
    marks: dict[str, _Marks]
    pixels: dict[str, Tensor]

    @property
    def num_bytes(self) -> int:
        """Memory taken by the pixels, beside which the rest is little."""
        return sum(value.numel() * value.element_size() for value in self.pixels.values())

    def within(self, ids: Tensor, place: int) -> dict[str, Tensor]:
        """The whole, as the processor would return it.

        Args:
            ids: tokens of the text, with one for the placeholder.
            place: where that is; the end of the text without a picture.
        """
        rest = ids[place + 1 :]
        whole = {IDS: torch.cat([ids[:place], self.run, rest])[None]}
        for key, (before, run, behind) in self.marks.items():
            shape = before.shape[2:]
            whole[key] = torch.cat([before.expand(1, place, *shape), run, behind.expand(1, len(rest), *shape)], dim=1)
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
        ids = [index for index in (processor.image_token_id, *processor.image_token_ids) if index is not None]
        self._others = {*processor.all_special_multimodal_tokens, *tokenizer.convert_ids_to_tokens(ids)} - {self.placeholder}
        self._added = tokenizer.added_tokens_decoder
        self._cuts = {"truncation": False} if tokenizer.init_kwargs.get("truncation") else {}
        self._made: OrderedDict[tuple[str | None, bool], _Made] = OrderedDict()
        self._used = 0
        self._vain: Counter[tuple[bool, bool]] = Counter()
        self._learned: set[tuple[bool, bool]] = set()

    def __call__(self, text: str, images: Sequence[ImageRef]) -> dict[str, Tensor]:
        """What the processor returns for one text with a placeholder for each of its images.

        Pixels are those of every other text about the picture: they must not be changed in place.
        """
        settings = self._settings(text)
        if len(images) > 1 or self._has_marks_within(text, settings):
            return self._asked(text, images, settings)
        key = images[0].key if images else None, bool(settings)
        made = self._made.get(key)
        if made is None:
            return self._learn(key, text, images, settings)
        ids = self._tokens(text, settings)
        place = self._place(ids, images)
        if place is None:
            return self._asked(text, images, settings)
        self._made.move_to_end(key)
        return made.within(ids, place)

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

    def _tokens(self, text: str, settings: dict[str, bool]) -> Tensor:
        return torch.tensor(self.processor.tokenizer(text, **settings)[IDS])

    def _place(self, ids: Tensor, images: Sequence[ImageRef]) -> int | None:
        """Where the placeholder is; None if there is not the one that there should be."""
        if self._placeholder_id is None:
            return None
        places = (ids == self._placeholder_id).nonzero()[:, 0].tolist()
        if len(places) != len(images):
            return None
        return int(places[0]) if images else len(ids)

    def _learn(
        self, key: tuple[str | None, bool], text: str, images: Sequence[ImageRef], settings: dict[str, bool]
    ) -> dict[str, Tensor]:
        """Ask the processor, and keep what it made if it can be told from what the tokenizer does."""
        asked = self._asked(text, images, settings)
        kind = bool(images), bool(settings)
        if kind not in self._learned and self._vain[kind] >= VAIN_ATTEMPTS:
            return asked
        ids = self._tokens(text, settings)
        place = self._place(ids, images)
        made = None if place is None else self._told_apart(asked, ids, place)
        self._vain[kind] += 1
        if made is not None:
            self._learned.add(kind)
            self._made[key] = made
            self._used += made.num_bytes
            while self._used > RECENT_BYTES:
                self._used -= self._made.popitem(last=False)[1].num_bytes
        return asked

    def _told_apart(self, asked: dict[str, Tensor], ids: Tensor, place: int) -> _Made | None:
        length = asked[IDS].shape[1]
        behind = len(ids[place + 1 :])
        shown = place < len(ids)
        stop = length - behind
        if not BOTH_SIDES <= place <= stop or (behind < BOTH_SIDES if shown else stop != place):
            return None
        run = asked[IDS][0, place:stop].clone()
        per_token = {key: value for key, value in asked.items() if key != IDS and is_per_token(key, value, length)}
        marks = {key: _Marks(*_pieces(value, place, stop)) for key, value in per_token.items()}
        pixels = {key: value for key, value in asked.items() if key != IDS and key not in marks}
        if pixels.keys() - set(self.processor.image_processor.model_input_names if shown else ()):
            return None  # of what else it depends is not known
        made = _Made(run, marks, pixels)
        return made if _equal(made.within(ids, place), asked) and self._stands_apart(run) else None

    def _stands_apart(self, run: Tensor) -> bool:
        """Whether the text on both sides is tokenised as if the placeholder were there."""
        if not len(run):
            return True
        if self._begin is not None and self.processor.tokenizer.bos_token_id in run.tolist():
            return False  # which was put there because the text has none: Llama-Vision's processor does so
        ends = [self._added.get(int(token)) for token in (run[0], run[-1], self._placeholder_id)]
        return all(token is not None and token.special and _taken(token) == _taken(ends[-1]) for token in ends)


def _taken(token: Any) -> tuple[bool, ...]:
    """How an added token is found in a text, and what it takes with it."""
    return token.lstrip, token.rstrip, token.normalized, token.single_word


def _pieces(value: Tensor, place: int, stop: int) -> tuple[Tensor, Tensor, Tensor]:
    return value[:, :1].clone(), value[:, place:stop].clone(), value[:, -1:].clone()


def _equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(
        value.dtype == other[key].dtype and torch.equal(value, other[key]) for key, value in one.items()
    )
