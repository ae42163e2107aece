"""A report's tables as files for papers and spreadsheets: `tables.md`, `tables.tex`, `tables.csv`."""

import csv
import io
import json
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mmunlearn.report.collect import Collected, Evaluation
from mmunlearn.report.probes import COLUMNS, PROTOCOL, Probe, probe_cells, probe_note
from mmunlearn.report.published import Comparable, Table, asked_of, comparable
from mmunlearn.report.published_tables import TABLES
from mmunlearn.report.tables import Summary, metric_title, number, overview, rules_title, summaries
from mmunlearn.report.words import FAMILY_NAMES, task_title
from mmunlearn.run import Run, write_text

MAX_COLUMNS = 6
"""A LaTeX table with more columns of numbers is continued in another one, so that it fits a page."""
OURS = "this report"
CSV_COLUMNS = (
    *("label", "source", "benchmark", "version", "protocol", "base_model", "forget_ratio", "role", "method", "seed", "seeds"),
    *(
        "fingerprint",
        "task",
        "metric",
        "of",
        "value",
        "low",
        "high",
        "count",
        "unscored",
        "lowest_seed",
        "highest_seed",
        "caution",
    ),
)
"""`seeds` is 1 for a single model; rows of several seeds folded together stand below those of the single ones."""

HOW_TO_READ = (
    "Value [95 % interval over persons]; – : none. A row of several seeds shows their mean, an interval over persons and "
    "seeds, and the lowest and highest seed."
)


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One number, or a text where there is none."""

    value: str
    details: tuple[str, ...] = ()
    """What stands beside or below it: the interval, the spread of seeds, unscored questions."""


@dataclass(frozen=True, kw_only=True)
class Grid:
    """A table without its markup."""

    title: str
    corner: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, tuple[Cell, ...]], ...]
    note: str = ""

    def turned(self) -> "Grid":
        """Rows and columns exchanged."""
        cells = list(zip(*(cells for _, cells in self.rows), strict=True))
        return Grid(
            title=self.title,
            corner=self.corner,
            columns=tuple(name for name, _ in self.rows),
            rows=tuple(zip(self.columns, cells, strict=True)),
            note=self.note,
        )

    def fitting(self) -> "Grid":
        """As it is or turned, whichever has fewer columns; pages are longer than wide."""
        return self.turned() if len(self.columns) > len(self.rows) else self

    def parts(self, width: int) -> list["Grid"]:
        """Grids of at most so many columns."""
        starts = range(0, len(self.columns), width)
        return [
            Grid(
                title=self.title if len(starts) == 1 else f"{self.title} ({place} of {len(starts)})",
                corner=self.corner,
                columns=self.columns[start : start + width],
                rows=tuple((name, cells[start : start + width]) for name, cells in self.rows),
                note=self.note,
            )
            for place, start in enumerate(starts, 1)
        ]


@dataclass(frozen=True, kw_only=True)
class Section:
    """Grids under one heading."""

    heading: str
    remark: str
    grids: tuple[Grid, ...]


def write_tables(run: Run, groups: Sequence[Collected], *, title: str, safe: Callable[[str], str]) -> None:
    """Write the three files, each atomically, beside the report's `results.json`, whose rows the CSV repeats.

    Args:
        run: the report's folder; `results.json` is written already.
        groups: the evaluations by each set of rules, the main ones first.
        title: the report's.
        safe: replaces the names of persons.
    """
    published = [comparable(asked_of(group), TABLES) for group in groups]
    rows = json.loads(run.results.read_text(encoding="utf-8"))
    sections, title = table_sections(groups, published, safe), safe(title)
    write_text(run.tables("md"), markdown(title, sections))
    write_text(run.tables("tex"), latex(title, sections))
    write_text(run.tables("csv"), csv_text(csv_rows(rows, groups, published, safe)))


def table_sections(
    groups: Sequence[Collected], published: Sequence[Comparable], safe: Callable[[str], str]
) -> tuple[Section, ...]:
    """What the tables show, without markup: the main numbers, those by other rules, probes, published ones."""
    main, others = groups[0], groups[1:]
    sections = [
        Section(
            heading=rules_title(main),
            remark=HOW_TO_READ,
            grids=tuple(_summary_grid(summary, safe) for summary in summaries(main)),
        )
    ]
    for other in others:
        remark = "Asked by other rules: these numbers do not compare with those of other tables."
        sections.append(
            Section(heading=f"By other rules: {rules_title(other)}", remark=remark, grids=(_overview(other, safe),))
        )
    if main.probes:
        grids = tuple(_probe_grid(probe, safe) for probe in main.probes)
        sections.append(Section(heading="Whom a model is shown to know", remark="Runs of `mmunlearn probe`.", grids=grids))
    for group, found in zip(groups, published, strict=True):
        heading = f"Published numbers for {rules_title(group)}"
        remark = f"None is shown: {found.reason}." if found.reason else "Printed in papers, not measured here."
        sections.append(Section(heading=heading, remark=remark, grids=tuple(map(_published_grid, found.tables))))
    return tuple(sections)


def published_title(table: Table) -> str:
    """Whose numbers, of which model."""
    return f"{table.source}: {table.base_model}, {table.forget_ratio} % to be forgotten"


def published_caution(table: Table) -> str:
    """What to know before comparing."""
    return " ".join(
        part for part in (table.caution, "" if table.shots else "Whether with or without shots is not known.") if part
    )


def cell(model: Evaluation, task: str, metric: str) -> Cell:
    """A model's number with what belongs to it."""
    estimate = model.estimate(task, metric)
    if estimate is None:
        return Cell(value="")
    details = [] if math.isnan(estimate.low) else [f"[{number(estimate.low)}, {number(estimate.high)}]"]
    spread = model.spread(task, metric)
    if spread:
        details.append(f"seeds {number(spread[0])} to {number(spread[1])}")
    if estimate.unscored:
        details.append(f"{estimate.unscored} unscored")
    return Cell(value=number(estimate.value), details=tuple(details))


