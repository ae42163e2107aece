"""Bad input ends in one message that names the file or key and the remedy, and an earlier run keeps every byte."""

import errno
import json
import shutil

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from command_cases import FEW_QUESTIONS, TWO_STEPS, contents, data_settings, run_command, run_here
from damage.damaging import write_good
from damage.make_damaged import CASES, damaged_folder

import mmunlearn.evaluation.asker as asker
import mmunlearn.saliency.gradients as gradients
import mmunlearn.training.checkpoint as checkpoint
import mmunlearn.training.loop as training_loop

FORGET, RETAIN = "baseline_train_split/forget_15", "baseline_train_split/retain_85"


def assert_refused(outcome, *names):
    """One message, without a traceback, that holds all the names."""
    assert outcome.code == 2, outcome.err
    assert "Traceback" not in outcome.out + outcome.err
    assert outcome.err.count("mmunlearn: ") == 1, outcome.err
    message = outcome.err[outcome.err.index("mmunlearn: ") :]
    assert not outcome.err.startswith("mmunlearn: ") or message == outcome.err
    for name in names:
        assert str(name) in message, message


@pytest.fixture
def earlier(full_run, tmp_path):
    """A finished run, the test's own."""
    folder = tmp_path / "earlier"
    shutil.copytree(full_run[0], folder)
    return folder


@pytest.fixture
def refused(earlier):
    """Start `unlearn` so that it would overwrite an earlier run, and see it refused without a byte being changed."""

    def check(*words, names):
        before = contents(earlier)
        assert_refused(run_here("unlearn", *words, f"run.dir={earlier}", "run.overwrite=true", *TWO_STEPS), *names)
        assert contents(earlier) == before

    return check


# --- data ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def people(world, tmp_path):
    """The people, the test's own."""
    return shutil.copytree(world.people, tmp_path / "people")


def only_file(folder):
    (path,) = folder.glob("*.parquet")
    return path


def edit_first_row(folder, **cells):
    """Put other values into the first row of a folder's file."""
    path = only_file(folder)
    table = pq.read_table(path)
    rows = table.to_pylist()
    rows[0] |= cells
    pq.write_table(pa.Table.from_pylist(rows, schema=table.schema), path)


def test_missing_data_folder(world, tmp_path, refused):
    nowhere = tmp_path / "nowhere"
    refused(f"data.root={nowhere}", f"model.path={world.model}", names=[nowhere, "data.root"])


def test_missing_split_folder(world, people, refused):
    shutil.rmtree(people / "MLLMU-Bench/forget_15")
    shutil.rmtree(people / FORGET)
    refused(*data_settings(people), f"model.path={world.model}", names=["forget_15", "data.forget_ratio", "data.train_root"])


def test_missing_column(world, people, refused):
    path = only_file(people / FORGET)
    pq.write_table(pq.read_table(path).drop_columns(["ID"]), path)
    refused(*data_settings(people), f"model.path={world.model}", names=[path, "'ID'", "data.train_root"])


def test_truncated_parquet(world, people, refused):
    path = only_file(people / RETAIN)
    path.write_bytes(path.read_bytes()[:-200])
    refused(*data_settings(people), f"model.path={world.model}", names=[path, "download it again"])


def test_bytes_that_are_no_picture(world, people, refused):
    edit_first_row(people / FORGET, image={"bytes": b"not a picture", "path": "x.png"})
    names = [only_file(people / FORGET), "row 0", "image", "remove the row"]
    refused(*data_settings(people), f"model.path={world.model}", names=names)


def test_picture_that_is_cut_off(world, people, refused):
    whole = pq.read_table(only_file(people / FORGET)).to_pylist()[0]["image"]
    edit_first_row(people / FORGET, image={**whole, "bytes": whole["bytes"][:200]})
    names = [only_file(people / FORGET), "row 0", "image", "remove the row"]
    refused(*data_settings(people), f"model.path={world.model}", names=names)


