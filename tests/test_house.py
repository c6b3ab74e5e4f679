"""What holds of the project as a whole: sizes of modules, the public names, `--help` without extras."""

import inspect
from pathlib import Path

import export

ROOT = Path(__file__).parents[1]
PACKAGES = ("tinyheads", "distill", "teachers", "students", "export")


def test_public_names():
    assert sorted(export.__all__) == ["BundleError", "Classifier"]


def test_modules_are_small():
    lines = [len(p.read_text("utf-8").splitlines()) for top in PACKAGES for p in (ROOT / top).rglob("*.py")]
    assert max(lines) <= 400


def test_folders_are_small():
    for top in PACKAGES:
        for folder in {path.parent for path in (ROOT / top).rglob("*.py")}:
            assert len({*folder.glob("*.py")} - {folder / "__init__.py"}) <= 12, folder


def test_fit_takes_at_most_six_arguments():
    from distill.training.loop import fit

    assert len(inspect.signature(fit).parameters) <= 6


def test_help_needs_no_extra(run_blocked):
    done = run_blocked("from distill.cli.main import main\nmain(['--help'])")
    assert done.returncode == 0, done.stderr
    assert "init" in done.stdout


def test_a_command_without_its_extra_names_the_extra(run_blocked):
    done = run_blocked("from distill.cli.main import main\nraise SystemExit(main(['run', 'recipe.yaml']))")
    assert done.returncode == 2
    assert "pip install 'tinyheads[train]'" in done.stderr
    assert "Traceback" not in done.stderr
