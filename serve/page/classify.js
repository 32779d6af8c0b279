// Panel: labels of pictures that are dropped, pasted or picked.

import { el, fill, field, match, tick, write } from "./dom.js";
import { encoded, isPicture, receive } from "./files.js";
import { icon } from "./icons.js";
import { jobs } from "./jobs.js";
import { models } from "./models.js";
import { count, told } from "./words.js";

const TOGETHER = { pictures: 8, bytes: 12e6 }; // of one job
const AT_ONCE = 2; // jobs: one runs, the next is there when it is done
const ALL = 20; // labels of which all are asked for
const SOME = 10; // of a model that has more
const TRIES = 3;
const FEW = 2; // pictures that are shown large
// what fails whichever pictures are sent; any other failure can be one picture's
const SERVERS = new Set(["unreachable", "unauthorized", "unknown_model", "queue_full", "rate_limited", "draining", "busy", "disk"]);

function make() {
  let items = []; // {file, url, state, answer, text}: in the order in which they came
  let working = 0;
  let stopped = new AbortController();
  let number = 0;
  const early = []; // files that came before the models did

  const model = el("select");
  const order = el("select", { onchange: arrange });
  fill(order, [["given", "as given"], ["sure", "surest first"], ["label", "by label"]]);
  const faces = tick("Look for faces", false, () => !working && begin(items));
  const files = el("input", { type: "file", multiple: true, accept: "image/png,image/jpeg,image/webp", class: "offscreen", tabindex: -1, "aria-hidden": "true", onchange: picked });
  const folder = el("input", { type: "file", webkitdirectory: true, class: "offscreen", tabindex: -1, "aria-hidden": "true", onchange: picked });
  const choose = el("button", { type: "button", class: "strong", onclick: () => files.click() }, "Choose pictures");
  const chooseFolder = el("button", { type: "button", onclick: () => folder.click() }, "Choose a folder");
  const zone = el("div", { class: "zone" }, icon("picture"),
    el("p", { class: "lead" }, "Drop pictures or a folder here"),
    el("p", { class: "soft" }, "or paste one. PNG, JPEG and WebP are read."),
    el("div", { class: "actions" }, choose, chooseFolder), files, folder);
  const again = el("button", { type: "button", onclick: () => begin(items.filter((item) => item.state !== "waits")) }, "Label again");
  const stop = el("button", { type: "button", onclick: halt }, "Stop");
  const clear = el("button", { type: "button", onclick: empty }, "Clear");
  const doing = el("div", { class: "actions", hidden: true }, again, stop, clear);
  const status = el("p", { class: "status", role: "status" });
  const list = el("ul", { class: "answers", "aria-label": "Pictures with their labels" });
  const node = el("div", { class: "classify" },
    el("div", { class: "bar" }, field("Model", model), field("Order", order), faces.node, doing),
    zone, status, list);

  models.addEventListener("change", () => {
    const usable = models.that("classify");
    fill(model, usable.map((one) => [one.name, one.name]));
    choose.disabled = chooseFolder.disabled = model.disabled = !usable.length;
    if (!usable.length) write(status, "No model that labels is served here.");
    paint();
    if (usable.length && early.length) add(early.splice(0));
  });

  const isShown = () => !node.closest("[hidden]") && !document.querySelector("dialog[open]");

  function picked(event) {
    add([...event.target.files]);
    event.target.value = ""; // so that the same file can be picked again
  }

  receive({ wants: isShown, over: (target) => zone.classList.toggle("over", target !== null), take: add });

  async function add(given) {
    if (!model.value) {
      early.push(...given);
      return;
    }
    const kept = [];
    for (const file of given) if (await isPicture(file)) kept.push(file);
    const left = given.length - kept.length;
    const made = kept.map((file) => ({ file, key: String((number += 1)), url: URL.createObjectURL(file), state: "waits" }));
    items = [...items, ...made];
    const leftOut = left ? ` ${count(left, "file")} left out: no PNG, JPEG or WebP.` : "";
    if (made.length) begin(made, leftOut);
    else write(status, leftOut.trim());
  }

  /** Label these, a few jobs at a time. more: is said at the end too. */
  async function begin(some, more = "") {
    if (!some.length) return;
    if (stopped.signal.aborted) stopped = new AbortController();
    const { signal } = stopped;
    for (const item of some) Object.assign(item, { state: "waits", answer: null, text: "Waiting" });
    const asked = { model: model.value, faces: faces.input.checked };
    const groups = grouped(some);
    working += 1;
    paint();
    const hand = async () => {
      while (groups.length && !signal.aborted) await label(groups.shift(), asked, signal);
    };
    await Promise.all(Array.from({ length: AT_ONCE }, hand));
    working -= 1;
    for (const item of some) if (item.state === "waits") Object.assign(item, { state: "failed", text: "Stopped" });
    if (!working) arrange();
    paint();
    const good = some.filter((item) => item.state === "done").length;
    const what = `${count(good, "picture")} labelled${good < some.length ? `, ${some.length - good} not` : ""}.${more}`;
    write(status, what);
  }

  /** One job; where it fails and one of its pictures may be why, each alone. */
  async function label(group, { model: name, faces: boxed }, signal) {
    const labels = models.list.find((one) => one.name === name)?.labels?.length ?? 0;
    let cancel = null;
    try {
      const pictures = await Promise.all(group.map((item) => encoded(item.file)));
      const body = { kind: "classify", model: name, pictures, faces: boxed, top_k: labels <= ALL ? null : SOME };
      const followed = await submitted(body, group, signal);
      cancel = () => jobs.cancel(followed.id).catch(() => {});
      signal.addEventListener("abort", cancel);
      if (signal.aborted) cancel();
      const job = await followed.ended;
      if (job.status === "succeeded") {
        group.forEach((item, at) => Object.assign(item, { state: "done", answer: job.answers[at], text: "" }));
      } else if (job.status === "cancelled") {
        for (const item of group) Object.assign(item, { state: "failed", text: "Stopped" });
      } else {
        throw Object.assign(new Error(job.error?.what ?? job.status), job.error);
      }
    } catch (error) {
      if (group.length > 1 && !signal.aborted && !SERVERS.has(error.code)) {
        for (const item of group) await label([item], { model: name, faces: boxed }, signal);
      } else {
        for (const item of group) Object.assign(item, { state: "failed", text: signal.aborted ? "Stopped" : told(error) });
      }
    } finally {
      if (cancel) signal.removeEventListener("abort", cancel);
      paint();
    }
  }

  /** Where the queue is full, wait as long as the server says. */
  async function submitted(body, group, signal) {
    for (let tries = 1; ; tries += 1) {
      try {
        return await jobs.submit(body);
      } catch (error) {
        if (!error.after || tries === TRIES || signal.aborted) throw error;
        for (const item of group) item.text = `The server is busy; once more in ${Math.ceil(error.after)} s`;
        paint();
        await waited(error.after, signal);
      }
    }
  }

  function halt() {
    stopped.abort();
  }

  function empty() {
    halt();
    for (const item of items) URL.revokeObjectURL(item.url);
    items = [];
    write(status, "");
    paint();
    choose.focus();
  }

  let shownOrder = []; // of the cards; it changes when everything is done or another one is asked for, not in between

  function arrange() {
    const best = (item) => (item.answer?.[0]?.labels ?? item.answer)?.[0];
    const by = {
      given: () => 0,
      sure: (a, b) => (best(b)?.score ?? -Infinity) - (best(a)?.score ?? -Infinity),
      label: (a, b) => (best(a)?.label ?? "\uffff").localeCompare(best(b)?.label ?? "\uffff"),
    }[order.value];
    shownOrder = [...items].sort(by);
    paint();
  }

  function paint() {
    shownOrder = [...shownOrder.filter((item) => items.includes(item)), ...items.filter((item) => !shownOrder.includes(item))];
    match(list, shownOrder, (item) => item.key, card, update);
    zone.classList.toggle("small", items.length > 0);
    list.classList.toggle("few", items.length <= FEW);
    doing.hidden = !items.length;
    again.disabled = clear.disabled = !items.length;
    if (working) again.disabled = true;
    stop.disabled = !working;
    if (working) {
      const waits = items.filter((item) => item.state === "waits").length;
      write(status, `${items.length - waits} of ${items.length} done`);
    }
  }

  return { node };
}

