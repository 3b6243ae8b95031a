// How money, times and numbers are said.

const language = navigator.languages;

/** An amount in minor units of a currency. */
export function money(amount, currency) {
  const format = new Intl.NumberFormat(language, { style: "currency", currency });
  return format.format(amount / 10 ** format.resolvedOptions().maximumFractionDigits);
}

/** How many digits a currency has behind its point. */
export const digitsOf = (currency) =>
  new Intl.NumberFormat("en", { style: "currency", currency }).resolvedOptions().maximumFractionDigits;

export const number = (value) => new Intl.NumberFormat(language).format(value);

/** A moment, in this place's time. */
export const moment = (text) => new Date(text).toLocaleString(language, { dateStyle: "medium", timeStyle: "short" });

/** The same to the second. */
export const exactly = (text) => new Date(text).toLocaleString(language, { dateStyle: "short", timeStyle: "medium" });

/** A span of milliseconds, as 14:59 or 1:02:03. */
export function clockface(milliseconds) {
  const seconds = Math.max(0, Math.ceil(milliseconds / 1000));
  const parts = [Math.floor(seconds / 3600), Math.floor(seconds / 60) % 60, seconds % 60];
  const shown = parts[0] ? parts : parts.slice(1);
  return shown.map((part, place) => (place ? String(part).padStart(2, "0") : part)).join(":");
}

const SIZES = ["kilobyte", "megabyte", "gigabyte"];

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

export const plural = (count, one, many = `${one}s`) => `${number(count)} ${count === 1 ? one : many}`;

/** So many a second; null: nobody knows. */
export const rate = (value) => (value === null ? "–" : `${number(value < 10 ? Math.round(value * 10) / 10 : Math.round(value))}/s`);
