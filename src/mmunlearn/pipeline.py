"""Stages that build on each other, each made at most once and found again by what went into it."""

import hashlib
import importlib.metadata
import multiprocessing
import os
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from rich.console import Console

from mmunlearn.benchmarks.opening import open_benchmark
from mmunlearn.benchmarks.people import People
from mmunlearn.config_check import checked
from mmunlearn.data.example import Example
from mmunlearn.errors import ConfigError
from mmunlearn.evaluation import job as evaluation_job
from mmunlearn.evaluation.ask import run_predict
from mmunlearn.methods.base import TrainingData
from mmunlearn.models.load import save
from mmunlearn.models.tiny_families import build_tiny_family
from mmunlearn.progress import place_bars
from mmunlearn.run import Run, fingerprint
from mmunlearn.saliency import job as saliency_job
from mmunlearn.training import identity as training_identity
from mmunlearn.training import job as training_job
from mmunlearn.workers import end_with_parent

console = Console(stderr=True)

LAYERS_BEHIND_A_MODEL = ("data", "benchmarks", "models", "methods", "training")
LAYERS_BEHIND_A_MASK = (*LAYERS_BEHIND_A_MODEL, "saliency")
LAYERS_BEHIND_AN_EVALUATION = (*LAYERS_BEHIND_A_MODEL, "metrics", "evaluation")
MAX_WORKERS = 4
THREADS_ALONE, THREADS_BESIDE = 2, 1


class Kind(StrEnum):
    """What a stage makes."""

    untrained = "untrained"
    trained = "trained"
    mask = "mask"
    evaluation = "evaluation"


