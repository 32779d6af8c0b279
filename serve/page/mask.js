// A mask painted by hand over a picture: white where something new is drawn, black where the picture stays.

import { el, write } from "./dom.js";
import { isPicture } from "./files.js";
import { canvasOf, givenOf } from "./given.js";
import { say } from "./say.js";
import { paired } from "./slider.js";

const COLOUR = [80, 60, 255]; // of what is painted, on the screen alone: few pictures are of it
const STEP = 0.5; // of the brush, that an arrow key moves it
const MOVES = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
const LIGHT = [0.299, 0.587, 0.114]; // of red, green and blue in a grey (ITU-R BT.601), as the server reads a mask

/** The window in which one paints. It stays in the page, and is used again. */
export class MaskPainter {
  #at = [0, 0]; // of the brush, in pixels of the picture
  #down = false;
  #erases = false;

  constructor() {
    this.picture = el("img", { alt: "" });
    this.canvas = el("canvas", {
      tabindex: 0, role: "application", "aria-label": "Mask over the picture: arrow keys move the brush, Space paints",
      onpointerdown: (event) => this.#press(event), onpointermove: (event) => this.#move(event),
      onpointerup: () => this.#lift(), onpointercancel: () => this.#lift(),
      onkeydown: (event) => this.#key(event), onkeyup: (event) => event.key === " " && this.#lift(), onblur: () => this.#lift(),
    });
    this.ring = el("span", { class: "ring", "aria-hidden": "true" });
    this.board = el("div", { class: "board" }, this.picture, this.canvas, this.ring);
    this.brush = paired("Brush", { min: 1, max: 50, most: 100, step: 1, value: 12 });
    this.brush.node.addEventListener("input", () => this.#place());
    this.paint = el("button", { type: "button", onclick: () => this.#take(false) }, "Paint");
    this.erase = el("button", { type: "button", onclick: () => this.#take(true) }, "Erase");
    this.file = el("input", { type: "file", accept: "image/png,image/jpeg,image/webp", class: "offscreen", tabindex: -1, "aria-hidden": "true", onchange: () => this.#chosen() });
    this.said = el("p", { class: "hint", role: "status" });
    const button = (label, work, className = "") => el("button", { type: "button", class: className, onclick: work }, label);
    this.dialog = el("dialog", { class: "painter", "aria-labelledby": "painter-title" },
      el("h2", { id: "painter-title" }, "Mask"),
      el("p", { class: "soft" }, "Paint over what shall be drawn anew. The rest of the picture stays."),
      this.board,
      el("div", { class: "actions" },
        el("div", { class: "two", role: "group", "aria-label": "Tool" }, this.paint, this.erase),
        button("Clear", () => this.#clear()),
        button("Invert", () => this.#invert()),
        button("From a file", () => this.file.click()), this.file),
      this.brush.node,
      this.said,
      el("div", { class: "actions ends" },
        button("Use it", () => this.dialog.close("use"), "strong"),
        button("Cancel", () => this.dialog.close(""))));
    document.body.append(this.dialog);
  }

  /** Resolves with the mask, in the picture's size; with null where nothing is painted, undefined where it is cancelled. */
  async open(picture, mask) {
    const { width, height } = picture;
    Object.assign(this.canvas, { width, height }); // which clears it too
    this.#at = [width / 2, height / 2];
    this.board.style.setProperty("--ratio", String(width / height));
    this.board.classList.toggle("tiny", Math.max(width, height) <= 128);
    const url = URL.createObjectURL(picture.blob);
    this.picture.src = url;
    if (mask) await this.#read(mask.blob);
    write(this.said, "");
    this.#take(false);
    this.dialog.returnValue = "";
    this.dialog.showModal();
    await new Promise((go) => this.dialog.addEventListener("close", go, { once: true }));
    URL.revokeObjectURL(url);
    this.picture.removeAttribute("src");
    if (this.dialog.returnValue !== "use") return undefined;
    return this.#painted() ? givenOf(this.#made(), "the mask") : null;
  }

  get #context() {
    return this.canvas.getContext("2d", { willReadFrequently: true });
  }

  /** The brush across, in pixels of the picture. */
  get #across() {
    const { width, height } = this.canvas;
    return Math.max(1, (Math.max(width, height) * Math.min(100, Number(this.brush.value) || 1)) / 100);
  }

  #take(erases) {
    this.#erases = erases;
    this.paint.setAttribute("aria-pressed", String(!erases));
    this.erase.setAttribute("aria-pressed", String(erases));
    this.#place();
  }

  #point(event) {
    const box = this.canvas.getBoundingClientRect();
    return [((event.clientX - box.left) * this.canvas.width) / box.width, ((event.clientY - box.top) * this.canvas.height) / box.height];
  }

  #press(event) {
    if (event.button !== 0) return;
    event.preventDefault();
    this.canvas.focus();
    this.canvas.setPointerCapture(event.pointerId);
    this.#at = this.#point(event);
    this.#down = true;
    this.#stroke(this.#at);
  }

  #move(event) {
    for (const one of event.getCoalescedEvents?.() ?? []) this.#go(this.#point(one));
    this.#go(this.#point(event));
  }

  #lift() {
    this.#down = false;
  }

  #key(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const by = MOVES[event.key];
    if (!by && event.key !== " ") return;
    event.preventDefault();
    if (event.key === " ") {
      this.#down = true;
      this.#stroke(this.#at);
      return;
    }
    const { width, height } = this.canvas;
    const step = Math.max(1, this.#across * STEP);
    const [x, y] = [this.#at[0] + by[0] * step, this.#at[1] + by[1] * step];
    this.#go([Math.min(width, Math.max(0, x)), Math.min(height, Math.max(0, y))]);
  }

  #go(to) {
    if (this.#down) this.#stroke(to);
    this.#at = to;
    this.#place();
  }

  #stroke([x, y]) {
    const context = this.#context;
    context.globalCompositeOperation = this.#erases ? "destination-out" : "source-over";
    context.strokeStyle = `rgb(${COLOUR})`;
    context.lineCap = "round";
    context.lineWidth = this.#across;
    context.beginPath();
    context.moveTo(...this.#at);
    context.lineTo(x + 0.01, y); // a line without any length is not drawn
    context.stroke();
    context.globalCompositeOperation = "source-over";
  }

  /** Show where the brush is and how large. */
  #place() {
    const { width, height } = this.canvas;
    this.ring.style.left = `${(100 * this.#at[0]) / width}%`;
    this.ring.style.top = `${(100 * this.#at[1]) / height}%`;
    this.ring.style.width = `${(100 * this.#across) / width}%`;
    this.ring.classList.toggle("erases", this.#erases);
  }

  #clear() {
    this.#context.clearRect(0, 0, this.canvas.width, this.canvas.height);
    write(this.said, "");
  }

  #invert() {
    const context = this.#context;
    context.globalCompositeOperation = "xor"; // what is covered is left out, and the other way round
    context.fillStyle = `rgb(${COLOUR})`;
    context.fillRect(0, 0, this.canvas.width, this.canvas.height);
    context.globalCompositeOperation = "source-over";
  }

  async #chosen() {
    const [file] = this.file.files;
    this.file.value = "";
    if (!file) return;
    try {
      if (!(await isPicture(file))) throw new Error();
      await this.#read(file);
      write(this.said, `${file.name}: white is drawn anew.`);
    } catch {
      say(`${file.name} is no PNG, JPEG or WebP that can be read.`);
    }
  }

