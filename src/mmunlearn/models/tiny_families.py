"""A small untrained model of every family in the table, with tokenizer, processor and chat template, built offline.

Everything but the sizes is as in the published models: architecture, special tokens, how a processor turns an image into
pixels and placeholders. Without torchvision a processor has no video slot, see `image_only.py`.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import transformers as hf

from mmunlearn.errors import ConfigError, did_you_mean
from mmunlearn.models import tiny_configs as configs
from mmunlearn.models.families import FAMILIES
from mmunlearn.models.generic import recognise
from mmunlearn.models.image_only import VIDEO_PROCESSORS, image_only
from mmunlearn.models.templates import VICUNA
from mmunlearn.models.tiny import TinySize, build_tiny
from mmunlearn.models.tiny_tokenizer import train_tokenizer

Config = Callable[[Any, TinySize], Any]


@dataclass(frozen=True, kw_only=True)
class Tokens:
    """The special tokens of a family, by the names under which processors ask for them."""

    names: Mapping[str, str]
    others: tuple[str, ...] = ()
    last: tuple[str, ...] = ()
    layout: str = "<|im_start|>user\n{0}<|im_end|>\n<|im_start|>assistant\n{0}<|im_end|>\n"


_CHATML = {"pad_token": "<|endoftext|>", "eos_token": "<|im_end|>"}
_QWEN = Tokens(
    names={**_CHATML, "image_token": "<|image_pad|>", "video_token": "<|video_pad|>"},
    others=("<|im_start|>", "<|vision_start|>", "<|vision_end|>"),
)
_IDEFICS = Tokens(
    names={
        "pad_token": "<pad>",
        "eos_token": "<end_of_utterance>",
        "image_token": "<image>",
        "fake_image_token": "<fake_token_around_image>",
        "global_image_token": "<global-img>",
        "end_of_utterance_token": "<end_of_utterance>",
    },
    others=("<|im_start|>", *(f"<row_{row}_col_{column}>" for row in range(1, 7) for column in range(1, 7))),
    layout="User: {0}<end_of_utterance>\nAssistant: {0}<end_of_utterance>",
)
_LLAMA_3 = Tokens(
    names={"bos_token": "<|begin_of_text|>", "pad_token": "<|finetune_right_pad_id|>", "eos_token": "<|eot_id|>"}
    | {"image_token": "<|image|>"},
    others=("<|start_header_id|>", "<|end_header_id|>", "<|python_tag|>"),
    last=("<|image|>",),  # it has an embedding, but the model cannot say it
    layout="user\n\n{0}assistant\n\n{0}",
)
_GEMMA = Tokens(
    names={
        "bos_token": "<bos>",
        "pad_token": "<pad>",
        "eos_token": "<eos>",  # an answer ends with <end_of_turn>
        "boi_token": "<start_of_image>",
        "eoi_token": "<end_of_image>",
        "image_token": "<image_soft_token>",
    },
    others=("<start_of_turn>", "<end_of_turn>"),
    layout="user\n{0}\nmodel\n{0}",
)
_INTERNVL = Tokens(
    names={
        **_CHATML,
        "start_image_token": "<img>",
        "end_image_token": "</img>",
        "context_image_token": "<IMG_CONTEXT>",
        "video_token": "<video>",
    },
    others=("<|im_start|>",),
)
_LLAVA = Tokens(names={"pad_token": "<pad>", "eos_token": "</s>", "image_token": "<image>"}, layout="USER: {0}\nASSISTANT: {0}")
_ONEVISION = Tokens(names={**_CHATML, "image_token": "<image>", "video_token": "<video>"}, others=("<|im_start|>",))


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How the tiny model of one family is made."""

    tokens: Tokens
    config: Config
    processor: str
    """Name of the processor's class in transformers."""
    image_processor: str
    image_settings: Callable[[TinySize], dict[str, Any]]
    settings: Callable[[TinySize], dict[str, Any]] = lambda size: {}
    """What the processor takes besides its parts."""


