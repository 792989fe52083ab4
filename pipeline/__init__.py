"""Dataset-scale CLVP synthesis as a stream of Ray Data stages: manifest in, ranked candidates out."""
