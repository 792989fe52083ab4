"""Kills runs at drawn moments until they are done, and compares what is left with an undisturbed run.

    python -m tests.soak --rows 300 --kills 10 --seed 0
    python -m tests.soak --rows 300 --kills 10 --seed 0 --s3

In order: `processes` finds what belongs to a run, `workload` makes a manifest and the command, `output` reads
back and checks, `moments` draws when to kill what, and `soak` does it.
"""
