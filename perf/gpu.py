"""Samples a second, memory and share of the card's matmul rate for LLaVA-1.5-7B's shapes with random weights.

    python -m perf.gpu              on a CUDA device: adapters in bfloat16, full tuning in float32 with bfloat16 autocast
    python -m perf.gpu --tiny       the same on a CPU with a tiny model, to see that it works

Full tuning of 7 billion weights takes 16 bytes each (weights, gradients, two moments in float32): 113 GB. What does not fit
is reported as such. `--layers` takes fewer layers of the language part.
"""

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from accelerate import Accelerator
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

from mmunlearn.benchmarks.base import Ask, Task
from mmunlearn.config import Lora, PartTuning, SaliencyConfig, Tune
from mmunlearn.config_enums import Mode, Modules
from mmunlearn.data.batch import Encoder
from mmunlearn.data.example import Example
from mmunlearn.evaluation.asker import Asker
from mmunlearn.methods.base import TrainingData
from mmunlearn.models.families import LLAVA
from mmunlearn.saliency.estimate import SaliencyData, saliency_mask
from perf.common import SHAPES, build, matmul_rate, operations, questions
from perf.training import LANGUAGE, METHODS, Opened, Ours

ADAPTED = Tune(vision=PartTuning(mode=Mode.freeze), projector=PartTuning(mode=Mode.freeze), language=PartTuning(mode=Mode.lora))
VOCABULARY, IMAGE_TOKENS = 32064, 576
PEOPLE, BATCH_SIZE = 8, 4


def opened(asked: argparse.Namespace, dtype: torch.dtype, device: torch.device) -> Opened:
    """LLaVA-1.5-7B's shapes, or a tiny model; weights are random."""
    size = replace(SHAPES["demo" if asked.tiny else "llava-like"], max_length=2048)
    tiny, processor = build(size)
    if asked.tiny:
        return Opened(tiny.to(device=device, dtype=dtype), processor, size.max_length)
    vision = CLIPVisionConfig(
        image_size=336, patch_size=14, hidden_size=1024, intermediate_size=4096, num_hidden_layers=24, num_attention_heads=16
    )
    text = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=4096,
        intermediate_size=11008,
        num_hidden_layers=asked.layers,
        num_attention_heads=32,
        max_position_embeddings=4096,
        pad_token_id=processor.tokenizer.pad_token_id,
        eos_token_id=processor.tokenizer.eos_token_id,
    )
    image = {"image_token_id": tiny.config.image_token_id, "image_seq_length": IMAGE_TOKENS, "vision_feature_layer": -2}
    config = LlavaConfig(vision_config=vision, text_config=text, **image)
    default = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            model = LlavaForConditionalGeneration(config).eval()
    finally:
        torch.set_default_dtype(default)
    model.generation_config.pad_token_id = processor.tokenizer.pad_token_id
    model.generation_config.eos_token_id = processor.tokenizer.eos_token_id
    return Opened(model, processor, 2048)


def timed(device: torch.device, work: Callable[[], Any], repeats: int) -> float:
    """Mean seconds, behind one run to warm up."""
    work()
    wait(device)
    start = time.perf_counter()
    for _ in range(repeats):
        work()
    wait(device)
    return (time.perf_counter() - start) / repeats


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def data() -> TrainingData:
    return TrainingData(forget=questions("forget", PEOPLE, 336), retain=questions("retain", PEOPLE, 336))


def training(asked: argparse.Namespace, method: str, mode: str, device: torch.device, rate: float) -> dict[str, Any]:
    """One method, adapters or full."""
    cuda = device.type == "cuda"
    dtype = torch.bfloat16 if cuda and mode == "lora" else torch.float32
    accelerator = Accelerator(cpu=not cuda, mixed_precision="bf16" if cuda and mode == "full" else "no")
    run = Ours(
        opened(asked, dtype, device),
        METHODS[method],
        ADAPTED if mode == "lora" else LANGUAGE,
        data(),
        lora=Lora(dropout=0.0),
        accelerator=accelerator,
    )
    if cuda:
        torch.cuda.reset_peak_memory_stats(device)
    seconds = timed(device, lambda: run.step(0), asked.repeats)
    peak = torch.cuda.max_memory_allocated(device) if cuda else 0
    needed = operations(lambda: run.step(0))
    return {
        "samples_per_s": 2 * BATCH_SIZE / seconds,
        "seconds_a_step": seconds,
        "once_s": run.once_s,
        "share_of_matmul_rate": needed / seconds / rate,
        "peak_bytes": peak,
    }


