// Where the page is: every view has an address.

import { useEffect, useRef, useState } from "./html.js";
import { store, useStore } from "./store.js";

const PAUSE = 300; // ms without a sign: somebody has typed what they look for

/** The address that is shown, as a URL. */
export const place = store(new URL(location.href));

/** Show another address of the page; `replace`: instead of this one, so that "back" leads before it. */
export function go(path, { replace = false } = {}) {
  const url = new URL(path, location.href);
  if (!replace) leave();
  if (url.href !== location.href) history[replace ? "replaceState" : "pushState"](null, "", url);
  place.value = url;
}

const SHOWN_WITHIN = 3_000; // ms; a view that takes longer begins at its top
const BY_HAND = ["wheel", "touchmove", "keydown", "pointerdown", "mousedown"]; // how people scroll

/**
 * Scroll to where this place was left, as soon as the view is long enough; to its top, if it was not here before.
 *
 * @returns {() => void} which ends it
 */
export function scrollToPlace() {
  const wanted = history.state?.scrolled ?? 0;
  const begun = performance.now();
  const stop = () => {
    clearInterval(timer);
    for (const name of BY_HAND) removeEventListener(name, stop);
  };
  const look = () => {
    scrollTo(0, wanted);
    if (scrollY >= wanted - 1 || performance.now() - begun > SHOWN_WITHIN) stop();
  };
  const timer = setInterval(look, 50);
  for (const name of BY_HAND) addEventListener(name, stop, { passive: true });
  look();
  return stop;
}

/** Remember how far it is scrolled here. */
const leave = () => history.replaceState({ ...history.state, scrolled: scrollY }, "");

/** Have links of the page lead on without loading it anew. */
export function followLinks(isOurs) {
  history.scrollRestoration = "manual"; // a browser would not wait for what is shown
  addEventListener("pagehide", leave);
  addEventListener("popstate", () => (place.value = new URL(location.href)));
  document.addEventListener("click", (event) => {
    const link = event.target.closest?.("a[href]");
    if (!link || event.defaultPrevented || event.button || event.metaKey || event.ctrlKey || event.shiftKey) return;
    const url = new URL(link.href);
    if (link.target || link.hasAttribute("download") || url.origin !== location.origin || !isOurs(url)) return;
    if (url.hash && url.pathname === location.pathname && url.search === location.search) return;
    event.preventDefault();
    go(url.href);
  });
}

/** Change one parameter of this address, as the words that are searched for. */
export function setParameter(name, value) {
  const url = new URL(location.href);
  value ? url.searchParams.set(name, value) : url.searchParams.delete(name);
  go(url.href, { replace: true });
}

/** A parameter of this address as somebody types it: `[typed, type]`. It follows where a link leads. */
export function useTyped(name) {
  const given = useStore(place).searchParams.get(name) ?? "";
  const [typed, type] = useState(given);
  const told = useRef(given); // what the address has of it
  useEffect(() => {
    if (typed.trim() === told.current) return undefined;
    const timer = setTimeout(() => setParameter(name, (told.current = typed.trim())), PAUSE);
    return () => clearTimeout(timer);
  }, [typed]);
  useEffect(() => {
    if (given !== told.current) type((told.current = given));
  }, [given]);
  return [typed, type];
}
