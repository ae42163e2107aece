"""The settings: a typed dataclass for every section. `config_check` holds a configuration against them."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from omegaconf import OmegaConf

from mmunlearn.config_enums import (
    Choice,
    Goal,
    ImageCache,
    Launcher,
    Modality,
    Mode,
    Modules,
    Per,
    Protocol,
    Quantise,
    Reduction,
    Role,
    Rule,
    Schedule,
    Scheduler,
    Shots,
    TrainSplit,
)

TARGET = "_target_"
Schema = TypeVar("Schema")


@dataclass
class RunConfig:
    """Where a run is written and what it is called."""

    dir: str = "outputs/run"
    """The run's folder; everything it writes is inside."""
    seed: int = 0
    """Decides data order, dropout and new weights."""
    role: Role | None = None
    """What the model stands for in a report; by default `unlearned`, `vanilla` (split full), `gold` (split retain) or
    `gold_text` (split retain_and_text)."""
    label: str = ""
    """How reports call the model; by default its role or method."""
    goal: Goal | None = None
    """What unlearning is after; by default what the method is made for (MMUnlearner: visual_only, others: erase)."""
    resume: bool | str = False
    """true: go on with an interrupted run in the same folder; latest: with the newest one of the same settings in the folder
    that `run.dir` is in."""
    overwrite: bool = False
    """Delete what an earlier run left in the folder and start anew."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""


@dataclass
class PartTuning:
    """How one part is tuned."""

    mode: Mode = Mode.freeze
    learning_rate: float | None = None
    """By default `trainer.args.learning_rate`."""


@dataclass
class Tune:
    """How each part is tuned."""

    vision: PartTuning = field(default_factory=PartTuning)
    projector: PartTuning = field(default_factory=PartTuning)
    language: PartTuning = field(default_factory=lambda: PartTuning(mode=Mode.lora))


@dataclass
class Lora:
    """Low-rank adapters, for the parts whose mode is `lora`."""

    r: int = 16
    alpha: int = 16
    dropout: float = 0.05


@dataclass
class ModelConfig:
    """Which model, and which of its weights change."""

    name: str = ""
    """A hub id; ignored when `path` is given."""
    path: str = ""
    """A folder with a saved model or adapter, or a hub id."""
    processor: str = ""
    """A folder or hub id with the processor, where the weights were saved without one."""
    dtype: str = "auto"
    """auto (as saved), float32, bfloat16 or float16."""
    attention: str = "sdpa"
    """transformers' attn_implementation."""
    quantise: Quantise = Quantise.none
    """Round the weights when the model is opened: int8 or int4 to be evaluated, nf4 to train adapters on it (QLoRA)."""
    trust_remote_code: bool = False
    """Run Python code that comes with the model. Off unless you trust its author."""
    tune: Tune = field(default_factory=Tune)
    peft: Lora = field(default_factory=Lora)


@dataclass
class DataConfig:
    """Which benchmark (`_target_` and its own fields) and how it is trained on."""

    split: TrainSplit = TrainSplit.full
    """Fine-tuning: whom to learn."""
    answer_only: bool = True
    """Supervise the answer alone (`ans_only` of the published scripts); otherwise the question too."""
    retain_per_forget: int = 1
    """Retain examples that go with each forget example (schedule joint)."""
    forget_modality: Modality | None = None
    """Unlearn the forget people's questions with the picture (image), without it (text) or both. By default both, and with
    run.goal=visual_only those with the picture."""


@dataclass
class TrainerArgs:
    """The names are those of transformers' TrainingArguments."""

    num_train_epochs: float = 1.0
    """Passes over the forget set (over `data.split` when fine-tuning)."""
    max_steps: int = -1
    """So many optimizer steps, whatever `num_train_epochs` says; -1: as many as the epochs take."""
    per_device_train_batch_size: int = 4
    gradient_accumulation_steps: int = 1
    learning_rate: float = 2e-5
    weight_decay: float = 0.0
    adam_beta1: float = 0.9
    adam_beta2: float = 0.999
    adam_epsilon: float = 1e-8
    max_grad_norm: float = 1.0
    """Clip the norm of the whole gradient; 0: never."""
    lr_scheduler_type: Scheduler = Scheduler.linear
    warmup_steps: float = 0.0
    """Steps, or a fraction of all steps if below 1."""
    logging_steps: int = 10
    save_steps: int = 500
    """Save a checkpoint every so many steps; 0: none."""
    stop_forget_loss: float = 0.0
    """Unlearning: end as soon as the loss on 16 watched forget questions is above this (nats an answer token; looked at every
    `logging_steps`); 0: never."""
    save_total_limit: int = 1
    """Keep so many checkpoints."""
    gradient_checkpointing: bool | str = False
    """Recompute activations in the backward pass in place of keeping them. selective: all but large matrix products
    and fused attention, for half of the memory or less; true: all of them, a third more time."""
    bf16: bool = False
    """Run the forward pass in bfloat16 autocast."""
    full_determinism: bool = False
    """On a GPU take only algorithms that repeat their bits, so that a repeated or resumed run ends with the same weights;
    slower. On a CPU every run does."""
    image_cache: ImageCache = ImageCache.auto
    """auto: where vision and projector are frozen, each picture is encoded once and kept in memory; off: in every step."""
    group_by_picture: bool = False
    """Draw pictures rather than questions: those about one picture share a micro-batch where they can and read it together.
    Faster the more questions a picture has; a step is then about fewer people."""
    dataloader_num_workers: int = 0
    """Processes that decode and tokenise ahead."""
    report_to: list[str] = field(default_factory=list)
    """Names of Accelerate trackers: tensorboard, wandb, trackio, mlflow, …; metrics.jsonl is always written."""
    fsdp: bool = False
    """Shard weights, gradients and the optimizer's state over the processes (FSDP2) instead of replicating them."""
    deepspeed: str | None = None
    """A DeepSpeed JSON file (ZeRO); without a GPU or DeepSpeed the run says so and goes on plainly."""


