"""Activations have the same bits with any number of threads: torch's own have not."""

from collections.abc import Iterator

import pytest
import torch

from clvp.layers import activation_function


@pytest.fixture(autouse=True)
def restored_threads() -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("name", ["gelu", "gelu_new", "relu", "silu"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_threads_do_not_matter(name: str, dtype: torch.dtype) -> None:
    """Also to what fills no vector, is shared by some threads alone, or lies transposed."""
    generator = torch.Generator().manual_seed(0)
    function = activation_function(name)
    for shape in ((3, 5), (4, 4099), (16, 1024), (5, 8194), (33, 1000), (3, 20_001), (64, 4096), (160, 4096)):
        x = (2 * torch.randn(shape, generator=generator)).to(dtype)
        for turned in (x, x.t()):
            torch.set_num_threads(1)
            expected = function(turned)
            for threads in (2, 3, 5, 6, 7, 8, 13):
                torch.set_num_threads(threads)
                assert torch.equal(function(turned), expected), (shape, threads)
