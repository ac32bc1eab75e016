"""The requirements of an installation, the content of its wheel, and the messages if an extra is missing."""

import importlib.util
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tarfile
import time
import tomllib
import urllib.request
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

import bertsmith
from bertsmith.cli.app import COMMANDS
from bertsmith.errors import EXTRAS
from bertsmith.testing import tiny_table

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
OPTIONAL = PROJECT["optional-dependencies"]
IMPORTS = {
    "python-calamine": "python_calamine",
    "scikit-learn": "sklearn",
    "huggingface-hub": "huggingface_hub",
    "mlflow-skinny": "mlflow",
}
"""The names that packages are imported by, where they differ."""
NOT_FOR_USERS = ("demo", "dev", "docs")


@pytest.fixture(scope="module")
def tested():
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = dict(line.split("==") for line in lines if not line.startswith("#"))
    return {canonicalize_name(name): Version(version) for name, version in pins.items()}


def _required(*extras):
    """Return the requirements of extras; without a name, those of the base and of all extras."""
    texts = [*(() if extras else PROJECT["dependencies"]), *(t for e in extras or OPTIONAL for t in OPTIONAL[e])]
    return [found for found in map(Requirement, texts) if found.name != "bertsmith"]


def test_required_versions_were_tested(tested):
    wrong = [str(r) for r in _required() if not r.specifier.contains(tested[canonicalize_name(r.name)])]
    assert not wrong


def test_untested_minor_versions_of_transformers_are_excluded(tested):
    (allowed,) = [r.specifier for r in _required() if r.name == "transformers"]
    major, minor, *_ = tested["transformers"].release
    assert allowed.contains(f"{major}.{minor}.99")
    assert not allowed.contains(f"{major}.{minor + 1}.0")


def test_no_cleanlab_under_the_agpl_is_installed():
    (allowed,) = [r.specifier for r in _required() if r.name == "cleanlab"]
    assert not allowed.contains("2.7.1")
    assert allowed.contains("2.8.0")


def test_messages_know_the_extra_of_every_package():
    extras = [extra for extra in OPTIONAL if extra not in NOT_FOR_USERS]
    brought = {IMPORTS.get(r.name, r.name): extra for extra in extras for r in _required(extra)}
    assert {name: EXTRAS.get(name) for name in brought} == brought
    assert set(EXTRAS.values()) <= set(extras)


def test_all_brings_every_extra_but_trackio_for_users():
    def reached(extra):
        inner = [r for r in map(Requirement, OPTIONAL[extra]) if r.name == "bertsmith"]
        return {extra}.union(*(reached(name) for r in inner for name in r.extras))

    assert reached("all") == set(OPTIONAL) - set(NOT_FOR_USERS) - {"trackio"}  # which brings a web framework


