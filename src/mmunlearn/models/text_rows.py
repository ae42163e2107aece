"""Rows without an image beside rows with one, in a model whose language part looks at the image by cross-attention (Mllama).

A batch has one image slot a row. transformers masks the slot of a text row by a bias that is the same for all its image
tokens, and the softmax ignores what they all share: the row attends evenly to an image that is not there. Its numbers would
depend on what it is batched with. (Meta's own code multiplies the attention's output by 0 there; transformers does so behind
the MLP only.) Here such rows get image features of exactly 0. Keys and values have no bias, so the attention adds 0, as if
the row stood alone, where transformers leaves the cross-attention layers out.

Tokens before the image in a row *with* an image have the same flaw in transformers. They are left as they are, because every
other user of the model sees the same numbers there.
"""

from typing import Any

import torch


def keep_text_rows_free_of_images(model: Any) -> None:
    """Put the change above in force; a second call does nothing."""
    inner = model.model
    if _without_text_rows not in inner._forward_pre_hooks.values():
        inner.register_forward_pre_hook(_without_text_rows, with_kwargs=True)


def _without_text_rows(inner: Any, args: tuple[Any, ...], inputs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Show the vision part the rows with an image only, and put zeros where the others' features would stand."""
    pixels, ratios = inputs.get("pixel_values"), inputs.get("aspect_ratio_ids")
    if pixels is None or ratios is None:
        return args, inputs
    seen = (ratios != 0).any(dim=1)  # 0 is no aspect ratio: the slot is empty
    if bool(seen.all()):
        return args, inputs
    features = inner.multi_modal_projector(
        inner.vision_model(
            pixel_values=pixels[seen],
            aspect_ratio_ids=ratios[seen],
            aspect_ratio_mask=inputs["aspect_ratio_mask"][seen],
        ).last_hidden_state
    )
    features = features.reshape(int(seen.sum()), -1, inner.hidden_size)
    filled = torch.zeros(len(seen), *features.shape[1:], dtype=features.dtype, device=features.device)
    filled = filled.index_put((seen.nonzero()[:, 0],), features)
    return args, {**inputs, "pixel_values": None, "cross_attention_states": filled}
