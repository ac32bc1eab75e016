"""Checks of a table. To add one, write a function that yields findings and list it in `CHECKS`."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator

import numpy as np

from bertsmith.bootstrap import warn_of_few_groups
from bertsmith.data.clean import AVERAGED, CONFLICT, DUPLICATE, EMPTY, IN_TEST, IN_VALIDATION, NO_LABEL, UNITED
from bertsmith.data.columns import canonical
from bertsmith.data.findings import CHOSEN_VALIDATION, MAX_EXAMPLES, Finding, Inspected, join_names
from bertsmith.data.label_checks import describe_far_numbers, differing_labels, far_numbers, label_findings
from bertsmith.data.language import guess_language
from bertsmith.data.split import split_cleaned
from bertsmith.data.table import ORDINAL, REGRESSION
from bertsmith.data.template import flat_texts
from bertsmith.data.texts import to_truth
from bertsmith.errors import DataError, counted, quoted

MAX_UNKNOWN_TEXTS = 100
"""Maximum number of texts searched for examples of unknown words."""
_HTML = re.compile(
    r"</?(?:p|br|div|span|a|b|i|em|strong|li|ul|td|tr|table|h\d|img|font)\b[^<>]*>|&(?:[a-z]{2,6}|#\d+);", re.I
)


def check_split(inspected: Inspected) -> Iterator[Finding]:
    """Report that train cannot split the table."""
    if inspected.config is not None:
        try:
            split_cleaned(inspected.cleaned, inspected.config, inspected.config.seed)
        except DataError as error:
            yield Finding(
                "refused", "error", 1, f"bertsmith train refuses this table: {error.what}", error.remedy or ""
            )


def check_labels(inspected: Inspected) -> Iterator[Finding]:
    """Report labels that a model cannot learn, or hardly learns; see `bertsmith.data.label_checks`."""
    table = inspected.cleaned.table
    yield from label_findings(table)
    if table.task == REGRESSION and (is_far := far_numbers(table.targets)).any():
        yield inspected.texts_where(
            "far-numbers",
            "warning",
            is_far,
            describe_far_numbers(table.targets, is_far),
            "used as numbers; if they stand for a missing label, empty these cells",
        )


_DROPPED = {
    EMPTY: ("empty-text", "warning", "without a text", "dropped"),
    NO_LABEL: ("missing-label", "warning", "without a label", "dropped; predict can label such texts later"),
    DUPLICATE: (
        "duplicate",
        "info",
        "with the same text and label as another row",
        "bertsmith uses only the first row of each text",
    ),
    CONFLICT: (
        "conflict",
        "warning",
        "whose text has a different label in another row",
        "dropped; to keep such a text, give all its rows the same label",
    ),
    AVERAGED: (
        "averaged",
        "info",
        "with the same text as another row, but a different number",
        "bertsmith uses the first row of each text, with the mean of the numbers",
    ),
    UNITED: (
        "united",
        "info",
        "with the same text as another row, but different labels",
        "bertsmith uses the first row of each text, with the labels of all its rows",
    ),
    IN_TEST: ("leak-test", "warning", "whose text is also in the test split", "dropped from train and validation"),
    IN_VALIDATION: ("leak-validation", "warning", "whose text is also in the validation split", "dropped from train"),
}
"""For each reason to drop rows: the kind, severity, message and action of the finding."""


def check_cleaning(inspected: Inspected) -> Iterator[Finding]:
    """Report rows that cleaning drops or changes."""
    cleaned = inspected.cleaned
    for reason, (kind, severity, message, action) in _DROPPED.items():
        rows = cleaned.dropped[cleaned.dropped["reason"] == reason]
        if len(rows):
            yield inspected.rows(kind, severity, rows, message, action)
    frame = cleaned.table.frame
    texts = [name for name in ("split", "text", "pair") if name in frame.columns]
    repeated = frame[frame["split"].isin(["validation", "test"]) & frame.duplicated(texts)]
    if len(repeated):
        message = "of a given validation or test split, with the same text as an earlier row of that split"
        yield inspected.rows(
            "duplicate-held-out",
            "info",
            repeated,
            message,
            "used, because bertsmith does not change given validation and test splits",
        )
    if cleaned.normalised:
        message = f"{counted(cleaned.normalised, 'row')} with control characters or decomposed characters"
        action = "control characters removed, characters composed (Unicode NFC)"
        yield Finding("normalised", "info", cleaned.normalised, message, action)


def check_near_duplicates(inspected: Inspected) -> Iterator[Finding]:
    """Report near-duplicates, and those with different labels or in different given splits."""
    table, groups = inspected.cleaned.table, inspected.cleaned.near_duplicates
    frame = table.frame.assign(split=table.frame["split"].fillna(""), text=flat_texts(table.frame))
    grouped = frame.groupby(groups)
    # `check_cleaning` reports groups of equal texts.
    is_near, has_other_split = ((grouped[name].transform("nunique") > 1).to_numpy() for name in ("text", "split"))
    has_other_label, other = differing_labels(table, groups)
    texts, splits = (frame[name].factorize()[0] for name in ("text", "split"))
    labels = table.targets if table.task in (ORDINAL, REGRESSION) else table.codes
    is_held_out = frame["split"].isin(["validation", "test"]).to_numpy()
    unless = "kept in one split, unless splits are given or you pass --near-duplicates ignore"
    leak = "of the given validation and test splits with a near-duplicate in another split"
    for kind, severity, mask, values, message, action in (
        ("near-duplicate", "info", is_near, texts, "with near-duplicates", f"used; {unless}"),
        (
            "near-conflict",
            "warning",
            is_near & has_other_label,
            labels,
            f"with near-duplicates {other}",
            "used; check the labels",
        ),
        (
            "near-leak",
            "warning",
            is_near & is_held_out & has_other_split,
            splits,
            leak,
            "used, because bertsmith does not change given validation and test splits; the metrics may be too high",
        ),
    ):
        if mask.any():
            pairs: list[tuple[int | str, ...]] = []
            for i in np.flatnonzero(mask):
                others = np.flatnonzero(groups == groups[i])
                partner = others[np.argmax(np.abs(values[others] - values[i]))]
                pair = inspected.name_rows(frame.iloc[[i, partner]])
                if pair not in pairs and pair[::-1] not in pairs:
                    pairs.append(pair)
                if len(pairs) == MAX_EXAMPLES:
                    break
            n = int(mask.sum())
            yield Finding(
                kind, severity, n, f"{counted(n, 'row')} {message}", action, tuple(f"{a} ≈ {b}" for a, b in pairs)
            )


def check_groups(inspected: Inspected) -> Iterator[Finding]:
    """Report groups that are in several given splits, groups of one row each, and too few groups to test."""
    frame, column = inspected.cleaned.table.frame, inspected.table.columns.group
    if column is not None and inspected.table.frame["group"].is_unique:
        yield Finding(
            "single-groups",
            "warning",
            len(inspected.table),
            f"column {quoted(column)} is empty, or has a different value in every row",
            "without effect: every row is its own group; name the right column with --group-column",
        )
    tested = None if inspected.test is None else inspected.test.groups
    if tested is not None and (message := warn_of_few_groups(tested, "test texts")):
        n, total = len(np.unique(tested)), frame["group"].nunique()
        several = f"pass --test-size 0 --cv {min(total, 5)}, which tests the model on all groups"
        yield Finding("few-groups", "warning", n, message, several if n < total else "label texts of more groups")
    n_splits = frame.assign(split=frame["split"].fillna("")).groupby("group")["split"].transform("nunique")
    rows = frame[frame["split"].isin(["validation", "test"]) & (n_splits > 1)]
    if len(rows):
        yield inspected.rows(
            "group-leak",
            "warning",
            rows,
            "of the given validation and test splits whose group is also in another split",
            "used, because bertsmith does not change given validation and test splits; the metrics may be too high",
        )


def check_design(inspected: Inspected) -> Iterator[Finding]:
    """Report that the validation split comes from texts that a labelling project chose, and the test split does not."""
    table = inspected.cleaned.table
    given = table.frame["split"].fillna("train").to_numpy()
    name = next((name for name in table.extra.columns if canonical(str(name)) == "random"), None)
    if name is None or (given == "validation").any():
        return
    drawn = np.array([to_truth(cell) is True for cell in table.extra[name]], dtype=bool)
    if drawn[given == "test"].any() and not drawn[given == "train"].any():
        yield inspected.texts_where(
            CHOSEN_VALIDATION,
            "warning",
            given == "train",
            "of the train split that were not drawn at random",
            "used, also for validation. Thresholds, confidence and decision rule may not suit the other texts of the "
            "pool. predict shows an expected accuracy only with 100 or more test texts",
        )


def check_texts(inspected: Inspected) -> Iterator[Finding]:
    """Report damaged characters and HTML."""
    from ftfy.badness import is_bad

    texts = inspected.texts
    damaged = np.array([not t.isascii() and ("\ufffd" in t or is_bad(t)) for t in texts], dtype=bool)
    if damaged.any():
        yield inspected.texts_where(
            "encoding-damage",
            "warning" if damaged.mean() > 0.001 else "info",
            damaged,
            "with damaged characters (such as Ã© for é, or \ufffd)",
            "used unchanged; read the file with the right --encoding, or repair the texts",
        )
    html = np.array([bool(_HTML.search(t)) for t in texts], dtype=bool)
    if html.any():
        tags = Counter(tag for text in texts for tag in dict.fromkeys(_HTML.findall(text)))
        examples = join_names([tag for tag, _ in tags.most_common(3)])
        yield inspected.texts_where(
            "html",
            "warning" if html.mean() > 0.01 else "info",
            html,
            f"with HTML ({html.mean():.1%}), such as {examples}",
            "used unchanged; remove tags and replace entities (such as &amp; by &) if they carry no meaning",
        )


def check_languages(inspected: Inspected) -> Iterator[Finding]:
    """Report a mix of languages, and a main language other than English."""
    languages = [guess_language(text) for text in inspected.texts]
    counts = Counter(language for language in languages if language)
    total = counts.total()
    if total < 10:
        return
    main, n_main = counts.most_common(1)[0]
    scope = f"of the {total:,} texts whose language bertsmith can guess,"
    others = {language: n for language, n in counts.most_common() if language != main and n >= max(3, 0.01 * total)}
    if others:
        mask = np.array([language in others for language in languages])
        shares = ", ".join(f"{n / total:.1%} {language}" for language, n in others.items())
        yield Finding(
            "languages",
            "warning",
            int(mask.sum()),
            f"{scope} {n_main / total:.1%} seem to be {main}, {shares}",
            "used unchanged; choose a multilingual checkpoint, such as FacebookAI/xlm-roberta-base, unless yours is "
            "multilingual",
            inspected.name_rows(inspected.cleaned.table.frame[mask]),
        )
    if main != "English" and n_main > total / 2:
        yield Finding(
            "not-english",
            "warning",
            n_main,
            f"{scope} most seem to be {main}",
            f"an English checkpoint does not know {main}: choose a checkpoint for {main}, or a multilingual one, such "
            "as FacebookAI/xlm-roberta-base",
        )


def check_tokens(inspected: Inspected) -> Iterator[Finding]:
    """Report symbols and words that the tokenizer does not know."""
    texts, tokens, names = inspected.texts, inspected.tokens, inspected.symbol_names
    if tokens is None:
        return
    has_symbol = np.array([not t.isascii() and not names.keys().isdisjoint(t) for t in texts], dtype=bool)
    if has_symbol.any():
        symbols = Counter(character for text in texts for character in dict.fromkeys(text) if character in names)
        symbol = next(symbol for symbol, _ in symbols.most_common() if names[symbol])
        yield inspected.texts_where(
            "symbols",
            "info",
            has_symbol,
            f"with emoji that the model's tokenizer does not know ({has_symbol.mean():.1%})",
            f"the model reads each as its name: {symbol} as {names[symbol]!r}",
        )
    unknown = tokens.has_unknown
    if unknown.any() and tokens.encoder is not None:
        searched = np.flatnonzero(unknown)[:MAX_UNKNOWN_TEXTS]
        words = dict.fromkeys(word for i in searched for word in tokens.encoder.unknown_words(texts[i]))
        # The longest one as well: a word may be unknown only because of its length.
        examples = dict.fromkeys([*list(words)[:2], max(words, key=len)])
        shown = join_names([repr(word if len(word) <= 20 else f"{word[:19]}…") for word in examples])
        yield inspected.texts_where(
            "unread",
            "warning" if unknown.mean() > 0.01 else "info",
            unknown,
            f"with words that the model's tokenizer does not know ({unknown.mean():.1%}), such as {shown}",
            "all unknown words are the same token to the model; if they matter, choose another checkpoint",
        )


def check_lengths(inspected: Inspected) -> Iterator[Finding]:
    """Report truncated texts, if there are more than `choose_max_length` accepts."""
    long = inspected.lengths > inspected.max_length
    if len(long) and long.mean() > 0.011:
        message = f"longer than {inspected.max_length} tokens ({long.mean():.1%})"
        yield inspected.texts_where(
            "truncated", "warning", long, message, "the model reads the beginning, or the part that --long selects"
        )


def check_reading(inspected: Inspected) -> Iterator[Finding]:
    """Report the notes of the reader."""
    for note in inspected.table.notes:
        action = "bertsmith continues with this table"
        yield Finding("reading", note.severity, note.count, note.message, action, note.rows)


CHECKS: tuple[Callable[[Inspected], Iterator[Finding]], ...] = (
    check_split,
    check_labels,
    check_cleaning,
    check_near_duplicates,
    check_groups,
    check_design,
    check_texts,
    check_languages,
    check_tokens,
    check_lengths,
    check_reading,
)
