"""Read a table from a file, a data frame, a dataset, the hub or a database."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from bertsmith.config import DataConfig, Source, is_arrow_table
from bertsmith.data import hub
from bertsmith.data.columns import check_columns
from bertsmith.data.formats.arrow import read_stream, to_cells
from bertsmith.data.formats.registry import collect, read_file
from bertsmith.data.table import RawTable
from bertsmith.data.texts import is_missing, replace_surrogates
from bertsmith.errors import DataError, MissingPackageError, first_line, quoted, shorten, with_article

if TYPE_CHECKING:
    from sqlalchemy import URL


def read_raw(source: Any, config: DataConfig, role: str | None = None) -> RawTable:
    """Read a table without interpreting its columns.

    Args:
        source: a path, ``hf://owner/name``, a data frame, an Arrow table, a ``datasets.Dataset`` or ``DatasetDict``, a
            `Source` of one of these, a table that is read already, or ``None`` for ``config.sql``.
        config: the settings for reading.
        role: ``"validation"`` or ``"test"``, to name such a table in messages.

    Raises:
        DataError: if the source is missing, unreadable, or empty.
    """
    suffix = f" ({role})" if role else ""
    if isinstance(source, RawTable):
        return source
    if isinstance(source, Source):
        source = source.table
    if source is None:
        if config.sql is None:
            raise DataError("the table is missing", remedy="Pass a file, or --sql with --db.")
        raw = _read_sql(config.sql, config.db or "")
    elif isinstance(source, pd.DataFrame):
        name = str(source.attrs.get("name", f"the data frame{suffix}"))
        raw = RawTable(_without_surrogates(source.reset_index(drop=True)), name)
    elif type(source).__module__.split(".")[0] == "datasets":
        raw = _from_datasets(source, f"the dataset{suffix}")
    elif is_arrow_table(source):
        raw = collect(read_stream(source, f"the {type(source).__name__}{suffix}", None), config)
    elif str(source).startswith("hf://"):
        raw = _read_hub(str(source))
    elif isinstance(source, str | Path):
        raw = read_file(Path(source), config)
    else:
        raise DataError(
            f"{with_article(source)} is not a table",
            remedy="Pass a path, a data frame, an Arrow table, a datasets.Dataset, or hf://owner/name.",
        )
    check_columns(list(raw.frame.columns), len(raw.frame), raw.name, config)
    return raw


def _without_surrogates(frame: pd.DataFrame) -> pd.DataFrame:
    result = frame.copy(deep=False)
    for i, dtype in enumerate(frame.dtypes):
        if pd.api.types.is_string_dtype(dtype):  # also for objects
            result.isetitem(i, pd.Series(map(replace_surrogates, frame.iloc[:, i]), dtype=dtype).array)
    result.columns = pd.Index([replace_surrogates(str(name)) for name in frame.columns], dtype=object)
    return result


def _read_sql(query: str, db: str) -> RawTable:
    try:
        import sqlalchemy
    except ImportError as error:
        raise MissingPackageError("sqlalchemy", "reading from a database") from error
    try:
        address = _parse_address(db)
        engine = sqlalchemy.create_engine(address, poolclass=sqlalchemy.NullPool)  # closes the connection after use
        url = engine.url.render_as_string(hide_password=True)
        with engine.connect() as connection:
            # As written: `text` takes ":D" in a string for a parameter, and some drivers take "%".
            result = connection.exec_driver_sql(query, execution_options={"no_parameters": True})
            if not result.returns_rows:
                raise DataError("the statement returns no table", where=url, remedy="Write a SELECT query.")
            names = list(result.keys())
            rows = result.fetchall()
    except (sqlalchemy.exc.SQLAlchemyError, ImportError, ValueError) as error:
        raise DataError(
            f"the database reports: {first_line(getattr(error, 'orig', None) or error)}",
            where=f"--sql {quoted(query)}",
            remedy="Check --sql and --db.",
        ) from error
    frame = pd.DataFrame({i: pd.Series([row[i] for row in rows], dtype=object) for i in range(len(names))})
    frame.columns = pd.Index(names)
    return RawTable(frame, "the query")


def _parse_address(db: str) -> URL:
    """Return the address of a database. SQLite does not create a file for it.

    Raises:
        DataError: if the port is not a number, or the file of SQLite does not exist.
    """
    import sqlalchemy

    try:
        url = sqlalchemy.make_url(db)
    except ValueError as error:  # quotes a part of a password that contains "@"
        remedy = "Write a number after the host. In a password, write %40 for @."
        raise DataError("the port of the database is not a number", where="--db", remedy=remedy) from error
    database = url.database or ":memory:"
    if not url.drivername.startswith("sqlite") or database == ":memory:":
        return url
    if database.startswith("file:") and sqlalchemy.util.asbool(url.query.get("uri", False)):
        return url.update_query_dict({"mode": "rw", **url.query})  # SQLite opens a file, but does not create it
    if not Path(database).is_file():
        raise DataError("the database file does not exist", where=database, remedy="Check --db.")
    return url


def _read_hub(address: str) -> RawTable:
    parts = address.removeprefix("hf://").removeprefix("datasets/").split("/")
    if len(parts) not in (2, 3) or not all(parts):
        raise DataError(
            f"{shorten(address)} is not the address of a dataset",
            remedy="Write hf://owner/name or hf://owner/name/configuration.",
        )
    reason = hub.unreachable_reason()
    if reason is not None:
        raise DataError(
            f"dataset {address} cannot be downloaded: {reason}",
            where=hub.endpoint(),
            remedy="Check the network or HF_ENDPOINT, or use a local file instead.",
        )
    import datasets

    try:
        loaded = datasets.load_dataset("/".join(parts[:2]), *parts[2:])
    except Exception as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise DataError(
            f"the dataset cannot be loaded: {reason}",
            where=address,
            remedy="Check the name of the dataset on the hub, log in if it is private, or download it and pass the "
            "file.",
        ) from error
    return _from_datasets(loaded, address)


def _from_datasets(source: Any, name: str) -> RawTable:
    from datasets import Dataset

    parts = {str(split): part for split, part in source.items()} if isinstance(source, dict) else {None: source}
    frames, splits, named = [], [], []
    for split, dataset in parts.items():
        if not isinstance(dataset, Dataset):
            raise DataError(
                f"{with_article(dataset)} cannot be read as a table",
                where=name,
                remedy="Load the dataset without streaming, and pass a datasets.Dataset or a DatasetDict.",
            )
        if dataset.format["type"] == "custom":
            raise DataError(
                f"{with_article(dataset)} with a transform cannot be read as a table",
                where=name,
                remedy="Apply the transform with map, or remove it with reset_format.",
            )
        table = dataset.with_format("arrow")[:]  # does not decode images or audio
        frames.append(pd.DataFrame({c: pd.Series(to_cells(table[c]), dtype=object) for c in table.column_names}))
        splits += [split] * len(frames[-1])
        items = {c: getattr(feature, "feature", feature) for c, feature in dataset.features.items()}  # of a list
        named.append({c: list(item.names) for c, item in items.items() if type(item).__name__ == "ClassLabel"})
    class_names = {column: names for own in named for column, names in own.items()}
    for column in [c for c in class_names if any(own.get(c, class_names[c]) != class_names[c] for own in named)]:
        del class_names[column]  # in each split, a number has another meaning
        for frame, own in zip(frames, named, strict=True):
            if column in own:
                frame[column] = pd.Series([_class_texts(cell, own[column]) for cell in frame[column]], dtype=object)
    split_column = None if None in parts else pd.Series(pd.Categorical(splits, list(parts)))  # also of empty splits
    frame = pd.concat(frames or [pd.DataFrame()], ignore_index=True)
    return RawTable(frame, name, class_names=class_names, split=split_column)


def _class_texts(cell: Any, names: Sequence[str]) -> Any:
    """Return the label text of a number, or those of a list of numbers; ``None`` if one is missing, such as −1."""
    if np.ndim(cell):
        texts = [_class_texts(number, names) for number in cell]
        return None if None in texts else texts
    return None if is_missing(cell) or not 0 <= cell < len(names) else names[int(cell)]
