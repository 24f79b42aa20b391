"""Files and folders are there whole or not at all."""

import resource
from contextlib import contextmanager

import pytest

from sorl_fast.atomic import new_folder, write_bytes, write_file
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
