"""recopt imports, with its passes and patterns, from a wheel built from the sdist and from an editable install."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
IGNORED = shutil.ignore_patterns(".*", "__pycache__", "*.egg-info", "build", "dist")
LINKS = {"passes", "patterns"}  # recopt/<name> links to <name>

# Run without the checkout on the path: `where` holds what was installed.
IMPORT = """
import site, sys
# The environment may hold an editable install of its own, whose finder goes before any path.
sys.meta_path[:] = [f for f in sys.meta_path if "__editable__" not in getattr(f, "__module__", "")]
for name in [n for n in sys.modules if n.startswith("__editable__")]:
    del sys.modules[name]
sys.path.insert(0, {where!r})
site.addsitedir({where!r})
import recopt.cli, recopt.passes, recopt.patterns, recopt.view.text
for module in (recopt.cli, recopt.passes, recopt.patterns):
    assert module.__file__ and module.__file__.startswith({prefix!r}), module.__file__
"""


def python(folder: Path, code: str) -> None:
    done = subprocess.run([sys.executable, "-I", "-c", code], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def build(source: Path, hook: str, out: Path) -> Path:
    """What a setuptools hook makes of `source`, in `out`."""
    out.mkdir()
    python(source, f"import setuptools.build_meta as m; m.{hook}({str(out)!r})")
    (made,) = out.iterdir()
    return made


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the checkout, links kept."""
    folder = tmp_path_factory.mktemp("checkout") / "recopt"
    shutil.copytree(ROOT, folder, symlinks=True, ignore=IGNORED)
    return folder


def modules() -> set[str]:
    """Every module of the package, as a path inside a wheel."""
    found = {path.relative_to(ROOT).as_posix() for path in (ROOT / "recopt").glob("**/*.py")}
    found = {path for path in found if path.split("/")[1] not in LINKS}
    return found | {f"recopt/{link}/{path.name}" for link in LINKS for path in (ROOT / link).glob("*.py")}


def test_every_pin_is_exact_and_every_dependency_pinned() -> None:
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    assert all(re.fullmatch(r"[A-Za-z0-9_.-]+==[0-9][A-Za-z0-9.]*", line) for line in lines)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [
        *project["dependencies"],
        *(name for extra in project["optional-dependencies"].values() for name in extra),
    ]
    names = {re.split(r"[^A-Za-z0-9-]", name)[0].lower() for name in wanted} - {"recopt"}
    assert names <= {line.split("==")[0].lower() for line in lines}


@pytest.mark.slow
def test_sdist_to_wheel_to_import(checkout: Path, tmp_path: Path) -> None:
    with tarfile.open(build(checkout, "build_sdist", tmp_path / "sdist")) as archive:
        archive.extractall(tmp_path / "source", filter="data")
    (source,) = (tmp_path / "source").iterdir()
    with zipfile.ZipFile(build(source, "build_wheel", tmp_path / "wheel")) as wheel:
        names = wheel.namelist()
        wheel.extractall(tmp_path / "site")
    assert {name for name in names if name.endswith(".py")} == modules()
    assert len(names) == len(set(names))
    assert "recopt/py.typed" in names
    python(tmp_path, IMPORT.format(where=str(tmp_path / "site"), prefix=str(tmp_path / "site")))


@pytest.mark.slow
def test_wheel_of_the_checkout(checkout: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(build(checkout, "build_wheel", tmp_path / "wheel")) as wheel:
        assert {name for name in wheel.namelist() if name.endswith(".py")} == modules()


@pytest.mark.slow
def test_editable(checkout: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(build(checkout, "build_editable", tmp_path / "wheel")) as wheel:
        wheel.extractall(tmp_path / "site")
    python(tmp_path, IMPORT.format(where=str(tmp_path / "site"), prefix=str(checkout)))
