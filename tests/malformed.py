"""Malformed tables, built by code, with the error or the repaired content of each.

A case is refused (exit code 2, with a message that names the file and a remedy), or read after a repair.
"""

from __future__ import annotations

import bz2
import contextlib
import gzip
import io
import json
import lzma
import os
import pickle
import socket
import sqlite3
import tarfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import openpyxl
import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet

GOOD = "Text,Label\ncat,a\ndog,b\nred,a\nblue,b\n"
TEXTS = ["cat", "dog", "red", "blue"]
LABELS = ["a", "b", "a", "b"]


@dataclass(frozen=True)
class Case:
    """A malformed table, and the expected result.

    Attributes:
        name: the name of the file.
        make: writes the file, given its path.
        says: a regular expression that the message, or the output after a repair, matches.
        texts, labels: the texts and labels after a repair, several labels joined by ``;``; ``None`` if the table is
            refused.
        flags: flags of the command.
        command: ``inspect``, or ``train`` if only training refuses the table.
        where: what the message names instead of the file.
    """

    name: str
    make: Callable[[Path], Any]
    says: str = ""
    texts: list[str] | None = None
    labels: list[Any] | None = None
    flags: tuple[str, ...] = ()
    command: str = "inspect"
    where: str | None = None

    def __repr__(self) -> str:
        return self.name


@dataclass
class _Corpus:
    cases: list[Case] = field(default_factory=list)

    def refused(self, name: str, content: Any, says: str, *flags: str, **more: Any) -> None:
        self.cases.append(Case(name, _writer(content), says, flags=flags, **more))

    def repaired(
        self, name: str, content: Any, texts: Any = TEXTS, labels: Any = LABELS, says: str = "", *flags: str
    ) -> None:
        self.cases.append(Case(name, _writer(content), says, texts, labels, flags))


def _writer(content: Any) -> Callable[[Path], Any]:
    if callable(content):
        return content
    data = content if isinstance(content, bytes) else content.encode()
    return lambda path: path.write_bytes(data)


def _rows(*rows: str, header: str = "Text,Label") -> str:
    return "\n".join([header, *rows]) + "\n"


def _arrow(**columns: Any) -> pa.Table:
    return pa.table(columns)


def _parquet(table: pa.Table, cut: int | None = None, change: bool = False) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        pa.parquet.write_table(table, path)
        content = bytearray(path.read_bytes())
        if change:
            content[-12:-8] = b"\xff\xff\xff\x7f"  # the length of the footer
        path.write_bytes(content[:cut])

    return write


def _feather(table: pa.Table, cut: int | None = None) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        pa.feather.write_feather(table, str(path))
        path.write_bytes(path.read_bytes()[:cut])

    return write


def _book(*sheets: list[list[Any]], merge: str | None = None) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        book = openpyxl.Workbook()
        book.remove(book.active)
        for i, rows in enumerate(sheets):
            sheet = book.create_sheet(f"s{i}")
            for row in rows:
                sheet.append(row)
            if merge:
                sheet.merge_cells(merge)
        book.save(path)

    return write


def _zip(**files: bytes) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as packed:
        for name, content in files.items():
            packed.writestr(name.replace("__", "."), content)
    return out.getvalue()


def _tar(path: Path) -> None:
    with tarfile.open(path, "w") as packed:
        entry = tarfile.TarInfo("t.csv")
        entry.size = len(GOOD)
        packed.addfile(entry, io.BytesIO(GOOD.encode()))


def _socket(path: Path) -> None:
    here = Path.cwd()
    os.chdir(path.parent)  # the path of a socket must be short
    try:
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(path.name)
    finally:
        os.chdir(here)


def _database(path: Path) -> None:
    with contextlib.closing(sqlite3.connect(path)) as db, db:
        db.execute("create table t (text, label)")
        db.executemany("insert into t values (?, ?)", zip(TEXTS, LABELS, strict=True))
        db.execute("create table blobs (text, label)")
        db.execute("insert into blobs values (x'00ff', 'a')")
    db.close()


def corpus() -> list[Case]:
    """Return the cases, with distinct names."""
    c = _Corpus()
    _delimiters(c)
    _quotes(c)
    _encodings(c)
    _shapes(c)
    _labels(c)
    _label_sets(c)
    _indicators(c)
    _levels_and_numbers(c)
    _texts(c)
    _json(c)
    _packed(c)
    _arrow_files(c)
    _excel(c)
    _columns(c)
    _places(c)
    _queries(c)
    return c.cases


def _delimiters(c: _Corpus) -> None:
    for name, mark in {"semicolon": ";", "tab": "\t", "pipe": "|"}.items():
        c.repaired(f"{name}.csv", GOOD.replace(",", mark))
        c.repaired(
            f"{name}-with-commas.csv",
            _rows(*(f"{t}, {t}{mark}{x}" for t, x in zip(TEXTS, LABELS, strict=True)), header=f"Text{mark}Label"),
            [f"{t}, {t}" for t in TEXTS],
        )
        c.refused(
            f"{name}-under-comma.csv",
            "Text,Label\n" + GOOD.partition("\n")[2].replace(",", mark),
            "header",
        )
        c.refused(
            f"comma-under-{name}.csv",
            f"Text{mark}Label\n" + GOOD.partition("\n")[2],
            "header|--text-column",
        )
    c.refused("two-delimiters.csv", "Text;Label\na;x\nb,y\nc;x\n", "line 3 has 1.*line 3.*';'")
    for name, mark in {"colon": ":", "space": " ", "caret": "^", "tilde": "~"}.items():
        c.refused(f"{name}.csv", GOOD.replace(",", mark), "header|--text-column")
    c.repaired("comma.tsv", GOOD)
    c.repaired("two-pipes.csv", GOOD.replace(",", "||"))
    c.repaired("windows-lines.csv", GOOD.replace("\n", "\r\n"))
    c.repaired("old-mac-lines.csv", GOOD.replace("\n", "\r"))
    c.repaired("mixed-lines.csv", GOOD.replace("\n", "\r\n", 2))
    c.repaired("no-last-newline.csv", GOOD.rstrip())
    c.repaired("excel-sep-line.csv", "sep=;\n" + GOOD.replace(",", ";"))