@pytest.mark.parametrize("text", ["[{not json", '{"Question": "Who?"}', '[{"Question": "Who?"}]'])
def test_metadata_that_are_no_list_of_questions_with_answers(world, people, refused, text):
    edit_first_row(people / FORGET, metadata=text)
    names = [only_file(people / FORGET), "row 0", "metadata"]
    refused(*data_settings(people), f"model.path={world.model}", names=names)


def test_person_to_be_forgotten_and_kept(world, people, refused):
    forget, retain = only_file(people / FORGET), only_file(people / RETAIN)
    row = pq.read_table(forget).slice(0, 1)
    pq.write_table(pa.concat_tables([pq.read_table(retain), row]), retain)
    person = row.to_pylist()[0]["ID"]
    refused(*data_settings(people), f"model.path={world.model}", names=["share", person, "Remove them"])


def test_questions_about_nobody(world, people, refused):
    path = only_file(people / FORGET)
    pq.write_table(pq.read_table(path).slice(0, 0), path)
    refused(*data_settings(people), f"model.path={world.model}", names=[people / FORGET, "no rows"])


def test_data_neither_here_nor_on_the_hub(world, tmp_path, monkeypatch, refused):
    monkeypatch.chdir(tmp_path)  # where there is no folder data/
    words = ("data.repository=nobody/none", "data.train_repository=nobody/nothing", f"model.path={world.model}")
    refused(*words, names=["nobody/no", "without network", "data.root=", "data.train_root="])


DAMAGED = {case.name: case for case in CASES}
TRAINING_REFUSES = (
    "mllmu: cut off train split",
    "mllmu: file that is a loop of links",
    "mllmu: ID null",
    "mllmu: image as a path",
    "mllmu: image: 10000x10000",
    "mllmu: half of a surrogate pair",
    "mllmu: text that is not UTF-8",
    "mllmu: metadata nested without end",
    "mllmu: train split of other people",
    "clear: cut off file",
    "clear: image path that leads nowhere",
    "clear: text that is not UTF-8",
    "table: Latin-1",
    "table: image: web page",
    "table: line that is not JSON",
)
EVALUATION_REFUSES = ("mllmu: tasks as JSON text", "mllmu: null in a list", "mllmu: Test_Set with one of two files")


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """The folders that the damaged ones are copies of."""
    root = tmp_path_factory.mktemp("good")
    write_good(root)
    return root


def settings_of(case, folder):
    """The settings that name a damaged folder."""
    if case.layout == "mllmu":
        return data_settings(folder)
    if case.layout == "clear":
        return ("data=clear", f"data.root={folder}", "data.forget_ratio=10")
    return ("data=table", f"data.root={folder}", f"data.table={next(folder.glob('people.*')).name}", "data.forget=[Ada]")


@pytest.mark.parametrize("name", TRAINING_REFUSES)
def test_damaged_data_for_training(name, world, good, tmp_path, refused):
    folder = damaged_folder(DAMAGED[name], good, tmp_path)
    refused(*settings_of(DAMAGED[name], folder), f"model.path={world.model}", names=DAMAGED[name].refused)


@pytest.mark.parametrize("name", EVALUATION_REFUSES)
def test_damaged_data_for_evaluation(name, world, good, tmp_path):
    folder = damaged_folder(DAMAGED[name], good, tmp_path)
    words = (*settings_of(DAMAGED[name], folder), f"model.path={world.model}", f"run.dir={tmp_path / 'run'}")
    assert_refused(run_here("evaluate", *words), *DAMAGED[name].refused)
    assert not (tmp_path / "run").exists()


def test_scripts_in_names_and_answers_are_shown_and_never_run(world, good, tmp_path):
    folder = damaged_folder(DAMAGED["mllmu: script in a name, in answers and options"], good, tmp_path)
    run, report = tmp_path / "run", tmp_path / "report"
    words = (*data_settings(folder), f"model.path={world.model}", f"run.dir={run}", *FEW_QUESTIONS, "evaluation.limit=0")
    assert run_here("evaluate", *words).code == 0
    outcome = run_here("report", f"report.evaluations=[{run}]", f"run.dir={report}", "report.show_subjects=true")
    assert outcome.code == 0, outcome.err
    page = next(report.glob("*.html")).read_text(encoding="utf-8")
    assert "<script>alert" not in page
    assert "<b>Co</b>" not in page
    assert "&lt;script&gt;alert" in page
    stored = "".join(path.read_text(encoding="utf-8") for path in (run / "predictions").glob("*.jsonl"))
    assert "<script>alert" in stored


