"""Files appear whole or not at all."""

from __future__ import annotations

import concurrent.futures
import contextlib
import errno
import json
import os
import pathlib
import resource
import stat
import threading

import numpy as np
import pytest

import ocs_tf
from ocs_tf import writing
from ocs_tf._report import LayerReport, Report
from ocs_tf.runtime import compatibility


@pytest.fixture
def path(tmp_path) -> pathlib.Path:
    return tmp_path / "file.json"


def names(folder: pathlib.Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def permissions(path: pathlib.Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.fixture
def umask():
    """A function that sets the umask, which is put back in the end."""
    before = os.umask(0o022)
    yield os.umask
    os.umask(before)


@contextlib.contextmanager
def small_files():
    """Files of more than 100 bytes are refused, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


PLAN = ocs_tf.Plan({f"layer_{i}": ocs_tf.LayerPlan(4, 1.0) for i in range(5)})
REPORT = Report("model", (LayerReport("a", "Dense", (2, 2), 4, codes=4, bytes_after=2),))


class TestContent:
    @pytest.mark.parametrize("content", ["text \u00e4\n", b"bytes"])
    def test_is_written(self, path, content):
        writing.write(path, content)
        expected = content.encode("utf-8") if isinstance(content, str) else content
        assert path.read_bytes() == expected
        assert names(path.parent) == ["file.json"]

    def test_replaces_what_was_there(self, path):
        path.write_text("old and longer")
        writing.write(path, "new")
        assert path.read_text() == "new"

    def test_by_a_writer_that_needs_a_path(self, path):
        with writing.replacing(path) as temporary:
            assert temporary.suffix == ".json"
            assert temporary.parent == path.parent
            temporary.write_text("new")
            assert not path.exists()
        assert path.read_text() == "new"

    def test_of_a_relative_path_after_a_change_of_folder(self, path, monkeypatch):
        monkeypatch.chdir(path.parent)
        with writing.replacing("file.json") as temporary:
            monkeypatch.chdir("/")
            temporary.write_text("new")
        assert path.read_text() == "new"

    def test_goes_into_devices_as_they_are(self):
        writing.write(os.devnull, "lost")
        assert stat.S_ISCHR(os.stat(os.devnull).st_mode)

    def test_goes_into_pipes(self, tmp_path):
        os.mkfifo(tmp_path / "pipe")
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            read = pool.submit((tmp_path / "pipe").read_text)
            writing.write(tmp_path / "pipe", "through")
            assert read.result() == "through"


class TestPermissions:
    @pytest.mark.parametrize("mask", [0o022, 0o077, 0o002])
    def test_of_a_new_file(self, path, umask, mask):
        umask(mask)
        writing.write(path, "new")
        assert permissions(path) == 0o666 & ~mask

    @pytest.mark.parametrize("mode", [0o600, 0o444, 0o755])
    def test_of_an_existing_file_stay(self, path, mode):
        path.write_text("old")
        path.chmod(mode)
        writing.write(path, "new")
        assert permissions(path) == mode

    def test_nobody_else_reads_an_unfinished_file(self, path, umask):
        umask(0)
        with writing.replacing(path) as temporary:
            assert permissions(temporary) == 0o600
        assert permissions(path) == 0o666

    def test_umask_is_never_changed(self, path, monkeypatch):
        """It belongs to all threads."""
        monkeypatch.setattr(os, "umask", lambda mask: pytest.fail("changed"))
        writing.write(path, "new")


class TestOverwrite:
    def test_existing_file_is_kept(self, path):
        path.write_text("old")
        with pytest.raises(FileExistsError, match=r"`path` .*file.json exists; pass overwrite=Tr"):
            writing.write(path, "new", overwrite=False)
        assert path.read_text() == "old"
        assert names(path.parent) == ["file.json"]

    @pytest.mark.parametrize("links", [True, False])
    def test_file_that_appears_meanwhile_is_kept(self, path, monkeypatch, links):
        if not links:
            monkeypatch.setattr(os, "link", no_links)
        with (
            pytest.raises(FileExistsError, match="exists"),
            writing.replacing(path, overwrite=False) as temporary,
        ):
            path.write_text("of another program")
        assert not temporary.exists()
        assert path.read_text() == "of another program"

    @pytest.mark.parametrize("links", [True, False])
    def test_new_file(self, path, monkeypatch, links):
        if not links:
            monkeypatch.setattr(os, "link", no_links)
        writing.write(path, "new", overwrite=False)
        assert path.read_text() == "new"
        assert names(path.parent) == ["file.json"]

    @pytest.mark.parametrize("links", [True, False])
    def test_one_of_many_threads_wins(self, path, monkeypatch, links):
        if not links:
            monkeypatch.setattr(os, "link", no_links)
        together = threading.Barrier(8)

        def write(number: int) -> int | None:
            together.wait(10)
            try:
                writing.write(path, str(number), overwrite=False)
            except FileExistsError:
                return None
            return number

        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            winners = [n for n in pool.map(write, range(8)) if n is not None]
        assert [path.read_text()] == list(map(str, winners))
        assert names(path.parent) == ["file.json"]


def no_links(*_: object) -> None:
    raise OSError(errno.EOPNOTSUPP, "Operation not supported")


class TestLinks:
    def test_are_followed(self, path, tmp_path):
        (tmp_path / "folder").mkdir()
        (tmp_path / "folder" / "target").write_text("old")
        path.symlink_to("folder/target")
        writing.write(path, "new")
        assert path.is_symlink()
        assert (tmp_path / "folder" / "target").read_text() == "new"
        assert names(tmp_path / "folder") == ["target"]

    def test_to_a_file_that_is_not_there(self, path, tmp_path):
        path.symlink_to("target")
        writing.write(path, "new", overwrite=False)
        assert path.is_symlink()
        assert (tmp_path / "target").read_text() == "new"

    def test_in_a_circle(self, path):
        path.symlink_to(path.name)
        with pytest.raises(OSError, match=r"symbolic links: .*file\.json"):
            writing.write(path, "new")
        assert path.is_symlink()

    def test_planted_in_place_of_the_temporary_file(self, path, tmp_path, monkeypatch):
        (tmp_path / "victim").write_text("precious")
        monkeypatch.setattr(writing.secrets, "token_hex", lambda size: "known")
        (tmp_path / ".known.json").symlink_to("victim")
        with pytest.raises(FileExistsError):
            writing.write(path, "new")
        assert (tmp_path / "victim").read_text() == "precious"
        assert not path.exists()


class TestFailures:
    def test_full_disk(self, path):
        path.write_text("old")
        with pytest.raises(OSError, match=r"File too large: .*file\.json"), small_files():
            writing.write(path, "x" * 101)
        assert path.read_text() == "old"
        assert names(path.parent) == ["file.json"]

    @pytest.mark.parametrize("save", [PLAN.save, REPORT.save], ids=["plan", "report"])
    def test_full_disk_of_plans_and_reports(self, path, save):
        path.write_text("old")
        with pytest.raises(OSError, match=r"File too large: .*file\.json"), small_files():
            save(path)
        assert path.read_text() == "old"
        assert names(path.parent) == ["file.json"]

    def test_full_disk_of_self_tests(self, tmp_path, monkeypatch):
        monkeypatch.setattr(compatibility, "cache_file", lambda: tmp_path / "runtimes.json")
        compatibility._remember("first")
        monkeypatch.setattr(os, "fsync", no_links)
        compatibility._remember("second")
        assert json.loads((tmp_path / "runtimes.json").read_text()) == ["first"]
        assert names(tmp_path) == ["runtimes.json"]

    def test_error_of_the_writer(self, path):
        def write() -> None:
            with writing.replacing(path) as temporary:
                np.save(temporary.with_suffix(".npy"), np.zeros(1))
                temporary.with_suffix(".npy").unlink()
                raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            write()
        assert names(path.parent) == []

    def test_missing_folder(self, tmp_path):
        with pytest.raises(FileNotFoundError, match=r"folder of `path` .*nowhere/file\.json does"):
            writing.write(tmp_path / "nowhere" / "file.json", "new")

    def test_folder(self, tmp_path):
        (tmp_path / "folder").mkdir()
        with pytest.raises(OSError, match="folder"):
            writing.write(tmp_path / "folder", "new")
        assert names(tmp_path) == ["folder"]
