"""What a training run says before its first step: which weights change, on how much data, in how many steps."""

from collections.abc import Mapping, Sequence

from rich.console import Console
from rich.table import Table
from torch import nn

from mmunlearn.config import Tune
from mmunlearn.config_enums import Mode
from mmunlearn.data.example import Example, people_fingerprint
from mmunlearn.methods.base import Method, TrainingData
from mmunlearn.models.families import Family
from mmunlearn.models.tuning import summarise
from mmunlearn.training.loop import Plan
from mmunlearn.training.masking import Masking
from mmunlearn.training.optimizer import warmup_steps


def print_startup(
    console: Console,
    model: nn.Module,
    family: Family,
    tune: Tune,
    plan: Plan,
    data: TrainingData,
    tokens: Mapping[str, int],
    method: Method,
) -> None:
    """Print the tables; `tokens` are the supervised tokens of each side."""
    console.print(_weights_table(model, family, tune, plan))
    terms = ", ".join(f"{term.weight:+g} × {term.name}" for term in method.terms())
    sides = "; ".join(
        _side(side if data.forget else "to learn", getattr(data, side), count) for side, count in tokens.items() if count
    )
    args = plan.args
    size = f"{args.per_device_train_batch_size} × {args.gradient_accumulation_steps} accumulated × {plan.ranks} ranks"
    with_retain = ""
    if plan.order.alternates:
        with_retain = " of forget or of retain"
    elif plan.order.num_forget and plan.order.num_retain:
        with_retain = f", each with {plan.order.retain_per_forget} retain"
    console.print(f"{type(method).__name__}: minimises {terms}")
    console.print(sides)
    console.print(f"effective batch {plan.order.step_size} = {size}{with_retain}")
    console.print(
        f"{plan.total_steps} steps = {plan.total_steps / plan.order.steps_per_epoch:.2f} epochs, "
        f"{warmup_steps(args, plan.total_steps)} of warm-up, then {args.lr_scheduler_type}"
    )


def print_mask(console: Console, masking: Masking, family: Family, fingerprint: str, data: TrainingData) -> None:
    """Say what a saliency mask selects, what it acts on, and whether it was made from these weights and for these people.

    Args:
        console: where to.
        masking: the mask in force.
        family: the model's.
        fingerprint: of the model before training, see `model_fingerprint`.
        data: the examples of the run.
    """
    mask = masking.mask
    shares = ", ".join(f"{100 * chosen / size:.1f} % of {part}" for part, (chosen, size) in mask.counts(family).items())
    acts = (
        "no weight outside it will move"
        if masking.unmoved
        else "it holds the forget gradient, retain changes every tuned weight"
    )
    console.print(f"saliency mask ({mask.card.get('rule', 'unknown rule')}): selects {shares}; {acts}", highlight=False)
    made_from = mask.card.get("model", {}).get("fingerprint")
    if made_from != fingerprint:
        console.print(
            f"The mask was made from other weights ({made_from or 'unknown'}) than those of this model ({fingerprint}). "
            "That is right if only the precision differs; otherwise make it anew with `mmunlearn saliency`.",
            highlight=False,
        )
    made_for = mask.card.get("data", {}).get("forget_people")  # controls look at nobody
    if made_for not in (None, people_fingerprint(data.forget)):
        console.print(
            "The mask was made for other people than those to be forgotten now (or with saliency.limit). Make it anew with "
            "`mmunlearn saliency` and the same data settings, unless that is meant.",
            highlight=False,
        )


def _side(name: str, examples: Sequence[Example], tokens: int) -> str:
    people = len({example.subject for example in examples})
    return f"{name}: {len(examples):,} questions about {people} people, {tokens:,} supervised tokens"


def _weights_table(model: nn.Module, family: Family, tune: Tune, plan: Plan) -> Table:
    table = Table(title="Weights that change", title_justify="left")
    for column, justify in (("part", "left"), ("mode", "left"), ("tensors", "right"), ("trained", "right"), ("of", "right")):
        table.add_column(column, justify=justify)  # type: ignore[arg-type]
    table.add_column("learning rate", justify="right")
    for row in summarise(model, family, tune):
        own = getattr(tune, row.part).learning_rate
        rate = "–" if row.mode is Mode.freeze else f"{plan.args.learning_rate if own is None else own:g}"
        table.add_row(row.part, row.mode, f"{row.tensors:,}", f"{row.trainable:,}", f"{row.total:,}", rate)
    return table
