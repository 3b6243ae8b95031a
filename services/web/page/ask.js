// Questions to the server. What comes back is data, or a Problem that says what is wrong and what to do.

/** What the server says is wrong (RFC 9457), or that it does not answer (`status` 0). */
export class Problem extends Error {
  constructor(status, told = {}) {
    super(told.detail || told.title || (status ? `The server answered ${status}.` : AWAY));
    this.status = status;
    this.told = told;
  }

  /** What is wrong with each field of a form, by its name. */
  get fields() {
    return Object.fromEntries((this.told.errors ?? []).map(({ field, message }) => [field, message]));
  }
}

/** Whether the server may be back soon. */
export const isAway = ({ status }) => !status || status === 429 || status >= 500;

const PAUSES = [1_000, 2_000, 5_000, 10_000]; // ms

/** How many ms to wait before something is asked once more: the longer, the more `tries` there were. */
export const pauseAfter = (tries) => PAUSES[Math.min(tries, PAUSES.length - 1)];

export const pause = (tries) => new Promise((resolve) => setTimeout(resolve, pauseAfter(tries)));

const AWAY = "The server does not answer. It is asked again as soon as it is back.";
const IN_DOUBT = "The server does not answer. Whether it was done is not known: look, before you try it again.";
const WITHIN = 15_000; // ms

/** The value of a cookie of ours, under whichever of its two names it has here. */
export function cookie(what) {
  const names = [`__Host-boxoffice-${what}`, `boxoffice-${what}`];
  const found = document.cookie.split("; ").find((each) => names.includes(each.slice(0, each.indexOf("="))));
  return found?.slice(found.indexOf("=") + 1);
}

let loggedOut = () => {};

/** What to do when nobody is logged in any more, as a login ended elsewhere. */
export const whenLoggedOut = (deed) => (loggedOut = deed);

let check = async () => {};

/** What is to be sure before anything is changed: it throws a Problem if it is not. */
export const beforeDeeds = (deed) => (check = deed);

let renewing; // one at a time: a refresh token is good once

function renew() {
  renewing ??= send("/api/auth/refresh", { method: "POST", json: {} }).finally(() => (renewing = undefined));
  return renewing;
}

/** Whether a login that had run out goes on. Throws a Problem where nobody can say: that ends no login. */
async function isRenewed() {
  if (!cookie("csrf")) return false;
  const answer = await renew();
  if (isAway(answer)) throw new Problem(answer.status);
  return answer.ok;
}

async function send(path, { method = "GET", json, body, headers = {}, signal } = {}) {
  const csrf = cookie("csrf");
  const all = { ...(csrf && { "X-CSRF-Token": csrf }), ...(json && { "Content-Type": "application/json" }), ...headers };
  const within = body ? [] : [AbortSignal.timeout(WITHIN)]; // an upload may take its time
  try {
    return await fetch(path, {
      method,
      headers: all,
      body: json ? JSON.stringify(json) : body,
      cache: "no-store",
      signal: AbortSignal.any([...(signal ? [signal] : []), ...within]),
    });
  } catch (error) {
    if (signal?.aborted) throw error;
    throw new Problem(0, method === "GET" ? {} : { detail: IN_DOUBT });
  }
}

/**
 * The response to a question. A login that has run out is renewed, once. Throws a Problem.
 *
 * @param {string} path
 * @param {{ method?: string, json?: unknown, body?: Blob, headers?: Record<string, string>, signal?: AbortSignal }} [how]
 */
export async function response(path, how) {
  if (how?.method && !path.startsWith("/api/auth/")) await check();
  let answer = await send(path, how);
  if (answer.status === 401 && (await isRenewed())) answer = await send(path, how);
  if (answer.ok) return answer;
  if (answer.status === 401) loggedOut();
  throw new Problem(answer.status, await answer.json().catch(() => ({})));
}

/** The same; the JSON of the answer. */
export async function ask(path, how) {
  const answer = await response(path, how);
  return answer.status === 204 ? undefined : answer.json();
}

/** An Idempotency-Key: of one wish, however often it is sent. */
export const newKey = () => crypto.randomUUID?.() ?? `${Date.now()}-${Math.random()}`; // the first only where it is secure

/** A path with parameters; those that are empty are left out. */
export function withQuery(path, parameters) {
  const given = Object.entries(parameters).filter(([, value]) => value !== undefined && value !== null && value !== "");
  const query = new URLSearchParams(given.flatMap(([name, value]) => [value].flat().map((each) => [name, each])));
  return given.length ? `${path}?${query}` : path;
}

const STALLED = 60_000; // ms without a sign of an upload

/** One attempt: `{ status, told }`. Throws a Problem. */
function attempt(path, file, { headers, signal, progress }) {
  return new Promise((resolve, reject) => {
    const request = new XMLHttpRequest(); // fetch tells nothing of how much has gone
    let timer;
    const fail = (detail) => reject(new Problem(0, { detail }));
    const alive = () => {
      clearTimeout(timer);
      timer = setTimeout(() => (fail(`For ${STALLED / 1000} seconds nothing more went through.`), request.abort()), STALLED);
    };
    const stop = () => request.abort();
    request.upload.onprogress = ({ loaded, total }) => (alive(), progress?.(loaded, total));
    request.upload.onload = alive;
    request.onload = () => {
      let told = {};
      try {
        told = JSON.parse(request.responseText);
      } catch {} // a proxy may answer with something else
      resolve({ status: request.status, told });
    };
    request.onerror = () => fail("The connection was lost, or the server is away.");
    request.onabort = () => reject(Object.assign(new Problem(0, { detail: "You stopped it." }), { stopped: true }));
    request.onloadend = () => (clearTimeout(timer), signal?.removeEventListener("abort", stop));
    signal?.addEventListener("abort", stop);
    request.open("POST", path);
    const csrf = cookie("csrf");
    for (const [name, value] of Object.entries({ ...(csrf && { "X-CSRF-Token": csrf }), ...headers })) {
      request.setRequestHeader(name, value);
    }
    alive();
    request.send(file);
  });
}

/**
 * Send a file and tell how much of it has gone; the JSON of the answer. A login that has run out is renewed, once.
 * Throws a Problem.
 *
 * @param {{ headers?: Record<string, string>, signal?: AbortSignal, progress?: (sent: number, of: number) => void }} how
 */
export async function upload(path, file, how) {
  await check();
  await ask("/api/auth/me"); // renews the login before all of the file went for nothing
  let answer = await attempt(path, file, how);
  if (answer.status === 401 && (await isRenewed())) answer = await attempt(path, file, how);
  if (answer.status >= 200 && answer.status < 300) return answer.told;
  throw new Problem(answer.status, answer.told);
}
