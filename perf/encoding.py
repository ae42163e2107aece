"""What a question costs before the model sees it: put together from what is known of its picture, and by the processor.

    OMP_NUM_THREADS=1 python -m perf.encoding

Each question is read in nine ways: four options, four orders of their letters, to be answered freely; three questions share a
picture. What both return is compared, tensor by tensor.
"""

from typing import Any

import torch

from mmunlearn.data.batch import Encoder
from mmunlearn.data.example import ImageRef
from mmunlearn.data.processing import Processing
from mmunlearn.evaluation.requests import letter_examples, option_examples, question_to_generate
from mmunlearn.models.tiny import TinySize
from mmunlearn.models.tiny_families import build_tiny_family
from perf.common import in_turns
from perf.evaluation import CORPUS, tasks

FAMILIES = ("llava", "qwen2_vl", "mllama")
SIZE = TinySize(image_size=336, patch_size=14, width=32, layers=1, max_length=2048)
READINGS = 9
"""Texts that a question becomes."""
Text = tuple[str, tuple[ImageRef, ...]]


def texts(processor: Any, people: int, kind: str) -> list[Text]:
    """All texts that the questions about so many people become, with their pictures."""
    task = tasks(people, SIZE.image_size)[f"{kind} choice"]
    encoder = Encoder(processor, max_length=SIZE.max_length)
    found = []
    for example in task.examples:
        requests = [*option_examples(example, task), *letter_examples(example, task), question_to_generate(example, task)]
        assert len(requests) == READINGS
        found += [(f"{encoder.text(each)} {each.answer}", each.images()) for each in requests]
    return found


def by_processor(processor: Any, asked: list[Text]) -> list[dict[str, Any]]:
    """Asked anew each time."""
    begin = processor.tokenizer.bos_token
    return [
        dict(
            processor(
                text=text,
                **({"images": [image.open() for image in images]} if images else {}),
                **({"add_special_tokens": False} if begin and text.startswith(begin) else {}),
                return_tensors="pt",
            )
        )
        for text, images in asked
    ]


def by_us(processor: Any, asked: list[Text]) -> list[dict[str, Any]]:
    """As training and evaluation read them, from the first picture on."""
    process = Processing(processor)
    return [process(text, images) for text, images in asked]


def measure(people: int = 4, rounds: int = 5) -> list[dict[str, Any]]:
    """One row for each family and kind of question."""
    found = []
    for family in FAMILIES:
        processor = build_tiny_family(family, CORPUS, seed=0, size=SIZE)[1]
        for kind in ("image", "text"):
            asked = texts(processor, people, kind)
            for one, other in zip(by_processor(processor, asked), by_us(processor, asked), strict=True):
                assert one.keys() == other.keys()
                assert all(torch.equal(value, other[key]) for key, value in one.items())
            steps = {
                "processor": lambda _, asked=asked, processor=processor: float(len(by_processor(processor, asked))),
                "ours": lambda _, asked=asked, processor=processor: float(len(by_us(processor, asked))),
            }
            seconds = {name: row["processor_s"] for name, row in in_turns(steps, rounds).items()}
            questions = len(asked) / READINGS
            found.append(
                {
                    "family": family,
                    "kind": kind,
                    "ms_a_question": {name: 1000 * value / questions for name, value in seconds.items()},
                    "times_as_fast": seconds["processor"] / seconds["ours"],
                }
            )
    return found


if __name__ == "__main__":
    torch.set_num_threads(1)
    for row in measure():
        times = ", ".join(f"{name} {value:.1f} ms" for name, value in row["ms_a_question"].items())
        print(f"{row['family']:10} {row['kind']:6} {times}: {row['times_as_fast']:.1f} x")
