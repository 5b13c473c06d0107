"""The record of the launched server: whole or none, and never mistaken for another process."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys

import psutil
import pytest

from launchpad.backends import how_ended
from launchpad.errors import EnvironmentFault
from launchpad.layout import Layout
from launchpad.server import Server


@pytest.fixture
def server() -> Server:
    """A record of the process that runs the tests."""
    return Server(
        instance="20260101-000000-abcd",
        backend="embedded",
        why="declared",
        content="c" * 64,
        pid=os.getpid(),
        created=psutil.Process().create_time(),
        command=["server", "--port=1"],
        rest_port=8501,
        grpc_port=0,
        metrics_path=None,
        models=["tiny"],
        ready_s=1.5,
    )


def test_the_record_comes_back_as_it_was_saved(server, tmp_path):
    server.save(Layout(tmp_path))
    assert Server.load(Layout(tmp_path)) == Server.ready(Layout(tmp_path)) == server


@pytest.mark.parametrize("content", ["", "{", "null", '{"pid": 3}', '{"unknown": 1}'])
def test_a_record_that_is_not_whole_is_none(tmp_path, content):
    layout = Layout(tmp_path)
    layout.private.mkdir()
    layout.server_state.write_text(content)
    assert Server.load(layout) is None


def test_a_server_that_never_got_ready_is_not_used(server, tmp_path):
    dataclasses.replace(server, ready_s=None).save(Layout(tmp_path))
    with pytest.raises(EnvironmentFault, match="no server has been launched") as raised:
        Server.ready(Layout(tmp_path))
    assert raised.value.problems[0].fix == "run `invoke launch`"


def test_a_port_of_0_has_no_address(server):
    assert server.rest_url == "http://127.0.0.1:8501"
    assert server.grpc_address is None


def test_what_was_changed_while_it_ran_makes_it_another_configuration(server):
    assert server.configuration == server.content
    assert dataclasses.replace(server, adjusted={"tiny": "no batching"}).configuration != server.content


def test_the_process_of_the_record_runs(server):
    assert not how_ended(server)


def test_another_process_with_the_same_number_is_not_the_server(server):
    assert how_ended(dataclasses.replace(server, created=server.created - 60))


def test_a_process_that_ended_is_not_running_even_before_it_was_waited_for(server):
    with subprocess.Popen([sys.executable, "-c", ""]) as child:
        process = psutil.Process(child.pid)
        record = dataclasses.replace(server, pid=child.pid, created=process.create_time())
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        assert how_ended(record)
    assert how_ended(record)
