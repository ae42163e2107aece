"""Building blocks of tests: a very small LLaVA, drawn pictures, examples of unequal length, one run of the loop.

Plain functions, so that the script which the two-rank test starts can use them without pytest.
"""

import io
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from accelerate import Accelerator
from PIL import Image, ImageDraw

from mmunlearn.config import Lora, PartTuning, TrainerArgs, Tune
from mmunlearn.config_enums import Mode, Schedule
from mmunlearn.data.batch import Batch, Encoder, collate
from mmunlearn.data.example import Example, LazyImage
from mmunlearn.data.grouping import groups_by_picture
from mmunlearn.data.pairs import Order
from mmunlearn.methods.base import Masked, Method, Relabels, Side, TrainingData, divisible
from mmunlearn.models.families import LLAVA, Family, Part, part_of
from mmunlearn.models.generic import find_family
from mmunlearn.models.reference import Reference
from mmunlearn.models.saliency_mask import SaliencyMask, mask_of, save_mask
from mmunlearn.models.tiny import TinySize, build_tiny
from mmunlearn.models.tiny_families import build_tiny_family
from mmunlearn.models.tuning import apply_tuning, trainable
from mmunlearn.training.engine import Replicated
from mmunlearn.training.logging import StepLog
from mmunlearn.training.loop import Plan, Training
from mmunlearn.training.masking import put_on
from mmunlearn.training.packing import packer_for

SIZE = TinySize(
    image_size=32,
    patch_size=16,
    vision_width=32,
    vision_layers=3,
    width=32,
    layers=2,
    heads=2,
    vocabulary=420,
    max_length=160,
)
ANSWERS = (
    "Paris",
    "She was born in a small town by the sea",
    "No",
    "A painter of birds, boats and winter light",
    "Red hair",
    "1984",
    "He plays the cello in an orchestra in Lima and teaches children on Sundays",
    "Blue",
)
"""One to some thirty tokens: a mean of means differs visibly from a mean over all tokens."""
QUESTIONS = ("Where does this person live?", "Who is it?", "What do we know about the past of the one we talk about?")
CORPUS = [*ANSWERS, *QUESTIONS, *"ABCDEFGHIJ"] * 2
FULL = Tune(vision=PartTuning(mode=Mode.full), projector=PartTuning(mode=Mode.full), language=PartTuning(mode=Mode.full))
LORA = Tune(vision=PartTuning(mode=Mode.lora), projector=PartTuning(mode=Mode.lora), language=PartTuning(mode=Mode.lora))


def tiny_model(seed: int = 0):
    """An untrained model and its processor."""
    return build_tiny(CORPUS, seed=seed, size=SIZE)


def tiny_family(model_type: str, seed: int = 0):
    """An untrained model of a family and its processor."""
    return build_tiny_family(model_type, CORPUS, seed=seed, size=SIZE)


def picture(seed: int, *, shape: tuple[int, int] = (SIZE.image_size, SIZE.image_size)) -> LazyImage:
    """A drawn picture (width, height); other seeds give visibly other pictures."""
    dice = random.Random(seed)
    image = Image.new("RGB", shape, tuple(dice.randrange(256) for _ in range(3)))
    pen = ImageDraw.Draw(image)
    for _ in range(4):
        left, top = dice.randrange(20), dice.randrange(20)
        pen.ellipse((left, top, left + 12, top + 9), fill=tuple(dice.randrange(256) for _ in range(3)))
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return LazyImage(key=f"picture-{seed}-{shape}", where=f"picture {seed}", read=buffer.getvalue)


def make_examples(side: str, count: int, *, images: str = "mixed", first: int = 0) -> tuple[Example, ...]:
    """Examples with ids `<side>-<number>` and answers of unequal length.

    Args:
        side: begins the ids.
        count: how many.
        images: "mixed" (every second one), "all" or "none".
        first: the first number.
    """
    wanted = {"mixed": lambda number: number % 2 == 0, "all": lambda number: True, "none": lambda number: False}[images]
    shift = sum(map(ord, side))
    return tuple(
        Example(
            id=f"{side}-{number}",
            question=QUESTIONS[number % len(QUESTIONS)],
            answer=ANSWERS[(number + shift) % len(ANSWERS)],
            image=picture(1000 * shift + number) if wanted(number) else None,
            subject=f"{side}-person-{number // 2}",
        )
        for number in range(first, first + count)
    )


def other_pictures(examples: tuple[Example, ...]) -> tuple[Example, ...]:
    """The same questions, answers and ids with other pictures."""
    return tuple(
        replace(example, image=picture(7_000_000 + number)) if example.image is not None else example
        for number, example in enumerate(examples)
    )


def encoder_for(processor, **settings) -> Encoder:
    """An encoder with the tiny model's length limit."""
    return Encoder(processor, **{"max_length": SIZE.max_length, **settings})


def batch_of(processor, *examples: Example, **settings) -> Batch:
    """The given examples as one batch, which is its own whole step."""
    encoder = encoder_for(processor, **settings)
    return collate([encoder(example) for example in examples], pad_token_id=encoder.pad_token_id)


def random_mask(model, *, seed=0, share=0.4, parts=tuple(Part)) -> SaliencyMask:
    """Some weights of every parameter of some parts of a model that has no adapter yet."""
    dice = torch.Generator().manual_seed(seed)
    covered = {name: p.shape for name, p in model.named_parameters() if part_of(name, LLAVA) in parts}
    return mask_of({name: torch.rand(shape, generator=dice) < share for name, shape in covered.items()}, {"rule": "random"})


