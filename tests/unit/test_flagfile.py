"""The flag file: one flag a line, comments for people."""

from __future__ import annotations

from launchpad import flagfile


def test_comments_and_empty_lines_are_no_flags(tmp_path):
    path = tmp_path / "server.flags"
    path.write_text("# a heading\n\n--port=1   # from here\n--saved_model_tags=a#b\n   # indented\n--version\n")
    assert flagfile.read(path) == ["--port=1", "--saved_model_tags=a#b", "--version"]
