"use strict";
// Shows one row of the sample at a time and keeps the marks. Text of the data enters the page by textContent alone.
const sample = JSON.parse(document.getElementById("sample").textContent);
const rows = sample.rows;
const $ = (id) => document.getElementById(id);
const KEY = "qdora_fast.review." + sample.dataset;
const FORGETFUL = "This browser keeps nothing for this page: save before you close it.";
const state = { reviewer: "", verdicts: Object.create(null), notes: Object.create(null), at: 0 };
const undone = []; // marks that can be taken back: [row, verdict before]
let unsaved = false, forgetful = false;

function restore() {
  try {
    const kept = JSON.parse(localStorage.getItem(KEY) || "{}");
    if (typeof kept.reviewer === "string") state.reviewer = kept.reviewer;
    for (const row of rows) {
      const verdict = (kept.verdicts || {})[row.hash], note = (kept.notes || {})[row.hash];
      if (verdict === "good" || verdict === "bad") state.verdicts[row.hash] = verdict;
      if (typeof note === "string") state.notes[row.hash] = note;
    }
    if (Number.isInteger(kept.at) && kept.at >= 0 && kept.at <= rows.length) state.at = kept.at;
  } catch (error) {
    forgetful = true;
  }
}

function keep() {
  unsaved = true;
  try {
    localStorage.setItem(KEY, JSON.stringify(state));
  } catch (error) {
    forgetful = true;
  }
}

function tell(text) {
  $("notice").textContent = text;
  $("notice").hidden = !text;
}

function element(tag, className, text) {
  const made = document.createElement(tag);
  if (className) made.className = className;
  if (text !== undefined) made.textContent = text;
  return made;
}

