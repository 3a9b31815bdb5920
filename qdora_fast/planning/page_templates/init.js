"use strict";
// Fills in the command and the config. Text enters the page by textContent and option labels alone.
const $ = (id) => document.getElementById(id);
const known = JSON.parse($("known").textContent);
const gib = (bytes) => (bytes / 2 ** 30).toFixed(1) + " GiB";
const shell = (text) => (/^[\w@%+=:,.\/-]+$/.test(text) ? text : "'" + text.replaceAll("'", "'\\''") + "'");
const scalar = (value) =>
  typeof value === "string" ? (/^[A-Za-z][\w.\/-]*$/.test(value) ? value : JSON.stringify(value)) : JSON.stringify(value);

function option(value, text) {
  const made = document.createElement("option");
  made.value = value;
  made.textContent = text;
  return made;
}

function bases() {
  const card = known.cards[$("card").value], before = $("base").value;
  const fitting = known.presets.filter((preset) => preset.peak <= card.free).sort((a, b) => b.peak - a.peak);
  $("base").replaceChildren(
    ...fitting.map((preset) =>
      option(preset.name, `${preset.base}, ${preset.method}: ${gib(preset.peak)}${preset.licence ? ", " + preset.licence : ""}`)));
  if (!fitting.length) $("base").append(option("", "none of the presets fits"));
  if (fitting.some((preset) => preset.name === before)) $("base").value = before;
}

function yaml(preset) {
  const { model, adapter, ...rest } = preset.settings;
  const metric = $("metric").value;
  const tree = { model, data: { path: $("data").value }, adapter: { method: preset.method, ...adapter }, ...rest };
  if (metric !== "auto") tree.evaluation = { ...rest.evaluation, metric };
  return Object.entries(tree).map(([section, settings]) =>
    section + ":\n" + Object.entries(settings).map(([key, value]) => `  ${key}: ${scalar(value)}\n`).join("")).join("");
}

function show() {
  const card = known.cards[$("card").value];
  const preset = known.presets.find((each) => each.name === $("base").value);
  const metric = $("metric").value === "auto" ? "" : ` --set evaluation.metric=${$("metric").value}`;
  const method = !preset || preset.method === "qdora" ? "" : ` --set adapter.method=${preset.method}`;
  const rows = shell($("data").value.trim() || "my.jsonl");
  $("command").textContent = preset
    ? `qdora-fast init my.yaml --data ${rows} --card ${shell(card.name)} --model ${shell(preset.base)}${method}${metric}`
    : "a smaller base: qdora-fast presets";
  $("config").textContent = preset ? yaml(preset) : "";
  $("memory").textContent = preset ? `Estimated: ${gib(preset.peak)} of the ${gib(card.bytes)} of ${card.name}.` : "";
}

async function copy(event) {
  const button = event.currentTarget, area = $(button.dataset.copies);
  try {
    await navigator.clipboard.writeText(area.textContent);
    button.textContent = "copied";
  } catch (error) {
    getSelection().selectAllChildren(area);
    button.textContent = "selected";
  }
  setTimeout(() => (button.textContent = "copy"), 1500);
}

known.cards.forEach((card, at) => $("card").append(option(at, `${card.name}, ${gib(card.bytes)}`)));
$("card").value = String(known.cards.findIndex((card) => card.name === "RTX 4090"));
$("card").addEventListener("change", () => { bases(); show(); });
$("questions").addEventListener("input", show);
document.querySelectorAll("[data-copies]").forEach((button) => button.addEventListener("click", copy));
bases();
$("base").value = (known.presets.find((preset) => preset.name === "qwen3-8b-24gb") || {}).name || $("base").value;
show();
