"""A model is found by what went into it."""

import json
import os

import pytest

from mmunlearn.config_enums import Role
from mmunlearn.errors import ConfigError
from mmunlearn.models.library import find_model


@pytest.fixture
def shelf(tmp_path, monkeypatch):
    """Puts a card into `{folder}/model`; later cards are newer. The working directory is an empty folder."""
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    count = []

    def put(folder, **card):
        model = tmp_path / folder / "model"
        model.mkdir(parents=True)
        file = model / "mmunlearn.json"
        file.write_text(json.dumps({"role": "gold", "data": "d", "base": "b", "method": "FineTune"} | card))
        count.append(folder)
        os.utime(file, (1_000_000 + len(count), 1_000_000 + len(count)))
        return model

    return put


def find(tmp_path, **wanted):
    return find_model(Role.gold, **{"data": "d", "base": "b", "beside": [tmp_path / "runs"], **wanted})


def test_the_newest_wins(shelf, tmp_path):
    shelf("runs/z")
    newest = shelf("runs/a")
    assert find(tmp_path) == newest
    os.utime(tmp_path / "runs/z/model/mmunlearn.json", (2_000_000, 2_000_000))
    assert find(tmp_path) == tmp_path / "runs/z/model"


@pytest.mark.parametrize("other", [{"role": "vanilla"}, {"role": "gold_text"}, {"data": "e"}, {"base": "c"}])
def test_role_examples_and_base_must_agree(other, shelf, tmp_path):
    right = shelf("runs/right")
    shelf("runs/newer", **other)
    assert find(tmp_path) == right


def test_an_unknown_base_takes_any_if_all_are_the_same(shelf, tmp_path):
    shelf("runs/first")
    newest = shelf("runs/second")
    assert find(tmp_path, base=None) == newest


def test_an_unknown_base_and_several_to_choose_from_is_refused(shelf, tmp_path):
    """Taking the newest would silently be another reference tomorrow."""
    first = shelf("runs/first")
    shelf("runs/second", base="c")
    with pytest.raises(ConfigError, match=r"different base models.*trainer\.reference=FOLDER"):
        find(tmp_path, base=None)
    assert find(tmp_path, base="b") == first


@pytest.mark.parametrize("damage", ["{", "[]", "5", "null"])
def test_a_damaged_card_is_passed_over(damage, shelf, tmp_path):
    good = shelf("runs/good")
    folder = tmp_path / "runs/bad/model"
    folder.mkdir(parents=True)
    (folder / "mmunlearn.json").write_text(damage)
    assert find(tmp_path) == good


def test_a_card_that_says_too_little_is_not_taken(shelf, tmp_path):
    """Models of other tools, or unlearned ones."""
    folder = tmp_path / "runs/empty/model"
    folder.mkdir(parents=True)
    (folder / "mmunlearn.json").write_text("{}")
    with pytest.raises(ConfigError):
        find(tmp_path)
    with pytest.raises(ConfigError):
        find(tmp_path, base=None)


def test_runs_are_looked_for_in_outputs_and_beside(shelf, tmp_path):
    shelf("elsewhere/gold")
    with pytest.raises(ConfigError):
        find(tmp_path)
    for folder in ("work/outputs/gold", "work/outputs/finetune/2025-01-01_10-00-00", "runs/gold", "runs/sweep/seed=1"):
        newest = shelf(folder)
        assert find(tmp_path) == newest


def test_none_says_where_was_looked_and_what_to_do(shelf, tmp_path):
    shelf("runs/vanilla", role="vanilla")
    with pytest.raises(ConfigError) as caught:
        find(tmp_path)
    message = str(caught.value)
    for words in (str(tmp_path / "runs"), str(tmp_path / "work" / "outputs"), "No gold model", "data.split=retain"):
        assert words in message
    assert "trainer.reference=FOLDER" in message
