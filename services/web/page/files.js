// Files that somebody chose on this page, for as long as it is open.

import { store } from "./store.js";

/** The one that is to be sent: `{ file, name, text }`, with its `text` if that was changed here; null: none. */
export const chosen = store(null);

/** Those that were sent, by the id of their job: `{ file, name, csv }`. */
export const sent = new Map();
