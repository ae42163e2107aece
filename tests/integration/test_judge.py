"""`mmunlearn judge` on a finished evaluation, against a local server that rates, refuses, breaks off and dies."""

import json
import math
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from command_cases import SIZE, command_environment, contents, run_here
from fake_endpoint import Answer, fake_endpoint, refused, said

from mmunlearn.benchmarks.table import Table
from mmunlearn.judge import client, job
from mmunlearn.judge.ratings import FREE_KINDS, read_ratings
from mmunlearn.metrics.statistics import clustered_interval
from mmunlearn.metrics.text import rouge_l
from mmunlearn.models.load import save
from mmunlearn.models.tiny import build_tiny
from mmunlearn.report.words import kinds_of
from mmunlearn.run import Run

PEOPLE = {
    "Ada Vane": ("baker", "Tarn"),
    "Bo Holt": ("judge", "Lind"),
    "Cy Marsh": ("sailor", "Velm"),
    "Di Reed": ("pilot", "Bern"),
}
FORGET = ("Ada Vane", "Bo Holt")
TASKS = ("forget_text_generation", "retain_text_generation")
KEY = "sk-not-to-be-seen-42"


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A real evaluation of an untrained model, which is not to be changed."""
    root = tmp_path_factory.mktemp("finished")
    rows = ["subject,kind,question,answer,options"]
    for name, (trade, town) in PEOPLE.items():
        rows += [f"{name},generation,Who is {name}?,{name} is a {trade} from {town}.,"]
        rows += [f"{name},generation,Where does {name} live?,{name} lives in {town}.,"]
        rows += [f"{name},choice,What is the trade of {name}?,{trade},baker|judge|sailor|pilot"]
        rows += [f"{name},cloze,{name} lives in ____.,{town},"]
    (root / "people.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    examples = Table(root=str(root), table="people.csv", forget="*").splits().full
    texts = [text for e in examples for text in (e.question, e.answer)]
    save(*build_tiny([*texts, *(f"{x}: {text}" for x in "ABCD" for text in texts)], seed=0, size=SIZE), root / "llava", {})
    words = ("data=table", f"data.root={root}", "data.table=people.csv", f"data.forget=[{','.join(FORGET)}]")
    outcome = run_here("evaluate", *words, f"model.path={root / 'llava'}", "model.dtype=float32", f"run.dir={root / 'run'}")
    assert outcome.code == 0, outcome.err
    return root / "run"


@pytest.fixture
def folder(finished, tmp_path):
    """A copy whose answers are all unlike."""
    copy = tmp_path / "eval"
    shutil.copytree(finished, copy)
    for task in TASKS:
        change_answers(copy, task, lambda id_, expected: f"I say {id_}.")
    return copy


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(client, "FIRST_PAUSE", 0.001)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)


def change_answers(folder, task, answer):
    """Put other words into the model's mouth."""
    path = Run(folder).predictions(task)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    for line in lines:
        line["text"] = answer(line["id"], "")
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def judge(endpoint, *folders, yes=True, **settings):
    words = [f"judge.{name}={value}" for name, value in {"retries": 1, "timeout": 5, **settings}.items()]
    named = ",".join(map(str, folders))
    return run_here(
        "judge", f"judge.url={endpoint.url}", "judge.model=fake", f"judge.evaluations=[{named}]", f"judge.yes={yes}", *words
    )


def by_rouge(asked, _):
    """Rates as ROUGE-L does, so that what is read back can be computed here."""
    return said(json.dumps({"score": round(1 + 9 * rouge_l(asked.part("expected answer"), asked.part("answer to rate")), 3)}))


def lines_of(folder, task):
    return [json.loads(line) for line in Run(folder).judged(task).read_text().splitlines()]


def scores_of(folder):
    return {id_: line["score"] for task in TASKS for id_, line in read_ratings(Run(folder), task).lines.items()}


# --- what is asked and what is written --------------------------------------------------------------------------------


