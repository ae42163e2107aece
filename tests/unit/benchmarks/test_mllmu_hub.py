"""Both repositories on the hub: the cache is asked before the network, and what cannot be had is explained. No network."""

import shutil

import pytest
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

from mmunlearn.benchmarks import mllmu_files
from mmunlearn.benchmarks.mllmu import MLLMUBench
from mmunlearn.errors import DataError

REVISION = "0123456789abcdef0123456789abcdef01234567"
CACHED = {"dataset": "datasets--MLLMMU--MLLMU-Bench", "model": "models--MLLMMU--baseline_train_split"}
FOLDERS = {"dataset": "MLLMU-Bench", "model": "baseline_train_split"}
REPOSITORIES = {"dataset": "MLLMMU/MLLMU-Bench", "model": "MLLMMU/baseline_train_split"}
REMEDY = "data.root=/path/to/MLLMU-Bench data.train_root=/path/to/baseline_train_split"


@pytest.fixture
def cache(people_root, monkeypatch, tmp_path):
    """A cache as huggingface_hub lays it out, with both repositories; no folder data/ and no network."""
    for kind, name in CACHED.items():
        shutil.copytree(people_root / FOLDERS[kind], tmp_path / "hub" / name / "snapshots" / REVISION)
        (tmp_path / "hub" / name / "refs").mkdir()
        (tmp_path / "hub" / name / "refs/main").write_text(REVISION)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


def snapshot(cache, kind):
    return cache / CACHED[kind] / "snapshots" / REVISION


def ids(bench):
    splits = bench.splits()
    asked = [example for task in bench.tasks(("forget", "test", "retain", "real")) for example in task.examples]
    return [example.id for example in (*splits.forget, *splits.retain, *splits.full, *asked)]


def read(bench, kind):
    """What only one of the repositories can give."""
    return bench.tasks(("forget",)) if kind == "dataset" else bench.splits().forget


def test_a_cached_copy_is_read_like_a_folder(cache, people_root):
    folders = {"root": str(people_root / "MLLMU-Bench"), "train_root": str(people_root / "baseline_train_split")}
    assert ids(MLLMUBench()) == ids(MLLMUBench(**folders))


@pytest.mark.parametrize("kind", CACHED)
def test_a_repository_that_is_not_cached(cache, kind):
    shutil.rmtree(cache / CACHED[kind])
    with pytest.raises(DataError) as error:
        read(MLLMUBench(), kind)
    for words in (REPOSITORIES[kind], "forget_15", "neither on this machine nor can it be downloaded", REMEDY):
        assert words in str(error.value)
    other = {"dataset": "model", "model": "dataset"}[kind]
    assert read(MLLMUBench(), other)


def test_a_folder_that_is_not_in_the_repository(cache):
    with pytest.raises(DataError, match=r"MLLMMU/MLLMU-Bench: .*forget_7 .*downloaded|has no folder 'forget_7'"):
        MLLMUBench(forget_ratio="7").tasks(("forget",))


def downloads(monkeypatch, cache, answer):
    """Let the network answer; the calls that reached it are collected."""
    asked = []
    real = mllmu_files.snapshot_download

    def snapshot_download(repository, *, local_files_only, **settings):
        if local_files_only:
            return real(repository, local_files_only=True, **settings)
        asked.append((repository, settings["repo_type"], settings["allow_patterns"]))
        return answer(settings["repo_type"])

    monkeypatch.setattr(mllmu_files, "snapshot_download", snapshot_download)
    return asked


@pytest.mark.parametrize("kind", CACHED)
def test_a_folder_that_is_cached_in_part_is_fetched(cache, kind, monkeypatch, people_root):
    name = "Test_Set" if kind == "dataset" else "forget_15"
    for path in sorted((snapshot(cache, kind) / name).glob("*.parquet"))[-1:]:
        path.unlink()
    asked = downloads(monkeypatch, cache, lambda repo_type: str(people_root / FOLDERS[repo_type]))
    assert ids(MLLMUBench())
    assert asked == [(REPOSITORIES[kind], kind, [f"{name}/*"])]


ERRORS = {
    "no network": mllmu_files._HTTP_ERROR("Connection refused"),
    "not cached and offline": LocalEntryNotFoundError("outgoing traffic has been disabled"),
    "disk full": OSError(28, "No space left on device"),
    "name that no repository can have": ValueError("Repo id must be in the form 'namespace/name'"),
}


@pytest.mark.parametrize("kind", CACHED)
@pytest.mark.parametrize("name", ERRORS)
def test_a_download_that_fails(cache, kind, name, monkeypatch):
    shutil.rmtree(snapshot(cache, kind) / "forget_15")

    def answer(repo_type):
        raise ERRORS[name]

    asked = downloads(monkeypatch, cache, answer)
    with pytest.raises(DataError) as error:
        read(MLLMUBench(), kind)
    assert len(asked) == 1
    for words in (REPOSITORIES[kind], "forget_15", str(ERRORS[name]).split("\n")[0], REMEDY):
        assert words in str(error.value)


def test_errors_of_the_hub_are_of_the_kind_that_is_caught():
    """Which HTTP library stands behind them has changed twice."""
    assert issubclass(HfHubHTTPError, mllmu_files._HTTP_ERROR)
    assert issubclass(mllmu_files._HTTP_ERROR, Exception)
    assert mllmu_files._HTTP_ERROR not in (Exception, OSError, ValueError)


@pytest.mark.parametrize("root", ["~nobody-of-this-name/data", "x" * 300, "no/such/folder"])
def test_a_root_that_cannot_be(root, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for setting in ("root", "train_root"):
        with pytest.raises(DataError) as error:
            MLLMUBench(**{setting: root}).tasks()
        assert f"data.{setting}" in str(error.value)
        assert root in str(error.value)
