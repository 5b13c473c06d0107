"""Artifacts survive: whoever looks at a path sees the old content or the new one, whole."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from launchpad import files

KILLED_AT_RENAME = """
import pathlib, sys
from launchpad import files

target, stop_at = pathlib.Path(sys.argv[1]), int(sys.argv[2])
rename, count = pathlib.Path.rename, 0

def counted(self, to):
    global count
    if count == stop_at:
        print("there", flush=True)
        sys.stdin.read()
    count += 1
    return rename(self, to)

pathlib.Path.rename = counted
new = files.staged(target)
new.mkdir()
(new / "one").write_text("new")
(new / "two").write_text("new")
files.publish(target)
if count == stop_at:
    print("there", flush=True)
    sys.stdin.read()
"""


def kill_in_publish(target: Path, stop_at: int, repository: Path) -> None:
    """Run `publish` in a process of its own and kill it in front of its rename number `stop_at`."""
    command = [sys.executable, "-c", KILLED_AT_RENAME, str(target), str(stop_at)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=repository, text=True) as child:
        assert child.stdout.readline() == "there\n"
        child.kill()
        assert child.wait() == -signal.SIGKILL


def contents(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in folder.iterdir()}


@pytest.mark.parametrize(("stop_at", "survivor"), [(0, "old"), (1, "old"), (2, "new")])
def test_kill_9_in_the_middle_of_publish_leaves_one_whole_version(tmp_path, repository, stop_at, survivor):
    target = tmp_path / "artifact"
    target.mkdir()
    (target / "one").write_text("old")
    (target / "two").write_text("old")
    kill_in_publish(target, stop_at, repository)
    files.recover(target)
    assert contents(target) == {"one": survivor, "two": survivor}
    assert list(tmp_path.iterdir()) == [target]


def test_publish_replaces_a_folder_whole(tmp_path):
    target = tmp_path / "artifact"
    target.mkdir()
    (target / "stale").write_text("old")
    files.staged(target).mkdir()
    (files._beside(target, "new") / "fresh").write_text("new")
    files.publish(target)
    assert contents(target) == {"fresh": "new"}
    assert list(tmp_path.iterdir()) == [target]


def test_what_was_prepared_and_never_published_is_gone_after_recovery(tmp_path):
    target = tmp_path / "artifact"
    files.staged(target).write_text("half")
    files.recover(target)
    assert list(tmp_path.iterdir()) == []


def test_a_fresh_place_is_empty_whatever_an_earlier_run_left_there(tmp_path):
    target = tmp_path / "artifact"
    files.staged(target).mkdir()
    (files._beside(target, "new") / "left over").write_text("half")
    assert not files.staged(target).exists()


def test_a_text_file_that_cannot_be_written_whole_keeps_its_old_content(tmp_path):
    target = tmp_path / "file"
    files.write_text(target, "old")
    with pytest.raises(UnicodeEncodeError):
        files.write_text(target, "new \udc80")
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_json_comes_back_and_a_missing_or_broken_file_is_none(tmp_path):
    path = tmp_path / "deep" / "value.json"
    files.write_json(path, {"a": [1, None, "ü"]})
    assert files.read_json(path) == {"a": [1, None, "ü"]}
    assert path.read_text().endswith("\n")
    path.write_text(path.read_text()[:-5])
    assert files.read_json(path) is None
    assert files.read_json(tmp_path / "missing") is None


def test_a_digest_does_not_depend_on_the_order_of_keys():
    assert files.digest({"a": 1, "b": (2,)}) == files.digest({"b": [2], "a": 1})
    assert files.digest({"a": 1}) != files.digest({"a": 2})


def test_a_tree_names_every_file_and_passes_over_what_is_hidden_compiled_or_left_out(tmp_path):
    for name in ("a", "deep/b", ".hidden", ".git/c", "__pycache__/d.pyc", "other/e"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(name)
    assert list(files.tree(tmp_path, leave_out=[tmp_path / "other"])) == ["a", "deep/b"]
    assert files.tree(tmp_path)["deep/b"] == files.sha256(tmp_path / "deep" / "b")


def test_a_file_is_its_own_tree_and_what_is_not_there_has_none(tmp_path):
    (tmp_path / "a").write_text("x")
    assert files.tree(tmp_path / "a") == {".": files.sha256(tmp_path / "a")}
    assert files.tree(tmp_path / "b") == {}


def test_remove_takes_a_link_away_and_not_what_it_points_to(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "kept").write_text("x")
    (tmp_path / "link").symlink_to(tmp_path / "folder")
    files.remove(tmp_path / "link")
    files.remove(tmp_path / "missing")
    assert contents(tmp_path / "folder") == {"kept": "x"}
    assert not (tmp_path / "link").exists()


def test_a_settled_file_is_read_once_and_again_when_another_takes_its_place(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "SETTLED_NS", 0)
    path, other = tmp_path / "weights", tmp_path / "other"
    path.write_bytes(b"one")
    first, hits = files.sha256(path), files._known_sha256.cache_info().hits
    assert files.sha256(path) == first == hashlib.sha256(b"one").hexdigest()
    assert files._known_sha256.cache_info().hits == hits + 1

    other.write_bytes(b"two")
    times = path.stat()
    os.utime(other, ns=(times.st_atime_ns, times.st_mtime_ns))
    other.replace(path)

    assert files.sha256(path) == hashlib.sha256(b"two").hexdigest()


def test_a_file_that_has_just_been_written_is_read_whatever_its_times_say(tmp_path):
    path = tmp_path / "weights"
    for content in (b"one", b"two"):
        path.write_bytes(content)
        assert files.sha256(path) == hashlib.sha256(content).hexdigest()


@pytest.mark.parametrize("content", [b"[1]", b"1", b"null", b"{", b"\xff", b"[" * 100_000])
def test_json_that_is_no_mapping_is_read_as_an_empty_one(tmp_path, content):
    (tmp_path / "a.json").write_bytes(content)
    assert files.read_mapping(tmp_path / "a.json") == {} == files.read_mapping(tmp_path / "none.json")
