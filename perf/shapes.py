"""Models with the shapes of published ones and random weights: the tiny model of the family, made as large."""

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from transformers import AutoModelForImageTextToText

from mmunlearn.models.families import FAMILIES
from mmunlearn.models.tiny import TinySize
from mmunlearn.models.tiny_families import build_tiny_family
from perf.common import CORPUS
from perf.training import Opened

SMALL: dict[str, Any] = {"vision_width": 48, "vision_layers": 3, "width": 192, "layers": 3, "vocabulary": 420}
MAX_LENGTH = 2048


@dataclass(frozen=True, kw_only=True)
class Shape:
    """What of a published configuration decides the work."""

    family: str
    pixels: TinySize
    """Pictures as the published model sees them; everything else small."""
    vision: Mapping[str, Any]
    text: Mapping[str, Any]
    parameters: float
    """Weights of the published model."""


SHAPES = {
    "LLaVA-1.5-7B": Shape(
        family="llava",
        pixels=TinySize(image_size=336, patch_size=14, max_length=MAX_LENGTH, **SMALL),
        vision={"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16},
        text={
            "vocab_size": 32064,
            "hidden_size": 4096,
            "intermediate_size": 11008,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
            "num_key_value_heads": 32,
            "head_dim": 128,
        },
        parameters=7.06e9,
    ),
    "Qwen2-VL-7B": Shape(
        family="qwen2_vl",
        pixels=TinySize(image_size=336, patch_size=28, max_length=MAX_LENGTH, **SMALL),
        vision={"embed_dim": 1280, "hidden_size": 3584, "depth": 32, "num_heads": 16, "mlp_ratio": 4},
        text={
            "vocab_size": 152064,
            "hidden_size": 3584,
            "intermediate_size": 18944,
            "num_hidden_layers": 28,
            "num_attention_heads": 28,
            "num_key_value_heads": 4,
            "layer_types": ["full_attention"] * 28,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]},
        },
        parameters=8.29e9,
    ),
    "Llama-3.2-11B-Vision": Shape(
        family="mllama",
        pixels=TinySize(image_size=560, patch_size=14, max_length=MAX_LENGTH, **SMALL),
        vision={
            "hidden_size": 1280,
            "intermediate_size": 5120,
            "num_hidden_layers": 32,
            "num_global_layers": 8,
            "attention_heads": 16,
            "vision_output_dim": 7680,
            "intermediate_layers_indices": [3, 7, 15, 23, 30],
            "max_num_tiles": 4,
            "supported_aspect_ratios": [[1, 1], [1, 2], [1, 3], [1, 4], [2, 1], [2, 2], [3, 1], [4, 1]],
        },
        text={
            "vocab_size": 128256,
            "hidden_size": 4096,
            "intermediate_size": 14336,
            "num_hidden_layers": 40,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "cross_attention_layers": [3, 8, 13, 18, 23, 28, 33, 38],
        },
        parameters=10.67e9,
    ),
}


def opened(name: str, dtype: torch.dtype, device: torch.device, *, tiny: bool = False, layers: int = 0) -> Opened:
    """A model of a published shape, on its device from the start.

    Args:
        name: one of `SHAPES`.
        dtype: of the weights.
        device: where they are made.
        tiny: everything but the pictures stays small.
        layers: of the language part; 0: all.
    """
    shape = SHAPES[name]
    model, processor = build_tiny_family(shape.family, CORPUS, seed=0, size=shape.pixels)
    processor.tokenizer.padding_side = "right"
    if tiny:
        return Opened(model.to(device=device, dtype=dtype), processor, MAX_LENGTH, FAMILIES[shape.family])
    large = make_model(config_of(model.config, shape, layers), dtype, device)
    large.generation_config.pad_token_id = processor.tokenizer.pad_token_id
    large.generation_config.eos_token_id = processor.tokenizer.eos_token_id
    if shape.family == "mllama":
        processor.image_processor.max_image_tiles = shape.vision["max_num_tiles"]
    return Opened(large, processor, MAX_LENGTH, FAMILIES[shape.family])


def config_of(tiny: Any, shape: Shape, layers: int = 0) -> Any:
    """The configuration of a tiny model with the published sizes in it."""
    config = copy.deepcopy(tiny)
    text = dict(shape.text)
    if layers:
        text["num_hidden_layers"] = layers
        text |= {"layer_types": text["layer_types"][:layers]} if "layer_types" in text else {}
        if "cross_attention_layers" in text:
            text["cross_attention_layers"] = [layer for layer in text["cross_attention_layers"] if layer < layers]
    for part, values in ((config.vision_config, shape.vision), (config.text_config, text)):
        for key, value in values.items():
            setattr(part, key, value)
    return config


def make_model(config: Any, dtype: torch.dtype, device: torch.device) -> Any:
    """A model of a configuration, with random weights."""
    default = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            return AutoModelForImageTextToText.from_config(config).eval()
    finally:
        torch.set_default_dtype(default)
