"""The conditioning encoder: reference audio and text to the prefix that the speech decoder continues.

A clip's log-mels pass through attention blocks; frame 0 of the result is its conditioning latent. Several
clips of one voice average their latents. The prefix is `[latent] [start] text [stop] ...`, the text with
positions of its own table, the latent with none (Betker, "Better speech synthesis through scaling", 2023).

B batch, N text tokens, T frames, D width, P prefix length; 8 stands for the mel bands.
"""

from collections.abc import Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from clvp.batch import without_padding
from clvp.config import ClvpConfig
from clvp.layers import ClvpSelfAttention, exactly_one, initialize
from clvp.pretrained import ClvpPreTrainedModel

# One row's reference audio: log-mels [bands, T], or several clips: [clips, bands, T] or a list of [bands, T].
Clips = Tensor | Sequence[Tensor]
# Log-mels [B, bands, T], or the clips of each row.
InputFeatures = Tensor | Sequence[Clips]
# Whatever stands for one row's audio: its clips, or their latent.
Audio = TypeVar("Audio")

# A start token and two stop tokens stand around the text of a generation; each takes a text position.
PROMPT_TOKENS_AROUND_TEXT = 3


def groupnorm_groups(channels: int) -> int:
    """Groups of a group norm over `channels`, as the original chooses them; ValueError below 3 groups."""
    groups = 8 if channels <= 16 else 16 if channels <= 64 else 32
    while channels % groups:
        groups //= 2
    if groups <= 2:
        raise ValueError(
            f"hidden_size {channels} leaves {groups} groups for the group norm; it needs 3 or more"
        )
    return groups


class Float32GroupNorm(nn.GroupNorm):
    """Group norm that computes in float32 whatever the weights are, as the original does."""

    def forward(self, x: Tensor) -> Tensor:
        """Same shape and dtype."""
        weight, bias = self.weight.float(), self.bias.float()
        return functional.group_norm(x.float(), self.num_groups, weight, bias, self.eps).to(x.dtype)


