"use strict";
// What the pages to read and mark have in common: one row at a time, marks by keys, kept in the browser until saved.
// The script of a page says in `page` what is shown and saved, and then calls begin(). Text of the data enters the page
// by textContent alone.
const $ = (id) => document.getElementById(id);
const sample = JSON.parse($("sample").textContent);
const rows = sample.rows;
const FORGETFUL = "This browser keeps nothing for this page: save before you close it.";
const state = { reviewer: "", verdicts: Object.create(null), notes: Object.create(null), at: 0, verdict: "", note: "" };
const undone = []; // marks that can be taken back: [row, mark before]
let unsaved = false, forgetful = false;

function restore() {
  try {
    const kept = JSON.parse(localStorage.getItem(page.key) || "{}");
    for (const name of ["reviewer", "verdict", "note"]) if (typeof kept[name] === "string") state[name] = kept[name];
    for (const row of rows) {
      const mark = (kept.verdicts || {})[page.id(row)], note = (kept.notes || {})[page.id(row)];
      if (Object.hasOwn(page.marks, mark)) state.verdicts[page.id(row)] = mark;
      if (typeof note === "string") state.notes[page.id(row)] = note;
    }
    if (Number.isInteger(kept.at) && kept.at >= 0 && kept.at <= rows.length) state.at = kept.at;
  } catch (error) {
    forgetful = true;
  }
}

function keep() {
  unsaved = true;
  try {
    localStorage.setItem(page.key, JSON.stringify(state));
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

function markOf(row) {
  return state.verdicts[page.id(row)];
}

function count(mark) {
  return rows.filter((row) => markOf(row) === mark).length;
}

function marked() {
  return rows.filter(markOf).length;
}

// "3 good, 1 bad"
function counts() {
  return Object.keys(page.marks).map((mark) => count(mark) + " " + mark).join(", ");
}

function show(moved) {
  const row = rows[state.at];
  $("row").hidden = !row;
  $("done").hidden = !!row;
  $("save").className = row || marked() < rows.length ? "" : "good";
  if (row) {
    $("number").textContent = page.number(state.at);
    $("place").textContent = page.place(row);
    $("mark").textContent = page.marks[markOf(row)] || "";
    $("mark").className = markOf(row) || "";
    if (moved) {
      page.show(row);
      $("note").value = state.notes[page.id(row)] || "";
    }
  } else {
    page.showEnd(rows.length - marked());
    showBad();
  }
  $("progress").textContent = marked() + " of " + rows.length + " marked: " + counts();
  [...$("strip").children].forEach((cell, index) => {
    cell.className = (markOf(rows[index]) || "") + (index === state.at ? " here" : "");
  });
  $("back").disabled = state.at === 0;
  $("forward").disabled = !row;
  $("undo").disabled = !undone.length;
  for (const button of document.querySelectorAll("#write, [id^=mark-]")) button.disabled = !row;
  if (moved) {
    window.scrollTo(0, 0);
    (row ? $("row") : $("done")).focus({ preventScroll: true });
  }
}

function showBad() {
  $("bad").replaceChildren(...rows.flatMap((row, index) => {
    if (markOf(row) !== "bad") return [];
    const item = element("li"), link = element("button", "", page.place(row));
    link.addEventListener("click", () => go(index));
    item.append(link, " ", element("bdi", "", state.notes[page.id(row)] || ""));
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
    if (!markOf(rows[index])) return go(index);
  }
  go(rows.length);
}

function mark(verdict) {
  const row = rows[state.at];
  if (!row) return;
  undone.push([state.at, markOf(row)]);
  state.verdicts[page.id(row)] = verdict;
  onward();
}

function undo() {
  const last = undone.pop();
  if (!last) return;
  const id = page.id(rows[last[0]]);
  if (last[1]) state.verdicts[id] = last[1];
  else delete state.verdicts[id];
  go(last[0]);
}

// Leads to what is still to be filled in; returns whether nothing is.
function complete() {
  if (state.reviewer.trim()) return true;
  $("reviewer").classList.add("missing");
  $("reviewer").focus();
  tell("Who read this? Write your name above, then save.");
  return false;
}

function download(name, content) {
  const link = element("a");
  link.href = URL.createObjectURL(new Blob([JSON.stringify(content, null, 1) + "\n"], { type: "application/json" }));
  link.download = name;
  document.body.append(link);
  link.click();
  link.remove();
  setTimeout(() => URL.revokeObjectURL(link.href), 60000);
  unsaved = false;
  tell("Saved as " + link.download + " in your downloads.");
}

const MOVES = {
  n: () => rows[state.at] && $("note").focus(), u: undo, s: () => page.save(),
  j: () => go(state.at + 1), k: () => go(state.at - 1),
  ArrowRight: () => go(state.at + 1), ArrowLeft: () => go(state.at - 1),
};

function pressed(event) {
  if (event.ctrlKey || event.metaKey || event.altKey || event.isComposing) return;
  const radio = event.target.matches("input[type=radio]");
  if (event.target.matches("input, textarea") && !radio) {
    if (event.key === "Escape" || (event.key === "Enter" && event.target.id === "reviewer")) event.target.blur();
    return;
  }
  if (radio && event.key.startsWith("Arrow")) return;
  // On a keyboard of another script the place of the key counts, not its letter.
  const name = /^[\x00-\x7f]+$/.test(event.key) ? event.key : event.code.replace(/^Key/, "");
  const act = { ...MOVES, ...page.keys }[name.length === 1 ? name.toLowerCase() : name];
  if (!act) return;
  event.preventDefault();
  act();
}

function begin(buttons) {
  document.addEventListener("keydown", pressed);
  $("reviewer").addEventListener("input", (event) => {
    state.reviewer = event.target.value;
    event.target.classList.remove("missing");
    keep();
  });
  $("note").addEventListener("input", (event) => {
    const row = rows[state.at];
    if (row) state.notes[page.id(row)] = event.target.value;
    keep();
  });
  for (const [id, key] of Object.entries(buttons)) {
    $(id).addEventListener("click", () => ({ ...MOVES, ...page.keys })[key]());
  }
  $("strip").addEventListener("click", (event) => {
    const index = [...$("strip").children].indexOf(event.target);
    if (index >= 0) go(index);
  });
  window.addEventListener("beforeunload", (event) => {
    if (forgetful && unsaved && marked()) event.preventDefault();
  });
  restore();
  $("strip").append(...rows.map((row, index) => {
    const cell = element("i");
    cell.title = page.number(index);
    return cell;
  }));
  $("reviewer").value = state.reviewer;
  go(state.at);
}
