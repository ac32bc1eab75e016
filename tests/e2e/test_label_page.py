"""The labelling page in a real browser, with the keyboard alone."""

import contextlib
import io
import threading

import pandas as pd
import pytest
import uvicorn

from bertsmith.labelling.app import create_app
from bertsmith.labelling.project import Project, Queued
from bertsmith.serving.server import listen
from bertsmith.workflows.background_work import BackgroundWork
from tests.e2e.browser import CHROMIUM, Tab, chromium

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
LABELS = ["bad", "good", "so so"]
TEXTS = 100
DELAY = """(real => {
    restore = () => { fetch = real; };
    fetch = async (path, options) => {
        const answer = await real(path, options);
        if (path === '%s') await new Promise(done => setTimeout(done, 200));
        return answer;
    };
})(fetch)"""
KEY_DOWN = "document.body.dispatchEvent(new KeyboardEvent('keydown', {key: '%s', repeat: %s, bubbles: true}))"


@pytest.fixture
def project(tmp_path):
    made = Project(tmp_path / "project", {"labels": LABELS, "pool_rows": 1000})
    made.add_texts([Queued(i, f"text number {i}", "x", i % 5 == 0, suggestion="good") for i in range(1, TEXTS + 1)])
    return made


@contextlib.contextmanager
def served(project):
    with listen("127.0.0.1", 0) as listening:
        app = create_app(project, BackgroundWork(project, lambda observe: 0))
        server = uvicorn.Server(uvicorn.Config(app, log_level="error", access_log=False))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        try:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}/"
        finally:
            server.should_exit = True
            thread.join()


def begin(connection, url, name):
    tab = Tab(connection)
    tab.open(url)
    tab.until("document.getElementById('who') && !document.getElementById('who').hidden")
    tab.js("document.getElementById('coder').focus()")
    tab.type(name)
    tab.key("Enter")
    tab.until("current")
    return tab


def press(tab, key):
    """Press a key that ends the current text."""
    number = tab.js("current.id")
    tab.key(key)
    tab.until(f"!current || current.id !== {number}")


def test_two_coders_label_100_texts_with_the_keyboard(project, tmp_path):
    shots = tmp_path  # to look at, with --basetemp
    with served(project) as url, chromium() as connection:
        for name in ("ann", "ben"):
            tab = begin(connection, url, name)
            if name == "ann":
                tab.screenshot(shots / "desktop-label.png")
                found = tab.accessible()
                assert {("button", label) for label in (*LABELS, "Unsure", "Skip", "Undo", "Settle")} <= found
                assert {("button", "ann"), ("textbox", "Note"), ("group", "Labels"), ("heading", "project")} <= found
                assert all(label for role, label in found if role in ("button", "textbox", "progressbar", "group"))
            for i in range(TEXTS):
                if i == 3:
                    press(tab, "u")
                elif i == 4:
                    press(tab, "s")
                elif i == 5:
                    tab.key("n")
                    tab.type("no 1 or 2")  # digits in a note are not labels
                    tab.key("Escape")
                    press(tab, "2")
                else:
                    press(tab, str(1 + (i + (name == "ben" and i % 10 == 0)) % 3))
                if i == 7:
                    press(tab, "z")
                    tab.js("document.getElementById('note').value = 'kept'")
                    tab.key("c")
                    tab.until("!document.getElementById('codebook').hidden")
                    tab.js("current.text = 'another answer'")
                    tab.key("l")
                    tab.until("current.text !== 'another answer'")
                    assert tab.js("document.getElementById('note').value") == "kept"
                    number = tab.js("current.id")
                    for key in ("2", "z"):  # undo before the answer
                        tab.js(KEY_DOWN % (key, "false"))
                    tab.until(f"!pending && current.id === {number}")
                    assert tab.js("document.getElementById('note').value") == ""
                    press(tab, "3")
            assert tab.js("current") is None
        tab.js("document.getElementById('me').click()")
        tab.type("ANN")
        tab.key("Enter")
        tab.until("coder === 'ann'")  # she decided about all texts
        assert tab.js("current") is None
        tab.key("p")
        tab.until("document.querySelectorAll('#overview tr').length > 5")
        tab.screenshot(shots / "desktop-progress.png")
        tab.key("d")
        tab.until("cases.length === 12")
        tab.screenshot(shots / "desktop-settle.png")
        tab.key("3")
        tab.key("z")  # before the answer
        tab.until("!pending && cases.length === 12")
        tab.js(KEY_DOWN % (3, "true"))
        assert tab.js("pending") is None
        tab.key("3")
        tab.until("cases.length === 11")
        tab.key("c")
        tab.until("document.querySelectorAll('#entries form').length === 3")
        tab.resize(390, 844, mobile=True)
        for key, name in (("l", "label"), ("p", "overview"), ("d", "settle"), ("c", "codebook")):
            tab.key(key)
            tab.until(f"!document.getElementById('{name}').hidden")
            tab.screenshot(shots / f"phone-{name}.png")
            assert tab.js("document.documentElement.scrollWidth <= innerWidth")
        assert tab.js("document.getElementById('error').textContent") == ""
        table = pd.read_csv(io.StringIO(tab.js("fetch('labels.csv').then(answer => answer.text())")))
    assert len(table) == 99  # one text was unsure and one skipped; one of them is random, and stays without a label
    assert table["Label Text"].isna().sum() == 1 + 9  # of ten disagreements one was settled
    decisions = project.decisions
    assert len(decisions) == 2 * TEXTS + 1
    assert [d.note for d in decisions if d.note] == ["no 1 or 2"] * 2
    assert {d.status for d in decisions} == {"labelled", "unsure", "skipped"}
    assert all(d.seconds > 0 for d in decisions if d.coder in ("ann", "ben"))


