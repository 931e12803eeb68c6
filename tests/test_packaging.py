"""The wheel, installed apart from this checkout: it runs what the README says of Python."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = "setup.py", "pyproject.toml", "requirements.txt", "README.md", "LICENSE", "MANIFEST.in"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built of a copy, since building leaves files behind."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    shutil.copytree(ROOT / "model", source / "model", ignore=shutil.ignore_patterns("__pycache__"))
    for name in SOURCES:
        shutil.copy(ROOT / name, source / name)
    pip(sys.executable, "wheel", "--no-deps", "--wheel-dir", str(folder), str(source))
    (built,) = folder.glob("*.whl")
    return built


def pip(python: str, *words: str) -> None:
    done = subprocess.run(
        [python, "-m", "pip", "--disable-pip-version-check", "--quiet", *words],
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def run_the_readmes_lines(
    python: str, model_path: str, folder: Path, site: Path, path: str | None = None
) -> None:
    """In a folder with nothing but the model, and see that the package in a folder did it."""
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.DOTALL)
    (folder / "checkpoints").mkdir()
    (folder / "checkpoints" / "smollm2-135m-instruct").symlink_to(Path(model_path).resolve())
    code += "print(logitspec.__file__)"
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    if path is not None:
        environment["PYTHONPATH"] = path
    done = subprocess.run(
        [python, "-c", code], cwd=folder, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    *text, figure, file = done.stdout.splitlines()
    assert len("\n".join(text)) > 50
    assert re.fullmatch(r"(\d+\.\d\d) tokens per forward", figure) and float(figure[:4]) > 1.5
    assert Path(file) == site / "logitspec" / "__init__.py"


def test_what_is_cited_is_the_version_that_it_has(wheel: Path) -> None:
    (cited,) = re.findall(
        r"^version: (.+)$", (ROOT / "CITATION.cff").read_text(), flags=re.MULTILINE
    )
    assert wheel.name.startswith(f"logitspec-{cited}-")


@pytest.mark.real
def test_it_installs_as_the_package_logitspec(
    wheel: Path, default_model_path: str, tmp_path: Path
) -> None:
    site = tmp_path / "site"
    pip(sys.executable, "install", "--no-deps", "--target", str(site), str(wheel))
    run_the_readmes_lines(sys.executable, default_model_path, tmp_path, site, str(site))


@pytest.mark.slow
@pytest.mark.real
@pytest.mark.timeout(1800)
def test_it_installs_into_an_empty_environment(
    wheel: Path, default_model_path: str, tmp_path: Path
) -> None:
    environment = tmp_path / "environment"
    subprocess.run([sys.executable, "-m", "venv", str(environment)], check=True)
    python = str(environment / "bin" / "python")
    pip(python, "install", "-c", str(ROOT / "constraints.txt"), str(wheel))
    (site,) = environment.glob("lib/python*/site-packages")
    run_the_readmes_lines(python, default_model_path, tmp_path, site)
