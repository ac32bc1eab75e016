"""Inspect a table: its classes, text lengths, and findings with example rows and what train will do."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from bertsmith.config import Config
from bertsmith.data.checks import CHECKS
from bertsmith.data.clean import Cleaned, clean
from bertsmith.data.findings import SEVERITIES, ClassCount, Findings, Inspected, Lengths
from bertsmith.data.table import REGRESSION, SPLITS, Table
from bertsmith.data.template import flat_texts

if TYPE_CHECKING:
    from bertsmith.model.tokens import Tokens

PERCENTILES = (5, 25, 50, 75, 95, 99)
COVERAGE = 99
"""Percentage of the texts that the chosen maximum length covers."""
DEFAULT_MODEL_LIMIT = 512
"""Maximum number of tokens of most BERT models."""
_WORD = re.compile(r"\w+|[^\w\s]")


def inspect(
    table: Table,
    *,
    tokens: Tokens | None = None,
    symbol_names: Mapping[str, str] | None = None,
    max_length: int | None = None,
    cleaned: Cleaned | None = None,
    config: Config | None = None,
    test: Table | None = None,
) -> Findings:
    """Inspect a table, without changing it.

    Args:
        table: the table as read.
        tokens: the tokens of the usable texts; without them, lengths are estimated.
        symbol_names: for each symbol that the tokenizer reads as its name, the name.
        max_length: maximum number of tokens that training keeps of a text; chosen by `choose_max_length` by default.
        cleaned: the cleaned table, if it is available.
        config: the settings for the split; with them, a table that train refuses is a finding.
        test: the texts that train scores at the end, if they are known.
    """
    cleaned = cleaned or clean(table)
    usable = cleaned.table
    texts = flat_texts(usable.frame)
    template = table.columns.template
    lengths = tokens.full_lengths if tokens is not None else estimate_tokens(texts)
    max_length = max_length or choose_max_length(lengths, DEFAULT_MODEL_LIMIT)
    n_characters = np.fromiter(map(len, texts), dtype=np.int64, count=len(texts))
    counts, by_split = usable.counts, _counts_by_split(usable)
    imbalances = {name: _imbalance(split_counts) for name, split_counts in by_split.items()}
    inspected = Inspected(table, cleaned, texts, lengths, max_length, tokens, symbol_names or {}, config, test)
    findings = [finding for check in CHECKS for finding in check(inspected)]
    return Findings(
        name=table.name,
        rows=len(table),
        usable=len(usable),
        columns={
            role: name
            for role, name in (
                ("text", ", ".join(template.text_column)),
                ("pair", template.pair_column),
                ("with", ", ".join(template.with_columns) or None),
                *((role, getattr(table.columns, role)) for role in ("label", "label_text", "group", "split")),
                ("labels", ", ".join(table.columns.labels) or None),
            )
            if name is not None
        },
        classes=tuple(
            ClassCount(number, text, int(counts[i]), {name: int(n[i]) for name, n in by_split.items()})
            for i, (number, text) in enumerate(zip(table.labels.numbers, table.labels.texts, strict=True))
        ),
        imbalance=imbalances.get("train", _imbalance(counts)),
        characters=_lengths("characters", n_characters),
        tokens=_lengths("tokens" if tokens is not None else "tokens (estimated)", lengths),
        max_length=max_length,
        truncated=float((lengths > max_length).mean()) if len(lengths) else 0.0,
        splits={name: int(n.sum()) for name, n in by_split.items()},
        findings=tuple(sorted(findings, key=lambda finding: SEVERITIES.index(finding.severity))),
        imbalances=imbalances,
        task=table.task,
        numbers=_describe(usable.targets) if table.task == REGRESSION and len(usable) else {},
    )


def _counts_by_split(table: Table) -> dict[str, np.ndarray]:
    """Return for every given split the number of rows of every class, shape (classes,)."""
    given = table.frame["split"]
    if not given.notna().any():
        return {}
    split = given.fillna("train").to_numpy()
    return {name: table.take(split == name).counts for name in SPLITS if (split == name).any()}


def _describe(numbers: np.ndarray) -> dict[str, float]:
    """Return mean, standard deviation and quartiles of numbers, shape (n,)."""
    names = ("minimum", "lower_quartile", "median", "upper_quartile", "maximum")
    quartiles = zip(names, np.percentile(numbers, (0, 25, 50, 75, 100)).tolist(), strict=True)
    return {"mean": float(numbers.mean()), "standard_deviation": float(numbers.std()), **dict(quartiles)}


def _imbalance(counts: np.ndarray) -> float:
    nonzero = counts[counts > 0]
    return float(nonzero.max() / nonzero.min()) if len(nonzero) else float("nan")


def estimate_tokens(texts: Sequence[str]) -> np.ndarray:
    """Estimate the number of tokens from words and punctuation, shape (texts,).

    In five English collections, BERT has 1.02 to 1.16 tokens per word or punctuation mark.
    """
    return np.array([round(1.1 * len(_WORD.findall(text))) + 2 for text in texts], dtype=np.int64)


def choose_max_length(lengths: np.ndarray, model_limit: int) -> int:
    """Return the maximum length that covers `COVERAGE` percent of the texts.

    Args:
        lengths: length of every text in tokens, shape (texts,).
        model_limit: maximum number of tokens of the model.

    Returns:
        A multiple of 8 that is at most ``model_limit``, or ``model_limit``.
    """
    if not len(lengths):
        return model_limit
    covered = int(np.ceil(np.percentile(lengths, COVERAGE)))
    return int(min(max(-(-covered // 8) * 8, 8), model_limit))


def _lengths(unit: str, values: np.ndarray) -> Lengths:
    if not len(values):
        return Lengths(unit, 0, 0, dict.fromkeys(PERCENTILES, 0), (0, 1), (0,))
    percentiles = {p: int(np.percentile(values, p)) for p in PERCENTILES}
    top = max(percentiles[99], 1)
    width = max(-(-top // 40), 1)
    edges = np.arange(0, top + 2 * width, width)
    counts = np.histogram(np.minimum(values, edges[-1]), bins=edges)[0]
    bins = tuple(map(int, edges)), tuple(map(int, counts))
    return Lengths(unit, int(values.min()), int(values.max()), percentiles, *bins)
