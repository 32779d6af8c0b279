// The fields of a drawing: what generate asks for, and what other panels that draw will ask for too.

import { el, field, fill, newId, tick } from "./dom.js";
import { HooksPart } from "./hooks.js";
import { icon } from "./icons.js";
import { LorasPart } from "./loras.js";
import { tagOf } from "./made.js";
import { NetsPart } from "./nets.js";
import { QualityPart } from "./quality.js";
import { SizeField } from "./size.js";
import { paired } from "./slider.js";
import { StartPart } from "./start.js";

const SEED = 2n ** 64n;
const OWN = { steps: 30, guidance: 7.5 }; // of a model that names none

/** Whether this is a seed: 0 to 2**64 - 1, in digits. */
export const isSeed = (text) => /^\d{1,20}$/.test(text) && BigInt(text) < SEED;

/**
 * Fields for a drawing. `nodes` holds each by its name, to be put where a panel wants it.
 *
 * read, pictures: what is asked for, as the body of a job and the pictures that belong into it. write: put parameters
 * in, those that are given. offer: take the models that the server has. lastSeed: is asked for the seed of the newest
 * picture.
 */
export class DrawFields {
  #models = [];
  #own = {}; // the model's numbers that nobody has changed

  constructor({ lastSeed }) {
    this.prompt = el("textarea", { rows: 3, maxlength: 20000, required: true, placeholder: "What the picture shows" });
    this.negative = el("textarea", { rows: 2, maxlength: 20000, placeholder: "What it shall not show" });
    this.model = el("select", { onchange: () => this.#fit() });
    this.start = new StartPart();
    this.nets = new NetsPart();
    this.loras = new LorasPart();
    this.hooks = new HooksPart();
    this.quality = new QualityPart();
    this.size = new SizeField();
    this.steps = paired("Steps", { min: 1, max: 100, most: 1000, step: 1, value: OWN.steps });
    this.guidance = paired("Guidance", { min: 0, max: 20, most: 100, step: 0.5, value: OWN.guidance, any: true });
    this.scheduler = el("select");
    this.seed = el("input", {
      type: "text", inputmode: "numeric", autocomplete: "off", spellcheck: "false", placeholder: "random",
      oninput: () => this.#checkSeed(),
    });
    this.images = el("input", { type: "number", min: 1, max: 16, step: 1, value: 1, required: true });
    this.format = el("select");
    fill(this.format, [["png", "PNG"], ["jpeg", "JPEG"], ["webp", "WebP"]]);
    this.previews = tick("Preview each step", true);
    this.again = el("button", { type: "button", class: "square", title: "The last picture's seed", "aria-label": "Use the last picture's seed", onclick: () => this.#setSeed(lastSeed()) }, icon("again"));
    this.nodes = this.#nodes();
    this.mayRepeat(false);
    this.start.addEventListener("change", () => this.size.follow(this.start.picture));
    for (const part of [this.start, this.nets, this.loras]) part.addEventListener("change", () => this.#tell(part.node));
  }

  #nodes() {
    const dice = el("button", { type: "button", class: "square", title: "Throw a new seed", "aria-label": "Throw a new seed", onclick: () => this.#setSeed(String(thrown())) }, icon("dice"));
    this.seed.id = newId("seed");
    return {
      prompt: field("Prompt", this.prompt),
      negative: field("Negative prompt", this.negative),
      start: this.start.node,
      model: field("Model", this.model),
      loras: this.loras.node,
      nets: this.nets.node,
      size: this.size.node,
      steps: this.steps.node,
      guidance: this.guidance.node,
      scheduler: field("Scheduler", this.scheduler),
      seed: el("div", { class: "field" }, el("label", { for: this.seed.id }, "Seed"), el("div", { class: "line" }, this.seed, dice, this.again)),
      images: field("Pictures", this.images),
      format: field("Format", this.format),
      hooks: this.hooks.node,
      quality: this.quality.node,
      previews: this.previews.node,
    };
  }

  /** Let whoever listens know that something was changed by a button. */
  #tell(node) {
    node.dispatchEvent(new Event("input", { bubbles: true }));
  }

  /** Whether there is a seed to use again. */
  mayRepeat(yes) {
    this.again.disabled = !yes;
  }

  /** models: of GET /v1/models, those that draw. */
  offer(models) {
    this.#models = models;
    fill(this.model, models.map((model) => [model.name, model.name]));
    this.model.disabled = !models.length;
    this.#fit();
  }

  get chosen() {
    return this.#models.find((model) => model.name === this.model.value);
  }

  /** Bring everything to what the chosen model can do. */
  #fit() {
    const model = this.chosen;
    if (!model) return;
    for (const part of [this.start, this.nets, this.loras, this.hooks, this.quality, this.size]) part.fit(model);
    this.size.follow(this.start.picture);
    this.#byItself("steps", this.steps, model);
    this.#byItself("guidance", this.guidance, model);
    fill(this.scheduler, [["", "model's own"], ...(model.schedulers ?? []).map((name) => [name, name])]);
  }

  /** The model's own number, unless there is another one than the page has put in. */
  #byItself(name, input, model) {
    const value = model[name] ?? OWN[name];
    if ((this.#own[name] ?? OWN[name]) === Number(input.value)) input.value = value;
    this.#own[name] = value;
  }

  #setSeed(seed) {
    this.seed.value = seed ?? "";
    this.#checkSeed();
    this.#tell(this.seed);
  }

  #checkSeed() {
    const text = this.seed.value.trim();
    this.seed.setCustomValidity(!text || isSeed(text) ? "" : "A seed is a whole number from 0 to 18446744073709551615.");
  }

  /** What the chosen model still needs, as {text, node: what to press}; null where it can draw. */
  lacks() {
    return this.start.lacks() ?? this.nets.lacks();
  }

  /** Where a picture goes that is dropped on this element, or pasted into it; null where it goes nowhere. */
  pickAt(target) {
    const own = this.nets.picks.find(({ node }) => node.closest(".unit").contains(target));
    return own ?? (this.start.can ? this.start.pick : null);
  }

  /** Every place that takes a picture. */
  get picks() {
    return [this.start.pick, ...this.nets.picks];
  }

  /** The body of a job, without its kind and its pictures. */
  read() {
    return {
      model: this.model.value,
      prompt: this.prompt.value,
      negative_prompt: this.negative.value,
      ...this.size.read(),
      steps: Number(this.steps.value),
      guidance: Number(this.guidance.value),
      seed: this.seed.value.trim() || null,
      scheduler: this.scheduler.value || null,
      images: Number(this.images.value),
      format: this.format.value,
      previews: this.previews.input.checked,
      ...this.start.read(),
      ...this.loras.read(),
      ...this.nets.read(),
      ...this.hooks.read(),
      ...this.quality.read(),
    };
  }

  /** The pictures that belong into the body, as `withPictures` takes them. */
  pictures() {
    return { image: this.start.picture, mask: this.start.mask, control: this.nets.pictures() };
  }

  /**
   * Parameters by the names of `read`; what is missing stays as it is, what this server has not is left out.
   *
   * pictures: those that belong to them, as `pictures` gives them; null leaves what is there.
   */
  write(given, pictures = null) {
    const has = (select, value) => [...select.options].some((option) => option.value === value);
    if (given.model !== undefined && has(this.model, given.model)) {
      this.model.value = given.model;
      this.#fit();
    }
    for (const [name, input] of [["prompt", this.prompt], ["negative_prompt", this.negative], ["images", this.images], ["steps", this.steps], ["guidance", this.guidance]]) {
      if (given[name] !== undefined && given[name] !== null) input.value = given[name];
    }
    if (given.seed !== undefined) this.#setSeed(given.seed === null ? "" : String(given.seed));
    if (given.scheduler !== undefined) this.scheduler.value = has(this.scheduler, given.scheduler ?? "") ? (given.scheduler ?? "") : "";
    if (given.format !== undefined && has(this.format, given.format)) this.format.value = given.format;
    if (given.previews !== undefined) this.previews.input.checked = given.previews;
    this.start.write(given, pictures);
    if (given.width && given.height) this.size.write(given); // after the picture, which has a size of its own
    if (given.loras !== undefined) this.#writeLoras(given.loras ?? {});
    if (given.control !== undefined) this.nets.write(given.control ?? [], pictures?.control ?? []);
    if (given.hooks !== undefined) this.hooks.write(given.hooks);
    this.quality.write(given);
  }

  /** One with two strengths has no slider; the prompt can name it. */
  #writeLoras(loras) {
    const all = Object.entries(loras);
    this.loras.write(Object.fromEntries(all.filter(([, strengths]) => !Array.isArray(strengths))));
    for (const [name, strengths] of all) if (Array.isArray(strengths)) this.prompt.value += ` ${tagOf(name, strengths)}`;
  }
}

function thrown() {
  return crypto.getRandomValues(new Uint32Array(1))[0];
}
