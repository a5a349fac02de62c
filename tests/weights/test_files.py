"""Outputs appear only when complete, and pipes, devices and permissions are treated as a shell user expects."""

from __future__ import annotations

import os
import pty
import signal
import stat
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from fabric.errors import MissingInputError, OutputError, UsageError
from fabric.files import check_streams, is_stream, open_folder, open_output, open_text, read_input

linux_only = pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full here")


def run(code: str, **options: object) -> subprocess.CompletedProcess[bytes]:
    """Run Python code in a process of its own, with the names of fabric.files."""
    return subprocess.run([sys.executable, "-c", "from fabric.files import *\n" + code], check=False, **options)  # type: ignore[call-overload,no-any-return]


def test_a_file_appears_only_when_it_is_complete(tmp_path: Path) -> None:
    target = tmp_path / "x"
    with open_output(target) as out:
        out.write(b"one")
        out.flush()
        assert not target.exists()
    assert target.read_bytes() == b"one"
    assert list(tmp_path.iterdir()) == [target]


def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    target = tmp_path / "x"
    target.write_bytes(b"old")
    with pytest.raises(KeyError), open_output(target) as out:
        out.write(b"new" * 1_000_000)
        raise KeyError
    assert target.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [target]


def test_a_killed_writer_leaves_nothing_under_the_final_name(tmp_path: Path) -> None:
    target = tmp_path / "x"
    code = f"from fabric.files import *\nwith open_output({str(target)!r}) as f:\n while True: f.write(bytes(1 << 16))"
    writer = subprocess.Popen([sys.executable, "-c", code])
    deadline = time.monotonic() + 30
    while not any(path.stat().st_size for path in tmp_path.iterdir()) and time.monotonic() < deadline:
        time.sleep(0.01)
    writer.send_signal(signal.SIGKILL)
    writer.wait()
    assert not target.exists()
    assert all(path.name.startswith(".x.") and path.name.endswith(".partial") for path in tmp_path.iterdir())
    with open_output(target) as out:
        out.write(b"again")
    assert target.read_bytes() == b"again"
    assert list(tmp_path.iterdir()) == [target]


def test_only_what_a_dead_process_left_is_removed(tmp_path: Path) -> None:
    dead, alive, folder = tmp_path / ".other.00c0ffee.partial", tmp_path / "alive", tmp_path / ".peft.0badf00d.partial"
    dead.write_bytes(b"left")
    folder.mkdir()
    (folder / "weights").write_bytes(b"left")
    kept = [tmp_path / name for name in (".x.partial", ".x.0000000g.partial", "x.00c0ffee.partial")]
    for path in kept:
        path.write_bytes(b"a user's")
    (tmp_path / ".link.00c0ffee.partial").symlink_to(kept[0])
    with open_output(alive) as first, open_folder(tmp_path / "folder") as partial:
        (partial / "weights").write_bytes(b"new")
        first.write(b"half ")
        first.flush()
        with open_output(tmp_path / "x") as second:
            second.write(b"done")
        assert not dead.exists() and not folder.exists()
        first.write(b"and half")
    assert alive.read_bytes() == b"half and half"
    assert (tmp_path / "folder" / "weights").read_bytes() == b"new"
    assert all(path.read_bytes() == b"a user's" for path in kept)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
        [*(path.name for path in kept), ".link.00c0ffee.partial", "alive", "folder", "x"]
    )


def test_a_secret_is_readable_to_nobody_else_while_it_is_written(tmp_path: Path) -> None:
    target = tmp_path / "private"
    target.write_bytes(b"")
    target.chmod(0o600)
    with open_output(target) as out:
        out.write(b"secret")
        out.flush()
        assert {stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()} == {0o600}


