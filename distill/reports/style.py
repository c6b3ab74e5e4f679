"""The colours and the style sheet of every page."""

from __future__ import annotations

# name: light, dark; also those of charts, as CSS variables
COLOURS = {
    "paper": ("#ffffff", "#111418"),
    "raised": ("#f6f7f9", "#191e24"),
    "ink": ("#1b1f24", "#e6e9ed"),
    "muted": ("#59636e", "#9ca6b1"),
    "line": ("#dde1e6", "#2d343d"),
    "accent": ("#2558c4", "#7ea9ff"),
    "bad": ("#b3261e", "#ff9a91"),
    "bad-paper": ("#fdf1f0", "#2b1715"),
    "note": ("#8a5a00", "#e9b85c"),
    "note-paper": ("#fdf6e7", "#262013"),
    "c1": ("#2558c4", "#7ea9ff"),
    "c2": ("#c2500f", "#fb9a5b"),
    "c3": ("#0f766e", "#39cfbd"),
    "c4": ("#8b35d6", "#c99bff"),
    "c5": ("#946200", "#e5c04b"),
    "c6": ("#b81d62", "#f584b6"),
    "c7": ("#3d7a1e", "#8fd166"),
    "c8": ("#59636e", "#9ca6b1"),
}
SERIES = [f"var(--c{number})" for number in range(1, 9)]


def _variables(side: int) -> str:
    return ";".join(f"--{name}:{colours[side]}" for name, colours in COLOURS.items())


STYLE = (
    f":root{{color-scheme:light dark;{_variables(0)}}}"
    f"@media screen and (prefers-color-scheme:dark){{:root{{{_variables(1)}}}}}"
    + """
*{box-sizing:border-box}
html{-webkit-text-size-adjust:100%;scroll-behavior:smooth}
body{margin:0;background:var(--paper);color:var(--ink);overflow-wrap:anywhere;
 font:16px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",Arial,sans-serif}
main{max-width:68rem;margin:0 auto;padding:clamp(1.5rem,5vw,4rem) clamp(1rem,4vw,2.5rem) 5rem}
.kind{margin:0 0 .4rem;color:var(--muted);font-size:.82rem;font-weight:600;letter-spacing:.04em}
h1{font-size:clamp(1.7rem,4.5vw,2.4rem);line-height:1.15;letter-spacing:-.02em;margin:0 0 .8rem}
h2{font-size:1.35rem;line-height:1.25;letter-spacing:-.01em;margin:0 0 .6rem;scroll-margin-top:1rem}
h3{font-size:1rem;line-height:1.35;margin:2.2rem 0 .5rem}
section{margin-top:3rem;padding-top:2rem;border-top:1px solid var(--line)}
p{max-width:46rem;margin:.5rem 0}
.lede{font-size:1.08rem}
.quiet,figcaption span{color:var(--muted);font-size:.9rem}
a{color:var(--accent);text-decoration-thickness:1px;text-underline-offset:.18em}
:focus-visible{outline:2px solid var(--accent);outline-offset:2px;border-radius:2px}
code{font:.88em ui-monospace,SFMono-Regular,Menlo,Consolas,monospace}
nav ul{display:flex;flex-wrap:wrap;gap:.35rem 1.4rem;list-style:none;margin:2rem 0 0;padding:0;
 font-size:.92rem}
nav a{text-decoration:none}nav a:hover{text-decoration:underline}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(8.75rem,1fr));gap:1.4rem 1.6rem;
 margin:2rem 0 0}
.tiles div{display:flex;flex-direction:column-reverse;justify-content:flex-end;
 border-top:2px solid var(--ink);padding-top:.55rem}
.tiles dd{margin:0;font-size:1.55rem;font-weight:600;line-height:1.2;letter-spacing:-.015em;
 font-variant-numeric:tabular-nums}
.tiles dt{color:var(--muted);font-size:.85rem;line-height:1.35;margin-top:.15rem}
.scroll{overflow-x:auto;margin:.7rem 0}
table{border-collapse:collapse;width:100%;font-size:.9rem;line-height:1.4;font-variant-numeric:tabular-nums}
th,td{text-align:right;vertical-align:top;padding:.42rem .5rem;border-bottom:1px solid var(--line);
 white-space:nowrap;overflow-wrap:normal}
th:first-child,td:first-child{padding-left:0}th:last-child,td:last-child{padding-right:0}
.words{text-align:left;white-space:normal;overflow-wrap:break-word;max-width:min(34rem,70vw)}
td .quiet{white-space:nowrap}
thead th{color:var(--muted);font-weight:500;font-size:.82rem;vertical-align:bottom;border-color:var(--muted)}
tbody th{font-weight:500}
.long{display:block;min-width:15rem;overflow-wrap:anywhere}
.bar{display:inline-block;width:5.5rem;height:.5rem;border-radius:2px;background:var(--line);vertical-align:.08em}
.bar i{display:block;height:100%;border-radius:2px;background:var(--accent)}
.interval{display:inline-block;position:relative;width:9rem;height:.9rem;vertical-align:-.1em;
 background:linear-gradient(var(--line),var(--line)) center/100% 1px no-repeat}
.interval i{position:absolute;top:.36rem;height:.18rem;min-width:2px;background:var(--accent);opacity:.55}
.interval b{position:absolute;top:.15rem;width:.6rem;height:.6rem;margin-left:-.3rem;border-radius:50%;
 background:var(--accent)}
.grid{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,19rem),1fr));gap:1.5rem 2.5rem;
 align-items:start}
figure{margin:1.4rem 0 0;min-width:0}
figcaption{margin-bottom:.5rem;line-height:1.4}figcaption strong{display:block;font-size:.95rem}
figure svg{display:block;overflow:visible;width:100%;max-width:25rem;height:auto}
figure.wide svg{width:auto;max-width:none}
svg text{font-family:inherit}
.notice{margin:1.4rem 0 0;padding:.8rem 1rem;border-left:3px solid var(--note);background:var(--note-paper);
 max-width:52rem}
.notice.bad{border-color:var(--bad);background:var(--bad-paper)}
.notice strong{color:var(--note)}.notice.bad strong{color:var(--bad)}
.notice ul{margin:.3rem 0 0;padding-left:1.1rem}
details{margin:.8rem 0}summary{cursor:pointer;color:var(--accent);font-size:.92rem;padding:.2rem 0}
@media (max-width:34rem){.tiles dd{font-size:1.3rem}.interval{width:6.5rem}.bar{width:3.5rem}
 section{margin-top:2.4rem;padding-top:1.5rem}}
@media print{th,td{white-space:normal}.long{min-width:0}figure.wide svg{max-width:100%}
 body{font-size:10.5pt}main{max-width:none;padding:0}nav{display:none}section{break-before:auto}
 .scroll{overflow:visible}figure,tr,.notice,.tiles div{break-inside:avoid}h2,h3{break-after:avoid}
 .bar,.bar i,.interval i,.interval b,.notice{print-color-adjust:exact;-webkit-print-color-adjust:exact}}
"""
)
