"""What each rank of the test of sharding engines runs: every case once; rank 0 writes what came out.

    python -m torch.distributed.run --nproc_per_node 2 sharded.py FOLDER fsdp
    python -m torch.distributed.run --nproc_per_node 2 sharded.py FOLDER zero2
    python sharded.py FOLDER replicated

The last is what the others are compared with: one process, the same effective batch.
"""

import contextlib
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch.distributed.tensor import DTensor

sys.path.insert(0, str(Path(__file__).parents[1]))

from tiny_cases import FULL, LORA, SIZE, Setup, batch_of, make_examples, picture, tiny_model, training_of

from mmunlearn.config import Lora, PartTuning, Tune
from mmunlearn.config_enums import Mode, Schedule
from mmunlearn.data.batch import Encoder
from mmunlearn.data.pairs import Order
from mmunlearn.errors import StoppedError
from mmunlearn.methods.base import TrainingData
from mmunlearn.methods.grad_diff import GradDiff, RetainLoss
from mmunlearn.methods.kl_min import KLMin
from mmunlearn.methods.npo import NPO
from mmunlearn.models import checkpointing
from mmunlearn.models.device import open_accelerator
from mmunlearn.models.families import LLAVA
from mmunlearn.models.likelihood import answer_logits
from mmunlearn.models.load import save
from mmunlearn.models.reference import Reference
from mmunlearn.models.tuning import apply_tuning
from mmunlearn.training.checkpoint import load_checkpoint, local, save_checkpoint
from mmunlearn.training.dummies import evening
from mmunlearn.training.engines import Kind, freezer, open_engine, spread
from mmunlearn.training.optimizer import build_optimizer

STEP, ITEMS = 4, 5
"""Items in an optimizer step and in an epoch: the last step has one item, which leaves a rank without any."""
WEIGHTS = {"forget_weight": 0.7, "retain_weight": 1.3}
ADAPTERS = {"tune": LORA, "lora": Lora(r=4, alpha=8, dropout=0.0)}
BOTH = {
    "tune": Tune(projector=PartTuning(mode=Mode.full), language=PartTuning(mode=Mode.lora)),
    "lora": Lora(r=4, alpha=8, dropout=0.0),
}


@dataclass
class Case:
    """Two optimizer steps: a whole and an incomplete one."""

    data: TrainingData
    method: object
    accumulation: int = 1
    """Of two ranks; one process accumulates twice as often."""
    settings: dict = field(default_factory=dict)
    other: bool = False
    """Compare with another model than the one before training."""
    checkpointed: bool = False
    """Sharded, it does again what is cheap in the backward pass."""


def mixed():
    return TrainingData(forget=make_examples("forget", ITEMS), retain=make_examples("retain", ITEMS, first=1))


def images_on_rank_zero_only():
    """Rank 0 gets the even places of a step."""
    order = Order(num_forget=ITEMS, num_retain=ITEMS, step_size=STEP, seed=0)
    mine = [item for step in (0, 1) for item in order.step(step)[0::2]]
    seen = {"forget": {i for item in mine for i in item.forget}, "retain": {i for item in mine for i in item.retain}}
    return TrainingData(
        **{
            side: tuple(
                replace(example, image=picture(number)) if number in seen[side] else example
                for number, example in enumerate(make_examples(side, ITEMS, images="none"))
            )
            for side in seen
        }
    )


def texts():
    return TrainingData(
        forget=make_examples("forget", ITEMS, images="none"), retain=make_examples("retain", ITEMS, images="none")
    )


KL = GradDiff(**WEIGHTS, retain_loss=RetainLoss.kl)
CASES = {
    "grad-diff-full": Case(images_on_rank_zero_only(), GradDiff(**WEIGHTS), settings={"tune": FULL}),
    "grad-diff-adapters": Case(images_on_rank_zero_only(), GradDiff(**WEIGHTS), settings=ADAPTERS),
    "npo-adapters": Case(images_on_rank_zero_only(), NPO(beta=0.3, **WEIGHTS), settings=ADAPTERS),
    "npo-accumulated": Case(mixed(), NPO(beta=0.3, **WEIGHTS), accumulation=2, settings=ADAPTERS),
    "kl-adapters": Case(images_on_rank_zero_only(), KLMin(**WEIGHTS), settings=ADAPTERS),
    "kl-both": Case(mixed(), KLMin(**WEIGHTS), accumulation=2, settings=BOTH),
    "kl-full": Case(mixed(), KL, accumulation=2, settings={"tune": FULL}),
    "kl-other": Case(mixed(), KL, settings={"tune": FULL}, other=True),
    "checkpointed": Case(mixed(), KLMin(**WEIGHTS), accumulation=2, settings=ADAPTERS, checkpointed=True),
    "texts": Case(texts(), GradDiff(**WEIGHTS), settings={"tune": FULL}),
    "alternating": Case(mixed(), GradDiff(**WEIGHTS), settings={"tune": FULL, "schedule": Schedule.alternating}),
    "clipped": Case(mixed(), GradDiff(**WEIGHTS), settings={"tune": FULL, "args": {"max_grad_norm": 0.5}}),
}
CONFIGS = Path(__file__).parents[2] / "configs/deepspeed"
ENGINES = {
    "replicated": (Kind.replicated, {}),
    "fsdp": (Kind.fsdp, {"fsdp": True}),
    "zero2": (Kind.deepspeed, {"deepspeed": str(CONFIGS / "zero2.json")}),
    "zero3": (Kind.deepspeed, {"deepspeed": str(CONFIGS / "zero3.json")}),
}
REFUSED = {"zero3": ("kl-both", "kl-full")}
"""Cases that an engine refuses."""
RATE = 0.05


