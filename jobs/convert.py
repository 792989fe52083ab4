"""Write a checkpoint folder from the two original Tortoise files.

    python -m jobs.convert --autoregressive autoregressive.pth --clvp clvp2.pth --output checkpoint

The folder has the layout of susnato/clvp_dev, with Tortoise's tokenizer and sampling settings, and is what
--model takes in the other jobs.
"""

import argparse
from collections.abc import Sequence

from clvp.tortoise import convert_tortoise
from jobs.cli import job_parser, print_result


def make_parser() -> argparse.ArgumentParser:
    parser = job_parser("convert", __doc__)
    parser.add_argument("--autoregressive", required=True, metavar="FILE", help="autoregressive.pth")
    parser.add_argument("--clvp", required=True, metavar="FILE", help="clvp2.pth")
    parser.add_argument("--output", required=True, metavar="FOLDER", help="where the checkpoint is written")
    for name in ("--decoder-heads", "--encoder-heads"):
        parser.add_argument(name, type=int, metavar="N", help="attention heads (default: width / 64)")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Convert and return the exit code."""
    parser = make_parser()
    options = parser.parse_args(argv)

    def convert() -> str:
        heads = {"decoder_heads": options.decoder_heads, "encoder_heads": options.encoder_heads}
        return f"wrote {convert_tortoise(options.autoregressive, options.clvp, options.output, **heads)}"

    return print_result(parser, convert)


if __name__ == "__main__":
    raise SystemExit(main())
