"""The settings that take one of a few words."""

from enum import StrEnum


class Mode(StrEnum):
    """How a part of the model is changed."""

    freeze = "freeze"
    lora = "lora"
    full = "full"


class Scheduler(StrEnum):
    """How the learning rate goes on after the warm-up."""

    linear = "linear"
    cosine = "cosine"
    constant = "constant"


class ImageCache(StrEnum):
    """Whether pictures are encoded once a run."""

    auto = "auto"
    off = "off"


class Role(StrEnum):
    """What a model stands for in a comparison."""

    base = "base"
    vanilla = "vanilla"
    gold = "gold"
    gold_text = "gold_text"
    unlearned = "unlearned"


class TrainSplit(StrEnum):
    """The people that a fine-tuning run learns."""

    full = "full"
    """Everybody: a vanilla model."""
    retain = "retain"
    """The retain people alone: a gold model."""
    retain_and_text = "retain_and_text"
    """The retain people, and the forget people's questions without a picture: a gold_text model."""


class Goal(StrEnum):
    """What unlearning is after, and so what perfect forgetting would look like."""

    erase = "erase"
    """Forget with and without the picture; perfect is the gold model."""
    visual_only = "visual_only"
    """Lose the recognition, keep the text facts (MMUnlearner); perfect is the gold_text model."""


class Modality(StrEnum):
    """With or without the picture."""

    image = "image"
    text = "text"
    both = "both"


class Schedule(StrEnum):
    """How forget and retain examples share the steps."""

    joint = "joint"
    """Both in every step."""
    alternating = "alternating"
    """A step is about one of them, as in the published scripts."""


class Scope(StrEnum):
    """What a saliency mask acts on."""

    forget = "forget"
    """The gradient of the forget term; retain terms change every tuned weight."""
    update = "update"
    """Everything: no weight outside the mask moves by one bit."""


class Modules(StrEnum):
    """The weights that a saliency mask covers."""

    language = "language"
    """The language part with its head."""
    vision = "vision"
    """The vision part and the projector."""
    both = "both"


class Rule(StrEnum):
    """How a saliency mask chooses weights."""

    fisher_ratio = "fisher_ratio"
    """MMUnlearner: mean squared gradient on forget against that on preserve."""
    forget_gradient = "forget_gradient"
    """SalUn: the largest gradients of the forget loss, so many as `saliency.density` says."""
    magnitude = "magnitude"
    """Control: the largest weights, as many in each tensor as the mask `saliency.like` selects."""
    random = "random"
    """Control: drawn at random, as many in each tensor as the mask `saliency.like` selects."""


class Per(StrEnum):
    """What is squared before it is averaged."""

    example = "example"
    """The gradient of one example: the empirical Fisher information."""
    batch = "batch"
    """The gradient of a batch, as the published script does; depends on the batch size."""


class Reduction(StrEnum):
    """How the token losses of an example (of a batch, with `saliency.per=batch`) are put together."""

    mean = "mean"
    sum = "sum"


class Choice(StrEnum):
    """Which choice score is reported as `accuracy`."""

    letter = "letter"
    text = "text"


class Protocol(StrEnum):
    """Whose evaluation rules."""

    fixed = "fixed"
    """Ours."""
    official = "official"
    """The published scripts': their prompts, parsing and counting."""
    both = "both"
    """One after the other, the model loaded once; each in a folder of its own. Never what a single question is asked by."""


class Shots(StrEnum):
    """Whether solved questions stand before the one that is asked."""

    zero_shot = "zero_shot"
    few_shot = "few_shot"
    both = "both"
    """As in `Protocol`."""


class Launcher(StrEnum):
    """Where the jobs of a sweep run."""

    local = "local"
    """On this machine."""
    slurm = "slurm"
    """Through a cluster's queue, by submitit."""


class Quantise(StrEnum):
    """What the weights of linear layers are rounded to."""

    none = "none"
    int8 = "int8"
    """To the nearest of 8 bits, a step for each row."""
    int4 = "int4"
    """To the nearest of 4 bits, a step for each 32 neighbours in a row."""
    nf4 = "nf4"
    """QLoRA's 4 bits; adapters can be trained on top."""
