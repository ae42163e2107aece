"""Tables as files: every number is there, nothing in a name can break out of its cell."""

import csv
import io
import json
import re
from dataclasses import replace

import pytest
from made_up_study import FORGET, fabricate_evaluation

from mmunlearn.report.collect import collect, redact
from mmunlearn.report.export import (
    CSV_COLUMNS,
    MAX_COLUMNS,
    Cell,
    Grid,
    Section,
    csv_rows,
    csv_text,
    latex,
    latex_text,
    markdown,
    table_sections,
    write_tables,
)
from mmunlearn.report.published import LLAVA_7B, Asked, Comparable, comparable
from mmunlearn.report.published_tables import TABLES
from mmunlearn.report.seeds import fold_seeds
from mmunlearn.run import Run, write_json

NONE = Comparable(tables=(), reason="none here")
SHOWN = comparable(
    Asked(benchmark="mllmu", protocol="official", shots="zero_shot", base_model=LLAVA_7B, forget_ratio=5), TABLES
)
NASTY = ["a|b", "<b>x</b>", "50% & $5_{#1}", "~^\\x", "=1+1", "Zoë “Ü” 李", "*b* `c` [d](e)", 'quo"te, comma', "two\nlines"]


def plain(text):
    return text


def nasty_grid(names=NASTY):
    rows = tuple((name, (Cell(value="0.50", details=("[0.10, 0.90]",)), Cell(value="–"))) for name in names)
    return Grid(title=names[0], corner="", columns=("A, b", names[-1]), rows=rows, note=names[2])


def cells_of(line):
    return re.split(r"(?<!\\)\|", line)[1:-1]


def test_markdown_cells_stay_cells():
    text = markdown(NASTY[1], [Section(heading=NASTY[0], remark="", grids=(nasty_grid(),))])
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert len(lines) == 2 + len(NASTY)
    assert {len(cells_of(line)) for line in lines} == {3}
    assert "| two lines |" in text
    assert not re.search(r"(?<!\\)<", text)
    assert "李" in text
    assert "0.50 [0.10, 0.90]" in text


def parse_latex(text):
    """A tiny reader of what we write: tables as rows of cells; it fails on anything that LaTeX would stumble over."""
    depth, escaped = 0, False
    for character in re.sub(r"(?m)^%.*$", "", text):
        if escaped:
            escaped = False
        elif character == "\\":
            escaped = True
        else:
            assert character not in "#^~_%" or character == "~", character
            depth += {"{": 1, "}": -1}.get(character, 0)
            assert depth >= 0
    assert depth == 0
    begun, ended = re.findall(r"\\begin{(\w+)}", text), re.findall(r"\\end{(\w+)}", text)
    assert sorted(begun) == sorted(ended)
    tables = []
    for columns, body in re.findall(r"\\begin{tabular}{(l?r*)}\n(.*?)\\end{tabular}", text, re.DOTALL):
        rows = [line for line in body.splitlines() if not re.fullmatch(r"\\(top|mid|bottom)rule", line)]
        assert all(line.endswith(r" \\") for line in rows)
        split = [re.split(r"(?<!\\) & ", line[:-3]) for line in rows]
        assert {len(row) for row in split} == {len(columns)}
        tables.append(split)
    return tables


def test_latex_is_well_formed_whatever_the_names():
    (table,) = parse_latex(latex(NASTY[2], [Section(heading=NASTY[3], remark="", grids=(nasty_grid(),))]))
    assert table[1][1] == r"\shortstack[r]{0.50\\\scriptsize {[}0.10, 0.90{]}}"
    assert table[1][2] == "--"
    assert "Zoë" in table[6][0]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("50 % & $5_{#1}", r"50 \% \& \$5\_\{\#1\}"),
        ("~^\\", r"\textasciitilde{}\textasciicircum{}\textbackslash{}"),
        ("−0.10 – 1", "$-$0.10 -- 1"),
        ("a\nb", "a b"),
        ("5\u00a0%", r"5~\%"),
    ],
)
def test_latex_escapes(text, expected):
    assert latex_text(text) == expected


def test_a_wide_latex_table_is_continued():
    row = tuple(Cell(value=str(place)) for place in range(2 * MAX_COLUMNS + 1))
    grid = Grid(title="wide", corner="", columns=tuple(f"c{i}" for i in range(len(row))), rows=(("r", row),))
    tables = parse_latex(latex("t", [Section(heading="h", remark="", grids=(grid,))]))
    assert [len(table[0]) - 1 for table in tables] == [MAX_COLUMNS, MAX_COLUMNS, 1]
    assert [cell for table in tables for cell in table[1][1:]] == [str(place) for place in range(len(row))]


def test_the_longer_side_stands_in_rows():
    grid = Grid(title="", corner="", columns=("a", "b", "c"), rows=(("r", tuple(Cell(value=v) for v in "123")),))
    turned = grid.fitting()
    assert (turned.columns, [name for name, _ in turned.rows]) == (("r",), ["a", "b", "c"])
    assert [cells[0].value for _, cells in turned.rows] == ["1", "2", "3"]
    assert turned.fitting() == turned


