// BullMQ delayed jobs: hold many, and tell how late those are that come due.
// Arguments: redis port, jobs held, jobs that come due, due per second, when the first is due (ms since 1970).
import { createRequire } from "node:module";
import { resolve } from "node:path";

const { Queue, Worker } = createRequire(resolve("package.json"))("bullmq"); // installed where this runs
const [port, held, due, perSecond, first] = process.argv.slice(2).map(Number);
const connection = { host: "127.0.0.1", port };
const concurrency = 50; // 200 and 1,000 were later
const LATER = 3_600_000;
const precise = () => performance.timeOrigin + performance.now();

const queue = new Queue("expirations", { connection });
const dueAt = (n) => (n < due ? first + (1000 * n) / perSecond : first + LATER);
for (let start = 0; start < held; start += 1000) {
  const batch = [];
  for (let n = start; n < Math.min(held, start + 1000); n++)
    batch.push({
      name: "expire",
      data: { order_id: crypto.randomUUID(), dueAt: dueAt(n) },
      opts: { delay: Math.max(0, Math.ceil(dueAt(n) - Date.now())), removeOnComplete: true },
    });
  await queue.addBulk(batch);
}
const added = precise();
if (added > first - 2000) throw new Error(`adding took ${((added - first) / 1000).toFixed(1)} s too long`);

const late = [];
let finish;
const finished = new Promise((done) => (finish = done));
const worker = new Worker(
  "expirations",
  async (job) => {
    late.push(precise() - job.data.dueAt);
    if (late.length === due) finish();
  },
  { connection, concurrency },
);
await worker.waitUntilReady();
await finished;
console.log(JSON.stringify({ late }));
await worker.close(true);
await queue.close();
