"""`bertsmith doctor`, and the completion of commands in a shell."""

import json
import re
import shutil
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest
import torch

from bertsmith.compute import device as devices
from bertsmith.compute import machine
from bertsmith.errors import EXTRAS
from bertsmith.workflows import doctor

ROOT = Path(__file__).parents[2]


@pytest.fixture
def lacking(monkeypatch):
    """Hide packages, as if they were not installed."""
    hidden = set()
    is_installed, version = doctor._is_installed, machine.version

    def visible_version(name):
        if name in hidden:
            raise PackageNotFoundError(name)
        return version(name)

    monkeypatch.setattr(doctor, "_is_installed", lambda name: name not in hidden and is_installed(name))
    monkeypatch.setattr(machine, "version", visible_version)
    return hidden


def test_every_extra_is_described():
    assert set(doctor.ENABLES) == set(EXTRAS.values())
    table = (ROOT / "README.md").read_text(encoding="utf-8").split("| extra | with it, bertsmith |")[1].split("\n\n")[0]
    assert set(re.findall(r"`([a-z-]+)`", table)) == set(doctor.ENABLES)


def test_it_says_what_would_be_used_and_why(cli, monkeypatch):
    monkeypatch.setenv("BERTSMITH_THREADS", "1")
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    code, out, _ = cli("doctor", "--device", "cpu", "--json")
    assert code == 0
    found = json.loads(out)
    assert found["versions"]["torch"] == version("torch")
    assert found["machine"]["memory"] >= found["machine"]["free_memory"] > 0
    choices = {choice["name"]: choice for choice in found["choices"]}
    assert list(choices) == ["device", "precision", "threads", "runtime", "cache"]
    assert choices["device"]["value"].startswith("cpu: ")
    assert choices["device"]["reason"] == "the setting device"
    assert choices["threads"] == {"name": "threads", "value": "1", "reason": "the setting threads"}
    assert choices["precision"]["value"] in ("fp32", "bf16")
    assert all(choice["reason"] for choice in choices.values())
    code, out, _ = cli("doctor", "--device", "cpu")
    assert code == 0
    assert ("pip install" in out) == any(extra["missing"] for extra in found["extras"])
    assert set(re.findall(r"(?m)^(\w[\w ]*)$", out)) == {
        "machine",
        "versions",
        "devices",
        "bertsmith would use",
        "extras",
    }


def test_it_names_the_missing_packages_and_their_extra(cli, lacking):
    lacking |= {"sqlalchemy", "openpyxl"}
    extras = {extra.name: extra.missing for extra in doctor.diagnose("cpu").extras}
    del extras["trackio"]  # "all" does not include it
    assert {name: missing for name, missing in extras.items() if missing} == {
        "excel": ("openpyxl",),
        "sql": ("sqlalchemy",),
    }
    code, out, _ = cli("doctor", "--device", "cpu")
    assert code == 0
    assert re.search("(?m)^ *sql +not installed ", out)
    assert re.search("(?m)^ *excel +lacks openpyxl ", out)
    assert "pip install 'bertsmith[NAME]'" in out


def test_without_torch_only_exports_run(lacking):
    lacking |= {"torch", "psutil"}
    found = doctor.diagnose()
    assert "torch" not in found.versions
    assert "memory" not in found.machine
    assert list(found.devices) == ["cpu"]
    assert found.choices[0].reason == "torch is not installed"
    assert {e.name: e.missing for e in found.extras}["train"] == ("psutil", "torch")


def test_a_gpu_that_this_build_of_torch_cannot_use_is_a_problem(cli, monkeypatch):
    monkeypatch.setattr(devices, "available_devices", lambda: {"cuda": False, "cpu": True})
    monkeypatch.setattr(shutil, "which", lambda program: program if program == "nvidia-smi" else None)
    (problem,) = doctor.diagnose().problems
    assert torch.__version__ in problem
    assert "problem" in cli("doctor")[1]
    monkeypatch.setattr(shutil, "which", lambda program: None)
    assert doctor.diagnose().problems == ()


def test_a_device_that_is_not_available_is_an_error(cli, monkeypatch):
    monkeypatch.setattr(devices, "available_devices", lambda: {"cuda": False, "xpu": False, "mps": False, "cpu": True})
    code, _, err = cli("doctor", "--device", "xpu")
    assert code == 2
    assert "--device xpu" in err


class Gpu:
    """A device of Intel, as torch describes one."""

    name, total_memory, bf16 = "Arc", 2**34, True

    @classmethod
    def is_available(cls):
        return True

    @classmethod
    def is_bf16_supported(cls):
        return cls.bf16

    @classmethod
    def get_device_properties(cls, device):
        return cls


def test_gpus_of_intel_are_used_where_no_cuda_is(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch, "xpu", Gpu)
    chosen = devices.choose_device()
    assert chosen.type == "xpu"
    assert devices.describe_device(chosen) == "GPU Arc, 16 GiB"
    assert devices.choose_precision(chosen)[0] == "bf16"
    monkeypatch.setattr(Gpu, "bf16", False)
    assert devices.choose_precision(chosen)[0] == "fp32"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert devices.choose_device().type == "cuda"


def test_gpus_of_amd_are_cuda_devices(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: Gpu)
    monkeypatch.setattr(torch.version, "hip", "6.4")
    assert devices.describe_device(torch.device("cuda")) == "GPU Arc, 16 GiB, ROCm 6.4"


@pytest.mark.parametrize(("words", "completed"), [("bertsmith tr", "train"), ("bertsmith train --epo", "--epochs")])
def test_a_shell_completes_commands_and_options(words, completed, cli, monkeypatch):
    monkeypatch.setenv("_BERTSMITH_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", words)
    monkeypatch.setenv("COMP_CWORD", str(words.count(" ")))
    code, out, err = cli()
    assert (code, out.split(), err) == (0, [completed], "")
