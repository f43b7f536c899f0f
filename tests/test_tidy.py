"""The style rules that a linter does not know, checked by walking the repository. Each rule is also run on samples
that break it, so that no rule can pass by looking at nothing."""

from __future__ import annotations

import ast
import functools
import os
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pytest

ROOT: Final = Path(__file__).resolve().parents[1]
MAX_FILE_LINES: Final = 500
MAX_FUNCTION_LINES: Final = 60
SOURCE: Final = ("sawyer/", "projections/", "schemas/")
MONEY: Final = ("sawyer/economy/", "sawyer/money.py", "projections/", "sawyer/ledger/", "schemas/events.py")
FLOAT_CALLS: Final = frozenset({"total_seconds", "timestamp", "perf_counter", "monotonic", "truediv", "fsum"})
FLOAT_MODULES: Final = frozenset({"decimal", "fractions", "statistics", "cmath", "numbers"})
VAGUE_NAMES: Final = frozenset({"util", "utils", "common", "helper", "helpers", "manager", "managers", "misc"})
UNFINISHED: Final = re.compile(r"\b(TO" r"DO|FIX" r"ME|XX" r"X|HA" r"CK)\b")
SKIPS: Final = frozenset({"skip", "skipif", "xfail", "importorskip", "skipTest", "skipIf", "skipUnless"})
TEXT_SUFFIXES: Final = frozenset({".py", ".md", ".toml", ".yaml", ".yml", ".sh", ".conf", ".service", ""})
NOT_OURS: Final = frozenset({"build", "dist", "node_modules", "__pycache__"})

Function = ast.FunctionDef | ast.AsyncFunctionDef
Finding = tuple[int, str]


@dataclass(frozen=True)
class Sample:
    """A file as a rule sees it: its path from the root of the repository, and its text."""

    path: str
    text: str

    def tree(self) -> ast.Module:
        return ast.parse(self.text, self.path)

    def is_in(self, places: Iterable[str]) -> bool:
        return self.path.startswith(tuple(places))


# --- the rules: a file in, (line, what is wrong) out ------------------------------------------------------------------


def file_is_short(file: Sample) -> Iterator[Finding]:
    lines = file.text.count("\n")
    if file.path.endswith(".py") and lines > MAX_FILE_LINES:
        yield MAX_FILE_LINES + 1, f"{lines} lines, at most {MAX_FILE_LINES}: split it by what it owns"


def function_is_short(file: Sample) -> Iterator[Finding]:
    for function in _functions(file):
        lines = (function.end_lineno or 0) - function.lineno + 1
        if lines > MAX_FUNCTION_LINES:
            yield function.lineno, f"{function.name} has {lines} lines, at most {MAX_FUNCTION_LINES}"


def module_is_named_after_what_it_owns(file: Sample) -> Iterator[Finding]:
    for word in sorted(VAGUE_NAMES.intersection(re.split(r"[/._-]", file.path))):
        yield 1, f"{word!r} says nothing about what a module owns"


def module_has_a_docstring(file: Sample) -> Iterator[Finding]:
    if file.path.endswith(".py") and not ast.get_docstring(file.tree()):
        yield 1, "no module docstring: say what it owns and what not"


def money_is_integer(file: Sample) -> Iterator[Finding]:
    """No float can arise where money and tokens are counted. `folder / "name"` is a path, not a quotient."""
    if not file.path.endswith(".py") or not file.is_in(MONEY):
        return
    for node in ast.walk(file.tree()):
        if isinstance(node, ast.Constant) and isinstance(node.value, float | complex):
            yield node.lineno, f"float literal {node.value!r}"
        elif isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div) and not _joins_a_path(node):
            yield node.lineno, "true division: use // or ceil_div (or joinpath, if this is a path)"
        elif isinstance(node, ast.AugAssign) and isinstance(node.op, ast.Div):
            yield node.lineno, "true division: use //"
        elif isinstance(node, ast.Name) and node.id in ("float", "complex", "round"):
            yield node.lineno, f"{node.id} in money code"
        elif isinstance(node, ast.BinOp) and isinstance(node.op, ast.Pow) and isinstance(node.right, ast.UnaryOp):
            yield node.lineno, "a negative power is a fraction"
        elif isinstance(node, ast.Attribute) and node.attr in FLOAT_CALLS:
            yield node.lineno, f"{node.attr} gives a float"
        elif isinstance(node, ast.Import | ast.ImportFrom) and FLOAT_MODULES.intersection(_imported(node)):
            yield node.lineno, "imports numbers that are not integers"


