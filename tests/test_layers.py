"""The shape of the source: layers import earlier ones only, files and functions stay small. Read from the syntax trees."""

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

import mmunlearn

PACKAGE = Path(mmunlearn.__file__).parent
LAYERS = (
    ("errors",),
    ("config_enums",),
    ("config",),
    ("config_check",),
    ("run", "progress", "workers"),
    ("locks",),
    ("data",),
    ("metrics",),
    ("benchmarks",),
    ("models",),
    ("methods",),
    ("training",),
    ("saliency",),
    ("evaluation",),
    ("exporting",),
    ("attacks",),
    ("judge",),
    ("report",),
    ("sweep",),
    ("pipeline", "sequence_record"),
    ("inspect", "doctor", "catalog", "purge", "demo", "launch", "api", "sequence"),
    ("cli",),
    ("__init__",),
)
RANK = {name: rank for rank, names in enumerate(LAYERS) for name in names}
LAZY = {
    "training": "deepspeed",
    "models": ("torchao", "bitsandbytes"),
    "cli": "mmunlearn",
    "__init__": "mmunlearn",
    "config_check": "transformers",
}
"""Who may import inside functions, and what: a verb's modules when it is called, an extra, one name for a rare message."""
MAX_LINES, MAX_FUNCTION_LINES = 400, 60
FILES = sorted(PACKAGE.rglob("*.py"))
each_file = pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))


def layer_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def modules(node: ast.Import | ast.ImportFrom) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    module = node.module or ""
    return [f"{module}.{alias.name}" for alias in node.names] if module == "mmunlearn" else [module]


@cache
def tree_of(path: Path) -> ast.Module:
    """The syntax tree of a file."""
    return ast.parse(path.read_text())


def imports(tree: ast.Module) -> Iterator[tuple[str, int, bool]]:
    """Module, line and whether it is imported inside a function, of every import."""
    inside = {id(node) for function in functions(tree) for node in ast.walk(function)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            for module in modules(node):
                yield module, node.lineno, id(node) in inside


def functions(tree: ast.Module) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def wrong_imports(layer: str, tree: ast.Module) -> list[str]:
    wrong = []
    for module, line, inside in imports(tree):
        if inside and not module.startswith(LAZY.get(layer, "nothing")):
            wrong.append(f"line {line}: {module} is imported inside a function")
        if module.startswith("mmunlearn.") and not (inside and LAZY.get(layer) == "mmunlearn"):
            other = module.split(".")[1]
            if other != layer and RANK[other] >= RANK[layer]:
                wrong.append(f"line {line}: {layer} imports {other}, a later layer")
        if module.startswith("."):
            wrong.append(f"line {line}: relative import")
    return wrong


@each_file
def test_imports_point_to_earlier_layers(path):
    wrong = wrong_imports(layer_of(path), tree_of(path))
    assert not wrong, f"{wrong}. Move the shared part to the earlier layer, or pass the object in as an argument."


@each_file
def test_nothing_is_hidden_from_the_running_program(path):
    tree = tree_of(path)
    names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    attributes = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    assert "TYPE_CHECKING" not in names | attributes
    relative = [node.lineno for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.level]
    assert not relative, f"relative imports in lines {relative}"


@each_file
def test_files_and_functions_stay_small(path):
    text = path.read_text()
    lines = text.count("\n")
    assert lines <= MAX_LINES, f"{lines} lines; split the file by topic."
    long = [
        f"{function.name}: {length} lines"
        for function in functions(tree_of(path))
        if (length := function.end_lineno - function.lineno + 1) > MAX_FUNCTION_LINES
    ]
    assert not long


def test_every_module_has_a_layer():
    assert {layer_of(path) for path in FILES} <= RANK.keys()


def test_no_class_inherits_from_another_one_of_ours():
    """House rule 1: protocols and functions, no implementation inheritance; errors are the exception."""
    own = {node.name for path in FILES for node in ast.walk(tree_of(path)) if isinstance(node, ast.ClassDef)}
    heirs = [
        f"{path.name}: {node.name}({base.id})"
        for path in FILES
        if path.name != "errors.py"
        for node in ast.walk(tree_of(path))
        if isinstance(node, ast.ClassDef)
        for base in node.bases
        if isinstance(base, ast.Name) and base.id in own - {"Protocol"}  # typing's, and a setting of that name
    ]
    assert heirs == []


@pytest.mark.parametrize(
    ("layer", "source", "count"),
    [
        ("data", "from mmunlearn.models.load import load", 1),
        ("data", "def f():\n    from mmunlearn.models import load", 2),
        ("data", "import mmunlearn.training.loop", 1),
        ("data", "from mmunlearn import cli", 1),
        ("doctor", "from mmunlearn.launch import launch", 1),
        ("models", "def f():\n    import torch", 1),
        ("models", "from mmunlearn.models.tiny import build_tiny\nfrom mmunlearn.run import Run\nimport torch", 0),
        ("cli", "def f():\n    from mmunlearn.training.job import train", 0),
        ("config_check", "def f():\n    from transformers import TrainingArguments", 0),
        ("config_check", "def f():\n    from mmunlearn.run import Run", 2),
    ],
)
def test_the_check_itself(layer, source, count):
    assert len(wrong_imports(layer, ast.parse(source))) == count
