// What this tab keeps over a reload, as long as it is open. Where a browser keeps nothing, or no more, nothing is kept.

/** What was kept under a name; null: nothing. */
export function kept(name) {
  try {
    return JSON.parse(sessionStorage.getItem(name));
  } catch {
    return null;
  }
}

/** Keep a value under a name; null: nothing any more. */
export function keep(name, value) {
  try {
    if (value === null) sessionStorage.removeItem(name);
    else sessionStorage.setItem(name, JSON.stringify(value));
  } catch {} // it is full, or not allowed
}

export function forgetAll() {
  try {
    sessionStorage.clear();
  } catch {} // it is not allowed
}
