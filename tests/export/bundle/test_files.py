"""A bundle is read only if its files match its manifest."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from threading import active_count

import numpy as np
import pytest

from export.bundle import manifest as module
from export.bundle.files import opened_bundle, read_bundle, read_file, write_bundle
from export.bundle.manifest import FP32, INT8, MANIFEST, TOKENIZER, BundleError, Manifest
from export.runtime.classifier import Classifier
from export.runtime.tokenizer import CachedTokenizer

FILES = [MANIFEST, TOKENIZER, "config.json", FP32, INT8]


def rewrite(folder: Path, **changes: object) -> None:
    """Change top-level keys of a manifest and update its digest."""
    path = folder / MANIFEST
    data = {**json.loads(path.read_text("utf-8")), **changes}
    del data["digest"]
    digest = hashlib.sha256(json.dumps(data, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
    path.write_text(json.dumps({**data, "digest": digest}), "utf-8")


def siblings(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.parent.iterdir())


def dead_pid() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_read_returns_what_was_written(bundle: Path, manifest: Manifest, contents: dict[str, bytes]):
    found = read_bundle(bundle)
    assert found.files.keys() == contents.keys()
    assert all(found.files[name]["bytes"] == len(data) for name, data in contents.items())
    assert replace(found, files={}) == manifest
    assert read_bundle(str(bundle)) == found
    assert siblings(bundle) == ["bundle"]
    written = json.loads((bundle / MANIFEST).read_text("utf-8"))
    assert written["format_version"] == module.FORMAT_VERSION
    assert written["quality"] == {"intent": {"accuracy": 0.5}}
    assert "späte" in (bundle / MANIFEST).read_text("utf-8")


def test_files_are_copied(tmp_path: Path, manifest: Manifest, contents: dict[str, bytes]):
    source = tmp_path / "source.onnx"
    source.write_bytes(contents[FP32])
    written = write_bundle(tmp_path / "deep" / "bundle", manifest, {**contents, FP32: source})
    assert written == read_bundle(tmp_path / "deep" / "bundle")


def test_a_moved_and_reformatted_bundle_is_the_same(copied: Path, tmp_path: Path):
    expected = read_bundle(copied)
    path = copied / MANIFEST
    path.write_text(json.dumps(json.loads(path.read_text("utf-8")), sort_keys=True), "utf-8")
    assert read_bundle(copied.rename(tmp_path / "moved")) == expected


@pytest.mark.parametrize("name", FILES)
def test_a_flipped_byte(copied: Path, name: str):
    path = copied / name
    data = bytearray(path.read_bytes())
    for at in {0, len(data) // 3, len(data) // 2, len(data) - 2}:
        spoiled = bytearray(data)
        spoiled[at] ^= 1
        path.write_bytes(spoiled)
        with pytest.raises(BundleError, match=name):
            read_bundle(copied)
        with pytest.raises(BundleError, match=f"{name}: .*changed" if name != MANIFEST else name):
            Classifier.load(copied)


def test_a_flipped_byte_of_the_manifest(copied: Path):
    path = copied / MANIFEST
    data = path.read_bytes()
    places = [at for at, byte in enumerate(data) if not chr(byte).isspace()]
    for at in np.random.default_rng(0).choice(places, 200, replace=False):
        path.write_bytes(data[:at] + bytes([data[at] ^ 4]) + data[at + 1 :])
        with pytest.raises(BundleError, match=MANIFEST):
            read_bundle(copied)


@pytest.mark.parametrize("name", FILES)
def test_a_truncated_file(copied: Path, name: str):
    path = copied / name
    for keep in (0, path.stat().st_size // 2, path.stat().st_size - 2):
        path.write_bytes(path.read_bytes()[:keep])
        with pytest.raises(BundleError, match=name):
            read_bundle(copied)


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file(copied: Path, name: str):
    (copied / name).unlink()
    with pytest.raises(BundleError, match=f"{name}: is missing"):
        read_bundle(copied)
    (copied / name).mkdir()
    with pytest.raises(BundleError, match=f"{name}: cannot be read"):
        read_bundle(copied)


def linked(folder: Path) -> Path:
    """The bundle as a snapshot in a hub's cache: every file is a link to ../../blobs/DIGEST."""
    blobs, snapshot = (
        folder.parent / "models--me--tiny/blobs",
        folder.parent / "models--me--tiny/snapshots/abc",
    )
    blobs.mkdir(parents=True)
    for path in [path for path in folder.rglob("*") if path.is_file()]:
        name = path.relative_to(folder)
        blob = blobs / hashlib.sha256(path.read_bytes()).hexdigest()
        shutil.copyfile(path, blob)
        (snapshot / name).parent.mkdir(parents=True, exist_ok=True)
        (snapshot / name).symlink_to(Path(*[".."] * (len(name.parts) + 1), "blobs", blob.name))
    return snapshot


