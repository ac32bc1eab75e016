"""What a table holds and what is wrong with it: each finding counted, with example rows and what train will do."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from bertsmith.data.clean import CONFLICT, DUPLICATE, EMPTY, IN_TEST, IN_VALIDATION, NO_LABEL, Cleaned, clean
from bertsmith.data.findings import SEVERITIES, ClassCount, Finding, Findings, Lengths
from bertsmith.data.language import mix
from bertsmith.data.split import RULE
from bertsmith.data.table import MISSING, Table

if TYPE_CHECKING:
    import pandas as pd

TokenCounter = Callable[[Sequence[str]], np.ndarray]
"""Takes texts, returns the number of tokens of each, special tokens counted, shape (texts,)."""

PERCENTILES = (5, 25, 50, 75, 95, 99)
EXAMPLES = 5
"""Rows named with a finding."""
COVERAGE = 99
"""Share of the texts, in per cent, that the chosen maximum length covers."""

_HTML = re.compile(
    r"</?(?:p|br|div|span|a|b|i|em|strong|li|ul|td|tr|table|h\d|img|font)\b[^<>]*>|&(?:[a-z]{2,6}|#\d+);", re.I
)
_WORD = re.compile(r"\w+|[^\w\s]")


def inspect(
    table: Table,
    *,
    count_tokens: TokenCounter | None = None,
    max_length: int | None = None,
    model_limit: int = 512,
    cleaned: Cleaned | None = None,
) -> Findings:
    """Look a table over. Nothing is changed.

    Args:
        table: as read.
        count_tokens: counts tokens as the model's tokenizer would; lengths are estimated from words without it.
        max_length: tokens kept of each text; chosen by `choose_max_length` unless given.
        model_limit: most tokens the model takes.
        cleaned: the table cleaned, if that is at hand.
    """
    cleaned = cleaned or clean(table)
    usable = cleaned.table
    texts = usable.frame["text"].tolist()
    tokens = count_tokens(texts) if count_tokens else estimate_tokens(texts)
    limit = max_length or choose_max_length(tokens, model_limit)
    characters = np.fromiter(map(len, texts), dtype=np.int64, count=len(texts))
    counts = usable.counts
    present = counts[counts > 0]
    truncated = float((tokens > limit).mean()) if len(tokens) else 0.0
    found = [
        *_about_labels(usable),
        *_about_cleaning(cleaned),
        *_about_near_duplicates(cleaned),
        *_about_texts(usable, texts),
        *_about_lengths(usable, tokens, limit),
        *(
            Finding("reading", note.severity, note.count, note.message, "the table is used like that", note.rows)
            for note in table.notes
        ),
    ]
    split = usable.frame["split"].value_counts()
    return Findings(
        name=table.name,
        rows=len(table),
        usable=len(usable),
        columns={
            role: name
            for role in ("text", "label", "label_text", "group", "split")
            if (name := getattr(table.columns, role)) is not None
        },
        classes=tuple(
            ClassCount(number, text, int(n))
            for number, text, n in zip(table.labels.numbers, table.labels.texts, counts, strict=True)
        ),
        imbalance=float(present.max() / present.min()) if len(present) else float("nan"),
        characters=_lengths("characters", characters),
        tokens=_lengths("tokens" if count_tokens else "tokens (estimated)", tokens),
        max_length=limit,
        truncated=truncated,
        splits={str(name): int(n) for name, n in split.items()},
        findings=tuple(sorted(found, key=lambda f: SEVERITIES.index(f.severity))),
    )


def estimate_tokens(texts: Sequence[str]) -> np.ndarray:
    """Estimate word pieces from words and punctuation marks, shape (texts,).

    On English texts, BERT's word pieces are 1.02 to 1.16 times as many (measured on five collections).
    """
    return np.array([round(1.1 * len(_WORD.findall(text))) + 2 for text in texts], dtype=np.int64)


def choose_max_length(tokens: np.ndarray, model_limit: int) -> int:
    """Return the length that covers `COVERAGE` per cent of the texts, a multiple of 8, at most ``model_limit``."""
    if not len(tokens):
        return model_limit
    wanted = int(np.ceil(np.percentile(tokens, COVERAGE)))
    return int(min(max(-(-wanted // 8) * 8, 8), model_limit))


def _about_labels(table: Table) -> list[Finding]:
    counts, labels, found = table.counts, table.labels, []
    if (counts > 0).sum() < 2:
        found.append(
            Finding("one-class", "error", 1, "there are not two classes with usable texts", "train refuses the table")
        )
        return found
    given = table.frame["split"]
    training = table.targets[((given != "test") & (given != "validation")).to_numpy()]
    trained = np.bincount(training[training != MISSING], minlength=len(labels))
    absent = [labels.texts[i] for i in np.flatnonzero(trained == 0)]
    if absent:
        found.append(
            Finding(
                "untrained-class",
                "warning",
                len(absent),
                f"no usable training text: {_names(absent)}",
                "the class cannot be learned, and its texts in validation and test count as mistakes",
            )
        )
    held_out = 2 - sum(bool((given == name).any()) for name in ("validation", "test"))
    small = [f"{labels.texts[i]} ({trained[i]})" for i in np.flatnonzero((trained > 0) & (trained <= held_out))]
    if small:
        found.append(
            Finding(
                "class-too-small",
                "warning",
                len(small),
                f"too few texts to be in every split: {_names(small)}",
                RULE,
            )
        )
    few = [f"{labels.texts[i]} ({trained[i]})" for i in np.flatnonzero((trained > held_out) & (trained < 10))]
    if few:
        found.append(
            Finding(
                "small-class",
                "warning",
                len(few),
                f"fewer than 10 texts to learn from: {_names(few)}",
                "used as it is; expect little of these classes, and merge them if that is acceptable",
            )
        )
    folded = Counter(text.casefold() for text in labels.texts)
    alike = [text for text in labels.texts if folded[text.casefold()] > 1]
    if alike:
        found.append(
            Finding(
                "labels-alike",
                "warning",
                len(alike),
                f"label texts that differ only in case: {_names(alike)}",
                "they stay classes of their own; make them equal in the table if they mean the same",
            )
        )
    ratio = counts.max() / counts[counts > 0].min()
    if ratio >= 10:
        found.append(
            Finding(
                "imbalance",
                "info",
                len(labels),
                f"the largest class has {ratio:.0f} times the texts of the smallest",
                "macro-F1, which gives every class the same weight, chooses the best epoch",
            )
        )
    return found


_DROPPED = {
    EMPTY: ("empty-text", "warning", "without a text", "left out"),
    NO_LABEL: ("missing-label", "warning", "without a label", "left out; predict can label them afterwards"),
    DUPLICATE: ("duplicate", "info", "repeating the text and class of another", "the first of each is kept"),
    CONFLICT: (
        "conflict",
        "warning",
        "whose text stands under several classes",
        "set aside, all of them; correct the labels to use them",
    ),
    IN_TEST: (
        "leak-test",
        "warning",
        "to train on whose text is also in the test table",
        "taken out of train and validation; the test table stays whole",
    ),
    IN_VALIDATION: (
        "leak-validation",
        "warning",
        "to train on whose text is also in the validation table",
        "taken out of train",
    ),
}


def _about_cleaning(cleaned: Cleaned) -> list[Finding]:
    found = []
    for reason, (kind, severity, message, action) in _DROPPED.items():
        rows = cleaned.dropped[cleaned.dropped["reason"] == reason]
        if len(rows):
            found.append(
                Finding(
                    kind,
                    severity,
                    len(rows),
                    _rows(len(rows)) + " " + message,
                    action,
                    _examples(rows, cleaned.table.name),
                )
            )
    given = cleaned.table.frame["split"].isin(["validation", "test"])
    repeated = cleaned.table.frame[given & cleaned.table.frame.duplicated(["split", "text"])]
    if len(repeated):
        message = f"{_rows(len(repeated))} repeating another within the given validation or test table"
        found.append(
            Finding(
                "duplicate-held-out",
                "info",
                len(repeated),
                message,
                "kept: given tables stay whole",
                _examples(repeated, cleaned.table.name),
            )
        )
    if cleaned.normalised:
        message = f"{_rows(cleaned.normalised)} with control characters or composed characters (Unicode NFC)"
        found.append(
            Finding(
                "normalised", "info", cleaned.normalised, message, "control characters removed, characters composed"
            )
        )
    return found


def _about_near_duplicates(cleaned: Cleaned) -> list[Finding]:
    frame, name = cleaned.table.frame, cleaned.table.name
    grouped = frame.assign(alike=cleaned.alike, split=frame["split"].fillna("")).groupby("alike")
    # Texts that are equal are told elsewhere.
    several, other_label, other_split = (
        (grouped[column].transform("nunique") > 1).to_numpy() for column in ("text", "target", "split")
    )
    held_out = frame["split"].isin(["validation", "test"]).to_numpy()
    kinds = (
        (
            "near-duplicate",
            "info",
            several,
            "whose text nearly repeats that of another",
            "kept, and kept in one split where bertsmith splits, unless --near-duplicates ignore",
        ),
        (
            "near-conflict",
            "warning",
            several & other_label,
            "whose text nearly repeats that of another with another label",
            "used as they are; look whether the labels are right",
        ),
        (
            "near-leak",
            "warning",
            several & held_out & other_split,
            "of the given validation and test tables whose text nearly repeats one of another split",
            "kept: given tables stay whole; the figures may flatter",
        ),
    )
    return [
        Finding(
            kind,
            severity,
            int(which.sum()),
            f"{_rows(int(which.sum()))} {message}",
            action,
            _pairs(frame, cleaned.alike, which, name),
        )
        for kind, severity, which, message, action in kinds
        if which.any()
    ]


def _pairs(frame: pd.DataFrame, alike: np.ndarray, which: np.ndarray, main: str) -> tuple[str, ...]:
    """Name some rows with the row each is like: the first of its group, or for that one the next."""
    found: list[tuple[int | str, ...]] = []
    for i in np.flatnonzero(which):
        others = np.flatnonzero(alike == alike[i])
        partner = others[0] if others[0] != i else others[1]
        pair = _examples(frame.iloc[[i, partner]], main)
        if sorted(map(str, pair)) not in [sorted(map(str, p)) for p in found]:
            found.append(pair)
        if len(found) == EXAMPLES:
            break
    return tuple(f"{a} ≈ {b}" for a, b in found)


def _about_texts(table: Table, texts: list[str]) -> list[Finding]:
    from ftfy.badness import is_bad

    found = []
    n = max(len(texts), 1)
    damaged = np.array([not t.isascii() and ("\ufffd" in t or is_bad(t)) for t in texts], dtype=bool)
    if damaged.any():
        message = f"{_rows(int(damaged.sum()))} with damaged characters (such as Ã© for é, or \ufffd)"
        action = "used as they are; read the file with the right --encoding, or repair the texts"
        severity = "warning" if damaged.mean() > 0.001 else "info"
        found.append(
            Finding(
                "encoding-damage",
                severity,
                int(damaged.sum()),
                message,
                action,
                _examples(table.frame[damaged], table.name),
            )
        )
    html = np.array([bool(_HTML.search(t)) for t in texts], dtype=bool)
    if html.any():
        message = f"{_rows(int(html.sum()))} with HTML left in ({html.sum() / n:.1%})"
        found.append(
            Finding(
                "html",
                "warning" if html.mean() > 0.01 else "info",
                int(html.sum()),
                message,
                "used as they are; strip the tags if they mean nothing",
                _examples(table.frame[html], table.name),
            )
        )
    languages = mix(texts)
    known = Counter(language for language in languages if language)
    total = known.total()
    if total >= 10:
        main = known.most_common(1)[0][0]
        other = {k: v for k, v in known.items() if k != main and v >= max(3, 0.01 * total)}
        if other:
            where = np.array([language in other for language in languages])
            shares = ", ".join(f"{k} {v / total:.1%}" for k, v in sorted(other.items(), key=lambda kv: -kv[1]))
            message = f"texts in several languages, by a rough guess: {main} {known[main] / total:.1%}, {shares}"
            found.append(
                Finding(
                    "languages",
                    "warning",
                    int(where.sum()),
                    message,
                    "used as they are; take a multilingual checkpoint, such as FacebookAI/xlm-roberta-base",
                    _examples(table.frame[where], table.name),
                )
            )
        if main != "English":
            found.append(
                Finding(
                    "not-english",
                    "warning",
                    known[main],
                    f"most texts look {main}",
                    "the default checkpoint knows English: take one for this language, or a multilingual one",
                )
            )
    return found


def _about_lengths(table: Table, tokens: np.ndarray, limit: int) -> list[Finding]:
    long = tokens > limit
    if not len(tokens) or long.mean() <= 0.011:
        return []
    message = f"{_rows(int(long.sum()))} longer than {limit} tokens ({long.mean():.1%})"
    return [
        Finding(
            "truncated",
            "warning",
            int(long.sum()),
            message,
            "only their beginning is used",
            _examples(table.frame[long], table.name),
        )
    ]


def _lengths(unit: str, values: np.ndarray) -> Lengths:
    if not len(values):
        return Lengths(unit, 0, 0, dict.fromkeys(PERCENTILES, 0), (0, 1), (0,))
    at = {p: int(np.percentile(values, p)) for p in PERCENTILES}
    top = max(at[99], 1)
    width = max(-(-top // 40), 1)
    edges = np.arange(0, top + 2 * width, width)
    counts = np.histogram(np.minimum(values, edges[-1]), bins=edges)[0]
    return Lengths(unit, int(values.min()), int(values.max()), at, tuple(map(int, edges)), tuple(map(int, counts)))


def _rows(n: int) -> str:
    return "1 row" if n == 1 else f"{n:,} rows"


def _names(names: Sequence[str], limit: int = 8) -> str:
    return ", ".join(names[:limit]) + (f" and {len(names) - limit:,} more" if len(names) > limit else "")


def _examples(frame: pd.DataFrame, main: str, limit: int = EXAMPLES) -> tuple[int | str, ...]:
    head = zip(frame["source"].iloc[:limit], frame["row"].iloc[:limit], strict=True)
    return tuple(int(row) if source == main else f"{source} {row}" for source, row in head)
