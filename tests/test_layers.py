"""Imports flow one way, from the command line down to the terms: the order of the rooms, read from the source."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "recopt"

# A room may import those of its own floor and of the floors below.
FLOORS = (
    ("errors",),
    ("ir",),
    ("hosts", "lift", "layout", "match", "fused", "report", "view", "kernels", "load"),
    ("recognise", "cost", "reference"),
    ("patterns",),
    ("rewrite", "merge", "lower", "feeds", "verify", "tables"),
    ("simplify",),
    ("passes",),
    ("pipeline",),
    ("api",),
    ("__init__",),
    ("cli",),
    ("__main__",),
)
FLOOR = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
FILES = sorted(path.relative_to(PACKAGE) for path in PACKAGE.glob("**/*.py"))
FILES += [Path(link, path.name) for link in ("passes", "patterns") for path in sorted((PACKAGE / link).glob("*.py"))]
FILES = sorted(set(FILES))


def room(parts: tuple[str, ...]) -> str:
    return Path(parts[0]).stem if parts else "__init__"


def imports(file: Path) -> Iterator[str]:
    """The rooms of recopt that a file imports; what is imported for types alone does not count."""
    tree = ast.parse((PACKAGE / file).read_text(encoding="utf-8"))
    skipped = {id(n) for node in ast.walk(tree) if _is_typing(node) for n in ast.walk(node)}
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.Import):
            yield from (room(tuple(a.name.split(".")[1:])) for a in node.names if a.name.split(".")[0] == "recopt")
        elif isinstance(node, ast.ImportFrom):
            base = _base(file, node)
            if base is not None:
                yield from (
                    room((*base, alias.name)) if _is_room(base, alias.name) else room(base) for alias in node.names
                )


def _is_typing(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def _base(file: Path, node: ast.ImportFrom) -> tuple[str, ...] | None:
    """The parts below recopt of the module that `node` imports from; None for another package's."""
    module = tuple((node.module or "").split(".")) if node.module else ()
    if node.level:
        above = file.parts[: len(file.parts) - node.level]
        return (*above, *module)
    return module[1:] if module[:1] == ("recopt",) else None


def _is_room(base: tuple[str, ...], name: str) -> bool:
    return not base and (name in FLOOR or (PACKAGE / f"{name}.py").exists())


@pytest.mark.parametrize("file", FILES, ids=str)
def test_imports_go_down(file: Path) -> None:
    here = room(file.parts)
    assert here in FLOOR, f"{file} is in no room: give it a floor"
    upward = [there for there in imports(file) if FLOOR.get(there, 0) > FLOOR[here]]
    assert upward == [], f"{file} ({here}) imports from above: {upward}"


@pytest.mark.parametrize("file", [file for file in FILES if file.parts[0] == "kernels"], ids=str)
def test_kernels_import_nothing_of_recopt(file: Path) -> None:
    assert set(imports(file)) <= {"kernels"}


@pytest.mark.parametrize("file", [file for file in FILES if file.parts[0] == "ir"], ids=str)
def test_terms_import_nothing_of_the_hosts(file: Path) -> None:
    assert set(imports(file)) <= {"ir", "errors"}


def test_an_upward_import_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "ir").mkdir()
    (tmp_path / "ir" / "term.py").write_text(
        "from .. import cli\nfrom ..passes.fuse import run\nimport recopt.lower.onnx\n"
    )
    monkeypatch.setitem(globals(), "PACKAGE", tmp_path)
    assert list(imports(Path("ir/term.py"))) == ["cli", "passes", "lower"]
