// Who is logged in on this page, and how people get in.

import { ask, cookie, Problem, whenLoggedOut } from "./ask.js";
import { store } from "./store.js";

/** Who: `{ user_id, name, role }`; null: nobody; undefined: not known yet. */
export const me = store(undefined);

whenLoggedOut(() => (me.value = null)); // what is for somebody says then how to get in

/** Ask who is logged in; of a page that nobody has logged in on, without asking. */
export async function whoIsIt() {
  try {
    me.value = cookie("csrf") ? await ask("/api/auth/me") : null;
  } catch (error) {
    if (!(error instanceof Problem) || error.status !== 401) throw error;
    me.value = null;
  }
}

/** Be whoever one says, where that is enough. Throws a Problem. */
export async function beDeveloper(name, role) {
  await ask("/api/auth/dev", { method: "POST", json: { name, role, page: true } });
  await whoIsIt();
}

export async function logOut() {
  await ask("/api/auth/logout", { method: "POST" });
  me.value = null;
}

const RANKS = ["buyer", "seller", "operator"];

/** Whether somebody may do what a role may. */
export const may = (who, role) => Boolean(who) && RANKS.indexOf(who.role) >= RANKS.indexOf(role);
