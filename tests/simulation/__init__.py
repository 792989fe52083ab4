"""The pipeline at scale without models: a million rows through the real graph, with stand-ins for the stages
that need a GPU, and what each of the driver's own steps takes."""
