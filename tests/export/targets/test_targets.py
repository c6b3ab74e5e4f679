"""Export folders: refusals, replacement, records."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import onnx
import pytest

from distill.cli.main import main
from export.bundle.files import read_bundle, write_bundle
from export.bundle.manifest import FP32, INT8, BundleError
from export.targets.registry import TARGETS, export_bundle
from export.targets.writer import RECORD, TargetError, check_names, copy_templates, write_export


def test_the_record_lists_the_written_files(exportable, tmp_path):
    record = export_bundle(exportable, "triton", tmp_path / "out")
    found = {p.relative_to(tmp_path / "out").as_posix(): p.stat().st_size for p in files(tmp_path / "out")}
    assert record["target"] == "triton" and record["variant"] == "int8" and record["bundle"] == "tiny"
    assert record["files"] == {name: size for name, size in found.items() if name != RECORD}
    assert record["bytes"] == sum(record["files"].values())
    assert json.loads((tmp_path / "out" / RECORD).read_text()) == {
        k: v for k, v in record.items() if k != "out"
    }


def test_the_default_folder_is_next_to_the_bundle(exportable, tmp_path):
    bundle = Path(shutil.copytree(exportable, tmp_path / "mine"))
    record = export_bundle(bundle, "triton", variant="fp32")
    assert Path(record["out"]) == tmp_path / "mine-triton" and (tmp_path / "mine-triton" / "tiny").is_dir()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine", "mine-triton"]


@pytest.mark.parametrize(
    ("target", "variant", "library", "expected"),
    [
        ("tritton", None, None, "unknown target 'tritton'.*did you mean 'triton'"),
        ("triton", "int9", None, "unknown variant 'int9'.*did you mean 'int8'"),
        ("triton", None, "x", "--transformers-js: needs --target transformers-js, got 'triton'"),
    ],
)
def test_unknown_options_are_refused(exportable, tmp_path, target, variant, library, expected):
    with pytest.raises(TargetError, match=expected):
        export_bundle(exportable, target, tmp_path / "out", variant=variant, library=library)
    assert not list(tmp_path.iterdir())


def test_a_changed_bundle_is_refused(exportable, tmp_path):
    bundle = Path(shutil.copytree(exportable, tmp_path / "bundle"))
    with (bundle / "tokenizer.json").open("ab") as file:
        file.write(b" ")
    with pytest.raises(BundleError, match=r"tokenizer\.json: changed"):
        export_bundle(bundle, "triton", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_other_folders_are_not_replaced(exportable, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    with pytest.raises(TargetError, match="is not an earlier export"):
        export_bundle(exportable, "triton", tmp_path / "out")
    assert [path.name for path in files(tmp_path)] == ["mine.txt"]
    for inside in (exportable, exportable / "triton"):
        with pytest.raises(TargetError, match="is inside the bundle"):
            export_bundle(exportable, "triton", inside)


def test_a_folder_that_contains_the_bundle_is_not_replaced(exportable, tmp_path):
    page = tmp_path / "page"
    export_bundle(exportable, "transformers-js", page)
    before = [path.read_bytes() for path in files(page)]
    with pytest.raises(TargetError, match="holds the bundle, which would be lost"):
        export_bundle(page / "model", "triton", page)
    assert [path.read_bytes() for path in files(page)] == before


def test_the_default_folder_is_next_to_a_link(exportable, tmp_path):
    (tmp_path / "current").symlink_to(exportable)
    assert Path(export_bundle(tmp_path / "current", "triton")["out"]) == tmp_path / "current-triton"


def test_an_earlier_export_is_replaced_and_a_failure_leaves_it(exportable, tmp_path):
    out = tmp_path / "out"
    export_bundle(exportable, "tei", out)
    export_bundle(exportable, "triton", out)
    assert (out / "tiny").is_dir() and not (out / "intent").exists()
    before = {path: path.read_bytes() for path in files(out)}

    def fails(folder: Path) -> dict[str, object]:
        (folder / "half").write_text("half")
        raise TargetError("no")

    with pytest.raises(TargetError, match="no"):
        write_export(out, fails, {})
    assert {path: path.read_bytes() for path in files(tmp_path)} == before


def test_leftovers_of_killed_exports_are_removed(exportable, tmp_path):
    gone = subprocess.run(
        [sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True
    )
    pid = gone.stdout.strip()
    (tmp_path / f".out.tmp-{pid}").mkdir()
    (tmp_path / f".out.old-{pid}").mkdir()
    (tmp_path / f".out.old-{pid}" / RECORD).write_text('{"format": "tinyheads-export"}')
    (tmp_path / f".out.tmp-{os.getppid()}").mkdir()
    export_bundle(exportable, "triton", tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == [f".out.tmp-{os.getppid()}", "out"]


def test_compiled_templates_are_not_copied(tmp_path, monkeypatch):
    shipped = tmp_path / "templates" / "x"
    (shipped / "__pycache__").mkdir(parents=True)
    (shipped / "example.py").write_text("1")
    monkeypatch.setattr("export.targets.writer.TEMPLATES", tmp_path / "templates")
    (tmp_path / "out").mkdir()
    copy_templates("x", tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["example.py"]


@pytest.mark.parametrize("name", ["client.py", "Tokenizer.json", "manifest.json", "readme.md", "export.json"])
def test_a_reserved_name_is_refused(exportable, tmp_path, name):
    manifest = read_bundle(exportable)
    files = {file: exportable / file for file in manifest.files}
    write_bundle(tmp_path / "bundle", replace(manifest, name=name), files)
    with pytest.raises(TargetError, match=f"'{name}' names the same file as"):
        export_bundle(tmp_path / "bundle", "triton", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_names_that_differ_only_in_case_are_refused():
    check_names("head", ["z", "Zz"])
    with pytest.raises(TargetError, match="head 'Z' names the same file as 'z'"):
        check_names("head", ["z", "Z"])


def test_cyclic_links_are_a_one_line_error(exportable, tmp_path, capsys):
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for bundle, out in ((exportable, tmp_path / "loop"), (tmp_path / "loop", tmp_path / "out")):
        assert main(["export", str(bundle), "--target", "triton", "--out", str(out)]) == 2
        captured = capsys.readouterr().err
        assert captured.count("\n") == 1 and str(tmp_path / "loop") in captured


def test_the_command_prints_the_folder(exportable, tmp_path, capsys):
    assert main(["export", str(exportable), "--target", "triton", "--out", str(tmp_path / "out")]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'out'}\n"
    assert main(["export", str(exportable), "--target", "tye", "--out", str(tmp_path / "out")]) == 2
    captured = capsys.readouterr()
    assert (
        captured.out == ""
        and captured.err.startswith("distill: unknown target 'tye'")
        and captured.err.count("\n") == 1
    )
    assert main(["export", str(tmp_path / "none"), "--target", "tei"]) == 2
    assert "no such folder" in capsys.readouterr().err


@pytest.mark.parametrize("target", TARGETS)
def test_a_target_names_the_extra_that_it_needs(exportable, tmp_path, run_blocked, target):
    extra = target if target in ("tei", "text-in-graph") else None
    words = ["export", str(exportable), "--target", target, "--out", str(tmp_path / "out")]
    done = run_blocked(f"from distill.cli.main import main\nraise SystemExit(main({words!r}))")
    assert done.returncode == (2 if extra else 0), done.stderr
    if extra:
        problem = f"distill: --target {target}: needs onnx, which is not installed"
        assert done.stderr == f"{problem} (pip install 'tinyheads[{extra}]')\n"
        assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("target", ["triton", "tei", "text-in-graph", "transformers-js"])
def test_a_single_head_and_an_extra_output(exportable, graph, tmp_path, target):
    """The output of a single head is `logits`; a graph may have further outputs."""
    if target == "text-in-graph" and importlib.util.find_spec("onnxruntime_extensions") is None:
        pytest.skip("the extra text-in-graph is not installed")
    model = onnx.load_from_string(graph(outputs=("logits_intent", "hidden")))
    for node in model.graph.node:
        for names in (node.input, node.output):
            names[:] = [{"logits": "inner", "logits_intent": "logits"}.get(name, name) for name in names]
    model.graph.output[0].name = "logits"
    manifest = read_bundle(exportable)
    head = replace(manifest.heads[0], output="logits")
    only = replace(manifest, heads=(head,), variants={"fp32": FP32}, default_variant="fp32")
    contents = {name: exportable / name for name in manifest.files if name != INT8}
    write_bundle(tmp_path / "bundle", only, {**contents, FP32: model.SerializeToString()})
    export_bundle(tmp_path / "bundle", target, tmp_path / "out")
    (path,) = (tmp_path / "out").rglob("model.onnx")
    outputs = [value.name for value in onnx.load(path).graph.output]
    answers = ["probabilities_intent", "label_intent", "input_ids"]
    same = ["logits", "hidden"]
    expected = {
        "triton": same,
        "transformers-js": same,
        "tei": ["logits"],
        "text-in-graph": ["logits", *answers],
    }
    assert outputs == expected[target]
    if target == "triton":
        config = (tmp_path / "out" / "tiny" / "config.pbtxt").read_text("utf-8")
        assert '"logits"' in config and "hidden" not in config


def files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())
