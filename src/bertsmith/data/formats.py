"""Every kind of table a user may have, turned into columns of plain values with the source's own names."""

from __future__ import annotations

import csv
import gzip
import io
import json
import sys
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from bertsmith.data.table import Note
from bertsmith.errors import DataError, listing

_BINARY = {b"PAR1": "parquet", b"ARROW1": "feather", b"PK\x03\x04": "excel", b"\xd0\xcf\x11\xe0": "excel"}
_SUFFIXES = {
    ".csv": "delimited",
    ".tsv": "delimited",
    ".tab": "delimited",
    ".txt": "delimited",
    ".json": "json",
    ".jsonl": "json",
    ".ndjson": "json",
    ".parquet": "parquet",
    ".pq": "parquet",
    ".feather": "feather",
    ".arrow": "feather",
    ".xlsx": "excel",
    ".xls": "excel",
    ".xlsb": "excel",
    ".ods": "excel",
}
_DELIMITERS = (",", ";", "\t", "|")


@dataclass(frozen=True)
class RawTable:
    """A table as it stands in the source.

    Attributes:
        frame: the columns under their own names; values as the format gives them (texts, for a delimited file).
        name: what to call the source in messages.
        notes: what reading found or repaired.
        class_names: for columns of a ``datasets.ClassLabel``, the label texts by number.
        split: the split of every row, where the source itself has splits (a ``DatasetDict``).
    """

    frame: pd.DataFrame
    name: str
    notes: tuple[Note, ...] = ()
    class_names: dict[str, list[str]] = field(default_factory=dict)
    split: pd.Series | None = None


def read_raw(
    source: Any, *, sql: str | None = None, db: str | None = None, sheet: str | None = None, encoding: str | None = None
) -> RawTable:
    """Read a file, ``hf://owner/name``, a data frame, a ``datasets.Dataset`` or a SQL query.

    Raises:
        DataError: if the source is not there, not readable, or empty.
    """
    if sql is not None:
        raw = _read_sql(sql, db or "")
    elif isinstance(source, pd.DataFrame):
        raw = RawTable(source.reset_index(drop=True).rename(columns=str), "the data frame")
    elif type(source).__module__.split(".")[0] == "datasets":
        raw = _from_datasets(source, "the dataset")
    elif str(source).startswith("hf://"):
        raw = _read_hub(str(source))
    elif isinstance(source, str | Path):
        raw = _read_file(Path(source), sheet=sheet, encoding=encoding)
    else:
        raise DataError(
            f"a table cannot be read from a {type(source).__name__}",
            remedy="Give a path, a pandas data frame, a datasets.Dataset, or hf://owner/name.",
        )
    repeated = raw.frame.columns[raw.frame.columns.duplicated()].unique()
    if len(repeated):
        raise DataError(
            f"several columns have the same name: {listing(repeated)}",
            where=raw.name,
            remedy="Give every column a name of its own.",
        )
    if raw.frame.empty:
        raise DataError("the table has no rows", where=raw.name, remedy="Check that it is the right file.")
    return raw


def read_bytes(path: Path) -> bytes:
    """Return the bytes of a file, unpacked if it is gzip.

    Raises:
        DataError: if the file is missing, a folder, not readable, or a damaged gzip.
    """
    try:
        if path.is_dir():
            raise DataError("this is a folder, not a table", where=str(path), remedy="Give the path of a file.")
        if path.exists() and not path.is_file():
            raise DataError("this is not a plain file", where=str(path), remedy="Save the table to a file first.")
        content = path.read_bytes()
    except FileNotFoundError as error:
        near = sorted(p.name for p in path.parent.glob("*") if p.suffix in _SUFFIXES) if path.parent.is_dir() else []
        hint = f" In that folder there are {listing(near, 5)}." if near else ""
        raise DataError("there is no such file", where=str(path), remedy=f"Check the path.{hint}") from error
    except OSError as error:
        raise DataError(f"the file cannot be read: {error.strerror}", where=str(path), remedy="Check it.") from error
    if content[:2] == b"\x1f\x8b":
        try:
            content = gzip.decompress(content)
        except (OSError, EOFError, zlib.error) as error:
            raise DataError(
                f"the gzip file is damaged or cut short: {error}", where=str(path), remedy="Copy or download it again."
            ) from error
    return content


