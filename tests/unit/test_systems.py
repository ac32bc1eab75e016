"""What Windows, macOS and Apple GPUs refuse, simulated; and a search for calls that one of them lacks."""

import ast
import csv
import errno
import io
import json
import os
import re
import signal
import socket
import sys
import threading
import time
import types
from functools import cache
from pathlib import Path

import psutil
import pytest
import torch
from torch.overrides import TorchFunctionMode
from transformers import TrainerState

import bertsmith
from bertsmith.cli.app import main
from bertsmith.compute import system
from bertsmith.data.read import read_table
from bertsmith.data.table import Labels
from bertsmith.errors import Interrupted, OutputError, RunFolderError, UserError, write_error
from bertsmith.events import StepDone
from bertsmith.folders import atomic, new_run
from bertsmith.folders.atomic import disk_errors, replaced_file, replaced_folder
from bertsmith.folders.claim import claim, lock
from bertsmith.folders.files import ExportFolder
from bertsmith.folders.run import Run
from bertsmith.inference.chunks import PredictionFile
from bertsmith.inference.explain import explain
from bertsmith.model import checkpoint, load
from bertsmith.serving.signals import SignalFlags
from bertsmith.testing import tiny_table
from bertsmith.training import checkpoints
from bertsmith.workflows.trial_workers import has_ended
from tests import malformed
from tests.conftest import train

CP1252 = {"encoding": "cp1252", "newline": "\r\n"}


def test_line_breaks_of_texts_stay_as_they_are_on_windows(tmp_path, monkeypatch):
    write = Path.write_text

    def as_on_windows(path, data, encoding=None, errors=None, newline=None):
        return write(path, data, encoding=encoding, errors=errors, newline=newline or "\r\n")

    monkeypatch.setattr(Path, "write_text", as_on_windows)
    atomic.write_text(tmp_path / "t.csv", '"a\nb"\n"a\r\nb"\n')
    assert (tmp_path / "t.csv").read_bytes() == b'"a\nb"\n"a\r\nb"\n'


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
    output = {name: content.getvalue() for name, content in bytes_of.items()}
    if kind == "a pipe":
        assert "żółw" in json.loads(output["stdout"].decode())["classes"][0].values()
        assert "żó.csv" in output["stderr"].decode()
        assert b"\r" not in output["stdout"]
    else:
        assert "?ó?w" in output["stdout"].decode("cp1252")
        assert "?ó.csv" in output["stderr"].decode("cp1252")


@pytest.mark.skipif(sys.platform in ("win32", "darwin"), reason="file names are Unicode")
def test_a_table_may_have_a_name_that_is_not_utf_8_and_other_files_may_not(tmp_path, monkeypatch):
    table = tmp_path / os.fsdecode(b"caf\xe9.csv")
    tiny_table().to_csv(table, index=False)
    read = read_table(table)
    assert {name.encode().decode() for name in read.frame["source"]} == {read.name}
    atomic.write_json(tmp_path / "paths.json", [str(table)])
    assert json.loads((tmp_path / "paths.json").read_text(encoding="utf-8")) == [str(table)]
    for output in (lambda: Run(table), lambda: ExportFolder(table)):
        with pytest.raises(UserError) as refused:
            output()
        assert refused.value.where == str(table)
    missing = tmp_path / os.fsdecode(b"caf\xe8.csv")
    for path, code in ((table, 0), (missing, 2)):
        streams = {name: io.TextIOWrapper(io.BytesIO(), **CP1252) for name in ("stdout", "stderr")}
        for name, stream in streams.items():
            monkeypatch.setattr(sys, name, stream)
        with pytest.raises(SystemExit) as ended:
            main(["inspect", str(path), "--json"])
        assert ended.value.code == code
    streams["stderr"].flush()
    assert rb"caf\udce8.csv" in streams["stderr"].buffer.getvalue()


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


SRC = Path(bertsmith.__file__).parent


def _names(stub, platform):
    """Return the names that a stub of typeshed defines on a platform, with the newest Python."""

    def of(statements):
        for statement in statements:
            if isinstance(statement, ast.If):
                holds = eval(ast.unparse(statement.test), {"sys": sys_there})
                yield from of(statement.body if holds else statement.orelse)
            elif isinstance(statement, ast.FunctionDef | ast.ClassDef):
                yield statement.name
            elif isinstance(statement, ast.AnnAssign | ast.Assign):
                targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
                yield from (target.id for target in targets if isinstance(target, ast.Name))
            elif isinstance(statement, ast.ImportFrom):
                yield from (name.asname or name.name for name in statement.names)

    sys_there = types.SimpleNamespace(platform=platform, version_info=(3, 14))
    return set(of(ast.parse(stub.read_text(encoding="utf-8")).body))


