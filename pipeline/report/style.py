"""The style sheet of the report: one column on a phone, two on a wide screen, light or dark."""

STYLE = """
:root { color-scheme: light dark;
  --page: #f6f7f9; --card: #fff; --ink: #1b2330; --soft: #5d6878; --line: #dfe3e9; --grid: #e9ecf1;
  --first: #2a6fdb; --second: #d9730d; --third: #1a936f; --bad: #c2334d; }
@media (prefers-color-scheme: dark) { :root {
  --page: #11151b; --card: #1a2029; --ink: #e6eaf0; --soft: #9aa6b6; --line: #2d3643; --grid: #27303b;
  --first: #6aa3ff; --second: #f0a35c; --third: #4fc79f; --bad: #f0788d; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink); -webkit-text-size-adjust: 100%;
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", "DejaVu Sans", sans-serif; }
main { max-width: 76rem; margin: 0 auto; padding: 2rem 1.25rem 4rem; }
header h1 { font-size: 1.65rem; line-height: 1.2; margin: 0 0 .35rem; letter-spacing: -.01em; }
header p, .lead { margin: 0; color: var(--soft); overflow-wrap: anywhere; }
h2 { font-size: 1.15rem; margin: 2.6rem 0 .25rem; letter-spacing: -.005em; }
h3 { font-size: .95rem; margin: 0; font-weight: 600; }
.lead { margin-bottom: .9rem; max-width: 46rem; }
.card { margin: 0; background: var(--card); border: 1px solid var(--line); border-radius: 10px;
  padding: .95rem 1.1rem; min-width: 0; }
.grid2 { display: grid; gap: 1rem; grid-template-columns: repeat(auto-fit, minmax(min(100%, 29rem), 1fr)); }
.card + .card, .grid2 + .card, .card + .grid2, .grid2 + .grid2 { margin-top: 1rem; }
.grid2 > .card { margin-top: 0; }
.facts { display: grid; gap: .75rem; margin: 1.4rem 0 0; padding: 0;
  grid-template-columns: repeat(auto-fit, minmax(9.25rem, 1fr)); }
.facts div { background: var(--card); border: 1px solid var(--line); border-radius: 10px;
  padding: .7rem .9rem; }
.facts dt { color: var(--soft); font-size: .8rem; }
.facts dd { margin: 0; font-size: 1.3rem; font-weight: 600; line-height: 1.3;
  font-variant-numeric: tabular-nums; }
.facts small { display: block; font-size: .78rem; font-weight: 400; color: var(--soft); }
figcaption p { margin: .15rem 0 0; color: var(--soft); font-size: .84rem; }
.over { display: flex; flex-wrap: wrap; justify-content: space-between; gap: .1rem 1rem;
  margin: .7rem 0 .45rem;
  font-size: .78rem; color: var(--soft); }
.legend { display: flex; flex-wrap: wrap; gap: .1rem .9rem; }
.key { display: inline-block; width: .8rem; height: .8rem; margin-right: .35rem; border-radius: 2px;
  vertical-align: -.08rem; background: currentColor; }
.key.line { height: 0; border-top: 2.5px solid currentColor; border-radius: 0; vertical-align: .22rem;
  width: 1.2rem;
  background: none; }
.key.dashed.line { border-top-style: dashed; }
.plot { position: relative; height: 15rem; margin: 0 .6rem 1.5rem 3.4rem; }
.plot svg { position: absolute; inset: 0; width: 100%; height: 100%; overflow: visible; }
.tick { position: absolute; font-size: .75rem; line-height: 1; color: var(--soft); white-space: nowrap;
  font-variant-numeric: tabular-nums; }
.tick.x { top: calc(100% + .45rem); transform: translateX(-50%); }
.tick.y { right: calc(100% + .5rem); transform: translateY(50%); }
.axis.under { text-align: center; font-size: .78rem; color: var(--soft); margin: 0 .6rem 0 3.4rem; }
svg path { vector-effect: non-scaling-stroke; fill: none; }
.grid { stroke: var(--grid); } .base { stroke: var(--soft); stroke-width: 1; }
.first { color: var(--first); } .second { color: var(--second); } .third { color: var(--third); }
.soft { color: var(--soft); }
svg .bars { fill: currentColor; fill-opacity: .22; stroke: currentColor; stroke-width: 1.3;
  stroke-linejoin: round; }
svg .line { stroke: currentColor; stroke-width: 2.2; stroke-linejoin: round; }
svg .dots { stroke: currentColor; stroke-width: 6; stroke-linecap: round; }
svg .dashed { stroke-dasharray: 6 5; } svg .thin { stroke-width: 1.4; }
.cell { fill: var(--first); } .cell:hover { fill: var(--second); }
.hover { fill: var(--ink); opacity: 0; } .hover:hover { opacity: .09; }
.scroll { overflow-x: auto; }
table { width: 100%; border-collapse: collapse; font-size: .86rem; margin-top: .55rem; }
.card > .scroll:first-child table { margin-top: 0; }
th { text-align: left; font-weight: 500; color: var(--soft); font-size: .78rem; vertical-align: bottom; }
th, td { padding: .42rem .7rem .42rem 0; border-bottom: 1px solid var(--line); vertical-align: top; }
tr:last-child > td, tr:last-child > th { border-bottom: 0; }
th:last-child, td:last-child { padding-right: 0; }
td.n, th.n { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
td.w, td.id { overflow-wrap: anywhere; min-width: 9rem; }
td.id b { font-weight: 600; } td.id q, td.w small { color: var(--soft); quotes: none; font-size: .82rem; }
td.id q, td.w small { display: -webkit-box; -webkit-box-orient: vertical; -webkit-line-clamp: 2;
  overflow: hidden; }
td.w small { -webkit-line-clamp: 4; }
bdi { unicode-bidi: isolate; }
.share { display: block; height: .45rem; border-radius: 3px; background: var(--grid); min-width: 5rem;
  margin-top: .4rem; }
.share i { display: block; height: 100%; border-radius: 3px; background: var(--first); min-width: 2px; }
.share.bad i { background: var(--bad); }
.settings td { overflow-wrap: anywhere; } .settings td:first-child { color: var(--soft); width: 40%; }
.settings th { padding-top: 1.1rem; font-weight: 600; color: var(--ink); }
.settings tr:first-child th { padding-top: .2rem; }
footer { margin-top: 3rem; color: var(--soft); font-size: .82rem; }
footer dt { font-weight: 600; } footer dd { margin: 0 0 .5rem; }
@media (max-width: 40rem) {
  main { padding: 1.25rem .8rem 3rem; } .card { padding: .8rem .85rem; }
  .facts { grid-template-columns: 1fr 1fr; } .facts dd { font-size: 1.15rem; }
  .plot { height: 12.5rem; margin-left: 2.9rem; } .axis.under { margin-left: 2.9rem; }
  .tick.minor { display: none; }
  .stack thead { display: none; }
  .stack tr { display: flex; flex-wrap: wrap; gap: .05rem 1rem; padding: .6rem 0;
    border-bottom: 1px solid var(--line); }
  .stack tr:last-child { border-bottom: 0; }
  .stack td { border: 0; padding: 0; } .stack td.id, .stack td.w { flex: 0 0 100%; }
  .stack td.n { text-align: left; } .stack td.n::before { content: attr(data-label) " "; color: var(--soft); }
  .stack td.bar { flex: 1; }
}
@media print { body { background: none; } .card, .facts div { break-inside: avoid; } }
"""