def test_no_formula_in_a_spreadsheet():
    names = ["=1+1", "+1", "-1", "@x", "\t=1", " =1", "fine", "Zoë 李", 'quo"te, comma', "two\nlines"]
    rows = list(csv.DictReader(io.StringIO(csv_text([{"label": name, "value": -0.5, "seed": None} for name in names]))))
    assert [row["label"] for row in rows] == [*(f"'{name}" for name in names[:6]), *names[6:]]
    assert {row["value"] for row in rows} == {"-0.5"}
    assert {row["seed"] for row in rows} == {""}
    assert tuple(rows[0]) == CSV_COLUMNS


@pytest.fixture(scope="module")
def seeded(tmp_path_factory):
    root = tmp_path_factory.mktemp("export")
    names = [("vanilla", 0), ("gold", 0), ("GradDiff", 0), ("GradDiff", 1), ("NPO", 0)]
    return fold_seeds(collect([fabricate_evaluation(root / f"{n}{s}", n, seed=s) for n, s in names], {}))


def test_csv_holds_every_row_of_the_results_then_folded_and_published_ones(seeded, tmp_path):
    run = Run(tmp_path)
    write_json(run.results, seeded.rows())
    write_tables(run, [seeded], title="T", safe=plain)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["results.json", "tables.csv", "tables.md", "tables.tex"]
    found = list(csv.DictReader(io.StringIO(run.tables("csv").read_text(encoding="utf-8"))))
    results = json.loads(run.results.read_text())
    for row, expected in zip(found, results, strict=False):
        for name, value in expected.items():
            assert row[name] == ("" if value is None else str(value))
    assert {row["label"] for row in found[: len(results)]} == {
        "vanilla", "gold", "GradDiff (seed 0)", "GradDiff (seed 1)", "NPO",
    }  # fmt: skip
    folded = found[len(results) :]
    assert {(row["label"], row["seeds"], row["seed"]) for row in folded} == {("GradDiff (2 seeds)", "2", "")}
    one = next(row for row in folded if (row["task"], row["metric"]) == ("forget_image_choice", "accuracy"))
    assert float(one["lowest_seed"]) <= float(one["value"]) <= float(one["highest_seed"])
    before = [run.tables(kind).read_bytes() for kind in ("md", "tex", "csv")]
    write_tables(run, [seeded], title="T", safe=plain)
    assert [run.tables(kind).read_bytes() for kind in ("md", "tex", "csv")] == before


def test_published_rows_stand_apart_with_their_source(seeded):
    rows = csv_rows([], [seeded], [SHOWN], plain)
    published = [row for row in rows if row["source"] != "this report"]
    assert len(published) == sum(len(table.numbers()) for table in SHOWN.tables)
    assert all(row["source"] for row in rows)
    (one,) = [
        r for r in published if (r["source"], r["label"], r["task"]) == ("MIP-Editor, Table 1", "NPO", "forget_text_choice")
    ]
    assert (one["value"], one["metric"], one["base_model"], one["forget_ratio"]) == (0.464, "accuracy", LLAVA_7B, 5)
    ours, theirs = table_sections([seeded], [SHOWN], plain)
    assert "MANU" not in {name for grid in ours.grids for name, _ in grid.turned().rows}
    assert theirs.heading.startswith("Published numbers")
    assert all(" % to be forgotten" in grid.title for grid in theirs.grids)
    assert "not measured here" in theirs.remark
    parse_latex(latex("t", [ours, theirs]))


def test_numbers_with_intervals_and_seeds(seeded):
    (main, nothing) = table_sections([seeded], [NONE], plain)
    assert nothing.remark == "None is shown: none here."
    text = markdown("T", [main])
    estimate = seeded.evaluations[2].tasks["forget_image_choice"]["accuracy"]
    assert f"{estimate.value:.2f} [{estimate.low:.2f}, {estimate.high:.2f}] (seeds " in text
    assert "| guessing |" in text
    tables = parse_latex(latex("T", [main]))
    assert all(len(row) <= MAX_COLUMNS + 1 for table in tables for row in table)


def test_other_rules_stand_under_a_heading_of_their_own(seeded):
    other = replace(seeded, protocol="official, few_shot")
    sections = table_sections([seeded, other], [NONE, NONE], plain)
    assert [section.heading for section in sections] == [
        "people 1, protocol fixed, zero_shot",
        "By other rules: people 1, protocol official, few_shot",
        "Published numbers for people 1, protocol fixed, zero_shot",
        "Published numbers for people 1, protocol official, few_shot",
    ]
    assert "do not compare" in sections[1].remark


def test_nobody_is_named(seeded, tmp_path):
    named = replace(seeded, evaluations=tuple(replace(m, label=f"{m.label} {FORGET[0]}") for m in seeded.evaluations))
    run = Run(tmp_path)
    write_json(run.results, named.rows())
    write_tables(run, [named], title=FORGET[0], safe=lambda text: redact(text, {FORGET[0]: "person 1"}))
    for kind in ("md", "tex", "csv"):
        text = run.tables(kind).read_text(encoding="utf-8")
        assert FORGET[0] not in text
        assert "person 1" in text
