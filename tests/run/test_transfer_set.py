"""`distill run` with masked copies, a selection by the teacher, and last epochs without copies."""

import json
import shutil

import datasets
import numpy as np
import pytest

from distill.cli.main import main


@pytest.fixture(scope="module")
def masked_lm(job, tiny_masked_lm_folder):
    return tiny_masked_lm_folder(job.parent)


@pytest.fixture(scope="module")
def settings(masked_lm):
    """Every one of them on, and copies of the source `masked` alone."""
    changes = {
        "teacher.epochs": 1,
        "student.epochs": 3,
        "augment.noise": 0,
        "augment.neighbours": 0,
        "augment.mix": 0,
        "augment.masked": 1.0,
        "augment.masked_lm": masked_lm,
        "augment.masked_top": 4,
        "augment.keep": 0.6,
        "augment.balance": "true",
        "augment.until": 0.6,
    }
    return [word for key, value in changes.items() for word in ("--set", f"{key}={value}")]


@pytest.fixture(scope="module")
def chosen(job, settings, tmp_path_factory):
    """The folder of the small job run with them, up to the student."""
    run = tmp_path_factory.mktemp("chosen") / "run"
    assert main(["run", str(job), "--out", str(run), *settings, "--to", "fit_student"]) == 0
    return run


def figures(run, stage):
    return json.loads((run / "stages" / stage / "stage.json").read_text("utf-8"))["figures"]


def transfer(run):
    return datasets.load_from_disk(str(run / "stages" / "label" / "transfer"))


def texts(run, split):
    return list(datasets.load_from_disk(str(run / "stages" / "prepare" / split))["text"])


def test_copies_hold_words_that_the_model_filled_in(chosen, toy_corpus):
    from transformers import AutoTokenizer

    rows, train, unlabelled = transfer(chosen), texts(chosen, "train"), texts(chosen, "unlabeled")
    marks = np.array(rows["copy"])
    assert not marks[: len(train)].any() and not marks[-len(unlabelled) :].any()
    copies = list(np.array(rows["text"])[marks])
    assert len(copies) > 1.5 * len(train)
    vocabulary = AutoTokenizer.from_pretrained(chosen / "stages/fit_teacher").get_vocab()
    words = {tuple(text.split()) for text in train}
    for copy in copies[::20]:
        found = tuple(copy.split())
        closest = min(
            sum(a != b for a, b in zip(found, text, strict=True)) for text in words if len(text) == len(found)
        )
        assert 1 <= closest <= 2 and set(found) <= set(vocabulary)


def test_the_student_reads_what_was_kept(chosen):
    rows, train = transfer(chosen), texts(chosen, "train")
    kept, found = np.load(chosen / "stages/label/kept.npy", allow_pickle=False), figures(chosen, "label")
    assert kept[: len(train)].tolist() == list(range(len(train))) and (np.diff(kept) > 0).all()
    assert found["transfer_texts"] == len(rows)
    assert len(rows) - len(kept) == found["dropped_unsure"] + found["dropped_balanced"]
    assert found["dropped_unsure"] == pytest.approx(0.4 * (len(rows) - len(train)), abs=3)
    assert figures(chosen, "fit_student")["texts"] == len(kept)
    assert figures(chosen, "fit_student")["epochs"] == 3


def test_the_last_epochs_are_of_the_kept_rows_that_are_no_copies(
    job, settings, chosen, tmp_path, monkeypatch
):
    class Seen(Exception):
        pass

    def seen(network, train, *_, until, **__):
        raise Seen(train.clean, until)

    run = tmp_path / "run"
    shutil.copytree(chosen, run)
    monkeypatch.setattr("distill.stages.train.fit", seen)
    with pytest.raises(Seen) as caught:
        main(["run", str(job), "--out", str(run), *settings, "--from", "fit_student"])
    kept = np.load(chosen / "stages/label/kept.npy", allow_pickle=False)
    clean, until = caught.value.args
    assert until == 0.6 and 0 < len(clean) < len(kept)
    assert clean.tolist() == np.flatnonzero(~np.array(transfer(chosen)["copy"])[kept]).tolist()


