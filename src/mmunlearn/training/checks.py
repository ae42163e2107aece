"""What a training job refuses because a setting would be ignored or change its meaning."""

from omegaconf import DictConfig, OmegaConf

from mmunlearn.config import TrainerArgs, typed
from mmunlearn.config_enums import Quantise, Schedule, TrainSplit
from mmunlearn.errors import ConfigError
from mmunlearn.methods.base import Method, NeedsWholeSteps, Prepared, Relabels, Side
from mmunlearn.methods.finetune import FineTune
from mmunlearn.training.engines import OFF, Kind, kind_of
from mmunlearn.training.identity import OtherReference

_NOT_FOR_FINE_TUNING = {
    "trainer.schedule": Schedule.joint,
    "trainer.reference": "",
    "run.goal": None,
    "data.forget_modality": None,
    "data.retain_per_forget": 1,
    "trainer.args.stop_forget_loss": 0.0,
}
"""Settings that fine-tuning does not use, and the values that mean nothing was set."""


def check_settings(config: DictConfig, method: Method) -> None:
    """Settings that this method would ignore.

    Raises:
        ConfigError: there is one.
    """
    name = type(method).__name__
    if config.model.quantise == Quantise.nf4:
        _check_four_bits(typed(config.trainer.args, TrainerArgs))
    if isinstance(method, FineTune):
        for setting, empty in _NOT_FOR_FINE_TUNING.items():
            if OmegaConf.select(config, setting) != empty:
                raise ConfigError(f"{setting}: fine-tuning learns one set of examples and does not use it. Leave it out.")
        return
    if config.data.split != TrainSplit.full:
        raise ConfigError(f"data.split={config.data.split} says whom to learn; {name} trains on forget and retain.")
    if config.trainer.args.stop_forget_loss and isinstance(method, Relabels):
        raise ConfigError(
            f"trainer.args.stop_forget_loss: {name} learns other answers to the forget questions, so its forget loss falls. "
            "Leave it out."
        )
    sides = {term.on for term in method.terms()}
    if config.data.retain_per_forget != 1 and sides == {Side.forget}:
        raise ConfigError(f"data.retain_per_forget: {name} does not train on the retain set. Leave it out.")
    if config.trainer.schedule == Schedule.alternating:
        _check_alternating(config, name, sides)


def _check_four_bits(args: TrainerArgs) -> None:
    """Weights in 4 bits train replicated only; a DeepSpeed file that is not used on this machine is no obstacle."""
    kind = kind_of(args)
    if kind is Kind.fsdp:
        raise ConfigError("model.quantise=nf4: weights in 4 bits are not sharded. Leave out trainer.args.fsdp.")
    if kind is Kind.deepspeed:
        raise ConfigError(
            f"model.quantise=nf4 with trainer.args.deepspeed={args.deepspeed}: DeepSpeed takes over weights in floating point, "
            "which ZeRO-3 also divides among the ranks; bitsandbytes packs two weights into a byte and keeps their steps "
            f"beside them, and a share of that is no weight. Set {OFF[kind]}: the model is then replicated."
        )


def _check_alternating(config: DictConfig, name: str, sides: set[Side]) -> None:
    if sides != {Side.forget, Side.retain}:
        raise ConfigError(
            f"trainer.schedule=alternating needs terms on forget and terms on retain; those of {name} are on "
            f"{' and '.join(sorted(sides))}."
        )
    if config.data.retain_per_forget != 1:
        raise ConfigError(
            "data.retain_per_forget belongs to trainer.schedule=joint; an alternating epoch passes over both sets once."
        )


def check_whole_steps(method: Method, args: TrainerArgs, ranks: int) -> None:
    """Make sure that a step is not split where its parts would mean something else.

    Raises:
        ConfigError: it would be.
    """
    if isinstance(method, NeedsWholeSteps) and method.whole_steps and (args.gradient_accumulation_steps > 1 or ranks > 1):
        raise ConfigError(
            f"{type(method).__name__} with these settings compares the mean of a whole batch, so a step must be one batch: set "
            "trainer.args.gradient_accumulation_steps=1 and use one process."
        )


def check_compares(method: Method, prepared: Prepared, other: OtherReference | None) -> None:
    """Another reference than the model before unlearning must be used.

    Raises:
        ConfigError: the method has kept nothing of it.
    """
    if other is not None and prepared.reference is None and not prepared.log_likelihoods:
        raise ConfigError(f"trainer.reference: {type(method).__name__} compares with no other model. Leave it out.")
