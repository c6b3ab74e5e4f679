"""The README's Python runs as it stands, without torch; its commands are real."""

import re
import shutil

import pytest

import tinyheads
from distill.recipe.load import load_yaml


@pytest.fixture
def readme(pytestconfig) -> str:
    return (pytestconfig.rootpath / "README.md").read_text("utf-8")


@pytest.mark.exporting
def test_python_of_the_first_screen_runs_without_torch(readme, finished, run_blocked, tmp_path):
    code = re.search(r"```python\n(.*?)```", readme, re.DOTALL).group(1)
    assert len(code.strip().splitlines()) <= 6
    bundle = re.search(r'load\("([^"]+)"', code).group(1)
    shutil.copytree(finished["folder"] / "bundle", tmp_path / bundle)
    done = run_blocked(code, tmp_path)
    assert done.returncode == 0, done.stderr
    assert "intent" in done.stdout


def test_every_make_target_and_file_it_names_exists(readme, pytestconfig):
    makefile = (pytestconfig.rootpath / "Makefile").read_text("utf-8")
    for target in re.findall(r"(?:^|`)make ([a-z0-9]+)", readme, re.MULTILINE):
        assert f"\n{target}:" in makefile, target
    for path in re.findall(r"`((?:recipes|benchmarks|docs)/[\w./-]+)`", readme):
        assert (pytestconfig.rootpath / path).exists(), path


@pytest.mark.exporting
def test_the_session_of_the_training_guide_runs(pytestconfig, job, tmp_path, monkeypatch, capsys):
    """With the small job's teacher and budget in place of those that it names."""
    guide = (pytestconfig.rootpath / "docs" / "training.md").read_text("utf-8")
    code = re.search(r"## In Python\n\n```python\n(.*?)```", guide, re.DOTALL).group(1)
    shutil.copy(job.parent / "train.csv", tmp_path / "messages.csv")
    shutil.copy(job.parent / "inbox.txt", tmp_path)
    small = load_yaml(job.read_text("utf-8"))
    run = tinyheads.run

    def quickly(recipe, out):
        others = {
            key: small[key] for key in ("teacher", "student", "augment", "gates", "precision", "trackers")
        }
        return run({**recipe, **others}, out)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tinyheads, "run", quickly, raising=False)
    exec(compile(code, "docs/training.md", "exec"), {})
    accuracy, answer, heads = capsys.readouterr().out.splitlines()
    assert float(accuracy) > 0.8 and "intent" in answer and "intent" in heads