def test_every_free_answer_is_rated_with_its_own_question(folder):
    with fake_endpoint(by_rouge) as endpoint:
        outcome = judge(endpoint, folder)
    assert outcome.code == 0, outcome.err
    asked = {(a.part("question"), a.part("expected answer")): a.part("answer to rate") for a in endpoint.asked}
    expected = {}
    for name, (trade, town) in PEOPLE.items():
        expected[f"Who is {name}?"] = f"{name} is a {trade} from {town}."
        expected[f"Where does {name} live?"] = f"{name} lives in {town}."
    assert {question: answer for question, answer in asked} == expected
    assert len(endpoint.asked) == 8
    for task in TASKS:
        lines = lines_of(folder, task)
        assert len(lines) == 4
        for line in lines:
            assert line["subject"] in PEOPLE
            assert (line["subject"] in FORGET) == (task == TASKS[0])
            assert line["reply"] == json.dumps({"score": line["score"]})
            assert (line["finish"], line["answered_by"], line["tokens_in"]) == ("stop", "fake-2026", 100)
            (text,) = (p["text"] for p in map(json.loads, Run(folder).predictions(task).open()) if p["id"] == line["id"])
            truths = [truth for (q, truth), said_ in asked.items() if said_ == text]
            assert line["score"] == pytest.approx(round(1 + 9 * rouge_l(truths[0], text), 3))
    assert not Run(folder).judged("forget_text_choice").exists()
    assert not Run(folder).judged("forget_text_cloze").exists()


def test_nothing_else_in_the_folder_changes_and_the_key_is_nowhere(folder):
    before = contents(folder)
    with fake_endpoint(by_rouge) as endpoint:
        outcome = judge(endpoint, folder)
    after = contents(folder)
    assert {name: after[name] for name in before} == before
    assert set(after) - set(before) == {f"judged/{task}.jsonl" for task in TASKS}
    assert KEY not in outcome.err + outcome.out + "".join(text.decode(errors="replace") for text in after.values())
    assert {asked.headers["authorization"] for asked in endpoint.asked} == {f"Bearer {KEY}"}


def test_the_table_shows_the_mean_clustered_by_person(folder):
    ratings = {"Ada Vane": (2, 4), "Bo Holt": (6, 9)}

    def respond(asked, _):
        for name, (first, second) in ratings.items():
            if name in asked.part("question"):
                return said(str(first if "Who" in asked.part("question") else second))
        return said("no idea")

    with fake_endpoint(respond) as endpoint:
        outcome = judge(endpoint, folder)
    assert outcome.code == 0, outcome.err
    truth = clustered_interval([2, 4, 6, 9], ["a", "a", "b", "b"], bounds=(1, 10))
    (forget,) = (line for line in outcome.err.splitlines() if TASKS[0] in line)
    assert [part.strip() for part in forget.split("│")[2:6]] == ["5.25", f"{truth.low:.2f} – {truth.high:.2f}", "4", "0"]
    (retain,) = (line for line in outcome.err.splitlines() if TASKS[1] in line)
    assert [part.strip() for part in retain.split("│")[2:6]] == ["–", "–", "4", "4"]


def test_unreadable_replies_are_kept_counted_and_not_asked_for_again(folder):
    with fake_endpoint(lambda *_: said("It is 7, or 8.")) as endpoint:
        first, second = judge(endpoint, folder), judge(endpoint, folder)
    assert (first.code, second.code) == (0, 0)
    assert len(endpoint.asked) == 8
    assert {line["reply"] for line in lines_of(folder, TASKS[0])} == {"It is 7, or 8."}
    assert set(scores_of(folder).values()) == {None}


def test_a_reply_that_was_cut_off_is_not_read(folder):
    with fake_endpoint(lambda *_: said("Score: 1", finish="length")) as endpoint:
        assert judge(endpoint, folder).code == 0
    assert set(scores_of(folder).values()) == {None}
    assert {line["finish"] for line in lines_of(folder, TASKS[0])} == {"length"}


# --- never twice ------------------------------------------------------------------------------------------------------


