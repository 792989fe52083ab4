"""The decoder's noise: what it depends on, and how it is distributed."""

import hashlib
import math

import torch

from clvp.sampling.noise import candidate_keys
from clvp.waveform.noise import noise_keys, normal
from tests.sampling.split_mix import GOLDEN, MASK, split_mix


def expected(seed: int, row_id: str, candidate: int, number: int, element: int) -> float:
    digest = hashlib.blake2b(f"{seed}\0{row_id}".encode(), digest_size=8, person=b"decode").digest()
    key = split_mix((int.from_bytes(digest, "little") + candidate * GOLDEN) & MASK)
    key = split_mix((key + (number + 1) * GOLDEN) & MASK)
    first, second = (
        ((split_mix((key + (2 * element + half + 1) * GOLDEN) & MASK) >> 12) + 0.5) / 2**52 for half in (0, 1)
    )
    return math.sqrt(-2 * math.log(first)) * math.cos(2 * math.pi * second)


def test_the_numbers_are_those_of_plain_integer_arithmetic() -> None:
    """Stored runs are replayed by these numbers: no change of the generator may go unnoticed."""
    keys = noise_keys(7, [("LJ001-0027", 0), ("LJ001-0027", 95)])
    for row, candidate in enumerate((0, 95)):
        for stream, step, number in (("mel", 0, 0), ("mel", 400, 400), ("vocoder", 0, 1 << 32)):
            drawn = normal(keys, stream, step, 3, 100)[row]
            for frame, channel in ((0, 0), (1, 5), (2, 99)):
                number_there = expected(7, "LJ001-0027", candidate, number, 100 * frame + channel)
                assert abs(drawn[frame, channel].item() - number_there) < 1e-6


def test_a_known_number_stays() -> None:
    assert normal(noise_keys(0, [("row", 0)]), "mel", 0, 1, 1).item() == -1.2469977140426636


def test_a_frames_noise_depends_on_neither_length_nor_company() -> None:
    many = normal(noise_keys(1, [("a", 0), ("b", 3), ("a", 1)]), "mel", torch.tensor([4]), 90, 100)
    alone = normal(noise_keys(1, [("b", 3)]), "mel", 4, 60, 100)
    assert torch.equal(many[1, :60], alone[0])


def test_every_argument_matters_and_no_key_is_the_token_samplers() -> None:
    base = normal(noise_keys(1, [("a", 0)]), "mel", 1, 2, 5)
    others = [
        normal(noise_keys(2, [("a", 0)]), "mel", 1, 2, 5),
        normal(noise_keys(1, [("b", 0)]), "mel", 1, 2, 5),
        normal(noise_keys(1, [("a", 1)]), "mel", 1, 2, 5),
        normal(noise_keys(1, [("a", 0)]), "mel", 0, 2, 5),
        normal(noise_keys(1, [("a", 0)]), "vocoder", 1, 2, 5),
    ]
    drawn = torch.stack([base, *others]).flatten()
    assert len(drawn.unique()) == drawn.numel()
    assert candidate_keys(1, "a", [0]) != noise_keys(1, [("a", 0)])


def test_the_numbers_are_normal_and_uncorrelated() -> None:
    drawn = normal(noise_keys(0, [(f"row{row}", 0) for row in range(16)]), "mel", 3, 100, 100).double()
    count = drawn.numel()
    assert abs(drawn.mean()) < 5 / count**0.5
    assert abs(drawn.square().mean() - 1) < 5 * (2 / count) ** 0.5
    assert abs(drawn.pow(4).mean() - 3) < 5 * (96 / count) ** 0.5
    shares = torch.special.ndtr(drawn).flatten()
    observed = torch.histc(shares, bins=100, min=0, max=1)
    assert (
        (observed - count / 100) ** 2 / (count / 100)
    ).sum() < 160  # 99 degrees of freedom: p < 1e-4 above
    for shifted in (drawn.roll(1, 0), drawn.roll(1, 1), drawn.roll(1, 2)):  # next row, frame, channel
        assert abs((drawn * shifted).mean()) < 5 / count**0.5
