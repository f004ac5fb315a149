"use strict";

// Copy buttons. The clipboard is refused on some file:// pages; selecting the text is next best.
for (const button of document.querySelectorAll("[data-copies]")) {
  button.hidden = false;
  button.addEventListener("click", async () => {
    const source = document.getElementById(button.dataset.copies);
    try {
      await navigator.clipboard.writeText(source.textContent);
      button.textContent = "Copied";
    } catch {
      getSelection().selectAllChildren(source);
      button.textContent = "Selected";
    }
    setTimeout(() => { button.textContent = "Copy"; }, 1600);
  });
}

// Order of the class bars.
for (const group of document.querySelectorAll("[data-sorts]")) {
  const list = document.getElementById(group.dataset.sorts);
  const orders = {
    rank: (a, b) => a.dataset.rank - b.dataset.rank,
    highest: (a, b) => b.dataset.rank - a.dataset.rank,
    name: (a, b) => a.dataset.name.localeCompare(b.dataset.name),
  };
  group.hidden = false;
  group.addEventListener("click", (event) => {
    const chosen = event.target.closest("button");
    if (!chosen) return;
    for (const button of group.children) button.ariaPressed = String(button === chosen);
    list.append(...[...list.children].sort(orders[chosen.dataset.key]));
  });
}

// The confusion matrix: point, tap, or walk with the arrow keys.
const matrix = document.getElementById("matrix");
if (matrix) {
  const { labels, totals, cells, counts } = JSON.parse(
    document.getElementById("confusion-data").textContent
  );
  const size = labels.length;
  const count = new Map(cells.map((cell, index) => [cell, counts[index]]));
  const margin = Number(matrix.dataset.margin);
  const side = Number(matrix.dataset.cell);
  const readout = document.getElementById("readout");
  const crosses = { y: document.getElementById("cross-row"), x: document.getElementById("cross-column") };
  let at = { row: 0, column: 0 };

  // A name that is written from right to left must not turn the sentence around.
  const isolated = (name) => `\u2068${name}\u2069`;

  const show = (row, column) => {
    at = { row, column };
    crosses.y.setAttribute("y", margin + row * side);
    crosses.x.setAttribute("x", margin + column * side);
    for (const cross of Object.values(crosses)) cross.setAttribute("visibility", "visible");
    const times = count.get(row * size + column) ?? 0;
    const share = totals[row] ? (100 * times / totals[row]).toFixed(1) : "0";
    const verb = row === column ? "recognised" : `taken for ${isolated(labels[column])}`;
    readout.textContent = `${isolated(labels[row])} ${verb}: ${times} of ${totals[row]} (${share} %)`;
  };

  const point = (event) => {
    const box = matrix.getBoundingClientRect();
    const scale = matrix.viewBox.baseVal.width / box.width;
    const column = Math.floor(((event.clientX - box.left) * scale - margin) / side);
    const row = Math.floor(((event.clientY - box.top) * scale - margin) / side);
    if (row >= 0 && row < size && column >= 0 && column < size) show(row, column);
  };
  matrix.addEventListener("pointermove", point);
  matrix.addEventListener("pointerdown", point);

  const steps = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };
  const within = (value) => Math.min(size - 1, Math.max(0, value));
  matrix.addEventListener("keydown", (event) => {
    const step = steps[event.key];
    if (!step) return;
    event.preventDefault();
    show(within(at.row + step[0]), within(at.column + step[1]));
  });

  for (const pair of document.querySelectorAll(".pairs li")) {
    const reveal = () => show(Number(pair.dataset.row), Number(pair.dataset.column));
    pair.addEventListener("pointerenter", reveal);
    pair.addEventListener("click", reveal);
  }
}

// On paper nothing can be unfolded.
addEventListener("beforeprint", () => {
  for (const details of document.querySelectorAll("details")) details.open = true;
});
