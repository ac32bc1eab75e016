"""What an installation asks for: the versions that were tested, and none that is known not to do."""

import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def tested():
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = dict(line.split("==") for line in lines if not line.startswith("#"))
    return {canonicalize_name(name): Version(version) for name, version in pins.items()}


def _required(file):
    project = tomllib.loads((ROOT / file).read_text())["project"]
    extras = project["optional-dependencies"].values()
    return [Requirement(text) for text in (*project["dependencies"], *(text for extra in extras for text in extra))]


@pytest.mark.parametrize("file", ["pyproject.toml", "runtime/pyproject.toml"])
def test_what_is_required_was_tested(file, tested):
    wrong = [str(r) for r in _required(file) if not r.specifier.contains(tested[canonicalize_name(r.name)])]
    assert not wrong


def test_a_minor_version_of_transformers_that_was_not_tested_is_not_installed(tested):
    (allowed,) = [r.specifier for r in _required("pyproject.toml") if r.name == "transformers"]
    major, minor, *_ = tested["transformers"].release
    assert allowed.contains(f"{major}.{minor}.99")
    assert not allowed.contains(f"{major}.{minor + 1}.0")


def test_no_cleanlab_under_the_agpl_is_installed():
    (allowed,) = [r.specifier for r in _required("pyproject.toml") if r.name == "cleanlab"]
    assert not allowed.contains("2.7.1")
    assert allowed.contains("2.8.0")
