"""Files and folders are there whole or not at all."""

import errno
import fcntl
import os
import resource
from contextlib import contextmanager
from pathlib import Path

import pytest

from sorl_fast import atomic
from sorl_fast.atomic import check_folder_renames, new_folder, write_bytes, write_file
from sorl_fast.errors import BadInput


@contextmanager
def full_disk(limit=1000):
    """Refuse to let any file grow beyond `limit` bytes, as a full disk would."""
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, old[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)


def test_a_file_is_replaced_whole(tmp_path):
    write_bytes(tmp_path / "deep" / "a", b"one")
    write_bytes(tmp_path / "deep" / "a", b"two")
    assert (tmp_path / "deep" / "a").read_bytes() == b"two"
    assert len(list((tmp_path / "deep").iterdir())) == 1


def test_a_full_disk_leaves_the_old_file_and_no_part(tmp_path):
    write_bytes(tmp_path / "a", b"old")
    with full_disk(), pytest.raises(BadInput, match=r"cannot write .*a: .*\. Free some space"):
        write_bytes(tmp_path / "a", b"x" * 5000)
    assert (tmp_path / "a").read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_an_error_of_the_writer_leaves_the_old_file_and_no_part(tmp_path):
    write_bytes(tmp_path / "a", b"old")

    def write(file):
        file.write(b"half")
        raise RuntimeError("mine")

    with pytest.raises(RuntimeError, match="mine"):
        write_file(tmp_path / "a", write)
    assert (tmp_path / "a").read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


@pytest.mark.parametrize("name", ["file/a", "/proc/sorl/a"], ids=["file-in-the-way", "read-only"])
def test_a_place_that_cannot_be_written_is_named(name, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(BadInput, match="cannot write"):
        write_bytes(tmp_path / name, b"x")


def test_a_folder_appears_whole(tmp_path):
    with new_folder(tmp_path / "new") as part:
        (part / "a").write_text("x")
        assert not (tmp_path / "new").exists()
    assert (tmp_path / "new" / "a").read_text() == "x"


def test_a_folder_half_made_is_swept_away(tmp_path):
    with full_disk(), pytest.raises(BadInput), new_folder(tmp_path / "new") as part:
        (part / "a").write_bytes(b"x" * 5000)
    assert list(tmp_path.iterdir()) == []


def test_arguments_in_the_wrong_order_are_named(tmp_path):
    with pytest.raises(BadInput, match=r"path is a bytes.*write_bytes\(path, data\)"):
        write_bytes(b"data", tmp_path / "a")
    with pytest.raises(BadInput, match=r"data is a str.*write_bytes\(path, data\)"):
        write_bytes(tmp_path / "a", "text")
    with pytest.raises(BadInput, match=r"path is a function.*write_file\(path, write\)"):
        write_file(lambda file: None, tmp_path / "a")
    with pytest.raises(BadInput, match=r"path is a int.*new_folder\(path\)"), new_folder(7):
        pass
    assert not [*tmp_path.iterdir()]


# --- file systems that cannot do all


def write_both(folder):
    write_bytes(folder / "a", b"new")
    with new_folder(folder / "new") as part:
        (part / "a").write_text("x")


@pytest.mark.parametrize("code", [errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP])
def test_what_cannot_be_flushed_is_written_all_the_same(code, tmp_path, monkeypatch):
    def fsync(fd):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "fsync", fsync)
    write_both(tmp_path)
    assert (tmp_path / "a").read_bytes() == b"new"
    assert (tmp_path / "new" / "a").read_text() == "x"


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_a_rename_that_may_not_last_is_not_called_undone(kind, tmp_path, monkeypatch):
    real = os.fsync

    def fsync(fd):
        if os.path.samestat(os.fstat(fd), tmp_path.stat()):
            raise OSError(errno.EIO, "Input/output error")
        real(fd)

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(BadInput, match=r"is written, but .*Input/output error") as err:
        if kind == "file":
            write_bytes(tmp_path / "a", b"new")
        else:
            with new_folder(tmp_path / "a") as part:
                (part / "b").write_text("x")
    assert "nothing was changed" not in str(err.value)
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_a_folder_that_may_not_be_read_may_be_written_to(tmp_path, monkeypatch):
    real = os.open

    def no_reading(path, flags, *args, **kwargs):
        if Path(path) == tmp_path:
            raise PermissionError(errno.EACCES, "Permission denied")
        return real(path, flags, *args, **kwargs)

    monkeypatch.setattr(os, "open", no_reading)
    write_both(tmp_path)


def test_folders_that_cannot_be_renamed_are_found_out(tmp_path, monkeypatch):
    check_folder_renames(tmp_path)
    real = os.rename

    def no_folders(source, target):
        if Path(source).is_dir():
            raise OSError(errno.EXDEV, "Invalid cross-device link")
        real(source, target)

    monkeypatch.setattr(os, "rename", no_folders)
    with pytest.raises(BadInput, match=r"rename it: Invalid cross-device link\. Checkpoints need"):
        check_folder_renames(tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("code", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_warned_about(code, tmp_path, monkeypatch):
    def flock(file, how):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", flock)
    with (tmp_path / "lock").open("w") as file, pytest.warns(RuntimeWarning, match="be locked"):
        assert atomic.lock(file)


@pytest.mark.parametrize("code", [errno.EAGAIN, errno.EACCES])
def test_a_lock_that_another_holds_is_not_had(code, tmp_path, monkeypatch):
    with (tmp_path / "lock").open("w") as mine, (tmp_path / "lock").open("w") as other:
        assert atomic.lock(mine)
        assert not atomic.lock(other)

    def flock(file, how):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", flock)
    with (tmp_path / "lock").open("w") as file:
        assert not atomic.lock(file)