def _quotes(c: _Corpus) -> None:
    c.refused("open-in-the-last-row.csv", GOOD + '"red,a\n', "quotes.*line 6")
    c.refused("open-in-the-first-row.csv", 'Text,Label\n"cat,a\ndog,b\n', "quotes.*line 2")
    c.refused("open-in-the-header.csv", '"Text,Label\ncat,a\n', "quotes.*line 1")
    c.refused("text-after-a-quote.csv", 'Text,Label\n"cat" x,a\ndog,b\n', "quotes.*line 2")
    c.refused("single-quotes-with-comma.csv", "Text,Label\n'a, b',x\n", "line 2 has 3")
    c.repaired("quote-inside.csv", _rows('say "cat",a', "dog,b", "red,a", "blue,b"), ['say "cat"', *TEXTS[1:]])
    c.repaired("doubled.csv", _rows('"say ""cat""",a', "dog,b", "red,a", "blue,b"), ['say "cat"', *TEXTS[1:]])
    c.repaired("backslash.csv", _rows('"say \\"cat\\"",a', "dog,b", "red,a", "blue,b"), ['say "cat"', *TEXTS[1:]])
    rows = ['"C:\\new \\"cat\\""', '"a\\b\\\\"', 'dog \\"', '"\\\\\\"x\\y"']
    rows = [f"{row},{label}" for row, label in zip(rows, LABELS, strict=True)]
    c.repaired("literal-backslashes.csv", _rows(*rows), ['C:\\new "cat"', "a\\b\\", 'dog "', '\\"x\\y'])
    rows = [row.replace("C:\\", "C:\\\\").replace("a\\b", "a\\\\b").replace("x\\", "x\\\\") for row in rows]
    c.repaired("escaped-backslashes.csv", _rows(*rows), ['C:\\new "cat"', "a\\b\\", 'dog "', '\\"x\\y'])
    rows = ['"it\\\'s \\"C:\\\\new\\""', '"zero\\0 a\\\\b"', "dog\\, red", "\\N"]
    rows = [f"{row},{label}" for row, label in zip(rows, LABELS, strict=True)]
    c.repaired("escaped-apostrophes.csv", _rows(*rows), ['it\'s "C:\\new"', "zero\\0 a\\b", "dog, red", "N"])
    rows[1] = '"D:\\dir",b'  # a literal backslash, in a file with an escaped comma
    c.repaired("mixed-backslashes.csv", _rows(*rows), ['it\'s "C:\\new"', "D:\\dir", "dog, red", "N"])
    c.repaired("all-quoted.csv", "\n".join(",".join(f'"{f}"' for f in row.split(",")) for row in GOOD.splitlines()))
    c.repaired("lines-inside.csv", _rows('"cat\n\ncat",a', "dog,b", "red,a", "blue,b"), ["cat\n\ncat", *TEXTS[1:]])
    c.repaired("curly.csv", _rows("“cat”,a", "dog,b", "red,a", "blue,b"), ["“cat”", *TEXTS[1:]])
    c.repaired("open.tsv", GOOD.replace(",", "\t").replace("cat", '"cat'), ['"cat', *TEXTS[1:]])
    tabs = _rows('" cat\ta', "dog\tb", 'red "\ta', "blue\tb", header="Text\tLabel")
    c.repaired("quote-to-quote.tsv", tabs, ['" cat', "dog", 'red "', "blue"], LABELS, "plain characters")
    tabs = _rows('"cat\ncat"\ta', "dog\tb", "red\ta", "blue\tb", header="Text\tLabel")
    c.repaired("lines-inside.tsv", tabs, ["cat\ncat", *TEXTS[1:]])
    tabs = _rows('"cat \\""\ta', 'dog"\tb', "red\ta", "blue\tb", header="Text\tLabel")
    c.repaired("backslash-quote-to-quote.tsv", tabs, ['"cat \\""', 'dog"', "red", "blue"], LABELS, "plain characters")
    tabs = _rows('"cat\tcat\ncat"\ta', "dog\tb", "red\ta", "blue\tb", header='"Text"\t"Label"')
    c.repaired("tab-and-line-inside.tsv", tabs, ["cat\tcat\ncat", *TEXTS[1:]])


def _encodings(c: _Corpus) -> None:
    accents = GOOD.replace("cat", "café, naïve").replace("café, naïve", '"café, naïve"')
    texts = ["café, naïve", *TEXTS[1:]]
    for codec in (
        "utf-8",
        "utf-8-sig",
        "utf-16",
        "utf-16-le",
        "utf-16-be",
        "utf-32",
        "latin-1",
        "cp1252",
        "iso8859-15",
    ):
        c.repaired(f"{codec}.csv", accents.encode(codec), texts)
    c.repaired(
        "russian.csv",
        (
            "Text,Label\n" + "".join(f"это очень хороший товар номер {i},a\nплохая вещь {i},b\n" for i in range(9))
        ).encode("cp1251"),
        None,
        None,
        "",
    )
    c.cases[-1] = Case(
        "russian.csv",
        c.cases[-1].make,
        "cp1251",
        [t for i in range(9) for t in (f"это очень хороший товар номер {i}", f"плохая вещь {i}")],
        LABELS[:2] * 9,
    )
    c.repaired("named-latin-1.csv", accents.encode("latin-1"), texts, LABELS, "", "--encoding", "latin-1")
    c.refused("wrong-name.csv", accents.encode("latin-1"), "utf-8.*--encoding", "--encoding", "utf-8")
    c.refused(
        "no-text.parquet",
        _parquet(pa.table({"Text": ["a"], "Label": [1]})),
        "--encoding.*Parquet",
        "--encoding",
        "utf-8",
    )
    c.refused("unknown-name.csv", GOOD, "klingon.*--encoding", "--encoding", "klingon")
    c.refused("not-an-encoding.csv", GOOD, "base64.*--encoding", "--encoding", "base64")
    c.refused("mark-lies.csv", b"\xff\xfe" + GOOD.encode()[:-1], "utf-16")
    c.refused("utf-8-mark-lies.csv", b"\xef\xbb\xbf" + accents.encode("latin-1"), "utf-8-sig")
    c.refused("utf-16-cut.csv", accents.encode("utf-16")[:-1], "utf-16")
    c.refused("utf-16-no-mark-cut.csv", GOOD.encode("utf-16-le")[:-1], "text file")
    c.repaired(
        "nul-text.csv",
        GOOD.encode().replace(b"cat", b"c\0t"),
        ["c\0t", *TEXTS[1:]],
        LABELS,
        "control characters",
    )
    c.refused("nul-padding.csv", GOOD.encode() + b"\0" * 20, "line 6 has 1|text file")
    c.refused("nul-only.csv", b"\0" * 100, "empty")
    c.refused("random.csv", bytes(range(256)) * 8, "text file")
    c.refused("png.csv", b"\x89PNG\r\n\x1a\n" + bytes(200), "text file")
    c.repaired("ebcdic.csv", GOOD.encode("cp500"), TEXTS, LABELS, "cp\\d")


