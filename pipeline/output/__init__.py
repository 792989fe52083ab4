"""What a run leaves: its folder, who may write to it, and how finished blocks become few files."""
