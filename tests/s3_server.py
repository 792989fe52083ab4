"""An S3 server in a process of its own, so that it takes no time of a test's threads: moto's, in memory.

`python -m tests.s3_server` prints its port and serves until its standard input ends: until the process that
started it is gone, however it went.
"""

import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
from moto.server import ThreadedMotoServer

BUCKET = "runs"
CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "test",
    "AWS_SECRET_ACCESS_KEY": "test",
    "AWS_EC2_METADATA_DISABLED": "true",
}


@dataclass(frozen=True)
class S3Server:
    """A running server with one bucket; clients need CREDENTIALS in their environment."""

    port: int

    @property
    def query(self) -> str:
        """The connection options of a URI."""
        return f"?endpoint_override=127.0.0.1:{self.port}&scheme=http&region=us-east-1"

    def uri(self, key: str) -> str:
        """The URI of a file or folder in the bucket."""
        return f"s3://{BUCKET}/{key}{self.query}"

    def client(self) -> Any:
        """A boto3 client."""
        return boto3.client(
            "s3",
            endpoint_url=f"http://127.0.0.1:{self.port}",
            region_name="us-east-1",
            aws_access_key_id=CREDENTIALS["AWS_ACCESS_KEY_ID"],
            aws_secret_access_key=CREDENTIALS["AWS_SECRET_ACCESS_KEY"],
        )


@contextmanager
def s3_server() -> Iterator[S3Server]:
    """Start a server on a free port, with an empty bucket."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.s3_server"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[1],
        start_new_session=True,  # a Ctrl-C in the terminal is for those who use it
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        server = S3Server(int(process.stdout.readline()))
        server.client().create_bucket(Bucket=BUCKET)
        yield server
    finally:
        process.stdin.close()
        try:
            process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        process.stdout.close()


def main() -> None:
    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # no line per request
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    print(server.get_host_and_port()[1], flush=True)
    sys.stdin.read()
    os._exit(0)


if __name__ == "__main__":
    main()
