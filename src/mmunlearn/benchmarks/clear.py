"""CLEAR (arXiv 2410.18057): the fictitious authors of TOFU with portraits and captions.

Of its 21 published folders, `forgetNN+tofu`, `retainNN+tofu` and `full+tofu` are trained on; `forgetNN`, `retainNN`, `full`
and `data` (the config `default`) say who is shown; `forgetNN_perturbed`, `retain_perturbed`, `real_faces` and `real_world`
are asked. `full` has two pictures less than a forget and a retain folder have together.

Asked are they under our own rules (`clear_tasks`) or as the published scripts do it (`clear_official`). Deviations of the
former from the latter: recognition asks a question and lists the options as MLLMU-Bench does, the place of the right one
depends on seed and content alone, and texts are asked without a picture placeholder.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from mmunlearn.benchmarks.base import AS_EVER, EVALUATION_SPLITS, Asking, Modality, Splits, Task
from mmunlearn.benchmarks.clear_official import official_tasks
from mmunlearn.benchmarks.clear_opened import Opened
from mmunlearn.benchmarks.clear_tasks import fixed_tasks
from mmunlearn.config_enums import Protocol, Shots
from mmunlearn.errors import ConfigError, did_you_mean

RATIOS = (1, 5, 10)
"""Percentages of people in the published forget splits."""


@dataclass(frozen=True, kw_only=True)
class CLEAR:
    """CLEAR as published, or other people in its layout."""

    name: str = "clear"
    """Stands in results and begins every example's id."""
    root: str = ""
    """Folder with `full+tofu/`, `forget05+tofu/`, …; empty: `data/CLEAR` if it exists, else the hub."""
    repository: str = "therem/CLEAR"
    """The data set on the hub."""
    forget_ratio: str = "05"
    """Percentage of people to be forgotten: 1, 5 or 10; 05 is the same as 5."""
    modality: Modality = Modality.both
    """Train on captions of pictures, on questions without a picture, or on both."""
    seed: int = 0
    """Decides how each caption is asked for and where the right option stands."""

    def __post_init__(self) -> None:
        """Check what the types leave open.

        Raises:
            ConfigError: the ratio is not one.
        """
        ratio = str(self.forget_ratio).strip().rstrip("%")
        if not ratio.isdecimal() or int(ratio) not in RATIOS:
            raise ConfigError(f"data.forget_ratio={self.forget_ratio}: must be the percentage of a split: 1, 5 or 10.")
        # A configuration delivers a number and a plain string; the fields are what their types say.
        object.__setattr__(self, "forget_ratio", f"{int(ratio):02}")
        object.__setattr__(self, "modality", Modality(self.modality))

    @property
    def version(self) -> str:
        """Raised when prompts, splits or scoring change."""
        return "3"

    def splits(self) -> Splits:
        """The training questions of the forget people, of the retain people, and of everybody (`full+tofu`).

        Reading one raises DataError if its folder is missing or damaged.
        """
        return Splits(lambda split: self._opened.training(split, self.modality))

    def tasks(self, splits: Sequence[str] = EVALUATION_SPLITS, asking: Asking = AS_EVER) -> tuple[Task, ...]:
        """The evaluation tasks about some groups, in the order of a report.

        `forget` and `retain` have recognition, caption and qa; `real` has recognition (`real_faces`); `general` has a
        choice (`real_world`). Under the published rules the pictures are also asked about without options (generation).
        The other groups have nothing here.

        Args:
            splits: the groups of people; only their folders are read.
            asking: our own rules or the published ones, without solved questions.

        Raises:
            ConfigError: a group is unknown, or the questions cannot be asked in this way.
            DataError: a folder of the published benchmark is missing or damaged.
        """
        if asking.shots is Shots.few_shot:
            raise ConfigError(
                "evaluation.shots=few_shot: CLEAR's published evaluation has none. Ask with evaluation.shots=zero_shot."
            )
        for split in splits:
            if split not in EVALUATION_SPLITS:
                raise ConfigError(f"evaluation.splits: {split!r} is unknown. {did_you_mean(split, EVALUATION_SPLITS)}")
        official = asking.protocol is Protocol.official
        return tuple(
            task for split in EVALUATION_SPLITS if split in splits for task in self._tasks(split, official=official)
        )  # fmt: skip

    def problems(self) -> Mapping[str, int]:
        """Flaws that were tolerated in the folders read so far, with their counts."""
        return dict(sorted(self._opened.problems.counts.items()))

    def _tasks(self, split: str, *, official: bool) -> tuple[Task, ...]:
        if (split, official) not in self._made:
            self._made[split, official] = (official_tasks if official else fixed_tasks)(self._opened, split)
        return self._made[split, official]

    @cached_property
    def _made(self) -> dict[tuple[str, bool], tuple[Task, ...]]:
        return {}

    @cached_property
    def _opened(self) -> Opened:
        return Opened(
            name=self.name,
            root=self.root,
            repository=self.repository,
            forget_ratio=int(self.forget_ratio),
            seed=self.seed,
        )
