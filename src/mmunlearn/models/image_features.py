"""What a frozen vision part and projector make of a picture is computed once and given to the model in place of the pixels.

The features are those behind the projector, so this is exact only while both parts stay as they are (`why_not`). Each picture
is encoded on its own: its features do not depend on what shares a batch with it, so neither batch size, ranks nor a resumed
run change a bit of them. The pixel path encodes the pictures of a batch together and differs from this by rounding alone.

The features live in this process's memory and are never written to disk.
"""

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn

from mmunlearn.data.batch import Batch, Encoder
from mmunlearn.data.example import Example
from mmunlearn.errors import DataError, RunError
from mmunlearn.models.families import Family, Part, part_of

PIXELS = ("pixel_values", "pixel_attention_mask")
"""What the features take the place of. Sizes and grids stay: positions are computed from them."""
FEATURES = "mm_encoder_outputs"
"""The argument under which transformers' models take features."""
MOST_BYTES = 8 << 30
SHARE_OF_MEMORY = 4
"""A quarter of the machine's memory is used at most."""
Features = Mapping[str, Any]
"""Fields of the vision part's output: a tensor, or (nested) sequences of tensors, one a picture."""


@dataclass(frozen=True, kw_only=True)
class ImageOutputs:
    """What models read of their vision part's output."""

    pooler_output: Any
    """A tensor of all pictures, or a sequence of one a picture."""
    deepstack_features: Any = None
    """Qwen3-VL: such a sequence for each of the first layers of the language part."""


def why_not(model: nn.Module, family: Family) -> str:
    """Why pictures cannot be encoded once for a model; empty: they can.

    Args:
        model: with its parts frozen, adapted or free.
        family: the model's.
    """
    if not family.image_inputs:
        return f"models of type {family.model_type} take no features in place of pixels"
    seeing = (Part.vision, Part.projector)
    tuned = sorted({part_of(name, family) for name, p in model.named_parameters() if p.requires_grad} & set(seeing))
    if tuned:
        return f"{' and '.join(tuned)} {'is' if len(tuned) == 1 else 'are'} tuned"
    config: Any = model.config
    if drops := dropouts(config.vision_config):
        return f"the vision part drops at random ({', '.join(drops)})"
    return ""


def dropouts(config: Any) -> list[str]:
    """The settings of a part's configuration by which it drops at random."""
    return sorted(name for name, p in config.to_dict().items() if "drop" in name and isinstance(p, float) and p)


@dataclass(kw_only=True, eq=False)
class ImageFeatures:
    """Gives batches the features of their pictures in place of the pixels."""

    model: nn.Module
    """One for which `why_not` has no objection."""
    family: Family
    encoder: Encoder
    examples: Mapping[str, Example]
    """By id, all that batches may hold; see `with_pictures`."""
    device: torch.device
    most_bytes: int = field(default_factory=lambda: memory_share())
    """Features beyond this are computed anew each time: dropping the oldest would drop each just before it is needed."""
    used: int = 0
    """Bytes kept."""
    encoded: int = 0
    """How many times a picture went through the vision part."""
    _kept: dict[tuple[Any, ...], Features] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Look whether features may be kept.

        Raises:
            RunError: they would not stay what they are.
        """
        if reason := why_not(self.model, self.family):
            raise RunError(f"Features of pictures cannot be kept: {reason}. Set trainer.args.image_cache=off.")

    def __call__(self, batch: Batch) -> Batch:
        """The batch, with features instead of pixels where it has pictures."""
        if not any(key in batch.inputs for key in PIXELS):
            return batch
        names = batch.ids if batch.packing is None else batch.packing.shown
        rows = [self._features(self.examples[name]) for name in names if name in self.examples]
        joined = {key: _moved(_joined([row[key] for row in rows]), self.device) for key in rows[0]}
        inputs = {key: value for key, value in batch.inputs.items() if key not in PIXELS}
        return replace(batch, inputs=inputs | {FEATURES: {"image": ImageOutputs(**joined)}})

    def _features(self, example: Example) -> Features:
        # In bfloat16 autocast a picture has other features than without: the watched retain loss is computed without.
        mixed = torch.get_autocast_dtype(self.device.type) if torch.is_autocast_enabled(self.device.type) else None
        key = mixed, *(image.key for image in example.images())
        found = self._kept.get(key)
        if found is None:
            found = self._encode(example)
            size = sum(tensor.numel() * tensor.element_size() for value in found.values() for tensor in _tensors(value))
            if self.used + size <= self.most_bytes:
                self._kept[key] = found
                self.used += size
        return found

    def _encode(self, example: Example) -> Features:
        inputs = self.encoder(example).inputs
        wanted = {key: inputs[key].to(self.device) for key in self.family.image_inputs if key in inputs}
        asked: Any = self.model.get_base_model() if isinstance(self.model, PeftModel) else self.model
        self.encoded += 1
        with torch.no_grad():
            outputs = asked.get_image_features(**wanted, return_dict=True)
        names = ("pooler_output", "deepstack_features")
        # Without the hidden states of all layers, which the output carries too.
        found = {name: getattr(outputs, name) for name in names if getattr(outputs, name, None) is not None}
        return {name: _moved(value, torch.device("cpu")) for name, value in found.items()}


def with_pictures(*sides: Sequence[Example]) -> dict[str, Example]:
    """The examples that have pictures, by id.

    Raises:
        DataError: two of the same id have different pictures.
    """
    found: dict[str, Example] = {}
    for example in (example for side in sides for example in side if example.images()):
        other = found.setdefault(example.id, example)
        if [image.key for image in other.images()] != [image.key for image in example.images()]:
            raise DataError(f"Two questions are called {example.id!r} and have different pictures. Give each its own id.")
    return found


def memory_share() -> int:
    """Bytes that features may take on this machine."""
    return min(MOST_BYTES, os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // SHARE_OF_MEMORY)


def _joined(values: Sequence[Any]) -> Any:
    """The values of several questions as that of one batch: tensors behind one another, sequences of one a picture too."""
    first = values[0]
    if isinstance(first, Tensor):
        return torch.cat(list(values))
    if isinstance(first[0], Tensor):
        return [tensor for value in values for tensor in value]
    return [_joined(layer) for layer in zip(*values, strict=True)]  # one sequence a layer


def _moved(value: Any, device: torch.device) -> Any:
    if isinstance(value, Tensor):
        return value.detach().to(device)
    return [_moved(each, device) for each in value]


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
        return
    each: Iterable[Any] = value
    for part in each:
        yield from _tensors(part)
