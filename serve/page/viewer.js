// A picture large, with how it was made. Arrow keys go on to the next one.

import { el, write } from "./dom.js";
import { icon } from "./icons.js";
import { madeWith } from "./made.js";
import { copyText, download, nameOf, show } from "./shots.js";
import { picture } from "./api.js";
import { size, span, when } from "./words.js";

const MOST = 8; // times its own size
const LEAST = 256; // pixels, to which even a tiny one may grow

/**
 * takers: [{label, take(shot), works?()}], what panels offer to do with a picture. hide: (shot) puts it out of sight, or null.
 */
export class Viewer {
  #shots = [];
  #at = 0;

  constructor({ takers, hide = null }) {
    this.image = el("img", { alt: "" });
    this.back = this.#arrow("left", "Previous picture", -1);
    this.on = this.#arrow("right", "Next picture", 1);
    this.list = el("dl", { class: "facts" });
    this.takers = takers.map((taker, at) => ({
      taker,
      button: el("button", { type: "button", class: at ? "" : "strong", onclick: () => this.#use(taker) }, taker.label),
    }));
    const actions = this.takers.map(({ button }) => button);
    actions.push(el("button", { type: "button", onclick: () => copyText(this.shot) }, "Copy settings"));
    actions.push(el("button", { type: "button", onclick: () => download(this.shot) }, "Download"));
    if (hide) actions.push(el("button", { type: "button", onclick: () => this.#hide(hide) }, "Hide"));
    this.dialog = el(
      "dialog",
      { class: "viewer", "aria-label": "Picture", onkeydown: (event) => this.#key(event), onclick: (event) => this.#outside(event) },
      el("div", { class: "stage" }, this.image, this.back, this.on),
      el("div", { class: "side" },
        el("button", { type: "button", class: "square away", title: "Close", "aria-label": "Close", onclick: () => this.dialog.close() }, icon("close")),
        this.list,
        el("div", { class: "actions" }, actions),
      ),
    );
    document.body.append(this.dialog);
  }

  get shot() {
    return this.#shots[this.#at];
  }

  /** moved: is told of the shot that is shown, so that focus can go back to it. */
  open(shots, at, moved = () => {}) {
    this.#shots = shots;
    for (const { taker, button } of this.takers) button.hidden = taker.works?.() === false;
    this.#go(at);
    this.dialog.showModal();
    this.dialog.addEventListener("close", () => this.shot && moved(this.shot), { once: true });
  }

  #arrow(name, label, by) {
    return el("button", { type: "button", class: `square arrow ${name}`, title: label, "aria-label": label, onclick: () => this.#go(this.#at + by) }, icon(name));
  }

  #go(to) {
    if (!this.#shots[to]) return;
    this.#at = to;
    this.back.disabled = to === 0;
    this.on.disabled = to === this.#shots.length - 1;
    this.image.alt = nameOf(this.shot);
    this.image.removeAttribute("src");
    this.#fetch(this.shot);
    this.#tell(this.shot);
    for (const near of [this.#shots[to + 1], this.#shots[to - 1]]) if (near) picture(near.path).catch(() => {});
  }

  /** A small picture is not enlarged until its pixels are all that one sees. */
  async #fetch(shot) {
    const { width, height } = shot.parameters;
    const most = width ? Math.max(MOST * width, LEAST) : 0;
    this.image.style.maxWidth = most ? `${most}px` : "";
    this.image.style.maxHeight = most ? `${(most * height) / width}px` : "";
    await show(this.image, shot);
  }

  #tell(shot) {
    const { parameters: given, job } = shot;
    const facts = [
      ["Prompt", given.prompt],
      ["Negative prompt", given.negative_prompt],
      ["Model", given.model],
      ["Size", given.width && `${given.width} × ${given.height}`],
      ["Steps", given.steps],
      ["Guidance", given.guidance],
      ["Scheduler", given.scheduler],
      ["Seed", given.seed],
      ...madeWith(given),
      ["Drawn", when(job.finished ?? job.created)],
      ["Took", job.details?.timings?.total && span(job.details.timings.total)],
      ["Ran on", placeOf(job)],
      ["Notes", (job.details?.notes ?? []).join("\n")],
      ["File", "…"],
    ].filter(([, value]) => value !== undefined && value !== null && value !== "");
    this.list.replaceChildren(...facts.flatMap(([name, value]) => [el("dt", {}, name), el("dd", {}, String(value))]));
    const file = this.list.lastElementChild;
    picture(shot.path).then(
      ({ type, bytes }) => write(file, `${type.split("/")[1]?.toUpperCase()}, ${size(bytes)}`),
      () => write(file, "not there any more"),
    );
  }

  #key(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (by === undefined) return;
    event.preventDefault();
    this.#go(this.#at + by);
  }

  /** A click beside the picture closes. */
  #outside(event) {
    if (event.target === this.dialog || event.target.classList.contains("stage")) this.dialog.close();
  }

  #use(taker) {
    const { shot } = this;
    this.dialog.addEventListener("close", () => taker.take(shot), { once: true }); // after focus went back
    this.dialog.close();
  }

  #hide(hide) {
    const [gone] = this.#shots.splice(this.#at, 1);
    hide(gone);
    if (!this.#shots.length) this.dialog.close();
    else this.#go(Math.min(this.#at, this.#shots.length - 1));
  }
}

/** What drew: runtime and device, each once. */
function placeOf(job) {
  const places = Object.values(job.details?.placement ?? {});
  return [...new Set(places.map((place) => [place.runtime, place.device].filter(Boolean).join(" on ")))].join("; ");
}
