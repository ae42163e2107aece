"""Configurations of small models of every family. All see an image as about `(image_size / patch_size)^2` tokens."""

from typing import Any

import transformers as hf

from mmunlearn.models.tiny import TinySize


def square(size: TinySize) -> dict[str, int]:
    """Height and width of an image or tile."""
    return {"height": size.image_size, "width": size.image_size}


def pinpoints(size: TinySize) -> list[list[int]]:
    """Resolutions into which LLaVA-NeXT and OneVision cut an image, [height, width]."""
    side = size.image_size
    return [[side, side], [side, 2 * side], [2 * side, side]]


def _text(tokenizer: Any, size: TinySize, **more: Any) -> dict[str, Any]:
    """What all language parts have in common."""
    return {
        "vocab_size": len(tokenizer),
        "hidden_size": size.width,
        "intermediate_size": size.inner_width,
        "num_hidden_layers": size.layers,
        "num_attention_heads": size.heads,
        "num_key_value_heads": size.heads,
        "max_position_embeddings": size.max_length,
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "initializer_range": size.width**-0.5,
        "tie_word_embeddings": False,
        **more,
    }


def _tower(size: TinySize, patch_size: int | None = None) -> dict[str, Any]:
    """A vision tower of CLIP's shape."""
    return {
        "image_size": size.image_size,
        "patch_size": patch_size or size.patch_size,
        "hidden_size": size.vision_width,
        "intermediate_size": 4 * size.vision_width,
        "num_hidden_layers": size.vision_layers,
        "num_attention_heads": size.heads,
    }


def _id(tokenizer: Any, token: str) -> int:
    return int(tokenizer.convert_tokens_to_ids(token))


def llava_next(tokenizer: Any, size: TinySize) -> hf.LlavaNextConfig:
    """CLIP and Llama; the image whole and in tiles."""
    return hf.LlavaNextConfig(
        vision_config=hf.CLIPVisionConfig(**_tower(size), projection_dim=size.vision_width),
        text_config=hf.LlamaConfig(**_text(tokenizer, size)),
        image_token_index=tokenizer.image_token_id,
        image_grid_pinpoints=pinpoints(size),
        vision_feature_layer=-2,
        tie_word_embeddings=False,
    )


def llava_onevision(tokenizer: Any, size: TinySize) -> hf.LlavaOnevisionConfig:
    """SigLIP and Qwen2."""
    return hf.LlavaOnevisionConfig(
        vision_config=hf.SiglipVisionConfig(**_tower(size), vision_use_head=False),
        text_config=hf.Qwen2Config(**_text(tokenizer, size)),
        image_token_index=tokenizer.image_token_id,
        video_token_index=tokenizer.video_token_id,
        image_grid_pinpoints=pinpoints(size),
        tie_word_embeddings=False,
    )


