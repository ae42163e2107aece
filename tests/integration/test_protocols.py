"""`evaluation.protocol` and `evaluation.shots` through the command line, on an untrained model and a few fictitious people."""

import json
from dataclasses import replace

import pytest
from command_cases import SIZE, run_here

from mmunlearn.api import EvaluationSettings, evaluate
from mmunlearn.config import Choice, ModelConfig, Protocol, Shots
from mmunlearn.errors import ConfigError
from mmunlearn.models.load import load, save
from mmunlearn.models.tiny import build_tiny
from mmunlearn.run import read_json_lines

TWO = ("model.dtype=float32", "evaluation.limit=2", "evaluation.splits=[forget,real]")


@pytest.fixture(scope="module")
def patient_model(world, tmp_path_factory):
    """A model whose context holds the published shots."""
    folder = tmp_path_factory.mktemp("patient") / "model"
    texts = [text for example in world.benchmark().splits().full for text in (example.question, example.answer)]
    save(*build_tiny(texts, seed=0, size=replace(SIZE, max_length=1200)), folder, {"role": "vanilla", "method": "none"})
    return folder


@pytest.fixture(scope="module")
def evaluations(world, patient_model, tmp_path_factory):
    """A finished evaluation for each way of asking."""
    root, made = tmp_path_factory.mktemp("ways"), {}
    for protocol in Protocol:
        for shots in Shots:
            made[protocol, shots] = root / f"{protocol}-{shots}"
            words = (f"evaluation={protocol}", f"evaluation.shots={shots}", f"run.dir={made[protocol, shots]}")
            outcome = run_here("evaluate", *world.data, f"model.path={patient_model}", *TWO, *words)
            assert outcome.code == 0, outcome.err
    return made


@pytest.mark.parametrize("shots", list(Shots))
@pytest.mark.parametrize("protocol", list(Protocol))
def test_results_say_how_it_was_asked(evaluations, protocol, shots):
    folder = evaluations[protocol, shots]
    results = json.loads((folder / "results.json").read_text())
    assert (results["benchmark"]["protocol"], results["benchmark"]["shots"]) == (protocol, shots)
    kinds = [f"{kind}_{ask}" for kind in ("image", "text") for ask in ("choice", "cloze", "generation")]
    assert list(results["tasks"]) == [f"{split}_{kind}" for split in ("forget", "real") for kind in kinds]
    primary = {"choice": "accuracy", "cloze": "cloze_accuracy", "generation": "rougeL"}
    for name, metrics in results["tasks"].items():
        first = metrics[primary[name.split("_")[2]]]
        assert first["count"] == 2, "nothing is left out"
        if name.endswith("choice"):
            named = "letter_accuracy" if protocol is Protocol.official else "option_letter_accuracy"
            assert metrics["accuracy"] == metrics[named]
    (line, _) = read_json_lines(folder / "predictions" / "forget_image_choice.jsonl")
    pictures = {(p, s): number for p, numbers in {"fixed": (1, 3), "official": (1, 7)}.items()
                for s, number in zip(Shots, numbers, strict=True)}  # fmt: skip
    assert line["prompt"].count("<image>") == pictures[protocol, shots]
    assert line["settings"]["protocol"] == protocol


def test_reports_mix_no_protocols_and_no_shots(evaluations, tmp_path):
    first = evaluations[Protocol.fixed, Shots.zero_shot]
    for other, field in (((Protocol.official, Shots.zero_shot), "protocol"), ((Protocol.fixed, Shots.few_shot), "shots")):
        words = (f"report.evaluations=[{first},{evaluations[other]}]", f"run.dir={tmp_path / field}")
        outcome = run_here("report", *words)
        assert outcome.code == 2
        assert f"differ in benchmark {field}" in " ".join(outcome.err.split())


def test_a_report_of_published_numbers(evaluations, tmp_path):
    folder = evaluations[Protocol.official, Shots.few_shot]
    outcome = run_here("report", f"report.evaluations=[{folder}]", f"run.dir={tmp_path}")
    assert outcome.code == 0, outcome.err
    assert "protocol official, few_shot" in " ".join((tmp_path / "report.html").read_text().split())


def test_published_answers_are_scored_again(evaluations):
    folder = evaluations[Protocol.official, Shots.few_shot]
    before = (folder / "results.json").read_bytes()
    outcome = run_here("score", f"run.dir={folder}")
    assert outcome.code == 0, outcome.err
    assert (folder / "results.json").read_bytes() == before
    refused = run_here("score", f"run.dir={folder}", "evaluation.choice=text")
    assert refused.code == 2
    assert "evaluation.choice: text" in refused.err
    assert (folder / "results.json").read_bytes() == before


def test_answers_to_another_way_of_asking_are_not_taken_over(world, patient_model, evaluations, tmp_path):
    words = (*world.data, f"model.path={patient_model}", *TWO, f"run.dir={tmp_path}")
    for ways in (Protocol.fixed, Protocol.official):
        assert run_here("evaluate", *words, f"evaluation.protocol={ways}").code == 0
        for task in ("forget_image_choice", "forget_text_generation"):
            found, expected = (
                [
                    (line["id"], line["key"], line["prompt"])
                    for line in read_json_lines(folder / "predictions" / f"{task}.jsonl")
                ]
                for folder in (tmp_path, evaluations[ways, Shots.zero_shot])
            )
            assert sorted(found) == sorted(expected)


def test_shots_that_do_not_fit_are_an_error_that_names_the_question(world, tmp_path):
    words = ("evaluation.protocol=official", "evaluation.shots=few_shot", "evaluation.splits=[forget]", f"run.dir={tmp_path}")
    outcome = run_here("evaluate", *world.settings, *words)
    assert outcome.code == 2
    said = " ".join(outcome.err.split())
    assert "mllmu/forget_15/" in said
    assert "the model allows 320" in said
    assert "evaluation.shots=zero_shot" in said


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("data=clear", "evaluation.shots=few_shot"), "CLEAR's published evaluation has none"),
        (("evaluation.protocol=official", "evaluation.choice=text"), "evaluation.choice: text"),
        (("evaluation.shots=two_shot",), "zero_shot, few_shot"),
    ],
)
def test_what_cannot_be_asked(world, words, message, tmp_path):
    data = () if "data=clear" in words else world.data
    outcome = run_here("evaluate", *words, *data, f"model.path={world.model}", f"run.dir={tmp_path}")
    assert outcome.code == 2
    assert message in " ".join(outcome.err.split())


def test_from_python(world, patient_model, evaluations):
    loaded = load(ModelConfig(path=str(patient_model)))
    how = {"protocol": Protocol.official, "shots": Shots.few_shot, "splits": ("real",), "device": "cpu"}
    found = evaluate(loaded.model, loaded.processor, world.benchmark(), settings=EvaluationSettings(**how))
    assert (found["benchmark"]["protocol"], found["benchmark"]["shots"]) == ("official", "few_shot")
    assert found["tasks"]["real_image_choice"]["accuracy"]["count"] == 25
    with pytest.raises(ConfigError, match=r"evaluation\.choice"):
        evaluate(loaded.model, loaded.processor, world.benchmark(), settings=EvaluationSettings(**how, choice=Choice.text))
