"""The style sheet of the HTML report: readable on a phone, in the dark, and on paper."""

from __future__ import annotations

#: Colours that a picture may use. Inside the page each becomes the colour of that name, which is
#: another one in the dark. Blue, purple and orange are told apart with every kind of colour
#: blindness (after Okabe and Ito, darkened until they stand out on white).
COLOURS: dict[str, str] = {
    "ink": "#1d232b",
    "soft": "#5b6673",
    "line": "#e3e1dc",
    "card": "#ffffff",
    "good": "#0b7a5b",
    "bad": "#a63d2f",
    "blue": "#0072b2",
    "purple": "#a8578f",
    "orange": "#c96f00",
    "grey": "#607080",
}

STYLE = """\
:root {
  color-scheme: light dark;
  --paper: #fbfaf8; --card: #ffffff; --ink: #1d232b; --soft: #5b6673; --line: #e3e1dc;
  --good: #0b7a5b; --good-back: #e7f5ef; --bad: #a63d2f; --doubt: #8a6414; --doubt-back: #fdf5df;
  --blue: #0072b2; --purple: #a8578f; --orange: #c96f00; --grey: #607080;
}
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #14181d; --card: #1c2229; --ink: #e8eaed; --soft: #9aa5b1; --line: #303840;
    --good: #4fc79f; --good-back: #15322a; --bad: #f08a78; --doubt: #e3bd62;
    --doubt-back: #33290f; --blue: #56b4e9; --purple: #dd9bc8; --orange: #f2a541; --grey: #a9b4bf;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0; background: var(--paper); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", sans-serif;
}
header, main, footer { max-width: 84rem; margin: 0 auto; padding: 0 1.5rem; }
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
.pictures { display: grid; grid-template-columns: repeat(auto-fit, minmax(24rem, 1fr));
  gap: 1.4rem 1.8rem; margin: .4rem 0 1.2rem; align-items: start; }
figure { margin: 0; min-width: 0; }
figure.wide { grid-column: 1 / -1; }
figure svg { width: 100%; max-width: 44rem; height: auto; display: block; }
figure.wide svg { max-width: none; }
figure svg text { font-family: inherit !important; }
figcaption { font-size: .82rem; color: var(--soft); padding: .3rem .4rem 0; max-width: 44rem; }
a { color: var(--blue); }
a:focus-visible, summary:focus-visible { outline: 2px solid var(--blue); outline-offset: 2px; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: .8rem; margin: 0 0 .8rem; }
caption { caption-side: bottom; text-align: left; color: var(--soft); font-size: .82rem;
  padding-top: .5rem; }
th, td { padding: .42rem .4rem; border-bottom: 1px solid var(--line); vertical-align: top; }
th { text-align: left; color: var(--soft); font-weight: 600; vertical-align: bottom; }
td { overflow-wrap: break-word; }
td:first-child, td.number:first-child + td { font-weight: 600; }
td:first-child { white-space: nowrap; }
td.number:first-child + td { min-width: 9rem; }
td.number:first-child { color: var(--soft); }
table + table, .scroll + .scroll { margin-top: 1.2rem; }
.number { text-align: right; font-variant-numeric: tabular-nums; }
td.number { white-space: nowrap; }
tr.good td { background: var(--good-back); font-weight: 600; }
tr.bad td { color: var(--bad); }
tr.doubt td { color: var(--doubt); }
tr.quiet td { color: var(--soft); }
footer { color: var(--soft); font-size: .82rem; padding-bottom: 2.5rem; }
@media print { body { background: #fff; } section, details, aside { break-inside: avoid; } }
@media (max-width: 40rem) {
  header, main, footer { padding: 0 .8rem; }
  header { padding-top: 1.4rem; }
  h1 { font-size: 1.4rem; overflow-wrap: anywhere; }
  section, details, aside { padding: .9rem; }
  .pictures { grid-template-columns: minmax(0, 1fr); }
  .facts { grid-template-columns: repeat(2, minmax(0, 1fr)); gap: .6rem; }
  .facts .value { font-size: 1.1rem; }
}
"""
