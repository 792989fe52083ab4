"""The waveform decoder on a GPU: its kernels, its graphs, the same bits in any company.

Skipped without one, but for `python -m tests.gpu --rehearse`, which runs them in small on a CPU.
"""

import pytest
import torch
from torch import Tensor

from clvp.waveform import (
    DecodedSpeech,
    WaveformDecoder,
    WaveformEngineConfig,
    WaveformParams,
    WaveformRequest,
)
from clvp.waveform.bucket import Bucket
from clvp.waveform.denoiser import (
    BUCKETS,
    DiffusionConfig,
    DiffusionDecoder,
    FrameNorm,
    Kernels,
    attend_by_row,
    normalise,
)
from clvp.waveform.invariance import lanes_are_alike
from clvp.waveform.vocoder import SILENT_FRAMES, UnivNet, VocoderConfig
from tests.sampling.rehearsal import DEVICE, REHEARSED, ready_for_triton
from tests.waveform.conftest import relative_error

ON_GPU = DEVICE.type == "cuda"
pytestmark = pytest.mark.skipif(not (ON_GPU or REHEARSED), reason="needs a GPU")

NO_TOKENS = torch.zeros(0, dtype=torch.int64)  # diffusion takes their latents
DTYPES = ["float32", "bfloat16"]
PRODUCTS = DTYPES if ON_GPU else DTYPES[:1]  # the interpreter multiplies the bits of bfloat16
PARAMS = {
    "guided": WaveformParams(diffusion_steps=6 if ON_GPU else 2),
    "plain": WaveformParams("p", 6 if ON_GPU else 2, "time", guidance=0),
}
WIDTH = 8 if ON_GPU else 2


@pytest.fixture(scope="module")
def kernels() -> Kernels:
    ready_for_triton()
    from clvp.waveform.gpu_kernels import KERNELS

    return KERNELS


def small_models() -> tuple[DiffusionDecoder, UnivNet]:
    torch.manual_seed(0)
    denoiser = DiffusionDecoder(DiffusionConfig(hidden_size=64, latent_size=32, num_layers=1, num_heads=2))
    vocoder = UnivNet(VocoderConfig(hidden_channels=4, predictor_channels=8))
    return denoiser.eval(), vocoder.eval()


def decoder(dtype: str = "float32", width: int = WIDTH, device: torch.device = DEVICE) -> WaveformDecoder:
    denoiser, vocoder = (model.to(device) for model in small_models())
    config = WaveformEngineConfig(diffusion_batch=width, bucket_frames=64)
    return WaveformDecoder(denoiser, vocoder, config, dtype)


def request(number: int) -> WaveformRequest:
    """The request of a number, always the same: 4 to 27 latents, 17 to 117 frames."""
    generator = torch.Generator().manual_seed(number)
    latents_LE = torch.randn(4 + number * 7 % 24, 32, generator=generator)
    voice = torch.randn(128, generator=generator)
    return WaveformRequest(f"row{number}", number % 3, NO_TOKENS, latents_LE, voice)


def bits(decoder: WaveformDecoder, numbers: list[int], kind: str) -> dict[int, list[bytes]]:
    results = decoder.decode([request(number) for number in numbers], PARAMS[kind])
    assert all(isinstance(result, DecodedSpeech) for result in results)
    return {
        number: [x.numpy().tobytes() for x in (result.mel_MT, result.waveform_N)]
        for number, result in zip(numbers, results, strict=True)
    }


# ---- kernels ----


def attention_inputs(rows: int, frames: int, dtype: str) -> tuple[Tensor, Tensor, Tensor]:
    heads, head_dim = (16, 64) if ON_GPU else (2, 16)
    generator = torch.Generator().manual_seed(frames)
    qkv_RTE = torch.randn(rows, frames, 3 * heads * head_dim, generator=generator)
    table_KH = torch.randn(BUCKETS, heads, generator=generator)
    lengths_R = torch.randint(1, frames + 1, (rows,), generator=generator)
    lengths_R[0] = frames
    return qkv_RTE.to(DEVICE, getattr(torch, dtype)), table_KH.to(DEVICE), lengths_R.to(DEVICE)


LENGTHS = (64, 192, 2176, 128) if ON_GPU else (64, 192)


@pytest.mark.parametrize(("dtype", "error"), [("float32", 1e-5), ("bfloat16", 2e-2)][: len(PRODUCTS)])
@torch.inference_mode()
def test_attention_is_the_references(kernels: Kernels, dtype: str, error: float) -> None:
    for frames in LENGTHS:
        qkv_RTE, table_KH, lengths_R = attention_inputs(3, frames, dtype)
        attended_RTC = kernels.attend(qkv_RTE, table_KH, lengths_R).float().cpu()
        assert attended_RTC.isfinite().all()  # masks multiply what is behind a row
        expected_RTC = attend_by_row(qkv_RTE.float().cpu(), table_KH.cpu(), lengths_R.cpu())
        for row, length in enumerate(lengths_R.tolist()):
            assert relative_error(attended_RTC[row, :length], expected_RTC[row, :length]) < error


