"""Workflows, hooks and contributing notes name commands, extras and files that exist."""

import importlib.util
import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml

from bertsmith.cli.app import COMMANDS

ROOT = Path(__file__).parents[2]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
MADE = {"dist", "run", "export", "texts.csv", "predictions.csv"}
"""Files and folders that the steps of a workflow make themselves."""
TARGETS = set(re.findall(r"(?m)^([a-z]+):", (ROOT / "Makefile").read_text()))
EXTRAS = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"])


def _yaml(path):
    return yaml.safe_load(path.read_text())


def _steps(workflow):
    return [step for job in _yaml(workflow)["jobs"].values() for step in job["steps"]]


def _problems(command):
    """Return what a shell command names that does not exist."""
    words = command.split()
    if words[0] == "make":
        return set(words[1:]) - TARGETS
    if words[0] == "bertsmith":
        return {w for w in words[1:2] if not w.startswith("-")} - set(COMMANDS)
    if words[:2] == ["python", "-m"] and words[2] != "pip" and importlib.util.find_spec(words[2]) is None:
        return {words[2]}  # setuptools warns of a search for pip
    extras = {name for names in re.findall(r"\[([a-z,-]+)\]", command) for name in names.split(",")}
    files = {w for w in words if re.fullmatch(r"[\w.-]+/[\w./-]+|[\w-]+\.(txt|py|toml)", w)}
    return (extras - EXTRAS) | {f for f in files if not (ROOT / f).exists()}


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda path: path.stem)
def test_a_workflow_runs_what_exists(workflow):
    jobs = _yaml(workflow)["jobs"]
    for name, job in jobs.items():
        assert job["timeout-minutes"] <= 90, name
        assert set([job["needs"]] if isinstance(job.get("needs"), str) else job.get("needs", [])) <= set(jobs)
    steps = _steps(workflow)
    assert all(("run" in step) != ("uses" in step) for step in steps)
    assert all("@" in step["uses"] for step in steps if "uses" in step)
    problems = {step["run"]: _problems(step["run"]) for step in steps if "run" in step}
    assert not {command: found for command, found in problems.items() if found}


def test_missing_files_in_workflows_are_found():
    assert _problems("make nothing") == {"nothing"}
    assert _problems("bertsmith trian -o run") == {"trian"}
    assert _problems("python -m no_such_module") == {"no_such_module"}
    assert _problems('pip install ".[all,nothing]"') == {"nothing"}
    assert _problems("pytest tests/nowhere") == {"tests/nowhere"}


def test_the_matrix_has_the_declared_versions_of_python():
    classifiers = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["classifiers"]
    declared = [c.rsplit(" ", 1)[1] for c in classifiers if re.search(r"Python :: 3\.\d", c)]
    jobs = _yaml(ROOT / ".github" / "workflows" / "tests.yml")["jobs"]
    assert jobs["base"]["strategy"]["matrix"]["python"] == declared
    assert jobs["check"]["strategy"]["matrix"]["python"] == [declared[0], declared[-1]]
    assert len(jobs["check"]["strategy"]["matrix"]["os"]) == 3


def test_a_release_is_published_only_after_the_wheel_is_tested():
    jobs = _yaml(ROOT / ".github" / "workflows" / "release.yml")["jobs"]
    assert jobs["publish"]["permissions"] == {"id-token": "write"}
    before, job = [], "publish"
    while job := jobs[job].get("needs"):
        before.append(job)
    assert before == ["base", "whole", "build"]


def test_hooks_run_installed_tools():
    (local,) = _yaml(ROOT / ".pre-commit-config.yaml")["repos"]
    assert local["repo"] == "local"
    assert {hook["language"] for hook in local["hooks"]} == {"system"}
    assert all(importlib.util.find_spec(hook["entry"].split()[0]) for hook in local["hooks"])


def test_issue_forms_can_be_filled_in():
    forms = [path for path in (ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml") if path.stem != "config"]
    assert len(forms) == 2
    for form in map(_yaml, forms):
        assert {"name", "description", "body"} <= set(form)
        ids = [field["id"] for field in form["body"]]
        assert len(set(ids)) == len(ids)


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
def test_make_alone_lists_every_target():
    out = subprocess.run(["make", "--no-print-directory"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert TARGETS - {"help"} <= set(re.findall(r"(?m)^make (\w+)", out))


def test_contributing_names_what_exists():
    text = (ROOT / "CONTRIBUTING.md").read_text()
    files = re.findall(r"(?:tests|src|benchmarks|docs)/[\w./-]*\.\w+", text)
    assert len(files) >= 3
    assert not [file for file in files if not (ROOT / file).is_file()]
    extras = {name for names in re.findall(r"\.?\[([a-z,-]+)\]\"", text) for name in names.split(",")}
    assert {"all", "dev"} <= extras <= EXTRAS
