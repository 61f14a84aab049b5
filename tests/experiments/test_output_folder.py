import errno
import multiprocessing
import os
import signal

import numpy as np
import pytest
import torch

from unlearnx import _files
from unlearnx._files import check_room, write_atomically
from unlearnx.experiments.output_folder import LOCK, claimed


def full(*_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("depth", ["", "a", "a/b/c"])
def test_a_folder_without_results_is_left_as_it_was(depth, tmp_path):
    folder = tmp_path / depth
    with claimed(folder):
        assert folder.is_dir()
        assert (folder / LOCK).exists()
    assert list(tmp_path.iterdir()) == []
    assert tmp_path.exists()


def test_results_stay(tmp_path):
    with claimed(tmp_path / "a" / "b"):
        (tmp_path / "a" / "b" / "result.json").touch()
    assert [f.name for f in (tmp_path / "a" / "b").iterdir()] == ["result.json"]
    with pytest.raises(ValueError, match=r"a/b holds result\.json already"), claimed(tmp_path / "a/b", ["result.json"]):
        pass
    with claimed(tmp_path / "a" / "b", ["audit.json"]):
        pass


@pytest.mark.parametrize("name", ["file", "file/x", "file/x/y"])
def test_a_file_is_no_folder(name, tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ValueError, match=r"out: .*file is a file, expected a folder"), claimed(tmp_path / name):
        pass
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize(
    ("name", "message"),
    [("/proc/nothing/x", "cannot be made: No such file"), ("a" * 300, "File name too long"), ("link", "File exists")],
)
def test_folders_that_cannot_be_made(name, message, tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    with pytest.raises(OSError, match=message) as caught, claimed(tmp_path / name):
        pass
    assert str(tmp_path / name) in str(caught.value)
    assert [f.name for f in tmp_path.iterdir()] == ["link"]


def test_a_folder_that_may_not_be_written_to(tmp_path, monkeypatch):
    def refuse(path, *rest, **more):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(PermissionError, match="a cannot be written to: Permission denied"), claimed(tmp_path / "a"):
        pass
    monkeypatch.setattr(os, "mkdir", refuse)
    with pytest.raises(PermissionError, match="a cannot be made: Permission denied"), claimed(tmp_path / "a"):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_found_before_the_work(tmp_path, monkeypatch):
    room = os.statvfs(tmp_path)
    too_much = room.f_bavail * room.f_frsize + 2**40
    with pytest.raises(OSError, match=r"[\d,.]+ MiB cannot be written there"):
        check_room(tmp_path, too_much)
    monkeypatch.setattr(os, "posix_fallocate", full)
    with (
        pytest.raises(OSError, match=r"a: 1\.0 MiB cannot be written there: No space left on device"),
        claimed(tmp_path / "a"),
    ):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_file_system_that_cannot_reserve(tmp_path, monkeypatch):
    def unknown(*_):
        raise OSError(errno.EOPNOTSUPP, "not supported")

    monkeypatch.setattr(os, "posix_fallocate", unknown)
    check_room(tmp_path, 2**20)


def test_one_run_at_a_time(tmp_path):
    other = multiprocessing.get_context("spawn")
    reader, writer = other.Pipe()
    process = other.Process(target=hold, args=(tmp_path / "a", writer))
    process.start()
    assert reader.poll(60)
    with pytest.raises(ValueError, match=r"out: another run is writing to .*a, expected"), claimed(tmp_path / "a"):
        pass
    os.kill(process.pid, signal.SIGKILL)  # it leaves its lock behind, and half of its results
    process.join(60)
    assert sorted(f.name for f in (tmp_path / "a").iterdir()) == [LOCK, "audit.json"]
    with claimed(tmp_path / "a", ["audit.json"]):
        pass
    assert [f.name for f in (tmp_path / "a").iterdir()] == ["audit.json"]


def hold(folder, writer):
    with claimed(folder, ["audit.json"]):
        (folder / "audit.json").touch()
        writer.send("held")
        signal.pause()


def test_a_file_system_without_locks(tmp_path, monkeypatch):
    def unknown(*_):
        raise OSError(errno.ENOLCK, "no locks")

    monkeypatch.setattr("fcntl.flock", unknown)
    with claimed(tmp_path / "a"):
        pass


@pytest.mark.parametrize(
    "write",
    [
        lambda file: file.write(bytes(10**6)),
        lambda file: file.write(b"few"),
        lambda file: torch.save({"a": torch.zeros(10**6)}, file),
        lambda file: np.savez(file, a=np.zeros(10**6)),
    ],
)
def test_a_disk_that_fills_up(write, tmp_path, monkeypatch):
    class Full(_files._Raw):
        def write(self, data):
            self.failure = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            raise self.failure

    (tmp_path / "a").write_text("earlier")
    monkeypatch.setattr(_files, "_Raw", Full)
    with pytest.raises(OSError, match="a: cannot be written: No space left on device"):
        write_atomically(tmp_path / "a", write)
    assert [f.name for f in tmp_path.iterdir()] == ["a"]
    assert (tmp_path / "a").read_text() == "earlier"


def test_errors_of_what_writes_are_its_own(tmp_path):
    def write(file):
        raise KeyError("x")

    with pytest.raises(KeyError, match="x"):
        write_atomically(tmp_path / "a", write)
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="file/a: cannot be written: "):
        write_atomically(tmp_path / "file" / "a", write)
