"""`mmunlearn export`: what is written is the model, opens anywhere, and can be evaluated as it is."""

import errno
import importlib.util
import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from unittest import mock

import pytest
import torch
import yaml
from command_cases import FEW_QUESTIONS, SIZE, TWO_STEPS, command_environment, contents, run_here
from masked_cases import random_mask, shaken
from safetensors.torch import load_file, save_file
from tiny_cases import LORA, tiny_family
from transformers import PreTrainedModel

from mmunlearn.config import Lora, ModelConfig
from mmunlearn.exporting import job
from mmunlearn.exporting.observe import Observed, difference, standing_questions
from mmunlearn.models.load import load, model_fingerprint, save
from mmunlearn.models.masked_lora import mask_adapter
from mmunlearn.models.tiny import build_tiny
from mmunlearn.models.tuning import apply_tuning

pytestmark = pytest.mark.thorough

needs_torchao = pytest.mark.skipif(importlib.util.find_spec("torchao") is None, reason="torchao is an extra")
needs_bitsandbytes = pytest.mark.skipif(importlib.util.find_spec("bitsandbytes") is None, reason="bitsandbytes is an extra")
QUICK = ("export.examples=4",)
TWO_QUESTIONS = ("evaluation.limit=2", "evaluation.splits=[forget]")

FRESH = """
import json, sys
import torch
from PIL import Image
torch.set_num_threads(1)
sys.modules["mmunlearn"] = None  # whoever imports it fails
from transformers import AutoModelForImageTextToText, AutoProcessor
import transformers
model, info = AutoModelForImageTextToText.from_pretrained(sys.argv[1], output_loading_info=True)
assert not any(info.values()), info
found = {"dtype": str(model.dtype), "sum": sum(p.double().sum().item() for p in model.parameters())}
if sys.argv[2] == "whole":
    processor = AutoProcessor.from_pretrained(sys.argv[1])
    turn = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Who is it?"}]}]
    text = processor.apply_chat_template(turn, add_generation_prompt=True)
    inputs = processor(text=text, images=[Image.new("RGB", (32, 32), "red")], return_tensors="pt")
else:  # a processor for images alone: its class is named, its video slot cannot be filled here
    from transformers import AutoTokenizer, AutoImageProcessor
    tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
    AutoImageProcessor.from_pretrained(sys.argv[1])
    text = tokenizer.apply_chat_template([{"role": "user", "content": "Who is it?"}], tokenize=False)
    inputs = tokenizer(text, return_tensors="pt")
with torch.no_grad():
    found["logits"] = model(**inputs).logits[0, -1, :8].float().tolist()
    found["reply"] = model.generate(**inputs, max_new_tokens=3, do_sample=False).shape[1] - inputs["input_ids"].shape[1]
print(json.dumps(found))
"""


