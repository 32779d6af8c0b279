// The fields of a drawing: what generate asks for, and what other panels that draw will ask for too.

import { el, field, fill, newId, tick } from "./dom.js";
import { icon } from "./icons.js";

const ASPECTS = [[1, 1], [4, 3], [3, 4], [3, 2], [2, 3], [16, 9], [9, 16]];
const LONGEST = 4096; // pixels, the server's own bound
const LARGER = 1.8; // times the model's own area, or a part of it
const OFF = 0.05; // from the shape that a button names
const SEED = 2n ** 64n;

/** Sizes of the usual shapes near the model's own area, as multiples that it can draw: [width, height, name]. */
export function sizesOf({ width, height, multiple_of: unit }) {
  const area = width * height;
  const found = [];
  for (const [across, down] of ASPECTS) {
    let best = null;
    for (let w = unit; w <= LONGEST && w * unit <= LARGER * area; w += unit) {
      const h = toUnit((w * down) / across, unit);
      const off = Math.abs(Math.log((w * down) / (h * across)));
      const far = Math.abs(Math.log((w * h) / area));
      const cost = 4 * off + far; // the name should be true before the area is
      if (off < OFF && far < Math.log(LARGER) && (best === null || cost < best.cost)) best = { w, h, cost };
    }
    if (best) found.push([best.w, best.h, `${across}:${down}`]);
  }
  return found;
}

/** The multiple that is nearest, at least one. */
export function toUnit(side, unit) {
  const most = Math.floor(LONGEST / unit) * unit;
  return Math.min(most, Math.max(unit, Math.round(side / unit) * unit));
}

/** Whether this is a seed: 0 to 2**64 - 1, in digits. */
export const isSeed = (text) => /^\d{1,20}$/.test(text) && BigInt(text) < SEED;

/**
 * Fields for a drawing. `nodes` holds each by its name, to be put where a panel wants it.
 *
 * read: what is asked for, as the body of a job. write: put parameters in, those that are given. offer: take the models
 * that the server has. lastSeed: is asked for the seed of the newest picture.
 */
export class DrawFields {
  #models = [];