def test_runs_whole_or_fails(file: Sample) -> Iterator[Finding]:
    if not file.is_in(("tests/",)) or not file.path.endswith(".py"):
        return
    for node in ast.walk(file.tree()):
        if isinstance(node, ast.Attribute) and node.attr in SKIPS:
            yield node.lineno, f"{node.attr}: a test that does not run proves nothing"
        elif isinstance(node, ast.ImportFrom) and SKIPS.intersection(alias.name for alias in node.names):
            yield node.lineno, "imports a skip"


def test_does_not_sleep(file: Sample) -> Iterator[Finding]:
    """Wait for the thing itself. `asyncio.sleep(0)` only lets others run, and is fine."""
    if not file.is_in(("tests/",)) or not file.path.endswith(".py"):
        return
    for node in ast.walk(file.tree()):
        called = isinstance(node, ast.Attribute) and ast.unparse(node) == "time.sleep"
        if called or (isinstance(node, ast.ImportFrom) and node.module == "time" and node.names[0].name == "sleep"):
            yield node.lineno, "time.sleep: wait for the thing itself"


def nothing_is_left_for_later(file: Sample) -> Iterator[Finding]:
    for number, line in enumerate(file.text.splitlines(), start=1):
        if found := UNFINISHED.search(line):
            yield number, f"{found.group()}: finish it, or write an issue"


def nothing_is_a_stub(file: Sample) -> Iterator[Finding]:
    if not file.path.endswith(".py") or not file.is_in(SOURCE):
        return
    for node in ast.walk(file.tree()):
        if isinstance(node, ast.Name) and node.id == "NotImplementedError":
            yield node.lineno, "NotImplementedError: nothing ships half made"


def public_names_are_documented(file: Sample) -> Iterator[Finding]:
    """Every public class and function of the product. Exempt are: bodies of at most two plain statements (they say
    what they do), classes of nothing but fields, what is drawn in the module's own docstring, and methods that a
    Protocol of the product documents."""
    if not file.path.endswith(".py") or not file.is_in(SOURCE):
        return
    tree = file.tree()
    named = set(re.findall(r"\w+", ast.get_docstring(tree) or ""))
    for node, owner in _public(tree.body):
        declared = owner is not None and node.name in _declared_methods()
        if not (ast.get_docstring(node) or node.name in named or declared or _says_what_it_does(node)):
            yield node.lineno, f"{node.name} has no docstring"


def _functions(file: Sample) -> Iterator[Function]:
    if file.path.endswith(".py"):
        yield from (node for node in ast.walk(file.tree()) if isinstance(node, Function))


def _imported(node: ast.Import | ast.ImportFrom) -> set[str]:
    return {node.module or ""} if isinstance(node, ast.ImportFrom) else {alias.name for alias in node.names}


def _joins_a_path(node: ast.BinOp) -> bool:
    def is_text(side: ast.expr) -> bool:
        return isinstance(side, ast.JoinedStr) or (isinstance(side, ast.Constant) and isinstance(side.value, str))

    return is_text(node.left) or is_text(node.right)


def _public(
    body: list[ast.stmt], owner: ast.ClassDef | None = None
) -> Iterator[tuple[Function | ast.ClassDef, ast.ClassDef | None]]:
    """Public functions and classes of a module, and the public methods of those classes with their class."""
    for node in body:
        if isinstance(node, Function | ast.ClassDef) and not node.name.startswith("_"):
            yield node, owner
            if isinstance(node, ast.ClassDef):
                yield from _public(node.body, node)


@functools.cache
def _declared_methods() -> frozenset[str]:
    """Names of the methods that some Protocol of the product declares with a docstring."""
    trees = [ast.parse(path.read_text(encoding="utf-8")) for path in _files() if path.suffix == ".py"]
    return frozenset(
        part.name
        for tree in trees
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef) and any(ast.unparse(base).startswith("Protocol") for base in node.bases)
        for part in node.body
        if isinstance(part, Function) and ast.get_docstring(part)
    )


