"""`predict` as a job: open the model and answer the tasks of a configuration."""

from collections.abc import Sequence
from pathlib import Path

import torch
from omegaconf import DictConfig

from mmunlearn.benchmarks.opening import open_benchmark
from mmunlearn.errors import ConfigError
from mmunlearn.evaluation.devices import asked_devices
from mmunlearn.evaluation.job import console, model_card, prepare_folder
from mmunlearn.evaluation.opened import Identity, asked_of, open_asker
from mmunlearn.evaluation.predict import Asked, check_family, predict_all
from mmunlearn.evaluation.processes import ask_side_by_side
from mmunlearn.evaluation.ways import Way, asks_in_several_ways, open_ways
from mmunlearn.locks import locked
from mmunlearn.models.device import explain_full_memory
from mmunlearn.models.load import read_card
from mmunlearn.run import Run, write_json

LESS_MEMORY = (
    "What needs less: a smaller evaluation.batch_size (it changes no answer), model.dtype=bfloat16, model.quantise=int8. The "
    "same command goes on behind what was answered."
)


def run_predict(config: DictConfig) -> Run:
    """Answer every question of the chosen tasks; goes on where an earlier call was stopped.

    The model is opened once, also where questions are asked in several ways (`evaluation.protocol=both`); once in each
    process where several share the questions (`evaluation.devices`).

    Args:
        config: complete and checked.

    Returns:
        The folder `run.dir`; several ways have one each below it.
    """
    run = Run(Path(config.run.dir))
    with locked(run), explain_full_memory(LESS_MEMORY):
        _answer_all(config)
    return run


def _answer_all(config: DictConfig) -> None:
    """The answers, in a folder that is this process's own."""
    devices = asked_devices(config)
    ways = open_ways(config, open_benchmark(config.data), console.print)
    everything: list[Asked] = []

    def prepare(identity: Identity) -> list[Asked]:
        everything.extend(asked_of(_prepared(config, ways, identity), identity))
        return everything

    if len(devices) > 1:
        done = ask_side_by_side(config, devices, prepare)
    else:
        opened = open_asker(config, devices[0])
        done = predict_all(opened.asker, prepare(opened.identity))
    total = sum(len(asked.task.examples) for asked in everything)
    console.print(f"{total:,} questions in {len(everything)} tasks, {done:,} of them answered before.")
    if devices[0].type == "cuda":
        torch.cuda.empty_cache()


def _prepared(config: DictConfig, ways: Sequence[Way], identity: Identity) -> list[Way]:
    """The ways that the model can be asked in, their folders ready and named after it.

    Raises:
        ConfigError: there is none.
        RunError: a folder is in use.
    """
    possible = _possible(ways, identity)
    if asks_in_several_ways(config):
        Run(Path(config.run.dir)).done.unlink(missing_ok=True)
    card = model_card(config, read_card(config.model.path), identity.fingerprint, str(identity.settings.get("quantised", "")))
    for way in possible:
        prepare_folder(way.run, way.config, identity.fingerprint)
        write_json(way.run.model_card, card)
    return possible


def _possible(ways: Sequence[Way], identity: Identity) -> list[Way]:
    found: list[Way] = []
    refused: list[ConfigError] = []
    for way in ways:
        try:
            check_family(way.tasks, identity.model_type)
            found.append(way)
        except ConfigError as error:
            refused.append(error)
    if not found:
        raise refused[0]
    for reason in refused:
        console.print(f"Left out: {reason}")
    return found
