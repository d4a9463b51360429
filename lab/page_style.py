"""How report.html looks, and the script that sorts its tables."""

# Colours are Okabe & Ito's. What a colour says is said by a form or by words too.
STYLE = """
:root { --ground: #fff; --ink: #1b1b1b; --faint: #d5d5d5; --soft: #f4f4f4; --link: #0b5a94; --student: #0072B2;
  --teacher: #F0B84A; --on-teacher: #1b1b1b; --gone: #A03000; }
@media (prefers-color-scheme: dark) {
  :root { --ground: #16181b; --ink: #e6e6e6; --faint: #44484e; --soft: #212428; --link: #7cc0f0; --student: #56B4E9;
    --teacher: #E69F00; --on-teacher: #101010; --gone: #FF9A66; }
  .picture { filter: brightness(.88); }
}
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 0 16px 48px; max-width: 1120px; background: var(--ground); color: var(--ink);
  font: 16px/1.5 system-ui, "Segoe UI", Helvetica, Arial, sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.6em; line-height: 1.25; margin: 20px 0 12px; }
h2 { font-size: 1.25em; margin: 36px 0 8px; padding-top: 8px; border-top: 1px solid var(--faint); }
h3 { font-size: 1em; margin: 24px 0 6px; }
a { color: var(--link); }
nav { margin: 12px 0; }
nav a { margin-right: 14px; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 2px 16px; margin: 0 0 12px; }
dt { font-weight: 600; }
dd { margin: 0; }
pre { white-space: pre-wrap; background: var(--soft); padding: 8px 12px; font-size: .85em; }
code { font-family: ui-monospace, Consolas, monospace; }
ul { padding-left: 20px; }
summary { cursor: pointer; padding: 4px 0; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .85em; font-variant-numeric: tabular-nums; overflow-wrap: normal; }
th, td { padding: 3px 9px; text-align: right; white-space: nowrap; border-bottom: 1px solid var(--faint); }
thead th { vertical-align: bottom; white-space: normal; min-width: 5.5em; font-weight: 600; }
th:first-child { position: sticky; left: 0; background: var(--ground); text-align: left; }
tbody th { font-weight: 400; max-width: 15em; overflow-wrap: break-word; white-space: normal; }
tbody tr:hover > * { background: var(--soft); }
thead button { font: inherit; font-weight: 600; color: inherit; text-align: inherit; background: none; border: 0;
  padding: 0; cursor: pointer; }
thead button::after { content: "\\a0\\2195"; color: var(--link); }
th[aria-sort=descending] button::after { content: "\\a0\\2193"; }
th[aria-sort=ascending] button::after { content: "\\a0\\2191"; }
.picture { background: #fff; color-scheme: light; }
.picture svg { display: block; }
.bar { margin: 6px 0; font-size: .9em; }
.stack { display: flex; height: 22px; min-width: 8px; }
.stack span { min-width: 0; overflow: hidden; white-space: nowrap; font-size: 12px; line-height: 20px;
  text-align: center; border: 1px solid var(--ground); color: #000; }
.keys span { display: inline-block; color: #000; font-size: .85em; padding: 0 6px; margin: 0 2px 4px 0; }
.g0 { background: #BBBBBB; } .g1 { background: #56B4E9; } .g2 { background: #E69F00; } .g3 { background: #3DBE97; }
.g4 { background: #F0E442; } .g5 { background: #D9A0C0; } .g6 { background: #EAEAEA; }
.s, .t, del { display: inline-block; max-width: 100%; min-width: .6em; min-height: 1.3em; line-height: 1.3;
  white-space: break-spaces; vertical-align: bottom; }
.s { border-bottom: 3px solid var(--student); }
.t { background: var(--teacher); color: var(--on-teacher); border: 2px solid var(--ink); border-radius: 4px;
  padding: 0 3px; font-weight: 700; }
del { color: var(--gone); text-decoration: line-through 2px; margin-right: 2px; }
small { font-size: .75em; }
.legend del { margin-left: 12px; }
.prompt { margin: 20px 0 4px; }
.prompt code { background: var(--soft); padding: 2px 6px; white-space: break-spaces; }
.stage { font-size: .85em; margin-top: 10px; }
.rollout { position: relative; margin-bottom: 8px;
  font: 1.05em/2 ui-monospace, Consolas, "DejaVu Sans Mono", monospace; }
.p { cursor: help; margin-right: 3px; }
.d { display: none; position: absolute; z-index: 2; left: 0; top: 100%; max-width: 100%; padding: 8px 12px;
  background: var(--soft); border: 1px solid var(--ink); border-radius: 4px; font-size: .85em; line-height: 1.45; }
.p:hover > .d, .p:focus > .d { display: block; }
.p:hover > .s, .p:focus > .s, .p:hover > .t, .p:focus > .t { outline: 2px solid var(--link); outline-offset: 1px; }
.p:focus { outline: none; }
.rollout:has(.p:hover) .p:focus:not(:hover) > .d { display: none; }
.list { display: inline-block; white-space: pre-wrap; vertical-align: top; margin: 6px 28px 0 0; }
@media (max-width: 600px) {
  body { padding: 0 10px 32px; font-size: 15px; }
  dl { grid-template-columns: 1fr; }
  dd { margin-bottom: 6px; }
  .list { margin-right: 14px; }
}
@media print {
  :root { --ground: #fff; --ink: #000; --soft: #f4f4f4; --faint: #ccc; --teacher: #F0B84A; --on-teacher: #000;
    --student: #0072B2; --gone: #A03000; }
  body { max-width: none; font-size: 11px; }
  nav, thead button::after { display: none; }
  .wide { overflow: visible; }
  table { font-size: 8px; }
  th, td { padding: 1px 3px; }
  thead th, tbody th { min-width: 0; }
  th:first-child { position: static; }
  .picture svg { max-width: 100%; max-height: 96vh; height: auto; }
  .t, .stack span, .keys span { print-color-adjust: exact; -webkit-print-color-adjust: exact; }
  .bar, .rollout, tr { break-inside: avoid; }
}
"""

# A click on a heading sorts by its column, numbers from the largest, words from the first; a second click turns the
# order round, and a third brings back the order of the methods. What is no number, as "-", stays at the end.
SCRIPT = """
for (const table of document.querySelectorAll("table.sortable")) {
  const body = table.tBodies[0], rows = [...body.rows], headings = [...table.tHead.rows[0].cells];
  const text = (row, column) => row.cells[column].textContent;
  headings.forEach((heading, column) => {
    const numbers = new Map(rows.map(row => [row, parseFloat(text(row, column).replaceAll(",", ""))]));
    const words = column === 0 || rows.every(row => Number.isNaN(numbers.get(row)));
    const button = document.createElement("button");
    button.append(...heading.childNodes);
    heading.append(button);
    button.addEventListener("click", () => {
      const before = heading.getAttribute("aria-sort"), first = words ? "ascending" : "descending";
      const second = words ? "descending" : "ascending";
      const now = before === first ? second : before === second ? null : first;
      headings.forEach(other => other.removeAttribute("aria-sort"));
      if (now) heading.setAttribute("aria-sort", now);
      const sign = now === "ascending" ? 1 : -1;
      const compare = (a, b) => {
        if (words) return sign * text(a, column).localeCompare(text(b, column));
        const [x, y] = [numbers.get(a), numbers.get(b)];
        if (Number.isNaN(x) || Number.isNaN(y)) return Number.isNaN(x) - Number.isNaN(y);
        return sign * (x - y);
      };
      body.append(...(now ? [...rows].sort(compare) : rows));
    });
  });
}
"""
