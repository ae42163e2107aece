"""`mmunlearn demo`: make a model that knows some dozens of invented people, make it forget a few, and report."""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from mmunlearn.config import DataConfig
from mmunlearn.config_enums import Mode, Modules, Role, Schedule, TrainSplit
from mmunlearn.errors import ConfigError, RunError, did_you_mean
from mmunlearn.methods.base import Side
from mmunlearn.pipeline import BaseData, Kind, Maker, Stage, stage
from mmunlearn.report.job import run_report
from mmunlearn.training.job import open_method


class Plan:
    """The stages of the demo."""

    def __init__(self, config: DictConfig) -> None:
        """Lay out the stages; nothing is made yet."""
        self.config = config
        self.cache = Path(config.demo.cache)
        stages, seed = config.demo, config.run.seed
        self.untrained = self._stage("untrained", Kind.untrained, {"run": {"seed": seed}}, family=stages.family)
        self.seeing = self._train("seeing", self.untrained, stages.see, Role.base, seed, base_data=BaseData.visual)
        self.base = self._train("base", self.seeing, stages.base, Role.base, seed, base_data=BaseData.everything)
        self.vanilla = self._train("vanilla", self.base, stages.vanilla, Role.vanilla, seed)
        self.golds = [self._train(f"gold-{number}", self.base, stages.gold, Role.gold, number) for number in stages.gold_seeds]
        if stages.gold_text:
            self.golds.append(self._train("gold_text", self.base, stages.gold_text, Role.gold_text, seed))
        self.masks: dict[str, Stage] = {}
        for name, section in (stages.masks or {}).items():
            self.masks[str(name)] = self._mask(str(name), section, seed)
        self.unlearned = [self._unlearn(str(name), trainer, seed) for name, trainer in (stages.methods or {}).items()]

    @property
    def compared(self) -> list[Stage]:
        """The models that the report compares."""
        return [self.base, self.vanilla, *self.golds, *self.unlearned]

    def evaluation(self, model: Stage) -> Stage:
        """The stage that asks and scores a model."""
        settings = {"evaluation": OmegaConf.to_container(self.config.evaluation, resolve=True)}
        return self._stage(f"evaluation-of-{model.name}", Kind.evaluation, settings, after=model)

    def _mask(self, name: str, section: DictConfig, seed: int) -> Stage:
        """A saliency mask of the vanilla model; `like` names an earlier mask."""
        saliency = OmegaConf.to_container(section, resolve=True)
        uses = {"saliency.like": self._named_mask(section.like)} if section.get("like") else {}
        settings = {"run": {"seed": seed}, "data": {"answer_only": self.config.data.answer_only}, "saliency": saliency}
        return self._stage(f"mask-{name}", Kind.mask, settings, after=self.vanilla, uses=uses)

    def _named_mask(self, name: str) -> Stage:
        if name not in self.masks:
            raise ConfigError(f"demo: there is no mask {name!r} in demo.masks. {did_you_mean(name, self.masks)}")
        return self.masks[name]

    def _unlearn(self, name: str, trainer: DictConfig, seed: int) -> Stage:
        """An unlearned model, called as in the configuration; `goal` stands beside the trainer section."""
        goal, section = trainer.get("goal"), OmegaConf.masked_copy(trainer, [str(key) for key in trainer if key != "goal"])
        uses = {"trainer.method.mask": self._named_mask(trainer.method.mask)} if trainer.method.get("mask") else {}
        folder = name.replace(" ", "-")
        return self._train(folder, self.vanilla, section, Role.unlearned, seed, run={"label": name, "goal": goal}, uses=uses)

    def _train(
        self,
        name: str,
        after: Stage,
        trainer: DictConfig,
        role: Role,
        seed: int,
        *,
        base_data: BaseData | None = None,
        run: Mapping[str, Any] | None = None,
        uses: Mapping[str, Stage] | None = None,
    ) -> Stage:
        data: dict[str, Any] = {"answer_only": self.config.data.answer_only, "split": str(_SPLITS.get(role, TrainSplit.full))}
        if role is Role.unlearned and _pairs_with_retain(trainer):
            data["retain_per_forget"] = self.config.data.retain_per_forget
        settings = {
            "run": {"seed": seed, "role": str(role), **(run or {})},
            "model": {"tune": tuned_parts(OmegaConf.select(trainer, "method.mask"), self.config)},
            "data": data,
            "trainer": OmegaConf.to_container(trainer, resolve=True),
        }
        return self._stage(name, Kind.trained, settings, after=after, base_data=base_data, uses=uses)

    def _stage(self, name: str, kind: Kind, settings: dict[str, Any], **more: Any) -> Stage:
        people = {key: value for key, value in self.config.data.items() if key not in DataConfig.__dataclass_fields__}
        complete = {
            **settings,
            "run": {**settings.get("run", {}), "device": str(self.config.run.device)},
            "data": {**people, **settings.get("data", {})},
        }
        return stage(name, kind, complete, cache=self.cache, **more)


