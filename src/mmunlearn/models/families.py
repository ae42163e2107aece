"""How model families differ, as data: which weights belong to which part, which of them never get a gradient, what works.

Names are those in memory (transformers >= 5.23); the files on disk use older ones. A model that is not in the table goes
through `generic.py`.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import torch
from torch import Tensor

from mmunlearn.errors import ConfigError
from mmunlearn.models import templates
from mmunlearn.models.text_rows import keep_text_rows_free_of_images


class Part(StrEnum):
    """The three parts of a vision-language model that can be tuned or masked on their own."""

    vision = "vision"
    projector = "projector"
    language = "language"


EAGER, SDPA, FLASH, FLEX = "eager", "sdpa", "flash_attention_2", "flex_attention"


@dataclass(frozen=True, kw_only=True)
class Family:
    """One row of the table: a transformers `model_type` and how its weights are named."""

    model_type: str
    prefixes: dict[Part, tuple[str, ...]]
    """In-memory name prefixes; every parameter of the model matches exactly one part."""
    lora_modules: dict[Part, str]
    """Regular expression (full match on the module name) of the linear layers that LoRA adapts. A part without any is absent:
    it can be tuned fully only."""
    published_prompts: bool = False
    """Whether the raw prompts of `evaluation.protocol=official` are written for this family."""
    unused: Callable[[Any], tuple[str, ...]] = lambda config: ()
    """From the model's configuration: prefixes of modules whose output is never used, so that no gradient reaches them."""
    chat_template: str = ""
    """Written in place of a processor's own template where that is missing, or writes an answer otherwise than it asks for one,
    so that the answer could not be located. Empty: such a processor is refused."""
    attention: tuple[str, ...] = (EAGER, SDPA, FLASH, FLEX)
    """What `model.attention` may be."""
    shares_prefix: bool = False
    """Whether rows that begin alike can be read together (`prefix.py`): each token depends on those before it alone."""
    row_positions: Callable[[Any, Mapping[str, Tensor]], Tensor] | None = None
    """From the model and a processor's tensors of one row: where its tokens stand, [D, T], in models whose positions have
    several dimensions. None: 0, 1, 2, …"""
    unsafe_dtypes: Mapping[str, str] = field(default_factory=dict)
    """Values of `model.dtype` that give wrong numbers, with the reason."""
    image_inputs: tuple[str, ...] = ()
    """What `get_image_features` takes of a processor's tensors, where its result can be given to the model in place of the
    pixels (`image_features.py`). Empty: it cannot."""
    mend: Callable[[Any], None] = lambda model: None
    """Changes a loaded model where a batch would be computed otherwise than its rows one by one. Acts once however often it is
    called."""
    notes: tuple[str, ...] = ()
    """What a reader must know of how this row came about; shown when a run starts."""


def _inner_layer(tower: str, layers_name: str) -> Callable[[Any], tuple[str, ...]]:
    """For models that read the hidden states of an inner vision layer; later layers and the final norm do nothing."""

    def unused(config: Any) -> tuple[str, ...]:
        layers = config.vision_config.num_hidden_layers
        chosen = config.vision_feature_layer
        wanted = [chosen] if isinstance(chosen, int) else chosen
        deepest = max(layer if layer >= 0 else layers + 1 + layer for layer in wanted)
        later = (f"{tower}{layers_name}.{index}." for index in range(deepest, layers))
        return (f"{tower}post_layernorm.", f"{tower}head.", *later)

    return unused


def _siglip_head(config: Any) -> tuple[str, ...]:
    """Gemma 3 reads the last hidden state; the pooling head, where a checkpoint has one, does nothing."""
    return ("model.vision_tower.head.",)


def _internvl_unused(config: Any) -> tuple[str, ...]:
    """InternVL reads the last hidden state, behind the norm, or that of an inner layer."""
    tower = "model.vision_tower."
    if config.vision_feature_layer == -1:
        return ()
    later = (name for name in _inner_layer(tower, "encoder.layer")(config) if "encoder" in name)
    return (f"{tower}layernorm.", *later)