def test_drawn_and_chosen_again_they_are_the_same(job, settings, chosen, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(chosen, run)
    again = ["run", str(job), "--out", str(run), *settings, "--from", "label", "--to", "label"]
    assert main(again) == 0
    assert transfer(run)[:] == transfer(chosen)[:]
    files = [folder / "stages" / "label" / "kept.npy" for folder in (run, chosen)]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_what_was_filled_before_a_kill_is_not_filled_again(job, settings, chosen, tmp_path, monkeypatch):
    from teachers.masked_words import MaskedWords

    class Killed(Exception):
        pass

    fill, calls = MaskedWords.fill, []

    def dying(self, texts):
        calls.append(len(texts))
        if len(calls) == 2:
            raise Killed
        return fill(self, texts)

    run = tmp_path / "run"
    shutil.copytree(chosen, run)
    monkeypatch.setattr(MaskedWords, "fill", dying)
    command = ["run", str(job), "--out", str(run), *settings, "--to", "label"]
    with pytest.raises(Killed):
        main([*command, "--from", "label"])
    assert not (run / "stages/label/transfer").exists()
    assert main(command) == 0
    assert len(calls) == 3 and calls[1] == calls[2]  # 480 texts in two parts
    assert transfer(run)[:] == transfer(chosen)[:]
    assert not (run / "stages/label/scratch").exists()


def test_other_weights_of_the_model_make_other_copies(
    job, settings, chosen, masked_lm, tiny_masked_lm_folder, tmp_path, capfd
):
    run, before = tmp_path / "run", masked_lm.with_name("before")
    shutil.copytree(chosen, run)
    shutil.copytree(masked_lm, before)
    tiny_masked_lm_folder(job.parent, seed=1)
    try:
        assert main(["run", str(job), "--out", str(run), *settings, "--to", "label"]) == 0
    finally:
        shutil.rmtree(masked_lm)
        before.rename(masked_lm)
    assert capfd.readouterr().err.count("done before") == 2
    assert transfer(run)["text"][:] != transfer(chosen)["text"][:]


def complaint(capfd, *arguments):
    assert main([*map(str, arguments)]) == 2
    printed = capfd.readouterr()
    assert "Traceback" not in printed.err
    (line,) = [line for line in printed.err.splitlines() if line.startswith("distill: ")]
    return line


def test_a_model_without_a_head_is_refused_before_a_copy_is_made(job, settings, chosen, tmp_path, capfd):
    run, encoder = tmp_path / "run", job.parent / "tiny-bert"
    shutil.copytree(chosen, run)
    change = ["--set", f"augment.masked_lm={encoder}", "--to", "label"]
    line = complaint(capfd, "run", job, "--out", run, *settings, *change)
    assert line.startswith(f"distill: {encoder}: is no masked-language model: its weights lack cls.")
    assert not (run / "stages" / "label" / "transfer").exists()


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ("augment.masked_lm=null", "augment: `masked` needs a masked-language model"),
        ("augment.masked_lm=./none", "./none: no such folder"),
        ("augment.masked_lm=package:no-such-words", "package:no-such-words: is not installed"),
        (f"augment.masked_sha256={'f' * 64}", "model.safetensors has sha256"),
        ("augment.keep=0", "augment.keep: must be > 0"),
        ("augment.until=0", "augment.until: must be > 0"),
        ("heads={flags: {column: flags, kind: multi_label, none: none}}", "needs a single_label head"),
    ],
)
def test_check_finds_what_cannot_be_done(job, settings, change, expected, capfd):
    assert expected in complaint(capfd, "check", job, *settings, "--set", change)


def test_check_passes_what_can_be_done(job, settings, capfd):
    assert main(["check", str(job), *settings]) == 0


def test_a_model_that_no_copy_needs_is_not_looked_for(job, settings, capfd):
    none = ["--set", "augment.masked_lm=./none", "--set", "augment.masked=0"]
    assert main(["check", str(job), *settings, *none]) == 0
