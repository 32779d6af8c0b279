// Pictures that the user gives: brought to a size that is worth sending, and sent.

import { encoded, isPicture } from "./files.js";

const LONGEST = 2048; // pixels of the longer side: beyond that models draw badly, and a photo has four times that
const THUMB = 192; // pixels
const EXIF = "Exif\0\0";
const HEAD = 64 * 1024; // bytes: in a JPEG the EXIF comes first

/**
 * A picture of the user's, upright: {blob, name, width, height, thumb}. thumb: a small one, as a data URL.
 *
 * Throws where the file is no picture that the server reads.
 */
export async function givenFrom(file, name = file.name) {
  const unread = new Error(`${name} is no PNG, JPEG or WebP that can be read.`);
  if (!(await isPicture(file))) throw unread;
  let bitmap;
  try {
    bitmap = await createImageBitmap(file);
  } catch {
    throw unread;
  }
  const { width, height } = bitmap;
  const scale = Math.min(1, LONGEST / Math.max(width, height));
  const fine = scale === 1 && !(await hasExif(file)); // with EXIF it may lie on its side, and a mask would not fit
  const drawn = fine ? null : drawnFrom(bitmap, scale);
  const photo = file.type === "image/jpeg";
  // a copy: the file may be changed or removed before it is sent again
  const blob = fine ? new Blob([await file.arrayBuffer()], { type: file.type }) : await blobOf(drawn, photo ? "image/jpeg" : "image/png");
  const thumb = thumbOf(bitmap);
  bitmap.close();
  return { blob, name, width: drawn?.width ?? width, height: drawn?.height ?? height, thumb };
}

/** What is on a canvas, as such a picture. */
export async function givenOf(canvas, name) {
  return { blob: await blobOf(canvas, "image/png"), name, width: canvas.width, height: canvas.height, thumb: thumbOf(canvas) };
}

/** A canvas of this size with nothing on it. */
export function canvasOf(width, height) {
  const canvas = document.createElement("canvas");
  canvas.width = Math.max(1, Math.round(width));
  canvas.height = Math.max(1, Math.round(height));
  return canvas;
}

/** The body of a job with the pictures in it. pictures: {image, mask, control: one for each of the body's}. */
export async function withPictures(body, pictures) {
  const { image = null, mask = null, control = [] } = pictures ?? {};
  const sent = { ...body };
  if (image) sent.image = await encoded(image.blob);
  if (mask) sent.mask = await encoded(mask.blob);
  if (body.control?.length) {
    sent.control = await Promise.all(body.control.map(async (one, at) => ({ ...one, picture: await encoded(control[at].blob) })));
  }
  return sent;
}

/** On white, as the server reads what is transparent. */
function drawnFrom(bitmap, scale) {
  const canvas = canvasOf(bitmap.width * scale, bitmap.height * scale);
  const context = canvas.getContext("2d");
  context.fillStyle = "#fff";
  context.fillRect(0, 0, canvas.width, canvas.height);
  context.imageSmoothingQuality = "high";
  context.drawImage(bitmap, 0, 0, canvas.width, canvas.height);
  return canvas;
}

function thumbOf(source) {
  const scale = Math.min(1, THUMB / Math.max(source.width, source.height));
  return drawnFrom(source, scale).toDataURL("image/png");
}

function blobOf(canvas, type) {
  return new Promise((go, fail) => {
    canvas.toBlob((blob) => (blob ? go(blob) : fail(new Error("The browser has no memory for this picture."))), type, 0.95);
  });
}

async function hasExif(file) {
  return new TextDecoder("latin1").decode(await file.slice(0, HEAD).arrayBuffer()).includes(EXIF);
}