def test_a_repeat_asks_nothing_and_leaves_every_byte(folder):
    with fake_endpoint(by_rouge) as endpoint:
        judge(endpoint, folder)
        before = contents(folder)
        again = judge(endpoint, folder, yes=False)  # nothing to consent to
        assert len(endpoint.asked) == 8
    assert again.code == 0, again.err
    assert {name: sorted(text.splitlines()) for name, text in contents(folder).items()} == {
        name: sorted(text.splitlines()) for name, text in before.items()
    }


def test_equal_answers_in_several_evaluations_are_asked_about_once(folder, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(folder, other)
    different = "Somebody else."
    change_answers(other, TASKS[1], lambda *_: different)
    with fake_endpoint(by_rouge) as endpoint:
        assert judge(endpoint, folder, other).code == 0
        assert len(endpoint.asked) == 8 + 4
        assert len(scores_of(folder)) == len(scores_of(other)) == 8
        third = tmp_path / "third"
        shutil.copytree(other, third, ignore=shutil.ignore_patterns("judged"))
        assert judge(endpoint, third, folder, other).code == 0  # from the files of the others
        assert len(endpoint.asked) == 8 + 4
    assert scores_of(third) == scores_of(other)
    assert {line["key"] for line in lines_of(folder, TASKS[0])} == {line["key"] for line in lines_of(other, TASKS[0])}


def test_a_changed_answer_is_asked_about_anew_and_the_old_rating_goes(folder):
    with fake_endpoint(by_rouge) as endpoint:
        judge(endpoint, folder)
        old = scores_of(folder)
        changed = next(iter(read_ratings(Run(folder), TASKS[0]).lines))
        truth = {a.part("answer to rate"): a.part("expected answer") for a in endpoint.asked}[f"I say {changed}."]
        change_answers(folder, TASKS[0], lambda id_, _: truth if id_ == changed else f"I say {id_}.")
        assert scores_of(folder) == {id_: score for id_, score in old.items() if id_ != changed}
        assert read_ratings(Run(folder), TASKS[0]).replaced == 1
        assert judge(endpoint, folder).code == 0
    assert len(endpoint.asked) == 9
    assert scores_of(folder) == old | {changed: 10}
    assert len(lines_of(folder, TASKS[0])) == 4


def test_another_judge_rates_anew_and_both_are_kept(folder):
    with fake_endpoint(by_rouge) as endpoint:
        judge(endpoint, folder)
        first = scores_of(folder)
    with fake_endpoint(lambda *_: said("3")) as second:
        judge(second, folder, limit=2)
        assert len(second.asked) == 4
        assert scores_of(folder) == first, "a few ratings do not take the place of all"
    assert len(lines_of(folder, TASKS[0])) == 4 + 2
    named = {line["judge"]["endpoint"]: line["judge"] for line in lines_of(folder, TASKS[0])}
    assert named.keys() == {endpoint.url.removeprefix("http://"), second.url.removeprefix("http://")}
    with fake_endpoint(by_rouge) as third:
        endpoint_again = f"judge.url={endpoint.url}"  # nobody is there now; nothing needs to be asked
        outcome = run_here("judge", endpoint_again, "judge.model=fake", f"judge.evaluations=[{folder}]")
        assert outcome.code == 0, outcome.err
        assert third.asked == []
    assert scores_of(folder) == first
    assert len(lines_of(folder, TASKS[0])) == 4 + 2
    with fake_endpoint(lambda *_: said("3")) as fourth:
        judge(fourth, folder)
    assert scores_of(folder) == dict.fromkeys(first, 3), "of two full sets the later one counts"


def test_the_same_words_to_a_question_that_changed_have_no_rating(folder):
    """The key of a stored answer stands for model, question, expected answer and settings."""
    with fake_endpoint(by_rouge) as endpoint:
        judge(endpoint, folder)
    path = Run(folder).predictions(TASKS[0])
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps(line | {"key": "another"}) + "\n" for line in lines))
    found = read_ratings(Run(folder), TASKS[0])
    assert (found.lines, found.replaced) == ({}, 4)