  constructor({ lastSeed }) {
    this.prompt = el("textarea", { rows: 3, maxlength: 20000, required: true, placeholder: "What the picture shows" });
    this.negative = el("textarea", { rows: 2, maxlength: 20000, placeholder: "What it shall not show" });
    this.model = el("select", { onchange: () => this.#fit() });
    this.width = this.#side("Width");
    this.height = this.#side("Height");
    this.steps = paired("Steps", { min: 1, max: 100, most: 1000, step: 1, value: 30 });
    this.guidance = paired("Guidance", { min: 0, max: 20, most: 100, step: 0.5, value: 7.5, any: true });
    this.scheduler = el("select");
    this.seed = el("input", {
      type: "text", inputmode: "numeric", autocomplete: "off", spellcheck: "false", placeholder: "random",
      oninput: () => this.#checkSeed(),
    });
    this.images = el("input", { type: "number", min: 1, max: 16, step: 1, value: 1, required: true });
    this.format = el("select");
    fill(this.format, [["png", "PNG"], ["jpeg", "JPEG"], ["webp", "WebP"]]);
    this.previews = tick("Preview each step", true);
    this.chips = el("div", { class: "chips", role: "group", "aria-label": "Shape" });
    this.again = el("button", { type: "button", class: "square", title: "The last picture's seed", "aria-label": "Use the last picture's seed", onclick: () => this.#setSeed(lastSeed()) }, icon("again"));
    this.nodes = this.#nodes();
    this.mayRepeat(false);
  }

  #side(label) {
    return el("input", { type: "number", "aria-label": `${label} in pixels`, required: true, onchange: (event) => this.#snap(event.target) });
  }

  #nodes() {
    const dice = el("button", { type: "button", class: "square", title: "Throw a new seed", "aria-label": "Throw a new seed", onclick: () => this.#setSeed(String(thrown())) }, icon("dice"));
    const swap = el("button", { type: "button", class: "square", title: "Swap width and height", "aria-label": "Swap width and height", onclick: () => this.#setSize(this.height.value, this.width.value) }, icon("swap"));
    const sides = el("div", { class: "line" }, this.width, el("span", { class: "soft", "aria-hidden": "true" }, "×"), this.height, swap);
    const label = newId("size");
    this.seed.id = newId("seed");
    return {
      prompt: field("Prompt", this.prompt),
      negative: field("Negative prompt", this.negative),
      model: field("Model", this.model),
      size: el("div", { class: "field size", role: "group", "aria-labelledby": label }, el("span", { class: "label", id: label }, "Size"), sides, this.chips),
      steps: this.steps.node,
      guidance: this.guidance.node,
      scheduler: field("Scheduler", this.scheduler),
      seed: el("div", { class: "field" }, el("label", { for: this.seed.id }, "Seed"), el("div", { class: "line" }, this.seed, dice, this.again)),
      images: field("Pictures", this.images),
      format: field("Format", this.format),
      previews: this.previews.node,
    };
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

  /** Bring size, shapes and schedulers to what the chosen model can do. */
  #fit() {
    const model = this.chosen;
    if (!model) return;
    const unit = model.multiple_of;
    for (const side of [this.width, this.height]) {
      side.min = side.step = unit;
      side.max = Math.floor(LONGEST / unit) * unit;
    }
    const far = Math.max(this.width.value, this.height.value) > 2 * Math.max(model.width, model.height)
      || Math.min(this.width.value, this.height.value) * 2 < Math.min(model.width, model.height);
    if (!this.width.value || far) this.#setSize(model.width, model.height); // another model's scale
    else this.#setSize(toUnit(this.width.value, unit), toUnit(this.height.value, unit));
    this.chips.replaceChildren(...sizesOf(model).map(([width, height, name]) => this.#chip(width, height, name)));
    this.#mark();
    const own = model.scheduler ? `${model.scheduler} (own)` : "model's own";
    fill(this.scheduler, [["", own], ...(model.schedulers ?? []).map((name) => [name, name])]);
  }

  #chip(width, height, name) {
    const long = Math.max(width, height);
    const shape = el("span", { class: "shape", "aria-hidden": "true" });
    shape.style.width = `${(width / long) * 0.85}rem`;
    shape.style.height = `${(height / long) * 0.85}rem`;
    const label = `${name}, ${width} by ${height} pixels`;
    return el("button", { type: "button", class: "chip", "data-size": `${width}x${height}`, "aria-label": label, title: `${width} × ${height}`, onclick: () => this.#setSize(width, height) }, el("span", { class: "room" }, shape), name);
  }

  #snap(side) {
    const unit = this.chosen?.multiple_of ?? 1;
    side.value = toUnit(Number(side.value) || unit, unit);
    this.#mark();
  }

  #setSize(width, height) {
    this.width.value = width;
    this.height.value = height;
    this.#mark();
  }

  #mark() {
    const size = `${this.width.value}x${this.height.value}`;
    for (const chip of this.chips.children) chip.setAttribute("aria-pressed", String(chip.dataset.size === size));
  }

  #setSeed(seed) {
    this.seed.value = seed ?? "";
    this.#checkSeed();
    this.seed.dispatchEvent(new Event("input", { bubbles: true }));
  }

  #checkSeed() {
    const text = this.seed.value.trim();
    this.seed.setCustomValidity(!text || isSeed(text) ? "" : "A seed is a whole number from 0 to 18446744073709551615.");
  }

  /** The body of a job, without its kind. */
  read() {
    return {
      model: this.model.value,
      prompt: this.prompt.value,
      negative_prompt: this.negative.value,
      width: Number(this.width.value),
      height: Number(this.height.value),
      steps: Number(this.steps.value),
      guidance: Number(this.guidance.value),
      seed: this.seed.value.trim() || null,
      scheduler: this.scheduler.value || null,
      images: Number(this.images.value),
      format: this.format.value,
      previews: this.previews.input.checked,
    };
  }

  /** Parameters by the names of `read`; what is missing stays as it is, what this server has not is left out. */
  write(given) {
    const has = (select, value) => [...select.options].some((option) => option.value === value);
    if (given.model !== undefined && has(this.model, given.model)) {
      this.model.value = given.model;
      this.#fit();
    }
    if (given.width && given.height) this.#setSize(given.width, given.height);
    for (const [name, input] of [["prompt", this.prompt], ["negative_prompt", this.negative], ["images", this.images], ["steps", this.steps], ["guidance", this.guidance]]) {
      if (given[name] !== undefined && given[name] !== null) input.value = given[name];
    }
    if (given.seed !== undefined) this.#setSeed(given.seed === null ? "" : String(given.seed));
    if (given.scheduler !== undefined) this.scheduler.value = has(this.scheduler, given.scheduler ?? "") ? (given.scheduler ?? "") : "";
    if (given.format !== undefined && has(this.format, given.format)) this.format.value = given.format;
    if (given.previews !== undefined) this.previews.input.checked = given.previews;
  }
}

/** A slider for the usual values beside a number for all of them; its `value` is the number's. */
function paired(label, { min, max, most, step, value, any }) {
  const number = el("input", { type: "number", min, max: most, step: any ? "any" : step, value, required: true });
  const slider = el("input", { type: "range", min, max, step, value, tabindex: -1, "aria-hidden": "true" });
  number.addEventListener("input", () => (slider.value = number.value));
  slider.addEventListener("input", () => (number.value = slider.value));
  number.id = newId("number");
  return {
    node: el("div", { class: "field" }, el("label", { for: number.id }, label), el("div", { class: "line" }, slider, number)),
    get value() {
      return number.value;
    },
    set value(given) {
      number.value = slider.value = given;
    },
  };
}

function thrown() {
  return crypto.getRandomValues(new Uint32Array(1))[0];
}
