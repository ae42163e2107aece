"""One training run from its configuration: open data and model, check, show the start-up table, train, save."""

import shutil
from collections.abc import Sequence
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
from mmunlearn.config import Lora, ModelConfig, Role, TrainerArgs, TrainSplit, Tune, typed
from mmunlearn.config_check import build
from mmunlearn.data.batch import IGNORE, Encoder
from mmunlearn.data.example import Example
from mmunlearn.data.pairs import Order
from mmunlearn.errors import ConfigError, DataError, RunError
from mmunlearn.methods.base import Method, Side, TrainingData
from mmunlearn.methods.finetune import FineTune
from mmunlearn.models.device import open_accelerator, same_on_all_ranks
from mmunlearn.models.load import Loaded, load, save
from mmunlearn.models.tuning import apply_tuning, checkpoint_activations
from mmunlearn.progress import progress
from mmunlearn.run import Run, environment, fingerprint, write_json, write_text
from mmunlearn.training.checkpoint import load_checkpoint, save_checkpoint
from mmunlearn.training.engine import Replicated
from mmunlearn.training.logging import StepLog
from mmunlearn.training.loop import Plan, Training
from mmunlearn.training.optimizer import build_optimizer
from mmunlearn.training.startup import deepspeed_notice, print_startup

console = Console(stderr=True)


def open_method(section: DictConfig) -> Method:
    """The method that `trainer.method` names.

    Raises:
        ConfigError: none is named, or it does not take these values.
    """
    method: Method = build("trainer.method", section)
    return method


def training_data(benchmark: Benchmark, method: Method, split: TrainSplit) -> TrainingData:
    """The examples that a method trains on.

    Raises:
        DataError: forget and retain share a person, or a side that the method needs is empty.
    """
    splits = benchmark.splits()
    if isinstance(method, FineTune):
        return check_data(TrainingData(retain=getattr(splits, split)), method)
    return check_data(TrainingData(forget=splits.forget, retain=splits.retain), method)


def check_data(data: TrainingData, method: Method) -> TrainingData:
    """The examples, if a method can be trained on them.

    Raises:
        DataError: forget and retain share a person, or a side that the method needs is empty.
    """
    needs = {term.on for term in method.terms()}
    for side, examples in ((Side.forget, data.forget), (Side.retain, data.retain)):
        if not examples and needs & {side, Side.pair}:
            raise DataError(
                f"{type(method).__name__} needs {side} questions, but there are none. Check data.root, data.train_root, "
                "data.forget_ratio and data.modality."
            )
    shared = sorted({e.subject for e in data.forget} & {e.subject for e in data.retain} - {""})
    if shared:
        raise DataError(f"Forget and retain share {len(shared)} people ({', '.join(shared[:5])}). Remove them from one side.")
    return data


def check_folder(run: Run, config: DictConfig, key: str) -> None:
    """Say why a run's folder cannot be used; nothing is changed yet.

    Raises:
        RunError: an earlier run is in it and neither resume nor overwrite is set, or overwriting would delete other things.
    """
    settings = config.run
    if settings.overwrite:
        run.check_clearable()
        if config.model.path and Path(config.model.path).resolve().is_relative_to(run.root.resolve()):
            raise RunError(f"run.overwrite=true would delete model.path={config.model.path}. Choose another run.dir.")
    if not run.config.is_file() or settings.overwrite:
        return
    if run.is_done:
        raise RunError(
            f"{run.root} holds a finished run. Choose another run.dir, or set run.overwrite=true to delete it and start anew."
        )
    if not settings.resume:
        raise RunError(
            f"{run.root} holds a run that was interrupted. Go on with run.resume=true, "
            "start anew with run.overwrite=true, or choose another run.dir."
        )
    earlier = OmegaConf.load(run.config)
    if not isinstance(earlier, DictConfig) or training_key(earlier) != key:
        raise RunError(
            f"{run.root} holds an interrupted run with other settings (see its config.yaml). Repeat those settings to resume, "
            "or set run.overwrite=true to start anew."
        )


def start_folder(run: Run, config: DictConfig) -> None:
    """Delete what is to be overwritten and record settings and environment."""
    if config.run.overwrite:
        run.clear()
    write_text(run.config, OmegaConf.to_yaml(config))
    write_json(run.environment, environment())


def training_key(config: DictConfig) -> str:
    """Identifies the settings that decide the weights."""
    chosen = OmegaConf.to_container(OmegaConf.masked_copy(config, ["model", "data", "trainer"]), resolve=True)
    return fingerprint([chosen, config.run.seed])


def role_of(config: DictConfig, method: Method) -> Role:
    """What the trained model stands for in a report."""
    if config.run.role is not None:
        return Role(config.run.role)
    if not isinstance(method, FineTune):
        return Role.unlearned
    return Role.gold if config.data.split == TrainSplit.retain else Role.vanilla


