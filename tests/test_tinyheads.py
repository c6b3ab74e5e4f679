"""The public face: the names, that importing it needs no torch, and a run from Python."""

import re

import tinyheads


def test_public_names():
    assert tinyheads.__all__ == [
        *("BundleError", "Classifier", "Recipe", "RunResult", "__version__"),
        *("add_head", "load_recipe", "retrain_head", "run"),
    ]
    for name in tinyheads.__all__:
        assert getattr(tinyheads, name) is not None
    assert not hasattr(tinyheads, "fit")


def test_serving_names_need_no_extra(run_blocked):
    code = "import tinyheads\nprint(tinyheads.Classifier, tinyheads.BundleError, tinyheads.__version__)"
    done = run_blocked(code)
    assert done.returncode == 0, done.stderr
    done = run_blocked("import sys, tinyheads\nassert not {'numpy', 'onnxruntime'} & {*sys.modules}")
    assert done.returncode == 0, done.stderr


def test_training_names_say_what_to_install(run_blocked):
    code = "import sys\nsys.modules['pydantic'] = None\nimport tinyheads\ntinyheads.run"
    done = run_blocked(code)
    problem = "ModuleNotFoundError: tinyheads.run: needs .*, which is not installed"
    assert re.search(problem + r" \(pip install 'tinyheads\[train\]'\)\n$", done.stderr)