@pytest.mark.parametrize(("dtype", "error"), [("float32", 1e-5), ("bfloat16", 2e-2)])
@pytest.mark.parametrize("modulations", [0, 1, 3])
@pytest.mark.parametrize("offset", [0, 300], ids=["around zero", "far from zero"])
@torch.inference_mode()
def test_norms_are_the_references(
    kernels: Kernels, dtype: str, error: float, modulations: int, offset: float
) -> None:
    generator = torch.Generator().manual_seed(0)
    for width, frames in ((1024 if ON_GPU else 64, 192), (72, 64)):
        x_RTC = torch.randn(3, frames, width, generator=generator) + offset
        modulation_RE = torch.randn(modulations, 2 * width, generator=generator) if modulations else None
        norm = FrameNorm(width)
        torch.nn.init.normal_(norm.weight, 1, generator=generator)
        torch.nn.init.normal_(norm.bias, generator=generator)
        lengths_R = torch.tensor([frames, 1, frames - 30])
        expected_RTC = normalise(
            norm.double(), x_RTC.double(), lengths_R, torch.float64, modulation_RE, silu=bool(modulations)
        )
        on_device = None if modulation_RE is None else modulation_RE.to(DEVICE)
        ours_RTC = kernels.normalise(
            norm.float().to(DEVICE),
            x_RTC.to(DEVICE),
            lengths_R.to(DEVICE),
            getattr(torch, dtype),
            on_device,
            silu=bool(modulations),
        )
        assert ours_RTC.dtype == getattr(torch, dtype)
        for row, length in enumerate(lengths_R.tolist()):
            assert not ours_RTC[row, length:].any()
            if length > 1:  # of one frame the deviation may be nothing
                error_here = error * (1 + offset)
                assert relative_error(ours_RTC[row, :length].cpu(), expected_RTC[row, :length]) < error_here


@pytest.mark.parametrize("dtype", PRODUCTS)
@torch.inference_mode()
def test_attention_has_the_same_bits_in_every_row(kernels: Kernels, dtype: str) -> None:
    for frames in LENGTHS:
        qkv_RTE, table_KH, lengths_R = attention_inputs(2 * WIDTH, frames, dtype)
        attended_RTC = kernels.attend(qkv_RTE, table_KH, lengths_R)
        turned_RTC = kernels.attend(qkv_RTE.flip(0), table_KH, lengths_R.flip(0)).flip(0)
        assert torch.equal(turned_RTC, attended_RTC)


# ---- graphs ----


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", list(PARAMS))
def test_the_graph_does_what_its_steps_do(dtype: str, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """To the last bit, for lengths in turn, whose graphs share their memory."""
    ours = decoder(dtype)
    numbers = [1, 2, 3, 9, 14]
    by_graph = bits(ours, numbers, kind)
    assert len(ours._buckets) == (2 if ON_GPU else 0)
    again = bits(ours, numbers[::-1], kind)
    monkeypatch.setattr(Bucket, "_replay", Bucket._step)
    assert by_graph == again == bits(decoder(dtype), numbers, kind)


@pytest.mark.parametrize("kind", list(PARAMS))
def test_mels_are_those_of_a_cpu(kind: str) -> None:
    """In float32, but for rounding; and so is the sound of one mel."""
    asked = [request(number) for number in (1, 2, 3)]
    results = [decoder(device=device).decode(asked, PARAMS[kind]) for device in (DEVICE, torch.device("cpu"))]
    for ours, expected in zip(*results, strict=True):
        assert isinstance(ours, DecodedSpeech)
        assert isinstance(expected, DecodedSpeech)
        assert relative_error(ours.mel_MT, expected.mel_MT) < 1e-3
        assert relative_error(ours.waveform_N, expected.waveform_N) < 2e-2


# ---- the same bits in any company ----


@pytest.mark.parametrize("dtype", PRODUCTS)
@pytest.mark.parametrize("kind", list(PARAMS))
def test_neighbours_and_order_change_nothing(dtype: str, kind: str) -> None:
    ours = decoder(dtype)
    assert ours.width == WIDTH
    alone = {number: bits(ours, [number], kind)[number] for number in range(3)}
    among = bits(ours, [30, 31, *range(3)[::-1], 32], kind)
    assert {number: among[number] for number in alone} == alone


@pytest.mark.parametrize("dtype", PRODUCTS)
def test_lanes_are_alike_in_the_published_width(kernels: Kernels, dtype: str) -> None:
    """What the decoder tries at its start: here by itself, so that a fallback to one lane is seen."""
    torch.manual_seed(0)
    size = {} if ON_GPU else {"hidden_size": 64, "latent_size": 32, "num_heads": 2}
    with DEVICE:
        model = DiffusionDecoder(DiffusionConfig(num_layers=1, **size)).eval()
    if ON_GPU:
        model.kernels = kernels
    model.cast_products(getattr(torch, dtype))
    assert lanes_are_alike(model, WIDTH)


@torch.inference_mode()
def test_the_published_vocoder_makes_the_same_sound_twice() -> None:
    torch.manual_seed(0)
    frames = 300 if ON_GPU else 3
    with DEVICE:
        vocoder = UnivNet(VocoderConfig()).eval()
        mel_MT, noise_ZT = torch.randn(100, frames), torch.randn(64, frames + SILENT_FRAMES)
    first, second = (vocoder.synthesize(mel_MT, noise_ZT) for _ in range(2))
    assert torch.equal(first, second)