def whole(parameter):
    """A copy of a parameter's gradient, gathered if it is sharded."""
    if parameter.grad is None:
        return torch.zeros(parameter.shape)
    return parameter.grad.full_tensor() if isinstance(parameter.grad, DTensor) else parameter.grad.clone()


class Catching(torch.optim.SGD):
    """SGD that keeps the gradients it is given, whole; stands still until `move` is called."""

    def __init__(self, model):
        self.named = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
        super().__init__([{"params": list(self.named.values()), "lr": 0.0, "peak": 0.0, "part": "language"}])
        self.caught = []

    def step(self, closure=None):
        self.caught.append({name: whole(parameter) for name, parameter in self.named.items()})
        super().step()


class Watched:
    """A DeepSpeed engine whose gradients are kept, whole, before each step."""

    def __init__(self, engine, caught):
        self.engine, self.caught = engine, caught

    def __getattr__(self, name):
        return getattr(self.engine, name)

    def step(self, max_norm):
        from deepspeed.utils import safe_get_full_grad

        named = {name: parameter for name, parameter in self.engine.model.named_parameters() if parameter.requires_grad}
        found = {name: safe_get_full_grad(parameter) for name, parameter in named.items()}
        self.caught.append({name: torch.zeros(shape_of(named[name])) if g is None else g.clone() for name, g in found.items()})
        return self.engine.step(max_norm)


def shape_of(parameter):
    return getattr(parameter, "ds_shape", parameter.shape)


def sgd(kind, model, args):
    if kind is not Kind.deepspeed:
        return Catching(model)
    tuned = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return torch.optim.SGD([{"params": tuned, "lr": 0.0, "peak": 0.0, "part": "language"}])


def adamw(kind, model, args):
    return build_optimizer(model, LLAVA, FULL, args)


def assemble(name, case, folder, accelerator, build):
    """One run of the loop on an engine, put together as `training/job.py` does."""
    kind, chosen = ENGINES[name]
    ranks = accelerator.num_processes
    torch.manual_seed(3)  # the initial weights of adapters
    model, processor = tiny_model()
    setup = Setup(case.method, case.data, model, processor, folder)
    setup.batch_size, setup.accumulation = STEP // (2 * case.accumulation), case.accumulation * 2 // ranks
    setup.accelerator = accelerator
    for name, value in case.settings.items():
        setattr(setup, name, value)
    setup.args = {**setup.args, **chosen}
    tuned = apply_tuning(model, LLAVA, setup.tune, setup.lora)
    for name, parameter in tuned.named_parameters():
        if "lora_B" in name:  # as if it had learned something: at 0 the divergence from the model below would be 0
            torch.nn.init.normal_(parameter, std=0.05)
    if case.checkpointed and kind is not Kind.replicated:
        checkpointing.THIN = 8  # or no layer of the tiny model would be large
        checkpointing.checkpoint_activations(tuned, selective=chosen.get("deepspeed") != str(CONFIGS / "zero3.json"))
    sharded = spread(kind, tuned, accelerator)
    encoder = Encoder(processor, max_length=SIZE.max_length)
    asked = spread(kind, tiny_model(seed=1)[0].requires_grad_(False).eval(), accelerator) if case.other else sharded
    plain = training_of(replace(setup, model=tiny_model()[0], optimizer=lambda *args: None))  # for order, plan and log
    args = plain.plan.args
    engine = open_engine(kind, sharded, LLAVA, build(kind, sharded, args), accelerator, args)
    reference = Reference(model=asked, encoder=encoder, freeze=freezer(kind, args))
    prepared = case.method.prepare(sharded, reference, case.data)
    alike = kind is not Kind.replicated
    return replace(
        plain,
        model=engine.asked,
        prepared=prepared,
        optimizer=engine.optimizer,
        engine=engine,
        encoder=encoder,
        plan=replace(plain.plan, by_modality=not alike),
        even=evening(case.data, encoder, accelerator, always=kind is Kind.deepspeed) if alike else list,
    ), processor