def _summary_grid(summary: Summary, safe: Callable[[str], str]) -> Grid:
    rows = [
        (safe(row.evaluation.label), tuple(cell(row.evaluation, column.task, summary.metric) for column in summary.columns))
        for row in summary.rows
    ]
    if summary.has_chance():
        chances = [Cell(value="" if column.chance is None else number(column.chance)) for column in summary.columns]
        rows.insert(0, ("guessing", tuple(chances)))
    return Grid(
        title=f"{summary.title}: {metric_title(summary.metric)}",
        corner="",
        columns=tuple(f"{FAMILY_NAMES[column.family]}, {column.modality}" for column in summary.columns),
        rows=tuple(rows),
    ).fitting()


def _overview(collected: Collected, safe: Callable[[str], str]) -> Grid:
    found = overview(collected)
    return Grid(
        title="Summary",
        corner="",
        columns=tuple(f"{task_title(task)}: {metric_title(collected.primary_metric(task))}" for task in found.tasks),
        rows=tuple(
            (safe(model.label), tuple(cell(model, task, collected.primary_metric(task)) for task in found.tasks))
            for model, _ in found.rows
        ),
    ).fitting()


def _probe_grid(probe: Probe, safe: Callable[[str], str]) -> Grid:
    """People under their labels, also where the page may name them."""
    return Grid(
        title=safe(f"{probe.label}, asked about {len(probe.people)} people ({probe.title})"),
        corner="Person",
        columns=COLUMNS,
        rows=tuple((label, tuple(Cell(value=value) for value in values)) for label, values in probe_cells(probe)),
        note=probe_note(probe),
    )


def _published_grid(table: Table) -> Grid:
    return Grid(
        title=published_title(table),
        corner="",
        columns=tuple(column.name for column in table.columns),
        rows=tuple((method, tuple(Cell(value=one.shown()) for one in row)) for method, row in table.by_method().items()),
        note=published_caution(table),
    )


# Markdown -----------------------------------------------------------------------------------------------------------------


def markdown(title: str, sections: Sequence[Section]) -> str:
    """GitHub's Markdown."""
    lines = [f"# {_markdown_text(title)}"]
    for section in sections:
        lines += ["", f"## {_markdown_text(section.heading)}", "", _markdown_text(section.remark)]
        for grid in section.grids:
            lines += ["", f"### {_markdown_text(grid.title)}", "", *_markdown_grid(grid)]
            lines += ["", _markdown_text(grid.note)] if grid.note else []
    return "\n".join(lines) + "\n"


def _markdown_grid(grid: Grid) -> Iterable[str]:
    yield _markdown_row([grid.corner, *grid.columns])
    yield "| " + " | ".join(["---", *["---:"] * len(grid.columns)]) + " |"
    for name, cells in grid.rows:
        yield _markdown_row([name, *(" ".join([each.value, *_in_brackets(each.details)]) for each in cells)])


def _in_brackets(details: Sequence[str]) -> list[str]:
    return [detail if detail.startswith("[") else f"({detail})" for detail in details]


def _markdown_row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(map(_markdown_text, cells)) + " |"


def _markdown_text(text: str) -> str:
    """One line without markup: no pipe ends a cell, no name becomes HTML, a link or emphasis."""
    line = " ".join(text.split())
    return re.sub(r"([\\`*_<>|#~]|\[(?=[^\]]*\]\())", r"\\\1", line)


# LaTeX --------------------------------------------------------------------------------------------------------------------

_LATEX = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"\$", "&": r"\&", "#": r"\#", "%": r"\%", "_": r"\_",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}",
    '"': r"\textquotedbl{}", "−": "$-$", "–": "--", "’": "'", "“": "``", "”": "''", "…": r"\ldots{}",
    "\u00a0": "~", "[": "{[}", "]": "{]}",
}  # fmt: skip
"""Square brackets are grouped because one at the start of a row would be read as the argument of the \\\\ before it."""