  /** What is white in a picture becomes what is painted; on white where it is transparent, stretched to the size. */
  async #read(blob) {
    const { width, height } = this.canvas;
    const bitmap = await createImageBitmap(blob);
    const canvas = canvasOf(width, height);
    const context = canvas.getContext("2d");
    context.fillStyle = "#fff";
    context.fillRect(0, 0, width, height);
    context.drawImage(bitmap, 0, 0, width, height);
    bitmap.close();
    const pixels = context.getImageData(0, 0, width, height);
    const { data } = pixels;
    for (let at = 0; at < data.length; at += 4) {
      data[at + 3] = Math.round(LIGHT[0] * data[at] + LIGHT[1] * data[at + 1] + LIGHT[2] * data[at + 2]);
      data.set(COLOUR, at);
    }
    this.#context.putImageData(pixels, 0, 0);
  }

  /** Whether anything is. */
  #painted() {
    const { data } = this.#context.getImageData(0, 0, this.canvas.width, this.canvas.height);
    for (let at = 3; at < data.length; at += 4) if (data[at] >= 128) return true;
    return false;
  }

  /** White where it is painted, on black. */
  #made() {
    const { width, height } = this.canvas;
    const white = canvasOf(width, height);
    const above = white.getContext("2d");
    above.drawImage(this.canvas, 0, 0);
    above.globalCompositeOperation = "source-in";
    above.fillStyle = "#fff";
    above.fillRect(0, 0, width, height);
    const made = canvasOf(width, height);
    const context = made.getContext("2d");
    context.fillStyle = "#000";
    context.fillRect(0, 0, width, height);
    context.drawImage(white, 0, 0);
    return made;
  }
}
