"""mmunlearn from Python: the same training and evaluation, on a model that is open already."""

import tempfile
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from mmunlearn.benchmarks.base import EVALUATION_SPLITS, Asking, Benchmark
from mmunlearn.config_enums import Choice, Protocol, Role, Shots
from mmunlearn.data.batch import Encoder
from mmunlearn.data.example import Example
from mmunlearn.data.rendering import date_written
from mmunlearn.errors import ConfigError, RunError
from mmunlearn.evaluation.asker import Asker
from mmunlearn.evaluation.predict import Asked, check_family, predict_all
from mmunlearn.evaluation.requests import check_choice, chosen_tasks
from mmunlearn.evaluation.score import score
from mmunlearn.locks import locked
from mmunlearn.methods.base import Method, TrainingData, goal_of
from mmunlearn.models.continuation import decoding_of
from mmunlearn.models.device import open_accelerator, pick_device
from mmunlearn.models.families import Family
from mmunlearn.models.generic import recognise
from mmunlearn.models.load import Loaded, model_fingerprint, processor_fingerprint
from mmunlearn.models.prefix import can_share
from mmunlearn.run import Run, fingerprint, write_json
from mmunlearn.training.examples import check_data
from mmunlearn.training.job import Settings, train_model


@dataclass(frozen=True, kw_only=True)
class EvaluationSettings:
    """How a model is asked from Python."""

    splits: Sequence[str] = EVALUATION_SPLITS
    """The groups of people to ask about."""
    batch_size: int = 16
    """Changes speed only."""
    choice: Choice = Choice.letter
    """Which choice score is reported as `accuracy`."""
    protocol: Protocol = Protocol.fixed
    """Whose evaluation rules."""
    shots: Shots = Shots.zero_shot
    """few_shot: show solved questions about other people first (MLLMU-Bench)."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""


def unlearn(
    model: nn.Module,
    processor: Any,
    *,
    forget: Sequence[Example],
    retain: Sequence[Example] = (),
    method: Method,
    settings: Settings | None = None,
    output: str | Path | None = None,
) -> nn.Module:
    """Make a model forget.

    Args:
        model: a transformers vision-language model; changed in place.
        processor: its processor.
        forget: questions about the people to be forgotten, with the answers that are to be lost.
        retain: questions about others; watched, and trained on by methods that have a retain term.
        method: for instance `GradDiff(retain_weight=2.0)`.
        settings: learning rate, batch size, tuned parts, …; default `Settings()`.
        output: a new folder for metrics and the saved model; without it nothing is kept on disk.

    Returns:
        The model; with LoRA, the model with its adapter around it.

    Raises:
        UserError: with a message that says what to mend.

    Warns:
        UserWarning: what is to be known of the model's family, for instance that it is not in the table of families.
    """
    if output is not None and Run(Path(output)).model.exists():
        raise RunError(f"{output} holds a model already. Choose another output, or delete the folder.")
    settings = settings or Settings()
    data = check_data(TrainingData(forget=tuple(forget), retain=tuple(retain)), method)
    loaded = Loaded(model, processor, _recognised(model))
    accelerator = open_accelerator(settings.device, bf16=settings.args.bf16)
    card = {"role": "unlearned", "method": type(method).__name__, "seed": settings.seed, "goal": str(goal_of(method))}
    with _folder(output) as folder, locked(Run(folder)):
        key = fingerprint([repr(method), repr(settings)])
        return train_model(Run(folder), key, loaded, method, data, settings, accelerator, None if output is None else card)


def evaluate(
    model: nn.Module,
    processor: Any,
    benchmark: Benchmark,
    *,
    settings: EvaluationSettings | None = None,
    role: Role = Role.unlearned,
    method: str = "unknown",
    output: str | Path | None = None,
) -> dict[str, Any]:
    """Ask a model the questions of a benchmark and score the answers.

    Args:
        model: a transformers vision-language model.
        processor: its processor.
        benchmark: for instance `MLLMUBench(root="data/MLLMU-Bench")` or `People()`.
        settings: groups of people, batch size, …; default `EvaluationSettings()`.
        role: what the model stands for in a report.
        method: how results call what was done to it.
        output: a folder for predictions and scores; without it only the result is kept.

    Returns:
        What `results.json` of an evaluation holds: tasks, metrics, intervals, counts.

    Raises:
        UserError: with a message that says what to mend.

    Warns:
        UserWarning: as `unlearn` does.
    """
    settings = settings or EvaluationSettings()
    chosen = pick_device(settings.device)
    loaded = Loaded(model.to(chosen).eval(), processor, _recognised(model))
    encoder = Encoder(processor, max_length=loaded.max_length, cache_bytes=0)
    asker = Asker(
        model=loaded.model,
        encoder=encoder,
        batch_size=settings.batch_size,
        device=chosen,
        shares_prefix=can_share(loaded.family, model.config),
    )
    asking = Asking(protocol=settings.protocol, shots=settings.shots)
    if asking.protocol is Protocol.both or asking.shots is Shots.both:
        raise ConfigError("protocol and shots: evaluate answers in one way at a time. Call it once for each.")
    check_choice(asking, settings.choice)
    tasks = chosen_tasks(benchmark, settings.splits, limit=0, asking=asking)
    check_family(tasks, loaded.family.model_type)
    name = model_fingerprint(model)
    with _folder(output) as folder, locked(Run(folder)):
        run = Run(folder)
        write_json(run.model_card, {"fingerprint": name, "role": str(role), "method": method, "seed": 0})
        how = {
            "protocol": str(asking.protocol),
            "decoding": decoding_of(model),
            "dtype": str(next(model.parameters()).dtype).removeprefix("torch."),
            "processor": processor_fingerprint(processor),
            **({"date": date} if (date := date_written(processor)) else {}),
        }
        predict_all(asker, [Asked(task=task, run=run, model=name, settings=how) for task in tasks])
        return score(run, benchmark, tasks, asking=asking, choice=settings.choice)


def _recognised(model: nn.Module) -> Family:
    """The model's family; what is to be known of it, as that its parts were worked out from names, is a warning.

    Raises:
        ConfigError: its parts cannot be told apart.
    """
    family = recognise(model)
    for note in family.notes:
        warnings.warn(note, stacklevel=3)
    return family


@contextmanager
def _folder(output: str | Path | None) -> Iterator[Path]:
    if output is not None:
        yield Path(output)
        return
    with tempfile.TemporaryDirectory(prefix="mmunlearn-") as temporary:
        yield Path(temporary)
