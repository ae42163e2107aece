"""One request to a server that misbehaves: repeated or ended with one reason; the key is seen by nobody else."""

import json
import threading
import time

import pytest
from fake_endpoint import SOON, Answer, fake_endpoint, refused, said

from mmunlearn.config import JudgeConfig
from mmunlearn.errors import ConfigError
from mmunlearn.judge import client
from mmunlearn.judge.address import check_url, endpoint_of, host_of, is_local
from mmunlearn.judge.client import open_judge
from mmunlearn.judge.prompt import Answered, messages
from mmunlearn.judge.reply import Failure, Reply

CONVERSATION = messages(Answered(question="Who?", expected="Ada", answer="Bo"))
KEY = "sk-very-secret-1234567890"


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(client, "FIRST_PAUSE", 0.001)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)


def ask(respond, **settings):
    """The outcome of one request, and all that the server saw."""
    with fake_endpoint(respond) as endpoint:
        judge = open_judge(JudgeConfig(**{"url": endpoint.url, "model": "m", "retries": 2, "timeout": 5.0, **settings}))
        return judge.ask(CONVERSATION), endpoint.asked


def in_turn(*answers):
    """The first answer to the first request, and so on; the last one for ever."""
    return lambda _, number: answers[min(number, len(answers) - 1)]


def test_a_reply_and_what_was_sent_for_it():
    outcome, asked = ask(in_turn(said('{"score": 7}')))
    assert outcome == Reply(text='{"score": 7}', finish="stop", answered_by="fake-2026", tokens_in=100, tokens_out=5)
    (request,) = asked
    assert request.path == "/v1/chat/completions"
    assert request.headers["authorization"] == f"Bearer {KEY}"
    assert request.body == {
        "model": "m",
        "messages": CONVERSATION,
        "temperature": 0,
        "seed": 0,
        "max_tokens": client.MAX_TOKENS,
    }


def test_a_slash_at_the_end_of_the_address_is_no_matter():
    with fake_endpoint(in_turn(said("7"))) as endpoint:
        assert isinstance(open_judge(JudgeConfig(url=f" {endpoint.url}/ ", model="m")).ask(CONVERSATION), Reply)
        assert endpoint.asked[0].path == "/v1/chat/completions"


NOT_JSON = Answer(b"<html>busy</html>")
BROKEN = Answer(b'{"choices": [{"mess')
PASSING = {
    "429": refused(429),
    "500": refused(500),
    "503": refused(503),
    "408": refused(408),
    "broken JSON": BROKEN,
    "a page": NOT_JSON,
    "a page that says so": Answer(b"<html>", kind="text/html"),
    "nothing": Answer(b""),
    "no choices": Answer(json.dumps({"choices": []}).encode()),
    "null": Answer(b"null"),
    "a list": Answer(b"[]"),
    "no message": Answer(json.dumps({"choices": [{}]}).encode()),
    "null message": Answer(json.dumps({"choices": [{"message": None}]}).encode()),
    "parts": Answer(json.dumps({"choices": [{"message": {"content": [{"text": "7"}]}}]}).encode()),
    "empty content": said(""),
    "null content": said(None),
    "blank content": said(" \n"),
}


@pytest.mark.parametrize("answer", PASSING.values(), ids=PASSING)
def test_what_passes_is_asked_again(answer):
    outcome, asked = ask(in_turn(answer, answer, said("7")))
    assert isinstance(outcome, Reply)
    assert len(asked) == 3


@pytest.mark.parametrize("answer", PASSING.values(), ids=PASSING)
def test_what_does_not_pass_ends_with_a_reason_after_all_repeats(answer):
    outcome, asked = ask(in_turn(answer))
    assert isinstance(outcome, Failure)
    assert outcome.reason.startswith("127.0.0.1:")
    assert not outcome.final
    assert not outcome.unreachable
    assert len(asked) == 3


