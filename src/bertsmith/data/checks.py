"""What is wrong with a table, or odd about it: each finding with its rows and what train will do."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from bertsmith.data.clean import CONFLICT, DUPLICATE, EMPTY, IN_TEST, IN_VALIDATION, NO_LABEL, Cleaned
from bertsmith.data.findings import Finding, some_of
from bertsmith.data.language import mix
from bertsmith.data.table import Table

if TYPE_CHECKING:
    import pandas as pd

    from bertsmith.model.tokenizer import Tokens

EXAMPLES = 5
"""Rows named with a finding."""
LOOKED_AT = 100
"""Texts with what a tokenizer does not know that are looked at for examples of it."""
_HTML = re.compile(
    r"</?(?:p|br|div|span|a|b|i|em|strong|li|ul|td|tr|table|h\d|img|font)\b[^<>]*>|&(?:[a-z]{2,6}|#\d+);", re.I
)


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


def cleaning_findings(cleaned: Cleaned) -> list[Finding]:
    """Return what there is to say of rows that cleaning takes out or changes."""
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


def near_duplicate_findings(cleaned: Cleaned) -> list[Finding]:
    """Return what there is to say of texts that nearly repeat one another."""
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


def text_findings(table: Table, texts: list[str]) -> list[Finding]:
    """Return what there is to say of damaged characters, HTML, and languages."""
    from ftfy.badness import is_bad

    found = []
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
        tags = Counter(tag for text in texts for tag in dict.fromkeys(_HTML.findall(text)))
        such = some_of([tag for tag, _ in tags.most_common(3)])
        message = f"{_rows(int(html.sum()))} with HTML left in ({html.mean():.1%}), such as {such}"
        found.append(
            Finding(
                "html",
                "warning" if html.mean() > 0.01 else "info",
                int(html.sum()),
                message,
                "used as they are; strip tags and replace entities (such as &amp; by &) if they mean nothing",
                _examples(table.frame[html], table.name),
            )
        )
    languages = mix(texts)
    known = Counter(language for language in languages if language)
    total = known.total()
    if total >= 10:
        main, most = known.most_common(1)[0]
        guessed = f"of the {total:,} texts whose language can be guessed, roughly,"
        other = {k: v for k, v in known.items() if k != main and v >= max(3, 0.01 * total)}
        if other:
            where = np.array([language in other for language in languages])
            shares = ", ".join(f"{v / total:.1%} {k}" for k, v in sorted(other.items(), key=lambda kv: -kv[1]))
            found.append(
                Finding(
                    "languages",
                    "warning",
                    int(where.sum()),
                    f"{guessed} {most / total:.1%} look {main}, others {shares}",
                    "used as they are; take a multilingual checkpoint, such as FacebookAI/xlm-roberta-base",
                    _examples(table.frame[where], table.name),
                )
            )
        if main != "English" and most > total / 2:
            found.append(
                Finding(
                    "not-english",
                    "warning",
                    most,
                    f"{guessed} most look {main}",
                    f"a checkpoint for English does not know it: take one for {main}, or a multilingual one, such as "
                    "FacebookAI/xlm-roberta-base",
                )
            )
    return found


def token_findings(table: Table, texts: list[str], tokens: Tokens, names: Mapping[str, str]) -> list[Finding]:
    """Return what there is to say of what the model's tokenizer does not know.

    Args:
        table: the usable rows.
        texts: theirs.
        tokens: what the model's tokenizer makes of them.
        names: symbols that the tokenizer reads as their names, by symbol.
    """
    found = []
    symbols = set(names)
    named = np.array([not text.isascii() and not symbols.isdisjoint(text) for text in texts], dtype=bool)
    if named.any():
        often = Counter(character for text in texts for character in dict.fromkeys(text) if character in symbols)
        symbol = next(s for s, _ in often.most_common() if names[s])
        found.append(
            Finding(
                "symbols",
                "info",
                int(named.sum()),
                f"{_rows(int(named.sum()))} with emoji that the model's tokenizer does not know ({named.mean():.1%})",
                f"each is read as its name: {symbol} as {names[symbol]!r}",
                _examples(table.frame[named], table.name),
            )
        )
    unknown = tokens.has_unknown
    if unknown.any() and tokens.encoder is not None:
        some = np.flatnonzero(unknown)[:LOOKED_AT]
        pieces = dict.fromkeys(piece for i in some for piece in tokens.encoder.unknown_words(texts[i]))
        longest = max(pieces, key=len)
        shown = list(dict.fromkeys([*list(pieces)[:2], longest]))  # a word may be unknown for its length alone
        such = some_of([repr(_short(piece)) for piece in shown])
        found.append(
            Finding(
                "unread",
                "warning" if unknown.mean() > 0.01 else "info",
                int(unknown.sum()),
                f"{_rows(int(unknown.sum()))} with what the model's tokenizer does not know ({unknown.mean():.1%}), "
                f"such as {such}",
                "all of that is one and the same to the model; if it matters, take a checkpoint that knows it",
                _examples(table.frame[unknown], table.name),
            )
        )
    return found


def length_findings(table: Table, tokens: np.ndarray, limit: int) -> list[Finding]:
    """Return what there is to say of texts that are longer than what the model reads."""
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


def _rows(n: int) -> str:
    return "1 row" if n == 1 else f"{n:,} rows"


def _short(text: str, most: int = 20) -> str:
    return text if len(text) <= most else f"{text[: most - 1]}…"


def _examples(frame: pd.DataFrame, main: str, limit: int = EXAMPLES) -> tuple[int | str, ...]:
    head = zip(frame["source"].iloc[:limit], frame["row"].iloc[:limit], strict=True)
    return tuple(int(row) if source == main else f"{source} {row}" for source, row in head)
