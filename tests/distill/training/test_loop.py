import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from distill.data.tokens import Mixture
from distill.models.classifier import MultiHeadClassifier
from distill.recipe.schema import Distillation, Match, Training
from distill.training import loop
from distill.training.checkpoint import TrainingState, load_tensors, save_tensors
from distill.training.feature_matching import FeatureMatching, Learner
from distill.training.label_confidence import LabelConfidence
from distill.training.loop import Event, Examples, TrainingError, TrainingJob, evaluate_network, fit
from distill.training.optimizer import learning_rate_share, make_optimizer

QUICK = Training(epochs=3, batch_size=4, lr=3e-3)
MATCH = Match(hidden=1.0)


class Killed(Exception):
    """Stands for a power cut."""


class Room:
    """A corpus, and a network of the same weights however often one is asked for; likewise a teacher."""

    def __init__(
        self,
        folder: Path,
        accelerator: Any,
        build: Callable[..., MultiHeadClassifier],
        examples: Any,
        teacher: Callable[[], Any],
    ) -> None:
        self.folder, self.accelerator, self.build, self.examples = folder, accelerator, build, examples
        self.teacher = teacher

    def fit(
        self,
        settings: Training,
        folder: str = "run",
        *,
        train: Examples | None = None,
        dropout: float = 0.0,
        seed: int = 0,
        match: Match | None = None,
        distillation: Distillation | None = None,
        network: MultiHeadClassifier | None = None,
        head_lr: float | None = None,
        balanced: bool = False,
        **more: Any,
    ) -> tuple[MultiHeadClassifier, dict[str, Any]]:
        network = network or self.build(dropout)
        self.matching = FeatureMatching(network.encoder, self.teacher(), match) if match else None
        train, validation = train or self.examples(24), self.examples(30, seed=9)
        place = self.folder / folder
        job = TrainingJob(
            "student", train, validation, settings, seed, place, distillation, 2, head_lr, balanced
        )
        metrics = fit(network, job, self.accelerator, matching=self.matching, **more)
        self.earlier_seconds = metrics.pop("earlier_seconds")
        return network, metrics


@pytest.fixture
def room(
    tmp_path: Path,
    cpu_accelerator: Any,
    tiny_bert: Any,
    toy_heads: Any,
    toy_corpus: Any,
    encode: Any,
) -> Room:
    def build(dropout: float = 0.0) -> MultiHeadClassifier:
        encoder = tiny_bert(dropout=dropout)
        return MultiHeadClassifier(encoder, toy_heads, dropout=dropout)

    def examples(size: int, seed: int = 0, soft: bool = False) -> Examples:
        corpus = toy_corpus(size, seed)
        logits = np.random.default_rng(seed).normal(size=(size, 5)).astype(np.float16)
        return Examples(encode(corpus.texts), corpus.labels, of_heads(logits) if soft else {})

    def teacher() -> Any:
        encoder = tiny_bert(hidden=24, layers=2, attention_heads=3, seed=1)
        with torch.no_grad():  # fresh attention hardly tells tokens apart
            for name, weight in encoder.named_parameters():
                weight.mul_(10 if ".attention." in name and weight.ndim == 2 else 1)
        return encoder

    return Room(tmp_path, cpu_accelerator, build, examples, teacher)


def of_heads(logits: Any) -> dict[str, Any]:
    return {"intent": logits[:, :3], "flags": logits[:, 3:]}


def same(one: torch.nn.Module, other: torch.nn.Module) -> bool:
    return all(torch.equal(other.state_dict()[name], value) for name, value in one.state_dict().items())


def test_it_learns_the_toy_corpus(room: Room) -> None:
    settings = Training(epochs=10, batch_size=8, lr=1e-2, weight_decay=0.0)
    network, figures = room.fit(settings, train=room.examples(160))
    assert figures["validation"]["intent.accuracy"] > 0.9
    assert figures["validation"]["flags.micro_f1"] > 0.9
    assert (figures["epochs"], figures["steps"], figures["texts"]) == (10, 200, 160)
    again = evaluate_network(network, room.examples(30, seed=9), room.accelerator)
    assert again == figures["validation"]


