import pytest
from clear_truth import CLEAR_SIZES

from mmunlearn.benchmarks.people_clear_files import write_people_clear
from mmunlearn.benchmarks.people_files import write_people

SMALL = {"num_people": 20, "num_public_figures": 3, "num_holdout": 2, "num_general_faces": 4, "image_size": 32}


@pytest.fixture(scope="session")
def sizes():
    """Arguments of a population that is drawn in a moment."""
    return dict(SMALL)


@pytest.fixture(scope="session")
def people_root(tmp_path_factory):
    """A small population on disk; tests that change files copy it first."""
    root = tmp_path_factory.mktemp("people") / "p"
    write_people(root, seed=0, **SMALL)
    return root


@pytest.fixture(scope="session")
def clear_root(tmp_path_factory):
    """Forty people in CLEAR's layout; tests that change files copy it first."""
    root = tmp_path_factory.mktemp("clear") / "c"
    write_people_clear(root, seed=0, **CLEAR_SIZES)
    return root