def _read_file(path: Path, *, sheet: str | None, encoding: str | None) -> RawTable:
    content = read_bytes(path)
    name = path.name
    suffixes = [s.lower() for s in path.suffixes if s.lower() != ".gz"]
    kind = next((kind for magic, kind in _BINARY.items() if content.startswith(magic)), None)
    if kind is None:
        kind = _SUFFIXES.get(suffixes[-1] if suffixes else "", "delimited")
        if kind in ("parquet", "feather", "excel"):
            raise DataError(
                f"the file is named like {kind} but does not hold it",
                where=str(path),
                remedy="Rename it to what it is (.csv, .jsonl, …), or save it again.",
            )
    if kind == "excel" and suffixes and suffixes[-1] == ".zip":
        raise DataError("this is a zip archive", where=str(path), remedy="Unpack it and give the table inside.")
    if not content.strip():
        raise DataError("the file is empty", where=str(path), remedy="Check that it is the right file.")
    if kind == "parquet":
        return RawTable(_parquet(content, path), name)
    if kind == "feather":
        return RawTable(_feather(content, path), name)
    if kind == "excel":
        return _excel(content, path, sheet)
    text, notes = decode(content, name, encoding)
    if kind == "json" or text.lstrip()[:1] in ("{", "["):
        frame = _json(text, name)
    else:
        frame, more = _delimited(text, name, prefer="\t" if suffixes and suffixes[-1] in (".tsv", ".tab") else None)
        notes += more
    return RawTable(frame, name, tuple(notes))


def decode(content: bytes, name: str, encoding: str | None = None) -> tuple[str, list[Note]]:
    """Turn bytes into text: by byte order mark, as UTF-8, or by a guess that is reported.

    Raises:
        DataError: if ``encoding`` is given and does not fit, or nothing fits.
    """
    if encoding is not None:
        try:
            return content.decode(encoding).removeprefix("\ufeff"), []
        except (LookupError, UnicodeError) as error:
            raise DataError(
                f"the file cannot be read as {encoding}: {error}", where=name, remedy="Check --encoding."
            ) from error
    for mark, codec in (
        (b"\xef\xbb\xbf", "utf-8-sig"),
        (b"\xff\xfe\x00\x00", "utf-32"),
        (b"\x00\x00\xfe\xff", "utf-32"),
        (b"\xff\xfe", "utf-16"),
        (b"\xfe\xff", "utf-16"),
    ):
        if content.startswith(mark):
            try:
                return content.decode(codec), []
            except UnicodeError as error:
                raise DataError(
                    f"the file says that it is {codec} but is not: {error}",
                    where=name,
                    remedy="Save it again as UTF-8.",
                ) from error
    head = content[:4096]
    if head.count(b"\x00") > len(head) // 5:
        codec = "utf-16-le" if head[1::2].count(b"\x00") > head[::2].count(b"\x00") else "utf-16-be"
        try:
            return content.decode(codec), [Note("info", f"{name} was read as {codec}")]
        except UnicodeError as error:
            raise DataError("this is not a text table", where=name, remedy="Save it as CSV in UTF-8.") from error
    try:
        return content.decode("utf-8"), []
    except UnicodeDecodeError as error:
        first_bad = error.start
    codec = _guess_encoding(content, first_bad)
    line = content.count(b"\n", 0, first_bad) + 1
    note = Note(
        "warning", f"{name} is not UTF-8 (line {line:,}); it was read as {codec}. If accents look wrong, use --encoding"
    )
    return content.decode(codec, errors="replace"), [note]


def _guess_encoding(content: bytes, first_bad: int) -> str:
    from charset_normalizer import from_bytes

    # Only the lines around non-ASCII bytes tell anything; a window from the first of them is enough and quick.
    start = content.rfind(b"\n", 0, first_bad) + 1
    window = content[start : start + 20_000]
    best = from_bytes(window).best()
    # From a few bytes nobody can tell the Latin code pages apart: Windows-1252 is by far the commonest. The ISO kin of
    # it decode 0x80-0x9f to control characters, where Windows has quotes and dashes.
    few = sum(byte > 0x7F for byte in window) < 20
    western = ("latin_1", "iso8859_1", "iso8859_15", "ascii", "utf_8")
    return "cp1252" if best is None or few or best.encoding in western else best.encoding