_LAYERS_OF_LANGUAGE = r"\.layers\.\d+\.(self_attn|mlp)\.(q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj)"
_LANGUAGE = rf"model\.language_model{_LAYERS_OF_LANGUAGE}"
_TOWER = r"model\.vision_tower\..*\.(q_proj|k_proj|v_proj|out_proj|fc1|fc2)"
_TWO_LINEAR = r"model\.multi_modal_projector\.linear_[12]"
_LANGUAGE_PREFIXES = ("model.language_model.", "lm_head.")

LLAVA = Family(
    model_type="llava",
    published_prompts=True,
    prefixes={
        Part.vision: ("model.vision_tower.",),
        Part.projector: ("model.multi_modal_projector.",),
        Part.language: _LANGUAGE_PREFIXES,
    },
    lora_modules={Part.vision: _TOWER, Part.projector: _TWO_LINEAR, Part.language: _LANGUAGE},
    unused=_inner_layer("model.vision_tower.", "encoder.layers"),
    chat_template=templates.VICUNA,
    shares_prefix=True,
    image_inputs=("pixel_values",),
)

_LLAVA_LIKE: dict[str, Any] = {
    "prefixes": {
        Part.vision: ("model.vision_tower.",),
        Part.projector: ("model.multi_modal_projector.", "model.image_newline"),
        Part.language: _LANGUAGE_PREFIXES,
    },
    "lora_modules": LLAVA.lora_modules,
    "unused": LLAVA.unused,
    "shares_prefix": True,
}

_TILES = ("pixel_values", "image_sizes")
LLAVA_NEXT = Family(
    model_type="llava_next",
    chat_template="",  # its variants ask in different words
    image_inputs=_TILES,
    **_LLAVA_LIKE,
)
LLAVA_ONEVISION = Family(
    model_type="llava_onevision",
    chat_template=templates.chatml("<image>\n"),
    image_inputs=(*_TILES, "batch_num_images"),
    **_LLAVA_LIKE,
)


def _rows_and_columns(model: Any, inputs: Mapping[str, Tensor]) -> Tensor:
    """Qwen-VL: a token of a picture stands at a time, a row and a column, one of a text at the same place in all three."""
    ids = inputs["input_ids"]
    if "image_grid_thw" not in inputs:
        return torch.arange(ids.shape[1]).expand(3, -1)
    found: Tensor = model.model.get_rope_index(ids, inputs["mm_token_type_ids"], image_grid_thw=inputs["image_grid_thw"])[0]
    return found[:, 0]


def _qwen(model_type: str, vision: str, projector: str, *, own_vision: tuple[str, ...] = (), system: str = "") -> Family:
    """Qwen-VL: the projector ("merger") is a module inside `model.visual`."""
    return Family(
        model_type=model_type,
        prefixes={
            Part.vision: ("model.visual.patch_embed.", "model.visual.blocks.", *own_vision),
            Part.projector: ("model.visual.merger.", "model.visual.deepstack_merger_list."),
            Part.language: _LANGUAGE_PREFIXES,
        },
        lora_modules={
            Part.vision: rf"model\.visual\.blocks\.\d+\.(attn\.(qkv|proj)|mlp\.({vision}))",
            Part.projector: rf"model\.visual\.{projector}",
            Part.language: _LANGUAGE,
        },
        chat_template=templates.chatml("<|vision_start|><|image_pad|><|vision_end|>", system=system),
        attention=(EAGER, SDPA, FLASH),
        shares_prefix=True,
        row_positions=_rows_and_columns,
        image_inputs=("pixel_values", "image_grid_thw"),
    )


QWEN2_VL = _qwen("qwen2_vl", "fc1|fc2", r"merger\.mlp\.[02]", system=templates.HELPFUL)
QWEN2_5_VL = _qwen("qwen2_5_vl", "gate_proj|up_proj|down_proj", r"merger\.mlp\.[02]", system=templates.HELPFUL)
QWEN3_VL = _qwen(
    "qwen3_vl",
    "linear_fc1|linear_fc2",
    r"(merger|deepstack_merger_list\.\d+)\.linear_fc[12]",
    own_vision=("model.visual.pos_embed.",),
)

