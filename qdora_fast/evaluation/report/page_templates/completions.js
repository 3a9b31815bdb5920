// Two answers to one prompt, each pair with a mark for the tuned model's, and a verdict on the whole at the end; see
// marking.js for everything else.
function length(tokens, finished) {
  return tokens + (tokens === 1 ? " token" : " tokens") + (finished ? "" : ", cut at the limit");
}

function showAnswer(id, label, text) {
  const [head, body] = $(id).children;
  head.textContent = label;
  body.replaceChildren();
  if (text.trim()) fill(body, text);
  else body.append(element("div", "soft", "(nothing)"));
}

const VERDICTS = [...document.querySelectorAll("#verdict input")];
const page = {
  key: "qdora_fast.completions_review." + sample.sha256,
  marks: { good: "✓ marked good", bad: "✗ marked bad", same: "= marked the same" },
  keys: {
    g: () => mark("good"), b: () => mark("bad"), e: () => mark("same"),
    r: () => { $("reference").open = !$("reference").open; },
  },
  id: (row) => row.id,
  number: (index) => "Prompt " + (index + 1) + " of " + rows.length,
  place: (row) => row.general ? "general prompt: is anything forgotten?" : row.id.slice(0, 12),
  show(row) {
    $("turns").replaceChildren(...row.turns.map(turnElement));
    showAnswer("base", "Base · " + length(row.base_tokens, row.base_finished), row.base);
    showAnswer("tuned", "Tuned · " + length(row.tuned_tokens, row.tuned_finished), row.tuned);
    $("alike").hidden = row.base !== row.tuned;
    $("reference").open = false;
    $("reference").hidden = row.reference === null;
    $("reference").lastElementChild.replaceChildren();
    if (row.reference !== null) fill($("reference").lastElementChild, row.reference);
  },
  showEnd(left) {
    $("found").textContent = left ? left + (left === 1 ? " prompt is" : " prompts are") + " not marked yet"
      : "All " + rows.length + " prompts are marked: " + counts();
    $("advice").textContent = left ? "A coloured bar above opens its prompt. You may also leave some unmarked."
      : "Give your verdict, save the file, and give it to the run with qdora-fast review RUN FILE.";
  },
  save() {
    if (!complete()) return;
    if (!state.verdict) {
      go(rows.length);
      VERDICTS[0].focus();
      return tell("Pass, needs work or fail? Choose your verdict, then save.");
    }
    download("completions-review-" + sample.sha256.slice(0, 12) + ".json", {
      kind: "qdora_fast.completions_review", version: 1, run: sample.run, sha256: sample.sha256,
      reviewer: state.reviewer.trim(), verdict: state.verdict, note: state.note.trim(), finished: new Date().toISOString(),
      rows: rows.map((row) => ({ id: row.id, mark: markOf(row) || null, note: state.notes[row.id] || "" })),
    });
  },
};
const BUTTONS = { back: "k", forward: "j", undo: "u", write: "n", save: "s", "mark-good": "g", "mark-bad": "b", "mark-same": "e" };
begin(BUTTONS);
for (const choice of VERDICTS) {
  choice.checked = choice.value === state.verdict;
  choice.addEventListener("change", () => { state.verdict = choice.value; keep(); });
}
$("why").value = state.note;
$("why").addEventListener("input", (event) => { state.note = event.target.value; keep(); });
