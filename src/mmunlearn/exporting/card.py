"""The README.md of an exported folder: what the model is, what was measured, how it was made. It names no person."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData, try_to_load_from_cache
from yaml import YAMLError, safe_load

from mmunlearn.data.subjects import Part
from mmunlearn.errors import ConfigError
from mmunlearn.exporting.observe import Difference
from mmunlearn.run import Run

README = "README.md"


PUBLIC_SETTINGS = ("export.precision=", "export.examples=", "export.max_shard_size=", "export.tolerance=")


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What a card says besides the benchmark's numbers."""

    card: Mapping[str, Any]
    """The model's `mmunlearn.json`: role, method, seed, …"""
    base: str
    """Folder or hub id of the model below any adapters."""
    training: Run
    """The folder that the model's folder lies in: a training run, or something else."""
    precision: str
    """bfloat16, int4, …"""
    source_fingerprints: Sequence[str]
    """Of what it was made from, in each precision in which it may have been evaluated."""
    fingerprint: str
    """Of the exported weights."""
    merging: Difference | None
    """None: there was no adapter."""
    storing: Difference
    environment: Mapping[str, Any]
    evaluations: Sequence[str]


def model_card(facts: Facts) -> str:
    """The whole text, front matter first.

    Raises:
        ConfigError: a folder of `export.evaluations` holds no results.
    """
    local = Path(facts.base).is_dir()
    data = ModelCardData(
        library_name="transformers",
        pipeline_tag="image-text-to-text",
        base_model=None if local else facts.base,
        license=base_licence(facts.base),
        tags=["machine-unlearning", "mmunlearn"],
    )
    sections = [
        f"---\n{data.to_yaml()}\n---\n",
        f"# {facts.card.get('label') or _title(facts.card)}\n",
        _what(facts, local),
        _checks(facts),
        _numbers(facts),
        _made(facts.environment),
    ]
    return "\n".join(section for section in sections if section)


def _title(card: Mapping[str, Any]) -> str:
    method, role = card.get("method"), card.get("role", "model")
    return (
        f"A vision-language model after unlearning ({method})" if role == "unlearned" else f"A vision-language model ({role})"
    )


def base_licence(base: str) -> str | None:
    """The licence that the base model's own README names; None if it has none here.

    Args:
        base: folder, or hub id, of which the local cache is asked.
    """
    cached = None if Path(base).is_dir() else try_to_load_from_cache(base, README)
    file = Path(base) / README if cached is None else Path(str(cached))
    if not file.is_file():
        return None
    try:
        found = ModelCard.load(file).data.to_dict().get("license")
    except (ValueError, YAMLError):  # somebody else's README, with a front matter that cannot be read
        return None
    return found if isinstance(found, str) else None


def _what(facts: Facts, local: bool) -> str:
    card = facts.card
    rows = [
        ("Base model", "a local folder" if local else facts.base),
        ("Role", card.get("role", "unknown")),
        ("Method", card.get("method", "unknown")),
        ("Seed", card.get("seed", "unknown")),
        *([("Aim", card["goal"])] if "goal" in card else []),
        *_forgotten(facts.training),
        ("Weights", facts.precision),
        ("Fingerprint", f"`{facts.fingerprint}`"),
    ]
    return "\n".join(f"- {name}: {value}" for name, value in rows) + "\n"


def _forgotten(training: Run) -> list[tuple[str, str]]:
    """The share and number of the people to be forgotten, as far as the training run wrote them down.

    A model that unlearned earlier requests too (`data.earlier`) has unlearned their people as well.
    """
    rows, earlier = [], 0
    if training.config.is_file():
        data = (safe_load(training.config.read_text(encoding="utf-8")) or {}).get("data") or {}
        ratio, earlier = data.get("forget_ratio"), len(data.get("earlier") or ())
        rows += [("Forget ratio", f"{ratio} %")] if ratio else []
    if training.subjects.is_file():
        record = json.loads(training.subjects.read_text(encoding="utf-8"))
        if count := len(record.get(str(Part.forgot), [])):
            parts = f" ({count} in this request, {earlier} in earlier ones)" if earlier else ""
            rows.append(("People unlearned", f"{count + earlier}{parts}"))
    return rows


def _checks(facts: Facts) -> str:
    lines = ["## Is it the model that was trained?\n"]
    if facts.merging:
        lines.append(f"- Merging the adapter in float32 {_words(facts.merging)}.")
    lines.append(f"- This folder, opened again, against the model that it was made from: it {_words(facts.storing)}.")
    return "\n".join(lines) + "\n"


def _words(found: Difference) -> str:
    return (
        f"moves a logit by at most {found.largest:.3g} ({found.relative:.2g} of the largest) and leaves "
        f"{found.same_replies:.0%} of {found.examples} greedy answers as they were"
    )


def _numbers(facts: Facts) -> str:
    if not facts.evaluations:
        return ""
    lines = ["## Benchmark\n", "| model | fingerprint | task | metric | value | questions |", "|---|---|---|---|---|---|"]
    for folder in facts.evaluations:
        lines += _rows(Path(folder), facts)
    return "\n".join(lines) + "\n\nOnly rows that say “this file” were measured on the weights in this folder.\n"


def _rows(folder: Path, facts: Facts) -> list[str]:
    file = Run(folder).results
    try:
        results = json.loads(file.read_text(encoding="utf-8"))
        model = results["model"]
        asked = dict.fromkeys(facts.source_fingerprints, "what this file was made from") | {facts.fingerprint: "this file"}
        whose = asked.get(model["fingerprint"], "another model")
        label = model.get("label") or (model["method"] if model["role"] == "unlearned" else model["role"])
        rows = []
        for task, metrics in results["tasks"].items():
            name, found = next(iter(metrics.items()))
            value = "–" if found["value"] is None else f"{found['value']:.3f}"
            rows.append(f"| {label} | `{model['fingerprint'][:8]}` ({whose}) | {task} | {name} | {value} | {found['count']} |")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, StopIteration) as error:
        raise ConfigError(
            f"export.evaluations: {folder} holds no results that can be read ({error}). Name folders that `mmunlearn evaluate` "
            "has finished; of one with several ways of asking, name the folder below it."
        ) from error
    return rows


def _made(environment: Mapping[str, Any]) -> str:
    """Command and versions. Of the settings typed only those of the export itself: others name folders, and people."""
    words = [word for word in str(environment["command"]).split() if word.startswith(PUBLIC_SETTINGS)]
    command = " ".join(["mmunlearn export", *words])
    packages = ", ".join(f"{name} {version}" for name, version in environment["packages"].items())
    return f"## How it was made\n\n```bash\n{command}\n```\n\nPython {environment['python']}; {packages}.\n"
