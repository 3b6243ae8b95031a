// Where the page is: every view has an address.

import { useEffect, useRef, useState } from "./html.js";
import { store, useStore } from "./store.js";

const PAUSE = 300; // ms without a sign: somebody has typed what they look for

/** The address that is shown, as a URL. */
export const place = store(new URL(location.href));

/** Show another address of the page; `replace`: instead of this one, so that "back" leads before it. */
export function go(path, { replace = false } = {}) {
  const url = new URL(path, location.href);
  if (url.href !== location.href) history[replace ? "replaceState" : "pushState"](null, "", url);
  place.value = url;
}

/** Have links of the page lead on without loading it anew. */
export function followLinks(isOurs) {
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
