"""The README's Python runs as it stands, without torch; its commands are real."""

import re
import shutil
import subprocess
import sys

import pytest

BLOCKED = ["torch", "transformers", "datasets", "accelerate", "optimum", "evaluate", "onnx", "pydantic"]


@pytest.fixture
def readme(pytestconfig) -> str:
    return (pytestconfig.rootpath / "README.md").read_text("utf-8")


@pytest.mark.exporting
def test_python_of_the_first_screen_runs_without_torch(readme, finished, pytestconfig, tmp_path):
    code = re.search(r"```python\n(.*?)```", readme, re.DOTALL).group(1)
    assert len(code.strip().splitlines()) <= 6
    bundle = re.search(r'load\("([^"]+)"', code).group(1)
    shutil.copytree(finished["folder"] / "bundle", tmp_path / bundle)
    block = f"import sys\nfor n in {BLOCKED}: sys.modules[n] = None\nsys.path.insert(0, {str(pytestconfig.rootpath)!r})\n"
    done = subprocess.run(
        [sys.executable, "-c", block + code], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_every_make_target_and_file_it_names_exists(readme, pytestconfig):
    makefile = (pytestconfig.rootpath / "Makefile").read_text("utf-8")
    for target in re.findall(r"\bmake ([a-z0-9]+)", readme):
        assert f"\n{target}:" in makefile, target
    for path in re.findall(r"`((?:recipes|benchmarks|docs)/[\w./-]+)`", readme):
        assert (pytestconfig.rootpath / path).exists(), path
