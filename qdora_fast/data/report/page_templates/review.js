// A sample of rows, each with the mark good or bad; see marking.js for everything else.
const page = {
  key: "qdora_fast.review." + sample.dataset,
  marks: { good: "✓ marked good", bad: "✗ marked bad" },
  keys: { g: () => mark("good"), b: () => mark("bad") },
  id: (row) => row.hash,
  number: (index) => "Row " + (index + 1) + " of " + rows.length,
  place: (row) => row.place,
  show: (row) => $("turns").replaceChildren(...row.turns.map(turnElement)),
  showEnd(left) {
    $("found").textContent = left ? left + (left === 1 ? " row is" : " rows are") + " not marked yet"
      : "All " + rows.length + " rows are marked: " + counts();
    $("advice").textContent = left ? "Good or Bad leads from row to row; a coloured bar above opens its row."
      : "Save the file, and give it to the run with --reviewed FILE.";
  },
  save() {
    if (!complete()) return;
    download("review-" + sample.dataset.slice(0, 12) + ".json", {
      kind: "qdora_fast.review", version: 1, dataset: sample.dataset, reviewer: state.reviewer.trim(),
      finished: new Date().toISOString(),
      rows: rows.map((row) => ({ hash: row.hash, verdict: markOf(row) || null, note: state.notes[row.hash] || "" })),
    });
  },
};
const BUTTONS = { back: "k", forward: "j", undo: "u", write: "n", save: "s", "mark-good": "g", "mark-bad": "b" };
begin(BUTTONS);
