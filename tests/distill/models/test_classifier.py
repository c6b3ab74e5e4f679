from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from distill.heads import Head
from distill.models.base import Batch, on_device
from distill.models.classifier import MultiHeadClassifier, balanced
from distill.models.predict import inference_batches, predict_logits
from distill.models.saved_networks import load_classifier, save_classifier, take_heads
from distill.training.losses import total_loss

HEADS = (
    Head("intent", "single_label", ("a", "b", "c")),
    Head("type", "multi_label", ("x", "y"), 0.5),  # a name that ModuleDict has a method of
)


@pytest.fixture
def network(tiny_bert: Callable[..., Any]) -> MultiHeadClassifier:
    return MultiHeadClassifier(tiny_bert(seed=1), HEADS, dropout=0.0).eval()


def batch(rows: int = 5, length: int = 9, padding: int = 3) -> Batch:
    ids = torch.randint(5, 50, (rows, length), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[::2, length - padding :] = 0
    return {"input_ids": ids, "attention_mask": mask}


def test_half_precision_leaves_loss_and_gradients_finite(
    tiny_bert: Callable[..., Any], toy_heads: Any, toy_corpus: Any, encode: Any
) -> None:
    """As autocast and the gradient scaler of precision fp16 compute, on the CPU."""
    corpus = toy_corpus(24)
    network = MultiHeadClassifier(tiny_bert(), toy_heads, dropout=0.0)
    batch = on_device(encode(corpus.texts).batch(np.arange(24)), torch.device("cpu"))
    hard = {name: torch.from_numpy(labels) for name, labels in corpus.labels.items()}
    with torch.autocast("cpu", dtype=torch.float16):
        logits = network(batch)
    assert logits.dtype == torch.float16 and torch.isfinite(logits).all()
    loss, _ = total_loss(logits, hard, {}, toy_heads)
    exact, _ = total_loss(network(batch), hard, {}, toy_heads)
    assert loss.dtype == torch.float32 and loss.item() == pytest.approx(exact.item(), rel=1e-2)
    (loss * 2**10).backward()
    assert all(
        torch.isfinite(weight.grad).all() for weight in network.parameters() if weight.grad is not None
    )


def gradients(
    network: MultiHeadClassifier, scales: Sequence[float], *, balance: float | None = 1.0
) -> tuple[Tensor, dict[str, Tensor]]:
    """The gradient of the encoder, and of each head's weight, for a loss of each head at a scale."""
    network.zero_grad()
    network.train()
    network.balance = balance
    parts = network.split(network(batch())).values()
    torch.stack(
        [scale * part.square().sum() for scale, part in zip(scales, parts, strict=True)]
    ).sum().backward()
    encoder = torch.cat([p.grad.flatten() for p in network.encoder.parameters() if p.grad is not None])
    return encoder, {head.name: next(iter(network.head_parameters(head))).grad.clone() for head in HEADS}


def test_heads_move_the_encoder_by_their_weights_whatever_the_scale_of_their_losses(
    network: MultiHeadClassifier,
) -> None:
    alone = [gradients(network, scales)[0] for scales in ((1, 0), (0, 1))]
    assert not gradients(network, (0, 0))[0].any()  # without labels there is nothing to learn
    both, of_heads = gradients(network, (100, 1))
    torch.testing.assert_close(both, alone[0] + alone[1])
    torch.testing.assert_close(gradients(network, (100, 1), balance=0.5)[0], both / 2)
    torch.testing.assert_close(of_heads, gradients(network, (100, 1), balance=None)[1])
    unscaled = [gradients(network, scales, balance=None)[0] for scales in ((1, 0), (0, 1))]
    for one, other in zip(alone, unscaled, strict=True):
        assert torch.cosine_similarity(one, other, 0) == pytest.approx(1)


def test_a_heavy_head_without_labels_leaves_the_gradient_finite() -> None:
    pooled = torch.randn(5, 8, requires_grad=True)
    one, other = balanced(pooled, (5.0, 1.0))
    (0 * one.sum() + other.sum()).backward()
    assert pooled.grad is not None and torch.isfinite(pooled.grad).all()


def test_the_gradient_of_each_state_has_its_norm() -> None:
    pooled, norms = torch.randn(5, 8, requires_grad=True), (0.5, 3.0)
    for state, norm in zip(balanced(pooled, norms), norms, strict=True):
        (gradient,) = torch.autograd.grad((state**3).sum() * 1e-4, pooled, retain_graph=True)
        assert gradient.norm().item() == pytest.approx(norm)


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_each_head_is_a_linear_layer_of_its_own(tiny_bert: Callable[..., Any], pooling: Any) -> None:
    network = MultiHeadClassifier(tiny_bert(), HEADS, pooling=pooling).eval()
    hidden, mask = network.encoder(**batch())[0], batch()["attention_mask"]
    if pooling == "cls":
        pooled = hidden[:, 0]
    else:
        pooled = torch.stack([row[kept.bool()].mean(0) for row, kept in zip(hidden, mask, strict=True)])
    logits = network(batch())
    assert logits.shape == (5, 5)
    for head, found in network.split(logits).items():
        torch.testing.assert_close(found, network.linear[f"logits_{head}"](pooled), rtol=1e-5, atol=1e-6)


def test_split_gives_views_in_the_order_of_heads(network: MultiHeadClassifier) -> None:
    logits = torch.arange(10.0).reshape(2, 5)
    parts = network.split(logits)
    assert list(parts) == ["intent", "type"]
    assert parts["type"].tolist() == [[3, 4], [8, 9]]
    assert parts["type"].data_ptr() == logits[:, 3:].data_ptr()


@pytest.mark.parametrize("pooling", ["mean", "cls"])
@pytest.mark.parametrize("architecture", ["bert", "distilbert"])
def test_padding_changes_nothing(tiny_bert: Callable[..., Any], architecture: str, pooling: Any) -> None:
    network = MultiHeadClassifier(tiny_bert(architecture), HEADS, pooling=pooling).eval()
    ids = batch(rows=3, length=6)["input_ids"]
    alone = network({"input_ids": ids, "attention_mask": torch.ones_like(ids)})
    for rubbish in (0, 7):
        padded = torch.cat([ids, torch.full((3, 5), rubbish)], 1)
        mask = torch.cat([torch.ones(3, 6), torch.zeros(3, 5)], 1).long()
        found = network({"input_ids": padded, "attention_mask": mask})
        torch.testing.assert_close(found, alone, rtol=1e-4, atol=1e-5)


def test_poolings_differ(tiny_bert: Callable[..., Any]) -> None:
    networks = [MultiHeadClassifier(tiny_bert(), HEADS, pooling=p).eval() for p in ("mean", "cls")]  # type: ignore[arg-type]
    networks[1].load_state_dict(networks[0].state_dict())
    assert not torch.allclose(*(network(batch()) for network in networks))


def test_dropout_is_of_training_alone(tiny_bert: Callable[..., Any]) -> None:
    network = MultiHeadClassifier(tiny_bert(), HEADS, dropout=0.5)
    assert torch.equal(network.eval()(batch()), network(batch()))
    assert not torch.equal(network.train()(batch()), network(batch()))


def test_freeze_marks_what_learns(network: MultiHeadClassifier) -> None:
    def learning() -> set[str]:
        names = (n for n, p in network.named_parameters() if p.requires_grad)
        return {"encoder" if n.startswith("encoder.") else n.split(".")[1] for n in names}

    for train, expected in {
        ("encoder", "heads"): {"encoder", "logits_intent", "logits_type"},
        ("heads",): {"logits_intent", "logits_type"},
        ("type",): {"logits_type"},
        ("encoder", "intent"): {"encoder", "logits_intent"},
        ("encoder",): {"encoder"},
    }.items():
        network.freeze(train)
        assert learning() == expected


def test_a_frozen_head_stays_bit_for_bit_while_another_learns(network: MultiHeadClassifier) -> None:
    before = {name: value.clone() for name, value in network.state_dict().items()}
    network.freeze(["type"])
    optimizer = torch.optim.AdamW((p for p in network.parameters() if p.requires_grad), 0.1, weight_decay=0.5)
    network.train()(batch()).square().sum().backward()
    optimizer.step()
    changed = {name for name, value in network.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {"linear.logits_type.weight", "linear.logits_type.bias"}


def test_parameters_are_counted_with_embeddings(network: MultiHeadClassifier) -> None:
    encoder = sum(p.numel() for p in network.encoder.parameters())
    assert network.parameters_count == encoder + (16 + 1) * 5


@pytest.mark.parametrize("pooling", ["mean", "cls"])
@pytest.mark.parametrize("architecture", ["bert", "distilbert"])
def test_save_and_load(
    tiny_bert: Callable[..., Any], tiny_tokenizer: Any, tmp_path: Path, architecture: str, pooling: Any
) -> None:
    network = MultiHeadClassifier(
        tiny_bert(architecture, layers=2), HEADS, pooling=pooling, dropout=0.3
    ).eval()
    save_classifier(network, tiny_tokenizer, tmp_path)
    names = {file.name for file in tmp_path.iterdir()}
    assert {"config.json", "model.safetensors", "heads.json", "tokenizer.json"} <= names
    assert not {name for name in names if name.endswith((".bin", ".pt", ".pkl"))}
    again, tokenizer = load_classifier(tmp_path)
    assert not again.training and again.heads == HEADS
    assert again.pooling == pooling and again.dropout.p == 0.3
    assert torch.equal(again(batch()), network(batch()))
    texts = ["where is my parcel", "Thanks!"]
    assert tokenizer(texts)["input_ids"] == tiny_tokenizer(texts)["input_ids"]
    assert tokenizer.is_fast and tokenizer.pad_token_id == 0


def test_logits_come_in_the_order_of_texts_however_they_are_batched(
    network: MultiHeadClassifier,
    toy_corpus: Any,
    encode: Any,
    cpu_accelerator: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    texts = toy_corpus(60).texts
    tokens = encode(texts)
    together = predict_logits(network, tokens, cpu_accelerator)
    assert together.shape == (60, 5) and together.dtype == "float32"
    alone = [network(on_device(encode([text]).batch([0]), torch.device("cpu")))[0] for text in texts]
    torch.testing.assert_close(torch.from_numpy(together), torch.stack(alone), rtol=1e-4, atol=1e-5)
    backwards = predict_logits(network, encode(texts[::-1]), cpu_accelerator)[::-1].copy()
    torch.testing.assert_close(torch.from_numpy(together), torch.from_numpy(backwards), rtol=1e-4, atol=1e-5)
    from distill.models import predict as inference

    batches = inference.length_sorted_batches
    monkeypatch.setattr(inference, "length_sorted_batches", lambda lengths, _: batches(lengths, 40))
    small = predict_logits(network, tokens, cpu_accelerator)
    torch.testing.assert_close(torch.from_numpy(together), torch.from_numpy(small), rtol=1e-4, atol=1e-5)


def test_inference_leaves_dropout_out(
    tiny_bert: Callable[..., Any], encode: Any, cpu_accelerator: Any
) -> None:
    network = MultiHeadClassifier(tiny_bert(dropout=0.5), HEADS, dropout=0.5).train()
    tokens = encode(["where is my parcel", "thanks"])
    found = [predict_logits(network, tokens, cpu_accelerator) for _ in range(2)]
    assert (found[0] == found[1]).all()
    assert predict_logits(network, encode([]), cpu_accelerator).shape == (0, 5)


def test_a_frozen_encoder_computes_without_dropout(tiny_bert: Callable[..., Any]) -> None:
    network = MultiHeadClassifier(tiny_bert(dropout=0.5), HEADS)
    network.freeze([HEADS[0].name])
    network.train()
    assert not any(module.training for module in network.encoder.modules()) and network.dropout.training
    network.freeze(["encoder"])
    assert network.train().encoder.training


def test_heads_are_taken_by_name_and_their_labels_too(
    tiny_bert: Callable[..., Any], tiny_tokenizer: Any, tmp_path: Path
) -> None:
    first, second = Head("intent", "single_label", ("a", "b", "c")), Head("flags", "multi_label", ("x", "y"))
    saved = MultiHeadClassifier(tiny_bert(), (first, second))
    save_classifier(saved, tiny_tokenizer, tmp_path)
    other = Head("flags", "multi_label", ("y", "z"))
    network = MultiHeadClassifier(saved.encoder, (other, first, Head("x", "single_label", ("a", "b"))))
    new = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    assert take_heads(network, tmp_path) == {"intent"}
    state, old = network.state_dict(), saved.state_dict()
    for part in ("weight", "bias"):
        assert torch.equal(state[f"linear.logits_intent.{part}"], old[f"linear.logits_intent.{part}"])
        assert torch.equal(state[f"linear.logits_flags.{part}"][0], old[f"linear.logits_flags.{part}"][1])
        assert torch.equal(state[f"linear.logits_flags.{part}"][1], new[f"linear.logits_flags.{part}"][1])
        assert torch.equal(state[f"linear.logits_x.{part}"], new[f"linear.logits_x.{part}"])
    turned = MultiHeadClassifier(saved.encoder, (Head("intent", "single_label", ("b", "a", "c")),))
    assert take_heads(turned, tmp_path) == set()
    assert take_heads(MultiHeadClassifier(saved.encoder, (first,), pooling="cls"), tmp_path) == set()


@pytest.mark.parametrize(("device", "tokens"), [("cpu", 2048), ("mps", 2048), ("cuda", 65536)])
def test_batches_of_inference_are_large_where_a_gpu_has_memory_of_its_own(device: str, tokens: int) -> None:
    batches = inference_batches(np.full(4096, 32), torch.device(device))
    assert {32 * len(batch) for batch in batches} == {tokens}
