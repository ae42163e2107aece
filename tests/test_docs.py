"""What README, ARCHITECTURE and CONTRIBUTING say exists: verbs, settings, presets, files, make targets, names in Python."""

import ast
import importlib
import inspect
import re
import shlex
import subprocess
from functools import cache
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir

import mmunlearn
from mmunlearn.cli import VERBS
from mmunlearn.config import configs_folder
from mmunlearn.config_check import checked

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "mmunlearn"
DOCUMENTS = ("README.md", "ARCHITECTURE.md", "CONTRIBUTING.md")
PAGES = ("docs/coming-from-mmunlearner.md", "docs/your-own-method.md", "docs/your-own-people.md")
"""Their commands are run by tests of their own."""
PLAIN_VERBS = {"doctor", "list"}
TOP = ("src/", "tests/", "configs/", "docs/", ".ci/")
OF_A_RUN = {"metrics.jsonl", "results.json", "config.yaml", "probe.json", "subjects.json"}
"""File names that a run writes, so that they are nowhere in the source tree."""
FILE_NAME = re.compile(r"[\w.-]+\.(?:py|yaml|jsonl|json|md|toml|lock)\b")
FILE_PATH = re.compile(rf"(?:[\w.-]+/)*{FILE_NAME.pattern}")
SETTING = re.compile(r"[a-z][a-z_]*(?:\.[a-z_]+)*=\S+")


# --- reading the documents -------------------------------------------------------------------------------------------


@cache
def text_of(document):
    return (ROOT / document).read_text(encoding="utf-8")


def blocks(document, language):
    """The code blocks of one language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", text_of(document), flags=re.MULTILINE | re.DOTALL)


def spans(document):
    """What stands between single backticks outside of code blocks."""
    prose = re.sub(r"^```.*?^```$", "", text_of(document), flags=re.MULTILINE | re.DOTALL)
    return re.findall(r"`([^`\n]+)`", prose)


def commands_of(document):
    """Every shell command, as its words: of bash blocks and of code spans."""
    lines = [line for block in blocks(document, "bash") for line in block.replace("\\\n", " ").splitlines()]
    found = []
    for line in [*lines, *spans(document)]:
        for part in re.split(r"&&|;", line):
            try:
                words = shlex.split(part, comments=True)
            except ValueError:  # a code span with a lone quotation mark is no command
                continue
            if words:
                found.append(words)
    return found


def our_commands():
    """`(document, verb, words behind it)` of each call of mmunlearn or train.py."""
    for document in DOCUMENTS:
        for words in commands_of(document):
            if words[0] == "mmunlearn" and len(words) > 1:
                yield document, words[1], words[2:]
            elif "train.py" in words and words[0] in ("python", "torchrun"):
                yield document, "train.py", words[words.index("train.py") + 1 :]


def named_settings():
    """Every `key=value` that stands alone in a code span."""
    return sorted({span for document in DOCUMENTS for span in spans(document) if SETTING.fullmatch(span)})


COMMANDS = sorted({(verb, *words) for _, verb, words in our_commands()})


def compose_checked(config_name, words):
    """Compose as the command line does and check everything; raises what a user would be told."""
    overrides = []
    for word in words:
        key = word.split("=")[0]
        is_preset = (configs_folder() / key).is_dir()
        overrides.append(word if is_preset else f"++{word}")
    with initialize_config_dir(str(configs_folder()), version_base="1.3"):
        return checked(compose(config_name, overrides=overrides))


# --- commands --------------------------------------------------------------------------------------------------------


def test_the_documents_are_really_read():
    assert len(COMMANDS) > 10
    assert len(named_settings()) > 10
    assert {verb for verb, *_ in COMMANDS} >= {"train.py", "finetune", "unlearn", "evaluate", "report", "demo"}


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_a_command_has_a_known_verb_and_settings(command):
    verb, *words = command
    if verb in PLAIN_VERBS:
        assert not words
        return
    config_name = "default" if verb == "train.py" else VERBS[verb][1]
    if words[:1] == ["--config-name"]:
        config_name, words = words[1], words[2:]
        assert (configs_folder() / f"{config_name}.yaml").is_file()
    complete = compose_checked(config_name, words)
    assert complete.run.dir


@pytest.mark.parametrize("setting", named_settings())
def test_a_setting_or_preset_is_accepted(setting):
    compose_checked("default", [setting])


def test_a_wrong_setting_or_preset_would_be_seen():
    for wrong in ("trainer=grad_dif", "trainer.args.learning_rat=1", "data.forget_ratio=[1]", "run.role=gould"):
        with pytest.raises(Exception, match=r"grad_dif|learning_rat|forget_ratio|role"):
            compose_checked("default", [wrong])


def test_every_verb_is_in_the_readme():
    said = " ".join([text_of("README.md"), text_of("CHANGELOG.md")])
    assert [verb for verb in {*VERBS, *PLAIN_VERBS} if f"`{verb}`" not in said and f"mmunlearn {verb}" not in said] == []


@pytest.mark.parametrize("target", ["demo", "test", "check"])
def test_make_knows_what_to_do(target):
    done = subprocess.run(["make", "-n", target], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_every_make_target_exists():
    named = {words[1] for document in DOCUMENTS for words in commands_of(document) if words[0] == "make" and len(words) > 1}
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    assert {"demo", "test", "check"} <= named
    assert named <= targets


# --- files -----------------------------------------------------------------------------------------------------------


def links():
    for document in (*DOCUMENTS, "CHANGELOG.md", "LOG.md"):
        for target in re.findall(r"\]\(([^)\s]+)\)", text_of(document)):
            if "://" not in target and not target.startswith("#"):
                yield target.split("#")[0]


@pytest.mark.parametrize("target", sorted(set(links())))
def test_a_link_leads_somewhere(target):
    assert (ROOT / target).exists()


def named_files():
    """Paths in code spans; other people's scripts and the files of a run are left out."""
    for document in (*DOCUMENTS, *PAGES):
        for span in spans(document):
            is_path = span.startswith(TOP) or FILE_PATH.fullmatch(span)
            if is_path and span not in OF_A_RUN and not span.startswith(("MLLMU_", "CLEAR_", "my_method", "people.jsonl")):
                yield span