LIGHT = f"""
import contextlib, io, json, sys
from importlib.machinery import PathFinder
from pathlib import Path
class Light(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name in {sorted(set(EXTRAS) - {"huggingface_hub"})!r} else super().find_spec(name, path, target)
sys.meta_path = [Light if finder is PathFinder else finder for finder in sys.meta_path]
"""
"""Hides every package of an extra, except one that tokenizers brings, which the base has."""
COMMANDS_RUN = """
from bertsmith.cli.app import main
for arguments in json.load(sys.stdin):
    said = io.StringIO()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
        try: main(arguments)
        except SystemExit as end: code = end.code
    print(json.dumps([code, said.getvalue()]))
"""
FUNCTIONS_RUN = """
import bertsmith as bs
for call in json.load(sys.stdin):
    try: eval(call)
    except bs.UserError as error: print(json.dumps([error.exit_code, getattr(error, "extra", str(error))]))
"""
NEEDED_BY_COMMAND = {
    "demo -o OUT": "train",
    "inspect T": "train",
    "label T -o OUT": "train",
    "next RUN T": "train",
    "train T -o OUT": "train",
    "evaluate RUN T": "train",
    "compare RUN RUN": "train",
    "predict RUN T": "train",
    "serve RUN --port 0": "train",
    "measure RUN T": "train",
    "drift RUN T": "train",
    "verify RUN": "train",
    "pack RUN": "train",
    "push RUN owner/name": "train",
    "tune T -o OUT": "tune",
    "explain RUN --text cat": "explain",
    "export RUN": "export",
    "predict RUN PARQUET": "tables",
    "predict RUN EXCEL": "excel",
    "predict RUN --sql Q --db sqlite:///d": "sql",
    "predict RUN hf://a/b": "train",
    "predict RUN FOLDER --ray local -o OUT": "ray",
    "train T -o OUT --ray local --workers 2": "train",
}
NEEDED_BY_FUNCTION = {
    "bs.read_table('T')": "train",
    "bs.inspect('T')": "train",
    "bs.train('T', output='OUT')": "train",
    "bs.evaluate('RUN', 'T')": "train",
    "bs.compare('RUN', 'RUN/.')": "train",
    "bs.load('RUN')": "train",
    "bs.measure('RUN', 'T')": "train",
    "bs.next_texts('RUN', 'T')": "train",
    "bs.drift('RUN', 'T')": "train",
    "bs.regress('T', 'a', ['b'])": "train",
    "bs.predict('RUN', 'T')": "tables",
    "bs.Classifier": "train",
    "bs.tune('T', output='OUT')": "tune",
    "bs.export('RUN')": "export",
    "bs.push('RUN', 'owner/name')": "train",
    "bs.label_errors('T')": "train",
    "bs.Run(Path('RUN')).predictions": "tables",
}


@pytest.fixture(scope="module")
def named(tmp_path_factory, finished):
    """What a word of the commands above stands for."""
    folder = tmp_path_factory.mktemp("light")
    tiny_table(20).to_csv(folder / "t.csv", index=False)
    (folder / "p").mkdir()
    tiny_table(20).to_parquet(folder / "p" / "t.parquet")
    (folder / "t.json").write_text('[{"Text": "a"}]')
    tiny_table(20).to_excel(folder / "t.xlsx", index=False)
    files = {"EXCEL": "t.xlsx", "T": "t.csv", "PARQUET": "p/t.parquet", "FOLDER": "p", "OUT": "out"}
    return {"RUN": finished} | {word: folder / name for word, name in files.items()}


def _light(code, given, named):
    asked = [[str(named.get(word, word)) for word in words] for words in given]
    lines = json.dumps(["".join(words) for words in asked] if code == FUNCTIONS_RUN else asked)
    out = subprocess.run([sys.executable, "-c", LIGHT + code], input=lines, capture_output=True, text=True, timeout=300)
    assert "Traceback" not in out.stderr, out.stderr
    assert not named["OUT"].exists()
    return list(map(json.loads, out.stdout.splitlines()))


def test_every_command_names_the_extra_it_needs(named):
    runs_in_the_light_base = {"methods", "doctor"}
    assert {command.split()[0] for command in NEEDED_BY_COMMAND} == set(COMMANDS) - runs_in_the_light_base
    commands = [command.split() for command in [*NEEDED_BY_COMMAND, "doctor", "doctor --json"]]
    *found, text, as_json = _light(COMMANDS_RUN, commands, named)
    assert text == as_json == [0, ""]
    for (command, extra), (code, said) in zip(NEEDED_BY_COMMAND.items(), found, strict=True):
        assert code == 2, (command, said)
        assert f"pip install 'bertsmith[{extra}]'" in said, command


