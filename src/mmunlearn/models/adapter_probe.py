"""What an adapter does to a fixed text, kept beside it, so that one that no longer acts is noticed when it is opened.

Names and shapes are compared when an adapter is opened (see `adapter_folder.py`), but after an upgrade of the libraries an
adapter can find its places and still act otherwise, or not at all; and the model below it may have been trained again since.
One forward pass over a dozen tokens shows both. It has no image: what a text does not reach is guarded by names alone.
"""

import json
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor

from mmunlearn.errors import ConfigError
from mmunlearn.run import write_json

PROBE_FILE, FORMER_PROBE_FILE = "adapter_probe.json", "probe.json"
"""The second is how adapters of earlier versions call it; it is read where the first is not there."""
NUM_TOKENS, NUM_LOGITS = 12, 64
SHARE = 0.1
"""By how much of the adapter's own effect the logits may differ from the stored ones."""
ROUNDING = {"float32": 1e-4, "float16": 0.02, "bfloat16": 0.1}
"""Relative differences of logits that come from another device or the other order of sums, or from this precision."""


Probe = dict[str, Any]
"""Some logits with the adapter and without it, and the precision they were computed in."""


def probe(model: PeftModel) -> Probe:
    """What is kept beside an adapter; where the weights are sharded, every rank has to call it."""
    with model.disable_adapter():
        without = _logits(model)
    return {"with": _logits(model).tolist(), "without": without.tolist(), "dtype": _dtype(model)}


def write_probe(record: Probe, folder: Path) -> None:
    """Store it with the adapter."""
    write_json(folder / PROBE_FILE, record)


def check_probe(model: PeftModel, folder: Path) -> None:
    """Compare with what was stored; a folder without a probe passes.

    Raises:
        ConfigError: the adapter acts otherwise than it did when it was saved.
    """
    file = next((path for name in (PROBE_FILE, FORMER_PROBE_FILE) if (path := folder / name).is_file()), None)
    if file is None:
        return
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
        expected, without = torch.tensor(record["with"]), torch.tensor(record["without"])
        rounding = max(ROUNDING.get(dtype, 1e-4) for dtype in (record["dtype"], _dtype(model)))
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"{file} is damaged ({error}). Copy the folder again, or delete this file to do without it."
        ) from error
    found = _logits(model)
    effect, off = float((expected - without).norm()), float((expected - found).norm())
    if not off <= max(SHARE * effect, rounding * float(expected.norm())):
        raise ConfigError(
            f"{folder}: with this adapter the model says other things than when the adapter was saved (its logits are off by "
            f"{off:.3g}, where the adapter's whole effect is {effect:.3g}). Either the model below it has changed since, or "
            "the installed versions of peft and transformers apply it otherwise. Restore both as they were, or repeat the "
            f"training; to use it nevertheless, delete {file}."
        )


def _dtype(model: Any) -> str:
    return str(next(model.get_base_model().parameters()).dtype).removeprefix("torch.")


@torch.no_grad()
def _logits(model: Any) -> Tensor:
    """[NUM_LOGITS] logits behind a fixed text, evenly spaced over the vocabulary, float32."""
    vocabulary = int(model.config.get_text_config().vocab_size)
    ids = (torch.arange(1, NUM_TOKENS + 1) * 7919) % vocabulary  # a prime: the tokens lie far apart
    ids = ids[None].to(next(model.parameters()).device)
    was_training = model.training
    model.eval()
    logits: Tensor = model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits[0, -1]
    model.train(was_training)
    return logits.float().cpu()[:: max(1, len(logits) // NUM_LOGITS)][:NUM_LOGITS]
