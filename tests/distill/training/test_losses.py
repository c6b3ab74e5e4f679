from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from distill.heads import UNKNOWN, UNLABELLED, Head
from distill.training.losses import distillation_loss, hard_loss, total_loss

ROWS, CLASSES, LABELS = 7, 4, 3
TEMPERATURES = [0.5, 1.0, 2.0, 4.0]
INTENT = Head("intent", "single_label", ("a", "b", "c", "d"))
FLAGS = Head("flags", "multi_label", ("x", "y", "z"))


def logits(width: int = CLASSES, seed: int = 0, scale: float = 2.0) -> torch.Tensor:
    return scale * torch.randn(ROWS, width, generator=torch.Generator().manual_seed(seed))


def classes() -> torch.Tensor:
    return torch.tensor([0, 1, 2, 3, UNLABELLED, 1, UNLABELLED])


def flags() -> torch.Tensor:
    labels = torch.tensor([[0, 1, 1]] * 3 + [[1, 0, 0]] * 4, dtype=torch.int8)
    labels[5] = UNKNOWN
    return labels


def softmax(z: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.exp(z) / np.exp(z).sum(-1, keepdims=True)


def sigmoid(z: NDArray[np.float64]) -> NDArray[np.float64]:
    return 1 / (1 + np.exp(-z))


# hard loss


def test_hard_loss_of_classes_is_the_naive_mean_over_labelled_rows() -> None:
    z, y = logits(), classes()
    p = softmax(z.double().numpy())
    naive = np.mean([-np.log(p[i, k]) for i, k in enumerate(y.tolist()) if k != UNLABELLED])
    assert hard_loss(z, y, "single_label").item() == pytest.approx(naive, rel=1e-5)
    assert torch.equal(hard_loss(z, y, "single_label"), F.cross_entropy(z, y))


def test_class_weights_of_classes_are_those_of_torch() -> None:
    z, y, weights = logits(), classes(), torch.tensor([0.5, 1.0, 3.0, 2.0])
    known = (y != UNLABELLED).sum()
    expected = F.cross_entropy(z, y, weight=weights, reduction="sum") / known
    assert hard_loss(z, y, "single_label", weights).item() == pytest.approx(expected.item())
    mean = F.cross_entropy(z, y, weight=weights) * weights[y[y != UNLABELLED]].mean()
    assert expected.item() == pytest.approx(mean.item()), "torch divides by the weights, this by the texts"
    assert torch.equal(hard_loss(z, y, "single_label", torch.ones(CLASSES)), hard_loss(z, y, "single_label"))


def test_class_weights_of_flags_are_torchs_pos_weight() -> None:
    z, y, weights = logits(LABELS), flags(), torch.tensor([0.5, 1.0, 9.0])
    rows = y[:, 0] != UNKNOWN
    each = F.binary_cross_entropy_with_logits(
        z[rows], y[rows].float(), pos_weight=weights, reduction="none"
    ).sum(-1)
    assert hard_loss(z, y, "multi_label", weights).item() == pytest.approx(each.mean().item())


def test_a_heads_class_weights_weigh_its_hard_loss_alone() -> None:
    z, hard = logits(CLASSES + LABELS), {"intent": classes(), "flags": flags()}
    soft = {"intent": logits(), "flags": logits(LABELS, 1)}
    weighted = (replace(INTENT, class_weights=(9.0, 1, 1, 1)), replace(FLAGS, class_weights=(5.0, 1, 1)))
    _, plain = total_loss(z, hard, soft, (INTENT, FLAGS), soft_weight=0.5)
    _, found = total_loss(z, hard, soft, weighted, soft_weight=0.5)
    for head, part in (("intent", z[:, :CLASSES]), ("flags", z[:, CLASSES:])):
        kind = "single_label" if head == "intent" else "multi_label"
        weights = torch.tensor({"intent": [9.0, 1, 1, 1], "flags": [5.0, 1, 1]}[head])
        assert torch.equal(found[f"{head}/hard"], hard_loss(part, hard[head], kind, weights))
        assert found[f"{head}/hard"] != plain[f"{head}/hard"]
        assert found[f"{head}/distillation"] == plain[f"{head}/distillation"]


def test_hard_loss_of_flags_is_the_naive_sum_of_a_row() -> None:
    z, y = logits(LABELS), flags()
    p = sigmoid(z.double().numpy())
    cells = [
        -np.log(p[i, j] if y[i, j] == 1 else 1 - p[i, j])
        for i in range(ROWS)
        for j in range(LABELS)
        if y[i, j] != UNKNOWN
    ]
    found = hard_loss(z, y, "multi_label")
    known = (y != UNKNOWN).all(-1)
    assert found.item() == pytest.approx(np.sum(cells) / known.sum().item(), rel=1e-5)
    mean = F.binary_cross_entropy(z[known].sigmoid(), y[known].float())
    torch.testing.assert_close(found, LABELS * mean, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", ["single_label", "multi_label"])
def test_hard_loss_is_zero_without_labels(kind: str) -> None:
    z = logits(LABELS).requires_grad_()
    y = torch.full((ROWS,), UNLABELLED) if kind == "single_label" else torch.full((ROWS, LABELS), UNKNOWN)
    loss = hard_loss(z, y, kind)  # type: ignore[arg-type]
    loss.backward()
    assert loss.item() == 0 and z.grad is not None and torch.equal(z.grad, torch.zeros_like(z))


def test_unlabelled_rows_get_no_gradient() -> None:
    z = logits().requires_grad_()
    hard_loss(z, classes(), "single_label").backward()
    assert z.grad is not None and (z.grad.abs().sum(-1) > 0).tolist() == (classes() >= 0).tolist()


# distillation loss


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_kl_of_classes(temperature: float) -> None:
    s, t = logits(seed=1), logits(seed=2)
    p, q = (softmax(z.double().numpy() / temperature) for z in (t, s))
    naive = temperature**2 * np.mean([sum(a * np.log(a / b)) for a, b in zip(p, q, strict=True)])
    found = distillation_loss(s, t, "single_label", temperature=temperature)
    assert found.item() == pytest.approx(naive, rel=1e-4)
    theirs = F.kl_div(
        (s / temperature).log_softmax(-1),
        (t / temperature).log_softmax(-1),
        log_target=True,
        reduction="batchmean",
    )
    torch.testing.assert_close(found, temperature**2 * theirs)


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_kl_of_flags(temperature: float) -> None:
    s, t = logits(LABELS, 1), logits(LABELS, 2)
    p, q = (sigmoid(z.double().numpy() / temperature) for z in (t, s))
    naive = p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q))
    found = distillation_loss(s, t, "multi_label", temperature=temperature)
    assert found.item() == pytest.approx(temperature**2 * naive.sum(-1).mean(), rel=1e-4)
    # a Bernoulli is two classes with logits (z, 0)
    both_s, both_t = (torch.stack([z / temperature, torch.zeros_like(z)], -1).log_softmax(-1) for z in (s, t))
    theirs = F.kl_div(both_s, both_t, log_target=True, reduction="sum") / len(s)
    torch.testing.assert_close(found, temperature**2 * theirs)
    # and the cross-entropy less the teacher's entropy
    share = (t / temperature).sigmoid()
    crossed = F.binary_cross_entropy((s / temperature).sigmoid(), share)
    torch.testing.assert_close(
        found,
        LABELS * temperature**2 * (crossed - F.binary_cross_entropy(share, share)),
        rtol=1e-4,
        atol=1e-5,
    )


