"""One training run from its configuration: open data and model, check, show the start-up table, train, save."""

import shutil
from collections.abc import Sequence
from pathlib import Path

from accelerate import Accelerator
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from tqdm import tqdm

from mmunlearn.benchmarks.base import Benchmark
from mmunlearn.benchmarks.opening import open_benchmark
from mmunlearn.config import Lora, ModelConfig, Role, TrainerArgs, TrainSplit, Tune, typed
from mmunlearn.data.batch import IGNORE, Encoder
from mmunlearn.data.example import Example
from mmunlearn.data.pairs import Order
from mmunlearn.errors import DataError, RunError
from mmunlearn.methods.base import Method, Side, TrainingData
from mmunlearn.methods.finetune import FineTune
from mmunlearn.models.device import open_accelerator
from mmunlearn.models.load import Loaded, load, save
from mmunlearn.models.tuning import apply_tuning, checkpoint_activations
from mmunlearn.run import Run, environment, fingerprint, write_json, write_text
from mmunlearn.training.checkpoint import load_checkpoint, save_checkpoint
from mmunlearn.training.engine import Replicated
from mmunlearn.training.logging import StepLog
from mmunlearn.training.loop import Plan, Training
from mmunlearn.training.optimizer import build_optimizer
from mmunlearn.training.startup import deepspeed_notice, print_startup

console = Console(stderr=True)


def open_method(section: DictConfig) -> Method:
    """The method that `trainer.method` names."""
    method: Method = instantiate(section, _convert_="all")
    return method


def training_data(benchmark: Benchmark, method: Method, split: TrainSplit) -> TrainingData:
    """The examples that a method trains on.

    Raises:
        DataError: forget and retain share a person, or a side that the method needs is empty.
    """
    splits = benchmark.splits()
    if isinstance(method, FineTune):
        return TrainingData(retain=getattr(splits, split))
    needs = {term.on for term in method.terms()}
    for side, examples in ((Side.forget, splits.forget), (Side.retain, splits.retain)):
        if not examples and needs & {side, Side.pair}:
            raise DataError(
                f"The {side} set of {benchmark.name} has no training question. Check data.root and data.forget_ratio."
            )
    shared = sorted({e.subject for e in splits.forget} & {e.subject for e in splits.retain})
    if shared:
        raise DataError(f"Forget and retain share {len(shared)} people ({', '.join(shared[:5])}). Remove them from one side.")
    return TrainingData(forget=splits.forget, retain=splits.retain)


def prepare_folder(run: Run, config: DictConfig, key: str) -> None:
    """Make the run's folder ready, or say why it cannot be used.

    Raises:
        RunError: an earlier run is in it and neither resume nor overwrite is set.
    """
    settings = config.run
    earlier = run.config.is_file()
    if earlier and settings.overwrite:
        shutil.rmtree(run.root)
    elif run.is_done:
        raise RunError(
            f"{run.root} holds a finished run. Choose another run.dir, or set run.overwrite=true to delete it and start anew."
        )
    elif earlier and not settings.resume:
        raise RunError(
            f"{run.root} holds a run that was interrupted. Go on with run.resume=true, "
            "start anew with run.overwrite=true, or choose another run.dir."
        )
    elif earlier and training_key(OmegaConf.load(run.config)) != key:  # type: ignore[arg-type]
        raise RunError(
            f"{run.root} holds an interrupted run with other settings (see its config.yaml). Repeat those settings to resume, "
            "or set run.overwrite=true to start anew."
        )
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
    return sum(
        int((encoder(example).labels != IGNORE).sum()) for example in tqdm(examples, desc="Checking examples", leave=False)
    )


def train(config: DictConfig, *, loaded: Loaded | None = None, data: TrainingData | None = None) -> Run:
    """Run a fine-tuning or unlearning job to its end.

    Args:
        config: complete and checked, see `mmunlearn.config.checked`.
        loaded: a model that is open already; by default `model.path` is opened.
        data: examples that are at hand already; by default those of the benchmark.

    Raises:
        UserError: with one message, before anything of an earlier run is changed.
    """
    run = Run(Path(config.run.dir))
    key = training_key(config)
    accelerator = open_accelerator(config.run.device, bf16=config.trainer.args.bf16)
    method = open_method(config.trainer.method)
    if data is None:
        data = training_data(open_benchmark(config.data), method, TrainSplit(config.data.split))
    if accelerator.is_main_process:
        prepare_folder(run, config, key)
    accelerator.wait_for_everyone()
    training = _assemble(config, run, key, loaded or load(typed(config.model, ModelConfig)), method, data, accelerator)
    first = load_checkpoint(run.checkpoints, key=key, model=training.model, optimizer=training.optimizer)
    training.log.forget_after(first)
    if first:
        console.print(f"Going on from step {first} of {training.plan.total_steps}.")
    training.run(first_step=first)
    if accelerator.is_main_process:
        card = {"role": str(role_of(config, method)), "method": type(method).__name__, "seed": config.run.seed}
        save(training.model, training.encoder.processor, run.model, card)
        shutil.rmtree(run.checkpoints, ignore_errors=True)
        run.finish()
    accelerator.wait_for_everyone()
    return run


def _assemble(
    config: DictConfig, run: Run, key: str, loaded: Loaded, method: Method, data: TrainingData, accelerator: Accelerator
) -> Training:
    args, tune = typed(config.trainer.args, TrainerArgs), typed(config.model.tune, Tune)
    encoder = Encoder(loaded.processor, max_length=loaded.max_length, answer_only=config.data.answer_only)
    tokens = {side: encode_all(encoder, getattr(data, side)) for side in ("forget", "retain")}
    model = apply_tuning(loaded.model, loaded.family, tune, typed(config.model.peft, Lora)).to(accelerator.device)
    if args.gradient_checkpointing:
        checkpoint_activations(model)
    prepared = method.prepare(model, model, data)
    optimizer = build_optimizer(model, loaded.family, tune, args)
    order = Order(
        num_forget=len(data.forget),
        num_retain=len(data.retain),
        step_size=args.per_device_train_batch_size * args.gradient_accumulation_steps * accelerator.num_processes,
        seed=config.run.seed,
        retain_per_forget=config.data.retain_per_forget,
    )
    plan = Plan(order=order, args=args, seed=config.run.seed, ranks=accelerator.num_processes, rank=accelerator.process_index)
    if accelerator.is_main_process:
        deepspeed_notice(console, args.deepspeed)
        print_startup(console, model, loaded.family, tune, plan, data, tokens, method)

    def save_state(step: int) -> None:
        if accelerator.is_main_process:
            save_checkpoint(run.checkpoints, step=step, key=key, model=model, optimizer=optimizer, keep=args.save_total_limit)
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
