"""The page: self-contained, escaped, silent about people unless told otherwise, the same bytes every time."""

import base64
import json
import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest
from made_up_study import ANSWERS, FORGET, RETAIN, MadeUpBenchmark, all_tasks, fabricate_evaluation

from mmunlearn.errors import RunError
from mmunlearn.report.collect import Training, collect
from mmunlearn.report.further import further, further_rows
from mmunlearn.report.gallery import gallery
from mmunlearn.report.html import _shade, _without_forget_list, _without_forget_words, write_report
from mmunlearn.run import Run, write_json

VOID = {"meta", "img", "br", "hr", "link", "input"}


class Page(HTMLParser):
    """Checks that tags nest, and gathers what the tests ask about."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.text = [], [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def page(tmp_path, collected, **changes):
    settings = {
        "benchmark": MadeUpBenchmark(),
        "show_subjects": False,
        "title": "A study",
        "banner": "This checks the machinery, it ranks no methods.",
        "commands": ["mmunlearn report"],
    }
    write_report(tmp_path, collected, **(settings | changes))
    return Run(tmp_path).report.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def written(collected, tmp_path_factory):
    """The folders of the report that shows people and of the one that does not; read only."""
    folders = {show: tmp_path_factory.mktemp("report") for show in (True, False)}
    for show, folder in folders.items():
        page(folder, collected, show_subjects=show)
    return folders


@pytest.fixture(scope="module")
def shown(written):
    """The page that shows people."""
    return Run(written[True]).report.read_text(encoding="utf-8")


def test_the_page_nests_and_opens_offline(shown):
    parsed = Page(shown)
    assert parsed.open == []
    assert not re.search(r"https?://", shown)
    assert not [tag for tag, _ in parsed.tags if tag in ("script", "link", "iframe", "object")]
    for _, attributes in parsed.tags:
        for name in ("src", "href", "srcset"):
            assert (attributes.get(name) or "#").startswith(("data:", "#"))
    assert "url(" not in shown
    assert "@import" not in shown


def test_accessible(shown):
    parsed = Page(shown)
    assert all(attributes.get("alt") for tag, attributes in parsed.tags if tag == "img")
    assert all(attributes.get("scope") for tag, attributes in parsed.tags if tag == "th")
    ids = [attributes["id"] for _, attributes in parsed.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    targets = {attributes["href"] for tag, attributes in parsed.tags if tag == "a"}
    assert targets <= {f"#{name}" for name in ids}


def test_contents(written):
    text = "".join(Page(Run(written[False]).report.read_text(encoding="utf-8")).text)
    for expected in ("it ranks no methods", "memorised", "inside gold’s interval", "guessing", "★ best", "▽ worst", "person 1"):
        assert expected in text
    for expected in ("torch 2.9.1", "0123456789ab", "mmunlearn report", "transformers 5.23.0", "ROUGE-L"):
        assert expected in text
    assert "Gold models that differ only in their seed" in text
    assert "Every rule by which this report decides, with its number" in text
    for rule in ("above 0.05 (report.gate_margin)", "above 0.50 of vanilla − gold, the margin", "margin: "):
        assert rule in text


def test_nobody_is_named_unless_told(tmp_path, collected):
    text = page(tmp_path, collected, title=f"Forgetting {FORGET[0]}", commands=[f"--forget '{FORGET[1]}'"])
    secrets = {*FORGET, *RETAIN, *ANSWERS, "Thistlewick", "data:image/jpeg"}
    secrets |= {example.question for task in all_tasks() for example in task.examples}
    secrets |= {example.answer for task in all_tasks() for example in task.examples}
    assert [secret for secret in secrets if secret in text] == []
    assert "forget: (withheld)" in text  # the configuration is there, without the name
    written = Run(tmp_path).results.read_text(encoding="utf-8")
    assert [secret for secret in secrets if secret in written] == []


def test_labels_and_notes_name_nobody_either(tmp_path, collected):
    label = f"without {FORGET[0]}"
    named = replace(collected.evaluations[-1], label=label)
    training = replace(collected.trainings[0], label=label)
    study = replace(
        collected, evaluations=(*collected.evaluations[:-1], named), trainings=(training,), notes=(f"{label}: other goal",)
    )
    text = page(tmp_path, study, others=[replace(study, protocol="official")])
    pictures = [base64.b64decode(code).decode("latin-1") for code in re.findall(r"base64,([A-Za-z0-9+/=]+)", text)]
    assert pictures
    assert not [part for part in (text, *pictures) if "Thistlewick" in part]
    assert any("without person" in part for part in pictures)


def test_names_faces_and_answers_are_there_when_told(shown, tmp_path, collected):
    assert all(name in shown for name in FORGET)
    assert shown.count("data:image/jpeg") == 9
    assert any(answer in shown for answer in ANSWERS)
    assert "data:image/jpeg" not in page(tmp_path, collected, show_subjects=True, benchmark=None)


def test_everything_is_escaped(tmp_path, collected):
    evil = "<script>alert(1)</script>"
    model = collected.evaluations[-1]
    scores = {
        task: {id_: replace(question, subject=evil + question.subject) for id_, question in questions.items()}
        for task, questions in model.scores.items()
    }
    environment = {"command": evil, "commit": evil, "packages": {evil: evil}}
    record = replace(model.record, config=evil, environment=environment)
    nasty = replace(model, label=evil, method=evil, fingerprint=evil, scores=scores, record=record)
    training = Training(label=evil, steps=collected.trainings[0].steps, record=record)
    study = replace(
        collected, evaluations=(*collected.evaluations[:-1], nasty), trainings=(training,), benchmark=evil, notes=(evil,)
    )
    for show in (True, False):
        text = page(tmp_path, study, show_subjects=show, title=evil, banner=evil, commands=[evil])
        assert "<script" not in text
        assert "&lt;script&gt;" in text
        assert Page(text).open == []


def test_same_input_same_bytes(shown, written, tmp_path, collected):
    assert page(tmp_path, collected, show_subjects=True) == shown
    assert Run(tmp_path).results.read_bytes() == Run(written[True]).results.read_bytes()


def test_results_lie_beside_it(written, collected):
    folder = written[False]
    rows = json.loads(Run(folder).results.read_text())
    assert rows[: len(collected.rows())] == collected.rows()
    assert rows[len(collected.rows()) :] == further_rows(further(collected, MadeUpBenchmark()))
    assert sorted(file.name for file in folder.iterdir()) == ["report.html", "results.json"]


def test_a_report_may_be_written_again(tmp_path, collected):
    page(tmp_path, collected)
    page(tmp_path, collected)


def test_results_of_an_evaluation_are_not_overwritten(tmp_path, collected):
    write_json(Run(tmp_path).results, {"schema": 1})
    with pytest.raises(RunError, match="folder of its own"):
        page(tmp_path, collected)


@pytest.mark.parametrize("only", [("forget_image_choice",), ("retain_text_cloze",), ("general_image_choice",)])
def test_a_single_task_and_a_single_model_make_a_page(tmp_path, only):
    study = collect([fabricate_evaluation(tmp_path / "e", "GradDiff", only=only)], {})
    text = page(tmp_path / "r", study, show_subjects=True, banner=None)
    assert Page(text).open == []
    assert "Shaded" not in text


def test_shades_have_readable_ink():
    def luminance(colour):
        parts = [int(colour[index : index + 2], 16) / 255 for index in (1, 3, 5)]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))

    for step in range(101):
        shade = _shade(step / 100)
        high, low = sorted((luminance(shade.background), luminance(shade.ink)), reverse=True)
        assert (high + 0.05) / (low + 0.05) >= 4.5


@pytest.mark.parametrize(
    "recorded",
    ["data:\n  forget: [Zoe Notasked, Bo]\n  seed: 0\n", "data:\n  forget:\n  - Zoe Notasked\n  - Bo\n  seed: 0\n"],
)
def test_a_recorded_forget_list_is_withheld(recorded):
    """It may name people whom no question was about, so that their names are not known to the report."""
    assert _without_forget_list(recorded) == "data:\n  forget: (withheld)\n  seed: 0\n"
    assert _without_forget_list("data:\n  forget: ''\n  seed: 0\n") == "data:\n  forget: ''\n  seed: 0\n"


@pytest.mark.parametrize("key", ["forget", "earlier", "requests"])
@pytest.mark.parametrize("indent", ["  ", "    "])
@pytest.mark.parametrize(
    "people",
    [" [Zoe Notasked, Bo]", "\n{0}- Zoe Notasked\n{0}- Bo", "\n{0}- - Zoe Notasked\n{0}  - Bo\n{0}- - Al", " Zoe Notasked"],
)
def test_lists_of_requests_are_withheld_wherever_they_stand(key, indent, people):
    """A sequence writes them below the benchmark that it splits anew, and one list a request."""
    recorded = f"data:\n{indent}{key}:{people.format(indent)}\n{indent}seed: 0\n"
    assert _without_forget_list(recorded) == f"data:\n{indent}{key}: (withheld)\n{indent}seed: 0\n"


@pytest.mark.parametrize("key", ["data.of.forget", "data.earlier", "sequence.requests"])
def test_typed_lists_of_requests_are_withheld(key):
    typed = f"mmunlearn sequence {key}=[[Zoe Notasked],[Bo]] run.seed=0"
    assert _without_forget_words(typed, {"Ann": "person 1"}) == f"mmunlearn sequence {key}=(withheld) run.seed=0"


def test_a_typed_forget_list_is_withheld():
    for people in ("[Zoe Notasked,Bo]", "Zoe Notasked", "'Zoe Notasked'", "people.txt"):
        typed = f"mmunlearn unlearn data.forget={people} run.seed=0"
        assert _without_forget_words(typed, {"Ann": "person 1"}) == "mmunlearn unlearn data.forget=(withheld) run.seed=0"
        assert _without_forget_words(typed, {}) == typed


def test_a_choice_shows_the_option_that_counts_and_what_was_written(tmp_path, collected):
    """A model may write another letter than that of the option it finds most probable."""

    def choices(score):
        people = gallery(replace(collected, choice=score), MadeUpBenchmark())
        return [(asked, reply) for person in people for asked in person.asked if asked.choices for reply in asked.replies]

    assert {reply.verdict for _, reply in choices("letter")} == {"right", "wrong"}
    assert all((reply.verdict == "right") == (reply.picked == asked.answer) for asked, reply in choices("letter"))  # as scored
    assert all(not reply.picked for _, reply in choices(""))
    shown = page(tmp_path, replace(collected, choice="letter"), show_subjects=True)
    assert "<small>wrote: " in shown
    assert "most probable option that counts, by its letter" in shown
    assert "wrote: " not in page(tmp_path, replace(collected, choice=""), show_subjects=True)