function waited(seconds, signal) {
  return new Promise((go) => {
    const timer = setTimeout(go, seconds * 1000);
    signal.addEventListener("abort", () => {
      clearTimeout(timer);
      go();
    }, { once: true });
  });
}

/** In jobs of a few pictures and bytes each. */
function grouped(items) {
  const groups = [];
  let room = 0;
  for (const item of items) {
    const last = groups.at(-1);
    if (last && last.length < TOGETHER.pictures && item.file.size <= room) {
      last.push(item);
      room -= item.file.size;
    } else {
      groups.push([item]);
      room = TOGETHER.bytes - item.file.size;
    }
  }
  return groups;
}

/** A picture's card. The boxes of faces lie over the picture, in parts of its own size. */
function card(item) {
  const image = el("img", { src: item.url, alt: item.file.name, loading: "lazy", decoding: "async" });
  const boxes = el("span", { class: "boxes" });
  const thumb = el("button", { type: "button", class: "thumb", "aria-label": `${item.file.name}, enlarge`, "aria-pressed": "false", onclick: () => thumb.setAttribute("aria-pressed", String(thumb.getAttribute("aria-pressed") === "false")) },
    el("span", { class: "fitted" }, image, boxes));
  return el("li", { class: "card answer" },
    thumb,
    el("div", { class: "read" },
      el("p", { class: "file", title: item.file.webkitRelativePath || item.file.name }, item.file.name),
      el("p", { class: "soft text" }),
      el("div", { class: "bars" })));
}