class BaseData(StrEnum):
    """What a stage of the base model is trained on."""

    visual = "visual"
    everything = "everything"


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One thing to be made: a model, a saliency mask or an evaluation."""

    name: str
    key: str
    """Identifies all that goes into it: settings, data, the stages before it and the code."""
    kind: Kind
    cache: Path
    settings: dict[str, Any]
    """A configuration like that of the verb which does the same."""
    base_data: BaseData | None = None
    family: str = ""
    """The architecture of an untrained model, as transformers calls it."""
    needs: tuple[str, ...] = ()
    """Keys of the stages that must be there before."""

    @property
    def run(self) -> Run:
        """Where it is kept."""
        return Run(self.cache / f"{self.name}-{self.key}")


@cache
def code_fingerprint(layers: tuple[str, ...]) -> str:
    """Identifies the source code of some layers, so that a change of code makes a stage anew."""
    digest = hashlib.sha256()
    package = Path(__file__).parent
    files = [path for layer in layers for path in sorted((package / layer).rglob("*.[pt]*")) if path.suffix in (".py", ".txt")]
    for path in (*files, Path(__file__)):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def versions() -> dict[str, str]:
    """Of the libraries that decide numbers, names and faces."""
    numbers = ("torch", "transformers", "tokenizers", "accelerate", "peft", "numpy", "scipy", "rouge-score", "nltk")
    people = ("faker", "python-avatars", "resvg-py", "pillow")
    return {name: importlib.metadata.version(name) for name in (*numbers, *people)}


def stage(
    name: str,
    kind: Kind,
    settings: dict[str, Any],
    *,
    cache: Path,
    after: Stage | None = None,
    base_data: BaseData | None = None,
    family: str = "",
    uses: Mapping[str, Stage] | None = None,
) -> Stage:
    """Describe a stage; its key is worked out from everything that it depends on.

    Args:
        name: short; begins its folder's name.
        kind: what it makes.
        settings: its configuration; `run.dir` and, behind another stage, `model.path` are filled in.
        cache: the folder that holds all stages.
        after: the stage whose model it starts from.
        base_data: what a stage of the base model is trained on.
        family: the architecture of an untrained model.
        uses: masks that it takes, by the setting that names them (`trainer.method.mask`).
    """
    uses = uses or {}
    complete = OmegaConf.to_container(checked(OmegaConf.create(settings)))  # a changed default counts too
    before = [after.key if after else "", {setting: used.key for setting, used in uses.items()}]
    key = fingerprint([name, kind, complete, before, base_data, family, code_fingerprint(_LAYERS[kind]), versions()])
    described = Stage(name=name, key=key, kind=kind, cache=cache, settings=settings, base_data=base_data, family=family)
    begun = described.run.config.is_file()  # by a demo that was stopped
    filled = OmegaConf.create(settings)
    OmegaConf.update(filled, "run.dir", str(described.run.root), force_add=True)
    OmegaConf.update(filled, "run.resume", begun and kind is Kind.trained, force_add=True)
    OmegaConf.update(filled, "run.overwrite", begun and kind is Kind.mask, force_add=True)
    if after is not None:
        OmegaConf.update(filled, "model.path", str(after.run.model), force_add=True)
    for setting, used in uses.items():
        OmegaConf.update(filled, setting, str(used.run.mask), force_add=True)
    needs = tuple(stage.key for stage in (after, *uses.values()) if stage is not None)
    plain: dict[str, Any] = OmegaConf.to_container(filled)  # type: ignore[assignment]
    return replace(described, settings=plain, needs=needs)


_LAYERS = {
    Kind.untrained: LAYERS_BEHIND_A_MODEL,
    Kind.trained: LAYERS_BEHIND_A_MODEL,
    Kind.mask: LAYERS_BEHIND_A_MASK,
    Kind.evaluation: LAYERS_BEHIND_AN_EVALUATION,
}


def make(wanted: Stage) -> None:
    """Make a stage that is not there yet."""
    config = checked(OmegaConf.create(wanted.settings))
    if wanted.kind is Kind.untrained:
        _make_untrained(wanted, config)
    elif wanted.kind is Kind.trained:
        data = None if wanted.base_data is None else TrainingData(retain=_base_examples(config, wanted.base_data))
        training_job.train(config, data=data)
    elif wanted.kind is Kind.mask:
        saliency_job.make_mask(config)
    else:
        run_predict(config)
        evaluation_job.score_run(config)


def _make_untrained(wanted: Stage, config: DictConfig) -> None:
    """The tiny model with random weights; its vocabulary comes from what the base model will read."""
    corpus = [text for example in _base_examples(config, BaseData.everything) for text in (example.question, example.answer)]
    built = build_tiny_family(wanted.family, corpus, seed=config.run.seed)
    save(*built, wanted.run.model, {"role": "base", "method": "none"})
    wanted.run.finish()


def _base_examples(config: DictConfig, data: BaseData) -> tuple[Example, ...]:
    people = open_benchmark(config.data)
    if not isinstance(people, People):
        raise ConfigError(f"The embedded model is made from the embedded people, not from {people.name}: use data=people.")
    return people.visual_examples() if data is BaseData.visual else people.base_examples()


class Maker(AbstractContextManager["Maker"]):
    """Makes stages, independent ones side by side, and says what came from the cache.

    On a CPU stages that run side by side take one thread each, and a stage that runs alone takes two: a model of 3 million
    weights gains little from threads, and two stages side by side gain more. How many a stage takes is fixed, so that the
    results do not depend on how many cores a machine has.
    """

    def __init__(self, device: str) -> None:
        """Start no process yet.

        Args:
            device: `run.device`; on a GPU stages run one after the other.
        """
        on_cpu = device == "cpu" or (device == "auto" and not torch.cuda.is_available())
        self.workers = min(MAX_WORKERS, os.cpu_count() or 1) if on_cpu else 1
        self.started = time.monotonic()
        self._pool: ProcessPoolExecutor | None = None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        """Stop the worker processes."""
        if self._pool is not None:
            self._pool.shutdown(wait=error is None, cancel_futures=True)

    def prepare(self, *wanted: Stage) -> None:
        """Let worker processes load the libraries while the first stages run alone, if any of `wanted` is to be made."""
        if self.workers > 1 and sum(not one.run.is_done for one in wanted) > 1:
            for _ in range(self.workers):
                self._started_pool().submit(_load_libraries)

    def make(self, *wanted: Stage) -> None:
        """Make those that are not there yet, each as soon as what it needs is there.

        Args:
            wanted: in an order in which they could be made one after the other.
        """
        missing = [one for one in wanted if not one.run.is_done]
        for one in wanted:
            if one not in missing:
                self._say(f"{one.name}: from the cache ({one.run.root})")
        if len(missing) <= 1 or self.workers == 1:
            for one in missing:
                self._say(one.name)
                torch.set_num_threads(THREADS_ALONE if len(wanted) == 1 else THREADS_BESIDE)
                make(one)
            return
        pool = self._started_pool()
        self._say(f"{len(missing)} stages, {self.workers} at a time: {', '.join(one.name for one in missing)}")
        running: dict[Future[None], Stage] = {}
        while missing or running:
            ready = [one for one in missing if not {other.key for other in (*missing, *running.values())} & set(one.needs)]
            for one in ready[: self.workers - len(running)]:
                missing.remove(one)
                running[pool.submit(_make_in_worker, one)] = one
            finished, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in finished:
                future.result()
                self._say(f"{running.pop(future).name}: done")

    def _started_pool(self) -> ProcessPoolExecutor:
        if self._pool is None:
            self._pool = ProcessPoolExecutor(
                self.workers, mp_context=multiprocessing.get_context("spawn"), initializer=end_with_parent
            )
        return self._pool

    def _say(self, text: str) -> None:
        minutes, seconds = divmod(int(time.monotonic() - self.started), 60)
        console.print(f"[bold]{minutes}:{seconds:02d}[/bold]  {text}", highlight=False)


def _load_libraries() -> None:
    """What importing this module has done: a stage then starts at once."""


def _make_in_worker(wanted: Stage) -> None:
    """Make a stage in a process of its own, which draws bars and says nothing else."""
    identity: Sequence[int] = multiprocessing.current_process()._identity
    place_bars(wanted.name, identity[0] - 1 if identity else 0)
    for job in (training_job, training_identity, evaluation_job, saliency_job):
        job.console.quiet = True
    torch.set_num_threads(THREADS_BESIDE)
    make(wanted)