def test_retry_after_is_obeyed():
    started = time.monotonic()
    outcome, asked = ask(in_turn(Answer(b"{}", status=429, headers={"Retry-After": "1"}), said("7")))
    assert isinstance(outcome, Reply)
    assert len(asked) == 2
    assert time.monotonic() - started >= 1


def test_a_wait_of_an_hour_is_not_waited_for_but_told():
    outcome, asked = ask(in_turn(Answer(b'{"error": {"message": "quota"}}', status=429, headers={"Retry-After": "3600"})))
    assert len(asked) == 1
    assert "3600 seconds" in outcome.reason
    assert "quota" in outcome.reason
    assert "judge.parallel" in outcome.reason


@pytest.mark.parametrize(
    ("status", "said_so"),
    [(401, "key in OPENAI_API_KEY"), (403, "key in OPENAI_API_KEY"), (404, "no model 'm'")],
)
def test_what_concerns_every_request_is_final_and_not_repeated(status, said_so):
    outcome, asked = ask(in_turn(refused(status, "because")))
    assert len(asked) == 1
    assert outcome.final
    assert said_so in outcome.reason
    assert "because" in outcome.reason


def test_a_refused_single_request_is_not_final():
    outcome, asked = ask(in_turn(refused(400, "context too long")))
    assert len(asked) == 1
    assert not outcome.final
    assert "context too long" in outcome.reason


@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_a_redirect_is_not_followed(status):
    with fake_endpoint(in_turn(said("7"))) as elsewhere:
        outcome, asked = ask(in_turn(Answer(b"", status=status, headers={"Location": f"{elsewhere.url}/chat/completions"})))
        assert elsewhere.asked == []
    assert len(asked) == 1
    assert outcome.final
    assert elsewhere.url in outcome.reason


def test_a_time_out_is_repeated_and_then_told():
    ready = threading.Event()
    try:
        outcome, asked = ask(lambda *_: (ready.wait(5), said("7"))[1], timeout=0.2, retries=1)
    finally:
        ready.set()
    assert len(asked) == 2
    assert "0.2 seconds" in outcome.reason
    assert "judge.timeout" in outcome.reason
    assert not outcome.unreachable


def test_a_cut_connection_is_repeated_and_then_told():
    cut = Answer(said("7").body, missing=20)
    outcome, asked = ask(in_turn(cut, said("8")))
    assert (outcome.text, len(asked)) == ("8", 2)
    outcome, asked = ask(in_turn(cut), retries=1)
    assert isinstance(outcome, Failure)
    assert len(asked) == 2


def test_nobody_there():
    with fake_endpoint(in_turn(said("7"))) as endpoint:
        url = endpoint.url
    outcome = open_judge(JudgeConfig(url=url, model="m", retries=0)).ask(CONVERSATION)
    assert outcome.unreachable
    assert "cannot be reached" in outcome.reason
    assert "refused" in outcome.reason


def test_a_refusal_in_words_is_a_reply():
    outcome, _ = ask(in_turn(said(None, refusal="I will not rate people.")))
    assert outcome.text == "I will not rate people."


@pytest.mark.parametrize("usage", [None, [], {"prompt_tokens": "many"}, {"prompt_tokens": None}])
def test_an_endpoint_need_not_count_tokens(usage):
    body = json.loads(said("7").body) | {"usage": usage}
    outcome, _ = ask(in_turn(Answer(json.dumps(body).encode())))
    assert (outcome.tokens_in, outcome.tokens_out) == (0, 0)


# --- the key and the address ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [400, 401, 404, 429, 500])
def test_a_key_that_the_server_repeats_is_not_passed_on(status):
    outcome, _ = ask(in_turn(refused(status, f"Incorrect key {KEY} given")), retries=0)
    assert "[key]" in outcome.reason
    assert KEY not in outcome.reason
    for body in (KEY.encode(), json.dumps(KEY).encode()):
        outcome, _ = ask(in_turn(Answer(body, status=status, headers=SOON)), retries=0)
        assert KEY not in outcome.reason
    outcome, _ = ask(in_turn(Answer(KEY.encode())), retries=0)
    assert KEY not in outcome.reason


