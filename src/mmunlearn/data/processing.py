"""What a processor makes of a text and its picture, without resizing the picture or checking its settings again each time.

A question is read in some ten ways (its options, orders of its letters, with and without the answer), each of which a
processor takes for something new. What it makes of a picture does not depend on the text: a run of tokens in the place of
the placeholder, and pixels. It is asked once for each picture, and once for texts without any; the rest is the tokenizer's
work. Only where what was put together so is equal to what the processor returned, it is done again; otherwise the processor
is asked each time.

Legend: T tokens of the whole, L tokens of the run.
"""

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mmunlearn.data.example import ImageRef

RECENT_BYTES = 1 << 29
"""How much of what was made of pictures is kept at hand, for one's questions follow each other; LLaVA-1.5's take 1.4 MB."""
CROSS_ATTENTION_MASK = "cross_attention_mask"
IDS = "input_ids"


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
        self._placeholder_id = processor.tokenizer.convert_tokens_to_ids(self.placeholder)
        self._begin: str | None = processor.tokenizer.bos_token or None
        self._made: OrderedDict[tuple[str, bool], _Made] = OrderedDict()
        self._used = 0

    def __call__(self, text: str, images: Sequence[ImageRef]) -> dict[str, Tensor]:
        """What the processor returns for one text with a placeholder for each of its images."""
        settings = self._settings(text)
        begins_within = self._begin is not None and not settings and self._begin in text
        if len(images) > 1 or begins_within:
            return self._asked(text, images, settings)
        key = images[0].key if images else "", bool(settings)
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

    def _asked(self, text: str, images: Sequence[ImageRef], settings: dict[str, bool]) -> dict[str, Tensor]:
        opened = {"images": [image.open() for image in images]} if images else {}
        return dict(self.processor(text=text, **opened, return_tensors="pt", **settings))

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
        self, key: tuple[str, bool], text: str, images: Sequence[ImageRef], settings: dict[str, bool]
    ) -> dict[str, Tensor]:
        """Ask the processor, and keep what it made if it can be told from what the tokenizer does."""
        asked = self._asked(text, images, settings)
        ids = self._tokens(text, settings)
        place = self._place(ids, images)
        made = None if place is None else self._told_apart(asked, ids, place)
        if made is not None:
            self._made[key] = made
            self._used += made.num_bytes
            while self._used > RECENT_BYTES:
                self._used -= self._made.popitem(last=False)[1].num_bytes
        return asked

    def _told_apart(self, asked: dict[str, Tensor], ids: Tensor, place: int) -> _Made | None:
        length = asked[IDS].shape[1]
        stop = length - len(ids[place + 1 :])
        if not 0 < place <= stop or (stop == length) != (place == length):
            return None  # nothing stands before the run, or nothing behind it
        run = asked[IDS][0, place:stop]
        per_token = {key: value for key, value in asked.items() if key != IDS and is_per_token(key, value, length)}
        marks = {key: _Marks(value[:, :1], value[:, place:stop], value[:, -1:]) for key, value in per_token.items()}
        pixels = {key: value for key, value in asked.items() if key != IDS and key not in marks}
        made = _Made(run, marks, pixels)
        return made if self._stands_apart(run) and _equal(made.within(ids, place), asked) else None

    def _stands_apart(self, run: Tensor) -> bool:
        """Whether the text on both sides is tokenised as if the placeholder were there."""
        if not len(run):
            return True
        if self._begin is not None and self.processor.tokenizer.bos_token_id in run.tolist():
            return False  # which was put there because the text has none: Llama-Vision's processor does so
        added = self.processor.tokenizer.added_tokens_decoder
        ends = [added.get(int(token)) for token in (run[0], run[-1], self._placeholder_id)]
        if any(token is None for token in ends):
            return False
        first, last, placeholder = ends
        return bool(first.lstrip == placeholder.lstrip and last.rstrip == placeholder.rstrip)


def _equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(
        value.dtype == other[key].dtype and torch.equal(value, other[key]) for key, value in one.items()
    )
