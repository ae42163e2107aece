"""Files of others, links, names of files, and what cannot be read."""

import bz2
import gzip
import json
import lzma
import os
import shutil

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from purge_cases import (
    ADA,
    BO,
    both,
    contents,
    done,
    evaluation,
    examples_about,
    ids_of,
    line_ids,
    results,
    training,
)

from mmunlearn.config import PurgeConfig
from mmunlearn.errors import RunError
from mmunlearn.purge import contents as contents_of_files
from mmunlearn.purge import files
from mmunlearn.purge.job import purge
from mmunlearn.run import write_json, write_text


def test_files_of_others_are_listed_and_never_touched(tmp_path):
    evaluation(tmp_path / "after", both())
    (tmp_path / "predictions").mkdir()
    (tmp_path / "predictions" / "mine.jsonl").write_text(json.dumps({"id": ids_of(ADA)[0], "text": ADA}) + "\n")
    (tmp_path / "notes.txt").write_text(f"ask {ADA}")
    (tmp_path / "after" / "notes.txt").write_text("nothing")
    (tmp_path / "set").mkdir()
    pq.write_table(pa.table({"ID": ["001", "006"], "text": ["x", "y"]}), tmp_path / "set" / "a.parquet")
    mine = {name: content for name, content in contents(tmp_path).items() if not name.startswith("after/")}
    plan = done(tmp_path, ADA, "006")
    assert {str(rest.path.relative_to(tmp_path)) for rest in plan.rest} == {"predictions/mine.jsonl", "notes.txt", "set"}
    assert {name: content for name, content in contents(tmp_path).items() if not name.startswith("after/")} == mine
    assert (tmp_path / "after" / "notes.txt").exists()


def test_links_are_not_followed(tmp_path):
    outside = evaluation(tmp_path / "outside", both())
    inside = tmp_path / "inside"
    own = evaluation(inside / "own", both())
    before = contents(tmp_path / "outside")
    (inside / "linked").symlink_to(outside.root, target_is_directory=True)
    (inside / "again").symlink_to(own.root, target_is_directory=True)
    path = own.predictions("retain_text_generation")
    path.symlink_to(outside.predictions("forget_text_generation"))
    shutil.rmtree(own.root / "judged")
    (own.root / "judged").symlink_to(outside.root / "judged", target_is_directory=True)
    plan = done(inside)
    assert contents(tmp_path / "outside") == before
    assert {rest.path for rest in plan.rest} == {inside / "linked", path, own.root / "judged"}
    assert line_ids(own.scores("forget_text_generation")) == ids_of(BO)


def test_pictures_trackers_and_leftovers(tmp_path):
    run = evaluation(tmp_path / "after", both())
    for name in (ADA, BO):
        write_text(run.root / "inspect" / f"table_{name}_image_00ff.png", "x")
        write_text(run.trackers / f"events.{len(name)}", f"\x00\xff settings: {name}")
    (run.root / "predictions" / ".forget_text_generation.jsonl.x1").write_text("half a li")
    (run.root / ".results.json.x2").write_text("{")
    done(tmp_path)
    assert [path.name for path in (run.root / "inspect").iterdir()] == [f"table_{BO}_image_00ff.png"]
    assert [path.name for path in run.trackers.iterdir()] == [f"events.{len(BO)}"]
    assert not [path for path in run.root.rglob(".*")]


def test_a_folder_named_after_the_person_is_listed(tmp_path):
    run = evaluation(tmp_path / "forget-ada-example", {each: BO for each in ids_of(BO)})
    assert [(rest.path, rest.remedy) for rest in done(tmp_path).rest] == [(run.root, "Rename it.")]


def test_a_file_that_cannot_be_written_stops_the_purge_with_what_tells_still_there(tmp_path, monkeypatch):
    run = evaluation(tmp_path / "after", both())

    def full(path, records):
        raise RunError(f"{path}: no space left")

    with monkeypatch.context() as patch:
        patch.setattr(files, "write_json_lines", full)
        with pytest.raises(RunError, match="no space left"):
            done(tmp_path)
    assert line_ids(run.scores("forget_text_generation")) == [*ids_of(ADA), *ids_of(BO)]
    assert done(tmp_path).rest == []
    assert line_ids(run.predictions("forget_text_generation")) == ids_of(BO)


def test_folders_inside_each_other_are_looked_through_once(tmp_path):
    evaluation(tmp_path / "a" / "after", both())
    plan = purge(PurgeConfig(subjects=[ADA], folders=[str(tmp_path), str(tmp_path / "a"), os.path.relpath(tmp_path)]))
    assert len(plan.steps) == len({step.path.resolve() for step in plan.steps})
    assert len(plan.steps) == 8


