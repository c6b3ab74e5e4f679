"""What the stages that learn have in common: labelled texts as examples, the one call of fit, saving."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from distill.data.dataset import hard_labels, load_split
from distill.data.tokens import TextTokenizer
from distill.heads import Head
from distill.models.classifier import Network, save_network
from distill.recipe.schema import Distillation, Training
from distill.run import Run
from distill.training.learner import Matching
from distill.training.loop import Examples, fit

MANY_UNKNOWN = 0.05  # share of tokens that a vocabulary cannot spell


def learn(
    run: Run,
    folder: Path,
    name: str,
    network: Network,
    train: Examples,
    validation: Examples,
    settings: Training,
    *,
    epochs: int,
    lr: float,
    head_lr: float | None = None,
    distillation: Distillation | None = None,
    matching: Matching | None = None,
) -> dict[str, Any]:
    """Fit a network in a stage's folder, epochs and rates where the recipe leaves them open."""
    found = {
        "epochs": settings.epochs or epochs,
        "lr": settings.lr or lr,
        "head_lr": settings.head_lr or head_lr,
    }
    with run.tracked(name):
        figures = fit(
            network,
            train,
            validation,
            settings.model_copy(update=found),
            accelerator=run.accelerator,
            folder=folder / "scratch",
            seed=run.seed_of(settings),
            name=name,
            distillation=distillation,
            until=run.recipe.augment.until,
            matching=matching,
        )
    return figures | {"seed": run.seed_of(settings)}


def labelled(run: Run, split: str, heads: tuple[Head, ...], encode: TextTokenizer) -> Examples:
    """The labelled texts of a split."""
    rows = load_split(run.stage("prepare"), split)
    return Examples(encode(rows["text"]), hard_labels(rows, heads))


def finish(run: Run, network: Network, tokenizer: Any, folder: Path) -> dict[str, Any]:
    """Save what was learnt."""
    if run.accelerator.is_main_process:
        save_network(network, tokenizer, folder)
    return {"parameters": network.parameters_count}
