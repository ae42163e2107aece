"""A run of `mmunlearn probe` in a report: its numbers stand there, and its people under the labels of the report."""

import json

import pytest
from made_up_study import FORGET, NOBODY, fabricate_evaluation

from mmunlearn.benchmarks.pseudonyms import pseudonyms
from mmunlearn.errors import RunError
from mmunlearn.evaluation.probe_people import RULE, Answered, Verdict, judge, together
from mmunlearn.report.groups import collect_groups, labels_of_people
from mmunlearn.report.html import write_report
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