@dataclass
class TrainerConfig:
    """The method and how long it is run."""

    method: Any = None
    """`_target_` and the fields of the class that it names."""
    schedule: Schedule = Schedule.joint
    """Forget and retain in every step (joint), or in steps of their own (alternating, as the published scripts)."""
    reference: str = ""
    """The model that a method compares with: a folder, or `gold` to find the gold model that was trained on this retain set.
    Empty: the model before unlearning."""
    args: TrainerArgs = field(default_factory=TrainerArgs)


@dataclass
class SaliencyConfig:
    """How `mmunlearn saliency` works out which weights may be changed to forget."""

    rule: Rule = Rule.fisher_ratio
    """fisher_ratio (MMUnlearner), forget_gradient (SalUn), or a control: random, magnitude."""
    modules: Modules = Modules.language
    """The weights covered: language (with its head), vision (with the projector), or both; all others are to stay frozen."""
    threshold: float = 1.0
    """fisher_ratio: select a weight where forget is at least so many times preserve."""
    density: float = 0.5
    """forget_gradient: the share of weights selected, over all covered weights together."""
    like: str = ""
    """random, magnitude: a mask whose density in each tensor is copied."""
    per: Per = Per.example
    """Square the gradient of each example, or of each batch as the published script does."""
    loss: Reduction = Reduction.mean
    """Mean or sum over the supervised tokens."""
    epsilon: float = 0.0
    """Added to both sides of the ratio. With 0 a weight without any forget gradient is never selected; the published script
    adds 1e-15, so that a weight used by neither set (0/0) counts as selected."""
    batch_size: int = 4
    """Examples computed together; changes the mask only with per=batch."""
    limit: int = 0
    """Use only so many examples of each set, drawn by their ids; 0: all."""
    max_bytes: int = 0
    """Memory for the float32 sums; where it is short, groups of tensors are done one after the other. 0: no limit."""
    compare: list[str] = field(default_factory=list)
    """Masks whose overlap (Jaccard index) with the new one is reported."""


@dataclass
class EvaluationConfig:
    """How models are asked and scored."""

    protocol: Protocol = Protocol.fixed
    """fixed (our rules), official (the published scripts'), or both, each in a folder of its own below `run.dir`."""
    shots: Shots = Shots.zero_shot
    """few_shot: show solved questions about other people first (MLLMU-Bench); both: without and with them."""
    splits: tuple[str, ...] = ("forget", "test", "reworded", "retain", "real", "holdout", "general")
    """The groups of people to ask about."""
    batch_size: int = 16
    """Changes speed only."""
    devices: list[str] = field(default_factory=list)
    """Share the questions between processes, one on each of these devices: [0,1,2,3] are GPUs, [cpu,cpu] two processes.
    Empty: this process alone, on `run.device`."""
    choice: Choice | None = None
    """Which of the choice scores is reported as `accuracy`; all are kept. By default letter."""
    limit: int = 0
    """Ask only so many questions of each task, spread evenly over it; 0: all."""


@dataclass
class ReportConfig:
    """What the report shows."""

    title: str = "Unlearning report"
    show_subjects: bool = False
    """Print names, answers and portraits. Only for fictitious people or with their consent."""
    banner: str = ""
    """A warning above everything else."""
    evaluations: list[str] = field(default_factory=list)
    """Folders of evaluations, one a model; also such that hold several, by different rules."""
    trainings: list[str] = field(default_factory=list)
    """Folders of training runs, for their loss curves; labelled by folder name."""
    fold_seeds: bool = True
    """Show models that differ only in their seed as one row: the mean, an interval over people and seeds, and the spread."""
    gate_margin: float = 0.05
    """0 to 1; vanilla must surely beat gold by more than this before anything is called forgotten."""