# --- what is looked into ----------------------------------------------------------------------------------------------


def only(folder):
    """The single thing that a purge of Ada leaves in a folder, as its name and why."""
    (rest,) = done(folder).rest
    return rest.path.name, rest.why


def write_table(path, table):
    if path.suffix == ".parquet":
        pq.write_table(table, path)
    elif path.suffix == ".feather":
        with pa.ipc.new_file(str(path), table.schema) as file:
            file.write_table(table)
    else:
        with pa.ipc.new_stream(str(path), table.schema) as stream:
            stream.write_table(table)


COLUMNS = {
    "large": pa.array(["x", f"of {ADA}"], pa.large_string()),
    "words": pa.array(["x", ADA]).dictionary_encode(),
    "struct": pa.array([{"a": {"b": "x"}}, {"a": {"b": ADA}}]),
    "list": pa.array([["x"], ["y", ADA]]),
    "map": pa.array([[("k", "v")], [("k", ADA)]], pa.map_(pa.string(), pa.string())),
    "bytes": pa.array([b"x", ADA.encode()]),
    "view": pa.array(["x", ADA], pa.string_view()),
    "escaped": pa.array(["x", json.dumps({"who": "Ada\u00a0Example"})]),
}


@pytest.mark.parametrize("suffix", [".parquet", ".arrow", ".feather"])
@pytest.mark.parametrize("column", COLUMNS)
def test_every_kind_of_column_is_looked_into(tmp_path, column, suffix):
    if column == "view" and suffix == ".parquet":
        pytest.skip("Parquet has no such column: it is written as a string")
    (tmp_path / "set").mkdir()
    path = tmp_path / "set" / f"a{suffix}"
    write_table(path, pa.table({"number": [1, 2], "c": COLUMNS[column]}))
    assert only(tmp_path) == ("set", "a data set: 1 of its files hold them")
    write_table(path, pa.table({"number": [1], "c": COLUMNS[column].slice(0, 1)}))
    assert done(tmp_path).rest == []


def test_what_is_noted_beside_a_table_and_numbers_of_people(tmp_path):
    noted = pa.table({"label": [0]}, schema=pa.schema([("label", pa.int64())], {"huggingface": json.dumps({"names": [ADA]})}))
    pq.write_table(noted, tmp_path / "a.parquet")
    assert only(tmp_path)[1].startswith("a data set")
    pq.write_table(pa.table({"subject": [7], "age": [8]}), tmp_path / "a.parquet")
    assert [len(done(tmp_path, name).rest) for name in ("7", "8")] == [1, 0]


