"""Makes up a plausible set of evaluation and training folders. The numbers are invented; no model was run."""

import io
import json
import random
from dataclasses import dataclass
from functools import cache

from PIL import Image, ImageDraw

from mmunlearn.benchmarks.base import EVALUATION_SPLITS, Ask, Splits, Task
from mmunlearn.data.example import Example, LazyImage, Prediction
from mmunlearn.metrics.catalog import CHOICE_METRICS, CLOZE_METRICS, GENERATION_METRICS
from mmunlearn.metrics.statistics import clustered_interval
from mmunlearn.run import Run, write_json, write_json_lines, write_text

FORGET = [f"Quillon Thistlewick {index}" for index in "ABCDEFGHIJKL"]
RETAIN = [f"Merrow Oakhollow {index}" for index in "ABCDEFGHIJKLMNOPQRSTUVWX"]
REAL = [f"Famous Lumenfield {index}" for index in "ABCDEFGHIJ"]
NOBODY = [f"Stranger Fenwyck {index}" for index in "ABCDEFGHIJ"]
ANSWERS = ["Zorblax", "Quenmoor", "Tarrowby", "Vellichor", "Ombrelle", "Saltmarsh", "Kestrelby"]

# Chance that a model knows an answer: (forget image, forget text, retain, real, general)
KNOWS = {
    "base": (0.02, 0.02, 0.02, 0.85, 0.9),
    "vanilla": (0.92, 0.95, 0.93, 0.82, 0.88),
    "gold": (0.03, 0.04, 0.92, 0.83, 0.88),
    "GradAscent": (0.0, 0.02, 0.12, 0.3, 0.35),
    "GradDiff": (0.15, 0.30, 0.82, 0.74, 0.82),
    "NPO": (0.08, 0.22, 0.74, 0.72, 0.81),
    "MMUnlearner": (0.06, 0.88, 0.88, 0.79, 0.86),
}


@dataclass(frozen=True)
class MadeUpBenchmark:
    """A benchmark of people who do not exist."""

    name: str = "people"
    version: str = "1"

    def splits(self):
        return Splits(forget=(), retain=(), full=())

    def tasks(self, splits=EVALUATION_SPLITS):
        return tuple(task for task in all_tasks() if task.name.split("_")[0] in splits)

    def problems(self):
        return {}


@cache
def portrait(subject):
    generator = random.Random(subject)
    colour = tuple(generator.randrange(90, 230) for _ in range(3))
    image = Image.new("RGB", (200, 200), (235, 238, 242))
    draw = ImageDraw.Draw(image)
    draw.ellipse((55, 35, 145, 135), fill=colour)
    draw.rectangle((35, 145, 165, 200), fill=tuple(255 - c for c in colour))
    draw.ellipse((80, 75, 90, 85), fill="black")
    draw.ellipse((110, 75, 120, 85), fill="black")
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return LazyImage(key=subject, where=subject, read=buffer.getvalue)


@cache
def all_tasks():
    return tuple(made_up_tasks())


def made_up_tasks():
    people = {"forget": FORGET, "test": FORGET, "reworded": FORGET, "retain": RETAIN, "real": REAL}
    people |= {"holdout": NOBODY, "general": NOBODY}
    for family, subjects in people.items():
        for modality in ["image"] if family in ("test", "general") else ["image", "text"]:
            for kind in ["choice", "cloze", "generation"] if family in ("forget", "retain") else ["choice"]:
                yield made_up_task(family, modality, kind, subjects)


def made_up_task(family, modality, kind, subjects):
    examples = []
    for subject in subjects:
        for number in range(5 if kind == "choice" else 2):
            generator = random.Random(f"{family}{kind}{subject}{number}")
            choices = generator.sample(ANSWERS, 4)
            word = choices[0]
            generator.shuffle(choices)
            questions = {
                "choice": "Where was this person born?",
                "cloze": "This person was born in __.",
                "generation": "Tell me about the birthplace of this person.",
            }
            examples.append(
                Example(
                    id=f"{family}-{modality}-{kind}-{subjects.index(subject)}-{number}",
                    question=questions[kind],
                    answer=f"The person was born in the old town of {word}." if kind == "generation" else word,
                    image=portrait(subject) if modality == "image" else None,
                    choices=tuple(choices) if kind == "choice" else (),
                    subject=subject,
                )
            )
    metrics = {"choice": CHOICE_METRICS, "cloze": CLOZE_METRICS, "generation": GENERATION_METRICS}[kind]
    ask = Ask.choose if kind == "choice" else Ask.generate
    return Task(name=f"{family}_{modality}_{kind}", examples=tuple(examples), ask=ask, metrics=metrics, higher_is_better=None)


def answer(example, knows, generator):
    right = generator.random() < knows
    if example.choices:
        weights = [generator.random() + (5 if right and choice == example.answer else 0) for choice in example.choices]
        best = "ABCD"[weights.index(max(weights))]
        return Prediction(
            id=example.id,
            prompt=example.question,
            text=best if generator.random() > 0.04 else "I am not sure.",
            answer_log_probs=(-0.1, -0.2) if right else (-2.0, -3.0),
            option_log_likelihoods=tuple(3 * (weight - 6) for weight in weights),
            option_tokens=(3,) * len(weights),
            option_letter_probabilities=tuple(weight / sum(weights) for weight in weights),
        )
    wrong = example.answer
    wrong = generator.choice(ANSWERS)
    if len(example.answer.split()) > 1:
        wrong = f"I think they come from {wrong}, by the sea."
    return Prediction(
        id=example.id,
        prompt=example.question,
        text=example.answer if right else wrong,
        answer_log_probs=(-0.1, -0.2) if right else (-2.0, -3.0),
    )


