"""Figures and tables of the measurements."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt

BEGIN, END = "<!-- measured: begin -->", "<!-- measured: end -->"


def draw(results: dict[str, Any], folder: Path) -> None:
    """Write training.png, switched_off.png, evaluation.png and growth.png."""
    training = [(f"{_short(case)}", case["times_as_fast"]) for case in results["training"]["cases"]]
    saliency = [(f"{case['shape']}: mask", case["times_as_fast"]) for case in results["saliency"]["cases"]]
    _bars([*training, *saliency], "times as fast as a plain loop (processor time)", folder / "training.png")
    off = [(f"{shape}: {name}", times) for shape, row in results["training"]["off"].items() for name, times in row.items()]
    _bars(off, "seconds of an NPO step with this switched off / with all on", folder / "switched_off.png")
    asked = [(f"{case['shape']}: {case['task']}", case["times_as_fast"]) for case in results["evaluation"]["cases"]]
    _bars(asked, "questions a second, in those of a plain loop", folder / "evaluation.png")
    _lines(results["growth"], folder / "growth.png")


def _short(case: dict[str, Any]) -> str:
    named = f"{case['shape']}: {case['method']}" + ("" if case["tuned"] == "language" else ", vision tuned")
    return named + (" (by picture)" if case["drawn"] == "pictures" else "")


def _bars(rows: Sequence[tuple[str, float]], label: str, path: Path) -> None:
    figure, axes = plt.subplots(figsize=(8, 0.35 * len(rows) + 1))
    names, values = zip(*rows, strict=True)
    axes.barh(names, values, color="#4477aa")
    for row, value in enumerate(values):
        axes.text(value, row, f" {value:.2f}", va="center")
    axes.axvline(1, color="black", linewidth=0.8)
    axes.set_xlabel(label)
    axes.margins(x=0.12, y=0.01)
    axes.invert_yaxis()
    figure.tight_layout()
    figure.savefig(path, dpi=110, metadata={"Software": None})
    plt.close(figure)


def _lines(growth: dict[str, Any], path: Path) -> None:
    figure, (people, tokens, ranks) = plt.subplots(1, 3, figsize=(11, 3))
    for key, label in (("training_s_a_question", "training"), ("evaluation_s_a_question", "evaluation")):
        people.plot([row["people"] for row in growth["people"]], [row[key] for row in growth["people"]], "o-", label=label)
    people.set(xlabel="people a side", ylabel="processor s a question", xticks=[row["people"] for row in growth["people"]])
    people.legend()
    for axes, name, label in ((tokens, "tokens", "tokens of a picture"), (ranks, "ranks", "ranks, one thread each")):
        axes.plot([row[name] for row in growth[name]], [row["step_s"] for row in growth[name]], "o-")
        axes.set(xlabel=label, ylabel="s a step")
    first = growth["ranks"][0]["step_s"]
    ranks.plot(
        [row["ranks"] for row in growth["ranks"]], [first / row["ranks"] for row in growth["ranks"]], "--", label="ideal"
    )
    ranks.legend()
    ranks.set_xticks([row["ranks"] for row in growth["ranks"]])
    for axes in (people, tokens, ranks):
        axes.set_ylim(bottom=0)
    figure.tight_layout()
    figure.savefig(path, dpi=110, metadata={"Software": None})
    plt.close(figure)


def with_tables(text: str, results: dict[str, Any]) -> str:
    """The text with the tables between its two marks replaced."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n\n{tables(results)}\n\n{END}{after}"


def tables(results: dict[str, Any]) -> str:
    """All tables, as Markdown."""
    machine = results["machine"]
    rate = machine["matmul_operations_per_s"]
    said = (
        f"{machine['processor']}, one thread, torch {machine['torch']}; load {machine['load']:.1f} when the run began. Large "
        f"matrix products: {rate / 1e9:.0f} G operations/s; copies: {machine['copied_bytes_per_s'] / 1e9:.1f} GB/s. "
        f"Whole suite: {results['seconds']:.0f} s."
    )
    parts = [said, _training(results, rate), _methods(results), _off(results), _recompute(results)]
    parts += [_saliency(results, rate), _evaluation(results, rate), _encoding(results), _growth(results)]
    return "\n\n".join(filter(None, parts))


