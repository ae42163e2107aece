"""`mmunlearn export`: write a model as it is to be deployed, and compare what was written with what it was made from.

The folder is filled beside its place, opened again from there and asked; only then is it moved. So a folder that is there has
passed: merging moved no logit by more than `export.tolerance`, every weight came back from the disk bit for bit, and what the
chosen precision costs stands in its card.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from rich.console import Console

from mmunlearn.benchmarks.opening import open_benchmark
from mmunlearn.config import TARGET, ExportConfig, ModelConfig, typed
from mmunlearn.config_enums import Quantise
from mmunlearn.data.example import Example
from mmunlearn.errors import ConfigError, RunError
from mmunlearn.exporting.card import README, Facts, model_card
from mmunlearn.exporting.observe import Difference, Observed, difference, observe, standing_questions
from mmunlearn.models.device import pick_device
from mmunlearn.models.load import (
    Loaded,
    deployable,
    folders_below,
    load,
    load_processor,
    model_fingerprint,
    read_card,
)
from mmunlearn.models.quantise import BASE_DTYPE, BASE_QUANTISED, ROUNDED, check_installed, quantisation_of, quantise
from mmunlearn.run import CARD_FILE, Run, environment, explain_disk_errors, replace_folder, write_json, write_text

console = Console(stderr=True)
RECORD = "export.json"
"""In the folder: the comparison, in numbers, and the names of all files that were written."""
NAMED = 3
"""So many files are named in a message."""
NOT_OF_THE_WHOLE = (BASE_QUANTISED, BASE_DTYPE)
"""What an adapter's card says that is not true of the merged model."""


@dataclass(frozen=True, kw_only=True)
class Source:
    """The model to be exported, as it is evaluated, and what it said."""

    fingerprints: tuple[str, ...]
    """Of its weights in each precision in which `evaluate` may have asked it; first the one in which it is stored."""
    observed: Observed
    below: list[str]
    """Its folder and those of the models below it."""

    @property
    def is_adapter(self) -> bool:
        """Whether there is something to be merged."""
        return len(self.below) > 1


def run_export(config: DictConfig) -> Path:
    """Write the model of a configuration to `run.dir`.

    Args:
        config: complete and checked.

    Raises:
        ConfigError: settings clash, or a library is missing.
        RunError: the folder is in use, merging changes the model, or what was written is not what was in memory.
    """
    model, export = typed(config.model, ModelConfig), typed(config.export, ExportConfig)
    folder = Path(config.run.dir)
    _check_settings(model, export)
    _check_folder(folder, model, overwrite=config.run.overwrite)
    device = pick_device(config.run.device)
    examples = _examples(config, export.examples)
    source = _open_source(model, examples, device)
    merging = _compare_merged(model, source, examples, device, export) if source.is_adapter else None
    whole = deployable(model)
    if export.precision in ROUNDED:
        quantise(whole, export.precision)
    card = {key: value for key, value in read_card(source.below[0]).items() if key not in NOT_OF_THE_WHOLE}
    card |= {"label": config.run.label} if config.run.label else {}

    def write(temporary: Path) -> None:
        whole.save_pretrained(temporary, max_shard_size=export.max_shard_size)
        load_processor(model).save_pretrained(temporary)
        write_json(temporary / CARD_FILE, card)
        expected = model_fingerprint(whole)
        again = _opened_again(temporary, model, expected)
        storing = difference(source.observed, observe(again, examples, device))
        if not math.isfinite(storing.largest):
            raise RunError(f"In {_precision(again)} the model computes numbers that are not finite, so nothing was written.")
        facts = Facts(
            card=card,
            base=source.below[-1],
            training=Run(Path(source.below[0]).parent),
            precision=_precision(again),
            source_fingerprints=source.fingerprints,
            fingerprint=expected,
            merging=merging,
            storing=storing,
            environment=environment(),
            evaluations=export.evaluations,
        )
        write_text(temporary / README, model_card(facts))
        write_json(temporary / RECORD, _record(facts) | {"files": sorted({*_files(temporary), RECORD})})
        _say(facts)
        _check_nothing_foreign(folder)  # something may have been put there since

    with explain_disk_errors(folder):
        replace_folder(folder, write)
    console.print(f"Written to {folder}", highlight=False, soft_wrap=True)
    return folder


def _check_settings(model: ModelConfig, export: ExportConfig) -> None:
    if not (model.path or model.name):
        raise ConfigError("model.path is empty. Give the folder or hub id of the model to be exported.")
    if model.quantise is not Quantise.none:
        raise ConfigError(f"model.quantise={model.quantise}: to export rounded weights, set export.precision instead.")
    if export.precision is Quantise.nf4:
        raise ConfigError("export.precision=nf4 is for training. Use none, int8 or int4.")
    if export.examples < 1:
        raise ConfigError(f"export.examples={export.examples}: the comparison needs at least one question.")
    check_installed(export.precision, "export.precision")


def _check_folder(folder: Path, model: ModelConfig, *, overwrite: bool) -> None:
    """Make sure that nothing is lost but an earlier export."""
    for below in folders_below(model.path or model.name):
        if Path(below).exists() and Path(below).resolve().is_relative_to(folder.resolve()):
            raise RunError(f"run.dir={folder} would replace {below}, which is exported. Choose another run.dir.")
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    if not (folder / RECORD).is_file():
        raise RunError(f"{folder} is there already and holds no earlier export. Choose another run.dir.")
    if not overwrite:
        raise RunError(f"{folder} holds an earlier export. Choose another run.dir, or set run.overwrite=true to replace it.")
    _check_nothing_foreign(folder)


