"""Several processes that share the questions of an evaluation, one on each device.

Each opens the model, answers its share and writes it to files of its own. The parent waits for all of them and merges. What
was answered when something ended early is merged then, or by the next run, whatever its number of processes.
"""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from types import TracebackType
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from mmunlearn.benchmarks.opening import open_benchmark
from mmunlearn.data.example import Example
from mmunlearn.errors import RunError, UserError
from mmunlearn.evaluation import job
from mmunlearn.evaluation.opened import Identity, asked_of, open_asker
from mmunlearn.evaluation.predict import Asked, answer, merge_parts, open_questions
from mmunlearn.evaluation.ways import open_ways
from mmunlearn.progress import progress
from mmunlearn.run import fingerprint
from mmunlearn.workers import end_with_parent

SECONDS_TO_STOP = 10.0
"""A process that does not end when it is asked to is ended after so long."""

Share = list[tuple[str, str, frozenset[str]]]
"""Folder of an evaluation, task, ids of the questions."""


@dataclass(frozen=True)
class _Failed:
    """A process cannot go on."""

    reason: str


@dataclass(frozen=True)
class _Finished:
    """A process has answered its share."""


@dataclass(frozen=True)
class _Worker:
    device: torch.device
    number: int
    process: SpawnProcess
    link: Connection

    def failure(self, reason: str) -> RunError:
        """What the user is told."""
        return RunError(
            f"Process {self.number} of the evaluation, on {self.device}: {reason}\nThe other processes were stopped. Answers "
            "so far are kept; the same command goes on from there."
        )

    def send(self, message: Any) -> None:
        """Tell it something."""
        try:
            self.link.send(message)
        except OSError as error:
            raise self.lost() from error

    def lost(self) -> RunError:
        """The failure of a process that ended without a word."""
        self.process.join(SECONDS_TO_STOP)
        code = self.process.exitcode
        if code is not None and code < 0:
            how = f"was ended by {signal.Signals(-code).name}; the system does that when memory runs out."
            return self.failure(f"{how} Lower evaluation.batch_size or use fewer processes.")
        return self.failure(f"ended unexpectedly (exit code {code}).")


# --- the parent -------------------------------------------------------------------------------------------------------


def ask_side_by_side(config: DictConfig, devices: Sequence[torch.device], prepare: Callable[[Identity], list[Asked]]) -> int:
    """Answer all open questions of an evaluation in several processes.

    Args:
        config: complete and checked.
        devices: one for each process.
        prepare: from what the processes opened to the tasks, with their folders ready.

    Returns:
        The number of questions that had been answered before.

    Raises:
        RunError: a process failed; the others were stopped, and what was answered is kept.
    """
    everything: list[Asked] = []
    with _ignored_interrupts():
        workers = [_start(config, device, number, len(devices)) for number, device in enumerate(devices, 1)]
    try:
        everything += prepare(_agreed(workers))
        still_open = [open_questions(asked) for asked in everything]
        total = sum(len(asked.task.examples) for asked in everything)
        done = total - sum(map(len, still_open))
        for worker, share in zip(workers, _shares(everything, still_open, len(workers)), strict=True):
            worker.send(share)
        with progress(desc="questions", unit="question", total=total, initial=done, smoothing=0.0) as bar:
            _wait_for_all(workers, bar.update)
    finally:
        _stop(workers)
        for asked in everything:
            merge_parts(asked.run, asked.task.name)
    return done


def _start(config: DictConfig, device: torch.device, number: int, processes: int) -> _Worker:
    context = multiprocessing.get_context("spawn")  # a forked process cannot use CUDA
    ours, theirs = context.Pipe()
    plain = OmegaConf.to_container(config)
    process = context.Process(target=_work, args=(theirs, plain, device, processes), daemon=True)
    process.start()
    theirs.close()  # so that we are told when the process ends
    return _Worker(device, number, process, ours)


def _agreed(workers: Sequence[_Worker]) -> Identity:
    """What all processes have opened."""
    waiting, found = list(workers), []
    while waiting:
        worker, identity = _next_message(waiting)
        waiting.remove(worker)
        found.append((worker, identity))
    for worker, identity in found:
        if identity != found[0][1]:
            raise worker.failure(f"opened another model than the one on {found[0][0].device}. Did the files change meanwhile?")
    identity = found[0][1]
    assert isinstance(identity, Identity)
    return identity