def test_a_snapshot_in_the_cache_of_a_hub(copied: Path, texts: list[str]):
    snapshot = linked(copied)
    assert read_bundle(snapshot) == read_bundle(copied)
    assert Classifier.load(snapshot)(texts) == Classifier.load(copied)(texts)


@pytest.mark.parametrize("name", FILES)
def test_a_link_to_other_content(copied: Path, name: str):
    snapshot = linked(copied)
    blob = (snapshot / name).resolve()
    data = blob.read_bytes()
    blob.write_bytes(data[:-9] + bytes([data[-9] ^ 1]) + data[-8:])
    for read in (read_bundle, Classifier.load):
        with pytest.raises(BundleError, match=f"{name}: changed"):
            read(snapshot)


def test_other_files_are_compared_while_the_block_runs(copied: Path, contents: dict[str, bytes]):
    """The error of the comparison replaces that of the block, which ends after the comparison."""
    with pytest.raises(RuntimeError), opened_bundle(copied, lambda manifest: ()):
        raise RuntimeError
    with opened_bundle(copied, lambda manifest: (FP32,)) as (manifest, found):
        assert manifest == read_bundle(copied)
        assert found == {FP32: contents[FP32]}
    (copied / FP32).write_bytes(b"?")
    threads = active_count()
    with pytest.raises(BundleError, match=f"{FP32}: changed"), opened_bundle(copied, lambda manifest: ()):
        raise RuntimeError
    with pytest.raises(BundleError, match=f"{FP32}: changed"):
        read_file(copied, manifest, FP32)
    assert active_count() == threads


def test_what_is_compared_is_what_is_loaded(copied: Path, monkeypatch: pytest.MonkeyPatch):
    """A file that is replaced after it was read does not change the classifier."""
    expected = Classifier.load(copied)("where is my parcel")

    def replace_files(*arguments: object) -> CachedTokenizer:
        (copied / TOKENIZER).write_bytes(b"{}")
        (copied / FP32).write_bytes(b"?")
        return CachedTokenizer(*arguments)

    monkeypatch.setattr("export.runtime.classifier.CachedTokenizer", replace_files)
    assert Classifier.load(copied)("where is my parcel") == expected


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs pipes")
@pytest.mark.parametrize("name", FILES)
def test_a_pipe_does_not_block(copied: Path, name: str):
    (copied / name).unlink()
    os.mkfifo(copied / name)
    for read in (read_bundle, Classifier.load):
        with pytest.raises(BundleError, match=f"{name}: cannot be read: it is not a file"):
            read(copied)


def test_links_inside_the_bundle_and_cycles(copied: Path):
    (copied / FP32).rename(copied / "onnx/real.onnx")
    (copied / FP32).symlink_to("real.onnx")
    read_bundle(copied)
    (copied / "onnx/real.onnx").unlink()
    (copied / "onnx/real.onnx").symlink_to("model.onnx")
    with pytest.raises(BundleError, match=FP32):
        read_bundle(copied)


def test_a_linked_folder_is_a_bundle(bundle: Path, tmp_path: Path):
    (tmp_path / "link").symlink_to(bundle)
    assert read_bundle(tmp_path / "link") == read_bundle(bundle)


def test_no_folder(tmp_path: Path):
    with pytest.raises(BundleError, match="nowhere: no such folder"):
        read_bundle(tmp_path / "nowhere")
    (tmp_path / "file").touch()
    with pytest.raises(BundleError, match="file: is a file, a bundle is a folder"):
        read_bundle(tmp_path / "file")


def test_a_newer_format(copied: Path):
    path = copied / MANIFEST
    data = {**json.loads(path.read_text("utf-8")), "format_version": 2, "heads": "otherwise"}
    path.write_text(json.dumps(data), "utf-8")
    with pytest.raises(BundleError, match="upgrade tinyheads"):
        read_bundle(copied)


