"""Stages that build on each other, found again by what went into them; `demo` runs them all on embedded people."""

import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from rich.console import Console

from mmunlearn.benchmarks.opening import open_benchmark
from mmunlearn.benchmarks.people import People
from mmunlearn.config import Mode, Role, TrainSplit
from mmunlearn.config_check import checked
from mmunlearn.data.example import Example
from mmunlearn.errors import ConfigError
from mmunlearn.evaluation.ask import run_predict
from mmunlearn.evaluation.job import score_run
from mmunlearn.methods.base import TrainingData
from mmunlearn.models.load import save
from mmunlearn.models.tiny import build_tiny
from mmunlearn.report.job import run_report
from mmunlearn.run import Run, fingerprint
from mmunlearn.training.job import train

console = Console(stderr=True)

LAYERS_BEHIND_A_MODEL = ("data", "benchmarks", "models", "methods", "training")
LAYERS_BEHIND_AN_EVALUATION = (*LAYERS_BEHIND_A_MODEL, "metrics", "evaluation")


@dataclass(frozen=True, kw_only=True)
class Model:
    """A model that a stage made."""

    name: str
    key: str
    """Identifies all that went into it: settings, data, the models before it and the code."""
    run: Run


@cache
def code_fingerprint(layers: tuple[str, ...]) -> str:
    """Identifies the source code of some layers, so that a change of code makes a stage anew."""
    digest = hashlib.sha256()
    for layer in layers:
        for path in sorted((Path(__file__).parent / layer).rglob("*.py")):
            digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


class Demo:
    """Base, vanilla and gold models and the unlearned ones, with their evaluations, each made at most once."""

    def __init__(self, config: DictConfig) -> None:
        """Generate the people.

        Raises:
            ConfigError: the data are others; only the embedded ones come with training data for a base model.
        """
        self.config = config
        self.cache = Path(config.demo.cache)
        benchmark = open_benchmark(config.data)
        if not isinstance(benchmark, People):
            raise ConfigError("The demo is about fictitious people: leave out the choice of data, or set data=people.")
        self.people = benchmark
        self.started = time.monotonic()

    def untrained(self) -> Model:
        """The tiny model with random weights; its vocabulary comes from what the base model reads."""
        examples = self.people.base_examples()
        key = fingerprint(["untrained", self._people_key(), self.config.run.seed, code_fingerprint(LAYERS_BEHIND_A_MODEL)])

        def build(run: Run) -> None:
            corpus = [text for example in examples for text in (example.question, example.answer)]
            save(*build_tiny(corpus, seed=self.config.run.seed), run.model, {"role": "base", "method": "none"})
            run.finish()

        return self._stage("untrained", key, build)

    def train(
        self, name: str, parent: Model, trainer: Any, *, role: Role, seed: int, examples: Sequence[Example] | None = None
    ) -> Model:
        """Train a model from another one.

        Args:
            name: of the stage.
            parent: where the weights start.
            trainer: a section like `trainer` (method and args).
            role: what the model stands for in the report.
            seed: of the data order.
            examples: what to fine-tune on; by default what the benchmark says for the role.
        """
        settings = OmegaConf.to_container(trainer, resolve=True)
        code = code_fingerprint(LAYERS_BEHIND_A_MODEL)
        key = fingerprint([name, parent.key, settings, str(role), seed, self._people_key(), code])

        def build(run: Run) -> None:
            full = {"mode": str(Mode.full)}
            config = checked(
                OmegaConf.create(
                    {
                        "run": {"dir": str(run.root), "seed": seed, "role": str(role), "resume": True, "device": self._device},
                        "model": {
                            "path": str(parent.run.model),
                            "tune": dict.fromkeys(("vision", "projector", "language"), full),
                        },
                        "data": {**self._data(), "split": str(TrainSplit.retain if role is Role.gold else TrainSplit.full)},
                        "trainer": settings,
                    }
                )
            )
            train(config, data=TrainingData(retain=examples) if examples is not None else None)

        return self._stage(name, key, build)

    def evaluate(self, model: Model) -> Path:
        """Ask and score a model; returns the evaluation's folder."""
        settings = OmegaConf.to_container(self.config.evaluation, resolve=True)
        code = code_fingerprint(LAYERS_BEHIND_AN_EVALUATION)
        key = fingerprint([model.key, settings, code])

        def build(run: Run) -> None:
            config = checked(
                OmegaConf.create(
                    {
                        "run": {"dir": str(run.root), "device": self._device},
                        "model": {"path": str(model.run.model)},
                        "data": self._data(),
                        "evaluation": settings,
                    }
                )
            )
            run_predict(config)
            score_run(config)

        return self._stage(f"evaluation-of-{model.name}", key, build).run.root

    @property
    def _device(self) -> str:
        return str(self.config.run.device)

    def _data(self) -> dict[str, Any]:
        return dict(OmegaConf.to_container(self.config.data, resolve=True))  # type: ignore[arg-type]

    def _people_key(self) -> str:
        return fingerprint([self.people.version, {k: v for k, v in self._data().items() if k != "root"}])

    def _stage(self, name: str, key: str, build: Callable[[Run], None]) -> Model:
        run = Run(self.cache / f"{name}-{key}")
        minutes, seconds = divmod(int(time.monotonic() - self.started), 60)
        clock = f"[dim]{minutes}:{seconds:02d}[/dim]"
        if run.is_done:
            console.print(f"{clock} [bold]{name}[/bold]: from the cache ({run.root})")
        else:
            console.rule(f"{clock} {name}", align="left")
            build(run)
        return Model(name=name, key=key, run=run)


def demo(config: DictConfig) -> Path:
    """Make a model that knows some dozens of people, make it forget a few, and write the report into `run.dir`."""
    job = Demo(config)
    stages = config.demo
    seeing = job.train(
        "seeing", job.untrained(), stages.see, role=Role.base, seed=config.run.seed, examples=job.people.visual_examples()
    )
    base = job.train("base", seeing, stages.base, role=Role.base, seed=config.run.seed, examples=job.people.base_examples())
    vanilla = job.train("vanilla", base, stages.vanilla, role=Role.vanilla, seed=config.run.seed)
    golds = [job.train(f"gold-{seed}", base, stages.gold, role=Role.gold, seed=seed) for seed in stages.gold_seeds]
    unlearned = [
        job.train(name, vanilla, trainer, role=Role.unlearned, seed=config.run.seed) for name, trainer in stages.methods.items()
    ]
    models = [base, vanilla, *golds, *unlearned]
    evaluations = [job.evaluate(model) for model in models]
    output = Path(config.run.dir)
    for model, evaluation in zip(models, evaluations, strict=True):
        _link(output / model.name, model.run.root)
        _link(output / f"evaluation-of-{model.name}", evaluation)
    config.report.evaluations = [str(path) for path in evaluations]
    config.report.trainings = [str(output / model.name) for model in [vanilla, *unlearned]]
    run_report(config, commands=_commands(config, list(stages.methods)))
    return output


def _link(link: Path, target: Path) -> None:
    """Let a readable name point to a stage in the cache."""
    link.parent.mkdir(parents=True, exist_ok=True)
    link.unlink(missing_ok=True)
    link.symlink_to(target.resolve(), target_is_directory=True)


def _commands(config: DictConfig, methods: Sequence[str]) -> list[str]:
    output = config.run.dir
    return [
        "make demo",
        *(
            f"mmunlearn evaluate data=people data.seed={config.data.seed} evaluation.choice=text "
            f"model.path={output}/{name}/model run.dir=outputs/{name}"
            for name in methods
        ),
    ]
