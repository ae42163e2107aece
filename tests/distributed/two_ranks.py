"""What each rank of the two-rank test runs: every case once; each rank writes the gradients or weights that came out.

    two_ranks.py FOLDER PORT

It loads the libraries once and then divides: into two ranks that meet at the port, with the environment that torchrun would
give them, and into the reference, one process with the same effective batch and without that environment.
"""

import copy
import json
import multiprocessing
import os
import sys
from dataclasses import dataclass, field, replace
from functools import cache
from multiprocessing.connection import wait
from pathlib import Path

import torch
from safetensors.torch import save_file

sys.path.insert(0, str(Path(__file__).parents[1]))

from tiny_cases import LORA, Setup, make_examples, picture, random_mask, step_gradients, tiny_model, training_of

from mmunlearn.config import Lora
from mmunlearn.config_enums import Schedule, Scope
from mmunlearn.data.pairs import Order
from mmunlearn.methods.base import TrainingData
from mmunlearn.methods.finetune import FineTune
from mmunlearn.methods.grad_diff import GradDiff
from mmunlearn.methods.kl_min import KLMin
from mmunlearn.methods.mmunlearner import MMUnlearner
from mmunlearn.methods.npo import NPO
from mmunlearn.models.device import open_accelerator
from mmunlearn.training.optimizer import build_optimizer
from mmunlearn.workers import end_with_parent

STEP = 4
"""Items in an optimizer step, shared by two ranks or done by one."""
WEIGHTS = {"forget_weight": 0.7, "retain_weight": 1.3}
METHOD = GradDiff(**WEIGHTS)


@dataclass
class Case:
    """One step, or a few."""

    data: TrainingData
    accumulation: int = 1
    """Of two ranks; one process accumulates twice as often."""
    method: object = METHOD
    settings: dict = field(default_factory=dict)
    steps: int = 1


def mixed(count):
    return TrainingData(forget=make_examples("forget", count), retain=make_examples("retain", count, first=1))


def one_to_forget():
    """A step on it leaves a rank without anything to do."""
    return TrainingData(forget=make_examples("forget", 1), retain=make_examples("retain", STEP))


def images_on_rank_zero_only():
    """Rank 0 gets the even places of a step."""
    data = TrainingData(retain=make_examples("retain", STEP, images="none"))
    order = Order(num_forget=0, num_retain=STEP, step_size=STEP, seed=0)
    mine = {item.retain[0] for item in order.step(0)[0::2]}
    return TrainingData(
        retain=tuple(
            replace(example, image=picture(number)) if number in mine else example for number, example in enumerate(data.retain)
        )
    )


def image_step_then_text_step():
    """Four steps of momentum over examples of which only some steps' have pictures."""
    order = Order(num_forget=0, num_retain=2 * STEP, step_size=STEP, seed=0)
    first = {item.retain[0] for item in order.step(0)}
    return TrainingData(
        retain=tuple(
            replace(example, image=picture(number)) if number in first else example
            for number, example in enumerate(make_examples("retain", 2 * STEP, images="none"))
        )
    )


CASES = {
    "mixed": Case(mixed(STEP)),
    "accumulated": Case(mixed(STEP), accumulation=2),
    "images-on-one-rank": Case(images_on_rank_zero_only(), method=FineTune()),
    "empty-micro-batch": Case(mixed(3), accumulation=2),
    "empty-rank": Case(mixed(1), accumulation=2),
    "text-only": Case(TrainingData(retain=make_examples("retain", STEP, images="none")), method=FineTune()),
    "adapters": Case(mixed(STEP), settings={"tune": LORA, "lora": Lora(r=4, alpha=8, dropout=0.0)}),
    "clipped": Case(mixed(STEP), settings={"args": {"max_grad_norm": 0.5}}),
    "npo": Case(mixed(3), accumulation=2, method=NPO(beta=0.3, **WEIGHTS)),
    "kl": Case(mixed(STEP), accumulation=2, method=KLMin(**WEIGHTS)),
    "alternating": Case(mixed(STEP), settings={"schedule": Schedule.alternating}, steps=2),
    "masked-forget": Case(mixed(STEP), accumulation=2, method=MMUnlearner(**WEIGHTS)),
    "masked-update": Case(mixed(STEP), accumulation=2, method=MMUnlearner(**WEIGHTS, scope=Scope.update)),
    "masked-adapters": Case(
        mixed(STEP),
        method=MMUnlearner(**WEIGHTS, scope=Scope.update),
        settings={"tune": LORA, "lora": Lora(r=4, alpha=8, dropout=0.0)},
    ),
    "clipped-before-mask": Case(
        one_to_forget(),
        method=MMUnlearner(**WEIGHTS, clip_before_mask=True),
        settings={"args": {"max_grad_norm": 0.5}, "schedule": Schedule.alternating},
        steps=2,
    ),
}