@pytest.mark.parametrize("kind", ["single_label", "multi_label"])
@pytest.mark.parametrize("loss", ["kl", "mse"])
def test_a_student_like_its_teacher_has_no_loss_and_no_gradient(kind: str, loss: str) -> None:
    s = logits().requires_grad_()
    found = distillation_loss(s, logits(), kind, temperature=3.0, loss=loss)  # type: ignore[arg-type]
    found.backward()
    assert abs(found.item()) < 1e-6
    assert s.grad is not None and s.grad.abs().max() < 1e-6


def test_mse_is_of_the_raw_logits_whatever_the_temperature() -> None:
    s, t = logits(seed=1), logits(seed=2)
    naive = ((s.numpy() - t.numpy()) ** 2).mean()
    for temperature in (1.0, 7.0):
        found = distillation_loss(s, t, "single_label", temperature=temperature, loss="mse")
        assert found.item() == pytest.approx(naive, rel=1e-5)


def test_float16_soft_labels_are_read_in_the_students_precision() -> None:
    s, t = logits(seed=1), logits(seed=2).half()
    found = distillation_loss(s, t, "single_label", temperature=2.0)
    assert found.dtype == torch.float32
    assert torch.equal(found, distillation_loss(s, t.float(), "single_label", temperature=2.0))