def test_another_model_or_prompt_is_another_judge(folder, monkeypatch):
    with fake_endpoint(by_rouge) as endpoint:
        judge(endpoint, folder)
        judge(endpoint, folder, model="other")
        assert len(endpoint.asked) == 16
        monkeypatch.setattr("mmunlearn.judge.ratings.PROMPT_VERSION", "next")
        judge(endpoint, folder)
        assert len(endpoint.asked) == 24


def test_limit_asks_about_few_and_more_later(folder):
    with fake_endpoint(by_rouge) as endpoint:
        judge(endpoint, folder, limit=1)
        assert len(endpoint.asked) == 2
        judge(endpoint, folder, limit=3)
        assert len(endpoint.asked) == 6
        judge(endpoint, folder, limit=1)
        assert len(endpoint.asked) == 6
        assert len(lines_of(folder, TASKS[0])) == 3  # what is not asked now stays
        judge(endpoint, folder, tasks=f"[{TASKS[1]}]")
        assert len(endpoint.asked) == 7


def test_a_run_of_several_ways_of_asking_is_judged_whole(folder, tmp_path):
    for name in ("fixed-zero_shot", "official-few_shot"):
        shutil.copytree(folder, tmp_path / "both" / name)
    with fake_endpoint(by_rouge) as endpoint:
        assert judge(endpoint, tmp_path / "both", tmp_path / "both" / "fixed-zero_shot").code == 0
        assert len(endpoint.asked) == 8
    assert scores_of(tmp_path / "both" / "fixed-zero_shot") == scores_of(tmp_path / "both" / "official-few_shot")


def test_free_answers_are_those_that_reports_compare_by_words():
    assert set(FREE_KINDS) == set(kinds_of("rougeL"))


# --- failures ---------------------------------------------------------------------------------------------------------


def test_single_failures_leave_the_others_and_a_repeat_goes_on(folder):
    def respond(asked, _):
        return refused(400, "too long") if "Bo Holt" in asked.part("question") else by_rouge(asked, 0)

    with fake_endpoint(respond) as endpoint:
        outcome = judge(endpoint, folder)
        assert outcome.code == 2
        assert "2 answers stayed without a rating" in outcome.err
        assert "too long" in outcome.err
        assert "Traceback" not in outcome.err
        assert len(scores_of(folder)) == 6
        endpoint.respond, endpoint.asked = by_rouge, []
        assert judge(endpoint, folder).code == 0
        assert len(endpoint.asked) == 2
    assert len(scores_of(folder)) == 8


@pytest.mark.parametrize(("status", "reason"), [(401, "does not take the key in OPENAI_API_KEY"), (404, "no model 'fake'")])
def test_what_concerns_all_requests_ends_at_once(folder, status, reason):
    with fake_endpoint(lambda *_: refused(status, f"because {KEY}")) as endpoint:
        outcome = judge(endpoint, folder, parallel=1)
        assert len(endpoint.asked) <= 2  # one may be under way
    assert outcome.code == 2
    assert reason in outcome.err
    assert KEY not in outcome.err
    assert not any(Run(folder).judged(task).exists() for task in TASKS)


def test_nobody_there_ends_at_once(folder):
    with fake_endpoint(by_rouge) as endpoint:
        pass
    outcome = judge(endpoint, folder, parallel=1, retries=0)
    assert outcome.code == 2
    assert "cannot be reached" in outcome.err
    assert "8 answers" in outcome.err


def test_many_failures_in_a_row_end_it_and_a_success_starts_the_count_anew(folder, monkeypatch):
    monkeypatch.setattr(job, "PATIENCE", 3)
    with fake_endpoint(lambda *_: refused(500)) as endpoint:
        assert judge(endpoint, folder, parallel=1, retries=0).code == 2
        assert len(endpoint.asked) <= 4
    with fake_endpoint(lambda _, number: refused(500) if number % 3 else said("7")) as endpoint:
        assert judge(endpoint, folder, parallel=1, retries=0).code == 2
        assert len(endpoint.asked) == 8


