// Quality: whether all of a picture's work is done, or what of it is left out.

import { el, field, fill } from "./dom.js";
import { lessOf, lessText } from "./made.js";

const OFFERED = [["exact", "exact"], ["fast", "fast: less work"]];

export class QualityPart {
  #own = "exact"; // what the server does by itself
  #less = {}; // what another drawing left out, by the names of a job's body

  constructor() {
    this.select = el("select");
    fill(this.select, OFFERED);
    this.node = field("Quality", this.select);
  }

  fit(model) {
    const own = model.preset === "fast" ? "fast" : "exact";
    if (this.select.value === this.#own) this.select.value = own;
    this.#own = own;
  }

  /** Nothing where it is what the server does by itself. */
  read() {
    const chosen = this.select.value;
    if (chosen === "same") return { preset: "exact", ...this.#less };
    return chosen === this.#own ? {} : { preset: chosen };
  }

  /** What is left out in another way than a choice here does it is offered as it is. */
  write(given) {
    const less = lessOf(given);
    if (given.preset === undefined && !Object.keys(less).length) return;
    const fast = given.preset === "fast";
    this.#less = fast ? {} : less;
    const own = Object.keys(this.#less).length > 0;
    fill(this.select, own ? [...OFFERED, ["same", lessText(less)]] : OFFERED, fast ? "fast" : own ? "same" : "exact");
  }
}