@pytest.mark.skipif(os.name == "nt" or os.geteuid() != 0, reason="only root may give files away")
def test_no_other_group_than_before_may_read_a_replaced_file() -> None:
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "shared"
        target.write_bytes(b"")
        os.chown(folder, 12345, 777)
        code = f"import os; os.umask(0o077)\nwith open_output({str(target)!r}) as f: f.write(b'x')"
        for become, group, mode in (
            ("", 54321, 0o664),
            ("import os; os.setgid(777); os.setgroups([]); os.setuid(12345)\n", 777, 0o604),
        ):
            os.chown(target, 12345, 54321)
            target.chmod(0o664)
            assert run(become + code).returncode == 0
            assert (target.stat().st_gid, stat.S_IMODE(target.stat().st_mode)) == (group, mode)


def test_permissions_are_those_of_the_umask_or_of_the_file_replaced(tmp_path: Path) -> None:
    fresh, private = tmp_path / "fresh", tmp_path / "private"
    private.write_bytes(b"")
    private.chmod(0o600)
    code = (
        f"import os; os.umask(0o027)\nfor p in {[str(fresh), str(private)]}:\n with open_output(p) as f: f.write(b'x')"
    )
    assert run(code).returncode == 0
    assert stat.S_IMODE(fresh.stat().st_mode) == 0o640
    assert stat.S_IMODE(private.stat().st_mode) == 0o600


def test_a_symbolic_link_stays_one(tmp_path: Path) -> None:
    real, link = tmp_path / "real", tmp_path / "link"
    real.write_bytes(b"old")
    link.symlink_to(real)
    with open_output(link) as out:
        out.write(b"new")
    assert link.is_symlink()
    assert real.read_bytes() == b"new"


@pytest.mark.parametrize("where", ["", "missing/x", "\0"])
def test_an_unwritable_target_is_told_before_any_work(tmp_path: Path, where: str) -> None:
    with pytest.raises(OutputError, match="cannot be written"), open_output(f"{tmp_path}/{where}"):
        raise AssertionError("the work began")


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="root may write everywhere")
def test_a_protected_file_or_directory_is_told_before_any_work(tmp_path: Path) -> None:
    protected = tmp_path / "file"
    protected.write_bytes(b"old")
    protected.chmod(0o444)
    with pytest.raises(OutputError, match="permission denied"), open_output(protected):
        raise AssertionError("the work began")
    tmp_path.chmod(0o555)
    with pytest.raises(OutputError, match="permission denied"), open_output(tmp_path / "new"):
        raise AssertionError("the work began")
    tmp_path.chmod(0o755)


@linux_only
def test_a_full_disk_is_an_output_error() -> None:
    with pytest.raises(OutputError, match=r"writing /dev/full failed: no space left"), open_output("/dev/full") as out:
        out.write(b"x" * 200_000)
    with pytest.raises(OutputError, match="no space left"), open_output("/dev/full") as out:
        out.write(b"x")
    with pytest.raises(OutputError, match="no space left"), open_text("/dev/full") as lines:
        lines.write("x\n")


def test_a_file_larger_than_allowed_is_an_output_error_and_leaves_nothing(tmp_path: Path) -> None:
    code = f"""
import resource, signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
from fabric.errors import OutputError
try:
    with open_output({str(tmp_path / "x")!r}) as f:
        for _ in range(64): f.write(bytes(1 << 16))
except OutputError as e: print(e)
"""
    assert b"failed: file too large" in run(code, capture_output=True).stdout
    assert list(tmp_path.iterdir()) == []


def test_a_full_temporary_directory_is_told(tmp_path: Path) -> None:
    code = """
import resource, signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
from fabric.errors import OutputError
try:
    with seekable_input("-"): pass
except OutputError as e: print(e)
"""
    told = run(code, input=bytes(1 << 22), capture_output=True, env={**os.environ, "TMPDIR": str(tmp_path)}).stdout
    assert f"copying stdin to {tmp_path} failed".encode() in told
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("target", ["-", "/dev/stdout", "/dev/fd/1"])
def test_stdout_is_written_straight(tmp_path: Path, target: str) -> None:
    code = f"with open_output({target!r}) as f: f.write(b'bytes')\nwith open_text({target!r}) as f: f.write('ü\\n')"
    assert run(code, stdout=subprocess.PIPE).stdout == b"bytes\xc3\xbc\n"
    log = tmp_path / "log"
    log.write_bytes(b"before,")
    with log.open("ab") as append:
        run(code, stdout=append)
    assert log.read_bytes() == b"before,bytes\xc3\xbc\n"