def latex(title: str, sections: Sequence[Section]) -> str:
    """Tables to be read into a document; they need the package booktabs and T1 or Unicode fonts."""
    lines = [
        f"% {' '.join(title.split())}",
        r"% Needs \usepackage{booktabs} and \usepackage[T1]{fontenc}; with names in other scripts XeLaTeX or LuaLaTeX.",
    ]
    for section in sections:
        lines += ["", f"% {section.heading}"]
        for grid in section.grids:
            for part in grid.parts(MAX_COLUMNS):
                lines += ["", *_latex_table(part, f"{section.heading}. {part.title}. {section.remark} {part.note}".strip())]
    return "\n".join(lines) + "\n"


def _latex_table(grid: Grid, caption: str) -> Iterable[str]:
    yield r"\begin{table}"
    yield r"\centering\small"
    yield rf"\caption{{{latex_text(caption)}}}"
    yield rf"\begin{{tabular}}{{l{'r' * len(grid.columns)}}}"
    yield r"\toprule"
    yield _latex_row([latex_text(grid.corner), *(_latex_heading(column) for column in grid.columns)])
    yield r"\midrule"
    for name, cells in grid.rows:
        yield _latex_row([latex_text(name), *map(_latex_cell, cells)])
    yield r"\bottomrule"
    yield r"\end{tabular}"
    yield r"\end{table}"


def _latex_row(cells: Sequence[str]) -> str:
    return " & ".join(cells) + r" \\"


def _latex_heading(text: str) -> str:
    """A line for each part of a heading, so that columns stay narrow."""
    return _stack([latex_text(part) for part in text.split(", ")])


def _latex_cell(cell: Cell) -> str:
    return _stack([latex_text(cell.value), *(rf"\scriptsize {latex_text(detail)}" for detail in cell.details)])


def _stack(lines: Sequence[str]) -> str:
    return lines[0] if len(lines) == 1 else r"\shortstack[r]{" + r"\\".join(lines) + "}"


def latex_text(text: str) -> str:
    """A text in one line with every character that means something to LaTeX escaped."""
    return "".join(_LATEX.get(character, character) for character in re.sub(r"[\r\n\t]+", " ", text))


# CSV ----------------------------------------------------------------------------------------------------------------------


def csv_rows(
    rows: Sequence[Mapping[str, Any]], groups: Sequence[Collected], published: Sequence[Comparable], safe: Callable[[str], str]
) -> list[dict[str, Any]]:
    """Long format: the rows of `results.json` with labels, then rows of folded seeds, then published ones."""
    labels: dict[tuple[Any, ...], list[str]] = {}
    for group in groups:
        for model in group.unfolded().evaluations:
            key = group.benchmark, group.protocol, model.fingerprint, model.role, model.seed
            labels.setdefault(key, []).append(model.label)
        for probe in group.probes:
            labels.setdefault((probe.benchmark, PROTOCOL, probe.fingerprint, probe.role, probe.seed), []).append(probe.label)
    found = []
    for row in rows:
        known = labels.get(tuple(row[name] for name in ("benchmark", "protocol", "fingerprint", "role", "seed")), [])
        label = " / ".join(dict.fromkeys(known))  # one model evaluated twice has two
        found.append({**row, "method": safe(str(row["method"])), "label": safe(label), "source": OURS, "seeds": 1})
    for group in groups:
        folded = [model for model in group.evaluations if model.members]
        found += [_folded_row(model, row, safe) for model, row in group.rows_by_model(folded)]
    for comparables in published:
        found += [row for table in comparables.tables for row in _published_rows(table)]
    return found


def _folded_row(model: Evaluation, row: Mapping[str, Any], safe: Callable[[str], str]) -> dict[str, Any]:
    spread = model.spread(row["task"], row["metric"]) or (None, None)
    more = {"label": safe(model.label), "source": OURS, "seeds": len(model.members)}
    return {**row, **more, "method": safe(model.method), "lowest_seed": spread[0], "highest_seed": spread[1]}


def _published_rows(table: Table) -> Iterable[dict[str, Any]]:
    for one in table.numbers():
        yield {
            "label": one.method,
            "source": one.source,
            "benchmark": one.benchmark,
            "protocol": f"official, {table.shots}" if table.shots else "official",
            "base_model": one.base_model,
            "forget_ratio": one.forget_ratio,
            "method": one.method,
            "task": one.column.task,
            "metric": one.column.metric or one.column.name,
            "value": float(one.value),
            "caution": published_caution(table),
        }


def csv_text(rows: Iterable[Mapping[str, Any]]) -> str:
    """Rows as comma-separated values (RFC 4180, UTF-8, LF), safe to open in a spreadsheet."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(CSV_COLUMNS)
    for row in rows:
        writer.writerow([_csv_field(row.get(column)) for column in CSV_COLUMNS])
    return text.getvalue()


def _csv_field(value: Any) -> Any:
    """A text that a spreadsheet would run as a formula gets an apostrophe in front; numbers stay numbers."""
    if isinstance(value, str):
        plain = value.replace("\x00", "")
        return f"'{plain}" if plain.lstrip().startswith(("=", "+", "-", "@")) or plain.startswith(("\t", "\r")) else plain
    return "" if value is None else value
