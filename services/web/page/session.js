// Who is logged in on this page, and how people get in.

import { ask, beforeDeeds, cookie, isAway, pause, Problem, whenLoggedOut } from "./ask.js";
import { tell } from "./live.js";
import { forgetAll } from "./kept.js";
import { store } from "./store.js";

/** Who: `{ user_id, name, role }`; null: nobody; undefined: not known yet. */
export const me = store(undefined);

/** How often one user has become another in this tab: what was shown to the one is not for the other. */
export const switches = store(0);

const tabs = new BroadcastChannel("boxoffice-login"); // of this browser, which has one login for all of them

let login; // of which login `me` was told: its CSRF token

whenLoggedOut(() => (me.value = null)); // what is for somebody says then how to get in

/** Ask who is logged in; of a page that nobody has logged in on, without asking. `wanted`: it was done here. */
export async function whoIsIt({ wanted = false } = {}) {
  const before = me.value;
  let now = null;
  try {
    now = cookie("csrf") ? await ask("/api/auth/me") : null;
  } catch (error) {
    if (!(error instanceof Problem) || error.status !== 401) throw error;
  }
  login = cookie("csrf");
  if (!wanted && before && now && before.user_id !== now.user_id) switches.value += 1;
  me.value = now;
}

/** Ask that until it is known: nobody is taken for logged out because the server is away. */
export async function learnWho() {
  for (let tries = 0; ; tries++) {
    try {
      await whoIsIt();
    } catch (error) {
      if (isAway(error)) {
        tell(learnWho, true);
        await pause(tries);
        continue;
      }
      me.value = null;
    }
    return tell(learnWho, false);
  }
}

/** Notice who logs in or out in another tab. */
export function followOtherTabs() {
  const look = () => whoIsIt().catch(() => {}); // who changes something is looked at once more
  tabs.onmessage = ({ data }) => {
    if (data === "out") forgetAll();
    look();
  };
  document.addEventListener("visibilitychange", () => {
    if (document.visibilityState === "visible" && cookie("csrf") !== login) look();
  });
  beforeDeeds(async () => {
    const before = me.value;
    if (!before || cookie("csrf") === login) return;
    await whoIsIt();
    if (me.value?.user_id !== before.user_id) throw new Problem(409, { detail: ANOTHER });
  });
}

const ANOTHER = "Somebody else has logged in or out with this browser meanwhile. Look who you are now, and do it again.";

/** Be whoever one says, where that is enough. Throws a Problem. */
export async function beDeveloper(name, role) {
  await ask("/api/auth/dev", { method: "POST", json: { name, role, page: true } });
  await whoIsIt({ wanted: true });
  tabs.postMessage("in");
}

export async function logOut() {
  await ask("/api/auth/logout", { method: "POST" });
  me.value = null;
  forgetAll();
  tabs.postMessage("out");
}

const RANKS = ["buyer", "seller", "operator"];

/** Whether somebody may do what a role may. */
export const may = (who, role) => Boolean(who) && RANKS.indexOf(who.role) >= RANKS.indexOf(role);