# --- settings --------------------------------------------------------------------------------------------------------


def test_unknown_preset(world, refused):
    refused(*world.settings, "trainer=grad_assent", names=["trainer=grad_assent", "'grad_ascent'"])


def test_several_unknown_settings_are_named_at_once(world, refused):
    expected = {
        "trainer.args.lerning_rate=1e-4": ["trainer.args.lerning_rate", "'learning_rate'"],
        "modl.path=x": ["modl", "'model'"],
        "model.tune.vission.mode=lora": ["model.tune.vission", "'vision'"],
        "trainer.method.forget_wait=2": ["trainer.method.forget_wait", "'forget_weight'"],
        "trainer.args.fp16=true": ["trainer.args.fp16", "trainer.args.bf16"],
        "trainer.args.push_to_hub=true": ["trainer.args.push_to_hub", "not supported"],
        "data.forget_rato=5": ["data.forget_rato:", "'forget_ratio'"],
    }
    refused(*world.settings, *expected, names=[name for names in expected.values() for name in names])


def test_several_values_of_the_wrong_type_are_named_at_once(world, refused):
    words = ("trainer.args.max_grad_norm=big", "model.tune.vision.mode=Full", "run.seed=1.5", "trainer.args.save_steps=-1")
    names = ["trainer.args.max_grad_norm", "'big'", "float", "model.tune.vision.mode", "'full'", "run.seed"]
    refused(*world.settings, *words, names=names)


@pytest.mark.parametrize(
    ("words", "names"),
    [
        (["data.forget_ratio=many"], ["data.forget_ratio=many", "5, 10 or 15"]),
        (["data.modality=video"], ["data.modality", "'video'", "image, text, both"]),
        (["model.tune.language.mode=freeze"], ["model.tune", "every part is frozen"]),
        (["run.resume=true"], ["run.resume", "run.overwrite", "choose one"]),
        (["model=null"], ["model=None", "llava-1.5-7b-hf"]),
        (["~trainer"], ["trainer", "trainer=grad_ascent"]),
        (["~data"], ["data", "data=people"]),
        (["run.role=forgotten"], ["run.role", "'forgotten'", "vanilla"]),
        (["trainer.method._target_=os.system"], ["trainer.method._target_", "os.system", "dataclass"]),
        (["evaluation.limit=3"], ["evaluation.limit=3", "does not use"]),
        (["--config-name", "defalt"], ["--config-name defalt", "'default'"]),
        (["run.dir"], ["run.dir", "key=value"]),
        (["run.device=gpu"], ["run.device", "'gpu'", "cuda"]),
        (["run.device=cuda"], ["run.device", "cuda", "no GPU", "run.device=cpu", "mmunlearn doctor"]),
    ],
    ids=lambda value: value[0] if isinstance(value[0], str) else None,
)
def test_setting_that_cannot_be(world, earlier, words, names):
    before = contents(earlier)
    deleted = words[0].lstrip("~") if words[0].startswith("~") else "nothing"
    settings = [word for word in (*world.settings, f"run.dir={earlier}", "run.overwrite=true") if not word.startswith(deleted)]
    assert_refused(run_here("unlearn", *settings, *words), *names)
    assert contents(earlier) == before


def test_unknown_group_of_people(world, tmp_path):
    words = (*world.settings, f"run.dir={tmp_path / 'run'}", "evaluation.splits=[forget,retian]")
    assert_refused(run_here("evaluate", *words), "evaluation.splits", "'retian'", "'retain'")
    assert not (tmp_path / "run").exists()


@pytest.mark.thorough
def test_demo_about_other_data():
    assert_refused(run_here("demo", "data=unlearn"), "data=people")