def test_a_student_learns_from_soft_labels_alone(room: Room) -> None:
    labelled = room.examples(160)
    soft = 6 * np.eye(3)[labelled.hard["intent"]] - 3
    logits = np.concatenate([soft, 6 * labelled.hard["flags"] - 3], 1).astype(np.float16)
    none = {"intent": np.full(160, -100), "flags": np.full((160, 2), -1, np.int8)}
    train = Examples(labelled.texts, none, of_heads(logits))
    settings = Training(epochs=10, batch_size=8, lr=1e-2)
    _, figures = room.fit(settings, train=train, distillation=Distillation(soft_weight=0.9))
    assert figures["validation"]["mean"] > 0.9


def test_the_same_seed_gives_the_same_weights(room: Room) -> None:
    one, other, third = (
        room.fit(QUICK, f"run{i}", dropout=0.2, seed=seed)[0] for i, seed in enumerate((0, 0, 1))
    )
    assert same(one, other) and not same(one, third)


def dying(event: Event, step: int) -> Callable[[Event, TrainingState], None]:
    """A hook that stands for a power cut at an event of a step."""

    def hook(now: Event, state: TrainingState) -> None:
        if (now, state.step) == (event, step):
            raise Killed

    return hook


# killed and resumed: 6 steps an epoch, checkpoints after steps 2, 4, 6, 8, 10, 12, ...


@pytest.mark.parametrize("match", [None, MATCH])
@pytest.mark.parametrize("steps", [1, 3, 8, 15])
def test_killed_and_resumed_equals_unbroken(room: Room, steps: int, match: Match | None) -> None:
    more: dict[str, Any] = {"dropout": 0.2, "train": room.examples(24, soft=True), "match": match}
    more["distillation"] = Distillation()
    unbroken, expected = room.fit(QUICK, "unbroken", **more)
    matched = room.matching
    with pytest.raises(Killed):
        room.fit(QUICK, hook=dying("step", steps), **more)
    assert (room.folder / "run" / "checkpoint.safetensors").exists() == (steps >= 2)
    torch.manual_seed(123)  # nothing may depend on the state of the generator
    resumed, metrics = room.fit(QUICK, **more)
    assert same(resumed, unbroken) and metrics == expected
    assert (room.earlier_seconds > 0) == (steps >= 2)  # those up to the checkpoint
    if matched and room.matching:  # the projections resumed too
        assert same(room.matching, matched)


def test_a_training_on_several_sources_resumes_where_it_was(room: Room) -> None:
    """Also in the middle of an epoch, whose rows are other ones than those of the epoch before."""
    sources = Mixture(np.repeat([0, 1, 2], [3, 15, 6]), np.array([1.0, 1.0, 2.0]))
    train = replace(room.examples(24), mixture=sources)
    unbroken, expected = room.fit(QUICK, "unbroken", train=train, dropout=0.2)
    assert not same(unbroken, room.fit(QUICK, "every", train=room.examples(24), dropout=0.2)[0])
    with pytest.raises(Killed):
        room.fit(QUICK, train=train, dropout=0.2, hook=dying("step", 9))
    resumed, metrics = room.fit(QUICK, train=train, dropout=0.2)
    assert same(resumed, unbroken) and metrics == expected


