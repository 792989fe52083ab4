"""An object store that takes its time: just enough of S3 to read files of one folder through Arrow.

Audio that is waited for makes the CPU stage need several nodes while the cores stay free.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from urllib.parse import urlsplit

# Arrow signs its requests; nobody checks.
CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "key",
    "AWS_SECRET_ACCESS_KEY": "secret",
    "AWS_EC2_METADATA_DISABLED": "true",
}


@contextmanager
def slow_store(folder: Path, seconds: float) -> Iterator[str]:
    """Serve the files of `folder` with a delay for each; yields the format of their URIs."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self) -> None:
            content = (folder / Path(urlsplit(self.path).path).name).read_bytes()
            self._answer(200, content, b"")

        def do_GET(self) -> None:
            time.sleep(seconds)
            content = (folder / Path(urlsplit(self.path).path).name).read_bytes()
            first, last = self.headers["Range"].removeprefix("bytes=").split("-")
            self._answer(206, content, content[int(first) : int(last) + 1])

        def _answer(self, status: int, content: bytes, body: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(body) or len(content)))
            self.send_header("Last-Modified", "Thu, 01 Jan 2026 00:00:00 GMT")
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"s3://store/{{}}?endpoint_override=127.0.0.1:{server.server_port}&scheme=http&region=us-east-1"
    finally:
        server.shutdown()
