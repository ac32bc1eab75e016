"""The labels of a project as a table for `train`, and the agreement of its coders."""

from __future__ import annotations

import csv
import json
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from io import StringIO
from itertools import compress
from pathlib import Path
from typing import Any

import numpy as np

from bertsmith.data.columns import LABEL, LABEL_TEXT, TEXT, with_own_names
from bertsmith.data.outcomes import SEPARATOR, majority
from bertsmith.data.table import MULTI_LABEL, ORDINAL
from bertsmith.data.texts import quoting
from bertsmith.evaluation.agreement import Agreement, LabelSet, measure_agreement
from bertsmith.folders.atomic import disk_errors, write_text
from bertsmith.labelling.choose import inclusion_probabilities
from bertsmith.labelling.decision import LABELLED, SETTLER, SKIPPED, UNSURE, Decision
from bertsmith.labelling.project import TABLE, Project, Queued
from bertsmith.measuring.design import INCLUSION, RANDOM

AGREED, MAJORITY, TIE, SETTLED, SINGLE = "agreed", "majority", "tie", "settled", "one coder"
PAIR = "Pair"
"""The column with the second text of a pair."""
_FACTS = {RANDOM, INCLUSION, "reason", "decided_by", "share_of_coders", "row", "note"}
OWN_COLUMNS = {*LABEL, *LABEL_TEXT, "split", *_FACTS}
"""Columns of the project besides its texts. A column of the pool with such a name gets another name."""
_REMEDY = (
    "Every decision is saved. Close programs that have this file open, or check disk and permissions. Then run "
    "bertsmith label again, which writes the file when it ends."
)


