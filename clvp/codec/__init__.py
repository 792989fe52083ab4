"""The small family's own codec: log-mels to few codes, and codes with a voice to sound."""

from clvp.codec.networks import CodecConfig, CodecDecoder, CodecEncoder, voice_of
from clvp.codec.speech import SpeechCodec

__all__ = ["CodecConfig", "CodecDecoder", "CodecEncoder", "SpeechCodec", "voice_of"]
