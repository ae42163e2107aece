"""Measure everything, hold it against what is recorded, write results.json, figures and the tables of README.md.

make perf                     exit code 1 and the names if something got slower; the record then stays as it was
make perf RECORD=1            record whatever is measured
"""

import argparse
import json
import os
import platform
import sys
import time
from pathlib import Path
from typing import Any

import torch

from mmunlearn.run import write_json, write_text
from perf import encoding, evaluation, figures, growth, saliency, training
from perf.common import copy_rate, matmul_rate

HERE = Path(__file__).parent
RESULTS = HERE / "results.json"
TOLERANCE = 0.2
"""A ratio may fall by so much of itself before it counts as slower: what repeated runs on a busy machine differ by."""
TARGETS = {"npo": 1.1, "kl_min": 1.35}
"""Seconds of a step, in steps of GradDiff, that a method should not exceed."""


def measure(people: tuple[int, int]) -> dict[str, Any]:
    """All suites and the machine that they ran on."""
    started = time.perf_counter()
    grown = growth.measure()  # first, since the most memory so far is that of the whole process
    found: dict[str, Any] = {
        "schema": 1,
        "machine": {
            "processor": platform.processor() or platform.machine(),
            "cores": os.cpu_count(),
            "load": os.getloadavg()[0],
            "torch": torch.__version__,
            "matmul_operations_per_s": matmul_rate(torch.device("cpu")),
            "copied_bytes_per_s": copy_rate(),
        },
        "training": training.measure(),
        "saliency": saliency.measure(),
        "growth": grown,
    }
    rows = [row for name, size in evaluation.SIZES.items() for row in evaluation.measure(name, size, people)]
    found["evaluation"] = {"cases": rows, "encoding": encoding.measure()}
    return found | {"seconds": time.perf_counter() - started}


def ratios(results: dict[str, Any]) -> dict[str, float]:
    """Every number that is held against the record, by name; larger is better. Seconds are not: machines differ."""
    found = {}
    for case in results["training"]["cases"]:
        name = f"training {case['shape']}, {case['method']}, {case['drawn']} drawn, tuned: {case['tuned']}"
        found[name] = case["times_as_fast"]
    for shape, row in results["training"]["methods"].items():
        found |= {f"training {shape}, GradDiff's step / {name}'s": 1 / row[name] for name in TARGETS}
    for case in results["saliency"]["cases"]:
        found[f"saliency {case['shape']}"] = case["times_as_fast"]
    for case in results["evaluation"]["cases"]:
        found[f"evaluation {case['shape']}, {case['task']}"] = case["times_as_fast"]
    for case in results["evaluation"].get("encoding", ()):  # older records lack it
        found[f"encoding {case['family']}, {case['kind']}"] = case["times_as_fast"]
    return found


def slower(found: dict[str, float], recorded: dict[str, float], tolerance: float) -> list[str]:
    """What fell by more than the tolerance, and what is no longer measured."""
    named = [f"{name}: no longer measured" for name in recorded if name not in found]
    for name, value in found.items():
        if name in recorded and value < recorded[name] * (1 - tolerance):
            named.append(f"{name}: {value:.2f} x, recorded {recorded[name]:.2f} x")
    return named


def main() -> int:
    """Measure, compare, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--record", action="store_true", help="write what is measured even if it is slower")
    parser.add_argument("--people", type=int, nargs=2, default=(6, 2), help="of the evaluation and of its plain loop")
    parser.add_argument("--draw", action="store_true", help="measure nothing: figures and tables from results.json")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    if asked.draw:
        results = json.loads(RESULTS.read_text(encoding="utf-8"))
    else:
        results = measure(tuple(asked.people))
        if RESULTS.is_file() and not asked.record:
            named = slower(ratios(results), ratios(json.loads(RESULTS.read_text(encoding="utf-8"))), TOLERANCE)
            if named:
                print("Slower than recorded:", *named, sep="\n  ", file=sys.stderr)
                return 1
        write_json(RESULTS, results)
    figures.draw(results, HERE)
    readme = HERE / "README.md"
    write_text(readme, figures.with_tables(readme.read_text(encoding="utf-8"), results))
    print(f"{RESULTS}: {results['seconds']:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
