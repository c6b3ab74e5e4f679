"""What holds of the project as a whole: sizes of modules, the public names, `--help` without extras."""

import statistics
import subprocess
import sys
from pathlib import Path

import export

ROOT = Path(__file__).parents[1]
PACKAGES = ("distill", "teachers", "students", "export")
BLOCKED = [
    *("torch", "transformers", "datasets", "accelerate", "optimum", "evaluate", "onnx"),
    *("pydantic", "yaml", "sklearn", "scipy", "safetensors", "tqdm"),
]


def run_blocked(code: str, cwd: Path = ROOT) -> subprocess.CompletedProcess:
    block = (
        f"import sys\nfor name in {BLOCKED}: sys.modules[name] = None\nsys.path.insert(0, {str(ROOT)!r})\n"
    )
    return subprocess.run(
        [sys.executable, "-c", block + code], cwd=cwd, capture_output=True, text=True, check=False
    )


def test_public_names():
    assert sorted(export.__all__) == ["BundleError", "Classifier"]


def test_modules_are_small():
    lines = [len(p.read_text("utf-8").splitlines()) for top in PACKAGES for p in (ROOT / top).rglob("*.py")]
    assert max(lines) <= 300
    assert statistics.median(lines) <= 120


def test_help_needs_no_extra():
    done = run_blocked("from distill.cli import main\nmain(['--help'])")
    assert done.returncode == 0, done.stderr
    assert "init" in done.stdout


def test_a_command_without_its_extra_names_the_extra():
    done = run_blocked("from distill.cli import main\nraise SystemExit(main(['run', 'recipe.yaml']))")
    assert done.returncode == 2
    assert "pip install 'tinyheads[train]'" in done.stderr
    assert "Traceback" not in done.stderr
