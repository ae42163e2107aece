"""Every rank makes the same forward passes through the same modules, as engines that shard the weights need.

Such an engine fetches each layer's weights from all ranks at the moment when the layer is computed, so a rank that leaves one
out would leave the others waiting. What a rank lacks is filled in without any effect on the loss:

- no example for its side of a micro-batch: a *stand-in*, whose share of the step is divided by infinity;
- no picture where another rank has one: a *blank* picture behind the end of a text, which nothing attends to.

Legend: B sequences, T tokens.
"""

import io
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from accelerate import Accelerator
from PIL import Image
from torch import Tensor
from torch.nn.functional import pad

from mmunlearn.data.batch import IGNORE, Batch, Encoder, Pair, collate
from mmunlearn.data.example import Example, LazyImage
from mmunlearn.data.processing import CROSS_ATTENTION_MASK, image_tokens
from mmunlearn.errors import ConfigError
from mmunlearn.methods.base import Side, TrainingData

SIDE_LENGTH = 64
"""Pixels of the blank picture before the processor resizes it."""
SIDES = (Side.forget, Side.retain)


@dataclass(frozen=True, kw_only=True)
class Blank:
    """A black picture, as a processor hands pictures to its model.

    Not pixels of 0: Idefics3 and SmolVLM leave such a picture out.
    """

    picture: dict[str, Tensor]
    """What is there once a picture: pixels, sizes, grids."""
    tokens: dict[str, Tensor]
    """[1, n] each: what is there once a token, at the n placeholders of the picture."""

    def behind(self, batch: Batch) -> Batch:
        """A batch of texts with the picture behind the end of its shortest one, hidden by the attention mask.

        The n placeholders stand to the right of all that is attended to and are not supervised: no logit at a supervised
        position depends on them, and no gradient comes back from them.
        """
        mask = batch.inputs["attention_mask"]
        lengths = mask.shape[1] - mask.flip(1).argmax(dim=1)
        row = int(lengths.argmin())
        start = int(lengths[row])
        stop = start + self.tokens["input_ids"].shape[1]
        missing = max(0, stop - mask.shape[1])
        inputs = {key: pad(value, (0, missing)) for key, value in batch.inputs.items()}
        for key, values in self.tokens.items():
            if key == "attention_mask":
                continue  # stays 0
            whole = inputs.get(key, torch.zeros_like(inputs["attention_mask"], dtype=values.dtype)).clone()
            whole[row, start:stop] = values[0].to(whole)
            inputs[key] = whole
        labels = pad(batch.labels, (0, missing), value=IGNORE)
        return replace(batch, inputs=inputs | {k: v.to(mask.device) for k, v in self.picture.items()}, labels=labels)


def blank_picture(encoder: Encoder) -> Blank:
    """Ask the processor for a black picture.

    Raises:
        ConfigError: the model's language part looks at pictures by cross-attention, not through tokens.
    """
    buffer = io.BytesIO()
    Image.new("RGB", (SIDE_LENGTH, SIDE_LENGTH)).save(buffer, format="PNG")
    image = LazyImage(key="blank", where="blank picture", read=buffer.getvalue)
    inputs = encoder.prompt(Example(id="blank picture", question="?", answer="", image=image)).inputs
    if CROSS_ATTENTION_MASK in inputs:
        raise ConfigError(
            "trainer.args: sharded training of a model whose language part looks at pictures by cross-attention (Llama-Vision) "
            "needs questions that all have a picture, or none: the ranks would go through different layers. Choose the data so "
            "(data.modality=image or text), or train it replicated (trainer.args.fsdp=false trainer.args.deepspeed=null)."
        )
    ids = inputs["input_ids"]
    per_token = {key for key, value in inputs.items() if value.dim() == 2 and value.shape == ids.shape}
    places = torch.isin(ids[0], torch.tensor(sorted(image_tokens(encoder.processor))))
    return Blank(
        picture={key: value for key, value in inputs.items() if key not in per_token},
        tokens={key: inputs[key][:, places] for key in per_token},
    )


def stand_in(examples: Sequence[Example], encoder: Encoder) -> Batch:
    """One text whose share of the step is exactly 0, because the step's totals are infinite."""
    chosen = min(examples, key=lambda example: len(example.question) + len(example.answer))
    batch = collate([encoder(replace(chosen, image=None))], pad_token_id=encoder.pad_token_id)
    return replace(batch, step_tokens=math.inf, step_sequences=math.inf)


def evening(
    data: TrainingData, encoder: Encoder, accelerator: Accelerator, *, always: bool = False
) -> Callable[[Sequence[Pair]], list[Pair]]:
    """What fills in a window (this rank's micro-batches of a step) so that it looks alike on all ranks.

    Args:
        data: of the run.
        encoder: makes the batches.
        accelerator: connects the ranks; each calls the result once a step, with equally many micro-batches.
        always: show every batch a picture if any example has one: DeepSpeed drops what a step has added up for a weight if the
            step's last backward pass does not reach that weight.

    Raises:
        ConfigError: see `blank_picture`.
    """
    with_picture = {example.image is not None for side in (data.forget, data.retain) for example in side}
    blank = blank_picture(encoder) if len(with_picture) == 2 else None
    stand_ins = {side: stand_in(getattr(data, side), encoder) for side in SIDES if getattr(data, side)}

    def even(window: Sequence[Pair]) -> list[Pair]:
        own = [[_present(getattr(pair, side), blank) for side in SIDES] for pair in window]
        counted = torch.tensor(own, dtype=torch.float64, device=accelerator.device)
        anywhere = (accelerator.reduce(counted, reduction="sum") > 0).tolist()
        return [
            Pair(**{side: fill(side, getattr(pair, side), *found) for side, found in zip(SIDES, row, strict=True)})
            for pair, row in zip(window, anywhere, strict=True)
        ]

    def fill(side: Side, batch: Batch | None, wanted: bool, pictured: bool) -> Batch | None:
        if not wanted:
            return None
        batch = batch or stand_ins[side].to(accelerator.device)
        return blank.behind(batch) if blank and (pictured or always) and not _pictured(batch, blank) else batch

    return even


def _pictured(batch: Batch, blank: Blank) -> bool:
    return bool(blank.picture.keys() & batch.inputs.keys())


def _present(batch: Batch | None, blank: Blank | None) -> tuple[bool, bool]:
    """Whether there are examples, and whether one has a picture."""
    return batch is not None, batch is not None and blank is not None and _pictured(batch, blank)
