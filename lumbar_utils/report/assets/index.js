"use strict";
(() => {
  const table = document.querySelector("table.studies");
  const body = table.tBodies[0];
  const rows = [...body.rows];
  const form = document.querySelector("form.filters");
  const find = document.getElementById("find");
  const flag = document.getElementById("flag");
  const least = document.getElementById("least");
  const leastValue = document.getElementById("least-value");
  const count = document.getElementById("count");
  const nothing = document.getElementById("nothing");
  const words = new Intl.Collator("en", { numeric: true, sensitivity: "base" });

  function sortBy(button) {
    const head = button.closest("th");
    const { key, kind } = button.dataset;
    // Numbers are worth looking at from the top, words from A.
    const first = kind === "number" ? "descending" : "ascending";
    const other = first === "descending" ? "ascending" : "descending";
    const direction = head.getAttribute("aria-sort") === first ? other : first;
    for (const one of table.tHead.querySelectorAll("[aria-sort]")) one.setAttribute("aria-sort", "none");
    head.setAttribute("aria-sort", direction);
    const sign = direction === "ascending" ? 1 : -1;
    const compare = kind === "number"
      ? (a, b) => a.dataset[key] - b.dataset[key]
      : (a, b) => words.compare(a.dataset[key], b.dataset[key]);
    rows.sort((a, b) => sign * compare(a, b) || words.compare(a.dataset.id, b.dataset.id));
    body.append(...rows);
  }

  function filter() {
    const part = find.value.trim().toLowerCase();
    const wanted = flag.value;
    const threshold = Number(least.value) / 100;
    let shown = 0;
    for (const row of rows) {
      const named = row.dataset.named.split(" ").filter(Boolean);
      const fits = row.dataset.id.toLowerCase().includes(part)
        && (threshold === 0 || Number(row.dataset.any) >= threshold)
        && (wanted === "" || (wanted === "none" ? !named.length : wanted === "some" ? named.length : named.includes(wanted)));
      row.hidden = !fits;
      shown += fits ? 1 : 0;
    }
    leastValue.textContent = `${least.value} %`;
    count.textContent = `${shown} of ${rows.length} studies`;
    nothing.hidden = shown > 0 || !rows.length;
  }

  for (const button of table.tHead.querySelectorAll("button")) button.addEventListener("click", () => sortBy(button));
  form.addEventListener("input", filter);
  form.addEventListener("reset", () => setTimeout(filter));
  form.addEventListener("submit", (event) => event.preventDefault());
  filter();
})();