_SPLITS = {Role.gold: TrainSplit.retain, Role.gold_text: TrainSplit.retain_and_text}

_COVERED = {
    Modules.language: ("language",),
    Modules.vision: ("vision", "projector"),
    Modules.both: ("vision", "projector", "language"),
}


def tuned_parts(mask: str | None, config: DictConfig) -> dict[str, dict[str, str]]:
    """Tune everything, or under a mask what it covers: weights outside are frozen, not free."""
    modules = Modules.both
    if mask:
        section = config.demo.masks[mask]
        while "like" in section:
            section = config.demo.masks[section.like]
        modules = Modules(section.get("modules", Modules.language))
    covered = _COVERED[modules]
    return {part: {"mode": str(Mode.full if part in covered else Mode.freeze)} for part in _COVERED[Modules.both]}


def _pairs_with_retain(trainer: DictConfig) -> bool:
    """Whether forget and retain examples share a step, so that `data.retain_per_forget` means something."""
    terms = open_method(trainer.method).terms()
    return trainer.get("schedule", Schedule.joint) == Schedule.joint and any(term.on is not Side.forget for term in terms)


def demo(config: DictConfig) -> Path:
    """Run every stage that is not in the cache and write the report into `run.dir`; returns that folder."""
    plan = Plan(config)
    evaluations = [plan.evaluation(model) for model in plan.compared]
    with Maker(str(config.run.device)) as maker:
        maker.prepare(plan.vanilla, *evaluations)
        for one in (plan.untrained, plan.seeing, plan.base):
            maker.make(one)
        # What others wait for comes first.
        maker.make(plan.vanilla, *plan.golds, *plan.masks.values(), *plan.unlearned, *evaluations)
    output = Path(config.run.dir)
    for made in (*plan.compared, *plan.masks.values(), *evaluations):
        _link(output / made.name, made.run.root)
    config.report.evaluations = [str(output / evaluation.name) for evaluation in evaluations]
    config.report.trainings = [str(output / model.name) for model in (plan.vanilla, *plan.unlearned)]
    run_report(config, commands=_commands(config, [model.name for model in plan.unlearned]))
    return output


def _link(link: Path, target: Path) -> None:
    """Let a readable name point to a stage in the cache."""
    link.parent.mkdir(parents=True, exist_ok=True)
    if link.exists() and not link.is_symlink():
        raise RunError(f"{link} is in the way of the demo's link to {target}. Choose another run.dir, or move it.")
    link.unlink(missing_ok=True)
    link.symlink_to(target.resolve(), target_is_directory=True)


def _commands(config: DictConfig, methods: Sequence[str]) -> list[str]:
    output, seed, limit = config.run.dir, config.data.seed, config.evaluation.limit
    asked = f"data=people data.seed={seed} evaluation.choice={config.evaluation.choice} evaluation.limit={limit} "
    asked += f"'evaluation.splits=[{','.join(config.evaluation.splits)}]'"
    return [
        " ".join(["mmunlearn", *sys.argv[1:]]),
        *(
            f"mmunlearn evaluate model=tiny model.path={output}/{name}/model {asked} run.dir=outputs/again-{name}"
            for name in methods
        ),
    ]
