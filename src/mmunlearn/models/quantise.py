"""Weights rounded to 8 or 4 bits: what a deployed file holds (int8, int4), and the frozen base below a QLoRA adapter (nf4).

Whoever deploys a model often rounds it first, and rounding can bring back what unlearning took away (Zhang et al., arXiv
2410.16454: small updates vanish between two steps of the grid). So a claim about a deployed file is checked on that file.

int8 and int4 are done by torchao: weights only, to the nearest step of a symmetric grid, no calibration data. Linear layers of
all parts are rounded; embeddings, norms, convolutions and the output head stay as they are, which is the rule of transformers.
A step is max |w| / ((2^bits - 1) / 2), and what lies above the highest step is cut to it, as torchao does by default.
nf4 is done by bitsandbytes (Dettmers et al., QLoRA, arXiv 2305.14314), with its block constants quantised again.

Deviation from Zhang et al.: they use GPTQ and AWQ with calibration data beside rounding to the nearest; this is the last alone.
"""

import importlib.util
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor, nn
from transformers import BitsAndBytesConfig, TorchAoConfig
from transformers.quantizers import AutoHfQuantizer

from mmunlearn.config import Tune
from mmunlearn.config_enums import Mode, Quantise
from mmunlearn.errors import ConfigError
from mmunlearn.models.families import Family, Part

GROUP = 32
"""int4: so many neighbours in a row of a weight share a step; a whole row where its length is no multiple. int8: a row."""
ROUNDED = (Quantise.int8, Quantise.int4)
"""What can be asked and exported, but not trained."""
BASE_QUANTISED, BASE_DTYPE = "base_quantised", "base_dtype"
"""In the card of an adapter: how the weights below it were rounded when it was trained. It belongs on no others."""
UNPACKED = 1 << 20
"""Weights of each shape that are unpacked by hand."""
_NEEDS = {
    Quantise.int8: ("torchao", "quantise"),
    Quantise.int4: ("torchao", "quantise"),
    Quantise.nf4: ("bitsandbytes", "qlora"),
}
"""The library, and the extra that installs it."""


def check_installed(how: Quantise, setting: str) -> None:
    """Make sure that a library is there before anything is loaded.

    Args:
        how: what is asked for.
        setting: what asks for it, for the message.

    Raises:
        ConfigError: it is not.
    """
    if how is Quantise.none:
        return
    library, extra = _NEEDS[how]
    if importlib.util.find_spec(library) is None:
        raise ConfigError(f"{setting}: {how} needs {library}, which is not installed: pip install 'mmunlearn[{extra}]'")


def check_stored(config: Any, path: str) -> None:
    """Make sure that weights which are stored quantised can be opened.

    Args:
        config: the model's own configuration.
        path: where it lies, for the message.

    Raises:
        ConfigError: the library is not installed.
    """
    stored = stored_as(config)
    if stored in set(Quantise):
        check_installed(Quantise(stored), f"{path} is stored quantised")


def stored_as(config: Any) -> str:
    """How the weights of a configuration are quantised: int8, int4, nf4, the name of another way, or nothing.

    Args:
        config: a model's configuration, as opened from disk or of a model in memory.
    """
    settings = getattr(config, "quantization_config", None)
    if settings is None:
        return ""
    plain: dict[str, Any] = settings if isinstance(settings, dict) else settings.to_dict()
    method = str(getattr(plain.get("quant_method"), "value", plain.get("quant_method")))
    if method == "torchao":
        return _torchao_word(plain.get("quant_type"))
    if method == "bitsandbytes":
        return str(plain.get("bnb_4bit_quant_type")) if plain.get("load_in_4bit") else "bitsandbytes 8-bit"
    return method


def _torchao_word(quant_type: Any) -> str:
    """`int8` or `int4` of what torchao writes about weights rounded by `quantise`."""
    default = quant_type.get("default", {}) if isinstance(quant_type, dict) else {}
    name = str(default.get("_data", {}).get("weight_dtype", {}).get("_data", ""))
    return name if default.get("_type") == "IntxWeightOnlyConfig" and name in ROUNDED else "torchao"


def quantisation_of(model: nn.Module) -> str:
    """How the weights of a model are quantised, also below an adapter; empty if they are not."""
    return stored_as(getattr(model, "config", None))


@torch.no_grad()
def quantise(model: Any, how: Quantise) -> None:
    """Round the linear layers of a model in place; `save_pretrained` then stores them as integers with their steps.

    Args:
        model: in floating point, without an adapter.
        how: int8 or int4.

    Raises:
        ConfigError: torchao is missing, or the model is quantised already.
    """
    from torchao.quantization import IntxWeightOnlyConfig, quantize_
    from torchao.quantization.granularity import PerAxis, PerGroup

    if earlier := quantisation_of(model):
        raise ConfigError(f"{how}: the model is quantised already ({earlier}). Start from the unrounded one.")
    head = model.get_output_embeddings()

    def in_groups(module: nn.Module, name: str) -> bool:
        fits = isinstance(module, nn.Linear) and module.in_features % GROUP == 0
        return how is Quantise.int4 and fits and module is not head

    def in_rows(module: nn.Module, name: str) -> bool:
        return isinstance(module, nn.Linear) and not in_groups(module, name) and module is not head

    dtype = getattr(torch, how)
    by_group, by_row = (IntxWeightOnlyConfig(weight_dtype=dtype, granularity=g) for g in (PerGroup(GROUP), PerAxis(0)))
    quantize_(model, by_group, filter_fn=in_groups)
    quantize_(model, by_row, filter_fn=in_rows)
    # What `from_pretrained` with such a configuration would have set; `save_pretrained` looks at it.
    settings = TorchAoConfig(by_group if how is Quantise.int4 else by_row)
    model.hf_quantizer = AutoHfQuantizer.from_config(settings)
    model.config.quantization_config = settings