def _shares(everything: Sequence[Asked], still_open: Sequence[Sequence[Example]], processes: int) -> list[Share]:
    """Who answers what.

    The questions of a task are dealt out in an order drawn by their ids, among all of the task, so that each process gets
    short and long ones, and the same question to the same process in every way of asking: it is answered once there.
    """
    shares: list[Share] = [[] for _ in range(processes)]
    for asked, examples in zip(everything, still_open, strict=True):
        dealt = sorted((example.id for example in asked.task.examples), key=fingerprint)
        owner = {id_: rank % processes for rank, id_ in enumerate(dealt)}
        for process, share in enumerate(shares):
            own = frozenset(example.id for example in examples if owner[example.id] == process)
            if own:
                share.append((str(asked.run.root), asked.task.name, own))
    return shares


def _wait_for_all(workers: Sequence[_Worker], tell: Callable[[int], Any]) -> None:
    running = list(workers)
    while running:
        worker, message = _next_message(running)
        if isinstance(message, _Finished):
            running.remove(worker)
        else:
            tell(message)
    for worker in workers:
        worker.process.join(SECONDS_TO_STOP)


def _next_message(workers: Sequence[_Worker]) -> tuple[_Worker, Any]:
    """What one of the processes has to say.

    Raises:
        RunError: that it failed, or nothing any more.
    """
    by_link = {worker.link: worker for worker in workers}
    first = wait(list(by_link))[0]
    worker = next(each for each in workers if each.link is first)
    try:
        message = worker.link.recv()
    except (EOFError, OSError) as error:
        raise worker.lost() from error
    if isinstance(message, _Failed):
        raise worker.failure(message.reason)
    return worker, message


def _stop(workers: Sequence[_Worker]) -> None:
    """End those that still run. A line that is cut off thereby is dropped by the merge and asked again."""
    for worker in workers:
        worker.process.terminate()
    for worker in workers:
        worker.process.join(SECONDS_TO_STOP)
        if worker.process.is_alive():
            worker.process.kill()
            worker.process.join()
        worker.link.close()


@contextmanager
def _ignored_interrupts() -> Iterator[None]:
    """What is started inside never sees Ctrl-C, which a terminal sends to everybody: the parent stops its processes."""
    if threading.current_thread() is not threading.main_thread():
        yield  # signals can be set in the main thread only
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


# --- a process --------------------------------------------------------------------------------------------------------


def _work(link: Connection, plain: dict[str, Any], device: torch.device, processes: int) -> None:
    """Open the model, get a share of the questions and answer it."""
    end_with_parent()
    job.console.quiet = True
    if device.type == "cpu":
        torch.set_num_threads(max(1, torch.get_num_threads() // processes))
    else:
        torch.cuda.set_device(device)
    config = DictConfig(plain)
    with _Telling(link):
        opened = open_asker(config, device)
        link.send(opened.identity)
        ways = open_ways(config, open_benchmark(config.data), lambda line: None)
        asked_here = {(str(asked.run.root), asked.task.name): asked for asked in asked_of(ways, opened.identity)}
        share: Share = link.recv()
        for folder, task, ids in share:
            asked = asked_here[folder, task]
            examples = [example for example in asked.task.examples if example.id in ids]
            # The number of the process: an old file of a process that was killed is never written to again.
            part = asked.run.predictions_part(task, os.getpid())
            answer(opened.asker, asked, examples, part, link.send)
        link.send(_Finished())


class _Telling(AbstractContextManager["_Telling"]):
    """Tells the parent why a process ends; what no user can mend also leaves its traceback on the terminal."""

    def __init__(self, link: Connection) -> None:
        self.link = link

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> bool:
        """Tell, if there was an error."""
        if error is None:
            return False
        if isinstance(error, torch.OutOfMemoryError):
            self.link.send(_Failed("the memory of the device is full. Lower evaluation.batch_size."))
            return True
        if isinstance(error, UserError):
            self.link.send(_Failed(str(error)))
            return True
        self.link.send(_Failed(f"{type(error).__name__}: {error}"))
        return False
