// Panel: what waits and runs, what ended lately, and the models.

import { get } from "./api.js";
import { el, match, write } from "./dom.js";
import { isFinal, jobs } from "./jobs.js";
import { models } from "./models.js";
import { say } from "./say.js";
import { count, size, span, told, when } from "./words.js";

const EVERY = 2; // seconds
const LATELY = 8; // jobs
const ENDS = { succeeded: "Done", failed: "Failed", cancelled: "Cancelled", interrupted: "Interrupted" };

function make() {
  let timer = null;
  let looks = 0; // a look that was overtaken by another says nothing more
  const busy = new Set(); // models that are loaded or unloaded now

  const badge = el("span", { class: "badge", "aria-label": "in flight", hidden: true });
  const sum = el("p", { class: "soft", role: "status" });
  const mine = el("ul", { class: "rows", "aria-label": "Your jobs that wait and run" });
  const ended = el("ul", { class: "rows", "aria-label": "Your jobs that ended lately" });
  const none = el("p", { class: "empty small" }, "None of your jobs waits or runs.");
  const never = el("p", { class: "empty small" }, "Nothing yet.");
  const workers = el("ul", { class: "rows", "aria-label": "Workers" });
  const workersPart = el("section", { class: "card", hidden: true }, el("h2", {}, "Workers"), workers);
  const list = el("ul", { class: "rows", "aria-label": "Models" });
  const node = el("div", { class: "queue" },
    el("div", {},
      el("section", { class: "card" }, el("h2", {}, "Queue"), sum, none, mine),
      el("section", { class: "card" }, el("h2", {}, "Ended lately"), never, ended)),
    el("div", {},
      el("section", { class: "card" }, el("h2", {}, "Models"), list),
      workersPart),
  );

  async function look() {
    clearTimeout(timer);
    const mark = (looks += 1);
    let wait = EVERY;
    try {
      const [queue] = await Promise.all([get("v1/queue"), models.refresh()]);
      if (mark === looks) paint(queue);
    } catch (error) {
      write(sum, told(error));
      wait = Math.max(wait, error.after ?? 0);
    }
    if (mark === looks && !node.closest("[hidden]") && !document.hidden) timer = setTimeout(look, wait * 1000);
  }

  async function lookBack() {
    try {
      const { jobs: listed } = await get(`v1/jobs?limit=${LATELY * 2}`);
      const done = listed.filter(isFinal).slice(0, LATELY);
      match(ended, done, (job) => job.id, endedRow);
      never.hidden = done.length > 0;
    } catch {
      // the queue above tells what is wrong
    }
  }

  function paint(queue) {
    const words = [
      queue.running ? `${queue.running} running` : "Nothing runs",
      queue.waiting ? `${queue.waiting} waiting, about ${span(queue.seconds)} of work` : "nothing waits",
    ];
    write(sum, `${words.join(", ")}.`);
    match(mine, queue.mine, (job) => job.id, openRow, update);
    none.hidden = queue.mine.length > 0;
    workersPart.hidden = !queue.workers;
    match(workers, queue.workers ?? [], (worker) => worker.device, workerRow, updateWorker);
  }

  function openRow(job) {
    const stop = el("button", { type: "button", onclick: () => cancel(job.id, stop) }, "Cancel");
    return el("li", {}, el("div", { class: "grow" }, el("p", { class: "title" }), el("progress", { max: 1, value: 0, "aria-label": "Progress" }), el("p", { class: "soft text" })), stop);
  }

  function update(row, job) {
    write(row.querySelector(".title"), titleOf(job));
    const bar = row.querySelector("progress");
    bar.max = job.steps || 1;
    bar.value = job.step ?? 0;
    const at = job.steps ? `step ${job.step} of ${job.steps}${job.eta ? `, ${span(job.eta)} left` : ""}` : `since ${when(job.created)}`;
    write(row.querySelector(".text"), `${job.status === "running" ? "Running" : "Waiting"}, ${job.model}, ${at}`);
  }

  async function cancel(id, button) {
    button.disabled = true;
    try {
      await jobs.cancel(id);
      look();
    } catch (error) {
      say(told(error));
      button.disabled = false;
    }
  }

  function paintModels() {
    match(list, models.list, (model) => model.name, modelRow, updateModel);
  }

  function modelRow(model) {
    const button = (label, work) => el("button", { type: "button", "aria-label": `${label} ${model.name}`, onclick: () => act(model.name, label, work) }, label);
    return el("li", { class: "model" },
      el("div", { class: "grow" }, el("p", { class: "title" }, model.name, el("span", { class: "tag" })), el("p", { class: "soft what" }), el("p", { class: "soft where" })),
      el("div", { class: "actions" },
        button("Load", () => models.load(model.name, false)),
        button("Pin", () => models.load(model.name, true)),
        button("Unload", () => models.unload(model.name))));
  }

  function updateModel(row, model) {
    const [load, pin, unload] = row.querySelectorAll("button");
    const open = model.loaded.length > 0;
    const pinned = model.loaded.some((one) => one.pinned);
    const works = busy.has(model.name);
    load.disabled = works || open;
    pin.disabled = works || pinned;
    unload.disabled = works || !open;
    write(row.querySelector(".tag"), works ? "busy" : pinned ? "pinned" : open ? "loaded" : "");
    write(row.querySelector(".what"), `${model.architecture}, ${model.precision}, ${workOf(model)}`);
    const where = model.loaded.map((one) => `${placed(one)}, loaded in ${span(one.seconds)}`).join("; ");
    write(row.querySelector(".where"), `${size(model.bytes)} of weights, ${where ? `on ${where}` : "not loaded"}`);
  }

  async function act(name, label, work) {
    busy.add(name);
    paintModels();
    try {
      await work();
      say(`${label}: ${name} done.`);
    } catch (error) {
      say(told(error));
    }
    busy.delete(name);
    paintModels();
    look();
  }

  models.addEventListener("change", paintModels);
  jobs.addEventListener("ended", () => !node.closest("[hidden]") && lookBack());
  document.addEventListener("visibilitychange", () => !document.hidden && !node.closest("[hidden]") && look());

  jobs.addEventListener("count", () => {
    write(badge, jobs.count ? String(jobs.count) : "");
    badge.hidden = !jobs.count;
  });

  return {
    node,
    badge,
    shown: () => {
      look();
      lookBack();
    },
  };
}

