"""One training run from its configuration: open data and model, check, show the start-up table, train, save."""

import shutil
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from omegaconf import DictConfig
from rich.console import Console
from torch import nn

from mmunlearn.benchmarks.base import Benchmark
from mmunlearn.benchmarks.opening import open_benchmark
from mmunlearn.config import Lora, ModelConfig, TrainerArgs, Tune, typed
from mmunlearn.config_check import build
from mmunlearn.config_enums import Goal, Modality, Role, Schedule, TrainSplit
from mmunlearn.data.batch import Encoder
from mmunlearn.data.example import examples_fingerprint
from mmunlearn.data.grouping import groups_by_picture
from mmunlearn.data.pairs import Order
from mmunlearn.data.subjects import subjects_record
from mmunlearn.errors import ConfigError
from mmunlearn.locks import locked
from mmunlearn.methods.base import Masked, Method, Relabels, Side, TrainingData, divisible, goal_of
from mmunlearn.methods.finetune import FineTune
from mmunlearn.models.checkpointing import checkpoint_activations
from mmunlearn.models.device import explain_full_memory, open_accelerator, same_on_all_ranks
from mmunlearn.models.load import Loaded, load, read_card, save
from mmunlearn.models.reference import Reference
from mmunlearn.models.tuning import apply_tuning
from mmunlearn.run import Run, fingerprint, write_json
from mmunlearn.training.checkpoint import load_checkpoint, save_checkpoint
from mmunlearn.training.checks import check_compares, check_settings, check_whole_steps
from mmunlearn.training.determinism import determinism
from mmunlearn.training.dummies import evening
from mmunlearn.training.engine import Engine
from mmunlearn.training.engines import (
    Kind,
    check_engine,
    check_launcher,
    deepspeed_notice,
    freezer,
    kind_of,
    open_engine,
    spread,
)
from mmunlearn.training.examples import encode_all, training_data
from mmunlearn.training.features import as_it_is, features_of, for_training
from mmunlearn.training.folder import (
    check_folder,
    chosen_folder,
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
from mmunlearn.training.packing import packer_for
from mmunlearn.training.startup import print_mask, print_startup
from mmunlearn.training.stopping import listening
from mmunlearn.training.trackers import check_trackers, tracked_run

console = Console(stderr=True)
LESS_MEMORY = (
    "What needs less: trainer.args.gradient_checkpointing=selective, or =true for less still and more time (with ZeRO-3 =true "
    "alone); a smaller trainer.args.per_device_train_batch_size with as many more gradient_accumulation_steps, for the same "
    "gradient; adapters (model.tune.language.mode=lora) in place of full tuning; model.dtype=bfloat16; model.quantise=nf4; "
    "several GPUs (docs/scaling.md). With run.resume=true it goes on from its last checkpoint, if it has one."
)


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
    check_launcher(settings.args)
    with determinism(settings.args.full_determinism), explain_full_memory(LESS_MEMORY):
        accelerator = open_accelerator(settings.device, bf16=settings.args.bf16)
        key = training_key(config)
        config.run.dir = same_on_all_ranks(str(chosen_folder(config, key)))  # one named by the time may differ between ranks
        run = Run(Path(config.run.dir))
        with locked(run, main=accelerator.is_main_process):
            return _train_in(run, key, config, settings, accelerator, data)


def _train_in(
    run: Run, key: str, config: DictConfig, settings: Settings, accelerator: Accelerator, data: TrainingData | None
) -> Run:
    """The run in a folder that is its own."""
    kind = kind_of(settings.args)
    method = open_method(config.trainer.method)
    check_settings(config, method)
    check_engine(kind, settings.args, method, accelerator)
    if accelerator.is_main_process:
        if config.run.resume and not run.config.is_file():
            console.print(
                f"run.resume={config.run.resume}, but {run.root} holds no earlier run: this one starts from the beginning."
            )
        check_folder(run, config, key)
        deepspeed_notice(console, settings.args)
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
    if (kind := kind_of(settings.args)) is not Kind.replicated:
        raise ConfigError(f"settings.args.{kind}: an open model is trained replicated. Use `mmunlearn unlearn` to shard it.")
    if card is None:
        settings = replace(settings, args=replace(settings.args, save_steps=0))
    data = relabelled(method, data, settings.seed)
    key = content_key(key, loaded, method, data, None)
    with determinism(settings.args.full_determinism), explain_full_memory(LESS_MEMORY):
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
    first = load_checkpoint(
        run.checkpoints, key=key, model=training.engine.model, optimizer=training.optimizer, ranks=training.engine.ranks
    )
    if accelerator.is_main_process:
        store_likelihoods(run, run_key, training.prepared.log_likelihoods)
        learned = training.data.retain if training.plan.order.num_retain else ()
        write_json(run.subjects, subjects_record(learned=learned, forgot=training.data.forget))
        training.log.forget_after(first)
        if first:
            console.print(f"Going on from step {first} of {training.plan.total_steps}.")
    with listening() as request:
        done = tracked_run(run, replace(training, asked_to_stop=request), first_step=first)
    if done < training.plan.total_steps and accelerator.is_main_process:
        bound = training.plan.args.stop_forget_loss
        console.print(f"Ended after step {done} of {training.plan.total_steps}: the forget loss is above {bound:g}.")
    _prove(training)
    gathered = training.engine.gathered()
    if accelerator.is_main_process:
        save(training.engine.model, processor, run.model, card, gathered=gathered)
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
    args, kind = settings.args, kind_of(settings.args)
    check_whole_steps(method, args, accelerator.num_processes)
    encoder = Encoder(loaded.processor, max_length=loaded.max_length, answer_only=settings.answer_only)
    tokens = {side: encode_all(encoder, getattr(data, side)) for side in ("forget", "retain")}
    model = _tuned(loaded, settings)
    plan = _plan(settings, data, method, accelerator, sharded=kind is not Kind.replicated)
    if accelerator.is_main_process:
        print_startup(console, model, loaded.family, settings.tune, plan, data, tokens, method)
    model = spread(kind, model, accelerator)
    sharded = kind is not Kind.replicated
    features, line = features_of(model, loaded.family, data, encoder, args, accelerator.device, sharded=sharded)
    masking = put_on(model, loaded.family, method, args, settings.schedule) if isinstance(method, Masked) else None
    if masking is not None and accelerator.is_main_process:
        print_mask(console, masking, loaded.family, loaded.fingerprint, data)
    optimizer = build_optimizer(model, loaded.family, settings.tune, args)
    mask = masking.gradients if masking else None
    engine = open_engine(kind, model, loaded.family, optimizer, accelerator, args, mask)
    reference = Reference(
        model=model if other is None else spread(kind, other.loaded.model, accelerator),
        encoder=encoder,
        batch_size=args.per_device_train_batch_size,
        device=accelerator.device,
        autocast=accelerator.autocast,
        stored=stored_likelihoods(run, key),
        prepare_batch=features if other is None else as_it_is,
        freeze=freezer(kind, args),
    )
    prepared = method.prepare(model, reference, data)
    check_compares(method, prepared, other)
    features, line = for_training(features, line, prepared, other_reference=other is not None)
    compares = other is not None and prepared.reference is not None
    packer, reading = packer_for(model, loaded.family, encoder, divides=plan.by_modality, other_reference=compares)
    if accelerator.is_main_process:
        console.print(f"{line}\n{reading}", highlight=False)
    return Training(
        model=engine.asked,
        method=method,
        prepared=prepared,
        data=data,
        encoder=encoder,
        engine=engine,
        optimizer=engine.optimizer,
        accelerator=accelerator,
        plan=replace(plan, packer=packer),
        log=StepLog(run.metrics),
        save=_saver(run, fingerprint([key, plan.ranks]), engine, accelerator, keep=args.save_total_limit),
        masking=masking,
        prepare_batch=features,
        even=list if engine.ranks is None else evening(data, encoder, accelerator, always=kind is Kind.deepspeed),
    )


def _tuned(loaded: Loaded, settings: Settings) -> nn.Module:
    """The model with its parts frozen, adapted or free."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)  # an adapter begins with random numbers
        model = apply_tuning(loaded.model, loaded.family, settings.tune, settings.lora)
    recompute = settings.args.gradient_checkpointing
    if recompute not in (True, False, "selective"):
        raise ConfigError(f"trainer.args.gradient_checkpointing={recompute!r}: must be true, false or selective.")
    if recompute:
        checkpoint_activations(model, selective=recompute == "selective")
    return model


def _saver(run: Run, key: str, engine: Engine, accelerator: Accelerator, *, keep: int) -> Callable[[int], None]:
    """What saves a checkpoint; every rank calls it."""
    model, optimizer, ranks = engine.model, engine.optimizer, engine.ranks

    def save_state(step: int) -> None:
        if ranks is not None or accelerator.is_main_process:
            save_checkpoint(run.checkpoints, step=step, key=key, model=model, optimizer=optimizer, keep=keep, ranks=ranks)
        accelerator.wait_for_everyone()

    return save_state


def _plan(settings: Settings, data: TrainingData, method: Method, accelerator: Accelerator, *, sharded: bool) -> Plan:
    """The sequence of steps; ranks that share weights make equally many forward passes."""
    args, ranks = settings.args, accelerator.num_processes
    grouped = args.group_by_picture
    order = Order(
        num_forget=len(data.forget),
        num_retain=len(data.retain) if any(term.on is not Side.forget for term in method.terms()) else 0,
        step_size=args.per_device_train_batch_size * args.gradient_accumulation_steps * ranks,
        seed=settings.seed,
        retain_per_forget=settings.retain_per_forget,
        schedule=settings.schedule,
        forget_groups=groups_by_picture(data.forget) if grouped else (),
        retain_groups=groups_by_picture(data.retain) if grouped else (),
        micro_batch=args.per_device_train_batch_size if grouped else 0,
    )
    rank, apart = accelerator.process_index, divisible(method) and not sharded
    return Plan(order=order, args=args, seed=settings.seed, ranks=ranks, rank=rank, by_modality=apart)
