"""One training run from its configuration: open data and model, check, show the start-up table, train, save."""

import shutil
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from torch import nn

from mmunlearn.benchmarks.base import Benchmark
from mmunlearn.benchmarks.opening import open_benchmark
from mmunlearn.config import Goal, Lora, Modality, ModelConfig, Role, Schedule, TrainerArgs, TrainSplit, Tune, typed
from mmunlearn.config_check import build
from mmunlearn.data.batch import Encoder
from mmunlearn.data.example import examples_fingerprint
from mmunlearn.data.pairs import Order
from mmunlearn.errors import ConfigError
from mmunlearn.methods.base import Masked, Method, NeedsWholeSteps, Prepared, Relabels, Side, TrainingData, goal_of
from mmunlearn.methods.finetune import FineTune
from mmunlearn.models.device import open_accelerator, same_on_all_ranks
from mmunlearn.models.load import Loaded, load, read_card, save
from mmunlearn.models.reference import Reference
from mmunlearn.models.tuning import apply_tuning, checkpoint_activations
from mmunlearn.run import Run, fingerprint
from mmunlearn.training.checkpoint import load_checkpoint, save_checkpoint
from mmunlearn.training.engine import Replicated
from mmunlearn.training.examples import encode_all, training_data
from mmunlearn.training.folder import (
    check_folder,
    start_folder,
    store_likelihoods,
    stored_likelihoods,
    training_key,
)
from mmunlearn.training.identity import OtherReference, content_key, open_reference
from mmunlearn.training.logging import StepLog
from mmunlearn.training.loop import Plan, Training
from mmunlearn.training.masking import put_on
from mmunlearn.training.optimizer import build_optimizer
from mmunlearn.training.startup import deepspeed_notice, print_mask, print_startup
from mmunlearn.training.trackers import check_trackers, tracked_run

console = Console(stderr=True)


def open_method(section: DictConfig) -> Method:
    """The method that `trainer.method` names.

    Raises:
        ConfigError: none is named, or it does not take these values.
    """
    method: Method = build("trainer.method", section)
    return method


def role_of(config: DictConfig, method: Method) -> Role:
    """What the trained model stands for in a report."""
    if config.run.role is not None:
        return Role(config.run.role)
    if not isinstance(method, FineTune):
        return Role.unlearned
    return _ROLES[TrainSplit(config.data.split)]


