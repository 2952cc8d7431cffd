"""Holds the code budget: small files, small functions, all typed, all documented."""

import ast
import statistics
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("src/edgeml", "agent/edgeml_agent", "converters/edgeml_converters")
FILES = sorted(p for package in PACKAGES for p in (ROOT / package).rglob("*.py"))
ALL_FILES = FILES + sorted(
    p for folder in ("tests", "examples", "benchmarks") for p in (ROOT / folder).rglob("*.py")
)
MAX_FILE, MEDIAN_FILE, MAX_FUNCTION = 500, 150, 60
# A Protocol's method is documented by its Protocol; dunders by the language.
UNDOCUMENTED_OK = ("_",)


def functions(tree):
    return [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)]


def length(function):
    """Lines of a function without its docstring."""
    body = function.body
    total = function.end_lineno - function.lineno + 1
    if ast.get_docstring(function) is not None:
        doc = body[0]
        total -= doc.end_lineno - doc.lineno + 1
    return total


@pytest.mark.parametrize("path", ALL_FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_file_and_functions_are_small(path):
    text = path.read_text()
    assert len(text.splitlines()) <= MAX_FILE
    long = [
        f"{f.name} ({length(f)})" for f in functions(ast.parse(text)) if length(f) > MAX_FUNCTION
    ]
    assert not long, f"functions over {MAX_FUNCTION} lines: {long}"


def test_median_file_is_small():
    sizes = [len(p.read_text().splitlines()) for p in FILES]
    assert statistics.median(sizes) <= MEDIAN_FILE


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_everything_public_is_documented_and_everything_is_typed(path):
    tree = ast.parse(path.read_text())
    assert ast.get_docstring(tree), "the module has no docstring"
    nested = {inner for f in functions(tree) for inner in ast.walk(f) if inner is not f}
    for node in ast.walk(tree):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            continue
        public = not node.name.startswith(UNDOCUMENTED_OK) and node not in nested
        assert not public or ast.get_docstring(node), f"{node.name} has no docstring"
        if isinstance(node, ast.ClassDef):
            continue
        arguments = node.args.posonlyargs + node.args.args + node.args.kwonlyargs
        untyped = [
            a.arg for a in arguments if a.annotation is None and a.arg not in ("self", "cls")
        ]
        assert not untyped, f"{node.name}: no type for {untyped}"
        assert node.returns is not None, f"{node.name}: no return type"
