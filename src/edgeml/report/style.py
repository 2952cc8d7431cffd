"""The style sheet of the HTML report: readable on a phone, in the dark, and on paper."""

from __future__ import annotations

STYLE = """\
:root {
  --paper: #fbfaf8; --card: #ffffff; --ink: #1d232b; --soft: #5b6673; --line: #e3e1dc;
  --good: #0b7a5b; --good-back: #e7f5ef; --bad: #a63d2f; --doubt: #8a6414; --doubt-back: #fdf5df;
}
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #14181d; --card: #1c2229; --ink: #e8eaed; --soft: #9aa5b1; --line: #303840;
    --good: #4fc79f; --good-back: #15322a; --bad: #f08a78; --doubt: #e3bd62;
    --doubt-back: #33290f;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0; background: var(--paper); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", sans-serif;
}
header, main, footer { max-width: 80rem; margin: 0 auto; padding: 0 1.5rem; }
header { padding-top: 2.5rem; }
h1 { font-size: 1.9rem; line-height: 1.2; margin: 0 0 .5rem; letter-spacing: -.015em; }
h2 { font-size: 1.2rem; margin: 0 0 .6rem; letter-spacing: -.005em; }
.lead { font-size: 1.1rem; color: var(--soft); max-width: 60rem; margin: 0 0 1.5rem; }
.facts { display: grid; grid-template-columns: repeat(auto-fit, minmax(10rem, 1fr)); gap: .9rem;
  margin: 0 0 1.5rem; }
.facts div { background: var(--card); border: 1px solid var(--line); border-radius: .6rem;
  padding: .8rem 1rem; }
.facts dt { color: var(--soft); font-size: .78rem; text-transform: uppercase;
  letter-spacing: .06em; }
.facts dd { margin: 0; }
.facts .value { font-size: 1.35rem; overflow-wrap: anywhere;
  font-weight: 650; font-variant-numeric: tabular-nums; }
.facts .good .value { color: var(--good); }
.facts .bad .value { color: var(--bad); }
.facts .doubt .value { color: var(--doubt); }
.facts .note { color: var(--soft); font-size: .82rem; }
section, details, aside { background: var(--card); border: 1px solid var(--line);
  border-radius: .6rem; padding: 1.2rem 1.4rem; margin: 0 0 1.1rem; }
aside { background: var(--doubt-back); }
aside h2 { font-size: 1rem; }
.warnings { margin: 0; padding-left: 1.2rem; }
summary { font-weight: 600; cursor: pointer; }
details[open] summary { margin-bottom: .8rem; }
p { margin: 0 0 .8rem; max-width: 60rem; }
.pictures { display: grid; grid-template-columns: repeat(auto-fill, minmax(20rem, 1fr));
  gap: 1rem; margin: 0 0 .8rem; }
figure { margin: 0; background: #ffffff; color: #1d232b; border-radius: .4rem; padding: .6rem; }
figure svg { width: 100%; height: auto; display: block; }
figcaption { font-size: .82rem; color: #5b6673; padding: .3rem .4rem 0; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: .82rem; margin: 0 0 .8rem; }
caption { caption-side: bottom; text-align: left; color: var(--soft); font-size: .82rem;
  padding-top: .5rem; }
th { text-align: left; color: var(--soft); font-weight: 600; white-space: nowrap; }
th, td { padding: .42rem .45rem; border-bottom: 1px solid var(--line); vertical-align: top; }
td { overflow-wrap: break-word; }
td:first-child { white-space: nowrap; font-weight: 600; }
table + table, .scroll + .scroll { margin-top: 1.2rem; }
.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
tr.good td { background: var(--good-back); font-weight: 600; }
tr.bad td { color: var(--bad); }
tr.doubt td { color: var(--doubt); }
tr.quiet td { color: var(--soft); }
footer { color: var(--soft); font-size: .82rem; padding-bottom: 2.5rem; }
@media print { body { background: #fff; } section, details, aside { break-inside: avoid; } }
@media (max-width: 40rem) { .pictures { grid-template-columns: 1fr; } }
"""
