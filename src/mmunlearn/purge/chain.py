"""What a model has from those that it was made from: recorded paths are followed, out of the folders too, and only read."""

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from huggingface_hub import constants
from huggingface_hub.file_download import repo_folder_name

from mmunlearn.config import configs_folder
from mmunlearn.data.subjects import Part
from mmunlearn.errors import RunError
from mmunlearn.purge.files import read_settings
from mmunlearn.purge.models import Made, is_untrained, made_alone
from mmunlearn.purge.people import People
from mmunlearn.purge.scan import Written, is_run, object_or_nothing
from mmunlearn.run import CARD_FILE, Run

ADAPTER = "adapter_config.json"
"""PEFT's file in the folder of an adapter."""
_HUB_ID = re.compile(r"[\w.-]+(?:/[\w.-]+)?")


@dataclass(frozen=True)
class Recorded:
    """A path under which something's origin was written down."""

    path: str
    bases: tuple[Path, ...]
    """Folders that it may be relative to, the likeliest first."""

    def place(self) -> Path | None:
        """Where it leads today; None if nowhere."""
        given = Path(self.path).expanduser()
        tried = [given] if given.is_absolute() else [base / given for base in self.bases]
        return next((Path(os.path.realpath(each)) for each in tried if each.exists()), None)


class Chain:
    """Answers for every run what its model, mask or training state has to do with the people, itself and through others."""

    def __init__(self, runs: Sequence[Written], people: People) -> None:
        """Take the runs that were found; others are looked up where paths lead to them."""
        self._people = people
        self._runs = {Path(os.path.realpath(each.run.root)): each for each in runs}
        self._made: dict[Path, Made] = {}

    def made_from(self) -> dict[Path, Made]:
        """For each run with a model, mask or training state, by the run's folder as it was found."""
        found = list(self._runs.items())  # those that are met on the way are not ours to clean
        return {each.run.root: self._of_run(root) for root, each in found if each.has_model}

    def _of_run(self, root: Path) -> Made:
        if root not in self._made:
            written = self._runs.setdefault(root, Written(Run(root)))
            made = made_alone(written, self._people)
            self._made[root] = made  # a circle of models that were started from each other ends here
            self._made[root] = self._with(made, origins(written))
        return self._made[root]

    def _of_folder(self, folder: Path) -> Made:
        """Of a model, an adapter or a mask at some place."""
        for root in (folder, *list(folder.parents)[:3]):
            if _is_part(folder, root) and (root in self._runs or is_run(root)):
                return self._of_run(root)
        card = object_or_nothing(folder / CARD_FILE)
        made = Made()
        if card.get("role") and not is_untrained(card):
            made = Made(doubt=f"was started from {folder}, which has lost the record of its training")
        above = object_or_nothing(folder / ADAPTER).get("base_model_name_or_path")
        return self._with(made, [Recorded(str(above), (folder,))] if above else [])

    def _with(self, made: Made, above: Sequence[Recorded]) -> Made:
        """Add what comes from the models above."""
        for each in above:
            place = each.place()
            if place is None:
                if not made.doubt and not is_on_the_hub(each.path):
                    made = replace(made, doubt=f"was made from {each.path}, which is not to be found")
                continue
            other = self._of_folder(place)
            added: dict[str, Part] = {name: part for name, part in other.parts.items() if name not in made.parts}
            doubt = made.doubt or (f"was made from {place}, which leaves it open: {other.doubt}" if other.doubt else "")
            through = made.through or (place if added else None)
            made = replace(made, parts={**made.parts, **added}, doubt=doubt, through=through)
        return made


def _is_part(path: Path, root: Path) -> bool:
    """Whether a path is that of a run, of its model, its mask or a training state."""
    run = Run(root)
    return path in (root, run.model, run.mask) or path.is_relative_to(run.checkpoints)


def origins(written: Written) -> list[Recorded]:
    """What a run was made from, as far as it says: the model it started from, another reference, a mask."""
    bases = tuple(_bases(written))
    found = list(dict.fromkeys(_recorded_paths(written)))
    return [Recorded(path, bases) for path in found]


def _recorded_paths(written: Written) -> Iterator[str]:
    settings = written.settings
    model, trainer = _section(settings, "model"), _section(settings, "trainer")
    named = (model.get("path") or model.get("name"), trainer.get("reference"), _section(trainer, "method").get("mask"))
    yield from (str(each) for each in named[:1] if each)
    yield from (str(each) for each in named[1:] if isinstance(each, str) and each and each != "gold")
    if written.run.model.is_dir():
        base = object_or_nothing(written.run.model / ADAPTER).get("base_model_name_or_path")
        yield from [str(base)] if base else []


def _section(settings: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    section = settings.get(name)
    return section if isinstance(section, Mapping) else {}


def _bases(written: Written) -> Iterator[Path]:
    """The folder that a run was started in, as recorded or as the recorded `run.dir` shows it; then its own folder."""
    root = Path(os.path.realpath(written.run.root))
    folder = object_or_nothing(written.run.environment).get("folder")
    if folder:
        yield Path(str(folder))
    own = Path(str(_section(written.settings, "run").get("dir") or "")).parts
    if own and not Path(*own).is_absolute() and root.parts[-len(own) :] == own:
        yield Path(*root.parts[: -len(own)])
    yield root


def is_on_the_hub(name: str) -> bool:
    """Whether a name is surely that of a published model: one of the presets, or one in the hub's cache on this machine.

    A model of the cache that one of our runs wrote may have learned anybody, so it does not count.
    """
    if not _HUB_ID.fullmatch(name):
        return False
    if name in _preset_names():
        return True
    cached = Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=name, repo_type="model")
    return cached.is_dir() and not any(cached.glob(f"snapshots/*/{CARD_FILE}"))


def _preset_names() -> set[str]:
    found = set()
    for file in (configs_folder() / "model").glob("*.yaml"):
        try:
            found.add(str(read_settings(file).get("name") or ""))
        except RunError:
            continue
    return found
