"""The three links work in every way the package is shipped: wheel, source archive, editable install.

Builds need a package index for the build backend; an install then adds nothing but this package, and uses the
dependencies of the tests' own environment.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
pytestmark = [pytest.mark.packaging, pytest.mark.slow]
LINKED = ("dsl", "operators", "state")


def test_the_links_are_relative_and_reach_the_folders() -> None:
    for name in LINKED:
        assert os.readlink(ROOT / "dataflow" / name) == f"../{name}"
        assert (ROOT / "dataflow" / name / "__init__.py").samefile(ROOT / name / "__init__.py")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    pip("wheel", "--no-deps", "--wheel-dir", str(folder), str(ROOT))
    (built,) = folder.glob("*.whl")
    return built


def test_the_wheel_holds_the_linked_packages_once(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    for name in LINKED:
        assert f"dataflow/{name}/__init__.py" in names
        assert f"{name}/__init__.py" not in names
    assert {"dataflow/py.typed", "dataflow/state/log/FORMAT.md"} <= set(names)
    assert len(names) == len(set(names))
    assert not [name for name in names if name.startswith("tests/") or name.endswith("ruff.toml")]


def test_an_installed_wheel_runs_away_from_the_repository(wheel: Path, tmp_path: Path) -> None:
    python = environment_with(tmp_path, str(wheel))
    code = "import dataflow, dataflow.operators.base as b; print(dataflow.__file__, b.__name__)"
    said = run([str(python), "-c", code], cwd=tmp_path)
    assert str(tmp_path) in said
    assert "dataflow.operators.base" in said
    assert "dataflow 0." in run([str(python.with_name("dataflow")), "--version"], cwd=tmp_path)


def test_an_editable_install_follows_the_links(tmp_path: Path) -> None:
    python = environment_with(tmp_path, "--editable", str(ROOT))
    said = run([str(python), "-c", "import dataflow.state as s; print(s.__file__)"], cwd=tmp_path)
    assert said.strip() == str(ROOT / "dataflow" / "state" / "__init__.py")


def test_the_source_archive_builds_the_same_wheel(wheel: Path, tmp_path: Path) -> None:
    backend = "import os, hatchling.build as b; print(b.build_sdist(os.environ['OUT']))"
    python = environment_with(tmp_path, "hatchling")
    run([str(python), "-c", backend], cwd=ROOT, OUT=str(tmp_path))
    (archive,) = tmp_path.glob("*.tar.gz")
    shutil.unpack_archive(archive, tmp_path / "source")
    (source,) = (tmp_path / "source").iterdir()
    pip("wheel", "--no-deps", "--wheel-dir", str(tmp_path / "again"), str(source))
    (again,) = (tmp_path / "again").glob("*.whl")
    ours = {name for name in zipfile.ZipFile(wheel).namelist() if name.endswith(".py")}
    theirs = {name for name in zipfile.ZipFile(again).namelist() if name.endswith(".py")}
    assert ours == theirs


def environment_with(folder: Path, *requirement: str) -> Path:
    """The python of a new environment with only the requirement; it also sees what the tests have."""
    run([sys.executable, "-m", "venv", str(folder / "venv")], cwd=folder)
    python = folder / "venv" / "bin" / "python"
    run([str(python), "-m", "pip", "install", "--quiet", "--no-deps", *requirement], cwd=folder)
    if requirement[-1] == "hatchling":
        run([str(python), "-m", "pip", "install", "--quiet", "hatchling"], cwd=folder)
    (outside,) = (path for path in sys.path if path.endswith("site-packages"))
    (inside,) = (folder / "venv" / "lib").glob("python*/site-packages")
    (inside / "tests_environment.pth").write_text(outside + "\n")
    return python


def pip(*arguments: str) -> None:
    run([sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet", *arguments], cwd=ROOT)


def run(command: list[str], *, cwd: Path, **variables: str) -> str:
    bare = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(command, cwd=cwd, env=bare | variables, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