def test_every_function_names_the_extra_it_needs(named):
    functions = {name for name in bertsmith.__all__ if name[0].islower()}
    assert functions <= {re.match(r"bs\.(\w+)", call)[1] for call in NEEDED_BY_FUNCTION}
    found = _light(FUNCTIONS_RUN, [re.split(r"\b", call) for call in NEEDED_BY_FUNCTION], named)
    expected = [[call, 2, extra] for call, extra in NEEDED_BY_FUNCTION.items()]
    assert [[call, *line] for call, line in zip(NEEDED_BY_FUNCTION, found, strict=True)] == expected


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The wheel and the source distribution."""
    if importlib.util.find_spec("hatchling") is None:
        pytest.skip("the extra dev is not installed")
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "hatchling", "build", "-d", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, timeout=120)
    (wheel,), (source,) = folder.glob("*.whl"), folder.glob("*.tar.gz")
    return wheel, source


def test_the_version_is_that_of_the_package_and_the_change_log(built):
    wheel, source = built
    assert wheel.name.split("-")[1] == bertsmith.__version__
    assert source.name == f"bertsmith-{bertsmith.__version__}.tar.gz"
    released = re.findall(r"(?m)^## (\d[\d.]*) \(\d{4}-\d\d-\d\d\)$", (ROOT / "CHANGELOG.md").read_text())
    assert released[0] == bertsmith.__version__


def test_wheel_and_source_hold_the_whole_package_and_nothing_else(built):
    files = {
        p.relative_to(ROOT / "src").as_posix()
        for p in (ROOT / "src" / "bertsmith").rglob("*")
        if p.is_file() and "__pycache__" not in p.parts
    }
    wheel, source = built
    with zipfile.ZipFile(wheel) as packed:
        names = set(packed.namelist())
    assert {name for name in names if ".dist-info/" not in name} == files
    assert any(name.endswith("licenses/LICENSE") for name in names)
    with tarfile.open(source) as packed:
        inside = {name.split("/", 1)[1] for name in packed.getnames()}
    assert {f"src/{file}" for file in files} <= inside
    assert inside.isdisjoint({"tests", "benchmarks", "docs"})


@pytest.fixture(scope="module")
def installed(built, tmp_path_factory):
    """The command of the wheel, and two environments: without and with the packages of extras."""
    wheel, _ = built
    folder, light = tmp_path_factory.mktemp("installed"), tmp_path_factory.mktemp("sitecustomize")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--no-compile"]
    subprocess.run([*pip, "--target", str(folder), str(wheel)], check=True, capture_output=True, timeout=120)
    (light / "sitecustomize.py").write_text(LIGHT, encoding="utf-8")
    (command,) = (folder / "bin").glob("bertsmith*")
    paths = (f"{light}{os.pathsep}{folder}", str(folder))
    return command, *(os.environ | {"PYTHONPATH": path} for path in paths)


def test_the_wheel_installs_and_its_command_runs(installed, tmp_path):
    command, environment, _ = installed
    out = subprocess.run([command, "--help"], capture_output=True, text=True, env=environment, cwd=tmp_path, timeout=60)
    assert out.returncode == 0, out.stderr
    assert all(name in out.stdout for name in COMMANDS)
    out = subprocess.run(
        [command, "doctor", "--json"], capture_output=True, text=True, env=environment, cwd=tmp_path, timeout=60
    )
    extras = {extra["name"]: extra["missing"] for extra in json.loads(out.stdout)["extras"]}
    assert "torch" in extras["train"]


SMOKE = """
import sys
from pathlib import Path
import bertsmith
from bertsmith.cli import demo
from bertsmith.cli.app import main
from bertsmith.testing import tiny_model, tiny_table
assert Path(bertsmith.__file__).is_relative_to(sys.argv[1])
fast = {"model": str(tiny_model("model")), "epochs": 2.0, "learning_rate": 1e-2, "device": "cpu"}
table = tiny_table(150)
demo.SETTINGS, demo.bbc_news = {**fast, "explanations": "off"}, lambda: table
for arguments in (["demo", "-o", "run"], ["export", "run", "-o", "export"]):
    try: main(arguments)
    except SystemExit as end: assert not end.code, arguments
