// Files from the user: of a drop, with the folders in it; known by their first bytes.

/** All files of a drop, those in folders too, by their names. */
export async function dropped(transfer) {
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
    reader.onerror = () => fail(new Error(`${file.name} cannot be read.`));
    reader.readAsDataURL(file);
  });
}
