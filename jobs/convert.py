"""Write a checkpoint folder from the original Tortoise files.

    clvp convert --autoregressive autoregressive.pth --clvp clvp2.pth --output checkpoint

The folder has the layout of susnato/clvp_dev, with Tortoise's tokenizer and sampling settings, and is what
--model takes in the other jobs. With --diffusion diffusion_decoder.pth --vocoder vocoder.pth it makes sound,
too; these may also be added to a folder that is there.
"""

import argparse
import os
from collections.abc import Sequence

from jobs.cli import job_parser, print_result


def make_parser() -> argparse.ArgumentParser:
    parser = job_parser("convert", __doc__)
    parser.add_argument("--autoregressive", metavar="FILE", help="autoregressive.pth")
    parser.add_argument("--clvp", metavar="FILE", help="clvp2.pth")
    parser.add_argument("--diffusion", metavar="FILE", help="diffusion_decoder.pth")
    parser.add_argument("--vocoder", metavar="FILE", help="vocoder.pth")
    parser.add_argument(
        "--random-voices", nargs=2, metavar="FILE", help="rlg_auto.pth and rlg_diffuser.pth, if wanted"
    )
    parser.add_argument("--output", required=True, metavar="FOLDER", help="where the checkpoint is written")
    for name in ("--decoder-heads", "--encoder-heads"):
        parser.add_argument(name, type=int, metavar="N", help="attention heads (default: width / 64)")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Convert and return the exit code."""
    parser = make_parser()
    options = parser.parse_args(argv)
    tokens = [file for file in (options.autoregressive, options.clvp) if file]
    sound = [file for file in (options.diffusion, options.vocoder) if file]
    if not tokens + sound or 1 in (len(tokens), len(sound)) or (options.random_voices and not sound):
        parser.error(
            "give --autoregressive and --clvp, or --diffusion and --vocoder (with --random-voices), or all"
        )

    def convert() -> str:
        for file in (*tokens, *sound, *(options.random_voices or ())):
            if not os.path.isfile(file):
                raise FileNotFoundError(f"there is no file {file}")

        from clvp.tortoise import convert_tortoise  # with torch: seconds
        from clvp.waveform.convert import convert_waveform

        if tokens:
            heads = {"decoder_heads": options.decoder_heads, "encoder_heads": options.encoder_heads}
            convert_tortoise(options.autoregressive, options.clvp, options.output, **heads)
        if sound:
            convert_waveform(options.diffusion, options.vocoder, options.output, options.random_voices)
        return f"wrote {options.output}"

    return print_result(parser, convert)


if __name__ == "__main__":
    raise SystemExit(main())