@pytest.mark.parametrize("kind", ["single_label", "multi_label"])
def test_gradients_keep_their_scale_as_the_temperature_changes(kind: str) -> None:
    """Without T^2 the norm would fall 400-fold from T = 1 to 20."""
    norms = []
    for temperature in (1.0, 2.0, 5.0, 20.0):
        s = logits(seed=1, scale=1.0).requires_grad_()
        teacher = logits(seed=2, scale=1.0)
        distillation_loss(s, teacher, kind, temperature=temperature).backward()  # type: ignore[arg-type]
        assert s.grad is not None
        norms.append(s.grad.norm().item())
    assert max(norms) < 2 * min(norms)


@pytest.mark.parametrize("kind", ["single_label", "multi_label"])
def test_extreme_logits_stay_finite(kind: str) -> None:
    s, t = logits(scale=300.0).requires_grad_(), logits(seed=1, scale=300.0)
    found = distillation_loss(s, t, kind)  # type: ignore[arg-type]
    found.backward()
    assert s.grad is not None and found.isfinite() and s.grad.isfinite().all()


# the mix


Named = dict[str, torch.Tensor]


def batch() -> tuple[torch.Tensor, Named, Named]:
    soft = logits(CLASSES + LABELS, 4)
    hard = {"intent": classes(), "flags": flags()}
    return logits(CLASSES + LABELS, 3), hard, {"intent": soft[:, :CLASSES], "flags": soft[:, CLASSES:]}


def test_soft_weight_0_is_cross_entropy_exactly() -> None:
    z, hard, soft = batch()
    expected = F.cross_entropy(z[:, :CLASSES], hard["intent"])
    for teacher in ({}, soft):
        found, parts = total_loss(z[:, :CLASSES], hard, teacher, [INTENT], soft_weight=0.0)
        assert torch.equal(found, expected)
        assert list(parts) == ["intent/hard"]


def test_without_a_teacher_the_soft_weight_does_not_count() -> None:
    z, hard, _ = batch()
    plain = total_loss(z, hard, {}, [INTENT, FLAGS])[0]
    assert torch.equal(total_loss(z, hard, {}, [INTENT, FLAGS], soft_weight=0.9)[0], plain)


def test_a_head_that_the_teacher_does_not_know_learns_from_hard_labels_alone() -> None:
    z, hard, soft = batch()
    found, parts = total_loss(z, hard, {"flags": soft["flags"]}, [INTENT, FLAGS], soft_weight=0.9)
    assert list(parts) == ["intent/hard", "flags/hard", "flags/distillation"]
    expected = parts["intent/hard"] + 0.1 * parts["flags/hard"] + 0.9 * parts["flags/distillation"]
    torch.testing.assert_close(found, expected)


def test_soft_weight_1_ignores_hard_labels() -> None:
    z, hard, soft = batch()
    found, parts = total_loss(z, hard, soft, [INTENT, FLAGS], soft_weight=1.0, temperature=2.0)
    assert list(parts) == ["intent/distillation", "flags/distillation"]
    others = {"intent": (classes() + 1).clamp(0, 3), "flags": 1 - flags().clamp(0, 1)}
    assert torch.equal(
        total_loss(z, others, soft, [INTENT, FLAGS], soft_weight=1.0, temperature=2.0)[0], found
    )


