"""The report: complete, inert, and without network access."""

import re
import shutil
import socket
import subprocess
import threading
from html.parser import HTMLParser

import numpy as np
import pytest

import bertsmith as bs
from bertsmith.folders.atomic import write_json
from bertsmith.folders.run import open_run
from bertsmith.inference.abstain import held_out_predictions
from bertsmith.report.card import card_text
from bertsmith.report.figures import Axis, Line, heatmap, histogram, line_chart
from bertsmith.report.report import _length_figure, curves, environment, report_page, write_report
from bertsmith.tasks.registry import get_task
from bertsmith.testing import tiny_table

EVIL = '"><script>canary()</script><img src="http://127.0.0.1:8099/x" onerror=canary()>'
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


class _Page(HTMLParser):
    """Collects what could fetch or run something."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.scripts, self.links, self.handlers, self.ids = 0, [], [], []
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.scripts += tag == "script"
        for name, value in attributes:
            if name in ("src", "href", "action", "data", "poster", "srcset", "xlink:href"):
                self.links.append(value)
            if name.startswith("on"):
                self.handlers.append((tag, name))


def _check_inert(page):
    parsed = _Page(page)
    assert parsed.scripts == 1
    assert parsed.links == ["data:,"]
    assert parsed.handlers == []
    assert "url(" not in page
    assert "@import" not in page
    assert "Content-Security-Policy" in page


@pytest.fixture(scope="module")
def evil(tmp_path_factory, tiny):
    """A run whose texts, label texts, file and folder names all try to break out of the page."""
    folder = tmp_path_factory.mktemp("evil")
    table = tiny_table(90)
    table["Text"] = EVIL + " " + table["Text"]
    table["Label Text"] = table["Label Text"] + EVIL
    table.to_csv(folder / "<b>x.csv", index=False)
    return bs.train(
        folder / "<b>x.csv", output=folder / "<i>run", model=str(tiny), epochs=1, device="cpu", precision="fp32"
    )


def test_content_of_a_table_is_escaped_everywhere(evil):
    page = evil.layout.report.read_text()
    _check_inert(page)
    assert "<script>canary" not in page
    assert "&lt;script&gt;canary" in page
    assert "<b>x.csv" not in page
    assert "<i>run" not in page
    assert "<script>" not in (evil.layout.model / "README.md").read_text()


def test_the_report_is_complete(finished):
    page = write_report(open_run(finished)).read_text()
    _check_inert(page)
    for heading in (
        "How good is it?",
        "What to fix",
        "What bertsmith did",
        "All metrics",
        "Class by class",
        "Which classes the model confuses",
        "A sample of correct predictions",
        "How training went",
        "Class balance",
        "Length of the texts",
        "Use the model",
        "Settings",
    ):
        assert f"<h2>{heading}</h2>" in page, heading
    what_to_fix = page.partition("<h2>What to fix</h2>")[2].partition("</section>")[0]
    for heading in ("The most confident mistakes", "What bertsmith found in the data"):
        assert f"<h3>{heading}</h3>" in what_to_fix, heading
    value = open_run(finished).metrics["splits"]["test"]["metrics"]["macro_f1"]["value"]
    assert f"<b>{value:.3f}</b>macro-F1" in page
    for name in open_run(finished).info["recipe"].keys() - {"reasons"}:
        assert f"<dt>{name.replace('_', ' ')}</dt>" in page, name


def test_the_class_table_is_by_split_except_for_older_runs(finished, tmp_path):
    from bertsmith.folders.run import Run

    shutil.copytree(finished, tmp_path / "run")
    run = Run(tmp_path / "run")
    info = run.info
    del info["data"]["findings"]["imbalances"]  # as an older version wrote it
    for entry in info["data"]["findings"]["classes"]:
        del entry["splits"]
    write_json(run.layout.run, info)
    assert '<th class="n">texts</th><th class="n">share of texts</th>' in write_report(Run(run.path)).read_text()
    table = bs.read_table(tiny_table(60).assign(part=["train"] * 40 + ["test"] * 20), split_column="part")
    info["data"]["findings"] = bs.inspect(table).to_dict()
    write_json(run.layout.run, info)
    page = write_report(Run(run.path)).read_text()
    assert '<th class="n">train</th><th class="n">test</th><th class="n">share of train</th>' in page


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ({}, "macro-F1"),
        ({"metric_for_best_model": "eval_accuracy"}, "accuracy"),
        ({"metric_for_best_model": "loss"}, "loss"),
    ],
)
def test_report_and_card_name_the_metric_that_selects_the_epoch(given, name, own_run):
    run = open_run(own_run)
    info = run.info
    info["config"]["set"] = given
    info["training"] |= {"selected": True, "stopped_early": True}
    write_json(run.layout.run, info)
    run = open_run(own_run)
    assert report_page(run).count(f"the {name} on the validation texts no longer") == 1
    for page in (report_page(run), card_text(run)):
        assert f"the best {name} on the validation texts" in page


@pytest.mark.parametrize("used", [True, False])
def test_the_card_says_on_which_labels_the_model_was_trained(used, own_run):
    run = open_run(own_run)
    before = card_text(run).splitlines()
    run.update(label_noise={"used": used, "suspects": 13}, soft_labels={"used": used})
    changed = [line for line in card_text(open_run(own_run)).splitlines() if line not in before]
    assert len(changed) == 2 * used
    assert not used or "13 texts" in changed[0]


def test_texts_of_groups_get_no_range_of_chance(own_run):
    run, cell = open_run(own_run), '<td class="n">–</td>'
    before = write_report(run).read_text().count(cell)
    frame = run.predictions
    frame.assign(group=np.arange(len(frame)) // 5).to_parquet(run.layout.predictions / "test.parquet")
    run = open_run(own_run)
    possible = sum(entry["threshold"] > 0 for entry in run.metrics["abstention"]["conformal"])
    assert write_report(run).read_text().count(cell) - before == possible > 0
    assert held_out_predictions(run, test=True).groups.max() == (len(frame) - 1) // 5
    assert held_out_predictions(run).groups is None


def test_pages_say_that_the_seed_was_chosen_on_the_evaluated_texts(own_run):
    from bertsmith.report.methods import write_methods

    def named():
        run = open_run(own_run)
        return [
            "too good" in page for page in (report_page(run), card_text(run), " ".join(write_methods(run).sentences))
        ]

    run = open_run(own_run)
    metrics, info = run.metrics, run.info
    for split in metrics["splits"].values():
        split.update(by="cross-validation", folds=5)
    write_json(run.layout.metrics, metrics)
    assert named() == [False] * 3
    none = {"metric": "macro_f1", "value": -0.1, "interval": None}
    metrics["seeds"] = _seeds(none)
    write_json(run.layout.metrics, metrics)
    info["config"]["seeds"] = 2
    write_json(run.layout.run, {**info, "best_seed": 1})
    assert named() == [True] * 3


def _seeds(difference):
    return {
        "each": [{"seed": seed, "test": {"macro_f1": 0.5}} for seed in (1, 2)],
        "best": 1,
        "test": {"macro_f1": {"mean": 0.5, "standard_deviation": 0.0}},
        "ensemble": {"metrics": {"macro_f1": {"value": 0.4}}, "difference": difference},
    }


def test_metrics_and_differences_without_an_interval_are_shown(own_run):
    """As with test texts of one group."""
    from bertsmith.report.card import write_card
    from bertsmith.report.methods import write_methods

    run = open_run(own_run)
    run.predictions.assign(group="one").to_parquet(run.layout.predictions / "test.parquet")
    metrics, before = run.metrics, write_methods(run).sources
    test = metrics["splits"]["test"]
    test["interval"]["groups"] = 1
    for entry in test["metrics"].values():
        entry["interval"] = None
    none = {"metric": "macro_f1", "value": -0.1, "interval": None}
    metrics["long_texts"] |= {"long": "window", "test": {**none, "truncate": 0.5, "texts": 9, "longer": 3}}
    metrics["seeds"] = _seeds(none)
    metrics["splits"]["validation"]["interval"]["groups"] = 1
    metrics["decision_rule"] |= {"used": False, "standard_error": None}
    write_json(run.layout.metrics, metrics)
    run = open_run(own_run)
    page = write_report(run).read_text()
    _check_inert(page)
    assert "1 group</b>" in page
    assert {place for _, place in before} - {place for _, place in write_methods(run).sources} == {
        f"metrics.json: splits.test.metrics.{name}.interval.{i}" for name in ("macro_f1", "accuracy") for i in (0, 1)
    }
    write_card(run)
    assert "1 group;" in (run.layout.model / "README.md").read_text()


def test_many_classes_are_drawn_as_a_heatmap(finished, tmp_path):
    """A run with 151 classes, made from a small one by writing its figures."""
    from bertsmith.folders.run import Run

    shutil.copytree(finished, tmp_path / "many")
    run = Run(tmp_path / "many")
    metrics = run.metrics
    rng = np.random.default_rng(0)
    matrix = np.diag(rng.integers(5, 30, 151)) + rng.binomial(1, 0.005, (151, 151))
    classes = [
        {**metrics["splits"]["test"]["per_class"][0], "label": c, "label_text": f"class {c}"} for c in range(151)
    ]
    metrics["splits"]["test"] |= {"confusion": matrix.tolist(), "per_class": classes}
    write_json(run.layout.metrics, metrics)
    counts = {"train": 3, "validation": 1, "test": 1}
    write_json(run.layout.labels, {"classes": [{"label": c, "label_text": "", "counts": counts} for c in range(151)]})
    page = write_report(run).read_text()
    _check_inert(page)
    assert page.count("data-cell=") == np.count_nonzero(matrix)
    assert 'class="matrix"' not in page


@pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")
def test_report_pages_load_nothing_from_the_network(evil, tmp_path):
    """Every request of the browser goes to a local proxy, which must receive none."""
    received = []
    with socket.socket() as proxy:
        proxy.bind(("127.0.0.1", 0))
        proxy.listen(16)

        def listen():
            while True:
                try:
                    connection, _ = proxy.accept()
                except OSError:
                    return
                received.append(connection.recv(200))
                connection.close()

        threading.Thread(target=listen, daemon=True).start()
        port = proxy.getsockname()[1]

        def browse(page):
            return subprocess.run(
                [
                    *(CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run"),
                    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
                    *("--disable-features=NetworkTimeServiceQuerying,OptimizationHints", "--disable-quic"),
                    *(f"--user-data-dir={tmp_path / 'profile'}", f"--proxy-server=http://127.0.0.1:{port}"),
                    *("--proxy-bypass-list=<-loopback>", "--virtual-time-budget=2000", "--dump-dom"),
                    page,
                ],
                capture_output=True,
                text=True,
                timeout=120,
            ).stdout

        dom = browse(evil.layout.report.resolve().as_uri())
        ours = [line for line in received if b"127.0.0.1:8099" in line]
        assert "How good is it?" in dom
        assert ours == []
        # A page that does send a request reaches the proxy, so the check can fail.
        (tmp_path / "asks.html").write_text('<img src="http://127.0.0.1:8099/x">')
        browse((tmp_path / "asks.html").as_uri())
        assert any(b"127.0.0.1:8099" in line for line in received)


@pytest.mark.parametrize("value", [0.0, 2e-5, -4.56e-4, 0.123, 1.5, 48213.118])
def test_a_number_keeps_its_size_in_pages(value):
    shown = environment().filters["number"](value)
    assert float(shown.replace(",", "")) == pytest.approx(value, rel=0.01)
    assert len(shown) <= len("-0.000456")


@pytest.mark.parametrize(("name", "n_lines"), [("regression", 1), ("ordinal", 2)])
def test_the_scores_of_a_figure_have_the_same_unit(name, n_lines):
    task = get_task(name)
    entry = {"train_loss": 1.0, "validation_loss": 1.0, "metrics": dict.fromkeys(task.epoch_metrics, 0.5)}
    scores = curves([{"epoch": float(i), **entry} for i in range(3)], None, task)[1]
    assert scores.count("<polyline") == n_lines


@pytest.mark.parametrize("unit", [1e-7, 1e-5, 0.01, 1, 1e5])
def test_the_ticks_of_any_unit_are_short(unit):
    labels = [text for _, text in Axis([-unit, 3 * unit], 0, 100).labels()]
    assert max(map(len, labels)) <= 8
    assert [float(text.replace(",", "")) for text in labels] == pytest.approx(Axis([-unit, 3 * unit], 0, 1).ticks)


def test_squares_of_labels_that_occur_together_count_the_texts_with_a_label():
    cells = re.findall('data-cell="([^"]+)"', heatmap(np.array([[4, 2], [2, 2]]), ["a", "b"], confusion=False))
    assert cells == ["a + b: 2 of 4 texts", "b + a: 2 of 2 texts"]


@pytest.mark.parametrize(("maximum", "marks"), [(16, 1), (512, 0)])
def test_a_maximum_beyond_all_lengths_has_no_mark(maximum, marks):
    tokens = {"edges": [0, 8, 16], "counts": [3, 1], "unit": "tokens"}
    assert _length_figure({"tokens": tokens, "max_length": maximum}).count('class="mark"') == marks


def test_figures_are_well_formed_and_escaped():
    from xml.etree import ElementTree

    drawn = [
        line_chart(
            [Line("<a>", "c1", [(1, 0.5), (2, float("nan")), (3, None)])],
            x_label="x",
            y_label="<y>",
            mark=1,
            mark_label="&",
        ),
        histogram([0, 8, 16], [3, 0], x_label="l", mark=12, mark_label="m"),
        heatmap(np.eye(3, dtype=int), ["<a>", "b", '"c"']),
    ]
    assert "<title>8 or more: 0 texts" in drawn[1]
    for figure in drawn:
        ElementTree.fromstring(f"<div>{figure}</div>")
        assert "<a>" not in figure
    assert len(re.findall("<circle", drawn[0])) == 1
    assert "<svg" not in line_chart([Line("a", "c1", [])], x_label="", y_label="")
    ElementTree.fromstring(f"<div>{line_chart([Line('a', 'c1', [(1, 0.0)])], x_label='', y_label='')}</div>")