def _shapes(c: _Corpus) -> None:
    for name, content in {"nothing": "", "spaces": "   ", "newlines": "\n\n\n", "mark-only": b"\xef\xbb\xbf"}.items():
        c.refused(f"{name}.csv", content, "empty|header")
    c.refused("header-only.csv", "Text,Label\n", "no rows")
    c.refused("header-no-newline.csv", "Text,Label", "no rows")
    c.refused("header-and-blanks.csv", "Text,Label\n\n\n", "no rows")
    c.refused("commas-only.csv", ",\n,\n,\n", "--text-column|same name")
    c.refused("no-header.csv", "cat,a\ndog,b\n", "--text-column")
    c.refused("one-column.csv", "Text\ncat\ndog\n", "--label-column")
    c.refused("labels-only.csv", "Label\na\nb\n", "--text-column")
    c.refused("same-name.csv", "Text,Text,Label\na,b,x\n", "same name")
    c.refused("alike.csv", "Text,text,Label\na,b,x\n", "'Text', 'text'.*--text-column")
    c.refused("alike-labels.csv", "Text,Label,LABEL\na,x,y\n", "'Label', 'LABEL'.*--label-column")
    c.refused("synonyms.csv", "review,message,label\na,b,x\n", "'review', 'message'.*--text-column")
    c.refused("column-not-there.csv", GOOD, "'Txt'.*'Text'.*--text-column", "--text-column", "Txt")
    c.refused("text-is-label.csv", GOOD, "'Label'.*twice", "--text-column", "Label", "--label-column", "Label")
    c.refused("long-row.csv", GOOD + "red,a,b\n", "line 6 has 3")
    c.refused("short-row.csv", GOOD + "red\n", "line 6 has 1")
    c.refused("comma-in-text.csv", GOOD + "red, blue,a\n", "line 6 has 3.*','")
    c.refused("cut-short.csv", GOOD[:-3], "line 5 has 1")
    c.refused("trailing-commas.csv", "Text,Label\ncat,a,\ndog,b,\n", "2 of 2 rows")
    c.refused("blank-with-space.csv", "Text,Label\ncat,a\n \ndog,b\n", "line 3 has 1")
    c.refused("footer.csv", GOOD + "4 rows exported\n", "line 6 has 1")
    c.repaired("blank-lines.csv", GOOD.replace("\n", "\n\n"))
    c.repaired("spaces-in-header.csv", GOOD.replace("Text,Label", "  Text , Label "))
    c.repaired("shouted-header.csv", GOOD.replace("Text,Label", "TEXT,LABEL"))
    c.repaired("unnamed-index.csv", "\n".join(f"{i or ''},{row}" for i, row in enumerate(GOOD.splitlines())))
    c.repaired("no-suffix", GOOD)
    c.repaired(
        "wide.csv",
        "\n".join(
            row + "," + ",".join(f"{'c' if not i else 'v'}{j}" for j in range(500))
            for i, row in enumerate(GOOD.splitlines())
        ),
    )


def _labels(c: _Corpus) -> None:
    def labelled(*labels: str) -> str:
        return _rows(*(f"t{i},{label}" for i, label in enumerate(labels)))

    train = {"command": "train"}
    c.refused("one-class.csv", labelled(*"aaaaaa"), "same label 'a'", **train)
    c.refused("one-row-each.csv", labelled(*"abcdef"), "(30|6|4) different labels.*--label-column")
    c.refused("one-row.csv", labelled("a"), "validation split", **train)
    c.refused("two-rows.csv", labelled("a", "b"), "validation split", **train)
    small = [*"aaaaaabbbbbbc"]
    c.repaired("small-class.csv", labelled(*small), [f"t{i}" for i in range(13)], small, "c \\(1\\)")
    c.refused("all-missing.csv", labelled("", "", ""), "no row has a label")
    c.refused("all-nan.csv", labelled("nan", "NaN", "NA"), "no row has a label")
    c.refused("mixed.csv", labelled("1", "2", "1", "2", "good"), "row 5 has 'good'")
    c.refused("mostly-words.csv", labelled("a", "b", "a", "b", "1"), "row 5 has '1'")
    c.refused("inf.csv", labelled("1", "0", "inf", "1"), "inf in row 3")
    c.refused("minus-inf.csv", labelled("1", "0", "-Infinity", "1"), "-Infinity in row 3")
    c.refused("scores.csv", labelled("0.5", "0.25", "0.5"), "0.5 in row 1")
    c.refused("one-fraction.csv", labelled("1", "2", "1", "2.5"), "2.5 in row 4")
    c.refused("scientific.csv", labelled("1e3", "2e3", "1e3", "2e3"), "1e3 in row 1")
    for digits in (19, 20, 40, 400):
        c.refused(f"overflow-{digits}.csv", labelled("1", "2", "1", "9" * digits), "9 in row 4|… in row 4")
    c.refused(
        "a-class-a-row.csv", labelled(*(f"label {i}" for i in range(30))), "(30|6|4) different labels.*--label-column"
    )
    c.refused("hex.csv", labelled("0x1", "2", "2", "1"), "row 1 has '0x1'")
    c.refused(
        "two-texts.csv",
        _rows("cat,1,good", "dog,1,bad", "red,2,x", "blue,2,x", header="Text,Label,Label Text"),
        "number 1 .*'bad'.*'good'",
    )
    c.refused(
        "two-numbers.csv",
        _rows("cat,1,good", "dog,3,good", "red,2,x", "blue,2,x", header="Text,Label,Label Text"),
        "'good' .* 1 .* 3 ",
    )
    c.refused(
        "no-partner.csv",
        _rows("cat,1,", "dog,2,good", "red,1,", "blue,2,good", header="Text,Label,Label Text"),
        "paired.*: 1 ",
    )
    c.refused(
        "words-and-words.csv",
        _rows("cat,a,x", "dog,b,y", header="Text,Label,Label Text"),
        "'Label' and 'Label Text'.*--label-text-column",
    )
    numbers = ["0", "1", "0", "1"]
    c.repaired("whole-floats.csv", labelled("0.0", "1.0", "0.0", "1.0"), ["t0", "t1", "t2", "t3"], numbers)
    c.repaired("plus-minus.csv", labelled("-1", "+1", "-1", "+1"), ["t0", "t1", "t2", "t3"], ["-1", "1", "-1", "1"])
    c.repaired(
        "leading-zeros.csv", labelled("01", "02", "01", "02"), ["t0", "t1", "t2", "t3"], ["01", "02", "01", "02"]
    )
    c.repaired(
        "booleans.csv", labelled("True", "False", "True", "False"), ["t0", "t1", "t2", "t3"], ["True", "False"] * 2
    )
    c.repaired("spaces-around.csv", labelled(" a ", "b", "a", "  b"), ["t0", "t1", "t2", "t3"])
    c.repaired("18-digits.csv", labelled("9" * 18, "1", "9" * 18, "1"), ["t0", "t1", "t2", "t3"], ["9" * 18, "1"] * 2)
    c.repaired(
        "missing-some.csv",
        labelled("a", "b", "", "a", "b"),
        ["t0", "t1", "t2", "t3", "t4"],
        ["a", "b", None, "a", "b"],
        "without a label",
    )
    c.repaired("emoji.csv", labelled("👍", "👎", "👍", "👎"), ["t0", "t1", "t2", "t3"], ["👍", "👎"] * 2)
    c.repaired(
        "label-lines.csv", _rows('t0,"a\nb"', "t1,c", 't2,"a b"', "t3,c"), ["t0", "t1", "t2", "t3"], ["a b", "c"] * 2
    )


MULTI = ("--task", "multi-label")
ORDINAL = ("--task", "ordinal")
REGRESSION = ("--task", "regression")