def tensors_of(training):
    gathered = training.engine.gathered()
    if gathered is None:
        return {name: value.detach().clone() for name, value in training.engine.model.named_parameters() if value.requires_grad}
    trained = {name for name, value in training.engine.model.named_parameters() if value.requires_grad}
    return {name: value for name, value in gathered.weights.items() if name in trained}


def trained(engine, name, folder, accelerator):
    """Gradients and updates of a case; model and processor are saved, with logits from before."""
    training, processor = assemble(engine, CASES[name], folder / f"{name}-{engine}", accelerator, sgd)
    training = replace(training, plan=replace(training.plan, args=replace(training.plan.args, max_steps=2)))
    caught = getattr(training.optimizer, "caught", [])
    if ENGINES[engine][0] is Kind.deepspeed:
        training = replace(training, engine=Watched(training.engine, caught))
    before = tensors_of(training)
    training.run()
    found = {f"gradient {step}/{key}": value for step, own in enumerate(caught) for key, value in own.items()}
    for group in training.optimizer.param_groups:
        group["peak"] = RATE
    training.run()  # the same two steps again, and now they move
    found |= {f"update/{key}": value - before[key] for key, value in tensors_of(training).items()}
    with torch.no_grad():
        found["logits"] = answer_logits(training.model, batch_of(processor, *make_examples("probe", 3)))
    gathered = training.engine.gathered()
    if accelerator.is_main_process:
        save(training.engine.model, processor, folder / f"saved-{name}-{engine}", {}, gathered=gathered)
    return found


class StopAfterTwo:
    """Somebody who stops a run behind its second step."""

    asked = 0

    def __call__(self):
        self.asked += 1
        return self.asked == 2


def moments_of(training):
    """What the optimizer remembers on this rank, apart from its count of steps."""
    ranks = training.engine.ranks
    if ranks is not None and ranks.shards is not None:
        return {f"moment {key}": value for key, value in ranks.shards.tensors()[1].items() if "step" not in key}
    rows = [training.optimizer.state[p] for group in training.optimizer.param_groups for p in group["params"]]
    return {f"{key} {n}": local(value) for n, own in enumerate(rows) for key, value in own.items() if key != "step"}


def resumed(engine, folder, accelerator):
    """Weights and moments after four steps of AdamW: at a stretch, and stopped behind the second and resumed."""
    case = CASES["grad-diff-full"]
    case = replace(case, settings={**case.settings, "args": {"max_steps": 4, "learning_rate": 1e-2, "save_steps": 0}})
    states, found = folder / f"states-{engine}", {}
    for name in ("whole", "stopped", "resumed"):
        training, _ = assemble(engine, case, folder / f"{name}-{engine}", accelerator, adamw)
        ranks = training.engine.ranks
        state = {"key": "k", "model": training.engine.model, "optimizer": training.optimizer, "ranks": ranks}

        def save_state(step, state=state):
            if state["ranks"] is not None or accelerator.is_main_process:
                save_checkpoint(states, step=step, keep=1, **state)
            accelerator.wait_for_everyone()

        first = load_checkpoint(states, **state) if name == "resumed" else 0
        if name == "stopped":
            training = replace(training, save=save_state, asked_to_stop=StopAfterTwo())
        with contextlib.suppress(StoppedError):
            training.run(first_step=first)
        found |= {f"{name}/weight of {key}": value for key, value in tensors_of(training).items()}
        found |= {f"{name}/{key}": value for key, value in moments_of(training).items()}
        found[f"{name}/first"] = torch.tensor(first)
    return found


def main(folder, engine):
    accelerator = open_accelerator("cpu", bf16=False)
    found = {}
    for name in CASES:
        if name not in REFUSED.get(engine, ()):
            found |= {f"{name}/{key}": value for key, value in trained(engine, name, folder, accelerator).items()}
    found |= {f"resume/{key}": value for key, value in resumed(engine, folder, accelerator).items()}
    if accelerator.is_main_process:
        save_file({key: value.detach().clone().contiguous() for key, value in found.items()}, folder / f"{engine}.safetensors")
    accelerator.wait_for_everyone()
    accelerator.end_training()


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]), sys.argv[2])
