"""The page's style sheet: legible in light and dark, on screens of any width."""

from __future__ import annotations

from typing import Final

STYLE: Final = """
:root { color-scheme: light dark; --page: #fafaf8; --card: #fff; --ink: #1c1f1d; --soft: #59625d; --line: #dcdfda;
  --bad: #b42318; }
@media (prefers-color-scheme: dark) { :root { --page: #131614; --card: #1b1f1c; --ink: #e8ebe8; --soft: #a3ada6;
  --line: #333a35;
  --bad: #fca5a1; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 76rem; padding: 1.5rem; background: var(--page); color: var(--ink);
  font: 16px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.6rem; margin: 0; overflow-wrap: anywhere; } h2 { font-size: 1.15rem; margin: 2rem 0 .6rem;
  overflow-wrap: anywhere; }
p { max-width: 75ch; } .soft, th { color: var(--soft); }
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
pre { overflow: auto; padding: .75rem; background: var(--card); border: 1px solid var(--line); font-size: .85rem; }
summary { cursor: pointer; } figure details { margin-top: .6rem; font-size: .85rem; } [hidden] { display: none !important; }
"""
