// @ts-check
/**
 * Notifications for a web page: each once, in order, over whatever connection there is.
 *
 *     import { listen } from "/api/notifications/client.js";
 *     const heard = listen({ onNotification: ({ text }) => console.log(text) });
 *     heard.close();
 *
 * It listens to what happens to whoever is logged in on this page, or with a `token` to whose that is.
 * It listens on a WebSocket. Where none can be opened it takes server-sent events, where these are cut off it asks
 * again and again (long-poll), and later it tries the better one. A connection that is lost is made again from the
 * last cursor. What `onNotification` has taken is acknowledged, so that it is not sent again.
 */

/**
 * @typedef {object} Notification What happened; `about` is the id of the order, batch or ticket.
 * @property {number} cursor Its place among all.
 * @property {string} id
 * @property {string} kind
 * @property {string} about
 * @property {string} text
 * @property {Record<string, string | number>} facts
 * @property {string} at
 *
 * @typedef {"websocket" | "sse" | "poll"} Transport
 *
 * @typedef {{ state: "connecting", transport: Transport }
 *     | { state: "open", transport: Transport }
 *     | { state: "waiting", transport: Transport, milliseconds: number, reason: string }
 *     | { state: "ended", why: "closed" | "unauthorized" | "refused", reason: string }} State
 *     How it goes. Nothing comes after `ended`: it was closed, nobody is logged in or the token was not believed
 *     (401), or the server has refused again and again (4xx).
 *
 * @typedef {object} Options
 * @property {string | (() => string | Promise<string>)} [token] The bearer, or what gives it for each request. Without
 *     it the page's cookies say who listens, and they are renewed when they are not believed any more.
 * @property {(notification: Notification) => unknown} onNotification Takes a notification; a promise is awaited. If it
 *     fails, the notification is not acknowledged, and is given to it again later. Newer ones do not wait for that.
 * @property {number | null} [after] The last cursor that the page has; by default the last that was acknowledged.
 * @property {string | null} [log] The log that `after` is a cursor of. It may be replaced, and `after` is no place in
 *     the new one; that is noticed only if this is given.
 * @property {(resumed: { recovered: boolean, cursor: number, log: string }) => unknown} [onResumed] There is a
 *     connection, from this cursor of this log on. Not `recovered`: some of what came before it is only in the inbox
 *     (`GET /api/notifications/inbox`), or the log is another one than before.
 * @property {(state: State) => unknown} [onState]
 * @property {(error: unknown, notification?: Notification) => unknown} [onError] What a callback threw, or what the
 *     server says is wrong; by default `console.error`.
 * @property {string | URL} [url] Where the notifications are; by default where this module is from.
 * @property {number} [pingSeconds] After how long a silence the server sends something.
 *
 * @typedef {object} End How a connection ended.
 * @property {string} reason
 * @property {number} [status] Of the response that refuses it.
 * @property {number | null} [wait] Milliseconds that the server asks to wait.
 */

/** @type {Transport[]} */
const TRANSPORTS = ["websocket", "sse", "poll"]; // the best first
const FAILURES = 2; // in a row; from then on a lesser transport is tried after each
const REFUSALS = 5; // 4xx in a row; then it ends
const STEADY = 5_000; // ms; a connection that breaks sooner is a failure
const OPEN_WITHIN = 10_000; // ms
const BETTER_AFTER = 180_000; // ms on a lesser transport
const SHORTEST_PAUSE = 500; // ms; doubled with each, at random between 0 and that
const LONGEST_PAUSE = 30_000;
const LONGEST_ASKED = 300_000; // ms that the server may ask to wait
const AGAIN = 1_000; // ms until a notification is given to a callback that failed; doubled with each
const LONGEST_AGAIN = 300_000;
const POLL_SECONDS = 25;
const SILENT_PINGS = 2.5; // a connection that misses so many is dead

/**
 * Listen to what happens to somebody, until it is closed.
 *
 * @param {Options} options
 * @returns {{ close: () => void, readonly cursor: number | undefined, readonly log: string | undefined }} All up to
 *     `cursor` of `log` was taken: a page that keeps both can go on from there (`after`, `log`).
 */