@pytest.mark.parametrize(
    ("verb", "near"), [("unlern", "'unlearn'"), ("-m", "mmunlearn unlearn -m"), ("frobnicate", "finetune")]
)
def test_unknown_verb(verb, near):
    assert_refused(run_here(verb), verb, near)


# --- models ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def model(world, tmp_path):
    """The model, the test's own."""
    return shutil.copytree(world.model, tmp_path / "model")


def keep_only(folder, *names):
    for path in folder.iterdir():
        if path.name not in names:
            path.unlink()


WEIGHTS = ("config.json", "generation_config.json", "model.safetensors")


@pytest.mark.slow
@pytest.mark.thorough
def test_no_model_and_no_hub(world, tmp_path):
    """Through the real command line, with an empty cache, for the machine of whoever runs the tests may have the model."""
    words = ("unlearn", *world.data, "run.dir=run")
    outcome = run_command(*words, cwd=tmp_path, HF_HOME=str(tmp_path / "cache"))
    assert_refused(outcome, "llava-hf/llava-1.5-7b-hf", "To run offline", "model.path=/folder/of/the/model", "mmunlearn demo")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("setting", ["model.path", "model.processor"])
def test_missing_folder_of_model_or_processor(world, tmp_path, refused, setting):
    refused(*world.settings, f"{setting}={tmp_path / 'nowhere'}", names=[setting, tmp_path / "nowhere", "does not exist"])


@pytest.mark.parametrize("left", [WEIGHTS, (*WEIGHTS, "tokenizer.json", "tokenizer_config.json", "chat_template.jinja")])
def test_model_without_processor(world, model, left, refused):
    keep_only(model, *left)
    refused(*world.data, f"model.path={model}", names=[model, "processor", "model.processor"])


def test_model_without_processor_takes_another_one(world, model, tmp_path):
    keep_only(model, *WEIGHTS)
    words = (*world.data, f"model.path={model}", f"model.processor={world.model}", f"run.dir={tmp_path / 'run'}")
    outcome = run_here("unlearn", *words, *TWO_STEPS)
    assert outcome.code == 0, outcome.err
    assert (tmp_path / "run/model/chat_template.jinja").is_file()


def test_model_that_is_cut_off(world, model, refused):
    weights = model / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    refused(*world.data, f"model.path={model}", names=[model, "no model can be read"])


def test_model_of_an_unknown_kind(world, model, refused):
    (model / "config.json").write_text('{"model_type": "bert"}')
    refused(*world.data, f"model.path={model}", names=[model])


def test_sequence_longer_than_the_model_allows(world, model, refused):
    settings = json.loads((model / "config.json").read_text())
    settings["text_config"]["max_position_embeddings"] = 20
    (model / "config.json").write_text(json.dumps(settings))
    refused(*world.data, f"model.path={model}", names=["mllmu/forget_15/", "tokens, but the model allows 20", "shorten"])


# --- folders ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def interrupted(world, tmp_path_factory):
    """A run whose second checkpoint found no space on the disk; its folder and what it printed; not to be changed."""
    folder = tmp_path_factory.mktemp("full_disk") / "interrupted"
    calls = []

    def save_file(tensors, path):
        calls.append(path)
        if len(calls) > 2:  # a checkpoint has two files
            path.write_bytes(b"half")
            raise OSError(errno.ENOSPC, "No space left on device")
        real(tensors, path)

    real = checkpoint.save_file
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint, "save_file", save_file)
        return folder, run_here("unlearn", *world.settings, f"run.dir={folder}", *THREE_STEPS)


THREE_STEPS = ("trainer.args.max_steps=3", "trainer.args.save_steps=1", "trainer.args.logging_steps=1")


