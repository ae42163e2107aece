"""In which ways an evaluation asks: by which rules, with or without solved questions, each in a folder of its own."""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from mmunlearn.benchmarks.base import Asking, Benchmark, Task
from mmunlearn.config_enums import Choice, Protocol, Shots
from mmunlearn.errors import ConfigError
from mmunlearn.evaluation.requests import check_choice, chosen_tasks
from mmunlearn.run import Run

PROTOCOLS = (Protocol.fixed, Protocol.official)
SHOTS = (Shots.zero_shot, Shots.few_shot)


@dataclass(frozen=True, kw_only=True)
class Way:
    """One way of asking."""

    asking: Asking
    config: DictConfig
    """As if this way alone had been asked for: protocol, shots and folder are its own."""
    tasks: tuple[Task, ...]

    @property
    def run(self) -> Run:
        """The folder of its evaluation."""
        return Run(Path(self.config.run.dir))


def asking_of(config: DictConfig) -> Asking:
    """By whose rules the questions are asked; configurations recorded before there was a choice have none.

    Raises:
        ConfigError: in several ways.
    """
    asked = config.evaluation
    asking = Asking(protocol=Protocol(asked.protocol), shots=Shots(asked.get("shots", Shots.zero_shot)))
    if asking.protocol is Protocol.both or asking.shots is Shots.both:
        raise ConfigError(
            "evaluation.protocol and evaluation.shots: `both` is for the verbs evaluate and predict. Choose one of "
            f"{', '.join(PROTOCOLS)} and one of {', '.join(SHOTS)}."
        )
    return asking


def tasks_of(config: DictConfig, benchmark: Benchmark) -> tuple[Task, ...]:
    """The tasks of a configuration that asks in one way.

    Raises:
        ConfigError: the benchmark cannot be asked so, or the rules do not know the choice score.
    """
    check_choice(asking_of(config), Choice(config.evaluation.choice or Choice.letter))
    return chosen_tasks(benchmark, tuple(config.evaluation.splits), config.evaluation.limit, asking_of(config))


def asks_in_several_ways(config: DictConfig) -> bool:
    """Whether `run.dir` is to hold several evaluations."""
    asked = config.evaluation
    return bool(asked.protocol == Protocol.both or asked.get("shots") == Shots.both)


def each_way(config: DictConfig) -> list[DictConfig]:
    """The configuration, or one for each way that it asks for.

    `evaluation.choice` is for our own rules; the published ones have a score of their own.
    """
    if not asks_in_several_ways(config):
        return [config]
    asked = config.evaluation
    protocols = PROTOCOLS if asked.protocol == Protocol.both else (Protocol(asked.protocol),)
    shots = SHOTS if asked.shots == Shots.both else (Shots(asked.shots),)
    found = []
    for rules, shown in product(protocols, shots):
        own = DictConfig(OmegaConf.to_container(config))
        own.evaluation.protocol, own.evaluation.shots = str(rules), str(shown)
        own.run.dir = str(Run(Path(config.run.dir)).under(rules, shown).root)
        if rules is Protocol.official and asked.protocol == Protocol.both:
            own.evaluation.choice = None
        found.append(own)
    return found


def open_ways(config: DictConfig, benchmark: Benchmark, skipped: Callable[[str], None]) -> list[Way]:
    """The ways that a configuration asks in, without those that the benchmark has nothing for.

    Args:
        config: complete and checked.
        benchmark: where the questions come from.
        skipped: told in one line of each way that is left out; one that is asked for alone is an error instead.

    Raises:
        ConfigError: no way is left.
    """
    asked = each_way(config)
    found: list[Way] = []
    refused: list[ConfigError] = []
    for own in asked:
        try:
            found.append(Way(asking=asking_of(own), config=own, tasks=tasks_of(own, benchmark)))
        except ConfigError as error:
            refused.append(error)
    if not found:
        raise refused[0]
    for reason in refused:
        skipped(f"Left out: {reason}")
    return found


def evaluations_in(run: Run) -> list[Run]:
    """The folders of the evaluations that a run holds: its own, or those of several ways."""
    candidates = [run, *(run.under(rules, shown) for rules, shown in product(PROTOCOLS, SHOTS))]
    return [each for each in candidates if each.config.is_file() and each.model_card.is_file()]
