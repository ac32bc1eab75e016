"""A labelling project: an SQLite file with texts, decisions and codebook. It survives a killed process.

Decisions are never removed: an undo only marks one. So no decision is lost, and the history of a text can be read.
"""

from __future__ import annotations

import json
import sqlite3
import statistics
import time
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bertsmith.data.table import SINGLE_LABEL
from bertsmith.errors import DataError, RunFolderError, write_error
from bertsmith.labelling.decision import SETTLER, Decision, misfit
from bertsmith.labelling.label_names import checked_labels, followed_suggestion, joined_labels, rename

FILE, TABLE = "labels.sqlite", "labels.csv"
"""The file of a project, and the exported table."""
VERSION = 1
PAUSE = 300.0
"""Longer decisions, in seconds, count as pauses."""
_SCHEMA = """
CREATE TABLE facts (name TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE texts (
    id INTEGER PRIMARY KEY, row INTEGER NOT NULL UNIQUE, text TEXT NOT NULL, pair TEXT, columns TEXT NOT NULL,
    reason TEXT NOT NULL, random INTEGER NOT NULL, suggestion TEXT);
CREATE TABLE decisions (
    id INTEGER PRIMARY KEY, text INTEGER NOT NULL REFERENCES texts(id), coder TEXT NOT NULL, status TEXT NOT NULL,
    labels TEXT NOT NULL, note TEXT NOT NULL, seconds REAL NOT NULL, time REAL NOT NULL,
    undone INTEGER NOT NULL DEFAULT 0);
CREATE INDEX by_text ON decisions (text, coder);
"""


@dataclass(frozen=True)
class Queued:
    """A text to label.

    Attributes:
        row: its row in the pool, from 1.
        text, pair: the text, and the second segment of a pair.
        reason: why it was chosen.
        random: whether it belongs to the random sample of the pool.
        columns: the other columns of its row.
        suggestion: a proposed label, which coders see on demand.
        id: its number in the project.
    """

    row: int
    text: str
    reason: str
    random: bool
    pair: str | None = None
    columns: Mapping[str, Any] = field(default_factory=dict)
    suggestion: str | None = None
    id: int = 0


