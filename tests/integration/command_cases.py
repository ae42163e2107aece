"""Building blocks of tests of whole commands: a small world, and two ways to run a verb in it."""

import contextlib
import io
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import torch

from mmunlearn.benchmarks.mllmu import MLLMUBench
from mmunlearn.benchmarks.people_files import BENCHMARK_FOLDER, TRAIN_FOLDER
from mmunlearn.cli import guarded
from mmunlearn.models.tiny import TinySize

REPOSITORY = Path(__file__).parents[2]
SIZE = TinySize(
    image_size=32,
    patch_size=16,
    vision_width=32,
    vision_layers=3,
    width=32,
    layers=2,
    heads=2,
    vocabulary=500,
    max_length=320,
)
FULL = ("model.dtype=float32", *(f"model.tune.{part}.mode=full" for part in ("vision", "projector", "language")))
TWO_STEPS = ("trainer.args.max_steps=2", "trainer.args.logging_steps=1")
FEW_QUESTIONS = ("model.dtype=float32", "evaluation.limit=4", "evaluation.splits=[forget,retain]")


@dataclass(frozen=True)
class World:
    """Where the people and the model are."""

    people: Path
    """A folder with both repositories."""
    model: Path
    """An untrained LLaVA of 120,000 weights with its processor."""

    @property
    def data(self) -> tuple[str, str]:
        """The settings that name the people."""
        return data_settings(self.people)

    @property
    def settings(self) -> tuple[str, ...]:
        """The settings that name people and model."""
        return (*self.data, f"model.path={self.model}")

    def benchmark(self) -> MLLMUBench:
        """The people, opened."""
        return MLLMUBench(
            root=str(self.people / BENCHMARK_FOLDER), train_root=str(self.people / TRAIN_FOLDER), forget_ratio="15"
        )


def data_settings(people: Path) -> tuple[str, str]:
    """The settings that name the people in a folder."""
    return f"data.root={people / BENCHMARK_FOLDER}", f"data.train_root={people / TRAIN_FOLDER}"


@dataclass(frozen=True)
class Outcome:
    """What a command left behind."""

    code: int
    out: str
    err: str


@contextlib.contextmanager
def same_threads():
    """Give back what a command changes for its whole process: the demo takes two threads, which would wait for other tests."""
    before = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(before)


def run_here(*words: object, gpu: bool = False) -> Outcome:
    """Run a verb inside this process, which saves the seconds that loading torch takes; it sees no GPU unless it is to."""
    out, err = io.StringIO(), io.StringIO()
    seen = torch.cuda.is_available() and gpu
    with (
        same_threads(),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        mock.patch.object(sys, "argv", ["mmunlearn", *map(str, words)]),
        mock.patch.object(torch.cuda, "is_available", return_value=seen),
    ):
        try:
            code = guarded([str(word) for word in words])
        except SystemExit as stop:  # how Hydra ends after an unexpected error
            code = int(stop.code or 0)
    return Outcome(code, out.getvalue(), err.getvalue())


def command_environment(**more: str) -> dict[str, str]:
    """The environment of a command: no network, no GPU, one thread, lines of 80 columns."""
    return os.environ | {
        "HF_HUB_OFFLINE": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "OMP_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "COLUMNS": "80",
        **more,
    }


def run_command(*words: object, cwd: Path, script: tuple[object, ...] = (), **environment: str) -> Outcome:
    """Run the installed `mmunlearn`, or another script, as a user does."""
    start = script or (Path(sys.executable).with_name("mmunlearn"),)
    done = subprocess.run(
        [str(word) for word in (*start, *words)],
        cwd=cwd,
        env=command_environment(**environment),
        capture_output=True,
        text=True,
        encoding="utf-8",
        check=False,
    )
    return Outcome(done.returncode, done.stdout, done.stderr)


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, with its bytes."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
