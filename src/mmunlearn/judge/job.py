"""`mmunlearn judge`: free answers of finished evaluations, rated for factuality by another model."""

import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from itertools import groupby
from multiprocessing.pool import ThreadPool

from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table

from mmunlearn.config import JudgeConfig, typed
from mmunlearn.data.example import Example
from mmunlearn.errors import ConfigError, RunError
from mmunlearn.judge.address import check_url
from mmunlearn.judge.client import Judge, open_judge
from mmunlearn.judge.cost import announcement, estimate, price
from mmunlearn.judge.prompt import Answered, messages
from mmunlearn.judge.ratings import Rating, Sheet, judged_by, known_ratings, open_sheets, rating_of
from mmunlearn.judge.reply import Failure, Reply
from mmunlearn.locks import locked
from mmunlearn.progress import progress

console = Console(stderr=True)
PATIENCE = 8
"""After so many failures in a row, or twice the number of parallel requests, no more are sent."""


def run_judge(config: DictConfig) -> None:
    """Rate what has no rating yet, say what it costs before, and print the means.

    Goes on where it was stopped, and never asks twice about the same answer to the same question. Replies are written as they
    come, so a killed run loses only what is under way.

    Args:
        config: complete and checked; its section `judge` is used.

    Raises:
        ConfigError: a setting is wrong, or nobody is there to be asked for consent.
        RunError: some answers stayed without a reply; the others are kept.
    """
    settings = typed(config.judge, JudgeConfig)
    _check(settings)
    judge = open_judge(settings)
    sheets = open_sheets(settings, judged_by(settings))
    with ExitStack() as held:
        for run in {sheet.run.root: sheet.run for sheet in sheets}.values():
            held.enter_context(locked(run))
        _rate(judge, settings, sheets)


def _rate(judge: Judge, settings: JudgeConfig, sheets: Sequence[Sheet]) -> None:
    """The ratings, in evaluations that no other command is changing."""
    known = known_ratings({sheet.run.root: sheet.run for sheet in sheets}.values())
    requests = _requests(sheets, known)
    if not _agreed(settings, sheets, requests):
        console.print("Nothing was sent.")
        return
    for sheet in sheets:
        sheet.tidy(known)
    failures = _ask_all(judge, sheets, requests, known)
    keys = [key for sheet in sheets for key in sheet.keys.values()]
    if any(key in known for key in keys):
        console.print(*results_tables(sheets, known), sep="\n")
    if open_ones := sum(key not in known for key in keys):
        raise RunError(_unfinished(failures, open_ones))


def _check(settings: JudgeConfig) -> None:
    """Make sure that the settings make sense.

    Raises:
        ConfigError: one does not.
    """
    check_url(settings.url)
    if not settings.model.strip():
        raise ConfigError("judge.model is empty. Give the judge's name at that endpoint, such as judge.model=gpt-4o-mini.")
    least = {"parallel": 1, "retries": 0, "limit": 0, "price_in": 0, "price_out": 0}
    for name, bound in least.items():
        if getattr(settings, name) < bound:
            raise ConfigError(f"judge.{name}={getattr(settings, name)}: must be at least {bound}.")
    if not settings.timeout > 0:
        raise ConfigError(f"judge.timeout={settings.timeout:g}: must be more than 0 seconds.")


def _requests(sheets: Sequence[Sheet], known: Mapping[str, Rating]) -> dict[str, Answered]:
    """What has to be asked, by key; equal answers of several evaluations are one request."""
    return {key: sheet.answers[id_] for sheet in sheets for id_, key in sheet.keys.items() if key not in known}


