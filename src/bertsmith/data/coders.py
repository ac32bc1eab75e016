"""Tables with the labels of several coders, one row per text and coder: the label of the majority counts."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from bertsmith.data.columns import canonical
from bertsmith.data.outcomes import majority
from bertsmith.data.table import MISSING, ORDINAL, REGRESSION, SINGLE_LABEL, Labels, Note, Table
from bertsmith.data.template import is_empty, normalise_text, texts_of
from bertsmith.data.texts import is_missing, to_text
from bertsmith.errors import ConfigError, DataError, counted, did_you_mean, listing

SHARE = "share_of_coders"
"""Column with the share of the coders who gave the label of a text."""


def merge_coders(table: Table, column: str) -> Table:
    """Keep one row per text, with the `majority` of its labels. A tie leaves the label missing, with a note.

    Rows without a coder or a text stay as they are. A coder's later label of a text replaces an earlier one. If texts
    can have several labels, but each row has at most one, the labels of a coder's rows of a text are united.

    Args:
        table: the table; its ``extra`` has the column.
        column: name of the column with the coders.

    Returns:
        The table with the column `SHARE` instead, and with all labels in ``coded``.

    Raises:
        DataError: if the table has no such column.
        ConfigError: if the labels are numbers to predict.
    """
    name = next((n for n in table.extra.columns if canonical(str(n)) == canonical(column)), None)
    if name is None:
        raise DataError(
            f"the table has no column {column!r}.{did_you_mean(column, map(str, table.extra.columns))}",
            where=table.name,
            remedy=f"Pass --coder-column with one of {listing(table.extra.columns)}.",
        )
    if table.task == REGRESSION:
        raise ConfigError(
            "--coder-column does not apply to --task regression",
            where=table.name,
            remedy="Leave out --coder-column: the number of a text is then the mean of its rows.",
        )
    codes, rows = table.codes, table.frame["row"].tolist()
    splits = table.frame["split"].tolist()
    texts = list(map(normalise_text, texts_of(table.frame.fillna({"text": "", "pair": ""}))))  # as `clean` compares
    votes: dict[tuple[object, object], dict[str, int]] = {}
    first: dict[tuple[object, object], int] = {}
    keep, outcomes, changed = np.zeros(len(table), dtype=bool), table.outcomes, set[int]()
    unites = outcomes.one_label_per_row
    for i, cell in enumerate(table.extra[name].tolist()):
        coder = "" if is_missing(cell) else to_text(cell).strip()  # CSV has "" for an empty cell
        if not coder or is_empty(texts[i]):
            keep[i] = True
            continue
        key: tuple[object, object] = (splits[i], texts[i])
        keep[first.setdefault(key, i)] = True
        if codes[i] == MISSING:
            continue
        given, code = votes.setdefault(key, {}), int(codes[i])
        if given.get(coder, code) != code and unites:
            code, outcomes = outcomes.code(outcomes.targets(np.array([given[coder], code])).any(axis=0))
        elif given.get(coder, code) != code:
            changed.add(first[key])
        given[coder] = code
    target, share = codes.copy(), np.full(len(table), np.nan)
    shares: list[tuple[float, ...] | None] = [None] * len(table)
    settled, ties = list[int](), list[int]()
    for key, given in votes.items():
        i, voted = first[key], list(given.values())
        target[i], share[i], n = voted[0], 1.0, Counter(voted)
        if len(n) == 1:
            continue
        found = majority(outcomes.targets(np.array(voted)), ordered=table.task == ORDINAL)
        target[i], outcomes = (MISSING, outcomes) if found is None else outcomes.code(found)
        share[i] = (max(n.values()) if found is None else n[int(target[i])]) / len(voted)
        (ties if found is None else settled).append(int(rows[i]))
        if table.task == SINGLE_LABEL:
            shares[i] = tuple(n[c] / len(voted) for c in range(len(table.labels)))
    notes = [
        Note(
            severity,
            f"coders {where} {counted(len(some), 'text')}, and bertsmith {how}",
            len(some),
            tuple(some),
        )
        for severity, where, how, some in (
            ("info", "disagree on", "uses the label of the majority", settled),
            ("warning", "are tied on", "drops such texts", ties),
        )
        if some
    ]
    if changed:
        what = f"{counted(len(changed), 'text has', 'texts have')} conflicting labels from the same coder"
        what += "; bertsmith uses the last label"
        notes.append(Note("warning", what, len(changed), tuple(int(rows[i]) for i in sorted(changed))))
    coded = {
        (first[key], coder): _label_texts(table.labels, outcomes.targets(np.array([code]))[0])
        for key, given in votes.items()
        for coder, code in given.items()
    }
    merged = replace(
        table,
        frame=table.frame.assign(target=target, votes=pd.Series(shares, dtype=object)),
        outcomes=outcomes,
        extra=table.extra.drop(columns=name).assign(**{SHARE: share}),
        notes=(*table.notes, *notes),
        coded=coded,
    )
    return merged.take(keep)


def _label_texts(labels: Labels, target: Any) -> frozenset[str]:
    """Return the label texts of a target."""
    return frozenset(labels.texts[c] for c in (np.flatnonzero(target) if np.ndim(target) else [target]))
