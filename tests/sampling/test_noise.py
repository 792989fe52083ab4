"""Counter-based noise: what it depends on, and how it is distributed."""

import hashlib

import pytest
import torch

from clvp.sampling.noise import candidate_keys, uniform
from tests.sampling.split_mix import GOLDEN, MASK, split_mix


def expected_uniform(seed: int, row_id: str, candidate: int, step: int) -> float:
    digest = hashlib.blake2b(f"{seed}\0{row_id}".encode(), digest_size=8).digest()
    key = split_mix((int.from_bytes(digest, "little") + candidate * GOLDEN) & MASK)
    return ((split_mix((key + (step + 1) * GOLDEN) & MASK) >> 12) + 0.5) / 2**52


@pytest.mark.parametrize("step", [0, 1, 499, 2**40])
def test_the_numbers_are_those_of_plain_integer_arithmetic(step: int) -> None:
    """Stored runs are replayed by these numbers: no change of the generator may go unnoticed."""
    numbers_N = uniform(candidate_keys(7, "LJ001-0027", [0, 1, 95]), torch.tensor(step))
    assert numbers_N.tolist() == [expected_uniform(7, "LJ001-0027", c, step) for c in (0, 1, 95)]


def test_a_known_number_stays() -> None:
    assert uniform(candidate_keys(0, "row", [0]), torch.tensor(0)).item() == 0.6906158487041435


def test_a_candidate_alone_has_the_numbers_it_has_among_others() -> None:
    together = uniform(candidate_keys(1, "a", range(64)), torch.arange(64))
    for candidate in (0, 13, 63):
        alone = uniform(candidate_keys(1, "a", [candidate]), torch.tensor(candidate))
        assert alone.item() == together[candidate].item()


def test_every_argument_matters() -> None:
    base = uniform(candidate_keys(1, "a", [0]), torch.tensor(0)).item()
    others = [
        uniform(candidate_keys(2, "a", [0]), torch.tensor(0)),
        uniform(candidate_keys(1, "b", [0]), torch.tensor(0)),
        uniform(candidate_keys(1, "a", [1]), torch.tensor(0)),
        uniform(candidate_keys(1, "a", [0]), torch.tensor(1)),
        uniform(candidate_keys(11, "", [0]), torch.tensor(0)),  # no confusion of seed and id
        uniform(candidate_keys(1, "1a", [0]), torch.tensor(0)),
    ]
    assert base not in [other.item() for other in others]


def test_row_ids_of_any_characters_are_accepted() -> None:
    assert candidate_keys(0, "\ud800 é 語 \0", [0]).shape == (1,)


def test_the_numbers_are_uniform_and_uncorrelated() -> None:
    keys_N = torch.cat([candidate_keys(0, f"row{row}", range(64)) for row in range(64)])
    draws_NT = torch.stack([uniform(keys_N, torch.tensor(step)) for step in range(64)], dim=1)
    assert draws_NT.min() > 0
    assert draws_NT.max() < 1
    count = draws_NT.numel()
    observed = torch.histc(draws_NT.flatten(), bins=100, min=0, max=1)
    chi_square = ((observed - count / 100) ** 2 / (count / 100)).sum()
    assert chi_square < 160  # 99 degrees of freedom: p < 1e-4 above
    centred_NT = draws_NT - 0.5
    for shifted in (centred_NT.roll(1, 0), centred_NT.roll(1, 1)):  # next candidate, next step
        correlation = (centred_NT * shifted).mean() / (1 / 12)
        assert correlation.abs() < 5 / count**0.5
