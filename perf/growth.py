"""How the cost grows: with people, with the tokens of a picture, with ranks.

OMP_NUM_THREADS=1 python -m perf.growth
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from mmunlearn.methods.base import TrainingData
from mmunlearn.methods.grad_diff import GradDiff
from perf import evaluation
from perf.common import SHAPES, build, questions
from perf.training import LANGUAGE, Drawing, Opened, Ours

PEOPLE = (4, 16, 64)
SIDES = (112, 168, 224, 336)
"""Pixels of a side; a token takes 14 by 14 of them."""
RANKS = (1, 2)
STEP = 8
"""Questions a side of one step, however many ranks share it."""


def run_of(shape: str, people: int, *, batch_size: int = STEP, side: int = 0, accelerator: Accelerator | None = None) -> Ours:
    """GradDiff with the language part tuned; `side` in place of the shape's pictures."""
    size = replace(SHAPES[shape], image_size=side or SHAPES[shape].image_size)
    forget, retain = (questions(name, people, size.image_size) for name in ("forget", "retain"))
    data = TrainingData(forget=forget, retain=retain)
    opened = Opened(*build(size), size.max_length)
    return Ours(opened, GradDiff(), LANGUAGE, data, drawing=Drawing("questions", batch_size), accelerator=accelerator)


def seconds_of(steps: int, step: Callable[[int], Any], clock: Callable[[], float] = time.process_time) -> float:
    """Median seconds of a step, behind one to warm up."""
    step(0)
    found = []
    for number in range(1, 1 + steps):
        start = clock()
        step(number)
        found.append(clock() - start)
    return statistics.median(found)


def with_people() -> list[dict[str, Any]]:
    """Training and evaluation, a question; and the most memory that the process has taken so far."""
    rows = []
    for people in PEOPLE:
        run = run_of("demo", people)
        started = time.process_time()
        for step in range(run.plan.order.steps_per_epoch):
            run.step(step)
        trained = (time.process_time() - started) / (2 * len(run.windows.data.forget))
        size = evaluation.SIZES["demo"]
        task = evaluation.tasks(people, size.image_size)["image choice"]
        ask = partial(evaluation.by_asker, *build(size), task, shares_prefix=True)
        asked, seconds = evaluation.timed(ask)
        rows.append(
            {
                "people": people,
                "training_s_a_question": trained,
                "evaluation_s_a_question": seconds / len(asked),
                "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
            }
        )
    return rows


def with_tokens() -> list[dict[str, Any]]:
    """A step, by the tokens of a picture."""
    runs = ((side, run_of("llava-like", STEP // 2, side=side)) for side in SIDES)
    return [{"tokens": (side // 14) ** 2, "step_s": seconds_of(3, run.step)} for side, run in runs]


def with_ranks() -> list[dict[str, Any]]:
    """The same step shared by several processes of one thread each: seconds of the clock."""
    rows = []
    for ranks in RANKS:
        launcher = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(ranks))
        words = (*launcher, "-m", "perf.growth", "--rank")
        done = subprocess.run(words, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[1])
        line = next(line for line in done.stdout.splitlines() if line.startswith("{"))
        rows.append({"ranks": ranks, "step_s": json.loads(line)["step_s"]})
    return rows


def one_rank() -> None:
    """What each process of `with_ranks` does."""
    torch.set_num_threads(1)
    accelerator = Accelerator(cpu=True)
    run = run_of("llava-like", STEP // 2, batch_size=STEP // accelerator.num_processes, accelerator=accelerator)
    seconds = seconds_of(4, run.step, time.perf_counter)
    if accelerator.is_main_process:
        print(json.dumps({"step_s": seconds}), flush=True)
    accelerator.end_training()


def measure() -> dict[str, Any]:
    """All three."""
    return {"people": with_people(), "tokens": with_tokens(), "ranks": with_ranks()}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rank", action="store_true", help="be one of several ranks")
    if parser.parse_args().rank:
        one_rank()
    else:
        torch.set_num_threads(1)
        print(json.dumps(measure(), indent=1))
