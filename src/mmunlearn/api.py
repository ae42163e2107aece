"""mmunlearn from Python: the same training and evaluation, on a model that is open already."""

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import nn

from mmunlearn.benchmarks.base import EVALUATION_SPLITS, Benchmark
from mmunlearn.config import Choice, Protocol
from mmunlearn.data.batch import Encoder
from mmunlearn.data.example import Example
from mmunlearn.evaluation.predict import Asker, predict_task
from mmunlearn.evaluation.requests import chosen_tasks
from mmunlearn.evaluation.score import score
from mmunlearn.methods.base import Method, TrainingData
from mmunlearn.models.device import open_accelerator, pick_device
from mmunlearn.models.families import family_of
from mmunlearn.models.load import Loaded, model_fingerprint
from mmunlearn.run import Run, fingerprint, write_json
from mmunlearn.training.job import Settings, check_data, train_model


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
    """
    settings = settings or Settings()
    data = check_data(TrainingData(forget=tuple(forget), retain=tuple(retain)), method)
    loaded = Loaded(model, processor, family_of(model.config))
    accelerator = open_accelerator(settings.device, bf16=settings.args.bf16)
    card = {"role": "unlearned", "method": type(method).__name__, "seed": settings.seed}
    with _folder(output) as folder:
        key = fingerprint([repr(method), repr(settings), [example.id for example in (*forget, *retain)]])
        return train_model(Run(folder), key, loaded, method, data, settings, accelerator, card)


def evaluate(
    model: nn.Module,
    processor: Any,
    benchmark: Benchmark,
    *,
    splits: Sequence[str] = EVALUATION_SPLITS,
    batch_size: int = 16,
    choice: Choice = Choice.letter,
    device: str = "auto",
    output: str | Path | None = None,
) -> dict[str, Any]:
    """Ask a model the questions of a benchmark and score the answers.

    Args:
        model: a transformers vision-language model.
        processor: its processor.
        benchmark: for instance `MLLMUBench(root="data/MLLMU-Bench")` or `People()`.
        splits: the groups of people to ask about.
        batch_size: changes speed only.
        choice: which choice score is reported as `accuracy`.
        device: auto, cpu, cuda or cuda:N.
        output: a folder for predictions and scores; without it only the result is kept.

    Returns:
        What `results.json` of an evaluation holds: tasks, metrics, intervals, counts.
    """
    chosen = pick_device(device)
    loaded = Loaded(model.to(chosen).eval(), processor, family_of(model.config))
    encoder = Encoder(processor, max_length=loaded.max_length, cache_bytes=0)
    asker = Asker(model=loaded.model, encoder=encoder, batch_size=batch_size, device=chosen)
    tasks = chosen_tasks(benchmark, splits, limit=0)
    name = model_fingerprint(model)
    with _folder(output) as folder:
        run = Run(folder)
        write_json(run.model_card, {"fingerprint": name, "role": "unlearned", "method": "unknown", "seed": 0})
        for task in tasks:
            predict_task(asker, task, run, model=name, settings={"protocol": str(Protocol.fixed), "decoding": "greedy"})
        return score(run, benchmark, tasks, protocol=str(Protocol.fixed), choice=choice)


@contextmanager
def _folder(output: str | Path | None) -> Iterator[Path]:
    if output is not None:
        yield Path(output)
        return
    with tempfile.TemporaryDirectory(prefix="mmunlearn-") as temporary:
        yield Path(temporary)