RECIPES = {
    "llava_next": Recipe(
        tokens=_LLAVA,
        config=configs.llava_next,
        processor="LlavaNextProcessor",
        image_processor="LlavaNextImageProcessorPil",
        image_settings=lambda size: {
            "size": {"shortest_edge": size.image_size},
            "crop_size": configs.square(size),
            "image_grid_pinpoints": configs.pinpoints(size),
        },
        settings=lambda size: {
            "patch_size": size.patch_size,
            "vision_feature_select_strategy": "default",
            "num_additional_image_tokens": 1,
        },
    ),
    "llava_onevision": Recipe(
        tokens=_ONEVISION,
        config=configs.llava_onevision,
        processor="LlavaOnevisionProcessor",
        image_processor="LlavaOnevisionImageProcessorPil",
        image_settings=lambda size: {"size": configs.square(size), "image_grid_pinpoints": configs.pinpoints(size)},
        settings=lambda size: {
            "num_image_tokens": (size.image_size // size.patch_size) ** 2,
            "vision_feature_select_strategy": "full",
        },
    ),
    **{
        model_type: Recipe(
            tokens=_QWEN,
            config=config,
            processor=processor,
            image_processor="Qwen2VLImageProcessorPil",
            image_settings=lambda size: {
                "patch_size": size.patch_size // 2,
                "size": {"shortest_edge": size.patch_size**2, "longest_edge": size.image_size**2},
            },
        )
        for model_type, config, processor in (
            ("qwen2_vl", configs.qwen2_vl, "Qwen2VLProcessor"),
            ("qwen2_5_vl", configs.qwen2_5_vl, "Qwen2_5_VLProcessor"),
            ("qwen3_vl", configs.qwen3_vl, "Qwen3VLProcessor"),
        )
    },
    "mllama": Recipe(
        tokens=_LLAMA_3,
        config=configs.mllama,
        processor="MllamaProcessor",
        image_processor="MllamaImageProcessorPil",
        image_settings=lambda size: {"size": configs.square(size), "max_image_tiles": 2},
    ),
    **{
        model_type: Recipe(
            tokens=_IDEFICS,
            config=config,
            processor=f"{words}Processor",
            image_processor=f"{words}ImageProcessorPil",
            image_settings=lambda size: {
                "size": {"longest_edge": 2 * size.image_size},
                "max_image_size": {"longest_edge": size.image_size},
                "do_image_splitting": False,
            },
            settings=lambda size: {"image_seq_len": (size.image_size // size.patch_size) ** 2},
        )
        for model_type, config, words in (
            ("smolvlm", configs.smolvlm, "SmolVLM"),
            ("idefics3", configs.idefics3, "Idefics3"),
        )
    },
    "gemma3": Recipe(
        tokens=_GEMMA,
        config=configs.gemma3,
        processor="Gemma3Processor",
        image_processor="Gemma3ImageProcessorPil",
        image_settings=lambda size: {"size": configs.square(size)},
        settings=lambda size: {"image_seq_length": (size.image_size // size.patch_size) ** 2},
    ),
    "internvl": Recipe(
        tokens=_INTERNVL,
        config=configs.internvl,
        processor="InternVLProcessor",
        image_processor="GotOcr2ImageProcessorPil",
        image_settings=lambda size: {"size": configs.square(size), "max_patches": 4},
        settings=lambda size: {"image_seq_length": (size.image_size // size.patch_size) ** 2},
    ),
}


def build_tiny_family(model_type: str, corpus: Iterable[str], *, seed: int, size: TinySize | None = None) -> tuple[Any, Any]:
    """Build an untrained model of a family and its processor.

    Args:
        model_type: a key of the table of families.
        corpus: texts from which the vocabulary is learned.
        seed: decides the initial weights.
        size: the shape. An image of `image_size` becomes about `(image_size / patch_size)^2` tokens in every family.

    Raises:
        ConfigError: no such family.
    """
    if model_type == "llava":
        return build_tiny(corpus, seed=seed, size=size)
    if model_type not in RECIPES:
        raise ConfigError(f"There is no family {model_type!r}. {did_you_mean(model_type, FAMILIES)}")
    size, recipe = size or TinySize(), RECIPES[model_type]
    tokenizer = _tokenizer(corpus, recipe.tokens, size)
    config = recipe.config(tokenizer, size)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = hf.AutoModelForImageTextToText.from_config(config, dtype=torch.float32)
        _open(model, size)
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    recognise(model)
    return model.eval(), _processor(recipe, tokenizer, size, FAMILIES[model_type].chat_template or VICUNA)


def _tokenizer(corpus: Iterable[str], tokens: Tokens, size: TinySize) -> Any:
    first = dict.fromkeys([*tokens.names.values(), *tokens.others])
    return train_tokenizer(
        corpus,
        vocabulary=size.vocabulary,
        max_length=size.max_length,
        special=[token for token in first if token not in tokens.last],
        names=tokens.names,
        last=tokens.last,
        layout=tokens.layout,
    )


def _open(model: Any, size: TinySize) -> None:
    """Let images through: Mllama's gates and Gemma's projector begin at 0, where no gradient passes either."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("_gate", ".gate", ".gate_attn", ".gate_ffn")):
                parameter.fill_(0.5)
            if name.endswith(".mm_input_projection_weight"):
                parameter.normal_(std=size.vision_width**-0.5)


def _processor(recipe: Recipe, tokenizer: Any, size: TinySize, template: str) -> Any:
    image_processor = getattr(hf, recipe.image_processor)(**recipe.image_settings(size))
    # The slot for videos would need torchvision, and nobody fills it.
    kind = image_only(recipe.processor) if recipe.processor in VIDEO_PROCESSORS else getattr(hf, recipe.processor)
    return kind(image_processor=image_processor, tokenizer=tokenizer, chat_template=template, **recipe.settings(size))
