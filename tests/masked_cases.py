"""What the tests of masked adapters share: a tuned model, masks for it, and what the masked adapter stands for."""

import torch
from tiny_cases import LORA, batch_of, make_examples

from mmunlearn.config import Lora
from mmunlearn.models.families import LLAVA
from mmunlearn.models.saliency_mask import mask_of
from mmunlearn.models.tuning import apply_tuning

SETTINGS = Lora(r=4, alpha=10, dropout=0.0)
CARD = {"rule": "ratio", "threshold": 1.0}
BELOW, AT_ONCE = "model.language_model.layers.0.mlp.up_proj.weight", "model.multi_modal_projector.linear_1.weight"


def bare(name):
    return name.removeprefix("base_model.model.").replace(".base_layer.", ".")


def adapted_shapes(model):
    """Of the weights that have an adapter, by their names without it."""
    return {bare(name): tuple(p.shape) for name, p in model.named_parameters() if name.endswith(".base_layer.weight")}


def random_mask(model, seed=0, share=0.4, extra=()):
    """Some weights of every adapted matrix."""
    dice = torch.Generator().manual_seed(seed)
    shapes = adapted_shapes(model) | dict(extra)
    return mask_of({name: torch.rand(shape, generator=dice) < share for name, shape in shapes.items()}, CARD)


def shaken(model, seed=1, std=0.1):
    """Give B values as training does; without them an adapter changes nothing."""
    dice = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.copy_(std * torch.randn(parameter.shape, generator=dice))
    return model


def tuned_model(model, settings=SETTINGS, tune=LORA):
    return shaken(apply_tuning(model, LLAVA, tune, settings).eval())


def logits(model, processor):
    with torch.no_grad():
        return model(**batch_of(processor, *make_examples("check", 4)).inputs).logits


def away(found, expected):
    """Norm of the difference over the norm of what is expected."""
    return float((found.float() - expected.float()).norm() / expected.float().norm())


def factors(tuned):
    """A and B of every adapted weight, the parameters themselves."""
    own = dict(tuned.named_parameters())
    find = {bare(name): name.removesuffix("base_layer.weight") for name in own if name.endswith(".base_layer.weight")}
    return {weight: [own[f"{layer}lora_{kind}.default.weight"] for kind in "AB"] for weight, layer in find.items()}


def written_out(plain, tuned, mask, pairs):
    """The weights that the masked adapter stands for: W + m * s * B A."""
    own = dict(plain.named_parameters())
    scaling = SETTINGS.alpha / SETTINGS.r
    return {name: own[name] + mask.tensor(name) * (scaling * (b @ a)) for name, (a, b) in pairs.items()}


def edited(mask, change):
    tensors = {name: mask.tensor(name) for name in mask.bits}
    change(tensors)
    return mask_of(tensors, mask.card)
