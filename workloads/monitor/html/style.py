"""How the pages look, light and dark: one style for the browser view and the report."""

CSS = """
:root { color-scheme: light dark; --ink:#1d2430; --soft:#5d6878; --paper:#fff; --card:#f5f7fa;
  --rule:#d8dee7; --main:#1f5fa8; --raw:#a9c1de; --band:#1f5fa81f; --held:#c8553d; --good:#1d7f4d;
  --warn:#8a5a00; --warn-paper:#fff4dc; --bad:#b3261e; --bad-paper:#fdeceb; }
@media (prefers-color-scheme: dark) { :root { --ink:#e4e8ee; --soft:#9aa5b5; --paper:#14181f;
  --card:#1d232c; --rule:#333c49; --main:#78b0f0; --raw:#3d5877; --band:#78b0f02b; --held:#f0937c;
  --good:#64c795; --warn:#f0c36a; --warn-paper:#33290f; --bad:#ff8a80; --bad-paper:#3a1c1a; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1180px; padding: 20px 24px 60px; background: var(--paper);
  color: var(--ink); font: 15px/1.5 system-ui, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
h1 { font-size: 22px; margin: 0; overflow-wrap: anywhere; }
h2 { font-size: 17px; margin: 34px 0 10px; }
h3 { font-size: 14px; margin: 0 0 4px; color: var(--soft); font-weight: 600; }
a { color: var(--main); }
.aside, .soft { color: var(--soft); }
.phase { display: inline-block; padding: 1px 10px; border-radius: 10px; background: var(--card);
  border: 1px solid var(--rule); font-weight: 600; }
.phase.training, .phase.finished { color: var(--good); }
.phase.failed, .phase.lost { color: var(--bad); } .phase.stopped { color: var(--warn); }
progress { width: 100%; height: 10px; margin: 10px 0 2px; accent-color: var(--good); }
.tiles { display: grid; grid-template-columns: repeat(auto-fill, minmax(165px, 1fr)); gap: 10px;
  margin: 14px 0; }
.tile { background: var(--card); border-radius: 8px; padding: 8px 12px; }
.tile b { display: block; font-size: 17px; font-variant-numeric: tabular-nums; font-weight: 600;
  overflow-wrap: anywhere; }
.warning { border-left: 4px solid var(--warn); background: var(--warn-paper); padding: 7px 12px;
  margin: 6px 0; border-radius: 4px; overflow-wrap: anywhere; }
.warning.bad { border-color: var(--bad); background: var(--bad-paper); font-weight: 600; }
.charts { display: grid; grid-template-columns: repeat(auto-fill, minmax(340px, 1fr)); gap: 18px; }
.charts figure, figure { margin: 0; } figure.large { grid-column: 1 / -1; }
.chart { width: 100%; height: auto; display: block; }
.grid { stroke: var(--rule); stroke-width: 1; } .base { stroke: var(--soft); stroke-width: 1; }
.axis { fill: var(--soft); font-size: 11px; } .band { fill: var(--band); }
.raw, .main, .held { fill: none; stroke-linejoin: round; }
.raw { stroke: var(--raw); stroke-width: 1.2; } .main { stroke: var(--main); stroke-width: 2.2; }
.held { stroke: var(--held); stroke-width: 1.6; } .mark { fill: var(--held); }
.key::before { content: "\\2013\\00a0"; font-weight: 700; } .key { margin-right: 14px; }
.key.one { color: var(--main); } .key.two { color: var(--held); }
.wide { overflow-x: auto; }
table { border-collapse: collapse; min-width: 50%; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: 4px 14px 4px 0; border-bottom: 1px solid var(--rule);
  vertical-align: top; overflow-wrap: break-word; }
th { color: var(--soft); font-weight: 600; white-space: nowrap; }
td.n, th.n { text-align: right; } td.up { color: var(--good); } td.down { color: var(--bad); }
tr.bad td { color: var(--bad); font-weight: 600; } tr.dim td { color: var(--soft); }
code, pre { font-family: ui-monospace, "DejaVu Sans Mono", monospace; font-size: 13px; }
pre { white-space: pre-wrap; background: var(--card); padding: 8px 12px; border-radius: 6px;
  margin: 4px 0; overflow-wrap: anywhere; }
td code { overflow-wrap: anywhere; } td:first-child { white-space: nowrap; }
.picture { max-width: 100%; image-rendering: pixelated; border-radius: 4px; }
.asked { display: flex; gap: 16px; align-items: flex-start; } .asked .picture { width: 220px; }
details { margin: 8px 0; } details h3 { margin-top: 18px; }
summary { cursor: pointer; color: var(--soft); }
.columns { display: grid; gap: 0 40px;
  grid-template-columns: repeat(auto-fit, minmax(420px, 1fr)); }
footer { margin-top: 40px; color: var(--soft); font-size: 13px; }
@media print { body { max-width: none; } section { break-inside: avoid-page; } }
"""
