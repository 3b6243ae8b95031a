// How money, times and numbers are said.

const language = navigator.languages;

// Of ISO 4217, whatever a browser's own tables say: those of Unicode differ for some. All others have two.
const DIGITS = new Map([
  ..."BIF CLP DJF GNF ISK JPY KMF KRW PYG RWF UGX VND VUV XAF XOF XPF".split(" ").map((code) => [code, 0]),
  ..."BHD IQD JOD KWD LYD OMR TND".split(" ").map((code) => [code, 3]),
]);

/** Codes of ISO 4217 that tickets may be sold in: those of `common/requests/tickets.py`. */
export const CURRENCIES = `
  AED AFN ALL AMD AOA ARS AUD AWG AZN BAM BBD BDT BGN BHD BIF BMD BND BOB BRL BSD BTN BWP BYN BZD CAD CDF
  CHF CLP CNY COP CRC CUP CVE CZK DJF DKK DOP DZD EGP ERN ETB EUR FJD FKP GBP GEL GHS GIP GMD GNF GTQ GYD
  HKD HNL HTG HUF IDR ILS INR IQD IRR ISK JMD JOD JPY KES KGS KHR KMF KPW KRW KWD KYD KZT LAK LBP LKR LRD
  LSL LYD MAD MDL MGA MKD MMK MNT MOP MRU MUR MVR MWK MXN MYR MZN NAD NGN NIO NOK NPR NZD OMR PAB PEN PGK
  PHP PKR PLN PYG QAR RON RSD RUB RWF SAR SBD SCR SDG SEK SGD SHP SLE SOS SRD SSP STN SVC SYP SZL THB TJS
  TMT TND TOP TRY TTD TWD TZS UAH UGX USD UYU UZS VED VES VND VUV WST XAF XCD XOF XPF YER ZAR ZMW ZWG
`.trim().split(/\s+/);

/** How many digits a currency has behind its point. */
export const digitsOf = (currency) => DIGITS.get(currency) ?? 2;

/** An amount in minor units of a currency. */
export function money(amount, currency) {
  const digits = digitsOf(currency);
  const how = { style: "currency", currency, minimumFractionDigits: digits, maximumFractionDigits: digits };
  return new Intl.NumberFormat(language, how).format(amount / 10 ** digits);
}

/** An amount in minor units as it is written into a field: 2500 of EUR is 25.00. */
export function majorOf(amount, currency) {
  const digits = digitsOf(currency);
  const written = String(amount).padStart(digits + 1, "0");
  return digits ? `${written.slice(0, -digits)}.${written.slice(-digits)}` : written;
}

/** What was written into a field, in minor units; undefined for what is no amount of this currency. */
export function minorOf(text, currency) {
  const [, whole, part = ""] = /^(\d{1,12})(?:[.,](\d*))?$/.exec(text.trim()) ?? [];
  const digits = digitsOf(currency);
  return whole === undefined || part.length > digits ? undefined : Number(whole + part.padEnd(digits, "0"));
}

export const number = (value) => new Intl.NumberFormat(language).format(value);

/** A moment, in this place's time. */
export const moment = (text) => new Date(text).toLocaleString(language, { dateStyle: "medium", timeStyle: "short" });

/** A moment as a field of the kind `datetime-local` has it: in this place's time, to the minute. */
export function local(text) {
  const at = new Date(text);
  const two = (value) => String(value).padStart(2, "0");
  const day = `${String(at.getFullYear()).padStart(4, "0")}-${two(at.getMonth() + 1)}-${two(at.getDate())}`;
  return `${day}T${two(at.getHours())}:${two(at.getMinutes())}`;
}

/** The same to the second. */
export const exactly = (text) => new Date(text).toLocaleString(language, { dateStyle: "short", timeStyle: "medium" });

const date = new Intl.DateTimeFormat(language);
const time = new Intl.DateTimeFormat(language, { timeStyle: "medium" });
const seconds = new Intl.NumberFormat(language, { minimumIntegerDigits: 2, minimumFractionDigits: 3 });

/** The same to the millisecond, which no style has. */
export function precisely(text) {
  const at = new Date(text);
  const second = seconds.format(at.getSeconds() + at.getMilliseconds() / 1000);
  return `${date.format(at)} ${time.formatToParts(at).map(({ type, value }) => (type === "second" ? second : value)).join("")}`;
}

/** A span of milliseconds, as 14:59 or 1:02:03. */
export function clockface(milliseconds) {
  const seconds = Math.max(0, Math.ceil(milliseconds / 1000));
  const parts = [Math.floor(seconds / 3600), Math.floor(seconds / 60) % 60, seconds % 60];
  const shown = parts[0] ? parts : parts.slice(1);
  return shown.map((part, place) => (place ? String(part).padStart(2, "0") : part)).join(":");
}

const SIZES = ["kilobyte", "megabyte", "gigabyte", "terabyte"];

/** A number of bytes, as 812 bytes or 3.4 MB. */
export function size(bytes) {
  if (bytes < 1000) return plural(bytes, "byte");
  const power = Math.min(SIZES.length, Math.floor(Math.log10(bytes) / 3));
  const format = { style: "unit", unit: SIZES[power - 1], maximumSignificantDigits: 3 };
  return new Intl.NumberFormat(language, format).format(bytes / 1000 ** power);
}

/** A share of one, rounded down: all is what is really all. */
export const percent = (share) => new Intl.NumberFormat(language, { style: "percent" }).format(Math.floor(share * 100 + 1e-9) / 100);

const UNITS = [
  ["d", 86_400_000],
  ["h", 3_600_000],
  ["min", 60_000],
  ["s", 1_000],
];

/** A span of milliseconds in its largest unit, as 12 ms, 3.4 s or 15 min. */
export function span(milliseconds) {
  const [unit, size] = UNITS.find(([, each]) => Math.round(milliseconds) >= each) ?? ["ms", 1];
  const value = milliseconds / size;
  return `${value < 10 && unit !== "ms" ? value.toFixed(1).replace(/\.0$/, "") : Math.round(value)} ${unit}`;
}

const JOBS = {
  "tickets.create": "Put tickets on sale",
  "tickets.update": "Change tickets",
  "orders.cancel": "Cancel orders",
  "documents.render": "Make documents",
  "records.insert": "Keep records",
};

/** What a kind of job does; of one that was installed beside ours, its name. */
export const jobOf = (kind) => JOBS[kind] ?? kind;

export const plural = (count, one, many = `${one}s`) => `${number(count)} ${count === 1 ? one : many}`;

/** So many a second; null: nobody knows. */
export const rate = (value) => (value === null ? "–" : `${number(value < 10 ? Math.round(value * 10) / 10 : Math.round(value))}/s`);
