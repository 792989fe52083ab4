"""The stages at work on a Ray cluster: the stream of blocks, its workers, and what is done when they die."""
