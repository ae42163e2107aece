"""`evaluation.protocol` and `evaluation.shots` through the command line, on an untrained model and a few fictitious people."""

import json
import shutil
from dataclasses import replace

import pytest
from command_cases import SIZE, contents, run_here

from mmunlearn.api import EvaluationSettings, evaluate
from mmunlearn.config import ModelConfig
from mmunlearn.config_enums import Choice, Protocol, Shots
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
    for protocol in (Protocol.fixed, Protocol.official):
        for shots in (Shots.zero_shot, Shots.few_shot):
            made[protocol, shots] = root / f"{protocol}-{shots}"
            words = (f"evaluation={protocol}", f"evaluation.shots={shots}", f"run.dir={made[protocol, shots]}")
            outcome = run_here("evaluate", *world.data, f"model.path={patient_model}", *TWO, *words)
            assert outcome.code == 0, outcome.err
    return made


@pytest.mark.parametrize("shots", [Shots.zero_shot, Shots.few_shot])
@pytest.mark.parametrize("protocol", [Protocol.fixed, Protocol.official])
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
                for s, number in zip((Shots.zero_shot, Shots.few_shot), numbers, strict=True)}  # fmt: skip
    assert line["prompt"].count("<image>") == pictures[protocol, shots]
    assert line["settings"]["protocol"] == protocol


def test_reports_mix_no_protocols_and_no_shots(evaluations, tmp_path):
    first = evaluations[Protocol.fixed, Shots.zero_shot]
    for other, said in (
        ((Protocol.official, Shots.zero_shot), "official"),
        ((Protocol.fixed, Shots.few_shot), "fixed, few_shot"),
    ):
        words = (f"report.evaluations=[{first},{evaluations[other]}]", f"run.dir={tmp_path / said[:5]}")
        outcome = run_here("report", *words)
        assert outcome.code == 0, outcome.err
        rows = json.loads((tmp_path / said[:5] / "results.json").read_text())
        assert {row["protocol"] for row in rows} == {"fixed", said}
        tables = (tmp_path / said[:5] / "tables.md").read_text().splitlines()
        (heading,) = (line for line in tables if line.startswith("## By other rules"))
        assert f"protocol {said}" in heading.replace("\\_", "_")


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


@pytest.mark.thorough
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


@pytest.fixture(scope="module")
def clear_evaluations(world, tmp_path_factory):
    """People in CLEAR's layout, asked in both ways: the folder of each."""
    root = tmp_path_factory.mktemp("clear")
    sizes = {"num_people": 20, "num_public_figures": 3, "num_general_faces": 4, "image_size": 32, "root": root / "people"}
    data = ("data=people_clear", *(f"data.{name}={value}" for name, value in sizes.items()), f"model.path={world.model}")
    made = {}
    for protocol in (Protocol.fixed, Protocol.official):
        made[protocol] = root / protocol
        words = (f"evaluation={protocol}", "evaluation.limit=3", "model.dtype=float32", f"run.dir={made[protocol]}")
        outcome = run_here("evaluate", *data, *words)
        assert outcome.code == 0, outcome.err
    return made


@pytest.mark.thorough
def test_clear_is_asked_in_both_ways(clear_evaluations):
    results = {way: json.loads((folder / "results.json").read_text()) for way, folder in clear_evaluations.items()}
    assert all(found["benchmark"]["protocol"] == way for way, found in results.items())
    groups = {"forget": ("recognition", "caption"), "retain": ("recognition", "caption"), "real": ("recognition",),
              "general": ("choice",)}  # fmt: skip
    ours = {f"{group}_image_{kind}" for group, kinds in groups.items() for kind in kinds}
    texts = {"forget_text_qa", "retain_text_qa"}
    assert set(results[Protocol.fixed]["tasks"]) == ours | texts
    assert set(results[Protocol.official]["tasks"]) == ours | texts | {f"{group}_image_generation" for group in groups}
    for way, found in results.items():
        for name, metrics in found["tasks"].items():
            assert max(each["count"] for each in metrics.values()) == 3
            assert ("rougeL_recall" in metrics) == (way is Protocol.official and "accuracy" not in metrics)
            assert ("truth_ratio" in metrics) == ("_image_" in name)
    for found in results.values():
        ratio = found["tasks"]["forget_image_caption"]["truth_ratio"]
        assert (ratio["count"], ratio["unscored"]) == (3, 0)
        assert 0 < ratio["value"] < 100
    (line, *_) = read_json_lines(clear_evaluations[Protocol.official] / "predictions" / "forget_image_generation.jsonl")
    assert line["prompt"].endswith("<image>\nThe name of the person on the image is \nASSISTANT:")
    assert len(line["option_log_likelihoods"]) == 3


@pytest.mark.thorough
def test_clear_is_scored_again(clear_evaluations):
    for folder in clear_evaluations.values():
        before = (folder / "results.json").read_bytes()
        outcome = run_here("score", f"run.dir={folder}")
        assert outcome.code == 0, outcome.err
        assert (folder / "results.json").read_bytes() == before


@pytest.mark.thorough
def test_from_python(world, patient_model, evaluations):
    loaded = load(ModelConfig(path=str(patient_model)))
    how = {"protocol": Protocol.official, "shots": Shots.few_shot, "splits": ("real",), "device": "cpu"}
    found = evaluate(loaded.model, loaded.processor, world.benchmark(), settings=EvaluationSettings(**how))
    assert (found["benchmark"]["protocol"], found["benchmark"]["shots"]) == ("official", "few_shot")
    assert found["tasks"]["real_image_choice"]["accuracy"]["count"] == 25
    with pytest.raises(ConfigError, match=r"evaluation\.choice"):
        evaluate(loaded.model, loaded.processor, world.benchmark(), settings=EvaluationSettings(**how, choice=Choice.text))


