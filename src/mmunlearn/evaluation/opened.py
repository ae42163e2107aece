"""A model opened to be asked, and what identifies it and its answers."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from omegaconf import DictConfig

from mmunlearn.config import ModelConfig, typed
from mmunlearn.config_enums import Quantise
from mmunlearn.data.batch import Encoder
from mmunlearn.data.rendering import date_written
from mmunlearn.evaluation.asker import Asker
from mmunlearn.evaluation.predict import Asked
from mmunlearn.evaluation.ways import Way
from mmunlearn.models.continuation import decoding_of
from mmunlearn.models.load import load, model_fingerprint, processor_fingerprint, read_card
from mmunlearn.models.prefix import can_share
from mmunlearn.models.quantise import quantisation_of, rounding_below


@dataclass(frozen=True, kw_only=True)
class Identity:
    """What several processes that opened the same model agree on."""

    fingerprint: str
    model_type: str
    settings: dict[str, Any]
    """What decides the answers besides model and question."""


@dataclass(frozen=True, kw_only=True)
class Opened:
    """A model that can be asked."""

    asker: Asker
    identity: Identity


def open_asker(config: DictConfig, device: torch.device) -> Opened:
    """Open the model of a configuration.

    Raises:
        ConfigError: there is none, or it cannot be opened.
    """
    loaded = load(typed(config.model, ModelConfig), merge=False)
    settings = {
        "decoding": decoding_of(loaded.model),
        "dtype": str(next(loaded.model.parameters()).dtype).removeprefix("torch."),
        "attention": config.model.attention,
        "processor": processor_fingerprint(loaded.processor),
        **({"date": date} if (date := date_written(loaded.processor)) else {}),
    }
    below, _ = rounding_below(read_card(config.model.path))  # its numbers are those of 4 bits also where float32 is asked for
    if quantised := quantisation_of(loaded.model) or ("" if below is Quantise.none else str(below)):
        settings["quantised"] = quantised
    identity = Identity(fingerprint=model_fingerprint(loaded.model), model_type=loaded.family.model_type, settings=settings)
    asker = Asker(
        model=loaded.model.to(device).eval(),
        encoder=Encoder(loaded.processor, max_length=loaded.max_length, cache_bytes=0),
        batch_size=config.evaluation.batch_size,
        device=device,
        shares_prefix=can_share(loaded.family, loaded.model.config),
    )
    return Opened(asker=asker, identity=identity)


def asked_of(ways: Sequence[Way], identity: Identity) -> list[Asked]:
    """Every task of every way, as it is put to a model."""
    return [
        Asked(
            task=task,
            run=way.run,
            model=identity.fingerprint,
            settings={"protocol": str(way.asking.protocol), **identity.settings},
        )
        for way in ways
        for task in way.tasks
    ]