def _delimited(text: str, name: str, prefer: str | None) -> tuple[pd.DataFrame, list[Note]]:
    delimiter = prefer if prefer and prefer in text.partition("\n")[0] else _guess_delimiter(text)
    notes: list[Note] = []
    dialects: list[dict[str, Any]] = [{}]
    if '\\"' in text:
        dialects.append({"escapechar": "\\", "doublequote": False})
    if delimiter == "\t":
        dialects.append({"quoting": csv.QUOTE_NONE})
    first_error: DataError | None = None
    for dialect in dialects:
        try:
            frame = _parse(text, name, delimiter, dialect)
        except DataError as error:
            first_error = first_error or error
            continue
        if dialect:
            how = "quotes as plain characters" if "quoting" in dialect else 'quotes escaped as \\"'
            notes.append(Note("info", f"{name} was read with {how}"))
        return frame, notes
    assert first_error is not None
    raise first_error


def _parse(text: str, name: str, delimiter: str, dialect: dict[str, Any]) -> pd.DataFrame:
    previous = csv.field_size_limit(sys.maxsize)
    start = 1
    rows: list[list[str]] = []
    ragged: list[tuple[int, int]] = []
    try:
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True, **dialect)
        for fields in reader:
            if fields:
                if rows and len(fields) != len(rows[0]):
                    ragged.append((start, len(fields)))
                rows.append(fields)
            start = reader.line_num + 1
    except csv.Error as error:
        raise DataError(
            f"the quotes do not match in the row that begins in line {start:,} ({error})",
            where=f"{name}, line {start:,}",
            remedy='Put quotes around the text and write every quote inside it twice: "he said ""no"""',
        ) from error
    finally:
        csv.field_size_limit(previous)
    if not rows:
        raise DataError("the file has no header", where=name, remedy="The first row must name the columns.")
    header = rows[0]
    if ragged:
        line, n = ragged[0]
        lines = listing([line for line, _ in ragged], 5)
        raise DataError(
            f"{len(ragged):,} of {len(rows) - 1:,} rows do not have the {len(header)} fields of the header: "
            f"line {line:,} has {n}",
            where=f"{name}, lines {lines}",
            remedy="Put quotes around texts that hold the delimiter "
            f"({ {chr(9): 'tab'}.get(delimiter, delimiter)!r}), or save the table again.",
        )
    names = [column.strip() or f"column {i}" for i, column in enumerate(header, start=1)]
    columns = list(zip(*rows[1:], strict=True)) or [()] * len(names)
    # pandas would merge equal names: build by position, name after.
    frame = pd.DataFrame({i: pd.Series(values, dtype=object) for i, values in enumerate(columns)})
    frame.columns = pd.Index(names)
    return frame


def _guess_delimiter(text: str) -> str:
    sample = text[:65536].splitlines(keepends=True)[:200]
    if len(text) > 65536 and len(sample) > 1:
        sample = sample[:-1]
    best, best_score = ",", (0.0, 0)
    for delimiter in _DELIMITERS:
        rows = [row for row in csv.reader(sample, delimiter=delimiter) if row]
        if not rows or len(rows[0]) < 2:
            continue
        agree = sum(len(row) == len(rows[0]) for row in rows) / len(rows)
        if (agree, len(rows[0])) > best_score:
            best, best_score = delimiter, (agree, len(rows[0]))
    return best


def _json(text: str, name: str) -> pd.DataFrame:
    if text.lstrip().startswith("["):
        try:
            records = json.loads(text)
        except (json.JSONDecodeError, RecursionError) as error:
            raise DataError(f"this is not JSON: {error}", where=name, remedy="Save the table again.") from error
        numbered = list(enumerate(records, start=1))
        place = "entry"
    else:
        numbered = []
        place = "line"
        for number, line in enumerate(text.split("\n"), start=1):
            if line.strip():
                try:
                    numbered.append((number, json.loads(line)))
                except (json.JSONDecodeError, RecursionError) as error:
                    raise DataError(
                        f"this line is not JSON: {error}",
                        where=f"{name}, line {number:,}",
                        remedy="Write one object a line, or all of them in one array: [{…}, {…}].",
                    ) from error
    for number, record in numbered:
        if not isinstance(record, dict):
            raise DataError(
                f"expected an object with the columns as keys, found {type(record).__name__}",
                where=f"{name}, {place} {number:,}",
                remedy='Write every row as {"Text": "…", "Label Text": "…"}.',
            )
    names = dict.fromkeys(key for _, record in numbered for key in record)
    return pd.DataFrame({key: pd.Series([record.get(key) for _, record in numbered], dtype=object) for key in names})