texts, labels = table["Text"][:60].tolist(), table["Label Text"][:60].tolist()
assert set(bertsmith.BertClassifier(**fast).fit(texts, labels).predict(texts)) <= set(labels)
"""


@pytest.fixture(scope="module")
def smoke(installed, tmp_path_factory):
    """A folder in which the wheel with all extras ran the demo, on a small table, and exported the run."""
    pytest.importorskip("onnxscript", reason="the extra export is not installed")
    _, _, environment = installed
    folder = tmp_path_factory.mktemp("smoke")
    command = [sys.executable, "-c", SMOKE, environment["PYTHONPATH"]]
    out = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, timeout=300)
    assert out.returncode == 0, out.stderr
    return folder


@pytest.mark.slow
def test_the_wheel_trains_and_labels_without_the_clone(smoke, installed, tmp_path):
    assert (smoke / "run" / "report.html").is_file()
    command, environment, _ = installed
    (tmp_path / "new.csv").write_text("Text\nmy cat\nred\n", encoding="utf-8")
    arguments = ["predict", smoke / "export", "new.csv", "-o", "labelled.csv"]
    out = subprocess.run([command, *arguments], env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert out.returncode == 0, out.stderr
    assert len((tmp_path / "labelled.csv").read_text(encoding="utf-8").splitlines()) == 3


# -- container -----------------------------------------------------------------------------------------------------


DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8").replace("\\\n", " ")
STAGES = re.split(r"(?m)^FROM ", DOCKERFILE)[1:]


def _instructions(name):
    """Return what follows an instruction in the last stage, which becomes the image."""
    return re.findall(rf"(?m)^{name} +(.+)$", STAGES[-1])


def test_the_image_is_small_pinned_and_not_root():
    assert [re.match(r"python:3\.\d+-slim-\w+\b", stage) is not None for stage in STAGES] == [True, True]
    assert re.search(r"\bpip .*--no-cache-dir .*-c constraints\.txt \.$", DOCKERFILE, re.M)  # the base, no extra
    (user,) = _instructions("USER")
    assert int(user) >= 1000
    order = re.findall(r"(?m)^[A-Z]+", STAGES[-1])
    assert order.index("USER") < order.index("ENTRYPOINT")
    sent = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    copied = {name for names in re.findall(r"(?m)^COPY (?!--)(.+) \S+$", STAGES[0]) for name in names.split()}
    assert sent[0] == "*"
    assert {line[1:] for line in sent if line.startswith("!")} == copied
    assert all((ROOT / name).exists() for name in copied)


def test_the_linter_finds_nothing_in_the_dockerfile():
    hadolint = Path(sys.executable).with_name("hadolint")
    if not hadolint.is_file():
        pytest.skip("the extra dev has hadolint on Linux only")
    done = subprocess.run([hadolint, ROOT / "Dockerfile"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "")


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="Windows has no SIGTERM that a process can handle")
def test_the_command_of_the_image_serves_an_export(installed, smoke, tmp_path):
    command, environment, _ = installed
    model = smoke / "export"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    (variables,) = _instructions("ENV")
    given = dict(variable.split("=") for variable in variables.split())
    assert given.pop("PATH").startswith("/venv/bin:")
    environment = environment | given | {"BERTSMITH_RUN": str(model), "AIP_HTTP_PORT": port}
    (entry,), (arguments,), (check,) = (_instructions(name) for name in ("ENTRYPOINT", "CMD", "HEALTHCHECK"))
    assert json.loads(entry) == ["bertsmith"]
    (program, *health) = json.loads(check.split("CMD", 1)[1])
    assert program == "python"
    log = (tmp_path / "log").open("w+")
    server = subprocess.Popen([command, *json.loads(arguments)], env=environment, cwd=tmp_path, stderr=log)
    try:
        deadline = time.monotonic() + 60
        while subprocess.run([sys.executable, *health], env=environment, capture_output=True).returncode:
            assert server.poll() is None, (tmp_path / "log").read_text(encoding="utf-8")
            assert time.monotonic() < deadline
        request = urllib.request.Request(
            f"http://127.0.0.1:{port}/invocations",
            json.dumps({"inputs": ["my cat", "red"]}).encode(),
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=30) as response:
            assert response.headers["x-compute-type"] == "cpu+onnx"
            expected = bertsmith.load(model).predict(["my cat", "red"])
            assert [entry["label"] for entry in json.load(response)] == expected
        server.send_signal(signal.SIGTERM)
        assert server.wait(timeout=30) == 0
    finally:
        server.kill()
        server.wait()
        log.close()
