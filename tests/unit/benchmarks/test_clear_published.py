"""What the reader counts in folders that have exactly the published rows."""

import shutil
from collections import Counter
from types import SimpleNamespace

import pyarrow.parquet as pq
import pytest
from clear_published import FORGOTTEN, ROWS, authors, folders, perturbed, put, shown, write

from mmunlearn.benchmarks.base import Asking
from mmunlearn.benchmarks.clear import CLEAR
from mmunlearn.config_enums import Protocol
from mmunlearn.errors import DataError

OFFICIAL = Asking(protocol=Protocol.official)
PICTURES = {"01": (35, 3735), "05": (188, 3582), "10": (379, 3391)}
TEXTS = {"01": (40, 3960), "05": (200, 3800), "10": (400, 3600)}
PERTURBED = {"01": 35, "05": 188, "10": 378}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return write(tmp_path_factory.mktemp("published"))


def linked(root, target, *without):
    """The folders at another place, where some are left out or replaced."""
    target.mkdir()
    for folder in root.iterdir():
        if folder.name not in without:
            (target / folder.name).symlink_to(folder)
    return target


def test_the_folders_are_those_that_were_published(root):
    assert len(ROWS) == 21
    for folder, (columns, count) in ROWS.items():
        table = pq.read_table(root / folder)
        assert (tuple(table.column_names), table.num_rows) == (columns, count), folder


@pytest.mark.parametrize(
    "ratio", [pytest.param(ratio, marks=pytest.mark.thorough if ratio != "05" else ()) for ratio in FORGOTTEN]
)
def test_counts_of_each_ratio(root, ratio):
    bench = CLEAR(root=str(root), forget_ratio=ratio)
    splits = bench.splits()
    for split, place in (("forget", 0), ("retain", 1)):
        counted = Counter(each.image is not None for each in getattr(splits, split))
        assert counted == {True: PICTURES[ratio][place], False: TEXTS[ratio][place]}
    names = authors()
    assert {each.subject for each in splits.forget} == set(names[-FORGOTTEN[ratio] :])
    assert {each.subject for each in splits.retain} == set(names[: -FORGOTTEN[ratio]])
    ours = {task.name: len(task.examples) for task in bench.tasks()}
    assert ours == {
        "forget_image_recognition": PERTURBED[ratio], "forget_image_caption": PICTURES[ratio][0],
        "forget_text_qa": TEXTS[ratio][0], "retain_image_recognition": 395, "retain_image_caption": PICTURES[ratio][1],
        "retain_text_qa": TEXTS[ratio][1], "real_image_recognition": 151, "general_image_choice": 367,
    }  # fmt: skip
    published = {task.name: len(task.examples) for task in bench.tasks(asking=OFFICIAL)}
    assert published == {
        "forget_image_recognition": PERTURBED[ratio], "forget_image_generation": PERTURBED[ratio],
        "forget_image_caption": PERTURBED[ratio], "forget_text_qa": TEXTS[ratio][0],
        "retain_image_recognition": 395, "retain_image_generation": 395, "retain_image_caption": 395,
        "retain_text_qa": TEXTS[ratio][1], "real_image_recognition": 151, "real_image_generation": 151,
        "general_image_choice": 367, "general_image_generation": 367,
    }  # fmt: skip
    lacking = {"picture of forget10+tofu is not there, so it has no truth ratio (forget10_perturbed)": 1}
    assert bench.problems() == (lacking if ratio == "10" else {})


def test_everybody_has_two_pictures_less_than_the_parts(root):
    full = CLEAR(root=str(root)).splits().full
    assert Counter(each.image is not None for each in full) == {True: 3768, False: 4000}
    assert {each.subject for each in full} == set(authors())


@pytest.mark.parametrize(("ratio", "compared"), [("01", (35, 395)), ("05", (188, 395)), ("10", (378, 395))])
def test_captions_that_can_be_compared(root, ratio, compared):
    tasks = {task.name: task for task in CLEAR(root=str(root), forget_ratio=ratio).tasks(("forget", "retain"))}
    for split, count in zip(("forget", "retain"), compared, strict=True):
        with_wrong = [each for each in tasks[f"{split}_image_caption"].examples if each.perturbed]
        assert len(with_wrong) == count
        for each in with_wrong:
            assert each.paraphrase == each.answer.replace("stands", "is seen")
            assert each.perturbed == tuple(each.answer.replace("stands", word) for word in ("sits", "sleeps", "sings"))


def test_forgotten_people_in_the_one_retain_folder_do_not_count_as_retained(root, tmp_path):
    own = linked(root, tmp_path / "own", "retain_perturbed")
    rows = folders()["retain_perturbed"]
    strangers = perturbed(shown(authors()[-1:])[:4] + shown([authors()[-15]])[:3])  # forgotten under all; under 10 alone
    put(own, "retain_perturbed", rows[:-7] + strangers)
    for ratio, count in (("05", 391), ("10", 388)):
        bench = CLEAR(root=str(own), forget_ratio=ratio)
        for asking in (Asking(), OFFICIAL):
            tasks = {task.name: task for task in bench.tasks(("retain",), asking)}
            assert len(tasks["retain_image_recognition"].examples) == count
            pictures = [task for name, task in tasks.items() if "_image_" in name]
            assert not {each.subject for task in pictures for each in task.examples} & set(authors()[-FORGOTTEN[ratio] :])
        message = f"picture of somebody who is not in retain{100 - int(ratio)}, left out (retain_perturbed)"
        assert bench.problems() == {message: 395 - count}, "counted once, however often asked"