def test_a_closed_pipe_is_left_to_the_command() -> None:
    code = """
import os
r, w = os.pipe(); os.close(r); os.dup2(w, 1)
try:
    with open_output("-") as f: f.write(bytes(1 << 20))
except BrokenPipeError: os._exit(7)
"""
    assert run(code, stderr=subprocess.PIPE).returncode == 7


def test_a_named_pipe_is_written_straight(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    reader = subprocess.Popen(["cat", str(fifo)], stdout=subprocess.PIPE)
    with open_output(fifo) as out:
        out.write(b"through")
    assert reader.communicate()[0] == b"through"
    assert list(tmp_path.iterdir()) == [fifo]


def test_binary_is_kept_off_a_terminal() -> None:
    master, terminal = pty.openpty()
    code = """
from fabric.errors import UsageError
import sys
try:
    with open_output("-") as f: f.write(b"\\0")
except UsageError as e: sys.stderr.write(str(e))
with open_text("-") as f: f.write("text")
"""
    told = run(code, stdout=terminal, stderr=subprocess.PIPE).stderr
    os.close(terminal)
    assert b"stdout is a terminal" in told
    assert os.read(master, 100) == b"text"
    os.close(master)


def test_a_model_is_not_awaited_from_a_terminal() -> None:
    master, terminal = pty.openpty()
    code = (
        "from fabric.errors import UsageError\ntry:\n with seekable_input('-'): pass\nexcept UsageError as e: print(e)"
    )
    assert b"stdin is a terminal" in run(code, stdin=terminal, stdout=subprocess.PIPE).stdout
    os.close(terminal)
    os.close(master)


def test_input_from_a_pipe_can_be_read_at_random(tmp_path: Path) -> None:
    code = "with seekable_input('-') as f:\n f.seek(3); print(f.read(2).decode(), f.seek(0, 2))"
    assert run(code, input=b"0123456789", stdout=subprocess.PIPE).stdout == b"34 10\n"
    path = tmp_path / "x"
    path.write_bytes(b"0123456789")
    for skip, want in ((0, b"34 10\n"), (2, b"56 8\n")):  # a file as stdin, from the start or from where it stands
        with path.open("rb") as stdin:
            os.lseek(stdin.fileno(), skip, os.SEEK_SET)
            assert run(code, stdin=stdin, stdout=subprocess.PIPE).stdout == want


def test_missing_inputs_are_told(tmp_path: Path) -> None:
    for path in (tmp_path / "no", tmp_path, "bad\0name"):
        with pytest.raises(MissingInputError, match="cannot be read"), read_input(path):
            pass


def test_streams_are_not_shared() -> None:
    check_streams(["-", "a", None], ["-", None])
    with pytest.raises(UsageError, match="two inputs"):
        check_streams(["-", "-"], [])
    with pytest.raises(UsageError, match="two outputs"):
        check_streams(["-"], ["-", "b", "-"])


def test_an_input_that_can_be_read_only_once_is_known_under_every_name(tmp_path: Path) -> None:
    file, pipe = tmp_path / "file", tmp_path / "pipe"
    file.write_bytes(b"x")
    os.mkfifo(pipe)
    (tmp_path / "link").symlink_to(pipe)
    for name in ("-", "/dev/stdin", "/dev/fd/0", "/proc/self/fd/9", pipe, tmp_path / "link", "/dev/null"):
        assert is_stream(name), name
    for name in (file, tmp_path, tmp_path / "missing", "\0"):
        assert not is_stream(name), name
    check_streams([str(file), str(file), "/dev/null", "/dev/null", str(pipe)], [])
    with pytest.raises(UsageError, match="can be read only once"):
        check_streams([str(pipe), str(tmp_path / "link")], [])
    with pytest.raises(UsageError, match="two inputs"):
        check_streams(["/dev/fd/0", "/dev/stdin"], [])
