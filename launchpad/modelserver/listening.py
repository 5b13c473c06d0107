"""The TCP ports of the server: bound at once, open when the models are there, left to another server on demand."""

from __future__ import annotations

import asyncio
import ctypes
import logging
import os
import socket
import ssl
import struct
from collections.abc import Callable

_log = logging.getLogger(__name__)

_BACKLOG = 1024
_AT_ONCE = 64
"""Connections taken in at a time, before the requests on the others have their turn."""
_PAUSE_S = 0.1
_SO_ATTACH_REUSEPORT_CBPF = 51


class StartError(RuntimeError):
    """The server cannot start in this environment; the message is fit for the user."""


class Port:
    """A TCP port.

    asyncio's own server is not used: libuv takes in one connection with each turn of the loop, and under load, when a
    turn lasts milliseconds, new clients waited for seconds.
    """

    def __init__(self, host: str, port: int, *, share: bool) -> None:
        """Bind the port, without listening yet. Raises StartError where it cannot be had."""
        self._connecting: set[asyncio.Task[None]] = set()
        self._protocol: Callable[[], asyncio.Protocol] | None = None
        self._tls: ssl.SSLContext | None = None
        try:
            family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
            self._socket = socket.socket(family, kind, protocol)
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if share:
                self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            self._socket.bind(address)
        except OSError as error:
            raise StartError(f"cannot listen on {host}:{port}: {reason(error)}") from None

    def __str__(self) -> str:
        host, port = self._socket.getsockname()[:2]
        return f"{host}:{port}"

    def open(self, protocol: Callable[[], asyncio.Protocol], tls: ssl.SSLContext | None = None) -> None:
        """Take in connections from now on. Raises StartError where another server listens already."""
        self._protocol, self._tls = protocol, tls
        self._socket.setblocking(False)
        try:
            self._socket.listen(_BACKLOG)
        except OSError as error:
            raise StartError(f"cannot listen on {self}: {reason(error)}") from None
        self._watch()

    def steer_to_successor(self) -> None:
        """Have the kernel give all new connections to the second of the sockets that share the port.

        They are numbered in the order in which they began to listen. A classic BPF program of one instruction names the
        number, see SO_ATTACH_REUSEPORT_CBPF in socket(7); where there is no such socket the kernel chooses as before.
        What is already in this socket's own queue stays there, to be taken in before it is closed: closing resets it.
        """
        returns_one = ctypes.create_string_buffer(struct.pack("HBBI", 0x06, 0, 0, 1))
        program = struct.pack("HP", 1, ctypes.addressof(returns_one))
        self._socket.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_REUSEPORT_CBPF, program)

    def close(self) -> None:
        """Take in no more connections."""
        if self._socket.fileno() >= 0:
            asyncio.get_running_loop().remove_reader(self._socket)
            self._socket.close()

    def _watch(self) -> None:
        if self._socket.fileno() >= 0:
            asyncio.get_running_loop().add_reader(self._socket, self._take_in)

    def _take_in(self) -> None:
        loop = asyncio.get_running_loop()
        for _ in range(_AT_ONCE):
            try:
                connection, _ = self._socket.accept()
            except (BlockingIOError, ConnectionAbortedError):
                return
            except OSError as error:  # no more files may be open, say
                _log.error("cannot take in a connection on %s: %s", self, reason(error))
                loop.remove_reader(self._socket)
                loop.call_later(_PAUSE_S, self._watch)
                return
            task = loop.create_task(self._connect(connection))
            self._connecting.add(task)
            task.add_done_callback(self._connecting.discard)

    async def _connect(self, connection: socket.socket) -> None:
        assert self._protocol is not None
        try:
            connection.setblocking(False)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            await asyncio.get_running_loop().connect_accepted_socket(self._protocol, connection, ssl=self._tls)
        except OSError:  # it is gone, or its TLS handshake failed
            connection.close()


def reason(error: OSError) -> str:
    """What the system says about an error."""
    return os.strerror(error.errno) if error.errno else str(error)