def test_wild_weather_ends_well(folder):
    """Every request fails once in another way, and all are rated in the end."""
    weather = [refused(429), refused(500), Answer(b"{"), Answer(said("7").body, missing=9), said("")]
    seen, lock = set(), threading.Lock()

    def respond(asked, number):
        with lock:
            first = asked.prompt not in seen
            seen.add(asked.prompt)
        return weather[number % len(weather)] if first else by_rouge(asked, 0)

    with fake_endpoint(respond) as endpoint:
        outcome = judge(endpoint, folder, retries=2)
    assert outcome.code == 0, outcome.err
    assert len(endpoint.asked) == 16
    assert len(scores_of(folder)) == 8


def test_a_line_cut_off_by_a_kill_is_asked_for_again(folder):
    with fake_endpoint(by_rouge) as endpoint:
        judge(endpoint, folder)
        whole = scores_of(folder)
        path = Run(folder).judged(TASKS[0])
        path.write_bytes(path.read_bytes()[:-20])
        assert judge(endpoint, folder).code == 0
        assert len(endpoint.asked) == 9
    assert scores_of(folder) == whole


@pytest.mark.thorough
def test_a_killed_run_goes_on(folder):
    """Killed in the middle, from outside, without warning: what was answered is not asked for again."""
    stuck = threading.Event()

    def respond(asked, number):
        if number >= 4:
            stuck.wait(60)
        return by_rouge(asked, number)

    with fake_endpoint(respond) as endpoint:
        words = (f"judge.url={endpoint.url}", "judge.model=fake", "judge.yes=true", f"judge.evaluations=[{folder}]")
        command = [str(Path(sys.executable).with_name("mmunlearn")), "judge", *words, "judge.parallel=2"]
        with subprocess.Popen(command, env=command_environment(), stderr=subprocess.DEVNULL) as process:
            deadline = time.monotonic() + 60
            while len(endpoint.asked) < 6 and time.monotonic() < deadline:
                time.sleep(0.02)
            process.kill()
        done = scores_of(folder)
        assert len(done) == 4
        stuck.set()
        endpoint.respond, endpoint.asked = by_rouge, []
        assert judge(endpoint, folder).code == 0
        assert len(endpoint.asked) == 4
    assert len(scores_of(folder)) == 8
    assert scores_of(folder).items() >= done.items()


def test_requests_are_sent_side_by_side_but_no_more_than_asked_for(folder):
    now, most, lock = [0], [0], threading.Lock()

    def respond(asked, number):
        with lock:
            now[0] += 1
            most[0] = max(most[0], now[0])
        time.sleep(0.1)
        with lock:
            now[0] -= 1
        return by_rouge(asked, number)

    with fake_endpoint(respond) as endpoint:
        judge(endpoint, folder, parallel=3)
    assert most == [3]


# --- before the first request -----------------------------------------------------------------------------------------


def test_without_consent_nothing_is_sent(folder):
    before = contents(folder)
    with fake_endpoint(by_rouge) as endpoint:
        outcome = judge(endpoint, folder, yes=False, price_in=1000, price_out=10000)
        assert endpoint.asked == []
    assert outcome.code == 2
    assert "judge.yes=true" in outcome.err
    said_first = " ".join(outcome.err.split())
    assert "8 answers in 1 evaluations; 0 of them are rated already" in said_first
    assert "8 requests" in said_first
    assert "That is this machine" in said_first
    assert contents(folder) == before


@pytest.mark.parametrize(("typed", "sent"), [("y\n", 8), ("yes\n", 8), ("n\n", 0), ("\n", 0), ("", 0)])
def test_at_a_terminal_it_asks(folder, monkeypatch, typed, sent):
    class Keyboard:
        isatty = staticmethod(lambda: True)
        readline = staticmethod(lambda: typed)

    monkeypatch.setattr(sys, "stdin", Keyboard())
    with fake_endpoint(by_rouge) as endpoint:
        outcome = judge(endpoint, folder, yes=False)
        assert len(endpoint.asked) == sent
    assert outcome.code == 0
    assert ("Nothing was sent" in outcome.err) == (sent == 0)