@dataclass(frozen=True)
class Labelled:
    """A text with the labels that count.

    Attributes:
        text: the text.
        labels: its labels; ``None`` for a tie between coders, or if nobody gave a label.
        how: one of ``"one coder"``, ``"agreed"``, ``"majority"``, ``"tie"``, ``"settled"``, ``"unsure"`` and
            ``"skipped"``.
        share: share of the coders who gave exactly these labels.
        notes: notes of the coders.
    """

    text: Queued
    labels: LabelSet | None
    how: str
    share: float
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Snapshot:
    """The content of a project; ``pool_sizes`` is what `inclusion_probabilities` takes."""

    labels: list[str]
    task: str
    texts: list[Queued]
    decisions: list[Decision]
    pool_sizes: list[tuple[int, int]]

    @classmethod
    def of(cls, project: Project) -> Snapshot:
        """Read a project."""
        settings, texts, decisions = project.read()
        # Older versions count the texts of the whole pool only.
        sizes = settings.get("pool_sizes", [(sys.maxsize, settings.get("pool_rows", 0))])
        return cls(settings["labels"], settings["task"], texts, decisions, sizes)

    @cached_property
    def by_text(self) -> dict[int, list[Decision]]:
        """The decisions about each text."""
        found: dict[int, list[Decision]] = {}
        for decision in self.decisions:
            found.setdefault(decision.text, []).append(decision)
        return found

    @property
    def random_part(self) -> Snapshot:
        """The random texts alone, which represent the pool."""
        texts = [text for text in self.texts if text.random]
        return replace(self, texts=texts, decisions=[d for text in texts for d in self.by_text.get(text.id, ())])

    @property
    def labelled(self) -> list[Labelled]:
        """The texts that at least one coder labelled, in the order of the queue."""
        given = ((text, self.by_text.get(text.id, [])) for text in self.texts)
        return [self._count_votes(text, some) for text, some in given if any(d.status == LABELLED for d in some)]

    def _count_votes(self, text: Queued, decisions: Sequence[Decision]) -> Labelled:
        """Return the labels of the majority, or those that settled a disagreement."""
        notes, labelled = _notes(decisions), [d for d in decisions if d.status == LABELLED]
        votes = [frozenset(d.labels) for d in labelled if d.coder != SETTLER]
        settled = [frozenset(d.labels) for d in labelled if d.coder == SETTLER]
        labels, how = (settled[-1], SETTLED) if settled else (self._majority(votes), MAJORITY)
        if labels is None:
            return Labelled(text, None, TIE, Counter(votes).most_common(1)[0][1] / len(votes), notes)
        if not settled and len({*votes}) == 1:
            how = SINGLE if len(votes) == 1 else AGREED
        return Labelled(text, labels, how, votes.count(labels) / len(votes) if votes else 1.0, notes)

    def _majority(self, votes: Sequence[LabelSet]) -> LabelSet | None:
        indicators = np.array([[label in given for label in self.labels] for given in votes])
        if self.task == MULTI_LABEL:
            found = majority(indicators, ordered=False)
            return None if found is None else frozenset(compress(self.labels, found))
        found = majority(indicators.argmax(axis=1), ordered=self.task == ORDINAL)
        return None if found is None else frozenset([self.labels[found]])

    @property
    def without_label(self) -> list[Labelled]:
        """The random texts that coders skipped or were unsure about, and that nobody labelled."""
        given = ((text, self.by_text.get(text.id, [])) for text in self.texts if text.random)
        return [
            Labelled(text, None, UNSURE if any(d.status == UNSURE for d in some) else SKIPPED, 0.0, _notes(some))
            for text, some in given
            if some and all(d.status != LABELLED for d in some)
        ]

    @property
    def unused_labels(self) -> list[str]:
        """The labels that no text has, so that they are not in the table."""
        used = {label for each in self.labelled for label in each.labels or ()}
        return [label for label in self.labels if label not in used]

    @property
    def agreement(self) -> Agreement:
        """The agreement of the coders, without settled labels."""
        coded = {
            (d.text, d.coder): frozenset(d.labels)
            for d in self.decisions
            if d.status == LABELLED and d.coder != SETTLER
        }
        return measure_agreement(coded, self.labels, self.task)

    @property
    def disputed(self) -> list[tuple[Queued, list[Decision]]]:
        """The texts that coders labelled differently or were unsure about, and that nobody settled.

        Also the random texts that coders only skipped, because `bertsmith.measure` needs the label of each random text.
        """
        skipped = {each.text.id for each in self.without_label}
        return [
            (text, some)
            for text in self.texts
            if _is_disputed(some := self.by_text.get(text.id, [])) or text.id in skipped
        ]

    def labelled_targets(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return the rows of the texts with labels, from 0, their targets for the task, and whether they are random."""
        labelled = [(each.text, each.labels) for each in self.labelled if each.labels is not None]
        rows = np.array([text.row - 1 for text, _ in labelled], dtype=np.int64)
        random = np.array([text.random for text, _ in labelled], dtype=bool)
        index = {label: i for i, label in enumerate(self.labels)}
        if self.task != MULTI_LABEL:
            return rows, np.array([index[label] for _, given in labelled for label in given], dtype=np.int64), random
        targets = np.zeros((len(labelled), len(index)), dtype=bool)
        for i, (_, given) in enumerate(labelled):
            targets[i, [index[label] for label in given]] = True
        return rows, targets, random

    def overview(self) -> dict[str, Any]:
        """Return counts and agreement, JSON-ready. Agreement with suggestions is of coders who did not see them."""
        voted = self.labelled
        labelled, ties = ([each for each in voted if (each.labels is None) == is_tie] for is_tie in (False, True))
        counts = Counter(label for each in labelled for label in each.labels or ())
        blind = {
            (each.text.id, who): given
            for each in labelled
            if each.text.random and (suggested := self._suggested(each.text)) is not None
            for who, given in (("coders", each.labels), ("suggestion", suggested))
            if given is not None
        }
        return {
            "labelled": len(labelled),
            "random": sum(each.text.random for each in labelled),
            "coders": sorted({d.coder for d in self.decisions} - {SETTLER}),
            "counts": {label: counts[label] for label in self.labels},
            "agreement": self.agreement.to_dict(),
            "open": len(self.disputed),
            "without_label": len(self.without_label) + sum(each.text.random for each in ties),
            "suggestions": vars(measure_agreement(blind, self.labels, self.task).alpha) if blind else None,
        }

    def _suggested(self, text: Queued) -> LabelSet | None:
        """Return the suggested labels that the project has; ``None`` without a suggestion.

        With several labels per text, an empty suggestion means none of the labels, as in a table.
        """
        if text.suggestion is None or not (text.suggestion.strip() or self.task == MULTI_LABEL):
            return None
        return frozenset(map(str.strip, text.suggestion.split(SEPARATOR))) & frozenset(self.labels)

    @property
    def inclusion(self) -> dict[int, float]:
        """Inclusion probability of the random texts with a decision, by row; see `inclusion_probabilities`."""
        decided = {decision.text for decision in self.decisions}
        rows = [text.row for text in self.texts if text.random and text.id in decided]
        return inclusion_probabilities(rows, self.pool_sizes)

    def records(self) -> list[dict[str, Any]]:
        """Return one record per labelled text, with the columns that `train` and `measure` read.

        The split is test for random texts and train for the others, because chosen texts do not represent the pool. If
        only random texts have a label, the split of all records is train, and `train` holds out some of them.
        Random texts that nobody labelled have an empty label: without these records, `measure` could not see that the
        others are not a random sample. With several labels per text, labels are JSON lists. An empty list means none of
        the labels, and an empty cell means that the labels are missing.
        """
        numbers = {label: i for i, label in enumerate(self.labels, start=1)}
        records, inclusion = [], self.inclusion
        held_out = "train" if all(each.text.random or each.labels is None for each in self.labelled) else "test"
        for each in sorted([*self.labelled, *self.without_label], key=lambda each: each.text.id):
            text = each.text
            given = sorted(each.labels or (), key=numbers.__getitem__)
            written = "".join(given)
            if self.task == MULTI_LABEL and each.labels is not None:
                written = json.dumps(given, ensure_ascii=False)
            record: dict[str, Any] = {"Text": text.text}
            if text.pair is not None:
                record[PAIR] = text.pair
            if self.task == ORDINAL:
                record["Label"] = numbers[given[0]] if given else ""
            record |= {
                "Label Text": written,
                "split": held_out if text.random else "train",
                RANDOM: str(text.row in inclusion).lower(),
                INCLUSION: inclusion.get(text.row, ""),
                "reason": text.reason,
                "decided_by": each.how,
                "share_of_coders": round(each.share, 3),
                "row": text.row,
                "note": " | ".join(each.notes),
            }
            records.append(record | with_own_names(text.columns, [*record, *TEXT, *OWN_COLUMNS], "pool"))
        return records


def export(project: Project, path: Path | None = None) -> int:
    """Write the labels of a project as CSV, and return the number of labelled texts.

    Args:
        project: the project.
        path: the file; by default ``labels.csv`` in the folder of the project.

    Raises:
        OutputError: if the file cannot be written, as on Windows while another program has it open.
    """
    records = Snapshot.of(project).records()
    columns = list(dict.fromkeys(name for record in records for name in record))
    content = StringIO()
    mode = quoting([*columns, *(value for record in records for value in record.values())])
    writer = csv.DictWriter(content, columns, lineterminator="\n", restval="", quoting=mode)
    writer.writeheader()
    writer.writerows(records)
    with disk_errors(path or project.path / TABLE, None if path else _REMEDY):
        write_text(path or project.path / TABLE, content.getvalue())
    return sum(record["Label Text"] != "" for record in records)


def _notes(decisions: Sequence[Decision]) -> tuple[str, ...]:
    return tuple(decision.note for decision in decisions if decision.note)


def _is_disputed(decisions: Sequence[Decision]) -> bool:
    differ = len({frozenset(d.labels) for d in decisions if d.status == LABELLED}) > 1
    is_settled = any(d.coder == SETTLER for d in decisions)
    return not is_settled and (differ or any(d.status == UNSURE for d in decisions))
