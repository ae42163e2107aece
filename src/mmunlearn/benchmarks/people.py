"""The embedded default benchmark: people that are invented and drawn on the spot, so that nothing has to be downloaded."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from mmunlearn.benchmarks.base import AS_EVER, EVALUATION_SPLITS, Asking, Modality, Splits, Task
from mmunlearn.benchmarks.mllmu import MLLMUBench
from mmunlearn.benchmarks.people_files import BENCHMARK_FOLDER, TRAIN_FOLDER, VERSION, write_people
from mmunlearn.data.example import Example

BASE_FOLDERS = ("public_figures", "General_Train")
"""What a base model is trained on, in the train-split layout."""


@dataclass(frozen=True, kw_only=True)
class People:
    """Fictitious people with drawn portraits, written to disk on first use and read like MLLMU-Bench."""

    name: str = "people"
    """Stands in results and begins every example's id."""
    root: str = "outputs/cache/people"
    """Where generated files are kept, in a subfolder for each combination of version, seed and sizes."""
    seed: int = 0
    """Decides names, facts, faces and questions, and which other portrait is shown."""
    num_people: int = 80
    """People to be fine-tuned on."""
    num_public_figures: int = 24
    """People whom the base model knows."""
    num_holdout: int = 12
    """People nobody trains on."""
    num_general_faces: int = 160
    """Faces that are only looked at."""
    image_size: int = 64
    """Pixels along each edge of a portrait."""
    option_draws: int = 1
    """How often each multiple-choice question is asked, each time with other wrong options. More make narrower intervals."""
    forget_ratio: str = "15"
    """Percentage of people to be forgotten: 5, 10 or 15."""
    modality: Modality = Modality.both
    """Train on questions with the image, without it, or on both."""

    def __post_init__(self) -> None:
        """Check the settings shared with MLLMU-Bench; nothing is generated yet.

        Raises:
            ConfigError: the ratio is not one.
        """
        files = self._files
        object.__setattr__(self, "forget_ratio", files.forget_ratio)
        object.__setattr__(self, "modality", files.modality)

    @property
    def version(self) -> str:
        """Of the generated people and of the reader."""
        return f"{VERSION}.{self._files.version}"

    @property
    def folder(self) -> Path:
        """Where these people are kept."""
        sizes = (self.num_people, self.num_public_figures, self.num_holdout, self.num_general_faces, self.image_size)
        draws = f"-draws{self.option_draws}" if self.option_draws != 1 else ""
        return Path(self.root).expanduser() / f"v{VERSION}-seed{self.seed}-{'-'.join(map(str, sizes))}{draws}"

    def splits(self) -> Splits:
        """The training questions; see `MLLMUBench.splits`."""
        return self._written.splits()

    def tasks(self, splits: Sequence[str] = EVALUATION_SPLITS, asking: Asking = AS_EVER) -> tuple[Task, ...]:
        """The evaluation tasks; see `MLLMUBench.tasks`."""
        return self._written.tasks(splits, asking)

    def training(self, folder: str, modality: Modality = Modality.both) -> tuple[Example, ...]:
        """The training questions of one folder; see `MLLMUBench.training`."""
        return self._written.training(folder, modality)

    def base_examples(self) -> tuple[Example, ...]:
        """What a base model is trained on; see the function `base_examples`."""
        return base_examples(self._written)

    def visual_examples(self) -> tuple[Example, ...]:
        """Plain questions about what is to be seen on faces of nobody, the first thing that a base model learns."""
        return tuple(example for example in self.training("General_Train") if "\n" not in example.question)

    def problems(self) -> Mapping[str, int]:
        """Flaws met in the folders read so far; a few are written on purpose, as in the published files."""
        return self._written.problems()

    @cached_property
    def _files(self) -> MLLMUBench:
        return MLLMUBench(
            name=self.name,
            root=str(self.folder / BENCHMARK_FOLDER),
            train_root=str(self.folder / TRAIN_FOLDER),
            forget_ratio=self.forget_ratio,
            modality=self.modality,
            seed=self.seed,
        )

    @cached_property
    def _written(self) -> MLLMUBench:
        write_people(
            self.folder,
            seed=self.seed,
            num_people=self.num_people,
            num_public_figures=self.num_public_figures,
            num_holdout=self.num_holdout,
            num_general_faces=self.num_general_faces,
            image_size=self.image_size,
            option_draws=self.option_draws,
        )
        return self._files


def base_examples(benchmark: MLLMUBench) -> tuple[Example, ...]:
    """What a base model is trained on: public figures in all wordings and formats, and visual questions on other faces.

    Args:
        benchmark: one that reads generated people.
    """
    return tuple(example for folder in BASE_FOLDERS for example in benchmark.training(folder))
