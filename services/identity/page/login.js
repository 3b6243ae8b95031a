// The page on which people log in and out. What goes wrong is told in #problem.

const $ = (id) => document.getElementById(id);
let own; // who is logged in
let after; // the cursor of the next page of people
const ARTICLES = { buyer: "a buyer", seller: "a seller", operator: "an operator" };

/** The value of a cookie of ours, under whichever of its two names it has here. */
function cookie(what) {
  const names = [`__Host-boxoffice-${what}`, `boxoffice-${what}`];
  const found = document.cookie.split("; ").find((each) => names.includes(each.slice(0, each.indexOf("="))));
  return found?.slice(found.indexOf("=") + 1);
}

/** What the server left to be told on this page, once. */
function leftToTell() {
  const problem = cookie("problem");
  document.cookie = "boxoffice-problem=; Path=/; Max-Age=0; SameSite=Strict";
  document.cookie = "__Host-boxoffice-problem=; Path=/; Max-Age=0; SameSite=Strict; Secure";
  return decodeURIComponent(problem ?? "");
}

function tell(problem) {
  $("problem").textContent = problem;
  $("problem").hidden = !problem;
}

/** The answer; its JSON in `data`. A login that has run out is renewed, once. */
async function ask(path, { method = "GET", body } = {}, again = true) {
  const headers = { "X-CSRF-Token": cookie("csrf") ?? "" };
  if (body) headers["Content-Type"] = "application/json";
  const response = await fetch(path, { method, headers, body: body && JSON.stringify(body), cache: "no-store" });
  const data = response.status === 204 ? null : await response.json().catch(() => null);
  if (response.status === 401 && again && cookie("csrf")) {
    const renewed = await ask("/api/auth/refresh", { method: "POST", body: {} }, false);
    if (renewed.ok) return ask(path, { method, body }, false);
  }
  return { ok: response.ok, status: response.status, data };
}

function failed({ status, data }) {
  tell(data?.detail ?? `The server answered ${status}; try again.`);
}

function wayOf(name) {
  const link = document.createElement("a");
  link.className = "way";
  link.href = `/api/auth/login/${encodeURIComponent(name)}`;
  link.textContent = `Log in with ${name[0].toUpperCase()}${name.slice(1)}`;
  const item = document.createElement("li");
  item.append(link);
  return item;
}

const time = (text) => new Date(text).toLocaleString([], { dateStyle: "medium", timeStyle: "short" });

/** An item of a list: what it is, more about it, and what can be done with it. */
function itemOf(what, more, ...controls) {
  const item = document.createElement("li");
  const said = document.createElement("span");
  said.textContent = what;
  const small = document.createElement("small");
  small.textContent = more;
  item.append(said, small, ...controls);
  return item;
}

function buttonOf(text, label, deed) {
  const button = document.createElement("button");
  button.type = "button";
  button.textContent = text;
  button.setAttribute("aria-label", label);
  button.addEventListener("click", () => attempt(deed));
  return button;
}

/** A button that takes something away, and then shows what is left. */
function removing(text, label, path, list, showAgain) {
  return buttonOf(text, label, async () => {
    const answer = await ask(path, { method: "DELETE" });
    if (!answer.ok) return failed(answer);
    await showAgain();
    list.focus(); // its button is gone
  });
}

function keyOf({ id, name, scopes, used_at, expires_at }) {
  const used = used_at ? `used ${time(used_at)}` : "not used yet";
  const end = expires_at ? `; until ${time(expires_at)}` : "";
  const revoke = removing("Revoke", `Revoke ${name}`, `/api/auth/keys/${id}`, $("keys"), showKeys);
  return itemOf(name, `${scopes.join(", ")}; ${used}${end}`, revoke);
}

function loginOf({ id, provider, opened_at, refreshed_at, current }) {
  const what = `${provider}, ${time(opened_at)}`;
  if (current) return itemOf(what, "this login");
  const label = `Log out there: ${what}`;
  const out = removing("Log out there", label, `/api/auth/sessions/${id}`, $("logins"), showLogins);
  return itemOf(what, `last seen ${time(refreshed_at)}`, out);
}

