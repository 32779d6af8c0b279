// Panel: pictures from a prompt.

import { get, picture } from "./api.js";
import { Card } from "./card.js";
import { el, write } from "./dom.js";
import { DrawFields } from "./fields.js";
import { receive } from "./files.js";
import { icon } from "./icons.js";
import { inputsOf } from "./inputs.js";
import { models } from "./models.js";
import { say } from "./say.js";
import { nameOf } from "./shots.js";
import { Viewer } from "./viewer.js";
import { told } from "./words.js";

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
  const note = el("p", { class: "hint note", role: "status", hidden: true });
  const summary = el("span", { class: "soft" });
  const settings = el("details", { class: "settings", open: WIDE.matches },
    el("summary", {}, "Settings", summary),
    fields.nodes.model,
    fields.nodes.loras,
    fields.nodes.nets,
    fields.nodes.size,
    fields.nodes.steps,
    fields.nodes.guidance,
    fields.nodes.quality,
    fields.nodes.seed,
    fields.nodes.scheduler,
    el("div", { class: "pair" }, fields.nodes.images, fields.nodes.format),
    fields.nodes.hooks,
    fields.nodes.previews,
  );
  const form = el("form", { class: "form card", onsubmit: send, oninput: changed, onchange: changed, onkeydown: keys },
    fields.nodes.prompt, fields.nodes.negative, fields.nodes.start, submit, note, settings);
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
    const lack = fields.lacks();
    if (!lack) {
      add({ kind: "generate", ...fields.read() }, { pictures: fields.pictures() });
      return;
    }
    if (settings.contains(lack.node)) settings.open = true;
    tell(lack.text);
    lack.node.focus();
  }

  /** Below the button: why it does nothing. */
  function tell(text) {
    write(note, text);
    note.hidden = !text;
  }

  // a picture that comes from outside: to the ControlNet on which it is dropped, else to start from
  receive({
    wants: (target) => !node.closest("[hidden]") && !document.querySelector("dialog[open]") && fields.pickAt(target) !== null,
    over: (target) => {
      const over = target && fields.pickAt(target);
      for (const pick of fields.picks) pick.node.classList.toggle("over", pick === over);
    },
    take: ([file], target) => file && fields.pickAt(target)?.take(file),
  });

  /** An example as the prompt; one can go on writing at once. */
  function begin(text) {
    fields.write({ prompt: text });
    changed();
    fields.prompt.focus();
  }

  /** job: one that there is. pictures: that the body is sent with. */
  function add(body, { job = null, pictures = null } = {}) {
    viewer ??= new Viewer({ takers: app.takers() });
    const card = new Card({
      body,
      pictures,
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
    const { strength, control, ...kept } = fields.read(); // those belong to pictures, which are not remembered
    const { width, height, steps, seed } = kept;
    if (submit.disabled === false) tell("");
    write(summary, `${fields.model.value}, ${width} × ${height}, ${steps} steps${seed ? `, seed ${seed}` : ""}`);
    try {
      sessionStorage.setItem(KEY, JSON.stringify(kept));
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
  const before = remembered(); // what the fields do from here on overwrites it
  models.addEventListener("change", () => {
    const usable = models.that("generate");
    fields.offer(usable);
    submit.disabled = !usable.length;
    if (!usable.length) tell("No model that draws is served here.");
    if (first && usable.length) {
      first = false;
      fields.write(before ?? {});
      adopt();
    }
    changed();
  });

  /** Take up the jobs that ran when the page was loaded again. */
  async function adopt() {
    try {
      const { mine } = await get("v1/queue");
      const known = mine.filter((job) => job.kind === "generate").sort((a, b) => a.created - b.created);
      for (const job of known) add({ kind: "generate", model: job.model, ...job.request }, { job });
    } catch {
      // the queue panel tells what is wrong
    }
  }

  function take(shot) {
    const pictures = inputsOf(shot.job);
    fields.write(shot.parameters, pictures);
    changed();
    app.go("generate");
    fields.prompt.focus();
    const { began, control } = shot.parameters;
    const gone = (began.includes("image") && !pictures.image) || (control.length > 0 && !pictures.control);
    if (control.length) settings.open = true;
    say(gone ? "Settings taken over. Give the pictures again: they are kept as long as this window." : "Settings taken over.");
  }

  /** Start from a picture that was drawn. */
  async function startFrom(shot) {
    app.go("generate");
    if (!fields.start.can) { // a card's button stays when another model is chosen
      say(`${fields.model.value} cannot start from a picture: choose another model.`);
      return;
    }
    try {
      const { blob } = await picture(shot.path);
      await fields.start.pick.take(blob, nameOf(shot));
      fields.start.strength.number.focus();
    } catch (error) {
      say(told(error));
    }
  }

  submit.disabled = true;
  return {
    node,
    takers: [
      { label: "Use settings", take },
      { label: "Start from this", take: startFrom, works: () => fields.start.can },
    ],
    // where the page begins, one can write at once; on a phone that would open the keyboard
    shown: () => WIDE.matches && document.activeElement === document.body && fields.prompt.focus({ preventScroll: true }),
  };
}

export const generate = { id: "generate", title: "Generate", make };