def test_the_mix_is_the_weighted_sum_of_its_parts() -> None:
    z, hard, soft = batch()
    heads = [INTENT, Head("flags", "multi_label", FLAGS.labels, weight=3.0)]
    found, parts = total_loss(z, hard, soft, heads, temperature=2.0, soft_weight=0.7)
    assert list(parts) == ["intent/hard", "intent/distillation", "flags/hard", "flags/distillation"]
    assert not any(part.requires_grad for part in parts.values())
    intent, flag = slice(0, CLASSES), slice(CLASSES, None)
    expected = {
        "intent/hard": hard_loss(z[:, intent], hard["intent"], "single_label"),
        "intent/distillation": distillation_loss(
            z[:, intent], soft["intent"], "single_label", temperature=2.0
        ),
        "flags/hard": hard_loss(z[:, flag], hard["flags"], "multi_label"),
        "flags/distillation": distillation_loss(z[:, flag], soft["flags"], "multi_label", temperature=2.0),
    }
    assert {k: v.item() for k, v in parts.items()} == {k: v.item() for k, v in expected.items()}
    weight = {"intent/hard": 0.3, "intent/distillation": 0.7, "flags/hard": 0.9, "flags/distillation": 2.1}
    assert found.item() == pytest.approx(sum(weight[k] * v.item() for k, v in expected.items()), rel=1e-6)


def test_a_head_of_twice_the_weight_has_twice_the_gradient() -> None:
    gradients = []
    for weight in (1.0, 2.0):
        z, hard, soft = batch()
        heads = [INTENT, Head("flags", "multi_label", FLAGS.labels, weight=weight)]
        total_loss(z.requires_grad_(), hard, soft, heads, soft_weight=0.5)[0].backward()
        assert z.grad is not None
        gradients.append(z.grad)
    torch.testing.assert_close(2 * gradients[0][:, CLASSES:], gradients[1][:, CLASSES:])
    assert torch.equal(gradients[0][:, :CLASSES], gradients[1][:, :CLASSES])


def test_unlabelled_rows_are_distilled() -> None:
    z, hard, soft = batch()
    z.requires_grad_()
    total_loss(z, hard, soft, [INTENT, FLAGS], soft_weight=0.5)[0].backward()
    assert z.grad is not None and (z.grad.abs().sum(-1) > 0).all()


def test_a_batch_without_any_label() -> None:
    z, _, soft = batch()
    z.requires_grad_()
    hard = {"intent": torch.full((ROWS,), UNLABELLED), "flags": torch.full((ROWS, LABELS), UNKNOWN)}
    found, parts = total_loss(z, hard, {}, [INTENT, FLAGS])
    found.backward()
    assert found.item() == 0 and all(part == 0 for part in parts.values())
    assert z.grad is not None and torch.equal(z.grad, torch.zeros_like(z))
    mixed, parts = total_loss(z, hard, soft, [INTENT, FLAGS], soft_weight=0.5)
    halves = 0.5 * parts["intent/distillation"] + 0.5 * parts["flags/distillation"]
    assert mixed.item() == pytest.approx(halves.item()) and mixed > 0


def test_softmax_is_in_float32_under_reduced_precision() -> None:
    z, hard, soft = batch()
    half = {head: part.half() for head, part in soft.items()}
    found, _ = total_loss(z.bfloat16(), hard, half, [INTENT, FLAGS], soft_weight=0.5)
    again, _ = total_loss(z.bfloat16().float(), hard, half, [INTENT, FLAGS], soft_weight=0.5)
    assert found.dtype == torch.float32 and torch.equal(found, again)


# other distillation losses


def test_of_flags_standardized_is_kl() -> None:
    s, t = logits(LABELS, 1), logits(LABELS, 2)
    found = distillation_loss(s, t, "multi_label", temperature=2.0, loss="standardized")
    assert torch.equal(found, distillation_loss(s, t, "multi_label", temperature=2.0))


@pytest.mark.parametrize("loss", ["kl", "standardized"])
def test_a_sure_teacher_gives_finite_gradients(loss: str) -> None:
    s = logits(seed=1).requires_grad_()
    t = torch.full((ROWS, CLASSES), -60.0).index_fill_(1, torch.tensor([2]), 60.0)
    found = distillation_loss(s, t, "single_label", loss=loss)  # type: ignore[arg-type]
    found.backward()
    assert found.isfinite() and s.grad is not None and s.grad.isfinite().all()