def _check_nothing_foreign(folder: Path) -> None:
    """Make sure that a folder which is to be replaced holds nothing but what an export wrote there.

    Raises:
        RunError: it holds other files, or a record of an export that does not say which files were written.
    """
    found = _files(folder)
    if not found:
        return
    remedy = "Choose another run.dir, or move them away." if RECORD in found else "Choose another run.dir."
    written = _written(folder / RECORD) if RECORD in found else []
    if written is None:
        raise RunError(
            f"{folder / RECORD} does not list the files of the export, as those of earlier versions do not, so "
            "run.overwrite=true will not delete the folder: some may be yours. Choose another run.dir, or delete "
            "the folder yourself."
        )
    if foreign := sorted(set(found) - set(written)):
        names = ", ".join(foreign[:NAMED]) + (f" and {len(foreign) - NAMED} more" if len(foreign) > NAMED else "")
        raise RunError(
            f"{folder} holds files that no export wrote ({names}), and run.overwrite=true would delete them. {remedy}"
        )


def _files(folder: Path) -> list[str]:
    """The names of everything below a folder but folders, relative to it; links count as files."""
    below = folder.rglob("*") if folder.is_dir() else ()
    return sorted(path.relative_to(folder).as_posix() for path in below if path.is_symlink() or not path.is_dir())


def _written(record: Path) -> list[str] | None:
    """The files that an export says it wrote; None if it does not say."""
    try:
        files = json.loads(record.read_text(encoding="utf-8"))["files"]
    except (ValueError, KeyError, TypeError):
        return None
    return [str(name) for name in files] if isinstance(files, list) else None


def _examples(config: DictConfig, count: int) -> Sequence[Example]:
    """Questions of the benchmark about people of both sides if there is one, else about nobody."""
    if TARGET not in config.data:
        return standing_questions(count)
    splits = open_benchmark(config.data).splits()
    half = (count + 1) // 2
    return [*_mixed(splits.forget, half), *_mixed(splits.retain, count - half)]


def _mixed(examples: Sequence[Example], count: int) -> list[Example]:
    """The first ones with a picture and the first ones without, in turn as far as there are both."""
    shown = [example for example in examples if example.image is not None][: (count + 1) // 2]
    told = [example for example in examples if example.image is None][: count - len(shown)]
    return [*shown, *told]


def _open_source(model: ModelConfig, examples: Sequence[Example], device: torch.device) -> Source:
    """The model as `evaluate` opens it, for its fingerprints; an adapter is asked in float32, in which it is merged below.

    A fingerprint is one of bytes: a base stored in bfloat16 has another one in float32, though every number is the same.
    """
    below = folders_below(model.path or model.name)
    is_adapter = len(below) > 1
    fingerprints: dict[str, str] = {}
    observed: list[Observed] = []
    for dtype in ("auto", model.dtype, "float32") if is_adapter else ("auto",):
        if dtype in fingerprints:
            continue
        loaded = load(replace(model, dtype=dtype), merge=False)
        if (earlier := quantisation_of(loaded.model)) and not is_adapter:
            raise ConfigError(f"{below[0]} is stored quantised already ({earlier}). Export the model that it was made from.")
        own = str(next(loaded.model.parameters()).dtype).removeprefix("torch.")
        fingerprints |= dict.fromkeys((dtype, own), model_fingerprint(loaded.model))
        if not observed and ("float32" in (dtype, own) or not is_adapter):
            observed.append(observe(loaded, examples, device))
        del loaded  # two large models at once may be too much
    return Source(fingerprints=tuple(dict.fromkeys(fingerprints.values())), observed=observed[0], below=below)


def _compare_merged(
    model: ModelConfig, source: Source, examples: Sequence[Example], device: torch.device, export: ExportConfig
) -> Difference:
    """What merging alone does, in float32.

    Raises:
        RunError: more than rounding explains.
    """
    merged = load(replace(model, dtype="float32"))
    found = difference(source.observed, observe(merged, examples, device))
    if not found.relative <= export.tolerance:
        raise RunError(
            f"Merging the adapter into its base would move a logit by {found.largest:.3g}, {found.relative:.2g} of the largest "
            f"one and more than export.tolerance={export.tolerance:g}; {found.same_replies:.0%} of {found.examples} "
            "greedy answers stay the same. The merged model would not be the one that was evaluated, so nothing was written."
        )
    return found


def _opened_again(folder: Path, model: ModelConfig, expected: str) -> Loaded:
    """The written folder as a user opens it.

    Raises:
        RunError: its weights are not those that were written.
    """
    again = load(
        ModelConfig(path=str(folder), attention=model.attention, trust_remote_code=model.trust_remote_code), merge=False
    )
    if model_fingerprint(again.model) != expected:
        raise RunError(
            "The exported weights, opened again, are not those that were in memory, so nothing was written. The installed "
            "version of transformers stores models of this type otherwise than it opens them."
        )
    return again


def _precision(loaded: Loaded) -> str:
    dtype = str(loaded.model.dtype).removeprefix("torch.")
    rounded = quantisation_of(loaded.model)
    return f"{rounded} (linear layers; the rest {dtype})" if rounded else dtype


def _record(facts: Facts) -> dict[str, Any]:
    return {
        "schema": 1,
        "fingerprint": facts.fingerprint,
        "source_fingerprint": facts.source_fingerprints[0],
        "precision": facts.precision,
        "merging": facts.merging.to_json() if facts.merging else None,
        "storing": facts.storing.to_json(),
    }


def _say(facts: Facts) -> None:
    for what, found in (("merging, in float32", facts.merging), (f"the file, {facts.precision}", facts.storing)):
        if found:
            console.print(
                f"{what}: largest difference of a logit {found.largest:.3g} ({found.relative:.2g} of the largest logit), "
                f"{found.same_replies:.0%} of {found.examples} greedy answers the same",
                highlight=False,
                soft_wrap=True,
            )