HEAD = {"name": "intent", "kind": "single_label", "labels": ["a", "b"], "output": "logits_intent"}
MULTI = {**HEAD, "kind": "multi_label"}
RULE = {"score": "probability", "threshold": 0.9}


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"format_version": 0}, "format_version 0"),
        ({"format_version": True}, "format_version: must be of type int"),
        ({"format_version": None}, "format_version: must be of type int, got None"),
        ({"name": 3}, "name: must be of type str"),
        ({"heads": []}, "one or more"),
        ({"heads": {}}, "heads: must be of type list"),
        ({"heads": ["intent"]}, "heads: must be an object"),
        ({"heads": [HEAD, HEAD]}, "its own name"),
        ({"heads": [HEAD, {**HEAD, "name": "other"}]}, "its own output"),
        ({"heads": [{**HEAD, "name": ""}]}, "name and output: must be text"),
        ({"heads": [{**HEAD, "kind": "span"}]}, "kind: must be one of .*, got 'span'"),
        ({"heads": [{**HEAD, "labels": []}]}, "labels: must be unique"),
        ({"heads": [{**HEAD, "labels": ["a", "a"]}]}, "labels: must be unique"),
        ({"heads": [{**HEAD, "labels": ["a", ["b"]]}]}, "labels: must be unique"),
        (
            {"heads": [{**HEAD, "temperature": 0}]},
            "temperature: must be a number from 0.001 to 1000",
        ),
        ({"heads": [{**HEAD, "temperature": "1"}]}, "temperature"),
        ({"heads": [{**HEAD, "temperature": None}]}, "temperature"),
        ({"heads": [{**HEAD, "thresholds": [0.5, 0.5]}]}, "of a multi_label head"),
        ({"heads": [{**MULTI, "thresholds": [0.5]}]}, "must be 2 numbers"),
        ({"heads": [{**MULTI, "thresholds": [0.5, "x"]}]}, "must be 2 numbers"),
        ({"heads": [{**MULTI, "thresholds": 0.5}]}, "must be 2 numbers"),
        ({"heads": [{**HEAD, "label_type": "int"}]}, "label_type: must be string or integer, got 'int'"),
        ({"heads": [{**HEAD, "label_type": ["string"]}]}, "label_type: must be string or integer"),
        ({"heads": [{**HEAD, "label_type": "integer"}]}, "labels: must be whole numbers"),
        ({"heads": [{**HEAD, "labels": ["1", "01"], "label_type": "integer"}]}, "must be whole numbers"),
        ({"heads": [{**HEAD, "labels": ["1" * 16], "label_type": "integer"}]}, "at most 15 digits"),
        ({"heads": [{**HEAD, "temperature": 1e-320}]}, "temperature: must be a number from 0.001 to 1000"),
        ({"heads": [{**HEAD, "temperature": 1e300}]}, "temperature"),
        ({"heads": [{**HEAD, "temperature": True}]}, "temperature"),
        ({"heads": [{**HEAD, "temperature": 10**400}]}, "temperature"),
        ({"heads": [{**HEAD, "temperature": float("nan")}]}, "UTF-8 and finite numbers"),
        ({"quality": float("inf")}, "UTF-8 and finite numbers"),
        ({"quality": {"a": [float("nan")]}}, "UTF-8 and finite numbers"),
        ({"quality": "\ud800"}, "UTF-8 and finite numbers"),
        ({"quality": {"\udfff": 1}}, "UTF-8 and finite numbers"),
        ({"heads": [{**HEAD, "labels": ["a", "b\udc00"]}]}, "UTF-8 and finite numbers"),
        (
            {"heads": [{**HEAD, "labels": ["a", "b\n"]}]},
            "labels: .* without line breaks and control characters",
        ),
        ({"heads": [{**HEAD, "labels": ["a", "\x1b[31mb"]}]}, "control characters"),
        ({"heads": [{**HEAD, "labels": ["a", "b\x85"]}]}, "control characters"),
        ({"heads": [{**HEAD, "labels": ["a", "\u2028"]}]}, "control characters"),
        ({"heads": [{**HEAD, "labels": ["a", ""]}]}, "labels: "),
        ({"heads": [{**HEAD, "name": "a\x00"}]}, "name and output: must be text"),
        ({"heads": [{**HEAD, "output": "a\r"}]}, "name and output: must be text"),
        ({"heads": [{**HEAD, "output": ""}]}, "name and output: must be text"),
        ({"heads": [{**HEAD, "abstain": 0.5}]}, "abstain: must be an object, got 0.5"),
        ({"heads": [{**HEAD, "abstain": {"score": "margin", "threshold": 1}}]}, "score: must be one of"),
        ({"heads": [{**HEAD, "abstain": {"threshold": 1}}]}, "abstain: score: must be of type str"),
        ({"heads": [{**HEAD, "abstain": {"score": "probability"}}]}, "threshold: must be a number.*None"),
        (
            {"heads": [{**HEAD, "abstain": {**RULE, "threshold": 1.1}}]},
            "threshold: must be a number from 0 to",
        ),
        ({"heads": [{**HEAD, "abstain": {**RULE, "threshold": True}}]}, "threshold: must be a number"),
        (
            {"heads": [{**HEAD, "abstain": {**RULE, "score": "energy", "threshold": "3"}}]},
            "threshold: must be",
        ),
        (
            {"heads": [{**HEAD, "abstain": {**RULE, "accuracy": 98}}]},
            "accuracy: must be a number from 0 to 1",
        ),
        ({"heads": [{**HEAD, "abstain": {**RULE, "coverage": "x"}}]}, "coverage: must be a number from 0 to"),
        ({"heads": [{**MULTI, "abstain": RULE}]}, "abstain: must be of a single_label head"),
        ({"heads": [{**MULTI, "thresholds": [0.5, 1.5]}]}, "from 0 to 1"),
        ({"heads": [{**MULTI, "thresholds": [0.5, -1e-9]}]}, "from 0 to 1"),
        ({"heads": [{**MULTI, "thresholds": [0.5, True]}]}, "from 0 to 1"),
        ({"name": "a\nb"}, "name: must be text"),
        ({"name": ""}, "name: must be text"),
        ({"format_version": 10**30}, "upgrade tinyheads"),
        ({"max_length": 8193}, "max_length: must be from 1 to 8192, got 8193"),
        ({"max_length": 2**63}, "max_length: must be from 1 to 8192"),
        ({"max_length": True}, "max_length: must be of type int"),
        ({"pad_token_id": 2**31}, "pad_token_id: must be from 0 to 2147483647"),
        ({"files": {TOKENIZER: {"sha256": "0" * 64, "bytes": -1}}}, "must have bytes >= 0 and a sha256"),
        ({"files": {TOKENIZER: {"sha256": "a\nb", "bytes": 1}}}, "must have bytes >= 0 and a sha256"),
        (
            {"files": {TOKENIZER: {"sha256": "0" * 64, "bytes": 2**32 + 1}}},
            "must be at most 4,294,967,296 bytes",
        ),
        ({"files": {TOKENIZER: {"sha256": "0" * 64, "bytes": True}}}, "bytes: must be of type int"),
        ({"max_length": 0}, "max_length: must be from 1 to 8192, got 0"),
        ({"max_length": 12.0}, "max_length: must be of type int"),
        ({"pad_token_id": -1}, "pad_token_id: must be from 0 to"),
        ({"files": {}}, "files: must contain"),
        ({"files": {TOKENIZER: 1}}, "must be an object"),
        ({"files": {TOKENIZER: {"sha256": 1, "bytes": 1}}}, "sha256: must be of type str"),
        ({"variants": {"fp32": "onnx/other.onnx"}}, "onnx/other.onnx"),
        ({"variants": {"fp32": ["onnx/model.onnx"]}}, "files: must contain"),
        ({"variants": {}}, "default_variant: must be one of .*, got 'fp32'"),
        ({"default_variant": "int4"}, "default_variant: must be one of .*, got 'int4'"),
    ],
)
def test_a_manifest_of_the_wrong_shape(copied: Path, changes: dict[str, object], problem: str):
    rewrite(copied, **changes)
    with pytest.raises(BundleError, match=problem) as caught:
        read_bundle(copied)
    assert str(caught.value).startswith(str(copied / MANIFEST))


