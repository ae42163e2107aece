"""Seconds of a saliency mask: ours, and a plain loop of one backward pass an example; the masks are compared.

OMP_NUM_THREADS=1 python -m perf.saliency
"""

import time
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mmunlearn.config import SaliencyConfig
from mmunlearn.config_enums import Modules
from mmunlearn.data.batch import Encoder
from mmunlearn.data.example import Example
from mmunlearn.models.families import LLAVA
from mmunlearn.saliency.estimate import SaliencyData, covered_parameters, saliency_mask
from perf.common import SHAPES, build, operations, questions
from perf.plain import encoded

ALIKE = 0.999
"""Share of weights on which the masks must agree: ratios next to the threshold may fall on either side."""


def ours(model: Any, processor: Any, size: int, data: SaliencyData, settings: SaliencyConfig) -> dict[str, Tensor]:
    encoder = Encoder(processor, max_length=size)
    mask = saliency_mask(model, LLAVA, encoder, data, settings)
    return {name: mask.tensor(name) for name in mask.shapes}


def plain(model: Any, processor: Any, data: SaliencyData, settings: SaliencyConfig) -> dict[str, Tensor]:
    """As the published script, but for single examples: the gradient of each, squared and added up."""
    covered = covered_parameters(model, LLAVA, settings.modules)
    model.requires_grad_(False)
    for parameter in covered.values():
        parameter.requires_grad_(True)

    def squares(examples: Sequence[Example]) -> dict[str, Tensor]:
        sums = {name: torch.zeros_like(parameter) for name, parameter in covered.items()}
        for example in examples:
            model.zero_grad()
            model(**encoded(processor, [example])).loss.backward()
            for name, parameter in covered.items():
                if parameter.grad is not None:
                    sums[name] += parameter.grad**2
        return {name: value / len(examples) for name, value in sums.items()}

    forget, preserve = squares(data.forget), squares(data.preserve_language)
    return {name: (forget[name] > 0) & (forget[name] >= preserve[name]) for name in covered}


def compare(shape: str, people: int, rounds: int) -> dict[str, Any]:
    """The language part's mask, both ways in turns."""
    forget, retain = (questions(side, people, SHAPES[shape].image_size) for side in ("forget", "retain"))
    shown = [[e for e in side if e.image] for side in (forget, retain)]
    texts = [e for e in (*forget, *retain) if not e.image]
    data = SaliencyData(forget=shown[0], preserve_language=(*texts, *shown[1]))
    settings = SaliencyConfig(modules=Modules.language)
    models = [build(SHAPES[shape]) for _ in range(2)]
    ways = {
        "ours": lambda: ours(*models[0], SHAPES[shape].max_length, data, settings),
        "plain": lambda: plain(*models[1], data, settings),
    }
    best = dict.fromkeys(ways, float("inf"))
    masks = {}
    for number in range(rounds):
        for name in list(ways) if number % 2 else list(ways)[::-1]:
            start = time.process_time()
            masks[name] = ways[name]()
            best[name] = min(best[name], time.process_time() - start)
    same = sum(int((masks["ours"][name] == masks["plain"][name]).sum()) for name in masks["plain"])
    share = same / sum(mask.numel() for mask in masks["plain"].values())
    assert share > ALIKE, share
    return {
        "shape": shape,
        "examples": len(data.forget) + len(data.preserve_language),
        "seconds": {name: {"processor_s": seconds} for name, seconds in best.items()},
        "times_as_fast": best["plain"] / best["ours"],
        "masks_agree_on": share,
        "operations": {name: operations(way) for name, way in ways.items()},
    }


def measure(rounds: int = 2) -> dict[str, Any]:
    """Both shapes."""
    return {"cases": [compare("llava-like", 8, rounds), compare("demo", 20, 2 * rounds)]}


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(measure())
