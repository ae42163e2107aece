"""What identifies a model's weights, and what a processor makes of text and images."""

import hashlib
from typing import Any

import torch
from torch import nn

from mmunlearn.models.masked_lora import adapter_mask
from mmunlearn.models.quantise import plain_tensors
from mmunlearn.models.saliency_mask import mask_fingerprint
from mmunlearn.run import fingerprint


def model_fingerprint(model: nn.Module) -> str:
    """Sixteen hexadecimal digits that identify the weights (in-memory names, shapes, bytes) and the mask of an adapter."""
    digest = hashlib.blake2b(digest_size=8)
    named = (pair for name, whole in sorted(model.state_dict().items()) for pair in plain_tensors(name, whole.detach()))
    for name, tensor in named:
        digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        digest.update(tensor.cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    if mask := adapter_mask(model):
        digest.update(mask_fingerprint(mask).encode())
    return digest.hexdigest()


def processor_fingerprint(processor: Any) -> str:
    """Identifies what a processor makes of text and images: chat template, vocabulary, special tokens, image settings."""
    tokenizer = processor.tokenizer
    own = {name: value for name, value in vars(processor).items() if isinstance(value, str | int | float | bool)}
    special = [tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token]
    content = [type(processor).__name__, own, processor.chat_template, tokenizer.backend_tokenizer.to_str(), special]
    return fingerprint([*content, processor.image_processor.to_dict()])