def in_fresh_process(folder, kind="whole"):
    words = [sys.executable, "-c", FRESH, str(folder), kind]
    done = subprocess.run(words, capture_output=True, text=True, env=command_environment(), check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


def front_matter(folder):
    return yaml.safe_load(re.match(r"---\n(.*?)\n---\n", (folder / "README.md").read_text(), flags=re.DOTALL)[1])


def exported(source, folder, *words):
    done = run_here("export", f"model.path={source}", f"run.dir={folder}", *QUICK, *words)
    assert done.code == 0, done.err
    return folder, json.loads((folder / "export.json").read_text()), done


def evaluated(world, folder, *words):
    """An evaluation of a few questions."""
    done = run_here("evaluate", *world.data, "data.forget_ratio=15", f"run.dir={folder}", *TWO_QUESTIONS, *words)
    assert done.code == 0, done.err
    return folder


def rows_about(folder):
    """Whose evaluations the card shows: of each row the words in brackets."""
    return re.findall(r"^\| .*? \| `\w+` \((.*?)\) \|", (folder / "README.md").read_text(), flags=re.MULTILINE)


def save_adapter(base, root, *, masked=False):
    """An adapter that acts, in a folder like that of a training run."""
    opened = load(ModelConfig(path=str(base)))
    tuned = apply_tuning(opened.model, opened.family, LORA, Lora(r=2, dropout=0.0)).eval()
    if masked:
        mask_adapter(tuned, random_mask(tuned))
    shaken(tuned)
    save(tuned, opened.processor, root / "model", {"role": "unlearned", "method": "NPO", "seed": 3, "goal": "erase"})
    (root / "config.yaml").write_text("data: {forget_ratio: '15'}\n")
    (root / "subjects.json").write_text(json.dumps({"forgot": ["0a", "1b", "2c"], "learned": ["3d"]}))
    return root / "model"


@pytest.fixture(scope="module")
def adapter(world, tmp_path_factory):
    """Two such adapters; half of the weights of one are masked."""
    root = tmp_path_factory.mktemp("adapter")
    for name in ("plain", "masked"):
        save_adapter(world.model, root / name, masked=name == "masked")
    return root


@pytest.fixture(scope="module")
def plain_export(adapter, tmp_path_factory):
    return exported(adapter / "plain" / "model", tmp_path_factory.mktemp("out") / "model")


# --- the folder ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["plain", "masked"])
def test_a_merged_adapter_is_the_model_that_was_evaluated(name, adapter, tmp_path):
    folder, record, done = exported(adapter / name / "model", tmp_path / "out", "export.max_shard_size=100KB")
    assert not (folder / "adapter_config.json").exists()
    assert len(list(folder.glob("*.safetensors"))) > 1
    assert 0 < record["merging"]["relative"] < 1e-5
    assert record["merging"]["same_replies"] == record["storing"]["same_replies"] == 1
    assert record["merging"]["examples"] == 4
    merged, again = load(ModelConfig(path=str(adapter / name / "model"))), load(ModelConfig(path=str(folder)))
    assert model_fingerprint(again.model) == model_fingerprint(merged.model) == record["fingerprint"]
    assert again.processor.chat_template == merged.processor.chat_template
    assert "merging, in float32: largest difference" in done.err


@pytest.mark.slow
def test_a_fresh_process_without_this_package_opens_it(plain_export):
    folder, *_ = plain_export
    found = in_fresh_process(folder)
    opened = load(ModelConfig(path=str(folder)))
    assert found["sum"] == sum(p.double().sum().item() for p in opened.model.parameters())
    assert found["dtype"] == "torch.float32"
    assert 1 <= found["reply"] <= 3


@pytest.mark.slow
@pytest.mark.parametrize("family", ["qwen2_vl", "mllama", "gemma3"])
def test_other_families_open_in_a_fresh_process(family, tmp_path):
    model, processor = tiny_family(family)
    save(model, processor, tmp_path / "base", {})
    opened = load(ModelConfig(path=str(tmp_path / "base")))
    lora = replace(LORA, projector=replace(LORA.projector, mode="freeze"))
    tuned = shaken(apply_tuning(opened.model, opened.family, lora, Lora(r=2, dropout=0.0)).eval())
    save(tuned, opened.processor, tmp_path / "adapter", {"role": "unlearned"})
    folder, *_ = exported(tmp_path / "adapter", tmp_path / "out")
    found = in_fresh_process(folder, "whole" if family in ("mllama", "gemma3") else "image_only")
    merged = load(ModelConfig(path=str(tmp_path / "adapter")))
    assert found["sum"] == sum(p.double().sum().item() for p in merged.model.parameters())


def test_half_precision_is_merged_in_float32_and_its_cost_is_said(adapter, plain_export, tmp_path):
    source = adapter / "plain" / "model"
    folder, record, _ = exported(source, tmp_path / "out", "model.dtype=bfloat16")
    assert record["precision"] == "bfloat16"
    assert record["merging"] == plain_export[1]["merging"]
    assert record["storing"]["relative"] > 100 * record["merging"]["relative"]
    exact, half = (dict(load(ModelConfig(path=str(path))).model.named_parameters()) for path in (source, folder))
    assert exact.keys() == half.keys()
    assert all(torch.equal(half[name], expected.bfloat16()) for name, expected in exact.items())


def test_the_card_says_what_it_is_and_names_nobody(world, adapter, tmp_path):
    evaluation = evaluated(world, tmp_path / "evaluation", f"model.path={world.model}")
    (world.model / "README.md").write_text("---\nlicense: apache-2.0\n---\n# Base\n")
    words = (f"export.evaluations=[{evaluation}]", "run.label=clean")
    folder, record, _ = exported(adapter / "plain" / "model", tmp_path / "out", *words)
    (world.model / "README.md").unlink()
    text = (folder / "README.md").read_text()
    assert front_matter(folder) == {
        "license": "apache-2.0",
        "library_name": "transformers",
        "pipeline_tag": "image-text-to-text",
        "tags": ["machine-unlearning", "mmunlearn"],
    }
    for words in ("# clean", "Method: NPO", "Seed: 3", "Forget ratio: 15 %", "People unlearned: 3\n", record["fingerprint"]):
        assert words in text
    results = json.loads((evaluation / "results.json").read_text())
    rows = [line for line in text.splitlines() if line.startswith("| ") and "(another model)" in line]
    assert len(rows) == len(results["tasks"])
    for row, (task, metrics) in zip(rows, results["tasks"].items(), strict=True):
        name, found = next(iter(metrics.items()))
        assert f"| {task} | {name} | {found['value']:.3f} | {found['count']} |" in row
    private = {example.answer for example in world.benchmark().splits().full if len(example.answer) > 6}
    assert len(private) > 50
    assert not [answer for answer in private if answer in text]
    assert "\nmmunlearn export export.examples=4\n" in text.split("How it was made")[1]  # neither folders nor people
    assert str(tmp_path) not in text
    assert "torch " in text.split("How it was made")[1]
    assert json.loads((folder / "mmunlearn.json").read_text()) == {
        "role": "unlearned", "method": "NPO", "seed": 3, "goal": "erase", "label": "clean"
    }  # fmt: skip


def test_the_benchmark_s_own_questions_are_compared_where_it_is_named(world, adapter, plain_export, tmp_path):
    _, record, _ = exported(adapter / "plain" / "model", tmp_path / "out", "data=mllmu", *world.data, "data.forget_ratio=15")
    assert record["fingerprint"] == plain_export[1]["fingerprint"]
    assert record["merging"]["largest"] != plain_export[1]["merging"]["largest"]


def test_the_evaluation_of_what_it_was_made_from_is_known_whatever_its_base_is_stored_in(world, tmp_path):
    """A base in half precision is asked as it is stored or in float32; both are the source, and the base alone is not."""
    opened = load(ModelConfig(path=str(world.model), dtype="bfloat16"))
    save(opened.model, opened.processor, tmp_path / "base", {})
    source = save_adapter(tmp_path / "base", tmp_path / "run")
    asked = {
        "source": (f"model.path={source}",),
        "float32": (f"model.path={source}", "model.dtype=float32"),
        "other": (f"model.path={tmp_path / 'base'}", "run.role=vanilla"),
    }
    folders = {name: evaluated(world, tmp_path / name, *words) for name, words in asked.items()}
    prints = {
        name: json.loads((folder / "results.json").read_text())["model"]["fingerprint"] for name, folder in folders.items()
    }
    assert len(set(prints.values())) == 3
    listed = ",".join(map(str, folders.values()))
    folder, record, _ = exported(source, tmp_path / "out", f"export.evaluations=[{listed}]")
    assert record["source_fingerprint"] == prints["source"]
    tasks = len(json.loads((folders["source"] / "results.json").read_text())["tasks"])
    expected = [*2 * ["what this file was made from"], "another model"]
    assert rows_about(folder) == [whose for whose in expected for _ in range(tasks)]


# --- refusals --------------------------------------------------------------------------------------------------------


def test_a_merge_that_changes_the_model_is_refused_with_its_number(adapter, tmp_path):
    words = ("export.tolerance=1e-12", f"run.dir={tmp_path / 'out'}", *QUICK)
    done = run_here("export", f"model.path={adapter / 'plain' / 'model'}", *words)
    assert done.code == 2
    assert re.search(r"would move a logit by \S+, \S+ of the largest one and more than export.tolerance=1e-12", done.err)
    assert list(tmp_path.iterdir()) == []


def test_weights_that_do_not_come_back_from_the_disk_are_refused(adapter, tmp_path):
    def spoiled(self, folder, *args, **kwargs):
        own(self, folder, *args, **kwargs)
        file = folder / "model.safetensors"
        weights = load_file(file)
        name = next(name for name in weights if name.endswith("norm.weight"))
        weights[name] = weights[name] + 1e-3
        save_file(weights, file, metadata={"format": "pt"})

    own = PreTrainedModel.save_pretrained
    with mock.patch.object(PreTrainedModel, "save_pretrained", spoiled):
        done = run_here("export", f"model.path={adapter / 'plain' / 'model'}", f"run.dir={tmp_path / 'out'}", *QUICK)
    assert done.code == 2
    assert "opened again, are not those that were in memory" in done.err
    assert list(tmp_path.iterdir()) == []


def test_nothing_but_an_earlier_export_is_replaced(adapter, world, plain_export, tmp_path):
    source = adapter / "plain" / "model"
    for folder, words in ((plain_export[0], "holds an earlier export"), (world.people, "holds no earlier export")):
        before = contents(folder)
        done = run_here("export", f"model.path={source}", f"run.dir={folder}", *QUICK)
        assert (done.code, words in done.err) == (2, True), done.err
        assert contents(folder) == before
    for inside in (source, source.parent):
        done = run_here("export", f"model.path={source}", f"run.dir={inside}", "run.overwrite=true", *QUICK)
        assert (done.code, "would replace" in done.err) == (2, True), done.err
    out = tmp_path / "out"
    out.mkdir()  # an empty folder is no obstacle, and overwriting is none when it is asked for
    _, record, _ = exported(source, out)
    assert record["files"] == sorted(contents(out))
    exported(source, out, "run.overwrite=true", "run.label=second")
    assert "# second" in (out / "README.md").read_text()


@pytest.fixture
def overwritten(plain_export, adapter, tmp_path):
    """An export in a folder of its own, and what happens when it is made again."""
    folder = shutil.copytree(plain_export[0], tmp_path / "own")
    words = (f"model.path={adapter / 'plain' / 'model'}", f"run.dir={folder}", "run.overwrite=true", *QUICK)
    return folder, lambda: run_here("export", *words)


@pytest.mark.parametrize(
    ("files", "said"),
    [
        (["notes.txt"], "(notes.txt)"),
        (["eval/results.json", "a.txt", ".hidden"], "(.hidden, a.txt, eval/results.json)"),
        (["d", "c", "b", "a/e"], "(a/e, b, c and 1 more)"),
    ],
)
def test_files_of_the_user_s_are_not_overwritten(overwritten, files, said):
    folder, again = overwritten
    for name in files:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("mine")
    before = contents(folder)
    done = again()
    assert done.code == 2
    assert f"holds files that no export wrote {said}" in done.err
    assert "Choose another run.dir, or move them away" in done.err
    assert "largest difference" not in done.err  # before any work is done
    assert contents(folder) == before


def test_a_link_in_the_folder_is_a_file_too(overwritten, tmp_path):
    folder, again = overwritten
    (tmp_path / "elsewhere").mkdir()
    (folder / "link").symlink_to(tmp_path / "elsewhere")
    assert "(link)" in again().err
    assert (folder / "link").is_symlink()


@pytest.mark.parametrize("text", ['{"schema": 1}', "[]", "not JSON", '{"files": "README.md"}'])
def test_an_export_that_does_not_say_what_it_wrote_stays(overwritten, text):
    folder, again = overwritten
    (folder / "export.json").write_text(text)
    before = contents(folder)
    done = again()
    assert done.code == 2
    assert "does not list the files of the export" in done.err
    assert "Choose another run.dir, or delete the folder yourself" in done.err
    assert contents(folder) == before


def test_a_file_that_appears_while_an_export_is_made_stays(overwritten):
    folder, again = overwritten
    own = job.model_card

    def slow(facts):
        (folder / "late.txt").write_text("mine")
        return own(facts)

    before = contents(folder) | {"late.txt": b"mine"}
    with mock.patch.object(job, "model_card", slow):
        done = again()
    assert (done.code, "(late.txt)" in done.err) == (2, True), done.err
    assert contents(folder) == before


def test_a_full_disk_leaves_the_earlier_export(overwritten, tmp_path):
    folder, again = overwritten
    before = contents(folder)
    full = OSError(errno.ENOSPC, "No space left on device")
    with mock.patch("mmunlearn.exporting.job.write_text", side_effect=full):
        done = again()
    assert done.code == 2
    assert "no space left on the disk" in done.err
    assert contents(folder) == before
    assert [path.name for path in tmp_path.iterdir()] == ["own"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("export.precision=nf4",), "export.precision=nf4 is for training"),
        (("model.quantise=int8",), "set export.precision instead"),
        (("export.examples=0",), "needs at least one question"),
        (("export.evaluations=[nowhere]",), "nowhere holds no results"),
        (("model.path=",), "model.path is empty"),
    ],
)
def test_a_mistake_ends_in_one_message(words, message, world, tmp_path):
    done = run_here("export", f"model.path={world.model}", f"run.dir={tmp_path / 'out'}", "export.examples=1", *words)
    assert done.code == 2
    assert message in done.err
    assert not (tmp_path / "out").exists()


