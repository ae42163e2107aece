"""Questions of a micro-batch are read together: what they begin with, above all their picture, is computed once.

The losses and gradients are those of one row a question, because a token of a causal model depends on those before it alone.
A side of a micro-batch is packed only where that takes fewer operations than rows.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from mmunlearn.data.batch import Batch, Encoded, Encoder, Packing, collate
from mmunlearn.data.example import Example
from mmunlearn.data.processing import image_tokens
from mmunlearn.models.families import Family
from mmunlearn.models.image_features import dropouts
from mmunlearn.models.prefix import (
    Pack,
    Positions,
    Row,
    attention_mask,
    can_share,
    in_order,
    laid_out,
    packs_of,
    pictures_of,
    positions_in,
    row_to_score,
    shown_in,
)

WORTHWHILE = 0.95
"""Packs are used where they take less than this share of the operations of rows."""
MOST_PACKS = 8
ROOM = 1.15
"""Packs are tried that are larger than their mean by so much, lest what remains fill a pack of its own."""


@dataclass(frozen=True, kw_only=True)
class Packer:
    """Makes packed batches for one model."""

    config: Any
    """The model's configuration."""
    image_tokens: tuple[int, ...]
    """Ids of the tokens that stand for pictures."""
    pad_token_id: int
    positions: Positions = in_order
    """Where the tokens of a sequence stand in the model."""

    def batch(self, examples: Sequence[Example], encoded: Sequence[Encoded]) -> Batch | None:
        """A packed batch; None where rows, those with a picture apart from those without, take fewer operations.

        Args:
            examples: the questions.
            encoded: the same as tensors.
        """
        rows = [
            row_to_score(item, tuple(image.key for image in example.images()), self.positions)
            for example, item in zip(examples, encoded, strict=True)
        ]
        forest = min(self._forests(rows), key=lambda forest: self._cost(pack.size for pack in forest))
        apart = [[len(row.ids) for row in rows if bool(row.pictures) is pictured] for pictured in (True, False)]
        if self._cost(pack.size for pack in forest) > WORTHWHILE * sum(self._cost(lengths) for lengths in apart):
            return None
        return self._packed(rows, forest, encoded)

    def _forests(self, rows: Sequence[Row]) -> Iterator[list[Pack]]:
        """The rows in fewer and longer packs, or in more and shorter ones."""
        whole = packs_of(rows, image_tokens=self.image_tokens, most=sum(len(row.ids) for row in rows))
        total = sum(pack.size for pack in whole)
        longest = max(len(row.ids) for row in rows)
        sizes = {math.ceil(total / number * room) for number in range(1, MOST_PACKS + 1) for room in (1, ROOM)}
        for most in sorted({max(size, longest) for size in sizes}, reverse=True):
            yield packs_of(rows, image_tokens=self.image_tokens, most=most)

    def _cost(self, lengths: Iterable[int]) -> int:
        """Operations of sequences that are padded to the longest, in units that do not matter.

        A token costs 24 w^2 operations in the matrix products of a layer of width w, about a third of their time in whatever
        else is done to it, and 4 w operations for each token that it is compared with.
        """
        found = list(lengths)
        longest = max(found, default=0)
        return len(found) * longest * (8 * int(self.config.get_text_config().hidden_size) + longest)

    def _packed(self, rows: Sequence[Row], forest: Sequence[Pack], encoded: Sequence[Encoded]) -> Batch:
        layout = laid_out(rows, forest, pad_token_id=self.pad_token_id)
        inputs = {
            "input_ids": layout.ids,
            "position_ids": layout.positions,
            "attention_mask": attention_mask(layout.allowed, self.config),
            **pictures_of(rows, forest, pad_token_id=self.pad_token_id),
        }
        lines = torch.cat([layout.found[place] for place in range(len(rows))])
        shown = tuple(item.id for item in shown_in(rows, forest))
        packing = Packing(wanted=layout.wanted, lines=lines, shown=shown)
        return replace(collate(encoded, pad_token_id=self.pad_token_id), inputs=inputs, packing=packing)


def packer_for(
    model: nn.Module, family: Family, encoder: Encoder, *, divides: bool, other_reference: bool
) -> tuple[Packer | None, str]:
    """What makes packed batches for a run, or None; and the line of the start-up table that says so.

    Args:
        model: with its parts frozen, adapted or free.
        family: the model's.
        encoder: its encoder.
        divides: whether micro-batches may be divided, see `Plan.by_modality`.
        other_reference: batches are put to another model too, which might read packs otherwise.
    """
    config: Any = model.config
    reason = ""
    if not divides:
        reason = "this method or engine needs its micro-batches whole"
    elif other_reference:
        reason = "trainer.reference is another model"
    elif not can_share(family, config):
        reason = "in this model a token depends on more than the tokens before it"
    elif _drops(model):
        reason = "the model drops at random, and what is shared would be dropped alike; with LoRA: model.peft.dropout=0"
    if reason:
        return None, f"reading: each question by itself ({reason})"
    tokens = tuple(sorted(image_tokens(encoder.processor)))
    packer = Packer(config=config, image_tokens=tokens, pad_token_id=encoder.pad_token_id, positions=positions_in(model))
    return packer, "reading: what the questions of a micro-batch begin with alike is read once, where that pays"


def _drops(model: nn.Module) -> bool:
    config: Any = model.config
    modules = any(isinstance(module, nn.Dropout) and module.p for module in model.modules())
    return modules or bool(dropouts(config.get_text_config()) or dropouts(config.vision_config))
