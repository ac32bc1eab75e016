"""Everywhere a table may come from: a file, memory, a database, the hub."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pandas as pd

from bertsmith.config import DataConfig, Source
from bertsmith.data.arrow import read_arrow
from bertsmith.data.columns import check_columns, check_flat
from bertsmith.data.delimited import delimited
from bertsmith.data.encodings import decode
from bertsmith.data.excel import read_excel
from bertsmith.data.files import kind_of, kind_of_text, open_bytes, promised_delimiter
from bertsmith.data.hub import require_hub
from bertsmith.data.records import read_json
from bertsmith.data.table import RawTable, encodable
from bertsmith.errors import DataError, quoted, shorten


def read_file(path: Path, config: DataConfig) -> RawTable:
    """Read a file, whatever its kind.

    Raises:
        DataError: if it is missing, damaged, too large unpacked, or of no known kind.
    """
    name = path.name
    with open_bytes(path, config.max_unpacked) as file:
        kind = kind_of(file, path, config)
        if kind in ("parquet", "feather"):
            return RawTable(read_arrow(file, path, kind, config.max_unpacked), name)
        file.seek(0)
        content = file.read()
    if kind == "excel":
        return read_excel(content, path, config)
    text, notes = decode(content, name, config.encoding)
    if kind_of_text(text, kind, path) == "json":
        frame = encodable(read_json(text, name))
    else:
        frame, more = delimited(text, name, prefer=promised_delimiter(path))
        notes += more
    return RawTable(frame, name, tuple(notes))


def read_raw(source: Any, config: DataConfig, role: str | None = None) -> RawTable:
    """Read a file, ``hf://owner/name``, a data frame, a ``datasets.Dataset``, or, for ``None``, the SQL query.

    Args:
        source: one of these, or a `Source` of one.
        config: how to read it.
        role: what a table in memory is for, where there are several: ``"validation"`` or ``"test"``.

    Raises:
        DataError: if the source is not there, not readable, or empty.
    """
    which = f" ({role})" if role else ""
    if isinstance(source, Source):
        source = source.table
    if source is None:
        if config.sql is None:
            raise DataError("no table is given", remedy="Give a file, or --sql with --db.")
        raw = _read_sql(config.sql, config.db or "")
    elif isinstance(source, pd.DataFrame):
        name = str(source.attrs.get("name", f"the data frame{which}"))
        check_flat(source, name)
        raw = RawTable(encodable(source.reset_index(drop=True).rename(columns=str)), name)
    elif type(source).__module__.split(".")[0] == "datasets":
        raw = _from_datasets(source, f"the dataset{which}")
    elif str(source).startswith("hf://"):
        raw = _read_hub(str(source))
    elif isinstance(source, str | Path):
        raw = read_file(Path(source), config)
    else:
        raise DataError(
            f"a table cannot be read from a {type(source).__name__}",
            remedy="Give a path, a pandas data frame, a datasets.Dataset, or hf://owner/name.",
        )
    check_columns(list(raw.frame.columns), len(raw.frame), raw.name, config)
    return raw


def _read_sql(query: str, db: str) -> RawTable:
    try:
        import sqlalchemy
    except ImportError as error:
        raise DataError(
            "reading from a database needs the package sqlalchemy", remedy="pip install 'bertsmith[sql]'"
        ) from error
    name = "the query"
    try:
        engine = sqlalchemy.create_engine(db)
        shown = engine.url.render_as_string(hide_password=True)
        if engine.url.drivername.startswith("sqlite") and engine.url.database not in (None, "", ":memory:"):
            path = Path(str(engine.url.database))
            if not path.is_file():  # SQLite would make an empty database there
                raise DataError("there is no such database file", where=str(path), remedy="Check --db.")
        with engine.connect() as connection:
            result = connection.execute(sqlalchemy.text(query))
            if not result.returns_rows:
                raise DataError("the query returns no rows", where=shown, remedy="Give a SELECT.")
            keys = list(result.keys())
            records = result.fetchall()
    except (sqlalchemy.exc.SQLAlchemyError, ImportError, ValueError) as error:
        reason = str(getattr(error, "orig", None) or error).splitlines()[0]
        raise DataError(
            f"the database says: {reason}", where=f"--sql {quoted(query)}", remedy="Check --sql and --db."
        ) from error
    frame = pd.DataFrame({i: pd.Series([record[i] for record in records], dtype=object) for i in range(len(keys))})
    frame.columns = pd.Index(keys)
    return RawTable(frame, name)


def _read_hub(address: str) -> RawTable:
    parts = address.removeprefix("hf://").removeprefix("datasets/").split("/")
    if len(parts) not in (2, 3) or not all(parts):
        raise DataError(
            f"{shorten(address)} is not the address of a dataset",
            remedy="Write hf://owner/name or hf://owner/name/configuration.",
        )
    require_hub(f"dataset {address}", DataError)
    import datasets

    try:
        loaded = datasets.load_dataset("/".join(parts[:2]), *parts[2:])
    except Exception as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise DataError(
            f"the dataset cannot be loaded: {reason}",
            where=address,
            remedy="Check the name on the hub, log in if it is private, or download it and give the file.",
        ) from error
    return _from_datasets(loaded, address)


def _from_datasets(source: Any, name: str) -> RawTable:
    parts: Iterable[tuple[str | None, Any]] = source.items() if hasattr(source, "items") else [(None, source)]
    frames, splits, class_names = [], [], {}
    for split, dataset in parts:
        frame = pd.DataFrame({c: pd.Series(dataset[c][:], dtype=object) for c in dataset.column_names})
        for column, feature in dataset.features.items():
            if type(feature).__name__ == "ClassLabel":
                class_names[column] = list(feature.names)
        frames.append(frame)
        splits += [split] * len(frame)
    known = pd.Series(splits, dtype=object) if any(splits) else None
    return RawTable(pd.concat(frames, ignore_index=True), name, class_names=class_names, split=known)
