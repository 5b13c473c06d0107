"""A port takes in clients at once, however busy the loop is, and fails at once where it is taken."""

from __future__ import annotations

import asyncio
import socket
from contextlib import ExitStack

import pytest
import uvloop

from launchpad.modelserver.listening import Port, StartError


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_all_clients_that_wait_are_taken_in_within_few_turns_of_the_loop() -> None:
    connected: list[asyncio.BaseTransport] = []

    class Counting(asyncio.Protocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            connected.append(transport)

    async def turns() -> int:
        number = free_port()
        port = Port("127.0.0.1", number, share=False)
        port.open(Counting)
        with ExitStack() as clients:
            for _ in range(50):
                clients.enter_context(socket.create_connection(("127.0.0.1", number)))
            count = 0
            while len(connected) < 50:
                await asyncio.sleep(0)
                count += 1
            port.close()
            port.close()
            return count

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        assert runner.run(turns()) < 10


def test_a_port_that_is_taken_is_told_before_anything_listens() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(StartError, match="Address already in use"):
            Port("127.0.0.1", taken.getsockname()[1], share=False)
