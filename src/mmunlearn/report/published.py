"""Numbers that papers print for MLLMU-Bench and CLEAR, as they print them. They are never mixed with measured ones.

Each table is copied digit by digit from its source (`Table.source`); where that is not the paper itself the caution says so.
A table is shown only where it can be compared: same benchmark, same share of people to be forgotten, same base model, the
published rules (`evaluation.protocol=official`), the same number of shots where that is known, and, where that is known, as
many questions and forget people as the published percentages are shares of. Who those people are is not compared: their names
are not part of this package.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any

import yaml

from mmunlearn.config_enums import Shots
from mmunlearn.report.collect import ZERO_SHOT, Collected, Evaluation
from mmunlearn.run import Run

FEW_SHOT = str(Shots.few_shot)
PERCENT = "percent"
RATIO = "ratio"
OTHER = "other"
"""Units of a column: percent and ratio become numbers from 0 to 1; others (averages of scores, logarithms) stay as printed."""

LLAVA_7B = "LLaVA-1.5-7B"
QWEN25_3B = "Qwen2.5-VL-3B"
QWEN25_7B = "Qwen2.5-VL-7B"
NOT_STATED = ""
_SPELLINGS = {
    LLAVA_7B: r"llava[-_]?v?1[._]5[-_]7b|llava[-_]vanilla",
    QWEN25_3B: r"qwen2[._]5[-_]vl[-_]3b",
    QWEN25_7B: r"qwen2[._]5[-_]vl[-_]7b",
}
"""How hub ids and folders spell the base models that have published numbers; `LLaVA_Vanilla` is MLLMU-Bench's own."""
_GENERATIONS = 10
"""So many trainings on top of each other are followed back to a base model."""


QUESTIONS: Mapping[tuple[str, int, str], Mapping[str, int]] = {
    ("mllmu", 5, ZERO_SHOT): {
        "forget_image_choice": 125, "forget_text_choice": 125, "retain_image_choice": 2370, "retain_text_choice": 2375,
    },
    ("mllmu", 5, FEW_SHOT): {"forget_image_choice": 120, "forget_text_choice": 120},
    ("mllmu", 10, FEW_SHOT): {"forget_image_choice": 245, "forget_text_choice": 245},
    ("clear", 5, ZERO_SHOT): {
        "forget_image_recognition": 188, "retain_image_recognition": 395, "real_image_recognition": 151,
    },
}  # fmt: skip
"""Of how many questions a task consists in the published data, by benchmark, forget ratio and shots; as found from the
published percentages (39.20 = 49/125, 51.56 = 1222/2370, 47.20 = 1121/2375, 49.2 = 59/120, 36.73 = 90/245, 72.34 = 136/188,
73.42 = 290/395, 94.7 = 143/151). Few-shot the person shown is not asked about. One retained profile of MLLMU-Bench has no
multiple choice with the image."""
PEOPLE: Mapping[tuple[str, int], int] = {
    ("mllmu", 5): 25, ("mllmu", 10): 50, ("mllmu", 15): 75, ("clear", 1): 2, ("clear", 5): 10, ("clear", 10): 20,
}  # fmt: skip
"""How many people are to be forgotten in the published data, by benchmark and forget ratio: shares of 500 and of 200."""


@dataclass(frozen=True, kw_only=True)
class Column:
    """One column of a published table."""

    name: str
    """What it holds, in words."""
    task: str = ""
    """The task of ours that it corresponds to; empty if none does."""
    metric: str = ""
    """The metric of ours that it corresponds to; empty if none does."""
    unit: str = OTHER


@dataclass(frozen=True, kw_only=True)
class Published:
    """One number."""

    benchmark: str
    base_model: str
    forget_ratio: int
    method: str
    column: Column
    printed: str
    """Digit by digit."""
    source: str
    caution: str

    @property
    def value(self) -> Decimal:
        """On the scale of our numbers: percents are divided by 100."""
        number = Decimal(self.printed)
        return number.scaleb(-2) if self.column.unit == PERCENT else number  # keeps every digit, zeros too

    def shown(self) -> str:
        """The value with all printed digits, a leading zero and a true minus sign."""
        return f"{self.value:f}".replace("-", "−")


