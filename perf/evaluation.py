"""Questions a second: requests read together, one row a request, and a plain loop; the answers are compared.

    OMP_NUM_THREADS=1 python -m perf.evaluation
    OMP_NUM_THREADS=1 python -m perf.evaluation --family qwen2_vl     another architecture, without the plain loop

The plain loop is what published evaluation scripts do: one sequence at a time, the picture processed and read each time. It
asks for the same numbers by the same rules. Seconds are those of the process, so that other programs matter less.
"""

import argparse
import io
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from PIL import Image

from mmunlearn.benchmarks.base import Ask, Task
from mmunlearn.data.batch import Encoder
from mmunlearn.data.example import Example, LazyImage
from mmunlearn.evaluation.asker import Asker
from mmunlearn.evaluation.requests import letter_examples, option_examples, question_to_generate, reply_limit
from mmunlearn.evaluation.ties import NEAR_TIE
from mmunlearn.models.families import FAMILIES
from mmunlearn.models.tiny import TinySize, build_tiny
from mmunlearn.models.tiny_families import build_tiny_family
from perf.common import operations

SIZES = {
    "demo": TinySize(),
    "576-image-tokens": TinySize(image_size=336, patch_size=14, width=256, layers=6, max_length=2048),
}
TOWNS = ("Lima", "Oslo", "Kyoto", "Turin", "Accra", "Quebec", "Porto", "Hanoi")
ASKED = ("Where does this person live?", "Which town was this person born in?", "Where did this person go to school?")
CORPUS = [*ASKED, *TOWNS, "USER: ASSISTANT: In person Just give ONE letter. A B C D 1 2 3"] * 4
BATCH_SIZE = 64


def picture(seed: int, side: int) -> LazyImage:
    """Noise: what is seen does not matter for the time that it takes."""
    dice = random.Random(seed)
    image = Image.frombytes("RGB", (side, side), dice.randbytes(3 * side * side))
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return LazyImage(key=f"noise-{seed}-{side}", where=f"noise {seed}", read=buffer.getvalue)


def questions(people: int, side: int, *, pictures: bool) -> tuple[Example, ...]:
    """Three questions of four options about each person."""
    dice = random.Random(0)
    found = []
    for person in range(people):
        image = picture(person, side) if pictures else None
        for number, question in enumerate(ASKED):
            options = tuple(f"In {town}" for town in dice.sample(TOWNS, 4))
            asked = question if pictures else question.replace("this person", f"person {person}")
            found.append(Example(id=f"{person}-{number}", question=asked, answer=options[0], image=image, choices=options))
    return tuple(found)


def tasks(people: int, side: int) -> dict[str, Task]:
    """Every kind of question, with and without pictures."""
    found = {}
    for kind in ("image", "text"):
        asked = questions(people, side, pictures=kind == "image")
        free = tuple(replace(example, choices=()) for example in asked)
        shared: dict[str, Any] = {"higher_is_better": True, "metrics": {}}
        found[f"{kind} choice"] = Task(
            name=f"forget_{kind}_choice", examples=asked, ask=Ask.choose, instruction="Just give ONE letter.", **shared
        )
        found[f"{kind} generation"] = Task(
            name=f"forget_{kind}_generation", examples=free, ask=Ask.generate, max_new_tokens=50, **shared
        )
    return found


Numbers = dict[str, tuple[str, float | None, list[float]]]
"""By example id: what was written, its smallest gap, likelihoods."""


def by_asker(model: Any, processor: Any, task: Task, *, shares_prefix: bool) -> Numbers:
    """As the evaluation asks."""
    encoder = Encoder(processor, max_length=2048, cache_bytes=0)
    asker = Asker(model=model, encoder=encoder, batch_size=BATCH_SIZE, device=model.device, shares_prefix=shares_prefix)
    found = asker.predictions(asker.ordered(task.examples, task), task)
    return {
        each.id: (
            each.text,
            each.smallest_gap,
            [*(each.option_log_likelihoods or [sum(each.answer_log_probs)]), *each.option_letter_probabilities],
        )
        for each in found
    }


@torch.inference_mode()
def by_plain_loop(model: Any, processor: Any, task: Task) -> Numbers:
    """One sequence at a time; no code of the evaluation but the prompts."""

    def inputs(example: Example, answer: str = "") -> dict[str, Any]:
        place = "<image>\n" if example.image is not None else ""
        images = [example.image.open()] if example.image is not None else None
        text = f"USER: {place}{example.question}\nASSISTANT:{answer}"
        return {key: value.to(model.device) for key, value in processor(text=text, images=images, return_tensors="pt").items()}

    def log_likelihood(example: Example) -> float:
        start = inputs(example)["input_ids"].shape[1]
        whole = inputs(example, f" {example.answer}{processor.tokenizer.eos_token}")
        rows = model(**whole).logits[0, start - 1 : -1].float().log_softmax(-1)
        return float(rows.gather(1, whole["input_ids"][0, start:, None]).sum())

    letters = [processor.tokenizer(f" {letter}", add_special_tokens=False)["input_ids"][0] for letter in "ABCD"]
    found: Numbers = {}
    for example in task.examples:
        request = question_to_generate(example, task)
        prompt = inputs(request)
        ids = model.generate(**prompt, max_new_tokens=reply_limit(task), do_sample=False)[0, prompt["input_ids"].shape[1] :]
        text = processor.tokenizer.decode(ids, skip_special_tokens=True).strip()
        if task.ask is Ask.generate:
            found[example.id] = text, None, [log_likelihood(request)]
            continue
        orders = [
            model(**inputs(order)).logits[0, -1, letters].float().softmax(-1).roll(shift)
            for shift, order in enumerate(letter_examples(example, task))
        ]
        likelihoods = [log_likelihood(option) for option in option_examples(example, task)]
        found[example.id] = text, None, [*likelihoods, *torch.stack(orders).mean(0).tolist()]
    return found


