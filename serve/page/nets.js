// ControlNets: pictures that a drawing follows, each by its edges, its lines or as it is.

import { el, field, fill, newId } from "./dom.js";
import { icon } from "./icons.js";
import { Pick } from "./pick.js";
import { paired } from "./slider.js";

/** How a control picture is made of the one that is given: the API's name, and ours. */
export const MADE_BY = [["picture", "as it is"], ["canny", "edges (canny)"], ["lineart", "lines (lineart)"]];

const MOST = 8; // in one drawing

/** "change": there are more or fewer, or another picture. */
export class NetsPart extends EventTarget {
  #rows = [];
  #names = [];

  constructor() {
    super();
    this.list = el("ul", { class: "units" });
    this.more = el("button", { type: "button", onclick: () => this.#more() }, "Add a ControlNet");
    const label = newId("nets");
    this.node = el("div", { class: "field wide", role: "group", "aria-labelledby": label },
      el("span", { class: "label", id: label }, "ControlNets"), this.list, this.more);
    this.node.hidden = true;
  }

  /** model: those that it can follow. */
  fit(model) {
    const names = model.controlnets ?? [];
    if (String(names) === String(this.#names)) return;
    this.#names = names;
    this.node.hidden = !names.length;
    for (const row of [...this.#rows]) {
      if (names.includes(row.net.value)) row.offer(names);
      else this.#drop(row);
    }
  }

  get picks() {
    return this.#rows.map((row) => row.pick);
  }

  /** The first that has no picture, as {text, node}; null where all have. */
  lacks() {
    const row = this.#rows.find(({ pick }) => !pick.given);
    return row ? { text: "A ControlNet needs a picture to follow: give one, or remove it.", node: row.pick.choose } : null;
  }

  read() {
    return this.#rows.length ? { control: this.#rows.map((row) => row.read()) } : {};
  }

  pictures() {
    return this.#rows.map(({ pick }) => pick.given);
  }

  /** control: of a body; those that this model cannot follow are left out. pictures: one for each, or null. */
  write(control, pictures) {
    for (const row of [...this.#rows]) this.#drop(row);
    control.forEach((one, at) => this.#names.includes(one.net) && this.#add(one, pictures[at] ?? null));
  }

  #more() {
    this.#add({ net: this.#names[0] }, null).pick.choose.focus();
    this.dispatchEvent(new Event("change"));
  }

  #add(given, picture) {
    const row = new Row(this.#names, given, picture, () => {
      this.#drop(row);
      this.more.focus();
      this.dispatchEvent(new Event("change"));
    });
    row.pick.addEventListener("change", () => this.dispatchEvent(new Event("change")));
    this.#rows.push(row);
    this.list.append(row.node);
    this.#count();
    return row;
  }

  #drop(row) {
    this.#rows = this.#rows.filter((one) => one !== row);
    row.node.remove();
    this.#count();
  }

  #count() {
    this.more.disabled = this.#rows.length >= MOST;
    this.#rows.forEach((row, at) => row.number(at + 1));
  }
}

class Row {
  constructor(names, { net, made_by: way = "picture", strength = 1, start = 0, end = 1 }, picture, gone) {
    this.pick = new Pick("the picture to follow");
    if (picture) this.pick.set(picture);
    this.net = el("select");
    this.offer(names, net);
    this.way = el("select");
    fill(this.way, MADE_BY, way);
    this.strength = paired("Strength", { min: 0, max: 2, most: 100, step: 0.05, value: strength, any: true });
    this.start = share("From", "The part of the steps from which it works", start);
    this.end = share("To", "The part of the steps to which it works", end);
    for (const one of [this.start, this.end]) one.addEventListener("input", () => this.#check());
    this.title = el("span", { class: "label" });
    this.away = el("button", { type: "button", class: "square", title: "Remove", onclick: gone }, icon("close"));
    this.one = field("ControlNet", this.net);
    this.node = el("li", { class: "unit", role: "group" },
      el("div", { class: "line head" }, this.title, this.away),
      this.one, this.pick.node, field("Made by", this.way), this.strength.node,
      el("div", { class: "pair" }, field("From", this.start), field("To", this.end)));
    this.#check();
  }

  offer(names, wanted = this.net.value) {
    fill(this.net, names.map((name) => [name, name]), wanted);
  }

  /** Which of the ControlNets it is, for who cannot see. */
  number(number) {
    this.title.textContent = `ControlNet ${number}`;
    this.node.setAttribute("aria-label", `ControlNet ${number}`);
    this.away.setAttribute("aria-label", `Remove ControlNet ${number}`);
  }

  read() {
    return {
      net: this.net.value,
      made_by: this.way.value,
      strength: Number(this.strength.value),
      start: Number(this.start.value),
      end: Number(this.end.value),
    };
  }

  #check() {
    const wrong = Number(this.start.value) >= Number(this.end.value);
    this.end.setCustomValidity(wrong ? "It must end after it begins." : "");
  }
}

function share(label, title, value) {
  return el("input", { type: "number", min: 0, max: 1, step: "any", value, required: true, title });
}