function update(node, item) {
  node.dataset.state = item.state;
  write(node.querySelector(".text"), item.text ?? "");
  const shown = JSON.stringify(item.answer);
  if (node.dataset.answer === shown) return;
  node.dataset.answer = shown;
  const bars = node.querySelector(".bars");
  const boxes = node.querySelector(".boxes");
  bars.replaceChildren();
  boxes.replaceChildren();
  if (!item.answer) return;
  if (!item.answer.length) {
    write(node.querySelector(".text"), "No face was found.");
    return;
  }
  if (!item.answer[0].box) {
    bars.append(barsOf(item.answer));
    return;
  }
  item.answer.forEach((face, at) => bars.append(faceOf(face, at, boxes, item.answer.length)));
  const image = node.querySelector("img");
  const place = () => item.answer?.forEach((face, at) => boxes.children[at] && put(boxes.children[at], face.box, image));
  if (image.complete && image.naturalWidth) place();
  else image.addEventListener("load", place, { once: true });
}

function faceOf(face, at, boxes, all) {
  const box = el("span", { class: "box", "aria-hidden": "true" }, all > 1 ? el("b", {}, String(at + 1)) : null);
  boxes.append(box);
  const light = (on) => () => box.classList.toggle("lit", on);
  return el("section", { class: "face", "aria-label": `Face ${at + 1}`, onmouseenter: light(true), onmouseleave: light(false) },
    all > 1 ? el("p", { class: "soft" }, `Face ${at + 1}`) : null, barsOf(face.labels));
}

function put(box, { left, top, width, height }, image) {
  box.style.left = `${(100 * left) / image.naturalWidth}%`;
  box.style.top = `${(100 * top) / image.naturalHeight}%`;
  box.style.width = `${(100 * width) / image.naturalWidth}%`;
  box.style.height = `${(100 * height) / image.naturalHeight}%`;
}

/** A bar for each label, the surest first. */
function barsOf(labels) {
  const sorted = [...labels].sort((a, b) => b.score - a.score);
  return el("ol", { class: "labels" }, sorted.map(({ label, score }) => {
    const bar = el("i", { "aria-hidden": "true" });
    bar.style.setProperty("--share", String(Math.min(1, Math.max(0, score))));
    return el("li", {}, el("span", { class: "label" }, label), bar, el("span", { class: "score" }, `${(100 * score).toFixed(1)} %`));
  }));
}

export const classify = { id: "classify", title: "Classify", make };
