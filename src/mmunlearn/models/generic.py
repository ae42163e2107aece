"""A model's family: the row of the table, or, for any other vision-language model, one that is worked out from the model.

What is worked out: the vision part is the module that transformers' own `get_encoder("image")` returns, the language part that
of `get_decoder()` and the output embeddings, the projector a module with one of the names that transformers uses for it. Every
weight must lie in exactly one of the three; otherwise the model is refused, because it could not be said what is tuned, masked
or frozen.
"""

import re
from typing import Any

from peft import PeftModel
from torch import nn

from mmunlearn.errors import ConfigError
from mmunlearn.models.families import FAMILIES, Family, Part, check_parts

PROJECTOR_NAMES = (
    "multi_modal_projector",
    "connector",
    "merger",
    "deepstack_merger_list",
    "embed_vision",
    "aligner",
    "image_newline",
    "projector",
)
"""Last words of the names that transformers gives to modules or parameters between vision and language."""


def recognise(model: Any) -> Family:
    """The family of a model, after checking that every weight belongs to exactly one part; mends what the family must mend.

    Raises:
        ConfigError: the parts cannot be told apart; says which weights are left over.
    """
    family = find_family(model)
    check_parts((name for name, _ in model.named_parameters()), family)
    family.mend(model.get_base_model() if isinstance(model, PeftModel) else model)
    return family


def find_family(model: Any) -> Family:
    """The family of a model: from the table, else worked out.

    Raises:
        ConfigError: it is not in the table, and its vision, projector or language part cannot be found.
    """
    model_type = str(model.config.model_type)
    return FAMILIES[model_type] if model_type in FAMILIES else _worked_out(model, model_type)


def _worked_out(model: Any, model_type: str) -> Family:
    bare = model.get_base_model() if isinstance(model, PeftModel) else model
    paths = {id(module): path for path, module in bare.named_modules()}
    vision = paths.get(id(bare.get_encoder("image")), "")
    language = paths.get(id(bare.get_decoder()), "")
    missing = [f"its {part} part" for part, path in (("vision", vision), ("language", language)) if not path]
    names = [name for name, _ in bare.named_parameters()]
    between = _projector_prefixes(names, inside=language)
    missing += [] if between else ["its projector"]
    if missing:
        raise ConfigError(
            f"model.path holds a model of type {model_type!r}, which is not in the table of families, and "
            f"{' and '.join(missing)} cannot be found by the names that transformers uses, so it could not be said which "
            "weights are tuned. Add a row to mmunlearn/models/families.py."
        )
    head = paths.get(id(bare.get_output_embeddings()))
    inside = tuple(
        sorted({name.removeprefix(f"{vision}.").split(".")[0] for name in names if name.startswith(f"{vision}.")} - {""})
    )
    own_vision = tuple(
        f"{vision}.{word}." if f"{vision}.{word}" not in names else f"{vision}.{word}"
        for word in inside
        if not f"{vision}.{word}.".startswith(between)
    )
    prefixes = {
        Part.vision: own_vision,
        Part.projector: between,
        Part.language: (f"{language}.", *((f"{head}.",) if head else ())),
    }
    return Family(
        model_type=model_type,
        prefixes=prefixes,
        lora_modules=_linear_layers(bare, prefixes, head),
        notes=(
            f"{model_type} is not in the table of families. Its parts were worked out from names: "
            + "; ".join(f"{part} = {', '.join(name.rstrip('.') for name in own)}" for part, own in prefixes.items())
            + ". Not determined: weights that never get a gradient, which attention and precision work, and whether a batch of "
            "questions with and without an image gives each the loss that it has alone.",
        ),
    )


def _projector_prefixes(names: list[str], *, inside: str) -> tuple[str, ...]:
    """Prefixes of all parameters that have a projector's name on their path and do not lie in the language part."""
    found = set()
    for name in names:
        words = name.split(".")
        for index, word in enumerate(words):
            if word in PROJECTOR_NAMES and not name.startswith(f"{inside}."):
                found.add(".".join(words[: index + 1]) + ("" if index == len(words) - 1 else "."))
                break
    return tuple(sorted(found))


def _linear_layers(model: nn.Module, prefixes: dict[Part, tuple[str, ...]], head: str | None) -> dict[Part, str]:
    """A pattern of all linear layers of each part, but for the output embeddings; parts without any are left out."""
    layers = [path for path, module in model.named_modules() if type(module) is nn.Linear and path != head]
    patterns = {}
    for part, own in prefixes.items():
        # Layers of blocks that differ only in their number share a pattern.
        of_part = {re.sub(r"(?<=\\\.)\d+(?=\\\.)", r"\\d+", re.escape(path)) for path in layers if f"{path}.".startswith(own)}
        if of_part:
            patterns[part] = "|".join(sorted(of_part))
    return patterns