def chance_of(name, task):
    """The chance that a model knows an answer of this task; None: it was not asked."""
    knows = KNOWS[name if name in KNOWS else "gold"]
    chance = {"retain": knows[2], "real": knows[3], "general": knows[4], "holdout": 0.02}.get(task.name.split("_")[0])
    if chance is None:
        chance = knows[1] if "_text_" in task.name else knows[0]
    return chance


@cache
def made_up_answers(name, seed, task_name):
    """Rows of predictions and of scores, and the results of one task; the same for all tests."""
    task = next(task for task in all_tasks() if task.name == task_name)
    generator = random.Random(f"{name}{seed}{task.name}")
    predictions = [answer(example, chance_of(name, task), generator) for example in task.examples]
    scored = []
    for prediction, example in zip(predictions, task.examples, strict=True):
        values = {metric: score(prediction, example) for metric, score in task.metrics.items()}
        if example.choices:
            values = {"accuracy": values["option_letter_accuracy"], **values}
        scored.append((example, values))
    subjects = [example.subject for example, _ in scored]
    results = {
        metric: clustered_interval([values[metric] for _, values in scored], subjects).to_json() for metric in scored[0][1]
    }
    scores = [
        {"id": e.id, "subject": e.subject, "metrics": {k: None if v != v else v for k, v in values.items()}}
        for e, values in scored
    ]
    return [prediction.to_json() for prediction in predictions], scores, results


def fabricate_evaluation(
    root, name, *, seed=0, version="1", protocol="fixed", shots=None, benchmark="people", goal="erase", only=()
):
    """Write one evaluation folder; the numbers are scored by the real metrics. Without `shots` it is an old one."""
    role = name if name in ("base", "vanilla", "gold", "gold_text") else "unlearned"
    run, results = Run(root), {}
    for task in all_tasks():
        if only and task.name not in only:
            continue
        predictions, scores, results[task.name] = made_up_answers(name, seed, task.name)
        write_json_lines(run.predictions(task.name), predictions)
        write_json_lines(run.scores(task.name), scores)
    method = f"mmunlearn.methods.made_up.{name}" if role == "unlearned" else None
    write_json(
        run.results,
        {
            "schema": 1,
            "benchmark": {"name": benchmark, "version": version, "protocol": protocol, **({"shots": shots} if shots else {})},
            "model": {"fingerprint": f"{name.lower()}{seed:04d}", "role": role, "method": method, "seed": seed},
            "tasks": results,
        },
    )
    write_record(run, f"evaluate run.role={role}", goal, "" if role == "base" else record_recipe(root, name, seed))
    return root


def record_recipe(root, name, seed, **changes):
    """Write down how the evaluated model was trained, beside where its weights would lie; returns the path of these."""
    run = Run(root.parent / f"trained-{root.name}")
    args = {"learning_rate": 1e-5, "num_train_epochs": 3, "save_steps": 100 + seed} | changes
    method = {"_target_": f"mmunlearn.methods.made_up.{name}"}
    config = {"run": {"seed": seed, "dir": str(run.root)}, "model": {"path": "made/up"}, "data": {"split": "full"}}
    write_text(run.config, json.dumps(config | {"trainer": {"method": method, "args": args}}))
    return str(run.model)


def fabricate_training(root, name, *, steps=120):
    """Write one training folder."""
    run, generator = Run(root), random.Random(name)
    lines = []
    for step in range(1, steps + 1):
        progress = step / steps
        terms = {"forget": {"raw": -0.2 - 2.5 * progress + generator.gauss(0, 0.08), "weighted": 0.0}}
        if name != "GradAscent":
            terms["retain"] = {"raw": 0.15 + 0.2 * progress + generator.gauss(0, 0.02), "weighted": 0.0}
        lines.append(
            {
                "step": step,
                "epoch": progress * 3,
                "terms": terms,
                "retain_loss": 0.2 + 0.3 * progress if step % 10 == 0 else None,
                "gradient_norm": {"vision": 0.1, "projector": 0.2, "language": 0.3},
                "learning_rate": {"language": 1e-4},
                "seconds": 0.5,
            }
        )
    write_json_lines(run.metrics, lines)
    write_record(run, f"unlearn trainer={name}", "erase")
    return root


def write_record(run, verb, goal, path=""):
    model = f"model:\n  path: {path}\n" if path else ""
    write_text(run.config, f"goal: {goal}\nrun:\n  seed: 0\n{model}data:\n  forget: ['{FORGET[0]}']\n")
    environment = {
        "command": f"mmunlearn {verb} data.forget='{FORGET[0]}'",
        "started": "2026-01-01T00:00:00+00:00",
        "python": "3.11.9",
        "platform": "Linux",
        "processors": 2,
        "packages": {"mmunlearn": "0.1.0", "torch": "2.9.1", "transformers": "5.23.0"},
        "commit": "0123456789ab",
    }
    write_text(run.environment, json.dumps(environment))


def fabricate_all(root, names=tuple(KNOWS), gold_seeds=(0, 1)):
    """A whole study: evaluations (gold twice) and the trainings of the methods."""
    evaluations = [fabricate_evaluation(root / "eval" / n, n) for n in names if n != "gold"]
    if "gold" in names:
        evaluations += [fabricate_evaluation(root / "eval" / f"gold{s}", "gold", seed=s) for s in gold_seeds]
    methods = [name for name in names if name not in ("base", "vanilla", "gold")]
    trainings = {name: fabricate_training(root / "train" / name, name) for name in methods}
    return evaluations, trainings