def test_rows_in_another_order_give_the_same_pairs(root, tmp_path):
    own = linked(root, tmp_path / "own", "forget10_perturbed")
    put(own, "forget10_perturbed", folders()["forget10_perturbed"][::-1])
    found, expected = (
        [
            (each.id, each.question, each.paraphrase, each.perturbed)
            for each in CLEAR(root=str(place), forget_ratio="10").tasks(("forget",))[1].examples
        ]
        for place in (own, root)
    )
    assert found == expected


@pytest.mark.parametrize(
    ("folder", "split"),
    [
        ("forget05+tofu", "forget"), ("forget05_perturbed", "forget"), ("retain95+tofu", "retain"),
        ("retain_perturbed", "retain"), ("real_faces", "real"), ("real_world", "general"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("asking", [Asking(), OFFICIAL], ids=lambda way: way.protocol)
def test_folders_without_rows_and_missing_ones(root, tmp_path, folder, split, asking):
    own = linked(root, tmp_path / "own", folder)
    put(own, folder, [])
    with pytest.raises(DataError, match=r"has no rows\. Download the folder again or point data\.root") as error:
        CLEAR(root=str(own)).tasks((split,), asking)
    assert folder in str(error.value)
    shutil.rmtree(own / folder)
    with pytest.raises(DataError, match=r"no Parquet files there.*data\.root.*therem/CLEAR") as error:
        CLEAR(root=str(own)).tasks((split,), asking)
    assert folder in str(error.value)


def test_a_folder_of_names_without_rows_is_an_error_too(root, tmp_path):
    own = linked(root, tmp_path / "own", "forget05")
    put(own, "forget05", [])
    with pytest.raises(DataError, match=r"forget05: has no rows"):
        _ = CLEAR(root=str(own)).splits().forget


# Captions that are less tidy -------------------------------------------------------------------------------------------


def captions(root, tmp_path, edit, folder="forget01_perturbed"):
    """The forget captions after the perturbed folder was changed, by window, and the problems met."""
    own = linked(root, tmp_path / "own", folder)
    rows = folders()[folder]
    put(own, folder, edit(rows) or rows)
    bench = CLEAR(root=str(own), forget_ratio="01")
    tasks = {task.name: task for task in bench.tasks(("forget",))}
    return SimpleNamespace(examples=tasks["forget_image_caption"].examples, problems=bench.problems(), bench=bench)


def test_a_row_without_paraphrase_or_wrong_captions_is_counted(root, tmp_path):
    def edit(rows):
        rows[0]["paraphrased_caption"] = " "
        rows[1]["perturbed_captions"] = []
        rows[2]["perturbed_captions"] = None
        rows[3]["perturbed_captions"] = [rows[3]["caption"].upper(), rows[3]["paraphrased_caption"]]
        rows[4]["perturbed_captions"] += [rows[4]["perturbed_captions"][0]]

    found = captions(root, tmp_path, edit)
    assert [bool(each.perturbed) for each in found.examples[:6]] == [False] * 4 + [True] * 2
    assert [bool(each.paraphrase) for each in found.examples[:6]] == [False] * 4 + [True] * 2
    assert len(found.examples[4].perturbed) == 3
    assert found.problems == {
        "caption without a paraphrase or without wrong ones (forget01_perturbed)": 4,
        "wrong captions that repeat each other (forget01_perturbed)": 2,
    }
    official = {task.name: task for task in found.bench.tasks(("forget",), OFFICIAL)}
    assert len(official["forget_image_caption"].examples) == 35


def test_pictures_saved_anew_are_found_by_caption(root, tmp_path):
    def edit(rows):
        for row in rows:
            row["image"]["bytes"] += b"again"

    found = captions(root, tmp_path, edit)
    assert all(each.perturbed for each in found.examples)
    assert found.problems == {}


def test_one_caption_of_two_pictures_is_settled_by_the_picture(root, tmp_path):
    same = "They stand at a window."

    def edit(rows):
        for number in (0, 1):
            rows[number] |= {"caption": same, "paraphrased_caption": f"paraphrase {number}"}

    own = linked(root, tmp_path / "base", "forget01+tofu")
    rows = folders()["forget01+tofu"]
    for number in (0, 1):
        rows[number] |= {"caption": same}
    put(own, "forget01+tofu", rows)
    found = captions(own, tmp_path, edit)
    assert [each.paraphrase for each in found.examples[:2]] == ["paraphrase 0", "paraphrase 1"]


def test_captions_of_another_version_are_said_to_be_so(root, tmp_path):
    found = captions(root, tmp_path, lambda rows: [row | {"caption": f"{row['caption']} Yes."} for row in rows])
    assert not any(each.perturbed for each in found.examples)
    assert found.problems == {"no caption of forget01+tofu is there, so none has a truth ratio (forget01_perturbed)": 1}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"caption": ""}, "'caption' is missing or empty"),
        ({"perturbed_captions": ["fine", ""]}, "'perturbed_captions' is not a list of texts"),
        ({"image": None}, "the image is missing"),
    ],
)
def test_a_damaged_row_is_named(root, tmp_path, values, message):
    with pytest.raises(DataError, match=rf"forget01_perturbed/.*row 3.*{message}"):
        captions(root, tmp_path, lambda rows: rows[3].update(values))
