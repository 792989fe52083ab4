"""From ranked speech tokens to 24 kHz waveforms: Tortoise's diffusion decoder and its vocoder."""
