// The pictures that this window's jobs were given: the server does not send them back.

const MOST = 100; // jobs
const given = new Map(); // id of a job -> {image, mask, control: [...]}

/** pictures: of `givenFrom`, null where there is none; control: one for each ControlNet. */
export function keepInputs(id, pictures) {
  if (namesOf(pictures).length) given.set(id, pictures);
  if (given.size > MOST) given.delete(given.keys().next().value);
}

/** What a job was given, or nothing. */
export const inputsOf = (job) => given.get(job?.id) ?? {};

/** Of these pictures, those that are there: [{name, picture}]. */
export function namesOf({ image, mask, control = [] }) {
  const all = [["the start picture", image], ["the mask", mask], ...control.map((one, at) => [`the picture of ControlNet ${at + 1}`, one])];
  return all.filter(([, picture]) => picture).map(([name, picture]) => ({ name, picture }));
}