@pytest.mark.thorough
def test_disk_full_while_saving_a_checkpoint(interrupted, world, tmp_path):
    full, outcome = interrupted
    assert_refused(outcome, full / "checkpoints/step-2", "no space left", "Free some space", "run.resume=true")
    folder = shutil.copytree(full, tmp_path / "interrupted")
    assert [path.name for path in (folder / "checkpoints").iterdir()] == ["step-1"]
    assert not (folder / "DONE").exists()

    words = (*world.settings, *THREE_STEPS)
    assert run_here("unlearn", *words, f"run.dir={folder}", "run.resume=true").code == 0
    assert run_here("unlearn", *words, f"run.dir={tmp_path / 'whole'}").code == 0
    for name in ("model/adapter_model.safetensors", "model/mmunlearn.json"):
        assert (folder / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_folder_of_an_interrupted_run(interrupted, world):
    folder = interrupted[0]
    before = contents(folder)
    outcome = run_here("unlearn", *world.settings, f"run.dir={folder}", *THREE_STEPS)
    assert_refused(outcome, folder, "interrupted", "run.resume=true", "run.overwrite=true")
    other = run_here("unlearn", *world.settings, f"run.dir={folder}", *THREE_STEPS, "run.resume=true", "run.seed=1")
    assert_refused(other, folder, "other settings", "config.yaml", "run.overwrite=true")
    assert contents(folder) == before


@pytest.mark.parametrize("resume", ["true", "false"])
def test_folder_of_a_finished_run(earlier, world, resume):
    before = contents(earlier)
    outcome = run_here("unlearn", *world.settings, f"run.dir={earlier}", f"run.resume={resume}")
    assert_refused(outcome, earlier, "finished", "another run.dir", "run.overwrite=true")
    assert contents(earlier) == before


@pytest.mark.parametrize("verb", ["unlearn", "evaluate"])
def test_overwriting_never_deletes_what_no_run_wrote(verb, world, tmp_path):
    folder = tmp_path / "home"
    (folder / "model").mkdir(parents=True)
    (folder / "thesis.tex").write_text("years of work")
    (folder / "config.yaml").write_text("of another program")
    before = contents(folder)
    if verb == "evaluate":
        (folder / "model").rmdir()
    outcome = run_here(verb, *world.settings, f"run.dir={folder}", "run.overwrite=true")
    assert_refused(outcome, folder, "thesis.tex", "another run.dir")
    assert contents(folder) == before


def test_overwriting_never_deletes_the_model_that_is_asked_for(earlier, world):
    before = contents(earlier)
    words = (*world.data, f"model.path={earlier / 'model'}", f"run.dir={earlier}", "run.overwrite=true")
    assert_refused(run_here("unlearn", *words), "model.path", earlier, "another run.dir")
    assert contents(earlier) == before


@pytest.mark.parametrize("verb", ["unlearn", "evaluate", "inspect"])
@pytest.mark.parametrize("below", ["", "/run"])
def test_folder_that_is_a_file(verb, below, world, tmp_path):
    (tmp_path / "file").write_text("a file")
    words = (*world.settings, f"run.dir={tmp_path / 'file'}{below}")
    assert_refused(run_here(verb, *words), tmp_path / "file", "another run.dir")
    assert (tmp_path / "file").read_text() == "a file"


def test_evaluation_into_a_training_folder(earlier, world):
    before = contents(earlier)
    outcome = run_here("evaluate", *world.settings, f"run.dir={earlier}")
    assert_refused(outcome, earlier, "training run", "run.dir")
    assert contents(earlier) == before


def test_score_without_predictions(earlier, tmp_path):
    before = contents(earlier)
    for folder in (tmp_path / "nowhere", earlier):
        assert_refused(run_here("score", f"run.dir={folder}"), folder, "no predictions", "mmunlearn predict")
    assert_refused(run_here("score"), "run.dir")
    assert not (tmp_path / "nowhere").exists()
    assert contents(earlier) == before


def test_score_with_an_answer_missing(evaluation, tmp_path):
    folder = shutil.copytree(evaluation[0], tmp_path / "run")
    answers = folder / "predictions/retain_text_cloze.jsonl"
    answers.write_bytes(b"\n".join(answers.read_bytes().splitlines()[1:]) + b"\n")
    results = (folder / "results.json").read_bytes()
    assert_refused(run_here("score", f"run.dir={folder}"), answers, "1 of 4 questions have no answer", "mmunlearn predict")
    assert (folder / "results.json").read_bytes() == results


def test_report_about_nothing(earlier, evaluation, tmp_path):
    before = contents(earlier)
    assert_refused(run_here("report", f"run.dir={tmp_path / 'report'}"), "report.evaluations")
    outcome = run_here("report", f"report.evaluations=[{earlier}]", f"run.dir={tmp_path / 'report'}")
    assert_refused(outcome, earlier, "mmunlearn score")
    words = (f"report.evaluations=[{evaluation[0]}]", f"run.dir={evaluation[0]}")
    results = contents(evaluation[0])
    assert_refused(run_here("report", *words), evaluation[0], "a folder of its own")
    assert not (tmp_path / "report").exists()
    assert contents(earlier) == before
    assert contents(evaluation[0]) == results


# --- numbers ---------------------------------------------------------------------------------------------------------

FULL = ("model.tune.language.mode=full", "model.dtype=float32")
EXPLOSIVE = ("trainer.args.learning_rate=1e30", "trainer.args.max_grad_norm=0", *FULL)


def test_weights_that_explode(world, tmp_path):
    folder = tmp_path / "run"
    words = (*EXPLOSIVE, "trainer.args.max_steps=5", f"run.dir={folder}")
    assert_refused(run_here("unlearn", *world.settings, *words), "nan", "step 1", "trainer.args.learning_rate")
    assert not (folder / "model").exists()
    assert not (folder / "DONE").exists()


def test_loss_that_is_no_number_names_term_and_examples(world, tmp_path):
    """With a record every hundred steps the second step is the first to notice."""
    folder = tmp_path / "run"
    words = (*EXPLOSIVE, "trainer.args.max_steps=5", "trainer.args.save_steps=1", "trainer.args.logging_steps=100")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mmunlearn.training.watching.watched_loss", lambda model, batches: 1.0)
        outcome = run_here("unlearn", *world.settings, *words, f"run.dir={folder}")
    assert_refused(outcome, "Term 'forget' became nan", "mllmu/forget_15/", "trainer.args.learning_rate")
    assert [path.name for path in (folder / "checkpoints").iterdir()] == ["step-1"]
    assert not (folder / "DONE").exists()


def test_evaluating_another_model_into_the_same_folder(world, tmp_path, evaluation):
    """The answers that are there may have taken hours."""
    folder = shutil.copytree(evaluation[0], tmp_path / "evaluation")
    before = contents(folder)
    words = (*world.data, f"model.path={world.model}", f"run.dir={folder}", "evaluation.splits=[holdout]")
    assert_refused(run_here("evaluate", *words), str(folder), "another model", "run.overwrite=true")
    assert contents(folder) == before


# --- memory ----------------------------------------------------------------------------------------------------------

GPU_IS_FULL = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has a total capacity of 79 GiB.")


def test_full_memory_is_told_with_the_settings_that_need_less(world, tmp_path, monkeypatch):
    """As a GPU says it, in the middle of each verb that uses one."""

    def full(*args, **kwargs):
        raise GPU_IS_FULL

    monkeypatch.setattr(training_loop, "accumulate", full)
    outcome = run_here("unlearn", *world.settings, *TWO_STEPS, f"run.dir={tmp_path / 'unlearn'}")
    assert_refused(outcome, "memory of the GPU is full", "2.50 GiB", "gradient_checkpointing=selective", "accumulation_steps")
    monkeypatch.setattr(asker, "answer_together", full)
    outcome = run_here("evaluate", *world.settings, *FEW_QUESTIONS, f"run.dir={tmp_path / 'evaluate'}")
    assert_refused(outcome, "memory of the GPU is full", "evaluation.batch_size")
    monkeypatch.setattr(gradients, "answer_log_probs", full)
    outcome = run_here("saliency", *world.settings, "saliency.limit=4", f"run.dir={tmp_path / 'saliency'}")
    assert_refused(outcome, "memory of the GPU is full", "saliency.max_bytes")