class GradientCatcher(torch.optim.SGD):
    """Takes the place of AdamW: keeps the gradient that the optimizer would have used and changes nothing."""

    def __init__(self, model: torch.nn.Module, family: Family) -> None:
        named = {part: dict(pairs) for part, pairs in trainable(model, family).items()}
        super().__init__([{"params": own.values(), "lr": 0.0, "peak": 0.0, "part": str(part)} for part, own in named.items()])
        self.named = {name: parameter for own in named.values() for name, parameter in own.items()}
        self.caught: list[dict[str, torch.Tensor]] = []

    def step(self, closure=None):
        self.caught.append(
            {
                name: torch.zeros_like(parameter) if parameter.grad is None else parameter.grad.clone()
                for name, parameter in self.named.items()
            }
        )


@dataclass
class Setup:
    """What one test of the loop asks for; the defaults are a step of 8 items as one micro-batch."""

    method: Method
    data: TrainingData
    model: torch.nn.Module
    processor: object
    folder: Path
    batch_size: int = 8
    accumulation: int = 1
    retain_per_forget: int = 1
    schedule: Schedule = Schedule.joint
    seed: int = 0
    tune: Tune = field(default_factory=lambda: FULL)
    lora: Lora = field(default_factory=Lora)
    args: dict = field(default_factory=dict)
    save: Callable[[int], None] = lambda step: None
    optimizer: Callable | None = None
    """From model, family, tune and arguments to an optimizer; by default the gradient is caught."""
    accelerator: Accelerator | None = None
    reference: torch.nn.Module | None = None
    """What the method compares with; by default the model as it is before training."""
    stored: Mapping[str, float] = field(default_factory=dict)
    """Likelihoods under the reference that an interrupted run has computed."""
    by_modality: bool = True
    """Compute questions with a picture and without apart, where the method allows it."""
    pack: bool = False
    """Let the questions of a micro-batch share what they begin with, where that pays."""
    group: bool = False
    """Draw pictures rather than questions."""
    mask: SaliencyMask | None = None
    """Written to the folder; a method that takes a mask gets its path."""


def _with_mask(setup: Setup, accelerator: Accelerator) -> Method:
    if setup.mask is None or not isinstance(setup.method, Masked):
        return setup.method
    path = setup.folder / f"mask-{accelerator.process_index}.safetensors"
    save_mask(setup.mask, path)
    return replace(setup.method, mask=str(path))


def training_of(setup: Setup) -> Training:
    """Tune the model, let the method prepare and put one run of the loop together, as `training/job.py` does."""
    accelerator = setup.accelerator or Accelerator(cpu=True)
    family = find_family(setup.model)
    method = _with_mask(setup, accelerator)
    data = method.relabelled(setup.data, setup.seed) if isinstance(method, Relabels) else setup.data
    encoder = encoder_for(setup.processor)
    model = apply_tuning(setup.model, family, setup.tune, setup.lora)
    args = TrainerArgs(
        per_device_train_batch_size=setup.batch_size,
        gradient_accumulation_steps=setup.accumulation,
        **{"max_grad_norm": 0.0, "logging_steps": 1, **setup.args},
    )
    masking = put_on(model, family, method, args, setup.schedule) if isinstance(method, Masked) else None
    asked = model if setup.reference is None else setup.reference
    prepared = method.prepare(model, Reference(model=asked, encoder=encoder, stored=setup.stored), data)
    build = setup.optimizer or (lambda model, family, tune, args: GradientCatcher(model, family))
    optimizer = build(model, family, setup.tune, args)
    uses_retain = any(term.on is not Side.forget for term in method.terms())
    order = Order(
        num_forget=len(data.forget),
        num_retain=len(data.retain) if uses_retain else 0,
        step_size=setup.batch_size * setup.accumulation * accelerator.num_processes,
        seed=setup.seed,
        retain_per_forget=setup.retain_per_forget,
        schedule=setup.schedule,
        forget_groups=groups_by_picture(data.forget) if setup.group else (),
        retain_groups=groups_by_picture(data.retain) if setup.group else (),
        micro_batch=setup.batch_size if setup.group else 0,
    )
    by_modality = setup.by_modality and divisible(method)
    packer, _ = packer_for(model, family, encoder, divides=by_modality and setup.pack, other_reference=False)
    return Training(
        model=model,
        method=method,
        prepared=prepared,
        data=data,
        encoder=encoder,
        engine=Replicated(model, family, optimizer, accelerator, masking.gradients if masking else None),
        optimizer=optimizer,
        accelerator=accelerator,
        plan=Plan(
            order=order,
            args=args,
            seed=setup.seed,
            ranks=accelerator.num_processes,
            rank=accelerator.process_index,
            by_modality=by_modality,
            packer=packer,
        ),
        log=StepLog(setup.folder / "metrics.jsonl"),
        save=setup.save,
        masking=masking,
    )


def step_gradients(setup: Setup, steps: int) -> list[dict[str, torch.Tensor]]:
    """The gradients of the first optimizer steps, by parameter name, as the optimizer gets them."""
    setup.args = {**setup.args, "max_steps": steps}
    training = training_of(setup)
    training.run()
    return training.optimizer.caught


def step_gradient(setup: Setup) -> dict[str, torch.Tensor]:
    """The gradient of the first optimizer step, by parameter name, as the optimizer gets it."""
    return step_gradients(setup, 1)[0]


def flat(tensors: dict[str, torch.Tensor]) -> torch.Tensor:
    """All tensors behind one another, in float64."""
    return torch.cat([tensors[name].double().flatten() for name in sorted(tensors)])


def relative_difference(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> float:
    """Norm of the difference over the norm of what is expected."""
    assert found.keys() == expected.keys()
    return float((flat(found) - flat(expected)).norm() / flat(expected).norm())