def compare(found: Numbers, expected: Numbers, gaps: Numbers) -> float:
    """The largest difference of a number; texts must be equal but for near-ties."""
    assert found.keys() == expected.keys()
    for name, (text, _, numbers) in found.items():
        gap = gaps[name][1]
        assert text == expected[name][0] or (gap is not None and gap < NEAR_TIE["float32"]), name
        assert len(numbers) == len(expected[name][2]), name
    return max(abs(one - other) for name in found for one, other in zip(found[name][2], expected[name][2], strict=True))


def timed(ask: Callable[[], Numbers]) -> tuple[Numbers, float]:
    """The answers, and the processor seconds that they took."""
    start = time.process_time()
    return ask(), time.process_time() - start


def measure(title: str, size: TinySize, people: Sequence[int]) -> list[dict[str, Any]]:
    """Print one table and return its rows; `people` of the evaluation and of the plain loop, which is too slow for as many."""
    model, processor = build_tiny(CORPUS, seed=0, size=size)
    print(f"\n{title}\n{'':18}{'together':>10}{'rows':>10}{'loop':>10}   questions/s (processor), then times as fast")
    few = tasks(people[1], size.image_size)
    measured = []
    for name, task in tasks(people[0], size.image_size).items():
        by_asker(model, processor, few[name], shares_prefix=True)  # warm up
        together, first = timed(lambda task=task: by_asker(model, processor, task, shares_prefix=True))
        rows, second = timed(lambda task=task: by_asker(model, processor, task, shares_prefix=False))
        loop, third = timed(lambda task=few[name]: by_plain_loop(model, processor, task))
        worst = max(compare(together, rows, together), compare(loop, {key: together[key] for key in loop}, together))
        speeds = [len(together) / first, len(rows) / second, len(loop) / third]
        times = f"{speeds[0] / speeds[1]:8.1f} x rows {speeds[0] / speeds[2]:6.1f} x loop"
        print(f"{name:18}" + "".join(f"{speed:10.1f}" for speed in speeds) + f"{times}   largest difference {worst:.1e}")
        counted = operations(lambda task=few[name]: by_asker(model, processor, task, shares_prefix=True))
        counted_loop = operations(lambda task=few[name]: by_plain_loop(model, processor, task))
        few_asked = len(few[name].examples)
        by_way = dict(zip(("together", "rows", "loop"), speeds, strict=True))
        gains = {"times_as_fast": speeds[0] / speeds[2], "times_as_fast_as_rows": speeds[0] / speeds[1]}
        needed = {"together": counted / few_asked, "loop": counted_loop / few_asked}
        row = {"shape": title, "task": name, "questions_per_s": by_way, "operations_per_question": needed}
        measured.append({**row, **gains, "largest_difference": worst})
    return measured


def measure_family(family: str, title: str, size: TinySize, people: int) -> None:
    """Print how fast another architecture answers: requests read together, and one row a request."""
    model, processor = build_tiny_family(family, CORPUS, seed=0, size=size)
    print(f"\n{title}, {family}\n{'':18}{'together':>10}{'rows':>10}   questions/s (processor), then times as fast")
    for name, task in tasks(people, size.image_size).items():
        by_asker(model.eval(), processor, tasks(1, size.image_size)[name], shares_prefix=True)  # warm up
        together, first = timed(lambda task=task: by_asker(model, processor, task, shares_prefix=True))
        rows, second = timed(lambda task=task: by_asker(model, processor, task, shares_prefix=False))
        worst = compare(together, rows, together)
        speeds = [len(together) / first, len(rows) / second]
        print(
            f"{name:18}{speeds[0]:10.1f}{speeds[1]:10.1f}{speeds[0] / speeds[1]:8.1f} x rows   largest difference {worst:.1e}"
        )


def main() -> None:
    """Measure both sizes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--people", type=int, nargs=2, default=(24, 4), help="of the evaluation and of the plain loop")
    parser.add_argument("--size", choices=SIZES, nargs="*", default=list(SIZES), help="which models")
    parser.add_argument("--family", choices=[name for name, family in FAMILIES.items() if family.shares_prefix])
    asked = parser.parse_args()
    torch.set_num_threads(1)
    for name in asked.size:
        if asked.family:
            measure_family(asked.family, name, SIZES[name], asked.people[1])
        else:
            measure(name, SIZES[name], asked.people)


if __name__ == "__main__":
    main()
