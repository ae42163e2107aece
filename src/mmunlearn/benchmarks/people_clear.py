"""The embedded people in CLEAR's layout, so that everything that is done with CLEAR can be tried without a download."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from mmunlearn.benchmarks.base import AS_EVER, EVALUATION_SPLITS, Asking, Modality, Splits, Task
from mmunlearn.benchmarks.clear import CLEAR
from mmunlearn.benchmarks.people_clear_files import VERSION, write_people_clear


@dataclass(frozen=True, kw_only=True)
class PeopleClear:
    """Fictitious people with drawn portraits, written to disk on first use and read like CLEAR.

    With the same seed and the default sizes they are the people of `People`, so that its base model fits.
    """

    name: str = "people-clear"
    """Stands in results and begins every example's id."""
    root: str = "outputs/cache/people-clear"
    """Where generated files are kept, in a subfolder for each combination of version, seed and sizes."""
    seed: int = 0
    """Decides names, facts, faces and questions, how captions are asked for, and where right options stand."""
    num_people: int = 80
    """People to be fine-tuned on."""
    num_public_figures: int = 24
    """People whom the base model knows."""
    num_general_faces: int = 160
    """Faces that are only looked at."""
    image_size: int = 64
    """Pixels along each edge of a portrait."""
    forget_ratio: str = "05"
    """Percentage of people to be forgotten: 1, 5 or 10."""
    modality: Modality = Modality.both
    """Train on captions of pictures, on questions without a picture, or on both."""

    def __post_init__(self) -> None:
        """Check the settings shared with CLEAR; nothing is generated yet.

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
        sizes = (self.num_people, self.num_public_figures, self.num_general_faces, self.image_size)
        return Path(self.root).expanduser() / f"v{VERSION}-seed{self.seed}-{'-'.join(map(str, sizes))}"

    def splits(self) -> Splits:
        """The training questions; see `CLEAR.splits`."""
        return self._written.splits()

    def tasks(self, splits: Sequence[str] = EVALUATION_SPLITS, asking: Asking = AS_EVER) -> tuple[Task, ...]:
        """The evaluation tasks; see `CLEAR.tasks`."""
        return self._written.tasks(splits, asking)

    def problems(self) -> Mapping[str, int]:
        """Flaws met in the folders read so far; a few are written on purpose, as in the published files."""
        return self._written.problems()

    @cached_property
    def _files(self) -> CLEAR:
        return CLEAR(
            name=self.name, root=str(self.folder), forget_ratio=self.forget_ratio, modality=self.modality, seed=self.seed
        )

    @cached_property
    def _written(self) -> CLEAR:
        write_people_clear(
            self.folder,
            seed=self.seed,
            num_people=self.num_people,
            num_public_figures=self.num_public_figures,
            num_general_faces=self.num_general_faces,
            image_size=self.image_size,
        )
        return self._files
