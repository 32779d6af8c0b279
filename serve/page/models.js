// The models that the server has, asked for once for all panels.

import { get, post } from "./api.js";

/** "change": the list is another. */
class Models extends EventTarget {
  list = [];

  async refresh() {
    const { models } = await get("v1/models");
    this.#take(models);
  }

  /** Of one kind of job: generate, classify. */
  that(kind) {
    return this.list.filter((model) => model.kinds.includes(kind));
  }

  async load(name, pin) {
    await post(`v1/models/${encodeURIComponent(name)}/load${pin ? "?pin=true" : ""}`);
    await this.refresh();
  }

  async unload(name) {
    await post(`v1/models/${encodeURIComponent(name)}/unload`);
    await this.refresh();
  }

  #take(models) {
    if (JSON.stringify(models) === JSON.stringify(this.list)) return;
    this.list = models;
    this.dispatchEvent(new Event("change"));
  }
}

export const models = new Models();