def nf4_settings(dtype: torch.dtype, family: Family | None, tune: Tune) -> BitsAndBytesConfig:
    """How transformers is to open a model for QLoRA: every linear layer in nf4 but the head and parts that are tuned fully.

    Args:
        dtype: in which the layers multiply, and of all other weights.
        family: which weights belong to which part; None: unknown, nothing but the head stays.
        tune: how each part is tuned.
    """
    prefixes = family.prefixes if family else {}
    whole = [name for part in Part if Mode(getattr(tune, part).mode) is Mode.full for name in prefixes.get(part, ())]
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
        llm_int8_skip_modules=["lm_head", *(name.rstrip(".") for name in whole)],
    )


def rounding_record(model: Any) -> dict[str, str]:
    """For the card of an adapter: how the weights below it are rounded, and from which format; empty if they are not.

    Weights that are saved in float16 have other steps in 4 bits if they are opened in bfloat16 first.
    """
    how = quantisation_of(model)
    dtypes = [str(each.compute_dtype).removeprefix("torch.") for each in model.modules() if hasattr(each, "compute_dtype")]
    return {BASE_QUANTISED: how} | ({BASE_DTYPE: dtypes[0]} if dtypes else {}) if how else {}


def rounding_below(card: Mapping[str, Any]) -> tuple[Quantise, str]:
    """What an adapter's card says about it; the format is empty where it was not recorded."""
    return Quantise(card.get(BASE_QUANTISED, "none")), str(card.get(BASE_DTYPE, ""))


def keep_as_stored(model: Any) -> None:
    """Keep bitsandbytes from repacking weights in place when a model in nf4 is first asked on a CPU with AVX512-BF16.

    That rounds the steps of the grid to bfloat16, so that asking would change the model, and fails for widths that are no
    multiple of 64.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


def check_unpacked(model: Any) -> None:
    """Make sure that weights in nf4 are read as they were stored, by unpacking some of each shape by hand.

    bitsandbytes 0.50 unpacks rows of some lengths that are no multiple of 64 wrongly on CPUs with AVX-512 (of 416, say), and
    the model goes on with other weights.

    Raises:
        ConfigError: they are read otherwise.
    """
    seen: set[tuple[int, ...]] = set()
    for name, module in model.named_modules():
        weight = getattr(module, "weight", None)
        state = getattr(weight, "quant_state", None)
        if weight is None or state is None or tuple(state.shape) in seen:
            continue
        seen.add(tuple(state.shape))
        expected = _unpacked_by_hand(weight, state)
        found = _unpacked(weight, state).flatten()[: len(expected)].float()
        if not torch.allclose(found, expected.to(state.dtype).float(), rtol=1e-2, atol=1e-6):
            raise ConfigError(
                f"bitsandbytes {version('bitsandbytes')} does not read the weights of {name} {tuple(state.shape)} as it stored "
                f"them, on {weight.device.type}: the model would compute with others. Use a GPU, another version of "
                "bitsandbytes, or no 4 bits (model.quantise=none)."
            )


def _unpacked(weight: Tensor, state: Any) -> Tensor:
    from bitsandbytes.functional import dequantize_4bit

    unpacked: Tensor = dequantize_4bit(weight.data, state)
    return unpacked


def _unpacked_by_hand(weight: Tensor, state: Any) -> Tensor:
    """The first weights of a tensor, from the definition: a number of the code times the largest of its block."""
    count = min(state.shape.numel(), UNPACKED)
    pairs = weight.data.flatten().view(torch.uint8)[: -(-count // 2)].long()
    places = torch.stack([pairs >> 4, pairs & 15], dim=1).flatten()[:count]
    blocks = torch.arange(count, device=places.device) // state.blocksize
    largest = state.absmax[: int(blocks[-1]) + 1]
    if state.nested:
        outer = torch.arange(len(largest), device=places.device) // state.state2.blocksize
        largest = state.state2.code[largest.long()] * state.state2.absmax[outer] + state.offset
    unpacked: Tensor = state.code[places].float() * largest.float()[blocks]
    return unpacked


def plain_tensors(name: str, tensor: Tensor) -> Iterator[tuple[str, Tensor]]:
    """A tensor as it is, or the integers and steps that a rounded one consists of."""
    if not hasattr(tensor, "__tensor_flatten__"):
        yield name, tensor
        return
    inner, _ = tensor.__tensor_flatten__()
    for part in inner:
        yield from plain_tensors(f"{name}.{part}", getattr(tensor, part))


def num_weights(parameter: Tensor) -> int:
    """How many weights a parameter holds; bitsandbytes packs two into a byte."""
    state = getattr(parameter, "quant_state", None)
    return parameter.numel() if state is None else state.shape.numel()