def nested(depth: int) -> object:
    value: object = 1
    for _ in range(depth):
        value = [value]
    return value


def test_nesting(copied: Path):
    rewrite(copied, quality=nested(62))
    version = read_bundle(copied).to_json()["digest"]
    assert version == json.loads((copied / MANIFEST).read_text("utf-8"))["digest"]
    for depth in (63, 500, 900):
        rewrite(copied, quality=nested(depth))
        with pytest.raises(BundleError, match="must be nested at most 64 deep"):
            read_bundle(copied)


def test_a_repeated_key(copied: Path):
    path = copied / MANIFEST
    for key in ("heads", "name", "sha256"):
        text = path.read_text("utf-8")
        path.write_text(text.replace(f'"{key}":', f'"{key}": 1, "{key}":', 1), "utf-8")
        with pytest.raises(BundleError, match=f"must be JSON: key {key!r} is repeated"):
            read_bundle(copied)
        path.write_text(text, "utf-8")


@pytest.mark.parametrize("what", ["keys", "name", "variants"])
def test_a_manifest_costs_no_more_than_its_size(copied: Path, what: str):
    files = read_bundle(copied).files
    if what == "keys":
        keys = ", ".join(f'"k{i}": 0' for i in range(100_000))
        (copied / MANIFEST).write_text(f'{{{keys}, "k99999": 1}}')
    elif what == "name":
        rewrite(copied, files={**files, "a/" * 20_000 + "b": files[FP32]})
    else:
        rewrite(copied, variants={f"v{i}": FP32 for i in range(100_000)}, default_variant="x")
    with pytest.raises(BundleError) as error:
        read_bundle(copied)
    assert len(str(error.value)) < 400 + len(str(copied))


