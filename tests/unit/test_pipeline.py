"""What the user is told where a command cannot go on, and with which exit code."""

from __future__ import annotations

import errno
import os
import subprocess
import sys

import pytest

from launchpad import flagfile, pipeline
from launchpad.errors import DeclarationError


@pytest.mark.parametrize(
    ("error", "said"),
    [
        *(
            (OSError(number, os.strerror(number), "some/path"), f"{os.strerror(number)}, at some/path")
            for number in (
                *(errno.EISDIR, errno.ENOTDIR, errno.EEXIST, errno.ELOOP, errno.ENAMETOOLONG, errno.EFBIG),
                *(errno.EPERM, errno.ENOENT, errno.ENOSPC, errno.EACCES, errno.ECONNREFUSED),
            )
        ),
        (OSError(errno.EISDIR, "Is a directory", b"some/path"), "Is a directory, at some/path"),
        (OSError("no number"), "no number"),
        (TimeoutError(), "TimeoutError"),
        (BrokenPipeError(errno.EPIPE, "Broken pipe"), "Broken pipe"),
    ],
)
def test_what_the_system_refuses_is_one_message(capsys, error, said):
    with pytest.raises(SystemExit) as ended, pipeline.reported(SystemExit):
        raise error
    assert ended.value.code == 3
    assert said in capsys.readouterr().err


TALKS = """
import sys, time
from launchpad import console, pipeline
with pipeline.reported(SystemExit), console.printing():
    for number in range(20_000):
        {statement}
"""


@pytest.mark.parametrize("statement", ["print('line', number)", "console.say(f'line {number}')"])
def test_a_command_whose_output_nobody_reads_ends_quietly(repository, statement):
    talking = subprocess.Popen(
        [sys.executable, "-c", TALKS.format(statement=statement)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=repository,
    )
    assert talking.stdout.readline() == b"line 0\n"
    talking.stdout.close()
    assert (talking.wait(), talking.stderr.read()) == (pipeline.OUTPUT_CLOSED, b"")
    talking.stderr.close()


def test_a_chain_whose_output_nobody_reads_says_that_it_ends(declare, monkeypatch, capsys):
    def closed(names, given):
        raise pipeline.console.OutputClosed

    monkeypatch.setattr(pipeline, "_run_in_order", closed)
    declared = declare()
    with pytest.raises(SystemExit) as ended, pipeline.reported(SystemExit):
        pipeline.run(["export", "configure"], pipeline.context(declared.root))
    assert ended.value.code == pipeline.OUTPUT_CLOSED
    assert "nobody reads the output any more" in capsys.readouterr().err


@pytest.mark.parametrize("duration_s", [-1.0, float("nan"), float("inf")])
def test_a_duration_that_is_none_is_refused(declare, duration_s):
    with pytest.raises(DeclarationError, match="a duration of"):
        pipeline.context(declare().root, duration_s=duration_s)


def test_a_file_that_is_no_text_is_named(tmp_path, capsys):
    path = tmp_path / "server.flags"
    path.write_bytes(b"--port=1\xff")
    with pytest.raises(SystemExit) as ended, pipeline.reported(SystemExit):
        flagfile.read(path)
    assert ended.value.code == 3
    assert f"{path}: is not UTF-8 text" in capsys.readouterr().err
