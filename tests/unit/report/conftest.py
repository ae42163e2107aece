import pytest
from made_up_study import fabricate_all

from mmunlearn.report.collect import collect


@pytest.fixture(scope="session")
def folders(tmp_path_factory):
    """Evaluations of base, vanilla, two golds and three methods, with two trainings; the numbers are made up."""
    root = tmp_path_factory.mktemp("study")
    return fabricate_all(root, names=("base", "vanilla", "gold", "GradAscent", "GradDiff", "MMUnlearner"))


@pytest.fixture(scope="session")
def collected(folders):
    return collect(*folders)
