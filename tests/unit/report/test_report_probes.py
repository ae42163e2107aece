"""A run of `mmunlearn probe` in a report: its numbers stand there, and its people under the labels of the report."""

import csv
import json

import pytest
from made_up_study import FORGET, NOBODY, fabricate_evaluation
from scipy.stats import binomtest

from mmunlearn.benchmarks.pseudonyms import pseudonyms
from mmunlearn.errors import RunError
from mmunlearn.evaluation.probe_people import RULE, Answered, Verdict, judge, together
from mmunlearn.report.collect import redact
from mmunlearn.report.export import write_tables
from mmunlearn.report.groups import collect_groups, labels_of_people
from mmunlearn.report.html import write_report
from mmunlearn.report.probes import probe_cells
from mmunlearn.run import Run, write_json, write_json_lines

TASK = "forget_image_choice"
UNASKED = "Hester Vanbrugh"
PEOPLE = (*FORGET[:3], NOBODY[0], UNASKED, "stand-in 7")


@pytest.fixture(scope="module")
def evaluation(tmp_path_factory):
    return fabricate_evaluation(tmp_path_factory.mktemp("probed") / "vanilla", "vanilla", only=(TASK,))


def fabricate_probe(root, *, fingerprint="other", named=False):
    """Person k gets k of 6 questions right, as `mmunlearn probe` stores it; judged by the real rule."""
    run = Run(root)
    lines = [
        {"id": f"{place}-{number}", "subject": name, "metrics": {"accuracy": float(number < place + 1)}}
        for place, name in enumerate(PEOPLE)
        for number in range(6)
    ]
    write_json_lines(run.scores(TASK), lines)
    labels = {name: name for name in PEOPLE} if named else pseudonyms(set(PEOPLE))
    answers = [Answered(subject=line["subject"], metrics=line["metrics"], chance=0.25) for line in lines]
    real = [answer for answer in answers if not answer.subject.startswith("stand-in")]
    invented = [answer for answer in answers if answer.subject.startswith("stand-in")]
    people = judge(real, labels)
    found = {
        "schema": 1,
        "benchmark": {"name": "people", "version": "1", "choice": "letter"},
        "model": {"fingerprint": fingerprint, "role": "base", "method": "none", "seed": 0, "label": "LLaVA 7B"},
        "rule": RULE,
        "remarks": ["A remark."],
        "verdicts": {str(verdict): sum(person.verdict is verdict for person in people) for verdict in Verdict},
        "together": together(real).to_json(),
        "people": [person.to_json() for person in people],
        "stand_ins": {
            "verdicts": {"knows": 1},
            "together": together(invented).to_json(),
            "people": [person.to_json() for person in judge(invented, labels)],
        },
    }
    write_json(run.probe, found)
    return root


