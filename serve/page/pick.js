// A place for one picture: dropped, pasted or chosen; shown small, with a button that removes it.

import { el, write } from "./dom.js";
import { givenFrom } from "./given.js";
import { icon } from "./icons.js";
import { say } from "./say.js";
import { told } from "./words.js";

/** "change": there is another picture, or none. what: names it within a sentence: "the start picture". */
export class Pick extends EventTarget {
  #given = null;
  #turn = 0; // a file that is still being read when another comes is dropped

  constructor(what) {
    super();
    this.what = what;
    this.file = el("input", { type: "file", accept: "image/png,image/jpeg,image/webp", class: "offscreen", tabindex: -1, "aria-hidden": "true", onchange: () => this.#chosen() });
    this.choose = el("button", { type: "button", "aria-label": `Choose ${what}`, onclick: () => this.file.click() }, "Choose");
    this.thumb = el("img", { alt: "" });
    this.over = el("img", { class: "mask", alt: "", hidden: true });
    this.name = el("p", { class: "file" });
    this.size = el("p", { class: "soft" });
    this.hint = el("span", { class: "soft" }, "Drop, paste or");
    this.more = el("div", { class: "actions" });
    const away = el("button", { type: "button", class: "square", title: "Remove", "aria-label": `Remove ${what}`, onclick: () => this.remove() }, icon("close"));
    this.empty = el("div", { class: "line" }, icon("picture"), this.hint, this.choose);
    this.full = el("div", { class: "line held", hidden: true },
      el("span", { class: "small" }, this.thumb, this.over),
      el("div", { class: "grow" }, this.name, this.size, this.more),
      away);
    this.node = el("div", { class: "pick" }, this.empty, this.full, this.file);
  }

  get given() {
    return this.#given;
  }

  /** Take a file of the user's; says what is wrong with it, if anything is. */
  async take(file, name = file.name) {
    const turn = (this.#turn += 1);
    try {
      const given = await givenFrom(file, name);
      if (turn === this.#turn) this.set(given);
    } catch (error) {
      say(told(error));
    }
  }

  /** given: of `givenFrom`, or null. */
  set(given) {
    this.#turn += 1;
    this.#given = given;
    this.empty.hidden = given !== null;
    this.full.hidden = given === null;
    if (given) {
      this.thumb.src = given.thumb;
      this.thumb.alt = given.name;
      this.name.title = given.name;
      write(this.name, given.name);
      write(this.size, `${given.width} × ${given.height}`);
    } else {
      this.thumb.removeAttribute("src");
    }
    this.cover(null);
    this.dispatchEvent(new Event("change"));
  }

  /** Show a mask over it, or none. */
  cover(mask) {
    this.over.hidden = mask === null;
    if (mask) this.over.src = mask.thumb;
    else this.over.removeAttribute("src");
  }

  remove() {
    this.set(null);
    this.choose.focus();
  }

  #chosen() {
    const [file] = this.file.files;
    this.file.value = ""; // so that the same file can be chosen again
    if (file) this.take(file);
  }
}
