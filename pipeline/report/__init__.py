"""A finished or running output as figures, plots and one HTML page. Needs neither Ray nor torch.

Reading order: `build`, `stored`, `totals`; then `best_of_n`, `pace`, `speed`, `flags`, `histogram`; `html`
with `plots`, `bars`, `charts`, `text` and `style` makes the page.
"""
