// Prints what a browser loads: first for any page, later when it is needed. Fails when the first is over its budget.
import { readFileSync } from "node:fs";
import { gzipSync } from "node:zlib";

const BUDGET = 150_000;
const build = new URL("../chatbot/static/web/", import.meta.url);
const manifest = JSON.parse(readFileSync(new URL(".vite/manifest.json", build), "utf8"));
const compressed = (file) => gzipSync(readFileSync(new URL(file, build)), { level: 6 }).length;
const kilobytes = (bytes) => `${(bytes / 1000).toFixed(1)} kB`.padStart(9);

const first = new Set();
function add(key) {
  const { file, css = [], imports = [] } = manifest[key];
  for (const each of [file, ...css]) first.add(each);
  imports.forEach(add);
}
add("index.html");

const total = { first: 0, script: 0 };
const all = Object.values(manifest).flatMap(({ file, css = [] }) => [file, ...css]);
for (const file of [...new Set(all)].sort((one, other) => first.has(other) - first.has(one))) {
  const size = compressed(file);
  if (first.has(file)) total.first += size;
  if (first.has(file) && file.endsWith(".js")) total.script += size;
  console.log(`${first.has(file) ? "first" : "later"} ${kilobytes(size)}  ${file}`);
}
const sum = `${kilobytes(total.script)} compressed, of ${kilobytes(BUDGET).trim()}`;
console.log(`\nscript at first ${sum}; with style ${kilobytes(total.first).trim()}`);
process.exitCode = total.script > BUDGET ? 1 : 0;