def _label_sets(c: _Corpus) -> None:
    def cells(*labels: str, header: str = "Text,Labels") -> str:
        return _rows(*(f't{i},"{label}"' for i, label in enumerate(labels)), header=header)

    def lists(*labels: Any, name: str = "Labels") -> str:
        return "\n".join(json.dumps({"Text": f"t{i}", name: label}) for i, label in enumerate(labels))

    texts = ["t0", "t1", "t2", "t3"]
    sets = ["a;b", "b", "", "a"]
    good = ("a;b", "b", "", "a")
    c.repaired("joined.csv", cells(*good), texts, sets, "2 labels", *MULTI)
    c.repaired("joined-by-pipes.csv", cells("a|b", "b", "", "a"), texts, sets, "'|'".replace("|", r"\|"), *MULTI)
    c.repaired("joined-by-commas.csv", cells("a, b", "b", "", "a"), texts, sets, "','", *MULTI)
    c.repaired("joined-by-wide-semicolons.csv", cells("a；b", "b", "", "a"), texts, sets, "", *MULTI)
    c.repaired("joined-by-lines.csv", cells("a\nb", "b", "", "a"), texts, sets, "", *MULTI)
    c.repaired("joined-by-slashes.csv", cells("a/b", "b", "", "a"), texts, sets, "", *MULTI, "--label-separator", "/")
    c.repaired("joined-in-brackets.csv", cells("['a', 'b']", "['b']", "[]", "['a']"), texts, sets, "", *MULTI)
    c.repaired("joined-with-loose-ends.csv", cells(";a; b;", "b;b", ";", " a "), texts, sets, "", *MULTI)
    c.repaired("one-label-each.csv", cells("a", "b", "", "a"), texts, ["a", "b", "", "a"], "", *MULTI)
    c.repaired("joined-numbers.csv", cells("1;2", "2", "", "1"), texts, ["1;2", "2", "", "1"], "", *MULTI)
    c.repaired(
        "numbers-and-texts-joined.csv",
        _rows("t0,7;5,x;y", "t1,5,y", "t2,7,x", "t3,5;7,y;x", header="Text,Label,Label Text"),
        texts,
        ["y;x", "y", "x", "y;x"],
        "",
        *MULTI,
    )
    c.repaired("lists.jsonl", lists(["a", "b"], ["b"], [], ["a"]), texts, sets, "")
    c.repaired("lists-of-numbers.jsonl", lists([1, 2], [2], [], [1]), texts, ["1;2", "2", "", "1"], "")
    c.repaired(
        "lists-with-null.jsonl",
        lists(["a", "b"], ["b"], None, ["a"]),
        texts,
        ["a;b", "b", None, "a"],
        "1 row without a label",
    )
    c.repaired("lists-with-empty-words.jsonl", lists(["a", "", "b"], ["b", " "], [""], ["a"]), texts, sets, "")
    c.repaired("lists-with-repeats.jsonl", lists(["b", "a", "b"], ["b"], [], ["a"]), texts, sets, "")
    arrays = pa.array([["a", "b"], ["b"], [], ["a"]])
    c.repaired("label-lists.parquet", _parquet(_arrow(Text=texts, Labels=arrays)), texts, sets, "")
    c.refused("nested-lists.jsonl", lists([["a"], ["b"]], ["b"], ["a"]), "row 1 has a list.*flat list")
    c.refused("lists-of-objects.jsonl", lists([{"name": "a"}], ["b"], ["a"]), "row 1 holds a dict")
    c.refused("lists-with-null-inside.jsonl", lists(["a"], ["b", None], ["a"]), "row 2 has a missing value")
    c.refused("lists-and-words.jsonl", lists(["a", "b"], "b", ["a"]), "row 2 holds 'b'.*list in each row")
    c.refused("lists-and-numbers.jsonl", lists(["a", "b"], 3, ["a"]), "row 2 holds 3.*list in each row")
    c.refused("objects.jsonl", lists({"a": 1}, {"b": 1}, {"a": 0}), "row 1 holds an object.*list of labels", *MULTI)
    c.refused("empty-lists-only.jsonl", lists([], [], []), "no row has a label")
    c.refused(
        "lists-as-one-label.jsonl",
        lists(["a"], ["b", "c"], ["a"]),
        "row 2 holds a list.*multi-label",
        "--task",
        "single-label",
    )
    c.refused("lists-as-levels.jsonl", lists([1], [2, 3], [1]), "row 2 holds a list.*multi-label", *ORDINAL)
    c.refused("lists-as-numbers.jsonl", lists([1], [2, 3], [1]), "row 2 holds a list.*multi-label", *REGRESSION)
    c.refused(
        "lists-in-both-columns.jsonl",
        "\n".join(
            json.dumps({"Text": f"t{i}", "Label": a, "Label Text": b})
            for i, (a, b) in enumerate([([1], ["a"]), ([1, 2], ["a"]), ([2], ["b"])])
        ),
        "row 2.*2 label numbers.*1 label text",
    )
    c.refused(
        "numbers-and-texts-unlike.csv",
        _rows("t0,1;2,a;b", "t1,1;2,a", "t2,2,b", "t3,1,a", header="Text,Label,Label Text"),
        "row 2.*2 label numbers.*1 label text",
        *MULTI,
    )
    c.refused(
        "words-for-numbers.csv",
        _rows("t0,a;b,a;b", "t1,a,a", "t2,b,b", "t3,b,b", header="Text,Label,Label Text"),
        "words.*--label-text-column",
        *MULTI,
    )
    c.refused(
        "two-separators.csv",
        cells("a;b", "a,b", "b;c", "b,c", "c"),
        "';'.*','.*--label-separator|','.*';'.*--label-separator",
        *MULTI,
    )
    c.refused(
        "wrong-separator.csv", cells("a;b", "b;a", "a", "b"), "--label-separator", *MULTI, "--label-separator", "|"
    )
    c.refused("empty-separator.csv", cells(*good), "label.separator", *MULTI, "--label-separator", "", where="label")
    c.refused(
        "nothing-but-separators.csv",
        cells(";", ";;", "", ";"),
        "no row has a label",
        *(*MULTI, "--label-separator", ";"),
    )
    c.refused("no-labels-column.csv", _rows("t0,a", header="Text,Other"), "--label-column", *MULTI)
    c.refused("every-set-new.csv", cells("a;b", "c;d", "e;f", "g;h"), "--label-column", *MULTI)
    c.refused("unknown-task.csv", cells(*good), "task.*multi-label", "--task", "multilabel", where="task")
    c.refused(
        "labels-are-texts.csv", cells(*good), "'Text'.*twice", *MULTI, "--label-column", "Text", "--text-column", "Text"
    )
    c.refused(
        "joined-without-task.csv", cells("a;b", "b;c", "c;a", "a", "b", "c"), "several labels.*--task multi-label"
    )


