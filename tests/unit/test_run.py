import errno
import json
import os
import stat
from pathlib import Path

import pytest
from safetensors import SafetensorError

from mmunlearn.errors import RunError
from mmunlearn.run import (
    RECORDED_PACKAGES,
    Run,
    append_json_line,
    environment,
    explain_disk_errors,
    fingerprint,
    read_json_lines,
    replace_folder,
    write_atomically,
    write_json,
    write_json_lines,
    write_text,
)

NO_SPACE = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
# The words that safetensors 0.8 really uses when a disk is full; it is no OSError.
NO_SPACE_IN_SAFETENSORS = SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def failing(error):
    def write(path):
        (path / "half" if path.is_dir() else path).write_text("half")
        raise error

    return write


# --- files -----------------------------------------------------------------------------------------------------------


def test_writing_replaces_the_content_and_makes_folders(tmp_path):
    path = tmp_path / "a" / "b" / "note.txt"
    write_text(path, "first")
    write_text(path, "zweite Zeile: ü\n")
    assert path.read_text(encoding="utf-8") == "zweite Zeile: ü\n"
    assert names(path.parent) == ["note.txt"]
    assert stat.S_IMODE(path.stat().st_mode) == 0o644


@pytest.mark.parametrize("error", [ValueError("no"), KeyboardInterrupt(), NO_SPACE], ids=lambda error: type(error).__name__)
def test_a_failing_writer_leaves_the_old_file_and_no_litter(error, tmp_path):
    path = tmp_path / "note.txt"
    path.write_text("old")
    with pytest.raises(RunError if error is NO_SPACE else type(error)):
        write_atomically(path, failing(error))
    assert path.read_text() == "old"
    assert names(tmp_path) == ["note.txt"]


def test_the_old_file_is_replaced_and_not_overwritten(tmp_path):
    """Whoever has the old file open goes on reading all of it."""
    path = tmp_path / "note.txt"
    path.write_text("old")
    with path.open() as reader:
        write_text(path, "new")
        assert reader.read() == "old"
    assert path.read_text() == "new"


def test_a_reader_never_sees_half_a_file(tmp_path):
    path = tmp_path / "note.txt"
    path.write_text("old")
    seen = []

    def write(temporary):
        temporary.write_text("ne")
        seen.append(path.read_text())
        temporary.write_text("new")

    write_atomically(path, write)
    assert seen == ["old"]
    assert path.read_text() == "new"


@pytest.mark.parametrize("error", [NO_SPACE, NO_SPACE_IN_SAFETENSORS, OSError(errno.EDQUOT, "quota")], ids=repr)
def test_a_full_disk_says_where_and_what_to_do(error):
    with (
        pytest.raises(RunError, match=r"/runs/7/model: no space left.*run\.dir.*run\.resume=true"),
        explain_disk_errors(Path("/runs/7/model")),
    ):
        raise error


@pytest.mark.parametrize("code", [errno.EACCES, errno.EROFS, errno.EPERM], ids=errno.errorcode.get)
def test_a_folder_that_may_not_be_written_says_so(code):
    with pytest.raises(RunError, match=r"/runs/7: may not be written \(.+\).*run\.dir"), explain_disk_errors(Path("/runs/7")):
        raise OSError(code, os.strerror(code))


@pytest.mark.parametrize(
    "error", [FileNotFoundError(errno.ENOENT, "gone"), SafetensorError("invalid header"), KeyError("x")], ids=repr
)
def test_other_errors_pass_unchanged(error):
    with pytest.raises(type(error)) as caught, explain_disk_errors(Path("/runs/7")):
        raise error
    assert caught.value is error


@pytest.mark.skipif(not Path("/dev/full").is_char_device(), reason="needs Linux's always-full device")
def test_a_really_full_device(tmp_path):
    with pytest.raises(RunError, match="no space left"):
        append_json_line(Path("/dev/full"), {"step": 1})


# --- folders ---------------------------------------------------------------------------------------------------------


def test_a_new_folder_takes_the_place_of_the_old_one(tmp_path):
    folder = tmp_path / "deep" / "model"
    replace_folder(folder, lambda path: (path / "a").write_text("1"))
    replace_folder(folder, lambda path: (path / "b").write_text("2"))
    assert names(folder) == ["b"]
    assert names(folder.parent) == ["model"]
    assert stat.S_IMODE(folder.stat().st_mode) == 0o755


@pytest.mark.parametrize("error", [NO_SPACE, KeyboardInterrupt()], ids=lambda error: type(error).__name__)
def test_a_failing_writer_leaves_the_old_folder_and_no_litter(error, tmp_path):
    folder = tmp_path / "model"
    replace_folder(folder, lambda path: (path / "a").write_text("1"))
    with pytest.raises(type(error)):
        replace_folder(folder, failing(error))
    assert (folder / "a").read_text() == "1"
    assert names(tmp_path) == ["model"]


