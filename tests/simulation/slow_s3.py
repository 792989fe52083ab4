"""An S3 server that answers late: each request waits on its way to moto's."""

import contextlib
import os
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from unittest import mock

from tests.s3_server import CREDENTIALS, s3_server

PIECE = 1 << 16


@contextlib.contextmanager
def slow_s3(delay: float) -> Iterator[str]:
    """A folder on a server that answers every request `delay` seconds late; yields its URI."""
    with (
        mock.patch.dict(os.environ, CREDENTIALS),
        s3_server() as server,
        socket.create_server(("127.0.0.1", 0)) as listener,
    ):
        threading.Thread(target=_accept, args=(listener, server.port, delay), daemon=True).start()
        yield replace(server, port=listener.getsockname()[1]).uri("simulation")


def _accept(listener: socket.socket, port: int, delay: float) -> None:
    with contextlib.suppress(OSError):  # closed in the end
        while True:
            client, _ = listener.accept()
            _Connection(client, socket.create_connection(("127.0.0.1", port)), delay).start()


class _Connection:
    """Carries bytes both ways; those that follow an answer are a request and wait."""

    def __init__(self, client: socket.socket, server: socket.socket, delay: float) -> None:
        self.client, self.server, self.delay = client, server, delay
        self.answered = True

    def start(self) -> None:
        for target in (self._requests, self._answers):
            threading.Thread(target=target, daemon=True).start()

    def _requests(self) -> None:
        for data in _received(self.client):
            if self.answered:
                time.sleep(self.delay)
                self.answered = False
            self.server.sendall(data)
        self.server.close()

    def _answers(self) -> None:
        for data in _received(self.server):
            self.answered = True
            self.client.sendall(data)
        self.client.close()


def _received(source: socket.socket) -> Iterator[bytes]:
    with contextlib.suppress(OSError):
        while data := source.recv(PIECE):
            yield data
