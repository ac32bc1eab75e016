"""What Windows and Apple GPUs refuse, simulated: C longs of 32 bits, folders that cannot be opened, no float64."""

import csv
import errno
import io
import json
import os
import sys
from pathlib import Path

import pytest
import torch
from torch.overrides import TorchFunctionMode

from bertsmith.cli.app import main
from bertsmith.data.read import read_table
from bertsmith.errors import Interrupted, RunFolderError
from bertsmith.events import StepDone
from bertsmith.folders.atomic import replaced_file, replaced_folder
from bertsmith.folders.claim import lock
from bertsmith.folders.run import Run
from bertsmith.inference.explain import explain
from bertsmith.testing import tiny_table
from tests.conftest import train

CP1252 = {"encoding": "cp1252", "newline": "\r\n"}


def test_delimited_tables_are_read_if_c_long_has_32_bits(tmp_path, monkeypatch):
    set_limit = csv.field_size_limit

    def limit(*new):
        if new and new[0] >= 2**31:
            raise OverflowError("Python int too large to convert to C long")
        return set_limit(*new)

    monkeypatch.setattr(csv, "field_size_limit", limit)
    before = set_limit()
    long = "words" * 40_000  # beyond the limit that csv has at first
    (tmp_path / "t.csv").write_text(f"Label,Text\na,{long}\nb,short\n")
    assert read_table(tmp_path / "t.csv").frame["text"].tolist() == [long, "short"]
    assert set_limit() == before


def test_files_are_written_if_windows_refuses_to_sync(tmp_path, monkeypatch):
    fcntl = pytest.importorskip("fcntl", reason="Windows has none")
    real_open, real_fsync, real_unlink = os.open, os.fsync, Path.unlink
    synced = []

    def opened(path, flags, *more, **named):
        if Path(path).is_dir():
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return real_open(path, flags, *more, **named)

    def fsync(descriptor):
        if fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        real_fsync(descriptor)
        synced.append(os.fstat(descriptor).st_ino)

    def unlink(path, **named):
        if path.suffix == ".lock":  # which the process that holds it has open
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        real_unlink(path, **named)

    monkeypatch.setattr(os, "open", opened)
    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(Path, "unlink", unlink)
    with lock(tmp_path / "run", "writing"), replaced_folder(tmp_path / "run") as folder:
        (folder / "inner").mkdir()
        (folder / "inner" / "a.bin").write_bytes(b"a")
    with replaced_file(tmp_path / "b.txt") as file:
        file.write_text("b")
    written = [tmp_path / "run" / "inner" / "a.bin", tmp_path / "b.txt"]
    assert [path.read_bytes() for path in written] == [b"a", b"b"]
    assert {path.stat().st_ino for path in written} <= set(synced)


@pytest.mark.parametrize("kind", ["a pipe", "a terminal"])
def test_output_is_utf_8_wherever_it_goes(kind, tmp_path, monkeypatch):
    bytes_of = {}
    for name in ("stdout", "stderr"):
        bytes_of[name] = io.BytesIO()
        stream = io.TextIOWrapper(bytes_of[name], **CP1252)
        monkeypatch.setattr(stream, "isatty", lambda: kind == "a terminal", raising=False)
        monkeypatch.setattr(sys, name, stream)
    table = tiny_table().replace("animals", "żółw")
    table.to_csv(tmp_path / "żółw.csv", index=False)
    with pytest.raises(SystemExit) as ended:
        main(["inspect", str(tmp_path / "żółw.csv"), "--json"])
    assert ended.value.code == 0
    with pytest.raises(SystemExit) as ended:
        main(["inspect", str(tmp_path / "żó.csv")])
    assert ended.value.code == 2
    sys.stdout.flush()
    sys.stderr.flush()
    told = {name: content.getvalue() for name, content in bytes_of.items()}
    if kind == "a pipe":
        assert "żółw" in json.loads(told["stdout"].decode())["classes"][0].values()
        assert "żó.csv" in told["stderr"].decode()
        assert b"\r" not in told["stdout"]
    else:
        assert "?ó?w" in told["stdout"].decode("cp1252")
        assert "?ó.csv" in told["stderr"].decode("cp1252")


class NoFloat64(TorchFunctionMode):
    """Refuses float64 in everything that was not moved by `Tensor.cpu`, as the backend of Apple's GPUs does."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        given = [value for value in (*args, *(kwargs or {}).values()) if isinstance(value, torch.Tensor)]
        on_the_gpu = [tensor for tensor in given if not getattr(tensor, "moved", False)]
        if isinstance(result, torch.Tensor) and given:
            if on_the_gpu and function is not torch.Tensor.cpu and result.dtype == torch.float64:
                raise TypeError("Cannot convert a MPS Tensor to float64 dtype as the MPS framework doesn't support it")
            if function is torch.Tensor.cpu:
                result = result.clone()  # on this CPU it would be the tensor itself
            result.moved = function is torch.Tensor.cpu or not on_the_gpu
        return result


def test_training_predicting_and_explaining_need_no_float64_on_the_device(tiny, tmp_path):
    import bertsmith as bs

    with NoFloat64():
        run = train(tiny, tmp_path / "run", epochs=1, explanations="auto")
        classifier = bs.load(run, device="cpu", runtime="torch")
        assert classifier.predict_proba(["my cat"]).shape == (1, 3)
        assert explain(classifier, "my cat").words
        with pytest.raises(TypeError):  # that this test can fail
            torch.ones(1).double()


def test_a_run_is_resumed_on_another_device(tiny, tmp_path):
    seen = []
    with pytest.raises(Interrupted):
        train(tiny, tmp_path / "run", on_event=seen.append, stop=lambda: any(isinstance(e, StepDone) for e in seen))
    run = Run(tmp_path / "run")
    run.update(config={**run.info["config"], "device": "mps"})
    with pytest.raises(RunFolderError, match="epochs"):
        train(tiny, tmp_path / "run", resume=True, epochs=4)
    assert train(tiny, tmp_path / "run", resume=True, device="cpu").info["status"] == "finished"
