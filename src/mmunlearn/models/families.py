"""How model families differ, as data: which weights belong to which part, and which of them never get a gradient.

Names are those in memory (transformers >= 5.23); the files on disk use older ones.
"""

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from mmunlearn.errors import ConfigError, did_you_mean


class Part(StrEnum):
    """The three parts of a vision-language model that can be tuned or masked on their own."""

    vision = "vision"
    projector = "projector"
    language = "language"


@dataclass(frozen=True, kw_only=True)
class Family:
    """One row of the table: a transformers `model_type` and how its weights are named."""

    model_type: str
    prefixes: dict[Part, tuple[str, ...]]
    """In-memory name prefixes; every parameter of the model matches exactly one part."""
    lora_modules: dict[Part, str]
    """Regular expression (full match on the module name) of the linear layers that LoRA adapts."""
    published_prompts: bool = False
    """Whether the raw prompts of `evaluation.protocol=official` are written for this family."""
    unused: Callable[[Any], tuple[str, ...]]
    """From the model's configuration: prefixes of modules whose output is never used, so that no gradient reaches them."""


def _llava_unused(config: Any) -> tuple[str, ...]:
    """LLaVA reads the hidden states of an inner CLIP layer; later layers and the final norm do nothing."""
    layers = config.vision_config.num_hidden_layers
    chosen = config.vision_feature_layer
    deepest = max((layer if layer >= 0 else layers + 1 + layer) for layer in ([chosen] if isinstance(chosen, int) else chosen))
    tower = "model.vision_tower."
    return (f"{tower}post_layernorm.", *(f"{tower}encoder.layers.{index}." for index in range(deepest, layers)))


LLAVA = Family(
    model_type="llava",
    published_prompts=True,
    prefixes={
        Part.vision: ("model.vision_tower.",),
        Part.projector: ("model.multi_modal_projector.",),
        Part.language: ("model.language_model.", "lm_head."),
    },
    lora_modules={
        Part.vision: r"model\.vision_tower\..*\.(q_proj|k_proj|v_proj|out_proj|fc1|fc2)",
        Part.projector: r"model\.multi_modal_projector\.linear_[12]",
        Part.language: r"model\.language_model\..*\.(q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj)",
    },
    unused=_llava_unused,
)

FAMILIES = {family.model_type: family for family in (LLAVA,)}


def family_of(config: Any) -> Family:
    """The family of a loaded model's configuration.

    Raises:
        ConfigError: the architecture is not in the table.
    """
    model_type = str(config.model_type)
    if model_type not in FAMILIES:
        raise ConfigError(
            f"model.path holds a model of type {model_type!r}, which is not in the table of families "
            f"(mmunlearn/models/families.py). {did_you_mean(model_type, FAMILIES)}"
        )
    return FAMILIES[model_type]


PEFT_PREFIX = "base_model.model."
"""What PEFT writes in front of every name of the model that it wraps."""


def bare_name(name: str) -> str:
    """The name that a parameter of the wrapped model has without PEFT's wrapper."""
    return name.removeprefix(PEFT_PREFIX).replace(".base_layer.", ".")


def part_of(name: str, family: Family) -> Part:
    """The part that an in-memory parameter name belongs to; names of PEFT wrappers are understood.

    Raises:
        ConfigError: the name matches no part.
    """
    bare = bare_name(name)
    for part, prefixes in family.prefixes.items():
        if bare.startswith(prefixes):
            return part
    raise ConfigError(f"Parameter {name!r} belongs to no part of family {family.model_type!r}; add its prefix to families.py.")
