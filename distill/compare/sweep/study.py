"""The optuna study of a sweep: which setting comes next, and what is known of those that are finished."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock
from optuna.trial import TrialState

from distill.compare.sweep.grid import Setting
from distill.recipe.data_section import RecipeError
from distill.storage import json_digest

TRIES = 50  # that the sampler has to suggest a setting that has not begun
Row = dict[str, Any]


class Study:
    """A study on disk, in which each setting is a trial.

    All settings are run in order, so that those that share stages follow each other. With fewer trials than
    settings, optuna's TPE chooses.

    Attributes:
        rows: The rows of the finished settings, by the number of the setting.
    """

    def __init__(self, path: Path, settings: Sequence[Setting], trials: int, seed: int) -> None:
        """Open a study, or create it.

        Args:
            path: Of the journal, which may hold studies of other grids, too.
            settings: All settings.
            trials: The number of settings to run.
            seed: Of the sampler.

        Raises:
            RecipeError: The journal is damaged.
        """
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.choices = [setting.choices for setting in settings]
        every = [[setting.values, [*setting.recipes]] for setting in settings]
        path.with_name(f"{path.name}.lock").unlink(missing_ok=True)  # of a killed process
        if path.exists() and not (content := path.read_bytes()).endswith(b"\n"):  # the disk was full
            path.write_bytes(content[: content.rfind(b"\n") + 1])
        try:
            self.study = optuna.create_study(
                storage=JournalStorage(JournalFileBackend(str(path), JournalFileOpenLock(str(path)))),
                study_name=json_digest(every)[:16],
                sampler=optuna.samplers.TPESampler(seed=seed),
                direction="maximize",
                load_if_exists=True,
            )
        except (ValueError, LookupError) as error:
            raise RecipeError(f"{path}: is damaged: {error} (delete it; finished runs are kept)") from None
        self.space = {
            key: optuna.distributions.CategoricalDistribution(
                [*dict.fromkeys(each[key] for each in self.choices)]
            )
            for key in self.choices[0]
        }
        self.rows: dict[int, Row] = {}
        failed: list[int] = []
        for trial in self.study.get_trials():
            if trial.state == TrialState.RUNNING:  # of a killed process
                self.study.tell(trial.number, state=TrialState.FAIL)
            if trial.params not in self.choices:  # killed before it had all
                continue
            if trial.state == TrialState.COMPLETE:
                self.rows[self.choices.index(trial.params)] = trial.user_attrs["row"]
            else:
                failed.append(self.choices.index(trial.params))
        self.total = min(trials, len(settings))
        self._begun = {*self.rows}
        again = range(len(settings)) if self.total == len(settings) else dict.fromkeys(failed)
        self._queue = [number for number in again if number not in self.rows]

    def ask(self) -> tuple[optuna.Trial, int] | None:
        """A new trial and the number of its setting, one that has not begun; None if enough have."""
        if len(self._begun) >= self.total:
            return None
        for tries in itertools.count():
            if tries == TRIES:
                self._queue += [n for n in range(len(self.choices)) if n not in self._begun]
            if self._queue:
                self.study.enqueue_trial(self.choices[self._queue.pop(0)])
            trial = self.study.ask(self.space)
            if (number := self.choices.index(trial.params)) not in self._begun:
                break
            self.study.tell(trial, state=TrialState.FAIL)
        self._begun.add(number)
        return trial, number

    def tell(self, trial: optuna.Trial, number: int, row: Row) -> None:
        """Write the row of a trial. One that failed is run again by the next process."""
        self.rows[number] = row
        if row["failed"]:
            self.study.tell(trial, state=TrialState.FAIL)
        else:
            trial.set_user_attr("row", row)
            self.study.tell(trial, row["mean"])
