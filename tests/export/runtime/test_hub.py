"""Bundles pushed to a local hub, and loaded from it, by the client and the command that users have."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from export.bundle.files import write_bundle
from export.bundle.manifest import MANIFEST
from tests.fake_hub import FakeHub

ROOT = Path(__file__).parents[3]
NAME = "me/tiny"
PUSH = "from tinyheads import Classifier\nprint(Classifier.load('published').push_to_hub('me/tiny'{}))"


@pytest.fixture
def hub():
    with FakeHub() as hub:
        yield hub


@pytest.fixture
def published(tmp_path, manifest, contents) -> Path:
    """A bundle with a model card, as a run publishes it."""
    card = b"---\nlicense: mit\n---\n# tiny\n"
    write_bundle(tmp_path / "published", manifest, {**contents, "README.md": card})
    return tmp_path / "published"


@pytest.fixture
def call(hub, tmp_path):
    """A function that runs Python or the command as a client of the hub; it returns code, stdout, stderr."""

    def run(*words, code=None, token="hf_test", **variables) -> tuple[int, str, str]:
        command = ["-c", code] if code else ["-m", "distill.cli.main", *map(str, words)]
        environment = {**os.environ, "PYTHONPATH": str(ROOT), **hub.environment(tmp_path / "home", token)}
        done = subprocess.run(
            [sys.executable, *command],
            cwd=tmp_path,
            env={**environment, **variables},
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
        return done.returncode, done.stdout, done.stderr

    return run


def one_line(result: tuple[int, str, str]) -> str:
    code, out, err = result
    lines = [line for line in err.splitlines() if line.startswith("distill: ")]
    assert code == 2 and out == "" and len(lines) == 1 and "Traceback" not in err, (out, err)
    return lines[0]


def test_a_bundle_is_pushed_and_loaded_by_revision(hub, published, call, classifier) -> None:
    code, out, err = call(code=PUSH.format(""))
    assert code == 0, err
    first = hub.repositories[NAME]["branches"]["main"]
    assert out.strip() == f"{hub.url}/{NAME}/commit/{first}"
    files = {path.relative_to(published).as_posix() for path in published.rglob("*") if path.is_file()}
    assert {*hub.tree(NAME)} - {".gitattributes"} == files
    assert all(hub.tree(NAME)[name] == (published / name).read_bytes() for name in files)
    assert hub.messages == ["initial commit", "Push me/tiny"]

    manifest = json.loads((published / MANIFEST).read_text("utf-8"))
    assert call(code=PUSH.format(", revision='second', commit_message='Again'"))[0] == 0
    assert hub.messages[-1] == "Again" and hub.repositories[NAME]["branches"]["main"] == first
    hub.repositories[NAME]["branches"]["second"] = hub.commit(NAME, "second", {"a": b"no bundle"})
    load = "from tinyheads import Classifier\nprint(Classifier.from_pretrained('me/tiny'{})('thanks'))"
    for revision in ("", f", revision='{first}'", ", revision='main'"):
        code, out, err = call(code=load.format(revision))
        assert (code, out.strip()) == (0, str(classifier("thanks"))), err
    assert manifest["name"] == "tiny"
    for revision in ("second", "third"):
        code, _, err = call(code=load.format(f", revision='{revision}'"))
        assert code == 1 and err.splitlines()[-1].startswith("export.bundle.manifest.BundleError: me/tiny")


def test_the_command_pushes_a_private_bundle(hub, published, call) -> None:
    code, out, err = call("push", published, NAME, "--private", "--revision", "v1", "--message", "First")
    assert code == 0 and hub.repositories[NAME]["private"], err
    commit = hub.repositories[NAME]["branches"]["v1"]
    assert out.strip() == f"{hub.url}/{NAME}/commit/{commit}" and hub.messages[-1] == "First"
    assert {*hub.tree(NAME)} == {".gitattributes"} and MANIFEST in hub.tree(NAME, "v1")
    code, out, err = call("push", published, NAME, "--json", "--quiet")
    assert (code, err) == (0, "") and json.loads(out)["url"].startswith(f"{hub.url}/{NAME}/commit/")


def test_a_private_bundle_is_not_pushed_to_a_public_repository(hub, published, call) -> None:
    assert call("push", published, NAME)[0] == 0
    commits = dict(hub.commits)
    assert "the repository is public, expected a private one" in one_line(
        call("push", published, NAME, "--private")
    )
    assert hub.commits == commits


@pytest.mark.parametrize(
    ("fault", "status", "todo"),
    [
        (("POST", "/api/repos/create"), 401, "log in with `hf auth login`, or set HF_TOKEN"),
        (("POST", "/preupload/"), 403, "use a token that may write to this repository"),
        (("POST", "/commit/"), 403, "use a token that may write to this repository"),
        (("POST", "/commit/"), 404, "check the name, and that your token may see the repository"),
        (("POST", "/commit/"), 409, "another commit came first: push again"),
        (("POST", "/objects/batch"), 500, "check the name and the network, then push again"),
        (("POST", "/objects/batch"), 0, "check the name and the network, then push again"),
        (("POST", "/commit/"), 0, "check the name and the network, then push again"),
    ],
)
def test_a_push_that_fails_leaves_nothing_half_written(hub, published, call, fault, status, todo) -> None:
    hub.faults[fault] = status
    line = one_line(call("push", published, NAME))
    assert line.startswith(f"distill: {NAME}: nothing is pushed: ") and line.endswith(f"({todo})")
    assert all({*tree} <= {".gitattributes"} for tree in hub.commits.values()) and "hf_test" not in line
    assert call("push", published, NAME)[0] == 0 and MANIFEST in hub.tree(NAME)


def test_a_dropped_upload_is_sent_again(hub, published, call) -> None:
    hub.faults["PUT", "/lfs/"] = 0
    code, _, err = call("push", published, NAME)
    assert code == 0 and MANIFEST in hub.tree(NAME), err


@pytest.mark.parametrize(
    ("name", "token", "variables", "problem"),
    [
        (NAME, None, {}, "log in with `hf auth login`"),
        (NAME, "hf_wrong", {}, "log in with `hf auth login`"),
        ("a b/c", "hf_test", {}, "nothing is pushed: Repo id must"),
        (NAME, "hf_test", {"HF_HUB_OFFLINE": "1"}, "HF_HUB_OFFLINE"),
        (NAME, "hf_test", {"HF_ENDPOINT": "http://127.0.0.1:9"}, "check the name and the network"),
    ],
)
def test_what_no_hub_takes(hub, published, call, name, token, variables, problem) -> None:
    line = one_line(call("push", published, name, token=token, **variables))
    assert problem in line and "hf_" not in line.replace("hf_hub", "") and not hub.commits


def test_what_is_no_published_bundle_is_not_pushed(hub, published, bundle, call, tmp_path) -> None:
    assert "has no model card, so no run has published it" in one_line(call("push", bundle, NAME))
    graph = published / "onnx/model.onnx"
    graph.write_bytes(graph.read_bytes()[:-1] + b"?")
    assert "model.onnx: changed" in one_line(call("push", published, NAME))
    graph.unlink()
    assert "model.onnx: is missing" in one_line(call("push", published, NAME))
    assert "no such folder" in one_line(call("push", tmp_path / "none", NAME))
    assert "--teacher: " in one_line(call("push", published, NAME, "--teacher"))
    shutil.rmtree(published / "onnx")
    assert not hub.requests and not hub.commits


def test_a_download_that_breaks_off_is_one_line_and_goes_on(hub, published, call) -> None:
    assert call("push", published, NAME)[0] == 0
    load = "from tinyheads import Classifier\nClassifier.from_pretrained('me/tiny')"
    hub.faults["GET", "tokenizer.json"] = 403
    code, _, err = call(code=load)
    assert code == 1 and "BundleError: me/tiny: is no folder, and the hub does not give it" in err
    assert call(code=load)[0] == 0


def test_a_model_card_that_is_edited_on_the_hub_changes_nothing(hub, published, call) -> None:
    assert call("push", published, NAME)[0] == 0
    hub.commit(NAME, "main", {**hub.tree(NAME), "README.md": b"# better words"})
    load = "from tinyheads import Classifier\nClassifier.from_pretrained('me/tiny')"
    code, _, err = call(code=load)
    assert code == 0, err
    graph = {"onnx/model.onnx": b"?"}
    hub.commit(NAME, "main", {**hub.tree(NAME), **graph})
    code, _, err = call(code=load)
    assert code == 1 and "model.onnx: changed" in err


def test_a_private_repository_needs_the_token(hub, published, call) -> None:
    assert call("push", published, NAME, "--private")[0] == 0
    load = "from tinyheads import Classifier\nClassifier.from_pretrained('me/tiny')"
    code, _, err = call(code=load, token=None)
    assert code == 1 and "BundleError: me/tiny" in err
    assert call(code=load)[0] == 0


def test_pushing_needs_no_extra(hub, published, run_blocked, tmp_path, monkeypatch) -> None:
    for name, value in hub.environment(tmp_path / "home").items():
        monkeypatch.setenv(name, value)
    with_tqdm = "del sys.modules['tqdm']\n"  # which comes with the hub's client
    done = run_blocked(with_tqdm + PUSH.format(""), tmp_path)
    assert done.returncode == 0 and MANIFEST in hub.tree(NAME), done.stderr
