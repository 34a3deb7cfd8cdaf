// Headings of tables sort their lines; paper has what is folded. Without script all is there, in its first order.
"use strict";
const number = (text) => parseFloat((text.match(/[-−]?\d[\d.]*(e[-+]?\d+)?/i) || ["NaN"])[0].replace("−", "-"));
const by = (texts, sign) => {
  const numbers = texts.map(number);
  const numeric = texts.every((text, i) => !Number.isNaN(numbers[i]) || text === "–");
  return (i, j) => {
    if (!numeric) return sign * texts[i].localeCompare(texts[j]);
    const gone = Number.isNaN(numbers[i]) - Number.isNaN(numbers[j]); // what is missing stands last, either way
    return gone || sign * (numbers[i] - numbers[j]) || i - j;
  };
};
for (const table of document.querySelectorAll("table")) {
  const body = table.tBodies[0], headings = [...table.tHead.rows[0].cells];
  if (body.rows.length < 2) continue;
  headings.forEach((heading, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...heading.childNodes);
    heading.append(button);
    button.addEventListener("click", () => {
      const up = heading.getAttribute("aria-sort") !== "ascending";
      headings.forEach((other) => other.removeAttribute("aria-sort"));
      heading.setAttribute("aria-sort", up ? "ascending" : "descending");
      const rows = [...body.rows], order = by(rows.map((row) => row.cells[column].textContent.trim()), up ? 1 : -1);
      body.append(...rows.map((_, i) => i).sort(order).map((i) => rows[i]));
    });
  });
}
addEventListener("beforeprint", () => document.querySelectorAll("details").forEach((one) => { one.open = true; }));
