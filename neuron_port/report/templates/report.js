// Comfort only: sortable columns, a filter for long tables, a switch for the colour scheme. The page is whole without it.
"use strict";
const number = (cell) => {
  const value = parseFloat(cell.dataset.value ?? cell.textContent.replace(/[^0-9.eE+-]/g, ""));
  return Number.isNaN(value) ? Infinity : value;
};
for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    if (!head.textContent.trim()) return;
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = head.textContent;
    head.replaceChildren(button);
    button.addEventListener("click", () => {
      const down = head.getAttribute("aria-sort") === "ascending";
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const numeric = head.classList.contains("n");
      const rows = [...table.tBodies[0].rows].sort((a, b) => {
        const [one, two] = [a.cells[column], b.cells[column]];
        if (!one || !two) return 0;
        return numeric ? number(one) - number(two) : one.textContent.localeCompare(two.textContent, "en", { numeric: true });
      });
      table.tBodies[0].append(...(down ? rows.reverse() : rows));
    });
  });
}
for (const table of document.querySelectorAll("table.filterable")) {
  const rows = [...table.tBodies[0].rows];
  if (rows.length < 12) continue;
  const field = document.createElement("input");
  field.type = "search";
  field.className = "filter";
  field.placeholder = `filter ${rows.length} rows`;
  field.setAttribute("aria-label", `Filter: ${table.caption.textContent}`);
  field.addEventListener("input", () => {
    const word = field.value.toLowerCase();
    for (const row of rows) row.hidden = !row.textContent.toLowerCase().includes(word);
  });
  table.parentElement.before(field);
}
const root = document.documentElement;
const theme = document.createElement("button");
theme.type = "button";
theme.className = "theme";
const isDark = () => (root.dataset.theme ?? (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light")) === "dark";
const label = () => { theme.textContent = isDark() ? "light" : "dark"; theme.setAttribute("aria-label", `Use the ${theme.textContent} scheme`); };
theme.addEventListener("click", () => { root.dataset.theme = isDark() ? "light" : "dark"; label(); });
label();
document.querySelector(".kicker").append(theme);
