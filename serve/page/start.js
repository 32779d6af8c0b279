// The picture that a drawing starts from: how much of it changes, and where.

import { el, newId, write } from "./dom.js";
import { MaskPainter } from "./mask.js";
import { Pick } from "./pick.js";
import { paired } from "./slider.js";

const OWN = { picture: 0.8, mask: 1 }; // the pipeline's own strengths

let painter = null; // one for the page

/** "change": there is another picture, mask, or none. */
export class StartPart extends EventTarget {
  #mask = null;
  #own = OWN.picture; // the strength that nobody has set
  #tasks = [];

  constructor() {
    super();
    this.pick = new Pick("the start picture");
    this.pick.addEventListener("change", () => this.#setMask(null));
    this.strength = paired("Strength", { min: 0.05, max: 1, least: 0.01, step: 0.05, value: OWN.picture, any: true });
    this.strength.number.title = "How much of the picture changes: 1 is the most";
    this.paint = el("button", { type: "button", onclick: () => this.#paint() }, "Paint a mask");
    this.unmask = el("button", { type: "button", hidden: true, onclick: () => this.#dropMask() }, "Remove mask");
    this.pick.more.append(this.paint, this.unmask);
    const label = newId("start");
    this.node = el("div", { class: "field start", role: "group", "aria-labelledby": label },
      el("span", { class: "label", id: label }, "Start picture"), this.pick.node, this.strength.node);
    this.#show();
  }

  /** model: what of this it can do is shown. */
  fit(model) {
    const tasks = model.tasks ?? ["text2img"];
    if (String(tasks) === String(this.#tasks)) return;
    this.#tasks = tasks;
    this.#show();
    this.dispatchEvent(new Event("change"));
  }

  get can() {
    return this.#tasks.includes("img2img") || this.#tasks.includes("inpaint");
  }

  get #masks() {
    return this.#tasks.includes("inpaint");
  }

  /** The picture that counts, or null. */
  get picture() {
    return this.can ? this.pick.given : null;
  }

  get mask() {
    return this.picture && this.#masks ? this.#mask : null;
  }

  /** What the model still needs, as {text, node}; null where it can draw. */
  lacks() {
    if (this.#tasks.includes("text2img") || !this.can) return null;
    if (!this.picture) return { text: "This model draws into a picture: give one.", node: this.pick.choose };
    if (!this.mask && !this.#tasks.includes("img2img")) return { text: "This model draws what a mask covers: paint one.", node: this.paint };
    return null;
  }

  read() {
    return this.picture ? { strength: Number(this.strength.value) } : {};
  }

  /** strength: of a body. pictures: {image, mask}, or null to leave what is there. */
  write({ strength }, pictures) {
    if (pictures) {
      this.pick.set(pictures.image ?? null);
      this.#setMask(pictures.mask ?? null);
    }
    if (strength !== undefined && strength !== null) this.strength.value = strength;
  }

  #show() {
    this.node.hidden = !this.can;
    this.strength.node.hidden = !this.pick.given;
    this.strength.number.disabled = !this.picture; // one that is not seen must not be asked to be right
    this.paint.hidden = !this.#masks;
    this.unmask.hidden = !this.#masks || !this.#mask;
    write(this.paint, this.#mask ? "Change mask" : "Paint a mask");
    this.pick.cover(this.#masks ? this.#mask : null);
  }

  #setMask(mask) {
    this.#mask = mask;
    const own = mask ? OWN.mask : OWN.picture;
    if (Number(this.strength.value) === this.#own) this.strength.value = own;
    this.#own = own;
    this.#show();
    this.dispatchEvent(new Event("change"));
  }

  #dropMask() {
    this.#setMask(null);
    this.paint.focus();
  }

  async #paint() {
    painter ??= new MaskPainter();
    const picture = this.pick.given;
    const mask = await painter.open(picture, this.#mask);
    if (mask !== undefined && picture === this.pick.given) this.#setMask(mask);
  }
}