def _qwen(kind: Any, tokenizer: Any, size: TinySize, vision: dict[str, Any], text: dict[str, Any]) -> Any:
    half = size.width // size.heads // 2
    sections = [half - 2 * (half // 3), half // 3, half // 3]  # of a head's rotations: time, height, width
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": sections}
    shape = {"depth": size.vision_layers, "num_heads": size.heads, "patch_size": size.patch_size // 2}
    return kind(
        vision_config={**shape, "spatial_merge_size": 2, "temporal_patch_size": 2, **vision},
        text_config=_text(tokenizer, size, rope_parameters=rope, **text),
        image_token_id=tokenizer.image_token_id,
        video_token_id=tokenizer.video_token_id,
        vision_start_token_id=_id(tokenizer, "<|vision_start|>"),
        vision_end_token_id=_id(tokenizer, "<|vision_end|>"),
        tie_word_embeddings=False,
    )


def qwen2_vl(tokenizer: Any, size: TinySize) -> hf.Qwen2VLConfig:
    """Patches of half the size, four of them merged to a token."""
    vision = {"embed_dim": size.vision_width, "hidden_size": size.width, "mlp_ratio": 4}
    return _qwen(hf.Qwen2VLConfig, tokenizer, size, vision, {})


def qwen2_5_vl(tokenizer: Any, size: TinySize) -> hf.Qwen2_5_VLConfig:
    """With attention in windows in all vision layers but the last."""
    vision = {
        "hidden_size": size.vision_width,
        "intermediate_size": 4 * size.vision_width,
        "out_hidden_size": size.width,
        "window_size": size.patch_size,
        "fullatt_block_indexes": [size.vision_layers - 1],
    }
    return _qwen(hf.Qwen2_5_VLConfig, tokenizer, size, vision, {})


def qwen3_vl(tokenizer: Any, size: TinySize) -> hf.Qwen3VLConfig:
    """With features of an inner vision layer added in the language part (deepstack)."""
    vision = {
        "hidden_size": size.vision_width,
        "intermediate_size": 4 * size.vision_width,
        "out_hidden_size": size.width,
        "num_position_embeddings": (2 * size.image_size // size.patch_size) ** 2,
        "deepstack_visual_indexes": [0],
    }
    return _qwen(hf.Qwen3VLConfig, tokenizer, size, vision, {"head_dim": size.width // size.heads})


def mllama(tokenizer: Any, size: TinySize) -> hf.MllamaConfig:
    """Up to two tiles; the second language layer looks at the image."""
    layers = size.vision_layers
    vision = hf.MllamaVisionConfig(
        hidden_size=size.vision_width,
        attention_heads=size.heads,
        intermediate_size=4 * size.vision_width,
        num_hidden_layers=layers,
        num_global_layers=1,
        vision_output_dim=2 * size.vision_width,
        image_size=size.image_size,
        patch_size=size.patch_size,
        max_num_tiles=2,
        intermediate_layers_indices=[0],
        supported_aspect_ratios=[[1, 1], [1, 2], [2, 1]],
    )
    # The image's token comes last and is none that the model can say.
    text = hf.MllamaTextConfig(**_text(tokenizer, size, vocab_size=len(tokenizer) - 1, cross_attention_layers=[1]))
    return hf.MllamaConfig(vision_config=vision, text_config=text, image_token_index=tokenizer.image_token_id)


def _idefics(kind: Any, tokenizer: Any, size: TinySize) -> Any:
    return kind(
        vision_config=_tower(size, size.patch_size // 2),
        text_config=hf.LlamaConfig(**_text(tokenizer, size)),
        image_token_id=tokenizer.image_token_id,
        scale_factor=2,
        tie_word_embeddings=False,
    )


def idefics3(tokenizer: Any, size: TinySize) -> hf.Idefics3Config:
    """SigLIP and Llama; four patches are merged to a token."""
    return _idefics(hf.Idefics3Config, tokenizer, size)


def smolvlm(tokenizer: Any, size: TinySize) -> hf.SmolVLMConfig:
    """As Idefics3."""
    return _idefics(hf.SmolVLMConfig, tokenizer, size)


def gemma3(tokenizer: Any, size: TinySize) -> hf.Gemma3Config:
    """SigLIP, pooled to a quarter, and Gemma; every second layer attends locally."""
    text = _text(tokenizer, size, head_dim=size.width // size.heads, query_pre_attn_scalar=size.width // size.heads)
    kinds = ["sliding_attention" if index % 2 == 0 else "full_attention" for index in range(size.layers)]
    return hf.Gemma3Config(
        vision_config=hf.SiglipVisionConfig(**_tower(size, size.patch_size // 2), vision_use_head=False),
        text_config=hf.Gemma3TextConfig(**{**text, "tie_word_embeddings": True}, layer_types=kinds, sliding_window=64),
        mm_tokens_per_image=(size.image_size // size.patch_size) ** 2,
        boi_token_index=tokenizer.boi_token_id,
        eoi_token_index=tokenizer.eoi_token_id,
        image_token_index=tokenizer.image_token_id,
        tie_word_embeddings=True,
    )


def internvl(tokenizer: Any, size: TinySize) -> hf.InternVLConfig:
    """InternViT and Qwen2; four patches are merged to a token."""
    tower = _tower(size)
    tower |= {"image_size": [size.image_size] * 2, "patch_size": [size.patch_size // 2] * 2}
    return hf.InternVLConfig(
        vision_config=hf.InternVLVisionConfig(**tower),
        text_config=hf.Qwen2Config(**_text(tokenizer, size)),
        image_token_id=tokenizer.context_image_token_id,
        image_seq_length=(size.image_size // size.patch_size) ** 2,
        tie_word_embeddings=False,
    )