def page(folder, groups, show=False):
    write_report(folder, groups[0], benchmark=None, show_subjects=show, title="t", banner=None, commands=["probe " + UNASKED])
    return (folder / "report.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("named", [False, True])
def test_people_have_the_labels_of_the_report_and_no_name_is_shown(evaluation, tmp_path, named):
    """Whether or not the probe wrote names, and though one of its people was never asked about otherwise."""
    groups = collect_groups([fabricate_probe(tmp_path / "probe", named=named), evaluation], {})
    labels = labels_of_people(groups)
    (probe,) = groups[0].probes
    right = {person.label: person.found["choice"]["right"] for person in probe.people}
    assert right == {labels[name]: place + 1 for place, name in enumerate(PEOPLE[:-1])}
    assert labels[UNASKED] == "person 14"  # 12 forget people and one of the holdout come before
    text = page(tmp_path / "page", groups)
    assert [name for name in PEOPLE[:-1] if name in text] == []
    assert "probe person 14" in text
    section = text.split('<h2 id="probe">')[1].split("<h2")[0]
    assert "LLaVA 7B, asked about 5 people" in section
    assert f'<th scope="row">{labels[FORGET[2]]}</th><td class="figure">6</td><td class="figure">3/6</td>' in section
    assert "All together 15 of 30 choice questions right" in section
    assert "6 of 6 right" in section
    assert "A remark." in section
    assert 'href="#probe"' in text


def test_names_are_shown_when_told(evaluation, tmp_path):
    groups = collect_groups([fabricate_probe(tmp_path / "probe"), evaluation], {})
    text = page(tmp_path / "page", groups, show=True)
    assert [name for name in PEOPLE[:-1] if name not in text] == []


@pytest.fixture(scope="module")
def written(evaluation, tmp_path_factory):
    """A report with a probe, its tables, and the probe's own file."""
    root = tmp_path_factory.mktemp("report")
    folder = fabricate_probe(root / "probe")
    groups = collect_groups([folder, evaluation], {})
    labels = labels_of_people(groups)
    page(root / "out", groups)
    run = Run(root / "out")
    write_tables(run, groups, title="t", safe=lambda text: redact(text, labels))
    return run, json.loads(Run(folder).probe.read_text()), labels


def test_every_number_of_the_page_is_in_the_results(written):
    run, probe, labels = written
    rows = [row for row in json.loads(run.results.read_text()) if row["task"] == "probe"]
    found = {(row["of"], row["metric"]): (row["value"], row["count"], row["unscored"]) for row in rows}
    assert len(found) == len(rows) == 3 + 3 + 7 * 5
    by_name = {name: label for label, name in pseudonyms(set(PEOPLE)).items()}
    for person in probe["people"]:
        label = labels[by_name[person["person"]]]
        right, count = person["choice"]["right"], person["choice"]["count"]
        assert found[label, "probe_accuracy"] == (right / count, 6, 0)
        assert found[label, "probe_p_value"] == (person["p_holm"], 6, 0)
        assert found[label, "probe_chance"] == (0.25, 6, 0)
        assert found[label, "probe_knows"] == (float(person["verdict"] == "knows"), 1, 0)
        for metric in ("probability", "cloze_accuracy", "rougeL"):  # the questions were multiple choice without likelihoods
            assert found[label, metric] == (None, 0, 0)
    assert {found[of, "probe_knows"][0] for of in labels.values() if (of, "probe_knows") in found} == {0.0, 1.0}
    assert found["everybody", "probe_accuracy"] == (15 / 30, 30, 0)
    assert found["everybody", "probe_p_value"] == (pytest.approx(binomtest(15, 30, 0.25, alternative="greater").pvalue), 30, 0)
    assert found["everybody", "probe_knows"] == (probe["verdicts"]["knows"] / 5, 5, 0)
    assert found["stand-ins", "probe_accuracy"] == (1, 6, 0)
    assert {(row["benchmark"], row["version"], row["protocol"]) for row in rows} == {("people", "1", "probe")}
    assert {(row["fingerprint"], row["role"], row["method"], row["seed"]) for row in rows} == {("other", "base", "none", 0)}


def test_too_few_questions_are_no_verdict(evaluation, tmp_path):
    folder = fabricate_probe(tmp_path / "probe")
    found = json.loads(Run(folder).probe.read_text())
    found["people"][0] |= {"verdict": "too few questions", "p_holm": None}
    found["verdicts"] = {"knows": 1, "no sign": 3, "too few questions": 1}
    found["people"][1] |= {
        "cloze": {"count": 4, "right": 3, "mean": 0.75},
        "probability": {"count": 10, "right": None, "mean": 0.3},
    }
    found["people"][1] |= {"rouge_l": {"count": 2, "right": None, "mean": 0.6}}
    write_json(Run(folder).probe, found)
    groups = collect_groups([folder, evaluation], {})
    page(tmp_path / "page", groups)
    rows = [row for row in json.loads(Run(tmp_path / "page").results.read_text()) if row["task"] == "probe"]
    first, second = (groups[0].probes[0].people[place].label for place in (0, 1))
    values = {(row["of"], row["metric"]): (row["value"], row["count"], row["unscored"]) for row in rows}
    assert values[first, "probe_knows"] == (None, 0, 1)
    assert values[first, "probe_p_value"] == (None, 6, 0)
    assert values["everybody", "probe_knows"] == (0.25, 4, 1)
    assert values[second, "cloze_accuracy"] == (0.75, 4, 0)
    assert values[second, "probability"] == (0.3, 10, 0)
    assert values[second, "rougeL"] == (0.6, 2, 0)
    assert dict(probe_cells(groups[0].probes[0]))[second][4:7] == ("0.30", "3/4", "0.60")


def test_the_tables_show_a_probe_too(written):
    run, probe, labels = written
    texts = {kind: run.tables(kind).read_text(encoding="utf-8") for kind in ("md", "tex", "csv")}
    assert not [name for text in texts.values() for name in PEOPLE[:-1] if name in text]
    section = texts["md"].split("## Whom a model is shown to know")[1].split("\n## ")[0]
    assert "### LLaVA 7B, asked about 5 people (people 1, choice score letter)" in section
    by_name = {name: label for label, name in pseudonyms(set(PEOPLE)).items()}
    for person in probe["people"]:
        p_value = "< 0.001" if person["p_holm"] < 0.001 else f"{person['p_holm']:.3f}" if person["p_holm"] < 0.1 else None
        shown = f"{person['p_holm']:.2f}" if p_value is None else p_value.replace("<", "\\<")
        choice = f"{person['choice']['right']}/6"
        assert (
            f"| {labels[by_name[person['person']]]} | 6 | {choice} | 0.25 | {shown} | – | – | – | {person['verdict']} |"
            in section
        )
    assert "All together: 15 of 30 choice questions right, p 0.003 against guessing." in section
    assert "Fictitious stand-ins: 6 of 6 choice questions right" in section
    assert "1 of 1 would count as known" in section
    assert "A remark." in section
    assert "Whom a model is shown to know. LLaVA 7B" in texts["tex"]
    rows = [row for row in csv.DictReader(texts["csv"].splitlines()) if row["task"] == "probe"]
    assert len(rows) == 41
    assert {row["label"] for row in rows} == {"LLaVA 7B"}
    assert {row["of"] for row in rows} == {"everybody", "stand-ins", *(labels[name] for name in PEOPLE[:-1])}


def test_a_report_without_a_probe_has_no_such_rows(evaluation, tmp_path):
    groups = collect_groups([evaluation], {})
    page(tmp_path, groups)
    write_tables(Run(tmp_path), groups, title="t", safe=str)
    assert "probe" not in Run(tmp_path).results.read_text() + Run(tmp_path).tables("md").read_text()


def test_people_and_labels_of_models_are_named_nowhere(evaluation, tmp_path):
    """A label of the user's may hold a name; where names may be shown the files beside the page still have labels."""
    folder = fabricate_probe(tmp_path / "probe")
    found = json.loads(Run(folder).probe.read_text())
    found["model"] |= {"label": f"without {UNASKED}", "method": f"my.{UNASKED}"}
    write_json(Run(folder).probe, found)
    groups = collect_groups([evaluation, folder], {})
    for show in (False, True):
        run, labels = Run(tmp_path / str(show)), {} if show else labels_of_people(groups)
        page(run.root, groups, show=show)
        write_tables(run, groups, title="t", safe=lambda text, labels=labels: redact(text, labels))
        for file in (run.results, run.tables("md"), run.tables("tex"), run.tables("csv")):
            text = file.read_text(encoding="utf-8")
            assert not [name for name in PEOPLE[:-2] if name in text]
            assert (UNASKED in text) == show
        assert "person 14" in run.results.read_text()


def test_without_scores_everybody_is_a_person(evaluation, tmp_path):
    folder = fabricate_probe(tmp_path / "probe", named=True)
    Run(folder).scores(TASK).unlink()
    groups = collect_groups([folder, evaluation], {})
    assert {person.label for person in groups[0].probes[0].people} == {"a person"}
    assert UNASKED not in page(tmp_path / "page", groups).replace("probe " + UNASKED, "")


def test_a_probed_model_of_the_report_has_its_name_there(evaluation, tmp_path):
    fingerprint = json.loads(Run(evaluation).results.read_text())["model"]["fingerprint"]
    groups = collect_groups([evaluation, fabricate_probe(tmp_path / "probe", fingerprint=fingerprint)], {})
    assert groups[0].probes[0].label == "vanilla"
    assert [model.label for model in groups[0].evaluations] == ["vanilla"]


def test_a_report_without_a_probe_has_no_such_section(evaluation, tmp_path):
    text = page(tmp_path, collect_groups([evaluation], {}))
    assert 'id="probe"' not in text
    assert 'href="#probe"' not in text


def test_what_is_no_probe_is_refused(evaluation, tmp_path):
    alone = fabricate_probe(tmp_path / "probe")
    with pytest.raises(RunError, match="runs of `mmunlearn probe` alone"):
        collect_groups([alone], {})
    write_json(Run(alone).probe, {"schema": 7})
    with pytest.raises(RunError, match="expected what `mmunlearn probe` writes"):
        collect_groups([evaluation, alone], {})
    Run(alone).probe.write_text("{")
    with pytest.raises(RunError, match="not JSON"):
        collect_groups([evaluation, alone], {})
