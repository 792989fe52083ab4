"""The small random checkpoint that the stages with a model run on, and an S3 server."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from clvp.random_checkpoint import write_random_checkpoint
from tests.s3_server import CREDENTIALS, S3Server, s3_server


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_random_checkpoint(tmp_path_factory.mktemp("checkpoint"))


@pytest.fixture(scope="session")
def s3() -> Iterator[S3Server]:
    """A server for all tests, with the credentials in this process' environment: use keys of your own."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in CREDENTIALS.items():
            patch.setenv(name, value)
        with s3_server() as server:
            yield server
