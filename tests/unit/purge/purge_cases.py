"""What the tests of `mmunlearn purge` share: folders written by hand, with the project's own writers."""

import json
from pathlib import Path

import yaml

from mmunlearn.config import PurgeConfig
from mmunlearn.data.example import Example, Prediction
from mmunlearn.data.subjects import subjects_record
from mmunlearn.purge.job import purge
from mmunlearn.run import Run, read_json_lines, write_json, write_json_lines, write_text

ADA, BO = "Ada Example", "Bo Sample"
TABLE = "mmunlearn.benchmarks.table.Table"
MLLMU = "mmunlearn.benchmarks.mllmu.MLLMUBench"
CLEAR = "mmunlearn.benchmarks.clear.CLEAR"


def ids_of(name, count=3):
    return [f"table/{name}/text/generation/{number:04}" for number in range(count)]


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(Path(folder).rglob("*")) if path.is_file()}


def write_settings(run, target=TABLE, **data):
    command = f"mmunlearn evaluate 'data.forget=[{ADA}]'"
    section = {"_target_": target, "name": "table", "root": "", "table": "nowhere.csv", "forget": [ADA, BO], **data}
    write_text(run.config, yaml.safe_dump({"run": {"dir": str(run.root), "label": ""}, "data": section, "model": {"path": ""}}))
    write_json(run.environment, {"command": command, "python": "3"})


def evaluation(folder, subjects, *, fingerprint="f1", scored=True, settings=None, task="forget_text_generation"):
    """A finished evaluation; `subjects` by example id."""
    run = Run(folder)
    write_settings(run, **(settings or {}))
    write_json(run.model_card, {"fingerprint": fingerprint, "role": "base", "label": f"without {ADA}"})
    answers = [Prediction(id=each, prompt=f"Who? {n}", text="a baker").to_json() for n, each in enumerate(subjects)]
    write_json_lines(run.predictions(task), answers)
    write_json_lines(run.judged(task), ({"id": each, "correct": True} for each in subjects))
    if scored:
        lines = ({"id": each, "subject": name, "metrics": {"rougeL": 0.5}} for each, name in subjects.items())
        write_json_lines(run.scores(task), lines)
        write_json(run.results, results(fingerprint, len(subjects)))
        run.finish()
    return run


def results(fingerprint, count, value=0.5):
    estimate = {"value": value, "low": 0.4, "high": None, "count": count, "unscored": 0}
    benchmark = {"name": "table", "version": "1", "protocol": "fixed", "shots": "zero_shot"}
    tasks = {"forget_text_generation": {"rougeL": estimate, "bleu": estimate}}
    return {"schema": 1, "benchmark": benchmark, "model": {"fingerprint": fingerprint}, "tasks": tasks}


def report(folder, *evaluations, elsewhere=()):
    """A report of evaluations that are there, in the rows that the project's own reports have; no people are named."""
    run = Run(folder)
    rows = []
    for found in [*(json.loads(each.results.read_text()) for each in evaluations), *(results(each, 6) for each in elsewhere)]:
        about = {**{k: found["benchmark"][k] for k in ("version", "protocol")}, "benchmark": found["benchmark"]["name"]}
        for task, metrics in found["tasks"].items():
            for metric, estimate in metrics.items():
                rows.append({**about, "fingerprint": found["model"]["fingerprint"], "task": task, "metric": metric, **estimate})
        derived = {
            "task": "all",
            "metric": "model_utility",
            "of": "",
            "value": 0.5,
            "low": None,
            "high": None,
            "count": 6,
            "unscored": 0,
        }
        rows.append({**about, "fingerprint": found["model"]["fingerprint"], **derived})
    write_json(run.results, rows)
    write_text(run.report, "<p>0.5</p>")
    for kind in ("md", "tex", "csv"):
        write_text(run.tables(kind), "0.5")
    return run


def both(count=3):
    return {each: name for name in (ADA, BO) for each in ids_of(name, count)}


def training(folder, examples, **settings):
    run = Run(folder)
    write_settings(run, **settings)
    write_json(run.model / "mmunlearn.json", {"role": "vanilla", "method": "FineTune"})
    (run.model / "model.safetensors").write_bytes(b"weights")
    if examples is not None:
        write_json(run.subjects, subjects_record(learned=examples, forgot=()))
    run.finish()
    return run


def examples_about(*names):
    return [Example(id=f"table/{name}/text/0", question="Who?", answer="x", subject=name) for name in names]


def done(folder, *names, yes=True):
    return purge(PurgeConfig(subjects=list(names or [ADA]), folders=[str(folder)], yes=yes))


def line_ids(path):
    return [line["id"] for line in read_json_lines(path)]


def whys(plan):
    return {rest.path: rest.why for rest in plan.rest}
