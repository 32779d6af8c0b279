// Hooks: the server's own plugins around a drawing, each of which can be left out.

import { el, newId, tick } from "./dom.js";

export class HooksPart {
  #ticks = new Map(); // name -> its box

  constructor() {
    const label = newId("hooks");
    this.list = el("div", { class: "actions" });
    this.node = el("div", { class: "field", role: "group", "aria-labelledby": label }, el("span", { class: "label", id: label }, "Hooks"), this.list);
    this.node.hidden = true;
  }

  fit(model) {
    const names = model.hooks ?? [];
    if (String(names) === String([...this.#ticks.keys()])) return;
    const before = this.#ticks;
    this.#ticks = new Map(names.map((name) => [name, tick(name, before.get(name)?.input.checked ?? true)]));
    this.list.replaceChildren(...[...this.#ticks.values()].map(({ node }) => node));
    this.node.hidden = !names.length;
  }

  /** Nothing where all of them work, which is what the server does by itself. */
  read() {
    const on = [...this.#ticks].filter(([, { input }]) => input.checked).map(([name]) => name);
    return on.length === this.#ticks.size ? {} : { hooks: on };
  }

  /** hooks: names, or null for all. */
  write(hooks) {
    for (const [name, { input }] of this.#ticks) input.checked = hooks?.includes(name) ?? true;
  }
}