def test_standardized_does_not_see_scale_and_shift() -> None:
    s, t = logits(seed=1), logits(seed=2)
    found = distillation_loss(s, t, "single_label", temperature=2.0, loss="standardized")
    moved = distillation_loss(3 * s + 1, 0.2 * t - 5, "single_label", temperature=2.0, loss="standardized")
    torch.testing.assert_close(found, moved, rtol=1e-3, atol=1e-5)
    z_s, z_t = ((z - z.mean(-1, keepdim=True)) / z.std(-1, keepdim=True, correction=0) for z in (s, t))
    theirs = distillation_loss(z_s, z_t, "single_label", temperature=2.0)
    torch.testing.assert_close(found, theirs, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("loss", ["kl", "mse", "standardized"])
def test_a_student_like_its_teacher_loses_nothing(loss: str) -> None:
    t = logits(seed=2)
    assert distillation_loss(t, t, "single_label", loss=loss).item() == pytest.approx(0, abs=1e-6)  # type: ignore[arg-type]


@pytest.mark.parametrize(("labels", "loss", "temperature"), [(9, "kl", 1.0), (10, "standardized", 2.0)])
def test_a_head_of_many_labels_is_standardized_by_default(labels: int, loss: Any, temperature: float) -> None:
    head = Head("many", "single_label", tuple(map(str, range(labels))))
    z, soft = logits(labels), logits(labels, 1)
    hard = {"many": classes()}
    found = total_loss(z, hard, {"many": soft}, [head], soft_weight=1.0)[0]
    expected = distillation_loss(z, soft, "single_label", temperature=temperature, loss=loss)
    torch.testing.assert_close(found, expected)


def test_each_head_has_its_own_default_and_what_is_said_holds_for_all() -> None:
    flags_of_many = Head("flags", "multi_label", tuple(map(str, range(12))))
    many = Head("many", "single_label", tuple(map(str, range(12))))
    z, soft = logits(24), logits(24, 1)
    teacher = {"many": soft[:, :12], "flags": soft[:, 12:]}
    hard = {"many": classes(), "flags": torch.zeros(len(z), 12)}
    parts = total_loss(z, hard, teacher, [many, flags_of_many], soft_weight=1.0)[1]
    one = distillation_loss(z[:, :12], soft[:, :12], "single_label", temperature=2.0, loss="standardized")
    other = distillation_loss(z[:, 12:], soft[:, 12:], "multi_label")
    torch.testing.assert_close(parts["many/distillation"], one)
    torch.testing.assert_close(parts["flags/distillation"], other)
    said = total_loss(z, hard, teacher, [many, flags_of_many], soft_weight=1.0, loss="kl", temperature=3.0)[1]
    kl = distillation_loss(z[:, :12], soft[:, :12], "single_label", temperature=3.0)
    torch.testing.assert_close(said["many/distillation"], kl)
    asked = total_loss(z, hard, teacher, [many, flags_of_many], soft_weight=1.0, loss="standardized")[1]
    torch.testing.assert_close(asked["many/distillation"], one)
    torch.testing.assert_close(asked["flags/distillation"], other)  # kl at its own temperature


@pytest.mark.parametrize("loss", ["kl", "mse", "standardized"])
@pytest.mark.parametrize("kind", ["single_label", "multi_label"])
def test_rows_that_the_teacher_does_not_know_are_skipped(kind: Any, loss: Any) -> None:
    torch.manual_seed(0)
    student, teacher = torch.randn(5, 12, requires_grad=True), torch.randn(5, 12)
    unknown = teacher.clone()
    unknown[[1, 3]] = float("nan")
    found = distillation_loss(student, unknown, kind, loss=loss)
    expected = distillation_loss(student[[0, 2, 4]], teacher[[0, 2, 4]], kind, loss=loss)
    torch.testing.assert_close(found, expected)
    found.backward()
    assert student.grad is not None and torch.isfinite(student.grad).all() and not student.grad[[1, 3]].any()
    assert distillation_loss(student, torch.full((5, 12), float("nan")), kind, loss=loss) == 0
