// What time it is at the server: the clock of this machine may be wrong, or be set while the page is open.

import { useEffect, useState } from "./html.js";
import { ask } from "./ask.js";

let ahead = Date.now() - performance.now(); // ms; of the server's clock before what `performance` counts
let known = false;

const AGAIN = 5 * 60_000; // ms
const GOOD_ENOUGH = 500; // ms that an answer took; half of it is the error

async function look() {
  for (let times = 0; times < 3; times++) {
    const asked = performance.now();
    const { now } = await ask("/clock");
    const took = performance.now() - asked;
    ahead = Date.parse(now) + took / 2 - performance.now();
    known = true;
    if (took < GOOD_ENOUGH) return;
  }
}

/** Ask for the time, and again and again; also when the page was asleep. */
export function keepTime() {
  const again = () => look().catch(() => setTimeout(again, 2_000));
  const awake = () => document.visibilityState === "visible" && again();
  document.addEventListener("visibilitychange", awake);
  setInterval(awake, AGAIN);
  again();
}

/** Milliseconds since 1970, by the server's clock. */
export const serverNow = () => performance.now() + ahead;

/** The same, for a view that is shown anew each `every` ms; null until it is known. */
export function useNow(every = 250) {
  const [now, setNow] = useState(() => (known ? serverNow() : null));
  useEffect(() => {
    const timer = setInterval(() => setNow(known ? serverNow() : null), every);
    return () => clearInterval(timer);
  }, [every]);
  return now;
}