def evaluation(asked: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    """Questions of four options with a picture."""
    loaded = opened(asked, torch.bfloat16 if device.type == "cuda" else torch.float32, device)
    examples = tuple(choice(example) for example in data().forget if example.image)
    task = Task(
        name="forget_image_choice",
        examples=examples,
        ask=Ask.choose,
        instruction="Just give ONE letter.",
        higher_is_better=True,
        metrics={},
    )

    def ask() -> None:
        # A new one each time: an asker answers nothing twice.
        encoder = Encoder(loaded.processor, max_length=loaded.max_length)
        asker = Asker(model=loaded.model.eval(), encoder=encoder, batch_size=16, device=device)
        list(asker.predictions(asker.ordered(examples, task), task))

    seconds = timed(device, ask, 1)
    return {"questions_per_s": len(examples) / seconds}


def choice(example: Example) -> Example:
    return replace(example, answer="In Oslo", choices=("In Oslo", "In Lima", "In Accra", "In Hanoi"))


def mask(asked: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    """The mask of all parts."""
    loaded = opened(asked, torch.bfloat16 if device.type == "cuda" else torch.float32, device)
    forget, retain = data().forget[:16], data().retain[:16]
    shown = [tuple(e for e in side if e.image) for side in (forget, retain)]
    texts = tuple(e for e in (*forget, *retain) if not e.image)
    sets = SaliencyData(forget=shown[0], preserve_language=(*texts, *shown[1]), preserve_vision=shown[1])
    encoder = Encoder(loaded.processor, max_length=loaded.max_length)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    start = time.perf_counter()
    saliency_mask(loaded.model, LLAVA, encoder, sets, SaliencyConfig(modules=Modules.both))
    wait(device)
    examples = len(sets.forget) + len(sets.preserve_language)
    peak = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 0
    return {"seconds": time.perf_counter() - start, "examples": examples, "peak_bytes": peak}


def main() -> None:
    """Print one JSON object a line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="a tiny model on the CPU")
    parser.add_argument("--layers", type=int, default=32, help="of the language part")
    parser.add_argument("--repeats", type=int, default=5, help="steps that are timed")
    parser.add_argument("--only", nargs="*", default=["lora", "full", "evaluation", "mask"], help="what to measure")
    asked = parser.parse_args()
    device = torch.device("cpu" if asked.tiny else "cuda")
    half = torch.float32 if asked.tiny else torch.bfloat16
    rate = matmul_rate(device, half, 512 if asked.tiny else 8192)
    show("card", {"name": "CPU" if asked.tiny else torch.cuda.get_device_name(device), "matmul_operations_per_s": rate})
    work: dict[str, Callable[[], dict[str, Any]]] = {}
    for mode in [mode for mode in ("lora", "full") if mode in asked.only]:
        for method in METHODS:
            work[f"{method} {mode}"] = lambda method=method, mode=mode: training(asked, method, mode, device, rate)
    for name, measured in (("evaluation", evaluation), ("mask", mask)):
        if name in asked.only:
            work[name] = lambda measured=measured: measured(asked, device)
    for name, measured in work.items():
        try:
            show(name, measured())
        except torch.cuda.OutOfMemoryError as error:
            show(name, {"does_not_fit": str(error).split(".")[0]})
        if device.type == "cuda":
            torch.cuda.empty_cache()


def show(name: str, found: dict[str, Any]) -> None:
    print(json.dumps({"what": name} | found), flush=True)


if __name__ == "__main__":
    main()