def encode_all(encoder: Encoder, examples: Sequence[Example]) -> int:
    """Encode every example once, so that a broken one is found before training; fills the encoder's memory.

    Returns:
        The number of supervised tokens.
    """
    bar = progress(examples, desc="checking examples", unit="example", disable=not examples)
    return sum(int((encoder(example).labels != IGNORE).sum()) for example in bar)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What decides a training run besides model, method and data."""

    args: TrainerArgs = field(default_factory=TrainerArgs)
    tune: Tune = field(default_factory=Tune)
    lora: Lora = field(default_factory=Lora)
    seed: int = 0
    answer_only: bool = True
    retain_per_forget: int = 1
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
        device=config.run.device,
    )
    accelerator = open_accelerator(settings.device, bf16=settings.args.bf16)
    key = training_key(config)
    run = Run(Path(same_on_all_ranks(config.run.dir)))  # a folder named by the time may differ between ranks
    method = open_method(config.trainer.method)
    if not isinstance(method, FineTune) and config.data.split != TrainSplit.full:
        raise ConfigError(
            f"data.split={config.data.split} says whom to learn; {type(method).__name__} trains on forget and retain."
        )
    if accelerator.is_main_process:
        if config.run.resume and not run.config.is_file():
            console.print(f"run.resume=true, but {run.root} holds no earlier run: this one starts from the beginning.")
        check_folder(run, config, key)
        deepspeed_notice(console, settings.args.deepspeed)
    if data is None:
        benchmark = open_benchmark(config.data)
        data = training_data(benchmark, method, TrainSplit(config.data.split))
        if accelerator.is_main_process:
            for flaw, count in benchmark.problems().items():
                console.print(f"{benchmark.name}: {flaw}: {count}", highlight=False)
    loaded = load(typed(config.model, ModelConfig))
    training = _assemble(run, key, loaded, method, data, settings, accelerator)  # all checks pass before a file is touched
    if accelerator.is_main_process:
        start_folder(run, config)
    accelerator.wait_for_everyone()
    card = {"role": str(role_of(config, method)), "method": type(method).__name__, "seed": config.run.seed}
    _train_and_save(run, key, training, loaded.processor, card)
    return run


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
    if card is None:
        settings = replace(settings, args=replace(settings.args, save_steps=0))
    training = _assemble(run, key, loaded, method, data, settings, accelerator)
    return _train_and_save(run, key, training, loaded.processor, card)


def _train_and_save(run: Run, key: str, training: Training, processor: Any, card: dict[str, Any] | None) -> nn.Module:
    accelerator = training.accelerator
    if card is None:
        training.run()
        return training.model
    # Another number of ranks would take other items and learning rates for the same step.
    key = fingerprint([key, accelerator.num_processes])
    first = load_checkpoint(run.checkpoints, key=key, model=training.model, optimizer=training.optimizer)
    if accelerator.is_main_process:
        training.log.forget_after(first)
        if first:
            console.print(f"Going on from step {first} of {training.plan.total_steps}.")
    training.run(first_step=first)
    if accelerator.is_main_process:
        save(training.model, processor, run.model, card)
        console.print(f"Saved to {run.model}")
        run.finish()
        shutil.rmtree(run.checkpoints, ignore_errors=True)
    accelerator.wait_for_everyone()
    return training.model


def _assemble(
    run: Run,
    key: str,
    loaded: Loaded,
    method: Method,
    data: TrainingData,
    settings: Settings,
    accelerator: Accelerator,
) -> Training:
    args, tune, ranks = settings.args, settings.tune, accelerator.num_processes
    encoder = Encoder(loaded.processor, max_length=loaded.max_length, answer_only=settings.answer_only)
    tokens = {side: encode_all(encoder, getattr(data, side)) for side in ("forget", "retain")}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)  # an adapter begins with random numbers
        model = apply_tuning(loaded.model, loaded.family, tune, settings.lora).to(accelerator.device)
    if args.gradient_checkpointing:
        checkpoint_activations(model)
    uses_retain = any(term.on is not Side.forget for term in method.terms())
    prepared = method.prepare(model, model, data)
    optimizer = build_optimizer(model, loaded.family, tune, args)
    order = Order(
        num_forget=len(data.forget),
        num_retain=len(data.retain) if uses_retain else 0,
        step_size=args.per_device_train_batch_size * args.gradient_accumulation_steps * ranks,
        seed=settings.seed,
        retain_per_forget=settings.retain_per_forget,
    )
    plan = Plan(order=order, args=args, seed=settings.seed, ranks=ranks, rank=accelerator.process_index)
    if accelerator.is_main_process:
        print_startup(console, model, loaded.family, tune, plan, data, tokens, method)

    def save_state(step: int) -> None:
        if accelerator.is_main_process:
            save_checkpoint(
                run.checkpoints,
                step=step,
                key=fingerprint([key, ranks]),
                model=model,
                optimizer=optimizer,
                keep=args.save_total_limit,
            )
        accelerator.wait_for_everyone()

    return Training(
        model=model,
        method=method,
        prepared=prepared,
        data=data,
        encoder=encoder,
        engine=Replicated(model, loaded.family, optimizer, accelerator),
        optimizer=optimizer,
        accelerator=accelerator,
        plan=plan,
        log=StepLog(run.metrics),
        save=save_state,
    )
