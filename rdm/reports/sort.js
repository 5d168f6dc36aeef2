// A click on a column's head sorts its table by the column: numbers by size, other cells by their text, blank ones last.
const keyOf = (row, column) => {
  const cell = row.cells[column], key = cell.dataset.key ?? cell.textContent.trim();
  return key === "" || isNaN(key) ? key : Number(key);
};
const compare = (a, b) => {
  if (a === "" || b === "") return (a === "") - (b === "");
  if (typeof a !== typeof b) return typeof a === "number" ? -1 : 1;
  return typeof a === "number" ? a - b : a.localeCompare(b);
};
for (const button of document.querySelectorAll("th button")) button.addEventListener("click", () => {
  const head = button.closest("th"), body = head.closest("table").tBodies[0], column = head.cellIndex;
  const sign = head.ariaSort === "ascending" ? -1 : 1;
  for (const other of head.parentNode.cells) other.removeAttribute("aria-sort");
  head.setAttribute("aria-sort", sign > 0 ? "ascending" : "descending");
  const rows = [...body.rows].map(row => [keyOf(row, column), row]);
  rows.sort(([a], [b]) => a === "" || b === "" ? compare(a, b) : sign * compare(a, b));
  body.append(...rows.map(([, row]) => row));
});