@cache
def pristine(seed):
    """The tiny model and its processor, built once; cases take copies."""
    return tiny_model(seed)


def setup_of(name, case, folder, accelerator):
    ranks = accelerator.num_processes
    torch.manual_seed(3)  # the initial weights of adapters
    accumulation = case.accumulation * 2 // ranks
    model, processor = copy.deepcopy(pristine(0))
    return Setup(
        case.method,
        case.data,
        model,
        processor,
        folder / f"{name}-{ranks}",
        batch_size=STEP // (2 * case.accumulation),
        accumulation=accumulation,
        accelerator=accelerator,
        reference=copy.deepcopy(pristine(1)[0]).eval(),
        mask=random_mask(model),
        **case.settings,
    )


def momentum(model, family, tune, args):
    return torch.optim.SGD(
        [{"params": [p for p in model.parameters() if p.requires_grad], "lr": 0.1, "peak": 0.1, "part": "language"}],
        momentum=0.9,
    )


def strict_update(folder, accelerator):
    """What 20 steps of AdamW under a strict mask changed, and the mask, by parameter."""
    method = MMUnlearner(**WEIGHTS, scope=Scope.update)
    setup = setup_of("strict", Case(mixed(STEP), method=method), folder, accelerator)
    setup.args, setup.optimizer = {"max_steps": 20, "learning_rate": 1e-2}, build_optimizer
    training = training_of(setup)
    before = {name: value.detach().clone() for name, value in training.model.named_parameters() if value.requires_grad}
    training.run()
    after = dict(training.model.named_parameters())
    return {name: after[name].detach() - value for name, value in before.items()} | {
        f"mask of {name}": setup.mask.tensor(name) for name in before
    }


def main(folder):
    accelerator = open_accelerator("cpu", bf16=False)
    found = {}
    for name, case in CASES.items():
        caught = step_gradients(setup_of(name, case, folder, accelerator), case.steps)
        found[name] = {f"{step}/{key}": value for step, own in enumerate(caught) for key, value in own.items()}
    setup = setup_of("momentum", Case(image_step_then_text_step(), method=FineTune()), folder, accelerator)
    setup.args, setup.optimizer = {"max_steps": 4}, momentum
    training = training_of(setup)
    before = {name: value.detach().clone() for name, value in training.model.named_parameters()}
    training.run()
    after = dict(training.model.named_parameters())
    found["momentum"] = {name: after[name].detach() - value for name, value in before.items() if after[name].requires_grad}
    found["strict"] = strict_update(folder, accelerator)
    rank, ranks = accelerator.process_index, accelerator.num_processes
    save_file(
        {f"{case}/{name}": value.contiguous() for case, own in found.items() for name, value in own.items()},
        folder / f"rank-{rank}-of-{ranks}.safetensors",
    )
    (folder / f"rank-{rank}-of-{ranks}.json").write_text(json.dumps({"ranks": ranks, "threads": torch.get_num_threads()}))
    accelerator.wait_for_everyone()
    accelerator.end_training()


def one_of_them(folder, environment):
    """A process that the libraries were loaded for."""
    end_with_parent()
    os.environ.update(environment)
    main(folder)


def divide(folder, port):
    """The reference and two ranks, side by side; the first that fails ends all."""
    shared = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    environments = [{}, *({**shared, "RANK": rank, "LOCAL_RANK": rank} for rank in "01")]
    fork = multiprocessing.get_context("fork")
    running = [fork.Process(target=one_of_them, args=(folder, own), daemon=True) for own in environments]
    for process in running:
        process.start()
    while running:
        wait([process.sentinel for process in running])
        if any(process.exitcode for process in running):
            sys.exit(1)
        running = [process for process in running if process.is_alive()]


if __name__ == "__main__":
    torch.set_num_threads(1)
    divide(Path(sys.argv[1]), sys.argv[2])
