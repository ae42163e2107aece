"""How models were trained, from the settings beside their weights: do two of them differ in their seed and in nothing else?"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import yaml

from mmunlearn.report.collect import Collected, Evaluation
from mmunlearn.run import Run, fingerprint

_SECTIONS = ("model", "data", "trainer")
"""The sections that make a recipe; of `run` only the goal does."""
_SINKS = frozenset({"trainer.args.report_to", "trainer.args.logging_steps", "trainer.args.save_steps"})
_SINKS |= {"trainer.args.save_total_limit"}
"""Settings of what is written besides the weights."""
_ANCESTORS = 10
"""So many models before this one are looked at; a cycle of folders would have no end."""
_NAMED = 4
"""So many different settings are named in a reason."""


def recipe(model: Evaluation) -> Mapping[str, Any] | None:
    """How a model was trained but for its seed and folder, as settings by dotted name; None if that is not known.

    The evaluation's configuration names the model's folder, and beside that lies the configuration of the training. Which
    model the training began with counts by identity: where that is a run of ours, by its own settings with its seed and those
    of the models before it, else by the path or hub id. Two folders with other contents under one path are not told apart.
    """
    config = _parsed(model.record.config)
    return _trained(str(_section(config, "model").get("path") or ""))


def why_not_seeds(models: Sequence[Evaluation]) -> str:
    """Why models cannot be said to be one recipe begun from different seeds; empty if they can.

    They can if weights and seeds are all different, and the recorded settings of all trainings are the same.
    """
    for one, other in pairwise(models):
        recipes = recipe(one), recipe(other)
        for model, found in zip((one, other), recipes, strict=True):
            if found is None:
                return f"the settings of the training of {model.label} are not at hand"
        if different := _different(*recipes):
            return f"{one.label} and {other.label} were not trained alike ({different})"
    if shared := _shared(models, [model.fingerprint for model in models]):
        return f"{shared} have the same weights"
    if shared := _shared(models, [model.seed for model in models]):
        return f"{shared} have the same seed but different weights, so something that was not recorded differs"
    return ""


def trained_alike(models: Sequence[Evaluation]) -> tuple[Evaluation, ...]:
    """The models that are not known to be trained otherwise than the first; of equal weights the first one only."""
    if len(models) < 2:
        return tuple(models)
    found: dict[str, Evaluation] = {}
    for model in models:
        if not _different(recipe(models[0]), recipe(model)):
            found.setdefault(model.fingerprint, model)
    return tuple(found.values())


def with_role_notes(collected: Collected) -> Collected:
    """The same with notes on models whose roles or recipes mislead: equal weights under two roles, golds trained otherwise."""
    singles = collected.unfolded().evaluations
    notes = [
        f"{one.label} ({one.role}) and {other.label} ({other.role}) have the same weights: one of the roles is wrong."
        for place, one in enumerate(singles)
        for other in singles[place + 1 :]
        if one.fingerprint == other.fingerprint and one.role != other.role
    ]
    for role in ("gold", "gold_text"):
        golds = collected.references(role)
        rounded = [gold.label for gold in collected.singles_of_role(role) if gold not in golds]
        if rounded:
            notes.append(f"Rounded models are no reference: {', '.join(rounded)} is shown, and nothing is held against it.")
        others = [gold for gold in golds if all(gold is not one for one in trained_alike(golds))]
        notes += [f"Held against {golds[0].label} without {gold.label}: {_why_left_out(golds[0], gold)}." for gold in others]
    return replace(collected, notes=(*collected.notes, *notes))


def _why_left_out(first: Evaluation, other: Evaluation) -> str:
    different = _different(recipe(first), recipe(other))
    return f"they were not trained alike ({different})" if different else "its weights are those of another gold model"


def _different(one: Mapping[str, Any] | None, other: Mapping[str, Any] | None) -> str:
    """The names of the settings in which two known recipes differ; empty if they do not, or if one is unknown."""
    if one is None or other is None:
        return ""
    names = sorted(name for name in one.keys() | other.keys() if one.get(name) != other.get(name))
    return ", ".join(names[:_NAMED]) + (", …" if len(names) > _NAMED else "")


def _shared(models: Sequence[Evaluation], values: Sequence[Any]) -> str:
    """“A and B”: the first two models of the same value; empty if there are none."""
    first: dict[Any, Evaluation] = {}
    for model, value in zip(models, values, strict=True):
        if value in first:
            return f"{first[value].label} and {model.label}"
        first[value] = model
    return ""


def _trained(path: str, ancestors: int = _ANCESTORS) -> dict[str, Any] | None:
    """The settings of the run that a model came out of, without seed; None if the path leads to no run."""
    file = Run(Path(path).parent).config
    if not path or not file.is_file():
        return None
    config = _parsed(file.read_text(encoding="utf-8"))
    settings = dict(_flat({name: _section(config, name) for name in _SECTIONS}))
    if not settings:
        return None
    settings = {name: value for name, value in settings.items() if name not in _SINKS}
    settings["run.goal"] = _section(config, "run").get("goal")
    start = str(settings.get("model.path") or "")
    before = _trained(start, ancestors - 1) if ancestors else None
    if before is not None:
        seed = _section(_parsed(Run(Path(start).parent).config.read_text(encoding="utf-8")), "run").get("seed")
        settings["model.path"] = fingerprint([before, seed])
    return settings


@lru_cache(maxsize=256)
def _parsed(text: str) -> Any:
    """Kept, because the same few configurations are asked for by every number of a report."""
    try:
        return yaml.safe_load(text or "{}")
    except yaml.YAMLError:  # whatever it is, it is no record of a training
        return {}


def _section(config: Any, name: str) -> Mapping[str, Any]:
    found = config.get(name) if isinstance(config, dict) else None
    return found if isinstance(found, dict) else {}


def _flat(node: Mapping[str, Any], above: str = "") -> Iterable[tuple[str, Any]]:
    for key, value in node.items():
        name = f"{above}{key}"
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{name}.")
        else:
            yield name, value
