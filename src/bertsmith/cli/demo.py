"""``bertsmith demo``."""

from __future__ import annotations

from pathlib import Path

from bertsmith.cli.terminal import result, talk
from bertsmith.cli.train import Output, Overwrite, Resume, run_and_show

DEMO_RUN = Path("runs/bbc-news")
SETTINGS = {"model": "packaged:minilm", "max_length": 128, "epochs": 3, "test_size": 0.2}
"""The first 128 tokens of an article tell its desk; a fifth of so small a collection makes a test worth the name."""


def demo(*, output: Output = DEMO_RUN, resume: Resume = False, overwrite: Overwrite = False) -> None:
    """Run the whole pipeline on BBC News (2,225 articles, 5 classes) with the packaged MiniLM; a few minutes on a CPU.

    Example: bertsmith demo -o runs/bbc-news
    """
    from bertsmith.config import resolve
    from bertsmith.data.bbc import bbc_news
    from bertsmith.output import check_output

    check_output(output, resume=resume, overwrite=overwrite)
    talk().print("BBC News: 2,225 articles in 5 classes, fine-tuned with MiniLM, offline")
    run_and_show(bbc_news(), resolve(SETTINGS, environ={}), output, resume=resume, overwrite=overwrite)
    result().print(
        "\nNext, with a table of your own (columns such as Text and Label or Label Text):\n"
        "  bertsmith inspect reviews.csv\n"
        "  bertsmith train reviews.csv -o runs/reviews --model packaged:minilm\n"
        "  bertsmith predict runs/reviews new.csv -o predictions.csv\n"
        "On Linux tcmalloc makes training on a CPU a little faster: docs/how-to/threads.md says how.",
        markup=False,
    )