@dataclass
class JudgeConfig:
    """Free answers rated for factuality by another model, behind any endpoint that speaks OpenAI's chat completions."""

    url: str = ""
    """Where it is, e.g. http://localhost:8000/v1."""
    model: str = ""
    """The judge's name at that endpoint."""
    key_variable: str = "OPENAI_API_KEY"
    """The environment variable that holds the key; the key itself is never written anywhere."""
    evaluations: list[str] = field(default_factory=list)
    """Folders of evaluations whose free answers are rated."""
    tasks: list[str] = field(default_factory=list)
    """Only these tasks; empty: every task of free answers."""
    limit: int = 0
    """Only so many answers of each task, drawn by their ids; 0: all."""
    parallel: int = 4
    """So many requests at a time."""
    timeout: float = 60.0
    """Seconds that one request may take."""
    retries: int = 5
    """So often is a request repeated that failed for a passing reason."""
    price_in: float = 0.0
    """Per million tokens read, for the estimate; 0: unknown."""
    price_out: float = 0.0
    """Per million tokens written."""
    yes: bool = False
    """Start without asking, whatever the estimate says."""


@dataclass
class PurgeConfig:
    """Which people's traces are deleted, and where."""

    subjects: list[str] = field(default_factory=list)
    """The people, as the benchmark's subjects name them."""
    folders: list[str] = field(default_factory=lambda: ["outputs"])
    """Everything below these folders is looked through."""
    yes: bool = False
    """Delete; otherwise only say what would be deleted."""


@dataclass
class ExportConfig:
    """A model written as it is to be deployed, with a card, after a comparison with what it was made from."""

    precision: Quantise = Quantise.none
    """none: floating-point numbers, of `model.dtype`; int8 or int4: rounded."""
    max_shard_size: str = "5GB"
    """Of one weight file."""
    evaluations: list[str] = field(default_factory=list)
    """Folders of evaluations whose main numbers go into the card."""
    examples: int = 16
    """So many questions are compared, every second one with a picture; of the benchmark where `data` names one."""
    tolerance: float = 1e-3
    """The largest difference of a logit that merging an adapter may make, relative to the largest logit."""


@dataclass
class DemoConfig:
    """The embedded demonstration: a trainer section for each model that is made."""

    cache: str = "outputs/cache"
    """Finished stages are kept here and found again by what went into them."""
    family: str = "llava"
    """The architecture of the tiny model, as transformers calls it: llava, qwen2_vl, mllama, …"""
    see: Any = None
    """First stage of the base model: visual questions alone."""
    base: Any = None
    """Second stage of the base model: public figures and all answer formats."""
    vanilla: Any = None
    """Base + everybody."""
    gold: Any = None
    """Base + the retain people."""
    gold_seeds: tuple[int, ...] = (0,)
    """A gold model for each; their difference is the noise floor of every gap."""
    gold_text: Any = None
    """Base + the retain people and the forget people's text questions; null: none is made."""
    masks: Any = None
    """A saliency section for each mask, by name; `like` names an earlier mask."""
    methods: Any = None
    """A trainer section for each unlearning method, by name; `method.mask` names one of the masks."""


@dataclass
class SweepConfig:
    """Many runs (`-m`), and what `mmunlearn sweep` makes of them."""

    parallel: int = 1
    """So many jobs at a time. 1: one after the other in one process; more: each in a process of its own."""
    launcher: Launcher = Launcher.local
    """local, or slurm (needs submitit): each job is then queued, and this process waits for them."""
    devices: list[str] = field(default_factory=list)
    """GPUs that jobs side by side share out, [0,1]; empty: every job sees all."""
    slurm: Any = None
    """Parameters of submitit: {slurm_partition: gpu, gpus_per_node: 1, timeout_min: 600}; `cluster: local` tries it out."""
    folder: str = ""
    """The sweep that `mmunlearn sweep` evaluates."""
    keep: float = 0.95
    """0 to 1; a setting qualifies that keeps so much of vanilla's retain number on the validation half."""
    seed: int = 0
    """Decides which people are in the validation half."""


@dataclass
class SequenceConfig:
    """Requests to forget people that come one after the other."""

    requests: list[Any] = field(default_factory=list)
    """[[ID,ID],[ID]]: people as the benchmark's subjects name them; or files with one person a line."""
    compare: list[str] = field(default_factory=list)
    """Further models, such as a gold one that never saw any of these people, that are asked the same."""


@dataclass
class Config:
    """Everything."""

    run: RunConfig = field(default_factory=RunConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    saliency: SaliencyConfig = field(default_factory=SaliencyConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    report: ReportConfig = field(default_factory=ReportConfig)
    judge: JudgeConfig = field(default_factory=JudgeConfig)
    purge: PurgeConfig = field(default_factory=PurgeConfig)
    export: ExportConfig = field(default_factory=ExportConfig)
    demo: DemoConfig = field(default_factory=DemoConfig)
    sweep: SweepConfig = field(default_factory=SweepConfig)
    sequence: SequenceConfig = field(default_factory=SequenceConfig)


def configs_folder() -> Path:
    """The YAML files: beside the package in an installed wheel, at the root of a source tree otherwise."""
    installed = Path(__file__).parent / "configs"
    return installed if installed.is_dir() else Path(__file__).parents[2] / "configs"


def typed(section: Any, schema: type[Schema]) -> Schema:
    """A section of a checked configuration as an instance of its dataclass."""
    instance: Schema = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(schema), section))  # type: ignore[assignment]
    return instance