def test_the_old_folder_stays_also_if_the_last_move_fails(tmp_path, monkeypatch):
    folder = tmp_path / "model"
    replace_folder(folder, lambda path: (path / "a").write_text("1"))
    replace = Path.replace

    def busy(self, target):
        if Path(target) == folder and (self / "b").exists():
            raise OSError(errno.EBUSY, "busy")
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", busy)
    with pytest.raises(OSError, match="busy"):
        replace_folder(folder, lambda path: (path / "b").write_text("2"))
    assert names(folder) == ["a"]
    assert names(tmp_path) == ["model"]


def test_the_old_folder_is_there_while_the_new_one_is_written(tmp_path):
    folder = tmp_path / "model"
    replace_folder(folder, lambda path: (path / "a").write_text("1"))
    replace_folder(folder, lambda path: (path / "b").write_text((folder / "a").read_text()))
    assert (folder / "b").read_text() == "1"


# --- JSON lines ------------------------------------------------------------------------------------------------------

RECORDS = [{"id": "1", "text": "Zoë\u2028née"}, {"id": "2", "values": [0.1, 1e-12, -3]}, {"id": "3", "none": None}]


def test_json_lines_there_and_back(tmp_path):
    path = tmp_path / "lines.jsonl"
    write_json_lines(path, RECORDS[:2])
    append_json_line(path, RECORDS[2])
    assert read_json_lines(path) == RECORDS
    assert read_json_lines(tmp_path / "absent.jsonl") == []
    assert path.read_text(encoding="utf-8").count("\n") == 3


def test_a_file_cut_at_any_byte_loses_its_last_line_only(tmp_path):
    """Also in the middle of a character of two or three bytes."""
    path = tmp_path / "lines.jsonl"
    write_json_lines(path, RECORDS[:1])
    whole = path.read_bytes()
    first = whole + json.dumps(RECORDS[1]).encode() + b"\n"
    for end in range(len(whole) + 1):
        path.write_bytes(first + whole[:end])
        found = read_json_lines(path)
        assert found[:2] == RECORDS[:2]
        assert len(found) == (3 if end >= len(whole) - 1 else 2), end  # without its newline a line is complete


@pytest.mark.parametrize("broken", [b'{"id": "2", "te\n', b"\xff\xfe\n", b'{"id": 1}{"id": 2}\n'])
@pytest.mark.parametrize("behind", [b'{"id": "3"}\n', b""], ids=["more-behind", "last-but-ended"])
def test_a_broken_complete_line_is_an_error(broken, behind, tmp_path):
    path = tmp_path / "lines.jsonl"
    path.write_bytes(b'{"id": "1"}\n' + broken + behind)
    with pytest.raises(RunError, match=rf"{path}, line 2: not JSON"):
        read_json_lines(path)


def test_not_a_number_is_no_json(tmp_path):
    path = tmp_path / "x.json"
    write_json(path, {"value": None})
    for write in (write_json, append_json_line):
        with pytest.raises(ValueError, match="JSON compliant"):
            write(path, {"value": float("nan")})
    assert json.loads(path.read_text()) == {"value": None}


# --- identity --------------------------------------------------------------------------------------------------------


def test_fingerprints_follow_content_and_not_order():
    assert fingerprint({"a": 1, "b": [1, 2]}) == fingerprint({"b": [1, 2], "a": 1})
    different = [{"a": 1}, {"a": 2}, {"a": "1"}, {"b": 1}, {"a": [1]}, [1, 2], [2, 1], None, "é", "e"]
    assert len({fingerprint(value) for value in different}) == len(different)
    assert len(fingerprint("x")) == 16
    # sha256 of the JSON text '"x"', from `printf '"x"' | sha256sum`
    assert fingerprint("x") == "ba2df4903a2c14e8"


def test_the_environment_names_what_a_repeat_needs(monkeypatch):
    monkeypatch.setattr("sys.argv", ["/usr/bin/mmunlearn", "unlearn", "run.seed=3"])
    found = environment()
    assert found["command"] == "mmunlearn unlearn run.seed=3"
    assert set(found["packages"]) == set(RECORDED_PACKAGES)
    assert found["packages"]["torch"].startswith("2.")
    json.dumps(found, allow_nan=False)


def test_outside_a_checkout_the_commit_is_unknown(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))  # no git there
    assert environment()["commit"] == "unknown"


def test_a_run_is_complete_when_it_says_so(tmp_path):
    run = Run(tmp_path / "run")
    assert not run.is_done
    run.finish()
    assert run.is_done
    paths = [run.config, run.environment, run.metrics, run.checkpoints, run.model, run.model_card]
    paths += [run.predictions("t"), run.scores("t"), run.results, run.report, run.done]
    assert len(set(paths)) == len(paths)
    assert all(path.is_relative_to(run.root) for path in paths)