def _says_what_it_does(node: Function | ast.ClassDef) -> bool:
    if isinstance(node, ast.ClassDef):
        return all(isinstance(part, ast.AnnAssign | ast.Assign | ast.Pass) for part in node.body)
    plain = ast.Return | ast.Expr | ast.Assign | ast.AnnAssign | ast.AugAssign | ast.Assert | ast.Raise | ast.Pass
    return len(node.body) <= 2 and all(isinstance(part, plain) for part in node.body)


# --- each rule and a sample that breaks it ----------------------------------------------------------------------------

Rule = Callable[[Sample], Iterator[Finding]]
LONG_FUNCTION: Final = "def f():\n" + "    x = 1\n" * MAX_FUNCTION_LINES
BROKEN: Final[list[tuple[Rule, str, str, int]]] = [
    (file_is_short, "sawyer/a.py", "x = 1\n" * 501, 501),
    (function_is_short, "tests/a.py", "x = 1\n" + LONG_FUNCTION, 2),
    (function_is_short, "sawyer/a.py", "class A:\n    async " + LONG_FUNCTION.replace("\n", "\n    ") + "pass", 2),
    (module_is_named_after_what_it_owns, "sawyer/node/utils.py", "", 1),
    (module_is_named_after_what_it_owns, "tests/common/test_a.py", "", 1),
    (module_is_named_after_what_it_owns, "scripts/test_helpers.py", "", 1),
    (module_has_a_docstring, "sawyer/a.py", "x = 1\n", 1),
    (module_has_a_docstring, "sawyer/a/__init__.py", "", 1),
    (money_is_integer, "sawyer/money.py", "\nx = 0.5\n", 2),
    (money_is_integer, "sawyer/economy/a.py", "x = a / b\n", 1),
    (money_is_integer, "sawyer/ledger/a.py", "x /= 2\n", 1),
    (money_is_integer, "projections/a.py", "def f(a: float): ...\n", 1),
    (money_is_integer, "schemas/events.py", "x = round(y)\n", 1),
    (money_is_integer, "sawyer/economy/a.py", "x = 2j\n", 1),
    (money_is_integer, "sawyer/economy/a.py", "x = 10 ** -3\n", 1),
    (money_is_integer, "sawyer/ledger/a.py", "\nx = at.timestamp()\n", 2),
    (money_is_integer, "projections/a.py", "from fractions import Fraction\n", 1),
    (money_is_integer, "projections/a.py", "import decimal\n", 1),
    (test_runs_whole_or_fails, "tests/a.py", "import pytest\npytest.skip('no')\n", 2),
    (test_runs_whole_or_fails, "tests/a.py", "@pytest.mark.xfail\ndef test_a(): ...\n", 1),
    (test_runs_whole_or_fails, "tests/a.py", "from pytest import importorskip\n", 1),
    (test_does_not_sleep, "tests/a.py", "import time\ntime.sleep(1)\n", 2),
    (test_does_not_sleep, "tests/a.py", "from time import sleep\n", 1),
    (nothing_is_left_for_later, "docs/a.md", "Fine.\nTO" "DO: more\n", 2),
    (nothing_is_left_for_later, "sawyer/a.py", "x = 1  # FIX" "ME\n", 1),
    (nothing_is_a_stub, "sawyer/a.py", "def f():\n    raise NotImplementedError\n", 2),
    (public_names_are_documented, "sawyer/a.py", "def f():\n    if x:\n        return 1\n    return 2\n", 1),
    (public_names_are_documented, "schemas/a.py", "class A:\n    'A.'\n    def f(self):\n        for x in y: z\n", 3),
    (public_names_are_documented, "sawyer/a.py", "def now_ms(clock):\n    for x in y: z\n", 1),
    (public_names_are_documented, "sawyer/a.py", "class A:\n    def _f(self): ...\n", 1),
]  # fmt: skip
KEPT: Final[list[tuple[Rule, str, str]]] = [
    (file_is_short, "sawyer/a.py", "x = 1\n" * 500),
    (function_is_short, "sawyer/a.py", LONG_FUNCTION.replace("    x = 1\n", "", 1)),
    (module_is_named_after_what_it_owns, "sawyer/commons.py", ""),
    (module_has_a_docstring, "sawyer/a.py", '"""Owns a."""\n'),
    (money_is_integer, "sawyer/ledger/a.py", "x = home / 'book.sqlite'\ny = home / f'{x}.json'\nz = a // b\n"),
    (money_is_integer, "sawyer/router/a.py", "x = 0.5\n"),
    (money_is_integer, "sawyer/money.py", "x = -(-a // 10**6)\n"),
    (test_runs_whole_or_fails, "tests/a.py", "import pytest\npytest.raises(ValueError)\n"),
    (test_does_not_sleep, "tests/a.py", "await asyncio.sleep(0)\n"),
    (nothing_is_left_for_later, "docs/a.md", "A todo list that hackers like.\n"),
    (nothing_is_a_stub, "tests/a.py", "raise NotImplementedError\n"),
    (public_names_are_documented, "sawyer/a.py", "'''A: one.'''\nclass A(Exception):\n    def f(self): return 1\n"),
    (public_names_are_documented, "sawyer/a.py", "class A(Strict):\n    x: int\n    y: int = 1\n"),
    (public_names_are_documented, "sawyer/a.py", "class A:\n 'A.'\n def now_ms(self):\n  for x in y: z\n"),
    (public_names_are_documented, "tests/a.py", "def test_a():\n    if x:\n        y\n"),
]
RULES: Final[list[Rule]] = list(dict.fromkeys(rule for rule, *_ in BROKEN))
for _rule in RULES:
    _rule.__test__ = False  # type: ignore[attr-defined]  # two of them read like tests, and are none