def test_the_gradient_scaler_of_fp16_resumes_and_starts_anew_with_each_training(
    room: Room, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its scale doubles every four steps here, from 65,536."""
    scaler = torch.amp.GradScaler("cpu", init_scale=1.0, growth_interval=4)
    monkeypatch.setattr(room.accelerator, "scaler", scaler)
    unbroken, expected = room.fit(QUICK, "unbroken")
    scale = scaler.get_scale()
    assert scale == 65536 * 2 ** (expected["steps"] // 4)
    assert same(unbroken, room.fit(QUICK, "again")[0]) and scaler.get_scale() == scale
    with pytest.raises(Killed):
        room.fit(QUICK, hook=dying("step", 9))
    scaler.load_state_dict(scaler.state_dict() | {"scale": 2.0})  # another process has a scaler of its own
    resumed, metrics = room.fit(QUICK)
    assert same(resumed, unbroken) and metrics == expected and scaler.get_scale() == scale


def test_a_training_resumes_on_as_many_processes_as_it_began_with(
    room: Room, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On another number, a step reads other texts, and the steps done are another part of an epoch."""
    with pytest.raises(Killed):
        room.fit(QUICK, hook=dying("step", 9))
    before = {path.name: path.read_bytes() for path in (room.folder / "run").iterdir()}
    with monkeypatch.context() as patch:
        patch.setattr(type(room.accelerator), "num_processes", 2)
        with pytest.raises(
            TrainingError, match=r"checkpoint.safetensors: is of .* on 1 processes, .* has 2 \("
        ):
            room.fit(QUICK)
    assert before == {path.name: path.read_bytes() for path in (room.folder / "run").iterdir()}
    room.fit(QUICK)


def test_a_job_balances_its_heads_unless_losses_are_scaled(
    room: Room, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, even = room.fit(QUICK, "plain")[0], room.fit(QUICK, "even", balanced=True)[0]
    assert not same(plain, even) and plain.balance is None and even.balance == 1
    parts = QUICK.model_copy(update={"accumulate": 2})
    assert room.fit(parts, "parts", balanced=True)[0].balance == 0.5  # divided as the loss is
    monkeypatch.setattr(room.accelerator, "scaler", torch.amp.GradScaler("cpu", init_scale=1.0))
    assert room.fit(QUICK, "scaled", balanced=True)[0].balance is None


@pytest.mark.parametrize("name", ["checkpoint.safetensors", "best.safetensors"])
@pytest.mark.parametrize("how", ["emptied", "cut", "flipped"])
def test_a_damaged_checkpoint_is_named_and_the_training_begins_again(
    room: Room, name: str, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    unbroken, expected = room.fit(QUICK, "unbroken", dropout=0.2)
    with pytest.raises(Killed):
        room.fit(QUICK, dropout=0.2, hook=dying("step", 8))
    path = room.folder / "run" / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes({"emptied": b"", "cut": content[: len(content) // 2], "flipped": content}[how])
    caplog.set_level("INFO", "tinyheads")
    again, metrics = room.fit(QUICK, dropout=0.2)
    assert str(path) in caplog.text and "trained from the beginning" in caplog.text
    assert same(again, unbroken) and metrics == expected


@pytest.mark.parametrize("event", ["weights", "checkpoint"])
@pytest.mark.parametrize("step", [6, 12])
def test_killed_before_weights_or_a_checkpoint_are_written(room: Room, event: Event, step: int) -> None:
    """The end of an epoch writes both, so a kill before the checkpoint is one after the weights."""
    unbroken, expected = room.fit(QUICK, "unbroken", dropout=0.2)
    with pytest.raises(Killed):
        room.fit(QUICK, dropout=0.2, hook=dying(event, step))
    resumed, metrics = room.fit(QUICK, dropout=0.2)
    assert same(resumed, unbroken) and metrics == expected


@pytest.mark.parametrize("match", [None, MATCH])
def test_killed_twice_under_accumulation(room: Room, match: Match | None) -> None:
    settings = QUICK.model_copy(update={"accumulate": 2, "batch_size": 2})
    unbroken, _ = room.fit(settings, "unbroken", dropout=0.2, match=match)
    for step in (7, 13):
        with pytest.raises(Killed):
            room.fit(settings, dropout=0.2, match=match, hook=dying("step", step))
    assert same(room.fit(settings, dropout=0.2, match=match)[0], unbroken)


def test_fit_asks_for_epochs_and_rate(room: Room) -> None:
    with pytest.raises(ValueError, match="epochs and lr must be set"):
        room.fit(Training(epochs=1))


def test_a_finished_training_is_not_done_again(room: Room) -> None:
    network, figures = room.fit(QUICK)

    def never(event: Event, state: TrainingState) -> None:
        raise AssertionError("a step was done")

    again, same_figures = room.fit(QUICK, hook=never)
    assert same(again, network) and same_figures == figures


# one step


def test_accumulation_equals_a_larger_batch(room: Room) -> None:
    settings = Training(epochs=2, batch_size=8, lr=1e-2, train=("heads",))
    halves = settings.model_copy(update={"batch_size": 4, "accumulate": 2})
    (one, _), (two, _) = (
        room.fit(s, f"run{s.accumulate}", train=room.examples(8)) for s in (settings, halves)
    )
    before = room.build()
    for name, value in one.state_dict().items():
        torch.testing.assert_close(two.state_dict()[name], value, rtol=1e-4, atol=1e-5)
        assert torch.equal(before.state_dict()[name], value) == name.startswith("encoder.")


def test_only_the_named_head_learns(room: Room) -> None:
    settings = QUICK.model_copy(update={"train": ("flags",), "weight_decay": 0.5, "lr": 0.1})
    network, _ = room.fit(settings, dropout=0.2)
    before = room.build().state_dict()
    changed = {name for name, value in network.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {"linear.logits_flags.weight", "linear.logits_flags.bias"}


def test_every_text_is_read_once_an_epoch(room: Room) -> None:
    read: list[int] = []
    train = room.examples(22)

    class Watched:
        lengths = train.texts.lengths

        def __len__(self) -> int:
            return len(train.texts)

        def batch(self, rows: Any) -> Any:
            read.extend(rows.tolist())
            return train.texts.batch(rows)

    room.fit(QUICK, train=replace(train, texts=Watched()))
    epochs = [read[i : i + 22] for i in range(0, 66, 22)]
    assert len(read) == 66 and all(sorted(epoch) == list(range(22)) for epoch in epochs)
    assert epochs[0] != epochs[1]


def test_decay_leaves_biases_norms_and_embeddings_alone(room: Room) -> None:
    learner = Learner(room.build(), None)
    optimizer = make_optimizer(learner, Training(weight_decay=0.1, lr=1e-3), torch.device("cpu"))
    names = {id(p): name for name, p in learner.named_parameters()}
    for group in optimizer.param_groups:
        found = [names[id(p)] for p in group["params"]]
        spared = [n.endswith("bias") or "LayerNorm" in n or "embeddings" in n for n in found]
        assert found and set(spared) == {group["weight_decay"] == 0}
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(names)


def test_heads_have_a_rate_of_their_own(room: Room) -> None:
    learner = Learner(room.build(), None)
    found = make_optimizer(learner, Training(lr=1e-3), torch.device("cpu"), head_lr=5e-2)
    names = {id(p): name for name, p in learner.named_parameters()}
    peaks = {names[id(p)]: group["peak"] for group in found.param_groups for p in group["params"]}
    assert {name for name, peak in peaks.items() if peak == 5e-2} == {
        n for n in names.values() if "linear.logits_" in n
    }
    assert set(peaks) == set(names.values()) and set(peaks.values()) == {1e-3, 5e-2}


def test_the_rate_of_the_heads_is_what_they_learn_at(room: Room) -> None:
    before = room.build().state_dict()
    after, _ = room.fit(QUICK.model_copy(update={"lr": 1e-12}), head_lr=0.1)
    moved = {n for n, w in after.state_dict().items() if not torch.allclose(w, before[n], atol=1e-4)}
    assert moved and all("linear.logits_" in name for name in moved)


def test_rate_warms_up_then_falls() -> None:
    rates = [learning_rate_share(step, 100, 0.1) for step in range(100)]
    assert rates[0] == 0.1 and rates[9] == rates[10] == max(rates) == 1
    assert rates[10:] == sorted(rates[10:], reverse=True) and 0 < rates[-1] < 0.02
    assert rates[55] == pytest.approx(0.5)


def test_rate_of_short_trainings() -> None:
    for steps in (1, 2, 3):
        for warmup in (0.0, 0.9):
            rates = [learning_rate_share(step, steps, warmup) for step in range(steps)]
            assert all(0 < rate <= 1 for rate in rates)


# which epoch


def scripted(monkeypatch: pytest.MonkeyPatch, scores: list[float], key: str = "mean") -> list[dict[str, Any]]:
    """Makes epochs score as told; the weights as they were at the end of each epoch."""
    seen: list[dict[str, Any]] = []

    def evaluate(network: MultiHeadClassifier, *_: Any) -> dict[str, float]:
        seen.append({name: value.clone() for name, value in network.state_dict().items()})
        return {key: scores[len(seen) - 1]}

    monkeypatch.setattr(loop, "evaluate_network", evaluate)
    return seen


def test_the_best_epoch_is_restored(room: Room, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = scripted(monkeypatch, [0.1, 0.8, 0.3])
    network, figures = room.fit(QUICK)
    assert (figures["epochs"], figures["best_epoch"], figures["validation"]) == (3, 2, {"mean": 0.8})
    assert all(torch.equal(value, seen[1][name]) for name, value in network.state_dict().items())
    assert not torch.equal(seen[1]["linear.logits_intent.weight"], seen[2]["linear.logits_intent.weight"])


@pytest.mark.parametrize("soft_weight, kept", [(0.9, 3), (0.0, 2)])  # hard labels alone overfit
def test_a_student_keeps_the_last_epoch_that_is_as_good_as_the_texts_can_tell(
    room: Room, monkeypatch: pytest.MonkeyPatch, soft_weight: float, kept: int
) -> None:
    scripted(monkeypatch, [0.1, 0.8, 0.79])
    soft = room.examples(24, soft=True)
    distillation = Distillation(soft_weight=soft_weight)
    assert room.fit(QUICK, train=soft, distillation=distillation)[1]["best_epoch"] == kept


@pytest.mark.parametrize("metric", ["intent.log_loss", "intent.ece"])
def test_of_a_loss_the_lowest_is_best(room: Room, monkeypatch: pytest.MonkeyPatch, metric: str) -> None:
    scripted(monkeypatch, [0.5, 0.2, 0.4], metric)
    _, figures = room.fit(QUICK.model_copy(update={"metric": metric}))
    assert (figures["best_epoch"], figures["metric"]) == (2, metric)


def test_a_metric_that_is_not_a_number_keeps_the_first_epoch(
    room: Room, monkeypatch: pytest.MonkeyPatch
) -> None:
    scripted(monkeypatch, [float("nan")] * 3)
    assert room.fit(QUICK)[1]["best_epoch"] == 1


def test_evaluation_names_every_metric_of_every_head(room: Room) -> None:
    found = evaluate_network(room.build(), room.examples(30), room.accelerator)
    heads = ["intent"] * 4 + ["flags"] * 7 + ["mean"]
    assert [name.partition(".")[0] for name in found] == heads
    assert found["mean"] == pytest.approx((found["intent.accuracy"] + found["flags.micro_f1"]) / 2)


def test_the_mean_leaves_out_heads_without_labels(room: Room) -> None:
    some = room.examples(30)
    unlabelled = Examples(some.texts, {**some.hard, "flags": np.full((30, 2), -1, np.int8)})
    found = evaluate_network(room.build(), unlabelled, room.accelerator)
    assert found["mean"] == found["intent.accuracy"] and np.isnan(found["flags.micro_f1"])


# what goes wrong


@pytest.mark.parametrize(("step", "accumulate"), [(1, 1), (3, 1), (4, 2), (6, 1)])
def test_a_loss_that_is_not_finite_names_the_step(room: Room, step: int, accumulate: int) -> None:
    class Spoiled(MultiHeadClassifier):
        family, calls = "spoiled", 0

        def forward(self, batch: Any) -> Any:
            self.calls += self.training
            spoils = self.training and self.calls == step * accumulate
            return super().forward(batch) * (float("nan") if spoils else 1)

    plain = room.build()
    network = Spoiled(plain.encoder, plain.heads, dropout=0.0)
    settings = QUICK.model_copy(update={"accumulate": accumulate, "batch_size": 4 // accumulate})
    with pytest.raises(TrainingError) as caught:
        room.fit(settings, network=network)
    message = str(caught.value)
    assert f"student: the loss is nan at step {step}" in message and "student.lr, now 0.003" in message
    checkpoint = room.folder / "run" / "checkpoint.safetensors"
    assert checkpoint.exists() == (str(checkpoint) in message) == (step > 2)
    if checkpoint.exists():  # and it holds nothing spoiled
        tensors, about = load_tensors(checkpoint)
        assert about["step"] < step and all(t.isfinite().all() for t in tensors.values())


def test_a_step_of_unlabelled_texts_alone_is_harmless(room: Room) -> None:
    some = room.examples(8)
    none = {"intent": np.full(8, -100), "flags": np.full((8, 2), -1, np.int8)}
    network, _ = room.fit(
        Training(epochs=1, lr=1e-3, batch_size=4, weight_decay=0.0), train=Examples(some.texts, none)
    )
    assert same(network, room.build())


def test_what_is_tracked(room: Room, monkeypatch: pytest.MonkeyPatch) -> None:
    logged: list[tuple[int, dict[str, float]]] = []
    monkeypatch.setattr(room.accelerator, "log", lambda values, step: logged.append((step, values)))
    room.fit(QUICK, train=room.examples(24, soft=True), distillation=Distillation())
    assert [step for step, _ in logged] == [6, 6, 12, 12, 18, 18]
    parts = {f"student/{head}/{part}" for head in ("intent", "flags") for part in ("hard", "distillation")}
    accuracies = {"student/intent/accuracy", "student/flags/accuracy"}
    assert set(logged[0][1]) == {"student/loss", "student/lr"} | parts | accuracies
    assert {"student/intent.accuracy", "student/validation_loss"} <= set(logged[1][1])


@pytest.mark.parametrize("accumulate", [1, 2])
def test_the_losses_of_each_epoch_are_the_means_over_its_batches(
    room: Room, monkeypatch: pytest.MonkeyPatch, accumulate: int
) -> None:
    logged: list[dict[str, float]] = []
    monkeypatch.setattr(room.accelerator, "log", lambda values, step: logged.append(values))
    monkeypatch.setattr(loop, "LOG_EVERY", 10**6)  # a line an epoch
    settings = QUICK.model_copy(update={"accumulate": accumulate, "batch_size": 4 // accumulate})
    plain = room.build()
    heads = [replace(plain.heads[0], weight=2.0), plain.heads[1]]
    network = MultiHeadClassifier(plain.encoder, heads, dropout=0.0)
    given = {"train": room.examples(24, soft=True), "distillation": Distillation(), "network": network}
    _, metrics = room.fit(settings, match=MATCH, **given)
    lines = [values for values in logged if "student/loss" in values]
    losses = metrics["losses"]
    assert [*losses] == ["hard", "distillation", "match/hidden", "loss"]
    for name, weights in {"hard": (2, 1), "distillation": (2, 1)}.items():
        means = [
            sum(
                w * line[f"student/{head}/{name}"]
                for w, head in zip(weights, ("intent", "flags"), strict=True)
            )
            for line in lines
        ]
        assert losses[name] == pytest.approx(means)
    share = Distillation().soft_weight
    total = [
        (1 - share) * hard + share * soft + matched
        for hard, soft, matched in zip(
            *(losses[n] for n in ("hard", "distillation", "match/hidden")), strict=True
        )
    ]
    assert losses["loss"] == pytest.approx(total)
    assert losses["loss"] == pytest.approx([line["student/loss"] for line in lines])
    assert losses["loss"][-1] < losses["loss"][0]
    of_epochs = [{**values} for values in logged if "student/loss" not in values]
    assert len(of_epochs) == 3
    assert all(np.isfinite(values.pop("student/validation_loss")) for values in of_epochs)
    assert metrics["validation_history"] == {
        name.removeprefix("student/"): [values[name] for values in of_epochs] for name in of_epochs[0]
    }
    assert metrics["history"] == metrics["validation_history"]["mean"]


@pytest.mark.parametrize("step", [3, 8])
def test_a_checkpoint_without_losses_resumes(room: Room, step: int) -> None:
    """As an earlier version wrote it: the losses of its finished epochs are unknown."""
    unbroken, expected = room.fit(QUICK, "unbroken", dropout=0.2)
    with pytest.raises(Killed):
        room.fit(QUICK, dropout=0.2, hook=dying("step", step))
    path = room.folder / "run" / "checkpoint.safetensors"
    tensors, about = load_tensors(path)
    save_tensors(path, tensors, {k: about[k] for k in ("step", "history", "best", "kept_epoch")})
    resumed, metrics = room.fit(QUICK, dropout=0.2)
    assert same(resumed, unbroken)
    assert metrics["validation_history"] == expected["validation_history"]
    found, known = metrics["losses"]["loss"], step // 6
    assert found[:known] == [None] * known
    assert found[known + 1 :] == expected["losses"]["loss"][known + 1 :]


# how sure the network was of what it learnt


class Kept(LabelConfidence):
    """Keeps each batch that is added."""

    def add(self, rows: Any, logits: Any, hard: Any) -> None:
        self.batches = [*getattr(self, "batches", []), (rows.tolist(), logits.detach().clone())]
        super().add(rows, logits, hard)


def test_the_confidence_is_the_mean_over_the_epochs(room: Room) -> None:
    train = room.examples(24)
    train.hard["intent"][3], train.hard["flags"][5] = -100, -1
    network = room.build()
    confidence = Kept(network.heads, 24, room.accelerator.device)
    room.fit(QUICK, train=train, network=network, confidence=confidence)
    means = confidence.means(room.accelerator)
    found: dict[int, list[tuple[float, float]]] = {row: [] for row in range(24)}
    for rows, logits in confidence.batches:
        intents, flags = logits[:, :3].softmax(-1), logits[:, 3:].sigmoid()
        for row, intent, flag in zip(rows, intents, flags, strict=True):
            y = torch.tensor(train.hard["flags"][row])
            of_flags = torch.where(y == 1, flag, 1 - flag).prod()
            found[row].append((float(intent[max(0, train.hard["intent"][row])]), float(of_flags)))
    assert {len(values) for values in found.values()} == {3}
    for row, values in found.items():
        intent, flag = np.mean(values, 0)
        if row != 3:
            assert float(means["intent"][row]) == pytest.approx(intent, rel=1e-4)
        if row != 5:
            assert float(means["flags"][row]) == pytest.approx(flag, rel=1e-4)
    assert same(network, room.fit(QUICK, "plain", train=train)[0])  # it only watches


def test_the_confidence_of_texts_that_are_read_often_or_never(room: Room) -> None:
    """Of a small source every text is read several times an epoch, of a large one not every text once."""
    sources = Mixture(np.repeat([0, 1], [2, 22]), np.array([5.0, 1.0]))
    train = replace(room.examples(24), mixture=sources)
    network = room.build()
    confidence = Kept(network.heads, 24, room.accelerator.device)
    room.fit(QUICK, train=train, network=network, confidence=confidence)
    read = np.bincount([row for rows, _ in confidence.batches for row in rows], minlength=24)
    assert read[:2].tolist() == [30, 30] and sorted(read[2:].tolist()) == [0] * 10 + [1] * 12
    mean = confidence.means(room.accelerator)["intent"].numpy()
    assert (np.isnan(mean) == (read == 0)).all()
    first = [
        float(logits[i, :3].softmax(-1)[train.hard["intent"][0]])
        for rows, logits in confidence.batches
        for i, row in enumerate(rows)
        if row == 0
    ]
    assert float(mean[0]) == pytest.approx(np.mean(first), rel=1e-4)


def test_the_confidence_resumes(room: Room) -> None:
    unbroken, again = (LabelConfidence(room.build().heads, 24, room.accelerator.device) for _ in range(2))
    room.fit(QUICK, "unbroken", confidence=unbroken, dropout=0.2)
    killed = LabelConfidence(room.build().heads, 24, room.accelerator.device)
    with pytest.raises(Killed):
        room.fit(QUICK, hook=dying("step", 8), confidence=killed, dropout=0.2)
    room.fit(QUICK, confidence=again, dropout=0.2)
    for name, tensor in unbroken.tensors.items():
        assert torch.equal(again.tensors[name], tensor)


# matched inside


def test_what_is_matched_is_tracked_and_comes_closer(room: Room, monkeypatch: pytest.MonkeyPatch) -> None:
    logged: list[dict[str, float]] = []
    monkeypatch.setattr(room.accelerator, "log", lambda values, step: logged.append(values))
    room.fit(QUICK.model_copy(update={"epochs": 12}), match=MATCH)
    lines = [values for values in logged if "student/loss" in values]
    assert lines[-1]["student/match/hidden"] < 0.7 * lines[0]["student/match/hidden"]


def test_its_weights_count(room: Room) -> None:
    plain, _ = room.fit(QUICK, "plain")
    matched, _ = room.fit(QUICK, "matched", match=MATCH)
    stronger, _ = room.fit(QUICK, "stronger", match=Match(hidden=3.0))
    assert not same(plain, matched) and not same(matched, stronger)


def test_projections_learn_beside_the_network_and_are_left_behind(
    room: Room, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare, prepared = room.accelerator.prepare, []

    def watched(model: Any, optimizer: Any) -> Any:
        prepared.append(model)
        return prepare(model, optimizer)

    monkeypatch.setattr(room.accelerator, "prepare", watched)
    network, _ = room.fit(QUICK, match=MATCH)
    fresh = room.matching
    assert fresh is not None and len(fresh.projections) == 1
    start = FeatureMatching(room.build().encoder, room.teacher(), MATCH)
    learnt = dict(fresh.named_parameters())
    assert learnt and all(not torch.equal(value, learnt[n]) for n, value in start.named_parameters())
    # what several processes synchronise is what the prepared module owns
    owned = {id(parameter) for parameter in prepared[0].parameters()}
    assert {id(p) for module in (network, fresh) for p in module.parameters()} == owned
    best, _ = load_tensors(room.folder / "run" / "best.safetensors")
    assert set(best) == set(room.build().state_dict())


# what is logged of an epoch


def test_each_epoch_is_logged_in_a_line(room: Room, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "tinyheads")
    soft = room.examples(160, soft=True)
    figures = room.fit(QUICK, train=soft, distillation=Distillation(soft_weight=0.5))[1]
    lines = [line for line in caplog.messages if "epoch" in line]
    assert [line.partition(":")[2].split(":")[0].strip() for line in lines] == [
        f"epoch {number}/3" for number in (1, 2, 3)
    ]
    number = r"[0-9]+\.[0-9]+"
    expected = (
        rf"student: epoch 1/3: loss {number}, accuracy {number} \(intent\), label_accuracy {number} "
        rf"\(flags\); validation: loss {number}, accuracy {number} \(intent\), micro_f1 {number} \(flags\)"
    )
    assert re.fullmatch(expected, lines[0])
    assert f"loss {figures['losses']['loss'][0]:.4f}, accuracy" in lines[0]
    first = [figures["validation_history"][name][0] for name in ("intent.accuracy", "flags.micro_f1")]
    assert lines[0].endswith(f"accuracy {first[0]:.3f} (intent), micro_f1 {first[1]:.3f} (flags)")
    assert {*figures["losses"]} == {"hard", "distillation", "loss"}


def test_the_logged_figures_are_those_of_the_labelled_texts(
    room: Room, caplog: pytest.LogCaptureFixture
) -> None:
    """With a learning rate of nearly 0, training and validation on the same texts agree."""
    caplog.set_level("INFO", "tinyheads")
    some = room.examples(32)
    some.hard["intent"][:16] = -100
    still = Training(epochs=1, batch_size=32, lr=1e-12)
    room.fit(still, train=some)
    network = room.build()
    found = evaluate_network(network, some, room.accelerator, {})
    (line,) = [line for line in caplog.messages if "epoch" in line]
    assert f"loss {found['loss']:.4f}, accuracy {found['intent.accuracy']:.3f} (intent)" in line
    logits = loop.predict_logits(network, some.texts, room.accelerator)
    cells = (logits[:, 3:] > 0) == (some.hard["flags"] > 0)
    assert f"label_accuracy {cells.mean():.3f} (flags); validation" in line
    hard = -np.log(np.exp(logits[16:, :3]) / np.exp(logits[16:, :3]).sum(-1, keepdims=True))
    hard = hard[np.arange(16), some.hard["intent"][16:]].mean()
    p = 1 / (1 + np.exp(-logits[:, 3:]))
    both = -np.log(np.where(some.hard["flags"] > 0, p, 1 - p)).sum(-1).mean()
    assert found["loss"] == pytest.approx(hard + both, abs=1e-5)


def test_a_stopped_epoch_is_logged_as_a_whole_one(room: Room, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "tinyheads")
    room.fit(QUICK, "whole")
    whole = [line for line in caplog.messages if "epoch 2" in line]
    caplog.clear()

    def kill(event: Event, state: TrainingState) -> None:
        if event == "step" and state.step == 9:
            raise Killed

    with pytest.raises(Killed):
        room.fit(QUICK, "stopped", hook=kill)
    room.fit(QUICK, "stopped")
    assert [line for line in caplog.messages if "epoch 2" in line] == whole
