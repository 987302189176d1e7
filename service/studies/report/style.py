"""The page's style sheet: legible in light and dark, on screens of any width."""

from __future__ import annotations

from typing import Final

STYLE: Final = """
:root { color-scheme: light dark; --page: #fafaf8; --card: #fff; --ink: #1c1f1d; --soft: #59625d; --line: #dcdfda;
  --bad: #b42318;
  --c0: #1d4ed8; --c1: #b45309; --c2: #15803d; --c3: #be185d; --c4: #6d28d9; --c5: #0e7490; --c6: #854d0e;
  --c7: #4b5563; }
@media (prefers-color-scheme: dark) { :root { --page: #131614; --card: #1b1f1c; --ink: #e8ebe8; --soft: #a3ada6;
  --line: #333a35;
  --bad: #fca5a1; --c0: #8ab4ff; --c1: #fbb36b; --c2: #7ddf9a; --c3: #f9a8d4; --c4: #c4b5fd; --c5: #7dd3fc;
  --c6: #fde68a; --c7: #d1d5db; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 76rem; padding: 1.5rem; background: var(--page); color: var(--ink);
  font: 16px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.6rem; margin: 0; overflow-wrap: anywhere; } h2 { font-size: 1.15rem; margin: 2rem 0 .6rem;
  overflow-wrap: anywhere; }
p { max-width: 75ch; } .soft, figcaption, th { color: var(--soft); }
.wide { overflow-x: auto; } table { border-collapse: collapse; width: 100%; background: var(--card);
  border: 1px solid var(--line); }
th, td { padding: .45rem .8rem; border-bottom: 1px solid var(--line); text-align: right;
  font-variant-numeric: tabular-nums; white-space: nowrap; }
th { font-size: .85rem; }
th:first-child { min-width: 9rem; } th:first-child, td:first-child, .words td { text-align: left; white-space: normal;
  overflow-wrap: anywhere; }
.words th { text-align: left; } tr.best td { font-weight: 700; } td.trouble { color: var(--bad); }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 26rem), 36rem)); gap: 1rem;
  margin-top: 1rem; }
figure { margin: 0; padding: .8rem; background: var(--card); border: 1px solid var(--line); min-width: 0; }
figure > svg { display: block; width: 100%; height: auto; margin-top: .4rem; }
.legend { list-style: none; display: flex; flex-wrap: wrap; gap: .1rem 1rem; margin: .4rem 0 0; padding: 0;
  font-size: .85rem; }
.sample { margin-right: .35rem; vertical-align: middle; }
.grid { stroke: var(--line); } .tick, .label { fill: var(--soft); font-size: 12px; }
.series path { fill: none; stroke: currentColor; stroke-width: 1.6; stroke-linejoin: round; }
  .series circle { fill: currentColor; }
.series.best path { stroke-width: 2.8; } .series path.bars { stroke-width: 1; opacity: .5; stroke-dasharray: none; }
.c0 { color: var(--c0); } .c1 { color: var(--c1); } .c2 { color: var(--c2); } .c3 { color: var(--c3); }
.c4 { color: var(--c4); } .c5 { color: var(--c5); } .c6 { color: var(--c6); } .c7 { color: var(--c7); }
pre { overflow: auto; padding: .75rem; background: var(--card); border: 1px solid var(--line); font-size: .85rem; }
summary { cursor: pointer; }
"""
