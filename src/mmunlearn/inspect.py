"""`mmunlearn inspect`: what a training batch really supervises, token by token, and the image that goes with it."""

from itertools import pairwise
from pathlib import Path
from typing import Any

from omegaconf import DictConfig
from rich.console import Console
from rich.text import Text
from torch import Tensor

from mmunlearn.benchmarks.opening import open_benchmark
from mmunlearn.config import ModelConfig, typed
from mmunlearn.data.batch import IGNORE, Encoded, Encoder
from mmunlearn.data.example import Example
from mmunlearn.data.processing import image_tokens
from mmunlearn.models.load import load_max_length, load_processor
from mmunlearn.run import write_atomically
from mmunlearn.training.job import job_data, open_method, relabelled

EXAMPLES_PER_SIDE = 4


def inspect_batches(config: DictConfig) -> None:
    """Print a few examples of each side with the supervised tokens coloured; saves their images as PNG in `run.dir`."""
    console = Console()
    settings = typed(config.model, ModelConfig)
    processor = load_processor(settings)
    method = open_method(config.trainer.method)
    data = relabelled(method, job_data(config, open_benchmark(config.data), method), config.run.seed)
    encoder = Encoder(processor, max_length=load_max_length(settings), answer_only=config.data.answer_only)
    folder = Path(config.run.dir) / "inspect"
    console.print("Supervised tokens are [bold black on green]marked[/]; all others are only read.\n")
    for side in ("forget", "retain"):
        examples = getattr(data, side)
        stride = max(1, len(examples) // EXAMPLES_PER_SIDE)
        for example in examples[::stride][:EXAMPLES_PER_SIDE]:
            console.print(_describe(encoder(example), processor, f"{side}  {example.id}"))
            if example.image is not None:
                console.print(f"  image: {_save_image(example, folder)}\n", highlight=False)


def _describe(encoded: Encoded, processor: Any, title: str) -> Text:
    tokens = encoded.inputs["input_ids"][0]
    supervised = int((encoded.labels != IGNORE).sum())
    text = Text(f"{title}  ({len(tokens)} tokens, {supervised} supervised)\n", style="bold")
    for start, stop, kind in _runs(tokens, encoded.labels, image_tokens(processor)):
        if kind == "image":
            text.append(f"<image × {stop - start}>", style="cyan")
        else:
            words = processor.tokenizer.decode(tokens[start:stop])
            text.append(words, style="bold black on green" if kind == "answer" else "")
    return text.append("\n")


def _runs(tokens: Tensor, labels: Tensor, of_image: set[int]) -> list[tuple[int, int, str]]:
    """Stretches of tokens of one kind: image, answer (supervised) or read."""
    kinds = [
        "image" if token in of_image else "answer" if label != IGNORE else "read"
        for token, label in zip(tokens.tolist(), labels.tolist(), strict=True)
    ]
    starts = [0, *(i for i in range(1, len(kinds)) if kinds[i] != kinds[i - 1]), len(kinds)]
    return [(start, stop, kinds[start]) for start, stop in pairwise(starts)]


def _save_image(example: Example, folder: Path) -> Path:
    assert example.image is not None
    image = example.image.open()
    path = folder / f"{example.id.replace('/', '_')}.png"
    write_atomically(path, lambda temporary: image.save(temporary, format="PNG"))
    return path