def _indicators(c: _Corpus) -> None:
    ab = ("--label-columns", "a,b")

    def table(*rows: str, header: str = "Text,a,b") -> str:
        return _rows(*(f"t{i},{row}" for i, row in enumerate(rows)), header=header)

    texts, sets = ["t0", "t1", "t2", "t3"], ["a;b", "b", "", "a"]
    c.repaired("indicators.csv", table("1,1", "0,1", "0,0", "1,0"), texts, sets, "", *ab)
    c.repaired("indicators-float.csv", table("1.0,1.0", "0.0,1.0", "0,0.0", "1,0"), texts, sets, "", *ab)
    c.repaired(
        "indicators-words.csv", table("True,true", "FALSE,True", "False,False", "true,false"), texts, sets, "", *ab
    )
    c.repaired(
        "indicators-blank-row.csv",
        table("1,1", "0,1", ",", "1,0"),
        texts,
        ["a;b", "b", None, "a"],
        "1 row without a label",
        *ab,
    )
    c.refused(
        "indicators-2.csv", table("1,1", "0,2", "0,0", "1,0"), "row 2 holds '2'.*column 'b'|column 'b'.*row 2", *ab
    )
    c.refused("indicators-half.csv", table("1,1", "0,0.5", "0,0", "1,0"), "row 2 holds '0.5'", *ab)
    c.refused("indicators-minus.csv", table("1,-1", "0,1", "0,0", "1,0"), "row 1 holds '-1'", *ab)
    c.refused("indicators-yes.csv", table("yes,no", "no,yes"), "row 1 holds 'yes'", *ab)
    c.refused(
        "indicators-partly-blank.csv",
        table("1,1", "0,", "0,0", "1,0"),
        "row 2 has an empty cell.*'b'|'b'.*row 2 has an empty cell",
        *ab,
    )
    c.refused("indicators-no-column.csv", table("1,1", "0,1"), "'c'.*--label-columns", "--label-columns", "a,c")
    c.refused(
        "indicators-twice.csv",
        table("1,1", "0,1"),
        "distinct names.*a,a",
        "--label-columns",
        "a,a",
        where="--label-columns",
    )
    c.refused(
        "indicators-are-text.csv",
        table("1,1", "0,1"),
        "'Text'.*twice",
        "--label-columns",
        "a,Text",
        "--text-column",
        "Text",
    )
    c.refused(
        "indicators-are-the-only-text.csv",
        table("1,1", "0,1"),
        "label columns.*'Text'.*--text-column",
        "--label-columns",
        "a,Text",
    )
    c.refused(
        "indicators-and-label.csv",
        table("1,1,x", "0,1,y", header="Text,a,b,Label"),
        "--label-columns cannot be combined",
        *ab,
        "--label-column",
        "Label",
    )
    c.refused("indicators-none.csv", table("0,0", "0,0", "0,0", "0,0"), "no row has a label", *ab)
    c.refused("indicators-blank.csv", table(",", ",", ","), "no row has a label", *ab)
    c.refused(
        "indicators-header-twice.csv", table("1,1", "0,1", header="Text,a,a"), "same name", "--label-columns", "a"
    )
    c.refused(
        "indicators-lists.jsonl",
        "\n".join(json.dumps({"Text": f"t{i}", "a": [1], "b": 0}) for i in range(4)),
        "row 1 holds",
        *ab,
    )
    for task in ("single-label", "ordinal", "regression"):
        c.refused(f"indicators-{task}.csv", table("1,1", "0,1"), "--label-columns is for", *ab, "--task", task)
    c.refused("indicators-empty-name.csv", table("1,1", "0,1"), "column|label", "--label-columns", ",", where="label")


def _levels_and_numbers(c: _Corpus) -> None:
    def labelled(*labels: str, header: str = "Text,Label") -> str:
        return _rows(*(f"t{i},{label}" for i, label in enumerate(labels)), header=header)

    texts = ["t0", "t1", "t2", "t3"]
    c.repaired("levels.csv", labelled("1", "2", "1", "2"), texts, ["1", "2", "1", "2"], "", *ORDINAL)
    c.repaired(
        "levels-with-names.csv",
        labelled("2,hi", "1,lo", "2,hi", "1,lo", header="Text,Label,Label Text"),
        texts,
        ["hi", "lo"] * 2,
        "",
        *ORDINAL,
    )
    c.refused("levels-as-words.csv", labelled("low", "high", "low", "high"), "label numbers.*--label-column", *ORDINAL)
    c.refused(
        "levels-in-reverse.csv",
        labelled("low", "high", "medium", "low", "high", "medium"),
        "label numbers.*--label-column",
        *ORDINAL,
    )
    c.refused("levels-with-fractions.csv", labelled("1", "1.5", "2", "1"), "1.5 in row 2.*--task regression", *ORDINAL)
    c.refused("levels-joined.csv", labelled("1;2", "2", "1;2", "2"), "1;2|words|numbers", *ORDINAL)
    c.repaired(
        "numbers-as-labels.csv", labelled("1.5", "2", "-3e1", ".5"), texts, [1.5, 2.0, -30.0, 0.5], "", *REGRESSION
    )
    c.repaired(
        "numbers-with-blanks.csv",
        labelled("1.5", "", "3", "0.5"),
        texts,
        [1.5, None, 3.0, 0.5],
        "1 row without a label",
        *REGRESSION,
    )
    c.repaired(
        "numbers-with-spaces.csv", labelled(" 1 ", "2 ", " 3", "4"), texts, [1.0, 2.0, 3.0, 4.0], "", *REGRESSION
    )
    c.repaired(
        "numbers-as-label-text.csv",
        labelled("1", "2", "3", "4", header="Text,Label Text"),
        texts,
        [1.0, 2.0, 3.0, 4.0],
        "",
        *REGRESSION,
    )
    for name, bad in {
        "word": "good",
        "percent": "50%",
        "money": "$5",
        "range": "1-2",
        "time": "1:30",
        "infinity": "inf",
        "minus-infinity": "-Infinity",
        "too-large": "1e999",
        "underscore": "1_000",
    }.items():
        c.refused(f"number-{name}.csv", labelled("1", "2", bad, "3"), "not a number.*row 3", *REGRESSION)
    c.refused("number-comma.csv", 'Text,Label\nt0,0.5\nt1,"1,5"\nt2,2\n', "'1,5'.*row 2.*point", *REGRESSION)
    c.refused("number-thousands.csv", 'Text,Label\nt0,1\nt1,"1,500"\nt2,2\n', "'1,500'.*row 2", *REGRESSION)
    c.refused(
        "number-constant.csv", labelled("1", "1", "1", "1"), "three different numbers.*--label-column", *REGRESSION
    )
    c.refused("number-two-values.csv", labelled("0", "1", "0", "1"), "three different numbers", *REGRESSION)
    c.refused("number-all-blank.csv", labelled("", "", "", ""), "three different numbers", *REGRESSION)
    c.refused("number-all-nan.csv", labelled("nan", "NaN", "nan"), "'nan'.*rows 1, 2, 3|three different", *REGRESSION)
    c.refused(
        "number-lists.jsonl", "\n".join(json.dumps({"Text": "t", "Label": [i]}) for i in range(4)), "list", *REGRESSION
    )
    c.refused(
        "number-objects.jsonl",
        "\n".join(json.dumps({"Text": "t", "Label": {"a": i}}) for i in range(4)),
        "row 1",
        *REGRESSION,
    )
    c.refused(
        "number-is-text.csv",
        labelled("1", "2", "3"),
        "'Label'.*twice",
        *REGRESSION,
        "--label-column",
        "Label",
        "--text-column",
        "Label",
    )