def test_the_key_is_not_in_the_judge_s_own_words():
    judge = open_judge(JudgeConfig(url="http://localhost:1/v1", model="m"))
    assert KEY not in repr(judge)


def test_another_variable_and_none():
    outcome, asked = ask(in_turn(said("7")), key_variable="")
    assert isinstance(outcome, Reply)
    assert KEY not in json.dumps(asked[0].headers)


def test_a_missing_key_is_told_unless_the_endpoint_is_this_machine(monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY")
    with pytest.raises(ConfigError, match=r"export OPENAI_API_KEY=.*judge.key_variable=''"):
        open_judge(JudgeConfig(url="https://judge.example/v1", model="m"))
    open_judge(JudgeConfig(url="https://judge.example/v1", model="m", key_variable=""))
    outcome, _ = ask(in_turn(said("7")))
    assert isinstance(outcome, Reply)


def test_a_key_in_the_place_of_its_variable_s_name_is_not_repeated():
    with pytest.raises(ConfigError, match="name of an environment variable") as caught:
        open_judge(JudgeConfig(url="https://judge.example/v1", model="m", key_variable=KEY))
    assert KEY not in str(caught.value)


def test_a_key_with_a_newline_is_trimmed_and_one_with_other_letters_refused(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", f"{KEY}\n")
    _, asked = ask(in_turn(said("7")))
    assert asked[0].headers["authorization"] == f"Bearer {KEY}"
    monkeypatch.setenv("OPENAI_API_KEY", "sk-…")
    with pytest.raises(ConfigError, match="OPENAI_API_KEY holds characters"):
        open_judge(JudgeConfig(url="http://localhost:1/v1", model="m"))


@pytest.mark.parametrize("name", ["HTTP_PROXY", "http_proxy", "ALL_PROXY"])
def test_what_is_for_this_machine_takes_no_proxy(monkeypatch, name):
    with fake_endpoint(in_turn(said("1"))) as proxy:
        monkeypatch.setenv(name, proxy.url)
        monkeypatch.delenv("NO_PROXY", raising=False)
        monkeypatch.delenv("no_proxy", raising=False)
        outcome, _ = ask(in_turn(said("7")))
        assert proxy.asked == []
    assert outcome.text == "7"


def test_addresses_of_the_library_s_own_settings_are_not_asked(monkeypatch):
    with fake_endpoint(in_turn(said("1"))) as other:
        monkeypatch.setenv("OPENAI_BASE_URL", other.url)
        outcome, _ = ask(in_turn(said("7")))
        assert other.asked == []
    assert outcome.text == "7"


@pytest.mark.parametrize(
    "url",
    [
        "",
        " ",
        "localhost:8000/v1",
        "ftp://x/v1",
        "http://",
        "http://h:port/v1",
        "http://[::1/v1",
        "http://me:pass@h/v1",
        "http://a b/v1",
        "http://é/v1",
    ],
)
def test_what_is_no_address_is_told_without_its_password(url):
    with pytest.raises(ConfigError, match=r"judge\.url") as caught:
        check_url(url)
    assert "pass@" not in str(caught.value)


def test_which_addresses_are_this_machine():
    here = ("http://localhost/v1", "http://LOCALHOST:1/v1", "http://127.0.0.1:8000", "http://127.8.9.1/", "https://[::1]:8/v1")
    there = ("https://api.openai.com/v1", "http://localhost.example/v1", "http://10.0.0.2/v1", "http://127.0.0.1.example/v1")
    assert [is_local(url) for url in (*here, *there)] == [True] * len(here) + [False] * len(there)
    for url in here:
        check_url(url)


def test_what_names_an_endpoint():
    assert host_of("https://me:pass@api.example:8/v1/") == "api.example:8"
    assert endpoint_of("https://api.example/v1/") == endpoint_of(" http://api.example/v1") == "api.example/v1"
    assert endpoint_of("https://api.example/team/v1") != endpoint_of("https://api.example/v1")
