"""A real LLaVA of about 3 million weights with tokenizer, processor and chat template, built offline from a text corpus."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from transformers import (
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

from mmunlearn.models.templates import VICUNA
from mmunlearn.models.tiny_tokenizer import train_tokenizer

IMAGE_TOKEN = "<image>"
PAD_TOKEN, END_TOKEN = "<pad>", "</s>"


@dataclass(frozen=True, kw_only=True)
class TinySize:
    """The shape of the tiny model.

    More than half of its weights see: an image has 16 patches, a question some 30 tokens, so weights in the vision tower
    cost less time, and recognising faces is what is hard to learn.
    """

    image_size: int = 64
    patch_size: int = 16
    vision_width: int = 192
    vision_layers: int = 4
    width: int = 160
    layers: int = 3
    heads: int = 4
    vocabulary: int = 2000
    max_length: int = 512

    @property
    def inner_width(self) -> int:
        """Width of the language part's feed-forward layers: 8/3 of `width`, in whole cache lines.

        Matrices whose rows begin anywhere in a line (426 numbers) were multiplied at a quarter of the speed time and again.
        """
        return 8 * self.width // 3 // 16 * 16


def build_tiny(
    corpus: Iterable[str], *, seed: int, size: TinySize | None = None
) -> tuple[LlavaForConditionalGeneration, LlavaProcessor]:
    """Build an untrained model and its processor.

    Args:
        corpus: texts from which the byte-level BPE vocabulary is learned; any other text can still be encoded.
        seed: decides the initial weights.
        size: the shape; default `TinySize()`.
    """
    size = size or TinySize()
    tokenizer = _tokenizer(corpus, size)
    # A generator of its own, so that building a model does not disturb the caller's random numbers.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlavaForConditionalGeneration(_config(tokenizer, size))
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    square = {"height": size.image_size, "width": size.image_size}
    processor = LlavaProcessor(
        image_processor=CLIPImageProcessorPil(size={"shortest_edge": size.image_size}, crop_size=square),
        tokenizer=tokenizer,
        patch_size=size.patch_size,
        vision_feature_select_strategy="default",
        chat_template=VICUNA,
        image_token=IMAGE_TOKEN,
        num_additional_image_tokens=1,  # CLIP's class token, which the "default" strategy drops again
    )
    return model.eval(), processor


def _tokenizer(corpus: Iterable[str], size: TinySize) -> PreTrainedTokenizerFast:
    return train_tokenizer(
        corpus,
        vocabulary=size.vocabulary,
        max_length=size.max_length,
        special=[PAD_TOKEN, END_TOKEN, IMAGE_TOKEN],
        names={"pad_token": PAD_TOKEN, "eos_token": END_TOKEN, "image_token": IMAGE_TOKEN},
        split_lines=False,
    )


def _config(tokenizer: PreTrainedTokenizerFast, size: TinySize) -> LlavaConfig:
    vision = CLIPVisionConfig(
        image_size=size.image_size,
        patch_size=size.patch_size,
        hidden_size=size.vision_width,
        intermediate_size=4 * size.vision_width,
        num_hidden_layers=size.vision_layers,
        num_attention_heads=size.heads,
        projection_dim=size.vision_width,
    )
    text = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=size.width,
        intermediate_size=size.inner_width,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        num_key_value_heads=size.heads,
        max_position_embeddings=size.max_length,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        initializer_range=size.width**-0.5,  # the default 0.02 is made for widths of thousands and learns slowly here
        tie_word_embeddings=False,
    )
    return LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_id=tokenizer.convert_tokens_to_ids(IMAGE_TOKEN),
        image_seq_length=(size.image_size // size.patch_size) ** 2,
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
        tie_word_embeddings=False,
    )