@cache
def _missing(module):
    """Return the names of a module of Python that Linux has and Windows or macOS lacks."""
    mypy = pytest.importorskip("mypy")
    stubs = Path(mypy.__file__).parent / "typeshed" / "stdlib"
    stub = next((p for p in (stubs / f"{module}.pyi", stubs / module / "__init__.pyi") if p.is_file()), None)
    if stub is None:
        return frozenset()
    linux, windows, mac = (_names(stub, platform) for platform in ("linux", "win32", "darwin"))
    return frozenset(linux - (windows & mac))


def _unportable(tree):
    """Yield what a module uses that Windows or macOS lacks, and text files whose encoding depends on the system."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            yield from [ast.unparse(node)] if node.attr in _missing(node.value.id) else []
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield from (f"{node.module}.{n.name}" for n in node.names if n.name in _missing(node.module))
        elif isinstance(node, ast.Import):
            yield from (n.name for n in node.names if n.name in ("resource", "fcntl", "pwd", "grp", "termios"))
        elif isinstance(node, ast.Constant) and str(node.value).startswith(("/proc", "/sys/", "/dev/", "/tmp")):
            yield str(node.value)
        elif isinstance(node, ast.Call):
            name = node.func.attr if isinstance(node.func, ast.Attribute) else ""
            encodes = any(keyword.arg == "encoding" for keyword in node.keywords)
            opens = name in ("read_text", "write_text") and not encodes
            if (opens and not ast.unparse(node.func).startswith("atomic.")) or name in ("CDLL", "getppid"):
                yield ast.unparse(node)


def test_only_one_module_calls_what_windows_or_macos_lacks():
    assert {"sched_getaffinity", "register_at_fork", "fork", "geteuid"} <= _missing("os")
    assert {"SIGHUP", "pthread_sigmask"} <= _missing("signal")
    assert "getrlimit" in _missing("resource")
    assert not {"open", "replace", "fsync", "umask", "kill"} & _missing("os")
    sources = {path.relative_to(SRC).as_posix(): path.read_text(encoding="utf-8") for path in SRC.rglob("*.py")}
    found = {name: sorted(_unportable(ast.parse(source))) for name, source in sources.items()}
    assert "os.sched_getaffinity" in found.pop("compute/system.py")
    assert {name: calls for name, calls in found.items() if calls} == {}


def test_windows_and_macos_can_import_the_tests(monkeypatch):
    monkeypatch.delattr(os, "mkfifo", raising=False)
    malformed._places(malformed._Corpus())
    found = {}
    for path in [*Path(__file__).parent.glob("*.py"), Path(malformed.__file__)]:
        source = path.read_text(encoding="utf-8")
        if not re.search("^import (os|signal|socket|resource|fcntl|pwd|grp|termios)$", source, re.MULTILINE):
            continue  # parsing takes time
        tree = ast.parse(source)
        for node in [*tree.body, *(node for part in tree.body if isinstance(part, ast.ClassDef) for node in part.body)]:
            if isinstance(node, ast.FunctionDef):
                node.body = []  # which an import does not run
        found[path.name] = [name for name in _unportable(tree) if re.fullmatch(r"\w+(\.\w+)?", name)]
    assert {name: calls for name, calls in found.items() if calls} == {}


@pytest.fixture
def open_files(monkeypatch):
    """Refuse to rename or remove what is open, or has an open file in it, as Windows does."""
    opened = set()
    real = {name: getattr(Path, name) for name in ("replace", "unlink")}

    def refuse(name):
        def call(self, *args, **kwargs):
            if any(Path(file).is_relative_to(self) for file in opened):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(self))
            return real[name](self, *args, **kwargs)

        return call

    for name in real:
        monkeypatch.setattr(Path, name, refuse(name))
    return opened


def test_an_open_file_is_refused_before_the_work(tmp_path, open_files, monkeypatch):
    file = tmp_path / "labelled.csv"
    file.write_text("old")
    open_files.add(file)
    monkeypatch.setattr("bertsmith.folders.files.LOCKS_OPEN_FILES", True)
    with pytest.raises(OutputError), claim(PredictionFile(file), overwrite=True):
        pytest.fail("the work began")
    open_files.clear()
    with claim(PredictionFile(file), overwrite=True):
        assert file.read_text() == "old"


@pytest.mark.parametrize("given", ["The rows are saved.", None])
def test_the_advice_on_open_files_precedes_other_advice(given, tmp_path, monkeypatch):
    plain = write_error(tmp_path, PermissionError(errno.EACCES, "x"), given).remedy
    with monkeypatch.context() as patch:
        patch.setattr(os, "name", "nt")
        found = write_error(tmp_path, PermissionError(errno.EACCES, "x"), given).remedy
    assert found.endswith(f". {plain}")


def test_a_folder_with_an_open_file_is_left_as_it_was(tmp_path, open_files):
    folder = tmp_path / "export"
    folder.mkdir()
    (folder / "model").write_text("old")
    open_files.add(folder / "model")
    with pytest.raises(OutputError), disk_errors(folder), replaced_folder(folder) as new:
        (new / "model").write_text("new")
    assert (folder / "model").read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["export"]
    open_files.clear()
    with replaced_folder(folder) as new:
        (new / "model").write_text("new")
    assert (folder / "model").read_text() == "new"


def test_a_rename_is_repeated_while_another_program_reads_the_file(tmp_path, open_files, monkeypatch):
    monkeypatch.setattr(atomic, "RENAME_SECONDS", 60)
    waits, real = [], time.sleep

    def sleep(seconds):  # a virus scanner reads the file for two of these
        if threading.current_thread() is threading.main_thread():
            waits.append(seconds)
        else:  # of a server in another test
            real(seconds)
        if len(waits) == 2:
            open_files.clear()

    monkeypatch.setattr(atomic.time, "sleep", sleep)
    with replaced_file(tmp_path / "a.txt") as file:
        file.write_text("a")
        open_files.add(file)
    assert (tmp_path / "a.txt").read_text() == "a"
    assert len(waits) == 2


def test_a_run_is_replaced_where_folders_cannot_replace_folders(tmp_path, monkeypatch):
    real = Path.replace

    def replace(self, new):
        if self.is_dir() and Path(new).is_dir():  # os.replace of Windows
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(new))
        return real(self, new)

    monkeypatch.setattr(Path, "replace", replace)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.json").write_text("{}")
    assert not list(new_run.create(tmp_path / "run").path.iterdir())
    assert [p.name for p in tmp_path.iterdir()] == ["run"]


def _mapped(folder):
    return [m.path for m in psutil.Process().memory_maps() if Path(m.path).is_relative_to(folder)]


@pytest.mark.skipif(sys.platform != "linux", reason="reads which files are mapped")
def test_loaded_models_and_checkpoints_keep_no_file_open_on_windows(tiny, tmp_path, monkeypatch):
    model = load.load_model(checkpoint.resolve(str(tiny)), Labels((0, 1), ("a", "b")))
    assert _mapped(tiny)  # so that this test can fail
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    tokenizer = load.load_tokenizer(checkpoint.resolve(str(tiny)))
    for module in (load, checkpoints):
        monkeypatch.setattr(module, "LOCKS_OPEN_FILES", True)
    folder = tmp_path / "checkpoint"
    checkpoints.save(folder, model, tokenizer, {"moments": torch.ones(5000)}, TrainerState())
    del model
    model, state = load.load_model(checkpoint.resolve(str(folder)), None), checkpoints.load_state(folder)
    assert _mapped(tmp_path) == []
    assert {name: t.equal(model.state_dict()[name]) for name, t in weights.items()} == dict.fromkeys(weights, True)
    assert state["moments"].tolist() == [1.0] * 5000


def test_windows_has_no_sighup_no_signal_masks_and_no_ulimits(monkeypatch):
    monkeypatch.setattr(system, "RELOAD_SIGNAL", None)
    monkeypatch.setattr("bertsmith.serving.signals.RELOAD_SIGNAL", None)
    monkeypatch.delattr(signal, "pthread_sigmask", raising=False)
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.delattr(psutil.Process, "rlimit", raising=False)
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    assert SignalFlags().install() == before
    for number, handler in before.items():
        signal.signal(number, handler)
    with system.block_terminal_signals():
        pass
    assert system.affinity_cores() == os.cpu_count()
    assert system._ulimits() == []


def test_memory_and_cores_are_known_without_proc_and_sys(tmp_path):
    assert 0 < system.free_memory(tmp_path) <= psutil.virtual_memory().total
    assert system.control_group_cores(tmp_path) == system.NO_LIMIT


def test_memory_is_left_to_other_allocators_than_glibc(monkeypatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr("ctypes.CDLL", None)
    with system.keep_freed_memory():
        assert system.trim_memory(1) == 1


def test_a_server_owns_its_port_on_windows(monkeypatch):
    monkeypatch.setattr(socket, "SO_EXCLUSIVEADDRUSE", -5, raising=False)  # the value there
    options = []
    system.own_port(types.SimpleNamespace(setsockopt=lambda *option: options.append(option)))
    assert options == [(socket.SOL_SOCKET, -5, 1)]


def test_a_closed_pipe_is_an_invalid_argument_on_windows(monkeypatch):
    error = OSError(errno.EINVAL, os.strerror(errno.EINVAL))
    assert not system.is_closed_pipe(error, sys.stdout)
    monkeypatch.setattr(system.os, "name", "nt")
    assert system.is_closed_pipe(BrokenPipeError(), sys.stdout)
    assert system.is_closed_pipe(error, sys.stdout)
    assert not system.is_closed_pipe(OSError(errno.EINVAL, "", "a file"), sys.stdout)


def test_workers_notice_that_their_parent_has_ended():
    running = types.SimpleNamespace(is_alive=lambda: True)
    assert not has_ended(None)
    assert not has_ended(running)
    running.is_alive = lambda: False
    assert has_ended(running)
