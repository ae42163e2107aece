"""One saliency mask from its configuration: open data and model, work the mask out, show it, save it."""

import dataclasses
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.table import Table

from mmunlearn.benchmarks.base import Benchmark, Modality, Splits
from mmunlearn.benchmarks.opening import open_benchmark
from mmunlearn.config import ModelConfig, SaliencyConfig, typed
from mmunlearn.config_enums import Modules, Rule, TrainSplit
from mmunlearn.data.batch import Encoder
from mmunlearn.data.example import Example, drawn
from mmunlearn.data.subjects import subjects_record
from mmunlearn.errors import ConfigError, DataError, NoQuestionsError, RunError
from mmunlearn.locks import locked
from mmunlearn.models.device import explain_full_memory, pick_device
from mmunlearn.models.families import Family, Part, part_of
from mmunlearn.models.load import Loaded, folders_below, load, read_card
from mmunlearn.models.saliency_mask import SaliencyMask, load_mask, overlap, save_mask
from mmunlearn.run import Run, environment, explain_disk_errors, write_json, write_text
from mmunlearn.saliency.estimate import CONTROLS, PARTS, SaliencyData, saliency_mask
from mmunlearn.training.examples import encode_all, of_modality
from mmunlearn.training.folder import check_outside

console = Console(stderr=True)
SHOWN = 5
"""Tensors named in a remark."""
LESS_MEMORY = (
    "What needs less: saliency.max_bytes (the float32 sums of a part of the weights at a time, in several passes), a smaller "
    "saliency.batch_size, saliency.modules=language or vision in place of both, model.dtype=bfloat16."
)


def make_mask(config: DictConfig) -> Run:
    """Work out a mask and save it in `run.mask`, with its counts in `run.saliency`.

    An earlier run that is to be overwritten is deleted when the new mask is there.

    Args:
        config: complete and checked, see `mmunlearn.config_check.checked`.

    Raises:
        UserError: with one message.
    """
    run = Run(Path(config.run.dir))
    with locked(run), explain_full_memory(LESS_MEMORY):
        _make_mask_in(run, config, typed(config.saliency, SaliencyConfig))
    return run


def _make_mask_in(run: Run, config: DictConfig, settings: SaliencyConfig) -> None:
    """The mask in a folder that is its own."""
    check_folder(run, config)
    started = environment()
    like = load_mask(settings.like) if settings.rule in CONTROLS and settings.like else None
    if settings.rule in CONTROLS and like is None:
        raise ConfigError(
            f"saliency.like: the rule {settings.rule} copies the density of another mask. Name it: saliency.like=outputs/mask"
        )
    compared = [(path, load_mask(path)) for path in settings.compare]
    data = SaliencyData() if like is not None else _read_data(config, settings)
    loaded = load(typed(config.model, ModelConfig))
    _check_compared(compared, loaded)
    loaded.model.to(pick_device(config.run.device))
    encoder = Encoder(loaded.processor, max_length=loaded.max_length, answer_only=config.data.answer_only)
    encode_all(encoder, [*data.forget, *data.preserve_language, *data.preserve_vision])
    with explain_disk_errors(run.root):  # rather now than after the work
        run.root.mkdir(parents=True, exist_ok=True)
    start = time.perf_counter()
    mask = saliency_mask(loaded.model, loaded.family, encoder, data, settings, seed=config.run.seed, like=like, say=_remark)
    seconds = time.perf_counter() - start
    mask = _with_model_card(mask, config)
    overlaps = [overlaps_by_part(path, other, mask, loaded.family) for path, other in compared]
    if config.run.overwrite:
        run.clear()
    write_text(run.config, OmegaConf.to_yaml(config))
    write_json(run.environment, started)
    write_json(run.subjects, subjects_record(learned=(*data.preserve_language, *data.preserve_vision), forgot=data.forget))
    save_mask(mask, run.mask)
    write_json(run.saliency, {**mask.card, "seconds": round(seconds, 1), "tensors": shares(mask), "compare": overlaps})
    _show(mask, overlaps, settings)
    console.print(f"Saved to {run.mask} ({seconds:.0f} s)", highlight=False)
    run.finish()


