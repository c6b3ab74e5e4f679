from pathlib import Path

import pytest
import torch
from torch import nn

from distill.training import checkpoint
from distill.training.checkpoint import (
    DamagedFileError,
    TrainingState,
    load_checkpoint,
    load_tensors,
    save_checkpoint,
    save_tensors,
)


def made(fused: bool) -> tuple[nn.Module, torch.optim.Optimizer]:
    network = nn.Sequential(nn.Linear(4, 3), nn.LayerNorm(3), nn.Linear(3, 2))
    network[0].requires_grad_(False)  # a frozen part has no moments
    learning = [p for p in network.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in learning if p.ndim > 1], "weight_decay": 0.1},
        {"params": [p for p in learning if p.ndim < 2], "weight_decay": 0.0},
    ]
    return network, torch.optim.AdamW(groups, lr=0.05, fused=fused)


def steps(network: nn.Module, optimizer: torch.optim.Optimizer, count: int, first: int = 0) -> None:
    for number in range(first, first + count):
        torch.manual_seed(number)
        network(torch.randn(5, 4)).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)


@pytest.mark.parametrize("fused", [False, True])
def test_going_on_equals_not_having_stopped(tmp_path: Path, fused: bool) -> None:
    torch.manual_seed(0)
    network, optimizer = made(fused)
    steps(network, optimizer, 3)
    state = TrainingState(step=3, history=[{"mean": 0.5}], best=[float("-inf")], kept_epoch=1)
    save_checkpoint(tmp_path / "c.safetensors", network, optimizer, state)
    again, fresh = made(fused)
    assert load_checkpoint(tmp_path / "c.safetensors", again, fresh) == state
    for which in ((network, optimizer), (again, fresh)):
        steps(*which, 4, first=3)
    for name, value in network.state_dict().items():
        assert torch.equal(again.state_dict()[name], value), name


def test_a_checkpoint_of_other_texts_restores_nothing(tmp_path: Path) -> None:
    network, optimizer = made(False)
    steps(network, optimizer, 1)
    save_checkpoint(
        tmp_path / "c.safetensors", network, optimizer, TrainingState(step=1), {"counts": torch.ones(3)}
    )
    again, fresh = made(False)
    before = {name: value.clone() for name, value in again.state_dict().items()}
    with pytest.raises(DamagedFileError, match="is of other texts"):
        load_checkpoint(tmp_path / "c.safetensors", again, fresh, None, {"counts": torch.ones(4)})
    assert all(torch.equal(before[name], value) for name, value in again.state_dict().items())


def test_before_the_first_step_there_are_weights_alone(tmp_path: Path) -> None:
    network, optimizer = made(False)
    save_checkpoint(tmp_path / "c.safetensors", network, optimizer, TrainingState())
    tensors, about = load_tensors(tmp_path / "c.safetensors")
    assert about["step"] == 0 and set(tensors) == {f"model.{name}" for name in network.state_dict()}
    again, fresh = made(False)
    load_checkpoint(tmp_path / "c.safetensors", again, fresh)
    assert not fresh.state


def test_tensors_round_trip(tmp_path: Path) -> None:
    tensors = {"a": torch.randn(3, 4).T, "b": torch.tensor(2.0), "c": torch.arange(3, dtype=torch.int8)}
    save_tensors(tmp_path / "t.safetensors", tensors, {"epochs": [{"x": 0.1}], "name": "späte"})
    found, about = load_tensors(tmp_path / "t.safetensors")
    assert about == {"epochs": [{"x": 0.1}], "name": "späte"} and set(found) == set(tensors)
    assert all(torch.equal(found[name], value) for name, value in tensors.items())


def test_the_same_tensors_are_the_same_bytes(tmp_path: Path) -> None:
    for name in "abcdefgh":
        save_tensors(tmp_path / name, {"a": torch.ones(2), "b": torch.zeros(3)}, {"x": 1, "y": 2})
    assert len({(tmp_path / name).read_bytes() for name in "abcdefgh"}) == 1


def test_no_damage_is_read(tmp_path: Path) -> None:
    path = tmp_path / "t.safetensors"
    tensors = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.tensor(3)}
    save_tensors(path, tensors, {"step": 3})
    whole = path.read_bytes()
    damaged = [whole[:size] for size in range(0, len(whole), 7)]
    for bit in range(8 * len(whole)):
        flipped = bytearray(whole)
        flipped[bit // 8] ^= 1 << bit % 8
        damaged.append(bytes(flipped))
    refused = 0
    for content in damaged:
        path.write_bytes(content)
        try:
            found, about = load_tensors(path)
        except DamagedFileError as error:
            assert str(error).startswith(f"{path}: ") and len(str(error).splitlines()) == 1
            refused += 1
        else:  # a sign of the file's header that says nothing, such as white space
            assert about == {"step": 3} and all(torch.equal(found[k], tensors[k]) for k in tensors)
    assert refused > 0.99 * len(damaged)
    path.unlink()
    with pytest.raises(DamagedFileError):
        load_tensors(path)


@pytest.mark.parametrize("which", ["checkpoint", "kept"])
def test_a_damaged_checkpoint_restores_nothing(tmp_path: Path, which: str) -> None:
    network, optimizer = made(False)
    steps(network, optimizer, 1)
    save_checkpoint(tmp_path / "checkpoint", network, optimizer, TrainingState(step=1, kept_epoch=1))
    save_tensors(tmp_path / "kept", network.state_dict(), {})
    again, fresh = made(False)
    before = {name: value.clone() for name, value in again.state_dict().items()}
    (tmp_path / which).write_bytes((tmp_path / which).read_bytes()[:-1])
    with pytest.raises(DamagedFileError):
        load_checkpoint(tmp_path / "checkpoint", again, fresh, tmp_path / "kept")
    assert not fresh.state
    assert all(torch.equal(value, before[name]) for name, value in again.state_dict().items())


def test_a_write_that_fails_leaves_the_last_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "t.safetensors"
    save_tensors(path, {"a": torch.ones(2)}, {"step": 1})

    def half(_: object, to: Path, **__: object) -> None:
        to.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(checkpoint, "save_file", half)
    with pytest.raises(OSError, match="disk full"):
        save_tensors(path, {"a": torch.zeros(2)}, {"step": 2})
    assert load_tensors(path)[1] == {"step": 1}
    assert [file.name for file in tmp_path.iterdir()] == ["t.safetensors"]
