// Panel: pictures from a prompt.

import { get } from "./api.js";
import { Card } from "./card.js";
import { el, write } from "./dom.js";
import { DrawFields } from "./fields.js";
import { icon } from "./icons.js";
import { models } from "./models.js";
import { say } from "./say.js";
import { Viewer } from "./viewer.js";

const KEY = "vitrify-generate";
const CARDS = 60; // results that stay on the panel; all of them are in the gallery
const EXAMPLES = ["a happy face", "a red apple", "a blue heart", "a cat face"];
const WIDE = matchMedia("(min-width: 56rem)");

function make(app) {
  let cards = []; // newest first
  let lastSeed = null;
  let viewer = null;

  const fields = new DrawFields({ lastSeed: () => lastSeed });
  const submit = el("button", { type: "submit", class: "strong wide" }, "Generate", el("kbd", {}, "Ctrl ⏎"));
  const note = el("p", { class: "hint note", hidden: true });
  const summary = el("span", { class: "soft" });
  const settings = el("details", { class: "settings", open: WIDE.matches },
    el("summary", {}, "Settings", summary),
    fields.nodes.model,
    fields.nodes.size,
    fields.nodes.steps,
    fields.nodes.guidance,
    fields.nodes.seed,
    fields.nodes.scheduler,
    el("div", { class: "pair" }, fields.nodes.images, fields.nodes.format),
    fields.nodes.previews,
  );
  const form = el("form", { class: "form card", onsubmit: send, oninput: changed, onchange: changed, onkeydown: keys },
    fields.nodes.prompt, fields.nodes.negative, submit, note, settings);
  const results = el("section", { class: "results", "aria-label": "Pictures of this window" });
  const empty = el("div", { class: "empty tall" }, icon("picture"),
    el("p", {}, "Write what you want to see, or begin with one of these."),
    el("div", { class: "actions" }, EXAMPLES.map((text) => el("button", { type: "button", onclick: () => begin(text) }, text))));
  const node = el("div", { class: "split" }, form, el("div", {}, empty, results));
  WIDE.addEventListener("change", () => (settings.open = WIDE.matches));
  // a field that is wrong must be seen to be mended
  form.addEventListener("invalid", () => (settings.open = true), true);

  function send(event) {
    event.preventDefault();
    add({ kind: "generate", ...fields.read() });
  }

  /** An example as the prompt; one can go on writing at once. */
  function begin(text) {
    fields.write({ prompt: text });
    changed();
    fields.prompt.focus();
  }

  function add(body, job = null) {
    viewer ??= new Viewer({ takers: app.takers() });
    const card = new Card({
      body,
      job,
      takers: app.takers(),
      open: (shots, number) => viewer.open(shots, number),
      gone: () => drop(card),
    });
    cards.unshift(card);
    results.prepend(card.node);
    for (const old of cards.slice(CARDS).filter((one) => one.done)) drop(old);
    card.addEventListener("begin", mark);
    card.addEventListener("end", (end) => {
      const seed = end.detail?.details?.seed;
      if (seed !== undefined) {
        lastSeed = String(seed);
        fields.mayRepeat(true);
      }
      mark();
    });
    mark();
  }

  function drop(card) {
    cards = cards.filter((one) => one !== card);
    card.node.remove();
    mark();
  }

  /** What Esc would cancel: what runs, else what was asked for first. */
  function target() {
    const open = cards.filter((card) => !card.done).reverse();
    return open.find((card) => card.running) ?? open[0];
  }

  function mark() {
    const next = target();
    for (const card of cards) card.byEsc = card === next;
    empty.hidden = cards.length > 0;
  }

  function keys(event) {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey) && !event.isComposing) {
      event.preventDefault();
      if (event.target instanceof HTMLInputElement) event.target.dispatchEvent(new Event("change", { bubbles: true }));
      if (!submit.disabled) form.requestSubmit(submit);
    } else if (event.key === "Enter" && event.target instanceof HTMLInputElement) {
      event.preventDefault(); // a number that is being typed is no order to draw
    }
  }

  function escape(event) {
    if (event.key !== "Escape" || event.defaultPrevented || event.isComposing || node.closest("[hidden]")) return;
    if (document.querySelector("dialog[open]")) return;
    const card = target();
    if (!card) return;
    event.preventDefault();
    card.cancel();
  }
  document.addEventListener("keydown", escape);

  function changed() {
    const { width, height, steps, seed } = fields.read();
    write(summary, `${fields.model.value}, ${width} × ${height}, ${steps} steps${seed ? `, seed ${seed}` : ""}`);
    try {
      sessionStorage.setItem(KEY, JSON.stringify(fields.read()));
    } catch {
      // it is not remembered
    }
  }

  function remembered() {
    try {
      return JSON.parse(sessionStorage.getItem(KEY) ?? "null");
    } catch {
      return null;
    }
  }

  let first = true;
  models.addEventListener("change", () => {
    const usable = models.that("generate");
    fields.offer(usable);
    submit.disabled = !usable.length;
    write(note, usable.length ? "" : "No model that draws is served here.");
    note.hidden = usable.length > 0;
    if (first && usable.length) {
      first = false;
      fields.write(remembered() ?? {});
      adopt();
    }
    changed();
  });

  /** Take up the jobs that ran when the page was loaded again. */
  async function adopt() {
    try {
      const { mine } = await get("v1/queue");
      const known = mine.filter((job) => job.kind === "generate").sort((a, b) => a.created - b.created);
      for (const job of known) add({ kind: "generate", model: job.model, ...job.request }, job);
    } catch {
      // the queue panel tells what is wrong
    }
  }

  function take(shot) {
    fields.write(shot.parameters);
    changed();
    app.go("generate");
    fields.prompt.focus();
    say("Settings taken over.");
  }

  submit.disabled = true;
  return {
    node,
    taker: { label: "Use settings", take },
    // where the page begins, one can write at once; on a phone that would open the keyboard
    shown: () => WIDE.matches && document.activeElement === document.body && fields.prompt.focus({ preventScroll: true }),
  };
}

export const generate = { id: "generate", title: "Generate", make };