_NOT_FOR_MASKS = {
    "run.role": None,
    "run.goal": None,
    "run.label": "",
    "data.split": TrainSplit.full,
    "data.forget_modality": None,
    "data.retain_per_forget": 1,
}
"""Settings of training that a mask does not use, and the values that mean nothing was set."""


def check_folder(run: Run, config: DictConfig) -> None:
    """Say why a mask's folder cannot be used, or which setting would be ignored; nothing is changed yet.

    Raises:
        ConfigError: a setting of training that a mask does not use is set.
        RunError: an earlier run is in it, or overwriting would delete other things or what this mask is made from.
    """
    for setting, empty in _NOT_FOR_MASKS.items():
        if OmegaConf.select(config, setting) != empty:
            raise ConfigError(f"{setting}: a mask does not depend on it. Leave it out, and set it when you unlearn.")
    if config.run.resume:
        raise ConfigError("run.resume: a mask is made in one go. Leave it out; run.overwrite=true replaces an earlier one.")
    if not config.run.overwrite:
        if run.config.is_file():
            raise RunError(f"{run.root} holds a run. Choose another run.dir, or set run.overwrite=true to delete it.")
        return
    run.check_clearable()
    needed = {
        "model.path": folders_below(config.model.path) if config.model.path else [],
        "saliency.like": [config.saliency.like],
        "saliency.compare": config.saliency.compare,
    }
    for setting, paths in needed.items():
        for path in filter(None, paths):
            check_outside(run, setting, path)


# --- data -------------------------------------------------------------------------------------------------------------


def _read_data(config: DictConfig, settings: SaliencyConfig) -> SaliencyData:
    benchmark = open_benchmark(config.data)
    data, problems = mask_data(benchmark, settings)
    for flaw, count in problems.items():
        console.print(f"{benchmark.name}: {flaw}: {count}", highlight=False)
    return data


def mask_data(benchmark: Benchmark, settings: SaliencyConfig) -> tuple[SaliencyData, dict[str, int]]:
    """The sets that a rule needs, whatever modality the benchmark is set to, and flaws of the files that were tolerated.

    Args:
        benchmark: opened.
        settings: decides which sets are needed and, by `limit`, how much of each.

    Raises:
        DataError: no image questions about the forget or retain people, or no text questions at all.
    """
    pictures, text = (_in_modality(benchmark, modality) for modality in (Modality.image, Modality.text))
    forget = _chosen(pictures.splits(), "forget", settings, image=True)
    if settings.rule is not Rule.fisher_ratio:
        return SaliencyData(forget=forget), dict(pictures.problems())
    retain = _chosen(pictures.splits(), "retain", settings, image=True)
    if settings.modules is Modules.vision:
        return SaliencyData(forget=forget, preserve_vision=retain), dict(pictures.problems())
    words = _chosen(text.splits(), "full", settings, image=False)
    data = SaliencyData(
        forget=forget,
        preserve_language=(*words, *retain),
        preserve_vision=retain if settings.modules is Modules.both else (),
    )
    return data, dict(pictures.problems()) | dict(text.problems())


def _in_modality(benchmark: Any, modality: Modality) -> Benchmark:
    """The published files have text questions only where they are asked for."""
    if dataclasses.is_dataclass(benchmark) and any(item.name == "modality" for item in dataclasses.fields(benchmark)):
        benchmark = dataclasses.replace(benchmark, modality=modality)  # type: ignore[type-var]
    opened: Benchmark = benchmark
    return opened


