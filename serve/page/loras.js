// LoRAs: those that are laid on the model for a drawing, each with its strength.

import { el, fill, newId } from "./dom.js";
import { icon } from "./icons.js";
import { paired } from "./slider.js";

/** "change": there are more or fewer. */
export class LorasPart extends EventTarget {
  #rows = new Map(); // name -> {node, strength}
  #names = [];

  constructor() {
    super();
    this.list = el("ul", { class: "units" });
    this.select = el("select", { "aria-label": "LoRA to add" });
    this.more = el("button", { type: "button", class: "square", title: "Add this LoRA", "aria-label": "Add this LoRA", onclick: () => this.#more() }, icon("plus"));
    const label = newId("loras");
    this.adding = el("div", { class: "line" }, this.select, this.more);
    this.node = el("div", { class: "field", role: "group", "aria-labelledby": label },
      el("span", { class: "label", id: label }, "LoRAs"), this.adding, this.list);
    this.node.hidden = true;
  }

  /** model: those that there are for it. */
  fit(model) {
    const names = model.loras ?? [];
    if (String(names) === String(this.#names)) return;
    this.#names = names;
    this.node.hidden = !names.length;
    for (const name of [...this.#rows.keys()]) if (!names.includes(name)) this.#drop(name);
    this.#offer();
  }

  read() {
    if (!this.#rows.size) return {};
    return { loras: Object.fromEntries([...this.#rows].map(([name, { strength }]) => [name, Number(strength.value)])) };
  }

  /** loras: name -> strength; those that are not there are left out. */
  write(loras) {
    for (const name of [...this.#rows.keys()]) this.#drop(name);
    for (const [name, strength] of Object.entries(loras)) if (this.#names.includes(name)) this.#add(name, strength);
    this.#offer();
  }

  #more() {
    this.#add(this.select.value, 1).number.focus();
    this.#offer();
    this.dispatchEvent(new Event("change"));
  }

  #add(name, value) {
    const strength = paired(name, { min: 0, max: 1.5, least: -10, most: 10, step: 0.05, value, any: true });
    const away = el("button", { type: "button", class: "square", title: "Remove", "aria-label": `Remove ${name}`, onclick: () => this.#away(name) }, icon("close"));
    const node = el("li", { class: "line lora" }, strength.node, away);
    this.#rows.set(name, { node, strength });
    this.list.append(node);
    return strength;
  }

  #away(name) {
    this.#drop(name);
    this.#offer();
    this.select.focus();
    this.dispatchEvent(new Event("change"));
  }

  #drop(name) {
    this.#rows.get(name).node.remove();
    this.#rows.delete(name);
  }

  /** In the list are those that are not chosen yet. */
  #offer() {
    const left = this.#names.filter((name) => !this.#rows.has(name));
    fill(this.select, left.map((name) => [name, name]));
    this.adding.hidden = !left.length;
  }
}