def test_a_huge_manifest_is_not_read(copied: Path):
    with (copied / MANIFEST).open("ab") as file:
        file.truncate(100_000_000)
    with pytest.raises(BundleError, match=f"{MANIFEST}: changed: 100000000 bytes, expected at most 16777216"):
        Classifier.load(copied)


def test_a_huge_file_is_not_read(copied: Path):
    with (copied / FP32).open("ab") as file:
        file.truncate(1 << 40)
    with pytest.raises(BundleError, match=f"{FP32}: changed: 1099511627776 bytes"):
        Classifier.load(copied)


@pytest.mark.parametrize("device", ["/dev/zero", "/dev/stdin", "/proc/self/mem", "/dev/full"])
@pytest.mark.skipif(sys.platform != "linux", reason="needs devices")
def test_a_link_to_a_device(copied: Path, device: str):
    for name in (MANIFEST, TOKENIZER):
        shutil.copyfile(copied / name, copied / "kept")
        (copied / name).unlink()
        (copied / name).symlink_to(device)
        with pytest.raises(BundleError, match=f"{name}: (cannot be read|changed|must be JSON)"):
            Classifier.load(copied)
        (copied / name).unlink()
        (copied / "kept").rename(copied / name)


@pytest.mark.parametrize(
    "names",
    [
        ("onnx/Model.onnx",),
        ("Manifest.json",),
        ("a", "a/b"),
        ("a/b", "A"),
        ("x.txt", "X.txt"),
    ],
)
def test_names_that_are_one_file_elsewhere(
    copied: Path, tmp_path: Path, manifest: Manifest, contents: dict[str, bytes], names: tuple[str, ...]
):
    """On a file system that ignores case, or where a file would be a folder."""
    record = {"sha256": "0" * 64, "bytes": 1}
    rewrite(copied, files={**read_bundle(copied).files, **dict.fromkeys(names, record)})
    with pytest.raises(BundleError, match="must differ in more than case"):
        read_bundle(copied)
    with pytest.raises(BundleError, match="must differ in more than case"):
        write_bundle(tmp_path / "new", manifest, {**contents, **dict.fromkeys(names, b"x")})


@pytest.mark.parametrize("text", ["[]", "null", "{", "[" * 100_000, '{"a": ' + "9" * 5000 + "}"])
def test_a_manifest_that_is_not_an_object(copied: Path, text: str):
    (copied / MANIFEST).write_text(text)
    with pytest.raises(BundleError, match=MANIFEST):
        read_bundle(copied)


BAD_NAMES = ["/etc/passwd", "../x", "a/../../x", "a\\b", "C:/x", "./a", "a//b", "a/", "", "."]


@pytest.mark.parametrize("name", BAD_NAMES)
def test_a_path_outside_the_bundle(
    copied: Path, tmp_path: Path, manifest: Manifest, contents: dict[str, bytes], name: str
):
    record = {"sha256": "0" * 64, "bytes": 1}
    rewrite(copied, files={**read_bundle(copied).files, name: record})
    with pytest.raises(BundleError, match="relative path"):
        read_bundle(copied)
    with pytest.raises(BundleError, match="relative path"):
        write_bundle(tmp_path / "new", manifest, {**contents, name: b"x"})
    assert siblings(copied) == ["bundle"]


