// The page on which people log in and out. What goes wrong is told in #problem.

const $ = (id) => document.getElementById(id);
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

function keyOf({ id, name, scopes, used_at }) {
  const item = document.createElement("li");
  const said = document.createElement("span");
  said.textContent = name;
  const small = document.createElement("small");
  const used = used_at ? `used ${new Date(used_at).toLocaleString()}` : "not used yet";
  small.textContent = `${scopes.join(", ")}; ${used}`;
  const revoke = document.createElement("button");
  revoke.type = "button";
  revoke.textContent = "Revoke";
  revoke.setAttribute("aria-label", `Revoke ${name}`);
  revoke.addEventListener("click", () =>
    attempt(async () => {
      const answer = await ask(`/api/auth/keys/${id}`, { method: "DELETE" });
      await (answer.ok ? showKeys() : failed(answer));
    }),
  );
  item.append(said, small, revoke);
  return item;
}

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
    return showKeys();
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

$("out").addEventListener("click", () =>
  attempt(async () => {
    $("secret").textContent = "";
    $("made").hidden = true;
    const answer = await ask("/api/auth/logout", { method: "POST" });
    await (answer.ok || answer.status === 401 ? show() : failed(answer));
  }),
);

$("new-key").addEventListener("submit", (event) => {
  event.preventDefault();
  const form = new FormData(event.target);
  attempt(async () => {
    const key = { name: form.get("name"), scopes: form.getAll("scopes") };
    if (key.scopes.length === 0) return tell("Choose at least one thing that the key may do.");
    const answer = await ask("/api/auth/keys", { method: "POST", body: key });
    if (!answer.ok) return failed(answer);
    $("secret").textContent = answer.data.key;
    $("made").hidden = false;
    event.target.reset();
    await showKeys();
  });
});

attempt(show);
tell(leftToTell());
