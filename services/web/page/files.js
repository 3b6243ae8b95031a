// Files that somebody chose on this page, for as long as it is open.

import { store } from "./store.js";

/** The one that is to be sent: `{ file, name, text, mends }`; null: none. `text`: if that was changed here; `mends`: what was wrong of another. */
export const chosen = store(null);

/** Those that were sent, by the id of their job: `{ file, name, csv }`. */
export const sent = new Map();