@pytest.mark.parametrize("pictures", [[b"\x89PNG\r\n\x1a\n\xff"], [b"\xff\xfe\xfd unknown"]])
def test_bytes_that_nothing_tells_about_are_unread(tmp_path, pictures):
    pq.write_table(pa.table({"image": pictures}), tmp_path / "a.parquet")
    assert only(tmp_path)[1].startswith("unread: a table ")
    pq.write_table(pa.table({"image": [b"\x89PNG\r\n\x1a\n\xff"], "caption": ["a baker"]}), tmp_path / "a.parquet")
    assert done(tmp_path).rest == []


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.jsonl.gz", gzip.compress(json.dumps({"text": f"ask {ADA}"}).encode(), mtime=0)),
        ("a.txt.bz2", bz2.compress(ADA.encode())),
        ("a.log.xz", lzma.compress(ADA.encode())),
        ("packed", gzip.compress(ADA.encode(), mtime=0)),
        ("utf16.csv", ADA.encode("utf-16")),
        ("marked.csv", ADA.encode("utf-8-sig")),
        ("Makefile", ADA.encode()),
        ("notes.ipynb", json.dumps({"source": [f"{ADA}\n"]}).encode()),
        ("latin.txt", f"é {ADA}".encode("latin-1")),
        ("binary.db", b"\0\1" + ADA.encode()),
        ("binary16.db", b"\xff \0" + ADA.encode("utf-16-le") + b" \0"),
        ("page.html", b"<b>Ada</b> <i>Ex&#97;mple</i>"),
        ("a.json", b'{"who": "\\u0041da\\u0020Example"}'),
        ("list.url", b"http://x/?q=Ada%20Example"),
    ],
)
def test_texts_of_all_kinds_are_looked_into(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    assert only(tmp_path) == (name, "names them")
    assert (tmp_path / name).read_bytes() == content


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("portrait.PNG", b"\x89PNG"),
        ("model.safetensors", b"\0"),
        ("archive.zip", b"PK\3\4\0\0\xff"),
        ("numbers.pkl", b"\x80\4\x95"),
        ("half.txt.gz", gzip.compress(b"a long text" * 99, mtime=0)[:-20]),
        ("broken.parquet", b"PAR1 and nothing"),
        ("broken.arrow", b"nothing"),
        ("latin.txt", "é".encode("latin-1")),
        ("nul.txt", b"a\0b"),
    ],
)
def test_what_cannot_be_looked_into_is_listed(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    found, why = only(tmp_path)
    assert found == name
    assert why.startswith("unread: ")


def test_unread_files_of_a_kind_are_one_entry(tmp_path):
    for number in range(3):
        (tmp_path / f"{number}.png").write_bytes(b"\x89PNG")
    assert only(tmp_path) == (tmp_path.name, "unread: 3 files (.png): pictures are not looked at")


@pytest.mark.parametrize("before", [0, 1, 4, 9, 17, 26, 31])
def test_a_large_file_is_read_whole_wherever_the_name_stands(tmp_path, monkeypatch, before):
    """In pieces of 32 letters, so that the name lies across their ends; a word that is cut is no name."""
    monkeypatch.setattr(contents_of_files, "CHUNK", 32)
    escaped = "\\u0041da\\u0020Example"
    (tmp_path / "a.txt").write_text("x" * before + " " * 5000 + "y" * before + " " + escaped + " z" * 3000)
    assert only(tmp_path) == ("a.txt", "names them")
    (tmp_path / "a.txt").write_text(("z" * before + " J" + ADA.lower() + " ") * 400)
    assert done(tmp_path).rest == []


def test_rows_about_a_number(tmp_path):
    (tmp_path / "a.csv").write_text("subject,age\n007,6\n8,7\n")
    (tmp_path / "b.jsonl").write_text('{"id": "table/9/text/0"}\n')
    (tmp_path / "c.json").write_text('[{"name": "Bo"}]')
    found = {name: [rest.path.name for rest in done(tmp_path, name).rest] for name in ("007", "7", "9", "Bo")}
    assert found == {"007": ["a.csv"], "7": [], "9": ["b.jsonl"], "Bo": ["c.json"]}


# --- names of files, and what a run's folder holds besides ------------------------------------------------------------


def test_names_of_files_and_folders_are_listed(tmp_path):
    (tmp_path / "AdaExample").mkdir()
    (tmp_path / "AdaExample" / "ada_example (1).txt").write_text("x")
    (tmp_path / "annette.txt").write_text("x")
    (tmp_path / "006.txt").write_text("x")
    (tmp_path / "old-ada-example").symlink_to(tmp_path / "annette.txt")
    run = evaluation(tmp_path / "run", {each: BO for each in ids_of(BO)})
    write_text(run.root / "logs" / "ada%20example.log", "x")
    assert {rest.path.name for rest in done(tmp_path, ADA, "Ann", "006").rest} == {
        "AdaExample",
        "ada_example (1).txt",
        "006.txt",
        "old-ada-example",
        "ada%20example.log",
    }
    assert done(tmp_path / "AdaExample").rest[0].path == tmp_path / "AdaExample"


def test_files_of_a_run_that_nothing_else_looks_into(tmp_path):
    """A results file whose near-ties name somebody, a metrics file, a tokenizer, what a killed command left."""
    run = training(tmp_path / "run", examples_about(BO))
    write_text(run.metrics, json.dumps({"sample": ids_of(ADA)[0]}))
    write_text(run.model / "README.md", f"made for {ADA}")
    write_text(run.lock, json.dumps({"command": f"mmunlearn unlearn 'data.forget=[{ADA}]'"}))
    write_json(run.prepared, {"log_likelihoods": dict.fromkeys(ids_of(ADA), -1.0)})
    other = evaluation(tmp_path / "other", {each: BO for each in ids_of(BO)})
    write_json(other.results, {**results("f1", 3), "near_ties": {"forget_text_generation": ids_of(ADA)}})
    plan = done(tmp_path)
    assert {(rest.path, rest.why) for rest in plan.rest} == {
        (run.metrics, "names them"),
        (run.model / "README.md", "names them"),
    }
    assert not run.prepared.exists()
    assert not run.lock.exists()
    assert not other.results.exists()
    assert not other.is_done


def test_a_card_behind_a_link_is_not_written_to(tmp_path):
    outside = training(tmp_path / "outside", examples_about(ADA))
    write_json(outside.model / "mmunlearn.json", {"role": "vanilla", "label": ADA})
    run = evaluation(tmp_path / "inside" / "run", both())
    run.model.symlink_to(outside.model, target_is_directory=True)
    before = contents(tmp_path / "outside")
    done(tmp_path / "inside")
    assert contents(tmp_path / "outside") == before