def _parquet(content: bytes, path: Path) -> pd.DataFrame:
    import pyarrow.parquet

    return _arrow(lambda: pyarrow.parquet.read_table(io.BytesIO(content)), path, "Parquet")


def _feather(content: bytes, path: Path) -> pd.DataFrame:
    import pyarrow.feather

    return _arrow(lambda: pyarrow.feather.read_table(io.BytesIO(content)), path, "Feather")


def _arrow(read: Callable[[], Any], path: Path, kind: str) -> pd.DataFrame:
    import pyarrow

    try:
        table = read()
    except (pyarrow.ArrowException, OSError) as error:
        reason = str(error).splitlines()[0]
        raise DataError(
            f"the {kind} file is damaged or cut short: {reason}", where=str(path), remedy="Copy or write it again."
        ) from error
    return pd.DataFrame({name: pd.Series(table.column(name).to_pylist(), dtype=object) for name in table.column_names})


def _excel(content: bytes, path: Path, sheet: str | None) -> RawTable:
    try:
        import python_calamine
    except ImportError as error:
        raise DataError(
            "reading Excel needs the package python-calamine",
            where=str(path),
            remedy="pip install 'bertsmith[excel]', or save the table as CSV.",
        ) from error
    try:
        book = python_calamine.CalamineWorkbook.from_filelike(io.BytesIO(content))
        names = book.sheet_names
        if sheet is not None and sheet not in names:
            raise DataError(
                f"there is no sheet {sheet!r}",
                where=f"{path}, whose sheets are {listing(names)}",
                remedy="Check --sheet.",
            )
        name = sheet or names[0]
        rows = book.get_sheet_by_name(name).to_python(skip_empty_area=True)
    except python_calamine.CalamineError as error:
        raise DataError(
            f"the Excel file cannot be read: {error}", where=str(path), remedy="Save it again as .xlsx."
        ) from error
    rows = [row for row in rows if any(cell != "" for cell in row)]
    if not rows:
        raise DataError(
            f"the sheet {name!r} is empty", where=str(path), remedy=f"Pass --sheet; there are {listing(names)}."
        )
    header = [str(cell).strip() or f"column {i}" for i, cell in enumerate(rows[0], start=1)]
    frame = pd.DataFrame(
        {i: pd.Series([row[i] if row[i] != "" else None for row in rows[1:]], dtype=object) for i in range(len(header))}
    )
    frame.columns = pd.Index(header)
    notes = (
        ()
        if sheet or len(names) == 1
        else (Note("info", f"sheet {name!r} was read; {path.name} also has {listing(names[1:])}"),)
    )
    return RawTable(frame, path.name, notes)


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
    except (sqlalchemy.exc.SQLAlchemyError, ImportError) as error:
        reason = str(getattr(error, "orig", None) or error).splitlines()[0]
        raise DataError(
            f"the database says: {reason}", where=f"--sql {query!r}", remedy="Check --sql and --db."
        ) from error
    frame = pd.DataFrame({i: pd.Series([record[i] for record in records], dtype=object) for i in range(len(keys))})
    frame.columns = pd.Index(keys)
    return RawTable(frame, name)


def _read_hub(address: str) -> RawTable:
    from bertsmith.hub import require_hub

    parts = address.removeprefix("hf://").removeprefix("datasets/").split("/")
    if len(parts) not in (2, 3) or not all(parts):
        raise DataError(
            f"{address} is not the address of a dataset",
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


def _encodable(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        return "".join("\ufffd" if "\ud800" <= c <= "\udfff" else c for c in text)
    return text


def texts_of(values: Iterable[Any], where: str) -> list[str | None]:
    """Read a column as texts: numbers become their digits, missing becomes ``None``.

    Lone surrogates, which no encoding can write, become U+FFFD.

    Raises:
        DataError: if a cell holds a list or an object.
    """
    texts: list[str | None] = []
    for row, value in enumerate(values, start=1):
        if isinstance(value, str):
            texts.append(_encodable(value))
        elif isinstance(value, list | dict | bytes):
            raise DataError(
                f"row {row:,} holds a {type(value).__name__}, not a text",
                where=where,
                remedy="Name the column that holds the texts with --text-column.",
            )
        elif value is None or value != value or value is pd.NaT or value is pd.NA:
            texts.append(None)
        else:
            texts.append(str(int(value)) if isinstance(value, float) and value.is_integer() else str(value))
    return texts