def _agreed(settings: JudgeConfig, sheets: Sequence[Sheet], requests: Mapping[str, Answered]) -> bool:
    """Say what it costs and where it goes, and ask whether to send it; without requests there is nothing to ask.

    Raises:
        ConfigError: there is no terminal to ask at, and `judge.yes` is not set.
    """
    if not requests:
        return True
    answers = sum(len(sheet.keys) for sheet in sheets)
    unknown = sum(key in requests for sheet in sheets for key in sheet.keys.values())
    said = announcement(
        estimate(list(requests.values())),
        settings,
        answers=answers,
        known=answers - unknown,
        evaluations=len({sheet.run.root for sheet in sheets}),
    )
    console.print(said, markup=False, highlight=False)
    if settings.yes:
        return True
    if not sys.stdin.isatty():
        raise ConfigError("Nothing was sent: there is no terminal to ask for your consent. If you agree, add judge.yes=true.")
    console.print("Send them? \\[y/N] ", end="")
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def _ask_all(
    judge: Judge, sheets: Sequence[Sheet], requests: Mapping[str, Answered], known: dict[str, Rating]
) -> list[Failure]:
    """Ask, write each rating to every answer that it is about, and add it to `known`; returns the failures."""
    waiting: dict[str, list[tuple[Sheet, Example]]] = {key: [] for key in requests}
    for sheet in sheets:
        for example in sheet.examples:
            if sheet.keys[example.id] in waiting:
                waiting[sheet.keys[example.id]].append((sheet, example))
    failures = []
    for key, outcome in _outcomes(judge, requests):
        if isinstance(outcome, Failure):
            failures.append(outcome)
            continue
        known[key] = rating_of(outcome, judged_by(judge.settings), key)
        for sheet, example in waiting[key]:
            sheet.add(example, known[key])
    _say_used([known[key] for key in requests if key in known], judge.settings)
    return failures


def _outcomes(judge: Judge, requests: Mapping[str, Answered]) -> Iterator[tuple[str, Reply | Failure]]:
    """What became of each request, as it comes; stops after a failure that concerns all of them, or many in a row."""
    in_a_row, answered = 0, False

    def ask(key: str) -> tuple[str, Reply | Failure]:
        return key, judge.ask(messages(requests[key]))

    if not requests:
        return
    bar = progress(desc="judge", unit="answer", total=len(requests))
    # The threads of this pool are daemons: Ctrl-C does not wait for replies that are under way.
    with bar, ThreadPool(judge.settings.parallel) as pool:
        for key, outcome in pool.imap_unordered(ask, requests):
            bar.update()
            yield key, outcome
            if isinstance(outcome, Reply):
                in_a_row, answered = 0, True
                continue
            in_a_row += 1
            nobody_there = outcome.unreachable and not answered
            if outcome.final or nobody_there or in_a_row >= max(PATIENCE, 2 * judge.settings.parallel):
                return


def _say_used(ratings: Sequence[Rating], settings: JudgeConfig) -> None:
    if not ratings:
        return
    read, written = (sum(rating[name] for rating in ratings) for name in ("tokens_in", "tokens_out"))
    cost = price(read, written, settings)
    used = f"{read:,} tokens read and {written:,} written" if read or written else "the endpoint does not count tokens"
    console.print(f"{len(ratings):,} replies; {used}{f'; price {cost}' if cost else ''}.", highlight=False)


def _unfinished(failures: Sequence[Failure], open_ones: int) -> str:
    """What went wrong, the most frequent reason first."""
    reasons = [reason for reason, _ in Counter(failure.reason for failure in failures).most_common()]
    more = f" ({len(reasons) - 1} other reasons beside this one.)" if len(reasons) > 1 else ""
    return (
        f"{open_ones:,} answers stayed without a rating. {reasons[0]}{more} The ratings that came are kept: the same command "
        "goes on from there."
    )


def results_tables(sheets: Sequence[Sheet], known: Mapping[str, Rating]) -> Iterator[Table]:
    """For each evaluation, the mean rating of every task with its person-clustered interval."""
    for run, own in groupby(sheets, key=lambda sheet: sheet.run):
        table = Table(title=f"{run.root}: factuality, 1 to 10", title_justify="left")
        table.add_column("task", no_wrap=True)
        for column in ("mean", "95 % interval", "answers", "unscored"):
            table.add_column(column, justify="right")
        for sheet in own:
            found = sheet.estimate(known).to_json()
            mean = "–" if found["value"] is None else f"{found['value']:.2f}"
            interval = "–" if found["low"] is None else f"{found['low']:.2f} – {found['high']:.2f}"
            table.add_row(sheet.task, mean, interval, str(len(sheet.keys)), str(found["unscored"]))
        yield table
