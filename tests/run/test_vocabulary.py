"""`distill run` with a smaller vocabulary, and what it refuses."""

import json
import shutil
from dataclasses import replace

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from distill.cli.main import main
from distill.storage import digests, files_in, read_sealed, write_sealed
from export import Classifier
from export.bundle.files import read_bundle, write_bundle
from export.bundle.manifest import INT8

pytestmark = pytest.mark.exporting


@pytest.fixture(scope="module")
def pieces(finished):
    """How many the whole vocabulary has, and how many the pruned one is to have."""
    whole = Classifier.load(finished["folder"] / "bundle")._token_ids.max_id + 1
    return whole, whole - 3


@pytest.fixture(scope="module")
def pruned(job, finished, pieces, tmp_path_factory):
    """The small job's run with a smaller vocabulary, its teacher and labels those of the whole one."""
    run = shutil.copytree(finished["folder"], tmp_path_factory.mktemp("pruned") / "run")
    assert main(["run", str(job), "--out", str(run), "--set", f"student.vocabulary={pieces[1]}"]) == 0
    return run


def test_the_bundle_is_smaller_and_still_right(finished, pruned, pieces):
    bundle, whole = pruned / "bundle", finished["folder"] / "bundle"
    assert Classifier.load(bundle)._token_ids.max_id + 1 == pieces[1]
    assert json.loads((bundle / "config.json").read_text("utf-8"))["vocab_size"] == pieces[1]
    assert (bundle / INT8).stat().st_size < (whole / INT8).stat().st_size
    for head in json.loads((pruned / "report.json").read_text("utf-8"))["heads"].values():
        assert next(iter(head["test"]["int8"].values())) > 0.9
    classifier = Classifier.load(bundle)
    assert classifier("where is my parcel please")["intent"]["label"] == "track"
    assert classifier("zzyzx 包 \u0301")["intent"]["score"] > 0


def test_what_was_dropped_is_a_figure(pruned, pieces):
    record = json.loads((pruned / "stages/fit_student/stage.json").read_text("utf-8"))
    found = record["metrics"]["vocabulary"]
    assert (found["pieces"], found["of"]) == (pieces[1], pieces[0])
    assert 0 <= found["test_tokens_dropped"] < 0.5 and found["test_tokens_more"] >= 0
    assert 0 < found["used_by_transfer_set"] <= pieces[0]


def test_the_teacher_is_not_trained_again(finished, pruned):
    for stage in ("fit_teacher", "label"):
        both = [(f / "stages" / stage / "stage.json").read_bytes() for f in (finished["folder"], pruned)]
        assert both[0] == both[1]


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        (["student.vocabulary=3"], "student.vocabulary: must be >= "),
        (["student.vocabulary=half"], "must be a number of word pieces, or full, got 'half'"),
        (["student.vocabulary=99999"], "student.vocabulary: 99999 pieces, the tokenizer has"),
        (["student.vocabulary=50", "match.hidden=1"], "leave out match or student.vocabulary"),
    ],
)
def test_refused(job, finished, tmp_path, capsys, settings, problem):
    run = shutil.copytree(finished["folder"], tmp_path / "run")
    options = [word for setting in settings for word in ("--set", setting)]
    assert main(["run", str(job), "--out", str(run), *options]) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert problem in said
    assert main(["run", str(job), "--out", str(tmp_path / "new"), *options]) == 2
    assert not (tmp_path / "new").exists()  # nobody waits for a teacher to hear it
    assert main(["check", str(job), *options]) == 2
    assert capsys.readouterr().err.splitlines()[-1] == said
    assert (run / "bundle" / INT8).read_bytes() == (finished["folder"] / "bundle" / INT8).read_bytes()


def spoil(run):
    """Add to the first label's logits in the int8 file of the bundle that is yet to be checked."""
    candidate = run / "stages/export/candidate"
    manifest = read_bundle(candidate)
    model = onnx.load(candidate / INT8)
    (bias,) = [x for x in model.graph.initializer if x.name == "heads.bias"]
    shifted = numpy_helper.to_array(bias) + np.eye(1, bias.dims[0], dtype=np.float32)[0] * 9
    bias.CopyFrom(numpy_helper.from_array(shifted, bias.name))
    files = {name: (candidate / name).read_bytes() for name in manifest.files}
    write_bundle(candidate, replace(manifest, files={}), files | {INT8: model.SerializeToString()})
    record = candidate.with_name("stage.json")  # as if the stage had left it so
    write_sealed(record, {**read_sealed(record), "files": digests(run, files_in(candidate))})


def test_a_head_may_fail_a_gate_only_by_name(job, finished, tmp_path, capsys):
    run = shutil.copytree(finished["folder"], tmp_path / "run")
    spoil(run)
    command = ["run", str(job), "--out", str(run), "--from", "check"]
    before = (run / "bundle/manifest.json").read_bytes()
    assert main(command) == 1
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("distill: int8")]
    assert len(said) == 3 and all("head 'intent'" in line for line in said)
    assert said[-1].endswith("(--allow HEAD exports it anyway; export.quantize: none keeps fp32)")
    assert all(" texts of validation and test" in line for line in said)
    assert (run / "bundle/manifest.json").read_bytes() == before
    assert main([*command, "--allow", "flags"]) == 1
    assert main([*command, "--allow", "intnet"]) == 2
    assert "gates.allow: no head 'intnet' (did you mean" in capsys.readouterr().err
    assert main([*command, "--set", "gates.allow=[intent]", "--allow", "flags"]) == 0
    assert list(read_bundle(run / "bundle").details["allowed"]) == ["intent"]
    assert main([*command, "--allow", "intent"]) == 0
    allowed = read_bundle(run / "bundle").details["allowed"]
    assert list(allowed) == ["intent"] and "drops in accuracy" in allowed["intent"][0]


def test_the_doctor_finds_it_right_where_it_was_made(pruned, capsys):
    assert main(["doctor", str(pruned / "bundle"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["right"] and set(found["variants"]) == {"fp32", "int8"}
