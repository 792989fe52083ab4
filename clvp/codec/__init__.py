"""The small family's own codec: log-mels to few codes, and codes with a voice to sound."""

from clvp.codec.networks import CodecConfig, CodecDecoder, CodecEncoder, voice_of
from clvp.codec.speech import CODEC_CONFIG_FILE, SpeechCodec

__all__ = ["CODEC_CONFIG_FILE", "CodecConfig", "CodecDecoder", "CodecEncoder", "SpeechCodec", "voice_of"]
