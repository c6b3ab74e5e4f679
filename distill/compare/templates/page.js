// The parts of a page that move: tables that sort, and the bubble charts of `comparison`.
"use strict";

for (const table of document.querySelectorAll("table.sorts")) {
  const headings = [...table.tHead.rows[0].cells];
  headings.forEach((heading, column) =>
    heading.firstElementChild.addEventListener("click", () => {
      const before = heading.getAttribute("aria-sort");
      const falling = before ? before === "ascending" : !heading.classList.contains("words");
      headings.forEach((other) => other.removeAttribute("aria-sort"));
      heading.setAttribute("aria-sort", falling ? "descending" : "ascending");
      const value = (row) => row.cells[column].dataset.value;
      const compare = (a, b) => (isNaN(a) || isNaN(b) ? a.localeCompare(b) : a - b);
      const rows = [...table.tBodies[0].rows].sort((one, other) => {
        const [a, b] = [value(one), value(other)];
        if (!a || !b) return !a - !b; // what was not measured is last, whichever way
        return falling ? compare(b, a) : compare(a, b);
      });
      table.tBodies[0].append(...rows);
    }),
  );
}

if (window.comparison) {
  const { template, config, fields, heads } = window.comparison;
  const select = document.querySelector("#head");
  const narrow = matchMedia("(max-width: 48rem)");
  const tip = document.body.appendChild(document.createElement("dl"));
  tip.className = "tip";
  tip.hidden = true;

  const fill = (part, values) => {
    if (typeof part === "string") return part[0] === "$" ? values[part.slice(1)] : part;
    if (Array.isArray(part)) return part.map((item) => fill(item, values));
    if (typeof part !== "object" || !part) return part;
    return Object.fromEntries(Object.entries(part).map(([key, item]) => [key, fill(item, values)]));
  };

  const element = (name, text) =>
    Object.assign(document.createElement(name), { textContent: text });

  const show = (handler, event, item, value) => {
    const row = value && document.querySelector(`tr[data-row="${item.datum.row}"]`);
    tip.hidden = !row;
    if (!row) return;
    const titles = [...row.closest("table").tHead.rows[0].cells];
    const shown = [...row.cells].filter((cell) => cell.textContent);
    tip.replaceChildren(
      ...shown.flatMap((cell) => [
        element("dt", titles[cell.cellIndex].textContent),
        element("dd", cell.textContent),
      ]),
    );
    const { offsetWidth: width, offsetHeight: height } = tip;
    const left = event.clientX + 16 + width > innerWidth ? event.clientX - width - 16 : event.clientX + 16;
    tip.style.left = `${Math.max(8, left)}px`;
    tip.style.top = `${Math.max(8, Math.min(event.clientY + 12, innerHeight - height - 8))}px`;
  };

  const draw = async () => {
    const charts = heads[select ? select.value : 0];
    for (const place of document.querySelectorAll(".chart")) {
      const sizes = charts[place.id];
      place.parentElement.hidden = !sizes;
      if (!sizes) continue;
      const values = sizes[narrow.matches ? "narrow" : "wide"];
      const points = values.points.map((point) =>
        Object.fromEntries(fields.map((field, place) => [field, point[place]])),
      );
      const spec = { ...fill(template, { ...values, points }), config };
      const options = { mode: "vega-lite", ast: true, actions: false, renderer: "svg", defaultStyle: false };
      const { view } = await vegaEmbed(place, spec, { ...options, tooltip: show });
      // a finger does not hover
      view.addEventListener("click", (event, item) => show(null, event, item, item?.datum?.row !== undefined));
    }
    document.body.dataset.drawn = "yes";
  };

  if (select) select.addEventListener("change", draw);
  narrow.addEventListener("change", draw);
  draw();
}