def _texts(c: _Corpus) -> None:
    million = "word " * 200_000
    c.repaired(
        "a-million-characters.csv",
        _rows(f"{million.strip()},a", "dog,b", "red,a", "blue,b"),
        [million.strip(), *TEXTS[1:]],
    )
    c.repaired("numbers.csv", _rows("1,a", "2.50,b", "3,a", "4,b"), ["1", "2.50", "3", "4"])
    c.repaired("formulas.csv", _rows("=1+1,a", "+2,b", "@x,a", "-3,b"), ["=1+1", "+2", "@x", "-3"])
    c.repaired(
        "some-empty.csv", _rows(",a", "dog,b", "red,a", "blue,b"), ["", *TEXTS[1:]], LABELS, "1 row without a text"
    )
    c.repaired("controls.csv", _rows("c\x07at\x1b[31m,a", "dog,b", "red,a", "blue,b"), None, None)
    c.cases[-1] = Case("controls.csv", c.cases[-1].make, "", ["c\x07at\x1b[31m", *TEXTS[1:]], LABELS)
    c.refused(
        "all-empty.csv", _rows(*(f",{x}" for x in "abababab")), r"train split.*8 rows \(empty text\)", command="train"
    )
    c.refused(
        "all-the-same.csv",
        _rows(*(f"cat,{x}" for x in "aaaabbbb")),
        r"8 rows \(conflicting labels\)",
        command="train",
    )


def _json(c: _Corpus) -> None:
    good = [{"text": t, "label": x} for t, x in zip(TEXTS, LABELS, strict=True)]
    lines = "\n".join(map(json.dumps, good))
    c.repaired("array.jsonl", json.dumps(good))
    c.repaired("lines.json", lines)
    c.repaired("mark.jsonl", b"\xef\xbb\xbf" + lines.encode())
    c.repaired("utf-16.jsonl", lines.encode("utf-16"))
    c.repaired("blank-lines.jsonl", lines.replace("\n", "\n\n"))
    c.repaired("lines.csv", lines)
    c.repaired("surrogates.jsonl", lines.replace("cat", "c\\ud800t"), ["c\ufffdt", *TEXTS[1:]])
    c.repaired("surrogates-in-a-label.jsonl", lines.replace('"a"', '"a\\ud800"'), TEXTS, ["a\ufffd", "b"] * 2)
    more = lines.replace('"label"', '"more\\ud800": "x\\ud800", "label"')
    c.repaired("surrogates-elsewhere.jsonl", more)
    c.repaired("null-text.jsonl", lines.replace('"cat"', "null"), ["", *TEXTS[1:]], LABELS, "1 row without a text")
    c.repaired(
        "boolean-labels.jsonl", lines.replace('"a"', "true").replace('"b"', "false"), TEXTS, ["True", "False"] * 2
    )
    c.repaired("missing-key.jsonl", lines.replace('"text": "cat", ', ""), ["", *TEXTS[1:]])
    c.refused("cut.jsonl", lines[:-3], "line 4")
    c.refused("comma.jsonl", lines.replace("}\n", "},\n"), "line 1")
    c.refused("single-quotes.jsonl", lines.replace('"', "'"), "line 1")
    c.refused("two-on-a-line.jsonl", lines.replace("\n", "", 1), "line 1")
    c.refused("scalar.jsonl", lines + "\n3\n", "found int")
    c.refused("string.json", '"cat"', "found str")
    c.refused("null.json", "null", "found NoneType")
    c.refused("number.json", "3", "found int")
    c.refused("array-of-arrays.json", '[["text", "label"], ["cat", "a"]]', "found list")
    c.refused("columns.json", json.dumps({"text": TEXTS, "label": LABELS}), "row 1 holds a list")
    c.refused("null-entry.json", "[null]", "found NoneType")
    c.refused("empty-array.json", "[]", "no rows")
    c.refused("empty-object.json", "{}", "no rows")
    c.refused("cut.json", json.dumps(good)[:-5], "JSON")
    c.refused("deep.json", "[" * 100_000, "JSON")
    c.refused("deep.jsonl", '{"text":' * 100_000, "line 1")
    c.refused("list-text.jsonl", lines.replace('"cat"', '["cat"]'), "row 1 holds a list")
    c.refused("object-text.jsonl", lines.replace('"cat"', '{"en": "cat"}'), "row 1 holds a dict")
    c.refused("list-label.jsonl", lines.replace('"a"', '["a"]'), "list")
    c.refused("nan-label.jsonl", lines.replace('"a"', "NaN").replace('"b"', "NaN"), "no row has a label")
    c.refused("inf-label.jsonl", lines.replace('"a"', "Infinity").replace('"b"', "1"), "row 1")
    c.refused("huge-label.jsonl", lines.replace('"a"', str(10**30)).replace('"b"', "1"), "in row 1")
    c.refused("endless-number.jsonl", lines.replace('"a"', "9" * 10_000).replace('"b"', "1"), "row 1|line 1")