# --- rounded ---------------------------------------------------------------------------------------------------------


@needs_torchao
@pytest.mark.parametrize("precision", [pytest.param("int8", marks=pytest.mark.slow), "int4"])
def test_a_rounded_export_is_evaluated_as_such(precision, world, adapter, tmp_path):
    source = adapter / "masked" / "model"
    folder, record, _ = exported(source, tmp_path / "rounded", f"export.precision={precision}")
    assert record["precision"] == f"{precision} (linear layers; the rest float32)"
    assert record["storing"]["relative"] > 100 * record["merging"]["relative"]
    assert sum(file.stat().st_size for file in folder.glob("*.safetensors")) < 0.75 * 4 * sum(
        p.numel() for p in load(ModelConfig(path=str(world.model))).model.parameters()
    )
    answers = []
    for name, words in (
        ("file", (f"model.path={folder}",)),
        ("opened", (f"model.path={source}", f"model.quantise={precision}")),
    ):
        done = run_here("evaluate", *world.data, "data.forget_ratio=15", *words, f"run.dir={tmp_path / name}", *FEW_QUESTIONS)
        assert done.code == 0, done.err
        results = json.loads((tmp_path / name / "results.json").read_text())
        assert results["model"]["label"] == f"NPO, {precision}"
        assert results["model"]["fingerprint"] == record["fingerprint"]
        lines = [json.loads(line) for line in next((tmp_path / name / "predictions").glob("*.jsonl")).read_text().splitlines()]
        assert {line["settings"]["quantised"] for line in lines} == {precision}
        answers.append(results["tasks"])
    assert answers[0] == answers[1]
    done = run_here("report", f"report.evaluations=[{tmp_path / 'file'}]", f"run.dir={tmp_path / 'report'}")
    assert done.code == 0, done.err
    assert f"NPO, {precision}" in (tmp_path / "report" / "report.html").read_text()