def test_several_labels_and_suggestions_with_the_keyboard(tmp_path):
    project = Project(tmp_path / "p", {"labels": [f"label {i}" for i in range(12)], "task": "multi-label"})
    project.add_texts([Queued(i, f"text {i}", "x", False, suggestion="label 1; label 11") for i in range(1, 7)])
    with served(project) as url, chromium() as connection:
        tab = begin(connection, url, "ann")
        project.define("label 0", "added by ben")
        tab.key("1")
        tab.key("3")
        tab.key("1")
        tab.until("chosen.size === 1")
        press(tab, "Enter")
        tab.key("/")
        tab.type("11")
        tab.key("Enter")
        tab.until("chosen.size === 1")
        press(tab, "Enter")
        assert tab.js("chosen.size") == 0
        tab.key("g")
        tab.until("chosen.size === 2")
        press(tab, "Enter")
        assert [set(d.labels) for d in project.decisions] == [{"label 2"}, {"label 11"}, {"label 1", "label 11"}]
        assert tab.js("project.labels[0].definition") == "added by ben"

        tab.key("c")
        tab.until("document.querySelectorAll('#entries form').length === 12")
        project.define("label 0", examples="added later")
        form = "document.querySelector('#entries form')"
        tab.js(f"{form}.definition.value = 'changed', {form}.requestSubmit()")
        tab.until(f"{form}.querySelector('button').textContent === 'Saved'")
        assert project.setting("codebook")["label 0"] == {"definition": "changed", "examples": "added later"}

        tab.js(DELAY % "next")
        tab.key("l")
        tab.js(KEY_DOWN % ("u", "false"))  # before the answer
        tab.until("current.id === 5")
        tab.js("new Promise(done => setTimeout(done, 300))")
        tab.js("restore()")
        assert tab.js("current.id") == 5
        tab.js(DELAY % "decide")
        tab.js(KEY_DOWN % ("u", "false"))
        tab.js("document.getElementById('me').click()")
        tab.type("ben")
        tab.key("Enter")
        tab.until("coder === 'ben' && current?.id === 1 && view === 'label'")
        press(tab, "s")
    assert [(d.text, d.coder) for d in project.decisions[3:]] == [(4, "ann"), (5, "ann"), (1, "ben")]


def test_200_labels_and_long_texts_on_a_phone(tmp_path):
    labels = ["<b>bold</b>", "a, b", "Donaudampfschifffahrtsgesellschaftskapitänsmützenabzeichen" * 2]
    project = Project(tmp_path / "p", {"labels": labels + [f"label {i}" for i in range(197)]})
    project.add_texts([Queued(i, f"{i} " + "long words " * 9000 + "x" * 1000, "x", False) for i in range(1, 4)])
    with chromium() as connection:
        with served(project) as url:
            tab = begin(connection, url, "ann")
            tab.resize(390, 844, mobile=True)
            coder = "document.getElementById('coder')"
            assert tab.js(f"{coder}.checkValidity()")
            assert not tab.js(f"{coder}.value = 'ann (2)', {coder}.checkValidity()")
            skip = "document.querySelector('[data-do=skipped]')"
            assert tab.js(f"{skip}.getBoundingClientRect().bottom") < 1000
            tab.js("document.getElementById('text').scrollTop = 5000")
            press(tab, "1")
            assert tab.js("document.getElementById('text').scrollTop") == 0
            tab.js("document.querySelector('[data-label=\"a, b\"]').click()")
            tab.until("current.id === 3")
            for key, name in (("p", "overview"), ("c", "codebook"), ("l", "label")):
                tab.key(key)
                tab.until(f"!document.getElementById('{name}').hidden")
                assert tab.js("document.documentElement.scrollWidth <= innerWidth")
            tab.until("document.querySelectorAll('#labels button').length === 200")
        tab.key("s")
        tab.until("document.getElementById('error').textContent")  # the server is gone
        assert tab.js("current.id") == 3
    assert [d.labels for d in project.decisions] == [("<b>bold</b>",), ("a, b",)]