@pytest.mark.parametrize("path", sorted(set(named_files())))
def test_a_named_file_exists(path):
    """From the root, from the package, or, for a bare file name, anywhere in the package."""
    anywhere = list(PACKAGE.rglob(path)) if "/" not in path else []
    assert (ROOT / path).exists() or (PACKAGE / path).exists() or anywhere


def tree():
    """`(folder, file name)` of each file in ARCHITECTURE's tree; a line without a folder goes on with the one before."""
    block = next(block for block in blocks("ARCHITECTURE.md", "") if "src/mmunlearn/" in block)
    folder = Path()
    in_package = False
    for line in block.splitlines():
        head = line.split()[0]
        if line.startswith("src/mmunlearn/"):
            in_package, folder = True, PACKAGE
        elif not line.startswith(" "):
            in_package, folder = False, ROOT / head if head.endswith("/") else ROOT
        elif in_package and line.startswith("  ") and not line.startswith("   "):
            folder = PACKAGE / head if head.endswith("/") else PACKAGE
        for name in FILE_NAME.findall(line):
            if name not in OF_A_RUN:
                yield folder, name


def test_every_file_of_the_tree_exists():
    missing = []
    for folder, name in tree():
        if not (folder / name).exists() and not any(ROOT.joinpath("configs").rglob(name)):
            missing.append(f"{folder.relative_to(ROOT)}/{name}")
    assert missing == []


def test_the_tree_names_every_module():
    named = {(folder / name) for folder, name in tree()}
    modules = {path for path in PACKAGE.rglob("*.py") if path.name != "__init__.py"}
    assert sorted(str(path.relative_to(PACKAGE)) for path in modules - named) == []


# --- Python ----------------------------------------------------------------------------------------------------------


def python_blocks():
    return [ast.parse(block) for document in DOCUMENTS for block in blocks(document, "python")]


def test_names_in_python_snippets_import():
    assert python_blocks()
    for node in (node for tree in python_blocks() for node in ast.walk(tree)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                importlib.import_module(alias.name)
        elif isinstance(node, ast.ImportFrom):
            module = importlib.import_module(node.module)
            assert [alias.name for alias in node.names if not hasattr(module, alias.name)] == []


def test_calls_in_python_snippets_have_the_right_keywords():
    """Every call of something imported, and of `mmunlearn.<name>`, binds to its signature."""
    bound = 0
    for tree in python_blocks():
        known = {}
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom):
                module = importlib.import_module(node.module)
                known |= {alias.asname or alias.name: getattr(module, alias.name) for alias in node.names}
        for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
            if isinstance(call.func, ast.Name):
                function = known.get(call.func.id)
            elif isinstance(call.func, ast.Attribute) and ast.unparse(call.func.value) == "mmunlearn":
                function = getattr(mmunlearn, call.func.attr)
            else:
                function = None
            if function is not None:
                inspect.signature(function).bind(*call.args, **{word.arg: word.value for word in call.keywords})
                bound += 1
    assert bound >= 5
