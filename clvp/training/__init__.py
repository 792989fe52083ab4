"""How a small family learns to speak: its codec, its decoder, its CLVP pair.

Reading order: `corpus` (what is trained on), `loop` (how), then `codec`, `decoder`, `pair` (what each part is
told it did wrong), `parts`, `export`. `jobs.train` runs all of it.
"""