export function listen(options) {
    const listening = new Listening(options);
    listening.run();
    return {
        close: () => listening.close(),
        get cursor() {
            return listening.taken;
        },
        get log() {
            return listening.log;
        },
    };
}

class Listening {
    #options;
    #base;
    #over = new AbortController(); // all of it
    #connection = new AbortController(); // the present one
    #rest = new AbortController(); // the present pause, if it need not be kept

    #level = 0; // of TRANSPORTS
    #failures = 0;
    #refusals = 0;
    #pauses = 0;
    #betterAt = 0;
    #openedAt = 0; // 0: it is not open yet
    #heardAt = 0;
    #patience = 0; // ms that it may be silent
    /** @type {End | undefined} */ #ending; // as the server announced it
    /** @type {Record<"watch" | "better" | "again", ReturnType<typeof setTimeout> | undefined>} */
    #timers = { watch: undefined, better: undefined, again: undefined };

    /** @type {string | undefined} */ log; // that all cursors here are of
    /** @type {number | undefined} */ #sentTo; // what is not past it has come already
    /** @type {Map<number, number>} */ #pending = new Map(); // cursors that have come and were not taken: failures
    /** @type {Notification[]} */ #queue = []; // those that are to be given to the callback now
    /** @type {Notification[]} */ #failed = []; // those that are later
    /** @type {Promise<void> | undefined} */ #giving;
    /** @type {((cursor: number) => void) | undefined} */ #acknowledge; // how, on this connection
    /** @type {number | undefined} */ #acknowledged; // on this connection

