"""The main job, publishing files of SOAK_PUBLISH_BYTES, which no command line sets that low."""

import argparse
import dataclasses
import os

from jobs import synthesize
from pipeline.settings import ExecutionSettings

read_execution = synthesize.read_execution


def read_with_small_files(options: argparse.Namespace) -> ExecutionSettings:
    return dataclasses.replace(read_execution(options), publish_bytes=int(os.environ["SOAK_PUBLISH_BYTES"]))


if __name__ == "__main__":
    synthesize.read_execution = read_with_small_files
    raise SystemExit(synthesize.main())
