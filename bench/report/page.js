// Sorts and filters tables, and opens a row's cell by a click. Without it all is there to read.
"use strict";
const UNITS = {ns: 1e-9, "\u00b5s": 1e-6, ms: 1e-3, s: 1, B: 1, kB: 1e3, MB: 1e6, GB: 1e9};
const FEW = 6; // rows that need no filter

function amount(text) { // the first number of a text in its base unit, NaN where there is none
  const found = text.match(/^[\s\u2265]*([-+]?[\d.]+(?:e[-+]?\d+)?)/i);
  const unit = text.match(/(ns|\u00b5s|ms|s|kB|MB|GB|B)$/);
  return found ? Number(found[1]) * (unit ? UNITS[unit[1]] : 1) : NaN;
}

function compare(one, other) {
  const [a, b] = [amount(one), amount(other)];
  if (isNaN(a) !== isNaN(b)) return isNaN(a) ? 1 : -1;
  return isNaN(a) ? one.localeCompare(other) : a - b;
}

function sort(table, column, head) {
  const down = head.getAttribute("aria-sort") === "ascending";
  const rows = [...table.tBodies[0].rows];
  const missing = (text) => text === "" || text === "\u2013";
  rows.sort((p, q) => {
    const [a, b] = [p, q].map((row) => row.cells[column].textContent.trim());
    if (missing(a) || missing(b)) return missing(a) - missing(b);
    return down ? compare(b, a) : compare(a, b);
  });
  for (const th of table.tHead.rows[0].cells) th.removeAttribute("aria-sort");
  head.setAttribute("aria-sort", down ? "descending" : "ascending");
  table.classList.add("sorted");
  table.tBodies[0].append(...rows);
}

function sortable(table) {
  [...table.tHead.rows[0].cells].forEach((head, column) => {
    if (!head.textContent.trim() || head.querySelector("a")) return;
    const button = document.createElement("button");
    button.type = "button";
    button.title = "Sort by this column";
    button.append(...head.childNodes);
    button.addEventListener("click", () => sort(table, column, head));
    head.append(button);
  });
}

function filterable(table) {
  const rows = table.tBodies[0].rows;
  if (rows.length <= FEW) return;
  const field = document.createElement("input");
  const count = document.createElement("output");
  field.type = "search";
  field.placeholder = "filter rows";
  field.setAttribute("aria-label", "Filter the rows of the table below");
  field.addEventListener("input", () => {
    const words = field.value.toLowerCase().split(/\s+/).filter(Boolean);
    let kept = 0;
    for (const row of rows) {
      const text = row.textContent.toLowerCase();
      row.hidden = !words.every((word) => text.includes(word));
      kept += !row.hidden;
    }
    count.textContent = words.length ? `${kept} of ${rows.length}` : "";
  });
  const line = document.createElement("div");
  line.className = "filter";
  line.append(field, count);
  table.closest(".scroll").before(line);
}

for (const table of document.querySelectorAll("table.data")) {
  sortable(table);
  filterable(table);
}

let opener = null; // what to give the focus back to
document.addEventListener("click", (event) => {
  const link = event.target.closest("a");
  const number = event.target.closest("[data-cell]");
  if (link) opener = link.hash.startsWith("#cell-") ? link : opener;
  else if (number && !event.target.closest("button") && !String(getSelection())) {
    const hash = "#cell-" + number.dataset.cell;
    const links = number.closest("table").querySelectorAll("a");
    opener = [...links].find((one) => one.hash === hash);
    location.hash = hash;
  }
});
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape" && location.hash.startsWith("#cell-")) location.hash = "#-";
});
window.addEventListener("hashchange", () => {
  const shown = location.hash.startsWith("#cell-") && document.getElementById(location.hash.slice(1));
  if (shown) shown.focus({preventScroll: true});
  else if (opener) opener.focus({preventScroll: true});
});
window.addEventListener("beforeprint", () => {
  for (const part of document.querySelectorAll("main details")) part.open = true;
});