def _chosen(splits: Splits, split: str, settings: SaliencyConfig, *, image: bool) -> tuple[Example, ...]:
    kind = "image" if image else "text"
    try:
        found = of_modality(getattr(splits, split), Modality(kind))
    except NoQuestionsError:  # its remedy, another data.modality, would not help: a mask needs both
        found = ()
    if not found:
        remedy = (
            "A mask needs them to tell what is to be forgotten from what is to be kept; check data.root, data.train_root and "
            "data.forget_ratio."
            if image
            else "The language part is to preserve them; use data that has them, or mask the vision part alone "
            "(saliency.modules=vision)."
        )
        raise DataError(f"The {split} split has no {kind} questions. {remedy}")
    return drawn(found, settings.limit)


def _check_compared(compared: Sequence[tuple[str, SaliencyMask]], loaded: Loaded) -> None:
    shapes = {name: tuple(parameter.shape) for name, parameter in loaded.model.named_parameters()}
    for path, mask in compared:
        for name, shape in mask.shapes.items():
            if shapes.get(name) != shape:
                raise ConfigError(f"saliency.compare: {path} was made for another model: its {name} does not fit.")


# --- what is shown and saved ------------------------------------------------------------------------------------------


def _with_model_card(mask: SaliencyMask, config: DictConfig) -> SaliencyMask:
    card = read_card(config.model.path) if config.model.path else {}
    model = {**mask.card["model"], "role": card.get("role"), "method": card.get("method")}
    return dataclasses.replace(mask, card={**mask.card, "model": model})


def shares(mask: SaliencyMask) -> dict[str, float]:
    """The share of each tensor that is selected."""
    return {name: round(mask.selected(name) / max(1, mask.size(name)), 6) for name in mask.bits}


def overlaps_by_part(path: str, other: SaliencyMask, mask: SaliencyMask, family: Family) -> dict[str, Any]:
    """Jaccard indices of two masks, on what both cover: overall and by part; None where neither selects anything."""
    shared = [name for name in mask.bits if name in other.bits]
    parts = {part: [name for name in shared if part_of(name, family) is part] for part in Part}
    found = {"overall": overlap(mask, other, shared)} | {str(part): overlap(mask, other, own) for part, own in parts.items()}
    return {"mask": path, **{name: None if math.isnan(value) else round(value, 6) for name, value in found.items()}}


def _remark(text: str) -> None:
    console.print(text, highlight=False, markup=False)


def _percent(count: int | None, total: int) -> str:
    return "–" if count is None else f"{100 * count / max(1, total):.2f} %"


def _show(mask: SaliencyMask, overlaps: Sequence[dict[str, Any]], settings: SaliencyConfig) -> None:
    table = Table(title=f"Saliency mask: {settings.rule}, {settings.modules}", title_justify="left")
    table.add_column("part")
    for column in ("weights covered", "selected", "0/0"):
        table.add_column(column, justify="right")
    for part, row in mask.card["parts"].items():
        covered = row["covered"]
        table.add_row(part, f"{covered:,}", _percent(row["selected"], covered), _percent(row["zero_over_zero"], covered))
    console.print(table)
    by_tensor = shares(mask)
    for what, share in (("nothing", 0.0), ("everything", 1.0)):
        uniform = [name for name in by_tensor if mask.selected(name) == share * mask.size(name)]
        if uniform:
            more = ", …" if len(uniform) > SHOWN else ""
            _remark(f"{len(uniform)} of {len(by_tensor)} tensors select {what}: {', '.join(uniform[:SHOWN])}{more}")
    if overlaps:
        console.print(_overlap_table(overlaps, [str(part) for part in PARTS[settings.modules]]))


def _overlap_table(overlaps: Sequence[dict[str, Any]], parts: Sequence[str]) -> Table:
    table = Table(title="Overlap with other masks (Jaccard index)", title_justify="left")
    table.add_column("mask", overflow="fold")
    for column in ("overall", *parts):
        table.add_column(column, justify="right")
    for row in overlaps:
        values = (row[column] for column in ("overall", *parts))
        table.add_row(row["mask"], *("–" if value is None else f"{value:.3f}" for value in values))
    return table