function endedRow(job) {
  const said = ["succeeded", "cancelled"].includes(job.status) ? "" : ` ${told(job.error ?? { what: "" })}`;
  const took = job.started && job.finished ? `, took ${span(job.finished - job.started)}` : "";
  return el("li", { "data-state": job.status },
    el("div", { class: "grow" }, el("p", { class: "title" }, titleOf(job)), el("p", { class: "soft text" }, `${ENDS[job.status]}, ${job.model}, ${when(job.finished ?? job.created)}${took}.${said}`)));
}

function workOf(model) {
  if (model.control) return "a ControlNet, for models that it fits";
  if (!model.kinds.includes("generate")) return `knows ${count(model.labels?.length ?? 0, "label")}`;
  return `draws ${model.width} × ${model.height}, multiples of ${model.multiple_of}`;
}

function workerRow() {
  return el("li", {}, el("div", { class: "grow" }, el("p", { class: "title" }), el("p", { class: "soft text" })));
}

function updateWorker(row, worker) {
  write(row.querySelector(".title"), worker.device);
  const words = [worker.ready ? "ready" : "starting", worker.resident && `${size(worker.resident)} of memory`, worker.restarts && count(worker.restarts, "restart")];
  write(row.querySelector(".text"), words.filter(Boolean).join(", "));
}

function titleOf(job) {
  const prompt = job.request?.prompt ?? job.details?.parameters?.[0]?.prompt;
  if (prompt) return prompt;
  const pictures = job.answers?.length ?? job.request?.pictures;
  if (job.kind === "classify") return pictures ? `Labels of ${count(pictures, "picture")}` : "Labels of pictures";
  return "Picture";
}

/** What really runs it: runtime, device. */
function placed({ device, placement }) {
  const parts = Object.values(placement ?? {}).map((one) => [one.runtime, one.device].filter(Boolean).join(" on "));
  return [...new Set(parts)].join(" and ") || device;
}

export const queue = { id: "queue", title: "Queue", make };