def _training(results: dict[str, Any], rate: float) -> str:
    rows = [
        (
            case["shape"],
            case["method"],
            case["drawn"],
            case["tuned"],
            *(f"{case['seconds'][way]['processor_s']:.3f}" for way in ("plain", "ours")),
            f"{case['times_as_fast']:.2f} x",
            f"{case['times_as_fast_in_5_epochs']:.2f} x",
            f"{case['operations']['plain'] / case['operations']['ours']:.2f} x",
            f"{case['operations']['ours'] / rate / case['seconds']['ours']['processor_s']:.0%}",
        )
        for case in results["training"]["cases"]
    ]
    head = ("shape", "method", "drawn", "tuned", "plain s", "ours s", "faster", "5 epochs", "fewer operations", "of the floor")
    return f"**A training step** (4 forget and 4 retain questions)\n\n{_table(head, rows)}"


def _methods(results: dict[str, Any]) -> str:
    rows = [(shape, *(f"{value:.2f}" for value in row.values())) for shape, row in results["training"]["methods"].items()]
    head = ("shape", *next(iter(results["training"]["methods"].values())))
    return f"**Steps of the methods, in steps of GradDiff**\n\n{_table(head, rows)}"


def _off(results: dict[str, Any]) -> str:
    rows = [(shape, name, f"{times:.2f}") for shape, row in results["training"]["off"].items() for name, times in row.items()]
    return f"**One optimisation switched off** (NPO)\n\n{_table(('shape', 'switched off', 'times as long'), rows)}"


def _recompute(results: dict[str, Any]) -> str:
    found = results["training"].get("recompute", {}).items()  # older records lack it
    rows = [(shape, name, f"{times:.2f}") for shape, row in found for name, times in row.items()]
    head = ("shape", "trainer.args.gradient_checkpointing", "times as long")
    return f"**Activations computed again** (GradDiff)\n\n{_table(head, rows)}" if rows else ""


def _saliency(results: dict[str, Any], rate: float) -> str:
    rows = [
        (
            case["shape"],
            str(case["examples"]),
            *(f"{case['seconds'][way]['processor_s']:.2f}" for way in ("plain", "ours")),
            f"{case['times_as_fast']:.2f} x",
            f"{case['operations']['plain'] / case['operations']['ours']:.2f} x",
            f"{case['operations']['ours'] / rate / case['seconds']['ours']['processor_s']:.0%}",
            f"{case['masks_agree_on']:.4%}",
        )
        for case in results["saliency"]["cases"]
    ]
    head = ("shape", "examples", "plain s", "ours s", "faster", "fewer operations", "of the floor", "masks agree on")
    return f"**A saliency mask** of the language part, gradients squared an example\n\n{_table(head, rows)}"


def _evaluation(results: dict[str, Any], rate: float) -> str:
    rows = [
        (
            case["shape"],
            case["task"],
            *(f"{case['questions_per_s'][way]:.1f}" for way in ("loop", "rows", "together")),
            f"{case['times_as_fast']:.1f} x",
            f"{case['operations_per_question']['loop'] / case['operations_per_question']['together']:.1f} x",
            f"{case['operations_per_question']['together'] * case['questions_per_s']['together'] / rate:.0%}",
            f"{case['largest_difference']:.0e}",
        )
        for case in results["evaluation"]["cases"]
    ]
    head = (
        "shape",
        "task",
        "plain /s",
        "a row a request /s",
        "ours /s",
        "faster",
        "fewer operations",
        "of the floor",
        "largest difference",
    )
    return f"**Questions a second** of the evaluation\n\n{_table(head, rows)}"


def _encoding(results: dict[str, Any]) -> str:
    rows = [
        (
            case["family"],
            case["kind"],
            *(f"{value:.1f}" for value in case["ms_a_question"].values()),
            f"{case['times_as_fast']:.1f} x",
        )
        for case in results["evaluation"].get("encoding", ())  # older records lack it
    ]
    head = ("family", "question", "processor each time, ms", "ours, ms", "faster")
    return f"**Before the model sees a question**, read in nine ways\n\n{_table(head, rows)}" if rows else ""


def _growth(results: dict[str, Any]) -> str:
    growth = results["growth"]
    people = [
        (
            str(row["people"]),
            *(f"{1000 * row[key]:.1f}" for key in ("training_s_a_question", "evaluation_s_a_question")),
            f"{row['peak_bytes'] / 2**20:.0f}",
        )
        for row in growth["people"]
    ]
    head = ("people a side", "training, ms a question", "evaluation, ms a question", "most memory so far, MiB")
    parts = ["**Growth.** With people (demo):", _table(head, people)]
    for name, label in (("tokens", "tokens of a picture"), ("ranks", "ranks of one thread each, seconds of the clock")):
        rows = [(str(row[name]), f"{row['step_s']:.3f}") for row in growth[name]]
        parts += [f"With {label} (llava-like, 8 questions a side):", _table((name, "s a step"), rows)]
    return "\n\n".join(parts)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
