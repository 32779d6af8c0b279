// A job that draws, from the click to the picture: its place has the size of the end from the start.

import { el, write } from "./dom.js";
import { withPictures } from "./given.js";
import { inputsOf, keepInputs, namesOf } from "./inputs.js";
import { isFinal, jobs } from "./jobs.js";
import { madeWith } from "./made.js";
import { announce, say } from "./say.js";
import { copyText, download, nameOf, shotsOf, show } from "./shots.js";
import { count, span, told } from "./words.js";

/**
 * One submission. "end": it is done, refused or failed.
 *
 * body: of the job, and the pictures that belong into it; or `job`, one that runs already. takers: what panels do with
 * its pictures. open: (shots, number) shows one large. gone: the user puts the card away.
 */
export class Card extends EventTarget {
  #followed = null;
  #wanted = false; // to be cancelled, while it is still being sent
  #shots = [];
  #timer = 0;

  constructor({ body, pictures = null, job = null, takers, open, gone }) {
    super();
    this.body = body;
    this.pictures = pictures ?? inputsOf(job);
    this.#build(takers, open, gone);
    if (job) this.#follow(jobs.follow(job));
    else this.send();
  }

  #build(takers, open, gone) {
    const { prompt, width = 1, height = 1, images = 1 } = this.body;
    this.tiles = Array.from({ length: images }, (_, number) => {
      const image = el("img", { alt: "", decoding: "async" });
      const label = `Picture ${number + 1} of ${images}, enlarge`;
      const open1 = () => this.#shots[number] && open(this.#shots, number);
      return { image, button: el("button", { type: "button", class: "tile", disabled: true, "aria-label": label, onclick: open1 }, image) };
    });
    this.status = el("p", { class: "status" });
    this.bar = el("progress", { max: 1, value: 0, "aria-label": "Progress" });
    this.stop = el("button", { type: "button", onclick: () => this.cancel() }, el("span", {}, "Cancel"), el("kbd", { hidden: true }, "Esc"));
    const { pictures: had = [], control = [] } = this.body;
    const lost = had.length > 0 || (control.length > 0 && !this.pictures.control); // it cannot be sent again
    this.retry = el("button", { type: "button", class: "strong", hidden: lost, onclick: () => this.send() }, "Try again");
    const away = el("button", { type: "button", onclick: gone }, "Remove");
    const first = () => this.#shots[0];
    this.during = el("div", { class: "actions" }, this.stop);
    this.after = el("div", { class: "actions" },
      takers.map((taker) => el("button", { type: "button", hidden: taker.works?.() === false, onclick: () => taker.take(first()) }, taker.label)),
      el("button", { type: "button", onclick: () => copyText(first()) }, "Copy settings"),
      el("button", { type: "button", onclick: () => this.#shots.forEach(download) }, images > 1 ? "Download all" : "Download"),
    );
    this.with = el("div", { class: "with" },
      namesOf(this.pictures).map(({ name, picture: { thumb } }) => el("img", { src: thumb, alt: name, title: name })),
      el("p", { class: "soft" }));
    this.notes = el("ul", { class: "soft notes" });
    this.refused = el("div", { class: "actions" }, this.retry, away);
    this.node = el("article", { class: `card job ${images > 1 ? "several" : "one"}`, "aria-label": prompt || "Picture" },
      el("div", { class: "shots" }, this.tiles.map((tile) => tile.button)),
      el("div", { class: "about" },
        el("p", { class: "prompt", title: prompt ?? "" }, prompt || "No prompt"),
        el("p", { class: "soft summary" }, summaryOf(this.body)),
        this.with,
        this.status,
        this.notes,
        el("div", { class: "line progress" }, this.bar),
        el("div", { class: "places" }, this.during, this.after, this.refused),
      ),
    );
    this.node.style.setProperty("--ratio", String(width / height));
    this.node.style.setProperty("--images", String(images));
    this.#madeWith(this.body, this.pictures.image ? ["image", ...(this.pictures.mask ? ["mask"] : [])] : this.body.pictures);
  }

  get done() {
    return this.node.dataset.state !== "open";
  }

  get running() {
    return this.#followed?.job.status === "running";
  }

  /** Submit it, or submit it again. */
  async send() {
    this.#state("open");
    this.#wanted = false;
    this.#followed = null;
    this.node.classList.remove("cancelled");
    this.node.classList.remove("bare");
    clearInterval(this.#timer);
    this.#say("Being sent");
    this.bar.value = 0;
    try {
      const { pictures, ...body } = this.body; // of one that was taken up: their names alone
      const followed = await jobs.submit(await withPictures(body, this.pictures));
      keepInputs(followed.id, this.pictures);
      this.#follow(followed);
      if (this.#wanted) this.cancel();
    } catch (error) {
      this.#fail(told(error), error.after);
    }
  }

  async cancel() {
    if (this.done) return;
    this.#wanted = true;
    this.stop.disabled = true;
    this.#say("Being cancelled");
    if (!this.#followed) return;
    try {
      await jobs.cancel(this.#followed.id);
    } catch (error) {
      this.stop.disabled = false;
      say(told(error));
    }
  }

  /** Whether Esc would cancel this one: its button says so. */
  set byEsc(yes) {
    this.stop.querySelector("kbd").hidden = !yes;
  }

  #follow(followed) {
    this.#state("open");
    this.#followed = followed;
    followed.addEventListener("change", () => this.#paint(followed.job));
    this.#paint(followed.job);
    followed.ended.then((job) => this.#end(job));
  }

  #paint(job) {
    if (isFinal(job)) return;
    if (job.steps) {
      this.bar.max = job.steps;
      this.bar.value = job.step;
    }
    if (job.preview) this.tiles[0].image.src = job.preview;
    if (this.#wanted) return;
    if (job.status === "queued") this.#say("Waiting for its turn");
    else if (!job.steps) this.#say("Beginning");
    else if (job.step === job.steps) this.#say("Finishing");
    else this.#say(`Step ${job.step} of ${job.steps}${job.eta ? `, ${span(job.eta)} left` : ""}`);
  }

  #end(job) {
    if (job.status !== "succeeded") {
      const error = job.error ?? { what: `The job was ${job.status}.` };
      this.node.classList.toggle("cancelled", job.status === "cancelled");
      this.#fail(job.status === "cancelled" ? "Cancelled." : told(error), null);
      return;
    }
    this.#shots = shotsOf(job);
    this.#shots.forEach((shot, number) => {
      const tile = this.tiles[number];
      if (!tile) return;
      tile.button.disabled = false;
      tile.image.alt = nameOf(shot);
      show(tile.image, shot);
    });
    this.bar.value = this.bar.max;
    const { total } = job.details?.timings ?? {};
    const seed = this.#shots[0]?.parameters.seed;
    this.#say([total && `Drawn in ${span(total)}`, seed !== undefined && `seed ${seed}`].filter(Boolean).join(", "));
    announce(`${count(this.#shots.length, "picture")} drawn: ${this.body.prompt || "no prompt"}`);
    if (this.#shots[0]) this.#madeWith(this.#shots[0].parameters);
    this.notes.replaceChildren(...(job.details?.notes ?? []).map((text) => el("li", {}, text)));
    this.#state("done", job);
  }

  /** Say what it is made with besides its prompt. */
  #madeWith(given, began) {
    const line = this.with.lastElementChild;
    write(line, madeWith(given, began).map(([title, text]) => `${title}: ${text}`).join(". "));
    this.with.hidden = !line.textContent;
  }

  #fail(text, after) {
    for (const tile of this.tiles) tile.image.removeAttribute("src");
    this.node.classList.add("bare");
    this.#say(text);
    announce(text);
    this.#count(after);
    this.#state("refused");
  }

  /** Count down on the button that tries again: before that the server would refuse. */
  #count(after) {
    const until = Date.now() + (after ?? 0) * 1000;
    const tell = () => {
      const left = Math.ceil((until - Date.now()) / 1000);
      this.retry.disabled = left > 0;
      write(this.retry, left > 0 ? `Try again in ${left < 60 ? `${left} s` : span(left)}` : "Try again");
      if (left <= 0) clearInterval(this.#timer);
    };
    clearInterval(this.#timer);
    if (after) this.#timer = setInterval(tell, 500);
    tell();
  }

  #say(text) {
    write(this.status, text);
  }

  #state(state, job = null) {
    this.node.dataset.state = state;
    this.stop.disabled = false;
    this.during.hidden = state !== "open";
    this.after.hidden = state !== "done";
    this.refused.hidden = state !== "refused";
    this.dispatchEvent(new CustomEvent(state === "open" ? "begin" : "end", { detail: job }));
  }
}

function summaryOf(body) {
  const { model, width, height, steps, scheduler } = body;
  return [model, width && `${width} × ${height}`, steps && count(steps, "step"), scheduler].filter(Boolean).join(", ");
}