def _files() -> Iterator[Path]:
    """Every text file of the repository; links are not followed: what they lead to is walked where it stands."""
    for folder, names, files in os.walk(ROOT):
        hidden = {name for name in names if name.startswith(".") and name != ".ci"}
        names[:] = sorted(set(names) - hidden - NOT_OURS - {name for name in names if name.endswith(".egg-info")})
        for name in sorted(files):
            path = Path(folder, name)
            if path.suffix in TEXT_SUFFIXES and not name.startswith(".") and not path.is_symlink():
                yield path


def _name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@pytest.fixture(scope="module")
def repository() -> list[Sample]:
    return [Sample(_name(path), path.read_text(encoding="utf-8")) for path in _files()]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_repository_keeps_the_rule(rule: Rule, repository: list[Sample]) -> None:
    found = [f"{file.path}:{line}: {what}" for file in repository for line, what in rule(file)]
    assert found == [], f"{rule.__name__}:\n" + "\n".join(found)


@pytest.mark.parametrize(("rule", "path", "text", "line"), BROKEN, ids=lambda value: getattr(value, "__name__", None))
def test_rule_names_the_line_that_breaks_it(rule: Rule, path: str, text: str, line: int) -> None:
    assert [found for found, _ in rule(Sample(path, text))] == [line]


@pytest.mark.parametrize(("rule", "path", "text"), KEPT, ids=lambda value: getattr(value, "__name__", None))
def test_rule_lets_good_code_pass(rule: Rule, path: str, text: str) -> None:
    assert list(rule(Sample(path, text))) == []


def test_walk_sees_the_product_and_its_tests_once(repository: list[Sample]) -> None:
    paths = [file.path for file in repository]
    assert len(set(paths)) == len(paths)
    wanted = {"sawyer/errors.py", "schemas/events.py", "projections/__init__.py", "tests/test_tidy.py", "Makefile",
              "pyproject.toml", ".ci/run", "README.md", "docs/index.md"}  # fmt: skip
    assert wanted <= set(paths)
    assert [path for path in paths if path.startswith(("sawyer/schemas", "sawyer/projections", ".venv"))] == []


def test_links_between_documents_lead_somewhere(repository: list[Sample]) -> None:
    broken = [
        f"{file.path}: {target}"
        for file in repository
        if file.path.endswith(".md")
        for target in re.findall(r"\]\(([^)\s#]+)(?:#[^)]*)?\)", file.text)
        if not re.match(r"[a-z]+:", target) and not (ROOT / file.path).parent.joinpath(target).exists()
    ]
    assert broken == []