@pytest.mark.parametrize("name", ["nul\x00", "half\ud800", "x" * 300])
def test_an_invalid_file_name(copied: Path, name: str):
    rewrite(copied, files={**read_bundle(copied).files, name: {"sha256": "0" * 64, "bytes": 1}})
    with pytest.raises(BundleError):
        read_bundle(copied)


def test_an_older_bundle_is_replaced(copied: Path, manifest: Manifest, contents: dict[str, bytes]):
    (copied / "note.txt").write_text("of the older one")
    write_bundle(copied, replace(manifest, name="newer"), contents)
    assert read_bundle(copied).name == "newer"
    assert not (copied / "note.txt").exists()
    assert siblings(copied) == ["bundle"]


def test_a_failure_leaves_the_older_bundle(
    copied: Path,
    manifest: Manifest,
    contents: dict[str, bytes],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    before = read_bundle(copied)

    def check() -> None:
        assert read_bundle(copied) == before
        assert siblings(copied) == ["bundle"]

    with pytest.raises(FileNotFoundError):
        write_bundle(copied, manifest, {**contents, "last": tmp_path / "nowhere"})
    check()
    with pytest.raises(BundleError, match="files: must contain"):
        write_bundle(copied, manifest, {FP32: contents[FP32], INT8: contents[INT8]})
    check()
    with pytest.raises(BundleError, match="one or more"):
        write_bundle(copied, replace(manifest, heads=()), contents)
    check()
    with pytest.raises(BundleError, match="must be JSON"):
        write_bundle(copied, replace(manifest, details={"quality": float("nan")}), contents)
    check()
    with pytest.raises(BundleError, match="must be JSON"):
        write_bundle(copied, replace(manifest, details={"quality": object()}), contents)
    check()
    with pytest.raises(BundleError, match="are keys of the manifest"):
        write_bundle(copied, replace(manifest, details={"files": {}}), contents)
    check()

    rename = Path.rename

    def fail(self: Path, target: Path) -> Path:
        if ".tmp-" in self.name:
            raise KeyboardInterrupt
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fail)
    with pytest.raises(KeyboardInterrupt):
        write_bundle(copied, manifest, contents)
    check()


def test_other_folders_are_not_replaced(tmp_path: Path, manifest: Manifest, contents: dict[str, bytes]):
    (tmp_path / "home").mkdir()
    write_bundle(tmp_path / "home", manifest, contents)
    shutil.rmtree(tmp_path / "home")
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.txt").write_text("years of work")
    with pytest.raises(BundleError, match="home: is not a bundle"):
        write_bundle(tmp_path / "home", manifest, contents)
    with pytest.raises(BundleError, match="is not a bundle"):
        write_bundle(tmp_path / "home" / "thesis.txt", manifest, contents)
    assert (tmp_path / "home" / "thesis.txt").read_text() == "years of work"


def test_leftovers_of_killed_processes_are_removed(
    copied: Path, manifest: Manifest, contents: dict[str, bytes]
):
    dead, alive = dead_pid(), os.getppid()
    for name in (f".bundle.tmp-{dead}", f".bundle.old-{dead}", f".bundle.tmp-{alive}", ".other-1"):
        shutil.copytree(copied, copied.parent / name)
    write_bundle(copied, manifest, contents)
    assert siblings(copied) == sorted([f".bundle.tmp-{alive}", ".other-1", "bundle"])


def test_killed_between_the_two_renames(copied: Path, manifest: Manifest, contents: dict[str, bytes]):
    copied.rename(copied.parent / f".bundle.old-{dead_pid()}")
    with pytest.raises(BundleError):
        write_bundle(copied, replace(manifest, heads=()), contents)
    assert read_bundle(copied).name == "tiny"
    assert siblings(copied) == ["bundle"]


def test_killed_while_writing(copied: Path, manifest: Manifest, contents: dict[str, bytes]):
    code = (
        "import os, sys; from pathlib import Path; from export.bundle import files as bundle\n"
        "class Kill(dict):\n"
        "    def items(self):\n"
        "        yield 'half.bin', b'x' * 10\n"
        "        os._exit(9)\n"
        "bundle.write_bundle(Path(sys.argv[1]), None, Kill())\n"
    )
    root = Path(module.__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", code, str(copied)], cwd=root, check=False)
    assert done.returncode == 9
    assert len(siblings(copied)) == 2
    read_bundle(copied)
    write_bundle(copied, manifest, contents)
    assert siblings(copied) == ["bundle"]
