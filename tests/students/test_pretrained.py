"""Pretrained students are restored for their teacher and for teachers fine-tuned from it."""

from pathlib import Path
from typing import Any

import pytest
import torch

from students.factorized_embeddings import factorize, fold
from students.init_from_teacher import init_from_teacher
from students.pretrained import load_start, save_start
from students.pretrained_files import is_start, read_about
from students.shapes import Shape, build_encoder

IDS = torch.randint(1, 60, (2, 12), generator=torch.Generator().manual_seed(0))
SHAPE = Shape(1, 8, 2)


def encoder(shape: Shape, positions: int = 20, seed: int = 0) -> Any:
    torch.manual_seed(seed)
    return build_encoder(shape, vocabulary=60, positions=positions, pad=0).eval()


@pytest.fixture
def teacher() -> Any:
    return encoder(Shape(1, 16, 2), 40)


@pytest.fixture
def saved(teacher: Any, tmp_path: Path) -> tuple[Path, Any]:
    student = encoder(SHAPE)
    init_from_teacher(student, teacher)
    factorize(student, teacher)
    with torch.no_grad():
        for weight in student.parameters():
            weight.add_(0.1 * torch.randn_like(weight))
    save_start(tmp_path, student, {"teacher": "it"})
    return tmp_path, student


@torch.no_grad()
def test_save_and_load(saved: tuple[Path, Any], teacher: Any) -> None:
    folder, student = saved
    assert is_start(folder) and read_about(folder) == (SHAPE, {"shape": vars(SHAPE), "teacher": "it"})
    found = load_start(folder, teacher, positions=20, pad=0).eval()
    torch.testing.assert_close(found(IDS)[0], student(IDS)[0], atol=2e-2, rtol=0)  # float16
    fold(found)
    torch.testing.assert_close(found(IDS)[0], student(IDS)[0], atol=2e-2, rtol=0)


@pytest.mark.parametrize("positions", [12, 40])
@torch.no_grad()
def test_fewer_and_more_positions(saved: tuple[Path, Any], teacher: Any, positions: int) -> None:
    folder, student = saved
    found = load_start(folder, teacher, positions=positions, pad=0).eval()
    torch.testing.assert_close(found(IDS)[0], student(IDS)[0], atol=2e-2, rtol=0)
    assert len(found.embeddings.position_embeddings.weight) == positions


@torch.no_grad()
def test_word_embeddings_come_from_the_given_teacher(saved: tuple[Path, Any], teacher: Any) -> None:
    folder, student = saved
    teacher.get_input_embeddings().weight[7] += 1.0
    before, after = student.get_input_embeddings().folded(), load_start(folder, teacher, positions=20, pad=0)
    moved = (after.get_input_embeddings().folded().weight - before.weight).abs().sum(1)
    assert moved.argmax() == 7


def test_another_width_is_refused(saved: tuple[Path, Any]) -> None:
    with pytest.raises(ValueError, match="embeddings of its teacher 'it' have width 16, expected 32"):
        load_start(saved[0], encoder(Shape(1, 32, 2)), positions=20, pad=0)


def test_an_encoder_folder_is_not_a_pretrained_student(tmp_path: Path) -> None:
    encoder(SHAPE).save_pretrained(tmp_path)
    assert not is_start(tmp_path) and not is_start("google/bert_uncased_L-2_H-128_A-2")


@pytest.mark.parametrize(
    "file, content", [("start.json", b"{}"), ("start.json", b"{"), ("start.safetensors", b"x")]
)
def test_an_incomplete_pretrained_student(
    saved: tuple[Path, Any], teacher: Any, file: str, content: bytes
) -> None:
    (saved[0] / file).write_bytes(content)
    with pytest.raises(ValueError, match=r"student.start: .*pretrain it again"):
        load_start(saved[0], teacher, positions=20, pad=0)


def test_weights_that_do_not_match_the_shape(saved: tuple[Path, Any], teacher: Any) -> None:
    about = saved[0] / "start.json"
    about.write_text(about.read_text("utf-8").replace('"layers": 1', '"layers": 2'), "utf-8")
    with pytest.raises(ValueError, match="its weights do not match its shape"):
        load_start(saved[0], teacher, positions=20, pad=0)
