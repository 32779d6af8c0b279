// Files from the user: of a drop, with the folders in it, or pasted; known by their first bytes.

const receivers = [];

/**
 * Take the files that are dropped or pasted anywhere in the window.
 *
 * receiver: {wants(target), over(target or null), take(files, target)}. target: the element below the pointer, or the one
 * with the focus; over is told where files hover, and null once they do not. The first that wants them gets them; where
 * none does a drop does nothing, else the picture would take the page's place.
 */
export function receive(receiver) {
  if (!receivers.length) listen();
  receivers.push(receiver);
}

function listen() {
  const wanting = (target) => receivers.find((one) => one.wants(target)) ?? null;
  for (const name of ["dragenter", "dragover", "dragleave", "drop"]) {
    addEventListener(name, (event) => {
      if (!event.dataTransfer.types.includes("Files")) return; // text may be dropped into a field
      event.preventDefault();
      const taker = wanting(event.target);
      if (!taker) event.dataTransfer.dropEffect = "none";
      const hovers = name === "dragenter" || name === "dragover";
      for (const one of receivers) one.over(hovers && one === taker ? event.target : null);
    });
  }
  addEventListener("drop", async (event) => {
    const taker = event.defaultPrevented ? wanting(event.target) : null;
    if (taker) taker.take(await dropped(event.dataTransfer), event.target);
  });
  document.addEventListener("paste", (event) => {
    const pasted = [...(event.clipboardData?.files ?? [])];
    const written = event.target.matches?.("textarea, input") && event.clipboardData.types.includes("text/plain");
    const taker = pasted.length && !written ? wanting(event.target) : null; // some programs copy text as a picture too
    if (!taker) return;
    event.preventDefault();
    taker.take(pasted, event.target);
  });
}

/** All files of a drop, those in folders too, by their names. */
async function dropped(transfer) {
  // entries must be taken before anything is awaited: the drop is over then
  const entries = [...transfer.items].map((item) => item.webkitGetAsEntry?.()).filter(Boolean);
  if (!entries.length) return [...transfer.files];
  const found = await Promise.all(entries.map(filesOf));
  return found.flat();
}

async function filesOf(entry) {
  if (entry.isFile) return [await new Promise((go, fail) => entry.file(go, fail))];
  const reader = entry.createReader();
  const entries = [];
  for (;;) {
    const some = await new Promise((go, fail) => reader.readEntries(go, fail)); // a hundred at a time
    if (!some.length) break;
    entries.push(...some);
  }
  entries.sort((a, b) => a.name.localeCompare(b.name, undefined, { numeric: true }));
  const found = [];
  for (const one of entries) found.push(...(await filesOf(one)));
  return found;
}

/** PNG, JPEG or WebP: what the server reads. */
export async function isPicture(file) {
  let head;
  try {
    head = new Uint8Array(await file.slice(0, 12).arrayBuffer());
  } catch {
    return false; // a folder, or gone
  }
  const is = (at, ...bytes) => bytes.every((byte, i) => head[at + i] === byte);
  return is(0, 0x89, 0x50, 0x4e, 0x47) || is(0, 0xff, 0xd8, 0xff) || (is(0, 0x52, 0x49, 0x46, 0x46) && is(8, 0x57, 0x45, 0x42, 0x50));
}

/** The file's own bytes as base64. */
export function encoded(file) {
  return new Promise((go, fail) => {
    const reader = new FileReader();
    reader.onload = () => go(reader.result.slice(reader.result.indexOf(",") + 1));
    reader.onerror = () => fail(new Error(`${file.name ?? "The picture"} cannot be read.`));
    reader.readAsDataURL(file);
  });
}