@dataclass(frozen=True, kw_only=True)
class Table:
    """One published table, or a part of it about one benchmark and one base model."""

    source: str
    benchmark: str
    """As `data.name`: mllmu or clear."""
    base_model: str
    """Empty: the source does not say, so that nothing compares with it."""
    forget_ratio: int
    """In percent of the people."""
    shots: str
    """zero_shot or few_shot; empty: not known."""
    columns: tuple[Column, ...]
    text: str
    """One method a line: its name, then a number for each column."""
    caution: str = ""

    def rows(self) -> dict[str, tuple[str, ...]]:
        """The printed numbers by method."""
        lines = [line.split() for line in self.text.strip().splitlines()]
        return {line[0]: tuple(line[1:]) for line in lines}

    def by_method(self) -> dict[str, list[Published]]:
        """The numbers of each method, one a column."""
        found: dict[str, list[Published]] = {}
        for number in self.numbers():
            found.setdefault(number.method, []).append(number)
        return found

    def numbers(self) -> list[Published]:
        """One by one."""
        return [
            Published(
                benchmark=self.benchmark,
                base_model=self.base_model,
                forget_ratio=self.forget_ratio,
                method=method,
                column=column,
                printed=printed,
                source=self.source,
                caution=self.caution,
            )
            for method, row in self.rows().items()
            for column, printed in zip(self.columns, row, strict=True)
        ]


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What must be the same for a published number to stand beside a measured one."""

    benchmark: str
    protocol: str
    shots: str
    base_model: str
    """As in the tables; empty if it could not be told."""
    forget_ratio: int | None
    """In percent; None if it could not be told."""
    everything: bool = True
    """Whether all questions were asked (evaluation.limit=0)."""
    questions: Mapping[str, int] = field(default_factory=dict)
    """How many there were, by task."""
    forget_people: int | None = None
    """About how many people the forget tasks are; None if the scores of single questions were not kept."""


@dataclass(frozen=True, kw_only=True)
class Comparable:
    """The tables that compare, or why there are none."""

    tables: tuple[Table, ...]
    reason: str


def comparable(asked: Asked, tables: Sequence[Table]) -> Comparable:
    """Choose the tables of the same benchmark, rules, forget ratio and base model.

    A table whose shots are not known is kept, with a word on that in its caution; one whose base model is not stated never is.
    """

    def none(reason: str) -> Comparable:
        return Comparable(tables=(), reason=reason)

    known = sorted({table.benchmark for table in tables})
    if asked.benchmark not in known:
        return none(f"the benchmark is {asked.benchmark}, and published numbers are known for {' and '.join(known)}")
    if asked.protocol != "official":
        return none("the questions were asked by our own rules; evaluate with evaluation.protocol=official to compare")
    if not asked.everything:
        return none("not all questions were asked (evaluation.limit), and published numbers are about all of them")
    if asked.forget_ratio is None:
        return none("the evaluations do not say which share of the people was to be forgotten")
    if not asked.base_model:
        return none("the evaluations do not say from which base model theirs were made, or none of it has published numbers")
    found = [
        table
        for table in tables
        if (table.benchmark, table.forget_ratio, table.base_model) == (asked.benchmark, asked.forget_ratio, asked.base_model)
        and table.shots in ("", asked.shots)
    ]
    if not found:
        shots = asked.shots.replace("_", "-")
        return none(f"none is known for {asked.base_model} with {asked.forget_ratio} % to be forgotten, {shots}")
    if other := _other_data(asked, asked.forget_ratio):
        return none(f"the data are not the published ones: {other}")
    return Comparable(tables=tuple(found), reason="")


def _other_data(asked: Asked, ratio: int) -> str:
    """In what the evaluated data differ from the published ones; empty if in nothing that is known."""
    people = PEOPLE.get((asked.benchmark, ratio))
    differing = [
        f"{task} has {asked.questions[task]:,} questions, the published one {count:,}"
        for task, count in QUESTIONS.get((asked.benchmark, ratio, asked.shots), {}).items()
        if asked.questions.get(task, count) != count
    ]
    if people is not None and asked.forget_people not in (None, people):
        differing.append(f"{asked.forget_people:,} people are to be forgotten, in the published data {people:,}")
    return "; ".join(differing)


def asked_of(collected: Collected) -> Asked:
    """What the evaluations' recorded configurations say; models that disagree on something leave it unknown."""
    protocol, _, shots = collected.protocol.partition(", ")
    models = collected.unfolded().evaluations
    configs = [_loaded(model.record.config) for model in models]
    ratios = {str(ratio).lstrip("0") for config in configs if (ratio := _section(config, "data").get("forget_ratio"))}
    bases = {base for config in configs if (base := base_model(_section(config, "model")))}
    ratio = ratios.pop() if len(ratios) == 1 else ""
    return Asked(
        benchmark=collected.benchmark,
        protocol=protocol,
        shots=shots or ZERO_SHOT,
        base_model=bases.pop() if len(bases) == 1 else NOT_STATED,
        forget_ratio=int(ratio) if ratio.isdigit() else None,
        everything=not any(_section(config, "evaluation").get("limit") for config in configs),
        questions={task: _questions(models, task) for task in collected.task_names()},
        forget_people=len(collected.subjects({"forget"})) or None,
    )


def _questions(models: Sequence[Evaluation], task: str) -> int:
    """How many a task has; the same for all models of a report, or the evaluations would not have been put together."""
    estimates = (estimate for model in models for estimate in model.tasks.get(task, {}).values())
    return max((estimate.count + estimate.unscored for estimate in estimates), default=0)


def base_model(model: Mapping[str, Any]) -> str:
    """The published base model that a `model` section leads to, or an empty text.

    The path counts; where it is a folder of ours it is followed through the configurations of the trainings that made it,
    and through an adapter's `adapter_config.json`. The name counts where the path leads nowhere.
    """
    for place in (*_ancestry(str(model.get("path") or "")), str(model.get("name") or "")):
        found = [name for name, spelling in _SPELLINGS.items() if re.search(spelling, place, re.IGNORECASE)]
        if found:
            return found[0]
    return NOT_STATED


def _ancestry(path: str) -> Iterator[str]:
    """A path, and those of the models that it was made from."""
    for _ in range(_GENERATIONS):
        if not path:
            return
        yield path
        folder = Path(path).expanduser()
        trained, adapter = Run(folder.parent).config, folder / "adapter_config.json"
        if trained.is_file():
            section = _section(_loaded(trained.read_text(encoding="utf-8")), "model")
            path = str(section.get("path") or section.get("name") or "")
        elif adapter.is_file():
            path = str(_loaded(adapter.read_text(encoding="utf-8")).get("base_model_name_or_path") or "")
        else:
            return


def _loaded(text: str) -> Mapping[str, Any]:
    """A configuration, YAML or JSON; a damaged one says nothing."""
    try:
        found = yaml.safe_load(text)
    except yaml.YAMLError:
        return {}
    return found if isinstance(found, dict) else {}


def _section(config: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    found = config.get(name)
    return found if isinstance(found, dict) else {}