def _packed(c: _Corpus) -> None:
    packed = gzip.compress(GOOD.encode() * 50)
    c.repaired("good.csv.gz", gzip.compress(GOOD.encode()))
    c.repaired("no-gz-name.csv", gzip.compress(GOOD.encode()))
    c.repaired("not-packed.csv.gz", GOOD)
    for share in (5, 20, len(packed) // 2, len(packed) - 9, len(packed) - 1):
        c.refused(f"cut-{share}.csv.gz", packed[:share], "gzip")
    c.refused("wrong-sum.csv.gz", packed[:-8] + b"\0" * 4 + packed[-4:], "gzip")
    c.refused("changed.csv.gz", packed[:30] + b"\xff\xff\xff" + packed[33:], "gzip|text file|header")
    c.refused("nothing.csv.gz", gzip.compress(b""), "empty")
    c.refused("twice.csv.gz", gzip.compress(packed), "gzip.*gzip")
    c.refused(
        "bomb.csv.gz",
        gzip.compress(b"Text,Label\n" + b"a" * 30_000_000),
        "0.02 GB.*--max-unpacked",
        "--max-unpacked",
        "0.02",
    )
    c.refused("packed.csv.bz2", bz2.compress(GOOD.encode()), "bzip2")
    c.refused("packed.csv.xz", lzma.compress(GOOD.encode()), "xz")
    c.refused("packed.csv.zst", b"\x28\xb5\x2f\xfd" + bytes(20), "zstd")
    c.refused("packed.7z", b"7z\xbc\xaf\x27\x1c" + bytes(20), "7z")
    c.refused("packed.zip", _zip(t__csv=GOOD.encode()), "zip archive")
    c.refused("packed.tar", _tar, "tar archive")
    c.refused("paper.pdf", b"%PDF-1.7\n" + bytes(range(200)), "PDF")
    c.refused("frame.pkl", pickle.dumps({"Text": TEXTS}), "pickle")
    c.refused("frame.csv", pickle.dumps({"Text": TEXTS}, protocol=5), "pickle")
    c.refused("page.html", "<!DOCTYPE html><table><tr><td>Text</td></tr></table>", "HTML")
    c.refused("not-found.csv", "<html><body>404 Not Found</body></html>", "HTML")
    c.refused("table.xml", '<?xml version="1.0"?><rows/>', "XML")
    c.refused("data.csv", _database, "SQLite database.*--sql")


def _arrow_files(c: _Corpus) -> None:
    good = _arrow(text=TEXTS, label=LABELS)
    for kind, write in (("parquet", _parquet), ("feather", _feather)):
        c.repaired(f"named-csv-{kind}.csv", write(good))
        c.repaired(f"categories.{kind}", write(_arrow(text=TEXTS, label=pa.array(LABELS).dictionary_encode())))
        c.repaired(f"large-strings.{kind}", write(_arrow(text=pa.array(TEXTS, pa.large_string()), label=LABELS)))
        c.repaired(f"booleans.{kind}", write(_arrow(text=TEXTS, label=[True, False] * 2)), TEXTS, ["True", "False"] * 2)
        for cut in (3, 8, 100, -1, -8):
            c.refused(f"cut{cut}.{kind}", write(good, cut), "(?i)" + kind + "|empty")
        c.refused(f"no-rows.{kind}", write(good.slice(0, 0)), "no rows")
        c.refused(f"no-columns.{kind}", write(pa.table({})), "no rows")
        c.refused(f"lists.{kind}", write(_arrow(text=[[t] for t in TEXTS], label=LABELS)), "row 1 holds a list")
        c.refused(f"objects.{kind}", write(_arrow(text=[{"en": t} for t in TEXTS], label=LABELS)), "row 1 holds a dict")
        c.refused(f"binary.{kind}", write(_arrow(text=[t.encode() for t in TEXTS], label=LABELS)), "row 1 holds bytes")
        c.refused(f"fractions.{kind}", write(_arrow(text=TEXTS, label=[0.5, 1.0, 0.5, 1.0])), "0.5 in row 1")
        c.refused(f"nan-labels.{kind}", write(_arrow(text=TEXTS, label=[float("nan")] * 4)), "no row has a label")
        c.refused(f"inf-labels.{kind}", write(_arrow(text=TEXTS, label=[1.0, float("inf"), 1.0, 2.0])), "inf in row 2")
        c.refused(
            f"big-labels.{kind}",
            write(_arrow(text=TEXTS, label=pa.array([2**64 - 1, 1, 2**64 - 1, 1], pa.uint64()))),
            "in row 1",
        )
        c.refused(
            f"same-names.{kind}",
            write(pa.Table.from_arrays([pa.array(TEXTS)] * 2 + [pa.array(LABELS)], names=["text", "text", "label"])),
            "same name",
        )
        bomb = pa.table(
            {"text": pa.array(["a" * 1000]).dictionary_encode().take([0] * 60_000), "label": ["a", "b"] * 30_000}
        )
        bomb = bomb.set_column(0, "text", bomb["text"].cast(pa.string()))
        c.refused(f"bomb.{kind}", write(bomb), "0.02 GB.*--max-unpacked", "--max-unpacked", "0.02")
        c.refused(f"text.{kind}", GOOD, f"(?i){kind}")
        invalid = pa.array([t.encode() + b"\xff" for t in TEXTS]).view(pa.string())
        c.repaired(f"invalid-utf-8.{kind}", write(_arrow(text=invalid, label=LABELS)), [f"{t}\ufffd" for t in TEXTS])
        far = _arrow(text=TEXTS, label=LABELS, far=pa.array([2**62, 0, 0, 0], pa.timestamp("us")))
        c.repaired(f"far-times.{kind}", write(far), TEXTS, LABELS, "'far'")
    c.refused("footer.parquet", _parquet(good, change=True), "Parquet")


def _excel(c: _Corpus) -> None:
    rows = [["Text", "Label"], *([t, x] for t, x in zip(TEXTS, LABELS, strict=True))]
    c.repaired("good.xlsx", _book(rows))
    c.repaired("named-csv-xlsx.csv", _book(rows))
    c.repaired(
        "blank-rows.xlsx",
        _book([[], rows[0], [], *rows[1:], [], []]),
        ["", *TEXTS],
        [None, *LABELS],
        "1 row without a text",
    )
    c.repaired("numbers.xlsx", _book([rows[0], *([t, i % 2] for i, t in enumerate(TEXTS))]), TEXTS, ["0", "1"] * 2)
    c.repaired(
        "whole-floats.xlsx", _book([rows[0], *([t, i % 2 + 0.0] for i, t in enumerate(TEXTS))]), TEXTS, ["0", "1"] * 2
    )
    c.repaired("second-sheet.xlsx", _book([["a"]], rows), TEXTS, LABELS, "", "--sheet", "s1")
    c.refused("no-such-sheet.xlsx", _book(rows), "'data'.*'s0'.*--sheet", "--sheet", "data")
    c.refused("empty-sheet.xlsx", _book([]), "'s0'.*--sheet")
    c.refused("header-only.xlsx", _book(rows[:1]), "no rows")
    c.refused("title-above.xlsx", _book([["Survey of 2024"], *rows]), "--text-column")
    # A formula without a stored result is an empty cell, so its row has no text.
    c.repaired(
        "formulas.xlsx",
        _book([rows[0], ['="c"&"at"', "a"], *rows[2:]]),
        ["", *TEXTS[1:]],
        LABELS,
        "1 row without a text",
    )
    # Only the first cell of a merged range has the value; the others are empty.
    c.repaired("merged.xlsx", _book(rows, merge="B2:B3"), TEXTS, ["a", None, "a", "b"], "without a label")
    c.refused(
        "dates.xlsx",
        _book([rows[0], *([t, f"2024-01-{i + 1:02}"] for i, t in enumerate(TEXTS))]),
        "(30|6|4) different labels.*--label-column",
    )
    c.refused("nothing-inside.xlsx", _zip(a__txt=b"a"), "Excel file")
    c.refused("word.docx", _zip(word_document__xml=b"<a/>"), "Excel file")
    c.refused("only-a-head.xlsx", b"PK\x03\x04 nothing", "Excel file")
    c.refused("locked.xlsx", b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(600), "Excel file")
    c.refused("csv.xlsx", GOOD, "Excel")
    c.refused(
        "bomb.xlsx",
        _zip(xl_workbook__xml=b"<a/>" + b" " * 30_000_000),
        "0.02 GB.*--max-unpacked",
        "--max-unpacked",
        "0.02",
    )

    def cut(path: Path) -> None:
        _book(rows)(path)
        path.write_bytes(path.read_bytes()[:-200])

    c.refused("cut.xlsx", cut, "Excel file")


def _columns(c: _Corpus) -> None:
    """Cases of pairs and of further columns."""
    header = "Text,Other,price,Label"
    good = _rows("cat,dog,1,a", "dog,red,2,b", "red,blue,3,a", "blue,cat,4,b", header=header)
    pair, further = ("--pair-column", "Other"), ("--with-columns", "price")
    both = ("--text-column", '["Text", "Other"]')
    c.refused("no-pair.csv", GOOD, "'Other'.*--pair-column", *pair)
    c.refused("no-pair-and-no-price.csv", GOOD, "'Other'.*--pair-column", *pair, *further)
    c.refused("misspelt-pair.csv", good, "'Othr'.*'Other'", "--pair-column", "Othr")
    c.refused("misspelt-price.csv", good, "'prices'.*'price'.*--with-columns", "--with-columns", "prices")
    c.refused("pair-is-text.csv", good, "'Text'.*twice", "--pair-column", "Text", "--text-column", "Text")
    c.refused("pair-is-label.csv", good, "'Label'.*twice", "--pair-column", "Label", "--label-column", "Label")
    c.refused("price-is-pair.csv", good, "'Other'.*twice", *pair, "--with-columns", "Other,price")
    c.refused("price-is-label.csv", good, "'Label'.*twice", "--with-columns", "Label", "--label-column", "Label")
    c.refused(
        "second-text-is-label.csv",
        good,
        "'Label'.*twice",
        "--text-column",
        '["Text", "Label"]',
        "--label-column",
        "Label",
    )
    c.refused("pair-twice.csv", good, "distinct names", "--with-columns", "price,price", where="")
    c.refused("empty-name.csv", good, "distinct names", "--with-columns", "price,,", where="")
    c.refused("alike-pairs.csv", good.replace("price", "other"), "'OTHER'.*--pair-column", "--pair-column", "OTHER")
    c.refused(
        "pair-list.jsonl", '{"Text": "a", "Other": ["b"], "Label": 0}\n' * 4, "row 1 holds a list.*--pair-column", *pair
    )
    c.refused(
        "pair-object.jsonl",
        '{"Text": "a", "Other": {"b": 1}, "Label": 0}\n' * 4,
        "row 1 holds a dict.*--pair-column",
        *pair,
    )
    c.refused(
        "price-list.json",
        json.dumps([{"Text": "a", "price": [1, 2], "Label": 0}] * 4),
        "row 1 holds a list.*--with-columns",
        *further,
    )
    c.refused(
        "price-bytes.parquet",
        _parquet(_arrow(Text=TEXTS, price=[b"1"] * 4, Label=LABELS)),
        "row 1 holds bytes.*--with-columns",
        *further,
    )
    c.refused(
        "second-text-list.parquet",
        _parquet(_arrow(Text=TEXTS, Other=[["a"]] * 4, Label=LABELS)),
        "row 1 holds a list.*--text-column",
        *both,
    )
    c.refused("pair-in-one-cell.csv", _rows("cat,dog,a", "dog,red,b"), "line 2 has 3", *pair)
    c.refused(
        "all-pairs-empty.csv",
        _rows("cat,,1,a", "dog,,2,b", header=header),
        "without a text|no text is left|one class",
        *pair,
        command="train",
    )
    c.repaired("empty-pairs.csv", good.replace("dog,1", ",1"), TEXTS, LABELS, "1 row without a text", *pair)
    c.repaired("blank-pairs.csv", good.replace("dog,1", '" ",1'), TEXTS, LABELS, "1 row without a text", *pair)
    c.repaired("pair-name-spelt-differently.csv", good.replace("Other", " OTHER "), TEXTS, LABELS, "pair =", *pair)
    c.repaired(
        "control-characters-in-a-pair.csv",
        good.replace("dog,1", "d\x08og,1"),
        TEXTS,
        LABELS,
        "control characters",
        *pair,
    )
    c.repaired("numbers-as-pair.csv", good, TEXTS, LABELS, "pair = 'price'", "--pair-column", "price")
    joined = ["cat\ndog", "dog\nred", "red\nblue", "blue\ncat"]
    c.repaired("two-text-columns.csv", good, joined, LABELS, "text = 'Text, Other'", *both)
    c.repaired("empty-second-text.csv", good.replace("cat,dog", "cat,"), ["cat", *joined[1:]], LABELS, "", *both)
    c.repaired("empty-first-text.csv", good.replace("cat,dog", ",dog"), ["dog", *joined[1:]], LABELS, "", *both)
    c.repaired(
        "both-texts-empty.csv", good.replace("cat,dog", ","), ["", *joined[1:]], LABELS, "1 row without a text", *both
    )
    c.repaired(
        "line-break-in-a-part.csv",
        good.replace("cat,dog", '"cat\n\nred",dog'),
        ["cat red\ndog", *joined[1:]],
        LABELS,
        "",
        *both,
    )
    prices = [f"{text}\nprice: {i}" for i, text in enumerate(TEXTS, 1)]
    c.repaired("prices.csv", good, prices, LABELS, "with = 'price'", *further)
    c.repaired("missing-prices.csv", good.replace("dog,1", "dog,"), ["cat", *prices[1:]], LABELS, "", *further)
    c.repaired(
        "price-without-text.csv",
        good.replace("cat,dog,1", ",dog,1"),
        ["", *prices[1:]],
        LABELS,
        "1 row without a text",
        *further,
    )
    dated = _book(
        [
            ["Text", "price", "Label"],
            *([t, f"2024-01-0{i}", x] for i, (t, x) in enumerate(zip(TEXTS, LABELS, strict=True), 1)),
        ]
    )
    c.repaired(
        "dates-as-further-column.xlsx",
        dated,
        [f"{t}\nprice: 2024-01-0{i}" for i, t in enumerate(TEXTS, 1)],
        LABELS,
        "",
        *further,
    )


def _places(c: _Corpus) -> None:
    c.refused("folder.csv", Path.mkdir, "folder")
    if hasattr(os, "mkfifo"):  # Windows has neither special files nor, for most users, links
        c.refused("fifo.csv", os.mkfifo, "regular file")
        c.refused("socket.csv", _socket, "regular file")
        c.refused("device.csv", lambda path: path.symlink_to("/dev/zero"), "regular file")
        c.refused("dangling.csv", lambda path: path.symlink_to("nowhere"), "does not exist")
        c.refused("loop.csv", lambda path: path.symlink_to(path.name), "cannot be read|does not exist")
    c.refused("never-written.csv", lambda path: None, "does not exist")
    c.refused("n" * 300 + ".csv", lambda path: None, r"\d characters", where="the table")
    c.refused("no-folder/t.csv", lambda path: None, "does not exist")
    c.refused("good.csv/t.csv", lambda path: path.parent.write_text(GOOD), "cannot be read|does not exist")


def _queries(c: _Corpus) -> None:
    def query(name: str, sql: str, says: str, db: str = "sqlite:///{path}", make: Any = _database) -> None:
        c.cases.append(Case(name, make, says, flags=("--sql", sql, "--db", db), where=""))

    query("syntax.db", "selec * from t", "syntax error")
    query("no-table.db", "select * from u", "no such table: u")
    query("no-column.db", "select missing from t", "no such column")
    query("two.db", "select 1; select 2", "one statement at a time")
    query("no-select.db", "create table x (a)", "SELECT")
    query("no-rows.db", "select * from t where 0", "no rows")
    query("blobs.db", "select * from blobs", "row 1 holds bytes")
    query("same-names.db", "select text, text, label from t", "same name")
    query("not-a-db.db", "select * from t", "not a database", make=lambda path: path.write_text(GOOD * 50))
    query("missing.db", "select 1", "does not exist.*--db", make=lambda path: None)
    query("no-number.db", "select 1", "reports: .*'x'", db="sqlite:///{path}?timeout=x")
    query("no-scheme.db", "select 1", "database reports", db="{path}")
    query("unknown.db", "select 1", "database reports", db="nosuchdb://host/name")
    query("no-driver.db", "select 1", "database reports", db="oracle://host/name")
    query("no-port.db", "select 1", "port", db="sqlite://:port/{path}")