_ROLES = {TrainSplit.full: Role.vanilla, TrainSplit.retain: Role.gold, TrainSplit.retain_and_text: Role.gold_text}


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What decides a training run besides model, method and data."""

    args: TrainerArgs = field(default_factory=TrainerArgs)
    tune: Tune = field(default_factory=Tune)
    lora: Lora = field(default_factory=Lora)
    seed: int = 0
    answer_only: bool = True
    retain_per_forget: int = 1
    schedule: Schedule = Schedule.joint
    device: str = "auto"


def train(config: DictConfig, *, data: TrainingData | None = None) -> Run:
    """Run a fine-tuning or unlearning job to its end.

    Args:
        config: complete and checked, see `mmunlearn.config_check.checked`.
        data: examples that are at hand already; by default those of the benchmark.

    Raises:
        UserError: with one message, before anything of an earlier run is changed.
    """
    settings = Settings(
        args=typed(config.trainer.args, TrainerArgs),
        tune=typed(config.model.tune, Tune),
        lora=typed(config.model.peft, Lora),
        seed=config.run.seed,
        answer_only=config.data.answer_only,
        retain_per_forget=config.data.retain_per_forget,
        schedule=Schedule(config.trainer.schedule),
        device=config.run.device,
    )
    check_trackers(settings.args.report_to)
    accelerator = open_accelerator(settings.device, bf16=settings.args.bf16)
    key = training_key(config)
    run = Run(Path(same_on_all_ranks(config.run.dir)))  # a folder named by the time may differ between ranks
    method = open_method(config.trainer.method)
    _check_settings(config, method)
    if accelerator.is_main_process:
        if config.run.resume and not run.config.is_file():
            console.print(f"run.resume=true, but {run.root} holds no earlier run: this one starts from the beginning.")
        check_folder(run, config, key)
        deepspeed_notice(console, settings.args.deepspeed)
    if data is None:
        benchmark = open_benchmark(config.data)
        data = job_data(config, benchmark, method)
        if accelerator.is_main_process:
            for flaw, count in benchmark.problems().items():
                console.print(f"{benchmark.name}: {flaw}: {count}", highlight=False)
    loaded = load(typed(config.model, ModelConfig))
    other = None if isinstance(method, FineTune) else open_reference(config, data)
    card = _card(config, method, data, loaded, other)
    data = relabelled(method, data, settings.seed)
    key = content_key(key, loaded, method, data, other)
    # All checks pass before a file is touched.
    training = _assemble(run, key, loaded, method, data, settings, accelerator, other)
    del other  # a method that needs more of it than likelihoods has kept it
    if accelerator.is_main_process:
        start_folder(run, config)
    accelerator.wait_for_everyone()
    _train_and_save(run, key, training, loaded.processor, card)
    return run


def aim(config: DictConfig, method: Method) -> Goal:
    """What a run is after: `run.goal`, else what its method is made for."""
    return Goal(config.run.goal or goal_of(method))


def job_data(config: DictConfig, benchmark: Benchmark, method: Method) -> TrainingData:
    """The examples that a configuration trains on, before any relabelling.

    Raises:
        DataError: see `training_data`.
    """
    modality = config.data.forget_modality or (Modality.image if aim(config, method) is Goal.visual_only else Modality.both)
    return training_data(benchmark, method, TrainSplit(config.data.split), Modality(modality))


def relabelled(method: Method, data: TrainingData, seed: int) -> TrainingData:
    """The examples with the answers that a method trains, which need not be the true ones."""
    return method.relabelled(data, seed) if isinstance(method, Relabels) else data


def _card(
    config: DictConfig, method: Method, data: TrainingData, loaded: Loaded, other: OtherReference | None
) -> dict[str, Any]:
    """What the trained model says about itself."""
    card = {"role": str(role_of(config, method)), "method": type(method).__name__, "seed": config.run.seed}
    if config.run.label:
        card["label"] = config.run.label
    if isinstance(method, FineTune):
        return card | {"data": examples_fingerprint(data.retain), "base": loaded.fingerprint}  # to be found again
    card["goal"] = str(aim(config, method))
    if base := read_card(config.model.path).get("base"):
        card["base"] = base
    if other is not None:
        card["method"] += " (uses gold)" if other.role in (Role.gold, Role.gold_text) else " (other reference)"
    return card


_NOT_FOR_FINE_TUNING = {
    "trainer.schedule": Schedule.joint,
    "trainer.reference": "",
    "run.goal": None,
    "data.forget_modality": None,
    "data.retain_per_forget": 1,
}
"""Settings that fine-tuning does not use, and the values that mean nothing was set."""


def _check_settings(config: DictConfig, method: Method) -> None:
    """Settings that this method would ignore.

    Raises:
        ConfigError: there is one.
    """
    name = type(method).__name__
    if isinstance(method, FineTune):
        for setting, empty in _NOT_FOR_FINE_TUNING.items():
            if OmegaConf.select(config, setting) != empty:
                raise ConfigError(f"{setting}: fine-tuning learns one set of examples and does not use it. Leave it out.")
        return
    if config.data.split != TrainSplit.full:
        raise ConfigError(f"data.split={config.data.split} says whom to learn; {name} trains on forget and retain.")
    sides = {term.on for term in method.terms()}
    if config.data.retain_per_forget != 1 and sides == {Side.forget}:
        raise ConfigError(f"data.retain_per_forget: {name} does not train on the retain set. Leave it out.")
    if config.trainer.schedule == Schedule.alternating:
        if sides != {Side.forget, Side.retain}:
            raise ConfigError(
                f"trainer.schedule=alternating needs terms on forget and terms on retain; those of {name} are on "
                f"{' and '.join(sorted(sides))}."
            )
        if config.data.retain_per_forget != 1:
            raise ConfigError(
                "data.retain_per_forget belongs to trainer.schedule=joint; an alternating epoch passes over both sets once."
            )


def train_model(
    run: Run,
    key: str,
    loaded: Loaded,
    method: Method,
    data: TrainingData,
    settings: Settings,
    accelerator: Accelerator,
    card: dict[str, Any] | None,
) -> nn.Module:
    """Train an open model and save it with its processor in `run.model`; goes on from a checkpoint that is there.

    Args:
        run: where metrics, checkpoints and the model go.
        key: identifies the settings; a checkpoint of others is refused.
        loaded: model and processor; the model is changed in place.
        method: what is minimised.
        data: the examples.
        settings: everything else.
        accelerator: device and ranks.
        card: what `mmunlearn.json` beside the weights says; None: nothing is saved, no checkpoint either.
    """
    check_trackers(settings.args.report_to)
    if card is None:
        settings = replace(settings, args=replace(settings.args, save_steps=0))
    data = relabelled(method, data, settings.seed)
    key = content_key(key, loaded, method, data, None)
    training = _assemble(run, key, loaded, method, data, settings, accelerator)
    return _train_and_save(run, key, training, loaded.processor, card)


def _train_and_save(run: Run, key: str, training: Training, processor: Any, card: dict[str, Any] | None) -> nn.Module:
    accelerator = training.accelerator
    if card is None:
        tracked_run(run, training)
        _prove(training)
        return training.model
    # Another number of ranks would take other items and learning rates for the same step.
    run_key, key = key, fingerprint([key, accelerator.num_processes])
    first = load_checkpoint(run.checkpoints, key=key, model=training.model, optimizer=training.optimizer)
    if accelerator.is_main_process:
        store_likelihoods(run, run_key, training.prepared.log_likelihoods)
        training.log.forget_after(first)
        if first:
            console.print(f"Going on from step {first} of {training.plan.total_steps}.")
    tracked_run(run, training, first_step=first)
    _prove(training)
    if accelerator.is_main_process:
        save(training.model, processor, run.model, card)
        console.print(f"Saved to {run.model}")
        run.finish()
        shutil.rmtree(run.checkpoints, ignore_errors=True)
    accelerator.wait_for_everyone()
    return training.model


def _prove(training: Training) -> None:
    """With scope update: nothing outside the mask has moved."""
    masking = training.masking
    if masking is not None and masking.unmoved is not None:
        masking.unmoved.check(training.model)
        if training.accelerator.is_main_process:
            console.print("Outside the mask no weight has moved by one bit.")


def _assemble(
    run: Run,
    key: str,
    loaded: Loaded,
    method: Method,
    data: TrainingData,
    settings: Settings,
    accelerator: Accelerator,
    other: OtherReference | None = None,
) -> Training:
    args, tune, ranks = settings.args, settings.tune, accelerator.num_processes
    _check_whole_steps(method, args, ranks)
    encoder = Encoder(loaded.processor, max_length=loaded.max_length, answer_only=settings.answer_only)
    tokens = {side: encode_all(encoder, getattr(data, side)) for side in ("forget", "retain")}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)  # an adapter begins with random numbers
        model = apply_tuning(loaded.model, loaded.family, tune, settings.lora).to(accelerator.device)
    if args.gradient_checkpointing:
        checkpoint_activations(model)
    masking = put_on(model, loaded.family, method, args, settings.schedule) if isinstance(method, Masked) else None
    reference = Reference(
        model=model if other is None else other.loaded.model.to(accelerator.device),
        encoder=encoder,
        batch_size=args.per_device_train_batch_size,
        device=accelerator.device,
        autocast=accelerator.autocast,
        stored=stored_likelihoods(run, key),
    )
    prepared = method.prepare(model, reference, data)
    _check_compares(method, prepared, other)
    optimizer = build_optimizer(model, loaded.family, tune, args)
    plan = _plan(settings, data, method, accelerator)
    if accelerator.is_main_process:
        print_startup(console, model, loaded.family, tune, plan, data, tokens, method)
        if masking is not None:
            print_mask(console, masking, loaded.family, loaded.fingerprint, data)

    return Training(
        model=model,
        method=method,
        prepared=prepared,
        data=data,
        encoder=encoder,
        engine=Replicated(model, loaded.family, optimizer, accelerator, masking.gradients if masking else None),
        optimizer=optimizer,
        accelerator=accelerator,
        plan=plan,
        log=StepLog(run.metrics),
        save=_saver(run, fingerprint([key, ranks]), model, optimizer, accelerator, keep=args.save_total_limit),
        masking=masking,
    )


def _saver(
    run: Run, key: str, model: nn.Module, optimizer: torch.optim.Optimizer, accelerator: Accelerator, *, keep: int
) -> Callable[[int], None]:
    """What saves a checkpoint; every rank calls it."""

    def save_state(step: int) -> None:
        if accelerator.is_main_process:
            save_checkpoint(run.checkpoints, step=step, key=key, model=model, optimizer=optimizer, keep=keep)
        accelerator.wait_for_everyone()

    return save_state


def _plan(settings: Settings, data: TrainingData, method: Method, accelerator: Accelerator) -> Plan:
    """The sequence of steps."""
    args, ranks = settings.args, accelerator.num_processes
    order = Order(
        num_forget=len(data.forget),
        num_retain=len(data.retain) if any(term.on is not Side.forget for term in method.terms()) else 0,
        step_size=args.per_device_train_batch_size * args.gradient_accumulation_steps * ranks,
        seed=settings.seed,
        retain_per_forget=settings.retain_per_forget,
        schedule=settings.schedule,
    )
    return Plan(order=order, args=args, seed=settings.seed, ranks=ranks, rank=accelerator.process_index)


def _check_whole_steps(method: Method, args: TrainerArgs, ranks: int) -> None:
    if isinstance(method, NeedsWholeSteps) and method.whole_steps and (args.gradient_accumulation_steps > 1 or ranks > 1):
        raise ConfigError(
            f"{type(method).__name__} with these settings compares the mean of a whole batch, so a step must be one batch: set "
            "trainer.args.gradient_accumulation_steps=1 and use one process."
        )


def _check_compares(method: Method, prepared: Prepared, other: OtherReference | None) -> None:
    """Another reference than the model before unlearning must be used.

    Raises:
        ConfigError: the method has kept nothing of it.
    """
    if other is not None and prepared.reference is None and not prepared.log_likelihoods:
        raise ConfigError(f"trainer.reference: {type(method).__name__} compares with no other model. Leave it out.")