def test_tokens_and_price_of_what_was_used(folder):
    with fake_endpoint(by_rouge) as endpoint:
        outcome = judge(endpoint, folder, price_in=1000, price_out=10000)
    assert "800 tokens read and 40 written; price 1.20" in outcome.err
    assert math.isclose(1.2, (800 * 1000 + 40 * 10000) / 1e6)


WRONG = {
    "no address": ("judge.url=''", "judge.url is empty"),
    "no http": ("judge.url=example", "judge.url=example"),
    "no model": ("judge.model=''", "judge.model is empty"),
    "no evaluation": ("judge.evaluations=[]", "judge.evaluations is empty"),
    "nobody at work": ("judge.parallel=0", "judge.parallel=0"),
    "no time": ("judge.timeout=0", "judge.timeout=0"),
    "backwards": ("judge.retries=-1", "judge.retries=-1"),
    "a gift": ("judge.price_in=-1", "judge.price_in=-1"),
    "a task that is not there": ("judge.tasks=[forget_txt_generation]", "forget_text_generation"),
    "a task of another kind": ("judge.tasks=[forget_text_choice]", "no task of free answers"),
    "a missing folder": ("judge.evaluations=[outputs/nothing]", "outputs/nothing holds no evaluation"),
    "an unknown setting": ("judge.modle=x", "model"),
    "another section": ("model.path=x", "does not use 'model'"),
}


@pytest.mark.parametrize(("wrong", "told"), WRONG.values(), ids=WRONG)
def test_a_mistake_is_told_before_anything_is_sent(folder, wrong, told):
    with fake_endpoint(by_rouge) as endpoint:
        words = (f"judge.url={endpoint.url}", "judge.model=fake", f"judge.evaluations=[{folder}]", "judge.yes=true", wrong)
        outcome = run_here("judge", *words)
        assert endpoint.asked == []
    assert outcome.code == 2
    assert told in outcome.err
    assert "Traceback" not in outcome.err


def test_an_unfinished_evaluation_and_one_of_another_model_are_not_judged(folder):
    path = Run(folder).predictions(TASKS[0])
    path.write_text("\n".join(path.read_text().splitlines()[1:]) + "\n")
    with fake_endpoint(by_rouge) as endpoint:
        outcome = judge(endpoint, folder)
        assert outcome.code == 2
        assert "1 of 4 questions have no answer" in outcome.err
        card = json.loads(Run(folder).model_card.read_text())
        Run(folder).model_card.write_text(json.dumps(card | {"fingerprint": "another"}))
        outcome = judge(endpoint, folder)
        assert outcome.code == 2
        assert "4 of 4 questions have no answer" in outcome.err
        assert endpoint.asked == []


def test_a_damaged_file_of_ratings_is_named(folder):
    path = Run(folder).judged(TASKS[0])
    path.parent.mkdir()
    path.write_text('{"id": "x"}\n')
    with fake_endpoint(by_rouge) as endpoint:
        outcome = judge(endpoint, folder)
        assert endpoint.asked == []
    assert outcome.code == 2
    assert str(path) in outcome.err.replace("\n", "")
    assert path.read_text() == '{"id": "x"}\n'


@pytest.mark.thorough
def test_without_the_library_it_says_what_to_install(folder):
    """In a process of its own, where `openai` cannot be imported; the other verbs do not need it."""
    program = "import sys; sys.modules['openai'] = None; from mmunlearn.cli import guarded; sys.exit(guarded(sys.argv[1:]))"

    def run(*words):
        command = [sys.executable, "-c", program, *words]
        return subprocess.run(command, env=command_environment(), capture_output=True, text=True, check=False)

    done = run("judge", "judge.url=http://localhost:1/v1", "judge.model=m", f"judge.evaluations=[{folder}]")
    assert done.returncode == 2
    assert "pip install 'mmunlearn[judge]'" in done.stderr
    assert "Traceback" not in done.stderr
    assert run("list").returncode == 0
