"""Reference audio to log-mels, and with a text to the inputs of a model."""
