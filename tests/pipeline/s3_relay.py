"""Stands between a client and an S3 server: counts requests, breaks answers and holds uploads on request."""

import http.client
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from tests.s3_server import BUCKET, S3Server


@dataclass
class Relay:
    """A server like the one behind it. `gets` counts the GET requests of each object by its file name."""

    port: int = 0
    gets: Counter[str] = field(default_factory=Counter)
    cut: str | None = None  # an object of this name ends half-way
    stalled: str | None = None  # an object of this name never comes
    reached: threading.Event = field(default_factory=threading.Event)  # a stalled object or held upload came
    held: str | None = None  # an upload to a name that holds this waits until `release`
    skip: int = 0  # so many of them pass before
    released: threading.Event = field(default_factory=threading.Event)

    def hold(self, held: str | None, skip: int) -> None:
        """Hold back one upload to a name that holds `held`, after `skip` others."""
        self.held, self.skip = held, skip

    def release(self) -> None:
        """Let it arrive."""
        self.released.set()

    def uri(self, key: str) -> str:
        """The URI of a file or folder in the bucket, through the relay."""
        return f"s3://{BUCKET}/{key}" + S3Server(self.port).query


@contextmanager
def s3_relay(server: S3Server) -> Iterator[Relay]:
    """Start a relay in front of a server."""
    relay = Relay()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def answer(self) -> None:
            name = self.path.partition("?")[0].rpartition("/")[2]
            is_get = self.command == "GET" and "list-type" not in self.path
            if is_get:
                relay.gets[name] += 1
                if name == relay.stalled:
                    relay.reached.set()
                    threading.Event().wait(120)
            backend = http.client.HTTPConnection("127.0.0.1", server.port)
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            if self.headers.get("Transfer-Encoding") == "chunked":
                body = b"".join(self.chunks())
            if self.command in ("PUT", "POST") and relay.held and relay.held in self.path:
                relay.skip -= 1
                if relay.skip == -1:
                    relay.reached.set()
                    relay.released.wait(120)
            headers = {k: v for k, v in self.headers.items() if k.lower() != "transfer-encoding"}
            backend.request(self.command, self.path, body, headers)
            response = backend.getresponse()
            content = response.read()
            self.send_response(response.status)
            for header, value in response.getheaders():
                if header.lower() not in ("transfer-encoding", "connection", "date", "server"):
                    self.send_header(header, value)
            self.send_header("Connection", "close")
            self.end_headers()
            cut = is_get and name == relay.cut
            self.wfile.write(content[: len(content) // 2] if cut else content)
            self.close_connection = True
            backend.close()

        def chunks(self) -> Iterator[bytes]:
            while size := int(self.rfile.readline().split(b";")[0], 16):
                yield self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()

        do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = answer

        def log_message(self, *_: object) -> None:
            pass

    http_server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    http_server.daemon_threads = True
    relay.port = http_server.server_address[1]
    thread = threading.Thread(target=http_server.serve_forever, daemon=True)
    thread.start()
    yield relay
    http_server.shutdown()
    http_server.server_close()