class Project:
    """The file of a project. Every change is a transaction that is on disk when the method returns.

    Args:
        path: folder of the project.
        create: settings of a new project: ``task`` and ``labels``; ``None`` to open an existing one.

    Raises:
        RunFolderError: if the folder contains no project, or its file is damaged.
        OutputError: if the folder is not writable.
    """

    def __init__(self, path: Path, create: Mapping[str, Any] | None = None) -> None:
        self.path, self.file = path, path / FILE
        if not self.exists(path):
            if (path / TABLE).is_file():
                raise RunFolderError(
                    f"this folder contains {TABLE}, but the file of the project is missing or empty",
                    where=str(self.file),
                    remedy=f"Restore {FILE} from a copy. Without a copy, train on {TABLE}, and choose texts with the "
                    "run: bertsmith next RUN POOL.",
                )
            if create is None:
                raise RunFolderError(
                    "this folder contains no labelling project",
                    where=str(path),
                    remedy="Create one: bertsmith label POOL -o PROJECT --labels a,b,c",
                )
            self._create(create)
        version = self.setting("version")
        if version > VERSION:
            raise RunFolderError(
                f"a newer version of bertsmith wrote this project (format {version})",
                where=str(self.file),
                remedy="Use that version of bertsmith.",
            )

    @classmethod
    def exists(cls, path: Path) -> bool:
        """Return whether a folder contains a project."""
        file = path / FILE
        return file.is_file() and file.stat().st_size > 0  # it is empty if a process was killed while it created it

    def _create(self, settings: Mapping[str, Any]) -> None:
        others = (
            [p.name for p in self.path.iterdir() if not p.name.startswith((".", FILE))] if self.path.is_dir() else []
        )
        if others or self.path.is_file():
            raise RunFolderError(
                "the path is a file, or a folder with other files",
                where=str(self.path),
                remedy="Choose another folder with -o.",
            )
        facts = {"task": SINGLE_LABEL, "codebook": {}, "version": VERSION, **settings, "labels": []}
        facts["labels"] = joined_labels(facts, checked_labels(settings.get("labels", [])))
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise write_error(self.path, error) from error
        with self._open(write=True) as database:
            for statement in _SCHEMA.split(";"):
                database.execute(statement)
            _set(database, facts)

    @contextmanager
    def _open(self, *, write: bool = False) -> Iterator[sqlite3.Connection]:
        """Open the file in a transaction, to read or to write. It is committed if the block succeeds."""
        try:
            database = sqlite3.connect(self.file, timeout=30, isolation_level=None)
        except sqlite3.Error as error:
            raise write_error(self.file, error) from error
        database.row_factory = sqlite3.Row
        try:
            database.execute("BEGIN IMMEDIATE" if write else "BEGIN")
            yield database
            database.execute("COMMIT")
        except sqlite3.DatabaseError as error:
            # The code of other operational errors says what is wrong with the disk; this one means a missing table.
            if isinstance(error, sqlite3.OperationalError) and error.sqlite_errorcode != sqlite3.SQLITE_ERROR:
                is_locked = error.sqlite_errorcode == sqlite3.SQLITE_BUSY
                raise write_error(self.file, error, "Try again later." if is_locked else None) from error
            raise RunFolderError(
                f"the file of the project is damaged: {error}", where=str(self.file), remedy="Restore it from a copy."
            ) from error
        finally:
            database.close()  # rolls back what was not committed

    def read(self) -> tuple[dict[str, Any], list[Queued], list[Decision]]:
        """Return the settings, `texts` and `decisions` of the same moment, although coders may write meanwhile."""
        with self._open() as database:
            return _settings(database), _texts(database), _decisions(database)

    # -- settings ------------------------------------------------------------------------------------------------------

    def setting(self, name: str, default: Any = None) -> Any:
        """Return a setting of the project."""
        with self._open() as database:
            return _settings(database).get(name, default)

    def set_settings(self, settings: Mapping[str, Any]) -> None:
        """Change settings of the project."""
        with self._open(write=True) as database:
            _set(database, settings)

    @property
    def labels(self) -> list[str]:
        """The labels; for ordinal labels in their order."""
        return list(self.setting("labels"))

    @property
    def task(self) -> str:
        """The kind of label."""
        return str(self.setting("task"))

    def add_labels(self, labels: Sequence[str]) -> list[str]:
        """Add labels that the project does not have yet, and return them. All ordinal labels together give the order.

        Raises:
            ConfigError: from `checked_labels` and `joined_labels`.
        """
        given = checked_labels(labels)
        with self._open(write=True) as database:
            settings = _settings(database)
            _set(database, {"labels": joined_labels(settings, given)})
        return [label for label in given if label not in settings["labels"]]

    def define(self, label: str, definition: str | None = None, examples: str | None = None) -> None:
        """Write the given parts of the entry of a label, which may be new, into the codebook.

        Raises:
            ConfigError: as `add_labels`.
        """
        (label,) = checked_labels([label])
        with self._open(write=True) as database:
            settings = _settings(database)
            entry = settings.setdefault("codebook", {}).setdefault(label, {"definition": "", "examples": ""})
            parts = {"definition": definition, "examples": examples}
            entry.update({part: text.strip() for part, text in parts.items() if text is not None})
            _set(database, {"labels": joined_labels(settings, [label]), "codebook": settings["codebook"]})

    def rename_label(self, old: str, new: str) -> None:
        """Rename a label in decisions, suggestions and codebook, or merge it with another label; see `rename`.

        Raises:
            ConfigError: from `checked_rename`.
        """
        with self._open(write=True) as database:
            _set(database, rename(database, _settings(database), old, new))

    # -- texts and decisions -------------------------------------------------------------------------------------------

    def add_texts(self, texts: Sequence[Queued]) -> None:
        """Add texts to the queue, in this order. A text whose row is in the queue already is ignored."""
        insert = "INSERT OR IGNORE INTO texts (row, text, pair, columns, reason, random, suggestion)"
        with self._open(write=True) as database:
            renamed = _settings(database).get("renamed", {})
            for t in texts:
                values = (t.row, t.text, t.pair, json.dumps(t.columns, default=str), t.reason, int(t.random))
                suggestion = followed_suggestion(t.suggestion, renamed)
                database.execute(f"{insert} VALUES (?, ?, ?, ?, ?, ?, ?)", (*values, suggestion))

    @property
    def texts(self) -> list[Queued]:
        """All texts of the queue, in order."""
        with self._open() as database:
            return _texts(database)

    @property
    def rows(self) -> list[int]:
        """The rows in the pool of all texts of the queue."""
        return [text.row for text in self.texts]

    def coder(self, name: str) -> str:
        """Return the name of a coder as in earlier decisions, whose case and Unicode form may differ."""
        with self._open() as database:
            names = [row[0] for row in database.execute("SELECT coder FROM decisions GROUP BY coder ORDER BY MIN(id)")]
        same = [known for known in names if _folded(known) == _folded(name)]
        return name if name in same else next(iter(same), name)

    def next_text(self, coder: str) -> Queued | None:
        """Return the first text that a coder has not decided yet; a skipped text does not come back."""
        query = """SELECT * FROM texts WHERE NOT EXISTS
            (SELECT 1 FROM decisions WHERE text = texts.id AND coder = ? AND undone = 0) ORDER BY id LIMIT 1"""
        with self._open() as database:
            row = database.execute(query, (coder,)).fetchone()
        return None if row is None else _queued(row)

    def decide(self, decision: Decision) -> None:
        """Record a decision. It replaces an earlier one of the same coder about the same text, except a settlement.

        Raises:
            DataError: if it does not fit the project.
        """
        values = (decision.text, decision.coder, decision.status, json.dumps(decision.labels), decision.note)
        with self._open(write=True) as database:
            known = database.execute("SELECT 1 FROM texts WHERE id = ?", (decision.text,)).fetchone()
            others = [d for d in _decisions(database) if d.text == decision.text] if decision.coder == SETTLER else []
            if wrong := misfit(decision, _settings(database), others, is_queued=known is not None):
                raise DataError(
                    f"the decision about text {decision.text} does not fit the project: {wrong}",
                    where=str(self.file),
                    remedy="Reload the page, which shows what is left to decide.",
                )
            database.execute(
                "INSERT INTO decisions (text, coder, status, labels, note, seconds, time) VALUES (?, ?, ?, ?, ?, ?, ?)",
                (*values, decision.seconds, time.time()),
            )

    def undo(self, coder: str, text: int | None = None) -> Queued | None:
        """Undo the decisions of a coder about a text, by default the last decided one; return it, or ``None``."""
        last = """SELECT texts.* FROM texts JOIN decisions ON decisions.text = texts.id
            WHERE coder = ? AND undone = 0 AND texts.id = coalesce(?, texts.id) ORDER BY decisions.id DESC LIMIT 1"""
        with self._open(write=True) as database:
            row = database.execute(last, (coder, text)).fetchone()
            if row is None:
                return None
            database.execute("UPDATE decisions SET undone = 1 WHERE text = ? AND coder = ?", (row["id"], coder))
        return _queued(row)

    @property
    def decisions(self) -> list[Decision]:
        """The current decision of every coder about every text, in the order of the decisions."""
        with self._open() as database:
            return _decisions(database)

    def progress(self, coder: str) -> dict[str, Any]:
        """Return numbers for the page of a coder: texts ``decided``, in the queue, and median ``seconds`` of a text."""
        mine = "SELECT seconds, MAX(id) FROM decisions WHERE coder = ? AND undone = 0 GROUP BY text"
        with self._open() as database:
            total = database.execute("SELECT COUNT(*) FROM texts").fetchone()[0]
            seconds = [row[0] for row in database.execute(mine, (coder,))]
        worked = [value for value in seconds if 0 < value < PAUSE]
        return {"decided": len(seconds), "texts": total, "seconds": statistics.median(worked) if worked else None}


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


def _set(database: sqlite3.Connection, settings: Mapping[str, Any]) -> None:
    facts = [(name, json.dumps(value)) for name, value in settings.items()]
    database.executemany("INSERT OR REPLACE INTO facts VALUES (?, ?)", facts)


def _settings(database: sqlite3.Connection) -> dict[str, Any]:
    return {row["name"]: json.loads(row["value"]) for row in database.execute("SELECT * FROM facts")}


def _texts(database: sqlite3.Connection) -> list[Queued]:
    return [_queued(row) for row in database.execute("SELECT * FROM texts ORDER BY id")]


def _queued(row: sqlite3.Row) -> Queued:
    return Queued(**{**row, "random": bool(row["random"]), "columns": json.loads(row["columns"])})


def _decisions(database: sqlite3.Connection) -> list[Decision]:
    query = """SELECT text, coder, status, labels, note, seconds FROM decisions WHERE id IN
        (SELECT MAX(id) FROM decisions WHERE undone = 0 GROUP BY text, coder) ORDER BY id"""
    return [Decision(**{**row, "labels": tuple(json.loads(row["labels"]))}) for row in database.execute(query)]
