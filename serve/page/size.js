// The size of a drawing: two numbers, and buttons for the usual shapes. Until the user sets one it is the model's own,
// or that of the picture that the drawing starts from.

import { el, newId } from "./dom.js";
import { icon } from "./icons.js";

const ASPECTS = [[1, 1], [4, 3], [3, 4], [3, 2], [2, 3], [16, 9], [9, 16]];
const LONGEST = 4096; // pixels, the server's own bound
const LARGER = 1.8; // times the model's own area, or a part of it
const OFF = 0.05; // from the shape that a button names
const SCALE = 2; // times the model's own sides, or a part of them: beyond that models draw badly

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

/** A picture's size as the model can draw it: its own where that is near the model's scale, else its shape. */
export function sizeLike(picture, model) {
  const long = Math.max(picture.width, picture.height);
  const short = Math.min(picture.width, picture.height);
  const most = (SCALE * Math.max(model.width, model.height)) / long;
  const least = Math.min(model.width, model.height) / SCALE / short;
  const scale = Math.min(most, Math.max(1, least));
  return [picture.width, picture.height].map((side) => toUnit(side * scale, model.multiple_of));
}

const isFar = (width, height, model) =>
  Math.max(width, height) > SCALE * Math.max(model.width, model.height)
  || Math.min(width, height) * SCALE < Math.min(model.width, model.height);

export class SizeField {
  #model = null;
  #picture = null; // {width, height}
  #set = false; // by the user

  constructor() {
    this.width = this.#side("Width");
    this.height = this.#side("Height");
    this.chips = el("div", { class: "chips", role: "group", "aria-label": "Shape" });
    const swap = el("button", { type: "button", class: "square", title: "Swap width and height", "aria-label": "Swap width and height", onclick: () => this.#choose(this.height.value, this.width.value) }, icon("swap"));
    const sides = el("div", { class: "line" }, this.width, el("span", { class: "soft", "aria-hidden": "true" }, "×"), this.height, swap);
    const label = newId("size");
    this.node = el("div", { class: "field size", role: "group", "aria-labelledby": label }, el("span", { class: "label", id: label }, "Size"), sides, this.chips);
  }

  #side(label) {
    return el("input", { type: "number", "aria-label": `${label} in pixels`, required: true, onchange: (event) => this.#snap(event.target) });
  }

  /** Bring the size and the shapes to what this model can draw. */
  fit(model) {
    const other = model.name !== this.#model?.name;
    this.#model = model;
    const unit = model.multiple_of;
    for (const side of [this.width, this.height]) {
      side.min = side.step = unit;
      side.max = Math.floor(LONGEST / unit) * unit;
    }
    if (other && isFar(this.width.value, this.height.value, model)) this.#set = false; // another model's scale
    if (!this.#set) this.#byItself();
    else if (other) this.#show(toUnit(this.width.value, unit), toUnit(this.height.value, unit));
    if (other) this.chips.replaceChildren(...sizesOf(model).map(([width, height, name]) => this.#chip(width, height, name)));
    this.#mark();
  }

  /** picture: what the drawing starts from, or null. */
  follow(picture) {
    if (picture?.width === this.#picture?.width && picture?.height === this.#picture?.height) return;
    this.#picture = picture;
    if (!this.#set) this.#byItself();
  }

  #byItself() {
    if (this.#model) this.#show(...this.#own(this.#model));
  }

  /** The size that nobody has set: [width, height]. */
  #own(model) {
    return this.#picture ? sizeLike(this.#picture, model) : [model.width, model.height];
  }

  read() {
    return { width: Number(this.width.value), height: Number(this.height.value) };
  }

  write({ width, height }) {
    this.#set = !this.#model || String(this.#own(this.#model)) !== String([width, height]);
    this.#show(width, height);
  }

  #chip(width, height, name) {
    const long = Math.max(width, height);
    const shape = el("span", { class: "shape", "aria-hidden": "true" });
    shape.style.width = `${(width / long) * 0.85}rem`;
    shape.style.height = `${(height / long) * 0.85}rem`;
    const label = `${name}, ${width} by ${height} pixels`;
    return el("button", { type: "button", class: "chip", "data-size": `${width}x${height}`, "aria-label": label, title: `${width} × ${height}`, onclick: () => this.#choose(width, height) }, el("span", { class: "room" }, shape), name);
  }

  #snap(side) {
    const unit = this.#model?.multiple_of ?? 1;
    side.value = toUnit(Number(side.value) || unit, unit);
    this.#set = true;
    this.#mark();
  }

  #choose(width, height) {
    this.#set = true;
    this.#show(width, height);
    this.node.dispatchEvent(new Event("input", { bubbles: true }));
  }

  #show(width, height) {
    this.width.value = width;
    this.height.value = height;
    this.#mark();
  }

  #mark() {
    const size = `${this.width.value}x${this.height.value}`;
    for (const chip of this.chips.children) chip.setAttribute("aria-pressed", String(chip.dataset.size === size));
  }
}
