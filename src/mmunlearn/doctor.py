"""`mmunlearn doctor`: what of this machine can be used, and how to get the rest."""

import importlib.metadata
import importlib.util
import os
import platform
import shutil
from collections.abc import Iterator
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from mmunlearn.config import configs_folder

GIB = 1 << 30


def doctor() -> int:
    """Print the table; returns the exit code."""
    table = Table(title="mmunlearn doctor", title_justify="left")
    for column in ("what", "found", "means"):
        table.add_column(column)
    rows = [*_machine(), *_accelerators(), *_packages(), *_files()]
    for ok, what, found, means in rows:
        table.add_row(f"{'✓' if ok else '–'} {what}", found, means)
    Console().print(table)
    return 0


def _machine() -> Iterator[tuple[bool, str, str, str]]:
    yield True, "Python", platform.python_version(), platform.platform()
    yield True, "processors", str(os.cpu_count()), f"torch uses {torch.get_num_threads()} threads"
    free = shutil.disk_usage(Path.cwd()).free / GIB
    yield free > 2, "free disk", f"{free:.0f} GiB", "the demo takes 0.3 GiB; a 7B model and its checkpoint about 45 GiB"


def _accelerators() -> Iterator[tuple[bool, str, str, str]]:
    if not torch.cuda.is_available():
        yield False, "GPU", "none that torch can use", "everything runs on the CPU; fine for the demo, too slow for 7B models"
        return
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        memory = properties.total_memory / GIB
        bf16 = "bfloat16 works" if torch.cuda.is_bf16_supported() else "no bfloat16: use model.dtype=float32"
        yield True, f"GPU {index}", f"{properties.name}, {memory:.0f} GiB", bf16


def _packages() -> Iterator[tuple[bool, str, str, str]]:
    for name in ("torch", "transformers", "accelerate", "peft"):
        yield True, name, importlib.metadata.version(name), ""
    for name, means in (
        ("deepspeed", "trainer.args.deepspeed; pip install 'mmunlearn\\[deepspeed]'"),
        ("openai", "mmunlearn judge; pip install 'mmunlearn\\[judge]'"),
    ):
        there = importlib.util.find_spec(name) is not None
        yield there, name, importlib.metadata.version(name) if there else "not installed", means


def _files() -> Iterator[tuple[bool, str, str, str]]:
    yield configs_folder().is_dir(), "configurations", str(configs_folder()), ""
    for folder in ("data/MLLMU-Bench", "data/MLLMMU-Bench"):
        there = Path(folder).is_dir()
        yield there, folder, "found" if there else "not here", "" if there else "the hub is asked instead, or set data.root"
    offline = os.environ.get("HF_HUB_OFFLINE", "") not in ("", "0")
    yield True, "hub", "offline (HF_HUB_OFFLINE)" if offline else "asked when something is not on the disk", ""