MLLAMA = Family(
    model_type="mllama",
    prefixes={
        Part.vision: ("model.vision_model.",),
        Part.projector: ("model.multi_modal_projector.",),
        Part.language: _LANGUAGE_PREFIXES,  # the layers that look at the image (cross_attn) among them
    },
    lora_modules={
        Part.vision: r"model\.vision_model\.(global_)?transformer\.layers\.\d+\..*\.(q_proj|k_proj|v_proj|o_proj|fc1|fc2)",
        Part.projector: r"model\.multi_modal_projector",
        Part.language: _LANGUAGE.replace("self_attn|", "self_attn|cross_attn|"),
    },
    chat_template=templates.LLAMA_3,
    attention=(EAGER, SDPA, FLEX),
    mend=keep_text_rows_free_of_images,
)


def _idefics(model_type: str) -> Family:
    return Family(
        model_type=model_type,
        prefixes={
            Part.vision: ("model.vision_model.",),
            Part.projector: ("model.connector.",),
            Part.language: ("model.text_model.", "lm_head."),
        },
        lora_modules={
            Part.vision: r"model\.vision_model\..*\.(q_proj|k_proj|v_proj|out_proj|fc1|fc2)",
            Part.projector: r"model\.connector\.modality_projection\.proj",
            Part.language: rf"model\.text_model{_LAYERS_OF_LANGUAGE}",
        },
        chat_template=templates.IDEFICS,
        shares_prefix=True,
        image_inputs=("pixel_values", "pixel_attention_mask"),
    )


IDEFICS3, SMOLVLM = _idefics("idefics3"), _idefics("smolvlm")

GEMMA3 = Family(
    model_type="gemma3",
    prefixes={
        Part.vision: ("model.vision_tower.",),
        Part.projector: ("model.multi_modal_projector.",),
        Part.language: _LANGUAGE_PREFIXES,
    },
    # Its projector is a bare matrix and a norm, nothing that an adapter could be put on.
    lora_modules={Part.vision: _TOWER, Part.language: _LANGUAGE},
    unused=_siglip_head,
    chat_template=templates.GEMMA,
    image_inputs=("pixel_values",),
    unsafe_dtypes={"float16": "its activations exceed the largest number of float16"},
)

INTERNVL = Family(
    model_type="internvl",
    prefixes={
        Part.vision: ("model.vision_tower.",),
        Part.projector: ("model.multi_modal_projector.",),
        Part.language: _LANGUAGE_PREFIXES,
    },
    lora_modules={
        Part.vision: r"model\.vision_tower\.encoder\.layer\.\d+\..*\.(q_proj|k_proj|v_proj|projection_layer|fc1|fc2)",
        Part.projector: _TWO_LINEAR,
        Part.language: _LANGUAGE,
    },
    unused=_internvl_unused,
    chat_template=templates.chatml("<IMG_CONTEXT>\n"),
    shares_prefix=True,
    image_inputs=("pixel_values",),
)

FAMILIES = {
    family.model_type: family
    for family in (
        LLAVA,
        LLAVA_NEXT,
        LLAVA_ONEVISION,
        QWEN2_VL,
        QWEN2_5_VL,
        QWEN3_VL,
        MLLAMA,
        SMOLVLM,
        IDEFICS3,
        GEMMA3,
        INTERNVL,
    )
}


def check_parts(names: Iterable[str], family: Family) -> None:
    """Make sure that every parameter belongs to exactly one part.

    Args:
        names: in-memory names of a model's parameters.
        family: the model's.

    Raises:
        ConfigError: names the parameters that belong to none or to several.
    """
    wrong = []
    for name in names:
        parts = [part for part, prefixes in family.prefixes.items() if bare_name(name).startswith(prefixes)]
        if len(parts) != 1:
            wrong.append(f"{name} ({' and '.join(parts) or 'none'})")
    if wrong:
        raise ConfigError(
            f"{len(wrong)} weights of this model of type {family.model_type!r} do not belong to exactly one of the parts "
            f"vision, projector and language: {', '.join(wrong[:5])}. They are named otherwise than transformers 5.23 names "
            "them; correct the prefixes in mmunlearn/models/families.py."
        )


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
