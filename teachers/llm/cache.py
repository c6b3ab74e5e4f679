"""The answers of language models on disk, which outlive runs and crashes.

One SQLite file in a folder. A key is a digest of model, question and text, so the file holds no text. An
answer is on disk when it has arrived; several processes may share the file.
"""

from __future__ import annotations

import hashlib
import json
import logging
import sqlite3
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from typing import Any

from teachers.llm.questions import Answer, Question
from teachers.llm.settings import LlmError

LOG = logging.getLogger("tinyheads")
FILE = "answers.sqlite3"
BAD_ANSWERS = 4  # after which a question is given up
WAIT = 60.0  # seconds for another process that writes


def key_of(*parts: Any) -> bytes:
    """The digest of JSON values."""
    text = json.dumps(parts, sort_keys=True, ensure_ascii=True)
    return hashlib.blake2b(text.encode(), digest_size=20).digest()


@dataclass
class Entry:
    """The answers to a question about a text.

    Attributes:
        votes: The valid answers, which are probabilities or samples.
        bad: The number of invalid ones since the latest valid one.
    """

    votes: list[Answer] = field(default_factory=list)
    bad: int = 0

    def missing(self, votes: int) -> int:
        """How many more valid answers are to be asked for; 0 for a question that was given up."""
        return 0 if self.bad >= BAD_ANSWERS else max(0, votes - len(self.votes))

    @staticmethod
    def from_json(value: Any, question: Question) -> Entry:
        """The entry in the cache, empty if the value is none of this question."""
        if isinstance(value, list) and len(value) == 2 and isinstance(value[0], list):
            votes = [question.probabilities(vote) for vote in value[0]]
            if None not in votes and isinstance(value[1], int):
                return Entry([vote for vote in votes if vote], value[1])
        return Entry()


class AnswerCache:
    """JSON values by key."""

    def __init__(self, folder: Path) -> None:
        """Open the cache in a folder, or create it; a damaged file is set aside.

        Raises:
            LlmError: The folder or its file cannot be written.
        """
        self.path = folder.expanduser() / FILE
        self._lock = Lock()
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            try:
                self._open()
            except sqlite3.DatabaseError as error:
                if isinstance(error, sqlite3.OperationalError):
                    raise
                self._set_aside()
                self._open()
        except (OSError, sqlite3.Error) as error:
            raise self._unusable(error) from None

    def get(self, key: bytes) -> Any:
        """The value of a key, None if there is none."""
        row = self._run("SELECT answer FROM answers WHERE key = ?", (key,))
        try:
            return json.loads(row[0]) if row else None
        except (ValueError, TypeError):
            return None

    def put(self, key: bytes, value: Any) -> None:
        """Write a value, which is on disk when this returns."""
        self._run("INSERT OR REPLACE INTO answers VALUES (?, ?)", (key, json.dumps(value)))

    def forget(self, keys: Iterable[bytes]) -> None:
        """Remove keys."""
        for key in keys:
            self._run("DELETE FROM answers WHERE key = ?", (key,))

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._connection.close()

    def _open(self) -> None:
        self._connection = sqlite3.connect(
            self.path, timeout=WAIT, isolation_level=None, check_same_thread=False
        )
        try:
            if (found := self._connection.execute("PRAGMA quick_check(1)").fetchone()[0]) != "ok":
                raise sqlite3.DatabaseError(found)
            self._connection.execute("PRAGMA journal_mode = WAL")
            self._connection.execute("PRAGMA synchronous = NORMAL")
            self._connection.execute(
                "CREATE TABLE IF NOT EXISTS answers (key BLOB PRIMARY KEY, answer TEXT) WITHOUT ROWID"
            )
            self._connection.execute("SELECT key, answer FROM answers LIMIT 1")
        except sqlite3.Error:
            self._connection.close()
            raise

    def _set_aside(self) -> None:
        number = 1
        while (aside := self.path.with_name(f"{FILE}.damaged-{number}")).exists():
            number += 1
        self.path.rename(aside)
        for suffix in ("-wal", "-shm"):
            self.path.with_name(FILE + suffix).unlink(missing_ok=True)
        LOG.warning(
            f"{self.path}: is damaged, so its answers are asked for again; it is kept as {aside.name}"
        )

    def _run(self, statement: str, values: tuple[Any, ...]) -> Any:
        try:
            with self._lock:
                return self._connection.execute(statement, values).fetchone()
        except sqlite3.Error as error:
            raise self._unusable(error) from None

    def _unusable(self, error: Exception) -> LlmError:
        reason = getattr(error, "strerror", None) or str(error)
        return LlmError(f"cache: {self.path}: {reason} (set teacher.llm.cache to another folder)")