# --- all ways in one run ----------------------------------------------------------------------------------------------

FOUR = [f"{protocol}-{shots}" for protocol in ("fixed", "official") for shots in ("zero_shot", "few_shot")]
BOTH = ("evaluation.protocol=both", "evaluation.shots=both")


@pytest.fixture(scope="module")
def all_ways(world, patient_model, tmp_path_factory):
    """`evaluate` asked in all ways at once; its folder, what it printed and how often a model was opened."""
    folder, opened = tmp_path_factory.mktemp("all") / "run", []

    def counting(*args, **kwargs):
        opened.append(args)
        return load(*args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mmunlearn.evaluation.opened.load", counting)
        outcome = run_here("evaluate", *world.data, f"model.path={patient_model}", *TWO, *BOTH, f"run.dir={folder}")
    assert outcome.code == 0, outcome.err
    return folder, outcome, len(opened)


def answers_in(folder):
    files = (folder / "predictions").iterdir()
    return {(path.name, line["id"]): line for path in files for line in read_json_lines(path)}


@pytest.mark.thorough
def test_all_ways_at_once_are_whole_evaluations(all_ways, evaluations):
    folder, outcome, opened = all_ways
    assert opened == 1
    assert sorted(path.name for path in folder.iterdir()) == sorted([*FOUR, "DONE"])
    for (protocol, shots), alone in evaluations.items():
        own = folder / f"{protocol}-{shots}"
        assert {path.name for path in own.iterdir()} == {path.name for path in alone.iterdir()}
        assert f"protocol: {protocol}\n" in (own / "config.yaml").read_text()
        assert f"shots: {shots}\n" in (own / "config.yaml").read_text()
        found, expected = (json.loads((each / "results.json").read_text()) for each in (own, alone))
        assert found["benchmark"] == expected["benchmark"]
        assert found["tasks"].keys() == expected["tasks"].keys()
        told, alone_told = answers_in(own), answers_in(alone)
        assert told.keys() == alone_told.keys()
        for key, line in alone_told.items():
            assert (told[key]["key"], told[key]["prompt"]) == (line["key"], line["prompt"])
            assert told[key]["answer_log_probs"] == pytest.approx(line["answer_log_probs"], abs=1e-4)
            assert told[key]["text"] == line["text"] or line["smallest_gap"] < 1e-4
        assert f"{protocol}, {shots}" in " ".join(outcome.err.split()), "a table of its own"


@pytest.mark.thorough
def test_the_parent_folder_is_scored_whole(all_ways, tmp_path):
    folder = tmp_path / "moved"
    shutil.copytree(all_ways[0], folder)
    before = contents(folder)
    for path in (*folder.glob("*/results.json"), *folder.glob("**/DONE")):
        path.unlink()
    outcome = run_here("score", f"run.dir={folder}")
    assert outcome.code == 0, outcome.err
    assert contents(folder).keys() == before.keys()
    for way in FOUR:
        assert (folder / way / "results.json").read_bytes() == before[f"{way}/results.json"]
    by_text = run_here("score", f"run.dir={folder}", "evaluation.choice=text")
    assert by_text.code == 0, by_text.err
    choices = [json.loads((folder / way / "results.json").read_text())["benchmark"]["choice"] for way in FOUR]
    assert choices == ["text", "text", "letter", "letter"]


@pytest.mark.thorough
def test_each_way_goes_on_and_is_guarded_by_itself(world, patient_model, all_ways, full_run, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(all_ways[0], folder)
    cut = folder / "official-few_shot" / "predictions" / "real_text_cloze.jsonl"
    lines = cut.read_bytes().splitlines(keepends=True)
    cut.write_bytes(lines[0] + lines[1][:30])
    before = contents(folder)
    words = (*world.data, *TWO, *BOTH, f"run.dir={folder}")
    assert run_here("predict", *words, f"model.path={patient_model}").code == 0
    after = contents(folder)
    changed = {name for name in before if name.endswith(".jsonl") and after.get(name) != before[name]}
    assert changed == {"official-few_shot/predictions/real_text_cloze.jsonl"}
    assert cut.read_bytes().startswith(lines[0])
    assert len(read_json_lines(cut)) == 2
    assert not (folder / "DONE").exists(), "predicted again, not scored"

    other = f"model.path={full_run[0] / 'model'}"
    zero = ("evaluation.protocol=both", "evaluation.shots=zero_shot", "evaluation.splits=[real]")
    words = (*world.data, *TWO, *zero, f"run.dir={folder}", other)
    refused = run_here("predict", *words)
    assert refused.code == 2
    assert "fixed-zero_shot holds the evaluation of another model" in " ".join(refused.err.split())
    assert run_here("predict", *words, "run.overwrite=true").code == 0
    cards = [json.loads((folder / way / "model.json").read_text())["fingerprint"] for way in FOUR]
    assert cards[0] == cards[2] != cards[1] == cards[3]
    assert not (folder / "fixed-zero_shot" / "results.json").exists()


def test_both_is_refused_where_one_way_is_needed(world, patient_model, tmp_path):
    outcome = run_here("probe", "data=mllmu", *world.data, f"model.path={patient_model}", *BOTH, f"run.dir={tmp_path / 'run'}")
    assert outcome.code == 2
    assert "`both` is for the verbs evaluate and predict" in " ".join(outcome.err.split())
    assert not (tmp_path / "run").exists()
    loaded = load(ModelConfig(path=str(patient_model)))
    with pytest.raises(ConfigError, match="one way at a time"):
        evaluate(loaded.model, loaded.processor, world.benchmark(), settings=EvaluationSettings(protocol=Protocol.both))