/** A user, whose role an operator may change. */
function personOf({ id, name, email, issuer, role }) {
  const who = name ?? email ?? id;
  const select = document.createElement("select");
  select.setAttribute("aria-label", `Role of ${who}`);
  select.append(...Object.keys(ARTICLES).map((each) => new Option(each, each, false, each === role)));
  select.disabled = id === own;
  select.addEventListener("change", () =>
    attempt(async () => {
      try {
        const answer = await ask(`${pathOf(id)}/role`, { method: "PUT", body: { role: select.value } });
        if (!answer.ok) return failed(answer);
        role = answer.data.role;
      } finally {
        select.value = role;
      }
    }),
  );
  const label = `Log ${who} out everywhere`;
  const out = buttonOf("Log out", label, async () => {
    if (!confirm(`${label}, and revoke all of their keys?`)) return;
    const answer = await ask(`${pathOf(id)}/sessions`, { method: "DELETE" });
    if (!answer.ok) return failed(answer);
    tell(`${who} is logged out everywhere; their keys are revoked.`);
  });
  out.disabled = id === own;
  return itemOf(who, [email, issuer].filter((each) => each && each !== who).join("; "), select, out);
}

const pathOf = (id) => `/api/auth/users/${encodeURIComponent(id)}`;

function scopeOf(scope) {
  const label = document.createElement("label");
  const box = document.createElement("input");
  box.type = "checkbox";
  box.name = "scopes";
  box.value = scope;
  label.append(box, scope);
  return label;
}

async function showKeys() {
  const keys = await ask("/api/auth/keys");
  if (!keys.ok) return failed(keys);
  $("keys").replaceChildren(...keys.data.map(keyOf));
}

async function showLogins() {
  const logins = await ask("/api/auth/sessions");
  if (!logins.ok) return failed(logins);
  $("logins").replaceChildren(...logins.data.map(loginOf));
}

/** The first page of people, or that after `cursor`. */
async function showPeople(cursor) {
  const people = await ask(`/api/auth/users${cursor ? `?cursor=${encodeURIComponent(cursor)}` : ""}`);
  if (!people.ok) return failed(people);
  if (!cursor) $("people").replaceChildren();
  const items = people.data.items.map(personOf);
  $("people").append(...items);
  after = people.data.next_cursor;
  $("more").hidden = !after;
  if (cursor) items[0]?.querySelector("button").focus();
}

async function show() {
  const [me, ways] = await Promise.all([ask("/api/auth/me"), ask("/api/auth/providers")]);
  if (!ways.ok) return failed(ways);
  $("in").hidden = !me.ok;
  $("ways").hidden = me.ok;
  if (me.ok) {
    $("name").textContent = me.data.name ?? me.data.user_id;
    $("role").textContent = ARTICLES[me.data.role];
    $("scopes").replaceChildren($("scopes").firstElementChild, ...ways.data.scopes.map(scopeOf));
    $("out").focus();
    own = me.data.user_id;
    const operator = me.data.role === "operator";
    $("people-part").hidden = !operator;
    return Promise.all([showKeys(), showLogins(), operator && showPeople()]);
  }
  if (me.status !== 401) return failed(me);
  $("providers").replaceChildren(...ways.data.providers.map(wayOf));
  $("dev").hidden = !ways.data.dev;
  $("none").hidden = ways.data.dev || ways.data.providers.length > 0;
}

function attempt(deed) {
  tell("");
  deed().catch(() => tell("The server does not answer; try again."));
}

$("dev").addEventListener("submit", (event) => {
  event.preventDefault();
  const { name, role } = Object.fromEntries(new FormData(event.target));
  attempt(async () => {
    const answer = await ask("/api/auth/dev", { method: "POST", body: { name, role, page: true } }, false);
    await (answer.ok ? show() : failed(answer));
  });
});

/** What was written into other pages of this tab is not for whoever comes next. */
function forgetWritten() {
  try {
    sessionStorage.clear();
  } catch {} // where that is not allowed, nothing was kept
}

$("out").addEventListener("click", () =>
  attempt(async () => {
    $("secret").textContent = "";
    $("made").hidden = true;
    const answer = await ask("/api/auth/logout", { method: "POST" });
    if (answer.ok) forgetWritten();
    await (answer.ok || answer.status === 401 ? show() : failed(answer));
  }),
);

$("new-key").addEventListener("submit", (event) => {
  event.preventDefault();
  const form = new FormData(event.target);
  attempt(async () => {
    const key = { name: form.get("name"), scopes: form.getAll("scopes") };
    if (form.get("end")) key.expires_at = new Date(`${form.get("end")}T23:59:59`).toISOString(); // all of that day
    if (key.scopes.length === 0) return tell("Choose at least one thing that the key may do.");
    const answer = await ask("/api/auth/keys", { method: "POST", body: key });
    if (!answer.ok) return failed(answer);
    $("secret").textContent = answer.data.key;
    $("made").hidden = false;
    event.target.reset();
    await showKeys();
  });
});

$("more").addEventListener("click", () => attempt(() => showPeople(after)));

attempt(show);
tell(leftToTell());
