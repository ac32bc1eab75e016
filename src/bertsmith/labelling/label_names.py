"""The labels of a project: which names are valid, the place of new labels, and how a label gets another name."""

from __future__ import annotations

import json
import re
import sqlite3
import time
from collections.abc import Mapping, Sequence
from typing import Any

from bertsmith.data.outcomes import SEPARATOR
from bertsmith.data.table import ORDINAL
from bertsmith.errors import ConfigError, did_you_mean, listing, quoted

_INVALID = re.compile(r"[;\x00-\x1f\x7f-\x9f\ud800-\udfff]")
"""Separators of labels, control characters, and lone surrogates."""
_JOURNAL = """CREATE TABLE IF NOT EXISTS renames (
    time REAL NOT NULL, old TEXT NOT NULL, new TEXT NOT NULL, decision INTEGER, labels TEXT NOT NULL)"""


def checked_labels(labels: Sequence[str]) -> list[str]:
    """Return labels once each, with normalised spaces.

    Raises:
        ConfigError: if a label is empty, joins several labels, or has a control character.
    """
    names = list(dict.fromkeys(" ".join(label.split()) for label in labels))
    if wrong := [label for label in names if not label or _INVALID.search(label)]:
        raise ConfigError(
            f"these cannot be labels: {listing(wrong)}", remedy="Use words without semicolons and control characters."
        )
    return names


def joined_labels(settings: Mapping[str, Any], given: Sequence[str]) -> list[str]:
    """Return the labels of a project, and those given later. All ordinal labels together give the order.

    Raises:
        ConfigError: if a new label differs from another only in case, if it is a former name, or if the place of an
            ordinal label is unknown.
    """
    before, task = settings["labels"], settings["task"]
    new = [label for label in given if label not in before]
    _check_new(new, before, settings.get("renamed", {}))
    if task == ORDINAL and set(before) <= set(given):
        return list(given)
    if task == ORDINAL and new:
        raise ConfigError(
            f"the place of {listing(new)} among the ordinal labels {listing(before)} is unknown",
            remedy="Stop bertsmith label (Ctrl-C), and run it again with --labels and all labels, the lowest first.",
        )
    return [*before, *new]


def checked_rename(settings: Mapping[str, Any], old: str, new: str) -> tuple[str, str]:
    """Return the old and the new name of a label, with normalised spaces. The new name may be another label.

    Raises:
        ConfigError: if the project lacks the label, or the new name is not valid, the same, or in use.
    """
    labels, old, (new,) = settings["labels"], " ".join(old.split()), checked_labels([new])
    if old not in labels:
        raise ConfigError(
            f"the project has no label {quoted(old)}.{did_you_mean(old, labels)}",
            remedy=f"Pass one of its labels: {listing(labels)}.",
        )
    if new == old:
        raise ConfigError(f"the label {quoted(old)} has this name already", remedy="Pass another new name.")
    others = [label for label in labels if label != old]
    if new not in others:
        # A page from before the first rename could still mean another label by a former name.
        _check_new([new], others, {name: now for name, now in settings.get("renamed", {}).items() if now != old})
    return old, new


def rename(database: sqlite3.Connection, settings: Mapping[str, Any], old: str, new: str) -> dict[str, Any]:
    """Rename a label in all decisions and suggestions, or merge it with another label.

    Decisions keep their number and time. The table ``renames`` gets a row with the labels of the project before, and a
    row for each decision that changes, with its labels before.

    Args:
        database: a transaction of the project.
        settings: of the project.
        old, new: the names, for `checked_rename`.

    Returns:
        The settings that change.
    """
    old, new = checked_rename(settings, old, new)
    labels, codebook = settings["labels"], dict(settings.get("codebook", {}))
    changed, rows = [], [(None, json.dumps(labels))]
    for row in database.execute("SELECT id, labels FROM decisions").fetchall():
        if old in (given := json.loads(row["labels"])):
            changed.append((json.dumps(_follow(given, {old: new})), row["id"]))
            rows.append((row["id"], row["labels"]))
    texts = database.execute("SELECT suggestion, id FROM texts WHERE suggestion IS NOT NULL").fetchall()
    suggestions = [(followed_suggestion(row["suggestion"], {old: new}), row["id"]) for row in texts]
    database.execute(_JOURNAL)
    moment = time.time()
    database.executemany("INSERT INTO renames VALUES (?, ?, ?, ?, ?)", [(moment, old, new, *row) for row in rows])
    database.executemany("UPDATE decisions SET labels = ? WHERE id = ?", changed)
    database.executemany("UPDATE texts SET suggestion = ? WHERE id = ?", suggestions)
    if (entry := codebook.pop(old, None)) is not None:
        both = (codebook.get(new, {}), entry)
        codebook[new] = {
            part: "\n".join(filter(None, (each.get(part) for each in both))) for part in ("definition", "examples")
        }
    renamed = {name: new if now == old else now for name, now in settings.get("renamed", {}).items() if name != new}
    kept = [label for label in labels if label != old] if new in labels else _follow(labels, {old: new})
    return {"labels": kept, "codebook": codebook, "renamed": {**renamed, old: new}}


def followed_suggestion(suggestion: str | None, renamed: Mapping[str, str]) -> str | None:
    """Return proposed labels under their present names."""
    if suggestion is None:
        return None
    names = [name.strip() for name in suggestion.split(SEPARATOR)]
    return SEPARATOR.join(_follow(names, renamed)) if any(name in renamed for name in names) else suggestion


def _follow(labels: Sequence[str], renamed: Mapping[str, str]) -> list[str]:
    return list(dict.fromkeys(renamed.get(label, label) for label in labels))


def _check_new(new: Sequence[str], others: Sequence[str], renamed: Mapping[str, str]) -> None:
    if former := [label for label in new if label in renamed]:
        changes = ", ".join(f"{quoted(label)} is now {quoted(renamed[label])}" for label in former)
        raise ConfigError(
            f"former names of labels: {changes}",
            remedy="Use the present names: reload the page, or change --labels. Otherwise, choose other names.",
        )
    known = {label.casefold(): label for label in [*new, *others]}
    if alike := [label for label in new if label != known[label.casefold()]]:
        raise ConfigError(
            f"the labels {listing(alike)} differ from {listing([known[label.casefold()] for label in alike])} only in "
            "upper and lower case",
            remedy="Write each label in one way, as in the project.",
        )