def test_four_bits_are_not_sharded(world, tmp_path):
    words = (
        *world.settings,
        "trainer=grad_diff",
        "model.quantise=nf4",
        "trainer.args.fsdp=true",
        "trainer.args.deepspeed=null",
    )
    done = run_here("unlearn", *words, f"run.dir={tmp_path / 'run'}")
    assert (done.code, "weights in 4 bits are not sharded" in done.err) == (2, True), done.err


@pytest.fixture
def wide_world(world, tmp_path):
    """With a model whose rows are multiples of 64 long, which bitsandbytes reads rightly on every processor."""
    texts = [text for example in world.benchmark().splits().full for text in (example.question, example.answer)]
    wide = replace(world, model=tmp_path / "wide")
    save(*build_tiny(texts, seed=0, size=replace(SIZE, width=192, vision_width=64)), wide.model, {"role": "vanilla"})
    return wide


@needs_bitsandbytes
def test_unlearning_on_four_bits_from_the_command_line_to_the_exported_file(wide_world, tmp_path):
    world = wide_world
    words = (*world.settings, "trainer=grad_diff", "trainer.args.learning_rate=1e-2", *TWO_STEPS, "model.quantise=nf4")
    done = run_here("unlearn", *words, f"run.dir={tmp_path / 'run'}")
    assert done.code == 0, done.err
    source = tmp_path / "run" / "model"
    assert json.loads((source / "mmunlearn.json").read_text())["base_quantised"] == "nf4"
    done = run_here("evaluate", *world.data, f"model.path={source}", f"run.dir={tmp_path / 'evaluated'}", *FEW_QUESTIONS)
    assert done.code == 0, done.err
    assert json.loads((tmp_path / "evaluated" / "model.json").read_text())["label"] == "GradDiff, nf4"
    folder, record, _ = exported(source, tmp_path / "out")
    assert record["precision"] == "float32"
    assert record["merging"]["relative"] < 1e-4
    assert "base_quantised" not in json.loads((folder / "mmunlearn.json").read_text())
    assert not [name for name, _ in load(ModelConfig(path=str(folder))).model.named_parameters() if "lora" in name]


# --- the comparison --------------------------------------------------------------------------------------------------


def test_the_difference_is_the_largest_and_never_hides_what_is_not_finite():
    first = Observed(logits=torch.tensor([[1.0, -4.0], [0.5, 2.0]]), replies=("a", "b", "c", "d"))
    second = Observed(logits=torch.tensor([[1.5, -4.0], [0.5, 1.0]]), replies=("a", "x", "c", "d"))
    found = difference(first, second)
    assert (found.largest, found.relative, found.same_replies, found.examples) == (1.0, 0.25, 0.75, 4)
    for bad in (float("nan"), float("inf")):
        spoiled = Observed(logits=torch.tensor([[bad, -4.0], [0.5, 2.0]]), replies=first.replies)
        assert difference(first, spoiled).largest == float("inf")


def test_the_standing_questions_are_about_nobody_and_half_of_them_have_pictures_of_their_own():
    found = standing_questions(16)
    assert [example.image is not None for example in found] == [True, False] * 8
    assert len({example.image.key for example in found if example.image}) == 8
    assert len({example.image.open().tobytes() for example in found if example.image}) == 8
    assert {example.subject for example in found} == {""}
    assert found == standing_questions(16)[:16]
