"""Damaged data are refused in one message that says where and what to do, or tolerated and counted; never anything else."""

import os
import re
from collections import Counter

import pytest
from damage.damaging import open_damaged, read_all, write_good
from damage.make_damaged import CASES, damaged_folder

from mmunlearn.errors import DataError

REMEDY = re.compile(
    r"\b(restore|remove|delete|download|check|set|see|point|correct|write|fill|put|close|save|convert|replace|copy|use|choose|"
    r"known|separated|mark|add|name|scale|leave|rename|type|did you mean|are both)\b",
    re.IGNORECASE,
)


@pytest.fixture(scope="session")
def good(tmp_path_factory):
    """The three sound folders."""
    root = tmp_path_factory.mktemp("good")
    write_good(root)
    return root


@pytest.fixture(scope="session")
def sound(good):
    """The flaws that are in the sound folders on purpose, by layout."""
    found = {}
    for layout in ("mllmu", "clear", "table"):
        benchmark = open_damaged(layout, good / layout)
        assert read_all(benchmark)
        found[layout] = Counter(benchmark.problems())
    return found


def test_there_are_many_cases_of_different_names():
    names = [case.name for case in CASES]
    assert len(set(names)) == len(names) >= 200
    assert all(bool(case.refused) != case.tolerated for case in CASES)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_damage(case, good, sound, tmp_path):
    if "may not be read" in case.name and os.geteuid() == 0:
        pytest.skip("root may read everything")
    folder = damaged_folder(case, good, tmp_path)
    before = sorted(os.walk(tmp_path))
    benchmark = open_damaged(case.layout, folder)
    if case.refused:
        with pytest.raises(DataError) as error:
            read_all(benchmark)
        message = str(error.value)
        assert [word for word in case.refused if word not in message] == [], message
        assert REMEDY.search(message.replace(str(tmp_path), "")), f"no remedy: {message}"
        assert len(message) < 1500, message
    else:
        assert read_all(benchmark)
        more = Counter(benchmark.problems()) - sound[case.layout]
        assert any(flaw.startswith(case.counted) for flaw in more) if case.counted else not more, more
        assert case.check is None or case.check(benchmark)
    assert sorted(os.walk(tmp_path)) == before


def test_sound_folders_are_never_changed(good, sound):
    """Copies share their files by hard links, so a careless damage would reach the original."""
    for layout, flaws in sound.items():
        benchmark = open_damaged(layout, good / layout)
        read_all(benchmark)
        assert Counter(benchmark.problems()) == flaws