    /** @param {Options} options */
    constructor(options) {
        this.#options = options;
        this.#base = new URL(options.url ?? ".", import.meta.url);
        if (!this.#base.pathname.endsWith("/")) this.#base.pathname += "/";
        this.#sentTo = options.after ?? undefined;
        this.log = options.log ?? undefined;
        const { signal } = this.#over;
        globalThis.addEventListener("online", () => this.#tryBetter(), { signal });
        globalThis.addEventListener("pageshow", () => this.#look(), { signal });
        globalThis.document?.addEventListener("visibilitychange", () => this.#look(), { signal });
    }

    /** All up to this cursor was taken. It is not known before the first connection, unless the page has said it. */
    get taken() {
        const [oldest] = this.#pending.keys();
        return oldest === undefined ? this.#sentTo : oldest - 1;
    }

    /** Connect again and again, until it is over. */
    async run() {
        await undefined; // so that `listen` has returned before the first callback
        while (!this.#over.signal.aborted) {
            const end = await this.#connect();
            if (this.#over.signal.aborted) return;
            if (end.status === 401) return this.#end("unauthorized", end.reason);
            if (this.#refusals >= REFUSALS) return this.#end("refused", end.reason);
            const asked = typeof end.wait === "number";
            if (!asked && this.#failures >= FAILURES) {
                this.#level = (this.#level + 1) % TRANSPORTS.length;
                this.#betterAt = Date.now() + BETTER_AFTER;
                if (this.#level > 0) continue; // the best one again only after a pause
            }
            await this.#pause(end);
        }
    }

    close() {
        this.#tell(); // what was taken last
        this.#end("closed", "It was closed.");
    }

    /** @param {"closed" | "unauthorized" | "refused"} why @param {string} reason */
    #end(why, reason) {
        if (this.#over.signal.aborted) return;
        this.#over.abort();
        this.#connection.abort();
        this.#rest.abort();
        for (const timer of Object.values(this.#timers)) clearTimeout(timer);
        this.#state({ state: "ended", why, reason });
    }

    /** One connection, from the first try to its end. Never rejects. @returns {Promise<End>} */
    async #connect() {
        const { signal } = (this.#connection = new AbortController());
        if (Date.now() >= this.#betterAt) this.#level = 0;
        this.#openedAt = 0;
        this.#ending = undefined;
        this.#state({ state: "connecting", transport: TRANSPORTS[this.#level] });
        this.#expect(OPEN_WITHIN);
        /** @type {Promise<never>} */
        const givenUp = new Promise((_, reject) => signal.addEventListener("abort", () => reject(signal.reason)));
        /** @type {End} */
        let end;
        try {
            signal.throwIfAborted();
            end = await Promise.race([this.#transport(signal), givenUp]);
        } catch (error) {
            end = { reason: String(error instanceof Error ? error.message : error) };
        }
        end = this.#ending ?? end;
        const better = signal.reason === BETTER;
        this.#connection.abort();
        this.#acknowledge = undefined;
        clearTimeout(this.#timers.watch);
        clearTimeout(this.#timers.better);
        const lasted = this.#openedAt && Date.now() - this.#openedAt;
        this.#failures += 1;
        if (lasted >= STEADY || (lasted && this.#ending)) this.#failures = this.#pauses = 0;
        this.#refusals = isRefusal(end.status) ? this.#refusals + 1 : this.#openedAt ? 0 : this.#refusals;
        if (better || (end.status && typeof end.wait === "number")) {
            this.#level = 0; // and if that is not possible, the next one at once
            this.#failures = FAILURES - 1;
        }
        return better ? { ...end, wait: 0 } : end;
    }

    /** @param {AbortSignal} signal */
    async #transport(signal) {
        return this[TRANSPORTS[this.#level]](signal);
    }

    /** Wait before the next try. @param {End} end */
    async #pause({ reason, wait }) {
        const most = Math.min(LONGEST_PAUSE, SHORTEST_PAUSE * 2 ** this.#pauses);
        this.#pauses += 1;
        const asked = typeof wait === "number";
        const milliseconds = Math.round(asked ? wait : Math.random() * most);
        if (milliseconds === 0) return;
        this.#rest = new AbortController();
        this.#state({ state: "waiting", transport: TRANSPORTS[this.#level], milliseconds, reason });
        await sleep(milliseconds, asked ? this.#over.signal : this.#rest.signal);
    }

    // --- is it alive, and is there a better one -------------------------------------------------------------------

    /** From now on something is to come within so many milliseconds, again and again. @param {number} patience */
    #expect(patience) {
        this.#heardAt = Date.now();
        this.#patience = patience;
        this.#look();
    }

    /** End a connection that is silent for too long, and a pause. Timers of a page that sleeps come late: time counts. */
    #look() {
        this.#rest.abort();
        clearTimeout(this.#timers.watch);
        if (this.#connection.signal.aborted) return;
        const left = this.#heardAt + this.#patience - Date.now();
        if (left <= 0) this.#connection.abort(new Error("The connection was silent for too long."));
        else if (left < Infinity) this.#timers.watch = setTimeout(() => this.#look(), left);
    }

    #tryBetter() {
        this.#look();
        if (this.#level === 0) return;
        this.#betterAt = 0; // also if it is being opened just now
        if (this.#openedAt) this.#connection.abort(BETTER);
    }

    // --- the transports: each until it ends -----------------------------------------------------------------------

    /** @param {string} path @param {Record<string, number | string | undefined>} [query] */
    #url(path, query = {}) {
        const url = new URL(path, this.#base);
        for (const [name, value] of Object.entries(query)) {
            if (value !== undefined) url.searchParams.set(name, String(value));
        }
        return url;
    }

    /**
     * A request of whoever listens: with the bearer; or with the cookies of this page, and what only its own scripts
     * can read beside them. Cookies that are not believed any more are renewed, once.
     *
     * @param {URL} url @param {RequestInit} [options]
     */
    async #ask(url, options = {}) {
        const { token } = this.#options;
        const bearer = typeof token === "function" ? await token() : token;
        options.signal?.throwIfAborted();
        /** @param {URL} at @param {RequestInit} given */
        const ask = (at, given) => {
            const who = bearer === undefined ? { "X-CSRF-Token": csrfToken() } : { Authorization: `Bearer ${bearer}` };
            return fetch(at, { cache: "no-store", ...given, headers: { ...given.headers, ...who } });
        };
        const response = await ask(url, options);
        if (response.status !== 401 || bearer !== undefined) return response;
        const headers = { "Content-Type": "application/json" };
        const renewed = await ask(this.#url("../auth/refresh"), {
            method: "POST",
            headers,
            body: "{}",
            signal: options.signal,
        });
        return renewed.ok ? ask(url, options) : renewed;
    }

    /** @param {AbortSignal} signal @returns {Promise<End>} */
    async websocket(signal) {
        // Browsers let a page set no header on a WebSocket; so it gets a ticket first, which is good for one.
        const response = await this.#ask(this.#url("../auth/ticket"), { method: "POST", signal });
        // Who gives tickets may be away, and the other transports need none: it does not wait for that.
        if (!response.ok) return { ...(await refusal(response)), wait: null };
        const { ticket } = await response.json();
        signal.throwIfAborted();
        const url = this.#url("ws", { after: this.#sentTo, log: this.log, ticket });
        url.protocol = url.protocol.replace("http", "ws");
        const socket = new WebSocket(url);
        signal.addEventListener("abort", () => {
            socket.onmessage = socket.onclose = null;
            socket.close();
        });
        return new Promise((resolve, reject) => {
            socket.onmessage = ({ data }) => {
                try {
                    this.#message(data, (cursor) => socket.send(JSON.stringify({ ack: cursor })));
                } catch (error) {
                    reject(error);
                }
            };
            socket.onclose = ({ code, reason }) => resolve({ reason: reason || `The WebSocket was closed (${code}).` });
        });
    }

    /** @param {AbortSignal} signal @returns {Promise<End>} */
    async sse(signal) {
        const url = this.#url("stream", { after: this.#sentTo, log: this.log });
        const response = await this.#ask(url, { signal }); // EventSource could send no header
        if (!response.ok) return refusal(response);
        if (!response.body || !response.headers.get("Content-Type")?.startsWith("text/event-stream")) {
            return { reason: "What came is no stream of events." };
        }
        const acknowledge = this.#posting();
        const reader = response.body.getReader();
        const parser = new EventStreamParser();
        for (;;) {
            const { done, value } = await reader.read();
            if (done) return { reason: "The stream of events has ended." };
            this.#heardAt = Date.now(); // also of a comment
            for (const { data } of parser.push(value)) this.#message(data, acknowledge);
        }
    }

    /** @param {AbortSignal} signal @returns {Promise<End>} */
    async poll(signal) {
        for (let wait = 0; ; wait = POLL_SECONDS) {
            this.#expect(wait * 1000 + OPEN_WITHIN);
            const after = this.taken; // with it all up to there is acknowledged
            const url = this.#url("", { after, log: this.log, wait });
            const response = await this.#ask(url, { signal });
            if (!response.ok) return refusal(response);
            /** @type {{ items: Notification[], cursor: number, recovered: boolean, log: string }} */
            const { items, cursor, recovered, log } = await response.json();
            signal.throwIfAborted();
            this.#expect(Infinity); // the page may take its time
            this.#acknowledge = undefined;
            if (!this.#openedAt || !recovered) {
                const began = items.length ? items[0].cursor - 1 : cursor;
                this.#resumed({ recovered, cursor: recovered ? (this.#sentTo ?? began) : began, log });
            }
            for (const item of items) this.#notification(item);
            await this.#giving;
            signal.throwIfAborted();
            this.#acknowledged = after;
            this.#acknowledge = this.#posting(); // for what is taken while it waits
            if (items.length && this.taken === after) await sleep(STEADY, signal); // it would get the same again
        }
    }

    /**
     * Acknowledges by requests: one at a time, and all that comes meanwhile by the next.
     *
     * @returns {(cursor: number) => Promise<void>}
     */
    #posting() {
        const headers = { "Content-Type": "application/json" };
        /** @type {number | undefined} */
        let latest;
        let busy = false;
        return async (cursor) => {
            latest = cursor;
            if (busy) return;
            busy = true;
            while (latest !== undefined) {
                const body = JSON.stringify({ cursor: latest });
                latest = undefined;
                // If it fails, the server sends the notifications again, and they are acknowledged again.
                await this.#ask(this.#url("ack"), { method: "POST", headers, body, keepalive: true }).catch(() => {});
            }
            busy = false;
        };
    }

    // --- what comes -----------------------------------------------------------------------------------------------

    /** @param {string} data @param {(cursor: number) => void} acknowledge How, on this connection. */
    #message(data, acknowledge) {
        this.#heardAt = Date.now();
        const message = JSON.parse(data);
        if (message.type !== "resumed") this.#pauses = 0;
        switch (message.type) {
            case "resumed":
                this.#acknowledge = acknowledge;
                this.#resumed(message);
                this.#expect(SILENT_PINGS * 1000 * (this.#options.pingSeconds ?? 15));
                break;
            case "notification":
                this.#notification(message.notification);
                break;
            case "ended":
                this.#ending = { reason: message.reason, wait: message.retry_ms };
                break;
            case "wrong":
                this.#report(new Error(message.detail));
        }
    }

    /** @param {{ recovered: boolean, cursor: number, log: string }} resumed */
    #resumed({ recovered, cursor, log }) {
        this.#openedAt = Date.now();
        if (recovered && this.#sentTo !== undefined) {
            this.#acknowledged = undefined; // what was, may have got lost with the last connection
        } else {
            this.#sentTo = this.#acknowledged = cursor;
            const known = this.log === undefined || this.log === log ? cursor : -1;
            const isOfThisLog = (/** @type {Notification} */ each) => each.cursor <= known;
            this.#queue = this.#queue.filter(isOfThisLog);
            this.#failed = this.#failed.filter(isOfThisLog);
            for (const pending of [...this.#pending.keys()]) if (pending > known) this.#pending.delete(pending);
        }
        this.log = log;
        if (this.#level > 0) {
            clearTimeout(this.#timers.better);
            this.#timers.better = setTimeout(() => this.#tryBetter(), Math.max(0, this.#betterAt - Date.now()));
        }
        this.#state({ state: "open", transport: TRANSPORTS[this.#level] });
        this.#call(this.#options.onResumed, { recovered, cursor, log });
        this.#tell();
    }

    /** @param {Notification} notification */
    #notification(notification) {
        if (this.#over.signal.aborted) return;
        if (this.#sentTo !== undefined && notification.cursor <= this.#sentTo) {
            this.#acknowledged = undefined; // it was sent again, so the server does not know
        } else {
            this.#sentTo = notification.cursor;
            this.#pending.set(notification.cursor, 0);
            this.#queue.push(notification);
        }
        this.#giving ??= this.#give();
    }

    /** Give the callback what there is, one after the other; then acknowledge. */
    async #give() {
        await undefined;
        for (let next = this.#queue.shift(); next && !this.#over.signal.aborted; next = this.#queue.shift()) {
            try {
                await this.#options.onNotification(next);
                this.#pending.delete(next.cursor);
            } catch (error) {
                this.#giveAgain(next);
                this.#report(error, next);
            }
        }
        this.#giving = undefined;
        this.#tell();
    }

    /** @param {Notification} notification */
    #giveAgain(notification) {
        const failures = this.#pending.get(notification.cursor);
        if (failures === undefined || this.#over.signal.aborted) return;
        this.#pending.set(notification.cursor, failures + 1);
        this.#failed.push(notification);
        this.#timers.again ??= setTimeout(
            () => {
                this.#timers.again = undefined;
                this.#queue.push(...this.#failed.splice(0));
                this.#giving ??= this.#give();
            },
            Math.min(LONGEST_AGAIN, AGAIN * 2 ** failures),
        );
    }

    /** Acknowledge what was taken, if there is more of it than the server has been told. */
    #tell() {
        const taken = this.taken;
        if (this.#over.signal.aborted || !this.#acknowledge) return;
        if (taken === undefined || taken === this.#acknowledged) return;
        this.#acknowledged = taken;
        this.#acknowledge(taken);
    }

    // --- the page's callbacks: whatever they throw, it goes on -----------------------------------------------------

    /** @param {State} state */
    #state(state) {
        this.#call(this.#options.onState, state);
    }

    /** @template T @param {((given: T) => unknown) | undefined} callback @param {T} given */
    async #call(callback, given) {
        try {
            await callback?.(given);
        } catch (error) {
            this.#report(error);
        }
    }

    /** @param {unknown} error @param {Notification} [notification] */
    async #report(error, notification) {
        try {
            await (this.#options.onError ?? console.error)(error, notification);
        } catch (another) {
            console.error(another);
        }
    }
}

const BETTER = new Error("A better connection is tried.");

/** @typedef {{ event: string, data: string, id: string, retry: number | undefined }} ServerSentEvent */

/** Makes events of the bytes of a `text/event-stream` (WHATWG HTML, 9.2), wherever they are cut. */
export class EventStreamParser {
    #decoder = new TextDecoder();
    #text = ""; // of the line that is not at its end
    #afterReturn = false; // a line feed that comes now belongs to the return before it
    #event = "";
    /** @type {string[]} */ #data = [];
    #id = "";
    /** @type {number | undefined} */ #retry;

    /** @param {Uint8Array} bytes @returns {ServerSentEvent[]} The events that these bytes complete. */
    push(bytes) {
        let text = this.#decoder.decode(bytes, { stream: true });
        if (!text) return [];
        if (this.#afterReturn && text.startsWith("\n")) text = text.slice(1);
        this.#afterReturn = text.endsWith("\r");
        const lines = (this.#text + text).split(/\r\n|\n|\r/);
        this.#text = lines.pop() ?? "";
        return lines.flatMap((line) => this.#line(line));
    }

    /** @param {string} line @returns {ServerSentEvent[]} */
    #line(line) {
        if (line === "") return this.#dispatch();
        const [, field, value] = /^([^:]*)(?::[ ]?(.*))?$/s.exec(line) ?? ["", "", ""];
        if (field === "data") this.#data.push(value ?? "");
        else if (field === "event") this.#event = value ?? "";
        else if (field === "id" && !value?.includes("\0")) this.#id = value ?? "";
        else if (field === "retry" && /^[0-9]+$/.test(value ?? "")) this.#retry = Number(value);
        return []; // anything else is a comment or unknown
    }

    #dispatch() {
        const event = {
            event: this.#event || "message",
            data: this.#data.join("\n"),
            id: this.#id,
            retry: this.#retry,
        };
        const isOne = this.#data.length > 0;
        this.#event = "";
        this.#data = [];
        return isOne ? [event] : [];
    }
}

/** @param {number | undefined} status Is it one that says: do not ask again? */
function isRefusal(status = 0) {
    return status >= 400 && status < 500 && ![408, 425, 429].includes(status);
}

/** Why a response refuses, and for how long. @param {Response} response @returns {Promise<End>} */
async function refusal(response) {
    const problem = await response.json().catch(() => ({}));
    const after = response.headers.get("Retry-After") ?? "";
    const asked = /^[0-9]+$/.test(after) ? Number(after) * 1000 : Date.parse(after) - Date.now();
    const wait = asked >= 0 && !isRefusal(response.status) ? Math.min(asked, LONGEST_ASKED) : null;
    return {
        reason: problem.detail ?? `The server answered ${response.status}.`,
        status: response.status,
        wait: wait === null ? null : wait + Math.random() * 1000, // not all at once
    };
}

/** @param {number} milliseconds @param {AbortSignal} signal Ends it earlier. @returns {Promise<void>} */
function sleep(milliseconds, signal) {
    return new Promise((resolve) => {
        if (signal.aborted) return resolve();
        const done = () => {
            clearTimeout(timer);
            signal.removeEventListener("abort", done);
            resolve();
        };
        const timer = setTimeout(done, milliseconds);
        signal.addEventListener("abort", done);
    });
}

/** What a page sends beside its cookies; pages of others cannot read it. */
function csrfToken() {
    const cookies = (globalThis.document?.cookie ?? "").split("; ");
    for (const name of ["__Host-boxoffice-csrf=", "boxoffice-csrf="]) {
        const found = cookies.find((cookie) => cookie.startsWith(name));
        if (found) return found.slice(name.length);
    }
    return "";
}
