"""Sizes of the small family: what a demonstration voice in a domain needs, and a laptop's core trains."""

from clvp.config import ClvpConfig, ClvpDecoderConfig, ClvpEncoderConfig

NUM_CODES = 2048
LONGEST = 104  # codes of a sentence: 4.8 seconds


def small_config(silence: int = 0) -> ClvpConfig:
    """About 10 million weights. `silence` is the code of a pause, by which candidates are padded."""
    encoder = {
        "hidden_size": 192,
        "intermediate_size": 384,
        "projection_dim": 192,
        "num_hidden_layers": 4,
        "num_attention_heads": 3,
    }
    return ClvpConfig(
        ClvpEncoderConfig.from_dict(encoder, num_hidden_layers=2),
        ClvpEncoderConfig.from_dict(encoder, vocab_size=NUM_CODES),
        ClvpDecoderConfig(
            vocab_size=NUM_CODES + 2,
            max_position_embeddings=136,
            max_text_tokens=96,
            hidden_size=256,
            num_hidden_layers=6,
            num_attention_heads=4,
            num_mel_attn_blocks=2,
            resid_pdrop=0.05,
            embd_pdrop=0.05,
            attention_dropout=0.0,
            bos_token_id=NUM_CODES,
            eos_token_id=NUM_CODES + 1,
            decoder_fixing_codes=(silence,) * 4,
        ),
        projection_dim=192,
        scoring_length=LONGEST,
    )
