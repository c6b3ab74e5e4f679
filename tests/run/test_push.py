"""A run pushed to a local hub, whose networks other runs take by the repository's id."""

import json
import shutil

import pytest

from distill.recipe.load import load_yaml
from distill.storage import read_sealed, write_sealed
from tests.fake_hub import FakeHub

pytestmark = pytest.mark.exporting
NAME = "me/toy"


@pytest.fixture
def hub():
    with FakeHub() as hub:
        yield hub


@pytest.fixture
def call(hub, run_distill, tmp_path):
    return lambda *words: run_distill(*words, environment=hub.environment(tmp_path / "home"))


def problem(done) -> str:
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("distill: ")]
    assert done.returncode == 2 and done.stdout == "" and "Traceback" not in done.stderr
    return line


def test_a_run_is_pushed_without_its_texts(hub, call, finished, job):
    done = call("push", finished["folder"], NAME)
    assert done.returncode == 0, done.stderr
    tree = hub.tree(NAME)
    network = {name.removeprefix("stages/fit_student/") for name in tree if name.startswith("stages/")}
    assert network >= {"config.json", "heads.json", "model.safetensors", "tokenizer.json"}
    assert json.loads(tree["stages/calibrate/calibration.json"])["student"].keys() == {"intent", "flags"}
    assert all(scale > 0 for scale, _ in json.loads(tree["stages/export/scales.json"]).values())
    bundle = finished["folder"] / "bundle"
    assert {name for name in tree if not name.startswith("stages/")} == {
        *(path.relative_to(bundle).as_posix() for path in bundle.rglob("*") if path.is_file()),
        *(".gitattributes", "recipe.yaml"),
    }
    recipe = load_yaml(tree["recipe.yaml"].decode())
    assert recipe["data"]["root"] == "." and recipe["student"]["epochs"] == 8
    rows = (job.parent / "train.csv").read_text("utf-8").splitlines()[1:]
    texts = [row.partition(",")[0].encode() for row in rows]
    assert not [name for name, content in tree.items() if any(text in content for text in texts)]

    done = call("push", finished["folder"], NAME, "--teacher", "--report", "--revision", "all")
    assert done.returncode == 0, done.stderr
    added = {*hub.tree(NAME, "all")} - {*tree}
    assert "report.html" in added and "stages/fit_teacher/model.safetensors" in added
    assert not [name for name in added if "label_confidence" in name or "stage.json" in name]

    _other_runs_take_its_networks(call, job)


def _other_runs_take_its_networks(call, job):
    folder = job.parent / "run" / "stages"
    words = ("--to", "fit_teacher", "--json", "--set")
    out = job.parent / "assistant"
    networks = "teacher={networks: [me/toy/stages/fit_student]}"
    done = call("run", job, "--out", out, *words, networks)
    assert done.returncode == 0, done.stderr
    # padding of token types and the like aside, the weights are those of the run
    taken = (out / "stages/fit_teacher/model.safetensors").read_bytes()
    assert taken == (folder / "fit_student/model.safetensors").read_bytes()
    for encoder in ("me/toy/stages/fit_teacher@all", folder / "fit_teacher"):
        more = ("--set", "teacher.epochs=1", "--set", "student.start=me/toy/stages/fit_student@main")
        out = job.parent / f"again-{len(str(encoder))}"
        done = call("run", job, "--out", out, *words, f"teacher.encoder={encoder}", *more)
        assert done.returncode == 0, done.stderr
        # which a fresh encoder needs ten epochs for
        assert json.loads(done.stdout)["metrics"]["validation"]["intent.accuracy"] > 0.95
    for name, what in (
        ("me/toy/stages/fit_teacher", "is not in the repository (distill push RUN me/toy --teacher)"),
        ("me/none/stages/fit_teacher", "no such folder, and the hub does not give it: "),
        ("me/toy/stages/fit_student@none", "no such folder, and the hub does not give it: "),
    ):
        for key in (f"teacher={{networks: [{name}]}}", f"teacher.encoder={name}"):
            line = problem(call("run", job, "--out", job.parent / "refused", *words, key))
            assert f"{name}: {what}" in line


def test_a_run_that_is_not_whole_is_not_pushed(hub, call, finished, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(finished["folder"], run)
    weights = run / "stages/fit_student/model.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[:-1])
    assert "model.safetensors: is changed or damaged, so nothing is pushed" in problem(
        call("push", run, NAME)
    )
    weights.write_bytes(content)
    (run / "report.html").unlink()
    assert "report.html: is missing (distill report" in problem(call("push", run, NAME, "--report"))
    graph = run / "bundle/onnx/model.onnx"
    graph.write_bytes(graph.read_bytes()[:-1])
    assert "model.onnx: changed" in problem(call("push", run, NAME))
    check = run / "stages/check/stage.json"
    record = read_sealed(check)
    refused = {**record, "metrics": {**record["metrics"], "refused": ["int8: head 'intent' drops"]}}
    write_sealed(check, refused)
    line = problem(call("push", run, NAME))
    assert line.endswith("is not pushed, as its gates refused the bundle: int8: head 'intent' drops")
    write_sealed(check, {**record, "results": "of other weights"})
    assert "its stage bundle is not finished (distill run RECIPE" in problem(call("push", run, NAME))
    shutil.rmtree(run / "stages/check")
    assert "its stage check is not finished" in problem(call("push", run, NAME))
    assert not hub.commits


def test_python_pushes_a_run(hub, finished, tmp_path):
    import os
    import subprocess
    import sys
    from pathlib import Path

    code = (
        "import sys\nfrom pathlib import Path\nfrom tinyheads import RunResult\n"
        "print(RunResult(Path(sys.argv[1]), {}).push_to_hub('me/toy', revision='v1', private=True))"
    )
    environment = {**os.environ, **hub.environment(tmp_path), "PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-c", code, str(finished["folder"])]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "/commit/" in done.stdout, done.stderr
    assert hub.repositories[NAME]["private"] and "recipe.yaml" in hub.tree(NAME, "v1")
