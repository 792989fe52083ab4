"""Command line of the soak."""

import argparse
import os
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

from tests.s3_server import CREDENTIALS, s3_server
from tests.soak.moments import draw_kills
from tests.soak.soak import run_undisturbed, soak
from tests.soak.workload import make_workload


def main() -> None:
    parser = argparse.ArgumentParser(
        "python -m tests.soak",
        description="Kill runs at drawn moments until they are done, and compare with an undisturbed run.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--rows", type=int, default=300, help="of the manifest, some of them bad")
    parser.add_argument("--kills", type=int, default=10, help="of driver, actor and all of Ray in turn")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--s3", action="store_true", help="write to an S3 server instead of a folder")
    options = parser.parse_args()
    started = time.monotonic()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="soak-")))
        workload = make_workload(folder, options.rows)
        output = str(folder / "killed")
        if options.s3:
            os.environ.update(CREDENTIALS)
            output = stack.enter_context(s3_server()).uri("killed")
        undisturbed = run_undisturbed(workload, str(folder / "undisturbed"))
        print(
            f"undisturbed run: {len(undisturbed.done)} rows done, {len(undisturbed.failed)} failed",
            flush=True,
        )
        kills = draw_kills(options.kills, options.seed)
        result = soak(
            workload, output, kills, undisturbed, options.seed, lambda line: print(line, flush=True)
        )
    late = f" ({len(result.too_late)} came too late)" if result.too_late else ""
    print(
        f"{options.rows} rows, {len(result.killed)} kills{late}, {result.sessions} sessions: every row once, "
        f"identical to the undisturbed run, in {time.monotonic() - started:.0f} s"
    )


if __name__ == "__main__":
    main()
