"""What a run is made from besides its settings: the reference model, and everything by content instead of by path."""

from dataclasses import dataclass, replace
from pathlib import Path

from omegaconf import DictConfig
from rich.console import Console

from mmunlearn.config import ModelConfig, typed
from mmunlearn.config_enums import Role
from mmunlearn.data.example import examples_fingerprint
from mmunlearn.errors import ConfigError
from mmunlearn.methods.base import Masked, Method, TrainingData
from mmunlearn.models.library import find_model
from mmunlearn.models.load import Loaded, folders_below, load, processor_fingerprint, read_card
from mmunlearn.models.saliency_mask import load_mask, mask_fingerprint
from mmunlearn.run import Run, fingerprint
from mmunlearn.training.folder import check_outside

console = Console(stderr=True)


@dataclass(frozen=True, kw_only=True)
class OtherReference:
    """A model that is compared with instead of the model before unlearning."""

    loaded: Loaded
    role: str | None


def open_reference(config: DictConfig, data: TrainingData) -> OtherReference | None:
    """The model that `trainer.reference` names; None: the model before unlearning.

    Raises:
        ConfigError: there is no such model, or no gold model of these examples.
    """
    path = str(config.trainer.reference)
    if not path:
        return None
    if path in set(Role) - {Role.gold}:
        raise ConfigError(f"trainer.reference={path}: only gold is found by its role. Name the folder of the model instead.")
    if path == Role.gold:
        around = [Path(config.run.dir).parent, Path(config.model.path).parent.parent]
        base = read_card(config.model.path).get("base")
        path = str(find_model(Role.gold, data=examples_fingerprint(data.retain), base=base, beside=around))
        console.print(f"trainer.reference=gold: found {path}", highlight=False, soft_wrap=True)
        if config.run.overwrite:
            for below in folders_below(path):
                check_outside(Run(Path(config.run.dir)), "trainer.reference", below)
    loaded = load(replace(typed(config.model, ModelConfig), path=path, name=""))
    loaded.model.requires_grad_(False)  # else `Reference.kept` would take it for the model in training and copy it
    return OtherReference(loaded=loaded, role=read_card(path).get("role"))


def content_key(key: str, loaded: Loaded, method: Method, data: TrainingData, other: OtherReference | None) -> str:
    """Identifies what decides the weights by content: a path may lead to another model, mask or table tomorrow.

    Args:
        key: identifies the settings.
        loaded: the model before training, and the processor that writes its prompts.
        method: its mask is read.
        data: the examples as they are trained.
        other: the reference, if it is not the model before training.
    """
    content = [loaded.fingerprint, processor_fingerprint(loaded.processor)]
    content += [examples_fingerprint(data.forget), examples_fingerprint(data.retain)]
    if isinstance(method, Masked) and method.mask:
        content.append(mask_fingerprint(load_mask(method.mask)))
    if other is not None:
        content.append(other.loaded.fingerprint)
    return fingerprint([key, *content])
