"""Membership inference from stored answers: the forget people are members, the people of the holdout are not."""

from collections.abc import Mapping
from dataclasses import dataclass

from mmunlearn.data.example import Example, Prediction
from mmunlearn.metrics.membership import AttackRow, Sides, membership_table
from mmunlearn.metrics.statistics import Estimate
from mmunlearn.report.answers import Answers
from mmunlearn.report.collect import Collected, Evaluation
from mmunlearn.report.compared import Number, exactly
from mmunlearn.report.crossmodal import without_details
from mmunlearn.report.verdict import ideal_models
from mmunlearn.report.words import parse_task, task_title
from mmunlearn.run import Run, read_json_lines

ATTACK_TITLES = {
    "loss": "loss",
    "zlib": "zlib",
    "min_k": "Min-K%",
    "min_k_plus_plus": "Min-K++",
    "reference": "reference",
}


@dataclass(frozen=True, kw_only=True)
class Attacked:
    """Every attack on one model, by one kind of question."""

    evaluation: Evaluation
    task: str
    """The forget task; its non-members come from the holdout task of the same modality and kind."""
    rows: tuple[AttackRow, ...]

    @property
    def worst(self) -> AttackRow | None:
        """The attack on which the model is farthest from gold; None if none can be held against gold."""
        return max((row for row in self.rows if row.distance >= 0), key=lambda row: row.distance, default=None)


@dataclass(frozen=True, kw_only=True)
class Inference:
    """What attackers learn, or why that is not known."""

    missing: str
    notes: tuple[str, ...] = ()
    """Attacks that had to be left out, and why."""
    found: tuple[Attacked, ...] = ()

    @property
    def tasks(self) -> tuple[str, ...]:
        """The forget tasks."""
        return tuple(dict.fromkeys(attacked.task for attacked in self.found))

    def of(self, model: Evaluation, task: str) -> Attacked | None:
        """One model in one task."""
        return next((a for a in self.found if a.evaluation is model and a.task == task), None)

    def numbers(self) -> list[Number]:
        """As rows; `of` is the attack."""
        return [
            Number(evaluation=attacked.evaluation, task=attacked.task, metric=metric, of=row.attack, estimate=estimate)
            for attacked in self.found
            for row in attacked.rows
            for metric, estimate in _estimates(row).items()
        ]


def _estimates(row: AttackRow) -> dict[str, Estimate]:
    count = row.members + row.non_members
    auc = Estimate(value=row.auc, low=row.low, high=row.high, count=count, unscored=row.unscored)
    others = {"membership_tpr": row.tpr, "membership_distance": row.distance, "privleak": row.privleak}
    return {"membership_auc": auc} | {name: exactly(value, count, row.unscored) for name, value in others.items()}


def inference(collected: Collected, answers: Answers) -> Inference:
    """Attack every model with every kind of question that was asked about forget people and about the holdout.

    Args:
        collected: the report's data.
        answers: the expected answers, which the zlib attack needs; where one is missing that attack is left out.
    """
    asked = collected.task_names()
    tasks = [task for task in asked if parse_task(task).family == "forget" and _holdout(task) in asked]
    if not tasks:
        return Inference(missing="the holdout was not asked; add it to evaluation.splits if the benchmark has one")
    bases = collected.of_role("base")
    found, notes = [], []
    for task in tasks:
        sides = {model.label: _sides(model, task, answers.by_id) for model in collected.evaluations}
        notes += [
            note for model in collected.evaluations for name in (task, _holdout(task)) if (note := _not_kept(model, name))
        ]
        for model in collected.evaluations:
            mine = sides[model.label]
            if mine is None:
                continue
            held = [other for other in ideal_models(collected, model.record.goal) if sides[other.label]]
            golds = [gold for other in held if (gold := sides[other.label])]
            notes += [note for other in held if (note := _other_questions(model, mine, other, sides[other.label], task))]
            base = next((one for other in bases if other is not model and (one := sides[other.label])), None)
            rows = membership_table(mine, golds=golds, reference=base)
            if lacking := _without_answer(mine, answers.by_id):
                rows = tuple(row for row in rows if row.attack != "zlib")
                why = f" ({without_details(answers)})" if answers.missing else ""
                notes.append(f"zlib: left out, because {lacking} expected answers could not be read from the benchmark{why}.")
            found.append(Attacked(evaluation=model, task=task, rows=rows))
    if not found:
        return Inference(missing="the predictions, with the probabilities of the answers, were not kept")
    if not bases:
        notes.append("reference: left out, because no base model was evaluated to compare with.")
    return Inference(missing="", notes=tuple(dict.fromkeys(notes)), found=tuple(found))


def _holdout(task: str) -> str:
    return f"holdout_{task.partition('_')[2]}"


def _sides(model: Evaluation, task: str, answers: Mapping[str, str]) -> Sides | None:
    """What a model said about members and non-members; None if its predictions of either were not kept."""
    members, non_members = (_answered(model, name, answers) for name in (task, _holdout(task)))
    return Sides(members=members, non_members=non_members) if members and non_members else None


def _answered(model: Evaluation, task: str, answers: Mapping[str, str]) -> list[tuple[Prediction, Example]]:
    """The stored predictions, with what the attacks need to know of each question."""
    scores = model.scores.get(task, {})
    stored = {line["id"]: line for line in read_json_lines(Run(model.path).predictions(task)) if line["id"] in scores}
    return [
        (Prediction.from_json(line), Example(id=id_, question="", answer=answers.get(id_, ""), subject=scores[id_].subject))
        for id_, line in stored.items()
    ]


def _without_answer(sides: Sides, answers: Mapping[str, str]) -> int:
    return sum(example.id not in answers for _, example in (*sides.members, *sides.non_members))


def _not_kept(model: Evaluation, task: str) -> str:
    """Says that some questions count for nothing here, because what the model said to them was not kept."""
    scores = model.scores.get(task, {})
    kept = {line["id"] for line in read_json_lines(Run(model.path).predictions(task))} & scores.keys()
    if not kept or len(kept) == len(scores):
        return ""
    return f"{model.label}: only {len(kept)} of {len(scores)} predictions of “{task_title(task).lower()}” were kept."


def _other_questions(model: Evaluation, mine: Sides, gold: Evaluation, theirs: Sides | None, task: str) -> str:
    """Says that a model and gold were attacked with different questions."""
    if theirs is None or _ids(mine) == _ids(theirs):
        return ""
    return f"{model.label} and {gold.label} were not asked the same questions of “{task_title(task).lower()}” and the holdout."


def _ids(sides: Sides) -> set[str]:
    return {example.id for _, example in (*sides.members, *sides.non_members)}