// Prose with fenced code apart, so that code stands in a typewriter face. Not a character is left out.
function fill(parent, text) {
  let prose = [], code = null;
  const flush = () => {
    if (!prose.length) return;
    const words = element("div", "words", prose.join("\n"));
    words.dir = "auto";
    parent.append(words);
    prose = [];
  };
  for (const line of text.split("\n")) {
    const fence = /^\s*(`{3,}|~{3,})/.exec(line);
    if (code) {
      code.lines.push(line);
      if (fence && line.trim() === code.fence) {
        parent.append(element("div", "code", code.lines.join("\n")));
        code = null;
      }
    } else if (fence) {
      flush();
      code = { fence: fence[1], lines: [line] };
    } else {
      prose.push(line);
    }
  }
  flush();
  if (code) parent.append(element("div", "code", code.lines.join("\n")));
}

function turnElement(turn) {
  if (turn.kind === "tools") {
    const folded = element("details");
    folded.append(element("summary", "", turn.label), element("div", "code", turn.text));
    return folded;
  }
  const article = element("article", [turn.learned ? "learned" : "", turn.kind === "thought" ? "thought" : ""].join(" "));
  article.append(element("h2", "", turn.label));
  if (turn.kind === "code") article.append(element("div", "code", turn.text));
  else fill(article, turn.text);
  return article;
}

function count(verdict) {
  return rows.filter((row) => state.verdicts[row.hash] === verdict).length;
}

function show(moved) {
  const row = rows[state.at];
  $("row").hidden = !row;
  $("done").hidden = !!row;
  $("save").className = "";
  if (row) {
    const verdict = state.verdicts[row.hash];
    $("number").textContent = "Row " + (state.at + 1) + " of " + rows.length;
    $("place").textContent = row.place;
    $("mark").textContent = verdict === "good" ? "✓ marked good" : verdict === "bad" ? "✗ marked bad" : "";
    $("mark").className = verdict || "";
    if (moved) {
      $("turns").replaceChildren(...row.turns.map(turnElement));
      $("note").value = state.notes[row.hash] || "";
    }
  } else {
    showEnd();
  }
  const good = count("good"), bad = count("bad");
  $("progress").textContent = good + bad + " of " + rows.length + " marked: " + good + " good, " + bad + " bad";
  [...$("strip").children].forEach((cell, index) => {
    cell.className = (state.verdicts[rows[index].hash] || "") + (index === state.at ? " here" : "");
  });
  $("back").disabled = state.at === 0;
  $("forward").disabled = !row;
  $("undo").disabled = !undone.length;
  for (const id of ["mark-good", "mark-bad", "write"]) $(id).disabled = !row;
  if (moved) {
    window.scrollTo(0, 0);
    (row ? $("row") : $("done")).focus({ preventScroll: true });
  }
}

function showEnd() {
  const left = rows.length - count("good") - count("bad");
  $("save").className = left ? "" : "good";
  $("found").textContent = left ? left + (left === 1 ? " row is" : " rows are") + " not marked yet"
    : "All " + rows.length + " rows are marked: " + count("good") + " good, " + count("bad") + " bad";
  $("advice").textContent = left ? "Good or Bad leads from row to row; a coloured bar above opens its row."
    : "Save the file, and give it to the run with --reviewed FILE.";
  $("bad").replaceChildren(...rows.flatMap((row, index) => {
    if (state.verdicts[row.hash] !== "bad") return [];
    const item = element("li"), link = element("button", "", row.place), note = element("bdi", "", state.notes[row.hash] || "");
    link.addEventListener("click", () => go(index));
    item.append(link, " ", note);
    return [item];
  }));
}

function go(index) {
  state.at = Math.max(0, Math.min(rows.length, index));
  keep();
  tell(forgetful ? FORGETFUL : "");
  show(true);
}

// The next row without a mark, after the one just marked and then from the start; the last page when there is none.
function onward() {
  for (let step = 1; step <= rows.length; step++) {
    const index = (state.at + step) % rows.length;
    if (!state.verdicts[rows[index].hash]) return go(index);
  }
  go(rows.length);
}

function mark(verdict) {
  const row = rows[state.at];
  if (!row) return;
  undone.push([state.at, state.verdicts[row.hash]]);
  state.verdicts[row.hash] = verdict;
  onward();
}

function undo() {
  const last = undone.pop();
  if (!last) return;
  const hash = rows[last[0]].hash;
  if (last[1]) state.verdicts[hash] = last[1];
  else delete state.verdicts[hash];
  go(last[0]);
}

function save() {
  if (!state.reviewer.trim()) {
    $("reviewer").classList.add("missing");
    $("reviewer").focus();
    return tell("Who read the rows? Write your name above, then save.");
  }
  const review = {
    kind: "qdora_fast.review", version: 1, dataset: sample.dataset, reviewer: state.reviewer.trim(),
    finished: new Date().toISOString(),
    rows: rows.map((row) => ({ hash: row.hash, verdict: state.verdicts[row.hash] || null, note: state.notes[row.hash] || "" })),
  };
  const link = element("a");
  link.href = URL.createObjectURL(new Blob([JSON.stringify(review, null, 1) + "\n"], { type: "application/json" }));
  link.download = "review-" + sample.dataset.slice(0, 12) + ".json";
  document.body.append(link);
  link.click();
  link.remove();
  setTimeout(() => URL.revokeObjectURL(link.href), 60000);
  unsaved = false;
  tell("Saved as " + link.download + " in your downloads.");
}

const KEYS = {
  g: () => mark("good"), b: () => mark("bad"), n: () => rows[state.at] && $("note").focus(), u: undo, s: save,
  j: () => go(state.at + 1), k: () => go(state.at - 1),
  ArrowRight: () => go(state.at + 1), ArrowLeft: () => go(state.at - 1),
};

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.isComposing) return;
  if (event.target.matches("input, textarea")) {
    if (event.key === "Escape" || (event.key === "Enter" && event.target.id === "reviewer")) event.target.blur();
    return;
  }
  // On a keyboard of another script the place of the key counts, not its letter.
  const name = /^[\x00-\x7f]+$/.test(event.key) ? event.key : event.code.replace(/^Key/, "");
  const act = KEYS[name.length === 1 ? name.toLowerCase() : name];
  if (!act) return;
  event.preventDefault();
  act();
});

$("reviewer").addEventListener("input", (event) => {
  state.reviewer = event.target.value;
  event.target.classList.remove("missing");
  keep();
});
$("note").addEventListener("input", (event) => {
  const row = rows[state.at];
  if (row) state.notes[row.hash] = event.target.value;
  keep();
});
const BUTTONS = { back: "k", forward: "j", undo: "u", write: "n", save: "s", "mark-good": "g", "mark-bad": "b" };
for (const [id, key] of Object.entries(BUTTONS)) $(id).addEventListener("click", () => KEYS[key]());
$("strip").addEventListener("click", (event) => {
  const index = [...$("strip").children].indexOf(event.target);
  if (index >= 0) go(index);
});
window.addEventListener("beforeunload", (event) => {
  if (forgetful && unsaved && count("good") + count("bad")) event.preventDefault();
});

restore();
$("strip").append(...rows.map((row, index) => {
  const cell = element("i");
  cell.title = "Row " + (index + 1);
  return cell;
}));
$("reviewer").value = state.reviewer;
go(state.at);