class ClvpConditioningEncoder(ClvpPreTrainedModel):
    """Log-mels and text tokens to the decoder's prefix embeddings."""

    config_class = ClvpConfig
    checkpoint_prefixes = ("conditioning_encoder.",)
    input_embeddings = "text_token_embedding"
    config: ClvpConfig

    def __init__(self, config: ClvpConfig) -> None:
        super().__init__(config)
        decoder = config.decoder_config
        width = decoder.hidden_size
        self.text_token_embedding = nn.Embedding(config.text_config.vocab_size, width)
        self.text_position_embedding = nn.Embedding(decoder.max_text_tokens, width)
        self.mel_conv = nn.Conv1d(decoder.feature_size, width, kernel_size=1)
        blocks = range(decoder.num_mel_attn_blocks)
        self.group_norms = nn.ModuleList(Float32GroupNorm(groupnorm_groups(width), width) for _ in blocks)
        self.mel_attn_blocks = nn.ModuleList(ClvpSelfAttention(decoder) for _ in blocks)
        initialize(self, 0.02 * config.initializer_factor)
        nn.init.normal_(self.mel_conv.weight, std=config.initializer_factor)

    def _latents(self, mel_B8T: Tensor) -> Tensor:
        x_BDT = self.mel_conv(mel_B8T.to(self.device, self.dtype))
        for norm, block in zip(self.group_norms, self.mel_attn_blocks, strict=True):
            x_BDT = x_BDT + self._run(_attend_over_frames, norm, block, x_BDT)
        return x_BDT[:, :, 0]

    def encode_clip(self, mel_8T: Tensor) -> Tensor:
        """Conditioning latent [D] of one clip's log-mels [bands, T], computed alone.

        No other clip takes part in any kernel, so that a voice's latent is the same bits in every batch.
        """
        bands = self.config.decoder_config.feature_size
        if mel_8T.dim() != 2 or mel_8T.shape[0] != bands or not mel_8T.shape[1]:
            raise ValueError(f"a clip's log-mels must be [{bands}, frames], not {list(mel_8T.shape)}")
        return self._latents(mel_8T[None])[0]

    def average_clips(self, mels: Sequence[Tensor]) -> Tensor:
        """Conditioning latent [D] of one voice: the mean of that of its clips, [bands, T] of any length."""
        if not len(mels):
            raise ValueError("a voice needs at least one clip")
        return torch.stack([self.encode_clip(mel) for mel in mels]).mean(dim=0)

    def build_prefix(
        self, latent_D: Tensor, text: Tensor, stops: int = PROMPT_TOKENS_AROUND_TEXT - 1
    ) -> Tensor:
        """Prefix [N + 2 + stops, D] of one generation: latent, start token, text, stop tokens.

        `text` is token ids [N] or token embeddings [N, D], without padding. Raises ValueError naming N and
        its limit, the text positions less start and stop tokens.
        """
        text = text.to(self.device)
        text_ND = self.text_token_embedding(text) if text.dim() == 1 else text.to(self.dtype)
        text_config = self.config.text_config
        around = torch.tensor([text_config.bos_token_id, text_config.eos_token_id], device=self.device)
        start_D, stop_D = self.text_token_embedding(around)
        tokens = torch.cat((start_D[None], text_ND, stop_D.expand(stops, -1)))
        if len(text_ND) > (limit := self.config.decoder_config.max_text_tokens - 1 - stops):
            raise ValueError(f"the text has {len(text_ND)} tokens; the model takes at most {limit}")
        positions = self.text_position_embedding.weight[: len(tokens)]
        return torch.cat((latent_D[None].to(tokens), tokens + positions))

    def forward(
        self,
        input_features: InputFeatures,
        input_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        attention_mask: Tensor | None = None,
    ) -> Tensor:
        """Prefix embeddings [B, N + 3, D] with one stop token after each text.

        `input_features` are log-mels [B, bands, T], or a list with the clips of each row. Text is given as
        ids [B, N] or token embeddings [B, N, D]; `attention_mask` [B, N] tells tokens from padding. One text
        with many audios, or one audio with many texts, is repeated. Row i holds n + 3 embeddings for its n
        tokens, then zeros.

        Raises ValueError for two texts or none, unequal numbers of texts and audios, and a text too long.
        """
        texts = without_padding(exactly_one(input_ids, inputs_embeds), attention_mask)
        texts, latents = pair_up(texts, self.encode_rows(input_features))
        rows = zip(texts, latents, strict=True)
        prefixes = [self.build_prefix(latent, text, stops=1) for text, latent in rows]
        return nn.utils.rnn.pad_sequence(prefixes, batch_first=True)

    def encode_rows(self, input_features: InputFeatures) -> list[Tensor]:
        """Latent [D] of each row. Training computes equal clips at once, inference each clip alone."""
        if isinstance(input_features, Tensor) and input_features.dim() == 3 and self.training:
            return list(self._latents(input_features))
        return [self.average_clips(clips_of(row)) for row in input_features]


def clips_of(row: Clips) -> list[Tensor]:
    """A row's clips, each [bands, T]; ValueError when there is none."""
    clips = [row] if isinstance(row, Tensor) and row.dim() == 2 else list(row)
    if not clips or any(clip.dim() != 2 for clip in clips):
        shapes = [list(clip.shape) for clip in clips]
        raise ValueError(f"a row of input_features must hold one or more clips [bands, frames], got {shapes}")
    return clips


def pair_up(texts: list[Tensor], audios: list[Audio]) -> tuple[list[Tensor], list[Audio]]:
    """Equally many texts and audios: a single one on either side is repeated, else the numbers must agree."""
    if len(texts) == 1:
        texts = texts * len(audios)
    if len(audios) == 1:
        audios = audios * len(texts)
    if len(texts) != len(audios):
        raise ValueError(f"the numbers of texts and audios must agree; got {len(texts)} and {len(audios)}")
    return texts, audios


def _attend_over_frames(norm: nn.Module, block: nn.Module, x_BDT: Tensor) -> Tensor:
    attended_BTD, _, _ = block(norm(x_BDT).transpose(1, 2))
    return attended_BTD.transpose(1, 2)
